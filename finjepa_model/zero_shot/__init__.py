"""TD-JEPA for portfolios: a utility is named, and a decision follows at once."""

from finjepa_model.zero_shot.branch import ZeroShot
from finjepa_model.zero_shot.reward import Reward, Task, infer_task
from finjepa_model.zero_shot.situation import OUTCOMES, Situation

__all__ = ["OUTCOMES", "Reward", "Situation", "Task", "ZeroShot", "infer_task"]
