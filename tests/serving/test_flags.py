"""Images unlike the training's are flagged, those like it are not; limits are called limits."""

import numpy as np
import pytest
from scipy.stats import norm

from darkarc.config import DEFAULT_TARGET
from darkarc.models import Posterior
from darkarc.models.flags import LEAST_REACH
from darkarc.serving import FlagError, Reference, limits, unlikeness

NOISE_LEVEL = 0.0073  # Model III, counts a second


@pytest.fixture(scope="module")
def reference(statistics) -> Reference:
    return Reference(statistics, (64, 64))


def share(reference: Reference, images: np.ndarray, *, withheld: bool = True) -> float:
    """Share of the images that are flagged, or withheld."""
    verdicts = reference.judge(images.astype(np.float32))
    return float(np.mean([verdict.withheld if withheld else bool(verdict.flag) for verdict in verdicts]))


def test_images_like_the_training_pass(reference, lenses):
    assert share(reference, lenses, withheld=False) < 0.02
    assert share(reference, lenses) == 0


def test_published_noise_free_images_pass_too(simulated, fitted_statistics):
    reference = Reference(fitted_statistics(simulated("model_ii", "published", 900, 0)), (64, 64))
    others = simulated("model_ii", "published", 600, 1)
    assert share(reference, others, withheld=False) < 0.02
    assert share(reference, others.astype(np.int16)) == 1.0
    assert share(reference, others / 2) == 1.0


