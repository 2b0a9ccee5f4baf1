"""Every shipped config says what the sources say, and runs."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dam_lightning import CondensedSet
from dam_lightning.cli import main
from tests.tiny_datasets import use_checksums, write_dataset

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = {
    str(path.relative_to(CONFIGS)): path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if "model" in (yaml.safe_load(path.read_text()) or {})
}
DATASETS = {
    "digits": "Digits",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "tiny_imagenet": "TinyImageNet",
    "pacs": "PACS",
    "vlcs": "VLCS",
    "office_home": "OfficeHome",
    "domain_net": "DomainNet",
    "image_folder": "ImageFolder",
}
IPCS = {
    "digits": {"dm": (1, 10), "dc": (1, 10), "mtt": (1, 10)},
    "cifar10": {"dm": (1, 10, 50), "dc": (1, 10, 50), "mtt": (1, 10, 50)},
    "cifar100": {"dm": (1, 10, 50), "dc": (1, 10), "mtt": (1, 10)},
    "tiny_imagenet": {"dm": (1,), "mtt": (1,)},
    "pacs": {"dm": (1, 10), "dc": (1, 10), "mtt": (1, 10)},
    "vlcs": {"dm": (1, 10), "dc": (1, 10), "mtt": (1, 10)},
    "office_home": {"dm": (1, 10), "dc": (1,), "mtt": (1,)},
    "domain_net": {"dm": (1,)},
    "image_folder": {"dm": (1, 10)},
}
NO_FLIP = "color_crop_cutout_scale_rotate"

OUTER = {1: 1, 10: 10, 50: 50}
# Steps, expert epochs, start epochs, step sizes of images and of the student's, its initial value:
# spec of the DAM paper, table H, and of MTT where that is silent.
MTT = {
    ("cifar10", 1): (50, 2, 2, 1e2, 1e-7, 0.01, True),
    ("cifar10", 10): (30, 2, 20, 1e3, 1e-6, 0.01, True),
    ("cifar10", 50): (30, 2, 40, 1e3, 1e-5, 0.001, False),
    ("cifar100", 1): (20, 3, 20, 1e3, 1e-5, 0.01, True),
    ("cifar100", 10): (20, 2, 20, 1e3, 1e-5, 0.01, False),
    ("tiny_imagenet", 1): (10, 2, 10, 1e4, 1e-4, 0.01, False),
    ("vlcs", 1): (10, 2, 10, 1e4, 1e-6, 0.01, False),
    ("vlcs", 10): (20, 2, 40, 1e4, 1e-6, 0.01, False),
    ("office_home", 1): (10, 2, 10, 1e4, 1e-4, 0.01, False),
    ("pacs", 1): (10, 2, 10, 1e4, 1e-5, 0.01, False),
    ("pacs", 10): (20, 2, 40, 1e4, 1e-6, 0.01, False),
    ("digits", 1): (50, 2, 5, 1e3, 1e-7, 0.01, False),
    ("digits", 10): (30, 2, 14, 1e3, 1e-5, 0.01, False),
}
CELLS = [
    (dataset, method, dam, ipc)
    for dataset in DATASETS
    for method, ipcs in IPCS[dataset].items()
    for dam in (False, True)
    for ipc in ipcs
]


def name(dataset: str, method: str, dam: bool, ipc: int) -> str:
    return f"{dataset}/{method}{'_dam' * dam}_ipc{ipc}.yaml"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, because whitening takes its time."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny dataset, by the name of its configs' folder."""

    @cache
    def root(name: str) -> Path:
        folder = tmp_path_factory.mktemp("tiny") / name
        write_dataset(name, folder)
        return folder

    return root


