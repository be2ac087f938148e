"""What a compact network puts between torch's layers keeps `channels_last`, forward and backward."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.resnet_cifar import resnet20
from spr_or import compact
from spr_or.pruning.compaction.layers import Fill, IndexedAdd

# A layer, and the channels of what it is given.
LAYERS = {
    "a side at its places": (IndexedAdd(1, 6, [None, None], [None, [0, 2, 5]], None), [6, 3]),
    "both sides at places": (IndexedAdd(1, 6, [None, None], [[1, 3], [0, 1, 4]], None), [2, 3]),
    "a side that is read": (IndexedAdd(1, 3, [None, [0, 2, 4]], [None, None], None), [3, 5]),
    "a shift": (IndexedAdd(1, 6, [None, None], [None, [5]], torch.randn(6)), [6, 1]),
    "a fill": (Fill(1, [0, 3], torch.randn(6)), [2]),
}


def _results(layer: nn.Module, images: list[Tensor], format: torch.memory_format) -> list[Tensor]:
    """The layer's output, and the gradient of each image."""
    images = [image.clone(memory_format=format).requires_grad_() for image in images]
    out = layer(*images)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(memory_format=format))
    return [out.detach(), *(image.grad for image in images if image.grad is not None)]


@pytest.mark.parametrize("name", LAYERS)
def test_index_layers_keep_channels_last(name: str) -> None:
    layer, widths = LAYERS[name]
    images = [torch.randn(2, width, 3, 4) for width in widths]
    plain = _results(layer, images, torch.contiguous_format)
    last = _results(layer, images, torch.channels_last)
    assert len(last) == 1 + len(images)
    for expected, result in zip(plain, last, strict=True):
        assert torch.equal(expected, result)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert expected.is_contiguous()


def test_compact_residual_network_keeps_channels_last() -> None:
    torch.manual_seed(0)
    model, example = resnet20().eval(), torch.randn(2, 3, 32, 32)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    masks = {
        name: (torch.arange(model.get_parameter(f"{name}.weight").shape[0]) + place) % 3 != 1
        for place, name in enumerate(convolutions)
    }
    small = compact(model, masks, example)
    assert any(isinstance(module, IndexedAdd) for module in small.modules())
    expected = small(example)
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)
    images = example.to(memory_format=torch.channels_last)
    layouts = {}
    for name, module in last.named_modules():
        if isinstance(module, IndexedAdd | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _m, _x, out, name=name: layouts.update(
                    {name: out.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    assert torch.allclose(last(images), expected, atol=1e-5)
    assert len(layouts) > 20
    assert all(layouts.values()), layouts
