"""Base class of data sets, and what the rest of oakum does with them: list, prepare, verify, open, load.

Every function takes `data_home`, the folder that holds the prepared data sets (`$OAKUM_HOME/data`).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from oakum import registry
from oakum.config import FrozenConfig
from oakum.datasets import _prepared
from oakum.datasets._download import Progress, no_progress, sha256_of
from oakum.datasets._prepared import Content, DataError, Kind, Labels, PreparedData, Samples
from oakum.datasets._publish import exclusive, publish_folder
from oakum.registry import Source

__all__ = [
    "Content",
    "DataEntry",
    "DataError",
    "DataSource",
    "Labels",
    "PreparedData",
    "Samples",
    "ensure_prepared",
    "list_data",
    "load_labels",
    "load_samples",
    "open_prepared",
    "prepare",
    "verify",
]

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


class DataSource:
    """Where a data set comes from; a data set's file defines one subclass.

    Attributes:
        source: the publication to cite.
        summary: one line for `oakum list`.
        kind: "image" or "tabular".
        public: whether single samples may be shown in reports and sent to MLflow.
        license_note: terms of use, one or two sentences.
        embedded: comes with an installed package, so `oakum run` prepares it by itself.
        official_digest: `PreparedData.digest` of the published data set, or None when the source's own checksums
            are the only proof. A download or a package that gives other content is refused; the user's own files
            are taken, and the manifest says that they differ.
    """

    source: ClassVar[Source | None] = None
    summary: ClassVar[str] = ""
    kind: ClassVar[Kind] = "image"
    public: ClassVar[bool] = False
    license_note: ClassVar[str] = ""
    embedded: ClassVar[bool] = False
    official_digest: ClassVar[str | None] = None

    class Config(FrozenConfig):
        """How an image data set is loaded: pictures are resized to `image_size` squares (None: native size)."""

        image_size: int | None = Field(default=None, ge=4, le=512)

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Get the data set and decode it.

        Args:
            source: the user's file or folder in the official layout, or None for a download or an offline source.
            scratch: an empty folder for downloads; removed afterwards.
            progress: called with a message and a fraction done or None.

        Raises:
            DataError: no source, or a damaged one; the message names the file and what to do.
        """
        raise TypeError(f"{cls.__name__} must implement read")


@dataclass(frozen=True)
class DataEntry:
    """A data set as `oakum data list` shows it.

    Attributes:
        prepared: its manifest, or None.
        problem: why the prepared data cannot be used, or "".
    """

    name: str
    summary: str
    kind: Kind
    public: bool
    embedded: bool
    license_note: str
    prepared: PreparedData | None
    problem: str = ""


def list_data(data_home: Path) -> list[DataEntry]:
    """Return every known data set and whether it is prepared; samples are not read."""
    entries = []
    for name in registry.available("datasets"):
        source = _source(name)
        prepared, problem = None, ""
        if (data_home / name).exists():
            try:
                prepared = _prepared.read_manifest(name, data_home)
            except DataError as error:
                problem = str(error)
        entries.append(
            DataEntry(
                name=name,
                summary=source.summary,
                kind=source.kind,
                public=source.public,
                embedded=source.embedded,
                license_note=source.license_note,
                prepared=prepared,
                problem=problem,
            )
        )
    return entries


