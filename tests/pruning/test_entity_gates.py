"""Gates: they compute what masks do, and their slopes are those of the loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_networks import CASES, EXAMPLE, images, network, random_masks
from torch import nn

from models.toy import digits_resnet
from spr_or.pruning.entity_gates import EntityGates, gated_channels
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks


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


def test_positions_have_no_gates() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    layers = layer_entities(net, [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="given by positions: no swaps there"):
        gated_channels(net, layers, torch.zeros(1, 2))
