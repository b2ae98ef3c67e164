"""What the data turn out to be before training on them: counted, printed, and refused above bounds the user can set.

Every row that is not trained on, and every token that is cut, has a reason and a place. The counts come in two passes: `admit` sees
rows as text and decides which to keep; `measure` and `keep` see their tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from prefopt.data.split import prompt_key
from prefopt.data.truncate import longest
from prefopt.errors import DataError
from prefopt.settings import DataSettings
from prefopt.types import Example, Stat, Text, TokenTree

EMPTY, IDENTICAL, TIE = "empty completion", "identical completions", "tie, no preference"
ALONE = "one answer of a ranking, nothing to compare"
TOO_LONG, IDENTICAL_CUT = "longer than max_length", "identical after truncation"
UNSCORED, UNLABELLED, NO_PROMPT = "nothing to score", "no labelled step", "empty prompt, nothing to answer"
MENDABLE = (EMPTY, IDENTICAL, UNSCORED, UNLABELLED, NO_PROMPT)
"""Reasons that data.max_dropped bounds. Length has a bound of its own; ties and lone answers are sound data that a pairwise method
cannot use."""

PROMPT_CUT, COMPLETION_CUT, LOST_EOS = "prompt cut on the left", "completion cut on the right", "completions without their stop token"
DUPLICATE, EMPTY_PROMPT, DOUBLED_BOS = "repeats an earlier row", "empty prompt", "doubled beginning-of-sequence token"
CUT_BEFORE = "answers cut off when they were sampled, without a stop token"
SEEN_PROMPT, REPEATED = "held-out prompt is also trained on", "same answer twice in a ranking"
CHUNKS = "chunks of texts longer than max_length, no token lost"


FITS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "demonstrations"),
    "demonstrations": ("text", "demonstrations", "pairs", "rankings"),
    "pairs": ("pairs", "rankings"),
    "judgements": ("pairs", "rankings"),
    "rankings": ("pairs", "rankings"),
    "labels": ("labels", "pairs"),
    "steps": ("steps",),
    "prompts": ("prompts", "demonstrations", "pairs", "rankings", "labels", "steps"),
}
"""Which kinds of rows a method can read, by what it learns from (`Method.data`). Supervised methods read the best answers of a
preference, unpaired ones read a pair as one thumb up and one down, pretraining scores every token of prompt and answer, and methods
that sample their own answers read the prompts alone."""


class Tokenizer(Protocol):
    """The special tokens the preflight asks a tokenizer for."""

    bos_token_id: Any
    pad_token_id: Any


class Renderer(Protocol):
    """What is asked of `prefopt.text.chat.Renderer`."""

    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102
    @property
    def stop_ids(self) -> tuple[int, ...]: ...  # noqa: D102
    def trees(self, examples: Iterable[Example], start: int = 0) -> Iterator[TokenTree]: ...  # noqa: D102


@dataclass
class Tally:
    """How often something was seen, and where first."""

    count: int = 0
    first: str = ""

    def add(self, where: str, count: int = 1) -> None:
        """Count it once more."""
        self.first = self.first or where
        self.count += count


@dataclass
class Preflight:
    """Counts over the rows of a data set, filled while they are read.

    `rows` read, by kind; `completions` admitted as text, `sequences` kept as tokens; `dropped` by reason and `facts` by name, each
    with its first place; `tokens` of the kept rows by kind ("prompt", "completion", "scored", "packed", "padded"); `longer` the
    share of preferences whose best answer is longer than its worst, in characters and in tokens; `notes` are remarks for the table.
    `renderer` is asked for the special tokens and may be absent while only text is counted.
    """

    renderer: Renderer | None = None
    max_length: int | None = None
    rows: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    completions: int = 0
    sequences: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    facts: dict[str, Tally] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)
    longest: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)
    longer: dict[str, Stat] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set, repr=False)
    _prompts: set[bytes] = field(default_factory=set, repr=False)
    _cut: dict[str, int] = field(default_factory=dict, repr=False)
    """How many answers of a row have no stop token to lose."""

    def __post_init__(self) -> None:
        if self.renderer is None:
            return
        pad = self.renderer.tokenizer.pad_token_id
        if pad is None:
            self.notes.append("no pad token: none is needed, batches are packed")
        elif pad in self.renderer.stop_ids:
            self.notes.append("pad is a stop token: harmless here, what is scored never depends on pad ids")

    # --- rows as text

    def admit(self, example: Example) -> bool:
        """Count one row as text; False when it has to be dropped (an answer is empty, or all answers are the same)."""
        self.rows += 1
        self.kinds[kind_of(example)] += 1
        self._prompts.add(prompt_key(example))
        self._repetition(example)
        contents = [completion.content for completion in example.completions]
        if any(is_empty(content) for content in contents):
            return self.drop(EMPTY, example.where)
        if len(contents) > 1 and all(content == contents[0] for content in contents):
            return self.drop(IDENTICAL, example.where)
        if any(content in contents[:i] for i, content in enumerate(contents)):
            self.note(REPEATED, example.where)
        if len(contents) > 1 and not (example.prompt if isinstance(example.prompt, tuple) else example.prompt.strip()):
            self.note(EMPTY_PROMPT, example.where)
        self.completions += len(contents)
        if cut := sum(not completion.ended for completion in example.completions):
            self._cut[example.where] = cut
            self.note(CUT_BEFORE, example.where, cut)
        self._compare("characters", example.completions, [_characters(content) for content in contents])
        return True

    def _repetition(self, example: Example) -> None:
        said = [(c.content, c.rank, c.label) for c in example.completions]
        digest = blake2b(repr((example.prompt, said)).encode(), digest_size=8).digest()
        if digest in self._seen:
            self.note(DUPLICATE, example.where)
        self._seen.add(digest)

    def _compare(self, unit: str, completions: Sequence[Any], lengths: Sequence[int]) -> None:
        if len(completions) < 2 or completions[0].rank is None or completions[0].rank == completions[-1].rank:
            return
        total, count = self.longer.get(unit, Stat(0.0, 0.0))
        self.longer[unit] = Stat(total + (lengths[0] > lengths[-1]), count + 1)

    def drop(self, reason: str, where: str) -> bool:
        """Count a dropped row; always False."""
        self.dropped.setdefault(reason, Tally()).add(where)
        return False

    def note(self, fact: str, where: str, count: int = 1) -> None:
        """Count something worth knowing of a row that is kept."""
        if count:
            self.facts.setdefault(fact, Tally()).add(where, count)

    # --- rows as tokens

    def measure(self, tree: TokenTree) -> None:
        """Note a tree's length before anything is cut."""
        length = longest(tree)
        if length > self.longest.count:
            self.longest = Tally(length, tree.where)
        if self.max_length is not None and length > self.max_length:
            self.too_long.add(tree.where)

    def keep(self, was: TokenTree, tree: TokenTree, *, ends: bool = True) -> bool:
        """Count a tree as it will be trained on (`was` before truncation); False when it has to be dropped after all.

        `ends` is False for a chunk of a text that goes on in the next one, and so has no stop token to lose.
        """
        if any(not branch.scored.any() for branch in tree.branches):
            return self.drop(UNSCORED, tree.where)
        bodies = [branch.ids.tobytes() for branch in tree.branches]
        if len(bodies) > 1 and len(set(bodies)) == 1:
            cut = any(len(b.ids) < len(a.ids) for a, b in zip(was.branches, tree.branches, strict=True))
            return self.drop(IDENTICAL_CUT if cut else IDENTICAL, tree.where)  # uncut, the template or the tokenizer made them so
        self.sequences += len(tree.branches)
        self.note(PROMPT_CUT, tree.where, int(len(tree.prompt) < len(was.prompt)))
        self.note(COMPLETION_CUT, tree.where, sum(len(b.ids) < len(a.ids) for a, b in zip(was.branches, tree.branches, strict=True)))
        self._special_tokens(tree, ends)
        self._compare("tokens", tree.branches, [int(branch.scored.sum()) for branch in tree.branches])
        self.tokens.update(
            prompt=len(tree.prompt),
            completion=sum(len(b.ids) for b in tree.branches),
            scored=sum(int(b.scored.sum()) for b in tree.branches),
            packed=tree.packed_tokens,
            padded=tree.padded_tokens,
        )
        return True

    def _special_tokens(self, tree: TokenTree, ends: bool) -> None:
        if self.renderer is None:
            return
        bos = self.renderer.tokenizer.bos_token_id
        head = tree.prompt if len(tree.prompt) > 1 or not tree.branches else np.concatenate([tree.prompt, tree.branches[0].ids])
        self.note(DOUBLED_BOS, tree.where, int(bos is not None and list(head[:2]) == [bos, bos]))
        stops = self.renderer.stop_ids
        if not ends:
            return
        missing = sum(int(b.ids[b.scored.nonzero()[0][-1]]) not in stops for b in tree.branches)
        self.note(LOST_EOS, tree.where, max(missing - self._cut.get(tree.where, 0), 0))

    # --- verdict

    def enforce(self, settings: DataSettings, data: str) -> None:
        """Refuse data that pass a bound, for a method that learns from `data`.

        Raises:
            DataError: names what passed which bound, where it was first seen, and the option that accepts it.
        """
        self._enforce_dropped(settings.max_dropped)
        self._enforce_length(settings, data)
        lost = self.facts.get(LOST_EOS, Tally())
        share = lost.count / max(self.sequences, 1)
        if share > settings.max_lost_eos:
            what = f"{lost.count} of {self.sequences} completions end without a stop token, so the model would not learn to stop"
            raise DataError(what, where=lost.first, fix=f"do not cut completions, or accept it with data.max_lost_eos={_round_up(share)}")
        if not sum(self.kept.values()):
            reasons = ", ".join(f"{tally.count} {reason}" for reason, tally in self.dropped.items()) or "none were read"
            first = next(iter(self.dropped.values()), Tally()).first
            raise DataError(f"no row is left to train on ({self.rows} read; {reasons})", where=first, fix="mend the data or its options")

    def _enforce_dropped(self, bound: float) -> None:
        found = [(reason, self.dropped[reason]) for reason in MENDABLE if reason in self.dropped]
        share = sum(tally.count for _, tally in found) / max(self.rows, 1)
        if share > bound:
            reasons = "; ".join(f"{tally.count} {name}, first at {tally.first}" for name, tally in found)
            fix = f"mend or remove them, or accept the loss with data.max_dropped={_round_up(share)}"
            raise DataError(f"{share:.1%} of {self.rows} rows cannot be trained on: {reasons}", where=found[0][1].first, fix=fix)

    def _enforce_length(self, settings: DataSettings, data: str) -> None:
        long = self.too_long
        share = long.count / max(self.rows, 1)
        bound = _round_up(share)
        what = (
            f"{long.count} of {self.rows} rows ({share:.1%}) are longer than {self.max_length} tokens; the longest has {self.longest.count}"
        )
        if settings.truncation == "error" and long.count and data == "text":
            fix = "set data.truncation=chunk, which splits them and loses nothing, or raise data.max_length"
            raise DataError(what, where=long.first, fix=fix)
        if settings.truncation == "error" and long.count:
            more = f" data.max_truncated={bound}" if share > settings.max_truncated else ""
            fix = f"raise data.max_length, or set data.truncation=drop, prompt_left or completion_right{' with' if more else ''}{more}"
            raise DataError(what, where=long.first, fix=fix)
        if share > settings.max_truncated and settings.truncation != "chunk":
            raise DataError(what, where=long.first, fix=f"raise data.max_length, or accept it with data.max_truncated={bound}")

    # --- account

    def table(self) -> str:
        """The account as plain lines: what, how many, and the first place of each."""
        kept = ", ".join(f"{count} {side}" for side, count in self.kept.items() if count) or "none"
        lines = [("rows read", f"{self.rows}", ", ".join(f"{n} {kind}" for kind, n in self.kinds.items()))]
        lines += [("prompts", f"{len(self._prompts)}", "distinct")]
        lines += [("kept", f"{sum(self.kept.values())}", kept)] if self.kept else []
        lines += [("dropped", f"{tally.count}", f"{reason}, first at {tally.first}") for reason, tally in self.dropped.items()]
        if self.tokens:
            parts = f"{self.tokens['prompt']} prompt, {self.tokens['completion']} completion, {self.tokens['scored']} scored"
            saved = self.tokens["padded"] / max(self.tokens["packed"], 1)
            lines += [("tokens", f"{self.tokens['packed']}", f"{parts}; one prompt a tree saves {saved:.2f}x")]
            limit = f", limit {self.max_length}" if self.max_length else ""
            lines += [("longest", f"{self.longest.count}", f"tokens at {self.longest.first}{limit}")]
        lines += [("note", f"{tally.count}", f"{fact}, first at {tally.first}") for fact, tally in self.facts.items()]
        for unit, (total, count) in self.longer.items():
            lines += [("best is longer", f"{total / count:.0%}", f"of {count:.0f} preferences, in {unit}")]
        wide = max(len(value) for _, value, _ in lines)
        return "\n".join([f"  {name:<15}{value:>{wide}}  {text}".rstrip() for name, value, text in lines] + [f"  {n}" for n in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for preflight.json."""
        tallies = {"dropped": self.dropped, "facts": self.facts}
        return {
            "rows": self.rows,
            "kept": dict(self.kept),
            "kinds": dict(self.kinds),
            "prompts": len(self._prompts),
            "completions": self.completions,
            "sequences": self.sequences,
            **{name: {k: {"count": t.count, "first": t.first} for k, t in group.items()} for name, group in tallies.items()},
            "tokens": dict(self.tokens),
            "longest": {"tokens": self.longest.count, "where": self.longest.first},
            "longer_than_limit": {"count": self.too_long.count, "first": self.too_long.first},
            "max_length": self.max_length,
            "chosen_longer": {unit: {"share": total / count, "pairs": count} for unit, (total, count) in self.longer.items()},
            "notes": list(self.notes),
        }


# --- what an example is ---------------------------------------------------------------------------------------------


def kind_of(example: Example) -> str:
    """What a row can teach: prompts, text, demonstrations, labels, pairs, rankings or steps."""
    completions = example.completions
    if not completions:
        return "prompts"
    if any(completion.steps for completion in completions):
        return "steps"
    if any(completion.label is not None for completion in completions):
        return "labels"
    if len(completions) > 1:
        return "pairs" if len(completions) == 2 else "rankings"
    return "text" if example.prompt == "" else "demonstrations"


def is_empty(content: Text) -> bool:
    """Whether an answer says nothing: blank, or no assistant turn with content or a tool call."""
    if isinstance(content, str):
        return not content.strip()
    return not any(m.role == "assistant" and (m.content.strip() or m.extra.get("tool_calls")) for m in content)


def _characters(content: Text) -> int:
    return len(content) if isinstance(content, str) else sum(len(m.content) for m in content)


def _round_up(share: float) -> str:
    """A bound that accepts `share`, short to type."""
    return f"{min(math.ceil(share * 1000 - 1e-9) / 1000, 1.0):g}"
