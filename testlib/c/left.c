/* Calls that a signal handler leaves. Declared in src/functions.rs. */
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#define PLAIN __attribute__((noipa))

static __thread sigjmp_buf tl_left_env;

static void tl_leave(int signo)
{
	siglongjmp(tl_left_env, signo);
}

PLAIN int tl_left_by_signal(int signo, int flags, long (*f)(void *), void *arg)
{
	struct sigaction now, before;
	memset(&now, 0, sizeof now);
	now.sa_handler = tl_leave;
	now.sa_flags = flags;
	sigaction(signo, &now, &before);
	volatile int left = sigsetjmp(tl_left_env, 1);
	if (!left)
		f(arg);
	sigaction(signo, &before, 0);
	return left;
}
