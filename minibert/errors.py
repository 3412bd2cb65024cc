"""The errors minibert raises for bad input.

Every message says what is wrong, what was found, what was expected, and what to do.  Each kind
is also one of Python's own errors, so that ordinary `except ValueError` works.
"""

LONGEST = 4000  # characters of a message; names that it repeats may be longer than any screen
CUT = " [...] "


class MinibertError(Exception):
    """Base class: `except MinibertError` catches everything minibert raises on purpose.

    Args:
        message: what is wrong.  Halves of characters in it, which cannot be printed, are escaped,
            and a very long one is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message).encode("utf-8", "backslashreplace").decode("utf-8")
        if len(text) > LONGEST:
            half = (LONGEST - len(CUT)) // 2
            text = f"{text[:half]}{CUT}{text[-half:]}"
        super().__init__(text)


class ConfigError(MinibertError, ValueError):
    """A value in config.json is missing, of the wrong kind, or not supported."""


class CheckpointError(MinibertError, ValueError):
    """A weights file is damaged, or does not hold the arrays that the config describes."""


class TokenizerError(MinibertError, ValueError):
    """The tokenizer's files are damaged, or do not fit the model."""


class InputError(MinibertError, ValueError):
    """A question, a text or an option cannot be used as it is."""


class ModelNotFoundError(MinibertError, OSError):
    """No model lies at the path, or the Hub cannot give it."""


class BackendError(MinibertError, RuntimeError):
    """The chosen device cannot run on this machine."""
