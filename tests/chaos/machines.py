"""What a stack has beside itself: a second control and compute worker, and storage seen as one folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from service.local import valkey
from tests.s3 import S3Server

if TYPE_CHECKING:
    from tests.chaos.stack import Chaos

CELERY = "-m celery -A worker.app worker --pool threads --without-mingle --without-gossip --loglevel INFO"


@contextmanager
def helpers(stack: "Chaos") -> Iterator[None]:
    """A second control and compute worker, for when one of the first is frozen."""
    options = {
        "control-2": ["-Q", "control", "-n", "control-2@%h", "-B", "--schedule", str(stack.data / "run" / "beat-2")],
        "compute-2": ["-Q", "gpu", "-n", "compute-2@%h"],
    }
    started = []
    with (stack.data / "logs" / "helpers.log").open("ab") as log:
        for name, more in options.items():
            command = [sys.executable, *CELERY.split(), *more]
            started.append(
                subprocess.Popen(command, env=_environment(stack, name), stdout=log, stderr=log, start_new_session=True)
            )
        try:
            yield
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(40)
            for name in options if stack.s3 else ():  # their machines are gone
                shutil.rmtree(stack.data / "storage" / name, ignore_errors=True)


def _environment(stack: "Chaos", name: str) -> dict[str, str]:
    """The variables of such a worker."""
    storage = stack.data / "storage"
    return {
        **os.environ,
        **stack.times,
        "TMPDIR": str(stack.data / "tmp"),
        "UNLEARND_FAILPOINTS": str(stack.points),
        "UNLEARND_STORAGE_DIR": str(storage / name if stack.s3 else storage),
        "UNLEARND_KEYS_DIR": str(stack.data / "keys"),
        "UNLEARND_DATABASE_URL": stack.database,
        "UNLEARND_BROKER_URL": valkey.url(stack.sockets),
        "UNLEARND_CORPUS_ROOTS": f"{stack.data.parent}:{os.environ.get('UNLEARND_CORPUS_ROOTS', '')}",
        "UNLEARND_CALLBACK_ALLOW_PRIVATE": "true",
    }


def stored(server: S3Server | None, data: Path) -> Path:
    """Storage as a folder has it. Of a bucket, `work` is also what is left on a machine or has no entry."""
    if server is None:
        return data / "storage"
    raw, view = data.parent / "bucket", data.parent / "view"
    server.copy(raw)
    shutil.rmtree(view, ignore_errors=True)
    for name in ("versions", "work", "staging", "ledger"):
        (view / name).mkdir(parents=True)
    uploads = {folder.name for folder in raw.glob("data/*")}
    for entry in raw.glob("entries/*"):
        if name := entry.read_text():  # it was not taken away
            uploads.discard(name)
            (view / "versions" / entry.name).symlink_to(raw / "data" / name)
    left = [path for name in ("work", "certified", "doomed") for path in raw.glob(f"{name}/*")]
    left += [raw / "data" / name for name in uploads]
    left += [*data.glob("storage/*/copies/work/*"), *data.glob("storage/*/copies/staging/*")]
    for path in left:
        if path.is_file() or any(file.is_file() for file in path.rglob("*")):
            (view / "work" / "-".join(path.parts[-3:])).touch()
    shutil.copytree(raw / "ledger" / "published", view / "ledger" / "published")
    return view
