"""`OnnxRegressor`: an exported regressor behind the same interface as the torch one."""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models import Grid, Posterior, Prediction, RegressorError, as_image_batch, to_posterior
from darkarc.models.population_errors import KEY
from darkarc.serving.onnx_file import INPUT, MAX_BYTES, OnnxError, outputs_of, read_onnx

IN_CACHE = 4
"""Images that are fitted at once: intermediate results of more leave the processor's cache, and 64 at once
are answered 1.7 times slower. Such portions are answered side by side, a thread each: threads that share the
small products of one portion bring half as much."""


class OnnxRegressor(nn.Module):
    """Raw images (B, 1, H, W) of the training instrument, any real dtype -> `Prediction`.

    Computed by ONNX Runtime on the CPU; for answers only: it has no parameters and passes no gradient.

    path: a file written by `darkarc.serving.export_onnx`.
    threads: CPU threads of one answer; 0: as many as there are cores.
    max_bytes: a larger file is refused unread.

    Raises `OnnxError` if the file is not such a file (see `darkarc.serving.onnx_file`).
    """

    def __init__(self, path: str | Path, *, threads: int = 0, max_bytes: int = MAX_BYTES) -> None:
        import onnxruntime

        super().__init__()
        if threads < 0:
            raise OnnxError(f"threads: expected 0 (all cores) or more, found {threads}")
        checked = read_onnx(path, max_bytes=max_bytes)
        self.path, self.spec = checked.path, checked.spec
        self._outputs = outputs_of(checked.spec)
        self.sha256 = hashlib.sha256(checked.content).hexdigest()

        def session(n_threads: int) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = n_threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # Operators that differ in the last digit from one run to the next are not for science.
            options.use_deterministic_compute = True
            try:
                # From the very bytes that were checked: without a path, no other file can be reached.
                return onnxruntime.InferenceSession(
                    checked.content, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
                raise OnnxError(f"{path}: ONNX Runtime refuses it: {error}") from error

        self._session = session(threads)
        bins = ModelConfig.model_validate(self.spec.model).bins
        fitted = self.spec.model.get("lens_residual", "none") != "none"
        self._side_by_side = (threads or os.cpu_count() or 1) if fitted else 0
        if self._side_by_side > 1:
            self._single = session(1)
            self._pool = ThreadPoolExecutor(self._side_by_side, "darkarc-onnx")
        self._edges = {name: Grid(*prior, bins).edges.numpy() for name, prior in self.spec.targets.items()}
        self.eval()

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.spec.targets)

    @property
    def shape(self) -> tuple[int, int]:
        return self.spec.shape

    def edges(self, target: str | None = None) -> NDArray[np.float64]:
        """(K+1,) bin edges of a target's grid (default: the first target)."""
        return self._edges[self._name(target)]

    def forward(self, images: Tensor) -> Prediction:
        batch = as_image_batch(images, self.shape)
        device = batch.device
        array = batch.detach().to("cpu", torch.float32).numpy()
        parts = self._answers(array)
        joined = (np.concatenate(each) for each in zip(*parts, strict=True))
        named = zip(self._outputs, joined, strict=True)
        return Prediction(**{name: torch.from_numpy(answer).to(device) for name, answer in named})

    def _answers(self, images: NDArray[np.float32]) -> list[list[NDArray[np.float32]]]:
        """As `_answer`, of portions of the images, in order."""
        n = len(images)
        if not self._side_by_side:
            return [self._answer(images, self._session)]
        size = max(1, min(IN_CACHE, math.ceil(n / self._side_by_side)))
        portions = [images[start : start + size] for start in range(0, max(n, 1), size)]
        if len(portions) == 1 or self._side_by_side == 1:
            return [self._answer(portion, self._session) for portion in portions]
        return list(self._pool.map(lambda portion: self._answer(portion, self._single), portions))

    def _answer(self, images: NDArray[np.float32], session: Any) -> list[NDArray[np.float32]]:
        """The file's outputs for images (B, 1, H, W)."""
        try:
            answers: list[NDArray[np.float32]] = session.run(
                self._outputs, {INPUT: np.ascontiguousarray(images)}
            )
        except Exception as error:  # as above
            raise OnnxError(
                f"{self.path}: ONNX Runtime failed on a batch of {len(images)}: {error}"
            ) from error
        return answers

    def predict(
        self, images: NDArray[Any] | Tensor, *, target: str | None = None, batch_size: int = 256
    ) -> Posterior:
        """Posterior of one target (default: the first) for images (N, H, W), (N, 1, H, W) or (H, W).

        Raises `RegressorError` for images of another shape.
        """
        name = self._name(target)
        index = self.targets.index(name)
        parts = [self(chunk) for chunk in as_image_batch(images, self.shape).split(batch_size)]
        population = self.spec.statistics.get(KEY)
        return to_posterior([part.cpu() for part in parts], index, self._edges[name], name, population)

    def _name(self, target: str | None) -> str:
        if target is None:
            return self.targets[0]
        if target not in self._edges:
            raise RegressorError(f"this regressor knows {', '.join(self.targets)}, not {target!r}")
        return target

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"an OnnxRegressor is not pickled; load {self.path} again in the other process")
