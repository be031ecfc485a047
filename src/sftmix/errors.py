"""The errors that a user can cause and that a command tells in one line."""


class InputError(ValueError):
    """Something given to the program is wrong: a file, a row, a folder, a setting.

    The message is one line: where, what came, what was expected.
    """

    def __init__(self, message: str) -> None:
        """A line end in what is quoted, such as the name of a column, is written out."""
        super().__init__(message.replace("\n", "\\n"))


class ConfigError(InputError):
    """A key or value of the configuration is wrong."""
