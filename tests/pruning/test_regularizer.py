"""SPR on networks: values and gradients against the formula, layer by layer, in every setting."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models.resnet_cifar import resnet20
from models.toy import convnet, mlp
from spr_or.formulations import entities, projected
from spr_or.pruning import gradient_passes_cpu
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.regularizer import SPR

ALPHA = 0.3
# Norms of single entities differ by 1e5 across these scales, which visits all three regimes.
SCALES = (1e-3, 0.03, 0.3, 2.0)


class TwoConvs(nn.Module):
    """Convolutions of several shapes, one grouped, one with a bias, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 1)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.conv3(x).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def network() -> TwoConvs:
    torch.manual_seed(3)
    net = TwoConvs().double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
            rows = parameter.shape[0]
            scale = torch.tensor(
                [SCALES[i % len(SCALES)] for i in range(rows)], dtype=torch.float64
            )
            parameter.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))
    return net


def unit_parameters(net: nn.Module, name: str, kind: str) -> dict[str, Tensor]:
    """What the entities of a layer are made of: the weight, and the bias of filters and neurons."""
    module = net.get_submodule(name)
    found = {f"{name}.weight": module.weight}
    if kind != "input_channels" and module.bias is not None:
        found[f"{name}.bias"] = module.bias
    return found


def rows_of(parts: dict[str, Tensor], kind: str) -> Tensor:
    """The entities of a layer as rows, written with loops: what SPR's views must agree with."""
    weight, *bias = parts.values()
    if kind == "input_channels":
        return torch.stack([weight[:, i].reshape(-1) for i in range(weight.shape[1])])
    return torch.stack(
        [
            torch.cat([weight[i].reshape(-1), *(b[i].reshape(1) for b in bias)])
            for i in range(weight.shape[0])
        ]
    )


def expected(
    net: nn.Module, layers: dict[str, str], lam: float, M: dict[str, Tensor], variant: str
) -> tuple[float, dict[str, Tensor]]:
    """SPR and its gradient from projected.value and projected.gradient, one entity after another."""
    parts = {name: unit_parameters(net, name, kind) for name, kind in layers.items()}
    total = sum(tensor.numel() for unit in parts.values() for tensor in unit.values())
    value, gradients = 0.0, {}
    for name, kind in layers.items():
        rows = rows_of(parts[name], kind).detach()
        bound = M[name].to(rows)
        share = rows.shape[1] / total
        slopes = torch.empty_like(rows)
        for i, row in enumerate(rows):
            m = bound if bound.dim() == 0 else bound[i]
            value += lam * share * projected.value(row[None], ALPHA, m, variant).item()
            slopes[i] = lam * share * projected.gradient(row[None], ALPHA, m, variant)[0]
        shape = parts[name][f"{name}.weight"].shape
        if kind == "input_channels":
            back = slopes.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        else:
            k = shape[1:].numel()
            back = slopes[:, :k].reshape(shape)
            if len(parts[name]) == 2:
                gradients[f"{name}.bias"] = slopes[:, k]
        gradients[f"{name}.weight"] = back
    return value, gradients


def gradients_of(net: nn.Module, layers: dict[str, str]) -> dict[str, Tensor]:
    return {
        name: tensor.grad.clone()
        for layer, kind in layers.items()
        for name, tensor in unit_parameters(net, layer, kind).items()
    }


