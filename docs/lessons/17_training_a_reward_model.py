"""A small transformer learns to score answers: more pairs help, more epochs teach it the pairs by heart."""
# slow: about half a minute

# %% [markdown]
# # 17. Training a reward model
#
# **Question.** A language model with a score head, a few hundred labelled pairs: how good does it get, what limits it, and which numbers
# show that it has begun to learn the labels by heart?
#
# **Expectation.** Accuracy on held-out pairs rises with the number of pairs, towards the ceiling that the annotator's own wavering sets.
# With many epochs on few pairs, accuracy on the TRAINING pairs goes on rising past that ceiling; held-out loss turns up before held-out
# accuracy falls, because the model first becomes too sure.
#
# Requests and drafts of the synthetic world, its most reliable annotator, a transformer of two layers with random weights: it knows no
# word before. `prefopt.train` as a user would call it.

# %%
import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import prefopt
from prefopt.data.read import read
from prefopt.pipeline.create import create
from prefopt.pipeline.kinds import CreateOptions
from prefopt.world import ANNOTATORS, World

world, judge = World(0), ANNOTATORS["gold"]
folder = Path(tempfile.mkdtemp())


def pairs(n: int, seed: int) -> tuple[list[dict], np.ndarray]:
    """Rows, and how sure the annotator is of each."""
    rng, rows, sure = np.random.default_rng(seed), [], []
    for request in world.requests(n, seed=seed):
        a, b = world.draft(request, rng), world.draft(request, rng)
        p = judge.probabilities(request.meta, a, b).a
        chosen, rejected = (a, b) if rng.random() < p else (b, a)
        sides = {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", chosen), ("rejected", rejected))
        }
        rows.append({"prompt": [m.to_dict() for m in request.prompt], **sides})
        sure.append(max(p, 1 - p))
    return rows, np.array(sure)


def save(name: str, rows: list[dict]) -> Path:
    """A JSONL file of the rows whose two answers differ."""
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["chosen"] != row["rejected"])
    )
    return path


train_rows, _ = pairs(2400, seed=1)
held_rows, sure = pairs(400, seed=2)
files = {n: save(f"train{n}", train_rows[:n]) for n in (300, 2400)}
heldout = save("heldout", held_rows)
options = CreateOptions(
    vocab_size=600, hidden_size=48, intermediate_size=128, layers=2, heads=4, max_length=192
)
size = create(read(str(files[2400])), options, folder / "base")
print(
    f"{size:,} parameters; a perfect model would agree with {sure.mean():.1%} of the held-out labels"
)


# %%
def train(n: int, epochs: int) -> list[dict]:
    """The metrics of a run, step by step."""
    with (
        contextlib.redirect_stdout(None),
        open(os.devnull, "w") as quiet,
        contextlib.redirect_stderr(quiet),
    ):
        run = prefopt.train(
            "reward",
            model=folder / "base",
            data=files[n],
            out=folder / f"run{n}",
            train={
                "epochs": epochs,
                "batch_size": 32,
                "learning_rate": 3e-3,
                "schedule": "constant",
                "eval_every": 25,
                "micro_tokens": 8192,
            },
            **{"data.eval_path": str(heldout), "data.max_dropped": 1.0, "centering": 0.01},
        )
    return [
        json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]


few, many = train(300, epochs=25), train(2400, epochs=4)


def curve(run: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric."""
    points = [(row["step"], row[key]) for row in run if key in row]
    return [float(step) for step, _ in points], [float(value) for _, value in points]


for name, run in (("300 pairs, 25 epochs", few), ("2400 pairs, 4 epochs", many)):
    accuracy, loss = curve(run, "eval/rewards/accuracies")[1], curve(run, "eval/loss")[1]
    seen = np.mean(curve(run, "rewards/accuracies")[1][-10:])
    best = int(np.argmin(loss))
    print(
        f"{name}: training accuracy at the end {seen:.0%}; held out: best loss {loss[best]:.3f}, last loss {loss[-1]:.3f}"
    )
    print(
        f"    held-out accuracy {accuracy[best]:.1%} at the best loss, {accuracy[-1]:.1%} at the end"
    )

# %% plot
from plot import Plot

p1 = (
    Plot("Held-out loss", x="step", y="−log σ(gap)")
    .line("300", *curve(few, "eval/loss"))
    .line("2400", *curve(many, "eval/loss"))
)
p2 = Plot("Held-out accuracy", x="step", y="share").line(
    "300", *curve(few, "eval/rewards/accuracies")
)
p2.line("2400", *curve(many, "eval/rewards/accuracies")).rule(
    y=float(sure.mean()), label="ceiling"
)
p1.save("17", p2)

# %%
few_loss, many_loss = curve(few, "eval/loss")[1], curve(many, "eval/loss")[1]
few_right, many_right = (
    curve(few, "eval/rewards/accuracies")[1],
    curve(many, "eval/rewards/accuracies")[1],
)
few_best, many_best = few_right[int(np.argmin(few_loss))], many_right[int(np.argmin(many_loss))]
learned = np.mean(curve(few, "rewards/accuracies")[1][-10:])

# %% [markdown]
# **Found.** With 300 pairs the model reached {{learned:.0%}} on its training pairs, above the {{sure.mean():.0%}} that anybody could predict, while held-out
# loss rose from {{min(few_loss):.2f}} to {{few_loss[-1]:.2f}}, far above the ln 2 of a model that knows nothing. Eight times as many pairs took held-out accuracy,
# at the best held-out loss of each, from {{few_best:.1%}} to {{many_best:.1%}}.
#
# **Where it ends.** One epoch is the usual choice, and all pairs of one prompt belong on one side of the split. The score is calibrated only
# as long as held-out loss is near its minimum (lesson 14).

# %%
assert learned > sure.mean() + 0.05
assert few_loss[-1] > min(few_loss) + 0.3
assert many_best > few_best + 0.03
assert max(many_right) < sure.mean() + 0.03
assert min(many_loss) < min(few_loss)
