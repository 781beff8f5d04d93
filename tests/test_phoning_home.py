"""The watch on name look-ups and connections sees what it is there for."""

import os
import subprocess
import sys

import pytest

from tests.watch import Watch


def run(script: str, watch: Watch, **variables: str) -> str:
    environment = {**os.environ, **watch.environment, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(watch.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "event", "what"),
    [
        ("socket.getaddrinfo('telemetry.invalid', 443)", "socket.getaddrinfo", "telemetry.invalid"),
        ("socket.gethostbyname('telemetry.invalid')", "socket.gethostbyname", "telemetry.invalid"),
        ("socket.socket().connect(('192.0.2.1', 9))", "socket.connect", "192.0.2.1"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", "socket.sendto", "192.0.2.1"),
        ("urllib.request.urlopen('http://telemetry.invalid')", "socket.getaddrinfo", "telemetry.invalid"),
    ],
)
def test_the_watch_sees_a_child_that_calls_home(script, event, what, tmp_path):
    watch = Watch(tmp_path / "watch")
    child = (
        f"import socket, urllib.request; socket.setdefaulttimeout(0.2)\ntry: {script}\nexcept OSError: pass"
    )
    variables = {"http_proxy": "", "no_proxy": "*"}
    run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", watch, **variables)
    assert watch.processes() == 2
    assert [(entry["event"], what in entry["what"]) for entry in watch.away()] == [(event, True)]


def test_the_watch_lets_the_loopback_be(tmp_path):
    watch = Watch(tmp_path / "watch")
    run(
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(('localhost', s.getsockname()[1])).close(); "
        "socket.gethostbyname('localhost'); "
        "socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
        watch,
    )
    assert watch.processes() == 1 and watch.away() == []
