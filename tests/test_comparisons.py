"""The command that compares variants of the method on validation images."""

import csv
import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from benchmarks import comparisons
from benchmarks.comparison_questions import QUESTIONS, Variant, questions
from benchmarks.comparison_run import run
from benchmarks.comparison_settings import Settings, check_base, resolved, settings_of
from benchmarks.comparison_store import Store
from benchmarks.comparison_table import paired_difference, table, verdict
from benchmarks.comparisons import main
from dam_lightning import CondensedSet, cli
from dam_lightning.data import Split
from tests.tiny import TinyData

BASE = Variant("base")
BASELINE = Variant("random real images", baseline="random")
RANDOM = Variant("random labels", {"data.pseudo_labels": "random"})


class Unread(Split):
    """Images that cannot be read once they are in their place."""

    is_there = False

    def __getattribute__(self, name: str) -> Any:
        if name.endswith("images") and object.__getattribute__(self, "is_there"):
            raise AssertionError("test images were read")
        return super().__getattribute__(name)

    def to(self, device: torch.device) -> Split:
        self.is_there = True
        return self


class UnreadTest(TinyData):
    """Its test images cannot be read."""

    def load_splits(self) -> Mapping[str, Split]:
        splits = super().load_splits()
        test = splits["test"]
        return {**splits, "test": Unread(test.images, test.labels, test.domains, test.paths)}


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    """DM+DAM on images of 16x16, two steps, two networks."""
    model = {
        "ipc": 1,
        "dam": {"num_domains": 2},
        "backbone": "ConvNet",
        "backbone_args": {"width": 4, "depth": 2},
        "lr_images": 1.0,
        "lr_masks": None,
        "augmentation": "color_crop",
        "augment_views": True,
        "recipe": {"num_networks": 2, "epochs": 2},
        "seed": None,
    }
    data = {
        "validation_share": 0.4,
        "pseudo_labels": "fft",
        "pseudo_scope": "global",
        "fft_ratio": 0.1,
        "fft_window": "half_width",
        "cache_dir": str(tmp_path / "cache"),
        "seed": None,
    }
    return {
        "model": {"class_path": "dam_lightning.DM", "init_args": model},
        "data": {"class_path": "tests.test_comparisons.UnreadTest", "init_args": data},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "logger": None},
    }


# The questions.


def test_every_variant_has_settings_of_its_own(base: dict[str, Any]) -> None:
    known = questions(lr_images=0.5)
    assert tuple(known) == QUESTIONS
    names: dict[str, list[str]] = {}
    for question in known.values():
        check_base(base, question.base)
        for variant in question.others:
            name = f"{question.name}: {variant.name}"
            names.setdefault(settings_of(base, variant, 0).key, []).append(name)
    shared = [of for of in names.values() if len(of) > 1]
    assert shared == [["labels: random", "gain: with DAM, random labels"]]
    assert settings_of(base, BASE, 0).key not in names
    assert len(names) == 19


def test_settings(base: dict[str, Any]) -> None:
    known = questions(lr_images=0.5)
    untouched = settings_of(base, BASE, 3)
    assert untouched.model["init_args"] == {**base["model"]["init_args"], "seed": 3}
    assert untouched.data["init_args"] == {**base["data"]["init_args"], "seed": 3}
    assert "logger" not in untouched.trainer
    step_sizes = [
        settings_of(base, variant, 0).model["init_args"]["lr_masks"]
        for variant in known["mask_lr"].others
    ]
    assert step_sizes == pytest.approx([0.05, 5, 50])
    masks = settings_of(base, known["masks"].others[1], 0).model["init_args"]["dam"]
    assert masks == {"num_domains": 2, "init": "normal", "init_value": 0.1}
    assert settings_of(base, known["gain"].others[0], 0).model["init_args"]["dam"] is None
    area = settings_of(base, known["window"].others[3], 0).data["init_args"]
    assert (area["fft_window"], area["fft_ratio"]) == ("area", 0.1)
    # Real images are judged by the recipe of the condensed ones.
    model = settings_of(base, BASELINE, 0).model
    assert model["class_path"] == "dam_lightning.Evaluation"
    recipe = model["init_args"]["recipe"]
    assert (model["init_args"]["ipc"], recipe["num_networks"], recipe["epochs"]) == (1, 2, 2)
    assert recipe["augmentation"] == "color_crop"
    assert recipe["backbone_args"] == {"width": 4, "depth": 2}
    # Nothing of all this went into the base.
    assert settings_of(base, BASE, 3) == untouched
    # Everything makes another run.
    others = [
        settings_of(base, BASE, 4),
        settings_of(base, RANDOM, 3),
        settings_of({**base, "trainer": {**base["trainer"], "max_steps": 3}}, BASE, 3),
        replace(untouched, threads=untouched.threads + 1),
        replace(untouched, versions={**untouched.versions, "torch": "1.0"}),
    ]
    assert len({settings.key for settings in (untouched, *others)}) == 6


