"""The one kind of error that is the user's to mend. Imports nothing, so that every floor may raise it."""


class UserError(Exception):
    """Bad input: its message is one line that names the value and the mend.

    The command lines print it as `error: ...` and exit with code 2 (see `ldm.cli.run`).
    """


class OutOfMemory(UserError):
    """The device has too little memory for what is asked."""


class MissingExtra(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str | None, what: str):
        has = f' (the extra "{extra}" has it)' if extra else ""
        super().__init__(f'{what} needs the package "{package}": pip install {package}{has}')
