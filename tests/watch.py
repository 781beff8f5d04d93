"""Watches what every process of a test looks up and connects to: nothing is to leave the machine.

Each interpreter that finds `sitecustomize` on PYTHONPATH imports it before anything else, and so do its
children. That hook sees what Python does. What other programs do, such as Ray's in C++, a small library sees
that stands before the system's own (LD_PRELOAD); only a program that is linked statically escapes both.
"""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import psutil

VARIABLE = "DARKARC_TEST_WATCH"
OWN = "DARKARC_TEST_OWN"

HOOK = """
import json, os, socket, sys

OWN = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname().lower()}

def away(host):
    host = (host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")).lower()
    return host.partition("%")[0] not in OWN and not host.startswith(("127.", "::ffff:127."))

def note(event, what):
    words = getattr(sys, "orig_argv", [])[:6]
    line = json.dumps({"event": event, "what": str(what), "argv": words})
    descriptor = os.open(os.environ["DARKARC_TEST_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode() + b"\\n")
    os.close(descriptor)

def watch(event, arguments):
    if not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if away(arguments[0]):
            note(event, arguments[0])
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments[0], arguments[-1]
        # Connecting a datagram socket sends nothing: Ray asks so for the machine's own address.
        silent = event == "socket.connect" and connection.type == socket.SOCK_DGRAM
        if isinstance(address, tuple) and not silent and away(address[0]):
            note(event, address)

if os.environ.get("DARKARC_TEST_WATCH"):
    sys.addaudithook(watch)
    note("start", os.getpid())
"""


LIBRARY = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *event, const char *what) {
    const char *path = getenv("DARKARC_TEST_WATCH");
    char line[700];
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file < 0) return;
    int n = snprintf(line, sizeof line, "{\"event\": \"%s\", \"what\": \"%.400s\"}\n", event, what);
    if (write(file, line, n) != n) abort();
    close(file);
}

static int own(const char *host) {
    const char *list = getenv("DARKARC_TEST_OWN");
    char wanted[300];
    snprintf(wanted, sizeof wanted, ",%s,", host);
    return !*host || !strncmp(host, "127.", 4) || (list && strcasestr(list, wanted));
}

/* A datagram socket that only connects sends nothing, unless a name server is at the other end. */
static void seen(const char *event, int fd, const struct sockaddr *address, int silent) {
    char host[INET6_ADDRSTRLEN] = "", what[80];
    int port, type = 0;
    socklen_t size = sizeof type;
    if (!address) return;
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        port = ntohs(v4->sin_port);
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
            inet_ntop(AF_INET, &v6->sin6_addr.s6_addr[12], host, sizeof host);
        else
            inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        port = ntohs(v6->sin6_port);
    } else return;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (port != 53 && (own(host) || (silent && type == SOCK_DGRAM))) return;
    snprintf(what, sizeof what, "%s port %d", host, port);
    note(event, what);
}

#define REAL(name) __typeof__(name) *real = dlsym(RTLD_NEXT, #name)

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    REAL(getaddrinfo);
    if (node && !own(node)) note("getaddrinfo", node);
    return real(node, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    REAL(gethostbyname);
    if (!own(name)) note("gethostbyname", name);
    return real(name);
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
    REAL(connect);
    seen("connect", fd, address, 1);
    return real(fd, address, size);
}

ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *address,
               socklen_t size) {
    REAL(sendto);
    seen("sendto", fd, address, 0);
    return real(fd, data, n, flags, address, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(sendmsg);
    seen("sendmsg", fd, message->msg_name, 0);
    return real(fd, message, flags);
}

__attribute__((constructor)) static void start(void) {
    char name[400];
    ssize_t n = readlink("/proc/self/exe", name, sizeof name - 1);
    if (n < 0) return;
    name[n] = 0;
    note("program", strrchr(name, '/') + 1);
}
"""


class Watch:
    """A folder for PYTHONPATH, and what was seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "seen.jsonl"
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(HOOK)

    @property
    def environment(self) -> dict[str, str]:
        return {VARIABLE: str(self.log)}

    def everywhere(self) -> dict[str, str] | None:
        """Variables that have programs in other languages watched too; None where no C compiler is."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return None
        source, library = self.folder / "watch.c", self.folder / "watch.so"
        source.write_text(LIBRARY)
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        addresses = (address.address for found in psutil.net_if_addrs().values() for address in found)
        own = ["localhost", socket.gethostname(), "0.0.0.0", "::", "::1", *addresses]
        return self.environment | {"LD_PRELOAD": str(library), OWN: f",{','.join(own)},"}

    def programs(self) -> set[str]:
        """Names of the programs that were watched from below."""
        return {entry["what"] for entry in self.seen() if entry["event"] == "program"}

    def seen(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def processes(self) -> int:
        """How many interpreters were watched."""
        return sum(entry["event"] == "start" for entry in self.seen())

    def away(self) -> list[dict]:
        """Look-ups and connections that are not of this machine."""
        return [entry for entry in self.seen() if entry["event"] not in ("start", "program")]
