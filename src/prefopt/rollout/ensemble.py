"""Several reward models as one: separate models, adapters on one trunk, or their averaged weights.

    ensemble.json     {"members": ["member-1", ...], "base": "base" or null, "reading": {...}}
    member-1/ ...     a reward model each, or a LoRA adapter on base/

A member's scores are normalised by the center and spread its own training measured on held-out rows; then the rule makes one score of
them, in the members' mean unit. Heads on one trunk need none of this: they are one model with several outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefopt.errors import ModelError
from prefopt.model.load import load_config, load_scorer, load_tokenizer
from prefopt.model.reading import KEY, Floats, Reading, Rule
from prefopt.rollout.policy import ENSEMBLE, RewardModel, load, reading_of
from prefopt.settings import ModelSettings
from prefopt.text.chat import Renderer
from prefopt.types import TokenTree

ADAPTER = "adapter_config.json"


@dataclass
class Ensemble(RewardModel):
    """A reward model whose outputs are its members' scores; `model` is the first member's, or the trunk of all."""

    members: Sequence[Callable[[Sequence[TokenTree]], list[float]]] = field(default=())
    """Each gives the scores of trees of one branch."""
    source: Path | None = None
    """The folder it came from, which `save` copies."""

    def tree_outputs(self, trees: Sequence[TokenTree]) -> Floats:
        """The members' scores [S, E]."""
        return np.stack([np.asarray(member(trees), dtype=np.float64) for member in self.members], axis=1)

    def save(self, folder: str | Path) -> None:
        """Copy the members and write the reading as it is now."""
        place = Path(folder)
        if self.source is not None and self.source != place:
            shutil.copytree(self.source, place, dirs_exist_ok=True)
        found = json.loads((place / ENSEMBLE).read_text())
        _write(place, found["members"], found["base"], self.reading)


