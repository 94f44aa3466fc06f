"""HTTP/1.1 on a raw socket, for tests/gateway.py: strict in what it reads, free in what it writes.

    socket -> Incoming -> Recorded (with its JSON, or the parts of its form)        Reply -> head and framed body -> socket

A request that does not follow the rules to the letter is answered with a 400 that says why. A reply may break them.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, NamedTuple

from tests import pictures

BLOCK = 1 << 18
MEGABYTE = 1 << 20
Fields = dict[str, Any]
Pairs = tuple[tuple[str, str], ...]

# ------------------------------------------------------------------------------------------------------------- replies


class Piece(NamedTuple):
    """Some bytes of a reply, and whether they are a picture's or the first of an event."""

    data: bytes
    picture: bool = False
    event: bool = False


class Reply(NamedTuple):
    """An HTTP reply; `missing` bytes are announced and never sent."""

    status: int
    headers: Pairs
    pieces: list[Piece]
    framing: str = "length"  # or "chunked", or "close"
    missing: int = 0
    interim: bytes = b""
    close: bool = False


class Answer(Exception):
    """Ends the handling of a request with a reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply

    def closing(self) -> Answer:
        """The same, with the connection closed behind it."""
        return Answer(self.reply._replace(close=True))


class Gone(Exception):
    """Ends a connection without (or in the middle of) a reply."""


def page(status: int, content_type: str, body: bytes, headers: Pairs = ()) -> Reply:
    """A reply with a body that is ready."""
    return Reply(status, (("Content-Type", content_type), *headers), [Piece(body)])


def envelope(message: str, code: str | None = None, **more: Any) -> Fields:
    """The API's error object."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **more}}


def problem(status: int, message: str, code: str | None = None, headers: Pairs = (), **more: Any) -> Reply:
    """A reply with an error object."""
    return page(status, "application/json", json.dumps(envelope(message, code, **more), indent=2).encode(), headers)


def refusal(status: int, message: str, code: str | None = None, **more: Any) -> Answer:
    """The same, to be raised."""
    return Answer(problem(status, message, code, **more))


def invalid(param: str, message: str, code: str = "invalid_value") -> Answer:
    """A 400 about one parameter."""
    return refusal(400, f"Invalid '{param}': {message}.", code, param=param)


def check_type(param: str, value: Any, wanted: type) -> None:
    """Refuse a value of another JSON type; true is no number."""
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        got = type(value).__name__
        raise invalid(param, f"expected {wanted.__name__}, but got {got} instead", "invalid_type")


def need(fields: Any, name: str, wanted: type = str, prefix: str = "") -> Any:
    """The value of a required field, which is not empty."""
    check_type(prefix or "body", fields, dict)
    value, param = fields.get(name), prefix + name
    if not value:
        raise refusal(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param=param)
    check_type(param, value, wanted)
    return value


def frame(reply: Reply, body: Iterator[bytes]) -> Iterator[bytes]:
    """The body with its chunk marks, if it has any."""
    if reply.framing != "chunked":
        yield from body
        return
    for data in body:
        yield b"%x\r\n%b\r\n" % (len(data), data) if data else data
    yield b"0\r\n\r\n"


PHRASES = {code.value: code.phrase for code in HTTPStatus}


