"""What training processes share: sums over all of them, and random numbers that do not depend on how many they are.

Rank r of R holds the rows r, r + R, r + 2R, ... of the global batch. Alone, every function here is the plain one.

Shapes: X any dimensions.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_ranks() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside of torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_ranks(value_X: Tensor) -> Tensor:
    """Sum over the processes, with its gradient: each process gets the sum of all their gradients."""
    if rank_and_ranks()[1] == 1:
        return value_X
    from torch.distributed.nn.functional import all_reduce  # differentiable, unlike dist.all_reduce

    return all_reduce(value_X)


def masked_mean(value_X: Tensor, mask_X: Tensor) -> Tensor:
    """Mean over the entries where `mask_X` is not 0; 0 where there is none.

    With several processes it is this one's share: their average is the mean over the global batch, however the entries
    that count are spread over them.
    """
    mask_X = mask_X.to(value_X.dtype)
    _, ranks = rank_and_ranks()
    count = sum_over_ranks(mask_X.sum()) / ranks
    return (value_X * mask_X).sum() / count.clamp(min=1 / ranks)


def draw_rows(draw: Callable[..., Tensor], rows: int, *shape: int, device: torch.device | str) -> Tensor:
    """`draw(rows, *shape)` from the global generator, for this process's rows of the global batch.

    Drawn for all rows and cut: processes with the same seed get together what a single one gets.
    """
    rank, ranks = rank_and_ranks()
    return draw(rows * ranks, *shape, device=device)[rank::ranks]
