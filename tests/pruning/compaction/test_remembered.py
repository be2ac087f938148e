"""A remembered graph is the one that a trace would have given, and never that of another network."""

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.toy import convnet, digits_resnet, mlp
from models.vit import vit_tiny_digits
from spr_or.pruning.compaction import remembered
from spr_or.pruning.compaction import trace as tracing
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.compaction.inputs import like_model
from spr_or.pruning.compaction.remembered import present_memory, remembering, structure_of
from spr_or.pruning.compaction.trace import trace

IMAGES = torch.zeros(2, 1, 8, 8)
ROWS = torch.zeros(2, 3)
SIGN = 1.0


class Scaled(nn.Module):
    """A constant that is no buffer becomes part of the graph."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = torch.tensor([scale, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Helped(nn.Module):
    """A forward pass that calls a method and reads a global variable."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def act(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return SIGN * self.act(self.layer(x))


def tanh(self: Helped, x: Tensor) -> Tensor:
    return F.tanh(x)


def forward(self: Helped, x: Tensor) -> Tensor:
    return F.tanh(self.layer(x))


first = forward


def forward(self: Helped, x: Tensor) -> Tensor:  # type: ignore[no-redef]  # noqa: F811
    return F.gelu(self.layer(x))


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


@contextlib.contextmanager
def forgetting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As outside `remembering`; the tests are inside of one."""
    token = remembered._memory.set(None)
    yield
    remembered._memory.reset(token)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the networks that were really traced, by a memory that is empty at first."""
    names: list[str] = []
    really = tracing._traced

    def counted(model: nn.Module, *arguments: Any) -> fx.GraphModule:
        names.append(type(model).__name__)
        return really(model, *arguments)

    monkeypatch.setattr(tracing, "_traced", counted)
    with forgetting(monkeypatch), remembering():
        yield names


def described(graph: fx.GraphModule) -> list[tuple[str, ...]]:
    return [
        (n.name, n.op, str(n.target), str(n.args), str(sorted(n.meta["variable"])),
         str(getattr(n.meta.get("val"), "shape", n.meta.get("val"))), str(n.meta.get("stack_trace")))
        for n in graph.graph.nodes
    ]  # fmt: skip


@pytest.mark.parametrize("make", [convnet, digits_resnet, mlp, vit_tiny_digits])
def test_the_graph_of_a_twin_is_that_of_a_trace_on_its_own_weights(make, traced, monkeypatch):
    one, two = make().eval(), make().eval()
    trace(one, IMAGES)
    found = trace(two, IMAGES)
    assert len(traced) == 1
    with forgetting(monkeypatch):
        fresh = trace(two, IMAGES)
    assert described(found) == described(fresh) and found.code == fresh.code
    assert found.meta == fresh.meta and found.meta["saved"] == set(two.state_dict())
    for graph in (found, fresh):
        assert all(two.get_parameter(name) is p for name, p in graph.named_parameters())
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(found(images), two(images))


def test_what_is_done_to_a_graph_stays_with_it(traced):
    model = mlp().eval()
    graph = trace(model, IMAGES)
    nodes = list(graph.graph.nodes)
    nodes[1].meta.clear()
    graph.graph.erase_node(nodes[-1])
    again = trace(model, IMAGES)
    assert len(again.graph.nodes) == len(nodes) and traced == ["Sequential"]
    assert [node.meta for node in list(again.graph.nodes)[1:2]] != [{}]


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
        trace(*case)
        assert len(traced) == before + 1, case
    model = Scaled(2)
    again = trace(model, two)
    assert len(traced) == len(cases)
    torch.testing.assert_close(again(two), model(two))


def test_tied_weights_and_modes_are_part_of_the_structure():
    def key(tied: bool, training: bool) -> Any:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).train(training)
        if tied:
            model[1].weight = model[0].weight
        return structure_of(model, like_model(model, ROWS), True)

    keys = [key(tied, training) for tied in (False, True) for training in (False, True)]
    assert len(set(keys)) == 4 and key(True, True) == keys[-1]


def test_what_cannot_be_described_is_traced_each_time(traced):
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_forward_hook(lambda *arguments: None)
    for _ in range(2):
        trace(model, ROWS)
    assert len(traced) == 2


def patched(how: str, model: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what the network computes, and none of its parameters."""
    if how == "method of its class":
        monkeypatch.setattr(Helped, "act", tanh)
    elif how == "forward of its class":
        monkeypatch.setattr(Helped, "forward", first)
    elif how == "a layer's class":
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, -self.weight))
    elif how == "own forward":
        model.forward = MethodType(first, model)  # type: ignore[method-assign]
    elif how == "other forward of the same name":
        model.forward = MethodType(forward, model)  # type: ignore[method-assign]
    elif how == "hook":
        model.layer.register_forward_hook(double)
    elif how == "global variable":
        monkeypatch.setitem(globals(), "SIGN", -1.0)
    elif how == "function of torch":
        monkeypatch.setattr(F, "relu", F.tanh)
    else:
        monkeypatch.setattr(model, how, nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


@pytest.mark.parametrize(
    "how",
    ["method of its class", "forward of its class", "a layer's class", "own forward", "hook",
     "other forward of the same name", "global variable", "function of torch", "layer"],
)  # fmt: skip
def test_no_graph_of_what_a_patched_network_was_before(how, traced, monkeypatch):
    model = Helped().eval()
    if how == "other forward of the same name":
        patched("own forward", model, monkeypatch)
    trace(model, ROWS)
    patched(how, model, monkeypatch)
    rows = torch.randn(4, 3)
    torch.testing.assert_close(trace(model, ROWS)(rows), model(rows))
    assert len(traced) == 2


def test_a_smaller_network_does_not_get_the_graph_of_the_whole_one(traced):
    model = mlp().eval()
    small = compact(model, {"1": torch.arange(64) < 5}, IMAGES)
    graph = trace(small, IMAGES)
    assert graph.get_parameter("1.weight").shape == (5, 64)
    smaller = compact(small, {"1": torch.arange(5) < 3}, IMAGES)
    assert smaller.get_parameter("1.weight").shape == (3, 64)


def test_weights_of_a_remembered_network_are_not_kept(traced):
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    trace(model, ROWS)
    memory = present_memory()
    assert memory is not None
    (kept,) = memory._graphs.values()
    assert all(tensor.numel() == 0 for tensor in kept.state_dict().values())


def test_nothing_is_remembered_outside(traced, monkeypatch):
    with forgetting(monkeypatch):
        for _ in range(2):
            trace(nn.Linear(3, 2), ROWS)
        with remembering():
            trace(nn.Linear(3, 2), ROWS)
            with remembering():
                trace(nn.Linear(3, 2), ROWS)
        assert present_memory() is None
        with remembering():
            trace(nn.Linear(3, 2), ROWS)
    assert len(traced) == 4


def test_the_oldest_graphs_are_forgotten(traced, monkeypatch):
    monkeypatch.setattr(remembered, "_MOST", 2)
    for width in (1, 2, 1, 3, 1, 2):
        trace(nn.Linear(3, width), ROWS)
    assert len(traced) == 4  # 1, 2 and 3, and 2 again
