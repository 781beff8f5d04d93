"""The watch on name look-ups and connections sees what it is there for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import PROJECT, VERBS, command, environment, start_project
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


BELOW_PYTHON = """
import ctypes
libc = ctypes.CDLL(None)
found = ctypes.c_void_p()
libc.getaddrinfo(b"telemetry.invalid", b"443", None, ctypes.byref(found))
libc.getaddrinfo(b"localhost", b"443", None, ctypes.byref(found))
"""
ADDRESS = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
def away(kind, host, port):
    fd = libc.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    libc.connect(fd, address, len(address))
away(socket.SOCK_STREAM, "192.0.2.1", 9)
away(socket.SOCK_STREAM, "127.0.0.1", 9)
away(socket.SOCK_DGRAM, "192.0.2.1", 80)
away(socket.SOCK_DGRAM, "192.0.2.1", 53)
"""


def everywhere(watch: Watch) -> dict[str, str]:
    variables = watch.everywhere()
    if variables is None:
        pytest.skip("no C compiler is here, so programs other than Python's cannot be watched")
    return variables


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (BELOW_PYTHON, [("getaddrinfo", "telemetry.invalid")]),
        (ADDRESS, [("connect", "192.0.2.1 port 9"), ("connect", "192.0.2.1 port 53")]),
    ],
)
def test_what_python_does_not_see_is_seen_from_below(script, expected, tmp_path):
    watch = Watch(tmp_path / "watch")
    run(script, watch, **everywhere(watch))
    assert [(entry["event"], entry["what"]) for entry in watch.away()] == expected
    assert any(name.startswith("python") for name in watch.programs())


def test_onnx_runtime_prepares_no_telemetry(tmp_path: Path) -> None:
    """It keeps what it will send in a database below the home folder, made with the first session."""
    model = next((PROJECT / "models").glob("*.onnx"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "DO_NOT_TRACK", "XDG_", "CI"))}
    script = f"import darkarc; darkarc.load({str(model)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=kept | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(3000)
def test_the_whole_pipeline_calls_nobody(tmp_path: Path) -> None:
    """Every verb, the search with Ray included: no name is looked up, no connection leaves the machine."""
    watch = Watch(tmp_path / "watch")
    project = tmp_path / "project"
    start_project(project)
    variables = environment(project) | everywhere(watch)
    variables["PYTHONPATH"] = os.pathsep.join([str(watch.folder), variables["PYTHONPATH"]])
    for verb in VERBS.values():
        done = subprocess.run(
            command(verb.arguments), cwd=project, env=variables, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
    assert watch.processes() > len(VERBS)  # Ray's workers too
    assert {"raylet", "gcs_server"} <= watch.programs()
    assert watch.away() == []
