"""A Condenser in Lightning: shapes from the data, checkpoints, what it writes, what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from dam_lightning import DM, CondensedSet, Condenser, Evaluation, FinalEvaluation
from dam_lightning.callbacks import CondensedPicture, LastCheckpoint, RunSummary
from tests.tiny import CLASS_SIZES, SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer


class OtherMethod(DM):
    """Another class with the same parameters."""


def make(**options: Any) -> DM:
    return DM(**{"backbone_args": SMALL_NETWORK, "recipe": SMALL_RECIPE, "seed": 0, **options})


def fitted(folder: Path, steps: int = 2, trainer: Any = None, **options: Any) -> DM:
    module = make(**options)
    trainer = tiny_trainer(folder, max_steps=steps, **(trainer or {}))
    trainer.fit(module, datamodule=tiny_data(folder))
    return module


def test_shapes_come_from_the_data(tmp_path: Path) -> None:
    module = make(ipc=2, dam={"num_domains": 2})
    assert not hasattr(module, "images")
    with pytest.raises(RuntimeError, match="made when fit begins"):
        module.condensed_set()
    tiny_trainer(tmp_path, max_steps=1).fit(module, datamodule=tiny_data(tmp_path))
    assert module.images.shape == (6, 3, 16, 16)
    assert module.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert module.dam is not None
    assert module.dam.logits.shape == (6, 2, 3, 16, 16)
    assert module.hparams["num_classes"] == 3


def test_shapes_given_are_built_at_once() -> None:
    module = make(num_classes=4, image_shape=(1, 8, 8), dam={}, backbone_args={"depth": 2})
    assert module.images.shape == (4, 1, 8, 8)
    assert module.images.mean().abs() < 0.5
    condensed = module.condensed_set()
    assert condensed.class_names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"max_images": 0}, "max_images must be at least 1, got 0"),
        ({"init": "zeros"}, "init must be noise or real"),
        ({"num_classes": 3}, "both num_classes and image_shape"),
        ({"augmentation": "color_blur"}, "'blur' is no operation"),
        ({"recipe": {"epochs": 0}}, "epochs must be at least 1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4, "image_shape": (3, 16, 16)}, "num_classes is 4, but the data has 3"),
        ({"num_classes": 3, "image_shape": (3, 8, 8)}, "image_shape is"),
    ],
)
def test_shapes_that_contradict_the_data(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fitted(tmp_path, **options)


def test_accumulating_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="max_images"):
        fitted(tmp_path, trainer={"accumulate_grad_batches": 2})


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use norm: instancenorm"):
        fitted(tmp_path, backbone_args={**SMALL_NETWORK, "norm": "batchnorm"})


def test_real_initialisation(tmp_path: Path) -> None:
    """Different images of the class in place of noise; and not drawn anew on resuming."""
    data = tiny_data(tmp_path)
    module = make(ipc=3, init="real", lr_images=1e-9)
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=data)
    real = data.normalisation(data.train.images)
    distances = torch.cdist(
        module.images.detach().flatten(1),
        real.flatten(1),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    nearest = distances.min(dim=1)
    assert float(nearest.values.max()) < 1e-3
    assert torch.equal(data.train.labels[nearest.indices], module.labels)
    assert len(nearest.indices.unique()) == 9
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    moved = make(ipc=3, init="real", lr_images=1e-9, seed=8)
    tiny_trainer(tmp_path, max_steps=2).fit(
        moved, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt"
    )
    torch.testing.assert_close(moved.images, module.images, rtol=0, atol=1e-4)


def test_more_images_than_a_class_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'ant' has {CLASS_SIZES[0]} training images, but 5"):
        fitted(tmp_path, ipc=5, init="real")


def test_more_domains_than_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 pseudo-domains"):
        fitted(tmp_path, dam={"num_domains": 40})


def test_a_condensed_set_lies_beside_every_checkpoint(tmp_path: Path) -> None:
    """Also beside those of callbacks that know nothing of it, and it goes with them."""
    keep = ModelCheckpoint(
        dirpath=tmp_path / "kept",
        every_n_train_steps=2,
        save_top_k=1,
        monitor="step",
        mode="max",
        filename="a{step}",
        save_last=True,
    )
    module = fitted(tmp_path, steps=6, dam={}, trainer={"callbacks": [keep]})
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["astep=6.ckpt", "astep=6.safetensors", "last.ckpt", "last.safetensors"]
    final = CondensedSet.load(tmp_path / "condensed.safetensors")
    beside = CondensedSet.load(tmp_path / "kept" / "last.safetensors")
    assert torch.equal(final.images, module.images.detach())
    assert torch.equal(beside.images, final.images)
    assert final.metadata["steps"] == 6


def test_provenance(tmp_path: Path) -> None:
    module = fitted(tmp_path, dam={"num_domains": 3}, ipc=2)
    metadata = module.condensed_set().metadata
    data = tiny_data(tmp_path)
    assert metadata["method"] == "DM"
    assert metadata["class_names"] == ["ant", "bee", "cow"]
    assert metadata["mean"] == pytest.approx(data.mean)
    assert metadata["fingerprint"] == data.fingerprint
    assert metadata["seed"] == 0
    assert (metadata["ipc"], metadata["dam"], metadata["steps"]) == (2, 3, 2)
    assert metadata["recipe"]["epochs"] == SMALL_RECIPE["epochs"]
    assert metadata["recipe"]["backbone_args"] == SMALL_NETWORK
    assert metadata["config"]["model"]["dam"] == {"num_domains": 3}
    assert metadata["config"]["data"]["batch_real"] == 6
    assert metadata["config"]["trainer"]["max_steps"] == 2
    assert not any("logits" in name or "mask" in name for name in metadata)


def test_a_loaded_module_condenses_to_the_same_set(tmp_path: Path) -> None:
    module = fitted(tmp_path, dam={})
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = DM.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    ours, theirs = module.condensed_set(), loaded.condensed_set()
    assert torch.equal(ours.images, theirs.images)
    skipped = {"config"}
    assert {k: v for k, v in ours.metadata.items() if k not in skipped} == {
        k: v for k, v in theirs.metadata.items() if k not in skipped
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 2}, "ipc: 2 here, 1 in the checkpoint"),
        ({"dam": {"num_domains": 5}}, "dam.num_domains: 5 here, 4 in the checkpoint"),
        ({"dam": None}, "dam.num_domains: None here, 4 in the checkpoint"),
        ({"backbone_args": {"width": 4, "depth": 2}}, "backbone_args"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    fitted(tmp_path, dam={}).trainer.save_checkpoint(tmp_path / "x.ckpt")
    module = make(**{"dam": {}, **options})
    trainer = tiny_trainer(tmp_path, max_steps=4)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")


def test_a_checkpoint_of_another_class(tmp_path: Path) -> None:
    fitted(tmp_path).trainer.save_checkpoint(tmp_path / "x.ckpt")
    trainer = tiny_trainer(tmp_path)
    data = tiny_data(tmp_path)
    with pytest.raises(MisconfigurationException, match="a checkpoint of DM, not of OtherMethod"):
        trainer.test(
            OtherMethod(backbone_args=SMALL_NETWORK), datamodule=data, ckpt_path=tmp_path / "x.ckpt"
        )
    condensed = tmp_path / "condensed.safetensors"
    evaluation = Evaluation(str(condensed), recipe={"epochs": 1, "num_networks": 1})
    with pytest.raises(MisconfigurationException, match="no checkpoint of an Evaluation"):
        trainer.test(evaluation, datamodule=data, ckpt_path=tmp_path / "x.ckpt")


def test_typed_values_win_over_the_checkpoint_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A changed step size takes effect although the optimiser's state has the old one."""
    fitted(tmp_path, steps=2).trainer.save_checkpoint(tmp_path / "x.ckpt")

    def resume(**options: Any) -> tuple[DM, list[float]]:
        module = make(**options)
        trainer = tiny_trainer(tmp_path, max_steps=3)
        trainer.fit(module, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
        return module, [group["lr"] for group in trainer.optimizers[0].param_groups]

    same, rates = resume()
    assert rates == [1.0]
    with caplog.at_level("INFO"):
        changed, rates = resume(lr_images=0.25)
    assert rates == [0.25]
    assert not torch.equal(same.images, changed.images)
    told = [m for m in caplog.messages if "differ from the checkpoint's" in m]
    assert told == ["Arguments that differ from the checkpoint's: lr_images=0.25 (was 1.0)"]


def test_masks_have_a_step_size_of_their_own(tmp_path: Path) -> None:
    module = fitted(tmp_path, dam={}, lr_masks=0.0)
    assert module.dam is not None
    assert bool((module.dam.logits == 0.01).all())
    module = fitted(tmp_path, dam={}, lr_images=0.5)
    assert [g["lr"] for g in module.trainer.optimizers[0].param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_is_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"bf16-mixed, 64-true, got {precision}"):
        fitted(tmp_path, trainer={"precision": precision})


def test_double_precision(tmp_path: Path) -> None:
    module = fitted(tmp_path, dam={}, trainer={"precision": "64-true"})
    assert module.images.dtype == torch.float64
    assert CondensedSet.load(tmp_path / "condensed.safetensors").images.dtype == torch.float32
    module.trainer.test(module, datamodule=tiny_data(tmp_path), verbose=False)


def test_bf16(tmp_path: Path) -> None:
    exact = fitted(tmp_path, dam={}, precision="float32")
    rounded = fitted(tmp_path, dam={}, trainer={"precision": "bf16-mixed"})
    assert rounded.images.dtype == torch.float32
    assert not torch.equal(exact.images, rounded.images)
    torch.testing.assert_close(exact.images, rounded.images, rtol=0, atol=0.5)


def test_two_modules_on_one_trainer(tmp_path: Path) -> None:
    """The set beside a checkpoint is that of the module in it."""
    trainer = tiny_trainer(tmp_path, max_steps=2)
    data = tiny_data(tmp_path)
    first, second = make(seed=0), make(seed=1)
    trainer.fit(first, datamodule=data)
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(second, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    beside = CondensedSet.load(tmp_path / "x.safetensors")
    assert torch.equal(beside.images, second.images.detach())


def test_a_finished_run_says_that_nothing_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.ckpt"
    with caplog.at_level("INFO"):
        fitted(tmp_path).trainer.save_checkpoint(path)
        assert "Nothing was condensed" not in caplog.text
        trainer = tiny_trainer(tmp_path, max_steps=2)
        trainer.fit(make(), datamodule=tiny_data(tmp_path), ckpt_path=path)
    assert "the checkpoint is from step 2 already; raise --trainer.max_steps" in caplog.text


class OtherMean(TinyData):
    mean = (0.0, 0.0, 0.0)


class OtherNames(TinyData):
    class_names = ("x", "y", "z")


@pytest.mark.parametrize(("data", "name"), [(OtherMean, "mean"), (OtherNames, "class_names")])
def test_a_checkpoint_of_other_data(tmp_path: Path, data: type[TinyData], name: str) -> None:
    fitted(tmp_path).trainer.save_checkpoint(tmp_path / "x.ckpt")
    other = data(cache_dir=str(tmp_path / "cache"))
    for run in ("fit", "test"):
        trainer = tiny_trainer(tmp_path, max_steps=4)
        with pytest.raises(MisconfigurationException, match=f"the data have {name}"):
            getattr(trainer, run)(make(), datamodule=other, ckpt_path=tmp_path / "x.ckpt")


def test_noise_is_not_evaluated(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    for run in (trainer.test, trainer.validate):
        with pytest.raises(MisconfigurationException, match="no image was condensed yet"):
            run(make(), dataloaders=None, datamodule=_Validated(cache_dir=str(tmp_path / "cache")))


class _Validated(TinyData):
    def val_dataloader(self) -> Any:
        return self.test_dataloader()


def test_resuming_a_finished_run(tmp_path: Path) -> None:
    module = fitted(tmp_path, steps=2)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = make()
    callbacks = [RunSummary(), CondensedPicture(), LastCheckpoint()]
    trainer = tiny_trainer(tmp_path, max_steps=2, callbacks=callbacks)
    trainer.fit(again, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
    assert torch.equal(again.images, module.images)


def test_a_rehearsal_leaves_no_file(tmp_path: Path) -> None:
    callbacks = [RunSummary(), CondensedPicture(), LastCheckpoint(), FinalEvaluation()]
    fitted(tmp_path, trainer={"fast_dev_run": 2, "callbacks": callbacks})
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_last_stays_last_in_a_folder_used_before(tmp_path: Path) -> None:
    for seed in (0, 1):
        module = fitted(tmp_path, seed=seed, trainer={"callbacks": [LastCheckpoint()]})
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["images"], module.images.detach())


def test_arguments_that_are_paths_load_again(tmp_path: Path) -> None:
    module = make(ledger=tmp_path / "ledger.csv")
    data = TinyData(cache_dir=tmp_path / "cache")  # type: ignore[arg-type]
    trainer = tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    fit_on = tiny_trainer(tmp_path, max_steps=3)
    fit_on.fit(make(), datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
    assert DM.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).ipc == 1


def test_the_weight_may_change_on_resuming(tmp_path: Path) -> None:
    fitted(tmp_path, dam={"weight": 0.0}).trainer.save_checkpoint(tmp_path / "x.ckpt")
    module = make(dam={"weight": 0.5})
    tiny_trainer(tmp_path, max_steps=4).fit(
        module, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt"
    )
    assert module.dam is not None
    assert not bool((module.dam.logits == 0.01).all())


def test_momentum_may_change_on_resuming(tmp_path: Path) -> None:
    fitted(tmp_path).trainer.save_checkpoint(tmp_path / "x.ckpt")
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.fit(make(momentum=0.25), datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "x.ckpt")
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.25


def test_what_differs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run's seed, the recipe and the data's arguments too."""
    fitted(tmp_path).trainer.save_checkpoint(tmp_path / "x.ckpt")
    module = DM(backbone_args=SMALL_NETWORK, recipe={**SMALL_RECIPE, "epochs": 3})
    module.seed = 9
    with caplog.at_level("INFO"):
        tiny_trainer(tmp_path, max_steps=3).fit(
            module, datamodule=tiny_data(tmp_path, batch_real=5), ckpt_path=tmp_path / "x.ckpt"
        )
    told = "\n".join(caplog.messages)
    assert "Going on with the checkpoint's seed 0, not 9" in told
    assert "recipe.epochs=3 (was 2)" in told
    assert "data.batch_real=5 (was 6)" in told


class FromArrays(LightningDataModule):
    """Not derived from ours: only what is documented, with NumPy normalisation."""

    num_classes, image_shape = 3, (3, 16, 16)
    class_names, domain_names = ["ant", "bee", "cow"], ["plain", "stripes"]

    def __init__(self, inner: TinyData) -> None:
        super().__init__()
        self._inner = inner
        self.train, self.test = inner.train, inner.test
        self.mean, self.std = np.float32(inner.mean), np.float32(inner.std)

    def setup_domains(self, num_domains: int) -> None:
        self._inner.setup_domains(num_domains)

    def train_dataloader(self) -> Any:
        return self._inner.train_dataloader()

    def test_dataloader(self) -> Any:
        return self._inner.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


def test_anyones_data_module(tmp_path: Path) -> None:
    data = FromArrays(tiny_data(tmp_path))
    module = make(dam={}, init="real")
    trainer = tiny_trainer(tmp_path, max_steps=2, callbacks=[FinalEvaluation()])
    trainer.fit(module, datamodule=data)
    condensed = CondensedSet.load(tmp_path / "condensed.safetensors")
    assert condensed.metadata["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert condensed.pixels().shape == (3, 3, 16, 16)
    trainer.test(module, datamodule=data, verbose=False)
    evaluation = Evaluation(str(tmp_path / "condensed.safetensors"))
    trainer.test(evaluation, datamodule=data, verbose=False)


def test_mistakes_in_dam_are_refused_at_once() -> None:
    for options, message in (
        ({"num_domain": 5}, "num_domain"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        (True, "dam"),
    ):
        with pytest.raises(ValueError, match=message):
            make(dam=options)
    with pytest.raises(ValueError, match="there is no epoch"):
        make(recipe={"epoch": 5})
    with pytest.raises(TypeError, match="abstract"):
        Condenser(ipc=1)  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("changed", "data", "told"),
    [
        ({"lr_images": 7.0}, {}, "lr_images"),
        ({"dam": {"num_domains": 2, "weight": 0.3}}, {}, "dam.weight"),
        ({}, {"batch_real": 5}, "data.batch_real"),
        ({"max_images": 3}, {"test_batch_size": 2}, None),
    ],
)
def test_a_row_of_the_ledger_tells_of_the_images_that_were_tested(
    tmp_path: Path, changed: dict[str, Any], data: dict[str, Any], told: str | None
) -> None:
    dam = {"num_domains": 2}
    fitted(tmp_path, dam=dam, trainer={"callbacks": [LastCheckpoint()]})
    ledger = tmp_path / "ledger.csv"
    module = make(**{"dam": dam, "ledger": str(ledger), **changed})

    def test(module: DM) -> None:
        tiny_trainer(tmp_path).test(
            module, datamodule=tiny_data(tmp_path, **data), ckpt_path=tmp_path / "last.ckpt"
        )

    if told is None:
        test(module)
        assert len(ledger.read_text().splitlines()) == 2
        return
    with pytest.raises(MisconfigurationException, match=rf"other images than these: {told} differ"):
        test(module)
    assert not ledger.exists() or len(ledger.read_text().splitlines()) == 1


def test_a_rehearsed_test_is_no_result(tmp_path: Path) -> None:
    fitted(tmp_path, trainer={"callbacks": [LastCheckpoint()]})
    ledger = tmp_path / "ledger.csv"
    tiny_trainer(tmp_path, fast_dev_run=True).test(
        make(ledger=str(ledger)),
        datamodule=tiny_data(tmp_path),
        ckpt_path=tmp_path / "last.ckpt",
    )
    assert not ledger.exists() or len(ledger.read_text().splitlines()) == 1
