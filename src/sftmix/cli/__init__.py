"""The command line: arguments, help, errors in one line."""
