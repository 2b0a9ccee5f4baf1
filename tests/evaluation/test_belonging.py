"""Networks are tested on data that belong to what they were trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dam_lightning import Evaluation
from dam_lightning.data import Split
from dam_lightning.evaluation import module as module_of_evaluation
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer

RECIPE = {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}


class OtherNames(TinyData):
    class_names = ("ant", "bee", "cat")


class OtherDeviation(TinyData):
    std = (0.2, 0.25, 0.31)


class Smaller(TinyData):
    def load_splits(self) -> dict[str, Split]:
        return {
            name: Split(split.images[:, :, :8, :8], split.labels, split.domains, split.paths)
            for name, split in super().load_splits().items()
        }


class Shuffled(TinyData):
    """The same images, classes in another order."""

    def load_splits(self) -> dict[str, Split]:
        splits = dict(super().load_splits())
        splits["train"] = splits["train"].subset(torch.arange(len(splits["train"])).flip(0))
        return splits


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (OtherNames(), r"class_names \['ant', 'bee', 'cow'\], the data module has \['ant', 'bee'"),
        (
            OtherDeviation(),
            r"std \[0\.2, 0\.25, 0\.3\], the data module has \[0\.2, 0\.25, 0\.31\]",
        ),
        (Smaller(), r"image_shape \[3, 16, 16\], the data module has \[3, 8, 8\]"),
        (TinyData(zca=True), r"zca False, the data module has True; give the data module that"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("baseline", ["random", "whole"])
def test_networks_of_a_checkpoint_are_tested_on_data_like_theirs(
    tmp_path: Path, other: TinyData, message: str, baseline: str
) -> None:
    options: dict[str, Any] = {"ipc": 1} if baseline == "random" else {}
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(Evaluation(baseline, recipe=RECIPE, seed=0, **options), datamodule=TinyData())
    trainer.save_checkpoint(tmp_path / "networks.ckpt")
    evaluation = Evaluation(baseline, recipe=RECIPE, seed=0, **options)
    with pytest.raises(MisconfigurationException, match=message):
        tiny_trainer(tmp_path).test(
            evaluation, datamodule=other, ckpt_path=tmp_path / "networks.ckpt"
        )


def test_a_recipe_that_is_not_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path)
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(Evaluation("random", ipc=1, recipe=RECIPE, seed=0), datamodule=data)
    trainer.save_checkpoint(tmp_path / "networks.ckpt")
    said: list[str] = []
    monkeypatch.setattr(module_of_evaluation, "rank_zero_info", said.append)
    for changed, lines in (({}, []), ({"lr": 5.0}, ["lr 0.01; 5.0 is not used."])):
        evaluation = Evaluation("random", ipc=1, recipe={**RECIPE, **changed}, seed=0)
        path = tmp_path / "networks.ckpt"
        tiny_trainer(tmp_path).test(evaluation, datamodule=data, ckpt_path=path, verbose=False)
        assert [
            line.removeprefix("The networks of the checkpoint were made with ") for line in said
        ] == lines


def test_a_coreset_is_chosen_anew_for_other_data(tmp_path: Path) -> None:
    selection: Any = {"features": "pixels"}
    evaluation = Evaluation("herding", ipc=1, recipe=RECIPE, seed=0, selection=selection)
    results = []
    for model in (evaluation, evaluation, Evaluation(**evaluation.hparams)):
        data = (TinyData if not results else Shuffled)(cache_dir=str(tmp_path / "cache"), seed=0)
        results += tiny_trainer(tmp_path).test(model, datamodule=data, verbose=False)
    assert results[1] == results[2]


def test_fit_trains_in_float32_whatever_the_trainer_s_precision(tmp_path: Path) -> None:
    weights = []
    for precision in ("32-true", "bf16-mixed"):
        evaluation = Evaluation("random", ipc=1, recipe=RECIPE, seed=0)
        trainer = tiny_trainer(tmp_path, max_epochs=1, precision=precision)
        trainer.fit(evaluation, datamodule=tiny_data(tmp_path))
        weights.append(torch.cat([p.detach().flatten() for p in evaluation.networks.parameters()]))
    assert torch.equal(*weights)


def test_trained_networks_keep_no_gradients(tmp_path: Path) -> None:
    evaluation = Evaluation("random", ipc=1, recipe=RECIPE, seed=0)
    tiny_trainer(tmp_path, max_epochs=1).fit(evaluation, datamodule=tiny_data(tmp_path))
    assert all(parameter.grad is None for parameter in evaluation.networks.parameters())
