"""How the time of a step grows with each of the sizes, the others being fixed."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.cases import Case
from benchmarks.contender import Contender
from benchmarks.floor import Work
from benchmarks.measure import measure
from benchmarks.package_dc import PackageDC
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_side import PackageStep
from benchmarks.tasks import OURS, Entry, Task

__all__ = ["METHODS", "VARIABLES", "Fit", "Variable", "base_case", "fit", "measure_scaling"]

_LINEAR, _STEEP = 1.1, 1.3
"""Exponents above which growth counts as worse than linear: over all values, and between two of
them, where the limit of a cache or of the memory may lie. What is less is noise."""

_TOLD = ("ipc", "num_classes", "num_domains", "image_size", "depth", "width", "batch_real")
"""Sizes that the table names."""

METHODS: dict[str, Callable[..., Contender]] = {
    "DM+DAM": PackageStep,
    "DC+DAM": PackageDC,
    "MTT+DAM": PackageMTT,
}
"""What is timed, with DAM and without inner training."""


@dataclass(frozen=True)
class Variable:
    """A size that is varied.

    Attributes:
        name: what the table calls it.
        field: of a `Case`.
        values: of the field.
        power: of the value that the work is linear in.
    """

    name: str
    field: str
    values: Sequence[int]
    power: int = 1


VARIABLES = (
    Variable("images per class", "ipc", (1, 10, 50)),
    Variable("classes", "num_classes", (10, 100, 345)),
    Variable("pseudo-domains", "num_domains", (1, 2, 4, 8)),
    # Linear in the number of pixels.
    Variable("image size", "image_size", (32, 64, 128), power=2),
)


class Fit(NamedTuple):
    """Growth with a variable, or for the image size with its pixels.

    Attributes:
        exponent: by least squares, of the logarithms.
        steepest: largest exponent between two neighbouring values.
    """

    exponent: float
    steepest: float

    @property
    def is_worse_than_linear(self) -> bool:
        """Whether either exponent is above 1, by more than can be by chance."""
        return self.exponent > _LINEAR or self.steepest > _STEEP


def base_case(device: torch.device) -> Case:
    """The sizes that are not varied: CIFAR-10's, but smaller on a CPU."""
    case = Case("scaling", 32, 10, 3, 1, train_images=50_000, test_images=10_000, student_steps=5)
    return replace(case, width=32, batch_real=32) if device.type == "cpu" else case


def measure_scaling(
    method: str,
    variable: Variable,
    base: Case,
    device: torch.device,
    repeats: int,
    compile: bool,
) -> dict[str, Any]:
    """Time a method at all values of a variable.

    Args:
        method: of `METHODS`.
        variable: that is varied.
        base: sizes that are not.
        device: where to run.
        repeats: timed turns of each.
        compile: as of `Condenser`.

    Returns:
        In plain values the method, the variable, what it was measured with, and the median seconds
        at each value.
    """
    seconds = []
    for value in variable.values:
        sizes: dict[str, Any] = {variable.field: value}
        case = replace(base, **sizes)
        make = partial(METHODS[method], dam=True, compile=compile)
        # No floor is asked for.
        task = Task("scaling", lambda case: Work(0, 0), {OURS: Entry(make)})
        timed = measure(task, case, device, repeats).contenders[OURS]
        seconds.append(statistics.median(timed.seconds))
    return {
        "method": method,
        **asdict(variable),
        "seconds": seconds,
        "compiled": compile,
        "sizes": {name: getattr(base, name) for name in _TOLD},
    }


def fit(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Exponents of seconds in values, two or more of each."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    variance = sum((a - mean_x) ** 2 for a in x)
    slopes = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1)]
    return Fit(covariance / variance, max(slopes))
