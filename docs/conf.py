"""The site: Markdown pages, and references made from the docstrings, the settings and the command line.

make docs     build it into build/docs; a dead link inside it, or any warning, is an error
"""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import notebook_pages  # noqa: E402
import reference  # noqa: E402

import mandorla  # noqa: E402

project, author, release = "Mandorla", "Mandorla's authors", mandorla.__version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types in signatures are no links
html_theme = "furo"
html_title = "Mandorla"
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
suppress_warnings = ["misc.highlighting_failure"]


def setup(app: Sphinx) -> None:
    """Write the references before the pages are read, and set formulas as MathML: no script, no font from outside."""
    reference.write(HERE / "reference")
    notebook_pages.write(HERE / "notebooks", HERE / "executed")
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode
