"""Hard networks: norms of every kind, over removed features too, and activations with parameters."""

import torch
import torch.nn.functional as F
from network_cases import Case, chain, collector, features, image, signal, tokens
from torch import Tensor, nn

CASES: list[Case] = []
case = collector(CASES)


@case("layer norm over removed features", features)
def layer_norm() -> nn.Module:
    return chain(a=nn.Linear(6, 14), a_norm=nn.LayerNorm(14), act=nn.ReLU(), head=nn.Linear(14, 3))


@case("layer norm without scale and shift", features)
def layer_norm_plain() -> nn.Module:
    norm = nn.LayerNorm(14, elementwise_affine=False)
    return chain(a=nn.Linear(6, 14), unscaled=norm, act=nn.ReLU(), head=nn.Linear(14, 3))


@case("layer norm over channels and positions", image)
def layer_norm_image() -> nn.Module:
    norm = nn.LayerNorm([6, 6, 6])
    return chain(a=nn.Conv2d(3, 6, 3), whole=norm, act=nn.ReLU(), head=nn.Conv2d(6, 3, 3))


@case("layer norm over positions only", image)
def layer_norm_positions() -> nn.Module:
    norm = nn.LayerNorm([6, 6])
    return chain(a=nn.Conv2d(3, 6, 3), rows=norm, act=nn.Sigmoid(), head=nn.Conv2d(6, 3, 3))


@case("layer norm over a stream", tokens)
class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.ln1 = nn.LayerNorm(12)
        self.b = nn.Linear(12, 16)
        self.c = nn.Linear(16, 12)
        self.ln2 = nn.LayerNorm(12, bias=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + self.a(x.flip(1))
        x = x + self.c(F.gelu(self.b(self.ln1(x))))
        return self.head(self.ln2(x))


@case("group norm", image)
def group_norm() -> nn.Module:
    return chain(
        a=nn.Conv2d(3, 9, 3), a_norm=nn.GroupNorm(3, 9), act=nn.ReLU(), head=nn.Conv2d(9, 4, 3)
    )


@case("group norm of one group", image)
def group_norm_one() -> nn.Module:
    return chain(
        a=nn.Conv2d(3, 6, 3), a_norm=nn.GroupNorm(1, 6), act=nn.GELU(), head=nn.Conv2d(6, 4, 3)
    )


@case("group norm of as many groups as channels", image)
def group_norm_each() -> nn.Module:
    norm = nn.GroupNorm(6, 6, affine=False)
    return chain(a=nn.Conv2d(3, 6, 3), each=norm, act=nn.GELU(), head=nn.Conv2d(6, 4, 3))


@case("group norm over a concatenation", image)
class GroupNormCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(3, 7, 1)
        self.shared = nn.GroupNorm(4, 12)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(torch.cat([self.a(x), self.b(x)], 1))))


@case("instance norm with and without parameters", image)
def instance_norm() -> nn.Module:
    return chain(
        a=nn.Conv2d(3, 6, 3),
        a_norm=nn.InstanceNorm2d(6, affine=True),
        act=nn.LeakyReLU(),
        b=nn.Conv2d(6, 6, 1),
        plain=nn.InstanceNorm2d(6),
        head=nn.Conv2d(6, 3, 1),
    )


@case("instance norm with running statistics", image)
def instance_norm_running() -> nn.Module:
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return chain(a=nn.Conv2d(3, 6, 3), a_norm=norm, act=nn.ReLU(), head=nn.Conv2d(6, 3, 1))


@case("batch norm of one dimension on three", signal)
def batch_norm_signal() -> nn.Module:
    return chain(
        a=nn.Conv1d(4, 8, 3), a_norm=nn.BatchNorm1d(8), act=nn.ReLU(), head=nn.Conv1d(8, 3, 1)
    )


@case("batch norm of features, without parameters too", features)
def batch_norm_features() -> nn.Module:
    return chain(
        a=nn.Linear(6, 8, bias=False),
        a_norm=nn.BatchNorm1d(8),
        act=nn.ReLU(),
        b=nn.Linear(8, 8),
        b_norm=nn.BatchNorm1d(8, affine=False),
        head=nn.Linear(8, 3),
    )


