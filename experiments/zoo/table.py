"""The results as Markdown: one line a network, then what failed and why, then the counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]
Results = Mapping[tuple[str, str], Record]
METHODS = {
    "filters": "SPR, each layer",
    "channels": "SPR, channels",
    "torch-pruning": "Torch-Pruning",
}


def print_table(results: Results) -> None:
    """Everything that the records say."""
    for line in (*table(results), "", *failures(results), "", *summary(results)):
        print(line)


def table(results: Results) -> Iterator[str]:
    """Removed parameters and MACs in per cent, and how many times as fast one thread is."""
    heads = ["network", "input", "parameters, million", "float32 diff.", "float64 diff."]
    heads += [f"{method}: params, MACs, speed" for method in METHODS.values()]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * 2 + " ---: |" * (len(heads) - 2)
    for name in _names(results):
        yield "| " + " | ".join(_cells(name, results)) + " |"


def failures(results: Results) -> Iterator[str]:
    """Every stage that failed, where and why; and networks that take one batch size only."""
    for (name, stage), record in results.items():
        if not record["ok"]:
            reason = " ".join(record["error"].split())
            step = f", {record['step']}" if "step" in record else ""
            yield f"- {name}, {stage}{step}: {reason}"
        elif record.get("other_batch", True) is not True:
            yield f"- {name}, {stage}, another batch size: {record['other_batch']}"


def summary(results: Results) -> Iterator[str]:
    """Successes by group of networks, and where Torch-Pruning does more."""
    for method, words in METHODS.items():
        counts = []
        for group in ("listed", "further"):
            taken = [
                r["ok"] for (_, s), r in results.items() if s == method and r["group"] == group
            ]
            counts.append(f"{sum(taken)} of {len(taken)}")
        yield f"{words}: {counts[0]} listed networks and {counts[1]} further ones"
    for ours in ("filters", "channels"):
        lost = [
            name
            for name in _names(results)
            if _succeeds(results, name, "torch-pruning") and not _succeeds(results, name, ours)
        ]
        yield f"Torch-Pruning takes, {METHODS[ours]} does not: {', '.join(lost) or 'none'}"
    fewer = [
        f"{name} ({_removed(ours, 'params'):.1f} against {_removed(theirs, 'params'):.1f} %)"
        for name in _names(results)
        if _succeeds(results, name, "channels") and _succeeds(results, name, "torch-pruning")
        for ours, theirs in [(results[name, "channels"], results[name, "torch-pruning"])]
        if ours["params"] > theirs["params"]
    ]
    yield f"Fewer parameters removed by channels than by Torch-Pruning: {', '.join(fewer) or 'none'}"


def _names(results: Results) -> list[str]:
    """Listed networks first, each group in the order in which it was run."""
    groups = {name: record["group"] for (name, _), record in results.items()}
    return sorted(groups, key=lambda name: groups[name] != "listed")


def _cells(name: str, results: Results) -> list[str]:
    latency = results.get((name, "latency"), {}).get("milliseconds", {})
    records = [results[name, method] for method in METHODS if (name, method) in results]
    dense = next((f"{r['dense_params'] / 1e6:.2f}" for r in records if "dense_params" in r), "")
    size = next(record["size"] for (of, _), record in results.items() if of == name)
    cells = [name, size, dense, _worst(records, "float32"), _worst(records, "float64")]
    return cells + [_gain(results.get((name, method)), latency, method) for method in METHODS]


def _worst(records: list[Record], key: str) -> str:
    """The larger difference of our two ways."""
    seen = [record[key] for record in records if key in record]
    return f"{max(seen):.1e}" if seen else ""


def _gain(record: Record | None, latency: Mapping[str, float], method: str) -> str:
    """In brackets where the network was made and something else failed."""
    if record is None:
        return ""
    if "params" not in record or "dense_params" not in record:
        return "no"
    text = ", ".join(f"{_removed(record, key):.1f} %" for key in ("params", "macs"))
    if method in latency:
        text += f", {latency['dense'] / latency[method]:.2f}"
    return text if record["ok"] else f"({text})"


def _removed(record: Record, key: str) -> float:
    return 100 * (1 - record[key] / record[f"dense_{key}"])


def _succeeds(results: Results, name: str, method: str) -> bool:
    return bool(results.get((name, method), {"ok": False})["ok"])
