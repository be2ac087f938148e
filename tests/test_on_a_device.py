"""The checks on the pretended device, in processes of their own.

Where a device is registered, a backward pass starts threads for it, also one on the CPU, and a process with
such threads cannot be forked any more. Other tests fork, so no process of theirs may know the device.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_CHECKS = Path(__file__).with_name("device_checks")
_NOTHING_COLLECTED = 5  # there is a real device, or this torch knows none in Python


@pytest.mark.parametrize(
    "marks", ["not slow and not long", pytest.param("slow", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("checks", ["compaction_checks.py", "run_checks.py"])
def test_on_a_pretended_device(checks: str, marks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", marks, str(_CHECKS / checks)]
    found = subprocess.run(
        command, cwd=_CHECKS.parents[1], env=os.environ | {"SPR_OR_DEVICE_CHECKS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == _NOTHING_COLLECTED:
        pytest.skip("no device can be pretended here")
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert " passed" in found.stdout


def test_this_process_knows_no_device() -> None:
    assert "pretended_gpu" not in sys.modules
    assert torch.accelerator.current_accelerator(check_available=True) is None or (
        torch.accelerator.current_accelerator().type != "pretended"  # type: ignore[union-attr]
    )
