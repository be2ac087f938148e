"""Settings shared by all tests: few threads, fixed seeds, reproducible hypothesis runs."""

import contextlib
import gc
import os
import random
import signal
import sys
from typing import Any

# Before NumPy loads its BLAS: the matrices of most tests are tiny, and `make test` runs a process
# on each core. More threads would only wait for each other. Processes that tests start inherit it.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and the processes that tests start inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine and no timing: a slow machine must not fail a test.
# `pytest --hypothesis-profile=default` draws new examples instead.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


# Looking for doctests imports a file, and these make a device known to the process: see test_on_a_device.
if "SPR_OR_DEVICE_CHECKS" not in os.environ:
    collect_ignore = ["pretended_gpu.py", "device_checks"]

# All tests share the graphs that a run remembers, as if they were one run.
_session = contextlib.ExitStack()


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_unconfigure() -> None:
    """The graphs go before the interpreter does."""
    _session.close()


def pytest_collection_finish() -> None:
    """A quarter of a million objects of torch live to the end: nothing to look through again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before its fixtures, those of the module too: what only takes time where it is no subject."""
    remembered = sys.modules.get("spr_or.pruning.compaction.remembered")
    if remembered is not None and remembered.present_memory() is None:
        _session.enter_context(remembered.remembering())
    figure = sys.modules.get("matplotlib.figure")
    if figure is not None:
        from blank_pictures import blank, drawn

        folders = item.path.relative_to(item.config.rootpath).parts
        plain = {"bench", "commands", "tabular"} & set(folders)
        figure.Figure.savefig = drawn if item.get_closest_marker("pictures") or not plain else blank


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, a worker takes whole files: what a file's tests share is prepared once.

    Files go out in the order of collection, which ends with the many short ones of doctests.
    """
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":
        return None  # the user has asked for another way
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
