"""Which row is a run of which figure."""

from pathlib import Path

import pytest

from dam_lightning.report.paper import figures
from dam_lightning.report.runs import find_runs, key_of, settings_of
from tests.report.ledgers import DM, DM_DAM, rows, with_dam

CROSS = (
    "dam-lightning test --config evaluate/cross_architecture.yaml --data CIFAR10 --data.root D "
    "--model.condensed runs/a/condensed.safetensors"
)


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({}, "2 PACS 1 DM "),
        ({"command": f"{DM_DAM} --model.dam null"}, "2 PACS 1 DM "),
        (with_dam(), "2 PACS 1 DM+DAM "),
        (with_dam(command=f"{DM_DAM} --model.dam.weight 0.05"), "C PACS 1 DM+DAM lambda=0.05"),
        (with_dam(command=f"{DM_DAM} --model.init=real"), "A PACS 1 DM+DAM "),
        (with_dam(command=f"{DM_DAM} --data.left_out_domain photo"), "5 PACS 1 DM+DAM photo"),
        (
            with_dam(
                command=f"{DM_DAM} --model.dam.init one_hot --data.pseudo_labels random",
            ),
            "6 PACS 1 DM+DAM random",
        ),
        (
            {
                "command": "cli.py test --config evaluate/baseline.yaml --model.ipc 1 --data PACS "
                "--model.condensed random",
                "steps": 0,
            },
            "2 PACS 1 random real images ",
        ),
        (
            {"command": "cli.py test --config evaluate/whole.yaml --data PACS", "steps": 0},
            "2 PACS all whole dataset ",
        ),
        (
            {"command": CROSS, "backbone": "ViTTiny", "dataset": "CIFAR10", "ipc": 10},
            "3 CIFAR-10 10 DM ViT-Tiny",
        ),
        (
            {"command": CROSS, "backbone": "AlexNet", "dataset": "CIFAR10", "ipc": 10, "dam": 4},
            "3 CIFAR-10 10 DM+DAM AlexNet",
        ),
        (
            {
                "command": f"{CROSS} --data.zca true",
                "backbone": "ConvNet",
                "dataset": "CIFAR10",
                "ipc": 10,
                "method": "MTT",
                "steps": 5000,
            },
            "3 CIFAR-10 10 MTT ConvNet",
        ),
    ],
)
def test_a_run_at_full_length(changes: dict[str, object], figure: str, tmp_path: Path) -> None:
    (run,) = find_runs(rows(tmp_path, changes))
    assert run.is_full_length
    found = run.figure
    assert found is not None
    assert f"{found.table} {found.dataset} {found.ipc} {found.label} {found.what}" == figure


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"steps": 300}, {"trainer.max_steps": "300"}),
        ({"networks": 3}, {"model.recipe.num_networks": "3"}),
        (
            {"command": f"{DM} --data.batch_real=64 --model.backbone_args.width 32"},
            {"data.batch_real": "64", "model.backbone_args.width": "32"},
        ),
        ({"command": f"{DM} --model.recipe.epochs 300"}, {"model.recipe.epochs": "300"}),
    ],
)
def test_a_shortened_run(
    changes: dict[str, object], differences: dict[str, str], tmp_path: Path
) -> None:
    (run,) = find_runs(rows(tmp_path, changes))
    assert run.figure is not None
    assert (run.figure.table, run.figure.label, run.figure.ipc) == ("2", "DM", "1")
    assert run.differences == differences
    assert not run.is_full_length


def test_a_shortened_variant_is_that_variants(tmp_path: Path) -> None:
    command = f"{DM_DAM} --model.dam.temperature 5"
    (run,) = find_runs(rows(tmp_path, with_dam(command=command, steps=10)))
    assert run.figure is not None
    assert (run.figure.table, run.figure.what) == ("D", "temperature=5")


@pytest.mark.parametrize(
    "changes",
    [
        with_dam(command=f"{DM_DAM} --data.pseudo_labels random"),
        with_dam(command=f"{DM_DAM} --model.dam.num_domains 5"),
        {
            "command": "cli.py test --config evaluate/baseline.yaml --model.ipc 1 --data PACS "
            "--model.condensed herding"
        },
        {"command": "cli.py test --config run/config.yaml"},
        {"command": "cli.py test --config digits/dm_ipc1.yaml"},
        # Another number of pseudo-domains than the paper's.
        {"command": CROSS, "backbone": "AlexNet", "dataset": "CIFAR10", "ipc": 10, "dam": 5},
    ],
)
def test_a_run_that_the_paper_has_not(changes: dict[str, object], tmp_path: Path) -> None:
    (run,) = find_runs(rows(tmp_path, changes))
    assert run.figure is None
    assert not run.is_full_length


def test_seeds_are_one_run_and_the_newest_row_of_a_seed_counts(tmp_path: Path) -> None:
    first, second = find_runs(
        rows(
            tmp_path,
            with_dam(accuracy="1"),
            {"seed": 2, "accuracy": "2"},
            {"seed": 0, "accuracy": "3"},
            {"seed": 2, "accuracy": "4", "command": f"{DM} --seed_everything 2"},
        )
    )
    assert [(row.seed, row.accuracy) for row in first.rows] == [(0, 3), (2, 4)]
    assert [(row.seed, row.accuracy) for row in second.rows] == [(0, 1)]


def test_figures_that_share_settings_share_their_commands() -> None:
    seen: dict[object, object] = {}
    for figure in figures():
        what = (figure.commands, figure.backbone)
        assert seen.setdefault(key_of(settings_of(figure)), what) == what
    assert len(seen) > 250
