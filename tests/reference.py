"""The pages written from the program's own tables; `python3 -m tests.reference` writes options.md and .env.example."""

from __future__ import annotations

from typing import List

import gpt_image
from tests.support import ROOT


def backticked(*words: str) -> str:
    """Returns words as code in Markdown."""
    return " ".join(f"`{word}`" for word in words if word)


def table_row(row: gpt_image.Option) -> str:
    """Returns the line of an option in its table."""
    cells = [
        backticked(*gpt_image.spellings(row)),
        backticked(row.kind.metavar),
        "all routes" if row.commands == gpt_image.ALL else ", ".join(row.commands),
        backticked(".".join(row.path)) if row.sends else "",
        backticked(*row.env),
        row.default or "",
        row.help,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def options_page() -> str:
    """Returns references/options.md: a table for each group of options."""
    lines: List[str] = ["# Options", "", "Written by `python3 -m tests.reference` from the program's own table."]
    for group in dict.fromkeys(row.group for row in gpt_image.OPTIONS):
        lines += ["", f"## {group}", "", "| option | value | commands | API field | environment | default | meaning |"]
        lines += ["|" + " --- |" * 7]
        lines += [table_row(row) for row in gpt_image.OPTIONS if row.group == group]
    return "\n".join(lines) + "\n"


def write_pages() -> None:
    """Writes both pages anew."""
    (ROOT / "references" / "options.md").write_text(options_page(), "utf-8")
    (ROOT / ".env.example").write_text(gpt_image.example_dotenv(), "utf-8")


if __name__ == "__main__":
    write_pages()
