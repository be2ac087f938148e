"""One of two processes that train together; ``torchrun … distributed_worker.py FOLDER`` starts both.

In FOLDER it continues the run ``from-one`` that one process began, begins ``from-two`` for one
process to continue, lets the command train ``out`` by the recipe ``tiny.toml``, and at last runs
``killed``, in which process 1 dies without a word.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import stopped_at, tiny_recipe

from spr_or.cli import app
from spr_or.training import distributed
from spr_or.training.report import summary as report
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import RunError

SHARED = tiny_recipe(
    data={"eval_rows": 61},
    spr={"method": "gradient", "lam": 3.0, "zero_below": 0.01, "share": 0.2},
)


def main(folder: Path) -> None:
    rank = distributed.launched().rank
    report._draw = lambda *arguments: []  # type: ignore[assignment]
    summary = run_recipe(SHARED, folder / "from-one", resume=True)
    assert bool(summary) == (rank == 0)
    with stopped_at("spr", 1), pytest.raises(KeyboardInterrupt):
        run_recipe(SHARED, folder / "from-two")
    check_equal_processes()
    distributed.leave = lambda: None  # type: ignore[assignment]  # there is more to do here
    command = ["run", str(folder / "tiny.toml"), "--out", str(folder / "out")]
    assert not app(command, standalone_mode=False)  # neither a status nor a result

    def die(self: RunDisplay, record: object) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    RunDisplay.epoch = die  # type: ignore[assignment]
    try:
        run_recipe(SHARED, folder / "killed")
    except RunError as error:
        (folder / "last words").write_text(str(error))
        raise


def check_equal_processes() -> None:
    """After steps on different data the networks are equal to the last bit, and so is evaluation."""
    with distributed.joined(torch.device("cpu")) as world:
        from models.toy import convnet
        from spr_or.pruning.regularizer import SPR
        from spr_or.training.step import make_step

        torch.manual_seed(world.rank)  # the first process's weights are the ones that count
        model = convnet()
        spr = SPR(model, 5.0, 0.3, 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = make_step(model, optimizer, add_gradient=spr.add_gradient_)
        for _ in range(5):
            step(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
        for tensor in model.state_dict().values():
            sent = tensor.clone()
            torch.distributed.broadcast(sent, 0)
            assert torch.equal(sent, tensor)
        assert distributed.total(world.rank, 2.0) == (1.0, 4.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
