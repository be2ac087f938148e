"""All layers of a run: from its folder to one table, resumable, within a time for all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.layer_study.activations import PER_COLUMN, refusal, sample_patches
from spr_or.layer_study.kept import Kept, kept_inputs
from spr_or.layer_study.layer_problem import ALPHA
from spr_or.layer_study.study import Study, study_layer
from spr_or.layer_study.study_progress import StudyDisplay
from spr_or.proof.certificate import ProofCertificate
from spr_or.solvers.time_limit import TimeLimit
from spr_or.training.data.load import load_data
from spr_or.training.recipe import Recipe, build_model, parse_recipe
from spr_or.training.setup import load_weights
from spr_or.training.stored_run import DamagedFile, read_recipe
from spr_or.utils.counted import counted
from spr_or.utils.files import write_aside, write_json
from spr_or.utils.untrusted import UnreadableFile, check_regular, read_arrays, read_json

_FORMAT = 1
_SAMPLE_SEED = 2**40  # an epoch that no run uses: its order, crops and flips


class LayersError(ValueError):
    """A folder that cannot be studied; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What decides a layer's problem and when it counts as solved."""

    gap: float = 0.01
    keep: float = 0.9
    max_channels: int = 64


class Finished(NamedTuple):
    """Studies in the order of the network; ``skipped``: layer and reason; ``left``: not reached;
    ``notes``: what to keep in mind when reading them."""

    studies: list[Study]
    skipped: dict[str, str]
    left: list[str]
    notes: list[str]


class Source(NamedTuple):
    """What a folder of a run holds."""

    recipe: Recipe
    model: nn.Module
    kept: dict[str, Kept]
    fingerprint: str


def open_run(folder: Path) -> Source:
    """The dense network of a finished run, and what SPR kept of it; raises `LayersError`."""
    if not folder.is_dir():
        raise LayersError(f"there is no run at {folder}: give the folder that `spr-or run` made")
    recipe_file = next(
        (p for p in (folder / "recipe.json", folder.parent / "recipe.json") if p.exists()), None
    )
    seeds = sorted(p.name for p in folder.glob("seed-*") if p.is_dir())
    if seeds:
        raise LayersError(f"{folder} holds several seeds: name one, such as {folder / seeds[0]}")
    if recipe_file is None:
        raise LayersError(f"{folder} holds no run: there is no recipe.json in it")
    dense, compact = folder / "dense.safetensors", folder / "compact.safetensors"
    missing = [p.name for p in (dense, compact) if not p.exists()]
    if missing:
        raise LayersError(
            f"the run in {folder} is not finished, it has no {' and no '.join(missing)}: "
            f"continue it with spr-or run RECIPE --out {folder} --resume"
        )
    try:
        stored = read_recipe(recipe_file.parent)
        for file in (dense, compact):
            check_regular(file)
    except DamagedFile as error:
        raise LayersError(f"{error}: put the recipe of the run there again") from None
    except UnreadableFile as error:
        raise LayersError(str(error)) from None
    assert stored is not None  # it was there a moment ago
    recipe = parse_recipe(stored, str(recipe_file))
    model = build_model(recipe)
    load_weights(model, dense)
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        raise LayersError(f"{recipe.model} has no convolutions, so there are no layers to study")
    digest = hashlib.sha256(dense.read_bytes() + compact.read_bytes()).hexdigest()
    try:
        kept = kept_inputs(model, compact)
    except (ValueError, KeyError) as error:
        raise LayersError(f"{compact} is not the compact form of {dense}: {error}") from None
    return Source(recipe, model.eval(), kept, digest)


def study_run(
    folder: Path,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    *,
    seconds: float = 600.0,
    only: list[str] | None = None,
    again: bool = False,
    display: StudyDisplay | None = None,
) -> Finished:
    """Study every convolution of a run with at most ``settings.max_channels`` input channels.

    Each layer may take a fair share of what is left of ``seconds``, small layers first, and is stored
    in ``folder/layers`` when it is done.  A stored layer is read, not solved, if network and settings
    are the same; with ``again`` only if its gap was proven.  ``only`` names layers.  Ctrl-C stores the
    running layer with the gap it has, and returns.  Raises `LayersError`, and what `load_data` raises.
    """
    clock, shown = TimeLimit(seconds), display or StudyDisplay(quiet=True)
    source = open_run(folder)
    layers, skipped = _chosen(source.model, settings.max_channels, only)
    place = folder / "layers"
    stored = {name: _stored(place, name, source, settings, again) for name in layers}
    todo = [name for name in layers if stored[name] is None]
    if todo:
        stored |= _study(todo, layers, source, settings, place, clock, shown, skipped)
    studies = [study for name in layers if (study := stored[name]) is not None]
    left = [name for name in layers if stored[name] is None and name not in skipped]
    return Finished(studies, skipped, left, _notes(source.recipe))


