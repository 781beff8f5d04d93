"""Published results to beat (`published.yaml`), and whether ours may be held against them."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from darkarc.data.form import DataForm


@dataclass(frozen=True)
class PublishedResult:
    """One published regressor: its test error `mae_dex` (dex) on the data set of `preset`."""

    name: str
    author: str
    protocol: str
    source: str
    mae_dex: float


@dataclass(frozen=True)
class Comparison:
    """Published results on one preset, best first, and why ours are not comparable (empty: they are)."""

    results: tuple[PublishedResult, ...]
    obstacle: str

    @property
    def comparable(self) -> bool:
        return not self.obstacle and bool(self.results)

    @property
    def best(self) -> PublishedResult | None:
        return self.results[0] if self.results else None


def _document() -> dict[str, Any]:
    text = files("darkarc.evaluation").joinpath("published.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def published_results(preset: str) -> tuple[PublishedResult, ...]:
    """Results published for the data set of this preset, the smallest error first."""
    found = [
        PublishedResult(
            row["name"], row["author"], row["protocol"], row["source"], float(row["mae_dex"][preset])
        )
        for row in _document()["results"]
        if preset in row["mae_dex"]
    ]
    return tuple(sorted(found, key=lambda result: (result.mae_dex, result.name)))


def compare(target: str, form: DataForm) -> Comparison:
    """The published results for a test set of this form."""
    document = _document()
    if target != document["target"]:
        return Comparison((), f"nothing is published for {target}")
    if form.preset is None:
        return Comparison((), "the images are of none of the published data sets")
    differing = [
        f"{name}: {document[name]} there, {value} here"
        for name, value in (("noise", form.noise), ("distances", form.distances))
        if value != document[name]
    ]
    obstacle = f"the images differ ({'; '.join(differing)})" if differing else ""
    return Comparison(published_results(form.preset), obstacle)
