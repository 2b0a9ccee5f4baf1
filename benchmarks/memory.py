"""The command ``python -m benchmarks.memory``: bytes of tensors in steps of the paper's size.

Counted on a CPU, and true of an accelerator with the same ``max_images``, where operations need
some memory of their own besides.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.arguments import positive
from benchmarks.cases import CASES, Case
from benchmarks.live_bytes import LiveBytes
from benchmarks.measure import be_quiet
from benchmarks.package_dc import PackageDC
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_step import ModuleStep
from dam_lightning import DC, pieces
from dam_lightning.flat_network import FlatNetwork
from dam_lightning.functional import DSA

__all__ = ["SETTINGS", "Setting", "main", "peak_bytes"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """Something whose memory has a limit.

    Attributes:
        name: what the table calls it.
        case: the sizes.
        make: from a case, a device and ``max_images``.
        steps: whose peak is counted.
        budgets: values of ``max_images``, the package's own on a CPU and elsewhere; one of them
            where the images of a step are fewer than both.
        limit: bytes that it should stay under.
    """

    name: str
    case: Case
    make: Callable[..., ModuleStep]
    steps: int
    budgets: Sequence[int]
    limit: int


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "MTT+DAM, CIFAR-10, ipc 10, 30 student steps",
            CASES["cifar10_ipc10"],
            partial(PackageMTT, dam=True, augmentation=DSA),
            1,
            (1024,),
            2 * 2**30,
        ),
        Setting(
            "DC+DAM, CIFAR-10, ipc 50",
            # More inner epochs take more time and the same memory.
            replace(CASES["cifar10_ipc50"], inner_epochs=1),
            partial(PackageDC, dam=True),
            # The inner training is part of the second.
            2,
            (256, 512),
            3 * 2**30,
        ),
    )
}
"""Every setting, by name."""


def peak_bytes(setting: Setting, max_images: int) -> int:
    """The most bytes of tensors at a time in the first steps of a setting.

    Images, masks, momentum, networks and the real images that are drawn from count, as far as the
    steps use them.
    """
    step = setting.make(setting.case, _CPU, max_images=max_images)
    live = LiveBytes()
    # As an accelerator has them: together, however small a CPU's caches are.
    with (
        live,
        patch.object(pieces, "_PIXELS_IN_CACHE", sys.maxsize),
        patch.object(DC, "groups_together", True),
        patch.object(FlatNetwork, "parts", lambda network, vector, compiled: [vector]),
    ):
        for _ in range(setting.steps):
            step.run()
    return live.peak


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Count the bytes of tensors in single steps on the CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--max-images",
        type=positive,
        nargs="+",
        default=None,
        help="budgets to count with; None: the package's own on a CPU and elsewhere",
    )
    parser.add_argument(
        "--batch-real", type=positive, default=Case.batch_real, help="real images of each group"
    )
    parser.add_argument(
        "--width", type=positive, default=Case.width, help="channels of the ConvNet"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Count, and print a Markdown table.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 where a setting is over its limit.
    """
    options = _parse(arguments)
    be_quiet()
    print("| setting | max_images | peak, MiB | limit, MiB |\n| --- | ---: | ---: | ---: |")
    status = 0
    for setting in SETTINGS.values():
        case = replace(setting.case, width=options.width, batch_real=options.batch_real)
        for max_images in options.max_images or setting.budgets:
            peak = peak_bytes(replace(setting, case=case), max_images)
            sizes = f"{peak / 2**20:.0f} | {setting.limit / 2**20:.0f}"
            print(f"| {setting.name} | {max_images} | {sizes} |", flush=True)
            status |= peak > setting.limit
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
