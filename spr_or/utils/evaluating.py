"""A network in evaluation mode for a while, with hooks, and afterwards as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def evaluating(model: nn.Module, hooks: Iterable[RemovableHandle] = ()) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode again and ``hooks`` are gone.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model[0].training, model[1].training
    (True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
