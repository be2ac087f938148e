"""SPR-OR: structured perspective regularisation, from the exact mixed-integer program to the GPU.

Importing the package loads torch and nothing heavier: the modelling languages and solvers
(pyomo, cvxpy, highspy, pyscipopt) load on first use.
"""

from spr_or.formulations import entities, projected
from spr_or.formulations.problem import SparseTrainingProblem

__version__ = "0.1.0"

__all__ = ["SparseTrainingProblem", "__version__", "entities", "projected"]
