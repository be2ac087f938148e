"""What the smaller network is made of besides torch's own layers, and how nodes become them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from spr_or.pruning.compaction.facts import Facts
    from spr_or.pruning.compaction.rewrite import Builder
    from spr_or.pruning.compaction.weighted import Layer

aten = torch.ops.aten


def _channels_lie_last(dim: int, x: Tensor) -> bool:
    """Whether ``dim`` is that of an image's channels, and they lie next to each other in memory.

    torch's index functions leave tensors of another layout behind. What follows is then copied back,
    in both directions: the addition below took 14 ms instead of 3 for 64 images of 16 x 32 x 32. So
    they work on the view in which the channels come last. Not while `torch.fx` traces: its proxies
    are no tensors and have no layout. Nor inside `torch.func.vmap`, where torch's group norm takes no
    such tensor.
    """
    if not isinstance(x, Tensor) or dim != 1 or x.dim() != 4 or x.stride(1) != 1:
        return False
    try:
        x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # what vmap answers
        return False
    return True


def _of_one_dtype(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of ``one + other``."""
    # torch.compile does not follow result_type, and a proxy of torch.fx has no dtype to compare.
    if isinstance(one, Tensor):
        if one.dtype == other.dtype:
            return one, other
        dtype = torch.promote_types(one.dtype, other.dtype)
    else:
        dtype = torch.result_type(one, other)
    return one.to(dtype), other.to(dtype)


# Without a list of x's dimensions: a proxy of torch.fx cannot be iterated.


def _zeros(x: Tensor, dim: int, size: int) -> Tensor:
    """Zeros of the shape of ``x``, with ``size`` positions along ``dim``."""
    return x.new_zeros(x.shape[:dim] + (size,) + x.shape[dim + 1 :])


def _shifted(x: Tensor, dim: int, shift: Tensor) -> Tensor:
    """``x`` plus a number for each position along ``dim``, in the dtype of x."""
    return (x.movedim(dim, -1) + shift.to(x.dtype)).movedim(-1, dim)


