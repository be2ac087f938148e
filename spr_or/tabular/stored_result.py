"""``result.json`` as it is stored: its fields and their types, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from spr_or.tabular.model_rules import ModelRules
from spr_or.tabular.preparation import Preparation
from spr_or.tabular.source import TableError
from spr_or.utils.untrusted import UnreadableFile, read_json

FORMAT = "spr-or solve 1"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class DataPart(_Part):
    """The data file, and the SHA-256 of its bytes."""

    file: str
    sha256: str


class ModelPart(_Part):
    """How the columns enter; ``groups`` is the label of each column.

    scale_target : whether ``standardise`` divides the target of a squared loss too; older results do not
    """

    target: str | None
    groups: list[str]
    loss: Literal["squared", "logistic", "poisson"]
    classes: list[str]
    intercept: bool
    standardise: bool
    scale_target: bool = False
    rules: ModelRules = ModelRules()


class Evidence(_Part):
    """The points that prove M: index of a weight to its value, where it is not zero."""

    incumbent: dict[str, float]
    point: dict[str, float] | None


class BoundPart(_Part):
    """M of each group; ``auto``: derived from the data, with the evidence for it.

    ``free`` bounds the weights of free columns, where there are some.
    """

    auto: bool
    value: list[float]
    evidence: Evidence | None
    free: float | None = None


class OutcomePart(_Part):
    """The numbers of the certificate; bound and gap are None where nothing was proven."""

    status: str
    objective: float
    bound: float | None
    gap: float | None
    nodes: int
    seconds: float
    mean_loss: float


class StoredResult(_Part):
    """The content of ``result.json``.

    asked_gap : the gap asked for; path : all lambdas of the path that this one belongs to;
    preparation : how the table was read and its columns prepared. Older files have none of them.
    """

    format: str
    data: DataPart
    model: ModelPart
    lam: float
    alpha: float
    M: BoundPart
    outcome: OutcomePart
    kept: list[str]
    asked_gap: float | None = None
    path: list[float] | None = None
    preparation: Preparation | None = None


def read_result(folder: Path) -> StoredResult:
    """The result in ``folder``; raises `TableError` where there is none, or a damaged one."""
    path = folder / "result.json"
    if not path.exists():
        raise TableError(f"{folder}: no result of spr-or solve there")
    try:
        content = read_json(path)
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TableError(f"{path}: not a result of spr-or solve")
    try:
        return StoredResult.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TableError(f"{path} is damaged: {place}: {first['msg']}") from None
