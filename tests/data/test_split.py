"""Splits: no leak, the asked shares, no dependence on order; twins found by their pixels."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkarc.data.split import SPLITS, SplitError, drawn_shares, require_classes, split_groups
from darkarc.data.twins import fingerprints, merge_groups

SHARES = {"train": 0.7, "validation": 0.1, "calibration": 0.05, "test": 0.15}


def drawn(n: int, strata: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return [f"scene-{i:05d}" for i in range(n)], rng.integers(0, strata, n)


def test_every_split_holds_its_share_of_the_whole_to_one_group() -> None:
    groups, strata = drawn(1003, 31)
    counts = Counter(split_groups(groups, strata, shares=SHARES, seed=1).tolist())
    for name in SPLITS:
        assert abs(counts[name] - SHARES[name] * 1003) <= 1.5, name


def test_every_stratum_is_divided_in_proportion() -> None:
    groups, strata = drawn(2000, 10)
    splits = split_groups(groups, strata, shares=SHARES, seed=1)
    for stratum in range(10):
        inside = splits[strata == stratum]
        for name in SPLITS:
            assert abs(np.sum(inside == name) - SHARES[name] * len(inside)) <= 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=120),
    st.integers(0, 2**63 - 1),
    st.randoms(use_true_random=False),
)
def test_no_group_is_torn_and_order_of_rows_does_not_matter(rows, seed, random) -> None:  # type: ignore[no-untyped-def]
    groups = [f"g{group}" for group, _ in rows]
    strata = np.array([stratum for _, stratum in rows])
    splits = split_groups(groups, strata, shares=SHARES, seed=seed)
    by_group: dict[str, set[str]] = {}
    for group, split in zip(groups, splits.tolist(), strict=True):
        by_group.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in by_group.values())
    order = random.sample(range(len(rows)), len(rows))
    again = split_groups([groups[i] for i in order], strata[order], shares=SHARES, seed=seed)
    assert again.tolist() == splits[order].tolist()


def test_the_seed_decides() -> None:
    groups, strata = drawn(300, 3)
    one, other, again = (split_groups(groups, strata, shares=SHARES, seed=seed) for seed in (1, 2, 1))
    assert one.tolist() == again.tolist()
    assert np.mean(one != other) > 0.2


def test_the_published_sets_stay_and_take_their_groups_along() -> None:
    groups, strata = drawn(400, 4)
    groups[200] = groups[0]  # a twin of a published test image, lying among the others
    groups[300] = groups[100]
    published: list[str | None] = ["test"] * 100 + ["validation"] * 50 + [None] * 150 + ["train"] * 100
    splits = split_groups(groups, strata, shares=SHARES, seed=1, published=published)
    given_test = np.array([name == "test" for name in published])
    assert set(splits[given_test]) == {"test"}
    assert splits[200] == "test"
    assert splits[300] == "validation"
    counts = Counter(splits.tolist())
    assert counts["test"] == 101  # nothing else is drawn into it
    assert counts["validation"] == 51
    assert counts["calibration"] == pytest.approx(248 * 0.05 / 0.75, abs=1.5)


def test_a_group_of_several_strata_counts_as_its_smallest() -> None:
    groups, strata = drawn(300, 5)
    larger = strata + np.random.default_rng(1).integers(0, 9, 300)
    both = split_groups([*groups, *groups], np.concatenate([larger, strata]), shares=SHARES, seed=1)
    assert both[:300].tolist() == split_groups(groups, strata, shares=SHARES, seed=1).tolist()


def test_test_wins_over_validation() -> None:
    splits = split_groups(
        ["a", "a", "b"], np.zeros(3, int), shares=SHARES, seed=0, published=["validation", "test", None]
    )
    assert splits[:2].tolist() == ["test", "test"]


def test_shares_of_what_is_not_published_are_scaled_to_one() -> None:
    assert drawn_shares(SHARES, ["test", None])["train"] == pytest.approx(0.7 / 0.85)
    assert drawn_shares(SHARES, ["test"])["test"] == 0
    with pytest.raises(SplitError, match=r"prepare\.train"):
        drawn_shares({"train": 0.0, "test": 1.0}, ["test", None])


def test_an_unknown_published_split_is_named() -> None:
    with pytest.raises(SplitError, match="row 1: split is 'holdout'"):
        split_groups(["a", "b"], np.zeros(2, int), shares=SHARES, seed=0, published=[None, "holdout"])


def test_a_split_without_a_needed_class_is_an_error_that_names_both() -> None:
    splits = np.array(["train", "train", "test"])
    classes = np.array(["axion", "cdm", "cdm"])
    require_classes(splits, classes, ["train", "test"], ["cdm"])
    with pytest.raises(SplitError, match="split test would hold no axion image"):
        require_classes(splits, classes, ["train", "test"], ["axion"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_the_eight_twins_share_a_fingerprint_and_another_image_does_not(dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = (1000 * rng.normal(size=(16, 16))).astype(dtype)
    twins = [np.rot90(side, turns) for side in (image, image[::-1]) for turns in range(4)]
    other = image.copy()
    other[3, 4] += 1
    prints = fingerprints(np.stack([*twins, other]))
    assert len(set(prints[:8].tolist())) == 1
    assert prints[8] != prints[0]


def test_minus_zero_and_odd_nans_are_equal_pixels() -> None:
    image = np.ones((1, 8, 8), np.float32)
    image[0, 0, 0], image[0, 0, 1] = 0.0, np.nan
    same = image.copy()
    same[0, 0, 0] = -0.0
    same.view(np.uint32)[0, 0, 1] = 0x7FC00001  # a nan with another payload
    assert fingerprints(image)[0] == fingerprints(same)[0]


def test_groups_that_share_pixels_become_one_through_any_chain() -> None:
    prints = np.array([b"p", b"q", b"q", b"r", b"r", b"s", b"t"], "S32")
    groups = ["c", "c", "b", "b", "a", None, None]
    names = [f"x{i}" for i in range(7)]
    merged = merge_groups(groups, names, prints)
    assert merged[:5].tolist() == ["a"] * 5  # c and b meet in q, b and a in r
    assert merged[5:].tolist() == ["sample:x5", "sample:x6"]
    order = np.array([4, 6, 0, 2, 1, 5, 3])
    again = merge_groups([groups[i] for i in order], [names[i] for i in order], prints[order])
    assert again.tolist() == merged[order].tolist()
    assert len(set(merge_groups(groups, names).tolist())) == 5
