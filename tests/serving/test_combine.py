"""`darkarc combine` on files: what counts, what is left out, what it says and draws."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.models import PopulationError, Posterior, combine, save_regressor
from darkarc.serving.combine import combine_files, growing, kind_of, parse_share, read_lenses
from darkarc.serving.exact import pixels_digest
from darkarc.simulation import simulate

N = 6


@pytest.fixture
def population(regressor, tmp_path):
    """Files of one particle, one that is no image and one far from the training."""
    images = simulate("model_iii", log10_mass_ev=np.full(N, -23.4), noise="physical", seed=3)
    folder = tmp_path / "lenses"
    folder.mkdir()
    for n, image in enumerate(images):
        np.save(folder / f"lens_{n}.npy", image.astype(np.float32))
    np.save(folder / "x_bright.npy", (50 * images[0]).astype(np.float32))
    (folder / "y_torn.npy").write_bytes(b"\x93NUMPY\x01")
    return folder, images.astype(np.float32)


def test_usable_lenses_count_and_the_others_are_named(regressor, population, tmp_path):
    folder, images = population
    out = tmp_path / "joint.json"
    found = combine_files(regressor, [folder], out, batch_size=4, axion_share="trained")
    assert json.loads(out.read_text()) == found
    assert found["n_lenses"] == N and found["n_left_out"] == 2
    left_out = {entry["path"].rpartition("/")[2]: entry["reason"] for entry in found["left_out"]}
    assert set(left_out) == {"x_bright.npy", "y_torn.npy"}
    assert "not readable" in left_out["y_torn.npy"] and "outside training range" in left_out["x_bright.npy"]
    expected = combine(regressor.predict(images))
    np.testing.assert_allclose(found["density"], expected.density[0], rtol=1e-4)
    assert found["interval_68"] == pytest.approx(expected.interval(0.68)[0].tolist(), abs=1e-5)
    assert [row["n"] for row in found["by_number"]] == [1, 2, 3, 5, 6]
    assert "no fitted correlation" in found["notice"] and found["power"] == 1.0
    assert (tmp_path / "joint.png").read_bytes().startswith(b"\x89PNG")


def test_every_image_is_counted_as_it_is_dealt_with(regressor, population):
    folder, images = population
    np.save(folder / "z_copy.npy", images[0])
    counts: list[int] = []
    read_lenses(regressor, [folder], batch_size=4, advance=counts.append)
    assert sum(counts) == N + 3 and counts[0] < 4 + 1


def test_what_the_regressor_knows_of_populations_is_used(make_regressor, population, tmp_path):
    folder, _ = population
    regressor = make_regressor()
    plain = combine_files(regressor, [folder], tmp_path / "a.json", axion_share=1.0)
    known = {"axion_share": 0.75, "correlation": 0.2, "n": 700}
    regressor.spec = replace(regressor.spec, statistics={**regressor.spec.statistics, "population": known})
    save_regressor(regressor, tmp_path / "model")
    said = json.loads((tmp_path / "model" / "regressor.json").read_text())["statistics"]["population"]
    assert said == known
    wide = combine_files(regressor, [folder], tmp_path / "b.json", axion_share=1.0)
    assert wide["power"] == pytest.approx(1 / (1 + 5 * 0.2)) and "notice" not in wide
    assert wide["std"] > plain["std"]
    unknown = combine_files(regressor, [folder], tmp_path / "c.json")
    assert unknown["axion_share"]["assumed"] == "unknown" and 0 < unknown["axion_share"]["q50"] < 1


def test_flagged_images_are_left_out_unless_asked_for(regressor, population, tmp_path):
    folder, images = population
    np.save(folder / "w_brighter.npy", images[0] * np.float32(1.25))
    strict = read_lenses(regressor, [folder])
    lenient = read_lenses(regressor, [folder], keep_flagged=True)
    (reason,) = [why for name, why in strict.left_out if name.endswith("w_brighter.npy")]
    assert "outside training range" in reason and "far" not in reason
    assert len(strict.names) == N
    assert sorted({*lenient.names} - {*strict.names}) == [str(folder / "w_brighter.npy")]
    assert len(lenient.posterior.density) == N + 1
    far = {"x_bright.npy", "y_torn.npy"}
    assert {Path(name).name for name, _ in lenient.left_out} == far
    assert {Path(name).name for name, _ in strict.left_out} == far | {"w_brighter.npy"}

    out = tmp_path / "joint.json"
    save_regressor(regressor, tmp_path / "model")
    words = ["combine", str(tmp_path / "model"), str(folder), "--out", str(out), "--axion-share", "trained"]
    for flags, n in (([], N), (["--keep-flagged"], N + 1)):
        result = CliRunner().invoke(app, [*words, *flags])
        assert result.exit_code == 0, result.output
        assert json.loads(out.read_text())["n_lenses"] == n


def test_the_same_lens_counts_once_however_often_it_is_given(regressor, population, tmp_path):
    """As overlapping globs give it, and under another name, in another type of number."""
    folder, images = population
    once = combine_files(regressor, [folder], tmp_path / "once.json", axion_share="trained", batch_size=4)
    assert once["n_copies"] == 0
    np.savez(tmp_path / "again.npz", images[2:4].astype(np.float64))
    given = [folder, folder / "lens_1.npy", tmp_path / "again.npz", folder]
    save_regressor(regressor, tmp_path / "model")
    out = tmp_path / "joint.json"
    words = ["combine", str(tmp_path / "model"), *map(str, given), "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--batch-size", "4", "--axion-share", "trained"])
    assert result.exit_code == 0, result.output
    assert f"{N + 3} of those left out are copies: the same pixels as an image before" in result.output
    found = json.loads(out.read_text())
    assert (found["lenses"], found["n_copies"]) == (once["lenses"], N + 3)
    assert found["interval_68"] == pytest.approx(once["interval_68"], abs=1e-6)
    reasons = {entry["path"]: entry["reason"] for entry in found["left_out"]}
    assert reasons[f"{tmp_path / 'again.npz'}#1"] == f"the same image as {folder / 'lens_3.npy'}"
    assert "outside training range" in reasons[str(folder / "x_bright.npy")]


def test_a_copy_is_one_in_any_type_of_number_and_with_either_sign_of_zero():
    image = np.array([[1.5, 0.0], [-0.0, 2.0]], np.float32)
    assert pixels_digest(image) == pixels_digest(np.abs(image)) == pixels_digest(image.copy(order="F"))
    assert pixels_digest(image) != pixels_digest(image.T + np.float32(1))


def test_what_is_withheld_is_never_asked_about(regressor, population, monkeypatch):
    """An image far from the training may break the regressor's arithmetic, and must not break the lenses'."""
    folder, images = population
    predict, asked = type(regressor).predict, []

    def strict(self, images, **options):
        assert np.abs(images).max() < 1e6, "asked about an image that is withheld"
        asked.append(len(images))
        return predict(self, images, **options)

    np.save(folder / "v_burnt.npy", np.full_like(images[0], 1e30))
    np.save(folder / "w_empty.npy", np.zeros_like(images[0]))
    monkeypatch.setattr(type(regressor), "predict", strict)
    found = read_lenses(regressor, [folder], batch_size=3)
    assert len(found.names) == N and sum(asked) == N
    named = {Path(name).name: why for name, why in found.left_out}
    assert set(named) == {"v_burnt.npy", "w_empty.npy", "x_bright.npy", "y_torn.npy"} and all(named.values())


def test_a_regressor_that_knows_axion_lenses_alone_combines_by_default(make_regressor, population, tmp_path):
    folder, _ = population
    regressor, out = make_regressor(), tmp_path / "j.json"
    known = {"axion_share": 1.0, "correlation": 0.1, "n": 700}
    regressor.spec = replace(regressor.spec, statistics={**regressor.spec.statistics, "population": known})
    assert combine_files(regressor, [folder], out)["axion_share"]["assumed"] == "trained"
    assert combine_files(regressor, [folder], out, axion_share=1.0)["n_lenses"] == N
    for share in ("unknown", 0.5):
        with pytest.raises(PopulationError, match=r"trained on axion-like images alone.*--axion-share as"):
            combine_files(regressor, [folder], out, axion_share=share)


def test_no_lens_and_wrong_shares_are_refused(regressor, tmp_path):
    (tmp_path / "torn.npy").write_bytes(b"no")
    with pytest.raises(PopulationError, match=r"no usable lens.*torn\.npy"):
        combine_files(regressor, [tmp_path / "torn.npy"], tmp_path / "j.json")
    with pytest.raises(PopulationError, match="does not know the share"):
        combine_files(regressor, [tmp_path / "torn.npy"], tmp_path / "j.json", axion_share="unknown")
    with pytest.raises(PopulationError, match=r"j\.png: expected a file that ends in \.json"):
        combine_files(regressor, [tmp_path / "torn.npy"], tmp_path / "j.png")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        PopulationError, match=r"--out .*joint\.json: nothing can be written there \(.*taken is a file"
    ):
        combine_files(regressor, [tmp_path / "torn.npy"], tmp_path / "taken" / "joint.json")
    for text in ("0", "1.5", "many"):
        with pytest.raises(PopulationError, match=r"a number in \(0, 1\], unknown or trained"):
            parse_share(text)
    assert (parse_share("0.5"), parse_share("trained"), parse_share(None)) == (0.5, "trained", None)


def test_kinds_and_growing_numbers():
    assert kind_of("lower limit: above -22.50 at 95%") == "lower limit"
    assert kind_of("") == "measurement"
    assert growing(1) == [1] and growing(100) == [1, 2, 3, 5, 10, 20, 30, 50, 100]


def test_a_limit_is_said_on_the_command_line(regressor, population, tmp_path, monkeypatch):
    folder, _ = population
    save_regressor(regressor, tmp_path / "model")
    edges = np.linspace(-24, -22, 65)
    density = np.where(edges[:-1] > -22.6, 1.0, 1e-9)

    def heavy(self, images, *, target=None, batch_size=256):
        rows = np.tile(density / (density @ np.diff(edges)), (len(images), 1))
        return Posterior(edges, rows, np.tile([0.9, 0.05, 0.05], (len(images), 1)), "log10_axion_mass_ev")

    monkeypatch.setattr(type(regressor), "predict", heavy)
    result = CliRunner().invoke(
        app, ["combine", str(tmp_path / "model"), str(folder), "--out", str(tmp_path / "j.json")]
    )
    assert result.exit_code == 0, result.output
    assert "from 6 lenses (2 left out): lower limit: above -22.5" in result.output
    assert json.loads((tmp_path / "j.json").read_text())["kind"] == "lower limit"
