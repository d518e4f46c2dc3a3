"""Adds up what the pytest runs of .ci/run wrote (junit XML): per run, the skipped ones with their reasons, and in the last line all.

summary.py --failed-steps N FOLDER      exit status 0 only where tests ran, none failed, and no step did
"""

from __future__ import annotations

import argparse
import collections
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--failed-steps", type=int, default=0)
    arguments.add_argument("folder", type=Path)
    given = arguments.parse_args()

    total: collections.Counter[str] = collections.Counter()
    for file in sorted(given.folder.glob("*.xml")):
        counts: collections.Counter[str] = collections.Counter(passed=0, failed=0, skipped=0)
        reasons: collections.Counter[str] = collections.Counter()
        for case in ElementTree.parse(file).iter("testcase"):
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                counts["failed"] += 1
            elif skipped is not None:
                counts["skipped"] += 1
                reasons[skipped.get("message", "no reason given")] += 1
            else:
                counts["passed"] += 1
        print(f"{file.stem}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        for reason, count in reasons.most_common():
            print(f"    {count} skipped: {reason}")
        total.update(counts)
    passed, failed, skipped = total["passed"], total["failed"], total["skipped"]
    if given.failed_steps:
        print(f"{given.failed_steps} steps failed: see above")
    if not passed:
        print("no test passed")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if given.failed_steps or failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
