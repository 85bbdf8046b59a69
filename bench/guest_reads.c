/* The whole user space of a measuring guest: read its disk and print the times.
 *
 * Started by the kernel as /init from an initramfs that holds virtio_blk.ko beside it. Reads, of the
 * disk "bench_disk", the window of "bench_bytes" bytes from "bench_offset" on (kernel parameters)
 * with O_DIRECT: once as a whole so that every cache below is warm, then 4 KiB at random, one and 64
 * at a time (Linux AIO), then in a row in units of 1 MiB. Prints "name value" lines between
 * "BENCH-BEGIN" and "BENCH-END".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define STRIDE (1 << 20)
#define MAX_DEPTH 64
#define SECONDS 2.0

static long long window_start, window_bytes;
static int disk;
static char *buffer;

static void give_up(const char *what)
{
	printf("BENCH-FAILED %s: %m\n", what);
	fflush(stdout);
	reboot(RB_POWER_OFF);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* xorshift64: the same offsets in every run. */
static long long next_offset(void)
{
	static uint64_t state = 88172645463325252ull;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return window_start + (long long)(state % (window_bytes / BLOCK)) * BLOCK;
}

static void read_window(void)
{
	for (long long at = 0; at < window_bytes; at += STRIDE)
		if (pread(disk, buffer, STRIDE, window_start + at) != STRIDE)
			give_up("pread");
}

static void measure_sequential(void)
{
	double start = now(), end;
	int passes = 0;
	do {
		read_window();
		passes++;
		end = now();
	} while (end - start < SECONDS);
	printf("sequential_mb_per_s %.1f\n", passes * window_bytes / 1e6 / (end - start));
}

static void measure_random(int depth)
{
	static struct iocb blocks[MAX_DEPTH];
	struct iocb *ready[MAX_DEPTH];
	struct io_event events[MAX_DEPTH];
	aio_context_t context = 0;
	long done = 0;
	double start, end;

	if (syscall(SYS_io_setup, MAX_DEPTH, &context))
		give_up("io_setup");
	for (int i = 0; i < depth; i++) {
		blocks[i].aio_fildes = disk;
		blocks[i].aio_lio_opcode = IOCB_CMD_PREAD;
		blocks[i].aio_buf = (uintptr_t)(buffer + i * BLOCK);
		blocks[i].aio_nbytes = BLOCK;
		ready[i] = &blocks[i];
	}
	start = now();
	for (int count = depth;;) {
		for (int i = 0; i < count; i++)
			ready[i]->aio_offset = next_offset();
		if (syscall(SYS_io_submit, context, count, ready) != count)
			give_up("io_submit");
		count = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
		if (count < 1)
			give_up("io_getevents");
		for (int i = 0; i < count; i++) {
			if (events[i].res != BLOCK)
				give_up("asynchronous read");
			ready[i] = (struct iocb *)(uintptr_t)events[i].obj;
		}
		done += count;
		end = now();
		if (end - start >= SECONDS)
			break;
	}
	syscall(SYS_io_destroy, context); /* waits for the reads in flight */
	printf("random_%d_us %.2f\n", depth, (end - start) * 1e6 / done);
}

static const char *parameter(const char *name)
{
	const char *text = getenv(name);
	if (!text)
		give_up(name);
	return text;
}

int main(void)
{
	const char *name;
	int module;

	mkdir("/dev", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL))
		give_up("mount devtmpfs");
	module = open("/virtio_blk.ko", O_RDONLY);
	if (module >= 0 && syscall(SYS_finit_module, module, "", 0))
		give_up("finit_module");
	name = parameter("bench_disk");
	for (int i = 0; i < 100 && (disk = open(name, O_RDONLY | O_DIRECT)) < 0; i++)
		usleep(50000);
	if (disk < 0)
		give_up(name);
	window_start = atoll(parameter("bench_offset"));
	window_bytes = atoll(parameter("bench_bytes"));
	if (window_start < 0 || window_bytes < STRIDE || window_bytes % STRIDE)
		give_up("bench_bytes");
	buffer = aligned_alloc(BLOCK, STRIDE);
	if (!buffer)
		give_up("aligned_alloc");

	read_window();
	printf("BENCH-BEGIN\n");
	measure_random(1);
	measure_random(64);
	measure_sequential();
	printf("BENCH-END\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 0;
}
