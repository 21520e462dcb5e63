"""Operators with weights, and normalisation with constant statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64
from onnxprune.clean.channels import channels
from onnxprune.clean.transfers.registry import transfer
from onnxprune.linear.matrix_form import by_channel, is_padded, matrix_form
from onnxprune.model.edit import node_id
from onnxprune.structure.structure import PRODUCTS

if TYPE_CHECKING:
    from onnxprune.clean.facts import Facts


@transfer(*PRODUCTS)
def _layer(r: Facts, node: gs.Node) -> None:
    """Rows of weights that are multiples of each other make multiples of one function."""
    weight = r.weights.get(node_id(node))
    values = r.values.get(node.inputs[weight.input].name) if weight else None
    if weight is None or weight.output_axis is None or weight.packed or values is None:
        return
    form = matrix_form(node, weight, values.shape)
    bias = _bias(r, node, form.groups * form.outputs)
    if bias is None:
        return
    x = r.of(weight.data_tensor, weight.data_axis)
    x = x.in_padding(r.roots) if is_padded(node) else x
    matrix = by_channel(form, values.astype(np.float32) if values.itemsize < 4 else values)
    alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    cin = matrix.shape[-1]
    if x.offset.any():
        added = matrix.astype(np.float64) @ x.offset.reshape(form.groups, 1, cin, 1)
        bias = bias + alpha * added.sum(axis=(2, 3)).reshape(-1)
    bucket = np.zeros(form.groups, dtype=np.int64)
    if form.groups > 1:
        of_group = np.unique(x.root.reshape(form.groups, cin), axis=0, return_inverse=True)
        bucket = of_group[1].reshape(-1)
        matrix = matrix * x.scale.reshape(form.groups, 1, 1, cin).astype(matrix.dtype)
    elif not x.plain:
        order = np.argsort(x.root, kind="stable")
        starts = np.flatnonzero(np.diff(x.root[order], prepend=x.root[order[0]] - 1))
        matrix = matrix[..., order] * x.scale[order].astype(matrix.dtype)
        if len(starts) < cin:
            matrix = np.add.reduceat(matrix, starts, axis=-1)
    rows = matrix.reshape(form.groups * form.outputs, -1)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # The sign of a sum with odd weights: two rows that are multiples agree on it.
    direction = np.random.default_rng(1).uniform(0.5, 1.5, rows.shape[1]).astype(rows.dtype)
    scale = np.where(rows @ direction < 0, -largest, largest)
    unit = rows / np.where(scale == 0, 1, scale)[:, None]
    root = r.roots.of([np.repeat(bucket, form.outputs)], [unit])
    axis = weight.output_axis % len(r.shape(node.outputs[0].name))
    r.put(node.outputs[0], channels(axis, root, alpha * scale.astype(np.float64), bias))


def _bias(r: Facts, node: gs.Node, outputs: int) -> F64 | None:
    """Return the constant bias of a layer, ``float64 [outputs]``, or None if it has another."""
    if node.op == "MatMul" or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return np.zeros(outputs)
    value = r.values.get(node.inputs[2].name)
    if value is None or value.shape not in ((), (1,), (1, 1), (outputs,), (1, outputs)):
        return None
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(beta * value.astype(np.float64).reshape(-1), (outputs,)).copy()


@transfer("BatchNormalization")
def _batch_norm(r: Facts, node: gs.Node) -> None:
    operands = [r.values.get(t.name) for t in node.inputs[1:5]]
    training = len([t for t in node.outputs if not t.is_empty()]) > 1
    training |= bool(node.attrs.get("training_mode", 0))
    if training or any(v is None for v in operands):
        return
    gamma, beta, mean, variance = (np.asarray(v, dtype=np.float64) for v in operands)
    factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    if len(r.shape(node.inputs[0].name)) > 1:
        r.put(node.outputs[0], r.of(node.inputs[0].name, 1).linear(factor, beta - mean * factor))
