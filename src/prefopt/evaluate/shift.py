"""The shift suite: how far training has moved a policy, and what that did to its writing.

    kl       = mean over the model's own answers of sum_t log pi(y_t) - log ref(y_t)     nats an answer (k1)
    entropy  = mean over tokens of -sum_v pi(v) log pi(v)                                nats a token, at temperature 1
    distinct_n = different n-grams / all n-grams of the answers                          (Li et al. 2016, arXiv 1510.03055)
    self_bleu  = mean BLEU-4 of each answer against the others                           (Zhu et al. 2018, arXiv 1802.01886)

The first estimates KL(model || baseline) only where answers are drawn from the model as it is, at temperature 1 with nothing cut and
no constraint; otherwise it is told as `log_ratio`.

Rows of one prompt share its answers, which count once in the last two.

Where the data hold preferences, also the mean log-probability of the chosen and of the rejected answers, whose joint fall is the
likelihood displacement of preference optimization (Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from prefopt.evaluate.bench import Answers, Bench, Findings, identity, sample_row, slice_of
from prefopt.evaluate.pairs import chosen_and_rejected
from prefopt.evaluate.rows import Figure
from prefopt.evaluate.table import kept, slices
from prefopt.stats import Interval, bootstrap, clustered_mean
from prefopt.stats.intervals import cluster_codes, one_cluster
from prefopt.stats.resample import jackknife_error
from prefopt.types import Branch, TokenTree

Words = Sequence[Sequence[str]]
DISTANCES = {"kl": "KL", "log_ratio": "log-ratio"}
"""What the distance is called, by how answers were drawn -> in words."""
ORDER = 4
"""BLEU counts n-grams up to this length."""


def lacks(bench: Bench) -> str:
    """What the suite needs and the bench does not have."""
    return "" if bench.can_answer else "a policy, and rows with a prompt"


def run(bench: Bench) -> Findings:
    """Answer every request and measure the answers."""
    rows = bench.requests()
    answers = [bench.answers(who, rows) for who in bench.subjects]
    figures = [*distance(bench, answers[0]), *_entropy(bench, answers), *_writing(bench, answers), *_variety(bench), *_likelihood(bench)]
    moved = next((f for f in figures if f.metric in DISTANCES), None)
    samples = [sample_row(i, row, answers) for i, row in enumerate(answers[0].rows)]
    return Findings(figures, {}, samples, f"{DISTANCES[moved.metric]} {moved.value:.2f} nats" if moved else "")


def trees_of(own: Answers) -> list[TokenTree]:
    """The answers as token trees, those without a token left out; `index` says which answer."""
    renderer = own.who.policy.renderer
    prompts = [renderer.prompt_ids(row.prompt, row.tools) for row in own.rows]
    return [
        TokenTree(prompt=prompt, branches=(Branch(ids=sample.ids, scored=np.ones(len(sample.ids), bool)),), index=i)
        for i, (prompt, sample) in enumerate(zip(prompts, own.samples, strict=True))
        if len(sample.ids)
    ]


def distance(bench: Bench, mine: Answers) -> list[Figure]:
    """KL(model || baseline), estimated on the model's own answers; where they are no plain samples of it, a mean log-ratio only."""
    if bench.baseline is None:
        return []
    trees = trees_of(mine)
    ratio = np.array(bench.model.policy.tree_logprobs(trees)) - np.array(bench.baseline.policy.tree_logprobs(trees))
    clusters = [mine.clusters[tree.index] for tree in trees]
    parts = slices([slice_of(mine.rows[tree.index]) for tree in trees])
    intervals = [(part, clustered_mean(ratio[mask], kept(clusters, mask))) for part, mask in parts]
    metric = "kl" if bench.rollout.plain else "log_ratio"
    return [bench.figure(metric, interval, slice=part, against=bench.baseline) for part, interval in intervals]


def _entropy(bench: Bench, answers: Sequence[Answers]) -> list[Figure]:
    """Mean entropy a token of each model's own answers."""
    found = []
    for own in answers:
        trees = trees_of(own)
        sums, counts = own.who.policy.tree_entropies(trees), [len(tree.branches[0].ids) for tree in trees]
        clusters = [own.clusters[tree.index] for tree in trees]
        interval = bootstrap(
            np.stack([sums, counts], 1), lambda x: float(x[:, 0].sum() / x[:, 1].sum()), rng=bench.rng("entropy"), clusters=clusters
        )
        found.append(bench.figure("entropy", interval, who=own.who))
    return found


def _likelihood(bench: Bench) -> list[Figure]:
    """Mean log-probability of the chosen and of the rejected answers of the data's preferences, in nats an answer."""
    trees = bench.trees
    if not trees:
        return []
    given = [chosen_and_rejected(who.policy, trees) for who in bench.subjects]
    groups = given[0].groups
    parts = slices(["data"] * len(groups))
    sides = [(f"logps_{name}", [found.values[:, k] for found in given]) for k, name in enumerate(("chosen", "rejected"))]
    return [f for metric, values in sides for f in bench.compare(metric, values, groups, parts)]


