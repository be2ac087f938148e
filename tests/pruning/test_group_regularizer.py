"""SPR on entities that cross layers, against the formula written out on concatenated weights."""

import copy
import pickle

import pytest
import torch
from grouped_networks import (
    CHANNELS,
    all_groups,
    entity_weights,
    head_group,
    one_each,
    penalty,
    some_rows_group,
    stream_group,
    streams,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spr_or.formulations import projected
from spr_or.pruning.groups import EntityGroup, Member
from spr_or.pruning.regularizer import SPR

ALPHA = 0.3


def as_on_an_accelerator(monkeypatch) -> None:
    """Windows of one shape in one tensor, and no gradient in place."""
    from spr_or.pruning.group_entities import GroupLayout

    monkeypatch.setattr(GroupLayout, "_batched", lambda self: self.runs)
    monkeypatch.setattr(
        SPR, "_add_group_gradients_", lambda self, layout: add_by_pairs(self), raising=True
    )


def add_by_pairs(spr: SPR) -> None:
    _, slopes = spr._penalties()
    for parameter, gradient in spr._gradient_pairs(slopes):
        parameter.grad += gradient


def factors(bounds: dict[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    return {name: by * bound for name, bound in bounds.items()}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("alpha", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("per", ["layer", "entity", "number"])
def test_value_and_gradient_are_those_of_the_formula(merged, alpha, per, monkeypatch):
    if merged:
        as_on_an_accelerator(monkeypatch)
    net, groups = streams(), all_groups()
    bounds = (
        {group.name: torch.tensor(0.7) for group in groups}
        if per == "number"
        else factors(SPR.bounds_from(net, groups, per), 0.8)
    )
    spr = SPR(net, 0.7, alpha, bounds, entities=groups)
    wanted = penalty(net, groups, bounds, 0.7, alpha)
    slopes = torch.autograd.grad(wanted, list(net.parameters()), materialize_grads=True)

    value = spr()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
    (2 * value).backward()
    for (name, parameter), slope in zip(net.named_parameters(), slopes, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, 2 * slope, rtol=1e-11, atol=1e-14, msg=name)

    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    spr.add_gradient_()
    for (name, parameter), slope in zip(net.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + slope, rtol=1e-11, atol=1e-12, msg=name)


def test_all_regimes_are_visited():
    net, groups = streams(), all_groups()
    seen = set()
    for alpha in (0.02, 0.3, 0.9):
        bounds = factors(SPR.bounds_from(net, groups), 0.8)
        for value in SPR(net, 1.0, alpha, bounds, groups).entity_values().values():
            seen.update(value.regime.tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("variant", projected.VARIANTS)
def test_under_one_bound_every_variant_is_that_of_the_concatenated_weights(variant):
    net, groups = streams(), all_groups()
    spr = SPR(net, 1.0, ALPHA, 0.5, groups, variant, u="uniform")
    spr().backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    values = spr.entity_values()
    for group in groups:
        for i in range(group.count):
            w = torch.cat(list(entity_weights(dict(net.named_parameters()), group, i).values()))
            slope = torch.cat(list(entity_weights(gradients, group, i).values()))
            row = w.detach().unsqueeze(0)
            torch.testing.assert_close(slope, projected.gradient(row, ALPHA, 0.5, variant)[0])
            expected = projected.closed_form(row, ALPHA, 0.5, variant)
            assert values[group.name].value[i].item() == pytest.approx(expected.value.item())
            assert values[group.name].peak[i] == row.abs().max()
            assert values[group.name].regime[i] == expected.regime


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_against_finite_differences(alpha):
    net, groups = streams(), all_groups()
    bounds = factors(SPR.bounds_from(net, groups), 0.9)
    spr = SPR(net, 0.7, alpha, bounds, groups)
    spr().backward()
    parameters = [p for p in net.parameters() if p.grad is not None]
    weights = [p.detach().clone() for p in parameters]

    def value_at(step: float) -> float:
        with torch.no_grad():
            for p, w, d in zip(parameters, weights, directions, strict=True):
                p.copy_(w + step * d)
            return spr().item()

    for _ in range(5):
        directions = [torch.randn_like(w) * w for w in weights]
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        difference = (value_at(1e-6) - value_at(-1e-6)) / 2e-6
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("tied", [1.0, 2.0])
def test_ties_share_the_slope_over_layers(tied):
    """The bound of the second layer is ``tied`` times the first's, and so is its largest weight."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    net[0].weight.data = torch.tensor([[0.4, -0.4]], dtype=torch.float64)
    net[1].weight.data = torch.tensor([[0.4 * tied]], dtype=torch.float64)
    group = EntityGroup("0", tuple(Member(f"{i}.weight", 0, one_each(1)) for i in (0, 1)))
    bounds = torch.tensor([[0.5, 0.5 * tied]], dtype=torch.float64)
    spr = SPR(net, 1.0, 0.1, {"0": bounds}, group, u="uniform")
    wanted = penalty(net, [group], {"0": bounds}, 1.0, 0.1)
    slopes = torch.autograd.grad(wanted, list(net.parameters()))
    spr().backward()
    assert spr.entity_values()["0"].regime.item() == projected.Regime.BOUND
    for parameter, slope in zip(net.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-12, atol=0.0)
        parameter.grad = torch.zeros_like(parameter)
    spr.add_gradient_()
    for parameter, slope in zip(net.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("layer", ["narrow", "widen", "depthwise"])
@pytest.mark.parametrize("per", ["layer", "entity"])
def test_a_group_in_one_layer_is_the_layer(layer, per):
    """The same numbers to the last bit, with and without a bias."""
    net = streams()
    module = net.get_submodule(layer)
    rows = one_each(len(module.weight))
    keys = [f"{layer}.{key}" for key, p in module.named_parameters(recurse=False)]
    group = EntityGroup(layer, tuple(Member(key, 0, rows) for key in keys))
    found = []
    for entities in (group, {layer: "filters"}):
        bounds = SPR.bounds_from(net, entities, per)
        spr = SPR(net, 0.7, ALPHA, factors(bounds, 0.8), entities)
        value = spr()
        gradients = torch.autograd.grad(value, list(module.parameters()))
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        spr.add_gradient_()
        values = spr.entity_values()[layer]
        found.append([value, bounds[layer], *values, *gradients, spr.bound, spr.importance])
        for gradient, parameter in zip(gradients, module.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, 1 + gradient, rtol=1e-14, atol=1e-14)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_bounds_belong_to_layers():
    net = streams()
    (group,) = SPR(net, 1.0, ALPHA, 1.0, stream_group()).layers
    assert group.bounded == ("stem", "norm", "widen", "depthwise", "embed")
    bounds = SPR.bounds_from(net, stream_group())["stem"]
    modules = [net.get_submodule(name) for name in group.bounded[:-1]]
    largest = [max(p.abs().max().item() for p in m.parameters()) for m in modules]
    assert bounds.tolist() == [[*largest, net.embed.weight.abs().max().item()]]
    each = SPR.bounds_from(net, stream_group(), per="entity")["stem"]
    assert each.shape == (CHANNELS, 5)
    assert torch.equal(each.amax(0, keepdim=True), bounds)
    assert each[0, 2] == net.widen.weight[0].abs().max().clamp(min=1e-3 * bounds[0, 2])


def test_a_layer_that_is_zero_in_a_group_gets_a_small_bound():
    net = streams()
    nn.init.zeros_(net.widen.weight)
    bounds = SPR.bounds_from(net, stream_group())["stem"]
    assert bounds[0, 2] == 1e-3 * bounds.max()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="of layer 'stem' of the dense network is 0.0"):
        SPR.bounds_from(net, stream_group())


@pytest.mark.parametrize(
    ("bound", "good"),
    [
        (torch.ones(CHANNELS), True),
        (torch.ones(1, 5), True),
        (torch.ones(CHANNELS, 5), True),
        (torch.ones(5), False),
        (torch.ones(CHANNELS, 4), False),
        (torch.ones(CHANNELS, 1), False),
    ],
)
def test_the_shapes_of_bounds(bound, good):
    def make():
        return SPR(streams(), 1.0, ALPHA, {"stem": bound}, stream_group())

    if good:
        assert torch.equal(make().bounds()[0], torch.ones(CHANNELS, 5, dtype=torch.float64))
    else:
        with pytest.raises(ValueError, match="but the layer has 4 entities in 5 layers"):
            make()


def test_slices_beside_entities_have_no_gradient_of_it():
    net = streams()
    spr = SPR(net, 1.0, ALPHA, 0.5, [some_rows_group()])
    spr().backward()
    assert net.narrow.weight.grad[[1, 3]].ne(0).any()
    assert not net.narrow.weight.grad[[0, 2, 4]].any()
    assert net.stem.weight.grad is None


def test_two_groups_share_a_parameter():
    """As the readers of a concatenation do: each group owns some of the columns."""
    net = nn.Sequential(nn.Linear(5, 3)).double()
    first = EntityGroup("a", (Member("0.weight", 1, torch.tensor([[0], [2], [4]])),))
    second = EntityGroup("b", (Member("0.weight", 1, torch.tensor([[3, 1]])),))
    bounds = {"a": torch.tensor(0.3), "b": torch.tensor(0.6)}
    spr = SPR(net, 0.7, ALPHA, bounds, [first, second])
    wanted = penalty(net, [first, second], bounds, 0.7, ALPHA)
    (slope,) = torch.autograd.grad(wanted, [net[0].weight])
    spr().backward()
    torch.testing.assert_close(net[0].weight.grad, slope)
    net[0].weight.grad = None
    spr.add_gradient_()
    torch.testing.assert_close(net[0].weight.grad, slope)


def test_frozen_parameters_count_and_get_no_gradient():
    net, groups = streams(), [stream_group()]
    net.norm.weight.requires_grad_(False)
    spr = SPR(net, 1.0, ALPHA, 0.5, groups)
    wanted = penalty(net, groups, {"stem": 0.5}, 1.0, ALPHA)
    assert spr().item() == pytest.approx(wanted.item(), rel=1e-12)
    spr().backward()
    through = net.stem.weight.grad.clone()
    net.zero_grad()
    spr.add_gradient_()
    assert net.norm.weight.grad is None
    torch.testing.assert_close(net.stem.weight.grad, through)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype):
    net, groups = streams(dtype), all_groups()
    spr = SPR(net, 1.0, ALPHA, 0.5, groups)
    reference = streams()
    with torch.no_grad():
        for p, q in zip(reference.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    wanted = penalty(reference, groups, {g.name: 0.5 for g in groups}, 1.0, ALPHA)
    wanted.backward()
    value = spr()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    value.backward()
    through = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    spr.add_gradient_()
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            rounded = parameter.grad.to(dtype)
            torch.testing.assert_close(through[name], rounded, rtol=1e-2, atol=1e-4)
            found = net.get_parameter(name).grad
            torch.testing.assert_close(found, rounded, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_go_on(through):
    net, groups = streams(), all_groups()
    spr = SPR(net, 0.7, ALPHA, SPR.bounds_from(net, groups), groups)
    other_net, other = through((net, spr))
    with torch.no_grad():
        for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
            p.mul_(0.5)
            q.mul_(0.5)
    assert other().item() == spr().item()
    assert not list(other.parameters())
    assert set(other.state_dict()) == {"_lam", "bound", "importance"}


def test_a_state_dict_round_trip():
    net, groups = streams(), all_groups()
    spr = SPR(net, 0.7, ALPHA, SPR.bounds_from(net, groups), groups, u="uniform")
    other = SPR(net, 0.1, ALPHA, 1.0, groups)
    other.load_state_dict(spr.state_dict())
    assert other().item() == spr().item()


def test_names_values_and_importances_follow_the_groups():
    net, groups = streams(), all_groups()
    u = {"stem": 1.0, "qkv": torch.tensor([2.0, 3.0]), "narrow": 4.0}
    spr = SPR(net, 1.0, ALPHA, 1.0, groups, u=u)
    values = spr.entity_values()
    assert list(values) == ["stem", "qkv", "narrow"]
    assert values["qkv"].importance.tolist() == [2, 3]
    assert [len(value.norm) for value in values.values()] == [4, 2, 2]
    for group in groups:
        for i in range(group.count):
            weights = entity_weights(dict(net.named_parameters()), group, i)
            norm = torch.cat(list(weights.values())).norm().item()
            assert values[group.name].norm[i].item() == pytest.approx(norm, rel=1e-12)
    sizes = {layer.name: layer.sizes.tolist() for layer in spr.layers}
    assert sizes["stem"] == [18 + 1 + 1 + 1 + 5 + 9 + 1 + 28] * 4
    assert sizes["qkv"] == [9 * 7 + 9 + 9] * 2


@pytest.mark.slow
def test_compiled_passes_change_nothing():
    net, groups = streams(), all_groups()
    bounds = factors(SPR.bounds_from(net, groups), 0.8)
    plain, compiled = (SPR(net, 0.7, ALPHA, bounds, groups) for _ in range(2))
    compiled.compile()
    found = []
    for spr in (plain, compiled):
        net.zero_grad()
        spr.add_gradient_()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
        assert spr().item() == pytest.approx(plain().item(), rel=1e-12)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.gpu
def test_an_accelerator_agrees_with_the_cpu():
    groups = all_groups()
    found = []
    for device in ("cpu", "cuda"):
        net = streams().to(device)
        spr = SPR(net, 0.7, ALPHA, factors(SPR.bounds_from(net, groups), 0.8), groups)
        value = spr()
        value.backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.grad = -parameter.grad
        spr.add_gradient_()
        largest = max(p.grad.abs().max().item() for p in net.parameters() if p.grad is not None)
        assert largest < 1e-12
        found.append(value.item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_heads_need_no_order():
    """The rows of q, k and v of a head in any order are the same entity."""
    net, group = streams(), head_group()
    mixed = [Member(m.parameter, m.dim, m.index.flip(1)) for m in group.members]
    apart = [Member(m.parameter, m.dim, i) for m in mixed for i in m.index.split(3, dim=1)]
    assert len(apart) == 3 + 3 + 1
    values = [
        SPR(net, 1.0, ALPHA, 0.5, EntityGroup("qkv", tuple(members), "heads"))().item()
        for members in (group.members, mixed, apart)
    ]
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-14)


@st.composite
def random_groups(draw: st.DrawFn) -> list[EntityGroup]:
    """Slices of some parameters, each along one dimension, dealt to the entities of some groups."""
    shapes = {name: p.shape for name, p in streams().named_parameters()}
    counts = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    members: list[list[Member]] = [[] for _ in counts]
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True)):
        dim = draw(st.integers(0, len(shapes[name]) - 1))
        left = draw(st.permutations(range(shapes[name][dim])))
        for group, count in zip(members, counts, strict=True):
            each = draw(st.integers(0, 3))
            dealt, left = left[: count * each], left[count * each :]
            if len(dealt) == count * each > 0:
                group.append(Member(name, dim, torch.tensor(dealt).view(count, each)))
    groups = [EntityGroup(str(i), tuple(m)) for i, m in enumerate(members) if m]
    assume(groups)
    return groups


@given(groups=random_groups(), alpha=st.sampled_from([0.02, 0.3, 0.9]))
@settings(max_examples=100)
def test_random_groups(groups, alpha):
    net = streams()
    bounds = factors(SPR.bounds_from(net, groups), 0.8)
    spr = SPR(net, 0.7, alpha, bounds, groups)
    wanted = penalty(net, groups, bounds, 0.7, alpha)
    slopes = torch.autograd.grad(wanted, list(net.parameters()), materialize_grads=True)
    assert spr().item() == pytest.approx(wanted.item(), rel=1e-12)
    spr().backward()
    through = [p.grad for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    spr.add_gradient_()
    for parameter, found, slope in zip(net.parameters(), through, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-11, atol=1e-14)
        if found is not None:
            torch.testing.assert_close(found, slope, rtol=1e-11, atol=1e-14)
        else:
            assert not slope.any()
