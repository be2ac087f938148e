"""Training: data, recipes, phases, checkpoints and the report of a run."""
