"""The logger of the command line, whose folder is a run's own."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["RunLogger"]


class RunLogger(CSVLogger):
    """Logs to ``lightning_logs/version_N``, with an N that no other run takes.

    Lightning's takes the next number when it is asked for it, and makes the folder later: runs that
    start together would write over each other's files.

    Args:
        save_dir: folder of ``lightning_logs``.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir)

    def _get_next_version(self) -> int:
        while True:
            version: int = super()._get_next_version()
            if getattr(rank_zero_only, "rank", 0) != 0:
                # The first process tells the others where the run's folder is.
                return version
            folder = Path(self.root_dir, f"version_{version}")
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
            except FileExistsError:
                continue
            return version
