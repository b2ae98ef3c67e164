"""The statistics of preference, each with its formula and source. numpy and scipy only; randomness is an argument.

agreement    raw_agreement, cohen_kappa, fleiss_kappa, krippendorff_alpha, agreement_interval; dawid_skene
ratings      bradley_terry, davidson, rao_kupper, plackett_luce, elo, elo_draws
win rates    win_rate, score_rate, swapped_scores, position_bias, length_controlled_win_rate, length_fit
calibration  expected_calibration_error, calibration_interval, maximum_calibration_error, reliability_curve, brier, fit_temperature
thresholds   error_rates, threshold_at_false_positive_rate, threshold_at_cost
intervals    wilson, clopper_pearson, clustered_mean, bootstrap, resampled
tests        sign_test, permutation_test, holm, bound_p_values; power, sample_size, win_rate_sample_size
"""

from prefopt.stats.agreement import agreement_interval, cohen_kappa, fleiss_kappa, krippendorff_alpha, raw_agreement
from prefopt.stats.annotators import DawidSkene, dawid_skene
from prefopt.stats.calibration import (
    Bin,
    brier,
    brier_interval,
    calibration_interval,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability_curve,
)
from prefopt.stats.elo_ratings import EloDraws, elo, elo_draws
from prefopt.stats.intervals import Interval, clopper_pearson, clustered_mean, wilson
from prefopt.stats.lengths import LengthFit, length_controlled_win_rate, length_fit
from prefopt.stats.rankings import plackett_luce
from prefopt.stats.ratings import Ratings, bradley_terry, davidson, rao_kupper
from prefopt.stats.resample import bootstrap, resampled
from prefopt.stats.samplesize import power, sample_size, win_rate_sample_size
from prefopt.stats.sampling import pass_at_k
from prefopt.stats.significance import bound_p_values, holm, permutation_test, sign_test
from prefopt.stats.thresholds import ErrorRates, error_rates, threshold_at_cost, threshold_at_false_positive_rate
from prefopt.stats.winrate import position_bias, preference_scores, score_rate, swapped_scores, win_rate

__all__ = [
    "Bin",
    "DawidSkene",
    "EloDraws",
    "ErrorRates",
    "Interval",
    "LengthFit",
    "Ratings",
    "agreement_interval",
    "bootstrap",
    "bound_p_values",
    "bradley_terry",
    "brier",
    "brier_interval",
    "calibration_interval",
    "clopper_pearson",
    "clustered_mean",
    "cohen_kappa",
    "davidson",
    "dawid_skene",
    "elo",
    "elo_draws",
    "error_rates",
    "expected_calibration_error",
    "fit_temperature",
    "fleiss_kappa",
    "holm",
    "krippendorff_alpha",
    "length_controlled_win_rate",
    "length_fit",
    "maximum_calibration_error",
    "pass_at_k",
    "permutation_test",
    "plackett_luce",
    "position_bias",
    "power",
    "preference_scores",
    "rao_kupper",
    "raw_agreement",
    "reliability_curve",
    "resampled",
    "sample_size",
    "score_rate",
    "sign_test",
    "swapped_scores",
    "threshold_at_cost",
    "threshold_at_false_positive_rate",
    "wilson",
    "win_rate",
    "win_rate_sample_size",
]
