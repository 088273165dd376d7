"""Options, declared once.

A field of an `@options` dataclass is an option of the command lines, a column of a batch, a key of run.json and a
parameter of the Python API, under one name. Its type and range are checked by pydantic, wherever the value comes
from; its sentence of help is the one in `--help`, in the docstrings and in docs/options.md.

Imports neither torch nor Pillow, so that `--help` answers at once.
"""

import argparse
import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from ldm.errors import UserError

Cls = TypeVar("Cls", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])

NAMES: set[str] = set()
"""Of all options: in an error's text, `name` and `name=value` are shown by command lines as flags, see `ldm.cli`."""


def option(
    default: Any,
    help: str,
    *,
    group: str = "how",
    short: str | None = None,
    low: float | None = None,
    high: float | None = None,
    shown: str | None = None,
    expects: str | None = None,
    metavar: str | tuple[str, ...] | None = None,
    record: bool = True,
    kw_only: bool | None = None,
) -> Any:
    """Declare a field of an `@options` dataclass.

    Args:
        default: of an option that must be given there is none, see `required`.
        help: one sentence.
        group: of `--help`. short: such as "-p".
        low, high: of a number, both included.
        shown: the default in words, where the value does not say it.
        expects: what an error asks for, where type and range do not say it.
        metavar: of `--help`.
        record: whether a run's record holds it.
        kw_only: whether it is given by keyword alone.
    """
    extra: dict[str, Any] = {"group": group, "short": short, "shown": shown, "expects": expects}
    extra |= {"metavar": metavar, "record": record}
    return Field(default, description=help, ge=low, le=high, json_schema_extra=extra, kw_only=kw_only)


def required(help: str, *, kw_only: bool | None = None, **more: Any) -> Any:
    """Declare a field that must be given: by keyword alone, where fields with a default stand before it.

    Args:
        help, kw_only, more: as of `option`.
    """
    return option(..., help, kw_only=kw_only, **more)


def same(cls: type, name: str, **changes: Any) -> Any:
    """Declare a field as another class of options has it.

    Args:
        changes: what is not the same, as of `option`.
    """
    field = declared(cls)[name]
    low = next((one.ge for one in field.metadata if isinstance(one, annotated_types.Ge)), None)
    high = next((one.le for one in field.metadata if isinstance(one, annotated_types.Le)), None)
    own = {"default": field.default, "help": field.description, "low": low, "high": high, "kw_only": field.kw_only}
    return option(**own | about(field) | changes)


# A type checker takes what an `option(...)` gives for the default, and what `required(...)` gives for none.
@dataclass_transform(frozen_default=True, field_specifiers=(required,))
def options(cls: Cls) -> Cls:
    """Make a class a frozen dataclass of options. Its `__init__` raises UserError for a value that does not fit."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
    made: Any = dataclass(frozen=True, config=config)(cls)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise _refused(made, error) from None

    made.__init__ = checked
    NAMES.update(declared(made))
    return made


def declared(cls: type) -> Mapping[str, FieldInfo]:
    """The options of a class, by name, those of its bases first."""
    assert is_pydantic_dataclass(cls)
    return cls.__pydantic_fields__


def about(field: FieldInfo) -> dict[str, Any]:
    """What `option` was told beyond default, range and help."""
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def subset(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some values that are options of a class."""
    own = declared(cls)
    return {name: value for name, value in values.items() if name in own}


def recorded(told: Any) -> dict[str, Any]:
    """The options of an object as a run's record holds them, plain values of JSON."""
    own = declared(type(told))
    values = {name: value for name, value in asdict(told).items() if about(own[name]).get("record", True)}
    return {name: value.as_posix() if isinstance(value, Path) else value for name, value in values.items()}


