"""Programs nobody trusts, run where they can do no harm."""

from prefopt.rollout.sandbox.run import Limits, Outcome, require, run

__all__ = ["Limits", "Outcome", "require", "run"]
