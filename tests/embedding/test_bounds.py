"""Bounds of activations: none lies outside, the linear programs tighten, data prove nothing."""

import numpy as np
import pytest
import torch
from embedded_networks import activations, random_network
from spr_or.models.toy import mlp

from spr_or.embedding.api import get_bounds
from spr_or.embedding.bounds import interval_bounds
from spr_or.embedding.errors import EmbeddingError
from spr_or.embedding.lp_bounds import least_values, lp_bounds
from spr_or.embedding.reading import read_network
from spr_or.solvers.time_limit import TimeLimit


def assert_nothing_outside(seed: int, kinds=("interval", "lp"), double: bool = False) -> None:
    """A random network, box and inputs; a third of the boxes are single points."""
    net, shape = random_network(seed)
    net = net.double() if double else net
    dtype = torch.float64 if double else torch.float32
    network = read_network(net, shape)
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(shape, generator=generator)
    radius = torch.rand(shape, generator=generator) * (
        0.0 if seed % 3 == 0 else 10.0 ** (seed % 4 - 2)
    )
    lower, upper = centre - radius, centre + radius
    u = torch.rand((64, *shape), generator=generator)
    u[32:] = u[32:].round()  # corners
    x = torch.minimum(torch.maximum(lower + u * (upper - lower), lower), upper).to(dtype)
    before, after, outputs = activations(net, x)
    for kind in kinds:
        bounds = get_bounds(network, lower.double(), upper.double(), kind)
        assert bounds.safe
        made = torch.cat([x.flatten(1), *after], 1)
        pairs = [*zip(before, bounds.before, strict=True), (outputs.flatten(1), bounds.output)]
        for z, (low, high) in [*pairs, (made, (bounds.lower, bounds.upper))]:
            z = z.double().numpy()
            assert (low <= z).all() and (z <= high).all(), (seed, kind)


@pytest.mark.parametrize("seed", range(12))
def test_no_float_activation_lies_outside(seed):
    assert_nothing_outside(seed)


def test_a_matrix_keeps_its_last_digits_beside_a_large_shift():
    """A float64 network whose norm shifts by hundreds times its weights."""
    assert_nothing_outside(325, double=True)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=pytest.mark.long if first % 250 else pytest.mark.slow)
        for first in range(100, 1100, 50)
    ],
)
def test_no_float_activation_lies_outside_in_a_thousand_networks(first):
    for seed in range(first, first + 50):
        assert_nothing_outside(seed, double=seed % 5 == 0)


def test_without_the_rounding_a_float_activation_lies_outside():
    """What the slack is for: at a single point the exact interval has no width, and torch rounds."""
    net, shape = random_network(3)
    network = read_network(net, shape)
    x = torch.randn(1, *shape)
    exact = interval_bounds(
        type(network)(network.net, shape, network.activations, network.output, 0.0),
        *[x.double().flatten().numpy()] * 2,
    )
    before, _, _ = activations(net, x)
    outside = [
        ((z.double().numpy() < low) | (z.double().numpy() > high)).any()
        for z, (low, high) in zip(before, exact.before, strict=True)
    ]
    assert any(outside)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return read_network(mlp(6, hidden=[10, 10], num_classes=3), (6,))


BOX = (-np.ones(6), np.ones(6))


def test_linear_programs_tighten_and_settle_neurons(network):
    wide, tight = interval_bounds(network, *BOX), lp_bounds(network, *BOX)
    for (low, high), (low2, high2) in zip(wide.before, tight.before, strict=True):
        assert (low2 >= low).all() and (high2 <= high).all()
    first, second = (
        [(high - low).mean() for low, high in bounds.before] for bounds in (wide, tight)
    )
    assert second[0] == first[0] and second[1] < 0.8 * first[1]
    assert tight.undecided(1).sum() <= wide.undecided(1).sum()


def test_when_the_time_is_up_the_intervals_stay(network):
    wide, stopped = interval_bounds(network, *BOX), lp_bounds(network, *BOX, TimeLimit(0))
    for one, two in zip(wide.before, stopped.before, strict=True):
        assert np.array_equal(one, two)


def test_the_least_of_an_output_is_below_all_samples_and_above_the_interval(network):
    bounds = lp_bounds(network, *BOX)
    least = least_values(network, bounds, network.output)
    x = np.random.default_rng(0).uniform(-1, 1, (5000, 6))
    _, outputs = network.evaluate(x)
    assert (least <= outputs.min(0)).all() and (least >= bounds.output[0] - 1e-9).all()
    assert (least > bounds.output[0] + 1e-3).any()
    spent = least_values(network, bounds, network.output, TimeLimit(0))
    np.testing.assert_allclose(spent, bounds.output[0], atol=1e-9)


def test_bounds_from_data_hold_for_the_data_only_and_say_so(network):
    box = [torch.from_numpy(end) for end in BOX]
    x = torch.rand(20, 6) * 0.2
    bounds = get_bounds(network, *box, "data", x)
    assert not bounds.safe
    before, _ = network.evaluate(x.double().numpy())
    for z, (low, high) in zip(before, bounds.before, strict=True):
        assert np.array_equal(low, z.min(0)) and np.array_equal(high, z.max(0))
    others, _ = network.evaluate(np.random.default_rng(1).uniform(-1, 1, (100, 6)))
    assert any(
        (z < low).any() or (z > high).any()
        for z, (low, high) in zip(others, bounds.before, strict=True)
    )


@pytest.mark.parametrize("data", [None, torch.zeros(3, 5), torch.zeros(0, 6)])
def test_bounds_from_data_need_samples_that_fit(network, data):
    with pytest.raises(EmbeddingError, match=r"samples of shape \(n, 6\)"):
        get_bounds(network, torch.zeros(6), torch.ones(6), "data", data)
