"""Examples of a network's inputs, as a call and as a graph take them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class Inputs(NamedTuple):
    """An example as a call takes it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        return [leaf for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor)]


def inputs_of(example: Example) -> Inputs:
    """A tensor, a tuple of positional or a mapping of keyword arguments, as one thing.

    >>> inputs_of({"x": torch.zeros(2)}).kwargs
    {'x': tensor([0., 0.])}
    """
    if isinstance(example, Mapping):
        return Inputs((), dict(example))
    return Inputs(tuple(example) if isinstance(example, tuple | list) else (example,), {})


def like_model(model: nn.Module, example: Example) -> Inputs:
    """The example on the model's device, floating point inputs in its dtype, with two samples.

    A batch of one would be taken for a size that never varies.
    """
    inputs = inputs_of(example)
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def fitted(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        dtype = reference.dtype if leaf.is_floating_point() else leaf.dtype
        return leaf.detach().to(reference.device, dtype)

    inputs = Inputs(*pytree.tree_map(fitted, (inputs.args, inputs.kwargs)))
    tensors = [t for t in inputs.tensors() if t.dim()]
    if tensors and all(len(t) == 1 for t in tensors):
        doubled = lambda t: torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() else t  # noqa: E731
        inputs = Inputs(*pytree.tree_map(doubled, (inputs.args, inputs.kwargs)))
    return inputs


def flat_inputs(inputs: Inputs, copied: bool = False) -> list[Any]:
    """The example's leaves in the order of the graph's placeholders."""
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    leaves = [leaf.clone() if copied and isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return leaves


def drawn(inputs: Inputs) -> Inputs:
    """Random inputs of the example's shapes; whole numbers, which name things, stay as they are."""
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    return Inputs(*pytree.tree_map(drawn, (inputs.args, inputs.kwargs)))
