"""One training step, and the same step captured as a CUDA graph.

A step takes a batch on the device and returns its loss and its number of correct answers as
tensors, without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_EAGER_STEPS = 3  # before a capture: momentum buffers and library workspaces must exist


def forward(model: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    """Logits (B, classes) in float32, computed in bfloat16 where autocast deems that safe."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = model(images)
    return logits.float()


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    add_gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    label_smoothing: float = 0.0,
    bf16: bool = False,
) -> Step:
    """Forward, backward, ``add_gradient()`` (SPR's), optimiser, ``after()`` (masks held)."""

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        logits = forward(model, images, bf16)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        loss.backward()
        if add_gradient is not None:
            add_gradient()
        optimizer.step()
        if after is not None:
            after()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    return step


def captured(step: Step, optimizer: torch.optim.Optimizer) -> Step:
    """``step`` as one CUDA graph, replayed for every batch; meaning and order stay the same.

    The first steps run as they are, on a side stream, as capture demands. The learning rate is
    a constant of the graph: when it changes, the step is captured again. All batches must have
    one shape. Raises ``ValueError`` on tensors that are not on a CUDA device.
    """
    graph: torch.cuda.CUDAGraph | None = None
    rates: list[float] = []
    inputs: list[Tensor] = []
    outputs: tuple[Tensor, Tensor]
    eager_left = _EAGER_STEPS

    def replay(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal graph, rates, inputs, outputs, eager_left
        if images.device.type != "cuda":
            raise ValueError(f"speed.cuda_graph needs a CUDA device, not {images.device}")
        if eager_left > 0:
            eager_left -= 1
            return _on_side_stream(step, images, labels)
        now = [float(group["lr"]) for group in optimizer.param_groups]
        if graph is None or now != rates:
            rates = now
            inputs = [images.clone(), labels.clone()]
            optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = step(*inputs)
        inputs[0].copy_(images)
        inputs[1].copy_(labels)
        graph.replay()
        return outputs[0].clone(), outputs[1].clone()

    return replay


def _on_side_stream(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = step(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    return result
