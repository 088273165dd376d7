"""Where the pictures come from: packages under free licences, each fetched by its ordinary client.

Nothing under the GPL is here, nor anything that forbids commercial use or changes.
"""

import logging
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A package: `client` ("npm", "pip" or "apt") fetches it.

    what: it holds. licence, attribution: as the package states them; `ldm.data.things.credits` lists each file that
    has its own. archive: a pattern of the file that the client fetches.
    """

    name: str
    client: str
    package: str
    archive: str
    what: str
    licence: str
    attribution: str


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "fluent",
            "npm",
            "@lobehub/fluent-emoji-3d@1.1.0",
            "lobehub-fluent-emoji-3d-*.tgz",
            "rendered objects with alpha",
            "MIT",
            "Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
        ),
        Source(
            "openmoji",
            "npm",
            "openmoji@17.0.0",
            "openmoji-*.tgz",
            "names of the rendered objects (data/openmoji.json alone, no picture)",
            "CC BY-SA 4.0 (its names are Unicode's)",
            "OpenMoji, HfG Schwäbisch Gmünd",
        ),
        Source(
            "furniture",
            "apt",
            "sweethome3d-furniture",
            "sweethome3d-furniture_*.deb",
            "3D models, of which we render views",
            "CC0 1.0, CC BY 3.0 by catalogue",
            "Blend Swap's contributors, Andrew Kator and Jennifer Legaz, Reallusion, Scopia, Emmanuel Puybaret (eTeks)",
        ),
        Source(
            "mvtb",
            "pip",
            "mvtb-data==1.6.1",
            "mvtb_data-*.whl",
            "photographs",
            "MIT",
            "Peter Corke, Machine Vision Toolbox for Python",
        ),
        Source(
            "lomiri16",
            "apt",
            "lomiri-wallpapers-16.04",
            "lomiri-wallpapers-16.04_*.deb",
            "photographs",
            "CC BY 4.0, CC BY-SA 4.0, CC0 1.0 by file",
            "by file",
        ),
        Source(
            "lomiri20",
            "apt",
            "lomiri-wallpapers-20.04",
            "lomiri-wallpapers-20.04_*.deb",
            "photographs",
            "CC BY-SA 3.0",
            "by file",
        ),
    )
}

COMMANDS: dict[str, Callable[[Source], list[str]]] = {
    "npm": lambda source: ["npm", "pack", "--silent", source.package],
    "pip": lambda source: ["pip", "download", "--quiet", "--no-deps", source.package],
    "apt": lambda source: ["apt-get", "download", "-qq", source.package],
}
"""What each client is asked, in the folder of the archives."""


def fetch(folder: Path, sources: Iterable[Source] = SOURCES.values()) -> None:
    """Fetch and unpack what `folder` lacks: `folder/archives/<archive>` and `folder/<name>/`.

    Raises:
        UserError: a client is missing or has failed; its line says how to put the archive there by hand.
    """
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for source in sources:
        target = folder / source.name
        if target.is_dir():
            continue
        archive = next(archives.glob(source.archive), None) or _download(source, archives)
        part = folder / f".{source.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        unpack(archive, part)
        part.rename(target)
        logger.info("%s is in %s", source.package, target)


def _download(source: Source, archives: Path) -> Path:
    command = COMMANDS[source.client](source)
    by_hand = f"run `{' '.join(command)}` in {archives}, or put the archive there from elsewhere"
    try:
        done = subprocess.run(command, cwd=archives, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{source.package} is fetched by {command[0]}, which is not here: {by_hand}") from error
    archive = next(archives.glob(source.archive), None)
    if done.returncode or archive is None:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{command[0]} did not fetch {source.package} ({said}): {by_hand}")
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a package's archive, and the furniture catalogues within it, which are archives themselves."""
    folder.mkdir(parents=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
    for catalogue in folder.rglob("*.sh3f"):
        with zipfile.ZipFile(catalogue) as zipped:
            zipped.extractall(folder / catalogue.stem)
        catalogue.unlink()
