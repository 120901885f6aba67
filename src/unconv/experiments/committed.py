"""What a clone of the repository carries besides the package: results that take hours, and trained decoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unconv.decode.learned import Card, WhatWhereDecoder, read_card
from unconv.errors import UnconvError
from unconv.experiments.subject import Subject
from unconv.runs.decoder_training import decoder_chain, encoder_sha256, open_decoder

ROOT = Path(__file__).parents[3] / "experiments"


@dataclass(frozen=True)
class OpenedDecoder:
    """A decoder of one stage of the network under study.

    Attributes:
        file: Its file.
        card: What the file says of it.
        decoder: The decoder.
    """

    file: Path
    card: Card
    decoder: WhatWhereDecoder

    def describe(self) -> dict[str, Any]:
        """Which decoder that is, fit for JSON."""
        config = {name: value for name, value in self.card.config.items() if value is not None}
        return {"file": self.file.name, "stage": self.card.stage, "config": config}


def committed_result(name: str, made_by: str) -> dict[str, Any]:
    """A result that is committed rather than computed.

    Args:
        name: Its path below ``experiments/results``, without ``.json``.
        made_by: The command that makes it, for the message.

    Returns:
        The document.

    Raises:
        UnconvError: If it is not there, as in an installed package.
    """
    file = ROOT / "results" / f"{name}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        raise UnconvError(
            f"the committed result experiments/results/{name}.json is not there; run from a clone of the repository, "
            f"or make it by {made_by}"
        ) from None


def open_decoders(
    subject: Subject, given: Sequence[Path], folder: Path = ROOT / "decoders"
) -> dict[str, OpenedDecoder]:
    """The decoders of a network's stages: those given, and the committed ones that belong to it.

    Args:
        subject: The network.
        given: Files; each must belong to the network.
        folder: Where further ones may lie; those of other networks are passed over.

    Returns:
        Decoders by the stage whose code they decode.

    Raises:
        UsageError: If a given file does not exist, or names a stage that the network does not have.
        UnconvError: If a given file is no decoder, or the decoder of another network.
    """
    found: dict[str, OpenedDecoder] = {}
    for file in (*given, *sorted(folder.glob("*.safetensors"))):
        card = read_card(file)
        if card.stage in found:
            continue
        if file not in given and not _belongs(subject, card):
            continue
        found[card.stage] = OpenedDecoder(
            file, card, open_decoder(file, subject.network, decoder_chain(subject.stages, card.stage))
        )
    return found


def _belongs(subject: Subject, card: Card) -> bool:
    try:
        chain = decoder_chain(subject.stages, card.stage)
    except UnconvError:
        return False
    return encoder_sha256(subject.network, chain) == card.encoder_sha256
