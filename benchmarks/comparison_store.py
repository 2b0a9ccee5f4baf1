"""Results on disk, one file for each run, in a folder that several processes may work on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.comparison_settings import Settings
from dam_lightning.files import written_beside

__all__ = ["Store"]


class Store:
    """Results by the key of their settings.

    Args:
        folder: of the files; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def read(self, settings: Settings) -> dict[str, Any] | None:
        """A result, or None where the run was not made yet.

        Raises:
            ValueError: its file is damaged.
        """
        path = self._path(settings)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} is no result, or is damaged ({error}): delete it, and the run is made "
                "again"
            ) from error
        return found

    def write(self, settings: Settings, result: dict[str, Any]) -> None:
        """Keep a result, with its settings.

        Raises:
            OSError: it cannot be written.
        """
        with written_beside(self._path(settings)) as beside:
            content = {"settings": asdict(settings), **result}
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def claimed(self, settings: Settings) -> Iterator[bool]:
        """Whether this process, and no other, may make the run within the block.

        It may not where another makes it at this moment, nor where it was made. Whatever ends a
        process ends its claim.
        """
        path = self._path(settings).with_suffix(".lock")
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            # It may have been made while this process came here.
            yield self.read(settings) is None
            if self.read(settings) is not None:
                # Who had the file open already will see the result. Without one it stays, since
                # those who hold a removed file and a new one of its name would not meet.
                path.unlink(missing_ok=True)
        finally:
            lock.release()

    def _path(self, settings: Settings) -> Path:
        return self.folder / f"{settings.key}.json"
