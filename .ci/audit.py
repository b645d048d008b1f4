"""What `make audit` runs: pip-audit over the lock. It never calls a package that was not looked at a pass.

Exit code 1 for a known vulnerability, and for a fault that is not the network's. If the advisories cannot be reached,
it says NOT AUDITED and exits with 0: a test run without a network is still a test run. With `--strict`
(`make audit STRICT=1`), which a release uses, NOT AUDITED exits with 2.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

UNSEEN = 2  # exit code of a strict audit that did not look at everything
NO_NETWORK = ("ConnectionError", "Could not connect", "NameResolutionError", "Timeout", "HTTPError", "ServiceError")


def verdict(dependencies: list[dict[str, Any]], *, strict: bool = False) -> tuple[int, list[str]]:
    """The exit code and what to print, from pip-audit's own list."""
    skipped = [d for d in dependencies if "skip_reason" in d]
    lines = [
        f"VULNERABLE: {d['name']} {d['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version'}"
        for d in dependencies
        for v in d.get("vulns", ())
    ]
    code = 1 if lines else 0
    if skipped:
        code = code or (UNSEEN if strict else 0)
        lines.append(
            f"NOT AUDITED: {len(skipped)} of {len(dependencies)} packages. The first: {skipped[0]['skip_reason']}"
        )
    elif not lines:
        lines.append(f"audited: {len(dependencies)} packages of the lock, no known vulnerability")
    return code, lines


def main(lock: str, *, strict: bool) -> int:
    """Audit the file `lock`, and say so in plain lines."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--require-hashes"]
    done = subprocess.run([*command, "--disable-pip", "-r", lock], capture_output=True, text=True, check=False)
    try:
        code, lines = verdict(json.loads(done.stdout)["dependencies"], strict=strict)
    except json.JSONDecodeError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if any(word in done.stderr for word in NO_NETWORK):
            code, lines = (UNSEEN if strict else 0), [f"NOT AUDITED: {reason}"]
        else:
            code, lines = 1, [f"FAILED: {reason}"]
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="known vulnerabilities of what is in a lock")
    parser.add_argument("lock")
    parser.add_argument("--strict", action="store_true", help="fail if the advisories cannot be looked up")
    arguments = parser.parse_args()
    sys.exit(main(arguments.lock, strict=arguments.strict))
