"""The command line: help, exit status, messages a person can act on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from darkarc import cli
from darkarc.cli import app, is_lack_of_memory

PROJECT = Path(__file__).resolve().parents[1]
VERBS = sorted(
    command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
)


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "darkarc", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_every_stage_of_the_pipeline_and_of_mlflow_is_a_verb():
    import yaml

    stages = {
        name
        for file in [PROJECT / "dvc.yaml", *PROJECT.glob("sources/*/dvc.yaml")]
        for name in yaml.safe_load(file.read_text())["stages"]
    }
    entry_points = set(yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]) - {"main"}
    assert stages == entry_points
    assert stages <= set(VERBS)


@pytest.mark.parametrize("stage", ["register", "export"])
def test_a_stage_that_depends_on_files_depends_on_what_they_import(stage):
    import yaml

    deps = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    files = [dep for dep in deps if dep.startswith("src/darkarc/serving/")]
    # release.py holds both stages, and imports what either needs.
    text = "".join((PROJECT / file).read_text() for file in files if not file.endswith("/release.py"))
    imported = {
        f"src/darkarc/serving/{name}.py" for name in re.findall(r"from darkarc\.serving\.(\w+)", text)
    }
    assert imported and imported | {"src/darkarc/serving/release.py"} <= {*files}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(verb):
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: darkarc {verb}" in " ".join(result.output.split())


@pytest.mark.parametrize("verb", VERBS)
def test_no_word_of_the_help_is_taken_for_markup(verb):
    for parameter in get_command(app).commands[verb].params:
        said = getattr(parameter, "help", None) or ""
        assert Text.from_markup(said).plain == said


def test_help_is_quick_because_nothing_heavy_is_imported():
    script = (
        "import sys, darkarc.cli; print([m for m in ('torch', 'mlflow', 'ray', 'onnx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "-S", "train.epoch=3"], "train.epoch: unknown key; did you mean train.epochs?"),
        (["prepare"], "data/simulated"),
        (["evaluate"], "run `darkarc train` first"),
        (["register"], "run `darkarc train` first"),
        (["ingest", "nowhere"], "nowhere"),
        (["predict", "nothing.onnx", "x.npy"], "nothing.onnx: does not exist"),
        (["export"], "axion-mass-regressor"),
    ],
)
def test_a_mistake_ends_in_one_message_and_a_status(tmp_path, words, said):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    result = run(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_without_parameters_the_file_is_named(tmp_path):
    result = run("simulate", cwd=tmp_path)
    assert result.returncode == 2
    assert "params.yaml: cannot read the parameters" in result.stderr
    assert not list(tmp_path.iterdir())


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (chained(RuntimeError("a worker failed"), MemoryError()), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes do not fit"), False),
        (ImportError("No module named 'memory'"), False),
        (ValueError("out of memory is no number"), False),
    ],
)
def test_each_library_s_words_for_no_memory_are_known(error, expected):
    assert is_lack_of_memory(error) is expected


def test_no_memory_ends_in_one_message_that_says_what_to_lower(monkeypatch, capsys):
    def lacks_memory() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory\nmore")

    monkeypatch.setattr(cli, "app", lacks_memory)
    monkeypatch.delenv("DARKARC_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line and "train.batch_size" in line and "more" not in line.split(";")[0]


@pytest.mark.parametrize(("limit", "said"), [("ulimit -v 1500000", True), ("ulimit -v unlimited", False)])
def test_a_limit_that_ends_libraries_without_a_word_is_named_before(limit, said, tmp_path):
    """OpenBLAS ends the process itself when it is refused memory: no message of ours can come after that."""
    code = "from darkarc.cli import main; main()"
    done = subprocess.run(
        ["bash", "-c", f"{limit}; exec {sys.executable} -c {code!r} --version-that-is-not-there"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert ("limits the address space to 1.4 GB" in done.stderr) is said
    assert "No such option" in done.stderr
