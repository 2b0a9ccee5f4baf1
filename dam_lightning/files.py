"""Where a run leaves its files, and how files are written so that none is ever half there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer

__all__ = ["check_writable", "is_rehearsal", "run_folder", "written_beside"]


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run: its first logger's, or ``default_root_dir``. All ranks must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which must leave no file and is no result."""
    return bool(getattr(trainer, "fast_dev_run", False))


def check_writable(folder: Path, option: str) -> None:
    """Make a folder where it is missing, and see whether files can be made in it.

    Args:
        folder: the folder.
        option: what gives another one.

    Raises:
        OSError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write into the folder {folder} ({error.strerror or error}). Make it writable, "
            f"or name another with {option}"
        ) from error


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that takes its place when the block succeeds.

    The folder is made where it is missing. Two processes that write the same file do not meet: each
    has a temporary file of its own, and the last to finish stays. After an error nothing is left.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        # mkstemp makes files private; a result is as readable as any other file its owner makes.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
