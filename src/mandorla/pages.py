"""HTML pages that need nothing but themselves, all of one look (`page.css`)."""

import base64
from collections.abc import Mapping
from typing import Any


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return the page that `template`, a file of this package, makes of `values`, all of them escaped.

    In it, `base64` turns bytes such as those of a PNG into text.
    """
    from jinja2 import Environment, PackageLoader

    pages = Environment(loader=PackageLoader("mandorla", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.globals["base64"] = lambda content: base64.b64encode(content).decode()
    return pages.get_template(template).render(values)
