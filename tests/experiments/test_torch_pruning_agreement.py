"""Our masks of ResNet-18 against Torch-Pruning's, where it is installed (the zoo's environment)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "research" / "torch_pruning_agreement.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_agreement_counts_what_the_other_keeps(study: Any) -> None:
    one = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True])}
    other = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True])}
    assert study.agreement(one, other) == pytest.approx(2 / 3)
    assert study.agreement(other, other) == 1.0


@pytest.mark.parametrize("across", ["layers", "network"])
@pytest.mark.parametrize("name", ["group_norm", "bn_gamma"])
def test_torch_pruning_keeps_the_same_filters(study: Any, name: str, across: str) -> None:
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is in the zoo's environment only")
    scores, importance = study.cases()[name]
    mine = study.ours(study.network(0), scores, across)
    other = study.theirs(study.network(0), importance(across), across)
    assert sum(int((~keep).sum()) for keep in other.values()) > 0
    assert study.agreement(mine, other) >= study.LEAST
