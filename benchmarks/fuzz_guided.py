"""Fuzz the readers that are written in Python by coverage: inputs that reach new code are mutated on.

`python benchmarks/fuzz_guided.py --seconds 300` needs atheris, which the lock does not hold (`pip install
atheris`; Linux). `fuzz.py` mutates blindly, but reaches every format, also those that libraries read. Allowed
are an answer and an error of ours; a name that pickle looks up, a process or a connection is a finding too.
Exit status 1 after a finding, whose input is kept in `--keep`.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

WATCHED = ("subprocess.Popen", "os.system", "pickle.find_class", "socket.connect")
LONGEST_INPUT_S = 20
MEMORY_MB = 2048


def npy() -> Callable[[bytes], object]:
    from darkarc.data.deeplense import decode_deeplense

    return lambda content: decode_deeplense(content, "x.npy")


def manifest() -> Callable[[bytes], object]:
    from darkarc.data._manifest import MANIFEST, read_manifest

    folder = Path(tempfile.mkdtemp(prefix="darkarc-guided-"))

    def read(content: bytes) -> object:
        (folder / MANIFEST).write_bytes(content)
        return read_manifest(folder)

    return read


def parameters() -> Callable[[bytes], object]:
    from darkarc import config

    path = Path(tempfile.mkdtemp(prefix="darkarc-guided-")) / "params.yaml"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return config.load(path)

    return read


READERS = {"npy": npy, "manifest": manifest, "parameters": parameters}


def write_corpus(name: str, folder: Path) -> None:
    """Valid inputs to begin with."""
    if name == "npy":
        image = np.random.default_rng(0).random((8, 8))
        pair, rows = np.empty(2, object), np.empty(2, object)
        pair[0], pair[1] = image, 1e-23
        rows[0], rows[1] = np.array(list(image), dtype=object), 1e-23
        for file, array in {"pair": pair, "rows": rows, "plain": image, "flat": image.ravel()}.items():
            np.save(folder / f"{file}.npy", array, allow_pickle=True)
    elif name == "manifest":
        from darkarc.data.store import StoreWriter

        with StoreWriter(
            folder / "store",
            name="s",
            origin="o",
            instrument="i",
            shape=(8, 8),
            dtype="float32",
            parameters={},
        ) as writer:
            writer.append(np.zeros((1, 8, 8)), {"sample_id": ["a"], "class": ["cdm"]})
            writer.attach("statistics.json", b"{}")
            store = writer.commit()
        (store.path / "manifest.json").rename(folder / "valid.json")
        for path in store.path.iterdir():
            path.unlink()
        store.path.rmdir()
    else:
        (folder / "params.yaml").write_text(
            "seed: 1\ntrain: {epochs: 3}\ntargets: {log10_axion_mass_ev: [-24, -22]}\n"
        )


def fuzz_here(name: str, arguments: list[str]) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["darkarc.data", "darkarc.config"]):
        read = READERS[name]()
    seen: list[str] = []
    sys.addaudithook(lambda event, what: seen.append(f"{event} {what!r:.120}") if event in WATCHED else None)

    def one(content: bytes) -> None:
        seen.clear()
        try:
            read(content)
        except Exception as error:
            ours = type(error).__module__.partition(".")[0] == "darkarc"
            if not (ours or isinstance(error, OSError)) or not str(error).strip():
                raise
        if seen:
            raise AssertionError(seen[0])

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def fuzz(name: str, seconds: int, seed: int, keep: Path) -> bool:
    """Fuzz one reader; prints its row, and returns whether nothing was found."""
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="darkarc-guided-") as folder:
        write_corpus(name, Path(folder))
        limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST_INPUT_S}", f"-rss_limit_mb={MEMORY_MB}"]
        more = [f"-seed={seed}", "-print_final_stats=1", f"-artifact_prefix={keep}/{name}-", folder]
        done = subprocess.run(
            [sys.executable, __file__, "--reader", name, *limits, *more],
            capture_output=True,
            text=True,
            errors="replace",
        )
    said = done.stderr + done.stdout
    tried = re.search(r"number_of_executed_units: *(\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    print(
        f"| {name} | {int(tried[1]):,} | {covered[-1] if covered else '-'} | {seconds} | "
        f"{0 if done.returncode == 0 else 1} |"
        if tried
        else said[-2000:],
        flush=True,
    )
    if done.returncode:
        print(said[said.find("Uncaught") :][:1500], file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    if sys.argv[1:2] == ["--reader"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30, help="a reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "darkarc-fuzz-findings")
    asked = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install atheris): nothing was tried")
        return 0
    print(f"seed {asked.seed}\n\n| reader | inputs | branches reached | seconds | findings |")
    print("|---|---|---|---|---|")
    return int(not all([fuzz(name, asked.seconds, asked.seed, asked.keep) for name in asked.readers]))


if __name__ == "__main__":
    raise SystemExit(main())
