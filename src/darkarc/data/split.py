"""Train, validation, calibration and test: by group, stratified, and the same for any order of rows."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "calibration", "test")
"""Names of the splits, in the order in which a prepared store holds them."""

PUBLISHED = ("test", "validation", "calibration")
"""Splits that raw data may bring along; where a group has several, the first of these wins."""


class SplitError(ValueError):
    """Data that cannot be split as asked; the message says what is missing and what to change."""


def split_groups(
    groups: Sequence[str] | NDArray[np.str_],
    strata: NDArray[np.integer],
    *,
    shares: Mapping[str, float],
    seed: int,
    published: Sequence[str | None] | None = None,
) -> NDArray[np.str_]:
    """Name a split for each of N samples; samples of one group always share it.

    groups: group of each sample. strata: integer of each (class and mass bin); a group counts as its
    smallest. shares: split -> share of the groups, summing to 1. published: the split that the data
    bring along, or None; a group with such a member goes there as a whole, and where any sample has
    a published split, no other sample is drawn into it: `drawn_shares` divides the rest.

    Within a stratum, groups are ordered by a keyed hash of (seed, group) and cut in proportion; what
    rounding leaves over is carried to the next stratum, so that every split holds its share to
    within one group of the whole. The result depends on the seed and the set of groups with their
    strata, not on the order of rows.
    """
    names, group = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    strata = np.asarray(strata)
    if len(group) != len(strata):
        raise SplitError(f"expected a stratum for each of {len(group)} samples, found {len(strata)}")
    fixed = _published_splits(group, len(names), published)
    result = np.select([fixed == i for i in range(len(PUBLISHED))], list(PUBLISHED), default="train")
    result = result.astype(f"U{max(map(len, SPLITS))}")
    free = fixed == len(PUBLISHED)
    if not free.any():
        return result[group]
    divided = drawn_shares(shares, published or ())
    stratum = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(stratum, group, strata)
    members = np.flatnonzero(free)
    ranks = np.fromiter((_rank(seed, str(name)) for name in names[members]), np.uint64, len(members))
    ordered = members[np.lexsort((members, ranks, stratum[members]))]  # names are sorted: so are members
    carry = np.zeros(len(SPLITS))
    _, starts = np.unique(stratum[ordered], return_index=True)
    for together in np.split(ordered, starts[1:]):
        counts, carry = _cut(len(together), [divided[name] for name in SPLITS], carry)
        result[together] = np.repeat(SPLITS, counts)
    return result[group]


def drawn_shares(shares: Mapping[str, float], published: Sequence[str | None]) -> dict[str, float]:
    """Shares of the groups that no published split claims: zero for published splits, the rest scaled to 1.

    Raises `SplitError` if nothing is left to draw.
    """
    taken = set(published) & set(PUBLISHED)
    left = {name: 0.0 if name in taken else float(shares.get(name, 0)) for name in SPLITS}
    total = sum(left.values())
    if total <= 0:
        found = ", ".join(name for name in PUBLISHED if name in taken) or "none"
        raise SplitError(
            "the shares of the splits that are not published sum to 0 "
            f"(published: {found}): set prepare.train above 0"
        )
    return {name: share / total for name, share in left.items()}


def require_classes(
    splits: NDArray[np.str_], classes: NDArray[np.str_], wanted: Sequence[str], needed: Sequence[str]
) -> None:
    """Raise `SplitError` unless every class of `needed` has a sample in every split of `wanted`."""
    for name in wanted:
        for class_name in needed:
            if not np.any((splits == name) & (classes == class_name)):
                raise SplitError(
                    f"split {name} would hold no {class_name} image, and {class_name} has a target to "
                    f"regress: {np.sum(classes == class_name)} {class_name} images are too few for these "
                    f"shares or lie in too few groups; give more, raise prepare.{name}, or set it to 0 "
                    "(a published split is taken as it is: it must hold the class itself)"
                )


def _published_splits(
    group: NDArray[np.intp], n_groups: int, published: Sequence[str | None] | None
) -> NDArray[np.integer]:
    """Index in `PUBLISHED` of each group, `len(PUBLISHED)` for none."""
    code = {name: i for i, name in enumerate(PUBLISHED)} | {"train": len(PUBLISHED), None: len(PUBLISHED)}
    fixed = np.full(n_groups, len(PUBLISHED))
    if published is not None:
        for row, name in enumerate(published):
            if name not in code:
                raise SplitError(f"row {row}: split is {name!r}; expected one of {', '.join(SPLITS)} or none")
        np.minimum.at(fixed, group, [code[name] for name in published])
    return fixed


def _rank(seed: int, group: str) -> int:
    """A uniform key of a group that only seed and name determine."""
    key = int(seed).to_bytes(8, "little")
    digest = hashlib.blake2b(group.encode(), digest_size=8, key=key, person=b"darkarc-split").digest()
    return int.from_bytes(digest, "big")


def _cut(n: int, shares: Sequence[float], carry: NDArray) -> tuple[NDArray[np.int64], NDArray]:
    """Divide n groups by largest remainders; also what each split is still owed."""
    due = np.asarray(shares) * n + carry
    counts = np.floor(np.maximum(due, 0)).astype(np.int64)
    while (missing := n - counts.sum()) != 0:
        owed = due - counts
        if missing > 0:
            counts[np.argmax(np.where(np.asarray(shares) > 0, owed, -np.inf))] += 1
        else:
            counts[np.argmin(np.where(counts > 0, owed, np.inf))] -= 1
    return counts, due - counts
