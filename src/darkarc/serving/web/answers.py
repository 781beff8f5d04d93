"""What the page shows of a file: rows of the prediction table, pictures, posteriors."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from darkarc.config import TARGET_CLASS
from darkarc.data.readers import ImageItem, iter_images
from darkarc.evaluation.style import NAMES
from darkarc.evaluation.zoom import shown_range, significant_digits
from darkarc.models import Posterior, Regressor
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.predict import UNREADABLE, Answers, default_target, fingerprint
from darkarc.serving.table import COLUMNS, Row, table_row
from darkarc.serving.web.pictures import png_uri

BATCH = 8
"""Images in memory at once."""

UNITS = {
    "log10_axion_mass_ev": "log10(m / eV)",
    "log10_subhalo_mass_msun": "log10(M / M_sun)",
    "n_subhalos": "N",
}


def model_facts(regressor: Regressor | OnnxRegressor, name: str, gate: float) -> dict[str, Any]:
    """What the page says of the model it asks."""
    spec, target = regressor.spec, default_target(regressor)
    return {
        "model": name,
        "sha256": fingerprint(regressor),
        "instrument": spec.instrument,
        "shape": list(spec.shape),
        "target": target,
        "target_name": NAMES[target],
        "unit": UNITS[target],
        "target_class": TARGET_CLASS[target],
        "prior": list(spec.targets[target]),
        "gate": gate,
        "columns": list(COLUMNS),
    }


class FileAnswers:
    """Answers of one regressor. gate: as of `darkarc predict`; max_images: of one file."""

    def __init__(self, regressor: Regressor | OnnxRegressor, gate: float, max_images: int) -> None:
        self._answers = Answers(regressor, default_target(regressor), gate)
        self.max_images = max_images

    def of_file(self, path: Path, name: str) -> dict[str, Any]:
        """{"images": …, "more": whether the file holds more than were answered}.

        An image is {"row": its row of the table, "picture": a data: address or None, "posterior": None or
        what `_figure_of` gives}. `name` stands for the path in all that is said.
        """
        items = (_renamed(item, path, name) for item in iter_images([path]))
        images = list(self._images(islice(items, self.max_images)))
        return {"images": images, "more": next(items, None) is not None}

    def _images(self, items: Iterator[ImageItem]) -> Iterator[dict[str, Any]]:
        while chunk := list(islice(items, BATCH)):
            for item, answer in zip(chunk, self._answers.of(chunk), strict=True):
                posterior = answer.posterior
                yield {
                    "row": answer.row,
                    "picture": None if item.image is None else png_uri(item.image),
                    "posterior": None if posterior is None else _figure_of(posterior),
                }


def _figure_of(posterior: Posterior) -> dict[str, Any]:
    """{"low", "high": ends of the prior, "density": of its bins, "shown": [from, to], what is drawn of them,
    "decimals": of the numbers beside it}, for a posterior of length 1."""
    low, high = posterior.interval(0.68)[0]
    return {
        "low": float(posterior.edges[0]),
        "high": float(posterior.edges[-1]),
        "density": [float(f"{value:.4g}") for value in posterior.density[0]],
        "shown": list(shown_range(posterior)),
        "decimals": significant_digits(high - low),
    }


def _renamed(item: ImageItem, path: Path, name: str) -> ImageItem:
    """The item under the sender's name: where its file lies here is nobody's business."""
    error = None if item.error is None else item.error.replace(str(path), name)
    return replace(item, path=item.path.replace(str(path), name, 1), error=error)


def refused_file(name: str, reason: str) -> dict[str, Any]:
    """The answer for a file that is not read, in the form of `FileAnswers.of_file`."""
    row = table_row(name, UNREADABLE + reason)
    return {"images": [{"row": row, "picture": None, "posterior": None}], "more": False}


def rest_of(name: str, max_images: int) -> Row:
    """The row of the table that stands for the images of a file that were not answered."""
    return table_row(
        name,
        f"cut short: only its first {max_images} images are answered here (serve.max_images); "
        "`darkarc predict` answers all of them",
    )


def table_text(rows: Sequence[Row], *, header: bool) -> str:
    """Lines of the table, byte for byte those of `darkarc predict --out ….csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def warm_up(regressor: Regressor | OnnxRegressor) -> None:
    """One answer before the limits: what the libraries set aside at their first use is not a file's fault."""
    regressor.predict(np.ones((BATCH, *regressor.shape), np.float32), batch_size=BATCH)
    png_uri(np.zeros((8, 8), np.float32))
