"""Physical removal of masked entities, for any network that torch.export can trace.

`trace` makes the graph, `facts` says what is constant in it, `plan` what is needed and how each operator
runs, by the rules of `rules`, `movement`, `operators`, `additions`, `selection` and `weighted`; `rewrite`
builds the smaller network from `layers`, `storage` keeps it in a file, `untraceable` finds what stops the
tracing. Use `spr_or.pruning.compaction.api`.
"""
