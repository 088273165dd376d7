"""Running the studio: from the settings of the command to a server that ends as it should."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from ldm.errors import MissingExtra, UserError
from ldm.files import write_error
from ldm.studio.settings import StudioSettings

logger = logging.getLogger(__name__)

_GRACE = 2  # seconds that open connections are given at the end


def run_studio(settings: StudioSettings, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it: SIGINT or SIGTERM, after the running steps, the queue kept for the next start.

    Args:
        on_ready: called with the page's address once it answers.

    Raises:
        UserError: no such model or device, the address or the folder is taken, or a package is missing.
    """
    try:
        import fastapi  # noqa: F401
        import swagger_ui_bundle  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "fastapi").replace("_", "-"), "studio", "the studio") from error

    with _alone(settings), _listening(settings) as listener:
        asyncio.run(_serve(settings, listener, on_ready))


@contextlib.contextmanager
def _alone(settings: StudioSettings) -> Iterator[None]:
    """The studio's folder, for this process alone."""
    try:
        settings.outdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(settings.outdir / ".studio.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f'another studio keeps its pictures in "{settings.outdir}": give another `outdir`') from None
    except OSError as error:
        raise write_error(settings.outdir, error) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _listening(settings: StudioSettings) -> Iterator[socket.socket]:
    """A socket at the address.

    Raises:
        UserError: it is taken, or none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"`host={settings.host}` is no address of this machine ({error})") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(256)
        except (OSError, OverflowError) as error:
            elsewhere = isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
            mend = "give an address of this machine" if elsewhere else "give another `port`, or 0 for a free one"
            raise UserError(f"cannot listen at {settings.host}:{settings.port} ({error}): {mend}") from error
        yield listener


async def _serve(settings: StudioSettings, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    import uvicorn

    from ldm.studio.app import make_app
    from ldm.studio.studio import Studio

    token = settings.secret()
    studio = Studio(settings)
    app = make_app(settings, studio, token)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
        lifespan="on",
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    interrupted = False

    def end(by_ctrl_c: bool = False) -> None:
        nonlocal interrupted
        interrupted = interrupted or by_ctrl_c
        studio.hub.close()  # or the server would wait for those who listen
        server.should_exit = True

    server.capture_signals = contextlib.nullcontext  # type: ignore  # it would raise them once more
    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_signal_handler(signal.SIGINT, end, True)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        assert studio.ended is not None
        studio.ended.add_done_callback(lambda _: end())
        address = _address(settings, listener.getsockname()[1], token)
        on_ready(address)
        if settings.browser:
            threading.Thread(target=_open, args=(address,), daemon=True).start()
    await serving
    if studio.ended is not None and studio.ended.done() and (error := studio.ended.result()):
        raise UserError(error)
    if interrupted:
        raise KeyboardInterrupt


def _address(settings: StudioSettings, port: int, token: str | None) -> str:
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={token}" if token else "")


def _open(address: str) -> None:
    with contextlib.suppress(Exception):  # a machine without a browser: the address has been printed
        webbrowser.open(address)
