"""Compaction: the smaller network is the masked network, for every network of models/."""

import copy
import importlib
import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from models.resnet import resnet18, resnet50
from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.compaction.api import (
    CompactionError,
    compact,
    load_compact,
    read_description,
    save_compact,
)
from spr_or.pruning.counts import count_macs, count_parameters
from spr_or.pruning.masks import apply_masks_

# Name: (import path, arguments, shape of an example). Small images keep the suite quick.
NETWORKS = {
    "resnet20": ("models.resnet_cifar:resnet20", {}, (2, 3, 32, 32)),
    "resnet56": ("models.resnet_cifar:resnet56", {"num_classes": 100}, (2, 3, 16, 16)),
    "resnet18": ("models.resnet:resnet18", {"num_classes": 50}, (2, 3, 64, 64)),
    "resnet18-cifar": (
        "models.resnet:resnet18",
        {"num_classes": 10, "stem": "cifar"},
        (2, 3, 16, 16),
    ),
    "resnet50": ("models.resnet:resnet50", {"num_classes": 50}, (2, 3, 64, 64)),
    "resnet50-cifar": (
        "models.resnet:resnet50",
        {"num_classes": 10, "stem": "cifar"},
        (2, 3, 8, 8),
    ),
    "vgg16": ("models.vgg:vgg16", {}, (2, 3, 32, 32)),
    "mlp": ("models.toy:mlp", {}, (2, 1, 8, 8)),
    "convnet": ("models.toy:convnet", {}, (2, 1, 8, 8)),
    "digits_resnet": ("models.toy:digits_resnet", {}, (2, 1, 8, 8)),
}


