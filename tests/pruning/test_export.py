"""Exported networks give the same outputs, for any batch size."""

import itertools

import pytest
import torch
from slow_cases import slow_unless

from models.toy import convnet, digits_resnet
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.export import export_onnx, export_program


def small_network(factory, layers):
    model = factory()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
    masks = {name: torch.rand(size) > share for name, size, share in layers}
    return compact(model, masks, torch.zeros(1, 1, 8, 8))


NETWORKS = {
    # An emptied block, indexed adds and a stream that shrank.
    "digits_resnet": lambda: small_network(
        digits_resnet,
        [("conv1", 16, 0.5), ("layer1.0.conv1", 16, 1.0), ("layer2.0.conv2", 32, 0.5)],
    ),
    "convnet": lambda: small_network(convnet, [("0", 8, 0.5), ("4", 16, 0.5)]),
}


@pytest.mark.parametrize(
    ("samples", "name"),
    slow_unless(
        lambda samples, name: (samples == 3) == (name == "digits_resnet"),
        itertools.product((1, 3), NETWORKS),
    ),
)
def test_a_program_runs_again_on_any_batch(name, samples, tmp_path):
    model = NETWORKS[name]().train()
    path = tmp_path / "net.pt2"
    export_program(model, torch.zeros(samples, 1, 8, 8), path)
    assert model.training
    again = torch.export.load(path).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 1, 8, 8)
        assert torch.allclose(again(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "convnet", NETWORKS))
def test_onnxruntime_computes_the_same_on_any_batch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = NETWORKS[name]()
    path = tmp_path / "net.onnx"
    export_onnx(model, torch.zeros(1, 1, 8, 8), path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(path)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 1, 8, 8)
        (y,) = session.run(None, {"input": x.numpy()})
        assert torch.allclose(torch.from_numpy(y), model(x), atol=1e-5)
