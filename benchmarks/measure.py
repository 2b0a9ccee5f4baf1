"""How contenders are measured: in turns, time and memory, and only if they agree."""

import ctypes
import gc
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cases import Case
from benchmarks.machine import available_memory, synchronise
from benchmarks.profiling import Profile, profiled
from benchmarks.rates import Precision, multiplying, precision_on
from benchmarks.synchronisation import waiting
from benchmarks.tasks import OURS, REFERENCE, TASKS, Entry, Task

__all__ = [
    "Checked",
    "Measured",
    "Timed",
    "UnequalError",
    "be_quiet",
    "check",
    "measure",
    "timed",
]

_COMPARED = 2
"""Runs that must agree: the second starts from what the first made. In later ones rounding, which
grows tenfold with every step of DM, would hide what a comparison is for."""

_COARSE: dict[Precision, float] = {"float32": 0.0, "tf32": 5e-2, "bfloat16": 1e-2}
"""Least tolerance by precision: bfloat16 keeps 8 bits, 0.4 % of a single value, less of a sum of
many; with TF32's 10 bits neither side is exact, nor any step of a student."""

_TO_WARM_UP = {"cpu": 2, "cuda": 3}
"""Runs before the timed ones: in the second, a step that goes on with a network may still be
compiled, and on CUDA graphs are captured."""

_TURN_SECONDS = 0.2
"""Least of a turn, which short runs fill together: an accelerator is then given work while it
computes, as in a fit."""


class UnequalError(Exception):
    """Contenders of one task did not compute the same."""


class Difference(NamedTuple):
    """Between a contender and the reference.

    Attributes:
        share: of what the reference has.
        quantity: whose it is.
    """

    share: float
    quantity: str


class Timed(NamedTuple):
    """One contender.

    Attributes:
        precision: of its networks' forward passes.
        first: seconds of its first run, with whatever is compiled in it.
        seconds: of a run, in each of the timed turns.
        memory: bytes at the peak of a run, beyond what is held before it; None: unknown.
        difference: largest from the reference's outcomes; None: there is no reference.
        notes: what is to be known of it, such as that it could not be compiled.
    """

    precision: Precision
    first: float
    seconds: list[float]
    memory: int | None
    difference: Difference | None
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """In plain values."""
        difference = self.difference and self.difference._asdict()
        return {**self._asdict(), "difference": difference}


class Checked(NamedTuple):
    """One contender that was not timed.

    Attributes:
        precision: of its networks' forward passes.
        difference: largest from the reference's outcomes.
        tolerance: of that.
        waits: where the host waits for the device, see `waiting`.
        notes: as of `Timed`.
    """

    precision: Precision
    difference: Difference
    tolerance: float
    waits: str | None
    notes: list[str]

    @property
    def is_equal(self) -> bool:
        """Whether it computes what the reference does. NaN is unequal."""
        return self.difference.share <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """In plain values."""
        difference = self.difference._asdict()
        return {**self._asdict(), "difference": difference, "is_equal": self.is_equal}


class Measured(NamedTuple):
    """A task.

    Attributes:
        contenders: by name.
        left_out: why, by the name of a contender.
        profile: of a run of `OURS`, or None.
    """

    contenders: dict[str, Timed]
    left_out: dict[str, str]
    profile: Profile | None


