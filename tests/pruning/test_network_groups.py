"""Entities that cross layers: what dies with a channel, a head, a hidden unit, a branch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.densenet import densenet_digits
from models.mobilenet import mobilenetv2_small
from models.resnet_cifar import resnet20
from models.vit import vit_tiny_digits
from spr_or import SPR, compact
from spr_or.pruning.groups import EntityGroup, layer_masks
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.network_groups import features, network_groups

IMAGE = torch.zeros(2, 3, 32, 32)
DIGIT = torch.zeros(2, 1, 8, 8)


def by_name(model: nn.Module, example: Tensor, kind: str, **more: bool) -> dict[str, EntityGroup]:
    return {group.name: group for group in network_groups(model, example, kind, **more)}


def parameters_of(group: EntityGroup) -> set[str]:
    return {member.parameter for member in group.members}


def test_a_stream_is_written_by_every_second_convolution() -> None:
    """ResNet-20 with shortcuts that pad: channel i of conv1 is channel i + 8 of the next stage."""
    groups = by_name(resnet20(), IMAGE, "channels")
    written = {p for p in parameters_of(groups["conv1"]) if "conv" in p}
    assert written == {"conv1.weight"} | {
        f"layer{s}.{b}.conv2.weight" for s in (1, 2, 3) for b in range(3)
    }
    places = {m.parameter: m.index.flatten().tolist() for m in groups["conv1"].members}
    assert places["conv1.weight"] == list(range(16))
    assert places["layer2.0.conv2.weight"] == list(range(8, 24))
    assert places["layer3.2.bn2.bias"] == list(range(24, 40))
    # Channels that padding adds are written from the second stage on.
    fresh = [g for name, g in groups.items() if name.startswith("layer2.0.conv2")]
    assert sum(g.count for g in fresh) == 32 - 16
    inner = groups["layer2.1.conv1"]
    assert parameters_of(inner) == {
        "layer2.1.conv1.weight", "layer2.1.bn1.weight", "layer2.1.bn1.bias",
    }  # fmt: skip


def test_columns_read_the_features_that_rows_write() -> None:
    written, read = features(resnet20(), IMAGE)
    stream = written["conv1.weight", 0]
    assert read["conv1.weight", 1].tolist() == [0, 0, 0]  # the image
    for name in ("layer1.0.conv1", "layer1.2.conv1", "layer2.0.conv1"):
        assert torch.equal(read[f"{name}.weight", 1], stream)
    assert torch.equal(written["layer2.0.conv2.weight", 0][8:24], stream)
    assert torch.equal(read["fc.weight", 1], written["layer3.2.conv2.weight", 0])
    inner = written["layer2.1.conv1.weight", 0]
    assert torch.equal(read["layer2.1.conv2.weight", 1], inner)
    assert torch.equal(written["layer2.1.bn1.bias", -1], inner)
    assert not torch.isin(inner, stream).any()


def test_columns_of_convolutions_in_groups_are_left_out() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 3, 1))
    _, read = features(net, DIGIT)
    assert {name for name, _ in read} == {"0.weight", "2.weight"}


def test_depthwise_filters_belong_to_the_channel_they_filter() -> None:
    group = by_name(mobilenetv2_small(), DIGIT, "channels")["features.3.conv.0.0"]
    assert {p.rpartition(".")[0] for p in parameters_of(group)} == {
        "features.3.conv.0.0", "features.3.conv.0.1", "features.3.conv.1.0", "features.3.conv.1.1",
    }  # fmt: skip


def test_norms_behind_a_concatenation_belong_to_the_channels_they_read() -> None:
    groups = by_name(densenet_digits(), DIGIT, "channels")
    first = groups["features.conv0"]
    norms = {p for p in parameters_of(first) if "norm" in p}
    assert len(norms) > 4  # every later layer of the block reads it


def test_the_kinds_of_a_vision_transformer() -> None:
    model = vit_tiny_digits()
    heads = by_name(model, DIGIT, "heads")
    assert set(heads) == {f"blocks.{b}.attn.qkv" for b in range(3)}
    (weight, bias) = heads["blocks.0.attn.qkv"].members
    assert weight.index.shape == bias.index.shape == (4, 36)
    assert weight.index[1].tolist() == [*range(12, 24), *range(60, 72), *range(108, 120)]
    neurons = by_name(model, DIGIT, "neurons")
    assert {(n, g.count) for n, g in neurons.items()} == {
        (f"blocks.{b}.mlp.fc1", 96) for b in range(3)
    }
    stream = by_name(model, DIGIT, "channels")["patch_embed.proj"]
    assert stream.count == 48
    assert {"pos_embed", "norm.weight", "blocks.2.mlp.fc2.bias"} <= parameters_of(stream)
    blocks = by_name(model, DIGIT, "blocks")
    assert parameters_of(blocks["blocks.1.mlp.fc1"]) == {
        f"blocks.1.{n}.{k}" for n in ("norm2", "mlp.fc1", "mlp.fc2") for k in ("weight", "bias")
    }


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.up, self.gate, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(self.norm(x))


def test_gated_pairs_and_the_stream_of_a_language_model() -> None:
    ids = torch.randint(11, (2, 7))
    (pair,) = network_groups(Gated(), ids, "neurons")
    assert parameters_of(pair) == {"up.weight", "up.bias", "gate.weight", "gate.bias"}
    stream = next(g for g in network_groups(Gated(), ids, "channels") if g.count == 8)
    assert parameters_of(stream) == {"words.weight", "down.weight", "down.bias", "norm.weight"}
    (columned,) = network_groups(Gated(), ids, "neurons", columns=True)
    assert "down.weight" in parameters_of(columned)


def test_a_padded_stream_beside_the_input_stays_alive() -> None:
    """What the input writes is there whatever is masked: the branch is entities of its own."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.norm, self.head = (
                nn.Conv2d(3, 3, 1),
                nn.BatchNorm2d(3),
                nn.Conv2d(3, 2, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x + self.branch(x)))

    (group,) = network_groups(Residual(), torch.zeros(2, 3, 4, 4), "channels")
    assert parameters_of(group) == {"branch.weight", "branch.bias"}


