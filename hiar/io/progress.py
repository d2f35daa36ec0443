"""Progress, with the time left if the total is known: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 5.0
# tqdm's own formats, except that the rate never becomes seconds per unit.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
COUNT = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """Counts from ``start`` to ``total``, or without end; use as a context manager and call ``advance``.

    If a ``unit`` is given, the rate in units per second is shown too.
    """

    def __init__(self, label: str, total: int | None, start: int = 0, unit: str | None = None) -> None:
        self.label, self.total, self.start, self.done, self.unit = label, total, start, start, unit
        self.began = self.printed = time.monotonic()
        self.told: int | None = None  # the count in the last printed line
        terminal = sys.stderr.isatty()
        options = {"unit": f" {unit}", "bar_format": BAR if total else COUNT} if unit else {}
        self.bar = (
            tqdm(desc=label, total=total, initial=start, file=sys.stderr, dynamic_ncols=True, **options)
            if terminal
            else None
        )

    def __enter__(self) -> Self:
        return self

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        """Add ``count``; ``metrics`` are shown next to it."""
        self.done += count
        shown = {name: f"{value:.3g}" for name, value in (metrics or {}).items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self._print(shown)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and self.told != self.done:
            self._print({})

    def _print(self, shown: dict[str, str]) -> None:
        self.printed, self.told = time.monotonic(), self.done
        elapsed = self.printed - self.began
        count = self.done - self.start
        clock = tqdm.format_interval
        of = "" if self.total is None else f"/{self.total}"
        unit = f" {self.unit}" if self.unit else ""
        parts = [f"{self.label}: {self.done}{of}{unit} in {clock(elapsed)}"]
        if self.unit:
            parts.append(f"{count / elapsed:.1f} {self.unit}/s")
        if self.total is not None and 0 < count < self.total - self.start:
            parts.append(f"{clock(elapsed / count * (self.total - self.done))} left")
        values = "".join(f"  {name} {value}" for name, value in shown.items())
        print(", ".join(parts) + values, file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """Print a line where progress is shown: on the standard error."""
    print(line, file=sys.stderr, flush=True)
