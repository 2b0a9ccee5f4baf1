"""Reading checkpoints: what is none, or is damaged, is named."""

from pickle import UnpicklingError
from typing import Any, Self

from lightning.fabric.plugins import CheckpointIO

from dam_lightning.files import written_beside

__all__ = ["CheckedCheckpointIO"]


class CheckedCheckpointIO(CheckpointIO):
    """Refuses files that are no checkpoints, in words.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: CheckpointIO) -> None:
        self._inner = inner

    @classmethod
    def around(cls, inner: CheckpointIO, *arguments: Any) -> Self:
        """Like the constructor, but takes the place of an earlier one, of another module."""
        innermost = inner._inner if isinstance(inner, CheckedCheckpointIO) else inner
        return cls(innermost, *arguments)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint, all of it or nothing.

        Lightning writes into the folder for temporary files, from where a file is copied if that is
        another file system, and half of it may be there when a process is killed.

        Raises:
            OSError: it cannot be written.
        """
        if "://" in str(path):
            self._inner.save_checkpoint(checkpoint, path, storage_options)
            return
        with written_beside(path) as beside:
            self._inner.save_checkpoint(checkpoint, beside, storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint.

        Raises:
            ValueError: the file is damaged, or is no checkpoint of Lightning's.
        """
        reason = "it holds something else"
        try:
            checkpoint = self._inner.load_checkpoint(path, map_location, weights_only)
            if isinstance(checkpoint, dict) and "state_dict" in checkpoint:
                return checkpoint
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except UnpicklingError:
            # PyTorch would advise to load whatever it is.
            reason = "it holds more than plain values, or is no file of PyTorch's"
        # torch.load raises almost anything of damaged and foreign files.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} is no checkpoint, or is damaged ({reason}). Give the last.ckpt of a run's "
            "folder; condensed.safetensors files are evaluated with model.condensed"
        )

    def remove_checkpoint(self, path: Any) -> None:
        """Remove it."""
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """Close what does the work."""
        self._inner.teardown()
