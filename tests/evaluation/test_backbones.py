"""One training set on several backbones; tests on some of the domains."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dam_lightning import CondensedSet, Evaluation
from dam_lightning.data import Split
from dam_lightning.evaluation import BackboneOptions
from tests.evaluation.test_loop import Validated
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer

RECIPE = {**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}
SHALLOW: BackboneOptions = {"backbone": "ConvNet", "backbone_args": {"depth": 1}}
PLAIN: BackboneOptions = {"backbone": "ConvNet", "backbone_args": {"norm": "none"}}
SHALLOW_NAME = "ConvNet(width=8, depth=1)"
PLAIN_NAME = "ConvNet(width=8, depth=2, norm=none)"


def evaluation(**options: Any) -> Evaluation:
    return Evaluation(**{"condensed": "random", "ipc": 2, "recipe": RECIPE, "seed": 0, **options})


class SomeDomains(TinyData):
    """Tested on the second of three domains, and without the last class."""

    domain_names = ("plain", "stripes", "dots")
    tested: tuple[int, ...] = (1,)

    def load_splits(self) -> dict[str, Split]:
        splits = dict(super().load_splits())
        test = splits["test"]
        kept = torch.isin(test.domains, torch.tensor(self.tested)) & (test.labels < 2)
        return {"train": splits["train"], "test": test.subset(kept)}


class TwoOfThree(SomeDomains):
    tested = (0, 1)


def test_each_backbone_is_evaluated_as_if_it_were_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, ledger = tiny_data(tmp_path), tmp_path / "ledger.csv"
    module = evaluation(backbones=["ConvNet", SHALLOW, PLAIN], ledger=str(ledger))
    (together,) = tiny_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    printed = capsys.readouterr().out
    names = {
        "ConvNet(width=8, depth=2)": {},
        SHALLOW_NAME: {"depth": 1},
        PLAIN_NAME: {"norm": "none"},
    }
    with ledger.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["backbone"] for row in rows] == list(names)
    for (name, options), row in zip(names.items(), rows, strict=True):
        recipe = {**RECIPE, "backbone_args": {**SMALL_NETWORK, **options}}
        (alone,) = tiny_trainer(tmp_path).test(
            evaluation(recipe=recipe), datamodule=data, verbose=False
        )
        own = {k.replace(f"/{name}/", "/"): v for k, v in together.items() if f"/{name}/" in k}
        assert own.keys() == alone.keys()
        assert own == pytest.approx(alone, nan_ok=True)
        assert name in printed
        assert float(row["accuracy"]) == pytest.approx(alone["test/accuracy"], abs=0.01)
        assert (row["method"], row["networks"], row["ipc"]) == ("random", "2", "2")
    assert len(together) == 3 * len(alone)
    assert printed.count("worst domain") == 1
    assert "trained on random" in printed


def test_names_have_options_only_where_they_must(tmp_path: Path) -> None:
    mine = "dam_lightning.backbones.convnet.ConvNet"
    module = evaluation(backbones=["ConvNet", {"backbone": mine, "backbone_args": SMALL_NETWORK}])
    data = Validated(cache_dir=str(tmp_path / "cache"))
    (metrics,) = tiny_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert {"val/ConvNet/accuracy", f"val/{mine}/accuracy"} <= metrics.keys()
    assert "val/accuracy" not in metrics


def test_options_of_a_file_go_with_its_backbone(tmp_path: Path) -> None:
    plain = {"class_names": ["a"], "mean": [0.0], "std": [1.0]}
    stored = {"recipe": {"backbone": "ConvNet", "backbone_args": {"depth": 4}, "epochs": 7}}
    path = str(tmp_path / "set.safetensors")
    images, labels = torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    CondensedSet(images, labels, {**plain, **stored}).save(path)
    recipes = Evaluation(path, backbones=["ConvNet", "ResNet18"], recipe={"lr": 0.5}).recipes
    assert dict(recipes["ConvNet"].backbone_args) == {"depth": 4}
    assert dict(recipes["ResNet18"].backbone_args) == {}
    assert {(recipe.epochs, recipe.lr) for recipe in recipes.values()} == {(7, 0.5)}
    compiled = Evaluation(path, backbones=["ConvNet", "ResNet18"], recipe={"compile": True})
    assert {recipe.compile for recipe in compiled.recipes.values()} == {True}


@pytest.mark.parametrize(
    ("backbones", "message"),
    [
        ([], "at least one"),
        (["ConvNet", "ConvNet"], r"backbones has ConvNet\(width=8, depth=2\) twice"),
        ([{"backbone_args": {}}], "give names, or backbone with backbone_args"),
        ([{"backbone": "ConvNet", "epochs": 3}], "give names, or backbone with backbone_args"),
    ],
)
def test_bad_lists(backbones: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(backbones=backbones)


def test_a_backbone_that_cannot_be_made_is_refused_before_any_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dam_lightning.evaluation.loop.train_networks", None)
    deep: BackboneOptions = {"backbone": "ConvNet", "backbone_args": {"depth": 9}}
    with pytest.raises(ValueError, match="too small for depth 9"):
        tiny_trainer(tmp_path).test(
            evaluation(backbones=["ConvNet", deep]), datamodule=tiny_data(tmp_path)
        )


def test_networks_of_several_backbones_are_not_kept(tmp_path: Path) -> None:
    trainer, data = tiny_trainer(tmp_path, max_epochs=-1), tiny_data(tmp_path)
    with pytest.raises(MisconfigurationException, match="leave out backbones, and name it with"):
        trainer.fit(evaluation(backbones=["ConvNet", SHALLOW]), datamodule=data)
    trainer = tiny_trainer(tmp_path, max_epochs=-1)
    trainer.fit(evaluation(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "networks.ckpt")
    with pytest.raises(MisconfigurationException, match="networks of one backbone, ConvNet"):
        trainer.test(
            evaluation(backbones=["ConvNet", SHALLOW]),
            datamodule=data,
            ckpt_path=tmp_path / "networks.ckpt",
        )


@pytest.mark.parametrize("backbones", [None, ["ConvNet", SHALLOW]])
def test_domains_and_classes_without_test_images_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, backbones: Any
) -> None:
    data = SomeDomains(cache_dir=str(tmp_path / "cache"))
    (metrics,) = tiny_trainer(tmp_path).test(
        evaluation(backbones=backbones), datamodule=data, verbose=False
    )
    printed = capsys.readouterr().out
    assert "stripes" in printed
    for word in ("plain", "dots", "nan", "worst domain"):
        assert word not in printed
    assert all(value == value for value in metrics.values())
    (domain, *_) = kept = [name for name in metrics if "/domain/" in name]
    assert len(kept) == (1 if backbones is None else 2)
    prefix = domain.removesuffix("domain/stripes")
    overall = metrics[f"{prefix}accuracy"]
    assert metrics[domain] == metrics[f"{prefix}worst_domain"] == pytest.approx(overall)
    assert {f"{prefix}class/ant", f"{prefix}class/bee"} <= metrics.keys()
    assert f"{prefix}class/cow" not in metrics


def test_the_worst_of_the_domains_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, ledger = TwoOfThree(cache_dir=str(tmp_path / "cache")), tmp_path / "ledger.csv"
    one = evaluation(recipe={**RECIPE, "num_networks": 1}, ledger=str(ledger))
    (metrics,) = tiny_trainer(tmp_path).test(one, datamodule=data, verbose=False)
    printed = capsys.readouterr().out
    assert "worst domain" in printed
    assert "dots" not in printed
    worst = min(metrics["test/domain/plain"], metrics["test/domain/stripes"])
    assert metrics["test/worst_domain"] == worst
    with ledger.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["worst_domain"]) == pytest.approx(worst, abs=0.01)
