"""Tables, lines and progress: nothing is cut off, nothing is taken for markup, stderr says what runs."""

import io

import pytest
from rich.console import Console

from spr_or.utils import terminal

NAMES = ("layer", "solver", "value", "status")
ROWS = [
    ("features.denseblock3.denselayer12.conv2", "first-order [b]", "0.123456", "time_limit"),
    ("height[cm]", "scip", "1234.5", "a[/b]"),
]


def shown(table, width):
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, markup=False,
                     color_system=None, soft_wrap=True)  # fmt: skip
    terminal.show(screen, table)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [50, 80])
def test_a_table_keeps_to_a_terminal_and_loses_nothing(width):
    table = terminal.table(NAMES, ROWS, title="own", text=("layer", "solver", "status"))
    text = shown(table, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "0.123456" in text and "1234.5" in text and "…" not in text
    if width == 80:
        assert "height[cm]" in text and "a[/b]" in text and "first-order [b]" in text


def test_a_piped_table_is_as_wide_as_it_must(capsys):
    rows = [("x" * 70, "y" * 70, "1", "optimal")]
    table = terminal.table(NAMES, rows, text=("layer", "solver", "status"))
    terminal.show(terminal.console(), table)
    text = capsys.readouterr().out
    assert "x" * 70 in text and "y" * 70 in text
    assert max(map(len, text.splitlines())) < 200


def test_control_characters_do_not_reach_the_terminal(capsys):
    terminal.say(terminal.console(), "name \x1b[2J[red]x[/red]")
    assert capsys.readouterr().out == "name ?[2J[red]x[/red]\n"


def test_a_pipe_gets_a_line_for_each_step_and_not_for_each_detail(capsys):
    with terminal.progress() as progress:
        progress.step("[1/2] first")
        for _ in range(100):
            progress.detail("still at it")
        progress.step("[2/2] second")
    captured = capsys.readouterr()
    assert captured.err == "[1/2] first\n[2/2] second\n" and captured.out == ""


def test_details_come_after_a_while(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_QUIET", 0.0)
    with terminal.progress() as progress:
        progress.step("solving")
        progress.detail("gap 3 %")
    assert "solving: gap 3 %" in capsys.readouterr().err
