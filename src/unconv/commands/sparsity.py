"""``unconv sparsity``: the share of non-zeros of every stage over images (Table 2)."""

from __future__ import annotations

from typing import Any

from unconv.commands.loading import choose_stages, open_images, open_model, rows_of_text
from unconv.commands.options import ImageOptions, Sparsity
from unconv.commands.progress import progress_bar, say_skipped
from unconv.evaluate.network import CapturedStream, Network
from unconv.evaluate.sparsity_stats import activity_over
from unconv.models import LoadedModel


def run(options: Sparsity) -> tuple[dict[str, Any], str]:
    """Count non-zeros.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    loaded, network = open_model(options)
    fractions, skipped = measured_fractions(loaded, network, options, None)
    stages = [
        {"stage": name, "activation": 100 * f["activation"], "pooled": 100 * f["pooled"]}
        for name, f in fractions.items()
    ]
    rows = [tuple(stage.values()) for stage in stages]
    say_skipped(skipped)
    return {"stages": stages}, rows_of_text(("stage", "activation %", "pooled %"), rows)


def measured_fractions(
    loaded: LoadedModel, network: Network, options: ImageOptions, region: int | None
) -> tuple[dict[str, dict[str, float]], list[Any]]:
    """Shares of non-zeros of the chosen stages over the images.

    Args:
        loaded: The model.
        network: Its network.
        options: Which stages and images.
        region: Side of the pooling that stages without one get in the share ``pooled``; none where ``None``.

    Returns:
        ``{"activation", "pooled"}`` by stage, each 0 to 1, and the images that were skipped.
    """
    images = open_images(options, loaded)
    found = network.stages(loaded.example().shape[1:])
    names, _ = choose_stages(loaded, found, options.stages)
    stream = CapturedStream(network, images, lambda _: names)
    with progress_bar(len(images) * len(names)) as progress:
        activity, _ = activity_over(stream, names, region, progress)
    fractions = {}
    for name in names:
        pooled = activity.stages.get(f"imposed {name}", activity[name]).pooled
        fractions[name] = {"activation": activity[name].activation.fraction, "pooled": pooled.fraction}
    return fractions, stream.skipped
