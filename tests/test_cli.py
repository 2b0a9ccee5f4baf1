"""The command line as a user meets it; Digits and the shipped configs included."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dam_lightning
from dam_lightning import DM, CondensedSet, Digits
from dam_lightning.cli import _newest, main
from tests.tiny import tiny_trainer

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
NETWORK = {"width": 4, "depth": 2}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])


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


@pytest.mark.parametrize(
    ("typo", "hint"),
    [("--data.batch_rael", "--data.help Digits"), ("--model.icp", "--model.help DC")],
)
def test_the_hint_names_what_was_given(typo: str, hint: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model", "DC", "--data", "Digits", typo, "3"])
    assert hint in capsys.readouterr().err


def test_evaluation_without_augmentation(config: str) -> None:
    """In either way of writing a single option of several."""
    for given in (
        ["--model.recipe.augmentation", "null"],
        ["--model.recipe", "{augmentation: null}"],
    ):
        assert condense(config, *given).metadata["recipe"]["augmentation"] is None


@pytest.mark.parametrize("arguments", [[], ["fti"], ["fit", "--model.ipc", "1"]])
def test_the_hint_is_of_commands_that_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    hint, error = capsys.readouterr().err.splitlines()[-2:]
    assert " fit --help lists" in hint
    assert " fit --model.help DM" in hint
    assert error.startswith("error: ")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.help", "DM"])
    assert stop.value.code == 0
    assert "--model.ipc" in capsys.readouterr().out


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
    assert header.startswith("dataset,ipc,method,dam,seed,steps,backbone,accuracy,deviation")
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


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_epochs", "0"), ("limit_train_batches", "0"), ("limit_train_batches", "0.0")],
)
def test_a_fit_of_no_steps_is_refused(
    config: str, option: str, value: str, capsys: pytest.CaptureFixture
) -> None:
    """Lightning would end it at once, as if all were well."""
    line = refused(capsys, "fit", "--config", config, f"--trainer.{option}", value)
    assert f"{option} must not be 0: nothing would be condensed" in line
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


@pytest.mark.parametrize(
    ("script", "option", "told"),
    [
        ([str(REPOSITORY / "cli.py")], "--version", dam_lightning.__version__),
        (["-m", "dam_lightning.cli"], "--help", "fit"),
    ],
)
def test_version_and_help(script: list[str], option: str, told: str) -> None:
    command = [sys.executable, *script, option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told in done.stdout


def test_the_last_checkpoint_is_the_newest_of_any_kind(tmp_path: Path) -> None:
    names = ("lightning_logs/version_0/last.ckpt", "hpc_ckpt_1.ckpt", "last.ckpt")
    assert _newest(tmp_path) is None
    for age, name in enumerate((*names, *names[:2])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
        assert _newest(tmp_path) == str(tmp_path / name)
