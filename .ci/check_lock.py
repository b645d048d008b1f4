"""Part of `make check`: the lock has what pyproject.toml asks for, and each image's lock is a part of it. Offline."""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
Pins = dict[str, list[tuple[Requirement, frozenset[str]]]]
ENTRY = re.compile(r"^[^\s#].*(?:\\\n +--hash=\S+ *)+", re.MULTILINE)
UNLOCKED = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # each machine has its own
# Where a user may be: 3.11 to 3.13 on Linux and macOS.
PLACES = [
    {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.9", "sys_platform": platform, "extra": ""}
    for minor, platform in product((11, 12, 13), ("linux", "darwin"))
]


def read(lock: str) -> Pins:
    """The pins of a lock by name, each with its hashes."""
    pins: Pins = {}
    for entry in ENTRY.findall(lock):
        pin = Requirement(entry.split("\\")[0])
        pins.setdefault(canonicalize_name(pin.name), []).append((pin, frozenset(re.findall(r"--hash=(\S+)", entry))))
    return pins


def wanted(project: dict, extras: Iterable[str]) -> Iterator[Requirement]:
    """What `pip install unlearnd[extras]` asks for by name, torch left out."""
    for text in [*project["dependencies"], *(d for e in extras for d in project["optional-dependencies"][e])]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            yield from wanted({**project, "dependencies": []}, requirement.extras)
        elif requirement.name != "torch":
            yield requirement


def missing(requirements: Iterable[Requirement], lock: str) -> list[str]:
    """What the lock lacks, has in a version out of range, or has though it should not."""
    pins = read(lock)
    faults = [f"{name} is in the lock" for name in pins if UNLOCKED.fullmatch(name)]
    if len(re.findall(r"^[^\s#]", lock, re.MULTILINE)) != sum(len(entries) for entries in pins.values()):
        faults.append("a line of the lock has no hash")
    for requirement in requirements:
        for place in PLACES:
            if requirement.marker and not requirement.marker.evaluate(place):
                continue
            candidates = [p for p, _ in pins.get(canonicalize_name(requirement.name), ())]
            versions = [next(iter(p.specifier)).version for p in candidates if not p.marker or p.marker.evaluate(place)]
            if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
                faults.append(f"{requirement}: the lock has {versions or 'nothing'}")
                break
    return faults


def check(root: Path) -> list[str]:
    """Everything that is out of step, a line each."""
    configuration = tomllib.loads((root / "pyproject.toml").read_text())
    project = configuration["project"]
    lock = (root / "requirements.lock").read_text()
    faults, whole = missing(wanted(project, project["optional-dependencies"]), lock), read(lock)
    builds = [Requirement(text) for text in configuration["build-system"]["requires"]]
    parts = {"build": builds}
    for dockerfile in sorted((root / "docker").glob("*.Dockerfile")):
        (extras,) = re.findall(r"'unlearnd\[(.+)\]'", dockerfile.read_text())
        parts[dockerfile.stem] = list(wanted(project, extras.split(",")))
    for name, requirements in parts.items():
        part = (root / "docker" / f"{name}.lock").read_text()
        faults += [f"docker/{name}.lock: {fault}" for fault in missing(requirements, part)]
        for package, pins in read(part).items():
            if [(p.specifier, h) for p, h in pins] != [(p.specifier, h) for p, h in whole.get(package, ())]:
                faults.append(f"docker/{name}.lock: {package} is not as in requirements.lock")
    return faults


if __name__ == "__main__":
    if faults := check(ROOT):
        sys.exit("\n".join([*faults, "run: make lock"]))
