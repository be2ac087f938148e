"""How much faster a pruned classifier is verified: dense, SPR and magnitude, by HiGHS and by SCIP.

From the repository's root, on a CPU:

    spr-or compare experiments/embedding/pruned.toml --out runs/embedding
    python experiments/embedding/verify.py runs/embedding

The first command trains the classifier and prunes it (half a minute of processor time). The second asks, for
20 images that all five networks classify rightly, three radii and two solvers, whether the image's class is
robust. Answers are appended to ``cases.jsonl`` as they come, so the same command goes on after a stop. At the
end it prints the table of docs/lab/embedding.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from spr_or.embedding.comparison import as_plain, ask_all, right_images
from spr_or.embedding.pair import accuracy, load_pair
from spr_or.embedding.robustness import How
from spr_or.pruning.counts import count_parameters
from spr_or.utils.terminal import console, show, table

RADII = (0.05, 0.1, 0.15)
SOLVERS = ("highs", "scip")
# Name in the table, and the folder of the run that pruned it.
PRUNED = {
    f"{shown}, {budget} %": f"method={name},budget={budget}.0,seed=0"
    for shown, name in (("SPR", "spr-prox"), ("magnitude", "pffec"))
    for budget in (50, 75)
}


def main() -> None:
    """Ask what is not known yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="what spr-or compare wrote")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for each case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = {name: load_pair(arguments.runs / "runs" / folder) for name, folder in PRUNED.items()}
    first = next(iter(pairs.values()))
    networks = {"dense": first.dense} | {name: pair.pruned for name, pair in pairs.items()}
    images = right_images(networks, first, arguments.images)
    file = arguments.runs / "cases.jsonl"
    known = read_cases(file)
    for solver in SOLVERS:
        have = {(c["network"], c["image"], c["radius"]) for c in known if c["solver"] == solver}
        how = How(solver=solver, time_limit=arguments.time_limit)
        smallest = {"smallest": networks["SPR, 75 %"]}
        list(ask_all(smallest, first, images[:1], RADII, how))  # imports the solver, untimed
        unknown = ask_all(
            networks, first, images, RADII, how, skip=lambda *key, have=have: key in have
        )
        for case in unknown:
            if case.answer.answer == "interrupted":
                raise SystemExit("interrupted: the same command goes on")
            known.append({"solver": solver, **as_plain(case)})
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(known[-1]) + "\n")
    facts = {name: (accuracy(net, first), count_parameters(net)) for name, net in networks.items()}
    report(known, facts)


def read_cases(file: Path) -> list[dict[str, Any]]:
    """The answers so far; a last line that was cut is asked again."""
    cases = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            cases.append(json.loads(line))
        except json.JSONDecodeError:
            break
    file.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    return cases


def report(cases: Sequence[dict[str, Any]], facts: dict[str, tuple[float, int]]) -> None:
    """A table of the networks, and one for each solver with a row for each network and radius."""
    columns = [f"{name} {radius:g}" for name in ("binaries", "root") for radius in RADII]
    rows = [
        [name, f"{parameters:,}", f"{right:.2f}"]
        + [
            f"{mean(c[key] for c in cases if (c['network'], c['radius']) == (name, radius)):.{digits}f}"
            for key, digits in (("binaries", 1), ("root", 2))
            for radius in RADII
        ]
        for name, (right, parameters) in facts.items()
    ]
    show(console(), table(("network", "parameters", "accuracy", *columns), rows, text=("network",)))
    for solver in SOLVERS:
        dense = seconds_of(cases, solver, "dense")
        rows = []
        for name in facts:
            spent = seconds_of(cases, solver, name)
            for radius in RADII:
                own = [c for c in chosen(cases, solver, name) if c["radius"] == radius]
                keys = [key for key in spent if key[1] == radius and key in dense]
                whole, median = times_faster(dense, spent, keys)
                count = {
                    word: sum(c["answer"] == word for c in own) for word in ("robust", "broken")
                }
                rows.append(
                    [
                        name, f"{radius:g}", f"{mean(c['nodes'] for c in own):.0f}",
                        f"{mean(c['processor_seconds'] for c in own):.3f}",
                        f"{statistics.median(c['processor_seconds'] for c in own):.3f}",
                        f"{whole:.1f}", f"{median:.1f}", str(count["robust"]), str(count["broken"]),
                        str(len(own) - sum(count.values())),
                    ]
                )  # fmt: skip
            whole, median = times_faster(dense, spent, list(dense))
            print(f"{solver}, {name}: {whole:.1f} times faster in all, median {median:.1f}")
        columns = [
            "network", "radius", "nodes", "mean s", "median s", "times faster", "median", "robust",
            "broken", "undecided",
        ]  # fmt: skip
        show(console(), table(columns, rows, title=solver, text=("network",)))
    contradicted = [case for case in cases if case["answer"] == "contradicted"]
    tried = [case["attack"] for case in cases if case["answer"] == "robust"]
    print(f"{len(tried)} proofs, largest margin of an attack on one {max(tried):.4f}")
    print(f"{len(contradicted)} proofs refuted")


def times_faster(
    dense: dict[tuple[int, float], float],
    spent: dict[tuple[int, float], float],
    keys: Sequence[tuple[int, float]],
) -> tuple[float, float]:
    """How many times the seconds of the dense network: in all cases together, and the median of the cases."""
    whole = sum(dense[key] for key in keys) / sum(spent[key] for key in keys)
    return whole, statistics.median(dense[key] / spent[key] for key in keys)


def chosen(cases: Sequence[dict[str, Any]], solver: str, network: str) -> list[dict[str, Any]]:
    """The cases of a solver and a network."""
    return [case for case in cases if (case["solver"], case["network"]) == (solver, network)]


def seconds_of(
    cases: Sequence[dict[str, Any]], solver: str, network: str
) -> dict[tuple[int, float], float]:
    """Processor seconds by image and radius."""
    return {
        (case["image"], case["radius"]): case["processor_seconds"]
        for case in chosen(cases, solver, network)
    }


def mean(numbers: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(numbers)


if __name__ == "__main__":
    main()
