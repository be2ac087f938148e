"""The same half by Torch-Pruning, set up as its examples for these libraries do."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from counting import sizes
from networks import Network
from preparation import call, tensors
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

RATIO = 0.5


def prune(
    network: Network, model: nn.Module, ignored: list[str]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network without half of the channels of each of its groups.

    Magnitudes rank the channels, each group by itself; layers of the outputs are ignored, and heads
    are named, so that each loses half of its width. Raises what Torch-Pruning or the pruned
    network's forward pass raises.
    """
    pruned = copy.deepcopy(model)
    example = network.inputs(2)
    shapes = [t.shape for t in tensors(call(copy.deepcopy(model), example))]
    before = sum(p.numel() for p in pruned.parameters())
    heads = _heads(pruned)
    pruner = tp.pruner.BasePruner(
        pruned,
        example if isinstance(example, dict) else example[0],
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[pruned.get_submodule(name) for name in ignored],
        num_heads=heads,
        out_channel_groups=_groups_of_attention(pruned),
        round_to=None,
        output_transform=lambda out: sum(t.sum() for t in tensors(out)),
    )
    pruner.step()
    _repair(pruned)
    with torch.no_grad():
        found = [t.shape for t in tensors(call(pruned, example))]
        if found != shapes:
            raise ValueError(f"outputs have shapes {found}, not {shapes}")
        call(pruned, network.inputs(1))
    if sum(p.numel() for p in pruned.parameters()) == before:
        raise ValueError("nothing was removed")
    return pruned, sizes(pruned, network.inputs(1))


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Attention layers and their numbers of heads, which Torch-Pruning is told and does not find."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            heads[module.qkv] = module.num_heads
        elif type(module).__name__ == "BertSelfAttention":
            for layer in (module.query, module.key, module.value):
                heads[layer] = module.num_attention_heads
        elif type(module).__name__ == "LlamaAttention":
            heads[module.q_proj] = module.config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = module.config.num_key_value_heads
        elif type(module).__name__ == "GPTNeoXAttention":
            heads[module.query_key_value] = module.config.num_attention_heads
    return heads


def _groups_of_attention(model: nn.Module) -> dict[nn.Module, int]:
    """torch's attention takes its heads as groups of channels, which lose the same number each."""
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return {module: module.num_heads for module in attention}


def _repair(model: nn.Module) -> None:
    """Write the new widths into attributes from which forward passes take them."""
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "head_dim"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
        elif type(module).__name__ == "BertSelfAttention":
            module.all_head_size = module.query.out_features
            module.attention_head_size = module.all_head_size // module.num_attention_heads
