"""Images that are one another's rotation or reflection, and the groups that keep them together."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def fingerprints(images: NDArray) -> NDArray[np.bytes_]:
    """A fingerprint of the pixels of (N, H, W) images that rotation and reflection leave as it is.

    128 bits of BLAKE2b over the sorted pixel values, little-endian; (N,) of 16 bytes as hexadecimal.
    Two images share it if one holds the other's pixels in any order, which for real images means a
    dihedral twin or a copy.
    """
    flat = images.reshape(len(images), -1)
    if flat.dtype.kind == "f":
        flat = flat + flat.dtype.type(0)  # -0.0 becomes 0.0: equal pixels have equal bytes
        flat[np.isnan(flat)] = np.nan
    ordered = np.sort(flat, axis=1).astype(flat.dtype.newbyteorder("<"), copy=False)
    digests = [hashlib.blake2b(row.data, digest_size=16).hexdigest() for row in ordered]
    return np.asarray(digests, "S32")


def merge_groups(
    group_ids: Sequence[str | None], sample_ids: Sequence[str], prints: NDArray[np.bytes_] | None = None
) -> NDArray[np.str_]:
    """Join groups that share a fingerprint, if given; (N,) names, the smallest group id of those joined.

    A sample without a group is a group of its own, named after the sample. The result of a sample
    does not depend on the order of the rows.
    """
    names = [
        f"sample:{sample}" if group is None else group
        for group, sample in zip(group_ids, sample_ids, strict=True)
    ]
    unique, group = np.unique(np.asarray(names, np.str_), return_inverse=True)
    if prints is None:
        return unique[group]
    _, pixels = np.unique(prints, return_inverse=True)
    # Groups and fingerprints are the nodes of one graph, samples its edges: what hangs together
    # must stay together.
    n = len(unique) + int(pixels.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(group), np.int8), (group, len(unique) + pixels)), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, len(unique))
    np.minimum.at(smallest, component[group], group)
    return unique[smallest[component[group]]]
