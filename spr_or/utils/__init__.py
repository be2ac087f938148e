"""What every folder needs and no formula depends on: files, import paths, Pareto sets."""
