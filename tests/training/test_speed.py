"""How the speed of a run is chosen: the rule with given times, the trials, the table, the run."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import no_pictures_in, stopped_at, tiny_recipe
from torch import Tensor, fx, nn

from models.resnet_cifar import resnet20
from models.toy import convnet
from spr_or.pruning.compaction import remembered
from spr_or.sweeps import pools
from spr_or.sweeps.jobs import Job
from spr_or.training import one_phase, speed, speed_table, speed_trials
from spr_or.training.metrics import read_metrics
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.setup import with_speed
from spr_or.training.speed import choose_speed
from spr_or.training.speed_table import load_trials, network_key
from spr_or.training.speed_trials import Speed, Trial, compiled_if_it_works, try_speeds
from spr_or.utils.import_path import load_object

SHAPE = (128, 1, 8, 8)
PLAIN = Speed(threads=1, channels_last=False, compile=False)
LAST = PLAIN._replace(channels_last=True)
BOTH = LAST._replace(compile=True)
# Seconds of a step at the rates that were measured, and 60 seconds for compiling.
TIMES = {
    PLAIN: Trial(128 / 323, 1.0),
    LAST: Trial(128 / 363, 1.0),
    PLAIN._replace(compile=True): Trial(128 / 381, 60.0),
    BOTH: Trial(128 / 452, 60.0),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPR_OR_CACHE", str(tmp_path / "cache"))


class Given:
    """Stands in for the trials, with given times; keeps what was asked."""

    def __init__(self, times: dict[Speed, Trial]) -> None:
        self.times = times
        self.asked: list[Speed] = []

    def __call__(
        self, model: nn.Module, speeds: Sequence[Speed], shape: tuple[int, ...]
    ) -> list[Trial]:
        self.asked += speeds
        return [self.times[speed] for speed in speeds]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Trials with `TIMES`, for runs that all count as long."""
    stand_in = Given(dict(TIMES))
    monkeypatch.setattr(speed, "try_speeds", stand_in)
    monkeypatch.setattr(speed, "LONG", 0)
    monkeypatch.setattr(speed, "others_at_work", lambda: False)
    return stand_in


def choose(steps: int = 10_000, measuring: bool = True, **keys: Any) -> tuple[Speed, list[str]]:
    """The choice for a network on the digits, and what was told."""
    lines: list[str] = []
    recipe = tiny_recipe(speed={"threads": None} | keys)
    chosen = choose_speed(recipe, convnet(), SHAPE, steps, measuring=measuring, tell=lines.append)
    return chosen, lines


# --- the rule -------------------------------------------------------------------------------


def test_a_long_run_takes_what_is_fastest_and_says_so_in_one_line(given: Given) -> None:
    chosen, lines = choose()
    assert chosen == BOTH
    assert lines == ["speed: compile, channels_last, 1 thread: 452 images/s, plain 323"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    # 700 steps of 0.35 s: a fifth of it is less than a minute, so compiling is not even tried.
    # Compiling takes 59.7 s here and saves 0.069 s a step, which 860 steps do not win back.
    [(700, LAST), (860, LAST), (870, BOTH)],
)
def test_compiling_must_be_won_back(given: Given, steps: int, expected: Speed) -> None:
    assert choose(steps)[0] == expected
    assert (BOTH in given.asked) == (steps > 700)


def test_what_is_hardly_faster_is_not_taken(given: Given) -> None:
    given.times[LAST] = Trial(0.97 * 128 / 323, 1.0)
    chosen, lines = choose(steps=100)
    assert chosen == PLAIN and lines == ["speed: plain, 1 thread: 323 images/s"]


def test_a_slower_compiled_network_is_not_taken(given: Given) -> None:
    given.times[BOTH] = Trial(128 / 300, 60.0)
    assert choose()[0] == LAST and BOTH in given.asked


def test_compiled_steps_are_compared_with_those_of_the_same_minute(given: Given) -> None:
    """Both were measured while the machine was half as fast; the rates stand as if it was not."""

    def slower(model: nn.Module, speeds: Sequence[Speed], shape: tuple[int, ...]) -> list[Trial]:
        factor = 2 if BOTH in speeds else 1
        return [Trial(factor * TIMES[s].seconds, factor * TIMES[s].first) for s in speeds]  # type: ignore[operator]

    speed.try_speeds = slower  # the fixture puts it back
    assert choose()[1] == ["speed: compile, channels_last, 1 thread: 452 images/s, plain 323"]


