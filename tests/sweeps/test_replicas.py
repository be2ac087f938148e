"""Networks trained together must end where each of them ends alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.masks import apply_masks_, hold_masks, masks_by_threshold
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR
from spr_or.sweeps.replicas import Replicas, make_joint_step
from spr_or.training.step import make_step

STEPS = 20
SETTINGS = {  # lambda, alpha
    "gradient": [(0.0, 0.5), (3.0, 0.1), (8.0, 0.3)],
    "prox": [(0.0, 0.5), (10.0, 0.1), (200.0, 0.3)],
}


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 1, 8, 8, generator=generator).to(dtype),
            torch.randint(10, (16,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def equipped(
    model: nn.Module, lam: float, alpha: float, method: str
) -> tuple[torch.optim.Optimizer, list[Callable[[], None]]]:
    """The optimiser of a run, and what adds SPR's gradient."""
    spr = SPR(model, lam, alpha, 0.8)
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    if method == "prox":
        return ProxSGD(model, spr, **settings), []
    return torch.optim.SGD(model.parameters(), **settings), [spr.add_gradient_]


@pytest.mark.parametrize(
    ("build", "method", "dtype", "tolerance"),
    [
        (convnet, "gradient", torch.float64, 1e-10),
        (convnet, "prox", torch.float64, 1e-10),
        (digits_resnet, "gradient", torch.float64, 1e-10),
        (digits_resnet, "prox", torch.float64, 1e-10),
        (digits_resnet, "gradient", torch.float32, 2e-3),
    ],
)
def test_replicas_train_like_runs_of_their_own(
    build: Callable[[], nn.Module], method: str, dtype: torch.dtype, tolerance: float
) -> None:
    settings = SETTINGS[method]
    start = build().to(dtype)
    alone = [copy.deepcopy(start) for _ in settings]
    expected = []
    for model, setting in zip(alone, settings, strict=True):
        optimizer, adds = equipped(model, *setting, method)
        step = make_step(
            model, optimizer, add_gradient=adds[0] if adds else None, label_smoothing=0.1
        )
        if dtype == torch.float64:  # `forward` gives float32 logits, right for training
            step = _double_step(model, optimizer, adds)
        expected.append([step(*batch) for batch in batches(dtype)])
    together = Replicas([copy.deepcopy(start) for _ in settings])
    equipment = [
        equipped(model, *setting, method)
        for model, setting in zip(together.models, settings, strict=True)
    ]
    joint = make_joint_step(
        together,
        [optimizer for optimizer, _ in equipment],
        add_gradients=[add for _, adds in equipment for add in adds],
        label_smoothing=0.1,
    )
    for number, batch in enumerate(batches(dtype)):
        losses, correct = joint(*batch)
        wanted = torch.stack([run[number][0] for run in expected])
        torch.testing.assert_close(losses, wanted.to(losses), rtol=tolerance, atol=tolerance)
        if dtype == torch.float64:
            assert correct.tolist() == [int(run[number][1]) for run in expected]
    if dtype == torch.float32:  # rounding moves single weights by more after 20 steps
        return
    for one, two in zip(alone, together.models, strict=True):
        state = two.state_dict()
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance)
    if method == "prox":  # the settings differ in what they remove
        zeros = [sum(int((p == 0).sum()) for p in model.parameters()) for model in alone]
        assert zeros[0] < zeros[-1], zeros


def _double_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, adds: list[Callable[[], None]]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The plainest step there is, all in float64."""

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        for add in adds:
            add()
        optimizer.step()
        return loss.detach(), (logits.argmax(1) == labels).sum()

    return step


def test_masks_of_each_replica_hold() -> None:
    together = Replicas([convnet() for _ in range(3)])
    held = []
    for model, share in zip(together.models, (0.1, 0.3, 0.5), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    rows = int(share * len(parameter))
                    parameter[:rows] = 0
        masks = masks_by_threshold(model)
        apply_masks_(model, masks)
        held.append((model, masks, hold_masks(model, masks)))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in together.models]
    joint = make_joint_step(together, optimizers, after=[hold for *_, hold in held])
    for batch in batches(torch.float32)[:3]:
        joint(*batch)
    gone = []
    for model, masks, _ in held:
        weight = model.get_parameter("0.weight")
        assert bool((weight[~masks["0"]] == 0).all())
        gone.append(int((~masks["0"]).sum()))
    assert len(set(gone)) == 3


def test_a_replica_is_an_ordinary_network() -> None:
    together = Replicas([convnet() for _ in range(2)])
    images, labels = batches(torch.float32)[0]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in together.models]
    make_joint_step(together, optimizers)(images, labels)
    for model in together.models:
        model.eval()
    logits = together(images)
    for model, wanted in zip(together.models, logits, strict=True):
        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-4)
    other = convnet()
    together.models[1].load_state_dict(other.state_dict())
    torch.testing.assert_close(together(images)[1], other.eval()(images), rtol=1e-4, atol=1e-4)
    assert int(together.models[0].get_buffer("1.num_batches_tracked")) == 1


def test_networks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="same names and shapes"):
        Replicas([mlp(), mlp(hidden=(8,))])
    with pytest.raises(ValueError, match="one network or more"):
        Replicas([])
