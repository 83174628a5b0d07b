"""The commands are run as those of `tests/cli`."""

from tests.cli.conftest import plain, run

__all__ = ["plain", "run"]
