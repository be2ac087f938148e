"""Physical removal: the masked network's function, in a network without the masked filters.

`compact` removes, `save_compact` and `load_compact` keep the result without pickling anything.
`spr_or.pruning.compaction.plan` describes how it decides.
"""

import contextlib
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.inputs import Example, Inputs, drawn, like_model
from spr_or.pruning.compaction.outputs import difference_of, outputs_of, tolerance
from spr_or.pruning.compaction.plan import Plan
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.rewrite import Kept, rewrite
from spr_or.pruning.compaction.storage import load_compact, read_description, save_compact
from spr_or.pruning.compaction.trace import trace
from spr_or.pruning.compaction.untraceable import refusal
from spr_or.pruning.masks import apply_masks_

__all__ = [
    "CompactionError", "CompactionWarning", "compact", "load_compact", "make_plan",
    "read_description", "save_compact",
]  # fmt: skip


class CompactionWarning(UserWarning):
    """The compact network is right, but hardly what was hoped for."""


def compact(model: nn.Module, masks: Mapping[str, Tensor], example_input: Example) -> nn.Module:
    """A smaller network that computes in evaluation mode what the masked model computes.

    model: any module that torch.export can trace; it is not changed. masks: as for
    `spr_or.pruning.masks.apply_masks_`; filters that are already zero go as well. example_input: a
    tensor (B, C, …), a tuple of positional or a dict of keyword inputs. Values do not matter, sizes do
    where the network works with fixed ones. The result is an `fx.GraphModule` in evaluation mode with
    the original parameter names; it can be trained further, compacted again, exported and saved by
    `save_compact`. ``result.meta["kept"]`` holds what is left of each tensor, as indices into that of
    the network that was compacted first; ``result.meta["obstacles"]`` says which operators could not
    take what is left, and what is put back in front of them.

    Both networks are run on random inputs of the example's shapes, and with another batch size where
    that is free, before the smaller one is returned.

    Raises CompactionError (a ValueError) where the network cannot be traced or the outputs differ, and
    ValueError for masks that do not fit. Warns (`CompactionWarning`) where nothing was removed, or a
    layer died altogether.

    >>> from spr_or.models.toy import mlp
    >>> keep = torch.arange(64) < 5
    >>> small = compact(mlp(), {"1": keep}, torch.zeros(1, 64))
    >>> small.get_submodule("1").weight.shape, small.get_submodule("3").weight.shape
    (torch.Size([5, 64]), torch.Size([32, 5]))
    """
    masked = prepared(model)
    apply_masks_(masked, masks, example_input)
    inputs = like_model(masked, example_input)
    try:
        graph = trace(masked, example_input)
    except CompactionError as error:
        raise refusal(masked, example_input, error) from error
    trials = [drawn(inputs)]
    expected = [outputs_of(masked, trial) for trial in trials]
    larger = _with_a_sample_more(trials[0], graph)
    if larger is not None:
        with contextlib.suppress(Exception):  # a network may take one batch size only
            expected.append(outputs_of(masked, larger))
            trials.append(larger)
    problem = ""
    for all_vary, constants in ((True, True), (True, False), (False, True), (False, False)):
        try:
            if constants and not all_vary:
                graph = trace(masked, example_input, all_vary)
            plan = make_plan(graph, inputs, constants)
            smaller = rewrite(plan).eval()
            smaller.meta["obstacles"] = [str(obstacle) for obstacle in plan.obstacles()]
            difference = max(
                (difference_of(want, outputs_of(smaller, trial))
                 for want, trial in zip(expected, trials, strict=True)), default=0.0,
            )  # fmt: skip
        except (CompactionError, RuntimeError) as error:  # the latter: it does not run
            problem = str(error)
            continue
        if difference <= tolerance(masked):
            smaller.meta["kept"] = _since_the_first(model, smaller.meta["kept"])
            smaller.meta["obstacles"] = [str(obstacle) for obstacle in plan.obstacles()]
            _copy_format(model, smaller)
            _say(model, masks, smaller)
            return smaller
        problem = f"its outputs differ by {difference:.2g} of the largest"
    if _is_random(masked, trials, expected):
        raise CompactionError(
            f"{type(model).__name__} gives other outputs each time in evaluation mode (random numbers, "
            "dropout that stays on), so no smaller network can be compared with it"
        )
    raise CompactionError(
        f"the compact network of {type(model).__name__} is not returned: {problem}. This is a fault "
        "of ours, please report the network"
    )


def make_plan(graph: fx.GraphModule, inputs: Inputs, constants: bool = True) -> Plan:
    """What stays of ``graph``, from `trace`, whose pruned weights are zeros."""
    return Plan(graph, pytree.tree_leaves((inputs.args, inputs.kwargs)), constants)


def _with_a_sample_more(inputs: Inputs, graph: fx.GraphModule) -> Inputs | None:
    """The inputs with another batch size, where the graph leaves it free.

    It shows what took the batch size for a constant.
    """
    leaves, structure = pytree.tree_flatten((inputs.args, inputs.kwargs))
    values = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    sizes = [str(v.shape[0]) if isinstance(v, Tensor) and v.dim() else "" for v in values]
    batch = next((size for size in sizes if size), "")
    if not batch or batch.isdigit():
        return None
    more = [
        torch.cat([leaf, leaf[:1]]) if size == batch else leaf
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    return Inputs(*pytree.tree_unflatten(more, structure))


def _is_random(model: nn.Module, trials: list[Inputs], before: list[list[Tensor]]) -> bool:
    again = [outputs_of(model, trial) for trial in trials]
    return any(difference_of(a, b) > 0 for a, b in zip(before, again, strict=True))


def _since_the_first(model: nn.Module, kept: Kept) -> Kept:
    """Indices into the tensors of the network that was compacted first."""
    before: Kept = getattr(model, "meta", {}).get("kept", {}) if hasattr(model, "meta") else {}
    joined: Kept = {}
    for name, dims in kept.items():
        if before and name not in before:
            continue  # of what the compaction before put in
        old = before.get(name) or [None] * len(dims)
        joined[name] = [
            first if second is None else second if first is None else [first[i] for i in second]
            for first, second in zip(old, dims, strict=True)
        ]
    return joined


def _copy_format(model: nn.Module, smaller: nn.Module) -> None:
    """channels_last where the model's convolutions are."""
    weights = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    last = [
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in weights
    ]
    if last and all(last):
        smaller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _say(model: nn.Module, masks: Mapping[str, Tensor], smaller: nn.Module) -> None:
    """Results that are right and yet no success are named."""
    dead = [name for name, keep in masks.items() if not bool(keep.any())]
    if dead:
        warnings.warn(
            f"nothing is left of {', '.join(dead)}: what follows is constant unless another branch "
            "goes around it", CompactionWarning, stacklevel=3,
        )  # fmt: skip
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    if masks and after >= before:
        warnings.warn(
            f"nothing was removed: {after} parameters as before", CompactionWarning, stacklevel=3
        )
