"""The network of each of several processes: its BatchNorm is torch's on the whole batch."""

from typing import Any

import pytest
import torch
from torch import nn

from spr_or.training.replica import replica, see_whole_batch_


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 3, 2)])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}])
def test_batchnorm_over_all_processes_is_torchs_on_the_whole_batch(
    shape: tuple[int, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sum over processes taken away, one process is the whole batch."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    torch_norm, ours = kind(5, **options), kind(5, **options)
    twin = nn.Sequential(ours)
    see_whole_batch_(twin)
    for _ in range(2):
        x = torch.randn(shape)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [torch_norm(inputs[0]), twin(inputs[1])]
        torch.testing.assert_close(outputs[1], outputs[0])
        for y in outputs:
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        for name, tensor in torch_norm.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor)
    low = [module(x.bfloat16()) for module in (torch_norm, twin)]
    assert low[1].dtype == torch.bfloat16
    torch.testing.assert_close(low[1], low[0], rtol=0.02, atol=0.02)


def test_one_process_trains_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    assert replica(model) is model
