"""The smaller network: the graph again, every operator on what its decision leaves."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.facts import Keep, operands, same, select, uniform, with_operands
from spr_or.pruning.compaction.layers import DropPath, Fill, IndexedAdd, concatenation
from spr_or.pruning.compaction.plan import Plan
from spr_or.pruning.compaction.weighted import WEIGHTED, Layer

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)

Kept = dict[str, list[list[int] | None]]
"""Name of a parameter or buffer to the indices of each dimension that it still has, None = all."""


class Builder:
    """Builds one smaller network; what `layers` emit is built through it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.built: dict[fx.Node, Any] = {}
        self.kept: Kept = {}
        # A constant may be on the CPU where the network is not; parameters are where it is.
        held = (*plan.graph.parameters(), *plan.graph.buffers())
        self._device = held[0].device if held else None
        self._owners = _owners(plan)
        self._unions: dict[fx.Node, Keep] = {}
        self._adapted: dict[Any, fx.Node] = {}
        self._placed: set[str] = set()
        self._taken: set[str] = set()
        for node in plan.graph.graph.nodes:
            self._take_name(str(node.target))

    def build(self) -> fx.GraphModule:
        """The network that the plan describes."""
        nodes = list(self.plan.graph.graph.nodes)
        self._unions = self._held_parameters(nodes)
        for node in nodes:
            if node.op == "placeholder":
                self.built[node] = self.graph.node_copy(node)
            elif node.op == "output":
                self.graph.output(map_aggregate(node.args[0], self._output))
            elif node.op == "call_function" and self._is_built(node):
                self.built[node] = self._node(node)
        self._remember_names()
        module = fx.GraphModule(self.root, self.graph, class_name="CompactNetwork")
        module.meta["kept"] = self.kept
        return module

    def _is_built(self, node: fx.Node) -> bool:
        """Sizes are built where they are used."""
        return self.plan.alive(node) and not isinstance(self.plan.facts[node].value, int | float)

    # What emitters use.

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors the original node reads."""
        return operands(node, self.plan.facts)

    def arguments(self, node: fx.Node, given: list[Any], args: Any) -> tuple[Any, Any]:
        """The node's arguments with operands replaced and sizes rebuilt."""
        return with_operands(node, self.plan.facts, given, args, others=self._size)

    def tensor(self, node: fx.Node) -> Tensor:
        """The parameter or buffer of a ``get_attr`` node, whole."""
        place: Any = self.plan.graph
        for part in str(node.target).split("."):
            place = getattr(place, part)
        return place

    def owner(self, node: fx.Node, positions: tuple[int, ...]) -> str | None:
        """The name of the module whose parameters the node reads, where it can be a module again."""
        return self._owners.get(node)

    def reading(self, node: fx.Node, source: fx.Node) -> Keep:
        """The positions of an operand that the node reads."""
        return self.plan.decisions[node].reads[self.operands(node).index(source)]

    def take(self, module: nn.Module, key: str, source: fx.Node, keep: Keep) -> None:
        """Give a module the kept part of a parameter or buffer."""
        tensor = self.tensor(source)
        part = select(tensor.detach(), keep).clone(memory_format=torch.preserve_format)
        if isinstance(tensor, nn.Parameter):
            setattr(module, key, nn.Parameter(part, tensor.requires_grad))
        else:
            module.register_buffer(key, part)
        self._note(str(source.target), keep)

    def parameter(self, name: str, shift: Tensor, bias: list[Any]) -> fx.Node:
        """A new parameter, added to the bias where there is one."""
        name = self._free_name(name)
        self.root.register_parameter(name, nn.Parameter(self._there(shift)))
        new = self.graph.get_attr(name)
        old = bias[0] if bias else None
        return new if old is None else self.graph.call_function(aten.add.Tensor, (old, new))

    def buffer(self, name: str, tensor: Tensor) -> fx.Node:
        """A tensor of ours, which is no part of the state dict."""
        name = self._free_name(name)
        self.root.register_buffer(name, self._there(tensor), persistent=False)
        return self.graph.get_attr(name)

    def module(self, name: str, module: nn.Module, given: list[Any], own: bool = False) -> fx.Node:
        """A node that calls a module, which is put under ``name``; own: the original's name."""
        name = name if own else self._free_name(name)
        self._placed.add(name)
        if self._device is not None:
            module.to(self._device)
        put(self.root, name, module)
        return self.graph.create_node("call_module", name, tuple(given))

    def note(
        self, layer: Layer, rows: Tensor | None, columns: Tensor | None, path: str,
        groups: int | None,
    ) -> None:  # fmt: skip
        """Remember which rows and columns a layer kept."""
        rank = len(self.plan.facts[layer.weight].shape)
        keep: list[Tensor | None] = [None] * rank
        keep[layer.row_dim], keep[1 - layer.row_dim] = rows, columns
        self._note(f"{path}.weight", tuple(keep))
        if layer.bias is not None:
            self._note(f"{path}.bias", (rows,))

    def _there(self, tensor: Tensor) -> Tensor:
        """On the network's device; facts are on the CPU."""
        return tensor if self._device is None else tensor.to(self._device)

    # How nodes are built.

    def _node(self, node: fx.Node) -> Any:
        decision = self.plan.decisions[node]
        nodes = self.operands(node)
        given = [
            None if k in decision.unread else self._operand(x, keep, node)
            for k, (x, keep) in enumerate(zip(nodes, decision.reads, strict=True))
        ]
        if decision.emit is not None:
            made = decision.emit(self, node, given)
        else:
            made = self._plain(node, given, decision.args)
        return self._adapted_node(made, node, decision.makes, decision.keeps)

    def _plain(self, node: fx.Node, given: list[Any], args: Any) -> Any:
        """The operator itself, or the module that it came from where training changes what it does."""
        if node.target in (aten.dropout.default, aten.feature_dropout.default):
            return self._dropout(node, given[0])
        path = self._owners.get(node)
        if path is not None and node.target in _NORMS:
            return self._norm(node, path, given)
        if path is not None and node.target == aten.embedding.default:
            return self._embedding(node, path, given)
        filled, named = self.arguments(node, given, args)
        # `torch.export` drops a `contiguous()` that changes nothing for the example: what stood behind
        # it as a view may lie otherwise here.
        target = aten.reshape.default if node.target in _VIEWS else node.target
        return self.graph.call_function(target, filled, named)  # type: ignore[arg-type]

    def _dropout(self, node: fx.Node, x: Any) -> Any:
        p = float(node.args[1])  # type: ignore[arg-type]
        if p == 0:
            return x
        names = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
        kinds = [kind for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
        module: nn.Module
        if kinds and str(kinds[-1]).endswith("PathMarker"):
            module = DropPath(p)
        else:
            module = (
                nn.Dropout2d(p) if node.target == aten.feature_dropout.default else nn.Dropout(p)
            )
        return self.module(names[-1] if names and names[-1] else node.name, module, [x])

    def _norm(self, node: fx.Node, path: str, given: list[Any]) -> Any:
        if path not in self._placed:
            rank = len(self.plan.facts[node].shape)
            module = _norm_module(node, rank, self)
            keys = _NORMS[node.target]
            for key, position in keys.items():
                source = node.args[position] if len(node.args) > position else None
                if isinstance(source, fx.Node):
                    self.take(module, key, source, self.reading(node, source))
            _set_width(module)
            return self.module(path, module, [given[0]], own=True)
        return self.graph.create_node("call_module", path, (given[0],))

    def _embedding(self, node: fx.Node, path: str, given: list[Any]) -> Any:
        if path not in self._placed:
            weight, _ = self.operands(node)[:2]
            keep = self.reading(node, weight)
            count, width = (len(self.tensor(weight)), self.tensor(weight).shape[1])
            kept = width if keep[1] is None else int(keep[1].sum())
            padding = node.args[2] if len(node.args) > 2 and node.args[2] != -1 else None
            module = nn.Embedding(count, kept, padding, device="meta")  # type: ignore[arg-type]
            self.take(module, "weight", weight, keep)
            return self.module(path, module, [given[1]], own=True)
        return self.graph.create_node("call_module", path, (given[1],))

    def _operand(self, x: fx.Node, keep: Keep, reader: fx.Node) -> Any:
        """An operand with just the positions that its reader is given; None where nothing is computed."""
        if x.op == "get_attr":
            if reader in self._owners and x.target in self._owned_names(reader):
                return None
            return self._attribute(x, keep)
        fact = self.plan.facts[x]
        if x not in self.built:
            emit = self.plan.decisions[reader].emit
            nothing = any(k is not None and not bool(k.any()) for k in keep)
            gone = getattr(emit, "takes_gone", False) or (nothing and emit is concatenation)
            return None if gone else self._constant(x, keep)
        if not fact.is_tensor:
            return self.built[x]
        return self._adapted_node(self.built[x], x, self.plan.kept[x], keep)

    def _constant(self, x: fx.Node, keep: Keep) -> fx.Node:
        """An operand that is gone, as the constant that it is, once along what it repeats."""
        fact = self.plan.facts[x]
        rank, values = len(fact.shape), fact.value.detach()
        for dim in range(rank):
            first = values.narrow(dim, 0, 1)
            if dim in fact.variable or bool((values == first).all()):
                values = first
        # `expand` adds these dimensions. With five of them `channels_last` would be refused.
        while values.dim() and len(values) == 1:
            values = values[0]
        constant = self.buffer(f"{x.name}_constant", values.clone())
        sizes = [
            self._variable_size(x, d) if d in fact.variable else n for d, n in enumerate(fact.shape)
        ]
        full = self.graph.call_function(aten.expand.default, (constant, sizes))
        return self._adapted_node(full, x, (None,) * rank, keep)

    def _variable_size(self, x: fx.Node, dim: int) -> fx.Node:
        """A size that varies, read off a tensor that is there and has the same."""
        wanted = str(x.meta["val"].shape[dim])
        for other, new in self.built.items():
            fact = self.plan.facts.get(other)
            if fact is None or not fact.is_tensor or other.op == "get_attr":
                continue
            for d, size in enumerate(other.meta["val"].shape):
                if str(size) == wanted and d in fact.variable:
                    return self.graph.call_function(aten.sym_size.int, (new, d))
        raise CompactionError(f"nothing tells the size of {x.name!r}, which is constant")

    def _owned_names(self, reader: fx.Node) -> set[str]:
        path = self._owners[reader]
        return {
            str(a.target) for a in reader.args
            if isinstance(a, fx.Node) and a.op == "get_attr"
            and str(a.target).rpartition(".")[0] == path
        }  # fmt: skip

    def _attribute(self, x: fx.Node, keep: Keep) -> Any:
        union = self._unions[x]
        if x not in self.built:
            tensor = self.tensor(x)
            part = select(tensor.detach(), union).clone(memory_format=torch.preserve_format)
            new = (
                nn.Parameter(part, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else part
            )
            saved = str(x.target) in self.plan.graph.meta["saved"]
            put_tensor(self.root, str(x.target), new, saved)
            self._note(str(x.target), union)
            self.built[x] = self.graph.get_attr(str(x.target))
        return self._adapted_node(self.built[x], x, union, keep)

    def _held_parameters(self, nodes: list[fx.Node]) -> dict[fx.Node, Keep]:
        """For each parameter that operators read directly, all positions that any of them reads."""
        found: dict[fx.Node, Keep] = {}
        for node in nodes:
            decision = self.plan.decisions.get(node)
            if decision is None:
                continue
            for k, (x, keep) in enumerate(zip(self.operands(node), decision.reads, strict=True)):
                if x.op != "get_attr" or k in decision.unread:
                    continue
                before = found.get(x)
                found[x] = keep if before is None else tuple(
                    None if a is None or b is None else a | b
                    for a, b in zip(before, keep, strict=True)
                )  # fmt: skip
        return found

    def _adapted_node(self, new: Any, x: fx.Node, held: Keep, wanted: Keep) -> Any:
        """Positions dropped and constants put back, so that ``held`` becomes ``wanted``."""
        fact = self.plan.facts[x]
        for dim, (have, want) in enumerate(zip(held, wanted, strict=True)):
            if same(have, want):
                continue
            n = fact.shape[dim]
            have_ = torch.ones(n, dtype=torch.bool) if have is None else have.cpu()
            want_ = torch.ones(n, dtype=torch.bool) if want is None else want.cpu()
            key = (new, dim, tuple(have_.tolist()), tuple(want_.tolist()))
            if key not in self._adapted:
                self._adapted[key] = self._moved(new, x, dim, have_, want_)
            new = self._adapted[key]
        return new

    def _moved(self, new: Any, x: fx.Node, dim: int, have: Tensor, want: Tensor) -> fx.Node:
        fact = self.plan.facts[x]
        both = have & want
        if not torch.equal(both, have):
            places = both[have].nonzero().flatten().tolist()
            start, end = (places[0], places[-1] + 1) if places else (0, 0)
            if end - start == len(places):
                new = self.graph.call_function(aten.slice.Tensor, (new, dim, start, end))
            else:
                # An addition with one side, which reads it and keeps the layout of images.
                pick = IndexedAdd(dim, len(places), [places], [None], None)
                new = self.module(f"{x.name}_picked", pick, [new])
        if torch.equal(both, want):
            return new
        if fact.fixed:
            values = torch.zeros(int(want.sum()), dtype=fact.value.dtype)
        else:
            held, value = uniform(fact, dim)
            value = value.to(fact.value.dtype)
            values = torch.where(held, value, torch.zeros_like(value))[want.to(value.device)]
        places = both[want].nonzero().flatten().tolist()
        return self.module(f"{x.name}_filled", Fill(dim, places, values), [new])

    def _size(self, node: fx.Node) -> Any:
        """A size that the original computes, computed again."""
        if node not in self.built:
            if node.target == aten.sym_size.int:
                source, dim = node.args[0], node.args[1]
                assert isinstance(source, fx.Node)
                if source not in self.built:
                    raise CompactionError(f"the size of {source.name!r} is used, which is gone")
                new: Any = self.graph.call_function(aten.sym_size.int, (self.built[source], dim))
            else:
                given = map_aggregate(
                    node.args, lambda a: self._size(a) if isinstance(a, fx.Node) else a
                )
                new = self.graph.call_function(node.target, given)  # type: ignore[arg-type]
            self.built[node] = new
        return self.built[node]

    def _output(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        fact = self.plan.facts[leaf]
        if not fact.is_tensor:
            return self._size(leaf) if isinstance(fact.value, int | float) else self.built[leaf]
        whole: Keep = (None,) * len(fact.shape)
        if leaf.op == "get_attr":
            self._unions[leaf] = whole
            return self._attribute(leaf, whole)
        return self._adapted_node(self.built[leaf], leaf, self.plan.kept[leaf], whole)

    def _free_name(self, name: str) -> str:
        """The name, with a number behind it where it or something below it is taken; now it is."""
        number, free = 0, name
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._take_name(free)
        return free

    def _take_name(self, name: str) -> None:
        """Note a dotted name, and those of the modules that it lies in."""
        while name:
            self._taken.add(name)
            name = name.rpartition(".")[0]

    def _note(self, name: str, keep: Keep) -> None:
        if name not in self.plan.graph.meta["saved"]:
            return  # a number that tracing found in the code
        self.kept[name] = [None if k is None else k.nonzero().flatten().tolist() for k in keep]

    def _remember_names(self) -> None:
        """Buffers of a norm that the graph does not read, for its state dict."""
        norms = {
            name
            for name, module in self.root.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
        }
        for name, buffer in self.plan.graph.named_buffers():
            path, _, key = name.rpartition(".")
            if key == "num_batches_tracked" and path in norms:
                put_tensor(self.root, name, buffer.clone())


# The parameters of a norm's node by position.
_NORMS: dict[Any, dict[str, int]] = {
    aten.batch_norm.default: {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4},
    aten.instance_norm.default: {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4},
    aten.layer_norm.default: {"weight": 2, "bias": 3},
    aten.group_norm.default: {"weight": 2, "bias": 3},
    aten.rms_norm.default: {"weight": 2},
}
_PARAMETERS: dict[Any, dict[str, int]] = {
    **_NORMS,
    **{target: {"weight": 1, "bias": 2} for target in WEIGHTED},
    aten.embedding.default: {"weight": 0},
}


def _owners(plan: Plan) -> dict[fx.Node, str]:
    """Nodes that can be a module again: their tensors are one module's own, and read alike by all."""
    found: dict[fx.Node, str] = {}
    readers: dict[str, list[fx.Node]] = {}
    for node in plan.decisions:
        keys = _PARAMETERS.get(node.target)
        if keys is None:
            continue
        path: str | None = None
        for key, position in keys.items():
            source = node.args[position] if len(node.args) > position else None
            if source is None:
                continue
            head, _, last = str(getattr(source, "target", "")).rpartition(".")
            good = isinstance(source, fx.Node) and source.op == "get_attr" and last == key and head
            if not good or path not in (None, head):
                path = None
                break
            path = head
        if path is not None:
            readers.setdefault(path, []).append(node)
    for path, nodes in readers.items():
        tensors = {a for node in nodes for a in node.args
                   if isinstance(a, fx.Node) and a.op == "get_attr"}  # fmt: skip
        users = {user for a in tensors for user in a.users if user in plan.decisions}
        if users == set(nodes) and all(_alike(plan, nodes[0], other) for other in nodes[1:]):
            found.update(dict.fromkeys(nodes, path))
    return found


def _alike(plan: Plan, one: fx.Node, other: fx.Node) -> bool:
    """Whether two calls of one layer differ in nothing but their input."""
    position = 1 if one.target == aten.embedding.default else 0
    rest = [node.args[:position] + node.args[position + 1 :] for node in (one, other)]
    a, b = plan.decisions[one], plan.decisions[other]
    reads = [d.reads[:position] + d.reads[position + 1 :] for d in (a, b)]
    equal = all(same(x, y) for k, m in zip(*reads, strict=True) for x, y in zip(k, m, strict=True))
    return one.target == other.target and rest[0] == rest[1] and equal


def _norm_module(node: fx.Node, rank: int, builder: Builder) -> Any:
    """An empty torch norm with the node's settings."""
    args = node.args
    if node.target == aten.layer_norm.default:
        shape = [*args[1]]  # type: ignore[misc]
        eps = args[4] if len(args) > 4 else 1e-5
        module: Any = nn.LayerNorm(shape, float(eps), elementwise_affine=False)  # type: ignore[arg-type]
        module.elementwise_affine = True
        module.weight = module.bias = None
        return module
    if node.target == aten.rms_norm.default:
        eps = args[3] if len(args) > 3 else None
        module = nn.RMSNorm([*args[1]], eps, elementwise_affine=False)  # type: ignore[misc,arg-type]
        module.elementwise_affine = True
        module.weight = None
        return module
    if node.target == aten.group_norm.default:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        channels = builder.plan.facts[x].shape[1]
        module = nn.GroupNorm(int(args[1]), channels, float(args[4]) if len(args) > 4 else 1e-5,  # type: ignore[arg-type]
                              affine=False)  # fmt: skip
        module.affine = True
        module.weight = module.bias = None
        return module
    momentum, eps = float(args[6]), float(args[7])  # type: ignore[arg-type]
    if node.target == aten.instance_norm.default:
        kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 3]
        module = kind(1, eps, momentum, affine=args[1] is not None,
                      track_running_stats=not args[5])  # fmt: skip
    else:
        which: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
        module = which(1, eps, momentum, affine=args[1] is not None,
                       track_running_stats=args[3] is not None)  # fmt: skip
    return module


def _set_width(module: Any) -> None:
    if hasattr(module, "num_features"):
        tensor = module.weight if module.weight is not None else module.running_mean
        if tensor is not None:
            module.num_features = len(tensor)


def _place(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *heads, last = path.split(".")
    place = root
    for part in heads:
        if part not in place._modules:
            place.add_module(part, nn.Module())
        place = place._modules[part]  # type: ignore[assignment]
    return place, last


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Add a module under a dotted name, with what an earlier one of that name held below it."""
    place, last = _place(root, path)
    before = place._modules.get(last)
    if before is not None:
        for name, child in before._modules.items():
            if child is not None and name not in module._modules:
                module.add_module(name, child)
    place.add_module(last, module)


def put_tensor(root: nn.Module, path: str, tensor: Tensor, persistent: bool = True) -> None:
    """Add a parameter or buffer under a dotted name; persistent: as part of the state dict."""
    place, last = _place(root, path)
    if isinstance(tensor, nn.Parameter):
        place.register_parameter(last, tensor)
    else:
        place._buffers.pop(last, None)
        place.register_buffer(last, tensor, persistent)


def rewrite(plan: Plan) -> fx.GraphModule:
    """The smaller network that a plan describes, on tensors of its own."""
    return Builder(plan).build()
