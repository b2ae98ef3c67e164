"""The records that travel through prefopt: one prompt, K completions, one pass.

Rows become `Example` (text), then `TokenTree` (token ids of a prompt and its K branches), then `Batch` (many trees packed for
one forward pass). Losses see only flat tensors taken from the batch.

Shape letters used in names everywhere:

    B rows of a packed batch      C columns of a row            M = B * C packed positions
    T scored tokens, flat         S sequences (one completion of one prompt)
    P prompts (trees)             N pairs                       K completions of one prompt       V vocabulary

Dtypes: token ids and indices int64, masks bool, log-probs, scores, losses and advantages float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


# --- text -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `extra` holds what a chat template may read besides (tool_calls, name, thinking)."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The form chat templates read."""
        return {"role": self.role, "content": self.content, **self.extra}


Text = str | tuple[Message, ...]
"""A string is used as it stands; messages go through the chat template."""


def as_text(value: str | Iterable[Message | Mapping[str, Any]]) -> Text:
    """A string as it is; messages, or the dicts chat templates read, as a tuple of `Message`."""
    if isinstance(value, str):
        return value
    return tuple(m if isinstance(m, Message) else _message(**m) for m in value)


def plain(text: Text) -> str | list[dict[str, Any]]:
    """The other way round: a string as it is, messages as the dicts chat templates read."""
    return text if isinstance(text, str) else [message.to_dict() for message in text]


def as_answer(prompt: Text, content: Text) -> Text:
    """An answer in the form of its prompt: text that answers a conversation is the assistant's turn."""
    return content if isinstance(prompt, str) or not isinstance(content, str) else (Message("assistant", content),)


