"""The main job as functions: a report of a network's layers, and the audit of split points."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from torch import Tensor

from unconv.api_options import (
    REGION,
    Model,
    ReportOptions,
    linear_folder,
    open_model,
    progress_bar,
    ray_cluster,
    run_path,
    use_decoders,
)
from unconv.conv_block import SIDE_INFO, SideInfo
from unconv.errors import UnconvError, UsageError, check_choice, check_whole
from unconv.evaluate.audit import audit_tasks
from unconv.evaluate.metrics import choose_judge, perceptual_distance
from unconv.evaluate.network import Images, Opened
from unconv.evaluate.reconstruction import BLOCK_METHODS, DECODER, FEATURES_METHODS, METHODS, Task
from unconv.evaluate.report_run import ReportRun
from unconv.evaluate.run_directory import RunDirectory, environment
from unconv.images import picture_note
from unconv.models import LoadedModel
from unconv.results import ReportResult

BUDGET, PICTURES = 600.0, 10


def report(
    model: Model,
    images: Images | None = None,
    *,
    methods: Sequence[str] | None = None,
    side_info: Sequence[SideInfo] | None = None,
    region: int = REGION,
    samples: int = 50,
    control: Literal["random"] | None = None,
    **options: Unpack[ReportOptions],
) -> ReportResult:
    """Invert the layers of a network over images, measure its conv blocks, and write a page.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        methods: Some of ``invert``'s; linear and Gauss-Newton where ``None``.
        side_info: Some of none, switches and gates; all that exist where ``None``.
        region: Side of the max pooling imposed where the theory meets a block without pooling.
        samples: Random codes of the sampled model-RIP.
        control: ``"random"``: what a linear decoder explains of the same network with random weights, beside.
        **options: Which layers, how long, and where results go, see ``ReportOptions``.

    Returns:
        The report: the path of its page, and what it says of each layer.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: If nothing could be measured, the budget is too small for the linear decoders, or the run
            directory is another run's.
    """
    check_whole(region=region, samples=samples)
    if control not in {None, "random"}:
        raise UsageError(f"control is {control!r}; use 'random', or leave it out")
    _check_lists(methods=methods, side_info=side_info)
    settings = {"region": region, "samples": samples, "control": control}
    return _report("report", model, images, options, methods, side_info, settings)


def audit(
    model: Model,
    images: Images | None = None,
    *,
    noise: Sequence[float] = (),
    judge: Model | LoadedModel | None = None,
    **options: Unpack[ReportOptions],
) -> ReportResult:
    """Audit layers as split points: what attackers get of the images out of features that leave the device.

    The attackers know the weights: a linear decoder, its refinement, the refinement with the switches of the poolings,
    and a trained decoder where one is given; those that a network has no use for are left out.

    Args:
        model: As for ``invert``.
        images: As for ``invert``.
        noise: Levels of Gaussian noise on the features as a defence, relative to their root mean square, such as
            ``(0.1, 0.3)``; attackers know the level.
        judge: A classifier that is asked whether a reconstruction still has the image's top-1 class; the network
            itself, where it is one, if ``None``.
        **options: Which split points, how long, and where results go, see ``ReportOptions``.

    Returns:
        The report; ``document["audit"]`` has ``"table"`` (an entry per layer, attacker and level of noise with mean,
        95 % interval over images and the most exposed image of each metric), ``"mean_colour"``, ``"can_conclude"``
        and ``"cannot_conclude"``.

    Raises:
        UsageError: If a name or an argument's value does not exist.
        UnconvError: As for ``report``.
    """
    methods = ("linear", "gauss-newton", DECODER) if options.get("decoders") is not None else None
    settings = {"region": REGION, "samples": 50, "control": None}
    return _report("audit", model, images, options, methods, ("none", "switches"), settings, noise, judge)


def _report(
    verb: str,
    model: Model,
    images: Images | None,
    options: ReportOptions,
    methods: Sequence[str] | None,
    side_info: Sequence[SideInfo] | None,
    settings: dict[str, Any],
    noise: Sequence[float] = (),
    judge: Model | LoadedModel | None = None,
) -> ReportResult:
    """Do what ``report`` and ``audit`` share."""
    from unconv.reporting.page import write_report

    started = options.get("started", time.monotonic())
    passes, budget = options.get("passes"), options.get("budget", BUDGET)
    pictures, reference_images = options.get("pictures", PICTURES), options.get("reference_images")
    check_whole(passes=passes)
    check_whole(0, pictures=pictures)
    if budget is not None and not budget > 0:
        raise UsageError(f"budget is {budget}; it is a number of seconds above 0")
    wanted = options.get("layers")
    _check_lists(layers=None if wanted == "all" else wanted)
    if passes is not None and options.get("budget") is not None:
        raise UsageError("passes and budget both say how much work is done; give one of them")
    budget = budget if passes is None else None
    opened, progress = open_model(model, images, options, ReportOptions)
    x, network = opened.example(), opened.network
    names, skipped_modules = _layers(opened, x, wanted)
    tasks, notes = _tasks(opened, x, names, methods, side_info or SIDE_INFO)
    notes += [note] if (note := picture_note(x.shape[1])) else []
    use_decoders(opened, x, tasks, options.get("decoders"))
    if verb == "audit":
        trained = [t.layer for t in tasks if t.method == DECODER]
        trained = [name for name in trained if network.conv_blocks(x).get(name).name in network.decoders]
        tasks = list(audit_tasks(tasks, noise, trained))
    notes += [distance] if isinstance(distance := perceptual_distance(), str) else []
    network.judge, more = choose_judge(opened.loaded, network.module, x.to(network.device), judge)
    notes += more
    config = opened.description | settings
    config |= {
        "verb": verb,
        "layers": list(names),
        "tasks": [list(task.fields().values()) for task in tasks],
        "pictures": pictures,
        "budget": budget,
        "reference_images": None if reference_images is None else str(reference_images),
        "judge": None if network.judge is None else network.judge.name,
    }
    if passes is not None:
        config["passes"] = dict.fromkeys(names, passes)
    path = run_path(options.get("out"), opened.loaded.name, config)
    with contextlib.closing(RunDirectory(path, config)) as run:
        made = ReportRun(
            run=run,
            write_page=lambda document, rows: write_report(path, document, rows, run.config, environment()),
            opened=opened,
            x=x,
            layers=names,
            tasks=tasks,
            region=settings["region"],
            samples=settings["samples"],
            pictures=pictures,
            budget=budget,
            started=started,
            decoders=linear_folder(options.get("decoders")),
            reference_images=reference_images,
            seed=options.get("seed", 0),
            skipped_modules=skipped_modules,
            notes=notes,
            command=options.get("command") or f"unconv.{verb}({opened.loaded.name!r}, ...)  # Python",
            audit=verb == "audit",
            control=settings["control"] is not None,
        )
        total = len(opened.images) * len(tasks)
        with ray_cluster(options.get("ray")) as cluster, progress_bar(total, progress) as bar:
            document, rows, page = made.go(bar, cluster)
    parts = {name: document[name] for name in ("layers", "skipped_modules", "skipped_images")}
    return ReportResult(page=page, run=path, rows=rows, document=document, **parts)


def _check_lists(**lists: Any) -> None:
    for name, given in lists.items():
        if isinstance(given, str):
            raise UsageError(f"{name} is the text {given!r}; give a list of names, such as [{given!r}]")


def _layers(
    opened: Opened, x: Tensor, wanted: Sequence[str] | Literal["all"] | None
) -> tuple[list[str], list[dict[str, str]]]:
    """Return the layers of a report, in execution order, and the modules that are left out."""
    found = opened.network.layers(x)
    if not found.layers:
        first = "".join(f"; {s.module}: {s.reason}" for s in found.skipped[:1])
        raise UnconvError(f"the network has no layer that can be inverted{first}")
    named = None if wanted is None or wanted == "all" else [found.get(name).name for name in wanted]
    chosen = set(named if named is not None else found.names if wanted == "all" else found.ends())
    names, uncovered = opened.covered([name for name in found.names if name in chosen], named)
    return names, [{"module": s.module, "reason": s.reason} for s in found.skipped] + uncovered


def _tasks(
    opened: Opened, x: Tensor, names: Sequence[str], methods: Sequence[str] | None, side_info: Sequence[SideInfo]
) -> tuple[list[Task], list[str]]:
    """Return what a report recovers, and remarks on what a layer does not have."""
    for method in methods or ():
        check_choice(METHODS, methods=method)
    for kind in side_info:
        check_choice(SIDE_INFO, side_info=kind)
    network, found = opened.network, opened.network.layers(x)
    blocks: set[str] = set()
    if methods is not None:
        blocks = {end for block in network.conv_blocks(x) for end in (block.name, block.output) if end is not None}
    tasks: list[Task] = []
    notes: dict[str, list[str]] = {}
    for name in names:
        kinds = network.function(name, x.shape[1:]).side_info_kinds
        for kind in [kind for kind in side_info if kind not in kinds]:
            note = f"there are no {kind} up to {{}}: computed once, with the side information below"
            notes.setdefault(note, []).append(name)
        for method in methods or ("linear", "gauss-newton"):
            if method == "linear":
                tasks.append(Task(name, method=method))
            elif method in FEATURES_METHODS and found.get(name).gradient:
                wanted = [kind for kind in side_info if kind in kinds] or ["none"]
                tasks += [Task(name, method=method, side_info=kind) for kind in wanted]  # pyright: ignore
            elif method in FEATURES_METHODS:
                note = "no gradient passes from {} to the image, so these are inverted linearly only"
                notes.setdefault(note, []).append(name)
            elif name in blocks and method == DECODER:
                tasks.append(Task(name, method=method, side_info="switches"))
            elif name in blocks and method in BLOCK_METHODS:
                tasks.append(Task(name, "input", "paper" if method == "iht" else "network", method, "switches"))
    if not tasks:
        raise UsageError(f"no layer of the report can be inverted by {', '.join(methods or ())}; use linear")
    return tasks, [note.format(", ".join(layers)) for note, layers in notes.items()]
