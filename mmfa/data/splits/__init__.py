"""Who is in which split: held-out identities, and the ten splits of the small datasets."""

from mmfa.data.splits.held_out import held_out_pids, hold_out
from mmfa.data.splits.ten import NUM_SPLITS, assign

__all__ = ["NUM_SPLITS", "assign", "held_out_pids", "hold_out"]
