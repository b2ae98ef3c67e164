"""quickstart, run and train: commands that leave a run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

import prefopt
from prefopt.cli.gate import leave
from prefopt.errors import OptionError

Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options, such as train.steps=100.")]


def quickstart(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/quickstart"),
) -> None:
    """Run the whole pipeline on a synthetic world, on a CPU.

    Pretrain, SFT, sample pairs, simulated annotators, DPO, a reward model and PPO, evaluation against the known truth, and an HTML
    report; about three minutes on two cores.

    Example: prefopt quickstart --out runs/first
    """
    _run(recipes() / "quickstart.yaml", settings or [], out)


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with `stages:`.", show_default=False)],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME of the recipe when not given.", show_default=False)] = None,
) -> None:
    """Run the stages of a recipe that are not done yet.

    A key sets that option in every stage that reads it, STAGE.KEY=VALUE in one stage; what the recipe takes from an earlier stage stays so.

    Example: prefopt run recipes/sft-then-dpo.yaml model.path=./base dpo.beta=0.05
    """
    _run(recipe, settings or [], out or Path("runs") / recipe.stem)


def train(
    method: Annotated[str, typer.Argument(help="A row of `prefopt methods`.", show_default=False)],
    model: Annotated[str, typer.Option(help="A Hugging Face folder or hub name.", show_default=False)],
    data: Annotated[list[str], typer.Option(help="Files, folders or hub names; may be given several times.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run folder.", show_default=False)],
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Clear a folder that holds a run with other settings.")] = False,
) -> None:
    """Train a model with one method.

    The result is OUT/model, which transformers and vLLM open. Run again after a stop, it goes on where it stopped.

    Example: prefopt train dpo --model ./my-model --data prefs.jsonl --out runs/x beta=0.1 train.learning_rate=5e-6
    """
    from prefopt.pipeline.api import train_stage
    from prefopt.pipeline.source import COMMAND_LINE, parse_override

    overrides = [parse_override(argument) for argument in settings or []]
    paths: str | list[str] = data[0] if len(data) == 1 else data
    train_stage(method, model, paths, out, overrides, origin=COMMAND_LINE, overwrite=overwrite, say=typer.echo)


def _run(path: Path, settings: list[str], out: Path) -> None:
    from prefopt.pipeline.recipe import load
    from prefopt.pipeline.run import run as run_recipe

    finished = run_recipe(load(path, settings), out, typer.echo)
    for outputs in finished.outputs.values():
        if "report" in outputs:
            typer.echo(f"report: {os.path.normpath(outputs['report'])}")
    places = [outputs["verdict"] for outputs in finished.outputs.values() if "verdict" in outputs]
    leave({place: str(json.loads(Path(place).read_text(encoding="utf-8"))["verdict"]) for place in places})


def recipes() -> Path:
    """The recipes that come with the package: beside it when installed, at the repository's root otherwise.

    Raises:
        OptionError: they are in neither place.
    """
    package = Path(prefopt.__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return folder
    raise OptionError("the built-in recipes are missing", where=str(package / "recipes"), fix="install prefopt again")
