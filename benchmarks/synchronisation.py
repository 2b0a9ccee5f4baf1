"""Whether a step makes the host wait for the device, which empties the device's queue of work."""

import traceback
from pathlib import Path

import torch

from benchmarks.contender import Contender

__all__ = ["waiting"]

_ROOT = Path(__file__).parents[1]


def waiting(contender: Contender, device: torch.device) -> str | None:
    """Run a contender that is warm, and see where it waits for the device.

    Args:
        contender: that has run before; whatever it waits for once in its life is done.
        device: where it runs.

    Returns:
        The first place and PyTorch's reason; empty: it does not wait. None: it may, or the device
        is a CPU, which there is no waiting for.
    """
    if device.type != "cuda" or contender.waits:
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        contender.run()
    except RuntimeError as error:
        return _place(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _place(error: RuntimeError) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_ROOT)
    ]
    where = (
        f"{Path(frames[-1].filename).relative_to(_ROOT)}:{frames[-1].lineno}: " if frames else ""
    )
    return where + str(error).partition("\n")[0]
