"""Networks of one structure are traced once in a process.

A run traces its network when it checks it, when it counts for a budget and when it compacts: with
torch.export half a second each time, half of the time of the tests that train. What a trace gives
follows from the structure of the network, not from its weights; so a second network of the same
structure gets a copy of the first one's graph, with its own parameters and buffers in it. That this
is the graph that a trace would give is tested in test_remembered_traces.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spr_or.pruning.compaction.trace import Inputs, _Tensors

Trace = Callable[..., fx.GraphModule]

_MOST = 200  # graphs that are kept


class _Structure(pickle.Pickler):
    """Pickles a network without the values of its parameters and buffers, others as numbers."""

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file)
        own = [*model.parameters(), *model.buffers()]
        self._place = {id(tensor): place for place, tensor in enumerate(own)}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        place = self._place.get(id(obj))
        values = None if place is not None else obj.detach().flatten().tolist()
        shape, stride = tuple(obj.shape), tuple(obj.stride())
        return place, values, shape, stride, str(obj.dtype), str(obj.device)


def structure_of(model: nn.Module, inputs: Inputs, all_vary: bool) -> Any:
    """What the graph depends on, as a key; None where that cannot be told (nothing is shared then).

    Parameters and buffers count by shape, other tensors by value, classes and their ``forward`` by
    identity.
    """
    file = io.BytesIO()
    leaves, tree = pytree.tree_flatten((inputs.args, inputs.kwargs))
    given = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    try:
        _Structure(file, model).dump((model, given))
    except Exception:  # local classes, lambdas, open files: pickle raises what it likes
        return None
    classes = tuple((type(m), type(m).forward) for m in model.modules())
    state = torch.get_default_dtype(), torch.is_grad_enabled()
    return file.getvalue(), classes, str(tree), all_vary, state


def _own(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip


def _copied(graph: fx.GraphModule, own: dict[str, Tensor]) -> fx.GraphModule:
    """The graph again, with the tensors ``own`` in place of those of the same names."""
    root, nodes, copies = _Tensors(), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            held = graph.get_parameter if _is_parameter(graph, node.target) else graph.get_buffer
            tensor = own[node.target] if node.target in own else held(node.target)
            copies[node] = root.node(nodes, node.target, tensor)
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = nodes.node_copy(node, copies.__getitem__)
    return fx.GraphModule(root, nodes, class_name=type(graph).__name__)


def _is_parameter(graph: fx.GraphModule, name: str) -> bool:
    place, _, last = name.rpartition(".")
    return last in graph.get_submodule(place)._parameters


def remembering(traced: Trace) -> Trace:
    """``trace._graph`` that keeps the graphs it made, the newest `_MOST` of them."""
    kept: OrderedDict[Any, fx.GraphModule] = OrderedDict()

    @wraps(traced)
    def remembered(model: nn.Module, inputs: Inputs, all_vary: bool = True) -> fx.GraphModule:
        key = structure_of(model, inputs, all_vary)
        if key is None:
            return traced(model, inputs, all_vary)
        if key in kept:
            kept.move_to_end(key)
            return _copied(kept[key], _own(model))
        graph = traced(model, inputs, all_vary)
        # The caller works on the other one; the weights need not outlive their network.
        kept[key] = _copied(graph, dict.fromkeys(_own(model), torch.empty(0)))
        if len(kept) > _MOST:
            kept.popitem(last=False)
        return graph

    return remembered
