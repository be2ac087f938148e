"""The ImageNet recipe: torchvision's weights load, the schedule is the paper's, the path runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encoded, picture, write_split
from torch import Tensor

from models.resnet import resnet18
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import RecipeError, load_recipe, parse_recipe
from spr_or.training.report import summary as report
from spr_or.training.runner import run_recipe
from spr_or.training.schedule import learning_rate
from spr_or.training.setup import load_weights

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes"


def torchvisions_shapes(classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Names and shapes in torchvision's resnet18 file, from the architecture and its naming."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)

    norm("bn1", 64)
    for layer, channels in ((1, 64), (2, 128), (3, 256), (4, 512)):
        before = channels if layer == 1 else channels // 2
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            width = before if block == 0 else channels
            shapes[f"{name}.conv1.weight"] = (channels, width, 3, 3)
            norm(f"{name}.bn1", channels)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{name}.bn2", channels)
            if block == 0 and layer > 1:
                shapes[f"{name}.downsample.0.weight"] = (channels, before, 1, 1)
                norm(f"{name}.downsample.1", channels)
    return shapes | {"fc.weight": (classes, 512), "fc.bias": (classes,)}


def torchvisions_weights(counters: bool) -> dict[str, Tensor]:
    """Random tensors under those names; newer files also count BatchNorm's batches."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(shape, generator=generator) * 0.1 + 0.01
        for name, shape in torchvisions_shapes().items()
    }
    if counters:
        norms = [name.removesuffix(".running_mean") for name in state if "running_mean" in name]
        state |= {f"{name}.num_batches_tracked": torch.tensor(5) for name in norms}
    return state


@pytest.mark.parametrize("counters", [False, True])
def test_torchvisions_file_loads_every_tensor(counters: bool, tmp_path: Path) -> None:
    state = torchvisions_weights(counters)
    trained = [name for name in state if not name.rpartition(".")[2].startswith(("run", "num"))]
    assert sum(state[name].numel() for name in trained) == 11_689_512
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(state, path)
    model = resnet18()
    load_weights(model, path)
    found = model.state_dict()
    assert {name for name in found if "num_batches" not in name} == set(torchvisions_shapes())
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    del state["layer3.0.downsample.0.weight"]
    torch.save(state, path)
    with pytest.raises(
        RecipeError, match=r"(?s)f37072fd\.pth cannot be loaded.*layer3\.0\.downsample"
    ):
        load_weights(model, path)


def test_the_recipe_is_the_papers_protocol() -> None:
    recipe = load_recipe(RECIPES / "imagenet_resnet18.toml")
    assert (recipe.dense.epochs, recipe.spr.epochs, recipe.finetune.epochs) == (0, 150, 50)
    assert (recipe.data.batch_size, recipe.train.momentum) == (256, 0.9)
    rates = [learning_rate(recipe.spr, epoch, 200) for epoch in range(200)]
    assert rates == pytest.approx([0.1 * 0.1 ** (epoch // 35) for epoch in range(200)])


@pytest.mark.slow
def test_the_path_runs_from_a_weight_file_over_streamed_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ImageNet recipe with one epoch of everything, on 24 pictures in two shards."""
    monkeypatch.setattr(report, "_draw", lambda *arguments: [])
    folder = tmp_path / "set"
    images = [encoded(picture(i, (50 + i, 70 - i))) for i in range(24)]
    labels = [i % 3 for i in range(24)]
    write_split(folder / "train-00000-of-00002.parquet", images[:12], labels[:12])
    write_split(folder / "train-00001-of-00002.parquet", images[12:], labels[12:])
    write_split(folder / "validation-00000-of-00001.parquet", images[:10], labels[:10])
    torch.save(torchvisions_weights(True), tmp_path / "weights.pth")

    values: dict[str, Any] = load_recipe(RECIPES / "imagenet_resnet18.toml").model_dump()
    values["data"] |= {"source": str(folder), "size": 32, "workers": 1, "batch_size": 8}
    values["dense"]["weights"] = tmp_path / "weights.pth"
    values["spr"] |= {"epochs": 1, "lr": 0.01}
    values["finetune"]["epochs"] = 1
    values["speed"] |= {"device": "cpu", "threads": 1, "amp": "off"}
    summary = run_recipe(parse_recipe(values), tmp_path / "run", judge=False)
    assert (summary["train_images"], summary["eval_images"]) == (24, 10)
    assert summary["parameters"] == 11_689_512
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["phase"] for record in records] == ["spr", "finetune"]
    assert all(0 < record["data_wait_share"] < 1 for record in records)
    assert 0 < summary["data_wait_pct"] < 100
