"""What a pruning method of another kind plugs into, and how a recipe names it.

A method is given the network at the start of the pruning phase (`PruningTask`) and says how it goes on
(`PruningPlan`): what it adds to training, if it trains at all, and in the end a score for each entity.
Everything else is shared by all methods: the entities, the cut to the budget, fine-tuning, the physical
removal and the report. A recipe names the method as

.. code-block:: toml

    [method]
    name = "pffec"        # a file of spr_or/methods, or "my_module:METHOD" for one's own

with the keys of the method beside its name. Without the section SPR decides.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from spr_or.pruning.budget import Count, EntityNumbers, Limits, MaskChoice, Masks, choose
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.utils.import_path import load_object

SPR_ITSELF = "spr"  # the name in [method] for what this project is about
SHIPPED = "spr_or.methods"
Kind = Literal[
    "score", "regulariser", "optimiser", "dynamic", "learning", "structure search", "exact"
]


class MethodKeys(BaseModel):
    """The keys that a method has in [method], beside ``name``; each with a type, a range, a default.

    >>> class Keys(MethodKeys):
    ...     images: int = 500
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class PruningTask:
    """What a method is given.

    Attributes
    ----------
    model : the network of the pruning phase with the weights it starts from; trained in place
    dense : the trained dense network; it stays as it is
    layers : the entities of ``model``, see `spr_or.pruning.layer_entities`
    example : images that show only their shape, (2, C, H, W)
    classes : number of classes
    batches : training batches (images (B, C, H, W), labels (B,)) on the device, ``batches(seed)``
    accuracy : of a network in percent, on the images that choices may be made by
    epochs : epochs of the pruning phase
    steps : steps of an epoch
    target_pct : the budget: the share to be removed, in percent
    removed_pct : the share that masks remove, in percent of what the budget counts
    limits : how many entities each layer keeps at least
    seed : of the run; random choices follow from it
    rate : learning rate of an epoch of the pruning phase
    make_optimizer : the optimiser that all methods share (SGD of [train]) for some parameters
    """

    model: nn.Module
    dense: nn.Module
    layers: tuple[LayerEntities, ...]
    example: Tensor
    classes: int
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    accuracy: Callable[[nn.Module], float]
    epochs: int
    steps: int
    target_pct: float
    removed_pct: Count
    limits: Mapping[str, Limits]
    seed: int
    rate: Callable[[int], float]
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

    def cut(self, scores: EntityNumbers, across: Across = "network") -> MaskChoice:
        """The masks that meet the budget by going up the scores, see `cut_by_score`.

        Raises ``ValueError`` for scores that are not a finite number for each entity of each layer.
        """
        scores = checked_scores(scores, self.layers)
        return cut_by_score(self.removed_pct, scores, self.target_pct, across, self.limits)


Across = Literal["network", "layers"]


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """How a method goes on; of its parts only ``scores`` is needed.

    Attributes
    ----------
    scores : at the end of the phase, a number for each entity, {layer name: (N,)}: the larger, the
        longer it stays. Those that are not finite are an error.
    across : "network" compares the scores of all layers with each other; "layers" only those of one
        layer, so all layers lose the same share
    trains : whether the phase has epochs. A method that only scores trains none; its epochs are added
        to fine-tuning, so that all methods see the images equally often.
    parameters : what is trained beside the network's parameters, gates for instance
    optimizer : in place of the shared one; its learning rate is set before each epoch
    term : added to the loss, from images, logits and labels of a batch
    after_backward : called between backward pass and step
    after_step : called after each step, to project or to hold masks
    within : called after each step with the epoch and the number of steps it has had, never captured
    before_epoch, after_epoch : called with the epoch, from 0; what the second returns is recorded
    ease : called after an epoch in which training has lost too much of what the network could do:
        lower a penalty that is moved. SPR eases off by the same rule.
    state, load : what a checkpoint keeps of the method beside network and optimiser: a dict of tensors,
        numbers, strings, lists and dicts
    finish : called with the masks once they are cut: fold gates into weights, remove hooks
    restart : what stays is trained from new weights
    """

    scores: Callable[[], EntityNumbers]
    across: Across = "network"
    trains: bool = False
    parameters: Sequence[nn.Parameter] = ()
    optimizer: torch.optim.Optimizer | None = None
    term: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    after_backward: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    within: Callable[[int, int], None] = lambda epoch, step: None
    before_epoch: Callable[[int], None] = lambda epoch: None
    after_epoch: Callable[[int], dict[str, Any]] = lambda epoch: {}
    ease: Callable[[], None] | None = None
    state: Callable[[], dict[str, Any]] = dict
    load: Callable[[dict[str, Any]], None] = lambda state: None
    finish: Callable[[Masks], None] = lambda masks: None
    restart: bool = False

    def __post_init__(self) -> None:
        if self.across not in get_args(Across):
            raise ValueError(f"across must be one of {get_args(Across)}, got {self.across!r}")


