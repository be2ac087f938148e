"""Rules of activations, pools, reductions, normalisations and products."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import (
    Facts,
    any_over,
    argument,
    known_zero,
    named,
    operands,
    projected,
    same,
    uniform,
)
from spr_or.pruning.compaction.layers import narrow_norm, scaled_attention
from spr_or.pruning.compaction.rules import (
    MIXING,
    Decision,
    Pairs,
    Rule,
    agreed,
    covers,
    every_dimension,
    passing,
    register,
    to_result,
    where,
)

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

aten = torch.ops.aten

# Activations and copies are pointwise by torch's own tags; these are not tagged.
register(
    [
        aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
        aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default,
        aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default,
        aten.lift_fresh_copy.default, aten.relu6.default, aten.hardswish.default,
        aten.prelu.default, aten.selu.default, aten.rrelu.default, aten.type_as.default,
        aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.fill.Scalar,
        aten.addcmul.default, aten.addcdiv.default, aten.lerp.Scalar, aten.lerp.Tensor,
    ],
    passing(every_dimension),
)  # fmt: skip
register([aten.mul.Tensor, aten.multiply.Tensor], passing(every_dimension, absorbing=(0, 1)))


# Constants of another tensor's shape or type: whatever that holds, the result is known.


def _known_anyhow(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    return torch.ones_like(value, dtype=torch.bool)


def _needs_nothing(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    return [torch.zeros(facts[x].shape, dtype=torch.bool) for x in operands(node, facts)]


def _narrow_new(plan: "Plan", node: fx.Node) -> Decision:
    """A new tensor of the sizes that anything asks for, computed or not: it costs nothing."""
    (x,) = operands(node, plan.facts)
    keeps = projected(plan.needed[node], plan.facts[node].variable)
    sizes = [
        n if kept is None else int(kept.sum())
        for n, kept in zip(node.args[1], keeps, strict=True)  # type: ignore[arg-type]
    ]
    return Decision((plan.kept[x],), keeps, keeps, (node.args[0], sizes, *node.args[2:]))


_LIKE = passing(every_dimension)._replace(known=_known_anyhow, needed=_needs_nothing)
register([aten.zeros_like.default, aten.ones_like.default, aten.full_like.default], _LIKE)
register(
    [aten.new_zeros.default, aten.new_ones.default, aten.new_full.default],
    Rule(_known_anyhow, _needs_nothing, _narrow_new),
)


def _per_channel(node: fx.Node, facts: Facts) -> list[Pairs]:
    """Vectors over channels beside a tensor with channels in dimension 1."""
    found: list[Pairs] = []
    for x in operands(node, facts):
        shape = facts[x].shape
        first = not found
        if first:
            found.append({d: d for d in range(len(shape))})
        else:
            found.append({0: min(1, len(facts[operands(node, facts)[0]].shape) - 1)})
    return found


def _prelu_dims(node: fx.Node, facts: Facts) -> list[Pairs]:
    x, weight = operands(node, facts)
    whole = {d: d for d in range(len(facts[x].shape))}
    return [whole, _per_channel(node, facts)[1] if facts[weight].shape[0] > 1 else {}]


register(aten.prelu.default, passing(_prelu_dims))


def _has_scale(node: fx.Node, facts: Facts) -> bool:
    """Whether a BatchNorm has a weight; without one the tensor after the input is its mean."""
    return isinstance(argument(node, 1, "weight"), fx.Node)


register(
    aten.batch_norm.default,
    where(_has_scale, passing(_per_channel, absorbing=(1,)), passing(_per_channel)),
)


# Pools and interpolation: dimensions pass except the last, over which windows move.


def _but_last(count: int) -> Callable[[fx.Node, Facts], list[Pairs]]:
    def dims(node: fx.Node, facts: Facts) -> list[Pairs]:
        return [
            {d: d for d in range(len(facts[x].shape) - (count if k == 0 else 0))}
            for k, x in enumerate(operands(node, facts))
        ]

    return dims


def _windows(count: int, keeps_constants: Callable[[fx.Node], bool]) -> Rule:
    """A window sees one channel: what is constant there stays so, unless zeros come in at the border."""
    dims = _but_last(count)

    def known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
        (x, *_), (pairs, *_) = operands(node, facts), dims(node, facts)
        fact = facts[x]
        assert fact.known is not None
        last = list(range(value.dim() - count, value.dim()))
        level = fact.value.amin(last, keepdim=True) == fact.value.amax(last, keepdim=True)
        held = fact.known & level
        if not keeps_constants(node):
            held = held & (fact.value == 0)
        return to_result(held, pairs, value.shape)

    return passing(dims, known=known)


def _always(node: fx.Node) -> bool:
    return True


def _whole_windows(node: fx.Node) -> bool:
    """avg_pool(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)."""
    padding = argument(node, 3, "padding", 0)
    ceil_mode, divisor = (
        argument(node, 4, "ceil_mode", False),
        argument(node, 6, "divisor_override"),
    )
    padded = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    return not padded and not ceil_mode and divisor is None


for _n in (1, 2, 3):
    register(getattr(aten, f"avg_pool{_n}d").default, _windows(_n, _whole_windows))
    register(getattr(aten, f"max_pool{_n}d").default, _windows(_n, _always))
    register(getattr(aten, f"adaptive_avg_pool{_n}d").default, _windows(_n, _always))
    for _name in (f"adaptive_max_pool{_n}d", f"max_pool{_n}d_with_indices"):
        if hasattr(aten, _name):
            register(getattr(aten, _name).default, _windows(_n, _always))
register(aten._adaptive_avg_pool2d.default, _windows(2, _always))
for _n, _names in (
    (1, ("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d")),
    (2, ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
         "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa")),
    (3, ("upsample_nearest3d", "upsample_trilinear3d")),
):  # fmt: skip
    for _name in _names:
        for _overload in ("default", "vec"):
            if hasattr(aten, _name) and _overload in getattr(aten, _name).overloads():
                register(getattr(getattr(aten, _name), _overload), _windows(_n, _always))
register(aten.grid_sampler.default, passing(lambda node, facts: [{0: 0, 1: 1}, {0: 0}]))


# What mixes some dimensions and keeps its shape.


def _mixing(position: int, name: str) -> Callable[[fx.Node, Facts], list[Pairs]]:
    def dims(node: fx.Node, facts: Facts) -> list[Pairs]:
        given: Any = argument(node, position, name)
        found = []
        for x in operands(node, facts):
            rank = len(facts[x].shape)
            listed = given if isinstance(given, list | tuple) else [given]
            mixed = {d % rank for d in listed} if given is not None else set(range(rank))
            found.append({d: d for d in range(rank) if d not in mixed})
        return found

    return dims


register(
    [aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default,
     aten.cumsum.default, aten.cumprod.default],
    passing(_mixing(1, "dim")),
)  # fmt: skip


def _transformed(node: fx.Node, facts: Facts) -> list[Pairs]:
    """All dimensions but those of a Fourier transform."""
    rank = len(facts[operands(node, facts)[0]].shape)
    given = named(node, "dim")
    listed = given if isinstance(given, list | tuple) else [given]
    mixed = {d % rank for d in listed} if given is not None else set(range(rank))
    return [{d: d for d in range(rank) if d not in mixed}]


register(
    [getattr(aten, f"fft_{kind}{n}").default
     for kind in ("fft", "ifft", "rfft", "irfft") for n in ("", "2", "n")],
    passing(_transformed),
)  # fmt: skip
register([aten.triu.default, aten.tril.default], passing(_but_last(2)))


# Reductions: the dimensions that are reduced are mixed and, without keepdim, gone.


def _reduced(node: fx.Node, facts: Facts) -> list[Pairs]:
    (x, *_) = operands(node, facts)
    rank = len(facts[x].shape)
    given: Any = argument(node, 1, "dim")
    listed = given if isinstance(given, list | tuple) else [given]
    mixed = {d % rank for d in listed} if given is not None and listed else set(range(rank))
    keepdim = "keepdim" in [a.name for a in node.target._schema.arguments] and _keepdim(node)  # type: ignore[union-attr]
    left = [d for d in range(rank) if d not in mixed]
    return [{d: d if keepdim else left.index(d) for d in left}]


def _keepdim(node: fx.Node) -> bool:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    return bool(argument(node, names.index("keepdim"), "keepdim", False))


REDUCTIONS = [
    aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.prod.dim_int,
    aten.logsumexp.default, aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim,
    aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.any.dim, aten.all.dim,
    aten.argmax.default, aten.argmin.default,
]  # fmt: skip


def _vector_norm_dims(node: fx.Node, facts: Facts) -> list[Pairs]:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    (x, *_) = operands(node, facts)
    rank = len(facts[x].shape)
    given: Any = argument(node, names.index("dim"), "dim")
    listed = given if isinstance(given, list | tuple) else [given]
    mixed = {d % rank for d in listed} if given is not None else set(range(rank))
    left = [d for d in range(rank) if d not in mixed]
    return [{d: d if _keepdim(node) else left.index(d) for d in left}]


register(REDUCTIONS, passing(_vector_norm_dims))


# Normalisations over features: the statistics are those of the full width.


def _norm_known(trailing: Callable[[fx.Node, Facts], int]) -> Any:
    """Known where the scale is zero; else where all that is normalised together is known."""

    def known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
        nodes = operands(node, facts)
        fact = facts[nodes[0]]
        assert fact.known is not None
        mixed = list(range(trailing(node, facts), value.dim()))
        found = (~any_over(~fact.known, mixed, keepdim=True)).expand(value.shape)
        weight = _scale(node, facts)
        if weight is not None:
            zero = known_zero(facts[weight])
            if node.target in _CHANNEL_SCALED:
                zero = zero.view([-1 if d == 1 else 1 for d in range(value.dim())])
            found = found | zero.expand(value.shape)
        return found

    return known


_CHANNEL_SCALED = (aten.group_norm.default, aten.instance_norm.default)


def _scale(node: fx.Node, facts: Facts) -> fx.Node | None:
    position = 1 if node.target == aten.instance_norm.default else 2
    found = argument(node, position, "weight")
    return found if isinstance(found, fx.Node) else None


def _first_normalised(node: fx.Node, facts: Facts) -> int:
    (x, *_) = operands(node, facts)
    return len(facts[x].shape) - len(node.args[1])  # type: ignore[arg-type]


def _norm_needed(trailing: Callable[[fx.Node, Facts], int]) -> Any:
    def needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
        nodes = operands(node, facts)
        weight = _scale(node, facts)
        if weight is not None:  # a result that is its shift asks for nothing
            zero = known_zero(facts[weight])
            if node.target in _CHANNEL_SCALED:
                zero = zero.view([-1 if d == 1 else 1 for d in range(wanted.dim())])
            asks = wanted & ~zero
        else:
            asks = wanted
        mixed = list(range(trailing(node, facts), wanted.dim()))
        whole = any_over(asks, mixed, keepdim=True).expand(wanted.shape)
        found: list[Tensor | None] = [whole]
        for x in nodes[1:]:
            rank = len(facts[x].shape)
            if node.target in _CHANNEL_SCALED:
                found.append(any_over(wanted, [d for d in range(wanted.dim()) if d != 1]))
            else:
                found.append(any_over(wanted, list(range(wanted.dim() - rank))))
        return found

    return needed


def _layer_norm_narrow(plan: "Plan", node: fx.Node) -> Decision:
    """Normalise over what is left with the mean and variance of the full width.

    What is gone of the last dimension is known, so its part of both is too. A result that lives on
    by its shift though its feature is gone needs the feature back.
    """
    nodes = operands(node, plan.facts)
    x, rank = nodes[0], len(plan.facts[nodes[0]].shape)
    held, least = plan.kept[x], plan.least(node)
    pairs: list[Pairs] = [{d: d for d in range(_first_normalised(node, plan.facts))}]
    pairs += [{} for _ in nodes[1:]]
    plain = agreed(plan, node, pairs)
    single = len(node.args[1]) == 1  # type: ignore[arg-type]
    if held[-1] is None or not single:
        return _kept_after(plan, node, plain)
    last = held[-1] if least[-1] is None else held[-1] | least[-1].to(held[-1].device)
    if least[-1] is None or bool(last.all()):
        return plain._replace(reason=plain.reason and "its shifts keep every feature alive")
    keeps = (*plain.keeps[:-1], last)
    reads = ((*plain.reads[0][:-1], last), *((last,) for _ in nodes[1:]))
    found, value = uniform(plan.facts[x], rank - 1)
    gone = value[~last.to(value.device)].double()
    return Decision(reads, keeps, keeps, emit=narrow_norm(len(last), gone))


def _kept_after(plan: "Plan", node: fx.Node, plain: Decision) -> Decision:
    """A whole normalisation, of whose result only what is needed goes on."""
    least = plan.least(node)
    dims = range(len(least)) if node.target not in _CHANNEL_SCALED else (1,)
    keeps = tuple(
        least[d] if plain.keeps[d] is None and d in dims and least[d] is not None and plain.reason
        else kept
        for d, kept in enumerate(plain.keeps)
    )  # fmt: skip
    return plain._replace(keeps=keeps)


def _group_norm_narrow(plan: "Plan", node: fx.Node) -> Decision:
    nodes = operands(node, plan.facts)
    pairs: list[Pairs] = [{0: 0}, *({} for _ in nodes[1:])]
    return _kept_after(plan, node, agreed(plan, node, pairs))


register(
    [aten.layer_norm.default, aten.rms_norm.default],
    Rule(_norm_known(_first_normalised), _norm_needed(_first_normalised), _layer_norm_narrow),
)


def _after_batch(node: fx.Node, facts: Facts) -> int:
    return 1


def _after_channels(node: fx.Node, facts: Facts) -> int:
    return 2


register(
    aten.group_norm.default,
    Rule(_norm_known(_after_batch), _norm_needed(_after_batch), _group_norm_narrow),
)


def _instance_dims(node: fx.Node, facts: Facts) -> list[Pairs]:
    vectors: list[Pairs] = [{0: 1} for _ in operands(node, facts)[1:]]
    return [{0: 0, 1: 1}, *vectors]


register(
    aten.instance_norm.default,
    passing(_instance_dims, known=_norm_known(_after_channels))._replace(
        needed=_norm_needed(_after_channels)
    ),
)


# Products of two tensors: matmul and its kin as letters, as in einsum.


def _letters(node: fx.Node, facts: Facts) -> tuple[list[str], str]:
    """Letters of the operands' dimensions and of the result's."""
    names = "abcdefghijklmnopqrstuvw"
    if node.target == aten.einsum.default:
        return _einsum_letters(node, facts)
    a, b = (len(facts[x].shape) for x in operands(node, facts)[-2:])
    if a == 1 or b == 1:
        first = names[: a - 1] + "y"
        second = "y" if b == 1 else (names[: b - 2] + "y" + "z")
        out = (names[: a - 1] if b == 1 else "") + (names[: b - 2] + "z" if b > 1 else "")
        return [first, second], out
    batch = max(a, b) - 2
    first = names[batch - (a - 2) : batch] + "xy"
    second = names[batch - (b - 2) : batch] + "yz"
    return [first, second], names[:batch] + "xz"


def _einsum_letters(node: fx.Node, facts: Facts) -> tuple[list[str], str]:
    equation = _without_dots(str(node.args[0]).replace(" ", ""), node, facts)
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        joined = "".join(terms)
        right = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    return terms, right


def _without_dots(equation: str, node: fx.Node, facts: Facts) -> str:
    """The equation with letters, in the place of "...", for the dimensions that this stands for."""
    if "..." not in equation:
        return equation
    left, _, right = equation.partition("->")
    terms = left.split(",")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    counts = [
        len(facts[x].shape) - len(term) + 3 if "..." in term else 0
        for term, x in zip(terms, operands(node, facts), strict=True)
    ]
    most = "".join(free[: max(counts)])
    filled = [
        term.replace("...", most[len(most) - count :])
        for term, count in zip(terms, counts, strict=True)
    ]
    if "->" not in equation:
        joined = "".join(terms)
        right = "..." + "".join(sorted(c for c in set(joined) - {"."} if joined.count(c) == 1))
    return ",".join(filled) + "->" + right.replace("...", most)


def _is_product(node: fx.Node, facts: Facts) -> bool:
    """Whether the letters say all: two operands, no letter twice in one of them."""
    if node.target != aten.einsum.default:
        return True
    terms, right = _einsum_letters(node, facts)
    return len(terms) == 2 and all(len(set(t)) == len(t) for t in (*terms, right))


def letters_of(node: fx.Node, facts: Facts) -> tuple[list[str], str] | None:
    """The letters of a product of two tensors, None where they do not say all."""
    return _letters(node, facts) if _is_product(node, facts) else None


def _sizes_of(node: fx.Node, facts: Facts, terms: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands(node, facts)[-2:], strict=True):
        for letter, n in zip(term, facts[x].shape, strict=True):
            sizes[letter] = max(n, sizes.get(letter, 1))
    return sizes


def _einsum(terms: Sequence[str], right: str, one: Tensor, other: Tensor) -> Tensor:
    """Whether any product of two True elements enters, over bools."""
    given = [t.float() for t in (one, other)]
    return torch.einsum(f"{terms[0]},{terms[1]}->{right}", *given) > 0


def _product_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    (terms, right), (a, b) = _letters(node, facts), operands(node, facts)[-2:]
    shapes = _sizes_of(node, facts, terms)
    live = [~known_zero(facts[x]) for x in (a, b)]
    loose = [~facts[x].known for x in (a, b)]  # type: ignore[operator]
    full = [_broadcast(t, term, shapes) for t, term in zip((*live, *loose), terms * 2, strict=True)]
    unknown = _einsum(terms, right, full[2], full[1]) | _einsum(terms, right, full[0], full[3])
    found = ~unknown
    for extra in operands(node, facts)[:-2]:
        found = found & facts[extra].known.expand(value.shape)  # type: ignore[union-attr]
    return found


def _broadcast(mask: Tensor, term: str, sizes: dict[str, int]) -> Tensor:
    return mask.expand([sizes[letter] for letter in term])


def _product_needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    (terms, right), nodes = _letters(node, facts), operands(node, facts)
    shapes = _sizes_of(node, facts, terms)
    a, b = nodes[-2:]
    asked: list[Tensor | None] = [wanted.expand(wanted.shape) for _ in nodes[:-2]]
    asked = [
        _summed_to(m, facts[x].shape)
        for m, x in zip(asked, nodes[:-2], strict=True)
        if m is not None
    ]
    for own, other, x, y in ((0, 1, a, b), (1, 0, b, a)):
        live = _broadcast(~known_zero(facts[y]), terms[other], shapes)
        alone = [letter for letter in terms[own] if letter not in right + terms[other]]
        target = "".join(letter for letter in terms[own] if letter not in alone)
        mask = _einsum([right, terms[other]], target, wanted, live)
        mask = mask.reshape([1 if c in alone else shapes[c] for c in terms[own]])
        mask = mask.expand([shapes[c] for c in terms[own]])
        asked.append(_summed_to(mask, facts[x].shape))
    return asked


def _summed_to(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo a broadcast: True where any of the copies is."""
    mask = any_over(mask, list(range(mask.dim() - len(shape))))
    ones = [d for d, n in enumerate(shape) if n == 1 and mask.shape[d] > 1]
    return any_over(mask, ones, keepdim=True)


