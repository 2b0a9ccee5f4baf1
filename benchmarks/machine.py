"""The machine: what it is, and how fast it computes and copies right now."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import lightning
import torch

import dam_lightning

__all__ = ["Precision", "Rates", "describe", "measure_rates", "synchronise"]

Precision = Literal["float32", "bfloat16"]

_TRIALS = 5
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


class Rates(NamedTuple):
    """What a device reaches at its best.

    Attributes:
        operations: floating-point operations a second, by precision.
        bandwidth: bytes a second, read and written both counted.
    """

    operations: dict[Precision, float]
    bandwidth: float

    def best(self, other: "Rates") -> "Rates":
        """The higher of each: what slows a shared machine must not lower a floor."""
        operations: dict[Precision, float] = {
            precision: max(rate, other.operations[precision])
            for precision, rate in self.operations.items()
        }
        return Rates(operations, max(self.bandwidth, other.bandwidth))


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rates(device: torch.device) -> Rates:
    """Best of a few large matrix products in each precision, and of a few large copies."""
    size = 2048 if device.type == "cpu" else 8192
    operations: dict[Precision, float] = {}
    dtypes: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        # Convolutions use TF32 where this is allowed, which is PyTorch's default for them.
        torch.set_float32_matmul_precision("high")
    for precision, dtype in dtypes.items():
        matrix = torch.randn(size, size, device=device).to(dtype)
        product = torch.empty_like(matrix)

        def multiply(matrix: torch.Tensor = matrix, product: torch.Tensor = product) -> None:
            torch.mm(matrix, matrix, out=product)

        operations[precision] = 2 * size**3 / _best(multiply, device)
    torch.set_float32_matmul_precision(before)
    # Far more than any cache holds.
    source = torch.ones(2**28 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Rates(operations, 2 * source.nbytes / _best(lambda: target.copy_(source), device))


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs, after one to warm up."""
    seconds = []
    for _ in range(_TRIALS + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


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
