"""`darkarc serve` as a process: real files, hostile files, a worker that dies, and a real browser."""

import asyncio
import base64
import contextlib
import csv
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request

import h5py
import numpy as np
import psutil
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.config import ConfigError, ServeConfig
from darkarc.evaluation.zoom import shown_range, significant_digits
from darkarc.serving import predict_files
from darkarc.serving.web import PageServer, ServeError, run_page
from darkarc.serving.web.pictures import levels, png
from darkarc.serving.web.pool import WorkerPool
from darkarc.serving.web.uploads import Refused, Upload
from tests.serving.webdriver import OPENER, browser, wait_for

LIMITS = {"max_file_mb": 2, "max_images": 12, "max_files": 40}
DROP = """
  const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], arguments[1]));
  const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  return !document.querySelector("#drop").dispatchEvent(event);
"""
"""A file of these base64 bytes and this name is dropped on the page; does it take the event for itself?"""

NARROW = """
  const { posteriorFigure } = await import("/posterior.js");
  const quantiles = { q05: -23.0004, q16: -23.0002, median: -23, q84: -22.9998, q95: -22.9996 };
  const density = Array(4096).fill(0).fill(500, 2046, 2050);
  const posterior = { low: -24, high: -22, density, shown: [-23.0048, -22.9952], decimals: 5 };
  const figure = posteriorFigure(posterior, quantiles, "log10(m / eV)");
  document.body.append(figure);
  const along = (name) => figure.querySelector(name).getAttribute("points").split(" ").map(parseFloat);
  const curve = along(".curve"), inner = along(".inner");
  const ticks = [...figure.querySelectorAll(".tick")].map((tick) => tick.textContent);
  figure.remove();
  return { title: figure.querySelector("title").textContent, curve, inner, ticks };
"""
"""What a posterior 0.0004 dex wide looks like, which would be a line on the axis of the prior."""


@dataclass(frozen=True)
class Running:
    """The page as a user starts it."""

    address: str
    process: subprocess.Popen
    log: Path

    def answer(self, *files: Path, accept: str = "application/json") -> bytes:
        """What the page sends back for files, as `curl -F files=@…` would get it."""
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'.encode()
            + file.read_bytes()
            + b"\r\n"
            for file in files
        ]
        headers = {"Content-Type": "multipart/form-data; boundary=b", "Accept": accept}
        asked = Request(f"{self.address}api/answer", b"".join(parts) + b"--b--\r\n", headers)
        with OPENER.open(asked, timeout=60) as answer:
            return answer.read()

    def worker(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def page(onnx_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    port = free_port()
    words = [word for key, value in LIMITS.items() for word in ("-S", f"serve.{key}={value}")]
    command = [sys.executable, "-m", "darkarc", "serve", str(onnx_path), "--port", str(port), "--gate", "0"]
    # What it must not import although it lies where it was started, and where files may come from.
    (folder / "h5py.py").write_text("raise SystemExit('imported from the working directory')")
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *words], stdout=output, stderr=output, cwd=folder)
    try:
        wait_for(lambda: b"Ctrl-C" in log.read_bytes() or process.poll() is not None, 400)
        assert process.poll() is None, log.read_text()
        yield Running(f"http://127.0.0.1:{port}/", process, log)
    finally:
        worker = psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(30) in (0, -15), log.read_text()
        assert not psutil.wait_procs(worker, timeout=10)[1], "a worker outlived its server"


@pytest.fixture
def files(lenses: np.ndarray, tmp_path: Path) -> list[Path]:
    """A file of every kind that the page reads, and some that are none."""
    folder = tmp_path / "lenses"
    folder.mkdir()
    np.save(folder / "plain.npy", lenses[0])
    np.savez(folder / "three.npz", lenses[1:4])
    fits.PrimaryHDU(lenses[4]).writeto(folder / "sky.fits")
    fits.PrimaryHDU(lenses[9]).writeto(folder / "packed.fits.gz")
    whole = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(lenses[10])])
    whole.writeto(folder / "sky.fits.fz")
    with h5py.File(folder / "many.h5", "w") as file:
        file["images"] = lenses[5:8]
    pixels = np.empty(2, object)
    pixels[:] = [lenses[8].astype(np.float64), 1e-23]
    np.save(folder / "axion_sim_1.npy", pixels, allow_pickle=True)
    np.save(folder / "wrong.npy", np.zeros((150, 150), np.float32))
    (folder / "bad.npy").write_bytes(b"no numpy file")
    return sorted(folder.iterdir())


