"""Models and LoRAs of the hub: fetched once, configs, vocabularies and safetensors alone, nothing that could run.

Imports nothing heavy, and nothing of diffusers.
"""

import functools
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.backbones.families import INDEX, used_parts
from ldm.errors import UserError

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A model of the hub, owner/name."""

PROBE_SECONDS = 10
"""How long the hub may take to answer."""

_CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja")


@functools.cache
def fetch(name: str, revision: str | None = None, weights: bool = True, what: str | None = None) -> Path:
    """The folder of a hub id in diffusers' layout, downloaded once, and asked for once a process.

    Args:
        weights: or the configs and vocabularies alone.
        what: how an error begins, if not with the model's name.

    Raises:
        UserError: there is no such model, it is no pipeline, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    what = what or f'model "{name}"' + (f" at {revision}" if revision else "")
    with _told(name, what):
        files = _files(name, revision)
        if files is None:
            return _cached(name, INDEX, revision, what).parent
        if INDEX not in files:
            raise UserError(f"{what} of the hub is no pipeline of diffusers: it has no {INDEX}")
        parts = used_parts(Path(hf_hub_download(name, INDEX, revision=revision)).parent)
        wanted = [file for file in wanted_files(files, parts) if weights or not file.endswith(".safetensors")]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


@functools.cache
def fetch_lora(name: str) -> Path:
    """The only `.safetensors` of a hub id, or among several the one that diffusers writes; downloaded once.

    Raises:
        UserError: there is none, or no telling which; or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    usual, what = "pytorch_lora_weights.safetensors", f'`lora` "{name}"'
    with _told(name, what):
        files = _files(name, None)
        if files is None:
            return _cached(name, usual, None, what)
        found = [file for file in files if file.endswith(".safetensors")]
        chosen = usual if usual in found else found[0] if len(found) == 1 else None
        if chosen is None:
            held = f"{len(found)} of them: download one, and give the file" if found else "none of them"
            raise UserError(f"{what}: LoRAs are read from .safetensors, and it holds {held}")
        return Path(hf_hub_download(name, chosen))


def wanted_files(files: Sequence[str], parts: Collection[str]) -> list[str]:
    """What of a repository is downloaded: the used parts' configs, vocabularies and safetensors, in one precision.

    Files beside the index are the same weights once more, in another layout; half precision is taken alone only where
    there is no other.
    """
    inside = [file for file in files if file.count("/") == 1 and file.split("/")[0] in parts]
    weights = [file for file in inside if file.endswith(".safetensors")]
    plain = {file for file in weights if not re.search(r"\.(fp16|bf16|non_ema)\b", file)}
    covered = {file.split("/")[0] for file in plain}
    kept = [file for file in weights if file in plain or file.split("/")[0] not in covered]
    return [INDEX, *(file for file in inside if any(Path(file).match(pattern) for pattern in _CONFIGS)), *kept]


def _files(name: str, revision: str | None) -> list[str] | None:
    """What a repository holds; None where the hub cannot be reached."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        # Where there is no network the client asks for a list for half a minute; for this it asks once.
        get_hf_file_metadata(hf_hub_url(name, INDEX, revision=revision), timeout=PROBE_SECONDS)
    except EntryNotFoundError:
        pass
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception as error:  # the client's network errors share no base class across its versions
        logger.debug("the hub cannot be reached: %s", error)
        return None
    return HfApi().list_repo_files(name, revision=revision)


def _cached(name: str, file: str, revision: str | None, what: str) -> Path:
    """A file that an earlier download left."""
    from huggingface_hub import constants, try_to_load_from_cache

    with suppress(ValueError):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            return Path(path)
    raise UserError(
        f"{what} is not in {constants.HF_HUB_CACHE}, and the hub cannot be reached: connect once, or give a path"
    )


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Report what the hub's client says in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(f"{what} asks for its licence to be accepted: do so on its page, then hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(f"{what}: the hub has no such model, or shows it to others only") from error
    except Exception as error:  # see `_files`
        raise UserError(f"{what} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error
