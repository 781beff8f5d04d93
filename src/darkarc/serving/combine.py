"""`darkarc combine`: many lenses, one particle: the joint posterior of the axion mass behind image files."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET
from darkarc.data.readers import ImageItem, iter_images
from darkarc.durable import why_unwritable, write_file
from darkarc.models import Population, PopulationError, PopulationErrors, Posterior, Regressor, join
from darkarc.models.flags import Reference, limits, unlikeness
from darkarc.models.population import UNKNOWN
from darkarc.models.population_errors import KEY
from darkarc.serving.counting import counting
from darkarc.serving.exact import ExactPosteriors, kept_beside, pixels_digest
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.predict import UNREADABLE, name_of

LEVELS = (0.68, 0.95)
COPY = "the same image as "
"""How the reason of a lens begins that already counts under another name."""
MOST_NAMED = 1000
"""Lenses left out that the document names; all of them count."""


@dataclass(frozen=True, eq=False)
class Lenses:
    """The posteriors of the N images that count, and the names and reasons of those that do not."""

    names: list[str]
    posterior: Posterior
    left_out: list[tuple[str, str]]
    passed_over: Counter[str] = field(default_factory=Counter)
    """Other files of the folders, by their endings."""

    @property
    def n_copies(self) -> int:
        """Lenses left out because their pixels had come before."""
        return sum(why.startswith(COPY) for _, why in self.left_out)


def read_lenses(
    regressor: Regressor | OnnxRegressor,
    paths: Sequence[str | Path],
    *,
    batch_size: int = 64,
    keep_flagged: bool = False,
    exact: ExactPosteriors | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Lenses:
    """Predict every image under `paths`; what `predict` withholds or flags as unlike training is left out.

    So is what has the pixels of an image before it, whatever its file: one lens counts once.

    exact: posteriors of the simulator's own likelihood; lenses that it cannot explain are left out.
    advance: called with the number of images that were dealt with since the last call.
    A few kilobytes a lens are kept (64 with `exact`). Raises `PopulationError` if no lens is left.
    """
    if DEFAULT_TARGET not in regressor.targets:
        raise PopulationError(f"this regressor knows {', '.join(regressor.targets)}, not {DEFAULT_TARGET}")
    reader = _Reader(regressor, keep_flagged, exact, advance)
    items = iter_images(paths, reader.passed_over)
    while chunk := list(islice(items, batch_size)):
        reader.take(chunk)
    if not reader.names:
        first = reader.left_out[:1]
        reasons = "".join(f"; the first: {name}: {why}" for name, why in first)
        raise PopulationError(f"no usable lens under {', '.join(map(str, paths))}{reasons}")
    parts = reader.parts
    whole = Posterior(
        parts[0].edges,
        np.concatenate([part.density for part in parts]),
        np.concatenate([part.class_probability for part in parts]),
        DEFAULT_TARGET,
    )
    return Lenses(reader.names, whole, reader.left_out, reader.passed_over)


class _Reader:
    """Takes images batch by batch: keeps the posteriors of those that count, and why others do not."""

    def __init__(
        self,
        regressor: Regressor | OnnxRegressor,
        keep_flagged: bool,
        exact: ExactPosteriors | None,
        advance: Callable[[int], None],
    ) -> None:
        self.names: list[str] = []
        self.parts: list[Posterior] = []
        self.left_out: list[tuple[str, str]] = []
        self.passed_over = Counter[str]()
        self._regressor, self._exact, self._advance = regressor, exact, advance
        self._keep_flagged = keep_flagged
        self._reference = Reference(regressor.spec.statistics, regressor.shape)
        self._met: dict[str, str] = {}

    def take(self, chunk: Sequence[ImageItem]) -> None:
        able = self._able(chunk)
        self._advance(len(chunk) - len(able))
        if not able:
            return
        images = np.stack([image for _, image, _ in able])
        posterior = self._regressor.predict(images, target=DEFAULT_TARGET, batch_size=len(images))
        kept = []
        for k, ((name, _, noted), answer) in enumerate(zip(able, unlikeness(posterior), strict=True)):
            flag = "; ".join(flag for flag in (noted, answer.flag) if flag)
            if answer.withheld or (flag and not self._keep_flagged):
                self.left_out.append((name, flag))
            else:
                kept.append(k)
        self._advance(len(able) - len(kept))
        if kept:
            self._count([able[k][0] for k in kept], images[kept], posterior[np.array(kept)])

    def _able(self, chunk: Sequence[ImageItem]) -> list[tuple[str, NDArray[np.float32], str]]:
        """Names, pixels and flags of the images that may be judged and are not copies."""
        readable = []
        for item in chunk:
            if item.image is None:
                self.left_out.append((name_of(item), UNREADABLE + (item.error or "no image")))
            elif wrong := self._reference.wrong_shape(item.image.shape):
                self.left_out.append((name_of(item), wrong))
            else:
                readable.append((name_of(item), np.asarray(item.image, np.float32)))
        if not readable:
            return []
        able = []
        seen = self._reference.judge(np.stack([image for _, image in readable]))
        for (name, image), verdict in zip(readable, seen, strict=True):
            if verdict.withheld:
                self.left_out.append((name, verdict.flag))
            elif (digest := pixels_digest(image)) in self._met:
                self.left_out.append((name, COPY + self._met[digest]))
            else:
                self._met[digest] = name
                able.append((name, image, verdict.flag))
        return able

    def _count(self, names: list[str], images: NDArray[np.float32], posterior: Posterior) -> None:
        if self._exact is None:
            self.names += names
            self.parts.append(posterior)
            self._advance(len(names))
            return
        densities, places = [], []
        for place, (density, why_not) in enumerate(self._exact.of(images)):
            if density is None:
                self.left_out.append((names[place], why_not))
            else:
                densities.append(self._exact.guarded(density, posterior[place]))
                places.append(place)
            self._advance(1)
        if places:
            self.names += [names[place] for place in places]
            classes = posterior.class_probability[places]
            self.parts.append(Posterior(self._exact.edges, np.array(densities), classes, DEFAULT_TARGET))


def combine_files(
    regressor: Regressor | OnnxRegressor,
    paths: Sequence[str | Path],
    out: Path,
    *,
    axion_share: float | Literal["unknown", "trained"] | None = None,
    batch_size: int = 64,
    keep_flagged: bool = False,
    exact: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """The joint posterior of the lenses under `paths`; writes `out` (JSON) and its figure, `out` as .png.

    axion_share: share of axion-like lenses among these: a number, "unknown" (integrated out), "trained" (as
        in training). Default: "unknown" where the regressor knows its training share and has learned from
        other classes, too, else "trained".

    exact: multiply posteriors of the simulator's own likelihood (`darkarc.serving.exact`), in so many
        processes (`workers`): they have no errors in common. They are kept beside `out` in a hidden folder
        (its name between dots, and exact) until it stands, so that a killed call goes on.

    What the regressor knows of its common errors (`darkarc.models.population_errors`) keeps large populations
    honest; for a regressor that knows nothing the document says so.
    Raises `PopulationError`, and `PredictError` where there are no exact posteriors.
    """
    from darkarc.serving.combine_figure import combine_figure

    if out.suffix.lower() != ".json":
        raise PopulationError(f"{out}: expected a file that ends in .json; the figure goes beside it as .png")
    known = regressor.spec.statistics.get(KEY, {})
    trained = known.get("axion_share")
    tells = trained is not None and 0 < trained < 1
    share = axion_share if axion_share is not None else (UNKNOWN if tells else "trained")
    if share not in ("trained", 1) and not tells:
        why = "does not know the share of axion-like images in its training"
        if trained is not None:
            why = "was trained on axion-like images alone, so its class probabilities tell nothing"
        raise PopulationError(
            f"this regressor {why}: give --axion-share as trained or as 1, or train it on all classes"
        )
    figure = out.with_suffix(".png")
    if reason := why_unwritable(out) or why_unwritable(figure):
        raise PopulationError(f"--out {out}: nothing can be written there ({reason}); give a file of yours")
    with kept_beside(out) if exact else nullcontext() as keep:
        sharp = ExactPosteriors(regressor, DEFAULT_TARGET, workers, keep) if exact else None
        with counting("combine", progress) as advance:
            lenses = read_lenses(
                regressor,
                paths,
                batch_size=batch_size,
                keep_flagged=keep_flagged,
                exact=sharp,
                advance=advance,
            )
        errors = PopulationErrors() if exact else PopulationErrors.of(known)
        options: dict[str, Any] = {"errors": errors}
        if share != "trained":
            options |= {"axion_share": share, "trained_share": trained if share != 1 else None}
        found = {n: join(lenses.posterior[:n], **options) for n in growing(len(lenses.names))}
        document = describe(lenses, found, share)
        median = found[len(lenses.names)].posterior.median
        fitted = exact or "correlation" in known
        document |= {
            "exact": exact,
            "correlation": float(errors.correlations(len(lenses.names), median)[0]) if fitted else None,
        }
        if not fitted:
            document["notice"] = (
                "this regressor has no fitted correlation of errors: the interval of many lenses may be too "
                "narrow"
            )
        write_file(figure, combine_figure(lenses.posterior, found))
        write_file(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


def parse_share(text: str | None) -> float | Literal["unknown", "trained"] | None:
    """`--axion-share` as typed. Raises `PopulationError`."""
    if text is None:
        return None
    if text == "unknown":
        return "unknown"
    if text == "trained":
        return "trained"
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise PopulationError(
            f"--axion-share: expected a number in (0, 1], unknown or trained, found {text!r}"
        )
    return share


def growing(n: int) -> list[int]:
    """1, 2, 3, 5, 10, 20, 30, 50, ... and n."""
    steps = [a * 10**k for k in range(12) for a in (1, 2, 3, 5)]
    return [*(step for step in steps if step < n), n]


def describe(lenses: Lenses, found: dict[int, Population], share: float | str) -> dict[str, Any]:
    """What the JSON file holds, but for what is known about the regressor."""
    last = found[len(lenses.names)]
    joint = last.posterior
    limit = limits(joint)[0]
    return {
        "target": joint.target,
        "n_lenses": last.n,
        "n_left_out": len(lenses.left_out),
        "n_copies": lenses.n_copies,
        "passed_over": dict(lenses.passed_over.most_common()),
        **numbers(joint),
        "kind": kind_of(limit),
        "limit": limit,
        "axion_share": {
            "assumed": share,
            **{f"q{100 * q:02.0f}": last.share_quantile(q) for q in (0.05, 0.16, 0.5, 0.84, 0.95)},
        },
        "power": last.power,
        "by_number": [{"n": n, **numbers(one.posterior)} for n, one in found.items()],
        "edges": joint.edges.tolist(),
        "density": joint.density[0].tolist(),
        "lenses": lenses.names[:MOST_NAMED],
        "left_out": [{"path": name, "reason": why} for name, why in lenses.left_out[:MOST_NAMED]],
    }


def numbers(joint: Posterior) -> dict[str, Any]:
    """Median, mean, deviation and intervals of a posterior of length 1."""
    intervals = {f"interval_{100 * level:.0f}": joint.interval(level)[0].tolist() for level in LEVELS}
    return {
        "median": float(joint.median[0]),
        "mean": float(joint.mean[0]),
        "std": float(joint.std[0]),
        **intervals,
    }


def kind_of(limit: str) -> str:
    """`measurement`, `upper limit`, `lower limit` or `no constraint`."""
    return limit.partition(":")[0] or "measurement"
