"""All checks, one after the other."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from darkarc.config import Config
from darkarc.doctor import machine, network, packages, permissions, privacy, project
from darkarc.doctor.findings import WRONG, Finding, Findings

Environment = Mapping[str, str]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CHECKS: dict[str, Callable[[Path, Config, Environment], Findings]] = {
    "python": lambda root, config, environment: packages.check_python(),
    "packages": lambda root, config, environment: packages.check_packages(root),
    "gpu": lambda root, config, environment: machine.check_gpu(config.device),
    "cores": lambda root, config, environment: machine.check_cores(environment, _cores()),
    "memory": lambda root, config, environment: machine.check_memory(machine.available_memory()),
    "disk": lambda root, config, environment: machine.check_disk(root),
    "git": lambda root, config, environment: project.check_git(root),
    "dvc": lambda root, config, environment: project.check_dvc(root),
    "tracking": lambda root, config, environment: project.check_database(root),
    "leftovers": lambda root, config, environment: project.check_leftovers(root),
    "permissions": lambda root, config, environment: permissions.check_permissions(root),
    "ports": lambda root, config, environment: network.check_ports(network.listeners()),
    "reach": lambda root, config, environment: network.check_reach(network.listeners(), environment),
    "phoning home": lambda root, config, environment: privacy.check_phoning_home(root, environment),
    "pickle": lambda root, config, environment: privacy.check_pickle(environment),
}
"""Name -> check of a project's folder and its configuration."""


def examine(root: Path, config: Config, environment: Environment) -> list[Finding]:
    """What all checks find. One that fails itself is a finding, and the others go on.

    environment: as the user's shell has it, before darkarc sets its own defaults.
    """
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += check(root, config, environment)
        except Exception as error:
            said = f"this check itself failed: {type(error).__name__}: {error}"
            found.append(Finding(name, WRONG, said, "please report it"))
    return found
