"""A `Pruner` in the training loops of PyTorch Lightning and of Hugging Face's Trainer.

Both train with ``pruner.optimizer``, and call ``pruner.epoch_end()`` after each epoch. The libraries are
imported when a callback is made: the extras ``spr-or[lightning]`` and ``spr-or[transformers]``.
"""

from __future__ import annotations

from typing import Any

from spr_or.pruning.pruner import Pruner


def lightning_callback(pruner: Pruner) -> Any:
    """A Lightning ``Callback``; ``configure_optimizers`` returns ``pruner.optimizer``.

    Logs λ and the shares of `Pruner.epoch_end`, and continues from Lightning's checkpoints. Works
    with the packages ``lightning`` and ``pytorch_lightning``; raises ``ImportError`` without either.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class PruningCallback(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            record = pruner.epoch_end()
            pl_module.log_dict({f"pruning/{key}": float(value) for key, value in record.items()})

        def state_dict(self) -> dict[str, Any]:
            return pruner.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pruner.load_state_dict(state_dict)

    return PruningCallback()


def trainer_callback(pruner: Pruner) -> Any:
    """A ``TrainerCallback``; the Trainer gets ``optimizers=(pruner.optimizer, None)``.

    λ and the shares are written into the Trainer's log history. Resuming from the Trainer's
    checkpoints is not supported. Raises ``ImportError`` without the package ``transformers``.
    """
    from transformers import TrainerCallback

    class PruningCallback(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            record = pruner.epoch_end()
            if record:
                state.log_history.append(
                    {"epoch": state.epoch, "step": state.global_step, **record}
                )

    return PruningCallback()
