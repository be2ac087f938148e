"""The one progress bar: what it shows, and that a quiet one shows nothing."""

import io

from rich.console import Console

from spr_or.layer_study.study_progress import StudyDisplay
from spr_or.training.run_progress import RunDisplay
from spr_or.utils.progress_bar import BarDisplay


def test_beginning_anew_forgets_the_state() -> None:
    display = BarDisplay(quiet=True)
    display.begin("one", total=4, done=1)
    display.bar.update(display.task, completed=3, state="so far")
    display.begin("two", total=8)
    task = display.bar.tasks[0]
    assert (task.description, task.completed, task.total) == ("two", 0, 8)
    assert task.fields["state"] == ""


def test_lines_stay_and_markup_is_text() -> None:
    display = BarDisplay()
    display.console = Console(file=io.StringIO(), width=60)
    display.say("layer[0] of [/b]")
    display.warn("x" * 80)
    written = display.console.file.getvalue()  # type: ignore[attr-defined]
    assert written == "layer[0] of [/b]\nwarning: " + "x" * 80 + "\n"


def test_a_quiet_display_writes_nothing(capfd) -> None:  # type: ignore[no-untyped-def]
    with RunDisplay(quiet=True) as run, StudyDisplay(quiet=True) as study:
        run.phase("dense", epochs=1, rows=2, done=0)
        run.rows(2)
        run.warn("nothing")
        study.layer("conv1", 1, 1, seconds=1.0)
        study.say("nothing")
    assert capfd.readouterr() == ("", "")


def test_the_bar_names_weights_in_zero_filters() -> None:
    display = RunDisplay(quiet=True)
    record = {"loss": 1.0, "eval_accuracy": 50.0, "masked_filter_weights_pct": 12.34}
    display.epoch(record)
    assert display.bar.tasks[0].fields["state"].endswith("in zero filters 12.3 %")
