"""The house's rules (docs/design/HOUSE.md) as checks: sizes, types, names, and documents that the code cites."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if (ROOT / name).is_file()
]
SOURCES = [path for path in TRACKED if path.suffix == ".py"]
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("service", "worker")]
MOST_BODY, MOST_FILE, MOST_TEST_FILE = 40, 300, 400
MOST_ANY = 8  # a thousand lines
MOST_FMT_SKIP = 39
OLD_MIGRATIONS = {"0001_the_first_schema.py", "0007_subjects_and_dialects.py"}  # never changed again
DIALECT = {"found", "told", "telling", "patience"}
DIALECT_FUNCTIONS = {
    "_say", "_same", "_in_the_way", "_made_before", "_take", "_again", "_few", "_whole", "_aim", "_keep",
}  # fmt: skip
DIALECT_MODULES = {"told", "telling", "together", "patience", "calls", "parts", "opening", "changes"}
DIALECT_ALIASES = {"step", "queries"}
KNOWN_DESIGNS = {"ARCHITECTURE", "COMPLIANCE_TOOLS", "EVIDENCE", "FORGETTING", "HOUSE", "INTERFACES", "METHOD", "STYLE"}


def label(path: Path) -> str:
    """A path as a message names it."""
    return path.relative_to(ROOT).as_posix()


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax tree."""
    return [*ast.walk(ast.parse(path.read_text()))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, nested ones included."""
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def identifiers(path: Path, wanted: set[str]) -> set[str]:
    """Which of these names a file's code has; strings and comments are prose. Few files need to be read so closely."""
    if not wanted & {*re.findall(r"\w+", path.read_text())}:
        return set()
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return wanted & {token.string for token in tokens if token.type == tokenize.NAME}


def documented(path: Path) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Everything of a file that may have a docstring."""
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def comments(path: Path) -> list[str]:
    """The comments of a file that switches the formatter off; none of another."""
    if "# fmt: " not in path.read_text():
        return []
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def test_sizes():
    """A file has 300 lines at most (a test 400), a body 40; the first migrations are older than the rule."""
    large = []
    for path in SOURCES:
        folder = path.relative_to(ROOT).parts[0]
        lines = path.read_text().count("\n")
        if lines > (MOST_TEST_FILE if folder == "tests" else MOST_FILE) and path.name not in OLD_MIGRATIONS:
            large.append(f"{label(path)}: {lines} lines")
        for function in functions(path) if path.name not in OLD_MIGRATIONS else ():
            body = function.body[1:] if ast.get_docstring(function) else function.body
            size = function.end_lineno - body[0].lineno + 1 if body else 0
            if size > MOST_BODY:
                large.append(f"{label(path)}: {function.name} has {size} lines")
    assert not large, "\n".join(large)


def test_few_values_are_of_any_type():
    """`Any` switches the type checker off, and so do its names for JSON whose members are not fixed."""
    text = [path.read_text() for path in SHIPPED]
    count = sum(len(re.findall(r"\b(?:Any|Json|JsonObject)\b", source)) for source in text)
    thousands = sum(source.count("\n") for source in text) / 1000
    assert count / thousands < MOST_ANY, f"{count} in {thousands:.1f} thousand lines"


def test_the_formatter_is_seldom_switched_off():
    """Tables of data alone are laid out by hand."""
    switch = re.compile(r"# fmt: (?:skip|off)")
    skips = [label(path) for path in SOURCES for token in comments(path) if switch.match(token)]
    assert len(skips) <= MOST_FMT_SKIP, skips


def test_names_are_the_fields():
    """Nobody has to learn a dialect to read a name."""
    strange = [label(path) for path in SOURCES if path.stem in DIALECT_MODULES]
    for path in SOURCES:
        names = identifiers(path, DIALECT | DIALECT_FUNCTIONS)
        names |= {function.name for function in functions(path) if function.name.endswith("_of")}
        for node in nodes(path):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname for alias in node.names if alias.asname in DIALECT_ALIASES}
        strange += [f"{label(path)}: {name}" for name in sorted(names)]
    assert not strange, "\n".join(strange)


def test_cited_designs_are_in_the_repository():
    """What a docstring points to can be read by whoever has the code alone."""
    cited = {
        name for path in SHIPPED for name in re.findall(r"\b(METHOD|EVIDENCE|INTERFACES|HOUSE)\b", path.read_text())
    }
    assert cited
    for name in cited:
        assert (ROOT / "docs" / "design" / f"{name}.md").is_file(), name
