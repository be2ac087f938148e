"""A trained ReLU network as constraints of a mixed-integer program.

`reading` turns a torch network into affine forms and activations (`feed_forward`), `bounds` and `lp_bounds`
say between which numbers every activation stays, `block` makes a Pyomo block of it, `cuts` strengthens the
block, `solving` calls the solvers, `robustness` and `attacks` ask and check questions about classifiers.
Use `spr_or.embedding.api`.
"""
