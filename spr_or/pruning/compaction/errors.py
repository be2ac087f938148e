"""What compaction raises."""


class CompactionError(ValueError):
    """The network cannot be made smaller in a way that is known to keep its outputs."""
