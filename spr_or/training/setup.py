"""What a run stands on: its device, reproducible arithmetic, a network that fits its data."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spr_or.pruning.budget import TOLERANCE, Count, reachable_pct
from spr_or.pruning.chosen_entities import ChosenEntities, chosen_entities
from spr_or.pruning.compaction.api import CompactionError, compact
from spr_or.pruning.entity_gates import gated_channels
from spr_or.pruning.measures import MEASURES, counter_of, of_entities
from spr_or.training import distributed
from spr_or.training.data.load import Data
from spr_or.training.pruning import make_cut, make_limits, make_spr
from spr_or.training.recipe import Recipe, RecipeError, SpeedRecipe, build_model
from spr_or.training.speed import choose_speed
from spr_or.training.speed_trials import Tell
from spr_or.utils.import_path import load_object
from spr_or.utils.stored_weights import find_weights, stored_names

# It rests on the layer study, which rests on this folder: so it is loaded by name, as methods are.
LAYER_SETS = "spr_or.methods.common.layer_sets"


def pick_device(speed: SpeedRecipe) -> torch.device:
    """The device of a recipe; raises `RecipeError` for one that is not there.

    Of several processes on a machine with GPUs, each takes the one of its own number.
    """
    if speed.device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            device = torch.device(speed.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch raises either
            raise RecipeError(f"speed.device = {speed.device!r} cannot be used: {error}") from None
        if device.type == "meta":
            raise RecipeError('speed.device = "meta" computes nothing: --set speed.device=auto')
    if distributed.launched().size > 1:
        device = _of_this_process(speed, device)
    if speed.cuda_graph and device.type != "cuda":
        raise RecipeError(
            f"speed.cuda_graph = true needs a CUDA device, and this run is on {device}; "
            "--set speed.cuda_graph=false computes the same"
        )
    return device


def _of_this_process(speed: SpeedRecipe, device: torch.device) -> torch.device:
    for key in ("compile", "cuda_graph"):
        if getattr(speed, key):
            raise RecipeError(
                f"speed.{key} = true has not been made to work with several processes: "
                f"--set speed.{key}=false"
            )
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"several processes need a CPU or CUDA devices, not {device}")
    if device.type == "cpu":
        return device
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RecipeError(
            f"process {number} of this machine finds no GPU of its own, there are {count}: start "
            f"torchrun with --nproc-per-node {count}, or --set speed.device=cpu"
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Deterministic kernels where torch has them, a fixed number of threads; undone on leaving."""
    before = torch.get_num_threads()
    was, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    # cuBLAS reads this once, when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs time
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        debugging.fill_uninitialized_memory = filled
        torch.set_num_threads(before)


def fresh_model(recipe: Recipe, seed: int, device: torch.device) -> nn.Module:
    """The recipe's network with the initial weights of a seed, on the device."""
    torch.manual_seed(seed)
    model = build_model(recipe).to(device)
    if recipe.speed.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def batch_shape(recipe: Recipe, data: Data) -> tuple[int, ...]:
    """(B, C, H, W) of the images of a training step."""
    return min(recipe.data.batch_size, data.train_rows), *data.shape


def steps_of_epoch(recipe: Recipe, data: Data) -> int:
    """Training steps of an epoch; a rest that is smaller than a batch is left out."""
    return data.train_rows // batch_shape(recipe, data)[0]


def run_speed(
    recipe: Recipe, model: nn.Module, data: Data, measuring: bool, tell: Tell
) -> dict[str, Any]:
    """What `choose_speed` finds for the first phase of a run, which runs of a sweep share.

    ``threads`` is None where torch's own number is best. It holds for the whole run, as
    ``channels_last`` does; whether to compile is decided for each phase and network.
    """
    phases = (recipe.dense.epochs, recipe.spr.epochs, recipe.finetune.epochs)
    steps = next((epochs for epochs in phases if epochs), 0) * steps_of_epoch(recipe, data)
    shape = batch_shape(recipe, data)
    speed = choose_speed(recipe, model, shape, steps, measuring=measuring, tell=tell)
    own = speed.threads == torch.get_num_threads()
    return speed._asdict() | {"threads": None if own else speed.threads}


