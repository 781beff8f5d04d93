"""`mlflow models serve` on a registered regressor: MLflow's own server, and nothing of ours in it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request

import numpy as np
import pytest

from darkarc.serving import load
from darkarc.tracking import open_client, tracking_uri
from darkarc.tracking.location import experiment_id
from darkarc.tracking.registration import register_onnx
from darkarc.tracking.registry import CHAMPION, set_alias
from tests.serving.webdriver import OPENER, wait_for
from tests.watch import Watch

NAME = "axion-mass-regressor"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(onnx_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Watch]]:
    """Address of a server of the champion, in whose process darkarc cannot be imported; and its watch."""
    root = tmp_path_factory.mktemp("registry")
    (root / "params.yaml").write_text("seed: 0\n")
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "DVC_ROOT"):
            context.delenv(variable, raising=False)
        context.chdir(root)
        uri = tracking_uri()
        client = open_client()
        run = client.create_run(experiment_id(client, uri, "darkarc"))
        client.set_terminated(run.info.run_id)
        example = np.zeros((1, 1, 64, 64), np.float32)
        version = register_onnx(onnx_path, name=NAME, run_id=run.info.run_id, input_example=example)
        set_alias(NAME, CHAMPION, version.version)
    watch = Watch(root / "watch")
    (watch.folder / "darkarc.py").write_text("raise ImportError('nothing of ours is needed here')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        **watch.environment,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": str(watch.folder),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["mlflow", "models", "serve", "-m", f"models:/{NAME}@{CHAMPION}", "--env-manager", "local"]
    log = root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=output, stderr=output, cwd=root, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with OPENER.open(f"{address}/ping", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_for(answers, 400)
        yield address, watch
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, body: object) -> dict:
    content = json.dumps(body).encode()
    request = Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.parametrize("n", [1, 3])
def test_density_median_quantiles_and_classes_come_back(served, onnx_path, lenses, n):
    images = lenses[:n, None]
    found = ask(served[0], {"inputs": images.tolist()})
    expected = load(onnx_path).predict(images)
    assert set(found) == {"density", "median", "quantiles", "class_probability", "novelty"}
    assert np.allclose(found["novelty"], expected.novelty, atol=1e-2)
    density = np.array(found["density"])
    assert density.shape == (n, 1, expected.density.shape[1])
    assert np.allclose(density[:, 0], expected.density, rtol=1e-4, atol=1e-4)
    assert np.allclose(np.array(found["median"])[:, 0], expected.median, atol=1e-3)
    quantiles = expected.quantile([0.05, 0.16, 0.84, 0.95])
    assert np.allclose(np.array(found["quantiles"])[:, 0], quantiles, atol=1e-3)
    assert np.allclose(found["class_probability"], expected.class_probability, atol=1e-5)


def test_a_wrong_shape_is_the_senders_mistake(served, lenses):
    for wrong in ({"inputs": lenses[0, :32].tolist()}, {"pixels": [1, 2]}, "text"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(served[0], wrong)
        assert refusal.value.code == 400
        refusal.value.close()
    assert ask(served[0], {"inputs": lenses[:1, None].tolist()})


def test_it_asks_nobody_else(served):
    assert served[1].processes() >= 1
    assert served[1].away() == []
