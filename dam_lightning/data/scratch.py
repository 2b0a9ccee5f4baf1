"""Folders for work in progress that do not outlive the process that made them, and locks."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info

from dam_lightning.files import check_writable

__all__ = ["locked", "made_folder", "one_at_a_time", "scratch_folder"]


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, which is removed at the end with all that is still in it.

    What killed processes have left is removed first; what other processes are using stays.

    Args:
        parent: the folder to make it in.
        prefix: of its name; no other files' names begin so.
    """
    for left in parent.glob(f"{prefix}*"):
        # Another user's, or one that its process removes just now.
        with suppress(Timeout, OSError), _lock(left).acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = _lock(folder)
        with suppress(FileNotFoundError):
            lock.acquire()
            if folder.is_dir():
                break
            # Another process has taken it for something left, before it was locked.
            lock.release()
    try:
        inner = folder / "content"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for the same folder."""
    with locked(folder / ".download.lock", f"which downloads into {folder}"):
        yield


@contextmanager
def locked(path: Path, others: str) -> Iterator[None]:
    """Wait until no other process is inside such a block for the same path.

    A process that had to wait must look anew at what the others have left.

    Args:
        path: of the lock, a file that is gone afterwards; its folder is made.
        others: what a process inside is doing, for a line that says that it is waited for.
    """
    lock, told = FileLock(path), False
    while True:
        # The one inside may leave by taking the lock away, and its folder with it.
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            try:
                lock.acquire(timeout=0 if not told else -1)
            except Timeout:
                rank_zero_info(f"Waiting for another process, {others}")
                told = True
                continue
            if path.exists():
                break
            lock.release()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def made_folder(folder: Path, option: str = "root") -> Iterator[None]:
    """Make a folder and those above it; after an error those that are empty are removed again.

    Args:
        folder: the folder.
        option: what gives another one, for the error.

    Raises:
        OSError: files cannot be made there.
    """
    check_writable(folder, option)
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            # Not those that others have put something into.
            with suppress(OSError):
                path.rmdir()
        raise
