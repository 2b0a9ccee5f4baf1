"""Which domains take part: the settings of the paper."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dam_lightning import DM, Evaluation
from dam_lightning.cli import main
from dam_lightning.data import Digits, Split
from dam_lightning.data.digits import STYLES
from tests.tiny import SMALL_NETWORK, SMALL_RECIPE, TinyData, tiny_data, tiny_trainer


def counts(split: Split | None) -> list[int]:
    assert split is not None
    return torch.bincount(split.domains, minlength=len(STYLES)).tolist()


def digits(folder: Path, **options: Any) -> Digits:
    data = Digits(cache_dir=str(folder / "cache"), **options)
    data.setup()
    return data


def test_all_domains_are_used_unless_others_are_chosen(tmp_path: Path) -> None:
    data = digits(tmp_path)
    assert counts(data.train) == [1438] * 4
    assert counts(data.test) == [359] * 4
    chosen = digits(tmp_path, train_domains=list(STYLES), test_domains=list(STYLES))
    assert chosen.fingerprint == data.fingerprint
    assert torch.equal(chosen.train.images, data.train.images)


def test_single_domain(tmp_path: Path) -> None:
    data = digits(tmp_path, train_domains=["neon"], test_domains=["neon"], validation_share=0.1)
    number = STYLES.index("neon")
    train, val, test = counts(data.train), counts(data.val), counts(data.test)
    assert train[number] + val[number] == sum(train) + sum(val) == 1438
    assert test == [359 * (style == number) for style in range(4)]
    whole = digits(tmp_path)
    assert data.domain_names == whole.domain_names
    assert data.fingerprint != whole.fingerprint
    mine = whole.test.domains == number
    assert torch.equal(data.test.images, whole.test.images[mine])
    assert torch.equal(data.test.labels, whole.test.labels[mine])


def test_several_domains_tested_on_one(tmp_path: Path) -> None:
    data = digits(tmp_path, test_domains=["chalk"])
    assert counts(data.train) == [1438] * 4
    assert counts(data.test) == [359 * (style == "chalk") for style in STYLES]
    assert data.fingerprint == digits(tmp_path).fingerprint


@pytest.mark.parametrize("part", ["all", "test"])
def test_leave_one_domain_out(tmp_path: Path, part: str) -> None:
    data = digits(tmp_path, left_out_domain="ink", left_out_part=part)
    assert counts(data.train) == [1438 * (style != "ink") for style in STYLES]
    tested = 1797 if part == "all" else 359
    assert counts(data.test) == [tested * (style == "ink") for style in STYLES]
    whole = digits(tmp_path)
    paths = {path for split in (whole.train, whole.test) for path in split.paths}
    if part == "all":
        assert set(data.test.paths) == {path for path in paths if path.startswith("ink/")}
    assert not {path for path in data.train.paths if path.startswith("ink/")}
    assert len(data.test.images) == len(data.test.labels) == tested


def test_a_choice_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    found = {digits(tmp_path, left_out_domain=style).fingerprint for style in STYLES}
    found |= {digits(tmp_path, train_domains=[style]).fingerprint for style in STYLES}
    found.add(digits(tmp_path).fingerprint)
    assert len(found) == 9
    twice = [digits(tmp_path, train_domains=["ink", "chalk"]).fingerprint for _ in range(2)]
    assert twice[0] == twice[1]
    same = digits(tmp_path, train_domains=["chalk", "ink"])
    assert same.fingerprint == twice[0]


class Changed(TinyData):
    """The same but for the images of the domain "stripes", which are others."""

    def load_splits(self) -> dict[str, Split]:
        splits = dict(super().load_splits())
        for split in splits.values():
            split.images[split.domains == 1] ^= 0xFF
        return splits


def condensed(folder: Path, data: TinyData) -> dict[str, Any]:
    """Everything that training images could have left a trace in."""
    module = DM(
        ipc=1,
        dam={"num_domains": 2},
        init="real",
        backbone_args=SMALL_NETWORK,
        recipe=SMALL_RECIPE,
        seed=0,
    )
    tiny_trainer(folder, max_steps=3, enable_checkpointing=False).fit(module, datamodule=data)
    result = module.condensed_set()
    assert module.dam is not None
    assert data.pseudo_domains is not None
    whitening = data.whitening
    return {
        "images": result.images,
        "masks": module.dam.logits.detach(),
        "pseudo-domains": data.pseudo_domains,
        "mean": torch.tensor(data.mean),
        "std": torch.tensor(data.std),
        "whitening": torch.tensor([]) if whitening is None else whitening.matrix,
        "training images": data.train.images,
    }


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("choice", [{"left_out_domain": "stripes"}, {"train_domains": ["plain"]}])
def test_no_image_of_a_domain_that_is_left_out_has_any_effect(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: dict[str, Any],
    measured: bool,
    zca: bool,
) -> None:
    """Its images are replaced by others, and nothing changes in the least."""
    if measured:
        monkeypatch.delattr(TinyData, "mean")
        monkeypatch.delattr(TinyData, "std")
    options = {**choice, "zca": zca, "seed": 0, "batch_real": 6}
    results = [
        condensed(tmp_path / name, kind(cache_dir=str(tmp_path / name), **options))
        for name, kind in (("as it is", TinyData), ("changed", Changed))
    ]
    for name, found in results[0].items():
        assert torch.equal(found, results[1][name]), name
    # With it they would.
    with_all = condensed(tmp_path / "all", TinyData(cache_dir=str(tmp_path), seed=0, zca=zca))
    assert not torch.equal(with_all["images"], results[0]["images"])


def test_only_what_is_chosen_is_tested_on(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, left_out_domain="stripes", seed=0)
    evaluation = Evaluation(
        "random", ipc=1, recipe={**SMALL_RECIPE, "backbone_args": SMALL_NETWORK}, seed=0
    )
    (logged,) = tiny_trainer(tmp_path).test(evaluation, datamodule=data, verbose=False)
    assert "test/domain/stripes" in logged
    assert "test/domain/plain" not in logged
    assert logged["test/worst_domain"] == pytest.approx(logged["test/accuracy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_domains": ["photo"]}, "no domain 'photo': give train_domains of plain, stripes"),
        ({"test_domains": ["photo"]}, "no domain 'photo': give test_domains of plain, stripes"),
        ({"left_out_domain": "photo"}, "no domain 'photo': give left_out_domain of plain, stripes"),
        ({"train_domains": []}, "train_domains is empty: give train_domains of plain, stripes"),
        (
            {"left_out_domain": "plain", "test_domains": ["plain"]},
            "leave out train_domains and test_domains",
        ),
        ({"left_out_part": "test"}, "left_out_part is of left_out_domain"),
        ({"left_out_domain": "plain", "left_out_part": "val"}, "must be all or test, got 'val'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_data(tmp_path, **options)


def test_the_only_domain_cannot_be_left_out(tmp_path: Path) -> None:
    class One(TinyData):
        domain_names = ("all",)

        def load_splits(self) -> dict[str, Split]:
            splits = dict(super().load_splits())
            for split in splits.values():
                split.domains.zero_()
            return splits

    data = One(cache_dir=str(tmp_path), left_out_domain="all")
    with pytest.raises(ValueError, match="the only domain, 'all', cannot be left out"):
        data.setup()


def test_a_class_that_is_only_in_the_domain_left_out_is_named(tmp_path: Path) -> None:
    class Uneven(TinyData):
        def load_splits(self) -> dict[str, Split]:
            splits = dict(super().load_splits())
            splits["train"].domains[splits["train"].labels == 2] = 1
            return splits

    with pytest.raises(ValueError, match="chosen domains have no training images of cow: choose"):
        Uneven(cache_dir=str(tmp_path), left_out_domain="stripes").setup()


@pytest.mark.parametrize("written", ["stripes", "[stripes]"])
def test_one_domain_needs_no_brackets_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, written: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    arguments = ["fit", "--model", "DM", "--data", "tests.tiny.TinyData", "--print_config"]
    with pytest.raises(SystemExit):
        main([*arguments, "--data.train_domains", written])
    config = yaml.safe_load(capsys.readouterr().out)
    chosen = config["data"]["init_args"]["train_domains"]
    data = TinyData(cache_dir=str(tmp_path), train_domains=chosen)
    data.setup()
    assert set(data.train.domains.tolist()) == {1}


def test_what_was_chosen_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.data.base.rank_zero_info", said.append)
    tiny_data(tmp_path)
    assert said == []
    tiny_data(tmp_path, left_out_domain="plain")
    assert said == ["16 training images of stripes; 23 test images of plain."]


def test_a_checkpoint_that_is_tested_with_another_choice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"backbone_args": SMALL_NETWORK, "recipe": SMALL_RECIPE, "seed": 0}
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.fit(DM(ipc=1, **options), datamodule=tiny_data(tmp_path, left_out_domain="plain"))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    said: list[str] = []
    monkeypatch.setattr("dam_lightning.methods.base.rank_zero_info", said.append)
    for chosen, told in (({"left_out_domain": "plain"}, False), ({}, True)):
        said.clear()
        tiny_trainer(tmp_path).test(
            DM(ipc=1, **options),
            datamodule=tiny_data(tmp_path, **chosen),
            ckpt_path=tmp_path / "x.ckpt",
            verbose=False,
        )
        assert any("test images may be among them" in line for line in said) == told
