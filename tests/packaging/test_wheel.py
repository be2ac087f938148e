"""The wheel has what it needs and nothing outside `spr_or`, and works where the checkout is not."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from wheels import ROOT, build_wheel, clean_environment, install_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_with_networks_recipes_and_figures(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        network = archive.read("spr_or/models/__init__.py")
    expected = {
        "spr_or/py.typed",
        *(str(file.relative_to(ROOT)) for file in ROOT.glob("spr_or/**/*.py")),
        *(f"spr_or/{file.relative_to(ROOT)}" for file in ROOT.glob("models/*.py")),
    }
    kinds = {"recipes": "toml", "tables": "toml", "comparisons": "toml", "reference": "csv"}
    for folder, ending in kinds.items():
        files = list((ROOT / "experiments" / folder).glob(f"*.{ending}"))
        assert files
        expected |= {f"spr_or/shipped/{folder}/{file.name}" for file in files}
    results = ROOT / "experiments" / "results"
    expected |= {
        f"spr_or/shipped/results/{file.relative_to(results)}"
        for file in results.glob("*/*")
        if file.is_file()
    }
    assert names == expected
    # The networks themselves, not the checkout's signpost to them.
    assert network == (ROOT / "models" / "__init__.py").read_bytes()


@pytest.mark.slow
def test_the_wheel_works_from_a_folder_with_foreign_models(wheel: Path, tmp_path: Path) -> None:
    bin = install_wheel(wheel, tmp_path / "venv")
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "models" / "__init__.py").write_text("raise RuntimeError('not for you')\n")
    (work / "models" / "theirs.py").write_text("")

    def call(*command: str) -> str:
        done = subprocess.run(
            [str(bin / command[0]), *command[1:]],
            cwd=work, env=clean_environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import spr_or, spr_or.models.toy as t; print(spr_or.__file__, t.__file__)"
    for file in call("python", "-c", where).split():
        assert Path(file).is_relative_to(tmp_path / "venv")
    call("python", "-c", "from spr_or import SparseTrainingProblem; assert SparseTrainingProblem")

    call("spr-or", "verify", "regression-8x3", "--json", "ladder.json")
    assert json.loads((work / "ladder.json").read_text())

    epochs = [f"--set={phase}.epochs=1" for phase in ("dense", "spr", "finetune")]
    call("spr-or", "run", "digits", *epochs, "--set=seeds=[0]")
    assert (work / "runs" / "digits" / "report.html").is_file()

    call("spr-or", "tables")
    assert "ResNet-20" in (work / "runs" / "tables" / "tables.md").read_text()
    assert "table01" in call("spr-or", "sweep", "table01", "--dry-run")