@pytest.fixture
def options(
    cache_dir: Path, written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """What makes a config of a dataset run on little data in little time."""

    def given(name: str) -> list[str]:
        arguments = ["--trainer.accelerator", "cpu", "--data.batch_real", "2"]
        arguments += ["--data.cache_dir", str(cache_dir)]
        if name != "digits":
            use_checksums(name, written(name), monkeypatch)
            root = written(name) / "PACS" if name == "image_folder" else written(name)
            arguments += ["--data.root", str(root)]
        return arguments

    return given


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def condense(arguments: list[str]) -> CondensedSet:
    main(["fit", *arguments])
    (run,) = Path("lightning_logs").iterdir()
    return CondensedSet.load(run / "condensed.safetensors")


def test_the_configs_are_those_that_are_documented() -> None:
    expected = {"quickstart.yaml", "evaluate/convnet.yaml", *(name(*cell) for cell in CELLS)}
    expected |= {f"experts/{dataset}.yaml" for dataset in IPCS if "mtt" in IPCS[dataset]}
    expected |= {f"evaluate/{name}.yaml" for name in ("baseline", "whole", "cross_architecture")}
    assert set(SHIPPED) == expected


@pytest.mark.parametrize(("dataset", "method", "dam", "ipc"), CELLS)
def test_values(dataset: str, method: str, dam: bool, ipc: int) -> None:
    """As the paper has them, or the original where the paper is silent."""
    config = yaml.safe_load(SHIPPED[name(dataset, method, dam, ipc)].read_text())
    model: dict[str, Any] = config["model"]["init_args"]
    assert config["model"]["class_path"] == method.upper()
    assert config["data"]["class_path"] == DATASETS[dataset]
    assert model.pop("ipc") == ipc
    assert model.pop("dam", None) == ({} if dam else None)
    steps = config["trainer"].pop("max_steps")
    zca = config["data"].get("init_args", {}).get("zca", False)
    if method == "dm":
        assert steps == 20_000
    elif method == "dc":
        assert steps == 1000 * OUTER[ipc]
    else:
        assert steps == 5000
        found = (
            model.pop("student_steps"),
            model.pop("expert_epochs"),
            model.pop("max_start_epoch"),
            model.pop("lr_images"),
            model.pop("lr_step_size"),
            model.pop("initial_step_size", 0.01),
            zca,
        )
        assert found == MTT[dataset, ipc]
    if dataset == "digits":
        if method == "dc":
            assert model.pop("recipe") == {"augmentation": NO_FLIP}
        else:
            assert model.pop("augmentation") == NO_FLIP
    # Everything else is a default, and DM and DC whiten nothing.
    assert model == {}
    assert config["trainer"] == {}
    assert method == "mtt" or not zca


@pytest.mark.parametrize(
    ("dataset", "method", "dam", "ipc"), [cell for cell in CELLS if cell[2] or cell[3] == 1]
)
def test_they_condense(
    dataset: str, method: str, dam: bool, ipc: int, options: Callable[[str], list[str]]
) -> None:
    """Shortened to a step and, of the smallest, an evaluation; and their names say what they do.

    Without DAM those of more images are those with it, but for a line, as `test_values` has it.
    """
    path = str(SHIPPED[name(dataset, method, dam, ipc)])
    arguments = ["--config", path, *options(dataset), "--trainer.max_steps", "1"]
    arguments += ["--model.backbone_args.width", "4", "--model.backbone_args.depth", "1"]
    if method == "dc":
        arguments += ["--model.inner_loop", "1"]
    if method == "mtt":
        arguments += ["--model.student_steps", "1", "--model.max_start_epoch", "1"]
        arguments += ["--model.expert_epochs", "1", "--model.experts.count", "1"]
    condensed = condense(arguments)
    assert condensed.metadata["method"] == method.upper()
    assert condensed.metadata["ipc"] == ipc
    assert condensed.metadata["dam"] == (4 if dam else 0)
    assert condensed.metadata["dataset"] == DATASETS[dataset]
    assert condensed.metadata["steps"] == 1
    model = condensed.metadata["config"]["model"]
    assert (model["momentum"], model["init"]) == (0.5, "noise")
    assert method == "mtt" or model["lr_images"] == {"dm": 1.0, "dc": 0.1}[method]
    # All are tested by the protocol of DM, which augments.
    recipe = condensed.metadata["recipe"]
    assert recipe["augmentation"] == (
        NO_FLIP if dataset == "digits" else "color_crop_cutout_flip_scale_rotate"
    )
    assert recipe["epochs"] == 1001
    if method == "mtt":
        weight = None if model["dam"] is None else model["dam"].get("weight", 0.01)
        assert weight == (0.01 if dam else None)
        assert recipe["lr"] == condensed.metadata["step_size"]
    whitened = method == "mtt" and MTT[dataset, ipc][-1]
    assert (condensed.whitening is not None) == whitened
    if ipc == 1:
        short = ["--model.recipe.epochs", "1", "--model.recipe.num_networks", "1"]
        last = Path("lightning_logs/version_0/last.ckpt")
        main(["test", *arguments, *short, "--ckpt_path", str(last)])


def test_the_quickstart(cache_dir: Path) -> None:
    arguments = ["--config", str(SHIPPED["quickstart.yaml"]), "--trainer.max_steps", "2"]
    arguments += ["--trainer.accelerator", "cpu", "--data.batch_real", "2"]
    arguments += ["--model.backbone_args.width", "4", "--model.recipe.epochs", "1"]
    assert condense([*arguments, "--data.cache_dir", str(cache_dir)]).metadata["dam"] == 4


@pytest.mark.parametrize("dataset", [dataset for dataset in IPCS if "mtt" in IPCS[dataset]])
@pytest.mark.parametrize("domains", [None, 4])
def test_experts(
    dataset: str,
    domains: int | None,
    options: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    """Epochs that do for every config of MTT on the same data."""
    path = SHIPPED[f"experts/{dataset}.yaml"]
    read = [
        starts - 1 + epochs
        for (of, ipc), (_, epochs, starts, *_) in MTT.items()
        if of == dataset and ipc in IPCS[dataset]["mtt"]
    ]
    assert yaml.safe_load(path.read_text())["model"]["init_args"]["epochs"] == max(read)
    arguments = ["--config", str(path), *options(dataset), "--model.backbone_args.width", "4"]
    arguments += ["--model.count", "1", "--model.epochs", "1", "--model.folder", str(tmp_path)]
    if domains is not None:
        arguments += ["--model.num_domains", str(domains)]
    main(["fit", *arguments])
    kind = "class" if domains is None else "domain"
    assert [file.name for file in (tmp_path / kind).iterdir()] == ["expert_0000.safetensors"]
