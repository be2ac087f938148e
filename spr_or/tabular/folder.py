"""The folder of a solve: its name, which problem it belongs to, and that one process works in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spr_or.tabular.preparation import Preparation
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import StoredResult, read_result
from spr_or.utils import folder_lock

Question = dict[str, Any]
_SINGLE, _PATH = "lam", "path"
_ALPHA = "alpha"


def question(
    data: OwnData, alpha: float, M: float | None, lam: float | None, path: Sequence[float] | None
) -> Question:
    """What is asked, as plain values: data, model, alpha, M (None: derived), and lambda or a path.

    Two solves with the same question belong into the same folder; gap and time limit say only how
    well it is answered.
    """
    return {
        "data": data.sha256,
        "target": data.target,
        "groups": data.table.labels,
        "loss": data.loss,
        "intercept": data.intercept,
        "standardise": data.standardise,
        "scale_target": data.standardise and data.scale_target,
        "rules": None if data.rules.plain else data.rules.model_dump(),
        "preparation": _unless_plain(data.table.preparation),
        "alpha": alpha,
        "M": None if M is None else [M] * len(data.groups),
        _SINGLE: lam,
        _PATH: _rounded(path),
    }


def question_of(result: StoredResult) -> Question:
    """The question that a stored result answers; one of a path has its own lambda as well."""
    model = result.model
    return {
        "data": result.data.sha256,
        "target": model.target,
        "groups": model.groups,
        "loss": model.loss,
        "intercept": model.intercept,
        "standardise": model.standardise,
        "scale_target": model.standardise and model.scale_target,
        "rules": None if model.rules.plain else model.rules.model_dump(),
        "preparation": None if result.preparation is None else _unless_plain(result.preparation),
        "alpha": result.alpha,
        "M": None if result.M.auto else result.M.value,
        _SINGLE: result.lam,
        _PATH: _rounded(result.path),
    }


def _unless_plain(preparation: Preparation) -> dict[str, Any] | None:
    """None where the table enters as it stands, as it did before there was a preparation; filled
    means are left out, as they follow from the rest and their last digits from the machine."""
    if preparation.plain:
        return None
    return {**preparation.content(), "filled": sorted(preparation.filled)}


def _rounded(lams: Sequence[float] | None) -> list[float] | None:
    """A path comes from sums over the data, whose last digits depend on the number of threads."""
    return None if lams is None else [float(f"{lam:.10g}") for lam in lams]


def differences(one: Question, two: Question) -> list[str]:
    """What two questions differ in, beside lambda.

    >>> differences({"alpha": 0.1, "lam": 1.0, "path": None}, {"alpha": 0.2, "lam": 2.0, "path": None})
    ['alpha']
    """
    return [key for key in one if key != _SINGLE and one[key] != two[key]]


def default_folder(path: Path, asked: Sequence[Question]) -> Path:
    """``runs/solve-NAME-HASH``, another one for each question, or list of several."""
    text = json.dumps(asked if len(asked) > 1 else asked[0], sort_keys=True)
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "data"
    return Path("runs") / f"solve-{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_free(folder: Path, asked: Sequence[Question]) -> list[Path]:
    """The folder for each question: ``folder`` itself, or ``alpha-01``, ... in it for several, which differ
    in alpha.  Raises `TableError` where ``folder`` holds a result that answers another question."""
    if len(asked) == 1:
        if alpha_folders(folder):
            raise _taken(folder, f"{_ALPHA}-01: several values of alpha")
        _check_free(folder, asked[0])
        return [folder]
    if results_in(folder):
        raise _taken(folder, "a single alpha")
    if len(alpha_folders(folder)) > len(asked):
        raise _taken(folder, "more values of alpha")
    places = [folder / f"{_ALPHA}-{number:02d}" for number in range(1, len(asked) + 1)]
    for place, one in zip(places, asked, strict=True):
        _check_free(place, one)
    return places


def _check_free(folder: Path, asked: Question) -> None:
    for place, result in results_in(folder):
        found = question_of(result)
        changed = differences(asked, found)
        expected = asked[_SINGLE]
        if place != folder:
            if result.path is None and asked[_PATH] is not None:  # of an older version
                changed = [key for key in changed if key != _PATH]
            number, lams = int(place.name.removeprefix("lambda-")), asked[_PATH] or []
            expected = lams[number - 1] if number <= len(lams) else None
        elif asked[_PATH] is not None:
            changed = [_PATH]
        if expected is None or not math.isclose(result.lam, expected, rel_tol=1e-9):
            changed = [*changed, "lambda"]
        if changed:
            raise _taken(folder, f"{place.name}: another {', '.join(changed)}")


def _taken(folder: Path, what: str) -> TableError:
    return TableError(
        f"{folder} holds the result of another problem ({what}); name another folder with --out, or "
        "remove this one"
    )


def results_in(folder: Path) -> list[tuple[Path, StoredResult]]:
    """The results that can be read: of the folder itself, and of the lambdas of a path."""
    found = []
    for place in (folder, *lambda_folders(folder)):
        with contextlib.suppress(TableError):
            found.append((place, read_result(place)))
    return found


def lambda_folder(folder: Path, number: int) -> Path:
    """The folder of a lambda of a path, counted from 1."""
    return folder / f"lambda-{number:02d}"


def lambda_folders(folder: Path) -> list[Path]:
    """The folders ``lambda-01``, ``lambda-02``, ... with a result, in order."""
    places = [file.parent for file in folder.glob("lambda-*/result.json")]
    return sorted(
        (place for place in places if re.fullmatch(r"lambda-[0-9]{2,6}", place.name)),
        key=lambda place: int(place.name.removeprefix("lambda-")),
    )


def alpha_folders(folder: Path) -> list[Path]:
    """The folders ``alpha-01``, ``alpha-02``, ... that hold results, in order."""
    places = [
        place
        for place in folder.glob(f"{_ALPHA}-*")
        if re.fullmatch(rf"{_ALPHA}-[0-9]{{2,6}}", place.name) and lambda_folders(place)
    ]
    return sorted(places, key=lambda place: int(place.name.removeprefix(f"{_ALPHA}-")))


def path_results(folder: Path) -> list[Path]:
    """The folders of all lambdas of a path, or of the paths of several alphas one after the other."""
    return [place for path in (folder, *alpha_folders(folder)) for place in lambda_folders(path)]


def pool_folders(folder: Path) -> list[Path]:
    """The folders ``pool-02``, ``pool-03``, ... of further choices of groups, in order."""
    places = [
        place for place in folder.glob("pool-*") if re.fullmatch(r"pool-[0-9]{2,6}", place.name)
    ]
    return sorted(places, key=lambda place: int(place.name.removeprefix("pool-")))


def clear_pool(folder: Path) -> None:
    """Remove the pool of an earlier result."""
    for old in ("pool.json", "pool.csv"):
        (folder / old).unlink(missing_ok=True)
    for place in pool_folders(folder):
        shutil.rmtree(place)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuse a folder in which another process solves; the lock goes with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder_lock.alone_in(folder, "solve"))
        except folder_lock.FolderBusy as error:
            raise TableError(str(error)) from None
        yield
