"""A stand-in for the GPT Image API on this machine: no key, no cost, and every mishap on demand.

    python3 -m tests.gateway                              serve, and print what to export
    python3 -m tests.gateway --scenario quota -- python3 gpt_image.py generations "A lake" --output lake.png
    python3 -m tests.gateway --list                       the scenarios, one a line

    with Gateway(scenario="cut-in-third-picture") as gateway:      # in a test
        ...                                                        # gateway.url, .requests, .pictures, .posts

It listens on 127.0.0.1 only. It speaks /v1/images/generations, /v1/images/edits, /v1/responses, /v1/chat/completions,
/v1/models, /v1/files and /v1/batches, and paints real pictures of the asked size. It is strict about the wire: lengths,
content types, forms, JSON, data URLs. Which fields there are, and what a model takes, it looks up in the tables of the
program.

    bytes -> Recorded -> fields (checked) -> Job -> Pictures -> document -> events -> pieces -> bytes

A route is a row of ROUTES. A scenario is a row of SCENARIOS that puts its hand in at one of these arrows; it is chosen
for the gateway, or for one request with the header `X-Gateway-Scenario`. Files and batches are in
tests/batch_gateway.py.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import contextlib
import dataclasses
import email.utils
import gzip
import hashlib
import json
import math
import os
import random
import re
import secrets
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
from typing import Any, NamedTuple, final

import gpt_image
from tests import batch_gateway, pictures
from tests.batch_gateway import FileWays, Ways, told
from tests.wire import (
    MEGABYTE,
    Answer,
    Fields,
    Gone,
    Incoming,
    Pairs,
    Part,
    Piece,
    Reply,
    check_type,
    envelope,
    frame,
    invalid,
    need,
    page,
    problem,
    read_body,
    read_head,
    read_length,
    refusal,
    reply_head,
)
from tests.wire import Recorded as Recorded

KEY = "sk-stand-in-0123456789abcdef"

# -------------------------------------------------------------------------------------------------- what the API takes


def options(route: str, *places: str) -> dict[tuple[str, ...], gpt_image.Option]:
    """The options whose values stand at these places in the bodies of a route, by their path."""
    return {row.path: row for row in gpt_image.options_of(route).values() if row.sends in places}


# By the place in a body: the fields that are options of the program, and the types of those that are not.
OPTIONS = {
    "generations": options("generations", "top", "image"),
    "edits": options("edits", "top", "image"),
    "responses": options("responses", "top"),
    "tool": options("responses", "image"),
}
RARE = ("include", "max_output_tokens", "parallel_tool_calls", "service_tier", "temperature", "text", "truncation")
OTHERS: dict[str, dict[str, type]] = {
    "generations": {"prompt": str},
    "edits": {"prompt": str, "images": list, "mask": dict},
    "responses": {"input": object, "tools": list, **dict.fromkeys(RARE, object)},
    "tool": {"type": str, "input_image_mask": dict},
}
NOT_IN_FORMS = ("moderation", "images")
FILE_FORMATS = ("png", "jpeg", "webp")
TEXT_MODELS = ("gpt-5.4", "gpt-5.4-mini", "gpt-5.5")


def json_type(kind: gpt_image.Kind) -> type:
    """The JSON type of an option's value."""
    if kind is gpt_image.TOOL_CHOICE:
        return object
    if kind is gpt_image.OBJECT:
        return dict
    return bool if kind.flag else int if kind.high else str


def check_option(param: str, value: Any, row: gpt_image.Option, model: str) -> None:
    """Refuse a value that the model does not take; one that the tables do not know takes any of the right type."""
    check_type(param, value, json_type(row.kind))
    takes, kind = gpt_image.model_row(model).takes, row.kind
    if takes is None:
        return
    if takes.get(row.name) == ():
        raise refusal(400, f"Unknown parameter: '{param}'.", "unknown_parameter", param=param)
    choices = takes.get(row.name, kind.choices)
    if choices and value not in choices:
        raise invalid(param, f"supported values are {', '.join(choices)}")
    if kind.high and not kind.low <= value <= kind.high:
        raise invalid(param, f"expected a number from {kind.low} to {kind.high}")


def check_fields(place: str, fields: Any, model: str = "", path: tuple[str, ...] = (), prefix: str = "") -> Fields:
    """Refuse unknown and ill-typed fields at one level and below; null is the same as absent."""
    check_type(prefix or "body", fields, dict)
    known, others = OPTIONS[place], {} if path else OTHERS[place]
    given: Fields = {name: value for name, value in fields.items() if value is not None}
    model = model or str(given.get("model", gpt_image.TOOL_MODEL))
    for name, value in given.items():
        here, param = (*path, name), prefix + name
        if here in known:
            check_option(param, value, known[here], model)
        elif name in others:
            check_type(param, value, others[name])
        elif any(row[: len(here)] == here for row in known):
            check_fields(place, value, model, here, param + ".")
        else:
            raise refusal(400, f"Unknown parameter: '{param}'.", "unknown_parameter", param=param)
    return given


def data_url_bytes(url: str) -> bytes:
    """The picture in a data URL, or nothing unless it is what its media type says."""
    match = re.fullmatch(r"data:image/([a-z+]+);base64,(.*)", url, re.DOTALL)
    try:
        data = base64.b64decode(match[2], validate=True) if match else b""
    except (binascii.Error, ValueError):
        return b""
    look = pictures.measure(data)
    return data if match and look and look.format == match[1] else b""


def reference(param: str, fields: Any) -> str:
    """Check how JSON names a picture, by URL or file id and not both; returns a hash of it."""
    check_type(param, fields, dict)
    names = [name for name in ("image_url", "file_id") if fields.get(name) is not None]
    if len(names) != 1 or set(fields) - {"image_url", "file_id", "type", "detail"}:
        raise invalid(param, "exactly one of image_url and file_id is required")
    value = need(fields, names[0], str, param + ".")
    seed = data_url_bytes(value) if value.startswith("data:") else value.encode()
    forms = {"image_url": r"(?:data:|https?://[^/\s]+)", "file_id": r"file-\S+$"}
    if not seed or not re.match(forms[names[0]], value):
        raise invalid(f"{param}.{names[0]}", f"no URL, data URL or id of an image: {value[:80]}", "invalid_image_file")
    return hashlib.sha256(seed).hexdigest()


def file_seed(part: Part) -> str:
    """Check a picture in a form, whose content type must be real; returns its hash."""
    if not part.filename:
        raise invalid(part.name, "expected a file, but got a string instead", "invalid_type")
    real = f"image/{part.look.format}" if part.look else "application/octet-stream"
    if part.content_type != real or part.look is None or part.look.format not in FILE_FORMATS:
        found = f"said to be '{part.content_type}' and is '{real}'"
        raise invalid(part.name, f"unsupported mimetype, {found}", "unsupported_file_mimetype")
    return part.sha256


def form_value(text: str, wanted: type) -> Any:
    """A form field as the type it stands for, in its canonical spelling only."""
    if wanted is int and re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return text == "true" if wanted is bool and text in ("true", "false") else text


def form_fields(parts: list[Part]) -> tuple[Fields, list[str]]:
    """The fields of an edit that came as a form, nested as in JSON, and the hashes of its files: images come first."""
    tree: Fields = {}
    files: dict[str, list[str]] = {"image": [], "mask": [], "markup": []}
    for part in parts:
        role = "image" if re.fullmatch(r"image(\[\d*\])?", part.name) else part.name
        path = tuple(re.findall(r"[^][]+", part.name)) or ("",)
        # Some gateways make the mask themselves when the field holds this word.
        if role in files and (part.name, part.value) != ("mask", "auto"):
            files[role].append(file_seed(part))
        elif role not in files:
            inner = tree
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            if path[-1] in inner:
                raise refusal(400, f"Duplicate parameter: '{part.name}'.", "duplicate_parameter", param=part.name)
            row = OPTIONS["edits"].get(path)
            inner[path[-1]] = form_value(part.value or "", json_type(row.kind) if row else str)
    for name in NOT_IN_FORMS:
        if name in tree:
            raise refusal(400, f"Unknown parameter: '{name}'.", "unknown_parameter", param=name)
    if not files["image"] or max(len(files["mask"]), len(files["markup"])) > 1:
        raise invalid("image", "one image or more, and at most one mask and markup")
    return check_fields("edits", tree), [seed for seeds in files.values() for seed in seeds]


def json_fields(route: str, body: Any) -> tuple[Fields, list[str]]:
    """The fields of an Images call that came as JSON, and the hashes of its pictures."""
    fields = check_fields(route, body)
    images = need(fields, "images", list) if route == "edits" else []
    seeds = [reference(f"images[{number}]", image) for number, image in enumerate(images)]
    return fields, seeds + ([reference("mask", fields["mask"])] if "mask" in fields else [])