def open_ensemble(settings: ModelSettings) -> Ensemble:
    """The ensemble of a folder.

    Raises:
        ModelError: it cannot be read, or a member cannot be opened.
    """
    folder = Path(settings.path)
    try:
        found = json.loads((folder / ENSEMBLE).read_text())
        names, base = list(found["members"]), found["base"]
        reading = Reading.from_config(found["reading"], settings.path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{ENSEMBLE} cannot be read ({error!r})", where=settings.path, fix="make the ensemble again") from error
    _refuse_steps({str(folder / name): _reading(folder / name) for name in names})
    if base is not None:
        return _adapters(replace(settings, path=str(folder / base)), folder, names, reading)
    models = [load(**{**vars(settings), "path": str(folder / name)}, kind="reward") for name in names]
    first = models[0]
    assert isinstance(first, RewardModel)
    scores = [model.tree_scores for model in models if isinstance(model, RewardModel)]
    return Ensemble(first.model, first.tokenizer, first.renderer, settings.path, reading=reading, members=scores, source=folder)


def _adapters(settings: ModelSettings, folder: Path, names: Sequence[str], reading: Reading) -> Ensemble:
    """Adapters that share the trunk's memory: one is switched on at a time."""
    from peft import PeftModel

    tokenizer = load_tokenizer(settings.path)
    readings = [_reading(folder / name) for name in names]
    trunk: Any = load_scorer(settings, outputs=len(readings[0].outputs))
    model: Any = PeftModel.from_pretrained(trunk, str(folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)
    model.eval()
    renderer = Renderer(tokenizer, settings.chat_template)
    whole = RewardModel(model, tokenizer, renderer, settings.path)

    def member(name: str, own: Reading) -> Callable[[Sequence[TokenTree]], list[float]]:
        def scores(trees: Sequence[TokenTree]) -> list[float]:
            model.set_adapter(name)
            return replace(whole, reading=own).tree_scores(trees)

        return scores

    scores = [member(name, own) for name, own in zip(names, readings, strict=True)]
    return Ensemble(model, tokenizer, renderer, str(folder), reading=reading, members=scores, source=folder)


def combine(members: Sequence[str], out: Path, *, rule: Rule, k: float) -> Reading:
    """Make the folder of an ensemble from reward models, or from the adapters of LoRA runs on one base.

    Args:
        members: model folders, or adapter folders (the `adapter` beside a LoRA run's `model`).
        out: the folder to make.
        rule: mean, min or lower_bound.
        k: standard deviations that lower_bound takes off.

    Raises:
        ModelError: fewer than two members, members that read other tokens or judge steps, or adapters of different bases.
    """
    paths = _checked(members)
    adapters = [(path / ADAPTER).exists() for path in paths]
    if any(adapters) and not all(adapters):
        raise ModelError(
            "some members are adapters and others whole models", where=members[0], fix="give either all `adapter` or all `model`"
        )
    names = [f"member-{i}" for i in range(1, len(paths) + 1)]
    readings = [_reading(path) for path in paths]
    _refuse_steps(dict(zip(members, readings, strict=True)))
    out.mkdir(parents=True, exist_ok=True)
    for path, name, reading in zip(paths, names, readings, strict=True):
        shutil.copytree(path, out / name, dirs_exist_ok=True)
        if adapters[0]:
            (out / name / f"{KEY}.json").write_text(json.dumps(reading.to_config(), indent=1))
    base = _base(paths, out) if adapters[0] else None
    reading = Reading(
        outputs=tuple(names),
        rule=rule,
        k=k,
        mean=tuple(r.center for r in readings),
        std=tuple(r.spread for r in readings),
        temperature=1 / float(np.mean([r.spread for r in readings])),  # back to the members' unit
        fitted_on="each member's own held-out rows",
    )
    _write(out, names, base, reading)
    return reading


def average(members: Sequence[str], out: Path) -> None:
    """One reward model whose weights are the mean of the members' (Ramé et al. 2024, arXiv 2401.12187, eq. 1).

    Raises:
        ModelError: the members are not of one shape or read other tokens, or are adapters.
    """
    paths = _checked(members)
    if any((path / ADAPTER).exists() for path in paths):
        raise ModelError(
            "adapters are not averaged", where=members[0], fix="give the runs' `model` folders, where the adapter is merged in"
        )
    models = [load(str(path), kind="reward") for path in paths]
    first = models[0]
    assert isinstance(first, RewardModel)
    weights = [model.model.state_dict() for model in models]
    shapes = [{name: tensor.shape for name, tensor in found.items()} for found in weights]
    if any(found != shapes[0] for found in shapes[1:]):
        raise ModelError("the members' weights are of different shapes", where=members[0], fix="average models that started from one model")
    mean = {name: torch.stack([w[name].double() for w in weights]).mean(0).to(t.dtype) for name, t in weights[0].items()}
    first.model.load_state_dict(mean)
    first.reading = replace(first.reading, temperature=1.0, center=0.0, spread=1.0, fitted_on="")
    first.save(out)


def _checked(members: Sequence[str]) -> list[Path]:
    """The members' folders, all reading the same tokens."""
    if len(members) < 2:
        raise ModelError(f"an ensemble needs two members or more, found {len(members)}", where="members", fix="members: [a, b, c]")
    paths = [Path(member) for member in members]
    for path in paths:
        if not path.is_dir() or (path / ENSEMBLE).exists():
            raise ModelError("a member is the folder of one reward model", where=str(path), fix="check the path")
    identities = {Renderer(load_tokenizer(str(_model_of(path)))).identity() for path in paths}
    if len(identities) > 1:
        fix = "all members must have one tokenizer and chat template"
        raise ModelError("the members read different tokens", where="members", fix=fix)
    return paths


def _refuse_steps(readings: Mapping[str, Reading]) -> None:
    """Members are asked about whole answers, in which a process reward model sees one step."""
    judging = next((member for member, reading in readings.items() if reading.solution), None)
    if judging is not None:
        raise ModelError(
            "a process reward model cannot be a member: an ensemble reads no steps", where=judging, fix="rule: average_weights"
        )


def _model_of(path: Path) -> Path:
    """Where a member's tokenizer and reading are: an adapter has them in the merged model beside it."""
    return path.parent / "model" if (path / ADAPTER).exists() and (path.parent / "model").is_dir() else path


def _reading(path: Path) -> Reading:
    """A member's reading."""
    kept = path / f"{KEY}.json"
    if kept.exists():
        return Reading.from_config(json.loads(kept.read_text()), str(path))
    where = str(_model_of(path))
    return reading_of(load_config(where), where)


def _base(paths: Sequence[Path], out: Path) -> str:
    """Copy the trunk all adapters stand on."""
    bases = {json.loads((path / ADAPTER).read_text())["base_model_name_or_path"] for path in paths}
    if len(bases) > 1:
        raise ModelError(
            f"the adapters stand on different models: {', '.join(sorted(bases))}", where="members", fix="use adapters of one base"
        )
    (base,) = bases
    if not Path(base).is_dir():
        raise ModelError("the adapters' base is no folder", where=base, fix="keep the model that the LoRA runs started from where it was")
    shutil.copytree(base, out / "base", dirs_exist_ok=True)
    return "base"


def _write(folder: Path, names: Sequence[str], base: str | None, reading: Reading) -> None:
    found = {"members": list(names), "base": base, "reading": reading.to_config()}
    (folder / ENSEMBLE).write_text(json.dumps(found, indent=1) + "\n")
