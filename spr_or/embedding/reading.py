"""From a torch network to a `FeedForward`: traced to ATen operators, whose matrices are read off.

An affine operator f has the columns (f(s e_i) - f(0)) / s; so convolutions, BatchNorm, pooling, additions and
the indexed operators of compact networks need no rule of their own.  The result is compared with the network
on random inputs before it is returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from spr_or.embedding.errors import EmbeddingError
from spr_or.embedding.feed_forward import Activation, FeedForward, Form
from spr_or.embedding.operators import LARGEST, RELU, SHAPE_ONLY, name_of, obstacle
from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.trace import trace, where_written

# The size s of the unit vectors: so large that a column does not lose its last digits beside f(0).
_SCALE = 2.0**80
_AT_ONCE = 2**22  # numbers that an operator makes at a time while its matrix is read
_OPERATOR = 8  # roundings of an operator beside those of its sum, BatchNorm's factor included
_AGREE = 1e-9  # relative difference from the network that float64 explains


def read_network(net: nn.Module, shape: Sequence[int]) -> FeedForward:
    """Read a feed-forward ReLU network; ``shape`` is that of one input, without the batch.

    Linear layers, convolutions, BatchNorm with stored statistics, ReLU, average and max pooling,
    flattening, padding, indexing, concatenation and additions, in modules or as functions; compact
    networks too.  The network is copied and read in evaluation mode.

    Raises `EmbeddingError`, which names the layer and its line, for anything else.

    >>> from spr_or.models.toy import mlp
    >>> read = read_network(mlp(4, hidden=[3], num_classes=2), (4,))
    >>> len(read.activations), read.values, len(read.output)
    (1, 7, 2)
    """
    if not isinstance(net, nn.Module):
        raise EmbeddingError(f"the network must be a torch.nn.Module, got {type(net).__name__}")
    kinds = {t.dtype for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()}
    if not kinds <= {torch.float32, torch.float64}:
        named = ", ".join(sorted(str(kind) for kind in kinds))
        raise EmbeddingError(f"the network is in {named}: convert it by net.float() first")
    broken = [name for name, t in net.state_dict().items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise EmbeddingError(f"{broken[0]} of the network holds numbers that are not finite")
    unit = max((torch.finfo(kind).eps / 2 for kind in kinds), default=2.0**-53)
    copied = prepared(net).double().cpu()
    copied.requires_grad_(False)
    try:
        graph = trace(copied, torch.zeros(2, *shape, dtype=torch.float64), all_vary=False)
    except CompactionError as error:
        raise EmbeddingError(str(error).replace("be compacted", "become constraints")) from error
    with torch.no_grad():
        reader = _Reader(graph, tuple(shape))
        read = FeedForward(copied, tuple(shape), tuple(reader.activations), reader.result(), unit)
        _compare(read)
    return read


def _compare(read: FeedForward) -> None:
    """Raise where the forms do not compute what the network computes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((4, *read.shape), dtype=torch.float64, generator=generator)
    expected = read.net(inputs).reshape(len(inputs), -1).numpy()
    _, found = read.evaluate(inputs.flatten(1).numpy())
    difference, scale = float(abs(found - expected).max()), float(abs(expected).max())
    if not difference <= _AGREE * max(scale, 1.0):
        raise EmbeddingError(
            f"the constraints of {type(read.net).__name__} give other outputs than the network, by "
            f"{difference:.2g}. This is a fault of ours, please report the network"
        )


