"""Where everything of a user lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from oakum.config import ConfigError
from oakum.records import sha256_hex

# A file system allows 255 bytes for a name.
_LONGEST_FOLDER_BYTES = 200
_KEPT_CHARACTERS = 40


@dataclass(frozen=True)
class Home:
    """Where everything of a user lies.

    Attributes:
        folder: `$OAKUM_HOME`, else a per-user data folder; never the current directory.
        store_uri: `$OAKUM_STORE` (a folder or an s3:// or gs:// address), else `<folder>/store`.
    """

    folder: Path
    store_uri: str

    @classmethod
    def of_environment(cls) -> Home:
        """Return the home that the environment names; its folder is created for its owner alone (0700)."""
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        folder = Path(os.environ.get("OAKUM_HOME") or Path(data) / "oakum").expanduser().absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create {folder}: {error.strerror}; set OAKUM_HOME to a folder that you may write"
            ) from error
        return cls(folder, os.environ.get("OAKUM_STORE") or str(folder / "store"))

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def report(self, name: str) -> Path:
        """Return the path of the HTML report of an experiment or a search; every name has a folder of its own."""
        return self.folder / "reports" / _folder_name(name) / "report.html"


def _folder_name(name: str) -> str:
    """Return a name as one part of a path: itself where it can be one, else what is plain of it and a digest.

    Names also come from a store that others may write to, so that what the command line checked does not hold there.
    """
    is_plain = name.isprintable() and not {*name} & {"/", "\\"} and name.strip(". ") != "" and name[0] != "."
    if is_plain and len(name.encode()) <= _LONGEST_FOLDER_BYTES:
        return name
    kept = "".join(character if character.isalnum() and character.isascii() else "-" for character in name)
    return f"{kept[:_KEPT_CHARACTERS].strip('-') or 'report'}-{sha256_hex(name.encode(errors='replace'))[:16]}"
