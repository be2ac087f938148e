"""One operator of the table behind a layer of eight features: what leaves, and what has to stay."""

import copy

import pytest
import torch
from first_attempt import compact_at_once
from torch import Tensor, nn

from spr_or.pruning.compaction.layers import Fill
from spr_or.pruning.masks import apply_masks_

PLACES = torch.tensor([6, 1, 1, 3])
KEEP = torch.tensor([False, True, False, True, False, False, True, True])


class Around(nn.Module):
    """Linear layers around a function of (B, 5, 8)."""

    def __init__(self, function, width):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.function = function
        self.head = nn.Linear(width, 3)
        self.register_buffer("places", PLACES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.a(x), self.b(x), self.places))


def compacted(function, width, masks):
    torch.manual_seed(0)
    model = Around(function, width).double().eval()
    small = compact_at_once(model, masks, torch.zeros(2, 5, 6, dtype=torch.float64))
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        assert (masked(x) - small(x)).abs().max() < 1e-12
    return small


# Functions of two tensors of eight features and four places; the width of their result.
FEATURES_LEAVE = {
    "index_select": (lambda a, b, i: a.index_select(-1, i), 4),
    "index": (lambda a, b, i: a[:, :, i], 4),
    "index with negative places": (lambda a, b, i: a[:, :, i - 8], 4),
    "index_add": (lambda a, b, i: a.index_add(2, i, b[..., :4], alpha=0.5), 8),
    "index_add to zeros": (lambda a, b, i: a.new_zeros(a.shape).index_add(2, i, a[..., 4:]), 8),
    "index_copy": (lambda a, b, i: a.index_copy(2, i[[0, 1, 3]], a[..., :3]), 8),
    "masked_fill": (lambda a, b, i: a.masked_fill(a > 0, 0.3), 8),
    "addcmul": (lambda a, b, i: torch.addcmul(a, a, a, value=0.3), 8),
    "lerp": (lambda a, b, i: torch.lerp(a, a.tanh(), 0.4), 8),
    "einsum with dots": (lambda a, b, i: torch.einsum("...tc,...sc->...ts", a, a), 5),
    "triu over positions": (lambda a, b, i: a.mT.unsqueeze(-1).triu().squeeze(-1).mT, 8),
    "fft over positions": (lambda a, b, i: torch.fft.fft(a, dim=1).abs(), 8),
    "gather over positions": (lambda a, b, i: a.gather(1, (b > 0).long()), 8),
    "zeros_like": (lambda a, b, i: a + torch.zeros_like(b), 8),
}

FEATURES_ARE_MIXED = {
    "slice_scatter": (lambda a, b, i: torch.slice_scatter(a, a[..., 4:] + 1, -1, 0, 4), 8),
    "repeat_interleave": (lambda a, b, i: a.repeat_interleave(2, -1), 16),
    "sort": (lambda a, b, i: a.sort(-1)[0], 8),
    "topk": (lambda a, b, i: a.topk(3, -1)[0], 3),
    "max": (lambda a, b, i: a.max(-1, keepdim=True)[0], 1),
    "scatter": (lambda a, b, i: a.scatter(2, (b > 0).long(), b), 8),
    "fft": (lambda a, b, i: torch.fft.rfft(a).abs(), 5),
    "tril": (lambda a, b, i: a.tril(), 8),
    "reflection": (lambda a, b, i: nn.functional.pad(a, (2, 1), mode="reflect"), 11),
    "index with two vectors": (lambda a, b, i: a[:, (i % 5)[:, None], i].flatten(1)[:, None], 16),
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES_LEAVE)
def test_features_leave_through(name):
    function, width = FEATURES_LEAVE[name]
    small = compacted(function, width, {"a": KEEP})
    assert small.get_submodule("a").out_features <= 4
    assert not any(isinstance(module, Fill) for module in small.modules())


@pytest.mark.parametrize("name", FEATURES_ARE_MIXED)
def test_features_are_put_back_before(name):
    function, width = FEATURES_ARE_MIXED[name]
    small = compacted(function, width, {"a": KEEP, "b": ~KEEP})
    assert small.get_submodule("a").out_features <= 4


@pytest.mark.parametrize("kept", [0, 3])
def test_recurrent_layers_stay_whole(kept):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.rnn = nn.Linear(6, 8), nn.LSTM(8, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(self.a(x))[0])

    model, masks = Net().double().eval(), {"a": torch.arange(8) < kept}
    small = compact_at_once(model, masks, torch.zeros(2, 5, 6, dtype=torch.float64))
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    assert torch.allclose(masked(x), small(x), atol=1e-12)
    assert sum(p.numel() for n, p in small.named_parameters() if n.startswith("rnn")) == 4 * 4 * (
        8 + 4 + 2
    )
