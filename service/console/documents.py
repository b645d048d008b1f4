"""Documents that are read as a page and as an accessible PDF: the same blocks, written once."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

from service import extras
from service.console.pages import STATIC
from service.domain.errors import Unavailable

Kind = Literal["heading", "text", "lead", "facts", "table", "points", "plot", "break"]
PDF_STANDARD: Literal["ua-1"] = "ua-1"  # PDF/UA-1, ISO 14289-1: a tagged PDF that a screen reader can read


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document.

    Attributes:
        kind: What it is.
        text: The words of a heading or paragraph, the caption of a table, what a plot shows, or the heading of what
            follows on further pages.
        rows: The rows of a table or of facts, or the points of a list, one in a row.
        headers: The headers of a table.
        svg: A plot.
    """

    kind: Kind
    text: str = ""
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    headers: Sequence[str] = field(default_factory=list)
    svg: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block]


def pdf(document: Document, timestamp: int) -> bytes:
    """The document as PDF/UA-1. The same document and time (Unix seconds) give the same bytes.

    With a character that the fonts lack it is a tagged PDF that shows a box there.

    Raises:
        Unavailable: The extra `pdf` is not installed.
    """
    try:
        import typst  # a large library, which only this needs
    except ModuleNotFoundError:
        raise Unavailable(f"A PDF cannot be made: {extras.explain_missing('typst')}.") from None

    template = (resources.files("service.console") / "templates" / "document.typ").read_bytes()
    blocks = [asdict(block) | {"svg": _styled(block.svg)} for block in document.blocks]
    inputs = {"document": json.dumps({"title": document.title, "blocks": blocks})}

    def make(standards: list[Literal["ua-1"]]) -> object:
        compiler = typst.Compiler(template, ignore_system_fonts=True, sys_inputs=inputs)
        return compiler.compile(format="pdf", pdf_standards=list(standards), timestamp=timestamp)

    try:
        made = make([PDF_STANDARD])
    except typst.TypstError:  # a character that the fonts lack, which the standard forbids; the message would quote it
        made = make([])
    assert isinstance(made, bytes)
    return made


def _styled(svg: str) -> str:
    """A plot with the styles that a page would give it, in the colours of paper."""
    head, bracket, rest = str(svg).partition(">")  # of Markup, `replace` would escape
    if not bracket:
        return ""
    namespaced = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return f"{namespaced}><style>{STATIC['plot.css'].decode()}</style>{rest}"


def from_markdown(text: str) -> Iterator[Block]:
    """The blocks of a Markdown text with headings, paragraphs and tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells: list[list[str]] = []
    caption = ""
    for place, token in enumerate(tokens):
        words = _plain(token)
        match token.type, tokens[place - 1].type:
            case "inline", "heading_open":
                caption = words
                yield Block("heading", words)
            case "inline", "paragraph_open":
                yield Block("text", words)
            case "tr_open", _:
                cells.append([])
            case "inline", "th_open" | "td_open":
                cells[-1].append(words)
            case "table_close", _:
                yield Block("table", caption, cells[1:], cells[0])
                cells = []


def _plain(token: Token) -> str:
    """The words of an inline token."""
    parts = {"softbreak": " ", "hardbreak": " "}
    return "".join(parts.get(child.type, child.content) for child in token.children or ())
