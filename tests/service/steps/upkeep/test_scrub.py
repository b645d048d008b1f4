"""Every published file is hashed again, the oldest first; the log, the doctor and the metrics name what was changed."""

import os
import shutil
import time

from service.doctor import examine
from service.steps.upkeep.scrub import scrub_next
from tests.service.jobs import published, release_folder


def make_older(services, digest, days: float) -> None:
    """Let a release have been hashed that long ago."""
    then = time.time() - days * 86_400
    os.utime(services.settings.storage_dir / "scrubbed" / digest, (then, then))


def test_each_release_is_hashed_once_in_a_while(api, services, model):
    """Those that were never hashed come first, then the oldest; none before its time."""
    published(api, services, "a record")
    digests = [release_folder(api, services, number).name for number in (0, 1)]
    assert [scrub_next(services) for _ in range(3)] == [True, True, False]
    assert services.storage.scrubbed().keys() == set(digests)
    make_older(services, digests[0], 6.9)
    assert not scrub_next(services)
    make_older(services, digests[0], 7.1)
    make_older(services, digests[1], 8)
    assert scrub_next(services)
    assert services.storage.scrubbed()[digests[1]][0] < 60 < services.storage.scrubbed()[digests[0]][0]


def test_a_flipped_bit_is_named_until_the_release_is_restored(api, services, model, caplog):
    """In the log, by the doctor and in the metrics."""
    published(api, services, "a record")
    folder = release_folder(api, services)
    file = folder / "model" / "model.safetensors"
    backup = shutil.copy(file, folder.parents[1] / "backup")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    while scrub_next(services):
        pass
    assert "a published file was changed" in caplog.text
    assert "model/model.safetensors" in caplog.text
    (problem,) = [finding.problem for finding in examine(services) if finding.check == "versions"]
    assert folder.name in problem
    assert "model/model.safetensors" in problem
    assert "unlearnd_releases_damaged 1.0" in api.get("/metrics").text
    shutil.copy(backup, file)
    make_older(services, folder.name, 8)
    assert scrub_next(services)
    assert not [finding for finding in examine(services) if finding.check == "versions"]
    assert "unlearnd_releases_damaged 0.0" in api.get("/metrics").text


def test_a_worker_that_stops_hashes_no_further(api, services, model):
    """And remembers nothing that it did not finish."""
    published(api, services, "a record")
    answers = iter([True, True, True, False])
    assert not scrub_next(services, go_on=lambda: next(answers))
    assert not services.storage.scrubbed()


def test_releases_that_are_gone_are_forgotten(services, model):
    """Their memory would grow for ever."""
    services.storage.note_scrubbed("0" * 64, ["model/model.safetensors"])
    scrub_next(services)
    assert "0" * 64 not in services.storage.scrubbed()
