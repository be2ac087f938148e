"""What a certificate of the certified solver is, how it is stored, and how it is checked.

Imports the definition of the problem and nothing of the search: not its bounds, its design matrices or
its incumbents.  `check` has the theorem; `tree` the walk; `bounds` the bound of one record in float64 with
every rounding enclosed, with `gradients` for many at a time; `exact` the same in fractions;
`weight_bounds` what proves an M.
"""
