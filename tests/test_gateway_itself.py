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
from pathlib import Path
from typing import Any, NamedTuple

from tests import gateway as stand_in
from tests import pictures
from tests.gateway import Gateway
from tests.wire import Fields

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


def post(gateway: Gateway, path: str, body: Fields) -> Outcome:
    """Post JSON."""
    return ask(gateway, "POST", path, body)


def form(*parts: tuple[str, bytes]) -> bytes:
    """The form of an edit; each further part is the rest of its header lines and its content."""
    text = b"--xXx\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
    return b"".join(text % (head.encode(), data) for head, data in (*TEXTS, *parts)) + b"--xXx--\r\n"


def file_part(name: str, data: bytes, kind: str = "image/png", filename: str = "a.png") -> tuple[str, bytes]:
    """A file as `form` wants it."""
    return f'name="{name}"; filename="{filename}"\r\nContent-Type: {kind}', data


HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nContent-Type: application/json\r\napi-key: {stand_in.KEY}\r\n".encode()
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
                out = post(gateway, GENERATIONS, body)
                painted = [base64.b64decode(item["b64_json"], validate=True) for item in out.json["data"]]
                self.assertEqual(painted, gateway.pictures[-len(painted) :])
                self.assertEqual((out.json["size"], out.json["output_format"]), ("48x32", form_))
                self.assertEqual(len(set(painted)), len(painted))
        self.assertEqual(out.headers["x-request-id"][:4], "req_")

    def test_usage_follows_the_published_figures(self) -> None:
        gateway = self.start()
        for quality, size, tokens in (("low", "1024x1024", 196), ("high", "1536x1024", 5488), ("medium", "auto", 1756)):
            body = {"model": "gpt-image-2", "prompt": "A lake", "quality": quality, "size": size}
            with self.subTest(quality, size=size):
                self.assertEqual(post(gateway, GENERATIONS, body).json["usage"]["output_tokens"], tokens)

    def test_an_edit_may_come_as_json(self) -> None:
        gateway = self.start()
        url = "data:image/webp;base64," + base64.b64encode(pictures.picture(b"a", "webp", 32, 32)).decode()
        images = [{"image_url": url}, {"file_id": "file-1"}, {"image_url": "https://example.com/a.png"}]
        out = post(gateway, EDITS, {**SMALL, "images": images, "moderation": "low", "stream": True})
        self.assertTrue(out.body.startswith(b"event: image_edit.completed\ndata: {"))

    def test_a_form_is_recorded_part_by_part(self) -> None:
        gateway = self.start()
        picture = pictures.picture(b"a", "png", 32, 32)
        body = form(file_part("image[]", picture, filename="sch%22ön%0D%0A.png"))
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
        call, message = "image_generation_call", "message"
        table = (
            (TALK["tool_choice"], "three pictures of a lake", [call] * 3),
            (TALK["tool_choice"], "text and picture", [call, message]),
            ("auto", "A lake", [call, message]),
            ("auto", "only text please", [message]),
            ("none", "A lake", [message]),
        )
        for choice, words, kinds in table:
            with self.subTest(words, choice=choice):
                out = post(gateway, RESPONSES, {**TALK, "tool_choice": choice, "input": words})
                self.assertEqual([item["type"] for item in out.json["output"]], kinds)

    def test_a_response_is_had_again_and_continued_if_it_was_stored(self) -> None:
        gateway = self.start()
        for store, status in ((True, 200), (False, 404)):
            name = post(gateway, RESPONSES, {**TALK, "store": store}).json["id"]
            self.assertEqual(ask(gateway, "GET", f"{RESPONSES}/{name}").status, status)
            self.assertEqual(post(gateway, RESPONSES, {**TALK, "previous_response_id": name}).status, status)


