"""The captured step against the eager one, and that nothing in an epoch waits for the device.

Without a GPU a graph is stood in for by a function that runs its body again: buffers, learning rates
and shapes go the same way. A device that cannot be read is torch's meta device: every attempt to
learn a number from it raises.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_runs import tiny_recipe
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.toy import convnet
from spr_or.pruning.masks import hold_masks
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR
from spr_or.training.data.load import load_data
from spr_or.training.loop import evaluate, train_epoch
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import DataRecipe
from spr_or.training.runner import run_recipe
from spr_or.training.step import Recorder, Step, captured, cuda_graph, make_scoring, make_step

METHODS = ("plain", "gradient", "prox", "masks")
DATA = DataRecipe(train_rows=100, eval_rows=41, batch_size=16, eval_batch_size=16, crop=1)


class Counting:
    """A recorder that counts what it records."""

    def __init__(self, record: Recorder) -> None:
        self.record = record
        self.count = 0

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        self.count += 1
        return self.record(body)


def again(body: Callable[[], None]) -> Callable[[], None]:
    """The stand-in for a graph."""
    return body


def training(method: str, device: str) -> tuple[nn.Module, Step, torch.optim.Optimizer, SPR]:
    torch.manual_seed(0)
    model = convnet().to(device)
    spr = SPR(model, 5.0, 0.3, 1.0)
    spr._fused = True  # the passes of a device that cannot be asked
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    options: dict[str, Any] = {}
    if method == "prox":
        optimizer = ProxSGD(model, spr, **settings)
    elif method == "gradient":
        options["add_gradient"] = spr.add_gradient_
    elif method == "masks":
        keep = torch.arange(16, device=device) % 3 > 0
        options["after"] = hold_masks(model, {"4": keep})
    return model, make_step(model, optimizer, **options), optimizer, spr


def fifty_losses(
    method: str, device: str, record: Recorder | None
) -> tuple[list[float], nn.Module]:
    """Losses of 50 steps on changing batches, with other rates, lambda and bounds on the way."""
    model, step, optimizer, spr = training(method, device)
    if record is not None:
        step = captured(step, optimizer, record)
    generator = torch.Generator().manual_seed(1)
    results = []
    for number in range(50):
        if number in (10, 25, 40):
            optimizer.param_groups[0]["lr"] *= 0.5
        if number == 20:
            spr.lam = 9.0
        if number == 30:
            spr.bound.mul_(0.9)
        images = torch.randn(16, 1, 8, 8, generator=generator).to(device)
        labels = torch.randint(10, (16,), generator=generator).to(device)
        results.append(step(images, labels)[0])
    return [float(loss) for loss in results], model  # read after all steps: no buffer was reused


def assert_same_training(method: str, device: str, record: Recorder) -> None:
    counting = Counting(record)
    eager, reference = fifty_losses(method, device, None)
    replayed, model = fifty_losses(method, device, counting)
    assert counting.count == 1
    assert replayed == pytest.approx(eager, rel=1e-4)
    assert len(set(replayed)) == 50
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_step_gives_the_losses_of_the_eager_one(method: str) -> None:
    assert_same_training(method, "cpu", again)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_step_gives_the_losses_of_the_eager_one(method: str) -> None:
    assert_same_training(method, "cuda", cuda_graph)


@pytest.mark.parametrize("method", ["gradient", "prox", "masks"])
def test_what_a_replay_reads_matters(method: str) -> None:
    """The comparison above would notice a graph that keeps lambda, bounds, masks or rates."""
    eager, _ = fifty_losses(method, "cpu", None)
    plain, _ = fifty_losses("plain", "cpu", None)
    assert eager[:1] == plain[:1] and eager[5:] != pytest.approx(plain[5:], rel=1e-3)


def test_the_optimizer_keeps_numbers_as_rates() -> None:
    _, step, optimizer, _ = training("plain", "cpu")
    step = captured(step, optimizer, again)
    for _ in range(5):
        step(torch.randn(4, 1, 8, 8), torch.arange(4))
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert type(optimizer.state_dict()["param_groups"][0]["lr"]) is float


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_replayed_step_continues_a_checkpoint_in_another_memory_format(device: str) -> None:
    losses: dict[bool, list[float]] = {}
    for fast in (False, True):
        model, step, optimizer, _ = training("plain", device)
        generator = torch.Generator().manual_seed(1)
        batches = [
            (torch.randn(16, 1, 8, 8, generator=generator).to(device),
             torch.randint(10, (16,), generator=generator).to(device))
            for _ in range(20)
        ]  # fmt: skip
        for batch in batches[:6]:
            step(*batch)
        if fast:
            kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model, step, optimizer, _ = training("plain", device)
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            model.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
            step = captured(step, optimizer, again if device == "cpu" else cuda_graph)
        losses[fast] = [float(step(*batch)[0]) for batch in batches[6:]]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_captured_evaluation_scores_all_images_also_in_the_last_batch(device: str) -> None:
    data = load_data(DATA.model_copy(update={"eval_batch_size": 7}), torch.device(device))
    model, *_ = training("plain", device)
    counting = Counting(again if device == "cpu" else cuda_graph)
    score = captured(make_scoring(model), record=counting)
    for _ in range(3):  # weights and statistics may change between two evaluations
        reference = evaluate(model, data.evaluate(0))
        scores = evaluate(model, data.evaluate(0), score=score)
        assert scores.loss == pytest.approx(reference.loss, rel=1e-5)
        assert scores.accuracy == pytest.approx(reference.accuracy)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(0.8)
    assert counting.count == 1


@pytest.mark.gpu
def test_a_captured_run_gives_the_losses_of_the_eager_one(tmp_path: Any) -> None:
    for graph in (False, True):
        recipe = tiny_recipe(spr={"milestones": [1]}, speed={"device": "cuda", "cuda_graph": graph})
        run_recipe(recipe, tmp_path / str(graph))
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("False", "True")]
    for one, two in zip(*records, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-2)


# --- nothing waits --------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_on_a_device_that_cannot_be_read(
    method: str, replay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, step and bookkeeping reach the epoch's end, and only there a number is wanted."""
    # torch has no fused kernel for this device; that of CUDA is tested there.
    module = sys.modules[torch.optim.SGD.__module__]
    monkeypatch.setattr(module, "_device_dtype_check_for_fused", lambda *a, **k: None)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *a, **k: None)
    data = load_data(DATA, torch.device("meta"))
    model, step, optimizer, _ = training(method, "meta")
    step = captured(step, optimizer, again) if replay else step
    seen: list[int] = []
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        train_epoch(step, data.train(0), seen.append)
    assert seen == [16] * 6
    score = make_scoring(model.eval())
    results = [score(*batch) for batch in data.evaluate(0)]
    assert [len(part) for part in zip(*results, strict=True)] == [3, 3]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        float(results[0][0])


