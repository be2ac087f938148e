r"""PFFEC: filters with small weights go (Li, Kadav, Durdanovic, Samet, Graf 2016, arXiv:1608.08710).

.. math:: s_i = \sum_j |w_{ij}|

over all that entity i holds: the weights of a filter or neuron and its bias, and for channels the γ and β
of their norms too. The smallest of a layer go; the paper chooses the share of each layer by hand, from
how much the accuracy suffers when the layer is pruned. Here all layers lose the same share.
"""

from __future__ import annotations

from torch import Tensor

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


def l1_norms(layers: tuple[LayerEntities, ...]) -> dict[str, Tensor]:
    """Σ|w| of each entity, {layer name: (N,)}.

    >>> import torch
    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2, bias=False))
    >>> _ = torch.nn.init.constant_(net[0].weight, 0.5)
    >>> l1_norms(layer_entities(net))["0"].tolist()
    [2.0, 2.0]
    """
    return {name: rows.abs().sum(1) for name, rows in entity_rows(layers).items()}


def plan(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    """Score by `l1_norms`; nothing is trained."""
    return PruningPlan(scores=lambda: l1_norms(task.layers), across="layers")


METHOD = Method(
    title="PFFEC",
    kind="score",
    paper="Li, Kadav, Durdanovic, Samet, Graf 2016, arXiv:1608.08710",
    plan=plan,
    differs="the share of each layer is the same, not chosen by hand; filters are removed at once",
)
