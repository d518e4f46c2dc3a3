"""Prints one command of the README as it is written there: the fenced block behind `<!-- command: NAME -->`.

readme_command.py README.md NAME
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main() -> None:
    readme, name = Path(sys.argv[1]), sys.argv[2]
    mark = rf"^[ ]*<!-- command: {re.escape(name)} -->[ ]*\n\s*```[a-z]*[ ]*\n(.*?)^[ ]*```"
    blocks = re.findall(mark, readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        sys.exit(f"{readme.name} has {len(blocks)} blocks marked <!-- command: {name} -->, not one")
    for line in blocks[0].strip().splitlines():
        print(line.strip().removeprefix("$ "))


if __name__ == "__main__":
    main()
