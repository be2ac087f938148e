"""The callbacks for Lightning and Hugging Face's Trainer, in the loops of the real libraries."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.toy import mlp
from spr_or.pruning.adapters import lightning_callback, trainer_callback
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.pruner import Pruner


class Blobs(Dataset[Any]):
    """64 points of ten classes; as tuples, or as dicts with these keys."""

    def __init__(self, keys: tuple[str, str] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(64) % 10
        self.images = torch.randn(64, 64, generator=generator) + self.labels.unsqueeze(1) / 3
        self.keys = keys

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        pair = self.images[i], self.labels[i]
        return dict(zip(self.keys, pair, strict=True)) if self.keys else pair


def pruner_of(net: nn.Module) -> Pruner:
    return Pruner(net, torch.zeros(1, 64), {"params": 0.5}, epochs=3, entities="neurons", lr=0.05)


def assert_pruned(pruner: Pruner, net: nn.Module) -> None:
    """The cut came, the fine-tuning after it held the masks, and the small network computes the same."""
    assert pruner.epoch == 3 and pruner.choice is not None
    small, x = pruner.compact(), torch.randn(5, 64)
    removed = 1 - count_parameters(small) / count_parameters(net)
    assert removed == pytest.approx(0.5, abs=0.02)
    for name, keep in pruner.masks.items():
        assert not net.get_parameter(f"{name}.weight")[~keep].any()
    torch.testing.assert_close(small(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def lightning() -> Any:
    try:
        import lightning.pytorch as pl
    except ImportError:
        pl = pytest.importorskip("pytorch_lightning", reason="Lightning is an optional extra")
    return pl


def fit(net: nn.Module, pruner: Pruner, epochs: int, folder: Path, resume: Any = None) -> Any:
    pl = lightning()

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> Any:
            return pruner.optimizer

    saved = pl.callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False,
        callbacks=[lightning_callback(pruner), saved], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(Blobs(), batch_size=16), ckpt_path=resume)
    return trainer


def test_lightning_prunes_and_fine_tunes(tmp_path: Path) -> None:
    net = mlp()
    pruner = pruner_of(net)
    trainer = fit(net, pruner, 5, tmp_path)
    assert trainer.logged_metrics["pruning/scheduled_pct"] == pytest.approx(50.0)
    assert_pruned(pruner, net)


def test_lightning_continues_from_a_checkpoint(tmp_path: Path) -> None:
    nets = mlp(), mlp()
    nets[1].load_state_dict(copy.deepcopy(nets[0].state_dict()))
    broken, continued = pruner_of(nets[0]), pruner_of(nets[1])
    fit(nets[0], broken, 2, tmp_path)
    assert broken.choice is None
    fit(nets[1], continued, 4, tmp_path, resume=tmp_path / "last.ckpt")
    assert_pruned(continued, nets[1])


def test_the_trainer_of_transformers_prunes_and_fine_tunes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an optional extra")
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    net = mlp()
    pruner = pruner_of(net)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=5, per_device_train_batch_size=16, use_cpu=True,
        save_strategy="no", report_to="none", remove_unused_columns=False, label_names=["labels"],
        disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        net, arguments, train_dataset=Blobs(("input", "labels")),
        optimizers=(pruner.optimizer, None), callbacks=[trainer_callback(pruner)],
        compute_loss_func=lambda output, labels, **_: nn.functional.cross_entropy(output, labels),
    )  # fmt: skip
    trainer.train()
    records = [r for r in trainer.state.log_history if "removable_pct" in r]
    assert [round(r["epoch"]) for r in records] == [1, 2, 3]
    assert_pruned(pruner, net)


@pytest.mark.parametrize(
    ("make", "package"),
    [(lightning_callback, "pytorch_lightning"), (trainer_callback, "transformers")],
)
def test_without_the_library_the_error_names_it(
    make: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in (package, "lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=package):
        make(pruner_of(mlp()))
