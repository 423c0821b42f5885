"""The form of a store's small documents: JSON with a checksum over the document and its name."""

from __future__ import annotations

import json
import re
from typing import Any

from oakum.records import canonical_json, sha256_hex

_HEAD = re.compile(rb'\{"check":"([0-9a-f]{64})","document":')


class DamagedDocumentError(ValueError):
    """The bytes are not a whole document of that name."""


def document_path(name: str) -> str:
    """Return the path of a document inside the store; the name has been checked."""
    return f"documents/{name}.json"


def seal_document(path: str, document: dict[str, Any]) -> bytes:
    """Return the bytes of the document that lies at `path`.

    Raises:
        TypeError, ValueError: no JSON (NaN included).
    """
    body = canonical_json(document)
    return b'{"check":"%s","document":%s}' % (_check(path, body).encode(), body)


def open_document(path: str, raw: bytes) -> dict[str, Any]:
    """Return the document that lies at `path`.

    Raises:
        DamagedDocumentError: cut, changed, without a checksum, or the document of another place.
    """
    head = _HEAD.match(raw)
    if not head or not raw.endswith(b"}"):
        raise DamagedDocumentError("it has no checksum")
    body = raw[head.end() : -1]
    if _check(path, body) != head[1].decode():
        raise DamagedDocumentError("its checksum does not fit")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedDocumentError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise DamagedDocumentError("it is not a document that oakum writes")
    return document


def _check(path: str, body: bytes) -> str:
    return sha256_hex(path.encode() + b"\n" + body)
