"""Processes end when the one that started them has ended, also if that was killed while they started."""

import os
import subprocess
import sys

import pytest
from processes import wait_until_gone

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

_READS = """
import sys, time
from spr_or.utils.orphans import end_with_input
end_with_input()
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""
# The child looks for its parent a while after it was started, as one that imports much does.
_STARTS = """
import multiprocessing, sys, time
from spr_or.utils.orphans import end_with_parent

def child():
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(float(sys.argv[1]))
    end_with_parent()
    print("watched", flush=True)
    time.sleep(60)

multiprocessing.get_context("fork").Process(target=child).start()
time.sleep(60)
"""


def test_a_child_ends_with_its_input() -> None:
    command = [sys.executable, "-c", _READS]
    child = subprocess.Popen([*command, "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"ready\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    child.stdout.close()
    # Without a pipe there is nobody to wait for.
    assert subprocess.run([*command, "0.2"], stdin=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_child_ends_with_its_parent(seconds: float) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _STARTS, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if seconds == 0:
        assert parent.stdout.readline() == "watched\n"
    parent.kill()
    parent.wait()
    parent.stdout.read()  # ends when the child has closed its copy of the pipe
    parent.stdout.close()
    wait_until_gone(child, 30)


def test_a_process_without_such_a_parent_says_so() -> None:
    from spr_or.utils.orphans import end_with_parent

    with pytest.raises(RuntimeError, match="no child of multiprocessing"):
        end_with_parent()
