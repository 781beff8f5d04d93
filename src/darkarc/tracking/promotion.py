"""Who is champion: a new version must be better on the same test data, and calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from darkarc.config import RegisterConfig
from darkarc.tracking.errors import RegistryError
from darkarc.tracking.lineage import DATA_TAG
from darkarc.tracking.registration import TEST_DIGEST_TAG, read_test_errors
from darkarc.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    champion_version,
    delete_alias,
    get_version,
    list_versions,
    set_alias,
    tag_version,
)

DECISION_TAG = "darkarc.decision"
PREVIOUS_TAG = "darkarc.previous_champion"
ROLLED_BACK_TAG = "darkarc.rolled_back"
CONFIDENCE = 0.95
RESAMPLES = 10_000
CHANCE_SIGMA = 2.0

_OF_WHOLE_STORE = (
    ". Its digest is that of a whole prepared store, as darkarc wrote it before: the test images may be the "
    "same; register it again, from its own data/trained and reports, to have it compared"
)


@dataclass(frozen=True)
class Gates:
    """A champion's intervals hold the truth as often as they claim, to within `tolerance`.

    `levels` are nominal coverages in percent; `tolerance` is a difference of two shares, beside the
    `CHANCE_SIGMA` binomial standard deviations that a share of so few test images may be off by chance.
    """

    tolerance: float
    levels: tuple[int, ...] = (68, 90)

    @classmethod
    def of(cls, config: RegisterConfig) -> "Gates":
        return cls(tolerance=config.coverage_tolerance)

    def failures(self, coverage: Mapping[int, float], n_tested: int) -> list[str]:
        """What does not pass, in words; `coverage` maps percent to the share of `n_tested` images."""
        failed = []
        for level in self.levels:
            share = level / 100
            allowed = self.tolerance + CHANCE_SIGMA * float(np.sqrt(share * (1 - share) / max(n_tested, 1)))
            if level not in coverage:
                failed.append(f"coverage at {level}% was not measured")
            elif not abs(coverage[level] - share) <= allowed:  # a NaN fails, too
                failed.append(
                    f"coverage at {level}% is {100 * coverage[level]:.1f}%, "
                    f"more than {100 * allowed:.1f} points off on {n_tested} images"
                )
        return failed


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str


def mean_difference_interval(
    differences: np.ndarray, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Central bootstrap interval of the mean of paired differences (N,).

    Percentile bootstrap (Efron 1979): `resamples` means of N draws with replacement. For large N its
    half-width is z(confidence) * standard deviation / sqrt(N).
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 4_000_000 // n)  # bounds memory to about 64 MB
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        means[start : start + block] = values[generator.integers(0, n, (block, n))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def decide(
    challenger_errors: np.ndarray,
    champion_errors: np.ndarray | None,
    coverage: Mapping[int, float],
    gates: Gates,
) -> Decision:
    """Whether the challenger becomes champion, and why.

    `*_errors` (N,) are absolute errors on the same test samples in the same order; None: there is no
    champion. Better means that the whole 95% bootstrap interval of the mean difference lies below zero.
    """
    ours = np.asarray(challenger_errors, dtype=np.float64)
    if failed := gates.failures(coverage, ours.size):
        return Decision(False, "stays challenger: " + "; ".join(failed))
    if champion_errors is None:
        return Decision(
            True, f"first champion: mean absolute error {ours.mean():.4f}, coverage within the gates"
        )
    theirs = np.asarray(champion_errors, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(f"errors of shapes {ours.shape} and {theirs.shape} are not pairs")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("errors that are not finite cannot be compared")
    low, high = mean_difference_interval(ours - theirs)
    facts = (
        f"mean absolute error {ours.mean():.4f} against {theirs.mean():.4f}, "
        f"95% interval of the difference [{low:+.2g}, {high:+.2g}]"
    )
    if high < 0:
        return Decision(True, f"better: {facts}; coverage within the gates")
    return Decision(False, f"stays challenger, not better at 95%: {facts}")


def promote(
    name: str,
    version: int,
    *,
    coverage: Mapping[int, float],
    gates: Gates,
    force: str | None = None,
    objections: Sequence[str] = (),
    earlier: Mapping[str, np.ndarray] | None = None,
) -> Decision:
    """Decide on a registered version and move the aliases; the reason becomes its tag `darkarc.decision`.

    The version is the `challenger` from now on, or the `champion`. `objections` are reasons why its test
    counts for nothing, such as test images that it was trained on. `force` is a reason to make it
    champion whatever the comparison says; it is recorded, also where it was not needed. `earlier` maps
    digests that the same test data went by before to the version's errors in the order of then, for
    champions that were registered under them. Calling it again changes nothing.
    """
    if force is not None and not force.strip():
        raise RegistryError("force needs a reason; it is recorded with the version")
    candidate, champion = get_version(name, version), champion_version(name)
    while True:
        if champion is not None and champion.version == version:
            return _still_champion(candidate, coverage, gates, force, objections)
        decision = _decision(candidate, champion, coverage, gates, force, objections, earlier or {})
        if not decision.promote:
            tag_version(name, version, {DECISION_TAG: decision.reason})
            set_alias(name, CHALLENGER, version)
            return decision
        before, champion = champion, champion_version(name)
        if _number(before) == _number(champion):  # else another process has made one meanwhile
            _enthrone(name, version, champion, decision.reason)
            return decision


def rollback(name: str, reason: str) -> ModelVersion:
    """Make the previous champion the champion again; the reason is recorded with the one that leaves."""
    if not reason.strip():
        raise RegistryError("a rollback needs a reason; it is recorded with the version that leaves")
    champion = champion_version(name)
    if champion is None:
        raise RegistryError(f"model {name!r} has no champion to roll back from")
    previous = champion.tags.get(PREVIOUS_TAG, "")
    if not previous:
        raise RegistryError(f"{champion.uri} is the first champion of {name!r}; there is none before it")
    target = get_version(name, int(previous))
    why = _why_back(target, reason)
    tag_version(name, champion.version, {DECISION_TAG: why, ROLLED_BACK_TAG: why})
    back = f"champion again, after version {champion.version}: {reason.strip()}"
    tag_version(name, target.version, {DECISION_TAG: back})
    _crown(name, target.version)
    return get_version(name, target.version)


def was_rolled_back(version: ModelVersion, target: ModelVersion, reason: str) -> bool:
    """Whether `rollback` with this reason has already gone from a version to `target`."""
    return version.tags.get(ROLLED_BACK_TAG) == _why_back(target, reason)


def _why_back(target: ModelVersion, reason: str) -> str:
    return f"rolled back to version {target.version}: {reason.strip()}"


def _decision(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    coverage: Mapping[int, float],
    gates: Gates,
    force: str | None,
    objections: Sequence[str],
    earlier: Mapping[str, np.ndarray],
) -> Decision:
    """What the evidence says, and what `force` makes of it."""
    decision = _compare(candidate, champion, coverage, gates, earlier)
    if objections:
        decision = Decision(False, "stays challenger, its test counts for nothing: " + "; ".join(objections))
    if force is not None and decision.promote:
        return Decision(True, f"{decision.reason} (force was not needed: {force.strip()})")
    if force is not None:
        return Decision(True, f"forced: {force.strip()} (else: {decision.reason})")
    return decision


def _still_champion(
    champion: ModelVersion,
    coverage: Mapping[int, float],
    gates: Gates,
    force: str | None,
    objections: Sequence[str],
) -> Decision:
    """The champion registered again keeps its place and its reason; what speaks against it now is added."""
    _crown(champion.name, champion.version)
    try:
        errors = read_test_errors(champion)
    except RegistryError:
        errors = None
    against = [*objections, *gates.failures(coverage, 0 if errors is None else len(errors))]
    reason = champion.tags.get(DECISION_TAG, "is champion already")
    if force is not None:
        reason += " (champion already, nothing was forced)"
    if against:
        reason += f" (champion still, but as measured now: {'; '.join(against)}; --rollback puts it down)"
    return Decision(True, reason)


def _compare(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    coverage: Mapping[int, float],
    gates: Gates,
    earlier: Mapping[str, np.ndarray],
) -> Decision:
    """`decide` on the errors that both versions carry, if they are of the same test data."""
    if why := candidate.tags.get(ROLLED_BACK_TAG):
        return Decision(False, f"stays challenger: {why}")
    ours = read_test_errors(candidate)
    if ours is None:
        raise RegistryError(f"{candidate.uri}: no test errors were registered with it; evaluate it first")
    if champion is None:
        return decide(ours, None, coverage, gates)
    mine, other = candidate.tags.get(TEST_DIGEST_TAG), champion.tags.get(TEST_DIGEST_TAG)
    try:
        theirs = read_test_errors(champion)
    except RegistryError as error:
        return Decision(False, f"stays challenger: the champion's errors cannot be read ({error})")
    if other is not None and other != mine and other in earlier:
        mine, ours = other, earlier[other]
    if theirs is None or mine is None or mine != other or len(ours) != len(theirs):
        return Decision(
            False,
            f"stays challenger: the champion (version {champion.version}) was tested on other data "
            f"({other or 'unknown'} against {mine or 'unknown'}), so the two cannot be compared"
            + (_OF_WHOLE_STORE if other is not None and other == champion.tags.get(DATA_TAG) else ""),
        )
    return decide(ours, theirs, coverage, gates)


def _enthrone(name: str, version: int, champion: ModelVersion | None, reason: str) -> None:
    """The way back is recorded before the alias moves, in one step, to the new champion."""
    previous = "" if champion is None else str(champion.version)
    tag_version(name, version, {DECISION_TAG: reason, PREVIOUS_TAG: previous})
    _crown(name, version)


def _crown(name: str, version: int) -> None:
    """The alias `champion`, and that of a challenger no more."""
    set_alias(name, CHAMPION, version)
    if any(item.version == version and CHALLENGER in item.aliases for item in list_versions(name)):
        delete_alias(name, CHALLENGER)


def _number(version: ModelVersion | None) -> int | None:
    return None if version is None else version.version
