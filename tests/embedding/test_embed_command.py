"""`spr-or embed` on the files of a run: random weights, half of the neurons of a layer removed."""

import json

import pytest
import torch
from safetensors.torch import save_file
from spr_or.models.toy import mlp
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.embedding import comparison
from spr_or.pruning.compaction.api import compact, save_compact


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a run that `spr-or embed` reads."""
    folder = tmp_path_factory.mktemp("run")
    settings = {"hidden": [10, 8]}
    recipe = tiny_recipe(model="models.toy:mlp", model_kwargs=settings)
    (folder / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
    torch.manual_seed(0)
    net = mlp(**settings)
    save_file(net.state_dict(), folder / "dense.safetensors")
    small = compact(net, {"1": torch.arange(10) < 5}, torch.zeros(1, 1, 8, 8))
    save_compact(folder / "compact.safetensors", small, "models.toy:mlp", settings)
    return folder


def embed(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments)], env={"COLUMNS": "120"})


def test_robustness_of_both_networks_in_one_table_and_file(run, tmp_path):
    file = tmp_path / "numbers.json"
    given = ("--images", 2, "--radius", 0.001, "--radius", 0.2, "--json", file)
    result = embed(run, *given)
    assert result.exit_code == 0, result.output
    told = json.loads(file.read_text(encoding="utf-8"))
    assert len(told["cases"]) == 2 * 2 * 2 and len(told["table"]) == 4
    by_network = {
        name: [c for c in told["cases"] if c["network"] == name] for name in ("dense", "pruned")
    }
    assert all(c["answer"] in ("robust", "broken") for c in told["cases"])
    binaries = {name: sum(c["binaries"] for c in cases) for name, cases in by_network.items()}
    assert binaries["pruned"] < binaries["dense"]
    for case in told["cases"]:
        assert (case["attack"] is not None) == (case["answer"] == "robust")
        assert case["answer"] == "broken" or case["bound"] <= 0
    for word in ("dense", "pruned", "binaries", "robust", "0.001", "0.2"):
        assert word in result.output


def test_the_largest_output_of_two_files_by_scip(run):
    files = (run / "dense.safetensors", run / "compact.safetensors")
    result = embed(*files, "--task", "max", "--images", 1, "--radius", 0.02, "--solver", "scip")
    assert result.exit_code == 0, result.output
    assert "largest" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "verify"], "--task must be one of robustness, max"),
        (["--bounds", "none"], "--bounds must be one of interval, lp, data"),
        (["--solver", "cplex"], "highs, scip, gurobi"),
        (["--output", "10", "--task", "max"], "outputs 0 to 9"),
    ],
)
def test_bad_options_end_with_2_and_say_what_there_is(run, options, words):
    result = embed(run, *options)
    assert result.exit_code == 2 and words in result.output


def test_a_folder_without_a_run_ends_with_2(tmp_path, run):
    result = embed(tmp_path)
    assert result.exit_code == 2 and "dense.safetensors" in result.output
    (tmp_path / "dense.safetensors").write_bytes((run / "dense.safetensors").read_bytes())
    result = embed(tmp_path, run / "compact.safetensors")
    assert result.exit_code == 2 and "recipe.json" in result.output


def test_what_a_time_limit_leaves_is_named_with_its_bound(run):
    result = embed(run, "--images", 1, "--radius", 0.3, "--bounds", "data", "--time-limit", 20)
    assert "not safe" in result.output
    assert "robust" in result.output
    assert result.exit_code in (0, 1)
    undecided = [line for line in result.output.splitlines() if "undecided; best" in line]
    assert bool(undecided) == (result.exit_code == 1)


def test_ctrl_c_keeps_what_was_decided(run, tmp_path, monkeypatch):
    whole = comparison.ask_all

    def stops(*arguments, **settings):
        yield next(whole(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "ask_all", stops)
    file = tmp_path / "numbers.json"
    result = embed(run, "--images", 2, "--radius", 0.001, "--json", file)
    assert result.exit_code == 130
    assert len(json.loads(file.read_text(encoding="utf-8"))["cases"]) == 1
    assert "interrupted" in result.output
