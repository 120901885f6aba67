"""``unconv invert``: the input back from a stage's code."""

from __future__ import annotations

from typing import Any

from unconv.errors import UnconvError, UsageError
from unconv.images import save_image
from unconv.invert.ways import Way, coded_stage, stages_needed
from unconv.runs.network import CapturedStream
from unconv.runs.survey import activity_over, invert_images, mean, paper_k
from unconv.verbs.opening import choose_stages, open_images, open_model, rows_of_text
from unconv.verbs.options import Invert
from unconv.verbs.progress import progress_bar, say_skipped

MEANS = ("relative_error", "psnr", "ssim", "seconds")


def run(options: Invert) -> tuple[dict[str, Any], str]:
    """Invert one stage over the images.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.

    Raises:
        UsageError: If no stage is named.
        UnconvError: If no image could be inverted.
    """
    loaded, network = open_model(options)
    found = network.stages(loaded.example().shape[1:])
    if not options.stage:
        raise UsageError(f"--stage is missing; use one of {', '.join(s.name for s in found.stages)}")
    way = Way(options.start, options.code, options.method, options.side_info)
    names = stages_needed(found, options.stage, way)
    choose_stages(loaded, found, (options.stage,))
    images = open_images(options, loaded)
    stream = CapturedStream(network, images, lambda _: names)
    passes = 2 if options.code == "paper" else 1
    rows: list[dict[str, Any]] = []
    with progress_bar(passes * len(images)) as progress:
        fraction = None
        if options.code == "paper":
            activity, _ = activity_over(stream, [options.stage], options.region, progress)
            fraction = activity.stages.get(f"imposed {options.stage}", activity[options.stage]).pooled.fraction
        for captured in stream:
            stage = coded_stage(captured.stages.get(options.stage), "network", options.region)
            k = None if fraction is None else paper_k(stage, fraction)
            results = invert_images(
                network, captured, options.stage, way, k=k, region=options.region, effort=options.effort
            )
            for index, file, (numbers, picture) in zip(
                captured.batch.indices, captured.batch.names, results, strict=True
            ):
                rows.append({"file": file} | numbers)
                if options.out is not None and picture is not None:
                    save_image(picture, options.out / f"{index:04d}.png")
            progress(f"inverting {options.stage}", len(results))
    say_skipped(stream.skipped)
    if all(row["relative_error"] is None for row in rows):
        raise UnconvError(rows[0]["status"])
    document = {
        "stage": options.stage,
        "method": options.method,
        "side_info": options.side_info,
        "from": options.start,
        "code": options.code,
        "images": rows,
        "summary": {field: mean(row[field] for row in rows) for field in MEANS} | {"images": len(rows)},
        "skipped": [{"file": s.file, "reason": s.reason} for s in stream.skipped],
    }
    header = ("file", *MEANS, "status")
    table = [
        tuple(row[field] for field in header) for row in [*rows, document["summary"] | {"file": "mean", "status": ""}]
    ]
    return document, rows_of_text(header, table)
