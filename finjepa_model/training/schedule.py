"""What changes from step to step by rule: the learning rate and the teacher's momentum; and which parameters decay."""

import math
from typing import Any

from torch import nn

from finjepa_model.config import LossConfig, TrainingConfig


def learning_rate(training: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    return falling(training.learning_rate, step - training.warmup_steps, total_steps - training.warmup_steps)


def falling(rate: float, step: int, total_steps: int) -> float:
    """A cosine from a rate to zero."""
    return rate * 0.5 * (1 + math.cos(math.pi * step / max(total_steps, 1)))


def teacher_momentum(loss: LossConfig, step: int, total_steps: int) -> float:
    """`ema_start` at the first step, `ema_end` at the last one, linear between them."""
    return loss.ema_start + (loss.ema_end - loss.ema_start) * step / max(total_steps - 1, 1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and tokens."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
