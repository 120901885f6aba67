"""The main job: layers inverted and conv blocks measured within a budget, with pages on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from unconv.conv_block import ConvBlock, SideInfo
from unconv.errors import UnconvError
from unconv.evaluate import budget, leakage, linear_fit, theory
from unconv.evaluate.audit import audit_document, mean_colours
from unconv.evaluate.budget import Clock
from unconv.evaluate.evaluation import Evaluation, Plan, Progress, Row, summarise
from unconv.evaluate.network import CapturedStream, Network, Opened, same_path
from unconv.evaluate.reconstruction import FROM_LINEAR, IN_PASSES, Settings, Task, noisy_name
from unconv.evaluate.run_directory import RunDirectory
from unconv.inversion.calibration import Refinement
from unconv.io import writing

LINEAR = ("relative_error", "psnr", "ssim", "seconds", "images", "failed", "note")
THEORY_SHARE = 0.1  # of a budget that measures of conv blocks get, and as much again certificates
# times what the linear page took, and what a later one took, that are kept for the last one, which shows more
LAST_PAGE = 2.0
AFTER_PAGE = 1.3
LEAKAGE_SHARE = 0.05  # that bounds of any attacker get
PAGE_SHARE = 0.1  # of the time, at most, goes into pages between the first and the last; figures take seconds
WritePage = Callable[[dict[str, Any], list[Row]], Path]


@dataclass
class ReportRun:
    """A report that is to be made, and what it has found so far, as the JSON document and as rows."""

    run: RunDirectory
    write_page: WritePage
    opened: Opened  # the model and the images
    x: Tensor  # the first image that the network takes; shape (1, C, H, W)
    layers: Sequence[str]  # names of the layers, in execution order
    tasks: Sequence[Task]
    region: int  # side of the max pooling imposed on a conv block without pooling, also for the model-RIP
    samples: int
    pictures: int  # images whose reconstructions are kept as pictures
    budget: float | None  # seconds; no limit where None
    started: float  # second of time.monotonic from which they count
    decoders: Path | None  # folder of fitted linear decoders, or None
    reference_images: str | Path | None  # folder of reference images, or None
    seed: int
    skipped_modules: list[dict[str, str]]  # {"module", "reason"} of what is no layer
    notes: list[str]
    command: str  # what makes the report again
    audit: bool = False  # whether the layers are audited as split points; no conv block is measured then
    control: bool = False  # whether linear decoders are fitted to the same network with random weights too

    def __post_init__(self) -> None:
        """Prepare; nothing is computed yet."""
        self.network, self.images = self.opened.network, len(self.opened.images)
        self.clock, self.blocks = Clock(self.budget, self.started), self._blocks()
        passes = dict.fromkeys(self.layers, 0)
        plan = Plan(tuple(self.tasks), passes, Settings(self.region), rounds=True, pictures=self.pictures)
        self.evaluation = Evaluation(self.network, self.opened.images, plan, self.run)
        self.left_out: list[dict[str, str]] = []
        self.explained_at_random: dict[str, Any] = {}  # by linear decoders of random weights
        self.published = self.page_seconds = self.certifying = 0.0
        self.planned, self.untried = False, []
        self.plan_notes: list[str] = []

    def _blocks(self) -> dict[str, ConvBlock]:
        """Return the conv blocks among the layers, by layer."""
        found = self.network.layers(self.x)
        named = [name for name in self.layers if found.get(name).block and not self.audit]
        return {name: self.network.conv_blocks(self.x).get(name) for name in named}

    def go(self, progress: Callable[..., None], ray: Any = None) -> tuple[dict[str, Any], list[Row], Path]:
        """Do everything that is missing; return the document, the rows and the page.

        ``progress`` is called with a message, the rows that are done and the seconds that are left.
        """
        evaluation = self.evaluation

        def say(message: str, units: int) -> None:
            progress(message, units, self.seconds_left())

        self.network.say = lambda message: say(message, 0)
        self._fit(say)
        if any(task.code == "paper" for task in self.tasks):
            fractions = {name: measured["regions"] for name, measured in self._nonzeros.items()}
            evaluation.plan = replace(evaluation.plan, settings=Settings(self.region, fractions=fractions))
        evaluation.go(self.clock, say, ray=ray, rounds=1)
        self._publish()  # the linear page, before anything else
        self.clock.reserved = LAST_PAGE * self.page_seconds
        per_pass = self.run.part(
            "seconds_per_pass", lambda: budget.seconds_per_pass(self.network, self.x, self.layers, self.budget)
        )
        self._cheap_theory(per_pass, say)
        self._bound_leakage(per_pass, say)
        refinements = self._calibrate(per_pass, say)
        evaluation.plan = replace(evaluation.plan, per_pass=per_pass, refinements=refinements)
        self._set_passes(self._passes(per_pass, refinements))
        self.planned, self.certifying = True, sum(self._certificates().values())

        def publish() -> None:
            due = self.clock.elapsed() - self.published >= self.page_seconds / PAGE_SHARE
            if due and self.clock.left() > self.page_seconds:
                self._publish()
                self.clock.reserved = max(self.clock.reserved, AFTER_PAGE * self.page_seconds)

        evaluation.go(self.clock, say, publish, ray)
        if self._plan_rest():
            evaluation.go(self.clock, say, publish, ray)
        self._certify(say)
        return self._publish()

    def seconds_left(self) -> float | None:
        """Return the seconds until the last page, as foretold; ``None`` where nothing is known yet."""
        left = self.clock.left() + self.clock.reserved
        if self.planned:
            foretold = self.evaluation.pace * self.evaluation.seconds_left + self.certifying + self.clock.reserved
            left = min(left, foretold)
        return max(0.0, left) if math.isfinite(left) else None

    def _calibrate(self, per_pass: Mapping[str, float], say: Progress) -> dict[str, Refinement]:
        """Return how far refinement of each layer pays, the cheapest layers first, as far as there is time."""
        found = {}
        kinds: dict[tuple[str, float], list[SideInfo]] = {}
        for task in self.tasks:
            if task.method == "gauss-newton":
                kinds.setdefault((task.layer, task.noise), []).append(task.side_info)
        layers = sorted(kinds, key=lambda key: per_pass[key[0]])
        for number, (layer, noise) in enumerate(layers):
            name, left = noisy_name(layer, noise), self.clock.left()
            decoder = self.network.linear.get(name)
            known = None if decoder is None else decoder.refinement
            share, count = left / (len(layers) - number), len(kinds[layer, noise])
            most = budget.passes_to_try(per_pass[layer], share, left, self.images, count)
            if not most:
                if known is None:
                    self.untried.append(layer)
                else:
                    found[name] = known
                continue
            if self.budget is None:
                most = (self.run.config.get("passes") or {}).get(layer, budget.MOST_PASSES)
            say(f"calibrating {layer}", 0)
            about = {"most": most, "noise": noise, "folder": self.run.path / "decoders"}
            refinement = linear_fit.calibrated(self.network, layer, kinds[layer, noise], **about)
            if refinement is not None:
                found[name] = refinement
        return found

    def _bound_leakage(self, per_pass: Mapping[str, float], say: Progress) -> None:
        """Bound what any attacker gets of the layers' noisy features, as far as a share of the budget goes."""
        levels = sorted({task.noise for task in self.tasks if task.noise}) or [leakage.SUPPOSED]
        share, started, beside = min(LEAKAGE_SHARE * self.clock.budget, self.clock.left()), self.clock.elapsed(), 0.0
        images = linear_fit.first_images(self.opened.images, tuple(self.x.shape[1:]))
        missing = [layer for layer in self.layers if not self.run.has(self._part("leakage", layer))]
        for layer in sorted(missing, key=lambda name: per_pass[name]):
            passes, before = leakage.PASSES * len(levels) * per_pass[layer], self.clock.elapsed()
            if before - started + passes + beside > share:
                break
            say(f"bounding leakage of {layer}", 0)
            try:
                part = {"levels": leakage.leakage_documents(self.network, layer, levels, images, self.seed)}
            except UnconvError as error:
                part = {"levels": [], "note": f"{layer}: {error}"}
            self.run.write_part(self._part("leakage", layer), part)
            beside = max(beside, self.clock.elapsed() - before - passes)  # what a layer takes besides its passes

    def _leakage(self, rows: list[Row]) -> dict[str, Any]:
        """Return the bounds found so far beside the best attacker of each, and the command for what is missing."""
        parts = {layer: self.run.read(self._part("leakage", layer)) for layer in self.layers}
        found = [part for part in parts.values() if part]
        missing = [layer for layer, part in parts.items() if not part]
        notes = [part["note"] for part in found if "note" in part]
        if missing and self.planned:
            noise = max(task.noise for task in self.tasks) or leakage.SUPPOSED
            options = f"--layer {' '.join(missing)} --relative-sigma {noise:g}"
            command = f"unconv unseen {self.opened.loaded.name} {options}, with this run's weights and images"
            notes.append(f"No time for bounds of {', '.join(missing)}; {command}")
        table = leakage.leakage_table([document for part in found for document in part["levels"]], rows)
        notes += [leakage.EASIER] if any((entry["gap_db"] or 0) < 0 for entry in table) else []
        return {"table": table, "assumption": leakage.ASSUMPTION, "notes": notes}

    def _fit(self, say: Progress) -> None:
        folder = self.run.path / "decoders"
        wanted = dict.fromkeys((t.noise, t.layer) for t in self.tasks if t.method in FROM_LINEAR)
        missing = [
            layer
            for noise, layer in wanted
            if linear_fit.find_fitted(noisy_name(layer, noise), self.decoders, folder) is None
        ]
        if self.budget is not None and missing:
            missing = [*missing, *(layer for _, layer in wanted if self.control)]
            needed = budget.linear_seconds(self.network, self.x, missing, self.images, self.budget)
            budget.check_linear(needed, self.clock, self.budget)
        say("fitting linear decoders", 0)
        for noise in dict.fromkeys(noise for noise, _ in wanted):
            self.notes += linear_fit.fit_linear(
                self.network,
                self.opened.images,
                self.x,
                [layer for level, layer in wanted if level == noise],
                folder=folder,
                given=self.decoders,
                reference_folder=self.reference_images,
                seed=self.seed,
                noise=noise,
            )
        if self.control:
            self._fit_control([layer for noise, layer in wanted if not noise])
        # a run that goes on finds its decoders, and says what was said when they were fitted
        self.notes = list(dict.fromkeys([*self.notes, *self.run.part("notes", lambda: self.notes)]))

    def _fit_control(self, layers: list[str]) -> None:
        network = self.network
        control = Network(linear_fit.random_weights(network.module, self.seed), network.preprocess, network.device)
        folder = self.run.path / "decoders" / "random-weights"
        folder.mkdir(exist_ok=True)
        about = {"folder": folder, "reference_folder": self.reference_images, "seed": self.seed}
        linear_fit.fit_linear(control, self.opened.images, self.x, layers, **about)
        for layer, decoder in control.linear.items():
            self.explained_at_random[layer] = linear_fit.linear_document(decoder).get("explained_variance")

    def _passes(self, per_pass: Mapping[str, float], refinements: Mapping[str, Refinement]) -> dict[str, int] | None:
        """Return whole passes per layer, decided before refinement starts."""
        before = self.run.previous
        if self.budget is None:
            return self.run.config.get("passes")
        if self._planned_before():
            return before["passes"]
        reserved = THEORY_SHARE * self.budget if self.blocks else 0.0
        tried = {layer: seconds for layer, seconds in per_pass.items() if layer not in self.untried}
        passes = budget.plan_passes(self.tasks, tried, self.images, self.clock.left() - reserved, refinements)
        return {n: max(passes.get(n, 0), before.get("passes", {}).get(n, 0)) for n in self.layers}

    def _set_passes(self, passes: dict[str, int] | None) -> None:
        plan = self.evaluation.plan = replace(self.evaluation.plan, passes=passes)
        if self.budget is not None:
            self.run.write_config(passes=passes, most_passes=budget.MOST_PASSES)
            self.plan_notes = self._notes_of(plan)

    def _planned_before(self) -> bool:
        """Whether this run has been planned within this budget by an earlier process."""
        return self.run.previous.get("budget") == self.budget and "passes" in self.run.previous

    def _plan_rest(self) -> bool:
        """Give time that is left, since solvers converged early, to layers that got none; return whether any did."""
        evaluation, plan = self.evaluation, self.evaluation.plan
        if self.budget is None or evaluation.stopped or self._planned_before() or not isinstance(plan.passes, dict):
            return False
        idle = {name: cost for name, cost in plan.per_pass.items() if not (name in self.untried or plan.passes[name])}
        left = (self.clock.left() - self.certifying) / evaluation.pace
        more = budget.plan_passes(self.tasks, idle, self.images, left, plan.refinements)
        if any(more.values()):
            self._set_passes(plan.passes | more)
        return any(more.values())

    def _notes_of(self, plan: Plan) -> list[str]:
        """Say which layers a plan leaves, and where refinement does not pay."""
        assert isinstance(plan.passes, dict)
        refined = [task for task in self.tasks if task.method in IN_PASSES]
        unrefined = dict.fromkeys(task.layer for task in refined if not plan.passes[task.layer])
        notes = [f"no time to refine {', '.join(unrefined)}; a larger budget goes on with that"] if unrefined else []
        vain = [task for task in refined if plan.limit(task) == 0]
        for kind in dict.fromkeys(task.side_info for task in vain):
            notes.append(
                f"{', '.join(task.layer for task in vain if task.side_info == kind)}: refinement, side information "
                f"{kind}, gains nothing on reference images, so the estimate that it starts from stands"
            )
        return notes

    @cached_property
    def _nonzeros(self) -> dict[str, Any]:
        """The sparsity of the chosen conv blocks, and the share of regions in use, by name of the block."""
        names = [block.name for block in self.blocks.values()]
        stream = CapturedStream(self.network, self.opened.images, names)

        def count() -> dict[str, Any]:
            statistics, skipped = theory.count_nonzeros(stream, names, self.region)
            blocks = {
                name: {
                    "sparsity": theory.sparsity_document(statistics, name),
                    "regions": theory.pooled_fraction(statistics, name),
                }
                for name in names
            }
            return {"blocks": blocks, "skipped": [asdict(image) for image in skipped]}

        part = self.run.part("sparsity", count)
        self.left_out = part["skipped"]
        return part["blocks"]

    def _regions(self, block: ConvBlock) -> tuple[Any, int]:
        """Return the regions of a block's sparsity model, and how many of them the images use."""
        return theory.regions_and_k(block, self._nonzeros[block.name]["regions"], self.region)

    def _cheap_theory(self, per_pass: Mapping[str, float], progress: Progress) -> None:
        """Measure sparsity, coherence and model-RIP of the chosen conv blocks, as far as a share of the budget goes."""
        share, started = min(THEORY_SHARE * self.clock.budget, self.clock.left()), self.clock.elapsed()
        # the first block waits for sparsity, a pass over all images; then each takes about what the one before took
        dearest = max((per_pass[layer] for layer in self.blocks), default=0.0)
        expected = 0.0 if self.run.has("sparsity") else self.images * dearest
        for layer in self._unmeasured():
            block, begun = self.blocks[layer], self.clock.elapsed()
            if begun - started + expected > share:
                break
            progress(f"measuring {block.name}", 0)
            self.run.write_part(self._part("theory", layer), self._measured(block))
            progress(f"measured {block.name}", 1)
            expected = self.clock.elapsed() - begun

    def _unmeasured(self) -> list[str]:
        return [layer for layer in self.blocks if not self.run.has(self._part("theory", layer))]

    def _measured(self, block: ConvBlock) -> dict[str, Any]:
        region, k = self._regions(block)
        return {
            "sparsity": self._nonzeros[block.name]["sparsity"],
            "coherence": theory.coherence_document(block, self.seed),
            "rip": theory.ratios_document(block, region, k, self.samples, self.seed),
        }

    def _certify(self, progress: Progress) -> None:
        """Certify the conv blocks whose certificates fit into their share of the budget, the cheapest first."""
        if not self.blocks or self.clock.left() <= 0:
            return
        costs = self._certificates()
        self.run.write_config(certified=len(costs))
        missing = [layer for layer in costs if not self.run.has(self._part("certificate", layer))]
        names = [self.blocks[layer].name for layer in missing]
        examples = []
        for captured in CapturedStream(self.network, self.opened.images, names) if missing else ():
            places, _ = same_path(self.network, captured)
            examples += [captured.select([place]) for place in places]
            if len(examples) >= theory.CERTIFIED:
                break
        for layer in missing:
            block = self.blocks[layer]
            if self.clock.left() < self.evaluation.pace * costs[layer]:
                break
            region, k = self._regions(block)

            def save(image: int, pixels: Tensor, layer: str = layer) -> str | None:
                if image >= self.pictures:
                    return None
                path = f"images/{image:04d}-unseen-{self.layers.index(layer):03d}.png"
                self.run.write_picture(path, pixels)
                return path

            progress(f"certifying {block.name}", 0)
            part = theory.certificate_document(
                self.network, block, region, k, examples[: theory.CERTIFIED], save, self.seed
            )
            self.run.write_part(self._part("certificate", layer), part)
            self.certifying -= costs[layer]
            progress(f"certified {block.name}", 1)

    def _certificates(self) -> dict[str, float]:
        """Return the conv blocks that are certified, the cheapest first, and the seconds that each takes."""
        per_pass = self.run.read("seconds_per_pass")

        def measure() -> dict[str, float]:
            return {layer: theory.certificate_seconds(self.blocks[layer], per_pass[layer]) for layer in self.blocks}

        costs, unmeasured = self.run.part("certificate_seconds", measure), self._unmeasured()
        costs = {layer: cost for layer, cost in costs.items() if layer not in unmeasured}
        left, chosen = THEORY_SHARE * self.clock.budget, {}
        for layer in sorted(costs, key=lambda name: costs[name]):
            left -= costs[layer]
            if left >= 0:
                chosen[layer] = costs[layer]
        return chosen

    def _part(self, kind: str, layer: str) -> str:
        return f"{kind}-{self.layers.index(layer):03d}"

    def _block_document(self, layer: str) -> dict[str, Any] | None:
        block = self.blocks.get(layer)
        if block is None:
            return None
        measured = self.run.read(self._part("theory", layer)) or dict.fromkeys(("sparsity", "coherence", "rip"))
        certificate = self.run.read(self._part("certificate", layer))
        return {
            "name": block.name,
            "kind": block.kind,
            "input_shape": list(block.input_shape),
            "code_shape": list(block.code_shape),
            **measured,
            "certificate": certificate,
        }

    def document(self, rows: list[Row]) -> dict[str, Any]:
        """Return what has been found so far, as ``report --json`` prints it."""
        evaluation, loaded = self.evaluation, self.opened.loaded
        summaries = summarise(rows, [task for task in self.tasks if not task.noise])
        layers = []
        for layer in self.layers:
            inversion = [{k: v for k, v in s.items() if k != "layer"} for s in summaries if s["layer"] == layer]
            linear = next(({k: s[k] for k in LINEAR} for s in inversion if s["method"] == "linear"), None)
            decoder = self.network.linear.get(layer)
            if linear is not None and decoder is not None:
                linear |= linear_fit.linear_document(decoder)
                linear |= {"control": self.explained_at_random.get(layer)} if self.control else {}
            found = self.network.layers(self.x).get(layer)
            layers.append({
                "layer": layer,
                "kind": found.kind,
                "shape": list(found.shape),
                "linear": linear,
                "inversion": inversion,
                "block": self._block_document(layer),
            })
        skipped = {image.file: asdict(image) for image in evaluation.skipped()}
        # one that could be read again has rows, whatever an earlier pass over the images said
        used = {row["file"] for row in rows}
        skipped |= {s["file"]: s for s in self.left_out if s["file"] not in skipped and s["file"] not in used}
        bounds = self._leakage(rows)
        notes = [*self.notes, *self.plan_notes]
        if self.planned and (unmeasured := self._unmeasured()):
            names = ", ".join(self.blocks[layer].name for layer in unmeasured)
            notes.append(f"no time for the theory of {names}; a larger budget goes on with that")
        return {
            "run": str(self.run.path),
            "layers": layers,
            "skipped_images": list(skipped.values()),
            "skipped_modules": self.skipped_modules,
            "model": {
                "name": loaded.name,
                "weights": loaded.weights.source,
                "sha256": loaded.weights.sha256,
                "input_shape": list(self.x.shape[1:]),
            },
            "command": self.command,
            "notes": notes,
            "stopped": evaluation.stopped,
            "audit": self._audit(rows, bounds["table"]) if self.audit else None,
            "leakage": bounds,
            "control": "random" if self.control else None,
        }

    def _audit(self, rows: list[Row], bounds: list[dict[str, Any]]) -> dict[str, Any]:
        flat = self.run.part("mean-colour", lambda: mean_colours(self.opened.images, self.network.preprocess))
        audit = audit_document(rows, self.tasks, flat)
        audit["can_conclude"] += leakage.sentences(bounds) if audit["noise"] else []
        return audit

    def _publish(self) -> tuple[dict[str, Any], list[Row], Path]:
        rows = list(self.evaluation.rows())
        document, start = self.document(rows), self.clock.elapsed()
        self.run.write_results(rows)
        with writing(self.run.path):
            page = self.write_page(document, rows)
        self.published = self.clock.elapsed()
        self.page_seconds = self.published - start
        return document, rows, page
