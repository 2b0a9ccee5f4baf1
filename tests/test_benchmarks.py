"""The benchmarks' command on tiny sizes; nothing is asserted about speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.cases import Case
from benchmarks.contender import Contender
from benchmarks.floor import Floor, Work, evaluation_work, image_work, step_work
from benchmarks.machine import Rates
from benchmarks.measure import UnequalError, interleaved
from benchmarks.package_side import PackageStep
from benchmarks.report import Row
from benchmarks.tasks import REFERENCE, Entry, Task

CPU = torch.device("cpu")
TINY = ["--width", "4", "--batch-real", "4", "--repeats", "1", "--epochs", "3", "--threads", "1"]
NET = Case("net", 8, num_classes=3, depth=2, ipc=2, test_images_per_epoch=5, width=4)

ROWS = [
    ("DM step", "ours"),
    ("DM step", "ours, bf16-mixed"),
    ("DM+DAM step", "ours"),
    ("DM+DAM step", "ours, bf16-mixed"),
    ("evaluation", "ours"),
    ("evaluation, no DSA", "ours"),
]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value] if is_number else []


def test_the_command(tmp_path: Path) -> None:
    output = tmp_path / "new" / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *TINY, "--output", str(output)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "8000000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(output.read_text())
    assert document["command"] == f"python -m benchmarks {' '.join(TINY)} --output {output}"
    assert document["machine"]["torch"] == torch.__version__
    assert document["machine"]["threads"] == 1
    assert document["machine"]["MALLOC_TRIM_THRESHOLD_"] == "8000000000"
    assert "MALLOC_TRIM_THRESHOLD_=8000000000" in done.stdout

    rows = document["rows"]
    assert [(row["task"], row["contender"]) for row in rows] == ROWS
    assert all(number > 0 for number in numbers([document["rates"], rows]))
    for row in rows:
        ours, theirs = row["seconds"]["median"], row["reference_seconds"]["median"]
        assert row["ratio"] == pytest.approx(theirs / ours)
        assert row["multiple_of_floor"] == pytest.approx(ours / row["floor"]["seconds"])
        assert len(row["seconds"]["all"]) == len(row["reference_seconds"]["all"]) == 1

    lines = [line for line in done.stdout.splitlines() if line.startswith("| cifar10_ipc1")]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[1], cells[2]) == (row["task"], row["contender"])
        ours, theirs = (float(cell.split()[0]) for cell in cells[3:5])
        # Printed to three digits, and the ratio to two decimals.
        assert float(cells[5]) == pytest.approx(theirs / ours, rel=0.01, abs=0.006)
        assert ours == pytest.approx(row["seconds"]["median"], rel=0.01)


def test_unequal_contenders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = PackageStep.outcome

    def changed(self: PackageStep) -> dict[str, float]:
        outcome = original(self)
        return {**outcome, "loss": outcome["loss"] * 1.001}

    monkeypatch.setattr(PackageStep, "outcome", changed)
    monkeypatch.setattr(command, "be_quiet", lambda: None)
    monkeypatch.setattr(
        command, "measure_rates", lambda _: Rates({"float32": 1e9, "bfloat16": 1e9}, 1e9)
    )
    threads = torch.get_num_threads()
    try:
        assert command.main([*TINY, "--output", str(tmp_path / "results.json")]) == 1
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "'ours' and the reference do not compute the same: loss is" in printed.err
    assert list(tmp_path.iterdir()) == []


class Noting(Contender):
    """Notes its runs in a common list, and tells what it was given."""

    def __init__(self, name: str, outcomes: list[float], runs: list[str]):
        self.name, self.outcomes, self.runs = name, iter(outcomes), runs

    def run(self) -> None:
        self.runs.append(self.name)

    def outcome(self) -> dict[str, float]:
        return {"loss": next(self.outcomes)}


def noting(reference: list[float], ours: list[float]) -> tuple[Task, list[str]]:
    runs: list[str] = []
    entries = {
        name: Entry(lambda *_, name=name, outcomes=outcomes: Noting(name, outcomes, runs))
        for name, outcomes in ((REFERENCE, reference), ("ours", ours))
    }
    return Task("noting", lambda _: Work(1, 1), entries), runs


def test_contenders_take_turns() -> None:
    task, runs = noting([2.0, -3.0], [2.0001, -3.0001])
    seconds = interleaved(task, NET, CPU, repeats=2)
    assert runs == [REFERENCE, "ours"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {REFERENCE: 2, "ours": 2}


@pytest.mark.parametrize("second", [3.001, float("nan")])
def test_the_second_turn_is_compared_too(second: float) -> None:
    task, _ = noting([2.0, 3.0], [2.0, second])
    with pytest.raises(UnequalError, match="loss is"):
        interleaved(task, NET, CPU, repeats=1)


def test_operations_and_traffic_by_hand() -> None:
    """8x8 images, two blocks of four channels, three classes; a multiply and add are two."""
    first, second = 2 * (4 * 8 * 8) * (3 * 9), 2 * (4 * 4 * 4) * (4 * 9)
    linear = 2 * (4 * 2 * 2) * 3
    written = 4 * 8 * 8 + 4 * 4 * 4
    work = image_work(NET)
    assert work.forward == Work(first + second, 2 * written)
    assert work.scored == Work(first + second + linear, 2 * written)
    assert work.to_images == Work(2 * (first + second), 5 * written)
    # The first layer needs no gradient for its input.
    assert work.to_weights == Work(2 * first + 3 * second + 3 * linear, 5 * written)


def test_operations_of_tasks() -> None:
    image = image_work(NET)
    for dam, groups, views in ((False, 3, 1), (True, 3 + 4, 1 + 4)):
        total = groups * 256 * image.forward.operations + views * 6 * image.to_images.operations
        assert step_work(NET, dam).operations == total
    trained, tested = 50 * 6, 50 * 5
    total = trained * image.to_weights.operations + tested * image.scored.operations
    assert evaluation_work(NET).operations == total


def test_the_floor_is_the_larger_bound() -> None:
    rates = Rates({"float32": 10.0, "bfloat16": 20.0}, bandwidth=8.0)
    work = Work(operations=40, values=10)
    assert work.floor(rates, "float32") == (4.0, 5.0)
    assert work.floor(rates, "float32").seconds == 5.0
    assert work.floor(rates, "bfloat16").seconds == 2.5


def test_the_better_rates_count() -> None:
    first, second = (
        Rates({"float32": 10.0, "bfloat16": 20.0}, 8.0),
        Rates({"float32": 9.0, "bfloat16": 30.0}, 9.0),
    )
    assert first.best(second) == Rates({"float32": 10.0, "bfloat16": 30.0}, 9.0)


@pytest.mark.parametrize(
    ("seconds", "reference", "unsteady"),
    [([1.0, 1.4], [3.0, 2.5], False), ([1.0, 1.6], [3.0], True), ([1.0], [2.0, 3.1, 2.5], True)],
)
def test_unsteady_rows(seconds: list[float], reference: list[float], unsteady: bool) -> None:
    row = Row(NET, "t", "ours", "float32", seconds, reference, 1, 1, Floor(1.0, 2.0))
    assert row.unsteady is unsteady
    assert row.as_dict()["unsteady"] is unsteady


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "cifar10_ipc1,mnist"], "no case 'mnist'; choose from cifar10_ipc1, pacs_ipc1"),
        (["--repeats", "0"], "--repeats: must be at least 1, not 0"),
        (["--width", "wide"], "--width: invalid whole number value: 'wide'"),
        (["--device", "nowhere"], "'nowhere' cannot be used"),
        (["--device", "meta"], "must be cpu or cuda, not 'meta'"),
        (["--frequency", "1"], "unrecognized arguments: --frequency 1"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(arguments)
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_wrong_output_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(command, "measure_rates", work)
    monkeypatch.setattr(command, "be_quiet", lambda: None)
    (tmp_path / "file").touch()
    for wrong in (tmp_path, tmp_path / "file" / "results.json"):
        assert command.main(["--output", str(wrong)]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert str(wrong) in printed.err or "file" in printed.err
        assert len(printed.err.splitlines()) == 1
