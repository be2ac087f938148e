"""Which filters of ResNet-18 stay by group_norm and bn_gamma, and which by Torch-Pruning.

Run it in the zoo's environment (experiments/zoo/README.md), which has Torch-Pruning:

    python experiments/research/torch_pruning_agreement.py

The network is ours with torchvision's layers, random weights, and scales drawn anew, for initialisation
leaves them equal. Entities are channels, half of them go: the lowest of each group, or of the whole
network. Torch-Pruning's MagnitudeImportance(p=2) stands against group_norm, its BNScaleImportance against
bn_gamma. Over the whole network their BN importance is each group's share of its own mean, network slimming
compares |γ| itself; so there it is asked without its normalisation. Exit status: 0 where at least 99 % of
the filters kept are the same in every case, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.resnet import resnet18
from spr_or.methods import bn_gamma, group_norm
from spr_or.methods.common.writers import scaling_norms
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.layer_entities import LayerEntities, layer_entities
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.network_groups import features
from spr_or.training.method import Across, cut_by_score

RATIO = 0.5
LEAST = 0.99
SIDE = 64
Scores = Callable[[nn.Module, tuple[LayerEntities, ...]], dict[str, Tensor]]


def network(seed: int) -> nn.Module:
    """ResNet-18 with random weights and scales."""
    torch.manual_seed(seed)
    net = resnet18()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 2.0)
    return net.eval()


def by_group_norm(model: nn.Module, layers: tuple[LayerEntities, ...]) -> dict[str, Tensor]:
    """Scores of `spr_or.methods.group_norm`."""
    found, following = features(model, torch.zeros(2, 3, SIDE, SIDE)), following_norms(model)
    return {
        layer.name: group_norm.relative(group_norm.squared_norms(model, layer, found, following))
        for layer in layers
    }


def by_gamma(model: nn.Module, layers: tuple[LayerEntities, ...]) -> dict[str, Tensor]:
    """Scores of `spr_or.methods.bn_gamma`, without its training."""
    norms = {layer.name: scaling_norms(model, layer, {}) for layer in layers}
    return bn_gamma.scale_scores(model, norms, {layer.name: layer.count for layer in layers})


def ours(model: nn.Module, scores: Scores, across: Across) -> dict[str, Tensor]:
    """The filters that stay, {convolution: bool (N,)}."""
    layers = layer_entities(model, "channels", example=torch.zeros(2, 3, SIDE, SIDE))
    channels = sum(layer.count for layer in layers)

    def share(masks: Mapping[str, Tensor]) -> float:
        return 100 * sum(int((~keep).sum()) for keep in masks.values()) / channels

    choice = cut_by_score(share, scores(model, layers), 100 * RATIO, across)
    kept = module_masks(model, layers, choice.masks)
    modules = dict(model.named_modules())
    return {name: keep for name, keep in kept.items() if isinstance(modules[name], nn.Conv2d)}


def theirs(model: nn.Module, importance: object, across: Across) -> dict[str, Tensor]:
    """The filters that Torch-Pruning would keep, {convolution: bool (N,)}."""
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    kept = {
        name: torch.ones(module.out_channels, dtype=torch.bool)
        for module, name in names.items()
        if isinstance(module, nn.Conv2d)
    }
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, SIDE, SIDE),
        importance=importance,
        pruning_ratio=RATIO,
        global_pruning=across == "network",
        ignored_layers=[model.fc],
    )
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            if dependency.handler == tp.prune_conv_out_channels:
                kept[names[dependency.target.module]][indices] = False
    return kept


def agreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The share of the filters kept by ``other`` that ``one`` keeps too.

    >>> agreement({"a": torch.tensor([True, False, True])}, {"a": torch.tensor([True, True, False])})
    0.5
    """
    both = sum(int((one[name] & keep).sum()) for name, keep in other.items())
    return both / sum(int(keep.sum()) for keep in other.values())


def cases() -> dict[str, tuple[Scores, Callable[[Across], object]]]:
    """Our scores and their importance, by name."""
    import torch_pruning as tp

    return {
        "group_norm": (by_group_norm, lambda _: tp.importance.MagnitudeImportance(p=2)),
        "bn_gamma": (
            by_gamma,
            lambda across: tp.importance.BNScaleImportance(
                normalizer=None if across == "network" else "mean"
            ),
        ),
    }


def main() -> int:
    """Print the agreement of every case; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    worst = 1.0
    for name, (scores, importance) in cases().items():
        for across in ("layers", "network"):
            for seed in range(arguments.seeds):
                mine = ours(network(seed), scores, across)
                other = theirs(network(seed), importance(across), across)
                share = agreement(mine, other)
                kept = sum(int(keep.sum()) for keep in other.values())
                print(
                    f"{name:11} over {across:8} seed {seed}: {100 * share:6.2f} % of {kept} filters"
                )
                worst = min(worst, share)
    return 0 if worst >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
