"""Methods of one's own, named by import path in tests: one with a state, one whose scores are NaN."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """Keys of `METHOD`."""

    decay: float = Field(default=0.5, gt=0)  # weight of the term
    restart: bool = False  # from new weights


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """A scale for each entity of the first layer, trained along, and a running mean of the norms."""
    first = task.layers[0]
    scale = nn.Parameter(torch.ones(first.count))
    running = {layer.name: torch.zeros(layer.count) for layer in task.layers}
    dice = torch.Generator().manual_seed(task.seed)

    def term(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        norms = first.parameters[0].flatten(1).norm(dim=1)
        return keys.decay * 1e-3 * (scale * norms).pow(2).mean()

    def after_epoch(epoch: int) -> dict[str, Any]:
        for layer in task.layers:
            norms = layer.parameters[0].detach().flatten(1).norm(dim=1)
            running[layer.name].mul_(0.9).add_(
                norms + 0.01 * torch.rand(norms.shape, generator=dice)
            )
        return {"largest_scale": float(scale.detach().max())}

    def state() -> dict[str, Any]:
        return {"scale": scale.detach().clone(), "running": dict(running), "dice": dice.get_state()}

    @torch.no_grad()
    def load(kept: dict[str, Any]) -> None:
        scale.copy_(kept["scale"])
        running.update(kept["running"])
        dice.set_state(kept["dice"])

    return PruningPlan(
        scores=lambda: running,
        trains=True,
        parameters=[scale],
        term=term,
        after_epoch=after_epoch,
        state=state,
        load=load,
        restart=keys.restart,
    )


METHOD = Method(title="own", kind="regulariser", paper="none", plan=plan, keys=Keys)


def _no_number(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    return PruningPlan(
        scores=lambda: {layer.name: torch.full((layer.count,), torch.nan) for layer in task.layers}
    )


NO_NUMBER = Method(title="no number", kind="score", paper="none", plan=_no_number)


def _diverging(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    return PruningPlan(
        scores=dict, trains=True, term=lambda images, logits, labels: logits.sum() * torch.inf
    )


DIVERGING = Method(title="diverging", kind="regulariser", paper="none", plan=_diverging)


def _refusing(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    raise ValueError("it takes only networks with a gate")


REFUSING = Method(title="refusing", kind="score", paper="none", plan=_refusing)


def _broken(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    def scores() -> dict[str, Tensor]:
        raise KeyError("no such thing")

    return PruningPlan(scores=scores)


BROKEN = Method(title="broken", kind="score", paper="none", plan=_broken)


def _no_plan(task: PruningTask, keys: MethodKeys) -> Any:
    return None


NO_PLAN = Method(title="no plan", kind="score", paper="none", plan=_no_plan)


def _one_layer(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    first = task.layers[0]
    return PruningPlan(scores=lambda: {first.name: torch.ones(first.count)})


ONE_LAYER = Method(title="one layer", kind="score", paper="none", plan=_one_layer)


def _column(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    return PruningPlan(scores=lambda: {one.name: torch.ones(one.count, 1) for one in task.layers})


COLUMN = Method(title="column", kind="score", paper="none", plan=_column)
