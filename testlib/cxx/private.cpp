/* A library that brings its own unwinder: -static-libgcc -static-libstdc++. */
extern "C" __attribute__((noipa)) int tl_private_throw(int value)
{
	if (value < 0)
		throw value;
	return value + 1;
}

extern "C" __attribute__((noipa)) int tl_private_catch(int value)
{
	try {
		return tl_private_throw(value);
	} catch (int thrown) {
		return 1000 - thrown;
	}
}
