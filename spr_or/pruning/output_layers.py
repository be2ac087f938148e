"""Which layers write the outputs of a network: removing their entities would change what it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spr_or.pruning.counts import Example, forward
from spr_or.utils.evaluating import evaluating


def output_layers(model: nn.Module, example: Example) -> set[str]:
    """Names of the leaf modules with a weight between which and an output no other such module lies.

    Found in autograd's graph of one forward pass in evaluation mode, so any Python in the model will
    do. Frozen modules are not seen where nothing in front of them is trained.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Softmax(1))
    >>> output_layers(net, torch.zeros(1, 2))
    {'2'}
    """
    writer: dict[Any, str] = {}
    hooks = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:  # norms pass on what they are given

            def add(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                for tensor in tree_leaves(output):
                    if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                        writer[tensor.grad_fn] = name

            hooks.append(module.register_forward_hook(add))
    with evaluating(model, hooks), torch.enable_grad():
        outputs = tree_leaves(forward(model, example))
    waiting = [t.grad_fn for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if node in writer:
            found.add(writer[node])
            continue
        following = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= following
        waiting += following
    return found
