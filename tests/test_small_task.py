"""The small task behaves as a pruning phase: training lowers the loss, the cut meets the budget."""

from __future__ import annotations

import pytest
import torch
from small_task import cut_and_finish, small_task, train

from spr_or.training.method import PruningPlan


@pytest.mark.parametrize("entities", ["filters", "channels", "neurons"])
def test_a_plan_is_driven_and_cut_to_the_budget(entities: str) -> None:
    if entities == "neurons":
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)
        )
        task = small_task(net, entities)
    else:
        task = small_task(entities=entities)
    calls: list[str] = []
    plan = PruningPlan(
        scores=lambda: {layer.name: torch.arange(layer.count) for layer in task.layers},
        trains=True,
        after_backward=lambda: calls.append("backward"),
        after_step=lambda: calls.append("step"),
        before_epoch=lambda epoch: calls.append(f"before {epoch}"),
    )
    losses = train(task, plan, 6)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert calls[:3] == ["before 0", "backward", "step"] and calls.count("step") == len(losses)
    choice = cut_and_finish(task, plan)
    assert abs(choice.removed_pct - 40) < 15
    assert choice.removed_pct == task.removed_pct(choice.masks)
