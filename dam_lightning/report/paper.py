"""The figures that the paper prints, and the commands of the package that lead to them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

__all__ = ["DATASETS", "Figure", "figures"]

_FILE = Path(__file__).with_name("paper.csv")

DATASETS = {
    "CIFAR-10": ("CIFAR10", "cifar10"),
    "CIFAR-100": ("CIFAR100", "cifar100"),
    "Tiny-ImageNet": ("TinyImageNet", "tiny_imagenet"),
    "PACS": ("PACS", "pacs"),
    "VLCS": ("VLCS", "vlcs"),
    "Office-Home": ("OfficeHome", "office_home"),
    "DomainNet": ("DomainNet", "domain_net"),
}
"""Data module and folder of configs, by the paper's name of a dataset."""

_LABELS = {"Random": "random real images", "Whole": "whole dataset"}
_LABELLINGS = {
    "fft+mean-sort": [],
    "fft+k-means": ["--data.pseudo_grouping", "k_means"],
    "log-variance+mean-sort": ["--data.pseudo_labels", "log_variance"],
    "log-variance+k-means": [
        *("--data.pseudo_labels", "log_variance"),
        *("--data.pseudo_grouping", "k_means"),
    ],
    "random": ["--data.pseudo_labels", "random", "--model.dam.init", "one_hot"],
    "actual": ["--data.pseudo_labels", "actual"],
}


@dataclass(frozen=True)
class Figure:
    """One accuracy, with the columns of ``paper.csv`` as they are printed.

    Attributes:
        table: number or letter of the table.
        dataset: a key of `DATASETS`.
        ipc: images per class, or ``all``.
        method: ``DM``, ``DC``, ``MTT``, ``Random`` or ``Whole``.
        dam: ``1``, ``0``, or nothing where there is no condensation.
        setting: ``all`` domains, ``single-domain`` or ``leave-one-domain-out``.
        target_domain: what is tested on in a setting other than ``all``, and in table 4.
        backbone: of the networks that are tested.
        init: of the condensed images.
        accuracy: in percent.
        std: in percent, over ten networks; nothing where the paper prints none.
        note: what the table varies.
    """

    table: str
    dataset: str
    ipc: str
    method: str
    dam: str
    setting: str
    target_domain: str
    backbone: str
    init: str
    accuracy: str
    std: str
    note: str

    @property
    def label(self) -> str:
        """Name of the method, e.g. ``DM+DAM``."""
        return _LABELS.get(self.method) or self.method + ("+DAM" if self.dam == "1" else "")

    @property
    def printed(self) -> str:
        """E.g. ``28.7 ± 0.5``."""
        return f"{self.accuracy} ± {self.std}" if self.std else self.accuracy

    @property
    def what(self) -> str:
        """What tells it from the others of its table with the same dataset, ipc and method."""
        if self.table == "3":
            return self.backbone
        if self.table == "4":
            return f"{self.setting}, {self.target_domain}"
        if self.table == "5":
            return self.target_domain
        if self.table in "6BCD":
            return self.note.removeprefix("pseudo-domains: ").partition("*")[0]
        return ""

    @property
    def commands(self) -> Sequence[Sequence[str]]:
        """Subcommand and options, without the data's folder.

        After a ``fit`` comes a ``test`` with the same options and the checkpoint, unless another
        ``test`` is here too; its ``FILE`` is the condensed set.
        """
        module, folder = DATASETS[self.dataset]
        data = ["--data", module]
        if self.method == "Random":
            given = ["--model.condensed", "random", "--model.ipc", self.ipc]
            return [["test", "--config", "evaluate/baseline.yaml", *given, *data]]
        if self.method == "Whole":
            return [["test", "--config", "evaluate/whole.yaml", *data]]
        method = self.method.lower()
        config = f"{folder}/{method}{'_dam' if self.dam == '1' else ''}_ipc{self.ipc}.yaml"
        fit = ["fit", "--config", config, *self._changes()]
        if self.table != "3":
            return [fit]
        zca = ["--data.zca", "true"] if method == "mtt" else []
        given = ["--config", "evaluate/cross_architecture.yaml", "--model.condensed", "FILE"]
        return [fit, ["test", *given, *data, *zca]]

    def _changes(self) -> list[str]:
        """The options that the table adds to the config."""
        value = self.what.rpartition("=")[2]
        if self.table == "4":
            domains = f"[{self.target_domain}]"
            tested = ["--data.test_domains", domains]
            single = self.setting == "single-domain"
            return [*(["--data.train_domains", domains] if single else []), *tested]
        if self.table == "6":
            return _LABELLINGS[self.what]
        return {
            "5": ["--data.left_out_domain", self.target_domain],
            "A": ["--model.init", "real"],
            "B": ["--model.dam.init", "normal", "--model.dam.init_value", value],
            "C": ["--model.dam.weight", value],
            "D": ["--model.dam.temperature", value],
        }.get(self.table, [])


@cache
def figures() -> tuple[Figure, ...]:
    """All of them, table by table."""
    names = [field.name for field in fields(Figure)]
    with _FILE.open(encoding="utf-8", newline="") as file:
        return tuple(Figure(**{name: row[name] for name in names}) for row in csv.DictReader(file))
