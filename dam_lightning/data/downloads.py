"""Fetching the files of datasets: gone on with after an interruption, compared with a checksum."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Remote", "downloaded"]

_CHUNK = 2**20
_TIMEOUT = 60
"""Seconds without any answer after which a connection is given up."""


class Remote(NamedTuple):
    """A file at its official address."""

    url: str
    size: int
    """Bytes."""
    md5: str
    """Hex digest. It tells damaged files from intact ones; it is no protection from a forger."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@contextmanager
def downloaded(remote: Remote, folder: Path) -> Iterator[Path]:
    """An intact copy of a file, fetched where it is not there yet.

    A file of its name in the folder is used, and left, if it is the original. Otherwise the file
    is fetched under the hidden name ``.NAME.part`` and removed at the end, unless the block moved
    it. What an interrupted download has left there is gone on with. Whatever is not the original
    is discarded.

    Only one process at a time may fetch a file into a folder.

    Args:
        remote: the file.
        folder: where it is, or is fetched to.

    Raises:
        OSError: it cannot be fetched, what is sent is not the original, or the disk is full.
    """
    own = folder / remote.name
    if _is_original(own, remote):
        yield own
        return
    part = folder / f".{remote.name}.part"
    _fetch(remote, part)
    yield part
    part.unlink(missing_ok=True)


def _fetch(remote: Remote, part: Path) -> None:
    """Make ``part`` the original."""
    while True:
        resumed = part.exists()
        _complete(remote, part)
        if _is_original(part, remote):
            return
        part.unlink()
        if not resumed:
            raise OSError(
                f"what {remote.url} sends is not the original, which has {remote.size} bytes and "
                f"the MD5 checksum {remote.md5}: get the file elsewhere and put it into "
                f"{part.parent}"
            )
        # What was left may have been of another file, or damaged. Once more from the beginning.


def _complete(remote: Remote, part: Path) -> None:
    """Fetch what is missing in ``part``, for as long as anything comes."""
    if _size(part) > remote.size:
        part.unlink()
    missing = remote.size - _size(part)
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise OSError(
            f"no room for {remote.name} in {part.parent}: {missing / 2**20:.0f} MiB are to come, "
            f"{free / 2**20:.0f} MiB are free. Free some, or name another folder with root"
        )
    with _progress() as progress:
        task = progress.add_task(remote.name, total=remote.size)
        while (have := _size(part)) < remote.size:
            reason = "the connection ended"
            progress.update(task, completed=have)
            try:
                _append(remote, part, have, lambda count: progress.advance(task, count))
            except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            if _size(part) <= have:
                raise OSError(
                    f"{remote.url} cannot be downloaded ({reason}): {_size(part)} of {remote.size} "
                    "bytes are there. Run it again, which goes on from there, or get the file "
                    f"elsewhere and put it into {part.parent}"
                )


def _append(remote: Remote, part: Path, have: int, advance: Callable[[int], None]) -> None:
    """Fetch the rest of a file, from byte ``have`` on, over one connection."""
    headers = {"User-Agent": "dam_lightning"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(remote.url, headers=headers), timeout=_TIMEOUT) as answer:
        # A server that knows nothing of ranges sends all of it.
        goes_on = answer.status == 206
        with part.open("ab" if goes_on else "wb") as file:
            # Not without end, where more is sent than there should be.
            while file.tell() <= remote.size and (chunk := answer.read(_CHUNK)):
                file.write(chunk)
                advance(len(chunk))


def _is_original(file: Path, remote: Remote) -> bool:
    if _size(file) != remote.size:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest() == remote.md5


def _size(file: Path) -> int:
    """Bytes of a file; none where there is no such file."""
    return file.stat().st_size if file.is_file() else 0


def _progress() -> Progress:
    """A bar on the standard error; where that is no terminal, a line when all is done."""
    return Progress(
        TextColumn("Downloading {task.description}"),
        DownloadColumn(binary_units=True),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
