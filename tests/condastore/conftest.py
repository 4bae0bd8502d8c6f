"""Fixtures for the tests of the command line and of `condastore up`."""

from tests.condastore.fixtures import *  # noqa: F403
