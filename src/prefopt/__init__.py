"""prefopt: preference optimization of language models, from a model and preferences to an aligned model with its evidence.

Importing this package loads no torch; `load` and `train` do when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.pipeline.api import train as train
    from prefopt.rollout.policy import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import `load` and `train` when they are first asked for."""
    if name == "load":
        from prefopt.rollout.policy import load

        return load
    if name == "train":
        from prefopt.pipeline.api import train

        return train
    raise AttributeError(f"module 'prefopt' has no attribute '{name}'")
