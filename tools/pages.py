"""Write every generated page of the documentation: `make pages`.

A generator has `PAGE`, the file, and `page()`, its whole text. A page of which only a part is generated has that part
between `<!-- generated: NAME -->` and `<!-- end: NAME -->` (`fill`).
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

NAMES = ("colormaps", "command_line", "contributing", "coverage", "fleet_columns", "methods", "metrics", "operators")


class Generator(Protocol):
    PAGE: Path

    @staticmethod
    def page() -> str:
        """The page's text."""


def generator(name: str) -> Generator:
    return cast(Generator, import_module(f"tools.{name}"))


def fill(text: str, name: str, content: str) -> str:
    """Replace the marked part of a page.

    Raises:
        ValueError: the page has no such part, or several.
    """
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)"
    filled, count = re.subn(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one part marked `<!-- generated: {name} -->`, got {count}")
    return filled


def main() -> None:
    for name in NAMES:
        module = generator(name)
        text = module.page()
        if text != module.PAGE.read_text(encoding="utf-8"):
            module.PAGE.write_text(text, encoding="utf-8")
            print(f"wrote {module.PAGE}")


if __name__ == "__main__":
    main()
