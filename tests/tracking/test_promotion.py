"""Promotion: the statistics against closed forms, and who is champion after each case."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from darkarc import config
from darkarc.tracking import RegistryError, open_client, promotion
from darkarc.tracking.promotion import Decision, Gates, decide, mean_difference_interval, promote, rollback
from darkarc.tracking.registration import register_onnx
from darkarc.tracking.registry import ModelVersion, champion_version, get_version

NAME = "axion-mass-regressor"
GATES = Gates(tolerance=0.06)
GOOD = {68: 0.69, 90: 0.88}


def _errors(seed: int, scale: float, n: int = 400) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(scale=scale, size=n))


def test_the_bootstrap_interval_approaches_the_normal_one():
    values = np.random.default_rng(3).gamma(2.0, size=4000) - 1.9
    low, high = mean_difference_interval(values)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_the_bootstrap_of_two_values_is_binomial():
    """Of n values 0 or 1 the bootstrap mean is binomial(n, share) / n."""
    values = np.repeat([0.0, 1.0], [30, 10])
    low, high = mean_difference_interval(values, resamples=40_000)
    expected = stats.binom(40, 0.25).ppf([0.025, 0.975]) / 40
    np.testing.assert_allclose([low, high], expected, atol=1e-12)


def test_constant_differences_have_no_spread():
    assert mean_difference_interval(np.full(7, -0.5)) == (-0.5, -0.5)


def test_the_interval_is_the_same_each_time_and_in_any_block_size():
    values = np.random.default_rng(4).normal(size=1000)
    assert mean_difference_interval(values) == mean_difference_interval(values)


def test_equal_models_are_promoted_as_rarely_as_claimed():
    """Under no difference the upper limit falls below zero in 2.5% of cases."""
    generator = np.random.default_rng(5)
    promoted = 0
    for _ in range(400):
        _, high = mean_difference_interval(generator.normal(size=100), resamples=500)
        promoted += high < 0
    assert promoted <= stats.binom(400, 0.025).ppf(0.9999)
    assert promoted >= 1


@pytest.mark.parametrize(
    ("ours", "theirs", "coverage", "promoted", "reason"),
    [
        (_errors(1, 0.05), _errors(2, 0.10), GOOD, True, "better: mean absolute error"),
        (_errors(1, 0.05), _errors(1, 0.05), GOOD, False, "not better at 95%"),
        (_errors(1, 0.10), _errors(2, 0.05), GOOD, False, "not better at 95%"),
        (_errors(1, 0.05), _errors(2, 0.10), {68: 0.5, 90: 0.9}, False, "coverage at 68% is 50.0%"),
        (_errors(1, 0.05), _errors(2, 0.10), {68: 0.68}, False, "coverage at 90% was not measured"),
        (_errors(1, 0.05), _errors(2, 0.10), {68: float("nan"), 90: 0.9}, False, "coverage at 68%"),
        (_errors(1, 0.05), None, GOOD, True, "first champion"),
        (_errors(1, 0.05), None, {68: 0.9, 90: 0.9}, False, "coverage at 68% is 90.0%"),
    ],
)
def test_each_case_is_decided_with_its_reason(
    ours: np.ndarray, theirs: np.ndarray | None, coverage: dict[int, float], promoted: bool, reason: str
):
    decision = decide(ours, theirs, coverage, GATES)
    assert decision.promote is promoted
    assert reason in decision.reason


def test_better_by_chance_is_not_better():
    """One standard error ahead: the interval of the difference holds zero. Four: it does not."""
    theirs = np.full(400, 0.5)
    spread = np.random.default_rng(7).permutation(np.repeat([-0.1, 0.1], 200))
    one_standard_error = 0.1 / np.sqrt(400)
    lucky = decide(theirs + spread - one_standard_error, theirs, GOOD, GATES)
    assert not lucky.promote and "not better at 95%" in lucky.reason
    assert decide(theirs + spread - 4 * one_standard_error, theirs, GOOD, GATES).promote


def test_errors_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match="not pairs"):
        decide(np.ones(3), np.ones(4), GOOD, GATES)
    with pytest.raises(ValueError, match="not finite"):
        decide(np.array([1.0, np.nan]), np.ones(2), GOOD, GATES)


def test_the_gate_is_set_by_the_parameter():
    strict = config.parse({"register": {"coverage_tolerance": 0.005}}).register_
    loose = config.parse({"register": {"coverage_tolerance": 0.05}}).register_
    many = np.ones(10_000)
    assert decide(many, None, GOOD, Gates.of(loose)).promote
    assert not decide(many, None, GOOD, Gates.of(strict)).promote


def test_few_images_are_allowed_their_chance():
    """Calibrated regressors pass on 60 images; a share that is chance there is a fault on 6,000."""
    generator = np.random.default_rng(6)
    passed = 0
    for _ in range(300):
        coverage = {level: generator.binomial(60, level / 100) / 60 for level in GATES.levels}
        passed += not GATES.failures(coverage, 60)
    assert passed >= 0.97 * 300
    assert not GATES.failures({68: 0.80, 90: 0.90}, 60)
    assert GATES.failures({68: 0.80, 90: 0.90}, 6000)


class Registry:
    """Registers models of given quality and promotes them, as `darkarc register` does."""

    def __init__(self, make_onnx: Callable[..., Path]) -> None:
        self._make_onnx = make_onnx
        self._count = 0

    def add(self, scale: float, digest: str = "test-data", n: int = 400) -> int:
        self._count += 1
        return register_onnx(
            self._make_onnx(scale=float(self._count)),
            name=NAME,
            run_id=open_client().create_run("0").info.run_id,
            input_example=np.ones((1, 1, 8, 8), np.float32),
            test_errors=_errors(self._count, scale, n),
            test_digest=digest,
        ).version

    def promote(
        self,
        version: int,
        force: str | None = None,
        coverage: dict[int, float] = GOOD,
        objections: tuple[str, ...] = (),
    ) -> Decision:
        return promote(NAME, version, coverage=coverage, gates=GATES, force=force, objections=objections)


@pytest.fixture
def registry(project: Path, make_onnx: Callable[..., Path]) -> Registry:
    return Registry(make_onnx)


def _aliases(version: int) -> tuple[str, ...]:
    return get_version(NAME, version).aliases


def test_the_better_one_becomes_champion_and_rollback_undoes_it(registry: Registry):
    first, worse, better = registry.add(0.10), registry.add(0.20), registry.add(0.05)
    assert registry.promote(first).promote
    assert not registry.promote(worse).promote
    assert (_aliases(first), _aliases(worse)) == (("champion",), ("challenger",))
    assert "not better" in get_version(NAME, worse).tags["darkarc.decision"]

    assert registry.promote(better).promote
    assert (_aliases(first), _aliases(worse), _aliases(better)) == ((), ("challenger",), ("champion",))

    assert rollback(NAME, "fails on Euclid images").version == first
    assert (_aliases(first), _aliases(better)) == (("champion",), ())
    assert "fails on Euclid images" in get_version(NAME, better).tags["darkarc.decision"]
    again = registry.promote(better)
    assert not again.promote and "rolled back" in again.reason
    with pytest.raises(RegistryError, match="first champion"):
        rollback(NAME, "no more")


LEAK = "12 test images are train images too (leakage)"


@pytest.mark.parametrize(
    ("challenger", "scale", "coverage", "objections", "wins", "reason"),
    [
        ("better", 0.05, GOOD, (), True, "better: mean absolute error"),
        ("equal", 0.10, GOOD, (), False, "stays challenger, not better at 95%"),
        ("worse", 0.20, GOOD, (), False, "stays challenger, not better at 95%"),
        ("miscalibrated", 0.05, {68: 0.45, 90: 0.7}, (), False, "coverage at 68% is 45.0%"),
        ("leaking", 0.01, GOOD, (LEAK,), False, f"its test counts for nothing: {LEAK}"),
    ],
)
def test_what_happens_to_each_challenger(
    registry: Registry,
    challenger: str,
    scale: float,
    coverage: dict[int, float],
    objections: tuple[str, ...],
    wins: bool,
    reason: str,
):
    """Registered, decided, aliases moved, the reason in its tag; the champion is the better one."""
    champion = registry.add(0.10)
    assert registry.promote(champion).promote
    version = registry.add(scale)
    decision = registry.promote(version, coverage=coverage, objections=objections)
    assert decision.promote is wins, challenger
    assert reason in decision.reason
    assert get_version(NAME, version).tags["darkarc.decision"] == decision.reason
    assert _aliases(version) == (("champion",) if wins else ("challenger",))
    assert _aliases(champion) == (() if wins else ("champion",))


def test_a_leak_keeps_even_the_first_from_the_throne(registry: Registry):
    assert not registry.promote(registry.add(0.01), objections=(LEAK,)).promote
    assert champion_version(NAME) is None


def test_a_promoted_challenger_is_challenger_no_more(registry: Registry):
    registry.promote(registry.add(0.10))
    other = registry.add(0.10)
    assert not registry.promote(other).promote and _aliases(other) == ("challenger",)
    decision = registry.promote(other, force="smaller and as good")
    assert decision.promote and decision.reason.startswith(
        "forced: smaller and as good (else: stays challenger"
    )
    assert _aliases(other) == ("champion",)
    assert get_version(NAME, other).tags["darkarc.decision"] == decision.reason


def test_a_force_that_was_not_needed_is_recorded_as_such(registry: Registry):
    version = registry.add(0.10)
    decision = registry.promote(version, force="in a hurry")
    assert decision.reason.startswith("first champion")
    assert decision.reason.endswith("(force was not needed: in a hurry)")
    assert get_version(NAME, version).tags["darkarc.decision"] == decision.reason
    again = registry.promote(version, force="still in a hurry")
    assert again.reason == f"{decision.reason} (champion already, nothing was forced)"
    assert get_version(NAME, version).tags["darkarc.decision"] == decision.reason


def test_promoting_again_changes_nothing(registry: Registry):
    version = registry.add(0.10)
    assert registry.promote(version) == registry.promote(version)
    assert champion_version(NAME) is not None


@pytest.mark.parametrize(("digest", "n"), [("other", 400), ("test-data", 399)])
def test_other_test_data_cannot_be_compared(digest: str, n: int, registry: Registry):
    registry.promote(registry.add(0.10))
    decision = registry.promote(registry.add(0.01, digest=digest, n=n))
    assert not decision.promote and "tested on other data" in decision.reason


def test_force_needs_a_reason_and_a_rollback_a_champion(registry: Registry):
    version = registry.add(0.10)
    with pytest.raises(RegistryError, match="force needs a reason"):
        registry.promote(version, force=" ")
    with pytest.raises(RegistryError, match="no champion to roll back"):
        rollback(NAME, "why not")
    assert registry.promote(version).promote
    with pytest.raises(RegistryError, match="a rollback needs a reason"):
        rollback(NAME, "\t ")


def test_a_version_that_was_not_evaluated_is_not_promoted(finished_run: str, make_onnx: Callable[..., Path]):
    example = np.ones((1, 1, 8, 8), np.float32)
    version = register_onnx(make_onnx(), name=NAME, run_id=finished_run, input_example=example).version
    with pytest.raises(RegistryError, match="evaluate it first"):
        promote(NAME, version, coverage=GOOD, gates=GATES)


def test_force_overrules_a_champion_whose_errors_are_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    champion, other = registry.add(0.10), registry.add(0.05)
    assert registry.promote(champion).promote
    read = promotion.read_test_errors

    def lost(version: ModelVersion) -> np.ndarray | None:
        if version.version == champion:
            raise RegistryError("test_errors.npy: not there")
        return read(version)

    monkeypatch.setattr(promotion, "read_test_errors", lost)
    decision = registry.promote(other)
    assert not decision.promote and "errors cannot be read (test_errors.npy: not there)" in decision.reason
    assert get_version(NAME, other).tags["darkarc.decision"] == decision.reason
    assert registry.promote(other, force="the bucket was emptied").promote
    assert _aliases(other) == ("champion",)
    assert registry.promote(other).promote


def test_a_champion_made_meanwhile_is_the_one_to_beat(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    first, good, fair = registry.add(0.30), registry.add(0.05), registry.add(0.15)
    registry.promote(first)
    compare, started = promotion._compare, []

    def compared(*asked: Any) -> Decision:
        decision = compare(*asked)
        if not started:
            started.append(True)
            assert registry.promote(good).promote  # by another process, say
        return decision

    monkeypatch.setattr(promotion, "_compare", compared)
    decision = registry.promote(fair)
    assert not decision.promote and "not better" in decision.reason
    assert (_aliases(first), _aliases(good), _aliases(fair)) == ((), ("champion",), ("challenger",))
    assert rollback(NAME, "to see").version == first


def test_who_comes_back_is_champion_alone_and_says_so(registry: Registry):
    first, second = registry.add(0.10), registry.add(0.05)
    registry.promote(first)
    registry.promote(second)
    assert not registry.promote(first).promote and _aliases(first) == ("challenger",)
    rollback(NAME, "fails on Euclid images")
    assert (_aliases(first), _aliases(second)) == (("champion",), ())
    says = "champion again, after version 2: fails on Euclid images"
    assert registry.promote(first).reason == says


def test_an_interrupted_coronation_is_completed(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    first, second = registry.add(0.10), registry.add(0.10)
    registry.promote(first)
    registry.promote(second)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(promotion, "delete_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(second, force="smaller")
    assert set(_aliases(second)) == {"champion", "challenger"}
    assert registry.promote(second, force="smaller").promote
    assert _aliases(second) == ("champion",)


@pytest.mark.parametrize(
    ("coverage", "objections", "says"),
    [({68: 0.45, 90: 0.7}, (), "coverage at 68% is 45.0%"), (GOOD, (LEAK,), LEAK)],
)
def test_what_speaks_against_a_champion_now_is_said(
    coverage: dict[int, float], objections: tuple[str, ...], says: str, registry: Registry
):
    version = registry.add(0.10)
    registry.promote(version)
    decision = registry.promote(version, coverage=coverage, objections=objections)
    assert decision.promote and says in decision.reason and "--rollback" in decision.reason
    assert registry.promote(version).reason.startswith("first champion")
