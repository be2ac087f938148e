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

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.layer_study.activations import Patches, sample_patches
from spr_or.layer_study.layer_problem import layer_problem
from spr_or.layer_study.standard import standardise
from spr_or.layer_study.subsets import elimination
from spr_or.methods.common.consumers import consumer_of
from spr_or.methods.pffec import l1_norms
from spr_or.pruning.budget import Masks
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.network_groups import features
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

_GAP = 1e-3  # at which a layer counts as solved
_NODE_BATCH = 4  # a batch is finished even when the time is over
_RIDGE = 1e-8  # of the mean variance of a column, in the weights after the cut


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    seconds: float = Field(5.0, gt=0)  # time limit of each layer's branch and bound


def channel_scores(name: str, patches: Patches, channels: int, size: int, seconds: float) -> Tensor:
    """A number for each input channel of a convolution, (channels,), where about ``size`` shall stay.

    Those of the best set found have at least 1, the others less; channels that never vary have 0.
    Raises ``ValueError`` where the output never varies.

    >>> X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    >>> W = torch.tensor([[5.0], [0.1], [3.0]]).double()
    >>> channel_scores("conv", Patches(X, W), 3, 2, seconds=5.0).argsort().tolist()
    [1, 2, 0]
    """
    standard = standardise(patches, channels)
    alive = standard.channels
    scores = torch.zeros(channels, dtype=torch.float64)
    count = len(alive)
    if count == 1:
        scores[alive] = 1.0
        return scores
    made = layer_problem(name, standard, min(count - 1, max(1, size)))
    certificate = branch_and_bound(
        made.problem, _GAP, seconds, _NODE_BATCH, start=made.first.weights
    )
    if certificate.status == "interrupted":
        raise KeyboardInterrupt
    dropped = elimination(made.standard, made.problem.lam * made.problem.alpha).order
    place = torch.empty(count, dtype=torch.float64)
    place[dropped] = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    scores[alive] = place + (certificate.indicators > 0)
    return scores


class Moments(NamedTuple):
    """Of the columns of X: second moments G (P, P), about the mean (P,) where it is not None."""

    G: Tensor
    mean: Tensor | None


def moments_of(X: Tensor, centred: bool) -> Moments:
    """The moments of X (n, P); about zero unless ``centred``."""
    mean = X.mean(0) if centred else None
    rest = X if mean is None else X - mean
    return Moments(rest.mT @ rest / len(X), mean)


def refitted(moments: Moments, W: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """V (P, q), zero outside the columns ``kept`` (P,), and c (q,) with X V + c nearest to X W.

    c is zero where the moments are not centred.

    >>> X = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]).double()
    >>> W = torch.ones(2, 1).double()
    >>> V, _ = refitted(moments_of(X, False), W, torch.tensor([True, False]))
    >>> V.round(decimals=4).tolist()
    [[3.0], [0.0]]
    """
    G = moments.G[kept][:, kept]
    G.diagonal().add_(_RIDGE * float(moments.G.diagonal().mean()) + torch.finfo(G.dtype).tiny)
    V = torch.zeros_like(W)
    V[kept] = torch.linalg.solve(G, moments.G[kept] @ W)
    return V, W.new_zeros(W.shape[1]) if moments.mean is None else moments.mean @ (W - V)


@torch.no_grad()
def write_(layer: nn.Conv2d, V: Tensor, shift: Tensor, norm: nn.Module | None) -> None:
    """Give a convolution the weights V (c_in k, c_out) and a constant (c_out,).

    Where it has no bias the constant is taken off the running mean of ``norm``.
    """
    layer.weight.copy_(V.mT.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))
    elif norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(shift.to(mean))


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
        norms = [model.get_submodule(n) for n in following.get(name, [])]
        running = [n for n in norms if getattr(n, "running_mean", None) is not None]
        return running[0] if len(norms) == 1 and running else None

    def scores() -> dict[str, Tensor]:
        magnitudes = {name: norms.cpu() for name, norms in l1_norms(task.layers).items()}
        left = task.cut(magnitudes, "layers").masks  # how many stay does not depend on which
        names = [consumer.name for consumer in consumers.values()]
        patches = sample_patches(model, names, task.batches(task.seed), task.seed)
        result = dict(magnitudes)
        for layer, (name, entity) in consumers.items():
            convolution = model.get_submodule(name)
            centred = convolution.bias is not None or norm_of(name) is not None
            moments[layer] = moments_of(patches[name].X, centred)
            size = int(left[layer].sum())
            try:
                by_input = channel_scores(name, patches[name], len(entity), size, keys.seconds)
            except ValueError:  # a dead layer: nothing to reproduce, any order does
                continue
            result[layer] = torch.empty_like(by_input).index_copy_(0, entity, by_input)
        return result

    def finish(masks: Masks) -> None:
        for layer, (name, entity) in consumers.items():
            convolution = model.get_submodule(name)
            assert isinstance(convolution, nn.Conv2d)
            W = convolution.weight.detach().cpu().double().flatten(1).mT
            kept = masks[layer].cpu()[entity].repeat_interleave(len(W) // len(entity))
            write_(convolution, *refitted(moments[layer], W, kept), norm_of(name))

    return PruningPlan(scores=scores, across="layers", finish=finish)


METHOD = Method(
    title="layer-exact",
    kind="exact",
    paper="this project (`spr-or layers`)",
    plan=plan,
    keys=Keys,
    differs="filters that several layers read, or that write a residual stream, go by Σ|w|",
)
