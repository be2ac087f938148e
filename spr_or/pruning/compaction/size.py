"""What a plan leaves, counted without building the smaller network."""

from typing import Any

from torch import fx

from spr_or.pruning.compaction.graph import module_of, sides
from spr_or.pruning.compaction.removal_plan import RemovalPlan, Step


def parameters_left(graph: fx.GraphModule, plan: RemovalPlan) -> int:
    """Number of parameters of ``rewrite(graph, plan)``, which is not built.

    >>> import torch
    >>> from torch import nn
    >>> from spr_or.pruning.compaction.channels import make_plan
    >>> from spr_or.pruning.compaction.graph import trace
    >>> graph = trace(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval())
    >>> _ = nn.init.zeros_(graph.get_submodule("0").weight[1])
    >>> parameters_left(graph, make_plan(graph, torch.zeros(2, 4)))
    16
    """
    total = 0
    for node in graph.graph.nodes:
        step = plan[node.name]
        if step.kept:
            source = plan[sides(node)[0].name] if sides(node) else step
            total += _left(module_of(graph, node), step, source)
    return total


def _left(module: Any, step: Step, source: Step) -> int:
    """Parameters of one node on its ``step.kept`` outputs and the ``source.kept`` inputs."""
    kept, owed = len(step.kept), step.shift is not None
    if step.kind in ("conv", "linear"):
        weight, bias = module.weight, module.bias
        kernel = weight[0, 0].numel()
        return kept * len(source.kept) * kernel + (kept if bias is not None or owed else 0)
    if step.kind == "norm":
        return kept * len(list(module.parameters()))
    return kept if owed else 0  # an addition or padding that carries a constant
