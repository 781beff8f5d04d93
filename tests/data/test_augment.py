import numpy as np
import pytest
import torch

from darkarc.data.augment import GROUPS, dihedral, dihedral_codes
from darkarc.simulation.counter import hash_indices

MASK = 2**64 - 1


def splitmix64(z: int) -> int:
    """The reference in Python's unbounded integers."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_generator_is_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the reference implementation.
    assert splitmix64(1234567) == 6457827717110365317
    hashes = hash_indices(3, 11, torch.tensor([0, 1, 2**40]))
    for value, index in zip(hashes.tolist(), [0, 1, 2**40], strict=True):
        expected = splitmix64(splitmix64(splitmix64(3) ^ 11) ^ index) & (2**63 - 1)
        assert value == expected


def test_codes_depend_on_seed_epoch_and_index_alone() -> None:
    indices = torch.randperm(4000)
    codes = dihedral_codes(1, 5, indices)
    alone = torch.cat([dihedral_codes(1, 5, indices[i : i + 1]) for i in range(0, 4000, 371)])
    assert torch.equal(codes[::371], alone)
    assert (codes != dihedral_codes(2, 5, indices)).any() and (codes != dihedral_codes(1, 6, indices)).any()


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_element_of_the_group_is_drawn_equally_often(group: str) -> None:
    codes = dihedral_codes(0, 3, torch.arange(16_000), group)
    counts = np.bincount(codes.numpy(), minlength=8)
    expected = np.zeros(8)
    expected[list(GROUPS[group])] = 16_000 / len(GROUPS[group])
    assert counts == pytest.approx(expected, abs=5 * np.sqrt(2000))
    assert (counts[expected == 0] == 0).all()


def test_the_eight_codes_are_the_dihedral_group_and_act_per_sample() -> None:
    image = np.arange(25.0).reshape(5, 5)
    images = torch.from_numpy(image).expand(8, 1, 5, 5)
    turned = dihedral(images, torch.arange(8))[:, 0].numpy()
    expected = {np.rot90(base, k).tobytes() for base in (image, image.T) for k in range(4)}
    assert {np.ascontiguousarray(one).tobytes() for one in turned} == expected
    assert np.array_equal(turned[0], image)


def test_flips_keep_what_is_even_about_both_axes_and_full_does_not() -> None:
    x = np.array([5.0, 2.0, 1.0, 1.0, 2.0, 5.0])
    even = torch.from_numpy(x[None, :] + 3 * x[:, None]).expand(8, 1, 6, 6)
    kept = (dihedral(even, torch.arange(8)) == even).flatten(1).all(dim=1).tolist()
    assert kept == [True] * 4 + [False] * 4


def test_oblong_images_flip_but_do_not_turn() -> None:
    images = torch.rand(4, 1, 3, 5)
    assert dihedral(images, torch.arange(4)).shape == images.shape
    with pytest.raises(ValueError, match=r"set train.dihedral to flips"):
        dihedral(images, torch.arange(4) + 1)
