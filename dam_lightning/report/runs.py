"""Which rows are seeds of one run, and which figure of the paper it is a run of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dam_lightning.report.commands import NETWORKS, STEPS, Settings, parse
from dam_lightning.report.paper import Figure, figures
from dam_lightning.report.rows import Row, settings_of_file

__all__ = ["Run", "find_runs", "key_of", "settings_of"]

_SCALE = (
    STEPS,
    "trainer.limit_test_batches",
    "data.batch_real",
    "data.image_size",
    "data.validation_share",
    "model.backbone_args",
    "model.batch_syn",
    "model.batch_syn_domain",
    "model.expert_epochs",
    "model.experts",
    "model.domain_experts",
    "model.inner_loop",
    "model.max_start_epoch",
    "model.outer_loop",
    "model.recipe.backbone_args",
    "model.recipe.epochs",
    NETWORKS,
    "model.student_steps",
)
"""Settings that make a run of a figure shorter or smaller; any other makes it another run."""
_PAPER_NETWORKS, _PAPER_DOMAINS = "10", 4

Key = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """One or several seeds.

    Attributes:
        settings: of all its rows.
        rows: one of each seed, in their order.
        figure: of the paper; None: it has none.
        differences: the settings in which the run is not the figure's; empty: it is full length.
    """

    settings: Settings
    rows: Sequence[Row]
    figure: Figure | None
    differences: Settings

    @property
    def is_full_length(self) -> bool:
        """Whether it may be compared with the figure."""
        return self.figure is not None and not self.differences


def find_runs(rows: Sequence[Row]) -> list[Run]:
    """Put rows together that differ by seed alone; of one seed the newest row counts."""
    groups: dict[Key, dict[int | None, Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row.settings), {})[row.seed] = row
    runs = []
    for seeds in groups.values():
        ordered = sorted(seeds.values(), key=lambda row: -1 if row.seed is None else row.seed)
        settings = ordered[0].settings
        figure, differences = _match(settings)
        runs.append(Run(settings, ordered, figure, differences))
    order = list(_by_settings().values())
    return sorted(
        runs, key=lambda run: len(order) if run.figure is None else order.index(run.figure)
    )


def key_of(settings: Settings) -> Key:
    """By which equal settings are found."""
    return frozenset(settings.items())


@cache
def settings_of(figure: Figure) -> Settings:
    """Of the figure's run. Not to be changed."""
    commands = [parse(command) for command in figure.commands]
    settings = commands[0].settings
    if len(commands) == 1:
        return {**settings, NETWORKS: _PAPER_NETWORKS}
    return settings_of_file(
        commands[1].settings,
        method=figure.method,
        ipc=figure.ipc,
        dam=_PAPER_DOMAINS if figure.dam == "1" else 0,
        steps=settings[STEPS],
        backbone=figure.backbone.replace("-", ""),
        networks=_PAPER_NETWORKS,
    )


@cache
def _by_settings() -> dict[Key, Figure]:
    """Of the figures of one run the first, which is that of a main table."""
    found: dict[Key, Figure] = {}
    for figure in figures():
        found.setdefault(key_of(settings_of(figure)), figure)
    return found


def _match(settings: Settings) -> tuple[Figure | None, Settings]:
    """The figure that a run is nearest to, and what is different."""
    best: tuple[Figure | None, Settings] = (None, {})
    for figure in _by_settings().values():
        theirs = settings_of(figure)
        keys = {key for key, _ in key_of(settings) ^ key_of(theirs)}
        if not all(_is_scale(key) for key in keys):
            continue
        if best[0] is None or len(keys) < len(best[1]):
            best = (figure, {key: settings.get(key, "default") for key in sorted(keys)})
    return best


def _is_scale(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in _SCALE)