@case("batch norm that uses the statistics of the batch", image)
def batch_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    return chain(a=nn.Conv2d(3, 8, 3), a_norm=norm, act=nn.ReLU(), head=nn.Conv2d(8, 3, 1))


@case("batch norm across processes, evaluated", image)
def sync_batch_norm() -> nn.Module:
    norm = nn.SyncBatchNorm(8)
    return chain(a=nn.Conv2d(3, 8, 3), a_norm=norm, act=nn.ReLU(), head=nn.Conv2d(8, 3, 1))


class NormAndAct(nn.BatchNorm2d):
    """As timm has it: a batch norm whose forward pass ends with an activation."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(super().forward(input))


@case("subclass of batch norm with an activation inside", image)
def norm_and_act() -> nn.Module:
    return chain(a=nn.Conv2d(3, 8, 3), a_norm=NormAndAct(8), head=nn.Conv2d(8, 3, 1))


class Norm2d(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@case("subclass of layer norm over the channels of images", image)
def layer_norm_2d() -> nn.Module:
    return chain(a=nn.Conv2d(3, 8, 3), a_norm=Norm2d(8), act=nn.ReLU(), head=nn.Conv2d(8, 3, 1))


class StandardisedConv(nn.Conv2d):
    """Convolution with weights of mean zero and variance one in each filter."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        weight = (self.weight - mean) / std
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


@case("convolution with standardised weights", image, wide=True)
def standardised() -> nn.Module:
    return chain(
        a=StandardisedConv(3, 8, 3), a_norm=nn.GroupNorm(2, 8), act=nn.ReLU(), b=nn.Conv2d(8, 6, 1),
        act2=nn.ReLU(), head=nn.Conv2d(6, 3, 1),
    )  # fmt: skip


class SamePadded(nn.Conv2d):
    """Convolution that computes its padding from the size of its input, as TensorFlow does."""

    def forward(self, input: Tensor) -> Tensor:
        size, (stride, _) = input.shape[-1], self.stride
        total = max((-(size // -stride) - 1) * stride + self.kernel_size[0] - size, 0)
        half = total // 2
        return super().forward(F.pad(input, (half, total - half, half, total - half)))


@case("convolution that pads by the size of its input", image)
def same_padded() -> nn.Module:
    return chain(
        a=SamePadded(3, 8, 3, 2), a_norm=nn.BatchNorm2d(8), b=SamePadded(8, 6, 5, 2),
        act=nn.ReLU(), head=nn.Conv2d(6, 3, 1),
    )  # fmt: skip


@case("root mean square norm", tokens)
class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.a_norm = nn.RMSNorm(12)
        self.b = nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.b(self.a_norm(self.a(x)))))


class OwnRms(nn.Module):
    """Root mean square norm, written out as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x * scale).type_as(x) * self.weight


@case("root mean square norm, written out", tokens)
class OwnRmsBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.own = OwnRms(12)
        self.b = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x + self.b(self.own(x)))


@case("one PReLU slope, and one for each channel", image)
class PReLUs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.PReLU()
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.each = nn.PReLU(8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.a(x))
        return self.head(self.each(x + self.b(x)))


@case("PReLU on features", features)
def prelu_features() -> nn.Module:
    return chain(a=nn.Linear(6, 9), each=nn.PReLU(9), head=nn.Linear(9, 3))


@case("local response norm and channels dropped", image)
def response_norm() -> nn.Module:
    return chain(
        a=nn.Conv2d(3, 8, 3), drop=nn.Dropout2d(0.3), mixed=nn.LocalResponseNorm(3),
        b=nn.Conv2d(8, 6, 1), alpha=nn.AlphaDropout(0.2), head=nn.Conv2d(6, 3, 1),
    )  # fmt: skip


@case("global response norm", image)
class GlobalResponse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, 8))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x)).permute(0, 2, 3, 1)
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return self.head(self.gamma * (x * share) + self.beta + x).mean((1, 2))
