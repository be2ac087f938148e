"""SPR-OR: structured perspective regularisation, from the exact mixed-integer program to the GPU.

>>> import spr_or as so
>>> X, y = [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1]
>>> problem = so.SparseTrainingProblem.linear(X, y, so.features(2), lam=0.1, alpha=0.5, M=4)
>>> certificate = so.solve(problem)
>>> certificate.indicators.tolist(), so.check(certificate).ok
([1.0, 0.0], True)

Importing the package loads nothing else. Each name below is imported when it is first asked for:
torch with most of them, the modelling languages and solvers (pyomo, cvxpy, highspy, pyscipopt)
only when something is solved.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each name is defined: module:name, or a module. The imports below say the same to type
# checkers and editors; a test holds the two equal.
_HOMES = {
    "SPR": "spr_or.pruning.regularizer:SPR",
    "Certificate": "spr_or.formulations.certificate:Certificate",
    "GroupL0Classifier": "spr_or.tabular.estimators:GroupL0Classifier",
    "GroupL0ClassifierCV": "spr_or.tabular.cv_estimators:GroupL0ClassifierCV",
    "GroupL0Regressor": "spr_or.tabular.estimators:GroupL0Regressor",
    "GroupL0RegressorCV": "spr_or.tabular.cv_estimators:GroupL0RegressorCV",
    "Method": "spr_or.training.method:Method",
    "MethodKeys": "spr_or.training.method:MethodKeys",
    "ProxSGD": "spr_or.pruning.prox_sgd:ProxSGD",
    "Pruner": "spr_or.pruning.pruner:Pruner",
    "PruningPlan": "spr_or.training.method:PruningPlan",
    "PruningTask": "spr_or.training.method:PruningTask",
    "SparseTrainingProblem": "spr_or.formulations.problem:SparseTrainingProblem",
    "add_cuts": "spr_or.embedding.cuts:add_cuts",
    "apply_masks_": "spr_or.pruning.masks:apply_masks_",
    "bigm": "spr_or.formulations.bigm",
    "branch_and_bound": "spr_or.certified_solver.solver:branch_and_bound",
    "check": "spr_or.tabular.check:check",
    "compact": "spr_or.pruning.compaction.api:compact",
    "count_macs": "spr_or.pruning.counts:count_macs",
    "count_parameters": "spr_or.pruning.counts:count_parameters",
    "embed": "spr_or.embedding.api:embed",
    "entity_rows": "spr_or.methods.common.entity_rows:entity_rows",
    "export_onnx": "spr_or.pruning.export:export_onnx",
    "features": "spr_or.formulations.entities:features",
    "filters": "spr_or.formulations.entities:filters",
    "get_error": "spr_or.embedding.api:get_error",
    "groups": "spr_or.formulations.entities:groups",
    "hold_masks": "spr_or.pruning.masks:hold_masks",
    "inspect_network": "spr_or.pruning.inspection:inspect_network",
    "lightning_callback": "spr_or.pruning.adapters:lightning_callback",
    "load_certificate": "spr_or.tabular.check:load_certificate",
    "load_compact": "spr_or.pruning.compaction.api:load_compact",
    "load_recipe": "spr_or.training.recipe:load_recipe",
    "masks_by_threshold": "spr_or.pruning.masks:masks_by_threshold",
    "neurons": "spr_or.formulations.entities:neurons",
    "perspective": "spr_or.formulations.perspective",
    "projected": "spr_or.formulations.projected",
    "rules": "spr_or.pruning.compaction.rules",
    "run_recipe": "spr_or.training.runner:run_recipe",
    "save_compact": "spr_or.pruning.compaction.api:save_compact",
    "solve": "spr_or.certified_solver.solver:branch_and_bound",
    "trainer_callback": "spr_or.pruning.adapters:trainer_callback",
    "verify": "spr_or.verification.ladder_of_bounds:verify",
}

if TYPE_CHECKING:
    from spr_or.certified_solver.solver import branch_and_bound
    from spr_or.certified_solver.solver import branch_and_bound as solve
    from spr_or.embedding.api import embed, get_error
    from spr_or.embedding.cuts import add_cuts
    from spr_or.formulations import bigm, perspective, projected
    from spr_or.formulations.certificate import Certificate
    from spr_or.formulations.entities import features, filters, groups, neurons
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.methods.common.entity_rows import entity_rows
    from spr_or.pruning.adapters import lightning_callback, trainer_callback
    from spr_or.pruning.compaction import rules
    from spr_or.pruning.compaction.api import compact, load_compact, save_compact
    from spr_or.pruning.counts import count_macs, count_parameters
    from spr_or.pruning.export import export_onnx
    from spr_or.pruning.inspection import inspect_network
    from spr_or.pruning.masks import apply_masks_, hold_masks, masks_by_threshold
    from spr_or.pruning.prox_sgd import ProxSGD
    from spr_or.pruning.pruner import Pruner
    from spr_or.pruning.regularizer import SPR
    from spr_or.tabular.check import check, load_certificate
    from spr_or.tabular.cv_estimators import GroupL0ClassifierCV, GroupL0RegressorCV
    from spr_or.tabular.estimators import GroupL0Classifier, GroupL0Regressor
    from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask
    from spr_or.training.recipe import load_recipe
    from spr_or.training.runner import run_recipe
    from spr_or.verification.ladder_of_bounds import verify

__all__ = [
    "SPR",
    "Certificate",
    "GroupL0Classifier",
    "GroupL0ClassifierCV",
    "GroupL0Regressor",
    "GroupL0RegressorCV",
    "Method",
    "MethodKeys",
    "ProxSGD",
    "Pruner",
    "PruningPlan",
    "PruningTask",
    "SparseTrainingProblem",
    "__version__",
    "add_cuts",
    "apply_masks_",
    "bigm",
    "branch_and_bound",
    "check",
    "compact",
    "count_macs",
    "count_parameters",
    "embed",
    "entity_rows",
    "export_onnx",
    "features",
    "filters",
    "get_error",
    "groups",
    "hold_masks",
    "inspect_network",
    "lightning_callback",
    "load_certificate",
    "load_compact",
    "load_recipe",
    "masks_by_threshold",
    "neurons",
    "perspective",
    "projected",
    "rules",
    "run_recipe",
    "save_compact",
    "solve",
    "trainer_callback",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a name of `_HOMES` when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(_unknown(name))
    module, _, attribute = _HOMES[name].partition(":")
    found = import_module(module)
    if attribute:
        found = getattr(found, attribute)
    globals()[name] = found  # __getattr__ is not asked again
    return found


def __dir__() -> list[str]:
    """The public names only: neither helpers of this file nor folders that happen to be loaded."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    message = f"module {__name__!r} has no attribute {name!r}"
    near = get_close_matches(name, __all__, n=1)
    return f"{message}; did you mean {near[0]!r}?" if near else message
