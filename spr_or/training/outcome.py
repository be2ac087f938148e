"""Whether a run has done what was asked: pruned something, and left a network that works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spr_or.training.method import SPR_ITSELF


def has_learnt(accuracy: float, classes: int) -> bool:
    """Whether a network is more than a tenth of the way from guessing to 100 %.

    >>> has_learnt(18.0, classes=10), has_learnt(20.0, classes=10)
    (False, True)
    """
    guess = 100 / classes
    return accuracy - guess > 0.1 * (100 - guess)


def lost(accuracy: float, had: float, classes: int, share: float = 0.1) -> bool:
    """Whether less than ``share`` is left of what a network of accuracy ``had`` has over guessing.

    One that has hardly learnt anything has nothing to lose.

    >>> lost(10.3, 99.0, classes=10), lost(60.0, 99.0, classes=10)
    (True, False)
    """
    guess = 100 / classes
    return has_learnt(had, classes) and accuracy - guess < share * (had - guess)


def has_collapsed(summary: dict[str, Any]) -> bool:
    """Whether the final network of a seed guesses where the dense one did not.

    >>> has_collapsed({"classes": 10, "dense_accuracy": 99.0, "accuracy": 10.3})
    True
    """
    if "classes" not in summary:  # a run of an older version
        return False
    return lost(summary["accuracy"], summary["dense_accuracy"], summary["classes"])


def removed_macs_pct(summary: dict[str, Any]) -> float:
    """The multiplications that went, in percent of the dense network's.

    >>> removed_macs_pct({"macs_dense": 40, "macs_compact": 10})
    75.0
    """
    return 100 * (1 - summary["macs_compact"] / summary["macs_dense"])


def removed_nothing(summary: dict[str, Any]) -> bool:
    """Whether a run that was to prune removed nothing; with lambda 0 or no epoch it was not."""
    spr = summary["recipe"]["spr"]
    return bool(spr["lam"] and spr["epochs"]) and not summary["removed_params"]


def failure(summaries: Sequence[dict[str, Any]]) -> str | None:
    """Why the runs of these seeds are no success, with the key to change; None if they are one."""
    faults = []
    for one in summaries:
        who = f"seed {one['seed']}: " if len(summaries) > 1 else ""
        given, target = (one["recipe"]["spr"].get(key) for key in ("lam", "target_removed_pct"))
        if has_collapsed(one):
            faults.append(
                f"{who}the network has collapsed: its accuracy of {one['accuracy']:.2f} % is that of "
                f"guessing among {one['classes']} classes. {_levers(one)}"
            )
        elif removed_nothing(one) and target is not None:
            faults.append(
                f"{who}nothing was removed: spr.target_removed_pct = {target:g} is less than half of what "
                "the smallest entity takes along. Ask for more"
            )
        elif removed_nothing(one):
            faults.append(
                f"{who}nothing was removed: no entity became zero. Raise spr.lam (it was {given!r}), "
                "or say how much is to go: spr.target_removed_pct=50"
            )
    return "; ".join(faults) or None


def method_of(summary: dict[str, Any]) -> str:
    """Who decided what goes: the name under [method], which runs of older versions lack."""
    return summary["recipe"].get("method", {}).get("name", SPR_ITSELF)


def _levers(summary: dict[str, Any]) -> str:
    """What keeps a network from collapsing: the keys to change."""
    spr, name = summary["recipe"]["spr"], method_of(summary)
    masked = summary["accuracy_before_finetune"]
    if not lost(masked, summary["dense_accuracy"], summary["classes"], share=0.25):
        teachers = summary["recipe"]["finetune"].get("distill", 0.0)
        also = ", or look at finetune.distill and finetune.teachers" if teachers else ""
        return f"Before fine-tuning it was {masked:.2f} %: lower finetune.lr{also}"
    if name != SPR_ITSELF:
        return f"Lower spr.target_removed_pct or spr.lr, or what {name} has under [method]"
    return f"Lower spr.lam (it was {spr.get('lam')!r}), spr.target_removed_pct or spr.lr"


def note(summary: dict[str, Any]) -> str:
    """What a table says beside the figures of a seed that failed; empty where all is well."""
    if has_collapsed(summary):
        return "collapsed"
    return "nothing removed" if removed_nothing(summary) else ""
