"""The headline figure: every committed number is where it belongs."""

import json

from unconv.paper import headline
from unconv.paper.committed import ROOT

RESULTS = ROOT / "results" / "vgg19"


def test_every_number_is_drawn():
    files = [RESULTS / f"decoding-{name}.json" for name in ("layer", "pool1", "pool2", "pool3")]
    results = [json.loads(file.read_text()) for file in files]
    above, below = headline.draw(results).axes
    for panel, recovered, marks in (
        (above, "layer", headline.LAYER_MARKS),
        (below, "image", headline.IMAGE_MARKS),
    ):
        drawn = {line.get_label(): list(line.get_xdata()) for line in panel.lines}
        assert len(drawn[headline.PAPER[recovered]]) == len(panel.get_yticks())
        for (method, known), mark in marks.items():
            errors = [
                row["relative_error"]
                for result in results
                for row in result["rows"]
                if (row["from"], row["method"], row["side_info"]) == (recovered, method, known)
            ]
            assert drawn[mark.label] == errors
            assert len(errors) == len(panel.get_yticks())
