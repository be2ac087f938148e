"""The original stays as it is, and the compact network learns, saves and moves like any other."""

import copy

import pytest
import torch
import torch.nn.functional as F
from compaction_networks import (
    difference,
    draw_masks,
    keep_first,
    randomise,
)

from models.resnet import resnet18
from models.toy import digits_resnet
from spr_or.pruning.compaction.api import (
    compact,
    load_compact,
    save_compact,
)
from spr_or.pruning.masks import apply_masks_


def test_the_original_is_not_touched():
    model = randomise(resnet18(10, stem="cifar")).train()
    before = copy.deepcopy(model.state_dict())
    compact(model, draw_masks(model, "50%"), torch.zeros(1, 3, 8, 8))
    assert model.training and model.relu.inplace
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_compact_network_learns_and_can_be_saved_then(tmp_path):
    model = randomise(digits_resnet())
    small = compact(model, draw_masks(model, "layers"), torch.zeros(1, 1, 8, 8)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_compact(tmp_path / "s.safetensors", small, "models.toy:digits_resnet")
    loaded = load_compact(tmp_path / "s.safetensors")
    assert torch.allclose(loaded(x), small.eval()(x), atol=1e-6)


def test_after_two_rounds_indices_refer_to_the_first_original(tmp_path):
    """Compact, one step of fine-tuning, compact again with other masks, save, load."""
    torch.manual_seed(0)
    model = randomise(digits_resnet()).double()
    first = torch.arange(16) % 3 != 0  # 1, 2, 4, 5, 7, 8, 10, 11, 13, 14
    once = compact(model, {"layer1.0.conv1": first}, torch.zeros(1, 1, 8, 8)).train()
    optimizer = torch.optim.SGD(once.parameters(), lr=0.01)
    once(torch.randn(8, 1, 8, 8).double()).square().mean().backward()
    optimizer.step()
    once.eval()
    second = torch.arange(10) % 2 == 0
    masks = {"layer1.0.conv1": second, "layer2.0.conv1": keep_first(32, 7)}
    twice = compact(once, masks, torch.zeros(1, 1, 8, 8))
    x = torch.randn(4, 1, 8, 8).double()
    masked = copy.deepcopy(once)
    apply_masks_(masked, masks)
    assert difference(masked(x), twice(x)) < 1e-12
    left = [1, 4, 7, 10, 13]
    kept = twice.meta["kept"]
    assert kept["layer1.0.conv1.weight"] == [left, None, None, None]
    assert kept["layer1.0.bn1.weight"] == [left] == kept["layer1.0.bn1.running_mean"]
    assert kept["layer1.0.conv2.weight"] == [None, left, None, None]
    assert kept["layer2.0.conv1.weight"] == [list(range(7)), None, None, None]
    assert once.meta["kept"]["layer1.0.conv1.weight"] == [
        first.nonzero().flatten().tolist(),
        *3 * [None],
    ]
    path = tmp_path / "twice.safetensors"
    save_compact(path, twice, "models.toy:digits_resnet")
    loaded = load_compact(path, "models.toy:digits_resnet")
    assert loaded.meta["kept"] == kept
    assert torch.equal(loaded(x), twice(x))
    # A third round, on what was loaded.
    thrice = compact(loaded, {"layer1.0.conv1": keep_first(5, 2)}, torch.zeros(1, 1, 8, 8))
    assert thrice.meta["kept"]["layer1.0.conv1.weight"] == [[1, 4], None, None, None]


def test_masked_and_compact_networks_have_the_same_gradients():
    """Kept parameters learn as they would have in the masked network."""
    model = randomise(digits_resnet()).double().eval()
    keep = keep_first(16, 5)
    small = compact(model, {"layer1.0.conv1": keep}, torch.zeros(1, 1, 8, 8))
    apply_masks_(model, {"layer1.0.conv1": keep})
    x = torch.randn(4, 1, 8, 8).double()
    for net in (model, small):
        net(x).square().sum().backward()
    ours = small.get_submodule("layer1.0.conv1").weight.grad
    theirs = model.layer1[0].conv1.weight.grad[keep]
    assert torch.allclose(ours, theirs, rtol=1e-10)


@pytest.mark.gpu
def test_a_network_on_a_gpu_stays_there():
    model = randomise(digits_resnet()).double().cuda().eval()
    masks = draw_masks(model, "layers")
    x = torch.randn(4, 1, 8, 8, device="cuda", dtype=torch.float64)
    small = compact(model, masks, torch.zeros(1, 1, 8, 8))
    assert {t.device.type for t in (*small.parameters(), *small.buffers())} == {"cuda"}
    apply_masks_(model, masks)
    assert difference(model(x), small(x)) < 1e-10
