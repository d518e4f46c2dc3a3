"""Fuzz one target for a while: `python tests/fuzz/run.py TARGET [--seconds S] [--runs N] [--corpus FOLDER]`. Needs atheris.

libFuzzer makes the inputs up, led by which branches of the pure core they take; the compiled core does the same beside it
(targets.py). What finds something is written to the working directory, and belongs into found/TARGET once it is mended: test_fuzz.py
runs it from then on. The last lines tell how many inputs were run.

With --replay those in FOLDER are run once and nothing is made up, which needs no atheris: on a sanitized core, say, whose library
takes the place of the one that counts branches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def replay(target: str, corpus: Path) -> None:
    from fuzz.targets import TARGETS

    files = sorted(corpus.iterdir())
    for path in files:
        TARGETS[target](path.read_bytes())
    print(f"{target}: {len(files)} inputs again")


def fuzz(target: str, corpus: Path, limits: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["tcpreasm_pure"]):
        from fuzz.targets import SEEDS, TARGETS, make_haste
    make_haste()
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[target]):
        (corpus / f"seed-{number}").write_bytes(seed)
    found = [str(folder) for folder in [HERE / "found" / target] if folder.is_dir()]
    limits += ["-max_len=400", "-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus), *found], TARGETS[target])
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("decode", "capture", "assembler"))
    parser.add_argument("--seconds", type=int, default=0, help="0: no end but that of --runs")
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--corpus", type=Path, help="where inputs that take new branches are kept from one run to the next")
    parser.add_argument("--replay", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    if given.replay:
        replay(given.target, given.corpus)
        return
    with tempfile.TemporaryDirectory(prefix="tcpreasm-fuzz-") as scratch:
        limits = [f"-max_total_time={given.seconds}", f"-runs={given.runs}", f"-seed={given.seed}"]
        fuzz(given.target, given.corpus or Path(scratch), limits)


if __name__ == "__main__":
    main()
