"""Every figure of the paper has a command in configs/README.md, and the commands are valid."""

import contextlib
import csv
import io
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dam_lightning.cli import main

FIGURES = Path(__file__).parent / "paper" / "accuracy.csv"
README = Path(__file__).parents[1] / "configs" / "README.md"
FOLDERS = {
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
    "Tiny-ImageNet": "tiny_imagenet",
    "PACS": "pacs",
    "VLCS": "vlcs",
    "Office-Home": "office_home",
    "DomainNet": "domain_net",
}
CLASSES = {
    "CIFAR-10": "CIFAR10",
    "CIFAR-100": "CIFAR100",
    "Tiny-ImageNet": "TinyImageNet",
    "PACS": "PACS",
    "VLCS": "VLCS",
    "Office-Home": "OfficeHome",
    "DomainNet": "DomainNet",
}
NAMES = {"Random": "random real images", "Whole": "whole dataset"}
LABELLINGS = {
    "fft+mean-sort": [],
    "fft+k-means": ["--data.pseudo_grouping", "k_means"],
    "log-variance+mean-sort": ["--data.pseudo_labels", "log_variance"],
    "log-variance+k-means": [
        *("--data.pseudo_labels", "log_variance"),
        *("--data.pseudo_grouping", "k_means"),
    ],
    "random": ["--data.pseudo_labels", "random", "--model.dam.init", "one_hot"],
    "actual": ["--data.pseudo_labels", "actual"],
}


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


def printed() -> Iterator[tuple[Row, dict[str, str]]]:
    """The rows of the paper."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        for figure in csv.DictReader(file):
            method = NAMES.get(figure["method"]) or figure["method"] + "+DAM" * int(figure["dam"])
            note = figure["note"].removeprefix("pseudo-domains: ").split("*")[0]
            what = {
                "3": figure["backbone"],
                "4": f"{figure['setting']}, {figure['target_domain']}",
                "5": figure["target_domain"],
                **dict.fromkeys("6BCD", note),
            }
            table = figure["table"]
            yield (
                Row(table, figure["dataset"], figure["ipc"], method, what.get(table, "")),
                figure,
            )


def overrides(row: Row, figure: dict[str, str]) -> list[str]:
    """What the row changes of its config, told from the paper and not from the README."""
    value = row.what.rpartition("=")[2]
    if row.table == "4":
        domains = f"[{figure['target_domain']}]"
        trained = ["--data.train_domains", domains]
        tested = ["--data.test_domains", domains]
        return trained + tested if figure["setting"] == "single-domain" else tested
    if row.table == "6":
        return LABELLINGS[row.what]
    return {
        "5": ["--data.left_out_domain", figure["target_domain"]],
        "A": ["--model.init", "real"],
        "B": ["--model.dam.init", "normal", "--model.dam.init_value", value],
        "C": ["--model.dam.weight", value],
        "D": ["--model.dam.temperature", value],
    }.get(row.table, [])


def expected(row: Row, figure: dict[str, str]) -> list[list[str]]:
    """The arguments of the commands of a row."""
    data = ["--data", CLASSES[row.dataset]]
    if row.method == NAMES["Random"]:
        given = ["--model.condensed", "random", "--model.ipc", row.ipc]
        return [["test", "--config", "evaluate/baseline.yaml", *given, *data]]
    if row.method == NAMES["Whole"]:
        return [["test", "--config", "evaluate/whole.yaml", *data]]
    method, _, dam = row.method.lower().partition("+")
    config = f"{FOLDERS[row.dataset]}/{method}{'_dam' if dam else ''}_ipc{row.ipc}.yaml"
    commands = [["fit", "--config", config, *overrides(row, figure)]]
    if row.table == "3":
        zca = ["--data.zca", "true"] if method == "mtt" else []
        given = ["--config", "evaluate/cross_architecture.yaml", "--model.condensed", "FILE"]
        commands.append(["test", *given, *data, *zca])
    return commands


def test_every_figure_of_the_paper_has_its_command() -> None:
    rows = dict(printed())
    assert len(rows) == 375
    missing = [row for row in rows if row not in documented()]
    assert not missing
    assert set(documented()) == set(rows)
    for row, figure in rows.items():
        shown = f"{figure['accuracy']} ± {figure['std']}" if figure["std"] else figure["accuracy"]
        assert documented()[row][0] == shown, row
        commands = [shlex.split(found) for found in re.findall("`(.*?)`", documented()[row][1])]
        assert commands == expected(row, figure), row


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
    for row, figure in printed():
        for arguments in expected(row, figure):
            if tuple(arguments) in seen:
                continue
            seen.add(tuple(arguments))
            config = parsed([*arguments, "--data.root", "DIR"], monkeypatch)
            assert config["data"]["class_path"].endswith(f".{CLASSES[row.dataset]}")
            model, data = config["model"]["init_args"], config["data"]["init_args"]
            if arguments[0] == "test":
                assert config["model"]["class_path"].endswith(".Evaluation")
                if row.table == "3":
                    assert row.what.replace("-", "") in model["backbones"]
                    assert data["zca"] == (figure["method"] == "MTT")
                else:
                    assert model["condensed"] == figure["method"].lower()
                    assert model["ipc"] == (None if row.ipc == "all" else int(row.ipc))
                continue
            assert config["model"]["class_path"].endswith(f".{figure['method']}")
            assert model["ipc"] == int(row.ipc)
            assert (model["dam"] is not None) == (figure["dam"] == "1")
            assert model["init"] == figure["init"]
            value = row.what.rpartition("=")[2]
            changed = {"C": "weight", "D": "temperature"}.get(row.table)
            if changed is not None:
                assert model["dam"] == {changed: float(value)}
            if row.table == "B":
                assert model["dam"] == {"init": "normal", "init_value": float(value)}
            if row.table == "6":
                source, _, grouping = row.what.replace("-", "_").partition("+")
                assert data["pseudo_labels"] == source
                assert data["pseudo_grouping"] == (grouping or "mean_sort")
            if row.table in "45":
                chosen = [figure["target_domain"]]
                single = figure["setting"] == "single-domain"
                assert data["train_domains"] == (chosen if single else None)
                assert data["test_domains"] == (chosen if row.table == "4" else None)
                assert data["left_out_domain"] == (chosen[0] if row.table == "5" else None)


@pytest.mark.parametrize("domains", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("folder", ["cifar10", "pacs"])
def test_figure_4(folder: str, domains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ["--config", f"{folder}/dm_dam_ipc1.yaml", "--data.root", "DIR"]
    changed = ["--model.dam.num_domains", str(domains)]
    found = parsed(["fit", *config, *changed], monkeypatch)
    assert found["model"]["init_args"]["dam"] == {"num_domains": domains}
