"""The one evaluation loop: images x layers x methods x side information, cheap first, then refinement in rounds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.budget import SETUP, Clock
from unconv.evaluate.network import Captured, CapturedStream, Network, none_left
from unconv.evaluate.noise import noisy_name
from unconv.evaluate.reconstruction import (
    IN_PASSES,
    ITERATIVE,
    QUALITY,
    Reconstruction,
    Settings,
    Task,
    inputs_needed,
    reconstruct,
)
from unconv.evaluate.run_directory import RunDirectory
from unconv.images import ImageStream, SkippedImage
from unconv.io import reason

MACHINE_SAYS = {reason(OSError(number, os.strerror(number))) for number in errno.errorcode}  # of images left out
FIRST_PASSES = 8  # of the first round of refinement; every further round makes four times as many
ROUNDS = [FIRST_PASSES << (2 * i) for i in range(10)]
MEANS = ("relative_error", *QUALITY, "expected_error", "seconds", "passes")
Progress = Callable[[str, int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an evaluation does.

    Attributes:
        tasks: What is recovered, in the order of the results.
        passes: Of the solvers that count in passes: one number, or one per layer; their own where ``None``.
        settings: What reconstruction is told besides.
        rounds: Whether passes are made in rounds of 8, 32, 128, ..., each with complete results.
        pictures: Number of images whose reconstructions are kept as pictures.
        keep: Whether estimates and references are kept.
        per_pass: Seconds per pass and layer on one image, to foretell whether there is time.
    """

    tasks: tuple[Task, ...]
    passes: Mapping[str, int] | int | None = None
    settings: Settings = field(default_factory=Settings)
    rounds: bool = False
    pictures: int = 0
    keep: bool = False
    per_pass: Mapping[str, float] = field(default_factory=dict)

    def targets(self, task: Task) -> list[int | None]:
        """Return the total passes after each round of a task."""
        if task.method not in IN_PASSES:
            return [None]
        total = self.passes if isinstance(self.passes, int | None) else self.passes[task.layer]
        if total is None or not self.rounds:
            return [total]
        return [*[n for n in ROUNDS if n < total], total] if total > 0 else []

    def jobs(self) -> list[list[Job]]:
        """Return the jobs of every round: what takes one step for all layers first, then refinement."""
        rounds: list[list[Job]] = [[]]
        for index, task in enumerate(self.tasks):
            previous = None
            for number, target in enumerate(self.targets(task), task.method in ITERATIVE):
                rounds += [[] for _ in range(number + 1 - len(rounds))]
                job = Job(index, task, target, previous)
                rounds[number].append(job)
                previous = job
        return [jobs for jobs in rounds if jobs]


@dataclass(frozen=True)
class Job:
    """A task up to a number of passes, from where the previous job of the task ended."""

    index: int
    task: Task
    target: int | None
    previous: Job | None

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

    def document(self) -> dict[str, Any]:
        """Return what is kept as JSON."""
        return {"rows": self.rows, "skipped": self.skipped}


Previous = Mapping[str, tuple[dict[str, Any], dict[str, Tensor]]]


def compute_block(
    network: Network, images: ImageStream, block: range, jobs: Sequence[Job], plan: Plan, previous: Previous
) -> Iterator[Part]:
    """Yield the parts of jobs for a block of images; ``previous``: parts that they go on from, by name."""
    layers = list(dict.fromkeys(job.task.layer for job in jobs if job.task.of_features))
    inputs: dict[str, None] = {}
    pieces: list[Captured] = []
    part_of = images.block(block)
    for batch in part_of:
        for job in jobs:
            try:
                inputs |= dict.fromkeys(inputs_needed(network, batch.inputs[:1], job.task))
            except UnconvError:
                continue  # reconstruction says why
    stream = CapturedStream(network, part_of, list(inputs), layers)
    pieces += stream
    skipped = [asdict(image) for image in stream.skipped]
    if block.start < plan.pictures:
        originals = {f"images/{index:04d}.png": x for index, x in _originals(network, pieces) if index < plan.pictures}
    else:
        originals = {}
    for job in jobs:
        part = Part(job.part(block), [], skipped, {}, dict(originals))
        for captured in pieces:
            before = previous.get(job.previous.part(block)) if job.previous is not None else None
            _add(part, network, captured, job, plan, before)
        yield part


