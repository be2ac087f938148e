"""A network on another device than the CPU becomes the same smaller network, and stays there."""

import hard_networks
import pytest
import torch
from masked_definition import built, call, difference, draw, inputs_of, maskable
from network_cases import Case
from pretended_gpu import DEVICE, pretended_gpu
from slow_cases import spread
from torch import nn
from torch.utils._pytree import tree_map_only

from spr_or import compact
from spr_or.pruning.compaction.api import make_plan
from spr_or.pruning.compaction.inputs import Example, like_model
from spr_or.pruning.compaction.size import Skeleton, sizes_left
from spr_or.pruning.compaction.trace import trace

# These make tensors on the CPU in their forward pass, so they run nowhere else; moving the last but
# one, and running the last, is beyond the pretended device.
_CPU_ONLY = {
    "attention by batched matrix products",
    "nn.TransformerDecoderLayer with a causal mask",
    "words, positions, and the embedding again as output",
    "coordinates as more channels",
    "weight norm as a hook",
    "recurrent layer beside a convolution",
}
CASES = spread(
    [case for case in hard_networks.CASES if case.name not in _CPU_ONLY], default=24, slow=1
)


def moved(example: Example) -> Example:
    return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), example)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_the_same_network_there(case: Case) -> None:
    masks = draw(maskable(built(case)))
    on_cpu = compact(built(case), masks, inputs_of(case, 2, torch.float64))
    inputs = inputs_of(case, 3, torch.float64)
    with torch.no_grad():
        expected = call(on_cpu, inputs)
    with pretended_gpu(), torch.no_grad():
        there = compact(built(case).to(DEVICE), masks, inputs_of(case, 2, torch.float64))
        found = tree_map_only(torch.Tensor, lambda t: t.cpu(), call(there, moved(inputs)))
        assert {p.device for p in there.parameters()} == {DEVICE}
    assert difference(expected, found) <= 1e-12
    assert [p.shape for p in there.parameters()] == [p.shape for p in on_cpu.parameters()]


def test_masks_on_either_device_are_counted_alike() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()
    example = torch.zeros(1, 3, 8, 8)
    masks = {"0": torch.arange(6) % 3 > 0}
    expected = Skeleton(net, example).left(masks)
    with pretended_gpu():
        skeleton = Skeleton(net.to(DEVICE), example)
        assert skeleton.left(masks) == expected
        assert skeleton.left({"0": masks["0"].to(DEVICE)}) == expected


def test_a_device_that_the_network_names_does_not_matter_for_what_is_worked_out() -> None:
    """`aten.zeros` with a device: the facts are on the CPU all the same."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros(len(x), 3, device=self.a.weight.device)
            return self.b(torch.cat([self.a(x), zeros], 1))

    net = Padded().eval()
    example = torch.randn(2, 4)
    graph = trace(net, example)
    expected = sizes_left(make_plan(graph, like_model(net, example)))
    named = {node: node.kwargs | {"device": torch.device("meta")} for node in graph.graph.nodes
             if "device" in node.kwargs}  # fmt: skip
    assert named
    for node, kwargs in named.items():
        node.kwargs = kwargs
    plan = make_plan(graph, like_model(net, example))
    assert {f.value.device.type for f in plan.facts.values() if f.is_tensor} == {"cpu"}
    assert sizes_left(plan) == expected
