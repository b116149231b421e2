"""What the verbs on messages share: files or pipes named on the command line ("-" is a pipe), and codecs."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from latentwire.core.errors import WireError
from latentwire.core.unicode import reading

if TYPE_CHECKING:
    from latentwire.wire.codecs import Codec

PIECE = 1 << 16


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """A file to read in binary, or standard input; what is wrong with a message in it is said with its name."""
    with ExitStack() as stack:
        with reading(name):
            stream: BinaryIO = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
        try:
            yield stream
        except WireError as error:
            raise WireError(f"{label(name)}: {error}") from error


def label(name: str) -> str:
    """How a file or pipe is called in messages."""
    return "standard input" if name == "-" else name


def text_of(name: str) -> Iterator[str]:
    """The UTF-8 text of a file or of standard input in pieces, as they come."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with opened(name) as stream:
        read = getattr(stream, "read1", stream.read)  # what a pipe has now, rather than a full piece
        while block := read(PIECE):
            yield _decoded(decoder, block, name)
    yield _decoded(decoder, b"", name)


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, name: str) -> str:
    with reading(label(name)):
        return decoder.decode(block, final=not block)


def codec_of(spec: str, folder: Path) -> Codec:
    """The codec of that name; WireError where there is none, or it needs a codebook that a checkpoint does not have, or
    more layers than that has."""
    from latentwire.wire.codecs import LearnedCodec, parse_codec

    codec = parse_codec(spec)
    if not isinstance(codec, LearnedCodec):
        return codec
    from latentwire.checkpoint.parts import load_codebooks

    books = load_codebooks(folder)
    if codec.name not in books:
        raise WireError(f"codec {codec.name}: {folder} has no codebook for it")
    codec.with_book(books[codec.name])
    return codec
