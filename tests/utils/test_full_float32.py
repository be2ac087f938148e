"""Comparisons of networks in full float32, and what they leave behind."""

import pytest
import torch
from torch import Tensor, nn

from spr_or import compact
from spr_or.pruning.compaction.inputs import inputs_of
from spr_or.pruning.compaction.outputs import outputs_of
from spr_or.utils.full_float32 import full_float32

_PLACES = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)


def precisions() -> list[str]:
    return [str(place.fp32_precision) for place in _PLACES]


class Seen(nn.Module):
    """Writes down with which precision it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.found: list[list[str]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.found.append(precisions())
        return self.layer(x)


@pytest.mark.parametrize("set_before", [None, "tf32", "ieee"])
def test_inside_it_is_full_and_afterwards_as_before(set_before: str | None) -> None:
    untouched = precisions()
    try:
        if set_before is not None:
            for place in _PLACES:
                place.fp32_precision = set_before
        before = precisions()
        with pytest.raises(KeyError), full_float32():
            assert precisions() == ["ieee"] * 3
            raise KeyError
        assert precisions() == before
    finally:
        for place, precision in zip(_PLACES, untouched, strict=True):
            place.fp32_precision = precision
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # the older name can be read again


def test_networks_are_compared_with_it() -> None:
    net = Seen()
    outputs_of(net, inputs_of(torch.zeros(1, 2)))
    assert net.found == [["ieee"] * 3]


def test_a_compact_network_is_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    forward = nn.Linear.forward

    def watched(self: nn.Linear, x: Tensor) -> Tensor:
        seen.append(precisions())
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    compact(net, {"0": torch.tensor([True, False, True, True, True])}, torch.zeros(1, 4))
    assert ["ieee"] * 3 in seen
