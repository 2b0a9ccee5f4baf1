"""Timings that nothing measured before has left a mark on."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from benchmarks.measure import be_quiet

__all__ = ["apart"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def apart(
    function: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **options: Parameters.kwargs,
) -> Result:
    """What a function returns in a new process, in which nothing is compiled yet.

    The C library's memory is as the work before has left it, and the same loop takes up to twice as
    long in one state as in another. Exceptions are raised here.

    Args:
        function: of a module, as are its arguments.
        arguments: of the function.
        options: of the function.
    """
    with tempfile.TemporaryDirectory() as cache:
        given = torch.get_num_threads(), cache
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, given) as process:
            return process.submit(function, *arguments, **options).result()


def _begin(threads: int, cache: str) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    be_quiet()