def _product_narrow(plan: "Plan", node: fx.Node) -> Decision:
    """Letters of both operands take the same positions; a summed one those whose product is not zero."""
    facts = plan.facts
    (terms, right), nodes = _letters(node, facts), operands(node, facts)
    sizes, least = _sizes_of(node, facts, terms), plan.least(node)
    kept: dict[str, Tensor | None] = {}
    for letter in sizes:
        holds = [
            (plan.kept[x][t.index(letter)], x)
            for t, x in zip(terms, nodes[-2:], strict=True)
            if letter in t and facts[x].shape[t.index(letter)] == sizes[letter]
        ]
        held = [h for h, x in holds if not facts[x].fixed] or [h for h, _ in holds]
        agree = bool(held) and all(same(h, held[0]) for h in held)
        if letter in right:
            needs = least[right.index(letter)]
            kept[letter] = held[0] if agree and covers(held[0], needs) else needs
        else:
            live = _contracted(plan, terms, nodes[-2:], letter)
            kept[letter] = held[0] if agree and covers(held[0], live) else live
    reads = [
        tuple(kept[c] if n == sizes[c] else None for c, n in zip(t, facts[x].shape, strict=True))
        for t, x in zip(terms, nodes[-2:], strict=True)
    ]
    keeps = tuple(kept[c] for c in right)
    extra = [
        tuple(keeps[d + len(keeps) - len(facts[x].shape)] if n > 1 else None
              for d, n in enumerate(facts[x].shape))
        for x in nodes[:-2]
    ]  # fmt: skip
    return Decision((*extra, *reads), keeps, keeps)