@dataclass(frozen=True)
class Method:
    """A pruning method, as ``[method]`` names it.

    Attributes
    ----------
    title : as a table shows it
    kind : what decides
    paper : authors, year and where it stands
    plan : makes a `PruningPlan` of a `PruningTask` and the keys; raises ``ValueError`` for a network
        that it does not understand, before anything is trained
    keys : the class of its keys
    differs : how the original protocol differs from what is done here, in a sentence
    """

    title: str
    kind: Kind
    paper: str
    plan: Callable[[PruningTask, Any], PruningPlan]
    keys: type[MethodKeys] = field(default=MethodKeys)
    differs: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")


def checked_scores(scores: Any, layers: Sequence[LayerEntities]) -> EntityNumbers:
    """The scores, if they are a number for each entity of each layer; else ``ValueError``."""
    counts = {layer.name: layer.count for layer in layers}
    if not isinstance(scores, Mapping) or scores.keys() != counts.keys():
        given = sorted(scores) if isinstance(scores, Mapping) else type(scores).__name__
        raise ValueError(f"scores must be a dict of the layers {sorted(counts)}, got {given}")
    for name, count in counts.items():
        score = scores[name]
        if not isinstance(score, Tensor) or score.shape != (count,):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(
                f"scores of layer {name} must be a tensor of shape ({count},), got {got}"
            )
        if not torch.isfinite(score).all():
            bad = int((~torch.isfinite(score)).sum())
            raise ValueError(f"{bad} of {len(score)} scores of layer {name} are not finite")
    return dict(scores)


def cut_by_score(
    count: Count,
    scores: EntityNumbers,
    target_pct: float,
    across: Across = "network",
    limits: Mapping[str, Limits] | None = None,
) -> MaskChoice:
    """The masks under which ``count`` gives ``target_pct``, as nearly as entities allow.

    The entities of the lowest scores go. With ``across = "layers"`` a score is replaced by its rank in
    its layer over the layer's size, so that all layers lose the same share.

    >>> scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.1, 0.3, 0.2])}
    >>> removed = lambda masks: sum(100 / 6 * int((~keep).sum()) for keep in masks.values())
    >>> choice = cut_by_score(removed, scores, 34.0, "layers")
    >>> [keep.tolist() for keep in choice.masks.values()]
    [[True, False, True], [False, True, True]]
    """
    plain = {name: score.detach().double().cpu() for name, score in scores.items()}
    ranked = plain if across == "network" else {n: _rank_share(s) for n, s in plain.items()}
    gone = {name: torch.ones(len(score), dtype=torch.bool) for name, score in plain.items()}
    return choose(count, gone, ranked, plain, target_pct, limits)


def _rank_share(score: Tensor) -> Tensor:
    """The rank of each number among all, (0, 1]; equal numbers in their order."""
    rank = torch.empty_like(score)
    rank[score.argsort(stable=True)] = torch.arange(1, len(score) + 1, dtype=score.dtype)
    return rank / len(score)


def shipped_methods() -> tuple[str, ...]:
    """Names of the methods that come with SPR-OR, in alphabetical order."""
    package = importlib.import_module(SHIPPED)
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(
        name
        for name in sorted(names)
        if hasattr(importlib.import_module(f"{SHIPPED}.{name}"), "METHOD")
    )


def unknown_method(name: str, known: Sequence[str]) -> str:
    """What to tell about a name that is none of the ``known`` ones.

    >>> unknown_method("hrnk", ["chip", "hrank"])[:50]
    "there is no method 'hrnk'. Did you mean 'hrank'? T"
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"there is no method {name!r}.{hint} There are {', '.join(known)}, and your own as "
        '"module:name"'
    )


def find_method(name: str) -> Method:
    """A method by the name of its file, or one's own by ``"module:name"``.

    Raises ``ValueError`` for an unknown name, with the nearest, and for an object that is no `Method`.

    >>> find_method("pffec").kind
    'score'
    """
    if ":" not in name:
        if name.isidentifier() and importlib.util.find_spec(f"{SHIPPED}.{name}") is not None:
            module = importlib.import_module(f"{SHIPPED}.{name}")
            if hasattr(module, "METHOD"):
                return module.METHOD
        raise ValueError(unknown_method(name, (SPR_ITSELF, *shipped_methods())))
    try:
        method = load_object(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"method {name!r}: {error}") from None
    if not isinstance(method, Method):
        raise ValueError(
            f"method {name!r} is a {type(method).__name__}, not a spr_or.training.method.Method"
        )
    return method