# ------------------------------------------------------------------------------------------------------------ pictures


class Picture(NamedTuple):
    """A painted picture in pieces, the base64 of the pieces, and where it belongs."""

    parts: tuple[bytes, ...]
    texts: tuple[bytes, ...]
    format: str
    number: int
    total: int
    preview: bool = False

    @property
    def media_type(self) -> str:
        """The media type of its format."""
        return "image/svg+xml" if self.format == "svg" else f"image/{self.format}"


class Job(NamedTuple):
    """What is to be painted."""

    route: str
    model: str
    prompt: str
    inputs: tuple[str, ...]
    total: int
    size: tuple[int, int]
    looks: Fields  # how replies describe the pictures
    partials: int = 0
    frames: int = 9
    bytes: int = 0  # the size of a picture padded with noise, or 0


def job_of(route: str, fields: Fields, inputs: Iterable[str]) -> Job:
    """Settle what was left to the server."""
    match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", str(fields.get("size")))
    width, height = (int(match[1]), int(match[2])) if match else (1024, 1024)
    quality, background = fields.get("quality", "auto"), fields.get("background")
    looks = {
        "background": "transparent" if background == "transparent" else "opaque",
        "output_format": fields.get("output_format", "png"),
        "quality": "medium" if quality == "auto" else quality,
        "size": f"{width}x{height}",
    }
    job = Job(route, fields["model"], fields["prompt"], tuple(inputs), fields.get("n", 1), (width, height), looks)
    partials = fields.get("partial_images", 0) if fields.get("stream") else 0
    return job._replace(partials=partials, frames=fields.get("frame_count", 9))


def paint(job: Job, index: int, partial: int = -1) -> Picture:
    """Paint one picture, or one of its previews, by the hash of what was asked for."""
    seed = repr((job.prompt, job.inputs, index)).encode()
    if job.bytes:
        parts, texts = pictures.large(seed + b"%d" % partial, job.bytes)
        return Picture(parts, texts, "png", index, job.total, partial >= 0)
    block, form = 1 if partial < 0 else 64 >> partial, job.looks["output_format"]
    data = pictures.picture(seed, form, *job.size, job.looks["background"] == "transparent", block, job.frames)
    return Picture((data,), (base64.b64encode(data),), form, index, job.total, partial >= 0)


def image_usage(job: Job) -> Fields:
    """The usage of an Images reply, with the output tokens of the published figures."""
    factor = gpt_image.model_row(job.model).tokens.get(job.looks["quality"], 24)
    short, area = min(job.size) / max(job.size), math.prod(job.size)
    each = math.ceil(factor * round(factor * short) * (2_000_000 + area) / 4_000_000)
    text, image = 1 + len(job.prompt) // 4, 1000 * len(job.inputs)
    output = job.total * each + gpt_image.PARTIAL_TOKENS * job.partials
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
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1024)
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


class Storm(NamedTuple):
    """How often each mishap of the scenario `storm` comes, in shares of all POSTs, and the seed of the dice."""

    seed: int = 1
    limited: float = 0.1  # 429 with retry-after-ms
    faults: float = 0.05  # 500
    deaf: float = 0.02  # closes before it paints
    mute: float = 0.02  # closes after it painted
    cut: float = 0.03  # closes within the picture
    wait: int = 20  # what retry-after-ms says


class Studio:
    """What one gateway keeps between requests."""

    def __init__(self, key: str, delay: float, polls: int, weight: int, **origins: str) -> None:
        self.key, self.delay, self.polls, self.weight = key, delay, polls, weight
        self.origins = origins
        self.shelf = batch_gateway.Shelf()
        self.storm, self.room = Storm(), 4
        self.posted: collections.Counter[str] = collections.Counter()
        self.billed: collections.Counter[str] = collections.Counter()
        self.fates: dict[str, list[str]] = {}
        self.at_work = self.most = self.hasty = 0
        self.shut_until = 0.0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.painted: list[Picture] = []
        self.queue: list[Reply] = []
        self.served: dict[str, Picture] = {}
        self.responses: dict[str, Stored] = {}
        self.holes: dict[str, Picture] = {}
        self.nonce = secrets.token_hex(8)
        self.count = 0

    def name(self, prefix: str) -> str:
        """A new id, the same in every run."""
        with self.lock:
            self.count += 1
            return prefix + hashlib.sha256(b"%d" % self.count).hexdigest()[:32]

    @contextlib.contextmanager
    def working(self, counts: bool) -> Iterator[None]:
        """Count a request among those that are under way, if it counts."""
        with self.lock:
            self.at_work += counts
            self.most = max(self.most, self.at_work)
        try:
            yield
        finally:
            with self.lock:
                self.at_work -= counts

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
    indent: int | None = 2  # of JSON
    fate: str = ""

    def wait(self, seconds: float | None) -> None:
        """Sleep, unless the gateway closes."""
        if self.studio.closing.wait(seconds) or seconds is None:
            raise Gone

    def interfere(self, *stages: str) -> None:
        """Let the scenario answer by itself, if this is its stage."""
        deed = self.scenario.deed
        if deed and self.scenario.stage in stages:
            reply = deed(self) if callable(deed) else deed
            if reply:
                raise Answer(reply)

    def name(self, prefix: str) -> str:
        """A new id in the scenario's manner."""
        return self.scenario.ids(self.studio.name(prefix))

    def streams(self, asked: Any) -> bool:
        """Whether the answer is a stream: as it was asked, or as the scenario has it."""
        return bool(asked if self.scenario.stream is None else self.scenario.stream)

    def take(self, job: Job) -> Job:
        """Note that a job is to be painted, and so billed; returns it in the manner of scenario and gateway."""
        with self.studio.lock:
            self.studio.billed[job.prompt] += 1
        job = self.scenario.job(job)
        return job if job.bytes else job._replace(bytes=self.studio.weight)

    def answer(self, scenario: Scenario, path: str, body: Any) -> Reply:
        """Answer a request that came within this one, as a line of a batch."""
        request = Recorded("POST", path, [("Content-Type", "application/json")], json=body)
        inner = dataclasses.replace(self, scenario=scenario, request=request, previews={}, indent=None)
        try:
            return route_reply(inner)
        except Answer as answer:
            return answer.reply

    def keep(self, picture: Picture) -> Picture:
        """Note a painted picture for the test, after the scenario spoiled it if it does."""
        if self.scenario.data:
            data = self.scenario.data(b"".join(picture.parts))
            picture = picture._replace(parts=(data,), texts=(base64.b64encode(data),))
        with self.studio.lock:
            self.studio.painted.append(picture)
        return picture

    def address(self, picture: Picture, form: str) -> str:
        """A picture's URL in one of the forms below; those under /pictures/ and /redirect/ can be fetched."""
        name = urllib.parse.quote(self.name("img_"), safe="") + "." + picture.format
        self.studio.served[name] = picture
        kind, hole = picture.media_type, self.studio.hole(picture) if form == DATA_URL else ""
        return form.format(**self.studio.origins, name=name, type=kind, hole=hole)

    def deliver(self, picture: Picture, usual: str, asked: str = "") -> Fields:
        """A picture as it stands in JSON: its base64 in a field, and on the Images routes perhaps a URL."""
        row = self.scenario
        inline = {row.field or usual: self.studio.hole(picture)}
        url = row.url or (OWN_URL if asked == "url" else "")
        if not url or asked == "b64_json" or usual != "b64_json":
            return inline
        return {**(inline if row.both else {}), "url": self.address(picture, url)}


# ----------------------------------------------------------------------------------------------- the scenario as a row

OWN_URL = "{own}/pictures/{name}"
DATA_URL = "data:{type};base64,{hole}"
HTML = b"<!DOCTYPE html>\n<html><head><title>%s</title></head><body><h1>Sorry</h1></body></html>\n"


class Sse(NamedTuple):
    """The manner of writing an event stream."""

    names: bool = True
    newline: bytes = b"\n"
    gap: bytes = b"\n"
    comment: bytes = b""
    done: bool = False
    last_gap: bool = True


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
    deed: Reply | Callable[[Exchange], Reply | None] | None = None  # answers or hangs up by itself
    stage: str = "body"  # when: at "connect", after the "head", or after the "body"
    times: int = 0  # for so many requests; 0: for all
    at: str = ""  # for these only: a pattern of method and path below /v1
    job: Callable[[Job], Job] = lambda job: job
    data: Callable[[bytes], bytes] | None = None  # what becomes of a painted picture
    base64: Callable[[bytes, Picture], bytes] | None = None
    field: str = ""  # the field of a picture's base64, in place of the documented one
    url: str = ""  # the URL that pictures come by on the Images routes and in chat
    both: bool = False  # and their base64 too
    document: Callable[[Exchange, Fields], Fields] = lambda exchange, document: document
    end: Fields | None = None  # how a response ends after its previews, in place of its output
    events: Callable[[list[Fields]], list[Fields]] = lambda events: events
    ids: Callable[[str], str] = lambda name: name
    stream: bool | None = None  # answer so, whatever was asked
    sse: Sse = Sse()
    text: Callable[[bytes], bytes] = lambda text: text
    reply: Fields = {}  # what is put in place in the reply
    headers: Pairs = ()  # and what is added to its head
    body: Callable[[bytes], bytes] | None = None  # what becomes of its body
    send: Callable[[Exchange, Reply], Iterator[bytes]] = in_order
    polls: int | None = None
    batch: Ways = Ways()  # what becomes of a batch that is made under it
    files: FileWays = FileWays()  # how files are served, be the scenario used up or not


