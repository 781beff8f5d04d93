"""A machine to log in to: an sshd of the test's own on the loopback, with its own keys and home folder."""

import contextlib
import getpass
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAD, WORKER = "127.0.0.2", "127.0.0.3"
"""All of 127.0.0.0/8 is the loopback; for 127.0.0.1 itself Ray takes the machine's outer address."""

MARK = "DARKARC_LOOPBACK_MACHINE"
"""Variable that every process of the machine inherits, by which they are found again."""


_SSH = """\
# Ray has no setting for a port; and ssh looks for ~ in the password file, not in HOME.
for word; do
  [ "$before" = -i ] && case "$word" in "~/"*) word="$HOME/${{word#??}}";; esac
  before="$word"
  set -- "$@" "$word"
  shift
done
exec {ssh} -p {port} "$@"
"""


@dataclass(frozen=True)
class Machine:
    """folder: everything of it; home: of who logs in; laptop: environment of a shell that can log in."""

    folder: Path
    home: Path
    port: int
    user: str
    key: Path
    laptop: dict[str, str]
    isolated: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{name} is not here: apt-get install {package}")
    return path


@contextlib.contextmanager
def loopback_machine(folder: Path, token: str) -> Iterator[Machine]:
    """`folder` must have a short path (Ray's sockets lie below it)."""
    sshd, ssh = needed("sshd", "openssh-server"), needed("ssh", "openssh-client")
    keygen = needed("ssh-keygen", "openssh-client")
    needed("rsync", "rsync")
    home, laptop = folder / "home", folder / "laptop"
    for path in (
        home,
        laptop / "bin",
        laptop / ".ray",
        folder / "ssh",
        folder / "t",
        folder / "w",
        folder / "l",
    ):
        path.mkdir(parents=True, mode=0o700)
    for name in ("host", "user"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh" / name)]
        subprocess.run(command, check=True)
    port = free_port()
    (folder / "ssh" / "sshd_config").write_text(_sshd_config(folder, home, port))
    ssh_here = _SSH.format(ssh=ssh, port=port)
    executable(laptop / "bin" / "ssh", ssh_here)
    (laptop / ".ray" / "auth_token").write_text(token)
    (laptop / ".ray" / "auth_token").chmod(0o600)
    install_environment(home / "darkarc")
    executable(home / "darkarc" / ".venv" / "bin" / "ssh", ssh_here)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd confines itself
    apart = _process_namespace()
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [*apart, sshd, "-D", "-e", "-f", str(folder / "ssh" / "sshd_config")], stdout=log, stderr=log
        )
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield Machine(
            folder=folder,
            home=home,
            port=port,
            user=getpass.getuser(),
            key=folder / "ssh" / "user",
            laptop=_laptop(laptop, folder),
            isolated=bool(apart),
        )
    finally:
        end_processes(folder)
        process.kill()
        process.wait()


def end_processes(folder: Path) -> None:
    """Kill what was started on the machine, and what of it has become nobody's child."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                process.kill()


def _sshd_config(folder: Path, home: Path, port: int) -> str:
    return "\n".join(
        [
            f"Port {port}",
            *(f"ListenAddress {address}" for address in (HEAD, WORKER)),
            f"HostKey {folder / 'ssh' / 'host'}",
            f"AuthorizedKeysFile {folder / 'ssh' / 'user.pub'}",
            f"PidFile {folder / 'ssh' / 'pid'}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "UsePAM no",
            "StrictModes no",
            "PrintMotd no",
            "PrintLastLog no",
            f"SetEnv HOME={home} RAY_TMPDIR={folder / 't'} {MARK}={folder}",
            "",
        ]
    )


def install_environment(project: Path) -> None:
    """What `setup_node.sh` would install is here already: two commands that lead to it, and its stamp."""
    commands = project / ".venv" / "bin"
    commands.mkdir(parents=True)
    # The code must be what the file mounts bring or what a job sends, not what is being tested from.
    start = f'export PYTHONPATH="${{PYTHONPATH:-{project}/src}}"; exec {sys.executable}'
    executable(commands / "python", f'{start} "$@"')
    executable(commands / "ray", f'{start} -m ray.scripts.scripts "$@"')
    wanted = (PROJECT / "requirements.lock").read_bytes() + (PROJECT / "pyproject.toml").read_bytes() + b"\n"
    (project / ".venv" / ".node").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")


def _laptop(home: Path, folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "USER", "LOGNAME") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder / "l"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
    }


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _process_namespace() -> list[str]:
    """A prefix that hides all other processes from a command; empty where that is not allowed."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return prefix if allowed else []


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(100):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection((HEAD, port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())