def with_speed(recipe: Recipe, chosen: dict[str, Any]) -> Recipe:
    """The recipe with ``threads`` and ``channels_last`` as `run_speed` chose what it leaves out."""
    threads, layout = recipe.speed.threads, recipe.speed.channels_last
    update = {
        "threads": threads or chosen["threads"] or torch.get_num_threads(),
        "channels_last": chosen["channels_last"] if layout is None else layout,
    }
    return recipe.model_copy(update={"speed": recipe.speed.model_copy(update=update)})


def check_model(
    recipe: Recipe, model: nn.Module, data: Data, device: torch.device
) -> ChosenEntities:
    """Fail now, not after hours: one forward pass, and a compaction that removes nothing.

    Returns what is to be regularised, in every network that the recipe builds.

    Raises `RecipeError` where the network does not take the images, has other outputs than logits or too
    few, has a state that cannot be stored, holds nothing of what is to be regularised, or cannot be
    compacted.
    """
    if fault := _not_storable(model):
        raise RecipeError(f"{recipe.model}: {fault}")
    model.eval()
    images = torch.zeros(2, *data.shape, device=device)
    try:
        with torch.no_grad():
            logits = model(images)
    except RuntimeError as error:
        raise RecipeError(
            f"{recipe.model} does not take images of shape {data.shape} of {data.name}: {error}"
        ) from error
    if not isinstance(logits, Tensor):
        raise RecipeError(
            f"{recipe.model} returns a {type(logits).__name__}, and a run trains on one tensor of logits: "
            "name a function whose network returns only them (Pruner takes networks with other outputs)"
        )
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[1] < data.classes:
        raise RecipeError(
            f"{recipe.model} gives outputs of shape {shape} for 2 images, but {data.name} has "
            f"{data.classes} classes: --set model_kwargs.num_classes={data.classes}"
        )
    try:
        compact(model, {}, images)
    except CompactionError as error:
        raise RecipeError(f"{recipe.model} cannot be compacted after pruning: {error}") from error
    spr = recipe.spr
    try:
        chosen = chosen_entities(model, images, spr.entities, spr.include_norm, spr.ignored)
        make_spr(spr, model, 1.0, chosen)
    except ValueError as error:
        raise RecipeError(f"[spr] does not fit {recipe.model}: {error}") from error
    return chosen


def _not_storable(model: nn.Module) -> str | None:
    """Why the state of a network cannot be kept in a file of tensors and read back; None if it can."""
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            return (
                f"{name} of its state is a {type(tensor).__name__}, and a run stores tensors: do without "
                "get_extra_state"
            )
        if is_lazy(tensor):
            return (
                f"{name} has no shape yet: name the sizes of lazy modules, or let the function run a "
                "batch through the network before it returns it"
            )
        if tensor.layout != torch.strided:
            return f"{name} is sparse, and a run stores dense tensors: `to_dense` it"
        if any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
            return f"numbers of {name} share memory, as `expand` leaves them: `clone` it"
    return None


def make_counter(
    recipe: Recipe, data: Data, device: torch.device, chosen: ChosenEntities
) -> Count | None:
    """What counts for a budget, None without one; raises `RecipeError` for one out of reach."""
    spr = recipe.spr
    if spr.target_removed_pct is None:
        return None
    if "latency" in (spr.target_of, *spr.also_removed_pct) and distributed.launched().size > 1:
        raise RecipeError(
            'a budget of "latency" is measured, and several processes would each measure '
            'something else: use "macs", or one process'
        )
    model = fresh_model(recipe, recipe.seeds[0], device)
    if (spr.cut, spr.improve) != ("rank", "none") and distributed.launched().size > 1:
        raise RecipeError(
            "several processes could choose different masks, by their time limit or their images: "
            'set spr.cut = "rank" and spr.improve = "none", or use one process'
        )
    example = cut_example(recipe, data, device)
    count = counter_of(spr.target_of, model, example)
    regularizer = make_spr(spr, model, 1.0, chosen)

    counter = of_entities(count, model, regularizer.layers)
    sizes = {layer.name: layer.count for layer in regularizer.layers}
    reachable = reachable_pct(counter, sizes, make_limits(spr, regularizer))
    if spr.target_removed_pct <= (unused := count({})):
        raise RecipeError(
            f"spr.target_removed_pct = {spr.target_removed_pct:g}: {unused:.1f} % of the "
            f"{MEASURES[spr.target_of]} of {recipe.model} are not used in evaluation and leave in any "
            "case. Ask for more than that"
        )
    if spr.target_removed_pct > reachable + TOLERANCE:
        less = ""  # where limits can be lowered
        if (spr.min_keep, spr.round_to) != (1, 1):
            less = f"let layers keep less (spr.min_keep = {spr.min_keep}, spr.round_to = {spr.round_to}), "
        raise RecipeError(
            f"spr.target_removed_pct = {spr.target_removed_pct:g} cannot be reached: with "
            f"as few entities as allowed in each regularised layer, {reachable:.1f} % of the "
            f"{MEASURES[spr.target_of]} of {recipe.model} are removed. Ask for no more than "
            f"that, {less}"
            f"or regularise more of them (spr.entities = {spr.entities!r})"
        )
    try:
        make_cut(spr, model, regularizer, example)
    except ValueError as error:
        raise RecipeError(f'spr.cut = "exact" does not fit {recipe.model}: {error}') from error
    try:
        if spr.improve != "none":
            gated_channels(model, regularizer.layers, example)
        if spr.improve == "layers":
            load_object(f"{LAYER_SETS}:readers")(model, regularizer.layers, example)
    except ValueError as error:
        raise RecipeError(
            f'spr.improve = "{spr.improve}" does not fit {recipe.model}: {error}'
        ) from error
    return counter


