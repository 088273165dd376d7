"""All methods by name, and the choice among them."""

from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError
from ldm.evaluation.baselines import BASELINES
from ldm.evaluation.jobs import MethodChoice
from ldm.evaluation.methods import OURS, Known

METHODS: dict[str, Known] = {**OURS, **BASELINES}
"""Name -> the method. Another one is one more row."""


def choose_methods(names: str, choice: MethodChoice) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The methods of a comma-separated list with their settings, and why some are left out.

    `all` leaves out those whose weights are not here; a method asked for by name is needed.

    Raises:
        UserError: a name that is no method's, weights that are not here, or none that is left.
    """
    listed = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    everything = listed == ["all"]
    chosen: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    for name in METHODS if everything else listed:
        if name not in METHODS:
            raise UserError(f'`methods` names "{name}": give some of {", ".join(METHODS)}, or all')
        try:
            chosen[name] = METHODS[name].find(choice)
        except UserError as error:
            if not everything:
                raise
            missing[name] = str(error)
    if missing and not chosen:
        raise UserError(next(iter(missing.values())))
    if not chosen:
        raise UserError(f'`methods` is "{names}": give some of {", ".join(METHODS)}, or all')
    return chosen, missing
