"""What the API speaks of: pictures, jobs, sessions, health. Also the form in which they are kept on disk.

No field of any of these holds a path.
"""

import re
import time
import uuid
from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from ldm.editing.request import EditRequest, ReconstructionOptions
from ldm.options import about, declared, shown_default

API = "/api/v1"
ID = r"^[0-9a-f]{16}$"
MOST = 1024 * 1024
"""Predictions of a run, at the most: `n_samples` times `n_iter`."""

Id = Annotated[str, Field(pattern=ID, description="sixteen hexadecimal digits")]


def new_id() -> str:
    """An id that nobody can guess and that is safe as a file's name."""
    return uuid.uuid4().hex[:16]


def now() -> float:
    """Seconds since 1970."""
    return round(time.time(), 3)


class Stored(BaseModel):
    """Common to all that is kept."""

    model_config = ConfigDict(extra="ignore")


class Picture(Stored):
    """An uploaded photograph or mask, or a result that has become the input of another edit."""

    id: Id
    name: str = Field(default="", description="as its owner called it")
    format: str = Field(description="PNG, JPEG, WEBP, AVIF, GIF, TIFF or BMP")
    width: int = Field(description="in pixels, upright")
    height: int
    plain: bool = Field(description="whether any browser shows the file upright; else ask for `view`")
    created: float = Field(default_factory=now)


class Progress(BaseModel):
    """How far a job is."""

    stage: Literal["loading", "preparing", "painting", "ranking", "saving", "restoring"]
    step: int = 0
    total: int = 0
    seconds_left: float | None = None


class Prediction(BaseModel):
    """One of a job's pictures; number 0 is the best."""

    index: int
    seed: int
    distance: float | None = Field(description="CLIP distance, lower is better; null where nothing ranked them")
    measures: dict[str, Any] = Field(description="how exact the background is, see docs/runs.md")


State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


class Job(Stored):
    """An edit, or the restoration of a prediction's background."""

    id: Id
    kind: Literal["edit", "restore"]
    state: State = "queued"
    image: Id = Field(description="the input; of a restoration that of its edit")
    mask: Id
    session: Id | None = None
    of: Id | None = Field(default=None, description="of a restoration: the edit's job")
    index: int | None = Field(default=None, description="of a restoration: which prediction")
    model: str = Field(default="", description="which model is asked for; empty: the studio's own")
    options: dict[str, Any] = Field(description="as they were asked for, under their names on the command line")
    ahead: int | None = Field(default=None, description="while it is queued: how many jobs come before")
    progress: Progress | None = None
    window: dict[str, Any] | None = Field(default=None, description="the part of the image that the model works on")
    results: list[Prediction] = Field(default_factory=list, description="best first")
    saved: bool = Field(default=False, description="whether the results can be downloaded as files")
    error: str | None = None
    notes: list[str] = Field(default_factory=list, description="what the user should know of the run")
    created: float = Field(default_factory=now)
    started: float | None = None
    ended: float | None = None
    attempts: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED


class Step(BaseModel):
    """A picture of a session: the photograph, or a prediction that became the next input."""

    image: Id
    parent: Id | None = Field(default=None, description="the image it was painted on")
    job: Id | None = None
    index: int | None = None
    restored: str | None = Field(default=None, description="the way in which its background was restored, if it was")
    prompt: str = ""


class Session(Stored):
    """Pictures that came out of one another: a tree, whose root is the photograph."""

    id: Id = Field(default_factory=new_id)
    steps: list[Step] = Field(default_factory=list)
    created: float = Field(default_factory=now)
    used: float = Field(default_factory=now)


class Worker(BaseModel):
    """A process that holds a model."""

    device: str
    state: Literal["loading", "ready", "busy", "restarting", "failed"]
    model: str = ""
    job: Id | None = None
    error: str | None = None


class Health(BaseModel):
    """How the studio is."""

    status: Literal["loading", "ready", "failed"]
    version: str
    workers: list[Worker]
    queued: int
    room: int = Field(description="how many more jobs the queue takes")


