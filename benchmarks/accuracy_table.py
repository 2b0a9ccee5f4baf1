"""Accuracies as Markdown: a table for each dataset, random real images above what they judge."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy_random import Terms

__all__ = ["RANDOM", "Result", "method_of", "tables"]

RANDOM = "random"
"""The method of random real images."""


@dataclass(frozen=True)
class Result:
    """One cell.

    Attributes:
        method: the config's name without its images per class, e.g. ``dm_dam``; or `RANDOM`.
        terms: of the test; results with equal ones can be compared.
        row: of the ledger.
        fits: seconds of the fits that led to it; None for one whose time is not known.
    """

    method: str
    terms: Terms
    row: dict[str, str]
    fits: Sequence[float | None]

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.row["ipc"])

    @property
    def accuracy(self) -> str:
        """In percent, mean and standard deviation over networks."""
        return f"{float(self.row['accuracy']):.1f} ± {float(self.row['deviation']):.1f}"

    @property
    def steps(self) -> str:
        """Image updates; of random real images there are none."""
        return "-" if self.method == RANDOM else self.row["steps"]

    @property
    def seconds(self) -> str:
        """Of fitting, in all."""
        known = [seconds for seconds in self.fits if seconds is not None]
        at_least = "> " if len(known) < len(self.fits) else ""
        return f"{at_least}{sum(known):.0f}" if self.fits else "-"


def method_of(config_name: str) -> str:
    """``dm_dam_ipc10`` -> ``dm_dam``."""
    return re.sub(r"_ipc\d+", "", config_name, count=1)


def tables(results: Sequence[Result]) -> str:
    """A heading and a table for each dataset, in the order of the results."""
    return "\n\n".join(
        _table(dataset, [result for result in results if result.terms.dataset == dataset])
        for dataset in dict.fromkeys(result.terms.dataset for result in results)
    )


def _table(dataset: str, results: Sequence[Result]) -> str:
    ipcs = sorted({result.ipc for result in results})
    columns = ["method", *(f"ipc {ipc}" for ipc in ipcs), "steps", "fit, s", "networks"]
    lines = [_line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
    all_terms = list(dict.fromkeys(result.terms for result in results))
    for terms, difference in zip(all_terms, _differences(all_terms), strict=True):
        under = [result for result in results if result.terms == terms]
        lines += _lines(under, ipcs, difference)
    text = f"## {dataset}\n\n" + "\n".join(lines)
    if len(all_terms) > 1:
        text += (
            "\n\nRandom real images stand above the methods that are tested as they are; what the "
            "tests differ in is in brackets."
        )
    return text


def _lines(results: Sequence[Result], ipcs: Sequence[int], difference: str) -> Iterator[str]:
    """The rows of results that can be compared, random real images first."""
    methods = dict.fromkeys(result.method for result in results)
    ordered = sorted(methods, key=lambda method: method != RANDOM)
    labels = {method: _label(method, results) for method in ordered}
    for method, label in labels.items():
        own = [result for result in results if result.method == method]
        if list(labels.values()).count(label) > 1:
            label = f"{label}, {method}"
        if method == RANDOM and difference:
            label = f"{label} ({difference})"
        yield _line(
            [
                label,
                *(_cell(own, [ipc], lambda result: result.accuracy) for ipc in ipcs),
                _cell(own, ipcs, lambda result: result.steps),
                _cell(own, ipcs, lambda result: result.seconds),
                _cell(own, ipcs, lambda result: result.row["networks"]),
            ]
        )


def _label(method: str, results: Sequence[Result]) -> str:
    row = next(result.row for result in results if result.method == method)
    return row["method"] + ("+DAM" if row["dam"] != "0" else "")


def _cell(results: Sequence[Result], ipcs: Sequence[int], text: Callable[[Result], str]) -> str:
    """One value where all are equal, else one for each result in the order of the columns."""
    texts = [text(result) for ipc in ipcs for result in results if result.ipc == ipc]
    return " / ".join(texts if len(set(texts)) > 1 else texts[:1]) or "-"


def _differences(all_terms: Sequence[Terms]) -> list[str]:
    """For each of some terms, those of its values that are not the same in all."""
    flat = [dict(_leaves(terms.content)) for terms in all_terms]
    names = dict.fromkeys(name for values in flat for name in values)
    differing = [name for name in names if len({json.dumps(v.get(name)) for v in flat}) > 1]
    return [
        ", ".join(f"{name.rpartition('.')[2]}: {values.get(name)}" for name in differing)
        for values in flat
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
