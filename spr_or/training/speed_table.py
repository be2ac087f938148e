"""Times of training steps that were tried, kept for each machine and network in the cache folder.

One file for each processor, number of cores and version of torch. Times are of the machine and not of a
run, so a second run of the same network decides without trials, and as the first one did.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import fx, nn

from spr_or.training.speed_trials import Shape, Speed, Tell, Trial, Trials
from spr_or.utils.files import cache_folder, file_hash, write_json
from spr_or.utils.machine import processor
from spr_or.utils.untrusted import UnreadableFile, read_json

_Seconds = Annotated[float, Field(gt=0)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    threads: Annotated[int, Field(ge=1)]
    channels_last: bool
    compile: bool
    seconds: _Seconds | None
    first: Annotated[float, Field(ge=0)]
    refused: str


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["spr-or speed 1"] = "spr-or speed 1"
    machine: dict[str, Any]
    networks: dict[str, list[_Row]] = {}


def network_key(model: nn.Module, shape: Shape) -> str:
    """What identifies a network and its batch: layers, their settings and shapes, and its code.

    The code is that of the files of all classes in it, since a refusal, or its absence, is one of what
    they compute.

    >>> key = network_key(nn.Linear(3, 2), (8, 3))
    >>> key == network_key(nn.Linear(3, 2), (8, 3)), key == network_key(nn.Linear(3, 2), (4, 3))
    (True, False)
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # addresses differ between processes
    return _hash([type(model).__qualname__, layers, shapes, list(shape), _code(model)])


def _code(model: nn.Module) -> list[str]:
    """The graphs of a traced network, and hashes of the files that torch does not ship."""
    graphs = [module.code for module in model.modules() if isinstance(module, fx.GraphModule)]
    names = {type(module).__module__ for module in model.modules()}
    found = {getattr(sys.modules.get(n), "__file__", None) for n in names if not _is_torch(n)}
    files = sorted(Path(file) for file in found if file is not None)
    return graphs + [file_hash(file) for file in files if file.is_file()]


def _is_torch(module: str) -> bool:
    return module.partition(".")[0] == "torch"  # its version names the table


def load_trials(key: str, tell: Tell) -> Trials:
    """The trials of a network on this machine; a file that cannot be read counts as empty."""
    rows = _read(tell).networks.get(key, [])
    return {
        Speed(row.threads, row.channels_last, row.compile): Trial(
            row.seconds, row.first, row.refused
        )
        for row in rows
    }


def save_trials(key: str, trials: Trials, tell: Tell) -> None:
    """Keep the trials of a network; where nothing can be written, they are made again next time."""
    table = _read(lambda line: None)
    table.networks[key] = [
        _Row(**speed._asdict(), **trial._asdict()) for speed, trial in trials.items()
    ]
    try:
        _place().parent.mkdir(parents=True, exist_ok=True)
        write_json(_place(), table.model_dump())
    except OSError as error:
        tell(f"speed: the times are not kept, {_place()} cannot be written ({error})")


def _read(tell: Tell) -> _Table:
    empty = _Table(machine=_machine())
    if not _place().exists():
        return empty
    try:
        table = _Table.model_validate(read_json(_place()))
    except (UnreadableFile, ValidationError) as error:
        reason = str(error).splitlines()[0]
        tell(f"speed: the times in {_place()} are damaged and not used ({reason})")
        return empty
    return table if table.machine == _machine() else empty


def _machine() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__}


def _place() -> Path:
    return cache_folder() / "speed" / f"{_hash(_machine())}.json"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
