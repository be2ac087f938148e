"""The same questions about several networks: one answer for each network, radius and image, and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from spr_or.embedding.pair import Pair, ball
from spr_or.embedding.reading import read_network
from spr_or.embedding.robustness import Answer, How, decide_robustness, largest_output

TASKS = ("robustness", "max")
COLUMNS = (
    "network", "radius", "binaries", "width", "root", "programs", "nodes", "seconds",
    "processor_seconds",
)  # fmt: skip
DECIDED = {"robustness": ("robust", "broken"), "max": ("largest",)}


class Case(NamedTuple):
    """An answer, and what was asked: of which network, about which evaluation image and radius."""

    network: str
    image: int
    radius: float
    answer: Answer


def right_images(networks: Mapping[str, nn.Module], pair: Pair, count: int) -> list[int]:
    """The first evaluation images that all networks classify rightly, at most ``count``."""
    right = torch.ones(len(pair.labels), dtype=torch.bool)
    with torch.no_grad():
        for net in networks.values():
            right &= net(pair.images).argmax(1) == pair.labels
    return right.nonzero().flatten()[:count].tolist()


def ask_all(
    networks: Mapping[str, nn.Module],
    pair: Pair,
    images: Sequence[int],
    radii: Sequence[float],
    how: How,
    task: str = "robustness",
    output: int | None = None,
    skip: Callable[[str, int, float], bool] = lambda network, image, radius: False,
) -> Iterator[Case]:
    """Answers, image by image, the networks in turn, so that all see the same load of the machine.

    task : "robustness" of the image's class, or "max", the largest value of ``output`` (None: of the
        output of the image's class)
    skip : cases that are known already
    Raises `EmbeddingError` before any solver starts where a network cannot be encoded.
    """
    shape = tuple(pair.images.shape[1:])
    read = {name: read_network(net, shape) for name, net in networks.items()}
    for image in images:
        label = int(pair.labels[image])
        for radius in radii:
            lower, upper = ball(pair, pair.images[image], radius)
            for name, net in networks.items():
                if skip(name, image, radius):
                    continue
                if task == "robustness":
                    found = decide_robustness(net, read[name], label, lower, upper, how)
                else:
                    chosen = label if output is None else output
                    found = largest_output(net, read[name], chosen, lower, upper, how)
                yield Case(name, image, radius, found)
                if found.answer == "interrupted":
                    return


def summary(cases: Iterable[Case], task: str) -> list[dict[str, Any]]:
    """A row for each network and radius: means of the figures, and how many cases had which answer."""
    groups: dict[tuple[str, float], list[Answer]] = {}
    for case in cases:
        groups.setdefault((case.network, case.radius), []).append(case.answer)
    rows = []
    for (network, radius), answers in groups.items():
        row: dict[str, Any] = {"network": network, "radius": radius}
        for key in COLUMNS[2:]:
            row[key] = sum(getattr(answer, key) for answer in answers) / len(answers)
        for word in DECIDED[task]:
            row[word] = sum(answer.answer == word for answer in answers)
        row["undecided"] = len(answers) - sum(row[word] for word in DECIDED[task])
        rows.append(row)
    return rows


def as_plain(case: Case) -> dict[str, Any]:
    """A case as plain values for JSON, without the point."""
    answer = {k: v for k, v in case.answer._asdict().items() if k != "point"}
    return {"network": case.network, "image": case.image, "radius": case.radius, **answer}
