"""Swaps of entities within layers: the model of the loss, and what the search returns."""

from typing import Any

import pytest
import torch
from gated_networks import CASES, EXAMPLE, images, network, random_masks
from torch import Tensor

from models.toy import digits_resnet
from spr_or.pruning.entity_gates import EntityGates
from spr_or.pruning.swaps import _best_swaps, improve_by_swaps


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
