"""The table that closes an evaluation."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dam_lightning.evaluation.accuracy import Figure, Scores

__all__ = ["print_scores"]


def print_scores(rows: Mapping[str, Scores], domain_names: Sequence[str], title: str) -> None:
    """Print accuracies in percent: a row for each training set, a column for each domain.

    Args:
        rows: scores by the name of what was trained on.
        domain_names: of the test images; columns appear where there are several.
        title: above the table.
    """
    table = Table(title=title, caption="% of test images: mean ± deviation over networks [95 %]")
    several = len(domain_names) > 1
    domain_columns = [*domain_names, "worst domain"] if several else []
    table.add_column("trained on")
    for column in ("accuracy", *domain_columns):
        table.add_column(column, justify="right")
    for name, scores in rows.items():
        overall = Figure.of(scores.overall)
        low, high = overall.mean - overall.interval, overall.mean + overall.interval
        cells = [f"{overall} [{low:.1f}, {high:.1f}]" if low == low else str(overall)]
        if several:
            cells += [f"{Figure.of(column)}" for column in scores.per_domain.unbind(dim=1)]
            cells.append(str(Figure.of(scores.worst_domain)))
        table.add_row(name, *cells)
    Console().print(table)
