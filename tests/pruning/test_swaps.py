"""Swaps of entities within layers: the gates, the model of the loss, and what the search returns."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.budget import Masks
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.entity_gates import EntityGates, gated_channels
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.swaps import _best_swaps, improve_by_swaps

EXAMPLE = torch.zeros(2, 1, 8, 8)
CASES: list[tuple[Any, Any]] = [
    (mlp, "neurons"), (convnet, ["filters", "neurons"]),
    (digits_resnet, "filters"), (digits_resnet, "channels"),
]  # fmt: skip


def network(make: Any, entities: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.1
    return model, chosen_entities(model, EXAMPLE, entities).of(model)


def images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(rows, 1, 8, 8, generator=generator)
    return pictures, torch.randint(10, (rows,), generator=generator)


def random_masks(layers: Any) -> Masks:
    generator = torch.Generator().manual_seed(1)
    return {n.name: torch.rand(n.count, generator=generator) < 0.6 for n in layers}


@pytest.mark.parametrize(("make", "entities"), CASES)
def test_gates_compute_what_masks_do(make: Any, entities: Any) -> None:
    model, layers = network(make, entities)
    masks = random_masks(layers)
    present = torch.cat([masks[layer.name] for layer in layers])
    batch = images(16, seed=0)
    gated = EntityGates(model, layers, EXAMPLE).loss(present, batch)
    apply_masks_(model, module_masks(model, layers, masks), EXAMPLE)
    with torch.no_grad():
        masked = float(F.cross_entropy(model.eval()(batch[0]), batch[1]))
    assert gated == pytest.approx(masked, rel=1e-5)


def test_slopes_are_those_of_the_loss_and_one_row_for_each_image() -> None:
    model, layers = network(digits_resnet, "channels")
    model.double()
    gates = EntityGates(model, layers, EXAMPLE.double())
    pictures, labels = images(6, seed=0)
    batch = pictures.double(), labels
    present = torch.cat([keep for keep in random_masks(layers).values()])
    opened = present.double().clamp(min=1e-3)
    slope, rows = gates.slopes(present, batch, seed=0)
    assert rows.shape == (6, len(present))
    for entity in (0, 20, 50, int((~present).nonzero()[0])):
        shift = torch.zeros(len(present), dtype=torch.float64)
        shift[entity] = 1e-5
        above, below = gates.loss(opened + shift, batch), gates.loss(opened - shift, batch)
        assert float(slope[entity]) == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-8)
    again = gates.slopes(present, (batch[0][:2], labels[:2]), seed=0)[0]
    assert not torch.allclose(again, slope)


def test_swaps_are_taken_in_the_order_of_a_quadratic_model() -> None:
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    slope = torch.tensor([4.0, 0, -3, 1, 2, -4, 3], dtype=torch.float64)
    present = torch.tensor([True, True, False, False, True, False, True])
    free = torch.ones(7, dtype=torch.bool)
    free[1] = False

    def model_of(moved: Tensor) -> float:
        delta = moved.double() - present.double()
        return float(slope @ delta + (S @ delta).square().sum() / len(S) / 2)

    def swap(places: Tensor, out: int, back: int) -> Tensor:
        moved = places.clone()
        moved[out], moved[back] = False, True
        return moved

    layers = [range(0, 4), range(4, 7)]
    now, used = present, [1]
    for out, back in _best_swaps(present, free, [4, 3], slope, S, limit=3):
        every = {
            (i, j): model_of(swap(now, i, j))
            for layer in layers for i in layer for j in layer
            if present[i] and not present[j] and i not in used and j not in used
        }  # fmt: skip
        assert min(every, key=every.__getitem__) == (out, back)
        assert every[out, back] < model_of(now)
        now, used = swap(now, out, back), [*used, out, back]
    assert len(used) > 1


@pytest.mark.parametrize(("make", "entities"), CASES)
def test_the_loss_falls_and_every_layer_keeps_its_number(make: Any, entities: Any) -> None:
    model, layers = network(make, entities)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = random_masks(layers)
    found = improve_by_swaps(model, layers, masks, images(64, 0), images(64, 1), EXAMPLE)
    assert found.swaps > 0 and found.loss_after < found.loss_before
    present = torch.cat([found.masks[layer.name] for layer in layers])
    gates = EntityGates(model, layers, EXAMPLE)
    assert gates.loss(present, images(64, 1)) == pytest.approx(found.loss_after)
    for name, keep in masks.items():
        assert int(found.masks[name].sum()) == int(keep.sum())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and model.training


def test_what_is_decided_stays_and_what_is_not_allowed_is_refused() -> None:
    model, layers = network(digits_resnet, "channels")
    masks = random_masks(layers)
    indicators = {name: torch.where(keep, 0.99, 0.01) for name, keep in masks.items()}
    arguments = model, layers, masks, images(32, 0), images(32, 1), EXAMPLE
    decided = improve_by_swaps(*arguments, indicators)
    refused = improve_by_swaps(*arguments, allowed=lambda masks: False)
    for found in (decided, refused):
        assert found.swaps == 0 and found.loss_after == found.loss_before
        assert all(torch.equal(found.masks[name], keep) for name, keep in masks.items())


def test_positions_have_no_gates() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    from spr_or.pruning.layer_entities import layer_entities

    layers = layer_entities(net, [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="given by positions: no swaps there"):
        gated_channels(net, layers, torch.zeros(1, 2))
