"""A case's network with masks applied as the product applies them."""

import torch
from masked_definition import Masks, built, inner, inputs_of
from network_cases import Case
from torch import nn

from spr_or.pruning.compaction.prepare import bake_weights_
from spr_or.pruning.masks import apply_masks_


def masked_case(case: Case, masks: Masks, dtype: torch.dtype) -> nn.Module:
    """The network inside wrappers, parametrizations baked, what is masked silent."""
    model = built(case, dtype)
    bake_weights_(inner(model))
    apply_masks_(model, masks, inputs_of(case, 2, dtype))
    return inner(model)
