"""The command that decides open points by small comparisons on held-out training images."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from benchmarks.comparison_questions import QUESTIONS, Question, Variant, questions
from benchmarks.comparison_run import run
from benchmarks.comparison_settings import Settings, check_base, resolved, settings_of
from benchmarks.comparison_store import Store
from benchmarks.comparison_table import Found, table
from dam_lightning.messages import said_of

__all__ = ["main"]

Measure = Callable[[Settings], dict[str, Any]]
"""Makes a run."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _Parser(
        prog="python -m benchmarks.comparisons",
        usage="%(prog)s --out OUT [--questions NAME ...] [--seeds SEED ...] [-- OPTION ...]",
        description="Compare variants of the method on validation images, seed by seed.",
        epilog="What follows -- goes to every run, as options of dam-lightning fit.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--config", default="pacs/dm_dam_ipc1.yaml", help="the base: a file or a shipped config"
    )
    parser.add_argument(
        "--questions", nargs="+", default=list(QUESTIONS), choices=QUESTIONS, metavar="NAME"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), metavar="SEED")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; default: PyTorch's")
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, more = parser.parse_args(arguments[:at]), list(arguments[at + 1 :])
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must be 0 or above, got {min(options.seeds)}")
    if any(word.split("=")[0] == "--seed_everything" for word in more):
        parser.error("--seed_everything: name the seeds by --seeds")
    return options, more


@dataclass
class _Session:
    """The runs of one call."""

    base: dict[str, Any]
    asked: list[Question]
    seeds: list[int]
    store: Store
    measure: Measure
    failures: list[str] = field(default_factory=list)
    elsewhere: int = 0

    def make_missing(self) -> None:
        """Make every run that was not made and that no other process is making.

        Seed by seed, so that what is cut short can be compared as far as it is.
        """
        runs = self._runs()
        missing = {key: each for key, each in runs.items() if self.store.read(each[1]) is None}
        _say(f"{len(runs)} runs, {len(missing)} of them to be made")
        for number, (name, settings) in enumerate(missing.values(), 1):
            with self.store.claimed(settings) as is_mine:
                if is_mine:
                    self._make(f"{number} of {len(missing)}, {name}", settings)
                elif self.store.read(settings) is None:
                    self.elsewhere += 1

    def _make(self, name: str, settings: Settings) -> None:
        _say(f"{name}: begins")
        start = time.perf_counter()
        try:
            result = self.measure(settings)
        except SIGTERMException:
            raise
        except SystemExit as error:
            # Lightning makes one of Ctrl+C.
            raise KeyboardInterrupt from error
        except Exception as error:
            message = said_of(error)
            if message is None:
                raise
            failure = f"{name.partition(', ')[2]}: {message}"
            self.failures.append(failure)
            _say(f"failed: {failure}")
            return
        self.store.write(settings, result)
        accuracy = sum(result["accuracy"]) / len(result["accuracy"])
        _say(f"{name}: {accuracy:.2f} % in {time.perf_counter() - start:.0f} s")

    def _runs(self) -> dict[str, tuple[str, Settings]]:
        """Names and settings by key; what several questions share is there once."""
        found: dict[str, tuple[str, Settings]] = {}
        for seed in self.seeds:
            for question, variant in self._variants():
                settings = self._settings(question, variant, seed)
                name = "base" if variant is question.base else f"{question.name}: {variant.name}"
                found.setdefault(settings.key, (f"{name}, seed {seed}", settings))
        return found

    def _variants(self) -> Iterator[tuple[Question, Variant]]:
        for question in self.asked:
            for variant in (question.base, *question.others):
                yield question, variant

    def _settings(self, question: Question, variant: Variant, seed: int) -> Settings:
        # The base's options are those it has.
        changed = Variant(variant.name) if variant is question.base else variant
        return settings_of(self.base, changed, seed)

    def found(self, question: Question, variant: Variant) -> Found:
        """The results of a variant by seed."""
        results = {
            seed: self.store.read(self._settings(question, variant, seed)) for seed in self.seeds
        }
        return {seed: result for seed, result in results.items() if result is not None}

    def report(self, command: str) -> str:
        """The whole page."""
        parts = [
            f"`{command}`",
            "Accuracy on validation images in %, mean over networks and seeds; the difference is "
            "taken seed by seed, mean ± 95 % interval (Student's t over the seeds).",
        ]
        for question in self.asked:
            others = [self.found(question, variant) for variant in question.others]
            parts.append(table(question, self.found(question, question.base), others))
        if self.failures:
            parts.append("\n".join(["Failed:", "", *(f"- {line}" for line in self.failures)]))
        return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str], measure: Measure = run) -> int:
    """Make the runs, as far as they were not made before, and print the tables.

    Args:
        arguments: of the command line, without the program's name.
        measure: makes a run.

    Returns:
        The exit status: 0; 1 where a run is missing, because it failed or another process is
        making it, or where nothing can be begun; 130 where it was interrupted, 143 by SIGTERM.

    Raises:
        SystemExit: with status 2 where the arguments are no good.
    """
    options, more = _parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        base = resolved(options.config, more)
        known = questions(base["model"]["init_args"]["lr_images"])
        asked = [known[name] for name in dict.fromkeys(options.questions)]
        for question in asked:
            check_base(base, question.base)
        session = _Session(
            base, asked, list(dict.fromkeys(options.seeds)), Store(options.out), measure
        )
        session.make_missing()
        report = session.report(shlex.join(["python", "-m", "benchmarks.comparisons", *arguments]))
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks.comparisons: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except SIGTERMException:
        return 128 + signal.SIGTERM
    print(report, end="")
    if session.elsewhere:
        _say(
            f"{session.elsewhere} runs are being made by another process: the same command prints "
            "everything when they are done"
        )
    return 1 if session.failures or session.elsewhere else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