class _Reader:
    """Walks over the graph; ``forms`` holds what depends on the inputs, as forms of the values."""

    def __init__(self, graph: fx.GraphModule, shape: tuple[int, ...]) -> None:
        self.graph = graph
        self.values = 0
        self.activations: list[Activation] = []
        self.forms: dict[fx.Node, Form] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.output: Any = None
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self._input(node, shape)
            elif node.op == "call_function" and node.users:
                self._call(node)
            elif node.op == "output":
                self.output = node.args[0]

    def result(self) -> Form:
        """The form of the outputs."""
        if not isinstance(self.output, fx.Node):
            raise EmbeddingError(
                "the network has several outputs; constraints need a single tensor"
            )
        if self.output not in self.forms:
            raise EmbeddingError("the outputs of the network do not depend on its inputs")
        return self.forms[self.output]

    def _input(self, node: fx.Node, shape: tuple[int, ...]) -> None:
        if self.forms:
            raise EmbeddingError("the network has several inputs; constraints need a single tensor")
        self._add_values(node, shape)

    def _add_values(self, node: fx.Node, shape: tuple[int, ...]) -> None:
        """New values, which the node stands for."""
        count = int(np.prod(shape))
        self.forms[node] = _unit_form(self.values, count)
        self.shapes[node] = shape
        self.values += count

    def _call(self, node: fx.Node) -> None:
        name = name_of(node)
        varying = [x for x in node.all_input_nodes if x in self.forms]
        if name in SHAPE_ONLY or not varying:
            return  # a constant or a size, evaluated where it is read
        if name in RELU or name in LARGEST:
            self._activate(node, varying[0], name in LARGEST)
            return
        reason = obstacle(node, [x for x in _occurrences(node) if x in self.forms])
        if reason:
            raise EmbeddingError(f"{place_of(node)} cannot become constraints: {reason}")
        base = self._run(node, 1, {})
        if not isinstance(base, Tensor) or not base.dim():
            raise EmbeddingError(
                f"{place_of(node)} cannot become constraints: it mixes the samples"
            )
        matrices = [self._matrix(node, x, base) for x in varying]
        self.shapes[node] = tuple(base.shape[1:])
        offset = base.flatten().numpy()
        self.forms[node] = _composed(
            matrices, [self.forms[x] for x in varying], offset, self._cancelled(node, base)
        )

    def _activate(self, node: fx.Node, source: fx.Node, largest: bool) -> None:
        windows, shape = None, self.shapes[source]
        if largest:
            base = self._run(node, 1, {})
            shape = tuple(base.shape[1:])
            # A unit vector lifts exactly those maxima whose window holds it.
            windows = self._matrix(node, source, base).astype(bool).tocsr()
        self.activations.append(
            Activation(place_of(node), self.forms[source], self.values, windows)
        )
        self._add_values(node, shape)

    def _matrix(self, node: fx.Node, operand: fx.Node, base: Tensor) -> Any:
        """M with f(x) = M x + f(0) for one operand and zeros for the others: CSR (outputs, inputs)."""
        from scipy import sparse

        shape = self.shapes[operand]
        count = int(np.prod(shape))
        step = max(1, min(count, _AT_ONCE // max(1, base.numel())))
        rows = []
        for first in range(0, count, step):
            units = torch.eye(min(step, count - first), count - first, dtype=torch.float64)
            units = _SCALE * torch.cat([units.new_zeros(len(units), first), units], 1)
            out = self._run(node, len(units), {operand: units.view(-1, *shape)})
            if out.shape != (len(units), *base.shape[1:]):
                raise EmbeddingError(
                    f"{place_of(node)} cannot become constraints: it mixes the samples"
                )
            columns = (out - base).reshape(len(units), -1).numpy() / _SCALE
            rows.append(sparse.csr_matrix(columns))
        return sparse.vstack(rows).T.tocsr()

    def _cancelled(self, node: fx.Node, base: Tensor) -> np.ndarray:
        """|f(0)| before anything in it cancelled: BatchNorm's |beta| + |beta - f(0)|, (outputs,)."""
        if name_of(node) == "batch_norm" and isinstance(node.args[2], fx.Node):
            beta = self._value(node.args[2], 1, {})
            beta = beta.view(-1, *[1] * (base.dim() - 2)).expand(base.shape[1:])
            return (beta.abs() + (beta - base[0]).abs()).flatten().numpy()
        return base.abs().flatten().numpy()

    def _run(self, node: fx.Node, batch: int, given: dict[fx.Node, Tensor]) -> Any:
        """The operator on ``given``, and on zeros for all else that depends on the inputs."""
        read = lambda x: self._value(x, batch, given)  # noqa: E731
        args, kwargs = fx.node.map_arg(node.args, read), fx.node.map_arg(node.kwargs, read)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: fx.Node, batch: int, given: dict[fx.Node, Tensor]) -> Any:
        if node in given:
            return given[node]
        if node in self.forms:
            return torch.zeros(batch, *self.shapes[node], dtype=torch.float64)
        if node.op == "get_attr":
            *path, last = str(node.target).split(".")
            return getattr(self.graph.get_submodule(".".join(path)), last).detach()
        return self._run(node, batch, {})


def _occurrences(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, one that stands there twice twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _unit_form(first: int, count: int) -> Form:
    """The values from ``first`` on, as they are."""
    from scipy import sparse

    matrix = sparse.eye_array(count, first + count, k=first, format="csr")
    nothing = np.zeros(count)
    return Form(matrix, nothing, matrix, nothing, 0)


def _composed(matrices: list[Any], forms: list[Form], offset: np.ndarray, size: np.ndarray) -> Form:
    """sum_i M_i z_i + offset of forms z_i; ``size`` is the magnitude of what the offset is made of."""
    width = max(form.matrix.shape[1] for form in forms)
    longest = sum(int(np.diff(M.indptr).max(initial=0)) for M in matrices)
    moved = longest <= 1 and not offset.any() and all((M.data == 1).all() for M in matrices)
    matrix: Any = 0
    reach: Any = 0
    for M, form in zip(matrices, forms, strict=True):
        matrix = matrix + M @ _widened(form.matrix, width)
        reach = reach + abs(M) @ _widened(form.reach, width)
        offset = offset + M @ form.offset
        size = size + abs(M) @ form.reach_offset
    # An operator that only moves numbers rounds nothing.
    more = 0 if moved else longest + _OPERATOR
    return Form(
        matrix.tocsr(), offset, reach.tocsr(), size, more + max(form.roundings for form in forms)
    )


def _widened(matrix: Any, width: int) -> Any:
    from scipy import sparse

    rows = matrix.shape[0]
    return sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(rows, width))


def place_of(node: fx.Node) -> str:
    """The layer and the operator in words: layer "body.2" (aten.sigmoid, at net.py:12: y = …)."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    layer = next((name for name, _ in reversed(stack) if name), "")
    line = where_written(node)
    inside = ", ".join(
        itertools.chain([f"operator {name_of(node)}"], [f"at {line}"] if line else [])
    )
    return f"layer {layer!r} ({inside})" if layer else inside
