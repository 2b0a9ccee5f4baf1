"""Results to be read: Markdown from the document that a run leaves.

``python -m benchmarks.report FILE...`` prints that of one ``results.json``, or of several that were
measured on the same machine.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import figures
from benchmarks.profiling import KINDS
from benchmarks.rates import Rates
from benchmarks.rows import Row, rows_of, timed_tasks
from benchmarks.scaling import fit

__all__ = ["main", "markdown", "merged"]

_NONE = "-"


def markdown(document: Mapping[str, Any]) -> str:
    """All there is of a document, as far as it was measured."""
    rows = rows_of(document)
    sections = {
        "Timings": _timings(document, rows),
        "Figures": [f"- {figure}." for figure in figures(document, rows)],
        "Where the time goes": _profiles(document),
        "Scaling": _scaling(document),
        "Checks": _checks(document),
        "Errors": [
            f"- {found['case']} {found['task']}: {found['error']}"
            for found in _of(document, "error")
        ],
    }
    text = _header(document)
    for title, lines in sections.items():
        text += ["", f"## {title}", "", *lines] if lines else []
    return "\n".join(text) + "\n"


def _of(document: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Tasks that have a part."""
    return [found for found in document["tasks"].values() if part in found]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """A table whose first columns are texts, the others numbers; nothing without rows."""
    if not rows:
        return []
    ruler = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (columns, ruler, *rows)]


def _header(document: Mapping[str, Any]) -> list[str]:
    machine = document["machine"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "torch", "lightning", "dam_lightning")
    )
    malloc = ", ".join(
        f"{name}={value or 'unset'}"
        for name, value in machine.items()
        if name.startswith("MALLOC_")
    )
    lines = [
        f"`{document['command']}`\n",
        f"- machine: {machine['device']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"{machine['system']}",
        f"- versions: {versions}",
        f"- allocator: {malloc}",
    ]
    if document["rates"] is not None:
        lines.append(f"- measured rates: {_rates(Rates(**document['rates']))}")
    return lines


def _rates(rates: Rates) -> str:
    parts = []
    for precision, found in rates.operations.items():
        fastest = max(found, key=lambda name: found[name])
        others = ", ".join(
            f"{name} {rate / 1e9:,.0f}" for name, rate in found.items() if name != fastest
        )
        parts.append(f"{precision} {found[fastest] / 1e9:,.0f} GFLOP/s ({fastest}; {others})")
    return f"{'; '.join(parts)}; copy {rates.bandwidth / 1e9:,.1f} GB/s"


_COLUMNS = (
    "case",
    "task",
    "contender",
    "precision",
    "ours, s: median (min-max)",
    "reference, s: median (min-max)",
    "ratio",
    "first run, s",
    "ours, peak MiB",
    "reference, peak MiB",
    "floor, s",
    "x floor",
    "target",
)


def _timings(document: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    lines = _table(_COLUMNS, [list(_cells(row)) for row in rows], texts=4)
    below = [
        *(f"{row.name}: {note}" for row in rows for note in row.notes),
        *(
            f"{found['case']} {found['task']}, {name}, was left out: {why}"
            for found in timed_tasks(document)
            for name, why in found["left_out"].items()
        ),
    ]
    unsteady = [row.name for row in rows if row.unsteady]
    if unsteady:
        below.append(f"Unsteady, not to be quoted: {'; '.join(unsteady)}")
    return lines + ([""] + [f"- {line}." for line in below] if below else [])


def _cells(row: Row) -> Iterator[str]:
    yield from (row.case.name, row.task, row.contender, row.precision)
    yield from (_range(row.seconds), _range(row.reference_seconds))
    yield _NONE if row.ratio is None else f"{row.ratio:.2f}"
    yield f"{row.first:.3g}"
    yield from (_mebibytes(row.memory), _mebibytes(row.reference_memory))
    yield from (f"{row.floor.seconds:.3g}", f"{row.multiple:.1f}")
    yield _NONE if row.target is None else f"{row.target}: {'met' if row.is_met else 'missed'}"


def _range(seconds: Sequence[float]) -> str:
    if not seconds:
        return _NONE
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g}-{max(seconds):.3g})"


