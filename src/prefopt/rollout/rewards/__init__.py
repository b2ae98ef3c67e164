"""What rates sampled answers: `build(settings)` gives a `Reward`, which turns `Rolled` answers into `Verdict`s."""

from prefopt.rollout.rewards.build import build
from prefopt.rollout.rewards.protocol import Reward, Rolled, Verdict

__all__ = ["Reward", "Rolled", "Verdict", "build"]
