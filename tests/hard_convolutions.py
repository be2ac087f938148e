"""Hard networks: convolutions in groups, transposed, padded in other ways, and what stands between."""

import torch
import torch.nn.functional as F
from network_cases import Case, chain, collector, image, signal
from torch import Tensor, nn

CASES: list[Case] = []
case = collector(CASES)


@case("depthwise separable block", image)
class DepthwiseSeparable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 20, 1, bias=False)
        self.wide_norm = nn.BatchNorm2d(20)
        self.each = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
        self.each_norm = nn.BatchNorm2d(20)
        self.narrow = nn.Conv2d(20, 10, 1, bias=False)
        self.narrow_norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.wide_norm(self.wide(x)))
        x = F.relu6(self.each_norm(self.each(x)))
        return self.head(self.narrow_norm(self.narrow(x)).mean((2, 3)))


@case("depthwise convolution with a multiplier", image)
class DepthwiseMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.each = nn.Conv2d(6, 18, 3, groups=6)
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.each(torch.tanh(self.a(x)))))


@case("convolution in groups", image)
class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.a_norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 8, 3, groups=4)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a_norm(self.a(x))))))


@case("grouped convolution inside a residual block", image)
class GroupedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 12, 1)
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.b_norm = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.c(F.relu(self.b_norm(self.b(F.relu(self.a(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@case("transposed convolution in groups with output padding", image)
class TransposedGroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=4)
        self.up_norm = nn.BatchNorm2d(12)
        self.head = nn.ConvTranspose2d(12, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up_norm(self.up(F.leaky_relu(self.a(x))))))


@case("depthwise transposed convolution", image)
class TransposedDepthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8, bias=False)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(torch.sigmoid(self.a(x))))


@case("linear, view, transposed convolution", lambda n: torch.randn(n, 10))
class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(10, 12 * 3 * 3)
        self.up = nn.ConvTranspose2d(12, 6, 4, 2, 1)
        self.head = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = F.relu(self.lin(z)).view(-1, 12, 3, 3)
        return self.head(F.relu(self.up(z)))


@case("padding as a module", image)
def zero_padded() -> nn.Module:
    return chain(pad=nn.ZeroPad2d(1), a=nn.Conv2d(3, 8, 3), act=nn.ReLU(), head=nn.Conv2d(8, 4, 3))


@case("reflected, replicated and circular padding", image)
class OtherPaddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d((1, 2, 0, 1))
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.c = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.rep = nn.ReplicationPad2d(1)
        self.head = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(self.pad(x)))
        return self.head(self.rep(torch.sigmoid(self.c(torch.sigmoid(self.b(x))))))


@case("padding with a value behind a constant channel", image)
class ConstantPadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.pad = nn.ConstantPad2d((1, 1, 2, 0), 0.75)
        self.head = nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pad(torch.sigmoid(self.a(x))))


@case("padding of channels in front and behind, with a value", image)
class ChannelPadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 10, 3, padding=1)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.a(x))
        return self.head(F.pad(x, (0, 0, 0, 0, 1, 3), value=0.5) + self.b(x))


@case("cropping by negative padding of channels and positions", image)
class Cropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 9, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(self.a(x), (-1, -1, 0, 0, -2, -1)))


@case("pixel shuffle", image)
class PixelUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 20, 1)
        self.up = nn.PixelShuffle(2)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(F.relu(self.a(x))))


@case("pixel unshuffle and norm behind it", image)
class PixelDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.down = nn.PixelUnshuffle(2)
        self.mixed = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.b(F.relu(self.mixed(self.down(self.a(x)))))))


@case("channel shuffle between grouped convolutions", image)
class ChannelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(12, 12, 1, groups=3)
        self.c = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Conv2d(12, 3, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2)
        x = x.reshape(batch, channels, height, width)
        return self.head(F.relu(self.c(x)))


@case("channel shuffle as a module", image)
def shuffle_module() -> nn.Module:
    return chain(
        a=nn.Conv2d(3, 8, 1), shuffle=nn.ChannelShuffle(4), act=nn.Softplus(),
        head=nn.Conv2d(8, 4, 1),
    )  # fmt: skip


