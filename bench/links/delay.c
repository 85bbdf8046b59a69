/*
 * A link of fixed delay: hands frames from each of two TAP devices to the other, a given time later.
 *
 * For kernels without netem. Frames pass as they are, so TCP's handshakes, acknowledgements and
 * losses are those of the hosts. Nothing is reordered, shaped or dropped here; when a queue is
 * full its device is not read, and the kernel's own queue drops the excess.
 *
 * usage: delay TAP TAP MICROSECONDS; says "ready" and runs until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { FRAME = 1536, FRAMES = 16384 }; /* 1 s of a full link of 24 MB/s */

struct frame {
	uint64_t due; /* ns, CLOCK_MONOTONIC */
	size_t length;
	uint8_t data[FRAME];
};

/* One direction: a ring of frames, oldest at `head`. */
struct queue {
	int from, to;
	unsigned head, count;
	struct frame frames[FRAMES];
};

static struct queue queues[2];

static void fail(const char *what)
{
	fprintf(stderr, "delay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		fail("/dev/net/tun");
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		fail(name);
	return fd;
}

/* Receive the frames that are there; they are due `delay` ns from now. */
static void take(struct queue *queue, uint64_t delay)
{
	uint64_t due = now() + delay;
	while (queue->count < FRAMES) {
		struct frame *frame = &queue->frames[(queue->head + queue->count) % FRAMES];
		ssize_t length = read(queue->from, frame->data, sizeof frame->data);
		if (length < 0 && errno == EAGAIN)
			return;
		if (length < 0 && errno != EINTR)
			fail("read");
		if (length <= 0)
			continue;
		frame->length = (size_t)length;
		frame->due = due;
		queue->count++;
	}
}

/* Send the frames that are due. */
static void give(struct queue *queue)
{
	uint64_t time = now();
	while (queue->count && queue->frames[queue->head].due <= time) {
		struct frame *frame = &queue->frames[queue->head];
		/* A device that is not up yet, or has no room, loses frames as a wire would. */
		if (write(queue->to, frame->data, frame->length) < 0 && errno != EAGAIN && errno != EIO)
			fail("write");
		queue->head = (queue->head + 1) % FRAMES;
		queue->count--;
	}
}

/* Nanoseconds until the next frame is due; -1 where there is none. */
static int64_t wait_time(void)
{
	int64_t wait = -1;
	for (int i = 0; i < 2; i++) {
		if (!queues[i].count)
			continue;
		int64_t left = (int64_t)(queues[i].frames[queues[i].head].due - now());
		left = left < 0 ? 0 : left;
		wait = wait < 0 || left < wait ? left : wait;
	}
	return wait;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: delay TAP TAP MICROSECONDS\n");
		return 2;
	}
	uint64_t delay = strtoull(argv[3], NULL, 10) * 1000;
	queues[0].from = queues[1].to = open_tap(argv[1]);
	queues[0].to = queues[1].from = open_tap(argv[2]);
	/* The network's delay must not be the machine's load; without the right to it, less exact. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	prctl(PR_SET_TIMERSLACK, 1ul);
	prctl(PR_SET_PDEATHSIG, 9ul);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct pollfd polled[2];
		for (int i = 0; i < 2; i++) {
			polled[i].fd = queues[i].count < FRAMES ? queues[i].from : -1;
			polled[i].events = POLLIN;
		}
		int64_t wait = wait_time();
		struct timespec left = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
		if (ppoll(polled, 2, wait < 0 ? NULL : &left, NULL) < 0 && errno != EINTR)
			fail("poll");
		for (int i = 0; i < 2; i++) {
			take(&queues[i], delay);
			give(&queues[i]);
		}
	}
}
