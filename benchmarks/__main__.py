"""The command: the order of the work, and what is printed."""

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.apart import apart
from benchmarks.arguments import parse
from benchmarks.cases import Case
from benchmarks.machine import describe
from benchmarks.measure import UnequalError, be_quiet, check, timed
from benchmarks.rates import measure_rates
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.scaling import METHODS, VARIABLES, base_case, measure_scaling
from benchmarks.tasks import TASKS, Task
from benchmarks.trainer_overhead import trainer_overhead

_SETTINGS = (
    "repeats",
    "check",
    "no_variants",
    "batch_real",
    "width",
    "epochs",
    "inner_epochs",
    "student_steps",
)
"""Options that results which belong together have in common."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 where contenders did not agree, a task failed or was not begun, or
        the output cannot be written.
    """
    options = parse(arguments)
    be_quiet()
    torch.set_num_threads(options.threads)
    head = {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "machine": describe(options.device),
        "settings": {
            "device": options.device.type,
            **{name: getattr(options, name) for name in _SETTINGS},
        },
    }
    try:
        run = _Run(options, Results(options.output, head))
        run.all()
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 1
    print(markdown(run.results.document), end="")
    for problem in run.problems:
        print(f"python -m benchmarks: {problem}", file=sys.stderr)
    return int(bool(run.problems))


class _Run:
    """What is still to be done of a document.

    Args:
        options: of the command line.
        results: with what was done before.

    Attributes:
        results: with all that could be done.
        problems: what could not, or is not as it should be.
    """

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        self._options = options
        self._start = time.perf_counter()
        self.results = results
        self.problems: list[str] = []

    def all(self) -> None:
        """Tasks; and unless they are only checked, what else there is to be timed."""
        if self._options.check:
            self._tasks()
            return
        device = self._options.device
        self.results.put_rates(measure_rates(device))
        self._tasks()
        self._trainer()
        if self._options.scaling != "none":
            self._scaling(compile=self._options.scaling == "compiled")
        self.results.put_rates(measure_rates(device))

    def _may_begin(self, what: str) -> bool:
        """Whether there is time for it; said on the standard error, either way."""
        minutes = (time.perf_counter() - self._start) / 60
        if self._options.minutes is not None and minutes > self._options.minutes:
            self.problems.append(f"{what} was not begun in time: run the same command again")
            return False
        print(f"{60 * minutes:5.0f} s  {what}", file=sys.stderr, flush=True)
        return True

    def _chosen(self) -> list[tuple[Case, Task]]:
        asked, device = self._options.tasks, self._options.device
        return [
            (case, task)
            for case in self._options.cases
            for task in TASKS.values()
            if (task.is_default(case, device) if asked is None else task.name in asked)
        ]

    def _attempt(self, what: str, work: Callable[[], Any]) -> tuple[Any, str]:
        """What comes of it, or why nothing did."""
        try:
            return work(), ""
        # Whatever it is: something else may fit into the memory, or be right, where this is not.
        except Exception as error:
            if not isinstance(error, UnequalError):
                traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            self.problems.append(f"{what}: {reason}")
            return None, reason

    def _tasks(self) -> None:
        for case, task in self._chosen():
            name = f"{case.name}: {task.name}"
            if self.results.has_task(case.name, task.name) or not self._may_begin(name):
                continue
            work = self._checked if self._options.check else self._timed
            found, reason = self._attempt(name, partial(work, case, task))
            self.results.put_task(case.name, task.name, found or {"error": reason})

    def _timed(self, case: Case, task: Task) -> dict[str, Any]:
        options = self._options
        arguments = task.name, case, options.device, options.repeats, not options.no_variants
        # A GPU's memory is in no one's hands but PyTorch's, and starting takes it long.
        return apart(timed, *arguments) if options.device.type == "cpu" else timed(*arguments)

    def _checked(self, case: Case, task: Task) -> dict[str, Any]:
        checks = check(task, case, self._options.device)
        for name, checked in checks.items():
            what = f"{case.name}: {task.name}, {name}"
            if not checked.is_equal:
                self.problems.append(f"{what}, and the reference do not compute the same")
            if checked.waits:
                self.problems.append(f"{what}, waits for the device: {checked.waits}")
        return {"checks": {name: each.as_dict() for name, each in checks.items()}}

    def _trainer(self) -> None:
        has_steps = any(task.name == "DM step" for _, task in self._chosen())
        if has_steps and self.results.document["trainer"] is None and self._may_begin("Trainer"):
            measured, _ = self._attempt("Trainer", lambda: trainer_overhead(self._options.device))
            self.results.put("trainer", measured and measured._asdict())

    def _scaling(self, compile: bool) -> None:
        device, repeats = self._options.device, self._options.repeats
        sizes = {"width": self._options.width, "batch_real": self._options.batch_real}
        asked = {name: size for name, size in sizes.items() if size}
        base = replace(base_case(device), **asked)
        for method in METHODS:
            for variable in VARIABLES:
                name = f"scaling of {method} with {variable.name}"
                done = self.results.has_scaling(method, variable.name, compile)
                if done or not self._may_begin(name):
                    continue
                work = partial(measure_scaling, method, variable, base, device, repeats, compile)
                found, _ = self._attempt(name, work)
                if found:
                    self.results.put_scaling(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
