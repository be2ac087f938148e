"""One HTML page for a run, with its pictures inside it, to be opened anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spr_or.pruning.layer_rows import LayerRow
from spr_or.training.report.rows import BUDGET_ROWS, CUT_ROWS, PAGE_ROWS, shown
from spr_or.training.report.words import noise, warnings, what_was_done
from spr_or.utils.files import write_text
from spr_or.utils.html_page import escaped, head, picture, scroll, table_row, tiles

_CAPTIONS = {
    "0-seeds": "All seeds: accuracy on the evaluation images, and the share of parameters in zero "
    "filters, over all epochs.",
    "1-accuracy-and-sparsity": "Accuracy, and the share of parameters in zero filters, over all "
    "epochs.",
    "2-filters-kept": "Filters or neurons of each layer: kept and removed.",
    "3-entity-norms": "Norm of the weights of each filter or neuron, before and after.",
    "4-regimes": "In which case of the closed form the filters or neurons are: norm, bound and full "
    "are its three cases; those called zero are zero by the rule that makes the masks.",
    "5-lambda": "λ over the epochs with SPR and, where a share to remove was asked for, the share of "
    "all parameters that would be removed after each.",
    "6-each-entity": "The case of the closed form in which each filter or neuron was after every epoch "
    "with SPR, layer by layer from the input on. A line is one of them; in a layer those that became "
    "zero first are at the bottom.",
    "7-seconds-and-multiplications": "Seconds of each epoch, evaluation included, over the size of the "
    "network that was trained. The line is proportional to the multiplications.",
}


class Section(NamedTuple):
    """Pictures and layers of one seed; ``folded`` hides them behind their heading."""

    heading: str
    figures: Sequence[Path]
    layers: Sequence[LayerRow]
    folded: bool = False
    groups: Sequence[dict[str, Any]] = ()


def write_page(
    path: Path,
    summary: dict[str, Any],
    sections: Sequence[Section],
    seeds: Sequence[dict[str, Any]] = (),
    overview: Sequence[Path] = (),
) -> None:
    """Write the page: what was done, the headline, all measures, then each section, then the recipe.

    ``seeds`` are the summaries behind a mean; they become columns beside it. ``overview`` are the
    pictures of all seeds together.
    """
    singles = seeds or [summary]
    parts = [
        head(f"{summary['name']}: {summary['model']} on {summary['dataset']}"),
        f"<p>{escaped(what_was_done(summary, singles))} {escaped(noise(summary, singles))}</p>",
    ]
    notes = [summary["note"], *warnings(singles)]
    parts += [f'<p class="note">{escaped(note)}</p>' for note in notes if note]
    parts.append(_headline(summary, len(singles)))
    parts += [_figure(figure) for figure in overview]
    parts += ["<h2>All measures</h2>", _measures(summary, seeds), _budget(singles)]
    parts.append(f'<p class="soft">{escaped(_footnote(summary))}</p>')
    parts += [_section(section) for section in sections]
    parts.append(_how_to_load(summary, singles[0]["seed"] if seeds else None))
    recipe = escaped(json.dumps(summary["recipe"], indent=2, ensure_ascii=False))
    parts.append(f"<h2>Recipe</h2><details><summary>as it ran</summary><pre>{recipe}</pre>")
    parts.append("</details></html>")
    write_text(path, "\n".join(parts) + "\n")


def _headline(summary: dict[str, Any], count: int) -> str:
    """Accuracy, parameters, multiply-accumulates and speed, each with what it is compared to."""
    mean = f", mean of {count} seeds" if count > 1 else ""
    fewer, speed = summary.get("macs_ratio"), summary.get("speedup")
    pairs = [
        (f"{summary['accuracy']:.2f} %", f"accuracy at the end; dense "
         f"{summary['dense_accuracy']:.2f} %{mean}"),
        (f"{summary['removed_params_pct']:.1f} %",
         f"of {summary['parameters']:,} parameters removed{mean}"),
        (shown("{:.2f} times", fewer), "fewer multiply-accumulates (MACs): "
         f"{summary['macs_compact']:,.0f} instead of {summary['macs_dense']:,.0f}"),
        (shown("{:.2f} times", speed), f"the speed, measured{_spread(summary)}: "
         f"{summary['latency_ms_compact']:.2f} instead of {summary['latency_ms_dense']:.2f} ms for "
         f"{summary['latency_batch']} images on {summary['device']}"),
    ]  # fmt: skip
    return tiles(pairs)


def _spread(summary: dict[str, Any]) -> str:
    """Between which values the seeds' speed lies."""
    limits = summary.get("speedup_range")
    return f" (median; {limits[0]:.2f} to {limits[1]:.2f} over the seeds)" if limits else ""


