"""Files of a user's folder or tar archive, parsed while they are read: nothing is unpacked to disk."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

from oakum.datasets._download import Progress
from oakum.datasets._prepared import DataError

Parsed = TypeVar("Parsed")
Parse = Callable[[str, IO[bytes]], Parsed]

_SMALLEST_REPORT = 1 << 22


def parse_source(
    source: Path, names: Sequence[str], archive: str, folders: Sequence[str], parse: Parse[Parsed], progress: Progress
) -> dict[str, Parsed]:
    """Call `parse(name, binary file)` once for each of `names`; return name -> its result.

    Args:
        source: a folder that holds the files, in one of the subfolders `folders`, or the archive; or an archive file
            of any name.
        names: base names of the files.
        archive: the published archive's name, for folders and messages.
        folders: where the files lie in the unpacked archive ("." is the folder itself).

    Raises:
        DataError: a file is missing, or the archive is damaged.
    """
    if not source.is_dir():
        return _parse_archive(source, names, parse, progress)
    for folder in folders:
        missing = [name for name in names if not (source / folder / name).is_file()]
        if not missing:
            return {name: _parse_file(source / folder / name, name, parse) for name in names}
        if len(missing) < len(names):
            raise DataError(f"{source / folder} holds no file {missing[0]!r}; get {archive} and unpack it again")
    if (source / archive).is_file():
        return _parse_archive(source / archive, names, parse, progress)
    raise DataError(f"{source} holds neither {archive} nor its files ({', '.join(names)})")


def _parse_file(path: Path, name: str, parse: Parse[Parsed]) -> Parsed:
    with path.open("rb") as file:
        return parse(name, file)


def _parse_archive(archive: Path, names: Sequence[str], parse: Parse[Parsed], progress: Progress) -> dict[str, Parsed]:
    """Read the archive once, from its start to the last wanted file."""
    parsed: dict[str, Parsed] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in names and name not in parsed:
                    if member.size > _SMALLEST_REPORT:
                        progress(f"reading {name} from {archive.name}", len(parsed) / len(names))
                    file = tar.extractfile(member)
                    assert file is not None, "regular members can be read"
                    parsed[name] = parse(name, file)
                if len(parsed) == len(names):
                    return parsed
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is not a whole tar archive ({error}); get the file again") from error
    missing = next(name for name in names if name not in parsed)
    raise DataError(f"{archive} holds no file {missing!r}")
