"""The command `tcpreasm`: the main program, and what becomes of its errors.

    common    what the subcommands share: options, texts
    flows     a table of connections
    extract   one file per stream
    http      requests and responses, also live
    follow    what both sides of a connection said
    stats     the counters
    plot      a picture of a conversation, or of a capture
    report    a page of HTML about a capture

Beside them: progress (the bar on a terminal), completion (in the shell); exchanges, messages, bodies and http_texts are http's.

Exit status: 0 done (also where a capture is cut in the middle: what it holds was used, and a line on standard error says so; also
where Ctrl-C ended a live capture); 2 an error, told in one line on standard error; 130 Ctrl-C while files were read, after
what was read so far was given out; 141 the reader of standard output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from .. import __version__, implementation
from ..errors import CaptureError
from .common import CommandError, complain, spelled_out
from .completion import Completion

__all__ = ["main"]

_COMMANDS = ("flows", "extract", "http", "follow", "stats", "plot", "report")  # a module each

_DONE, _ERROR, _INTERRUPTED, _BROKEN_PIPE = 0, 2, 130, 141

_EXAMPLES = """examples:
  tcpreasm flows capture.pcap                      who talked to whom, and how much
  tcpreasm flows --json capture.pcapng.gz          the same, a JSON object a line
  tcpreasm extract capture.pcap -o streams         one file for each direction
  tcpreasm http capture.pcap                       HTTP requests, each with its response
  tcpreasm plot capture.pcap 3 -o third.svg        the third conversation, segment by segment
  tcpreasm report capture.pcap -o report.html      a page to browse
  tcpreasm http -i eth0 -f 'tcp port 80'           the same, live
  tcpreasm follow capture.pcap 3                   what both sides of the third connection said
  tcpreasm stats capture.pcap                      what was counted, and what was left out
  ssh host tcpdump -w - tcp | tcpreasm flows -     standard input
  eval "$(tcpreasm --completion bash)"             completion, in ~/.bashrc for always

On a terminal a bar shows how far the captures are read, where it gets in nobody's way. The bar and
--completion take rich and shtab: pip install 'tcpreasm[cli]'

exit status: 0 done, 2 error, 130 interrupted (a live capture: 0), 141 broken pipe"""


class _Parser(argparse.ArgumentParser):
    """Errors take one line, as everywhere else in this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Knows the subcommand that is called, or all of them: each one brings modules along."""
    parser = _Parser(
        prog="tcpreasm",
        description="TCP stream reassembly: the bytes that the applications sent, out of packet captures.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tcpreasm {__version__} ({implementation} core)")
    parser.add_argument(
        "--completion",
        action=Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes commands, options and files in this shell",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in argv[:1] if argv and argv[0] in _COMMANDS else _COMMANDS:
        import_module(f".{name}", __name__).add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status.

    Args:
        argv: the arguments, without the program's name. None: those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    # numpy is here for its buffers; the threads of its linear algebra would take longer to start than all the rest.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        arguments = _parser(argv).parse_args([*argv[:1], *spelled_out(argv[1:])])
        arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as done:  # --help, --version, wrong arguments
        return done.code if isinstance(done.code, int) else _DONE
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (CommandError, CaptureError, ImportError) as error:
        complain(str(error))
        return _ERROR
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror or str(error))
        return _ERROR
    return _DONE


def _drop_output() -> None:
    """Nobody reads: what is still buffered goes nowhere, so that nothing complains at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
