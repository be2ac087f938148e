"""Names from files on the terminal and in pictures: every letter that is seen, nothing that acts."""

import io
import re

import matplotlib
import pytest
from damaged import NASTY

from spr_or.utils import terminal
from spr_or.utils.printable import one_line, picture_text, printable
from spr_or.utils.progress_bar import BarDisplay

matplotlib.use("Agg")


@pytest.mark.parametrize("name", NASTY)
def test_only_what_is_seen_is_left(name: str) -> None:
    assert all(c.isprintable() for c in one_line(name))
    assert re.sub(r"[^ -~ü]", "?", name) == one_line(name)
    assert printable(name).replace("\n", "?") == one_line(name)


@pytest.mark.parametrize("name", NASTY)
def test_a_picture_shows_the_letters(name: str) -> None:
    """Drawn as text of the same letters is, without mathematics, which would raise for one of them."""
    from matplotlib import pyplot as plt

    def pixels(text: str, parse: bool) -> bytes:
        figure = plt.figure(figsize=(4, 1))
        figure.text(0, 0.5, text, parse_math=parse)
        stream = io.BytesIO()
        figure.savefig(stream, format="raw")
        plt.close(figure)
        return stream.getvalue()

    plain = one_line(name)
    if r"\$" not in plain:  # matplotlib drops this backslash where it parses no mathematics either
        assert pixels(picture_text(name), True) == pixels(plain, False)
    else:
        assert pixels(picture_text(name), True)


def test_no_name_poses_as_a_line_or_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NASTY:
        terminal.say(terminal.console(), f"column {name}")
        terminal.complain(f"column {name}")
        terminal.failed(f"column {name}", 2)
        rows = [(name, "1")]
        terminal.show(terminal.console(), terminal.table((name, "n"), rows, text=(name,)))
    captured = capsys.readouterr()
    both = captured.out + captured.err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\u2028]", both)
    assert not any(line.startswith("all claims hold") for line in both.splitlines())
    for seen in ("height[cm]", "height[in]", "a[/b]", "[red]b", "<script>"):
        assert captured.out.count(seen) == 3  # a line, a head and a cell


def test_a_bar_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with BarDisplay() as display:
        display.begin("layer a[/b]\x1b[2J", total=3)
        display.bar.update(display.task, state="x[/y]")
        display.say("layer a[/b]\x1b[2J")
        display.warn("c\u202ed")
    said = capsys.readouterr().err
    assert "layer a[/b]?[2J" in said and "warning: c?d" in said and "\x1b[2J" not in said
