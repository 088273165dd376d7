"""The web API of the studio, and its page."""

import asyncio
import errno
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ldm.errors import UserError
from ldm.studio.archive import of_run, of_session, zipped
from ldm.studio.events import Event
from ldm.studio.guard import App, Guard, TooLarge
from ldm.studio.schema import (
    API,
    ENDED,
    ID,
    MOST,
    EditBody,
    FromResult,
    Health,
    Job,
    Model,
    NewSession,
    Option,
    Picture,
    Problem,
    RestoreBody,
    Session,
    Step,
    new_id,
    now,
    options_of_edits,
    options_of_restorations,
)
from ldm.studio.settings import StudioSettings
from ldm.studio.store import Kind, Missing, copy_in
from ldm.studio.studio import QueueFull, Studio, without_paths
from ldm.studio.uploads import MEDIA, label, look_at, thumbnail, upright_png

T = TypeVar("T")

PAGE = Path(__file__).parent / "page"
_AT_ONCE = 2  # uploads that are decoded at a time: each may take some hundred megabytes

JobId = Annotated[str, InPath(pattern=ID)]
Index = Annotated[int, InPath(ge=0, lt=MOST)]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (401, 403, 404, 413, 415, 422, 429, 507)
}
_FILE = {200: {"content": {"application/octet-stream": {}}, "description": "the file"}}


