"""A stand-in for the GPT Image API on this machine: no key, no cost, and every mishap on demand.

    python3 -m tests.gateway                              serve, and print what to export
    python3 -m tests.gateway --scenario quota -- python3 gpt_image.py generations "A lake" --output lake.png
    python3 -m tests.gateway --list                       the scenarios, one a line

    with Gateway(scenario="cut-in-third-picture") as gateway:      # in a test
        ...                                                        # gateway.url, .requests, .pictures, .posts

It listens on 127.0.0.1 only. It speaks /v1/images/generations, /v1/images/edits, /v1/responses, /v1/chat/completions
and /v1/models, paints real pictures of the asked size, reads uploads strictly, and refuses what the API is known to
refuse.

    bytes -> Recorded -> Ask (checked) -> Job -> Pictures -> document -> events -> pieces -> bytes

A scenario is a row that puts its hand in at one of these arrows. It is chosen for the gateway, or for one request with
the header `X-Gateway-Scenario`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import email.utils
import gzip
import hashlib
import json
import math
import os
import re
import secrets
import select
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple, final

from tests import pictures

KEY = "sk-stand-in-0123456789abcdef"
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


class Gone(Exception):
    """Ends a connection without (or in the middle of) a reply."""


def page(status: int, content_type: str, body: bytes, headers: Pairs = ()) -> Reply:
    """A reply with a body that is ready."""
    return Reply(status, (("Content-Type", content_type), *headers), [Piece(body)])


def envelope(message: str, code: str | None = None, type: str = "invalid_request_error", **more: Any) -> Fields:
    """The API's error object."""
    return {"error": {"message": message, "type": type, "param": more.pop("param", None), "code": code, **more}}


def refusal(status: int, message: str, code: str | None = None, headers: Pairs = (), **more: Any) -> Answer:
    """An error reply, to be raised."""
    body = json.dumps(envelope(message, code, **more), indent=2).encode()
    return Answer(page(status, "application/json", body, headers))


# --------------------------------------------------------------------------------------------------- what the API takes


class Kind(NamedTuple):
    """What a field may hold; `low` and `high` bound a number, or the length of a string or an array."""

    words: str
    type: type
    low: int = 0
    high: int | None = None
    choices: tuple[str, ...] = ()


def choice(*choices: str) -> Kind:
    """One of some words."""
    return Kind("a string", str, choices=choices)


def whole(low: int, high: int) -> Kind:
    """A whole number."""
    return Kind("an integer", int, low, high)


TEXT, WORD = Kind("a string", str), Kind("a string", str, 1)
FLAG, OBJECT, NUMBER = Kind("a boolean", bool), Kind("an object", dict), Kind("a decimal", float)
ANYTHING = Kind("anything", object)

PICTURE_FIELDS = {
    "background": choice("auto", "opaque", "transparent"),
    "complexity": choice("low", "medium", "high"),
    "frame_count": whole(2, 16),
    "frame_duration_ms": whole(1, 655_350),
    "model": WORD,
    "moderation": choice("auto", "low"),
    "output_compression": whole(0, 100),
    "output_format": WORD,
    "partial_images": whole(0, 3),
    "quality": WORD,
    "size": WORD,
    "svg": OBJECT,
}
GENERATION_FIELDS = {
    **PICTURE_FIELDS,
    "prompt": Kind("a string", str, 1, 32_000),
    "n": whole(1, 10),
    "stream": FLAG,
    "safety_identifier": TEXT,
    "user": TEXT,
    "response_format": choice("url", "b64_json"),
    "style": choice("vivid", "natural"),
}
EDIT_FIELDS = {
    **GENERATION_FIELDS,
    "input_fidelity": choice("high", "low"),
    "images": Kind("an array", list, 1, 16),
    "mask": OBJECT,
}
FORM_FIELDS = {
    **{name: kind for name, kind in EDIT_FIELDS.items() if name not in ("moderation", "images", "mask", "svg")},
    "svg[model]": WORD,
    "svg[reasoning][effort]": choice("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}
TOOL_FIELDS = {
    **PICTURE_FIELDS,
    "type": choice("image_generation"),
    "action": choice("auto", "generate", "edit"),
    "input_fidelity": choice("high", "low"),
    "input_image_mask": OBJECT,
}
RESPONSE_FIELDS = {
    "background": FLAG,
    "conversation": ANYTHING,
    "include": Kind("an array", list),
    "input": ANYTHING,
    "instructions": TEXT,
    "max_output_tokens": whole(16, 1_000_000),
    "max_tool_calls": whole(1, 1000),
    "metadata": OBJECT,
    "model": WORD,
    "parallel_tool_calls": FLAG,
    "previous_response_id": WORD,
    "prompt_cache_key": TEXT,
    "reasoning": OBJECT,
    "safety_identifier": TEXT,
    "service_tier": choice("auto", "default", "flex", "priority"),
    "store": FLAG,
    "stream": FLAG,
    "temperature": NUMBER,
    "text": OBJECT,
    "tool_choice": ANYTHING,
    "tools": Kind("an array", list, 1, 128),
    "top_p": NUMBER,
    "truncation": choice("auto", "disabled"),
    "user": TEXT,
}
REFERENCE_FIELDS = {"image_url": WORD, "file_id": WORD}
EFFORT = {"effort": choice("none", "minimal", "low", "medium", "high", "xhigh", "max")}
# Objects inside objects, by the last word of their path.
NESTED_FIELDS = {
    "svg": {"model": WORD, "reasoning": OBJECT},
    "svg.reasoning": EFFORT,
    "reasoning": {**EFFORT, "summary": choice("auto", "concise", "detailed")},
    "mask": REFERENCE_FIELDS,
    "input_image_mask": REFERENCE_FIELDS,
}
MESSAGE_FIELDS = {
    "type": choice("message"),
    "role": choice("user", "assistant", "system", "developer"),
    "content": ANYTHING,
    "id": WORD,
    "status": WORD,
}
CALL_FIELDS = {"type": WORD, "id": WORD}
PART_FIELDS = {
    "input_text": {"type": WORD, "text": WORD},
    "output_text": {"type": WORD, "text": TEXT, "annotations": Kind("an array", list)},
    "input_image": {"type": WORD, **REFERENCE_FIELDS, "detail": choice("auto", "low", "high", "original")},
}
ALLOWED_FIELDS = {"type": WORD, "mode": choice("auto", "required"), "tools": Kind("an array", list, 1)}
CHAT_FIELDS = {"model": WORD, "messages": Kind("an array", list, 1), "stream": FLAG}


CHAT_MESSAGE_FIELDS = {"role": choice("user", "assistant", "system", "developer"), "content": ANYTHING}
CHAT_PART_FIELDS = {"type": choice("text", "image_url"), "text": TEXT, "image_url": OBJECT}


class Model(NamedTuple):
    """What one image model takes; the last row knows nothing and forbids nothing."""

    names: tuple[str, ...]
    sizes: str = "free"  # or "fixed"; "" is not checked
    qualities: tuple[str, ...] = ("auto", "low", "medium", "high")
    formats: tuple[str, ...] = ("png", "jpeg", "webp")
    fidelity: tuple[str, ...] = ()
    markup: bool = False
    complexity: bool = False
    known: bool = True
    dead: bool = False


ALL_QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max")
ALL_FORMATS = ("png", "jpeg", "webp", "gif", "svg")
MODELS = (
    Model(("gpt-image-2", "gpt-image-2-2026-04-21")),
    Model(
        (
            "gpt-image-2.5-sunburst",
            "gpt-image-2.5-flare",
            "gpt-image-2.5-sunburst-2026-09-08",
            "gpt-image-2.5-flare-2026-09-08",
        ),
        qualities=ALL_QUALITIES,
        markup=True,
    ),
    Model(
        ("gpt-image-2.6-sunburst", "gpt-image-2.6-flare"),
        qualities=ALL_QUALITIES,
        formats=ALL_FORMATS,
        markup=True,
        complexity=True,
    ),
    Model(("gpt-image-1.5", "chatgpt-image-latest"), sizes="fixed", fidelity=("high", "low")),
    Model(("gpt-image-1-mini",), sizes="fixed", fidelity=("low",)),
    Model(("gpt-image-1", "dall-e-2", "dall-e-3", "gpt-image-2.5", "gpt-image-2.6"), dead=True),
    Model(("*",), sizes="", known=False),
)
FIXED_SIZES = ("auto", "1024x1024", "1536x1024", "1024x1536")
TOOL_MODEL = "gpt-image-2.6-sunburst"
TEXT_MODELS = ("gpt-5.4", "gpt-5.4-mini", "gpt-5.5")


def model_row(name: str) -> Model:
    """The first row that has this name, else the last row."""
    return next((row for row in MODELS if name in row.names), MODELS[-1])


class Input(NamedTuple):
    """A picture that came in: where it stood, its hash and size, and what its first bytes say."""

    param: str
    sha256: str
    size: int
    look: pictures.Measure | None = None


@dataclass
class Ask:
    """A request as the rules look at it; `fields` are those that describe pictures, wherever they stood."""

    route: str
    fields: Fields
    model: Model
    stream: bool = False
    prefix: str = ""
    inputs: list[Input] = field(default_factory=list)
    mask: Input | None = None
    markup: Input | None = None
    context: bool = False  # earlier turns may hold pictures

    def get(self, name: str, default: Any = None) -> Any:
        """One field."""
        return self.fields.get(name, default)

    def edges(self) -> tuple[int, int]:
        """Width and height, or zeros when the size has no such form."""
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.get("size", ""))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def free(self) -> tuple[int, int]:
        """Width and height when the rules for free sizes apply to them, else a size that passes."""
        return self.edges() if self.model.sizes == "free" and self.edges() != (0, 0) else (1024, 1024)


class Rule(NamedTuple):
    """Something the API refuses; `{value}` in the message is the field's."""

    param: str
    message: str
    broken: Callable[[Ask], bool]
    code: str = "invalid_value"
    type: str = "image_generation_user_error"
    status: int = 400


REQUEST, FILE = "invalid_request_error", "invalid_image_file"


def unlike_first(ask: Ask, other: Input | None) -> bool:
    """Whether a mask or markup has other dimensions than the first image, as far as both are known."""
    first = ask.inputs[0].look if ask.inputs else None
    if not (other and other.look and first and first.width and other.look.width):
        return False
    return (first.width, first.height) != (other.look.width, other.look.height)


def no_alpha_png(other: Input | None) -> bool:
    """Whether a mask or markup is known not to be a PNG with an alpha channel."""
    return bool(other and other.look and not (other.look.format == "png" and other.look.alpha))


def given(ask: Ask, name: str) -> bool:
    """Whether a field was sent at all."""
    return ask.get(name) is not None


def images_route(ask: Ask) -> bool:
    """Whether the request is not a response."""
    return ask.route != "responses"


RULES = (
    Rule("model", "The model '{value}' does not exist or has been retired.", lambda a: a.model.dead,
         "model_not_found", REQUEST, 404),
    Rule("response_format", "Unknown parameter: 'response_format'.",
         lambda a: a.model.known and given(a, "response_format"), "unknown_parameter", REQUEST),
    Rule("style", "Unknown parameter: 'style'.", lambda a: a.model.known and given(a, "style"),
         "unknown_parameter", REQUEST),
    Rule("size", "Invalid size '{value}'. Expected 'auto' or WIDTHxHEIGHT, for example '1536x1024'.",
         lambda a: a.model.sizes == "free" and a.get("size", "auto") != "auto" and a.edges() == (0, 0)),
    Rule("size", "Invalid size '{value}'. Supported sizes are 1024x1024, 1024x1536, 1536x1024, and auto.",
         lambda a: a.model.sizes == "fixed" and a.get("size", "auto") not in FIXED_SIZES),
    Rule("size", "Invalid size '{value}'. Width and height must both be divisible by 16.",
         lambda a: any(edge % 16 for edge in a.free())),
    Rule("size", "Invalid size '{value}'. The longest edge must be at most 3840 pixels.",
         lambda a: max(a.free()) > 3840),
    Rule("size", "Invalid size '{value}'. The aspect ratio must be between 1:3 and 3:1.",
         lambda a: max(a.free()) > 3 * min(a.free())),
    Rule("size", "Invalid size '{value}'. Requested resolution is below the minimum of 655360 pixels.",
         lambda a: math.prod(a.free()) < 655_360),
    Rule("size", "Invalid size '{value}'. Requested resolution exceeds the maximum of 8294400 pixels.",
         lambda a: math.prod(a.free()) > 8_294_400),
    Rule("quality", "Invalid value: '{value}'. The model does not support this quality.",
         lambda a: a.model.known and a.get("quality", "auto") not in a.model.qualities),
    Rule("output_format", "Invalid value: '{value}'. The model does not support this output format.",
         lambda a: a.model.known and a.get("output_format", "png") not in a.model.formats),
    Rule("background", "Transparent background requires output_format 'png' or 'webp'.",
         lambda a: a.get("background") == "transparent" and a.get("output_format", "png") not in ("png", "webp")),
    Rule("output_compression", "output_compression is only supported with output_format 'jpeg' or 'webp'.",
         lambda a: given(a, "output_compression") and a.get("output_format", "png") not in ("jpeg", "webp")),
    Rule("partial_images", "partial_images is only supported when stream is true.",
         lambda a: not a.stream and given(a, "partial_images") and (images_route(a) or a.get("partial_images") > 0)),
    Rule("stream", "Streaming is only supported with n=1.", lambda a: a.stream and a.get("n", 1) > 1),
    Rule("complexity", "The model does not support complexity.",
         lambda a: a.model.known and not a.model.complexity and given(a, "complexity")),
    Rule("input_fidelity", "The model does not support input_fidelity '{value}'.",
         lambda a: a.model.known and given(a, "input_fidelity") and a.get("input_fidelity") not in a.model.fidelity,
         "invalid_input_fidelity_model"),
    Rule("frame_count", "frame_count is only supported with output_format 'gif'.",
         lambda a: given(a, "frame_count") and a.get("output_format") != "gif"),
    Rule("frame_duration_ms", "frame_duration_ms is only supported with output_format 'gif'.",
         lambda a: given(a, "frame_duration_ms") and a.get("output_format") != "gif"),
    Rule("svg", "svg is only supported with output_format 'svg'.",
         lambda a: given(a, "svg") and a.get("output_format") != "svg"),
    Rule("n", "SVG generation requires n=1.", lambda a: a.get("output_format") == "svg" and a.get("n", 1) > 1),
    Rule("stream", "Streaming is not supported with this output_format.",
         lambda a: images_route(a) and a.stream and a.get("output_format") in ("gif", "svg")),
    Rule("partial_images", "Partial images are not supported with this output_format.",
         lambda a: a.get("partial_images", 0) > 0 and a.get("output_format") in ("gif", "svg")),
    Rule("mask", "Masks are not supported with output_format 'gif'.",
         lambda a: a.mask is not None and a.get("output_format") == "gif"),
    Rule("markup", "The model does not support markup.",
         lambda a: a.markup is not None and a.model.known and not a.model.markup),
    Rule("markup", "markup cannot be combined with mask.", lambda a: a.markup is not None and a.mask is not None),
    Rule("image", "Invalid 'image': array too long. Expected an array with maximum length 16.",
         lambda a: images_route(a) and len(a.inputs) > 16, "array_above_max_length", REQUEST),
    Rule("image", "Each image must be smaller than 50MB.",
         lambda a: any(each.size > 50 * MEGABYTE for each in a.inputs), FILE),
    Rule("mask", "The mask must be smaller than 50MB.",
         lambda a: a.mask is not None and a.mask.size > 50 * MEGABYTE, FILE),
    Rule("mask", "Invalid mask image: it must be a PNG with an alpha channel.", lambda a: no_alpha_png(a.mask), FILE),
    Rule("mask", "Invalid mask image: its size must match that of the first image.",
         lambda a: unlike_first(a, a.mask), FILE),
    Rule("markup", "Invalid markup image: it must be a PNG with an alpha channel.",
         lambda a: no_alpha_png(a.markup), FILE),
    Rule("markup", "Invalid markup image: its size must match that of the first image.",
         lambda a: unlike_first(a, a.markup), FILE),
    Rule("action", "Action 'edit' requires an image in the context.",
         lambda a: a.get("action") == "edit" and not a.inputs and not a.context),
    Rule("input_image_mask", "A mask requires an image in the context.",
         lambda a: not images_route(a) and a.mask is not None and not a.inputs and not a.context),
)  # fmt: skip


def check_rules(ask: Ask) -> None:
    """Refuse the first rule that is broken."""
    for rule in RULES:
        if rule.broken(ask):
            message = rule.message.replace("{value}", str(ask.get(rule.param)))
            raise refusal(rule.status, message, rule.code, type=rule.type, param=ask.prefix + rule.param)


def invalid(param: str, message: str, code: str = "invalid_value") -> Answer:
    """A 400 about one parameter."""
    return refusal(400, message, code, param=param)


def check_bounds(path: str, value: Any, kind: Kind) -> None:
    """Refuse a number out of range, or a string or an array of the wrong length."""
    word = {int: "integer", str: "string", list: "array"}.get(kind.type)
    if word is None:
        return
    size, what = (value, "value") if kind.type is int else (len(value), "length")
    if size < kind.low:
        message = f"Invalid '{path}': expected a {what} >= {kind.low}, but got {size} instead."
        raise invalid(path, message, f"{word}_below_min_{what}")
    if kind.high is not None and size > kind.high:
        message = f"Invalid '{path}': expected a {what} <= {kind.high}, but got {size} instead."
        raise invalid(path, message, f"{word}_above_max_{what}")


def check_value(path: str, value: Any, kind: Kind) -> None:
    """Refuse a value of the wrong type, out of bounds, or not among the choices."""
    if kind.type is not object and type(value) is not kind.type and not (kind.type is float and type(value) is int):
        got = type(value).__name__
        raise invalid(path, f"Invalid type for '{path}': expected {kind.words}, but got {got} instead.", "invalid_type")
    check_bounds(path, value, kind)
    if kind.choices and value not in kind.choices:
        known = ", ".join(f"'{each}'" for each in kind.choices)
        raise invalid(path, f"Invalid value: '{value}'. Supported values are: {known}.")


def check_fields(fields: Any, table: dict[str, Kind], path: str = "") -> Fields:
    """Refuse unknown and ill-typed fields at one level and below; null is the same as absent."""
    check_value(path[:-1] or "body", fields, OBJECT)
    for name, value in fields.items():
        if name not in table:
            raise invalid(path + name, f"Unknown parameter: '{path}{name}'.", "unknown_parameter")
        if value is None:
            continue
        check_value(path + name, value, table[name])
        inside = NESTED_FIELDS.get("svg.reasoning" if path.endswith("svg.") else name)
        if inside is not None and table[name] is OBJECT:
            check_fields(value, inside, f"{path}{name}.")
    return {name: value for name, value in fields.items() if value is not None}


def require(fields: Fields, *names: str, path: str = "") -> None:
    """Refuse a request that lacks a field."""
    for name in names:
        if name not in fields:
            raise invalid(path + name, f"Missing required parameter: '{path}{name}'.", "missing_required_parameter")


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


@dataclass
class Recorded:
    """A request as it arrived; `body_bytes` counts what was received."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body_bytes: int = 0
    json: Any = None
    form: list[Part] | None = None

    def header(self, name: str, default: str = "") -> str:
        """The first header of this name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)


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
        if self.surplus():
            raise refusal(400, f"The body is longer than its Content-Length of {length}.")

    def surplus(self) -> bool:
        """Whether more has arrived although the request is complete."""
        ready = select.select([self.sock], [], [], 0)[0]
        return bool(self.buffer or (ready and self.sock.recv(1, socket.MSG_PEEK)))


