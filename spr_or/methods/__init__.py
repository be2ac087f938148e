"""Rival pruning methods, a file for each; `spr_or.training.method` says what a method is."""