def _taking(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _taking_picture() -> dict[str, Any]:
    return _taking({kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(MEDIA.values())})


class _Api:
    """The answers; their names are the operations of the API's documentation."""

    def __init__(self, studio: Studio):
        self.studio, self.store = studio, studio.store
        self.decoding = asyncio.Semaphore(_AT_ONCE)

    # ---- how things are

    async def health(self) -> Health:
        """How the studio is: whether its model is loaded, and how much room the queue has."""
        return self.studio.health()

    async def models(self) -> list[Model]:
        """The models that there are. Only those that are available can be asked for."""
        return self.studio.models()

    async def options(self) -> dict[str, list[Option]]:
        """The options of an edit and of a restoration, as a form needs them."""
        return {"edit": options_of_edits(), "restore": options_of_restorations()}

    # ---- pictures

    async def send_image(self, request: Request, name: str = "") -> Picture:
        """Send a photograph: the file itself is the body. It is kept as it is."""
        return await self._take(request, "images", name)

    async def send_mask(self, request: Request, name: str = "") -> Picture:
        """Send a mask: the file itself is the body. White is painted; it is brought to the photograph's size."""
        return await self._take(request, "masks", name)

    async def _take(self, request: Request, kind: Kind, name: str) -> Picture:
        name, id, studio = label(name), new_id(), self.studio
        part = self.store.incoming(id)
        try:
            size = 0
            with open(part, "wb") as file:
                async for piece in request.stream():
                    size += file.write(piece)
            if not size:
                raise UserError("the body is empty: send the file itself, as curl --data-binary @photo.jpg does")
            async with self.decoding:
                looked = await asyncio.to_thread(look_at, part, studio.settings.max_megapixels)
            picture = Picture(
                id=id,
                name=name,
                format=looked.format,
                width=looked.width,
                height=looked.height,
                plain=looked.plain,
            )
            self.store.keep(kind, picture, part)
            return picture
        finally:
            part.unlink(missing_ok=True)

    async def use_result(self, body: FromResult) -> Picture:
        """Make a prediction the input of what comes next, as the paper's interactive sessions do."""
        job = self.studio.job(body.job)
        session = None if body.session is None else self.studio.session(body.session)
        source = self.store.result(job, body.index, body.restored)
        id = new_id()
        part = self.store.incoming(id)
        try:
            with open(part, "wb") as file:
                await asyncio.to_thread(copy_in, source, file)
            before = self.store.picture("images", job.image)
            name = f"{Path(before.name).stem or 'picture'}-{body.index}.png"[-100:]
            picture = Picture(id=id, name=name, format="PNG", width=before.width, height=before.height, plain=True)
            self.store.keep("images", picture, part)
        finally:
            part.unlink(missing_ok=True)
        if session is not None:
            step = Step(
                image=id,
                parent=job.image,
                job=job.id,
                index=body.index,
                restored=body.restored,
                prompt=str(job.options.get("prompt", "")),
            )
            session.steps.append(step)
            self._touch(session)
        return picture

    async def image(self, id: JobId) -> Picture:
        """What is known of a photograph."""
        return self.store.picture("images", id)

    async def image_file(self, id: JobId) -> Response:
        """The photograph as it was sent."""
        return self._file(self.store.file("images", id), self.store.picture("images", id).name)

    async def image_view(self, id: JobId) -> Response:
        """The photograph as an upright PNG of 8 bits, for browsers that do not show its own kind."""
        return await self._derived(id, "view", upright_png)

    async def image_thumb(self, id: JobId) -> Response:
        """The photograph, small."""
        return await self._derived(id, "thumb", thumbnail)

    async def _derived(self, id: str, name: str, make: Callable[[Path, Path], None]) -> Response:
        """What is made of a photograph once, and kept."""
        source, target = self.store.file("images", id), self.store.derived(id, name)
        if not target.is_file():
            part = self.store.incoming(new_id())
            try:
                async with self.decoding:
                    await asyncio.to_thread(make, source, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return self._file(target)

    async def mask_file(self, id: JobId) -> Response:
        """The mask as it was sent."""
        return self._file(self.store.file("masks", id), self.store.picture("masks", id).name)

    # ---- jobs

    async def submit(self, request: Request) -> JSONResponse:
        """Queue an edit. Every option of the command line's edits is taken; null leaves one to the model."""
        return _queued(self.studio.submit_edit(await _json(request)))

    async def restore(self, id: JobId, request: Request) -> JSONResponse:
        """Queue the restoration of a prediction's background, by decoder optimization unless another way is asked."""
        return _queued(self.studio.submit_restore(id, await _json(request)))

    async def jobs(self) -> list[Job]:
        """The jobs that wait or run, and the latest of the others, in the order of their coming."""
        return self.studio.listed()

    async def job(self, id: JobId) -> Job:
        """A job."""
        return self.studio.job(id)

    async def cancel(self, id: JobId) -> Job:
        """Cancel a job: at once where it waits, after its present step where it runs."""
        return self.studio.cancel(id)

    async def cancel_all(self) -> list[Job]:
        """Cancel all jobs that wait or run."""
        return [self.studio.cancel(job.id) for job in self.studio.listed()[::-1] if not job.has_ended]

    async def forget(self, id: JobId) -> Response:
        """Remove a job that has ended, with all that it made."""
        self.studio.forget(id)
        return Response(status_code=204)

    async def events(self) -> StreamingResponse:
        """News of everything: first `hello`, with all jobs; then `job`, `progress`, `preview`, `queue`, `health`."""
        return _stream(self.studio.hub.stream(self.studio.snapshot))

    async def job_events(self, id: JobId) -> StreamingResponse:
        """News of a job: first `job`, how it is; then `progress`, `preview` and `job`, until it has ended."""
        self.studio.job(id)

        def first() -> Event:
            return Event("job", self.studio.job(id).model_dump(mode="json"), id)

        def last(event: Event) -> bool:
            return event.name == "job" and event.data["state"] in ENDED

        return _stream(self.studio.hub.stream(first, id, last))

    async def result(self, id: JobId, index: Index, restored: str | None = None) -> Response:
        """A prediction in its picture, as a PNG that says how it was made; number 0 is the best.

        `restored` names a way of restoring, such as `optimization`: then the picture is the one it made.
        """
        job, way = self.studio.job(id), _way(restored)
        path = self.store.result(job, index, way)
        name = Path(self.store.picture("images", job.image).name).stem or "picture"
        return self._file(path, f"{name}-{index}.png")

    async def view(self, id: JobId, index: Index, restored: str | None = None) -> Response:
        """The part of a prediction that lies in the job's `window`: outside it, the picture is the input's."""
        way = _way(restored)
        path = self.store.folder(id) / "view" / f"{f'{way}-' if way else ''}{index:04d}.png"
        if not path.is_file():
            raise Missing("there is no such picture (any more)")
        response = self._file(path)
        if way is None:  # a restoration may be made again
            response.headers["cache-control"] = "private, max-age=31536000, immutable"
        return response

    async def archive(self, id: JobId) -> StreamingResponse:
        """All of a run as a zip: what the command line leaves in its output folder."""
        job = self.studio.job(id)
        if not self.store.has_run(job.of or id):
            raise Missing("that run has not been saved (yet), or has been removed")
        return _zip(of_run(self.store, self.studio.job(job.of or id)), f"run-{id[:6]}")

    # ---- sessions

    async def begin_session(self, body: NewSession) -> Session:
        """Begin a session with a photograph."""
        self.store.picture("images", body.image)
        session = Session(steps=[Step(image=body.image)])
        self.store.save_session(session)
        return session

    async def sessions(self, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[Session]:
        """The sessions, the one used last first."""
        return (await asyncio.to_thread(self.store.sessions))[:limit]

    async def session(self, id: JobId) -> Session:
        """A session: pictures that came out of one another."""
        return self.studio.session(id)

    async def session_archive(self, id: JobId) -> StreamingResponse:
        """A session as a zip: a folder with a run for each of its steps, which `reconstruct.py` and `--from` read."""
        session = self.studio.session(id)
        for step in session.steps:
            self.store.file("images", step.image)
        return _zip(of_session(self.store, session, self.studio.jobs), f"session-{id[:6]}")

    def _touch(self, session: Session) -> None:
        session.used = now()
        self.store.save_session(session)
        self.studio.hub.tell(Event("session", session.model_dump(mode="json")))

    def _file(self, path: Path, name: str = "") -> FileResponse:
        media = MEDIA[path.suffix[1:]]
        disposition = f"inline; filename*=utf-8''{quote(name)}" if name else "inline"
        return FileResponse(path, media_type=media, headers={"content-disposition": disposition})


def _way(restored: str | None) -> str | None:
    if restored is not None and not re.fullmatch("[a-z_]{1,32}", restored):
        raise Missing("there is no such way of restoring")
    return restored


def _queued(job: Job) -> JSONResponse:
    return JSONResponse(job.model_dump(mode="json"), 201, {"location": f"{API}/jobs/{job.id}"})


def _zip(files: Iterator[tuple[str, Path | bytes]], name: str) -> StreamingResponse:
    headers = {"content-disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(zipped(files), media_type="application/zip", headers=headers)


def _stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _json(request: Request) -> dict[str, Any]:
    """The body as an object of JSON.

    Raises:
        UserError: it is none.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the options as JSON, with the header Content-Type: application/json")
    try:
        body = await request.json()
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError("the body has a half of a character, such as \\ud800, without the other") from None
    except (ValueError, RecursionError):
        raise UserError("the body is no JSON") from None
    if not isinstance(body, dict):
        raise UserError('the body is no object of JSON, such as {"prompt": "a ball"}')
    return body


# ---- the application


def make_app(settings: StudioSettings, studio: Studio, token: str | None = None) -> App:
    """The studio as an ASGI application; its workers start with it.

    Args:
        token: what others must know; see `StudioSettings.secret`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.open()
        try:
            yield
        finally:
            await studio.close()

    app = FastAPI(
        title="Blended Latent Diffusion: the studio",
        version="1",
        description="Send an image and a mask, submit an edit, follow its events, fetch the results. Requests that "
        "change something need the header `X-Studio`, with any value.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.openapi_version = "3.0.3"  # what the Swagger UI of PyPI reads
    _routes(app, _Api(studio))
    _errors(app)
    _documentation(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    hosts = None if token is not None else {"localhost", "127.0.0.1", "::1", settings.host.lower()}
    limit = int(settings.max_upload_mb * 1e6)
    return Guard(app, hosts, token, limit, (f"{API}/images", f"{API}/masks"))


def _routes(app: FastAPI, api: _Api) -> None:
    router = APIRouter(prefix=API, responses=_PROBLEMS)
    edit, restoration = (
        _taking({"application/json": {"schema": body.model_json_schema()}}) for body in (EditBody, RestoreBody)
    )

    def add(method: str, path: str, answer: Callable[..., Any], tag: str, **more: Any) -> None:
        router.add_api_route(path, answer, methods=[method], tags=[tag], operation_id=answer.__name__, **more)

    add("GET", "/health", api.health, "studio")
    add("GET", "/models", api.models, "studio")
    add("GET", "/options", api.options, "studio")
    add("GET", "/events", api.events, "studio", response_class=StreamingResponse)
    add("POST", "/images", api.send_image, "pictures", status_code=201, openapi_extra=_taking_picture())
    add("POST", "/masks", api.send_mask, "pictures", status_code=201, openapi_extra=_taking_picture())
    add("POST", "/images/from-result", api.use_result, "pictures", status_code=201)
    add("GET", "/images/{id}", api.image, "pictures")
    add("GET", "/images/{id}/file", api.image_file, "pictures", response_class=FileResponse, responses=_FILE)
    add("GET", "/images/{id}/view", api.image_view, "pictures", response_class=FileResponse, responses=_FILE)
    add("GET", "/images/{id}/thumb", api.image_thumb, "pictures", response_class=FileResponse, responses=_FILE)
    add("GET", "/masks/{id}/file", api.mask_file, "pictures", response_class=FileResponse, responses=_FILE)
    add("POST", "/jobs", api.submit, "jobs", status_code=201, response_model=Job, openapi_extra=edit)
    add("GET", "/jobs", api.jobs, "jobs")
    add("POST", "/jobs/cancel", api.cancel_all, "jobs")
    add("GET", "/jobs/{id}", api.job, "jobs")
    add("DELETE", "/jobs/{id}", api.forget, "jobs", status_code=204, response_class=Response)
    add("POST", "/jobs/{id}/cancel", api.cancel, "jobs")
    add(
        "POST",
        "/jobs/{id}/restore",
        api.restore,
        "jobs",
        status_code=201,
        response_model=Job,
        openapi_extra=restoration,
    )
    add("GET", "/jobs/{id}/events", api.job_events, "jobs", response_class=StreamingResponse)
    add("GET", "/jobs/{id}/results/{index}", api.result, "jobs", response_class=FileResponse, responses=_FILE)
    add("GET", "/jobs/{id}/view/{index}", api.view, "jobs", response_class=FileResponse, responses=_FILE)
    add("GET", "/jobs/{id}/zip", api.archive, "jobs", response_class=StreamingResponse)
    add("POST", "/sessions", api.begin_session, "sessions", status_code=201)
    add("GET", "/sessions", api.sessions, "sessions")
    add("GET", "/sessions/{id}", api.session, "sessions")
    add("GET", "/sessions/{id}/zip", api.session_archive, "sessions", response_class=StreamingResponse)
    app.include_router(router)


def _errors(app: FastAPI) -> None:
    """Whatever goes wrong is one sentence, under `error`."""

    def answer(status: int, text: str, **headers: str) -> JSONResponse:
        return JSONResponse({"error": without_paths(text)}, status, headers)

    @app.exception_handler(UserError)
    async def refused(_: Request, error: UserError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(Missing)
    async def missing(_: Request, error: Missing) -> JSONResponse:
        return answer(404, str(error))

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> JSONResponse:
        return answer(429, str(error), **{"retry-after": "5"})

    @app.exception_handler(TooLarge)
    async def large(_: Request, error: TooLarge) -> JSONResponse:
        return answer(413, str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return answer(400, "the request broke off")  # nobody reads it

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return answer(507, "the studio's disk is full: free some space, and try again")
        return answer(500, f"the studio cannot read or write its folder ({error.strerror})")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        if first["loc"][0] == "path":
            return answer(404, "there is nothing of that name")
        return answer(422, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        text = {404: "there is nothing of that name", 405: "that cannot be done here"}.get(error.status_code)
        return answer(error.status_code, text or str(error.detail))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return answer(500, f"the program has a fault ({type(error).__name__}): see its log")


def _documentation(app: FastAPI) -> None:
    """FastAPI's page of the API, from files that are here: it asks no other host."""
    import swagger_ui_bundle

    @app.get(f"{API}/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse((PAGE / "docs.html").read_text(encoding="utf-8"))

    folder = swagger_ui_bundle.swagger_ui_path
    app.mount(f"{API}/docs-files", StaticFiles(directory=folder), name="docs")
