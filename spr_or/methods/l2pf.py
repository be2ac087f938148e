r"""L2PF, learning to prune faster: a small agent tries structures and learns from their accuracy.

Vemparala, Fasfous, Frickenstein et al. 2021, arXiv:2101.02663. The abstract states a try-and-learn method
that learns which filters are redundant, together with how long to fine-tune, a continuous action. Our
reading, with an agent small enough for twenty episodes: its policy gives each layer l with features f_l
an action

.. math::  a_l \sim N(\theta \cdot f_l, \sigma^2), \qquad a_0 \sim N(\theta_0, \sigma^2)

and by it a share to remove. Entity i of rank r_i (a share of the layer, 1 the longest) has the score
r_i exp(-a_l), so that under a common threshold layers lose in proportion to exp(a_l), and the budget sets
the threshold. A copy of the network, cut like this, is fine-tuned for sigmoid(a_0) of ``steps`` steps. The
reward is the accuracy on a few batches of training, in percent, less ``price`` for the share of the steps.
After each episode REINFORCE moves the policy's means,

.. math::  \theta \leftarrow \theta + \eta\, A\, \frac1L \sum_l \frac{a_l - \theta \cdot f_l}{\sigma}\, f_l,

with A the reward less the mean of those so far, over their deviation. The first episode takes the means,
which remove the same share everywhere. The structure with the largest reward is the result.
"""

from __future__ import annotations

import copy
import math
from itertools import islice

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.pruning.budget import EntityNumbers
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.masks import apply_masks_, hold_masks
from spr_or.pruning.module_masks import module_masks
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

_SIGMA = 0.5  # deviation of an action
_RATE = 0.3  # eta
_REWARD_SEED = 1_000  # of the batches that judge, apart from those that train


class Keys(MethodKeys):
    """Keys of L2PF."""

    episodes: int = Field(default=20, ge=1)  # structures that are tried
    steps: int = Field(default=10, ge=1)  # steps of fine-tuning in an episode, at most
    batches: int = Field(default=4, ge=1)  # batches that judge a structure
    price: float = Field(default=1.0, ge=0)  # points of accuracy that all ``steps`` cost


def features(layers: tuple[LayerEntities, ...]) -> Tensor:
    """What the agent sees of each layer: (L, 5) float64, standardised over layers, the first 1.

    They are one, the place in the network, log N, log k, and the deviation of the entities' lengths
    over their mean. A feature that is equal in all layers is zero.
    """
    rows = list(entity_rows(layers).values())
    norms = [r.norm(dim=1).double().cpu() for r in rows]
    seen = [
        [float(i), math.log(len(n)), math.log(r.shape[1]), _spread(n)]
        for i, (r, n) in enumerate(zip(rows, norms, strict=True))
    ]
    columns = torch.tensor(seen, dtype=torch.float64)
    deviation = columns.std(0, correction=0)
    standard = torch.where(deviation > 1e-9, (columns - columns.mean(0)) / deviation, 0.0)
    return torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), standard], dim=1)


def _spread(norms: Tensor) -> float:
    mean = float(norms.mean())
    return float(norms.std(correction=0)) / mean if mean > 0 else 0.0


def ranked(rows: Tensor, action: float) -> Tensor:
    """Scores (N,) of a layer's entities, from rows (N, k) and the action of its layer.

    >>> rows = torch.tensor([[3.0], [1.0], [2.0], [4.0]])
    >>> ranked(rows, 0.0).tolist(), ranked(rows, math.log(2)).tolist()
    ([0.75, 0.25, 0.5, 1.0], [0.375, 0.125, 0.25, 0.5])
    """
    order = rows.norm(dim=1).argsort(stable=True).cpu()
    rank = torch.empty(len(rows), dtype=torch.float64)
    rank[order] = torch.arange(1, len(rows) + 1, dtype=torch.float64) / len(rows)
    return rank * math.exp(-action)


def advantage(rewards: list[float]) -> float:
    """The last reward less the mean of all, over their deviation; 0 where they are equal.

    >>> advantage([1.0, 3.0]), advantage([2.0])
    (1.0, 0.0)
    """
    numbers = torch.tensor(rewards, dtype=torch.float64)
    deviation = float(numbers.std(correction=0))
    return (rewards[-1] - float(numbers.mean())) / deviation if deviation > 1e-9 else 0.0


def best_scores(task: PruningTask, keys: Keys) -> EntityNumbers:
    """Scores of the structure with the largest reward of all episodes."""
    rows = entity_rows(task.layers)
    seen = features(task.layers)
    means, long = torch.zeros(seen.shape[1], dtype=torch.float64), 0.0  # theta, theta_0
    dice = torch.Generator().manual_seed(task.seed)
    judges = list(islice(task.batches(_REWARD_SEED), keys.batches))
    rewards: list[float] = []
    best: EntityNumbers = {}
    for episode in range(keys.episodes):
        noise = torch.randn(len(seen) + 1, generator=dice, dtype=torch.float64) * bool(episode)
        actions = (seen @ means + _SIGMA * noise[:-1]).tolist()
        share = 1 / (1 + math.exp(-(long + _SIGMA * float(noise[-1]))))
        pairs = zip(rows.items(), actions, strict=True)
        scores = {name: ranked(r, action) for (name, r), action in pairs}
        steps = max(1, round(share * keys.steps))
        reward = _accuracy(tried(task, scores, steps, episode), judges) - keys.price * share
        if not rewards or reward > max(rewards):
            best = scores
        rewards.append(reward)
        gain = _RATE * advantage(rewards)
        means = means + gain * (noise[:-1].unsqueeze(1) * seen).mean(0)
        long += gain * float(noise[-1])
    return best


def tried(task: PruningTask, scores: EntityNumbers, steps: int, episode: int) -> nn.Module:
    """A copy of the network, cut to the budget by the scores and fine-tuned for so many steps."""
    model = copy.deepcopy(task.model)
    masks = module_masks(task.model, task.layers, task.cut(scores).masks)
    apply_masks_(model, masks, task.example)
    hold = hold_masks(model, masks, task.example)
    optimizer = task.make_optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = task.rate(0)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(task.seed + episode)
        for images, labels in islice(task.batches(episode), steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            hold()
    return model


@torch.no_grad()
def _accuracy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return 100 * float(torch.cat(right).mean())


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by the best of the episodes; the network itself is not trained."""
    return PruningPlan(scores=lambda: best_scores(task, keys))


METHOD = Method(
    title="L2PF",
    kind="learning",
    paper="Vemparala, Fasfous, Frickenstein, Moraly, Jamal et al. 2021, arXiv:2101.02663",
    plan=plan,
    keys=Keys,
    differs="our reading; the agent sets the share of a layer, not single filters, and has few episodes",
)
