"""params.yaml and its errors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkarc import config
from darkarc.config import Config, ConfigError

PROJECT = Path(__file__).resolve().parents[1]


def test_the_shipped_file_states_every_default():
    assert config.load(PROJECT / "params.yaml") == Config()
    assert (PROJECT / "params.yaml").read_text() == config.template(), "`make params` writes it"


def test_dump_and_parse_are_inverse():
    changed = config.parse({"train": {"epochs": 3}, "register": {"name": "other"}})
    assert changed.train.epochs == 3
    assert changed.register_.name == "other"
    assert config.parse(changed.dump()) == changed


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": {"epoch": 3}}, "train.epoch: unknown key; did you mean train.epochs?"),
        ({"trian": {}}, "trian: unknown key; did you mean train?"),
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than or equal to 1, found 0"),
        ({"prepare": {"train": 0.9}}, "train + validation + calibration + test is 1.2; it must be 1"),
        ({"targets": {"log10_mass": [0, 1]}}, "targets.log10_mass: no such target; known are log10_axion"),
        ({"targets": {"log10_axion_mass_ev": [-22, -24]}}, "the prior range [-22, -24] is empty"),
        ({"simulate": {"n_axion": 0, "n_cdm": 0, "n_no_sub": 0}}, "ask for at least one image"),
    ],
)
def test_errors_name_the_file_the_key_and_the_remedy(tmp_path, tree, said):
    import yaml

    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_overrides_are_yaml_and_reach_nested_keys(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  epochs: 5\n")
    loaded = config.load(path, ["train.epochs=7", "prepare.outliers.action=exclude", "simulate.noise=none"])
    assert (loaded.train.epochs, loaded.prepare.outliers.action, loaded.simulate.noise) == (
        7,
        "exclude",
        "none",
    )


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.epochs.more=3", "seed=[1", "nothing.at=1"])
def test_bad_overrides_are_refused(tmp_path, override):
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  epochs: 5\n")
    with pytest.raises(ConfigError):
        config.load(path, [override])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just words", "!!python/object/apply:os.getcwd []"])
def test_files_that_are_no_parameters_are_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        config.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read"):
        config.load(tmp_path / "nowhere.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_load_or_end_in_a_message(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_bytes(content)
    try:
        config.load(path)
    except ConfigError as error:
        assert "params.yaml" in str(error)


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.epochs = 3  # type: ignore[misc]
