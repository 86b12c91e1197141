"""How often what nobody expected is written down with its traceback: so many times a second and no more, for a client
that has found a bug can have it as often as it likes."""

from __future__ import annotations

import logging
from typing import Final

#: A traceback has some 2 KB.
_TRACES_PER_S_MAX: Final = 10


class BugRate(logging.Filter):
    """Lets so many records with an exception pass, of all the loggers that it is a filter of; others always. How many
    it has kept back stands in the next one that passes."""

    def __init__(self) -> None:
        super().__init__()
        self._since_s = 0.0
        self._passed = 0
        self._kept_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. The record knows the time."""
        if not record.exc_info:
            return True
        if not 0.0 <= record.created - self._since_s < 1.0:
            self._since_s = record.created
            self._passed = 0
        if self._passed == _TRACES_PER_S_MAX:
            self._kept_back += 1
            return False
        self._passed += 1
        if self._kept_back:
            record.msg = f"{record.getMessage()}; {self._kept_back} more were not written"
            record.args = ()
            self._kept_back = 0
        return True


#: This process's.
BUG_RATE: Final = BugRate()
