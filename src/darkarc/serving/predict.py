"""`darkarc predict`: any number of image files to one table, a row an image."""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET, TARGET_CLASS
from darkarc.data.readers import ImageItem, iter_images, said_of
from darkarc.models import QUANTILE_LEVELS, Posterior, Regressor
from darkarc.models.flags import Reference, limits, unlikeness
from darkarc.serving.counting import counting
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.table import Journal, Row, check_ending, printable, table_row, write_table

if TYPE_CHECKING:
    from darkarc.serving.pictures import Album

LEVELS = (0.5, *QUANTILE_LEVELS)
UNREADABLE = "not readable: "
"""How the flag of a file begins that gave no image."""


class PredictError(ValueError):
    """A prediction that cannot be made as asked."""


@dataclass
class PredictSummary:
    """What became of the images of one call."""

    out: Path
    n_images: int = 0
    n_mass: int = 0
    """got a mass, flagged or not"""
    n_flagged: int = 0
    """of these, with a flag"""
    n_other_class: int = 0
    """class probabilities, but no mass: not of the target's class"""
    n_withheld: int = 0
    """read, but too unlike the training images for any number"""
    n_unreadable: int = 0
    n_resumed: int = 0
    """of all, taken over from an interrupted call"""
    passed_over: Counter[str] = field(default_factory=Counter)
    """other files of the folders, by their endings"""

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.n_images += 1
            if row["log10_mass_median"] is not None:
                self.n_mass += 1
                self.n_flagged += bool(row["flag"])
            elif row["p_axion"] is not None:
                self.n_other_class += 1
            elif row["flag"].startswith(UNREADABLE):
                self.n_unreadable += 1
            else:
                self.n_withheld += 1

    def __str__(self) -> str:
        flagged = f" ({self.n_flagged} of them flagged)" if self.n_flagged else ""
        others = f"; {said_of(self.passed_over)}" if self.passed_over else ""
        return (
            f"{self.out}: {self.n_images} images: {self.n_mass} with a mass{flagged}, {self.n_other_class} "
            f"of another class, {self.n_withheld} withheld, {self.n_unreadable} not readable{others}"
        )


def predict_files(
    regressor: Regressor | OnnxRegressor,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    target: str | None = None,
    gate: float = 0.5,
    batch_size: int = 64,
    progress: bool = True,
    resume: bool = True,
    pictures: str | Path | None = None,
    exact: bool = False,
    workers: int = 1,
) -> PredictSummary:
    """Answer every image under `paths` and write the table `out` (.csv or .parquet, columns `COLUMNS`).

    paths: files, folders and stores, as `darkarc.data.readers.iter_images` takes them.
    target: the column to answer; default: `log10_axion_mass_ev`, or the regressor's only target.
    gate: an image whose probability of the target's class is lower gets no mass.
    batch_size: images in memory at once, and what a kill can cost; with `exact` it costs the lenses that
        were being computed.
    resume: go on where a killed call with the same regressor, paths and options stopped, if the images that
        it answered are still the same.
    pictures: a folder for a picture of each image that was read, named by its row.
    exact: posteriors of the simulator's own likelihood, in so many processes (`workers`), where a lens of
        the training's form explains the image (`darkarc.serving.exact`).

    The table is complete or absent. An image the regressor must not judge (another size, far from the
    training images, not readable) has empty numbers and the reason in `flag`.

    Raises `PredictError` if there is nothing to read, no exact posterior or no folder for pictures,
    `TableError` if `out` cannot be written.
    """
    out = Path(out)
    check_ending(out)
    if batch_size < 1 or not 0 <= gate <= 1:
        raise PredictError(f"expected batch_size >= 1 and a gate in [0, 1], found {batch_size} and {gate:g}")
    answers = _answers(regressor, _target(regressor, target), gate, exact, workers)
    album = None if pictures is None else _album(pictures)
    listed = [printable(str(path)) for path in paths]
    identity = {
        "regressor": fingerprint(regressor), "paths": listed, "target": answers.target, "gate": gate,
        "batch_size": batch_size if answers.at_once is None else None, "exact": exact,
        # What the journal holds has its picture only where pictures were asked for.
        "pictures": None if pictures is None else printable(str(pictures)),
    }  # fmt: skip
    with Journal(out, identity, resume=resume) as journal, counting("predict", progress) as advance:
        items, summary = _after_journal(journal, paths, out)
        advance(summary.n_resumed)
        with closing(_portions(answers, items, batch_size)) as portions:
            for portion, given in portions:
                rows = [answer.row for answer in given]
                if album is not None:
                    # Before the journal: what it has, has its picture.
                    numbered = enumerate(zip(portion, given, strict=True), summary.n_images)
                    for number, (item, answer) in numbered:
                        album.add(number, answer.row, item.image, answer.posterior)
                journal.append(rows, images_digest(portion))
                summary.add(rows)
                advance(len(rows))
                del portion, given
        if summary.n_images == 0:
            journal.remove()
            raise PredictError(
                f"no images under {', '.join(listed) or '(no path)'}: give files, folders or stores"
            )
        write_table(out, (row for batch, _ in journal.batches() for row in batch))
        journal.remove()
    return summary


