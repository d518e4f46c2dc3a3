"""Says what is wrong with the sdist and the wheel that were built from a source tree, if anything is.

distributions.py SOURCE SDIST WHEEL
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path


def main() -> None:
    source, sdist, wheel = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive_:
        in_wheel = set(archive_.namelist())

    wrong: list[str] = []
    package = [file.relative_to(source).as_posix() for file in (source / "tcpreasm").rglob("*") if file.is_file()]
    tests = [file.relative_to(source).as_posix() for file in (source / "tests").rglob("*") if file.is_file()]
    wrong += [f"the sdist lacks {name}" for name in [*package, *tests, "setup.py", "pyproject.toml", "README.md"] if name not in in_sdist]
    made = (".c", ".so", ".pyc")  # but bench/ has C of its own
    wrong += [f"the sdist holds {name}" for name in sorted(in_sdist) if name.endswith(made) and not re.search(r"(^|/)bench/.*\.c$", name)]

    wrong += [f"the wheel lacks {name}" for name in package if name.endswith((".py", "py.typed", ".css", ".js")) and name not in in_wheel]
    wrong += [f"the wheel holds {name}" for name in sorted(in_wheel) if name.endswith((".c", ".pyx", ".pyc")) or name.startswith("tests")]
    built = {Path(name).name.split(".")[0] for name in in_wheel if name.startswith("tcpreasm/_compiled/") and name.endswith(".so")}
    cores = {Path(name).stem for name in package if name.endswith(".pyx")}
    if not cores or built != cores:
        wrong.append(f"the wheel's extension modules are {sorted(built)}, the sources {sorted(cores)}")

    if wrong:
        sys.exit("\n".join(wrong))
    print(f"the wheel holds py.typed and the extension modules {', '.join(sorted(built))}; the sdist holds no generated C")


if __name__ == "__main__":
    main()
