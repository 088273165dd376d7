"""Where a worker's process begins. Apart from `worker`, since the server imports this, and no torch with it."""

from multiprocessing.connection import Connection
from typing import Any


def work(link: Connection, model: dict[str, Any], device: str, threads: int | None) -> None:
    """See `ldm.studio.worker.work`."""
    from ldm.studio import worker

    worker.work(link, model, device, threads)
