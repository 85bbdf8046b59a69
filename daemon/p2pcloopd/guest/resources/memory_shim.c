/*
 * LD_PRELOAD for QEMU, when it resumes a guest: the guest's memory is an open file, of which this
 * QEMU only has a private copy.
 *
 * QEMU leaves shared memory alone when it loads or saves a state, and must believe that this one is
 * shared (migration capability x-ignore-shared). But what is mapped shared is written back, and the
 * file is everybody's. So it is mapped privately: the pages that the guest writes are QEMU's own.
 *
 * P2PCLOOP_MEMORY is the number of the file's descriptor. QEMU opens it by its path below /proc, to
 * read and write; it gets the descriptor itself, which only reads. It asks for huge pages, with
 * which each access reads 2 MiB of the file; it gets none there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char *mapped;
static size_t mapped_size;

/* The descriptor, or -1. */
static int memory(void)
{
	const char *number = getenv("P2PCLOOP_MEMORY");

	return number ? atoi(number) : -1;
}

static int is_memory(int fd)
{
	struct stat ours, given;

	return fd >= 0 && memory() >= 0 && !fstat(fd, &given) && !fstat(memory(), &ours) &&
	       ours.st_dev == given.st_dev && ours.st_ino == given.st_ino;
}

static int open_file(const char *path, int flags, mode_t mode)
{
	char name[64];

	snprintf(name, sizeof(name), "/proc/self/fd/%d", memory());
	if (!strcmp(path, name))
		return fcntl(memory(), F_DUPFD_CLOEXEC, 3);
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list arguments;

	if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {
		va_start(arguments, flags);
		mode = va_arg(arguments, mode_t);
		va_end(arguments);
	}
	return open_file(path, flags, mode);
}

/* What the C library's headers make of `open` where the flags are known at run time only. */
int __open64_2(const char *path, int flags)
{
	return open_file(path, flags, 0);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset)
{
	void *result;

	if (!is_memory(fd))
		return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
	flags = (flags & ~MAP_TYPE) | MAP_PRIVATE | MAP_NORESERVE;
	result = (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
	if (result != MAP_FAILED) {
		mapped = result;
		mapped_size = size;
	}
	return result;
}

int madvise(void *address, size_t size, int advice)
{
	char *start = address;

	if (advice == MADV_HUGEPAGE && start < mapped + mapped_size && start + size > mapped)
		return 0;
	return syscall(SYS_madvise, address, size, advice);
}
