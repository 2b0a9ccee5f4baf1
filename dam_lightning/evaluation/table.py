"""The table that closes an evaluation."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dam_lightning.evaluation.accuracy import Figure, Scores

__all__ = ["print_scores"]


def print_scores(rows: Mapping[str, Scores], domain_names: Sequence[str], title: str) -> None:
    """Print accuracies in percent: a column for each training set, a row for each domain.

    Args:
        rows: scores by the name of what was trained on.
        domain_names: of the test images; they get rows where there are several.
        title: above the table.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "% of real images, mean ± standard deviation over networks"
    table.add_column("trained on")
    for name in rows:
        table.add_column(name, justify="right")
    overall = [Figure.of(scores.overall) for scores in rows.values()]
    table.add_row("accuracy", *map(str, overall), style="bold")
    table.add_row("95 % interval", *map(_interval, overall))
    if len(domain_names) > 1:
        for number, domain in enumerate(domain_names):
            table.add_row(domain, *(str(Figure.of(s.per_domain[:, number])) for s in rows.values()))
        table.add_row("worst domain", *(str(Figure.of(s.worst_domain)) for s in rows.values()))
    Console().print(table)


def _interval(figure: Figure) -> str:
    """Of the mean; a single network gives none."""
    if figure.interval != figure.interval:
        return "-"
    return f"{figure.mean - figure.interval:.1f} to {figure.mean + figure.interval:.1f}"
