"""What `make sbom` runs: a CycloneDX list of everything in an environment, with our own version in it.

`sbom.py FILE` lists the environment that runs it, tools for tests included. `sbom.py FILE PYTHON` lists the environment
of another interpreter. A release lists one that has the wheel and its dependencies and nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


VERSION = "import importlib.metadata; print(importlib.metadata.version('unlearnd'))"


def main(target: Path, python: str = sys.executable) -> None:
    """Write the list to `target`. It is not validated: that takes twenty times as long as making it."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", python, "--pyproject", str(ROOT / "pyproject.toml"),
        "--mc-type", "application", "--output-reproducible", "--no-validate", "--output-file", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    bom = json.loads(target.read_text())
    version = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True).stdout.strip()
    bom["metadata"]["component"]["version"] = version
    target.write_text(json.dumps(bom, indent=1) + "\n")
    print(f"SBOM: {len(bom['components'])} components in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
