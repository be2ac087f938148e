"""Entities written in place, whether they are slices of layers, groups or positions."""

import pytest
import torch
from small_task import SIDE, small_net
from torch import nn

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import (
    add_to_gradients_,
    entity_norms,
    gradient_rows,
    scale_,
    write_,
)
from spr_or.methods.common.with_norms import with_norms
from spr_or.pruning.layer_entities import LayerEntities, layer_entities

KINDS = ("filters", "input_channels", "channels", "positions", "with norms")


def layers_of(net: nn.Module, kind: str) -> tuple[LayerEntities, ...]:
    if kind == "positions":
        return layer_entities(net, [[0, 1, 2], [5, 60, 100, 101], [70]])
    example = torch.zeros(2, 1, SIDE, SIDE)
    if kind == "with norms":
        return with_norms(net, layer_entities(net, "filters"))
    return layer_entities(net, kind, example=example)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_scales_the_rows_and_nothing_else(kind: str) -> None:
    net = small_net()
    layers = layers_of(net, kind)
    before = {name: rows.clone() for name, rows in entity_rows(layers).items()}
    total = sum(float(p.detach().sum()) for p in net.parameters())
    factors = {layer.name: torch.linspace(0, 2, layer.count) for layer in layers}
    for layer in layers:
        scale_(layer, factors[layer.name])
    moved = 0.0
    for name, rows in entity_rows(layers).items():
        expected = before[name] * factors[name].unsqueeze(1)
        torch.testing.assert_close(rows, expected)
        moved += float((expected - before[name]).sum())
    after = sum(float(p.detach().sum()) for p in net.parameters())
    assert after - total == pytest.approx(moved, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: str) -> None:
    net = small_net()
    layers = layers_of(net, kind)
    for layer in layers:
        old = entity_rows([layer])[layer.name].clone()
        write_(layer, old + 1)
        new = entity_rows([layer])[layer.name]
        if kind != "positions":  # its rows are padded with zeros, which are not written
            torch.testing.assert_close(new, old + 1)
        else:
            assert new.sum() == pytest.approx(float(old.sum()) + int(layer.sizes.sum()), abs=1e-5)
        torch.testing.assert_close(entity_norms(layer), new.norm(dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_read_and_added_to(kind: str) -> None:
    net = small_net()
    layers = layers_of(net, kind)
    net(torch.randn(4, 1, SIDE, SIDE)).square().sum().backward()
    weights = {name: rows.clone() for name, rows in entity_rows(layers).items()}
    for layer in layers:
        before = gradient_rows(layer)
        assert before.any()
        add_to_gradients_(layer, weights[layer.name])
        torch.testing.assert_close(gradient_rows(layer), before + weights[layer.name])
        torch.testing.assert_close(entity_rows([layer])[layer.name], weights[layer.name])


def test_parameters_without_gradients_are_left_out() -> None:
    net = small_net()
    for layer in layers_of(net, "channels"):
        assert not gradient_rows(layer).any()
        add_to_gradients_(layer, torch.ones_like(gradient_rows(layer)))
    assert all(p.grad is None for p in net.parameters())


def test_the_norm_behind_a_filter_joins_it_once() -> None:
    net = small_net()
    twice = with_norms(net, with_norms(net, layer_entities(net)))
    assert [[id(p) for p in layer.parameters] for layer in twice] == [
        [id(p) for p in (conv.weight, norm.weight, norm.bias)]
        for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2), (net.conv3, net.bn3))
    ]
    (first, *_) = with_norms(net, layer_entities(net, "input_channels"))
    assert len(first.parameters) == 1
