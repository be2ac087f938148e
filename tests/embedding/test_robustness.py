"""Is a class robust: proofs, counterexamples, limits; and attacks that try each proof."""

import pytest
import torch
from spr_or.models.toy import mlp
from torch import nn

from spr_or.embedding import robustness
from spr_or.embedding.attacks import inside, margin, strongest_attack
from spr_or.embedding.reading import read_network
from spr_or.embedding.robustness import How, decide_robustness, largest_output


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(5)
    return mlp(4, hidden=[12, 12], num_classes=3).eval()


@pytest.fixture(scope="module")
def network(net):
    return read_network(net, (4,))


def box(x, radius):
    return x.double() - radius, x.double() + radius


def certain(net, count=40):
    """An input that the network is surest of among some, and its class."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = net(x)
    labels = out.argmax(1)
    margins = torch.stack([margin(o[None], int(t))[0] for o, t in zip(out, labels, strict=True)])
    best = int(margins.argmin())
    return x[best], int(labels[best])


@pytest.mark.parametrize(
    "how", [How(), How("interval"), How(solver="scip"), How(formulation="cuts")]
)
def test_answers_agree_with_torch(net, network, how):
    x, label = certain(net)
    answers = []
    for radius in (0.01, 0.3, 3.0):
        lower, upper = box(x, radius)
        found = decide_robustness(net, network, label, lower, upper, how)
        answers.append(found.answer)
        if found.answer == "broken":
            assert ((found.point.double() >= lower) & (found.point.double() <= upper)).all()
            assert int(net(found.point[None]).argmax()) != label
            assert found.value > 0
        else:
            assert found.bound < 0 and found.attack < 0
            assert found.attack <= found.root + 1e-6
    assert answers[0] == "robust" and answers[-1] == "broken"


def test_the_radius_where_the_class_breaks_is_the_same_for_all(net, network):
    """Between the two radii the answer changes once, for every way of asking."""
    x, label = certain(net)
    radii = [0.2, 0.5, 0.8, 1.1]
    ways = [How(), How("interval", solver="scip")]
    answers = [
        [decide_robustness(net, network, label, *box(x, r), how).answer for r in radii]
        for how in ways
    ]
    assert answers[0] == answers[1]
    assert answers[0] == sorted(answers[0], reverse=True)  # robust before broken


def test_a_proof_that_an_attack_refutes_is_said_to_be_contradicted(net, network):
    """The forms of one network, attacked in another one that answers the other way."""
    x, label = certain(net)
    flipped = nn.Sequential(*net[:-1], nn.Linear(12, 3))
    with torch.no_grad():
        flipped[-1].weight.copy_(-net[-1].weight)
        flipped[-1].bias.copy_(-net[-1].bias)
    found = decide_robustness(flipped, network, label, *box(x, 0.01))
    assert found.answer == "contradicted" and found.attack > 0
    assert int(flipped(found.point[None]).argmax()) != label


def test_a_point_on_the_edge_is_moved_along_the_gradient(net, network, monkeypatch):
    """A solver that stops at the image itself, whose margin is negative; the region holds others."""
    x, label = certain(net)
    monkeypatch.setattr(robustness, "_point", lambda *arguments: x)
    found = decide_robustness(net, network, label, *box(x, 3.0))
    assert found.answer == "broken" and found.value > 0 and found.programs == 1
    assert int(net(found.point[None]).argmax()) != label


def test_bounds_from_data_prove_nothing(net, network):
    x, label = certain(net)
    how = How("data", data=x[None].repeat(3, 1))
    assert decide_robustness(net, network, label, *box(x, 0.01), how).answer == "undecided"
    assert decide_robustness(net, network, label, *box(x, 5.0), how).answer in (
        "broken",
        "undecided",
    )


def test_a_time_limit_leaves_a_bound(net, network):
    x, label = certain(net)
    found = decide_robustness(net, network, label, *box(x, 0.8), How("interval", time_limit=0.0))
    assert found.answer == "undecided" and found.programs == 0
    assert found.bound == found.root


def test_ctrl_c_in_the_solver_is_an_answer_with_the_bound_so_far(net, network, monkeypatch):
    x, label = certain(net)
    stopped = robustness.Outcome("interrupted", None, None, 0, 0.1, 0.1)
    monkeypatch.setattr(robustness, "solve_model", lambda *a, **k: stopped)
    found = decide_robustness(net, network, label, *box(x, 0.8))
    assert found.answer == "interrupted" and found.bound == found.root > 0


@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_the_largest_output_is_reached_and_not_exceeded(net, network, solver):
    found = largest_output(net, network, 1, *box(torch.zeros(4), 1.0), How(solver=solver))
    assert found.answer == "largest"
    assert found.value == pytest.approx(found.bound, abs=1e-4)
    assert found.attack <= found.bound + 1e-5 and found.attack > found.bound - 0.5
    assert found.root >= found.bound - 1e-6


def test_attacks_stay_in_the_box_and_find_its_corner():
    lower, upper = torch.tensor([0.1, -0.3]).double(), torch.tensor([0.7, 0.2]).double()
    reached, x = strongest_attack(nn.Identity(), lambda y: y[:, 0] - y[:, 1], lower, upper)
    assert ((x.double() >= lower) & (x.double() <= upper)).all()
    assert reached == pytest.approx(1.0, abs=1e-6)


def test_a_box_is_rounded_inward():
    ends = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    low, high = inside(ends, ends + 1e-3, torch.float32)
    assert (low.double() >= ends).all() and (high.double() <= ends + 1e-3).all()
    assert ((low.double() - ends) < 1e-7).all()
