r"""DepGraph's group norm: what depends on each other is judged together.

With G_i the weights that lose their purpose when entity i goes,

.. math:: s_i = \frac{\lVert w_{G_i} \rVert_2^2}{\frac1N \sum_j \lVert w_{G_j} \rVert_2^2}

compared over the whole network (Fang, Ma, Song, Mi, Wang, CVPR 2023); the mean is over the N entities of
the layer or group, and for whole branches, which are one entity each, over all of them. G_i holds the
entity's own weights, the scales of its norms and the columns that read it in other layers. As in the
authors' Torch-Pruning, biases and shifts do not count.

For entities = "channels" this is their magnitude importance. For "filters", our reading: the norms are
those that follow the filter, and columns that read a residual stream count for each filter that
writes the channel. The paper's sparse training with group weights is not done; this is its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spr_or.methods.common.entity_sums import entity_sums
from spr_or.methods.common.writers import scaling_norms, writers
from spr_or.pruning.following_norms import NORMS, following_norms
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.network_groups import Features, features
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


@torch.no_grad()
def squared_norms(
    model: nn.Module,
    layer: LayerEntities,
    found: Features,
    following: Mapping[str, Sequence[str]],
) -> Tensor:
    """The squared norm of everything that depends on each entity of a layer, (N,).

    found, following: of `spr_or.pruning.network_groups.features` and
    `spr_or.pruning.following_norms.following_norms`.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> (layer,) = layer_entities(net, "neurons")
    >>> for parameter in net.parameters():
    ...     _ = nn.init.ones_(parameter)
    >>> squared_norms(net, layer, features(net, torch.zeros(2, 2)), {}).tolist()
    [3.0, 3.0, 3.0]
    """
    scales = {id(m.weight) for m in model.modules() if isinstance(m, NORMS)}
    own = {
        id(p): p.square() if p.dim() > 1 or id(p) in scales else torch.zeros_like(p)
        for p in layer.parameters
    }
    total = entity_sums(layer, own)
    if isinstance(layer, GroupEntities):
        return total + _read_by_others(model, layer, found)
    for norm in scaling_norms(model, layer, following):
        gamma = model.get_parameter(f"{norm.module}.weight")
        if id(gamma) not in own:
            total = total + gamma.square()[norm.numbers.to(gamma.device)].sum(1)
    return total + _read_by_others(model, layer, found)


def _read_by_others(model: nn.Module, layer: LayerEntities, found: Features) -> Tensor:
    """The squared norm of the columns that read each entity, (N,), but those that are members of it.

    Zero for heads and whole branches: what reads them is in them.
    """
    zero = layer.parameters[0].new_zeros(layer.count)
    members: set[tuple[int, int]] = set()
    if isinstance(layer, GroupEntities):
        if layer.kind not in ("channels", "neurons"):
            return zero
        members = {(id(part.parameter), part.dim) for part in layer.parts}
    made = writers(model, layer)
    if not made:
        return zero
    name, numbers = made[0]
    rows = next(n for (parameter, _), n in found.written.items() if parameter == f"{name}.weight")
    by_feature = zero.new_zeros(1 + max(int(n.max()) for n in found.written.values()))
    for (parameter, dim), read in found.read.items():
        weight = model.get_parameter(parameter)
        if (id(weight), dim) not in members:
            columns = weight.square().movedim(dim, 0).flatten(1).sum(1)
            known = read > 0
            by_feature.index_add_(0, read[known].to(zero.device), columns[known.to(zero.device)])
    return torch.stack([by_feature[own.unique()].sum() for own in rows[numbers].to(zero.device)])


def relative(norms: Tensor, mean: Tensor | None = None) -> Tensor:
    """Norms over ``mean``, by default their own; zeros where all are zero.

    >>> relative(torch.tensor([1.0, 3.0])).tolist(), relative(torch.zeros(2)).tolist()
    ([0.5, 1.5], [0.0, 0.0])
    """
    over = norms.mean() if mean is None else mean
    return norms / over.clamp(min=torch.finfo(norms.dtype).tiny)


def plan(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    """Score by `squared_norms`, each layer's over their mean; nothing is trained."""
    found = features(task.model, task.example)
    following = following_norms(task.model, task.example)

    def scores() -> dict[str, Tensor]:
        norms = {n.name: squared_norms(task.model, n, found, following) for n in task.layers}
        single = [norm for norm in norms.values() if len(norm) == 1]
        mean = torch.cat(single).mean() if single else None
        return {
            name: relative(norm, mean if len(norm) == 1 else None) for name, norm in norms.items()
        }

    return PruningPlan(scores=scores)


METHOD = Method(
    title="DepGraph's group norm",
    kind="score",
    paper="Fang, Ma, Song, Mi, Wang, CVPR 2023, arXiv:2301.12900",
    plan=plan,
    differs="the score only, without the paper's sparse training of the groups",
)
