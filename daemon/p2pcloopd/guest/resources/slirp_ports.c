/*
 * LD_PRELOAD for libslirp-helper: ports of this machine that lead into the guest.
 *
 * libslirp has slirp_add_hostfwd(), but its helper has no option for it. P2PCLOOP_PORTS lists the
 * ports, as words FD:PROTOCOL:PORT. FD is a socket that this process has inherited, bound already
 * (and listening, with tcp); PORT is the guest's.
 *
 * What the guest sends to this machine goes nowhere: the helper drops what is for its own alias,
 * and the filter on its socket (frame_filter.py) what is for this machine's addresses. Answers to a
 * client on this machine must pass, and nothing else. So the guest sees such a client under another
 * address: with tcp as the helper's alias, which libslirp makes of the loopback; the connection is
 * there and leads to its client alone. With udp as STAND_IN and a port of its own, from which
 * sendto() finds the client.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAND_IN 0xc0000008u /* 192.0.0.8, which no machine has (RFC 7600) */
#define FIRST_PORT 1024
#define CLIENTS 256
#define SECOND 1000000000LL
#define IDLE (300 * SECOND) /* a client that is silent for longer is forgotten (RFC 4787, 4.3) */
#define FORWARDS 32
#define BACKLOG 128

struct forward {
	int fd;
	struct sockaddr_in clients[CLIENTS];
	int64_t used[CLIENTS]; /* when a datagram last went either way, in nanoseconds; 0: never */
};

static struct forward udp_forwards[FORWARDS];
static int udp_count;
static int given = -1; /* the socket that the next bind() stands for */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void fail(const char *what)
{
	fprintf(stderr, "no port can be forwarded: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct forward *forward_of(int fd)
{
	for (int i = 0; i < udp_count; i++)
		if (udp_forwards[i].fd == fd)
			return &udp_forwards[i];
	return NULL;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

/* The place of a client; a new one takes that of the client which was silent for longest. */
static unsigned place_of(struct forward *forward, const struct sockaddr_in *client)
{
	unsigned oldest = 0;

	for (unsigned i = 0; i < CLIENTS; i++) {
		if (forward->clients[i].sin_port == client->sin_port &&
		    forward->clients[i].sin_addr.s_addr == client->sin_addr.s_addr)
			return i;
		if (forward->used[i] < forward->used[oldest])
			oldest = i;
	}
	forward->clients[oldest] = *client;
	return oldest;
}

/* Whether an address is this machine's own: then a socket can be bound to it. */
static int is_own(const struct sockaddr_in *address)
{
	struct sockaddr_in any_port = { .sin_family = AF_INET, .sin_addr = address->sin_addr };
	int probe, result;

	if (ntohl(address->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET)
		return 1;
	probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return 0;
	result = REAL(bind)(probe, (struct sockaddr *)&any_port, sizeof(any_port));
	close(probe);
	return result == 0;
}

static void forward_port(void *slirp, const char *word)
{
	int (*add)(void *, int, struct in_addr, int, struct in_addr, int);
	struct in_addr any = { INADDR_ANY };
	char protocol[4];
	int fd, port, is_udp;

	add = (__typeof__(add))dlsym(RTLD_NEXT, "slirp_add_hostfwd");
	if (!add || sscanf(word, "%d:%3[a-z]:%d", &fd, protocol, &port) != 3)
		fail(word);
	is_udp = strcmp(protocol, "udp") == 0;
	if (is_udp && udp_count == FORWARDS)
		fail("too many");
	given = fd;
	if (add(slirp, is_udp, any, 0, any, port) < 0)
		fail(word);
	/* libslirp has set the backlog to 1. */
	if (!is_udp && listen(fd, BACKLOG) < 0)
		fail(word);
}

void *slirp_new(const void *config, const void *callbacks, void *opaque)
{
	void *slirp = REAL(slirp_new)(config, callbacks, opaque);
	char *words = getenv("P2PCLOOP_PORTS"), *rest = NULL;

	if (slirp && words)
		for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
			forward_port(slirp, word);
	return slirp;
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
	int type, from = given;
	socklen_t size = sizeof(type);

	if (from < 0)
		return REAL(bind)(fd, address, length);
	given = -1;
	if (getsockopt(from, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || dup2(from, fd) < 0)
		return -1;
	if (type == SOCK_DGRAM)
		udp_forwards[udp_count++].fd = fd;
	return 0;
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
	struct sockaddr_in *client = (struct sockaddr_in *)address;
	int connection = REAL(accept)(fd, address, length);

	if (connection >= 0 && client && client->sin_family == AF_INET && is_own(client))
		client->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return connection;
}

ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *address,
		 socklen_t *length)
{
	ssize_t received = REAL(recvfrom)(fd, data, size, flags, address, length);
	struct sockaddr_in *client = (struct sockaddr_in *)address;
	struct forward *forward = forward_of(fd);
	unsigned i;

	if (received < 0 || !forward || client->sin_family != AF_INET || !is_own(client))
		return received;
	i = place_of(forward, client);
	forward->used[i] = now();
	client->sin_addr.s_addr = htonl(STAND_IN);
	client->sin_port = htons(FIRST_PORT + i);
	return received;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address,
	       socklen_t length)
{
	const struct sockaddr_in *to = (const struct sockaddr_in *)address;
	struct forward *forward = forward_of(fd);
	unsigned i;

	if (to && to->sin_family == AF_INET && to->sin_addr.s_addr == htonl(STAND_IN)) {
		i = ntohs(to->sin_port) - FIRST_PORT;
		if (!forward || i >= CLIENTS || !forward->used[i] ||
		    now() - forward->used[i] > IDLE) {
			errno = EPERM;
			return -1;
		}
		forward->used[i] = now();
		address = (const struct sockaddr *)&forward->clients[i];
	}
	return REAL(sendto)(fd, data, size, flags, address, length);
}
