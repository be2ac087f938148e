"""Graphs that a run remembers, so that networks of one structure are traced once.

A run traces its network to check it, to count for a budget and to compact it, and training that
shrinks does so again and again: with torch.export a third of a second for a small network, seconds
for a large one. What a trace gives follows from the structure of a network and not from its weights,
so a network that is built like an earlier one gets a copy of that one's graph around its own
parameters and buffers.

Nothing is remembered outside `remembering`. Inside, a graph counts for a network only if

1. all that makes up the network is equal, see `structure_of`, and
2. the graph gives what the network gives on random inputs; global variables that a forward pass reads
   are not part of 1.

Otherwise the network is traced.
"""

import contextlib
import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spr_or.pruning.compaction.held_tensors import HeldTensors, own_tensors
from spr_or.pruning.compaction.inputs import Inputs, drawn
from spr_or.pruning.compaction.outputs import agree, outputs_of

_MOST = 100  # graphs


class Memory:
    """Graphs by structure, the `_MOST` that were used last; without the weights of their networks."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, fx.GraphModule] = OrderedDict()

    def graph_of(self, key: Hashable, model: nn.Module, inputs: Inputs) -> fx.GraphModule | None:
        """The graph kept under ``key``, on the tensors of ``model``; None unless it is the model's."""
        if key not in self._graphs:
            return None
        self._graphs.move_to_end(key)
        graph = _copied(self._graphs[key], own_tensors(model))
        trial = drawn(inputs)
        try:
            same = agree(model, outputs_of(model, trial), outputs_of(graph, trial))
        except Exception:  # a graph of another network fails in any way
            return None
        return graph if same else None

    def keep(self, key: Hashable, model: nn.Module, graph: fx.GraphModule) -> None:
        """Keep a copy of the graph of ``model``."""
        # The weights need not outlive their network.
        empty = dict.fromkeys(own_tensors(model), torch.empty(0))
        self._graphs[key] = _copied(graph, empty)
        self._graphs.move_to_end(key)
        if len(self._graphs) > _MOST:
            self._graphs.popitem(last=False)


_memory: ContextVar[Memory | None] = ContextVar("memory of traces", default=None)


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Inside, graphs are remembered; one inside another has the memory of the outer one."""
    if _memory.get() is not None:
        yield
        return
    token = _memory.set(Memory())
    try:
        yield
    finally:
        _memory.reset(token)


def present_memory() -> Memory | None:
    """The memory of the innermost `remembering`; None outside."""
    return _memory.get()


class _Structure(pickle.Pickler):
    """Pickles a network, with numbers in place of its parameters and buffers.

    Pickle names classes and functions; ``code`` takes down what these names stand for now.
    """

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file)
        own = [*model.parameters(), *model.buffers()]
        self._place = {id(tensor): place for place, tensor in enumerate(own)}
        self.code: list[object] = []

    def persistent_id(self, obj: Any) -> Any:
        """What stands for a tensor; None for what is pickled as usual."""
        if isinstance(obj, Tensor):
            place = self._place.get(id(obj))
            form = tuple(obj.shape), tuple(obj.stride()), str(obj.dtype), str(obj.device)
            return place, form, _digest(obj) if place is None else None
        if isinstance(obj, MethodType):
            self.code.append(obj.__func__)
        elif isinstance(obj, type | FunctionType):
            self.code.append(obj)
        return None


def structure_of(model: nn.Module, inputs: Inputs, all_vary: bool) -> Hashable:
    """What the graph of a network depends on, as a key; None where that cannot be told.

    Attributes of all modules count by value, hooks among them; parameters and buffers by shape and by
    where they are shared, tensors that are neither by their numbers, classes with their methods and
    functions by identity, inputs by shape. None for what pickle does not take, such as local functions.

    >>> from spr_or.pruning.compaction.inputs import inputs_of
    >>> two = inputs_of(torch.zeros(2, 3))
    >>> structure_of(nn.Linear(3, 1), two, True) == structure_of(nn.Linear(3, 1), two, True)
    True
    """
    file = io.BytesIO()
    structure = _Structure(file, model)
    leaves, tree = pytree.tree_flatten((inputs.args, inputs.kwargs))
    given = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    try:
        structure.dump((model, given))
    except Exception:  # pickle raises what it likes, and so does a network's own way of pickling
        return None
    methods = tuple(_methods(kind) for kind in dict.fromkeys(type(m) for m in model.modules()))
    return (
        file.getvalue(), tuple(structure.code), methods, str(tree), all_vary,
        torch.get_default_dtype(),
    )  # fmt: skip


def _methods(kind: type) -> tuple[object, ...]:
    """The functions of a class and of those that it inherits from."""
    return tuple(
        member
        for parent in kind.__mro__
        for member in vars(parent).values()
        if isinstance(member, FunctionType)
    )


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _copied(graph: fx.GraphModule, own: dict[str, Tensor]) -> fx.GraphModule:
    """The graph again, with the tensors ``own`` in place of those of the same names."""
    root, nodes, copies = HeldTensors(), fx.Graph(), dict[fx.Node, fx.Node]()
    held = own_tensors(graph)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            copies[node] = root.node(nodes, name, own[name] if name in own else held[name])
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = nodes.node_copy(node, copies.__getitem__)
    copied = fx.GraphModule(root, nodes, class_name=type(graph).__name__)
    copied.meta = dict(graph.meta)
    return copied
