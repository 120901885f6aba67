"""``unconv invert``: the input back from a stage's code; without a stage, a table over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from unconv.decode.layer import METHODS
from unconv.decode.statements import count_statements
from unconv.errors import UnconvError, UsageError
from unconv.images import SkippedImage, cannot_write, save_image
from unconv.invert.gradient import Regulariser
from unconv.invert.surgery import SIDE_INFO
from unconv.invert.ways import WAYS, WHOLE_NETWORK, Tuning, Way, fitting_region, stages_needed
from unconv.runs.inversion import invert_captured, invert_stream, passes, pooled_fractions
from unconv.runs.network import Captured, CapturedStream
from unconv.runs.survey import Outcome, inverting, mean, stage_document, summarise
from unconv.stage import Stages
from unconv.verbs.opening import choose_stages, open_images, open_model, rows_of_text
from unconv.verbs.options import Invert
from unconv.verbs.progress import progress_bar, say_skipped
from unconv.zoo import LoadedModel

MEANS = ("relative_error", "psnr", "ssim", "seconds")


def run(options: Invert) -> tuple[dict[str, Any], str]:
    """Invert one stage over the images, or every stage in every way.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.

    Raises:
        UsageError: If options do not go together.
        UnconvError: If no image could be inverted.
    """
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnconvError(cannot_write(options.out, error)) from error
    return _one_stage(options) if options.stage else _all_stages(options)


def _one_stage(options: Invert) -> tuple[dict[str, Any], str]:
    way, tuning = chosen_way(options), chosen_tuning(options)
    tuning.check(way.method)
    loaded, network = open_model(options)
    names = needed(loaded, network.stages(loaded.example().shape[1:]), options.stage, way)
    images = open_images(options, loaded)
    stream = CapturedStream(network, images, lambda _: names)
    rows: list[dict[str, Any]] = []
    with progress_bar(passes(way) * len(images)) as progress:
        for captured, results in invert_stream(stream, options.stage, way, options.region, tuning, progress):
            for index, file, found in zip(captured.batch.indices, captured.batch.names, results, strict=True):
                rows.append({"file": file} | found.numbers)
                if options.out is not None and found.picture is not None:
                    save_image(found.picture, options.out / f"{index:04d}.png")
    say_skipped(stream.skipped)
    if all(row["relative_error"] is None for row in rows):
        raise UnconvError(rows[0]["status"])
    document = {
        "stage": options.stage,
        **{key: value for key, value in way.fields().items() if key in {"method", "side_info"}},
        **{key: value for key, value in way.fields().items() if key in {"from", "code"}},
        "images": rows,
        "summary": {field: mean(row[field] for row in rows) for field in MEANS} | {"images": len(rows)},
        "skipped": _skipped(stream.skipped),
    }
    header = ("file", *MEANS, "status")
    table = [
        tuple(row[field] for field in header) for row in [*rows, document["summary"] | {"file": "mean", "status": ""}]
    ]
    return document, rows_of_text(header, table)


def _all_stages(options: Invert) -> tuple[dict[str, Any], str]:
    ways, tuning = chosen_ways(options), chosen_tuning(options)
    for method in dict.fromkeys(way.method for way in ways):
        tuning.check(method)
    loaded, network = open_model(options)
    images = open_images(options, loaded)
    shape = next(iter(images)).inputs.shape[1:]
    names, skipped_modules = choose_stages(loaded, network.stages(shape), options.stages)
    region = 2 if options.region is None else options.region
    stream = CapturedStream(network, images, lambda found: _inputs_of(found, names, ways))
    paper = any(way.code == "paper" for way in ways)
    counts: dict[str, dict[str, int]] = {}
    rows: list[dict[str, Any]] = []
    with progress_bar(len(names) * len(images) * (len(ways) + paper)) as progress:
        fractions = pooled_fractions(stream, names, region, progress) if paper else {}
        for captured in stream:
            for name in names:
                stage = captured.stages.get(name)
                if name not in counts:
                    counts[name] = count_statements(stage, stage.encode(captured.inputs[name]))
                imposed = fitting_region(stage, region)
                for way in ways:
                    own = imposed if way.code == "paper" else options.region and imposed
                    results = invert_captured(network, captured, name, way, own, fractions, tuning)
                    rows += _rows(options, captured, name, way, results)
                    progress(inverting(name, way, results), len(results))
    say_skipped(stream.skipped)
    if all(row["relative_error"] is None for row in rows):
        raise UnconvError(rows[0]["status"])
    documents = [
        stage_document(network.stages(shape).get(name))
        | counts[name]
        | {"inversion": summarise([row for row in rows if row["stage"] == name], ways)}
        for name in names
    ]
    document = {"stages": documents, "skipped_modules": skipped_modules, "skipped": _skipped(stream.skipped)}
    return document, _text(documents)


def needed(loaded: LoadedModel, found: Stages, name: str, way: Way) -> tuple[str, ...]:
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


def chosen_way(options: Invert) -> Way:
    """The way of inverting one stage that the options name.

    Args:
        options: The options.

    Returns:
        The way, with what the options leave open decided.
    """
    return Way.of(options.start, options.code, options.method, options.side_info)


def chosen_ways(options: Invert) -> tuple[Way, ...]:
    """The ways of a report as far as they fit the options; all ways of a method that is named.

    Args:
        options: The options.

    Returns:
        At least one way.

    Raises:
        UsageError: If the method does not exist, or the options do not fit together.
    """
    candidates = WAYS
    if options.method is not None:
        if options.method not in (*METHODS, *WHOLE_NETWORK):
            raise UsageError(f"no method {options.method!r}; use one of {', '.join((*METHODS, *WHOLE_NETWORK))}")
        starts = ("image",) if options.method in WHOLE_NETWORK else ("layer", "image")
        code = options.code or "network"
        candidates = tuple(Way(start, code, options.method, known) for start, known in product(starts, SIDE_INFO))
    wanted = {"from": options.start, "code": options.code, "side_info": options.side_info}
    fitting = [way for way in candidates if all(way.fields()[key] == v for key, v in wanted.items() if v is not None)]
    if not fitting:
        raise UsageError("no way of inverting fits these options together; leave out --from, --code or --side-info")
    return tuple(fitting)


def chosen_tuning(options: Invert) -> Tuning:
    """What the solvers are told besides.

    Args:
        options: The options.

    Returns:
        The tuning, not yet checked against a method.
    """
    regulariser = Regulariser(total_variation=options.total_variation, alpha_norm=options.alpha_norm)
    return Tuning(
        options.effort,
        options.prior,
        options.prior_weight,
        options.optimizer,
        regulariser,
        options.jitter,
        options.seed,
    )


def _inputs_of(stages: Stages, names: Sequence[str], ways: Iterable[Way]) -> list[str]:
    needed = dict.fromkeys(names)
    for name, way in product(names, ways):
        try:
            needed |= dict.fromkeys(stages_needed(stages, name, way))
        except UnconvError:
            continue  # a way that is not open to this stage; its rows say why
    return list(needed)


def _rows(options: Invert, captured: Captured, name: str, way: Way, results: list[Outcome]) -> list[dict[str, Any]]:
    rows = []
    for index, file, found in zip(captured.batch.indices, captured.batch.names, results, strict=True):
        rows.append({"file": file, "stage": name} | way.fields() | found.numbers)
        if options.out is not None and found.picture is not None:
            words = (f"{index:04d}", name, *way.fields().values())
            save_image(found.picture, options.out / f"{'-'.join(words)}.png")
    return rows


def _skipped(skipped: Iterable[SkippedImage]) -> list[dict[str, str]]:
    return [asdict(image) for image in skipped]


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
