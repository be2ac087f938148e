"""A network in a model of one's own: the optimum is torch's, by every solver and from every file."""

import pyomo.environ as pyo
import pytest
import torch
from embedded_networks import Functional, Residual, shaken
from spr_or.models.toy import mlp
from torch import nn

import spr_or as so
from spr_or.embedding.api import EmbeddingError, add_cuts, get_error, read_network
from spr_or.embedding.block import binaries
from spr_or.embedding.solving import SOLVERS, check_solver, root_bound, solve_model


def network(kind):
    torch.manual_seed(1)
    if kind == "mlp":
        return mlp(4, hidden=[6, 6], num_classes=2), (4,)
    if kind == "pooled":
        layers = [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 2)]
        return nn.Sequential(*layers), (1, 4, 4)
    layers = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), Residual(2), nn.Flatten()]
    return shaken(nn.Sequential(*layers, nn.Linear(8, 2))), (1, 3, 3)


def largest(net, shape, **options):
    """A model that maximises the difference of two outputs over the unit box."""
    model = pyo.ConcreteModel()
    model.net = so.embed(net, (torch.zeros(shape), torch.ones(shape)), **options)
    out = model.net.outputs
    model.goal = pyo.Objective(expr=out[0] - out[1], sense=pyo.maximize)
    return model


@pytest.mark.parametrize("kind", ["mlp", "pooled", "residual"])
def test_the_optimum_is_reached_by_torch_and_by_no_sample_exceeded(kind):
    net, shape = network(kind)
    network_read = read_network(net, shape)
    values = []
    for bounds, solver in (("interval", "highs"), ("lp", "highs"), ("lp", "scip")):
        model = largest(network_read, shape, bounds=bounds)
        outcome = solve_model(model, solver)
        assert outcome.status == "optimal" and get_error(model.net) < 1e-5
        values.append(outcome.value)
    assert max(values) - min(values) < 1e-5
    u = torch.rand(20_000, *shape)
    u[10_000:] = u[10_000:].round()
    with torch.no_grad():
        out = net.eval()(u)
    assert float((out[:, 0] - out[:, 1]).max()) <= values[0] + 1e-5


def test_a_neuron_that_cannot_change_its_sign_has_no_binary():
    net, shape = network("mlp")
    model = pyo.ConcreteModel()
    point = torch.full(shape, 0.3)
    model.net = so.embed(net, (point, point))
    assert binaries(model.net) == 0
    model.goal = pyo.Objective(expr=model.net.outputs[0])
    found = solve_model(model).value
    assert found == pytest.approx(float(net(point[None])[0, 0].detach()), abs=1e-5)
    assert binaries(largest(net, shape).net) > 0


@pytest.mark.parametrize("ending", ["lp", "mps"])
def test_files_written_by_pyomo_have_the_same_optimum(ending, tmp_path):
    import highspy

    model = largest(*network("mlp"))
    model.write(str(tmp_path / f"model.{ending}"))
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.readModel(str(tmp_path / f"model.{ending}"))
    solver.run()
    assert abs(solver.getObjectiveValue()) == pytest.approx(abs(solve_model(model).value), abs=1e-6)


def test_two_networks_share_a_model():
    """The compact network differs from the dense one by nothing: the largest difference is zero."""
    torch.manual_seed(0)
    net = mlp(3, hidden=[6], num_classes=1).eval()
    with torch.no_grad():
        net[1].weight[3:], net[1].bias[3:] = 0, 0
    small = so.compact(net, {"1": torch.arange(6) < 3}, torch.zeros(1, 3))
    model, box = pyo.ConcreteModel(), (-torch.ones(3), torch.ones(3))
    model.dense, model.pruned = so.embed(net, box), so.embed(small, box)
    same = lambda m, i: m.dense.inputs[i] == m.pruned.inputs[i]  # noqa: E731
    model.same = pyo.Constraint(range(3), rule=same)
    gap = model.dense.outputs[0] - model.pruned.outputs[0]
    model.goal = pyo.Objective(expr=gap, sense=pyo.maximize)
    assert solve_model(model).value == pytest.approx(0, abs=1e-5)
    assert binaries(model.pruned) <= 3


