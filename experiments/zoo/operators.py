"""torchvision beside a torch for which its compiled operators were not built."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARIES: list[torch.library.Library] = []  # a library takes its operators along when it goes


def declare_missing_operators() -> None:
    """Declare the two operators without which torchvision cannot be imported.

    Its wheel from PyPI is compiled against a torch with CUDA and does not load beside a torch for
    the CPU. No network of the zoo calls these operators; torchvision only describes them on import.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        raise ImportError("torchvision is not installed; see experiments/zoo/README.md")
    try:
        torch.ops.load_library(str(Path(package.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        _LIBRARIES.append(library)
