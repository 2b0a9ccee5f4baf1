"""The protocol inside Lightning: fit, validate and test, whose autograd modes differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from dam_lightning import DM, CondensedSet, Evaluation, FinalEvaluation
from dam_lightning.callbacks import LastCheckpoint
from dam_lightning.data import ResidentDataModule, Split, random_images
from dam_lightning.data.groups import TestLoader
from dam_lightning.evaluation import Recipe, RecipeOptions, Scores, evaluate, train_network
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer, two_processes


class Validated(TinyData):
    """With validation images: the training images, which is enough to run the loop."""

    def val_dataloader(self) -> TestLoader:
        return TestLoader(self.train, 8, self.normalisation, 0, 1)


class OtherNormalisation(TinyData):
    mean = (0.1, 0.1, 0.1)


class OtherClasses(TinyData):
    class_names = ("ant", "bee", "cat")


def dm(**options: Any) -> DM:
    return DM(**{"backbone_args": SMALL_NETWORK, "recipe": SMALL_RECIPE, "seed": 0, **options})


def by_hand(module: DM, data: ResidentDataModule, split: Split) -> Scores:
    """The protocol as a plain loop over networks and images."""
    images = data.normalisation(split.images)
    correct = []
    for number in range(module.recipe.num_networks):
        network = train_network(
            module.images.detach(), module.labels, 3, module.recipe, seed=0, number=number
        )
        with torch.no_grad():
            correct.append(network(images).argmax(dim=1) == split.labels)
    table = torch.stack(correct).double()
    return Scores(
        overall=table.mean(dim=1),
        per_class=torch.stack([table[:, split.labels == c].mean(dim=1) for c in range(3)], dim=1),
        per_domain=torch.stack([table[:, split.domains == d].mean(dim=1) for d in (0, 1)], dim=1),
    )


def evaluated_random(module: DM, data: TinyData, number: int) -> float:
    """Accuracy of one network trained on random real images drawn for it."""
    images = random_images(data, module.ipc, 0, "evaluation/random", number)
    network = train_network(images, module.labels, 3, module.recipe, seed=0, number=number)
    test = data.normalisation(data.test.images)
    with torch.no_grad():
        return float((network(test).argmax(dim=1) == data.test.labels).double().mean())


def assert_logged(metrics: Mapping[str, Any], stage: str, expected: Scores) -> None:
    figures = {
        "accuracy": expected.overall.mean(),
        "accuracy_std": expected.overall.std(correction=0),
        "worst_domain": expected.per_domain.min(dim=1).values.mean(),
        "domain/plain": expected.per_domain[:, 0].mean(),
        "domain/stripes": expected.per_domain[:, 1].mean(),
        "class/cow": expected.per_class[:, 2].mean(),
    }
    for name, value in figures.items():
        logged = float(metrics[f"{stage}/{name}"])
        assert logged == pytest.approx(100 * float(value), abs=1e-4), name


def test_test_and_validate_under_inference_mode(tmp_path: Path) -> None:
    data = Validated(cache_dir=str(tmp_path / "cache"))
    module, trainer = dm(), tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(module, train_dataloaders=None, datamodule=tiny_data(tmp_path))
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert_logged(tested, "test", by_hand(module, data, data.test))
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    assert_logged(validated, "val", by_hand(module, data, data.train))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_precision_of_the_trainer_does_not_matter(tmp_path: Path, precision: Any) -> None:
    data, module = tiny_data(tmp_path), dm()
    tiny_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    trainer = tiny_trainer(tmp_path, precision=precision)
    evaluation = Evaluation(str(tmp_path / "condensed.safetensors"), seed=0)
    (metrics,) = trainer.test(evaluation, datamodule=data, verbose=False)
    assert_logged(metrics, "test", by_hand(module, data, data.test))


def test_validation_inside_fit_can_choose_a_checkpoint(tmp_path: Path) -> None:
    """Also with the sanity check, for which no network is trained."""
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val/accuracy", mode="max")
    trainer = tiny_trainer(tmp_path, max_steps=8, callbacks=[best])
    module, data = dm(dam={}), Validated(cache_dir=str(tmp_path / "cache"))
    before = dm(dam={})
    trainer.fit(module, datamodule=data)
    assert best.best_model_score is not None
    assert Path(best.best_model_path).exists()
    # Evaluating in between changes nothing of the condensation.
    tiny_trainer(tmp_path, max_steps=8).fit(before, datamodule=tiny_data(tmp_path))
    assert torch.equal(module.images, before.images)


def test_final_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe: RecipeOptions = {"num_networks": 2, "epochs": 12}
    module, data = dm(dam={}, recipe=recipe), tiny_data(tmp_path)
    trainer = tiny_trainer(tmp_path, max_steps=2, callbacks=[FinalEvaluation()])
    trainer.fit(module, datamodule=data)
    printed = capsys.readouterr().out
    overall = 100 * by_hand(module, data, data.test).overall
    assert f"{float(overall.mean()):.1f} ± {float(overall.std(correction=0)):.1f}" in printed
    random = [evaluated_random(module, data, number) for number in (0, 1)]
    mean = 100 * sum(random) / 2
    assert random[0] != random[1]
    assert f"{mean:.1f} ± {50 * abs(random[0] - random[1]):.1f}" in printed
    for word in ("DM+DAM", "random real images", "plain", "stripes", "worst domain"):
        assert word in printed

    class Other(LightningModule):
        pass

    with pytest.raises(TypeError, match="not Other"):
        FinalEvaluation().on_fit_end(trainer, Other())


def test_random_images_are_drawn_anew_for_each_network(tmp_path: Path) -> None:
    evaluation, data = Evaluation("random", ipc=2, seed=4), tiny_data(tmp_path)
    tiny_trainer(tmp_path).strategy.connect(evaluation)
    evaluation._trainer = tiny_trainer(tmp_path)
    evaluation._trainer.datamodule = data  # type: ignore[attr-defined]
    first, labels = evaluation.training_set(0)
    second, _ = evaluation.training_set(1)
    again, _ = evaluation.training_set(0)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    real = data.normalisation(data.train.images)
    for image, label in zip(first, labels, strict=True):
        matches = (real == image).flatten(1).all(dim=1)
        assert int(data.train.labels[matches][0]) == int(label)


def test_networks_are_trained_by_fit_and_tested_from_the_checkpoint(tmp_path: Path) -> None:
    module, data = dm(), tiny_data(tmp_path)
    tiny_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    file = str(tmp_path / "condensed.safetensors")
    trainer = tiny_trainer(tmp_path, max_epochs=-1, callbacks=[LastCheckpoint()])
    evaluation = Evaluation(file)
    trainer.fit(evaluation, datamodule=tiny_data(tmp_path, steps_per_epoch=1))
    assert len(evaluation.networks) == SMALL_RECIPE["num_networks"]
    (tmp_path / "last.ckpt").rename(tmp_path / "networks.ckpt")
    first, second = (torch.cat([p.flatten() for p in n.parameters()]) for n in evaluation.networks)
    assert not torch.equal(first, second)
    again = Evaluation.load_from_checkpoint(tmp_path / "networks.ckpt", weights_only=True)
    assert len(again.networks) == 2
    loaded = Evaluation(file, recipe={"epochs": 10_000})
    (kept,) = tiny_trainer(tmp_path).test(
        loaded, datamodule=data, ckpt_path=tmp_path / "networks.ckpt", verbose=False
    )
    (fresh,) = tiny_trainer(tmp_path).test(Evaluation(file), datamodule=data, verbose=False)
    assert kept == fresh
    assert_logged(kept, "test", by_hand(module, data, data.test))


def test_networks_are_tested_with_what_they_were_trained_on(tmp_path: Path) -> None:
    options = {"recipe": {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}, "seed": 0}
    one, two = Evaluation("random", ipc=1, **options), Evaluation("random", ipc=2, **options)
    trainer = tiny_trainer(tmp_path, max_epochs=-1)
    trainer.fit(one, datamodule=tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "networks.ckpt")
    with pytest.raises(MisconfigurationException, match="trained on 1 random real images"):
        trainer.test(two, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "networks.ckpt")


def test_random_training_sets_differ_between_the_networks_of_a_fit(tmp_path: Path) -> None:
    evaluation = Evaluation("random", ipc=2, recipe={"num_networks": 2, "epochs": 1}, seed=0)
    seen: list[torch.Tensor] = []
    original = evaluation.training_set

    def recorded(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = original(number)
        seen.append(images)
        return images, labels

    evaluation.training_set = recorded  # type: ignore[method-assign]
    tiny_trainer(tmp_path, max_epochs=-1).fit(evaluation, datamodule=tiny_data(tmp_path))
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_fit_in_several_processes_is_refused(tmp_path: Path) -> None:
    evaluation = Evaluation("random", ipc=1, recipe={"num_networks": 1, "epochs": 1})
    data = TinyData(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Exception, match="trains its networks in one process"):
        two_processes(tmp_path, max_epochs=-1).fit(evaluation, datamodule=data)


def test_the_recipe_of_the_file_is_used_and_can_be_overridden(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, max_steps=1).fit(dm(), datamodule=tiny_data(tmp_path))
    file = str(tmp_path / "condensed.safetensors")
    stored = Evaluation(file).recipe
    assert (stored.epochs, dict(stored.backbone_args)) == (2, SMALL_NETWORK)
    changed = Evaluation(file, recipe={"epochs": 5}).recipe
    assert (changed.epochs, changed.num_networks) == (5, stored.num_networks)
    deeper = Evaluation(file, recipe={"backbone_args": {"depth": 1}}).recipe
    assert dict(deeper.backbone_args) == {**SMALL_NETWORK, "depth": 1}
    other = Evaluation(file, recipe={"backbone": "my.Net"}).recipe
    assert (other.backbone, dict(other.backbone_args), other.epochs) == ("my.Net", {}, 2)
    assert Evaluation("random", ipc=1).recipe == Recipe()


@pytest.mark.parametrize(
    ("data", "message"),
    [(OtherNormalisation, "mean"), (OtherClasses, "class names")],
)
def test_data_that_do_not_belong_to_the_set(
    tmp_path: Path, data: type[TinyData], message: str
) -> None:
    tiny_trainer(tmp_path, max_steps=1).fit(dm(), datamodule=tiny_data(tmp_path))
    evaluation = Evaluation(str(tmp_path / "condensed.safetensors"))
    with pytest.raises(MisconfigurationException, match=f"the condensed set has {message}"):
        tiny_trainer(tmp_path).test(evaluation, datamodule=data(cache_dir=str(tmp_path / "c")))


def whitened_set(folder: Path, data: ResidentDataModule) -> str:
    """Random images, whitened as the data module does."""
    images = random_images(data, 1, 0, "s")
    plain = {"class_names": data.class_names, "mean": list(data.mean), "std": list(data.std)}
    metadata = {**plain, "recipe": {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}}
    path = folder / "condensed.safetensors"
    CondensedSet(images, torch.arange(3), metadata, data.whitening).save(path)
    return str(path)


def test_a_whitened_set_is_tested_on_whitened_images(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, zca=True)
    evaluation = Evaluation(whitened_set(tmp_path, data), seed=0)
    (metrics,) = tiny_trainer(tmp_path).test(evaluation, datamodule=data, verbose=False)
    assert data.whitening is not None
    pixels = data.test.images.flatten(1) / 255 - data.whitening.mean
    images = (pixels @ data.whitening.matrix).view(data.test.images.shape)
    correct = []
    for number in range(2):
        network = train_network(
            *evaluation.training_set(number), 3, evaluation.recipe, seed=0, number=number
        )
        with torch.no_grad():
            correct.append(
                float((network(images).argmax(dim=1) == data.test.labels).double().mean())
            )
    assert metrics["test/accuracy"] == pytest.approx(50 * sum(correct), abs=1e-4)


@pytest.mark.parametrize("set_zca", [True, False])
def test_a_set_and_data_must_agree_in_whitening(tmp_path: Path, set_zca: bool) -> None:
    evaluation = Evaluation(whitened_set(tmp_path, tiny_data(tmp_path, zca=set_zca)))
    message = f"has zca {set_zca}, the data module {not set_zca}; give --data.zca {set_zca}".lower()
    with pytest.raises(MisconfigurationException, match=f"(?i){message}"):
        tiny_trainer(tmp_path).test(evaluation, datamodule=tiny_data(tmp_path, zca=not set_zca))


def test_the_whitening_of_other_images_is_refused(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, zca=True, validation_share=0.25)
    evaluation = Evaluation(whitened_set(tmp_path, data))
    with pytest.raises(MisconfigurationException, match="whitened as other training images ask"):
        tiny_trainer(tmp_path).test(evaluation, datamodule=tiny_data(tmp_path, zca=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"condensed": "random"}, "give ipc"), ({"condensed": "random", "ipc": 0}, "at least 1")],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation(**arguments)


def test_ipc_contradicts_a_file(tmp_path: Path) -> None:
    metadata = {"class_names": ["a"], "mean": [0.0], "std": [1.0]}
    path = tmp_path / "set.safetensors"
    CondensedSet(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64), metadata).save(path)
    with pytest.raises(ValueError, match=r"give ipc with condensed: random, .*, and only then"):
        Evaluation(str(path), ipc=1)
    with pytest.raises(FileNotFoundError, match="no condensed set at"):
        Evaluation("nowhere.safetensors")


class Counted(Evaluation):
    """Tells which networks its process trained."""

    def training_set(self, number: int) -> Any:
        self.asked = {*getattr(self, "asked", ()), number}
        return super().training_set(number)

    def on_test_end(self) -> None:
        rank = self.trainer.global_rank
        Path(self.trainer.default_root_dir, f"rank{rank}.txt").write_text(f"{sorted(self.asked)}")


@pytest.mark.parametrize("networks", [1, 3])
def test_two_processes_share_networks_and_images(tmp_path: Path, networks: int) -> None:
    """Every network is trained once, and every image counted once, whichever rank has it."""
    recipe = {"num_networks": networks, "epochs": 2}
    module, data = dm(recipe=recipe), tiny_data(tmp_path)
    tiny_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    expected = by_hand(module, data, data.test)
    evaluation = Counted(str(tmp_path / "condensed.safetensors"), seed=0)
    trainer = two_processes(tmp_path)
    (metrics,) = trainer.test(
        evaluation, datamodule=TinyData(cache_dir=str(tmp_path / "cache")), verbose=False
    )
    assert_logged(metrics, "test", expected)
    # The first is asked once more for its shape, by whom has networks of others to make.
    asked = ["[0]", "[0]"] if networks == 1 else ["[0, 1]", "[0, 2]"]
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == asked


def test_evaluate_outside_lightning(tmp_path: Path) -> None:
    module, data = dm(num_classes=3, image_shape=(3, 16, 16)), tiny_data(tmp_path)
    scores = evaluate(module.training_set, data.test_dataloader(), 3, 2, module.recipe, seed=0)
    torch.testing.assert_close(scores.overall, by_hand(module, data, data.test).overall)
