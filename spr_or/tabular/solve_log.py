"""``solve.log``: a line for each round of a search, as it happens, that stays with the result.

Lines are appended and each is written at once, so that a search that was killed leaves its log, and a
second one in the same folder continues it.  Lines of text begin with #.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from spr_or import __version__
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.utils.printable import one_line

NAME = "solve.log"
_HEADS = ("seconds", "nodes", "open", "incumbent", "bound", "gap_pct")
_WIDTH = 14


class SolveLog:
    """The open log of one search."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._began = time.monotonic()

    def round(self, now: SearchProgress) -> None:
        """A line of numbers; the seconds count from the beginning of the solve."""
        seconds = time.monotonic() - self._began
        cells = (
            f"{seconds:.3f}", str(now.nodes), str(now.open), f"{now.objective:.8g}",
            f"{now.bound:.8g}", f"{100 * now.gap:.6g}",
        )  # fmt: skip
        self._write(_line(cells))

    def end(self, certificate: ProofCertificate) -> None:
        """What came out, as it is stated in the certificate."""
        self._write(
            f"# {certificate.status}: objective {certificate.objective:.10g}, bound "
            f"{certificate.bound:.10g}, gap {100 * certificate.gap:.6g} %\n"
        )


@contextmanager
def solve_log(folder: Path, problem: SparseTrainingProblem, gap: float) -> Iterator[SolveLog]:
    """Append to the log in ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a", encoding="utf-8", buffering=1) as file:
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        file.write(
            f"# {began}, spr-or {__version__}, {one_line(problem.name)}: {problem.n} rows, "
            f"{len(problem.entities)} groups, {problem.loss} loss, lambda {problem.lam:.10g}, "
            f"alpha {problem.alpha:g}, gap asked {100 * gap:g} %\n"
        )
        file.write(_line(_HEADS))
        yield SolveLog(file.write)


def _line(cells: tuple[str, ...]) -> str:
    return "".join(cell.rjust(_WIDTH) for cell in cells) + "\n"