PLAIN = Scenario("plain", "answers as the API does")

# ----------------------------------------------------------------------------------------------- documents and events


def paint_all(exchange: Exchange, job: Job, index: int, owner: str) -> Picture:
    """Paint a picture after its previews, which are kept for their events."""
    exchange.previews[owner] = [exchange.keep(paint(job, index, partial)) for partial in range(job.partials)]
    return exchange.keep(paint(job, index))


def images_document(exchange: Exchange, job: Job, asked: str) -> Fields:
    """The JSON reply of the Images routes."""
    data: list[Fields] = []
    for index in range(job.total):
        picture = paint_all(exchange, job, index, str(index))
        data.append(exchange.deliver(picture, "b64_json", asked))
    return {"created": int(time.time()), "data": data, **job.looks, "usage": image_usage(job)}


def images_events(exchange: Exchange, job: Job, document: Fields) -> Iterator[Fields]:
    """The event stream of the Images routes."""
    word = "image_edit" if job.route == "edits" else "image_generation"
    shared = {"created_at": document["created"], **{name: document[name] for name in job.looks if name in document}}
    usage = {"usage": document["usage"]} if "usage" in document else {}
    for owner, previews in exchange.previews.items():
        for partial, preview in enumerate(previews):
            hole = {"b64_json": exchange.studio.hole(preview), "partial_image_index": partial}
            yield {"type": f"{word}.partial_image", **hole, **shared}
        if int(owner) < len(document["data"]):
            yield {"type": f"{word}.completed", **document["data"][int(owner)], **shared, **usage}


def message_item(exchange: Exchange, text: str, kind: str = "text") -> Fields:
    """A message in the output of a response, be it text or a refusal."""
    content = {"type": "output_text", "annotations": []} if kind == "text" else {"type": kind}
    fixed = {"type": "message", "status": "completed", "role": "assistant"}
    return {"id": exchange.name("msg_"), **fixed, "content": [{**content, kind: text}]}


def call_item(exchange: Exchange, job: Job, index: int) -> Fields:
    """A finished call of the image tool, with its picture."""
    name = exchange.name("ig_")
    result = exchange.deliver(paint_all(exchange, job, index, name), "result")
    revised = f"{job.prompt.strip()[:200]} (picture {index + 1} of {job.total})"
    fixed = {"type": "image_generation_call", "status": "completed"}
    return {"id": name, **fixed, **job.looks, "revised_prompt": revised, **result}


ECHOED: Fields = {"background": False, "instructions": None, "metadata": {}, "previous_response_id": None}


def response_document(exchange: Exchange, body: Fields, job: Job, talks: bool) -> Fields:
    """A finished response."""
    now = int(time.time())
    output = [call_item(exchange, job, index) for index in range(job.total)]
    words, drawn = 20 + len(job.prompt) // 4, 40 * len(output)
    if talks:
        opening = "Here is what I made of it" if output else "In words"
        output.append(message_item(exchange, f"{opening}: {job.prompt.strip()[:80]}"))
    return {
        "id": exchange.name("resp_"),
        "object": "response",
        "created_at": now,
        "completed_at": now,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": output,
        "usage": {"input_tokens": words, "output_tokens": drawn, "total_tokens": words + drawn},
        **{name: body.get(name, default) for name, default in ECHOED.items()},
    }


def call_events(exchange: Exchange, item: Fields, index: int) -> Iterator[Fields]:
    """The events of one call of the image tool; no picture in them but the previews."""
    place, word = {"output_index": index, "item_id": item["id"]}, "response.image_generation_call"
    yield {"type": f"{word}.in_progress", **place}
    yield {"type": f"{word}.generating", **place}
    for partial, preview in enumerate(exchange.previews.get(item["id"], [])):
        hole = {"partial_image_index": partial, "partial_image_b64": exchange.studio.hole(preview)}
        yield {"type": f"{word}.partial_image", **place, **hole, "output_format": preview.format}
    yield {"type": f"{word}.completed", **place}


def message_events(item: Fields, index: int) -> Iterator[Fields]:
    """The events of a message, be it text or a refusal."""
    part = item["content"][0]
    kind = "refusal" if part["type"] == "refusal" else "text"
    word = "response.refusal" if kind == "refusal" else "response.output_text"
    place = {"output_index": index, "item_id": item["id"], "content_index": 0}
    yield {"type": "response.content_part.added", **place, "part": {**part, kind: ""}}
    for start in range(0, len(part[kind]), 24):
        yield {"type": f"{word}.delta", **place, "delta": part[kind][start : start + 24]}
    yield {"type": f"{word}.done", **place, kind: part[kind]}
    yield {"type": "response.content_part.done", **place, "part": part}


def unfinished(document: Fields, status: str) -> Fields:
    """A response before it is finished."""
    return {**document, "status": status, "output": [], "usage": None, "completed_at": None, "error": None}


def response_events(exchange: Exchange, document: Fields) -> Iterator[Fields]:
    """The event stream of a response."""
    first = "queued" if document["background"] else "in_progress"
    yield {"type": "response.created", "response": unfinished(document, first)}
    if document["background"]:
        yield {"type": "response.queued", "response": unfinished(document, "queued")}
    yield {"type": "response.in_progress", "response": unfinished(document, "in_progress")}
    for index, item in enumerate(document["output"]):
        begun = {"id": item["id"], "type": item["type"], "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        yield from message_events(item, index) if "content" in item else call_events(exchange, item, index)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{document['status']}", "response": document}


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
        url = exchange.address(exchange.keep(paint(job, index)), exchange.scenario.url or DATA_URL)
        images.append({"type": "image_url", "image_url": {"url": url}, "index": index})
    message = {"role": "assistant", "content": "Here is your picture.", "refusal": None, "images": images}
    words = 1 + len(job.prompt) // 4
    return {
        "id": exchange.name("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": job.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words, "completion_tokens": 1300, "total_tokens": words + 1300},
    }


def chat_events(document: Fields) -> list[Fields]:
    """The event stream of a chat relay."""
    message = document["choices"][0]["message"]
    content = message["content"]
    deltas: list[Fields] = [{"role": "assistant", "content": ""}]
    texts = re.split(r"(?<=\n\n)", content) if isinstance(content, str) else [content]
    deltas += [{"content": text} for text in texts]
    deltas += [{"images": message["images"]}] if message.get("images") else []
    shared = {**document, "object": "chat.completion.chunk"}
    usage = {"usage": shared.pop("usage")} if "usage" in shared else {}
    events = [{**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**shared, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return events + ([{**shared, "choices": [], **usage}] if usage else [])


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
        else:
            texts = [mangle(b"".join(picture.texts), picture)] if mangle else picture.texts
            pieces += [Piece(change(data), picture=True) for data in texts]
    return pieces


def render_events(exchange: Exchange, events: list[Fields], named: bool) -> list[Piece]:
    """Events as lines (https://html.spec.whatwg.org/#event-stream-interpretation)."""
    style = exchange.scenario.sse
    comment = style.comment + style.newline if style.comment else b""
    done = style.done or not named  # a chat stream ends so always
    pieces = []
    for number, event in enumerate(events):
        last = number == len(events) - 1 and not done
        head = comment
        if named and style.names:
            head += b"event: " + event["type"].encode() + style.newline + comment
        pieces.append(Piece(head + b"data: ", event=True))
        for piece in render(exchange, event):
            # A line end inside the data takes another "data:" line.
            pieces.append(piece._replace(data=piece.data.replace(b"\n", style.newline + b"data: ")))
        pieces.append(Piece(style.newline + comment + (b"" if last and not style.last_gap else style.gap)))
    return pieces + ([Piece(b"data: [DONE]" + style.newline + style.gap)] if done else [])


def json_reply(exchange: Exchange, document: Any) -> Reply:
    """A JSON reply."""
    return Reply(200, (("Content-Type", "application/json"),), render(exchange, document, exchange.indent))


def sse_reply(exchange: Exchange, events: list[Fields], named: bool = True) -> Reply:
    """An event stream."""
    headers = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))
    return Reply(200, headers, render_events(exchange, events, named), framing="chunked")


