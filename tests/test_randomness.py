"""A draw is a function of its key and of nothing else."""

import os
import random
import subprocess
import sys
from itertools import product

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from dam_lightning.randomness import numpy_generator, run_seed, seeded, torch_generator

KEY = (3, "real/class", 20, 1)

PRINT_DRAWS = """
import torch
from dam_lightning.randomness import numpy_generator, seeded, torch_generator
key = (3, "real/class", 20, 1)
print(numpy_generator(*key).bit_generator.random_raw(4).tolist())
print(torch.rand(4, generator=torch_generator("cpu", *key), dtype=torch.float64).tolist())
with seeded("cpu", *key):
    print(torch.nn.Linear(2, 2).weight.tolist())
"""


def rng_states() -> tuple[object, ...]:
    """The positions of all global generators on the host, comparable by ``==``."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()


def test_known_answers() -> None:
    """Draws that changed with a version would make every published seed worthless."""
    generator = numpy_generator(*KEY)
    assert generator.bit_generator.random_raw(3).tolist() == [
        2676916291260833164,
        6654746530482624015,
        8281294700347534196,
    ]
    assert numpy_generator(*KEY).permutation(8).tolist() == [5, 1, 2, 0, 3, 7, 6, 4]
    assert numpy_generator(0, "x").bit_generator.random_raw() == 8212531763036272585
    on_device = torch_generator("cpu", *KEY)
    assert on_device.initial_seed() == 1868343686394714142
    drawn = torch.rand(3, generator=on_device, dtype=torch.float64)
    assert drawn.tolist() == [0.7313202091153594, 0.5541855143677368, 0.6783511048964828]


def test_another_process_draws_the_same() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRINT_DRAWS],
        env={**os.environ, "PYTHONHASHSEED": "12345", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    with seeded("cpu", *KEY):
        weight = nn.Linear(2, 2).weight.tolist()
    raw = numpy_generator(*KEY).bit_generator.random_raw(4).tolist()
    uniform = torch.rand(4, generator=torch_generator("cpu", *KEY), dtype=torch.float64).tolist()
    assert run.stdout.splitlines() == [str(raw), str(uniform), str(weight)]


def test_every_part_of_the_key_matters() -> None:
    keys = list(product((0, 1, 11), ("a", "b", "a|1"), (0, 1, 11), (0, 1, 11)))
    host = {numpy_generator(*key).bit_generator.random_raw() for key in keys}
    device = {torch_generator("cpu", *key).initial_seed() for key in keys}
    assert len(host) == len(device) == len(keys)
    assert all(0 <= seed < 2**63 for seed in device)


def test_step_and_group_default_to_zero() -> None:
    assert numpy_generator(1, "a").random() == numpy_generator(1, "a", 0, 0).random()
    long, short = torch_generator("cpu", 1, "a", 0, 0), torch_generator("cpu", 1, "a")
    assert long.initial_seed() == short.initial_seed()


@pytest.mark.parametrize("part", ["seed", "step", "group"])
def test_neighbouring_keys_are_independent(part: str) -> None:
    """First draws along one part of the key look like a sample of the uniform distribution."""
    number = 2000
    parts = {"seed": 0, "step": 0, "group": 0}
    draws = np.array(
        [numpy_generator(stream="x", **{**parts, part: n}).random() for n in range(number)]
    )
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * number)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(number)


def test_draws_depend_on_no_earlier_draw() -> None:
    fresh = numpy_generator(*KEY).random(5)
    numpy_generator(*KEY).random(1000)
    np.random.seed(0)
    torch.manual_seed(0)
    np.testing.assert_array_equal(numpy_generator(*KEY).random(5), fresh)


def test_generators_leave_the_global_ones_alone() -> None:
    np.random.seed(0)  # not where an earlier test may have left it
    before = rng_states()
    numpy_generator(*KEY).random(5)
    torch.rand(5, generator=torch_generator("cpu", *KEY))
    assert rng_states() == before


def test_seeded_restores_the_global_generators() -> None:
    before = rng_states()
    with seeded("cpu", *KEY):
        first = torch.rand(5)
    assert rng_states() == before
    torch.rand(7)
    with seeded("cpu", *KEY):
        again = torch.rand(5)
    with seeded("cpu", 3, "real/class", 20, 2):
        other = torch.rand(5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def fail_in_the_middle() -> None:
    with seeded("cpu", *KEY):
        torch.rand(5)
        raise RuntimeError("boom")


def test_seeded_restores_them_after_an_error() -> None:
    before = rng_states()
    with pytest.raises(RuntimeError, match="boom"):
        fail_in_the_middle()
    assert rng_states() == before


def test_seeded_nests() -> None:
    with seeded("cpu", *KEY):
        torch.rand(2)
        expected = torch.rand(3)
    with seeded("cpu", *KEY):
        torch.rand(2)
        with seeded("cpu", 4, "other"):
            torch.rand(9)
        assert torch.equal(torch.rand(3), expected)


def test_seeded_on_the_cpu_leaves_gpu_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded("cpu", *KEY):
        torch.rand(1)
    assert seeds == []


def test_run_seed_is_lightnings() -> None:
    assert run_seed() == 0
    state = rng_states()
    lightning.seed_everything(17, verbose=False)
    assert run_seed() == 17
    random.setstate(state[0])  # type: ignore[arg-type]
