"""What was refused once and computes the same now; and what is still refused, by name."""

import random

import pytest
import torch
import torch.nn.functional as F
from compaction_networks import difference
from slow_cases import slow_unless
from torch import nn

from spr_or.pruning.compaction.api import CompactionError, compact
from spr_or.pruning.masks import apply_masks_

KEEP = torch.tensor([True, False, True, False])


class Lambda(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        self.conv = nn.Conv2d(4, 4, 1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def followed(m, x):
    """A view of what others read is overwritten."""
    y = m.conv(x)
    return torch.flatten(m.r(y[:, :, ::2]), 1) + torch.flatten(y[:, :, ::2], 1)


def halves(m, x):
    """Two views of one tensor are overwritten, and the tensor is read after that."""
    y = m.conv(x) + 1
    left, right = y.chunk(2, -1)
    left.mul_(2)
    right.relu_()
    return y


# name: forward, modules, parameters that are left of those of the convolution (10 of 20: half).
CASES = {
    "groups": (lambda m, x: m.g(m.conv(x)), {"g": nn.Conv2d(4, 4, 1, groups=4)}, 10),
    "norm of everything": (lambda m, x: m.n(m.conv(x)), {"n": nn.LayerNorm([4, 5, 5])}, 10),
    "norm of groups": (lambda m, x: m.n(m.conv(x)), {"n": nn.GroupNorm(2, 4)}, 10),
    "transposed": (lambda m, x: m.t(m.conv(x)), {"t": nn.ConvTranspose2d(4, 4, 1)}, 10),
    "product": (lambda m, x: m.conv(x) * x, {}, 10),
    "concatenation": (lambda m, x: torch.cat([m.conv(x), x], 1), {}, 10),
    "called twice": (lambda m, x: m.conv(m.conv(x)), {}, 10),
    "broadcast addition": (lambda m, x: m.conv(x) + x[:, :, :1, :1], {}, 10),
    "slice of channels": (lambda m, x: m.conv(x)[:, :2], {}, 5),
    "alpha": (lambda m, x: torch.add(m.conv(x), x, alpha=2), {}, 10),
    "mean over channels": (lambda m, x: m.conv(x).mean(1), {}, 10),
    "transpose": (lambda m, x: m.conv(x).transpose(1, 2), {}, 10),
    "view": (lambda m, x: m.conv(x).view(x.size(0), 2, -1), {}, 10),
    "size in a sum": (lambda m, x: m.conv(x) + x.size(0), {}, 10),
    "padding with threes": (lambda m, x: F.pad(m.conv(x), (1, 1), value=3.0), {}, 10),
    "statistics of the batch": (
        lambda m, x: m.b(m.conv(x)), {"b": nn.BatchNorm2d(4, track_running_stats=False)}, 10,
    ),
    "two outputs": (lambda m, x: (m.conv(x), x), {}, 10),
    "largest of channels": (lambda m, x: m.conv(x).max(1), {}, 10),
    "linear in space": (lambda m, x: m.l(m.conv(x)), {"l": nn.Linear(5, 5)}, 10),
    "overwritten input": (
        lambda m, x: m.r(m.conv(x) + x) + x.clone().mul_(2), {"r": nn.ReLU(inplace=True)}, 10,
    ),
    "overwritten view": (followed, {"r": nn.ReLU(inplace=True)}, 10),
    "overwritten halves": (halves, {}, 10),
    "unknown operator": (lambda m, x: torch.fft.fft2(m.conv(x)).abs(), {}, 10),
    "unknown operator of channels": (lambda m, x: torch.logcumsumexp(m.conv(x), 1), {}, 10),
    "sorted channels": (lambda m, x: m.conv(x).sort(1).values, {}, 10),
    "value as a number": (lambda m, x: m.conv(x) * x.sum().item(), {}, 10),
}  # fmt: skip
QUICK = ("called twice", "overwritten view", "unknown operator", "two outputs", "groups")


@pytest.mark.parametrize("name", slow_unless(lambda name: name in QUICK, CASES))
def test_nothing_of_this_stops_compaction(name):
    forward, modules, left = CASES[name]
    torch.manual_seed(3)
    model = Lambda(forward, **modules).double().eval()
    masks = {"conv": KEEP}
    small = compact(model, masks, torch.zeros(1, 4, 5, 5))
    kept = sum(p.numel() for n, p in small.named_parameters() if n.startswith("conv."))
    assert kept == left
    apply_masks_(model, masks, torch.zeros(2, 4, 5, 5))
    x = torch.randn(3, 4, 5, 5).double()
    with torch.no_grad():
        want, have = model(x.clone()), small(x.clone())
    if isinstance(want, torch.Tensor):
        want, have = (want,), (have,)
    for a, b in zip(want, have, strict=True):
        assert difference(a, b) < 1e-12


def test_two_inputs_by_position_and_by_name():
    model = Lambda(lambda m, image, label: m.conv(image) + label).eval()
    apply_masks_(model, {"conv": KEEP})
    image, label = torch.randn(3, 4, 5, 5), torch.randn(3, 1, 1, 1)
    example = (torch.zeros(2, 4, 5, 5), torch.zeros(2, 1, 1, 1))

    class Named(Lambda):
        def forward(self, image, label):
            return self.function(self, image, label)

    named = Named(model.function, conv=model.conv).eval()
    with torch.no_grad():
        want = model(image, label)
        for small in (
            compact(model, {}, example),
            compact(named, {}, dict(zip(("image", "label"), example, strict=True))),
        ):
            assert difference(want, small(image, label)) < 1e-6
            assert small.conv.out_channels == 2


def test_an_example_that_the_forward_does_not_take_is_named():
    with pytest.raises(CompactionError, match=r"does not take inputs of shapes.*\(2, 3, 5, 5\)"):
        compact(Lambda(lambda m, x: m.conv(x)), {}, torch.zeros(1, 3, 5, 5))
    with pytest.raises(CompactionError, match="does not take inputs of shapes.*label"):
        compact(Lambda(lambda m, image, label: m.conv(image)), {}, torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x) if x.sum() > 0 else x,
        lambda m, x: m.conv(x)[x.sum() > 0],
    ],
)
def test_control_flow_on_values_is_refused_by_name(forward):
    with pytest.raises(CompactionError, match="Lambda cannot be traced.*the values of tensors"):
        compact(Lambda(forward), {}, torch.zeros(1, 4, 5, 5))


