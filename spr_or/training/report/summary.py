"""The report of a run: ``summary.json``, figures, and one HTML page that shows them."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning import measures
from spr_or.pruning.budget import TOLERANCE
from spr_or.pruning.compaction.api import CompactionWarning, compact, save_compact
from spr_or.pruning.counts import count_macs, count_parameters, masked_filter_weights
from spr_or.pruning.layer_rows import layer_label, layer_rows
from spr_or.pruning.masks import collapsed_layers
from spr_or.pruning.module_masks import branches_of
from spr_or.pruning.pruning_report import group_rows
from spr_or.training.method import SPR_ITSELF
from spr_or.training.metrics import Record, read_metrics
from spr_or.training.outcome import removed_macs_pct
from spr_or.training.phases import Trained
from spr_or.training.pruning import make_spr
from spr_or.training.report.magnitude import magnitude_accuracy
from spr_or.training.report.measure import latency_ms, spr_step_overhead
from spr_or.training.report.page import Section, write_page
from spr_or.training.report.rows import ratios
from spr_or.training.seed_run import SeedRun
from spr_or.utils.files import write_text
from spr_or.utils.full_float32 import full_float32

Summary = dict[str, Any]

MEASURES = (
    "dense_accuracy",
    "accuracy_before_finetune",
    "accuracy",
    "best_accuracy",
    "masked_filter_weights",
    "masked_filter_weights_pct",
    "removed_params",
    "removed_params_pct",
    "macs_dense",
    "macs_compact",
    "latency_ms_dense",
    "latency_ms_compact",
    "max_abs_logit_diff",
    "spr_step_overhead",
)

# Not in all summaries: there is no clock without epochs, and no ratio to a network without layers.
_OPTIONAL = (
    "magnitude_accuracy", "macs_ratio", "speedup", "epoch_seconds", "data_wait_pct",
    "held_out_accuracy", "dense_held_out_accuracy",
)  # fmt: skip


def compacted(run: SeedRun, trained: Trained, images: Tensor) -> nn.Module:
    """The compact network; what compaction warns of stands on the run's display."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CompactionWarning)
        smaller = compact(trained.pruned, trained.masks, images)
    for warning in caught:
        if issubclass(warning.category, CompactionWarning):
            run.display.warn(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return smaller


def report_seed(run: SeedRun, trained: Trained) -> Summary:
    """Compact the pruned network, measure both, and write everything into the run's folder.

    Writes ``compact.safetensors``, ``summary.json`` (last, it marks a finished run), ``figures/``
    and ``report.html``.
    """
    images, labels = _fixed_batch(run)
    smaller = compacted(run, trained, images[:2])
    recipe = run.recipe
    save_compact(run.folder / "compact.safetensors", smaller, recipe.model, recipe.model_kwargs)
    summary = summarise(run, trained, smaller, (images, labels))
    warn_of_other_size(run, summary)
    norms = entity_norms(run, trained)
    figures = _draw(run, trained, norms)
    section = Section(f"Seed {run.seed}", figures, summary["layers"], groups=summary["groups"])
    write_page(run.folder / "report.html", summary, [section])
    write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def warn_of_other_size(run: SeedRun, summary: Summary) -> None:
    """Say that compaction removed more or less than the cut to the budget had counted."""
    counted = (summary["budget"] or {}).get("after_cut_pct")
    measure = run.recipe.spr.target_of
    if counted is None or measure not in ("params", "macs"):
        return
    removed = summary["removed_params_pct"] if measure == "params" else removed_macs_pct(summary)
    if abs(removed - counted) > TOLERANCE:
        run.display.warn(
            f"the cut counted {counted:.1f} % of the {measures.MEASURES[measure]}, and {removed:.1f} % are "
            "gone: a channel that became constant while the network was trained goes too"
        )


def summarise(
    run: SeedRun, trained: Trained, smaller: nn.Module, batch: tuple[Tensor, Tensor]
) -> Summary:
    """The fields of `MEASURES`, with what they are measured on and what they are shares of."""
    recipe, data = run.recipe, run.data
    total = count_parameters(trained.dense)
    masked = masked_filter_weights(trained.dense, trained.masks)
    removed = total - count_parameters(smaller)
    dense_ms, compact_ms = latency_ms([trained.dense, smaller], batch[0])
    shape = (1, *data.shape)
    layers = run.chosen.of(trained.dense)
    measured = {
        "dense_accuracy": trained.dense_accuracy,
        "accuracy_before_finetune": trained.accuracy_before_finetune,
        "accuracy": trained.accuracy,
        "best_accuracy": trained.best_accuracy,
        "masked_filter_weights": masked,
        "masked_filter_weights_pct": 100 * masked / total,
        "removed_params": removed,
        "removed_params_pct": 100 * removed / total,
        "macs_dense": count_macs(trained.dense, shape),
        "macs_compact": count_macs(smaller, shape),
        "latency_ms_dense": dense_ms,
        "latency_ms_compact": compact_ms,
        "max_abs_logit_diff": max_logit_difference(run, trained.pruned, smaller),
        "spr_step_overhead": spr_step_overhead(
            recipe, trained.dense, trained.bounds, batch, run.chosen
        )
        if recipe.method.name == SPR_ITSELF
        else None,
    }
    return {
        **measured,
        **ratios(measured),
        **on_held_out(run, trained),
        "magnitude_accuracy": magnitude_accuracy(run, trained.dense, trained.entity_masks),
        "name": recipe.name,
        "note": recipe.note,
        "seed": run.seed,
        "dataset": data.name,
        "train_images": data.train_rows,
        "eval_images": data.eval_rows,
        "classes": data.classes,
        "input_shape": list(data.shape),
        "model": recipe.model,
        "parameters": total,
        "denominators": {
            "masked_filter_weights_pct": f"all {total:,} parameters of the dense network",
            "removed_params_pct": f"all {total:,} parameters of the dense network",
        },
        "latency_batch": len(batch[0]),
        "device": str(run.device),
        "torch": torch.__version__,
        "collapsed_layers": [
            name
            for name in collapsed_layers(trained.entity_masks)
            if name not in branches_of(layers)
        ],
        "layers": layer_rows(trained.dense, smaller),
        "groups": group_rows(trained.entity_masks, layers),
        "budget": trained.budget,
        **clock(run.metrics.records),
        "code": run.fixed.get("code"),
        "recipe": recipe.model_dump(mode="json"),
    }


def on_held_out(run: SeedRun, trained: Trained) -> dict[str, float]:
    """Accuracies on the training images that were set aside, by which settings are chosen."""
    if run.data.held_out is None:
        return {}
    return {
        "held_out_images": run.data.held_out_rows,
        "held_out_accuracy": run.validate(trained.pruned).accuracy,
        "dense_held_out_accuracy": run.validate(trained.dense).accuracy,
    }


def clock(records: list[Record]) -> dict[str, float]:
    """Median seconds of an epoch with its evaluation, and the mean share of its training that went
    into waiting for data, in percent; nothing of a run without epochs.

    >>> clock([{"seconds": 2.0, "data_wait_share": 0.25}, {"seconds": 4.0, "data_wait_share": 0.0}])
    {'epoch_seconds': 3.0, 'data_wait_pct': 12.5}
    """
    if not records:
        return {}
    shares = [record["data_wait_share"] for record in records]
    return {
        "epoch_seconds": statistics.median(record["seconds"] for record in records),
        "data_wait_pct": 100 * statistics.fmean(shares),
    }


@torch.no_grad()
@full_float32()
def max_logit_difference(run: SeedRun, masked: nn.Module, smaller: nn.Module) -> float:
    """Largest |difference| of a logit of the masked and the compacted network, over all images."""
    masked.eval()
    smaller.eval()
    differences = [
        (masked(images) - smaller(images)).abs().max() for images, _ in run.data.evaluate(0)
    ]
    return float(torch.stack(differences).max())


def entity_norms(run: SeedRun, trained: Trained) -> dict[str, tuple[list[float], list[float]]]:
    """||w||_2 of each entity in the dense and in the pruned network, by layer."""
    pairs = {}
    before, after = (
        make_spr(run.recipe.spr, network, trained.bounds, run.chosen).entity_values()
        for network in (trained.dense, trained.pruned)
    )
    for name in before:
        pairs[name] = (before[name].norm.tolist(), after[name].norm.tolist())
    return pairs


def mean_summary(summaries: list[Summary]) -> Summary:
    """Mean over seeds of every measure, with the standard deviation beside it under ``std``."""
    first = summaries[0]
    # What a method other than SPR has no figure for is None in all of them.
    known = [key for key in MEASURES if first[key] is not None]
    columns = {key: [float(s[key]) for s in summaries] for key in known}
    merged = copy.deepcopy(first)
    merged |= {key: statistics.fmean(values) for key, values in columns.items()}
    for key in _OPTIONAL:
        if all(isinstance(s.get(key), float) for s in summaries):
            columns[key] = [s[key] for s in summaries]
            merged[key] = statistics.fmean(columns[key])
    if speeds := columns.get("speedup"):  # one slow moment of the machine moves a mean
        merged |= {
            "speedup": statistics.median(speeds),
            "speedup_range": [min(speeds), max(speeds)],
        }
    merged["max_abs_logit_diff"] = max(columns["max_abs_logit_diff"])
    merged["std"] = {key: statistics.stdev(values) for key, values in columns.items()}
    merged["seeds"] = [s["seed"] for s in summaries]
    merged["collapsed_layers"] = sorted({name for s in summaries for name in s["collapsed_layers"]})
    del merged["seed"]
    for key in ("budget", "layers", "groups"):  # of one seed
        merged.pop(key, None)
    return merged


def report_seeds(folder: Path, summaries: list[Summary]) -> Summary:
    """The report over several seeds, from those of the seeds; returns the merged summary."""
    merged = mean_summary(summaries)
    places = {s["seed"]: folder / f"seed-{s['seed']}" for s in summaries}
    sections = [
        Section(
            f"Seed {s['seed']}",
            sorted((places[s["seed"]] / "figures").glob("*.png")),
            s.get("layers", []),
            folded=True,
            groups=s.get("groups", []),
        )
        for s in summaries
    ]
    overview = _draw_seeds(folder, places)
    write_page(folder / "report.html", merged, sections, summaries, overview)
    write_text(folder / "summary.json", json.dumps(merged, indent=2) + "\n")
    return merged


def _fixed_batch(run: SeedRun) -> tuple[Tensor, Tensor]:
    """The first training batch of an epoch that no run uses."""
    return next(iter(run.data.train(2**40 + run.seed)))


def _draw(
    run: SeedRun, trained: Trained, norms: dict[str, tuple[list[float], list[float]]]
) -> list[Path]:
    from spr_or.training.report import run_figures  # matplotlib loads here, after the training

    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    modules = dict(trained.dense.named_modules())
    labels = {
        name: layer_label(name, modules[name]) if name in modules else name
        for name in trained.entity_masks
    }
    masks = {labels[name]: keep.cpu() for name, keep in trained.entity_masks.items()}
    named = {labels.get(name, name): pair for name, pair in norms.items()}
    records = run.metrics.records
    drawn = {
        "1-accuracy-and-sparsity": lambda path: run_figures.progress(records, path),
        "2-filters-kept": lambda path: run_figures.kept(masks, path),
        "3-entity-norms": lambda path: run_figures.norms(named, masks, path),
        "4-regimes": lambda path: run_figures.regimes(records, path),
        "5-lambda": lambda path: run_figures.course(records, path),
        "6-each-entity": lambda path: run_figures.each_entity(records, labels, path),
        "7-seconds-and-multiplications": lambda path: run_figures.epoch_times(records, path),
    }
    paths = {name: folder / f"{name}.png" for name in drawn}
    return [path for name, path in paths.items() if drawn[name](path)]


def _draw_seeds(folder: Path, places: dict[int, Path]) -> list[Path]:
    """One picture of all seeds, from what each has logged."""
    from spr_or.training.report import run_figures

    records = {seed: read_metrics(place / "metrics.jsonl") for seed, place in places.items()}
    path = folder / "figures" / "0-seeds.png"
    path.parent.mkdir(exist_ok=True)
    return [path] if run_figures.seeds(records, path) else []
