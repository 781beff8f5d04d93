"""A page of images with a title each, as PNG."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darkarc.durable import write_file

_COLUMNS = 6
_CELL_INCHES = (2.1, 2.55)
_LARGEST_DRAWN = 1e30  # beyond it, float32 arithmetic of the drawing overflows


def contact_sheet(images: Sequence[NDArray], titles: Sequence[str], path: Path, *, heading: str = "") -> None:
    """Draw images (H, W) six to a row, each on its own scale, with a title of up to three lines above it.

    Brightness follows arcsinh between the image's smallest and largest finite pixel, both printed
    below it; pixels that are not finite are red. The file is complete or absent, and the same images
    give the same bytes.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(images) / _COLUMNS))
    width, height = _CELL_INCHES
    figure = Figure(figsize=(width * _COLUMNS, height * rows + 0.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    palette = colormaps["inferno"].with_extremes(bad="red")
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        shown, low, high = _stretched(image)
        axis.set_axis_on()
        axis.set(xticks=[], yticks=[])
        axis.imshow(shown, cmap=palette, origin="lower", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=7, fontfamily="DejaVu Sans")
        axis.set_xlabel(f"{low:.3g} … {high:.3g}", fontsize=6.5)
    figure.suptitle(heading, fontsize=10)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    write_file(path, content.getvalue())


def _stretched(image: NDArray) -> tuple[NDArray[np.float64], float, float]:
    """The image between 0 and 1 for the eye, nan where a pixel is not finite; its smallest and largest."""
    values = image.astype(np.float64)
    values[~(np.abs(values) <= _LARGEST_DRAWN)] = np.nan
    if np.isnan(values).all():
        return values, math.nan, math.nan
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values) + 0 * values
    return np.arcsinh(10 * scaled) / np.arcsinh(10), low, high
