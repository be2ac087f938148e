"""No silent collapse and no silent nothing: what the SPR phase does when lambda does not fit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.training import checkpoint, going_back, loop
from spr_or.training.going_back import Watch
from spr_or.training.metrics import read_metrics
from spr_or.training.outcome import failure, lost
from spr_or.training.recipe import Recipe
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import RunError

DENSE = {"dense": {"epochs": 4}, "finetune": {"epochs": 1}}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warnings: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, message: warnings.append(message))
    return warnings


def far_too_much(**spr: Any) -> Recipe:
    """A budget whose lambda starts so high that everything dies in the first epoch."""
    settings = {"lam": 3000.0, "target_removed_pct": 30, "start": "dense", "epochs": 4}
    return tiny_recipe(**DENSE, spr=settings | spr)


def spr_records(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == "spr"]


def test_a_collapse_with_a_budget_goes_back_to_a_smaller_lambda(
    tmp_path: Path, warned: list[str]
) -> None:
    summary = run_recipe(far_too_much(), tmp_path)
    records = spr_records(tmp_path)
    assert [r["epoch"] for r in records] == [0, 1, 2, 3]
    tried = records[0]["went_back"]
    lams = [attempt["lam"] for attempt in tried] + [records[0]["lam"]]
    assert lams == [pytest.approx(3000 / 4**k) for k in range(len(lams))] and len(lams) > 1
    assert "nothing is left of 0, 4" in tried[0]["why"]
    assert all("nothing is left of" in attempt["why"] for attempt in tried)
    assert all(r["lam"] <= tried[-1]["lam"] / 2 for r in records)  # it does not climb back
    said = [w for w in warned if w.startswith("epoch 0 of phase spr with lambda 3000: ")]
    assert len(said) == 1 and "it is repeated with lambda 750" in said[0]
    assert summary["accuracy"] > 40 and not failure([summary])


@contextlib.contextmanager
def stopped_in_attempt(number: int) -> Iterator[None]:
    """Inside, a run ends with KeyboardInterrupt when it goes back for the ``number``-th time."""
    lower, seen = going_back._restore, []

    def restore(*arguments: Any) -> None:
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        lower(*arguments)

    going_back._restore = restore
    try:
        yield
    finally:
        going_back._restore = lower


@pytest.mark.slow
def test_a_run_killed_while_it_goes_back_ends_with_the_same_bits(tmp_path: Path) -> None:
    run_recipe(far_too_much(), tmp_path / "whole")
    places = {
        "attempt": stopped_in_attempt(2),
        "before its checkpoint": stopped_at("spr", 0),
        "after": stopped_at("spr", 1),
    }
    for name, stopped in places.items():
        with pytest.raises(KeyboardInterrupt), stopped:
            run_recipe(far_too_much(), tmp_path / name)
        run_recipe(far_too_much(), tmp_path / name, resume=True)
        one, two = tmp_path / "whole", tmp_path / name
        compact = "compact.safetensors"
        assert (one / compact).read_bytes() == (two / compact).read_bytes()
        states = [checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (one, two)]
        assert_identical(states[0], states[1], name)
        records = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
        for record in (*records[0], *records[1]):
            del record["seconds"], record["data_wait_share"]
        assert records[0] == records[1] and "went_back" in str(records[0])


def test_a_loss_that_is_not_finite_lowers_lambda_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = loop.train_epoch, []

    def train_epoch(*arguments: Any) -> loop.Scores:
        seen.append(1)
        if len(seen) == 5:  # the first epoch with SPR
            real(*arguments)
            raise loop.NonFiniteLoss(3, float("nan"))
        return real(*arguments)

    monkeypatch.setattr("spr_or.training.one_phase.train_epoch", train_epoch)
    run_recipe(far_too_much(lam=8.0), tmp_path)
    first = spr_records(tmp_path)[0]
    assert first["lam"] == 2.0 and first["went_back"][0]["lam"] == 8.0
    assert "the loss became nan at step 3" in first["went_back"][0]["why"]


def test_when_no_smaller_lambda_helps_the_error_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(going_back, "ATTEMPTS", 2)
    with pytest.raises(RunError, match=r"spr\.lam = 1e\+20 is too large here: try spr\.lam=") as e:
        run_recipe(far_too_much(lam=1e20), tmp_path)
    assert "(after lambda 1e+20 in the same epoch)" in str(e.value)
    assert not (tmp_path / "summary.json").exists()


def test_where_our_own_lambdas_fail_one_after_the_other_the_rate_is_named_first(
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(
        **DENSE, spr={"lam": "auto", "target_removed_pct": 50, "start": "dense", "lr": 50.0}
    )
    with pytest.raises(RunError, match=r"something else: lower spr\.lr \(it is 50\)") as error:
        run_recipe(recipe, tmp_path)
    assert "too large here" not in str(error.value)


def test_a_number_that_empties_the_network_is_an_error(tmp_path: Path) -> None:
    recipe = tiny_recipe(**DENSE, spr={"lam": 3000.0, "start": "dense"})
    with pytest.raises(RunError) as error:
        run_recipe(recipe, tmp_path / "judged")
    for text in ("collapsed in epoch 0", "spr.lam = 3000.0 is too large", "try spr.lam=3e+02",
                 "spr.target_removed_pct=50"):  # fmt: skip
        assert text in str(error.value)
    summary = run_recipe(recipe, tmp_path / "result", judge=False)
    assert summary["collapsed_layers"] == ["0", "4"]
    with pytest.raises(RunError, match="the network has collapsed: its accuracy of"):
        run_recipe(recipe, tmp_path / "result", resume=True)


@pytest.mark.parametrize("method", ["prox", "gradient"])
def test_a_number_that_removes_nothing_is_an_error_with_numbers_to_try(
    method: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(spr={"lam": 1e-6, "method": method, "start": "dense"})
    with pytest.raises(RunError) as error:
        run_recipe(recipe, tmp_path / "judged")
    text = str(error.value)
    assert text.startswith("spr.lam = 1e-06 removed nothing: no entity became zero in phase spr")
    assert '"0.1 max" and "1 max"' in text and "spr.target_removed_pct=50" in text
    assert ("spr.zero_below" in text) == (method == "gradient")
    summary = run_recipe(recipe, tmp_path / "result", judge=False)
    assert summary["removed_params"] == 0 and "nothing was removed" in failure([summary])


def test_shares_of_the_largest_lambda_are_numbers_in_the_records(tmp_path: Path) -> None:
    found = {}
    for lam in ("0.2 max", "0.4 max"):
        recipe = tiny_recipe(spr={"lam": lam, "start": "dense"}, finetune={"epochs": 0})
        run_recipe(recipe, tmp_path / lam, judge=False)
        found[lam] = [r["lam"] for r in spr_records(tmp_path / lam)]
    assert len(set(found["0.2 max"])) == 1  # nothing moves it
    assert found["0.4 max"] == pytest.approx([2 * lam for lam in found["0.2 max"]])


def test_with_a_budget_lambda_may_be_left_out(tmp_path: Path) -> None:
    values = far_too_much().model_dump()
    del values["spr"]["lam"]
    recipe = Recipe.model_validate(values)
    assert recipe.spr.lam == "auto"
    summary = run_recipe(recipe, tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(30, abs=2)
    assert not any("went_back" in r for r in spr_records(tmp_path))


def test_the_command_prints_no_figures_for_a_run_that_failed(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("""
model = "models.toy:convnet"
data = { train_rows = 128, eval_rows = 64, batch_size = 32 }
dense = { epochs = 1 }
spr = { method = "prox", lam = 1e-6, alpha = 0.1, epochs = 1 }
finetune = { epochs = 0 }
speed = { device = "cpu", threads = 1 }
""")
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "removed nothing" in " ".join(result.stderr.split()) and "measure" not in result.stdout


@pytest.mark.parametrize(
    ("accuracy", "had", "expected"),
    [
        (10.0, 99.0, True),
        (18.0, 99.0, True),
        (20.0, 99.0, False),
        (10.0, 9.0, False),
        (10.0, 18.0, False),
    ],
)
def test_chance_is_relative_to_what_the_network_could_do(
    accuracy: float, had: float, expected: bool
) -> None:
    assert lost(accuracy, had, classes=10) is expected


@pytest.mark.parametrize(
    ("now", "best", "trained", "expected"),
    [
        (80.0, 99.0, None, False),
        (50.0, 99.0, None, True),  # half of what it could do is lost
        (85.0, 99.0, 90.0, False),
        (77.0, 99.0, 90.0, True),  # 13 of the 80 points above guessing are lost in this phase
        (79.0, 99.0, 90.0, False),
        # The learning rate of the phase costs accuracy, whatever lambda is: that is not held against it.
        (75.0, 92.0, 80.0, False),
    ],
)
def test_lambda_eases_off_when_training_has_lost_too_much(
    now: float, best: float, trained: float | None, expected: bool
) -> None:
    watch = Watch(start=None, masks=dict, steered=True)
    assert watch.strained({"accuracy": now}, best, 10, trained) is expected
