"""SPR-OR: Structured Perspective Regularization, proved small and used large."""
