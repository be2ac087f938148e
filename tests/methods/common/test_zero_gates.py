"""Gates that become zero: no more in a step than the budget lacks, and an order among them."""

from __future__ import annotations

import pytest
import torch
from small_task import small_task, train

from spr_or.methods import epfs, sss
from spr_or.methods.common.gates import kept_share
from spr_or.methods.common.zero_gates import ZeroGates


def test_no_more_become_zero_than_are_lacking():
    values = torch.tensor([0.0, 0.4, 0.2, 0.3, 0.9])
    zero = ZeroGates(3, values)
    goes = torch.tensor([True, True, True, True, False])
    held = zero.held(values, goes, values)
    assert held.tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]  # one is zero already, two are lacking
    assert ZeroGates(0, values).held(values, goes, values).tolist() == [False, *[True] * 3, False]


def test_a_gate_that_returns_begins_anew():
    zero = ZeroGates(2, torch.ones(2))
    zero.count(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 1.0]))
    zero.count(torch.tensor([0.5, 0.0]), torch.tensor([0.5, -0.3]))
    zero.count(torch.zeros(2), torch.tensor([0.2, 0.0]))
    assert zero.idle.tolist() == [1, 2]
    torch.testing.assert_close(zero.last, torch.tensor([0.2, -0.3]))
    other = ZeroGates(2, torch.ones(2))
    other.load(zero.state())
    assert torch.equal(other.scores(torch.zeros(2)), torch.tensor([-1.0, -2.0]))


@pytest.mark.parametrize("method", [sss, epfs])
def test_a_short_phase_leaves_the_network_alive(method):
    """All gates start at one with one price and fall together; as many go as the budget asks for."""
    task = small_task(entities="channels", epochs=6, target_pct=50.0)
    plan = method.METHOD.plan(task, method.Keys(reach=0.2))
    losses = train(task, plan)
    scores = torch.cat(list(plan.scores().values()))
    wanted = round((1 - kept_share(task)) * len(scores))
    assert sorted(scores[scores <= 0].tolist()) == list(range(-wanted, 0))  # and no ties
    assert losses[-1] < 0.9  # with all gates at zero it is log 3
