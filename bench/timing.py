"""Timing two sides, and a row of the table that compares them."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def row(name: str, theirs: float, ours: float, unit: str, note: str) -> str:
    """A row of the table."""
    return f"| {name} | {theirs:.2f} {unit} | {ours:.2f} {unit} | {theirs / ours:.1f} x | {note} |"


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """A function's value and its seconds."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def measure_in_process(
    function: Callable[Concatenate["Connection[tuple[float, ...], None]", P], None], *args: P.args, **kwargs: P.kwargs
) -> tuple[float, ...]:
    """Run a function in a fresh process, so that its memory alone is measured; returns the values that it sends."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=function, args=(sender, *args), kwargs=kwargs)
    process.start()
    values: tuple[float, ...] = receiver.recv()
    process.join()
    return values
