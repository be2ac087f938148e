"""A trained network in an optimisation model of your own: `embed`, and `get_error` after the solve."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.embedding.block import LARGEST, build_block, embedded
from spr_or.embedding.bounds import Bounds, data_bounds, interval_bounds
from spr_or.embedding.cuts import add_cuts
from spr_or.embedding.errors import EmbeddingError
from spr_or.embedding.feed_forward import FeedForward
from spr_or.embedding.lp_bounds import lp_bounds
from spr_or.embedding.reading import read_network
from spr_or.solvers.time_limit import TimeLimit

__all__ = ["EmbeddingError", "add_cuts", "embed", "get_bounds", "get_error", "read_network"]

BoundKind = Literal["interval", "lp", "data"]
BOUNDS = ("interval", "lp", "data")
FORMULATIONS = ("bigm", "cuts")


def embed(
    net: nn.Module | FeedForward,
    input_bounds: tuple[Any, Any],
    bounds: BoundKind = "interval",
    formulation: Literal["bigm", "cuts"] = "bigm",
    data: Tensor | None = None,
) -> Any:
    """A feed-forward ReLU network as a Pyomo block, for a model of your own.

    Parameters
    ----------
    net : a torch network, a compact one too, with one input and one output; or what `read_network` made
        of one, where the same network is embedded several times
    input_bounds : lower and upper ends of one input, tensors of its shape without the batch; finite
    bounds : where big-M constants come from: "interval" arithmetic, "lp" (tightened by linear programs),
        or "data", what ``data`` shows. The last is not safe: inputs whose activations lie outside
        are no longer feasible
    formulation : "bigm", or "cuts", which adds the cuts of Anderson et al. that are violated at the
        largest and smallest value of each output. `spr_or.embedding.cuts.add_cuts` adds those of
        another objective
    data : samples (n, …) for ``bounds="data"``

    Returns
    -------
    block : with the variables ``inputs`` and ``outputs``, flattened and counted from 0, and binaries for the
        neurons that can be on and off. `get_error` compares it with torch after a solve

    Raises `EmbeddingError`, a ValueError, before any solver starts: for a layer that cannot be encoded
    and for a bound that does not fit, with its place.

    >>> import pyomo.environ as pyo
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> model = pyo.ConcreteModel()
    >>> model.net = embed(net, (torch.zeros(2), torch.ones(2)))
    >>> model.goal = pyo.Objective(expr=model.net.outputs[0], sense=pyo.maximize)
    >>> _ = pyo.SolverFactory("appsi_highs").solve(model)
    >>> get_error(model.net) < 1e-5
    True
    """
    if bounds not in BOUNDS:
        raise EmbeddingError(f"bounds must be one of {', '.join(BOUNDS)}, got {bounds!r}")
    if formulation not in FORMULATIONS:
        known = ", ".join(FORMULATIONS)
        raise EmbeddingError(f"formulation must be one of {known}, got {formulation!r}")
    lower, upper = _ends(input_bounds)
    network = net if isinstance(net, FeedForward) else read_network(net, tuple(lower.shape))
    found = get_bounds(network, lower, upper, bounds, data)
    block = build_block(network, found)
    if formulation == "cuts":
        _cut_at_extremes(block)
    return block


def get_bounds(
    network: FeedForward,
    lower: Tensor,
    upper: Tensor,
    kind: BoundKind = "interval",
    data: Tensor | None = None,
    clock: TimeLimit | None = None,
) -> Bounds:
    """Bounds of all values on the box lower <= x <= upper, tensors of one input's shape; see `embed`.

    clock : ends the tightening of "lp"; what is not tightened by then keeps its interval
    """
    low, high = _checked(lower, "lower", network), _checked(upper, "upper", network)
    if bool((low > high).any()):
        i = int(np.argmax(low > high))
        raise EmbeddingError(
            f"input_bounds: lower is {low[i]:g} and upper {high[i]:g} at {_index(i, network)}"
        )
    if kind == "lp":
        return lp_bounds(network, low, high, clock)
    if kind == "interval":
        return interval_bounds(network, low, high)
    given = None if data is None else torch.as_tensor(data)
    if given is None or tuple(given.shape[1:]) != network.shape or not len(given):
        found = "none" if given is None else str(tuple(given.shape))
        raise EmbeddingError(
            f'bounds="data" needs data=, samples of shape (n, {", ".join(map(str, network.shape))}); '
            f"got {found}"
        )
    samples = given.detach().double().flatten(1).cpu()
    wrong = (~samples.isfinite()).any(1).nonzero()
    if len(wrong):
        raise EmbeddingError(f"data: sample {int(wrong[0])} holds numbers that are not finite")
    return data_bounds(network, low, high, samples.numpy())


def get_error(block: Any) -> float:
    """The largest difference between the block's outputs and torch's, at the values of its inputs.

    torch computes in float64, so what is left is what the solver's tolerances allow. Raises ValueError
    where no solution is loaded, and for what is no block of `embed`.
    """
    made = embedded(block)
    values = [v.value for v in (*block.inputs.values(), *block.outputs.values())]
    if any(value is None for value in values):
        raise ValueError(
            "the variables have no values: solve the model and load its solution first"
        )
    count = made.network.inputs
    inputs = torch.tensor(values[:count], dtype=torch.float64).view(1, *made.network.shape)
    expected = made.network.net(inputs).detach().flatten()
    found = torch.tensor(values[count:], dtype=torch.float64)
    return float((expected - found).abs().max())


def _ends(input_bounds: Any) -> tuple[Tensor, Tensor]:
    """Lower and upper ends as float64 tensors."""
    try:
        lower, upper = (torch.as_tensor(end) for end in input_bounds)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EmbeddingError(
            "input_bounds must be a pair of tensors, the lower and the upper ends of one input, got "
            f"{type(input_bounds).__name__} ({error})"
        ) from None
    for end, name in ((lower, "lower"), (upper, "upper")):
        if not end.dim() or end.is_complex():
            found = "a single number" if not end.dim() else str(end.dtype)
            raise EmbeddingError(
                f"input_bounds: {name} must be a real tensor of one input's shape, got {found}"
            )
    return lower.detach().double(), upper.detach().double()


def _checked(end: Tensor, name: str, network: FeedForward) -> np.ndarray:
    if tuple(end.shape) != network.shape:
        raise EmbeddingError(
            f"input_bounds: {name} has the shape {tuple(end.shape)}, an input {network.shape}"
        )
    flat = end.detach().double().flatten().cpu().numpy()
    wrong = ~np.isfinite(flat)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise EmbeddingError(
            f"input_bounds: {name} is {flat[i]} at {_index(i, network)}; every input needs finite bounds"
        )
    if abs(flat).max(initial=0.0) > LARGEST:
        i = int(abs(flat).argmax())
        raise EmbeddingError(
            f"input_bounds: {name} is {flat[i]:g} at {_index(i, network)}; solvers need numbers up to "
            f"{LARGEST:g}"
        )
    return flat


def _index(flat: int, network: FeedForward) -> str:
    return str([int(i) for i in np.unravel_index(flat, network.shape)])


def _cut_at_extremes(block: Any) -> None:
    """Cuts where each output is largest and smallest, in a model of the block only."""
    import pyomo.environ as pyo

    host = pyo.ConcreteModel()
    host.net = block
    for output in block.outputs.values():
        for sense in (pyo.maximize, pyo.minimize):
            host.goal = pyo.Objective(expr=output, sense=sense)
            add_cuts(host, block)
            host.del_component("goal")
    host.del_component("net")
