"""What training steps and the machine are measured by: floating-point operations."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products (attention included) that `run` makes; 2 a multiply-add.

    Where a device's fused attention has no formula, attention is counted by the products of its definition.
    """
    flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {flash_on_cpu: _attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    batch, length, width = query[:-2].numel(), query[-2], query[-1]
    return 2 * batch * length * key[-2] * (width + value[-1])


def _backward(gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object):
    # the logits once more, and two products for each of the two of the forward pass
    return 2 * _attention(query, key, value) + 2 * query[:-1].numel() * key[-2] * query[-1]


def clock(device: torch.device) -> float:
    """Seconds: of the processor where all work is on one thread, so that other work on the machine does not count."""
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.1) -> float:
    """Operations a second of a square matrix product of this size, the best of a few: what the device can do."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, deadline = float("inf"), clock(device) + seconds
    while clock(device) < deadline or best == float("inf"):
        started = clock(device)
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock(device) - started)
    return 2 * size**3 / best
