"""What the tests of the page without a server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import web_runtime
from tests.support.javascript import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The page's modules, in Node."""
    return Node(tmp_path_factory.mktemp("page") / "modules")


@pytest.fixture(scope="session")
def web() -> Path:
    """The package onnxruntime-web."""
    return web_runtime.package()
