"""Functions that are compiled where that is possible, and say so."""

import time
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.utils import _pytree as pytree

__all__ = ["Compiled", "worth_compiling"]

Result = TypeVar("Result")

_WORTH_STEPS = 1000
"""Steps from which compilation, up to a minute on a CPU, costs less than it saves."""


def worth_compiling(steps: int) -> bool:
    """Whether a run of so many steps is long enough to compile for; -1 is a run without end."""
    return steps < 0 or steps >= _WORTH_STEPS


class Compiled(Generic[Result]):
    """A function that is compiled by its first call with arguments of a kind.

    It says that it compiles, and how long that took. Where compilation is impossible it warns, and
    calls the function as it is from then on. On CUDA devices the compiled function is captured in a
    graph, so that a call is one launch.

    Args:
        function: of tensors and of lists or tuples of tensors. It may be differentiated. Whatever
            else it depends on must stay as it was at the first call; but parameters of modules may
            change their values.
        what: what it computes, for messages, such as ``"the embedding"``.
        enabled: False: never compiled.
        recompute: where it is differentiated, keep the results of convolutions and matrix products
            alone, and compute the rest a second time. Without it more is kept than a CPU can read
            again in the time of computing it.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        what: str,
        *,
        enabled: bool = True,
        recompute: bool = False,
    ) -> None:
        self._function = function
        self._what = what
        self._enabled = enabled
        self._recompute = recompute
        self._compiled: dict[Hashable, Callable[..., Result]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned: what is compiled stays behind."""
        return {**self.__dict__, "_compiled": {}}

    def __call__(self, *arguments: Any) -> Result:
        """What the function makes of the arguments."""
        if not self._enabled:
            return self._function(*arguments)
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        kind = _kind(tensors)
        compiled = self._compiled.get(kind)
        if compiled is None:
            return self._first(kind, tensors, arguments)
        return _kept(compiled(*arguments))

    def _first(self, kind: Hashable, tensors: list[Tensor], arguments: tuple[Any, ...]) -> Result:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor.ndim > 1)
        if not self._compiled:
            rank_zero_info(
                f"Compiling {self._what}: seconds to a minute, once for each shape of its inputs"
            )
        start = time.perf_counter()
        compiled = _compile(self._function, tensors[0].device)
        try:
            # Decided by the first call, which compiles.
            with functorch_config.patch(aggressive_recomputation=self._recompute):
                result = _kept(compiled(*arguments))
            # The backward pass is compiled when it is first needed, where no one could fall back.
            _try_backward(result, tensors)
        # Whatever a compiler or its absence raises; what is wrong with the arguments is raised
        # again below.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            rank_zero_warn(f"Without compilation of {self._what}, which is slower: {reason}")
            self._enabled = False
            return self._function(*arguments)
        seconds = time.perf_counter() - start
        rank_zero_info(f"Compiled {self._what} in {seconds:.1f} s, for {shapes}")
        self._compiled[kind] = compiled
        return result


def _compile(function: Callable[..., Result], device: torch.device) -> Callable[..., Result]:
    def call(*arguments: Any) -> Result:
        return function(*arguments)

    # PyTorch counts what it compiled by the code object, and stops after eight; each of ours is
    # one of its own.
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[..., Result] = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
    return compiled


def _kind(tensors: list[Tensor]) -> Hashable:
    """All that makes PyTorch compile anew."""
    device = tensors[0].device.type
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        tuple((t.shape, t.dtype, t.device, t.requires_grad, t.stride()) for t in tensors),
    )


def _kept(result: Result) -> Result:
    """Results that outlive the next call, which a captured graph would overwrite."""
    kept: Result = pytree.tree_map_only(
        Tensor, lambda tensor: tensor.clone() if tensor.is_cuda else tensor, result
    )
    return kept


def _try_backward(result: Any, tensors: list[Tensor]) -> None:
    outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    if outputs and inputs:
        total = torch.stack([output.float().sum() for output in outputs]).sum()
        torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
