"""`models.…` is the user's own module first, then the shipped one, and never breaks either."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spr_or.utils.import_path import load_object, source_file

ROOT = Path(__file__).parents[2]
SHIPPED_TOY = ROOT / "models" / "toy.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory, and no ``models`` loaded or on the path, as after installing."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "models"]

    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    elsewhere = [place for place in sys.path if place and Path(place).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", elsewhere)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in loaded():
        del sys.modules[name]


def own(folder: Path, **files: str) -> None:
    """A folder ``models`` with these modules, inside `folder`."""
    (folder / "models").mkdir()
    for name, text in files.items():
        (folder / "models" / f"{name}.py").write_text(text)


def test_shipped_networks_are_found_from_any_folder(folder: Path) -> None:
    assert source_file("models.toy:mlp") == SHIPPED_TOY
    assert load_object("models.toy:mlp").__module__ == "spr_or.models.toy"


@pytest.mark.parametrize("init", ["", "raise RuntimeError('executed')"])
def test_a_foreign_folder_breaks_no_shipped_name(folder: Path, init: str) -> None:
    own(folder, __init__=init, other="")
    assert source_file("models.toy:mlp") == SHIPPED_TOY


@pytest.mark.parametrize("package", [{}, {"__init__": ""}], ids=["no init", "init"])
@pytest.mark.parametrize("own_first", [True, False])
def test_own_and_shipped_networks_live_in_one_process(
    folder: Path, package: dict[str, str], own_first: bool
) -> None:
    own(
        folder, mynet="from .parts import size\ndef net(): return size", parts="size = 7", **package
    )
    if own_first:
        assert load_object("models.mynet:net")() == 7
    assert source_file("models.toy:mlp") == SHIPPED_TOY
    assert load_object("models.mynet:net")() == 7


def test_the_users_own_wins_and_says_which_file_it_is(folder: Path) -> None:
    own(folder, toy="def mlp(): return 'mine'")
    assert load_object("models.toy:mlp")() == "mine"
    assert source_file("models.toy:mlp") == folder / "models" / "toy.py"
    # What only the shipped module of that name has is still found.
    assert source_file("models.toy:digits_resnet") == SHIPPED_TOY


def test_errors_name_both_places(folder: Path) -> None:
    own(folder, toy="")
    with pytest.raises(AttributeError, match="has no 'mpl'; did you mean 'mlp'") as missing:
        load_object("models.toy:mpl")
    assert str(folder / "models" / "toy.py") in str(missing.value)
    assert str(SHIPPED_TOY) in str(missing.value)
    with pytest.raises(ImportError, match=r"No module named 'models\.absent'") as absent:
        load_object("models.absent:net")
    assert str(folder) in str(absent.value) and str(ROOT / "models") in str(absent.value)


def test_a_module_that_fails_is_not_passed_over(folder: Path) -> None:
    # The shipped network in its place would be another one than the user means.
    own(folder, toy="1 / 0", mine="import nothing_of_this_name")
    with pytest.raises(ImportError, match=r"ZeroDivisionError.*spr_or\.models\.toy"):
        load_object("models.toy:mlp")
    with pytest.raises(ImportError, match="nothing_of_this_name"):
        load_object("models.mine:net")


def test_a_path_below_a_module_is_an_import_error(folder: Path) -> None:
    with pytest.raises(ImportError, match=r"models\.toy\.deeper"):
        load_object("models.toy.deeper:net")


def test_the_package_offers_the_networks_in_a_checkout(tmp_path: Path) -> None:
    code = "import spr_or.models.toy as toy; print(toy.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(SHIPPED_TOY), done.stderr


@pytest.mark.parametrize("path", ["models.toy", "models.toy:", ":mlp"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not an import path"):
        load_object(path)


def test_built_in_modules_have_no_file() -> None:
    assert source_file("sys:exit") is None
