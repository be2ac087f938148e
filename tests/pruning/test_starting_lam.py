"""Where lambda starts: at the lambda under which plain shrinking takes a tenth of the phase."""

import pytest
import torch

from models.toy import convnet, digits_resnet
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.starting_lam import starting_lam


@pytest.mark.parametrize("build", [convnet, digits_resnet])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [100, 400])
def test_half_of_the_entities_vanish_in_about_a_tenth_of_the_phase_without_a_loss(
    build: object, momentum: float, steps: int
) -> None:
    model = build()  # type: ignore[operator]
    spr = SPR(model, 0.0, 0.1, SPR.bounds_from(model))
    optimizer = ProxSGD(model, spr, lr=0.05, momentum=momentum)
    spr.lam = starting_lam(optimizer, steps)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    taken = 0
    while (
        sum(int((v.peak == 0).sum()) for v in spr.entity_values().values())
        < sum(layer.count for layer in spr.layers) / 2
    ):
        optimizer.step()
        taken += 1
        assert taken <= steps
    assert steps / 25 < taken < steps / 4


def test_what_is_zero_does_not_count_and_nothing_left_is_an_error() -> None:
    model = convnet()
    layer = {"4": "filters"}
    spr = SPR(model, 0.0, 0.1, SPR.bounds_from(model, layer), entities=layer)
    optimizer = ProxSGD(model, spr, lr=0.05)
    before = starting_lam(optimizer, 100)
    with torch.no_grad():
        for key in ("4.weight", "4.bias"):
            model.get_parameter(key)[:12] = 0
    assert before / 2 < starting_lam(optimizer, 100) < before * 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="no lambda makes half of the entities zero"):
        starting_lam(optimizer, 100)
    with pytest.raises(ValueError, match="alpha = 1 puts no price"):
        net = convnet()
        starting_lam(ProxSGD(net, SPR(net, 0.0, 1.0, 1.0), lr=0.05), 100)
