"""The table of results on disk."""

import csv
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dam_lightning import __version__
from dam_lightning.evaluation import ledger
from dam_lightning.evaluation.ledger import COLUMNS, append_row, describe_machine


def row(**changes: object) -> dict[str, object]:
    return {**{column: f"{column}'s value" for column in COLUMNS}, **changes}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_ledger_begins_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.csv"
    append_row(path, row(ipc=10))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "dataset,ipc,method,dam,seed,steps,backbone,accuracy,deviation,interval,worst_domain,"
        "networks,precision,device,seconds,peak_memory_mib,version,command"
    )
    assert len(lines) == 2
    assert read(path) == [{column: str(value) for column, value in row(ipc=10).items()}]


def test_rows_are_appended_and_old_ones_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    append_row(str(path), row(seed=0))
    before = path.read_bytes()
    append_row(str(path), row(seed=1))
    append_row(str(path), dict(reversed(row(seed=2).items())))  # in any order
    assert path.read_bytes().startswith(before)
    assert [found["seed"] for found in read(path)] == ["0", "1", "2"]
    assert [found["dataset"] for found in read(path)] == ["dataset's value"] * 3


@pytest.mark.parametrize(
    "command",
    [
        'cli.py test --model.dam \'{"num_domains": 5, "weight": 0.1}\'',
        'a "quoted" word, a comma; a semicolon',
        "two\nlines\r\nand three",
        "Größe ± 雪",
        "",
        '"',
    ],
)
def test_commands_come_back_as_they_were(tmp_path: Path, command: str) -> None:
    path = tmp_path / "ledger.csv"
    append_row(path, row(command=command))
    append_row(path, row(command="next"))
    assert [found["command"] for found in read(path)] == [command, "next"]


@pytest.mark.parametrize(
    "content",
    ["a,b,c\n1,2,3\n", "no table at all\n", ",".join(COLUMNS[:-1]) + "\n", "\n"],
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other.csv is no ledger of this version.*give another"):
        append_row(path, row())
    assert path.read_text() == content


def test_a_row_has_all_columns_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    short = row()
    del short["seed"]
    for wrong in (short, row(loss=1), {}):
        with pytest.raises(ValueError, match="a row has the columns dataset, ipc"):
            append_row(path, wrong)
    assert not path.exists()


def append_many(path: Path, process: int, number: int, together: Any) -> None:
    together.wait()
    for step in range(number):
        append_row(path, row(seed=process, steps=step, command="long, " * 200))


@pytest.mark.skipif(sys.platform != "linux", reason="starts processes by fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_several_processes_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    append_row(path, row(seed=-1))
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4)
    processes = [
        context.Process(target=append_many, args=(path, n, 100, together)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    found = read(path)[1:]
    assert all(len(r) == len(COLUMNS) and r["command"] == "long, " * 200 for r in found)
    assert sorted((int(r["seed"]), int(r["steps"])) for r in found) == [
        (process, step) for process in range(4) for step in range(100)
    ]
    for process in range(4):
        steps = [int(r["steps"]) for r in found if r["seed"] == str(process)]
        assert steps == sorted(steps)


def test_a_ledger_that_another_process_has_just_begun(tmp_path: Path) -> None:
    """Between making the file and writing its columns; also what ``touch`` leaves."""
    path = tmp_path / "ledger.csv"
    path.touch()
    append_row(path, row())
    assert len(read(path)) == 1


def test_two_processes_find_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that waited leaves alone what the other has written."""
    path = tmp_path / "ledger.csv"
    path.touch()

    def other(_: Any) -> None:
        monkeypatch.undo()
        append_row(path, row(seed="the other's"))

    monkeypatch.setattr(ledger, "_lock", other)
    append_row(path, row(seed="ours"))
    assert [found["seed"] for found in read(path)] == ["the other's", "ours"]


def test_the_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["cli.py", "test", "--config", "a file.yaml", '--model.dam={"weight": 0.1}']
    monkeypatch.setattr(sys, "argv", command)
    described = describe_machine(torch.device("cpu"))
    assert set(described) == {"device", "peak_memory_mib", "version", "command"}
    assert described["device"] == f"cpu x{torch.get_num_threads()}"
    assert shlex.split(str(described["command"])) == ["python", *command]
    assert str(described["version"]).startswith(__version__)
    # This process with PyTorch in it: more than 50 MiB, and no more than the machine has.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    assert 50 < int(str(described["peak_memory_mib"])) <= memory


@pytest.mark.parametrize(
    ("program", "called"),
    [
        ("/home/me/venv/bin/dam-lightning", "dam-lightning"),
        ("dam-lightning.exe", "dam-lightning"),
        # python -m dam_lightning.cli, torchrun -m dam_lightning.cli
        ("/home/me/venv/lib/python3.12/site-packages/dam_lightning/cli.py", "dam-lightning"),
        ("cli.py", "python cli.py"),
        ("/home/me/checkout/cli.py", "python cli.py"),
        ("/home/me/my script.py", "python 'my script.py'"),
        ("/home/me/venv/bin/pytest", "pytest"),
    ],
)
def test_the_command_does_not_tell_where_the_program_is(
    program: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "test", "--data.root", "/data/as typed"])
    command = describe_machine(torch.device("cpu"))["command"]
    assert command == f"{called} test --data.root '/data/as typed'"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_only_changed_code_makes_a_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger may lie in the checkout, where every row changes it."""
    code = tmp_path / "dam_lightning" / "evaluation" / "ledger.py"
    code.parent.mkdir(parents=True)
    for file in (code, tmp_path / "ledger.csv"):
        file.write_text("as committed")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(ledger, "__file__", str(code))

    def version() -> str:
        return str(describe_machine(torch.device("cpu"))["version"])

    clean = version()
    assert clean.startswith(f"{__version__}+")
    assert not clean.endswith("dirty")
    (tmp_path / "ledger.csv").write_text("one row more")
    assert version() == clean
    code.write_text("changed")
    assert version() == f"{clean}-dirty"
