"""The bounds of one problem from every formulation and solver, and the claims about them."""
