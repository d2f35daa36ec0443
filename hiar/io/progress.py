"""Progress with an estimated end: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 5.0


class Progress:
    """Counts to ``total`` from ``start``; use as a context manager and call ``advance``."""

    def __init__(self, label: str, total: int, start: int = 0) -> None:
        self.label, self.total, self.start, self.done = label, total, start, start
        self.began = self.printed = time.monotonic()
        self.told: int | None = None  # how many were done when a line was last printed
        terminal = sys.stderr.isatty()
        self.bar = (
            tqdm(desc=label, total=total, initial=start, file=sys.stderr, dynamic_ncols=True) if terminal else None
        )

    def __enter__(self) -> Self:
        return self

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        """Note that ``count`` more are done; ``metrics`` are shown beside."""
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
        left = elapsed / count * (self.total - self.done) if count else float("nan")
        values = "".join(f"  {name} {value}" for name, value in shown.items())
        clock = tqdm.format_interval
        eta = f", {clock(left)} left" if count and self.done < self.total else ""
        print(f"{self.label}: {self.done}/{self.total} in {clock(elapsed)}{eta}{values}", file=sys.stderr, flush=True)