FILTERS = {"conv1": "filters", "conv2": "filters", "conv3": "filters"}
CASES = {
    "filters": ("filters", FILTERS),
    "neurons": ("neurons", {"hidden": "neurons"}),
    "input_channels": (
        "input_channels",
        {"conv1": "input_channels", "conv2": "input_channels", "conv3": "input_channels"},
    ),
    "combined": (["filters", "neurons"], FILTERS | {"hidden": "neurons"}),
    "chosen": (
        {"conv3": "filters", "conv2": "input_channels", "head": "neurons"},
        {"conv2": "input_channels", "conv3": "filters", "head": "neurons"},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", projected.VARIANTS)
@pytest.mark.parametrize("per", ["layer", "entity"])
@pytest.mark.parametrize("way", ["compare", "search", "merge"])
def test_value_and_gradient_are_those_of_the_formula(case, variant, per, way, monkeypatch):
    if way == "search":  # what a CPU does for large layers
        monkeypatch.setattr(gradient_passes_cpu, "_LARGE", 0)
    if way == "merge":  # what an accelerator does: layers of one shape in one tensor
        monkeypatch.setattr(SPR, "_batches", lambda self: self._runs)
        monkeypatch.setattr(SPR, "_targets", lambda self, xs: [None] * len(xs))
    spec, names = CASES[case]
    net = network()
    M = {k: 0.6 * v for k, v in SPR.bounds_from(net, spec, per).items()}
    spr = SPR(net, 0.7, ALPHA, M, entities=spec, variant=variant)
    value, slopes = expected(net, names, 0.7, M, variant)

    penalty = spr()
    penalty.backward()
    assert penalty.dtype == torch.float64
    assert penalty.item() == pytest.approx(value, rel=1e-12)
    for name, gradient in gradients_of(net, names).items():
        torch.testing.assert_close(gradient, slopes[name], rtol=1e-11, atol=1e-14)

    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    spr.add_gradient_()
    for name, gradient in gradients_of(net, names).items():
        torch.testing.assert_close(gradient - 1, slopes[name], rtol=1e-11, atol=1e-12)
    touched = gradients_of(net, names)
    for name, parameter in net.named_parameters():
        if name not in touched:
            assert torch.equal(parameter.grad, torch.ones_like(parameter))


def test_all_regimes_are_visited():
    net = network()
    values = SPR(net, 0.7, ALPHA, 0.5, entities=["filters", "neurons"]).entity_values()
    seen = torch.cat([v.regime for v in values.values()]).unique().tolist()
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_against_finite_differences(alpha):
    net = network()
    spr = SPR(net, 0.7, alpha, 0.5, entities=["filters", "neurons"], u="uniform")
    spr().backward()
    weights = [net.conv1.weight, net.conv2.weight, net.hidden.weight]
    generator = torch.Generator().manual_seed(5)
    for weight in weights:
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * weight
        h = 1e-6
        with torch.no_grad():
            weight.add_(h * direction)
            up = spr().item()
            weight.sub_(2 * h * direction)
            down = spr().item()
            weight.add_(h * direction)
        slope = (weight.grad * direction).sum().item()
        assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("large", [0, gradient_passes_cpu._LARGE])
def test_ties_share_the_slope_of_the_maximum(large, monkeypatch):
    monkeypatch.setattr(gradient_passes_cpu, "_LARGE", large)
    net = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False)).double()
    weight = torch.tensor([[0.4, -0.4], [0.4, 0.1], [0.0, 0.0], [-0.4, -0.4]])
    net[0].weight.data = weight.double().view(4, 2, 1, 1)
    spr = SPR(net, 1.0, 0.01, 1.0, u="uniform")
    spr.add_gradient_()
    gradient = net[0].weight.grad.view(4, 2)
    assert torch.equal(spr.entity_values()["0"].regime[[0, 1, 3]], torch.ones(3).long())
    torch.testing.assert_close(gradient, projected.gradient(weight.double(), 0.01, 1.0))
    # By hand: radial 2 alpha / y, and the peak's slope (1 - alpha - alpha a^2 / y^2) / M in halves.
    radial, pull = 2 * 0.01 / 0.4, (0.99 - 0.01 * 0.32 / 0.16) / 2
    assert gradient[0].tolist() == pytest.approx([0.4 * radial + pull, -0.4 * radial - pull])


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-20, 1e-15, 1e10])
@pytest.mark.parametrize("large", [0, gradient_passes_cpu._LARGE])
def test_extreme_weights_give_finite_gradients(scale, large, monkeypatch):
    monkeypatch.setattr(gradient_passes_cpu, "_LARGE", large)
    net = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False))
    with torch.no_grad():
        net[0].weight.normal_().mul_(scale)
    spr = SPR(net, 100.0, 0.1, 1.0, u="uniform")
    spr.add_gradient_()
    assert spr().isfinite()
    gradient = net[0].weight.grad
    assert gradient.isfinite().all()
    if scale >= 1e-15:  # below, squares underflow in float32
        rows = net[0].weight.detach().flatten(1)
        torch.testing.assert_close(
            gradient.flatten(1), 100 * projected.gradient(rows, 0.1, 1.0), rtol=1e-4, atol=0
        )


