"""``unconv invert``: the input back from a stage's code; without a stage, a table over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from unconv.checkpoint import hash_state
from unconv.commands.loading import choose_stages, given, open_images, open_model, rows_of_text
from unconv.commands.options import Invert
from unconv.commands.progress import progress_bar, say_skipped
from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.block_input import METHODS
from unconv.decode.what_where import WhatWhereDecoder
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.aggregate import MEANS
from unconv.evaluate.decoders import open_decoders
from unconv.evaluate.evaluation import stage_document
from unconv.evaluate.inversion_run import Inverted, Inverting, invert_all
from unconv.evaluate.network import Network
from unconv.evaluate.ranks import Rank, rank_from
from unconv.evaluate.reconstruction import Reconstruction
from unconv.evaluate.run_directory import RunDirectory, Unwritten
from unconv.images import ImageStream, SkippedImage, cannot_write, save_image
from unconv.inversion.frozen_network import SIDE_INFO
from unconv.inversion.gradient import Regulariser
from unconv.inversion.methods import (
    DEFAULT_METHODS,
    TRAINED,
    WHOLE_NETWORK,
    InversionMethod,
    SolverOptions,
    decoder_missing,
    fitting_region,
    stages_needed,
)
from unconv.models import LoadedModel
from unconv.paper.committed import DECODERS

FIELDS = ("file", *MEANS, "status", "picture")
Answer = tuple[dict[str, Any], str]


def run(options: Invert) -> Answer | None:
    """Invert one stage over the images, or every stage in every way; as one of several ranks, where there are some.

    Args:
        options: The options.

    Returns:
        The JSON document and its text; ``None`` for a rank that is not the first.

    Raises:
        UsageError: If options do not go together.
        UnconvError: If no image could be inverted.
    """
    rank = rank_from()
    if options.out is None and not rank.alone:
        raise UsageError("several ranks meet in a run directory; name one with --out")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnconvError(cannot_write(options.out, error)) from error
    return _one_stage(options, rank) if options.stage else _all_stages(options, rank)


def _one_stage(options: Invert, rank: Rank) -> Answer | None:
    way, tuning = chosen_way(options), chosen_tuning(options)
    tuning.check(way.method)
    loaded, network = open_model(options, rank=rank)
    found = network.stages(loaded.example().shape[1:])
    names = needed(loaded, found, options.stage, way)
    equip(options, (way,), network, found)
    images = open_images(options, loaded)

    def keep(index: int, _name: str, _way: InversionMethod, found: Reconstruction) -> None:
        if options.out is not None and found.picture is not None:
            save_image(found.picture, options.out / f"{index:04d}.png")

    region = options.region
    job = Inverting((options.stage,), (way,), lambda _: names, lambda _stage, _way: region, region, tuning, keep)
    inverted = _inverted(options, loaded, network, images, job, rank)
    if inverted is None:
        return None
    rows = [{field: row[field] for field in FIELDS} for row in inverted.rows()]
    if all(row["relative_error"] is None for row in rows):
        raise UnconvError(rows[0]["status"])
    document = {
        "stage": options.stage,
        **{key: value for key, value in way.fields().items() if key in {"method", "side_info"}},
        **{key: value for key, value in way.fields().items() if key in {"from", "code"}},
        "images": rows,
        "summary": inverted.tally.overall() | {"images": len(rows)},
        "skipped": inverted.skipped,
    }
    header = ("file", *MEANS, "status")
    table = [
        tuple(row[field] for field in header) for row in [*rows, document["summary"] | {"file": "mean", "status": ""}]
    ]
    legend = _legend(options, (row["status"] for row in rows))
    return document, f"{rows_of_text(header, table)}\n{legend}"


def _all_stages(options: Invert, rank: Rank) -> Answer | None:
    ways, tuning = chosen_ways(options), chosen_tuning(options)
    for method in dict.fromkeys(way.method for way in ways):
        tuning.check(method)
    loaded, network = open_model(options, rank=rank)
    images = open_images(options, loaded)
    shape = next(iter(images)).inputs.shape[1:]
    names, skipped_modules = choose_stages(loaded, network.stages(shape), options.stages)
    equip(options, ways, network, network.stages(shape))
    region = 2 if options.region is None else options.region

    def imposed(stage: ConvBlock, way: InversionMethod) -> int | None:
        fitting = fitting_region(stage, region)
        return fitting if way.code == "paper" else options.region and fitting

    def keep(index: int, name: str, way: InversionMethod, found: Reconstruction) -> None:
        if options.out is not None and found.picture is not None:
            words = (f"{index:04d}", name, *way.fields().values())
            save_image(found.picture, options.out / f"{'-'.join(words)}.png")

    job = Inverting(names, ways, lambda found: _inputs_of(found, names, ways), imposed, region, tuning, keep)
    inverted = _inverted(options, loaded, network, images, job, rank)
    if inverted is None:
        return None
    numbers = inverted.tally.numbers.values()
    if not any(found.good for found in numbers):
        raise UnconvError(min(reason for found in numbers for reason in found.reasons))
    documents = [
        stage_document(network.stages(shape).get(name))
        | inverted.statements[name]
        | {"inversion": inverted.tally.summary(name, ways)}
        for name in names
    ]
    document = {"stages": documents, "skipped_modules": skipped_modules, "skipped": inverted.skipped}
    return document, "\n".join([_text(documents), *_missing(documents), _legend(options)])


def _inverted(
    options: Invert, loaded: LoadedModel, network: Network, images: ImageStream, job: Inverting, rank: Rank
) -> Inverted | None:
    if options.out is None:
        run: RunDirectory = Unwritten()
    else:
        run = RunDirectory(options.out, _config(options, loaded, images, job, network.decoders), rank)
    units = len(job.names) * len(images) * (len(job.ways) + job.papers)
    try:
        with progress_bar(math.ceil(units / rank.count), shown=rank.leads) as progress:
            inverted = invert_all(network, images, job, run, progress, count=not options.stage)
        if inverted is not None and options.out is not None:
            run.write_results(inverted.rows())
        if options.out is not None:
            run.attendance.leave()
    finally:
        run.close()
    if inverted is not None:
        say_skipped(SkippedImage(**image) for image in inverted.skipped)
    return inverted


def _config(
    options: Invert,
    loaded: LoadedModel,
    images: ImageStream,
    job: Inverting,
    decoders: Mapping[str, WhatWhereDecoder],
) -> dict[str, Any]:
    return {
        "verb": "invert",
        "model": options.model,
        "weights": {"source": loaded.weights.source, "sha256": loaded.weights.sha256},
        "preprocessing": loaded.preprocess.describe(),
        "images": given(options, images),
        "stages": list(job.names),
        "ways": [way.fields() for way in job.ways],
        "decoders": {name: hash_state(decoder.state_dict()) for name, decoder in decoders.items()},
        "region": options.region,
        "batch": options.batch,
        "tuning": asdict(job.tuning),
        "device": options.device,
    }


def needed(loaded: LoadedModel, found: ConvBlocks, name: str, way: InversionMethod) -> tuple[str, ...]:
    """The stages whose inputs the inversion of one stage reads, once the weights are known to reach it.

    Args:
        loaded: The model.
        found: Its stages.
        name: The stage to invert.
        way: How.

    Returns:
        Names, the image's side first.
    """
    names = stages_needed(found, name, way)
    choose_stages(loaded, found, (name,))
    return names


def equip(options: Invert, ways: Iterable[InversionMethod], network: Network, stages: ConvBlocks) -> None:
    """Give the network the trained decoders that ways ask for.

    Args:
        options: The options, which may name files.
        ways: How stages are to be inverted.
        network: The network; gets the decoders.
        stages: Its stages.

    Raises:
        UsageError: If there are files and no way needs them, or one does not exist.
        UnconvError: If a file is no decoder, the decoder of another network, or the only stage has none.
    """
    if all(way.method != TRAINED for way in ways):
        if options.decoders:
            raise UsageError(f"--decoders are files for --method {TRAINED}; give both or neither")
        return
    opened = open_decoders(network, stages, options.decoders, DECODERS)
    if options.stage and options.stage not in opened:
        raise UnconvError(decoder_missing(options.stage))
    network.decoders = {name: found.decoder for name, found in opened.items()}


def chosen_way(options: Invert) -> InversionMethod:
    """The way of inverting one stage that the options name.

    Args:
        options: The options.

    Returns:
        The way, with what the options leave open decided.
    """
    return InversionMethod.of(options.start, options.code, options.method, options.side_info)


def chosen_ways(options: Invert) -> tuple[InversionMethod, ...]:
    """The ways of a report as far as they fit the options; all ways of a method that is named.

    Args:
        options: The options.

    Returns:
        At least one way.

    Raises:
        UsageError: If the method does not exist, or the options do not fit together.
    """
    candidates = DEFAULT_METHODS
    if options.method is not None:
        if options.method not in (*METHODS, *WHOLE_NETWORK):
            raise UsageError(f"no method {options.method!r}; use one of {', '.join((*METHODS, *WHOLE_NETWORK))}")
        starts = ("image",) if options.method in WHOLE_NETWORK else ("layer", "image")
        infos = ("switches",) if options.method == TRAINED else SIDE_INFO
        code = options.code or "network"
        candidates = tuple(
            InversionMethod(start, code, options.method, known) for start, known in product(starts, infos)
        )
    wanted = {"from": options.start, "code": options.code, "side_info": options.side_info}
    fitting = [way for way in candidates if all(way.fields()[key] == v for key, v in wanted.items() if v is not None)]
    if not fitting:
        raise UsageError("no way of inverting fits these options together; leave out --from, --code or --side-info")
    return tuple(fitting)


def chosen_tuning(options: Invert) -> SolverOptions:
    """What the solvers are told besides.

    Args:
        options: The options.

    Returns:
        The tuning, not yet checked against a method.
    """
    regulariser = Regulariser(total_variation=options.total_variation, alpha_norm=options.alpha_norm)
    return SolverOptions(
        options.effort,
        options.prior,
        options.prior_weight,
        options.optimizer,
        regulariser,
        options.jitter,
        options.seed,
    )


def _inputs_of(stages: ConvBlocks, names: Sequence[str], ways: Iterable[InversionMethod]) -> list[str]:
    needed = dict.fromkeys(names)
    for name, way in product(names, ways):
        try:
            needed |= dict.fromkeys(stages_needed(stages, name, way))
        except UnconvError:
            continue  # a way that is not open to this stage; its rows say why
    return list(needed)


def _legend(options: Invert, statuses: Iterable[str] = ()) -> str:
    lines = ["relative_error is ||x^ - x|| / ||x||; psnr (dB) and ssim where the image is recovered; seconds per image"]
    if "max_steps" in statuses:
        lines.append("max_steps: the solver was stopped by its number of steps; a larger --effort gives it more")
    if options.out is not None:
        lines.append(f"in {options.out}: the recovered images as pictures, and results.parquet")
    return "\n".join(lines)


def _missing(documents: list[dict[str, Any]], shown: int = 3) -> list[str]:
    """Why some ways gave nothing."""
    empty = [
        f"nothing for {document['stage']} from {found['from']} by {found['method']}: {found['note']}"
        for document in documents
        for found in document["inversion"]
        if not found["images"]
    ]
    more = len(empty) - shown
    return empty[:shown] + ([f"and {more} more that gave nothing; --json says why"] if more > 0 else [])


def _text(documents: list[dict[str, Any]]) -> str:
    header = ("stage", "equations", "inequalities", "unknowns", "from", "code", "method", "side info", *MEANS)
    table = [
        (
            *(document[key] for key in ("stage", "equations", "inequalities", "unknowns")),
            *(found[key] for key in ("from", "code", "method", "side_info")),
            *(found[key] for key in MEANS),
        )
        for document in documents
        for found in document["inversion"]
    ]
    return rows_of_text(header, table)
