"""Starts runs that can be killed: a line "FOLDER" runs the recipe below there (see forking_server)."""

from pathlib import Path

from forking_server import serve
from tiny_runs import tiny_recipe

from spr_or.training.report import summary as report
from spr_or.training.runner import run_recipe


def run(folder: str) -> None:
    report._draw = lambda *arguments: []  # type: ignore[assignment]  # pictures only take time here
    recipe = tiny_recipe(
        dense={"epochs": 6},
        spr={"epochs": 10, "target_removed_pct": 40, "lam_warmup": 2, "bounds_every": 3},
        finetune={"epochs": 6, "distill": 0.5},
    )
    run_recipe(recipe, Path(folder), resume=True)


if __name__ == "__main__":
    serve(run)
