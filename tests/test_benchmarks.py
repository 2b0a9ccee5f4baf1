"""The benchmarks' command on tiny sizes; nothing is asserted about speed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.contender import Contender
from benchmarks.floor import (
    Floor,
    Work,
    dc_work,
    evaluation_work,
    expert_work,
    image_work,
    mtt_work,
    step_work,
)
from benchmarks.live_bytes import LiveBytes
from benchmarks.machine import Rates
from benchmarks.measure import UnequalError, interleaved
from benchmarks.package_dc import PackageDC, dc_condenser
from benchmarks.package_experts import PackageExperts
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_side import PackageStep
from benchmarks.report import Row
from benchmarks.tasks import REFERENCE, TASKS, Entry, Task
from dam_lightning import DC, MTT

CPU = torch.device("cpu")
TINY = ["--width", "4", "--batch-real", "4", "--repeats", "1", "--epochs", "3", "--threads", "1"]
NET = Case("net", 8, num_classes=3, depth=2, ipc=2, test_images_per_epoch=5, width=4)
SECOND_ORDER = replace(NET, batch_real=8, inner_epochs=2, student_steps=4, experts=3)

ROWS = [
    ("DM step", "ours"),
    ("DM step", "ours, bf16-mixed"),
    ("DM+DAM step", "ours"),
    ("DM+DAM step", "ours, bf16-mixed"),
    ("DC step", "ours"),
    ("DC+DAM step", "ours"),
    ("MTT step", "ours"),
    ("MTT step", "ours, full unroll"),
    ("MTT+DAM step", "ours"),
    ("MTT+DAM step", "ours, full unroll"),
    ("experts", "ours"),
    ("experts", "ours, compiled"),
    ("experts", "ours, side by side"),
    ("experts", "ours, side by side, compiled"),
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
        # Compiling takes a minute, whatever the sizes.
        env={
            **os.environ,
            "MALLOC_TRIM_THRESHOLD_": "8000000000",
            "TORCHDYNAMO_DISABLE": "1",
        },
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
        assert ours == pytest.approx(row["seconds"]["median"], rel=0.01)
        assert theirs == pytest.approx(row["reference_seconds"]["median"], rel=0.01)
        assert float(cells[5]) == pytest.approx(row["ratio"], abs=0.006)


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


FREED_MEMORY = """
import torch
from benchmarks import measure
from benchmarks.tasks import Entry, Task
from tests.test_benchmarks import NET, Noting

def fill(count):
    return [torch.ones(1024) for _ in range(count)]

class Filling(Noting):
    def run(self):
        fill(4096)

def make(*_):
    fill(4096)
    return Filling("ours", [], [])

measure.TASKS["filling"] = Task("filling", lambda _: None, {"ours": Entry(make)})
print(measure._resident_peak("filling", "ours", NET, 1))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_that_preparations_freed_is_not_held_before() -> None:
    """With the variables that the benchmarks' page recommends, the allocator keeps it."""
    done = subprocess.run(
        [sys.executable, "-c", FREED_MEMORY],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "8000000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 12 * 2**20


@pytest.mark.parametrize("name", ["DC step", "DC+DAM step", "MTT step", "MTT+DAM step", "experts"])
def test_both_sides_do_the_same(name: str) -> None:
    """With inner training, batches that do not cover the views, and several experts."""
    with torch.compiler.set_stance("force_eager"):
        seconds = interleaved(TASKS[name], SECOND_ORDER, CPU, repeats=1)
    assert len(seconds) == len(TASKS[name].entries)


def outcomes(make: Callable[..., Contender], case: Case, turns: int = 2) -> list[dict[str, float]]:
    contender = make(case, CPU)
    found = []
    for _ in range(turns):
        contender.run()
        found.append(contender.outcome())
    return found


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (partial(PackageDC, dam=False), "inner_epochs"),
        (partial(PackageDC, dam=True), "inner_epochs"),
        (partial(PackageMTT, dam=False), "student_steps"),
        (partial(PackageMTT, dam=True), "student_steps"),
        (PackageExperts, "expert_batches"),
    ],
)
def test_outcomes_tell_the_work_apart(make: Callable[..., Contender], changed: str) -> None:
    """Were a part of the work left out or done twice, some outcome would be another."""
    more = replace(SECOND_ORDER, **{changed: getattr(SECOND_ORDER, changed) + 1})
    usual, other = outcomes(make, SECOND_ORDER), outcomes(make, more)
    # Before the first step of DC there is no inner training.
    assert (usual[0] == other[0]) == (changed == "inner_epochs")
    for quantity, value in usual[1].items():
        assert other[1][quantity] != pytest.approx(value, rel=1e-4), quantity


def test_every_branch_is_compared() -> None:
    plain, masked = {"loss", "distance of the images"}, {"gradient of the masks"}
    sizes = {"gradient of the step sizes"}
    for make, dam, expected in (
        (PackageDC, False, plain),
        (PackageDC, True, plain | masked),
        (PackageMTT, False, plain | sizes),
        (PackageMTT, True, plain | masked | sizes),
    ):
        (found,) = outcomes(partial(make, dam=dam), SECOND_ORDER, turns=1)
        assert set(found) == expected


def test_experts_are_new_in_every_run_and_as_many_as_asked_for() -> None:
    for together in (False, True):
        first, second = outcomes(partial(PackageExperts, together=together), SECOND_ORDER)
        assert first != second
        (single,) = outcomes(
            partial(PackageExperts, together=together), replace(SECOND_ORDER, experts=1), turns=1
        )
        assert single["distance of the experts"] < first["distance of the experts"]


