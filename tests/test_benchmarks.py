"""The benchmarks on tiny sizes; nothing is asserted about speed."""

import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks import __main__ as command
from benchmarks import (
    arguments,
    gpu,
    measure,
    memory,
    processes,
    profiling,
    report,
    scaling,
    synchronisation,
)
from benchmarks.apart import apart
from benchmarks.cases import CASES, DEFAULT_CASES, Case
from benchmarks.contender import Contender
from benchmarks.floor import (
    Work,
    dc_iteration_work,
    dc_work,
    evaluation_work,
    expert_work,
    image_work,
    mtt_bytes,
    mtt_work,
    step_work,
)
from benchmarks.live_bytes import LiveBytes
from benchmarks.measure import UnequalError
from benchmarks.package_dc import PackageDC, dc_condenser
from benchmarks.package_experts import PackageExperts
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_side import PackageStep
from benchmarks.profiling import HOST, KINDS, profiled
from benchmarks.rates import CONVOLUTION, PRODUCT, Rates, measure_rates, precision_on
from benchmarks.rows import rows_of
from benchmarks.targets import target_of
from benchmarks.tasks import OURS, REFERENCE, TASKS, Entry, Task
from benchmarks.trainer_overhead import TrainerOverhead
from dam_lightning import DC, MTT
from dam_lightning.precision import Precision, has_fast_bfloat16

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
TINY = [
    *("--cases", "cifar10_ipc1", "--width", "8", "--batch-real", "32", "--repeats", "1"),
    *("--epochs", "2", "--student-steps", "2", "--threads", "1", "--scaling", "none"),
]
NET = Case("net", 8, 3, 2, 2, train_images=50, test_images=2502, width=4)
SECOND_ORDER = replace(
    NET, batch_real=8, inner_epochs=2, outer_loop=2, student_steps=4, experts=3, networks=2
)
RATES = Rates(
    {"float32": {PRODUCT: 10.0, CONVOLUTION: 8.0}, "bfloat16": {PRODUCT: 15.0, CONVOLUTION: 20.0}},
    bandwidth=8.0,
)
STEPS = [f"{branch} step" for branch in ("DM", "DM+DAM", "DC", "DC+DAM", "MTT", "MTT+DAM")]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiling takes a minute, whatever the sizes, and threads more than they save."""
    monkeypatch.setattr(command, "be_quiet", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on the machine, without measuring it, and small images."""
    small = replace(SECOND_ORDER, name="cifar10_ipc1", ipc=1, inner_epochs=0, outer_loop=1)
    monkeypatch.setitem(CASES, "cifar10_ipc1", small)
    monkeypatch.setattr(command, "measure_rates", lambda _: RATES)
    monkeypatch.setattr(command, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(command, "trainer_overhead", lambda _: TrainerOverhead(3e-3, 2e-3))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.usefixtures("quick")
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["DM+DAM step", "DC step", "experts", "evaluation"]
    options = [*TINY, "--tasks", ",".join(asked), "--output", str(tmp_path / "new")]
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "new" / "results.json").read_text())
    assert (tmp_path / "new" / "results.md").read_text() == printed
    assert document["command"] == shlex.join(["python", "-m", "benchmarks", *options])
    assert document["machine"]["torch"] == torch.__version__
    assert document["machine"]["threads"] == 1

    case = CASES["cifar10_ipc1"]
    tasks = {name: TASKS[name] for name in asked}
    assert [found["task"] for found in document["tasks"].values()] == list(tasks)
    rows = rows_of(document)
    assert [(row.task, row.contender) for row in rows] == [
        (name, contender)
        for name, task in tasks.items()
        for contender in task.chosen(case, CPU, variants=True)
        if contender != REFERENCE
    ]
    lines = [line for line in printed.splitlines() if line.startswith("| cifar10_ipc1")]
    for line, row in zip(lines, rows, strict=False):
        found = document["tasks"][f"cifar10_ipc1: {row.task}"]
        (ours,) = found["contenders"][row.contender]["seconds"]
        (theirs,) = found["contenders"][REFERENCE]["seconds"]
        assert row.ratio == pytest.approx(theirs / ours)
        assert row.multiple == pytest.approx(ours / row.floor.seconds)
        name, task, contender, precision, first, second, ratio, *_ = cells(line)
        assert (name, task, contender) == ("cifar10_ipc1", row.task, row.contender)
        assert precision == found["contenders"][row.contender]["precision"]
        # Printed to three digits, and the ratio to two decimals.
        assert float(first.split()[0]) == pytest.approx(ours, rel=0.01)
        assert float(second.split()[0]) == pytest.approx(theirs, rel=0.01)
        assert float(ratio) == pytest.approx(row.ratio, abs=0.006)
        assert sum(found["profile"]["kinds"].values()) == pytest.approx(1)
    for title in ("Timings", "Figures", "Where the time goes"):
        assert f"\n## {title}\n" in printed

    # Once more: nothing is left to do.
    monkeypatch.setattr(command, "timed", None)
    assert command.main(options) == 0
    again = json.loads((tmp_path / "new" / "results.json").read_text())
    assert again["tasks"] == document["tasks"]
    # With other options the results would not be comparable.
    assert command.main([*options, "--width", "9"]) == 1
    assert "results with another width" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_contenders_that_differ_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the other tasks go on; the same command tries the task again."""
    original = PackageDC.outcome

    def changed(self: PackageDC) -> dict[str, float]:
        outcome = original(self)
        return {**outcome, "loss": outcome["loss"] * 1.01}

    monkeypatch.setattr(PackageDC, "outcome", changed)
    options = [*TINY, "--tasks", "DM step,DC step", "--output", str(tmp_path)]
    assert command.main(options) == 1
    printed = capsys.readouterr()
    reason = "'ours' and the reference do not compute the same: loss differs by 0.01 of it"
    assert reason in printed.err
    assert f"- cifar10_ipc1 DC step: UnequalError: {reason}" in printed.out
    assert "| cifar10_ipc1 | DM step | ours |" in printed.out
    assert "| cifar10_ipc1 | DC step |" not in printed.out
    monkeypatch.setattr(PackageDC, "outcome", original)
    assert command.main(options) == 0
    assert "## Errors" not in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_what_there_is_no_time_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*TINY, "--minutes", "0"]) == 1
    printed = capsys.readouterr()
    assert "cifar10_ipc1: DM+DAM step was not begun in time" in printed.err
    assert "## Timings" not in printed.out


class Noting(Contender):
    """Notes its runs in a common list, and tells what it was given."""

    warning = ""

    def __init__(self, name: str, outcomes: list[float], runs: list[str]):
        self.name, self.outcomes, self.runs = name, iter(outcomes), runs

    def run(self) -> None:
        self.runs.append(self.name)
        if self.warning:
            warnings.warn(self.warning, stacklevel=2)

    def outcome(self) -> dict[str, float]:
        return {"loss": next(self.outcomes)}


def noting(
    reference: list[float], ours: list[float], precision: Precision = "float32", warning: str = ""
) -> tuple[Task, list[str]]:
    runs: list[str] = []

    def make_reference(case: Case, device: torch.device) -> Noting:
        return Noting(REFERENCE, reference, runs)

    def make_ours(case: Case, device: torch.device) -> Noting:
        made = Noting(OURS, ours, runs)
        made.precision, made.warning = precision, warning
        return made

    entries = {REFERENCE: Entry(make_reference), OURS: Entry(make_ours)}
    return Task("noting", lambda _: Work(1, 1), entries), runs


def test_contenders_take_turns() -> None:
    task, runs = noting([2.0, -3.0], [2.0001, -3.0001])
    measured = measure.measure(task, NET, CPU, repeats=1)
    # To warm up, and timed.
    assert runs == [REFERENCE] * 2 + [OURS] * 2 + [REFERENCE, OURS]
    assert {name: len(each.seconds) for name, each in measured.contenders.items()} == {
        REFERENCE: 1,
        OURS: 1,
    }
    difference = measured.contenders[OURS].difference
    assert difference is not None
    assert difference.share == pytest.approx(1e-4 / 2)


def test_a_task_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same number of threads, and nothing compiled before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    process, threads, cache = apart(_told)
    assert process != os.getpid()
    assert threads == torch.get_num_threads() == 1
    assert cache != "mine"
    with pytest.raises(UnequalError, match="not the same"):
        apart(_refuse)


def _told() -> tuple[int, int, str | None]:
    return os.getpid(), torch.get_num_threads(), os.getenv("TORCHINDUCTOR_CACHE_DIR")


def _refuse() -> None:
    raise UnequalError("not the same")


def test_a_long_task_runs_once() -> None:
    task, runs = noting([2.0], [2.0])
    measured = measure.measure(replace(task, once=True), NET, CPU, repeats=3)
    assert runs == [REFERENCE, OURS]
    ours = measured.contenders[OURS]
    assert ours.seconds == [ours.first]


def test_measuring_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen without one: what is asked of it, and when."""
    answers = {
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "memory_reserved": 100,
        "max_memory_reserved": 350,
        "mem_get_info": (2**40, 2**40),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(measure, "_TURN_SECONDS", 0.0)
    task, runs = noting([2.0, 3.0], [2.0, 3.0])
    measured = measure.measure(task, NET, CUDA, repeats=2)
    # The third run is the first that replays a captured graph.
    assert runs == [REFERENCE] * 3 + [OURS] * 3 + [REFERENCE, OURS] * 2
    ours = measured.contenders[OURS]
    assert (ours.memory, ours.precision) == (250, "tf32")


def test_kernels_of_a_gpu() -> None:
    def event(name: str, **others: Any) -> SimpleNamespace:
        known = {"device_type": DeviceType.CUDA, "is_user_annotation": False, "cpu_parent": None}
        return SimpleNamespace(name=name, self_device_time_total=2e6, **{**known, **others})

    assert profiling._spent(event("kernel"), CUDA) == 2.0
    assert profiling._spent(event("data", is_user_annotation=True), CUDA) == 0.0
    assert profiling._spent(event("aten::mul", device_type=DeviceType.CPU), CUDA) == 0.0
    for name, kind in (
        ("triton_poi_fused_convolution_relu_3", "compiled"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<float>(int)", "convolution"),
        ("nvjet_tst_128x64_64x8_1x2_h_bz_TNT", "matrix products"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4>(int)", "other operations"),
    ):
        assert profiling._kind(event(name)) == kind
    assert profiling._short("void at::native::elementwise<4, f>(int)") == "at::native::elementwise"


@pytest.mark.parametrize("second", [3.001, float("nan")])
def test_the_second_run_is_compared_too(second: float) -> None:
    task, _ = noting([2.0, 3.0], [2.0, second])
    with pytest.raises(UnequalError, match="loss differs by"):
        measure.measure(task, NET, CPU, repeats=1)


def test_precisions_have_tolerances_of_their_own() -> None:
    task, _ = noting([2.0, 3.0], [2.01, 3.01])
    assert not measure.check(task, NET, CPU)[OURS].is_equal
    task, _ = noting([2.0, 3.0], [2.01, 3.01], precision="bfloat16")
    assert measure.check(task, NET, CPU)[OURS].is_equal


def test_what_takes_too_much_memory_is_left_out() -> None:
    task, runs = noting([2.0, 3.0], [2.0, 3.0])
    greedy = replace(task.entries[REFERENCE], takes=lambda _: 2.0**60)
    task = replace(task, entries={**task.entries, REFERENCE: greedy})
    measured = measure.measure(task, NET, CPU, repeats=1)
    assert runs == [OURS] * 3
    assert list(measured.left_out) == [REFERENCE]
    assert measured.left_out[REFERENCE].startswith("takes 1073741824 GiB of ")


def test_a_fallback_is_noted() -> None:
    task, _ = noting([2.0, 3.0], [2.0, 3.0], warning="Without compilation of it, which is slower")
    measured = measure.measure(task, NET, CPU, repeats=1)
    assert measured.contenders[OURS].notes == ["Without compilation of it, which is slower"]
    assert measured.contenders[REFERENCE].notes == []


PROCESS = """
import sys
# Only the package's own command line needs it, and not every machine with a GPU has it.
sys.modules["jsonargparse"] = None
import torch
import benchmarks.gpu, benchmarks.report
from benchmarks import measure
from benchmarks.tasks import OURS, Entry, Task
from tests.test_benchmarks import NET, Noting

def fill(count):
    return [torch.ones(1024) for _ in range(count)]

class Filling(Noting):
    def run(self):
        fill(4096)

task = Task("filling", lambda _: None, {OURS: Entry(lambda *_: Filling(OURS, [1.0, 1.0], []))})
print(measure.measure(task, NET, torch.device("cpu"), 1).contenders[OURS].memory)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_in_a_process_without_jsonargparse_what_earlier_runs_freed_is_not_held() -> None:
    """With the variables that the benchmarks' page recommends, the allocator keeps it."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        cwd=ROOT,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "8000000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 12 * 2**20


@pytest.mark.parametrize(
    "name", [*STEPS, "DC iteration", "DC+DAM iteration", "experts", "evaluation"]
)
def test_both_sides_do_the_same(name: str) -> None:
    """With inner training, batches that do not cover the views, several experts and networks."""
    checked = measure.check(TASKS[name], replace(SECOND_ORDER, epochs=3), CPU)
    assert OURS in checked
    for contender, found in checked.items():
        assert found.is_equal, (contender, found)
        # Whatever tolerance the task has at its full length.
        assert found.difference.share < (1e-3 if found.precision == "float32" else 1e-2)
        assert found.waits is None


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
    first, second = outcomes(PackageExperts, SECOND_ORDER)
    assert first != second
    (single,) = outcomes(PackageExperts, replace(SECOND_ORDER, experts=1), turns=1)
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


@pytest.mark.parametrize(
    "make", [partial(PackageDC, dam=True), partial(PackageMTT, dam=True, adjoint=True)]
)
def test_peak_bytes_follow_the_budget(make: Callable[..., Any]) -> None:
    setting = memory.Setting("net", replace(SECOND_ORDER, student_steps=2), make, 1, (), 0)
    small, large = (memory.peak_bytes(setting, budget) for budget in (1, 1000))
    # Images, masks, their gradients and momentum.
    images = 6 * 3 * 8 * 8 * 4
    assert 3 * (images + 4 * images) < small < large


def test_peak_bytes_of_a_student_grow_by_its_parameters() -> None:
    def peak(steps: int) -> int:
        case = replace(SECOND_ORDER, student_steps=steps)
        make = partial(PackageMTT, dam=True, adjoint=True)
        setting = memory.Setting("net", case, make, 1, (), 0)
        return memory.peak_bytes(setting, 1000)

    parameters = 4 * ((3 * 9 + 3) * 4 + (4 * 9 + 3) * 4 + (4 * 2 * 2 + 1) * 3)
    # Besides, the draws of a step: indices and 14 numbers of augmentation for each image.
    assert 4 * parameters < peak(6) - peak(2) < 4 * (parameters + 6 * 200)


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
    # Of 2502 test images in 1001 epochs.
    trained, tested = 20 * 6, 50
    total = 10 * (trained * image.to_weights.operations + tested * image.scored.operations)
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


def test_operations_of_an_iteration() -> None:
    """One training less than steps."""
    case = replace(NET, inner_epochs=5, outer_loop=3)
    step, untrained = dc_work(case, True), dc_work(replace(case, inner_epochs=0), True)
    iteration = dc_iteration_work(case, True)
    assert iteration.operations == 2 * step.operations + untrained.operations
    assert iteration.values == 2 * step.values + untrained.values


def test_bytes_of_a_graph() -> None:
    case = replace(NET, student_steps=10)
    one = 10 * 6 * 4.3 * 4 * (4 * 8 * 8 + 4 * 4 * 4)
    assert mtt_bytes(case, dam=False) == pytest.approx(one)
    assert mtt_bytes(case, dam=True) == pytest.approx(2 * one)


def test_the_floor_is_the_larger_bound() -> None:
    work = Work(operations=40, values=10)
    assert work.floor(RATES, "float32") == (4.0, 5.0)
    assert work.floor(RATES, "float32").seconds == 5.0
    assert work.floor(RATES, "bfloat16") == (2.0, 2.5)


def test_the_better_rates_count() -> None:
    other = Rates({"float32": {PRODUCT: 9.0, CONVOLUTION: 11.0}}, 9.0)
    first = Rates({"float32": RATES.operations["float32"]}, 8.0)
    assert first.of("float32") == 10.0
    assert first.best(other) == Rates({"float32": {PRODUCT: 10.0, CONVOLUTION: 11.0}}, 9.0)


def test_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rates._TRIALS", 1)
    monkeypatch.setattr("benchmarks.rates._SIZES", (8,))
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    rates = measure_rates(CPU)
    assert set(rates.operations) == {"float32", "bfloat16"}
    for found in rates.operations.values():
        assert set(found) == {PRODUCT, CONVOLUTION}
        assert min(found.values()) > 1e6
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_what_a_device_multiplies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_on(CPU, "float32") == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert precision_on(CUDA, "float32") == "tf32"
    assert precision_on(CUDA, "bfloat16") == "bfloat16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert precision_on(CUDA, "float32") == "float32"


def test_cases_are_the_published_ones() -> None:
    assert set(DEFAULT_CASES) <= set(CASES)
    case = CASES["cifar10_ipc10"]
    assert (case.outer_loop, case.inner_epochs, case.student_steps) == (10, 50, 30)
    assert (case.num_synthetic, case.batch_real, case.width, case.num_domains) == (100, 256, 128, 4)
    assert CASES["cifar10_ipc1"].inner_epochs == 0
    large = CASES["tinyimagenet_ipc1"]
    assert (large.image_size, large.num_classes, large.depth) == (64, 200, 4)
    # All of the test images with all of the epochs.
    assert replace(case, epochs=1001).num_test == 10_000
    default = [name for name, task in TASKS.items() if task.is_default(case, CPU)]
    assert default == [*STEPS, "experts", "evaluation", "evaluation without DSA"]
    assert not TASKS["MTT step"].is_default(CASES["vlcs_ipc10"], CPU)
    assert not TASKS["DC iteration"].is_default(case, CPU)
    assert TASKS["DC iteration"].is_default(case, CUDA)


def test_loops_are_shorter_on_a_cpu() -> None:
    case = CASES["pacs_ipc10"]
    short, published = case.on(CPU), case.on(CUDA)
    assert (short.inner_epochs, short.student_steps) == (5, 5)
    assert (published.inner_epochs, published.student_steps) == (50, 20)
    first = CASES["cifar10_ipc1"].on(CPU)
    assert (first.inner_epochs, first.student_steps) == (0, 50)
    options = arguments.parse(["--inner-epochs", "7", "--student-steps", "9"])
    by_name = {case.name: case for case in options.cases}
    assert (by_name["pacs_ipc10"].inner_epochs, by_name["pacs_ipc10"].student_steps) == (7, 9)
    assert by_name["pacs_ipc1"].inner_epochs == 0


def document(tasks: dict[str, Any], device: str = "cpu", trainer: Any = None) -> dict[str, Any]:
    machine = {"device": "it", "cores": 2, "threads": 2, "system": "Linux", "MALLOC_": None}
    versions = dict.fromkeys(("python", "torch", "lightning", "dam_lightning"), "1")
    return {
        "command": "command",
        "machine": {**machine, **versions},
        "settings": {"device": device},
        "rates": RATES._asdict(),
        "trainer": trainer,
        "tasks": tasks,
        "scaling": [],
    }


def timed(
    case: Case, task: str, ours: list[float], reference: list[float], precision: str = "float32"
) -> dict[str, Any]:
    """A task as it is in a document."""

    def contender(seconds: list[float]) -> dict[str, Any]:
        return {
            "precision": precision,
            "first": 1.0,
            "seconds": seconds,
            "memory": 2**20,
            "notes": [],
        }

    sides = {OURS: contender(ours), **({REFERENCE: contender(reference)} if reference else {})}
    found = {
        "case": case.name,
        "task": task,
        "sizes": asdict(case),
        "work": {"operations": 8, "values": 1},
        "contenders": sides,
        "left_out": {},
        "profile": None,
    }
    return {f"{case.name}: {task}": found}


@pytest.mark.parametrize(
    ("seconds", "reference", "unsteady"),
    [([1.0, 1.4], [3.0, 2.5], False), ([1.0, 1.6], [3.0], True), ([1.0], [2.0, 3.1, 2.5], True)],
)
def test_unsteady_rows(seconds: list[float], reference: list[float], unsteady: bool) -> None:
    found = document(timed(NET, "DM step", seconds, reference))
    (row,) = rows_of(found)
    assert row.unsteady is unsteady
    assert ("Unsteady, not to be quoted: net DM step (ours)" in report.markdown(found)) is unsteady


def test_targets() -> None:
    def limit(*row: Any) -> float | None:
        target = target_of(*row)
        return target and target.limit

    assert limit("cpu", "pacs_ipc1", 1, "DM+DAM step", OURS, "bfloat16") == 4
    assert limit("cpu", "pacs_ipc1", 1, "DM+DAM step", OURS, "float32") == 1
    assert limit("cpu", "pacs_ipc1", 1, "DM step", "ours, float32", "float32") == 1
    assert limit("cpu", "pacs_ipc1", 1, "DM step", "ours, float32, eager", "float32") == 1
    assert limit("cpu", "pacs_ipc1", 1, "DC step", "ours, eager", "float32") is None
    assert limit("cpu", "pacs_ipc10", 10, "DC step", OURS, "float32") == 1.4
    assert limit("cpu", "pacs_ipc1", 1, "MTT step", OURS, "float32") == 1.5
    assert limit("cpu", "pacs_ipc10", 10, "MTT step", OURS, "float32") is None
    assert limit("cpu", "pacs_ipc10", 10, "evaluation", OURS, "float32") == 2
    assert limit("cuda", "cifar10_ipc10", 10, "DM step", OURS, "bfloat16") == 0.005
    assert limit("cuda", "cifar10_ipc10", 10, "DM step", "ours, float32", "tf32") is None
    assert limit("cuda", "cifar10_ipc1", 1, "DM step", OURS, "bfloat16") is None


def test_targets_in_the_table() -> None:
    tasks = timed(NET, "DC step", [2.0], [3.0]) | timed(NET, "evaluation", [2.0], [3.0])
    text = report.markdown(document(tasks))
    assert "| 1.50 | 1 | 1 | 1 | 0.8 | 2.5 | 1.4x: met |" in text
    assert "| 2x: missed |" in text
    tasks = timed(CASES["cifar10_ipc10"], "MTT step", [0.09], [], "bfloat16")
    text = report.markdown(document(tasks, "cuda"))
    assert "| 0.09 (0.09-0.09) | - | - | 1 | 1 | - |" in text
    assert "| 100 ms: met |" in text


def test_figures() -> None:
    case = replace(CASES["cifar10_ipc10"], experts=32, expert_batches=4)
    tasks = (
        timed(case, "DM step", [0.02], [0.1])
        | timed(case, "DM+DAM step", [0.03], [0.1])
        # 128 batches; an expert has 50 epochs of 196.
        | timed(case, "experts", [0.064], [0.128])
        | timed(case, "whole evaluation", [30.0], [])
    )
    text = report.markdown(document(tasks, trainer={"fit": 3e-3, "bare": 2e-3}))
    assert "- Trainer: 1.00 ms more than a bare step (3.00 against 2.00" in text
    assert "- cifar10_ipc10: that is 5.0 % of a DM step (target: 3 %, missed)." in text
    rate = 60 / (50 * 196 * 0.064 / 128)
    assert f"{rate:.3g} experts of 50 epochs a minute, the reference {rate / 2:.3g}" in text
    assert f"100 of them take {100 / rate:.3g} minutes." in text
    assert "steps of DM+DAM and the evaluation of 10 networks take 10.5 minutes." in text
    text = report.markdown(document(tasks, "cuda"))
    assert f"100 of them take {100 / rate:.3g} minutes (target: 10, met)." in text


def test_reports_of_several_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = {"net: DM step": {"case": "net", "task": "DM step", "checks": {}}}
    parts = [
        document(checks),
        document(timed(NET, "DM step", [2.0], [3.0])),
        document({"net: DC step": {"case": "net", "task": "DC step", "error": "too large"}}),
    ]
    for part, rate in zip(parts, (1.0, 40.0, 2.0), strict=True):
        part["rates"] = Rates({"float32": {PRODUCT: rate}}, 100.0)._asdict()
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, part in zip(files, parts, strict=True):
        file.write_text(json.dumps(part))
    names = [str(file) for file in files]
    assert report.main(names) == 0
    text = capsys.readouterr().out
    # At the best of the rates.
    assert "| net | DM step | ours | float32 |" in text
    assert "| 0.2 | 10.0 |" in text
    assert "- net DC step: too large" in text
    assert "checks" in report.merged(parts)["tasks"]["net: DM step"]
    parts[1]["machine"]["device"] = "another"
    files[1].write_text(json.dumps(parts[1]))
    assert report.main(names) == 1
    assert "different machines" in capsys.readouterr().err


def test_growth() -> None:
    linear = scaling.fit([1, 10, 50], [3.0, 30.0, 150.0])
    assert linear == pytest.approx((1.0, 1.0))
    assert not linear.is_worse_than_linear
    # Hidden by what does not grow, but for the last.
    late = scaling.fit([1, 2, 4, 8], [1.0, 1.0, 1.1, 3.0])
    assert late.exponent < 1 < late.steepest == pytest.approx(1.447, abs=1e-3)
    assert late.is_worse_than_linear
    assert scaling.Fit(1.12, 1.2).is_worse_than_linear
    assert not scaling.Fit(1.05, 1.2).is_worse_than_linear


def test_scaling() -> None:
    variable = scaling.Variable("images per class", "ipc", (1, 12))
    base = replace(SECOND_ORDER, inner_epochs=0)
    found = scaling.measure_scaling("MTT+DAM", variable, base, CPU, 1, compile=False)
    assert found["method"] == "MTT+DAM"
    assert len(found["seconds"]) == 2
    assert min(found["seconds"]) > 0
    text = report.markdown({**document({}), "scaling": [found]})
    assert "| MTT+DAM | images per class | no | 1: " in text
    assert "\nWhat is not varied: ipc 2, num_classes 3" in text


def test_scaling_is_part_of_the_command(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(method: str, variable: scaling.Variable, base: Case, *others: Any) -> dict[str, Any]:
        asked.append((method, variable.name, base.width, base.batch_real, others[1:]))
        sizes = {"width": base.width}
        values = {"values": [1, 2], "seconds": [1.0, 2.0], "power": 1}
        return {"method": method, "name": variable.name, "compiled": True, "sizes": sizes, **values}

    monkeypatch.setattr(command, "measure_scaling", note)
    options = [*TINY, "--cases", "none", "--scaling", "compiled", "--output", str(tmp_path)]
    for _ in range(2):
        assert command.main(options) == 0
    variables = [variable.name for variable in scaling.VARIABLES]
    assert asked == [
        (method, variable, 8, 32, (1, True)) for method in scaling.METHODS for variable in variables
    ]


class Known(Contender):
    """Convolves, under a name and without, and sleeps otherwise."""

    def __init__(self) -> None:
        self.images, self.weight = torch.ones(8, 4, 32, 32), torch.ones(4, 4, 3, 3)

    def run(self) -> None:
        torch.nn.functional.conv2d(self.images, self.weight)
        with torch.profiler.record_function("augmentation"):
            self.images * 2

    def outcome(self) -> dict[str, float]:
        return {}


def test_a_profile() -> None:
    found = profiled(Known(), CPU)
    assert set(found.kinds) <= set(KINDS)
    assert found.kinds["convolution"] > 0
    assert found.kinds["augmentation"] > 0
    assert found.kinds[HOST] > 0
    assert sum(found.kinds.values()) == pytest.approx(1)
    names = [name for name, _ in found.operations]
    assert any("convolution" in name for name in names)
    assert "aten::mul" in names


def test_a_step_has_named_parts() -> None:
    step = PackageStep(replace(SECOND_ORDER, batch_real=64), CPU, dam=True)
    step.run()
    found = profiled(step, CPU)
    assert found.kinds["data"] > 0
    assert found.kinds["augmentation"] > 0
    # And afterwards everything is as it was.
    assert "named" not in step._module._augment.__class__.__name__
    step.run()


class Waiting(Noting):
    """As PyTorch has it, where the mode is set."""

    waits = False
    mode = "default"

    def run(self) -> None:
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")


def test_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        Waiting.mode = mode

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    contender = Waiting(OURS, [], [])
    found = synchronisation.waiting(contender, CUDA)
    assert found is not None
    assert found.startswith("tests/test_benchmarks.py:")
    assert found.endswith(": called a synchronizing CUDA operation")
    assert modes == ["error", "default"]
    # Noting never raises, and may wait as most may.
    quiet = Noting(OURS, [], [])
    assert synchronisation.waiting(quiet, CUDA) is None
    quiet.waits = False
    assert synchronisation.waiting(quiet, CUDA) == ""
    assert synchronisation.waiting(contender, CPU) is None


@pytest.mark.usefixtures("quick")
def test_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--tasks", "DM step", "--check", "--output", str(tmp_path)]
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| cifar10_ipc1")]
    expected = 3 if has_fast_bfloat16(CPU) else 2
    assert [cells(line)[1] for line in lines] == ["DM step"] * expected
    for line in lines:
        assert cells(line)[5].endswith(": met")
        assert cells(line)[6] == "-"
    assert "## Timings" not in printed


@pytest.mark.usefixtures("quick")
def test_checks_tell_what_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        PackageDC, "outcome", lambda _: {"loss": 0.0, "distance of the images": 0.0}
    )
    assert command.main([*TINY, "--tasks", "DC step", "--check"]) == 1
    printed = capsys.readouterr()
    assert "cifar10_ipc1: DC step, ours, and the reference do not compute the same" in printed.err
    assert "| 1 (loss) | 0.001: **missed** | - |" in printed.out


@pytest.mark.parametrize("part", gpu.PARTS)
def test_parts_for_a_gpu(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run", arguments.parse)
    options: Any = gpu.main([part, "--device", "cpu", "--output", "results"])
    assert options.check == (part == "checks")
    assert options.minutes < 10
    assert set(options.tasks) <= set(TASKS)
    assert "ipc10" in " ".join(case.name for case in options.cases)
    monkeypatch.setattr(gpu, "run", None)
    assert gpu.main([]) == gpu.main(["everything"]) == 2
    assert "give a part: checks, cifar10, pacs, rest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--cases", "cifar10_ipc1,mnist"],
            "no case 'mnist'; choose from cifar10_ipc1, cifar10_ipc10, cifar10_ipc50",
        ),
        (["--tasks", "DM"], "no task 'DM'; choose from DM step, DM+DAM step"),
        (["--repeats", "0"], "--repeats: must be at least 1, not 0"),
        (["--width", "wide"], "--width: invalid whole number value: 'wide'"),
        (["--device", "nowhere"], "--device: 'nowhere' cannot be used"),
        (["--device", "meta"], "must be cpu or cuda, not 'meta'"),
        (["--frequency", "1"], "unrecognized arguments: --frequency 1"),
    ],
)
def test_bad_arguments(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(options)
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
    (tmp_path / "file").touch()
    assert command.main(["--output", str(tmp_path / "file")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "file" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_steps_of_processes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would silence the tests that come after.
    monkeypatch.setattr(processes, "be_quiet", lambda: None)
    processes.main(["--processes", "1", "2", "--steps", "1", "--width", "4", "--batch-real", "4"])
    lines = [line for line in capfd.readouterr().out.splitlines() if "s a step" in line]
    assert [line.partition(":")[0] for line in lines] == ["1 processes", "2 processes"]
    assert lines[0].endswith("1.00x")