def as_flags(text: str) -> str:
    """A text as a command line shows it: options in backticks, `name` and `name=value`, become --name and --name value.

    What the library says names options as its callers know them.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in NAMES:
            return match[0]
        return f"--{name}" if value is None else f"--{name} {value}"

    return re.sub(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`", flag, text)


# --- command lines ----------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, cls: type, without: tuple[str, ...] = ()) -> None:
    """Give a parser the options of a class. It only collects what is given, as text: the class checks it.

    So the parsed namespace has none of the options that were not given.
    """
    groups: dict[str, Any] = {}
    for name, field in _by_group(cls):
        if name in without:
            continue
        more = about(field)
        title = more.get("group", "how")
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        flags = [f"--{name}", *([more["short"]] if more.get("short") else [])]
        plain = _plain(field.annotation)
        keywords: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_of(field)}
        if plain is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            if get_origin(plain) is tuple:
                keywords["nargs"] = "+" if Ellipsis in get_args(plain) else len(get_args(plain))
            keywords["metavar"] = more.get("metavar") or _metavar(plain)
        group.add_argument(*flags, **keywords)


def help_of(field: FieldInfo) -> str:
    """The sentence of an option and its default, for argparse."""
    text = as_flags(field.description or "").replace("%", "%%")
    shown = shown_default(field)
    return f"{text} (default: {shown})" if shown else text


def shown_default(field: FieldInfo) -> str:
    """The default of an option in words; empty where there is none to speak of."""
    words = about(field).get("shown")
    if words:
        return str(words)
    if field.is_required() or field.default is None or field.default is False:
        return ""
    value = field.default
    return value.as_posix() if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)


def markdown_rows(cls: type, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The options of a class as rows of a table: option, default, meaning."""
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for name, field in _by_group(cls):
        if name in without:
            continue
        more, plain = about(field), _plain(field.annotation)
        flags = f"`--{name}`" + (f", `{more['short']}`" if more.get("short") else "")
        default = shown_default(field) or ("off" if plain is bool else "")
        choices = f" One of `{'`, `'.join(map(str, get_args(plain)))}`." if get_origin(plain) is Literal else ""
        text = as_flags(field.description or "")
        yield f"| {flags} | {default} | {text}.{choices} |"


def _by_group(cls: type) -> list[tuple[str, FieldInfo]]:
    """The options of a class, those of one group together, as the groups come first."""
    groups = [about(field).get("group") for field in declared(cls).values()]
    return sorted(declared(cls).items(), key=lambda item: groups.index(about(item[1]).get("group")))


def takes(cls: type) -> Callable[[Function], Function]:
    """Let a function whose `**options` are those of a class show their names, types, defaults and meaning."""

    def show(function: Function) -> Function:
        own, empty = inspect.signature(function), inspect.Parameter.empty
        parameters = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        text = f"{inspect.getdoc(function)}\n\nOptions:\n"
        for name, field in declared(cls).items():
            if name not in own.parameters:
                default, kind = empty if field.is_required() else field.default, inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(name, kind, default=default, annotation=field.annotation))
                text += f"    {name}: {field.description}.\n"
        vars(function)["__signature__"] = own.replace(parameters=parameters)
        function.__doc__ = text
        return function

    return show


# --- errors -----------------------------------------------------------------------------------------------------------


def _refused(cls: type, error: ValidationError) -> UserError:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    own = declared(cls)
    name = first["loc"][0] if first["loc"] else ""
    if isinstance(name, int):  # given by its place
        places = [one for one, field in own.items() if not field.kw_only]
        if name >= len(places):
            return UserError(f"there are at most {len(places)} options that can be given by place: name them")
        name = places[name]
    if name not in own:
        near = difflib.get_close_matches(name, own, 1)
        return UserError(f'there is no option "{name}"' + (f": `{near[0]}` is one" if near else f" among {_list(own)}"))
    if first["type"] in ("missing", "missing_argument") and len(first["loc"]) == 1:
        return UserError(f"`{name}` is missing: give {own[name].description}")
    value, verb = first["input"], "is" if len(first["loc"]) == 1 else "holds"
    text = " ".join(str(value).split())  # one line, whatever is given
    given = f'"{text}"' if isinstance(value, str) else text
    return UserError(f"`{name}` {verb} {given}: give {expected(own[name])}")


def expected(field: FieldInfo) -> str:
    """What an option takes, in words."""
    if words := about(field).get("expects"):
        return str(words)
    plain = _plain(field.annotation)
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(map(str, get_args(plain)))
    if plain in (int, float):
        return ("an integer" if plain is int else "a number") + _span(field)
    return {bool: "true or false", Path: "a path", str: "a text"}.get(plain, "another value")


def _span(field: FieldInfo) -> str:
    low = next((one.ge for one in field.metadata if isinstance(one, annotated_types.Ge)), None)
    high = next((one.le for one in field.metadata if isinstance(one, annotated_types.Le)), None)
    if low is None:
        return ""
    return f" of at least {low}" if high is None else f" from {low} to {high}"


def _plain(annotation: Any) -> Any:
    """The type of an option without its None and without what `Annotated` adds."""
    while True:
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(one for one in get_args(annotation) if one is not type(None))
        elif hasattr(annotation, "__metadata__"):
            annotation = get_args(annotation)[0]
        else:
            return annotation


def _metavar(plain: Any) -> str | tuple[str, ...]:
    if get_origin(plain) is Literal:
        return "{" + ",".join(map(str, get_args(plain))) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names)
