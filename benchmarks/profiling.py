"""Where the time of a run goes: by kind of work, and its longest operations."""

import re
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.contender import Contender
from benchmarks.machine import synchronise

__all__ = ["HOST", "KINDS", "Profile", "profiled"]

HOST = "host"
"""Time in which the device had nothing to do: Python, dispatch, and waiting for one another."""

_LABELS = ("augmentation", "data")

_NAMES = {
    # Kernels that come of a compiler fuse what is between convolutions: norms, activations, pooling
    # and whatever else is elementwise.
    "compiled": r"^triton_(?!tem_)|CompiledFxGraph|cpp_fused|^graph_\d",
    "convolution": r"conv|cudnn|fprop|dgrad|wgrad",
    "matrix products": r"gemm|gemv|cutlass|nvjet|::(mm|addmm|bmm|baddbmm|addbmm|linear)$",
    "norm, activation, pooling": (
        r"norm|relu|threshold|clamp_min|pool|RowwiseMoments|ComputeFused|GammaBeta"
    ),
    "drawing": r"uniform|normal_|rand|distribution",
    "copies": r"copy|_to$|Memcpy|Memset|index|gather|scatter|::cat$|CatArray|::fill_|::zero_",
}
"""Patterns of the names of operations and kernels; the first that fits counts."""

_OTHER = "other operations"

KINDS = (*_NAMES, *_LABELS, _OTHER, HOST)
"""All kinds of work, in the order of tables."""

_OPERATION = re.compile(r"^(aten|mkldnn|onednn|quantized|prims)::|CompiledFxGraph|cpp_fused|^graph")
"""What computes on a CPU; the rest are names of Python's and autograd's."""


class Profile(NamedTuple):
    """One run, slowed a little by being watched.

    Attributes:
        seconds: of the run.
        kinds: share of the time of each kind of work, of `KINDS`.
        operations: the longest ones' names and shares.
    """

    seconds: float
    kinds: dict[str, float]
    operations: list[tuple[str, float]]


def profiled(contender: Contender, device: torch.device, longest: int = 6) -> Profile:
    """Watch a run.

    Args:
        contender: that has run before.
        device: where it runs.
        longest: number of operations to list.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronise(device)
    # Labels say on the device's side only when they began and ended.
    labelled = contender.labelled() if device.type == "cpu" else nullcontext()
    with labelled, profile(activities=activities) as watched:
        start = time.perf_counter()
        contender.run()
        synchronise(device)
        seconds = time.perf_counter() - start
    kinds: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for event in watched.events() or ():
        spent = _spent(event, device)
        if spent:
            kinds[_kind(event)] += spent
            operations[_short(event.name)] += spent
    kinds[HOST] = max(0.0, seconds - sum(kinds.values()))
    # What is not in the run's time, such as kernels that ran beside each other.
    whole = max(seconds, sum(kinds.values()))
    ordered = sorted(operations.items(), key=lambda item: item[1], reverse=True)
    return Profile(
        seconds,
        {kind: kinds[kind] / whole for kind in KINDS if kinds[kind]},
        [(name, spent / whole) for name, spent in ordered[:longest]],
    )


def _spent(event: Any, device: torch.device) -> float:
    """Seconds that an event computed itself: an operation of the host, or a kernel."""
    if device.type == "cuda":
        is_kernel = event.device_type == DeviceType.CUDA and not event.is_user_annotation
        return event.self_device_time_total / 1e6 if is_kernel else 0.0
    return event.self_cpu_time_total / 1e6 if _OPERATION.search(event.name) else 0.0


def _kind(event: Any) -> str:
    parent = event
    while parent is not None:
        if parent.name in _LABELS:
            return str(parent.name)
        parent = parent.cpu_parent
    for kind, pattern in _NAMES.items():
        if re.search(pattern, event.name):
            return kind
    return _OTHER


def _short(name: str) -> str:
    """A name without a graph's checksum and a kernel's template arguments."""
    if "CompiledFxGraph" in name:
        return "compiled kernels"
    return re.sub(r"^void |[<(].*", "", name)[:60]
