"""A wheel of this checkout, and an environment that has it but does not see the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("spr_or", "models", "experiments")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that nothing is left in the checkout and nothing old comes along."""
    copy = folder / "copy"
    for name in SOURCES:
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel and what is installed here; returns its scripts' folder.

    The other packages come through a .pth file, in which .pth files of editable installs are not
    read: the checkout stays out of sight.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    bin = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder)}))
    _pip("--python", str(bin / "python"), "install", "--no-deps", "--no-index", str(wheel))
    (site / "neighbours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that lead Python to the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, done.stdout + done.stderr
