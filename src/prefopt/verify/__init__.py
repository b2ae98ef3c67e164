"""Every method against what theory says of its optimum, on worlds whose completions can all be listed."""

from prefopt.verify.claims import CLAIMS, Claim
from prefopt.verify.run import Verdict, table, verify

__all__ = ["CLAIMS", "Claim", "Verdict", "table", "verify"]
