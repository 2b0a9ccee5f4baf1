"""Counting what would make the host wait for an accelerator, on machines without one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SyncCounter"]

_aten = torch.ops.aten
_READ_BY_THE_HOST = {
    _aten._local_scalar_dense,  # item(), float(), int(), bool()
    _aten.equal,
    _aten.is_nonzero,
    _aten.masked_select,
    _aten.nonzero,
    _aten.unique_consecutive,
    _aten._unique2,
}


_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_}


class SyncCounter(TorchDispatchMode):
    """Counts operations whose result the host needs before it can go on.

    On a CPU they cost nothing, but code that calls them is the code that would wait on an
    accelerator. What is done to tensors that are on the host on every machine must be kept out, or
    be done by NumPy.

    Attributes:
        counts: by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        packet = getattr(operation, "overloadpacket", None)
        if packet in _READ_BY_THE_HOST or (packet in _INDEXED and _has_mask(arguments[1])):
            self.counts[str(operation)] += 1
        return operation(*arguments, **(keywords or {}))


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    """Whether among indices there is a mask, whose sum sizes the result."""
    return any(index is not None and index.dtype == torch.bool for index in indices)
