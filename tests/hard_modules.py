"""Hard networks: layers called twice, weights shared, hooked, computed; unusual inputs and outputs."""

import torch
import torch.nn.functional as F
from network_cases import Case, Example, chain, collector, features, image, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

CASES: list[Case] = []
case = collector(CASES)


@case("one layer called twice", image)
class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 7, 3, padding=1)
        self.b = nn.Conv2d(7, 7, 3, padding=1)
        self.head = nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for _ in range(2):
            x = F.relu(self.b(x))
        return self.head(x)


@case("one layer on two inputs, compared", lambda n: (image(n), image(n)))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.a_norm = nn.BatchNorm2d(8)
        self.b = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def embed(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a_norm(self.a(x))).mean((2, 3)))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.embed(left) - self.embed(right)).abs())


@case("one head over features of several sizes", image)
class SharedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.tower = nn.Conv2d(6, 5, 3, padding=1)
        self.head_box = nn.Conv2d(5, 4, 1)
        self.head_class = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [F.relu(self.a(x))]
        levels.append(F.relu(self.b(levels[0])))
        towers = [F.relu(self.tower(level)) for level in levels]
        boxes = torch.cat([self.head_box(t).flatten(2).permute(0, 2, 1) for t in towers], 1)
        classes = torch.cat([self.head_class(t).flatten(2).permute(0, 2, 1) for t in towers], 1)
        return [boxes, classes.sigmoid()]


@case("one weight in two layers", features)
class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 8, bias=False)
        self.c = nn.Linear(8, 8, bias=False)
        self.c.weight = self.b.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


@case("weight used as a layer and transposed", features)
class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x)), self.a.weight.t(), self.shift)


@case("weights that are plain parameters", tokens, parameters=("w",))
class PlainParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(10, 8))
        self.v = nn.Parameter(torch.randn(10, 6))
        self.b = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.w)) @ self.v
        return self.head(F.relu(self.b(x)))


@case("low-rank addition to a layer", features)
class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 10)
        self.down = nn.Linear(6, 2, bias=False)
        self.up = nn.Linear(2, 10, bias=False)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x) + 0.5 * self.up(self.down(x))))


def small_chain() -> nn.Sequential:
    return chain(
        a=nn.Conv2d(3, 8, 3), act=nn.ReLU(), b=nn.Conv2d(8, 6, 3), end=nn.ELU(),
        head=nn.Conv2d(6, 3, 1),
    )  # fmt: skip


@case("weight norm as a parametrisation", image, wide=True)
def weight_normed() -> nn.Module:
    model = small_chain()
    parametrizations.weight_norm(model.a)
    return model


@case("weight norm as a hook", image, wide=True)
def weight_normed_by_hook() -> nn.Module:
    model = small_chain()
    torch.nn.utils.weight_norm(model.a)
    return model


@case("spectral norm as a parametrisation", image, wide=True)
def spectral_normed() -> nn.Module:
    model = small_chain()
    parametrizations.spectral_norm(model.b)
    return model


@case("spectral norm as a hook", image, wide=True)
def spectral_normed_by_hook() -> nn.Module:
    model = small_chain()
    torch.nn.utils.spectral_norm(model.b)
    return model


