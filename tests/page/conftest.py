"""What the tests of the page without a server share."""

from __future__ import annotations

import pytest

from tests.support.javascript import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The page's modules, in Node."""
    return Node(tmp_path_factory.mktemp("page") / "modules")
