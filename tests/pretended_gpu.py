"""A device that is none: its tensors live on the CPU, but are as strict as those of a GPU.

Where no GPU is at hand, a tensor on the CPU that meets one on the GPU goes unnoticed until somebody
has one. Inside `pretended_gpu` the device ``DEVICE`` exists. Every operation that mixes its tensors
with those of the CPU fails as it would there: all but numbers (tensors without dimensions), indices
on the CPU, and copies. NumPy cannot read its tensors.

``torch.export`` cannot follow such tensors, so networks are traced with what they hold on the CPU.
Nothing is known here about streams, kernels, captured graphs and numerical differences: the tests
marked ``gpu`` are about those. Where the device is registered, a backward pass starts threads, after
which a process cannot be forked: only files of ``device_checks`` import this module, and
`test_on_a_device` runs them elsewhere. They are left out where a GPU is.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from spr_or.pruning.compaction import trace

if torch.accelerator.is_available():
    pytest.skip("there is a real device here", allow_module_level=True)
try:
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )
except ImportError:
    pytest.skip("this torch knows no backends in Python", allow_module_level=True)


class _Backend(_DummyBackendModule):
    """What torch asks of a backend; there only inside `pretended_gpu`, so that nothing else takes it."""

    there = False

    def is_available(self) -> bool:
        return self.there

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)


_BACKEND = _Backend()
_setup_privateuseone_for_python_backend("pretended", _BACKEND)
DEVICE = torch.device("pretended", 0)
aten = torch.ops.aten
# An index may lie on the CPU where the indexed tensor does not.
_INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
    aten._index_put_impl_.default,
}  # fmt: skip


class Pretended(Tensor):
    """A tensor that says it is on ``DEVICE``; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = Pretended(self.inner.detach().clone())
            memo[id(self)] = (
                nn.Parameter(copied, self.requires_grad)
                if isinstance(self, nn.Parameter)
                else copied.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    def untyped_storage(self) -> Any:
        """Where the values are, by which shared memory is seen."""
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        """As that of a tensor on a GPU."""
        return self.inner.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretended({self.inner!r})"


def _index(index: Any) -> Any:
    """Lists as the tensors that they become; torch copies them to the device where nobody sees it."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _Mode(TorchDispatchMode):
    """Sees what makes tensors, too."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, Pretended)]
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked).type == DEVICE.type:
        kwargs = kwargs | {"device": torch.device("cpu")}
        there = True
    else:
        there = asked is None and bool(ours)
    if func is aten.copy_.default:
        there = isinstance(args[0], Pretended)
    elif func is not aten._to_copy.default:
        _refuse_mixture(func, args, tensors, ours)

    def inner(leaf: Any) -> Any:
        return leaf.inner if isinstance(leaf, Pretended) else leaf

    result = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    returned = func._schema.returns
    if (
        len(returned) == 1
        and returned[0].alias_info is not None
        and returned[0].alias_info.is_write
    ):
        written = next(
            (a for a, s in zip(args, func._schema.arguments, strict=False)
             if s.alias_info is not None and s.alias_info.is_write), None,
        )  # fmt: skip
        return kwargs["out"] if written is None else written
    if not there:
        return result
    return tree_map(lambda leaf: Pretended(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _refuse_mixture(func: Any, args: Any, tensors: list[Tensor], ours: list[Pretended]) -> None:
    if not ours:
        return
    if func in _INDEXING and isinstance(args[0], Pretended):
        tensors = [args[0], *args[2:3]]
    strangers = [t for t in tensors if not isinstance(t, Pretended) and t.device.type == "cpu"]
    if any(t.dim() for t in strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got {DEVICE} and cpu"
        )


def _on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """What traces a network, given its tensors and inputs on the CPU."""

    def traced(model: nn.Module, inputs: Any, *rest: Any, **others: Any) -> Any:
        moved = lambda t: t.inner if isinstance(t, Pretended) else t  # noqa: E731
        changed: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if isinstance(tensor, Pretended):
                        changed.append((table, name, tensor))
        same: dict[int, Tensor] = {}
        for table, name, tensor in changed:
            inner = tensor.inner.detach()
            same.setdefault(
                id(tensor), nn.Parameter(inner) if isinstance(tensor, nn.Parameter) else inner
            )
            table[name] = same[id(tensor)]
        try:
            with _disable_current_modes():
                return original(model, tree_map(moved, inputs), *rest, **others)
        finally:
            for table, name, tensor in changed:
                table[name] = tensor

    return traced


def _moved(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` and the like, whose copy to the device no dispatcher sees."""

    def made(data: Any, *rest: Any, device: Any = None, **others: Any) -> Tensor:
        if device is None or torch.device(device).type != DEVICE.type or isinstance(data, Tensor):
            return original(data, *rest, device=device, **others)
        return Pretended(original(data, *rest, **others))

    return made


@contextlib.contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, ``DEVICE`` exists."""
    # Moves the parameters themselves, as on a GPU: else those that two layers share would part.
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with contextlib.ExitStack() as leaving:
        leaving.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        leaving.enter_context(_patched())
        yield DEVICE


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    with patch.object(trace, "_exported", _on_cpu(trace._exported)), \
         patch.object(_BACKEND, "there", True), \
         patch.object(torch, "tensor", _moved(torch.tensor)), \
         patch.object(torch, "as_tensor", _moved(torch.as_tensor)), \
         patch.object(torch.accelerator, "synchronize", lambda device=None: None), \
         _Mode():  # fmt: skip
        yield
