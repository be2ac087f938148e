r"""Layer-exact: the channels that reproduce the next layer's output best, by the certified solver.

For a layer whose filters are the input channels of one convolution with weights W, X its input patches on
training images, the problem of `spr-or layers`

.. math:: \min_{V, y} \frac{\lVert X V - X W \rVert^2}{\lVert X W \rVert^2}
          + \lambda \sum_i \Bigl(\alpha \frac{\lVert V_i \rVert^2}{y_i} + (1 - \alpha) y_i\Bigr)

(X centred, each channel's columns orthonormal) is solved by branch and bound, with a time limit, for the
lambda at which about so many channels stay as the budget leaves. They are scored above the others;
within both, the longer a channel stays in greedy elimination the higher. After the cut the convolution
gets the weights that reproduce its output best from the channels kept, and the constant part of what is
lost goes into its bias or into the running mean of the BatchNorm behind it.

All layers lose the same share. Filters that write a residual stream, or that several layers read, have no
such problem: there the order is that of Σ|w| (`spr_or.methods.pffec`). The inputs are those of the network
before anything is removed. What the time limit cuts short depends on the machine.

This is a method of this project; as a regression on a layer's inputs it is related to He, Zhang, Sun,
*Channel pruning for accelerating very deep neural networks* (ICCV 2017), which selects by the lasso.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.layer_study.activations import sample_patches
from spr_or.layer_study.channel_scores import channel_scores
from spr_or.layer_study.refit import Moments, moments_of, refitted, shifting_norm, write_
from spr_or.methods.common.consumers import consumer_of
from spr_or.methods.pffec import l1_norms
from spr_or.pruning.budget import Masks
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.network_groups import features
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    seconds: float = Field(5.0, gt=0)  # time limit of each layer's branch and bound


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by `channel_scores`; at the end write the weights of `refitted`. Nothing is trained."""
    model = task.model
    found, following = features(model, task.example), following_norms(model, task.example)
    consumers = {
        layer.name: consumer
        for layer in task.layers
        if (consumer := consumer_of(model, layer, found)) is not None
    }
    if not consumers:
        raise ValueError(
            "layer_exact chooses the input channels of convolutions, and there is none that reads "
            "only one layer's entities, among "
            f"{', '.join(layer.name for layer in task.layers)}: take another method"
        )
    moments: dict[str, Moments] = {}

    def norm_of(name: str) -> nn.Module | None:
        return shifting_norm(model, name, following)

    def scores() -> dict[str, Tensor]:
        magnitudes = {name: norms.cpu() for name, norms in l1_norms(task.layers).items()}
        left = task.cut(magnitudes, "layers").masks  # how many stay does not depend on which
        names = [consumer.name for consumer in consumers.values()]
        patches = sample_patches(model, names, task.batches(task.seed), task.seed)
        result = dict(magnitudes)
        for layer, (name, entity) in consumers.items():
            convolution = model.get_submodule(name)
            centred = convolution.bias is not None or norm_of(name) is not None
            X, W = patches[name]
            moments[layer] = moments_of(X, X @ W, centred)
            size = int(left[layer].sum())
            try:
                by_input = channel_scores(
                    name, patches[name], len(entity), size, keys.seconds
                ).scores
            except ValueError:  # a dead layer: nothing to reproduce, any order does
                continue
            result[layer] = torch.empty_like(by_input).index_copy_(0, entity, by_input)
        return result

    def finish(masks: Masks) -> None:
        for layer, (name, entity) in consumers.items():
            convolution = model.get_submodule(name)
            assert isinstance(convolution, nn.Conv2d)
            columns = len(moments[layer].G) // len(entity)
            kept = masks[layer].cpu()[entity].repeat_interleave(columns)
            write_(convolution, *refitted(moments[layer], kept), norm_of(name))

    return PruningPlan(scores=scores, across="layers", finish=finish)


METHOD = Method(
    title="layer-exact",
    kind="exact",
    paper="this project (`spr-or layers`)",
    plan=plan,
    keys=Keys,
    differs="filters that several layers read, or that write a residual stream, go by Σ|w|",
)
