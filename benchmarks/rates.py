"""How fast a device computes and copies at its best: what the floors are taken at."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import synchronise

__all__ = [
    "CONVOLUTION",
    "PRODUCT",
    "Precision",
    "Rates",
    "measure_rates",
    "multiplying",
    "precision_on",
]

Precision = Literal["float32", "tf32", "bfloat16"]
"""What is multiplied: of float32 numbers all bits, or the 10 of TF32."""

PRODUCT, CONVOLUTION = "matrix product", "3x3 convolution"

_CHANNELS = 128
_SIZES = (64, 32, 16, 8)
"""Of the images that the inner convolutions of the ConvNet see."""
_TRIALS = 5


class Rates(NamedTuple):
    """What a device reaches at its best.

    Attributes:
        operations: floating-point operations a second, by precision and by what reached it.
        bandwidth: bytes a second, read and written both counted.
    """

    operations: dict[Precision, dict[str, float]]
    bandwidth: float

    def of(self, precision: Precision) -> float:
        """Operations a second of whatever is fastest."""
        return max(self.operations[precision].values())

    def best(self, other: "Rates") -> "Rates":
        """The higher of each: what slows a shared machine must not lower a floor."""
        operations = {
            precision: {
                name: max(rate, other.operations[precision][name]) for name, rate in rates.items()
            }
            for precision, rates in self.operations.items()
        }
        return Rates(operations, max(self.bandwidth, other.bandwidth))


def precision_on(device: torch.device, forward: Literal["float32", "bfloat16"]) -> Precision:
    """What networks multiply in on a device.

    NVIDIA's convolutions of float32 numbers use TF32 where that is allowed, which is PyTorch's
    default.
    """
    if forward == "float32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "tf32"
    return forward


@contextmanager
def multiplying(tf32: bool, search: bool = False) -> Iterator[None]:
    """Within it, convolutions and matrix products of float32 numbers do as told on CUDA.

    Args:
        tf32: in TF32, or in all bits.
        search: convolutions by the algorithm that is fastest when tried.
    """
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark
    # Not cudnn.flags, which sets the newer options of the same kind as well, and PyTorch refuses to
    # compile where both were used.
    cudnn.allow_tf32, cudnn.benchmark = tf32, search
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_float32_matmul_precision(products)


def measure_rates(device: torch.device) -> Rates:
    """Best of large matrix products and of the ConvNet's inner convolutions, and of large copies.

    Which of the two is faster depends on the libraries that a device's PyTorch calls.
    """
    precisions: dict[Precision, torch.dtype] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    if device.type == "cuda":
        precisions["tf32"] = torch.float32
    operations: dict[Precision, dict[str, float]] = {}
    for precision, dtype in precisions.items():
        with multiplying(tf32=precision == "tf32", search=True):
            operations[precision] = {
                PRODUCT: _product(device, dtype),
                CONVOLUTION: max(_convolutions(device, dtype)),
            }
    # Far more than any cache holds.
    source = torch.ones(2**28 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Rates(operations, 2 * source.nbytes / _best(lambda: target.copy_(source), device))


def _product(device: torch.device, dtype: torch.dtype) -> float:
    size = 2048 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(matrix)
    return 2 * size**3 / _best(lambda: torch.mm(matrix, matrix, out=product), device)


@torch.no_grad()
def _convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[float]:
    """Operations a second of each size of images, in both orders in memory."""
    # On a CPU as many as its caches hold.
    pixels = 32 * 32**2 if device.type == "cpu" else 512 * 32**2
    for size in _SIZES:
        count = pixels // size**2
        work = 2 * count * size**2 * _CHANNELS**2 * 9
        for order in (torch.contiguous_format, torch.channels_last):
            images, weight = (
                torch.randn(*shape, device=device).to(dtype, memory_format=order)
                for shape in ((count, _CHANNELS, size, size), (_CHANNELS, _CHANNELS, 3, 3))
            )

            def convolve(images: Tensor = images, weight: Tensor = weight) -> Tensor:
                return F.conv2d(images, weight, padding=1)

            yield work / _best(convolve, device)


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