# --------------------------------------------------------------------------------------------------------------- routes


def images_reply(exchange: Exchange, route: str) -> Reply:
    """POST /images/generations and POST /images/edits."""
    request, scenario = exchange.request, exchange.scenario
    if request.form is not None and route != "edits":
        raise refusal(400, "Unsupported content type: 'multipart/form-data'.")
    fields, seeds = json_fields(route, request.json) if request.form is None else form_fields(request.form)
    need(fields, "model")
    need(fields, "prompt")
    job = exchange.take(job_of(route, fields, seeds))
    document = scenario.document(exchange, images_document(exchange, job, fields.get("response_format", "")))
    if exchange.streams(fields.get("stream")):
        return sse_reply(exchange, scenario.events(list(images_events(exchange, job, document))))
    return json_reply(exchange, document)


# The types of content parts, text first, by the field that holds the messages.
PARTS = {"input": ("input_text", "input_image"), "messages": ("text", "image_url")}


def read_messages(body: Fields, field: str) -> tuple[str, list[str]]:
    """The words of the last message, and the hashes of all pictures."""
    texts, seeds = [""], []
    said, drawn = PARTS[field]
    if field == "input" and isinstance(body.get("input"), str):
        return need(body, "input"), []
    for number, message in enumerate(need(body, field, list)):
        path = f"{field}[{number}]."
        need(message, "role", str, path)
        content = need(message, "content", object, path)
        parts: list[Fields] = [{"type": said, "text": content}] if isinstance(content, str) else content
        texts = []
        for part in parts:
            if need(part, "type", str, path + "content.") not in (said, drawn):
                raise invalid(path + "content.type", f"supported values are {said} and {drawn}")
            if part["type"] == said:
                texts.append(need(part, "text", str, path + "content."))
            else:
                seeds.append(reference(path + drawn, {"image_url": part[drawn].get("url")} if drawn in part else part))
    return "\n".join(texts), seeds


def image_tool(body: Fields) -> Fields:
    """The fields of the image tool, or none; other tools pass unchecked."""
    for number, tool in enumerate(body.get("tools", [])):
        if need(tool, "type", str, f"tools[{number}].") == "image_generation":
            return check_fields("tool", tool, prefix=f"tools[{number}].")
    return {}


def tool_mode(chosen: Any, tool: Fields) -> str:
    """Whether the image tool is required, left to the model (auto) or forbidden (none)."""
    mode: Any = "required" if chosen == {"type": "image_generation"} else chosen
    if isinstance(chosen, dict) and chosen.get("type") == "allowed_tools":
        mode = chosen.get("mode", "auto")
    if mode not in ("auto", "none", "required") or (isinstance(chosen, dict) and not tool):
        raise invalid("tool_choice", f"no choice of the API, or of no tool here: {json.dumps(chosen)[:80]}")
    return str(mode) if tool else "none"


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


def plan(words: str, mode: str) -> tuple[int, bool]:
    """Decide as a text model might how many pictures to make, and whether to talk ("only text", "text and picture")."""
    words = words.lower()
    if mode == "none" or (mode == "auto" and "only text" in words):
        return 0, True
    match = re.search(r"\b(\w+) (?:pictures|images)\b", words)
    return NUMBERS.get(match[1], 1) if match else 1, mode == "auto" or "text and picture" in words


def response_job(studio: Studio, body: Fields) -> tuple[Job, bool]:
    """What a response asks for: the pictures, and whether there are words too."""
    need(body, "model")
    words, seeds = read_messages(body, "input")
    tool = image_tool(body)
    if "input_image_mask" in tool:
        seeds.append(reference("input_image_mask", tool["input_image_mask"]))
    total, talks = plan(words, tool_mode(body.get("tool_choice", "auto"), tool))
    if "previous_response_id" in body:
        seeds.append(stored_response(studio, body["previous_response_id"]).prompt)
    asked = {"model": gpt_image.TOOL_MODEL, **tool, "prompt": words, "n": total}
    return job_of("responses", {**asked, "stream": body.get("stream")}, seeds), talks


def response_reply(exchange: Exchange) -> Reply:
    """POST /responses."""
    studio, scenario = exchange.studio, exchange.scenario
    body = check_fields("responses", exchange.request.json)
    job, talks = response_job(studio, body)
    job = exchange.take(job) if job.total else job
    document = scenario.document(exchange, response_document(exchange, body, job, talks))
    events = list(response_events(exchange, document))
    if scenario.end:
        document = {**document, "output": [], **scenario.end}
        events = [*to_previews(events), {"type": f"response.{document['status']}", "response": document}]
    events = [{**event, "sequence_number": number} for number, event in enumerate(scenario.events(events))]
    polls = studio.polls if scenario.polls is None else scenario.polls
    stored = Stored(document, events, bool(body.get("stream")), job.prompt, polls if document["background"] else 0)
    if body.get("store", True):
        studio.responses[document["id"]] = stored
    if exchange.streams(body.get("stream")):
        return sse_reply(exchange, events)
    return json_reply(exchange, unfinished(document, "queued") if document["background"] else document)


def stored_response(studio: Studio, name: str) -> Stored:
    """A stored response, or 404."""
    stored = studio.responses.get(urllib.parse.unquote(name))
    if stored is None:
        raise refusal(404, f"Response with id '{name}' not found.")
    return stored


def stored_reply(exchange: Exchange, name: str) -> Reply:
    """GET /responses/{id}: how it stands, or its events from some number on."""
    stored = stored_response(exchange.studio, name)
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(exchange.request.path).query))
    if query.get("stream") == "true":
        after = form_value(query.get("starting_after", "-1"), int)
        check_type("starting_after", after, int)
        if not stored.streamed:
            raise invalid("stream", "this response was not created with stream=true")
        return sse_reply(exchange, [event for event in stored.events if event["sequence_number"] > after])
    if stored.cancelled or stored.polls > 0:
        stored.polls -= 1
        return json_reply(exchange, unfinished(stored.document, "cancelled" if stored.cancelled else "in_progress"))
    return json_reply(exchange, stored.document)


def cancel_reply(exchange: Exchange, name: str) -> Reply:
    """POST /responses/{id}/cancel, which may be repeated."""
    stored = stored_response(exchange.studio, name)
    if not stored.document["background"]:
        raise refusal(400, "Cannot cancel a synchronous response.")
    stored.cancelled = stored.cancelled or stored.polls > 0
    return json_reply(exchange, unfinished(stored.document, "cancelled") if stored.cancelled else stored.document)


def chat_reply(exchange: Exchange) -> Reply:
    """POST /chat/completions, as relays offer it; fields the relay does not know pass."""
    body, scenario = exchange.request.json, exchange.scenario
    need(body, "model")
    prompt, seeds = read_messages(body, "messages")
    job = exchange.take(job_of("chat", {**body, "prompt": prompt}, seeds))
    document = scenario.document(exchange, chat_document(exchange, job))
    if exchange.streams(body.get("stream")):
        return sse_reply(exchange, scenario.events(chat_events(document)), named=False)
    return json_reply(exchange, document)


def models_reply(exchange: Exchange) -> Reply:
    """GET /models."""
    fixed = {"object": "model", "created": 1_776_000_000, "owned_by": "system"}
    data = [{"id": name, **fixed} for name in (*gpt_image.MODEL_IDS, *TEXT_MODELS)]
    return json_reply(exchange, {"object": "list", "data": data})


class Route(NamedTuple):
    """A row of ROUTES: a method, a path below /v1, and what answers; groups of the path are passed on."""

    method: str
    path: str
    reply: Callable[..., Reply]


ROUTES = (
    Route("POST", r"/images/(generations|edits)", images_reply),
    Route("GET", r"/images/([^/]+)/content", lambda exchange, name: served_picture(exchange, name)),
    Route("POST", r"/responses", response_reply),
    Route("GET", r"/responses/([^/]+)", stored_reply),
    Route("POST", r"/responses/([^/]+)/cancel", cancel_reply),
    Route("POST", r"/chat/completions", chat_reply),
    Route("GET", r"/models", models_reply),
    Route("POST", r"/files", batch_gateway.upload_reply),
    Route("GET", r"/files/([^/]+)", batch_gateway.file_reply),
    Route("DELETE", r"/files/([^/]+)", batch_gateway.delete_reply),
    Route("GET", r"/files/([^/]+)/content", batch_gateway.content_reply),
    Route("POST", r"/batches", batch_gateway.create_reply),
    Route("GET", r"/batches", batch_gateway.batches_reply),
    Route("GET", r"/batches/([^/]+)", batch_gateway.batch_reply),
    Route("POST", r"/batches/([^/]+)/cancel", batch_gateway.cancel_batch_reply),
)