def _measures(summary: dict[str, Any], seeds: Sequence[dict[str, Any]]) -> str:
    columns = [summary, *seeds]
    heads = ["", "mean", "±", *(f"seed {s['seed']}" for s in seeds)] if seeds else []
    rows = [table_row("th", heads)] if heads else []
    for label, key, form in PAGE_ROWS:
        if key not in summary:
            continue
        cells = [shown(form, column.get(key)) for column in columns]
        if seeds:
            cells.insert(1, shown(form, summary["std"].get(key)))
        rows.append(table_row("td", [label, *cells]))
    return scroll("".join(rows), len(columns) + bool(seeds))


def _budget(columns: Sequence[dict[str, Any]]) -> str:
    """How the share to remove was met, a column for each seed; nothing where none was asked for."""
    if any(column.get("budget") is None for column in columns):
        return ""
    rows = [table_row("th", ["", *(f"seed {column['seed']}" for column in columns)])]
    told = [row for row in CUT_ROWS if any(row[1] in column["budget"] for column in columns)]
    for label, key, form in (*BUDGET_ROWS, *told):
        rows.append(table_row("td", [label, *(shown(form, c["budget"].get(key)) for c in columns)]))
    caption = "<caption>How the share to remove was met</caption>"
    return scroll(caption + "".join(rows), len(columns))


def _section(section: Section) -> str:
    heading = escaped(section.heading)
    body = (
        _layers(section.layers)
        + _groups(section.groups)
        + "".join(_figure(figure) for figure in section.figures)
    )
    if section.folded:
        return f"<h2>{heading}</h2><details><summary>layers and pictures</summary>{body}</details>"
    return f"<h2>{heading}</h2>{body}"


def _layers(layers: Sequence[LayerRow]) -> str:
    """What each layer had and has; the last row adds up."""
    if not layers:  # a run of an older version
        return ""
    rows = [table_row("th", ["layer", "filters", "parameters", "removed"])]
    for row in layers:
        filters = "–" if row["filters_before"] is None else _change(row, "filters")
        kind = f' <span class="soft">{escaped(row["kind"])}</span>'
        rows.append(
            table_row("td", [row["label"], filters, _change(row, "params"), _share(row)], kind)
        )
    total = {key: sum(row[key] for row in layers) for key in ("params_before", "params_after")}
    rows.append(table_row("td", ["all layers", "", _change(total, "params"), _share(total)]))
    caption = "Filters (or neurons) and parameters of each layer, before → after physical removal"
    return scroll(f"<caption>{caption}</caption>" + "".join(rows), columns=3)


def _groups(groups: Sequence[dict[str, Any]]) -> str:
    """What crosses layers, a row for each group; nothing where entities are filters or neurons."""
    if not groups:
        return ""
    rows = [table_row("th", ["group", "kind", "layers", "kept"])]
    for row in groups:
        kept = f"{row['kept']:,} of {row['total']:,}"
        rows.append(table_row("td", [row["group"], row["kind"], str(row["layers"]), kept]))
    caption = "<caption>Entities that cross layers: layers (norms count) and what is kept</caption>"
    return scroll(caption + "".join(rows), columns=3)


def _change(row: LayerRow, what: str) -> str:
    return f"{row[f'{what}_before']:,} → {row[f'{what}_after']:,}"


def _share(row: LayerRow) -> str:
    before, after = row["params_before"], row["params_after"]
    return f"{100 * (before - after) / before:.1f} %" if before else "–"


def _footnote(summary: dict[str, Any]) -> str:
    return (
        "“Removed” counts all parameters that are gone after physical removal; “in zero filters” is "
        "the paper's measure, which leaves out the biases, BatchNorms and following weights that go "
        f"with them. Both are shares of {summary['denominators']['removed_params_pct']}. Times: "
        f"the fastest of many turns, batches of {summary['latency_batch']} images, device "
        f"{summary['device']}, torch {summary['torch']}."
    )


def _how_to_load(summary: dict[str, Any], seed: int | None) -> str:
    """The lines that bring the compact network back; of several seeds, the first one's."""
    file = "compact.safetensors" if seed is None else f"seed-{seed}/compact.safetensors"
    shape = summary.get("input_shape")
    call = f"\nlogits = network(torch.zeros(1, {', '.join(map(str, shape))}))" if shape else ""
    code = (
        "import torch\nfrom spr_or import load_compact\n\n"
        f"# {summary['model']} without what was removed\nnetwork = load_compact({file!r}){call}"
    )
    module = summary["model"].partition(":")[0]
    where = f"Run this in the folder of this page, where Python can import {module}:"
    return f"<h2>Load the result</h2><p>{escaped(where)}</p><pre>{escaped(code)}</pre>"


def _figure(path: Path) -> str:
    return picture(path, _CAPTIONS[path.stem])
