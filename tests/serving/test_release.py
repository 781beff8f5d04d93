"""The stages `register` and `export`: evidence in, champion and files out, in a real MLflow registry."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from typer.testing import CliRunner

import darkarc
from darkarc import config as configuration
from darkarc.cli import app
from darkarc.config import DEFAULT_TARGET, Config
from darkarc.data.store import Store, StoreWriter
from darkarc.evaluation import evaluate
from darkarc.models import Regressor, RegressorSpec, load_regressor, save_regressor, sealed_sha256
from darkarc.serving import export, release
from darkarc.serving.release import (
    ReleaseError,
    absolute_errors,
    compared_images,
    register_stage,
    rollback_stage,
)
from darkarc.tracking import NullTracker, RegistryError, RunRecord, start_run, write_run
from darkarc.tracking.promotion import Decision
from darkarc.tracking.registration import ERRORS_TAG, TEST_DIGEST_TAG, read_card, register_onnx
from darkarc.tracking.registry import ModelVersion, champion_version, get_version, list_versions
from darkarc.tuning import write_winner
from tests.evaluation.conftest import SIDE, PixelReader, make_store
from tests.test_pipeline import PROJECT, ran, run, whole
from tests.training.conftest import write_prepared

NAME = "axion-mass-regressor"
SETTINGS: dict[str, Any] = {
    "model": {"width": 0.25, "bins": 32, "novelty": "none", "recalibration": "none"},
    "train": {"epochs": 1, "batch_size": 16, "sanity": False},
    "evaluate": {"batch_size": 64, "examples": 1, "mass_bins": 2, "ood_images": 0, "floor_images": 0},
    "tracking": {"system_metrics": False, "patience_s": 0},
}


class VagueReader(PixelReader):
    """Reads the pixel with an error of 0.3 and says so: calibrated, and worse."""

    def __init__(self, stated: float = 1.0) -> None:
        super().__init__(sigma=float(np.hypot(0.1, 0.3)), stated=stated)

    def predict(self, images: np.ndarray, **options: Any) -> Any:
        seen = images.copy()
        seen[:, 0, 0] += 0.3 * images[:, 2, 0]  # noise of unit width
        return super().predict(seen, **options)


READERS = {
    "vague": VagueReader(),
    "exact": PixelReader(),
    "overconfident": PixelReader(stated=0.4),
    "leaking": PixelReader(),
}


@pytest.fixture(scope="module")
def config() -> Config:
    return configuration.parse(SETTINGS)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("clean") / "prepared", per_class={"axion": 600, "cdm": 40})


@pytest.fixture(scope="module")
def leaky(clean: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same test images and truths; the train split holds them, too."""
    return copied(clean, tmp_path_factory.mktemp("leaky") / "prepared", [("train", ""), ("test", "s")])


@pytest.fixture(scope="module")
def evidence(
    config: Config, trained: Path, clean: Store, leaky: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of reports for each of `READERS`, as `evaluate` writes them of the regressor in `trained`."""
    folder = tmp_path_factory.mktemp("evidence")
    for name, reader in READERS.items():
        measure(config, reader, leaky if name == "leaking" else clean, folder / name, trained)
    return folder


def measure(config: Config, reader: PixelReader, store: Store, out: Path, trained: Path) -> None:
    """`evaluate`, which draws for most of its time: nothing here looks at a figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[evaluate.__module__], "_illustrate", lambda *_: [])
        evaluate(
            config, reader, store, out=out, tracker=NullTracker(), regressor_sha256=sealed_sha256(trained)
        )


@pytest.fixture(scope="module")
def trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    statistics = {"mean": 0.0, "std": 1.0, "background": 0.0, "noise_level": 1.0}
    spec = RegressorSpec(
        {DEFAULT_TARGET: (-24.0, -22.0)}, (SIDE, SIDE), config.model.model_dump(), statistics, "model_iii"
    )
    return save_regressor(Regressor(spec), tmp_path_factory.mktemp("trained") / "trained")


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch, graphs: dict[str, onnx.ModelProto]) -> None:
    """Tracing takes seconds; each regressor is traced once, and its graph checked against it each time."""
    trace = export._trace

    def known(regressor: Regressor, opset: int) -> onnx.ModelProto:
        key = regressor.spec.to_json()
        if key not in graphs:
            graphs[key] = trace(regressor, opset)
        copy = onnx.ModelProto()
        copy.CopyFrom(graphs[key])
        return copy

    monkeypatch.setattr(export, "_trace", known)


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    return {}


def copied(store: Store, path: Path, parts: list[tuple[str, str]], order: int = 1) -> Store:
    """The test images of a store, once for each (split, prefix of their names)."""
    rows = [i for i, split in enumerate(store.samples["split"].to_pylist()) if split == "test"][::order]
    columns = {name: store.samples[name].take(rows).to_pylist() for name in store.samples.column_names}
    writer = StoreWriter(
        path, name="copy", origin="tests", instrument="model_iii", shape=store.shape, dtype="float32",
        parameters={},
    )  # fmt: skip
    with writer:
        for split, prefix in parts:
            names = [
                f"{prefix}{i}" if split == "train" else name for i, name in enumerate(columns["sample_id"])
            ]
            renamed = {"sample_id": names, "split": [split] * len(rows)}
            writer.append(store.images(rows), {**columns, **renamed})
        return writer.commit()


class Project:
    """Registers `trained` with one of the folders of evidence, each time in a run of its own."""

    def __init__(self, config: Config, trained: Path, evidence: Path, clean: Store, leaky: Store) -> None:
        self.config, self.trained, self.evidence = config, trained, evidence
        self.stores = {name: leaky if name == "leaking" else clean for name in READERS}

    def new_run(self, file: Path = Path("run.json")) -> str:
        with start_run(self.config, name="train", journal=f"{len(list(Path().iterdir()))}.jsonl") as tracker:
            assert tracker.run_id is not None
        write_run(file, RunRecord(tracker.run_id, tracker.experiment_id, "d" * 64))
        return tracker.run_id

    def register(self, name: str, **options: Any) -> tuple[ModelVersion, Decision]:
        self.new_run()
        return register_stage(
            self.config,
            trained=self.trained,
            prepared=Path(self.stores[name].path),
            run_file=Path("run.json"),
            reports=self.evidence / name,
            **options,
        )


@pytest.fixture
def releases(
    project: Path, config: Config, trained: Path, evidence: Path, clean: Store, leaky: Store
) -> Project:
    return Project(config, trained, evidence, clean, leaky)


def test_each_challenger_is_decided_by_its_evidence(releases: Project) -> None:
    """The champion reads with an error of 0.3, which `overconfident` and `leaking` would beat by far."""
    champion, decision = releases.register("vague")
    assert decision.promote and decision.reason.startswith("first champion")
    for number, (name, reason) in enumerate(
        [
            ("vague", "stays challenger, not better at 95%"),
            ("overconfident", "stays challenger: coverage at 68% is"),
            ("leaking", "stays challenger, its test counts for nothing: 320 groups are in both"),
            ("exact", "better: mean absolute error"),
        ]
    ):
        version, decision = releases.register(name)
        assert version.version == number + 2 and decision.promote is (name == "exact"), decision.reason
        assert decision.reason.startswith(reason)
        assert version.tags["darkarc.decision"] == decision.reason
        assert version.aliases == (("champion",) if decision.promote else ("challenger",))
        record = json.loads((releases.evidence / name / "registered.json").read_text())
        assert (record["version"], record["champion"]) == (version.version, decision.promote)
        assert record["champion_uri"] == (version if decision.promote else champion).uri


@pytest.mark.parametrize("name", ["overconfident", "leaking"])
def test_what_is_wrong_keeps_even_the_first_from_the_throne(releases: Project, name: str) -> None:
    version, decision = releases.register(name)
    assert not decision.promote and version.aliases == ("challenger",)
    assert champion_version(NAME) is None


def test_a_version_carries_its_evidence(releases: Project, clean: Store) -> None:
    version, _ = releases.register("exact")
    metrics = json.loads((releases.evidence / "exact" / "metrics.json").read_text())
    assert float(version.tags["metric.mae_dex"]) == pytest.approx(metrics["mae_dex"], rel=1e-4)
    assert version.tags["darkarc.data_digest"] == clean.digest
    assert version.tags[TEST_DIGEST_TAG] == compared_images(clean, DEFAULT_TARGET)[1] != clean.digest
    again, _ = register_stage(
        releases.config, trained=releases.trained, prepared=Path(clean.path), run_file=Path("run.json"),
        reports=releases.evidence / "exact",
    )  # fmt: skip
    assert again.version == version.version and len(list_versions(NAME)) == 1