def randomise(model):
    """Statistics, scales and shifts that are nowhere zero by accident."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.6)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


@cache
def network(name):
    torch.manual_seed(1)
    path, kwargs, _ = NETWORKS[name]
    module, function = path.split(":")
    return randomise(getattr(importlib.import_module(module), function)(**kwargs)).eval()


def maskable(model):
    """Every convolution, and every linear layer but the classifier."""
    named = [
        (name, len(module.weight))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return dict(named[:-1])


def block_of(name):
    """Residual block of a layer ("layer2.0"), or the layer itself outside of blocks."""
    return ".".join(name.split(".")[:2]) if name.startswith("layer") else name


def draw_masks(model, scenario):
    sizes = maskable(model)
    if scenario == "everything":
        return {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
    share = {"10%": 0.1, "50%": 0.5, "90%": 0.9, "layers": 0.3, "blocks": 0.3}[scenario]
    masks = {name: torch.rand(size) >= share for name, size in sizes.items()}
    if scenario == "layers":  # first, middle, last and projecting convolutions come up
        for name in list(sizes)[1::3]:
            masks[name][:] = False
    if scenario == "blocks":  # every second block: with and without a projection
        blocks = list(dict.fromkeys(block_of(name) for name in sizes))
        for name in sizes:
            if block_of(name) in blocks[1::2]:
                masks[name][:] = False
    return masks


def norm_of(name, model):
    """The BatchNorm of a convolution, by the naming of models/ alone; None without one."""
    head, _, last = name.rpartition(".")
    partner = f"{head}.{int(last) + 1}" if last.isdigit() else name.replace("conv", "bn")
    module = dict(model.named_modules()).get(partner.removeprefix("."))
    return module if isinstance(module, nn.BatchNorm2d) else None


def masked_output(model, masks, x):
    """The masked network by its definition: hooks zero the channels behind BatchNorm."""
    handles = []
    for name, keep in masks.items():
        place = norm_of(name, model) or model.get_submodule(name)

        def hook(module, inputs, output, keep=keep):
            return output * keep.view(1, -1, *[1] * (output.dim() - 2))

        handles.append(place.register_forward_hook(hook))
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return output


def difference(a, b):
    return ((a - b).abs().max() / a.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("scenario", ["10%", "50%", "90%", "layers", "blocks", "everything"])
@pytest.mark.parametrize("name", NETWORKS)
def test_compact_computes_what_the_masked_network_computes(name, scenario):
    model, shape = network(name), NETWORKS[name][2]
    masks = draw_masks(model, scenario)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        model = model.to(dtype)
        small = compact(model, masks, torch.zeros(shape))
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            output = small(x)
        expected = masked_output(model, masks, x)
        assert output.dtype == dtype
        assert difference(expected, output) < tolerance
        if scenario in ("10%", "50%"):  # the comparison says something: outputs depend on inputs
            assert (expected[0] - expected[1]).abs().max() > 1e-6
    assert count_parameters(small) < count_parameters(model)
    assert count_macs(small, shape) < count_macs(model, shape)
    # What is kept of the filters is what the masks keep, or less.
    for layer, keep in masks.items():
        left = dict(small.named_modules()).get(layer)
        assert left is None or len(left.weight) <= max(int(keep.sum()), 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_the_same_network(name, tmp_path):
    original, kwargs, shape = NETWORKS[name]
    small = compact(network(name), draw_masks(network(name), "layers"), torch.zeros(shape))
    path = tmp_path / "small.safetensors"
    save_compact(path, small, original, kwargs)
    loaded = load_compact(path, original)
    assert loaded.state_dict().keys() == small.state_dict().keys()
    for entry, tensor in small.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[entry]), entry
    x = torch.randn(shape, dtype=next(small.parameters()).dtype)
    with torch.no_grad():
        assert torch.allclose(small(x), loaded(x), atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


# What stays, worked out by hand.


def keep_first(size, kept):
    return torch.arange(size) < kept


def test_first_convolution_of_a_block_shrinks_with_its_reader():
    small = compact(digits_resnet(), {"layer1.0.conv1": keep_first(16, 5)}, torch.zeros(1, 1, 8, 8))
    block = small.get_submodule("layer1.0")
    assert block.conv1.weight.shape == (5, 16, 3, 3)
    assert block.bn1.weight.shape == (5,)
    assert block.conv2.weight.shape == (16, 5, 3, 3)
    # 11 filters of 16x3x3, 11 times γ and β, 11 channels read by 16 filters of 3x3.
    assert count_parameters(digits_resnet()) - count_parameters(small) == 11 * (144 + 2 + 144)


def test_last_convolution_of_a_block_shrinks_by_an_indexed_add():
    model = randomise(digits_resnet())
    small = compact(model, {"layer1.0.conv2": keep_first(16, 5)}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("layer1.0").conv2.weight.shape == (5, 16, 3, 3)
    # The stream keeps its sixteen channels: the shortcut writes them.
    assert small.get_submodule("layer2.0").conv1.weight.shape == (32, 16, 3, 3)
    assert count_parameters(model) - count_parameters(small) == 11 * (144 + 2)


@pytest.mark.parametrize("emptied", [["conv1"], ["conv2"], ["conv1", "conv2"]])
def test_a_block_with_nothing_left_is_its_shortcut(emptied):
    model = randomise(resnet20())
    masks = {f"layer2.1.{name}": keep_first(32, 0) for name in emptied}
    small = compact(model, masks, torch.zeros(1, 3, 32, 32))
    left = [name for name, _ in small.named_parameters() if name.startswith("layer2.1.")]
    assert left == []
    shifts = [name for name, _ in small.named_parameters() if name.endswith("shift")]
    # With conv2 still there, its BatchNorm's constant stays as a shift of the stream.
    assert len(shifts) == (emptied == ["conv1"])


def test_an_emptied_bottleneck_leaves_its_projection():
    model = randomise(resnet50(10, stem="cifar"))
    small = compact(model, {"layer2.0.conv2": keep_first(128, 0)}, torch.zeros(1, 3, 8, 8))
    left = {name.split(".")[2] for name in small.state_dict() if name.startswith("layer2.0.")}
    assert left == {"downsample"}


def test_channels_no_one_writes_leave_the_stream():
    model = randomise(digits_resnet())
    masks = {name: keep_first(16, 6) for name in ("conv1", "layer1.0.conv2")}
    small = compact(model, masks, torch.zeros(1, 1, 8, 8))
    assert small.conv1.weight.shape[0] == 6
    assert small.get_submodule("layer1.0").conv1.weight.shape == (16, 6, 3, 3)
    assert small.get_submodule("layer2.0").conv1.weight.shape == (32, 6, 3, 3)


def test_channels_no_one_reads_leave_the_stream():
    """Zero columns (entities over input channels) free the channel they would have read."""
    model = randomise(digits_resnet()).eval()
    with torch.no_grad():
        model.fc.weight[:, 10:] = 0
        model.layer3[0].conv1.weight[:, 5:] = 0
    small = compact(model, {}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("layer3.0").conv2.weight.shape[0] == 10
    assert small.fc.weight.shape == (10, 10)
    x = torch.randn(2, 1, 8, 8)
    assert difference(model(x), small(x)) < 1e-5


def test_channels_become_blocks_of_features():
    """A 2x2 map is flattened: every channel is four columns of the linear layer."""
    small = compact(randomise(convnet()), {"4": keep_first(16, 3)}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("9").weight.shape == (32, 12)


def test_nothing_masked_is_nothing_removed():
    model = randomise(resnet18(10, stem="cifar"))
    small = compact(model, {}, torch.zeros(1, 3, 8, 8))
    assert small.state_dict().keys() == model.state_dict().keys()
    assert count_parameters(small) == count_parameters(model)


# Constants that are not zero.


@pytest.mark.parametrize("padding", [0, 1])
def test_a_zero_filter_with_a_living_shift_is_kept_exact(padding):
    """Folded into a bias where it can be; kept where zero padding makes it vary in space."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=padding, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2),
    ).double()  # fmt: skip
    x = torch.randn(3, 3, 6, 6).double()
    model(x)
    randomise(model).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].bias[0] = 0.7
    small = compact(model, {}, x)
    assert difference(model(x), small(x)) < 1e-12
    channels = small.get_submodule("3").in_channels
    assert channels == (
        2 if padding == 0 else 2 + int((model[1](model[0](x))[0, :2, 0, 0] > 0).sum())
    )
    assert (small.get_submodule("3").bias is not None) == (padding == 0)