def test_positions_give_the_same_as_slices():
    net = network()
    index = entities.parameter_indices(net)
    groups = [
        [j for part in ("weight", "bias") if f"{name}.{part}" in index
         for j in index[f"{name}.{part}"][i].flatten().tolist()]
        for name in FILTERS for i in range(len(index[f"{name}.weight"]))
    ]  # fmt: skip
    assert groups == entities.filters(net)
    by_name = SPR(net, 0.7, ALPHA, 0.5)
    by_position = SPR(net, 0.7, ALPHA, 0.5, entities=groups)
    assert by_position().item() == pytest.approx(by_name().item(), rel=1e-12)
    by_name.add_gradient_()
    reference = gradients_of(net, FILTERS)
    net.zero_grad()
    by_position.add_gradient_()
    for name, gradient in gradients_of(net, FILTERS).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-11, atol=1e-14)
    # The package's own partitions carry biases, in entities of unequal size.
    groups = entities.filters(net)
    with_bias = SPR(net, 0.7, ALPHA, 0.5, entities=groups, u="uniform")
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    rows = [theta[group][None] for group in groups]
    total = sum(projected.value(row, ALPHA, 0.5).item() for row in rows)
    assert with_bias().item() == pytest.approx(0.7 * total, rel=1e-12)


def test_positions_in_another_order_than_the_weight():
    """As many rows as the weight has, of its length: yet they must not be taken for its rows."""
    net = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    groups = [[8, 9, 10, 11], [0, 5, 2, 3], [4, 1, 6, 7]]
    spr = SPR(net, 0.7, ALPHA, 0.5, entities=groups, u="uniform")
    theta = net[0].weight.detach().flatten()
    expected = torch.zeros(12).double()
    for group in groups:
        expected[group] = 0.7 * projected.gradient(theta[group][None], ALPHA, 0.5)[0]
    spr.add_gradient_()
    torch.testing.assert_close(net[0].weight.grad.flatten(), expected)


def test_batch_norm_enters_the_entity_when_asked():
    net = network()
    spr = SPR(net, 0.7, ALPHA, 0.5, include_norm=True, u="uniform")
    total = 0.0
    for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2), (net.conv3, None)):
        rows = conv.weight.detach().flatten(1)
        if conv.bias is not None:
            rows = torch.cat([rows, conv.bias.detach()[:, None]], 1)
        if norm is not None:
            rows = torch.cat([rows, norm.weight[:, None], norm.bias[:, None]], 1).detach()
        total += projected.value(rows, ALPHA, 0.5).sum().item()
        if norm is net.bn1:
            slopes = 0.7 * projected.gradient(rows, ALPHA, 0.5)
    assert spr().item() == pytest.approx(0.7 * total, rel=1e-12)
    spr.add_gradient_()
    torch.testing.assert_close(net.conv1.weight.grad.flatten(1), slopes[:, :-2])
    torch.testing.assert_close(net.bn1.weight.grad, slopes[:, -2])
    torch.testing.assert_close(net.bn1.bias.grad, slopes[:, -1])
    assert spr.layers[0].sizes.tolist() == [29] * 8
    bound = SPR.bounds_from(net, include_norm=True)["conv1"]
    assert bound == max(p.abs().max() for p in (net.conv1.weight, net.bn1.weight, net.bn1.bias))


def test_loss_plus_spr_equals_adding_the_gradient():
    net, x = network(), torch.randn(6, 3, 5, 5, dtype=torch.float64)
    target = torch.arange(6) % 4
    spr = SPR(net, 0.7, ALPHA, 0.5)
    loss = nn.functional.cross_entropy(net(x), target)
    (loss + spr()).backward()
    together = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    nn.functional.cross_entropy(net(x), target).backward()
    spr.add_gradient_()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-11, atol=1e-13)


