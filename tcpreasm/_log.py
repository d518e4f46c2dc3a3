"""`Log`: a logger that costs nothing as long as nobody listens, not even the import of `logging`.

Asked whether it is on when a pool or an Assembler is made; written to rarely.
"""

from __future__ import annotations

import sys

__all__ = ["Log"]


class Log:
    """The logger of that name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def is_on(self) -> bool:
        """Somebody listens at level DEBUG. Nobody can who has not imported `logging`."""
        logging = sys.modules.get("logging")
        return logging is not None and bool(logging.getLogger(self._name).isEnabledFor(logging.DEBUG))

    def debug(self, text: str, *values: object) -> None:
        """At level DEBUG, as `logging.Logger.debug` takes it."""
        import logging

        logging.getLogger(self._name).debug(text, *values, stacklevel=2)

    def warning(self, text: str, *values: object) -> None:
        """At level WARNING. Without `logging` set up by anybody it goes to standard error."""
        import logging

        logging.getLogger(self._name).warning(text, *values, stacklevel=2)
