"""What a user asks of the model beyond its penalty, by the names of groups and columns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from spr_or.tabular.source import TableError, listed
from spr_or.utils.printable import one_line
from spr_or.utils.untrusted import UnreadableFile, read_json

GROUP_WEIGHTS = ("uniform", "size", "root")
ALL = "all"


class ModelRules(BaseModel):
    """Rules as they are asked for and stored.

    sample_weight : the column of the weights of the rows, or None
    group_weights : u of each group: "uniform" (1), "size" (its number of columns), "root" (the root of
        that), or numbers by group; a group of weight 0 is free: never left out, never penalised
    max_groups : the most groups that are used, free ones not counted
    required : groups that are used in any case
    nonnegative : columns whose weights must not be negative, or "all"
    needs : groups that are used only together with others
    forbidden : choices of groups that do not count, of a pool
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="forbid")

    sample_weight: str | None = None
    group_weights: str | dict[str, float] = "uniform"
    max_groups: int | None = Field(default=None, ge=0)
    required: list[str] = []
    nonnegative: list[str] | str = []
    needs: dict[str, list[str]] = {}
    forbidden: list[list[str]] = []

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for."""
        return self == ModelRules()

    def spoken(self) -> list[str]:
        """What is asked for, a phrase each."""
        said = []
        if self.sample_weight is not None:
            said.append(f"rows weighted by {one_line(self.sample_weight)}")
        if isinstance(self.group_weights, dict):
            said.append("groups weighted as given")
        elif self.group_weights != "uniform":
            said.append(f"groups weighted by {self.group_weights}")
        if self.max_groups is not None:
            said.append(f"at most {self.max_groups} groups")
        if self.required:
            said.append(f"required: {listed(self.required)}")
        if self.nonnegative:
            which = "all" if self.nonnegative == ALL else listed(self.nonnegative)
            said.append(f"weights not negative: {which}")
        said += [f"{one_line(a)} only with {listed(b)}" for a, b in self.needs.items()]
        if self.forbidden:
            said.append(f"{len(self.forbidden)} choices of groups do not count, those found before")
        return said


class Entities(NamedTuple):
    """How groups and rules enter `SparseTrainingProblem.linear`: columns of the penalised groups by name,
    free columns, and its other arguments."""

    groups: dict[str, list[int]]
    free: list[int]
    settings: dict[str, Any]


def entities_under(
    rules: ModelRules, groups: Mapping[str, list[int]], columns: Sequence[str]
) -> Entities:
    """The rules for ``groups`` (name to columns of X), whose names are ``columns``.

    Raises `TableError` for names that there are not, and weights that are none.

    >>> rules = ModelRules(group_weights={"sex": 0.0}, max_groups=1)
    >>> found = entities_under(rules, {"age": [0], "sex": [1, 2]}, ["age", "sex_f", "sex_m"])
    >>> found.groups, found.free, found.settings["max_entities"]
    ({'age': [0]}, [1, 2], 1)
    """
    weights = group_weights(rules.group_weights, groups)
    loose = [j for name, own in groups.items() if weights[name] == 0 for j in own]
    kept = {name: own for name, own in groups.items() if weights[name] > 0}
    if not kept:
        raise TableError(
            "--group-weights: every group has weight 0, so that there is none to choose"
        )
    place = {name: i for i, name in enumerate(kept)}
    known = list(groups)

    def places(names: Iterable[str], option: str) -> list[int]:
        _check_known(names, known, option, "group")
        return [place[name] for name in names if name in place]

    needs = {}
    for child, parents in rules.needs.items():
        over = places(parents, "--needs")
        for own in places([child], "--needs"):
            needs[own] = over
    signed: list[int] = []
    if rules.nonnegative == ALL:
        signed = list(range(len(columns)))
    elif rules.nonnegative:
        _check_known(rules.nonnegative, list(columns), "--nonnegative", "column")
        signed = [list(columns).index(name) for name in rules.nonnegative]
    settings = {
        "u": [weights[name] for name in kept], "required": places(rules.required, "--require"),
        "max_entities": rules.max_groups, "needs": needs, "nonnegative": signed,
        "forbidden": [places(names, "a choice that does not count") for names in rules.forbidden],
    }  # fmt: skip
    return Entities(kept, loose, settings)


def group_weights(
    asked: str | Mapping[str, float], groups: Mapping[str, list[int]]
) -> dict[str, float]:
    """The weight of each group.  Raises `TableError`."""
    if isinstance(asked, str):
        sizes = {name: len(own) for name, own in groups.items()}
        if asked == "uniform":
            return dict.fromkeys(groups, 1.0)
        if asked == "size":
            return {name: float(size) for name, size in sizes.items()}
        if asked == "root":
            return {name: math.sqrt(size) for name, size in sizes.items()}
        raise TableError(
            f"--group-weights must be {', '.join(GROUP_WEIGHTS)} or a .json file, got {asked!r}"
        )
    _check_known(asked, list(groups), "--group-weights", "group")
    for name, value in asked.items():
        if not 0 <= value < math.inf:
            raise TableError(
                f"--group-weights: the weight of {one_line(name)!r} must be 0 or positive, got {value}"
            )
    return {name: float(asked.get(name, 1.0)) for name in groups}


def weights_asked(text: str) -> str | dict[str, float]:
    """What ``--group-weights`` says: one of the words, or the numbers in a .json file."""
    if not text.endswith(".json"):
        return text
    try:
        content = read_json(Path(text))
    except UnreadableFile as error:
        raise TableError(f"--group-weights: {error}") from None
    number = (int, float)
    if not isinstance(content, dict) or not all(
        isinstance(v, number) and not isinstance(v, bool) for v in content.values()
    ):
        raise TableError(f'--group-weights: {text} must hold {{"group": weight, ...}}')
    return {name: float(value) for name, value in content.items()}


def needs_asked(text: str) -> dict[str, list[str]]:
    """What ``--needs`` says: GROUP:OTHER pairs with commas between, or {"group": ["other", ...]} in a file.

    >>> needs_asked("age_sex:age,age_sex:sex")
    {'age_sex': ['age', 'sex']}
    """
    if text.endswith(".json"):
        try:
            content = read_json(Path(text))
        except UnreadableFile as error:
            raise TableError(f"--needs: {error}") from None
        if not isinstance(content, dict) or not all(
            isinstance(v, list) and all(isinstance(x, str) for x in v) for v in content.values()
        ):
            raise TableError(f"--needs: {text} must hold {json.dumps({'group': ['other']})}")
        return content
    found: dict[str, list[str]] = {}
    for part in text.split(","):
        child, colon, parent = (piece.strip() for piece in part.partition(":"))
        if not (child and colon and parent):
            raise TableError(f"--needs takes GROUP:OTHER,... or a .json file, got {text!r}")
        found.setdefault(child, []).append(parent)
    return found


def _check_known(names: Iterable[str], known: list[str], option: str, kind: str) -> None:
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(known)}"
            raise TableError(f"{option}: no {kind} is called {one_line(name)!r}; {hint}")