def be_quiet() -> None:
    """Keep from the terminal what Lightning says of modules that run outside a Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def measure(
    task: Task,
    case: Case,
    device: torch.device,
    repeats: int,
    variants: bool = True,
    profile: bool = False,
) -> Measured:
    """Time the contenders of a task in turns, so that what slows the machine slows all of them.

    Args:
        task: whose contenders.
        case: the sizes.
        device: where to run.
        repeats: timed turns, at least 1.
        variants: with those that tell where the time comes from.
        profile: with a further run of `OURS` that tells what it does.

    Raises:
        UnequalError: outcomes of the first runs differ by more than a contender's tolerance.
    """
    warm = 1 if task.once else _TO_WARM_UP[device.type]
    subjects, left_out = _prepared(task, case, device, variants, warm)
    differences = _check_equal(subjects)
    for turn in range(0 if task.once else repeats):
        for subject in subjects.values():
            subject.take_turn(first=turn == 0)
        if turn == 0:
            differences = _check_equal(subjects)
    contenders = {
        name: Timed(
            subject.precision,
            subject.first,
            subject.seconds or [subject.first],
            subject.memory,
            differences.get(name),
            subject.notes,
        )
        for name, subject in subjects.items()
    }
    found = None
    if profile and OURS in subjects and not task.once:
        found = profiled(subjects[OURS].contender, device)
    subjects.clear()
    torch.compiler.reset()
    return Measured(contenders, left_out, found)


def timed(
    name: str, case: Case, device: torch.device, repeats: int, variants: bool
) -> dict[str, Any]:
    """All that is known of a task, in plain values; arguments as of `measure`, the task by name."""
    task = TASKS[name]
    measured = measure(task, case, device, repeats, variants, profile=True)
    return {
        "sizes": asdict(case),
        "work": task.work(case)._asdict(),
        "contenders": {name: each.as_dict() for name, each in measured.contenders.items()},
        "left_out": measured.left_out,
        "profile": measured.profile and measured.profile._asdict(),
    }


def check(task: Task, case: Case, device: torch.device) -> dict[str, Checked]:
    """Compare all contenders of a task, and see whether their runs wait for the device.

    All bits of float32 are multiplied, also where TF32 is the default.

    Returns:
        By name, all contenders but the reference.
    """
    # As the tolerances are meant.
    with multiplying(tf32=False):
        warm = max(_COMPARED, _TO_WARM_UP[device.type])
        subjects, _ = _prepared(task, case, device, True, warm)
        checked = {
            name: Checked(
                subjects[name].precision,
                difference,
                max(subjects[name].tolerance, subjects[REFERENCE].tolerance),
                waiting(subjects[name].contender, device),
                subjects[name].notes,
            )
            for name, difference in _compared(subjects).items()
        }
    subjects.clear()
    torch.compiler.reset()
    return checked


def _prepared(
    task: Task, case: Case, device: torch.device, variants: bool, warm: int
) -> tuple[dict[str, "_Subject"], dict[str, str]]:
    """Contenders that have run so often, and why others were left out."""
    subjects, left_out = {}, {}
    for name, entry in task.chosen(case, device, variants).items():
        needed, available = entry.takes and entry.takes(case), available_memory(device)
        if needed and available and needed > available:
            left_out[name] = f"takes {needed / 2**30:.0f} GiB of {available / 2**30:.0f}"
        else:
            subjects[name] = _Subject(entry, case, device, warm)
    return subjects, left_out


class _Subject:
    """A contender being measured, after so many runs to warm up."""

    def __init__(self, entry: Entry, case: Case, device: torch.device, warm: int) -> None:
        self._device = device
        self.contender = entry.make(case, device)
        self.precision = precision_on(device, self.contender.precision)
        self.tolerance = max(entry.tolerance, _COARSE[self.precision])
        self.outcomes: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.memory: int | None = None
        with _noted() as self.notes:
            held = _cuda_held(device)
            self.first = last = self._run()
            for turn in range(1, warm):
                if turn == warm - 1:
                    # What graphs were captured in stays reserved, and counts as the run's.
                    _cuda_held(device)
                last = self._run()
            if device.type == "cuda":
                self.memory = torch.cuda.max_memory_reserved(device) - held
        self._fill_turns(last)

    def _run(self) -> float:
        """Seconds of a run; the outcomes of the first ones are kept."""
        seconds = self._timed(1)
        if len(self.outcomes) < _COMPARED:
            self.outcomes.append(self.contender.outcome())
        return seconds

    def _timed(self, runs: int) -> float:
        synchronise(self._device)
        start = time.perf_counter()
        for _ in range(runs):
            self.contender.run()
        synchronise(self._device)
        return (time.perf_counter() - start) / runs

    def take_turn(self, first: bool) -> None:
        """Time it; on a CPU the first turn is a single run, which tells its memory, too."""
        if self._device.type == "cuda" or not first:
            self.seconds.append(self._timed(self._runs))
            return
        before = _resident_anew()
        self.seconds.append(self._run())
        self._fill_turns(self.seconds[0])
        if before is not None:
            self.memory = _status("VmHWM") - before

    def _fill_turns(self, seconds: float) -> None:
        """As many runs in a turn as fill it, if a run takes so long."""
        self._runs = max(1, min(50, round(_TURN_SECONDS / seconds)))


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Warnings of functions that could not be compiled, instead of all warnings."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="(.* )?without compilation")
        yield notes
    for warning in caught:
        text = str(warning.message)
        if "without compilation" in text.lower() and text not in notes:
            notes.append(text)


def _compared(subjects: Mapping[str, _Subject]) -> dict[str, Difference]:
    """The largest difference of each from the reference, as far as they have run."""
    if REFERENCE not in subjects:
        return {}
    largest = {}
    for name, subject in subjects.items():
        if name == REFERENCE:
            continue
        found = [
            # Where both are 0, as gradients may be that nothing depends on.
            Difference(abs(theirs[quantity] - value) / (abs(value) or 1.0), quantity)
            for ours, theirs in zip(subjects[REFERENCE].outcomes, subject.outcomes, strict=True)
            for quantity, value in ours.items()
        ]
        # NaN is larger than anything.
        largest[name] = max(found, key=lambda each: (each.share != each.share, each.share))
    return largest


def _check_equal(subjects: Mapping[str, _Subject]) -> dict[str, Difference]:
    differences = _compared(subjects)
    for name, difference in differences.items():
        tolerance = max(subjects[name].tolerance, subjects[REFERENCE].tolerance)
        # Written so that NaN is unequal.
        if not difference.share <= tolerance:
            raise UnequalError(
                f"{name!r} and the reference do not compute the same: "
                f"{difference.quantity} differs by {difference.share:.2g} of it, more than "
                f"{tolerance:.2g}"
            )
    return differences


def _cuda_held(device: torch.device) -> int:
    """Bytes of a GPU that are taken and needed, whose peak begins anew; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    gc.collect()
    synchronise(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


def _resident_anew() -> int | None:
    """The resident set, whose peak begins anew; None where the system does not tell.

    Memory that others freed but the allocator keeps, which is much of it with the ``MALLOC_``
    variables, is given back: it would count as held before and then be used again.
    """
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    gc.collect()
    # Not all systems have it.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    """A size in bytes from what Linux says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
