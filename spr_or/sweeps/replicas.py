r"""Several runs of one network trained side by side: one forward and one backward pass for all.

The parameters and buffers of R networks are stacked, (R, …), and `torch.func.vmap` runs the network
over them on one batch: a convolution of R networks becomes one grouped convolution, a BatchNorm of
R networks one over R times the channels. Each network's own tensors are views of the stacked ones,
so regularizers, optimisers, masks, checkpoints and evaluation see ordinary networks, each with a λ
and an α of its own.

Replica r descends on its own mean loss: the loss that is differentiated is :math:`\sum_r L(w_r)`,
whose gradient in :math:`w_r` is :math:`\nabla L(w_r)`. Results differ from those of a run alone by
rounding: a grouped convolution adds in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Replicas:
    """R networks of one make whose tensors are views of stacked ones.

    Networks must have the same structure and live on one device; only their numbers may differ.
    They are changed in place, and must not be moved or converted afterwards. Raises ``ValueError``
    for networks whose tensors differ in name or shape, or that share a parameter between layers.

    >>> nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    >>> replicas = Replicas(nets)
    >>> replicas(torch.zeros(5, 2, 2)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        shapes = [_shapes(model) for model in models]
        if not models or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "replicas must be one network or more with the same names and shapes of tensors"
            )
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, _ in models[0].named_parameters():
                own = [model.get_parameter(name) for model in models]
                stacked = torch.stack([p.detach() for p in own])
                for parameter, view in zip(own, stacked, strict=True):
                    parameter.data = view
                self.parameters[name] = stacked.requires_grad_(own[0].requires_grad)
            for name, _ in models[0].named_buffers():
                own_buffers = [model.get_buffer(name) for model in models]
                stacked = torch.stack(own_buffers)
                for buffer, view in zip(own_buffers, stacked, strict=True):
                    buffer.data = view
                self.buffers[name] = stacked

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (R, B, classes) of all networks for one batch (B, …), in the first one's mode."""
        return torch.vmap(self._one, in_dims=(0, 0, None), randomness="different")(
            self.parameters, self.buffers, images
        )

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.models[0], (parameters, buffers), (x,))

    def give_gradients(self) -> None:
        """Let each network's ``.grad`` be its part of the stacked gradients, a view."""
        for name, stacked in self.parameters.items():
            if stacked.grad is not None:
                for model, view in zip(self.models, stacked.grad, strict=True):
                    model.get_parameter(name).grad = view


def make_joint_step(
    replicas: Replicas,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    add_gradients: Sequence[Callable[[], None]] = (),
    after: Sequence[Callable[[], None]] = (),
    label_smoothing: float = 0.0,
    bf16: bool = False,
) -> Losses:
    """A step of all replicas on one batch; their losses (R,) and numbers of correct answers (R,).

    What `spr_or.training.step.make_step` does for one network: ``add_gradients`` holds an SPR's
    ``add_gradient_`` for each replica (none for the proximal method), ``optimizers`` one for each,
    ``after`` the masks to hold.
    """

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for stacked in replicas.parameters.values():
            stacked.grad = None
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = replicas(images)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        copies = labels.expand(len(logits), -1)
        each = F.cross_entropy(
            logits.flatten(0, 1),
            copies.flatten(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        losses = each.view(copies.shape).mean(1)
        losses.sum().backward()
        replicas.give_gradients()
        for add in add_gradients:
            add()
        for optimizer in optimizers:
            optimizer.step()
        for hold in after:
            hold()
        return losses.detach(), (logits.detach().argmax(2) == labels).sum(1)

    return step


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.shape for name, tensor in tensors.items()}
