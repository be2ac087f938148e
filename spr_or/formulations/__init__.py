"""The problem, its entities and losses, and the three formulations of it side by side."""