def _contracted(plan: "Plan", terms: list[str], nodes: list[fx.Node], letter: str) -> Tensor | None:
    """The positions at which neither operand is zero for certain."""
    live: Tensor | None = None
    for term, x in zip(terms, nodes, strict=True):
        d = term.index(letter)
        if plan.facts[x].shape[d] == 1:
            continue
        zero = known_zero(plan.facts[x])
        nonzero = any_over(~zero, [e for e in range(zero.dim()) if e != d])
        needed = plan.required_along(x, d) | plan.needed_along(x, d)
        here = nonzero & needed.to(nonzero.device)
        live = here if live is None else live & here
    if live is None or bool(live.all()):
        return None
    if not bool(live.any()):
        live[0] = True
    return live


register(
    [aten.matmul.default, aten.mm.default, aten.bmm.default, aten.einsum.default,
     aten.baddbmm.default, aten.addmm.default, aten.dot.default, aten.mv.default],
    where(_is_product, Rule(_product_known, _product_needed, _product_narrow), MIXING),
)  # fmt: skip


# Attention in one operator: softmax(q k' / sqrt(D)) v over (..., L, D), (..., S, D), (..., S, E).


def _attention_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    """Zero where the whole column of v is, whatever the weights are."""
    v = operands(node, facts)[2]
    zero = known_zero(facts[v])
    column = ~any_over(~zero, [zero.dim() - 2], keepdim=True)
    if column.shape[:-2] != value.shape[:-2]:
        return torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    return column.expand(value.shape)