def test_upstream_gradient_scales():
    net = network()
    spr = SPR(net, 0.7, ALPHA, 0.5)
    spr.add_gradient_()
    single = gradients_of(net, FILTERS)
    net.zero_grad()
    (65536.0 * spr()).backward()
    for name, gradient in gradients_of(net, FILTERS).items():
        torch.testing.assert_close(gradient, 65536.0 * single[name])


def test_float32_under_autocast_and_for_bfloat16_weights():
    net = network().float()
    reference, slopes = expected(
        network(), FILTERS, 0.7, {name: torch.tensor(0.5) for name in FILTERS}, "exact"
    )
    spr = SPR(net, 0.7, ALPHA, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(torch.randn(2, 3, 4, 4)).float().sum() * 0 + spr()
        spr.add_gradient_()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference, rel=1e-5)
    for name, gradient in gradients_of(net, FILTERS).items():
        torch.testing.assert_close(gradient.double(), slopes[name], rtol=1e-4, atol=1e-7)

    half = network().bfloat16()
    rounded = copy.deepcopy(half).double()
    reference, slopes = expected(
        rounded, FILTERS, 0.7, {name: torch.tensor(0.5) for name in FILTERS}, "exact"
    )
    spr = SPR(half, 0.7, ALPHA, 0.5)
    penalty = spr()
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(reference, rel=1e-5)
    penalty.backward()
    for way in ("backward", "add_gradient_"):
        if way == "add_gradient_":
            half.zero_grad()
            spr.add_gradient_()
        for name, gradient in gradients_of(half, FILTERS).items():
            assert gradient.dtype == torch.bfloat16
            torch.testing.assert_close(gradient.double(), slopes[name], rtol=2**-8, atol=1e-7)


