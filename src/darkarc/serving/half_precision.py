"""An exported regressor whose backbone computes in float16, and nothing else.

A lens is fitted to residuals of a thousandth of its brightness, and a density's tails are logarithms of small
numbers: neither survives a single value of eleven bits on its way. onnxruntime's own converter
(`convert_float_to_float16`) has every value pass through float16, those of the operators that it is told to
leave alone too; here only the backbone's convolutions, and what merely passes their values on, change.
"""

from typing import TYPE_CHECKING

import numpy as np

from darkarc.serving.onnx_file import scan_bodies

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

BACKBONE = "backbone."
"""What the names of the backbone's weights begin with, behind `members.N.` in an ensemble."""
PASSING = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Mul", "Add", "AveragePool", "MaxPool", "Concat"})
"""Operators that stay in float16 where all that comes in is. Sums over many pixels are not among them."""


def backbone_in_half(model: "ModelProto") -> int:
    """Turn the backbone's convolutions to float16 in place; returns how many there were.

    Weights are rounded to float16. Casts stand where values enter and leave the backbone, so that inputs,
    outputs and every other operator stay as they were.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    half = _half_nodes(list(graph.node), set(weights))
    inside = {name for k in half for name in graph.node[k].output}
    leaving = {name for k, node in enumerate(graph.node) if k not in half for name in node.input} & inside
    leaving |= {output.name for output in graph.output} & inside
    looped = {name for body in scan_bodies(graph) for node in body.node for name in node.input}
    leaving |= looped & inside
    nodes: list[NodeProto] = []
    cast: set[str] = set()

    def in_half(name: str) -> str:
        """The name of the value's float16 form, which is made where it is first asked for."""
        if not name or name in inside:
            return name and _half(name)
        if name not in cast:
            cast.add(name)
            if name in weights:
                rounded = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(rounded, _half(name)))
            else:
                nodes.append(
                    helper.make_node("Cast", [name], [_half(name)], f"{name}.to_half", to=TensorProto.FLOAT16)
                )
        return _half(name)

    for k, node in enumerate(graph.node):
        if k not in half:
            nodes.append(node)
            continue
        changed = type(node)()
        changed.CopyFrom(node)
        changed.input[:] = [in_half(name) for name in node.input]
        changed.output[:] = [_half(name) for name in node.output]
        nodes.append(changed)
        nodes += [
            helper.make_node("Cast", [_half(name)], [name], f"{name}.to_single", to=TensorProto.FLOAT)
            for name in node.output
            if name in leaving
        ]
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    used |= looped
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    convolutions = sum(graph.node[k].op_type == "Conv" for k in half)
    # Types noted for values that no longer have them.
    del graph.value_info[:], graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return convolutions


def _half(name: str) -> str:
    return f"{name}.half"


def _half_nodes(nodes: "list[NodeProto]", weights: set[str]) -> set[int]:
    """Places of the nodes to change; `nodes` come in an order in which a value is made before it is used."""
    chosen: set[int] = set()
    inside: set[str] = set()
    for k, node in enumerate(nodes):
        own = node.op_type == "Conv" and any(BACKBONE in name and name in weights for name in node.input)
        passing = node.op_type in PASSING and all(name in inside for name in node.input)
        if own or passing:
            chosen.add(k)
            inside.update(node.output)
    return chosen