def _mebibytes(size: int | None) -> str:
    return _NONE if size is None else f"{size / 2**20:.0f}"


def _profiles(document: Mapping[str, Any]) -> list[str]:
    profiled = [found for found in _of(document, "profile") if found["profile"] is not None]
    rows, longest = [], []
    for found in profiled:
        kinds = found["profile"]["kinds"]
        shares = [f"{100 * kinds[kind]:.0f}" if kind in kinds else _NONE for kind in KINDS]
        rows.append([found["case"], found["task"], f"{found['profile']['seconds']:.3g}", *shares])
        names = ", ".join(
            f"`{name}` {100 * share:.0f} %" for name, share in found["profile"]["operations"]
        )
        longest.append(f"- {found['case']} {found['task']}: {names}")
    columns = ["case", "task", "s", *(f"{kind}, %" for kind in KINDS)]
    table = _table(columns, rows, texts=2)
    return [*table, "\nThe longest operations:\n", *longest] if table else []


def _scaling(document: Mapping[str, Any]) -> list[str]:
    rows = []
    for found in document["scaling"]:
        grown = fit([value ** found["power"] for value in found["values"]], found["seconds"])
        timed = zip(found["values"], found["seconds"], strict=True)
        rows.append(
            [
                found["method"],
                found["name"],
                "yes" if found["compiled"] else "no",
                ", ".join(f"{value}: {seconds:.3g}" for value, seconds in timed),
                f"{grown.exponent:.2f}",
                f"{grown.steepest:.2f}",
                "**yes**" if grown.is_worse_than_linear else "no",
            ]
        )
    columns = (
        "method",
        "variable",
        "compiled",
        "value: s",
        "exponent",
        "steepest",
        "worse than linear",
    )
    table = _table(columns, rows, texts=4)
    if not table:
        return []
    first = document["scaling"][0]
    fixed = ", ".join(f"{name} {value}" for name, value in first["sizes"].items())
    return [f"What is not varied: {fixed}. Image size: the exponents of the pixels.\n", *table]


def _checks(document: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            found["case"],
            found["task"],
            name,
            checked["precision"],
            f"{checked['difference']['share']:.1g} ({checked['difference']['quantity']})",
            f"{checked['tolerance']:.1g}: {'met' if checked['is_equal'] else '**missed**'}",
            _waiting(checked["waits"]),
            "; ".join(checked["notes"]),
        ]
        for found in _of(document, "checks")
        for name, checked in found["checks"].items()
    ]
    columns = (
        "case",
        "task",
        "contender",
        "precision",
        "largest difference",
        "tolerance",
        "waits for the device",
        "notes",
    )
    return _table(columns, rows, texts=len(columns))


def _waiting(place: str | None) -> str:
    if place is None:
        return _NONE
    return f"**{place}**" if place else "no"


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several documents of one machine as one; of what several have, the last.

    Raises:
        ValueError: if they are of different machines.
    """
    first = documents[0]
    if any(document["machine"] != first["machine"] for document in documents):
        raise ValueError("the results are of different machines or versions")
    whole: dict[str, Any] = {
        **first,
        "command": "`, `".join(document["command"] for document in documents),
        "tasks": {},
    }
    for document in documents:
        for name, found in document["tasks"].items():
            # Checks and timings of a task are of different runs.
            earlier = whole["tasks"].get(name, {})
            whole["tasks"][name] = {**earlier, **found}
            if "error" not in found:
                whole["tasks"][name].pop("error", None)
        for part in ("trainer", "scaling"):
            whole[part] = document[part] or whole[part]
    rates = [Rates(**document["rates"]) for document in documents if document["rates"] is not None]
    for each in rates[1:]:
        rates[0] = rates[0].best(each)
    whole["rates"] = rates[0]._asdict() if rates else None
    return whole


def main(arguments: Sequence[str]) -> int:
    """Print what files of results have.

    Args:
        arguments: of the command line, without the program's name: the files.

    Returns:
        The exit status: 0, or 1 where a file cannot be read or belongs to another machine.
    """
    try:
        documents = [json.loads(Path(name).read_text()) for name in arguments]
        print(markdown(merged(documents)), end="")
    except (IndexError, OSError, ValueError) as error:
        print(f"python -m benchmarks.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
