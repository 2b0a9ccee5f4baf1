"""The table that closes an evaluation."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from dam_lightning.evaluation.accuracy import Figure, Scores

__all__ = ["print_scores"]


def print_scores(
    rows: Mapping[str, Scores],
    domain_names: Sequence[str],
    title: str,
    heading: str = "trained on",
) -> None:
    """Print accuracies in percent: a column for each training set, a row for each domain.

    Args:
        rows: scores by the name of what was trained on, or of what was trained.
        domain_names: of the dataset; where there are several, those with test images get rows.
        title: above the table.
        heading: says what the names of ``rows`` are.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "% of real images, mean ± standard deviation over networks"
    table.add_column(heading)
    for name in rows:
        table.add_column(name, justify="right")
    overall = [Figure.of(scores.overall) for scores in rows.values()]
    table.add_row("accuracy", *map(str, overall), style="bold")
    table.add_row("95 % interval", *map(_interval, overall))
    if len(domain_names) > 1:
        figures = {
            domain: [Figure.of(scores.per_domain[:, number]) for scores in rows.values()]
            for number, domain in enumerate(domain_names)
        }
        tested = {domain: row for domain, row in figures.items() if row and row[0].is_known}
        for domain, row in tested.items():
            table.add_row(domain, *map(str, row))
        if len(tested) > 1:
            table.add_row("worst domain", *(str(Figure.of(s.worst_domain)) for s in rows.values()))
    console = Console()
    if not console.is_terminal:
        # A file has room for many columns.
        unlimited = console.options.update(width=10_000)
        console.width = max(console.width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)


def _interval(figure: Figure) -> str:
    """Of the mean, as far as there are accuracies; a single network gives none."""
    if figure.interval != figure.interval:
        return "-"
    low, high = max(0.0, figure.mean - figure.interval), min(100.0, figure.mean + figure.interval)
    return f"{low:.1f} to {high:.1f}"