def path_of(request: Recorded) -> str:
    """The path of a request below /v1."""
    return request.path.partition("?")[0].partition("/v1")[2]


def route_reply(exchange: Exchange) -> Reply:
    """Find the route and let it answer."""
    method, path = exchange.request.method, path_of(exchange.request)
    found = [(row, match) for row in ROUTES for match in (re.fullmatch(row.path, path),) if match]
    for row, match in found:
        if row.method == method:
            return row.reply(exchange, *match.groups())
    raise refusal(405 if found else 404, f"Invalid URL ({method} /v1{path})")


def get_picture(exchange: Exchange) -> Reply:
    """Serve a picture that was returned by URL."""
    _, kind, name = exchange.request.path.split("/", 2)
    if kind == "redirect":
        return page(302, "text/plain", b"", (("Location", f"{exchange.studio.origins['elsewhere']}/pictures/{name}"),))
    if name == "page.html":
        return page(200, "text/html", HTML % b"Sign in to see this picture")
    return served_picture(exchange, name)


def served_picture(exchange: Exchange, name: str) -> Reply:
    """A picture by its name, or 404."""
    picture = exchange.studio.served.get(name)
    if picture is None:
        return page(404, "text/html", HTML % b"404 Not Found")
    return Reply(200, (("Content-Type", picture.media_type),), [Piece(part) for part in picture.parts])


# ---------------------------------------------------------------------------------------------- scenarios: what they do

Send = Callable[[Exchange, Reply], Iterator[bytes]]


def told_key(status: int) -> Callable[[Exchange], Reply]:
    """An error that repeats the key, in its text and in a header."""

    def deed(exchange: Exchange) -> Reply:
        key = exchange.studio.key
        message = f"Incorrect API key provided: {key}. Header was 'Authorization: Bearer {key}'."
        return problem(status, message, "invalid_api_key", (("X-Debug-Authorization", f"Bearer {key}"),))

    return deed


def limited_until(exchange: Exchange) -> Reply:
    """429 with a date a second ahead."""
    date = email.utils.formatdate(math.ceil(time.time()) + 1, usegmt=True)
    return problem(429, "Rate limit reached.", "rate_limit_exceeded", (("Retry-After", date),), type="requests")


def redirect(status: int, place: str) -> Callable[[Exchange], Reply]:
    """A redirect to the same path at another place."""

    def deed(exchange: Exchange) -> Reply:
        target = place.format(**exchange.studio.origins) + exchange.request.path
        return page(status, "text/plain", b"", (("Location", target),))

    return deed