def read_head(head: bytes) -> tuple[Recorded, bool]:
    """Parse request line and headers; the second value says whether the client speaks HTTP/1.0."""
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.([01])", lines[0])
    pairs = [re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", line) for line in lines[1:]]
    if match is None or None in pairs:
        raise refusal(400, "The request line or a header cannot be read.")
    return Recorded(match[1], match[2], [(pair[1], pair[2]) for pair in pairs if pair]), match[3] == "0"


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
    names = [None if name is None else unquote_name(name) for name in match.groups()]
    return names[0] or "", names[1], fields.get("content-type")


class FormReader:
    """A strict reader of multipart/form-data in constant memory (RFC 7578, and the quoting of the WHATWG)."""

    def __init__(self, blocks: Iterator[bytes], boundary: bytes) -> None:
        self.blocks = blocks
        self.mark = b"\r\n--" + boundary
        self.buffer = b"\r\n"  # so that the first boundary looks like the others

    def need(self, count: int) -> None:
        """Have at least so many bytes in the buffer."""
        while len(self.buffer) < count:
            block = next(self.blocks, b"")
            if not block:
                raise broken_form("it ends before its closing boundary")
            self.buffer += block

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.need(count)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def parts(self) -> Iterator[Part]:
        """All parts in order."""
        if self.take(len(self.mark)) != self.mark:
            raise broken_form("it does not begin with its boundary")
        while True:
            after = self.take(2)
            if after == b"--":
                break
            if after != b"\r\n":
                raise broken_form("a boundary is not followed by a line end")
            yield self.part()
        if self.buffer + b"".join(self.blocks) not in (b"", b"\r\n"):
            raise broken_form("something follows its closing boundary")

    def part(self) -> Part:
        """One part, hashed as it passes."""
        name, filename, content_type = read_part_head(self.part_head())
        digest, size, first = hashlib.sha256(), 0, b""
        room = MEGABYTE if filename is None else 1 << 16
        for data in self.data():
            digest.update(data)
            size += len(data)
            if len(first) < room:
                first += data[: room - len(first)]
        value = None
        if filename is None:
            value = as_utf8(first)
        return Part(name, filename, content_type, size, digest.hexdigest(), value, pictures.measure(first))

    def part_head(self) -> bytes:
        """The header lines of a part."""
        while (at := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > 1 << 16:
                raise broken_form("the header of a part has no end")
            self.need(len(self.buffer) + 1)
        return self.take(at + 4)[:-4]

    def data(self) -> Iterator[bytes]:
        """The content of a part, up to the next boundary."""
        while (at := self.buffer.find(self.mark)) < 0:
            # The end of the buffer may be the beginning of a boundary, so it waits for the next block.
            yield self.take(max(0, len(self.buffer) - len(self.mark) + 1))
            self.need(len(self.buffer) + 1)
        yield self.take(at)
        self.take(len(self.mark))


def once(pairs: list[tuple[str, Any]]) -> Fields:
    """An object whose names are all different."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return fields


def no_number(word: str) -> Any:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{word} is not JSON")


def read_body(record: Recorded, blocks: Iterator[bytes]) -> None:
    """Read a JSON body or a form into the record."""
    kind, _, rest = record.header("Content-Type").partition(";")
    boundary = re.fullmatch(r' *boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', rest)
    if kind.strip().lower() == "multipart/form-data" and boundary:
        try:
            record.form = list(FormReader(blocks, boundary[1].encode()).parts())
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


# ------------------------------------------------------------------------------------------------------------ pictures


class Picture(NamedTuple):
    """A painted picture in pieces, the base64 of the pieces, and where it belongs."""

    parts: tuple[bytes, ...]
    texts: tuple[bytes, ...]
    format: str
    number: int
    total: int
    preview: bool = False


class Job(NamedTuple):
    """What is to be painted."""

    route: str
    model: str
    prompt: str
    total: int = 1
    width: int = 1024
    height: int = 1024
    quality: str = "medium"
    background: str = "opaque"
    format: str = "png"
    partials: int = 0
    frames: int = 9
    duration_ms: int = 200
    inputs: tuple[str, ...] = ()
    bytes: int = 0  # the size of a picture padded with noise, or 0

    @property
    def looks(self) -> Fields:
        """How replies describe the pictures."""
        size = f"{self.width}x{self.height}"
        return {"background": self.background, "output_format": self.format, "quality": self.quality, "size": size}


class Plan(NamedTuple):
    """What the text model decides to do about an input."""

    pictures: int
    text: bool
    action: str


def job_of(ask: Ask, model: str, prompt: str, count: int, inputs: Iterable[str]) -> Job:
    """Settle what was left to the server."""
    width, height = ask.edges()
    if not 16 <= min(width, height) <= max(width, height) <= 4096:
        width, height = 1024, 1024
    quality, background, form = ask.get("quality", "auto"), ask.get("background"), ask.get("output_format", "png")
    return Job(
        ask.route,
        model,
        prompt,
        count,
        width,
        height,
        "medium" if quality == "auto" else quality,
        "transparent" if background == "transparent" else "opaque",
        form if form in ALL_FORMATS else "png",
        ask.get("partial_images", 0) if ask.stream else 0,
        ask.get("frame_count", 9),
        ask.get("frame_duration_ms", 200),
        tuple(inputs),
    )


def paint(job: Job, index: int, partial: int = -1) -> Picture:
    """Paint one picture, or one of its previews, by the hash of what was asked for."""
    seed = repr((job.prompt, job.inputs, index)).encode()
    if job.bytes:
        parts, texts = pictures.large(seed + b"%d" % partial, job.bytes)
        return Picture(parts, texts, "png", index, job.total, partial >= 0)
    block = 1 if partial < 0 else 64 >> partial
    clear = job.background == "transparent"
    data = pictures.picture(seed, job.format, job.width, job.height, clear, block, job.frames, job.duration_ms)
    return Picture((data,), (base64.b64encode(data),), job.format, index, job.total, partial >= 0)


FACTORS = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}
OLD_FACTORS = {"low": 16, "medium": 48, "high": 96}


def image_tokens(job: Job) -> int:
    """Output tokens of one picture by the published figures."""
    factors = OLD_FACTORS if job.model in MODELS[0].names else FACTORS
    factor = factors.get(job.quality, 24)
    short, long = sorted((job.width, job.height))
    area = job.width * job.height
    return math.ceil(factor * round(factor * short / long) * (2_000_000 + area) / 4_000_000)


def image_usage(job: Job) -> Fields:
    """The usage of an Images reply."""
    text, image = 1 + len(job.prompt) // 4, 1000 * len(job.inputs)
    output = job.total * image_tokens(job) + 100 * job.partials
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"image_tokens": image, "text_tokens": text},
        "output_tokens": output,
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
        "total_tokens": text + image + output,
    }


# -------------------------------------------------------------------------------------------------- state and exchange


class Origin:
    """One listening port and the requests that came to it."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.origin = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = self.origin + "/v1"
        self.requests: list[Recorded] = []


@dataclass
class Stored:
    """A response that was stored: its final document, its events, and how it stands."""

    document: Fields
    events: list[Fields]
    streamed: bool
    prompt: str
    polls: int
    cancelled: bool = False


class Studio:
    """What one gateway keeps between requests."""

    def __init__(self, key: str, delay: float, polls: int, own: Origin, elsewhere: Origin) -> None:
        self.key, self.delay, self.polls = key, delay, polls
        self.own, self.elsewhere = own, elsewhere
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.painted: list[Picture] = []
        self.queue: list[Reply] = []
        self.served: dict[str, tuple[str, tuple[bytes, ...]]] = {}
        self.responses: dict[str, Stored] = {}
        self.items: set[str] = set()
        self.holes: dict[str, Picture] = {}
        self.nonce = secrets.token_hex(8)
        self.count = 0

    def name(self, prefix: str) -> str:
        """A new id, the same in every run."""
        with self.lock:
            self.count += 1
            return prefix + hashlib.sha256(b"%d" % self.count).hexdigest()[:32]

    def hole(self, picture: Picture) -> str:
        """A word for a picture's base64, to stand in a document until it is rendered."""
        with self.lock:
            word = f"hole-{self.nonce}-{len(self.holes)}-"
            self.holes[word] = picture
        return word


@dataclass
class Exchange:
    """One request on its way to a reply."""

    studio: Studio
    incoming: Incoming
    request: Recorded
    scenario: Scenario
    length: int = 0
    previews: dict[str, list[Picture]] = field(default_factory=dict)

    def wait(self, seconds: float | None) -> None:
        """Sleep, unless the gateway closes."""
        if self.studio.closing.wait(seconds) or seconds is None:
            raise Gone

    def name(self, prefix: str) -> str:
        """A new id in the scenario's manner."""
        return self.scenario.ids(self.studio.name(prefix))


# ----------------------------------------------------------------------------------------------- the scenario as a row


class Sse(NamedTuple):
    """The manner of writing an event stream."""

    names: bool = True
    newline: bytes = b"\n"
    gap: bytes = b"\n"
    comment: bytes = b""
    done: bool = False
    last_gap: bool = True


def hole_field(exchange: Exchange, picture: Picture, name: str) -> Fields:
    """The usual way to deliver a picture: its base64 in the documented field."""
    return {name: exchange.studio.hole(picture)}


def media_type(form: str) -> str:
    """The media type of a picture format."""
    return "image/svg+xml" if form == "svg" else f"image/{form}"


def data_url(exchange: Exchange, picture: Picture) -> str:
    """A picture as a data URL."""
    return f"data:{media_type(picture.format)};base64,{exchange.studio.hole(picture)}"


def in_order(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """The usual way to send a body; the gateway's delay goes before it, or in shares before its events."""
    events = sum(piece.event for piece in reply.pieces)
    delay = exchange.studio.delay if exchange.request.method == "POST" and reply.status == 200 else 0.0
    if events:
        yield b""  # the head leaves with the first bytes, and a stream shows at once that it is one
    else:
        exchange.wait(delay)
    for piece in reply.pieces:
        if piece.event:
            exchange.wait(delay / events)
        yield piece.data


class Scenario(NamedTuple):
    """A row: a name, a line, and the places where it differs from the usual."""

    name: str
    line: str
    deed: Callable[[Exchange], None] | None = None  # answers or hangs up by itself
    stage: str = "body"  # when: at "connect", after the "head", or after the "body"
    times: int = 0  # for so many requests; 0: for all
    job: Callable[[Job], Job] = lambda job: job
    data: Callable[[bytes], bytes] | None = None  # what becomes of a painted picture
    base64: Callable[[bytes, Picture], bytes] | None = None
    deliver: Callable[[Exchange, Picture, str], Fields] = hole_field
    address: Callable[[Exchange, Picture], str] = data_url  # where chat replies point to
    document: Callable[[Exchange, Fields], Fields] = lambda exchange, document: document
    end: Fields | None = None  # how a response ends after its previews, in place of its output
    events: Callable[[Exchange, list[Fields]], list[Fields]] = lambda exchange, events: events
    ids: Callable[[str], str] = lambda name: name
    stream: bool | None = None  # answer so, whatever was asked
    sse: Sse = Sse()
    text: Callable[[bytes], bytes] = lambda text: text
    reply: Callable[[Exchange, Reply], Reply] = lambda exchange, reply: reply
    send: Callable[[Exchange, Reply], Iterator[bytes]] = in_order
    polls: int | None = None


PLAIN = Scenario("plain", "answers as the API does")

# ------------------------------------------------------------------------------------------------- pictures on the web

HTML = b"<!DOCTYPE html>\n<html><head><title>%s</title></head><body><h1>Sorry</h1></body></html>\n"


def publish(exchange: Exchange, picture: Picture) -> str:
    """Put a picture under /pictures/ and return its name there."""
    name = exchange.name("img_") + "." + picture.format
    exchange.studio.served[name] = (media_type(picture.format), picture.parts)
    return urllib.parse.quote(name, safe="")


def own_url(exchange: Exchange, picture: Picture) -> str:
    """A picture's URL on the gateway itself."""
    return f"{exchange.studio.own.origin}/pictures/{publish(exchange, picture)}"


def other_url(exchange: Exchange, picture: Picture) -> str:
    """A picture's URL on the second origin."""
    return f"{exchange.studio.elsewhere.origin}/pictures/{publish(exchange, picture)}"


def redirecting_url(exchange: Exchange, picture: Picture) -> str:
    """A URL that redirects to the second origin."""
    return f"{exchange.studio.own.origin}/redirect/{publish(exchange, picture)}"


def missing_url(exchange: Exchange, picture: Picture) -> str:
    """A URL with nothing behind it."""
    return f"{exchange.studio.own.origin}/pictures/gone.png"


def page_url(exchange: Exchange, picture: Picture) -> str:
    """A URL of a web page."""
    exchange.studio.served["page.html"] = ("text/html", (HTML % b"Sign in to see this picture",))
    return f"{exchange.studio.own.origin}/pictures/page.html"


def file_url(exchange: Exchange, picture: Picture) -> str:
    """A URL that no client should open."""
    return "file:///etc/passwd"


def get_picture(studio: Studio, path: str) -> Reply:
    """Serve a picture that was returned by URL."""
    _, kind, name = path.split("/", 2)
    if kind == "redirect":
        return page(302, "text/plain", b"", (("Location", f"{studio.elsewhere.origin}/pictures/{name}"),))
    content_type, parts = studio.served.get(urllib.parse.unquote(name), ("", ()))
    if not content_type:
        return page(404, "text/html", HTML % b"404 Not Found")
    return Reply(200, (("Content-Type", content_type),), [Piece(part) for part in parts])


# ----------------------------------------------------------------------------------------------- documents and events


def keep(exchange: Exchange, picture: Picture) -> Picture:
    """Note a painted picture for the test, after the scenario spoiled it if it does."""
    if exchange.scenario.data:
        data = exchange.scenario.data(b"".join(picture.parts))
        picture = picture._replace(parts=(data,), texts=(base64.b64encode(data),))
    with exchange.studio.lock:
        exchange.studio.painted.append(picture)
    return picture


def paint_previews(exchange: Exchange, job: Job, index: int, owner: str) -> None:
    """Paint the previews of one picture and keep them for its events."""
    exchange.previews[owner] = [keep(exchange, paint(job, index, partial)) for partial in range(job.partials)]


def images_document(exchange: Exchange, job: Job, fields: Fields) -> Fields:
    """The JSON reply of the Images routes."""
    data = []
    for index in range(job.total):
        paint_previews(exchange, job, index, str(index))
        picture = keep(exchange, paint(job, index))
        if fields.get("response_format") == "url":
            data.append({"url": own_url(exchange, picture)})
        else:
            data.append(exchange.scenario.deliver(exchange, picture, "b64_json"))
    document = {"created": int(time.time()), "data": data, **job.looks, "usage": image_usage(job)}
    if fields.get("safety_identifier") or fields.get("user"):
        document["safety_identifier"] = fields.get("safety_identifier") or fields["user"]
    if job.format == "svg":
        document["svg_usage"] = {
            "model": "gpt-5.5",
            "input_tokens": 900,
            "output_tokens": 2100,
            "reasoning_tokens": 600,
            "total_tokens": 3000,
        }
    return document


def images_events(exchange: Exchange, job: Job, document: Fields) -> list[Fields]:
    """The event stream of the Images routes."""
    word = "image_edit" if job.route == "edits" else "image_generation"
    events: list[Fields] = []
    shared = {"created_at": document["created"], **{name: document[name] for name in job.looks}}
    for owner, previews in exchange.previews.items():
        for partial, preview in enumerate(previews):
            hole = exchange.studio.hole(preview)
            events.append({"type": f"{word}.partial_image", "b64_json": hole, "partial_image_index": partial, **shared})
        if int(owner) < len(document["data"]):
            usage = {"usage": document["usage"]} if "usage" in document else {}
            events.append({"type": f"{word}.completed", **document["data"][int(owner)], **shared, **usage})
    return events


def message_item(exchange: Exchange, text: str) -> Fields:
    """A message in the output of a response."""
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    fixed = {"type": "message", "status": "completed", "role": "assistant"}
    return {"id": exchange.name("msg_"), **fixed, "content": [content]}


def call_item(exchange: Exchange, job: Job, index: int, action: str) -> Fields:
    """A finished call of the image tool, with its picture."""
    name = exchange.name("ig_")
    exchange.studio.items.add(name)
    paint_previews(exchange, job, index, name)
    result = exchange.scenario.deliver(exchange, keep(exchange, paint(job, index)), "result")
    revised = f"{job.prompt.strip()[:200]} (picture {index + 1} of {job.total})"
    fixed: Fields = {"type": "image_generation_call", "status": "completed", "action": action}
    return {"id": name, **fixed, **job.looks, "revised_prompt": revised, **result}


RESPONSE_DEFAULTS: Fields = {
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": "none", "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def response_document(exchange: Exchange, body: Fields, job: Job, plan: Plan) -> Fields:
    """A finished response."""
    now = int(time.time())
    output = [call_item(exchange, job, index, plan.action) for index in range(job.total)]
    if plan.text:
        opening = "Here is what I made of it" if output else "In words"
        output.append(message_item(exchange, f"{opening}: {job.prompt.strip()[:80]}"))
    hidden = "input_image_mask"
    tools = [{name: tool[name] for name in tool if name != hidden} for tool in body.get("tools", [])]
    words = 20 + len(job.prompt) // 4
    usage = {
        "input_tokens": words,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 40 * len(output),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": words + 40 * len(output),
    }
    fixed: Fields = {"object": "response", "created_at": now, "completed_at": now, "status": "completed"}
    echoed = {name: body.get(name, default) for name, default in RESPONSE_DEFAULTS.items()}
    fixed.update(background=body.get("background", False), model=body["model"], tools=tools, output=output, usage=usage)
    return {"id": exchange.name("resp_"), **fixed, **echoed}


def call_events(exchange: Exchange, item: Fields, index: int) -> Iterator[Fields]:
    """The events of one call of the image tool; no picture in them but the previews."""
    place = {"output_index": index, "item_id": item["id"]}
    word = "response.image_generation_call"
    begun = {"id": item["id"], "type": item["type"], "status": "in_progress", "result": None}
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield {"type": f"{word}.in_progress", **place}
    yield {"type": f"{word}.generating", **place}
    looks: Fields = {name: item[name] for name in ("background", "output_format", "quality", "size") if name in item}
    for partial, preview in enumerate(exchange.previews.get(item["id"], [])):
        hole = {"partial_image_index": partial, "partial_image_b64": exchange.studio.hole(preview)}
        yield {"type": f"{word}.partial_image", **place, **hole, **looks}
    yield {"type": f"{word}.completed", **place}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def message_events(item: Fields, index: int) -> Iterator[Fields]:
    """The events of a message, be it text or a refusal."""
    part = item["content"][0]
    kind = "refusal" if part["type"] == "refusal" else "text"
    word = "response.refusal" if kind == "refusal" else "response.output_text"
    place = {"output_index": index, "item_id": item["id"], "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield {"type": "response.content_part.added", **place, "part": {**part, kind: ""}}
    text = part[kind]
    more: Fields = {"logprobs": []} if kind == "text" else {}
    for start in range(0, len(text), 24):
        yield {"type": f"{word}.delta", **place, "delta": text[start : start + 24], **more}
    yield {"type": f"{word}.done", **place, kind: text, **more}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def unfinished(document: Fields, status: str) -> Fields:
    """A response before it is finished."""
    return {**document, "status": status, "output": [], "usage": None, "completed_at": None, "error": None}


def response_events(exchange: Exchange, document: Fields) -> list[Fields]:
    """The event stream of a response."""
    first = "queued" if document["background"] else "in_progress"
    events: list[Fields] = [{"type": "response.created", "response": unfinished(document, first)}]
    if document["background"]:
        events.append({"type": "response.queued", "response": unfinished(document, "queued")})
    events.append({"type": "response.in_progress", "response": unfinished(document, "in_progress")})
    for index, item in enumerate(document["output"]):
        events += call_events(exchange, item, index) if "content" not in item else message_events(item, index)
    events.append({"type": f"response.{document['status']}", "response": document})
    return events


def to_previews(events: list[Fields]) -> list[Fields]:
    """The events up to the last preview, or up to the first that tells of an end."""
    names = [event.get("type", "") for event in events]
    previews = [number for number, name in enumerate(names) if name.endswith("partial_image")]
    endings = [number for number, name in enumerate(names) if name.endswith((".completed", "output_item.done"))]
    return events[: previews[-1] + 1] if previews else events[: (endings or [1])[0]]


def chat_document(exchange: Exchange, job: Job) -> Fields:
    """The reply of a chat relay: pictures beside the words, as data URLs."""
    images = []
    for index in range(job.total):
        url = exchange.scenario.address(exchange, keep(exchange, paint(job, index)))
        images.append({"type": "image_url", "image_url": {"url": url}, "index": index})
    text = "Here is your picture."
    message = {"role": "assistant", "content": text, "refusal": None, "images": images}
    words = 1 + len(job.prompt) // 4
    return {
        "id": exchange.name("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": job.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words, "completion_tokens": 1300, "total_tokens": words + 1300},
    }


def chat_events(document: Fields) -> list[Fields]:
    """The event stream of a chat relay."""
    message = document["choices"][0]["message"]
    content = message["content"]
    deltas: list[Fields] = [{"role": "assistant", "content": ""}]
    if isinstance(content, str):
        deltas += [{"content": text} for text in re.split(r"(?<=\n\n)", content)]
    else:
        deltas.append({"content": content})
    if message.get("images"):
        deltas.append({"images": message["images"]})
    shared = {**document, "object": "chat.completion.chunk"}
    shared.pop("usage", None)
    events = [{**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**shared, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return events + ([{**shared, "choices": [], "usage": document["usage"]}] if "usage" in document else [])


# ----------------------------------------------------------------------------------------------------------- rendering


def render(exchange: Exchange, document: Any, indent: int | None = None) -> list[Piece]:
    """JSON text with the base64 of pictures put in where holes are."""
    change, mangle = exchange.scenario.text, exchange.scenario.base64
    pieces = []
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    for part in re.split(f"(hole-{exchange.studio.nonce}-\\d+-)", text):
        picture = exchange.studio.holes.get(part)
        if picture is None:
            pieces.append(Piece(change(part.encode())))
        elif mangle:
            pieces.append(Piece(change(mangle(b"".join(picture.texts), picture)), picture=True))
        else:
            pieces += [Piece(change(text), picture=True) for text in picture.texts]
    return pieces


def render_events(exchange: Exchange, events: list[Fields], names: bool) -> list[Piece]:
    """Events as lines (https://html.spec.whatwg.org/#event-stream-interpretation)."""
    style = exchange.scenario.sse
    comment = style.comment + style.newline if style.comment else b""
    done = style.done or not names  # a chat stream ends so always
    pieces = []
    for number, event in enumerate(events):
        last = number == len(events) - 1 and not done
        head = comment
        if names and style.names and "type" in event:
            head += b"event: " + event["type"].encode() + style.newline + comment
        pieces.append(Piece(head + b"data: ", event=True))
        for piece in render(exchange, event):
            # A line end inside the data takes another "data:" line.
            pieces.append(piece._replace(data=piece.data.replace(b"\n", style.newline + b"data: ")))
        pieces.append(Piece(style.newline + comment + (b"" if last and not style.last_gap else style.gap)))
    if done:
        pieces.append(Piece(b"data: [DONE]" + style.newline + style.gap))
    return pieces


def json_reply(exchange: Exchange, document: Any) -> Reply:
    """A JSON reply."""
    return Reply(200, (("Content-Type", "application/json"),), render(exchange, document, 2))


def sse_reply(exchange: Exchange, events: list[Fields], names: bool = True) -> Reply:
    """An event stream."""
    headers = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))
    return Reply(200, headers, render_events(exchange, events, names), framing="chunked")


# --------------------------------------------------------------------------------------------------------------- routes


def data_input(param: str, url: str, formats: Sequence[str]) -> Input:
    """The picture in a data URL, which must be what it says."""
    head, _, text = url.partition(",")
    match = re.fullmatch(r"data:(image/[a-z+]+);base64", head)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        match, data = None, b""
    look = pictures.measure(data)
    if match is None or look is None or match[1] != f"image/{look.format}" or look.format not in formats:
        known = ", ".join(formats)
        raise invalid(param, f"Invalid '{param}'. Expected a base64 data URL of an image ({known}).", FILE)
    return Input(param, hashlib.sha256(data).hexdigest(), len(data), look)


def reference(param: str, fields: Fields, formats: Sequence[str]) -> Input:
    """A picture named by URL or file id; exactly one of them."""
    names = [name for name in ("image_url", "file_id") if fields.get(name) is not None]
    if len(names) != 1:
        raise invalid(param, f"Invalid '{param}': exactly one of image_url and file_id is required.")
    value, path = fields[names[0]], f"{param}.{names[0]}"
    if names[0] == "image_url" and value.startswith("data:"):
        return data_input(path, value, formats)
    if not re.match(r"https?://[^/\s]+" if names[0] == "image_url" else r"file-\S+$", value):
        raise invalid(path, f"Invalid '{path}'. Expected a valid URL or file id, but got '{value[:80]}'.")
    return Input(path, hashlib.sha256(value.encode()).hexdigest(), 0)


FILE_TYPES = ("image/png", "image/jpeg", "image/webp")


def file_input(part: Part) -> Input:
    """The picture in a form; its content type must be real."""
    if part.filename is None or not part.filename:
        raise invalid(part.name, f"Invalid type for '{part.name}': expected a file, but got a string instead.")
    look, said = part.look, part.content_type or "application/octet-stream"
    real = f"image/{look.format}" if look else "application/octet-stream"
    if said not in FILE_TYPES or said != real:
        found = real if said in FILE_TYPES else said
        message = f"Invalid file '{part.filename}': unsupported mimetype ('{found}')."
        message += " Supported file formats are 'image/jpeg', 'image/png', and 'image/webp'."
        raise invalid(part.name, message, "unsupported_file_mimetype")
    return Input(part.name, part.sha256, part.size, look)


def form_value(text: str, kind: Kind) -> Any:
    """A form field as the type it stands for, in its canonical spelling only."""
    if kind.type is int and re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    if kind.type is bool and text in ("true", "false"):
        return text == "true"
    return text


def form_fields(parts: Iterable[Part]) -> Fields:
    """The text fields of a form, each at most once."""
    fields: Fields = {}
    for part in parts:
        if part.name in fields:
            raise invalid(part.name, f"Duplicate parameter: '{part.name}'.", "duplicate_parameter")
        if part.name not in FORM_FIELDS:
            raise invalid(part.name, f"Unknown parameter: '{part.name}'.", "unknown_parameter")
        fields[part.name] = form_value(part.value or "", FORM_FIELDS[part.name])
    return check_fields(fields, FORM_FIELDS)


def ask_of_form(form: list[Part]) -> Ask:
    """An edit that came as a form."""
    groups: dict[str, list[Part]] = {"image": [], "mask": [], "markup": [], "": []}
    for part in form:
        name = "image" if re.fullmatch(r"image(\[\d*\])?", part.name) else part.name
        groups[name if name in groups else ""].append(part)
    fields = form_fields(groups[""])
    require(fields, "model", "prompt")
    if fields.pop("svg[reasoning][effort]", None) or fields.get("svg[model]"):
        fields["svg"] = {"model": fields.pop("svg[model]", None)}
    for name in ("mask", "markup"):
        if len(groups[name]) > 1:
            raise invalid(name, f"Duplicate parameter: '{name}'.", "duplicate_parameter")
    # Some gateways make the mask themselves when the field holds this word.
    masks = [file_input(part) for part in groups["mask"] if part.filename is not None or part.value != "auto"]
    markups = [file_input(part) for part in groups["markup"]]
    ask = Ask("edits", fields, model_row(fields["model"]), fields.get("stream", False))
    ask.inputs = [file_input(part) for part in groups["image"]]
    ask.mask, ask.markup = next(iter(masks), None), next(iter(markups), None)
    return ask


def short_reference(param: str, fields: Fields) -> Input:
    """A reference whose URL has at most the documented length."""
    length = len(fields.get("image_url") or "")
    if length > 20_971_520:
        path = f"{param}.image_url"
        raise invalid(path, f"Invalid '{path}': string too long, {length} characters.", "string_above_max_length")
    return reference(param, fields, ("png", "jpeg", "webp"))


def ask_of_json(route: str, body: Any) -> Ask:
    """A generation, or an edit that came as JSON."""
    fields = check_fields(body, EDIT_FIELDS if route == "edits" else GENERATION_FIELDS)
    require(fields, "model", "prompt")
    ask = Ask(route, fields, model_row(fields["model"]), fields.get("stream", False))
    for number, image in enumerate(fields.get("images", [])):
        path = f"images[{number}]"
        ask.inputs.append(short_reference(path, check_fields(image, REFERENCE_FIELDS, path + ".")))
    if "mask" in fields:
        ask.mask = short_reference("mask", fields["mask"])
    return ask


def images_route_reply(exchange: Exchange, route: str) -> Reply:
    """POST /images/generations and POST /images/edits."""
    form = exchange.request.form
    if form is not None and route != "edits":
        raise refusal(400, "Unsupported content type: 'multipart/form-data'.")
    ask = ask_of_form(form) if form is not None else ask_of_json(route, exchange.request.json)
    if route == "edits" and not ask.inputs:
        name = "image" if form is not None else "images"
        raise invalid(name, f"Missing required parameter: '{name}'.", "missing_required_parameter")
    check_rules(ask)
    inputs = [each.sha256 for each in (*ask.inputs, ask.mask, ask.markup) if each]
    job = exchange.scenario.job(job_of(ask, ask.get("model"), ask.get("prompt"), ask.get("n", 1), inputs))
    document = exchange.scenario.document(exchange, images_document(exchange, job, ask.fields))
    if ask.stream if exchange.scenario.stream is None else exchange.scenario.stream:
        return sse_reply(exchange, exchange.scenario.events(exchange, images_events(exchange, job, document)))
    return json_reply(exchange, document)


class Talk(NamedTuple):
    """What an input says: the last user's words, its pictures, and earlier calls it refers to."""

    words: str
    inputs: list[Input]
    calls: list[str]


def read_part(path: str, part: Any, talk: Talk) -> str:
    """Check one content part; returns its text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in PART_FIELDS:
        known = ", ".join(f"'{name}'" for name in PART_FIELDS)
        raise invalid(f"{path}.type", f"Invalid value: '{kind}'. Supported values are: {known}.")
    fields = check_fields(part, PART_FIELDS[kind], path + ".")
    if kind == "input_image":
        picture = {name: fields[name] for name in REFERENCE_FIELDS if name in fields}
        talk.inputs.append(reference(path, picture, ("png", "jpeg", "webp", "gif")))
        return ""
    require(fields, "text", path=path + ".")
    return str(fields["text"])


def read_item(studio: Studio, path: str, item: Any, talk: Talk) -> Talk:
    """Check one input item: a message, or an earlier call of the image tool by its id."""
    if isinstance(item, dict) and item.get("type") == "image_generation_call":
        name = check_fields(item, CALL_FIELDS, path + ".").get("id")
        if name not in studio.items:
            raise refusal(404, f"Item with id '{name}' not found.", None, param="input")
        return talk._replace(calls=[*talk.calls, str(name)])
    fields = check_fields(item, MESSAGE_FIELDS, path + ".")
    require(fields, "role", "content", path=path + ".")
    content = fields["content"]
    if isinstance(content, str):
        words = content
    else:
        check_value(f"{path}.content", content, Kind("an array", list, 1))
        words = "\n".join(read_part(f"{path}.content[{i}]", part, talk) for i, part in enumerate(content))
    return talk._replace(words=words) if fields["role"] == "user" else talk


def read_input(studio: Studio, given: Any) -> Talk:
    """Check the `input` of a response."""
    if isinstance(given, str):
        check_value("input", given, WORD)
        return Talk(given, [], [])
    check_value("input", given, Kind("a string or an array", list, 1))
    talk = Talk("", [], [])
    for number, item in enumerate(given):
        talk = read_item(studio, f"input[{number}]", item, talk)
    return talk


def image_tool(tools: list[Any]) -> tuple[str, Fields] | None:
    """The image tool among the tools, with its path; other tools pass unchecked."""
    for number, tool in enumerate(tools):
        if isinstance(tool, dict) and tool.get("type") == "image_generation":
            path = f"tools[{number}]."
            return path, check_fields(tool, TOOL_FIELDS, path)
        if not isinstance(tool, dict) or "type" not in tool:
            raise invalid(f"tools[{number}].type", f"Missing required parameter: 'tools[{number}].type'.")
    return None


def tool_mode(chosen: Any, with_tool: bool) -> str:
    """Whether the image tool is forced, free or forbidden by `tool_choice`."""
    if chosen in ("auto", "none", "required"):
        return str(chosen)
    one = {"type": "image_generation"}
    if chosen == one:
        mode = "required"
    elif isinstance(chosen, dict) and chosen.get("type") == "allowed_tools" and one in chosen.get("tools", []):
        mode = check_fields(chosen, ALLOWED_FIELDS, "tool_choice.").get("mode", "auto")
    else:
        raise invalid("tool_choice", f"Invalid value for 'tool_choice': {json.dumps(chosen)[:80]}.")
    if not with_tool:
        raise invalid("tool_choice", "Tool choice 'image_generation' not found in 'tools' parameter.")
    return str(mode)


NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, **{str(number): number for number in range(1, 10)}}


def plan_of(words: str, mode: str, action: str, pictures_in: bool) -> Plan:
    """Decide as a text model might: "three pictures", "only text" and "text and picture" are understood."""
    match = re.search(r"\b(\w+) (?:pictures?|images?)\b", words.lower())
    count = min(5, NUMBERS.get(match[1], 1)) if match else 1
    if mode == "none" or (mode == "auto" and "only text" in words.lower()):
        return Plan(0, True, action)
    if action == "auto":
        action = "edit" if pictures_in else "generate"
    return Plan(count, mode == "auto" or "text and picture" in words.lower(), action)


def check_metadata(metadata: Fields) -> None:
    """Refuse more than 16 pairs, and what is not a short string."""
    good = all(isinstance(value, str) and len(value) <= 512 and len(name) <= 64 for name, value in metadata.items())
    if len(metadata) > 16 or not good:
        raise invalid("metadata", "Invalid 'metadata': at most 16 pairs of strings of 64 and 512 characters.")


def check_response(studio: Studio, fields: Fields) -> None:
    """Refuse what only the top level of a response can get wrong."""
    require(fields, "model", "input")
    check_metadata(fields.get("metadata", {}))
    if model_row(fields["model"]).known:
        message = f"The model '{fields['model']}' is not supported with the Responses API; use it in the tool."
        raise invalid("model", message, "unsupported_model")
    previous = fields.get("previous_response_id")
    if previous is not None and previous not in studio.responses:
        message = f"Previous response with id '{previous}' not found."
        raise invalid("previous_response_id", message, "previous_response_not_found")
    if fields.get("background") and fields.get("store") is False:
        raise invalid("background", "Background mode requires store to be true.")


def ask_of_response(studio: Studio, fields: Fields, talk: Talk, tool: tuple[str, Fields] | None) -> Ask:
    """What a response asks of the image tool."""
    path, settings = tool or ("", {})
    ask = Ask("responses", settings, model_row(settings.get("model", TOOL_MODEL)), fields.get("stream", False), path)
    ask.inputs = talk.inputs
    ask.context = bool(talk.calls or fields.get("previous_response_id"))
    if "input_image_mask" in settings:
        ask.mask = reference(f"{path}input_image_mask", settings["input_image_mask"], ("png", "jpeg", "webp", "gif"))
    check_rules(ask)
    return ask


def response_reply(exchange: Exchange) -> Reply:
    """POST /responses."""
    studio, scenario = exchange.studio, exchange.scenario
    fields = check_fields(exchange.request.json, RESPONSE_FIELDS)
    check_response(studio, fields)
    talk = read_input(studio, fields["input"])
    tool = image_tool(fields.get("tools", []))
    mode = tool_mode(fields.get("tool_choice", "auto"), tool is not None)
    ask = ask_of_response(studio, fields, talk, tool)
    plan = plan_of(talk.words, mode if tool else "none", ask.get("action", "auto"), bool(talk.inputs))
    seeds = [each.sha256 for each in (*talk.inputs, ask.mask) if each] + talk.calls
    if fields.get("previous_response_id"):
        seeds.append(studio.responses[fields["previous_response_id"]].prompt)
    model = ask.get("model", TOOL_MODEL)
    job = job_of(ask, model, talk.words, plan.pictures, seeds)
    job = scenario.job(job) if plan.pictures else job
    document = scenario.document(exchange, response_document(exchange, fields, job, plan))
    events = response_events(exchange, document)
    if scenario.end:
        document = {**document, "output": [], **scenario.end}
        events = [*to_previews(events), {"type": f"response.{document['status']}", "response": document}]
    events = [{**event, "sequence_number": number} for number, event in enumerate(scenario.events(exchange, events))]
    stored = Stored(document, events, ask.stream, talk.words, 0)
    if document["background"]:
        stored.polls = studio.polls if scenario.polls is None else scenario.polls
    if fields.get("store", True):
        studio.responses[document["id"]] = stored
    if ask.stream if scenario.stream is None else scenario.stream:
        return sse_reply(exchange, events)
    return json_reply(exchange, unfinished(document, "queued") if document["background"] else document)


def stored_response(studio: Studio, name: str) -> Stored:
    """A stored response, or 404."""
    stored = studio.responses.get(urllib.parse.unquote(name))
    if stored is None:
        raise refusal(404, f"Response with id '{name}' not found.", None)
    return stored


def stored_reply(exchange: Exchange, name: str, query: str) -> Reply:
    """GET /responses/{id}: how it stands, or its events from some number on."""
    stored = stored_response(exchange.studio, name)
    options = dict(urllib.parse.parse_qsl(query))
    if options.get("stream") == "true":
        if not stored.streamed:
            raise invalid("stream", "This response was not created with stream=true.")
        after = form_value(options.get("starting_after", "-1"), whole(-1, 1 << 60))
        check_value("starting_after", after, whole(-1, 1 << 60))
        return sse_reply(exchange, [event for event in stored.events if event["sequence_number"] > after])
    if stored.cancelled:
        return json_reply(exchange, unfinished(stored.document, "cancelled"))
    if stored.polls > 0:
        stored.polls -= 1
        return json_reply(exchange, unfinished(stored.document, "in_progress"))
    return json_reply(exchange, stored.document)


def cancel_reply(exchange: Exchange, name: str) -> Reply:
    """POST /responses/{id}/cancel, which may be repeated."""
    stored = stored_response(exchange.studio, name)
    if not stored.document["background"]:
        raise refusal(400, "Cannot cancel a synchronous response.")
    stored.cancelled = stored.cancelled or stored.polls > 0
    status = unfinished(stored.document, "cancelled") if stored.cancelled else stored.document
    return json_reply(exchange, status)


def chat_parts(messages: list[Any]) -> tuple[str, list[str]]:
    """The text of the last message, and the hashes of all pictures in the messages."""
    text, inputs = "", []
    for number, message in enumerate(messages):
        path = f"messages[{number}].content"
        content = check_fields(message, CHAT_MESSAGE_FIELDS, f"messages[{number}].").get("content", "")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = ""
        for part in parts:
            fields = check_fields(part, CHAT_PART_FIELDS, path + ".")
            text += fields.get("text", "")
            if "image_url" in fields:
                url = {"image_url": fields["image_url"].get("url")}
                inputs.append(reference(path, url, ("png", "jpeg", "webp", "gif")).sha256)
    return text, inputs


def chat_reply(exchange: Exchange) -> Reply:
    """POST /chat/completions, as relays offer it; fields the relay does not know pass."""
    body = exchange.request.json
    check_value("body", body, OBJECT)
    check_fields({name: value for name, value in body.items() if name in CHAT_FIELDS}, CHAT_FIELDS)
    require(body, "model", "messages")
    text, inputs = chat_parts(body["messages"])
    known = {name: body[name] for name in ("size", "quality", "background", "output_format") if name in body}
    ask = Ask("chat", {name: value for name, value in known.items() if isinstance(value, str)}, MODELS[-1])
    count = body["n"] if type(body.get("n")) is int and 1 <= body["n"] <= 10 else 1
    job = exchange.scenario.job(job_of(ask, body["model"], text, count, inputs))
    document = exchange.scenario.document(exchange, chat_document(exchange, job))
    if body.get("stream", False) if exchange.scenario.stream is None else exchange.scenario.stream:
        return sse_reply(exchange, exchange.scenario.events(exchange, chat_events(document)), names=False)
    return json_reply(exchange, document)


def models_reply(exchange: Exchange) -> Reply:
    """GET /models."""
    names = [name for row in MODELS if row.known and not row.dead for name in row.names]
    fixed = {"object": "model", "created": 1_776_000_000, "owned_by": "system"}
    data = [{"id": name, **fixed} for name in (*names, *TEXT_MODELS)]
    return json_reply(exchange, {"object": "list", "data": data})


ROUTES: dict[tuple[str, str], Callable[[Exchange], Reply]] = {
    ("POST", "/images/generations"): lambda exchange: images_route_reply(exchange, "generations"),
    ("POST", "/images/edits"): lambda exchange: images_route_reply(exchange, "edits"),
    ("POST", "/responses"): response_reply,
    ("POST", "/chat/completions"): chat_reply,
    ("GET", "/models"): models_reply,
}


def route_reply(exchange: Exchange, path: str, query: str) -> Reply:
    """Find the route; `path` is without /v1."""
    method = exchange.request.method
    if (method, path) in ROUTES:
        return ROUTES[method, path](exchange)
    match = re.fullmatch(r"/responses/([^/]+)(/cancel)?", path)
    if match and method == ("POST" if match[2] else "GET"):
        return cancel_reply(exchange, match[1]) if match[2] else stored_reply(exchange, match[1], query)
    status = 405 if any(path == known for _, known in ROUTES) else 404
    raise refusal(status, f"Invalid URL ({method} /v1{path})")


# ---------------------------------------------------------------------------------------------- scenarios: what they do

Deed = Callable[[Exchange], None]


def fails(status: int, message: str, code: str | None = None, headers: Pairs = (), **more: Any) -> Deed:
    """Answer with an error object."""

    def deed(exchange: Exchange) -> None:
        raise refusal(status, message, code, headers, **more)

    return deed


def shows(status: int, content_type: str, body: bytes, headers: Pairs = ()) -> Deed:
    """Answer with these bytes."""

    def deed(exchange: Exchange) -> None:
        raise Answer(page(status, content_type, body, headers))

    return deed


def limited_until(exchange: Exchange) -> None:
    """Answer 429 with a date a second ahead."""
    date = email.utils.formatdate(math.ceil(time.time()) + 1, usegmt=True)
    raise refusal(429, "Rate limit reached.", "rate_limit_exceeded", (("Retry-After", date),), type="requests")


def echoes_key(status: int) -> Deed:
    """Answer with an error that repeats the key, in its text and in a header."""

    def deed(exchange: Exchange) -> None:
        key = exchange.studio.key
        message = f"Incorrect API key provided: {key}. Header was 'Authorization: Bearer {key}'."
        raise refusal(status, message, "invalid_api_key", (("X-Debug-Authorization", f"Bearer {key}"),))

    return deed


def redirects(status: int, same_origin: bool = False) -> Deed:
    """Redirect to the second origin, or to another path of the first."""

    def deed(exchange: Exchange) -> None:
        studio = exchange.studio
        place = studio.own.origin + "/moved" if same_origin else studio.elsewhere.origin
        raise Answer(page(status, "text/plain", b"", (("Location", place + exchange.request.path),)))

    return deed


def early(status: int, message: str, code: str | None) -> Deed:
    """Answer and close while the body is on its way."""

    def deed(exchange: Exchange) -> None:
        incoming, request = exchange.incoming, exchange.request
        while request.body_bytes < min(1 << 16, exchange.length // 2) and (incoming.buffer or incoming.more()):
            request.body_bytes += len(incoming.buffer)
            incoming.buffer = b""
        raise Answer(refusal(status, message, code).reply._replace(close=True))

    return deed


def hang_up(exchange: Exchange) -> None:
    """Close the connection."""
    raise Gone


def reset(exchange: Exchange) -> None:
    """Close the connection so that the client sees a reset."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    exchange.incoming.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raise Gone


def hang(exchange: Exchange) -> None:
    """Never answer."""
    exchange.wait(None)


def late_error(exchange: Exchange) -> None:
    """Answer 200 before it is known that all goes wrong."""
    body = json.dumps(envelope("The server had an error while painting.", "server_error", "server_error")).encode()
    raise Answer(page(200, "application/json", body)._replace(framing="chunked"))


def stop_in(number: int, hangs: bool = False) -> Callable[[Exchange, Reply], Iterator[bytes]]:
    """Send up to the middle of a picture (the last when there are fewer), then close or hang."""

    def send(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
        left = min(number, sum(piece.picture for piece in reply.pieces))
        for piece in reply.pieces:
            left -= piece.picture
            if piece.picture and left == 0:
                yield piece.data[: len(piece.data) // 2]
                exchange.wait(None if hangs else 0)
                raise Gone
            yield piece.data

    return send


def stop_after_pictures(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send up to the end of the last picture, then close."""
    last = max((number for number, piece in enumerate(reply.pieces) if piece.picture), default=len(reply.pieces))
    for piece in reply.pieces[: last + 1]:
        yield piece.data
    if last < len(reply.pieces):
        raise Gone


def stop_after_events(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send a few events of a POST, then close; what a GET asks for later comes whole."""
    left = 4
    for piece in reply.pieces:
        left -= piece.event
        if left < 0 and exchange.request.method == "POST":
            raise Gone
        yield piece.data


def tiny_pieces(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send a few bytes at a time, in sizes that change."""
    body, at, size = b"".join(piece.data for piece in reply.pieces), 0, 1
    while at < len(body):
        yield body[at : at + size]
        at, size = at + size, size % 61 + 7


def blank_first(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send some blank lines, one by one, and then the body."""
    for _ in range(5):
        yield b"\n"
        exchange.wait(0.002)
    for piece in reply.pieces:
        yield piece.data


def alive_first(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send a comment (or before JSON a blank line) again and again for the gateway's delay, then the body."""
    sign = b": keep-alive\n\n" if any(piece.event for piece in reply.pieces) else b"\n"
    for _ in range(10):
        yield sign
        exchange.wait(exchange.studio.delay / 10)
    for piece in reply.pieces:
        yield piece.data


def in_chunks(exchange: Exchange, reply: Reply) -> Reply:
    """Leave the length open."""
    return reply._replace(framing="chunked")


def zipped(exchange: Exchange, reply: Reply) -> Reply:
    """Compress the body although nobody asked for it."""
    body = gzip.compress(b"".join(piece.data for piece in reply.pieces), 1)
    return reply._replace(headers=(*reply.headers, ("Content-Encoding", "gzip")), pieces=[Piece(body)])


def with_mark(exchange: Exchange, reply: Reply) -> Reply:
    """Put a byte order mark first."""
    return reply._replace(pieces=[Piece(b"\xef\xbb\xbf"), *reply.pieces])


def with_interim(exchange: Exchange, reply: Reply) -> Reply:
    """Send interim replies first."""
    processing = b"HTTP/1.1 102 Processing\r\n\r\n"
    return reply._replace(interim=b"HTTP/1.1 103 Early Hints\r\nLink: </>; rel=preload\r\n\r\n" + 2 * processing)


def with_evil_names(exchange: Exchange, reply: Reply) -> Reply:
    """Name files so that a careless client writes outside its folder."""
    names = (("Content-Disposition", 'attachment; filename="../../evil.png"'), ("X-Request-Id", "../../evil"))
    return reply._replace(headers=(*reply.headers, *names))


def repaint(form: str = "", size: tuple[int, int] | None = None) -> Callable[[bytes], bytes]:
    """Paint in another format or size than was asked for."""

    def data(before: bytes) -> bytes:
        look = pictures.measure(before) or pictures.Measure("png", 1024, 1024, False)
        return pictures.picture(before[-64:], form or look.format, *(size or (look.width, look.height)))

    return data


def long_name(name: str) -> str:
    """An id as some gateways make them, with characters that mean something in a URL."""
    return (name + base64.b64encode(hashlib.shake_256(name.encode()).digest(300)).decode())[:398] + "=="


def break_lines(text: bytes, end: bytes) -> bytes:
    """Break base64 after every 76 characters."""
    return end.join(text[at : at + 76] for at in range(0, len(text), 76))


def spoil(text: bytes, picture: Picture) -> bytes:
    """Put a character that is not base64 into the second picture, or the first if there is but one."""
    half = len(text) // 2
    sound = picture.preview or picture.number != min(1, picture.total - 1)
    return text if sound else text[:half] + b"!" + text[half + 1 :]


def no_pictures(exchange: Exchange, document: Fields) -> Fields:
    """A success without a picture."""
    for option in document.get("choices", []):
        option["message"]["images"] = []
    return {**document, **{name: [] for name in ("data", "output") if name in document}}


def no_usage(exchange: Exchange, document: Fields) -> Fields:
    """A reply that does not say what it used."""
    return {name: value for name, value in document.items() if name != "usage"}


def tell_key(exchange: Exchange, document: Fields) -> Fields:
    """A reply that repeats the key in its texts."""
    text = f"Painted for {exchange.studio.key}."
    for item in (*document.get("data", []), *document.get("output", [])):
        item["revised_prompt"] = text
    for option in document.get("choices", []):
        option["message"]["content"] = text
    if "output" in document:
        document["output"].append(message_item(exchange, text))
    return document


def only_text(exchange: Exchange, document: Fields) -> Fields:
    """A model that talks instead of painting."""
    document = no_pictures(exchange, document)
    if "output" in document:
        document["output"] = [message_item(exchange, "I would rather talk.")]
    return document


def refuses(exchange: Exchange, document: Fields) -> Fields:
    """A model that refuses."""
    if "output" not in document:
        return no_pictures(exchange, document)
    item = message_item(exchange, "")
    item["content"] = [{"type": "refusal", "refusal": "I cannot help with a picture of that kind."}]
    return {**document, "output": [item]}


def still_generating(exchange: Exchange, document: Fields) -> Fields:
    """Finished pictures whose call says otherwise."""
    for item in document.get("output", []):
        item["status"] = "generating" if "result" in item else item["status"]
    return document


def evil_format(exchange: Exchange, document: Fields) -> Fields:
    """A format that is a path."""
    return {**document, "output_format": "../../evil"} if "data" in document else document


def chat_urls(document: Fields) -> tuple[Fields, list[str]]:
    """The message of a chat reply without its pictures, and their URLs."""
    message: Fields = document.get("choices", [{"message": {}}])[0]["message"]
    return message, [image["image_url"]["url"] for image in message.pop("images", [])]


def chat_markdown(exchange: Exchange, document: Fields) -> Fields:
    """Pictures as Markdown in the words of a chat reply."""
    message, urls = chat_urls(document)
    message["content"] = "Here it is.\n\n" + "\n\n".join(f"![picture {i + 1}]({url})" for i, url in enumerate(urls))
    return document


def chat_parts_reply(exchange: Exchange, document: Fields) -> Fields:
    """Pictures as content parts of a chat reply."""
    message, urls = chat_urls(document)
    message["content"] = [{"type": "text", "text": "Here it is."}]
    message["content"] += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return document


def then(*last: Fields) -> Callable[[Exchange, list[Fields]], list[Fields]]:
    """Previews, and then these events instead of the end."""
    return lambda exchange, events: [*to_previews(events), *last]


def without_items(exchange: Exchange, events: list[Fields]) -> list[Fields]:
    """No item is announced as done; all are in the completed response."""
    return [event for event in events if event.get("type") != "response.output_item.done"]


def items_twice(exchange: Exchange, events: list[Fields]) -> list[Fields]:
    """Every finished item comes twice."""
    return [event for event in events for _ in range(1 + (event.get("type") == "response.output_item.done"))]


def empty_at_end(exchange: Exchange, events: list[Fields]) -> list[Fields]:
    """The completed response has no output."""
    last = events[-1]
    return [*events[:-1], {**last, "response": {**last["response"], "output": []}}] if "response" in last else events


def web(address: Callable[[Exchange, Picture], str], both: bool = False) -> dict[str, Any]:
    """Columns of a row whose pictures come by URL on the Images and chat routes."""

    def deliver(exchange: Exchange, picture: Picture, name: str) -> Fields:
        hole = hole_field(exchange, picture, name)
        if name != "b64_json":
            return hole
        return {**(hole if both else {}), "url": address(exchange, picture)}

    return {"deliver": deliver, "address": address}


def named(name: str) -> dict[str, Any]:
    """Columns of a row whose pictures come in a field of another name."""
    return {"deliver": lambda exchange, picture, _: hole_field(exchange, picture, name)}


# ------------------------------------------------------------------------------------------------ scenarios: the table

LIMIT, SERVER = "Rate limit reached for images in organization org-stand-in.", "The server had an error. Sorry!"
LIMITED = {"code": "rate_limit_exceeded", "type": "requests"}
MODERATED: Fields = {
    "type": "image_generation_user_error",
    "moderation_details": {"moderation_stage": "input", "categories": ["violence"]},
}
TOP_ERROR = {
    "type": "error",
    "error": {"type": "image_generation_user_error", "code": "moderation_blocked", "message": "No.", "param": None},
}
FAILED: Fields = {"status": "failed", "error": {"code": "server_error", "message": SERVER}}
SSE_ERROR = {"type": "error", "code": "server_error", "message": SERVER, "param": None}
JSON_ERROR = json.dumps(envelope(SERVER, "server_error", "server_error")).encode()
NOISE = hashlib.shake_256(b"garbage").digest(3000)
REMARK = b': keepalive "still painting", {"not": "json"}'

SCENARIOS = (
    PLAIN,
    # -- turned away, with the error object
    Scenario("rate-limited-once", "429 with retry-after-ms: 20, once",
             fails(429, LIMIT, headers=(("retry-after-ms", "20"),), **LIMITED), times=1),
    Scenario("rate-limited-seconds", "429 with Retry-After: 1, once",
             fails(429, LIMIT, headers=(("Retry-After", "1"),), **LIMITED), times=1),
    Scenario("rate-limited-date", "429 with Retry-After: a date a second ahead, once", limited_until, times=1),
    Scenario("slow-down-once", "429 slow_down, once", fails(429, "Slow down.", "slow_down", type="requests"), times=1),
    Scenario("quota", "429 insufficient_quota",
             fails(429, "You exceeded your current quota.", "insufficient_quota", type="insufficient_quota")),
    Scenario("should-retry-false", "500 with x-should-retry: false",
             fails(500, SERVER, headers=(("x-should-retry", "false"),), type="server_error")),
    Scenario("should-retry-true", "400 with x-should-retry: true, once",
             fails(400, "Try again.", headers=(("x-should-retry", "true"),)), times=1),
    Scenario("fault-500-once", "500, once", fails(500, SERVER, type="server_error"), times=1),
    Scenario("fault-503-once", "503, once", fails(503, "Overloaded.", "overloaded", type="server_error"), times=1),
    Scenario("fault-408-once", "408, once", fails(408, "Request timeout."), times=1),
    Scenario("fault-409-once", "409, once", fails(409, "Conflict.", "conflict"), times=1),
    Scenario("fault-502", "502", fails(502, "Bad gateway.", type="server_error")),
    Scenario("fault-504", "504", fails(504, "Gateway timeout.", type="server_error")),
    Scenario("fault-524", "524 with a web page", shows(524, "text/html", HTML % b"A timeout occurred")),
    Scenario("bad-request", "400", fails(400, "Your request is wrong.", "invalid_value", param="prompt")),
    Scenario("moderation", "400 moderation_blocked with details",
             fails(400, "Your request was rejected by the safety system.", "moderation_blocked", **MODERATED)),
    Scenario("forbidden", "403", fails(403, "Your organization must be verified to use this model.", None)),
    Scenario("not-found", "404 model_not_found",
             fails(404, "The model does not exist or you do not have access to it.", "model_not_found", param="model")),
    # -- the connection
    Scenario("close-at-connect", "closes before it reads", hang_up, "connect"),
    Scenario("close-before-reply", "reads the request and closes", hang_up),
    Scenario("reset-before-reply", "reads the request and resets the connection", reset),
    Scenario("hang", "never answers", hang),
    Scenario("hang-in-mid-picture", "hangs in the first picture", send=stop_in(1, hangs=True)),
    Scenario("cut-in-mid-picture", "closes in the first picture", send=stop_in(1)),
    Scenario("cut-in-third-picture", "closes in the third picture, or the last", send=stop_in(3)),
    Scenario("cut-after-last-picture", "closes before the closing braces", send=stop_after_pictures),
    Scenario("short-content-length", "announces 64 bytes more than it sends",
             reply=lambda _, reply: reply._replace(missing=64, framing="length")),
    Scenario("chunked", "JSON without a length", reply=in_chunks),
    Scenario("trickle", "the body in tiny pieces", send=tiny_pieces),
    Scenario("interim-102", "103 and twice 102 before the answer", reply=with_interim),
    Scenario("gzip", "a compressed body", reply=zipped),
    Scenario("early-401", "401 while the upload goes on", early(401, "Invalid key.", "invalid_api_key"), "head"),
    Scenario("early-413", "413 while the upload goes on", early(413, "Too large.", None), "head"),
    Scenario("redirect", "307 to the second origin", redirects(307)),
    Scenario("redirect-302", "302 to the second origin", redirects(302)),
    Scenario("redirect-same-origin", "307 to another path", redirects(307, same_origin=True)),
    # -- replies that are something else
    Scenario("html-error", "502 with a web page", shows(502, "text/html", HTML % b"502 Bad Gateway")),
    Scenario("html-200", "200 with a web page", shows(200, "text/html", HTML % b"Welcome to nginx")),
    Scenario("error-in-200", "200 with an error object", shows(200, "application/json", JSON_ERROR)),
    Scenario("error-in-200-late", "200, blank lines, an error object", late_error, send=blank_first),
    Scenario("key-in-error", "401 that repeats the key", echoes_key(401)),
    Scenario("key-in-400", "400 that repeats the key", echoes_key(400)),
    Scenario("key-in-reply", "pictures, and the key in the texts", document=tell_key),
    Scenario("empty-body", "200 and nothing", shows(200, "application/json", b"")),
    Scenario("garbage", "200 and noise", shows(200, "application/json", NOISE)),
    # -- base64
    Scenario("escaped-slashes", "each / as \\/", text=lambda text: text.replace(b"/", b"\\/")),
    Scenario("unicode-escapes", "each + and = as \\u002B and \\u003d",
             text=lambda text: text.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d")),
    Scenario("base64-line-breaks", "\\n after every 76 characters", base64=lambda text, _: break_lines(text, b"\\n")),
    Scenario("base64-raw-newlines", "a line end after every 76 characters",
             base64=lambda text, _: break_lines(text, b"\n")),
    Scenario("base64-no-padding", "no = at the end", base64=lambda text, _: text.rstrip(b"=")),
    Scenario("base64-data-prefix", "data:image/…;base64, before the base64",
             base64=lambda text, picture: f"data:{media_type(picture.format)};base64,".encode() + text),
    Scenario("base64-bad-character", "a ! in the second picture, or the only one", base64=spoil),
    Scenario("base64-truncated", "ends early, one character after a group",
             base64=lambda text, _: text[: len(text) // 8 * 4 + 1]),
    # -- pictures
    Scenario("picture-truncated", "the first half of a picture", data=lambda data: data[: len(data) // 2]),
    Scenario("not-a-picture", "a text instead of a picture", data=lambda data: b"This is not a picture. " * 200),
    Scenario("wrong-format", "JPEG, whatever was asked for", data=repaint("jpeg")),
    Scenario("wrong-size", "640x480, whatever was asked for", data=repaint(size=(640, 480))),
    Scenario("no-picture", "success without a picture", document=no_pictures),
    Scenario("extra-pictures", "two more than asked for", job=lambda job: job._replace(total=job.total + 2)),
    Scenario("usage-missing", "no usage", document=no_usage),
    Scenario("path-trick", "ids and formats that are paths", ids=lambda name: "../../" + name, document=evil_format,
             reply=with_evil_names),
    Scenario("long-ids", "ids of 400 characters that need quoting in a URL",
             ids=long_name),
    Scenario("ten-20mb", "ten pictures of 20 MB", job=lambda job: job._replace(total=10, bytes=20 * MEGABYTE)),
    Scenario("stream-20mb", "three previews and a picture of 20 MB, as events", stream=True,
             job=lambda job: job._replace(partials=3, bytes=20 * MEGABYTE)),
    # -- pictures by URL
    Scenario("url", "url instead of base64", **web(own_url)),
    Scenario("url-elsewhere", "url on the second origin", **web(other_url)),
    Scenario("url-data", "url that is a data: URL", **web(data_url)),
    Scenario("url-and-b64", "url beside base64", **web(own_url, both=True)),
    Scenario("url-file", "url file:///etc/passwd", **web(file_url)),
    Scenario("url-not-picture", "url of a web page", **web(page_url)),
    Scenario("url-404", "url with nothing behind it", **web(missing_url)),
    Scenario("url-redirect", "url that redirects to the second origin", **web(redirecting_url)),
    Scenario("image-base64-field", "image_base64 instead of b64_json or result", **named("image_base64")),
    Scenario("b64-json-in-call", "b64_json instead of result", **named("b64_json")),
    # -- JSON and event streams
    Scenario("json-for-sse", "JSON although events were asked for", stream=False),
    Scenario("sse-for-json", "events although none were asked for", stream=True),
    Scenario("blank-lines-first", "blank lines, one by one, before the body", reply=in_chunks, send=blank_first),
    Scenario("bom", "a byte order mark before the body", reply=with_mark),
    Scenario("keep-alive", "comments or blank lines for the gateway's delay", reply=in_chunks, send=alive_first),
    Scenario("data-only", "no event: lines", sse=Sse(names=False)),
    Scenario("crlf", "events with CRLF", sse=Sse(newline=b"\r\n", gap=b"\r\n")),
    Scenario("comments", "comments with quotes before and after every line", sse=Sse(comment=REMARK)),
    Scenario("done", "[DONE] at the end", sse=Sse(done=True)),
    Scenario("single-newlines", "no blank line between events", sse=Sse(gap=b"")),
    Scenario("no-last-blank-line", "no blank line after the last event", sse=Sse(last_gap=False)),
    Scenario("no-final", "the stream ends after the previews", events=then()),
    Scenario("fewer-partials", "one preview at most", job=lambda job: job._replace(partials=min(1, job.partials))),
    Scenario("error-event-top", "previews, then an event with an error object", events=then(TOP_ERROR)),
    # -- responses
    Scenario("error-event-responses", "previews, then an event of type error", events=then(SSE_ERROR)),
    Scenario("response-failed", "previews, then response.failed", end=FAILED),
    Scenario("response-incomplete", "previews, then response.incomplete",
             end={"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
    Scenario("refusal", "a refusal instead of pictures", document=refuses),
    Scenario("text-only", "words instead of pictures", document=only_text),
    Scenario("status-generating", "finished pictures with status generating", document=still_generating),
    Scenario("empty-output", "response.completed with no output", events=empty_at_end),
    Scenario("only-completed", "pictures in response.completed only", events=without_items),
    Scenario("duplicate-items", "every finished item twice", events=items_twice),
    Scenario("stream-dropped", "closes after four events; the response is stored", send=stop_after_events),
    Scenario("background-stream-dropped", "the same; the events can be had from any number on", send=stop_after_events),
    Scenario("background-failed", "ends as failed", end=FAILED),
    Scenario("background-never", "in progress for ever", polls=1 << 60),
    # -- chat
    Scenario("chat-images", "pictures beside the message, which is the usual"),
    Scenario("chat-markdown", "Markdown with data: URLs", document=chat_markdown),
    Scenario("chat-markdown-link", "Markdown with http: URLs", document=chat_markdown, address=own_url),
    Scenario("chat-content-parts", "pictures as content parts", document=chat_parts_reply),
)  # fmt: skip
BY_NAME = {row.name: row for row in SCENARIOS}


def scenario_row(name: str) -> Scenario:
    """The row of this name, else an error that lists them all."""
    if name not in BY_NAME:
        raise ValueError(f"unknown scenario {name!r}; known: {', '.join(BY_NAME)}")
    return BY_NAME[name]


# ------------------------------------------------------------------------------------------------------- one connection


def check_key(exchange: Exchange) -> None:
    """Refuse a request without the gateway's key."""
    request, key = exchange.request, exchange.studio.key
    given = request.header("Authorization")
    if given == f"Bearer {key}" or request.header("api-key") == key:
        return
    if not given and not request.header("api-key"):
        raise refusal(401, "You didn't provide an API key. Use an Authorization header with Bearer auth.", None)
    raise refusal(401, f"Incorrect API key provided: {given[7:11]}****{given[-4:]}.", "invalid_api_key")


def read_length(request: Recorded) -> int:
    """The announced length of the body; a POST must have one."""
    lengths = [value for name, value in request.headers if name.lower() == "content-length"]
    chunked = bool(request.header("Transfer-Encoding"))
    if chunked or (request.method == "POST" and not lengths):
        raise Answer(refusal(411, "A request needs a Content-Length.", "length_required").reply._replace(close=True))
    if len(lengths) > 1 or not re.fullmatch(r"\d{1,15}", "".join(lengths) or "0"):
        raise Answer(refusal(400, "The Content-Length cannot be read.").reply._replace(close=True))
    return int(lengths[0]) if lengths else 0


def receive(exchange: Exchange) -> None:
    """Read the body, or answer early."""
    request, scenario = exchange.request, exchange.scenario
    exchange.length = read_length(request)
    if scenario.deed and scenario.stage != "body":
        scenario.deed(exchange)
    if request.header("Expect").lower() == "100-continue":
        exchange.incoming.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        read_body(request, exchange.incoming.body(exchange.length, request))
    except Answer as answer:
        # What may follow a broken body would be taken for the next request.
        raise Answer(answer.reply._replace(close=True)) from None


def api_reply(exchange: Exchange) -> Reply:
    """Answer a request under /v1: a canned reply, a refusal, the scenario's deed or the real thing."""
    studio = exchange.studio
    receive(exchange)
    with studio.lock:
        if studio.queue and exchange.request.method == "POST":
            return studio.queue.pop(0)
    check_key(exchange)
    if exchange.scenario.deed:
        exchange.scenario.deed(exchange)
    path, _, query = exchange.request.path.partition("?")
    return exchange.scenario.reply(exchange, route_reply(exchange, path[path.index("/v1") + 3 :], query))


def frame(reply: Reply, body: Iterator[bytes]) -> Iterator[bytes]:
    """The body with its chunk marks, if it has any."""
    for data in body:
        if reply.framing != "chunked" or not data:
            yield data
        for at in range(0, len(data) if reply.framing == "chunked" else 0, BLOCK):
            part = data[at : at + BLOCK]
            yield b"%x\r\n%b\r\n" % (len(part), part)
    if reply.framing == "chunked":
        yield b"0\r\n\r\n"


HEADERS = (("openai-processing-ms", "42"), ("openai-version", "2020-10-01"), ("x-ratelimit-remaining-requests", "499"))


def write(exchange: Exchange, reply: Reply, last: bool) -> None:
    """Send a reply; its head leaves together with the first bytes of its body."""
    known = {code.value: code.phrase for code in HTTPStatus}
    lines = [f"HTTP/1.1 {reply.status} {known.get(reply.status, 'Unknown')}"]
    own = (("date", email.utils.formatdate(usegmt=True)), ("x-request-id", exchange.studio.name("req_")), *HEADERS)
    given = {name.lower() for name, _ in reply.headers}
    pairs = (*reply.headers, *(pair for pair in own if pair[0] not in given))
    lines += [f"{name}: {value}" for name, value in pairs]
    if reply.framing == "length":
        lines.append(f"Content-Length: {sum(len(piece.data) for piece in reply.pieces) + reply.missing}")
    elif reply.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    lines += ["Connection: close"] if last else []
    head = reply.interim + "\r\n".join([*lines, "", ""]).encode("utf-8")
    sock = exchange.incoming.sock
    for data in frame(reply, exchange.scenario.send(exchange, reply)):
        sock.sendall(head + data if head else data)
        head = b""
    sock.sendall(head)


class Line:
    """One connection of one client, served until one side closes it."""

    def __init__(self, gateway: Gateway, origin: Origin, sock: socket.socket) -> None:
        self.gateway, self.origin, self.sock = gateway, origin, sock
        self.incoming = Incoming(sock)

    def run(self) -> None:
        """Serve requests; a client that goes away is no error."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.gateway.row.stage != "connect" or self.origin is self.gateway.elsewhere:
                while self.serve():
                    pass
        except (Gone, OSError):
            pass
        finally:
            self.gateway.forget(self.sock)

    def serve(self) -> bool:
        """Serve one request; False when the connection is done with."""
        head = self.incoming.head()
        if not head:
            return False
        try:
            request, old = read_head(head)
        except Answer as answer:
            request, old, reply = Recorded("?", "?", []), True, answer.reply
            exchange = Exchange(self.gateway.studio, self.incoming, request, PLAIN)
        else:
            self.origin.requests.append(request)
            exchange = Exchange(self.gateway.studio, self.incoming, request, PLAIN)
            reply = self.reply(exchange)
        if old and reply.framing == "chunked":
            reply = reply._replace(framing="close")
        last = old or reply.close or reply.missing > 0 or reply.framing == "close"
        last = last or request.header("Connection").lower() == "close"
        self.gateway.note(request, reply)
        write(exchange, reply, last)
        return not last

    def reply(self, exchange: Exchange) -> Reply:
        """Answer a request: pictures by name on both origins, the API on the first."""
        path = exchange.request.path
        try:
            if path.startswith(("/pictures/", "/redirect/")):
                return get_picture(exchange.studio, path)
            if self.origin is self.gateway.elsewhere or not path.startswith(("/v1/", "/moved/v1/")):
                with contextlib.suppress(Answer):
                    receive(exchange)
                raise refusal(404, f"Invalid URL ({exchange.request.method} {path})")
            if not path.startswith("/moved/"):
                exchange.scenario = self.gateway.use(exchange.request.header("X-Gateway-Scenario"))
            return api_reply(exchange)
        except Answer as answer:
            return answer.reply


# ------------------------------------------------------------------------------------------------------------- gateway


@final
class Gateway:
    """The stand-in gateway: its two ports, what it was asked, and what it painted."""

    def __init__(
        self,
        scenario: str = "plain",
        key: str = KEY,
        delay: float = 0.0,
        log: bool = False,
        port: int = 0,
        polls: int = 2,
    ) -> None:
        self.row = scenario_row(scenario)
        self.key, self.log = key, log
        self.own, self.elsewhere = Origin(port), Origin()
        self.url, self.origin, self.requests = self.own.url, self.own.origin, self.own.requests
        self.studio = Studio(key, delay, polls, self.own, self.elsewhere)
        self.connections = 0
        self._uses: dict[str, int] = {}
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._bell, self._wake = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def scenario(self) -> str:
        """The scenario in force; setting it starts its count afresh."""
        return self.row.name

    @scenario.setter
    def scenario(self, name: str) -> None:
        self.row = scenario_row(name)
        self._uses.pop(name, None)

    @property
    def posts(self) -> int:
        """How many POST requests came to API routes."""
        return sum(request.method == "POST" and request.path.startswith("/v1/") for request in self.requests)

    @property
    def pictures(self) -> list[bytes]:
        """The final pictures, in the order of painting."""
        return [b"".join(picture.parts) for picture in self.studio.painted if not picture.preview]

    @property
    def previews(self) -> list[bytes]:
        """The partial pictures, in the order of painting."""
        return [b"".join(picture.parts) for picture in self.studio.painted if picture.preview]

    @property
    def sums(self) -> list[str]:
        """The SHA-256 of the final pictures, without making copies of large ones."""
        sums = []
        for picture in self.studio.painted:
            digest = hashlib.sha256()
            for part in picture.parts:
                digest.update(part)
            sums += [] if picture.preview else [digest.hexdigest()]
        return sums

    def play(
        self,
        body: bytes | Sequence[bytes],
        status: int = 200,
        content_type: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
        length: int | None = -1,
    ) -> None:
        """Queue a raw reply for the next POST; `length` None leaves it open until the connection closes."""
        pieces = [Piece(data) for data in ([body] if isinstance(body, bytes) else body)]
        missing = 0 if length is None or length < 0 else length - sum(len(piece.data) for piece in pieces)
        framing = "close" if length is None else "length"
        pairs = (("Content-Type", content_type), *headers)
        with self.studio.lock:
            self.studio.queue.append(Reply(status, pairs, pieces, framing, missing))

    def use(self, asked: str) -> Scenario:
        """The scenario for one more request; one that is used up becomes the plain one."""
        if asked and asked not in BY_NAME:
            raise Answer(refusal(400, f"Unknown scenario '{asked}'.").reply._replace(close=True))
        row = BY_NAME[asked] if asked else self.row
        with self._lock:
            self._uses[row.name] = self._uses.get(row.name, 0) + 1
            return PLAIN if row.times and self._uses[row.name] > row.times else row

    def note(self, request: Recorded, reply: Reply) -> None:
        """Say on standard error what was asked and answered, if that is wanted."""
        if self.log:
            print(f"{request.method} {request.path} -> {reply.status}", file=sys.stderr, flush=True)

    def forget(self, sock: socket.socket) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(sock, None)
        sock.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in (self.own, self.elsewhere):
                selector.register(listener.listener, selectors.EVENT_READ, listener)
            selector.register(self._wake, selectors.EVENT_READ, None)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    self._take(key.data)

    def _take(self, origin: Origin) -> None:
        sock, _ = origin.listener.accept()
        thread = threading.Thread(target=Line(self, origin, sock).run, daemon=True)
        with self._lock:
            self.connections += origin is self.own
            self._open[sock] = thread
        thread.start()

    def close(self) -> None:
        """Stop at once: wake whoever waits, and end every connection; a second call does nothing."""
        if self.studio.closing.is_set():
            return
        self.studio.closing.set()
        self._bell.send(b"!")
        self._accepting.join()
        with self._lock:
            left = dict(self._open)
        for sock in left:
            with contextlib.suppress(OSError):  # its own thread may have closed it
                sock.shutdown(socket.SHUT_RDWR)
        for thread in left.values():
            thread.join(1)
        for each in (self.own.listener, self.elsewhere.listener, self._bell, self._wake):
            each.close()


# -------------------------------------------------------------------------------------------------------- command line

FIRST = 'python3 gpt_image.py generations "A lake at dawn" --output out/first.png'


def run_command(command: list[str], environ: dict[str, str]) -> int:
    """Run one command and return its exit code as a shell would."""
    if command[0] in ("python3", "python") and not shutil.which(command[0]):
        command = [sys.executable, *command[1:]]
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        print(f"tests.gateway: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue  # the command was interrupted too, and it ends in its own way


def serve(gateway: Gateway) -> int:
    """Say how to use the gateway, and serve until Ctrl-C."""
    print(f"export OPENAI_BASE_URL={gateway.url}")
    print(f"export OPENAI_API_KEY={gateway.key}")
    print(f"# then, for example:\n#   {FIRST}", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0


def main(argv: list[str] | None = None) -> int:
    """Read the command line; everything after `--` is a command to run."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    options, command = argv[:cut], argv[cut + 1 :]
    parser = argparse.ArgumentParser(prog="python3 -m tests.gateway", description="A stand-in for the GPT Image API.")
    parser.add_argument("--port", type=int, default=0, help="listen here; any free port by default")
    parser.add_argument("--scenario", default="plain", choices=BY_NAME, metavar="NAME", help="see --list")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="how long painting takes")
    parser.add_argument("--list", action="store_true", help="print the scenarios and stop")
    given = parser.parse_args(options)
    if given.list:
        print("\n".join(f"{row.name:26} {row.line}" for row in SCENARIOS))
        return 0
    with Gateway(given.scenario, delay=given.delay, log=not command, port=given.port) as gateway:
        if not command:
            return serve(gateway)
        own = {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": gateway.key}
        for name in ("NO_PROXY", *(["no_proxy"] if "no_proxy" in os.environ else [])):
            own[name] = ",".join(filter(None, (os.environ.get(name, ""), "127.0.0.1")))
        return run_command(command, {**os.environ, **own})


if __name__ == "__main__":
    raise SystemExit(main())
