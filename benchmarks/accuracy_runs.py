"""Runs of the command line, each in a folder, done once, and gone on with where cut short."""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from dam_lightning.files import written_beside

__all__ = [
    "ChangedError",
    "FailedError",
    "Job",
    "Record",
    "Runner",
    "condense_and_test",
    "last_checkpoint",
    "load_record",
    "read_yaml",
    "run_in_subprocess",
    "test_only",
]

Runner = Callable[[Sequence[str], Path], int]
"""Runs the command line with arguments, its output at the end of a file; gives the exit status."""


class ChangedError(ValueError):
    """A folder holds a run that was made with other arguments."""


class FailedError(RuntimeError):
    """A run ended without a result."""


@dataclass(frozen=True)
class Job:
    """A config that is run.

    Attributes:
        name: of its folder below the output's, with the dataset first: ``digits/dm_ipc1``.
        config: its file.
        arguments: what the command line gets besides, for fit and test alike.
    """

    name: str
    config: Path
    arguments: tuple[str, ...] = ()


@dataclass
class Record:
    """What is known of a run, kept in ``run.json`` in its folder.

    Attributes:
        config: content of the config.
        arguments: those of the `Job`.
        fits: seconds of each time that a fit was begun; None where it was killed with this command.
        fitted: whether a fit came to its end.
        row: the ledger's row, once the test is done.
    """

    config: Any
    arguments: list[str]
    fits: list[float | None] = field(default_factory=list)
    fitted: bool = False
    row: dict[str, str] | None = None

    def save(self, folder: Path) -> None:
        """Write it at once, so that no half of it is ever there."""
        with written_beside(folder / "run.json") as beside:
            beside.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: if it is none.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error


def load_record(job: Job, out: Path) -> Record:
    """The record of an earlier run of a job, or a new one.

    A run that left nothing to go on with may have had other arguments.

    Args:
        job: to be run.
        out: folder of all runs.

    Raises:
        ChangedError: if there is a result or a checkpoint made with other arguments.
    """
    folder = out / job.name
    # As it comes back from JSON.
    config = json.loads(json.dumps(read_yaml(job.config), default=str))
    new = Record(config, list(job.arguments))
    try:
        old = Record(**json.loads((folder / "run.json").read_text()))
    except FileNotFoundError:
        return new
    if (old.config, old.arguments) == (new.config, new.arguments):
        return old
    if old.row is None and last_checkpoint(folder) is None:
        return new
    what = (
        f"with the arguments {shlex.join(old.arguments) or '(none)'}, "
        f"not {shlex.join(new.arguments) or '(none)'}"
        if old.arguments != new.arguments
        else f"before {job.config} was changed"
    )
    raise ChangedError(
        f"{folder} holds a run that was made {what}; give another --out, or delete that folder to "
        "run it anew"
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest ``last.ckpt`` of the fits in a job's folder, or None."""
    found = folder.glob("lightning_logs/version_*/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def run_in_subprocess(arguments: Sequence[str], log: Path) -> int:
    """Run the command line in a process of its own.

    Args:
        arguments: of ``python -m dam_lightning.cli``.
        log: file to whose end the command and all its output go.
    """
    module = ["-m", "dam_lightning.cli", *arguments]
    with log.open("a", encoding="utf-8") as file:
        print("$", shlex.join(["python", *module]), file=file, flush=True)
        done = subprocess.run(
            [sys.executable, *module],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Otherwise what was printed would come after the error that ended the run.
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=False,
        )
    return done.returncode


def condense_and_test(job: Job, out: Path, runner: Runner) -> Record:
    """Fit and test a condensation, as far as that is not done yet.

    Args:
        job: the condensation.
        out: folder of all runs.
        runner: runs the command line.

    Raises:
        ChangedError: see `load_record`.
        FailedError: if fit or test fails.
    """
    record = load_record(job, out)
    folder = out / job.name
    if not record.fitted:
        begun = last_checkpoint(folder)
        more = [] if begun is None else ["--ckpt_path", str(begun)]
        folder.mkdir(parents=True, exist_ok=True)
        record.fits.append(None)
        record.save(folder)
        start = time.perf_counter()
        try:
            _run("fit", job, out, more, runner)
            record.fitted = True
        finally:
            record.fits[-1] = time.perf_counter() - start
            record.save(folder)
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        raise FailedError(
            f"{job.name}: there is no last.ckpt in {folder}; leave checkpoints on, or delete that "
            "folder to run it anew"
        )
    return _test(job, out, ["--ckpt_path", str(checkpoint)], runner, record)


def test_only(job: Job, out: Path, runner: Runner) -> Record:
    """Test what needs no fit, unless that is done.

    Args:
        job: the evaluation.
        out: folder of all runs.
        runner: runs the command line.

    Raises:
        ChangedError: see `load_record`.
        FailedError: if the test fails.
    """
    return _test(job, out, [], runner, load_record(job, out))


def _test(job: Job, out: Path, more: list[str], runner: Runner, record: Record) -> Record:
    if record.row is not None:
        return record
    ledger = out / "ledger.csv"
    _run("test", job, out, ["--model.ledger", str(ledger), *more], runner)
    record.row = _last_row(ledger, out / job.name)
    if record.row is None:
        raise FailedError(f"{job.name}: test left no row in {ledger}")
    record.save(out / job.name)
    return record


def _last_row(ledger: Path, folder: Path) -> dict[str, str] | None:
    """The newest row of the ledger whose command names a folder."""
    if not ledger.exists():
        return None
    with ledger.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if str(folder) in shlex.split(row["command"])]
    return rows[-1] if rows else None


def _run(stage: str, job: Job, out: Path, more: list[str], runner: Runner) -> None:
    """Run one subcommand, saying when it begins and ends."""
    folder = out / job.name
    own = ["--config", str(job.config), "--trainer.default_root_dir", str(folder)]
    # Lightning's numbered folders and CSV files, whatever logger the config has.
    own += ["--trainer.logger", "true"]
    log = folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"{job.name}: {stage} begins")
    start = time.perf_counter()
    status = runner([stage, *own, *job.arguments, *more], log)
    seconds = time.perf_counter() - start
    if status != 0:
        raise FailedError(
            f"{job.name}: {stage} failed after {seconds:.0f} s with status {status}: "
            f"{_last_line(log)} (see {log})"
        )
    _say(f"{job.name}: {stage} done in {seconds:.0f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
