"""Compact networks of the hard kind go on as any network: saved, exported, trained, compacted again."""

import copy
from pathlib import Path
from typing import Any

import hard_networks
import pytest
import torch
from masked_definition import (
    built,
    call,
    difference,
    draw,
    hidden,
    inner,
    inputs_of,
    is_head,
    maskable,
    masked_by_hooks,
    size,
)
from network_cases import Case
from slow_cases import spread
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from spr_or import compact, load_compact, save_compact
from spr_or.pruning.export import export_onnx, export_program
from spr_or.pruning.masks import apply_masks_

CASES = spread(hard_networks.CASES, default=30, slow=6)
ONE_TENSOR = [  # exported and run by other libraries: seconds each
    pytest.param(case, id=case.name, marks=pytest.mark.slow if i % 30 == 0 else pytest.mark.long)
    for i, case in enumerate(hard_networks.CASES)
    if isinstance(case.inputs(1), Tensor)
]


def compacted(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = built(case, dtype)
    return compact(model, draw(hidden(case, model)), inputs_of(case, 2, dtype))


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    small = compacted(case)
    path = tmp_path / "small.safetensors"
    original = f"{case.factory.__module__}:{case.factory.__name__}"
    save_compact(path, small, original)
    loaded = load_compact(path, original)
    assert not loaded.training
    inputs = inputs_of(case, 3, torch.float32)
    with torch.no_grad():
        assert difference(call(small, inputs), call(loaded, inputs)) <= 1e-6
    for entry, tensor in small.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[entry]), entry


@pytest.mark.parametrize("case", CASES)
def test_exported_by_torch(case: Case) -> None:
    small, inputs = compacted(case, torch.float64), inputs_of(case, 3)
    named = inputs if isinstance(inputs, dict) else {}
    listed = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    program = torch.export.export(small, listed, named)
    with torch.no_grad():
        assert difference(call(small, inputs), call(program.module(), inputs)) <= 1e-9


def exports(write: Any, model: nn.Module, case: Case, path: Path) -> bool:
    """Whether the network as it was before can be written at all."""
    try:
        write(inner(model), inputs_of(case, 2, torch.float32), path)
    except Exception:  # whatever torch raises on what it does not know
        return False
    return True


@pytest.mark.parametrize("case", ONE_TENSOR)
def test_written_as_a_program(case: Case, tmp_path: Path) -> None:
    if not exports(export_program, built(case, torch.float32), case, tmp_path / "whole.pt2"):
        pytest.skip("the network itself has no program with a free batch size")
    small, path = compacted(case), tmp_path / "small.pt2"
    export_program(small, inputs_of(case, 2, torch.float32), path)
    again = torch.export.load(path).module()
    for batch in (1, 3):
        inputs = inputs_of(case, batch, torch.float32)
        with torch.no_grad():
            assert difference(call(small, inputs), call(again, inputs)) <= 1e-4


@pytest.mark.parametrize("case", ONE_TENSOR)
def test_written_as_onnx(case: Case, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if not exports(export_onnx, built(case, torch.float32), case, tmp_path / "whole.onnx"):
        pytest.skip("the network itself cannot be written as ONNX")
    small, path = compacted(case), tmp_path / "small.onnx"
    export_onnx(small, inputs_of(case, 2, torch.float32), path)
    session = runtime.InferenceSession(path)
    inputs = inputs_of(case, 3, torch.float32)
    assert isinstance(inputs, Tensor)
    found = [torch.from_numpy(y) for y in session.run(None, {"input": inputs.numpy()})]
    with torch.no_grad():
        assert difference(tree_leaves(call(small, inputs)), found) <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_trained_a_step(case: Case) -> None:
    small = compacted(case).train()
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    outputs = tree_leaves(call(small, inputs_of(case, 4, torch.float32)))
    loss = sum(y.square().mean() for y in outputs if y.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    moved = [n for n, p in small.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    assert all(torch.isfinite(p).all() for p in small.parameters())
    frozen = {n for n, p in inner(built(case)).named_parameters() if not p.requires_grad}
    assert not frozen & set(moved)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name)
        for case in hard_networks.CASES
        if case.name in ("depthwise separable block", "dense block", "uneven split")
    ],
)
def test_training_updates_running_statistics(case: Case) -> None:
    """A batch norm of a compact network is in training mode when the network is."""
    whole = [m for m in built(case).modules() if isinstance(m, _NormBase)]
    small = compacted(case).train()
    before = {n: b.clone() for n, b in small.named_buffers() if n.endswith("running_mean")}
    assert bool(before) == bool(whole)
    call(small, inputs_of(case, 4, torch.float32))
    after = dict(small.named_buffers())
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    small.eval()
    inputs = inputs_of(case, 2, torch.float32)
    with torch.no_grad():
        assert difference(call(small, inputs), call(small, inputs)) == 0


def test_dropout_is_on_in_training_only() -> None:
    case = next(case for case in hard_networks.CASES if case.name.startswith("local response norm"))
    small, inputs = compacted(case), inputs_of(case, 4, torch.float32)
    with torch.no_grad():
        assert difference(call(small, inputs), call(small, inputs)) == 0
        small.train()
        assert difference(call(small, inputs), call(small, inputs)) > 0


@pytest.mark.parametrize("case", CASES)
def test_compacted_again(case: Case) -> None:
    """What is left can be masked and compacted like any network."""
    small = compacted(case, torch.float64)
    layers = {n: count for n, count in maskable(small).items() if not is_head(n) and count > 1}
    if not layers:
        pytest.skip("no layer is left that could lose anything")
    masks, inputs = draw(layers), inputs_of(case, 3)
    smaller = compact(small, masks, inputs_of(case, 2))
    assert size(smaller) < size(small)
    masked = copy.deepcopy(small)
    apply_masks_(masked, masks, inputs_of(case, 2))
    with torch.no_grad():
        found = call(smaller, inputs)
        assert difference(call(masked, inputs), found) <= 1e-9
    assert difference(masked_by_hooks(small, masks, inputs), found) <= 1e-9