def prepare(
    name: str,
    data_home: Path,
    source: Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> PreparedData:
    """Get a data set, check it, and put it into `data_home`; return its manifest.

    A data set that is prepared already is left alone unless `force`. All work happens in a hidden folder beside the
    result, which appears whole or not at all; an earlier prepared form stays until the new one is complete. Two
    processes that prepare one data set take turns, and the second finds it done.

    Raises:
        UnknownMethodError: no such data set.
        DataError: no source, a wrong checksum, damaged files, or no space.
    """
    name = registry.canonical_name("datasets", name)
    if source is not None and not source.exists():
        raise DataError(f"--source {source} does not exist")
    try:
        with exclusive(name, data_home, progress) as work:
            if not force and (data_home / name).exists():
                return _prepared.read_manifest(name, data_home)
            _build(name, work, source, progress)
            progress(f"publishing {name}", None)
            publish_folder(work, data_home / name)
            return _prepared.read_manifest(name, data_home)
    except OSError as error:
        place = error.filename or data_home
        reason = f"cannot prepare {name}: {place}: {error.strerror or error}"
        raise DataError(f"{reason}; free space or permissions there, or set OAKUM_HOME to another folder") from error


def ensure_prepared(name: str, data_home: Path, progress: Progress = no_progress) -> PreparedData:
    """Return the manifest; a data set that comes with an installed package is prepared when it is missing.

    Raises:
        DataError: not prepared and not embedded (the message names the command), or damaged.
    """
    if not _is_there(name, data_home) and _source(name).embedded:
        return prepare(name, data_home, progress=progress)
    return open_prepared(name, data_home)


def open_prepared(name: str, data_home: Path) -> PreparedData:
    """Return the manifest of a prepared data set; samples are not read.

    Raises:
        UnknownMethodError: no such data set.
        DataError: not prepared, or a damaged manifest; the message names the command that helps.
    """
    if not _is_there(name, data_home):
        name = registry.canonical_name("datasets", name)
    return _prepared.read_manifest(name, data_home)


def _is_there(name: str, data_home: Path) -> bool:
    """Whether a folder of this name was prepared; no other place is looked at, whatever the name."""
    return _FOLDER_NAME.fullmatch(name) is not None and (data_home / name).exists()


def load_labels(name: str, data_home: Path) -> Labels:
    """Return labels, parts and identities without reading the samples: what planning needs.

    Raises:
        DataError: not prepared, or damaged.
    """
    return _prepared.read_labels(open_prepared(name, data_home))


def load_samples(name: str, data_home: Path, image_size: int | None = None) -> Samples:
    """Return the whole data set in memory, verified, with pictures resized to `image_size` squares.

    Resizing: the centered square, then Pillow's bilinear filter on uint8 (it averages when it shrinks).

    Raises:
        DataError: not prepared, or damaged.
        ConfigError: an image size for data without images.
    """
    prepared = open_prepared(name, data_home)
    prepared.input_shape(image_size)
    samples = _prepared.read_samples(prepared)
    if image_size is None:
        return samples
    from oakum.datasets._images import resize_square

    x = resize_square(samples.x, image_size)
    return Samples(samples.y, samples.part, samples.identity, x, samples.max_value)


def verify(name: str, data_home: Path) -> PreparedData:
    """Read everything of a prepared data set and check every digest; return its manifest.

    Raises:
        DataError: not prepared, or damaged.
    """
    prepared = open_prepared(name, data_home)
    _prepared.read_samples(prepared)
    path = prepared.folder / _prepared.SAMPLES_FILE
    if sha256_of(path) != prepared.samples_sha256:
        raise _prepared.damaged(name, path, "its SHA-256 differs from the manifest's")
    return prepared


def _source(name: str) -> type[DataSource]:
    loaded: type[DataSource] = registry.load("datasets", name)
    return loaded


def _build(name: str, work: Path, source: Path | None, progress: Progress) -> None:
    """Write samples and manifest into `work/ready`."""
    data_source = _source(name)
    scratch, ready = work / "scratch", work / "ready"
    scratch.mkdir()
    ready.mkdir()
    progress(f"reading {name}", None)
    content = data_source.read(source, scratch, progress)
    labels = _prepared.labels_digest(content.y, content.part, content.identity)
    digest = _prepared.content_digest(content.x, content.max_value, labels)
    matches = _matches_official(name, data_source, content, digest, is_users=source is not None)
    progress(f"writing {name}", None)
    path = ready / _prepared.SAMPLES_FILE
    _prepared.write_samples(path, content)
    manifest = PreparedData(
        schema_version=1,
        name=name,
        kind=data_source.kind,
        rows=len(content.y),
        shape=content.x.shape[1:],
        class_names=content.class_names,
        parts={part: int((content.part == part).sum()) for part in sorted(set(content.part.tolist()))},
        has_identities=content.identity is not None,
        max_value=content.max_value,
        digest=digest,
        labels_digest=labels,
        samples_bytes=path.stat().st_size,
        samples_sha256=sha256_of(path),
        public=data_source.public,
        license_note=data_source.license_note,
        source=content.origin,
        matches_official=matches,
        prepared_at=time.time(),
    )
    progress(f"writing the manifest of {name}", None)
    _prepared.write_manifest(ready, manifest)


def _matches_official(
    name: str, data_source: type[DataSource], content: Content, digest: str, *, is_users: bool
) -> bool | None:
    official = data_source.official_digest
    if official is None or digest == official:
        return content.matches_official if official is None else True
    if not is_users:
        raise DataError(
            f"{name}: {content.origin} gave content with digest {digest}, expected {official}; "
            f"another version is installed, or it is damaged: give the files yourself with --source"
        )
    return False
