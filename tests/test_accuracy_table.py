"""The command that makes a table of accuracies: on Digits, and with a stand-in for its runs."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.accuracy import main
from benchmarks.accuracy_random import Terms
from benchmarks.accuracy_table import RANDOM, Result, tables
from dam_lightning import CondensedSet, cli
from dam_lightning.evaluation.ledger import COLUMNS, append_row

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = ["--model.backbone_args.width", "8", "--model.recipe.num_networks", "1"]
TINY += ["--model.recipe.epochs", "2", "--data.batch_real", "4", "--trainer.accelerator", "cpu"]


def in_this_process(arguments: Sequence[str], log: Path) -> int:
    """The command line itself, without its start."""
    with pytest.MonkeyPatch.context() as patch, log.open("a") as file:
        patch.setattr(sys, "argv", ["cli.py", *arguments])
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                cli.main()
            except SystemExit as end:
                return int(end.code or 0)
    return 0


def nothing(arguments: Sequence[str], log: Path) -> int:
    raise AssertionError(f"ran {arguments}")


def write_config(path: Path, batch_real: int = 4, model: str = "DM", **init_args: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"class_path": "Digits", "init_args": {"batch_real": batch_real}}
    content = {"class_path": model, "init_args": {"ipc": 1, **init_args}}
    path.write_text(yaml.safe_dump({"model": content, "data": data, "trainer": {"max_steps": 2}}))
    return path


def cells(page: str) -> list[list[str]]:
    """The rows of the tables, without their headings."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0] != "method"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    write_config(tmp_path / "digits" / "bad_ipc1.yaml", ipc=0)
    arguments = ["--configs", "configs/digits/dm_ipc1.yaml", str(CONFIGS / "digits/dm_dam_ipc1.*")]
    arguments += [str(tmp_path / "digits" / "bad_*.yaml"), "--out", str(out)]
    arguments += [
        "--for",
        "dm",
        "--trainer.max_steps 2",
        "--",
        *TINY,
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    assert main(arguments, in_this_process) == 1
    printed = capsys.readouterr()
    page = (out / "table.md").read_text()
    assert printed.out == page
    assert "digits/bad_ipc1: fit failed after" in printed.err
    assert "ipc must be at least 1, got 0" in printed.err
    assert "ipc must be at least 1, got 0" in page
    assert [line for line in printed.err.splitlines() if line.endswith("begins")][1:5] == [
        f"digits/{name}: {stage} begins"
        for name in ("dm_ipc1", "dm_dam_ipc1")
        for stage in ("fit", "test")
    ]

    rows = {row[0]: row for row in cells(page)}
    assert list(rows) == ["random", "DM", "DM+DAM"]
    with (out / "ledger.csv").open() as file:
        ledger = list(csv.DictReader(file))
    kinds = [(row["method"], row["dam"]) for row in ledger]
    assert kinds == [("DM", "0"), ("DM", "4"), ("random", "0")]
    for name, row in zip(("DM", "DM+DAM", "random"), ledger, strict=True):
        accuracy = f"{float(row['accuracy']):.1f} ± 0.0"
        assert rows[name][1] == accuracy
        assert (rows[name][2], rows[name][4]) == ("-" if name == "random" else "2", "1")
    # Random images are judged by what came of class defaults, config and arguments together.
    (judged,) = (out / "digits").glob("random_ipc1_*/evaluate.yaml")
    recipe = yaml.safe_load(judged.read_text())["model"]["init_args"]["recipe"]
    assert (recipe["backbone_args"], recipe["epochs"]) == ({"width": 8}, 2)
    config = yaml.safe_load((CONFIGS / "digits/dm_ipc1.yaml").read_text())
    assert recipe["augmentation"] == config["model"]["init_args"]["augmentation"]

    # What is done is not done again, and comes to the same table.
    good = [word for word in arguments if "bad_" not in word]
    assert main(good, nothing) == 0
    assert cells(capsys.readouterr().out) == cells(page)
    # Nor is it mixed with anything else.
    assert main([*good, "--model.ipc", "2"], nothing) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(out / "digits" / "dm_ipc1") in printed.err
    assert "--model.ipc 2" in printed.err
    assert "another --out, or delete that folder" in printed.err


LOUD = """
from dam_lightning import DM

class Loud(DM):
    def __init__(self, ipc: int = 1) -> None:
        print("here I am")
        raise ValueError("far too loud")
"""


def test_a_process_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended it is told, and nothing keeps another try from other arguments."""
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    config = write_config(tmp_path / "digits" / "dm_ipc1.yaml", model="loud.Loud")
    out = tmp_path / "out"
    assert main(["--configs", str(config), "--out", str(out)]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    log = out / "digits" / "dm_ipc1" / "log.txt"
    assert log.read_text().startswith("$ python -m dam_lightning.cli fit --config")
    assert "here I am" in log.read_text()
    assert f"with status 1: error: far too loud (see {log})" in told
    assert told in (out / "table.md").read_text()
    write_config(config)
    assert main(["--configs", str(config), "--out", str(out)], Stand()) == 0


class Stand:
    """Stands in for the command line: notes its arguments and leaves what it would leave.

    Another command writes into the same ledger after each of its tests.

    Args:
        ends: is asked after the checkpoint of each fit, and may raise or give an exit status.
    """

    def __init__(self, ends: Callable[[Path], int] = lambda _: 0) -> None:
        self.runs: list[tuple[str, str]] = []
        self.checkpoints: list[str] = []
        self.steps: list[str | None] = []
        self.ends = ends

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        stage, *rest = arguments
        given = dict(zip(rest[::2], rest[1::2], strict=True))
        folder = Path(given["--trainer.default_root_dir"])
        config = yaml.safe_load(Path(given["--config"]).read_text())
        init_args = config["model"]["init_args"]
        self.runs.append((folder.name, stage))
        if "--ckpt_path" in given:
            self.checkpoints.append(given["--ckpt_path"])
        if stage == "fit":
            self.steps.append(given.get("--trainer.max_steps"))
            version = len(list(folder.glob("lightning_logs/*")))
            self._leave(folder / "lightning_logs" / f"version_{version}", config)
            return self.ends(folder)
        is_random = config["model"]["class_path"] == "Evaluation"
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "0")
        row |= {"method": "random" if is_random else "DM", "ipc": init_args["ipc"]}
        row |= {"accuracy": "12.34", "deviation": "0.56", "steps": "500", "networks": "3"}
        command = f"cli.py test --trainer.default_root_dir '{folder}'"
        append_row(given["--model.ledger"], {**row, "command": command})
        append_row(given["--model.ledger"], {**row, "command": f"{command}0", "accuracy": "99"})
        return 0

    def _leave(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        augmentation = config["model"]["init_args"].get("augmentation")
        # Of random images, the step size that a condensation learned makes no difference.
        learned = float(len(list(folder.parents[2].iterdir())))
        recipe = {"epochs": 3, "augmentation": augmentation, "lr": learned}
        names = ("version", "config", "fingerprint")
        metadata = {**dict.fromkeys(names), "mean": [0.0] * 3, "std": [1.0] * 3, "recipe": recipe}
        metadata |= {"method": "DM", "seed": 0}
        images, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64)
        condensed = CondensedSet(images, labels, {**metadata, "class_names": ["one"]})
        condensed.save(folder / "last.safetensors")
        trainer = dict.fromkeys(("accelerator", "strategy", "devices", "num_nodes"), "auto")
        whole = {**config, "seed_everything": 0, "trainer": trainer}
        (folder / "config.yaml").write_text(yaml.safe_dump(whole))
        (folder / "last.ckpt").touch()


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def interrupted(_: Path) -> int:
        raise KeyboardInterrupt

    config = write_config(tmp_path / "digits" / "dm_ipc1.yaml")
    arguments = ["--configs", str(config), "--out", str(tmp_path / "out")]
    folder = tmp_path / "out" / "digits" / "dm_ipc1"
    assert main(arguments, Stand(interrupted)) == 130
    assert "goes on from here" in capsys.readouterr().err

    # A checkpoint is worth as much as a result; that is told before anything else is run.
    first = str(write_config(tmp_path / "digits" / "a_ipc1.yaml"))
    changed = [arguments[0], first, *arguments[1:], "--", "--model.ipc", "2"]
    assert main(changed, nothing) == 1
    assert str(folder) in capsys.readouterr().err
    write_config(config, lr_images=2.0)
    assert main(arguments, nothing) == 1
    assert f"before {config} was changed" in capsys.readouterr().err
    write_config(config)

    # The time of a fit that was killed with the command is not known.
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "fits": [None]}))
    stand = Stand()
    assert main(arguments, stand) == 0
    assert stand.runs[:2] == [("dm_ipc1", "fit"), ("dm_ipc1", "test")]
    # Each from the newest checkpoint.
    versions = [Path(path).parent.name for path in stand.checkpoints]
    assert versions == ["version_0", "version_1"]
    assert cells(capsys.readouterr().out)[1] == ["DM", "12.3 ± 0.6", "500", "> 0", "3"]


def test_only_the_test_is_repeated_where_it_failed(tmp_path: Path) -> None:
    config = write_config(tmp_path / "digits" / "dm_ipc1.yaml")
    arguments = ["--configs", str(config), "--out", str(tmp_path / "out")]
    stand = Stand()

    def fails(words: Sequence[str], log: Path) -> int:
        return 1 if words[0] == "test" else stand(words, log)

    assert main(arguments, fails) == 1
    assert main(arguments, stand) == 0
    assert [stage for _, stage in stand.runs] == ["fit", "test", "test"]


def test_one_random_row_for_each_recipe(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "digits"
    for method, batch in (("dm_dam", 4), ("dm", 5)):
        for ipc in (10, 1):
            write_config(folder / f"{method}_ipc{ipc}.yaml", batch, ipc=ipc, augmentation="flip")
    write_config(folder / "dc_ipc1.yaml")
    (folder / "block.yaml").write_text("ipc: 1\n")
    stand = Stand()
    names = ("dm_dam_ipc10.yaml", "dm_dam_ipc1.yaml", "*.yaml")  # some twice, and in no order
    arguments = [
        "--configs",
        *(str(folder / name) for name in names),
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--for", "dc", "--trainer.max_steps 7", "--", "--trainer.max_steps", "9"]
    assert main(arguments, stand) == 0
    fitted = [name for name, stage in stand.runs if stage == "fit"]
    assert fitted == ["dc_ipc1", "dm_ipc1", "dm_ipc10", "dm_dam_ipc1", "dm_dam_ipc10"]
    assert stand.steps == ["7", "9", "9", "9", "9"]
    tested = [name.rpartition("_")[0] for name, _ in stand.runs if name.startswith("random")]
    assert tested == ["random_ipc1", "random_ipc1", "random_ipc10"]
    page = capsys.readouterr().out
    assert [row[0] for row in cells(page)] == [
        "random (augmentation: None)",
        "DM",
        "random (augmentation: flip)",
        "DM, dm",  # the stand-in calls them all DM
        "DM, dm_dam",
    ]
    assert [row[2] for row in cells(page)] == ["-", "-", *["12.3 ± 0.6"] * 3]


def test_tables() -> None:
    def result(config: str, dataset: str, ipc: int, **more: Any) -> Result:
        row = {"method": config.split("_")[0].upper(), "ipc": str(ipc), "dam": "0", "steps": "5"}
        row |= {"accuracy": f"{ipc}.26", "deviation": "0.50", "networks": "3"}
        fits = more.pop("fits", [float(ipc)])
        return Result(config, Terms(dataset, "{}"), {**row, **more}, fits)

    results = [
        result("dm", "digits", 10),
        result("dm", "digits", 1),
        result("dm_dam", "digits", 10, dam="4", fits=[2.0, 3.0], networks="5"),
        result("dm", "pacs", 1, steps="6"),
        result(RANDOM, "digits", 1, method="random", fits=[]),
    ]
    assert tables(results) == "\n".join(
        [
            "## digits",
            "",
            "| method | ipc 1 | ipc 10 | steps | fit, s | networks |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            "| random | 1.3 ± 0.5 | - | - | - | 3 |",
            "| DM | 1.3 ± 0.5 | 10.3 ± 0.5 | 5 | 1 / 10 | 3 |",
            "| DM+DAM | - | 10.3 ± 0.5 | 5 | 5 | 5 |",
            "",
            "## pacs",
            "",
            "| method | ipc 1 | steps | fit, s | networks |",
            "| --- | ---: | ---: | ---: | ---: |",
            "| DM | 1.3 ± 0.5 | 6 | 1 | 3 |",
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configs", "no/such.yaml"], "no YAML file with a model at no/such.yaml"),
        (["--configs", "digits/dm_ipc1.yaml", "--for", "d", "-x 1"], "no config of this name"),
        (["--configs", "digits/dm_ipc1.yaml", "--for", "dm", "--config x"], "--config: each run"),
        (
            ["--configs", "digits/dm_ipc1.yaml", "--", "--model.ledger=l"],
            "--model.ledger=l: each run",
        ),
        (["--configs", "a.yaml", "--frequency", "1"], "unrecognized arguments: --frequency 1"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--out", str(tmp_path / "out"), *arguments], nothing)
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_two_configs_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("a", "b"):
        write_config(tmp_path / folder / "digits" / "dm_ipc1.yaml")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--configs", str(tmp_path / "*/digits/*")], nothing)
    assert "several files are called digits/dm_ipc1" in capsys.readouterr().err


def test_an_output_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    arguments = ["--configs", "digits/dm_ipc1.yaml", "--out", str(tmp_path / "file")]
    assert main(arguments, nothing) == 1
    assert "file" in capsys.readouterr().err
