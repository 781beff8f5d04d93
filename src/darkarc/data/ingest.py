"""Files to a store: a folder or archive of DeepLense images, checked one by one."""

import os
import sqlite3
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import Progress

from darkarc.data._ledger import Ledger
from darkarc.data._npy import BadFile
from darkarc.data._screening import Accepted, Format, Rules, class_name_of, examine, format_of
from darkarc.data._sources import ArchiveSource, FolderSource, IngestError, Listing, SourceFile, open_source
from darkarc.data.deeplense import decode_deeplense, instrument_of
from darkarc.data.store import Store, StoreWriter

__all__ = ["BadFile", "IngestError", "IngestReport", "ingest"]

OnBad = Literal["stop", "skip"]

REJECTED = "rejected.csv"
_CHUNK_FILES = 128
_CHUNK_BYTES = 16 * 2**20
_LEDGER = "ingest.sqlite"
_SHAPES = {"model_i": (150, 150), "model_ii": (64, 64), "model_iii": (64, 64)}


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did; `n_other` counts files that are no `.npy` and were left alone."""

    n_ingested: int
    n_rejected: int
    n_other: int
    store: Store

    @property
    def rejected(self) -> Path | None:
        """`rejected.csv` (file, reason) in the store's folder; None where nothing was rejected."""
        return self.store.path / REJECTED if self.n_rejected else None


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    on_bad: OnBad = "stop",
    log10_mass_range_ev: tuple[float, float] = (-24.0, -22.0),
    replace: bool = False,
    progress: bool = True,
) -> IngestReport:
    """Read every `.npy` below a folder, or in a `.tgz`, into a store.

    `on_bad` "stop" raises `BadFile` at the first file (in order) that is unfit; "skip" lists it in
    the store's `rejected.csv` and goes on. An interrupted ingest of the same files goes on where it
    was. Raises `IngestError` where the source as a whole cannot be used, `StoreError` for `out`.
    """
    files = open_source(source)
    listing = files.listing()
    rules = _rules(files, listing, log10_mass_range_ev)
    with _open_writer(files, listing, rules, Path(out), replace) as writer:
        ledger = _open_ledger(writer, listing.changed)
        try:
            _write(files, listing, rules, writer, ledger, on_bad, progress)
        except (BadFile, IngestError):
            # Whatever mends it changes the source: there is nothing to go on with.
            ledger.close()
            writer.discard()
            raise
        n_rejected = ledger.n_refused
        if n_rejected:
            writer.attach(REJECTED, ledger.rejected_csv())
        ledger.close()
        store = writer.commit()
    return IngestReport(len(store), n_rejected, listing.n_other, store)


# What the set is


def _rules(
    files: FolderSource | ArchiveSource, listing: Listing, log10_mass_range_ev: tuple[float, float]
) -> Rules:
    """The set's format and instrument, by the majority of files spread over the whole listing.

    Of an archive, whose end is far, its first files vote.
    """
    if not listing.voters:
        raise IngestError(
            f"{files.root}: no .npy file in it; expected a layout such as Model_II/axion/axion_sim_1.npy"
        )
    votes: Counter[Format] = Counter()
    complaint = ""
    for voter in listing.voters:
        try:
            class_name_of(voter, files.parents)
            image = decode_deeplense(voter.read(), voter.name, with_mass=False).image
        except BadFile as bad:
            complaint = complaint or str(bad)
        else:
            votes[format_of(image)] += 1
    if not votes:
        n_looked_at = len(listing.voters)
        raise IngestError(
            f"{files.root}: none of {n_looked_at} files looked at is fit; the first: {complaint}"
        )
    winner = max(votes, key=lambda vote: (votes[vote], vote.shape, vote.dtype))
    return Rules(winner, _instrument(files, listing), log10_mass_range_ev, files.parents)


def _instrument(files: FolderSource | ArchiveSource, listing: Listing) -> str | None:
    """The one preset that folder names tell, None where they tell none."""
    found = {instrument_of((*files.parents, *folders)) for folders in listing.folders}
    if len(found) > 1:
        names = ", ".join(sorted(name or "no Model_X" for name in found))
        raise IngestError(
            f"{files.root}: several instruments ({names}); a store holds one, ingest each alone"
        )
    return found.pop()


