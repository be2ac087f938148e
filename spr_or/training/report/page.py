"""One HTML page for a run, with its pictures inside it, to be opened anywhere."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from spr_or.utils.files import write_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left; font-weight: normal }
img { width: 100%; height: auto } figure { margin: 1.5rem 0 } figcaption { color: #555 }
.note { background: #fff3d6; padding: .5rem 1rem; border-left: 4px solid #e69f00 }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px }
.big { font-size: 1.15rem }
"""
_CAPTIONS = {
    "1-accuracy-and-sparsity": "Accuracy, and the share of parameters in zero filters, over all "
    "epochs.",
    "2-filters-kept": "What is left of each layer.",
    "3-entity-norms": "Norm of each entity's weights before and after.",
    "4-regimes": "Where the entities sit in the closed form: norm, bound and full are its three "
    "cases; pruned ones are zero by the rule that makes the masks.",
    "5-lambda": "Lambda over the epochs with SPR and, for a budget, the share of all parameters that "
    "could go after each.",
}
ROWS: tuple[tuple[str, str, str], ...] = (
    ("accuracy of the dense network", "dense_accuracy", "{:.2f} %"),
    ("accuracy after masking, before fine-tuning", "accuracy_before_finetune", "{:.2f} %"),
    ("accuracy, last epoch", "accuracy", "{:.2f} %"),
    ("accuracy, best epoch of fine-tuning (chosen on the same images)", "best_accuracy",
     "{:.2f} %"),
    ("weights in zero filters", "masked_filter_weights", "{:,.0f}"),
    ("… of all parameters", "masked_filter_weights_pct", "{:.1f} %"),
    ("parameters removed", "removed_params", "{:,.0f}"),
    ("… of all parameters", "removed_params_pct", "{:.1f} %"),
    ("multiply-accumulates, dense", "macs_dense", "{:,.0f}"),
    ("multiply-accumulates, compact", "macs_compact", "{:,.0f}"),
    ("milliseconds a batch, dense", "latency_ms_dense", "{:.2f}"),
    ("milliseconds a batch, compact", "latency_ms_compact", "{:.2f}"),
    ("largest difference of a logit, masked against compact", "max_abs_logit_diff", "{:.1e}"),
    ("time of a step with SPR over one without", "spr_step_overhead", "{:.3f}"),
)  # fmt: skip
CLOCK_ROWS: tuple[tuple[str, str, str], ...] = (
    ("seconds an epoch, evaluation included", "epoch_seconds", "{:.2f}"),
    ("… of its training, waiting for data", "data_wait_pct", "{:.1f} %"),
)
BUDGET_ROWS: tuple[tuple[str, str, str], ...] = (
    ("budget: parameters to remove", "target_pct", "{:.1f} %"),
    ("in entities that are zero at the end of the phase", "before_cut_pct", "{:.1f} %"),
    ("after the cut by rank", "after_cut_pct", "{:.1f} %"),
    ("entities that the cut took (or gave back: negative)", "cut_entities", "{:+d}"),
    ("largest indicator of an entity that went", "threshold", "{:.3f}"),
    ("lambda at the end", "lam", "{:.4g}"),
)


def write_page(
    path: Path,
    summary: dict[str, Any],
    sections: list[tuple[str, list[Path]]],
    seeds: list[dict[str, Any]] | None = None,
) -> None:
    """Write the page: the measures, then each section's pictures, then the recipe.

    ``seeds`` are the summaries behind a mean; they become columns beside it.
    """
    title = html.escape(f"{summary['name']}: pruning {summary['model']} on {summary['dataset']}")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
    ]
    if summary["note"]:
        parts.append(f"<p class=note>{html.escape(summary['note'])}</p>")
    parts.append(
        f"<p class=big><b>{summary['removed_params_pct']:.1f} %</b> of "
        f"{summary['parameters']:,} parameters removed; accuracy <b>{summary['accuracy']:.2f} %</b>"
        f" against {summary['dense_accuracy']:.2f} % dense"
        + (f", mean of {len(seeds)} seeds" if seeds else "")
        + "</p>"
    )
    if summary["collapsed_layers"]:
        names = html.escape(", ".join(summary["collapsed_layers"]))
        parts.append(f"<p class=note>Layers with nothing left: {names}</p>")
    parts += [_table(summary, seeds), _budget(seeds or [summary]), _footnote(summary)]
    for heading, figures in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [_figure(figure) for figure in figures]
    recipe = html.escape(json.dumps(summary["recipe"], indent=2))
    parts.append(f"<h2>Recipe</h2><details><summary>as it ran</summary><pre>{recipe}</pre>")
    parts.append("</details></html>")
    write_text(path, "\n".join(parts) + "\n")


def _table(summary: dict[str, Any], seeds: list[dict[str, Any]] | None) -> str:
    columns = [summary, *(seeds or [])]
    heads = ["mean", *(f"seed {s['seed']}" for s in seeds)] if seeds else []
    rows = ["<tr><th>" + "".join(f"<th>{head}" for head in heads)] if heads else []
    clock = [row for row in CLOCK_ROWS if row[1] in summary]
    for label, key, form in (*ROWS, *clock):
        cells = "".join(f"<td>{form.format(column[key])}" for column in columns)
        rows.append(f"<tr><td>{label}{cells}")
    return "<table>" + "\n".join(rows) + "</table>"


def _budget(columns: list[dict[str, Any]]) -> str:
    """How a budget was met, a column a seed; nothing without one."""
    if any(column.get("budget") is None for column in columns):
        return ""
    rows = ["<tr><th>" + "".join(f"<th>seed {column['seed']}" for column in columns)]
    for label, key, form in BUDGET_ROWS:
        cells = "".join(f"<td>{form.format(column['budget'][key])}" for column in columns)
        rows.append(f"<tr><td>{label}{cells}")
    return "<table>" + "\n".join(rows) + "</table>"


def _footnote(summary: dict[str, Any]) -> str:
    text = (
        f"{summary['dataset']}: {summary['train_images']:,} training and "
        f"{summary['eval_images']:,} evaluation images. Percentages of parameters are of "
        f"{summary['denominators']['removed_params_pct']}; weights in zero filters count without "
        "the biases, BatchNorms and following weights that are removed with them. Times: medians, "
        f"batches of {summary['latency_batch']}, device {summary['device']}, torch "
        f"{summary['torch']}."
    )
    return f"<p><small>{html.escape(text)}</small></p>"


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = _CAPTIONS[path.stem]
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )
