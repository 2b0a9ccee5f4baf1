"""The command that condenses by a list of configs, tests, and prints a table of accuracies."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.accuracy_random import Terms, random_job, terms_of
from benchmarks.accuracy_runs import (
    ChangedError,
    FailedError,
    Job,
    Runner,
    condense_and_test,
    last_checkpoint,
    load_record,
    read_yaml,
    run_in_subprocess,
    test_only,
)
from benchmarks.accuracy_table import RANDOM, Result, method_of, tables
from dam_lightning.files import written_beside

__all__ = ["main"]

_SHIPPED = Path(__file__).parents[1] / "configs"
_OURS = (
    "-c",
    "--config",
    "--ckpt_path",
    "--model.ledger",
    "--trainer.default_root_dir",
    "--trainer.logger",
)
"""Arguments that every run has values of its own for."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[Job]]:
    parser = _Parser(
        prog="python -m benchmarks.accuracy",
        usage="%(prog)s --configs CONFIG ... --out OUT [--for NAME OPTIONS] ... [-- OPTION ...]",
        description="Condense by each config, test, test random real images alike, print a table.",
        epilog="What follows -- goes to every fit and test of the package's command line.",
    )
    parser.add_argument(
        "--configs", nargs="+", required=True, help="files, shipped configs, or patterns of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument(
        "--for",
        dest="own",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help="options of some configs only, those called NAME or NAME_...: --for mtt "
        "'--trainer.max_steps 300'",
    )
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, more = parser.parse_args(arguments[:at]), list(arguments[at + 1 :])
    every = [*more, *(word for _, text in options.own for word in shlex.split(text))]
    taken = [word for word in every if word.split("=")[0] in _OURS]
    if taken:
        parser.error(f"{', '.join(taken)}: each run has its own, which cannot be given")
    try:
        paths = _find(options.configs)
    except ValueError as error:
        parser.error(f"--configs: {error}")
    own = [(name, shlex.split(text)) for name, text in options.own]
    for name, _ in own:
        if not any(_is_called(path, name) for path in paths):
            parser.error(f"--for {name}: no config of this name is among those given")
    return options, [_job(path, own, more) for path in paths]


def _is_called(path: Path, name: str) -> bool:
    return f"{path.stem}_".startswith(f"{name}_")


def _job(path: Path, own: Sequence[tuple[str, list[str]]], more: list[str]) -> Job:
    # Its own come last, so that they win over those of all.
    options = [option for name, listed in own if _is_called(path, name) for option in listed]
    return Job(f"{path.resolve().parent.name}/{path.stem}", path, (*more, *options))


def _find(patterns: Sequence[str]) -> list[Path]:
    """The configs that are meant, by dataset, method and images per class."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        shipped = str(_SHIPPED / pattern.removeprefix("configs/"))
        configs = list(filter(_is_config, _matches(pattern) or _matches(shipped)))
        if not configs:
            raise ValueError(f"there is no YAML file with a model at {pattern}")
        found |= {path.resolve(): path for path in configs}
    names = [f"{path.parent.name}/{path.stem}" for path in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several files are called {', '.join(twice)}; run one of them at a time")
    return sorted(found.values(), key=_order)


def _matches(pattern: str) -> list[Path]:
    anchor = Path(pattern).anchor
    return list(Path(anchor).glob(pattern.removeprefix(anchor)))


def _is_config(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    content = read_yaml(path)
    return isinstance(content, dict) and "model" in content


def _order(path: Path) -> tuple[str, str, int]:
    ipc = re.search(r"_ipc(\d+)", path.stem)
    return path.resolve().parent.name, method_of(path.stem), int(ipc[1]) if ipc else 0


class _Session:
    """The runs of one call: what came of them, and what failed."""

    def __init__(self, out: Path, runner: Runner) -> None:
        self.out, self.runner = out, runner
        self.results: list[Result] = []
        self.failures: list[str] = []

    def condense(self, job: Job) -> None:
        """Fit and test by a config."""
        dataset, _, name = job.name.rpartition("/")
        try:
            record = condense_and_test(job, self.out, self.runner)
        except FailedError as error:
            self._failed(error)
            return
        checkpoint = last_checkpoint(self.out / job.name)
        assert record.row is not None
        assert checkpoint is not None
        terms = terms_of(checkpoint, dataset)
        self.results.append(Result(method_of(name), terms, record.row, record.fits))

    def test_random(self, terms: Terms, ipc: int) -> None:
        """Test random real images."""
        try:
            record = test_only(random_job(terms, ipc, self.out), self.out, self.runner)
        except FailedError as error:
            self._failed(error)
            return
        assert record.row is not None
        self.results.append(Result(RANDOM, terms, record.row, []))

    def _failed(self, error: FailedError) -> None:
        print(error, file=sys.stderr, flush=True)
        self.failures.append(str(error))

    def report(self, command: str) -> str:
        """The whole page."""
        parts = [f"`{command}`"]
        if self.results:
            parts.append(
                "Accuracy on real test images in %, mean ± standard deviation over networks; "
                "`fit, s` is of the whole command, with its start."
            )
            rows = [result.row for result in self.results]
            made = [
                f"{column} {', '.join(dict.fromkeys(row[column] for row in rows))}"
                for column in ("device", "version", "seed")
            ]
            parts += ["; ".join(made), tables(self.results)]
        if self.failures:
            parts.append("\n".join(["Failed:", "", *(f"- {line}" for line in self.failures)]))
        return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str], runner: Runner = run_in_subprocess) -> int:
    """Run the configs, as far as they were not run before, and make the table.

    Args:
        arguments: of the command line, without the program's name.
        runner: runs the package's command line.

    Returns:
        The exit status: 0; 1 where a run failed, where one was made with other arguments or where
        files cannot be made; 130 where it was interrupted.
    """
    options, jobs = _parse(arguments)
    session = _Session(options.out, runner)
    try:
        # Before the first is run, so that hours of work do not come to nothing.
        for job in jobs:
            load_record(job, options.out)
        for job in jobs:
            session.condense(job)
        for terms, ipc in dict.fromkeys((each.terms, each.ipc) for each in session.results):
            session.test_random(terms, ipc)
        report = session.report(shlex.join(["python", "-m", "benchmarks.accuracy", *arguments]))
        with written_beside(options.out / "table.md") as beside:
            beside.write_text(report)
    except (ChangedError, OSError) as error:
        print(f"python -m benchmarks.accuracy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(report, end="")
    return 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
