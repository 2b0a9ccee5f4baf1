"""The command line of the benchmarks."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.cases import CASES, DEFAULT_CASES, Case
from benchmarks.tasks import TASKS

__all__ = ["parse", "positive"]

_NONE = "none"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """For `argparse`: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


positive.__name__ = "whole number"


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [] if text == _NONE else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no {what} {', '.join(map(repr, unknown))}; choose from {', '.join(known)}"
        )
    return names


def _cases(text: str) -> list[str]:
    return _names(text, list(CASES), "case")


def _tasks(text: str) -> list[str]:
    return _names(text, list(TASKS), "task")


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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Returns:
        The options; ``cases`` are `Case` objects with the sizes that were asked for, ``tasks`` are
        names, or None: those that a case has by default.
    """
    parser = _Parser(
        prog="python -m benchmarks",
        description="Time the package against the plain loops of tests/reference.",
    )
    add = parser.add_argument
    add(
        "--cases",
        type=_cases,
        default=list(DEFAULT_CASES),
        metavar="NAMES",
        help=f"joined by commas, or {_NONE}; default {','.join(DEFAULT_CASES)}; there are "
        f"{', '.join(CASES)}",
    )
    add(
        "--tasks",
        type=_tasks,
        metavar="NAMES",
        help="joined by commas; default those that the paper has costs of, and the evaluation; "
        f"there are {', '.join(TASKS)}",
    )
    add("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add("--repeats", type=positive, default=3, metavar="N", help="timed turns; default 3")
    add("--no-variants", action="store_true", help="only the reference and the package's default")
    add(
        "--scaling",
        choices=(_NONE, "eager", "compiled"),
        default="eager",
        help="how steps are timed at other sizes, or not at all; default eager",
    )
    add(
        "--check",
        action="store_true",
        help="compare the contenders in all bits of float32, and see on CUDA whether the host "
        "waits, instead of timing them",
    )
    for option, what in (
        ("--batch-real", "real images of each group in a step; default 256"),
        ("--width", "channels of the ConvNet; default 128"),
        ("--epochs", "of each network in the evaluation; default 20, or 5 on a CPU above ipc 1"),
        ("--inner-epochs", "of DC's networks above ipc 1; default the paper's, or 5 on a CPU"),
        ("--student-steps", "of MTT; default the paper's, or 5 on a CPU above ipc 1"),
    ):
        add(option, type=positive, metavar="N", help=what)
    add(
        "--threads",
        type=positive,
        default=torch.get_num_threads(),
        metavar="N",
        help="of the CPU; default PyTorch's",
    )
    add("--minutes", type=float, metavar="M", help="begin no task after so long")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for results.json and results.md; the same command again goes on where it was cut",
    )
    options = parser.parse_args(arguments)
    try:
        # Not while parsing: of several only the last counts.
        options.device = _device(options.device)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --device: {error}")
    options.cases = [_sized(CASES[name].on(options.device), options) for name in options.cases]
    return options


def _sized(case: Case, options: argparse.Namespace) -> Case:
    names = ("batch_real", "width", "epochs", "student_steps")
    asked = {name: getattr(options, name) for name in names if getattr(options, name)}
    if options.inner_epochs and case.inner_epochs:
        asked["inner_epochs"] = options.inner_epochs
    return replace(case, **asked)
