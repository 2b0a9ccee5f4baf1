"""What must give the same bits, or the same figures: without DAM, resumed, on several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dam_lightning import DM
from dam_lightning.data import GroupedBatch
from tests.tiny import SMALL_NETWORK, TinyData, tiny_data, tiny_trainer, two_processes


class WithoutDomainBranch(DM):
    """A subclass that keeps the masks and leaves their loss out."""

    def training_step(self, batch: GroupedBatch, batch_idx: int) -> torch.Tensor:
        state = self.network_state(batch.step)
        by_class = self.images.view(-1, self.ipc, *self.images.shape[1:])
        return self.grouping_loss("class", batch, by_class, state) + 0 * (
            self.dam.logits.sum() if self.dam is not None else 0
        )


def make(cls: type[DM] = DM, **options: Any) -> DM:
    return cls(**{"ipc": 2, "backbone_args": SMALL_NETWORK, "seed": 1, **options})


def fit(module: DM, folder: Path, steps: int, ckpt_path: Any = None, **options: Any) -> DM:
    trainer = tiny_trainer(folder, max_steps=steps, **options)
    trainer.fit(module, datamodule=tiny_data(folder), ckpt_path=ckpt_path)
    return module


def test_no_dam_weight_zero_and_no_domain_branch_are_the_same_bits(tmp_path: Path) -> None:
    plain = fit(make(dam=None), tmp_path, 5)
    weight_zero = fit(make(dam={"weight": 0.0}), tmp_path, 5)
    subclass = fit(make(WithoutDomainBranch, dam={}), tmp_path, 5)
    with_dam = fit(make(dam={}), tmp_path, 5)
    assert torch.equal(plain.images, weight_zero.images)
    assert torch.equal(plain.images, subclass.images)
    assert not torch.equal(plain.images, with_dam.images)
    assert weight_zero.dam is not None
    assert bool((weight_zero.dam.logits == 0.01).all())


@pytest.mark.parametrize("dam", [None, {"num_domains": 3}])
@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_resumed_fit_equals_an_unbroken_one(tmp_path: Path, dam: Any, stop: int) -> None:
    """Epochs have 4 steps: stops in the middle of the first, at its end, and in the second."""
    unbroken = fit(make(dam=dam), tmp_path, 9)
    begun = make(dam=dam)
    trainer = tiny_trainer(tmp_path, max_steps=stop)
    trainer.fit(begun, datamodule=tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(make(dam=dam), tmp_path, 9, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == 9
    assert torch.equal(unbroken.images, resumed.images)
    assert not torch.equal(begun.images, resumed.images)
    if unbroken.dam is not None:
        assert resumed.dam is not None
        assert torch.equal(unbroken.dam.logits, resumed.dam.logits)


def test_a_resumed_fit_in_double_precision(tmp_path: Path) -> None:
    """Lightning loads before it casts, which would round images and masks."""
    options: Any = {"precision": "64-true"}
    unbroken = fit(make(dam={}), tmp_path, 5, **options)
    fit(make(dam={}), tmp_path, 3, **options).trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(make(dam={}), tmp_path, 5, tmp_path / "half.ckpt", **options)
    assert torch.equal(unbroken.images, resumed.images)


def test_a_resumed_fit_keeps_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's seed may have changed in the meantime; the checkpoint's is taken up."""

    def unseeded() -> DM:
        return DM(backbone_args=SMALL_NETWORK)

    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    unbroken = fit(unseeded(), tmp_path, 5)
    fit(unseeded(), tmp_path, 2).trainer.save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    resumed = fit(unseeded(), tmp_path, 5, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.seed == 11
    assert torch.equal(unbroken.images, resumed.images)


def test_the_seed_changes_everything_and_the_global_generator_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = fit(make(dam={}), tmp_path, 3)
    torch.manual_seed(1)
    torch.rand(7)
    again = fit(make(dam={}), tmp_path, 3)
    other = fit(DM(ipc=2, backbone_args=SMALL_NETWORK, seed=2, dam={}), tmp_path, 3)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_the_budget_does_not_change_the_draws(tmp_path: Path) -> None:
    small = fit(make(dam={}, max_images=3), tmp_path, 4)
    large = fit(make(dam={}, max_images=1000), tmp_path, 4)
    torch.testing.assert_close(small.images, large.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("num_domains", "precision", "steps", "tolerance", "strategy"),
    [
        (3, "32-true", 5, 1e-5, None),
        (4, "32-true", 5, 1e-5, "ddp_spawn"),
        (4, "64-true", 20, 1e-9, None),
    ],
)
def test_two_processes_equal_one(
    tmp_path: Path,
    num_domains: int,
    precision: Any,
    steps: int,
    tolerance: float,
    strategy: str | None,
) -> None:
    """Three classes and three or four domains over two ranks: unequal shares included.

    By the default network, and longer, only in float64: rounding that happens to switch a ReLU,
    which depends on the processor, changes the steps after it.
    """
    dam = {"num_domains": num_domains}
    activation = "relu" if precision == "64-true" else "swish"
    network = {**SMALL_NETWORK, "activation": activation}
    data = {"cache_dir": str(tmp_path / "cache"), "seed": 0}
    options = {"max_steps": steps, "precision": precision}
    alone, shared = (make(dam=dam, backbone_args=network) for _ in range(2))
    tiny_trainer(tmp_path, **options).fit(alone, datamodule=TinyData(**data))
    trainer = two_processes(tmp_path, **options, **({"strategy": strategy} if strategy else {}))
    trainer.fit(shared, datamodule=TinyData(**data))
    assert shared.dam is not None
    assert alone.dam is not None
    ours, theirs = (module.images.detach().double() for module in (shared, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    ours, theirs = (module.dam.logits.detach().double() for module in (shared, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    loss = float(trainer.callback_metrics["loss"])
    assert loss == pytest.approx(float(alone.trainer.callback_metrics["loss"]), rel=1e-5)


@pytest.mark.parametrize("dam", [None, {"weight": 0.0}])
def test_two_processes_without_a_domain_branch(tmp_path: Path, dam: Any) -> None:
    data = {"cache_dir": str(tmp_path / "cache"), "seed": 0}
    alone, shared = make(dam=dam), make(dam=dam)
    tiny_trainer(tmp_path, max_steps=3).fit(alone, datamodule=TinyData(**data))
    trainer = two_processes(tmp_path, max_steps=3)
    trainer.fit(shared, datamodule=TinyData(**data))
    torch.testing.assert_close(shared.images, alone.images, rtol=0, atol=1e-5)
