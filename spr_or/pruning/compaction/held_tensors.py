"""The tensors of a traced graph."""

from torch import Tensor, fx, nn


class HeldTensors(nn.Module):
    """Holds parameters and buffers under dotted names, whatever modules those came from."""

    def node(self, graph: fx.Graph, name: str, tensor: Tensor) -> fx.Node:
        """A ``get_attr`` node for a tensor of that name."""
        *path, last = name.split(".")
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            place.register_parameter(last, tensor)
        else:
            place.register_buffer(last, tensor)
        return graph.get_attr(name)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a network under all their names.

    >>> sorted(own_tensors(nn.Linear(2, 1)))
    ['bias', 'weight']
    """
    return {**dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
