"""The pictures of bounds: one scale, one marker for each solver, one name for each formulation."""

from pathlib import Path

import pytest
from PIL import Image

from spr_or.verification import plots
from spr_or.verification.bounds_over_m import SweepPoint
from spr_or.verification.ladder import Ladder, Rung


def rung(formulation: str, integrality: str, solver: str, value: float) -> Rung:
    return Rung(formulation, integrality, solver, value, value, 0.0, "optimal", None)  # type: ignore[arg-type]


def ladder(name: str, unit: float, solvers: tuple[str, ...] = ("clarabel", "scip")) -> Ladder:
    """Bounds at 40, 70 and 70 % of an integer optimum of ``unit``."""
    rungs = [
        rung("bigm", "relaxed", solvers[0], 0.4 * unit),
        rung("perspective", "relaxed", solvers[0], 0.7 * unit),
        rung("projected", "relaxed", "first-order", 0.7 * unit),
        rung("perspective", "integer", solvers[1], unit),
    ]
    return Ladder(name, True, 3, rungs, [])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Draws ladders and gives the figure."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))

    def draw(*ladders: Ladder):  # type: ignore[no-untyped-def]
        plots.plot_ladders(ladders, tmp_path / "x.png")
        return figures[-1]

    yield draw
    for figure in figures:
        plots.plt.close(figure)


def test_all_panels_have_one_scale_from_zero_to_the_integer_optimum(drawn) -> None:  # type: ignore[no-untyped-def]
    small, large = drawn(ladder("small", 0.01), ladder("large", 300.0)).axes
    assert small.get_ylim() == pytest.approx((0, 112)) == large.get_ylim()
    for axis in (small, large):
        heights = [line.get_ydata()[0] for line in axis.lines]
        assert heights == pytest.approx([40, 70, 70, 100])
        assert "%" in axis.get_ylabel()


def test_without_a_positive_optimum_the_scale_is_its_own_and_says_so(drawn) -> None:  # type: ignore[no-untyped-def]
    left = Ladder("left", True, 3, ladder("x", 2.0).rungs[:2], [])
    (axis,) = drawn(left).axes
    assert "own scale" in axis.get_ylabel()
    assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx([0.8, 1.4])


def test_a_solver_has_the_same_marker_in_every_panel_and_in_the_legend(drawn) -> None:  # type: ignore[no-untyped-def]
    figure = drawn(ladder("a", 1.0), ladder("b", 1.0, ("highs", "scip")))
    first, second = figure.axes
    assert first.lines[-1].get_marker() == second.lines[-1].get_marker()  # scip
    assert first.lines[0].get_marker() != second.lines[0].get_marker()
    (legend,) = figure.legends
    named = {
        text.get_text(): handle.get_marker()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
        if hasattr(handle, "get_marker")
    }
    assert {"clarabel", "highs", "scip", "first-order"} <= set(named)
    assert named["scip"] == first.lines[-1].get_marker()
    assert named["highs"] == second.lines[0].get_marker()


def test_a_formulation_has_one_name(drawn) -> None:  # type: ignore[no-untyped-def]
    figure = drawn(ladder("a", 1.0))
    (axis,) = figure.axes
    words = " ".join([axis.get_title(), *(t.get_text() for t in axis.get_xticklabels())])
    words += " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "perspective closes 50% of big-M's gap" in words
    assert all(name in words for name in ("big-M", "perspective", "projected"))
    assert "cone" not in words


def test_bounds_over_m_start_at_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [SweepPoint("one", f, f, 0.3 / f, 0.4, 0.5, 0.5, int(f < 1)) for f in (0.5, 1.0, 4.0)]
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    plots.plot_sweep(points, tmp_path / "m.png")
    monkeypatch.undo()
    (axis,) = figures[0].axes
    assert axis.get_ylim()[0] == 0
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "perspective relaxation" in labels and "M active at the optimum" in labels
    plots.plt.close(figures[0])
    with Image.open(tmp_path / "m.png") as image:
        assert image.width > 500
