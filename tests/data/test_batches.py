from pathlib import Path

import numpy as np
import pytest
import torch

from darkarc.config import CLASSES
from darkarc.data.batches import BatchError, ImageSource, epoch_order
from darkarc.data.store import Store, StoreWriter

PRIOR = {"log10_axion_mass_ev": (-24.0, -22.0)}


@pytest.fixture(params=["float32", "uint16", "int16"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    return write(tmp_path / "store", request.param)


def write(path: Path, dtype: str, *, masses: tuple[float, float] = (-24.0, -22.0)) -> Store:
    n = 20
    writer = StoreWriter(
        path, name="t", origin="t", instrument="t", shape=(4, 6), dtype=dtype, parameters={}, shard_bytes=400
    )
    classes = [CLASSES[i % 3] for i in range(n)]
    mass = np.linspace(*masses, n)
    writer.append(
        np.random.default_rng(0).integers(0, 1000, size=(n, 4, 6)).astype(dtype),
        {
            "sample_id": [f"{i}" for i in range(n)],
            "class": classes,
            # cdm rows carry a number too: it must not be trained on.
            "log10_axion_mass_ev": [
                np.nan if c == "no_sub" else m for c, m in zip(classes, mass, strict=True)
            ],
            "split": ["train"] * 13 + ["test"] * 7,
        },
    )
    return writer.commit()


@pytest.mark.parametrize("memory_gb", [1.0, 1e-9], ids=["resident", "mapped"])
def test_batches_hold_the_stores_pixels_labels_and_masked_truths(store: Store, memory_gb: float) -> None:
    source = ImageSource(store, "test", PRIOR, memory_gb=memory_gb)
    assert (source.resident is not None) == (memory_gb == 1.0)
    assert len(source) == 7
    indices = torch.tensor([5, 0, 2])
    batch = source.batch(indices)
    rows = 13 + indices.numpy()
    assert np.array_equal(batch.images[:, 0].numpy(), store.images(rows))
    table = store.samples.to_pandas().iloc[rows]
    assert [CLASSES[i] for i in batch.classes] == list(table["class"])
    axion = (table["class"] == "axion").to_numpy()
    assert axion.any() and not axion.all()
    truth = batch.truth[:, 0].numpy()
    assert truth[axion] == pytest.approx(table["log10_axion_mass_ev"].to_numpy()[axion], abs=1e-5)
    assert np.isnan(truth[~axion]).all()


@pytest.mark.parametrize(
    ("dtype", "kept"), [("uint8", torch.int16), ("uint16", torch.int32), ("uint32", torch.int64)]
)
def test_counts_keep_their_values_and_count_for_memory_as_they_are_kept(
    dtype: str, kept: torch.dtype, tmp_path: Path
) -> None:
    most = np.iinfo(dtype).max
    images = np.random.default_rng(0).integers(0, most, (6, 16, 16), dtype, endpoint=True)
    images[0, 0, 0] = most
    with StoreWriter(
        tmp_path / "counts", name="counts", origin="tests", instrument="model_i", shape=(16, 16), dtype=dtype,
        parameters={},
    ) as writer:  # fmt: skip
        rows = {
            "sample_id": [str(i) for i in range(6)],
            "class": ["axion"] * 6,
            "log10_axion_mass_ev": np.linspace(-23.5, -22.5, 6).tolist(),
            "split": ["test"] * 6,
        }
        writer.append(images, rows)
        store = writer.commit()
    n_bytes = images.size * kept.itemsize
    source = ImageSource(store, "test", PRIOR, memory_gb=n_bytes / 1e9)
    assert source.resident is not None and source.resident.dtype == kept
    np.testing.assert_array_equal(source.resident[:, 0].numpy(), images)
    assert ImageSource(store, "test", PRIOR, memory_gb=(n_bytes - 1) / 1e9).resident is None


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    order = epoch_order(4, 2, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert torch.equal(order, epoch_order(4, 2, 1000))
    assert not torch.equal(order, epoch_order(4, 3, 1000)) and not torch.equal(order, epoch_order(5, 2, 1000))
    # No memory of the index: rank correlation of order and index is consistent with none.
    assert abs(np.corrcoef(order.numpy(), np.arange(1000))[0, 1]) < 4 / np.sqrt(1000)


def test_a_split_without_samples_or_truths_is_named(tmp_path: Path) -> None:
    store = write(tmp_path / "store", "float32")
    with pytest.raises(BatchError, match=r"no samples in the validation split; raise prepare.validation"):
        ImageSource(store, "validation", PRIOR)
    with pytest.raises(BatchError, match="no cdm sample with a log10_subhalo_mass_msun"):
        ImageSource(store, "train", {"log10_subhalo_mass_msun": (6.0, 11.0)})


def test_a_target_that_never_changes_is_refused_with_what_varies(tmp_path: Path) -> None:
    from darkarc.config import parse
    from darkarc.data.generate import generate

    simulated = generate(
        parse({"simulate": {"n_axion": 0, "n_cdm": 12, "n_no_sub": 0}, "device": "cpu"}),
        tmp_path / "raw",
        progress=False,
    )
    counts = simulated.samples.column("n_subhalos").to_numpy()
    assert (counts == 25).all()
    split = ["train"] * 12
    table = simulated.samples.to_pandas().assign(split=split)
    writer = StoreWriter(
        tmp_path / "store",
        name="t",
        origin="t",
        instrument="t",
        shape=(64, 64),
        dtype="float32",
        parameters={},
    )
    writer.append(
        np.array(simulated.images(np.arange(12))),
        {name: list(table[name]) for name in ("sample_id", "class", "n_subhalos", "split")}
        | {"log10_subhalo_mass_msun": table["log10_subhalo_mass_msun"].to_numpy()},
    )
    store = writer.commit()
    with pytest.raises(BatchError, match=r"n_subhalos is 25 in all 12 cdm samples.*log10_subhalo_mass_msun"):
        ImageSource(store, "train", {"n_subhalos": (0.0, 50.0)})
    truth = ImageSource(store, "train", {"log10_subhalo_mass_msun": (9.0, 11.5)}).truth
    assert truth.isfinite().all() and truth.std() > 0


def test_a_number_of_subhaloes_that_varies_is_a_target(tmp_path: Path) -> None:
    writer = StoreWriter(
        tmp_path / "store", name="t", origin="t", instrument="t", shape=(4, 6), dtype="float32", parameters={}
    )
    classes = ["cdm"] * 11 + ["axion"]
    writer.append(
        np.zeros((12, 4, 6), np.float32),
        {
            "sample_id": [f"{i}" for i in range(12)],
            "class": classes,
            "n_subhalos": [*range(20, 31), None],
            "split": ["train"] * 12,
        },
    )
    truth = ImageSource(writer.commit(), "train", {"n_subhalos": (0.0, 50.0)}).truth[:, 0]
    assert truth[:11].tolist() == list(range(20, 31)) and truth[11].isnan()


def test_truths_outside_of_the_prior_are_counted(tmp_path: Path) -> None:
    store = write(tmp_path / "store", "float32", masses=(-24.5, -22.0))
    with pytest.raises(BatchError, match=r"2 of 5 samples .* outside .* widen targets.log10_axion_mass_ev"):
        ImageSource(store, "train", PRIOR)
    rounding = write(tmp_path / "rounding", "float32", masses=(-24.0 - 1e-9, -22.0))
    assert ImageSource(rounding, "train", PRIOR).truth[0, 0] == -24.0