def test_its_table_is_that_of_predict(page, files, onnx_path, tmp_path, monkeypatch):
    from darkarc.serving import load

    monkeypatch.chdir(files[0].parent)
    names = [Path(file.name) for file in files]
    predict_files(load(onnx_path), names, tmp_path / "table.csv", gate=0, progress=False)
    assert page.answer(*files, accept="text/csv") == (tmp_path / "table.csv").read_bytes()


def test_an_answer_has_picture_and_posterior(page, files, regressor, lenses):
    (file,) = [file for file in files if file.name == "plain.npy"]
    (answered,) = json.loads(page.answer(file))["files"]
    (image,) = answered["images"]
    assert image["picture"].startswith("data:image/png;base64,")
    expected = regressor.predict(lenses[0])
    density = np.array(image["posterior"]["density"])
    assert np.allclose(density, expected.density[0], rtol=1e-3, atol=1e-3 * density.max())
    assert (image["posterior"]["low"], image["posterior"]["high"]) == (-24, -22)
    low, high = expected.interval(0.68)[0]
    assert image["posterior"]["decimals"] == significant_digits(high - low)
    assert image["posterior"]["shown"] == pytest.approx(shown_range(expected[:1]))
    assert image["row"]["log10_mass_median"] == pytest.approx(expected.median[0], abs=1e-3)
    assert not answered["more"]


def test_a_long_stack_is_cut_and_says_so(page, lenses, tmp_path):
    np.save(tmp_path / "stack.npy", lenses[:20])
    (answered,) = json.loads(page.answer(tmp_path / "stack.npy"))["files"]
    assert len(answered["images"]) == LIMITS["max_images"]
    assert answered["more"]
    np.save(tmp_path / "fits.npy", lenses[:12])
    table = page.answer(tmp_path / "stack.npy", tmp_path / "fits.npy", accept="text/csv").decode()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["path"] for row in rows[11:14]] == ["stack.npy#11", "stack.npy", "fits.npy#0"]
    assert rows[12]["flag"].startswith("cut short: only its first 12 images are answered here")
    assert not any(value for key, value in rows[12].items() if key not in ("path", "flag"))
    assert len(rows) == 25


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_no_file_is_executed(page, tmp_path):
    marker = tmp_path / "executed"
    hostile = np.empty(2, object)
    hostile[:] = [Harmful(marker), 1.0]
    np.save(tmp_path / "axion_sim_2.npy", hostile, allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Harmful(marker)))
    np.savez(tmp_path / "pack.npz", hostile)
    answered = json.loads(page.answer(*sorted(tmp_path.glob("*.np[yz]"))))["files"]
    for file in answered:
        (image,) = file["images"]
        assert image["row"]["flag"].startswith("not readable: "), image["row"]
        assert image["picture"] is None
        # Where it lay on the server is not said.
        assert "darkarc-serve-" not in json.dumps(file)
    assert not marker.exists()


def test_a_dead_worker_costs_one_request(page, files):
    before = page.worker()
    before.kill()
    before.wait()
    assert b"plain.npy" in page.answer(*files)
    assert page.worker().pid != before.pid


