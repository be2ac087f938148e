"""The page of a run: what it says, how it escapes, and that it loads nothing from outside."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import NASTY as STRANGE
from PIL import Image
from tiny_runs import tiny_recipe
from torch import nn

import spr_or
from models.toy import convnet
from spr_or.pruning.compaction.api import compact, load_compact, save_compact
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.layer_rows import layer_label, layer_rows
from spr_or.training.report import page, run_figures
from spr_or.training.report.page import Section, write_page
from spr_or.training.report.rows import ROWS, ratios
from spr_or.training.report.summary import MEASURES, mean_summary
from spr_or.training.report.words import noise, warnings

NASTY = "a'b<\"&"


class Parsed(HTMLParser):
    """Text, attributes and the number of tags that are opened and closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def summary(seed: int = 0, **values: Any) -> dict[str, Any]:
    """What a run of a small network leaves, with numbers that are easy to follow."""
    measured = {
        "dense_accuracy": 99.0,
        "accuracy_before_finetune": 60.0,
        "accuracy": 97.5,
        "best_accuracy": 98.0,
        "masked_filter_weights": 300,
        "masked_filter_weights_pct": 30.0,
        "removed_params": 400,
        "removed_params_pct": 40.0,
        "macs_dense": 3200,
        "macs_compact": 1000,
        "latency_ms_dense": 2.58,
        "latency_ms_compact": 2.0,
        "max_abs_logit_diff": 1e-6,
        "spr_step_overhead": 2.221,
    }
    measured |= {key: values[key] for key in measured if key in values}
    rows = [
        {"layer": "0", "label": "0 (Conv2d 1→8)", "kind": "Conv2d 3×3", "filters_before": 8,
         "filters_after": 5, "params_before": 1000, "params_after": 600},
    ]  # fmt: skip
    whole = (
        measured
        | ratios(measured)
        | {
            "magnitude_accuracy": 55.0,
            "name": "small",
            "note": "",
            "seed": seed,
            "dataset": "digits",
            "train_images": 1437,
            "eval_images": 360,
            "classes": 10,
            "input_shape": [1, 8, 8],
            "model": "models.toy:convnet",
            "parameters": 1000,
            "denominators": {"removed_params_pct": "all 1,000 parameters of the dense network"},
            "latency_batch": 64,
            "device": "cpu",
            "torch": "2",
            "collapsed_layers": [],
            "layers": rows,
            "budget": None,
            "recipe": tiny_recipe().model_dump(mode="json"),
        }
    )
    return whole | values


def written(folder: Path, found: dict[str, Any], **options: Any) -> Parsed:
    sections = options.pop("sections", [Section("Seed 0", [], found.get("layers", []))])
    write_page(folder / "report.html", found, sections, **options)
    return Parsed((folder / "report.html").read_text())


def test_the_top_says_what_was_done_and_how_large_noise_is(tmp_path: Path) -> None:
    text = written(tmp_path, summary()).text
    assert (
        "models.toy:convnet (1,000 parameters) was trained for 2 epochs on digits (1,437 training "
        "and 360 evaluation images), then from new random weights for 3 epochs with SPR (proximal "
        "steps, exact form, λ = 7, α = 0.3), and fine-tuned without the removed parts for 2 "
        "epochs; seed 0."
    ) in text
    assert "One evaluation image of 360 is 0.28 points of accuracy; with a single seed" in text
    assert text.index("was trained") < text.index("97.50 %") < text.index("All measures")


def test_noise_over_seeds_is_their_standard_deviation() -> None:
    both = [summary(0), summary(1, accuracy=95.5, removed_params_pct=44.0)]
    text = noise(mean_summary(both), both)
    assert "over the 2 seeds the standard deviation is 1.41 points of accuracy and 2.8" in text


def test_speed_and_multiply_accumulates_stand_in_the_headline(tmp_path: Path) -> None:
    page_text = written(tmp_path, summary()).text
    headline = page_text[: page_text.index("All measures")]
    assert "3.20 times fewer multiply-accumulates (MACs): 1,000 instead of 3,200" in headline
    assert "1.29 times the speed, measured: 2.00 instead of 2.58 ms for 64 images" in headline
    assert "97.50 % accuracy at the end; dense 99.00 %" in headline
    assert "40.0 % of 1,000 parameters removed" in headline


def test_one_slow_moment_does_not_move_the_speed_of_several_seeds(tmp_path: Path) -> None:
    slow = summary(2, latency_ms_dense=60.0)
    merged = mean_summary([summary(0), summary(1), slow])
    assert merged["speedup"] == pytest.approx(1.29) and merged["speedup_range"][1] == 30.0
    text = written(tmp_path, merged, seeds=[summary(0), summary(1), slow]).text
    assert "1.29 times the speed, measured (median; 1.29 to 30.00 over the seeds)" in text


