"""ProxSGD: the step of SGD, then the proximal operator on each entity."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.toy import convnet
from spr_or.formulations import projected
from spr_or.pruning import prox_passes
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

ALPHA = 0.3


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return convnet().double()


def set_gradients(net: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (scale * noise).to(parameter.dtype)


def unit_rows(layer: nn.Module, axis: int, with_bias: bool) -> Tensor:
    """The entities of a layer as rows: slices of its weight along ``axis``, and their biases."""
    rows = layer.weight.detach().movedim(axis, 0).flatten(1)
    return torch.cat([rows, layer.bias.detach()[:, None]], 1) if with_bias else rows


@pytest.mark.parametrize("entities", ["filters", "input_channels", ["filters", "neurons"]])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("merged", [False, True])
def test_a_step_is_sgd_then_the_prox_of_every_entity(entities, momentum, merged, monkeypatch):
    if merged:  # what an accelerator does
        monkeypatch.setattr(SPR, "_batches", lambda self: self._runs)
        monkeypatch.setattr(prox_passes, "fits", lambda layers: False)
    net, plain = network(), network()
    M = {k: 0.8 * v for k, v in SPR.bounds_from(net, entities, "entity").items()}
    spr = SPR(net, 20.0, ALPHA, M, entities=entities)
    optimizer = ProxSGD(net, spr, lr=0.1, momentum=momentum, weight_decay=1e-3)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-3)
    set_gradients(net, 1, scale=0.1)
    set_gradients(plain, 1, scale=0.1)
    optimizer.step()
    sgd.step()
    regularised = [layer.name for layer in spr.layers]
    has_bias = {n: entities != "input_channels" and net.get_submodule(n).bias is not None
                for n in regularised}  # fmt: skip
    total = sum(
        net.get_submodule(n).weight.numel() + (net.get_submodule(n).bias.numel() if b else 0)
        for n, b in has_bias.items()
    )
    axis = 1 if entities == "input_channels" else 0
    zeros = 0
    for name in regularised:
        before, after = (
            unit_rows(model.get_submodule(name), axis, has_bias[name]) for model in (plain, net)
        )
        for i in range(len(before)):
            row = before[i : i + 1]
            # Written out: t = lr lambda u / (1 - momentum).
            t = 0.1 * 20.0 * row.numel() / total / (1 - momentum)
            shrunk = projected.prox(row, t, ALPHA, M[name][i])
            torch.testing.assert_close(after[i : i + 1], shrunk)
            zeros += int(not after[i].any())
            assert after[i].abs().max() <= M[name][i] * (1 + 1e-12)
    if momentum == 0.9:
        assert zeros > 0
    names = {f"{name}.weight" for name in regularised}
    names |= {f"{name}.bias" for name in regularised if has_bias[name]}
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        if name not in names:
            assert torch.equal(p, q)


@pytest.mark.parametrize("entities", ["filters", "input_channels"])
def test_a_small_network_moves_as_one_that_is_not_copied_into_rows(entities, monkeypatch):
    """Layers of several widths, in both memory orders; in double precision from the third step on."""
    ends = []
    for most in (2**18, 0):
        monkeypatch.setattr(prox_passes, "_SMALL", most)
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.Linear(7, 5, bias=False),
        )
        net[0].to(memory_format=torch.channels_last)
        bounds = {k: 0.7 * v for k, v in SPR.bounds_from(net, entities).items()}
        optimizer = ProxSGD(net, SPR(net, 3.0, ALPHA, bounds, entities), lr=0.1, momentum=0.9)
        assert (optimizer._plan.rows() is None) == (most == 0)
        for step in range(4):
            if step == 2:
                net.double()
                optimizer.state.clear()
            set_gradients(net, step, scale=0.2)
            optimizer.step()
        ends.append([p.detach() for p in net.parameters()])
    numbers = torch.cat([p.flatten() for p in ends[0]])
    assert 0 < int(numbers.count_nonzero()) < len(numbers)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_prox_is_optimal_for_the_step():
    """No point nearby has a lower ||w - v||^2 / 2 + t z(w): independent of how prox is computed."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False)).double()
    start = net[0].weight.detach().clone().flatten(1)
    spr = SPR(net, 0.5, ALPHA, 0.3, u="uniform")
    optimizer = ProxSGD(net, spr, lr=0.1)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    optimizer.step()
    w = net[0].weight.detach().flatten(1)

    def objective(point: Tensor) -> Tensor:
        return (point - start).square().sum(1) / 2 + 0.05 * projected.value(point, ALPHA, 0.3)

    best = objective(w)
    for _ in range(200):
        nearby = (w + 1e-3 * torch.randn_like(w)).clamp(-0.3, 0.3)
        assert (objective(nearby) >= best - 1e-12).all()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lam", [0.0, 1e-12])
