"""A network as the source of a module that grows operation by operation.

Values are images (C, H, W), tokens (T, C) or features (C,), each behind a batch dimension.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Unfit(Exception):
    """No value of the program fits an operation."""


UNCLEAR = "?"


@dataclass
class Value:
    """A variable of the forward pass. owner: the layer that it is the output of, as it comes; None
    where several layers or none wrote it; UNCLEAR where a norm behind it may belong to a layer."""

    name: str
    shape: tuple[int, ...]
    owner: str | None = None
    read: bool = False

    @property
    def channel_axis(self) -> int:
        """Dimension of the channels, the batch counted."""
        return 2 if len(self.shape) == 2 else 1

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis - 1]

    def with_channels(self, channels: int) -> tuple[int, ...]:
        axis = self.channel_axis - 1
        return (*self.shape[:axis], channels, *self.shape[axis + 1 :])


@dataclass
class Program:
    """Lines of __init__ and forward, and the values that later lines may read."""

    draw: random.Random
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    layers: dict[str, tuple[Value, tuple[int, ...]]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    unclear: bool = False

    def fresh(self, letter: str) -> str:
        name = f"{letter}{len(self.names)}"
        self.names.add(name)
        return name

    def one_of(self, *choices: Any) -> Any:
        return self.draw.choice(choices)

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def pick(
        self, rank: int | None = None, fits: Callable[[Value], bool] = lambda v: True
    ) -> Value:
        """A value with that number of dimensions; late ones, and such that nothing reads, more often."""
        found = [v for v in self.values if rank in (None, len(v.shape)) and fits(v)]
        unread = [v for v in found if not v.read]
        found = unread if unread and self.chance(0.6) else found
        if not found:
            raise Unfit
        value = found[max(self.draw.randrange(len(found)) for _ in range(2))]
        value.read = True
        return value

    def partner(self, value: Value) -> Value:
        """A value of the same shape, the value itself if there is no other."""
        return self.pick(fits=lambda v: v.shape == value.shape)

    def emit(self, expression: str, shape: tuple[int, ...], owner: str | None = UNCLEAR) -> Value:
        """One more line that computes one more value."""
        if not all(shape) or max(shape) > 40:
            raise Unfit
        value = Value(self.fresh("v"), shape, owner)
        self.body.append(f"{value.name} = {expression}")
        self.values.append(value)
        return value

    def member(self, name: str, constructor: str) -> str:
        self.names.add(name)
        self.init.append(f"self.{name} = {constructor}")
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        return self.member(self.fresh("p"), f"nn.Parameter(torch.randn{shape})")

    def layer(self, source: Value, constructor: str, shape: tuple[int, ...]) -> Value:
        """The output of a new layer on a value."""
        source.read = True
        name = self.fresh("layer")
        self.layers[name] = (source, shape)
        return self.emit(f"{self.member(name, constructor)}({source.name})", shape, name)

    def norm(self, source: Value, constructor: str, expression: str = "{norm}({x})") -> Value:
        """A norm behind a value, under the name that says which layer it belongs to.

        A norm without scale and shift belongs to no layer: nothing of it can be zeroed. A BatchNorm
        is another matter, for it has a mean.
        """
        name = f"{source.owner}_norm"
        if "affine=False" in constructor and "BatchNorm" not in constructor:
            name = self.fresh("norm")
        elif source.owner is None or source.owner == UNCLEAR or name in self.names:
            self.unclear |= source.owner is not None
            name = self.fresh("norm")
        norm = self.member(name, constructor)
        owner = None if source.owner is None else UNCLEAR
        return self.emit(expression.format(norm=norm, x=source.name), source.shape, owner)

    def overwrite(self, line: str, target: Value) -> None:
        """A line that changes a value, and whatever shares its memory."""
        self.body.append(line)
        target.read = False
        for value in self.values:
            if target.owner in (UNCLEAR, value.owner) and value.owner is not None:
                value.owner = UNCLEAR

    def source(self, results: list[str]) -> str:
        """The class `Net` as Python text."""
        arguments = ", ".join(["self", *(value.name for value in self.inputs)])
        lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.init]
        lines += [f"    def forward({arguments}):"]
        lines += [f"        {line}" for line in self.body]
        returned = results[0] if len(results) == 1 else f"({', '.join(results)})"
        return "\n".join([*lines, f"        return {returned}"])


def joined(*values: Value) -> str | None:
    """Owner of what is computed from several values: none, where they come from different layers."""
    owners = {value.owner for value in values}
    return None if len(owners) > 1 and UNCLEAR not in owners else UNCLEAR


def network(source: str, title: str) -> nn.Module:
    """The network of a program's source."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(source, title, "exec"), names)
    return names["Net"]()
