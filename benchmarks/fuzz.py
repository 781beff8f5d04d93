"""Feed damaged and hostile files to every reader, and see what happens.

`python benchmarks/fuzz.py --inputs 2000 --seed 1` mutates valid files (bits, bytes, lengths, pieces cut out,
doubled or exchanged with pieces of other files) and hands each to its reader in this process. Allowed are an
answer and an error of ours; everything else is a finding: another exception, more than `HANG_S` seconds, more
than `MEMORY_MB` of memory beyond the start, a file outside the input's folder, a process, a name looked up by
pickle, a connection. The table says how many inputs were tried, refused and read. Exit status 1 after a
finding, whose input is kept in `--keep`.
"""

import argparse
import io
import json
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HANG_S = 20
MEMORY_MB = 600
WATCHED = (
    "subprocess.Popen",
    "os.system",
    "os.posix_spawn",
    "os.exec",
    "pickle.find_class",
    "socket.connect",
)

Reader = Callable[[Path], object]

_seen: list[str] = []


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    name: str
    tried: int = 0
    refused: int = 0
    read: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


class Hang(BaseException):
    """Raised by the alarm: no reader may catch it."""


# --- valid files ---


def valid_files(folder: Path) -> dict[str, tuple[list[Path], Reader]]:
    """Reader name -> valid inputs (files, or folders of which one file is damaged) and the reader."""
    import darkarc
    from darkarc import config
    from darkarc.data.deeplense import read_deeplense
    from darkarc.data.readers import iter_images
    from darkarc.data.store import Store
    from darkarc.models import load_regressor
    from darkarc.serving.onnx_file import read_onnx
    from darkarc.tracking import read_run
    from darkarc.tuning import apply_winner
    from darkarc.tuning.study import load_study

    image = darkarc.simulate("model_ii", log10_mass_ev=[-23.0], noise="published", seed=1)[0]
    defaults = config.Config()

    def images(path: Path) -> object:
        errors = [item.error for item in iter_images([path]) if item.image is None]
        if errors:
            raise OSError("; ".join(str(error) for error in errors))
        return None

    regressor = _regressor(folder)
    store = _store(folder, image)
    study = Path(__file__).resolve().parents[1] / "experiments" / "bayesian.yaml"
    return {
        "npy": ([_npy(folder, image), _npy(folder, image.astype(np.float32), "flat")], images),
        "npy, object arrays": (_object_arrays(folder, image), read_deeplense),
        "npz": ([_npz(folder, image)], images),
        "fits": ([_fits(folder, image)], images),
        "hdf5": ([_hdf5(folder, image)], images),
        "tgz": ([_archive(folder, image)], images),
        "store": ([store], lambda path: Store.open(path).images(range(4))),
        "params.yaml": ([_text(folder, "params.yaml", config.template())], config.load),
        "study": ([_text(folder, "study.yaml", study.read_text())], lambda path: load_study(path, defaults)),
        "winner.yaml": ([_winner(folder)], lambda path: apply_winner(defaults, path)),
        "run.json": ([_run(folder)], read_run),
        "regressor": ([regressor[0]], load_regressor),
        "onnx": ([regressor[1]], read_onnx),
    }


def _npy(folder: Path, image: np.ndarray, name: str = "plain") -> Path:
    path = folder / f"{name}.npy"
    np.save(path, image)
    return path


def _object_arrays(folder: Path, image: np.ndarray) -> list[Path]:
    made = []
    for name, content in {
        "pair": [image, 1e-23],
        "rows": [np.array(list(image), dtype=object), 1e-23],
    }.items():
        array = np.empty(2, dtype=object)
        array[0], array[1] = content
        np.save(folder / f"axion_sim_{name}.npy", array, allow_pickle=True)
        made.append(folder / f"axion_sim_{name}.npy")
    return made


def _npz(folder: Path, image: np.ndarray) -> Path:
    np.savez_compressed(folder / "lenses.npz", a=image, b=np.stack([image, image]))
    return folder / "lenses.npz"


def _fits(folder: Path, image: np.ndarray) -> Path:
    from astropy.io import fits

    fits.PrimaryHDU(image.astype(">f4")).writeto(folder / "lens.fits")
    return folder / "lens.fits"