def _add(
    part: Part, network: Network, captured: Captured, job: Job, plan: Plan, before: tuple[dict, dict] | None
) -> None:
    """Do a job for a batch, and add its rows, pictures and tensors to a part."""
    batch, start, made = captured.batch, None, 0
    done: dict[int, Row] = {}
    estimates: dict[str, Tensor] = {} if before is None else before[1]
    if before is not None and job.previous is not None:
        # an image that has converged, or cannot be inverted, stays as it is
        rows = {row["image"]: row for row in before[0]["rows"] if row["image"] in batch.indices}
        made = job.previous.target or 0
        done = {i: row for i, row in rows.items() if row["status"] == "converged" or f"{i}" not in estimates}
    places = [n for n, index in enumerate(batch.indices) if index not in done]
    if before is not None and places:
        start = torch.stack([estimates[f"{batch.indices[n]}"] for n in places]).to(network.device)
    passes = None if job.target is None else job.target - made
    results: dict[int, Reconstruction] = {}
    if places:
        chosen = captured.select(places)
        solved = reconstruct(network, chosen, job.task, plan.settings, passes=passes, initial=start)
        results = dict(zip(chosen.batch.indices, solved, strict=True))
    for index, file in zip(batch.indices, batch.names, strict=True):
        if index in done:
            part.rows.append(done[index])
            if f"{index}" in estimates:
                part.tensors[f"{index}"] = estimates[f"{index}"]
            continue
        result = results[index]
        row: Row = {"image": index, "file": file} | job.task.fields() | result.numbers
        row |= {"picture": None, "error_map": None}
        if made and row["passes"] is not None and before is not None:
            old = next(r for r in before[0]["rows"] if r["image"] == index)
            row |= {"passes": row["passes"] + old["passes"], "seconds": row["seconds"] + old["seconds"]}
        if result.picture is not None and index < plan.pictures:
            row["picture"] = f"images/{index:04d}-{job.index:03d}.png"
            part.pictures[row["picture"]] = result.picture
            if result.error_map is not None:
                row["error_map"] = f"images/{index:04d}-{job.index:03d}-expected.png"
                part.pictures[row["error_map"]] = result.error_map
        if result.estimate is not None:
            part.tensors[f"{index}"] = result.estimate
        if plan.keep and result.reference is not None:
            part.tensors[f"{index} reference"] = result.reference
        part.rows.append(row)


def _originals(network: Network, pieces: Sequence[Captured]) -> Iterator[tuple[int, Tensor]]:
    for captured in pieces:
        x = captured.batch.inputs
        if x.ndim == 4:
            yield from zip(captured.batch.indices, network.preprocess.to_pixels(x, x).clamp(0, 1), strict=True)


