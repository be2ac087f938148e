"""What a certificate and a ladder print: one line that says what was found."""

import dataclasses
import math

import torch

from spr_or import SparseTrainingProblem, branch_and_bound
from spr_or.verification.ladder import Check, Ladder, Rung


def test_certificates_and_ladders_print_one_line():
    X, y = [[1.0, 0.2], [1.0, 3.0]], [2.0, 4.0]
    problem = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    certificate = branch_and_bound(problem)
    ladder = Ladder("mine", True, 2, [Rung.of(certificate)], [Check("a claim", "holds", 0.1)])
    unsolved = dataclasses.replace(
        certificate, status="time_limit", objective=math.inf, bound=-math.inf,
        indicators=torch.full((2,), math.nan),
    )  # fmt: skip
    for printed in map(repr, (certificate, ladder, unsolved)):
        assert "\n" not in printed and len(printed) < 160, printed
    figures = f"optimal, objective {certificate.objective:.6g}, bound {certificate.bound:.6g}, gap "
    assert figures in repr(certificate) and "2 of 2 entities kept" in repr(certificate)
    assert repr(certificate).startswith("<ProofCertificate by branch_and_bound: projected integer")
    assert "objective inf, bound -inf, gap inf %, 0 of 2 entities" in repr(unsolved)
    assert repr(ladder).startswith("<Ladder 'mine': holds, 1 of 1 claims hold, best objective ")
