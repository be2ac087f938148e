"""Time instead of parameters: what a layer takes at its widths, measured once for each machine.

A table holds the seconds of each convolution and linear layer over a grid of input and output widths;
in between they are interpolated. The rest of a network (norms, activations, memory traffic between
layers) is not in it, so the share of the time that a count gives is that of these layers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.counts import Example, LayerCall, layer_calls
from spr_or.pruning.removed_share import Counter
from spr_or.utils.files import cache_folder, write_json
from spr_or.utils.timing import fastest
from spr_or.utils.untrusted import UnreadableFile, read_json

_FORMAT = "spr-or latency 1"
_PARTS = 4  # the grid has these equal parts of a layer's width, and one
_REPEATS, _SECONDS = 30, 0.5  # of one layer
Grid = tuple[
    list[int], list[int], list[list[float]]
]  # inputs, outputs, seconds by input and output
Measure = Callable[[LayerCall, "Sequence[Widths]"], list[float]]


class Widths(NamedTuple):
    """Inputs (of one group) and outputs of a convolution or linear layer."""

    inputs: int
    outputs: int


class LatencyCounter:
    """The share of the time of all convolutions and linear layers, in percent, that masks remove.

    Called with masks, as `Counter`. Times are those of ``example``'s batch size, the model's device
    and the present number of threads. They are read from ``folder`` (default: the user's cache,
    ``$SPR_OR_CACHE`` or ``~/.cache/spr-or``) or measured and kept there, one file for each machine
    and version of torch. A table never falls with a width: where a measurement does, the
    larger of its neighbours' times counts.

    Raises ``ValueError`` naming the file where a table is damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        folder: Path | None = None,
        measure: Measure | None = None,
    ) -> None:
        self._counter = Counter(model, example)
        self._calls = layer_calls(model, example)
        device = next(model.parameters()).device
        place = (folder or cache_folder()) / "latency" / f"{_hash(machine(device))}.json"
        self._grids = _tables(
            place, self._calls, machine(device), measure or partial(measured, device=device)
        )
        self.total = self.seconds({})

    def __call__(self, masks: Masks) -> float:
        """The percentage removed with ``masks`` (True = keep)."""
        return 100 * (self.total - self.seconds(masks)) / self.total

    def grids(self) -> list[tuple[str, Grid]]:
        """The layer of each call and its table: widths in, widths out, seconds."""
        return [(call.name, self._grids[_key(call)]) for call in self._calls]

    def seconds(self, masks: Masks) -> float:
        """What the layers take together with ``masks``."""
        weights = self._counter.weights(masks)
        nothing = Widths(0, 0)  # a layer that is gone
        widths = {name: Widths(shape[1], shape[0]) for name, shape in weights.items()}
        return sum(
            interpolated(self._grids[_key(call)], widths.get(call.name, nothing))
            for call in self._calls
        )


def interpolated(grid: Grid, widths: Widths) -> float:
    """Seconds at given widths, linear in both; none for a layer without inputs or outputs.

    >>> grid = [1, 4], [1, 2], [[1.0, 2.0], [4.0, 8.0]]
    >>> interpolated(grid, Widths(inputs=1, outputs=2)), interpolated(grid, Widths(2, 1))
    (2.0, 2.0)
    """
    inputs, outputs, seconds = grid
    if min(widths) == 0:
        return 0.0
    rising = np.maximum.accumulate(np.maximum.accumulate(seconds, axis=0), axis=1)
    column = [np.interp(widths.outputs, outputs, row) for row in rising]
    return float(np.interp(widths.inputs, inputs, column))


def machine(device: torch.device) -> dict[str, Any]:
    """What times depend on besides the layer."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": accelerator or device.type,
        "torch": torch.__version__,
    }


def measured(call: LayerCall, widths: Sequence[Widths], device: torch.device) -> list[float]:
    """Seconds of the layer at each of the widths, in evaluation mode, the fastest of a few turns."""
    runs = []
    for inputs, outputs in widths:
        layer: Any = _at(call.module, inputs, outputs).to(device, call.module.weight.dtype).eval()
        shape = list(call.inputs)
        shape[_channel_dim(call)] = inputs * getattr(layer, "groups", 1)
        runs.append(
            partial(layer, torch.randn(shape, device=device, dtype=call.module.weight.dtype))
        )
    with torch.no_grad():
        return fastest(runs, device, _REPEATS, _SECONDS)


def _tables(
    place: Path, calls: Sequence[LayerCall], on: dict[str, Any], measure: Measure
) -> dict[str, Grid]:
    """The grid of each call, by `_key`; what the file lacks is measured and added to it."""
    known = _read(place, on) if place.exists() else {}
    missing = {_key(call): call for call in calls if _key(call) not in known}
    for key, call in missing.items():
        inputs, outputs = _grid(call)
        pairs = [Widths(i, o) for i in inputs for o in outputs]
        seconds = np.reshape(measure(call, pairs), (len(inputs), len(outputs))).tolist()
        known[key] = inputs, outputs, seconds
    if missing:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"format": _FORMAT, "machine": on, "layers": known})
    return known


def _read(place: Path, on: dict[str, Any]) -> dict[str, Grid]:
    try:
        content = read_json(place)
        if content["format"] != _FORMAT or content["machine"] != on:
            raise ValueError("it belongs to another machine or version")
        return {key: _checked(*grid) for key, grid in content["layers"].items()}
    except (UnreadableFile, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the latency table {place} is damaged ({error}): remove it") from None


def _checked(inputs: list[int], outputs: list[int], seconds: list[list[float]]) -> Grid:
    times = np.asarray(seconds, dtype=float)
    if times.shape != (len(inputs), len(outputs)) or not (times > 0).all():
        raise ValueError("its times do not fit its widths")
    return inputs, outputs, times.tolist()


def _grid(call: LayerCall) -> tuple[list[int], list[int]]:
    """Widths at which a layer is measured: one, and equal parts up to its own."""
    inputs, outputs = call.module.weight.shape[1], call.module.weight.shape[0]
    return _widths(inputs), _widths(outputs)


def _widths(width: int) -> list[int]:
    return sorted({1, *(max(1, width * part // _PARTS) for part in range(1, _PARTS + 1))})


def _channel_dim(call: LayerCall) -> int:
    return -1 if isinstance(call.module, nn.Linear) else 1


def _at(layer: Any, inputs: int, outputs: int) -> nn.Module:
    """A layer like this one with other widths."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias)
    kind = next(k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k))
    depthwise = layer.groups == layer.out_channels
    groups = outputs if depthwise else layer.groups
    outputs = max(1, outputs // groups) * groups
    return kind(
        inputs * groups, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        groups, bias, layer.padding_mode,
    )  # fmt: skip


def _key(call: LayerCall) -> str:
    """What identifies a layer and its input in the table."""
    layer = call.module
    shape = "x".join(map(str, call.inputs))
    return f"{layer} of {layer.weight.dtype} at {shape}"


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
