"""``report.html`` of a solve or of a path: one page with its pictures inside it, to be opened anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.path_choice import Choice, why
from spr_or.tabular.pool import Pool
from spr_or.tabular.prepare import OwnData, r_squared
from spr_or.tabular.result_words import (
    above_the_best,
    percent,
    what_is_proven,
    what_others_reach,
    what_was_asked,
)
from spr_or.tabular.results import KeptGroup, kept_groups
from spr_or.tabular.solve_run import GAP_PICTURE
from spr_or.tabular.source import listed
from spr_or.tabular.stored_choice import PICTURE
from spr_or.utils.files import write_text
from spr_or.utils.html_bars import bars
from spr_or.utils.html_page import escaped, head, picture, scroll, table_row, tiles

NAME = "report.html"
_MOST_ROWS = 100


def write_result_page(
    folder: Path, data: OwnData, certificate: ProofCertificate, m_proven: bool, pool: Pool | None
) -> None:
    """Write the page of a single solve, with ``gap.png`` where it stands in the folder."""
    parts = [
        head(_title(data)),
        f"<p>{escaped(what_was_asked(data, certificate.problem.alpha, certificate.problem.lam))}</p>",
        *_notes(data),
        *_solution(data, certificate, m_proven, str(folder)),
    ]
    if pool is not None:
        parts.append(_pool(pool))
    if (folder / GAP_PICTURE).exists():
        parts.append("<h2>The search</h2>")
        caption = "Incumbent, proven bound and gap over the seconds."
        parts.append(picture(folder / GAP_PICTURE, caption))
    write_text(folder / NAME, "\n".join(parts) + "\n</html>\n")


def write_path_page(
    folder: Path,
    data: OwnData,
    points: Sequence[PathPoint],
    m_proven: bool,
    choice: Choice | None = None,
    path: Path | None = None,
) -> None:
    """Write the page of a path: the chosen lambda first, if one was; ``path`` is the folder with its
    ``path.png``, if not the same."""
    parts = [
        head(_title(data)),
        f"<p>{escaped(what_was_asked(data, points[0].certificate.problem.alpha, None))}</p>",
        *_notes(data),
    ]
    if choice is not None:
        best = choice.best.certificate
        parts.append(f"<p>{escaped(_sentence(why(choice)))}</p>")
        parts += _solution(data, best, m_proven, str(folder / choice.folder))
        parts.append("<h2>The choice of λ</h2>")
        parts.append(
            picture(
                folder / PICTURE,
                "The groups kept at each λ, below them what was compared, and dashed the λ chosen.",
            )
        )
    parts.append("<h2>The path over λ</h2>")
    parts.append(
        picture(
            (path or folder) / "path.png", "The groups kept, objective and proven bound at each λ."
        )
    )
    parts.append(_path(data, points, choice))
    write_text(folder / NAME, "\n".join(parts) + "\n</html>\n")


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."


def _title(data: OwnData) -> str:
    return f"{', '.join(data.table.targets)}: the groups of columns that explain it best"


def _notes(data: OwnData) -> list[str]:
    """What was done with the columns, and what looks unintended."""
    notes = [f'<p class="note">{escaped(warning)}</p>' for warning in data.table.warnings]
    if data.table.notes:
        items = "".join(f"<li>{escaped(note)}" for note in data.table.notes)
        notes.append(
            f"<details><summary>How the table was prepared</summary><ul>{items}</ul></details>"
        )
    return notes


def _solution(
    data: OwnData, certificate: ProofCertificate, m_proven: bool, folder: str
) -> list[str]:
    """Headline, groups and weights, picture and proof of one solution."""
    problem = certificate.problem
    kept = kept_groups(data, certificate)
    loss = float(problem.loss_value(certificate.weights))
    numbers = [
        (f"{len(kept)} of {len(data.groups)}", "groups kept"),
        (percent(certificate.gap), "gap: the most that any other choice could gain"),
        (f"{loss:.4g}", f"mean {data.loss} loss"),
    ]
    if data.loss == "squared" and data.intercept:
        explained = r_squared(data, problem, certificate.weights)
        numbers.insert(2, (f"{explained:.4f}", "R²: the share of the variance that is explained"))
    parts = [tiles(numbers), "<h2>The groups kept</h2>"]
    if not kept:
        parts.append("<p>None: no group explains as much as it costs.</p>")
    else:
        parts.append(_weights(data, certificate))
    parts.append("<h2>The proof</h2>")
    parts.append(f"<p>{escaped(what_is_proven(certificate, m_proven))}</p>")
    parts.append(
        f"<p>From {escaped(data.path.name)} (SHA-256 {data.sha256[:12]}…) and the stored certificate, "
        f"without the solver, the proof is repeated by</p><pre>spr-or check {escaped(folder)}</pre>"
    )
    return parts


def _weights(data: OwnData, certificate: ProofCertificate) -> str:
    """Each group with its columns, their weights as in the file, and bars of those of the problem."""
    W, intercept = data.weights(certificate.weights)
    table = data.table
    q = len(table.targets)
    own = dict(zip(table.columns, W.tolist(), strict=True))
    kept = kept_groups(data, certificate)
    lengths = bars(_penalised(data, certificate, kept))
    labels = [
        (group.name if [name] == group.columns else f"{group.name}: {name}", name)
        for group in kept
        for name in group.columns
    ]
    rows = [
        _row(label, own[name]) + bar for (label, name), bar in zip(labels, lengths, strict=True)
    ]
    free = [table.columns[j] for j in data.entities.free if j < len(table.columns)]
    rows += [_row(f"{name} (free)", own[name]) for name in free]
    shown = rows[:_MOST_ROWS]
    if data.intercept:
        shown.append(_row("intercept", intercept.tolist()))
    more = f" (the first {_MOST_ROWS} of {len(rows)})" if len(rows) > _MOST_ROWS else ""
    what = "weights" if q == 1 else "norms of the weights over all targets"
    unit = " of the divided columns, comparable with each other" if data.standardise else ""
    caption = f"Weights of the columns as they are in the file{more}; bars: {what}{unit}"
    heads = ["group and column", *(["weight"] if q == 1 else table.targets)]
    return scroll(f"<caption>{caption}</caption>" + table_row("th", heads) + "".join(shown))


def _row(label: str, weights: Sequence[float]) -> str:
    return table_row("td", [label, *(f"{value:.5g}" for value in weights)])


def _penalised(
    data: OwnData, certificate: ProofCertificate, kept: Sequence[KeptGroup]
) -> list[float]:
    """The weights of the columns of the groups kept as the penalty sees them; of several targets the norm."""
    rows = certificate.problem.entities.rows(certificate.weights)
    sizes = certificate.problem.entities.sizes
    places = {label: i for i, label in enumerate(data.groups)}
    q = len(data.table.targets)
    weights: list[float] = []
    for group in kept:
        i = places[group.name]
        table = rows[i][: int(sizes[i])].reshape(-1, q)
        weights += table[:, 0].tolist() if q == 1 else table.norm(dim=1).tolist()
    return weights


def _pool(pool: Pool) -> str:
    rows = [table_row("th", ["groups kept", "objective", "above the best"])]
    for one in pool.rows:
        cells = [listed(one["kept"], 8) or "none", f"{one['objective']:.8g}"]
        rows.append(table_row("td", [*cells, above_the_best(one)]))
    said = _sentence(what_others_reach(pool))
    return f"<h2>Alternatives</h2><p>{escaped(said)}</p>" + scroll("".join(rows), columns=2)


def _path(data: OwnData, points: Sequence[PathPoint], choice: Choice | None) -> str:
    """A row for each lambda, with what entered and left."""
    rows = [table_row("th", ["λ", "groups", "gap", "enter", "leave"])]
    before: list[str] = []
    best = None if choice is None else choice.best.certificate
    for point in points:
        kept = [group.name for group in kept_groups(data, point.certificate)]
        entered = [name for name in kept if name not in before]
        left = [name for name in before if name not in kept]
        mark = ' <span class="soft">chosen</span>' if best is point.certificate else ""
        cells: list[str] = [
            f"{point.lam:.5g}",
            str(len(kept)),
            percent(point.certificate.gap),
        ]
        rows.append(table_row("td", [*cells, listed(entered, 6), listed(left, 6)], mark))
        before = kept
    return scroll("".join(rows))
