"""The network inside what torch wraps around one."""

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DataParallel and DistributedDataParallel, however deep.

    >>> net = nn.Linear(2, 3)
    >>> unwrap(nn.DataParallel(net)) is net
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner
