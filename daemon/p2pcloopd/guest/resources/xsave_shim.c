/*
 * LD_PRELOAD for User-Mode Linux kernels before 6.13 on CPUs with large XSAVE areas (AMX).
 *
 * UML sets a process's floating point registers with PTRACE_SETREGSET(NT_X86_XSTATE) from a buffer
 * that is smaller than the host's XSAVE area, and the host refuses anything but the full size with
 * EFAULT. So: read the whole area, lay the caller's bytes over its start, set the whole.
 *
 * UML calls ptrace on small stacks and from one thread: the buffer is static.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static unsigned char area[1 << 16] __attribute__((aligned(64)));

static long set_xstate(pid_t pid, void *type, struct iovec *given)
{
	struct iovec whole = { area, sizeof(area) };
	size_t length;

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, type, &whole) < 0)
		return -1;
	length = given->iov_len < whole.iov_len ? given->iov_len : whole.iov_len;
	memcpy(area, given->iov_base, length);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, type, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	pid_t pid;
	void *address, *data;
	long result, word;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE)
		return set_xstate(pid, address, data);

	/* The system call stores what it peeks at; the C function returns it (ptrace(2)). */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		result = syscall(SYS_ptrace, request, pid, address, &word);
		if (result < 0)
			return -1;
		errno = 0;
		return word;
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
