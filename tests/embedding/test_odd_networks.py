"""Networks and boxes that an author would not think of: embedded right, or refused with their place."""

import pickle

import pyomo.environ as pyo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spr_or as so
from spr_or.embedding.api import EmbeddingError, add_cuts, get_error, read_network
from spr_or.embedding.block import LARGEST, binaries
from spr_or.embedding.solving import root_bound, solve_model

Sequential = nn.Sequential


class Projected(nn.Module):
    """A residual addition whose shortcut is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.shortcut = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x)))


class Called(nn.Module):
    """A function as a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def dead():
    """Neurons that are always off, one with an input of exactly 0, and one that nobody reads."""
    net = Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[:3], net[0].bias[:3] = 0, torch.tensor([-1.0, 0.0, -2.0])
        net[2].weight[:, 4] = 0
    return net


def all_dead():
    net = Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.fill_(-1)
    return net


def tiny_variance():
    net = Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-12), nn.ReLU(), nn.Linear(4, 2))
    net[1].running_var.fill_(1e-6)
    return net.eval()


def emptied():
    """A compact network: two channels of one layer gone, all of another."""
    net = Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2),
    ).eval()  # fmt: skip
    masks = {"0": torch.tensor([True, False, False, True]), "3": torch.zeros(4, dtype=torch.bool)}
    return so.compact(net, masks, torch.zeros(1, 1, 4, 4))


def deep():
    layers = [layer for _ in range(10) for layer in (nn.Linear(4, 4), nn.ReLU())]
    return Sequential(*layers, nn.Linear(4, 1))


NETWORKS = {
    "dead neurons": (dead, (4,)),
    "nothing alive": (all_dead, (4,)),
    "float64": (lambda: Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double(), (4,)),
    "tiny variance": (tiny_variance, (4,)),
    "padded average": (
        lambda: Sequential(
            nn.Conv2d(1, 1, 2), nn.ReLU(), nn.AvgPool2d(2, padding=1, count_include_pad=False),
            nn.Flatten(), nn.Linear(4, 2),
        ),
        (1, 3, 3),
    ),
    "largest of the inputs": (
        lambda: Sequential(nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(4, 2)), (1, 3, 3)
    ),
    "nested": (
        lambda: Sequential(
            Sequential(Sequential(nn.Linear(4, 4)), nn.ReLU()),
            Sequential(nn.Identity(), nn.Dropout(0.5), Sequential(nn.Linear(4, 2))),
        ),
        (4,),
    ),
    "shortcut with a layer": (Projected, (4,)),
    "compact": (emptied, (1, 4, 4)),
    "ten layers": (deep, (4,)),
    "one neuron": (lambda: Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), (1,)),
    "flattened between": (
        lambda: Sequential(
            nn.Conv2d(1, 1, 2), nn.Flatten(), nn.ReLU(), nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 2, 2), nn.Flatten(),
        ),
        (1, 3, 3),
    ),
    "two ReLUs behind one another": (
        lambda: Sequential(nn.Linear(4, 3), nn.ReLU(), nn.ReLU(), nn.Linear(3, 1)), (4,)
    ),
    "a ReLU at the end": (lambda: Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)),
    "nothing": (nn.Identity, (4,)),
    "one number for a sample": (lambda: Called(lambda x: torch.relu(x - 0.3).sum(1)), (4,)),
}  # fmt: skip
# Ends of all inputs.
BOXES = {"unit": (0.0, 1.0), "point": (0.3, 0.3), "wide": (-1e5, 1e5)}


def model_of(net, shape, ends, goal=None, **options):
    model = pyo.ConcreteModel()
    model.net = so.embed(net, tuple(torch.full(shape, end) for end in ends), **options)
    out = model.net.outputs
    total = sum((-1) ** i * v for i, v in out.items()) if goal is None else goal(model.net)
    model.goal = pyo.Objective(expr=total, sense=pyo.maximize)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_optimum_is_torchs_and_above_all_samples(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    read = read_network(net, shape)
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    for ends in BOXES.values():
        values = []
        for bounds, solver in (("interval", "highs"), ("lp", "scip")):
            model = model_of(read, shape, ends, bounds=bounds)
            outcome = solve_model(model, solver)
            assert outcome.status == "optimal"
            allowed = 1e-5 * max(1.0, abs(ends[1]), abs(outcome.value))
            assert get_error(model.net) <= allowed
            assert all(v.value is not None for v in model.net.inputs.values())
            values.append(outcome.value)
        assert values[0] == pytest.approx(values[1], abs=allowed)
        u = torch.rand((2000, *shape), dtype=dtype)
        u[1000:] = u[1000:].round()
        with torch.no_grad():
            y = net(ends[0] + (ends[1] - ends[0]) * u).reshape(2000, -1).double()
        signs = (-1.0) ** torch.arange(y.shape[1])
        assert float((y * signs).sum(1).max()) <= values[0] + allowed


SMALL = [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Sequential(nn.Linear(4, 3), nn.Softmax(1)), ["layer '1'", "softmax"]),
        (Sequential(nn.Linear(4, 3), Sequential(nn.GELU()), nn.Linear(3, 1)), ["layer '1.0'", "gelu"]),
        (Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1)), ["layer '1'", "layer_norm"]),
        (torch.relu, ["torch.nn.Module", "builtin"]),
        (nn.Linear(4, 2).state_dict(), ["torch.nn.Module", "OrderedDict"]),
    ],
    ids=["softmax", "gelu", "layer norm", "function", "state dict"],
)  # fmt: skip
def test_what_is_in_the_way_is_named(net, words):
    with pytest.raises(EmbeddingError) as error:
        so.embed(net, (torch.zeros(4), torch.ones(4)))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (None, ["pair of tensors", "NoneType"]),
        ((torch.zeros(4),), ["pair of tensors"]),
        (("a", "b"), ["pair of tensors", "str"]),
        ((0.0, 1.0), ["one input's shape", "single number"]),
        ((torch.zeros(4, dtype=torch.complex64), torch.ones(4)), ["complex"]),
        ((torch.zeros(4), torch.full((4,), 1e12)), ["upper is 1e+12 at [0]", "1e+10"]),
        (
            (torch.full((4,), -torch.finfo(torch.float64).max, dtype=torch.float64), torch.ones(4)),
            ["lower is -1.79769e+308", "1e+10"],
        ),
    ],
    ids=["none", "one end", "words", "numbers", "complex", "too large", "largest float"],
)
def test_a_box_that_is_none_is_named(box, words):
    with pytest.raises(EmbeddingError) as error:
        so.embed(Sequential(*SMALL), box)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("bounds", ["interval", "lp"])
