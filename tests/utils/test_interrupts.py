"""Ctrl-C during a held block comes after it, and a process that just started is not left behind."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from spr_or import cli
from spr_or.bench import solve_rows
from spr_or.tabular.solve_run import patient_interrupt
from spr_or.utils.interrupts import heard_interrupt, held_interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGINT to a process")


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_answered_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupt():
        press()
        done.append("the rest of the block")
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press()


def test_without_ctrl_c_nothing_happens_and_other_errors_pass():
    with held_interrupt():
        pass
    with pytest.raises(ValueError, match="why"), held_interrupt():
        raise ValueError("why")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_that_was_there_hears_of_it(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("pressed"))
    try:
        with held_interrupt():
            press()
            assert heard == []
        assert heard == ["pressed"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_ctrl_c_stays_ignored_in_the_child():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupt():
            out = subprocess.check_output([sys.executable, "-c", code], text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert out.strip() == "True"


_SPAWNS = """
import multiprocessing, os, signal, time
from spr_or.utils.interrupts import deaf_children

def child():
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on", flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    with deaf_children():
        process.start()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process.join()
"""


def test_a_child_that_was_started_deaf_does_not_get_ctrl_c(tmp_path):
    """Also the first child of a process, before which another one starts that unblocks signals."""
    script = tmp_path / "spawns.py"
    script.write_text(_SPAWNS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_what_somebody_else_catches_is_heard():
    with heard_interrupt() as pressed:
        assert not pressed()
        with pytest.raises(KeyboardInterrupt):
            press()
        assert pressed()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_they_do_nothing():
    answers = []

    def work():
        with held_interrupt(), heard_interrupt() as pressed:
            answers.append(signal.getsignal(signal.SIGINT))
            assert not pressed()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [signal.default_int_handler]


def test_ctrl_c_while_a_solver_is_started_ends_the_solver(monkeypatch):
    """The signal comes when the child runs and `Popen` has not returned yet."""
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)
            press()

    monkeypatch.setattr(solve_rows.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        solve_rows._child([sys.executable, "-c", "import time; time.sleep(60)"], 1, 30)
    assert started[0].poll() == -signal.SIGKILL


def test_the_patient_interrupt_leaves_an_ignored_ctrl_c_alone():
    said = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with patient_interrupt(said.append) as stop:
            press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stop.asked and said == []


def test_an_import_that_fails_of_ctrl_c_counts_as_interrupted(monkeypatch):
    """Native modules turn a `KeyboardInterrupt` while they load into errors of their own."""

    def loading(name):
        try:
            press()
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(cli, "import_module", loading)
    result = CliRunner().invoke(cli.app, ["methods"])
    assert result.exit_code == 130 and "interrupted" in result.output

    def broken(name):
        raise ImportError("no such library")

    monkeypatch.setattr(cli, "import_module", broken)
    with pytest.raises(ImportError):
        CliRunner().invoke(cli.app, ["methods"], catch_exceptions=False)