def test_it_listens_on_the_loopback_alone(page):
    family = [psutil.Process(page.process.pid), page.worker()]
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_a_file_that_wants_too_much_time_or_memory_is_refused(onnx_path, tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((200, 512, 512)))  # 0.4 GB in 0.4 MB
    fits.PrimaryHDU(np.zeros((2, 1536, 1536))).writeto(tmp_path / "bomb.fits.gz")  # 36 MB, no file is written
    big = np.zeros((4096, 4096))
    big[::7] = 1
    np.save(tmp_path / "big.npy", big)  # 128 MB, and more for its picture

    async def scenario() -> None:
        limits = ServeConfig(workers=1, waiting=1, memory_mb=64, max_images=1)
        pool = WorkerPool(PageServer(str(onnx_path), limits), str(onnx_path))
        try:
            await pool.start()
            assert pool.facts["model"] == onnx_path.name
            for name, reason in (
                ("bomb.npz", ""),
                ("big.npy", ""),
                ("bomb.fits.gz", "it unpacks to over 16 MB, the most here; unpack it first"),
            ):
                answer = await pool.ask([Upload(name, tmp_path / name)])
                (image,) = answer["files"][0]["images"]
                assert image["row"]["flag"].startswith(f"not readable: {reason}"), name
            impatient = pool._workers[0]
            psutil.Process(impatient.pid).suspend()  # as one that is busy with a file for ever
            with pytest.raises(Refused, match="no answer within"):
                await impatient.ask([Upload("big.npy", tmp_path / "big.npy")], 0.2)
            assert not impatient.alive
            with pool.place(), pool.place(), pytest.raises(Refused, match="busy"), pool.place():
                pass
        finally:
            await pool.stop()

    asyncio.run(scenario())


