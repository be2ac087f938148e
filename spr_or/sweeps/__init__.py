"""Many runs of one recipe: a grid or a list, over processes or a Ray cluster."""
