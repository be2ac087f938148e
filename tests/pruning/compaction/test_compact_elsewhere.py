"""Compact networks where their originals run: under autocast, in another layout, in vmap."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or import compact
from spr_or.pruning.compaction.layers import IndexedAdd
from spr_or.pruning.masks import apply_masks_


def _keep(*places: int, of: int = 6) -> Tensor:
    return torch.tensor([place in places for place in range(of)])


class _TwoDtypes(nn.Module):
    """Under autocast the image is float32, a convolution's output bfloat16, and upsampling float32 again."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, 1, 1)
        self.b = nn.Conv2d(4, 6, 3, 2, 1)
        self.c = nn.Conv2d(4, 6, 3, 1, 1)
        self.d = nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x + self.a(x))
        large = F.interpolate(self.b(x), size=x.shape[-2:], mode="bilinear")
        return self.d(F.relu(large + self.c(x)))


class _Views(nn.Module):
    """A stream of which each branch has a part; `contiguous` before a view, as `channels_last` needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b, self.e = (nn.Conv2d(c, 8, 3, 1, 1) for c in (1, 8, 8))
        self.fc = nn.Linear(8 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(x))
        x = F.relu(x + self.e(x)).contiguous()
        return self.fc(x.view(len(x), -1))


class _Normed(nn.Module):
    """A stream that a group norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b, self.e = (nn.Conv2d(c, 8, 3, 1, 1) for c in (1, 8, 8))
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(x))
        return self.e(self.norm(x))


_PARTS = {"stem": _keep(0, 1, 3, 4, of=8), "b": _keep(0, 2, 5, 7, of=8), "e": _keep(2, 3, 4, of=8)}


def _small(
    model: nn.Module, masks: dict[str, Tensor], example: Tensor
) -> tuple[nn.Module, nn.Module]:
    """The compact network, and the masked one."""
    small = compact(model, masks, example)
    assert any(isinstance(module, IndexedAdd) for module in small.modules())
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks, example)
    return small, masked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_sides_of_two_dtypes_are_added_as_torch_adds_them(
    dtype: torch.dtype, training: bool
) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 4, 9, 9)
    masks = {"a": _keep(0, 2, of=4), "b": _keep(0, 1, 3), "c": _keep(0, 2, 5)}
    small, masked = _small(_TwoDtypes().eval(), masks, image)
    exact = masked(image)
    outputs = []
    for network in (small.train(training), masked.train(training)):
        with torch.autocast("cpu", dtype):
            out = network(image)
        out.float().sum().backward()
        outputs.append(out)
    assert outputs[0].dtype == outputs[1].dtype
    # As near to float32 as the masked network is; rounding differs, since less is added up.
    error = (outputs[1].float() - exact).abs().max()
    assert (outputs[0].float() - exact).abs().max() < 2 * error + 1e-3


def test_a_shift_does_not_widen_a_stream_in_bfloat16() -> None:
    add = IndexedAdd(1, 3, [None, None], [None, [1]], torch.ones(3))
    x = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    assert add(x, x[:, :1]).dtype == torch.bfloat16


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last])
def test_a_view_behind_contiguous_takes_any_layout(
    weights: torch.memory_format, images: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 5, 5)
    small, masked = _small(_Views().eval(), _PARTS, x)
    result = small.to(memory_format=weights)(x.to(memory_format=images))
    torch.testing.assert_close(result, masked(x), rtol=1e-4, atol=1e-5)


def test_vmap_over_a_compact_network_with_group_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 5, 5)
    small, masked = _small(_Normed().eval(), _PARTS, x)
    small = small.to(memory_format=torch.channels_last)
    result = torch.func.vmap(lambda image: small(image[None])[0])(x)
    torch.testing.assert_close(result, masked(x), rtol=1e-4, atol=1e-5)
