"""One hard network for compaction: how it is built, what it reads, and how its layers are named.

The names of the layers say what a test needs to know, so that nothing is taken from the engine:

- A layer whose name begins with "head" gives an output of the network.
- A norm that reads only the layer "x", channel by channel, is called "x_norm". A norm of any other
  name belongs to no layer.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Example = Tensor | tuple[Any, ...] | dict[str, Any]


class Case(NamedTuple):
    """A network and inputs for a batch size.

    factory: a class or function without arguments, found under its name in its module.
    parameters: names of parameters that are masked beside the layers. wide: weights stay whole,
    since an operation that needs the full width computes or reads them.
    """

    name: str
    factory: Callable[[], nn.Module]
    inputs: Callable[[int], Example]
    parameters: tuple[str, ...] = ()
    wide: bool = False


def collector(cases: list[Case]) -> Callable[..., Callable[[Any], Any]]:
    """A decorator that appends what it decorates to `cases`."""

    def case(name: str, inputs: Callable[[int], Example], **more: Any) -> Callable[[Any], Any]:
        def register(factory: Any) -> Any:
            cases.append(Case(name, factory, inputs, **more))
            return factory

        return register

    return case


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, under their names."""
    return nn.Sequential(OrderedDict(layers))


def image(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def signal(batch: int) -> Tensor:
    return torch.randn(batch, 4, 10)


def features(batch: int) -> Tensor:
    return torch.randn(batch, 6)


def tokens(batch: int) -> Tensor:
    return torch.randn(batch, 5, 8)


def words(batch: int) -> Tensor:
    return torch.randint(0, 11, (batch, 5))
