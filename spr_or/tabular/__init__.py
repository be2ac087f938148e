"""One's own data: reading a table, preparing it, and what a solve leaves behind."""