def test_numbers_that_solvers_cannot_tell_apart_are_named_with_their_layer(bounds):
    net = Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias.fill_(1), net[2].weight.fill_(LARGEST)
    with pytest.raises(EmbeddingError, match=r"layer '3' .*number 0 can lie between .*narrow"):
        so.embed(net, (torch.zeros(4), torch.ones(4)), bounds=bounds)


def test_lists_arrays_and_integers_are_bounds_too():
    read = read_network(Sequential(*SMALL), (4,))
    whole = so.embed(read, (torch.zeros(4), torch.ones(4)))
    for box in (
        ([0, 0, 0, 0], [1, 1, 1, 1]),
        (torch.zeros(4).numpy(), torch.ones(4).numpy()),
        (torch.zeros(4, dtype=torch.int64), torch.ones(4, requires_grad=True)),
    ):
        block = so.embed(read, box)
        assert [v.bounds for v in block.outputs.values()] == [
            v.bounds for v in whole.outputs.values()
        ]


def test_a_model_is_copied_and_pickled_with_its_network():
    model = model_of(Sequential(*SMALL), (4,), (0.0, 1.0))
    value = solve_model(model).value
    for copy in (model.clone(), pickle.loads(pickle.dumps(model))):
        assert solve_model(copy).value == pytest.approx(value, abs=1e-6)
        assert get_error(copy.net) < 1e-5


def test_cuts_for_several_outputs_are_found_once():
    torch.manual_seed(1)
    net = read_network(
        Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), (4,)
    )
    several = lambda block: 2 * block.outputs[0] - block.outputs[1] - block.inputs[0]  # noqa: E731
    plain, cut = (model_of(net, (4,), (-1.0, 1.0), several) for _ in range(2))
    added = add_cuts(cut, cut.net, rounds=50)
    assert added > 0 and add_cuts(cut, cut.net) == 0 and len(cut.net.cuts) == added
    assert root_bound(cut) < root_bound(plain)
    assert solve_model(cut).value == pytest.approx(solve_model(plain).value, abs=1e-5)


def test_there_are_no_cuts_for_a_network_without_binaries():
    model = model_of(all_dead(), (4,), (0.0, 1.0), formulation="cuts")
    assert binaries(model.net) == 0 and add_cuts(model, model.net) == 0


def test_what_is_no_block_and_no_goal_is_an_error():
    model = model_of(Sequential(*SMALL), (4,), (0.0, 1.0))
    for wrong in (get_error, lambda m: add_cuts(m, m)):
        with pytest.raises(ValueError, match="a block that embed returned .* ConcreteModel"):
            wrong(model)
    with pytest.raises(ValueError, match="solve the model"):
        get_error(model.net)
    model.del_component("goal")
    with pytest.raises(ValueError, match="no objective"):
        add_cuts(model, model.net)


def test_an_infeasible_model_has_no_value_no_bound_and_no_cuts():
    model = model_of(Sequential(*SMALL), (4,), (0.0, 1.0))
    model.more = pyo.Constraint(expr=model.net.outputs[0] >= 1e4)
    for solver in ("highs", "scip"):
        assert solve_model(model, solver)[:3] == ("infeasible", None, None)
    assert add_cuts(model, model.net) == 0
    with pytest.raises(ValueError, match="solve the model"):
        get_error(model.net)


@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_no_time_leaves_nothing_and_less_is_an_error(solver):
    model = model_of(Sequential(*SMALL), (4,), (0.0, 1.0))
    assert solve_model(model, solver, time_limit=0)[:3] == ("time_limit", None, None)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        solve_model(model, solver, time_limit=-1)


@pytest.mark.parametrize("data", [[[0.0, 0.0, 0.0, float("nan")]], torch.full((2, 4), torch.inf)])
def test_samples_that_are_no_numbers_are_named(data):
    with pytest.raises(EmbeddingError, match="sample 0 holds numbers that are not finite"):
        so.embed(Sequential(*SMALL), (torch.zeros(4), torch.ones(4)), "data", data=data)


@pytest.mark.parametrize("solver", ["highs", pytest.param("scip", marks=pytest.mark.slow)])
def test_ctrl_c_in_a_solver_stops_it_and_is_an_outcome(solver):
    """The signal of the terminal, while the solver computes."""
    import os
    import subprocess

    torch.manual_seed(0)
    net = Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    model = model_of(net, (20,), (-1.0, 1.0))
    solve_model(model_of(Sequential(*SMALL), (4,), (0.0, 1.0)), solver)  # loads the solver
    killer = subprocess.Popen(["sh", "-c", f"sleep 2; kill -INT {os.getpid()}"])
    try:
        outcome = solve_model(model, solver, time_limit=60)
    finally:
        killer.wait()
    assert outcome.status == "interrupted" and outcome.seconds < 30
