"""How contenders are measured: time in turns, memory each by itself, and only if they agree."""

import ctypes
import gc
import logging
import multiprocessing
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.contender import Contender
from benchmarks.machine import synchronise
from benchmarks.tasks import REFERENCE, TASKS, Task

__all__ = ["UnequalError", "be_quiet", "interleaved", "peak_memory"]

_COMPARED = 2
"""Turns that must agree: the second starts from what the first made. In later ones rounding, which
grows tenfold with every step of DM, would hide what a comparison is for."""

_STEPS_OF_MEMORY = 2
"""Runs whose peak is taken: the optimiser's buffers are made in the first."""


class UnequalError(Exception):
    """Contenders of one task did not compute the same."""


def be_quiet() -> None:
    """Keep from the terminal what Lightning says of modules that run outside a Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def interleaved(
    task: Task, case: Case, device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Time the contenders of a task in turns, so that what slows the machine slows all of them.

    Args:
        task: whose contenders.
        case: the sizes.
        device: where to run.
        repeats: timed runs of each, after one to warm up.

    Returns:
        Seconds of every timed run, by contender.

    Raises:
        UnequalError: the outcomes of the first turns differ by more than a contender's tolerance.
    """
    contenders = {name: entry.make(case, device) for name, entry in task.entries.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            synchronise(device)
            start = time.perf_counter()
            contender.run()
            synchronise(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
        if turn < _COMPARED:
            outcomes = {name: contender.outcome() for name, contender in contenders.items()}
            _check_equal(task, outcomes)
    return seconds


def _check_equal(task: Task, outcomes: Mapping[str, Mapping[str, float]]) -> None:
    for name, outcome in outcomes.items():
        tolerance = task.entries[name].tolerance
        for quantity, expected in outcomes[REFERENCE].items():
            found = outcome[quantity]
            # Written so that NaN is unequal.
            if not abs(found - expected) <= tolerance * abs(expected):
                raise UnequalError(
                    f"{task.name}: {name!r} and the reference do not compute the same: {quantity} "
                    f"is {found:.8g}, not {expected:.8g}"
                )


def peak_memory(task: Task, name: str, case: Case, device: torch.device) -> int | None:
    """Bytes that a contender's first runs take at their peak, beyond what it holds before them.

    On CUDA what the allocator handed out; on a CPU the resident set of a process of its own, so
    that no contender profits from memory that another one left.

    Returns:
        Bytes, or None where the system does not tell (it takes Linux's ``/proc``).
    """
    if device.type == "cuda":
        return _cuda_peak(task.entries[name].make(case, device), device)
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Forked from a process that has imported everything and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_resident_peak, task.name, name, case, torch.get_num_threads()).result()


def _cuda_peak(contender: Contender, device: torch.device) -> int:
    gc.collect()
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for _ in range(_STEPS_OF_MEMORY):
        contender.run()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(task: str, name: str, case: Case, threads: int) -> int:
    be_quiet()
    torch.set_num_threads(threads)
    contender = TASKS[task].entries[name].make(case, torch.device("cpu"))
    gc.collect()
    # Memory that the preparations freed but the allocator keeps, which is much of it with the
    # MALLOC_ variables, would count as held before and then be used again. Not all systems have it.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # Forgets the peak of the preparations.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(_STEPS_OF_MEMORY):
        contender.run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A size in bytes from what Linux says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
