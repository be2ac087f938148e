"""Checks of what was proven: a certificate at hand, one in a file, or a folder of `spr-or solve`."""

from __future__ import annotations

from pathlib import Path

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate
from spr_or.proof.check import ProofCheck
from spr_or.tabular.recheck import Recheck, read_certificate, recheck
from spr_or.tabular.results import read_problem


def check(
    what: ProofCertificate | str | Path, *, data: str | Path | None = None, exact: bool = False
) -> ProofCheck | Recheck:
    """Check a certificate, or a folder that ``spr-or solve`` wrote, against the data.

    Parameters
    ----------
    what : a certificate of `spr_or.solve` or `load_certificate`; or the folder of one solution, a
        str or Path (a path over lambda has a folder ``lambda-01``, ... for each solution)
    data : for a folder: the data file, if it is no longer where it was
    exact : check in rational arithmetic (squared loss, small problems)

    Returns a `ProofCheck` for a certificate and a `Recheck` for a folder.  Both have ``ok``,
    ``objective``, ``bound`` and ``problems``, a list of what does not hold; a `Recheck` also says
    whether M is proven, and its ``subject`` names what was checked: data, model, lambda, alpha and M.

    Raises ``ValueError`` where there is nothing to check: no result in the folder, other data, or
    ``exact`` for a problem that it does not take.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=4)
    >>> from spr_or import solve
    >>> check(solve(p)).ok
    True

    ``check("runs/diabetes")`` checks what a command left there.
    """
    if isinstance(what, ProofCertificate):
        if data is not None:
            raise ValueError("data belongs to the check of a folder; a certificate has its own")
        return what.check(exact)
    if not isinstance(what, str | Path):
        kind = type(what).__name__
        raise TypeError(f"check takes a certificate of solve or a folder, not {kind}")
    return recheck(_folder(Path(what)), None if data is None else Path(data), exact)


def load_certificate(
    path: str | Path, problem: SparseTrainingProblem | None = None
) -> ProofCertificate:
    """Read a certificate; `check` then judges it.

    Parameters
    ----------
    path : a file of `ProofCertificate.save`, or a folder that ``spr-or solve`` wrote
    problem : what the certificate is for.  None: the problem of the folder, built again from the
        data file that its ``result.json`` names

    Raises ``ValueError`` where there is no certificate or it was made for other data.

    >>> import tempfile
    >>> from spr_or import solve
    >>> X, y = [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=4)
    >>> file = Path(tempfile.mkdtemp()) / "certificate.json"
    >>> solve(p).save(file)
    >>> load_certificate(file, p).status
    'optimal'
    """
    path = Path(path)
    file = path / "certificate.json" if path.is_dir() else path
    if problem is None:
        if not (file.parent / "result.json").exists():
            raise ValueError(
                f"{file.parent} has no result.json that says which problem was solved: "
                "give the problem, load_certificate(path, problem)"
            )
        problem = read_problem(file.parent)
    return read_certificate(file, problem)


def _folder(path: Path) -> Path:
    """The folder of one solution; its certificate or result stands for it."""
    folder = path.parent if path.name in ("certificate.json", "result.json") else path
    inside = sorted(folder.glob("lambda-*/result.json"))
    if inside and not (folder / "result.json").exists():
        raise ValueError(f"{folder} holds a path over lambda: check {inside[0].parent}, or another")
    return folder
