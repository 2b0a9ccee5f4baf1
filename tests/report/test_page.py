"""The report of small ledgers, worked out by hand."""

from pathlib import Path

from dam_lightning.report.page import report
from dam_lightning.report.runs import find_runs
from tests.report.ledgers import DM, DM_DAM, rows, with_dam

DC = {
    "method": "DC",
    "steps": 1000,
    "command": "cli.py test --config pacs/dc_ipc1.yaml --data.root D",
}
DC_DAM = {**DC, "dam": 4, "command": "cli.py test --config pacs/dc_dam_ipc1.yaml --data.root D"}
SMALL = " --data.batch_real 64"


def page(folder: Path, *changes: dict[str, object]) -> dict[str, list[str]]:
    """The lines below each heading."""
    found = rows(folder, *changes)
    parts: dict[str, list[str]] = {}
    title = ""
    for line in report(found, find_runs(found)).splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line:
            parts.setdefault(title, []).append(line)
    return parts


def test_full_length(tmp_path: Path) -> None:
    found = page(
        tmp_path,
        {},
        {**DC_DAM, "accuracy": "40", "seed": 0},
        {**DC_DAM, "accuracy": "41", "seed": 1},
        {**DC, "accuracy": "36"},
    )
    assert found["Full length"] == [
        "| table | dataset | ipc | method | paper | ours | seeds | difference | units | lines |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        # (2 ** 2 + 0.6 ** 2) / 10 = 0.436, whose root is 0.660; 0.7 / 0.660 = 1.06
        "| 2 | PACS | 1 | DC | 35.3 ± 0.6 | 36.00 ± 2.00 | 0 | +0.70 | +1.0 | 5 |",
        # 0.5 of two seeds: 0.25 + 0.7 ** 2 / 10 = 0.299, whose root is 0.547; 1.7 / 0.547 = 3.11
        "| 2 | PACS | 1 | DC+DAM | 38.8 ± 0.7 | 40.50 ± 0.71 | 0, 1 | +1.70 | +3.1 | 3, 4 |",
        # The paper prints no deviation.
        "| 2 | PACS | 1 | DM | 28.7 | 30.00 ± 2.00 | 0 | +1.30 |  | 2 |",
    ]
    assert found["DAM's gain"][1:] == [
        "| table | dataset | ipc | method | paper | ours | seeds |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        # Of seed 0 alone: roots of (0.6 ** 2 + 0.7 ** 2) / 10 and of (2 ** 2 + 2 ** 2) / 10
        "| 2 | PACS | 1 | DC | +3.50 ± 0.31 | +4.00 ± 0.94 | 0 |",
    ]
    assert "Shortened" not in found
    assert "Not in the paper" not in found
    assert found["Open"] == [
        "80 of the 84 runs of the list of priorities have no row at full length yet: [their "
        "commands](queue.md)."
    ]


def test_a_variant_gains_over_the_run_without_dam(tmp_path: Path) -> None:
    weight = f"{DM_DAM} --model.dam.weight 0.05"
    found = page(tmp_path, {}, with_dam(command=weight, accuracy="33"))
    assert found["Full length"][-1].startswith(
        "| C, lambda=0.05 | PACS | 1 | DM+DAM | 34.3 | 33.00"
    )
    # 34.3 - 28.7
    assert found["DAM's gain"][-1] == (
        "| C, lambda=0.05 | PACS | 1 | DM | +5.60 | +3.00 ± 0.94 | 0 |"
    )


