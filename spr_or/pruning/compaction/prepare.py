"""A copy of a network that can be traced: unwrapped, weights as plain parameters, attention written out."""

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spr_or.pruning.unwrap import unwrap


def prepared(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode; it computes the same, under the same parameter names.

    Weights that hooks or parametrisations compute become the parameters that they are at present.
    """
    inner = unwrap(model)
    _loosen(inner)
    copied = copy.deepcopy(inner).eval()
    bake_weights_(copied)
    for name, module in list(copied.named_modules()):
        if type(module) is nn.MultiheadAttention and _can_be_written(module):
            module.__class__ = WrittenAttention
        elif type(module).__name__ in ("DropPath", "StochasticDepth") and name:
            p = getattr(module, "drop_prob", getattr(module, "p", 0.0)) or 0.0
            parent, _, last = name.rpartition(".")
            setattr(copied.get_submodule(parent), last, PathMarker(float(p)))
    return copied


def computed_weights(model: nn.Module) -> list[str]:
    """Names of the modules whose weights a hook or a parametrisation computes anew at each call.

    >>> computed_weights(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))))
    ['0']
    """
    return [
        name
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module) or any(True for _ in _hooked(module))
    ]


def bake_weights_(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Make every computed weight the plain parameter that it is at present, in place.

    names: of the modules whose weights to bake, None = all.

    Parametrisations (`torch.nn.utils.parametrizations`), the older weight and spectral norm, and
    `torch.nn.utils.prune` are undone; the outputs stay what they are in evaluation mode.

    >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    >>> bake_weights_(net)
    >>> sorted(dict(net.named_parameters()))
    ['0.bias', '0.weight']
    """
    chosen = None if names is None else set(names)
    for path, module in list(model.named_modules()):
        if chosen is not None and path not in chosen:
            continue
        if parametrize.is_parametrized(module):
            # A copied module shares the class that parametrising made; undoing changes the class.
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook_id, hook, name in list(_hooked(module)):
            hook(module, ())  # brings the weight up to date
            value = getattr(module, name).detach().clone()
            del module._forward_pre_hooks[hook_id]
            for key in [k for k in (*module._parameters, *module._buffers) if _belongs(k, name)]:
                module._parameters.pop(key, None)
                module._buffers.pop(key, None)
            module.__dict__.pop(name, None)
            module.register_parameter(name, nn.Parameter(value))


def _belongs(key: str, name: str) -> bool:
    return key != name and key.startswith(f"{name}_") and key[len(name) + 1 :] in (
        "orig", "mask", "g", "v", "u",
    )  # fmt: skip


def _hooked(module: nn.Module) -> Any:
    """(hook id, hook, parameter name) of pre-hooks that compute a parameter."""
    for hook_id, hook in module._forward_pre_hooks.items():
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and name not in module._parameters and hasattr(module, name):
            yield hook_id, hook, name


def _loosen(model: nn.Module) -> None:
    """Computed weights keep the graph that made them, which cannot be copied: their values can."""
    for module in model.modules():
        for _, _, name in _hooked(module):
            value = getattr(module, name)
            if isinstance(value, Tensor) and not value.is_leaf:
                setattr(module, name, value.detach())


class PathMarker(nn.Module):
    """Stands for stochastic depth, which leaves no trace in evaluation mode, by a dropout that does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return F.dropout(x, self.p, False)


def _can_be_written(module: nn.MultiheadAttention) -> bool:
    return module.bias_k is None and not module.add_zero_attn


class WrittenAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` in plain operators, which heads can be followed through."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the original; (B, T, E) or (T, B, E), and (T, E) without a batch."""
        if query.dim() != 3:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        same = query is key and key is value
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, same)
        mask = _joined_mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> list[Tensor]:
        """Queries, keys and values as (B, heads, T, width)."""
        if self._qkv_same_embed_dim and same:
            parts = list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        else:
            if self._qkv_same_embed_dim:
                weights = list(self.in_proj_weight.chunk(3))
            else:
                weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
            biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
            inputs = (query, key, value)
            parts = [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        return [
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts
        ]


def _joined_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor
) -> Tensor | None:
    """Both masks as one that is added to the scores (B, heads, T, S)."""
    found: Tensor | None = None
    for mask, padding in ((attn_mask, False), (key_padding_mask, True)):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(
                mask, float("-inf")
            )
        if padding:
            mask = mask[:, None, None, :]
        elif mask.dim() == 3:
            mask = mask.unflatten(0, (len(like), -1))
        found = mask if found is None else found + mask
    return found