class Fill(nn.Module):
    """Put constants back: a tensor of full size along ``dim``.

    The result has `size` positions along dim: those in `places` are the input's, the others hold
    `values`, (size,).
    """

    def __init__(self, dim: int, places: list[int], values: Tensor) -> None:
        super().__init__()
        self.dim, self.size = dim, len(values)
        self.places: Tensor
        self.values: Tensor
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape with ``len(places)`` positions along dim."""
        if _channels_lie_last(self.dim, x):
            return self._filled(x.movedim(1, 3), 3).movedim(3, 1)
        return self._filled(x, self.dim)

    def _filled(self, x: Tensor, dim: int) -> Tensor:
        # Not x written into the expanded values: compiled for a CPU by torch 2.13 that gives wrong
        # numbers in half precision.
        spread = _zeros(x, dim, self.size).index_add(dim, self.places, x)
        return _shifted(spread, dim, self.values.index_fill(0, self.places, 0.0))

    def extra_repr(self) -> str:
        """One line for ``print``."""
        return f"dim={self.dim}, {len(self.places)} of {self.size}"


class IndexedAdd(nn.Module):
    """Add tensors that hold different positions of one stream.

    out[places[s]] += x_s[picks[s]] along ``dim`` for every side s, and out += shift. A side is read
    through `picks` (None: as it is) and lands at `places` (None: everywhere). Sides of two dtypes give
    that of torch's addition: under autocast one may be a convolution's, in bfloat16, and one a norm's.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        picks: list[list[int] | None],
        places: list[list[int] | None],
        shift: Tensor | None,
    ) -> None:
        super().__init__()
        self.dim, self.size = dim, size
        self.shift = None if shift is None else nn.Parameter(shift)
        for s, (pick, place) in enumerate(zip(picks, places, strict=True)):
            for name, index in (("pick", pick), ("place", place)):
                values = None if index is None else torch.tensor(index, dtype=torch.long)
                self.register_buffer(f"{name}{s}", values, persistent=False)

    def forward(self, *tensors: Tensor) -> Tensor:
        """One tensor for each side."""
        if all(_channels_lie_last(self.dim, tensor) for tensor in tensors):
            return self._sum([tensor.movedim(1, 3) for tensor in tensors], 3).movedim(3, 1)
        return self._sum(tensors, self.dim)

    def _sum(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        total: Tensor | None = None
        placed = []
        for s, tensor in enumerate(tensors):
            pick, place = getattr(self, f"pick{s}"), getattr(self, f"place{s}")
            if pick is not None:
                tensor = tensor.index_select(dim, pick)
            if place is not None:
                placed.append((place, tensor))
            else:
                total = tensor if total is None else total + tensor
        if total is None:
            total = _zeros(tensors[0], dim, self.size)
        for place, tensor in placed:
            total, tensor = _of_one_dtype(total, tensor)
            total = total.index_add(dim, place, tensor)
        if self.shift is not None:
            total = _shifted(total, dim, self.shift)
        return total

    def extra_repr(self) -> str:
        """One line for ``print``."""
        return f"dim={self.dim}, size={self.size}"


class NarrowNorm(nn.Module):
    """LayerNorm or RMSNorm over what is left of the last dimension, with the full width's statistics.

    With n features of which the constants c_j are gone and the x_k are left,

    mean = (sum x + sum c) / n,   variance = (sum (x_k - mean)^2 + sum (c_j - mean)^2) / n,

    and for RMSNorm the mean square is (sum x^2 + sum c^2) / n. width: n; gone: the c_j.
    """

    def __init__(self, kept: int, width: int, gone: Tensor, eps: float, rms: bool) -> None:
        super().__init__()
        self.width, self.eps, self.rms = width, eps, rms
        self.gone = int(gone.numel())
        self.total = float(gone.sum())
        self.squares = float(gone.square().sum())
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, K)."""
        if self.rms:
            square = (x.square().sum(-1, keepdim=True) + self.squares) / self.width
            y = x * torch.rsqrt(square + self.eps)
        else:
            # Sums: on a CPU `torch.var_mean` takes several times as long.
            mean = (x.sum(-1, keepdim=True) + self.total) / self.width
            y = x - mean
            spread = self.squares - 2 * mean * self.total + self.gone * mean.square()
            variance = (y.square().sum(-1, keepdim=True) + spread) / self.width
            y = y * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """One line for ``print``."""
        return f"{self.kept} of {self.width}, eps={self.eps}, rms={self.rms}"


class DropPath(nn.Module):
    """Stochastic depth: in training a whole sample's branch is zero with probability p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, …)."""
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p) if self.p < 1 else x * keep

    def extra_repr(self) -> str:
        """One line for ``print``."""
        return f"p={self.p}"


Emit = Callable[["Builder", fx.Node, list[Any]], fx.Node]
"""Builds a node from its operands, which have been narrowed as the decision says (None: gone)."""


