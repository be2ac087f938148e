"""The list of directions holds the most helpful neuron, and every activation pattern."""

import pytest
import torch

from spr_or.formulations.activation_patterns import Region, arrangement, most_helpful


def samples(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.cat([X, torch.ones(n, 1, dtype=torch.float64)], dim=1)


def random_neurons(count: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    d = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    d = d / d.norm(dim=1, keepdim=True)
    return d, d @ points.T


@pytest.mark.parametrize("n", [3, 5, 9])
def test_the_cones_are_all_patterns_that_a_line_makes(n):
    points = samples(n)
    a = arrangement(points)
    assert len(a.cones) == n * n - n + 2
    assert len(a.faces) == 2 * n * (n - 1)
    listed = {tuple(row) for row in (a.cones > 0).tolist()}
    _, z = random_neurons(20_000, points)
    seen = {tuple(row) for row in (z > 0).unique(dim=0).tolist()}
    assert seen <= listed
    assert len(seen) > 0.8 * len(listed)


@pytest.mark.parametrize("seed", range(8))
def test_no_neuron_helps_more_than_the_one_that_is_found(seed):
    points = samples(8, seed)
    a = arrangement(points)
    generator = torch.Generator().manual_seed(seed)
    nu = torch.randn(8, generator=generator, dtype=torch.float64)
    none = torch.zeros(8, dtype=torch.bool)
    at = torch.eye(8, dtype=torch.bool)
    regions = [
        Region(sign, on, off)
        for sign in (1, -1)
        for on, off in ((none, none), (at[0], at[1]), (at[2] | at[3], none), (none, at[4]))
    ]
    d, z = random_neurons(50_000, points)
    for region, neuron in zip(regions, most_helpful(a, nu, regions), strict=True):
        inside = region.holds(z)
        tried = (-region.sign * (z.clamp(min=0) @ nu))[inside]
        assert neuron is not None and bool(region.holds(neuron.z))
        assert neuron.gain >= float(tried.max()) - 1e-12
        # The finite list is exact, so that a close random neuron comes near.
        assert neuron.gain <= max(0.0, float(tried.max())) + 0.05 * float(nu.abs().sum())
        own = -region.sign * float((points @ neuron.direction).clamp(min=0) @ nu)
        assert neuron.gain == pytest.approx(max(0.0, own), abs=1e-12)


def test_an_empty_region_has_no_neuron():
    points = torch.tensor([[0.0, 0, 1], [2, 0, 1], [0, 2, 1], [0.6, 0.7, 1]], dtype=torch.float64)
    corners, inner = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([0, 0, 0, 1]).bool()
    nu = torch.ones(4, dtype=torch.float64)
    # The fourth sample lies in the triangle of the others: a neuron silent at the corners is silent there.
    region = Region(1, on=inner, off=corners)
    ring = most_helpful(
        arrangement(points), nu, [region, Region(1, on=corners, off=~inner & ~corners)]
    )
    assert ring[0] is None and ring[1] is not None


@pytest.mark.parametrize(
    "X", [[[0, 0], [1, 1], [2, 2], [0, 1]], [[0, 0], [0, 0], [1, 0], [0, 1]]], ids=["line", "equal"]
)
def test_three_samples_on_a_line_are_refused(X):
    points = torch.cat([torch.tensor(X).double(), torch.ones(4, 1).double()], dim=1)
    with pytest.raises(ValueError, match="lie on a line"):
        arrangement(points)


def test_two_samples_are_refused():
    with pytest.raises(ValueError, match="at least three"):
        arrangement(samples(2))
