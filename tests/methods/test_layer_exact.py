"""Layer-exact: whom it serves, and weights against least squares in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import CLASSES, SmallNet, cut_and_finish, small_data, small_net, small_task
from torch import Tensor, nn

from models.toy import digits_resnet
from spr_or.methods import layer_exact
from spr_or.methods.common.consumers import consumer_of
from spr_or.methods.pffec import l1_norms
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.network_groups import features


class Chain(nn.Module):
    """Convolutions behind each other: each but the last is read by one other."""

    def __init__(self, bias: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def test_the_reader_of_each_layer_is_found() -> None:
    torch.manual_seed(0)
    net = digits_resnet()
    found = features(net, torch.zeros(2, 1, 8, 8))
    readers = {layer.name: consumer_of(net, layer, found) for layer in layer_entities(net)}
    for name, consumer in readers.items():
        inner = name.startswith("layer") and name.endswith("conv1")
        assert (consumer is not None) == inner, name
        if consumer is not None:
            assert consumer.name == name.replace("conv1", "conv2")
            assert consumer.entity.tolist() == list(range(net.get_submodule(name).out_channels))


@pytest.mark.parametrize("bias, norm", [(False, True), (True, True), (True, False), (False, False)])
def test_the_weights_reproduce_the_output_best(bias: bool, norm: bool) -> None:
    torch.manual_seed(1)
    net = Chain(bias, norm)
    nn.init.normal_(net.bn1.bias)
    task = small_task(net, target_pct=60)
    plan = layer_exact.plan(task, layer_exact.Keys())
    masks = cut_and_finish(task, plan).masks
    assert 0 < int(masks["conv1"].sum()) < 6
    apply_masks_(net, {"conv1": masks["conv1"]})
    images = torch.cat([x for x, _ in small_data(0)])

    def output(model: nn.Module) -> Tensor:
        """What the ReLU behind the second convolution reads, a row for each position."""
        model.eval()
        with torch.no_grad():
            x = F.relu(model.bn1(model.conv1(images)))
            x = model.bn2(model.conv2(x))
            return x.movedim(1, -1).reshape(-1, 5)

    with torch.no_grad():
        inputs = F.relu(task.dense.eval().bn1(task.dense.conv1(images)))
    kept = inputs[:, masks["conv1"]]
    X = F.unfold(kept, 3, padding=1).mT.reshape(-1, kept.shape[1] * 9).double().numpy()
    if bias or norm:
        X = np.concatenate([X, np.ones((len(X), 1))], 1)
    Y = output(task.dense).double().numpy()
    nearest = X @ np.linalg.lstsq(X, Y, rcond=None)[0]
    found = output(net).double().numpy()
    least, ours = (((Y - x) ** 2).sum() for x in (nearest, found))
    assert (1 - 1e-6) * least <= ours < 1.1 * least  # fitted at a sample of the positions
    apply_masks_(task.dense, {"conv1": masks["conv1"]})  # without new weights
    assert ours < 0.95 * ((Y - output(task.dense).double().numpy()) ** 2).sum()


def test_layers_without_such_a_reader_go_by_magnitude() -> None:
    task = small_task(target_pct=50)
    plan = layer_exact.plan(task, layer_exact.Keys(seconds=2.0))
    scores, magnitudes = plan.scores(), l1_norms(task.layers)
    for name in ("conv2", "conv3"):  # of the residual stream
        assert torch.equal(scores[name], magnitudes[name])
    assert scores["conv1"].max() > 1
    before = task.model.conv2.weight.detach().clone()
    stream = task.model.conv3.weight.detach().clone()
    masks = cut_and_finish(task, plan).masks
    assert not torch.equal(task.model.conv2.weight, before)
    assert not task.model.conv2.weight[:, ~masks["conv1"]].any()
    assert torch.equal(task.model.conv3.weight, stream)


def test_channels_that_only_one_convolution_reads_are_served() -> None:
    task = small_task(entities="channels", target_pct=50)
    scores = layer_exact.plan(task, layer_exact.Keys(seconds=2.0)).scores()
    assert scores["conv1"].max() > 1
    assert torch.equal(scores["conv2"], l1_norms(task.layers)["conv2"])


def test_dead_layers_give_finite_scores() -> None:
    net = small_net()
    with torch.no_grad():
        net.bn1.weight.zero_()
        net.bn1.bias.fill_(-1.0)
    task = small_task(net)
    plan = layer_exact.plan(task, layer_exact.Keys())
    cut_and_finish(task, plan)
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_a_network_without_such_a_layer_is_refused() -> None:
    class OneStream(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Identity(), nn.Identity()
            self.conv2 = nn.Conv2d(1, 8, 3, padding=1, stride=2, bias=False)

    with pytest.raises(ValueError, match="none that reads only one layer's entities, among conv2"):
        layer_exact.plan(small_task(OneStream()), layer_exact.Keys())
