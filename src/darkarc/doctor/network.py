"""What listens, and who can reach it."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from darkarc.doctor.findings import NOTE, OK, WRONG, Finding, Findings

PORTS = {5000: "`darkarc ui` and `darkarc server`", 8000: "`darkarc serve`", 8265: "Ray's dashboard"}


@dataclass(frozen=True)
class Listener:
    """One listening socket: address, port, and the command of its process ("" if another user's)."""

    address: str
    port: int
    command: str


def listeners() -> list[Listener]:
    """Every listening TCP socket that this user can see, without repetitions."""
    import psutil

    found = set()
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            try:
                words = psutil.Process(connection.pid).cmdline() if connection.pid else []
            except psutil.Error:
                words = []
            found.add(Listener(connection.laddr.ip, connection.laddr.port, " ".join(words)))
    return sorted(found, key=lambda item: (item.port, item.address))


def service_of(command: str) -> str | None:
    """Which of our services a process is; None if it is none."""
    words = command.lower()
    if "darkarc" in words and " serve " in f"{words} ":
        return "darkarc serve"
    if "mlflow" in words:
        return "MLflow"
    ours = ("gcs_server", "raylet", "ray::", "ray/dashboard", "ray/_private", "ray start", "ray/core")
    return "Ray" if any(mark in words for mark in ours) else None


def check_reach(found: Iterable[Listener], environment: Mapping[str, str]) -> Findings:
    """MLflow, Ray and our page listen on the loopback, or ask who is there."""
    said = []
    for item in found:
        service = service_of(item.command)
        if service is None or _is_loopback(item.address):
            continue
        where = f"{service} listens on {item.address}, port {item.port}: other machines can reach it"
        if service == "MLflow" and "basic-auth" not in item.command:
            remedy = "end it; `darkarc ui` (this machine) or `darkarc server` (with a login) take its place"
            said.append(Finding("reach", WRONG, f"{where}, without a login", remedy))
        elif service == "Ray" and environment.get("RAY_AUTH_MODE") != "token":
            remedy = (
                "ray stop; export RAY_AUTH_MODE=token and start it again, or with "
                "--node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 for this machine alone"
            )
            said.append(Finding("reach", WRONG, f"{where}, and it runs code for whoever does", remedy))
        else:
            said.append(
                Finding("reach", NOTE, where, "it asks for a login; is TLS or an ssh tunnel before it?")
            )
    yield from said or [Finding("reach", OK, "nothing of ours is open to other machines")]


def check_ports(found: Iterable[Listener]) -> Findings:
    """The ports that our servers take by default are free."""
    taken: dict[int, str] = {}
    for item in found:
        if item.port in PORTS:
            taken[item.port] = service_of(item.command) or item.command[:60] or "another user"
    for port, holder in sorted(taken.items()):
        remedy = f"give {PORTS[port]} another port (--port), or end it if it is not wanted"
        yield Finding("ports", NOTE, f"{port} is in use by {holder}", remedy)
    if not taken:
        yield Finding("ports", OK, f"{', '.join(map(str, PORTS))} are free")


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