class Reads(TorchDispatchMode):
    """Counts what reads a number back from tensors, on whatever device."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__.partition(".")[0] in self.NAMES
        return func(*args, **(kwargs or {}))


def reads(work: Callable[[], object]) -> int:
    with Reads() as mode:
        work()
    return mode.count


def test_reads_are_counted() -> None:
    x = torch.ones(3)
    assert reads(lambda: (x.sum().item(), bool(x[0] > 0), x.nonzero(), torch.equal(x, x))) == 4
    assert reads(lambda: x.add_(1).sum()) == 0


@pytest.mark.parametrize("method", ["plain", "gradient", "masks"])
def test_an_epoch_reads_as_often_however_many_steps_it_has(method: str) -> None:
    """On the CPU; the proximal step looks at numbers there, where that is free, and only there."""
    assert epoch_reads(method, steps=2) == epoch_reads(method, steps=6)


def epoch_reads(method: str, steps: int) -> int:
    data = load_data(DATA.model_copy(update={"train_rows": 16 * steps}), torch.device("cpu"))
    model, step, *_ = training(method, "cpu")
    inside: list[int] = []

    def counted(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        results: list[tuple[Tensor, Tensor]] = []
        inside.append(reads(lambda: results.append(step(images, labels))))
        return results[0]

    train_epoch(counted, data.train(0))
    assert inside == [0] * steps
    score = make_scoring(model.eval())
    assert reads(lambda: [score(*batch) for batch in data.evaluate(0)]) == 0
    return reads(lambda: list(data.train(0)))
