"""The parts of the branch and bound: data, bounds, node solvers, incumbents, and the proof."""
