"""The error for what cannot become constraints."""


class EmbeddingError(ValueError):
    """A network or bound that cannot become constraints; the message says what, where and why."""
