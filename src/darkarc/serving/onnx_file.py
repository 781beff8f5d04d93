"""Reading an ONNX file from anywhere: what it may hold, checked before anything of it runs.

A graph accepted here is one file of standard operators, with darkarc's metadata: in a straight line, but
for `Scan`, whose body is such a line itself and runs once for each row of a tensor (the steps of a fit). It
cannot read other files, load libraries, branch or loop without end; what it computes is still the business
of who made it.
"""

import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darkarc.config import ModelConfig
from darkarc.models import QUANTILE_LEVELS, Prediction, RegressorSpec
from darkarc.serving.onnx_seal import is_whole

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

SPEC_KEY = "darkarc.regressor"
"""The entry of `metadata_props` that holds the `RegressorSpec` as JSON."""

INPUT = "images"
OUTPUTS = Prediction._fields
"""Names of the graph's input and of the outputs it may have."""

MAX_BYTES = 512 * 1024**2
MAX_SPEC_BYTES = 4 * 1024**2
SCAN = "Scan"
"""The only operator with a graph of its own that a regressor may have."""
STANDARD_DOMAINS = ("", "ai.onnx")


class OnnxError(ValueError):
    """An ONNX file that is not a darkarc regressor, or not a safe one; the message names file and reason."""


@dataclass(frozen=True)
class OnnxFile:
    """A checked file: its bytes, as they were checked, and the regressor they describe."""

    path: Path
    content: bytes
    spec: RegressorSpec


def read_onnx(path: str | Path, *, max_bytes: int = MAX_BYTES) -> OnnxFile:
    """Read and check one exported regressor; nothing of it is run. Raises `OnnxError`."""
    path = Path(path)
    content = _read_bounded(path, max_bytes)
    model = _parse(path, content)
    _check_graph(path, model)
    spec = _read_spec(path, model)
    _check_signature(path, model, spec)
    if not is_whole(model, content):
        raise OnnxError(
            f"{path}: not the bytes that `darkarc export` sealed: the file was damaged or changed. Copy or "
            "export it again"
        )
    return OnnxFile(path, content, spec)


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        # Before it is opened: a named pipe would never answer.
        if not stat.S_ISREG(status.st_mode):
            raise OnnxError(f"{path}: expected a file, found something else (a folder, pipe or device)")
        if status.st_size > max_bytes:
            raise OnnxError(
                f"{path}: {status.st_size / 1e6:.1f} MB is more than the {max_bytes / 1e6:.1f} MB that a "
                "regressor may have"
            )
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise OnnxError(f"{path}: cannot read it: {error.strerror or error}") from error


def _parse(path: Path, content: bytes) -> "ModelProto":
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError, whose package ships no types
        raise OnnxError(f"{path}: not an ONNX file, or a damaged one: {error}") from error
    if not model.HasField("graph"):
        raise OnnxError(f"{path}: not an ONNX file: it holds no graph")
    return model


def _check_graph(path: Path, model: "ModelProto") -> None:
    from onnx import AttributeProto

    if model.functions or model.training_info:
        raise OnnxError(f"{path}: holds functions or graphs beside the regressor's; not an export of darkarc")
    graphs = [model.graph, *scan_bodies(model.graph)]
    domains = {entry.domain for entry in model.opset_import}
    domains |= {node.domain for graph in graphs for node in graph.node}
    foreign = sorted(domain for domain in domains if domain not in STANDARD_DOMAINS)
    if foreign:
        raise OnnxError(
            f"{path}: uses custom operators of {', '.join(map(repr, foreign))}; only standard ones run"
        )
    for graph in graphs:
        for node in graph.node:
            inner = [
                a.type for a in node.attribute if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
            ]
            body = graph is model.graph and node.op_type == SCAN and inner == [AttributeProto.GRAPH]
            if inner and not body:
                raise OnnxError(
                    f"{path}: operator {node.op_type} holds a graph of its own (a loop or a branch); "
                    "not an export of darkarc"
                )
    for tensor in (tensor for graph in graphs for tensor in _tensors(graph)):
        if tensor.external_data or tensor.data_location:
            raise OnnxError(
                f"{path}: tensor {tensor.name!r} lies in another file; a regressor is one file. "
                "Export it again with `darkarc export`"
            )


