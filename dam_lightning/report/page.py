"""The report as Markdown: ours beside the paper's."""

from collections.abc import Iterable, Sequence

from dam_lightning.report.commands import DAM, STEPS, Settings, without_dam
from dam_lightning.report.estimates import (
    Estimate,
    combined,
    of_paper,
    of_rows,
    paired_gain,
    paper_gain,
)
from dam_lightning.report.paper import DATASETS
from dam_lightning.report.queue import entries, to_run
from dam_lightning.report.rows import Row
from dam_lightning.report.runs import Key, Run, key_of

__all__ = ["report"]

_NAMES = {module: name for name, (module, _) in DATASETS.items()}

_BEGINNING = """\
# Ours beside the paper's

Made by `python -m dam_lightning.report` from a ledger (the page in `results/` from
[ledger.csv](ledger.csv)), to which `test --model.ledger` appends a row; nothing here is written by
hand.

Accuracies are in percent, on the test images. After ± stands the standard deviation: the paper's is
over ten networks trained on one condensed set, and so is ours with one seed; with several it is
that of the seeds' means. A standard error is the deviation divided by the square root of the number
of networks less one (the field prints deviations without that correction), or of the number of
seeds where there are several. `units` is the difference divided by both errors
combined, the root of the sum of their squares; it is left out where the paper prints no deviation.
With one seed it leaves out how much one condensation differs from the next. `seeds` are the numbers
that were given as seeds, `lines` those of the ledger. Where a file was tested (table 3), the ledger
knows the method, images per class, pseudo-domains and steps that made it, and no other option.
"""

_GAIN = """
## DAM's gain

Accuracy with DAM less that without, at equal settings and seeds, ± its standard error.

"""

_SHORTENED = """
## Shortened

Fewer steps, or the options that are named. The paper's figures are those of the full length, for
orientation alone. `gain` is the accuracy with DAM less that without, at equal seeds, ± its standard
error.
"""

_OTHERS = """
## Not in the paper

`gain` is over the same run without DAM, where there is one.

"""

_ROWS = """
## Rows of the ledger

Every row can be made again. Its command tests a checkpoint, or, with `evaluate/...`, real images or
a file. The fit that made the checkpoint was the same command with `fit` in place of `test`, without
`--ckpt_path` and whatever begins with `--model.ledger` or `--model.recipe`, with the row's seed as
`--seed_everything` and its steps as `--trainer.max_steps`. (A command that names a config or a
program of somebody's own takes that too.)
"""


