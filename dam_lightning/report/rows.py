"""The ledger's rows, checked."""

import csv
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dam_lightning.evaluation.ledger import COLUMNS
from dam_lightning.report.commands import DAM, NETWORKS, STEPS, Command, Settings, read

__all__ = ["Row", "read_ledger", "settings_of_file"]

_BASELINES = ("random", "whole", "herding", "k_center", "k_means")


@dataclass(frozen=True)
class Row:
    """A finished test.

    Attributes:
        line: where the row begins in the ledger; its columns are line 1.
        columns: as they are written.
        command: of the test; None: of a program of somebody's own.
        accuracy: in percent, mean over the networks.
        deviation: in percent, over the networks; NaN where it is not known.
        networks: that were trained and tested.
        ipc: images per class; None: the whole dataset.
        dam: number of pseudo-domains; 0: without DAM.
        seed: of the condensation, or of the choice of real images; None: not known.
        steps: of the condensation; None: not known.
    """

    line: int
    columns: Mapping[str, str]
    command: Command | None
    accuracy: float
    deviation: float
    networks: int
    ipc: int | None
    dam: int
    seed: int | None
    steps: int | None

    @cached_property
    def settings(self) -> Settings:
        """Of the run, from fit to test; its length is what it had, not what it was to have."""
        if self.command is None:
            return {"command": self.columns["command"], **self._described}
        settings = self.command.settings
        # Several backbones in one test have a row each.
        several = settings.pop("model.backbones", None) is not None
        if settings.get("model.condensed", _BASELINES[0]) not in _BASELINES:
            return settings_of_file(
                settings,
                method=self.columns["method"],
                ipc=str(self.ipc),
                dam=self.dam,
                steps=str(self.steps),
                backbone=self.columns["backbone"],
                networks=str(self.networks),
            )
        if several:
            settings["backbone"] = self.columns["backbone"]
        settings.pop(STEPS, None)
        if self.steps:
            settings[STEPS] = str(self.steps)
        # What is in somebody's own config, the columns alone tell.
        described = self._described if "config" in settings else {}
        return {**settings, **described, NETWORKS: str(self.networks)}

    @property
    def _described(self) -> Settings:
        """What the columns tell of the run."""
        names = ("dataset", "ipc", "method", "dam", "backbone", "steps", "networks")
        return {name: self.columns[name] for name in names}

    @property
    def what(self) -> str:
        """The command, for people."""
        return self.columns["command"] if self.command is None else str(self.command)


def settings_of_file(
    settings: Settings, *, method: str, ipc: str, dam: int, steps: str, backbone: str, networks: str
) -> Settings:
    """The settings of a test of a file, whose command does not say how the file was made.

    Args:
        settings: of the command.
        method: that made it, with its ipc, pseudo-domains and steps.
        ipc: images per class.
        dam: number of pseudo-domains; 0: without DAM.
        steps: of the condensation.
        backbone: that was tested.
        networks: as many.
    """
    # The file knows whether it is whitened, and another test is refused.
    left_out = ("model", "model.condensed", "model.backbones", "model.recipe.backbone", "data.zca")
    return {
        **{key: value for key, value in settings.items() if key not in left_out},
        **({DAM: "on", f"{DAM}.num_domains": str(dam)} if dam else {}),
        "condensed by": method,
        "model.ipc": ipc,
        STEPS: steps,
        "backbone": backbone,
        NETWORKS: networks,
    }


def read_ledger(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of a ledger.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ledger, or a row is damaged; names the line and what to do.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(
            f"there is no ledger {target}; give the file to which test --model.ledger FILE wrote"
        )
    rows = []
    with target.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        line = 1
        try:
            for number, cells in enumerate(reader):
                if number == 0:
                    _check_columns(cells)
                elif cells:
                    rows.append(_row(line, cells))
                line = reader.line_num + 1
            if line == 1:
                _check_columns([])
        except (ValueError, csv.Error) as error:
            remedy = (
                "give a ledger of this version"
                if line == 1
                else "delete the row and run its test again"
            )
            raise ValueError(f"{target}, line {line}: {error}; {remedy}") from error
    return rows


def _check_columns(cells: list[str]) -> None:
    if cells != list(COLUMNS):
        raise ValueError(f"the columns are {', '.join(cells) or 'missing'}")


def _row(line: int, cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells in place of {len(COLUMNS)}")
    columns = dict(zip(COLUMNS, cells, strict=True))
    networks = _count(columns, "networks")
    if not networks:
        raise ValueError(f"networks is {columns['networks']!r}")
    return Row(
        line,
        columns,
        _test_of_ours(columns["command"]),
        _number(columns, "accuracy"),
        _number(columns, "deviation", unknown=True),
        networks,
        _count(columns, "ipc"),
        _count(columns, "dam") or 0,
        _count(columns, "seed"),
        _count(columns, "steps"),
    )


def _test_of_ours(text: str) -> Command | None:
    """The command, if it is the package's ``test``."""
    with suppress(ValueError):
        command = read(text)
        return command if command.subcommand == "test" else None
    return None


def _number(columns: Mapping[str, str], name: str, unknown: bool = False) -> float:
    """A finite number; NaN may be allowed."""
    text = columns[name]
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value) or (math.isnan(value) and not unknown):
        raise ValueError(f"{name} is {text!r}, not a number")
    return value


def _count(columns: Mapping[str, str], name: str) -> int | None:
    """A whole number from 0; None where there is none."""
    text = columns[name]
    if text and not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name} is {text!r}, not a whole number")
    return int(text) if text else None