def test_without_lambda_it_is_sgd(nesterov, lam):
    net, plain = network(), network()
    spr = SPR(net, lam, ALPHA, 1e3)
    settings = dict(lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)
    optimizer = ProxSGD(net, spr, **settings)
    sgd = torch.optim.SGD(plain.parameters(), **settings)
    for step in range(5):
        for model in (net, plain):
            set_gradients(model, step)
        optimizer.step()
        sgd.step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_zero_leaves_the_box(dtype):
    net = network().to(dtype)
    start = net[0].weight.detach().clone()
    optimizer = ProxSGD(net, SPR(net, 0.0, ALPHA, 0.1), lr=0.1)
    set_gradients(net, 0, scale=0.0)
    optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), start.clamp(-0.1, 0.1))


def test_a_zero_entity_returns_exactly_when_the_gradient_demands_it():
    """0 is a fixed point iff -g / (lambda u) lies in the subdifferential of z at 0.

    That is when the conjugate z* is 0 there, whatever the momentum.
    """
    threshold = 1 - ALPHA
    # One weight, M = 10: phi(s) = s^2 / (4 alpha) while |s| <= 2 alpha M = 6.
    s = (4 * ALPHA * threshold) ** 0.5
    for factor, returns in ((0.99, False), (1.01, True)):
        net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).double()
        nn.init.zeros_(net[0].weight)
        spr = SPR(net, 2.0, ALPHA, 10.0, u="uniform")
        optimizer = ProxSGD(net, spr, lr=0.01, momentum=0.9)
        for _ in range(300):
            net[0].weight.grad = torch.full_like(net[0].weight, factor * 2.0 * s)
            optimizer.step()
        assert bool(net[0].weight.any()) == returns


def test_scale_is_the_factor_of_the_step():
    outcomes = []
    for settings in (dict(momentum=0.9), dict(momentum=0.9, scale=10.0), dict(scale=10.0)):
        net = network()
        optimizer = ProxSGD(net, SPR(net, 1.0, ALPHA, 1.0), lr=0.1, **settings)
        set_gradients(net, 1)
        optimizer.step()
        outcomes.append(net[0].weight.detach())
    assert torch.allclose(outcomes[0], outcomes[1], rtol=1e-12)
    assert torch.allclose(outcomes[0], outcomes[2], rtol=1e-12)


