"""Hard networks: attention in its many spellings, tokens, positions, embeddings."""

import math

import torch
import torch.nn.functional as F
from network_cases import Case, Example, chain, collector, features, image, tokens, words
from torch import Tensor, nn

CASES: list[Case] = []
case = collector(CASES)


@case("linear layers on three dimensions", tokens)
def token_mlp() -> nn.Module:
    return chain(a=nn.Linear(8, 14), act=nn.GELU(), head=nn.Linear(14, 8))


@case("linear layers on four dimensions", lambda n: torch.randn(n, 3, 4, 8))
class FourDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 10)
        self.b = nn.Linear(4, 6)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).swapaxes(-1, -2)
        return self.head(F.relu(self.b(x)).mT)


@case("mixer: layers over tokens and over channels", tokens)
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 10)
        self.a_norm = nn.LayerNorm(10)
        self.t1 = nn.Linear(5, 7)
        self.t2 = nn.Linear(7, 5)
        self.ln2 = nn.LayerNorm(10)
        self.c1 = nn.Linear(10, 12)
        self.c2 = nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.t2(F.gelu(self.t1(self.a_norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.c2(F.gelu(self.c1(self.ln2(x))))).mean(1))


@case("transposed matrix, flattened", tokens)
class TransposedFlat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.head = nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x)).mT.flatten(1))


@case("reshape that lets features change places with tokens", tokens)
class Scrambled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.b = nn.Linear(15, 6)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).reshape(x.shape[0], 4, 15)  # 5 x 12 = 4 x 15
        return self.head(self.b(x).view(x.size(0), -1))


@case("fused projection, attention block", tokens)
class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.back = nn.Linear(8, 8)
        self.f1 = nn.Linear(8, 14)
        self.f2 = nn.Linear(14, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.ln(x)).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.back(y)
        return self.head(x + self.f2(F.gelu(self.f1(x))))


@case("softmax attention, written out", tokens)
class WrittenOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 12)
        self.k = nn.Linear(8, 12)
        self.v = nn.Linear(8, 12)
        self.back = nn.Linear(12, 8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], 3, 4).transpose(-2, -3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        weights = self.drop((q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1))
        y = (weights @ v).transpose(1, 2).contiguous().view(x.shape[0], -1, 12)
        return self.head(x + self.back(y))


@case("attention by einsum, with a bias of positions", tokens)
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.bias = nn.Parameter(torch.randn(2, 5, 5))
        self.back = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)) for t in self.qkv(x).split(8, dim=-1))
        scores = torch.einsum("bthd,bshd->bhts", q * 4**-0.5, k) + self.bias
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        return self.head(self.back(y.flatten(-2)))


@case("attention by batched matrix products", tokens)
class BmmAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 6)
        self.k = nn.Linear(8, 6)
        self.v = nn.Linear(8, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        mask = torch.zeros(x.shape[0], 5, 5, dtype=x.dtype)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), beta=0.5, alpha=0.4)
        return self.head(torch.bmm(torch.softmax(scores, -1), self.v(x)))


@case("attention that looks back only", tokens)
class CausalAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.back = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.view(t.shape[0], 5, 4, 2).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        return self.head(x + self.back(y.transpose(1, 2).flatten(2)))


@case("causal mask from a buffer, written out", tokens)
class MaskedFillAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.tril = nn.Buffer(torch.tril(torch.ones(7, 7, dtype=torch.bool)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = self.qkv(x).tensor_split(3, dim=-1)
        scores = q @ k.mT / 8**0.5
        scores = scores.masked_fill(~self.tril[:length, :length], float("-inf"))
        return self.head(scores.softmax(-1) @ v)


def masked_tokens(batch: int) -> Example:
    keep = torch.rand(batch, 1, 5, 5) > 0.3
    keep[..., 0] = True
    return {"x": torch.randn(batch, 5, 8), "keep": keep}


@case("attention with a mask that is an input", masked_tokens)
class InputMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.kv = nn.Linear(8, 16)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.head(y.transpose(1, 2).flatten(-2))


@case("grouped queries, keys and values repeated", tokens)
class GroupedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 16, bias=False)
        self.k = nn.Linear(8, 8, bias=False)
        self.v = nn.Linear(8, 8, bias=False)
        self.back = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        ]
        k, v = (t.repeat_interleave(2, dim=1) for t in heads[1:])
        y = F.scaled_dot_product_attention(heads[0], k, v)
        return self.head(x + self.back(y.transpose(1, 2).flatten(2)))


