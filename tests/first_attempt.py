"""Compaction without its second chance.

`compact` tries again with less freedom where its first plan does not give the same outputs. That hides
a fault in the rules, so tests of the rules allow one attempt.
"""

from typing import Any
from unittest import mock

from torch import Tensor, fx, nn

from spr_or.pruning.compaction import api


def compact_at_once(model: nn.Module, masks: dict[str, Tensor], example: Any) -> fx.GraphModule:
    """`spr_or.compact`, whose first plan must be the one that is returned."""
    with mock.patch.object(api, "make_plan", wraps=api.make_plan) as planned:
        small = api.compact(model, masks, example)
    assert planned.call_count == 1, f"{planned.call_count} plans were needed"
    assert isinstance(small, fx.GraphModule)
    return small
