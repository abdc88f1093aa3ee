/* Callers of functions that return more than once. Declared in src/functions.rs. */
#include <setjmp.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PLAIN __attribute__((noipa))

/* Something that uses the stack below its caller's frame. */
PLAIN long tl_burn(long depth)
{
	volatile long here[8] = { depth };
	return depth > 0 ? tl_burn(depth - 1) + here[0] : here[0];
}

PLAIN long tl_setjmp_rounds(long rounds)
{
	static sigjmp_buf env;
	volatile long returns = 0;
	long got = sigsetjmp(env, 1);
	returns += 1 + 1000 * got;
	tl_burn(8);
	if (got < rounds)
		siglongjmp(env, got + 1);
	return returns;
}

PLAIN long tl_getcontext_rounds(long rounds)
{
	static ucontext_t context;
	volatile long returns = 0;
	getcontext(&context);
	returns++;
	tl_burn(8);
	if (returns <= rounds)
		setcontext(&context);
	return returns;
}

/* What a child of vfork exits with. */
PLAIN long tl_vfork_exits(int code)
{
	int status = -1;
	pid_t pid = vfork();
	if (pid == 0) {
		tl_burn(4);
		_exit(code);
	}
	return pid < 0 || waitpid(pid, &status, 0) != pid ? -1 : WEXITSTATUS(status);
}
