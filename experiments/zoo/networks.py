"""The networks of the zoo: how each is built with random weights, and what it is given as input.

`LISTED` are the networks on which the compaction of November 2026 was judged, `FURTHER` fifteen more.
Nothing is downloaded. Image sizes are as small as a network allows, so that the zoo runs in minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from operators import declare_missing_operators
from preparation import Inputs
from torch import nn

declare_missing_operators()

import timm  # noqa: E402
import torchvision.models as tv  # noqa: E402
import transformers as hf  # noqa: E402
from own_networks import FeaturePyramid, RetinaBody, SsdliteBody, UNet  # noqa: E402
from torchvision.models import detection, segmentation  # noqa: E402


@dataclass(frozen=True)
class Network:
    """One network. ``inputs(batch)`` draws what its forward pass takes, positional or by keyword."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    size: str

    def identity(self, stage: str) -> dict[str, str]:
        """What a record of this network begins with."""
        group = "listed" if self in LISTED else "further"
        return {"name": self.name, "group": group, "size": self.size, "stage": stage}


def _images(name: str, build: Callable[[], nn.Module], size: int) -> Network:
    def inputs(batch: int) -> Inputs:
        return (torch.randn(batch, 3, size, size),)

    return Network(name, build, inputs, str(size))


def _tv(name: str, size: int = 64, **options: Any) -> Network:
    return _images(name, lambda: tv.get_model(name, weights=None, **options), size)


def _segmentation(name: str, size: int = 64) -> Network:
    def build() -> nn.Module:
        return segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=21)

    return _images(name, build, size)


def _timm(name: str, size: int = 64, **options: Any) -> Network:
    return _images(
        f"timm {name}", lambda: timm.create_model(name, pretrained=False, **options), size
    )


def _tokens(name: str, build: Callable[[], nn.Module], vocabulary: int, length: int) -> Network:
    def inputs(batch: int) -> Inputs:
        return {"input_ids": torch.randint(vocabulary, (batch, length))}

    return Network(name, build, inputs, f"{length} tokens")


def _bert() -> nn.Module:
    config = hf.BertConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        num_labels=10,
    )
    return hf.BertForSequenceClassification(config)


def _gpt_neox() -> nn.Module:
    config = hf.GPTNeoXConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        use_cache=False,
    )
    return hf.GPTNeoXForCausalLM(config)


def _llama() -> nn.Module:
    """Two query heads for each key and value head, gated MLP, and RMSNorm of torch.

    The RMSNorm of transformers computes in float32 whatever its input is, which would hide
    differences below 1e-7 in float64.
    """
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
        max_position_embeddings=64,
        use_cache=False,
    )
    model = hf.LlamaForCausalLM(config)
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            model.set_submodule(name, norm)
    return model


def _mobilenet_pyramid() -> nn.Module:
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, trainable_backbone_layers=6
    )
    return model.backbone


LISTED = (
    _tv("alexnet", 96),
    _tv("vgg11_bn"),
    _tv("resnet18"),
    _tv("resnet50"),
    _tv("wide_resnet50_2"),
    _timm("resnet18"),
    _timm("resnet26d"),
    _tv("resnext50_32x4d"),
    _tv("mobilenet_v2"),
    _tv("mnasnet0_5"),
    _tv("regnet_x_400mf"),
    _tv("mobilenet_v3_small"),
    _tv("mobilenet_v3_large"),
    _tv("regnet_y_400mf"),
    _tv("efficientnet_b0"),
    _tv("efficientnet_v2_s"),
    _tv("squeezenet1_1"),
    _tv("densenet121"),
    _tv("googlenet", aux_logits=False, init_weights=False),
    _tv("inception_v3", 96, aux_logits=False, init_weights=False),
    _timm("dla34"),
    _timm("darknet53"),
    _timm("repvgg_a0"),
    _timm("resnetv2_50"),
    _timm("efficientnet_lite0"),
    _timm("mobilenetv4_conv_small"),
    _timm("gernet_s"),
    _timm("cspresnet50"),
    _timm("skresnet18"),
    _segmentation("fcn_resnet50"),
    _segmentation("deeplabv3_resnet50"),
    _segmentation("lraspp_mobilenet_v3_large"),
    _timm("hrnet_w18_small"),
    _tv("convnext_tiny"),
    _timm("convnext_atto"),
    _tv("vit_b_16", 224),
    _tv("swin_t", 224),
    _tv("maxvit_t", 224),
    _timm("mixer_s32_224", 224),
    _timm("vit_tiny_patch16_224", 224),
    _timm("deit_tiny_patch16_224", 224),
    _timm("vgg11_bn"),
    _images("ssdlite320_mobilenet_v3_large, body and heads", SsdliteBody, 96),
    _tv("shufflenet_v2_x0_5"),
    _timm("ghostnet_100"),
    _timm("nf_resnet26"),
    _images("feature pyramid on resnet18", FeaturePyramid, 64),
)

FURTHER = (
    _tv("swin_v2_t", 256),
    _tv("shufflenet_v2_x1_0"),
    _segmentation("deeplabv3_mobilenet_v3_large"),
    _images("backbone of fasterrcnn_mobilenet_v3_large_320_fpn", _mobilenet_pyramid, 96),
    _images("retinanet_resnet50_fpn_v2, body and heads", RetinaBody, 96),
    _images("U-Net", UNet, 64),
    _timm("convnextv2_atto"),
    _timm("efficientformerv2_s0", 224),
    _timm("regnety_002"),
    _timm("res2net50_26w_4s"),
    _timm("mobilevit_xxs", 96),
    _timm("pvt_v2_b0", 96),
    _tokens("BERT, 4 layers", _bert, 1000, 32),
    _tokens("GPT-NeoX, 4 layers", _gpt_neox, 1000, 32),
    _tokens("Llama, 4 layers", _llama, 1000, 32),
)

ALL = {network.name: network for network in (*LISTED, *FURTHER)}
