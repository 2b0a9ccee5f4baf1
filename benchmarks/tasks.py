"""What is compared with what. A new method is a new task here, with contenders of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.cases import Case
from benchmarks.contender import Contender
from benchmarks.floor import Work, dc_work, evaluation_work, expert_work, mtt_work, step_work
from benchmarks.machine import Precision
from benchmarks.package_dc import PackageDC
from benchmarks.package_experts import PackageExperts
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_side import PackageEvaluation, PackageStep
from benchmarks.reference_dc import ReferenceDC
from benchmarks.reference_experts import ReferenceExperts
from benchmarks.reference_mtt import ReferenceMTT
from benchmarks.reference_side import ReferenceEvaluation, ReferenceStep
from dam_lightning.functional import DSA

__all__ = ["REFERENCE", "TASKS", "Entry", "Task"]

REFERENCE = "reference"
"""Name of the contender that the others are compared with."""


@dataclass(frozen=True)
class Entry:
    """A contender of a task.

    Attributes:
        make: builds it, with its data, on a device.
        tolerance: largest difference from the reference's outcome, as a share of that.
        precision: whose rate its floor is taken at.
    """

    make: Callable[[Case, torch.device], Contender]
    tolerance: float = 1e-4
    precision: Precision = "float32"


@dataclass(frozen=True)
class Task:
    """The same work by several contenders.

    Attributes:
        name: what the table calls it.
        work: the least that has to be done.
        entries: the contenders by name, `REFERENCE` among them.
    """

    name: str
    work: Callable[[Case], Work]
    entries: Mapping[str, Entry]


def _step(name: str, dam: bool) -> Task:
    return Task(
        name,
        partial(step_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceStep, dam=dam)),
            "ours": Entry(partial(PackageStep, dam=dam)),
            # bfloat16 keeps 8 bits: 0.4 % of a single value, less of a sum of many.
            "ours, bf16-mixed": Entry(
                partial(PackageStep, dam=dam, precision="bf16-mixed"), 1e-2, "bfloat16"
            ),
        },
    )


def _dc(name: str, dam: bool) -> Task:
    return Task(
        name,
        partial(dc_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceDC, dam=dam)),
            "ours": Entry(partial(PackageDC, dam=dam)),
        },
    )


def _mtt(name: str, dam: bool) -> Task:
    # Gradients through many steps in float32 keep fewer digits.
    tolerance = 1e-3
    return Task(
        name,
        partial(mtt_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceMTT, dam=dam)),
            "ours": Entry(partial(PackageMTT, dam=dam), tolerance),
            "ours, full unroll": Entry(partial(PackageMTT, dam=dam, adjoint=False), tolerance),
        },
    )


def _experts(name: str) -> Task:
    return Task(
        name,
        expert_work,
        {
            REFERENCE: Entry(ReferenceExperts),
            "ours": Entry(PackageExperts),
            "ours, compiled": Entry(partial(PackageExperts, compiled=True)),
            "ours, side by side": Entry(partial(PackageExperts, together=True)),
            "ours, side by side, compiled": Entry(
                partial(PackageExperts, together=True, compiled=True)
            ),
        },
    )


def _evaluation(name: str, augmentation: str | None) -> Task:
    return Task(
        name,
        evaluation_work,
        {
            REFERENCE: Entry(partial(ReferenceEvaluation, augmentation=augmentation)),
            "ours": Entry(partial(PackageEvaluation, augmentation=augmentation)),
        },
    )


TASKS = {
    task.name: task
    for task in (
        _step("DM step", dam=False),
        _step("DM+DAM step", dam=True),
        _dc("DC step", dam=False),
        _dc("DC+DAM step", dam=True),
        _mtt("MTT step", dam=False),
        _mtt("MTT+DAM step", dam=True),
        _experts("experts"),
        _evaluation("evaluation", DSA),
        # The reference augments image by image; without augmentation the networks stand alone.
        _evaluation("evaluation, no DSA", None),
    )
}
"""Every task, by name."""
