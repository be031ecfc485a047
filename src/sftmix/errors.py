"""Errors that end a command with one line: errors that a user can cause, and a requested stop."""

import errno

TRY_AGAIN = 75  # exit code EX_TEMPFAIL: run the same command again
INTERRUPTED = 130  # exit code of shells after Ctrl-C: 128 + SIGINT


class InputError(ValueError):
    """A file, row, folder or setting is wrong. The message is one line: where, received, expected, remedy."""

    def __init__(self, message: str) -> None:
        """Escape line ends, which a quoted text such as the name of a column can contain."""
        super().__init__(message.replace("\n", "\\n"))


class ConfigError(InputError):
    """A key or value of the config is wrong."""


class Stopped(BaseException):
    """A signal requested a stop. Unless `is_saved=False`, the work is saved and the same command continues it.

    A signal handler can raise it anywhere. Like KeyboardInterrupt, it is not an `Exception`, so code that handles the
    errors of a library does not catch it.

    Attributes:
        code: Exit code of the program: 75 ("run me again"), or 130 after Ctrl-C.
        is_saved: Whether the work is saved.
    """

    def __init__(self, message: str, code: int = TRY_AGAIN, *, is_saved: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.is_saved = is_saved


class StageError(Exception):
    """A process of a stage or of a model pool failed without an InputError.

    The message is its traceback or the signal that ended it.
    """


HINTS = {
    errno.ENOSPC: "free some space and run the same command again: finished work is kept",
    errno.EDQUOT: "free some space and run the same command again: finished work is kept",
    errno.EROFS: "choose another folder by root=FOLDER, or make this one writable",
    errno.EACCES: "check who owns it",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not blank, at most 160 characters, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def explain_os_error(error: OSError) -> str:
    """Return an error of the operating system as one line: the file, the cause, and the remedy if one is known."""
    cause = (error.strerror or str(error) or type(error).__name__).split("\n")[0]
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    hint = HINTS.get(error.errno or 0)
    return ": ".join([*files[:1], cause]) + (f"; {hint}" if hint else "")
