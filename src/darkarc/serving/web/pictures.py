"""A lens image as a small PNG for the page."""

import base64
import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

LARGEST_SIDE = 256
"""Pixels; a larger image is shown by means over blocks."""

LOW, HIGH = 0.5, 99.8
"""Percentiles of the pixels that become the darkest and the brightest colour."""

SOFTENING = 0.2
"""Of the arcsinh stretch, in units of that range: faint arcs beside a bright source stay visible."""


def png_uri(image: NDArray[np.generic]) -> str:
    """The image (H, W), its first row at the bottom as in the report's figures, as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(levels(image))).decode("ascii")


def levels(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """0 to 255 for each pixel of the shown picture, first row on top."""
    pixels = _reduced(np.asarray(image, np.float64))
    low, high = np.percentile(pixels, [LOW, HIGH])
    share = np.clip((pixels - low) / (high - low), 0, 1) if high > low else np.zeros_like(pixels)
    stretched = np.arcsinh(share / SOFTENING) / np.arcsinh(1 / SOFTENING)
    return np.rint(255 * stretched[::-1]).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of 8-bit pixels (H, W) in the colours of magma (PNG specification, third edition)."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", _palette()),
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def _palette() -> bytes:
    from matplotlib import colormaps

    colours = np.rint(255 * colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8)
    return colours.tobytes()


def _reduced(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    step = -(-max(pixels.shape) // LARGEST_SIDE)
    if step == 1:
        return pixels
    height, width = (max(side // step, 1) * step for side in pixels.shape)
    padded = pixels[:height, :width]
    if min(pixels.shape) < step:
        return padded[:: max(1, step), ::step]
    return padded.reshape(height // step, step, width // step, step).mean(axis=(1, 3))
