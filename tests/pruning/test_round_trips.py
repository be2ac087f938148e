"""Train, compact, save, export, fine-tune, prune again: the same outputs all the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_cases import slow_unless
from torch import Tensor, nn

from models.densenet import densenet_digits
from models.mobilenet import mobilenetv2_small
from models.resnet_cifar import resnet20
from models.vit import vit_tiny_digits
from spr_or.pruning.compaction.api import load_compact, save_compact
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.export import export_onnx, export_program
from spr_or.pruning.pruner import Pruner

DIGIT, PHOTO = (1, 8, 8), (3, 32, 32)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "resnet20": (resnet20, PHOTO, "channels"),
    "mobilenetv2_small": (mobilenetv2_small, DIGIT, "channels"),
    "vit_tiny_digits": (vit_tiny_digits, DIGIT, ["heads", "neurons"]),
    "densenet_digits": (densenet_digits, DIGIT, "channels"),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose norms take their statistics from the few batches that they see."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # type: ignore[assignment]
    return model


def epoch(model: nn.Module, images: tuple[int, ...], optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for seed in range(2):
        x = torch.randn(16, *images, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 10).backward()
        optimizer.step()


def pruned(model: nn.Module, images: tuple[int, ...], entities: Any) -> nn.Module:
    """The compact network after two epochs on random images, 30 % smaller."""
    example = torch.zeros(2, *images)
    pruner = Pruner(model, example, {"params": 0.3}, 2, entities=entities, lr=0.01)
    before = count_parameters(model)
    for _ in range(2):
        epoch(model, images, pruner.optimizer)
        pruner.epoch_end()
    small = pruner.compact()
    assert count_parameters(small) == pytest.approx(0.7 * before, rel=0.05)
    assert sum(row["total"] - row["kept"] for row in pruner.report()["groups"]) > 0
    return small


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(x)
    return found


def agree(one: Tensor, other: Tensor) -> None:
    scale = float(other.abs().max())
    assert float(other.std(0).max()) > 1e-4 * scale, "the outputs do not depend on the input"
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


def selected(first: Any, second: Any, name: str) -> Tensor:
    """The numbers of the parameter in ``first`` that ``second.meta`` names by their old places."""
    rows = first.get_parameter(name)
    for dim, wanted in enumerate(second.meta["kept"][name]):
        here = first.meta["kept"][name][dim]
        # Columns of a convolution in groups are counted over its whole input, not over a group's.
        grouped = (
            dim == 1 and first.get_submodule(name.rpartition(".")[0]).__dict__.get("groups", 1) > 1
        )
        if wanted is not None and not grouped:
            places = wanted if here is None else [here.index(i) for i in wanted]
            rows = rows.index_select(dim, torch.tensor(places))
    return rows


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "mobilenetv2_small", NETWORKS))
def test_two_rounds_of_pruning_with_files_between(name: str, tmp_path: Path) -> None:
    build, images, entities = NETWORKS[name]
    model = built(build)
    small = pruned(model, images, entities)
    x = torch.randn(4, *images)
    expected = outputs(model, x)
    agree(outputs(small, x), expected)

    save_compact(tmp_path / "one.safetensors", small, f"{build.__module__}:{name}")
    first: Any = load_compact(tmp_path / "one.safetensors")
    agree(outputs(first, x), expected)
    export_program(first, x, tmp_path / "one.pt2")
    agree(torch.export.load(tmp_path / "one.pt2").module()(x).detach(), expected)

    epoch(first, images, torch.optim.SGD(first.parameters(), lr=0.01))
    assert not torch.allclose(outputs(first, x), expected, rtol=1e-3)
    second: Any = pruned(first, images, entities)
    agree(outputs(second, x), outputs(first, x))
    weights = [n for n, p in second.named_parameters() if p.dim() > 1 and n in second.meta["kept"]]
    assert len(weights) > 5
    for weight in weights:
        torch.testing.assert_close(second.get_parameter(weight), selected(first, second, weight))
    save_compact(tmp_path / "two.safetensors", second, f"{build.__module__}:{name}")
    agree(outputs(load_compact(tmp_path / "two.safetensors"), x), outputs(first, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_the_same(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    build, images, entities = NETWORKS[name]
    small = pruned(built(build), images, entities)
    export_onnx(small, torch.zeros(1, *images), tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    for batch in (1, 5):
        x = torch.randn(batch, *images)
        (y,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), outputs(small, x), rtol=1e-3, atol=1e-4)