def test_every_measure_has_a_unit_and_one_of_two_names(tmp_path: Path) -> None:
    text = written(tmp_path, summary()).text
    assert "2.22 times" in text and "2.00 ms" in text
    assert "pruned" not in text.lower()
    for label, _, form in ROWS:
        counts = any(word in label for word in ("weights", "parameters", "MACs", "logit"))
        assert counts or any(unit in form for unit in ("%", "ms", "times")), label


def test_layers_are_named_in_full_with_their_shares(tmp_path: Path) -> None:
    text = written(tmp_path, summary()).text
    assert "0 (Conv2d 1→8) Conv2d 3×3 8 → 5 1,000 → 600 40.0 %" in text
    assert "all layers" in text


def test_layer_rows_add_up_to_the_networks() -> None:
    torch.manual_seed(0)
    dense = convnet().eval()
    masks = {"0": torch.arange(8) < 5, "4": torch.arange(16) < 9}
    smaller = compact(dense, masks, torch.zeros(1, 1, 8, 8))
    rows = layer_rows(dense, smaller)
    assert sum(row["params_before"] for row in rows) == count_parameters(dense)
    assert sum(row["params_after"] for row in rows) == count_parameters(smaller)
    first = rows[0]
    assert (first["label"], first["kind"]) == ("0 (Conv2d 1→8)", "Conv2d 3×3")
    assert (first["filters_before"], first["filters_after"]) == (8, 5)
    norm = rows[1]
    assert norm["label"] == "1 (BatchNorm2d 8)" and norm["filters_before"] is None
    assert [row["filters_after"] for row in rows if row["kind"] == "Linear"] == [32, 10]


def test_a_layer_that_is_gone_has_nothing_left() -> None:
    (row,) = layer_rows(nn.Sequential(nn.Linear(2, 3)), nn.Sequential())
    assert (row["filters_after"], row["params_before"], row["params_after"]) == (0, 9, 0)
    assert layer_label("features.3", nn.Conv2d(3, 4, 1)) == "features.3 (Conv2d 3→4)"
    assert layer_label("stem.conv", nn.Conv2d(3, 4, 1)) == "stem.conv"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"removed_params": 0}, "Nothing was removed"),
        ({"accuracy": 10.28}, "its accuracy of 10.28 % is that of guessing among 10 classes"),
        ({"collapsed_layers": ["conv1"]}, "Layers with nothing left: conv1."),
    ],
)
def test_a_run_that_went_wrong_says_so_before_its_headline(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    wrong = summary(1) | values
    text = written(tmp_path, wrong).text
    assert says in text and text.index(says) < text.index("accuracy at the end")
    assert warnings([summary()]) == []
    (found,) = warnings([summary(), wrong])
    assert found.startswith("Seed 1: ")


def test_names_are_escaped_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = tmp_path / "0-seeds.png"
    run_figures.seeds({0: [{"phase": "dense", "eval_accuracy": 5.0}]}, figure)
    monkeypatch.setitem(page._CAPTIONS, "0-seeds", NASTY)
    nasty = summary(
        name=NASTY, note=NASTY, model=NASTY, dataset=NASTY, device=NASTY, torch=NASTY,
        collapsed_layers=[NASTY],
    )  # fmt: skip
    nasty["layers"] = [nasty["layers"][0] | {"label": NASTY, "kind": NASTY}]
    nasty["recipe"]["note"] = NASTY
    plain = written(tmp_path, summary(note="x", collapsed_layers=["x"]), overview=[figure])
    found = written(
        tmp_path, nasty, overview=[figure], sections=[Section(NASTY, [], nasty["layers"])]
    )
    assert found.tags == plain.tags
    assert [key for key, _ in found.attributes] == [key for key, _ in plain.attributes]
    assert ("alt", NASTY) in found.attributes
    assert found.text.count(NASTY) >= 9


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_change_neither_the_page_nor_a_picture(tmp_path: Path, name: str) -> None:
    """Layers, data, model and recipe may be called anything, and matplotlib sets no mathematics."""
    figure = tmp_path / "2-filters-kept.png"
    assert run_figures.kept({name: torch.tensor([True, False])}, figure)
    strange = summary(name=name, note=name, model=name, dataset=name, collapsed_layers=[name])
    strange["layers"] = [strange["layers"][0] | {"label": name, "kind": name}]
    strange["recipe"]["note"] = name
    plain = written(tmp_path, summary(note="x", collapsed_layers=["x"]), overview=[figure])
    found = written(tmp_path, strange, overview=[figure])
    assert found.tags == plain.tags
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in text)


