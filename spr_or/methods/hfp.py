r"""HFP, Holistic Filter Pruning: a loss on parameters and operations (Enderich, Timm, Burgard 2020).

Holistic Filter Pruning for Efficient Deep Neural Networks, WACV 2021, arXiv:2009.08169. Each entity has
a scale :math:`a_i`, one in the beginning, on its channels (`spr_or.methods.common.gates`) and an indicator

.. math:: b_i = [\,|a_i| \ge t\,], \qquad \frac{\partial b_i}{\partial |a_i|} := 1

(a step function with a straight-through gradient). The channels are multiplied by
:math:`a_i b_i`, again with the gradient passed straight through, so that a channel that is off may
return. With the numbers of channels that the indicators leave of what each layer reads and writes,

.. math::

    P(b) = \sum_l k_l\, n^\mathrm{in}_l(b)\, n^\mathrm{out}_l(b), \qquad
    M(b) = \sum_l p_l k_l\, n^\mathrm{in}_l(b)\, n^\mathrm{out}_l(b)

are weights and multiplications (:math:`k_l` the size of a kernel, :math:`p_l` its positions), and

.. math:: \mathrm{CE} + \lambda \Bigl(
          \bigl[P(b)/P(1) - \pi\bigr]_+^2 + \bigl[M(b)/M(1) - \pi\bigr]_+^2 \Bigr)

is trained by the shared SGD, whose weight decay acts on the scales too; π is the share that the budget
leaves. Entities of small :math:`|a_i|` go.

Our reading: of the paper only the abstract was at hand, and what papers that cite it say. They state the
indicators, the straight-through gradient and a loss on parameters and multiplications against a target;
how the loss measures the distance, that nothing is paid below the target, and that the largest scale of
a layer always stays on are ours. The paper has a target for each of both counts, here the budget's is
that of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.gates import add_gates
from spr_or.pruning.counts import Example, macs_by_layer
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.removed_share import Counter
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """The keys of HFP."""

    lam: float = Field(0.5, ge=0)  # weight of the loss on parameters and operations
    threshold: float = Field(0.1, gt=0, lt=1)  # t, below which a channel is off


@dataclass(frozen=True)
class Sizes:
    """Weights and multiplications as functions of how many entities of each of G layers go.

    Of the L layers that hold weights, layer l reads ``reads[l]`` channels, ``read_loss[l, g]`` fewer for
    each entity of layer g that goes, and writes ``writes[l]``; ``kernel`` and ``products`` (L,) are the
    weights and multiplications of a pair of channels.
    """

    reads: Tensor
    writes: Tensor
    read_loss: Tensor
    write_loss: Tensor
    kernel: Tensor
    products: Tensor

    def shares(self, gone: Tensor) -> Tensor:
        """The shares of weights and of multiplications that stay, (2,), when ``gone`` (G,) go.

        >>> one, none = torch.ones(1), torch.zeros(1, 1)
        >>> sizes = Sizes(3 * one, 4 * one, none, torch.ones(1, 1), 9 * one, 900 * one)
        >>> sizes.shares(torch.tensor([1.0])).tolist()
        [0.75, 0.75]
        """
        pairs = (self.reads - self.read_loss @ gone).clamp(min=0)
        pairs = pairs * (self.writes - self.write_loss @ gone).clamp(min=0)
        costs = torch.stack([self.kernel, self.products])
        return costs @ pairs / (costs @ (self.reads * self.writes))


def sizes_of(model: nn.Module, layers: tuple[LayerEntities, ...], example: Example) -> Sizes:
    """What each entity's going takes from which layer, read off from what compaction would leave.

    One entity of each layer is masked for this. A channel of a residual stream that several layers write
    is not narrower for one of them, so where filters are the entities only what they write themselves
    and what the layers behind them read counts.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> sizes = sizes_of(net, layer_entities(net, {"0": "filters"}), torch.zeros(2, 1, 8, 8))
    >>> sizes.shares(torch.tensor([2.0])).tolist()
    [0.5, 0.5]
    """
    count = Counter(model, example)
    whole = count.weights({})
    names = list(whole)
    read_loss = torch.zeros(len(names), len(layers))
    write_loss = torch.zeros(len(names), len(layers))
    for g, layer in enumerate(layers):
        keep = {layer.name: torch.arange(layer.count) > 0}
        left = count.weights(module_masks(model, layers, keep))
        for row, name in enumerate(names):
            outputs, inputs = left.get(name, (0, 0))[:2]  # a layer may go with its only entity
            write_loss[row, g] = whole[name][0] - outputs
            read_loss[row, g] = whole[name][1] - inputs
    macs = macs_by_layer(model, example)
    weights = torch.tensor([float(torch.Size(whole[n]).numel()) for n in names])
    reads = torch.tensor([float(whole[n][1]) for n in names])
    writes = torch.tensor([float(whole[n][0]) for n in names])
    products = torch.tensor([float(macs.get(n, 0)) for n in names])
    pairs = reads * writes
    device = next(model.parameters()).device
    parts = (reads, writes, read_loss, write_loss, weights / pairs, products / pairs)
    return Sizes(*(part.to(device) for part in parts))


def indicators(scales: Tensor, sizes: list[int], threshold: float) -> Tensor:
    """b (n,), 1 for scales from ``threshold`` on and for the largest of each layer, with a gradient of one.

    >>> scales = torch.tensor([0.05, -0.9, 0.01, 0.02], requires_grad=True)
    >>> b = indicators(scales, [2, 2], 0.1)
    >>> b.sum().backward()
    >>> b.tolist(), scales.grad.tolist()
    ([0.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 1.0])
    """
    size = scales.abs()
    with torch.no_grad():
        largest = torch.cat([part.amax().expand(len(part)) for part in size.split(sizes)])
        step = (size >= largest.clamp(max=threshold)).to(size.dtype)
    return step + size - size.detach()


def switched(scales: Tensor, sizes: list[int], threshold: float) -> Tensor:
    """a · b (n,), with the gradient of a.

    >>> scales = torch.tensor([0.05, 0.9], requires_grad=True)
    >>> product = switched(scales, [2], 0.1)
    >>> product.sum().backward()
    >>> [round(x, 4) for x in product.tolist()], scales.grad.tolist()
    ([0.0, 0.9], [1.0, 1.0])
    """
    on = indicators(scales, sizes, threshold).detach()
    return (scales * on).detach() + scales - scales.detach()


def excess(shares: Tensor, target: float) -> Tensor:
    """The sum of squares of what ``shares`` are above ``target``.

    >>> round(float(excess(torch.tensor([0.5, 0.3]), 0.4)), 4)
    0.01
    """
    return (shares - target).clamp(min=0).square().sum()


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with the loss on the sizes; score by the scales."""
    layer_sizes = [layer.count for layer in task.layers]
    gates = add_gates(
        task.model, task.layers, task.example,
        lambda scales: switched(scales, layer_sizes, keys.threshold),
    )  # fmt: skip
    scales = gates.values
    gates.detach()  # sizes are those of the network without gates
    sizes = sizes_of(task.model, task.layers, task.example)
    gates.attach(task.model)
    target = 1 - task.target_pct / 100
    owner = torch.arange(len(layer_sizes)).repeat_interleave(torch.tensor(layer_sizes))
    owner = owner.to(scales.device)

    def shares() -> Tensor:
        off = 1 - indicators(scales, layer_sizes, keys.threshold)
        gone = scales.new_zeros(len(layer_sizes)).index_add(0, owner, off)
        return sizes.shares(gone)

    def after_epoch(epoch: int) -> dict[str, Any]:
        weights, products = (100 * shares().detach()).tolist()
        return {"weights_on_pct": weights, "multiplications_on_pct": products}

    @torch.no_grad()
    def load(state: dict[str, Any]) -> None:
        scales.copy_(state["scales"])

    return PruningPlan(
        scores=lambda: gates.of_entities(scales.abs(), task.layers),
        trains=True,
        parameters=(scales,),
        term=lambda images, logits, labels: keys.lam * excess(shares(), target),
        after_epoch=after_epoch,
        state=lambda: {"scales": scales.detach().clone()},
        load=load,
        finish=lambda masks: gates.fold([masks[layer.name] for layer in task.layers]),
    )


METHOD = Method(
    title="HFP",
    kind="regulariser",
    paper="Enderich, Timm, Burgard 2020, WACV 2021, arXiv:2009.08169",
    plan=plan,
    keys=Keys,
    differs=(
        "our reading of the abstract and of citing papers; the budget's target is that of parameters "
        "and of multiplications"
    ),
)
