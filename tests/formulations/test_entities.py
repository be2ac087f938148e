"""Partitions: what they accept, what they refuse, and rows and flat as inverses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from spr_or.formulations import entities
from spr_or.formulations.entities import Entities
from spr_or.formulations.problem import SparseTrainingProblem


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Disjoint index lists of unequal size, with some parameters left over."""
    count = draw(st.integers(1, 30))
    order = draw(st.permutations(range(count)))
    used = draw(st.integers(1, count))
    cuts = sorted(draw(st.sets(st.integers(1, used - 1)))) if used > 1 else []
    bounds = [0, *cuts, used]
    return [order[a:b] for a, b in zip(bounds, bounds[1:], strict=False)], count


@given(partitions())
def test_rows_gather_what_a_loop_would(case: tuple[list[list[int]], int]) -> None:
    groups, count = case
    made = Entities.of(groups, count)
    theta = torch.arange(1.0, count + 1)
    rows = made.rows(theta)
    assert len(made) == len(groups) and made.sizes.tolist() == [len(g) for g in groups]
    for row, group in zip(rows.tolist(), groups, strict=True):
        assert row[: len(group)] == [theta[j].item() for j in group]
        assert row[len(group) :] == [0.0] * (len(row) - len(group))
    assert sorted([*made.free.tolist(), *(j for g in groups for j in g)]) == list(range(count))


@given(partitions(), st.sampled_from([(), (3,), (2, 2)]))
def test_flat_inverts_rows(case: tuple[list[list[int]], int], batch: tuple[int, ...]) -> None:
    groups, count = case
    made = Entities.of(groups, count)
    theta = torch.randn(*batch, count)
    assert torch.equal(made.flat(made.rows(theta), theta[..., made.free]), theta)
    without = made.flat(made.rows(theta))
    assert (without[..., made.free] == 0).all()


def test_rows_keep_dtype_and_gradients() -> None:
    made = Entities.of([[2, 0], [1]], 3)
    assert made.rows(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    theta = torch.randn(3, requires_grad=True)
    (made.rows(theta) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert theta.grad is not None and theta.grad.tolist() == [2.0, 3.0, 1.0]


def test_any_integers_in_any_iterables_will_do() -> None:
    made = Entities.of((np.array([0, 2]), {1}, range(3, 5), torch.tensor([5])), 6)
    assert made.groups == ((0, 2), (1,), (3, 4), (5,))


@pytest.mark.parametrize(
    "groups, message",
    [
        ([], "entities is empty"),
        ([[0], []], "entity 1 is empty"),
        ([[0, 1], [2, 1]], "overlap: index 1 is in entity 0 and in entity 1"),
        ([[0, 2, 0]], "entity 0 holds index 0 twice"),
        ([[0], [4]], r"entity 1 holds index 4, outside the 4 parameters 0\.\.3"),
        ([[-1]], "entity 0 holds index -1"),
        ([[0.5]], r"entity 0 .*not an integer: \[0.5\]"),
        ([["a"]], r"entity 0 .*not an integer: \['a'\]"),
        ([[float("nan")]], r"entity 0 .*not an integer"),
        ([[float("inf")]], r"entity 0 .*not an integer"),
        ([[None]], r"entity 0 .*not an integer: \[None\]"),
        ([0, 1], "entity 0 must be a collection of indices, got 0"),
    ],
)
def test_bad_partitions_are_named(groups: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Entities.of(groups, 4)


def test_columns_in_groups() -> None:
    assert entities.features(3) == [[0], [1], [2]]
    assert entities.groups(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    for p, size in ((0, 1), (3, 0), (-2, 1)):
        with pytest.raises(ValueError, match=f"p={p}, size={size}"):
            entities.groups(p, size)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3, bias=False), nn.ReLU(),
        nn.Linear(3, 2),
    )  # fmt: skip


def test_parameter_indices_follow_torch(net: nn.Sequential) -> None:
    theta = parameters_to_vector(net.parameters())
    for name, index in entities.parameter_indices(net).items():
        assert torch.equal(theta[index], net.get_parameter(name))


def test_neurons_own_their_incoming_weights_and_bias(net: nn.Sequential) -> None:
    """Zeroing an entity must silence that neuron and nothing else before it."""
    found = entities.neurons(net)
    assert len(found) == 3  # not the outputs
    theta = parameters_to_vector(net.parameters()).detach()
    layer = net.get_submodule("3")
    for o, group in enumerate(found):
        assert torch.equal(theta[group], layer.get_parameter("weight")[o])


def test_filters_own_kernel_and_bias(net: nn.Sequential) -> None:
    found = entities.filters(net)
    theta = parameters_to_vector(net.parameters()).detach()
    conv = net.get_submodule("0")
    for o, group in enumerate(found):
        expected = torch.cat(
            [conv.get_parameter("weight")[o].flatten(), conv.get_parameter("bias")[o : o + 1]]
        )
        assert torch.equal(theta[group], expected)


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer of the kind"):
        entities.filters(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="no layer of the kind"):
        entities.neurons(nn.Sequential(nn.Linear(2, 2)))  # the last layer is not prunable


def test_neurons_of_a_single_module() -> None:
    assert entities.filters(nn.Conv2d(1, 2, 1)) == [[0, 2], [1, 3]]


# --- importances ---------------------------------------------------------------------------------


@given(partitions())
def test_importances_by_word(case: tuple[list[list[int]], int]) -> None:
    groups, count = case
    made = Entities.of(groups, count)
    assert entities.importances("uniform", made.sizes).tolist() == [1.0] * len(groups)
    share = entities.importances("share", made.sizes)
    covered = count - len(made.free)
    assert share.dtype == torch.float64
    assert share.tolist() == pytest.approx([len(g) / covered for g in groups])


def test_importances_by_number() -> None:
    assert entities.importances(2, [3, 1]).tolist() == [2.0, 2.0]
    assert entities.importances(np.array([0.5, 2.0]), [3, 1]).tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match="u must be positive, got -1 for entity 1"):
        entities.importances([1.0, -1.0], [3, 1])
    with pytest.raises(ValueError, match="got 'parameters'"):
        entities.importances("parameters", [3, 1])


def test_a_network_s_default_importance_is_the_share_and_a_linear_model_s_is_one() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    X, y = torch.eye(3), [0.0, 1.0, 2.0]
    unequal = [[0, 1, 2, 6], [3, 7]]
    settings = {"lam": 0.1, "alpha": 0.5, "M": 1.0}
    network = SparseTrainingProblem.network(net, X, y, unequal, **settings)
    assert network.u.tolist() == pytest.approx([4 / 6, 2 / 6])
    assert SparseTrainingProblem.linear(X, y, [[0, 1], [2]], **settings).u.tolist() == [1.0, 1.0]
