"""Ledgers that are read, and others that are not."""

from pathlib import Path

import pytest

from dam_lightning.evaluation.ledger import append_row
from dam_lightning.report.__main__ import main
from dam_lightning.report.page import report
from dam_lightning.report.rows import read_ledger
from dam_lightning.report.runs import find_runs
from tests.report.ledgers import COLUMNS, DM, rows, write


def test_rows_come_back_with_their_lines(tmp_path: Path) -> None:
    two_lines = f"{DM} --data.cache_dir 'a\nb'"
    found = rows(
        tmp_path,
        {"command": two_lines},
        {"seed": 1, "ipc": "", "steps": "", "deviation": "nan"},
    )
    assert [row.line for row in found] == [2, 4]
    first, second = found
    assert (first.accuracy, first.deviation, first.networks) == (30, 2, 10)
    assert (first.ipc, first.dam, first.seed, first.steps) == (1, 0, 0, 20000)
    assert (second.ipc, second.seed, second.steps) == (None, 1, None)


def test_the_columns_say_how_long_a_run_was(tmp_path: Path) -> None:
    told = f"{DM} --trainer.max_steps 5 --model.recipe.num_networks 6"
    (row,) = rows(tmp_path, {"command": told, "steps": 300, "networks": 7})
    assert row.settings["trainer.max_steps"] == "300"
    assert row.settings["model.recipe.num_networks"] == "7"


def test_an_empty_ledger_has_no_rows(tmp_path: Path) -> None:
    assert rows(tmp_path) == []


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a bad ledger ends in."""
    with pytest.raises(SystemExit) as ended:
        main([str(path)])
    shown = capsys.readouterr()
    assert ended.value.code == 1
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("error: ")
    return shown.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": "high"}, "accuracy is 'high', not a number"),
        ({"accuracy": "nan"}, "accuracy is 'nan', not a number"),
        ({"accuracy": ""}, "accuracy is '', not a number"),
        ({"deviation": "inf"}, "deviation is 'inf', not a number"),
        ({"networks": "0"}, "networks is '0'"),
        ({"networks": ""}, "networks is ''"),
        ({"steps": "1.5"}, "steps is '1.5', not a whole number"),
        ({"seed": "-1"}, "seed is '-1', not a whole number"),
        ({"ipc": "all"}, "ipc is 'all', not a whole number"),
    ],
)
def test_a_damaged_row_is_named(
    changes: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ledger.csv", {}, changes, {})
    line = refused(path, capsys)
    assert f"{path}, line 3: {message}" in line
    assert line.endswith("delete the row and run its test again\n")


@pytest.mark.parametrize(
    "command",
    [
        "python evaluate.py",
        "cli.py fit --config a.yaml",
        'cli.py test "a',
        "cli.py test a b",
        "dam-lightning test --config lightning_logs/version_0/config.yaml --ckpt_path last.ckpt",
    ],
)
def test_what_a_command_does_not_tell_the_columns_do(command: str, tmp_path: Path) -> None:
    """Rows of programs and configs of one's own: of another dataset, method or size is another."""
    others = [{"dataset": "VLCS"}, {"ipc": 10}, {"method": "DC"}, {"dam": 4}, {"backbone": "ViT"}]
    changes = [{}, *others, {"seed": 1, "accuracy": "32.00"}]
    runs = find_runs(rows(tmp_path, *({"command": command, **each} for each in changes)))
    assert len(runs) == 1 + len(others)
    assert sorted(len(run.rows) for run in runs) == [1] * len(others) + [2]
    assert not any(run.figure for run in runs)
    assert report([row for run in runs for row in run.rows], runs).count("31.00 ± 1.41") == 1


def test_a_row_that_is_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ledger.csv", {})
    with path.open("a") as file:
        file.write("PACS,1,DM\n")
    assert f"{path}, line 3: 3 cells in place of 18; delete" in refused(path, capsys)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(list(COLUMNS)[1:]) + "\n"])
def test_another_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    line = refused(path, capsys)
    assert f"{path}, line 1: the columns are" in line
    assert line.endswith("; give a ledger of this version\n")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00binary"])
def test_no_table(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.csv"
    if content is not None:
        path.write_bytes(content)
    line = refused(path, capsys)
    assert str(path) in line
    assert ("give the file to which test --model.ledger FILE wrote" in line) == (content is None)


def test_an_editor_may_leave_an_empty_line(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger.csv", {})
    with path.open("a") as file:
        file.write("\n")
    append_row(path, COLUMNS)
    assert [row.line for row in read_ledger(path)] == [2, 4]


def test_a_page_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ledger.csv")
    with pytest.raises(SystemExit) as ended:
        main([str(path), "--output", str(path / "below" / "a file.md")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
