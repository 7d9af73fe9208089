"""The errors that localdpo raises on purpose.

    LocalDPOError
    ├── UserError      one thing that the person can mend, said in one line
    ├── UserErrors     several UserErrors, found in one look
    └── TrainingFailed a worker that crashed, for who called `localdpo.train`

A command prints one `error: ...` line on stderr for each and exits with USER_ERROR_EXIT; with DEVICE_EXIT
where the device or memory gave up (see `deaths`). Pure functions raise ValueError for mistakes of their
callers; those are bugs and keep their traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

USER_ERROR_EXIT = 2
DEVICE_EXIT = 4


class LocalDPOError(Exception):
    """Base of every error that localdpo raises on purpose."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What a command prints, one line for each problem."""
        return (one_line(str(self)),)


class UserError(LocalDPOError):
    """One problem in one line: where it is, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
        self.message = one_line(message)

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (self.message,)


class UserErrors(LocalDPOError):
    """Several problems at once, in the order in which they were found.

    Raises ValueError if `errors` is empty: no problem is not an error.
    """

    def __init__(self, errors: Sequence[UserError]) -> None:
        if not errors:
            raise ValueError("UserErrors needs at least one UserError")
        self.errors = tuple(errors)
        super().__init__("\n".join(error.message for error in self.errors))

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(error.message for error in self.errors)

    def __reduce__(self) -> tuple[type[UserErrors], tuple[tuple[UserError, ...]]]:
        return type(self), (self.errors,)


class TrainingFailed(LocalDPOError):
    """A worker that crashed, or whose device or memory gave up: how, and what to do, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(str(self).splitlines())


def one_line(text: str) -> str:
    """`text` with every run of white space turned into one space."""
    return " ".join(text.split())