def test_live_bytes_by_hand() -> None:
    before = torch.zeros(1000)
    live = LiveBytes()
    with live:
        first = before + 1
        second = first * 2
        del first
        # A view, and what is written in place, are nothing new.
        third = second.view(10, 100) + 1
        third.mul_(2)
        assert live.now() == 3 * 4000
    assert live.peak == 3 * 4000
    assert third.shape == (10, 100)


def test_live_bytes_of_a_graph() -> None:
    leaf = torch.zeros(1000, requires_grad=True)
    live = LiveBytes()
    with live:
        # Autograd keeps the results of both.
        result = leaf.exp().exp()
        assert live.now() == 3 * 4000
        result = result.detach().clone()
        assert live.now() == 2 * 4000
    assert live.peak == 4 * 4000


@pytest.mark.parametrize("make", [partial(PackageDC, dam=True), partial(PackageMTT, dam=True)])
def test_peak_bytes_follow_the_budget(make: Callable[..., Any]) -> None:
    setting = memory.Setting("net", replace(SECOND_ORDER, student_steps=2), make, 1, (), 0)
    small, large = (memory.peak_bytes(setting, budget) for budget in (1, 1000))
    # Images, masks, their gradients and momentum.
    images = 6 * 3 * 8 * 8 * 4
    assert 3 * (images + 4 * images) < small < large


def test_peak_bytes_of_a_student_grow_by_its_parameters() -> None:
    def peak(steps: int) -> int:
        case = replace(SECOND_ORDER, student_steps=steps)
        setting = memory.Setting("net", case, partial(PackageMTT, dam=True), 1, (), 0)
        return memory.peak_bytes(setting, 1000)

    parameters = 4 * ((3 * 9 + 3) * 4 + (4 * 9 + 3) * 4 + (4 * 2 * 2 + 1) * 3)
    # Besides, the draws of a step: indices and 14 numbers of augmentation for each image.
    assert 10 * parameters < peak(14) - peak(4) < 10 * (parameters + 6 * 200)


def test_the_memory_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each setting and budget; the status tells of any that is over its limit."""
    monkeypatch.setattr(memory, "be_quiet", lambda: None)
    case = replace(SECOND_ORDER, student_steps=1)
    wide = memory.Setting("wide", case, partial(PackageMTT, dam=False), 1, (8,), 2**40)
    settings = {"narrow": replace(wide, name="narrow", limit=1), "wide": wide}
    arguments = ["--width", "4", "--batch-real", "8", "--max-images", "2", "4"]
    for chosen, status in ((["wide"], 0), (["narrow", "wide"], 1)):
        monkeypatch.setattr(memory, "SETTINGS", {name: settings[name] for name in chosen})
        assert memory.main(arguments) == status
        lines = capsys.readouterr().out.splitlines()[2:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        rows = [(name, budget) for name in chosen for budget in ("2", "4")]
        assert [(name, budget) for name, budget, *_ in cells] == rows
    memory.main(arguments[:4])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["8", "8"]


def test_the_settings_are_the_published_ones() -> None:
    mtt, dc = memory.SETTINGS.values()
    student, matched = mtt.case, dc.case
    assert (student.ipc, student.student_steps, student.width, student.num_domains) == (
        (10, 30, 128, 4)
    )
    assert (matched.ipc, matched.batch_real, matched.width, matched.num_domains) == (
        (50, 256, 128, 4)
    )
    assert dc.budgets == (dc_condenser(matched, True).max_images, DC._accelerator_budget)
    (budget,) = mtt.budgets
    assert student.num_synthetic < 256 < budget == MTT._accelerator_budget


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
    # The gradient of the weights; then, by weights and by what came from above, on the way up (of
    # the first layer by its weights only), and back to the input on the way down, twice.
    inner = 7 * (second + linear)
    assert work.matched == Work(5 * first + inner, 12 * written)
    # To the weights twice as well, but once in the first layer.
    assert work.unrolled == Work(6 * first + inner + 2 * (second + linear), 12 * written)


def test_operations_of_tasks() -> None:
    image = image_work(NET)
    for dam, groups, views in ((False, 3, 1), (True, 3 + 4, 1 + 4)):
        total = groups * 256 * image.forward.operations + views * 6 * image.to_images.operations
        assert step_work(NET, dam).operations == total
    trained, tested = 50 * 6, 50 * 5
    total = trained * image.to_weights.operations + tested * image.scored.operations
    assert evaluation_work(NET).operations == total


def test_operations_of_second_order_tasks() -> None:
    case = replace(NET, inner_epochs=5, student_steps=10)
    of_classes, of_domains = image_work(case), image_work(replace(case, num_classes=4))
    assert of_classes != of_domains
    trained = (3 * 256 + 5 * 6) * of_classes.to_weights.operations
    matching = trained + 6 * of_classes.matched.operations
    assert dc_work(case, dam=False).operations == matching
    trained = (4 * 256 + 5 * 4 * 6) * of_domains.to_weights.operations
    matching += trained + 4 * 6 * of_domains.matched.operations
    assert dc_work(case, dam=True).operations == matching

    student = 6 * (9 * of_classes.unrolled.operations + of_classes.matched.operations)
    assert mtt_work(case, dam=False).operations == student
    student += 6 * (9 * of_domains.unrolled.operations + of_domains.matched.operations)
    assert mtt_work(case, dam=True).operations == student

    assert expert_work(case).operations == 4 * 2 * 256 * of_classes.to_weights.operations


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
        (
            ["--cases", "cifar10_ipc1,mnist"],
            "no case 'mnist'; choose from cifar10_ipc1, cifar10_ipc10, pacs",
        ),
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
