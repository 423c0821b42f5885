"""Where everything of a user lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from oakum.config import ConfigError


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
        """Return the path of an experiment's HTML report."""
        return self.folder / "reports" / name / "report.html"