@case("skip connection over upsampling", image)
class SmallUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2)
        self.join = nn.Conv2d(16, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        deep = self.up(F.relu(self.deep(skip)))
        return self.head(F.relu(self.join(torch.cat([skip, deep], dim=1))))


@case("bilinear upsampling to the size of another tensor", image)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, stride=2)
        self.b = nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = torch.sigmoid(self.a(x))
        large = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(large + self.b(x))


@case("pooling with its own divisor, ceiling and borders", image)
class OddPools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.p = nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=9)
        self.b = nn.Conv2d(6, 6, 1)
        self.q = nn.AvgPool2d(2, 1, padding=1, count_include_pad=True)
        self.c = nn.Conv2d(6, 6, 1)
        self.r = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(torch.sigmoid(self.a(x)))
        x = self.q(torch.sigmoid(self.b(x)))
        return self.head(self.r(torch.sigmoid(self.c(x))))


@case("maximum pooling with indices, and back", image)
class PoolIndices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.back = nn.MaxUnpool2d(2)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        small, places = self.pool(torch.sigmoid(self.a(x)))
        return self.head(self.back(torch.sigmoid(self.b(small)), places))


@case("adaptive pools of several sizes beside each other", image)
class PyramidPools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6 * (1 + 4 + 9), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        pooled = [F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 2)]
        pooled.append(F.adaptive_avg_pool2d(x, (3, 3)))
        return self.head(torch.cat([p.flatten(1) for p in pooled], 1))


@case("dilated, strided and 'same' convolutions in one dimension", signal)
class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(4, 8, 3, padding="same", dilation=2)
        self.a_norm = nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 8, 4, stride=2, padding=2, groups=2)
        self.up = nn.ConvTranspose1d(8, 6, 3, dilation=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a_norm(self.a(x)))))
        return self.head(F.mish(self.up(x)).amax(-1))


@case("three dimensions", lambda n: torch.randn(n, 2, 4, 4, 4))
class ThreeDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(2, 6, 3, padding=1)
        self.a_norm = nn.BatchNorm3d(6)
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.max_pool3d(F.relu(self.a_norm(self.a(x))), 2))))


@case("memory format channels_last", lambda n: image(n).to(memory_format=torch.channels_last))
def channels_last() -> nn.Module:
    model = chain(
        a=nn.Conv2d(3, 8, 3, padding=1), a_norm=nn.BatchNorm2d(8), act=nn.ReLU(),
        b=nn.Conv2d(8, 8, 3), end=nn.SiLU(), head=nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


@case("squeeze and excitation", image)
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.a_norm = nn.BatchNorm2d(10)
        self.reduce = nn.Conv2d(10, 4, 1)
        self.expand = nn.Conv2d(4, 10, 1)
        self.head = nn.Conv2d(10, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a_norm(self.a(x)))
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.head(F.hardsigmoid(gate) * x)


@case("squeeze and excitation with linear layers and views", image)
class SqueezeExciteLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3, padding=1)
        self.reduce = nn.Linear(10, 3)
        self.expand = nn.Linear(3, 10)
        self.head = nn.Conv2d(10, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        batch, channels = x.shape[:2]
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return self.head(x * gate.view(batch, channels, 1, 1).expand_as(x))


@case("efficient channel attention: a convolution over the channels", image)
class ChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.over = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = self.over(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
        return self.head(x * torch.sigmoid(gate.transpose(-1, -2).unsqueeze(-1)))


@case("gate of one channel", image)
class OneChannelGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(3, 1, 1)
        self.body = nn.Conv2d(3, 12, 1)
        self.head = nn.Conv2d(12, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.gate(x)) * self.body(x))


@case("spatial attention from mean and maximum over channels", image)
class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.look = nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return self.head(x * torch.sigmoid(self.look(summary)))


@case("batch norm behind an activation and a pool", image)
class NormBehindPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.a_norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a_norm(F.max_pool2d(F.relu(self.a(x)), 2)))


@case("large kernels, scale of each channel, permuted linear layers", image)
class ConvNeXtLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.each_norm = nn.LayerNorm(8, eps=1e-6)
        self.wide = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.each_norm(self.each(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))