def report(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """All that a ledger says.

    Args:
        rows: of the ledger.
        runs: that they are of.
    """
    of_settings = {key_of(run.settings): run for run in runs}
    text = _BEGINNING
    text += _full_length([run for run in runs if run.is_full_length])
    text += _gains(runs, of_settings)
    text += _shortened(runs, of_settings)
    text += _others([run for run in runs if run.figure is None], of_settings)
    text += _open(runs)
    return text + (_ROWS + _rows(rows) if rows else "")


def _full_length(runs: Sequence[Run]) -> str:
    text = "\n## Full length\n\n"
    if not runs:
        return text + "Nothing was run at full length yet.\n"
    cells = []
    for run in runs:
        figure = run.figure
        assert figure is not None
        ours, paper = of_rows(run.rows), of_paper(figure)
        difference, error = ours.mean - paper.mean, combined(ours.error, paper.error)
        cells.append(
            [
                f"{figure.table}, {figure.what}" if figure.what else figure.table,
                figure.dataset,
                figure.ipc,
                figure.label,
                figure.printed,
                _spread(ours),
                _seeds(run.rows),
                f"{difference:+.2f}",
                f"{difference / error:+.1f}" if error else "",
                _lines(run.rows),
            ]
        )
    titles = ["table", "dataset", "ipc", "method", "paper", "ours", "seeds", "difference"]
    return text + _table([*titles, "units", "lines"], cells, left=4)


def _gains(runs: Sequence[Run], of_settings: dict[Key, Run]) -> str:
    cells = []
    for run in runs:
        base = _base(run, of_settings)
        if not run.is_full_length or base is None:
            continue
        gain = paired_gain(base.rows, run.rows)
        if gain is None or run.figure is None or base.figure is None:
            continue
        both = {row.seed for row in base.rows} & {row.seed for row in run.rows}
        figure = run.figure
        cells.append(
            [
                f"{figure.table}, {figure.what}" if figure.what else figure.table,
                figure.dataset,
                figure.ipc,
                base.figure.label,
                _gain(paper_gain(base.figure, figure)),
                _gain(gain),
                _seeds([row for row in run.rows if row.seed in both]),
            ]
        )
    if not cells:
        return ""
    titles = ["table", "dataset", "ipc", "method", "paper", "ours", "seeds"]
    return _GAIN + _table(titles, cells, left=4)


def _shortened(runs: Sequence[Run], of_settings: dict[Key, Run]) -> str:
    """Runs that differ by their steps alone are one table, with and without DAM side by side."""
    curves: dict[Key, list[Run]] = {}
    for run in runs:
        if run.figure is not None:
            curves.setdefault(_curve(run.settings), []).append(run)
    shortened = {
        key: curve for key, curve in curves.items() if not all(run.is_full_length for run in curve)
    }
    covered = {
        _curve(without_dam(curve[0].settings))
        for curve in shortened.values()
        if DAM in curve[0].settings
    }
    text = ""
    for key, curve in shortened.items():
        if key in covered:
            continue
        bases = curves.get(_curve(without_dam(curve[0].settings)), [])
        text += _curve_table(bases, [run for run in curve if DAM in run.settings])
    return _SHORTENED + text if text else ""


def _curve(settings: Settings) -> Key:
    return key_of({key: value for key, value in settings.items() if key != STEPS})


def _curve_table(bases: Sequence[Run], dams: Sequence[Run]) -> str:
    """A row for each number of steps, and one for the paper."""
    curves = [runs for runs in (bases, dams) if runs]
    figures = [curve[0].figure for curve in curves if curve[0].figure is not None]
    named = figures[-1]
    both = len(curves) == 2
    cells = []
    for steps in sorted({_steps(run) for curve in curves for run in curve}):
        at = [next((run for run in curve if _steps(run) == steps), None) for curve in curves]
        found = [run for run in at if run is not None]
        rows = [row for run in found for row in run.rows]
        gain = paired_gain(*(run.rows for run in found)) if len(found) == 2 else None
        cells.append(
            [
                str(steps or ""),
                *("" if run is None else _spread(of_rows(run.rows)) for run in at),
                *([_gain(gain)] if both else []),
                _seeds({row.seed: row for row in rows}.values()),
                _lines(rows),
            ]
        )
    gain = paper_gain(*figures) if both else None
    printed = [figure.printed for figure in figures]
    cells.append(["paper", *printed, *([_gain(gain)] if both else []), "", ""])
    labels = [figure.label for figure in figures]
    per_class = "" if named.ipc == "all" else f"ipc {named.ipc}"
    title = ", ".join(filter(None, [named.dataset, per_class, named.what, " and ".join(labels)]))
    differences = curves[-1][0].differences
    options = " ".join(f"--{key} {differences[key]}" for key in differences if key != STEPS)
    titles = ["steps", *labels, *(["gain"] if both else []), "seeds", "lines"]
    return (
        f"\n### {title}\n\n"
        + (f"With `{options}`.\n\n" if options else "")
        + _table(titles, cells, left=0)
    )


def _steps(run: Run) -> int:
    return int(run.settings.get(STEPS, 0))


def _others(runs: Sequence[Run], of_settings: dict[Key, Run]) -> str:
    if not runs:
        return ""
    cells = []
    for run in runs:
        row, base = run.rows[0], _base(run, of_settings)
        cells.append(
            [
                _dataset(row),
                _ipc(row),
                _method(row),
                f"`{row.what}`",
                str(row.steps or ""),
                str(row.networks),
                _spread(of_rows(run.rows)),
                _gain(None if base is None else paired_gain(base.rows, run.rows)),
                _seeds(run.rows),
                _lines(run.rows),
            ]
        )
    titles = ["dataset", "ipc", "method", "config and options", "steps", "networks", "ours"]
    return _OTHERS + _table([*titles, "gain", "seeds", "lines"], cells, left=4)


def _open(runs: Sequence[Run]) -> str:
    left, total = len(to_run(runs)), len(entries())
    text = "\n## Open\n\n"
    if not left:
        return text + f"All {total} runs of the list of priorities have a row at full length.\n"
    return text + (
        f"{left} of the {total} runs of the list of priorities have no row at full length yet: "
        "[their commands](queue.md).\n"
    )


def _rows(rows: Sequence[Row]) -> str:
    cells = [
        [
            str(row.line),
            _dataset(row),
            _ipc(row),
            _method(row),
            "" if row.seed is None else str(row.seed),
            "" if row.steps is None else str(row.steps),
            *(row.columns[name] for name in ("backbone", "device", "precision", "version")),
            f"`{row.columns['command']}`",
        ]
        for row in rows
    ]
    titles = ["line", "dataset", "ipc", "method", "seed", "steps", "backbone", "device"]
    table = _table([*titles, "precision", "version", "command"], cells, left=11)
    return f"\n<details>\n<summary>The rows</summary>\n\n{table}\n</details>\n"


def _base(run: Run, of_settings: dict[Key, Run]) -> Run | None:
    """The same without DAM."""
    return of_settings.get(key_of(without_dam(run.settings))) if DAM in run.settings else None


def _dataset(row: Row) -> str:
    return _NAMES.get(row.columns["dataset"], row.columns["dataset"])


def _ipc(row: Row) -> str:
    return "all" if row.ipc is None else str(row.ipc)


def _method(row: Row) -> str:
    return row.columns["method"] + ("+DAM" if row.dam else "")


def _spread(estimate: Estimate) -> str:
    spread = "" if estimate.spread is None else f" ± {estimate.spread:.2f}"
    return f"{estimate.mean:.2f}{spread}"


def _gain(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    error = "" if estimate.error is None else f" ± {estimate.error:.2f}"
    return f"{estimate.mean:+.2f}{error}"


def _seeds(rows: Iterable[Row]) -> str:
    return ", ".join("?" if row.seed is None else str(row.seed) for row in rows)


def _lines(rows: Iterable[Row]) -> str:
    return ", ".join(str(row.line) for row in rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """The first columns to the left, the others to the right."""
    rules = ["---" if number < left else "---:" for number in range(len(titles))]
    return "".join(_line(cells) for cells in (titles, rules, *rows))


def _line(cells: Sequence[str]) -> str:
    # A command may have bars and lines of its own.
    clean = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(clean)} |\n"
