"""Pictures as files and as elements of a page, made while other work goes on."""

import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ulskip_cli.report.groups import Group


@dataclass(frozen=True)
class Hung:
    """A picture that is drawn and kept.

    Attributes:
        name: of its files.
        caption: what it shows.
        files: as PNG and as SVG.
        svg: as an element of a page; empty where no page is made.
    """

    name: str
    caption: str
    files: list[Path]
    svg: str


@dataclass(frozen=True)
class Wall:
    """What is to be drawn, and where it goes.

    Attributes:
        groups: rows by setting.
        gate: share of full's quality.
        folder: of the files.
        page: whether a page needs the pictures too.
    """

    groups: Sequence[Group]
    gate: float
    folder: Path
    page: bool

    def hang(self) -> list[Hung]:
        """Draw them all."""
        if not self.groups:
            return []
        from ulskip_cli.report import pictures

        drawn = pictures.draw(self.groups, self.gate)
        return [Hung(one.name, one.caption, one.save(self.folder), one.svg() if self.page else "") for one in drawn]


class Beside:
    """Context manager: a wall is hung by a process beside this one where that is safe, else once it is asked for."""

    def __init__(self, wall: Wall) -> None:
        """Begin."""
        self._wall, self._pool = wall, None
        if wall.groups and _may_fork():  # a fork has the rows; nothing but names and files comes back
            self._pool = ProcessPoolExecutor(1, get_context("fork"), _share, (wall,))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of numpy's threads, which end with a fork and start anew
                self._drawn = self._pool.submit(_hang)

    def __enter__(self) -> "Beside":
        """Nothing yet to wait for."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the process, if there is one."""
        if self._pool:
            self._pool.shutdown()

    def pictures(self) -> list[Hung]:
        """All of them, as soon as they are there."""
        return self._drawn.result() if self._pool else self._wall.hang()


def _may_fork() -> bool:
    """Threads do not live on in a fork, and torch has many."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


_shared: Wall


def _share(wall: Wall) -> None:
    global _shared  # of the process that draws
    _shared = wall


def _hang() -> list[Hung]:
    return _shared.hang()
