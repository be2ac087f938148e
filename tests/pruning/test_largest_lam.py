"""lambda_max of a network: the optimality condition of zero, for all entities and what holds them."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.lam_words import FIXED, START, share_of_max
from spr_or.pruning.largest_lam import Pulls
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

EXAMPLE = torch.zeros(2, 1, 8, 8)
Build = Callable[[], nn.Module]


def pulls_of(model: nn.Module, entities: str, alpha: float = 0.1) -> tuple[SPR, Pulls]:
    spr = SPR(model, 0.0, alpha, SPR.bounds_from(model, entities), entities=entities)
    pulls = Pulls(spr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(32, 1, 8, 8, generator=generator)
        y = torch.randint(10, (32,), generator=generator)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        pulls.add()
    return spr, pulls


def test_at_lambda_max_a_proximal_step_from_zero_stays_at_zero_for_all_entities() -> None:
    """From zero with the pulls as gradients: at 1.001 lambda_max nothing leaves, at 0.999 one does."""
    torch.manual_seed(0)
    model = mlp()
    spr, pulls = pulls_of(model, "neurons")
    step, total = 0.5, 20.0
    largest = pulls.largest_lam(step, total)
    pull = {name: p.detach() / total for name, p in model.named_parameters()}
    for factor, stays in ((1.001, True), (0.999, False)):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        bounds = {
            layer.name: b for layer, b in zip(spr.ordered_layers(), spr.bounds(), strict=True)
        }
        regularizer = SPR(twin, factor * largest, 0.1, bounds, entities="neurons")
        optimizer = ProxSGD(twin, regularizer, lr=0.01)
        for name, p in twin.named_parameters():
            p.grad = -pull[name]
        optimizer.step()
        left = sum(int((v.peak > 0).sum()) for v in regularizer.entity_values().values())
        assert left == 0 if stays else left == 1


def test_the_price_is_what_numpy_finds_without_bounds() -> None:
    """With M out of reach, N(w) = ||w|| / (2 sqrt(alpha (1 - alpha)))."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    spr = SPR(model, 0.0, 0.2, 1e6, entities="neurons")
    rows = np.concatenate(
        [model[1].weight.detach().numpy(), model[1].bias.detach().numpy()[:, None]], 1
    )
    u = rows.shape[1] / rows.size  # the only layer with entities
    expected = np.linalg.norm(rows, axis=1).max() / (2 * np.sqrt(0.2 * 0.8)) / u / 30.0
    assert Pulls(spr).largest_lam(0.1, 30.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("build", [convnet, digits_resnet])
@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_in_front_of_a_batch_norm_noise_decides_and_elsewhere_the_distance(
    build: Build, lr: float
) -> None:
    torch.manual_seed(0)
    model = build()
    spr, pulls = pulls_of(model, "filters")
    lams = pulls.lams(lr, total=1e6)  # so long that the distance does not count
    # The definition, by NumPy, for a filter of the first convolution.
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    place = [layer.name for layer in spr.ordered_layers()].index(name)
    offset = sum(layer.count for layer in spr.ordered_layers()[:place])

    def filter_of(key: str) -> np.ndarray:
        """Weights and bias of the first filter, or their gradients; the bias is part of the entity."""
        layer = model.get_submodule(name)
        tensors = [p.grad if key == "grad" else p.detach() for p in layer.parameters()]
        return np.concatenate([t.numpy()[:1].ravel() for t in tensors])

    weight = filter_of("weight")
    squares = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(32, 1, 8, 8, generator=generator)
        y = torch.randint(10, (32,), generator=generator)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        gradient = filter_of("grad")
        assert abs(gradient @ weight) < 1e-3 * np.linalg.norm(gradient) * np.linalg.norm(weight)
        squares.append(gradient @ gradient)
    shortest = Pulls(spr).lams(lr, total=1.0)[offset]  # N(w) / u
    noise = np.sqrt(np.sqrt(np.mean(squares)) / (lr * np.linalg.norm(weight)))
    assert float(lams[offset]) == pytest.approx(float(shortest) * noise, rel=1e-2)


def test_without_a_normalisation_gradients_change_nothing() -> None:
    torch.manual_seed(0)
    model = mlp()
    spr, pulls = pulls_of(model, "neurons")
    torch.testing.assert_close(pulls.lams(0.1, 7.0), Pulls(spr).lams(0.1, 7.0))


@pytest.mark.parametrize("alpha", [0.1, 0.5])
@pytest.mark.parametrize("steps", [100, 400])
def test_without_a_loss_every_entity_vanishes_within_the_phase(alpha: float, steps: int) -> None:
    torch.manual_seed(0)
    model = mlp()
    spr = SPR(model, 0.0, alpha, SPR.bounds_from(model, "neurons"), entities="neurons")
    optimizer = ProxSGD(model, spr, lr=0.05, momentum=0.9)
    spr.lam = Pulls(spr).largest_lam(0.5, 0.5 * steps)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    taken = 0
    while any(bool((v.peak > 0).any()) for v in spr.entity_values().values()):
        optimizer.step()
        taken += 1
        assert taken <= 1.1 * steps  # many short steps go about as far as a long one
    assert taken > steps / 4


def test_the_model_is_left_as_it_was() -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    addresses = [p.data_ptr() for p in model.parameters()]
    spr = SPR(model, 0.0, 0.1, SPR.bounds_from(model))
    pulls = Pulls(spr)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    pulls.add()
    assert addresses == [p.data_ptr() for p in model.parameters()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_entities_across_layers_have_a_lambda_max_too() -> None:
    torch.manual_seed(0)
    model = digits_resnet()
    bounds = SPR.bounds_from(model, "channels", example=EXAMPLE)
    spr = SPR(model, 0.0, 0.1, bounds, entities="channels", example=EXAMPLE)
    spr.lam = 1.001 * Pulls(spr).largest_lam(0.1, 0.1)
    optimizer = ProxSGD(model, spr, lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # one step is the whole phase
    assert all(bool((v.peak == 0).all()) for v in spr.entity_values().values())


def test_what_has_no_lambda_max_is_refused() -> None:
    model = convnet()
    with pytest.raises(ValueError, match="alpha = 1 puts no price"):
        Pulls(SPR(model, 0.0, 1.0, 1.0)).largest_lam(0.1, 1.0)
    spr = SPR(model, 0.0, 0.1, 1.0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(ValueError, match="no lambda makes an entity zero"):
        Pulls(spr).largest_lam(0.1, 1.0)


@pytest.mark.parametrize(
    ("lam", "share"),
    [
        (3, None),
        (0.0, None),
        ("auto", START),
        (" 0.1 max", 0.1),
        ("2e-1 max", 0.2),
        (".5 max", 0.5),
    ],
)
def test_lambda_is_a_number_a_share_or_auto(lam: float | str, share: float | None) -> None:
    assert share_of_max(lam, budget=True) == share
    if lam == "auto":
        assert share_of_max(lam, budget=False) == FIXED


@pytest.mark.parametrize(
    "lam", ["max", "0 max", "-1 max", "0.1max", "0.1.2 max", "7", "nan max", ""]
)
def test_other_words_are_refused(lam: str) -> None:
    with pytest.raises(ValueError, match='lam must be a number, "auto" or a share'):
        share_of_max(lam, budget=True)


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf"), True])
def test_numbers_that_are_no_lambda_are_refused(lam: float) -> None:
    with pytest.raises(ValueError, match="lam must be a finite number >= 0"):
        share_of_max(lam, budget=True)


def test_a_budget_starts_where_it_would_be_met_if_the_loss_held_little() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4000.0])[:, None].expand(4, 3))
    spr = SPR(net, lam=0.0, alpha=0.0, M=4000.0, entities={"0": "neurons"}, u="uniform")
    # alpha = 0: a step of length t makes w zero iff t >= M ||w||_1, so N = 4000 * 3 w, over T.
    pulls = Pulls(spr)
    assert pulls.largest_lam(0.1, 10.0) == pytest.approx(4000 * 12000 / 10)
    for target, nearest in ((10, 1.0), (25, 1.0), (26, 2.0), (75, 3.0)):
        assert pulls.starting_lam(0.1, 10.0, target) == pytest.approx(4 * 4000 * 3 * nearest / 10)
    # At most a fiftieth of lambda_max, unless that is hopeless even if the loss holds nothing.
    assert pulls.starting_lam(0.1, 10.0, 80) == pytest.approx(0.5 * 4000 * 12000 / 10)
    with torch.no_grad():
        net[0].weight[0] = 0.0  # what is zero already has no distance to go
    assert pulls.starting_lam(0.1, 10.0, 33) == pytest.approx(4 * 4000 * 3 * 2.0 / 10)


def test_a_longer_phase_starts_lower_although_noise_holds_as_before() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
    spr = SPR(net, lam=0.0, alpha=0.1, M=1.0)
    pulls = Pulls(spr)
    for images in torch.randn(3, 8, 1, 6, 6, generator=torch.Generator().manual_seed(0)):
        net.zero_grad()
        net(images).pow(3).mean().backward()
        pulls.add()
    short, long = (pulls.starting_lam(0.5, total, 50) for total in (1e4, 1e6))
    assert short == pytest.approx(100 * long)
    assert pulls.largest_lam(0.5, 1e4) == pulls.largest_lam(0.5, 1e6)
