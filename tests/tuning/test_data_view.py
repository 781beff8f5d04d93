"""A search sees train and validation, and nothing else."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from darkarc.data.batches import BatchError, ImageSource
from darkarc.data.store import Store
from darkarc.tuning.data_view import HiddenSplit, SearchView, open_view

TARGETS = {"log10_axion_mass_ev": (-24.0, -22.0)}


def splits(store: Store) -> np.ndarray:
    return np.array(store.samples["split"].to_pylist(), dtype=object)


def test_the_test_split_cannot_be_reached(prepared: Store) -> None:
    view = SearchView.of(prepared)
    assert set(splits(view)) == {"train", "validation", None}
    for name in ("test", "calibration"):
        with pytest.raises(BatchError, match=f"no samples in the {name} split"):
            ImageSource(view, name, TARGETS)
    hidden = np.flatnonzero(splits(prepared) == "test")
    with pytest.raises(HiddenSplit, match="not part of this search"):
        view.images(hidden[:1])
    with pytest.raises(HiddenSplit):
        view.images(None)


def test_what_is_seen_is_what_the_store_holds(prepared: Store) -> None:
    view = SearchView.of(prepared)
    rows = np.flatnonzero(splits(prepared) == "validation")
    np.testing.assert_array_equal(view.images(rows), prepared.images(rows))
    assert len(ImageSource(view, "train", TARGETS)) == int((splits(prepared) == "train").sum())


def test_a_share_keeps_whole_groups_and_is_the_same_everywhere(prepared: Store) -> None:
    half = SearchView.of(prepared, 0.5, seed=1)
    n_train = int((splits(prepared) == "train").sum())
    kept = splits(half) == "train"
    assert 0.35 * n_train < kept.sum() < 0.65 * n_train
    assert (splits(half) == "validation").sum() == (splits(prepared) == "validation").sum()
    copy = pickle.loads(pickle.dumps(half))
    assert isinstance(copy, SearchView) and copy.digest == half.digest
    np.testing.assert_array_equal(splits(copy) == "train", kept)
    assert len(pickle.dumps(half)) < 10_000, "pixels must not travel"
    other = SearchView.of(prepared, 0.5, seed=2)
    assert other.digest != half.digest != SearchView.of(prepared).digest
    assert not np.array_equal(splits(other) == "train", kept)


def test_a_worker_opens_it_by_its_path(prepared: Store, tmp_path: Path) -> None:
    assert open_view(prepared.path, 0.5, 1).digest == SearchView.of(prepared, 0.5, 1).digest
