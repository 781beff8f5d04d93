"""`darkarc combine`: many lenses, one particle: the joint posterior of the axion mass behind image files."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from darkarc.config import DEFAULT_TARGET
from darkarc.data.readers import iter_images
from darkarc.durable import why_unwritable, write_file
from darkarc.models import Population, PopulationError, PopulationErrors, Posterior, Regressor, join
from darkarc.models.flags import Reference, limits, unlikeness
from darkarc.models.population import UNKNOWN
from darkarc.models.population_errors import KEY
from darkarc.serving.exact import ExactPosteriors, pixels_digest
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
) -> Lenses:
    """Predict every image under `paths`; what `predict` withholds or flags as unlike training is left out.

    So is what has the pixels of an image before it, whatever its file: one lens counts once.

    exact: posteriors of the simulator's own likelihood; lenses that it cannot explain are left out.
    A few kilobytes a lens are kept (64 with `exact`). Raises `PopulationError` if no lens is left.
    """
    if DEFAULT_TARGET not in regressor.targets:
        raise PopulationError(f"this regressor knows {', '.join(regressor.targets)}, not {DEFAULT_TARGET}")
    reference = Reference(regressor.spec.statistics, regressor.shape)
    passed_over = Counter[str]()
    items, names, left_out = iter_images(paths, passed_over), [], []
    parts: list[Posterior] = []
    met: dict[str, str] = {}
    while chunk := list(islice(items, batch_size)):
        readable = []
        for item in chunk:
            if item.image is None:
                left_out.append((name_of(item), UNREADABLE + (item.error or "no image")))
            elif wrong := reference.wrong_shape(item.image.shape):
                left_out.append((name_of(item), wrong))
            else:
                readable.append((name_of(item), np.asarray(item.image, np.float32)))
        if not readable:
            continue
        images = np.stack([image for _, image in readable])
        seen = reference.judge(images)
        able = []
        for k, ((name, image), verdict) in enumerate(zip(readable, seen, strict=True)):
            if verdict.withheld:
                left_out.append((name, verdict.flag))
            elif (digest := pixels_digest(image)) in met:
                left_out.append((name, COPY + met[digest]))
            else:
                met[digest] = name
                able.append(k)
        if not able:
            continue
        readable, seen, images = [readable[k] for k in able], [seen[k] for k in able], images[able]
        posterior = regressor.predict(images, target=DEFAULT_TARGET, batch_size=len(images))
        kept = []
        verdicts = zip(readable, seen, unlikeness(posterior), strict=True)
        for k, ((name, _), pixels, answer) in enumerate(verdicts):
            flag = "; ".join(v.flag for v in (pixels, answer) if v.flag)
            if answer.withheld or (flag and not keep_flagged):
                left_out.append((name, flag))
            else:
                kept.append(k)
        chosen = posterior[np.array(kept, dtype=np.intp)]
        if exact is not None and kept:
            densities, places = [], []
            for place, (density, why_not) in enumerate(exact.of(images[kept])):
                if density is None:
                    left_out.append((readable[kept[place]][0], why_not))
                else:
                    densities.append(exact.guarded(density, chosen[place]))
                    places.append(place)
            kept = [kept[place] for place in places]
            classes = chosen.class_probability[places]
            chosen = Posterior(
                exact.edges, np.array(densities).reshape(-1, len(exact.edges) - 1), classes, DEFAULT_TARGET
            )
        names += [readable[k][0] for k in kept]
        if kept:
            parts.append(chosen)
    if not names:
        reasons = f"; the first: {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise PopulationError(f"no usable lens under {', '.join(map(str, paths))}{reasons}")
    whole = Posterior(
        parts[0].edges,
        np.concatenate([part.density for part in parts]),
        np.concatenate([part.class_probability for part in parts]),
        DEFAULT_TARGET,
    )
    return Lenses(names, whole, left_out, passed_over)


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
) -> dict[str, Any]:
    """The joint posterior of the lenses under `paths`; writes `out` (JSON) and its figure, `out` as .png.

    axion_share: share of axion-like lenses among these: a number, "unknown" (integrated out), "trained" (as
        in training). Default: "unknown" where the regressor knows its training share and has learned from
        other classes, too, else "trained".

    exact: multiply posteriors of the simulator's own likelihood (`darkarc.serving.exact`), in so many
        processes (`workers`): they have no errors in common. They are kept beside `out` (its name, and
        .exact) until it stands, so that a killed call goes on.

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
    if reason := why_unwritable(out):
        raise PopulationError(f"--out {out}: nothing can be written there ({reason}); give a file of yours")
    keep = out.with_name(f"{out.name}.exact")
    sharp = ExactPosteriors(regressor, DEFAULT_TARGET, workers, keep) if exact else None
    lenses = read_lenses(regressor, paths, batch_size=batch_size, keep_flagged=keep_flagged, exact=sharp)
    errors = PopulationErrors() if exact else PopulationErrors.of(known)
    options: dict[str, Any] = {"errors": errors}
    if share != "trained":
        options |= {"axion_share": share, "trained_share": trained if share != 1 else None}
    steps = growing(len(lenses.names))
    found = {n: join(lenses.posterior[:n], **options) for n in steps}
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
    write_file(out.with_suffix(".png"), combine_figure(lenses.posterior, found))
    write_file(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    if sharp is not None:
        sharp.forget()
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