def reply_head(reply: Reply, own: Pairs, last: bool) -> bytes:
    """Status line and headers of a reply: its own, and those of the server that it does not replace."""
    given = {name.lower() for name, _ in reply.headers}
    pairs = [*reply.headers, *(pair for pair in own if pair[0] not in given)]
    if reply.framing == "length":
        pairs.append(("Content-Length", str(sum(len(piece.data) for piece in reply.pieces) + reply.missing)))
    elif reply.framing == "chunked":
        pairs.append(("Transfer-Encoding", "chunked"))
    pairs += [("Connection", "close")] if last else []
    lines = [f"HTTP/1.1 {reply.status} {PHRASES.get(reply.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in pairs]
    return reply.interim + "\r\n".join([*lines, "", ""]).encode("utf-8")


# ---------------------------------------------------------------------------------------------------- reading a request


class Part(NamedTuple):
    """One part of a form: a text has a value, a file has a name, a type, a size and a hash."""

    name: str
    filename: str | None
    content_type: str | None
    size: int
    sha256: str
    value: str | None
    look: pictures.Measure | None = None
    content: BinaryIO | None = None  # of a file that is kept


@dataclass
class Recorded:
    """A request as it arrived; `body_bytes` counts what was received."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body_bytes: int = 0
    json: Any = None
    form: list[Part] | None = None

    def header(self, name: str) -> str:
        """The first header of this name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class Incoming:
    """The bytes of one connection, read in blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def more(self) -> bool:
        """Receive another block; False at the end."""
        block = self.sock.recv(BLOCK)
        self.buffer += block
        return bool(block)

    def head(self) -> bytes:
        """Everything up to the blank line, or nothing when the client went away."""
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > 1 << 16 or not self.more():
                return b""
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def body(self, length: int, record: Recorded) -> Iterator[bytes]:
        """Exactly the announced number of bytes; fewer or more than that is an error."""
        while record.body_bytes < length:
            if not self.buffer and not self.more():
                raise refusal(400, f"The body ended after {record.body_bytes} of {length} bytes.")
            block, self.buffer = self.buffer[: length - record.body_bytes], self.buffer[length - record.body_bytes :]
            record.body_bytes += len(block)
            yield block
        if self.buffer or (select.select([self.sock], [], [], 0)[0] and self.sock.recv(1, socket.MSG_PEEK)):
            raise refusal(400, f"The body is longer than its Content-Length of {length}.")


def read_head(head: bytes) -> Recorded:
    """Parse request line and headers."""
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.1", lines[0])
    pairs = [re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", line) for line in lines[1:]]
    if match is None or None in pairs:
        raise refusal(400, "The request line or a header cannot be read.")
    return Recorded(match[1], match[2], [(pair[1], pair[2]) for pair in pairs if pair])


def read_length(request: Recorded) -> int:
    """The announced length of the body; a POST must have one."""
    lengths = [value for name, value in request.headers if name.lower() == "content-length"]
    if request.header("Transfer-Encoding") or (request.method == "POST" and not lengths):
        raise refusal(411, "A request needs a Content-Length.", "length_required").closing()
    if len(lengths) > 1 or not re.fullmatch(r"\d{1,15}", "".join(lengths) or "0"):
        raise refusal(400, "The Content-Length cannot be read.").closing()
    return int(lengths[0]) if lengths else 0


def broken_form(why: str) -> Answer:
    """A 400 for a form that does not follow RFC 7578."""
    return refusal(400, f"Could not parse multipart form: {why}.", "invalid_multipart_form")


def as_utf8(data: bytes) -> str:
    """Text of a form."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise broken_form("a name or a value is not UTF-8") from None


def unquote_name(name: str) -> str:
    """Undo the three escapes of https://html.spec.whatwg.org/#multipart-form-data."""
    return name.replace("%0D", "\r").replace("%0A", "\n").replace("%22", '"')


def read_part_head(head: bytes) -> tuple[str, str | None, str | None]:
    """Name, file name and content type of a part."""
    fields: dict[str, str] = {}
    for line in as_utf8(head).split("\r\n"):
        name, colon, value = line.partition(": ")
        if not colon or name.lower() not in ("content-disposition", "content-type") or name.lower() in fields:
            raise broken_form(f"unexpected header line {line!r}")
        fields[name.lower()] = value
    pattern = r'form-data; name="([^"\r\n]*)"(?:; filename="([^"\r\n]*)")?'
    match = re.fullmatch(pattern, fields.get("content-disposition", ""))
    if match is None:
        raise broken_form("a Content-Disposition cannot be read")
    filename = None if match[2] is None else unquote_name(match[2])
    return unquote_name(match[1]), filename, fields.get("content-type")


Spool = Callable[[], BinaryIO]


class FormReader:
    """A strict reader of multipart/form-data in constant memory (RFC 7578, and the quoting of the WHATWG)."""

    def __init__(self, blocks: Iterator[bytes], boundary: bytes, spool: Spool | None = None) -> None:
        self.blocks = blocks
        self.spool = spool
        self.mark = b"\r\n--" + boundary
        self.buffer = b"\r\n"  # so that the first boundary looks like the others

    def more(self) -> None:
        """Have another block in the buffer."""
        block = next(self.blocks, b"")
        if not block:
            raise broken_form("it ends before its closing boundary")
        self.buffer += block

    def take(self, count: int) -> bytes:
        """The next bytes."""
        while len(self.buffer) < count:
            self.more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Everything up to a mark, which is taken too."""
        while (at := self.buffer.find(mark)) < 0:
            # The end of the buffer may be the beginning of the mark, so it waits for the next block.
            yield self.take(max(0, len(self.buffer) - len(mark) + 1))
            self.more()
        yield self.take(at)
        self.take(len(mark))

    def parts(self) -> Iterator[Part]:
        """All parts in order."""
        if self.take(len(self.mark)) != self.mark:
            raise broken_form("it does not begin with its boundary")
        while (after := self.take(2)) != b"--":
            if after != b"\r\n":
                raise broken_form("a boundary is not followed by a line end")
            yield self.part()
        if self.buffer + b"".join(self.blocks) not in (b"", b"\r\n"):
            raise broken_form("something follows its closing boundary")

    def part(self) -> Part:
        """One part, hashed as it passes."""
        name, filename, content_type = read_part_head(b"".join(self.until(b"\r\n\r\n")))
        digest, size, first = hashlib.sha256(), 0, b""
        content = self.spool() if self.spool and filename is not None else None
        for data in self.until(self.mark):
            digest.update(data)
            if content:
                content.write(data)
            size += len(data)
            first += data[: MEGABYTE - len(first)]
        value = as_utf8(first) if filename is None else None
        return Part(name, filename, content_type, size, digest.hexdigest(), value, pictures.measure(first), content)


def once(pairs: list[tuple[str, Any]]) -> Fields:
    """An object whose names are all different."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return fields


def no_number(word: str) -> Any:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{word} is not JSON")


def read_body(record: Recorded, blocks: Iterator[bytes], spool: Spool | None = None) -> None:
    """Read a JSON body or a form into the record; the files of the form are kept in spools, if there are any."""
    kind, _, rest = record.header("Content-Type").partition(";")
    boundary = re.fullmatch(r' *boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', rest)
    if kind.strip().lower() == "multipart/form-data" and boundary:
        try:
            record.form = list(FormReader(blocks, boundary[1].encode(), spool).parts())
        finally:
            # Whatever is wrong with the form, the client gets to send it all, else it would not read the answer.
            for _ in blocks:
                pass
        return
    body = b"".join(blocks)
    if not body:
        return
    if kind.strip().lower() != "application/json":
        raise refusal(400, f"Unsupported content type: '{record.header('Content-Type')}'.")
    try:
        record.json = json.loads(body.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except ValueError as error:
        raise refusal(400, f"We could not parse the JSON body of your request. ({error})") from None
