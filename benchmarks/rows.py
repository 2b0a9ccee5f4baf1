"""Rows of the table, made of the plain values of a document."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Case
from benchmarks.floor import Floor, Work
from benchmarks.rates import Rates
from benchmarks.targets import Target, target_of
from benchmarks.tasks import REFERENCE

__all__ = ["Row", "rows_of", "timed_tasks"]

_STEADY = 1.5
"""Longest over shortest turn, above which one side was disturbed."""


@dataclass(frozen=True)
class Row:
    """One contender of the package, and the reference where there is one.

    Attributes:
        case: the sizes.
        task: what was done.
        contender: by whom.
        precision: whose rate the floor is taken at.
        first: seconds of the first run.
        seconds: of its timed turns.
        reference_seconds: of the reference's; empty where there is none.
        memory: peak in bytes; None where unknown.
        reference_memory: of the reference.
        floor: of the task in this precision.
        target: what was asked for, or None.
        notes: what is to be known of it.
    """

    case: Case
    task: str
    contender: str
    precision: str
    first: float
    seconds: Sequence[float]
    reference_seconds: Sequence[float]
    memory: int | None
    reference_memory: int | None
    floor: Floor
    target: Target | None
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """For lists below the table."""
        return f"{self.case.name} {self.task} ({self.contender})"

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float | None:
        """How many times as long the reference takes."""
        if not self.reference_seconds:
            return None
        return statistics.median(self.reference_seconds) / self.median

    @property
    def multiple(self) -> float:
        """How many times the floor it takes."""
        return self.median / self.floor.seconds

    @property
    def is_met(self) -> bool | None:
        """Whether the target is; None without one."""
        return None if self.target is None else self.target.is_met(self.median, self.ratio)

    @property
    def unsteady(self) -> bool:
        """Whether turns of one side differ so much that the ratio may be chance."""
        return any(
            max(turns) > _STEADY * min(turns)
            for turns in (self.seconds, self.reference_seconds)
            if turns
        )


def timed_tasks(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tasks of a document that were timed, not only checked, and without an error."""
    return [found for found in document["tasks"].values() if "contenders" in found]


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """One for each contender but the reference, in the document's order."""
    if document["rates"] is None:
        return []
    rates = Rates(**document["rates"])
    rows = []
    for found in timed_tasks(document):
        case = Case(**found["sizes"])
        reference = found["contenders"].get(REFERENCE, {"seconds": [], "memory": None})
        for name, timed in found["contenders"].items():
            if name == REFERENCE:
                continue
            precision = timed["precision"]
            target = target_of(
                document["settings"]["device"], case.name, case.ipc, found["task"], name, precision
            )
            rows.append(
                Row(
                    case,
                    found["task"],
                    name,
                    precision,
                    timed["first"],
                    timed["seconds"],
                    reference["seconds"],
                    timed["memory"],
                    reference["memory"],
                    Work(**found["work"]).floor(rates, precision),
                    target,
                    timed["notes"],
                )
            )
    return rows
