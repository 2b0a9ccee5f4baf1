"""Counts the memory of tensors while operations run, to the byte and on any device."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all tensors that operations within it read or make, as long as they are alive.

    A storage counts once, whatever its views. What an operation takes for itself and gives back
    before it returns is not seen. Gradients and what autograd keeps are tensors like any others.

    Attributes:
        peak: the most at a time, after an operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what there is."""
        self._see((args, kwargs))
        made = func(*args, **(kwargs or {}))
        self._see(made)
        # Looking for what is gone takes time, and tells nothing new unless the sum is above.
        if self._total > self.peak:
            self.peak = max(self.peak, self.now())
        return made

    def now(self) -> int:
        """Bytes of those that are still alive."""
        self._seen = {
            key: (reference, size)
            for key, (reference, size) in self._seen.items()
            if not reference.expired()  # type: ignore[no-untyped-call]
        }
        self._total = sum(size for _, size in self._seen.values())
        return self._total

    def _see(self, tree: Any) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                # The reference keeps its number from being given to another storage.
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                _, known = self._seen.get(reference.cdata, (reference, 0))
                self._seen[reference.cdata] = (reference, storage.nbytes())
                self._total += storage.nbytes() - known