def cut_example(recipe: Recipe, data: Data, device: torch.device) -> Tensor:
    """Images for counting. Time is that of a batch; what else is counted does not depend on it."""
    timed = "latency" in (recipe.spr.target_of, *recipe.spr.also_removed_pct)
    rows = recipe.data.batch_size if timed else 2
    return torch.zeros(rows, *data.shape, device=device)


_NAMED = 3  # parameters that do not fit, of each kind


def load_weights(model: nn.Module, path: Path, what: str = "weights") -> None:
    """Fill a network from a state dict in a .safetensors or .pt file, executing nothing.

    ``path`` may be the name of a stored network, see `spr_or.utils.stored_weights`; ``what`` names
    it in messages.

    Raises `RecipeError` naming the file, for one that cannot be read, does not fit, or holds numbers that
    are not finite.
    """
    wanted = (
        "Wanted is a state dict of the recipe's network in a .safetensors or .pt file, such as a run's "
        f"dense.safetensors, or one of the stored networks: {', '.join(stored_names())}"
    )
    try:
        path = find_weights(path)
        if path.suffix == ".safetensors":
            state: dict[str, Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message suggests to read it all the same
        raise RecipeError(
            f"{what} {path} cannot be loaded: it holds more than tensors, and reading it could run code, "
            f"or it is no file of torch\n{wanted}"
        ) from error
    except Exception as error:  # two libraries, each with errors of its own
        told = f"{type(error).__name__}, {str(error).strip().partition(chr(10))[0]}"
        raise RecipeError(f"{what} {path} cannot be loaded: {told}\n{wanted}") from error
    if fault := _load(model, state):
        raise RecipeError(f"{what} {path} cannot be loaded: {fault}\n{wanted}")
    for name, tensor in _tensors(state).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RecipeError(f"{what} {path}: {name} has numbers that are not finite")


def _load(model: nn.Module, state: Any) -> str | None:
    """Load a state dict; what of it does not fit, None where all does."""
    tensors = {} if not isinstance(state, dict) else _tensors(state)
    if not tensors:
        return "it holds no tensors by name; a checkpoint has them deeper inside"
    own = _tensors(model.state_dict())
    both = [(name, tensors[name], own[name]) for name in own if name in tensors]
    shapes = [
        f"{name} {tuple(given.shape)} for {tuple(wanted.shape)}"
        for name, given, wanted in both
        if given.shape != wanted.shape
    ]
    numbers = [
        f"{name} {str(given.dtype).removeprefix('torch.')}"
        for name, given, wanted in both
        if wanted.is_floating_point() and not given.is_floating_point()
    ]
    kinds = {"of another shape": shapes, "not of real numbers": numbers}
    if not shapes and not numbers:
        # Torch decides what may be missing: old files have no counters of batches.
        missing, unexpected = model.load_state_dict(state, strict=False)
        kinds = {"missing": missing, "not in the network": unexpected}
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', …' * (len(names) > _NAMED)})"
        for kind, names in kinds.items()
        if names
    ]
    return f"its tensors are not the network's: {'; '.join(faults)}" if faults else None


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
