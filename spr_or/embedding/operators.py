"""Which ATen operators a network may use to become constraints.

Affine operators need no rule of their own: their matrix is read off by running them on unit vectors.
"""

from __future__ import annotations

from torch import fx

RELU = frozenset({"relu"})
LARGEST = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})

# Affine in all their tensors together.
JOINTLY_AFFINE = frozenset(
    {
        "add", "sub", "rsub", "neg", "cat", "stack", "mean", "sum", "flatten", "unflatten", "view",
        "reshape", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "expand",
        "movedim", "contiguous", "clone", "detach", "alias", "slice", "select", "narrow", "index",
        "index_select", "index_add", "index_copy", "constant_pad_nd", "pad", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "adaptive_avg_pool3d", "dropout", "feature_dropout",
    }
)  # fmt: skip
# Affine in the first tensor, where the others are constant.
AFFINE_IN_FIRST = frozenset(
    {
        "linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d",
        "conv_transpose2d", "conv_transpose3d", "batch_norm", "div",
    }
)  # fmt: skip
# Affine in one tensor, where the other is constant.
AFFINE_IN_ONE = frozenset({"mul", "matmul", "mm", "bmm"})

# They read the shape of a tensor, not its numbers.
SHAPE_ONLY = frozenset(
    {"sym_size", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
)


def name_of(node: fx.Node) -> str:
    """``"relu"`` for ``aten.relu.default``; the name of a Python function as it is."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    return schema.name.split("::")[-1]


def obstacle(node: fx.Node, varying: list[fx.Node]) -> str:
    """Why an operator that is no activation cannot be read; empty where it is affine.

    varying : its arguments that depend on the network's inputs, one that stands there twice twice
    """
    name = name_of(node)
    if name in JOINTLY_AFFINE:
        return ""
    if name in AFFINE_IN_FIRST:
        if varying != [node.args[0]]:
            return "its weights or divisor depend on the inputs of the network"
        if name == "batch_norm" and node.args[5]:
            return "it normalises by the statistics of the batch, not by stored ones"
        return ""
    if name in AFFINE_IN_ONE:
        return "" if len(varying) == 1 else "it multiplies two tensors that depend on the inputs"
    return "it is neither affine nor a ReLU nor a maximum"
