"""The runs that the ledger lacks, as commands, by priority."""

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dam_lightning.report.paper import Figure, figures
from dam_lightning.report.runs import Run, key_of, settings_of

__all__ = ["Entry", "entries", "queue", "to_run"]

_PRIORITY = (
    # table, dataset, method, images per class
    ("2", "PACS", "DM", "1"),
    ("2", "PACS", "DM", "10"),
    ("1", "CIFAR-10", "DM", "1"),
    ("1", "CIFAR-10", "DM", "10"),
    ("2", "PACS", "MTT", "1"),
    ("1", "CIFAR-10", "DC", "1"),
    ("2", "PACS", "DC", "1"),
    ("5", "PACS", "DM", "1"),
    ("1", "CIFAR-10", "MTT", "1"),
    ("3", "CIFAR-10", "DM", "10"),
    ("2", "PACS", "Random", "1"),
    ("2", "PACS", "Random", "10"),
    ("1", "CIFAR-10", "Random", "1"),
    ("1", "CIFAR-10", "Random", "10"),
    ("2", "PACS", "Whole", "all"),
    ("1", "CIFAR-10", "Whole", "all"),
)
_PASSES = (("Seed 0", (0,)), ("Seeds 1 and 2", (1, 2)))
"""First one seed of everything, then two more."""

_TITLES = {"3": "other backbones", "5": "one domain left out"}
_RUNS, _LEDGER = "results/runs", "results/ledger.csv"

_BEGINNING = f"""\
# Commands still to run

Made by `python -m dam_lightning.report {_LEDGER} --queue --output results/queue.md`. These are
the runs that come first of the paper's figures, where the [ledger](ledger.csv) has no row at full
length: {{count}} of {{total}}.

Run them in bash, in the folder of the repository, in any order. Each ends with rows in the ledger.
One that was interrupted goes on where it stopped when the same lines are run again; one that is
finished is only tested again, for another row, of which the newest counts. MTT trains the experts
that it lacks first, once for all runs on a dataset.
"""

_DEFINITIONS = f"""
```bash
DIR=data  # the folder that holds the datasets

# what a fit goes on from: nothing the first time
resume() {{ [ ! -e "{_RUNS}/$1/last.ckpt" ] || echo "--ckpt_path {_RUNS}/$1/last.ckpt"; }}
```
"""


class Entry(NamedTuple):
    """A run with one seed.

    Attributes:
        section: of the queue.
        title: of those with and without DAM together.
        figures: that its test gives.
        seed: of the condensation, or of the choice of real images.
    """

    section: str
    title: str
    figures: Sequence[Figure]
    seed: int

    @property
    def name(self) -> str:
        """Of the folder of the fit."""
        _, _, config, *options = self.figures[0].commands[0]
        words = [config.removesuffix(".yaml").replace("/", "_")]
        words += [word.rpartition(".")[2] for word in options]
        return "_".join([*words, f"seed{self.seed}"])

    @property
    def lines(self) -> str:
        """The commands, for a shell in which ``DIR`` and ``resume`` are defined."""
        first, *others = self.figures[0].commands
        seeded = f"--seed_everything {self.seed}"
        appended = f'--data.root "$DIR" --trainer.logger false --model.ledger {_LEDGER}'
        if first[0] == "test":
            return f"dam-lightning {shlex.join(first)} {seeded} \\\n    {appended}"
        folder = f"{_RUNS}/{self.name}"
        made = f'{shlex.join(first[1:])} {seeded} \\\n    --data.root "$DIR" --trainer.logger false'
        fit = f"dam-lightning fit {made} \\\n    --trainer.default_root_dir {folder}"
        fit += f" $(resume {self.name}) &&\n"
        if others:
            given = [f"{folder}/condensed.safetensors" if a == "FILE" else a for a in others[0]]
            return f"{fit}dam-lightning {shlex.join(given)} {seeded} \\\n    {appended}"
        return (
            f"{fit}dam-lightning test {made} \\\n    --ckpt_path {folder}/last.ckpt "
            f"--model.ledger {_LEDGER}"
        )


def entries() -> list[Entry]:
    """All runs of the list, those that come first at the front."""
    found = []
    for section, seeds in _PASSES:
        for table, dataset, method, ipc in _PRIORITY:
            wanted = [
                figure
                for figure in figures()
                if (figure.table, figure.dataset, figure.method, figure.ipc)
                == (table, dataset, method, ipc)
            ]
            if wanted[0].dam == "" and seeds != (0,):
                continue  # nothing is condensed
            per_class = "" if ipc == "all" else f"ipc {ipc}"
            words = [dataset, wanted[0].label, per_class, _TITLES.get(table, "")]
            title = ", ".join(filter(None, words))
            found += [
                Entry(section, title, group, seed) for seed in seeds for group in _by_run(wanted)
            ]
    return found


def to_run(runs: Sequence[Run]) -> list[Entry]:
    """The entries of which some figure has no row at full length."""
    done = {
        (key_of(run.settings), row.seed) for run in runs if run.is_full_length for row in run.rows
    }
    return [
        entry
        for entry in entries()
        if any((key_of(settings_of(each)), entry.seed) not in done for each in entry.figures)
    ]


def queue(runs: Sequence[Run]) -> str:
    """The page of commands, as Markdown."""
    left = to_run(runs)
    text = _BEGINNING.format(count=len(left), total=len(entries()))
    return text + (_DEFINITIONS if left else "") + "".join(_blocks(left))


def _blocks(left: Sequence[Entry]) -> Iterator[str]:
    section = title = ""
    for entry in left:
        if entry.section != section:
            section, title = entry.section, ""
            yield f"\n## {section}\n"
        if entry.title != title:
            title = entry.title
            yield f"\n### {title}\n"
        yield f"\n```bash\n{entry.lines}\n```\n"


def _by_run(wanted: Sequence[Figure]) -> list[list[Figure]]:
    """The figures of one run together; with and without DAM after one another."""
    found: dict[str, list[Figure]] = {}
    for figure in wanted:
        found.setdefault(str(figure.commands), []).append(figure)
    # A domain without and with DAM after one another.
    return sorted(found.values(), key=lambda group: group[0].target_domain)
