/* One TCP transfer in one direction, timed at its reader: the guest's end of bench/guest_net.py.
 *
 * Usage: guest_net send|receive ADDRESS PORT BYTES
 *
 * Connects to guest_net.py's server, which takes or gives all bytes and tells, or is told, nothing
 * else. A sender waits for one byte, which says that all has arrived. Prints seconds.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 18];

static void give_up(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void send_all(int connection, long long bytes)
{
	for (long long sent = 0; sent < bytes;) {
		long long left = bytes - sent;
		size_t most = left < (long long)sizeof(buffer) ? (size_t)left : sizeof(buffer);
		ssize_t written = write(connection, buffer, most);
		if (written <= 0)
			give_up("write");
		sent += written;
	}
	if (shutdown(connection, SHUT_WR) < 0 || read(connection, buffer, 1) != 1)
		give_up("the last byte");
}

static void receive_all(int connection, long long bytes)
{
	long long received = 0;
	ssize_t got;

	while ((got = read(connection, buffer, sizeof(buffer))) > 0)
		received += got;
	if (received != bytes) {
		fprintf(stderr, "%lld bytes came of %lld\n", received, bytes);
		exit(1);
	}
}

int main(int count, char **words)
{
	struct sockaddr_in server = { .sin_family = AF_INET };
	int connection = socket(AF_INET, SOCK_STREAM, 0);
	double start;

	if (count != 5 || !inet_aton(words[2], &server.sin_addr)) {
		fputs("usage: guest_net send|receive ADDRESS PORT BYTES\n", stderr);
		return 2;
	}
	server.sin_port = htons(atoi(words[3]));
	if (connect(connection, (struct sockaddr *)&server, sizeof(server)) < 0)
		give_up("connect");
	start = now();
	(strcmp(words[1], "send") ? receive_all : send_all)(connection, atoll(words[4]));
	printf("%.4f\n", now() - start);
	return 0;
}