class Symmetric(nn.Module):
    """The upper triangle, mirrored."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


@case("parametrisation that mixes rows and columns", features, wide=True)
def symmetric() -> nn.Module:
    model = chain(
        a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 8), end=nn.GELU(), head=nn.Linear(8, 3)
    )
    parametrize.register_parametrization(model.a, "weight", Symmetric())
    return model


@case("pruned by torch.nn.utils.prune, weights and filters", image, wide=True)
def pruned_by_torch() -> nn.Module:
    model = small_chain()
    prune.random_unstructured(model.a, "weight", amount=0.3)
    prune.ln_structured(model.b, "weight", amount=2, n=2, dim=0)
    return model


@case("hook that changes the output of a layer", features)
def hooked() -> nn.Module:
    model = chain(a=nn.Linear(6, 8), act=nn.ReLU(), head=nn.Linear(8, 3))
    model.act.register_forward_hook(lambda module, inputs, output: output * 2 - 1)
    return model


@case("network that was compiled", image)
def compiled() -> nn.Module:
    return torch.compile(small_chain(), backend="eager")  # type: ignore[return-value]


@case("network in DataParallel", image)
def data_parallel() -> nn.Module:
    return nn.DataParallel(small_chain())


@case("part of a network in wrappers", image)
class WrappedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.body = torch.compile(nn.Conv2d(8, 8, 3), backend="eager")
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(F.relu(self.a(x)))))


@case("layers in dicts and lists", image)
class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleDict({"rgb": nn.Conv2d(3, 6, 1), "grey": nn.Conv2d(1, 6, 1)})
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(3)])
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(())) for _ in range(3)])
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stems["rgb"](x) + self.stems["grey"](x.mean(1, keepdim=True))
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + scale * F.relu(layer(x))
        return self.head(x)


@case("several inputs, one of them left out", lambda n: (image(n), torch.randn(n, 5)))
class OptionalInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.style = nn.Linear(5, 16)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        x = self.a(x) * (1 + scale) + shift
        return self.head(F.relu(x if noise is None else x + noise))


def named_inputs(batch: int) -> Example:
    return {"depth": torch.randn(batch, 1, 8, 8), "x": image(batch)}


@case("inputs by name, outputs in a nested structure", named_inputs)
class NamedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(1, 4, 3)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor, depth: Tensor, flip: bool = False) -> dict[str, object]:
        a, b = F.relu(self.a(x)), F.relu(self.b(depth))
        h = self.head(torch.cat([b, a] if flip else [a, b], 1))
        return {"out": h, "more": [h.mean((2, 3)), (h.amax(1), x)]}


@case("output of the middle", image)
class MiddleOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 7, 3)
        self.a_norm = nn.BatchNorm2d(7)
        self.b = nn.Conv2d(7, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = F.relu(self.a_norm(self.a(x)))
        return self.head(F.relu(self.b(middle)).mean((2, 3))), middle


@case("early exit and two heads", image)
class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.head_early = nn.Linear(8, 3)
        self.b = nn.Conv2d(8, 8, 3)
        self.head_late = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        return self.head_late(F.relu(self.b(x)).mean((2, 3))), self.head_early(x.mean((2, 3)))


@case("branches that are dropped in training", image)
class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)])
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = F.dropout2d(block(F.relu(x)), 0.2, training=self.training)
            if self.training:
                alive = torch.rand(y.shape[0], 1, 1, 1, device=y.device) < 0.8
                y = y * alive / 0.8
            x = x + y
        return self.head(self.drop(x.mean((2, 3))))


@case("control flow on shapes", image)
class ShapeBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x.unsqueeze(0)
        x = F.relu(self.a(x))
        while x.size(-1) > 3:
            x = F.max_pool2d(F.relu(self.b(x)), 2) if x.size(-1) % 2 == 0 else x[..., 1:, 1:]
        assert x.shape[1:] == (8, 3, 3), x.shape
        return self.head(x.reshape(len(x), -1))


@case("recurrent layer beside a convolution", lambda n: torch.randn(n, 4, 7))
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(4, 8, 3)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.b = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(F.relu(self.a(x)).transpose(1, 2))
        return self.head(F.relu(self.b(states[:, -1])))


@case("recurrent cell in a loop", tokens)
class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.gates = nn.Linear(11, 15)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 5)
        for step in F.relu(self.a(x)).unbind(1):
            gate, new, keep = self.gates(torch.cat([step, state], 1)).chunk(3, 1)
            state = gate.sigmoid() * new.tanh() + keep.sigmoid() * state
        return self.head(state)


@case("Fourier transform of channels and positions", image)
class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.filter = nn.Parameter(torch.randn(6, 6, 4, 2))
        self.b = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        waves = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        x = self.b(torch.fft.irfft2(waves, s=x.shape[-2:], norm="ortho"))
        return self.head(torch.fft.fft(x, dim=1).real)


class Straight(torch.autograd.Function):
    """Signs forwards, the gradient as it comes backwards."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@case("own autograd function", image)
class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Straight.apply(self.a(x)))  # type: ignore[no-untyped-call]


@case("casts to smaller types and back", image)
class Casts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = F.relu(self.a(x).bfloat16()).to(kind)
        return self.head(F.relu(self.b(x).half().float().to(kind)))


@case("activation in place on the input", image)
def overwrites_input() -> nn.Module:
    return chain(
        act=nn.ReLU(inplace=True), a=nn.Conv2d(3, 8, 3), end=nn.SiLU(inplace=True),
        head=nn.Conv2d(8, 3, 1),
    )  # fmt: skip


@case("coordinates as more channels", image)
class Coordinates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        batch, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, dtype=x.dtype).view(1, 1, -1, 1)
        columns = torch.arange(width, dtype=x.dtype) / width
        grid = [rows.expand(batch, 1, height, width), columns.expand(batch, 1, height, width)]
        return self.head(F.relu(self.b(torch.cat([x, *grid], 1))))


@case("layers that nothing reads, and a frozen one", image)
class Unread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.spare = nn.Conv2d(8, 8, 3)
        self.dead = nn.Conv2d(8, 4, 3)
        self.head = nn.Conv2d(8, 3, 1)
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        self.dead(x)
        return self.head(x)


@case("experts, weighted by a softmax", features)
class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.up = nn.ModuleList([nn.Linear(6, 7) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(7, 5) for _ in range(3)])
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        share = F.softmax(self.gate(x), dim=-1)
        results = [d(F.relu(u(x))) for u, d in zip(self.up, self.down, strict=True)]
        return self.head((torch.stack(results, dim=1) * share.unsqueeze(-1)).sum(dim=1))


@case("convolution whose kernel another layer computes", image)
class DynamicKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.kernel = nn.Linear(4, 4 * 9)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        batch, channels, height, width = x.shape
        kernel = self.kernel(x.mean((2, 3))).view(batch * channels, 1, 3, 3)
        y = F.conv2d(x.view(1, -1, height, width), kernel, padding=1, groups=batch * channels)
        return self.head(y.view(batch, channels, height, width))
