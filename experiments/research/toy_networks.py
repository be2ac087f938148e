"""How far SCIP on the plain and on the tightened model, and activation patterns, get in a time limit.

    python experiments/research/toy_networks.py --seconds 60

One row for each instance and way: value, bound and gap in the end, bound at the root, nodes, processor
seconds.  docs/lab/toy_networks.md holds a run.
"""

import argparse
import time
from contextlib import contextmanager
from unittest import mock

import torch
from pyomo.contrib.solver.solvers.scip.scip_direct import ScipDirect

from spr_or.solvers import network_patterns, network_sgd, scip
from spr_or.solvers.time_limit import TimeLimit
from spr_or.verification.network_instances import NETWORKS


@contextmanager
def scip_watched():
    """Yield a dict that holds the nodes and the root's bound of the last SCIP run."""
    seen = {}
    populate = ScipDirect._populate_results

    def watched(self, scip_model, *rest):
        seen.update(nodes=scip_model.getNNodes(), root=scip_model.getDualboundRoot())
        return populate(self, scip_model, *rest)

    with mock.patch.object(ScipDirect, "_populate_results", watched):
        yield seen


def searched(problem, seconds):
    """A search, and a list whose first entry will be the bound before it branched."""
    search, bounds = network_patterns.Search(problem, 1e-6, TimeLimit(seconds)), []
    solved = search.solved

    def watched(bound, node):
        if any(bool((group.region.on | group.region.off).any()) for group in node.groups):
            bounds.append(bound)
        return solved(bound, node)

    search.solved = watched
    return search, bounds


def row(name, way, certificate, root, nodes, seconds):
    """Print a row of the table."""
    gap = 100 * certificate.gap
    print(
        f"| {name} | {way} | {certificate.objective:.6f} | {certificate.bound:.6f} | {gap:.2f} % "
        f"| {root:.4f} | {nodes:,} | {seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    """Run every way on every instance."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("instances", nargs="*", default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| instance | way | value | bound | gap | root bound | nodes | processor seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.instances:
        problem = NETWORKS[name]()
        began = time.process_time()
        trained = network_sgd.solve(problem)
        value = network_sgd.rounded(problem, trained)
        seconds = time.process_time() - began
        print(f"| {name} | best of 48 SGD runs | {value.objective:.6f} | | | | | {seconds:.1f} |")
        with scip_watched() as seen:
            for way, start in (("SCIP", None), ("SCIP, tightened", trained.weights)):
                began = time.process_time()
                found = scip.solve(problem, "bigm", time_limit=arguments.seconds, start=start)
                row(name, way, found, seen["root"], seen["nodes"], time.process_time() - began)
        began = time.process_time()
        search, roots = searched(problem, arguments.seconds)
        found = search.run(trained.weights)
        root = min([*roots[:1], found.bound])
        row(name, "patterns", found, root, search.nodes, time.process_time() - began)


if __name__ == "__main__":
    main()
