"""What was found of the layers: a table for the terminal, JSON, CSV and a figure."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from spr_or.layer_study.study import Study
from spr_or.layer_study.study_run import Finished
from spr_or.utils.files import write_aside, write_json
from spr_or.utils.printable import one_line

COLUMNS = (
    "layer", "inputs", "dead", "outputs", "mask", "size", "from_mask", "best_channels", "status", "proven",
    "objective", "bound", "gap", "root", "relaxation", "best_lost", "spr_lost", "magnitude_lost",
    "least_lost", "spr_above_bound", "magnitude_above_bound", "lam", "alpha", "samples", "columns",
    "nodes", "seconds", "m_active",
)  # fmt: skip


def row(study: Study) -> dict[str, Any]:
    """A study as one flat row of `COLUMNS`."""
    flat = {key: value for key, value in study.as_dict().items() if key in COLUMNS}
    flat["dead"] = len(study.dead)
    flat["proven"] = is_proven(study)
    flat["best_channels"] = len(study.choices["best"].channels)
    for way, choice in study.choices.items():
        flat[f"{way}_lost"] = choice.lost
        flat[f"{way}_above_bound"] = choice.above_bound
    return {key: flat.get(key) for key in COLUMNS}


def write_report(folder: Path, finished: Finished) -> list[Path]:
    """Write ``layers.json``, ``layers.csv`` and ``layers.png`` into ``folder``; the paths written."""
    from spr_or.layer_study.layer_figures import draw  # matplotlib loads here

    as_json, as_csv, figure = (folder / f"layers.{end}" for end in ("json", "csv", "png"))
    write_json(
        as_json,
        {
            "layers": [study.as_dict() for study in finished.studies],
            "skipped": finished.skipped,
            "left": finished.left,
            "notes": finished.notes,
        },
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(row(study) for study in finished.studies)
    write_aside(as_csv, lambda aside: aside.write_text(text.getvalue(), encoding="utf-8"))
    if not finished.studies:
        return [as_json, as_csv]
    draw(finished.studies, figure)
    return [as_json, as_csv, figure]


def is_proven(study: Study) -> bool:
    """Whether the choice found is the best one, to the gap that was asked for."""
    return study.status == "optimal"


_HEADS = (
    "\nin", "SPR\nkept", "best\nfound", "\nproven", "lost\nbest", "lost\nSPR", "lost\nmag.",
    "over\nSPR", "over\nmag.",
)  # fmt: skip
_CAPTION = (
    "in: input channels that vary. best found: how many the best choice found keeps. proven: yes "
    "where its gap is the one asked for or less, else the gap that is left, in %. lost: % of the "
    "output's variance. over: objective above the proven bound, in %. mag.: magnitude, as many "
    "channels as SPR."
)


def table(studies: list[Study]) -> Any:
    """A rich table: of each layer the best choice found, and how far from it the others are at most."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title="Input channels that reproduce each layer's output", title_justify="left",
        caption=_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    shown.add_column("\nlayer", overflow="fold")
    for head in _HEADS:
        shown.add_column(head, justify="right", no_wrap=True)
    for study in studies:
        best = study.choices["best"]
        spr, magnitude = study.choices.get("spr"), study.choices["magnitude"]
        shown.add_row(
            Text(one_line(study.layer)),
            str(study.inputs - len(study.dead)),
            Text(one_line(study.mask.removeprefix("keeps ").replace("layer removed", "gone"))),
            str(len(best.channels)),
            "yes" if is_proven(study) else _percent(study.gap),
            _percent(best.lost),
            _percent(spr.lost if spr else None),
            _percent(magnitude.lost),
            _percent(spr.above_bound if spr else None),
            _percent(magnitude.above_bound),
        )
    return shown


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
