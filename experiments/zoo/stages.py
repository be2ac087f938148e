"""The stages of one network: SPR by layer, SPR by channel, Torch-Pruning, and their latencies."""

from __future__ import annotations

import copy
import subprocess
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import spr_pruning
import torch
import torch_pruning_run
from counting import latencies, sizes
from networks import ALL, Network
from preparation import output_layers, randomise_
from torch import nn

FLOAT32_BAR, FLOAT64_BAR = 1e-4, 1e-9
SPREAD_BAR = 1e-5  # outputs that hardly depend on inputs say little about a network
METHODS = ("filters", "channels", "torch-pruning")
Record = dict[str, Any]


@dataclass
class Subject:
    """A network built once, and what the stages have made of it so far.

    ``model`` itself is never called, only copies are: some networks keep tensors of their first
    call, of that call's dtype or with its graph.
    """

    network: Network
    model: nn.Module
    ignored: list[str]
    made: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> Subject:
        """The network of that name in evaluation mode, with fixed random weights."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        network = ALL[name]
        model = network.build()
        randomise_(model)
        model.eval()
        return cls(network, model, output_layers(copy.deepcopy(model), network.inputs(2)))


def run_stage(subject: Subject, stage: str, known: Mapping[tuple[str, str], Record]) -> Record:
    """The record of one stage; an exception of the stage becomes its ``error``."""
    record: Record = {**subject.network.identity(stage), "ok": True}
    record |= {"commit": _commit(), "torch": torch.__version__}
    torch.manual_seed(2)
    try:
        if stage == "latency":
            record |= _latency(subject, known)
        else:
            dense = sizes(copy.deepcopy(subject.model), subject.network.inputs(1))
            record |= {f"dense_{key}": n for key, n in dense.items()}
            subject.made[stage], more = _method(subject, stage)
            record |= more
    except spr_pruning.StepFailed as failed:
        cause = failed.__cause__
        record |= failed.record | {"ok": False, "step": failed.step, "error": _words(cause)}
    except Exception as error:
        record |= {"ok": False, "error": _words(error)}
    if record["ok"] and "float64" in record:
        record |= _judged(record)
    return record


def _method(subject: Subject, stage: str) -> tuple[nn.Module, Record]:
    """The smaller network of a method; each starts from the same weights."""
    model = copy.deepcopy(subject.model)
    if stage == "torch-pruning":
        return torch_pruning_run.prune(subject.network, model, subject.ignored)
    return spr_pruning.prune(subject.network, model, subject.ignored, stage == "channels")


def _judged(record: Record) -> Record:
    """Whether SPR attached and the outputs agree; written so that NaN does not."""
    if not (record["float32"] <= FLOAT32_BAR and record["float64"] <= FLOAT64_BAR):
        seen = f"{record['float32']:.1e} in float32, {record['float64']:.1e} in float64"
        return {"ok": False, "step": "outputs agree", "error": f"outputs differ: {seen}"}
    if not record["spread"] > SPREAD_BAR:
        seen = f"from one input to the next outputs change by {record['spread']:.1e}"
        return {"ok": False, "step": "outputs agree", "error": f"nothing was compared: {seen}"}
    if record["attached"] is not True:
        return {"ok": False, "step": "SPR attaches", "error": record["attached"]}
    return {}


def _latency(subject: Subject, known: Mapping[tuple[str, str], Record]) -> Record:
    """Median milliseconds of every network that could be made, one sample or else two."""
    for stage in METHODS:
        succeeded = known.get((subject.network.name, stage), {"ok": False})["ok"]
        if succeeded and stage not in subject.made:
            subject.made[stage], _ = _method(subject, stage)
    networks = {"dense": copy.deepcopy(subject.model), **subject.made}
    batch = 1
    try:
        latencies(networks, subject.network.inputs(1), seconds=0)
    except Exception:
        batch = 2
    measured = latencies(networks, subject.network.inputs(batch))
    return {"batch": batch, "milliseconds": {name: round(t, 3) for name, t in measured.items()}}


def _words(error: BaseException | None) -> str:
    """Type, text, and the deepest line of code, in a paragraph."""
    assert error is not None
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
    return f"{type(error).__name__}: {str(error)[:1500]} [{place}]"


def _commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()
