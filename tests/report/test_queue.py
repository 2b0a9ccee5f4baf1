"""The commands still to run."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dam_lightning.cli import main
from dam_lightning.report.commands import read
from dam_lightning.report.queue import Entry, entries, queue, to_run
from dam_lightning.report.runs import find_runs
from tests.report.ledgers import rows, with_dam

CROSS = "cli.py test --config evaluate/cross_architecture.yaml --data CIFAR10 --model.condensed F"
SIX = ["ConvNet", "AlexNet", "VGG11", "ResNet18", "ViTTiny", "ViTSmall"]


def test_what_comes_first() -> None:
    titles = list(dict.fromkeys((entry.section, entry.title) for entry in entries()))
    assert [title for section, title in titles if section == "Seed 0"] == [
        "PACS, DM, ipc 1",
        "PACS, DM, ipc 10",
        "CIFAR-10, DM, ipc 1",
        "CIFAR-10, DM, ipc 10",
        "PACS, MTT, ipc 1",
        "CIFAR-10, DC, ipc 1",
        "PACS, DC, ipc 1",
        "PACS, DM, ipc 1, one domain left out",
        "CIFAR-10, MTT, ipc 1",
        "CIFAR-10, DM, ipc 10, other backbones",
        "PACS, random real images, ipc 1",
        "PACS, random real images, ipc 10",
        "CIFAR-10, random real images, ipc 1",
        "CIFAR-10, random real images, ipc 10",
        "PACS, whole dataset",
        "CIFAR-10, whole dataset",
    ]
    # Nothing is condensed of random images and whole datasets.
    assert [title for section, title in titles if section == "Seeds 1 and 2"] == [
        title for section, title in titles[:10]
    ]
    names = [entry.name for entry in entries() if entry.title == "PACS, DM, ipc 1"]
    assert names == [
        "pacs_dm_ipc1_seed0",
        "pacs_dm_dam_ipc1_seed0",
        "pacs_dm_ipc1_seed1",
        "pacs_dm_dam_ipc1_seed1",
        "pacs_dm_ipc1_seed2",
        "pacs_dm_dam_ipc1_seed2",
    ]
    left_out = [entry.name for entry in entries() if "left out" in entry.title][:4]
    assert left_out == [
        "pacs_dm_ipc1_left_out_domain_art_painting_seed0",
        "pacs_dm_dam_ipc1_left_out_domain_art_painting_seed0",
        "pacs_dm_ipc1_left_out_domain_cartoon_seed0",
        "pacs_dm_dam_ipc1_left_out_domain_cartoon_seed0",
    ]
    # 9 condensations with and without DAM and 3 targets more, 6 baselines; 3 seeds.
    assert len(entries()) == 3 * (2 * 9 + 2 * 4) + 6 == 84


def test_the_commands_of_a_run() -> None:
    (entry,) = (each for each in entries() if each.name == "pacs_dm_dam_ipc10_seed2")
    assert entry.lines == (
        "dam-lightning fit --config pacs/dm_dam_ipc10.yaml --seed_everything 2 \\\n"
        '    --data.root "$DIR" --trainer.logger false \\\n'
        "    --trainer.default_root_dir results/runs/pacs_dm_dam_ipc10_seed2 "
        "$(resume pacs_dm_dam_ipc10_seed2) &&\n"
        "dam-lightning test --config pacs/dm_dam_ipc10.yaml --seed_everything 2 \\\n"
        '    --data.root "$DIR" --trainer.logger false \\\n'
        "    --ckpt_path results/runs/pacs_dm_dam_ipc10_seed2/last.ckpt "
        "--model.ledger results/ledger.csv"
    )


def left(folder: Path, *changes: dict[str, object]) -> set[str]:
    """What a ledger with these rows takes off the queue."""
    remaining = to_run(find_runs(rows(folder, *changes)))
    assert [entry for entry in entries() if entry in remaining] == remaining
    return {entry.name + entry.title for entry in entries() if entry not in remaining}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, {"pacs_dm_ipc1_seed0PACS, DM, ipc 1"}),
        (with_dam(seed=2), {"pacs_dm_dam_ipc1_seed2PACS, DM, ipc 1"}),
        ({"seed": 3}, set()),
        ({"steps": 19999}, set()),
        ({"networks": 9}, set()),
    ],
)
def test_what_is_at_full_length_is_left_out(
    changes: dict[str, object], taken: set[str], tmp_path: Path
) -> None:
    assert left(tmp_path, changes) == taken


def test_six_backbones_are_one_entry(tmp_path: Path) -> None:
    row = {"command": CROSS, "dataset": "CIFAR10", "ipc": 10}
    six = [{**row, "backbone": backbone} for backbone in SIX]
    name = "cifar10_dm_ipc10_seed0CIFAR-10, DM, ipc 10, other backbones"
    assert left(tmp_path / "six", *six) == {name}
    assert left(tmp_path / "five", *six[1:]) == set()


def test_only_what_is_left_is_printed(tmp_path: Path) -> None:
    text = queue(find_runs(rows(tmp_path, {})))
    assert "83 of 84" in text
    assert "config pacs/dm_ipc1.yaml --seed_everything 0" not in text
    assert text.count("config pacs/dm_dam_ipc1.yaml --seed_everything 0") == 2
    assert text.count("config pacs/dm_ipc1.yaml --seed_everything 1") == 2


def written(entry: Entry, folder: Path) -> list[list[str]]:
    """The arguments of an entry's commands, as a shell would have them."""
    lines = entry.lines.replace("\\\n", " ").replace('"$DIR"', str(folder))
    resumed = f"$(resume {entry.name})"
    return [
        shlex.split(line.removesuffix("&&").replace(resumed, f"--ckpt_path {folder}/last.ckpt"))
        for line in lines.splitlines()
    ]


