"""Queries, keys and values out of one linear layer: each keeps positions of its own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spr_or.pruning.compaction.api import compact
from spr_or.pruning.compaction.layers import Fill
from spr_or.pruning.masks import apply_masks_

HEADS, WIDTH = 3, 8


class FusedAttention(nn.Module):
    """One linear layer for queries, keys and values, taken apart as vision transformers do."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.qkv = nn.Linear(12, 3 * HEADS * WIDTH)
        self.proj = nn.Linear(HEADS * WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, 12)."""
        batch, length, _ = x.shape
        whole = self.qkv(x)
        if self.way == "unbind":
            q, k, v = whole.reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.way == "index":
            parts = whole.view(batch, length, 3, HEADS, WIDTH).permute(0, 2, 3, 1, 4)
            q, k, v = parts[:, 0], parts[:, -2], parts[:, 2]
        else:
            parts = whole.view(len(x), length, 3, HEADS, WIDTH)
            q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def _masks() -> dict[str, Tensor]:
    """Half of the width in all heads, one half for queries and keys and another for values."""
    first = torch.arange(WIDTH) < WIDTH // 2
    scores = torch.cat([first] * 2 * HEADS)
    return {"qkv": torch.cat([scores, *[~first] * HEADS])}


@pytest.mark.parametrize("way", ["unbind", "index", "no permutation"])
def test_queries_and_values_keep_other_positions_without_constants(way: str) -> None:
    model = FusedAttention(way).double().eval()
    masks, x = _masks(), torch.randn(2, 5, 12, dtype=torch.float64)
    small = compact(model, masks, x)
    apply_masks_(model, masks)
    torch.testing.assert_close(small(x[:1]), model(x[:1]), rtol=1e-9, atol=1e-9)
    assert small.get_submodule("qkv").weight.shape[0] == 3 * HEADS * WIDTH // 2
    assert small.get_submodule("proj").weight.shape[1] == HEADS * WIDTH // 2
    assert not any(isinstance(m, Fill) for m in small.modules())


def test_a_view_that_regroups_numbers_is_left_as_it_is() -> None:
    """Rows of a square that is viewed as another square are no piece of one dimension."""

    class Regrouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).view(len(x), 9, 4)[:, 1])

    model, x = Regrouped().double().eval(), torch.randn(2, 6, 6, dtype=torch.float64)
    masks = {"first": torch.tensor([True, False, True, True, False, True])}
    small = compact(model, masks, x)
    apply_masks_(model, masks)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
