"""Selections in front of views, so that queries, keys and values each have a width of their own.

``qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)[0]`` passes through one tensor of all three, in
which they would have to keep the same positions of D. The same numbers are
``qkv(x)[..., : H * D].view(B, T, H, D).permute(0, 2, 1, 3)``.
"""

import sys
from typing import Any

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import argument
from spr_or.pruning.compaction.fixed_sizes import fixed_size

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default)
_SLICE: tuple[tuple[int, str, Any], ...] = ((2, "start", None), (3, "end", None), (4, "step", 1))


def select_early_(graph: fx.Graph) -> None:
    """Take what is selected out of a view, perhaps permuted, from the tensor that is viewed."""
    for node in list(graph.nodes):
        if node.target == aten.select.int:
            _select_early(graph, node)


def _select_early(graph: fx.Graph, node: fx.Node) -> None:
    source, dim, index = node.args
    assert isinstance(dim, int)
    view = _without_slices(source)
    order = list(range(view.meta["val"].dim()))
    if view.target == aten.permute.default:
        order = [d % len(order) for d in view.args[1]]
        view = _without_slices(view.args[0])
    if view.target not in _VIEWS or not isinstance(index, int):
        return
    x: Any = view.args[0]
    at = order[dim % len(order)]
    pieces = _pieces(x.meta["val"], view.meta["val"], at)
    if pieces is None:
        return
    parts, piece = pieces
    sizes = [n for d, n in enumerate(view.args[1]) if d != at]
    left = [d - (d > at) for d in order if d != at]
    back = sorted(range(len(left)), key=left.__getitem__)
    value = node.meta["val"]
    start = index % parts * piece
    with graph.inserting_before(node):
        part = graph.call_function(aten.slice.Tensor, (x, at, start, start + piece))
        part.meta = {**x.meta, "val": x.meta["val"].narrow(at, start, piece)}
        split = graph.call_function(aten.reshape.default, (part, sizes))
        split.meta = {**view.meta, "val": value.permute(back)}
        if "variable" in view.meta:
            split.meta["variable"] = {d - (d > at) for d in view.meta["variable"] if d != at}
        moved = graph.call_function(aten.permute.default, (split, left))
        moved.meta = dict(node.meta)
    node.replace_all_uses_with(moved)
    graph.erase_node(node)


def _without_slices(node: Any) -> Any:
    """What a node is all of: some versions of torch trace ``x[:, 0]`` as ``x[:][:, 0]``."""
    while node.target == aten.slice.Tensor:
        start, end, step = (argument(node, k, n, d) for k, n, d in _SLICE)
        if start not in (None, 0) or end not in (None, sys.maxsize) or step != 1:
            break
        node = node.args[0]
    return node


def _pieces(x: Tensor, view: Tensor, at: int) -> tuple[int, int] | None:
    """How many pieces of x's dimension are the view's positions, and how long; None where none are."""
    if at >= x.dim() or any(str(x.shape[d]) != str(view.shape[d]) for d in range(at)):
        return None
    whole, parts = fixed_size(x.shape[at]), fixed_size(view.shape[at])
    if whole is None or parts is None or parts in (0, whole) or whole % parts:
        return None
    return parts, whole // parts
