"""The documentation: what it names exists, and what is made from the code covers the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service.cli import app
from service.client import AsyncClient, Client
from service.config import Settings
from service.schemas.models import Policy

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WRITTEN = [page for page in PAGES if "reference" not in page.parts]


def commands(group, before: str = "") -> set[str]:
    """Every command of the application, as one types it."""
    names = set()
    for name, command in group.commands.items():
        names |= commands(command, f"{before}{name} ") if hasattr(command, "commands") else {f"{before}{name}"}
    return names


def test_the_readme_is_short():
    """A newcomer reads it to the end."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_names_exists(page):
    """`unlearnd X Y` in code is a command of ours; designs may name what comes later."""
    known = commands(typer.main.get_command(app))
    named = re.findall(r"(?:^|`|\$\(|/)unlearnd ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", page.read_text(), re.MULTILINE)
    for first, second in named:
        assert first in known or f"{first} {second}" in known or "design" in page.parts, f"{first} {second}"


def parameters(line: str) -> tuple[str, set[str]]:
    """The command that a line runs, and the options which that command has."""
    command, name = typer.main.get_command(app), "unlearnd"
    for word in line.split()[1:]:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command, name = command.commands[word], f"{name} {word}"
    return name, {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_in_a_block_exists(page):
    """Blocks without a title are not run, but their commands have the options that they show."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in re.findall(r"unlearnd [a-z][^|;&)#]*", "\n".join(blocks).replace("\\\n", " ")):
        name, options = parameters(line.splitlines()[0])
        assert set(re.findall(r"(?<=\s)--[a-z-]+", line.splitlines()[0])) <= options, f"{name}: {line}"


def test_the_python_page_calls_what_exists():
    """Its blocks compile, their imports work, and the clients have every operation that they call."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block, client in zip(blocks, (Client, AsyncClient), strict=True):
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "python.md", "exec"), {})
        called = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert "submit" in called
        assert all(hasattr(client, name) for name in called), called


def test_every_decision_is_in_the_index():
    """Numbered without a gap, each with the same parts, a date and a status."""
    index = (DOCS / "adr" / "index.md").read_text()
    files = sorted((DOCS / "adr").glob("0*.md"))
    for number, file in enumerate(files, 1):
        text = file.read_text()
        assert file.name.startswith(f"{number:04d}-")
        assert f"]({file.name})" in index
        assert re.search(r"^- Date: 20\d\d-\d\d-\d\d\n- Status: (accepted|superseded)", text, re.MULTILINE)
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_links_between_pages_lead_somewhere():
    """Those of the site, of README and of CONTRIBUTING. The reference is made from the code when the site is built."""
    for page in (*WRITTEN, ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            target = (page.parent / link).resolve()
            assert target.exists() or target.parent == DOCS / "reference", f"{page.relative_to(ROOT)}: {link}"


def test_every_page_is_in_the_menu():
    """The strict build fails on a page without a place. Decisions are reached from their index."""
    menu = set(re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(DOCS)) for page in WRITTEN if page.is_relative_to(DOCS)}
    assert {page for page in pages if not re.match(r"adr/0", page)} == {
        page for page in menu if not page.startswith("reference/")
    }


def test_the_reference_covers_the_code():
    """Every command, setting and policy field is on its page."""
    subprocess.run([sys.executable, str(DOCS / "generate.py")], cwd=ROOT, check=True)
    reference = {page.stem: page.read_text() for page in (DOCS / "reference").glob("*.md")}
    assert all(f"## `unlearnd {name}`" in reference["cli"] for name in commands(typer.main.get_command(app)))
    assert all(f"`UNLEARND_{name.upper()}`" in reference["settings"] for name in Settings.model_fields)
    assert all(f"| `{name}` |" in reference["policy"] for name in Policy.model_fields)
    assert "### `POST /v1/deletion-requests`" in reference["http"]
    assert "`predicate.verification" in reference["certificate"]
