"""Learning from demonstrations: token log-probs [T] in, one loss a token out."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.numeric import wide


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of the scored tokens (pretraining, SFT).

    -l_t, averaged over all scored tokens of the optimizer step.

    Uniform predictions give log V, perfect ones 0. Gradient on l_t: -1.

    Args:
        logps: [T] log pi(y_t | x, y_<t), nats.

    Returns:
        [T].

    >>> nll(torch.tensor([-0.5, -2.0])).tolist()
    [0.5, 2.0]
    """
    return -wide(logps)


def dft(logps: Tensor) -> Tensor:
    """Dynamic fine-tuning: the likelihood of a token weighs its own gradient.

    -sg(e^{l_t}) l_t, with sg the stop-gradient (Wu et al. 2025, arXiv 2508.05629).

    Between 0 and 1/e; tends to 0 both for certain tokens and for hopeless ones, which SFT would chase. Gradient on l_t: -e^{l_t}.

    Args:
        logps: [T] log pi(y_t | x, y_<t), nats.

    Returns:
        [T].
    """
    logps = wide(logps)
    weight = logps.detach().exp()
    return torch.where(weight > 0, -weight * logps, 0.0)  # 0 * -inf would be NaN
