"""A process that starts sweeps on demand, each in a child that can be killed (see kill_worker.py).

Protocol: 0 when ready; a line "SWEEP FOLDER" starts the sweep there with two workers and gives its
process id; a line "wait" waits for it and gives its exit status.
"""

import os
import sys
import traceback
from pathlib import Path

import sklearn.datasets  # noqa: F401  # what a run imports late, paid once for all children
import sklearn.model_selection  # noqa: F401
import torch
import torch._dynamo  # noqa: F401

from spr_or.sweeps.jobs import Job, run_job
from spr_or.sweeps.pools import LocalPool
from spr_or.sweeps.sweep import run_sweep
from spr_or.sweeps.sweep_file import load_sweep
from spr_or.training.report import summary as report


def quick(job: Job) -> str | None:
    """A job without pictures and timings, which leaves word of who did it."""
    report._draw = lambda *arguments: []
    report.latency_ms = lambda *arguments: [1.0, 1.0]
    report.spr_step_overhead = lambda *arguments: 1.0
    log = job.folder.parent.parent / "log.txt"
    with log.open("a") as stream:
        stream.write(f"{os.getpid()} {job.folder.name}\n")
    return run_job(job)


def serve() -> None:
    torch.set_num_threads(1)
    child = 0
    print(0, flush=True)
    for line in sys.stdin:
        if line.strip() == "wait":
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sweep, folder = map(Path, line.split())
                run_sweep(load_sweep(sweep), folder, LocalPool(2, quick, start_method="fork"))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    serve()
