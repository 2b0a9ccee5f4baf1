"""A table of results on disk, one row for every finished test."""

import contextlib
import csv
import io
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch

from dam_lightning.version import __version__

__all__ = ["COLUMNS", "append_row", "describe_machine", "open_ledger"]

COLUMNS = (
    "dataset",
    "ipc",
    "method",
    "dam",
    "seed",
    "steps",
    "backbone",
    "accuracy",
    "deviation",
    "interval",
    "worst_domain",
    "networks",
    "precision",
    "device",
    "seconds",
    "peak_memory_mib",
    "version",
    "command",
)
"""Accuracies in percent; ``precision`` is that of the networks' training; ``deviation`` is over
networks, ``interval`` half of the 95 % interval; ``seconds`` and ``peak_memory_mib`` are those of
the test, which includes training the networks. Where several backbones are tested at once,
``seconds`` is the time to train the row's own networks and to test all."""


def append_row(path: str | os.PathLike[str], row: Mapping[str, object]) -> None:
    """Append one row, with the columns of `COLUMNS`; the file is begun where it is missing.

    The row is written by a single call, so that several runs can share a ledger.

    Raises:
        ValueError: if the row or the file has other columns.
    """
    if set(row) != set(COLUMNS):
        raise ValueError(f"a row has the columns {', '.join(COLUMNS)}, got {', '.join(row)}")
    target = open_ledger(path)
    whole = target.read_text(encoding="utf-8").endswith("\n")
    with target.open("a", encoding="utf-8", newline="") as file:
        # An editor may have left the last line open.
        file.write(("" if whole else "\n") + _line([row[column] for column in COLUMNS]))


def open_ledger(path: str | os.PathLike[str]) -> Path:
    """Begin the ledger where it is missing.

    Raises:
        ValueError: if the file has other columns.
    """
    target = Path(path)
    if not target.exists() or target.stat().st_size == 0:
        _begin(target)
    with target.open(encoding="utf-8", newline="") as file:
        found = next(csv.reader(file), [])
    if found != list(COLUMNS):
        raise ValueError(
            f"{target} is no ledger of this version: its columns are {found}; give another file"
        )
    return target


def _begin(target: Path) -> None:
    """Make the file with its header at once, so that nobody ever sees it without."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        # Somebody's empty file: several processes may have found it so.
        with target.open("a", encoding="utf-8", newline="") as file:
            _lock(file)
            if os.fstat(file.fileno()).st_size == 0:
                file.write(_line(COLUMNS))
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / target.name
        whole.write_text(_line(COLUMNS), encoding="utf-8", newline="")
        # Unlike a rename, a link leaves a file alone that another process has begun meanwhile.
        with contextlib.suppress(FileExistsError):
            target.hardlink_to(whole)


def _lock(file: TextIO) -> None:
    """Wait until no other process has the file locked; it is unlocked when it is closed."""
    import fcntl  # not on Windows, where only the ledger is to fail

    # Some file systems have no locks.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def describe_machine(device: torch.device) -> dict[str, object]:
    """The columns that tell where and from what a result came."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        import resource  # not on Windows, where only the ledger is to fail

        name = f"cpu x{torch.get_num_threads()}"
        # Linux counts in KiB, macOS in bytes.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {
        "device": name,
        "peak_memory_mib": round(peak),
        "version": _version(),
        "command": shlex.join([*_program(sys.argv[0]), *sys.argv[1:]]),
    }


def _program(path: str) -> list[str]:
    """How the program is called, wherever it was installed.

    Args:
        path: that Python gives it; of a console script and of a module it is absolute.
    """
    program = Path(path)
    if program.stem == "dam-lightning" or program.parts[-2:] == ("dam_lightning", "cli.py"):
        return ["dam-lightning"]
    return ["python", program.name] if program.suffix == ".py" else [program.name]


def _line(values: "list[object] | tuple[object, ...]") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _version() -> str:
    """The package's version, with the commit where it runs from a checkout.

    ``-dirty`` stands behind a commit that what runs is not; a ledger that has grown is no reason.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return __version__
    try:
        commit = _git(checkout, "describe", "--always")
        code = ("dam_lightning", "configs", "cli.py")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit}{'-dirty' if changed else ''}"


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