def test_a_network_that_writes_into_its_buffers_is_refused_by_name():
    def forward(m, x):
        m.calls.add_(1)
        return m.conv(x)

    model = Lambda(forward)
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(CompactionError, match="writes into buffer 'calls'"):
        compact(model, {}, torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize(
    "forward", [lambda m, x: F.dropout(m.conv(x)), lambda m, x: m.conv(x) + torch.rand_like(x)]
)
def test_a_network_that_draws_numbers_is_refused_by_operator(forward):
    with pytest.raises(CompactionError, match="draws random numbers in evaluation mode at .*py:"):
        compact(Lambda(forward), {"conv": KEEP}, torch.zeros(1, 4, 5, 5))


def test_a_network_that_differs_from_itself_is_refused_as_such():
    """Numbers drawn by Python leave no operator."""
    with pytest.raises(CompactionError, match="Lambda gives other outputs each time.*random"):
        compact(Lambda(lambda m, x: m.conv(x) * random.random()), {}, torch.zeros(1, 4, 5, 5))


def test_outputs_that_differ_are_refused(monkeypatch):
    """The last guard: whatever was built wrong is not returned."""
    import spr_or.pruning.compaction.api as api

    built = api.rewrite

    def wrong(plan):
        small = built(plan)
        with torch.no_grad():
            small.conv.weight.mul_(1.5)
        return small

    monkeypatch.setattr(api, "rewrite", wrong)
    with pytest.raises(CompactionError, match="is not returned: its outputs differ by 0[.]"):
        compact(Lambda(lambda m, x: m.conv(x)), {"conv": KEEP}, torch.zeros(1, 4, 5, 5))
