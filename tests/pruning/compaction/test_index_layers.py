"""What a compact network puts between torch's layers: in `channels_last`, traced by torch.fx, compiled."""

import copy
import shutil

import pytest
import torch
from torch import Tensor, fx, nn

from models.resnet_cifar import resnet20
from spr_or import compact
from spr_or.pruning.compaction.layers import Fill, IndexedAdd

# A layer, and the channels of what it is given.
LAYERS = {
    "a side at its places": (IndexedAdd(1, 6, [None, None], [None, [0, 2, 5]], None), [6, 3]),
    "both sides at places": (IndexedAdd(1, 6, [None, None], [[1, 3], [0, 1, 4]], None), [2, 3]),
    "the same, with a shift": (
        IndexedAdd(1, 6, [None, None], [[1, 3], [0, 1, 4]], torch.arange(6.0)),
        [2, 3],
    ),
    "a side that is read and placed": (
        IndexedAdd(1, 6, [None, [0, 2]], [None, [5, 1]], None),
        [6, 3],
    ),
    "a side that is read": (IndexedAdd(1, 3, [None, [0, 2, 4]], [None, None], None), [3, 5]),
    # Numbers that bfloat16 has: compiled, it is added before it is rounded.
    "a shift": (IndexedAdd(1, 6, [None, None], [None, [5]], torch.arange(6.0)), [6, 1]),
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


@pytest.mark.parametrize("name", LAYERS)
def test_torch_fx_traces_what_compaction_puts_between(name: str) -> None:
    layer, widths = LAYERS[name]
    names = [f"x{k}" for k in range(len(widths))]
    graph = fx.Graph()
    graph.output(graph.call_module("layer", tuple(graph.placeholder(name) for name in names)))
    root = nn.Module()
    root.layer = layer
    network = fx.GraphModule(root, graph)

    class Inside(fx.Tracer):
        """Also what is inside of `layer`."""

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return False

    traced = fx.GraphModule(network, Inside().trace(network))
    assert not any(node.op == "call_module" for node in traced.graph.nodes)
    images = [torch.randn(2, width, 3, 4) for width in widths]
    assert torch.equal(traced(*images), layer(*images))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers_compute_the_same(name: str, dtype: torch.dtype) -> None:
    layer, widths = LAYERS[name]
    torch.manual_seed(0)
    images = [torch.randn(2, width, 8, 8).to(dtype) for width in widths]
    for layout in (torch.contiguous_format, torch.channels_last):
        torch._dynamo.reset()
        given = [image.to(memory_format=layout) for image in images]
        assert torch.equal(torch.compile(layer, fullgraph=True)(*given), layer(*given))


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
