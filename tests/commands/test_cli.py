"""The command line as a whole: what its help loads and says, typing errors, statuses, old spellings."""

import importlib
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from spr_or import __version__
from spr_or.cli import BENCH, COMMANDS, app

HEAVY = ("torch", "pandas", "numpy", "scipy", "pyomo", "cvxpy", "matplotlib", "rich")
ALL = {(name,): place for name, place in COMMANDS.items()} | {
    ("bench", name): place for name, place in BENCH.items()
}


def run(*arguments, columns=80):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


def test_help_and_typing_errors_load_nothing_heavy():
    """In one fresh process, one call after the other: what loads something is named."""
    calls = [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["verfy"], 2),
        (["bench"], 2),
        *(([*names, "--help"], 0) for names in ALL),
        (["verify", "--tme-limit", "3"], 2),
    ]
    code = f"""
import sys
from spr_or.cli import app
for arguments, status in {calls!r}:
    try:
        app(arguments)
    except SystemExit as stop:
        assert stop.code == status, (arguments, stop.code)
    loaded = [m for m in {HEAVY!r} if m in sys.modules]
    assert not loaded, (arguments, loaded)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("names", "place"), ALL.items())
def test_the_list_says_what_the_command_says(names, place):
    command = importlib.import_module(place.module).command
    assert place.help == command.__doc__.splitlines()[0]


@pytest.mark.parametrize("names", [(), ("bench",), *ALL])
def test_help_is_readable_at_80_columns(names):
    text = run(*names, "--help").output
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text and "<" not in re.sub(r"<=", "", text)
    assert not [line for line in text.splitlines() if re.search(r"\w-$", line)]  # a broken word
    assert not {"rung", "route", "regime"} & set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("names", ALL)
def test_help_says_what_each_exit_status_means(names):
    text = " ".join(run(*names, "--help").output.split())
    (statuses,) = re.findall(r"Exit status: (.*?)\.", text)
    assert {"0", "2", "130"} <= set(re.findall(r"\d+", statuses))
    untested = "3" in re.findall(r"\d+", statuses)  # claims that were not tested: verify has those
    assert untested == (names == ["verify"] or names == ("verify",))


@pytest.mark.parametrize("names", ALL)
def test_options_have_one_set_of_names(names):
    text = run(*names, "--help").output
    options = set(re.findall(r"^  (--[\w-]+)", text, flags=re.M))
    assert not options & {"--time", "--seconds", "--again", "--retry-failed"}
    metavars = set(re.findall(r"^  --[\w-]+ ([A-Z][^\s]*)", text, flags=re.M))
    known = {"DIR", "FILE", "SECONDS", "N", "X", "NAME", "NAME,...", "KEY=VALUE", "GROUPS", "SHAPE",
             "K|X,X,...", "X,X,...", "K", "A:B,...|FILE.json", "X%"}  # fmt: skip
    assert metavars <= known
    if "--time-limit" in options:
        assert "--time-limit SECONDS" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["layers", "/no/run", "--time", "5", "--again"], "there is no run at"),
        (["sweep", "/no/sweep.toml", "--retry-failed"], "no sweep file"),
        (["bench", "regularizer", "--seconds", "0"], "'--time-limit'"),
        (["bench", "training", "--seconds", "0"], "'--time-limit'"),
    ],
)
def test_old_spellings_go_on_to_work(arguments, says):
    result = run(*arguments, columns=200)
    assert result.exit_code == 2 and says in result.output
    assert "No such option" not in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verfy"], "Did you mean 'verify'?"),
        (["bench", "slove"], "Did you mean 'solve'?"),
        (["verify", "--time-limt", "3"], "--time-limit"),
    ],
)
def test_a_typing_error_names_the_nearest(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.output


def test_version_completion_and_no_arguments():
    assert run("--version").output == f"spr-or {__version__}\n"
    nothing = run()
    assert nothing.exit_code == 2 and "Three ways to begin" in nothing.output
    assert "--install-completion" in nothing.output and "--show-completion" in nothing.output


def test_python_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "spr_or", "bench", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("Usage: spr-or bench")


def test_the_shell_completes_commands_and_options():
    for words, wanted in (("spr-or ver", "verify"), ("spr-or verify --time", "--time-limit")):
        environment = {
            "_SPR_OR_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        result = CliRunner().invoke(app, [], env=environment, prog_name="spr-or")
        assert wanted in result.output.split()


@pytest.mark.parametrize(
    ("arguments", "option", "says"),
    [
        (["verify", "--plot", "x.xyz"], "--plot", ".png, .pdf, .svg"),
        (["verify", "--plot", "/no/such/folder/x.png"], "--plot", "does not exist"),
        (["verify", "--json", "/no/such/folder/x.json"], "--json", "does not exist"),
        (["verify", "--json", "."], "--json", "is a folder"),
        (["solve", "no.csv", "--out", __file__], "--out", "is a file"),
        (["run", "no.toml", "--out", __file__], "--out", "is a file"),
        (["sweep", "no.toml", "--out", __file__], "--out", "is a file"),
        (["tables", "--out", __file__], "--out", "is a file"),
        (["bench", "solve", "--out", __file__], "--out", "is a file"),
        (["bench", "regularizer", "--json", "/no/folder/x.json"], "--json", "does not exist"),
        (["bench", "training", "--json", "/no/folder/x.json"], "--json", "does not exist"),
    ],
)
def test_outputs_are_tried_before_the_work_begins(arguments, option, says):
    result = run(*arguments, columns=300)
    assert result.exit_code == 2
    assert f"'{option}'" in result.output and says in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--plot", "x.png"],
        ["solve", "no.csv", "--out", "o"],
        ["bench", "training", "--json", "x.json"],
    ],
)
def test_a_disk_that_takes_nothing_is_noticed_before_the_work_begins(
    arguments, tmp_path, monkeypatch
):
    def refuses(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spr_or.utils.outputs.tempfile.TemporaryFile", refuses)
    result = run(*arguments, columns=300)
    assert result.exit_code == 2
    assert f"cannot write to {tmp_path}: Read-only file system" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "status", "says"),
    [
        (OSError(28, "No space left on device", "metrics.jsonl"), 2,
         "error: metrics.jsonl: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)  # fmt: skip
def test_what_a_command_does_not_catch_itself_is_one_line(monkeypatch, raised, status, says):
    def fails(*arguments):
        raise raised

    monkeypatch.setattr("spr_or.tabular.recheck.recheck", fails)
    result = run("check", "somewhere")
    assert result.exit_code == status and says in result.output
    assert "Traceback" not in result.output


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr("spr_or.tabular.recheck.recheck", lambda *arguments: 1 / 0)
    assert isinstance(run("check", "somewhere").exception, ZeroDivisionError)
