"""In which precision networks' forward passes are, and which a device computes fast in."""

from typing import Literal

import torch

__all__ = ["Precision", "fast_precision", "forward_passes", "has_fast_bfloat16"]

Precision = Literal["float32", "bfloat16"]
"""Of the forward passes of networks."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16, without which it is slow.

    NVIDIA GPUs have them from compute capability 8.0, processors with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def fast_precision(device: torch.device) -> Precision:
    """bfloat16 where the device is fast at it, else float32."""
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def forward_passes(device: torch.device, precision: Precision) -> torch.autocast:
    """A context for forward passes on a device, in a precision whatever is set outside.

    To be entered for every step, because casts of parameters are kept until it is left.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
