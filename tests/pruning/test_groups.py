"""Groups of slices: what is refused, the masks of layers they make, and which entities are zero."""

import pytest
import torch
from grouped_networks import (
    all_groups,
    head_group,
    one_each,
    some_rows_group,
    stream_group,
    streams,
)
from torch import nn

from spr_or.pruning import layer_entities as entities_module
from spr_or.pruning.entity_masks import entity_masks, kept
from spr_or.pruning.groups import EntityGroup, Member, check_groups, layer_masks
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_, masks_by_threshold
from spr_or.pruning.regularizer import SPR

ROWS = one_each(4)


def group(name: str, *members: tuple[str, int, torch.Tensor]) -> EntityGroup:
    return EntityGroup(name, tuple(Member(*member) for member in members))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([group("a", ("stem.wieght", 0, ROWS))], "'stem.wieght', no parameter .* 'stem.weight'"),
        ([group("a", ("stem.bias", 1, ROWS))], r"along dimension 1, but its shape is \(4,\)"),
        ([group("a", ("narrow.bias", 0, ROWS + 2))], "slice 5 of 'narrow.bias', which has 5"),
        ([stream_group(), stream_group()], "slice 0 of 'stem.weight' .* 0 of group 'stem' and"),
        (
            [group("a", ("stem.bias", 0, ROWS)), group("b", ("stem.bias", 0, ROWS[2:3]))],
            "slice 2 of 'stem.bias' along dimension 0 is in entity 2 of group 'a' and in entity 0 of",
        ),
        (
            [group("a", ("stem.bias", 0, torch.tensor([[0, 1], [2, 0]])))],
            "slice 0 of 'stem.bias' along dimension 0 is in entity 0 of group 'a' and in entity 1",
        ),
        (
            [group("a", ("embed.weight", 0, ROWS)), group("b", ("embed.weight", 1, ROWS))],
            "'embed.weight' is cut along dimension 0 by group 'a' and along dimension 1 by group 'b'",
        ),
        ([group("a", ("stem.bias", 0, ROWS)), group("a", ("narrow.bias", 0, ROWS))], "two groups"),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        check_groups(streams(), groups)
    with pytest.raises(ValueError, match=message):
        SPR(streams(), 1.0, 0.5, 1.0, groups)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"int64 of shape \(N, m\)"),
        (torch.zeros(3, 1), "not torch.float32"),
        (torch.zeros(0, 1, dtype=torch.int64), "of shape"),
        (torch.tensor([[-1]]), "holds -1"),
    ],
)
def test_an_index_is_checked(index, message):
    with pytest.raises(ValueError, match=message):
        Member("stem.bias", 0, index)


def test_members_must_agree_on_the_entities():
    with pytest.raises(ValueError, match="4 entities in 'stem.bias', but 3 in 'norm.bias'"):
        group("a", ("stem.bias", 0, ROWS), ("norm.bias", 0, ROWS[:3]))
    with pytest.raises(ValueError, match="no members"):
        EntityGroup("a", ())
    with pytest.raises(ValueError, match="kind must be among"):
        EntityGroup("a", (Member("stem.bias", 0, ROWS),), "channel")


def test_a_weight_under_two_names_is_one():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    rows = one_each(2)
    with pytest.raises(ValueError, match="entities overlap: slice 0 of '1.weight'"):
        check_groups(net, [group("a", ("0.weight", 0, rows)), group("b", ("1.weight", 0, rows))])


def test_masks_of_layers():
    masks = {"stem": torch.tensor([True, False, True, False]), "qkv": torch.tensor([False, True])}
    found = layer_masks(streams(), all_groups(), masks)
    channels = [True, False, True, False]
    head = [False] * 3 + [True] * 3
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "stem": channels, "norm": channels, "widen": channels, "depthwise": channels,
        "qkv": head * 3,
    }  # fmt: skip


def test_masks_of_some_rows_keep_the_others():
    found = layer_masks(streams(), [some_rows_group()], {"narrow": torch.tensor([False, True])})
    assert {n: m.tolist() for n, m in found.items()} == {"narrow": [True, True, True, False, True]}


def test_parameters_of_no_known_layer_go_by_their_own_name():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.up = nn.ConvTranspose2d(4, 4, 1)
            self.down = nn.ConvTranspose2d(4, 3, 1)
            self.scale = nn.Parameter(torch.ones(4))
            self.position = nn.Parameter(torch.ones(1, 5, 4))
            self.table = nn.Embedding(6, 4)
            self.bare = nn.Linear(2, 4)

    own = group(
        "up",
        *[("up.weight", 1, ROWS), ("up.bias", 0, ROWS), ("down.weight", 0, ROWS)],
        *[("scale", 0, ROWS), ("position", 2, ROWS), ("table.weight", 1, ROWS)],
        *[("attention.in_proj_weight", 0, ROWS), ("bare.bias", 0, ROWS)],
    )
    keep = torch.tensor([True, True, False, True])
    found = layer_masks(Packed(), [own], {"up": keep})
    packed = keep.tolist() + [True] * 8
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "up": keep.tolist(), "scale": keep.tolist(), "table": keep.tolist(),
        "position:2": keep.tolist(),
        "bare.bias": keep.tolist(), "attention.in_proj_weight": packed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"stme": ROWS.flatten() > 0}, "'stme' is no group; did you mean 'stem'"),
        ({"stem": ROWS.flatten()}, "must be a bool vector of length 4"),
        ({"stem": torch.ones(3, dtype=torch.bool)}, "of length 4, not torch.bool of shape"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks, message):
    with pytest.raises(ValueError, match=message):
        layer_masks(streams(), all_groups(), masks)


