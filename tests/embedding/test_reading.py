"""Torch networks as affine forms and activations: what is read, and what is refused with its place."""

import pytest
import torch
from embedded_networks import Functional, Residual, activations, random_network, shaken
from spr_or.models.toy import convnet, digits_resnet, mlp
from torch import Tensor, nn

from spr_or.embedding.errors import EmbeddingError
from spr_or.embedding.reading import read_network
from spr_or.pruning.compaction.api import compact, load_compact, save_compact


def assert_read(net: nn.Module, shape: tuple[int, ...]) -> None:
    """The forms compute what the network computes, on inputs that reading has not tried."""
    network = read_network(net, shape)
    x = 2 * torch.randn((5, *shape), generator=torch.Generator().manual_seed(3))
    _, outputs = network.evaluate(x.double().flatten(1).numpy())
    expected = net.eval()(x).detach().flatten(1)
    assert outputs == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (mlp(5, hidden=[4, 3]), (5,)),
        (convnet(), (1, 8, 8)),
        (nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), Residual(2)), (1, 7, 7)),
        (Functional(), (1, 5, 6)),
        (nn.Linear(3, 2), (3,)),
    ],
    ids=["mlp", "convnet", "residual", "functional", "linear"],
)
def test_forms_compute_what_the_network_computes(net, shape):
    assert_read(shaken(net), shape)


def test_a_compact_network_is_read_as_it_is_stored(tmp_path):
    torch.manual_seed(0)
    net = shaken(digits_resnet())
    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    masks = {name: torch.rand(m.out_channels) > 0.6 for name, m in convs.items()}
    small = compact(net, masks, torch.zeros(1, 1, 8, 8))
    save_compact(tmp_path / "small.safetensors", small, "spr_or.models.toy:digits_resnet")
    stored = load_compact(tmp_path / "small.safetensors")
    assert_read(stored, (1, 8, 8))
    dense, pruned = (read_network(n, (1, 8, 8)).values for n in (net, stored))
    assert pruned < dense


def test_each_activation_has_the_inputs_that_torch_has():
    net, shape = random_network(12)
    network = read_network(net, shape)
    x = torch.randn(3, *shape)
    found, _ = network.evaluate(x.double().flatten(1).numpy())
    before, _, _ = activations(net.double(), x.double())
    assert len(found) == len(before)
    for mine, theirs in zip(found, before, strict=True):
        assert mine == pytest.approx(theirs.numpy(), rel=1e-9, abs=1e-9)


class Called(nn.Module):
    """A module that calls a function of one linear layer's output."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor):
        return self.function(self.first(x))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x if y is None else x + y


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), ["layer '1'", "sigmoid", "neither affine"]),
        (Called(lambda x: x * x), ["operator mul", "test_reading.py", "multiplies two tensors"]),
        (Called(lambda x: x / (1 + x)), ["operator div", "depend on the inputs"]),
        (Called(lambda x: x - x.mean(0, keepdim=True)), ["operator mean", "mixes the samples"]),
        (Called(lambda x: (x, x)), ["several outputs"]),
        (Called(lambda x: x.new_zeros(len(x), 2)), ["do not depend"]),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), ["layer '0'", "statistics"]),
        (nn.Linear(3, 3).half(), ["torch.float16", "net.float()"]),
        (
            Called(lambda x: x if x.sum() > 0 else -x),
            ["Called cannot be traced", "values of tensors"],
        ),
    ],
    ids=[
        "sigmoid",
        "square",
        "quotient",
        "batch",
        "two outputs",
        "constant",
        "norm",
        "half",
        "branch",
    ],
)
def test_what_cannot_be_encoded_is_named(net, words):
    with pytest.raises(EmbeddingError) as error:
        read_network(net, (3,))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_weights_that_are_not_finite_are_named():
    net = mlp(3, hidden=[2])
    net[3].bias.data[1] = torch.nan
    with pytest.raises(EmbeddingError, match="3.bias .* not finite"):
        read_network(net, (3,))


def test_the_network_that_was_read_is_not_changed():
    net = mlp(4, hidden=[3]).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    read_network(net, (4,))
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
