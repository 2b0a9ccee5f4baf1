"""Every figure of the paper has a command in configs/README.md, and the commands are valid."""

import contextlib
import io
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dam_lightning.cli import main
from dam_lightning.report.paper import DATASETS, Figure, figures

README = Path(__file__).parents[1] / "configs" / "README.md"


class Row(NamedTuple):
    """What tells the rows of a table apart."""

    table: str
    dataset: str
    ipc: str
    method: str
    what: str


@cache
def documented() -> dict[Row, tuple[str, str]]:
    """The figure and the command of every row of the README's tables."""
    found: dict[Row, tuple[str, str]] = {}
    table = ""
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            titled = re.match(r"## Table (\w):", line)
            table = titled[1] if titled else ""
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not table or not line.startswith("|") or cells[0] in ("dataset", "---"):
            continue
        dataset, ipc, method, *what, figure, command = cells
        row = Row(table, dataset, ipc, method, *(what or [""]))
        assert row not in found, f"twice: {row}"
        found[row] = (figure, command)
    return found


def row_of(figure: Figure) -> Row:
    return Row(figure.table, figure.dataset, figure.ipc, figure.label, figure.what)


def test_every_figure_of_the_paper_has_its_command() -> None:
    rows = {row_of(figure): figure for figure in figures()}
    assert len(rows) == len(figures()) == 375
    assert set(documented()) == set(rows)
    for row, figure in rows.items():
        printed, command = documented()[row]
        assert printed == figure.printed, row
        commands = [shlex.split(found) for found in re.findall("`(.*?)`", command)]
        assert commands == figure.commands, row


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line makes of a command, which is not run."""
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code == 0
    config: dict[str, Any] = yaml.safe_load(shown.getvalue())
    return config


def test_the_commands_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do what their rows are about."""
    seen = set()
    for figure in figures():
        for arguments in figure.commands:
            if tuple(arguments) in seen:
                continue
            seen.add(tuple(arguments))
            config = parsed([*arguments, "--data.root", "DIR"], monkeypatch)
            assert config["data"]["class_path"].endswith(f".{DATASETS[figure.dataset][0]}")
            model, data = config["model"]["init_args"], config["data"]["init_args"]
            if arguments[0] == "test":
                assert config["model"]["class_path"].endswith(".Evaluation")
                if figure.table == "3":
                    assert figure.what.replace("-", "") in model["backbones"]
                    assert data["zca"] == (figure.method == "MTT")
                else:
                    assert model["condensed"] == figure.method.lower()
                    assert model["ipc"] == (None if figure.ipc == "all" else int(figure.ipc))
                continue
            assert config["model"]["class_path"].endswith(f".{figure.method}")
            assert model["ipc"] == int(figure.ipc)
            assert (model["dam"] is not None) == (figure.dam == "1")
            assert model["init"] == figure.init
            value = figure.what.rpartition("=")[2]
            changed = {"C": "weight", "D": "temperature"}.get(figure.table)
            if changed is not None:
                assert model["dam"] == {changed: float(value)}
            if figure.table == "B":
                assert model["dam"] == {"init": "normal", "init_value": float(value)}
            if figure.table == "6":
                source, _, grouping = figure.what.replace("-", "_").partition("+")
                assert data["pseudo_labels"] == source
                assert data["pseudo_grouping"] == (grouping or "mean_sort")
            if figure.table in "45":
                chosen = [figure.target_domain]
                single = figure.setting == "single-domain"
                assert data["train_domains"] == (chosen if single else None)
                assert data["test_domains"] == (chosen if figure.table == "4" else None)
                assert data["left_out_domain"] == (chosen[0] if figure.table == "5" else None)


@pytest.mark.parametrize("domains", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("folder", ["cifar10", "pacs"])
def test_figure_4(folder: str, domains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ["--config", f"{folder}/dm_dam_ipc1.yaml", "--data.root", "DIR"]
    changed = ["--model.dam.num_domains", str(domains)]
    found = parsed(["fit", *config, *changed], monkeypatch)
    assert found["model"]["init_args"]["dam"] == {"num_domains": domains}
