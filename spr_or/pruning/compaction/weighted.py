"""Convolutions, linear layers and embeddings: where features begin and end.

A row is an output feature (filter, neuron), a column an input feature. Rows that nothing needs
and columns of what is gone are removed. A constant that is gone goes into the bias, unless zeros
from a border are mixed with it; then it is put back in front of the layer.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import (
    Facts,
    Keep,
    any_over,
    argument,
    operands,
    same,
    uniform,
)
from spr_or.pruning.compaction.layers import weighted
from spr_or.pruning.compaction.rules import (
    Decision,
    Rule,
    agreed,
    covers,
    everything,
    passing,
    register,
    where,
)

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

aten = torch.ops.aten


class Layer(NamedTuple):
    """How a node uses its weight.

    axis: the dimension of input and result that holds features. groups: of a convolution.
    transposed: the weight holds columns first. border: zeros, or overlaps, make a constant input vary.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    axis: int
    groups: int
    transposed: bool
    border: bool

    @property
    def row_dim(self) -> int:
        """The dimension of the weight that counts rows."""
        return 1 if self.transposed else 0


_CONVOLUTIONS = {
    aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3,
    aten.conv1d.padding: 1, aten.conv2d.padding: 2, aten.conv3d.padding: 3,
}  # fmt: skip
_TRANSPOSED = {
    aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3,
}  # fmt: skip
WEIGHTED: dict[Any, int] = {**_CONVOLUTIONS, **_TRANSPOSED, aten.linear.default: 0}


def layer_of(node: fx.Node, facts: Facts) -> Layer:
    """The layer that a node of `WEIGHTED` is."""
    return facts.once(_layer, node)


def _layer(node: fx.Node, facts: Facts) -> Layer:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    bias = bias if isinstance(bias, fx.Node) else None
    rank = len(facts[x].shape)
    if node.target == aten.linear.default:
        return Layer(x, weight, bias, rank - 1, 1, False, False)
    transposed = node.target in _TRANSPOSED
    axis = rank - 1 - WEIGHTED[node.target]
    groups = int(argument(node, 6, "groups", 1))
    padding = argument(node, 4, "padding", 0)
    padded = padding not in ("valid", 0) and (isinstance(padding, str) or any(padding))
    return Layer(x, weight, bias, axis, groups, transposed, transposed or padded)


def reads(node: fx.Node, facts: Facts) -> Tensor:
    """(rows, columns) bool over all input features: which row has a weight that is not zero on which."""
    layer = layer_of(node, facts)
    return _blocks(layer, facts, lambda w: any_over(w != 0, list(range(2, w.dim())))).bool()


