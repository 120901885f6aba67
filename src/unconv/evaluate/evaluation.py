"""The one evaluation loop: images x layers x methods x side information, cheap first, then refinement in rounds."""

from __future__ import annotations

import contextlib
import errno
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.conv_block import SIDE_INFO
from unconv.errors import UnconvError
from unconv.evaluate.budget import Clock
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.reconstruction import (
    IN_PASSES,
    IN_STEPS,
    NO_GAIN,
    QUALITY,
    SLOW,
    Settings,
    Task,
    noisy_name,
    reconstruct,
    refinement_of,
)
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, SkippedImage, none_left
from unconv.inversion.calibration import Refinement
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.io import reason

MACHINE_SAYS = {reason(OSError(number, os.strerror(number))) for number in errno.errorcode}  # of images left out
ROUNDS = [8 * 4**i for i in range(10)]  # passes after each round of refinement
MEMORY = 0.8  # of a job's pace at the next one
WITHOUT_LIMIT = 1 << 30
MEANS = ("relative_error", *QUALITY, "expected_error", "seconds", "passes")
Progress = Callable[[str, int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an evaluation does."""

    tasks: tuple[Task, ...]  # what is recovered, in the order of the results
    # of the solvers that count in passes: one number, or one per layer; their own where None
    passes: Mapping[str, int] | int | None = None
    settings: Settings = field(default_factory=Settings)  # what reconstruction is told besides
    rounds: bool = False  # whether passes are made in rounds of 8, 32, 128, ..., each with complete results
    pictures: int = 0  # number of images whose reconstructions are kept as pictures
    keep: bool = False  # whether estimates and references are kept
    # seconds per pass and layer on one image, to foretell whether there is time
    per_pass: Mapping[str, float] = field(default_factory=dict)
    # how far refinement pays, by layer (noisy_name): no more passes are made than that
    refinements: Mapping[str, Refinement] = field(default_factory=dict)

    def targets(self, task: Task) -> list[int | None]:
        """Return the total passes after each round of a task."""
        if task.method not in IN_PASSES:
            return [self.passes if task.method in IN_STEPS and isinstance(self.passes, int) else None]
        total = self.passes if isinstance(self.passes, int | None) else self.passes[task.layer]
        if total == 0:
            return []
        if total is None and task.method != "gauss-newton":
            return [None]
        total = total or (self.settings.config or GaussNewtonConfig()).passes
        found = refinement_of(task, self.refinements)
        counts = [*(n for n in ROUNDS if self.rounds and n < total), total]
        best = counts if found is None else [found.best(task.side_info, n) for n in counts]
        return sorted({*best} - {0}) or [0]

    def limit(self, task: Task) -> int | None:
        """Return the number of passes from which on refinement does not pay; ``None`` where none is known."""
        found = refinement_of(task, self.refinements)
        best = None if found is None else found.best(task.side_info, WITHOUT_LIMIT)
        return None if best == WITHOUT_LIMIT else best

    def _round(self, task: Task, target: int | None) -> int:
        """Return the round in which a task gets that far: 0 for what takes one step, then those of ``ROUNDS``."""
        if task.method not in SLOW:
            return 0
        return 1 + bisect_left(ROUNDS, target) if self.rounds and target else 1

    def jobs(self) -> list[list[Job]]:
        """Return the jobs of every round: what takes one step for all layers first, then refinement.

        In rounds, refinement with more side information begins where that with less of it ended its first round (those
        passes are not counted again); where it does not pay by itself, where that ended at last. Later rounds go on
        from their own estimate or from that with less side information, whichever fits all that is known better; they
        go layer by layer, all kinds of side information together, so that a budget that ends leaves an image with the
        same number of passes for each kind.
        """
        rounds: dict[tuple[int, int, int], list[Job]] = {}
        places = {layer: place for place, layer in enumerate(dict.fromkeys(task.layer for task in self.tasks), 1)}
        made: dict[tuple[str, float], list[tuple[int, Job]]] = {}  # of the kind before, with their rounds
        for index, task in enumerate(self.tasks):
            chained = self.rounds and task.method == "gauss-newton"
            less = made.get((task.layer, task.noise), []) if chained else []
            jobs: list[tuple[int, Job]] = []
            group = None  # that of the job before
            depth = SIDE_INFO.index(task.side_info) if chained else 0
            for target in self.targets(task):
                number, place, starts = self._round(task, target), 0, less[:1]
                if jobs:
                    number, place = max(number, jobs[-1][0]), places[task.layer]
                    # the second: as far as less side information has come by then
                    starts = [jobs[-1], *[job for job in less if job[0] <= number][-1:]]
                elif less and not target:
                    number, starts = len(ROUNDS), less[-1:]
                number = max([number, *[other for other, _ in starts[:1]]])
                if (number, place) == group:  # what it goes on from is finished before a group begins
                    number += 1
                group = number, place
                jobs.append((number, Job(index, task, target, tuple(job for _, job in starts))))
                rounds.setdefault((number, place, 0 if place else depth), []).append(jobs[-1][1])
            if chained and jobs:
                made[task.layer, task.noise] = jobs
        return [rounds[key] for key in sorted(rounds)]


@dataclass(frozen=True)
class Job:
    """A task up to a number of passes, from where its previous job ended, or that of a task that knows less."""

    index: int
    task: Task
    target: int | None
    # whose estimates it may begin from: the job that it goes on from, then the last one by then of the task that knows
    # less
    starts: tuple[Job, ...] = ()

    @property
    def made(self) -> int:
        """Passes of this task that were made before."""
        return next((job.target or 0 for job in self.starts if job.index == self.index), 0)

    def part(self, block: range) -> str:
        """Return the name of its part for a block of images."""
        passes = "" if self.target is None else f"-{self.target:05d}"
        return f"rows-{block.start:06d}-{block.stop - 1:06d}-{self.index:03d}{passes}"


@dataclass(frozen=True)
class Part:
    """Results of a job for a block of images."""

    name: str
    rows: list[Row]
    skipped: list[dict[str, str]]
    tensors: dict[str, Tensor]
    pictures: dict[str, Tensor]


Previous = Mapping[str, tuple[dict[str, Any], dict[str, Tensor]]]


def compute_block(
    network: Network, images: ImageStream, block: range, jobs: Sequence[Job], plan: Plan, previous: Previous
) -> Iterator[Part]:
    """Yield the parts of jobs for a block of images; ``previous``: parts that they go on from, by name."""
    layers = list(dict.fromkeys(job.task.layer for job in jobs if job.task.of_features))
    coded = [job.task for job in jobs if not job.task.of_features]
    part_of = images.block(block)
    inputs: dict[str, None] = {}
    if coded:
        from unconv.evaluate.block_reconstruction import blocks_read

        for batch in part_of:
            for task in coded:
                with contextlib.suppress(UnconvError):  # reconstruction says why
                    inputs |= dict.fromkeys(each.name for each in blocks_read(network, batch.inputs[:1], task))
    stream = CapturedStream(network, part_of, list(inputs), layers)
    pieces = list(stream)
    skipped = [asdict(image) for image in stream.skipped]
    originals = {}
    for batch in (piece.batch for piece in pieces if block.start < plan.pictures and piece.batch.inputs.ndim == 4):
        pixels = network.preprocess.to_pixels(batch.inputs, batch.inputs).clamp(0, 1)
        pairs = zip(batch.indices, pixels, strict=True)
        originals |= {f"images/{index:04d}.png": x for index, x in pairs if index < plan.pictures}
    beginnings = {start.part(block) for job in jobs for start in job.starts}
    for job in jobs:
        part = Part(job.part(block), [], skipped, {}, dict(originals))
        for captured in pieces:
            names = [start.part(block) for start in job.starts]
            _add(part, network, captured, job, plan, [previous[name] for name in names if name in previous])
        if part.name in beginnings:
            previous = {**previous, part.name: ({"rows": part.rows}, part.tensors)}
        yield part


def _add(
    part: Part,
    network: Network,
    captured: Captured,
    job: Job,
    plan: Plan,
    before: Sequence[tuple[dict[str, Any], dict[str, Tensor]]],
) -> None:
    """Do a job for a batch, and add its rows, pictures and tensors to a part; ``before``: parts of ``job.starts``."""
    batch = captured.batch
    document, estimates = before[0] if before else ({"rows": []}, {})
    rows: dict[int, Row] = {row["image"]: row for row in document["rows"] if row["image"] in batch.indices}
    # an image that has converged, or cannot be inverted, stays as it is, unless that was another task
    ended = {i: row for i, row in rows.items() if row["status"] == "converged" or f"{i}" not in estimates}
    done = ended if job.made else {}
    part.rows.extend(done.values())
    part.tensors.update({f"{i}": estimates[f"{i}"] for i in done if f"{i}" in estimates})
    places = [n for n, index in enumerate(batch.indices) if index not in done]
    if not places:
        return
    chosen = captured.select(places)
    names = [f"{index}" for index in chosen.batch.indices]
    known = [found for _, found in before if rows and all(name in found for name in names)]
    starts = [torch.stack([found[name] for name in names]).to(network.device) for found in known]
    passes = None if job.target is None else job.target - job.made
    results = reconstruct(network, chosen, job.task, plan.settings, passes=passes, made=job.made, starts=starts)
    for index, file, result in zip(chosen.batch.indices, chosen.batch.names, results, strict=True):
        row: Row = {"image": index, "file": file} | job.task.fields() | result.numbers
        if job.made and row["passes"] is not None:
            row |= {name: row[name] + rows[index][name] for name in ("passes", "seconds")}
        if row["status"] == "max_steps" and job.target is not None and job.target == plan.limit(job.task):
            row["status"] = NO_GAIN
        for name, ending, pixels in (("picture", "", result.picture), ("error_map", "-expected", result.error_map)):
            row[name] = None
            if pixels is not None and index < plan.pictures:
                row[name] = f"images/{index:04d}-{job.index:03d}{ending}.png"
                part.pictures[row[name]] = pixels
        if result.estimate is not None:
            part.tensors[f"{index}"] = result.estimate
        if plan.keep and result.reference is not None:
            part.tensors[f"{index} reference"] = result.reference
        part.rows.append(row)


@dataclass
class Evaluation:
    """An evaluation that goes on, and what it has found so far."""

    network: Network
    images: ImageStream
    plan: Plan
    run: RunDirectory  # where the parts go
    stopped: bool = False  # whether the budget ended first
    seconds_left: float = 0.0  # foretold for what is missing, at the pace at which passes were timed
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _starts: set[str] = field(default_factory=set)

    def go(
        self,
        clock: Clock | None = None,
        progress: Progress = lambda message, units: None,
        publish: Callable[[], None] = lambda: None,
        ray: Any = None,
        *,
        rounds: int | None = None,
    ) -> None:
        """Do what is missing of the first rounds, on a ``RayCluster`` where there is one; publish after each."""
        clock = clock or Clock(None)
        self._forget_unread()
        planned = self.plan.jobs()
        self._starts = {start.part(range(1)) for jobs in planned for job in jobs for start in job.starts}
        self.seconds_left = sum(
            self._foretold(job, block)
            for block in self.images.blocks()
            for jobs in planned
            for job in jobs
            if not self.run.has(job.part(block))
        )
        for jobs in planned[:rounds]:
            parts = self._ray_parts(jobs, ray, clock) if ray is not None else self._local_parts(jobs, clock)
            for part, job in parts:
                self._store(part, job)
                progress(_message(part, job), len(part.rows))
            if not self.stopped and next(self.rows(), None) is None:
                raise UnconvError(none_left(len(self.images), self.skipped()))
            publish()
            if self.stopped:
                return

    def _forget_unread(self) -> None:
        """Drop finished parts that lack an image which the machine could not read then, and can now."""
        for block in self.images.blocks():
            names = {job.part(block) for jobs in self.plan.jobs() for job in jobs}
            parts = {name: self.run.read(name) for name in names if self.run.has(name)}
            lost = {s["file"] for part in parts.values() for s in part["skipped"] if s["reason"] in MACHINE_SAYS}
            if not lost:
                continue
            stream = self.images.block(block)
            for _ in stream:
                pass
            if lost - {image.file for image in stream.skipped}:
                for name in parts:
                    self.run.drop(name)

    def _pending(self, jobs: Sequence[Job]) -> Iterator[tuple[range, list[Job]]]:
        for block in self.images.blocks():
            # what a budget has left undone in the round before cannot go on
            ready = [job for job in jobs if all(self.run.has(start.part(block)) for start in job.starts[:1])]
            if missing := [job for job in ready if not self.run.has(job.part(block))]:
                yield block, missing

    def _previous(self, block: range, jobs: Iterable[Job]) -> Previous:
        names = dict.fromkeys(start.part(block) for job in jobs for start in job.starts)
        return {name: (self.run.read(name), self.run.read_tensors(name)) for name in names if self.run.has(name)}

    def _local_parts(self, jobs: Sequence[Job], clock: Clock) -> Iterator[tuple[Part, Job]]:
        for block, missing in self._pending(jobs):
            previous = self._previous(block, missing)
            parts = compute_block(self.network, self.images, block, missing, self.plan, previous)
            # at one layer there is time for all kinds of side information, or for none
            together = len({job.task.layer for job in missing}) == 1
            if together and not self._time_for(missing, block, clock):
                return
            for job in missing:
                if not together and not self._time_for([job], block, clock):
                    return
                started = clock.elapsed()
                part = next(parts)
                self._compare(self._foretold(job, block), clock.elapsed() - started)
                yield part, job

    def _compare(self, foretold: float, took: float) -> None:
        """Learn from a job how much slower the machine is than when a pass was timed."""
        if foretold:
            self.seconds_left -= foretold
            self._sums = [MEMORY * old + new for old, new in zip(self._sums, (took, foretold), strict=True)]

    @property
    def pace(self) -> float:
        """Seconds that foretold ones take, by the last jobs."""
        return self._sums[0] / self._sums[1] if self._sums[1] else 1.0

    def _ray_parts(self, jobs: Sequence[Job], ray: Any, clock: Clock) -> Iterator[tuple[Part, Job]]:
        for task in (job.task for job in jobs if job.task.method == "gauss-newton"):
            # once, and not for every block
            self.network.preconditioner(task.layer, noisy_name(task.layer, task.noise))
        work = [(block, missing, self._previous(block, missing)) for block, missing in self._pending(jobs)]
        by_name = {job.part(block): job for block, missing, _ in work for job in missing}
        for part in ray.map(self.network, self.images, self.plan, work, clock):
            yield part, by_name[part.name]
        self.stopped = self.stopped or clock.left() <= 0

    def _time_for(self, jobs: Sequence[Job], block: range, clock: Clock) -> bool:
        slow = [job for job in jobs if job.task.method in SLOW]
        if slow and clock.left() < self.pace * sum(self._foretold(job, block) for job in slow):
            self.stopped = True
        return not self.stopped

    def _foretold(self, job: Job, block: range) -> float:
        """Return the seconds that a job should take for a block."""
        return self.plan.per_pass.get(job.task.layer, 0.0) * ((job.target or 0) - job.made) * len(block)

    def _store(self, part: Part, job: Job) -> None:
        for path, pixels in part.pictures.items():
            self.run.write_picture(path, pixels)
        if self.plan.keep or job.part(range(1)) in self._starts or (self.plan.rounds and job.target in ROUNDS):
            self.run.write_tensors(part.name, part.tensors)
        self.run.write_part(part.name, {"rows": part.rows, "skipped": part.skipped})

    def latest(self, block: range, index: int) -> str | None:
        """Return the name of the furthest finished part of a task for a block of images."""
        task = self.plan.tasks[index]
        names = [Job(index, task, target).part(block) for target in self.plan.targets(task)]
        return next((name for name in reversed(names) if self.run.has(name)), None)

    def _latest_parts(self, block: range) -> list[dict[str, Any]]:
        names = [self.latest(block, index) for index in range(len(self.plan.tasks))]
        return [self.run.read(name) for name in names if name is not None]

    def rows(self) -> Iterator[Row]:
        """Yield the latest row of every image and task, image after image; a block of them is in memory at a time.

        An image that is skipped at one layer, where it makes NaN, has no rows at the others.
        """
        for block in self.images.blocks():
            parts = self._latest_parts(block)
            skipped = {image["file"] for part in parts for image in part["skipped"]}
            rows = [row for part in parts for row in part["rows"] if row["file"] not in skipped]
            yield from sorted(rows, key=lambda row: row["image"])

    def tensors(self, index: int) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
        """Yield image, estimate and reference of a task, where the plan keeps them."""
        for block in self.images.blocks():
            if (name := self.latest(block, index)) is not None:
                kept = self.run.read_tensors(name)
                for row in self.run.read(name)["rows"]:
                    image = row["image"]
                    yield image, kept.get(f"{image}"), kept.get(f"{image} reference")

    def skipped(self) -> list[SkippedImage]:
        """Return the images that were left out."""
        parts = (part for block in self.images.blocks() for part in self._latest_parts(block))
        return list({s["file"]: SkippedImage(**s) for part in parts for s in part["skipped"]}.values())


def summarise(rows: Iterable[Row], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return means over the images of every task that has rows, in order, as the JSON document has them."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in ("layer", "recover", "code", "method", "side_info", "noise"))].append(row)
    documents = []
    for task in tasks:
        if mine := groups.get(tuple(task.fields().values())):
            done = [row for row in mine if row["relative_error"] is not None]
            reasons = sorted({row["status"] for row in mine if row["relative_error"] is None})
            means = {name: mean(row[name] for row in done) for name in MEANS}
            documents.append(task.fields() | means | count(mine) | {"note": "; ".join(reasons) or None})
    return documents


def count(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many images were done, how many of these ended how, and how many failed."""
    ends = [row["status"] for row in rows if row["relative_error"] is not None]
    ended = {name: ends.count(name) for name in ("converged", NO_GAIN)}
    return {"images": len(ends)} | ended | {"failed": len(rows) - len(ends)}


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that there are; ``None`` where there is none."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _message(part: Part, job: Job) -> str:
    errors = [row["relative_error"] for row in part.rows if row["relative_error"] is not None]
    best = f", relative error {min(errors):.3g} at best" if errors else ""
    return f"{job.task.layer} by {job.task.method}, {job.task.side_info}{best}"