@pytest.mark.parametrize(
    ("part", "option", "value", "question"),
    [
        ("data", "fft_ratio", 0.2, "window"),
        ("data", "pseudo_scope", "class", "scope"),
        ("model", "lr_masks", 0.5, "mask_lr"),
        ("model", "dam", {"init_value": 0.1}, "masks"),
    ],
)
def test_a_base_is_what_its_name_says(
    base: dict[str, Any], part: str, option: str, value: object, question: str
) -> None:
    base[part]["init_args"][option] = value
    with pytest.raises(ValueError, match=r"but its question compares with .*: leave it out"):
        check_base(base, questions(1.0)[question].base)


def test_nothing_is_asked_of_an_augmentation_that_is_not_there(base: dict[str, Any]) -> None:
    base["model"]["init_args"] |= {"augmentation": None, "augment_views": True}
    with pytest.raises(ValueError, match=r"would compare equals: leave it out \(--questions\)"):
        check_base(base, questions(1.0)["augmentation"].base)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data.validation_share", None, "hold some training images out, with --data.valid"),
        ("model.dam", None, "the base is with DAM"),
        ("model.seed", 1, "model.seed is given: leave it out, and name the seeds by --seeds"),
        ("data.seed", 1, "data.seed is given"),
        ("trainer.callbacks", [{"class_path": "FinalEvaluation"}], "have no trainer.callbacks: l"),
        ("trainer.limit_val_batches", 0, "runs have no trainer.limit_val_batches: leave it out"),
        ("trainer.fast_dev_run", True, "runs have no trainer.fast_dev_run: leave it out"),
        ("model.ledger", "ledger.csv", "runs have no model.ledger: leave it out"),
        ("model.class_path", "dam_lightning.Evaluation", "dam_lightning.Evaluation condenses noth"),
    ],
)
def test_what_makes_no_comparison(
    base: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: object,
    message: str,
) -> None:
    base["trainer"] |= dict.fromkeys(("callbacks", "plugins", "profiler", "limit_val_batches"))
    base["trainer"]["fast_dev_run"] = False
    part, name = option.split(".")
    if name == "class_path":
        base["model"] = {"class_path": value, "init_args": {"condensed": "random"}}
    else:
        (base[part] if part == "trainer" else base[part]["init_args"])[name] = value

    def print_config(_: object) -> None:
        print(yaml.safe_dump(base))
        raise SystemExit(0)

    monkeypatch.setattr(cli, "main", print_config)
    with pytest.raises(ValueError, match=message):
        resolved("config.yaml", [])


# A run.


