"""Operators of a traced graph in terms of others, so that fewer need a rule.

What has several results becomes several slices, a gated unit a product, and what says nothing (a slice
of everything, a copy over everything) leaves.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from spr_or.pruning.compaction.fixed_sizes import fixed_size

aten = torch.ops.aten


def simplify(graph: fx.GraphModule) -> None:
    """Replace operators by simpler ones, in place."""
    for node in list(graph.graph.nodes):
        rewritten = _SIMPLER.get(node.target)
        if rewritten is not None:
            with graph.graph.inserting_after(node):
                rewritten(graph.graph, node)


def _pieces(graph: fx.Graph, node: fx.Node) -> None:
    """Every ``getitem`` of a split as a slice, where sizes do not vary."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    dim = int(node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0))  # type: ignore[arg-type]
    lengths: list[Any] = [fixed_size(value.shape[dim]) for value in node.meta["val"]]
    if None in lengths:
        return
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    for user in list(node.users):
        k: Any = user.args[1]
        with graph.inserting_before(user):
            piece = graph.call_function(
                aten.slice.Tensor, (x, dim, starts[k], starts[k] + lengths[k])
            )
        piece.meta = dict(user.meta)
        user.replace_all_uses_with(piece)
        graph.erase_node(user)
    graph.erase_node(node)


def _unbound(graph: fx.Graph, node: fx.Node) -> None:
    x, dim = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    for user in list(node.users):
        with graph.inserting_before(user):
            part = graph.call_function(aten.select.int, (x, dim, user.args[1]))
        part.meta = dict(user.meta)
        user.replace_all_uses_with(part)
        graph.erase_node(user)
    graph.erase_node(node)


def _gated(graph: fx.Graph, node: fx.Node) -> None:
    """glu(x) = a · sigmoid(b) with x = (a, b)."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    dim = int(node.args[1] if len(node.args) > 1 else -1)  # type: ignore[arg-type]
    width = fixed_size(node.meta["val"].shape[dim])
    if width is None:
        return
    with graph.inserting_before(node):
        a = graph.call_function(aten.slice.Tensor, (x, dim, 0, width))
        b = graph.call_function(aten.slice.Tensor, (x, dim, width, 2 * width))
        gate = graph.call_function(aten.sigmoid.default, (b,))
        product = graph.call_function(aten.mul.Tensor, (a, gate))
    for new in (a, b, gate, product):
        new.meta = dict(node.meta)
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _is_whole(node: fx.Node, position: int) -> bool:
    """Whether dim, start, end and step, from that argument on, say everything."""
    given = list(node.args[position:])
    _, start, end, step = given + [0, None, None, 1][len(given) :]
    return bool(start in (0, None) and end in (None, sys.maxsize) and step == 1)


def _whole_slice(graph: fx.Graph, node: fx.Node) -> None:
    if _is_whole(node, 1) and not node.kwargs:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)


def _overwritten(graph: fx.Graph, node: fx.Node) -> None:
    """All of a tensor overwritten by another one of its shape and type."""
    base, source = node.args[:2]
    assert isinstance(base, fx.Node) and isinstance(source, fx.Node)
    if node.target == aten.slice_scatter.default and not (_is_whole(node, 2) and not node.kwargs):
        return
    old, new = base.meta["val"], source.meta["val"]
    if old.shape == new.shape and old.dtype == new.dtype:
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _constant_padding(graph: fx.Graph, node: fx.Node) -> None:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    if mode == "constant":
        node.target = aten.constant_pad_nd.default
        node.args, node.kwargs = (*node.args[:2], 0.0 if value is None else value), {}


def _norm_of_inference(graph: fx.Graph, node: fx.Node) -> None:
    """What decomposition makes of a BatchNorm, as the BatchNorm that it was."""
    x, weight, bias, mean, variance, momentum, eps = node.args
    with graph.inserting_before(node):
        norm = graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
        )
    norm.meta = {**node.meta, "val": node.meta["val"][0]}
    for user in list(node.users):
        user.replace_all_uses_with(norm)
        graph.erase_node(user)
    graph.erase_node(node)


_SIMPLER: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    aten.split_with_sizes.default: _pieces,
    aten.split.Tensor: _pieces,
    aten.split.sizes: _pieces,
    aten.chunk.default: _pieces,
    aten.unbind.int: _unbound,
    aten.glu.default: _gated,
    aten.pad.default: _constant_padding,
    aten.slice.Tensor: _whole_slice,
    aten.slice_scatter.default: _overwritten,
    aten.copy.default: _overwritten,
    aten._native_batch_norm_legit_no_training.default: _norm_of_inference,
}
