"""Physical removal of masked filters, for any network torch.fx can read.

`graph` reads the network, `channels` decides which channels stay, `rewrite` builds the smaller
network, `removal_plan` is what passes between them and into the file. Use `spr_or.pruning.compaction.api`.
"""
