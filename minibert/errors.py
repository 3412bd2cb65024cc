"""The errors minibert raises for bad input.

Every message says what is wrong, what was found, what was expected, and what to do.  Each kind
is also one of Python's own errors, so that ordinary `except ValueError` works.
"""


class MinibertError(Exception):
    """Base class: `except MinibertError` catches everything minibert raises on purpose."""


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
