"""Vision transformers with timm's state-dict names, so its weights load.

Dosovitskiy et al., *An Image is Worth 16x16 Words* (ICLR 2021): patches as tokens, a class token,
learned positions, blocks with LayerNorm in front of attention and of the MLP. Tiny is the width of
Touvron et al., *Training data-efficient image transformers* (ICML 2021).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Images (B, C, H, W) as one token of ``width`` features for each patch, (B, T, width)."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over (B, T, width), queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between, on the last dimension."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Input (B, in_channels, size, size), output (B, num_classes) logits.

    The MLPs have ``mlp_ratio`` times ``width`` hidden units; ``position_std`` is the spread of the
    initial positions. Raises ValueError where ``patch`` does not divide ``size``, or ``heads``
    does not divide ``width``.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        in_channels: int = 3,
        mlp_ratio: int = 4,
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        if size % patch or width % heads:
            raise ValueError(
                f"patch must divide size and heads must divide width, not {patch} and {size}, "
                f"{heads} and {width}"
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.patch_embed = PatchEmbed(in_channels, width, patch)
        blocks = [Block(width, heads, mlp_ratio * width) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=position_std)
        _xavier_uniform_(self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        first = self.cls_token.expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def _xavier_uniform_(model: nn.Module) -> None:
    """Draw the weights of linear layers after Glorot and Bengio (2010), their biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def vit_tiny(num_classes: int = 1000) -> VisionTransformer:
    """ViT-Tiny for 224x224 colour images, patches of 16x16.

    >>> sum(p.numel() for p in vit_tiny().parameters())
    5717416
    """
    return VisionTransformer(224, 16, width=192, depth=12, heads=3, num_classes=num_classes)


def vit_tiny_digits(num_classes: int = 10, in_channels: int = 1) -> VisionTransformer:
    """Three blocks of width 48 for 8x8 grey images, 16 patches of 2x2.

    Input (B, in_channels, 8, 8), output (B, num_classes) logits. A patch of four pixels says little
    without its place, so positions start as large as patches: from 0.02 on, SGD needs far longer.

    >>> sum(p.numel() for p in vit_tiny_digits().parameters())
    58570
    """
    return VisionTransformer(
        8, 2, 48, 3, 4, num_classes, in_channels, mlp_ratio=2, position_std=0.5
    )