def _portions(
    answers: "Answers", items: Iterator[ImageItem], batch_size: int
) -> Generator[tuple[list[ImageItem], list["Answer"]], None, None]:
    """Images and their answers: batch by batch, or one by one where no answer hangs on its batch."""
    while chunk := list(islice(items, batch_size)):
        given = answers.stream(chunk)
        size = len(chunk) if answers.at_once is None else 1
        for begin in range(0, len(chunk), size):
            yield chunk[begin : begin + size], list(islice(given, size))
        del chunk, given  # before the next batch is read


def _answers(
    regressor: Regressor | OnnxRegressor, target: str, gate: float, exact: bool, workers: int
) -> "Answers":
    if not exact:
        return Answers(regressor, target, gate)
    from darkarc.serving.exact import ExactAnswers  # needs the simulator, which takes seconds to import

    return ExactAnswers(regressor, target, gate, workers)


def _album(folder: str | Path) -> "Album":
    # matplotlib takes a second to import: only for those who want pictures.
    from darkarc.serving.pictures import Album

    try:
        return Album(folder)
    except OSError as error:
        raise PredictError(
            f"--pictures {folder}: expected a folder to write into ({error.strerror}); give another one"
        ) from error


def fingerprint(regressor: Regressor | OnnxRegressor) -> str:
    """SHA-256 of everything that its answers depend on."""
    if isinstance(regressor, OnnxRegressor):
        return regressor.sha256
    digest = hashlib.sha256(regressor.spec.to_json().encode())
    for name, tensor in regressor.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def default_target(regressor: Regressor | OnnxRegressor) -> str:
    """What is answered unless another target is asked for."""
    return DEFAULT_TARGET if DEFAULT_TARGET in regressor.targets else regressor.targets[0]


def _target(regressor: Regressor | OnnxRegressor, target: str | None) -> str:
    known = regressor.targets
    if target is None:
        target = default_target(regressor)
    if target not in known:
        raise PredictError(f"this regressor knows {', '.join(known)}, not {target!r}")
    return target


@dataclass(frozen=True)
class Answer:
    """The row of one image, and where its posterior is: None if it is withheld."""

    row: Row
    among: Posterior | None = None
    place: int = 0

    @property
    def posterior(self) -> Posterior | None:
        """Of length 1."""
        return None if self.among is None else self.among[self.place]


@dataclass(frozen=True, eq=False)
class Sharpened:
    """A better posterior of one image, of length 1; or None, and why there is none."""

    posterior: Posterior | None
    why_not: str


