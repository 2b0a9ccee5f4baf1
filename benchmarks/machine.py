"""The machine: what it is, and waiting for it."""

import os
import platform
from pathlib import Path

import lightning
import torch

import dam_lightning

__all__ = ["available_memory", "describe", "synchronise"]

_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory(device: torch.device) -> int | None:
    """Bytes that a device has left; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Hardware, versions and settings that timings depend on.

    The C library gives memory back to the system between steps unless the two variables named
    ``MALLOC_...`` say otherwise, and on Linux without a GPU that can cost as much as the step
    itself. They are read when a process starts, so both sides of a comparison have the same.
    """
    return {
        "device": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "dam_lightning": dam_lightning.__version__,
        **{name: os.environ.get(name) for name in _MALLOC},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
