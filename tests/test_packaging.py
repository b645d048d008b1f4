"""README, images and wheel: what they name exists, and what they promise is so."""

import os
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from typer.testing import CliRunner

from service.cli import app
from tests import ROOT

README = (ROOT / "README.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMMANDS = (
    "up", "api", "worker", "control", "migrate", "models add", "models download", "requests submit", "requests show",
    "requests watch", "requests retry", "jobs retry", "verify", "demo", "sample", "keys init", "keys bootstrap",
    "keys create", "keys revoke", "keys rotate", "keys distrust", "keys trust", "doctor", "reconcile",
    "verify-log", "verify-record",
    "render", "log export",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    """`--help` of every command of INTERFACES works."""
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_readmes_commands_exist():
    """Each `make` target in README is real, and CI runs README's test command."""
    makefile = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^make ([\w -]+)", README, re.MULTILINE):
        for target in re.split(r" {2,}", line)[0].split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_make_help_lists_the_targets():
    """The targets of the issue, each with a word of explanation."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = "setup check test test-all test-wheel demo help sample docs format coverage lock sbom audit"
    for target in targets.split():
        assert re.search(rf"make {target} +\w", shown), target


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_copy_what_exists_and_run_what_exists(path):
    """Sources are in the tree, the command is one of ours, no image runs as root, torch only where it computes."""
    text = path.read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    command = yaml.safe_load(re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)[-1])
    assert command[0] == "unlearnd"
    assert command[1] in COMMANDS
    assert re.search(r"^USER unlearnd$", text, re.MULTILINE)
    assert ("torch" in text.replace("# The HTTP API (and migrations): no torch.", "").replace("No torch", "")) is (
        path.name == "worker.Dockerfile"
    )
    assert ("[engine" in text) is (path.name == "worker.Dockerfile")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_install_the_lock_before_the_sources(path):
    """A change of code installs nothing anew; all but torch has its hash, and then nothing comes from an index."""
    build, final = re.split(r"^FROM .+$", path.read_text(), flags=re.MULTILINE)[1:]
    assert build.index("--require-hashes") < build.index("COPY service")
    assert f"COPY docker/{path.stem}.lock" in final
    assert not re.search(r"COPY (service|worker|migrations|\.)", final)
    for command in re.findall(r"pip (?:install|wheel) .+", build + final):
        assert re.search(r"--require-hashes|--no-build-isolation|--no-index|'torch>=", command), command


def test_the_build_context_is_what_the_images_copy():
    """`.dockerignore` lets in what a COPY names, and no more: no `.git`, no `.env`, no keys."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source
        for path in DOCKERFILES
        for line in re.findall(r"^COPY (.+)$", path.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert {re.sub(r"docker/\w+\.lock", "docker/*.lock", source) for source in copied} == let_in


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflows_hold_no_secret_and_run_what_exists(path):
    """Each `make` target is real, rights are named, and no secret is read: publishing is trusted by its workflow."""
    text = path.read_text()
    assert "secrets." not in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    makefile = (ROOT / "Makefile").read_text()
    targets = " ".join(re.findall(r"run: make ([\w -]+)$", text, re.MULTILINE)).split()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_compose_file_holds_together():
    """Dockerfiles, volumes and dependencies that it names exist; servers are healthy before they are used."""
    services = COMPOSE["services"]
    assert {"postgres", "valkey", "migrate", "api", "control", "worker", "worker-gpu"} <= set(services)
    for name, service in services.items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            if command := service.get("command"):
                assert " ".join(command[1:]) in COMMANDS, name
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert source in COMPOSE["volumes"] or volume.endswith((":/models:ro", ":/corpora:ro"))


def test_the_compose_file_has_no_secret_and_keeps_keys_apart():
    """Passwords and public URL come from outside or it stops; the compute workers see the key-encryption key alone."""
    text = (ROOT / "docker-compose.yml").read_text()
    for name in ("POSTGRES_PASSWORD", "API_PASSWORD", "CONTROL_PASSWORD", "COMPUTE_PASSWORD", "PUBLIC_URL"):
        assert set(re.findall(rf"\$\{{{name}([^}}]*)\}}", text)) == {f":?set {name} in .env"}
    owners = [name for name, part in COMPOSE["services"].items() if "OWNER_DATABASE" in str(part.get("environment"))]
    assert owners == ["migrate"]
    for name in ("worker", "worker-gpu"):
        volumes = COMPOSE["services"][name]["volumes"]
        assert {v for v in volumes if isinstance(v, str)} == {
            "storage:/storage:ro",
            "work:/storage/work",
            "epochs:/epochs:ro",
        }
        mounts = [v for v in volumes if isinstance(v, dict)]
        assert [m["volume"]["subpath"] for m in mounts] == ["kek"]
    for name, login in {"api": "api", "control": "control", "worker": "compute", "worker-gpu": "compute"}.items():
        url = COMPOSE["services"][name]["environment"]["UNLEARND_DATABASE_URL"]
        assert url.startswith(f"postgresql://unlearnd-{login}:${{{login.upper()}_PASSWORD")
        assert url == COMPOSE["services"]["migrate"]["environment"][f"UNLEARND_{login.upper()}_DATABASE_URL"]
    variables = {v.removeprefix("UNLEARND_").lower() for v in COMPOSE["x-environment"]}
    from service.config import Settings

    assert variables <= set(Settings.model_fields)


def test_the_compose_file_confines_every_container():
    """No root, no capability, nothing to write but volumes; the compute workers reach no network outside."""
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if "build" in service:
            assert (service["read_only"], "cap_add" in service) == (True, False), name
            assert "USER unlearnd" in (ROOT / service["build"]["dockerfile"]).read_text()
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "valkey", "worker", "worker-gpu"):
        assert COMPOSE["services"][name]["networks"] == ["inside"], name


def test_the_wheel_is_complete(tmp_path):
    """Built, unpacked far from the checkout: migrations are inside and found there, and commands work."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("unlearnd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "service/migrations/env.py" in names
    assert any(n.startswith("service/migrations/versions/0001") for n in names)
    assert {"worker/demo/__main__.py", "service/py.typed", "worker/py.typed"} <= set(names)
    console = ("templates/base.html", "templates/document.typ", "static/console.css", "static/LICENSES.md")
    assert {f"service/console/{name}" for name in console} <= set(names)
    assert not any(n.startswith(("tests/", "bench/")) for n in names)
    code = (
        "import service, service.migrate as m; print(service.__file__); "
        "print(m.config('postgresql://x/y').get_main_option('script_location'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        str(tmp_path / "site/service/__init__.py"),
        str(tmp_path / "site/service/migrations"),
    ]
    subprocess.run([sys.executable, "-m", "service.cli", "--help"], cwd=tmp_path, env=environment, check=True)
