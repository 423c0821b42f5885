"""What a store's names may look like, and the errors that a store raises."""

from __future__ import annotations

import errno
import re
import secrets
import unicodedata

from oakum.config import ConfigError

_KIND = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{64}")
TOKEN = re.compile(r"[0-9a-f]{16}")
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
# File systems allow 255 bytes for a name, object stores 1,024 for a path: both leave room for what the store adds.
_SEGMENT_BYTES = 200
_NAME_BYTES = 600
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class StoreError(RuntimeError):
    """The store could not be read or written. The message names the place and what to do."""


class DamagedEntryError(StoreError):
    """A published entry is not what its manifest says: set it aside with `Store.set_aside` and compute it again.

    Attributes:
        kind, key: the entry.
        name: the file inside it.
        why: what is wrong.
        attempt: the attempt that is damaged; `Store.set_aside` spares a later one.
    """

    def __init__(self, kind: str, key: str, name: str, why: str, attempt: str = "") -> None:
        super().__init__(kind, key, name, why, attempt)
        self.kind = kind
        self.key = key
        self.name = name
        self.why = why
        self.attempt = attempt

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}: {self.name} is damaged: {self.why}"


def explain(place: str, error: Exception) -> StoreError:
    """Return the StoreError for an operating system's error at `place`."""
    code = getattr(error, "errno", None)
    if code in _FULL:
        advice = "the disk is full; free some space (`oakum store gc` shows what can go) and run again"
    elif code in _FORBIDDEN:
        advice = "check the permissions, or choose another folder with OAKUM_HOME"
    else:
        advice = "check that the store can be reached, then run again; finished stages are kept"
    reason = getattr(error, "strerror", None) or str(error)
    return StoreError(f"{place}: {reason}: {advice}")


def new_token() -> str:
    """Return 16 random hex digits that name one attempt."""
    return secrets.token_hex(8)


def check_kind(kind: str) -> str:
    """Return `kind` when it may name a stage kind.

    Raises:
        ConfigError: otherwise.
    """
    if not is_kind(kind):
        raise ConfigError(f"{shown(kind)} cannot name a stage kind: use up to 64 of a-z, 0-9, '_', '.' and '-'")
    return kind


def check_key(key: str) -> str:
    """Return `key` when it is a lowercase hex SHA-256.

    Raises:
        ConfigError: otherwise.
    """
    if not is_key(key):
        raise ConfigError(f"{shown(key)} is not a stage key: a key has 64 lowercase hex digits")
    return key


def is_key(text: str) -> bool:
    """Tell whether `text` is a lowercase hex SHA-256."""
    return _KEY.fullmatch(text) is not None


def is_kind(text: str) -> bool:
    """Tell whether `text` may name a stage kind."""
    return _KIND.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return `name`, a relative path with `/` between its parts, when a store may use it.

    Raises:
        ConfigError: empty, too long, a part that is empty or starts with a dot (no way out of the store), spaces at
            a part's ends, a backslash, or control and other invisible characters.
    """
    parts = name.split("/")
    if any(unicodedata.category(character) in _INVISIBLE for character in name):
        raise ConfigError(f"the name {shown(name)} has control or invisible characters; use visible ones")
    if "\\" in name or any(not part or part[0] == "." or part != part.strip() for part in parts):
        raise ConfigError(
            f"the name {shown(name)} cannot be stored: no part may be empty, start with '.', or have spaces at its "
            "ends, and '\\' is not allowed"
        )
    if len(name.encode()) > _NAME_BYTES or any(len(part.encode()) > _SEGMENT_BYTES for part in parts):
        raise ConfigError(f"the name {shown(name)} is too long: {_SEGMENT_BYTES} bytes a part, {_NAME_BYTES} in all")
    return name


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown(text: str) -> str:
    """Return `text` quoted for a message: escaped, and cut when it is long."""
    return ascii(text) if len(text) <= 80 else f"{text[:60]!a}... ({len(text):,} characters)"
