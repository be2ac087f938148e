"""Where jobs run: in processes of this machine, or on a Ray cluster.

A pool takes jobs with ``submit`` and hands back one that ended with ``wait``. It is a context
manager; leaving it stops what still runs. Such a run continues later from its last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from spr_or.sweeps.jobs import Job, run_job
from spr_or.utils.interrupts import deaf_children, held_interrupt
from spr_or.utils.orphans import end_with_parent

Work = Callable[[Job], str | None]
Ended = tuple[Job, str | None]


class Pool(Protocol):
    """What `spr_or.sweeps.sweep.run_sweep` needs of a pool."""

    def __enter__(self) -> Pool: ...
    def __exit__(self, *exception: Any) -> None: ...

    def room(self) -> bool:
        """Whether another job can be submitted now."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self) -> Ended:
        """Block until a job ends; the job, and its error if it failed."""


class LocalPool:
    """``workers`` processes, each doing one job after another.

    A worker that dies (out of memory, a crash in native code) takes one job with it; the next one
    gets a new worker. Workers end when this process does, even if it is killed. ``start_method``
    is that of `multiprocessing`; a CUDA device needs "spawn".
    """

    def __init__(self, workers: int = 1, work: Work = run_job, start_method: str = "spawn") -> None:
        if workers < 1:
            raise ValueError(f"a sweep needs at least one job at a time, got {workers}")
        self._context: Any = multiprocessing.get_context(start_method)
        self._work = work
        self._workers = workers
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Job]] = {}

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self._busy.values():
            process.kill()
        for _, connection in self._idle:
            with suppress(OSError):  # a worker that has died needs no word
                connection.send(None)  # no more jobs
        for process in [p for p, _ in self._busy.values()] + [p for p, _ in self._idle]:
            process.join()

    def room(self) -> bool:
        """Whether a worker is free."""
        return len(self._busy) < self._workers

    def submit(self, job: Job) -> None:
        """Give a job to a free worker."""
        with held_interrupt():  # a worker that is in no list is never ended
            process, connection = self._living() or self._start()
            with suppress(OSError):  # one that dies now is told by `wait`
                connection.send(replace(job, measuring=self._workers == 1))
            self._busy[connection] = (process, job)

    def wait(self) -> Ended:
        """The next job to end."""
        connection = wait(list(self._busy))[0]
        assert isinstance(connection, Connection)
        with held_interrupt():
            process, job = self._busy.pop(connection)
            try:
                error = connection.recv()
            except (EOFError, ConnectionError):
                process.join()
                connection.close()
                return job, _death(process.exitcode)
            self._idle.append((process, connection))
        return job, error

    def _living(self) -> tuple[Any, Connection] | None:
        """A worker without a job that has not died meanwhile."""
        while self._idle:
            process, connection = self._idle.pop()
            if process.is_alive():
                return process, connection
            connection.close()
        return None

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work))
        with deaf_children():
            process.start()
        theirs.close()
        return process, ours


def _death(exitcode: int) -> str:
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; often the system was short of memory" if name == "SIGKILL" else ""
        return f"WorkerDied: its process was ended by {name}{hint}\n"
    return f"WorkerDied: its process ended with exit status {exitcode}\n"


def _serve(connection: Connection, work: Work) -> None:
    """A worker: jobs in, errors out, until a None or the end of the input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent acts
    end_with_parent()  # two workers would damage a folder that both write to
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionError):
            return
        if job is None:
            return
        connection.send(work(job))


class RayPool:
    """Tasks on a Ray cluster: that of ``$RAY_ADDRESS``, else one started here with ``workers``.

    Each task takes one processor and ``gpus`` of a GPU (None: a whole one if the cluster has any).
    All machines must see the sweep's folder and the data under the same paths, and have this
    package installed. Raises ``ImportError`` without Ray.
    """

    def __init__(self, workers: int = 1, work: Work = run_job, gpus: float | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours and "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False, logging_level="warning")
        elif self._ours:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
            )
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        # A failed task is reported to the sweep; Ray must not repeat it by itself.
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_in_folder)
        self._work = work
        self._running: dict[Any, Job] = {}

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()

    def room(self) -> bool:
        """Always: Ray queues what does not run yet."""
        return True

    def submit(self, job: Job) -> None:
        """Hand a job to Ray."""
        sent = replace(job, measuring=False)  # nobody knows what else runs there
        self._running[self._task.remote(self._work, sent, Path.cwd())] = job

    def wait(self) -> Ended:
        """The next job to end."""
        (task,), _ = self._ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(task)
        try:
            return job, self._ray.get(task)
        except self._ray.exceptions.RayError as error:  # the worker or its machine is gone
            return job, f"{type(error).__name__}: {error}\n"


def _in_folder(work: Work, job: Job, folder: Path) -> str | None:
    """A task; it runs in the folder where the sweep was started, so that relative paths hold."""
    os.chdir(folder)
    return work(job)