@case("grouped queries, keys and values expanded, rotated positions", tokens)
class RotatedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 16, bias=False)
        self.kv = nn.Linear(8, 16, bias=False)
        angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.3]).repeat(2)
        self.cos = nn.Buffer(angle.cos())
        self.sin = nn.Buffer(angle.sin())
        self.head = nn.Linear(16, 3)

    def rotate(self, x: Tensor) -> Tensor:
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * self.cos + half * self.sin

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(batch, length, 4, 4).transpose(1, 2).split(2, 1)
        k, v = (
            t[:, :, None].expand(batch, 2, 2, length, 4).reshape(batch, 4, length, 4)
            for t in (k, v)
        )
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.head(y.transpose(1, 2).reshape(batch, length, 16))


@case("norms of queries and keys, a scale of each head", tokens)
class NormedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_ln = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.rand(2, 1, 1) + 0.5)
        self.back = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = F.normalize(self.q_ln(q), dim=-1) @ F.normalize(k + 1.0, dim=-1).mT * self.scale
        return self.head(self.back((weights.softmax(-1) @ v).transpose(1, 2).flatten(2)))


@case("linear attention", tokens)
class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 6)
        self.k = nn.Linear(8, 6)
        self.v = nn.Linear(8, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1
        return self.head(q @ (k.mT @ self.v(x)) / (q @ k.sum(1).unsqueeze(-1)))


@case("nn.MultiheadAttention, batch first", tokens, parameters=("attn.in_proj_weight",))
class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x + self.attn(x, x, x, need_weights=False)[0])


def query_and_memory(batch: int) -> Example:
    return torch.randn(4, batch, 8), torch.randn(6, batch, 6)


@case("nn.MultiheadAttention over another stream, with bias of keys", query_and_memory)
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(6, 6)
        self.attn = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, add_bias_kv=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(self.a(x), F.relu(self.b(memory)), self.b(memory))
        return self.head(y), weights


@case("nn.TransformerEncoderLayer", tokens)
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 14, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


@case("nn.TransformerDecoderLayer with a causal mask", lambda n: (tokens(n), tokens(n)))
class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 10, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.layer(x, memory, tgt_mask=mask, tgt_is_causal=True))


@case("vision transformer with a class token", image)
class SmallViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.pos = nn.Parameter(torch.randn(1, 5, 8))
        self.ln1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.back = nn.Linear(8, 8)
        self.ln2 = nn.LayerNorm(8)
        self.f1 = nn.Linear(8, 12)
        self.f2 = nn.Linear(12, 8)
        self.gamma = nn.Parameter(torch.rand(8))
        self.ln3 = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.pos
        batch, length, width = x.shape
        qkv = self.qkv(self.ln1(x)).reshape(batch, length, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.back(y.transpose(1, 2).reshape(batch, length, width))
        x = x + self.f2(F.gelu(self.f1(self.ln2(x)))) * self.gamma
        return self.head(self.ln3(x)[:, 0])


@case("attention inside windows, shifted", image)
class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 1)
        self.qkv = nn.Linear(8, 24)
        self.back = nn.Linear(8, 8)
        self.merge_ln = nn.LayerNorm(32)
        self.merge = nn.Linear(32, 12, bias=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        y = torch.roll(x, (-2, -2), (1, 2)).view(batch, height // 4, 4, width // 4, 4, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = y.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(batch, height, width, channels), (2, 2), (1, 2))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(self.merge_ln(torch.cat(parts, -1))).mean((1, 2)))


@case("attention over channels", image)
class CrossCovariance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.qkv = nn.Conv2d(8, 24, 1)
        self.heat = nn.Parameter(torch.ones(2, 1, 1))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(F.relu(self.a(x))).reshape(x.shape[0], 3, 2, 4, -1)
        q, k, v = qkv.unbind(dim=1)
        scores = F.normalize(q + 1, dim=-1) @ F.normalize(k + 1, dim=-1).transpose(-2, -1)
        y = (scores * self.heat).softmax(-1) @ v
        return self.head(y.reshape(x.shape[0], 8, *x.shape[2:]))


@case("words, positions, and the embedding again as output", words)
class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.places = nn.Embedding(6, 8)
        self.f1 = nn.Linear(8, 12)
        self.f2 = nn.Linear(12, 8)
        self.ln = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.ln(x + self.f2(F.gelu(self.f1(x)))))


@case("embeddings concatenated with numbers", lambda n: (words(n), features(n)))
class WordsAndNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4, padding_idx=0)
        self.a = nn.Linear(26, 9)
        self.head = nn.Linear(9, 2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(torch.cat([self.words(ids).flatten(1), x], -1))))
