"""What `make sbom` runs: a CycloneDX list of everything in this environment, with our own version in it."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(target: Path) -> None:
    """Write the list to `target`. It is not validated: that takes twenty times as long as making it."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", sys.prefix, "--pyproject", str(ROOT / "pyproject.toml"),
        "--mc-type", "application", "--output-reproducible", "--no-validate", "--output-file", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    bom = json.loads(target.read_text())
    bom["metadata"]["component"]["version"] = importlib.metadata.version("unlearnd")
    target.write_text(json.dumps(bom, indent=1) + "\n")
    print(f"SBOM: {len(bom['components'])} components in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
