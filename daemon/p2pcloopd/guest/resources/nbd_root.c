/* The disk of a machine without disks: connects /dev/nbd0 to a node, and again when the node has
 * gone and come back.
 *
 *     nbd_root ADDRESS PORT EXPORT
 *
 * Returns 0 once the device is there, and goes on in the background; else it prints why not, and
 * returns 1. EXPORT names the image, the machine and this boot of it. "/again" is put behind it when
 * the connection is not this boot's first one: a node that has lost writes of this boot refuses it.
 *
 * The kernel does the reading and writing (drivers/block/nbd.c). It is set up over netlink
 * (linux/nbd-netlink.h): then it keeps requests while no connection is there, tells of the end of
 * one (NBD_CMD_LINK_DEAD), and takes another (NBD_CMD_RECONFIGURE). The handshake is that of
 * doc/proto.md of NetworkBlockDevice/nbd, fixed newstyle, with NBD_OPT_GO.
 *
 * It is linked statically and locked in memory: it must run when nothing can be read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_NAME = 1024,
    MAX_TEXT = 256,
    MAX_MESSAGE = 8192,
    HANDSHAKE_SECONDS = 10,
    /* Until the first connection must be there: after a crash the node notices the end of the last
     * boot's connection in 25 seconds, and waits for that boot for 30 more. */
    FIRST_SECONDS = 120,
    IDLE_SECONDS = 5,   /* of a connection, until the kernel asks whether the node lives */
    PROBES = 3,
    LOST_MS = 20000, /* until unanswered data make a connection a dead one */
    MIN_WAIT_MS = 200,
    MAX_WAIT_MS = 2000,
    BLOCK_SIZE = 512, /* as disks have it: no file system has smaller blocks */
    OPT_GO = 7,
    REP_ACK = 1,
    REP_INFO = 3,
    INFO_EXPORT = 0,
    READ_ONLY = 2,
    TELL_AFTER_MS = 5000, /* that the first connection has to wait */
};
#define REP_ERROR 0x80000000u
#define OPTION_MAGIC 0x49484156454F5054u /* "IHAVEOPT" */
#define REPLY_MAGIC 0x0003e889045565a9u
#define FOR_EVER (10u * 366 * 86400) /* seconds that requests wait for a connection */

struct disk {
    uint64_t size;
    uint16_t flags;
};

static char why[MAX_TEXT];
static int log_fd = -1;

/* Keep why something failed; returns -1. */
__attribute__((format(printf, 1, 2))) static int failed(const char *form, ...) {
    va_list values;
    va_start(values, form);
    vsnprintf(why, sizeof why, form, values);
    va_end(values);
    return -1;
}

/* Write a line to the console, by way of the kernel's log. */
static void tell(const char *text) {
    char line[2 * MAX_TEXT];
    int size = snprintf(line, sizeof line, "<4>p2pcloop: %s\n", text);
    if (log_fd >= 0 && write(log_fd, line, size) < 0)
        return;
}

/* Tell why something waits, unless that was told last. */
static void tell_once(const char *what, char told[MAX_TEXT]) {
    char text[MAX_TEXT + 32];
    if (!strcmp(told, why))
        return;
    snprintf(text, sizeof text, "%s: %s", what, why);
    tell(text);
    strcpy(told, why);
}

static int receive(int fd, void *data, size_t size) {
    for (char *at = data; size;) {
        ssize_t count = recv(fd, at, size, 0);
        if (count == 0)
            return failed("the node closed the connection");
        if (count < 0)
            return failed("the node does not answer: %s", strerror(errno));
        at += count;
        size -= count;
    }
    return 0;
}

static int send_all(int fd, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t count = send(fd, at, size, MSG_NOSIGNAL);
        if (count < 0)
            return failed("the connection broke: %s", strerror(errno));
        at += count;
        size -= count;
    }
    return 0;
}

/* Send the client's flags and NBD_OPT_GO for an export. */
static int ask_for(int fd, const char *name, uint16_t server_flags) {
    uint32_t length = strlen(name);
    struct {
        uint32_t flags;
        uint64_t magic;
        uint32_t option, size, name_size;
        char rest[MAX_NAME + 2];
    } __attribute__((packed)) go = {
        htobe32(server_flags & 3), htobe64(OPTION_MAGIC), htobe32(OPT_GO),
        htobe32(length + 6),       htobe32(length),       {0},
    };
    memcpy(go.rest, name, length);
    return send_all(fd, &go, sizeof go - sizeof go.rest + length + 2);
}

