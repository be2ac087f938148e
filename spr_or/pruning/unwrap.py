"""The network inside the wrappers that torch puts around one."""

from __future__ import annotations

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel and DistributedDataParallel, in any nesting.

    Wrappers change the names of modules and parameters (``_orig_mod.conv1``, ``module.conv1``).
    A module without a wrapper is returned as it is; only the outermost module is unwrapped.

    >>> net = nn.Linear(1, 1)
    >>> unwrap(nn.DataParallel(net)) is net
    True
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        # The class of a compiled module is private to torch and its import slow; this name is neither.
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", model)
        if inner is model:
            return model
        model = inner
