"""What is compared with what. A new method is a new task here, with contenders of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.cases import PUBLISHED_EPOCHS, Case
from benchmarks.contender import Contender
from benchmarks.floor import (
    Work,
    dc_iteration_work,
    dc_work,
    evaluation_work,
    expert_work,
    mtt_bytes,
    mtt_work,
    step_work,
)
from benchmarks.package_dc import PackageDC
from benchmarks.package_experts import PackageExperts
from benchmarks.package_mtt import PackageMTT
from benchmarks.package_side import PackageEvaluation, PackageStep
from benchmarks.reference_dc import ReferenceDC
from benchmarks.reference_experts import ReferenceExperts
from benchmarks.reference_mtt import ReferenceMTT
from benchmarks.reference_side import ReferenceEvaluation, ReferenceStep
from dam_lightning.functional import DSA
from dam_lightning.precision import has_fast_bfloat16

__all__ = ["OURS", "REFERENCE", "TASKS", "Entry", "Task"]

REFERENCE = "reference"
"""Name of the contender that the others are compared with."""

OURS = "ours"
"""The package as its users get it in a run that is long enough to be compiled."""


@dataclass(frozen=True)
class Entry:
    """A contender of a task.

    Attributes:
        make: builds it, with its data, on a device.
        tolerance: largest difference from the reference's outcome, as a share of that, in float32.
        variant: one of those that tell where the time of `OURS` comes from.
        where: whether it says something new of a case on a device.
        takes: bytes, where that may be more than there are.
    """

    make: Callable[[Case, torch.device], Contender]
    tolerance: float = 1e-4
    variant: bool = False
    where: Callable[[Case, torch.device], bool] = lambda case, device: True
    takes: Callable[[Case], float] | None = None


@dataclass(frozen=True)
class Task:
    """The same work by several contenders.

    Attributes:
        name: what the table calls it.
        work: the least that has to be done.
        entries: the contenders by name, `REFERENCE` first, where there is one.
        method: the paper's that it belongs to; empty where it is part of all.
        devices: types of those that it is timed on where nobody asks for it.
        once: it takes so long that its first run is timed, with whatever is compiled in it.
    """

    name: str
    work: Callable[[Case], Work]
    entries: Mapping[str, Entry]
    method: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    once: bool = False

    def is_default(self, case: Case, device: torch.device) -> bool:
        """Whether it is timed where nobody asks for it."""
        return device.type in self.devices and self.method in ("", *case.methods)

    def chosen(self, case: Case, device: torch.device, variants: bool) -> dict[str, Entry]:
        """The contenders for a case on a device."""
        return {
            name: entry
            for name, entry in self.entries.items()
            if entry.where(case, device) and (variants or not entry.variant)
        }


def _has_few_images(case: Case, device: torch.device) -> bool:
    """With more, a variant would take long and say the same."""
    return case.ipc == 1


def _step(name: str, dam: bool) -> Task:
    return Task(
        name,
        partial(step_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceStep, dam=dam)),
            OURS: Entry(partial(PackageStep, dam=dam, compile=True)),
            "ours, float32": Entry(
                partial(PackageStep, dam=dam, compile=True, precision="float32"),
                variant=True,
                where=lambda case, device: has_fast_bfloat16(device),
            ),
            "ours, float32, eager": Entry(
                partial(PackageStep, dam=dam, precision="float32"),
                variant=True,
                where=_has_few_images,
            ),
        },
        "DM",
    )


def _dc(name: str, dam: bool, iteration: bool) -> Task:
    # Second derivatives in float32 keep fewer digits, and differences grow with every step of a
    # network: in an iteration hundreds.
    tolerance = 0.2 if iteration else 1e-3
    package = partial(PackageDC, dam=dam, iteration=iteration)
    return Task(
        name,
        partial(dc_iteration_work if iteration else dc_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceDC, dam=dam, iteration=iteration)),
            OURS: Entry(partial(package, compile=True), tolerance),
            "ours, eager": Entry(package, tolerance, variant=True, where=_has_few_images),
        },
        "DC",
        ("cuda",) if iteration else ("cpu",),
    )


def _mtt(name: str, dam: bool) -> Task:
    # Gradients through many steps in float32 keep fewer digits.
    tolerance = 1e-3
    package = partial(PackageMTT, dam=dam)
    return Task(
        name,
        partial(mtt_work, dam=dam),
        {
            REFERENCE: Entry(partial(ReferenceMTT, dam=dam), takes=partial(mtt_bytes, dam=dam)),
            OURS: Entry(partial(package, compile=True), tolerance),
            "ours, eager": Entry(package, tolerance, variant=True, where=_has_few_images),
        },
        "MTT",
    )


def _experts(name: str) -> Task:
    return Task(
        name,
        expert_work,
        {
            REFERENCE: Entry(ReferenceExperts),
            OURS: Entry(partial(PackageExperts, compile=True)),
            "ours, eager": Entry(PackageExperts, variant=True, where=_has_few_images),
        },
        "MTT",
    )


def _evaluation(name: str, augmentation: str | None) -> Task:
    # Differences grow with every step of a network.
    tolerance = 5e-3
    package = partial(PackageEvaluation, augmentation=augmentation)
    return Task(
        name,
        evaluation_work,
        {
            REFERENCE: Entry(partial(ReferenceEvaluation, augmentation=augmentation)),
            OURS: Entry(partial(package, compile=True), tolerance),
            "ours, float32": Entry(
                partial(package, compile=True, precision="float32"),
                tolerance,
                variant=True,
                where=lambda case, device: has_fast_bfloat16(device),
            ),
            "ours, float32, eager": Entry(
                partial(package, precision="float32"),
                tolerance,
                variant=True,
                where=_has_few_images,
            ),
        },
    )


def _whole_evaluation(name: str) -> Task:
    """Of the published length, which plain loops would take minutes or hours for."""

    def whole(case: Case) -> Case:
        return replace(case, epochs=PUBLISHED_EPOCHS)

    def make(case: Case, device: torch.device) -> Contender:
        return PackageEvaluation(whole(case), device, DSA, compile=True)

    return Task(
        name,
        lambda case: evaluation_work(whole(case)),
        {OURS: Entry(make)},
        devices=("cuda",),
        once=True,
    )


TASKS = {
    task.name: task
    for task in (
        _step("DM step", dam=False),
        _step("DM+DAM step", dam=True),
        _dc("DC step", dam=False, iteration=False),
        _dc("DC+DAM step", dam=True, iteration=False),
        _dc("DC iteration", dam=False, iteration=True),
        _dc("DC+DAM iteration", dam=True, iteration=True),
        _mtt("MTT step", dam=False),
        _mtt("MTT+DAM step", dam=True),
        _experts("experts"),
        _evaluation("evaluation", DSA),
        # The reference augments image by image; without augmentation the networks stand alone.
        _evaluation("evaluation without DSA", None),
        _whole_evaluation("whole evaluation"),
    )
}
"""Every task, by name."""
