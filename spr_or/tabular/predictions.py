"""Predictions of a stored result for new data, prepared as the data were that it was fitted on.

Only the columns that the model uses are needed.  Words become columns of 0 and 1 for the same levels, and
gaps get the same means.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spr_or.tabular.folder import path_results
from spr_or.tabular.preparation import Coding, Preparation, Reading
from spr_or.tabular.read import read_source
from spr_or.tabular.source import Array, Column, Source, TableError, listed
from spr_or.tabular.stored_choice import chosen_in
from spr_or.tabular.stored_result import StoredResult, read_result
from spr_or.tabular.variables import check_names, variable
from spr_or.utils.untrusted import UnreadableFile, read_text


class LinearModel(NamedTuple):
    """Weights (p, q) of the columns of the data, in their units, and intercepts (q,).

    ``targets`` are the names of q targets; with one target, ``weight`` stands for it.
    """

    columns: list[str]
    targets: list[str]
    weights: Array
    intercept: Array


class Predictions(NamedTuple):
    """A table with a row for each row of the data; ``notes`` say what is special about them."""

    heads: list[str]
    rows: list[list[Any]]
    notes: list[str]


def predict(folder: Path, path: Path) -> Predictions:
    """The predictions of the result in ``folder`` for the rows of a file.

    With the squared loss a column for each target; with the logistic the likelier label, and the
    probability of the second one; with the Poisson the rate.  A row with a gap in a column that is used has
    no prediction where such rows were left out of the fit (``--missing drop``).

    Raises `TableError`: no result, a column or a level that is missing in the file or unknown to the
    model, gaps for which there is no mean.
    """
    result = read_result(folder)
    model = read_model(folder, result)
    done = result.preparation or Preparation(asked=Reading(as_is=True))
    source = read_source(path, None, done.asked, with_target=False)
    X = _matrix(path, source, model, done)
    scores = X @ model.weights + model.intercept
    if result.model.loss == "poisson":
        with np.errstate(over="ignore"):
            scores = np.exp(scores)
    gaps = np.asarray(np.isnan(scores).any(1))
    notes = []
    if gaps.any():
        notes.append(
            f"{int(gaps.sum())} of {len(gaps)} rows have a missing value and no prediction"
        )
    if far := int(np.isinf(scores).any(1).sum()):
        notes.append(f"the rates of {far} of {len(gaps)} rows are too large for a number: inf")
    known = [list(row) for row in scores.tolist()]
    if result.model.loss == "logistic":
        classes = result.model.classes
        known = [[classes[score > 0], _probability(score)] for (score,) in known]
        heads = [_target_of(result), f"probability of {classes[1]}"]
    else:
        q = model.weights.shape[1]
        heads = [_target_of(result)] if q == 1 else model.targets
    rows = [
        [""] * len(heads) if gap else row for gap, row in zip(gaps.tolist(), known, strict=True)
    ]
    return Predictions(heads, rows, notes)


def result_in(folder: Path) -> Path:
    """The folder of the one result that predicts: ``folder``, or the chosen lambda of a path in it.

    Raises `TableError` where a path was solved and none was chosen.
    """
    if folder.name in ("result.json", "certificate.json"):
        folder = folder.parent
    places = path_results(folder)
    if (folder / "result.json").exists() or not places:
        return folder
    choice = chosen_in(folder, places)
    if choice is not None:
        return choice
    raise TableError(
        f"{folder} holds a path over lambda: name one of its results, such as {places[-1]}, or choose "
        "one with --cv or --ic"
    )


def read_model(folder: Path, result: StoredResult) -> LinearModel:
    """The weights in ``weights.csv`` of a result; raises `TableError` where it is damaged."""
    path = folder / "weights.csv"
    try:
        heads, *rows = csv.reader(io.StringIO(read_text(path), newline=""))
        numbers = np.array([[float(cell) for cell in row[2:]] for row in rows], np.float64)
    except (UnreadableFile, csv.Error, ValueError) as error:
        raise TableError(f"{path} is damaged: {error}") from None
    start = int(result.model.intercept)
    labels = [row[1] for row in rows[start:]]
    if labels != result.model.groups or not np.isfinite(numbers).all():
        raise TableError(f"{path} is damaged: it does not hold the columns of result.json")
    intercept = numbers[0] if start else np.zeros(numbers.shape[1])
    targets = [head.removeprefix("weight ") for head in heads[2:]]
    return LinearModel([row[0] for row in rows[start:]], targets, numbers[start:], intercept)


def _target_of(result: StoredResult) -> str:
    return "y" if result.model.target is None else result.model.target.strip('"')


def _probability(score: float) -> float:
    small = math.exp(-abs(score))
    return (1.0 if score > 0 else small) / (1 + small)


def _matrix(path: Path, source: Source, model: LinearModel, done: Preparation) -> Array:
    """The columns of the model (n, p): zeros where a weight is zero, NaN where a row has no prediction."""
    coded = {f"{v}={level}": (v, level) for v, own in done.coded.items() for level in own.levels}
    weights = zip(model.columns, model.weights.tolist(), strict=True)
    used = [name for name, row in weights if any(row)]
    needed = list(dict.fromkeys(coded.get(name, (name, ""))[0] for name in used))
    columns = {column.name: column for column in source.columns}
    missing = [name for name in needed if name not in columns]
    if missing:
        there = listed([column.name for column in source.columns if column.name])
        raise TableError(
            f"{path}: the model uses {listed(missing)}, and there is no such column; there are {there}"
        )
    check_names(path, [c.name for c in source.columns if c.name in needed])
    values: dict[str, Array] = {}
    for name in needed:
        if name in done.coded:
            values |= _levels(path, source, columns[name], done.coded[name])
        else:
            values[name] = _numbers(path, source, columns[name], done)
    n = len(source.columns[0].values)
    _fill(path, values, done)
    return np.column_stack([values[c] if c in used else np.zeros(n) for c in model.columns])


def _numbers(path: Path, source: Source, column: Column, done: Preparation) -> Array:
    found = variable(column, done.asked.decimal, source.place, path).numbers
    if found is None:
        raise TableError(f"{path}: column {column.name!r} holds words, the model takes its numbers")
    return found


def _levels(path: Path, source: Source, column: Column, coding: Coding) -> dict[str, Array]:
    """A variable of words as a column for each level that has one, NaN where the word is missing."""
    known = {coding.reference, *coding.levels}
    words = list(column.values)
    for row, word in enumerate(words):
        if word is not None and word not in known:
            raise TableError(
                f"{path}, {source.place(row)}, column {column.name!r}: the model knows no level "
                f"{str(word)!r}; it was fitted on {listed(sorted(known))}"
            )
    return {
        f"{column.name}={level}": np.array(
            [math.nan if word is None else float(word == level) for word in words]
        )
        for level in coding.levels
    }


def _fill(path: Path, values: dict[str, Array], done: Preparation) -> None:
    """Put the means of the fit into the gaps; an error where gaps were an error in the fit."""
    gaps = {name: int(np.isnan(own).sum()) for name, own in values.items() if np.isnan(own).any()}
    if not gaps or done.asked.missing == "drop":
        return
    if done.asked.missing is None:
        shown = ", ".join(f"{name} {count}" for name, count in gaps.items())
        raise TableError(
            f"{path}: values are missing, by column: {shown}; the model was fitted on data without gaps "
            "(spr-or solve --missing mean stores means for them)"
        )
    for name in gaps:
        if name not in done.filled:
            raise TableError(
                f"{path}: values of column {name!r} are missing; it had no gaps when the model was "
                "fitted, so that no mean is stored for it"
            )
        values[name] = np.where(np.isnan(values[name]), done.filled[name], values[name])


def table_text(found: Predictions) -> str:
    """The predictions as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([found.heads, *found.rows])
    return text.getvalue()