# Writing


def _open_writer(
    files: FolderSource | ArchiveSource, listing: Listing, rules: Rules, out: Path, replace: bool
) -> StoreWriter:
    name = files.parents[-1]
    # A folder called Model_II with images of another size is not what that instrument takes.
    agrees = rules.instrument and _SHAPES.get(rules.instrument) == rules.format.shape
    return StoreWriter(
        out,
        name=name,
        origin="deeplense",
        instrument=rules.instrument if rules.instrument and agrees else "unknown",
        shape=rules.format.shape,
        dtype=rules.format.dtype,
        parameters={
            "source": name,
            "source_sha256": listing.digest,
            "log10_mass_range_ev": list(rules.log10_mass_range_ev),
        },
        replace=replace,
    )


def _open_ledger(writer: StoreWriter, changed: str) -> Ledger:
    """The ledger at the point where the writer stands.

    Both start over where they do not agree, or files were written anew since the call before.
    """
    path = writer.folder / _LEDGER
    try:
        ledger = Ledger(path)
        if ledger.source == changed and ledger.go_back_to(writer.n_written):
            return ledger
        ledger.close()
    except sqlite3.DatabaseError:
        # A power cut may have torn it.
        pass
    writer.start_over()
    ledger = Ledger(path)
    ledger.source = changed
    return ledger


def _write(
    files: FolderSource | ArchiveSource,
    listing: Listing,
    rules: Rules,
    writer: StoreWriter,
    ledger: Ledger,
    on_bad: OnBad,
    progress: bool,
) -> None:
    todo = islice(files.files(), ledger.n_files, None)
    with Progress(disable=not progress, transient=True) as bar:
        total = files.n_bytes if isinstance(files, ArchiveSource) else listing.n_files
        task = bar.add_task("ingest", total=total)
        if on_bad == "stop" and (earlier := ledger.first_refused()):
            raise earlier
        for results in _examined(todo, rules):
            accepted, refused = ledger.enter(results)
            if refused and on_bad == "stop":
                raise refused[0]
            _append(writer, accepted)
            done = files.n_read_bytes if isinstance(files, ArchiveSource) else ledger.n_files
            bar.update(task, completed=done)
    if writer.n_written == 0:
        first = ledger.first_refused()
        raise IngestError(f"{files.root}: none of its {ledger.n_files} files is fit; the first: {first}")


def _examined(todo: Iterator[SourceFile], rules: Rules) -> Iterator[list[Accepted | BadFile]]:
    """Chunks of files, examined a few at a time and handed on in their order."""
    height, width = rules.format.shape
    n_files = min(_CHUNK_FILES, max(1, _CHUNK_BYTES // (8 * height * width)))
    n_workers = min(4, os.cpu_count() or 1)
    waiting: deque[Future[list[Accepted | BadFile]]] = deque()
    with ThreadPoolExecutor(n_workers) as pool:
        for chunk in _chunks(todo, n_files):
            waiting.append(pool.submit(_examine_all, chunk, rules))
            if len(waiting) > n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunks(todo: Iterator[SourceFile], n_files: int) -> Iterator[list[SourceFile]]:
    """Files by the n, fewer where an archive's are large: they are in memory already."""
    chunk: list[SourceFile] = []
    n_bytes = 0
    for file in todo:
        chunk.append(file)
        n_bytes += file.n_bytes
        if len(chunk) == n_files or n_bytes > _CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _examine_all(chunk: list[SourceFile], rules: Rules) -> list[Accepted | BadFile]:
    return list(map(partial(examine, rules=rules), chunk))


def _append(writer: StoreWriter, accepted: list[Accepted]) -> None:
    if accepted:
        writer.append(
            np.stack([sample.image for sample in accepted]),
            {
                "sample_id": [sample.name for sample in accepted],
                "class": [sample.class_name for sample in accepted],
                "log10_axion_mass_ev": [sample.log10_mass_ev for sample in accepted],
                "group_id": [sample.group_id for sample in accepted],
                "pixel_sha256": [sample.pixel_sha256 for sample in accepted],
                "split": [sample.split for sample in accepted],
            },
        )
