/*
 * The least that a process per guest can cost: for the bench only, to compare guestServer's children with.
 *
 *     pingpong FOLDER INTERVAL_MS
 *
 * connects to every guest's socket in FOLDER and forks a process for each, which does what a healthy guest
 * needs: it answers `init` with `init_ack`, and then challenges every INTERVAL_MS and checks the answer.
 * It tells nobody anything, gives nothing up and forgives nothing: what guestServer does beyond that is the
 * difference. It says `ready` when all are connected, and ends, with all its processes, with a signal.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define PREFIX "cgcs.heartbeat."
#define HEAD "\n{\"version\":3,\"revision\":1,\"msg_type\":"

struct session {
    int guest;
    long long interval; /* ns, as all times here */
    long long due;      /* 0: nobody is there yet */
    unsigned challenge, sequence;
    int open; /* the challenge is not answered */
    char line[LINE_MAX_BYTES + 1];
    size_t length;
};

static const long long NS = 1000000000LL, NS_PER_MS = 1000000LL;

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static long long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * NS + at.tv_nsec;
}

static void say(struct session *one, const char *text)
{
    size_t length = strlen(text);
    if (send(one->guest, text, length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)length)
        exit(EXIT_FAILURE);
}

static void challenge(struct session *one, long long at)
{
    char text[256];
    if (getrandom(&one->challenge, sizeof one->challenge, 0) != sizeof one->challenge)
        die("getrandom");
    one->challenge &= 0x7fffffff;
    snprintf(text, sizeof text, HEAD "\"challenge\",\"sequence\":%u,\"heartbeat_challenge\":%u}\n",
             ++one->sequence, one->challenge);
    say(one, text);
    one->open = 1;
    one->due = at + one->interval;
}

static long field(const char *line, const char *name)
{
    const char *found = strstr(line, name);
    found = found ? strchr(found, ':') : NULL;
    return found ? strtol(found + 1, NULL, 10) : -1;
}

static void acknowledge(struct session *one, long invocation)
{
    char text[256];
    snprintf(text, sizeof text, HEAD "\"init_ack\",\"sequence\":%u,\"invocation_id\":%ld}\n",
             ++one->sequence, invocation);
    say(one, text);
    challenge(one, now());
}

static void take(struct session *one, const char *line)
{
    if (strstr(line, "\"challenge_response\"")) {
        if (field(line, "\"heartbeat_response\"") == (long)one->challenge)
            one->open = 0;
    } else if (strstr(line, "\"init\"")) {
        acknowledge(one, field(line, "\"invocation_id\""));
    }
}

static void take_lines(struct session *one)
{
    char *start = one->line, *end;
    one->line[one->length] = '\0';
    while ((end = strchr(start, '\n'))) {
        *end = '\0';
        if (end > start)
            take(one, start);
        start = end + 1;
    }
    one->length -= start - one->line;
    memmove(one->line, start, one->length);
    if (one->length == LINE_MAX_BYTES)
        one->length = 0;
}

static void listen_to(struct session *one)
{
    ssize_t got = recv(one->guest, one->line + one->length, LINE_MAX_BYTES - one->length, MSG_DONTWAIT);
    if (got <= 0)
        exit(EXIT_SUCCESS);
    one->length += got;
    take_lines(one);
}

static void judge(struct session *one, long long at)
{
    if (one->open) {
        static const char missed[] = "missed\n";
        if (write(STDOUT_FILENO, missed, sizeof missed - 1) < 0)
            exit(EXIT_FAILURE);
    }
    challenge(one, at);
}

static void serve(int guest, long long interval)
{
    struct session one = {.guest = guest, .interval = interval};
    for (;;) {
        struct pollfd ready = {.fd = guest, .events = POLLIN};
        long long left = one.due - now();
        int wait = one.due == 0 ? -1 : left > 0 ? (int)(left / NS_PER_MS) + 1 : 0;
        if (poll(&ready, 1, wait) > 0)
            listen_to(&one);
        if (one.due != 0 && now() >= one.due)
            judge(&one, now());
    }
}

static int reach(const char *folder, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int guest = socket(AF_UNIX, SOCK_STREAM, 0);
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", folder, name) >=
        (int)sizeof address.sun_path)
        exit(EXIT_FAILURE);
    if (guest < 0 || connect(guest, (struct sockaddr *)&address, sizeof address) != 0)
        die(name);
    return guest;
}

static void start(int guest, long long interval)
{
    pid_t parent = getpid(), child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent)
            serve(guest, interval);
        _exit(EXIT_SUCCESS);
    }
    close(guest);
}

int main(int count, char **words)
{
    DIR *folder = count == 3 ? opendir(words[1]) : NULL;
    struct dirent *entry;
    if (folder == NULL)
        die("usage: pingpong FOLDER INTERVAL_MS");
    while ((entry = readdir(folder)))
        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0)
            start(reach(words[1], entry->d_name), atoll(words[2]) * NS_PER_MS);
    closedir(folder);
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}
