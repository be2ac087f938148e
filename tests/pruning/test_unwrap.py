"""The network inside torch's wrappers."""

import torch
from torch import nn

from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.unwrap import unwrap


def test_every_wrapper_and_several_at_once():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2))
    for wrapped in (
        net,
        torch.compile(net),
        nn.DataParallel(net),
        torch.compile(nn.DataParallel(net)),
        nn.DataParallel(torch.compile(net)),
    ):
        assert unwrap(wrapped) is net
        assert [layer.name for layer in layer_entities(wrapped)] == ["0"]


def test_distributed_data_parallel(tmp_path):
    rendezvous = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    try:
        net = nn.Linear(2, 2)
        assert unwrap(nn.parallel.DistributedDataParallel(net)) is net
    finally:
        torch.distributed.destroy_process_group()


def test_a_network_with_a_part_called_module_is_no_wrapper():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

    holder = Holder()
    assert unwrap(holder) is holder
