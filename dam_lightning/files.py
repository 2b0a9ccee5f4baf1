"""Where a run leaves its files, and how files are written so that none is ever half there."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from lightning import Trainer
from safetensors import SafetensorError

__all__ = ["check_writable", "is_rehearsal", "run_folder", "written_beside"]

_LEFTOVER_AGE = 24 * 60 * 60
"""Seconds after which no process is still writing a temporary file."""


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run: its first logger's, or ``default_root_dir``. All ranks must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which must leave no file and is no result."""
    return bool(getattr(trainer, "fast_dev_run", False))


def check_writable(folder: Path, option: str) -> None:
    """See whether files can be made in a folder that is there or is still to be made.

    Args:
        folder: the folder.
        option: what gives another one.

    Raises:
        OSError: they cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "may not be written into" if existing.is_dir() else "is no folder"
        raise OSError(
            f"cannot make files in {folder}: {existing} {reason}. Name another folder with {option}"
        )


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that takes its place when the block succeeds.

    The folder is made where it is missing. Two processes that write the same file do not meet: each
    has a temporary file of its own, and the last to finish stays. After an error nothing is left;
    what killed processes left is removed a day later, by the next to write the same file. A link
    stays one, and what is no file, such as a pipe, is written to as it is.

    Raises:
        OSError: it cannot be written, for instance because the disk is full.
    """
    target = Path(path).resolve()
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_temporary(target))
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        # mkstemp makes files private; a result is as readable as any other file its owner makes.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(target)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        # Whoever writes says neither which file it was nor what has become of it.
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"cannot write {path}: {reason}. What was there before is as it was; make room, or "
            "name another folder"
        ) from error


def _temporary(target: Path) -> str:
    """How the names of a file's temporary ones begin, which nobody must take for the file's own.

    Lightning takes whatever has ``hpc_ckpt_`` in its name for a checkpoint of a job of SLURM.
    """
    return f".{blake2b(target.name.encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()}."


def _sweep(target: Path) -> None:
    """Remove what processes that were killed have left of this file."""
    # As tempfile names them.
    leftover = re.compile(rf"{re.escape(_temporary(target))}[a-z0-9_]{{8}}")
    for path in target.parent.iterdir():
        if leftover.fullmatch(path.name):
            # Another process may remove it too, or it may be another user's.
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _LEFTOVER_AGE:
                    path.unlink()