def test_shortened_runs_are_curves(tmp_path: Path) -> None:
    command, other = DM + SMALL, DM_DAM + SMALL
    found = page(
        tmp_path,
        {"command": command, "steps": 1000, "networks": 5, "accuracy": "27"},
        {"command": command, "steps": 300, "networks": 5, "accuracy": "25"},
        with_dam(command=other, steps=300, networks=5, accuracy="26.5"),
        {"steps": 500, "accuracy": "26", "seed": 1},
        {"accuracy": "29", "seed": 1},
        with_dam(command=f"{DM_DAM} --model.dam.weight 0.05", steps=500, accuracy="28", seed=2),
    )
    titles = list(found)
    assert titles.index("Shortened") < titles.index("PACS, ipc 1, DM and DM+DAM")
    assert found["PACS, ipc 1, DM and DM+DAM"] == [
        "With `--data.batch_real 64 --model.recipe.num_networks 5`.",
        "| steps | DM | DM+DAM | gain | seeds | lines |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        # The root of (2 ** 2 + 2 ** 2) / 5
        "| 300 | 25.00 ± 2.00 | 26.50 ± 2.00 | +1.50 ± 1.41 | 0 | 3, 4 |",
        "| 1000 | 27.00 ± 2.00 |  |  | 0 | 2 |",
        "| paper | 28.7 | 34.7 | +6.00 |  |  |",
    ]
    assert found["PACS, ipc 1, lambda=0.05, DM and DM+DAM"] == [
        "| steps | DM | DM+DAM | gain | seeds | lines |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        # No seed in common; the full length is the end of the curve.
        "| 500 | 26.00 ± 2.00 | 28.00 ± 2.00 |  | 1, 2 | 5, 7 |",
        "| 20000 | 29.00 ± 2.00 |  |  | 1 | 6 |",
        "| paper | 28.7 | 34.3 | +5.60 |  |  |",
    ]
    assert len(found["Full length"]) == 3


def test_a_shortened_baseline_stands_alone(tmp_path: Path) -> None:
    command = (
        "cli.py test --config evaluate/baseline.yaml --model.condensed random --model.ipc 1 "
        "--data PACS"
    )
    found = page(tmp_path, {"command": command, "steps": 0, "networks": 5, "method": "random"})
    assert found["PACS, ipc 1, random real images"] == [
        "With `--model.recipe.num_networks 5`.",
        "| steps | random real images | seeds | lines |",
        "| ---: | ---: | ---: | ---: |",
        "|  | 30.00 ± 2.00 | 0 | 2 |",
        "| paper | 18.1 ± 2.6 |  |  |",
    ]


def test_what_the_paper_has_not(tmp_path: Path) -> None:
    views = f"{DM_DAM} --data.pseudo_labels random"
    herding = (
        "cli.py test --config evaluate/baseline.yaml --data PACS --model.condensed herding "
        "--model.ipc 1 --data.root D"
    )
    found = page(
        tmp_path,
        {"accuracy": "30", "seed": 0},
        {"accuracy": "32", "seed": 1},
        with_dam(command=views, accuracy="31", seed=0),
        with_dam(command=views, accuracy="35", seed=1),
        {"command": herding, "method": "herding", "steps": 0, "networks": 1},
    )
    assert found["Not in the paper"][1:] == [
        "| dataset | ipc | method | config and options | steps | networks | ours | gain | seeds "
        "| lines |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        # 1 and 3: mean 2, deviation sqrt(2), over sqrt(2) seeds; 31 and 35: deviation sqrt(8)
        "| PACS | 1 | DM+DAM | `pacs/dm_dam_ipc1.yaml --data.pseudo_labels random` | 20000 | 10 | "
        "33.00 ± 2.83 | +2.00 ± 1.00 | 0, 1 | 4, 5 |",
        "| PACS | 1 | herding | `evaluate/baseline.yaml --data PACS --model.condensed herding "
        "--model.ipc 1` |  | 1 | 30.00 |  | 0 | 6 |",
    ]


def test_every_row_shows_its_command(tmp_path: Path) -> None:
    odd = f"{DM} --data.cache_dir 'a|b\nc'"
    found = page(tmp_path, {"command": odd}, {"seed": 1, "device": "NVIDIA H100"})
    shown = [line for line in found["Rows of the ledger"] if line.startswith("| ")][2:]
    assert shown == [
        "| 2 | PACS | 1 | DM | 0 | 20000 | ConvNet | cpu x2 | float32 | 0.1.0+abcdef0 | "
        f"`{DM} --data.cache_dir 'a\\|b c'` |",
        "| 4 | PACS | 1 | DM | 1 | 20000 | ConvNet | NVIDIA H100 | float32 | 0.1.0+abcdef0 | "
        f"`{DM}` |",
    ]


def test_a_ledger_without_rows(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert found["Full length"] == ["Nothing was run at full length yet."]
    assert list(found) == ["Ours beside the paper's", "Full length", "Open"]
    shortened = page(tmp_path / "short", {"steps": 5})
    assert shortened["Full length"] == found["Full length"]
    assert shortened["Open"] == found["Open"]
