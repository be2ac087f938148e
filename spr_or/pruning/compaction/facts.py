"""What is known of every tensor of a graph, element by element, whatever the inputs are.

An element is *known* when it has the same value for every input: a filter of zeros makes its whole
channel known, a scale of zero too. Shapes and values come from one run of the example.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

Keep = tuple[Tensor | None, ...]
"""Which positions of each dimension remain: a bool vector for each, None = all of them."""


class Fact(NamedTuple):
    """One node: its value in the example's run, which elements are known, and where sizes may vary.

    known: bool of value's shape, or None where the value is no tensor. fixed: the value depends on
    parameters only. variable: the dimensions whose size may be another for other inputs.
    """

    value: Any
    known: Tensor | None
    fixed: bool
    variable: frozenset[int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the example's run."""
        return tuple(self.value.shape)

    @property
    def is_tensor(self) -> bool:
        """Whether the node is one tensor (not a size, not several results)."""
        return isinstance(self.value, Tensor)


class Facts(dict[fx.Node, Fact]):
    """The facts of a graph's nodes, and what rules have worked out of them."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[Any, Any] = {}

    def once(self, work: Callable[[fx.Node, "Facts"], Any], node: fx.Node) -> Any:
        """``work(node, facts)``, which is done once for each node."""
        key = (work, node)
        if key not in self._found:
            self._found[key] = work(node, self)
        return self._found[key]


def operands(node: fx.Node, facts: Facts) -> list[fx.Node]:
    """The tensors that a node reads, in the order of its arguments, repeated where read twice."""
    found: list[fx.Node] = []

    def look(argument: Any) -> Any:
        if isinstance(argument, fx.Node) and not isinstance(facts[argument].value, int | float):
            found.append(argument)
        return argument

    map_aggregate((node.args, node.kwargs), look)
    return found


def with_operands(
    node: fx.Node, facts: Facts, new: Sequence[Any], args: Any = None, kwargs: Any = None,
    others: Callable[[fx.Node], Any] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(args, kwargs) with the k-th operand replaced by ``new[k]``, sizes by ``others``.

    args, kwargs: the arguments to fill where they are not the node's own.
    """
    queue = iter(new)

    def put(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if not isinstance(facts[argument].value, int | float):
            return next(queue)
        return others(argument) if others else facts[argument].value

    given = (node.args if args is None else args, node.kwargs if kwargs is None else kwargs)
    return map_aggregate(given, put)


def call(node: fx.Node, facts: Facts, new: Sequence[Any], args: Any = None) -> Any:
    """The node's operator on other tensors than its own, on the CPU."""
    filled, named = map_aggregate(with_operands(node, facts, new, args), on_cpu)
    return node.target(*filled, **named)  # type: ignore[operator]


def on_cpu(argument: Any) -> Any:
    """An argument of an operator where facts are worked out: a device becomes the CPU."""
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def named(node: fx.Node, name: str) -> Any:
    """An argument of a call by its name in the operator's schema, its default where it is not given."""
    for position, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if parameter.name == name:
            return argument(node, position, name, parameter.default_value)
    raise KeyError(name)


def known_zero(fact: Fact) -> Tensor:
    """Elements that are zero for every input."""
    assert fact.known is not None
    return fact.known & (fact.value == 0)


def uniform(fact: Fact, dim: int) -> tuple[Tensor, Tensor]:
    """Along one dimension of n: which slices are one known value everywhere, and that value, (n,) each."""
    assert fact.known is not None
    others = [d for d in range(len(fact.shape)) if d != dim]
    known, value = fact.known, fact.value.detach()
    if not others:
        return known, value
    rows = value.movedim(dim, 0).reshape(value.shape[dim], -1)
    first = rows[:, :1]
    return ~any_over(~known, others) & (rows == first).all(1), first[:, 0]


def any_over(mask: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Whether any element is True along several dimensions."""
    if not dims:
        return mask
    if not mask.numel():
        return mask.any(tuple(dims), keepdim=keepdim)
    for dim in dims:  # repeats of an expanded mask say nothing more
        if mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    # The maximum of bytes is much faster than torch.any over several dimensions.
    return mask.view(torch.uint8).amax(tuple(dims), keepdim=keepdim).view(torch.bool)


def counted(keep: Keep, shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes that remain."""
    return tuple(n if k is None else int(k.sum()) for k, n in zip(keep, shape, strict=True))


def outer(keep: Keep, shape: Sequence[int], device: torch.device) -> Tensor:
    """The elements that remain, as a bool tensor of the full shape."""
    mask = torch.ones(tuple(shape), dtype=torch.bool, device=device)
    for dim, kept in enumerate(keep):
        if kept is not None:
            mask = mask & kept.to(device).view([-1 if d == dim else 1 for d in range(len(shape))])
    return mask


def projected(mask: Tensor, variable: frozenset[int]) -> Keep:
    """For each dimension the positions at which anything is True; variable ones are kept whole."""
    keep: list[Tensor | None] = []
    for dim in range(mask.dim()):
        if dim in variable or mask.shape[dim] == 1:
            keep.append(None)
            continue
        kept = any_over(mask, [d for d in range(mask.dim()) if d != dim])
        keep.append(None if bool(kept.all()) else kept)
    return tuple(keep)


def select(tensor: Tensor, keep: Keep) -> Tensor:
    """The kept positions of a tensor."""
    for dim, kept in enumerate(keep):
        if kept is not None:
            tensor = tensor.index_select(dim, kept.nonzero().flatten().to(tensor.device))
    return tensor


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two sets of positions are equal."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.cpu(), other.cpu())


def full(rank: int) -> Keep:
    """Everything."""
    return (None,) * rank
