"""`python -m prefopt.cli`."""

from prefopt.cli import main

main()
