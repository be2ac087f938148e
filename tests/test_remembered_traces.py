"""A remembered graph is the one that a trace would have given."""

from typing import Any

import pytest
import torch
from remembered_traces import remembering, structure_of
from torch import Tensor, fx, nn

from models.toy import convnet, digits_resnet, mlp
from models.vit import vit_tiny_digits
from spr_or.pruning.compaction import trace as tracing
from spr_or.pruning.compaction.trace import like_model

IMAGES = torch.zeros(2, 1, 8, 8)


class Scaled(nn.Module):
    """A constant that is no buffer becomes part of the graph."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = torch.tensor([scale, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def really_traced() -> Any:
    """`trace._graph` as it is without what conftest does to it."""
    return getattr(tracing._graph, "__wrapped__", tracing._graph)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that were really traced; those like an earlier one are remembered."""
    names: list[str] = []
    traced = really_traced()

    def counted(model: nn.Module, *arguments: Any) -> fx.GraphModule:
        names.append(type(model).__name__)
        return traced(model, *arguments)

    monkeypatch.setattr(tracing, "_graph", remembering(counted))
    return names


def described(graph: fx.GraphModule) -> list[tuple[str, ...]]:
    return [
        (n.name, n.op, str(n.target), str(n.args), str(sorted(n.meta["variable"])),
         str(getattr(n.meta.get("val"), "shape", n.meta.get("val"))), str(n.meta.get("stack_trace")))
        for n in graph.graph.nodes
    ]  # fmt: skip


@pytest.mark.parametrize("make", [convnet, digits_resnet, mlp, vit_tiny_digits])
def test_the_graph_of_a_twin_is_that_of_a_trace_on_its_own_weights(make, traced, monkeypatch):
    one, two = make().eval(), make().eval()
    tracing.trace(one, IMAGES)
    before = len(traced)
    found = tracing.trace(two, IMAGES)
    assert len(traced) == before
    monkeypatch.setattr(tracing, "_graph", really_traced())
    fresh = tracing.trace(two, IMAGES)
    assert described(found) == described(fresh) and found.code == fresh.code
    for graph in (found, fresh):
        assert all(two.get_parameter(name) is p for name, p in graph.named_parameters())
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(found(images), two(images))


def test_another_structure_is_traced_anew(traced):
    two, more = torch.zeros(2, 3), torch.zeros(2, 5, 3)
    cases: list[tuple[nn.Module, Tensor, bool]] = [
        (nn.Linear(3, 2), two, True),
        (nn.Linear(3, 4), two, True),
        (nn.Linear(3, 2).double(), two, True),
        (nn.Linear(3, 2), more, True),
        (nn.Linear(3, 2), more, False),
        (Scaled(1), two, True),
        (Scaled(2), two, True),
    ]
    for case in cases:
        before = len(traced)
        tracing.trace(*case)
        assert len(traced) > before, case
    before = len(traced)
    model = Scaled(2)
    again = tracing.trace(model, two)
    assert len(traced) == before
    torch.testing.assert_close(again(two), model(two))


def test_tied_weights_and_modes_are_part_of_the_structure():
    def key(tied: bool, training: bool) -> Any:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).train(training)
        if tied:
            model[1].weight = model[0].weight
        return structure_of(model, like_model(model, torch.zeros(2, 3)), True)

    keys = [key(tied, training) for tied in (False, True) for training in (False, True)]
    assert len(set(keys)) == 4 and key(True, True) == keys[-1]


def test_what_cannot_be_described_is_traced_each_time(traced):
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_forward_hook(lambda *arguments: None)
    for _ in range(2):
        tracing.trace(model, torch.zeros(2, 3))
    assert len(traced) == 2