@pytest.mark.parametrize(
    "border",
    [
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
        nn.AvgPool2d(3, 1, 1),
        lambda x: F.pad(x, (1, 0, 0, 2)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1, padding=1),
    ],
)
def test_a_constant_that_meets_zeros_at_the_border_is_kept(border):
    conv, end = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    nn.init.zeros_(conv.weight[1:].detach())  # three constants: the biases

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.end, self.border = conv, end, border

        def forward(self, x):
            return self.end(self.border(self.conv(x)))

    model = Net().double().eval()
    small = compact(model, {}, torch.zeros(1, 3, 5, 5))
    x = torch.randn(2, 3, 5, 5).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.conv.out_channels == 4


def test_without_a_border_a_constant_becomes_a_bias():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1), nn.Conv2d(4, 2, 3)).double()
    nn.init.zeros_(model[0].weight[1:].detach())
    small = compact(model, {}, torch.zeros(1, 3, 9, 9))
    x = torch.randn(2, 3, 9, 9).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.get_submodule("0").out_channels == 1


def test_a_scale_of_zero_frees_the_filter_before_it():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    model = model.double().eval()
    nn.init.zeros_(model[1].weight[:3].detach())
    small = compact(model, {}, torch.zeros(1, 3, 5, 5))
    x = torch.randn(2, 3, 5, 5).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.get_submodule("0").out_channels == 1


