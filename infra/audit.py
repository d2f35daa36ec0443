"""`python audit.py < REPORT`: the verdict on a report of pip-audit, which itself passes packages it could not look up.

Exit code 0: every package was looked up and none is known to be vulnerable. 1: some are. 2: some were not looked up.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and the lines to print, for a report of pip-audit."""
    packages = report["dependencies"]
    lines = [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one.get("vulns", [])
    ]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if lines:
        return 1, lines
    if skipped or not packages:
        return 2, [
            f"error: {len(skipped)} of {len(packages)} packages were not checked (the first: "
            f"{', '.join(skipped[:3]) or 'none'}): the package index used here has no vulnerability data; run "
            "`make audit` where pypi.org answers"
        ]
    return 0, [f"{len(packages)} packages checked: no known vulnerabilities"]


if __name__ == "__main__":
    text = sys.stdin.read()
    if not text.strip():
        sys.stderr.write("error: pip-audit gave no report; see .venv-audit/log\n")
        sys.exit(2)
    code, told = verdict(json.loads(text))
    (sys.stderr if code else sys.stdout).write("\n".join(told) + "\n")
    sys.exit(code)
