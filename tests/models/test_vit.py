"""Vision transformers: published sizes, timm's names, what attention computes."""

import pytest
import torch
import torch.nn.functional as F

from models.vit import Attention, Block, VisionTransformer, vit_tiny, vit_tiny_digits
from spr_or.pruning.counts import count_parameters


def test_parameters_are_timms():
    assert count_parameters(vit_tiny()) == 5_717_416
    assert count_parameters(vit_tiny(10)) == 5_717_416 - 990 * (192 + 1)


def test_names_are_timms():
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    inside = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for block in range(12):
        names += [f"blocks.{block}.{m}.{key}" for m in inside for key in ("weight", "bias")]
    names += [f"{m}.{key}" for m in ("norm", "head") for key in ("weight", "bias")]
    assert list(vit_tiny().state_dict()) == names


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    layer = Attention(12, heads=3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(12, dim=2)
    heads = []
    for h in range(3):
        of = slice(4 * h, 4 * h + 4)
        weights = F.softmax(q[..., of] @ k[..., of].transpose(1, 2) / 2, dim=-1)
        heads.append(weights @ v[..., of])
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, dim=2)))


def test_a_block_normalises_in_front_of_its_branches():
    """So whatever is common to all features of a token passes, and changes no branch."""
    torch.manual_seed(0)
    block = Block(12, heads=3, hidden=24).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    shift = torch.randn(2, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(block(x + shift), block(x) + shift)


def test_only_the_positions_tell_patches_apart():
    torch.manual_seed(0)
    model = vit_tiny_digits().double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    swapped = x.clone()
    swapped[..., :2, :2], swapped[..., 4:6, 2:4] = x[..., 4:6, 2:4], x[..., :2, :2]
    assert (model(x) - model(swapped)).abs().max() > 1e-3
    with torch.no_grad():
        model.pos_embed[:, 1:] = model.pos_embed[:, 1:2]
    torch.testing.assert_close(model(x), model(swapped))


@pytest.mark.parametrize(("patch", "heads"), [(3, 4), (2, 5)])
def test_sizes_that_do_not_divide_are_refused(patch, heads):
    with pytest.raises(ValueError, match=f"not {patch} and 8, {heads} and 48"):
        VisionTransformer(8, patch, 48, 1, heads, 10)


def test_the_small_one_takes_digits_and_can_be_exported():
    model = vit_tiny_digits().eval()
    x = torch.randn(3, 1, 8, 8)
    program = torch.export.export(model, (x,))
    assert model(x).shape == (3, 10)
    assert torch.equal(program.module()(x), model(x))
