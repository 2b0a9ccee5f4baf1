"""Rows of results, as a Markdown table and as JSON."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Case
from benchmarks.floor import Floor
from benchmarks.machine import Precision, Rates
from benchmarks.trainer_overhead import TrainerOverhead

__all__ = ["Row", "header", "table"]


_STEADY = 1.5
"""Longest over shortest run, above which one side was disturbed."""


@dataclass(frozen=True)
class Row:
    """One contender of the package against the reference.

    Attributes:
        case: the sizes.
        task: what was done.
        contender: by whom.
        precision: whose rate the floor is taken at.
        seconds: of its timed runs.
        reference_seconds: of the reference's.
        memory: peak in bytes; None where unknown.
        reference_memory: of the reference.
        floor: of the task in this precision.
    """

    case: Case
    task: str
    contender: str
    precision: Precision
    seconds: Sequence[float]
    reference_seconds: Sequence[float]
    memory: int | None
    reference_memory: int | None
    floor: Floor

    @property
    def ratio(self) -> float:
        """How many times as long the reference takes."""
        return statistics.median(self.reference_seconds) / statistics.median(self.seconds)

    @property
    def multiple(self) -> float:
        """How many times the floor it takes."""
        return statistics.median(self.seconds) / self.floor.seconds

    @property
    def unsteady(self) -> bool:
        """Whether runs of one side differ so much that the ratio may be chance."""
        return any(
            max(seconds) > _STEADY * min(seconds)
            for seconds in (self.seconds, self.reference_seconds)
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, in plain values: seconds and bytes."""
        return {
            "case": self.case.name,
            "task": self.task,
            "contender": self.contender,
            "precision": self.precision,
            "seconds": _summary(self.seconds),
            "reference_seconds": _summary(self.reference_seconds),
            "ratio": self.ratio,
            "unsteady": self.unsteady,
            "peak_memory": self.memory,
            "reference_peak_memory": self.reference_memory,
            "floor": {**self.floor._asdict(), "seconds": self.floor.seconds},
            "multiple_of_floor": self.multiple,
        }


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": list(seconds),
    }


_COLUMNS = (
    "case",
    "task",
    "contender",
    "ours, s: median (min-max)",
    "reference, s: median (min-max)",
    "ratio",
    "ours, peak MiB",
    "reference, peak MiB",
    "floor, s",
    "x floor",
)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [_line(_COLUMNS), _line(["---"] * 3 + ["---:"] * (len(_COLUMNS) - 3))]
    lines += [_line(list(_cells(row))) for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> Iterator[str]:
    yield from (row.case.name, row.task, row.contender)
    yield from (_seconds(row.seconds), _seconds(row.reference_seconds), f"{row.ratio:.2f}")
    yield from (_mebibytes(row.memory), _mebibytes(row.reference_memory))
    yield from (f"{row.floor.seconds:.3g}", f"{row.multiple:.1f}")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g}-{max(seconds):.3g})"


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.0f}"


def header(machine: dict[str, str | int | None], rates: Rates, trainer: TrainerOverhead) -> str:
    """What the table was measured on, in a few lines."""
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "torch", "lightning", "dam_lightning")
    )
    malloc = ", ".join(
        f"{name}={value or 'unset'}"
        for name, value in machine.items()
        if name.startswith("MALLOC_")
    )
    operations = ", ".join(
        f"{precision} {rate / 1e9:.0f} GFLOP/s" for precision, rate in rates.operations.items()
    )
    return "\n".join(
        [
            f"- machine: {machine['device']}, {machine['cores']} cores, {machine['threads']} "
            f"threads; {machine['system']}",
            f"- versions: {versions}",
            f"- allocator: {malloc}",
            f"- measured rates: {operations}, copy {rates.bandwidth / 1e9:.1f} GB/s",
            f"- Trainer: {1000 * (trainer.fit - trainer.bare):.2f} ms more than a bare step "
            f"({1000 * trainer.fit:.2f} against {1000 * trainer.bare:.2f}, width 4)",
        ]
    )
