"""What ends a command in one line: errors that a user can cause, and a stop that was asked for."""

TRY_AGAIN = 75  # the exit code that means "run me again": the system's EX_TEMPFAIL
INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it: 128 + SIGINT


class InputError(ValueError):
    """Something given to the program is wrong: a file, a row, a folder, a setting.

    The message is one line: where, what came, what was expected.
    """

    def __init__(self, message: str) -> None:
        """A line end in what is quoted, such as the name of a column, is written out."""
        super().__init__(message.replace("\n", "\\n"))


class ConfigError(InputError):
    """A key or value of the configuration is wrong."""


class Stopped(BaseException):
    """A signal asked for a stop. What was done is saved, and the same command continues.

    A signal handler can raise it anywhere, so like KeyboardInterrupt it is not an `Exception`: no code that handles the
    errors of a library takes it for one of them.

    Attributes:
        code: Exit code of the program: 75 ("run me again"), or 130 after Ctrl-C.
    """

    def __init__(self, message: str, code: int = TRY_AGAIN) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.code = code


class StageError(Exception):
    """A process of a stage failed for a reason that is no input's: its traceback, or the signal that ended it."""
