"""Names, units and one-line meanings of the numbers, the same in the report and on the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from darkarc.config import TARGET_UNIT, in_unit

MEANINGS = {
    "mae_dex": ("Mean absolute error", "dex", "of the posterior median"),
    "rmse_dex": ("Root-mean-square error", "dex", "of the posterior median"),
    "bias_dex": ("Bias", "dex", "mean of median minus truth"),
    "r2": ("R²", "", "share of the variance of the truth that the median explains"),
    "nll": ("Negative log-likelihood", "nat", "of the truth under the posterior density; lower is better"),
    "crps_dex": ("CRPS", "dex", "continuous ranked probability score; lower is better"),
    "sharpness_dex": ("Sharpness", "dex", "median width of the 68% interval"),
    "std_within": ("Spread within members", "dex", "root mean square over the images; what they leave open"),
    "std_between": ("Spread between members", "dex", "the same, of what the trainings disagree about"),
    "coverage_50": ("Coverage at 50%", "", "share of truths in the equal-tailed 50% interval"),
    "coverage_68": ("Coverage at 68%", "", "share of truths in the equal-tailed 68% interval"),
    "coverage_90": ("Coverage at 90%", "", "share of truths in the equal-tailed 90% interval"),
    "coverage_95": ("Coverage at 95%", "", "share of truths in the equal-tailed 95% interval"),
    "coverage_68_expected": ("Expected at 68%", "", "share in that bin if the posteriors are calibrated"),
    "coverage_90_expected": ("Expected at 90%", "", "share in that bin if the posteriors are calibrated"),
    "pull_mean": (
        "Mean pull",
        "",
        "(truth − posterior mean) / posterior standard deviation; 0 if calibrated",
    ),
    "pull_std": ("Pull deviation", "", "standard deviation of the pulls; 1 if calibrated"),
    "pull_mean_free": ("Mean pull, free", "", "where the posterior is not bound by the prior"),
    "pull_std_free": ("Pull deviation, free", "", "where the posterior is not bound by the prior"),
    "prior_bound_share": (
        "Prior-bound share",
        "",
        "posteriors with over 1% of their mass at an end of the prior",
    ),
    "pit_ks": ("PIT distance", "", "Kolmogorov–Smirnov distance of the PIT to uniform"),
    "tarp_ks": ("TARP distance", "", "Kolmogorov–Smirnov distance of the TARP ranks to uniform"),
    "class_auc": ("Class AUC", "", "area under the ROC curve, mean over one class against the rest"),
    "auc_axion": ("AUC axion", "", "axion against the rest"),
    "auc_cdm": ("AUC CDM", "", "CDM against the rest"),
    "auc_no_sub": ("AUC no substructure", "", "no substructure against the rest"),
    "class_accuracy": ("Class accuracy", "", "share of images given their own class"),
    "class_nll": ("Class log-loss", "nat", "of the true class; lower is better"),
    "class_ece": ("Class calibration error", "", "expected calibration error, mean over the classes"),
    "ece_axion": ("Calibration error axion", "", "of the probability of axion, in ten bins of it"),
    "ece_cdm": ("Calibration error CDM", "", "of the probability of CDM"),
    "ece_no_sub": ("Calibration error no substructure", "", "of the probability of no substructure"),
    "constant_guess_mae_dex": (
        "MAE of a constant guess",
        "dex",
        "the median of the train split for every image",
    ),
    "constant_guess_rmse_dex": (
        "RMSE of a constant guess",
        "dex",
        "the median of the train split for every image",
    ),
    "ood_auc_worst": ("Novelty AUC, least", "", "strange against test images, the case hardest to tell"),
    "ood_flagged_least": ("Flagged share, least", "", "of strange images, the case least flagged"),
    "ood_wrong_most": (
        "Unflagged confident errors, most",
        "",
        "share of strange images with a confident wrong mass and no flag, the worst case",
    ),
    "floor_mae_dex": (
        "Information floor",
        "dex",
        "mean absolute error of exact posteriors of some test images: nobody gets below it but by chance",
    ),
    "floor_expected_mae_dex": (
        "Information floor, expected",
        "dex",
        "the error that those exact posteriors expect of themselves",
    ),
    "floor_n_unexplained": (
        "Images that no lens explains",
        "",
        "of those taken for the floor: the search has missed the maximum, or they are of another form",
    ),
    "floor_same_images_mae_dex": ("MAE on the floor's images", "dex", "of the regressor's median"),
    "floor_ratio": ("MAE over floor", "", "on the same images; 1 is the limit"),
    "published_best_mae_dex": ("Best published MAE", "dex", "on the same preset and noise form"),
}


def meaning(name: str, target: str) -> tuple[str, str, str]:
    """The entry of `MEANINGS` for this target: what is in dex for a log10 is in the target's own unit."""
    label, unit, text = MEANINGS[name]
    return label, TARGET_UNIT[target] if unit == "dex" else unit, text


_BINNED_TRUTH = (
    "Coverage by true value need not be nominal, not even for an exact posterior: an interval knows "
    "the image, not "
    "the truth, so it misses more often at the ends of the prior and less often in the middle."
)
_EXPECTED = " What calibrated posteriors as wide as these would have there stands beside it as expected."


def about_true_values(rows: Sequence[Mapping[str, Any]]) -> str:
    """Why a table by true value (rows of `by_mass`) is no test of calibration, and what is."""
    return _BINNED_TRUTH + (_EXPECTED if "coverage_68_expected" in rows[0] else "")


def number(value: Any) -> str:
    """A number with four decimals, a dash for null."""
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def as_published(value: float) -> str:
    """A published number with the digits it was given with, at least two decimals."""
    decimals = max(2, len(f"{value:g}".partition(".")[2]))
    return f"{value:.{decimals}f}"


def with_error(metrics: Mapping[str, Any], name: str) -> str:
    """`0.0650 ± 0.0021`, without the second part where there is no standard error."""
    error = metrics.get("standard_error", {}).get(name)
    value = number(metrics.get(name))
    return value if error is None or value == "–" else f"{value} ± {error:.4f}"


def missing_reasons(metrics: Mapping[str, Any]) -> list[str]:
    """`metric: reason` for every number that could not be computed."""
    return [f"{row['metric']}: {row['reason']}" for row in metrics.get("missing", [])]


def limits(
    metrics: Mapping[str, Any], target: str, prior: tuple[float, float], data: Mapping[str, str]
) -> list[str]:
    """What a user must know before trusting an answer, from the numbers of this evaluation."""
    lines = [
        f"Trained and tested on images of {data['Instrument']} ({data['Shape']}); on other "
        "instruments, pixel scales "
        "or noise it is untested.",
        f"The prior of {target} is uniform on [{prior[0]:g}, {prior[1]:g}]: a posterior that leans on "
        "one end of it "
        "is a limit, not a measurement.",
        "The target means something only where the lens is of its class: look at the class "
        "probabilities first.",
    ]
    share = metrics.get("prior_bound_share")
    if share is not None:
        lines.append(f"{100 * share:.0f}% of the test posteriors are bound by an end of the prior.")
    rows = [row for row in metrics.get("by_mass", []) if row.get("mae_dex") is not None]
    if rows:
        worst = max(rows, key=lambda row: row["mae_dex"])
        best = min(rows, key=lambda row: row["mae_dex"])
        least, most = (in_unit(f"{row['mae_dex']:.4f}", target) for row in (best, worst))
        lines.append(
            f"The mean absolute error goes from {least} (true value {best['low']:.2f} to {best['high']:.2f}) "
            f"to {most} ({worst['low']:.2f} to {worst['high']:.2f})."
        )
    return lines
