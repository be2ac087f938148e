"""What compaction warns of in a run stands on the run's display, not between its lines."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.toy import mlp
from spr_or.training.report.summary import compacted


def said(kept: int, model: Any = None) -> list[str]:
    lines: list[str] = []
    run: Any = SimpleNamespace(display=SimpleNamespace(warn=lines.append))
    model = model or mlp(6, (4,), 2)
    trained: Any = SimpleNamespace(pruned=model, masks={"1": torch.arange(4) < kept})
    small = compacted(run, trained, torch.zeros(2, 6))
    assert small(torch.zeros(3, 6)).shape == (3, 2)
    return lines


@pytest.mark.parametrize(
    ("kept", "says"), [(0, "nothing is left of 1"), (2, None), (4, "nothing was removed: 38")]
)
def test_warnings_of_compaction_are_shown_by_the_run(kept: int, says: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = said(kept)
    assert len(lines) == (says is not None)
    assert says is None or lines[0].startswith(says)


def test_other_warnings_go_on() -> None:
    class Warns(torch.nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            warnings.warn("of the user's own", UserWarning, stacklevel=1)
            return torch.nn.Sequential(*self)

    with pytest.warns(UserWarning, match="of the user's own"):
        said(2, Warns(*mlp(6, (4,), 2)))
