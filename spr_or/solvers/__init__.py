"""Ways of solving a `SparseTrainingProblem`, one file each; every one returns a `Certificate`."""

from spr_or.solvers.certificate import Certificate

__all__ = ["Certificate"]