class Model(BaseModel):
    """A model with a name."""

    name: str
    about: str
    available: bool = Field(description="whether its weights are here")
    default: bool = Field(description="whether it is what the studio works with")
    vocabulary: list[str] | None = Field(
        None, description="all words it knows; null where it reads any, or not yet known"
    )
    knows: dict[str, list[str]] = Field(default_factory=dict, description="kinds of things, and words for them")
    defaults: dict[str, Any] = Field(default_factory=dict, description="values of its own for options that are null")


class Option(BaseModel):
    """An option of an edit as a form needs it."""

    name: str
    type: Literal["text", "integer", "number", "switch", "choice", "numbers"]
    help: str
    group: str
    default: Any = None
    shown: str = Field(default="", description="the default in words")
    low: float | None = None
    high: float | None = None
    choices: list[str] = Field(default_factory=list)
    optional: bool = Field(description="whether null is a value, and stands for what the model or the mask decides")


class Problem(BaseModel):
    """What went wrong, in a sentence."""

    error: str


class FromResult(BaseModel):
    """A prediction that is to become an input."""

    job: Id
    index: int = Field(0, ge=0, lt=MOST)
    restored: str | None = Field(default=None, pattern="^[a-z_]{1,32}$", description="a way of restoring, see `Step`")
    session: Id | None = Field(default=None, description="gets it as its next step")


class NewSession(BaseModel):
    """A session begins with a photograph."""

    image: Id


# ---- the declared options as the API's types


def _body(name: str, cls: type, more: Mapping[str, Any]) -> type[BaseModel]:
    """A model of the options of a class, for the API's documentation; `ldm.options` itself checks what comes."""
    fields: dict[str, Any] = dict(more)
    for option, field in declared(cls).items():
        plain = copy(field)
        plain.json_schema_extra = None
        fields[option] = (field.annotation, plain)
    return create_model(name, **fields)


EditBody = _body(
    "EditBody",
    EditRequest,
    {
        "image": (Id, Field(description="the photograph, see POST images")),
        "mask": (Id, Field(description="the mask, see POST masks: white is painted")),
        "session": (Id | None, Field(default=None, description="of which this is a part")),
        "model": (str | None, Field(default=None, description="a name of GET models; null is the studio's own")),
    },
)
RestoreBody = _body(
    "RestoreBody", ReconstructionOptions, {"index": (int, Field(0, description="which prediction", ge=0))}
)


def options_of_edits() -> list[Option]:
    """All options of an edit, in the order of their declaration."""
    return [_option(name, field) for name, field in declared(EditRequest).items()]


def options_of_restorations() -> list[Option]:
    """All options of a restoration."""
    return [_option(name, field) for name, field in declared(ReconstructionOptions).items()]


def _option(name: str, field: Any) -> Option:
    more, kinds = about(field), _kinds(field.annotation)
    kind = next(one for one in kinds if one is not type(None))
    limits = [*field.metadata, *(one for part in kinds for one in getattr(part, "__metadata__", ()))]
    types: dict[Any, Any] = {int: "integer", float: "number", bool: "switch", str: "text"}
    origin = get_origin(kind)
    type_: Any = "choice" if origin is Literal else "numbers" if origin is tuple else types[kind]
    return Option(
        name=name,
        type=type_,
        help=re.sub(r"`(\w+)`", r"\1", field.description or ""),
        group=more.get("group") or "how",
        default=None if field.is_required() else field.default,
        shown=shown_default(field),
        low=next((one.ge for one in limits if getattr(one, "ge", None) is not None), None),
        high=next((one.le for one in limits if getattr(one, "le", None) is not None), None),
        choices=[str(one) for one in get_args(kind)] if type_ == "choice" else [],
        optional=type(None) in kinds,
    )


def _kinds(annotation: Any) -> list[Any]:
    """The types of a union, without what `Annotated` adds."""
    if hasattr(annotation, "__metadata__"):
        return _kinds(annotation.__origin__)
    if get_origin(annotation) in (Literal, tuple) or not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]
