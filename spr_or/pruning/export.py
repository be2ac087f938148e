"""Networks, compacted or not, as ONNX files and torch.export programs with a free batch size."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spr_or.utils.evaluating import evaluating
from spr_or.utils.files import write_aside


def export_program(model: nn.Module, example: Tensor, path: str | Path) -> ExportedProgram:
    """Write `model` in evaluation mode as a torch.export program (.pt2) and return it.

    example: (B, C, …); every size but B is fixed by it. `torch.export.load(path).module()` runs
    it. The file appears whole or not at all; `model` is left in the mode it was in.
    """
    program = _program(model, example)
    write_aside(path, lambda aside: torch.export.save(program, aside))
    return program


def export_onnx(model: nn.Module, example: Tensor, path: str | Path) -> None:
    """Write `model` in evaluation mode as one ONNX file: input "input", output "output".

    example: (B, C, …); every size but B is fixed by it. Needs the extra `export` (onnx,
    onnxscript), else ImportError. The file appears whole or not at all; `model` is left in the
    mode it was in.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX export needs onnx and onnxscript: pip install 'spr-or[export]'"
        ) from error
    program = torch.onnx.export(
        _program(model, example), input_names=["input"], output_names=["output"], verbose=False
    )
    assert program is not None
    write_aside(path, lambda aside: program.save(aside, external_data=False))


def _program(model: nn.Module, example: Tensor) -> ExportedProgram:
    # An example of one sample would make torch.export take "one" for a fixed size.
    batch = torch.cat([example, example]) if len(example) == 1 else example
    with evaluating(model):
        return torch.export.export(model, (batch,), dynamic_shapes=({0: Dim("batch", min=1)},))
