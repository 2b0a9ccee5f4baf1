"""Networks that several processes train: who trains which, and how all come to have all."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

__all__ = ["collected", "own_share"]


def own_share(count: int, rank: int, world_size: int) -> range:
    """Which of ``count`` networks a process trains: neighbours, in shares that are equal up to one.

    The process that reports, the first, has as many as any.
    """
    first, last = (-(-count * process // world_size) for process in (rank, rank + 1))
    return range(first, last)


def collected(
    own: Sequence[nn.Module],
    count: int,
    rank: int,
    world_size: int,
    make: Callable[[], nn.Module],
) -> list[nn.Module]:
    """All networks, on every process, each as the process has it that trained it.

    Args:
        own: those of this process, as many as its `own_share`.
        count: of all processes together.
        rank: of this process.
        world_size: number of processes; with more than one, a process group must be there.
        make: makes a network for the parameters and buffers of another process.
    """
    if world_size == 1:
        return list(own)
    networks: list[nn.Module] = []
    # Outside inference mode, whose tensors could take part in nothing else.
    with torch.inference_mode(False), torch.no_grad():
        for owner in range(world_size):
            share = own_share(count, owner, world_size)
            theirs = own if owner == rank else [make().eval() for _ in share]
            for network in theirs:
                for tensor in (*network.parameters(), *network.buffers()):
                    torch.distributed.broadcast(tensor, src=owner)
            networks += theirs
    return networks