@pytest.mark.parametrize("variant", [BASE, BASELINE], ids=lambda variant: variant.name)
def test_a_run_is_that_of_the_command_line(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Digits, by a shipped config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    options = ["--data.batch_real", "4", "--data.validation_share", "0.2"]
    options += ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.accelerator", "cpu"]
    condensing = ["--trainer.max_steps", "2", "--model.backbone_args.width", "4"]
    condensing += ["--model.recipe.num_networks", "2", "--model.recipe.epochs", "2"]
    config = "digits/dm_dam_ipc1.yaml"
    base = resolved(config, [*options, *condensing])
    found = run(settings_of(base, variant, 7))

    options += ["--seed_everything", "7"]
    if variant is BASE:
        fit = ["--config", config, *options, *condensing]
        cli.main(["fit", *fit, "--trainer.limit_val_batches", "0"])
        (folder,) = Path("lightning_logs").iterdir()
        images = CondensedSet.load(folder / "condensed.safetensors").images
        digest = hashlib.blake2b(images.numpy().tobytes(), digest_size=16).hexdigest()
        assert found["images"] == digest
        cli.main(["validate", *fit, "--ckpt_path", str(folder / "last.ckpt")])
    else:
        recipe = settings_of(base, variant, 7).model["init_args"]["recipe"]
        evaluated = ["--config", "evaluate/baseline.yaml", "--model.condensed", "random"]
        evaluated += ["--model.recipe", json.dumps(recipe), "--model.ipc", "1", "--data", "Digits"]
        cli.main(["validate", *evaluated, *options])
        assert found["images"] is None
    newest = max(Path("lightning_logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with (newest / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert len(found["accuracy"]) == len(found["worst_domain"]) == 2
    assert np.mean(found["accuracy"]) == pytest.approx(float(row["val/accuracy"]), abs=1e-4)
    assert np.mean(found["worst_domain"]) == pytest.approx(float(row["val/worst_domain"]), abs=1e-4)
    for name, accuracies in found["domains"].items():
        figure = float(row[f"val/domain/{name}"])
        assert np.mean(accuracies) == pytest.approx(figure, abs=1e-4)
    assert list(found["domains"]) == ["ink", "chalk", "neon", "stitch"]


def state() -> dict[str, object]:
    """What a run might leave behind."""
    loggers = [
        logging.getLogger(name)
        for name in (
            "",
            "lightning",
            "lightning.pytorch",
            "lightning.fabric",
            "lightning.pytorch.utilities.rank_zero",
        )
    ]
    return {
        "environment": dict(os.environ),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "handlers": [list(logger.handlers) for logger in loggers],
        "levels": [logger.level for logger in loggers],
        "filters": [list(logger.filters) for logger in loggers],
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "stdout": sys.stdout,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "warnings": list(warnings.filters),
        "folder": sorted(Path.cwd().iterdir()),
    }


def test_runs_leave_nothing_to_the_next(
    base: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    normal = Variant("normal", {"model.dam.init": "normal"})
    # Made before it is looked for, by the first who needs it.
    (tmp_path / "cache").mkdir()
    before = state()
    first = run(settings_of(base, normal, 0))
    assert state() == before
    second = run(settings_of(base, BASE, 1))
    assert state() == before
    torch.manual_seed(123)
    third = run(settings_of(base, BASELINE, 0))
    fourth = run(settings_of(base, normal, 0))
    torch.manual_seed(4)
    for name in ("images", "accuracy", "worst_domain", "domains"):
        assert first[name] == fourth[name]
    assert len({first["images"], second["images"], third["images"]}) == 3
    assert capfd.readouterr().out == ""


# The tables.


def result(*accuracies: float) -> dict[str, Any]:
    return {"accuracy": list(accuracies), "worst_domain": [value / 2 for value in accuracies]}


def test_paired_difference() -> None:
    """By hand: differences 1, 2 and 3 have the standard deviation 1; t(0.975, 2) is 4.3027."""
    base = {2: 32.0, 0: 30.0, 1: 31.0, 7: 0.0}
    difference = paired_difference({0: 31.0, 9: 50.0, 1: 33.0, 2: 35.0}, base)
    assert difference is not None
    assert difference.mean == pytest.approx(2)
    assert difference.interval == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert verdict(difference) == "interval includes 0: no difference seen"
    # The interval is 2.484 either way.
    for shift, said in ((0.5, "above"), (0.4, "interval includes 0: no difference seen")):
        shifted = {seed: value + shift for seed, value in {0: 31.0, 1: 33.0, 2: 35.0}.items()}
        assert verdict(paired_difference(shifted, base)) == said
        mirrored = {seed: 2 * base[seed] - value for seed, value in shifted.items()}
        assert verdict(paired_difference(mirrored, base)) == said.replace("above", "below")
    assert verdict(paired_difference({0: 31.0}, base)) == "no interval"
    assert paired_difference({3: 31.0}, base) is None
    assert verdict(None) == "no interval"


def test_table() -> None:
    question = questions(1.0)["masks"]
    base = {0: result(30, 32), 1: result(33), 2: result(34)}
    first = {0: result(32, 32), 1: result(35), 2: result(37)}
    lines = table(question, base, [first, {1: result(20)}]).splitlines()
    assert lines[0] == "## masks: How do masks begin?"
    assert lines[4:] == [
        "| constant 0.01 (base) | 32.7 | 16.3 |  | 0 1 2 |  |",
        "| normal, std 0.01 | 34.7 | 17.3 | +2.00 ± 2.48 | 0 1 2 "
        "| interval includes 0: no difference seen |",
        "| normal, std 0.1 | 20.0 | 10.0 | -13.00 | 1 | no interval |",
    ]


# The command.


class Stand:
    """Stands in for a run: notes its settings and makes up its figures.

    Args:
        ends: is asked before each run, with the number of those before it, and may raise.
    """

    def __init__(self, ends: Callable[[int], None] = lambda _: None) -> None:
        self.made: list[Settings] = []
        self.ends = ends

    def __call__(self, settings: Settings) -> dict[str, Any]:
        self.ends(len(self.made))
        self.made.append(settings)
        return result(settings.data["init_args"]["seed"] + 10.0)


@pytest.fixture
def command(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(comparisons, "resolved", lambda config, options: base)
    return ["--out", str(tmp_path / "out"), "--questions", "scope", "labels", "--seeds", "0", "1"]


def test_sigterm_ends_the_command(command: list[str]) -> None:
    def ended(number: int) -> None:
        if number == 3:
            raise SIGTERMException

    first = Stand(ended)
    assert main(command, first) == 143
    assert len(first.made) == 3


# Lightning makes the second of the first.
@pytest.mark.parametrize("by", [KeyboardInterrupt(), SystemExit(1)], ids=["Ctrl+C", "in a fit"])
def test_an_interrupted_command_goes_on(
    by: BaseException, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(number: int) -> None:
        if number == 3:
            raise by

    out = tmp_path / "out"
    first = Stand(interrupted)
    assert main(command, first) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert len(first.made) == len(list(out.glob("*.json"))) == 3
    second = Stand()
    assert main(command, second) == 0
    printed = capsys.readouterr()
    assert "12 runs, 9 of them to be made" in printed.err
    assert "| global (base) | 10.5 | 5.2 |  | 0 1 |  |" in printed.out
    # The base is that of both questions, and seeds come in turn.
    assert len({settings.key for settings in first.made + second.made}) == 12
    seeds = [settings.data["init_args"]["seed"] for settings in first.made + second.made]
    assert seeds == [0] * 6 + [1] * 6
    # No claim is left, and every file tells its run.
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{settings.key}.json" for settings in first.made + second.made
    )
    for settings in first.made:
        kept = json.loads((out / f"{settings.key}.json").read_text())
        assert kept["settings"] == asdict(settings)
        assert kept["accuracy"] == [10.0]
    third = Stand()
    assert main(command, third) == 0
    assert third.made == []
    assert capsys.readouterr().out == printed.out


def test_a_run_that_fails(command: list[str], capsys: pytest.CaptureFixture) -> None:
    """Is told, keeps nothing else from being made, and is tried again."""

    def failing(number: int) -> None:
        if number == 1:
            stand.ends = lambda _: None
            raise ValueError("far\ntoo bad")

    stand = Stand(failing)
    assert main(command, stand) == 1
    printed = capsys.readouterr()
    assert len(stand.made) == 11
    assert printed.out.endswith("Failed:\n\n- scope: class, seed 0: far too bad\n")
    assert "| class | 11.0 | 5.5 | +0.00 | 1 | no interval |" in printed.out
    again = Stand()
    assert main(command, again) == 0
    assert len(again.made) == 1


def test_a_run_of_another_process_is_left_to_it(
    command: list[str], base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = settings_of(base, BASE, 1)
    context = multiprocessing.get_context("fork")
    has_it = context.Event()

    def hold() -> None:
        with Store(tmp_path / "out").claimed(settings) as is_mine:
            assert is_mine
            has_it.set()
            time.sleep(600)

    other = context.Process(target=hold)
    other.start()
    assert has_it.wait(60)
    stand = Stand()
    assert main(command, stand) == 1
    printed = capsys.readouterr()
    assert len(stand.made) == 11
    assert settings not in stand.made
    assert "1 runs are being made by another process" in printed.err
    assert "| global (base) | 10.0 | 5.0 |  | 0 |  |" in printed.out
    # Whoever is killed loses the claim.
    other.kill()
    other.join()
    assert main(command, stand) == 0
    assert stand.made[11:] == [settings]


def test_two_processes_share_the_runs(command: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    # Passed only when both make a run at the same time.
    both = context.Barrier(2, timeout=60)

    def work() -> None:
        def make(settings: Settings) -> dict[str, Any]:
            with (tmp_path / "made").open("a") as file:
                file.write(f"{settings.key}\n")
            if not met:
                met.append(both.wait())
            return result(1.0)

        met: list[int] = []
        sys.exit(main(command, make))

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} <= {0, 1}
    made = (tmp_path / "made").read_text().splitlines()
    assert len(made) == len(set(made)) == 12
    assert len(list((tmp_path / "out").glob("*.json"))) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "o", "--questions", "colour"], "invalid choice: 'colour'"),
        (["--out", "o", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["--out", "o", "--seeds", "-1"], "--seeds must be 0 or above, got -1"),
        (["--out", "o", "--", "--seed_everything", "1"], "name the seeds by --seeds"),
    ],
)
def test_arguments_that_are_no_good(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments, Stand())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_threads(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1])
    stand = Stand()
    assert main([*command, "--threads", "3"], stand) == 0
    assert told == [3]
    assert {settings.threads for settings in stand.made} == {3}
    # Those of other threads are not mixed in.
    assert main([*command, "--threads", "2"], stand) == 0
    assert len(stand.made) == 24


def test_a_base_that_is_no_good(
    command: list[str], base: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    base["data"]["init_args"]["pseudo_labels"] = "random"
    stand = Stand()
    assert main(command, stand) == 1
    assert stand.made == []
    assert "data.pseudo_labels is random, but its question" in capsys.readouterr().err


def test_a_damaged_result_is_named(base: dict[str, Any], tmp_path: Path) -> None:
    store, asked = Store(tmp_path / "results"), settings_of(base, BASE, 0)
    store.write(asked, {"accuracies": [1.0]})
    (path,) = store.folder.glob("*.json")
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path.name} is no result.*delete it, and the run is"):
        store.read(asked)
