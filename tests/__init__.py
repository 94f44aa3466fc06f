"""Tests of gpt_image.py, and the stand-in gateway they talk to."""

import unittest
from typing import Optional


def load_tests(loader: unittest.TestLoader, _: unittest.TestSuite, pattern: Optional[str]) -> unittest.TestSuite:
    """Returns the tests of all modules, as a suite that runs them on every core; unittest calls this by its name."""
    from tests.parallel import ParallelSuite, modules

    return ParallelSuite(loader.loadTestsFromNames(modules(pattern or "test*.py")))
