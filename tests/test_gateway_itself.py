"""The stand-in gateway must be right itself, or the tests that lean on it prove nothing."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import unittest
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests import gateway as stand_in
from tests import pictures
from tests.gateway import Fields, Gateway

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
# A model the tables do not know takes any size, and small pictures keep these tests fast.
SMALL: Fields = {"model": "small", "prompt": "A lake", "size": "48x32"}
TOOL: Fields = {"type": "image_generation", "model": "small", "size": "48x32"}
TALK: Fields = {"model": "gpt-5.4", "input": "A lake", "tools": [TOOL], "tool_choice": {"type": "image_generation"}}
SAY: Fields = {"model": "small", "size": "48x32", "messages": [{"role": "user", "content": "A lake"}]}


class Outcome(NamedTuple):
    """What a client saw: a reply, or how the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: str = ""

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> Fields:
        """The error object."""
        error = self.json["error"]
        return error if isinstance(error, dict) else {}

    @property
    def events(self) -> list[Fields]:
        """The documents of an event stream, each data line by itself."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def kinds(self) -> list[str]:
        """The types of the events, without what they have in common."""
        start = re.compile(r"^(image_generation|image_edit|response)\.")
        return [start.sub("", event.get("type", "")) for event in self.events]


def ask(
    gateway: Gateway,
    method: str,
    path: str,
    body: bytes | Fields = b"",
    headers: Fields | None = None,
    timeout: float = 5,
    limit: int | None = None,
) -> Outcome:
    """Send one request as a client with the right key would."""
    given: Fields = {"Authorization": f"Bearer {gateway.key}", **(headers or {})}
    if isinstance(body, dict):
        body, given["Content-Type"] = json.dumps(body).encode(), "application/json"
    connection = http.client.HTTPConnection(gateway.origin[7:], timeout=timeout)
    status, seen = 0, {}
    try:
        connection.request(method, path, body or None, given)
        reply = connection.getresponse()
        status, seen = reply.status, {name.lower(): value for name, value in reply.getheaders()}
        return Outcome(status, seen, reply.read(limit))
    except http.client.IncompleteRead as error:
        return Outcome(status, seen, error.partial, "cut")
    except (socket.timeout, OSError, http.client.HTTPException) as error:
        return Outcome(status, seen, b"", "timeout" if isinstance(error, socket.timeout) else "closed")
    finally:
        connection.close()


def form(parts: Iterable[tuple[str, bytes]], boundary: bytes = b"xXx") -> bytes:
    """A multipart body; each part is the rest of its header lines and its content."""
    lines = [b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, h.encode(), d) for h, d in parts]
    return b"".join(lines) + b"--%b--\r\n" % boundary


def file_part(name: str, data: bytes, kind: str = "image/png", filename: str = "a.png") -> tuple[str, bytes]:
    """A file as `form` wants it."""
    return f'name="{name}"; filename="{filename}"\r\nContent-Type: {kind}', data


FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=xXx"}
TEXTS = [('name="model"', b"small"), ('name="prompt"', b"A lake"), ('name="size"', b"48x32")]


def png_rows(data: bytes) -> int:
    """Check every chunk of a PNG and inflate it; returns the bytes of its rows."""
    at, pixels = 8, b""
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert zlib.crc32(name + content) == int.from_bytes(data[at + 8 + length : at + 12 + length], "big"), name
        pixels += content if name == b"IDAT" else b""
        at += 12 + length
    return len(zlib.decompress(pixels))


class GatewayCase(unittest.TestCase):
    """A test that talks to a gateway of its own."""

    def start(self, scenario: str = "plain", **options: Any) -> Gateway:
        gateway = Gateway(scenario, **options)
        self.addCleanup(gateway.close)
        return gateway

    def post(self, gateway: Gateway, path: str, body: bytes | Fields, **headers: str) -> Outcome:
        return ask(gateway, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


class PicturesTest(unittest.TestCase):
    """The painter."""

    def test_a_png_inflates_to_its_announced_size(self) -> None:
        for width, height, clear in ((1536, 1024, False), (64, 48, True), (33, 1000, False)):
            with self.subTest(width=width, height=height, clear=clear):
                data = pictures.picture(b"seed", "png", width, height, clear)
                self.assertEqual(pictures.measure(data), ("png", width, height, clear))
                self.assertEqual(png_rows(data), height * (1 + (4 if clear else 3) * width))

    def test_every_format_has_its_form(self) -> None:
        table = (("jpeg", b"\xff\xd8\xff", b"\xff\xd9"), ("webp", b"RIFF", b""), ("gif", b"GIF89a", b";"))
        for name, start, end in table:
            with self.subTest(name):
                data = pictures.picture(b"seed", name, 48, 32)
                self.assertTrue(data.startswith(start) and data.endswith(end))
                self.assertEqual(pictures.measure(data), (name, 48, 32, False))
        self.assertIn(b'width="48"', pictures.picture(b"seed", "svg", 48, 32))

    def test_pictures_can_be_told_apart(self) -> None:
        seen = {pictures.picture(seed, "png", 48, 32, block=block) for seed in (b"a", b"b") for block in (1, 16, 32)}
        self.assertEqual(len(seen), 6)

    def test_a_large_picture_is_a_real_png(self) -> None:
        parts, texts = pictures.large(b"seed", 3 << 20)
        data = b"".join(parts)
        self.assertEqual(base64.b64decode(b"".join(texts)), data)
        self.assertEqual(png_rows(data), 1024 * (1 + 3 * 1024))
        self.assertGreater(len(data), 3 << 20)


class RoutesTest(GatewayCase):
    """What each route answers when all is well."""

    def test_generations_return_pictures_of_the_asked_size_and_format(self) -> None:
        gateway = self.start()
        for form_ in ("png", "jpeg", "webp", "gif", "svg"):
            with self.subTest(form_):
                body = {**SMALL, "output_format": form_, "n": 1 if form_ == "svg" else 2}
                out = self.post(gateway, GENERATIONS, body)
                painted = [base64.b64decode(item["b64_json"], validate=True) for item in out.json["data"]]
                self.assertEqual(painted, gateway.pictures[-len(painted) :])
                self.assertEqual((out.json["size"], out.json["output_format"]), ("48x32", form_))
                self.assertEqual(len(set(painted)), len(painted))
        self.assertEqual(out.headers["x-request-id"][:4], "req_")
        self.assertEqual(out.json["svg_usage"]["total_tokens"], 3000)

    def test_usage_follows_the_published_figures(self) -> None:
        gateway = self.start()
        for quality, size, tokens in (("low", "1024x1024", 196), ("high", "1536x1024", 5488), ("medium", "auto", 1756)):
            body = {"model": "gpt-image-2", "prompt": "A lake", "quality": quality, "size": size}
            with self.subTest(quality, size=size):
                self.assertEqual(self.post(gateway, GENERATIONS, body).json["usage"]["output_tokens"], tokens)

    def test_a_stream_has_previews_and_then_the_picture(self) -> None:
        gateway = self.start()
        out = self.post(gateway, GENERATIONS, {**SMALL, "stream": True, "partial_images": 2})
        self.assertEqual(out.kinds, ["partial_image", "partial_image", "completed"])
        self.assertIn(b"event: image_generation.completed\ndata: {", out.body)
        self.assertEqual([event.get("partial_image_index") for event in out.events], [0, 1, None])
        painted = [base64.b64decode(event["b64_json"]) for event in out.events]
        self.assertEqual(painted, gateway.previews + gateway.pictures)

    def test_an_edit_looks_different_with_another_input(self) -> None:
        gateway = self.start()
        names = ("image[]", "image", "image[0]", "image[]")
        for name, seed in zip(names, (b"a", b"a", b"a", b"b")):
            parts = [*TEXTS, file_part(name, pictures.picture(seed, "png", 32, 32))]
            self.assertEqual(ask(gateway, "POST", EDITS, form(parts), FORM_TYPE).status, 200)
        self.assertEqual([gateway.pictures.index(each) for each in gateway.pictures], [0, 0, 0, 3])

    def test_an_edit_may_come_as_json(self) -> None:
        gateway = self.start()
        url = "data:image/webp;base64," + base64.b64encode(pictures.picture(b"a", "webp", 32, 32)).decode()
        images = [{"image_url": url}, {"file_id": "file-1"}, {"image_url": "https://example.com/a.png"}]
        out = self.post(gateway, EDITS, {**SMALL, "images": images, "moderation": "low", "stream": True})
        self.assertEqual([event["type"] for event in out.events], ["image_edit.completed"])

    def test_a_form_is_recorded_part_by_part(self) -> None:
        gateway = self.start()
        picture = pictures.picture(b"a", "png", 32, 32)
        body = form([*TEXTS, file_part("image[]", picture, filename="sch%22ön%0D%0A.png")])
        self.assertEqual(ask(gateway, "POST", EDITS, body, FORM_TYPE).status, 200)
        record = gateway.requests[0]
        assert record.form is not None
        self.assertEqual(record.form[1][:6], ("prompt", None, None, 6, hashlib.sha256(b"A lake").hexdigest(), "A lake"))
        seen = ("image[]", 'sch"ön\r\n.png', "image/png", len(picture), hashlib.sha256(picture).hexdigest(), None)
        self.assertEqual(record.form[3][:6], seen)
        self.assertEqual((record.method, record.path, record.body_bytes), ("POST", EDITS, len(body)))
        self.assertIn(("Authorization", f"Bearer {gateway.key}"), record.headers)

    def test_a_response_has_pictures_and_words_as_the_input_says(self) -> None:
        gateway = self.start()
        free = {**TALK, "tool_choice": "auto"}
        call, message = "image_generation_call", "message"
        table = (
            (TALK, "A lake", [call]),
            (TALK, "three pictures of a lake", [call] * 3),
            (TALK, "99 pictures, or 9 pictures", [call]),
            (TALK, "text and picture", [call, message]),
            (free, "A lake", [call, message]),
            (free, "only text please", [message]),
            ({**TALK, "tool_choice": "none"}, "A lake", [message]),
        )
        for body, words, kinds in table:
            with self.subTest(words, choice=body["tool_choice"]):
                out = self.post(gateway, RESPONSES, {**body, "input": words})
                self.assertEqual([item["type"] for item in out.json["output"]], kinds)
                self.assertEqual((out.json["object"], out.json["status"]), ("response", "completed"))

    def test_the_events_of_a_response_are_numbered_and_complete(self) -> None:
        gateway = self.start()
        body = {**TALK, "input": "text and picture", "stream": True, "tools": [{**TOOL, "partial_images": 1}]}
        out = self.post(gateway, RESPONSES, body)
        self.assertEqual([event["sequence_number"] for event in out.events], list(range(len(out.events))))
        call = ["in_progress", "generating", "partial_image", "completed"]
        wanted = ["created", "in_progress", "output_item.added", *(f"image_generation_call.{word}" for word in call)]
        wanted += ["output_item.done", "output_item.added", "content_part.added", "output_text.delta"]
        self.assertEqual(out.kinds[: len(wanted)], wanted)
        self.assertEqual(out.kinds[-3:], ["content_part.done", "output_item.done", "completed"])
        final = base64.b64decode(out.events[-1]["response"]["output"][0]["result"])
        self.assertEqual([final], gateway.pictures)

    def test_a_response_can_be_continued(self) -> None:
        gateway = self.start()
        first = self.post(gateway, RESPONSES, TALK).json
        call = {"type": "image_generation_call", "id": first["output"][0]["id"]}
        said = {"role": "user", "content": [{"type": "input_text", "text": "warmer"}]}
        edit = {"tools": [{**TOOL, "action": "edit"}]}
        for body, status in (
            ({**TALK, **edit, "previous_response_id": first["id"]}, 200),
            ({**TALK, **edit, "input": [call, said]}, 200),
            ({**TALK, "previous_response_id": "resp_unknown"}, 400),
            ({**TALK, "input": [{**call, "id": "ig_unknown"}, said]}, 404),
        ):
            with self.subTest(body=body):
                self.assertEqual(self.post(gateway, RESPONSES, body).status, status)

    def test_a_response_that_is_not_stored_cannot_be_had_again(self) -> None:
        gateway = self.start()
        for store, status in ((True, 200), (False, 404)):
            name = self.post(gateway, RESPONSES, {**TALK, "store": store}).json["id"]
            self.assertEqual(ask(gateway, "GET", f"{RESPONSES}/{name}").status, status)

    def test_a_background_response_is_queued_then_in_progress_then_completed(self) -> None:
        gateway = self.start(polls=2)
        queued = self.post(gateway, RESPONSES, {**TALK, "background": True}).json
        seen = [ask(gateway, "GET", f"{RESPONSES}/{queued['id']}").json for _ in range(4)]
        self.assertEqual((queued["status"], queued["output"]), ("queued", []))
        self.assertEqual([each["status"] for each in seen], ["in_progress", "in_progress", "completed", "completed"])
        self.assertEqual(base64.b64decode(seen[2]["output"][0]["result"]), gateway.pictures[0])

    def test_a_background_response_can_be_cancelled_twice(self) -> None:
        gateway = self.start()
        name = self.post(gateway, RESPONSES, {**TALK, "background": True}).json["id"]
        for _ in range(2):
            self.assertEqual(ask(gateway, "POST", f"{RESPONSES}/{name}/cancel", {}).json["status"], "cancelled")
        self.assertEqual(ask(gateway, "GET", f"{RESPONSES}/{name}").json["status"], "cancelled")

    def test_a_dropped_stream_can_be_taken_up_where_it_ended(self) -> None:
        gateway = self.start("background-stream-dropped")
        out = self.post(gateway, RESPONSES, {**TALK, "background": True, "stream": True})
        self.assertEqual((out.broken, len(out.events)), ("cut", 4))
        path = f"{RESPONSES}/{out.events[0]['response']['id']}?stream=true&starting_after=3"
        rest = ask(gateway, "GET", path)
        self.assertEqual(rest.events[0]["sequence_number"], 4)
        self.assertEqual(rest.kinds[-1], "completed")

    def test_chat_puts_pictures_beside_the_message(self) -> None:
        gateway = self.start()
        out = self.post(gateway, CHAT, SAY).json
        url = out["choices"][0]["message"]["images"][0]["image_url"]["url"]
        self.assertEqual(base64.b64decode(url.partition(",")[2]), gateway.pictures[0])
        streamed = self.post(gateway, CHAT, {**SAY, "stream": True})
        self.assertTrue(streamed.body.endswith(b"data: [DONE]\n\n"))
        deltas = [event["choices"][0]["delta"] for event in streamed.events if event["choices"]]
        self.assertEqual([next(iter(delta), "") for delta in deltas], ["role", "content", "images", ""])

    def test_models_are_listed(self) -> None:
        gateway = self.start()
        names = [row["id"] for row in ask(gateway, "GET", "/v1/models").json["data"]]
        self.assertIn("gpt-image-2", names)
        self.assertNotIn("dall-e-3", names)


class RefusalsTest(GatewayCase):
    """What the gateway refuses, as the API does."""

    def refused(self, out: Outcome, code: str | None, param: str | None, status: int = 400) -> None:
        self.assertEqual((out.status, out.error["code"], out.error["param"]), (status, code, param), out.body)

    def test_the_key_must_be_right(self) -> None:
        gateway = self.start(key="sk-test-0123456789")
        for given in ("Bearer sk-other", "", "sk-test-0123456789"):
            out = ask(gateway, "GET", "/v1/models", headers={"Authorization": given})
            self.assertEqual(out.status, 401)
            self.assertNotIn(b"sk-test-0123456789", out.body)
        good = {"Authorization": "", "api-key": "sk-test-0123456789"}
        self.assertEqual(ask(gateway, "GET", "/v1/models", headers=good).status, 200)

    def test_generations_refuse_what_the_api_refuses(self) -> None:
        gateway = self.start()
        table: tuple[tuple[Fields, str, str], ...] = (
            ({"seed": 1}, "unknown_parameter", "seed"),
            ({"svg": {"model": "x", "colour": 1}, "output_format": "svg"}, "unknown_parameter", "svg.colour"),
            ({"response_format": "url"}, "unknown_parameter", "response_format"),
            ({"style": "vivid"}, "unknown_parameter", "style"),
            ({"prompt": ""}, "string_below_min_length", "prompt"),
            ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
            ({"model": None}, "missing_required_parameter", "model"),
            ({"n": "2"}, "invalid_type", "n"),
            ({"n": True}, "invalid_type", "n"),
            ({"n": 11}, "integer_above_max_value", "n"),
            ({"n": 2, "stream": True}, "invalid_value", "stream"),
            ({"stream": "true"}, "invalid_type", "stream"),
            ({"size": "1920x1080"}, "invalid_value", "size"),
            ({"size": "512x512"}, "invalid_value", "size"),
            ({"size": "4096x4096"}, "invalid_value", "size"),
            ({"size": "3840x2176"}, "invalid_value", "size"),
            ({"size": "3200x1024"}, "invalid_value", "size"),
            ({"size": "large"}, "invalid_value", "size"),
            ({"size": "1536x864", "model": "gpt-image-1.5"}, "invalid_value", "size"),
            ({"quality": "xhigh"}, "invalid_value", "quality"),
            ({"quality": "hd"}, "invalid_value", "quality"),
            ({"background": "transparent", "output_format": "jpeg"}, "invalid_value", "background"),
            ({"output_compression": 90}, "invalid_value", "output_compression"),
            ({"output_compression": 101, "output_format": "webp"}, "integer_above_max_value", "output_compression"),
            ({"partial_images": 2}, "invalid_value", "partial_images"),
            ({"partial_images": 4, "stream": True}, "integer_above_max_value", "partial_images"),
            ({"moderation": "high"}, "invalid_value", "moderation"),
            ({"complexity": "low"}, "invalid_value", "complexity"),
            ({"output_format": "gif"}, "invalid_value", "output_format"),
            ({"model": "gpt-image-2.6-flare", "output_format": "gif", "stream": True}, "invalid_value", "stream"),
            ({"model": "gpt-image-2.6-flare", "output_format": "svg", "n": 2}, "invalid_value", "n"),
            ({"frame_count": 3}, "invalid_value", "frame_count"),
        )
        for fields, code, param in table:
            with self.subTest(str(fields)[:60]):
                out = self.post(gateway, GENERATIONS, {"model": "gpt-image-2", "prompt": "A lake", **fields})
                self.refused(out, code, param)
        for model in ("dall-e-3", "gpt-image-1", "gpt-image-2.5"):
            out = self.post(gateway, GENERATIONS, {"model": model, "prompt": "A lake"})
            self.refused(out, "model_not_found", "model", 404)
        self.assertEqual(gateway.pictures, [])

    def test_what_is_allowed_passes(self) -> None:
        gateway = self.start()
        for fields in (
            {"model": "gpt-image-2", "background": "transparent", "output_format": "webp", "size": "1024x768"},
            {"model": "gpt-image-2.5-flare", "quality": "max", "size": "1024x768"},
            {"model": "gpt-image-2.6-sunburst", "complexity": "high", "output_format": "svg", "size": None},
            {"model": "other", "response_format": "url", "style": "vivid", "size": "7x5", "quality": "hd"},
        ):
            with self.subTest(fields=fields):
                self.assertEqual(self.post(gateway, GENERATIONS, {"prompt": "A lake", **fields}).status, 200)

    def test_a_body_must_be_json(self) -> None:
        gateway = self.start()
        for body in (b"{", b'{"model": "small", "model": "small"}', b'{"n": NaN}', b'"text"', b"\xff"):
            with self.subTest(body=body):
                out = ask(gateway, "POST", GENERATIONS, body, {"Content-Type": "application/json"})
                self.assertEqual(out.status, 400)
        self.assertEqual(ask(gateway, "POST", GENERATIONS, b"{}", {"Content-Type": "text/plain"}).status, 400)

    def test_forms_are_read_strictly(self) -> None:
        gateway = self.start()
        png, jpeg = pictures.picture(b"a", "png", 32, 32), pictures.picture(b"a", "jpeg", 32, 32)
        image = file_part("image[]", png)
        mask = file_part("mask", pictures.picture(b"a", "png", 32, 32, clear=True))
        table: tuple[tuple[list[tuple[str, bytes]], str], ...] = (
            ([file_part("image", png, "text/plain")], "unsupported mimetype ('text/plain')"),
            ([file_part("image", jpeg, "image/png")], "unsupported mimetype ('image/jpeg')"),
            ([file_part("image", b"text", "image/png")], "unsupported mimetype ('application/octet-stream')"),
            ([file_part("image", png, filename="")], "expected a file"),
            ([('name="image"', png[:1] + b"x")], "not UTF-8"),
            ([image, ('name="moderation"', b"low")], "Unknown parameter: 'moderation'"),
            ([image, ('name="n"', b"+2")], "Invalid type for 'n'"),
            ([image, ('name="stream"', b"True")], "Invalid type for 'stream'"),
            ([image, TEXTS[0]], "Duplicate parameter: 'model'"),
            ([image, mask, mask], "Duplicate parameter: 'mask'"),
            ([image, file_part("mask", png)], "alpha channel"),
            ([image, file_part("mask", jpeg, "image/jpeg")], "alpha channel"),
            ([image, file_part("mask", pictures.picture(b"a", "png", 48, 32, clear=True))], "must match"),
            ([image, mask, file_part("markup", mask[1])], "cannot be combined"),
            ([image] * 17, "array too long"),
            ([], "Missing required parameter: 'image'"),
        )
        for parts, message in table:
            with self.subTest(message):
                out = ask(gateway, "POST", EDITS, form([*TEXTS, *parts]), FORM_TYPE)
                self.assertEqual(out.status, 400)
                self.assertIn(message, out.error["message"])
        self.assertEqual(ask(gateway, "POST", EDITS, form([*TEXTS, image, mask]), FORM_TYPE).status, 200)

    def test_broken_forms_are_refused(self) -> None:
        gateway = self.start()
        whole = form([*TEXTS, file_part("image", pictures.picture(b"a", "png", 32, 32))])
        table = (
            (whole[:-6], "ends before"),
            (b"\r\n" + whole, "does not begin"),
            (whole + b"more", "follows its closing boundary"),
            (whole.replace(b"--xXx\r\n", b"--xXx \r\n", 1), "not followed by a line end"),
            (whole.replace(b'name="model"', b"name=model"), "Content-Disposition"),
            (whole.replace(b'"a.png"', b'"a\\".png"'), "Content-Disposition"),
            (whole.replace(b"Content-Type", b"Content-Length"), "unexpected header"),
        )
        for body, message in table:
            with self.subTest(message):
                out = ask(gateway, "POST", EDITS, body, FORM_TYPE)
                self.assertIn(message, out.error["message"])

    def test_the_length_must_be_announced_and_kept(self) -> None:
        gateway = self.start()
        body = json.dumps(SMALL).encode()
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        table = (
            (b"Transfer-Encoding: chunked\r\n\r\n", b" 411 "),
            (b"\r\n", b" 411 "),
            (b"Content-Length: %d\r\n\r\n" % (len(body) - 1), b" 400 "),
            (b"Content-Length: %d\r\n\r\n" % (len(body) + 1), b" 400 "),
        )
        for rest, status in table:
            with self.subTest(rest=rest), socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
                sock.sendall(head + rest + body)
                sock.shutdown(socket.SHUT_WR)
                self.assertIn(status, sock.makefile("rb").readline())

    def test_responses_refuse_what_the_api_refuses(self) -> None:
        gateway = self.start()
        part, mask = "input[0].content[0]", "tools[0].input_image_mask"

        def said(**content: str) -> Fields:
            return {"input": [{"role": "user", "content": [content]}]}

        table: tuple[tuple[Fields, str, str], ...] = (
            ({"n": 2}, "unknown_parameter", "n"),
            ({"tools": [{**TOOL, "n": 2}]}, "unknown_parameter", "tools[0].n"),
            ({"tools": [{**TOOL, "partial_images": 1}]}, "invalid_value", "tools[0].partial_images"),
            ({"tools": [{**TOOL, "model": None, "size": "1920x1080"}]}, "invalid_value", "tools[0].size"),
            ({"tools": [{**TOOL, "action": "edit"}]}, "invalid_value", "tools[0].action"),
            ({"tools": [{**TOOL, "input_image_mask": {"url": ""}}]}, "unknown_parameter", f"{mask}.url"),
            ({"model": "gpt-image-2"}, "unsupported_model", "model"),
            ({"input": None}, "missing_required_parameter", "input"),
            (said(type="text", text="x"), "invalid_value", f"{part}.type"),
            (said(type="input_text"), "missing_required_parameter", f"{part}.text"),
            (said(type="input_image", image_url="x.png"), "invalid_value", f"{part}.image_url"),
            (said(type="input_image", file_id="file-1", detail="all"), "invalid_value", f"{part}.detail"),
            ({"tool_choice": {"type": "image"}}, "invalid_value", "tool_choice"),
            ({"tools": [{"type": "web_search"}]}, "invalid_value", "tool_choice"),
            ({"metadata": {str(i): "x" for i in range(17)}}, "invalid_value", "metadata"),
            ({"metadata": {"a": 1}}, "invalid_value", "metadata"),
            ({"previous_response_id": "resp_x"}, "previous_response_not_found", "previous_response_id"),
            ({"background": True, "store": False}, "invalid_value", "background"),
            ({"background": "transparent"}, "invalid_type", "background"),
        )  # fmt: skip
        for fields, code, param in table:
            with self.subTest(str(fields)[:80]):
                self.refused(self.post(gateway, RESPONSES, {**TALK, **fields}), code, param)

    def test_references_are_checked(self) -> None:
        gateway = self.start()
        png = base64.b64encode(pictures.picture(b"a", "png", 32, 32)).decode()
        for image in (
            {},
            {"image_url": "https://x.test/a.png", "file_id": "file-1"},
            {"image_url": f"data:image/jpeg;base64,{png}"},
            {"image_url": f"data:image/png;base64,{png[:-1]}!"},
            {"image_url": "file:///a.png"},
            {"file_id": "a.png"},
            {"image_url": "data:image/png;base64," + "A" * 20_971_520},
        ):
            with self.subTest(str(image)[:60]):
                self.assertEqual(self.post(gateway, EDITS, {**SMALL, "images": [image]}).status, 400)


Check = Callable[[Outcome], Any]


def gives(code: int, text: str = "") -> Check:
    """A reply with this status and text."""
    return lambda out: out.status == code and text in out.body.decode() and not out.broken


def header(code: int, name: str, pattern: str) -> Check:
    """A reply with this status and header."""
    return lambda out: out.status == code and re.search(pattern, out.headers.get(name, ""))


def holds(*texts: bytes) -> Check:
    """A 200 whose body holds these bytes."""
    return lambda out: out.status == 200 and all(text in out.body for text in texts)


def ending(*kinds: str) -> Check:
    """A stream whose last events are these."""
    return lambda out: out.kinds[-len(kinds) :] == list(kinds)


def first_picture(out: Outcome) -> bytes:
    """The first picture of an Images reply."""
    return base64.b64decode(out.json["data"][0]["b64_json"])


def points(pattern: str) -> Check:
    """An Images reply with such a URL and no base64."""
    return lambda out: re.match(pattern, out.json["data"][0]["url"]) and "b64_json" not in out.json["data"][0]


JSON = (GENERATIONS, SMALL)
THREE = (GENERATIONS, {**SMALL, "n": 3})
STREAM = (GENERATIONS, {**SMALL, "stream": True, "partial_images": 2})
CALL = (RESPONSES, TALK)
CALL_STREAM = (RESPONSES, {**TALK, "stream": True, "tools": [{**TOOL, "partial_images": 2}]})
QUEUED = (RESPONSES, {**TALK, "background": True})
SPOKEN = (CHAT, SAY)
HOST = r"http://127\.0\.0\.1:\d+"

# Which request shows a scenario, and what must be seen. Each row is a scenario; the table is checked for gaps.
SCENARIOS: dict[str, tuple[tuple[str, Fields], Check]] = {
    "plain": (JSON, gives(200)),
    "rate-limited-once": (JSON, header(429, "retry-after-ms", "^20$")),
    "rate-limited-seconds": (JSON, header(429, "retry-after", "^1$")),
    "rate-limited-date": (JSON, header(429, "retry-after", r"^\w{3}, .* GMT$")),
    "slow-down-once": (JSON, gives(429, "slow_down")),
    "quota": (JSON, gives(429, "insufficient_quota")),
    "should-retry-false": (JSON, header(500, "x-should-retry", "false")),
    "should-retry-true": (JSON, header(400, "x-should-retry", "true")),
    "fault-500-once": (JSON, gives(500)),
    "fault-503-once": (JSON, gives(503)),
    "fault-408-once": (JSON, gives(408)),
    "fault-409-once": (JSON, gives(409)),
    "fault-502": (JSON, gives(502)),
    "fault-504": (JSON, gives(504)),
    "fault-524": (JSON, gives(524, "<title>")),
    "bad-request": (JSON, gives(400)),
    "moderation": (JSON, lambda out: out.error["moderation_details"]["categories"] == ["violence"]),
    "forbidden": (JSON, gives(403)),
    "not-found": (JSON, gives(404, "model_not_found")),
    "close-at-connect": (JSON, lambda out: out.broken == "closed"),
    "close-before-reply": (JSON, lambda out: out.broken == "closed"),
    "reset-before-reply": (JSON, lambda out: out.broken == "closed"),
    "hang": (JSON, lambda out: out.broken == "timeout" and out.status == 0),
    "hang-in-mid-picture": (JSON, lambda out: out.broken == "timeout" and out.status == 200),
    "cut-in-mid-picture": (JSON, lambda out: out.broken == "cut" and out.body.count(b'"b64_json"') == 1),
    "cut-in-third-picture": (THREE, lambda out: out.broken == "cut" and out.body.count(b'"b64_json"') == 3),
    "cut-after-last-picture": (THREE, lambda out: out.broken == "cut" and out.body[-1:].isalnum()),
    "short-content-length": (JSON, lambda out: out.broken == "cut" and out.json["data"]),
    "chunked": (JSON, header(200, "transfer-encoding", "chunked")),
    "trickle": (JSON, gives(200)),
    "interim-102": (JSON, lambda out: out.status in (103, 200)),
    "gzip": (JSON, lambda out: zlib.decompress(out.body, 31).startswith(b"{")),
    "early-401": (JSON, gives(401)),
    "early-413": (JSON, gives(413)),
    "redirect": (JSON, header(307, "location", HOST + GENERATIONS)),
    "redirect-302": (JSON, header(302, "location", HOST + GENERATIONS)),
    "redirect-same-origin": (JSON, header(307, "location", HOST + "/moved" + GENERATIONS)),
    "html-error": (JSON, gives(502, "<title>502 Bad Gateway")),
    "html-200": (JSON, gives(200, "<title>")),
    "error-in-200": (JSON, lambda out: out.status == 200 and out.error),
    "error-in-200-late": (JSON, lambda out: out.body.startswith(b"\n\n") and out.error),
    "key-in-error": (JSON, gives(401, stand_in.KEY)),
    "key-in-400": (JSON, header(400, "x-debug-authorization", stand_in.KEY)),
    "key-in-reply": (JSON, lambda out: stand_in.KEY in out.json["data"][0]["revised_prompt"]),
    "empty-body": (JSON, lambda out: out.status == 200 and out.body == b""),
    "garbage": (JSON, lambda out: out.status == 200 and len(out.body) == 3000),
    "escaped-slashes": (JSON, lambda out: out.body.count(b"\\/") == out.body.count(b"/") > 0 and first_picture(out)),
    "unicode-escapes": (JSON, lambda out: b"\\u002B" in out.body and b"+" not in out.body and first_picture(out)),
    "base64-line-breaks": (JSON, holds(b"\\n")),
    "base64-raw-newlines": (JSON, lambda out: re.search(rb"[A-Za-z0-9+/]{76}\n[A-Za-z0-9+/]{76}\n", out.body)),
    "base64-no-padding": (THREE, lambda out: b"=" not in out.body and out.status == 200),
    "base64-data-prefix": (JSON, holds(b"data:image/png;base64,")),
    "base64-bad-character": (THREE, lambda out: ["!" in x["b64_json"] for x in out.json["data"]] == [0, 1, 0]),
    "base64-truncated": (JSON, lambda out: len(out.json["data"][0]["b64_json"]) % 4 == 1),
    "picture-truncated": (JSON, lambda out: not first_picture(out).endswith(b"IEND\xaeB`\x82")),
    "not-a-picture": (JSON, lambda out: pictures.measure(first_picture(out)) is None),
    "wrong-format": (JSON, lambda out: pictures.measure(first_picture(out)) == ("jpeg", 48, 32, False)),
    "wrong-size": (JSON, lambda out: pictures.measure(first_picture(out)) == ("png", 640, 480, False)),
    "no-picture": (JSON, lambda out: out.json["data"] == []),
    "extra-pictures": (JSON, lambda out: len(out.json["data"]) == 3),
    "usage-missing": (JSON, lambda out: "usage" not in out.json and out.json["data"]),
    "path-trick": (CALL, lambda out: out.json["output"][0]["id"].startswith("../../")),
    "long-ids": (CALL, lambda out: len(out.json["id"]) == 400),
    "ten-20mb": (JSON, header(200, "content-length", "^27[0-9]{7}|28[0-9]{7}$")),
    "stream-20mb": (STREAM, lambda out: out.body.count(b"data: {") == 4 and len(out.body) > 110_000_000),
    "url": (JSON, points(HOST + r"/pictures/img_\w+\.png$")),
    "url-elsewhere": (JSON, points(HOST + "/pictures/")),
    "url-data": (JSON, points("data:image/png;base64,")),
    "url-and-b64": (JSON, lambda out: first_picture(out) and "url" in out.json["data"][0]),
    "url-file": (JSON, points("file:///etc/passwd$")),
    "url-not-picture": (JSON, points(HOST)),
    "url-404": (JSON, points(HOST)),
    "url-redirect": (JSON, points(HOST + "/redirect/")),
    "image-base64-field": (CALL, lambda out: "image_base64" in out.json["output"][0]),
    "b64-json-in-call": (CALL, lambda out: "result" not in out.json["output"][0] and out.json["output"][0]["b64_json"]),
    "json-for-sse": (STREAM, lambda out: first_picture(out)),
    "sse-for-json": (JSON, ending("completed")),
    "blank-lines-first": (JSON, lambda out: out.body.startswith(b"\n" * 5) and first_picture(out)),
    "bom": (JSON, lambda out: out.body.startswith(b"\xef\xbb\xbf{")),
    "keep-alive": (STREAM, holds(b": keep-alive\n\n")),
    "data-only": (STREAM, lambda out: b"event:" not in out.body and len(out.events) == 3),
    "crlf": (STREAM, lambda out: out.body.count(b"\r\n") == out.body.count(b"\n") == 9),
    "comments": (STREAM, lambda out: out.body.count(b'\n: keepalive "') > 6 and len(out.events) == 3),
    "done": (STREAM, lambda out: out.body.endswith(b"\n\ndata: [DONE]\n\n")),
    "single-newlines": (STREAM, lambda out: b"\n\n" not in out.body and len(out.events) == 3),
    "no-last-blank-line": (STREAM, lambda out: out.body.endswith(b"}\n") and not out.body.endswith(b"\n\n")),
    "no-final": (STREAM, ending("partial_image", "partial_image")),
    "fewer-partials": (STREAM, lambda out: out.kinds == ["partial_image", "completed"]),
    "error-event-top": (STREAM, lambda out: out.events[-1]["error"]["code"] == "moderation_blocked"),
    "error-event-responses": (CALL_STREAM, lambda out: out.events[-1]["code"] == "server_error"),
    "response-failed": (CALL_STREAM, ending("image_generation_call.partial_image", "failed")),
    "response-incomplete": (CALL_STREAM, ending("image_generation_call.partial_image", "incomplete")),
    "refusal": (CALL_STREAM, lambda out: {"refusal.delta", "refusal.done"} < set(out.kinds)),
    "text-only": (CALL, lambda out: [item["type"] for item in out.json["output"]] == ["message"]),
    "status-generating": (CALL, lambda out: out.json["output"][0]["status"] == "generating"),
    "empty-output": (CALL_STREAM, lambda out: out.events[-1]["response"]["output"] == []),
    "only-completed": (CALL_STREAM, lambda out: "output_item.done" not in out.kinds),
    "duplicate-items": (CALL_STREAM, lambda out: out.kinds.count("output_item.done") == 2),
    "stream-dropped": (CALL_STREAM, lambda out: out.broken == "cut" and len(out.events) == 4),
    "background-stream-dropped": (CALL_STREAM, lambda out: out.broken == "cut"),
    "background-failed": (QUEUED, gives(200, '"queued"')),
    "background-never": (QUEUED, gives(200, '"queued"')),
    "chat-images": (SPOKEN, lambda out: out.json["choices"][0]["message"]["images"]),
    "chat-markdown": (SPOKEN, lambda out: "![picture 1](data:" in out.json["choices"][0]["message"]["content"]),
    "chat-markdown-link": (SPOKEN, lambda out: "![picture 1](http:" in out.json["choices"][0]["message"]["content"]),
    "chat-content-parts": (SPOKEN, lambda out: out.json["choices"][0]["message"]["content"][1]["type"] == "image_url"),
}


class ScenariosTest(GatewayCase):
    """Every row of the table does what it says."""

    def test_every_scenario_has_a_row_here(self) -> None:
        self.assertEqual(list(stand_in.BY_NAME), list(SCENARIOS))

    def test_every_scenario_does_what_it_says(self) -> None:
        gateway = self.start()
        for name, ((path, body), check) in SCENARIOS.items():
            with self.subTest(name):
                patience = 0.1 if name.startswith("hang") else 5
                limit = 1000 if name == "ten-20mb" else None
                out = ask(gateway, "POST", path, body, {"X-Gateway-Scenario": name}, patience, limit)
                self.assertTrue(check(out), (out.status, out.broken, out.headers, out.body[:300]))
                if stand_in.BY_NAME[name].times:
                    self.assertEqual(ask(gateway, "POST", path, body, {"X-Gateway-Scenario": name}).status, 200)

    def test_interim_replies_come_before_the_answer(self) -> None:
        gateway = self.start("interim-102")
        body = json.dumps(SMALL).encode()
        head = f"POST {GENERATIONS} HTTP/1.0\r\nContent-Type: application/json\r\napi-key: {gateway.key}\r\n"
        with socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
            sock.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            lines = [line for line in sock.makefile("rb") if line.startswith(b"HTTP/1.1 ")]
        self.assertEqual([int(line.split()[1]) for line in lines], [103, 102, 102, 200])

    def test_an_early_answer_comes_while_the_client_still_sends(self) -> None:
        gateway = self.start("early-401")
        with socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
            sock.sendall(b"POST /v1/images/edits HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n" + bytes(1 << 17))
            self.assertIn(b" 401 ", sock.makefile("rb").readline())
        self.assertLess(gateway.requests[0].body_bytes, 1 << 20)

    def test_a_close_at_connect_is_counted(self) -> None:
        gateway = self.start("close-at-connect")
        self.assertEqual(ask(gateway, "GET", "/v1/models").broken, "closed")
        self.assertEqual((gateway.connections, gateway.requests), (1, []))

    def test_a_picture_can_be_fetched_from_its_url(self) -> None:
        gateway = self.start("url-redirect")
        path = self.post(gateway, GENERATIONS, SMALL).json["data"][0]["url"][len(gateway.origin) :]
        moved = ask(gateway, "GET", path)
        self.assertEqual(moved.status, 302)
        self.assertTrue(moved.headers["location"].startswith(gateway.elsewhere.origin + "/pictures/"))
        fetched = ask(gateway, "GET", "/pictures/" + path.rpartition("/")[2])
        self.assertEqual((fetched.body, fetched.headers["content-type"]), (gateway.pictures[0], "image/png"))

    def test_the_second_origin_records_what_comes_to_it(self) -> None:
        gateway = self.start()
        connection = http.client.HTTPConnection(gateway.elsewhere.origin[7:], timeout=5)
        self.addCleanup(connection.close)
        connection.request("POST", GENERATIONS, b"{}", {"Authorization": "Bearer secret"})
        self.assertEqual(connection.getresponse().status, 404)
        self.assertEqual(gateway.elsewhere.requests[0].header("authorization"), "Bearer secret")
        self.assertEqual(gateway.requests, [])

    def test_a_stored_response_survives_a_dropped_stream(self) -> None:
        gateway = self.start("stream-dropped")
        out = self.post(gateway, *CALL_STREAM)
        again = ask(gateway, "GET", f"{RESPONSES}/{out.events[0]['response']['id']}").json
        self.assertEqual(base64.b64decode(again["output"][0]["result"]), gateway.pictures[0])


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the gateway's command line."""
    command = [sys.executable, "-m", "tests.gateway", *arguments]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(command, cwd=root, env=dict(os.environ), capture_output=True, text=True, timeout=20)


