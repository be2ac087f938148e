"""A process that does work on demand, each time in a child that can be killed.

What a run imports late is imported once, by the server, and the network of all runs is traced once;
a child is a real process with its own files and its own death. Protocol: 0 when ready; a line of
arguments starts the work in a child and gives its process id; a line "wait" waits for the child and
gives its exit status.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def serve(work: Callable[[str], object]) -> None:
    """Answer the lines on stdin until they end; ``work`` gets a line of arguments."""
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    import torch
    import torch._dynamo  # noqa: F401
    from spr_or.models.toy import convnet

    from spr_or.pruning.compaction.prepare import prepared
    from spr_or.pruning.compaction.remembered import remembering
    from spr_or.pruning.compaction.trace import trace

    torch.set_num_threads(1)
    with remembering():
        trace(prepared(convnet()), torch.zeros(2, 1, 8, 8))
        _answer(work)


def _answer(work: Callable[[str], object]) -> None:
    child = 0
    print(0, flush=True)
    for line in sys.stdin:
        if line.strip() == "wait":
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(line.strip())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)


class Server:
    """The other end: starts ``script``, a file beside this one that calls `serve`."""

    def __init__(self, script: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "0\n"  # its imports are done

    def ask(self, line: str) -> int:
        """Send a line; the number that comes back."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