def _hdf5(folder: Path, image: np.ndarray) -> Path:
    import h5py

    with h5py.File(folder / "lens.h5", "w") as file:
        file.create_dataset("images", data=np.stack([image, image]), compression="gzip")
    return folder / "lens.h5"


def _archive(folder: Path, image: np.ndarray) -> Path:
    content = io.BytesIO()
    np.save(content, image)
    with tarfile.open(folder / "Model_II.tgz", "w:gz") as archive:
        for name in ("Model_II/no_sub/no_sub_sim_1.npy", "Model_II/cdm/cdm_sim_2.npy"):
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))
    return folder / "Model_II.tgz"


def _store(folder: Path, image: np.ndarray) -> Path:
    from darkarc.data.store import StoreWriter

    writer = StoreWriter(
        folder / "store",
        name="s",
        origin="fuzz",
        instrument="x",
        shape=image.shape,
        dtype="float32",
        parameters={},
    )
    with writer:
        writer.append(
            np.stack([image] * 4).astype(np.float32),
            {"sample_id": list("abcd"), "class": ["axion", "cdm", "no_sub", "cdm"]},
        )
        writer.commit()
    return folder / "store"


def _regressor(folder: Path) -> tuple[Path, Path]:
    from darkarc.config import ModelConfig
    from darkarc.models import Regressor, RegressorSpec, save_regressor
    from darkarc.serving import export_onnx

    model = ModelConfig(width=0.25, bins=16, novelty="none").model_dump(mode="json")
    spec = RegressorSpec(
        {"log10_axion_mass_ev": (-24.0, -22.0)}, (64, 64), model, {"mean": 0.1, "std": 0.2}, "x"
    )
    regressor = Regressor(spec).eval()
    return save_regressor(regressor, folder / "regressor"), export_onnx(regressor, folder / "model.onnx")


def _winner(folder: Path) -> Path:
    from darkarc.config import Config
    from darkarc.tuning.winner import no_search, write_winner

    write_winner(no_search(Config()), folder / "winner.yaml")
    return folder / "winner.yaml"


def _run(folder: Path) -> Path:
    from darkarc.tracking import RunRecord, write_run

    write_run(folder / "run.json", RunRecord("a" * 32, "1", "b" * 64, "c" * 32))
    return folder / "run.json"


def _text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


# --- mutations ---


