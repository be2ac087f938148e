"""The table of operations that random networks are made of: each adds lines to a program."""

from collections.abc import Callable
from math import gcd

from graph_program import UNCLEAR, Program, Unfit, Value, joined

OPERATORS: list[Callable[[Program], object]] = []


def operator(
    weight: int = 1,
) -> Callable[[Callable[[Program], object]], Callable[[Program], object]]:
    """Enter a function into the table, `weight` times."""

    def register(function: Callable[[Program], object]) -> Callable[[Program], object]:
        OPERATORS.extend([function] * weight)
        return function

    return register


def divisor(p: Program, *numbers: int) -> int:
    common = gcd(*numbers)
    return p.one_of(*[d for d in range(1, common + 1) if common % d == 0])


# Layers.


def convolve(p: Program, x: Value, out: int, kernel: int = 1, **more: object) -> Value:
    """A convolution that leaves the positions as they are."""
    options = "".join(f", {name}={value!r}" for name, value in more.items())
    text = f"nn.Conv2d({x.channels}, {out}, {kernel}, padding={kernel // 2}{options})"
    return p.layer(x, text, x.with_channels(out))


def linear(p: Program, x: Value, out: int) -> Value:
    text = f"nn.Linear({x.shape[-1]}, {out}, bias={p.chance(0.8)})"
    return p.layer(x, text, (*x.shape[:-1], out))


def project(p: Program, x: Value, out: int) -> Value:
    """A layer to `out` channels, whatever the value is."""
    return convolve(p, x, out, p.one_of(1, 3)) if len(x.shape) == 3 else linear(p, x, out)