def _attention_needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    q, k, v, *rest = operands(node, facts)
    shapes = [facts[x].shape for x in (q, k, v)]
    asked: list[Tensor | None] = []
    if len({s[:-2] for s in shapes}) > 1:  # heads shared by several queries
        return [torch.ones(facts[x].shape, dtype=torch.bool) for x in (q, k, v, *rest)]
    head = any_over(wanted, [wanted.dim() - 2, wanted.dim() - 1], keepdim=True)
    for x, y in ((q, k), (k, q)):
        live = any_over(~known_zero(facts[y]), [len(shapes[0]) - 2], keepdim=True)
        asked.append((head & live).expand(facts[x].shape))
    asked.append(any_over(wanted, [wanted.dim() - 2], keepdim=True).expand(shapes[2]))
    for x in rest:
        asked.append(torch.ones(facts[x].shape, dtype=torch.bool, device=wanted.device))
    return asked


def _attention_narrow(plan: "Plan", node: fx.Node) -> Decision:
    facts = plan.facts
    nodes = operands(node, facts)
    shapes = [facts[x].shape for x in nodes]
    rank = len(shapes[0])
    lead = {d: d for d in range(rank - 2)}
    grouped = len({s[:-2] for s in shapes[:3]}) > 1
    pairs: list[Pairs] = [
        {} if grouped else {**lead, rank - 2: rank - 2},
        {} if grouped else dict(lead),
        {rank - 1: rank - 1} if grouped else {**lead, rank - 1: rank - 1},
    ]
    for s in shapes[3:]:
        offset = rank - len(s)
        pairs.append({} if grouped else {
            d: d + offset for d, n in enumerate(s)
            if d + offset < rank - 2 and n == shapes[0][d + offset]
        })  # fmt: skip
    plain = agreed(plan, node, pairs)
    width = _shared_width(plan, nodes[:2])
    if not grouped and shapes[1][-1] == shapes[2][-1]:
        plain, width = _of_one_width(plain, width, shapes[0][-1])
    reads = [(*plain.reads[k][:-1], width) if k < 2 else plain.reads[k] for k in range(len(nodes))]
    scale = argument(node, 6, "scale")
    emit = scaled_attention(shapes[0][-1] ** -0.5) if scale is None and width is not None else None
    reason = "queries share keys" if grouped and plain.reason else ""
    return plain._replace(reads=tuple(reads), emit=emit, reason=reason)