class Answers:
    """Turns a chunk of images into rows.

    at_once: images that the regressor sees together, None: the chunk. Where it is a number, no answer
        hangs on the chunk, and a journal may hold a part of one.
    """

    at_once: int | None = None

    def __init__(self, regressor: Regressor | OnnxRegressor, target: str, gate: float) -> None:
        self.regressor, self.target, self.gate = regressor, target, gate
        self.reference = Reference(regressor.spec.statistics, regressor.shape)
        self.class_name = TARGET_CLASS[target]

    def rows(self, items: Iterable[ImageItem]) -> list[Row]:
        """One row an item, in order."""
        return [answer.row for answer in self.of(items)]

    def of(self, items: Iterable[ImageItem]) -> list[Answer]:
        """One answer an item, in order."""
        return list(self.stream(items))

    def stream(self, items: Iterable[ImageItem]) -> Iterator[Answer]:
        """As `of`, each answer as soon as it and those before it are there."""
        answers, images, places = [], [], []
        for item in items:
            refusal = self._refusal(item)
            answers.append(Answer(table_row(name_of(item), refusal)))
            # Only images of the right shape are kept, whatever sizes the others have.
            if item.image is not None and not refusal:
                images.append(np.asarray(item.image, np.float32))
                places.append(len(answers) - 1)
        kept: dict[int, int] = {}
        later: Iterator[Answer] = iter(())
        if images:
            stack = np.stack(images)
            verdicts = self.reference.judge(stack)
            for place, verdict in zip(places, verdicts, strict=True):
                answers[place].row["flag"] = verdict.flag
            kept = {places[k]: k for k, verdict in enumerate(verdicts) if not verdict.withheld}
        if kept:
            said = [(answers[place].row["path"], verdicts[k].flag) for place, k in kept.items()]
            later = self._answered(stack[list(kept.values())], said)
        for place, answer in enumerate(answers):
            yield next(later) if place in kept else answer

    def _refusal(self, item: ImageItem) -> str:
        if item.image is None:
            return UNREADABLE + (item.error or "no image")
        return self.reference.wrong_shape(item.image.shape)

    def _answered(self, images: NDArray[np.float32], said: list[tuple[str, str]]) -> Iterator[Answer]:
        """Answers for images (N, H, W) with their names and flags."""
        posterior = self.regressor.predict(images, target=self.target, batch_size=self.at_once or len(images))
        quantiles, classes = posterior.quantile(LEVELS), posterior.class_probability
        share, unlike, limit = (
            classes[:, CLASSES.index(self.class_name)],
            unlikeness(posterior),
            limits(posterior),
        )
        wanted = [k for k, one in enumerate(unlike) if not one.withheld and share[k] >= self.gate]
        sharpened = self._sharpened(images, posterior, wanted)
        for k, (name, noted) in enumerate(said):
            flag = _joined(noted, unlike[k].flag)
            if unlike[k].withheld:
                yield Answer(table_row(name, flag))
            elif k not in wanted:
                other = f"not {self.class_name}-like (p_{self.class_name}={share[k]:.2g})"
                yield Answer(table_row(name, _joined(flag, other), classes[k]))
            elif (better := next(sharpened, _NOT_SHARPENED)).posterior is None:
                flag = _joined(flag, better.why_not, limit[k])
                yield Answer(table_row(name, flag, classes[k], quantiles[k]), posterior, k)
            else:
                flag = _joined(flag, limits(better.posterior)[0])
                values = better.posterior.quantile(LEVELS)[0]
                yield Answer(table_row(name, flag, classes[k], values), better.posterior)

    def _sharpened(
        self, images: NDArray[np.float32], posterior: Posterior, wanted: Sequence[int]
    ) -> Iterator[Sharpened]:
        """Better posteriors of those images that are to get a mass, in order; none by default."""
        return iter(())


_NOT_SHARPENED = Sharpened(None, "")


def name_of(item: ImageItem) -> str:
    """The `path` of an image in the table: its file, and `#index` within a file of several."""
    return str(item.path) if item.index is None else f"{item.path}#{item.index}"


def images_digest(items: Iterable[ImageItem]) -> str:
    """BLAKE2b of names, pixels and reasons of images."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        form = None if item.image is None else (item.image.dtype.str, item.image.shape)
        digest.update(repr((name_of(item), form, item.error)).encode())
        if item.image is not None:
            digest.update(np.ascontiguousarray(item.image).tobytes())
    return digest.hexdigest()


def _joined(*flags: str) -> str:
    return "; ".join(flag for flag in flags if flag)


def _after_journal(
    journal: Journal, paths: Sequence[str | Path], out: Path
) -> tuple[Iterator[ImageItem], PredictSummary]:
    """The images that the journal does not hold yet, and what it holds; emptied if it speaks about others."""
    summary = PredictSummary(out)
    items = iter_images(paths, summary.passed_over)
    for batch, images in journal.batches():
        if images_digest(islice(items, len(batch))) != images:
            # Files came, went or changed since: nothing of the journal can be trusted.
            journal.clear()
            summary = PredictSummary(out)
            return iter_images(paths, summary.passed_over), summary
        summary.add(batch)
    summary.n_resumed = summary.n_images
    return items, summary
