"""A network as a graph of ATen operators on its own parameters.

`torch.export` runs the forward pass once on the example, so Python that computes with shapes, takes
dictionaries or loops over lists does not matter; sizes that may vary stay variable. The graph is
then put into the form that the rules read: parameters and buffers are ``get_attr`` nodes under
their own names, nothing writes over its input, and what has several results is several slices.
"""

import contextlib
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from spr_or.pruning.compaction.early_selects import select_early_
from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.facts import named
from spr_or.pruning.compaction.fixed_sizes import fix_sizes, fixed_size, variable_dims
from spr_or.pruning.compaction.held_tensors import HeldTensors, own_tensors
from spr_or.pruning.compaction.inputs import Example, Inputs, flat_inputs, like_model
from spr_or.pruning.compaction.remembered import present_memory, structure_of
from spr_or.pruning.compaction.simplify import simplify

aten = torch.ops.aten


# swin_t, of 180 modules, takes 9 seconds with a variable batch and more than 240 with all sizes.
_MANY_MODULES = 140


def trace(model: nn.Module, example: Example, all_vary: bool = True) -> fx.GraphModule:
    """The graph of ``model``, in the mode it is in; parameters are the model's own, not copies.

    all_vary: leave every size variable that the network leaves, and not that of the batch only. In a
    network of many modules that can take torch minutes; there it is the batch only in any case, and
    other sizes work where no operator was given a number for them.

    Raises CompactionError where the forward pass depends on the values of tensors, or does not
    take the example.
    """
    inputs = like_model(model, example)
    all_vary = all_vary and sum(1 for _ in model.modules()) <= _MANY_MODULES
    with warnings.catch_warnings(), torch.no_grad(), attention_in_the_open():
        warnings.simplefilter("ignore")
        _run_once(model, inputs)
        memory = present_memory()
        key = None if memory is None else structure_of(model, inputs, all_vary)
        if memory is None or key is None:
            return _traced(model, inputs, all_vary)
        graph = memory.graph_of(key, model, inputs)
        if graph is None:
            graph = _traced(model, inputs, all_vary)
            memory.keep(key, model, graph)
        return graph


