"""Whether fewer operations are less time: the table and the profiles of docs/lab/any_network.md.

Run ``python experiments/research/latency.py`` from the repository's root, on a machine that does
nothing else; ten minutes. From each network, with random weights, entities drawn at random go, the same
share of every layer, as large as it takes to halve the multiply-accumulates of its convolutions and
linear layers. Original and compact networks then take turns at one batch on one CPU thread. What is
compared is processor time, the median over turns of the ratios within a turn. A network that gets
less than 0.7 of the ratio of its operations is profiled: which operators got faster, and which did not.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from spr_or.models.mobilenet import mobilenetv2
from spr_or.models.resnet import resnet18
from spr_or.models.vgg import vgg16
from spr_or.models.vit import vit_tiny
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from spr_or.bench.training import take_turns
from spr_or.pruning.compaction.api import CompactionError, compact
from spr_or.pruning.counts import count_macs
from spr_or.pruning.groups import layer_masks
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.network_groups import network_groups
from spr_or.pruning.removed_share import Counter

SHARE_LEFT = 0.5  # of the multiply-accumulates
LEAST = 0.7  # of the ratio of operations: what the speed-up should reach
BATCHES = (1, 8)
ROUNDINGS = (1, 8)
_CLOSE = 0.01  # how near to SHARE_LEFT the search for the masks ends
_TRIES = 10  # shares of entities that the search tries
_PASSES = 10  # forward passes of a profile


@dataclass(frozen=True)
class Case:
    """A network, the shape of its images (C, H, W), and what is removed from it."""

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    entities: str


_NETWORKS: tuple[tuple[str, Callable[[], nn.Module], tuple[int, int, int], str], ...] = (
    ("ResNet-18", resnet18, (3, 224, 224), "filters"),
    ("VGG-16", vgg16, (3, 32, 32), "filters"),
    ("MobileNetV2", mobilenetv2, (3, 224, 224), "filters"),
    ("ViT-Tiny", vit_tiny, (3, 224, 224), "neurons"),
)
CASES = tuple(
    Case(name, build, image, entities)
    for name, build, image, own in _NETWORKS
    for entities in (own, "channels")
)


@dataclass(frozen=True)
class Row:
    """One compact network at one batch size; ``fast`` and ``slow`` are milliseconds a pass."""

    case: Case
    round_to: int
    batch: int
    macs_ratio: float
    slow: float
    fast: float
    speedup: float

    @property
    def share(self) -> float:
        """The speed-up as a share of the ratio of operations."""
        return self.speedup / self.macs_ratio


@dataclass(frozen=True)
class Entities:
    """What a case removes: how many entities each layer or group has, and their masks by layer."""

    counts: dict[str, int]
    by_layer: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def find_entities(model: nn.Module, case: Case) -> Entities:
    """Filters or neurons of each layer, or the channels of each stream."""
    if case.entities != "channels":
        layers = layer_entities(model, case.entities)
        return Entities({layer.name: layer.count for layer in layers}, lambda masks: masks)
    groups = network_groups(model, torch.zeros(2, *case.image), "channels")
    return Entities({g.name: g.count for g in groups}, partial(layer_masks, model, groups))


def draw_masks(entities: Entities, share: float, round_to: int) -> dict[str, Tensor]:
    """Keep ``share`` of the entities of every layer, a multiple of ``round_to``, drawn with seed 0."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name, count in entities.counts.items():
        wanted = max(1, round(share * count / round_to)) * round_to
        rank = torch.randperm(count, generator=generator)
        masks[name] = rank < min(wanted, count)
    return entities.by_layer(masks)


def halved(model: nn.Module, case: Case, round_to: int) -> nn.Module:
    """The compact network with `SHARE_LEFT` of the operations, as nearly as the rounding allows."""
    example = torch.zeros(2, *case.image)
    removed = Counter(model, example, of="macs")
    entities = find_entities(model, case)
    low, high, best, nearest = 0.0, 1.0, 1.0, 1.0
    for _ in range(_TRIES):
        middle = (low + high) / 2
        left = 1 - removed(draw_masks(entities, middle, round_to)) / 100
        if abs(left - SHARE_LEFT) < abs(nearest - SHARE_LEFT):
            best, nearest = middle, left
        if abs(left - SHARE_LEFT) < _CLOSE:
            break
        low, high = (middle, high) if left < SHARE_LEFT else (low, middle)
    return compact(model, draw_masks(entities, best, round_to), example)


def measure(case: Case, seconds: float) -> Iterator[Row]:
    """Every rounding at every batch size; prints a profile where the speed-up falls short."""
    torch.manual_seed(0)
    model = case.build().eval()
    networks = {round_to: halved(model, case, round_to) for round_to in ROUNDINGS}
    for batch in BATCHES:
        images = torch.randn(batch, *case.image)
        passes: list[Callable[[], object]] = [
            partial(network, images) for network in (model, *networks.values())
        ]
        turns = take_turns(passes, "cpu", seconds)
        slow, *others = (times.processor for times in turns)
        for (round_to, network), fast in zip(networks.items(), others, strict=True):
            row = Row(
                case,
                round_to,
                batch,
                count_macs(model, images.shape) / count_macs(network, images.shape),
                1e3 * statistics.median(slow),
                1e3 * statistics.median(fast),
                statistics.median(a / b for a, b in zip(slow, fast, strict=True)),
            )
            yield row
            if row.share < LEAST:
                print(f"\n{case.name}, {case.entities}, round_to = {round_to}, batch {batch}: why")
                print(operators(model, network, images), flush=True)


def operators(model: nn.Module, small: nn.Module, images: Tensor) -> str:
    """Markdown: milliseconds of each operator's own work in a pass of both networks."""
    before, after = own_times(model, images), own_times(small, images)
    names = sorted(before.keys() | after.keys(), key=lambda n: -after.get(n, 0.0))
    lines = [
        "| operator | original, ms | compact, ms | times as fast |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in names[:10]:
        slow, fast = before.get(name, 0.0), after.get(name, 0.0)
        lines.append(f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast if fast else 0:.2f} |")
    slow, fast = sum(before.values()), sum(after.values())
    return "\n".join([*lines, f"| all | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} |"])


def own_times(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Milliseconds that a forward pass spends in each operator itself, under the profiler."""
    model(images)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_PASSES):
            model(images)
    return {e.key: e.self_cpu_time_total / 1e3 / _PASSES for e in profiler.key_averages()}


def table(rows: list[Row]) -> str:
    """Markdown: operations, times, and the speed-up as a share of the ratio of operations."""
    lines = [
        "| network | entities | round_to | batch | MACs, ratio | ms | speed-up | share of the ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        lines.append(
            f"| {r.case.name} | {r.case.entities} | {r.round_to} | {r.batch} | {r.macs_ratio:.2f} | "
            f"{r.slow:.1f} → {r.fast:.1f} | {r.speedup:.2f} | {r.share:.2f} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """Measure the networks asked for, print profiles as they come and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(dict.fromkeys(case.name for case in CASES))
    kinds = list(dict.fromkeys(case.entities for case in CASES))
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--entities", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each batch size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for case in CASES:
        if case.name not in arguments.networks or case.entities not in arguments.entities:
            continue
        try:
            rows += measure(case, arguments.seconds)
        except CompactionError as error:
            print(f"\n{case.name} cannot be compacted: {error}", flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
