"""The examples in the docstrings of the losses run and say what comes out."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from prefopt import losses

MODULES = [module.name for module in pkgutil.iter_modules(losses.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"prefopt.losses.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