def test_entities_are_zero_when_all_their_slices_are():
    net, groups = streams(), all_groups()
    layers = layer_entities(net, groups)
    with torch.no_grad():
        for member in groups[0].members:
            net.get_parameter(member.parameter).index_fill_(member.dim, member.index[2], 0.0)
        for member in groups[1].members[:-1]:  # the columns of this head stay
            net.get_parameter(member.parameter).index_fill_(member.dim, member.index[0], 0.0)
    exact = entity_masks(layers, zero_below=0.0, share=1.0)
    assert {name: mask.tolist() for name, mask in exact.items()} == {
        "stem": [True, True, False, True], "qkv": [True, True], "narrow": [True, True],
    }  # fmt: skip
    # 72 of the 81 weights of the head are zero.
    assert entity_masks(layers, 0.0, 0.88)["qkv"].tolist() == [False, True]
    assert entity_masks(layers, 0.0, 0.89)["qkv"].tolist() == [True, True]


@pytest.mark.parametrize("zero_below", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_rule_is_that_of_filters(zero_below, share):
    net = nn.Sequential(nn.Conv2d(2, 20, 3), nn.Conv2d(20, 6, 1, bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.masked_fill_(torch.rand_like(parameter) < 0.4, 0.0)
        net[0].weight[3], net[0].bias[3] = 0, 0
    by_layer = masks_by_threshold(net, None, zero_below, share)
    rule = entity_masks(layer_entities(net), zero_below, share)
    assert by_layer.keys() == rule.keys()
    for name, mask in by_layer.items():
        assert torch.equal(mask, rule[name])


def test_padding_is_no_weight():
    """Entities given by positions have rows of one width, of which zeros fill the end."""
    net = nn.Sequential(nn.Linear(2, 2))
    nn.init.ones_(net[0].weight)
    layers = layer_entities(net, [[0], [1, 2, 3]])
    assert entity_masks(layers, 0.0, 0.5)["entities"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("numbers", "message"), [((-1.0, 0.5), "zero_below must"), ((0.1, 1.5), "share must lie")]
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        kept(torch.ones(1, 2), 2, *numbers)


def test_zero_entities_are_what_their_masks_remove():
    """A channel that is zero in its group reads as a removed one: applying its masks changes nothing."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    stream = group("0", *[(name, 0, ROWS) for name in ("0.weight", "0.bias", "1.weight", "1.bias")])
    with torch.no_grad():
        for member in stream.members:
            net.get_parameter(member.parameter)[1] = 0
    masks = entity_masks(layer_entities(net, stream), 0.0, 1.0)
    found = layer_masks(net, [stream], masks)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "0": [True, False, True, True], "1": [True, False, True, True],
    }  # fmt: skip
    x = torch.randn(2, 1, 5, 5)
    before = net(x)
    apply_masks_(net, {"0": found["0"]})
    torch.testing.assert_close(net(x), before, rtol=0.0, atol=0.0)


def test_layers_stand_beside_groups_of_the_graph(monkeypatch):
    """Words for slices and words for the graph in one list make groups of all of them."""
    monkeypatch.setattr(
        entities_module,
        "_network_groups",
        lambda model, example, kinds, alone: [head_group() for _ in kinds],
    )
    net, x = streams(), torch.zeros(1, 2, 2, 2)
    found = layer_entities(net, ["filters", "heads"], example=x)
    assert [e.name for e in found] == ["stem", "narrow", "widen", "depthwise", "qkv"]
    bounds = SPR.bounds_from(net, ["filters", "heads"], example=x)
    assert bounds["stem"] == SPR.bounds_from(net)["stem"]
    together = SPR(net, 1.0, 0.3, bounds, ["filters", "heads"], u="uniform", example=x)
    apart = [
        SPR(net, 1.0, 0.3, {e.name: bounds[e.name] for e in layer_entities(net, one)}, one,
            u="uniform")
        for one in ("filters", head_group())
    ]  # fmt: skip
    assert together().item() == pytest.approx(sum(spr().item() for spr in apart), rel=1e-12)
    with pytest.raises(ValueError, match="entities overlap: slice 0 of 'qkv.weight'"):
        layer_entities(net, ["heads", "heads"], example=x)


def test_groups_and_words_in_one_list_are_refused():
    with pytest.raises(ValueError, match="entities holds groups and other things"):
        layer_entities(streams(), ["filters", head_group()])
