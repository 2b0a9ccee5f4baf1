"""The command that compares pseudo-domains with true domains."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import dam_lightning.data
from benchmarks.pseudo_domains import LABELLINGS, main
from dam_lightning.data.agreement import domain_agreement
from tests.data.test_pseudo_labels import Single
from tests.tiny import TinyData, tiny_data


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dam_lightning.data, "TinyData", TinyData, raising=False)
    monkeypatch.setattr(dam_lightning.data, "Single", Single, raising=False)


def test_it_prints_the_agreement_of_each_and_leaves_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    main(["--data", "TinyData", "--out", str(tmp_path / "out"), "--num-domains", "3", *cache])
    printed = capsys.readouterr().out
    names = [path.stem for path in (tmp_path / "out").iterdir()]
    assert sorted(names) == sorted(
        labels if labels == "random" else f"{labels}_{grouping}" for labels, grouping in LABELLINGS
    )
    for path in (tmp_path / "out").iterdir():
        assert Image.open(path).size[0] > 500
    for labels, grouping in LABELLINGS:
        data = tiny_data(tmp_path, pseudo_labels=labels, pseudo_grouping=grouping)
        data.setup_domains(3)
        assert isinstance(data.pseudo_domains, torch.Tensor)
        found = domain_agreement(data.pseudo_domains, data.train.domains, 3, data.domain_names)
        line = f"| {data.pseudo_labelling.description} | {found.ari:z.3f} | {found.nmi:z.3f} |"
        assert line in printed
        assert found.markdown() in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "Nothing"], "dam_lightning.data has no data module 'Nothing'"),
        (["--data", "Split"], "dam_lightning.data has no data module 'Split'"),
        (["--data", "Single"], "a single domain: there is nothing to compare with"),
        (["--data", "TinyData", "--num-domains", "99"], "99 pseudo-domains cannot be made of 33"),
        (["--data", "PACS", "--root", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path), "--cache-dir", str(tmp_path / "cache")])
    assert ended.value.code not in (0, None)
    text = capsys.readouterr().err.strip() or str(ended.value.code)
    assert message in text
    assert "\n" not in text
