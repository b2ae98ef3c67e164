"""How a reward model's outputs become one score: the rule of an ensemble or of weighted attributes, the scale, the temperature.

It is kept under `prefopt_reward` in the model's config.json, which transformers carries along without reading it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from prefopt.errors import ModelError
from prefopt.settings import HeadSettings

Floats = npt.NDArray[np.float64]
Rule = Literal["mean", "min", "lower_bound", "weighted"]
Solution = Literal["product", "min", "last", "mean"]
KEY = "prefopt_reward"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """From outputs [S, E] to scores [S]: normalise each output, combine, divide by the temperature.

    z_e = (x_e - mean_e) / std_e, then with the mean z̄ and the population standard deviation s over the E outputs
    mean: z̄; min: the smallest z_e (worst case, Coste et al. 2023, arXiv 2310.02743, eq. 5); lower_bound: z̄ - k s (uncertainty-weighted,
    ibid. eq. 6, which subtracts the variance: a standard deviation has the score's own unit); weighted: Σ_e w_e z_e.

    Attributes:
        outputs: a name for each output: members of an ensemble, or attributes.
        rule: how they are combined; one output is its own score.
        k: standard deviations that lower_bound takes off.
        weights: of each output, for weighted.
        mean, std: of each output over the rows that `fitted_on` names; empty for outputs taken as they are.
        temperature: what the combined score is divided by, so that σ(difference of two scores) is a probability.
        center, spread: mean and standard deviation of the final scores on the same rows, by which an ensemble of models normalises.
        fitted_on: which rows set these numbers, in words.
        solution: how a process reward model makes one score of the probabilities of its steps; empty for other models.
    """

    outputs: tuple[str, ...] = ("score",)
    rule: Rule = "mean"
    k: float = 1.0
    weights: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    temperature: float = 1.0
    center: float = 0.0
    spread: float = 1.0
    fitted_on: str = ""
    solution: Solution | Literal[""] = ""

    def __call__(self, outputs: npt.ArrayLike) -> Floats:
        """Scores [S] of outputs [S] (one output) or [S, E]."""
        return self.combine(outputs) / self.temperature

    def combine(self, outputs: npt.ArrayLike) -> Floats:
        """The same before the temperature."""
        x = np.asarray(outputs, dtype=np.float64)
        x = x[:, None] if x.ndim == 1 else x
        z = (x - np.asarray(self.mean)) / np.asarray(self.std) if self.mean else x
        if self.rule == "weighted":
            return np.asarray(z @ np.asarray(self.weights))
        if self.rule == "min":
            return np.asarray(z.min(1))
        if self.rule == "lower_bound":
            return np.asarray(z.mean(1) - self.k * z.std(1))
        return np.asarray(z.mean(1))

    def normalised(self, outputs: npt.ArrayLike) -> Reading:
        """With mean and std of these outputs [S, E]; a single one and attributes, whose weights are for them as they are, are left."""
        x = np.asarray(outputs, dtype=np.float64)
        if x.ndim == 1 or x.shape[1] == 1 or len(x) < 2 or self.rule == "weighted":
            return self
        std = np.where(x.std(0) > 0, x.std(0), 1.0)
        return replace(self, mean=tuple(x.mean(0).tolist()), std=tuple(std.tolist()))

    def centred(self, outputs: npt.ArrayLike) -> Reading:
        """With center and spread of the scores of these outputs."""
        scores = self(outputs)
        return replace(self, center=float(scores.mean()), spread=float(scores.std()) or 1.0) if len(scores) > 1 else self

    def to_config(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return asdict(self)

    @classmethod
    def of_heads(cls, heads: HeadSettings, *, steps: bool) -> Reading:
        """How a model that is about to be trained will be read."""
        solution = heads.solution if steps else ""
        if heads.attributes:
            return cls(outputs=tuple(heads.attributes), rule="weighted", weights=tuple(heads.attributes.values()), solution=solution)
        names = tuple(f"member {i + 1}" for i in range(heads.count)) if heads.count > 1 else ("score",)
        return cls(outputs=names, rule=heads.rule, k=heads.k, solution=solution)

    @classmethod
    def from_config(cls, found: Mapping[str, Any], where: str) -> Reading:
        """What `to_config` wrote.

        Raises:
            ModelError: it is something else.
        """
        names = {f.name for f in fields(cls)}
        try:
            given: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if name in names
            }
            reading = cls(**given)
            reading.combine(np.zeros((1, len(reading.outputs))))
            if not {len(reading.mean), len(reading.std)} <= {0, len(reading.outputs)}:
                raise ValueError("mean and std have another length than outputs")
        except (TypeError, ValueError, AttributeError) as error:
            fix = "train the model again, or take the key out to read the outputs as they are"
            raise ModelError(f"{KEY} in config.json cannot be read ({error})", where=where, fix=fix) from error
        if reading.rule not in get_args(Rule) or reading.temperature <= 0:
            raise ModelError(f"{KEY} has rule {reading.rule!r} and temperature {reading.temperature}", where=where, fix="train it again")
        return reading


def of_solution(probabilities: Sequence[float], how: str) -> float:
    """One score of the probabilities that each step of a solution is right.

    product: that all are (Lightman et al. 2023, arXiv 2305.20050, sec. 2.6); min: the weakest (Wang et al. 2023, 2312.08935); last: what
    the model says at the end; mean. product <= min <= mean. A solution without steps has 0.

    >>> [round(of_solution([0.9, 0.5], how), 3) for how in ("product", "min", "last", "mean")]
    [0.45, 0.5, 0.5, 0.7]
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not len(p):
        return 0.0
    return float({"product": p.prod(), "min": p.min(), "last": p[-1], "mean": p.mean()}[how])