def early(reply: Reply) -> Callable[[Exchange], Reply]:
    """Answer and close while the body is on its way."""

    def deed(exchange: Exchange) -> Reply:
        incoming, request = exchange.incoming, exchange.request
        while request.body_bytes < min(1 << 16, exchange.length // 2) and (incoming.buffer or incoming.more()):
            request.body_bytes += len(incoming.buffer)
            incoming.buffer = b""
        return reply._replace(close=True)

    return deed


def hang_up(exchange: Exchange) -> Reply:
    """Close the connection."""
    raise Gone


def reset(exchange: Exchange) -> Reply:
    """Close the connection so that the client sees a reset."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    exchange.incoming.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raise Gone


def hang(exchange: Exchange) -> Reply:
    """Never answer."""
    exchange.wait(None)
    raise Gone


def stop_in(number: int, hangs: bool = False) -> Send:
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


def sign_first(sign: bytes, times: int, pause: float = 0.0) -> Send:
    """Send a sign of life again and again, and then the body; without a pause of its own for the gateway's delay."""

    def send(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
        streamed = any(piece.event for piece in reply.pieces)
        for _ in range(times):
            yield sign if streamed else b"\n"
            exchange.wait(pause or exchange.studio.delay / times)
        for piece in reply.pieces:
            yield piece.data

    return send


CALLS = r"POST /(images/\w+|responses|chat/completions)"


def prompt_of(request: Recorded) -> str:
    """The prompt of a call, or nothing if it cannot be told."""
    for part in request.form or ():
        if part.name == "prompt":
            return part.value or ""
    body = request.json if isinstance(request.json, dict) else {}
    if "prompt" in body:
        return str(body["prompt"])
    with contextlib.suppress(Answer, AttributeError, TypeError):
        return read_messages(body, "input" if "input" in body else "messages")[0]
    return ""


def limited(wait: float) -> Reply:
    """429 with the time to wait in seconds, rounded up, and in milliseconds."""
    headers = (("Retry-After", str(math.ceil(round(wait, 3)))), ("retry-after-ms", str(max(1, round(1000 * wait)))))
    return problem(429, "Rate limit reached.", "rate_limit_exceeded", headers, type="requests")


def storm(exchange: Exchange) -> Reply | None:
    """Throw the dice for a call: the same for a prompt and the number of its try, in whatever order they come."""
    studio, prompt = exchange.studio, prompt_of(exchange.request)
    with studio.lock:
        fates = studio.fates.setdefault(prompt, [])
        dice = random.Random(f"{studio.storm.seed} {len(fates)} {prompt}")
        names = ("limited", "faults", "deaf", "mute", "cut")
        shares = [getattr(studio.storm, name) for name in names]
        exchange.fate = dice.choices((*names, "well"), (*shares, max(0.0, 1 - sum(shares))))[0]
        fates.append(exchange.fate)
    exchange.wait(studio.delay * dice.random())
    if exchange.fate == "deaf":
        raise Gone
    replies = {"limited": limited(studio.storm.wait / 1000), "faults": problem(500, SERVER, type="server_error")}
    return replies.get(exchange.fate)


def in_storm(exchange: Exchange, reply: Reply) -> Iterator[bytes]:
    """Send as the dice said; the delay has been waited for."""
    if exchange.fate == "mute":
        raise Gone
    if exchange.fate == "cut":
        return batch_gateway.cut_half(exchange, reply)
    return (piece.data for piece in reply.pieces)


def busy(exchange: Exchange) -> Reply | None:
    """429 for a while as soon as more calls than there is room for are under way."""
    studio, now = exchange.studio, time.monotonic()
    with studio.lock:
        if now < studio.shut_until:
            studio.hasty += 1
        elif studio.at_work > studio.room:
            studio.shut_until = now + studio.storm.wait / 1000
        else:
            return None
        return limited(studio.shut_until - now)


def repaint(form: str = "", size: tuple[int, int] | None = None) -> Callable[[bytes], bytes]:
    """Paint in another format or size than was asked for."""

    def data(before: bytes) -> bytes:
        look = pictures.measure(before) or pictures.Measure("png", 1024, 1024, False)
        return pictures.picture(before[-64:], form or look.format, *(size or (look.width, look.height)))

    return data


def long_name(name: str) -> str:
    """An id as some gateways make them, with characters that mean something in a URL."""
    return (name + base64.b64encode(hashlib.shake_256(name.encode()).digest(300)).decode())[:398] + "=="


def lines_end(end: bytes) -> Callable[[bytes, Picture], bytes]:
    """Break base64 after every 76 characters."""
    return lambda text, _: end.join(text[at : at + 76] for at in range(0, len(text), 76))


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


def says(text: str, kind: str = "text") -> Callable[[Exchange, Fields], Fields]:
    """A model that talks or refuses instead of painting."""

    def change(exchange: Exchange, document: Fields) -> Fields:
        output = {"output": [message_item(exchange, text, kind)]} if "output" in document else {}
        return {**no_pictures(exchange, document), **output}

    return change


def still_generating(exchange: Exchange, document: Fields) -> Fields:
    """Finished pictures whose call says otherwise."""
    for item in document.get("output", []):
        item["status"] = "generating" if "result" in item else item["status"]
    return document


def chat_as(content: Callable[[list[str]], Any]) -> Callable[[Exchange, Fields], Fields]:
    """A chat reply whose pictures stand in the content of its message, made of their URLs."""

    def change(exchange: Exchange, document: Fields) -> Fields:
        for option in document.get("choices", []):
            urls = [image["image_url"]["url"] for image in option["message"].pop("images")]
            option["message"]["content"] = content(urls)
        return document

    return change


def markdown(urls: list[str]) -> str:
    """Pictures as Markdown between words."""
    return "Here it is.\n\n" + "\n\n".join(f"![picture {number}]({url})" for number, url in enumerate(urls, 1))


def content_parts(urls: list[str]) -> list[Fields]:
    """Pictures as content parts behind words."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"type": "text", "text": "Here it is."}, *parts]


def then(*last: Fields) -> Callable[[list[Fields]], list[Fields]]:
    """Previews, and then these events instead of the end."""
    return lambda events: [*to_previews(events), *last]


def items_done(times: int) -> Callable[[list[Fields]], list[Fields]]:
    """Every item is announced as done so many times."""
    done = "response.output_item.done"
    return lambda events: [event for event in events for _ in range(times if event.get("type") == done else 1)]


def empty_at_end(events: list[Fields]) -> list[Fields]:
    """The completed response has no output."""
    last = events[-1]
    return [*events[:-1], {**last, "response": {**last["response"], "output": []}}] if "response" in last else events


def said_no(status: int, **body: Any) -> Reply:
    """A refusal that is no error object of the API's."""
    return page(status, "application/json", json.dumps(body).encode())


def field_names(request: Recorded) -> list[str]:
    """The fields of an edit that came as a form, or none."""
    return [part.name for part in request.form or []]


def sd_cpp(exchange: Exchange) -> Reply | None:
    """stable-diffusion.cpp takes an edit as a form only, with its pictures in `image[]` or `image`."""
    names = field_names(exchange.request)
    if not exchange.request.path.endswith("/edits") or {"image[]", "image"} & set(names):
        return None
    return said_no(400, error="there is no image[]" if names else "Content-Type must be multipart/form-data")


def vllm_omni(exchange: Exchange) -> Reply | None:
    """vLLM-Omni takes an edit as a form only, no size but one in pixels, and answers a file where it is asked for one."""
    request, size = exchange.request, None
    fields = request.json or {part.name: part.value for part in request.form or []}
    if request.path.endswith("/edits") and not request.form:
        return said_no(422, detail=[{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}])
    size = fields.get("size")
    if size and "x" not in size:
        return said_no(422, detail=[{"type": "value_error", "loc": ["body", "size"], "input": size}])
    if fields.get("response_format") == "file":
        route_reply(exchange)
        picture = exchange.studio.painted[-1]
        return Reply(200, (("Content-Type", "image/png"),), [Piece(part) for part in picture.parts])
    return None


def vllm_events(events: list[Fields]) -> list[Fields]:
    """Its stream of an edit: words, and then the whole reply as one event."""
    data = [{"b64_json": event["b64_json"]} for event in events if event["type"].endswith(".completed")]
    shared = {"object": "image.edit.chunk", "model": "team"}
    return [{**shared, "type": "ar_delta", "delta": "Snow."}, {**shared, "type": "image", "data": data}]


def litellm(exchange: Exchange) -> Reply | None:
    """LiteLLM passes an edit on without files where there is neither `image[]` nor `image`, and markup as text."""
    if not sd_cpp(exchange):
        return None
    words = "litellm.BadRequestError: Unsupported content type: 'application/x-www-form-urlencoded'."
    return problem(400, words, "400", exchange.scenario.headers)


def only(*names: str) -> Callable[[Exchange, Fields], Fields]:
    """A reply with these fields only."""
    return lambda exchange, document: {name: document[name] for name in names if name in document}


# ------------------------------------------------------------------------------------------------ scenarios: the table

LIMIT, SERVER = "Rate limit reached for images in organization org-stand-in.", "The server had an error. Sorry!"
NO_MONEY = "Billing hard limit has been reached."
LIMITED = {"code": "rate_limit_exceeded", "type": "requests"}
MODERATED: Fields = {
    "type": "image_generation_user_error",
    "moderation_details": {"moderation_stage": "input", "categories": ["violence"]},
}
TOP_ERROR = {"type": "error", **envelope("No.", "moderation_blocked", type="image_generation_user_error")}
FAILED: Fields = {"status": "failed", "error": {"code": "server_error", "message": SERVER}}
SSE_ERROR = {"type": "error", "code": "server_error", "message": SERVER, "param": None}
JSON_ERROR = json.dumps(envelope(SERVER, "server_error", type="server_error")).encode()
NOISE = hashlib.shake_256(b"garbage").digest(3000)
REMARK = b': keepalive "still painting", {"not": "json"}'
CHUNKED: Fields = {"framing": "chunked"}
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </>; rel=preload\r\n\r\n" + 2 * b"HTTP/1.1 102 Processing\r\n\r\n"
EVIL = (("Content-Disposition", 'attachment; filename="../../evil.png"'), ("X-Request-Id", "../../evil"))
BLANKS = sign_first(b"\n", 5, 0.002)

CREATE, POLL, CONTENT = "POST /batches", r"GET /batches/[^/]+", r"GET /files/[^/]+/content"
RANGES = FileWays(ranges=True)

SCENARIOS = (
    PLAIN,
    # -- turned away, with the error object
    Scenario("rate-limited-once", "429 with retry-after-ms: 20, once",
             problem(429, LIMIT, headers=(("retry-after-ms", "20"),), **LIMITED), times=1),
    Scenario("rate-limited-seconds", "429 with Retry-After: 1, once",
             problem(429, LIMIT, headers=(("Retry-After", "1"),), **LIMITED), times=1),
    Scenario("rate-limited-date", "429 with Retry-After: a date a second ahead, once", limited_until, times=1),
    Scenario("slow-down-once", "429 slow_down, once",
             problem(429, "Slow down.", "slow_down", type="requests"), times=1),
    Scenario("quota", "429 insufficient_quota",
             problem(429, "You exceeded your current quota.", "insufficient_quota", type="insufficient_quota")),
    Scenario("should-retry-false", "500 with x-should-retry: false",
             problem(500, SERVER, headers=(("x-should-retry", "false"),), type="server_error")),
    Scenario("should-retry-true", "400 with x-should-retry: true, once",
             problem(400, "Try again.", headers=(("x-should-retry", "true"),)), times=1),
    Scenario("fault-500-once", "500, once", problem(500, SERVER, type="server_error"), times=1),
    Scenario("fault-503-once", "503, once", problem(503, "Overloaded.", "overloaded", type="server_error"), times=1),
    Scenario("fault-408-once", "408, once", problem(408, "Request timeout."), times=1),
    Scenario("fault-409-once", "409, once", problem(409, "Conflict.", "conflict"), times=1),
    Scenario("fault-502", "502", problem(502, "Bad gateway.", type="server_error")),
    Scenario("fault-504", "504", problem(504, "Gateway timeout.", type="server_error")),
    Scenario("fault-524", "524 with a web page", page(524, "text/html", HTML % b"A timeout occurred")),
    Scenario("bad-request", "400", problem(400, "Your request is wrong.", "invalid_value", param="prompt")),
    Scenario("moderation", "400 moderation_blocked with details",
             problem(400, "Your request was rejected by the safety system.", "moderation_blocked", **MODERATED)),
    Scenario("forbidden", "403", problem(403, "Your organization must be verified to use this model.", None)),
    Scenario("not-found", "404 model_not_found",
             problem(404, "There is no such model, or not for you.", "model_not_found", param="model")),
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
             reply={"missing": 64, "framing": "length"}),
    Scenario("chunked", "JSON without a length", reply=CHUNKED),
    Scenario("trickle", "the body in tiny pieces", send=tiny_pieces),
    Scenario("interim-102", "103 and twice 102 before the answer", reply={"interim": HINTS}),
    Scenario("gzip", "a compressed body", headers=(("Content-Encoding", "gzip"),), body=gzip.compress),
    Scenario("early-401", "401 while the upload goes on",
             early(problem(401, "Invalid key.", "invalid_api_key")), "head"),
    Scenario("early-413", "413 while the upload goes on", early(problem(413, "Too large.")), "head"),
    Scenario("redirect", "307 to the second origin", redirect(307, "{elsewhere}")),
    Scenario("redirect-302", "302 to the second origin", redirect(302, "{elsewhere}")),
    Scenario("redirect-same-origin", "307 to another path", redirect(307, "{own}/moved")),
    # -- replies that are something else
    Scenario("html-error", "502 with a web page", page(502, "text/html", HTML % b"502 Bad Gateway")),
    Scenario("html-200", "200 with a web page", page(200, "text/html", HTML % b"Welcome to nginx")),
    Scenario("error-in-200", "200 with an error object", page(200, "application/json", JSON_ERROR)),
    Scenario("error-in-200-late", "200, blank lines, an error object",
             page(200, "application/json", JSON_ERROR)._replace(**CHUNKED), send=BLANKS),
    Scenario("key-in-error", "401 that repeats the key", told_key(401)),
    Scenario("key-in-400", "400 that repeats the key", told_key(400)),
    Scenario("key-in-reply", "pictures, and the key in the texts", document=tell_key),
    Scenario("empty-body", "200 and nothing", page(200, "application/json", b"")),
    Scenario("garbage", "200 and noise", page(200, "application/json", NOISE)),
    # -- base64
    Scenario("escaped-slashes", "each / as \\/", text=lambda text: text.replace(b"/", b"\\/")),
    Scenario("unicode-escapes", "each + and = as \\u002B and \\u003d",
             text=lambda text: text.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d")),
    Scenario("base64-line-breaks", "\\n after every 76 characters", base64=lines_end(b"\\n")),
    Scenario("base64-raw-newlines", "a line end after every 76 characters", base64=lines_end(b"\n")),
    Scenario("base64-no-padding", "no = at the end", base64=lambda text, _: text.rstrip(b"=")),
    Scenario("base64-data-prefix", "data:image/…;base64, before the base64",
             base64=lambda text, picture: f"data:{picture.media_type};base64,".encode() + text),
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
    Scenario("usage-missing", "no usage",
             document=lambda _, document: {name: document[name] for name in document if name != "usage"}),
    Scenario("path-trick", "ids and formats that are paths", ids=lambda name: "../../" + name, headers=EVIL,
             document=lambda _, document: {**document, "output_format": "../../evil"}),
    Scenario("long-ids", "ids of 400 characters that need quoting in a URL", ids=long_name),
    Scenario("ten-20mb", "ten pictures of 20 MB", job=lambda job: job._replace(total=10, bytes=20 * MEGABYTE)),
    Scenario("stream-20mb", "three previews and a picture of 20 MB, as events", stream=True,
             job=lambda job: job._replace(partials=3, bytes=20 * MEGABYTE)),
    # -- servers of other people
    Scenario("sd-cpp", "stable-diffusion.cpp: edits as a form only, JSON for a stream", deed=sd_cpp, stream=False,
             document=only("created", "data", "output_format")),
    Scenario("sglang", "SGLang: url unless base64 is asked for, a path of its own", url="/v1/images/{name}/content",
             document=only("created", "data")),
    Scenario("vllm-omni", "vLLM-Omni: edits as a form only, no size auto, a file as the body", deed=vllm_omni,
             document=only("created", "data", "output_format", "size"), events=vllm_events, sse=Sse(names=False, done=True)),
    Scenario("xinference", "Xinference: url is a path of its disk unless base64 is asked for",
             url="/root/.xinference/image/{name}", document=only("created", "data")),
    Scenario("litellm", "LiteLLM: edits without local files are lost on the way, markup too", deed=litellm,
             headers=(("x-litellm-version", "1.108.7"),)),
    # -- pictures by URL
    Scenario("url", "url instead of base64", url=OWN_URL),
    Scenario("url-elsewhere", "url on the second origin", url="{elsewhere}/pictures/{name}"),
    Scenario("url-data", "url that is a data: URL", url=DATA_URL),
    Scenario("url-and-b64", "url beside base64", url=OWN_URL, both=True),
    Scenario("url-file", "url file:///etc/passwd", url="file:///etc/passwd"),
    Scenario("url-not-picture", "url of a web page", url="{own}/pictures/page.html"),
    Scenario("url-404", "url with nothing behind it", url="{own}/pictures/gone.png"),
    Scenario("url-redirect", "url that redirects to the second origin", url="{own}/redirect/{name}"),
    Scenario("image-base64-field", "image_base64 instead of b64_json or result", field="image_base64"),
    Scenario("b64-json-in-call", "b64_json instead of result", field="b64_json"),
    # -- JSON and event streams
    Scenario("json-for-sse", "JSON although events were asked for", stream=False),
    Scenario("sse-for-json", "events although none were asked for", stream=True),
    Scenario("blank-lines-first", "blank lines, one by one, before the body", reply=CHUNKED, send=BLANKS),
    Scenario("bom", "a byte order mark before the body", body=lambda body: b"\xef\xbb\xbf" + body),
    Scenario("keep-alive", "comments or blank lines for the gateway's delay", reply=CHUNKED,
             send=sign_first(b": keep-alive\n\n", 10)),
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
    Scenario("content-filter", "previews, then response.incomplete by a content filter",
             end={"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
    Scenario("refusal", "a refusal instead of pictures",
             document=says("I cannot help with a picture of that kind.", "refusal")),
    Scenario("text-only", "words instead of pictures", document=says("I would rather talk.")),
    Scenario("status-generating", "finished pictures with status generating", document=still_generating),
    Scenario("empty-output", "response.completed with no output", events=empty_at_end),
    Scenario("only-completed", "pictures in response.completed only", events=items_done(0)),
    Scenario("duplicate-items", "every finished item twice", events=items_done(2)),
    Scenario("stream-dropped", "closes after four events; the response is stored", send=stop_after_events),
    Scenario("background-stream-dropped", "the same; the events can be had from any number on", send=stop_after_events),
    Scenario("background-failed", "ends as failed", end=FAILED),
    Scenario("background-never", "in progress for ever", polls=1 << 60),
    # -- chat
    Scenario("chat-images", "pictures beside the message, which is the usual"),
    Scenario("chat-markdown", "Markdown with data: URLs", document=chat_as(markdown)),
    Scenario("chat-markdown-link", "Markdown with http: URLs", document=chat_as(markdown), url=OWN_URL),
    Scenario("chat-content-parts", "pictures as content parts", document=chat_as(content_parts)),
    # -- many calls at once; see Storm, and `room`, `posted`, `billed`, `fates`, `most` and `hasty` of a gateway
    Scenario("storm", "429, 500, closed and cut connections and delays at random", storm, at=CALLS, send=in_storm),
    Scenario("busy", "429 for 20 ms when more than four calls are under way", busy, at=CALLS),
    # -- a batch that ends otherwise
    Scenario("batch-expired", "expires with half of it done", at=CREATE, batch=Ways("expired", 0.5)),
    Scenario("batch-expired-empty", "expires with nothing done", at=CREATE, batch=Ways("expired", 0)),
    Scenario("batch-cancelled", "is cancelled by somebody with half of it done", at=CREATE,
             batch=Ways("cancelled", 0.5)),
    Scenario("batch-refused", "every line is refused: an error file only", at=CREATE, batch=Ways(every=1)),
    Scenario("batch-some-refused", "every third line is refused", at=CREATE, batch=Ways(every=3)),
    Scenario("batch-refused-in-output", "every third line is refused, among the results", at=CREATE,
             batch=Ways(every=3, one_file=True)),
    Scenario("batch-failed", "fails the validation", at=CREATE,
             batch=Ways(errors=(told("invalid_json_line", "This line is not parseable as valid JSON.", 1),
                                told("missing_required_parameter", "There is no prompt.", 2, "body.prompt")))),
    Scenario("batch-token-limit", "fails with token_limit_exceeded, once", at=CREATE, times=1,
             batch=Ways(errors=(told("token_limit_exceeded", batch_gateway.ENQUEUED),))),
    Scenario("batch-billing-limit", "fails with billing_hard_limit_reached", at=CREATE,
             batch=Ways(errors=(told("billing_hard_limit_reached", NO_MONEY),))),
    Scenario("batch-new-status", "is queued_by_region at first", at=CREATE, batch=Ways(first=("queued_by_region",))),
    Scenario("batch-new-fields", "further fields of files, batches and lines", at=".*",
             batch=Ways(more=batch_gateway.MORE)),
    # -- lines of its results
    Scenario("batch-line-cut", "the first line ends in its middle", at=CREATE,
             batch=Ways(spoil=batch_gateway.first_line(lambda text: text[: len(text) // 2]))),
    Scenario("batch-line-noise", "the first line is noise", at=CREATE,
             batch=Ways(spoil=batch_gateway.first_line(lambda text: batch_gateway.NOISE))),
    Scenario("batch-line-missing", "the first line is in neither file", at=CREATE,
             batch=Ways(spoil=lambda lines: lines[1:])),
    Scenario("batch-line-twice", "every line of the results twice", at=CREATE, batch=Ways(spoil=batch_gateway.twice)),
    Scenario("batch-line-unknown", "a line of an id that nobody gave", at=CREATE,
             batch=Ways(spoil=batch_gateway.with_stranger)),
    Scenario("batch-line-null", "every third body is null, with status 200", at=CREATE,
             batch=Ways(every=3, refusal=page(200, "application/json", b"null"))),
    Scenario("batch-line-html", "every third line has status 502 and a web page", at=CREATE,
             batch=Ways(every=3, refusal=page(502, "text/html", HTML % b"502 Bad Gateway"))),
    Scenario("batch-lines-spaced", "CRLF, blank lines, and no line end at the end", at=CREATE,
             batch=Ways(spoil=batch_gateway.spaced)),
    # -- uploads, creation, polls
    Scenario("file-upload-lost", "keeps an upload and closes instead of saying so, once", at="POST /files", times=1,
             send=batch_gateway.unsaid),
    Scenario("file-delete-fails", "500 for every DELETE", problem(500, SERVER, type="server_error"),
             at="DELETE /files/.*"),
    Scenario("batch-create-lost", "makes a batch and closes instead of saying so, once", at=CREATE, times=1,
             send=batch_gateway.unsaid),
    Scenario("batch-create-502", "makes a batch and answers 502, once", at=CREATE, times=1,
             reply={"status": 502, "pieces": []}),
    Scenario("batch-create-unmade", "closes before it makes a batch, once", hang_up, at=CREATE, times=1),
    Scenario("batch-create-token-limit", "429 token_limit_exceeded, once",
             problem(429, batch_gateway.ENQUEUED, "token_limit_exceeded"), at=CREATE, times=1),
    Scenario("batch-create-billing-limit", "400 billing_hard_limit_reached",
             problem(400, NO_MONEY, "billing_hard_limit_reached"), at=CREATE),
    Scenario("batch-poll-429", "429 for the first two polls",
             problem(429, LIMIT, headers=(("retry-after-ms", "20"),), **LIMITED), at=POLL, times=2),
    Scenario("batch-poll-502", "502 with a web page for the first two polls",
             page(502, "text/html", HTML % b"502 Bad Gateway"), at=POLL, times=2),
    Scenario("batch-poll-closed", "closes for the first two polls", hang_up, at=POLL, times=2),
    # -- downloads
    Scenario("batch-cut-once", "the first download is cut half way", at=CONTENT, times=1, send=batch_gateway.cut_half),
    Scenario("batch-cut-always", "every download is cut half way", at=CONTENT, send=batch_gateway.cut_half),
    Scenario("batch-cut-between-lines", "the first download ends, without a length, after half of its lines",
             at=CONTENT, times=1, send=batch_gateway.cut_between_lines, reply={"framing": "close"}),
    Scenario("batch-cut-ranges", "every download is cut half way, and ranges are offered", at=CONTENT, files=RANGES,
             send=batch_gateway.cut_half),
    Scenario("batch-cut-new-etag", "the first is cut half way; ranges, and a new ETag each time", at=CONTENT, times=1,
             files=RANGES._replace(etag="new"), send=batch_gateway.cut_half),
    Scenario("batch-cut-weak-etag", "the first is cut half way; ranges, and a weak ETag", at=CONTENT, times=1,
             files=RANGES._replace(etag="weak"), send=batch_gateway.cut_half),
    Scenario("batch-output-gone", "404 for every download", problem(404, "No such File object."), at=CONTENT),
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
    key, given = exchange.studio.key, exchange.request.header("Authorization")
    if f"Bearer {key}" == given or exchange.request.header("api-key") == key:
        return
    if not given:
        raise refusal(401, "You didn't provide an API key. Use an Authorization header with Bearer auth.")
    raise refusal(401, f"Incorrect API key provided: {given[7:11]}****{given[-4:]}.", "invalid_api_key")


def receive(exchange: Exchange) -> None:
    """Read the body, or answer early."""
    request = exchange.request
    exchange.length = read_length(request)
    exchange.interfere("connect", "head")
    if request.header("Expect").lower() == "100-continue":
        exchange.incoming.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        spool = exchange.studio.shelf.spool if path_of(request) == "/files" else None
        read_body(request, exchange.incoming.body(exchange.length, request), spool)
    except Answer as answer:
        # What may follow a broken body would be taken for the next request.
        raise answer.closing() from None


def api_reply(exchange: Exchange) -> Reply:
    """Answer a request under /v1: a canned reply, a refusal, the scenario's deed or the real thing."""
    studio, scenario = exchange.studio, exchange.scenario
    receive(exchange)
    with studio.lock:
        if re.fullmatch(CALLS, f"{exchange.request.method} {path_of(exchange.request)}"):
            studio.posted[prompt_of(exchange.request)] += 1
        if studio.queue and exchange.request.method == "POST":
            return studio.queue.pop(0)
    check_key(exchange)
    exchange.interfere("body")
    reply = route_reply(exchange)
    if scenario.body:
        reply = reply._replace(pieces=[Piece(scenario.body(b"".join(piece.data for piece in reply.pieces)))])
    return reply._replace(headers=(*reply.headers, *scenario.headers), **scenario.reply)


def write(exchange: Exchange, reply: Reply, last: bool) -> None:
    """Send a reply; its head leaves together with the first bytes of its body."""
    own = (("date", email.utils.formatdate(usegmt=True)), ("x-request-id", exchange.studio.name("req_")))
    head = reply_head(reply, own, last)
    for data in frame(reply, exchange.scenario.send(exchange, reply)):
        exchange.incoming.sock.sendall(head + data if head else data)
        head = b""
    exchange.incoming.sock.sendall(head)


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
        with self.gateway.studio.working(head.startswith(b"POST ")):
            return self.answer(head)

    def answer(self, head: bytes) -> bool:
        """Read the rest of a request and reply; False when the connection is done with."""
        exchange = Exchange(self.gateway.studio, self.incoming, Recorded("?", "?", []), PLAIN)
        try:
            exchange.request = read_head(head)
            self.origin.requests.append(exchange.request)
            reply = self.reply(exchange)
        except Answer as answer:
            reply = answer.reply
        request = exchange.request
        last = reply.close or reply.missing > 0 or reply.framing == "close" or request.method == "?"
        last = last or request.header("Connection").lower() == "close"
        if self.gateway.log:
            print(f"{request.method} {request.path} -> {reply.status}", file=sys.stderr, flush=True)
        write(exchange, reply, last)
        return not last

    def reply(self, exchange: Exchange) -> Reply:
        """Answer a request: pictures by name on both origins, the API on the first."""
        path = exchange.request.path
        if path.startswith(("/pictures/", "/redirect/")):
            return get_picture(exchange)
        if self.origin is self.gateway.elsewhere or not path.startswith(("/v1/", "/moved/v1/")):
            with contextlib.suppress(Answer):
                receive(exchange)
            raise refusal(404, f"Invalid URL ({exchange.request.method} {path})")
        if not path.startswith("/moved/"):
            exchange.scenario = self.gateway.use(exchange.request)
        return api_reply(exchange)


# ------------------------------------------------------------------------------------------------------------- gateway


@final
class Gateway:
    """The stand-in gateway: its two ports, what it was asked, and what it painted."""

    def __init__(
        self,
        scenario: str = "plain",
        key: str = KEY,
        delay: float = 0.0,
        port: int = 0,
        polls: int = 2,
        weight: int = 0,
    ) -> None:
        self.row = scenario_row(scenario)
        self.key, self.log = key, False
        self.own, self.elsewhere = Origin(port), Origin()
        self.url, self.origin, self.requests = self.own.url, self.own.origin, self.own.requests
        self.studio = Studio(key, delay, polls, weight, own=self.origin, elsewhere=self.elsewhere.origin)
        self.shelf, self.files, self.batches = self.studio.shelf, self.studio.shelf.files, self.studio.shelf.batches
        self.limits, self.posted, self.billed = self.shelf.limits, self.studio.posted, self.studio.billed
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
        pairs = (("Content-Type", content_type), *headers)
        with self.studio.lock:
            self.studio.queue.append(Reply(status, pairs, pieces, "close" if length is None else "length", missing))

    def use(self, request: Recorded) -> Scenario:
        """The scenario for one more request; one that is used up, or not for this one, becomes the plain one."""
        asked = request.header("X-Gateway-Scenario")
        if asked and asked not in BY_NAME:
            raise refusal(400, f"Unknown scenario '{asked}'.").closing()
        row = BY_NAME[asked] if asked else self.row
        plain = PLAIN._replace(files=row.files)
        if row.at and not re.fullmatch(row.at, f"{request.method} {path_of(request)}"):
            return plain
        with self._lock:
            self._uses[row.name] = self._uses.get(row.name, 0) + 1
            return plain if row.times and self._uses[row.name] > row.times else row

    def forget(self, sock: socket.socket) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(sock, None)
        sock.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for origin in (self.own, self.elsewhere):
                selector.register(origin.listener, selectors.EVENT_READ, origin)
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
        for each in (self.own.listener, self.elsewhere.listener, self._bell, self._wake, self.shelf):
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
    gateway.log = True
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
    parser.add_argument("--polls", type=int, default=2, metavar="N", help="how often what is queued is in progress")
    parser.add_argument("--weight", type=int, default=0, metavar="BYTES", help="pad each picture to this size")
    parser.add_argument("--list", action="store_true", help="print the scenarios and stop")
    given = parser.parse_args(options)
    if given.list:
        print("\n".join(f"{row.name:26} {row.line}" for row in SCENARIOS))
        return 0
    own_ways = {"delay": given.delay, "port": given.port, "polls": given.polls, "weight": given.weight}
    with Gateway(given.scenario, **own_ways) as gateway:
        if not command:
            return serve(gateway)
        own = {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": gateway.key}
        for name in ("NO_PROXY", *(["no_proxy"] if "no_proxy" in os.environ else [])):
            own[name] = ",".join(filter(None, (os.environ.get(name, ""), "127.0.0.1")))
        return run_command(command, {**os.environ, **own})


if __name__ == "__main__":
    raise SystemExit(main())
