"""Every random draw of the package, as a function of (seed, stream, step, group).

A draw depends on nothing else: not on the clock, not on how many draws came before it, not on the
number of processes. Therefore a resumed run repeats an unbroken one, several processes repeat one,
and two methods can be compared on the same draws.

Small draws (indices, augmentation parameters, permutations) come from :func:`numpy_generator` on
the host and are equal on every device. Large draws (network weights, per-sample augmentation) come
from :func:`torch_generator` on the device that uses them, or, for constructors that know only
PyTorch's global generators, from inside :func:`seeded`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

__all__ = ["numpy_generator", "run_seed", "seeded", "torch_generator"]


def _digest(seed: int, stream: str, step: int, group: int) -> bytes:
    """16 bytes that depend on all four parts, the same on every machine and Python."""
    return blake2b(f"{seed}|{stream}|{step}|{group}".encode(), digest_size=16).digest()


def _torch_seed(seed: int, stream: str, step: int, group: int) -> int:
    # 63 bits: torch.Generator.manual_seed takes a signed 64-bit integer.
    return int.from_bytes(_digest(seed, stream, step, group)[:8], "little") >> 1


def run_seed() -> int:
    """The seed of this run: what Lightning's ``seed_everything`` was last given, 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def numpy_generator(seed: int, stream: str, step: int = 0, group: int = 0) -> np.random.Generator:
    """A host generator (Philox) for small draws.

    Args:
        seed: the run's seed.
        stream: what the draw is for, e.g. ``"real/class"``; streams are independent of each other.
        step: the optimisation step, or another counter.
        group: the class, pseudo-domain, network, ... within the step.

    Returns:
        A generator whose whole sequence is fixed by the four arguments.
    """
    key = int.from_bytes(_digest(seed, stream, step, group), "little")
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(
    device: torch.device | str, seed: int, stream: str, step: int = 0, group: int = 0
) -> torch.Generator:
    """A generator on ``device`` for large draws; arguments as :func:`numpy_generator`.

    The sequence is fixed by the four arguments and the kind of device: CPU and GPU generators
        differ.
    """
    return torch.Generator(device).manual_seed(_torch_seed(seed, stream, step, group))


@contextmanager
def seeded(
    device: torch.device | str, seed: int, stream: str, step: int = 0, group: int = 0
) -> Iterator[None]:
    """Seed PyTorch's global generators of the CPU and of ``device``, and restore them afterwards.

    For code that draws from the global generators and cannot be handed one, such as constructors of
    modules and dropout. Arguments as :func:`numpy_generator`.
    """
    device = torch.device(device)
    number = _torch_seed(seed, stream, step, group)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        # Not torch.manual_seed, which seeds every GPU, and would leave the others so.
        torch.default_generator.manual_seed(number)
        if forked:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
