"""Files and batches of the stand-in gateway (tests/gateway.py), which adds the routes below /files and /batches.

    form -> File -> POST /batches -> Batch -> GET /batches/{id}, each a step -> answers to its lines -> File -> content

A batch moves on when it is asked for, and only then: validating, in_progress, finalizing, completed. Its lines are
answered by the code of the single routes. What becomes of it may be set by a scenario (`Ways`), and so may be the
manner in which files are served (`FileWays`). The results are kept as pieces that share their pictures, so that a large
file costs little.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Union

from tests.wire import (
    BLOCK,
    Fields,
    Gone,
    Pairs,
    Part,
    Piece,
    Reply,
    check_type,
    invalid,
    need,
    no_number,
    once,
    page,
    problem,
    refusal,
)

if TYPE_CHECKING:
    from tests.gateway import Exchange, Scenario

Line = list[Piece]  # of a file of results
ENDPOINTS = ("/v1/images/generations", "/v1/images/edits", "/v1/responses")
NOT_IN_BATCHES = ("gpt-image-2.6",)  # the beginnings of models that no batch takes
# By purpose: what the name of a file ends in, and the content types it may have.
PICTURES = (r".*\.(png|jpe?g|webp|gif)", ("image/png", "image/jpeg", "image/webp", "image/gif"))
PURPOSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "batch": (r".+\.jsonl", ("application/jsonl", "application/octet-stream")),
    "vision": PICTURES,
    "user_data": PICTURES,
}
SHORTEST, LONGEST = 3600, 2_592_000  # seconds that a file may live
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class Limits:
    """What one file may hold, and how many lines all batches under way may hold together; a test may lower each."""

    lines: int = 50_000
    batch_bytes: int = 200_000_000
    file_bytes: int = 512_000_000
    waiting: int = 1 << 60


class FileWays(NamedTuple):
    """The manner of serving the content of files: by ranges or not, and with what kind of ETag."""

    ranges: bool = False
    etag: str = "strong"  # or "weak", or "new" with every download


class Ways(NamedTuple):
    """What becomes of a batch."""

    end: str = "completed"
    share: float = 1.0  # of its lines that are answered
    first: tuple[str, ...] = ()  # states before the usual ones
    errors: tuple[Fields, ...] = ()  # why it fails, be the file as it may
    every: int = 0  # of so many lines the last is refused
    refusal: Reply = problem(400, "Your request was rejected by the safety system.", "moderation_blocked")
    one_file: bool = False  # refused lines stand among the results
    more: Fields = {}  # further fields of everything
    spoil: Callable[[list[Line]], list[Line]] = lambda lines: lines  # what becomes of the lines of the results


@dataclass
class File:
    """A file that was uploaded, or made by a batch."""

    document: Fields
    content: Union[BinaryIO, list[Piece]]
    downloads: int = 0

    @property
    def purpose(self) -> str:
        """What it is for."""
        return str(self.document["purpose"])

    def pieces(self) -> list[Piece]:
        """All of its content; only that of an upload is read for it."""
        if isinstance(self.content, list):
            return self.content
        self.content.seek(0)
        return [Piece(block) for block in iter(lambda: self.read(BLOCK), b"")]

    def read(self, size: int) -> bytes:
        """The next bytes of an upload."""
        return b"" if isinstance(self.content, list) else self.content.read(size)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines of an upload, each with the place where it begins."""
        assert not isinstance(self.content, list)
        self.content.seek(0)
        at = 0
        for line in self.content:
            yield at, line
            at += len(line)

    def line_at(self, at: int) -> Any:
        """The line that begins at a place."""
        assert not isinstance(self.content, list)
        self.content.seek(at)
        return json.loads(self.content.readline())