def _writing(bench: Bench, answers: Sequence[Answers]) -> list[Figure]:
    """Length and form."""
    clusters, parts = answers[0].clusters, slices([slice_of(row) for row in answers[0].rows])
    words = [[text.split() for text in own.texts] for own in answers]
    lengths = [np.array([float(len(said)) for said in own]) for own in words]
    ended = [np.array([float(sample.finished) for sample in own.samples]) for own in answers]
    empty = [np.array([float(not said) for said in own]) for own in words]
    figures = bench.compare("length_words", lengths, clusters, parts)
    figures += bench.compare("finished", ended, clusters, parts[:1], share=True)
    return figures + bench.compare("empty", empty, clusters, parts[:1], share=True)


# --- variety ----------------------------------------------------------------------------------------------------------


def _variety(bench: Bench) -> list[Figure]:
    """How much the answers differ, those to one prompt once."""
    rows = list({identity(row): row for row in bench.requests()}.values())
    answers = [bench.answers(who, rows) for who in bench.subjects]
    words, clusters = [[text.split() for text in own.texts] for own in answers], answers[0].clusters
    told = [(f"distinct_{n}", own.who, distinct(said, n, clusters)) for n in (1, 2) for own, said in zip(answers, words, strict=True)]
    figures = [bench.figure(metric, interval, who=who) for metric, who, interval in told]
    return figures + bench.compare("self_bleu", [self_bleu(said) for said in words], clusters, slices(["all"] * len(clusters)))


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def distinct(answers: Words, n: int, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Different n-grams of all answers as a share of all their n-grams.

    The standard error is the jackknife's (Efron and Stein 1981) over answers, or over clusters of them, such as those to one prompt:
    a bootstrap repeats answers, which lowers the share.

    >>> distinct([["a", "b"], ["a", "c"]], 1).value
    0.75
    """
    codes = cluster_codes(clusters, len(answers)).tolist()
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(max(codes) + 1)]
    for code, words in zip(codes, answers, strict=True):
        counts[code].update(ngrams(words, n))
    total = sum(counts, Counter())
    kinds, tokens, size = len(total), total.total(), len(counts)
    value = kinds / tokens if tokens else 0.0
    if size < 2:
        return one_cluster(value, len(answers))
    own = np.array([sum(total[gram] == times for gram, times in count.items()) for count in counts])
    left = tokens - np.array([count.total() for count in counts])
    error = jackknife_error((kinds - own) / np.maximum(left, 1))
    reach = float(stats.t.ppf(0.975, size - 1)) * error
    method = "jackknife t" if size == len(answers) else "clustered jackknife t"
    return Interval(value, value - reach, value + reach, len(answers), method, 0.95, error, size - 1)


def self_bleu(answers: Words) -> np.ndarray:
    """BLEU-4 of each answer with all the others as references (Papineni et al. 2002, add-one smoothing above unigrams); 1 is a copy.

    >>> self_bleu([["a", "b", "c", "d"], ["a", "b", "c", "d"], ["x", "y"]]).round(2).tolist()
    [1.0, 1.0, 0.0]
    """
    lengths = np.array([len(words) for words in answers])
    logs, unmatched = np.zeros(len(answers)), np.zeros(len(answers), bool)
    for n in range(1, ORDER + 1):
        counts = [ngrams(words, n) for words in answers]
        best = _best_two(counts)
        for i, count in enumerate(counts):
            matched = sum(min(times, best[gram][1] if best[gram][2] == i else best[gram][0]) for gram, times in count.items())
            smooth = 0.0 if n == 1 else 1.0
            unmatched[i] |= n == 1 and matched == 0
            logs[i] += math.log(max(matched + smooth, 1e-9) / max(count.total() + smooth, 1e-9)) / ORDER
    return np.where(unmatched, 0.0, np.exp(logs) * _brevity(lengths))


def _best_two(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """For each n-gram the largest count in one answer, the largest in any other, and the answer that has the largest."""
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, count in enumerate(counts):
        for gram, times in count.items():
            first, second, owner = best.get(gram, (0, 0, -1))
            best[gram] = (times, first, i) if times > first else (first, max(second, times), owner)
    return best


def _brevity(lengths: np.ndarray) -> np.ndarray:
    """BLEU's brevity penalty against the length, among the others, that is closest."""
    order = np.sort(lengths)
    found = np.ones(len(lengths))
    for i, length in enumerate(lengths):
        at = int(np.searchsorted(order, length))
        others = [int(order[k]) for k in (at - 1, at + 1) if 0 <= k < len(order)] + ([int(length)] if (order == length).sum() > 1 else [])
        closest = min(others, key=lambda other: (abs(other - length), other), default=int(length))
        found[i] = math.exp(1 - closest / length) if 0 < length < closest else 1.0
    return found
