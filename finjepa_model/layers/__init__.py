"""Layers: the tokenizer, rotary attention, AdaLN."""

from finjepa_model.layers.attention import MLP, AdaLN, Block, SelfAttention, merge_heads, rotate, split_heads
from finjepa_model.layers.tokenizer import TimeSeriesTokenizer, sine_cosine

__all__ = [
    "MLP",
    "AdaLN",
    "Block",
    "SelfAttention",
    "TimeSeriesTokenizer",
    "merge_heads",
    "rotate",
    "sine_cosine",
    "split_heads",
]
