"""What the studio's command can be told. Imports nothing heavy."""

import ipaddress
import re
import secrets
from pathlib import Path

from ldm.errors import UserError
from ldm.options import option, options
from ldm.runs.jobs import SamplingChoice

AUTO = "auto"


@options
class StudioSettings(SamplingChoice):
    """Where the studio listens, what it keeps, and with which model it works.

    Raises:
        UserError: an address that others can reach, and no token.
    """

    host: str = option(
        "127.0.0.1", "the address to listen at; one that others can reach needs `token`", group="where it listens"
    )
    port: int = option(7860, "the port; 0 takes a free one", group="where it listens", low=0, high=65535)
    token: str | None = option(
        None,
        "a secret without which nothing is answered; auto makes one and prints it",
        group="where it listens",
        shown="none: only this machine's own address is listened at",
        record=False,
    )
    browser: bool = option(True, "open the page in a browser", group="where it listens", shown="on")
    outdir: Path = option(
        Path("outputs/studio"), "where pictures, runs and the queue are kept", group="what is kept", short="-o"
    )
    queue: int = option(100, "jobs that may wait; more are refused", group="what is kept", low=1, high=10_000)
    keep_days: float = option(30, "remove what nobody has used for so many days", group="what is kept", low=0)
    keep_gb: float = option(20, "remove the oldest while more gigabytes are used", group="what is kept", low=0)
    max_upload_mb: float = option(128, "the largest file that is taken", group="what is kept", low=1, high=4096)
    max_megapixels: float = option(50, "the largest picture that is taken", group="what is kept", low=0.01, high=170)

    def __post_init__(self) -> None:
        if self.token is not None and self.token != AUTO:
            if len(self.token) < 8:
                raise UserError("`token` is too easy to guess: give 8 or more characters, or auto")
            if not re.fullmatch(r"[\w.~-]+", self.token, re.ASCII):  # it is a part of an address, and of a cookie
                raise UserError("`token` has other characters than letters, digits and - . _ ~: leave them out")
        if self.token is None and not self.is_local:
            raise UserError(f"`host={self.host}` can be reached by others: give `token=auto` with it")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def devices(self) -> list[str]:
        """Each gets a worker: `device` may name several, with commas between."""
        return [one.strip() for one in self.device.split(",") if one.strip()] or [AUTO]

    def secret(self) -> str | None:
        """The token to be asked for: the one that was given, or for auto a new one."""
        return secrets.token_urlsafe(16) if self.token == AUTO else self.token