class Shelf:
    """The files and batches of one gateway."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.lock = threading.RLock()  # one request at a time: what a batch does is quick
        self.files: dict[str, File] = {}
        self.batches: dict[str, Batch] = {}
        self.spools: list[BinaryIO] = []

    def spool(self) -> BinaryIO:
        """A file of this machine for an upload, which is gone with the gateway."""
        spool: BinaryIO = tempfile.TemporaryFile()
        with self.lock:
            self.spools.append(spool)
        return spool

    def close(self) -> None:
        """Throw all uploads away."""
        with self.lock:
            for spool in self.spools:
                spool.close()

    def holds(self, name: str, *purposes: str) -> bool:
        """Whether there is a file of this id and of one of these purposes."""
        return name in self.files and self.files[name].purpose in purposes

    def file(self, name: str) -> File:
        """A file by its id, or 404."""
        if name not in self.files:
            raise refusal(404, f"No such File object: {name}", None, param="id")
        return self.files[name]

    def add(self, exchange: Exchange, content: Union[BinaryIO, list[Piece]], **about: Any) -> Fields:
        """Keep a file; returns what is told about it."""
        name, now = exchange.name("file-"), int(time.time())
        fixed = {"id": name, "object": "file", "created_at": now, "status": "processed", "status_details": None}
        life = about.pop("life", None)
        document = {**fixed, "expires_at": now + life if life else None, **about, **exchange.scenario.batch.more}
        with self.lock:
            self.files[name] = File(document, content)
        return document


def reply_of(document: Fields) -> Reply:
    """A JSON reply."""
    return page(200, "application/json", json.dumps(document, indent=2).encode())


def life_of(param: str, fields: Any) -> int:
    """The seconds that a file is to live."""
    check_type(param, fields, dict)
    if set(fields) != {"anchor", "seconds"} or fields["anchor"] != "created_at":
        raise invalid(param, "expected anchor=created_at and seconds")
    check_type(f"{param}[seconds]", fields["seconds"], int)
    if not SHORTEST <= fields["seconds"] <= LONGEST:
        raise invalid(f"{param}[seconds]", f"expected a number from {SHORTEST} to {LONGEST}")
    return int(fields["seconds"])


# --------------------------------------------------------------------------------------------------------------- files


def check_upload(part: Part, purpose: str, limits: Limits) -> None:
    """Refuse a file that is not what its purpose wants."""
    ending, types = PURPOSES[purpose]
    if not re.fullmatch(ending, part.filename or "", re.IGNORECASE):
        raise invalid("file", f"the name '{part.filename}' does not fit the purpose '{purpose}'", "invalid_file_format")
    look = f"image/{part.look.format}" if part.look else ""
    if part.content_type not in types or (purpose != "batch" and part.content_type != look):
        raise invalid("file", f"unsupported mimetype '{part.content_type}'", "unsupported_file_mimetype")
    if part.size == 0:
        raise invalid("file", "it is empty", "empty_file")
    if part.size > (limits.batch_bytes if purpose == "batch" else limits.file_bytes):
        raise refusal(413, f"The file of {part.size} bytes is too large.", "file_too_large", param="file")


def upload_reply(exchange: Exchange) -> Reply:
    """POST /files."""
    shelf, form = exchange.studio.shelf, exchange.request.form or []
    texts = {part.name: part.value or "" for part in form[:-1] if part.filename is None}
    if not form or form[-1].name != "file" or form[-1].filename is None or len(texts) != len(form) - 1:
        raise invalid("file", "expected a form of different text fields, and then one file")
    part, purpose = form[-1], texts.pop("purpose", "")
    if purpose not in PURPOSES:
        raise invalid("purpose", f"supported values are {', '.join(PURPOSES)}")
    life = None
    if texts:
        if not all(re.fullmatch(r"expires_after\[.+]", name) for name in texts):
            raise refusal(400, f"Unknown parameter: one of {sorted(texts)}.", "unknown_parameter")
        fields: Fields = {name[len("expires_after[") : -1]: text for name, text in texts.items()}
        if re.fullmatch(r"[1-9]\d{1,9}", fields.get("seconds", "")):
            fields["seconds"] = int(fields["seconds"])
        life = life_of("expires_after", fields)
    check_upload(part, purpose, shelf.limits)
    assert part.content
    document = shelf.add(exchange, part.content, bytes=part.size, filename=part.filename, purpose=purpose, life=life)
    return reply_of(document)


def file_reply(exchange: Exchange, name: str) -> Reply:
    """GET /files/{id}."""
    return reply_of(exchange.studio.shelf.file(urllib.parse.unquote(name)).document)


def delete_reply(exchange: Exchange, name: str) -> Reply:
    """DELETE /files/{id}."""
    shelf, name = exchange.studio.shelf, urllib.parse.unquote(name)
    with shelf.lock:
        shelf.file(name)
        del shelf.files[name]
    return reply_of({"id": name, "object": "file", "deleted": True})


def part_of(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    """The pieces between two places, the first and the last of them cut where it must be."""
    at = 0
    for piece in pieces:
        first, last = max(0, start - at), min(len(piece.data), stop - at)
        if first < last:
            yield piece if last - first == len(piece.data) else piece._replace(data=piece.data[first:last])
        at += len(piece.data)


def content_reply(exchange: Exchange, name: str) -> Reply:
    """GET /files/{id}/content, from some byte on where ranges are offered and the file is still the same."""
    shelf, request, ways = exchange.studio.shelf, exchange.request, exchange.scenario.files
    with shelf.lock:
        file = shelf.file(urllib.parse.unquote(name))
        if file.purpose in ("vision", "user_data"):
            raise refusal(400, f"Not allowed to download files of purpose: {file.purpose}")
        pieces = file.pieces()
        file.downloads += 1
    headers: Pairs = (("Content-Type", "application/octet-stream"),)
    total = sum(len(piece.data) for piece in pieces)
    if not ways.ranges:
        return Reply(200, headers, pieces)
    mark = f"{file.document['id']}-{file.downloads if ways.etag == 'new' else 0}"
    etag = f'W/"{mark}"' if ways.etag == "weak" else f'"{mark}"'
    headers += (("Accept-Ranges", "bytes"), ("ETag", etag))
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("Range"))
    if not match or (request.header("If-Range") and (request.header("If-Range") != etag or ways.etag == "weak")):
        return Reply(200, headers, pieces)
    first, last = int(match[1]), min(int(match[2] or total), total - 1)
    if first > last:
        return Reply(416, (*headers, ("Content-Range", f"bytes */{total}")), [])
    headers += (("Content-Range", f"bytes {first}-{last}/{total}"),)
    return Reply(206, headers, list(part_of(pieces, first, last + 1)))


# ------------------------------------------------------------------------------------------------------------- batches


class Wrong(Exception):
    """Ends the check of a line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.row: Fields = {"code": code, "message": message, "param": param}