def test_errors_are_paired_by_pixels_whatever_the_store_around(
    releases: Project, clean: Store, leaky: Store, config: Config, tmp_path: Path
) -> None:
    order, digest = compared_images(clean, DEFAULT_TARGET)
    turned = copied(clean, tmp_path / "turned", [("test", "")], order=-1)
    reverse, same = compared_images(turned, DEFAULT_TARGET)
    assert digest == same == compared_images(leaky, DEFAULT_TARGET)[1]
    assert len({clean.digest, turned.digest, leaky.digest}) == 3
    measure(config, READERS["exact"], turned, tmp_path / "reports", releases.trained)
    table = "test_predictions.parquet"
    ours = absolute_errors(releases.evidence / "exact" / table, clean, DEFAULT_TARGET)
    theirs = absolute_errors(tmp_path / "reports" / table, turned, DEFAULT_TARGET)
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours[order], theirs[reverse], atol=1e-9)

    releases.register("vague")
    releases.stores["exact"] = turned
    releases.evidence = tmp_path
    (tmp_path / "reports").rename(tmp_path / "exact")
    assert releases.register("exact")[1].reason.startswith("better")


def test_other_pixels_or_truths_are_other_test_data(clean: Store, tmp_path: Path) -> None:
    _, digest = compared_images(clean, DEFAULT_TARGET)
    fewer = make_store(tmp_path / "fewer", per_class={"axion": 598, "cdm": 40})
    other = make_store(tmp_path / "other", per_class={"axion": 600, "cdm": 40}, sigma=0.2)  # the same images
    digests = {digest, compared_images(fewer, DEFAULT_TARGET)[1], compared_images(other, DEFAULT_TARGET)[1]}
    assert len(digests) == 3


def test_predictions_of_another_store_are_refused(
    releases: Project, clean: Store, leaky: Store, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "other", per_class={"axion": 600, "cdm": 40}, sigma=0.2)
    with pytest.raises(ReleaseError, match=r"not of the test images of .*run `darkarc evaluate` again"):
        absolute_errors(releases.evidence / "exact" / "test_predictions.parquet", other, DEFAULT_TARGET)


def test_numbers_of_another_regressor_are_refused(releases: Project, tmp_path: Path) -> None:
    """As `darkarc train; darkarc register` would have it, without `evaluate` between."""
    other = load_regressor(releases.trained)
    torch.nn.init.constant_(other.target_layer.bias, 1.0)
    measured, releases.trained = releases.trained, save_regressor(other, tmp_path / "other")
    says = rf"metrics\.json: of another regressor .*{sealed_sha256(measured)}.*run `darkarc evaluate` again"
    with pytest.raises(ReleaseError, match=says):
        releases.register("exact")
    assert list_versions(NAME) == []
    releases.trained = shutil.copytree(measured, tmp_path / "same")
    assert releases.register("exact")[1].promote


def test_numbers_that_do_not_say_whose_they_are_are_refused(releases: Project, tmp_path: Path) -> None:
    shutil.copytree(releases.evidence / "exact", tmp_path / "exact")
    metrics = json.loads((tmp_path / "exact/metrics.json").read_text())
    del metrics["regressor"]  # an earlier darkarc's
    (tmp_path / "exact/metrics.json").write_text(json.dumps(metrics))
    releases.evidence = tmp_path
    with pytest.raises(ReleaseError, match=r"does not say which regressor .*run `darkarc evaluate` again"):
        releases.register("exact")
    assert list_versions(NAME) == []


def test_numbers_of_other_pixels_are_refused(releases: Project, clean: Store, tmp_path: Path) -> None:
    """The same names and truths, as another `simulate.noise` would have it."""
    other = tmp_path / "other"
    rows = clean.samples
    writer = StoreWriter(
        other, name="copy", origin="tests", instrument="model_iii", shape=clean.shape, dtype="float32",
        parameters={},
    )  # fmt: skip
    with writer:
        columns = {name: rows[name].to_pylist() for name in rows.column_names if name != "pixel_sha256"}
        writer.append(clean.images(slice(None)) + np.float32(0.1), columns)
        releases.stores["exact"] = writer.commit()
    with pytest.raises(ReleaseError, match=r"measured on other images than those of .*/other now.*evaluate"):
        releases.register("exact")
    assert list_versions(NAME) == []


