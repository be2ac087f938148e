"""The measures of a run as rows of a table: a label, the summary's key, and a format with its unit.

"Removed" counts all parameters that are gone after physical removal; "in zero filters" is the
paper's measure, the weights of filters that are zero. No other word stands for either.
"""

from __future__ import annotations

from typing import Any

Row = tuple[str, str, str]

ROWS: tuple[Row, ...] = (
    ("accuracy of the dense network", "dense_accuracy", "{:.2f} %"),
    ("accuracy after masking, before fine-tuning", "accuracy_before_finetune", "{:.2f} %"),
    ("accuracy, last epoch", "accuracy", "{:.2f} %"),
    ("accuracy, best epoch of fine-tuning (chosen on the same images)", "best_accuracy",
     "{:.2f} %"),
    ("weights in zero filters", "masked_filter_weights", "{:,.0f}"),
    ("in zero filters, of all parameters", "masked_filter_weights_pct", "{:.1f} %"),
    ("parameters removed", "removed_params", "{:,.0f}"),
    ("removed, of all parameters", "removed_params_pct", "{:.1f} %"),
    ("MACs (multiply-accumulates) of one image, dense", "macs_dense", "{:,.0f}"),
    ("MACs of one image, compact", "macs_compact", "{:,.0f}"),
    ("time of one batch, dense", "latency_ms_dense", "{:.2f} ms"),
    ("time of one batch, compact", "latency_ms_compact", "{:.2f} ms"),
    ("largest difference of a logit, masked against compact", "max_abs_logit_diff", "{:.1e}"),
    ("time of a training step with SPR, over one without", "spr_step_overhead", "{:.2f} times"),
)  # fmt: skip
# Not in every summary: runs without epochs have no clock, and older runs lack the others.
RATIO_ROWS: tuple[Row, ...] = (
    ("MACs, dense over compact", "macs_ratio", "{:.2f} times"),
    ("speed, compact over dense (measured)", "speedup", "{:.2f} times"),
)
CLOCK_ROWS: tuple[Row, ...] = (
    ("time of an epoch, evaluation included", "epoch_seconds", "{:.2f} s"),
    ("waiting for data, of its training", "data_wait_pct", "{:.1f} %"),
)
BASELINE_ROWS: tuple[Row, ...] = (
    ("for comparison with the line above: the dense network without its smallest filters by norm, "
     "as many of each layer, not trained either", "magnitude_accuracy", "{:.2f} %"),
)  # fmt: skip
PAGE_ROWS = (*ROWS[:2], *BASELINE_ROWS, *ROWS[2:], *RATIO_ROWS, *CLOCK_ROWS)
BUDGET_ROWS: tuple[Row, ...] = (
    ("share to remove, as asked", "target_pct", "{:.1f} %"),
    ("in entities that are zero at the end of the phase", "before_cut_pct", "{:.1f} %"),
    ("after the cut", "after_cut_pct", "{:.1f} %"),
    ("entities that the cut took (or gave back: negative)", "cut_entities", "{:+d}"),
    ("largest indicator of an entity that went", "threshold", "{:.3f}"),
    ("λ at the end", "lam", "{:.4g}"),
)
# In budgets with cut = "exact" or improve other than "none".
CUT_ROWS: tuple[Row, ...] = (
    ("sum of the prices of what goes", "price", "{:.4g}"),
    ("the least possible sum, at least", "price_bound", "{:.4g}"),
    ("the sum of the cut by rank", "price_by_rank", "{:.4g}"),
    ("swaps after the cut", "swaps", "{:.0f}"),
    ("loss on the training images that judged swaps, before", "loss_before_swaps", "{:.4f}"),
    ("the same after swaps", "loss_after_swaps", "{:.4f}"),
    ("layers with another set of entities", "layers_with_new_sets", "{:.0f}"),
    ("of them proven the best set of their size for the layer", "layers_proven", "{:.0f}"),
    ("layers whose reader got other weights", "layers_with_new_weights", "{:.0f}"),
    ("the same loss after layers", "loss_after_layers", "{:.4f}"),
    ("loss on images that judged none of this, before", "held_out_loss_before_improving", "{:.4f}"),
    ("the same afterwards", "held_out_loss_after_improving", "{:.4f}"),
)


def ratios(measured: dict[str, Any]) -> dict[str, float | None]:
    """How many times fewer multiply-accumulates, and how many times the speed, a summary measured.

    None where the compact network has none left.

    >>> ratios({"macs_dense": 30, "macs_compact": 10, "latency_ms_dense": 3.0,
    ...         "latency_ms_compact": 2.0})
    {'macs_ratio': 3.0, 'speedup': 1.5}
    """
    return {
        name: measured[f"{key}_dense"] / measured[f"{key}_compact"]
        if measured[f"{key}_compact"]
        else None
        for name, key in (("macs_ratio", "macs"), ("speedup", "latency_ms"))
    }


def shown(form: str, value: float | None) -> str:
    """A value in its format; a dash where there is none.

    >>> shown("{:.1f} %", 12.345), shown("{:.1f} %", None)
    ('12.3 %', '–')
    """
    return "–" if value is None else form.format(value)
