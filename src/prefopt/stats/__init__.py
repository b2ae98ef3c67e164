"""The statistics of preference: intervals, win rates and tests. numpy and scipy only; randomness is an argument."""

from prefopt.stats.intervals import Interval, bootstrap, clustered_mean, wilson
from prefopt.stats.winrate import preference_scores, sign_test, win_rate

__all__ = ["Interval", "bootstrap", "clustered_mean", "preference_scores", "sign_test", "wilson", "win_rate"]