@operator(5)
def convolution(p: Program) -> None:
    x = p.pick(3)
    kernel, stride, padding = p.one_of(1, 2, 3), p.one_of(1, 1, 2), p.one_of(0, 0, 1)
    sides = [(side + 2 * padding - kernel) // stride + 1 for side in x.shape[1:]]
    if min(sides) < 1:
        raise Unfit
    out = p.one_of(2, 3, 4, 6, 8)
    mode = p.one_of("zeros", "zeros", "circular", "replicate")
    text = (
        f"nn.Conv2d({x.channels}, {out}, {kernel}, {stride}, {padding}, "
        f"groups={divisor(p, x.channels, out)}, bias={p.chance(0.7)}, padding_mode={mode!r})"
    )
    p.layer(x, text, (out, *sides))


@operator(2)
def depthwise(p: Program) -> None:
    x = p.pick(3)
    out = x.channels * p.one_of(1, 1, 2)
    convolve(p, x, out, p.one_of(1, 3), groups=x.channels, bias=p.chance(0.5))


@operator(2)
def transposed(p: Program) -> None:
    x = p.pick(3, lambda v: max(v.shape[1:]) <= 6)
    out, kernel, stride, padding = p.one_of(2, 4, 6), p.one_of(2, 3), p.one_of(1, 2), p.one_of(0, 1)
    more = p.one_of(0, 1) if stride == 2 else 0
    sides = [(side - 1) * stride - 2 * padding + kernel + more for side in x.shape[1:]]
    if min(sides) < 1:
        raise Unfit
    text = (
        f"nn.ConvTranspose2d({x.channels}, {out}, {kernel}, {stride}, {padding}, {more}, "
        f"groups={divisor(p, x.channels, out)}, bias={p.chance(0.7)})"
    )
    p.layer(x, text, (out, *sides))


@operator(5)
def dense(p: Program) -> None:
    x = p.pick(p.one_of(1, 2))
    linear(p, x, p.one_of(2, 3, 5, 8))


@operator()
def again(p: Program) -> None:
    """A layer that was called before, on another value of the same shape."""
    if not p.layers:
        raise Unfit
    name = p.one_of(*p.layers)
    source, shape = p.layers[name]
    p.emit(f"self.{name}({p.partner(source).name})", shape, name)


@operator()
def over_tokens(p: Program) -> None:
    x = p.pick(2)
    turned = p.emit(f"{x.name}.transpose(1, 2)", (x.shape[1], x.shape[0]))
    out = linear(p, turned, p.one_of(3, 4))
    p.emit(f"{out.name}.mT", (out.shape[1], out.shape[0]))


@operator()
def permuted_linear(p: Program) -> None:
    x = p.pick(3)
    name, out = p.fresh("layer"), p.one_of(3, 4, 6)
    layer = p.member(name, f"nn.Linear({x.channels}, {out})")
    p.emit(f"{layer}({x.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", x.with_channels(out))


# Norms and activations.


@operator(4)
def norm(p: Program) -> None:
    clear = p.chance(0.8)
    x = p.pick(fits=lambda v: not clear or v.owner != UNCLEAR)
    c, affine = x.channels, p.chance(0.8)
    if len(x.shape) == 3:
        if x.shape[1:] == (1, 1):
            raise Unfit  # nothing that an instance norm could normalise
        text = p.one_of(
            f"nn.BatchNorm2d({c}, affine={affine})",
            f"nn.BatchNorm2d({c})",
            f"nn.GroupNorm({divisor(p, c)}, {c}, affine={affine})",
            f"nn.InstanceNorm2d({c}, affine={affine})",
        )
        if "InstanceNorm" in text and x.shape[1:] == (1, 1):
            raise Unfit  # torch refuses the statistics of one number
    elif len(x.shape) == 2:
        text = p.one_of(f"nn.LayerNorm({c})", f"nn.LayerNorm({c}, bias=False)", f"nn.RMSNorm({c})")
    else:
        text = p.one_of(f"nn.LayerNorm({c})", f"nn.BatchNorm1d({c})")
    p.norm(x, text)


@operator()
def norm_of_all(p: Program) -> None:
    x = p.pick(3, lambda v: v.owner is None or v.owner == UNCLEAR)
    norm = p.member(p.fresh("norm"), f"nn.LayerNorm({list(x.shape)})")
    p.emit(f"{norm}({x.name})", x.shape)


@operator(4)
def activation(p: Program) -> None:
    x = p.pick()
    name = p.one_of("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "hardswish", "softplus")
    p.emit(f"F.{name}({x.name})", x.shape)


@operator()
def prelu(p: Program) -> None:
    x = p.pick(fits=lambda v: len(v.shape) != 2)
    layer = p.member(p.fresh("prelu"), f"nn.PReLU({p.one_of(1, x.channels)}, init=0.3)")
    p.emit(f"{layer}({x.name})", x.shape)


# Streams that meet.


@operator(3)
def concatenation(p: Program) -> None:
    x = p.pick()
    others = [
        p.pick(fits=lambda v: v.with_channels(1) == x.with_channels(1))
        for _ in range(p.one_of(1, 2))
    ]
    parts = [x, *others]
    names = ", ".join(part.name for part in parts)
    axis = x.channel_axis
    axis = p.one_of(axis, axis - len(x.shape) - 1)
    total = sum(part.channels for part in parts)
    p.emit(f"torch.cat([{names}], {axis})", x.with_channels(total), joined(*parts))


@operator()
def concatenation_of_positions(p: Program) -> None:
    x = p.pick(fits=lambda v: len(v.shape) > 1)
    y = p.partner(x)
    axis = 1 if len(x.shape) == 2 else p.one_of(2, 3)
    shape = list(x.shape)
    shape[axis - 1] *= 2
    p.emit(f"torch.cat(({x.name}, {y.name}), dim={axis})", tuple(shape))


@operator(3)
def arithmetic(p: Program) -> None:
    x = p.pick()
    y = p.partner(x)
    text = p.one_of(
        "{x} + {y}", "{x} + {y}", "{x} * torch.tanh({y})", "{x} - 0.5 * {y}", "torch.maximum({x}, {y})",
        "torch.where({x} > 0.1, {x}, {y})", "torch.add({x}, {y}, alpha=0.3)", "torch.lerp({x}, {y}, 0.4)",
        "torch.stack([{x}, {y}], 1).sum(1)", "torch.stack([{x}, {y}], -1)[..., 1]",
    )  # fmt: skip
    p.emit(text.format(x=x.name, y=y.name), x.shape, joined(x, y))


@operator(3)
def residual(p: Program) -> None:
    x = p.pick()
    hidden = project(p, x, p.one_of(3, 4, 6))
    active = p.emit(f"F.relu({hidden.name})", hidden.shape)
    back = project(p, active, x.channels)
    p.emit(f"{x.name} + {back.name}", x.shape, joined(x, back))


@operator(2)
def gate(p: Program) -> None:
    x = p.pick(fits=lambda v: len(v.shape) > 1)
    one = project(p, x, 1)
    p.emit(f"{x.name} * torch.sigmoid({one.name})", x.shape)


@operator(2)
def squeeze(p: Program) -> None:
    x = p.pick(3)
    pooled = p.emit(f"{x.name}.mean((2, 3), keepdim=True)", (x.channels, 1, 1))
    hidden = convolve(p, pooled, 3)
    active = p.emit(f"F.relu({hidden.name})", hidden.shape)
    scale = convolve(p, active, x.channels)
    p.emit(f"torch.sigmoid({scale.name}) * {x.name}", x.shape)


@operator(2)
def gated(p: Program) -> None:
    x = p.pick()
    both = project(p, x, 2 * p.one_of(2, 3))
    half = both.with_channels(both.channels // 2)
    if p.chance(0.5):
        p.emit(f"F.glu({both.name}, {both.channel_axis})", half)
    else:
        left, right = p.fresh("v"), p.fresh("v")
        p.body.append(f"{left}, {right} = {both.name}.chunk(2, dim={both.channel_axis})")
        p.emit(f"F.silu({left}) * {right}", half)


@operator()
def outer(p: Program) -> None:
    x = p.pick(1, lambda v: v.channels <= 6)
    y = p.pick(1, lambda v: v.channels <= 6)
    p.emit(f"torch.einsum('bi,bj->bij', {x.name}, {y.name})", (x.channels, y.channels))


# Parts of streams, and streams in another order.


@operator(3)
def part(p: Program) -> None:
    x = p.pick(fits=lambda v: v.channels > 2)
    c, axis = x.channels, x.channel_axis
    start = p.draw.randrange(c - 1)
    length = p.draw.randrange(1, c - start)
    before = ":, " * axis
    step = p.one_of(2, 3)
    text, count = p.one_of(
        (f"{x.name}.narrow({axis}, {start}, {length})", length),
        (f"{x.name}[{before}{start}:{start + length}]", length),
        (f"{x.name}[{before}{start - c}:]", c - start),
        (f"{x.name}[{before}::{step}]", -(c // -step)),
        (f"{x.name}[{before}[{start}, {c - 1}, {start}]]", 3),
        (f"torch.split({x.name}, [{start + 1}, {c - start - 1}], {axis})[1] + 0.2", c - start - 1),
        (f"torch.flip({x.name}, [{axis}])", c),
        (f"torch.roll({x.name}, {step}, {axis})", c),
    )
    p.emit(text, x.with_channels(count))


@operator()
def one_channel(p: Program) -> None:
    x = p.pick()
    axis = x.channel_axis
    p.emit(f"{x.name}.select({axis}, -1).unsqueeze({axis})", x.with_channels(1))


@operator()
def channel_shuffle(p: Program) -> None:
    x = p.pick(3, lambda v: v.channels > 3)
    groups = divisor(p, x.channels)
    sizes = f"{groups}, {x.channels // groups}"
    p.emit(f"{x.name}.unflatten(1, ({sizes})).transpose(1, 2).reshape({x.name}.shape)", x.shape)


@operator()
def pixel_shuffle(p: Program) -> None:
    x = p.pick(3, lambda v: v.channels % 4 == 0 and max(v.shape[1:]) <= 6)
    c, h, w = x.shape
    p.emit(f"F.pixel_shuffle({x.name}, 2)", (c // 4, 2 * h, 2 * w))


@operator()
def pixel_unshuffle(p: Program) -> None:
    x = p.pick(3, lambda v: v.channels <= 6 and v.shape[1] % 2 == v.shape[2] % 2 == 0)
    c, h, w = x.shape
    p.emit(f"F.pixel_unshuffle({x.name}, 2)", (4 * c, h // 2, w // 2))


# Positions.


@operator(3)
def pooling(p: Program) -> None:
    x = p.pick(3, lambda v: min(v.shape[1:]) >= 3)
    _, h, w = x.shape
    c = x.channels
    text, sides = p.one_of(
        ("F.max_pool2d({x}, 2)", (h // 2, w // 2)),
        ("F.max_pool2d({x}, 3, 1, 1)", (h, w)),
        ("F.avg_pool2d({x}, 3, 1, 1)", (h, w)),
        ("F.avg_pool2d({x}, 3, 1, 1, count_include_pad=False)", (h, w)),
        ("F.avg_pool2d({x}, 2, 2, ceil_mode=True)", (-(h // -2), -(w // -2))),
        ("F.avg_pool2d({x}, 2, 1, divisor_override=3)", (h - 1, w - 1)),
        ("F.adaptive_avg_pool2d({x}, 2)", (2, 2)),
        ("F.adaptive_max_pool2d({x}, (2, 3))", (2, 3)),
        ("{x}[:, :, 1:, :-1]", (h - 1, w - 1)),
    )
    p.emit(text.format(x=x.name), (c, *sides))


@operator()
def upsampling(p: Program) -> None:
    x = p.pick(3, lambda v: max(v.shape[1:]) <= 6)
    c, h, w = x.shape
    mode = p.one_of("nearest", "bilinear")
    p.emit(f"F.interpolate({x.name}, scale_factor=2, mode={mode!r})", (c, 2 * h, 2 * w))


@operator(2)
def padding(p: Program) -> None:
    x = p.pick(3, lambda v: min(v.shape[1:]) >= 2)
    c, h, w = x.shape
    value = p.one_of(0.0, 0.0, 0.5)
    front = p.one_of(0, 1)
    text, shape = p.one_of(
        (f"F.pad({x.name}, (1, 0, 0, 1), value={value})", (c, h + 1, w + 1)),
        (f"F.pad({x.name}, (1, 1, 1, 1), mode='reflect')", (c, h + 2, w + 2)),
        (f"F.pad({x.name}, (0, 0, 0, 0, {front}, 2), value={value})", (c + front + 2, h, w)),
        (f"F.pad({x.name}, (0, -1, 0, 0, 0, 1))", (c + 1, h, w - 1)),
    )
    p.emit(text, shape)


# One shape into another.


@operator(2)
def to_features(p: Program) -> None:
    x = p.pick(fits=lambda v: len(v.shape) > 1)
    if len(x.shape) == 3:
        text, count = p.one_of(
            (f"{x.name}.mean((2, 3))", x.channels),
            (f"{x.name}.amax((-1, -2))", x.channels),
            (f"torch.flatten({x.name}, 1)", x.shape[0] * x.shape[1] * x.shape[2]),
            (f"F.adaptive_avg_pool2d({x.name}, 1).flatten(1)", x.channels),
        )
    else:
        text, count = p.one_of(
            (f"{x.name}.mean(1)", x.channels),
            (f"{x.name}[:, -1]", x.channels),
            (f"{x.name}.reshape({x.name}.shape[0], -1)", x.shape[0] * x.shape[1]),
            (f"{x.name}.mT.flatten(1)", x.shape[0] * x.shape[1]),
        )
    p.emit(text, (count,))


@operator(2)
def to_tokens(p: Program) -> None:
    x = p.pick(3)
    c, h, w = x.shape
    p.emit(f"{x.name}.flatten(2).transpose(1, 2)", (h * w, c))


@operator()
def to_image(p: Program) -> None:
    if p.chance(0.5):
        x = p.pick(1, lambda v: v.channels % 4 == 0)
        p.emit(f"{x.name}.view(-1, {x.channels // 4}, 2, 2)", (x.channels // 4, 2, 2))
    else:
        x = p.pick(2, lambda v: v.shape[0] % 2 == 0)
        t, c = x.shape
        p.emit(f"{x.name}.transpose(1, 2).unflatten(2, (2, {t // 2}))", (c, 2, t // 2))


@operator()
def features_to_tokens(p: Program) -> None:
    x = p.pick(1, lambda v: v.channels % 2 == 0)
    p.emit(f"{x.name}.reshape(-1, 2, {x.channels // 2})", (2, x.channels // 2))


@operator()
def other_tokens(p: Program) -> None:
    """The same numbers, in other rows."""
    x = p.pick(2)
    t, c = x.shape
    p.emit(f"{x.name}.reshape(-1, {c}, {t})", (c, t))


# Tokens.


@operator(3)
def attention(p: Program) -> None:
    x = p.pick(2, lambda v: v.shape[0] <= 20)
    t, c = x.shape
    heads, width = p.one_of(1, 2), p.one_of(2, 3)
    inside = heads * width
    if p.chance(0.5):
        qkv = linear(p, x, 3 * inside).name
        p.body.append(f"q, k, v = {qkv}.view(-1, {t}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4)")
    else:
        names = [linear(p, x, inside).name for _ in range(3)]
        split = ", ".join(f"{n}.unflatten(-1, ({heads}, {width})).transpose(1, 2)" for n in names)
        p.body.append(f"q, k, v = {split}")
    text = p.one_of(
        "F.scaled_dot_product_attention(q, k, v)",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "torch.softmax(q @ k.transpose(-2, -1) * 0.6, dim=-1) @ v",
        "torch.einsum('bhts,bhsd->bhtd', (q @ k.mT).softmax(-1), v)",
    )
    out = p.emit(f"({text}).transpose(1, 2).reshape(-1, {t}, {inside})", (t, inside))
    back = linear(p, out, c)
    p.emit(f"{x.name} + {back.name}", x.shape, joined(x, back))


@operator()
def class_token(p: Program) -> None:
    x = p.pick(2)
    t, c = x.shape
    token = p.parameter(1, 1, c)
    p.emit(f"torch.cat([{token}.expand({x.name}.shape[0], -1, -1), {x.name}], 1)", (t + 1, c))


# Numbers of the network, and operations over channels.


@operator(2)
def parameters(p: Program) -> None:
    x = p.pick()
    of_channels = (x.channels, 1, 1) if len(x.shape) == 3 else (x.channels,)
    text = p.one_of("{x} + {p}", "{x} * {p}", "{p} - {x}")
    shape = p.one_of(of_channels, of_channels, (1,), x.shape)
    p.emit(text.format(x=x.name, p=p.parameter(*shape)), x.shape)


@operator(2)
def over_channels(p: Program) -> None:
    x = p.pick(fits=lambda v: v.channels > 1)
    axis = x.channel_axis
    text = p.one_of(
        "torch.softmax({x}, {a})", "torch.cumsum({x}, {a})", "torch.sort({x}, {a})[0]",
        "{x} - {x}.mean({a}, keepdim=True)", "{x} + {x}.amax({a}, keepdim=True)",
        "F.normalize({x}, dim={a}, eps=0.5)", "{x} * {x}.std({a}, keepdim=True)",
    )  # fmt: skip
    p.emit(text.format(x=x.name, a=axis), x.shape)


@operator()
def reduced(p: Program) -> None:
    x = p.pick(fits=lambda v: v.channels > 1)
    text = p.one_of(
        "{x}.mean({a}, keepdim=True)", "{x}.sum({a}, True)", "torch.topk({x}, 1, {a})[0]"
    )
    p.emit(text.format(x=x.name, a=x.channel_axis), x.with_channels(1))


@operator()
def skip(p: Program) -> None:
    """A second name for the same memory."""
    x = p.pick(fits=lambda v: v.name not in {given.name for given in p.inputs})
    p.emit(x.name, x.shape, x.owner)


@operator(3)
def in_place(p: Program) -> None:
    x = p.pick(fits=lambda v: v.name not in {given.name for given in p.inputs})
    y = p.partner(x)
    before = ":, " * x.channel_axis
    line = p.one_of(
        f"{x.name} += {y.name}",
        f"{x.name}.mul_(0.5)",
        f"F.relu({x.name}, inplace=True)",
        f"{x.name}[{before}:1].tanh_()",
        f"{x.name}[{before}-1:] = 0.3",
        f"{x.name}[{before}:1] += {y.name}[{before}-1:]",
    )
    p.overwrite(line, x)
