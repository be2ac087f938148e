"""The report of a run, and the command that makes it."""

import json
import re
import statistics
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import no_pictures_in, tiny_recipe
from typer import Typer
from typer.testing import CliRunner

from spr_or.commands import run as command
from spr_or.training.report.measure import latency_ms
from spr_or.training.report.run_figures import kept, norms, progress, regimes
from spr_or.training.report.summary import MEASURES, mean_summary, warn_of_other_size
from spr_or.training.runner import run_recipe

# The fields that a summary must have, written down here again on purpose.
PROMISED = """dense_accuracy, accuracy_before_finetune, accuracy, best_accuracy,
masked_filter_weights, masked_filter_weights_pct, removed_params, removed_params_pct, macs_dense,
macs_compact, latency_ms_dense, latency_ms_compact, max_abs_logit_diff, spr_step_overhead"""

RECIPE = """
model = "models.toy:convnet"
[data]
train_rows = 128
eval_rows = 64
batch_size = 32
[dense]
epochs = 1
[spr]
method = "prox"
lam = 60.0
alpha = 0.3
epochs = 1
[finetune]
epochs = 1
[speed]
device = "cpu"
threads = 1
"""


class Pictures(HTMLParser):
    """Everything the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]


def test_a_run_of_two_seeds_reports_each_and_their_mean(tmp_path: Path) -> None:
    merged = run_recipe(tiny_recipe(seeds=[0, 1], note="a note <here>"), tmp_path)
    promised = [field.strip() for field in PROMISED.replace("\n", " ").split(",")]
    single = []
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        summary = json.loads((folder / "summary.json").read_text())
        assert list(summary)[: len(promised)] == promised == list(MEASURES)
        assert all(isinstance(summary[field], int | float) for field in promised)
        assert summary["seed"] == seed and summary["dataset"] == "digits"
        assert "parameters of the dense network" in summary["denominators"]["removed_params_pct"]
        assert summary["macs_compact"] < summary["macs_dense"]
        assert summary["macs_ratio"] == summary["macs_dense"] / summary["macs_compact"]
        assert 0 <= summary["magnitude_accuracy"] <= 100
        removed = sum(row["params_before"] - row["params_after"] for row in summary["layers"])
        assert removed == summary["removed_params"] and summary["layers"][0]["layer"] == "0"
        assert summary["latency_ms_dense"] > 0 and summary["spr_step_overhead"] > 0
        assert summary["best_accuracy"] >= summary["accuracy"]
        figures = sorted(path.name for path in (folder / "figures").iterdir())
        assert [name[0] for name in figures] == ["1", "2", "3", "4", "6"]
        for path in (folder / "figures").iterdir():
            with Image.open(path) as image:
                assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
        single.append(summary)
    for field in promised[:4]:
        assert merged[field] == pytest.approx(statistics.fmean(s[field] for s in single))
        assert merged["std"][field] == pytest.approx(statistics.stdev(s[field] for s in single))
    assert merged["seeds"] == [0, 1]

    page = (tmp_path / "report.html").read_text()
    parser = Pictures()
    parser.feed(page)
    assert len(parser.sources) == 11  # one of all seeds, five of each, and nothing from outside
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "a note &lt;here&gt;" in page and "<th>seed 1" in page
    assert f"{merged['accuracy']:.2f} %" in page


def test_percentages_are_of_all_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)
    summary = run_recipe(tiny_recipe(), tmp_path)
    from models.toy import convnet

    total = sum(p.numel() for p in convnet().parameters())
    assert summary["parameters"] == total
    for key in ("masked_filter_weights", "removed_params"):
        assert summary[f"{key}_pct"] == pytest.approx(100 * summary[key] / total)


def test_the_largest_difference_is_not_averaged_away() -> None:
    base = dict.fromkeys(MEASURES, 1.0) | {"collapsed_layers": [], "seed": 0}
    worse = base | {"max_abs_logit_diff": 5.0, "collapsed_layers": ["conv1"], "seed": 1}
    merged = mean_summary([base, worse])
    assert merged["max_abs_logit_diff"] == 5.0 and merged["collapsed_layers"] == ["conv1"]


def test_figures_of_short_or_empty_runs(tmp_path: Path) -> None:
    assert not progress([], tmp_path / "a.png")
    assert not regimes([], tmp_path / "a.png")
    counts = {"zero": 1, "norm": 2, "bound": 3, "full": 4}
    record = {"phase": "spr", "accuracy": 5.0, "eval_accuracy": 6.0, "regimes": counts}
    assert progress([record], tmp_path / "1.png") and regimes([record], tmp_path / "4.png")
    many = {f"layer{i}": torch.arange(4) < i % 5 for i in range(40)}
    pairs = {name: ([1.0] * 4, [0.5] * 4) for name in many}
    assert kept(many, tmp_path / "2.png") and norms(pairs, many, tmp_path / "3.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_latency_times_each_model() -> None:
    calls: list[str] = []

    class Counting(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            calls.append(self.name)
            return x

    times = latency_ms([Counting("a"), Counting("b")], torch.zeros(1), repeats=4)
    assert len(times) == 2 and all(t > 0 for t in times)
    # In turns that go to and fro, three of them to warm up.
    assert calls == [*"baab" * 3, *"ba"]


def test_a_disturbed_machine_does_not_turn_the_comparison_round() -> None:
    class Work(torch.nn.Module):
        """Takes its time, and in two of three turns what another process takes, too."""

        def __init__(self, seconds: float, disturbed: int) -> None:
            super().__init__()
            self.seconds, self.disturbed, self.turn = seconds, disturbed, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.turn += 1
            time.sleep(self.seconds + (0.006 if self.turn % 3 < self.disturbed else 0))
            return x

    dense, compact = latency_ms([Work(0.003, 0), Work(0.001, 2)], torch.zeros(1), repeats=9)
    assert 1.5 < dense / compact < 4


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """`spr-or run` with the small recipe, in an empty folder."""
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    app = Typer()
    app.command()(command.command)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["small.toml", *arguments])


@pytest.mark.parametrize(
    ("counted", "removed", "of", "told"),
    [
        (5.0, 20.5, "params", True),
        (50.0, 50.9, "params", False),
        (40.0, 60.0, "macs", True),
        (40.0, 40.9, "macs", False),
        (40.0, 60.0, "latency", False),
    ],
)
def test_another_size_than_the_cut_counted_is_told(
    counted: float, removed: float, of: str, told: bool
) -> None:
    lines: list[str] = []
    recipe = SimpleNamespace(spr=SimpleNamespace(target_of=of))
    run: Any = SimpleNamespace(recipe=recipe, display=SimpleNamespace(warn=lines.append))
    params, macs = (removed, 0.0) if of == "params" else (0.0, removed)
    summary = {"removed_params_pct": params, "macs_dense": 1000, "macs_compact": 1000 - 10 * macs}
    warn_of_other_size(run, summary | {"budget": {"after_cut_pct": counted}})
    assert bool(lines) == told
    what = {"params": "parameters", "macs": "multiplications"}.get(of)
    assert not told or f"{counted:.1f} % of the {what}, and {removed:.1f} % are gone" in lines[0]


def test_times_of_a_network_do_not_ask_for_deterministic_algorithms() -> None:
    seen: list[bool] = []

    class Seen(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return x

    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        latency_ms([Seen()], torch.zeros(1), repeats=1)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
    assert seen and not any(seen)


def test_the_command_runs_resumes_and_names_the_report(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = invoke("--set", "spr.lam=10", "--set", "name=mine")
    assert result.exit_code == 0, result.output
    assert "runs/small/report.html" in result.output
    assert "parameters removed" in result.output and "mine: models.toy:convnet" in result.output
    assert json.loads((tmp_path / "runs/small/summary.json").read_text())["recipe"]["spr"][
        "lam"
    ] == pytest.approx(10)

    again = invoke("--set", "spr.lam=10")
    assert again.exit_code == 2 and "--resume" in again.output
    resumed = invoke("--set", "spr.lam=10", "--resume")
    assert resumed.exit_code == 0 and "report.html" in resumed.output


@pytest.mark.parametrize(
    ("setting", "status", "message"),
    [
        ("spr.lamda=3", 2, "did you mean 'lam'"),
        ("model=models.toy:nothing", 2, "has no 'nothing'"),
        ("data.source=/no/folder", 2, "no folder at /no/folder"),
        ("dense.lr=1e30", 1, "Look at dense.lr"),
    ],
)
def test_the_command_ends_with_a_sentence_and_a_status(
    setting: str, status: int, message: str, invoke
) -> None:  # type: ignore[no-untyped-def]
    result = invoke("--set", setting)
    assert result.exit_code == status, result.output
    text = re.sub(r"\s+", " ", result.output)
    assert message in text and "Traceback" not in text
