"""Ledgers made by hand."""

from pathlib import Path

from dam_lightning.evaluation.ledger import append_row, open_ledger
from dam_lightning.report.rows import Row, read_ledger

DM = "dam-lightning test --config pacs/dm_ipc1.yaml --data.root DIR --ckpt_path last.ckpt"
DM_DAM = "dam-lightning test --config pacs/dm_dam_ipc1.yaml --data.root DIR --ckpt_path last.ckpt"
COLUMNS = {
    "dataset": "PACS",
    "ipc": 1,
    "method": "DM",
    "dam": 0,
    "seed": 0,
    "steps": 20000,
    "backbone": "ConvNet",
    "accuracy": "30.00",
    "deviation": "2.00",
    "interval": "1.51",
    "worst_domain": "20.00",
    "networks": 10,
    "precision": "float32",
    "device": "cpu x2",
    "seconds": "1.0",
    "peak_memory_mib": 100,
    "version": "0.1.0+abcdef0",
    "command": DM,
}
"""Of a run at full length: DM on PACS, 1 image per class."""


def with_dam(**changes: object) -> dict[str, object]:
    return {"dam": 4, "command": DM_DAM, **changes}


def write(path: Path, *changes: dict[str, object]) -> Path:
    """A ledger with a row for each of the changes to `COLUMNS`."""
    open_ledger(path)
    for changed in changes:
        append_row(path, {**COLUMNS, **changed})
    return path


def rows(folder: Path, *changes: dict[str, object]) -> list[Row]:
    return read_ledger(write(folder / "ledger.csv", *changes))
