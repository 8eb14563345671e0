"""The HTTP API under the page, and the server: on this machine alone.

- It listens on the loopback interface. Requests must name it as their host: a page of another site that lets its own
  name point here (DNS rebinding) is refused, and so is what a browser says comes from another site. Nothing is allowed
  to other origins (no CORS), and the page may load nothing but itself.
- Few requests compute at a time; the others wait without holding a thread, and beyond a number of them are told so.
- No path of a client's is opened: the page's files are read at the start, uploads are bytes.
"""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

import mandorla
from mandorla.errors import MandorlaError
from mandorla.evaluate.record import Record, read_records
from mandorla.model import Mandorla
from mandorla.serve.explore import Explorer, Fill, Generate, Mix, Nearest, Panel, Question, Traverse, Walk
from mandorla.serve.samples import ACCEPTED, LARGEST_FILE

QUESTIONS = (Generate, Fill, Mix, Walk, Traverse, Nearest)
ADDRESS, HOSTS = "127.0.0.1", ["127.0.0.1", "localhost"]
MOST_WAITING = 64  # requests
MOST_OPEN = 512  # connections
LONGEST_UPLOAD = 60  # seconds
LARGEST_REPORT = 2**28  # bytes
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
_POLICY += "; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
_REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # whoever made the run: no script
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class About(BaseModel):
    """Say what the model of the run is."""

    run: str
    modalities: dict[str, list[int]]
    """Channels and size of each."""
    components: dict[str, list[int]]
    """Shape of the shared part and of each private part."""
    mode: str | None
    """Of stage 2; null where there is none, and nothing can be drawn."""
    steps: int | None
    guidance: float | None
    """Of the sampler, where a question leaves them open."""
    labels: dict[str, list[str]]
    """Which labels tuples can be asked for, and the classes of each; none of a number."""
    accepted: list[str]
    """Suffixes of files that can be uploaded."""
    largest: int
    """Bytes of an upload."""
    report: bool
    """Whether the run was evaluated."""


class Uploaded(BaseModel):
    """Say under which token an upload is found, which modalities it has, its slices, and what is strange about it."""

    token: str
    modalities: list[str]
    slices: list[int] | None
    note: str


class Error(BaseModel):
    """Say in one line what is wrong and what to do."""

    detail: str


