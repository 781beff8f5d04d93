"""What every backbone costs: parameters, multiply-adds, images a second forward and in a training step.

Multiply-adds are those of matrix products and convolutions in a forward pass (torch's flop counter, halved).
A training step is forward, backward and AdamW. On a CPU the seconds are the process's own, so that other
work on the machine hardly counts; on a GPU steps are timed by events, in bfloat16, channels-last. Prints
markdown.

    python benchmarks/backbones.py [--side 150] [--batch 32] [--seconds 2] [--only small_resnet resnet18]
    python benchmarks/backbones.py --export     # each as ONNX: the largest difference to torch

--export answers for every backbone what the tests, for want of minutes, try on a few.
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darkarc.config import DEFAULT_TARGET, ModelConfig
from darkarc.models import BACKBONES, Backbone, Regressor, RegressorSpec
from darkarc.serving.export import ExportError, export_onnx


def seconds_each(run: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Seconds of one call, the mean over as many as the budget holds (at least two), after one to warm up."""
    run()
    spent, calls = 0.0, 0
    while spent < budget_s or calls < 2:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            spent += start.elapsed_time(end) / 1e3
        else:
            begun = time.process_time()
            run()
            spent += time.process_time() - begun
        calls += 1
    return spent / calls


def multiply_adds(backbone: nn.Module, side: int, device: torch.device) -> float:
    """Of one image, in a forward pass."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        backbone.eval()(torch.zeros(1, 1, side, side, device=device))
    return counter.get_total_flops() / 2


def forward_and_step(backbone: Backbone, images: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """An answer to a batch, and a training step on it."""
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-4)
    mixed = torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.is_cuda)

    def forward() -> None:
        with torch.inference_mode(), mixed:
            backbone.eval()(images)

    def step() -> None:
        with mixed:
            loss = backbone.train()(images).float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return forward, step


def row(name: str, arguments: argparse.Namespace, device: torch.device) -> list[str]:
    torch.manual_seed(0)
    side = arguments.side
    backbone = BACKBONES[name](ModelConfig(backbone=name, width=arguments.width), (side, side))
    backbone = backbone.to(device).to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in backbone.parameters())
    cost = multiply_adds(backbone, side, device)
    speeds = ["-", "-"]
    if arguments.seconds > 0:
        images = torch.randn(arguments.batch, 1, side, side, device=device)
        images = images.to(memory_format=torch.channels_last)
        rates = [
            arguments.batch / seconds_each(run, device, arguments.seconds / 2)
            for run in forward_and_step(backbone, images)
        ]
        speeds = [f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates]
    return [
        f"`{name}`",
        f"{parameters / 1e6:.2f}",
        f"{cost / 1e6:.0f}",
        *speeds,
        BACKBONES[name].source,
    ]


def exported(name: str, arguments: argparse.Namespace) -> list[str]:
    """`export_onnx` compares with torch on ten images and refuses a difference above 1e-4."""
    side = arguments.side
    model = ModelConfig(backbone=name, width=arguments.width, bins=64).model_dump(mode="json")
    torch.manual_seed(0)
    statistics = {"mean": 0.4, "std": 1.3}
    spec = RegressorSpec({DEFAULT_TARGET: (-24.0, -22.0)}, (side, side), model, statistics, "benchmark")
    regressor = Regressor(spec)
    with torch.no_grad():
        for parameter in regressor.parameters():  # nothing stays hidden behind a scale of nought
            parameter.add_(0.03 * torch.randn_like(parameter))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(regressor, Path(folder) / "model.onnx")
            return [f"`{name}`", f"{path.stat().st_size / 1e6:.1f} MB", "equal to 1e-4"]
    except ExportError as error:
        return [f"`{name}`", "-", str(error)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--side", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, a backbone; 0: count only")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--export", action="store_true", help="export each to ONNX instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch")
    if arguments.export:
        print("| backbone | ONNX | answers |\n|---|---|---|")
        for name in arguments.only:
            print(f"| {' | '.join(exported(name, arguments))} |", flush=True)
        return
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if arguments.device == "auto" else arguments.device)
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core"
    side, batch, width = arguments.side, arguments.batch, arguments.width
    print(f"{side} x {side} pixels, width {width:g}, batch {batch}, {where}\n")
    headings = ("parameters (M)", "multiply-adds (M)", "forward (images/s)", "training (images/s)")
    print(f"| backbone | {' | '.join(headings)} | source |")
    print("|---|---:|---:|---:|---:|---|")
    for name in arguments.only:
        print(f"| {' | '.join(row(name, arguments, device))} |", flush=True)


if __name__ == "__main__":
    main()
