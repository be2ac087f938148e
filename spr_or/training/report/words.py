"""What a run did, how large its noise is and what went wrong, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spr_or.pruning.lam_words import AUTO
from spr_or.pruning.measures import MEASURES
from spr_or.training.method import SPR_ITSELF
from spr_or.training.outcome import has_collapsed, method_of
from spr_or.utils.counted import counted

_METHODS = {"gradient": "gradient steps", "prox": "proximal steps"}


def what_was_done(summary: dict[str, Any], seeds: Sequence[dict[str, Any]]) -> str:
    """Network, data, method, epochs and seeds in one sentence."""
    recipe = summary["recipe"]
    dense, spr, fine = recipe["dense"], recipe["spr"], recipe["finetune"]
    begun = f"trained for {counted(dense['epochs'], 'epoch')}"
    if dense.get("weights"):
        begun = f"loaded from {dense['weights']} and {begun}"
    start = "its weights" if spr.get("start") == "dense" else "new random weights"
    goal, method = "", method_of(summary)
    if spr.get("target_removed_pct") is not None:
        measure = MEASURES[spr.get("target_of", "params")]
        share = f"{spr['target_removed_pct']:g} % of the {measure}"
        goal = f", λ moved so that {share} go" if method == SPR_ITSELF else f", cut to {share}"
    pruned = f"with {method}{goal}"
    if method == SPR_ITSELF:
        pruned = (
            f"with SPR ({_METHODS.get(spr['method'], spr['method'])}, {spr['variant']} form, "
            f"{_strength(spr)}{goal})"
        )
    numbers = [str(one["seed"]) for one in seeds]
    which = f"seeds {', '.join(numbers)}" if len(numbers) > 1 else f"seed {numbers[0]}"
    return (
        f"{summary['model']} ({summary['parameters']:,} parameters) was {begun} on "
        f"{summary['dataset']} ({summary['train_images']:,} training and "
        f"{summary['eval_images']:,} evaluation images), then from {start} for "
        f"{counted(spr['epochs'], 'epoch')} {pruned}, and fine-tuned without the removed parts "
        f"{_weights(fine)}for {counted(fine['epochs'], 'epoch')}; {which}."
    )


def _weights(fine: dict[str, Any]) -> str:
    return "from the dense network's weights " if fine.get("start") == "dense" else ""


def _strength(spr: dict[str, Any]) -> str:
    return f"{_lam(spr.get('lam'))}, α = {spr['alpha']:g}"


def _lam(lam: float | str | None) -> str:
    if lam is None or lam == AUTO:
        return "λ from the network"
    return f"λ = {lam} of this network" if isinstance(lam, str) else f"λ = {lam:g}"


def noise(summary: dict[str, Any], seeds: Sequence[dict[str, Any]]) -> str:
    """How large a difference has to be to mean something, in one sentence."""
    images = summary["eval_images"]
    one = f"One evaluation image of {images:,} is {100 / images:.2g} points of accuracy"
    if len(seeds) < 2:
        return f"{one}; with a single seed it is not known how far seeds differ."
    std = summary["std"]
    return (
        f"{one}, and over the {len(seeds)} seeds the standard deviation is "
        f"{std['accuracy']:.2f} points of accuracy and {std['removed_params_pct']:.1f} points of "
        "the share removed."
    )


def warnings(seeds: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know before any figure: nothing removed, a collapse, layers that are gone."""
    found = []
    for one in seeds:
        who = f"Seed {one['seed']}: " if len(seeds) > 1 else ""
        if not one["removed_params"]:
            found.append(f"{who}nothing was removed: no filter or neuron became zero.")
        if has_collapsed(one):
            found.append(
                f"{who}the network has collapsed: its accuracy of {one['accuracy']:.2f} % is that "
                f"of guessing among {one['classes']} classes. Try a smaller "
                f"{'spr.lam' if method_of(one) == SPR_ITSELF else 'spr.target_removed_pct'}."
            )
        if one["collapsed_layers"]:
            names = ", ".join(one["collapsed_layers"])
            found.append(f"{who}layers with nothing left: {names}.")
    return [text[0].upper() + text[1:] for text in found]
