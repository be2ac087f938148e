"""Shipped files are found by name from any folder; a file of one's own comes first."""

from pathlib import Path

import pytest

from spr_or.sweeps.sweep_file import SweepError, load_sweep
from spr_or.training.recipe import RecipeError, load_recipe
from spr_or.utils.shipped import find_shipped, shipped_folder, shipped_names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shipped_recipe_and_sweep_loads_by_its_name() -> None:
    assert {"digits", "cifar10_resnet20"} <= set(shipped_names("recipes"))
    for name in shipped_names("recipes"):
        assert load_recipe(name) == load_recipe(shipped_folder("recipes") / f"{name}.toml")
    assert {"table01", "table16"} <= set(shipped_names("tables"))
    for name in shipped_names("tables"):
        assert load_sweep(name) == load_sweep(shipped_folder("tables") / f"{name}.toml")


def test_a_file_comes_before_the_shipped_one_of_its_name(elsewhere: Path) -> None:
    (elsewhere / "digits").write_text('model = "a:b"\n[spr]\nlam = 3.0\nalpha = 0.1\n')
    assert find_shipped("digits", "recipes") == Path("digits")
    assert load_recipe("digits").model == "a:b"


def test_a_folder_does_not_hide_the_shipped_file(elsewhere: Path) -> None:
    (elsewhere / "digits").mkdir()
    assert load_recipe("digits").model == "models.toy:digits_resnet"


@pytest.mark.parametrize("given", ["digit", "digits.toml", "recipes/digits.toml"])
def test_an_unknown_name_is_told_the_nearest_and_all(given: str) -> None:
    with pytest.raises(RecipeError, match=rf"{given}. Did you mean 'digits'\?.*cifar10_resnet20,"):
        load_recipe(given)


def test_a_name_near_to_nothing_is_told_all() -> None:
    with pytest.raises(
        SweepError, match="no file qqqq. Shipped are cifar10_\\w+, table01"
    ) as error:
        load_sweep("qqqq")
    assert "did you mean" not in str(error.value)


def test_a_folder_in_place_of_a_recipe_is_called_one(elsewhere: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder. Shipped are"):
        load_recipe(elsewhere)


def test_the_base_of_a_sweep_may_be_a_shipped_recipe(elsewhere: Path) -> None:
    sweep = elsewhere / "mine.toml"
    sweep.write_text('base = "digits"\nseeds = [0]\n[grid]\nspr.lam = [1.0, 2.0]\n')
    assert [run.recipe.model for run in load_sweep(sweep).runs] == ["models.toy:digits_resnet"] * 2
    sweep.write_text('base = "digit"\n[grid]\nspr.lam = [1.0]\n')
    with pytest.raises(SweepError, match="base = 'digit'.* Did you mean 'digits'"):
        load_sweep(sweep)


def test_kinds_do_not_mix() -> None:
    with pytest.raises(FileNotFoundError, match="digits"):
        find_shipped("digits", "tables")