def _traced(model: nn.Module, inputs: Inputs, all_vary: bool) -> fx.GraphModule:
    graph = _graph(model, inputs, all_vary)
    if _fixed_batch(graph):
        _free_batch(model, graph, inputs)
    simplify(graph)
    select_early_(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for node in graph.graph.nodes:
        found = node.meta.get("variable", set()) | variable_dims(node.meta.get("val"))
        node.meta["variable"] = frozenset(found)
    _refuse(model, [_random(node) for node in graph.graph.nodes if is_random(node) and node.users])
    graph.meta["saved"] = set(model.state_dict())
    return graph


def _refuse(model: nn.Module, problems: list[str]) -> None:
    """Raise CompactionError with all problems, if there are any."""
    if problems:
        raise CompactionError(f"{type(model).__name__} cannot be compacted: {'; '.join(problems)}")


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers, as it is called here."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = {parameter.name for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    switches = names & {"train", "training"} or names & {"dropout_p"}
    return not switches or any(named(node, name) for name in switches)


def _random(node: fx.Node) -> str:
    return f"{node.target} draws random numbers in evaluation mode{at_line(node)}"


def _graph(model: nn.Module, inputs: Inputs, all_vary: bool = True) -> fx.GraphModule:
    """The lowered graph without operators that write over their input."""
    program = _export(model, inputs, all_vary)
    graph = _lowered(model, program)
    if not _without_writes(graph, inputs):
        graph = _lowered(model, program.run_decompositions({}))
        if not _without_writes(graph, inputs):
            raise CompactionError(
                f"{type(model).__name__} writes into tensors in a way that cannot be followed"
            )
    fix_sizes(graph)
    return graph


def _fixed_batch(graph: fx.GraphModule) -> bool:
    """Whether the forward pass made a number of the batch size, as ``len(x)`` does."""
    vals = [n.meta.get("val") for n in graph.graph.nodes if n.op == "placeholder"]
    tensors = [v for v in vals if isinstance(v, Tensor) and v.dim()]
    return bool(tensors) and all(fixed_size(v.shape[0]) is not None for v in tensors)


def _free_batch(model: nn.Module, graph: fx.GraphModule, inputs: Inputs) -> None:
    """Replace numbers that follow the batch size by it: those that a second trace has otherwise.

    Where the two traces differ in more than numbers that are multiples of the batch size, the graph
    stays one of that batch size.
    """
    batch = len(next(t for t in inputs.tensors() if t.dim()))
    more = lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) and t.dim() else t  # noqa: E731
    larger = Inputs(*pytree.tree_map(more, (inputs.args, inputs.kwargs)))
    try:
        other = _graph(model, larger)
    except CompactionError:
        return
    nodes, others = list(graph.graph.nodes), list(other.graph.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        return
    source = next(n for n in nodes if n.op == "placeholder" and isinstance(n.meta["val"], Tensor))
    with graph.graph.inserting_after(source):
        size = graph.graph.call_function(aten.sym_size.int, (source, 0))
    for node, twin in zip(nodes, others, strict=True):
        places = iter([a for a in pytree.tree_leaves(twin.args) if not isinstance(a, fx.Node)])

        def freed(value: Any, places: Any = places, node: fx.Node = node) -> Any:
            if isinstance(value, fx.Node):
                return value
            now = next(places)
            whole = type(value) is int and type(now) is int and value != now
            if not whole or value * (batch + 1) != now * batch or value % batch:
                return value
            with graph.graph.inserting_before(node):
                times = value // batch
                return (
                    size if times == 1 else graph.graph.call_function(operator.mul, (size, times))
                )

        if node.op == "call_function":
            node.args = pytree.tree_map(freed, node.args)
        mine, theirs = node.meta.get("val"), twin.meta.get("val")
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            pairs = enumerate(zip(mine.shape, theirs.shape, strict=True))
            node.meta["variable"] = {d for d, (a, b) in pairs if str(a) != str(b)}


@contextlib.contextmanager
def attention_in_the_open() -> Iterator[None]:
    """Without the fused encoder layers that torch uses where no gradient is wanted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run_once(model: nn.Module, inputs: Inputs) -> None:
    try:
        model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        shapes = [tuple(t.shape) for t in inputs.tensors()]
        raise CompactionError(
            f"{type(model).__name__} does not take the example, inputs of shapes {shapes} (a batch "
            f"of at least two): {error}"
        ) from error


def _export(model: nn.Module, inputs: Inputs, all_vary: bool) -> ExportedProgram:
    """The program with as many variable sizes as the network allows; by torch.fx if need be."""
    attempts: list[Callable[[], ExportedProgram]] = [
        lambda: _exported(model, inputs, lambda t: {d for d, n in enumerate(t.shape) if n > 1}),
        lambda: _exported(model, inputs, lambda t: {0}),
        lambda: _exported(fx.symbolic_trace(model), inputs, lambda t: {0}),
    ]
    problems: list[Exception] = []
    for attempt in attempts if all_vary else attempts[1:]:
        try:
            with _quiet():
                return attempt()
        except Exception as error:  # torch raises whatever its own or the user's code raises
            problems.append(error)
    raise CompactionError(
        f"{type(model).__name__} cannot be traced by torch.export: {_first_lines(problems[-2])}. "
        f"Nor by torch.fx: {_first_lines(problems[-1])}. Its forward must not depend on the values "
        "of tensors"
    ) from problems[-2]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the graph that torch prints when it fails; the error says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _exported(
    model: nn.Module, inputs: Inputs, vary: Callable[[Tensor], set[int]]
) -> ExportedProgram:
    def shape(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {d: Dim.AUTO for d in vary(leaf) if d < leaf.dim() and leaf.shape[d] > 1}

    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    given = pytree.tree_map(shape, dict(bound.arguments))
    return torch.export.export(
        model, inputs.args, inputs.kwargs, dynamic_shapes=given, strict=False
    )


def _lowered(model: nn.Module, program: ExportedProgram) -> fx.GraphModule:
    """The program's graph with parameters, buffers and constants as attributes of ``model``."""
    graph = fx.Graph()
    root = HeldTensors()
    copies: dict[fx.Node, Any] = {}
    problems = _mutations(program)
    specs = {
        spec.arg.name: spec
        for spec in program.graph_signature.input_specs
        if not isinstance(spec.arg, ConstantArgument)
    }
    own = own_tensors(model)
    lifted = {**program.constants, **program.state_dict}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs.get(node.name)
            if spec is None or spec.kind == InputKind.USER_INPUT:
                copies[node] = graph.placeholder(node.name)
                copies[node].meta = dict(node.meta)
                continue
            name = str(spec.target)
            tensor = own[name] if name in own else lifted[name]
            if not isinstance(tensor, Tensor):
                problems.append(f"the forward pass uses {name!r}, an object of type {type(tensor)}")
                tensor = torch.zeros(())
            copies[node] = root.node(graph, name, tensor)
            copies[node].meta = dict(node.meta)
        elif node.op == "output" and not problems:
            leaves = [copies[x] if isinstance(x, fx.Node) else x for x in node.args[0]]
            results = program.call_spec.out_spec
            own_results = leaves[
                len(leaves) - results.num_leaves :
            ]  # buffers written into stand first
            graph.output(_plain(pytree.tree_unflatten(own_results, results)))
        elif node.op == "output":
            _refuse(model, list(dict.fromkeys(problems)))
        elif node.op == "get_attr":
            problems.append(f"the forward pass holds a subgraph{at_line(next(iter(node.users)))}")
            copies[node] = node
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    module = fx.GraphModule(root, graph, class_name="Traced")
    return module


def _mutations(program: ExportedProgram) -> list[str]:
    changed = program.graph_signature.buffers_to_mutate
    return [
        f"the forward pass in evaluation mode writes into buffer {name!r}"
        for name in sorted(changed.values())
    ]


def _plain(tree: Any) -> Any:
    """Outputs in dictionaries, lists and tuples only; other mappings become dictionaries."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_plain(value) for value in tree)
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    return tree


def _without_writes(graph: fx.GraphModule, inputs: Inputs) -> bool:
    """Replace ``op_(a, …)`` by ``op(a, …)`` and later reads of a by it; False where views read a.

    Which tensors share memory is seen on the example.
    """
    writers = [node for node in graph.graph.nodes if _writes(node)]
    if not writers:
        return True
    memory: dict[fx.Node, int] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                memory[n] = result.untyped_storage().data_ptr()
            return result

    watch = Watch(graph, garbage_collect_values=False)
    watch.run(*flat_inputs(inputs, copied=True))
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in writers:
        target = node.args[0]
        later = [
            user
            for other, place in memory.items()
            if place == memory.get(target) and other not in (target, node)
            and order[other] < order[node]
            for user in other.users
            if order[user] > order[node]
        ]  # fmt: skip
        if later or target.op == "get_attr":
            return False
        target.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)
        node.target = _out_of_place(node.target)
        if node.target is None:
            return False
    return True


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def _out_of_place(target: Any) -> Any:
    """``aten.relu_.default`` to ``aten.relu.default``; None where there is no such operator."""
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None) if packet else None
    return found if found and name.endswith("_") and not found._schema.is_mutable else None


def at_line(node: fx.Node) -> str:
    """at "file:line: code", to end a message with; empty where unknown."""
    place = where_written(node)
    return f" at {place}" if place else ""


# Places in a stack that are no line of the user's: torch, and attention as `prepare` writes it out.
_NOT_OWN = ("/torch/", "/spr_or/pruning/")


def where_written(node: fx.Node) -> str:
    """The line of the user's code that made a node, "file:line: code"; empty where unknown."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("File ") and not any(own in lines[at] for own in _NOT_OWN):
            place = lines[at].split('"')[1], lines[at].split("line ")[1].split(",")[0]
            code = lines[at + 1] if at + 1 < len(lines) else ""
            return f"{place[0]}:{place[1]}: {code}"
    return ""