/* Agree on an export: tells its size and its flags. */
static int negotiate(int fd, const char *name, struct disk *disk) {
    struct {
        char nbd[8];
        uint64_t option;
        uint16_t flags;
    } __attribute__((packed)) greeting;
    if (receive(fd, &greeting, sizeof greeting))
        return -1;
    if (memcmp(greeting.nbd, "NBDMAGIC", 8) || be64toh(greeting.option) != OPTION_MAGIC)
        return failed("no NBD server answers there");
    if (ask_for(fd, name, be16toh(greeting.flags)))
        return -1;
    for (;;) {
        struct {
            uint64_t magic;
            uint32_t option, kind, size;
        } __attribute__((packed)) reply;
        char data[MAX_MESSAGE];
        if (receive(fd, &reply, sizeof reply))
            return -1;
        uint32_t kind = be32toh(reply.kind), size = be32toh(reply.size);
        if (be64toh(reply.magic) != REPLY_MAGIC || size > sizeof data)
            return failed("the node breaks the protocol");
        if (receive(fd, data, size))
            return -1;
        if (kind & REP_ERROR)
            return failed("the node refuses: %.*s", size < 200 ? (int)size : 200, data);
        if (kind == REP_INFO && size >= 12 && data[0] == 0 && data[1] == INFO_EXPORT) {
            memcpy(&disk->size, data + 2, sizeof disk->size);
            memcpy(&disk->flags, data + 10, sizeof disk->flags);
            disk->size = be64toh(disk->size);
            disk->flags = be16toh(disk->flags);
        }
        if (kind == REP_ACK)
            return disk->size ? 0 : failed("the node does not tell the size of the disk");
    }
}

static void set_up(int fd) {
    struct timeval limit = {HANDSHAKE_SECONDS, 0};
    int on = 1, idle = IDLE_SECONDS, probes = PROBES;
    unsigned lost = LOST_MS;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* A node whose power fails says nothing. */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &lost, sizeof lost);
}

