r"""HRank: filters whose feature maps have low rank go (Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, CVPR 2020).

.. math:: s_i = \frac1n \sum_{t=1}^n \operatorname{rank} F_i(x_t)

over n training images, F_i the (H, W) map of filter i behind norm and activation
(`spr_or.methods.common.feature_maps`). The paper finds that few images suffice, takes 500, prunes layer by
layer to shares set by hand and fine-tunes after each layer. Here all layers lose the same share at once.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.feature_maps import filters_of, scores_of_maps
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    images: int = Field(500, ge=1)  # training images whose maps are looked at


def summed_ranks(maps: Tensor) -> Tensor:
    """The sum over the images of each filter's rank; maps (B, N, H, W) to (N,).

    >>> maps = torch.stack([torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)]).unsqueeze(0)
    >>> summed_ranks(maps).tolist()
    [3.0, 1.0, 0.0]
    """
    return torch.linalg.matrix_rank(maps.float()).double().sum(0)


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by `summed_ranks` over ``keys.images`` images; nothing is trained."""
    made = filters_of(task.model, task.layers, "HRank")
    names = sorted({c.module for channels in made.values() for c in channels})
    flat = [n for n in names if not isinstance(task.model.get_submodule(n), _TWO_DIMENSIONAL)]
    if flat:
        raise ValueError(
            f"HRank takes the rank of maps of two dimensions, which {flat[0]!r} does not have: "
            "leave it out by spr.ignored, or take another method"
        )

    return PruningPlan(
        scores=lambda: scores_of_maps(task, made, keys.images, summed_ranks), across="layers"
    )


_TWO_DIMENSIONAL = (nn.Conv2d, nn.ConvTranspose2d)

METHOD = Method(
    title="HRank",
    kind="score",
    paper="Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, CVPR 2020, arXiv:2002.10179",
    plan=plan,
    keys=Keys,
    differs="the share of each layer is the same, not chosen by hand; all layers are pruned at once",
)
