"""One training step, one scored batch, and both captured as CUDA graphs.

A step takes a batch on the device and returns two scalars on it, a loss and a number of correct
answers, without waiting for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.training.replica import replica

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Images, the network's logits and labels of a batch to the loss, a mean over it.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
# Takes what a graph is to do, records it, and returns what replays it.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]

_EAGER_STEPS = 3  # before a capture: momentum buffers and library workspaces must exist


def forward(model: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    """Logits (B, classes) in float32, computed in bfloat16 where autocast deems that safe."""
    if not bf16:
        return model(images).float()
    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images).float()


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    add_gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    label_smoothing: float = 0.0,
    bf16: bool = False,
    objective: Objective | None = None,
) -> Step:
    """Forward, backward, ``add_gradient()`` (SPR's), optimiser, ``after()`` (masks held).

    The loss is the mean over the batch. Of several processes (see `replica`) each steps on its
    share: backward leaves the mean of all gradients, and SPR's is then added once by each of them.
    """
    network = replica(model)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        logits = forward(network, images, bf16)
        if objective is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        else:
            loss = objective(images, logits, labels)
        loss.backward()
        if add_gradient is not None:
            add_gradient()
        optimizer.step()
        if after is not None:
            after()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    return step


def make_scoring(model: nn.Module, bf16: bool = False) -> Step:
    """The loss summed over the batch, in the mode that the model is in; no gradients."""

    @torch.no_grad()
    def score(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(model, images, bf16)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return loss, (logits.argmax(1) == labels).sum()

    return score


def cuda_graph(body: Callable[[], None]) -> Callable[[], None]:
    """Record ``body`` as a CUDA graph; recording does not run it."""
    graph = torch.cuda.CUDAGraph()
    # The thread that pins a stream's batches may go on allocating meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay


def captured(
    step: Step, optimizer: torch.optim.Optimizer | None = None, record: Recorder = cuda_graph
) -> Step:
    """``step`` as one graph, replayed for every batch; meaning and order stay the same.

    A graph keeps addresses, not values: a batch is copied to where the graph reads it, weights,
    BatchNorm statistics, lambda, bounds and masks are tensors that are changed in place, and the
    learning rates of ``optimizer`` are written into tensors whenever they change. So one capture
    serves a whole phase.

    The first steps run as they are, on a side stream, as capture demands. The first of the others
    sets the shape; batches of another shape (the last one of an evaluation) run as they are.

    ``record`` is for tests: any function that records a body and returns what replays it. Raises
    ``ValueError`` on tensors that are not on a CUDA device when ``record`` is `cuda_graph`.
    """
    return _Captured(step, optimizer, record)


class _Captured:
    """A step and what its graph reads and writes: batch, results and learning rates."""

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer | None, record: Recorder
    ) -> None:
        self._step, self._optimizer, self._record = step, optimizer, record
        self._written: list[float] = []
        self._rates: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._eager_left = _EAGER_STEPS
        if optimizer is not None:
            optimizer.register_step_pre_hook(_lay_out_like_parameters)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._record is cuda_graph and images.device.type != "cuda":
            raise ValueError(f"speed.cuda_graph needs a CUDA device, not {images.device}")
        self._write_rates(images.device)
        if self._eager_left > 0:
            self._eager_left -= 1
            return _on_side_stream(self._eager, images, labels)
        if self._replay is None:
            self._replay = self._capture(images, labels)
        if images.shape != self._inputs[0].shape:
            return self._eager(images, labels)
        self._inputs[0].copy_(images)
        self._inputs[1].copy_(labels)
        self._replay()
        return self._outputs[0].clone(), self._outputs[1].clone()

    def _write_rates(self, device: torch.device) -> None:
        """Bring the tensors that the graph reads its learning rates from up to date."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        given = [float(group["lr"]) for group in groups]
        if not self._rates:
            self._rates = [torch.zeros((), device=device) for _ in groups]
        if given != self._written:
            for rate, value in zip(self._rates, given, strict=True):
                rate.fill_(value)
            self._written = given

    def _capture(self, images: Tensor, labels: Tensor) -> Callable[[], None]:
        """Record the step on a batch of this shape."""
        self._inputs = [images.clone(), labels.clone()]
        self._outputs = [
            torch.zeros((), device=images.device),
            torch.zeros((), dtype=torch.int64, device=images.device),
        ]
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        return self._record(self._body)

    def _body(self) -> None:
        results = self._eager(self._inputs[0], self._inputs[1])
        for output, result in zip(self._outputs, results, strict=True):
            output.copy_(result)

    def _eager(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with _tensors_as_rates(self._optimizer, self._rates):
            return self._step(images, labels)


@contextlib.contextmanager
def _tensors_as_rates(
    optimizer: torch.optim.Optimizer | None, rates: list[Tensor]
) -> Iterator[None]:
    """Let ``optimizer`` read its learning rates from tensors; numbers again on leaving.

    Of torch's implementations of SGD only the fused one leaves such a tensor on its device.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    kept = [(group["lr"], group["fused"]) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"], group["fused"] = rate, True
    try:
        yield
    finally:
        for group, (rate, fused) in zip(groups, kept, strict=True):
            group["lr"], group["fused"] = rate, fused


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer, *arguments: object) -> None:
    """Give gradients and momentum the strides of their parameters, as the fused kernels demand.

    Autograd's may differ in dimensions of size 1, those of a checkpoint in ``channels_last``.
    """

    def like(parameter: Tensor, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.stride() == parameter.stride():
            return tensor
        return torch.empty_like(parameter, requires_grad=False).copy_(tensor)

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = like(parameter, parameter.grad)
            state = optimizer.state.get(parameter, {})
            if "momentum_buffer" in state:
                state["momentum_buffer"] = like(parameter, state["momentum_buffer"])


def _on_side_stream(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if images.device.type != "cuda":
        return step(images, labels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = step(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    return result