def test_what_was_trained_on_another_store_does_not_win_on_this_one(
    releases: Project, clean: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split drawn anew would hold images that it was trained on."""
    monkeypatch.setattr(release, "run_tags", lambda _: {"darkarc.data_digest": "f" * 64})
    _, decision = releases.register("exact")
    assert not decision.promote
    assert (
        f"trained on another prepared store (ffffffffffff) than it was tested on ({clean.digest[:12]})"
        in (decision.reason)
    )
    monkeypatch.setattr(release, "run_tags", lambda _: {"darkarc.data_digest": clean.digest})
    assert releases.register("exact")[1].promote


def test_a_rollback_that_was_killed_is_not_done_twice(releases: Project) -> None:
    for name in ("vague", "exact"):
        version, _ = releases.register(name)
    reports = releases.evidence / "exact"
    third, decision = releases.register("exact", force="as a third")
    assert decision.promote and third.version == 3
    before = (reports / "registered.json").read_bytes()
    assert rollback_stage(releases.config, "too slow", reports=reports).version == version.version
    after = (reports / "registered.json").read_bytes()
    (reports / "registered.json").write_bytes(before)  # as a kill before the last step leaves it
    assert rollback_stage(releases.config, " too slow", reports=reports).version == version.version
    assert json.loads((reports / "registered.json").read_bytes())["champion_uri"] == version.uri
    assert json.loads(after)["champion_uri"] == version.uri
    assert rollback_stage(releases.config, "too slow", reports=reports).version == 1, "a second one"


def test_a_champion_with_the_digest_of_before_is_compared_all_the_same(
    releases: Project, clean: Store
) -> None:
    """Then the digest was the whole store's and the errors lay in the store's order."""
    champion, _ = releases.register("vague")
    old = absolute_errors(releases.evidence / "vague" / "test_predictions.parquet", clean, DEFAULT_TARGET)
    rewrite(champion, old, clean.digest)
    assert releases.register("exact")[1].reason.startswith("better: mean absolute error")
    assert not releases.register("vague")[1].promote


def test_a_champion_of_another_whole_store_is_named_as_such(releases: Project, clean: Store) -> None:
    champion, _ = releases.register("vague")
    rewrite(champion, np.ones(300), "0" * 64)
    reason = releases.register("exact")[1].reason
    assert "tested on other data" in reason and "register it again" in reason
    assert champion_version(NAME).version == champion.version  # type: ignore[union-attr]


def rewrite(version: ModelVersion, errors: np.ndarray, digest: str) -> None:
    """The evidence as an earlier darkarc left it."""
    assert version.run_id is not None and ERRORS_TAG in version.tags
    register_onnx(
        darkarc.tracking.registry.download_model(version.uri),
        name=version.name,
        run_id=version.run_id,
        input_example=np.zeros((1, 1, SIDE, SIDE), np.float32),
        tags={"darkarc.data_digest": digest},
        test_errors=errors,
        test_digest=digest,
    )


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_verbs_from_a_first_champion_to_its_return(releases: Project, clean: Store, leaky: Store) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(SETTINGS))
    common = ["--trained", str(releases.trained), "--run-file", "run.json"]
    vague, exact, leaking = (
        [*common, "--prepared", str(releases.stores[name].path), "--reports", str(releases.evidence / name)]
        for name in ("vague", "exact", "leaking")
    )
    first = releases.new_run()
    assert "(champion): first champion" in invoke("register", *vague)
    releases.new_run()
    said = invoke("register", *exact, "--force", "sharper")
    assert "(champion): better" in said and "(force was not needed: sharper)" in said
    assert "(champion already, nothing was forced)" in invoke("register", *exact, "--force", "sharper")
    assert f"models:/{NAME}/2 (champion)" in invoke("export", "--prepared", str(clean.path))
    exported = Path("data/exported")
    assert "Version 2 (champion)" in (exported / "README.md").read_text()

    with pytest.raises(RegistryError, match="a rollback needs a reason"):
        invoke("register", *exact, "--rollback", " ")
    said = invoke("register", *exact, "--rollback", "fails on Euclid images")
    assert said == f"models:/{NAME}/1 is champion again"
    record = json.loads((releases.evidence / "exact/registered.json").read_text())
    assert (record["version"], record["champion"], record["champion_uri"]) == (1, True, f"models:/{NAME}/1")
    assert record["reason"] == "champion again: fails on Euclid images"
    assert "stays challenger: rolled back to version 1: fails on Euclid images" in invoke("register", *exact)
    record = json.loads((releases.evidence / "exact/registered.json").read_text())
    assert (record["version"], record["champion"], record["champion_uri"]) == (2, False, f"models:/{NAME}/1")

    assert f"models:/{NAME}/1 (champion)" in invoke("export", "--prepared", str(clean.path))
    card = (exported / "README.md").read_text()
    assert "Version 1 (champion)" in card and f"| MLflow run | {first} |" in card
    assert f"models:/{NAME}/2 (challenger)" in invoke("export", "--alias", "challenger", "--out", "other")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    answers: dict[str, Any] = {"path": "data/exported/model.onnx", "images": clean.images([0, 1])}
    exec(code, answers)
    assert answers["posterior"].median.shape == (2,)

    releases.new_run()
    assert "(challenger): stays challenger, its test counts for nothing" in invoke("register", *leaking)
    said = invoke("register", *leaking, "--force", "no other at hand")
    assert "(champion): forced: no other at hand (else: stays challenger" in said


def git(*words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_card_and_report_say_where_the_regressor_comes_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: data under DVC, a study's winner, train, evaluate, register, export."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    splits = {"train": 60, "validation": 20, "calibration": 20, "test": 40}
    write_prepared(project / "raw", splits=splits)
    stage = {"cmd": "mkdir -p data && cp -r raw data/prepared", "deps": ["raw"], "outs": ["data/prepared"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": stage}}))
    Path("params.yaml").write_text(yaml.safe_dump(SETTINGS))
    git("init", "-q")
    git("add", "params.yaml", "dvc.yaml")
    git("commit", "-qm", "start")
    for words in (["init", "-q"], ["repro", "-q"]):
        subprocess.run(["dvc", *words], check=True, capture_output=True)
    (out,) = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["prepare"]["outs"]
    parameters = {"model": {}, "train": {"weight_decay": 0.02}}
    winner = {"study": "random", "trial": 7, "searched": ["train.weight_decay"], "parameters": parameters}
    write_winner(winner, "reports/winner.yaml")
    commit = git("rev-parse", "HEAD")
    Path("params.yaml").write_text(yaml.safe_dump(SETTINGS | {"seed": 1}))
    invoke("train", "--quiet")
    Path("params.yaml").write_text(yaml.safe_dump(SETTINGS))
    git("add", "dvc.lock")
    git("commit", "-qm", "later: not what was trained with")
    invoke("evaluate", "--quiet")
    invoke("register", "--force", "a test")
    invoke("export")
    run = json.loads(Path("data/run.json").read_text())
    expected = {
        "Git commit": f"{commit}, with changes that were not committed",
        "DVC revision": f"{out['md5']} (MD5 of the data in dvc.lock)",
        "Study": "random, best trial 7",
        "MLflow run": run["run_id"],
        "Training digest": run["training_digest"],
    }
    version = get_version(NAME, 1)
    lineage = "\n".join(f"| {name} | {value} |" for name, value in expected.items())
    for card in (read_card(version), Path("data/exported/README.md").read_text()):
        assert f"## Lineage\n\n|  |  |\n|---|---|\n{lineage}\n" in card
    report = Path("reports/report.html").read_text()
    for name, value in expected.items():
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in report
    assert version.tags["darkarc.git_commit"] == f"{commit}+dirty"
    assert version.tags["darkarc.dvc_data_md5"] == out["md5"]
    assert (version.tags["darkarc.study"], version.tags["darkarc.trial"]) == ("random", "7")


def test_without_git_dvc_and_study_the_card_says_so(releases: Project) -> None:
    version, _ = releases.register("exact")
    card = read_card(version)
    for name in ("Git commit", "DVC revision", "Study"):
        assert f"| {name} | none recorded |" in card
    assert f"| MLflow run | {version.run_id} |" in card
    assert "darkarc.git_commit" not in version.tags


@pytest.mark.slow
def test_a_rollback_reaches_the_export_through_dvc(releases: Project, clean: Store) -> None:
    """The stages of dvc.yaml itself, on evidence that is there already."""
    shutil.copytree(PROJECT / "src", "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    kept = {name: stages[name] for name in ("register", "export")}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    Path("params.yaml").write_text(whole(SETTINGS))
    shutil.copytree(clean.path, "data/prepared")
    shutil.copytree(releases.trained, "data/trained")
    Path("reports").mkdir()
    here = Path.cwd()
    run("dvc", "init", "-q", "--no-scm", cwd=here)
    releases.register("vague")
    releases.new_run(Path("data/run.json"))
    for file in ("metrics.json", "test_predictions.parquet"):
        shutil.copy(releases.evidence / "exact" / file, Path("reports") / file)
    assert ran(run("dvc", "repro", cwd=here)) == ["register", "export"]
    assert "Version 2 (champion)" in Path("data/exported/README.md").read_text()
    invoke("register", "--rollback", "fails on Euclid images")
    assert ran(run("dvc", "repro", cwd=here)) == ["register", "export"]
    assert "Version 1 (champion)" in Path("data/exported/README.md").read_text()
    assert ran(run("dvc", "repro", cwd=here)) == []
