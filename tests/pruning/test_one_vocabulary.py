"""Entities, importances and penalty mean the same for a small exact problem and for a network."""

import warnings

import pytest
import torch
from torch import nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.formulations import entities, projected
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

KINDS = {"neurons": entities.neurons, "filters": entities.filters}


def relu_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False), nn.ReLU(),
                         nn.Linear(2, 1)).double()  # fmt: skip


def conv_net() -> nn.Sequential:
    torch.manual_seed(6)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).double()


@pytest.mark.parametrize("u", ["share", "uniform", 0.7])
@pytest.mark.parametrize("variant", projected.VARIANTS)
@pytest.mark.parametrize(("make", "kind"), [(relu_net, "neurons"), (conv_net, "filters")])
def test_the_exact_problem_and_the_regulariser_have_one_penalty(make, kind, variant, u) -> None:
    net = make()
    shape = (5, 3) if kind == "neurons" else (5, 1, 3, 3)
    X, y = torch.randn(shape, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    lam, alpha, M = 0.3, 0.2, 1.7
    problem = SparseTrainingProblem.network(
        net, X, y, loss="squared", entities=KINDS[kind](net), lam=lam, alpha=alpha, M=M, u=u
    )
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    penalty = problem.projected_objective(theta, variant) - problem.loss_value(theta)
    spr = SPR(net, lam, alpha, M, entities=kind, variant=variant, u=u)
    assert spr().item() == pytest.approx(penalty.item(), rel=1e-12)
    assert problem.u.tolist() == pytest.approx(spr.importance.tolist(), rel=1e-15)


def test_share_is_the_default_on_both_sides() -> None:
    net = relu_net()
    X, y = torch.zeros(2, 3), torch.zeros(2)
    problem = SparseTrainingProblem.network(
        net, X, y, loss="squared", entities=entities.neurons(net), lam=1.0, alpha=0.5, M=1.0
    )
    assert problem.u.tolist() == pytest.approx(
        SPR(net, 1.0, 0.5, 1.0, "neurons").importance.tolist()
    )
    assert problem.u.tolist() == pytest.approx([4 / 24] * 4 + [4 / 24] * 2)


@pytest.mark.parametrize(
    ("model", "kind"),
    [(convnet(), "filters"), (convnet(), "neurons"), (mlp(), "neurons"),     (digits_resnet(), "filters")],
)  # fmt: skip
def test_an_entity_holds_what_the_exact_side_puts_into_it(model, kind) -> None:
    found = layer_entities(model, kind)
    sizes = torch.cat([layer.sizes for layer in found]).tolist()
    assert sizes == [len(group) for group in KINDS[kind](model)]
    for layer in found:
        module = model.get_submodule(layer.name)
        assert layer.parameters == tuple(module.parameters())
        assert len(layer.parameters) == (1 if module.bias is None else 2)


def test_input_channels_hold_no_bias() -> None:
    assert all(len(layer.parameters) == 1 for layer in layer_entities(convnet(), "input_channels"))


def test_a_bias_that_is_no_parameter_is_named() -> None:
    layer = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    with pytest.raises(ValueError, match="'0' has no plain parameter 'bias'"):
        SPR(nn.Sequential(layer, nn.Linear(2, 1)), 1.0, 0.5, 1.0, "neurons")


def test_a_proximal_step_empties_weights_and_bias_together() -> None:
    net = conv_net()
    optimizer = ProxSGD(net, SPR(net, 20.0, 0.5, 1.0, u="uniform"), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert not net[0].weight.any() and not net[0].bias.any()
    assert net[3].weight.any()


def test_gradients_reach_the_biases_beside_a_layer_without() -> None:
    """In place for the layer without a bias, through zeros for the others: as autograd has it."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
    ).double()
    spr = SPR(net, 0.7, 0.3, 0.2)
    spr().backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert {"0.weight", "2.bias", "3.bias"} <= wanted.keys()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    spr.add_gradient_()
    for name, parameter in net.named_parameters():
        added = wanted.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, 1 + added, rtol=1e-12, atol=1e-12)


def test_the_old_name_of_u_still_works_and_says_so() -> None:
    net = convnet()
    with pytest.warns(DeprecationWarning, match="called u now"):
        old = SPR(net, 1.0, 0.5, 1.0, weights="parameters")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = SPR(net, 1.0, 0.5, 1.0, u="share")
    assert torch.equal(old.importance, new.importance)
    with pytest.warns(DeprecationWarning):
        given = SPR(net, 1.0, 0.5, 1.0, weights={"0": 2.0, "4": 3.0})
    assert given.importance.unique().tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="u must be 'uniform', 'share', or positive numbers"):
        SPR(net, 1.0, 0.5, 1.0, u="parameters")
