"""Training images held out to choose by: what is in them, and choosing by them in a fit."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dam_lightning import DM, CondensedSet, Digits, Evaluation
from dam_lightning.data import Split
from tests.tiny import SMALL_NETWORK, TinyData, tiny_data, tiny_trainer

RECIPE = {"num_networks": 2, "epochs": 3}


def numbered(split: Split) -> set[int]:
    return {int(path) for path in split.paths}


def test_images_are_held_out_of_the_training_part_only(tmp_path: Path) -> None:
    whole, part = tiny_data(tmp_path), tiny_data(tmp_path, validation_share=0.25)
    assert whole.val is None
    assert part.val is not None
    assert numbered(part.train) | numbered(part.val) == numbered(whole.train)
    assert not numbered(part.train) & numbered(part.val)
    assert torch.equal(part.test.images, whole.test.images)
    for split in (part.train, part.val):
        rows = [int(path) for path in split.paths]
        assert torch.equal(split.images, whole.train.images[rows])
        assert torch.equal(split.labels, whole.train.labels[rows])
        assert torch.equal(split.domains, whole.train.domains[rows])
    # Of 2 + 2, 5 + 4 and 10 + 10 images in the two domains of each class.
    assert part.val.labels.bincount().tolist() == [2, 2, 4]
    assert part.fingerprint != whole.fingerprint


def test_the_part_is_the_same_in_every_run(tmp_path: Path) -> None:
    first, second, other = (
        tiny_data(tmp_path, validation_share=0.25, seed=seed, split_seed=split_seed)
        for seed, split_seed in ((1, 0), (2, 0), (1, 1))
    )
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_condensation_sees_none_of_it(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, validation_share=0.25)
    data.setup_domains(2)
    assert data.pseudo_domains is not None
    assert len(data.pseudo_domains) == len(data.train) == 25
    batch = data.grouped_batch(0)
    assert batch.domains is not None
    assert int(batch.classes.indices.max()) < 25
    assert int(batch.domains.indices.max()) < 25


def test_batches_are_those_of_the_validation_images(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, validation_share=0.25, test_batch_size=3)
    loader = data.val_dataloader()
    assert len(loader) == 3
    labels = torch.cat([batch[1] for batch in loader])
    assert data.val is not None
    assert torch.equal(labels, data.val.labels)


def test_a_share_that_holds_out_none_is_refused(tmp_path: Path) -> None:
    class One(TinyData):
        def load_splits(self) -> dict[str, Split]:
            splits = super().load_splits()
            return {**splits, "train": splits["train"].subset(torch.tensor([0, 4, 13]))}

    with pytest.raises(ValueError, match=r"0\.25 of 3 training images holds out none"):
        One(validation_share=0.25).setup()


def test_no_handwritten_digit_is_in_both_parts() -> None:
    data = Digits(validation_share=0.2)
    data.setup()
    assert data.val is not None
    digits = [{path.rsplit("/")[-1] for path in s.paths} for s in (data.train, data.val, data.test)]
    assert not digits[0] & digits[1]
    assert not digits[1] & digits[2]
    assert len(data.val) == 4 * len(digits[1])
    assert len(digits[1]) == pytest.approx(0.2 * 1438, abs=5)


def test_the_best_state_is_chosen_by_it(tmp_path: Path) -> None:
    module = DM(backbone_args=SMALL_NETWORK, seed=0, recipe=RECIPE)  # type: ignore[arg-type]
    best = ModelCheckpoint(tmp_path / "best", monitor="val/accuracy", mode="max")
    trainer = tiny_trainer(tmp_path, max_steps=12, callbacks=[best])
    trainer.fit(module, datamodule=tiny_data(tmp_path, validation_share=0.25))
    assert best.best_model_score is not None
    (checkpoint,) = (tmp_path / "best").glob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    condensed = CondensedSet.load(checkpoint.with_suffix(".safetensors"))
    assert torch.equal(condensed.images, saved["state_dict"]["images"])
    assert condensed.metadata["config"]["data"]["validation_share"] == 0.25

    # The score is that of the protocol, trained and tested by itself.
    data = tiny_data(tmp_path, validation_share=0.25)
    evaluation = Evaluation(str(checkpoint.with_suffix(".safetensors")), seed=0)
    (figures,) = tiny_trainer(tmp_path).validate(evaluation, datamodule=data, verbose=False)
    assert figures["val/accuracy"] == pytest.approx(float(best.best_model_score))


def test_watching_it_changes_nothing(tmp_path: Path) -> None:
    def condense(check_every: int) -> torch.Tensor:
        module = DM(backbone_args=SMALL_NETWORK, seed=0, recipe=RECIPE)  # type: ignore[arg-type]
        trainer = tiny_trainer(tmp_path, max_steps=8, check_val_every_n_epoch=check_every)
        trainer.fit(module, datamodule=tiny_data(tmp_path, validation_share=0.25))
        assert ("val/accuracy" in trainer.callback_metrics) == (check_every == 1)
        return module.images.detach()

    assert torch.equal(condense(1), condense(100))


def test_without_one_nothing_is_validated(tmp_path: Path) -> None:
    module = DM(backbone_args=SMALL_NETWORK, seed=0)
    trainer = tiny_trainer(tmp_path, max_steps=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=tiny_data(tmp_path))
    assert not [str(w.message) for w in caught if "val" in str(w.message)]
    assert not any(name.startswith("val") for name in trainer.callback_metrics)
    with pytest.raises(ValueError, match=r"no validation images: hold some out with .*share"):
        trainer.validate(module, datamodule=tiny_data(tmp_path))


def test_validating_prints_the_table_and_fitting_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = DM(backbone_args=SMALL_NETWORK, seed=0, recipe=RECIPE)  # type: ignore[arg-type]
    trainer = tiny_trainer(tmp_path, max_steps=4)
    trainer.fit(module, datamodule=tiny_data(tmp_path, validation_share=0.25))
    assert "val/accuracy" in trainer.progress_bar_metrics
    assert "worst domain" not in capsys.readouterr().out
    trainer.validate(module, datamodule=tiny_data(tmp_path, validation_share=0.25))
    printed = capsys.readouterr().out
    assert "TinyData, validation images" in printed
    assert "worst domain" in printed