def _of_one_width(
    plain: Decision, width: Tensor | None, total: int
) -> tuple[Decision, Tensor | None]:
    """The fused kernels want queries, keys and values of one width: the narrower are filled up."""
    values = plain.keeps[-1]
    if width is None or values is None:
        return _with_values(plain, None), None
    count = max(int(width.sum()), int(values.sum()))
    return _with_values(plain, _widened(values, count, total)), _widened(width, count, total)


def _widened(kept: Tensor, count: int, total: int) -> Tensor | None:
    """Positions with the first of the others, so that there are ``count``."""
    others = (~kept).nonzero().flatten()[: count - int(kept.sum())]
    wider = kept.clone()
    wider[others] = True
    return None if count == total else wider


def _with_values(plain: Decision, values: Tensor | None) -> Decision:
    reads = list(plain.reads)
    reads[2] = (*reads[2][:-1], values)
    keeps = (*plain.keeps[:-1], values)
    return plain._replace(reads=tuple(reads), makes=keeps, keeps=keeps)


def _shared_width(plan: "Plan", nodes: list[fx.Node]) -> Tensor | None:
    """Positions of the width of queries and keys whose product is not zero for certain."""
    live: Tensor | None = None
    for x in nodes:
        zero = known_zero(plan.facts[x])
        here = any_over(~zero, list(range(zero.dim() - 1)))
        here = here & plan.needed_along(x, zero.dim() - 1).to(here.device)
        live = here if live is None else live & here
    assert live is not None
    if bool(live.all()):
        return None
    if not bool(live.any()):
        live[0] = True
    return live


register(
    aten.scaled_dot_product_attention.default,
    Rule(_attention_known, _attention_needed, _attention_narrow),
)