def _blocks(layer: Layer, facts: Facts, reduce: Any) -> Tensor:
    """A number for each row and input feature; zero where the groups differ."""
    weight = facts[layer.weight].value.detach()
    if layer.transposed:  # (columns, rows of a group, …) to (rows, columns of a group, …)
        parts = weight.split(len(weight) // layer.groups)
        weight = torch.cat([part.transpose(0, 1) for part in parts])
    entries = reduce(weight)
    if layer.groups == 1:
        return entries
    rows, width = entries.shape
    whole = entries.new_zeros(rows, layer.groups, width)
    group = torch.arange(rows, device=entries.device) // (rows // layer.groups)
    whole[torch.arange(rows, device=entries.device), group] = entries
    return whole.reshape(rows, layer.groups * width)


def _constants(layer: Layer, facts: Facts) -> tuple[Tensor, Tensor]:
    """Which input features are one constant that stays one in the result, and their values."""
    found, value = uniform(facts[layer.x], layer.axis)
    return (found & (value == 0) if layer.border else found), value


def _along(mask: Tensor, axis: int, rank: int) -> Tensor:
    return mask.view([-1 if d == axis else 1 for d in range(rank)])


def _known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    layer = layer_of(node, facts)
    bias_fixed = layer.bias is None or facts[layer.bias].fixed
    if not facts[layer.weight].fixed or not bias_fixed:
        return torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    constant, _ = _constants(layer, facts)
    rows = ~facts.once(reads, node)[:, ~constant].any(1)
    return _along(rows, layer.axis, value.dim()).expand(value.shape)


def _needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    layer = layer_of(node, facts)
    fact = facts[layer.x]
    rows = any_over(wanted, [d for d in range(wanted.dim()) if d != layer.axis]).to(
        fact.value.device
    )
    if facts[layer.weight].fixed:
        columns = facts.once(reads, node)[rows].any(0)
    else:
        columns = torch.ones(fact.shape[layer.axis], dtype=torch.bool, device=rows.device)
    constant, value = _constants(layer, facts)
    foldable = constant & (value == 0) if not _owns(node, layer) else constant
    asked = columns & ~foldable
    if not bool(asked.any()):
        asked = asked.clone()
        asked[0] = True  # for the batch and the positions
    lead = wanted if layer.axis == wanted.dim() - 1 else None
    mask = _along(asked, layer.axis, len(fact.shape))
    if lead is not None:
        mask = mask & any_over(lead, [layer.axis], keepdim=True)
    found: list[Tensor | None] = [mask.expand(fact.shape)]
    shape = facts[layer.weight].shape
    weight = _along(rows, layer.row_dim, len(shape)) if layer.groups == 1 else torch.ones(())
    if layer.groups == 1:
        weight = weight & _along(columns, 1 - layer.row_dim, len(shape))
    found.append(weight.bool().to(fact.value.device).expand(shape))
    if layer.bias is not None:
        found.append(rows)
    return found


def _owns(node: fx.Node, layer: Layer) -> bool:
    """Whether weight and bias are parameters that nothing else reads, so that a bias may change."""
    parts = [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    return all(part.op == "get_attr" and len(part.users) == 1 for part in parts)


def _narrow(plan: "Plan", node: fx.Node) -> Decision:
    layer = layer_of(node, plan.facts)
    if layer.groups > 1:
        return _narrow_groups(plan, node, layer)
    held, least = plan.kept[layer.x], plan.least(node)
    columns = held[layer.axis]
    if columns is not None:
        columns = columns | (plan.needed_along(layer.x, layer.axis) & _asked(plan, node))
        columns = None if bool(columns.all()) else columns
    rows = least[layer.axis]
    if len(layer.weight.users) > 1 and layer.weight.op == "get_attr":
        rows, columns = _shared(plan, layer, rows, columns)
    leading = _leading(held, layer, least)
    x, keeps = _with(leading, layer.axis, columns), _with(leading, layer.axis, rows)
    weight: list[Tensor | None] = [None] * len(plan.facts[layer.weight].shape)
    weight[layer.row_dim], weight[1 - layer.row_dim] = rows, columns
    found = [x, tuple(weight)] + ([(rows,)] if layer.bias is not None else [])
    return Decision(tuple(found), keeps, keeps, emit=_emit(plan, node, layer, rows, columns))


def _leading(held: Keep, layer: Layer, least: Keep) -> Keep:
    """What passes in front of the features: batch and, for a linear layer, positions.

    Positions that are gone from the input may be needed in the result, where the bias is added.
    """
    found: list[Tensor | None] = []
    for d, (kept, needed) in enumerate(zip(held, least, strict=True)):
        if d >= layer.axis or kept is None:
            found.append(None)
        elif covers(kept, needed):
            found.append(kept)
        else:
            found.append(None if needed is None else _or_none(kept.cpu() | needed.cpu()))
    return tuple(found)


def _with(keep: Keep, dim: int, kept: Tensor | None) -> Keep:
    return tuple(kept if d == dim else k for d, k in enumerate(keep))


def _asked(plan: "Plan", node: fx.Node) -> Tensor:
    """Columns that this node asks for, constants that it cannot fold included."""
    mask, axis = plan.asked[node][0], layer_of(node, plan.facts).axis
    assert mask is not None
    return any_over(mask, [d for d in range(mask.dim()) if d != axis]).cpu()


def _shared(
    plan: "Plan", layer: Layer, rows: Tensor | None, columns: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """One weight that several nodes read has the rows and columns that any of them needs."""
    calls = [user for user in layer.weight.users if plan.alive(user)]
    if not all(user.target in WEIGHTED and user.args[1] is layer.weight for user in calls):
        return rows, columns
    rows_of, columns_of = [], []
    for call in calls:
        other = layer_of(call, plan.facts)
        least = plan.least(call)[other.axis]
        n = plan.facts[call].shape[other.axis]
        rows_of.append(torch.ones(n, dtype=torch.bool) if least is None else least.cpu())
        needed = plan.needed_along(other.x, other.axis)
        columns_of.append(needed & _asked(plan, call))
    return _or_none(_any_of(rows_of)), _or_none(_any_of(columns_of))


def _any_of(masks: list[Tensor]) -> Tensor:
    return torch.stack(masks).any(0)


def _emit(
    plan: "Plan", node: fx.Node, layer: Layer, rows: Tensor | None, columns: Tensor | None
) -> Any:
    return weighted(layer, rows, columns, _shift(plan, node, layer, rows, columns))


def _shift(
    plan: "Plan", node: fx.Node, layer: Layer, rows: Tensor | None, columns: Tensor | None
) -> Tensor | None:
    """What the constants that are gone from the input add to each row that is left."""
    if columns is None or not _owns(node, layer):
        return None
    constant, value = _constants(layer, plan.facts)
    gone = constant & ~columns.to(constant.device) & (value != 0)
    if not bool(gone.any()):
        return None
    summed = _blocks(
        layer, plan.facts, lambda w: w.double().flatten(2).sum(2) if w.dim() > 2 else w.double()
    )
    summed = summed if rows is None else summed[rows.to(summed.device)]
    shift = summed[:, gone] @ value[gone].double()
    return shift if bool((shift != 0).any()) else None


# Convolutions in groups: every group that stays has equally many rows, and equally many columns.


def _narrow_groups(plan: "Plan", node: fx.Node, layer: Layer) -> Decision:
    facts = plan.facts
    held, least = plan.kept[layer.x], plan.least(node)
    total = facts[node].shape[layer.axis]
    rows = least[layer.axis]
    nothing = rows is None and held[layer.axis] is None
    if nothing or not _owns(node, layer):
        plain = everything(plan, node)
        lead: Keep = (held[0], *(None,) * (len(held) - 1))
        emit = weighted(layer, None, None, None)
        makes: Keep = plain.makes
        if nothing:
            makes = (held[0], *(None,) * (len(least) - 1))
            plain = plain._replace(reads=(lead, *plain.reads[1:]))
        keeps = makes if nothing else _with(makes, layer.axis, rows)
        return plain._replace(makes=makes, keeps=keeps, emit=emit)
    wanted_rows = torch.ones(total, dtype=torch.bool) if rows is None else rows.cpu()
    asked = _asked(plan, node) & plan.needed_along(layer.x, layer.axis).cpu()
    kept_rows, kept_columns = _even(wanted_rows, asked, held[layer.axis], layer.groups)
    groups = int(kept_rows.view(layer.groups, -1).any(1).sum())
    x = _with((held[0], *(None,) * (len(held) - 1)), layer.axis, _or_none(kept_columns))
    keeps = _with((held[0], *(None,) * (len(least) - 1)), layer.axis, _or_none(kept_rows))
    weight: Keep = tuple(None for _ in facts[layer.weight].shape)
    found = [x, weight] + ([(_or_none(kept_rows),)] if layer.bias is not None else [])
    shift = _shift(plan, node, layer, kept_rows, kept_columns)
    emit = weighted(layer, kept_rows, kept_columns, shift, groups)
    return Decision(tuple(found), keeps, keeps, emit=emit)


def _or_none(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask


def _even(rows: Tensor, columns: Tensor, held: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """The least rows and columns that leave every remaining group alike, with those asked for."""
    by_row, by_column = rows.view(groups, -1), columns.view(groups, -1)
    present = torch.ones_like(columns) if held is None else held.cpu()
    alive = by_row.any(1)
    if not bool(alive.any()):
        alive = alive.clone()
        alive[0] = True
    row_count = max(1, int(by_row[alive].sum(1).max()))
    column_count = max(1, int(by_column[alive].sum(1).max()))
    kept_rows = _first(by_row.double(), row_count) & alive.unsqueeze(1)
    ranked = 2 * by_column.double() + present.view(groups, -1).double()
    kept_columns = _first(ranked, column_count) & alive.unsqueeze(1)
    return kept_rows.flatten(), kept_columns.flatten()


def _first(rank: Tensor, count: int) -> Tensor:
    """In each row the ``count`` positions of highest rank, first ones first."""
    order = rank.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(rank, dtype=torch.bool).scatter_(1, order, True)


def operations(
    layer: Layer, weight: tuple[int, ...], read: tuple[int, ...], result: tuple[int, ...]
) -> int:
    """Multiplications and additions of a layer whose weight, input and result have these shapes.

    Every number of the weight is used once at each position, of the result, or of the input where the layer
    spreads it, as a transposed convolution does.
    """
    positions = list(read if layer.transposed else result)
    del positions[layer.axis]
    return math.prod(positions) * math.prod(weight)


def _is_plain(node: fx.Node, facts: Facts) -> bool:
    """Whether the number of groups is a number, not that of samples (kernels made for each)."""
    return not isinstance(argument(node, 6, "groups", 1), fx.Node)


register(list(WEIGHTED), where(_is_plain, Rule(_known, _needed, _narrow)))


# Embeddings: rows are words, which stay; columns are features.


def _embedding_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    weight = facts[operands(node, facts)[0]]
    if not weight.fixed:
        return torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    return (weight.value == 0).all(0).expand(value.shape)


def _embedding_dims(node: fx.Node, facts: Facts) -> list[dict[int, int]]:
    weight, index = operands(node, facts)[:2]
    rank = len(facts[index].shape)
    return [{1: rank}, {d: d for d in range(rank)}]


def _embedding_narrow(plan: "Plan", node: fx.Node) -> Decision:
    """The features that are needed, whatever the table holds."""
    plain = agreed(plan, node, _embedding_dims(node, plan.facts))
    last = plan.least(node)[-1]
    keeps = (*plain.keeps[:-1], last)
    reads = ((None, last), *plain.reads[1:])
    if same(last, plain.keeps[-1]):
        return plain._replace(reason="")
    return Decision(reads, keeps, keeps)


register(
    aten.embedding.default,
    passing(_embedding_dims, known=_embedding_known)._replace(narrow=_embedding_narrow),
)
