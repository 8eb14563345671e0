"""The web page over a run: `mandorla serve RUN`.

samples.py    the samples that a request names: of the test part, drawn, uploaded
explore.py    what can be asked, as tables of pictures; knows nothing of HTTP
app.py        the HTTP API, and who may ask
page.html page.js page.css    the page: forms over that API, without a build step
"""

import os
import warnings
from pathlib import Path

from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.optional import how_to_install


def serve(run: Path, port: int) -> None:
    """Serve the page of the run folder `run` on this machine alone, until interrupted.

    Raises MandorlaError if there is no model, the port is taken, or what the page needs is not installed.
    """
    import mandorla

    model = mandorla.load(run)
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")  # FastAPI brings a tracing interface: nothing is traced here
    try:
        from mandorla.serve.app import listen
    except ModuleNotFoundError as error:
        raise MandorlaError(how_to_install(error.name, "serve")) from error
    warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: who uploads one is told on the page
    listen(model, port)
