"""Two policies that learn a population with the package's own loop: a table with logits for every prefix, and a tiny transformer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from prefopt.losses.methods import METHODS
from prefopt.losses.ragged import segment_sum
from prefopt.model.attention import packed_attention
from prefopt.model.forward import policy_logps, reward_scores, step_logits
from prefopt.model.reference import FrozenReference
from prefopt.settings import TrainSettings
from prefopt.training.coupling import mean_of_classes
from prefopt.training.job import Job
from prefopt.training.loop import train_step
from prefopt.training.memory import Load
from prefopt.training.optim import Optimizer, schedule
from prefopt.types import Batch, TokenTree
from prefopt.verify.population import Population

Kind = Literal["table", "transformer"]
Array = npt.NDArray[np.float64]
STEPS: dict[Kind, int] = {"table": 250, "transformer": 300}
RATES: dict[Kind, float] = {"table": 0.2, "transformer": 0.005}
NO_LOAD = Load(stored=0, parameters=0, trained=0, layers=0, width=0, feed_forward=0, positions=0, longest=0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was learned, as arrays over prompts and completions [P, K].

    Attributes:
        population: what from.
        options: the method's, defaults included.
        probs, ref: laws of the trained policy and of its start; empty for reward models.
        scores: a reward model's scores.
        steps: share of right steps a process reward model expects at each label of the population, and the label.
        shift: BCO's δ.
    """

    population: Population
    options: Mapping[str, Any]
    probs: Array
    ref: Array
    scores: Array
    steps: Array
    shift: float = 0.0

    @property
    def ratio(self) -> Array:
        """log pi/ref [P, K]."""
        return np.asarray(np.log(self.probs) - np.log(self.ref))


class Table(nn.Module):
    """The policy without a model: a row of numbers [M, width] for each position, in the place of a hidden state.

    It has what `model.forward` asks of a transformers model: a backbone, an output head (the identity: the row holds the logits) and a
    score head.
    """

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(positions, width, dtype=torch.float64))
        self.head = nn.Linear(width, width, bias=False, dtype=torch.float64).requires_grad_(False)
        nn.init.eye_(self.head.weight)
        self.score = nn.Identity()
        self.config = PreTrainedConfig()

    @property
    def base_model(self) -> Table:
        """Itself."""
        return self

    def get_output_embeddings(self) -> nn.Linear:
        """The identity."""
        return self.head

    def forward(self, *, tree: Any, **_: Any) -> SimpleNamespace:
        """The rows, whatever is read."""
        tree.calls += 1
        return SimpleNamespace(last_hidden_state=self.rows[None])


class WholeJob(Job):
    """A job whose step is the whole population, laid out once."""

    def batches(self, trees: Sequence[TokenTree]) -> list[Batch]:
        """One forward pass."""
        return [self.lay_out(trees)]


def transformer(vocabulary: int, *, scorer: bool) -> Any:
    """A Llama of one layer, with weights so large that the reference is far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config: Any = AutoConfig.for_model("llama", vocab_size=vocabulary, initializer_range=0.2, **shape)
    config.pad_token_id = None  # every token is read as a token
    if scorer:
        config.num_labels = 1
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForCausalLM.from_config(config)


def learn(
    method: str,
    population: Population,
    options: Mapping[str, Any],
    kind: Kind,
    *,
    mix: Mapping[str, float] | None = None,
    patience: int = 1,
) -> Outcome:
    """Train from the reference on the whole population, every step one batch, until the learning rate has fallen to 0.

    Args:
        method: a row of METHODS.
        population: what from.
        options: the method's, where they differ from the defaults.
        kind: who learns.
        mix: rows added with a weight.
        patience: how many times the usual steps.
    """
    row = METHODS[method].mixed(mix)
    scorer = row.reads == "scores"
    vocabulary = population.world.vocabulary
    with ExitStack() as stack, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "table":
            model: Any = Table(population.whole.tokens, 1 if scorer else vocabulary)
        else:
            model = transformer(vocabulary, scorer=scorer)
            stack.enter_context(packed_attention(model))
        total = patience * STEPS[kind]
        settings = TrainSettings(schedule="linear", warmup=0.1, grad_clip=0)
        start = copy.deepcopy(model)
        job = WholeJob(
            method=row,
            options=options,
            model=model,
            optimizer=Optimizer(model, settings, RATES[kind]),
            reference=FrozenReference(start) if row.needs_reference else None,
            lay_out=population.lay_out,
            micro_tokens=10**9,
            load=NO_LOAD,
        )
        factor = schedule(settings, total)
        for step in range(total):
            train_step(job, population.trees, step, factor(step))
        return _outcome(job, start, population)


@torch.no_grad()
def _outcome(job: Job, start: Any, population: Population) -> Outcome:
    none = np.zeros(0)
    options = {**job.method.options, **job.options, "mix": job.method.plus}
    if job.method.unit == "step":
        batch = population.lay_out(population.trees)
        found = torch.stack([step_logits(job.model, batch).sigmoid().double(), batch.step_index_J.double(), batch.step_label_J.double()])
        return Outcome(population, options, none, none, none, found.numpy())
    if job.method.reads == "scores":
        return Outcome(population, options, none, none, _grid(reward_scores(job.model, population.whole), population), none)
    probs, ref = (_grid(_log_law(model, population), population) for model in (job.model, start))
    return Outcome(population, options, np.exp(probs), np.exp(ref), none, none, mean_of_classes(job.shift))


def _log_law(model: Any, population: Population) -> Tensor:
    """Log-probs of all completions of all prompts, one after another."""
    whole = population.whole
    return segment_sum(policy_logps(model, whole).logps_T, whole.sequence_T, whole.sequences)


def _grid(values_S: Tensor, population: Population) -> Array:
    return np.asarray(values_S.double().numpy().reshape(len(population.world.prompts), -1))
