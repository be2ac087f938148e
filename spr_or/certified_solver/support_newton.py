"""The best weights on given supports by Newton's method, for smooth losses: no price decides any more.

With every indicator fixed the objective is the loss plus a ridge, in a box.  Newton steps with backtracking
find its minimum without the box, which nearly always lies inside; what leaves the box, or violates a sign, is
left to other methods.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.design import Design, loss_and_gradient
from spr_or.certified_solver.node_newton import affordable, hessians

_STEPS = 25
_HALVINGS = 20
_ENOUGH = 1e-4  # of the fall that the slope promises
_RELATIVE = 1e-12  # of the value, that another step may promise
_DAMPING = 1e-12  # of the diagonal


class Minima(NamedTuple):
    """Weights W (B, N, k, 1), and whether they are the best ones in the box (B,) bool."""

    W: Tensor
    found: Tensor


def minimise(design: Design, supports: Tensor) -> Minima:
    """The weights on supports (B, N) bool that minimise loss and ridge."""
    B, N = supports.shape
    W = design.X.new_zeros((B, N, design.shape[1], design.shape[2]))
    if not affordable(design, B):
        return Minima(W, torch.zeros(B, dtype=torch.bool, device=W.device))
    block = design.block()
    used = (supports.unsqueeze(-1) & design.real).flatten(1)  # (B, P)
    ridge = design.ridge.repeat_interleave(design.shape[1])
    w = W.flatten(1)
    done = ~used.any(1)
    value, g = _value_and_slope(design, w, ridge, used, block)
    for _ in range(_STEPS):
        step = _step(design, w, g, ridge, used, block)
        fall = (g * step).sum(1)  # at most 0
        done = done | (-fall <= _RELATIVE * value)
        if bool(done.all()):
            break
        length = torch.where(done, 0.0, 1.0).to(w)
        for _ in range(_HALVINGS):
            trial = w + length.unsqueeze(1) * step
            new, slope = _value_and_slope(design, trial, ridge, used, block)
            worse = ~(new <= value + _ENOUGH * length * fall)
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        w, g = torch.where(worse.unsqueeze(1), w, trial), torch.where(worse.unsqueeze(1), g, slope)
        value = torch.where(worse, value, new)
    W = w.view(W.shape)
    inside = (W.abs() <= design.M[:, None, None]).flatten(1).all(1) & W.isfinite().flatten(1).all(1)
    if design.signed is not None:
        inside &= ~((W[..., 0] < 0) & design.signed).flatten(1).any(1)
    return Minima(W, done & inside)


def _value_and_slope(
    design: Design, w: Tensor, ridge: Tensor, used: Tensor, block: Tensor
) -> tuple[Tensor, Tensor]:
    """Of loss and ridge at w (B, P): (B,) and (B, P), the slope in the columns in use."""
    N, k, _ = design.shape
    loss, gradient = loss_and_gradient(design, w.view(len(w), N, k, 1), block)
    slope = gradient.flatten(1) + 2 * ridge * w
    return loss + (ridge * w.square()).sum(1), torch.where(used, slope, 0.0)


def _step(
    design: Design, w: Tensor, g: Tensor, ridge: Tensor, used: Tensor, block: Tensor
) -> Tensor:
    """Newton's step (B, P); zero where the equations have no solution."""
    N, k, _ = design.shape
    H = hessians(design, w.view(len(w), N, k, 1), block)
    H = torch.where(used.unsqueeze(2) & used.unsqueeze(1), H, 0.0)
    diagonal = H.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(used, 2 * ridge + _DAMPING * diagonal, 1.0))
    step, info = torch.linalg.solve_ex(H, -g.unsqueeze(-1))
    sound = (info == 0) & step.isfinite().flatten(1).all(-1)
    return torch.where(sound.unsqueeze(-1), step.squeeze(-1), 0.0)
