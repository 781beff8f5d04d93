"""`params.yaml`: read with overrides, and written as it ships."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from darkarc.config._config import Config, parse
from darkarc.config._section import ConfigError


def load(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> Config:
    """Read a parameter file and apply `key.sub=value` overrides (values are YAML).

    Raises `ConfigError` that names the file and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the parameters: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `train:`, found a {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return parse(tree, str(path))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as train.epochs=3")
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def template() -> str:
    """`params.yaml` as shipped: every key with its default and its meaning. `make params` writes it."""
    head = (
        "# Everything that can be chosen; docs/parameters.md explains each key. "
        "`dvc repro` re-runs what a change concerns."
    )
    return "\n".join([head, "", *_template_lines(Config, 0)]) + "\n"


def _template_lines(section: type[BaseModel], depth: int) -> list[str]:
    lines: list[str] = []
    indent = "  " * depth
    for name, field in section.model_fields.items():
        key, kind, default = field.alias or name, field.annotation, field.default
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += ["", f"{key}:"] if depth == 0 else [f"{indent}{key}:"]
            lines += _template_lines(kind, depth + 1)
        elif isinstance(default, dict) and default:
            lines += ["", f"{key}:"]
            lines += [f"  {k}: [{low}, {high}]  # prior range" for k, (low, high) in default.items()]
        else:
            choices = " | ".join(option for option in get_args(kind) if isinstance(option, str))
            meaning = field.description or choices
            lines.append(
                f"{indent}{key}: {json.dumps(default).strip(chr(34))}" + f"  # {meaning}" * bool(meaning)
            )
    return lines