def test_the_commands_are_those_of_the_figures(tmp_path: Path) -> None:
    for entry in entries():
        commands = written(entry, tmp_path)
        assert all(command[0] == "dam-lightning" for command in commands)
        assert [command[1] for command in commands] in (["fit", "test"], ["test"])
        tested = read(shlex.join(commands[-1])).settings
        figure = entry.figures[0]
        if figure.table == "3":
            file = f"results/runs/{entry.name}/condensed.safetensors"
            assert tested["model.condensed"] == file
            assert len(entry.figures) == 6
        else:
            (arguments,) = figure.commands
            assert tested == read(shlex.join(arguments)).settings
        for command in commands:
            options = dict(zip(command[2::2], command[3::2], strict=True))
            assert options["--seed_everything"] == str(entry.seed)
            assert ("--model.ledger" in options) == (command[1] == "test")


def test_the_commands_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line reads them; those of the other seeds differ by a number."""
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    for entry in entries():
        if entry.seed > 0:
            continue
        for command in written(entry, tmp_path):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
                main([*command[1:], "--print_config"])
            assert ended.value.code == 0
            config: dict[str, Any] = yaml.safe_load(shown.getvalue())
            assert config["seed_everything"] == 0
            assert config["trainer"]["logger"] is False
            if command[1] == "fit":
                assert config["ckpt_path"] == f"{tmp_path}/last.ckpt"
                assert config["trainer"]["default_root_dir"] == f"results/runs/{entry.name}"
            else:
                assert config["model"]["init_args"]["ledger"] == "results/ledger.csv"


def test_blocks_are_for_bash() -> None:
    """The definitions first; the rest as the entries have it."""
    definitions, *blocks = re.findall(r"```bash\n(.*?)\n```\n", queue([]), flags=re.DOTALL)
    assert definitions.startswith("DIR=")
    assert "\nresume() {" in definitions
    assert blocks == [entry.lines for entry in entries()]