def test_training_makes_entities_exactly_zero_and_stays_in_the_box():
    net = network().float()
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    bounds = SPR.bounds_from(net, ["filters", "neurons"])
    spr = SPR(net, 2.0, 0.1, bounds, entities=["filters", "neurons"])
    optimizer = ProxSGD(net, spr, lr=0.05, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    values = spr.entity_values()
    norms = torch.cat([v.norm for v in values.values()])
    assert 0 < int((norms == 0).sum()) < len(norms)
    # Zero, or well away from it: no threshold is needed.
    assert norms[norms > 0].min() > 1e-4
    for name, v in values.items():
        assert (v.peak <= v.bound * (1 + 1e-6)).all(), name


def test_channels_last_and_bfloat16_weights():
    results = {}
    for name in ("plain", "channels_last", "bfloat16"):
        net = network().float()
        if name == "channels_last":
            net = net.to(memory_format=torch.channels_last)
        if name == "bfloat16":
            net = net.bfloat16()
        optimizer = ProxSGD(net, SPR(net, 3.0, ALPHA, 0.2), lr=0.1)
        set_gradients(net, 1)
        optimizer.step()
        results[name] = net[4].weight.detach()
        assert results[name].is_contiguous(memory_format=torch.channels_last) == (
            name == "channels_last"
        )
    torch.testing.assert_close(results["channels_last"].contiguous(), results["plain"])
    torch.testing.assert_close(results["bfloat16"].float(), results["plain"], rtol=0.03, atol=2e-3)


def test_layers_may_have_their_own_learning_rates_but_not_split_ones():
    net, spr_of = network(), lambda net: SPR(net, 3.0, ALPHA, 1.0)
    groups = [
        {"params": [*net[0].parameters()], "lr": 0.2},
        {"params": [*net[1:].parameters()]},
    ]
    optimizer = ProxSGD(groups, spr_of(net), lr=0.1)
    start = [unit_rows(net[i], 0, with_bias=True).clone() for i in (0, 4)]
    set_gradients(net, 0, scale=0.0)
    optimizer.step()
    total = sum(w.numel() for w in start)
    for i, w, lr in ((0, start[0], 0.2), (4, start[1], 0.1)):
        t = lr * 3.0 * w.shape[1] / total
        shrunk = unit_rows(net[i], 0, with_bias=True)
        torch.testing.assert_close(shrunk, projected.prox(w, t, ALPHA, 1.0))
    with pytest.raises(ValueError, match="layer '0'.*in no parameter group"):
        ProxSGD([*net[4].parameters()], spr_of(net), lr=0.1)
    with pytest.raises(ValueError, match="layer '4'.*in no parameter group"):  # its bias is missing
        ProxSGD([*net[0].parameters(), net[4].weight], spr_of(net), lr=0.1)


def test_frozen_entities_stay():
    net = network()
    net[0].weight.requires_grad_(False)
    start = net[0].weight.clone()
    optimizer = ProxSGD(net, SPR(net, 3.0, ALPHA, 1.0), lr=0.1)
    set_gradients(net, 1)
    net[0].weight.grad = None
    optimizer.step()
    assert torch.equal(net[0].weight, start)


def test_state_dict_and_scheduler_continue_the_run():
    def run(net, optimizer, scheduler, steps):
        for step in steps:
            set_gradients(net, step)
            optimizer.step()
            scheduler.step()

    def make(net):
        spr = SPR(net, 3.0, ALPHA, 1.0)
        optimizer = ProxSGD(net, spr, lr=0.1, momentum=0.9)
        return spr, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])

    net = network()
    spr, optimizer, scheduler = make(net)
    run(net, optimizer, scheduler, range(3))
    saved = [m.state_dict() for m in (net, spr, optimizer, scheduler)]
    saved = torch.load(_file(saved), weights_only=True)
    run(net, optimizer, scheduler, range(3, 6))

    resumed = network(seed=9)
    others = (resumed, *make(resumed))
    for target, state in zip(others, saved, strict=True):
        target.load_state_dict(state)
    run(resumed, others[2], others[3], range(3, 6))
    assert others[2].param_groups[0]["lr"] == pytest.approx(0.001)
    for p, q in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def _file(content):
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def test_closure_and_bad_arguments():
    net = network()
    spr = SPR(net, 3.0, ALPHA, 1.0)
    optimizer = ProxSGD(net, spr, lr=0.1)

    def closure() -> float:
        set_gradients(net, 1)
        return 1.5

    assert optimizer.step(closure) == 1.5
    with pytest.raises(ValueError, match="variant='exact'"):
        ProxSGD(net, SPR(net, 3.0, ALPHA, 1.0, variant="printed"), lr=0.1)
    with pytest.raises(ValueError, match="scale must be positive"):
        ProxSGD(net, spr, lr=0.1, scale=0.0)
    with pytest.raises(ValueError, match="lr must be finite, got nan"):
        ProxSGD(net, spr, lr=float("nan"))


@pytest.mark.gpu
def test_a_step_does_not_synchronise():
    net, reference = network().float().cuda(), network().float()
    optimizers = [
        ProxSGD(model, SPR(model, 3.0, ALPHA, 1.0), lr=0.1, momentum=0.9)
        for model in (net, reference)
    ]
    for model in (net, reference):
        set_gradients(reference, 1)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.grad = q.grad.to(p.device)
    optimizers[1].step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizers[0].step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("entities", ["filters", "groups"])
def test_after_a_step_everything_can_be_differentiated(entities):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    chosen = "neurons"
    if entities == "groups":
        chosen = chosen_entities(net, torch.zeros(2, 6), "channels").entities
    spr = SPR(net, 0.5, ALPHA, SPR.bounds_from(net, entities=chosen), entities=chosen)
    optimizer = ProxSGD(net, spr, lr=0.1, momentum=0.9)
    x = torch.randn(4, 6)
    loss = net(x).square().sum()
    loss.backward()
    stale = net(x).square().sum()
    optimizer.step()
    zero = optimizer.zero_after_shrinking(1.0)
    assert not zero.is_inference()
    assert not any(p.is_inference() or not p.requires_grad for p in net.parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
    (net(x).square().sum() + spr()).backward()
    spr.add_gradient_()
    copied, _ = copy.deepcopy((optimizer, net))
    copied.step()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in net.parameters())
