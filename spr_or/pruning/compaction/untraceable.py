"""Which modules stop a network from being traced: all of them, not only the first.

Tracing ends at the first line that it cannot follow. So the modules inside are traced one by one, on
the inputs that they get in a run of the whole network, and those that fail are asked in turn.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.inputs import Example, Inputs, like_model
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.trace import trace
from spr_or.utils.own_code import line_of


class Fault(NamedTuple):
    """A module that cannot be traced.

    module: its name, empty for the network itself. kind: its type. where: the line of the user's code,
    "file:line: code", empty where torch does not say. reason: what torch says.
    """

    module: str
    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        name = f"{self.module} ({self.kind})" if self.module else self.kind
        return ": ".join(part for part in (name, self.where, self.reason) if part)


def untraceable(model: nn.Module, example: Example) -> list[Fault]:
    """The innermost modules that cannot be traced, one for each line of code; empty if none is.

    Raises CompactionError where the model does not take the example.

    >>> class Gate(nn.Module):
    ...     def forward(self, x):
    ...         return x if x.sum() > 0 else -x
    >>> [fault.module for fault in untraceable(nn.Sequential(Gate(), nn.ReLU()), torch.zeros(2, 3))]
    ['0']
    """
    copied = prepared(model)
    inputs = like_model(copied, example)
    calls = _first_calls(copied, inputs)
    names = {module: name for name, module in copied.named_modules()}
    seen: dict[str, Fault] = {}
    for fault in _faults(copied, calls, names):
        seen.setdefault(fault.where or fault.module, fault)
    return list(seen.values())


def refusal(model: nn.Module, example: Example, error: CompactionError) -> CompactionError:
    """The error of a network that torch cannot trace, with every place in it that stops the tracing."""
    if error.__cause__ is None:  # not torch's, and it names everything
        return error
    faults = untraceable(model, example)
    if not faults:
        return error
    return CompactionError(
        f"{type(model).__name__} cannot be traced, {len(faults)} "
        f"{'place stops' if len(faults) == 1 else 'places stop'} it (a forward pass must not depend "
        "on the values of tensors):\n" + "\n".join(str(fault) for fault in faults)
    )


def _first_calls(model: nn.Module, inputs: Inputs) -> dict[nn.Module, Inputs]:
    """What each module is given at its first call."""
    calls: dict[nn.Module, Inputs] = {model: inputs}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(module, Inputs(args, kwargs))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(*inputs.args, **inputs.kwargs)
    except Exception as error:  # the user's model raises what it likes
        shapes = [tuple(t.shape) for t in inputs.tensors()]
        place = line_of(error)
        raise CompactionError(
            f"{type(model).__name__} does not take inputs of shapes {shapes}: {error}"
            f"{f' ({place})' if place else ''}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _faults(
    module: nn.Module, calls: dict[nn.Module, Inputs], names: dict[nn.Module, str]
) -> list[Fault]:
    example = _by_name(module, calls[module])
    if example is None:
        return []
    try:
        trace(module, example)
    except CompactionError as error:
        inner = [f for child in _called(module, calls) for f in _faults(child, calls, names)]
        cause = error.__cause__ or error
        own = Fault(names[module], type(module).__name__, line_of(cause), _reason(cause))
        return inner if inner and (not own.where or own.where in {f.where for f in inner}) else [
            *inner, own
        ]  # fmt: skip
    return []


def _called(module: nn.Module, calls: dict[nn.Module, Inputs]) -> list[nn.Module]:
    """The nearest modules inside that are called; lists of modules are looked into."""
    found = []
    for child in module.children():
        found += [child] if child in calls else _called(child, calls)
    return found


def _by_name(module: nn.Module, inputs: Inputs) -> Example | None:
    """The inputs as `trace` takes them; None for those that it would change or that have no names."""
    tensors = [leaf for leaf in inputs.tensors() if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or all(len(t) == 1 for t in tensors):
        return None
    if not inputs.kwargs:
        return inputs.args
    if not inputs.args:
        return inputs.kwargs
    try:
        return dict(inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs).arguments)
    except TypeError:
        return None


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