class RefusalsTest(GatewayCase):
    """What the gateway refuses, as the API does."""

    def test_the_key_must_be_right(self) -> None:
        gateway = self.start(key="sk-test-0123456789")
        for given in ("Bearer sk-other", "", "sk-test-0123456789"):
            out = ask(gateway, "GET", "/v1/models", headers={"Authorization": given})
            self.assertEqual(out.status, 401)
            self.assertNotIn(b"sk-test-0123456789", out.body)
        good = {"Authorization": "", "api-key": "sk-test-0123456789"}
        self.assertEqual(ask(gateway, "GET", "/v1/models", headers=good).status, 200)

    def test_fields_are_held_against_the_tables_of_the_program(self) -> None:
        gateway = self.start()
        tool = {"type": "image_generation", "n": 2}
        png = base64.b64encode(pictures.picture(b"a", "png", 32, 32)).decode()
        url, place = "invalid_image_file", "images[0].image_url"
        table: tuple[tuple[str, Fields, str, str], ...] = (
            (GENERATIONS, {"seed": 1}, "unknown_parameter", "seed"),
            (GENERATIONS, {"svg": {"model": "x", "colour": 1}}, "unknown_parameter", "svg.colour"),
            (GENERATIONS, {"model": "gpt-image-2", "style": "vivid"}, "unknown_parameter", "style"),
            (GENERATIONS, {"model": "gpt-image-2", "quality": "hd"}, "invalid_value", "quality"),
            (GENERATIONS, {"model": "gpt-image-2", "n": 11}, "invalid_value", "n"),
            (GENERATIONS, {"prompt": ""}, "missing_required_parameter", "prompt"),
            (GENERATIONS, {"model": None}, "missing_required_parameter", "model"),
            (GENERATIONS, {"n": "2"}, "invalid_type", "n"),
            (GENERATIONS, {"n": True}, "invalid_type", "n"),
            (RESPONSES, {"n": 2}, "unknown_parameter", "n"),
            (RESPONSES, {"tools": [tool]}, "unknown_parameter", "tools[0].n"),
            (RESPONSES, {"background": "transparent"}, "invalid_type", "background"),
            (RESPONSES, {"tools": [], "tool_choice": {"type": "image_generation"}}, "invalid_value", "tool_choice"),
            (RESPONSES, {"tool_choice": "image_generation"}, "invalid_value", "tool_choice"),
            (RESPONSES, {"input": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_value", "input[0].content.type"),
            (EDITS, {"images": []}, "missing_required_parameter", "images"),
            (EDITS, {"images": [{"image_url": "https://x.test/a.png", "file_id": "file-1"}]}, "invalid_value", "images[0]"),
            (EDITS, {"images": [{"image_url": f"data:image/jpeg;base64,{png}"}]}, url, place),
            (EDITS, {"images": [{"image_url": f"data:image/png;base64,{png[:-1]}!"}]}, url, place),
            (EDITS, {"images": [{"image_url": "file:///a.png"}]}, url, place),
            (EDITS, {"images": [{"file_id": "a.png"}]}, url, "images[0].file_id"),
        )  # fmt: skip
        for path, fields, code, param in table:
            with self.subTest(str(fields)[:60]):
                out = post(gateway, path, {**(TALK if path == RESPONSES else SMALL), **fields})
                error = out.json["error"]
                self.assertEqual((out.status, error["code"], error["param"]), (400, code, param), out.body)
        odd = {**SMALL, "response_format": "b64_json", "style": "vivid", "quality": "hd", "moderation": None}
        self.assertEqual(post(gateway, GENERATIONS, odd).status, 200)  # a model that the tables do not know

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
        whole = form(image)
        table = (
            (form(file_part("image", png, "text/plain")), "said to be 'text/plain'"),
            (form(file_part("image", jpeg, "image/png")), "and is 'image/jpeg'"),
            (form(file_part("image", b"text", "image/png")), "and is 'application/octet-stream'"),
            (form(file_part("image", png, filename="")), "expected a file"),
            (form(('name="image"', png[:1] + b"x")), "not UTF-8"),
            (form(image, ('name="moderation"', b"low")), "Unknown parameter: 'moderation'"),
            (form(image, ('name="n"', b"+2")), "expected int"),
            (form(image, ('name="stream"', b"True")), "expected bool"),
            (form(image, TEXTS[0]), "Duplicate parameter: 'model'"),
            (form(image, mask, mask), "at most one mask"),
            (form(), "one image or more"),
            (whole[:-6], "ends before"),
            (b"\r\n" + whole, "does not begin"),
            (whole + b"more", "follows its closing boundary"),
            (whole.replace(b"--xXx\r\n", b"--xXx \r\n", 1), "not followed by a line end"),
            (whole.replace(b'name="model"', b"name=model"), "Content-Disposition"),
            (whole.replace(b'"a.png"', b'"a\\".png"'), "Content-Disposition"),
            (whole.replace(b"Content-Type", b"Content-Length"), "unexpected header"),
        )  # fmt: skip
        for body, message in table:
            with self.subTest(message):
                out = ask(gateway, "POST", EDITS, body, FORM_TYPE)
                self.assertEqual(out.status, 400)
                self.assertIn(message, out.json["error"]["message"])
        self.assertEqual(ask(gateway, "POST", EDITS, form(image, mask), FORM_TYPE).status, 200)

    def test_the_length_must_be_announced_and_kept(self) -> None:
        gateway = self.start()
        body = json.dumps(SMALL).encode()
        for header, status in (
            (b"Transfer-Encoding: chunked", b" 411 "),
            (b"X-None: 0", b" 411 "),
            (b"Content-Length: %d" % (len(body) - 1), b" 400 "),
            (b"Content-Length: %d" % (len(body) + 1), b" 400 "),
        ):
            with self.subTest(header), socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
                sock.sendall(HEAD + header + b"\r\n\r\n" + body)
                sock.shutdown(socket.SHUT_WR)
                self.assertIn(status, sock.makefile("rb").readline())


JSON = (GENERATIONS, SMALL)
THREE = (GENERATIONS, {**SMALL, "n": 3})
STREAM = (GENERATIONS, {**SMALL, "stream": True, "partial_images": 2})
CALL = (RESPONSES, TALK)
CALL_STREAM = (RESPONSES, {**TALK, "stream": True, "tools": [{**TOOL, "partial_images": 2}]})
SPOKEN = (CHAT, SAY)
REQUESTS = (THREE, STREAM, CALL, CALL_STREAM, SPOKEN)
HOST = r"http://127\.0\.0\.1:\d+"
LINE = r"[A-Za-z0-9+/]{76}"
# Scenarios that the program takes in its stride, so that only their bytes show whether they do what they say.
SHOWN: tuple[tuple[str, tuple[str, Fields], str], ...] = (
    ("rate-limited-date", JSON, r"retry-after: \w{3}, .* GMT\n"),
    ("escaped-slashes", JSON, r"\\/"),
    ("unicode-escapes", JSON, r"\\u002B"),
    ("base64-line-breaks", JSON, LINE + r"\\n" + LINE),
    ("base64-raw-newlines", JSON, LINE + r"\n" + LINE),
    ("base64-no-padding", THREE, r"\n\n[^=]*$"),
    ("base64-data-prefix", JSON, "data:image/png;base64,"),
    ("base64-bad-character", THREE, r'"b64_json": "[^!]*"[^!]*![^!]*"b64_json"[^!]*$'),
    ("long-ids", CALL, r'"id": "[^"]{360,}"'),
    ("url-and-b64", JSON, r'"b64_json": "[^"]+",\s+"url": "http'),
    ("blank-lines-first", JSON, r"\n\n\n\n\n\n{"),
    ("bom", JSON, "\n\n\xef\xbb\xbf{"),
    ("keep-alive", STREAM, "\n\n: keep-alive\n\n"),
    ("data-only", STREAM, r"\n\ndata: {(?!.*event:)"),
    ("crlf", STREAM, r"event: .*\r\ndata: .*\r\n\r\nevent"),
    ("comments", STREAM, r'\n: keepalive ".*\ndata: '),
    ("done", STREAM, r"\n\ndata: \[DONE\]\n\n$"),
    ("single-newlines", STREAM, r"}\nevent: "),
    ("no-last-blank-line", STREAM, r"[^\n]}\n$"),
    ("empty-output", CALL_STREAM, r'"response.completed".*"output": \[\]'),
    ("only-completed", CALL_STREAM, r"\n\n(?!.*output_item.done)"),
)  # fmt: skip


class ScenariosTest(GatewayCase):
    """Rows of the table that tests/test_gateway.py could not tell from the usual, and what else a row can do."""

    def seen(self, scenario: str, request: tuple[str, Fields]) -> str:
        """Returns a reply as text without what differs from run to run; no more of a large one than its begin."""
        with Gateway(scenario) as gateway:
            out = ask(gateway, "POST", *request, timeout=0.1 if scenario.startswith("hang") else 5, limit=1 << 17)
        head = [f"{name}: {value}\n" for name, value in out.headers.items() if name != "date"]
        text = f"{out.status} {out.broken}\n{''.join(head)}\n{out.body.decode('latin-1')}"
        return re.sub(r"\b\d{10}\b|(?<=[_-])[0-9a-f]{32}", "0", text)

    def test_every_scenario_makes_a_difference(self) -> None:
        usual = ("plain", "chat-images", "trickle", "background-never")  # the last two are about pieces and polls
        plain = [self.seen("plain", request) for request in REQUESTS]
        for name in [row.name for row in stand_in.SCENARIOS if not row.at]:
            with self.subTest(name):
                found = any(self.seen(name, request) != text for request, text in zip(REQUESTS, plain))
                self.assertEqual(found, name not in usual)

    def test_what_a_good_client_does_not_mind_is_really_there(self) -> None:
        for name, request, pattern in SHOWN:
            with self.subTest(name):
                self.assertRegex(self.seen(name, request), re.compile(pattern, re.DOTALL))

    def test_an_early_answer_comes_while_the_client_still_sends(self) -> None:
        gateway = self.start("early-401")
        with socket.create_connection(gateway.own.listener.getsockname(), 5) as sock:
            sock.sendall(b"POST /v1/images/edits HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n" + bytes(1 << 17))
            self.assertIn(b" 401 ", sock.makefile("rb").readline())
        self.assertLess(gateway.requests[0].body_bytes, 1 << 20)


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
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
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
        self.assertEqual(ask(gateway, "POST", *JSON, headers={"X-Gateway-Scenario": "unknown"}).status, 400)

    def test_raw_replies_are_played_in_order(self) -> None:
        gateway = self.start()
        gateway.play(b"one", 418, "text/plain", [("X-Own", "1")])
        gateway.play([b"t", b"wo"], length=None)
        gateway.play(b"three", length=10)
        seen = [post(gateway, *JSON) for _ in range(4)]
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
            post(gateway, path, body)
            self.assertGreater(time.monotonic() - begun, 0.05)

    def test_the_command_runs_another_with_the_settings(self) -> None:
        names = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "NO_PROXY")
        code = f"import os; print(*map(os.environ.get, {names})); raise SystemExit(3)"
        done = run_module("--scenario", "quota", "--", "python3", "-c", code)
        self.assertRegex(done.stdout, r"^http://127\.0\.0\.1:\d+/v1 sk-stand-in-\w+ (.*,)?127\.0\.0\.1\n$")
        self.assertEqual((done.returncode, done.stderr), (3, ""))

    def test_the_command_lists_the_scenarios(self) -> None:
        lines = run_module("--list").stdout.splitlines()
        self.assertEqual([line.split()[0] for line in lines], list(stand_in.BY_NAME))


if __name__ == "__main__":
    unittest.main()