def check_line(raw: bytes, endpoint: str) -> tuple[str, str]:
    """Refuse a line that is no request of a batch; returns its id and its model."""
    try:
        line = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except ValueError:
        raise Wrong("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(line, dict) or set(line) != {"custom_id", "method", "url", "body"}:
        raise Wrong("missing_required_parameter", "A line is an object of custom_id, method, url and body.")
    name, body = line["custom_id"], line["body"]
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        raise Wrong("invalid_value", "A custom_id is a text that is not empty.", "custom_id")
    if line["method"] != "POST":
        raise Wrong("invalid_method", "The only method is POST.", "method")
    if line["url"] != endpoint:
        raise Wrong("invalid_url", "The URL does not match the batch endpoint.", "url")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise Wrong("missing_required_parameter", "A body is an object with a model.", "body")
    tools = body.get("tools")
    for fields in (body, *(tools if isinstance(tools, list) else [])):
        for param in ("stream", "partial_images"):
            if isinstance(fields, dict) and fields.get(param):
                raise Wrong("invalid_value", "Streams are not supported in batches.", param)
    return name, body["model"]


def file_ids(value: Any) -> Iterator[str]:
    """The ids of all files that a body names."""
    if isinstance(value, dict):
        yield from (name for key, name in value.items() if key == "file_id" and isinstance(name, str))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from file_ids(inner)


BODY = "\0body"  # stands in a line until it is rendered


@dataclass
class Batch:
    """A batch: its document, what it is made of, and how far it has come."""

    document: Fields
    input: File
    ways: Ways
    ahead: list[str]  # the states to come
    polls: int
    scenario: Scenario  # of the request that made it, for the answers to its lines
    life: int | None = None
    stopped: bool = False
    places: list[tuple[int, str]] = field(default_factory=list)  # where each line begins, and its id
    order: list[int] = field(default_factory=list)  # in which the lines are answered
    done: int = 0
    results: list[Line] = field(default_factory=list)
    failures: list[Line] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The state it is in."""
        return str(self.document["status"])

    def enter(self, status: str) -> None:
        """Be in another state from now on."""
        self.document.update(status=status, **{f"{status}_at": int(time.time())})

    def step(self, exchange: Exchange) -> None:
        """Move on by one state, with the work that belongs to it."""
        if not self.ahead:
            return
        status = self.ahead.pop(0)
        if not (self.places or self.stopped or status in self.ways.first):
            errors = list(self.ways.errors) or self.validate(exchange.studio.shelf)
            if errors:
                self.ahead, status = [], "failed"
                self.document["errors"] = {"object": "list", "data": errors}
        self.enter(status)
        if status != "failed":
            self.work(exchange)
        if status in ENDED:
            self.finish(exchange)

    def validate(self, shelf: Shelf) -> list[Fields]:
        """Look at all lines; returns what is wrong with them."""
        errors: list[Fields] = []
        names: set[str] = set()
        models: set[str] = set()
        for number, (at, raw) in enumerate(self.input.lines(), 1):
            try:
                name, model = check_line(raw, self.document["endpoint"])
                if name in names:
                    raise Wrong("duplicate_custom_id", f"The custom_id '{name}' occurs twice.", "custom_id")
                if models and model not in models:
                    raise Wrong("mismatched_model", "A batch holds requests for a single model.", "body.model")
                names.add(name)
                models.add(model)
                self.places.append((at, name))
            except Wrong as wrong:
                errors.append({**wrong.row, "line": number})
        total, waiting = len(self.places), sum(batch.left for batch in shelf.batches.values() if batch is not self)
        if total > shelf.limits.lines:
            errors = [told("too_many_tasks", f"The file holds {total} lines; {shelf.limits.lines} are the most.")]
        elif not errors and total + waiting > shelf.limits.waiting:
            errors = [told("token_limit_exceeded", ENQUEUED)]
        self.order = list(range(total))
        random.Random(total).shuffle(self.order)
        self.document["request_counts"]["total"] = 0 if errors else total
        return errors[:20]

    @property
    def left(self) -> int:
        """How many of its lines count among those that wait."""
        return 0 if self.status in ENDED else len(self.places)

    def work(self, exchange: Exchange) -> None:
        """Answer as many lines as are due by now."""
        due = int(len(self.places) * self.ways.share)
        if self.stopped:
            due = self.done
        elif self.status in ("in_progress", *self.ways.first):
            steps = 1 + self.ahead.count("in_progress")
            due = due * (self.polls + 1 - steps) // (self.polls + 1) if self.polls else 0
        while self.done < due:
            self.answer(exchange, self.order[self.done])
            self.done += 1
        counts = self.document["request_counts"]
        counts.update(completed=len(self.results), failed=len(self.failures))

    def answer(self, exchange: Exchange, number: int) -> None:
        """Answer one line as the route would."""
        at, name = self.places[number]
        line, shelf = self.input.line_at(at), exchange.studio.shelf
        unknown = [key for key in file_ids(line["body"]) if not shelf.holds(key, "vision", "user_data")]
        if self.ways.every and number % self.ways.every == self.ways.every - 1:
            reply = self.ways.refusal
        elif line["body"]["model"].startswith(NOT_IN_BATCHES):
            message = f"The model '{line['body']['model']}' is not supported by the Batch API."
            reply = problem(400, message, "model_not_supported", param="model")
        elif unknown:
            reply = problem(400, f"No such File object: {unknown[0]}", "invalid_image_file", param="file_id")
        else:
            reply = exchange.answer(self.scenario, line["url"], line["body"])
        fine = 200 <= reply.status < 300 or self.ways.one_file
        (self.results if fine else self.failures).append(self.line(exchange, name, reply))

    def line(self, exchange: Exchange, name: str, reply: Reply | None, error: Fields | None = None) -> Line:
        """A line of the results: the reply, or why there is none."""
        more = self.ways.more
        response: Fields | None = None
        pieces: list[Piece] = []
        if reply:
            response = {"status_code": reply.status, "request_id": exchange.studio.name("req_"), "body": BODY, **more}
            pieces = on_one_line(reply)
        fields = {"id": exchange.studio.name("batch_req_"), "custom_id": name, "response": response, "error": error}
        head, _, tail = json.dumps({**fields, **more}, ensure_ascii=False).partition(json.dumps(BODY))
        return [Piece(head.encode()), *pieces, Piece(tail.encode() + b"\n")]

    def finish(self, exchange: Exchange) -> None:
        """Write the files of the results."""
        if self.status == "expired":
            for number in self.order[self.done :]:
                self.failures.append(self.line(exchange, self.places[number][1], None, EXPIRED))
            self.document["request_counts"]["failed"] = len(self.failures)
        results = self.ways.spoil(self.results) if self.results else []
        for key, lines in (("output", results), ("error", self.failures)):
            if lines:
                pieces = [piece for line in lines for piece in line]
                about = {"filename": f"{self.document['id']}_{key}.jsonl", "purpose": "batch_output", "life": self.life}
                size = sum(len(piece.data) for piece in pieces)
                self.document[f"{key}_file_id"] = exchange.studio.shelf.add(exchange, pieces, bytes=size, **about)["id"]

    def cancel(self) -> None:
        """Begin to stop; what was answered stays."""
        if self.status in ENDED:
            raise refusal(409, f"Cannot cancel a batch with status '{self.status}'.", "invalid_batch_status")
        if self.status != "cancelling":
            self.enter("cancelling")
            self.ahead, self.stopped = ["cancelled"], True


def on_one_line(reply: Reply) -> list[Piece]:
    """The body of a reply as JSON without line ends; what is no JSON becomes a text."""
    if reply.status == 200 and any(piece.picture for piece in reply.pieces):
        return reply.pieces
    text = b"".join(piece.data for piece in reply.pieces).decode()
    plain = dict(reply.headers).get("Content-Type") != "application/json"
    return [Piece(json.dumps(text if plain else json.loads(text), ensure_ascii=False).encode())]


def told(code: str, message: str, line: int | None = None, param: str | None = None) -> Fields:
    """One reason why a batch failed."""
    return {"code": code, "message": message, "line": line, "param": param}


ENQUEUED = "Enqueued token limit reached. Please try again once some in_progress batches have been completed."
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def check_metadata(metadata: Any) -> None:
    """Refuse metadata that the API does not keep."""
    check_type("metadata", metadata, dict)
    for name, value in metadata.items():
        check_type(f"metadata.{name}", value, str)
        if len(name) > 64 or len(value) > 512 or len(metadata) > 16:
            raise invalid("metadata", "at most 16 names of 64 characters, with values of 512")


def create_reply(exchange: Exchange) -> Reply:
    """POST /batches."""
    shelf, ways = exchange.studio.shelf, exchange.scenario.batch
    check_type("body", exchange.request.json, dict)
    given = {name: value for name, value in exchange.request.json.items() if value is not None}
    for name in set(given) - {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}:
        raise refusal(400, f"Unknown parameter: '{name}'.", "unknown_parameter", param=name)
    input_id, endpoint = need(given, "input_file_id"), need(given, "endpoint")
    for name, choices in (("endpoint", ENDPOINTS), ("completion_window", ("24h",))):
        if need(given, name) not in choices:
            raise invalid(name, f"supported values are {', '.join(choices)}")
    check_metadata(given.get("metadata", {}))
    life = life_of("output_expires_after", given["output_expires_after"]) if "output_expires_after" in given else None
    if not shelf.holds(input_id, "batch"):
        raise invalid("input_file_id", f"there is no file '{input_id}' of purpose batch")
    now = int(time.time())
    document = {
        **{"id": exchange.name("batch_"), "object": "batch", "endpoint": endpoint, "errors": None},
        **{"input_file_id": input_id, "completion_window": "24h", "status": "validating", "output_file_id": None},
        **{"error_file_id": None, "created_at": now, "expires_at": now + 86_400, "metadata": given.get("metadata")},
        **{f"{name}_at": None for name in STAMPS},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        **ways.more,
    }
    polls = exchange.studio.polls if exchange.scenario.polls is None else exchange.scenario.polls
    last = {"cancelled": ["cancelling"]}.get(ways.end, ["finalizing"]) if polls else []
    ahead = [*ways.first, *["in_progress"] * polls, *last, ways.end]
    with shelf.lock:
        made = Batch(document, shelf.files[input_id], ways, ahead, polls, exchange.scenario, life)
        shelf.batches[document["id"]] = made
    return reply_of(document)


def batch_of(exchange: Exchange, name: str) -> Batch:
    """A batch by its id, or 404."""
    name = urllib.parse.unquote(name)
    if name not in exchange.studio.shelf.batches:
        raise refusal(404, f"No batch found with id '{name}'.", param="batch_id")
    return exchange.studio.shelf.batches[name]


def batch_reply(exchange: Exchange, name: str) -> Reply:
    """GET /batches/{id}, which moves it on."""
    with exchange.studio.shelf.lock:
        batch = batch_of(exchange, name)
        batch.step(exchange)
        return reply_of(batch.document)


def cancel_batch_reply(exchange: Exchange, name: str) -> Reply:
    """POST /batches/{id}/cancel."""
    if exchange.request.body_bytes:
        raise refusal(400, "A cancel has no body.")
    with exchange.studio.shelf.lock:
        batch = batch_of(exchange, name)
        batch.cancel()
        return reply_of(batch.document)


def batches_reply(exchange: Exchange) -> Reply:
    """GET /batches, the newest first."""
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(exchange.request.path).query, keep_blank_values=True))
    limit, after = query.pop("limit", "20"), query.pop("after", None)
    if query or not re.fullmatch(r"[1-9]\d?|100", limit):
        raise invalid("limit", "a list takes limit, from 1 to 100, and after")
    with exchange.studio.shelf.lock:
        rows = [batch.document for batch in reversed(exchange.studio.shelf.batches.values())]
        names = [row["id"] for row in rows]
        if after is not None and after not in names:
            raise invalid("after", f"there is no batch '{after}'")
        rest = rows[names.index(after) + 1 if after else 0 :]
        data = rest[: int(limit)]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return reply_of({"object": "list", "data": data, **ends, "has_more": len(rest) > len(data)})


# ------------------------------------------------------------------------------------------------- what scenarios do


def unsaid(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Close instead of telling that what was asked for is done."""
    raise Gone


def cut_half(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send the first half of a body, rounded up, then close."""
    total = sum(len(piece.data) for piece in reply.pieces)
    for piece in part_of(reply.pieces, 0, (total + 1) // 2):
        yield piece.data
    if total > 1:
        raise Gone


def cut_between_lines(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send the first half of the lines, rounded up, then close."""
    ends = [number for number, piece in enumerate(reply.pieces, 1) if piece.data.endswith(b"\n")]
    for piece in reply.pieces[: ends[(len(ends) - 1) // 2]]:
        yield piece.data
    if len(ends) > 1:
        raise Gone


def first_line(change: Callable[[bytes], bytes]) -> Callable[[list[Line]], list[Line]]:
    """Another first line of the results, without its line end."""

    def spoil(lines: list[Line]) -> list[Line]:
        text = b"".join(piece.data for piece in lines[0])
        return [[Piece(change(text[:-1]) + b"\n")], *lines[1:]]

    return spoil


def twice(lines: list[Line]) -> list[Line]:
    """Every line of the results twice."""
    return [line for line in lines for _ in range(2)]


def with_stranger(lines: list[Line]) -> list[Line]:
    """One more line, of an id that nobody gave."""
    text = b"".join(piece.data for piece in lines[0])
    return [*lines, [Piece(re.sub(rb'"custom_id": "[^"]*"', b'"custom_id": "stranger"', text, count=1))]]


def spaced(lines: list[Line]) -> list[Line]:
    """CRLF for LF, blank lines between, and none at the end."""
    open_lines = [[*line[:-1], line[-1]._replace(data=line[-1].data[:-1])] for line in lines]
    return [line if number == 0 else [Piece(b"\r\n\r\n"), *line] for number, line in enumerate(open_lines)]


NOISE = bytes(value for value in random.Random(1).randbytes(3000) if value not in b"\r\n")
MORE: Fields = {"x_new": {"deep": [1, None, "two"]}, "usage_of_tomorrow": None}