/* Return a connection over which requests can be sent; -1 if there is none. */
static int connect_to(const struct sockaddr_in *node, const char *name, struct disk *disk) {
    struct timeval none = {0, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return failed("no socket: %s", strerror(errno));
    set_up(fd);
    if (connect(fd, (const struct sockaddr *)node, sizeof *node)) {
        failed("the node cannot be reached: %s", strerror(errno));
    } else if (!negotiate(fd, name, disk)) {
        /* The kernel waits as long as a read takes. */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
        return fd;
    }
    close(fd);
    return -1;
}

/* A message of generic netlink (kernel documentation, userspace-api/netlink). */
struct message {
    struct nlmsghdr head;
    struct genlmsghdr command;
    char attributes[1024];
};

static void begin(struct message *message, uint16_t family, uint8_t command) {
    memset(message, 0, sizeof *message);
    message->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
    message->head.nlmsg_type = family;
    message->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    message->command.cmd = command;
    message->command.version = 1;
}

static struct nlattr *add(struct message *message, uint16_t kind, const void *value, size_t size) {
    struct nlattr *attribute = (void *)((char *)message + message->head.nlmsg_len);
    attribute->nla_type = kind;
    attribute->nla_len = NLA_HDRLEN + size;
    if (size)
        memcpy((char *)attribute + NLA_HDRLEN, value, size);
    message->head.nlmsg_len += NLA_ALIGN(attribute->nla_len);
    return attribute;
}

static void add_32(struct message *message, uint16_t kind, uint32_t value) {
    add(message, kind, &value, sizeof value);
}

static void add_64(struct message *message, uint16_t kind, uint64_t value) {
    add(message, kind, &value, sizeof value);
}

static void end_nested(struct message *message, struct nlattr *attribute) {
    attribute->nla_type |= NLA_F_NESTED;
    attribute->nla_len = (char *)message + message->head.nlmsg_len - (char *)attribute;
}

/* Return the attribute of a kind among those at `body`, or NULL. */
static struct nlattr *find(void *body, int size, uint16_t kind) {
    for (struct nlattr *at = body; size >= NLA_HDRLEN && at->nla_len >= NLA_HDRLEN;) {
        if ((at->nla_type & NLA_TYPE_MASK) == kind)
            return at;
        size -= NLA_ALIGN(at->nla_len);
        at = (void *)((char *)at + NLA_ALIGN(at->nla_len));
    }
    return NULL;
}

static void *value_of(struct nlattr *attribute) { return (char *)attribute + NLA_HDRLEN; }

static int netlink(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    return fd < 0 || bind(fd, (void *)&address, sizeof address) ? -1 : fd;
}

/* Send a message and wait for its acknowledgement: 0, or a negative error. `answer` gets the message
 * before that, where there is one. */
static int ask(int fd, struct message *message, struct message *answer) {
    if (send(fd, message, message->head.nlmsg_len, 0) < 0)
        return -errno;
    for (;;) {
        char data[MAX_MESSAGE] __attribute__((aligned(NLMSG_ALIGNTO)));
        ssize_t size = recv(fd, data, sizeof data, 0);
        if (size < 0)
            return -errno;
        for (struct nlmsghdr *at = (void *)data; NLMSG_OK(at, size); at = NLMSG_NEXT(at, size)) {
            if (at->nlmsg_type == NLMSG_ERROR)
                return ((struct nlmsgerr *)NLMSG_DATA(at))->error;
            if (answer && at->nlmsg_len <= sizeof *answer)
                memcpy(answer, at, at->nlmsg_len);
        }
    }
}

/* Find the number of the family "nbd", and that of its only group of listeners. */
static int find_family(int fd, uint16_t *family, uint32_t *group) {
    struct message message, answer = {0};
    begin(&message, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    add(&message, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME, sizeof NBD_GENL_FAMILY_NAME);
    int error = ask(fd, &message, &answer);
    if (error)
        return error;
    int size = answer.head.nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
    struct nlattr *id = find(answer.attributes, size, CTRL_ATTR_FAMILY_ID);
    struct nlattr *groups = find(answer.attributes, size, CTRL_ATTR_MCAST_GROUPS);
    if (!id || !groups)
        return -ENOENT;
    struct nlattr *first = value_of(groups);
    struct nlattr *number =
        find(value_of(first), first->nla_len - NLA_HDRLEN, CTRL_ATTR_MCAST_GRP_ID);
    if (!number)
        return -ENOENT;
    memcpy(family, value_of(id), sizeof *family);
    memcpy(group, value_of(number), sizeof *group);
    return 0;
}

/* Give the kernel a connection: the `first` one, or another in place of a dead one. */
static int hand_over(int fd, uint16_t family, int connection, const struct disk *first) {
    struct message message;
    begin(&message, family, first ? NBD_CMD_CONNECT : NBD_CMD_RECONFIGURE);
    add_32(&message, NBD_ATTR_INDEX, 0);
    if (first) {
        add_64(&message, NBD_ATTR_SIZE_BYTES, first->size);
        add_64(&message, NBD_ATTR_BLOCK_SIZE_BYTES, BLOCK_SIZE);
        add_64(&message, NBD_ATTR_SERVER_FLAGS, first->flags);
        /* No NBD_ATTR_TIMEOUT: a read waits as long as the node needs to fetch the bytes. */
        add_64(&message, NBD_ATTR_DEAD_CONN_TIMEOUT, FOR_EVER);
    }
    struct nlattr *sockets = add(&message, NBD_ATTR_SOCKETS, NULL, 0);
    struct nlattr *item = add(&message, NBD_SOCK_ITEM, NULL, 0);
    add_32(&message, NBD_SOCK_FD, connection);
    end_nested(&message, item);
    end_nested(&message, sockets);
    return ask(fd, &message, NULL);
}

static void wait_ms(int ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* Try once to put another connection in place of the dead one. */
static int try_again(int fd, uint16_t family, const struct sockaddr_in *node, const char *name,
                     const struct disk *first) {
    struct disk disk = {0};
    int connection = connect_to(node, name, &disk);
    if (connection < 0)
        return -1;
    if (disk.size != first->size || (disk.flags ^ first->flags) & READ_ONLY) {
        close(connection);
        return failed("the node's disk %s now: start the machine again",
                      disk.size != first->size   ? "has another size"
                      : disk.flags & READ_ONLY ? "cannot be written"
                                               : "can be written");
    }
    int error = hand_over(fd, family, connection, NULL);
    close(connection); /* the kernel holds it */
    /* ENOSPC: no connection is dead any more. */
    if (error && error != -ENOSPC)
        return failed("the kernel refuses the connection: %s", strerror(-error));
    return 0;
}

/* Until the machine ends: see to it that the device has a connection. The console is told when that
 * takes long, of each reason once. */
static void attend(int fd, int events, uint16_t family, const struct sockaddr_in *node,
                   const char *name, const struct disk *first) {
    for (;;) {
        char data[MAX_MESSAGE] __attribute__((aligned(NLMSG_ALIGNTO)));
        ssize_t count = recv(events, data, sizeof data, 0);
        struct genlmsghdr *command = NLMSG_DATA((struct nlmsghdr *)data);
        /* An error is an event that was lost. One too many does no harm. */
        if (count >= 0 && command->cmd != NBD_CMD_LINK_DEAD)
            continue;
        char told[MAX_TEXT] = "";
        for (int wait = MIN_WAIT_MS; try_again(fd, family, node, name, first); wait *= 2) {
            if (wait > MAX_WAIT_MS)
                wait = MAX_WAIT_MS;
            if (wait == MAX_WAIT_MS)
                tell_once("the disk waits", told);
            wait_ms(wait);
        }
        if (*told)
            tell("the disk goes on: the node is back");
    }
}

/* Return the first connection, as soon as the node gives one; -1 if it gives none. */
static int first_connection(const struct sockaddr_in *node, const char *name, struct disk *disk) {
    char told[MAX_TEXT] = "";
    for (int left = FIRST_SECONDS * 1000; left > 0; left -= MAX_WAIT_MS / 2) {
        int connection = connect_to(node, name, disk);
        if (connection >= 0)
            return connection;
        if (left < FIRST_SECONDS * 1000 - TELL_AFTER_MS)
            tell_once("no disk yet", told);
        wait_ms(MAX_WAIT_MS / 2);
    }
    return -1;
}

static int give_up(const char *what, int error) {
    printf("%s%s%s\n", what, error ? ": " : "", error ? strerror(-error) : "");
    return 1;
}

/* Leave the terminal, and be neither ended, nor swapped out, nor chosen when memory is short. */
static void go_into_background(char *mark) {
    /* systemd-shutdown leaves alone what the root needs: root's processes with this mark
     * (systemd: ROOT_STORAGE_DAEMONS). */
    *mark = '@';
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_IGN);
    if (fork())
        _exit(0);
    setsid();
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (chdir("/") || mlockall(MCL_CURRENT | MCL_FUTURE) || write(score, "-1000", 5) < 0)
        tell("the disk's client is not safe from a lack of memory");
    close(score);
    int null = open("/dev/null", O_RDWR);
    for (int standard = 0; null >= 0 && standard < 3; standard++)
        dup2(null, standard);
}

int main(int count, char **words) {
    struct sockaddr_in node = {.sin_family = AF_INET};
    if (count != 4 || inet_pton(AF_INET, words[1], &node.sin_addr) != 1 ||
        strlen(words[3]) > MAX_NAME - 8)
        return give_up("usage: nbd_root ADDRESS PORT EXPORT", 0);
    node.sin_port = htons(atoi(words[2]));
    char again[MAX_NAME];
    snprintf(again, sizeof again, "%s/again", words[3]);

    log_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    uint16_t family = 0;
    uint32_t group = 0;
    int fd = netlink(), events = netlink();
    int error = fd < 0 || events < 0 ? -errno : find_family(fd, &family, &group);
    if (error)
        return give_up("the kernel has no network block devices", error);
    if (setsockopt(events, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group))
        return give_up("the kernel tells nothing of its network block devices", -errno);
    struct disk disk = {0};
    int connection = first_connection(&node, words[3], &disk);
    if (connection < 0)
        return give_up(why, 0);
    if ((error = hand_over(fd, family, connection, &disk)))
        return give_up("the kernel refuses the disk", error);
    close(connection);
    go_into_background(words[0]);
    attend(fd, events, family, &node, again, &disk);
}
