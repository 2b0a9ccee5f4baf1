"""Looking at small tensors, and handing them over, without making the host wait for a device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["host_values", "to_device"]


def host_values(tensor: Tensor) -> np.ndarray[Any, Any] | None:
    """The values of a tensor on the host; None of one on a device, which the host would wait for.

    None also inside ``torch.func`` transforms and while compiling, where no one can look.
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        return tensor.detach().numpy()
    except RuntimeError:
        return None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without making the host wait for the copy."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        # Only copies from pinned memory run while the host goes on.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, non_blocking=True)
