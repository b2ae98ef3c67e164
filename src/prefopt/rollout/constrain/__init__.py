"""What an answer may be: a regular expression, strings it must not or must hold, strings that end it."""

from prefopt.rollout.constrain.machines import constraint, stopper
from prefopt.rollout.constrain.vocabulary import Constraint, Vocabulary

__all__ = ["Constraint", "Vocabulary", "constraint", "stopper"]
