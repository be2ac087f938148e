"""How far the cut by rank is from the cheapest: the first table of docs/lab/exact_cut.md.

Run ``python experiments/research/exact_cut.py`` from the repository's root. No network is trained:
ResNet-20 has the weights stored here, the others have fresh ones whose filters are scaled by lognormal
factors, so that their prices differ. Both cuts remove at least as much, and pay the same prices N(w_i).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from models.mobilenet import mobilenetv2
from models.resnet_cifar import resnet20, resnet56
from models.vgg import vgg16
from spr_or.pruning.budget import choose, layer_limits
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.exact_cut_masks import cut_task, exact_masks
from spr_or.pruning.largest_lam import distances
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.removed_share import Counter
from spr_or.pruning.steering import importances
from spr_or.training.setup import load_weights
from spr_or.utils.stored_weights import find_weights

NETWORKS = {
    "ResNet-20": resnet20, "ResNet-56": resnet56, "VGG-16": vgg16, "MobileNetV2": mobilenetv2,
}  # fmt: skip
TARGETS = (50.0, 70.0)
SPREAD = 0.7  # standard deviation of the logarithm of a filter's factor
SLACK = 0.1  # points by which `cut_task` lets a budget be missed


def network(name: str) -> nn.Module:
    """One of the four, with weights whose prices differ."""
    torch.manual_seed(0)
    model: nn.Module = NETWORKS[name]()
    if name == "ResNet-20":
        load_weights(model, find_weights("cifar10_resnet20"))
        return model
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_((SPREAD * torch.randn(len(p))).exp().view(-1, *[1] * (p.dim() - 1)))
    return model


def rows(name: str) -> list[str]:
    """A line of the table for each measure and target."""
    model, example = network(name), torch.zeros(2, 3, 32, 32)
    chosen = chosen_entities(model, example, "channels")._asdict()
    spr = SPR(model, 1.0, 0.1, SPR.bounds_from(model, **chosen), **chosen)
    layers = spr.ordered_layers()
    far = distances(spr).split([layer.count for layer in layers])
    rank = {layer.name: part for layer, part in zip(layers, far, strict=True)}
    u = importances(spr)
    prices = {name: rank[name] * u[name] for name in rank}
    age = {name: torch.zeros_like(part) for name, part in rank.items()}
    alive = {layer.name: torch.ones(layer.count, dtype=torch.bool) for layer in spr.layers}
    limits = layer_limits({layer.name: layer.count for layer in spr.layers})
    lines = []
    for of in ("params", "macs"):
        counter = Counter(model, example, of=of)  # type: ignore[arg-type]

        def count(masks: dict[str, torch.Tensor], counter: Counter = counter) -> float:
            return counter(module_masks(model, spr.layers, masks))

        for target in TARGETS:
            by_rank = choose(count, alive, rank, age, target, limits)
            least = min(target, by_rank.removed_pct + SLACK)
            task = cut_task(model, example, spr.layers, limits, {of: least})
            began, started = time.process_time(), time.perf_counter()
            cut = exact_masks(task, prices, alive, age, by_rank)
            seconds, wall = time.process_time() - began, time.perf_counter() - started
            assert cut.rank_price is not None
            lines.append(
                f"| {name} | {of} | {target:g} % | {by_rank.removed_pct:.2f} % | "
                f"{count(cut.masks):.2f} % | {cut.rank_price:.4g} | {cut.choice.price:.4g} | "
                f"{100 * (cut.rank_price / cut.choice.price - 1):.1f} % | {cut.choice.gap:.1e} | "
                f"{seconds:.1f} s | {wall:.1f} s |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="which of the four")
    for name in parser.parse_args().networks:
        rows(name)


if __name__ == "__main__":
    main()
