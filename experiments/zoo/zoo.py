"""Prune a zoo of public networks by SPR and by Torch-Pruning, and print what came of it.

``python zoo.py run`` takes every network in a process of its own and adds a line of JSON to the
results for each stage; what is there already is not repeated. ``python zoo.py table`` prints the
results as Markdown. How to make the environment: README.md beside this file.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STAGES = ("filters", "channels", "torch-pruning", "latency")
DEFAULT_RESULTS = Path("runs/zoo.jsonl")
DEATHS = {signal.SIGPROF: "time limit", signal.SIGKILL: "killed, perhaps out of memory"}
Results = dict[tuple[str, str], dict[str, Any]]


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table", "one"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=Path, default=DEFAULT_RESULTS)
        if name == "table":
            continue
        command.add_argument("--stages", default=",".join(STAGES), help="which, comma-separated")
        command.add_argument(
            "--seconds", type=int, default=180, help="processor time a stage may take"
        )
        command.add_argument("--gigabytes", type=float, default=8.0, help="limit of a process")
        if name == "run":
            command.add_argument("--only", default="*", help="pattern of network names")
            command.add_argument(
                "--retry-failed", action="store_true", help="take stages that failed once more"
            )
        else:
            command.add_argument("name")
    options = parser.parse_args()
    if options.command == "table":
        from table import print_table

        print_table(read(options.results))
    elif options.command == "run":
        run(options)
    else:
        one(options)


def read(path: Path, start: int = 0) -> Results:
    """The last record of each network and stage, from a byte on; a line cut short is left out."""
    found: Results = {}
    if path.exists():
        for line in path.read_bytes()[start:].decode().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[record["name"], record["stage"]] = record
    return found


def append(path: Path, record: dict[str, Any]) -> None:
    """One line more, on the disk before this returns; it does not go on a line that was cut short."""
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run(options: argparse.Namespace) -> None:
    """Every network in its own process, again without the stage in which a process died."""
    from networks import ALL

    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.touch()
    for name, network in ALL.items():
        if not fnmatch.fnmatch(name, options.only):
            continue
        known = read(options.results)
        asked = options.stages.split(",")
        todo = [stage for stage in asked if _is_due(known.get((name, stage)), options.retry_failed)]
        if todo and "latency" in asked and "latency" not in todo:
            todo.append("latency")  # it has something new to measure
        while todo:
            start = options.results.stat().st_size
            status = _process(options, name, todo)
            new = read(options.results, start)
            todo = [stage for stage in todo if (name, stage) not in new]
            if todo:
                why = DEATHS.get(-status, f"the process ended with status {status}")
                dead = {**network.identity(todo.pop(0)), "ok": False, "error": why}
                append(options.results, dead)
        print(summary_line(name, read(options.results)), flush=True)


def _is_due(record: dict[str, Any] | None, retry_failed: bool) -> bool:
    return record is None or (retry_failed and not record["ok"])


def _process(options: argparse.Namespace, name: str, stages: list[str]) -> int:
    words = [sys.executable, str(HERE / "zoo.py"), "one", name, "--stages", ",".join(stages)]
    words += ["--results", str(options.results), "--seconds", str(options.seconds)]
    words += ["--gigabytes", str(options.gigabytes)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with options.results.with_suffix(".log").open("a") as log:
        log.write(f"== {name} {stages}\n")
        log.flush()
        return subprocess.run(words, env=environment, stdout=log, stderr=log).returncode


def one(options: argparse.Namespace) -> None:
    """The stages of one network in this process; each has its time, after which the process dies."""
    limit = int(options.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from stages import Subject, run_stage

    _limit_time(options.seconds)
    subject = Subject.of(options.name)
    for stage in options.stages.split(","):
        _limit_time(options.seconds)
        known = read(options.results)
        append(options.results, run_stage(subject, stage, known))


def _limit_time(seconds: int) -> None:
    """Let the process die after so much more processor time; others may keep the machine busy."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def summary_line(name: str, results: Results) -> str:
    """What became of one network, in a line."""
    words = []
    for stage in STAGES:
        record = results.get((name, stage))
        if record is not None:
            words.append(f"{stage} {'ok' if record['ok'] else record['error'][:60]}")
    return f"{name}: " + "; ".join(words)


if __name__ == "__main__":
    main()
