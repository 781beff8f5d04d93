"""Switches: what would be sent home, and what would be unpickled."""

from collections.abc import Mapping
from configparser import ConfigParser, Error
from pathlib import Path

from darkarc.doctor.findings import NOTE, OK, WRONG, Finding, Findings

OFF = {
    # variable: (values that switch the sending on, whose makers it goes to)
    "MLFLOW_DISABLE_TELEMETRY": (("false", "0"), "MLflow"),
    "ORT_DISABLE_TELEMETRY": (("0", "false"), "ONNX Runtime"),
    "RAY_USAGE_STATS_ENABLED": (("1",), "Ray"),
    "DVC_NO_ANALYTICS": (("0", "false"), "DVC"),
}
PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
TRUE = ("true", "1")


def check_phoning_home(root: Path, environment: Mapping[str, str]) -> Findings:
    """Usage statistics are off. Our commands switch them off unless the environment says otherwise."""
    found = []
    for name, (on, maker) in OFF.items():
        if environment.get(name, "").strip().lower() in on:
            said = f"{name}={environment[name]}: usage statistics go to the makers of {maker}"
            found.append(Finding("phoning home", WRONG, said, f"unset {name}"))
    if (root / ".dvc").is_dir() and not _dvc_is_quiet(root):
        said = ".dvc/config does not switch DVC's analytics off"
        found.append(Finding("phoning home", WRONG, said, "dvc config core.analytics false"))
    if not found and environment.get("MLFLOW_DISABLE_TELEMETRY", "").strip().lower() not in TRUE:
        said = "off in darkarc's commands and in `make`; `mlflow` or `ray` typed by hand still send"
        remedy = (
            "export DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true ORT_DISABLE_TELEMETRY=1 "
            "RAY_USAGE_STATS_ENABLED=0"
        )
        found.append(Finding("phoning home", NOTE, said, remedy))
    yield from found or [Finding("phoning home", OK, "off")]


def _dvc_is_quiet(root: Path) -> bool:
    settings = ConfigParser()
    try:
        # What stands later counts, as for DVC.
        settings.read([root / ".dvc/config", root / ".dvc/config.local"])
        return not settings.getboolean("core", "analytics", fallback=True)
    except (Error, ValueError):
        return False


def check_pickle(environment: Mapping[str, str]) -> Findings:
    """MLflow loads no pickled model: loading one runs what it holds."""
    if environment.get(PICKLE, "").strip().lower() in TRUE:
        said = f"{PICKLE}={environment[PICKLE]}: a pickled model from the registry would run its code"
        yield Finding("pickle", WRONG, said, f"unset {PICKLE}; darkarc sets it to false")
    else:
        yield Finding("pickle", OK, "MLflow loads none")