def indexed_addition(axis: int, kept: Tensor | None, shift: Tensor | None) -> Emit:
    """An addition as an `IndexedAdd` of the sides that are left."""

    def emit(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
        size = builder.plan.facts[node].shape[axis]
        order = list(range(size)) if kept is None else kept.nonzero().flatten().tolist()
        place_of = {position: place for place, position in enumerate(order)}
        tensors, picks, places = [], [], []
        for x, new in zip(builder.operands(node), given, strict=True):
            if new is None:
                continue
            own = builder.plan.kept[x][axis]
            held = list(range(size)) if own is None else own.nonzero().flatten().tolist()
            pick = [i for i, position in enumerate(held) if position in place_of]
            if not pick:
                continue
            place = [place_of[held[i]] for i in pick]
            tensors.append(new)
            picks.append(None if len(pick) == len(held) else pick)
            places.append(None if len(place) == len(order) else place)
        if not tensors:  # constants only: any side gives batch size and positions
            tensors = [next(new for new in given if new is not None)]
            picks, places = [[]], [[]]
        if shift is None and picks == [None] and places == [None]:
            return tensors[0]
        dtype = builder.plan.facts[node].value.dtype
        module = IndexedAdd(
            axis, len(order), picks, places, None if shift is None else shift.to(dtype)
        )
        return builder.module(f"{node.name}_indexed", module, tensors)

    emit.shift_size = 0 if shift is None else len(shift)  # type: ignore[attr-defined]
    emit.takes_gone = True  # type: ignore[attr-defined]
    return emit


def indexed_call(operator: Any, dim: int, places: Tensor, **settings: Any) -> Emit:
    """``operator(x, dim, places, …)`` on a tensor of indices of our own; x where there is no place."""

    def emit(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
        if not len(places):
            return given[0]
        device = builder.plan.facts[node].value.device
        index = builder.buffer(f"{node.name}_places", places.long().to(device))
        x, _, *rest = given
        return builder.graph.call_function(operator, (x, dim, index, *rest), settings)

    return emit


def concatenation(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
    """A concatenation of those operands of which anything is read."""
    reads = builder.plan.decisions[node].reads
    left = [
        new
        for new, keep in zip(given, reads, strict=True)
        if not any(k is not None and not bool(k.any()) for k in keep)
    ]
    if len(left) == 1:
        return left[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return builder.graph.call_function(aten.cat.default, (left, dim))


def narrow_norm(width: int, gone: Tensor) -> Emit:
    """A layer or RMS norm as a `NarrowNorm`; ``gone`` are the constants that left its input."""

    def emit(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
        rms = node.target == aten.rms_norm.default
        position = 3 if rms else 4
        eps = node.args[position] if len(node.args) > position else node.kwargs.get("eps")
        if eps is None:
            eps = torch.finfo(builder.plan.facts[node].value.dtype).eps if rms else 1e-5
        module = NarrowNorm(width - len(gone), width, gone, float(eps), rms)  # type: ignore[arg-type]
        path = builder.owner(node, (2, 3))
        for key, at in (("weight", 2), ("bias", 3)):
            source = node.args[at] if len(node.args) > at and not (rms and at == 3) else None
            if isinstance(source, fx.Node) and path is not None:
                builder.take(module, key, source, builder.reading(node, source))
        if path is None and any(isinstance(a, fx.Node) for a in node.args[2:4]):
            plain = builder.module(f"{node.name}_narrow", module, [given[0]])
            for new, function in zip(given[1:], (aten.mul.Tensor, aten.add.Tensor), strict=False):
                plain = builder.graph.call_function(function, (plain, new))
            return plain
        return builder.module(
            path or f"{node.name}_narrow", module, [given[0]], own=path is not None
        )

    return emit


def scaled_attention(scale: float) -> Emit:
    """Attention whose scale is still that of the full width."""

    def emit(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
        args, kwargs = builder.arguments(node, given, None)
        kwargs = {**kwargs, "scale": scale}
        return builder.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]

    return emit


def weighted(
    layer: "Layer",
    rows: Tensor | None,
    columns: Tensor | None,
    shift: Tensor | None,
    groups: int | None = None,
) -> Emit:
    """A convolution or linear layer on its rows and columns, as a module where it was one."""

    def shape(facts: "Facts") -> tuple[int, ...]:
        found = list(facts[layer.weight].shape)
        if rows is not None:
            found[layer.row_dim] = int(rows.sum())
        if columns is not None:
            found[1 - layer.row_dim] = int(columns.sum())
        if groups is not None:
            found[1] //= groups
        return tuple(found)

    def emit(builder: "Builder", node: fx.Node, given: list[Any]) -> fx.Node:
        path = builder.owner(node, (1, 2))
        grouped = groups is not None
        if path is None and not grouped:
            if shift is not None:
                dtype = builder.plan.facts[node].value.dtype
                bias = builder.parameter(f"{node.name}_bias", shift.to(dtype), given[2:])
                given = [*given[:2], bias]
            args, kwargs = builder.arguments(node, [*given[:3]], None)
            if shift is not None and layer.bias is None:
                args = (*args[:2], given[2], *args[3:])
            return builder.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
        weight = _narrowed_weight(layer, builder.tensor(layer.weight), rows, columns, groups)
        bias_value = None if layer.bias is None else builder.tensor(layer.bias)
        if bias_value is not None and rows is not None:
            bias_value = bias_value[rows.to(bias_value.device)]
        if shift is not None:
            old = 0 if bias_value is None else bias_value.detach()
            bias_value = (old + shift.to(weight.device)).to(weight.dtype)
        module = _module(node, layer, weight, bias_value, groups)
        module.weight.requires_grad_(builder.tensor(layer.weight).requires_grad)
        if layer.bias is not None:
            module.bias.requires_grad_(builder.tensor(layer.bias).requires_grad)
        name = path or f"{node.name}_grouped"
        builder.note(layer, rows, columns, name, groups)
        return builder.module(name, module, [given[0]], own=path is not None)

    emit.weight_shape = shape  # type: ignore[attr-defined]
    new = shift is not None and layer.bias is None
    emit.shift_size = len(shift) if new and shift is not None else 0  # type: ignore[attr-defined]
    return emit


def _narrowed_weight(
    layer: "Layer", weight: Tensor, rows: Tensor | None, columns: Tensor | None, groups: int | None
) -> Tensor:
    """The rows and columns that stay; in groups each row keeps those columns that are in its group."""
    weight = weight.detach()
    device = weight.device
    if groups is None:
        if rows is not None:
            weight = weight.index_select(layer.row_dim, rows.nonzero().flatten().to(device))
        if columns is not None:
            weight = weight.index_select(1 - layer.row_dim, columns.nonzero().flatten().to(device))
        return weight
    assert rows is not None and columns is not None
    by_row, by_column = rows.view(layer.groups, -1), columns.view(layer.groups, -1)
    parts = weight.chunk(layer.groups, 0)
    kept = []
    for part, row, column in zip(parts, by_row, by_column, strict=True):
        if not bool(row.any()):
            continue
        first, second = (column, row) if layer.transposed else (row, column)
        part = part.index_select(0, first.nonzero().flatten().to(device))
        kept.append(part.index_select(1, second.nonzero().flatten().to(device)))
    return torch.cat(kept)


def _module(
    node: fx.Node, layer: "Layer", weight: Tensor, bias: Tensor | None, groups: int | None
) -> Any:
    """A plain torch layer with these parameters, and the geometry of the node's arguments."""
    from spr_or.pruning.compaction.facts import argument

    has_bias = bias is not None
    if node.target == aten.linear.default:
        module: Any = nn.Linear(weight.shape[1], weight.shape[0], has_bias, device="meta")
    else:
        spatial = weight.dim() - 2
        number = layer.groups if groups is None else groups
        stride = _tuple(argument(node, 3, "stride", 1), spatial)
        padding = argument(node, 4, "padding", 0)
        padding = padding if isinstance(padding, str) else _tuple(padding, spatial)
        if layer.transposed:
            kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
            module = kind(
                weight.shape[0], weight.shape[1] * number, tuple(weight.shape[2:]), stride,  # type: ignore[arg-type]
                padding, _tuple(argument(node, 5, "output_padding", 0), spatial), number, has_bias,  # type: ignore[arg-type]
                _tuple(argument(node, 7, "dilation", 1), spatial), device="meta",  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
            module = plain(
                weight.shape[1] * number, weight.shape[0], tuple(weight.shape[2:]), stride,  # type: ignore[arg-type]
                padding, _tuple(argument(node, 5, "dilation", 1), spatial), number, has_bias,  # type: ignore[arg-type]
                device="meta",
            )  # fmt: skip
    module.weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * count if len(values) == 1 else values
