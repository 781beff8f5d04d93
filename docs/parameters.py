"""MkDocs hook: fills `parameters.md` with a table of every key, read from the validated sections."""

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from darkarc.config import Config

MARK = "<!-- table of parameters -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARK, "\n".join(_table(Config, "")))


def _table(section: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = [] if prefix else ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += _table(field.annotation, f"{key}.")
        else:
            rows.append(f"| `{key}` | `{field.default}` | {_allowed(field)} | {field.description or ''} |")
    return rows


def _allowed(field: FieldInfo) -> str:
    options = getattr(field.annotation, "__args__", None)
    if options and all(isinstance(option, str) for option in options):
        return ", ".join(f"`{option}`" for option in options)
    bounds = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(rule, word)}"
        for rule in field.metadata
        for word, sign in bounds.items()
        if hasattr(rule, word)
    ]
    return ", ".join(found) or getattr(field.annotation, "__name__", "")