def _message(role: str, content: str | None = None, **extra: Any) -> Message:
    return Message(role, content or "", extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer to a prompt and what is known of its quality.

    `rank` 0 is best and equal ranks tie; `score` is any number, higher is better; `label` is thumbs up or down, or how
    right the answer is, in [0, 1]; `steps` splits the
    content for process reward models, `step_labels` is their correctness (hard or soft, None where not annotated). `ended` is False
    for an answer that was cut off: it has no stop token.
    """

    content: Text
    rank: int | None = None
    score: float | None = None
    label: bool | float | None = None
    steps: tuple[str, ...] = ()
    step_labels: tuple[float | None, ...] = ()
    ended: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row: a prompt and K completions, best first where a preference is known.

    A preference pair has two completions of ranks 0 and 1 (both 0 for a tie). Plain text (`text` rows) has the prompt "" and one
    completion; a conversation (`messages` rows) has the prompt () and one completion whose assistant turns are scored.

    `where` says where the row came from ("prefs.jsonl:17"), for messages to the user; `source` is the data set's own word for its
    origin; rows of one `group` are never split between training and held-out data; `margin` is the strength of the preference.
    """

    prompt: Text
    completions: tuple[Completion, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    margin: float | None = None
    where: str = ""
    source: str = ""
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


# --- tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The tokens of one completion: `ids` [n] and `scored` [n], the tokens the policy answers for (stop token included).

    `step_ends` are the indices into `ids` of the last token of each labelled step, `step_labels` their labels in [0, 1].
    `signals` are what a round of rollouts found out about each token, by the names of SIGNALS, arrays [n]; empty for rows of a data set.
    """

    ids: IntArray
    scored: BoolArray
    rank: int | None = None
    score: float | None = None
    label: bool | float | None = None
    step_ends: tuple[int, ...] = ()
    step_labels: tuple[float, ...] = ()
    signals: Mapping[str, FloatArray] = field(default_factory=dict)


SIGNALS = ("sampled", "old_logps", "advantages", "returns", "old_values", "weights")
"""Numbers of each sampled token: its log-prob by the sampler, and by the trainer when the round began; its advantage; the critic's target
and its value when the round began; the importance weight of its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """The tokens of one prompt (`prompt` [p], never scored) and its K branches; `index` is the row's place in its data set.

    Prompts to be answered have no branches, and keep their row in `example` for whoever judges the answers.
    """

    prompt: IntArray
    branches: tuple[Branch, ...]
    index: int = 0
    margin: float | None = None
    where: str = ""
    source: str = ""
    group: str | None = None
    example: Example | None = None

    @property
    def packed_tokens(self) -> int:
        """Positions a tree takes in a packed batch: the prompt once, then every branch."""
        return len(self.prompt) + sum(len(b.ids) for b in self.branches)

    @property
    def padded_tokens(self) -> int:
        """Tokens plain training reads for the same work: the prompt once for each branch."""
        return sum(len(self.prompt) + len(b.ids) for b in self.branches)


# --- one forward pass -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TreeSpan:
    """Where one tree lies in a packed row: `start`, then `prompt` tokens, then branches of the lengths `branches`."""

    start: int
    prompt: int
    branches: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.start + self.prompt + sum(self.branches)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Trees packed for one forward pass, with the flat columns losses read.

    The same columns describe two layouts. Packed (`spans` given): one row, trees one after another, each prompt once.
    Padded (`mask_BC` given): one row a sequence, right padded, for models that cannot take a tree, and as the packed path's oracle.

    Attributes:
        ids_BC: token ids [B, C]. positions_BC: position ids [B, C]; they restart after the prompt in every branch.
        source_T: index into the M = B * C positions of the one that predicts each scored token. target_T: the scored token's id.
        sequence_T: which sequence [0, S) each scored token belongs to; tokens of a sequence are contiguous and in order.
        last_S: index into M of the last token of each sequence, where a reward model is read.
        prompt_S: which tree [0, P) of the batch each sequence belongs to. length_S: scored tokens of each sequence.
        chosen_N, rejected_N: sequences of each preference pair. margin_N: its strength (0 where none is given).
        tied_N: neither of the pair was preferred; such pairs are there only for methods that learn from ties.
        rank_S, label_S: what the data says of each sequence (-1, 0 where nothing); a label is in [0, 1].
        step_index_J, step_label_J: index into M of labelled step ends, and their labels.
        index_P: each tree's place in its data set (key of the reference cache).
        sampled_T, old_logps_T, advantages_T, returns_T, old_values_T, weights_T: SIGNALS of the scored tokens; None where a branch
            has none.
        spans: the trees' places in the packed row. mask_BC: True on real tokens of the padded layout.
    """

    ids_BC: torch.Tensor
    positions_BC: torch.Tensor
    source_T: torch.Tensor
    target_T: torch.Tensor
    sequence_T: torch.Tensor
    last_S: torch.Tensor
    prompt_S: torch.Tensor
    length_S: torch.Tensor
    chosen_N: torch.Tensor
    rejected_N: torch.Tensor
    margin_N: torch.Tensor
    tied_N: torch.Tensor
    rank_S: torch.Tensor
    label_S: torch.Tensor
    step_index_J: torch.Tensor
    step_label_J: torch.Tensor
    index_P: torch.Tensor
    sampled_T: torch.Tensor | None = None
    old_logps_T: torch.Tensor | None = None
    advantages_T: torch.Tensor | None = None
    returns_T: torch.Tensor | None = None
    old_values_T: torch.Tensor | None = None
    weights_T: torch.Tensor | None = None
    spans: tuple[TreeSpan, ...] | None = None
    mask_BC: torch.Tensor | None = None

    @property
    def sequences(self) -> int:
        """S."""
        return int(self.last_S.shape[0])

    @property
    def pairs(self) -> int:
        """N."""
        return int(self.chosen_N.shape[0])

    @property
    def tokens(self) -> int:
        """Positions the model computes."""
        return int(self.ids_BC.numel())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if hasattr(v, "to")}
        return replace(self, **moved)


class Stat(NamedTuple):
    """A metric before division: added over micro-batches and ranks, divided once when it is logged."""

    total: float
    count: float  # type: ignore[assignment] # the word fits, and nobody counts values in a pair
