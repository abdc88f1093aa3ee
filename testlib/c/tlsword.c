/* A shared library that cannot be opened without eight bytes of static TLS. */
static __thread long word __attribute__((tls_model("initial-exec")));

long tl_tls_word(void)
{
	return ++word;
}
