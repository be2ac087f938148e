"""Which normalisation scales the channels of which layer.

A filter that is removed takes the scale and the shift behind it along, for a shift would keep its
channel alive. They are found in the torch.fx graph of the network, which needs no example; a network
that torch.fx cannot read is run on one.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from spr_or.pruning.compaction.layers import NarrowNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
NORMS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, NarrowNorm,
)  # fmt: skip

# Each channel of the output depends on the same channel of the input.
_CHANNELWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.PReLU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.hardtanh,
    F.sigmoid, torch.sigmoid, F.hardsigmoid, F.tanh, torch.tanh, F.softplus, F.mish,
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate,
)  # fmt: skip
_CHANNELWISE_METHODS = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone")


def following_norms(model: nn.Module, example: Any = None) -> dict[str, list[str]]:
    """Name of each convolution or linear layer to the names of the norms that scale its channels.

    A norm follows when it reads the layer directly or through operations that treat channels
    separately (ReLU, pooling, dropout). One behind an addition or concatenation belongs to several
    layers, so to none. Batch, instance, group and RMS norms count, and a LayerNorm over the
    channels; subclasses count as what they inherit from. example: inputs for a network that
    torch.fx cannot read; without one, images of usual sizes are tried. Raises ``ValueError`` where
    all that fails.

    >>> from spr_or.models.resnet_cifar import resnet20
    >>> following_norms(resnet20())["layer1.0.conv2"]
    ['layer1.0.bn2']
    """
    if not any(isinstance(module, NORMS) for module in model.modules()):
        return {name: [] for name, m in model.named_modules() if isinstance(m, LAYERS)}
    try:
        graph = _LayersAsLeaves().trace(model)
    except Exception:  # fx raises whatever the user's forward raises on a proxy
        return _seen_in_a_run(model, example)
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, list[str]] = {
        name: [] for name, module in modules.items() if isinstance(module, LAYERS)
    }
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, LAYERS):
            channels = _outputs(layer)
            last = isinstance(layer, nn.Linear)
            norms = _norms_reading(modules, node, channels, last)
            known = found.setdefault(str(node.target), [])
            known.extend(name for name in norms if name not in known)
    return found


class _Written(fx.Proxy):
    """A proxy that may be written into; the graph is read, never run."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _LayersAsLeaves(fx.Tracer):
    """Subclasses of layers and norms are not looked into."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that the user's code may write into."""
        return _Written(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays one call."""
        own = isinstance(m, (*LAYERS, *NORMS, nn.MultiheadAttention))
        return own or super().is_leaf_module(m, module_qualified_name)


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _norms_reading(
    modules: dict[str, nn.Module], node: fx.Node, channels: int, last: bool
) -> list[str]:
    """Norms that read the node's channels; last: whether those are in the last dimension."""
    names = []
    for user in node.users:
        reader = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(reader, NORMS):
            names += [str(user.target)] if scales(reader, channels, last) else []
        elif isinstance(reader, _CHANNELWISE_MODULES) or _is_channelwise(user):
            names += _norms_reading(modules, user, channels, last)
        elif _moves_channels(user, reader):
            names += _norms_reading(modules, user, channels, not last)
    return names


def _is_channelwise(node: fx.Node) -> bool:
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):  # in a compact network
        return len(node.all_input_nodes) == 1
    return node.target in (
        _CHANNELWISE_FUNCTIONS if node.op == "call_function" else _CHANNELWISE_METHODS
    )


def _moves_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """permute(0, 2, 3, 1) and (0, 3, 1, 2), as a call or as a module (torchvision has one)."""
    dims: Any = getattr(module, "dims", None)
    if module is None and (
        node.target in (torch.permute, torch.ops.aten.permute.default, "permute")
    ):
        rest = node.args[1:]
        dims = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    return dims is not None and tuple(dims) in ((0, 2, 3, 1), (0, 3, 1, 2))


def scales(norm: nn.Module, channels: int, last: bool) -> bool:
    """Whether a norm has a scale or a shift for each of that many channels.

    last: whether the channels are in the last dimension of what it reads, and not the second.
    """
    if isinstance(norm, NarrowNorm):
        return norm.kept == channels and last
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        # A subclass that overrides the forward pass, as LayerNorm2d does, norms the channels.
        own = type(norm).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward)
        return tuple(norm.normalized_shape) == (channels,) and (last or own)
    width = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    return bool(width == channels)


def _seen_in_a_run(model: nn.Module, example: Any) -> dict[str, list[str]]:
    """Norms whose input is a layer's output itself, as a run shows."""
    attempts = [*guessed_inputs(model), *([] if example is None else [example])]
    for attempt in attempts:
        found = _watched(model, attempt)
        if found is not None:
            return found
    raise ValueError(
        f"which norms follow which layers of {type(model).__name__} is seen neither by torch.fx "
        "nor on images of usual sizes: give an example of its inputs, example=…"
    )


def _watched(model: nn.Module, example: Any) -> dict[str, list[str]] | None:
    from spr_or.pruning.compaction.inputs import like_model
    from spr_or.utils.evaluating import evaluating

    made: list[tuple[torch.Tensor, str, int, bool]] = []
    found: dict[str, list[str]] = {}
    hooks = []

    def after(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            made.append((output, name, _outputs(module), isinstance(module, nn.Linear)))

        return hook

    def before(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            for output, layer, channels, last in made:
                if inputs and inputs[0] is output and scales(module, channels, last):
                    found[layer] += [name] if name not in found[layer] else []

        return hook

    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            found[name] = []
            hooks.append(module.register_forward_hook(after(name, module)))
        elif isinstance(module, NORMS):
            hooks.append(module.register_forward_pre_hook(before(name)))
    inputs = like_model(model, example)
    try:
        with evaluating(model, hooks), torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
    except Exception:  # a guess of another size; the user's model raises what it likes
        return None
    return found


def guessed_inputs(model: nn.Module) -> list[Any]:
    """Inputs that the network might take, by its first layer."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return [torch.zeros(2, 8, dtype=torch.long)]
        if isinstance(module, nn.Conv2d):
            c = module.in_channels
            return [torch.zeros(2, c, size, size) for size in (224, 64, 32, 28, 8)]
        if isinstance(module, nn.Conv1d):
            return [torch.zeros(2, module.in_channels, size) for size in (128, 32)]
        if isinstance(module, nn.Linear):
            width = module.in_features
            return [torch.zeros(2, width), torch.zeros(2, 4, width)]
    return []
