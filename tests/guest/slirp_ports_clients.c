/* Tries how slirp_ports.c keeps the clients of a forwarded UDP port, with a clock of its own. */
#include <time.h>

static time_t test_seconds = 1000;

static int test_clock(clockid_t clock, struct timespec *time)
{
	static long nanoseconds;

	(void)clock;
	time->tv_sec = test_seconds;
	time->tv_nsec = ++nanoseconds; /* no two moments are the same */
	return 0;
}

#define clock_gettime test_clock
#include SOURCE

static int forwarded;
static struct sockaddr_in place;

static int loopback_socket(struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	*address = (struct sockaddr_in){ .sin_family = AF_INET,
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (REAL(bind)(fd, (struct sockaddr *)address, size) < 0 ||
	    getsockname(fd, (struct sockaddr *)address, &size) < 0)
		exit(3);
	return fd;
}

/* A client sends; the port under which the guest sees it. */
static int ask(int client)
{
	struct sockaddr_in from = { 0 };
	socklen_t size = sizeof(from);
	char data[4];

	REAL(sendto)(client, "ask", 3, 0, (struct sockaddr *)&place, sizeof(place));
	if (recvfrom(forwarded, data, sizeof(data), 0, (struct sockaddr *)&from, &size) != 3 ||
	    from.sin_addr.s_addr != htonl(STAND_IN))
		exit(4);
	return ntohs(from.sin_port);
}

/* The guest answers; whether that arrives at the client. */
static int answer(int client, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(STAND_IN),
				  .sin_port = htons(port) };
	char data[8];

	if (sendto(forwarded, "answer", 6, 0, (struct sockaddr *)&to, sizeof(to)) != 6)
		return 0;
	return recv(client, data, sizeof(data), MSG_DONTWAIT) == 6;
}

int main(void)
{
	struct sockaddr_in address;
	int clients[CLIENTS + 1], ports[CLIENTS + 1];

	forwarded = loopback_socket(&place);
	udp_forwards[udp_count++].fd = forwarded;
	for (int i = 0; i <= CLIENTS; i++)
		clients[i] = loopback_socket(&address);
	for (int i = 0; i < CLIENTS; i++)
		ports[i] = ask(clients[i]);
	printf("same %d\n", ask(clients[0]) == ports[0]);
	printf("full %d\n", answer(clients[1], ports[1]));
	/* Clients 0 and 1 were heard since: client 2 has been silent for longest. */
	ports[CLIENTS] = ask(clients[CLIENTS]);
	printf("replaced %d\n", ports[CLIENTS] - ports[0]);
	printf("kept %d %d\n", answer(clients[0], ports[0]), answer(clients[CLIENTS], ports[2]));
	test_seconds += 299;
	printf("soon %d\n", answer(clients[0], ports[0]));
	test_seconds += 299;
	printf("later %d %d\n", answer(clients[0], ports[0]), answer(clients[3], ports[3]));
	printf("again %d\n", answer(clients[3], ask(clients[3])));
	return 0;
}
