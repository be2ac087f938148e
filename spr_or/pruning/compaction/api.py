"""Physical removal: the masked network's function, in a network without the masked filters.

`compact` removes, `save_compact` and `load_compact` keep the result without pickling anything.
`spr_or.pruning.compaction.channels` describes how it decides, `spr_or.pruning.compaction.graph` what
it refuses.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from spr_or.pruning.compaction.channels import make_plan
from spr_or.pruning.compaction.graph import CompactionError, target_name, trace
from spr_or.pruning.compaction.removal_plan import RemovalPlan, Step
from spr_or.pruning.compaction.rewrite import rewrite
from spr_or.pruning.masks import apply_masks_
from spr_or.utils.files import write_aside
from spr_or.utils.import_path import load_object
from spr_or.utils.untrusted import check_regular, parse_json

__all__ = ["CompactionError", "compact", "load_compact", "read_description", "save_compact"]

FORMAT = "spr-or compact 1"


class _StoredStep(BaseModel):
    """A `Step` as the file has it; ``shift`` is whether there is one, its numbers are a tensor."""

    model_config = ConfigDict(strict=True, extra="forbid")
    kind: str
    target: str
    channels: int = Field(ge=0)
    kept: list[int]
    offset: int
    around: list[int]
    shift: bool

    @model_validator(mode="after")
    def _kept_are_channels(self) -> "_StoredStep":
        """Kept channels rise and are among those that there were."""
        if any(b <= a for a, b in zip(self.kept, self.kept[1:], strict=False)):
            raise ValueError("the kept channels are not in rising order")
        if self.kept and not 0 <= self.kept[0] <= self.kept[-1] < self.channels:
            raise ValueError(f"kept channels outside 0 to {self.channels - 1}")
        return self


class _Description(BaseModel):
    model_config = ConfigDict(strict=True)
    format: str
    original: str
    kwargs: dict[str, Any]
    steps: dict[str, _StoredStep]


def compact(model: nn.Module, masks: Mapping[str, Tensor], example_input: Tensor) -> nn.Module:
    """A smaller network that computes in evaluation mode what the masked model computes.

    model: any module torch.fx can trace; it is not changed. masks: name of a convolution or
    linear layer to a bool vector over its filters or neurons, True = keep; filters that are
    already zero go as well. example_input: (B, C, …), values do not matter, sizes do where the
    network flattens. The result is an `fx.GraphModule` in evaluation mode with the original
    module names; it can be trained further, exported and saved by `save_compact`.

    Raises CompactionError (a ValueError) naming the node and the module that is not understood,
    and ValueError for masks that do not fit.

    >>> from spr_or.models.toy import mlp
    >>> keep = torch.arange(64) < 5
    >>> small = compact(mlp(), {"1": keep}, torch.zeros(1, 64))
    >>> small.get_submodule("1").weight.shape, small.get_submodule("3").weight.shape
    (torch.Size([5, 64]), torch.Size([32, 5]))
    """
    masked = copy.deepcopy(model).eval()
    apply_masks_(masked, masks)
    graph = trace(masked)
    reference = next(masked.parameters())
    plan = make_plan(graph, example_input.to(reference.device, reference.dtype))
    smaller = rewrite(graph, plan)
    smaller.meta["plan"] = plan
    return smaller.eval()


def save_compact(
    path: str | Path,
    compact_model: nn.Module,
    original: str,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a compacted network to one safetensors file, with its description as JSON inside.

    compact_model: what `compact` returned, perhaps trained since. original: import path
    "package.module:function" that, called with `kwargs` (JSON values), builds the network that
    was compacted. The description holds both and the kept index lists. The original is built once
    to make sure that the file can be read again; the file appears whole or not at all. Raises
    ValueError if any of that does not fit.
    """
    plan = getattr(compact_model, "meta", {}).get("plan")
    if plan is None:
        raise ValueError(f"a {type(compact_model).__name__} does not come from compact()")
    steps = {name: asdict(step) | {"shift": step.shift is not None} for name, step in plan.items()}
    description = {"format": FORMAT, "original": original, "kwargs": dict(kwargs or {})}
    description["steps"] = steps
    state = {name: t.detach().cpu().contiguous() for name, t in compact_model.state_dict().items()}
    _load(_rebuild(description), state, f"the network given to save_compact for {path}")
    metadata = {"spr_or": json.dumps(description)}
    write_aside(path, lambda aside: save_file(state, aside, metadata))


def load_compact(path: str | Path, original: str | None = None) -> nn.Module:
    """Rebuild a saved network, in evaluation mode on the CPU, with the saved dtypes.

    The file names a function, which is imported and called, so load only files you trust; with
    `original` given, a file that names another function is refused before anything is imported.
    Raises ValueError for a damaged or foreign file and for an original that has changed.
    """
    description = read_description(path)
    if original is not None and original != description["original"]:
        raise ValueError(f"{path} was made from {description['original']!r}, not {original!r}")
    try:
        model = _rebuild(description)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} does not describe a network: {error}") from error
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    _load(model, state, str(path))
    return model.eval()


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON description in a saved file: format, original, kwargs, steps (`removal_plan.Step`).

    Raises ``ValueError`` naming the file where it is damaged, foreign, or states what cannot be: kept
    channels that are not rising, or outside those of their layer.
    """
    path = Path(path)
    if path.exists():
        check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spr_or", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    description = parse_json(text, str(path))
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} holds no compacted network of format {FORMAT!r}")
    try:
        return _Description.model_validate(description).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path} is damaged: {place}: {first['msg']}") from None


def _rebuild(description: Mapping[str, Any]) -> fx.GraphModule:
    """The compact network of a description, with weights that mean nothing yet."""
    original, kwargs = description["original"], description["kwargs"]
    with torch.random.fork_rng(
        devices=[]
    ):  # building draws weights; the caller's random state stays
        model = _resolve(original)(**kwargs)
    graph = trace(model.eval())
    plan: RemovalPlan = {}
    for name, entry in description["steps"].items():
        shift = torch.zeros(len(entry["kept"])) if entry["shift"] else None
        plan[name] = Step(**{**entry, "shift": shift})
    found = {node.name: target_name(node) for node in graph.graph.nodes}
    if found != {name: step.target for name, step in plan.items()}:
        raise ValueError(
            f"{original} with {dict(kwargs)} does not fit: it is not, or is no longer, the network "
            "that was compacted"
        )
    rebuilt = rewrite(graph, plan)
    rebuilt.meta["plan"] = plan
    return rebuilt


def _resolve(original: str) -> Any:
    try:
        return load_object(original)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{original!r} cannot be imported ({error}); give "package.module:function"'
        ) from error


def _load(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the original it names: {error}") from error
