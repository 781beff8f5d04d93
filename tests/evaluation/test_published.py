"""The published numbers as the package reads them, and when they may be held against ours."""

import pytest
import yaml

from darkarc.config import parse
from darkarc.data.form import DataForm, data_form
from darkarc.data.generate import store_parameters
from darkarc.data.store import Manifest
from darkarc.evaluation.published import compare, published_results
from darkarc.simulation import PRESETS

TARGET = "log10_axion_mass_ev"


def manifest(origin: str, instrument: str, parameters: dict[str, object]) -> Manifest:
    return Manifest(
        name="x", origin=origin, instrument=instrument, shape=(64, 64), dtype="float32", n_samples=0,
        shards=(), samples_sha256="0" * 64, samples_bytes=0, parameters=parameters,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "best", "name"),
    [
        ("model_i", 0.2737, "XResNet18-hybrid"),
        ("model_ii", 0.2162, "ResNet34"),
        ("model_iii", 0.1262, "XResNet18-hybrid"),
    ],
)
def test_best_result_of_each_preset(preset: str, best: float, name: str) -> None:
    results = published_results(preset)
    assert (results[0].mae_dex, results[0].name) == (best, name)
    assert [r.mae_dex for r in results] == sorted(r.mae_dex for r in results)
    assert all("github.com" in r.source and 0.1 < r.mae_dex < 0.5 for r in results)


def test_the_file_speaks_of_known_presets_only() -> None:
    from importlib.resources import files

    document = yaml.safe_load(files("darkarc.evaluation").joinpath("published.yaml").read_text("utf-8"))
    assert {preset for row in document["results"] for preset in row["mae_dex"]} == set(PRESETS)


def test_only_the_same_form_is_comparable() -> None:
    assert compare(TARGET, DataForm("model_ii", "published", "deeplense")).comparable
    for form, obstacle in (
        (DataForm("model_ii", "physical", "deeplense"), "noise: published there, physical here"),
        (DataForm("model_ii", "published", "physical"), "distances: deeplense there, physical here"),
    ):
        other = compare(TARGET, form)
        assert not other.comparable and other.best is not None
        assert obstacle in other.obstacle


def test_nothing_to_compare_with_says_why() -> None:
    form = DataForm("model_ii", "published", "deeplense")
    assert compare("log10_subhalo_mass_msun", form).obstacle.startswith("nothing is published")
    nowhere = compare(TARGET, DataForm(None, None, None))
    assert "none of the published data sets" in nowhere.obstacle and not nowhere.comparable


def test_form_of_the_data_comes_from_the_store() -> None:
    generating = store_parameters(parse({"simulate": {"preset": "model_ii", "noise": "none"}}))
    expected = DataForm("model_ii", "none", "deeplense")
    assert data_form(manifest("darkarc:model_ii:none:0", "Euclid VIS", generating)) == expected
    prepared = {"raw": {"digest": "0", "parameters": generating}}
    assert data_form(manifest("darkarc:model_ii:none:0", "Euclid VIS", prepared)) == expected
    files = {"raw": {"digest": "0", "parameters": {"source": "Model_II"}}}
    assert data_form(manifest("deeplense", "model_ii", files)) == DataForm(
        "model_ii", "published", "deeplense"
    )
    assert data_form(manifest("deeplense", "unknown", files)) == DataForm(None, None, None)