@pytest.mark.parametrize(
    ("make", "example", "kind"),
    [
        (resnet20, IMAGE, "channels"),
        (resnet20, IMAGE, "blocks"),
        (mobilenetv2_small, DIGIT, "channels"),
        (vit_tiny_digits, DIGIT, "channels"),
        (vit_tiny_digits, DIGIT, "heads"),
        (densenet_digits, DIGIT, "channels"),
        (Gated, torch.randint(11, (2, 7)), "channels"),
    ],
)
def test_half_of_each_group_leaves_exactly(make: object, example: Tensor, kind: str) -> None:
    """Outputs stay those of the masked network, and every slice of a masked entity is gone."""
    model = make().double().eval()  # type: ignore[operator]
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    groups = network_groups(model, example, kind)
    masks = {
        g.name: torch.arange(g.count) % 2 == 0 for g in groups if g.count > 1 or kind == "blocks"
    }
    if kind == "blocks":
        masks = {g.name: torch.tensor([n % 2 == 0]) for n, g in enumerate(groups)}
    layers = layer_masks(model, groups, masks)
    small = compact(model, layers, example)
    masked = copy.deepcopy(model)
    apply_masks_(masked, layers, example)
    x = torch.randn(3, *example.shape[1:]).double() if example.is_floating_point() else example
    torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)
    slices = sum(
        int((~masks[g.name]).sum()) * m.index.shape[1]
        * (model.get_parameter(m.parameter).numel() // model.get_parameter(m.parameter).shape[m.dim])
        for g in groups if g.name in masks for m in g.members
    )  # fmt: skip
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, small))
    assert before - after >= 0.9 * slices  # a constant may leave a bias behind


def test_spr_takes_the_words() -> None:
    model = vit_tiny_digits()
    spr = SPR(model, lam=0.1, alpha=0.5, M=1.0, entities=["heads", "neurons"], example=DIGIT)
    assert {layer.name for layer in spr.layers} == {
        f"blocks.{b}.{n}" for b in range(3) for n in ("attn.qkv", "mlp.fc1")
    }


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="CifarResNet has no heads"):
        network_groups(resnet20(), IMAGE, "heads")
    with pytest.raises(ValueError, match="kind must be among channels, heads"):
        network_groups(resnet20(), IMAGE, "filters")
