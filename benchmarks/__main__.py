"""The command: arguments, the order of the work, and what is printed."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch

from benchmarks.cases import CASES, Case
from benchmarks.machine import Rates, describe, measure_rates
from benchmarks.measure import UnequalError, be_quiet, interleaved, peak_memory
from benchmarks.report import Row, header, table
from benchmarks.tasks import REFERENCE, TASKS, Task
from benchmarks.trainer_overhead import trainer_overhead
from dam_lightning.files import written_beside


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


_positive.__name__ = "whole number"


def _cases(text: str) -> list[Case]:
    names = text.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no case {', '.join(map(repr, unknown))}; choose from {', '.join(CASES)}"
        )
    return [CASES[name] for name in names]


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, not {text!r}")
    # With its number, as tensors tell it.
    return torch.empty(0, device=device).device


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m benchmarks",
        description="Time the package against the plain loops of tests/reference.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--cases",
        type=_cases,
        default="cifar10_ipc1",
        help=f"names joined by commas, of {', '.join(CASES)}",
    )
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=_positive, default=3, help="timed runs of each contender")
    parser.add_argument(
        "--batch-real", type=_positive, default=Case.batch_real, help="real images of each group"
    )
    parser.add_argument(
        "--width", type=_positive, default=Case.width, help="channels of the ConvNet"
    )
    parser.add_argument(
        "--epochs", type=_positive, default=Case.epochs, help="of training in the evaluation"
    )
    parser.add_argument(
        "--threads", type=_positive, default=torch.get_num_threads(), help="of the CPU"
    )
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write as well")
    options = parser.parse_args(arguments)
    options.cases = [
        replace(case, batch_real=options.batch_real, width=options.width, epochs=options.epochs)
        for case in options.cases
    ]
    return options


class _Measured(NamedTuple):
    case: Case
    task: Task
    seconds: dict[str, list[float]]
    memory: dict[str, int | None]

    def rows(self, rates: Rates) -> list[Row]:
        """One for each contender but the reference."""
        return [
            Row(
                self.case,
                self.task.name,
                name,
                entry.precision,
                self.seconds[name],
                self.seconds[REFERENCE],
                self.memory[name],
                self.memory[REFERENCE],
                self.task.work(self.case).floor(rates, entry.precision),
            )
            for name, entry in self.task.entries.items()
            if name != REFERENCE
        ]


def _measure(case: Case, task: Task, device: torch.device, repeats: int) -> _Measured:
    print(f"{case.name}: {task.name}", file=sys.stderr)
    seconds = interleaved(task, case, device, repeats)
    memory = {name: peak_memory(task, name, case, device) for name in task.entries}
    return _Measured(case, task, seconds, memory)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 where contenders did not agree or the output cannot be written.
    """
    options = _parse(arguments)
    be_quiet()
    torch.set_num_threads(options.threads)
    try:
        # Opened before the work, so that a wrong path does not cost it.
        if options.output is not None and options.output.is_dir():
            raise IsADirectoryError(f"{options.output} is a folder")
        with nullcontext() if options.output is None else written_beside(options.output) as beside:
            rates = measure_rates(options.device)
            measured = [
                _measure(case, task, options.device, options.repeats)
                for case in options.cases
                for task in TASKS.values()
            ]
            trainer = trainer_overhead(options.device)
            rates = rates.best(measure_rates(options.device))
            rows = [row for each in measured for row in each.rows(rates)]
            machine = describe(options.device)
            command = shlex.join(["python", "-m", "benchmarks", *arguments])
            if beside is not None:
                document = {
                    "command": command,
                    "machine": machine,
                    "rates": rates._asdict(),
                    "repeats": options.repeats,
                    "cases": [asdict(case) for case in options.cases],
                    "trainer_step": trainer._asdict(),
                    "rows": [row.as_dict() for row in rows],
                }
                beside.write_text(json.dumps(document, indent=2) + "\n")
    except (UnequalError, OSError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"`{command}`\n\n{header(machine, rates, trainer)}\n\n{table(rows)}")
    unsteady = [f"{row.case.name} {row.task} ({row.contender})" for row in rows if row.unsteady]
    if unsteady:
        print(f"\nUnsteady, not to be quoted: {'; '.join(unsteady)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
