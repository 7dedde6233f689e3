"""Makes an evaluation's page: one HTML file that needs no network and that a browser of 2023 or later can show.

The charts are drawn by Plotly. Its Python package brings the JavaScript as one file, which has no dependencies, and
whose interface has been stable for ten years; no smaller library of that kind comes in a maintained Python package. The
page holds the file compressed, 1.9 MB instead of 4.8, and the browser unpacks it.

The page's own script is in `report_page/`. It reads the one JSON block and computes no figure. The page's policy lets
the browser run these two scripts alone, and send no request: names of classes and runs come from outside.
"""

import base64
import gzip
import hashlib
import html
import json
import pathlib
import string
from typing import Any

from absl import logging
from etils import epath

from basisnet_jax.host import files, installed, plotting

_PARTS = pathlib.Path(__file__).parent / "report_page"
_SCRIPTS = ("report.js", "coefficients.js", "charts.js")  # one script of the page, in this order


def write(path: epath.Path, data: dict[str, Any]) -> None:
    """Writes the page; without Plotly logs how to get one.

    Args:
      path: path of the page.
      data: JSON values; 'name' is the run's.
    """
    if installed.find_installed("plotly"):
        files.write(path, page(data))
    else:
        logging.warning("%s needs Plotly and is not written; run pip install plotly, then evaluate again", path)


def page(data: dict[str, Any]) -> str:
    """Returns the page that `write` writes."""
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs(), "".join((_PARTS / name).read_text("utf-8") for name in _SCRIPTS)
    colors = {name.lower(): getattr(plotting, name) for name in ("BLUE", "SKY", "VERMILION", "ORANGE", "GREEN")}
    return string.Template((_PARTS / "report.html").read_text("utf-8")).substitute(
        name=html.escape(data["name"]),
        scripts=" ".join(map(_allowed, (script, plotly))),
        style=string.Template((_PARTS / "report.css").read_text("utf-8")).substitute(colors),
        data=json_block(data),
        plotly=base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode(),
        script=script,
    )


def json_block(data: dict[str, Any]) -> str:
    """Returns JSON in which no text ends an HTML element or begins one."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"})


def _allowed(script: str) -> str:
    """Returns a script's hash as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
