"""Starts sweeps that can be killed: a line "SWEEP FOLDER", two workers (see forking_server)."""

import os
from pathlib import Path

import pytest
from forking_server import serve
from tiny_runs import no_pictures_in

from spr_or.sweeps.jobs import Job, run_job
from spr_or.sweeps.pools import LocalPool
from spr_or.sweeps.sweep import run_sweep
from spr_or.sweeps.sweep_file import load_sweep


def quick(job: Job) -> str | None:
    """A job without pictures and timings, which leaves word of who did it."""
    log = job.folder.parent.parent / "log.txt"
    with log.open("a") as stream:
        stream.write(f"{os.getpid()} {job.folder.name}\n")
    with pytest.MonkeyPatch.context() as patch:  # a pool of one works in the process of the test
        no_pictures_in(patch)
        return run_job(job)


def sweep(line: str) -> None:
    file, folder = map(Path, line.split())
    run_sweep(load_sweep(file), folder, LocalPool(2, quick, start_method="fork"))


if __name__ == "__main__":
    serve(sweep)
