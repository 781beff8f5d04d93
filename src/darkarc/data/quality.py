"""Statistics of an image that tell a lens from a fault, and rules that no lens breaks.

`image_statistics` turns a batch of images into one number an image and statistic; nothing in it is
fitted, so `prepare` and `predict` measure images in the same way. `broken_rules` names what makes an
image unusable whatever the rest of the data look like.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATISTICS = {
    "flux": "sum of the significant light, in units of the pixels",
    "peak": "largest pixel",
    "background": "median of the four corners",
    "noise_level": "standard deviation of the noise from the image's second differences",
    "relative_noise": "noise level against the peak's height above the background",
    "asymmetry": "light that a rotation by 180 degrees does not map onto itself, 0 to 1",
    "ring_radius": "mean distance of the light from the centre, in pixels",
    "ring_width": "standard deviation of that distance, in pixels",
    "offset": "distance of the light's centroid from the centre, in pixels",
    "spike": "sharpest single pixel against the peak; about 1 for a lone hot pixel",
    "saturation": "share of pixels at the image's maximum",
    "flat": "share of pixels whose second differences vanish: dead rows, plateaus, padding",
    "non_finite": "share of pixels that are not finite",
    "negative": "share of pixels below zero",
    "zero": "share of pixels that are exactly zero",
}
"""Every statistic of `image_statistics`, in its order, with its meaning."""

SHARES = ("saturation", "flat", "non_finite", "negative", "zero")
"""Statistics that are shares of the pixels."""

RULES = {
    "non_finite": "a pixel is not finite",
    "constant": "every pixel has the same value",
    "all_negative": "no pixel is above zero",
    "saturated": "more than 1% of the pixels are at the maximum",
    "empty": "no pixel stands 5 noise levels above the background",
}
"""Rules in the order they are checked; an image carries the first that it breaks."""

LARGEST = 1e30
"""A pixel beyond this counts as not finite: sums and squares of such values leave float32."""

SATURATED_SHARE = 0.01
DETECTION = 5.0
_SIGNIFICANT = 3.0
_MAD_TO_SIGMA = 1.4826  # of a Gaussian
_SMALLEST_SIDE = 8
_BLOCK_BYTES = 2 << 20  # a block of images and its temporaries stay in the processor's cache

Array = NDArray[np.float64]


class ImageError(ValueError):
    """Images that cannot be measured; the message says what was expected and what was found."""


def image_statistics(images: NDArray) -> dict[str, Array]:
    """Measure images of shape (N, H, W), any real dtype: name -> (N,) float64, always finite.

    Formulas are in docs/prepare.md. Pixels that are not finite are counted in `non_finite` and take
    the background's value in all others. Works in blocks: memory beside `images` is constant.

    Raises `ImageError` if the array is not three-dimensional, has no real numbers, or is smaller
    than 8 x 8 pixels.
    """
    if images.ndim != 3 or images.dtype.kind not in "fiub":
        raise ImageError(
            f"expected real images of shape (N, H, W), found shape {images.shape} of {images.dtype}"
        )
    n, height, width = images.shape
    if min(height, width) < _SMALLEST_SIDE:
        raise ImageError(
            f"expected images of at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels, "
            f"found {height} x {width}"
        )
    result = {name: np.empty(n) for name in STATISTICS}
    with np.errstate(over="ignore"):  # a value that overflows float32 is counted as not finite
        for rows in _blocks(n, height * width):
            for name, values in _block_statistics(images[rows]).items():
                result[name][rows] = values
    return result


def broken_rules(statistics: Mapping[str, Array]) -> NDArray[np.str_]:
    """The first rule of `RULES` that each image breaks, (N,) strings, "" where it breaks none."""
    broken = {
        "non_finite": statistics["non_finite"] > 0,
        "constant": statistics["saturation"] == 1,
        "all_negative": statistics["peak"] <= 0,
        "saturated": statistics["saturation"] > SATURATED_SHARE,
        "empty": statistics["peak"] - statistics["background"] <= DETECTION * statistics["noise_level"],
    }
    return np.select([broken[rule] for rule in RULES], list(RULES), default="")


def _blocks(n: int, pixels: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (4 * pixels))
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def _block_statistics(raw: NDArray) -> dict[str, Array]:
    """Statistics of a block (n, H, W) small enough for the cache."""
    n, height, width = raw.shape
    pixels = height * width
    work = np.float64 if raw.dtype.itemsize > 4 else np.float32
    images: NDArray[np.floating[Any]] = raw.astype(work)
    finite = None
    if not np.abs(images).max() <= LARGEST:  # also true of nan
        finite = np.abs(images) <= LARGEST
        images[~finite] = 0
    background = _background(images, finite)
    if finite is not None:
        images = np.where(finite, images, background[:, None, None])
    flat = images.reshape(n, pixels)
    peak = flat.max(axis=1)
    curvature = _second_differences(images)
    np.abs(curvature, out=curvature)
    # Neighbouring differences share pixels: every second one says as much, for half the time.
    noise = _MAD_TO_SIGMA / 6 * _median(curvature[:, ::2])
    sharpest = curvature.max(axis=1) / 4
    height_of_peak = peak - background
    light = flat - background[:, None]
    light *= light > _SIGNIFICANT * noise[:, None]
    statistics = {
        "peak": peak,
        "background": background,
        "noise_level": noise,
        "relative_noise": _ratio(noise, height_of_peak),
        "spike": _ratio(sharpest, height_of_peak),
        "saturation": (flat == peak[:, None]).mean(axis=1),
        "flat": (curvature == 0).mean(axis=1),
        "non_finite": np.zeros(n) if finite is None else 1 - finite.reshape(n, pixels).mean(axis=1),
        "negative": (flat < 0).mean(axis=1),
        "zero": (flat == 0).mean(axis=1),
    }
    return statistics | _moments(light, height, width)


def _background(images: NDArray, finite: NDArray | None) -> NDArray:
    """Median of the four corner squares of an eighth of the side, (n,); of finite pixels alone."""
    n, height, width = images.shape
    a, b = height // 8, width // 8
    rows, columns = [*range(a), *range(height - a, height)], [*range(b), *range(width - b, width)]
    corners = images[:, rows][:, :, columns].reshape(n, -1)
    if finite is None:
        return _median(corners)
    known = finite[:, rows][:, :, columns].reshape(n, -1)
    medians = [np.median(c[k]) if k.any() else 0.0 for c, k in zip(corners, known, strict=True)]
    return np.asarray(medians, images.dtype)


def _second_differences(images: NDArray) -> NDArray:
    """Second difference along rows and columns, (n, (H-2)(W-2)): kills planes, keeps noise times 6.

    The mask [[1,-2,1],[-2,4,-2],[1,-2,1]] of Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996).
    """
    across = images[:, :, :-2] + images[:, :, 2:]
    across -= images[:, :, 1:-1]
    across -= images[:, :, 1:-1]
    both = across[:, :-2] + across[:, 2:]
    both -= across[:, 1:-1]
    both -= across[:, 1:-1]
    return both.reshape(len(images), -1)


def _moments(light: NDArray, height: int, width: int) -> dict[str, Array]:
    """Flux, symmetry and place of the significant light (n, H*W); zeros where there is none."""
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(light.dtype)
    x -= (width - 1) / 2
    y -= (height - 1) / 2
    flux = light.sum(axis=1)
    radius = np.hypot(x, y)

    def mean(weight: NDArray) -> NDArray:
        # einsum, not BLAS: the same bits however many threads BLAS would use
        return _ratio(np.einsum("np,p->n", light, weight), flux)

    ring_radius = mean(radius)
    variance = mean(radius**2) - ring_radius**2
    turned = light - light[:, ::-1]
    np.abs(turned, out=turned)
    return {
        "flux": flux,
        "asymmetry": _ratio(turned.sum(axis=1), 2 * flux),
        "ring_radius": ring_radius,
        "ring_width": np.sqrt(np.maximum(variance, 0)),
        "offset": np.hypot(mean(x), mean(y)),
    }


def _median(values: NDArray) -> NDArray:
    """The upper median along the last axis; a partition, so it costs no sort."""
    middle = values.shape[1] // 2
    return np.partition(values, middle, axis=1)[:, middle]


def _ratio(part: NDArray, whole: NDArray) -> NDArray:
    """part / whole, zero where the whole is not positive."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