def test_fewer_threads_are_taken_where_they_are_faster(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for threads, seconds in ((8, 0.2), (4, 0.1), (1, 0.5)):
        for layout in (False, True):
            given.times[Speed(threads, layout, False)] = Trial(seconds, 1.0)
    assert choose(steps=10)[0].threads == 4
    assert {s.threads for s in given.asked} == {8, 4, 1}


@pytest.mark.parametrize(
    ("keys", "expected", "tried"),
    [
        ({"channels_last": False}, PLAIN._replace(compile=True), {PLAIN, PLAIN._replace(compile=True)}),
        ({"channels_last": True}, BOTH, {LAST, BOTH}),
        ({"compile": False}, LAST, {PLAIN, LAST}),
        ({"compile": True}, BOTH, {PLAIN, LAST}),
        ({"threads": 3, "compile": False}, Speed(3, True, False),
         {Speed(3, False, False), Speed(3, True, False)}),
        ({"auto": False}, PLAIN, set()),
        ({"auto": False, "channels_last": True}, LAST, set()),
        ({"auto": False, "compile": True}, PLAIN._replace(compile=True), set()),
        ({"amp": "bf16"}, PLAIN, set()),
    ],
)  # fmt: skip
def test_a_key_that_is_given_is_neither_tried_nor_changed(
    given: Given, keys: dict[str, Any], expected: Speed, tried: set[Speed]
) -> None:
    given.times[Speed(3, False, False)] = TIMES[PLAIN]
    given.times[Speed(3, True, False)] = TIMES[LAST]
    assert choose(**keys)[0] == expected
    assert set(given.asked) == tried


def untried(*arguments: Any) -> list[Trial]:
    raise AssertionError("nothing is to be tried")


@pytest.mark.parametrize("keys", [{}, {"compile": True}, {"compile": True, "auto": False}])
def test_a_short_run_tries_nothing_and_compiles_nothing(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "try_speeds", untried)
    assert choose(steps=1000, **keys) == (PLAIN, [])


def test_the_smoke_run_is_short_and_an_evening_is_long() -> None:
    """ResNet-20: nine epochs of 2,560 images, and twenty of 45,000."""
    model = resnet20()
    assert not speed.is_long(model, (128, 3, 32, 32), 9 * 2560 // 128)
    assert speed.is_long(model, (128, 3, 32, 32), 20 * 45_000 // 128)


def test_an_accelerator_compiles_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "try_speeds", untried)
    model = convnet().to("meta")
    for wanted in (None, False, True):
        recipe = tiny_recipe(speed={"compile": wanted, "channels_last": True})
        chosen = choose_speed(recipe, model, SHAPE, steps=1)
        assert chosen == LAST._replace(compile=bool(wanted))


# --- the table ------------------------------------------------------------------------------


def test_a_second_run_reads_what_the_first_one_measured(given: Given) -> None:
    first = choose()
    given.times = {}
    assert choose() == first
    assert choose(measuring=False) == first


def test_without_measuring_nothing_is_tried(given: Given) -> None:
    given.times = {}
    chosen, lines = choose(measuring=False)
    assert chosen == PLAIN and lines == ["speed: plain, 1 thread"]


def test_beside_other_programs_nothing_is_tried_and_nothing_kept(
    given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(speed, "others_at_work", lambda: True)
    line = "speed: not measured, other programs are at work on this machine"
    assert choose() == (PLAIN, [line, "speed: plain, 1 thread"])
    assert given.asked == [] and not (tmp_path / "cache").exists()
    monkeypatch.setattr(speed, "others_at_work", lambda: False)
    first = choose()
    monkeypatch.setattr(speed, "others_at_work", lambda: True)
    assert choose() == first  # what is known needs no quiet machine


@pytest.mark.parametrize(("switches", "busy"), [(5, False), (60, True)])
def test_other_programs_are_seen_by_the_processors_they_take(
    switches: int, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    counts = iter([1000, 1000 + switches])
    usage = SimpleNamespace
    monkeypatch.setattr(resource, "getrusage", lambda who: usage(ru_nivcsw=next(counts)))
    clock = iter([0.0, 0.3, 1.0])
    monkeypatch.setattr(speed_trials.time, "perf_counter", lambda: next(clock))
    assert speed_trials.others_at_work(seconds=1.0) == busy


def test_beside_other_runs_the_number_of_threads_stays(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for layout in (False, True):
        given.times[Speed(2, layout, False)] = Trial(1.0, 1.0)
    assert choose(steps=100)[0] == LAST
    assert choose(steps=100, measuring=False)[0].threads == 2


def cut(text: str) -> str:
    return text[: len(text) // 2]


def negative(text: str) -> str:
    content = json.loads(text)
    next(iter(content["networks"].values()))[0]["seconds"] = -1.0
    return json.dumps(content)


def of_text(text: str) -> str:
    content = json.loads(text)
    next(iter(content["networks"].values()))[0]["threads"] = "2"
    return json.dumps(content)


@pytest.mark.parametrize("damage", [cut, negative, of_text, lambda text: "[]", lambda text: "{}"])
def test_a_damaged_table_is_told_ignored_and_replaced(
    given: Given, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    choose()
    (place,) = (tmp_path / "cache" / "speed").iterdir()
    whole = place.read_text()
    place.write_text(damage(whole))
    given.asked.clear()
    chosen, lines = choose()
    assert chosen == BOTH and given.asked[:2] == [PLAIN, LAST]
    assert lines[0].startswith(f"speed: the times in {place} are damaged and not used (")
    assert place.read_text() == whole
    assert choose()[1] == lines[1:]


def test_times_of_another_machine_are_not_used(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose()
    given.asked.clear()
    monkeypatch.setattr(speed_table, "processor", lambda: "another one")
    choose()
    assert set(given.asked) == {PLAIN, LAST, BOTH}


def test_a_cache_that_cannot_be_written_costs_a_note(given: Given, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    chosen, lines = choose()
    assert chosen == BOTH and "the times are not kept" in lines[0]


def test_networks_differ_by_layers_and_batch_but_not_by_process() -> None:
    class Named(nn.Module):
        def __repr__(self) -> str:
            return f"Named({object()!r})"

    keys = {network_key(convnet(), SHAPE), network_key(convnet(), (64, *SHAPE[1:])),
            network_key(convnet(num_classes=11), SHAPE)}  # fmt: skip
    assert len(keys) == 3
    assert network_key(Named(), SHAPE) == network_key(Named(), SHAPE)


# --- the trials -----------------------------------------------------------------------------


class Off(nn.Module):
    """A network whose output changes by a thousandth where ``when(images)`` holds."""

    def __init__(self, when: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.rest = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.rest(x) * (1.001 if self.when(x) else 1.0)


def in_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.fixture
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled means traced by Dynamo, without the minute that generating code takes."""

    def traced(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="eager")  # type: ignore[return-value]

    monkeypatch.setattr(speed_trials, "compiled", traced)


def test_ways_that_agree_are_timed(quickly_compiled: None) -> None:
    torch.compiler.reset()
    trials = try_speeds(Off(lambda x: False), [PLAIN, LAST, BOTH], SHAPE)
    for trial in trials:
        assert trial.refused == "" and trial.seconds is not None
        assert 0 < trial.seconds < trial.first


@pytest.mark.parametrize(
    ("when", "refused"),
    [
        (in_channels_last, [False, True, True]),
        (lambda x: torch.compiler.is_compiling(), [False, False, True]),
        (lambda x: x.dtype == torch.float64, [False, False, False]),  # the same for all of them
    ],
)
def test_a_way_that_computes_something_else_is_refused(
    when: Callable[[Tensor], bool], refused: list[bool], quickly_compiled: None
) -> None:
    torch.compiler.reset()
    trials = try_speeds(Off(when), [PLAIN, LAST, BOTH], SHAPE)
    assert [trial.seconds is None for trial in trials] == refused
    for trial in trials:
        assert bool(trial.refused) == (trial.seconds is None)
        assert not trial.refused or "differs by" in trial.refused


def test_statistics_count_too() -> None:
    class Forgetful(Off):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if in_channels_last(self.first(x)):
                self.rest[0].num_batches_tracked.add_(5)  # type: ignore[operator]
            return y

    _, last = try_speeds(Forgetful(lambda x: False), [PLAIN, LAST], SHAPE)
    assert "its statistics differs by" in last.refused


def test_where_even_the_plain_way_is_far_from_float64_nothing_else_passes() -> None:
    class Random(Off):
        """As if its dropout drew something else in float64."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if x.dtype == torch.float64 else 1.0)

    plain, last = try_speeds(Random(lambda x: False), [PLAIN, LAST], SHAPE)
    assert plain.seconds is not None
    assert last.seconds is None and "rounding explains 1.0e-02" in last.refused


def test_rounding_is_no_reason_to_refuse() -> None:
    """In this network a few ReLUs flip with the order of summation."""
    trials = try_speeds(resnet20(), [PLAIN, LAST], (16, 3, 32, 32))
    assert [trial.refused for trial in trials] == ["", ""]


def test_a_way_that_fails_is_refused_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(speed_trials, "compiled", fails)
    plain, both = try_speeds(convnet(), [PLAIN, BOTH], SHAPE)
    assert plain.seconds is not None
    assert both.seconds is None and both.refused == "it fails (RuntimeError: no C++ compiler)"


def test_what_float64_cannot_check_stays_plain() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convnet()

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.net(x)

    plain, last = try_speeds(Single(), [PLAIN, LAST], SHAPE)
    assert plain.seconds is not None and last.seconds is None
    assert "cannot be checked in float64 (TypeError: float32 only)" in last.refused


def test_trials_leave_network_random_numbers_and_threads_alone() -> None:
    model = nn.Sequential(convnet(), nn.Dropout()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    try_speeds(model, [PLAIN._replace(threads=2), LAST], SHAPE)
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.stride() == before[name].stride()
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_times_are_those_of_the_code_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that was right for the file as it was is checked again when the file has changed."""
    file = tmp_path / "edited_network.py"
    code = "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        return "
    file.write_text(f"{code}super().forward(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = load_object("edited_network:Net")(3, 2)
    before = network_key(net, (8, 3))
    assert network_key(net, (8, 3)) == before
    file.write_text(f"{code}super().forward(x.relu())\n")
    assert network_key(net, (8, 3)) != before
    traced = [fx.symbolic_trace(module) for module in (nn.ReLU(), nn.Tanh())]
    graphs = [fx.GraphModule(nn.Module(), module.graph) for module in traced]
    assert network_key(graphs[0], (8, 3)) != network_key(graphs[1], (8, 3))


def test_refused_ways_are_told_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LONG", 0)
    monkeypatch.setattr(speed, "others_at_work", lambda: False)
    model = Off(in_channels_last)
    lines: list[str] = []
    recipe = tiny_recipe()
    for _ in range(2):
        chosen = choose_speed(recipe, model, SHAPE, steps=1, tell=lines.append)
        assert chosen == PLAIN
    refusals = [line for line in lines if "channels_last, 1 thread is not used: its" in line]
    assert len(refusals) == 1 and len(lines) == 3
    assert load_trials(network_key(model, SHAPE), lines.append)[LAST].seconds is None


def test_without_a_compiler_the_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(speed_trials, "compiled", lambda model: broken)
    model = convnet()
    lines: list[str] = []
    assert compiled_if_it_works(model, SHAPE, False, lines.append) is model
    assert lines == ["speed: not compiled, torch.compile fails (RuntimeError: no C++ compiler)"]


# --- runs -----------------------------------------------------------------------------------


class Listening(RunDisplay):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


TINY = tiny_recipe(data={"train_rows": 64, "eval_rows": 32})


@pytest.fixture
def small_report(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, quickly_compiled: None) -> list[nn.Module]:
    """The networks that a run compiles."""
    networks: list[nn.Module] = []

    def noted(model: nn.Module, *arguments: Any) -> nn.Module:
        networks.append(model)
        return compiled_if_it_works(model, *arguments)

    monkeypatch.setattr(one_phase, "compiled_if_it_works", noted)
    monkeypatch.setattr(speed, "COMPILE_SECONDS", 0.0)
    return networks


FREE = {layout: Trial(trial.seconds, trial.seconds or 0) for layout, trial in TIMES.items()}


def test_a_run_is_computed_as_was_chosen(
    given: Given, small_report: None, traced: list[nn.Module], tmp_path: Path
) -> None:
    given.times = FREE
    shown = Listening()
    run_recipe(TINY, tmp_path / "run", display=shown)
    weights = [model.get_parameter("0.weight") for model in traced]
    assert len(weights) == 3  # a phase each
    assert all(in_channels_last(model.get_parameter("4.weight")) for model in traced)
    lines = [line for line in shown.lines if "speed:" in line]
    # 32 images instead of 128 in the same time
    assert lines == ["seed 0 speed: compile, channels_last, 1 thread: 113 images/s, plain 81"]
    assert given.asked == [PLAIN, LAST, LAST, BOTH]  # by the first phase


def test_what_is_chosen_holds_for_every_network_of_a_run() -> None:
    """A smaller network of a later phase is asked about compiling only."""
    recipe = tiny_recipe(speed={"threads": None})
    for threads, expected in ((None, 1), (3, 3)):
        settled = with_speed(recipe, {"threads": threads, "channels_last": True}).speed
        assert (settled.threads, settled.channels_last, settled.compile) == (expected, True, None)
    kept = with_speed(tiny_recipe(speed={"threads": 2, "channels_last": False}),
                      {"threads": None, "channels_last": True}).speed  # fmt: skip
    assert (kept.threads, kept.channels_last) == (2, False)


def test_a_run_goes_on_as_it_began(
    given: Given, small_report: None, traced: list[nn.Module], tmp_path: Path
) -> None:
    """Also where the table says something else by now."""
    given.times = dict(FREE)
    run_recipe(TINY, tmp_path / "whole")
    layouts = [in_channels_last(model.get_parameter("4.weight")) for model in traced]
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(TINY, tmp_path / "broken")
    shutil.rmtree(tmp_path / "cache")
    given.times[LAST] = given.times[BOTH] = Trial(9.0, 9.0)
    given.times[PLAIN._replace(compile=True)] = Trial(9.0, 9.0)
    traced.clear()
    run_recipe(TINY, tmp_path / "broken", resume=True)
    after = [in_channels_last(model.get_parameter("4.weight")) for model in traced]
    assert layouts == [True, True, True] and after == [True]  # SPR; fine-tuning began anew, plain
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    for one, two in zip(*records, strict=True):
        assert one["loss"] == two["loss"] or one["phase"] == "finetune"


def test_a_key_given_on_resume_wins_over_what_was_chosen(
    given: Given, small_report: None, traced: list[nn.Module], tmp_path: Path
) -> None:
    given.times = FREE
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(TINY, tmp_path)
    traced.clear()
    plain = TINY.speed.model_copy(update={"compile": False, "channels_last": False})
    summary = run_recipe(TINY.model_copy(update={"speed": plain}), tmp_path, resume=True)
    assert traced == [] and summary["recipe"]["speed"]["channels_last"] is False


def test_a_short_run_with_compile_is_not_compiled(
    small_report: None, traced: list[nn.Module], tmp_path: Path
) -> None:
    """It could not win the time back, so it takes as long as without."""
    run_recipe(tiny_recipe(speed={"compile": True}), tmp_path / "compile")
    run_recipe(tiny_recipe(), tmp_path / "plain")
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("compile", "plain")
    ]
    assert traced == [] and losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_that_was_stopped_ends_with_the_same_weights(
    small_report: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(speed, "LONG", 0)
    # Each run has a memory of its own, as in a process of its own: torch compiles other code after a trace.
    monkeypatch.setattr(remembered, "_memory", ContextVar("none yet", default=None))
    recipe = TINY.model_copy(update={"speed": TINY.speed.model_copy(update={"compile": True})})
    run_recipe(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(recipe, tmp_path / "broken")
    torch.compiler.reset()  # a new process would have to compile, too
    run_recipe(recipe, tmp_path / "broken", resume=True)
    weights = [(tmp_path / n / "compact.safetensors").read_bytes() for n in ("whole", "broken")]
    assert weights[0] == weights[1]


# --- sweeps ---------------------------------------------------------------------------------


def measuring(job: Job) -> str | None:
    return str(job.measuring)


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_workers_measure_nothing(workers: int, tmp_path: Path) -> None:
    with pools.LocalPool(workers, measuring, start_method="fork") as pool:
        pool.submit(Job("one", TINY, tmp_path))
        _, answer = pool.wait()
    assert answer == str(workers == 1)
