"""The problem: what it accepts and refuses, its objective by hand, and weak duality."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spr_or import SparseTrainingProblem
from spr_or.formulations import bigm, perspective
from spr_or.formulations.entities import filters, neurons
from spr_or.formulations.losses import LOSSES

X = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [1.0, 1.0, 0.5], [2.0, -1.0, 0.0]])
Y = np.array([1.0, -1.0, 0.5, 2.0])
SIGNS = np.array([1.0, -1.0, -1.0, 1.0])
SETTINGS: dict[str, Any] = {"lam": 0.1, "alpha": 0.4, "M": 2.0}


def linear(**changes: Any) -> SparseTrainingProblem:
    arguments = {"X": X, "y": Y, "entities": [[0, 1], [2]], **SETTINGS, **changes}
    return SparseTrainingProblem.linear(**arguments)


def toy_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


def network(**changes: Any) -> SparseTrainingProblem:
    net = changes.get("net", toy_net())
    arguments = {"net": net, "X": X, "y": Y, "entities": [[0, 1, 2, 6], [3, 4, 5, 7]], **SETTINGS}
    return SparseTrainingProblem.network(**{**arguments, **changes})


# --- what is refused, and how it is named --------------------------------------------------------

nan_X, inf_X = X.copy(), X.copy()
nan_X[1, 2], inf_X[3, 0] = math.nan, math.inf

COMMON = [
    ({"X": nan_X}, r"X holds nan at index \(1, 2\)"),
    ({"X": inf_X}, r"X holds inf at index \(3, 0\)"),
    ({"X": [[1.0, 2.0], [3.0]]}, "X is not a rectangular array"),
    ({"X": [["a"]]}, "X is not a rectangular array of numbers"),
    ({"X": np.zeros((0, 3))}, r"X is empty.*\(0, 3\)"),
    ({"X": 3.0}, "X is empty or a single number"),
    ({"y": [1.0, math.nan, 0.0, 0.0]}, r"y holds nan at index \(1,\)"),
    ({"y": Y[:3]}, "X has 4 samples but y has 3"),
    ({"y": np.zeros((4, 1, 1))}, r"y must have shape .*\(4, 1, 1\)"),
    ({"loss": "huber"}, "loss must be one of squared.*'huber'"),
    ({"lam": 0.0}, "lam must be positive, got 0"),
    ({"lam": -1.0}, "lam must be positive, got -1"),
    ({"lam": math.nan}, "lam must be finite, got nan"),
    ({"lam": "much"}, "lam must be a number, got 'much'"),
    ({"alpha": -0.1}, r"alpha must lie in \[0, 1\], got -0.1"),
    ({"alpha": 1.1}, r"alpha must lie in \[0, 1\], got 1.1"),
    ({"alpha": math.nan}, "alpha must be finite, got nan"),
    ({"alpha": None}, "alpha must be a number, got None"),
    ({"M": 0.0}, "M must be positive, got 0 for entity 0"),
    ({"M": [1.0, -2.0]}, "M must be positive, got -2 for entity 1"),
    ({"M": math.nan}, "M must be finite, got nan"),
    ({"M": math.inf}, "M must be finite, got inf"),
    ({"M": [1.0, math.inf]}, "M holds inf at index"),
    ({"M": [1.0, 2.0, 3.0]}, r"M must be .*shape \(2,\), got \(3,\)"),
    ({"M": [[1.0, 2.0]]}, r"M must be .*got \(1, 2\)"),
    ({"M": "big"}, "M must be a number, got 'big'"),
    ({"u": [1.0, 0.0]}, "u must be positive, got 0 for entity 1"),
    ({"u": "parameters"}, "u must be 'uniform', 'share', or positive numbers, got 'parameters'"),
    ({"u": None}, "u must be a number, got None"),
    ({"u": [1.0]}, r"u must be .*shape \(2,\), got \(1,\)"),
    ({"entities": []}, "entities is empty"),
    ({"entities": None}, "entities"),
]


@pytest.mark.parametrize("make", [linear, network])
@pytest.mark.parametrize("changes, message", COMMON, ids=[m for _, m in COMMON])
def test_bad_input_is_named(make: Any, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"X": X[:, 0]}, r"X must have shape \(n, p\), got \(4,\)"),
        ({"X": X[None]}, r"X must have shape \(n, p\), got \(1, 4, 3\)"),
        ({"entities": [[0, 1], [1, 2]]}, "overlap: index 1 .*entity 0 .*entity 1"),
        ({"entities": [[0, 1, 2], []]}, "entity 1 is empty"),
        ({"entities": [[0, 1, 2], [7]]}, "entity 1 holds index 7"),
        ({"entities": [[0], [2]]}, r"cover every column of X: \[1\]|cover every column of X: 1"),
        ({"entities": [[0.5, 1], [2]]}, "entity 0 .*not an integer"),
        ({"y": np.stack([Y, Y], 1), "entities": [[(0, 0), (0, 1), 1], [2.5]]}, "2.5"),
        ({"y": np.stack([Y, Y], 1), "entities": [[(0, 0.5), 1], [2]]}, "0.5"),
        ({"y": np.stack([Y, Y], 1), "entities": [[(0, 2), 1], [2]]}, r"entity 0 holds \(0, 2\)"),
        ({"y": np.stack([Y, Y], 1), "entities": [[(0, 0, 0), 1], [2]]}, r"\(0, 0, 0\)"),
        ({"y": np.stack([Y, Y], 1), "entities": [[(0, 0), 1], [2]]}, "cover every column of X"),
        ({"loss": "hinge", "y": Y}, "y must be -1 or .1 for the hinge loss, got 0.5 at index 2"),
        ({"loss": "logistic", "y": [0, 1, 1, 0]}, "logistic loss, got 0 at index 0"),
        ({"loss": "hinge", "y": np.stack([SIGNS, SIGNS], 1)}, r"\(n,\) for the hinge.*\(4, 2\)"),
        ({"loss": "softmax", "y": [0, 1, -1, 2]}, "class numbers.*got -1 at index 2"),
        ({"loss": "softmax", "y": [0, 1.5, 1, 2]}, "class numbers.*got 1.5 at index 1"),
    ],
)
def test_bad_linear_input_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**changes)


def _conv(*, last: int = 9, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 2, **options), nn.Flatten(), nn.Linear(last, 1))


IMAGES = np.arange(64.0).reshape(4, 1, 4, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"net": nn.Linear(3, 1)}, "must be a torch.nn.Sequential, got Linear"),
        (
            {"net": nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 1))},
            r"layer 1 of the network, Sigmoid\(\), .*known layers are Linear",
        ),
        ({"net": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))}, "layer 1.*BatchNorm1d"),
        ({"net": nn.Sequential(toy_net())}, "layer 0 .*Sequential"),
        ({"net": nn.Sequential(nn.Linear(5, 1))}, r"does not take X of shape \(4, 3\)"),
        ({"net": nn.Sequential(nn.Linear(3, 2))}, r"returns shape \(4, 2\), but y needs \(4, 1\)"),
        ({"net": _conv(padding=1, padding_mode="reflect"), "X": IMAGES}, "layer 0.*padding_mode"),
        (
            {"net": nn.Sequential(nn.Conv2d(2, 2, 2, groups=2)), "X": np.ones((4, 2, 3, 3))},
            "layer 0.*groups=1",
        ),
        ({"net": nn.Sequential(nn.Flatten(0), nn.Linear(12, 1))}, "layer 0.*Flatten"),
        (
            {"net": nn.Sequential(nn.AvgPool2d(3, ceil_mode=True), nn.Flatten()), "X": IMAGES},
            "layer 0.*ceil_mode",
        ),
        ({"entities": [[0, 1], [1, 2]]}, "overlap: index 1"),
        ({"entities": [[0], [99]]}, "entity 1 holds index 99"),
        ({"M_free": 0.0}, "M_free must be positive, got 0"),
        ({"M_free": math.nan}, "M_free must be finite"),
    ],
)
def test_bad_networks_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**changes)


# --- the objective by hand -----------------------------------------------------------------------


def test_linear_objective_by_hand() -> None:
    p = linear(u=[1.0, 2.5])
    w, y = np.array([0.5, -0.25, 1.0]), np.array([0.5, 0.8])
    theta, indicators = torch.from_numpy(w), torch.from_numpy(y)
    fit = ((X @ w - Y) ** 2).mean()
    rows = p.entities.rows(theta)
    squares = np.array([0.25 + 0.0625, 1.0])
    u = np.array([1.0, 2.5])
    mip = fit + 0.1 * (u * (0.4 * squares + 0.6 * y)).sum()
    cone = fit + 0.1 * (u * (0.4 * squares / y + 0.6 * y)).sum()
    assert p.loss_value(theta).item() == pytest.approx(fit)
    assert p.objective(theta, bigm.penalty(rows, indicators, 0.4)).item() == pytest.approx(mip)
    assert p.objective(theta, perspective.penalty(rows, indicators, 0.4)).item() == pytest.approx(
        cone
    )


def test_penalties_agree_at_integer_indicators() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([1.0, 0.0, 0.0])
    assert bigm.penalty(w, y, 0.5)[:2].tolist() == perspective.penalty(w, y, 0.5)[:2].tolist()
    assert perspective.penalty(w, y, 0.5)[2] == math.inf  # w without its indicator


@pytest.mark.parametrize("variant", ["exact", "printed"])
def test_projected_objective_is_the_best_or_worse_perspective(variant: str) -> None:
    """exact: no indicator on a fine grid beats it, and one comes close; printed: it exceeds one."""
    p = linear(alpha=0.1)
    theta = torch.tensor([0.6, -0.3, 0.9], dtype=torch.float64)
    rows = p.entities.rows(theta)
    floor = rows.abs().amax(-1) / p.M
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64).unsqueeze(-1)
    costs = perspective.penalty(rows, torch.maximum(grid, floor), p.alpha)
    best = p.objective(theta, costs.amin(0)).item()
    projected = p.projected_objective(theta, variant).item()
    if variant == "exact":
        assert best - 1e-6 <= projected <= best * (1 + 1e-12)
    else:
        assert projected > best + 1e-2


def test_defaults_and_attributes() -> None:
    p = linear(M=[1.0, 3.0])
    assert p.u.tolist() == [1.0, 1.0] and p.M.tolist() == [1.0, 3.0] and p.convex
    assert (p.n, p.n_outputs, p.X.dtype) == (4, 1, torch.float64)
    assert network(M=[1.0, 3.0]).M_free == 3.0 and network(M_free=9).M_free == 9.0


def test_input_may_be_tensors_lists_or_half_precision() -> None:
    reference = linear()
    for X_ in (X.tolist(), torch.from_numpy(X), torch.from_numpy(X).bfloat16().requires_grad_()):
        assert torch.equal(linear(X=X_).X, reference.X)
    M = torch.tensor([2.0, 2.0])
    assert torch.equal(linear(M=M).M, reference.M)


def test_the_problem_keeps_its_own_data() -> None:
    X_, net = X.copy(), toy_net()
    before = copy.deepcopy(net.state_dict())
    p, q = linear(X=X_), network(net=net, X=X_)
    X_ += 1
    with torch.no_grad():
        net.get_parameter("0.weight").zero_()
    assert np.array_equal(p.X.numpy(), X) and np.array_equal(q.X.numpy(), X)
    assert q.net is not None
    assert torch.equal(q.net.get_parameter("0.weight").float(), before["0.weight"])
    assert net.get_parameter("0.weight").dtype == torch.float32


def test_columns_stand_for_all_outputs_and_pairs_for_one() -> None:
    p = linear(y=np.stack([Y, 2 * Y], 1), entities=[[0], [(1, 0), (1, 1)], [(2, 0)], [(2, 1)]])
    W = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    assert p.entities.rows(W.flatten()).tolist() == [[0, 1], [2, 3], [4, 0], [5, 0]]
    assert torch.equal(p.predict(W.flatten()), p.X @ W)


def test_softmax_counts_its_classes() -> None:
    p = linear(loss="softmax", y=[0, 2, 1, 0])
    assert p.n_outputs == 3 and p.y.dtype == torch.int64 and p.entities.n_parameters == 9
    theta = torch.randn(9, dtype=torch.float64)
    logits = X @ theta.numpy().reshape(3, 3)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(4), [0, 2, 1, 0]])
    assert p.loss_value(theta).item() == pytest.approx(expected)


def test_samples_restrict_the_loss() -> None:
    p = linear()
    theta = torch.randn(3, dtype=torch.float64)
    some = torch.tensor([2, 0])
    expected = ((X[[2, 0]] @ theta.numpy() - Y[[2, 0]]) ** 2).mean()
    assert p.loss_value(theta, some).item() == pytest.approx(expected)


def test_a_batch_of_weights_is_a_batch_of_objectives() -> None:
    p = linear(y=np.stack([Y, 2 * Y], 1), entities=[[0], [1], [2]])
    theta = torch.randn(5, 6, dtype=torch.float64)
    each = torch.stack([p.projected_objective(t) for t in theta])
    torch.testing.assert_close(p.projected_objective(theta), each)


def test_network_predicts_as_the_network_does() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1))
    p = network(net=net, X=IMAGES, entities=filters(net))
    theta = nn.utils.parameters_to_vector(net.parameters()).double()
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(torch.from_numpy(IMAGES))
    torch.testing.assert_close(p.predict(theta).detach(), expected)
    assert not p.convex and len(p.entities.free) == 19


def test_network_objective_is_differentiable_in_theta() -> None:
    net = toy_net()
    p = network(net=net, entities=neurons(net))
    theta = torch.randn(11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(p.projected_objective, theta)


# --- duality -------------------------------------------------------------------------------------


def random_problem(rng: np.random.Generator, loss: str, alpha: float) -> SparseTrainingProblem:
    """Unequal entities over shuffled columns, one M and one u an entity."""
    n, p, q = 12, 7, 2 if loss in ("squared", "absolute") else 1
    order = rng.permutation(p).tolist()
    entities = [order[:3], order[3:4], order[4:6], order[6:]]
    y: np.ndarray = rng.normal(size=(n, q))
    if loss == "softmax":
        y = np.concatenate([[0, 1, 2], rng.integers(0, 3, n - 3)])
    elif loss == "poisson":
        y = np.append(1, rng.poisson(2.0, n - 1))
    elif q == 1:
        y = rng.choice([-1.0, 1.0], n)
    return SparseTrainingProblem.linear(
        rng.normal(size=(n, p)), y, entities, loss, lam=float(10 ** rng.uniform(-3, 1)),
        alpha=alpha, M=10 ** rng.uniform(-1, 1, 4), u=rng.uniform(0.2, 3, 4),
    )  # fmt: skip


def multipliers(p: SparseTrainingProblem, rng: np.random.Generator, count: int) -> Tensor:
    """Random nu (count, n, q) in the domain of the conjugate."""
    shape = (count, p.n, p.n_outputs)
    if p.loss == "squared":
        return torch.from_numpy(rng.normal(size=shape))
    if p.loss == "absolute":
        return torch.from_numpy(rng.uniform(-1, 1, shape))
    if p.loss == "softmax":
        simplex = torch.from_numpy(rng.dirichlet(np.ones(p.n_outputs), shape[:2]))
        return simplex - nn.functional.one_hot(p.y, p.n_outputs)
    if p.loss == "poisson":
        return torch.from_numpy(rng.exponential(2.0, shape)) - p.y
    return -p.y * torch.from_numpy(rng.uniform(0, 1, shape))


@pytest.mark.parametrize("loss", LOSSES)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.5, 1.0]) | st.floats(0.001, 0.999))
@settings(max_examples=40)
def test_no_objective_lies_below_a_dual_bound(loss: str, seed: int, alpha: float) -> None:
    """Weak duality at random multipliers, weights and indicators, on every kind of node."""
    rng = np.random.default_rng(seed)
    p = random_problem(rng, loss, alpha)
    nu = multipliers(p, rng, 30)
    for lower, upper in ((0.0, 1.0), (1.0, 1.0), (0.3, 0.6)):
        y = torch.from_numpy(rng.uniform(lower, upper, (30, 4)))
        box = (p.M * y).unsqueeze(-1)
        rows = torch.from_numpy(rng.uniform(-1, 1, (30, *p.entities.index.shape))) * box
        theta = p.entities.flat(rows * torch.from_numpy(10 ** rng.uniform(-3, 0, (30, 1, 1))))
        primal = p.objective(theta, perspective.penalty(p.entities.rows(theta), y, alpha))
        dual = p.dual_bound(nu, lower, upper)
        assert dual.shape == (30,) and torch.isfinite(dual).all()
        assert dual.max() <= primal.min() + 1e-12 * (1 + primal.min().abs())


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_the_dual_bound_closes_the_gap_at_the_solution(loss: str) -> None:
    """Strong duality: at a minimiser of a smooth problem, nu = the loss gradient proves it so."""
    from spr_or.solvers import conic

    for seed, alpha in ((0, 0.05), (1, 0.6)):
        p = random_problem(np.random.default_rng(seed), loss, alpha)
        solved = conic.solve(p)
        nu = LOSSES[loss].gradient(p.predict(solved.weights), p.y)
        assert p.dual_bound(nu).item() == pytest.approx(solved.objective, rel=1e-4)


def test_fixed_indicators_bound_each_support_of_the_mip() -> None:
    """lower = upper = S bounds training on the support S; the free node bounds them all."""
    rng = np.random.default_rng(4)
    p = random_problem(rng, "squared", 0.3)
    nu = multipliers(p, rng, 200) * 0.3
    free = p.dual_bound(nu)
    for s in range(16):
        y = torch.tensor([float(s >> i & 1) for i in range(4)], dtype=torch.float64)
        node = p.dual_bound(nu, y, y)
        assert (node >= free - 1e-12).all()  # a smaller feasible set
        rows = torch.from_numpy(rng.uniform(-1, 1, (300, *p.entities.index.shape))) * (
            p.M * y
        ).unsqueeze(-1)
        theta = p.entities.flat(rows)
        primal = p.objective(theta, bigm.penalty(p.entities.rows(theta), y, p.alpha))
        assert node.max() <= primal.min() + 1e-12


def test_multipliers_outside_the_domain_bound_nothing() -> None:
    p = linear(y=SIGNS, loss="hinge")
    assert p.dual_bound(torch.full((4, 1), 2.0, dtype=torch.float64)) == -math.inf


def test_networks_have_no_fenchel_bound() -> None:
    with pytest.raises(ValueError, match="only for linear models"):
        network().dual_bound(torch.zeros(4, 1))
