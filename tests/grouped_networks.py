"""A network whose channels and heads cross layers, its groups written by hand, and the formula."""

import math

import torch
from torch import Tensor, nn

from spr_or.pruning.groups import EntityGroup, Member

CHANNELS, HIDDEN, HEADS, WIDTH = 4, 5, 2, 3


class Streams(nn.Module):
    """A residual stream of channels into which two convolutions write, and attention behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.narrow = nn.Conv2d(CHANNELS, HIDDEN, 1)
        self.widen = nn.Conv2d(HIDDEN, CHANNELS, 1, bias=False)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.embed = nn.Linear(CHANNELS * 4, 7)
        self.qkv = nn.Linear(7, 3 * HEADS * WIDTH)
        self.project = nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.depthwise(x + self.widen(torch.relu(self.narrow(x))))
        x = self.embed(x.flatten(1)).unsqueeze(1)
        q, k, v = self.qkv(x).view(len(x), -1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.project(x.transpose(1, 2).flatten(2)).squeeze(1)


def streams(dtype: torch.dtype = torch.float64) -> Streams:
    """The network with weights whose sizes differ by layer and by entity, so that all regimes occur."""
    torch.manual_seed(4)
    net = Streams().to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            scale = (0.02, 0.3, 1.0)[i % 3] * torch.logspace(-2, 0.5, len(parameter))
            parameter.normal_().mul_(scale.view(-1, *[1] * (parameter.dim() - 1)).to(dtype))
    return net


def one_each(count: int) -> Tensor:
    return torch.arange(count).unsqueeze(1)


def stream_group() -> EntityGroup:
    """The channels of the residual stream, with the columns that read them."""
    rows = one_each(CHANNELS)
    names = ("stem.weight", "stem.bias", "norm.weight", "norm.bias", "widen.weight",
             "depthwise.weight", "depthwise.bias")  # fmt: skip
    columns = Member("embed.weight", 1, torch.arange(CHANNELS * 4).view(CHANNELS, 4))
    members = (*(Member(name, 0, rows) for name in names), columns)
    return EntityGroup("stem", members, "channels")


def head_group() -> EntityGroup:
    """Attention heads: rows of q, k and v that do not lie beside each other, and the output's columns."""
    head = torch.arange(HEADS * WIDTH).view(HEADS, WIDTH)
    rows = torch.cat([head, head + HEADS * WIDTH, head + 2 * HEADS * WIDTH], dim=1)
    members = (Member("qkv.weight", 0, rows), Member("qkv.bias", 0, rows),
               Member("project.weight", 1, head))  # fmt: skip
    return EntityGroup("qkv", members, "heads")


def some_rows_group() -> EntityGroup:
    """Two of the filters of one layer, in the other order; its other filters are in no entity."""
    index = torch.tensor([[3], [1]])
    members = (Member("narrow.weight", 0, index), Member("narrow.bias", 0, index))
    return EntityGroup("narrow", members)


def all_groups() -> list[EntityGroup]:
    return [stream_group(), head_group(), some_rows_group()]


def entity_weights(tensors: dict[str, Tensor], group: EntityGroup, i: int) -> dict[str, Tensor]:
    """The weights of one entity in each layer that it crosses, flat: gathered slice by slice."""
    found: dict[str, list[Tensor]] = {}
    for member in group.members:
        tensor = tensors[member.parameter]
        for j in member.index[i].tolist():
            layer = member.parameter.rpartition(".")[0]
            found.setdefault(layer, []).append(tensor.select(member.dim, j).reshape(-1))
    return {layer: torch.cat(pieces) for layer, pieces in found.items()}


def written_out(weights: dict[str, Tensor], M: dict[str, float], alpha: float) -> Tensor:
    """z of one entity, min over y of alpha ||w||^2 / y + (1 - alpha) y with |w_j| <= M_layer y <= M_layer.

    Autograd of it is the gradient: `amax` shares that of a maximum equally among the ties.
    """
    whole = torch.cat(list(weights.values()))
    against = torch.cat([w.abs() / M[layer] for layer, w in weights.items()])
    norm, b = torch.linalg.vector_norm(whole), against.amax()
    c = norm * math.sqrt(alpha / (1 - alpha))
    if b <= c <= 1:
        return 2 * math.sqrt(alpha * (1 - alpha)) * norm
    if c < b <= 1:
        return alpha * norm**2 / b + (1 - alpha) * b
    return alpha * norm**2 + (1 - alpha) * whole.new_ones(())


def penalty(net: nn.Module, groups: list[EntityGroup], bounds: dict, lam: float, alpha: float):
    """The regulariser with u_i = k_i / sum k, entity after entity; ``bounds`` as `SPR.bounds_from`'s."""
    tensors = dict(net.named_parameters())
    entities = [(g, i, entity_weights(tensors, g, i)) for g in groups for i in range(g.count)]
    total = sum(w.numel() for _, _, weights in entities for w in weights.values())
    value = torch.zeros((), dtype=torch.float64)
    for group, i, weights in entities:
        size = sum(w.numel() for w in weights.values())
        M = bound_of_layers(bounds[group.name], list(weights), i)
        value = value + lam * size / total * written_out(weights, M, alpha)
    return value


def bound_of_layers(bound: Tensor, layers: list[str], i: int) -> dict[str, float]:
    """M of entity i in each layer, from a number, (N,), (1, L) or (N, L)."""
    bound = torch.as_tensor(bound)
    if bound.dim() == 2:
        return dict(zip(layers, bound[i % len(bound)].tolist(), strict=True))
    return dict.fromkeys(layers, float(bound if bound.dim() == 0 else bound[i]))