def test_the_page_asks_nothing_of_other_hosts_and_knows_dark_screens(tmp_path: Path) -> None:
    found = written(tmp_path, summary())
    raw = (tmp_path / "report.html").read_text()
    assert not any(key in ("src", "href") for key, _ in found.attributes)
    assert "http" not in raw and "url(" not in raw and "@import" not in raw
    assert "prefers-color-scheme: dark" in raw and "max-width: 600px" in raw


def test_the_lines_that_load_the_result_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = compact(convnet(), {"0": torch.arange(8) < 5}, torch.zeros(1, 1, 8, 8))
    (tmp_path / "seed-3").mkdir()
    save_compact(tmp_path / "seed-3" / "compact.safetensors", smaller, "models.toy:convnet")
    both = [summary(3), summary(4)]
    text = "\n".join(written(tmp_path, mean_summary(both), seeds=both).texts)
    code = text[text.index("import torch") : text.index("\nRecipe")]
    monkeypatch.setattr(spr_or, "load_compact", load_compact, raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # as a reader would
    assert names["logits"].shape == (1, 10)
    assert names["network"].get_submodule("0").out_channels == 5


def test_a_summary_of_an_older_version_is_still_shown(tmp_path: Path) -> None:
    new = ("classes", "input_shape", "layers", "magnitude_accuracy", "macs_ratio", "speedup")
    old = [{k: v for k, v in summary(seed).items() if k not in new} for seed in (0, 1)]
    assert "97.50 %" in written(tmp_path, mean_summary(old), seeds=old).text


def test_a_network_with_no_multiply_accumulates_left_is_written(tmp_path: Path) -> None:
    gone = summary(macs_compact=0)
    json.dumps(gone, allow_nan=False)
    assert "– fewer multiply-accumulates" in written(tmp_path, gone).text


def test_all_seeds_stand_in_one_figure(tmp_path: Path) -> None:
    record = {"phase": "dense", "accuracy": 5.0, "eval_accuracy": 6.0}
    assert not run_figures.seeds({0: []}, tmp_path / "0.png")
    assert run_figures.seeds({0: [record] * 3, 7: [record] * 2}, tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as image:
        assert image.width > 500


def test_long_names_of_layers_leave_the_legend_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(run_figures, "_save", lambda figure, path: figures.append(figure))
    masks = {f"layer{i}.0.conv1 (Conv2d 16→32)": torch.arange(16) < 9 for i in range(5)}
    norms = {name: ([1.0] * 16, [0.5] * 9 + [0.0] * 7) for name in masks}
    run_figures.norms(norms, masks, tmp_path / "3.png")
    run_figures.kept(masks, tmp_path / "2.png")
    for figure in figures:
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend.get_window_extent().x1 <= figure.bbox.x1
        names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert names == list(masks)
        run_figures.plt.close(figure)


def test_the_measures_of_a_summary_are_all_in_the_table() -> None:
    assert {key for _, key, _ in ROWS} == set(MEASURES)


def test_every_entity_has_a_line_and_those_that_went_first_are_at_the_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(run_figures, "_save", lambda figure, path: figures.append(figure))
    assert not run_figures.each_entity([{"phase": "dense"}], {}, tmp_path / "6.png") and not figures
    records = [
        {"phase": "spr", "entity_regimes": {"a": a, "b": b}}
        for a, b in [("321", "22"), ("302", "02"), ("300", "02")]
    ]
    run_figures.each_entity(records, {"a": "first"}, tmp_path / "6.png")
    (axis,) = figures[0].axes
    (picture,) = axis.images
    white = len(run_figures._REGIME_COLOURS)
    assert picture.get_array().tolist() == [
        [3, 3, 3], [1, 2, 0], [2, 0, 0], [white] * 3, [2, 2, 2], [2, 0, 0]
    ]  # fmt: skip
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "b"]


def test_seconds_stand_over_the_size_of_a_network_that_shrank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(run_figures, "_save", lambda figure, path: figures.append(figure))

    def records(sizes: list[float]) -> list[dict[str, Any]]:
        return [{"phase": "spr", "macs_pct": size, "seconds": size / 10} for size in sizes]

    assert not run_figures.epoch_times(records([100.0, 100.0]), tmp_path / "7.png") and not figures
    dense = [{"phase": "dense", "seconds": 9.0}]
    run_figures.epoch_times(dense + records([100.0, 50.0]), tmp_path / "7.png")
    (axis,) = figures[0].axes
    points = [collection.get_offsets().tolist() for collection in axis.collections]
    assert points == [[[100.0, 9.0]], [[100.0, 10.0], [50.0, 5.0]], []]
    (line,) = axis.lines
    assert list(line.get_ydata()) == [0, 10.0]