class Stream(nn.Module):
    """A stream that is read again after an addition and an in-place activation behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.relu = nn.ReLU(inplace=True)
        self.end = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(x + self.branch(x))
        return self.end(y + x)


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_the_stream_is_not_overwritten(kept):
    """An emptied branch leaves the stream itself to the activation, a narrow one adds into it."""
    model = Stream().double()
    masks = {"branch": keep_first(6, kept)}
    small = compact(model, masks, torch.zeros(1, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4).double()
    apply_masks_(model, masks)
    with torch.no_grad():
        assert difference(model(x), small(x)) < 1e-12


def test_a_constant_output_is_still_an_output():
    model = mlp(4, hidden=(3,), num_classes=2)
    small = compact(model, {"3": keep_first(2, 1)}, torch.zeros(1, 4))
    x = torch.randn(5, 4)
    assert small(x).shape == (5, 2) and not small(x)[:, 1].any()
    assert torch.allclose(small(x)[:, 0], model(x)[:, 0])


# Networks of a user's own.


class Chain(nn.Module):
    """Everything a plain forward pass may use."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 12, 1, stride=2)
        self.act = nn.LeakyReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(12 * 9, 20)
        self.norm1 = nn.BatchNorm1d(20)
        self.out = nn.Linear(20, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        y = self.norm(self.b(x))
        y += x
        x = self.drop(self.act(y)) + 1
        x = x + x
        x = F.pad(torch.sigmoid(self.c(x)), (1, 1, 1, 1))
        x = F.avg_pool2d(x, 3, stride=1, padding=1)[:, :, ::2, 1:]
        x = F.dropout(x, 0.5, self.training)[:, :, :3, :3]
        x = x.contiguous().view(x.size(0), -1)
        x = self.norm1(self.hidden(x)).relu()
        return F.log_softmax(self.out(x), dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_a_users_own_chain(seed):
    torch.manual_seed(seed)
    model = randomise(Chain()).double().eval()
    x = torch.randn(3, 3, 12, 12).double()
    masks = draw_masks(model, "50%")
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    small = compact(model, masks, x[:1])
    assert difference(masked(x), small(x)) < 1e-12
    assert count_parameters(small) < count_parameters(model)


class Drawn(nn.Module):
    """A random program of residual operations on maps of one size."""

    def __init__(self, dice):
        super().__init__()
        self.program, widths = [], [3]
        for step in range(dice.randint(4, 14)):
            source = dice.randrange(max(0, len(widths) - 4), len(widths))
            width = widths[source]
            same = [i for i, w in enumerate(widths) if w == width]
            new, module = width, None
            kind = dice.choice(
                ["conv", "conv", "norm", "relu", "act", "pool", "add", "add", "pad", "frame"]
            )
            if kind == "conv":
                new, size = dice.choice([width, 2, 3, 5]), dice.choice([1, 3])
                padding = size // 2
                mode = dice.choice(["zeros", "zeros", "replicate"])
                module = nn.Conv2d(
                    width, new, size, padding=padding, bias=dice.random() < 0.5, padding_mode=mode
                )
            elif kind == "norm":
                module = nn.BatchNorm2d(width)
            elif kind == "act":
                module = dice.choice([nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(), nn.Dropout()])
            elif kind == "pool":
                module = dice.choice([nn.MaxPool2d, nn.AvgPool2d])(3, 1, 1)
            elif kind == "pad":
                new = width + 3
            if module is not None:
                self.add_module(f"m{step}", module)
            self.program.append((kind, f"m{step}", source, dice.choice(same)))
            widths.append(new)
        self.end = nn.Linear(widths[-1], 3)

    def forward(self, x):
        values = [x]
        for kind, name, source, other in self.program:
            value = values[source]
            if kind == "add":
                values.append(value + values[other])
            elif kind == "pad":
                values.append(F.pad(value, (0, 0, 0, 0, 1, 2)))
            elif kind == "frame":
                values.append(F.pad(value[:, :, 1:-1, 1:], (1, 0, 1, 1, 0, 0)))
            elif kind == "relu":
                values.append(F.relu(value))
            else:
                values.append(getattr(self, name)(value))
        return self.end(values[-1].mean((2, 3)))


@pytest.mark.parametrize("seed", range(120))
def test_random_programs(seed):
    """Also zero filters, zero columns and zero scales that no mask speaks of."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    model = randomise(Drawn(dice)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and dice.random() < 0.5:
            with torch.no_grad():
                module.weight[torch.rand(len(module.weight)) < dice.random()] = 0
        if isinstance(module, nn.Conv2d) and dice.random() < 0.3:
            with torch.no_grad():
                module.weight[:, torch.rand(module.in_channels) < dice.random()] = 0
    masks = {
        name: torch.rand(size) >= dice.choice([0.2, 0.5, 1.0])
        for name, size in maskable(model).items()
        if dice.random() < 0.5
    }
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    x = torch.randn(2, 3, 5, 4).double()
    small = compact(model, masks, x[:1])
    with torch.no_grad():
        assert difference(masked(x), small(x)) < 1e-10
    assert count_parameters(small) <= count_parameters(model) + sum(
        len(p) for name, p in small.named_parameters() if name.endswith(("shift", "bias"))
    )


# The original stays, the result lives on.


def test_the_original_is_not_touched():
    model = randomise(resnet18(10, stem="cifar")).train()
    before = copy.deepcopy(model.state_dict())
    compact(model, draw_masks(model, "50%"), torch.zeros(1, 3, 8, 8))
    assert model.training and model.relu.inplace
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_compact_network_learns_and_can_be_saved_then(tmp_path):
    model = randomise(digits_resnet())
    small = compact(model, draw_masks(model, "layers"), torch.zeros(1, 1, 8, 8)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_compact(tmp_path / "s.safetensors", small, "models.toy:digits_resnet")
    loaded = load_compact(tmp_path / "s.safetensors")
    assert torch.allclose(loaded(x), small.eval()(x), atol=1e-6)


def test_masked_and_compact_networks_have_the_same_gradients():
    """Kept parameters learn as they would have in the masked network."""
    model = randomise(digits_resnet()).double().eval()
    keep = keep_first(16, 5)
    small = compact(model, {"layer1.0.conv1": keep}, torch.zeros(1, 1, 8, 8))
    apply_masks_(model, {"layer1.0.conv1": keep})
    x = torch.randn(4, 1, 8, 8).double()
    for net in (model, small):
        net(x).square().sum().backward()
    ours = small.get_submodule("layer1.0.conv1").weight.grad
    theirs = model.layer1[0].conv1.weight.grad[keep]
    assert torch.allclose(ours, theirs, rtol=1e-10)


@pytest.mark.gpu
def test_a_network_on_a_gpu_stays_there():
    model = randomise(digits_resnet()).double().cuda().eval()
    masks = draw_masks(model, "layers")
    x = torch.randn(4, 1, 8, 8, device="cuda", dtype=torch.float64)
    small = compact(model, masks, torch.zeros(1, 1, 8, 8))
    assert {t.device.type for t in (*small.parameters(), *small.buffers())} == {"cuda"}
    apply_masks_(model, masks)
    assert difference(model(x), small(x)) < 1e-10


# Files.

SUBPROCESS = """
import sys, torch
from safetensors.torch import load_file, save_file
from spr_or.pruning.compaction.api import load_compact
path, data = sys.argv[1:]
torch.manual_seed(5)
model = load_compact(path)
drawn = torch.rand(3)
torch.manual_seed(5)
assert torch.equal(drawn, torch.rand(3)), "loading moved the random state"
save_file({"y": model(load_file(data)["x"]).detach()}, data + ".out")
"""


def run_elsewhere(path, x, tmp_path, extra_path):
    data = tmp_path / "data.safetensors"
    save_file({"x": x}, data)
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root), str(extra_path)])
    subprocess.run(
        [sys.executable, "-c", SUBPROCESS, str(path), str(data)],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
    )
    from safetensors.torch import load_file

    return load_file(f"{data}.out")["y"]


def test_a_fresh_process_rebuilds_the_network(tmp_path):
    shape = (2, 3, 32, 32)
    model = network("resnet20").float()
    masks = draw_masks(model, "blocks")
    small = compact(model, masks, torch.zeros(shape))
    save_compact(tmp_path / "r20.safetensors", small, "models.resnet_cifar:resnet20")
    x = torch.randn(shape)
    y = run_elsewhere(tmp_path / "r20.safetensors", x, tmp_path, tmp_path)
    assert torch.allclose(y, small(x), atol=1e-6)
    assert difference(masked_output(model, masks, x), y) < 1e-4


USERS_MODULE = """
from torch import nn
def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
"""


def test_a_fresh_process_rebuilds_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "their_networks.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import their_networks

    small = compact(their_networks.net(9), {"0": keep_first(9, 4)}, torch.zeros(1, 6))
    path = tmp_path / "own.safetensors"
    save_compact(path, small, "their_networks:net", {"width": 9})
    description = read_description(path)
    assert description["original"] == "their_networks:net" and description["kwargs"] == {"width": 9}
    assert description["steps"]["_0"]["kept"] == [0, 1, 2, 3]
    x = torch.randn(2, 6)
    assert torch.allclose(run_elsewhere(path, x, tmp_path, tmp_path), small(x), atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small.safetensors"
    small = compact(digits_resnet(), {"conv1": keep_first(16, 9)}, torch.zeros(1, 1, 8, 8))
    save_compact(path, small, "models.toy:digits_resnet")
    return path, small


def test_damaged_and_foreign_files_are_refused(saved, tmp_path):
    path, small = saved
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="small.safetensors is damaged"):
            load_compact(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no compacted network"):
        load_compact(path)
    with pytest.raises(FileNotFoundError):
        load_compact(tmp_path / "absent.safetensors")


def test_a_file_that_names_another_function_is_refused_unopened(saved):
    with pytest.raises(ValueError, match="made from 'models.toy:digits_resnet'"):
        load_compact(saved[0], original="models.toy:convnet")


def test_wrong_originals_are_refused_before_anything_is_written(saved):
    path, small = saved
    before = path.read_bytes()
    for original, kwargs, message in [
        ("models.toy:convnet", {}, "does not fit"),
        ("models.resnet_cifar:resnet20", {}, "does not fit"),
        ("models.toy:digits_resnet", {"in_channels": 3}, r"'conv1' has \(16, 3\) channels"),
        ("models.toy:digits_resnet", {"num_classes": 11}, "'fc' has .11, 64. channels"),
        ("models.toy:digits", {}, "cannot be imported"),
        ("models.nowhere:net", {}, "cannot be imported"),
        ("digits_resnet", {}, "cannot be imported"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_compact(path, small, original, kwargs)
    with pytest.raises(ValueError, match="does not come from compact"):
        save_compact(path, digits_resnet(), "models.toy:digits_resnet")
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, small = saved
    before = path.read_bytes()

    def full_disk(state, aside, metadata):
        Path(aside).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spr_or.pruning.compaction.api.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_compact(path, small, "models.toy:digits_resnet")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_description_is_plain_json(saved):
    steps = read_description(saved[0])["steps"]
    assert json.loads(json.dumps(steps)) == steps
    assert steps["conv1"] == {
        "kind": "conv", "target": "conv1", "channels": 16, "kept": list(range(9)), "offset": 0,
        "around": [],
        "shift": False,
    }  # fmt: skip


# What is not understood.


class Lambda(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        self.conv = nn.Conv2d(4, 4, 1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def test_what_is_not_understood_is_refused_by_name():
    cases = [
        (lambda m, x: m.g(x), {"g": nn.Conv2d(4, 4, 1, groups=4)}, "'g'.*4 groups"),
        (lambda m, x: m.n(x), {"n": nn.LayerNorm([4, 5, 5])}, "'n'.*LayerNorm"),
        (lambda m, x: m.n(x), {"n": nn.GroupNorm(2, 4)}, "GroupNorm"),
        (lambda m, x: m.n(x), {"n": nn.ConvTranspose2d(4, 4, 1)}, "ConvTranspose2d"),
        (lambda m, x: m.conv(x) * x, {}, "mul"),
        (lambda m, x: torch.cat([m.conv(x), x], 1), {}, "cat"),
        (lambda m, x: m.conv(m.conv(x)), {}, "'conv'.*called 2 times"),
        (lambda m, x: m.conv(x) + x[:, :, :1, :1], {}, "addition of shapes"),
        (lambda m, x: m.conv(x)[:, :2], {}, "getitem.*not a slice of positions"),
        (lambda m, x: torch.add(m.conv(x), x, alpha=2), {}, "alpha"),
        (lambda m, x: m.conv(x).mean(1), {}, "mean over samples or channels"),
        (lambda m, x: m.conv(x).transpose(1, 2), {}, "transpose"),
        (lambda m, x: m.conv(x).view(x.size(0), 2, -1), {}, "change of shape"),
        (lambda m, x: m.conv(x) + x.size(0), {}, "size"),
        (lambda m, x: F.dropout(m.conv(x)), {}, "dropout that stays on"),
        (lambda m, x: F.pad(m.conv(x), (1, 1), value=3.0), {}, "padding with anything"),
        (lambda m, x: m.b(x), {"b": nn.BatchNorm2d(4, track_running_stats=False)}, "statistics"),
        (lambda m, x: (m.conv(x), x), {}, "output that is not one tensor"),
        (lambda m, x: m.conv(x).max(1), {}, "max"),
        (lambda m, x: m.l(x), {"l": nn.Linear(5, 5)}, "'l'.*linear layer on 4 dimensions"),
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, {}, "Lambda cannot be traced"),
        (lambda m, x: m.r(x) + x, {"r": nn.ReLU(inplace=True)}, "overwrites 'x'.*add"),
    ]
    for forward, modules, message in cases:
        with pytest.raises(CompactionError, match=message):
            compact(Lambda(forward, **modules), {}, torch.zeros(1, 4, 5, 5))


def test_overwriting_a_view_of_what_others_read_is_refused():
    def forward(m, x):
        y = m.conv(x)
        return torch.flatten(m.r(y[:, :, ::2]), 1) + torch.flatten(y[:, :, ::2], 1)

    with pytest.raises(CompactionError, match="overwrites"):
        compact(Lambda(forward, r=nn.ReLU(inplace=True)), {}, torch.zeros(1, 4, 5, 5))


def test_two_inputs_are_refused_by_name():
    class Two(nn.Module):
        def forward(self, image, label):
            return image + label

    with pytest.raises(CompactionError, match="Two takes 2 inputs .image, label."):
        compact(Two(), {}, torch.zeros(1, 2))