def test_channels_last_weights_are_read_where_they_lie():
    net, last = network(), network().to(memory_format=torch.channels_last)
    for model in (net, last):
        model.conv3.bias = None  # conv2 keeps its own, which stands beside the weight
    reference = SPR(net, 0.7, ALPHA, 0.5)
    reference.add_gradient_()
    slopes = gradients_of(net, FILTERS)
    spr = SPR(last, 0.7, ALPHA, 0.5)
    own = {
        layer.name: x.data_ptr() for layer, (x, *_) in zip(spr.layers, spr.gather(), strict=True)
    }
    read_in_place = [name for name in FILTERS if own[name] == getattr(last, name).weight.data_ptr()]
    assert read_in_place == [*FILTERS]
    assert spr().item() == pytest.approx(reference().item(), rel=1e-12)
    spr().backward()
    for name, gradient in gradients_of(last, FILTERS).items():
        if gradient.dim() == 4:
            assert gradient.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(gradient, slopes[name])
    last.zero_grad()
    spr.add_gradient_()
    for name, gradient in gradients_of(last, FILTERS).items():
        torch.testing.assert_close(gradient, slopes[name])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_searching_blocks_finds_every_weight_at_the_maximum(memory_format, kernel, monkeypatch):
    """Entities long enough for several blocks, with ties inside one block and across blocks."""
    monkeypatch.setattr(gradient_passes_cpu, "_LARGE", 0)
    net = nn.Sequential(nn.Conv2d(128, 6, kernel, bias=False)).double()
    k = 128 * kernel**2
    rows = 0.1 * torch.randn(6, k).double().clamp(-3, 3)
    rows[1, [3, 5]] = torch.tensor([0.5, -0.5]).double()  # in one block
    rows[2, [3, k - 1, k // 2]] = 0.5  # in several
    rows[3] = 0.5
    rows[4] = 0.0
    net[0].weight.data = rows.clone().view(6, 128, kernel, kernel)
    net = net.to(memory_format=memory_format)
    # At this alpha rows are in BOUND, the fourth in FULL.
    spr = SPR(net, 2.0, 1e-3, 0.7, u="uniform")
    regimes = spr.entity_values()["0"].regime.tolist()
    assert regimes[:3] == [1, 1, 1]
    for start in (0.0, 3.0):
        net[0].weight.grad = torch.full_like(net[0].weight, start)
        spr.add_gradient_()
        expected = start + 2.0 * projected.gradient(rows, 1e-3, 0.7)
        torch.testing.assert_close(net[0].weight.grad.flatten(1), expected)
    # A gradient in another memory order than the weight's.
    net[0].weight.grad = torch.zeros(6, 128, kernel, kernel).double()
    spr.add_gradient_()
    torch.testing.assert_close(net[0].weight.grad.flatten(1), expected - 3.0)


def test_no_graph_and_frozen_layers():
    net = network()
    net.conv2.weight.requires_grad_(False)
    spr = SPR(net, 0.7, ALPHA, 0.5)
    spr.add_gradient_()
    assert net.conv2.weight.grad is None
    assert net.conv1.weight.grad is not None
    assert net.conv1.weight.grad.grad_fn is None
    net.zero_grad()
    spr().backward()
    assert net.conv2.weight.grad is None
    assert net.conv1.weight.grad is not None
    with torch.no_grad():
        assert not spr().requires_grad


def test_changing_weights_between_value_and_backward_is_an_error():
    net = network()
    penalty = SPR(net, 0.7, ALPHA, 0.5)()
    with torch.no_grad():
        net.conv1.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        penalty.backward()


def test_lambda_is_scheduled_in_place():
    net = network()
    spr = SPR(net, 0.7, ALPHA, 0.5)
    address = spr.lam.data_ptr()
    value = spr().item()
    spr.lam = 1.4
    assert spr().item() == pytest.approx(2 * value)
    spr.lam = torch.tensor(0.0)
    assert spr().item() == 0.0
    assert spr.lam.data_ptr() == address
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lam must be"):
            spr.lam = bad


def test_state_dict_round_trip():
    net = network()
    spr = SPR(net, 0.7, ALPHA, SPR.bounds_from(net, per="entity"))
    other = SPR(net, 0.1, ALPHA, 1.0, u="uniform")
    assert not list(spr.parameters())
    assert other().item() != pytest.approx(spr().item())
    other.load_state_dict(spr.state_dict())
    assert other().item() == spr().item()
    assert sum(v.numel() for v in spr.state_dict().values()) == 1 + 2 * 22


def test_half_precision_module_still_computes_in_float32():
    net = network().float()
    spr = SPR(net, 0.7, ALPHA, 0.5).to(torch.bfloat16)
    assert spr().dtype == torch.float32


def test_entity_values_report_layers_in_their_order():
    net = resnet20()
    bounds = SPR.bounds_from(net)
    values = SPR(net, 0.5, ALPHA, bounds).entity_values()
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(values) == convs
    for name, v in values.items():
        rows = net.get_submodule(name).weight.detach().flatten(1)
        torch.testing.assert_close(v.norm, rows.norm(dim=1))
        torch.testing.assert_close(v.peak, rows.abs().amax(1))
        assert torch.equal(v.regime, projected.regime(rows, ALPHA, bounds[name]))
        torch.testing.assert_close(v.value, projected.value(rows, ALPHA, bounds[name]))
        torch.testing.assert_close(v.indicator, projected.indicator(rows, ALPHA, bounds[name]))
        assert torch.equal(v.bound, bounds[name].expand(len(rows)))
        share = rows.shape[1] / sum(net.get_submodule(n).weight.numel() for n in convs)
        torch.testing.assert_close(v.importance, torch.full((len(rows),), share))


def test_importances():
    net = mlp(4, hidden=[3, 2], num_classes=2)
    given = {"1": 2.0, "3": torch.tensor([0.0, 1.0])}
    by_name = SPR(net, 1.0, ALPHA, 1.0, "neurons", u=given)
    flat = SPR(net, 1.0, ALPHA, 1.0, "neurons", u=torch.tensor([2.0, 2, 2, 0, 1]))
    units = [torch.cat([net[i].weight, net[i].bias[:, None]], 1).detach() for i in (1, 3)]
    rows = projected.value(units[0], ALPHA, 1.0).sum() * 2
    rows = rows + projected.value(units[1], ALPHA, 1.0)[1]
    assert by_name().item() == pytest.approx(rows.item(), rel=1e-6)
    assert flat().item() == by_name().item()
    share = SPR(net, 1.0, ALPHA, 1.0, "neurons").entity_values()
    assert share["1"].importance.tolist() == pytest.approx([5 / 23] * 3)
    assert share["3"].importance.tolist() == pytest.approx([4 / 23] * 2)


def test_bounds_come_from_the_dense_network():
    net = convnet()
    bounds = SPR.bounds_from(net, ["filters", "neurons"])
    assert list(bounds) == ["0", "4", "9"]
    assert bounds["4"] == net[4].weight.abs().max()
    with torch.no_grad():
        net[4].weight[3] = 0
        net[4].bias[3] = 0
        net[4].bias[5] = 7.0
    per_entity = SPR.bounds_from(net, per="entity")["4"]
    assert per_entity[0] == max(net[4].weight[0].abs().max(), net[4].bias[0].abs())
    assert per_entity[3] == pytest.approx(1e-3 * 7)
    assert per_entity[5] == 7 == SPR.bounds_from(net)["4"]
    with torch.no_grad():
        net[4].weight.zero_()
        net[4].bias.zero_()
    with pytest.raises(ValueError, match="layer '4'.*train the dense network"):
        SPR.bounds_from(net)


def test_shared_weights_count_once():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    net[1].weight = net[0].weight
    assert [layer.name for layer in layer_entities(net)] == ["0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(alpha=1.5), "alpha must lie"),
        (dict(variant="exakt"), "variant must be one of"),
        (dict(lam=-1.0), "lam must be"),
        (dict(M=0.0), "M of layer 'conv1' holds 0.0"),
        (dict(M=math.nan), "M of layer 'conv1' holds nan"),
        (dict(M=torch.ones(5)), "does not fit the 22 entities"),
        (dict(M={"conv1": 1.0}), r"missing \['conv2', 'conv3'\]"),
        (dict(M={"conv1": 1.0, "conv2": 1.0, "conv3": 1.0, "fc": 1.0}), r"unknown \['fc'\]"),
        (dict(M={"conv1": 1.0, "conv2": torch.ones(3), "conv3": 1.0}), "'conv2' has shape"),
        (dict(u="parameters"), "u must be 'uniform', 'share'"),
        (dict(u=-1.0), "u of layer 'conv1' holds -1.0"),
        (dict(entities="filter"), "did you mean 'filters'"),
        (dict(entities=["filters", "input_channels"]), "entities overlap"),
        (dict(entities={"conv9": "filters"}), "did you mean 'conv"),
        (dict(entities={"head": "filters"}), "need a convolution, but 'head' is a Linear"),
        (dict(entities=[]), "nothing to regularise"),
        (dict(entities=[[0, 1], [1, 2]]), "overlap"),
        (dict(entities=entities.Entities.of([[0]], 3)), "3 parameters, but the model has"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = dict(lam=1.0, alpha=0.5, M=1.0)
    with pytest.raises(ValueError, match=message):
        SPR(network(), **(good | arguments))


def test_layers_that_cannot_be_entities_are_named():
    with pytest.raises(
        ValueError, match="entities='filters': use 'neurons', which takes every Linear"
    ):
        SPR(mlp(4, hidden=[3], num_classes=2), 1.0, 0.5, 1.0)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    assert SPR(grouped, 1.0, 0.5, 1.0).layers[0].count == 4
    with pytest.raises(
        ValueError, match="entities='neurons': use 'filters', which takes every convolution"
    ):
        SPR(grouped, 1.0, 0.5, 1.0, entities="neurons")
    with pytest.raises(ValueError, match="grouped convolution '0'"):
        SPR(grouped, 1.0, 0.5, 1.0, entities="input_channels")
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)))
    with pytest.raises(ValueError, match="'0' has no plain parameter"):
        SPR(parametrised, 1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="'0' is lazy"):
        SPR(nn.Sequential(nn.LazyConv2d(2, 1)), 1.0, 0.5, 1.0)


def test_a_compiled_model_keeps_its_names():
    net = network()
    compiled = torch.compile(net)
    assert [layer.name for layer in SPR(compiled, 1.0, 0.5, 1.0).layers] == list(FILTERS)


@pytest.mark.slow
def test_compiled_passes_change_nothing():
    net = network()
    spr = SPR(net, 0.7, ALPHA, 0.5)
    value = spr().item()
    spr.add_gradient_()
    slopes = gradients_of(net, FILTERS)
    net.zero_grad()
    try:
        spr.compile()
        compiled = spr()
    except Exception as error:
        pytest.skip(f"torch.compile has no compiler here: {error}")
    compiled.backward()
    assert compiled.item() == pytest.approx(value, rel=1e-12)
    for use in (None, spr.add_gradient_):
        if use is not None:
            net.zero_grad()
            use()
        for name, gradient in gradients_of(net, FILTERS).items():
            torch.testing.assert_close(gradient, slopes[name], rtol=1e-11, atol=1e-14)


@pytest.mark.gpu
def test_a_step_neither_synchronises_nor_escapes_capture():
    device = torch.device("cuda")
    net = network().float().to(device)
    spr = SPR(net, 0.7, ALPHA, 0.5, entities=["filters", "neurons"])
    names = FILTERS | {"hidden": "neurons"}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        for parameter in net.parameters():
            parameter.grad.zero_()
        spr.add_gradient_()

    step()
    slopes = gradients_of(net, names)
    reference = SPR(network().float(), 0.7, ALPHA, 0.5, entities=["filters", "neurons"])
    torch.testing.assert_close(spr().cpu(), reference().detach())
    torch.cuda.set_sync_debug_mode("error")
    try:
        spr.lam = 0.7
        spr.add_gradient_()
        spr().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    spr.lam = 1.4
    graph.replay()
    for name, gradient in gradients_of(net, names).items():
        torch.testing.assert_close(gradient, 2 * slopes[name])


@pytest.mark.parametrize("large", [0, gradient_passes_cpu._LARGE])
def test_weights_and_bias_share_the_slope_of_the_maximum(large, monkeypatch):
    """The maximum in the bias, in the weights, in both, and nothing but zeros."""
    monkeypatch.setattr(gradient_passes_cpu, "_LARGE", large)
    net = nn.Sequential(nn.Conv2d(2, 4, 1)).double()
    net[0].weight.data = torch.tensor([[0.1, -0.2], [0.4, 0.1], [0.4, -0.4], [0, 0]]).double()
    net[0].weight.data = net[0].weight.data.view(4, 2, 1, 1)
    net[0].bias.data = torch.tensor([-0.4, 0.1, 0.4, 0.0]).double()
    rows = torch.cat([net[0].weight.detach().view(4, 2), net[0].bias.detach()[:, None]], 1)
    spr = SPR(net, 1.0, 0.01, 1.0, u="uniform")
    for use in (spr.add_gradient_, lambda: spr().backward()):
        net.zero_grad()
        net[0].weight.grad = torch.zeros_like(net[0].weight)
        net[0].bias.grad = torch.zeros_like(net[0].bias)
        use()
        found = torch.cat([net[0].weight.grad.view(4, 2), net[0].bias.grad[:, None]], 1)
        torch.testing.assert_close(found, projected.gradient(rows, 0.01, 1.0))


def test_a_layer_with_a_bias_is_not_copied():
    """Copying VGG-16's weights to put the biases beside them made a step five times as slow."""
    net = network()
    spr = SPR(net, 0.7, ALPHA, 0.5, entities=["filters", "neurons"])
    for layer, batch in zip(spr.ordered_layers(), spr.gather(), strict=True):
        weight = net.get_submodule(layer.name).weight
        assert batch.weights.data_ptr() == weight.data_ptr()
        assert batch.weights.shape == weight.shape
        bias = net.get_submodule(layer.name).bias
        assert (batch.extra is None) == (bias is None)
