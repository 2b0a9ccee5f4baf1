"""The command line as a user meets it; Digits and the shipped configs included."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dam_lightning
from dam_lightning import DM, CondensedSet, Digits
from dam_lightning.cli import main
from tests.tiny import tiny_trainer

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
SHIPPED = sorted(
    path for path in CONFIGS.rglob("*.yaml") if "model" in (yaml.safe_load(path.read_text()) or {})
)
NETWORK = {"width": 4, "depth": 2}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Three steps of DM and DAM on Digits."""
    path = tmp_path / "config.yaml"
    recipe = {"num_networks": 1, "epochs": 2}
    model = {"ipc": 1, "dam": {}, "backbone_args": NETWORK, "recipe": recipe}
    content = {
        "model": {"class_path": "DM", "init_args": model},
        "data": {"class_path": "Digits", "init_args": {"batch_real": 4, "steps_per_epoch": 2}},
        "trainer": {"max_steps": 3, "accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def newest() -> Path:
    return max(Path("lightning_logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def condense(config: str, *options: str) -> CondensedSet:
    main(["fit", "--config", config, *options])
    return CondensedSet.load(newest() / "condensed.safetensors")


def test_fit_leaves_everything_in_one_folder(config: str, capsys: pytest.CaptureFixture) -> None:
    condensed = condense(config)
    names = {path.name for path in newest().iterdir()}
    assert {"condensed.safetensors", "condensed.png", "last.ckpt", "config.yaml"} <= names
    assert condensed.metadata["dam"] == 4
    assert condensed.metadata["steps"] == 3
    printed = capsys.readouterr().out
    for name in ("condensed.safetensors", "condensed.png", "last.ckpt"):
        assert str(newest() / name) in printed


def test_dam_options(config: str, capsys: pytest.CaptureFixture) -> None:
    """Switched off, partly overridden, mistyped."""
    with_dam = condense(config)
    without = condense(config, "--model.dam", "null")
    five = condense(config, "--model.dam.num_domains", "5")
    assert (with_dam.metadata["dam"], without.metadata["dam"], five.metadata["dam"]) == (4, 0, 5)
    assert not torch.equal(with_dam.images, without.images)
    for typo in ("--model.dam.num_domain", "--model.ipcs", "--data.batch_reel", "--trainer.steps"):
        with pytest.raises(SystemExit) as exit_status:
            main(["fit", "--config", config, typo, "5"])
        assert exit_status.value.code == 2
        assert typo.rpartition(".")[2] in capsys.readouterr().err


def test_resume_and_test(config: str, capsys: pytest.CaptureFixture) -> None:
    """Resumed equals unbroken; test evaluates the checkpoint and fills the ledger."""
    unbroken = condense(config, "--trainer.max_steps", "6")
    condense(config)
    checkpoint = str(newest() / "last.ckpt")
    resumed = condense(config, "--trainer.max_steps", "6", "--ckpt_path", checkpoint)
    assert torch.equal(unbroken.images, resumed.images)
    main(["test", "--config", config, "--ckpt_path", checkpoint, "--model.ledger", "l.csv"])
    main(["test", "--config", config, "--ckpt_path", checkpoint, "--model.ledger", "l.csv"])
    header, first, second = Path("l.csv").read_text().splitlines()
    assert header.startswith("dataset,ipc,method,dam,seed,steps,accuracy,deviation")
    assert first.split(",")[:7] == second.split(",")[:7]
    assert first.startswith("Digits,1,DM,4,0,3,")
    printed = capsys.readouterr().out
    assert "worst domain" in printed
    assert "DataLoader 0" not in printed


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as exit_status:
        main(list(arguments))
    assert exit_status.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_the_config_decides_not_the_checkpoint(config: str, capsys: pytest.CaptureFixture) -> None:
    """Lightning would take class and arguments from the checkpoint, whatever the user wrote."""
    condensed = condense(config)
    checkpoint = str(newest() / "last.ckpt")
    file = str(newest() / "condensed.safetensors")
    evaluate = ["test", "--model", "Evaluation", "--model.condensed", file, "--data", "Digits"]
    line = refused(capsys, *evaluate, "--ckpt_path", checkpoint)
    assert "no checkpoint of an Evaluation" in line
    line = refused(
        capsys, "test", "--config", config, "--model.ipc", "2", "--ckpt_path", checkpoint
    )
    assert "ipc: 2 here, 1 in the checkpoint" in line
    line = refused(
        capsys, "fit", "--config", config, "--model.dam", "null", "--ckpt_path", checkpoint
    )
    assert "num_domains: None here, 4 in" in line
    changed = condense(
        config, "--ckpt_path", checkpoint, "--trainer.max_steps", "4", "--model.lr_images", "3"
    )
    assert changed.metadata["config"]["model"]["lr_images"] == 3
    assert float((changed.images - condensed.images).abs().max()) > 0.1


def test_python_and_command_line_share_checkpoints(config: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dam": {}, "backbone_args": NETWORK, "seed": 0}

    def from_python(steps: int, ckpt_path: Any = None) -> DM:
        module = DM(**options)
        data = Digits(batch_real=4, steps_per_epoch=2, seed=0)
        trainer = tiny_trainer(tmp_path / "python", max_steps=steps)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    unbroken = condense(config, "--trainer.max_steps", "5")
    begun = from_python(3)
    begun.trainer.save_checkpoint("python.ckpt")
    resumed = condense(config, "--trainer.max_steps", "5", "--ckpt_path", "python.ckpt")
    assert torch.equal(unbroken.images, resumed.images)
    condense(config)
    checkpoint = newest() / "last.ckpt"
    assert torch.equal(from_python(5, checkpoint).images.detach(), unbroken.images)
    loaded = DM.load_from_checkpoint(checkpoint, weights_only=True)
    assert torch.equal(loaded.images.detach(), begun.images.detach())
    assert loaded.condensed_set().metadata["class_names"] == [str(n) for n in range(10)]


def test_evaluation_of_a_file(config: str, capsys: pytest.CaptureFixture) -> None:
    """By the shipped config, with the recipe of the file; through test, or fit and then test."""
    condense(config)
    file = str(newest() / "condensed.safetensors")
    base = ["--config", str(CONFIGS / "evaluate/convnet.yaml"), "--model.condensed", file]
    base += ["--data", "Digits", "--trainer.accelerator", "cpu"]
    capsys.readouterr()
    main(["test", *base, "--model.recipe.epochs", "3", "--model.ledger", "l.csv"])
    tested = capsys.readouterr().out
    main(["fit", *base, "--model.recipe.epochs", "3"])
    checkpoint = str(newest() / "last.ckpt")
    capsys.readouterr()
    main(["test", *base, "--model.recipe.epochs", "3", "--ckpt_path", checkpoint])
    assert capsys.readouterr().out == tested
    (row,) = csv.DictReader(Path("l.csv").read_text().splitlines())
    assert (row["dataset"], row["method"], row["dam"], row["steps"]) == ("Digits", "DM", "4", "3")
    # The config leaves the number of networks to the recipe in the file.
    assert row["networks"] == "1"


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.enable_checkpointing", "false"],
        ["--trainer.enable_progress_bar", "false"],
        ["--trainer.callbacks+=RichProgressBar"],
        ["--trainer.callbacks", "RichProgressBar"],
        ["--trainer.barebones", "true"],
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.logger", "false"],
    ],
)
def test_trainer_switches(config: str, options: list[str]) -> None:
    main(["fit", "--config", config, *options])
    if "--trainer.fast_dev_run" in options:
        assert [path.name for path in Path().iterdir()] == ["config.yaml"]


def test_a_configured_callback_takes_the_place_of_ours(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int | None] = []
    monkeypatch.setattr(
        "dam_lightning.callbacks.picture.CondensedPicture._publish",
        lambda self, *_: drawn.append(self.every_n_steps),
    )
    options = ["--trainer.callbacks+=dam_lightning.callbacks.CondensedPicture"]
    main(["fit", "--config", config, *options, "--trainer.callbacks.every_n_steps=2"])
    assert drawn == [2, 2]  # after the second step and at the end


def test_random_real_images(capsys: pytest.CaptureFixture) -> None:
    options = ["--model", "Evaluation", "--model.condensed", "random", "--model.ipc", "2"]
    options += ["--data", "Digits", "--trainer.accelerator", "cpu", "--model.ledger", "l.csv"]
    options += ["--model.recipe", "{num_networks: 2, epochs: 2, backbone_args: {width: 4}}"]
    main(["test", *options])
    assert "random" in capsys.readouterr().out
    assert Path("l.csv").read_text().splitlines()[1].startswith("Digits,2,random,0,0,0,")


def test_shipped_configs_are_found_by_name(tmp_path: Path) -> None:
    """Outside the checkout, as after an installation."""
    for name in ("quickstart.yaml", "configs/quickstart.yaml"):
        command = [sys.executable, "-m", "dam_lightning.cli", "fit", "--config", name]
        done = subprocess.run(
            [*command, "--print_config"], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert yaml.safe_load(done.stdout)["model"]["class_path"].endswith("DM")


@pytest.mark.parametrize("script", [[str(REPOSITORY / "cli.py")], ["-m", "dam_lightning.cli"]])
def test_version_and_help(script: list[str]) -> None:
    run = {"capture_output": True, "text": True, "check": True}
    version = subprocess.run([sys.executable, *script, "--version"], **run)
    assert dam_lightning.__version__ in version.stdout
    assert "fit" in subprocess.run([sys.executable, *script, "--help"], **run).stdout


def test_every_expected_config_is_shipped() -> None:
    names = {str(path.relative_to(CONFIGS)) for path in SHIPPED}
    expected = {"quickstart.yaml", "evaluate/convnet.yaml"}
    for dataset in ("digits", "pacs", "image_folder", "cifar10"):
        for method in ("dm", "dm_dam"):
            ipcs = (1, 10, 50) if dataset == "cifar10" else (1, 10)
            expected |= {f"{dataset}/{method}_ipc{ipc}.yaml" for ipc in ipcs}
    assert expected <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every one condenses, shortened; and says in its name what it does."""
    if path.parent.name == "evaluate":
        pytest.skip("needs a condensed set; run by test_evaluation_of_a_file")
    options = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    options += ["--data.batch_real", "2", "--data.cache_dir", str(tmp_path / "cache")]
    options += ["--model.backbone_args.width", "4", "--model.recipe.epochs", "1"]
    if path.parent.name == "pacs":
        options += ["--data.root", str(request.getfixturevalue("tiny_pacs"))]
    elif path.parent.name == "image_folder":
        options += ["--data.root", str(request.getfixturevalue("tiny_pacs") / "PACS")]
        options += ["--data.test_share", "0.01"]  # the smallest part
    elif path.parent.name == "cifar10":
        options += ["--data.root", str(request.getfixturevalue("tiny_cifar10"))]
    condensed = condense(str(path), *options)
    if path.parent != CONFIGS:
        method, ipc = path.stem.rsplit("_ipc", 1)
        assert condensed.metadata["ipc"] == int(ipc)
        assert condensed.metadata["dam"] == (4 if method.endswith("_dam") else 0)
        assert condensed.metadata["dataset"].lower() == path.parent.name.replace("_", "")
        paper = yaml.safe_load(path.read_text())
        assert paper["trainer"]["max_steps"] == 20_000
        model = condensed.metadata["config"]["model"]
        assert (model["lr_images"], model["momentum"], model["init"]) == (1.0, 0.5, "noise")
        assert paper["model"]["init_args"].get("dam", {}) == {}


def test_configs_for_larger_images_use_the_deeper_network() -> None:
    for path in SHIPPED:
        if path.parent.name in ("pacs", "image_folder"):
            model = yaml.safe_load(path.read_text())["model"]["init_args"]
            assert model["backbone_args"] == {"depth": 4}