def test_cuts_are_valid_and_tighten_the_root():
    net, shape = network("mlp")
    plain, cut = largest(net, shape), largest(net, shape)
    before = root_bound(plain)
    assert add_cuts(cut, cut.net) > 0
    after, optimum = root_bound(cut), solve_model(plain, "highs").value
    assert optimum - 1e-6 <= after < before - 1e-3
    assert solve_model(cut, "scip").value == pytest.approx(optimum, abs=1e-5)


def test_no_cut_excludes_what_the_network_computes():
    net, shape = network("mlp")
    model = largest(net, shape, formulation="cuts")
    block, made = model.net, model.net.network
    assert len(block.cuts)
    for x in torch.rand(50, *shape).double().numpy():
        before, _ = made.network.evaluate(x[None])
        values = [*x, *(v for z in before for v in z[0].clip(min=0))]
        for variable, value in zip(made.values, values, strict=True):
            if not isinstance(variable, float):
                variable.set_value(float(value), skip_validation=True)
        for (k, i), s in block.fires.items():
            s.set_value(float(before[k][0, i] > 0), skip_validation=True)
        for row in block.cuts.values():
            assert pyo.value(row.body) <= pyo.value(row.upper) + 1e-9


def test_the_formulation_with_cuts_belongs_to_no_model_yet():
    net, shape = network("mlp")
    block = so.embed(net, (torch.zeros(shape), torch.ones(shape)), formulation="cuts")
    assert block.parent_block() is None
    assert len(block.cuts) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_bounds": (torch.zeros(1, 5, 6), torch.full((1, 5, 6), torch.inf))},
         ["upper is inf at [0, 0, 0]", "finite"]),
        ({"input_bounds": (torch.zeros(1, 5, 6), torch.eye(5, 6)[None] - 0.5)},
         ["lower is 0 and upper -0.5 at [0, 0, 1]"]),
        ({"input_bounds": (torch.zeros(1, 5, 6), torch.ones(30))}, ["upper has the shape (30,)"]),
        ({"bounds": "tight"}, ["bounds must be one of interval, lp, data", "'tight'"]),
        ({"formulation": "hull"}, ["formulation must be one of bigm, cuts", "'hull'"]),
        ({"bounds": "data"}, ["data=", "(n, 1, 5, 6)"]),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_any_solver_starts(options, words, monkeypatch):
    import spr_or.embedding.solving as solving

    monkeypatch.setattr(solving, "_optimizer", lambda solver: pytest.fail("a solver started"))
    box = (torch.zeros(1, 5, 6), torch.ones(1, 5, 6))
    with pytest.raises(EmbeddingError) as error:
        so.embed(Functional(), **{"input_bounds": box, **options})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_get_error_sees_what_is_wrong():
    net, shape = network("mlp")
    model = largest(net, shape)
    with pytest.raises(ValueError, match="solve the model"):
        get_error(model.net)
    solve_model(model)
    model.net.outputs[1].set_value(model.net.outputs[1].value + 0.25, skip_validation=True)
    assert get_error(model.net) == pytest.approx(0.25, abs=1e-5)


def test_an_unknown_or_missing_solver_is_an_error():
    with pytest.raises(ValueError, match="must be one of highs, scip, gurobi, got 'cplex'"):
        check_solver("cplex")
    for solver in SOLVERS:
        try:
            check_solver(solver)
        except ValueError as error:
            assert solver == "gurobi" and "not installed" in str(error)


@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_the_first_solution_of_a_solver_is_a_point_of_the_network(solver):
    model = largest(*network("mlp"))
    outcome = solve_model(model, solver, first=True)
    assert outcome.status in ("stopped", "optimal") and outcome.value is not None
    assert get_error(model.net) < 1e-4


@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_a_time_limit_leaves_incumbent_or_bound(solver):
    torch.manual_seed(0)
    model = largest(mlp(10, hidden=[20, 20], num_classes=2), (10,))
    outcome = solve_model(model, solver, time_limit=0.3)
    assert outcome.status in ("time_limit", "optimal")
    if outcome.value is not None and outcome.bound is not None:
        assert outcome.value <= outcome.bound + 1e-6