CHANGES = {
    "divided by its maximum": lambda x, noise: x / x.max(axis=(1, 2), keepdims=True),
    "doubled": lambda x, noise: 2 * x,
    "halved": lambda x, noise: x / 2,
    "other unit": lambda x, noise: 10 * x,
    "doubled noise": lambda x, noise: x + np.sqrt(3) * noise,
    "cast to int16": lambda x, noise: x.astype(np.int16),
    "sky not subtracted": lambda x, noise: x + 5 * NOISE_LEVEL,
    "pure noise": lambda x, noise: noise,
    "smoothed": lambda x, noise: 0.5 * x + 0.25 * np.roll(x, 1, 1) + 0.25 * np.roll(x, -1, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_faults_that_change_the_answer_withhold_it(reference, lenses, change):
    noise = np.random.default_rng(0).normal(0, NOISE_LEVEL, (200, 64, 64))
    assert share(reference, CHANGES[change](lenses[:200], noise)) > 0.95


def test_other_pixel_scale_is_withheld(reference, simulated):
    """Model II's pixels are 0.101 arcsec wide, Model III's 0.08: the ring is smaller on them."""
    assert share(reference, simulated("model_ii", "physical", 60, 0)) == 1.0


def test_other_pixel_scale_is_seen_in_the_ring_alone(statistics, lenses):
    """The same light, noise and peak on wider pixels: only the ring's radius tells."""
    from scipy.ndimage import zoom

    small = np.stack([np.pad(zoom(image, 0.75, order=1), 8) for image in lenses[:100]])
    geometry = {name: statistics["reference"][name] for name in ("ring_radius", "ring_width")}
    assert share(Reference({"reference": geometry}, (64, 64)), small, withheld=False) > 0.9


@pytest.mark.parametrize(
    ("image", "flag"),
    [
        (np.full((64, 64), 3.0), "every pixel has the same value"),
        (np.zeros((64, 64)), "every pixel has the same value"),
        (np.where(np.eye(64) > 0, np.nan, 1.0), "a pixel is not finite"),
        (np.where(np.eye(64) > 0, np.inf, 1.0), "a pixel is not finite"),
        (-1 - np.random.default_rng(0).random((64, 64)), "no pixel is above zero"),
    ],
)
def test_what_is_no_image_is_named(reference, image, flag):
    (verdict,) = reference.judge(image[None].astype(np.float32))
    assert verdict.flag == flag and verdict.withheld


def test_flags_name_statistic_value_and_range(reference, lenses, statistics):
    peak = statistics["reference"]["peak"]
    flags = [verdict.flag for verdict in reference.judge((lenses[:3] * 2).astype(np.float32))]
    span = f"far outside training range [{peak['q001']:.3g}, {peak['q999']:.3g}]"
    assert all("peak" in flag and span in flag for flag in flags)
    (cast,) = reference.judge(lenses[:1].astype(np.int16).astype(np.float32))
    assert cast.flag.startswith("cast to integers?")
    (normalised,) = reference.judge(lenses[:1] / lenses[:1].max())
    assert normalised.flag == "divided by its maximum (peak exactly 1)"


def test_a_little_outside_is_flagged_but_answered(reference, lenses):
    brighter = (lenses[:200] * 1.2).astype(np.float32)
    assert share(reference, brighter, withheld=False) > 0.9
    assert share(reference, brighter) == 0


def test_training_on_images_divided_by_their_maximum_is_respected(lenses, fitted_statistics):
    normalised = lenses / lenses.max(axis=(1, 2), keepdims=True)
    reference = Reference(fitted_statistics(normalised[:600]), (64, 64))
    assert share(reference, normalised[600:], withheld=False) < 0.02
    assert share(reference, lenses[600:]) == 1.0


def test_rotations_and_flips_are_no_fault(reference, lenses):
    turned = np.rot90(lenses[:300], axes=(1, 2))
    assert share(reference, turned, withheld=False) < 0.02
    assert share(reference, turned[:, ::-1], withheld=False) < 0.02


def test_shape_is_said_as_found_and_expected(reference):
    assert reference.wrong_shape((150, 150)) == "shape 150x150, expected 64x64"
    assert reference.wrong_shape((64,)) == "shape 64, expected 64x64"
    assert reference.wrong_shape((64, 64)) == ""
    assert reference.judge(np.empty((0, 64, 64), np.float32)) == []


@pytest.mark.parametrize(
    "statistics",
    [{}, {"reference": 3}, {"reference": {"peak": {"q50": 1.0}}}, {"reference": {"peak": "high"}},
     {"reference": {"peak": {"q001": 2, "q01": 1, "q50": 1, "q99": 1, "q999": 1}}},
     {"reference": {"peak": dict.fromkeys(("q001", "q01", "q50", "q99", "q999"), float("nan"))}}],
)  # fmt: skip
def test_a_regressor_without_usable_reference_says_so(statistics):
    with pytest.raises(FlagError, match="no usable entry 'reference'"):
        Reference(statistics, (64, 64))


def test_statistics_of_another_version_are_not_passed_over(statistics):
    reference = statistics["reference"] | {"sharpness": statistics["reference"]["peak"]}
    with pytest.raises(FlagError, match="measured by sharpness, which this darkarc does not know"):
        Reference({"reference": reference}, (64, 64))


class TestLimits:
    edges = np.linspace(-24, -22, 257)

    def posterior(self, mean: float, sigma: float) -> Posterior:
        centres = 0.5 * (self.edges[1:] + self.edges[:-1])
        density = np.exp(-0.5 * ((centres - mean) / sigma) ** 2)
        density /= density.sum() * (self.edges[1] - self.edges[0])
        return Posterior(self.edges, density[None], np.array([[1.0, 0, 0]]), DEFAULT_TARGET)

    def test_a_measurement_is_no_limit(self):
        assert limits(self.posterior(-23.0, 0.1)) == [""]
        assert limits(self.posterior(-22.2, 0.1)) == [""]

    def test_flat_up_to_an_end(self):
        high = np.where(self.edges[:-1] >= -22.5, 2.0, 0.0)
        axion = np.tile([1.0, 0, 0], (2, 1))
        edge = Posterior(self.edges, np.stack([high, high[::-1]]), axion, DEFAULT_TARGET)
        # 95 % of a flat density on [-22.5, -22] lie above -22.475.
        assert limits(edge) == ["lower limit: above -22.48 at 95%", "upper limit: below -23.52 at 95%"]

    def test_the_prior_itself_is_no_constraint(self):
        (flag,) = limits(self.posterior(-23.0, 50.0))
        assert flag == "no constraint: as wide as the prior [-24, -22]"

    @pytest.mark.parametrize("sigma", [0.2, 0.05, 0.03])
    def test_gaussian_whose_84th_percentile_touches_the_end(self, sigma):
        """Nearer is a limit, farther is not, however narrow it is."""
        cut = norm.cdf(-1)
        reach = [norm.ppf(cut + level * (1 - cut)) + 1 for level in (0.05, 0.5)]
        assert pytest.approx(reach[0] / reach[1], abs=0.002) == LEAST_REACH
        assert limits(self.posterior(-22 - 1.15 * sigma, sigma))[0] == ""
        assert limits(self.posterior(-22 - 0.85 * sigma, sigma))[0].startswith("lower limit")
        assert limits(self.posterior(-24 + 0.85 * sigma, sigma))[0].startswith("upper limit")

    @pytest.mark.parametrize("shares", [[1.0], [0.7, 0.3], [0.4, 0.3, 0.2, 0.1]])
    def test_what_is_piled_into_the_last_bins_is_a_limit(self, shares):
        density = np.zeros(256)
        density[: len(shares)] = shares
        density /= self.edges[1] - self.edges[0]
        piled = Posterior(
            self.edges, np.stack([density, density[::-1]]), np.tile([1.0, 0, 0], (2, 1)), DEFAULT_TARGET
        )
        upper, lower = limits(piled)
        assert upper.startswith("upper limit: below -23.9") and lower.startswith("lower limit: above -22.0")

    def test_a_narrow_maximum_over_a_flat_rest_is_a_measurement(self):
        """Of a mixture of the prior with a sure answer the tails reach the ends."""
        flat = np.full(256, 0.5)
        sure = self.posterior(-23.0, 0.01).density[0]
        mixed = Posterior(
            self.edges, (0.3 * flat + 0.7 * sure)[None], np.array([[1.0, 0, 0]]), DEFAULT_TARGET
        )
        assert limits(mixed) == [""]


def test_the_novelty_flags_and_then_withholds():
    edges = np.linspace(-24, -22, 11)
    posterior = Posterior(
        edges,
        np.full((4, 10), 0.5),
        np.full((4, 3), 1 / 3),
        DEFAULT_TARGET,
        np.array([0.3, 2.5, 3.5, np.nan]),
    )
    usual, unusual, unlike, undefined = unlikeness(posterior)
    assert (usual.flag, usual.withheld) == ("", False)
    assert unusual.flag == "unusual image (novelty 2.5: 1 in 316 is as strange)" and not unusual.withheld
    assert unlike.flag == "unlike the training images (novelty 3.5, limit 3)" and unlike.withheld
    assert undefined.withheld
    silent = Posterior(edges, posterior.density, posterior.class_probability, DEFAULT_TARGET)
    assert all(verdict.flag == "" for verdict in unlikeness(silent))
