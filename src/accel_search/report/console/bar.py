"""A bar below the lines of a program that runs for hours."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tqdm import tqdm


class WithBar:
    """What draws a bar on standard error for the length of a `with` block.

    Args:
        total: Its length.
        columns: What stands after the counts, the bar and the time spent.
        show: Whether it is drawn at all.
    """

    def __init__(self, total: int, columns: str, *, show: bool) -> None:
        self._bar = tqdm(
            total=total,
            disable=not show,
            dynamic_ncols=True,
            leave=False,
            bar_format="{n_fmt}/{total_fmt} {bar:12} {elapsed}" + columns,
        )

    def __enter__(self) -> Self:
        """Return self; the bar is cleared at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clear the bar."""
        self._bar.close()
