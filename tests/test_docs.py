"""The pages refer only to what exists: files, headings, commands with their options, targets of make."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from commands import ROOT

import hiar.cli  # noqa: F401 (adds the commands)
from hiar.cli.app import app
from hiar.errors import UserError

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md")]
PAGES = sorted(page for page in PAGES if page.relative_to(ROOT).parts[0] not in ("runs", "reports", "artifacts"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CUT = {"|", ">", "&&", ";", "||"}  # where the shell ends a command


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def lines() -> set[str]:
    """The lines of all code blocks; continued lines are joined."""
    return {
        line.strip()
        for page in PAGES
        for block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
    }


def test_hiar_accepts_the_commands_of_the_pages() -> None:
    """Checked with its own parser; nothing is run."""
    root, read = typer.main.get_command(app), set()
    for line in lines():
        words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?hiar ", line) else []
        words = words[: next((place for place, word in enumerate(words) if word in CUT), len(words))]
        command, names = root, words[:1]
        while words[1:] and hasattr(command, "commands"):
            words, names = words[1:], [*names, words[1]]
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        if names[1:]:
            read.add(" ".join(names[1:]))
            try:
                command.make_context(words[0], words[1:])
            except (typer.TyperException, UserError) as error:
                pytest.fail(f"{line}: {error}")
    assert {"sample", "stream", "score", "import", "export", "plan", "vbench score", "config show"} <= read


def test_make_has_the_targets_of_the_pages() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "live", "test", "stack", "vbench"} <= named <= targets
