"""The terminal: one live picture; elsewhere a line in the log now and then."""

import logging
from time import monotonic

from rich.console import Console, RenderableType
from rich.live import Live

from engine.monitor.headline import Headline
from engine.monitor.picture import picture
from engine.terminal import console
from engine.workers.tally import Tally

logger = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds between two lines, at least."""


class View:
    """Draws itself twice a second on a terminal, if the logger of this module is enabled for INFO."""

    def __init__(self, given: Console | None = None) -> None:
        self._console = given or console()
        is_drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._animated = is_drawable and logger.isEnabledFor(logging.INFO)
        self._live: Live | None = None
        self._ended = False
        self._line_at, self._line_of = -EVERY, ""

    def update(self, tally: Tally) -> None:
        if not self._animated:
            self._line(tally)
        elif self._live is None:
            self._live = Live(
                get_renderable=lambda: self._picture(tally), console=self._console, refresh_per_second=2
            )
            self._live.start()

    def close(self, tally: Tally) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()
        elif self._line_of:
            logger.info("%s", Headline.of(tally, ended=True))

    def _picture(self, tally: Tally) -> RenderableType:
        """Called by the thread that draws."""
        return picture(tally.copy(), monotonic(), height=self._console.height, ended=self._ended)

    def _line(self, tally: Tally) -> None:
        """Only where there is news."""
        line = Headline.of(tally, ended=False)
        news = f"{line.shards} {line.trouble}"
        if news != self._line_of and monotonic() >= self._line_at + EVERY:
            logger.info("%s", line)
            self._line_at, self._line_of = monotonic(), news
