"""Hard networks: streams that are joined, cut, indexed, reordered and written into."""

import torch
import torch.nn.functional as F
from network_cases import Case, collector, features, image, tokens
from torch import Tensor, nn

CASES: list[Case] = []
case = collector(CASES)


@case("concatenation of a tensor with itself", image)
class CatWithItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 7, 3)
        self.a_norm = nn.BatchNorm2d(7)
        self.head = nn.Conv2d(14, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_norm(self.a(x)))
        return self.head(torch.cat([x, x], 1))


@case("concatenation of two linear branches", features)
class CatLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.b = nn.Linear(6, 5)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.a(x), self.b(x)], dim=-1)))


@case("concatenation of three widths and the input, one norm over all", image)
class CatThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 5, 3, padding=1)
        self.shared = nn.BatchNorm2d(18)
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b = F.relu(self.b(x))
        return self.head(F.relu(self.shared(torch.cat((self.a(x), b, self.c(b), x), 1))))


@case("dense block", image)
class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.last = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.head(F.relu(self.last(torch.cat(parts, 1))).mean((2, 3)))


@case("concatenation along positions", image)
class CatPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.sigmoid(self.a(x)), F.relu(self.b(x))], dim=-2))


@case("concatenation along the batch", features)
class CatBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 7)
        self.b = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.gelu(self.a(x)), self.b(x)], 0))


@case("uneven split", image)
class UnevenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 11, 1)
        self.b = nn.Conv2d(7, 7, 3, padding=1)
        self.head = nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.a(x), [4, 7], dim=1)
        return self.head(torch.cat([left, self.b(right)], 1))


@case("chunks, one of them unused, a remainder", image)
class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 11, 1)
        self.head = nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, _, last = self.a(x).relu().chunk(3, dim=-3)
        return self.head(torch.cat([last, first], 1))


@case("branches that split, go on and come together, again and again", image)
class CrossStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.a_norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 6, 3, padding=1)
        self.d = nn.Conv2d(24, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(F.silu(self.a_norm(self.a(x))).split((6, 6), 1))
        for layer in (self.b, self.c):
            parts.append(parts[-1] + F.silu(layer(parts[-1])))
        return self.head(F.relu(self.d(torch.cat(parts, 1))))


@case("slices with steps and from the end", image)
class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 3)
        self.head = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        return self.head(torch.cat([x[:, ::3], x[:, -3:], x[:, 1:-7]], 1)[:, :, 1:, :-1])


@case("narrow, index_select, flip and roll of channels", image)
class Reordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 8, 1)
        self.order = nn.Buffer(torch.tensor([5, 0, 0, 3]))
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x)).flip(1) + torch.roll(self.b(x), 3, dims=1)
        return self.head(torch.cat([a.narrow(1, 2, 4), a.index_select(1, self.order), a[:, 4:]], 1))


@case("fancy indices of channels", features)
class Fancy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 9)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x))[:, [8, 2, 2, 0, -3]])


@case("stack and unbind", image)
class StackUnbind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.tensor([0.4, 0.6]))
        self.c = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([F.relu(self.a(x)), torch.sigmoid(self.b(x))], dim=1)
        mixed = (both * self.weight.view(1, 2, 1, 1, 1)).sum(1)
        first, second = both.unbind(1)
        return self.head(F.relu(self.c(mixed)) + first - second)


@case("selected tokens and channels, by negative numbers", tokens)
class Selected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 10)
        self.b = nn.Linear(10, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(x.select(-1, -2)).unsqueeze(-1)
        return self.head((self.b(x) * gate)[:, -1] + self.b(x[..., 0, :]))


@case("stack of streams of one channel each", features)
class StackNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.a(x))
        return self.head(torch.stack((x[:, 0] * x[:, 3], x[:, 5], x.sum(1)), dim=-1))


@case("gated linear unit, as an operator", features)
class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 14)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.a(x)))


@case("gated linear unit over channels of images", image)
class GluImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.a_norm = nn.BatchNorm2d(12)
        self.glu = nn.GLU(dim=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.glu(self.a_norm(self.a(x))))


@case("gate from chunks of one projection", tokens)
class SwiGluPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(8, 20, bias=False)
        self.back = nn.Linear(10, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, dim=-1)
        return self.head(x + self.back(F.silu(gate) * value))


@case("gate from two projections", tokens)
class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 12, bias=False)
        self.value = nn.Linear(8, 12)
        self.back = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.back(F.silu(self.gate(x)) * self.value(x)))