class GatewayTest(GatewayCase):
    """The gateway as an object and as a command."""

    def test_it_closes_at_once_though_a_client_hangs(self) -> None:
        gateway = self.start("hang-in-mid-picture")
        with socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
            body = json.dumps(SMALL).encode()
            key = gateway.key.encode()
            head = b"POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\napi-key: %b\r\n"
            sock.sendall(head % key + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self.assertTrue(sock.recv(1))
            begun = time.monotonic()
            gateway.close()
            self.assertLess(time.monotonic() - begun, 0.2)

    def test_a_scenario_can_be_set_again(self) -> None:
        gateway = self.start("fault-500-once")
        seen = []
        for name in ("fault-500-once", "plain", "fault-500-once"):
            gateway.scenario = name
            seen += [ask(gateway, "GET", "/v1/models").status for _ in range(2)]
        self.assertEqual(seen, [500, 200, 200, 200, 500, 200])
        with self.assertRaises(ValueError):
            gateway.scenario = "unknown"
        self.assertEqual(self.post(gateway, *JSON, X_Gateway_Scenario="unknown").status, 400)

    def test_raw_replies_are_played_in_order(self) -> None:
        gateway = self.start()
        gateway.play(b"one", 418, "text/plain", [("X-Own", "1")])
        gateway.play([b"t", b"wo"], length=None)
        gateway.play(b"three", length=10)
        seen = [self.post(gateway, *JSON) for _ in range(4)]
        self.assertEqual([out.body[:5] for out in seen], [b"one", b"two", b"three", b'{\n  "'])
        self.assertEqual((seen[0].status, seen[0].headers["x-own"]), (418, "1"))
        self.assertNotIn("content-length", seen[1].headers)
        self.assertEqual(seen[2].broken, "cut")
        self.assertEqual(gateway.posts, 4)

    def test_a_connection_serves_several_requests(self) -> None:
        gateway = self.start()
        connection = http.client.HTTPConnection(gateway.origin[7:], timeout=5)
        self.addCleanup(connection.close)
        for path in ("/v1/models", "/v1/nothing", "/v1/models"):
            connection.request("GET", path, headers={"api-key": gateway.key})
            connection.getresponse().read()
        self.assertEqual((gateway.connections, len(gateway.requests)), (1, 3))

    def test_a_delay_is_shared_by_the_events(self) -> None:
        gateway = self.start(delay=0.06)
        for path, body in (JSON, STREAM):
            begun = time.monotonic()
            self.post(gateway, path, body)
            self.assertGreater(time.monotonic() - begun, 0.05)

    def test_the_command_runs_another_with_the_settings(self) -> None:
        names = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "NO_PROXY")
        code = f"import os; print(*map(os.environ.get, {names})); raise SystemExit(3)"
        done = run_module("--scenario", "quota", "--", "python3", "-c", code)
        self.assertRegex(done.stdout, r"^http://127\.0\.0\.1:\d+/v1 sk-stand-in-\w+ (.*,)?127\.0\.0\.1\n$")
        self.assertEqual((done.returncode, done.stderr), (3, ""))

    def test_the_command_lists_the_scenarios(self) -> None:
        lines = run_module("--list").stdout.splitlines()
        self.assertEqual([line.split()[0] for line in lines], list(SCENARIOS))


if __name__ == "__main__":
    unittest.main()
