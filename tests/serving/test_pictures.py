"""A picture for each lens: complete, named after it, none for what could not be read."""

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from darkarc.config import DEFAULT_TARGET
from darkarc.evaluation.zoom import set_shown_range, shown_range, significant_digits
from darkarc.models import Posterior
from darkarc.serving import predict_files
from darkarc.serving.pictures import Album, picture_name
from darkarc.serving.table import Journal, table_row


@pytest.fixture
def posterior() -> Posterior:
    edges = np.linspace(-24, -22, 65)
    density = np.exp(-0.5 * ((0.5 * (edges[1:] + edges[:-1]) + 23.2) / 0.2) ** 2)
    density /= density.sum() * (edges[1] - edges[0])
    return Posterior(edges, density[None], np.array([[0.9, 0.06, 0.04]]), DEFAULT_TARGET)


def test_names_are_safe_and_keep_the_order():
    assert picture_name(12, "a/b/my lens.npy#3") == "0000012_my_lens.npy_3.png"
    assert picture_name(0, "../../..") == "0000000_image.png"
    assert "/" not in picture_name(1, "x" * 300) and len(picture_name(1, "x" * 300)) < 90


def test_every_kind_of_answer_has_its_picture(tmp_path, lenses, posterior):
    album = Album(tmp_path / "pictures")
    levels = posterior.quantile([0.5, 0.05, 0.16, 0.84, 0.95])[0]
    album.add(0, table_row("a $x$.npy", "", [0.9, 0.06, 0.04], levels), lenses[0], posterior)
    album.add(1, table_row("b.npy", "not axion-like (p_axion=0.1)", [0.1, 0.5, 0.4]), lenses[1], None)
    album.add(2, table_row("c.npy", "shape 9x9, expected 64x64 " * 12), np.full((9, 9), np.nan), None)
    album.add(3, table_row("d.npy", "not readable: no image"), None, None)
    found = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in found] == ["0000000_a_x_.npy.png", "0000001_b.npy.png", "0000002_c.npy.png"]
    pixels = [imread(path) for path in found]
    assert all(picture.shape[1] == 1440 for picture in pixels)
    assert pixels[2].shape[0] > pixels[0].shape[0], "a long flag has its lines"


def test_a_narrow_posterior_is_enlarged_and_a_wide_one_is_not(posterior):
    assert shown_range(posterior) == (-24, -22)
    edges = np.linspace(-24, -22, 8193)
    density = np.exp(-0.5 * ((0.5 * (edges[1:] + edges[:-1]) + 23.9995) / 0.0004) ** 2)
    density /= density.sum() * (edges[1] - edges[0])
    narrow = Posterior(edges, density[None], np.array([[1.0, 0, 0]]), DEFAULT_TARGET)
    low, high = shown_range(narrow)
    assert low == -24 and -23.9995 + 6 * 0.001 < high < -23.98
    low, high = shown_range(narrow, -23.5)
    assert low == -24 and -23.5 + 6 * 0.001 < high < -23.48, "the truth is shown, however far off"
    assert [significant_digits(width) for width in (0.3, 0.05, 0.0021, 0.00034, 0.0)] == [2, 3, 4, 5, 10]


def test_an_enlarged_axis_has_all_digits_and_says_what_it_is_of(posterior):
    axes = Figure().subplots()
    set_shown_range(axes, posterior)
    assert axes.get_xlim() == (-24, -22) and "prior" not in axes.get_xlabel()
    edges = np.linspace(-24, -22, 65537)
    density = np.exp(-0.5 * ((0.5 * (edges[1:] + edges[:-1]) + 23.4) / 0.0001) ** 2)
    narrow = Posterior(
        edges, (density / density.sum() * 32768)[None], np.array([[1.0, 0, 0]]), DEFAULT_TARGET
    )
    set_shown_range(axes, narrow)
    assert axes.get_xlim() == shown_range(narrow)
    assert axes.get_xlabel().endswith("(prior: \u221224 to \u221222)")
    axes.figure.draw_without_rendering()
    assert axes.xaxis.get_offset_text().get_text() == "", "an offset would be read as a mass"
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(set(ticks)) == len(ticks) >= 3 and all(tick.startswith("\u221223.") for tick in ticks)


def test_predict_draws_them_and_goes_on_after_a_kill(tmp_path, lenses, wary, monkeypatch):
    for k in range(5):
        np.save(tmp_path / f"lens{k}.npy", lenses[k])
    paths = sorted(tmp_path.glob("*.npy"))
    folder, out = tmp_path / "pictures", tmp_path / "table.csv"
    draw = Album.add

    def killed(self, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        draw(self, number, *rest)

    monkeypatch.setattr(Album, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(wary, paths, out, batch_size=2, gate=0.0, progress=False, pictures=folder)
    assert len(list(folder.iterdir())) == 3 and not out.exists()
    drawn = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(Album, "add", draw)
    summary = predict_files(wary, paths, out, batch_size=2, gate=0.0, progress=False, pictures=folder)
    assert summary.n_resumed == 2
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{k:07d}_lens{k}.npy.png" for k in range(5)]
    assert {name: (folder / name).stat().st_mtime_ns for name in names[:2]} == {
        n: drawn[n] for n in names[:2]
    }
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 5


def test_pictures_asked_for_after_a_kill_are_all_there(tmp_path, lenses, wary, monkeypatch):
    for k in range(4):
        np.save(tmp_path / f"lens{k}.npy", lenses[k])
    paths = sorted(tmp_path.glob("*.npy"))
    folder, out = tmp_path / "pictures", tmp_path / "table.csv"
    append, options = Journal.append, {"batch_size": 2, "gate": 0.0, "progress": False}

    def killed(self, rows, images):
        append(self, rows, images)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(wary, paths, out, **options)
    monkeypatch.setattr(Journal, "append", append)
    predict_files(wary, paths, out, pictures=folder, **options)
    assert sorted(path.name for path in folder.iterdir()) == [f"{k:07d}_lens{k}.npy.png" for k in range(4)]