def test_a_worker_can_write_no_file_and_has_its_memory(tmp_path):
    script = (
        "import sys\nfrom darkarc.serving.web.worker import _limit\n_limit(64)\n"
        "try:\n    open(sys.argv[1], 'wb', 0).write(b'x' * 10)\n    print('written')\n"
        "except OSError:\n    print('no file')\n"
        "try:\n    bytearray(300 * 2**20)\n    print('memory')\nexcept MemoryError:\n    print('no memory')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:2] == ["no file", "no memory"], done.stdout + done.stderr
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size == 0


def test_the_log_says_why_an_answer_failed_even_where_it_is_a_file(onnx_path, tmp_path):
    """A worker can write no file, not even the log that it was given."""
    (tmp_path / "lens.npy").write_bytes(b"whatever")
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import json, sys\nfrom darkarc.serving.web import worker\n"
        "def of_file(self, path, name): raise ValueError('no room on the device')\n"
        "worker.FileAnswers.of_file = of_file\nworker.main(json.loads(sys.argv[-1]))\n"
    )

    async def scenario() -> dict:
        limits = ServeConfig(workers=1, waiting=1)
        pool = WorkerPool(PageServer(str(onnx_path), limits), str(onnx_path))
        worker = pool._workers[0]
        worker._command = [sys.executable, str(broken), worker._command[-1]]
        try:
            await pool.start()
            return await pool.ask([Upload("lens.npy", tmp_path / "lens.npy")])
        finally:
            await pool.stop()

    log = tmp_path / "log"
    with log.open("w") as file, contextlib.redirect_stderr(file):
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            answer = asyncio.run(scenario())
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    assert set(answer) == {"files"}
    assert answer["files"][0]["images"][0]["row"]["flag"].endswith("the server's log says more")
    assert "darkarc serve: 'lens.npy': ValueError('no room on the device')" in log.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.onnx"], "nothing.onnx: does not exist"),
        (
            ["x.onnx", "--host", "0.0.0.0", "--no-token"],
            "without a token the page answers on 127.0.0.1 alone",
        ),
        (["x.onnx", "-S", "serve.max_file=3"], "serve.max_file: unknown key; did you mean serve.max_files?"),
    ],
)
def test_a_mistake_is_named(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = CliRunner().invoke(app, ["serve", *words, "--port", str(free_port())]).exception
    assert isinstance(failed, ServeError | ConfigError)
    assert said in str(failed)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*--port"):
            run_page(PageServer("x.onnx", port=port), lambda *_: None)


def test_a_picture_is_the_image_with_its_first_row_at_the_bottom():
    import io

    from matplotlib.image import imread

    image = np.zeros((16, 24), np.float32)
    image[0, :] = 100.0
    shown = levels(image)
    assert shown[-1].min() == 255 and shown[:-1].max() == 0
    decoded = imread(io.BytesIO(png(shown)))
    assert decoded.shape[:2] == (16, 24)
    assert decoded[-1, :, :3].min() > 0.7 > 0.1 > decoded[0, :, :3].max()
    assert max(levels(np.random.default_rng(0).normal(size=(1000, 700))).shape) <= 256
    assert levels(np.full((8, 8), 3.0)).max() == 0


@pytest.mark.slow
def test_in_a_real_browser(page, files, tmp_path, regressor):
    odd = files[0].parent / "odd <img src=x onerror=alert(1)>.npy"
    odd.write_bytes(next(f for f in files if f.name == "plain.npy").read_bytes())
    big = files[0].parent / "big.npy"
    big.write_bytes(bytes(2_100_000))
    sent = [*files, odd, big]
    with browser(tmp_path) as window:
        window.open(page.address)
        wait_for(lambda: "model_iii" in window.text("#model"))
        window.type("#files", "\n".join(map(str, sent)))
        wait_for(lambda: not window.run("return document.querySelector('#download').disabled"))
        assert window.run("return document.querySelectorAll('.card').length") == 14
        assert "big.npy: 2.1 MB, more than the 2 MB" in window.text("#notices")
        assert window.text("#summary").startswith("10 files, 14 images: ")
        text = window.text("#results")
        for said in ("bad.npy", "not an .npy file", "shape 150x150, expected 64x64", odd.name, "many.h5#2"):
            assert said in text
        assert window.run("return document.querySelectorAll('img[src=x]').length") == 0
        natural = "return [...document.querySelectorAll('img.picture[src]')].every(i => i.naturalWidth > 0)"
        assert window.run(natural), "every picture is one"
        assert window.run("return document.querySelectorAll('.posterior svg .curve').length") > 0
        window.click("#doubtful")
        hidden = "return [...document.querySelectorAll('.card')].filter(c => !c.offsetParent).length"
        assert window.run(hidden) == window.run(
            "return document.querySelectorAll('.card:not(.flagged)').length"
        )
        window.click("#download")
        table = wait_for(lambda: next(window.downloads.glob("*.csv"), None))
        given = [file for file in sent if file is not big]
        wait_for(lambda: table.read_bytes() == page.answer(*given, accept="text/csv"))
        window.click("#clear")
        assert window.text("#summary") == "No files yet."
        pixels = base64.b64encode(odd.read_bytes()).decode()
        assert window.run(DROP, pixels, "dropped.npy"), "a browser's own answer is to leave the page"
        wait_for(lambda: window.text("#summary").startswith("1 file, 1 image: "))
        assert window.text("#results h2") == "dropped.npy"
        assert window.complaints() == [], "neither errors nor violations of the policy"


@pytest.mark.slow
def test_a_narrow_posterior_is_drawn_enlarged_with_digits_enough(page, tmp_path):
    with browser(tmp_path) as window:
        window.open(page.address)
        drawn = window.run(NARROW)
    assert drawn["title"] == "Posterior of log10(m / eV): median -23.00000, 68% from -23.00020 to -22.99980"
    assert min(drawn["curve"]) == 12 and max(drawn["curve"]) == 308, "from end to end of what is shown"
    wide = (max(drawn["inner"]) - min(drawn["inner"])) / 296
    assert wide == pytest.approx(0.0004 / 0.0096, abs=1e-3), "to scale"
    *ticks, label = drawn["ticks"]
    places = [float(tick.replace("\u2212", "-")) for tick in ticks]
    assert len(set(places)) == len(ticks) >= 3, "with digits enough"
    assert min(places) >= -23.0048 and max(places) <= -22.9952
    assert label == "log10(m / eV)   (prior: \u221224 to \u221222)"