def scan_bodies(graph: "GraphProto") -> list["GraphProto"]:
    """The bodies of a graph's scans. They may use any value of the graph around them."""
    from onnx import AttributeProto

    scans = (node for node in graph.node if node.op_type == SCAN)
    return [a.g for node in scans for a in node.attribute if a.type == AttributeProto.GRAPH]


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    """Every tensor that a graph can hold, those of its subgraphs left out."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _read_spec(path: Path, model: "ModelProto") -> RegressorSpec:
    found = [entry.value for entry in model.metadata_props if entry.key == SPEC_KEY]
    if len(found) != 1:
        raise OnnxError(
            f"{path}: expected one entry {SPEC_KEY!r} in its metadata, found {len(found)}: this ONNX file "
            "was not written by `darkarc export`, so its units, prior and input size are unknown"
        )
    if len(found[0]) > MAX_SPEC_BYTES:
        raise OnnxError(f"{path}: its entry {SPEC_KEY!r} has {len(found[0])} characters: damaged or hostile")
    try:
        spec = RegressorSpec.from_json(found[0])
        ModelConfig.model_validate(spec.model)
    except (ValueError, RecursionError) as error:
        raise OnnxError(f"{path}: its entry {SPEC_KEY!r} does not describe a regressor: {error}") from error
    for name, (low, high) in spec.targets.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise OnnxError(f"{path}: the prior of {name} is [{low:g}, {high:g}], which is no range")
    return spec


def signature(spec: RegressorSpec) -> dict[str, tuple[int | str, ...]]:
    """Name -> shape of the input and the outputs of a regressor's graph; `"batch"` is free."""
    model = ModelConfig.model_validate(spec.model)
    targets, bins = len(spec.targets), model.bins
    shapes: dict[str, tuple[int, ...]] = {
        "density": (targets, bins),
        "median": (targets,),
        "quantiles": (targets, len(QUANTILE_LEVELS)),
        "class_probability": (len(spec.classes),),
    }
    if model.novelty != "none":
        shapes["novelty"] = ()
    if spec.members > 1:
        shapes["std_between"] = (targets,)
    return {INPUT: ("batch", 1, *spec.shape), **{name: ("batch", *shape) for name, shape in shapes.items()}}


def outputs_of(spec: RegressorSpec) -> list[str]:
    """Names of the outputs of a regressor's graph, in the order of `darkarc.models.Prediction`."""
    return list(signature(spec))[1:]


def _check_signature(path: Path, model: "ModelProto", spec: RegressorSpec) -> None:
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    found = {value.name: _declared(value) for value in (*inputs, *graph.output)}
    expected = signature(spec)
    for name, shape in expected.items():
        if found.get(name) != ("float32", shape):
            raise OnnxError(
                f"{path}: expected {name!r} as float32 {_text(shape)} for the regressor it describes, found "
                + (
                    f"{found[name][0]} {_text(found[name][1])}"
                    if name in found
                    else "no such input or output"
                )
            )
    surplus = sorted(found.keys() - expected.keys())
    if surplus:
        raise OnnxError(f"{path}: has inputs or outputs that no regressor has: {', '.join(surplus)}")


def _declared(value: "ValueInfoProto") -> tuple[str, tuple[int | str, ...]]:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    kind = "float32" if tensor.elem_type == TensorProto.FLOAT else f"element type {tensor.elem_type}"
    dims = tensor.shape.dim
    # Only the first dimension may be free, whatever the exporter called it.
    free = ["batch" if k == 0 and dim.HasField("dim_param") else dim.dim_value for k, dim in enumerate(dims)]
    return kind, tuple(free)


def _text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