@case("additions that write over what is read later", image)
class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        skip = h
        h += self.b(F.relu(h))
        return self.head(h + skip)


@case("activation in place on a view", image)
class ReluOnView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 9, 1)
        self.head = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, 2:6].relu_()
        h.view(h.shape[0], -1)[:, :64].mul_(0.5)
        return self.head(h)


@case("slices overwritten in place", image)
class SlicesWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.a(x))
        h[:, :3] = self.b(x)
        h[:, -1] = 0.25
        h[:, 4, ::2] *= 2
        return self.head(h)


@case("zero tensor filled piece by piece", image)
class FilledByPieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 10, *x.shape[2:])
        out[:, :5] = self.a(x)
        out[:, 6:] += self.b(x)
        return self.head(F.relu(out, inplace=True))


@case("partial convolution: some channels go on, others stay", image)
class PartialConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.part = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).clone()
        x[:, :3, :, :] = self.part(x[:, :3, :, :])
        return self.head(x)


@case("channels mixed with their neighbours in time", lambda n: torch.randn(n, 4, 3, 6, 6))
class TemporalShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, time = x.shape[:2]
        h = torch.sigmoid(self.a(x.flatten(0, 1))).unflatten(0, (batch, time))
        moved = torch.zeros_like(h)
        moved[:, :-1, :2] = h[:, 1:, :2]
        moved[:, 1:, 2:4] = h[:, :-1, 2:4]
        moved[:, :, 4:] = h[:, :, 4:]
        h = F.relu(self.b(moved.flatten(0, 1))).mean((2, 3))
        return self.head(h.view(batch, time, -1).mean(1))


@case("parameters of each channel, added and multiplied", image)
class ChannelParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))
        self.scale = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.b = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x) + self.shift) * self.scale
        return self.head(F.relu(self.b(x)))


@case("buffers, numbers and scalar parameters", image)
class Scalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.mean = nn.Buffer(torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.window = nn.Buffer(torch.rand(8, 8))
        self.each = nn.Buffer(torch.tensor([1.0, 0.0, 2.0, -1.0, 0.0, 1.0]).view(1, 6, 1, 1))
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a((x - self.mean) / 0.25)
        x = (2 - x) * self.factor + x**2 * self.each
        return self.head((1 + x) * self.window)


@case("where and masked_fill", image)
class Where(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        h = torch.where(a > b, a, 0.5 * b)
        return self.head(h.masked_fill(x[:, :1] > 0, -1.0).clamp(min=-2.0))


@case("mean, softmax, cumulative sum over channels", image)
class OverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = F.softmax(x, dim=1) + torch.cumsum(x, 1) * 0.1 - x.mean(1, keepdim=True)
        x = self.b(x)
        return self.head(F.normalize(x, dim=1) + x.std(1, keepdim=True))


@case("sorted and largest channels", features)
class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 9)
        self.b = nn.Linear(9, 9)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sort(F.tanh(self.a(x)), dim=-1)[0]
        return self.head(torch.topk(F.tanh(self.b(x)), 4, dim=1).values)


@case("maximum of two halves", image)
class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3)
        self.b = nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).tensor_split(2, dim=1)
        x = self.b(torch.maximum(left, right))
        return self.head(x.unflatten(1, (2, 4)).amax(2))


@case("outer product of two branches", image)
class Bilinear2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).flatten(2), F.relu(self.b(x)).flatten(2)
        return self.head(torch.einsum("bcp,bdp->bcd", a, b).flatten(1) / a.shape[-1])


@case("residual blocks around emptied branches", image)
class TwoBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 5, 3, padding=1)
        self.b = nn.Conv2d(5, 8, 3, padding=1)
        self.b_norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 12, 1, stride=2)
        self.c = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b_norm(self.b(F.relu(self.a(x)))))
        x = F.relu(self.project(x) + self.c(x))
        return self.head(torch.flatten(F.avg_pool2d(x, 4), 1))


@case("feature pyramid: four outputs in a dict", image)
class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 6, 3, 2, 1)
        self.c2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.inner1 = nn.Conv2d(6, 5, 1)
        self.inner2 = nn.Conv2d(8, 5, 1)
        self.head1 = nn.Conv2d(5, 4, 3, padding=1)
        self.head2 = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        p2 = self.inner2(c2)
        p1 = self.inner1(c1) + F.interpolate(p2, size=c1.shape[-2:], mode="nearest")
        return {"p1": self.head1(p1), "p2": self.head2(p2), "pool": F.max_pool2d(p2, 1, 2)}
