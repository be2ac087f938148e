"""Which sizes of a traced graph may vary with the input, and which only look as if they might.

A linear layer behind a flattened image takes one number of features: torch.export notes that
channels · height · width equals that number, and still calls height and width variable, because two
unknowns have many solutions. Such sizes are numbers here, those of the example.
"""

from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import Mod, PythonMod


def fixed_size(n: Any) -> int | None:
    """A size as a number, None where it varies. (A variable size that turned out fixed is no int.)"""
    if isinstance(n, int):
        return n
    expression = n.node.expr
    return int(expression) if expression.is_number else None


def variable_dims(value: Any) -> set[int]:
    """The dimensions of a node's value whose size varies; none where it is no tensor."""
    return {d for d, n in enumerate(getattr(value, "shape", ())) if fixed_size(n) is None}


def fix_sizes(graph: fx.GraphModule) -> None:
    """Make numbers of the sizes that the forward pass allows one number for, in place."""
    fixed = _fixed_symbols(graph)
    if not fixed:
        return
    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and _follows(value, fixed):
            node.replace_all_uses_with(_hint(value))
        else:
            node.meta["val"] = pytree.tree_map(lambda leaf: _with_numbers(leaf, fixed), value)


def _fixed_symbols(graph: fx.GraphModule) -> set[sympy.Symbol]:
    """Symbols of an equation with a number that torch.export noted; those of the batch stay free."""
    inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in inputs if isinstance(value, Tensor) and value.dim()]
    found: set[sympy.Symbol] = set()
    if not tensors:
        return found
    batch = {symbol for value in tensors for symbol in _symbols(value.shape[0])}
    for guard in tensors[0].fake_mode.shape_env.guards:  # type: ignore[attr-defined]
        expression = guard.expr
        if (
            isinstance(expression, sympy.Eq)
            and any(side.is_number for side in expression.args)
            and not expression.has(Mod, PythonMod)  # divisible, not equal
            and not expression.free_symbols & batch
        ):
            found |= expression.free_symbols
    return found


def _symbols(n: Any) -> set[sympy.Symbol]:
    return set(n.node.expr.free_symbols) if isinstance(n, torch.SymInt) else set()


def _follows(n: Any, fixed: set[sympy.Symbol]) -> bool:
    return isinstance(n, torch.SymInt) and _symbols(n) <= fixed


def _hint(n: Any) -> int:
    """The size in the example's run."""
    return int(n.node.hint)


def _with_numbers(leaf: Any, fixed: set[sympy.Symbol]) -> Any:
    """The leaf of a node's value with numbers for the sizes that are fixed."""
    if isinstance(leaf, Tensor) and any(_follows(n, fixed) for n in leaf.shape):
        sizes = [_hint(n) if _follows(n, fixed) else n for n in leaf.shape]
        with leaf.fake_mode:  # type: ignore[attr-defined]
            return leaf.new_empty(sizes)
    return leaf
