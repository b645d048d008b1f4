"""Program logs hold named fields and no text of anybody."""

import contextlib
import io
import logging
from pathlib import Path

import pytest

from service.observability.logging import FIELDS, configure, get_logger

SECRET = "Zoraida Quill answers to 07700 900123"


@pytest.fixture
def written(monkeypatch):
    """What this process logs from now on."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    configure("INFO")
    stream = io.StringIO()
    monkeypatch.setattr(root.handlers[0], "stream", stream)
    yield stream.getvalue
    root.handlers[:] = kept
    root.setLevel(level)


def fail():
    """An exception that quotes somebody, from another."""
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError(f"bad: {SECRET}") from error


def test_fields_of_the_list_are_written_and_others_are_not(written):
    """In one line, in logfmt."""
    get_logger("service.steps").info("claimed", job="7f3", fence=3, text=SECRET, subject={"value": SECRET})
    (line,) = written().splitlines()
    assert line.split(" ", 1)[1] == "level=info logger=service.steps event=claimed job=7f3 fence=3"
    assert line.startswith("timestamp=20")


def test_of_an_exception_the_frames_are_written_and_no_message(written):
    """By our loggers and by everybody's."""
    for log in (get_logger("ours"), logging.getLogger("somebody.else")):
        try:
            fail()
        except RuntimeError:
            log.exception("an attempt failed")
    lines = written().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "error=RuntimeError" in line
        assert "test_logging.py" in line
        assert "in fail" not in line
        assert " fail" in line
    assert "Zoraida" not in written()
    assert "900123" not in written()


def test_a_task_that_raises_is_named_and_not_quoted(written):
    """Celery writes an exception's message and traceback into its own line."""
    from celery import Celery
    from celery.app.trace import build_tracer

    app = Celery(set_as_current=False)
    app.conf.task_always_eager = False

    @app.task(name="index")
    def index():
        fail()

    build_tracer("index", index, app=app)("1f", [], {}, {"id": "1f", "hostname": "here"})
    assert "Task index[1f] raised" in written()
    assert "Zoraida" not in written()


def test_lines_stay_lines(written):
    """Whatever another library says."""
    logging.getLogger("celery").warning('two\nlines and "quotes"')
    assert len(written().splitlines()) == 1


def test_a_line_that_cannot_be_written_is_lost_in_silence(written, monkeypatch, capsys):
    """The standard library would write a traceback that quotes the record."""
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(logging.getLogger().handlers[0], "stream", full)
        logging.getLogger("somebody").warning("about %s", SECRET)
        with contextlib.suppress(OSError):
            full.close()
    assert not capsys.readouterr().err


def test_no_field_of_the_list_could_hold_a_text():
    """Ids, names of ours, numbers and codes."""
    assert not {"text", "texts", "value", "subject", "body", "url", "message", "exception", "name"} & set(FIELDS)