def mutate(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four changes, of kinds that find different bugs."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind, size = chance.randrange(8), max(1, len(data))
        at = chance.randrange(size)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:  # a length or a number becomes extreme
            value = chance.choice((0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1 << 40))
            data[at : at + 8] = value.to_bytes(8, chance.choice(("little", "big")))
        elif kind == 3:
            data[at:at] = data[at : at + chance.randrange(1, 200)]
        elif kind == 4 and other:
            start = chance.randrange(len(other))
            data[at : at + 64] = other[start : start + 64]
        elif kind == 5:  # digits: text formats, headers
            digits = [k for k, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
            if digits:
                data[chance.choice(digits)] = chance.choice(b"0123456789-e.")
        elif kind == 6:
            del data[at : at + chance.randrange(1, 100)]
        else:
            data[at:at] = chance.choice(
                (b"\x00" * 64, b"[" * 300, b"{a: &x [*x]}\n", b"../../x", b"\xff\xfe", b"1e999")
            )
    return bytes(data)


def write_input(valid: Path, others: list[Path], target: Path, chance: random.Random) -> None:
    """A damaged copy of a file, or of a folder with one damaged file."""
    other = chance.choice(others)
    pieces = b"" if other.is_dir() else other.read_bytes()
    if valid.is_dir():
        shutil.copytree(valid, target)
        victim = chance.choice(sorted(p for p in target.rglob("*") if p.is_file()))
        content = mutate(victim.read_bytes(), pieces, chance)
        victim.write_bytes(content)
        if chance.random() < 0.5:
            _seal_again(target, victim, content)
    else:
        target.write_bytes(mutate(valid.read_bytes(), pieces, chance))


def _seal_again(folder: Path, victim: Path, content: bytes) -> None:
    """What a hostile author would do: give the damaged file its right digest and size in the manifest."""
    import hashlib

    manifest = folder / "manifest.json"
    if victim == manifest:
        return
    tree = json.loads(manifest.read_text())
    digest = hashlib.sha256(content).hexdigest()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if node.get("file") == victim.name:
                node |= {"sha256": digest, "bytes": len(content)}
            if victim.name == "samples.parquet" and "samples_sha256" in node:
                node |= {"samples_sha256": digest, "samples_bytes": len(content)}
            if isinstance(node.get(victim.name), str):
                node[victim.name] = digest
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(tree)
    manifest.write_text(json.dumps(tree))


# --- running ---


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event in WATCHED:
        _seen.append(f"{event} {arguments!r:.120}")


def _alarm(*_: object) -> None:
    raise Hang


def is_ours(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "darkarc"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(
    name: str,
    valid: list[Path],
    others: list[Path],
    reader: Reader,
    inputs: int,
    seed: int,
    work: Path,
    keep: Path,
) -> Tally:
    """Hand `inputs` damaged files to one reader."""
    tally, chance = Tally(name), random.Random(f"{name} {seed}")
    for path in valid:
        reader(path)  # whatever it imports, it imports now
    started, before = time.monotonic(), peak_mb()
    for number in range(inputs):
        chosen = chance.choice(valid)
        cage = work / "cage"
        cage.mkdir()
        target = cage / chosen.name
        write_input(chosen, others, target, chance)
        _seen.clear()
        problem = _try(reader, target, tally)
        if _seen:
            problem = _seen[0]
        if peak_mb() - before > MEMORY_MB:
            problem, before = f"{peak_mb() - before:.0f} MB of memory", peak_mb()
        outside = [path for path in work.iterdir() if path != cage]
        if outside or len(list(cage.iterdir())) != 1:
            problem = f"wrote files: {[p.name for p in [*outside, *cage.iterdir()]]}"
        if problem:
            kept = keep / f"{name.split(',')[0]}-{seed}-{number}{''.join(chosen.suffixes)}"
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copytree(target, kept) if target.is_dir() else shutil.copy(target, kept)
            tally.findings.append(f"{kept.name}: {problem}")
        shutil.rmtree(cage)
    tally.seconds = time.monotonic() - started
    return tally


def _try(reader: Reader, target: Path, tally: Tally) -> str | None:
    tally.tried += 1
    signal.alarm(HANG_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(target)
        tally.read += 1
    except Hang:
        return f"more than {HANG_S} s"
    except Exception as error:
        if not is_ours(error):
            return "".join(traceback.format_exception_only(error)).strip() + _where(error)
        tally.refused += 1
        if not str(error).strip():
            return f"{type(error).__name__} without a message"
    finally:
        signal.alarm(0)
    return None


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "darkarc" in frame.filename]
    return f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=300, help="a reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", help="[default: all]")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "darkarc-fuzz-findings")
    asked = parser.parse_args()
    sys.addaudithook(_hook)
    signal.signal(signal.SIGALRM, _alarm)
    found = False
    with tempfile.TemporaryDirectory(prefix="darkarc-fuzz-") as name:
        seeds, work = Path(name) / "seeds", Path(name) / "work"
        seeds.mkdir()
        work.mkdir()
        files = valid_files(seeds)
        others = [path for paths, _ in files.values() for path in paths]
        print(f"seed {asked.seed}\n\n| reader | inputs | refused | read | seconds | findings |")
        print("|---|---|---|---|---|---|")
        for reader, (valid, read) in files.items():
            if asked.readers and reader not in asked.readers:
                continue
            tally = fuzz(reader, valid, others, read, asked.inputs, asked.seed, work, asked.keep)
            found |= bool(tally.findings)
            print(
                f"| {reader} | {tally.tried} | {tally.refused} | {tally.read} | {tally.seconds:.1f} | "
                f"{len(tally.findings)} |",
                flush=True,
            )
            for finding in tally.findings[:8]:
                print(f"  {finding}", file=sys.stderr, flush=True)
    return int(found)


if __name__ == "__main__":
    raise SystemExit(main())
