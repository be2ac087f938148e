"""Networks, masks and the masked network by its definition, for the tests of compaction."""

import importlib
from functools import cache

import torch
from torch import nn

# Name: (import path, arguments, shape of an example). Small images keep the suite quick.
NETWORKS = {
    "resnet20": ("models.resnet_cifar:resnet20", {}, (2, 3, 32, 32)),
    "resnet56": ("models.resnet_cifar:resnet56", {"num_classes": 100}, (2, 3, 16, 16)),
    "resnet18": ("models.resnet:resnet18", {"num_classes": 50}, (2, 3, 64, 64)),
    "resnet18-cifar": (
        "models.resnet:resnet18",
        {"num_classes": 10, "stem": "cifar"},
        (2, 3, 16, 16),
    ),
    "resnet50": ("models.resnet:resnet50", {"num_classes": 50}, (2, 3, 64, 64)),
    "resnet50-cifar": (
        "models.resnet:resnet50",
        {"num_classes": 10, "stem": "cifar"},
        (2, 3, 8, 8),
    ),
    "vgg16": ("models.vgg:vgg16", {}, (2, 3, 32, 32)),
    "mlp": ("models.toy:mlp", {}, (2, 1, 8, 8)),
    "convnet": ("models.toy:convnet", {}, (2, 1, 8, 8)),
    "digits_resnet": ("models.toy:digits_resnet", {}, (2, 1, 8, 8)),
}


def randomise(model):
    """Statistics, scales and shifts that are nowhere zero by accident."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.6)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


@cache
def network(name):
    torch.manual_seed(1)
    path, kwargs, _ = NETWORKS[name]
    module, function = path.split(":")
    return randomise(getattr(importlib.import_module(module), function)(**kwargs)).eval()


def maskable(model):
    """Every convolution, and every linear layer but the classifier."""
    named = [
        (name, len(module.weight))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return dict(named[:-1])


def block_of(name):
    """Residual block of a layer ("layer2.0"), or the layer itself outside of blocks."""
    return ".".join(name.split(".")[:2]) if name.startswith("layer") else name


def draw_masks(model, scenario):
    sizes = maskable(model)
    if scenario == "everything":
        return {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
    share = {"10%": 0.1, "50%": 0.5, "90%": 0.9, "layers": 0.3, "blocks": 0.3}[scenario]
    masks = {name: torch.rand(size) >= share for name, size in sizes.items()}
    if scenario == "layers":  # first, middle, last and projecting convolutions come up
        for name in list(sizes)[1::3]:
            masks[name][:] = False
    if scenario == "blocks":  # every second block: with and without a projection
        blocks = list(dict.fromkeys(block_of(name) for name in sizes))
        for name in sizes:
            if block_of(name) in blocks[1::2]:
                masks[name][:] = False
    return masks


def norm_of(name, model):
    """The BatchNorm of a convolution, found only by the naming in models/; None without one."""
    head, _, last = name.rpartition(".")
    partner = f"{head}.{int(last) + 1}" if last.isdigit() else name.replace("conv", "bn")
    module = dict(model.named_modules()).get(partner.removeprefix("."))
    return module if isinstance(module, nn.BatchNorm2d) else None


def masked_output(model, masks, x):
    """The masked network by its definition: hooks zero the channels behind BatchNorm."""
    handles = []
    for name, keep in masks.items():
        place = norm_of(name, model) or model.get_submodule(name)

        def hook(module, inputs, output, keep=keep):
            return output * keep.view(1, -1, *[1] * (output.dim() - 2))

        handles.append(place.register_forward_hook(hook))
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return output


def difference(a, b):
    return ((a - b).abs().max() / a.abs().max().clamp(min=1)).item()


def keep_first(size, kept):
    return torch.arange(size) < kept
