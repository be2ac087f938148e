"""A process that starts runs on demand, each in a child that can be killed.

The imports are paid once, here; a child is a real process with its own files and its own death.
Protocol: 0 when ready; then a line "FOLDER" on stdin starts ``run_recipe(…, resume=True)`` there and
its process id comes back as a line; a line "wait" waits for the child and gives back its exit status.
"""

import os
import sys
import traceback
from pathlib import Path

import sklearn.datasets  # noqa: F401  # what a run imports late, paid once for all children
import sklearn.model_selection  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
from tiny_runs import tiny_recipe

from spr_or.training.report import summary as report
from spr_or.training.runner import run_recipe


def serve() -> None:
    torch.set_num_threads(1)
    report._draw = lambda *arguments: []  # type: ignore[assignment]  # pictures only take time here
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
                recipe = tiny_recipe(
                    dense={"epochs": 6},
                    spr={"epochs": 10, "target_removed_pct": 40, "lam_warmup": 2,
                         "bounds_every": 3},
                    finetune={"epochs": 6, "distill": 0.5},
                )  # fmt: skip
                run_recipe(recipe, Path(line.strip()), resume=True)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    serve()