def _study(
    todo: list[str],
    layers: dict[str, nn.Conv2d],
    source: Source,
    settings: Settings,
    place: Path,
    clock: TimeLimit,
    shown: StudyDisplay,
    skipped: dict[str, str],
) -> dict[str, Study | None]:
    stored: dict[str, Study | None] = {}
    place.mkdir(exist_ok=True)
    try:
        shown.say(f"sampling activations for {counted(len(todo), 'layer')}")
        data = load_data(source.recipe.data, torch.device("cpu"))
        patches = sample_patches(source.model, todo, data.train(_SAMPLE_SEED))
        order = sorted(todo, key=lambda name: patches[name].X.shape[1])
        for number, name in enumerate(order):
            share = clock.left() / (len(order) - number)
            shown.layer(name, number + 1, len(order), share)
            try:
                study, certificate = study_layer(
                    name, patches.pop(name), layers[name].in_channels, source.kept[name],
                    keep=settings.keep, gap=settings.gap, time_limit=share, progress=shown.search,
                )  # fmt: skip
            except ValueError as error:
                skipped[name] = str(error)
                continue
            _store(place, source, settings, study, certificate)
            stored[name] = study
            shown.done(study)
            if study.status == "interrupted":
                break
    except KeyboardInterrupt:
        shown.say("interrupted: the layers that are done are stored")
    return stored


def _notes(recipe: Recipe) -> list[str]:
    if recipe.spr.start == "dense":
        return []
    return [
        "this run's SPR phase started from scratch (spr.start), so the channels it kept are not "
        "those of the dense network that is studied here: its masks are comparable in size alone"
    ]


def _chosen(
    model: nn.Module, most: int, only: list[str] | None
) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """The convolutions to study, and why the others are not."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    unknown = sorted(set(only or ()) - set(found))
    if unknown:
        raise LayersError(f"there is no convolution {unknown[0]!r}; there are {', '.join(found)}")
    chosen, skipped = {}, {}
    for name, layer in found.items():
        if only and name not in only:
            continue
        reason = refusal(layer)
        if not reason and layer.in_channels > most:
            reason = f"{layer.in_channels} input channels, more than --max-channels {most}"
        if reason:
            skipped[name] = reason
        else:
            chosen[name] = layer
    return chosen, skipped


def _identity(source: Source, settings: Settings) -> dict[str, Any]:
    return {
        "format": _FORMAT, "run": source.fingerprint, "gap": settings.gap, "keep": settings.keep,
        "alpha": ALPHA, "positions_per_column": PER_COLUMN,
    }  # fmt: skip


def _store(
    place: Path, source: Source, settings: Settings, study: Study, certificate: ProofCertificate
) -> None:
    """Problem, certificate, and last the study, which marks the layer as done."""
    save_problem(place / f"{study.layer}.problem.npz", certificate.problem)
    certificate.save(place / f"{study.layer}.certificate.json")
    content = {"identity": _identity(source, settings), "study": study.as_dict()}
    write_json(place / f"{study.layer}.json", content)


def _stored(
    place: Path, name: str, source: Source, settings: Settings, again: bool
) -> Study | None:
    """A finished layer of the same network and settings, else None."""
    path = place / f"{name}.json"
    try:
        content = read_json(path)
        if content["identity"] != _identity(source, settings):
            return None
        study = TypeAdapter(Study).validate_python(content["study"])
        _check_choices(study, name)
    except (ValueError, KeyError, TypeError):  # cut or damaged: the layer is studied again
        return None
    unproven = again and study.status != "optimal"
    return None if unproven or study.status == "interrupted" else study


def _check_choices(study: Study, name: str) -> None:
    """``ValueError`` for a study that is not of this layer, or without what a table shows of it."""
    if study.layer != name or not {"best", "magnitude"} <= study.choices.keys():
        raise ValueError("no study of this layer")


def save_problem(path: Path, problem: SparseTrainingProblem) -> None:
    """Write a layer's problem as .npz, so that its certificate can be checked without the run."""
    arrays = {
        "X": problem.X.numpy(), "y": problem.y.numpy(), "M": problem.M.numpy(),
        "lengths": np.array([len(g) for g in problem.entities.groups]) // problem.n_outputs,
        "lam_alpha": np.array([problem.lam, problem.alpha]), "name": np.array(problem.name),
    }  # fmt: skip

    def write(aside: Path) -> None:
        with aside.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    write_aside(path, write)


def load_problem(path: Path) -> SparseTrainingProblem:
    """The problem in a file of `save_problem`; executes nothing, raises `LayersError`.

    ``load(certificate_file, load_problem(problem_file)).check()`` checks a layer's certificate, with
    `spr_or.proof.certificate.load`.
    """
    try:
        return _problem_of(read_arrays(path))
    except UnreadableFile as error:
        raise LayersError(str(error)) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LayersError(f"{path} holds no problem of a layer: {error}") from None


def _problem_of(stored: dict[str, np.ndarray]) -> SparseTrainingProblem:
    lengths = [int(length) for length in stored["lengths"]]
    if any(length < 1 for length in lengths) or sum(lengths) != stored["X"].shape[1]:
        raise ValueError("the lengths of the groups are not those of the columns")
    stops = np.cumsum(lengths).tolist()
    groups = [list(range(stop - length, stop)) for stop, length in zip(stops, lengths, strict=True)]
    lam, alpha = (float(x) for x in stored["lam_alpha"])
    return SparseTrainingProblem.linear(
        stored["X"], stored["y"], groups, lam=lam, alpha=alpha, M=stored["M"],
        name=str(stored["name"]),
    )  # fmt: skip
