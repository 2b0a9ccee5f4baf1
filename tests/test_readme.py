"""The README's Python runs, and its commands name files that are there."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from dam_lightning import CondensedSet, Condenser
from tests.data.test_image_folder import fill, one_domain
from tests.tiny import tiny_data, tiny_trainer

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, with fewer steps and a smaller network."""
    monkeypatch.chdir(tmp_path)
    trainer_class, steps = L.Trainer, 2

    def short(**options: Any) -> L.Trainer:
        assert options == {"max_steps": 500}
        return tiny_trainer(tmp_path, max_steps=steps)

    from dam_lightning import DM, Digits

    start = DM(num_classes=3, image_shape=(3, 16, 16))
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    noise = start.condensed_set()
    named = {**noise.metadata, "class_names": ["cat", "dog", "owl"]}
    CondensedSet(noise.images, noise.labels, named).save(
        "lightning_logs/version_0/condensed.safetensors"
    )
    fill(tmp_path / "my_images" / "photos", one_domain(4))
    monkeypatch.setattr(L, "Trainer", short)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        code = block.replace('{"width": 32}', '{"width": 4}').replace("range(300)", "range(3)")
        code = code.replace("batch_real=64", "batch_real=4")
        exec(compile(code, "README.md", "exec"), namespace)
    monkeypatch.setattr(L, "Trainer", trainer_class)
    assert isinstance(namespace["condensed"], CondensedSet)
    assert namespace["condensed"].metadata["dam"] == 4
    assert len(list((tmp_path / "condensed_images").rglob("*.png"))) == 3
    assert namespace["real"].class_to_idx == {"cat": 0, "dog": 1, "owl": 2}
    assert 0 <= namespace["correct"] <= len(namespace["real"]) == 12
    assert namespace["views"].shape == (4, 10, 3, 32, 32)
    assert namespace["Digits"] is Digits

    # A method of one's own: DAM, the Trainer and the condensed set work with it.
    method = namespace["MeanPixel"](ipc=1, dam={"num_domains": 2}, augmentation=None)
    assert isinstance(method, Condenser)
    before = None
    for count in (1, 30):
        trainer = tiny_trainer(tmp_path, max_steps=count)
        trainer.fit(method, datamodule=tiny_data(tmp_path))
        loss = float(trainer.callback_metrics["loss"])
        assert before is None or loss < before / 2
        before = loss

    noise = namespace["Noise"](batch_real=4, cache_dir=str(tmp_path / "cache"))
    fitted = DM(backbone_args={"width": 4}, dam={})
    tiny_trainer(tmp_path, max_steps=2).fit(fitted, datamodule=noise)
    assert fitted.condensed_set().class_names == ["dark", "bright"]


def test_files_that_the_readme_names_exist() -> None:
    names = set(re.findall(r"configs/[\w/]+\.yaml|docs/\w+\.png|CITATION\.cff", README))
    names |= {
        f"configs/{name}"
        for name in re.findall(r"--config (?!configs/|lightning_logs/)(\S+)", README)
    }
    assert len(names) >= 6
    for name in names:
        assert (REPOSITORY / name).exists(), name
