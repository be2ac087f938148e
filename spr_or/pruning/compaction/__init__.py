"""Physical removal of masked filters, for any network that torch.export can trace.

`trace` reads the network, `rules` and the tables beside it say what each operator lets pass, `plan`
decides what stays, `rewrite` builds the smaller network. Use `spr_or.pruning.compaction.api`.
"""
