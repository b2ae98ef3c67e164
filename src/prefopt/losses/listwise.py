"""Rankings of K completions under Plackett-Luce: tables [N, K], best first, -inf where a list is shorter."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.numeric import log_ratio, wide


def plackett_luce(scores_NK: Tensor) -> Tensor:
    """Plackett-Luce ranking of K scores.

    -Σ_j [ s_j - log Σ_{k>=j} e^{s_k} ], over the items of the list, best first
    (Plackett 1975; for reward models Zhu et al. 2023, arXiv 2301.11270).

    log K! when all scores are equal; with K = 2 it is Bradley-Terry; e^{-loss} sums to 1 over all K! orders; adding a constant to a
    list changes nothing; the last item alone contributes 0.

    Args:
        scores_NK: [N, K] best first; -inf marks an absent item, of which only a tail of a row may consist.

    Returns:
        [N]; 0 for a list of one item or none.

    >>> plackett_luce(torch.zeros(1, 3)).item()
    1.7917...
    """
    scores = wide(scores_NK)
    present = scores != -torch.inf
    scores = torch.where(present, scores, 0.0)
    k = scores.shape[1]
    # rest[n, j, k]: item k is still to be chosen at place j. Absent places keep themselves, so that no row is all -inf.
    later = torch.ones(k, k, dtype=torch.bool, device=scores.device).triu()
    rest = (later & present[:, None, :]) | torch.eye(k, dtype=torch.bool, device=scores.device)
    log_total = torch.where(rest, scores[:, None, :], -torch.inf).logsumexp(2)
    return torch.where(present, log_total - scores, 0.0).sum(1)


def pl_dpo(logps_NK: Tensor, ref_logps_NK: Tensor, *, beta: float = 0.1) -> Tensor:
    """DPO for a ranking of K > 2 completions.

    Plackett-Luce on the implicit rewards β (L_k - L_k^ref)  (Rafailov et al. 2023, arXiv 2305.18290, appendix A.3, eq. 20).

    log K! at policy == reference; K = 2 is DPO. Adding one constant to all log-probs of a list changes nothing.

    Args:
        logps_NK: [N, K] summed log-probs of the policy, best first, nats; -inf marks an absent item.
        ref_logps_NK: [N, K] of the reference.
        beta: strength of the tie to the reference, per nat.

    Returns:
        [N].
    """
    present = logps_NK != -torch.inf
    ratio = log_ratio(torch.where(present, logps_NK, 0.0), torch.where(present, ref_logps_NK, 0.0))
    return plackett_luce(torch.where(present, beta * ratio, -torch.inf))
