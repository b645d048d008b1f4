"""Reference texts of a model: they are copied into storage, and held-out texts are checked."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from service.bootstrap import Services
from service.confined import refused_as_invalid
from service.domain.errors import Invalid
from service.domain.reference_texts import MAX_COPIES, MAX_SHARE, ReferenceTexts, overlaps_too_much
from service.subjects.kinds import likeness
from service.subjects.overlap import count_copies, measure_overlap, read_stored_texts
from service.text_files import UnreadableTexts, parse_texts

MIN_HELDOUT = 20  # as in the engine: fewer texts have no 95th percentile


def store_retain_and_heldout(services: Services, retain_path: str, heldout_path: str) -> list[ReferenceTexts]:
    """Copy both files into storage; returns the retain texts and the held-out texts.

    Raises:
        Invalid: A file cannot be read or has too few texts, or the held-out texts do not fit.
    """
    retain = _store(services, "retain_path", retain_path, 1)
    return [retain, _checked(services, retain, _store(services, "heldout_path", heldout_path, MIN_HELDOUT))]


def store_neighbours(services: Services, paths: Mapping[str, str], retain: ReferenceTexts) -> dict[str, ReferenceTexts]:
    """Copy named files of texts that no version may lose into storage.

    Raises:
        Invalid: A file cannot be read, has no text, or has texts that are trained on.
    """
    stored = {name: _store(services, f"neighbour_paths.{name}", path, 1) for name, path in paths.items()}
    for name, texts in stored.items():
        files = [services.storage.reference_texts(of["sha256"]) for of in (retain, texts)]
        if overlaps_too_much(measure_overlap(*map(read_stored_texts, files)), texts["records"]):
            message = f"More than {MAX_SHARE:.0%} of these texts are also retain texts, which training keeps."
            raise Invalid(message, field=f"neighbour_paths.{name}")
    return stored


def _store(services: Services, field: str, path: str, min_count: int) -> ReferenceTexts:
    """Copy reference texts into storage as JSON lines."""
    with refused_as_invalid(field):
        root, real = services.text_roots.find(path)
        file = root.open(real)
    try:
        texts = parse_texts(file, Path(path).suffix)
        lines = (json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)
        digest, count = services.storage.add_reference_texts(lines)
    except (ValueError, csv.Error) as error:
        message = str(error) if isinstance(error, UnreadableTexts) else "The file is not UTF-8 text in a known form."
        raise Invalid(message, field=field) from error
    if count < min_count:
        raise Invalid(f"The file holds {count} texts; at least {min_count} are needed.", field=field)
    return {"sha256": digest, "records": count}


def _checked(services: Services, retain: ReferenceTexts, heldout: ReferenceTexts) -> ReferenceTexts:
    """The held-out texts with how many are also retain texts, and how like retain text they are.

    Raises:
        Invalid: Too many are retain texts, whose thresholds training makes easy to keep. Or too many are copies.
    """
    paths = [services.storage.reference_texts(texts["sha256"]) for texts in (retain, heldout)]
    records, overlap = heldout["records"], measure_overlap(*map(read_stored_texts, paths))
    if overlaps_too_much(overlap, records):
        message = f"Of {records} held-out texts, {overlap['exact']} are also retain texts, and {overlap['near']} are"
        raise Invalid(f"{message} near copies of some; at most {MAX_SHARE:.0%} may be.", field="heldout_path")
    copies = count_copies(read_stored_texts(paths[1]))
    if copies > MAX_COPIES * records or records - copies < MIN_HELDOUT:
        message = f"Of {records} held-out texts, {copies} are copies of others; at most {MAX_COPIES:.0%} may be,"
        raise Invalid(f"{message} and {MIN_HELDOUT} distinct texts are needed.", field="heldout_path")
    like = likeness(*map(read_stored_texts, paths))
    return {**heldout, "overlap": overlap, "likeness": like}
