"""Every config of an evaluation says what is documented, and runs."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dam_lightning import CondensedSet, Digits
from dam_lightning.cli import main
from dam_lightning.data import random_images

FOLDER = Path(__file__).parents[1] / "configs" / "evaluate"
SIX = ["ConvNet", "AlexNet", "VGG11", "ResNet18", "ViTTiny", "ViTSmall"]
BASELINES = ["random", "herding", "k_center", "k_means"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    data = Digits(cache_dir=str(tmp_path_factory.mktemp("cache")))
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def init_args(name: str) -> dict[str, Any]:
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(config) == {"model"}
    assert config["model"]["class_path"] == "Evaluation"
    return config["model"]["init_args"]


def evaluated(name: str, *arguments: str) -> list[dict[str, str]]:
    """The ledger's rows of a short test on the digits."""
    quick = ["--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "1"]
    quick += ["--data", "Digits", "--data.test_batch_size", "4", "--data.cache_dir", "cache"]
    quick += ["--model.recipe.num_networks", "1", "--model.recipe.epochs", "1"]
    config = str(FOLDER / f"{name}.yaml")
    main(["test", "--config", config, *quick, *arguments, "--model.ledger", "ledger.csv"])
    with Path("ledger.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def small_set(data: Digits) -> str:
    images = random_images(data, 1, 0, "s")
    normalisation = {"mean": list(data.mean), "std": list(data.std)}
    recipe = {"backbone": "ConvNet", "backbone_args": {"width": 4, "depth": 2}}
    metadata = {
        "class_names": data.class_names,
        "method": "DM",
        "ipc": 1,
        "dam": 4,
        **normalisation,
        "recipe": recipe,
    }
    CondensedSet(images, torch.arange(10), metadata).save("set.safetensors")
    return "set.safetensors"


def test_the_configs_are_those_that_are_documented() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert names == {"convnet", "baseline", "whole", "cross_architecture"}


def test_a_condensed_set(digits: Digits) -> None:
    assert init_args("convnet") == {"recipe": {"backbone": "ConvNet"}}
    (row,) = evaluated("convnet", "--model.condensed", small_set(digits))
    assert (row["method"], row["dam"], row["ipc"]) == ("DM", "4", "1")
    assert row["backbone"] == "ConvNet(width=4, depth=2)"


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines(baseline: str) -> None:
    assert init_args("baseline") == {"condensed": "random", "recipe": {"backbone": "ConvNet"}}
    arguments = ["--model.ipc", "2", "--model.recipe.backbone_args.width", "4"]
    if baseline != "random":
        arguments += ["--model.condensed", baseline, "--model.selection.features", "pixels"]
    (row,) = evaluated("baseline", *arguments)
    assert (row["method"], row["ipc"], row["dataset"]) == (baseline, "2", "Digits")


def test_a_coreset_by_trained_features() -> None:
    """The default, with fewer epochs."""
    arguments = ["--model.condensed", "herding", "--model.ipc", "2"]
    arguments += ["--model.selection.epochs", "1", "--model.recipe.backbone_args.width", "4"]
    (row,) = evaluated("baseline", *arguments)
    assert row["method"] == "herding"


def test_the_whole_set() -> None:
    assert init_args("whole") == {"condensed": "whole", "recipe": {"epochs": 101}}
    (row,) = evaluated("whole", "--model.recipe.backbone_args.width", "4")
    assert (row["method"], row["ipc"]) == ("whole", "")


def test_six_backbones(digits: Digits, capsys: pytest.CaptureFixture) -> None:
    assert init_args("cross_architecture") == {"backbones": SIX}
    rows = evaluated("cross_architecture", "--model.condensed", small_set(digits))
    assert [row["backbone"] for row in rows] == ["ConvNet(width=4, depth=2)", *SIX[1:]]
    assert {(row["method"], row["networks"]) for row in rows} == {("DM", "1")}
    lines = capsys.readouterr().out.splitlines()
    assert any(all(name in line for name in SIX) for line in lines)  # one table


def test_backbones_can_be_given_on_the_command_line(digits: Digits) -> None:
    given = "[ConvNet, {backbone: ConvNet, backbone_args: {depth: 1}}]"
    arguments = ["--model.condensed", small_set(digits), "--model.backbones", given]
    rows = evaluated("convnet", *arguments)
    assert [row["backbone"] for row in rows] == [
        "ConvNet(width=4, depth=2)",
        "ConvNet(width=4, depth=1)",
    ]
