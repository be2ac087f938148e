"""Which layers have filters and neurons: every convolution, subclasses, transposed ones."""

import pytest
import torch
from torch import nn

from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR


class StandardizedConv(nn.Conv2d):
    """A subclass, as timm has several."""


class QuantizedLinear(nn.Linear):
    pass


def test_filters_and_neurons_of_a_network_with_one_linear_layer_are_its_filters():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert [e.name for e in layer_entities(net, ["filters", "neurons"])] == ["0"]
    with pytest.raises(ValueError, match="entities='neurons': use 'filters'"):
        layer_entities(net, "neurons")
    with pytest.raises(ValueError, match="no layer for entities=.'neurons'.: use 'filters'"):
        layer_entities(net, ["neurons"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_every_dimension(dims):
    conv, transposed = (getattr(nn, f"{name}{dims}d") for name in ("Conv", "ConvTranspose"))
    net = nn.Sequential(conv(3, 5, 2), transposed(5, 4, 2), conv(4, 4, 2, groups=2))
    filters = layer_entities(net)
    assert [(e.name, e.dim, e.count) for e in filters] == [("0", 0, 5), ("1", 1, 4), ("2", 0, 4)]
    assert [e.sizes[0].item() for e in filters] == [
        3 * 2**dims + 1,
        5 * 2**dims + 1,
        2 * 2**dims + 1,
    ]
    inputs = layer_entities(net[:2], "input_channels")
    assert [(e.name, e.dim, e.count) for e in inputs] == [("0", 1, 3), ("1", 0, 5)]


def test_subclasses_are_what_they_inherit_from():
    net = nn.Sequential(StandardizedConv(1, 4, 3), QuantizedLinear(4, 3), nn.Linear(3, 2))
    assert [e.name for e in layer_entities(net, ["filters", "neurons"])] == ["0", "1"]


def test_a_transposed_convolution_dies_with_its_output_channels():
    net = nn.Sequential(nn.ConvTranspose2d(3, 2, 2)).double()
    with torch.no_grad():
        net[0].weight[:, 1] *= 1e-3
        net[0].bias[1] = 0
    optimizer = ProxSGD(net, SPR(net, 0.1, 0.3, SPR.bounds_from(net)), lr=1.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    channels = net(torch.randn(2, 3, 4, 4, dtype=torch.float64)).abs().amax((0, 2, 3))
    assert channels[0] > 0 and channels[1] == 0
    (mask,) = (value.norm > 0 for value in optimizer.spr.entity_values().values())
    assert mask.tolist() == [True, False]


def test_grouped_transposed_convolutions():
    depthwise = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=4))
    (entities,) = layer_entities(depthwise)
    assert (entities.dim, entities.count) == (0, 4)
    with pytest.raises(ValueError, match=r"leave it out by ignored=\['0'\]"):
        layer_entities(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2)))
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Conv2d(4, 3, 1))
    assert [e.name for e in layer_entities(net, ignored=["0"])] == ["1"]


@pytest.mark.parametrize("kind", ["channels", "heads", "blocks"])
def test_entities_of_the_graph_need_an_input(kind):
    with pytest.raises(ValueError, match=f"entities='{kind}' are found on the network's graph"):
        layer_entities(nn.Sequential(nn.Conv2d(1, 4, 3)), kind)


def test_unknown_kinds_name_all():
    with pytest.raises(
        ValueError, match="channels, heads, blocks, not 'head'; did you mean 'heads'"
    ):
        layer_entities(nn.Sequential(nn.Conv2d(1, 4, 3)), ["filters", "head"])