@dataclass
class Evaluation:
    """An evaluation that goes on, and what it has found so far.

    Attributes:
        network: The network.
        images: The images.
        plan: What is done.
        run: Where the parts go.
        stopped: Whether the budget ended first.
    """

    network: Network
    images: ImageStream
    plan: Plan
    run: RunDirectory
    stopped: bool = False
    _pace: float = 1.0

    def go(
        self,
        clock: Clock | None = None,
        progress: Progress = lambda message, units: None,
        publish: Callable[[], None] = lambda: None,
        ray: Any = None,
    ) -> None:
        """Do what is missing, round after round; ``publish`` is called after each, ``ray`` is a ``RayCluster``."""
        clock = clock or Clock(None)
        self._forget_unread()
        for jobs in self.plan.jobs():
            parts = self._ray_parts(jobs, ray, clock) if ray is not None else self._local_parts(jobs, clock)
            for part, job in parts:
                self._store(part, job)
                progress(_message(part, job), len(part.rows))
            self._check_some_left()
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

    def units(self) -> int:
        """Return the number of rows that are to be computed, for a progress bar."""
        return len(self.images) * sum(map(len, self.plan.jobs()))

    def _pending(self, jobs: Sequence[Job]) -> Iterator[tuple[range, list[Job]]]:
        for block in self.images.blocks():
            missing = [job for job in jobs if not self.run.has(job.part(block))]
            # what a budget has left undone in the round before cannot go on
            missing = [j for j in missing if j.previous is None or self.run.has(j.previous.part(block))]
            if missing:
                yield block, missing

    def _previous(self, block: range, jobs: Iterable[Job]) -> Previous:
        names = [job.previous.part(block) for job in jobs if job.previous is not None]
        return {name: (self.run.read(name), self.run.read_tensors(name)) for name in names}

    def _local_parts(self, jobs: Sequence[Job], clock: Clock) -> Iterator[tuple[Part, Job]]:
        for block, missing in self._pending(jobs):
            if not self._time_for(missing[0], block, clock):
                return
            previous = self._previous(block, missing)
            parts = compute_block(self.network, self.images, block, missing, self.plan, previous)
            started = clock.elapsed()
            foretold = self._foretold(missing[0], block)
            for number, part in enumerate(parts):
                if foretold:
                    # a busy machine is slower than when a pass was timed
                    self._pace = min(max((clock.elapsed() - started) / foretold, 1.0), 3.0)
                yield part, missing[number]
                started, foretold = clock.elapsed(), 0.0
                if number + 1 < len(missing):
                    foretold = self._foretold(missing[number + 1], block)
                if number + 1 < len(missing) and not self._time_for(missing[number + 1], block, clock):
                    return

    def _ray_parts(self, jobs: Sequence[Job], ray: Any, clock: Clock) -> Iterator[tuple[Part, Job]]:
        for job in jobs:
            if job.task.method == "gauss-newton":
                layer = job.task.layer
                self.network.preconditioner(layer, noisy_name(layer, job.task.noise))  # once, and not for every block
        work = [(block, missing, self._previous(block, missing)) for block, missing in self._pending(jobs)]
        by_name = {job.part(block): job for block, missing, _ in work for job in missing}
        for part in ray.map(self.network, self.images, self.plan, work, clock):
            yield part, by_name[part.name]
        self.stopped = self.stopped or clock.left() <= 0

    def _time_for(self, job: Job, block: range, clock: Clock) -> bool:
        if job.task.method in ITERATIVE and clock.left() < self._pace * self._foretold(job, block):
            self.stopped = True
        return not self.stopped

    def _foretold(self, job: Job, block: range) -> float:
        """Return the seconds that a job should take for a block, its layer's preconditioner included."""
        made = 0 if job.previous is None else job.previous.target or 0
        name = noisy_name(job.task.layer, job.task.noise)
        first = job.task.method == "gauss-newton" and name not in self.network.preconditioners
        passes = ((job.target or 0) - made) * len(block) + SETUP * first
        return self.plan.per_pass.get(job.task.layer, 0.0) * passes

    def _store(self, part: Part, job: Job) -> None:
        for path, pixels in part.pictures.items():
            self.run.write_picture(path, pixels)
        more = job.target in ROUNDS and self.plan.rounds
        if self.plan.keep or more:
            self.run.write_tensors(part.name, part.tensors)
        self.run.write_part(part.name, part.document())

    def latest(self, block: range, index: int) -> str | None:
        """Return the name of the furthest finished part of a task for a block of images."""
        names = [
            Job(index, self.plan.tasks[index], t, None).part(block) for t in self.plan.targets(self.plan.tasks[index])
        ]
        return next((name for name in reversed(names) if self.run.has(name)), None)

    def rows(self) -> Iterator[Row]:
        """Yield the latest row of every image and task, image after image; a block of them is in memory at a time."""
        for block in self.images.blocks():
            rows: list[Row] = []
            for index in range(len(self.plan.tasks)):
                name = self.latest(block, index)
                rows += [] if name is None else self.run.read(name)["rows"]
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
        found: dict[str, SkippedImage] = {}
        for block in self.images.blocks():
            for index in range(len(self.plan.tasks)):
                if (name := self.latest(block, index)) is not None:
                    found |= {s["file"]: SkippedImage(**s) for s in self.run.read(name)["skipped"]}
        return list(found.values())

    def _check_some_left(self) -> None:
        if not self.stopped and next(self.rows(), None) is None:
            raise UnconvError(none_left(len(self.images), self.skipped()))


def summarise(rows: Iterable[Row], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return means over the images of every task that has rows, in order, as the JSON document has them."""
    sums: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    counts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("layer", "recover", "code", "method", "side_info", "noise"))
        values = sums.setdefault(key, {name: [0.0, 0] for name in MEANS})
        count = counts.setdefault(key, {"images": 0, "converged": 0, "failed": 0, "reasons": set()})
        if row["relative_error"] is None:
            count["failed"] += 1
            count["reasons"].add(row["status"])
            continue
        count["images"] += 1
        count["converged"] += row["status"] == "converged"
        for name in MEANS:
            if row[name] is not None:
                values[name][0] += row[name]
                values[name][1] += 1
    documents = []
    for task in tasks:
        key = tuple(task.fields().values())
        if key in sums:
            means = {name: total / n if n else None for name, (total, n) in sums[key].items()}
            count = counts[key]
            note = "; ".join(sorted(count.pop("reasons"))) or None
            documents.append(task.fields() | means | count | {"note": note})
    return documents


def _message(part: Part, job: Job) -> str:
    errors = [row["relative_error"] for row in part.rows if row["relative_error"] is not None]
    best = f", relative error {min(errors):.3g} at best" if errors else ""
    return f"{job.task.layer} by {job.task.method}, {job.task.side_info}{best}"
