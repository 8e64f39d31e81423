"""Examples in docstrings run as shown."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["prunelab.methods.base", "prunelab.methods.one_shot"])
def test_the_examples_of_docstrings_give_what_they_say(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 3
    assert not found.failed
