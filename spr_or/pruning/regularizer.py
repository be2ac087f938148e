r"""Structured Perspective Regularization of a network under training.

.. math::  \mathrm{SPR}(w) = \lambda \sum_i u_i\, z(w^i), \qquad z \text{ as in eq. (5)}

with z, its regimes and its derivatives from `projected.entity_terms`, evaluated once a step
for all entities of the network (`spr_or.pruning.gradient_passes`). Everything is computed in float32,
whatever the autocast (float64 for float64 parameters), and nothing is read back from the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.pruning import gradient_passes_cpu, group_passes
from spr_or.pruning.gradient_passes import (
    Batch,
    Parts,
    Slopes,
    add_gradients_,
    gradients,
    norms_and_peaks,
    penalties_and_slopes,
)
from spr_or.pruning.group_entities import GroupEntities, GroupLayout
from spr_or.pruning.ignored import Ignored
from spr_or.pruning.layer_entities import (
    EntitySpec,
    LayerEntities,
    SliceEntities,
    layer_entities,
)
from spr_or.pruning.per_entity import (
    PerEntity,
    check_numbers,
    crossed,
    importance_of,
    per_layer,
)

# An entity that is (almost) zero in the dense network gets this share of its layer's bound: the
# slope of z at zero is (1 - alpha) / M, so a tiny M would make any step overshoot.
_ENTITY_FLOOR = 1e-3


class EntityValues(NamedTuple):
    """What SPR sees of one layer's entities; every field has shape (N,).

    ``regime`` holds `projected.Regime` numbers, ``indicator`` is y~, ``value`` is z without
    lambda and u, ``norm`` is ||w||_2, ``peak`` ||w||_inf, ``bound`` M and ``importance`` u.
    For entities that cross layers with bounds of their own, ``peak`` and ``bound`` are |w_j| and M_j
    of the weight where |w_j| / M_j is largest.
    """

    regime: Tensor
    indicator: Tensor
    value: Tensor
    norm: Tensor
    peak: Tensor
    bound: Tensor
    importance: Tensor


class SPR(nn.Module):
    r"""The regularizer lambda sum_i u_i z(w^i) of a network's weights.

    Two ways to use it, with equal gradients:

    * ``(loss + spr()).backward()``, through a custom backward with the closed gradient;
    * ``loss.backward(); spr.add_gradient_()``, without any graph: cheaper.

    Parameters
    ----------
    model : any module. SPR refers to its parameters and does not own them: they are neither in
        ``spr.parameters()`` nor in its state dict, which holds lambda, M and u.
    lam : lambda >= 0. Assign ``spr.lam`` at any time: the value lives in a tensor that is filled in
        place, so compiled and captured steps follow it. A number or a tensor on the CPU that is
        negative or not finite is refused; a tensor on an accelerator is taken as it is, because
        looking at it would stall the step.
    alpha : weight of the quadratic term against the indicator, in [0, 1].
    M : the bounds on |w_j|: a number, ``{layer name: number or (N,) tensor}``, a tensor over all
        entities in the order of ``spr.layers``, or what `SPR.bounds_from` gives. Entities that cross
        L layers may have a bound in each: a tensor (N, L), or (1, L) for all of them, in the order
        of the layer's ``bounded``.
    entities, include_norm, example, ignored : what is regularised, see
        `spr_or.pruning.layer_entities.layer_entities`.
    variant : which of the formulas of `spr_or.formulations.projected`.
    u : the importances u_i. ``"share"``: k_i / sum k, the entity's share of the parameters in
        entities; ``"uniform"``: 1; or numbers given as for M. `SparseTrainingProblem.network` takes
        the same words.
    weights : the old name of ``u``, with ``"parameters"`` for ``"share"``; deprecated.

    Raises ``ValueError`` for bad numbers, unknown names or shapes that do not fit.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> _ = nn.init.constant_(net[0].weight, 0.5)
    >>> spr = SPR(net, lam=0.1, alpha=0.5, M=1.0)
    >>> round(spr().item(), 6)
    0.05
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float,
        alpha: float,
        M: PerEntity,
        entities: EntitySpec = "filters",
        variant: str = "exact",
        u: str | PerEntity = "share",
        include_norm: bool = False,
        *,
        example: Any = None,
        ignored: Ignored = (),
        weights: str | PerEntity | None = None,
    ) -> None:
        super().__init__()
        if weights is not None:
            warnings.warn("SPR(weights=…) is called u now", DeprecationWarning, stacklevel=2)
            u = "share" if isinstance(weights, str) and weights == "parameters" else weights
        # The formula's own checks, on an entity that costs nothing.
        projected.value(torch.zeros(1, 1), alpha, 1.0, variant)
        self.alpha = alpha
        self.variant = variant
        self.layers = layer_entities(
            model, entities, include_norm, example=example, ignored=ignored
        )
        self._runs = _runs(self.layers)
        dtype, device = _common(self.layers)
        bound = per_layer(M, self.layers, "M", [crossed(layer) for layer in self.layers])
        importance = importance_of(u, self.layers)
        for layer in self.layers:
            check_numbers(bound[layer.name], "M", layer.name, positive=True)
            check_numbers(importance[layer.name], "u", layer.name, positive=False)
        self._compiled_with: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._lam: Tensor
        self.bound: Tensor
        self.importance: Tensor
        self.register_buffer("_lam", torch.zeros((), dtype=dtype, device=device))
        for name, values in (("bound", bound), ("importance", importance)):
            columns = [values[layer.name].cpu().double() for layer in self.ordered_layers()]
            flat = torch.cat([column.flatten() for column in columns])
            self.register_buffer(name, flat.to(device=device, dtype=dtype))
        # A network has groups in every layer or in none, see `layer_entities`.
        groups = [layer for layer in self.ordered_layers() if isinstance(layer, GroupEntities)]
        self._layout = GroupLayout(groups).to(device) if groups else None
        self._make_passes()
        self.lam = lam

    @property
    def lam(self) -> Tensor:
        """Lambda, a tensor without dimensions."""
        return self._lam

    @lam.setter
    def lam(self, value: float | Tensor) -> None:
        # A look at a number on an accelerator would wait for it, and fail under capture.
        seen = not torch.is_tensor(value) or value.device.type == "cpu"
        if seen and not 0 <= float(value) <= torch.finfo(self._lam.dtype).max:
            raise ValueError(f"lam must be a finite number >= 0, got {float(value)}")
        with torch.no_grad():
            self._lam.copy_(value) if torch.is_tensor(value) else self._lam.fill_(value)

    @staticmethod
    def bounds_from(
        dense_model: nn.Module,
        entities: EntitySpec = "filters",
        per: str = "layer",
        include_norm: bool = False,
        *,
        example: Any = None,
        ignored: Ignored = (),
    ) -> dict[str, Tensor]:
        """M from a network trained without SPR: max|w| of each layer, or of each entity.

        The biases, and γ and β with ``include_norm``, count as weights. Returns
        {layer name: scalar tensor} for ``per="layer"`` (the paper's choice), and
        {layer name: (N,) tensor} for ``per="entity"``, where an entity's M is at least 1e-3 of its
        layer's. Raises ``ValueError`` for a layer that is zero or not finite, by name.

        Entities that cross L > 1 layers get a bound in each of them, (1, L) or (N, L): the weights
        of one may be twenty times those of another, and the larger M would bound nothing. A layer
        that is almost zero there has 1e-3 of the largest.

        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        >>> net[0].weight.data = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1)
        >>> SPR.bounds_from(net), SPR.bounds_from(net, per="entity")
        ({'0': tensor(2.)}, {'0': tensor([0.5000, 2.0000])})
        """
        layers = layer_entities(
            dense_model, entities, include_norm, example=example, ignored=ignored
        )
        return {layer.name: largest_weights(layer, per) for layer in layers}

    def forward(self) -> Tensor:
        """lambda sum_i u_i z(w^i): a scalar to add to the loss."""
        return _Penalty.apply(self, *self._parameters_in_order())

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the regularizer's gradient to ``.grad`` of its parameters, in place.

        A gradient that is None is created. Call it after ``backward()`` (and, with a gradient
        scaler, after unscaling).
        """
        for parameter in self._parameters_in_order():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._layout is not None:
            self._add_group_gradients_(self._layout)
            return
        batches = self.gather()
        in_place = self._targets(batches)
        if any(target is not None for target in in_place):
            rest = self._add_in_place_(in_place, batches)
        else:
            _, slopes = self._formula(batches, *self._numbers())
            rest = self._gradients(batches, slopes)
        pairs = [
            (parameter.grad, part)
            for parameter, part in self.scatter(rest)
            if parameter.requires_grad and parameter.grad is not None
        ]
        if pairs:
            torch._foreach_add_([grad for grad, _ in pairs], [part for _, part in pairs])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Fuse the kernels of a step by `torch.compile`, with its arguments; changes no result.

        Of use on an accelerator, where launching the formula's many small kernels costs more than
        running them, and for large networks on a CPU. It needs a compiler, and a minute or less
        at the first step.
        """
        self._compiled_with = args, kwargs
        self._make_passes()

    def _make_passes(self) -> None:
        """The passes over the weights, compiled or not."""

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            if self._compiled_with is None:
                return function
            args, kwargs = self._compiled_with
            return torch.compile(function, *args, **kwargs)

        groups = self._layout is not None
        self._formula: Callable[..., tuple[Tensor, Slopes]] = made(
            group_passes.penalties_and_slopes if groups else penalties_and_slopes
        )
        self._gradients: Callable[..., Any] = made(group_passes.gradients if groups else gradients)
        self._add_gradients_: Callable[..., list[Parts]] = made(add_gradients_)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled function cannot be pickled; a copy compiles its own.
        passes = ("_formula", "_gradients", "_add_gradients_")
        return {key: value for key, value in self.__dict__.items() if key not in passes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_passes()

    @torch.no_grad()
    def entity_values(self) -> dict[str, EntityValues]:
        """Regimes, indicators, values and norms for reports: {layer name: `EntityValues`}.

        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        >>> SPR(net, lam=0.1, alpha=0.5, M=1.0).entity_values()["0"].norm.shape
        torch.Size([2])
        """
        if self._layout is not None:
            self._follow()
            norms = group_passes.entity_norms(
                self._layout.batches(), self._layout.pieces(), self.bound
            )
            norm, peak, bound = norms
        else:
            norm, peak = norms_and_peaks(self.gather())
            bound = self.bound.to(norm)
        importance = self.importance.to(norm)
        terms = projected.entity_terms(norm, peak, self.alpha, bound, self.variant)
        columns = (terms.regime, terms.indicator, terms.value, norm, peak, bound, importance)
        counts = [layer.count for layer in self.ordered_layers()]
        split = zip(*(column.split(counts) for column in columns), strict=True)
        values = {
            layer.name: EntityValues(*fields)
            for layer, fields in zip(self.ordered_layers(), split, strict=True)
        }
        return {layer.name: values[layer.name] for layer in self.layers}

    def extra_repr(self) -> str:
        """One line for ``print(spr)``."""
        entities = sum(layer.count for layer in self.layers)
        return (
            f"{entities} entities in {len(self.layers)} layers, alpha={self.alpha}, {self.variant}"
        )

    def ordered_layers(self) -> list[LayerEntities]:
        """The layers in the order of ``bound`` and ``importance``: equal shapes beside each other."""
        return [layer for run in self._runs for layer in run]

    def _batches(self) -> list[list[LayerEntities]]:
        """The layers that are reduced together.

        An accelerator pays for each kernel, so layers of one shape are concatenated; the CPU pays
        for each byte, so every layer is read where it lies.
        """
        if self.bound.device.type == "cpu" or self._layout is not None:
            return [[layer] for layer in self.ordered_layers()]
        return self._runs

    def gather(self) -> list[Batch]:
        """The weights of all entities, batch by batch.

        Batches follow `ordered_layers`: one layer each on a CPU, all layers of one shape together on
        an accelerator; a group's entities are copied into rows (N, k).
        Their dtype is that of the computation (float32 for half precision). On a
        CPU ``weights`` of a layer is the parameter's own memory: do not write to it.

        >>> net = nn.Sequential(nn.Conv2d(3, 2, 1))
        >>> (batch,) = SPR(net, lam=0.1, alpha=0.5, M=1.0).gather()
        >>> batch.weights.shape, batch.dim, batch.extra.shape
        (torch.Size([2, 3, 1, 1]), 0, torch.Size([2, 1]))
        """
        self._follow()
        return [_joined([layer.gather() for layer in layers]) for layers in self._batches()]

    def scatter(
        self, parts: Sequence[Parts], others_stay: bool = False
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter with its part of ``parts``, whose shapes are those of `gather`'s batches.

        So each parameter is paired with its own values by the parts of `gather`, in the order of
        `ordered_layers`. Parts that are None are left out. A weight in no entity, beside others that
        are in one, gets zero, or keeps its own value with ``others_stay``.
        """
        if self._layout is not None:
            return self._scatter_groups(parts, others_stay)
        pairs: list[tuple[nn.Parameter, Tensor]] = []
        for layers, part in zip(self._batches(), parts, strict=True):
            counts = [layer.count for layer in layers]
            weights, extra = (
                [None] * len(layers) if tensor is None else tensor.split(counts, dim)
                for tensor, dim in zip(part, (layers[0].entity_dim, 0), strict=True)
            )
            for layer, w, e in zip(layers, weights, extra, strict=True):
                assert not isinstance(layer, GroupEntities)
                tensors = layer.scatter(Parts(w, e), others_stay)
                pairs += [
                    (parameter, tensor)
                    for parameter, tensor in zip(layer.parameters, tensors, strict=True)
                    if tensor is not None
                ]
        return pairs

    def bounds(self) -> list[Tensor]:
        """M of the entities of each of `gather`'s batches: (n,), or (n, L) where they cross L layers."""
        layers = self._batches()
        counts = [sum(layer.count * crossed(layer) for layer in batch) for batch in layers]
        return [
            bound if crossed(batch[0]) == 1 else bound.view(-1, crossed(batch[0]))
            for bound, batch in zip(self.bound.split(counts), layers, strict=True)
        ]

    def _scatter_groups(
        self, parts: Sequence[Parts], others_stay: bool
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """`scatter` for groups, of which several may lie in one parameter."""
        make = torch.clone if others_stay else torch.zeros_like
        half = torch.bfloat16, torch.float16
        targets = {
            id(p): make(p.detach().float() if p.dtype in half else p.detach())
            for p in self._parameters_in_order()
        }
        for layer, part in zip(self.ordered_layers(), parts, strict=True):
            if part.weights is not None:
                cast(GroupEntities, layer).write_(targets, part.weights)
        return [(p, targets[id(p)]) for p in self._parameters_in_order()]

    def _parameters_in_order(self) -> list[nn.Parameter]:
        """Every parameter that holds something of an entity, once, in the order of the passes."""
        if self._layout is not None:
            return [window.parameter for window in self._layout.windows()]
        return [p for layer in self.ordered_layers() for p in layer.parameters]

    def _follow(self) -> None:
        """Move to where the model is; copying at each step would stall it."""
        device = self.layers[0].parameters[0].device
        if self.bound.device != device:
            self.to(device)

    def _penalties(self) -> tuple[Tensor, Slopes]:
        """The penalty of every entity, (N,), and what its gradient is made of."""
        if self._layout is None:
            return self._formula(self.gather(), *self._numbers())
        self._follow()
        return self._formula(self._layout.batches(), self._layout.pieces(), *self._numbers())

    def _gradient_pairs(self, slopes: Slopes) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter, in order, with the gradient of the penalty."""
        layout = self._layout
        if layout is None:
            return self.scatter(self._gradients(self.gather(), slopes))
        pairs = []
        for window, part in layout.pairs(
            self._gradients(layout.batches(), layout.pieces(), slopes)
        ):
            whole = torch.zeros_like(window.parameter, dtype=part.dtype)
            window.of(whole).copy_(part)
            pairs.append((window.parameter, whole))
        return pairs

    def _add_group_gradients_(self, layout: GroupLayout) -> None:
        """`add_gradient_` for groups."""
        _, slopes = self._penalties()
        batches, pieces = layout.batches(), layout.pieces()

        def target(parameter: nn.Parameter) -> Tensor | None:
            return parameter.grad if parameter.requires_grad else None

        compiled = self._compiled_with is not None or torch.compiler.is_compiling()
        if self.bound.device.type == "cpu" and not compiled:
            grads = [(window, target(window.parameter)) for window in layout.windows()]
            targets = [None if grad is None else window.of(grad) for window, grad in grads]
            group_passes.add_gradients_on_cpu_(targets, batches, pieces, slopes)
            return
        pairs = [
            (window.of(grad), part)
            for window, part in layout.pairs(self._gradients(batches, pieces, slopes))
            if (grad := target(window.parameter)) is not None
        ]
        if pairs:
            torch._foreach_add_([grad for grad, _ in pairs], [part for _, part in pairs])

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor, float, str]:
        """What the formula needs besides the weights."""
        return self._lam, self.importance, self.bound, self.alpha, self.variant

    def _targets(self, batches: list[Batch]) -> list[Tensor | None]:
        """Where the gradient of each batch's weights can be added in place: on a CPU, for slices."""
        if batches[0].weights.device.type != "cpu":
            return [None] * len(batches)
        targets: list[Tensor | None] = []
        for layer, batch in zip(self.ordered_layers(), batches, strict=True):
            x, weight = batch.weights, layer.parameters[0]
            own = isinstance(layer, SliceEntities) and weight.requires_grad
            gradient = weight.grad if own else None
            fits = gradient is not None and (gradient.dtype, gradient.shape) == (x.dtype, x.shape)
            targets.append(gradient if fits else None)
        return targets

    def _add_in_place_(self, in_place: list[Tensor | None], batches: list[Batch]) -> list[Parts]:
        """Add to the gradients that are given; what is left, see `add_gradients_`."""
        if self._compiled_with is not None or torch.compiler.is_compiling():
            _, slopes = self._formula(batches, *self._numbers())
            return self._add_gradients_(in_place, batches, slopes)
        return gradient_passes_cpu.add_gradients_(in_place, batches, *self._numbers())


def largest_weights(layer: LayerEntities, per: str) -> Tensor:
    """M of one layer as `SPR.bounds_from` gives it: max|w| ``per`` layer or entity.

    >>> (layer,) = layer_entities(nn.Sequential(nn.Conv2d(1, 2, 1, bias=False)))
    >>> layer.parameters[0].data = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1)
    >>> largest_weights(layer, "layer")
    tensor(2.)
    """
    if per not in ("layer", "entity"):
        raise ValueError(f"per must be 'layer' or 'entity', got {per!r}")
    if isinstance(layer, GroupEntities):
        peak = layer.peaks()
    else:
        _, peak = norms_and_peaks([layer.gather()])
    largest = peak.max()
    if not 0 < float(largest) < float("inf"):
        raise ValueError(
            f"max|w| of layer {layer.name!r} of the dense network is {float(largest)}: "
            "no bound M can be read from it; train the dense network first"
        )
    if crossed(layer) > 1:
        of_layers = peak.amax(0, keepdim=True).clamp(min=_ENTITY_FLOOR * float(largest))
        return of_layers if per == "layer" else torch.maximum(peak, _ENTITY_FLOOR * of_layers)
    peak = peak.flatten().clamp(min=_ENTITY_FLOOR * float(largest))
    return largest if per == "layer" else peak


class _Penalty(torch.autograd.Function):
    """SPR with the closed gradient as its backward; the norms of the forward pass are kept."""

    @staticmethod
    def forward(ctx: Any, spr: SPR, *parameters: Tensor) -> Tensor:
        penalties, slopes = spr._penalties()
        ctx.spr = spr
        # The parameters are saved so that changing them before backward() is an error.
        ctx.save_for_backward(*slopes, *parameters)
        return penalties.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        radial, slope, peak, *_ = ctx.saved_tensors
        scaled = Slopes(upstream * radial, upstream * slope, peak)
        return None, *(part.to(p.dtype) for p, part in ctx.spr._gradient_pairs(scaled))


def _joined(batches: list[Batch]) -> Batch:
    """Batches of equal shape as one, in the dtype of the computation."""
    first = batches[0]
    if len(batches) > 1:
        extra = [batch.extra for batch in batches if batch.extra is not None]
        weights = torch.cat([batch.weights for batch in batches], dim=first.dim)
        first = Batch(weights, first.dim, torch.cat(extra) if extra else None)
    if first.weights.dtype not in (torch.bfloat16, torch.float16):
        return first
    return Batch(
        first.weights.float(), first.dim, None if first.extra is None else first.extra.float()
    )


def _runs(layers: tuple[LayerEntities, ...]) -> list[list[LayerEntities]]:
    runs: dict[tuple[object, ...], list[LayerEntities]] = {}
    for layer in layers:
        runs.setdefault(layer.shape_key, []).append(layer)
    return list(runs.values())


def _common(layers: tuple[LayerEntities, ...]) -> tuple[torch.dtype, torch.device]:
    parameters = [p for layer in layers for p in layer.parameters]
    double = any(p.dtype == torch.float64 for p in parameters)
    return torch.float64 if double else torch.float32, parameters[0].device
