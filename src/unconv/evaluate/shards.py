"""Images shared out among the ranks of a job, block by block; each block ends in a part of the run directory.

Which block is whose is decided by its number, and nothing that a rank computes depends on it, so that one process and
many make the same parts. Ranks meet in the run directory only: there is no process group that a dead rank could stop.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from unconv.conv_block import ConvBlocks
from unconv.errors import UnconvError
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, display_name

Part = dict[str, Any]
COMING = 300.0
"""Seconds that are waited for a rank that has not come."""
SHORTEST, LONGEST = 0.05, 1.0
NAMED = 3


class _Ended(BaseException):
    """A rank was told to end; no ``except`` on the way takes it for an error of an image."""


@dataclass
class Shards:
    """The blocks of a stream of images, and whose they are.

    Attributes:
        images: All images.
        run: The run.
    """

    images: ImageStream
    run: RunDirectory
    _since: float = field(default_factory=time.monotonic)

    def owner(self, number: int) -> int:
        """The rank whose the block, or another piece of work, of some number is."""
        return number % self.run.rank.count

    def names(self, kind: str) -> list[str]:
        """The parts of one kind, block by block."""
        return [_name(kind, block) for block in self.images.blocks()]

    def count(self, kind: str, compute: Callable[[ImageStream], Part]) -> list[Part]:
        """Parts that every rank needs before it goes on; what a dead rank leaves is done in its place.

        Args:
            kind: Names the parts.
            compute: A part, from the images of a block.

        Returns:
            The parts of all blocks.
        """
        blocks = self.images.blocks()
        rank = self.run.rank.number

        def do(number: int) -> None:
            self.run.part(_name(kind, blocks[number]), lambda: compute(self.images.block(blocks[number])))

        for number in range(rank, len(blocks), self.run.rank.count):
            do(number)
        names = dict(zip(range(len(blocks)), self.names(kind), strict=True))
        for missing in self._missing(names):
            for other in sorted({self.owner(number) for number in missing}):
                if not self._lost(other):
                    continue
                with self.run.attendance.instead_of(other) as free:
                    for number in [n for n in missing if free and self.owner(n) == other]:
                        do(number)
        return self.run.parts(self.names(kind))

    def invert(
        self,
        kind: str,
        network: Network,
        needed: Callable[[ConvBlocks], Sequence[str]],
        compute: Callable[[Captured], list[Part]],
    ) -> None:
        """Make the parts of this rank's blocks: rows, and the images that were skipped.

        Where images were skipped they are looked at again, and the block is made anew if they can be read by now.

        Args:
            kind: Names the parts.
            network: The network.
            needed: Which stages' inputs ``compute`` reads.
            compute: The rows of a batch.
        """
        blocks = self.images.blocks()
        for number in range(self.run.rank.number, len(blocks), self.run.rank.count):
            stream = CapturedStream(network, self.images.block(blocks[number]), needed)
            name = _name(kind, blocks[number])
            (found,) = self.run.parts([name]) or [None]
            if found is not None and _skipped(found):
                used = [file for captured in stream for file in captured.batch.names]
                if used != list(dict.fromkeys(row["file"] for row in found["rows"])):
                    self.run.drop(name)
            self.run.part(name, lambda stream=stream: _rows(stream, compute))

    def wait(self, kind: str, others: Mapping[str, tuple[int, str]]) -> None:
        """Wait for what the other ranks are still doing.

        Args:
            kind: Of the parts that are waited for.
            others: Further parts, each with the rank that makes it and what it is about.

        Raises:
            UnconvError: If ranks have died and left parts undone; names them and what is missing.
        """
        for _ in self._missing(dict(enumerate(self.names(kind))), self._all_lost):
            pass
        further = dict(enumerate(others))
        owners = [rank for rank, _ in others.values()]
        for _ in self._missing(further, lambda missing: all(self._lost(owners[n]) for n in missing)):
            pass
        said = self.undone(kind, others, lost=True)
        if said:
            raise UnconvError(said)

    def undone(self, kind: str, others: Mapping[str, tuple[int, str]], *, lost: bool) -> str:
        """What is missing, and by whose fault, in one line.

        Args:
            kind: Of the parts that belong to blocks.
            others: Further parts, each with the rank that makes it and what it is about.
            lost: Whether all ranks are meant that are not there, or this one.

        Returns:
            The line; empty where nothing is missing.
        """
        blocks = self.images.blocks()
        numbers = [n for n, name in enumerate(self.names(kind)) if not self.run.has(name)]
        further = [(rank, about) for name, (rank, about) in others.items() if not self.run.has(name)]
        whose = {self.owner(n) for n in numbers} | {rank for rank, _ in further}
        mine = self.run.rank
        ranks = sorted(r for r in whose if self._lost(r)) if lost else sorted(whose & {mine.number})
        if not ranks:
            return ""
        files = [self._file(i) for n in numbers if self.owner(n) in ranks for i in blocks[n]]
        about = list(dict.fromkeys(about for rank, about in further if rank in ranks))
        left = [f"{len(files)} images are missing ({_some(files)})"] * bool(files)
        left += [f"stages are not measured ({_some(about)})"] * bool(about)
        again = "run the same command again, with any number of ranks, to complete them"
        if not lost:
            return f"{', '.join(left)}; {again}"
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        which = "has" if len(ranks) == 1 else "have"
        came = any(self.run.attendance.whereabouts(r) == "gone" for r in ranks)
        return f"{who} of {mine.count} {which} {'died or failed' if came else 'not come'}: {', '.join(left)}; {again}"

    def _file(self, index: int) -> str:
        return display_name(self.images.paths[index - self.images.first], self.images.root)

    def _lost(self, rank: int) -> bool:
        where = self.run.attendance.whereabouts(rank)
        return where == "gone" or (where == "not come" and time.monotonic() - self._since > COMING)

    def _all_lost(self, numbers: Sequence[int]) -> bool:
        return all(self._lost(rank) for rank in {self.owner(number) for number in numbers})

    def _missing(
        self, names: Mapping[int, str], enough: Callable[[Sequence[int]], bool] = lambda _: False
    ) -> Iterator[list[int]]:
        # the numbers of the parts that are not there, again and again, until there are none or it is enough
        missing, pause = list(names), SHORTEST
        while missing := [number for number in missing if not self.run.has(names[number])]:
            if enough(missing):
                # whoever has left in the meantime may have finished before
                if all(not self.run.has(names[number]) for number in missing):
                    return
                continue
            yield missing
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST)


@contextmanager
def answering_for(shards: Shards, kind: str, others: Mapping[str, tuple[int, str]]) -> Iterator[None]:
    """Let a rank name itself, and what it leaves undone, in the one line of its error.

    Args:
        shards: Its share.
        kind: Of its parts.
        others: Its further parts, each with the rank that makes it and what it is about.

    Yields:
        Nothing.

    Raises:
        UnconvError: In place of one that names no rank.
    """
    rank = shards.run.rank
    if rank.alone:
        yield
        return

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except UnconvError as error:
        said = filter(None, (str(error), shards.undone(kind, others, lost=False)))
        raise type(error)(f"{rank}: {'; '.join(said)}") from error
    except _Ended as error:
        # a launcher does this to all ranks when one has died
        said = ["told to end by SIGTERM", shards.undone(kind, others, lost=False)]
        said += [shards.undone(kind, others, lost=True)] * rank.leads
        raise UnconvError(f"{rank}: {'; '.join(filter(None, said))}") from error
    except Exception as error:
        said = (f"unexpected {type(error).__name__}: {error}", shards.undone(kind, others, lost=False))
        raise UnconvError(f"{rank}: {'; '.join(filter(None, said))}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def rows_of(run: RunDirectory, names: Sequence[str]) -> Iterator[Part]:
    """The rows of parts, of which one at a time is in memory.

    Args:
        run: The run.
        names: The parts.

    Yields:
        Rows, image after image.
    """
    for name in names:
        for part in run.parts([name]):
            yield from sorted(part if isinstance(part, list) else part["rows"], key=lambda row: row["image"])


def skipped_in(run: RunDirectory, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The images that parts name as skipped.

    Args:
        run: The run.
        names: The parts.

    Yields:
        ``{"file", "reason"}``.
    """
    for name in names:
        for part in run.parts([name]):
            yield from _skipped(part)


def nothing_left(images: ImageStream, skipped: Sequence[Mapping[str, str]]) -> str:
    """What to say where no image is left.

    Args:
        images: The images.
        skipped: ``{"file", "reason"}`` of each.

    Returns:
        One line.
    """
    first = "".join(f"; the first, {image['file']}: {image['reason']}" for image in skipped[:1])
    return f"none of the {len(images)} images could be used{first}"


def _skipped(part: Any) -> list[dict[str, str]]:
    # in runs of earlier versions a part is its rows
    return [] if isinstance(part, list) else part["skipped"]


def _rows(stream: CapturedStream, compute: Callable[[Captured], list[Part]]) -> Part:
    rows = [row for captured in stream for row in compute(captured)]
    return {"rows": rows, "skipped": [asdict(image) for image in stream.skipped]}


def _name(kind: str, block: range) -> str:
    return f"{kind}-{block.start:06d}-{block.stop - 1:06d}"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
