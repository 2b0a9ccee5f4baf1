"""Files and configurations as nobody would write them: refused in words, at once, every one."""

import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer

from dam_lightning import CondensedSet
from dam_lightning.cli import main

COUNT = 10_000
Header = dict[str, Any]


class Fuzzer:
    """Spoils an intact file, each time in another way.

    Args:
        content: of the file.
        seed: of all draws.
    """

    def __init__(self, content: bytes, seed: int) -> None:
        (size,) = struct.unpack("<Q", content[:8])
        self._content = content
        self._header, self._body = content[8 : 8 + size], content[8 + size :]
        self._draws = np.random.default_rng(seed)
        self._ways: list[Callable[[], bytes]] = [
            self._cut,
            self._other_length,
            self._random_header,
            self._without,
            self._other_type,
            self._other_shape,
            self._other_place,
            self._other_metadata,
            self._other_provenance,
            self._not_finite,
            self._nested,
        ]

    def __call__(self) -> bytes:
        """A file that must not load."""
        return self._ways[self._draws.integers(len(self._ways))]()

    def _number(self) -> Any:
        """Small, large, negative, and no number at all."""
        kinds: list[Callable[[], Any]] = [
            lambda: int(self._draws.integers(5)) + 50,
            lambda: int(self._draws.integers(2**63)),
            lambda: -int(self._draws.integers(2**63)),
            lambda: 2 ** int(self._draws.integers(64, 2000)),
            lambda: float(self._draws.normal()),
            lambda: None,
            lambda: "3",
            lambda: [],
            lambda: {"a": 1},
        ]
        return kinds[self._draws.integers(len(kinds))]()

    def _of(self, header: Header | bytes, body: bytes | None = None) -> bytes:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + (self._body if body is None else body)

    def _parsed(self) -> Header:
        """Without the checksum, by which anything would be found."""
        parsed: Header = json.loads(self._header)
        del parsed["__metadata__"]["checksum"]
        return parsed

    def _tensor(self, header: Header) -> Header:
        tensor: Header = header[str(self._draws.choice(["images", "labels"]))]
        return tensor

    def _cut(self) -> bytes:
        return self._content[: self._draws.integers(len(self._content))]

    def _other_length(self) -> bytes:
        wrong = int(self._draws.integers(2 ** int(self._draws.integers(1, 64))))
        wrong += wrong == len(self._header)
        return struct.pack("<Q", wrong) + self._content[8:]

    def _random_header(self) -> bytes:
        return self._of(b"\xff" + self._draws.bytes(int(self._draws.integers(300))))

    def _without(self) -> bytes:
        header = self._parsed()
        names = ["images", "labels", "__metadata__", "class_names", "mean", "std"]
        name = str(self._draws.choice(names))
        del (header if name in header else header["__metadata__"])[name]
        return self._of(header)

    def _other_type(self) -> bytes:
        header = self._parsed()
        tensor = self._tensor(header)
        others = ["F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "X", "", 7, None]
        tensor["dtype"] = others[self._draws.integers(len(others))]
        return self._of(header)

    def _other_shape(self) -> bytes:
        header = self._parsed()
        shape = self._tensor(header)["shape"]
        shape[self._draws.integers(len(shape))] = self._number()
        return self._of(header)

    def _other_place(self) -> bytes:
        header = self._parsed()
        self._tensor(header)["data_offsets"][self._draws.integers(2)] = self._number()
        return self._of(header)

    def _other_metadata(self) -> bytes:
        """Values that none of the required keys has, as JSON, as something like it, or as none."""
        header = self._parsed()
        key = str(self._draws.choice(["class_names", "mean", "std"]))
        values = [
            "[]",
            "[1]",
            '["a"]',
            '"abc"',
            '{"a": 1, "b": 2, "c": 3}',
            "[NaN, 1, 1]",
            "[1e999, 1, 1]",
            "[null, null, null]",
            "[true, true, true]",
            '[1, "b", "c"]',
            "[[1], [1], [1]]",
            f"[{'9' * 400}, 1, 1]",
            "[-1, 0, 1, 2]",
            "",
            "{",
            "None",
            self._number(),
        ]
        header["__metadata__"][key] = values[self._draws.integers(len(values))]
        return self._of(header)

    def _other_provenance(self) -> bytes:
        """Values that a ledger has no place for, where a condensation says how it was made."""
        header = self._parsed()
        key = str(self._draws.choice(["method", "ipc", "dam", "seed", "steps"]))
        values = ["null", "true", "1.5", "1e999", "NaN", "[]", '{"a": 1}', "", "{", "None"]
        values.append("3" if key == "method" else '"3"')
        header["__metadata__"][key] = values[self._draws.integers(len(values))]
        return self._of(header)

    def _not_finite(self) -> bytes:
        """Images with a value that is none."""
        start, end = self._parsed()["images"]["data_offsets"]
        at = start + 4 * int(self._draws.integers((end - start) // 4))
        value = struct.pack("<f", float(self._draws.choice(["nan", "inf", "-inf"])))
        return self._of(self._header, self._body[:at] + value + self._body[at + 4 :])

    def _nested(self) -> bytes:
        """Brackets that go deeper than any parser follows, in a value or instead of the header."""
        deep = "[" * int(self._draws.integers(5_000, 200_000))
        if self._draws.random() < 0.5:
            return self._of(deep.encode())
        header = self._parsed()
        header["__metadata__"]["mean"] = deep + "]" * len(deep)
        return self._of(header)


def test_no_condensed_set_loads_that_was_spoilt(tmp_path: Path) -> None:
    metadata = {
        "class_names": ["a", "b", "c"],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "method": "DM",
        "seed": 0,
    }
    path = tmp_path / "set.safetensors"
    CondensedSet(torch.randn(3, 3, 4, 4), torch.arange(3), metadata).save(path)
    fuzzer = Fuzzer(path.read_bytes(), seed=0)
    CondensedSet.load(path)
    for _ in range(COUNT):
        path.write_bytes(fuzzer())
        start = time.perf_counter()
        with pytest.raises(ValueError, match="is not a condensed set, or is damaged") as refused:
            CondensedSet.load(path)
        assert time.perf_counter() - start < 1
        assert len(str(refused.value)) < 2000


def test_no_condensed_set_loads_with_a_bit_of_its_header_changed(tmp_path: Path) -> None:
    """All of them, one after the other."""
    metadata = {"class_names": ["a"], "mean": [0.1], "std": [1.0], "version": "1"}
    path = tmp_path / "set.safetensors"
    CondensedSet(torch.randn(1, 1, 4, 4), torch.zeros(1).long(), metadata).save(path)
    intact = path.read_bytes()
    length = 8 + int.from_bytes(intact[:8], "little")
    for position in range(8 * length):
        changed = bytearray(intact)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is not a condensed set, or is damaged"):
            CondensedSet.load(path)


CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "DM",
        "init_args": {
            "ipc": 1,
            "dam": {"num_domains": 3, "weight": 0.1},
            "backbone_args": {"width": 4, "depth": 1},
            "lr_images": 1.0,
            "recipe": {"num_networks": 1, "epochs": 1},
        },
    },
    "data": {"class_path": "Digits", "init_args": {"batch_real": 2, "steps_per_epoch": 2}},
    "trainer": {"max_steps": 1, "accelerator": "cpu", "logger": False},
}
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    -1e300,
    float("nan"),
    float("inf"),
    "",
    "x" * 1000,
    "../../etc/passwd",
    "a\0b",
    [],
    [[]],
    {},
    {"class_path": "no.such.thing", "init_args": {"a": 1}},
    {"ipc": {"ipc": {}}},
]
RAW = [
    b"\xff\xfe\x00",
    b"model: !!python/object/apply:os.system ['touch owned']",
    b"model: &a [*a]",
    b"a: b: c",
    b"[" * 3000,
    b"model: DM\nmodel: DC\n\t- x",
    b"%YAML 9.9\n---\n",
]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a configuration with each of its keys."""
    found = [(tree, key) for key in tree] if isinstance(tree, dict) else []
    return [*found, *(place for container, key in found for place in places(container[key]))]


def spoilt(draws: np.random.Generator) -> bytes:
    """A value that is something else, or an option that there is not, or two of these."""
    config = json.loads(json.dumps(CONFIG))
    for _ in range(int(draws.integers(1, 3))):
        container, key = (found := places(config))[draws.integers(len(found))]
        if draws.random() < 0.2:
            container[f"{key}x"] = container.pop(key)
        else:
            container[key] = JUNK[draws.integers(len(JUNK))]
    return yaml.safe_dump(config).encode()


def test_no_config_ends_in_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is refused in a line, or, where what is there can be meant, taken; no tag of it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    draws = np.random.default_rng(0)
    statuses = []
    for content in [*RAW, *(spoilt(draws) for _ in range(80))]:
        Path("config.yaml").write_bytes(content)
        capfd.readouterr()
        statuses.append(status_of(["fit", "--config", "config.yaml"]))
        said = capfd.readouterr().err
        assert statuses[-1] in (0, 1, 2), content
        assert "Traceback" not in said, (content, said)
        assert statuses[-1] == 0 or said.splitlines()[-1].startswith("error: "), (content, said)
    assert sum(status > 0 for status in statuses) > 60
    assert not Path("owned").exists()


def status_of(arguments: list[str]) -> Any:
    """The exit status of a command."""
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code
    return 0
