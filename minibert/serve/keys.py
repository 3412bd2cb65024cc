"""The API key: where it comes from, and whether a request has it."""

from __future__ import annotations

import hmac
import os

from minibert.errors import InputError
from minibert.files import read_file

VARIABLE = "MINIBERT_API_KEY"
LARGEST_KEY = 10_000  # bytes of its file


def find_key(file: str | None) -> str | None:
    """The key that requests must have: from a file, or from the environment; None: any may ask.

    Raises:
        InputError: the key is empty or no line of visible ASCII, or the file cannot be read.
    """
    if file is not None:
        where = file
        try:
            key = read_file(file, at_most=LARGEST_KEY).decode().strip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{file}: the API key cannot be read: {reason}") from None
    else:
        where, found = VARIABLE, os.environ.get(VARIABLE)
        if found is None:
            return None
        key = found
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise InputError(
            f"{where}: an API key must be one line of letters, digits and signs of ASCII without "
            "spaces, and this one is " + ("not" if key else "empty")
        )
    return key


def has_key(authorization: str | None, key: str | None) -> bool:
    """Whether a request's Authorization header holds the key.

    The comparison takes the same time wherever the two differ.

    Example:
        >>> has_key("Bearer abc", "abc"), has_key("bearer  abc", "abc"), has_key("Bearer ab", "abc")
        (True, True, False)
        >>> has_key(None, "abc"), has_key(None, None)
        (False, True)
    """
    if key is None:
        return True
    kind, _, given = (authorization or "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), key.encode())
    return right and kind.lower() == "bearer"
