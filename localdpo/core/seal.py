"""A checksum in the text of a JSON object, so that damage that is still JSON is not believed.

    {"prompt":0,"text":"four","crc":"1f0c9e2a"}

`crc` stands last. It is the CRC-32 of every byte before its comma, as eight hexadecimal digits: it is
compared before anything is parsed, and another program reads a field more. Objects without it (of earlier
versions, or written by hand) are read as they are.
"""

from __future__ import annotations

import zlib
from typing import Final

_MARK: Final = b',"crc":"'
_NAME: Final = b'"crc":'
_DIGITS: Final = 8
_END: Final = b'"}'
_LENGTH: Final = len(_MARK) + _DIGITS + len(_END)


def seal(text: str) -> bytes:
    """The UTF-8 form of the text of a JSON object that is not empty, with its checksum, ended by a newline.

    A lone surrogate (in a damaged answer) has no UTF-8 form and is replaced.
    """
    body = text.rstrip().encode("utf-8", errors="replace").removesuffix(b"}")
    return b"%s%s%08x%s\n" % (body, _MARK, zlib.crc32(body), _END)


def unseal(line: bytes) -> bytes:
    """The JSON object without its checksum. Raises ValueError when it is not as it was written."""
    line = line.rstrip()
    tail = line[-_LENGTH:]
    if not (tail.startswith(_MARK) and tail.endswith(_END)):
        # Quotes within a text are escaped, so this is the field, cut or changed.
        if _NAME in line[-2 * _LENGTH :]:
            raise ValueError("damaged: its checksum is none")
        return line
    body = line[:-_LENGTH]
    if tail[len(_MARK) : -len(_END)] != b"%08x" % zlib.crc32(body):
        raise ValueError("damaged: its checksum is another one")
    return body + b"}"