class _Turns:
    """Let few calls of a kind work at a time; the others wait without holding a thread."""

    def __init__(self) -> None:
        self.of: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def opened(self, app: FastAPI) -> AsyncIterator[None]:
        cores = min(4, os.cpu_count() or 1)
        self.of.update(compute=CapacityLimiter(cores), upload=CapacityLimiter(4), read=CapacityLimiter(1))
        yield

    async def take(self, kind: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if self.of[kind].statistics().tasks_waiting >= MOST_WAITING:
            raise HTTPException(503, "too many requests are waiting: try again in a moment")
        return await to_thread.run_sync(work, *arguments, limiter=self.of[kind])


def create_app(model: Mandorla) -> FastAPI:
    """Return the application over a model: the page and its API."""
    explorer, turns = Explorer(model), _Turns()
    app = FastAPI(
        title="Mandorla",
        version=mandorla.__version__,
        summary="Explore what a trained run draws, fills in, swaps, and has learned.",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=turns.opened,
        responses={422: {"model": Error}, 503: {"model": Error}},
    )
    _add_guard(app)
    _add_errors(app)
    for name, kind in {"": "text/html", "page.js": "text/javascript", "page.css": "text/css"}.items():
        _add_file(app, name, kind)
    _add_facts(app, explorer, turns)
    _add_upload(app, explorer, turns)
    for question in QUESTIONS:
        _add_question(app, question, lambda asked: turns.take("compute", explorer.answer, asked))
    return app


def _add_guard(app: FastAPI) -> None:
    """Refuse what other sites ask, and say with every answer what the page may do."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Response:
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and request.url.path != "/":
            response: Response = _error(403, "requests from other sites are refused")
        else:
            response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)


def _add_errors(app: FastAPI) -> None:
    """Answer mistakes with one line."""

    @app.exception_handler(MandorlaError)
    async def mistake(request: Request, error: MandorlaError) -> JSONResponse:
        return _error(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"][1:])
        return _error(422, f"{where[:100]}: {first['msg']}".removeprefix(": "))


def _add_facts(app: FastAPI, explorer: Explorer, turns: _Turns) -> None:
    """Say what the run is, what it was trained on, and how it was measured."""
    model = explorer.model

    @app.get("/api/model", summary="Say what the model is")
    def about() -> About:
        return _about(model)

    @app.get("/api/data", summary="Say how many samples the data have")
    async def data() -> dict[str, int]:
        parts = await turns.take("compute", lambda: explorer.data.parts)
        return {name: len(part) for name, part in parts.items()}

    @app.get("/api/metrics", summary="Give the figures of `mandorla evaluate`, as metrics.json holds them")
    def metrics() -> list[Record]:
        if not (records := read_records(model.run)):
            raise HTTPException(404, f"not evaluated yet: run `mandorla evaluate {model.run}`")
        return records

    @app.get("/report", summary="Give the report of `mandorla evaluate`")
    def report() -> Response:
        path = model.run / "report.html"
        if not path.is_file():
            raise HTTPException(404, f"not evaluated yet: run `mandorla evaluate {model.run}`")
        if path.stat().st_size > LARGEST_REPORT:
            raise MandorlaError(
                f"{path} is larger than an evaluation writes: run `mandorla evaluate {model.run}` again"
            )
        headers = {"Content-Security-Policy": _REPORT_POLICY}
        return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


def _add_upload(app: FastAPI, explorer: Explorer, turns: _Turns) -> None:
    @app.post("/api/uploads/{modality}", summary="Upload a file as one modality of a new sample", status_code=201)
    async def upload(
        request: Request,
        modality: Annotated[str, Path(max_length=100)],
        name: Annotated[str, Query(max_length=255, description="name of the file; its suffix says what it is")],
        token: Annotated[str | None, Query(max_length=100, description="upload whose other modalities to keep")] = None,
    ) -> Uploaded:
        """The body is the file, its type `application/octet-stream`. The sample is then `upload:TOKEN`; the token is
        the only way to it. Nothing is written to disk for longer than it is read."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise HTTPException(415, "send the file itself, with content-type application/octet-stream")
        async with turns.of["upload"]:
            content = await _body(request)
            new, kept = await turns.take("read", explorer.uploads.add, modality, name, content, token)
        return Uploaded(token=new, modalities=list(kept.x), slices=kept.numbers, note=kept.note)


def listen(model: Mandorla, port: int) -> None:
    """Serve the page of a model on this machine until interrupted. Raises MandorlaError where the port is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen()
        except OSError as error:
            raise MandorlaError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
        print(f"http://{ADDRESS}:{listener.getsockname()[1]} shows {model.run}; Control-C ends it", flush=True)
        config = uvicorn.Config(
            create_app(model), log_level="warning", access_log=False, server_header=False, limit_concurrency=MOST_OPEN
        )
        uvicorn.Server(config).run(sockets=[listener])


async def _body(request: Request) -> bytes:
    """Return the file that a request sends, if it is not too large and comes in time."""
    content = bytearray()
    try:
        with fail_after(LONGEST_UPLOAD):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_FILE:
                    raise HTTPException(413, f"larger than {LARGEST_FILE // 2**20} MiB, the most that can be uploaded")
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took longer than {LONGEST_UPLOAD} seconds: try again") from error
    return bytes(content)


def _add_file(app: FastAPI, name: str, kind: str) -> None:
    """Serve one of the page's files, as it is now."""
    folder = files("mandorla")
    content = (folder / "serve" / (name or "page.html")).read_text(encoding="utf-8")
    if name == "page.css":  # the look of the other pages, and what this one adds
        content = (folder / "page.css").read_text(encoding="utf-8") + content

    @app.get(f"/{name}", include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")


def _add_question(app: FastAPI, question: type[Question], answer: Callable) -> None:
    name = question.__name__.lower()

    @app.get(
        f"/api/{name}",
        name=name,
        summary=question.__doc__,
        response_model=Panel,
        responses={200: {"content": {"image/png": {}}, "description": "A table of pictures, or one picture of it"}},
    )
    async def ask(asked: Annotated[question, Query()]) -> Any:
        found = await answer(asked)
        return Response(found, media_type="image/png") if isinstance(found, bytes) else found


def _about(model: Mandorla) -> About:
    try:
        diffusion = model.diffusion.config
    except MandorlaError:  # stage 1 alone can be explored as well
        diffusion = None
    return About(
        run=model.run.resolve().name,
        modalities={m.name: list(m.shape) for m in model.modalities},
        components={name: list(shape) for name, shape in model.vae.layout.shapes.items()},
        mode=diffusion and diffusion.mode,
        steps=diffusion and diffusion.sampling.steps,
        guidance=diffusion and diffusion.sampling.guidance,
        labels={name: list(scale.classes) for name, scale in model.diffusion.labels.items()} if diffusion else {},
        accepted=list(ACCEPTED),
        largest=LARGEST_FILE,
        report=(model.run / "report.html").is_file(),
    )


def _error(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
