"""The claims of docs/explanation/erratum.md, from the script that prints its numbers."""

import importlib.util
import re
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize

from spr_or.formulations import projected

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def erratum() -> ModuleType:
    """The script as a module: experiments are no package."""
    path = ROOT / "experiments" / "research" / "erratum.py"
    spec = importlib.util.spec_from_file_location("erratum_script", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses looks up annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(erratum: ModuleType) -> Any:
    """The script's `Counterexample`."""
    return erratum.counterexample()


def test_the_counterexample_holds(found: Any) -> None:
    assert found.relaxation_bound == pytest.approx(found.relaxation, rel=1e-6)
    assert found.exact == pytest.approx(found.relaxation, rel=1e-6)
    assert found.mip_bound == pytest.approx(found.mip, rel=1e-6)
    assert not found.m_active
    assert found.relaxation < found.mip
    assert found.printed > found.mip + 0.1
    assert found.authors2022 > found.mip + 0.1
    # Not one unlucky point: no weights at all bring the printed objective down to the optimum.
    assert found.printed >= found.printed_everywhere > found.mip + 0.01


def test_the_mip_optimum_is_that_of_bounded_least_squares_on_every_support(
    erratum: ModuleType, found: Any
) -> None:
    p = erratum.regression()
    X, y, n = p.X.numpy(), p.y.squeeze(1).numpy(), p.n
    ridge = np.sqrt(p.lam * p.alpha)
    best = np.inf
    for support in product([0, 1], repeat=6):
        used = np.repeat(support, 2).astype(bool)
        value = p.lam * (1 - p.alpha) * sum(support)
        if used.any():
            A = np.vstack([X[:, used] / np.sqrt(n), ridge * np.eye(used.sum())])
            b = np.concatenate([y / np.sqrt(n), np.zeros(used.sum())])
            value += 2 * optimize.lsq_linear(A, b, bounds=(-3, 3)).cost
        else:
            value += (y @ y) / n
        best = min(best, value)
    assert found.mip == pytest.approx(best, rel=1e-6)


def test_no_descent_on_the_printed_objective_gets_below_its_bound(
    erratum: ModuleType, found: Any
) -> None:
    p, bound = erratum.regression(), found.printed_everywhere
    rng = np.random.default_rng(0)
    for _ in range(3):
        w = torch.from_numpy(rng.uniform(-1, 1, 12)).requires_grad_()
        optimizer = torch.optim.Adam([w], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            objective = p.projected_objective(w, "printed")
            objective.backward()
            optimizer.step()
            assert objective.item() >= bound


def test_the_example_by_hand() -> None:
    """docs/explanation/erratum.md: one weight w = 1, alpha = 1/2, M = 2."""
    w = torch.tensor([[1.0]])
    values = [projected.value(w, 0.5, 2.0, variant).item() for variant in projected.VARIANTS]
    assert values == pytest.approx([1.0, 1.5, 1.5])


def test_the_document_quotes_what_the_script_prints(erratum: ModuleType, found: Any) -> None:
    document = (ROOT / "docs" / "explanation" / "erratum.md").read_text()
    printed = erratum.report(found).splitlines()
    assert len(printed) == 9
    for line in printed:
        name = re.split(r"\s{2,}\d", line)[0].strip()
        quoted = next(q for q in document.splitlines() if q.strip().startswith(name))
        # The last digit may round differently on another machine.
        numbers = [[float(x) for x in re.findall(r"\d+\.\d+", text)] for text in (line, quoted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1.5e-5)


def test_the_figures_are_drawn(erratum: ModuleType, tmp_path: Path) -> None:
    erratum.plot_one_weight(tmp_path / "one.png")
    erratum.plot_two_weights(tmp_path / "two.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]
    for name in ("erratum-one-weight.png", "erratum-two-weights.png"):
        assert (ROOT / "docs" / "figures" / name).exists()
