"""The fault matrix: what each mishap of a gateway costs, what is kept of it, and that it can be recovered.

Every route meets every scenario that concerns it over a real socket. What a row does not name goes well.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.gateway import SCENARIOS, Gateway
from tests.support import KEY, FakeTransport, ProgramTest, Ran, cut, read, reply

SMALL = ("--model", "small", "--size", "48x32")
TOOL = ("--tool-model", "small", "--size", "48x32")
LIVE = ("--stream", "--partial-images", "2")
ROUTES: Dict[str, Tuple[str, ...]] = {
    "three": ("generations", "A lake", *SMALL, "--n", "3"),
    "live": ("generations", "A lake", *SMALL, *LIVE),
    "edit": ("edits", "Snow", *SMALL, "--image", "in/in.png"),
    "edit-live": ("edits", "Snow", *SMALL, "--image", "in/in.png", *LIVE),
    "talk": ("responses", "three pictures", *TOOL),
    "talk-live": ("responses", "A lake", *TOOL, *LIVE),
    "chat": ("generations", "A lake", "--model", "small", "--protocol", "openai_chat"),
    "chat-live": ("generations", "A lake", "--model", "small", "--protocol", "openai_chat", "--stream"),
}
# Files in short: a number is a final picture, a letter a preview, R the reply that is kept.
WHOLE = {
    "three": "1 2 3", "live": "1 a b", "edit": "1", "edit-live": "1 a b", "talk": "1 2 3", "talk-live": "1 a b",
    "chat": "1", "chat-live": "1",
}  # fmt: skip
MAIN = ("three", "live", "edit", "talk", "talk-live")
STREAMS = ("live", "edit-live", "talk-live")
IMAGES = ("three", "live", "edit", "edit-live")
CHATS = ("chat", "chat-live")
TWO = ("edit", "talk-live")  # where all routes take the same way: one that uploads and gets JSON, one that gets events


class Row(NamedTuple):
    """What a scenario comes to: the exit code, by route the files kept, whether it may be billed, and the POSTs."""

    scenario: str
    exit: int = 0
    files: Any = None  # one text for all routes, or one for each; None is success
    billed: Optional[bool] = None
    posts: int = 1
    routes: Tuple[str, ...] = MAIN


def on(names: Tuple[str, ...], files: str) -> Dict[str, str]:
    """Returns the same files for some routes."""
    return {name: files for name in names}


def by_turns(routes: Tuple[str, ...], *names: str) -> Iterator[Tuple[str, Tuple[str, ...]]]:
    """Yields scenarios that all routes meet in one way, each with the next of some routes and, where there are four, its next but one."""
    for turn, name in enumerate(names):
        yield name, tuple(routes[(turn + step) % len(routes)] for step in range(0, len(routes) - 1, 2))


FAULTS = (
    Row("plain", routes=tuple(ROUTES)),
    # -- turned away: tried again, or refused for good, and nothing is kept
    *(Row(name, posts=2, routes=routes) for name, routes in by_turns(TWO,
        "rate-limited-once", "rate-limited-seconds", "rate-limited-date", "slow-down-once", "should-retry-true",
        "fault-500-once", "fault-503-once", "fault-408-once", "fault-409-once")),
    *(Row(name, 4, "", False, routes=routes) for name, routes in by_turns(TWO,
        "quota", "bad-request", "moderation", "forbidden", "not-found", "key-in-error", "key-in-400")),
    *(Row(name, 4, "", False, routes=TWO) for name in ("early-401", "early-413")),
    Row("should-retry-false", 5, "", False, routes=TWO),
    *(Row(name, 5, "", True, routes=routes) for name, routes in by_turns(TWO, "fault-502", "fault-504", "fault-524", "html-error")),
    *(Row(name, 5, "", False, routes=routes) for name, routes in by_turns(TWO, "redirect", "redirect-302", "redirect-same-origin")),
    # -- the connection
    Row("close-at-connect", 5, "", posts=0, routes=TWO),  # whether the request was out by then is a matter of chance
    *(Row(name, 5, "", True, routes=TWO) for name in ("close-before-reply", "reset-before-reply")),
    Row("hang", 5, "", True, routes=("three", "talk-live")),
    Row("hang-in-mid-picture", 5, "R", True, routes=("three", "talk-live")),
    Row("cut-in-mid-picture", 5, "R", True, routes=tuple(ROUTES)),
    Row("cut-in-third-picture", 5, {"three": "1 2 R", "live": "a b R", "edit": "R", "talk": "1 2 R", "talk-live": "a b R"}, True),
    Row("cut-after-last-picture", 5, {name: f"{WHOLE[name]} R" for name in TWO}, True, routes=TWO),
    Row("short-content-length", 5, {name: f"{WHOLE[name]} R" for name in MAIN}, True),
    *(Row(name, routes=("three", "talk-live")) for name in ("chunked", "trickle", "interim-102", "gzip")),
    # -- replies that are something else
    Row("html-200", 6, "R", False, routes=TWO),
    *(Row(name, 5, "R", True, routes=("three", "live", "talk-live")) for name in ("error-in-200", "error-in-200-late")),
    Row("key-in-reply", routes=(*TWO, "chat-live")),
    Row("empty-body", 6, "", True, routes=TWO),
    Row("garbage", 6, "R", True, routes=TWO),
)  # fmt: skip
PICTURES = (
    # -- base64
    *(Row(name, routes=routes) for name, routes in by_turns(("three", "talk-live", "chat", "talk"),
        "escaped-slashes", "unicode-escapes", "base64-line-breaks", "base64-raw-newlines", "base64-no-padding")),
    Row("base64-data-prefix", routes=("three", "live", "talk")),
    Row("base64-bad-character", 6, {
        "three": "1 3 R", "live": "a b R", "edit": "R", "talk": "1 3 R", "talk-live": "a b R", "chat": "R"}, True, routes=(*MAIN, "chat")),
    Row("base64-truncated", 6, "R", True, routes=("three", "talk-live", "chat")),
    # -- pictures
    Row("picture-truncated", 6, {name: f"{WHOLE[name]} R" for name in MAIN}, True, routes=TWO),
    Row("not-a-picture", 6, "R", True, routes=("three", "talk-live", "chat")),
    *(Row(name, routes=("live", "talk")) for name in ("wrong-format", "wrong-size", "usage-missing", "path-trick", "long-ids")),
    Row("no-picture", 6, {"three": "R", "live": "a b R", "edit": "R", "talk": "R", "talk-live": "R", **on(CHATS, "R")}, True,
        routes=(*MAIN, *CHATS)),
    Row("extra-pictures", routes=()),  # see below
    # -- pictures by URL: on the Images routes and in chat
    *(Row(name, routes=routes) for name, routes in by_turns(("three", "edit-live", "chat", "edit"),
        "url", "url-elsewhere", "url-data", "url-redirect")),
    Row("url-and-b64", routes=("edit", "live")),
    *(Row(name, code, {"three": "R", "live": "a b R", "chat-live": "R"}, True, routes=("three", "live", "chat-live"))
      for name, code in (("url-file", 6), ("url-not-picture", 6), ("url-404", 5))),
    *(Row(name, routes=("three", "live", "talk")) for name in ("image-base64-field", "b64-json-in-call")),
)  # fmt: skip
DIALECTS = (
    # -- JSON and event streams
    Row("json-for-sse", files={"live": "1", "talk-live": "1", "chat-live": "1"}, routes=("live", "talk-live", "chat-live")),
    Row("sse-for-json", routes=("three", "edit", "talk", "chat")),
    *(Row(name, routes=("three", "talk-live", "chat-live")) for name in ("blank-lines-first", "bom")),
    Row("keep-alive", routes=("three", "talk-live")),
    *(Row(name, routes=routes) for name, routes in by_turns((*STREAMS, "chat-live"),
        "data-only", "crlf", "comments", "done", "single-newlines", "no-last-blank-line")),
    Row("no-final", 6, "a b R", True, routes=STREAMS),
    Row("fewer-partials", files={name: "1 a" for name in STREAMS}, routes=STREAMS),
    Row("error-event-top", 4, "a b R", routes=STREAMS),
    # -- responses
    Row("error-event-responses", 5, "a b R", True, routes=("talk-live",)),
    Row("response-failed", 5, {"talk": "R", "talk-live": "a b R"}, True, routes=("talk", "talk-live")),
    Row("background-failed", 5, {"talk": "R", "talk-live": "a b R"}, True, routes=("talk", "talk-live")),
    Row("response-incomplete", 6, {"talk": "R", "talk-live": "a b R"}, True, routes=("talk", "talk-live")),
    Row("content-filter", 4, {"talk": "R", "talk-live": "a b R"}, True, routes=("talk", "talk-live")),
    *(Row(name, 6, "R", True, routes=("talk", "talk-live", "chat")) for name in ("refusal", "text-only")),
    *(Row(name, routes=("talk", "talk-live")) for name in (
        "status-generating", "empty-output", "only-completed", "duplicate-items", "background-never")),
    *(Row(name, files={"talk": "1 2 3", "talk-live": "1"}, routes=("talk", "talk-live")) for name in (
        "stream-dropped", "background-stream-dropped")),
    # -- chat
    *(Row(name, routes=CHATS) for name in ("chat-images", "chat-markdown", "chat-markdown-link", "chat-content-parts")),
    # -- servers of other people: see test_dialects too
    Row("sd-cpp", files={"three": "1 2 3", "edit-live": "1"}, routes=("three", "edit-live")),
    Row("sglang", routes=("three", "edit")),
    Row("vllm-omni", files={"three": "1 2 3", "edit-live": "1"}, routes=("three", "edit-live")),
    Row("xinference", 5, "R", True, routes=("three", "edit")),
    Row("litellm", routes=("edit", "talk")),
    # -- huge: a test of memory, not of this table
    Row("ten-20mb", routes=()), Row("stream-20mb", routes=()),
)  # fmt: skip
ROWS = (*FAULTS, *PICTURES, *DIALECTS)
MINUTES: Dict[str, Tuple[float, str]] = {"keep-alive": (0.4, "0.3"), "hang": (0, "0.1"), "hang-in-mid-picture": (0, "0.15")}
PREVIEWS = {"a": 1, "b": 2}


def file_name(route: str, word: str, suffix: str = ".png") -> str:
    """Returns the file a short word stands for."""
    if word == "R":
        return "p.reply"
    if word in PREVIEWS:
        return f"p-partial-{PREVIEWS[word]}{suffix}"
    return f"p{suffix}" if word == "1" and route != "three" else f"p-{word}{suffix}"


# In what these keep, there is nothing to look for.
WITHOUT_PICTURE = """html-200 error-in-200 error-in-200-late no-picture response-failed background-failed refusal
text-only content-filter xinference""".split()


class FaultMatrix(ProgramTest):
    """Every scenario on every route that it concerns."""

    def setUp(self) -> None:
        super().setUp()
        Path("in").mkdir()
        Path("in/in.png").write_bytes(pictures.picture(b"in", "png", 48, 32))

    def call(self, row: Row, route: str, folder: str) -> Tuple[Ran, Gateway]:
        """Makes one call to a gateway of its own."""
        delay, timeout = MINUTES.get(row.scenario, (0, "5"))
        with Gateway(row.scenario, key=KEY, delay=delay) as gateway:
            ran = self.run_main(*ROUTES[route], "--output", f"{folder}/p.png", "--timeout", timeout, gateway=gateway)
        return ran, gateway

    def test_every_scenario_of_the_gateway_has_its_row(self) -> None:
        single = [row.name for row in SCENARIOS if not row.at]  # the others are for batches and for many calls
        self.assertEqual(sorted({row.scenario for row in ROWS}), sorted(single))

    def test_what_each_fault_of_the_connection_costs_and_keeps(self) -> None:
        self.check(FAULTS)

    def test_what_odd_pictures_come_to(self) -> None:
        self.check(PICTURES)

    def test_what_each_way_to_say_it_comes_to(self) -> None:
        self.check(DIALECTS)

    def check(self, rows: Tuple[Row, ...]) -> None:
        """Plays the rows of a table."""
        for row in rows:
            for route in row.routes:
                folder = f"{row.scenario}/{route}"
                with self.subTest(scenario=row.scenario, route=route):
                    ran, gateway = self.call(row, route, folder)
                    self.assert_row(row, route, folder, ran, gateway)
                shutil.rmtree(row.scenario, ignore_errors=True)

    def assert_row(self, row: Row, route: str, folder: str, ran: Ran, gateway: Gateway) -> None:
        """Asserts one cell of the matrix."""
        words = (row.files if isinstance(row.files, str) else (row.files or WHOLE)[route]).split()
        suffix = ".jpg" if row.scenario == "wrong-format" else ".png"
        names = {word: f"{folder}/{file_name(route, word, suffix)}" for word in words}
        there = [f"{folder}/{name}" for name in self.files(folder)] if Path(folder).exists() else []
        self.assertEqual((ran.code, gateway.posts, there), (row.exit, row.posts, sorted(names.values())), ran.err)
        self.assertEqual((ran.json["ok"], ran.json["error"] is None), (row.exit == 0, row.exit == 0))
        if row.exit:
            self.assertEqual(ran.error["exit"], row.exit)
        if row.billed is not None:
            self.assertEqual(ran.error["may_be_billed"], row.billed)
        self.assert_pictures(names, ran, gateway)
        self.assert_no_key(ran)
        self.assert_recoverable(row, folder, names, ran)

    def assert_pictures(self, names: Dict[str, str], ran: Ran, gateway: Gateway) -> None:
        """Asserts that what is on disk is what was painted, and that the result says just that."""
        finals = [word for word in names if word.isdigit()]
        self.assertEqual(sorted((row["index"], row["path"]) for row in ran.json["images"]), [(int(w), names[w]) for w in finals])
        for row in ran.json["images"]:
            data = Path(row["path"]).read_bytes()
            self.assertEqual(data, gateway.pictures[row["index"] - 1])
            self.assertEqual((row["bytes"], row["sha256"]), (len(data), hashlib.sha256(data).hexdigest()))
        for word, number in PREVIEWS.items():
            if word in names:
                self.assertEqual(Path(names[word]).read_bytes(), gateway.previews[number - 1])
        self.assertEqual([row["path"] for row in ran.json["partial_images"]], [names[word] for word in PREVIEWS if word in names])

    def assert_recoverable(self, row: Row, folder: str, names: Dict[str, str], ran: Ran) -> None:
        """Asserts that the recovery command works as printed, and finds every finished picture and no preview."""
        if not ran.error:
            self.assertIsNone(ran.json["saved_response"])
            return
        if "R" not in names:
            self.assertIsNone(ran.error["recovery"])
            return
        self.assertEqual(ran.json["saved_response"], names["R"])
        if not ran.error["recovery"]:  # a page, an error, or an answer in words
            self.assertIn(row.scenario, WITHOUT_PICTURE)
            return
        self.assertIn(ran.error["recovery"], ran.err)
        python, program, *argv = shlex.split(ran.error["recovery"])
        self.assertEqual((python, program), ("python3", "gpt_image.py"))
        again = self.run_main(*argv, env={"OPENAI_API_KEY": ""})
        expected = [names[word] for word in names if word.isdigit()]
        if row.scenario not in ("url-file", "url-404", "url-not-picture"):
            self.assertEqual([image["path"] for image in again.json["images"]], expected)
            whole = all(image["whole"] for image in again.json["images"])
            self.assertEqual(again.code == 0, bool(expected) and whole, again.err)
        # All that it finds is there already.
        self.assertEqual([f"{folder}/{name}" for name in self.files(folder)], sorted(names.values()))
        self.assertEqual([row for row in again.json["images"] + again.json["partial_images"] if row["new"]], [])

    def test_pictures_nobody_asked_for_are_kept_under_the_next_numbers(self) -> None:
        for route, most in (("three", 5), ("edit", 3), ("talk", 5), ("talk-live", 3)):
            with self.subTest(route=route):
                gateway = self.gateway("extra-pictures")
                ran = self.run_main(*ROUTES[route], "--output", f"{route}/p.png", gateway=gateway)
                self.assertEqual((ran.code, len(ran.json["images"])), (0, most))
                for number, row in enumerate(ran.json["images"], 1):
                    self.assertEqual(row["path"], f"{route}/{file_name(route, str(number))}")
                    self.assertEqual(Path(row["path"]).read_bytes(), gateway.pictures[number - 1])

    def test_pictures_nobody_asked_for_replace_nothing_even_with_overwrite(self) -> None:
        for options in ((), ("--overwrite",)):
            with self.subTest(options=options):
                for name in ("p-2.png", "p.reply"):
                    Path(name).write_bytes(b"mine")
                gateway = self.gateway("extra-pictures")
                ran = self.run_main(*ROUTES["edit"], "--output", "p.png", *options, gateway=gateway)
                self.assertEqual((ran.code, Path("p-2.png").read_bytes()), (0, b"mine"))
                self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["images"]], gateway.pictures)

    def test_save_response_keeps_the_exact_bytes_always(self) -> None:
        body = json.dumps({"data": [{"b64_json": base64.b64encode(pictures.picture(b"x", "png", 48, 32)).decode()}]}).encode()
        for number, (data, status) in enumerate(((body, 200), (body[:-5], 200), (b'{"error": {"message": "No."}}', 400), (b"<html>", 502))):
            with self.subTest(status=status, data=data[:10]):
                gateway = self.gateway()
                gateway.play(data, status)
                ran = self.run_main(*ROUTES["edit"], "--output", f"{number}.png", "--save-response", f"{number}.json", gateway=gateway)
                self.assertEqual(Path(f"{number}.json").read_bytes(), data, ran.err)
                self.assertEqual(ran.json["saved_response"], f"{number}.json")

    def test_a_kept_reply_never_replaces_another(self) -> None:
        for _ in range(3):
            gateway = self.gateway("cut-in-third-picture")
            ran = self.run_main(*ROUTES["three"], "--output", "p.png", "--overwrite", gateway=gateway)
            self.assertEqual(ran.code, 5)
        replies = [name for name in self.files() if name.endswith(".reply")]
        self.assertEqual(len(replies), 3)

    def test_a_preview_alone_is_never_taken_for_the_picture(self) -> None:
        for scenario, route in (("no-final", "live"), ("error-event-top", "edit-live"), ("cut-in-third-picture", "talk-live")):
            with self.subTest(scenario=scenario, route=route):
                gateway = self.gateway(scenario)
                ran = self.run_main(*ROUTES[route], "--output", f"{scenario}.png", gateway=gateway)
                self.assertEqual(ran.json["images"], [])
                self.assertFalse(Path(f"{scenario}.png").exists())
                out = self.run_main("extract", ran.json["saved_response"], "--output", f"{scenario}.png")
                self.assertEqual((out.code in (4, 6), out.json["images"]), (True, []), out.err)
                self.assertFalse(Path(f"{scenario}.png").exists())


class CutAndSpoilt(ProgramTest):
    """The bodies of replies, cut everywhere, in pieces of every size, and changed at random."""

    # Base64 of every kind of end: with two, one and no characters of padding, and with broken lines.
    FINALS = [pictures.picture(b"%d" % seed, "png", 48, 32) for seed in range(3)]

    def setUp(self) -> None:
        super().setUp()
        self.true = {hashlib.sha256(data).hexdigest() for data in self.FINALS}

    @staticmethod
    def text(data: bytes, broken: bool) -> str:
        """Returns a picture as base64, its lines broken if that is wanted."""
        plain = base64.b64encode(data).decode()
        return "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)) if broken else plain

    def bodies(self) -> Iterator[Tuple[str, Tuple[str, ...], bytes]]:
        """Yields a name, a command, and the body of its reply, which holds the three pictures (a stream of Images one)."""
        for broken in (False, True):
            texts = [self.text(data + bytes(extra), broken) for data, extra in zip(self.FINALS, (0, 0, 0))]
            kind = "broken" if broken else "plain"
            rows = [{"b64_json": text, "revised_prompt": 'a "b" \\ {'} for text in texts]
            usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
            yield f"json-{kind}", ROUTES["three"], json.dumps({"created": 1, "data": rows, "usage": usage}).encode()
            items = [{"type": "image_generation_call", "id": f"ig_{i}", "result": text} for i, text in enumerate(texts)]
            word = "response.output_item.done"
            done: List[Dict[str, Any]] = [{"type": word, "sequence_number": i, "output_index": i, "item": item} for i, item in enumerate(items)]
            last: Dict[str, Any] = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": items, "usage": usage}}
            lines = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in [*done, last])
            yield f"sse-{kind}", (*ROUTES["talk-live"], "--no-store"), lines.encode()
            links = "\n".join(f"![x](data:image/png;base64,{self.text(data, False)})" for data in self.FINALS)
            yield f"chat-{kind}", ROUTES["chat"], json.dumps({"choices": [{"message": {"content": links}}]}).encode()

    def assert_sound(self, ran: Ran) -> None:
        """Asserts that a run ended in order: no traceback, nothing temporary, and what is called a picture is one."""
        self.assertIn(ran.code, (0, 4, 5, 6), ran.err)
        self.assertNotIn("Traceback", ran.err)
        kinds = ("images", "partial_images", "unclaimed")
        saved = {row["path"] for kind in kinds for row in ran.json[kind]}
        self.assertEqual(set(self.files()) - saved - {"p.reply"}, set())
        self.assertTrue(all(Path(path).exists() for path in saved))
        for name in self.files():
            Path(name).unlink()

    def test_pieces_of_every_size(self) -> None:
        for name, argv, body in self.bodies():
            whole = read([body])
            for size in (2, 3, 75, 76, 77) if "broken" in name else (1, 5, 1023, 1024, 1025, 1026):
                with self.subTest(name=name, size=size):
                    self.assertEqual(read(cut(body, size)), whole)
            for size in (3, 1025):
                with self.subTest(name=name, size=size):
                    ran = self.run_main(*argv, "--output", "p.png", transport=FakeTransport(reply(body, size=size)))
                    self.assertEqual((ran.code, {row["sha256"] for row in ran.json["images"]}), (0, self.true), ran.err)
                    self.assert_sound(ran)

    def test_padding_cut_in_two(self) -> None:
        for extra in range(3):
            for broken in (False, True):
                data = self.FINALS[0] + b"x" * extra
                body = json.dumps({"data": [{"b64_json": self.text(data, broken)}]}).encode()
                end = body.rindex(b'"')
                for at in range(end - 8, end + 2):
                    with self.subTest(extra=extra, broken=broken, at=at - end):
                        halves = gpt_image.Reply(200, {}, [body[:at], body[at:]])
                        words = ("generations", "A lake", *SMALL, "--output", "p.png")
                        ran = self.run_main(*words, transport=FakeTransport(halves))
                        self.assertEqual(ran.code, 0, ran.err)
                        self.assertEqual(Path("p.png").read_bytes(), data)
                        self.assert_sound(ran)

    def test_characters_behind_the_padding_are_an_error_wherever_the_pieces_end(self) -> None:
        padded = base64.b64encode(self.FINALS[0] + b"x" * (-len(self.FINALS[0]) % 3 + 1)).decode()
        self.assertTrue(padded.endswith("=="))
        for text in (padded + "AAAA", padded + "\nAAAA", padded + "A", padded[:-1] + "A", padded + "=A", padded[:800] + "==" + padded[800:]):
            body = json.dumps({"data": [{"b64_json": text}]}).encode()
            end = body.rindex(b"==") if b"==" in body else len(body) - 10
            for at in range(end - 4, min(end + 9, len(body))):
                with self.subTest(text=text[-12:], at=at - end):
                    halves = gpt_image.Reply(200, {}, [body[:at], body[at:]])
                    ran = self.run_main("generations", "x", *SMALL, "--output", "p.png", transport=FakeTransport(halves))
                    self.assertEqual((ran.code, ran.json["images"]), (6, []), ran.err)
                    self.assert_sound(ran)

    def test_a_body_cut_anywhere_keeps_the_pictures_that_were_whole(self) -> None:
        chance = random.Random(3)
        for name, argv, body in self.bodies():
            ends = [body.find(base64.b64encode(data)[-60:]) for data in self.FINALS] if "plain" in name else []
            cuts = sorted({chance.randrange(1, len(body)) for _ in range(8)} | {end + 60 for end in ends if end > 0})
            for at in cuts:
                with self.subTest(name=name, at=at):
                    fake = FakeTransport(gpt_image.Reply(200, {}, self.cut_off(body[:at], chance.randrange(1, 2000))))
                    ran = self.run_main(*argv, "--output", "p.png", transport=fake)
                    self.assertIn(ran.code, (5, 6), ran.err)
                    found = {row["sha256"] for row in ran.json["images"]}
                    self.assertLessEqual(found, self.true)
                    self.assertGreaterEqual(len(found), sum(0 < end + 60 <= at for end in ends))
                    self.assertEqual(Path("p.reply").read_bytes(), body[:at])
                    self.assert_sound(ran)

    @staticmethod
    def cut_off(data: bytes, size: int) -> Iterator[bytes]:
        """Yields bytes in pieces, and ends as a broken connection does."""
        for at in range(0, len(data), size):
            yield data[at : at + size]
        raise ConnectionError("the reply was cut")

    def test_a_kept_reply_is_the_reply_byte_for_byte_wherever_its_pieces_end(self) -> None:
        (head, tail), _ = pictures.large(b"kept", 36_000)
        plain = base64.b64encode(head + tail)
        mangled = (plain, plain.replace(b"+", b"\\u002B"), plain.replace(b"/", b"\\/"), plain.replace(b"/", b"\\u002f"),
                   b"\\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)), plain[:-1] + b"!")  # fmt: skip
        chance = random.Random(9)
        for number, text in enumerate(mangled):
            body = b'{"data": [{"b64_json": "' + text + b'"}, {"b64_json": "' + text + b'"}], "created": 1'
            escapes = [at for at in range(9000, len(body) - 15_000) if body[at : at + 1] == b"\\"]
            for ahead in range(0, 7, 2):
                first = chance.choice(escapes or [9999]) + ahead
                edges = [0, 5000, first, *range(first + chance.randrange(4096, 9000), len(body), chance.randrange(4096, 9000)), len(body)]
                with self.subTest(number=number, ahead=ahead):
                    pieces = [body[start:end] for start, end in zip(edges, edges[1:])]
                    ran = self.run_main(*ROUTES["three"], "--output", "p.png", transport=FakeTransport(gpt_image.Reply(200, {}, pieces)))
                    self.assertNotEqual(ran.code, 0)
                    self.assertTrue(Path("p.reply").read_bytes() == body, "the kept reply differs")
                    for row in ran.json["images"]:
                        self.assertEqual(Path(row["path"]).read_bytes(), head + tail)
                    self.assertEqual(len(ran.json["images"]), 0 if number == 5 else 2)
                    self.assert_sound(ran)

    def test_bodies_changed_at_random(self) -> None:
        chance = random.Random(5)
        signs = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"=", b"!", b"\x00", b"\xff", b"<", b"data: ", b"null", b"\\u0"]
        for name, argv, body in self.bodies():
            for number in range(9):
                spoilt = bytearray(body)
                for _ in range(chance.randrange(1, 4)):
                    at, sign = chance.randrange(len(spoilt)), chance.choice(signs)
                    spoilt[at : at + chance.choice((0, 1, len(sign), 40))] = sign
                with self.subTest(name=name, number=number):
                    fake = FakeTransport(reply(bytes(spoilt), size=chance.randrange(1, 4000)))
                    self.assert_sound(self.run_main(*argv, "--output", "p.png", transport=fake))

    def test_documents_whose_values_are_of_another_kind(self) -> None:
        odd: List[Any] = [None, 5, -1, 1e99, True, "x", "", "\ud800", [], {}, [5], [None], {"a": 1}, [[]], "x" * 3000]
        chance = random.Random(7)
        message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "hi"}]}
        text = self.text(self.FINALS[0], False)
        call = {"type": "image_generation_call", "id": "ig_1", "result": text, "status": "completed", "error": {"message": "m", "code": "c"}}
        response = {"id": "resp_1", "status": "completed", "output": [call, message], "usage": {"a": 1}, "error": None, "incomplete_details": {"reason": "r"}}
        usage = {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"text_tokens": 1, "image_tokens": 0, "cached_tokens_details": {"text_tokens": 1}}}
        picture = {"b64_json": text, "url": "http://127.0.0.1:1/x", "revised_prompt": "r"}
        choice = {"index": 0, "message": {"content": [{"type": "text", "text": "t"}], "images": [{"image_url": {"url": "data:image/png;base64," + text}}], "refusal": None}}
        delta = {"index": 0, "delta": {"content": "![x](data:image/png;base64," + text + ")", "images": [{"image_url": "http://127.0.0.1:1/"}]}}
        partial = {"type": "response.image_generation_call.partial_image", "partial_image_b64": text, "partial_image_index": 0, "item_id": "ig_1", "output_index": 0, "sequence_number": 3}
        details = {"moderation_stage": "input", "categories": ["violence"]}
        error: Dict[str, Any] = {"error": {"message": "m", "type": "t", "code": "c", "status": 400, "moderation_details": details}}
        documents: Tuple[Tuple[str, bool, Any], ...] = (
            ("three", False, {"created": 1, "data": [picture], "usage": usage}),
            ("talk", False, response),
            ("talk-live", True, {"type": "response.completed", "response": response, "sequence_number": 1}),
            ("talk-live", True, {"type": "response.output_item.done", "item": call, "output_index": 0, "sequence_number": 1}),
            ("talk-live", True, partial),
            ("talk-live", True, {"type": "response.output_text.delta", "delta": "x", "item_id": "m"}),
            ("talk-live", True, {"type": "error", **error["error"]}),
            ("live", True, {"type": "image_generation.completed", **picture, "usage": usage}),
            ("chat", False, {"object": "chat.completion", "choices": [choice], "usage": {}}),
            ("chat-live", True, {"object": "chat.completion.chunk", "choices": [delta]}),
            ("three", False, error),
            ("live", True, error),
        )  # fmt: skip
        again = (2, 3, 11)  # whose values stand in another of them as well
        for number, (route, stream, document) in enumerate(documents):
            for path in list(paths(document)):
                for value in chance.sample(odd, 1 if number in again else 2):
                    changed = replaced(document, path, value)
                    body = f"data: {json.dumps(changed)}\n\n" if stream else json.dumps(changed)
                    with self.subTest(document=number, path=path, value=str(value)[:20]):
                        down = [gpt_image.Fault("down", False) for _ in range(30)]
                        options = ("--no-store",) if route.startswith("talk") else ()
                        ran = self.run_main(*ROUTES[route], *options, "--output", "p.png", transport=FakeTransport(reply(body), *down))
                        self.assert_sound(ran)

    def test_error_bodies_whose_values_are_of_another_kind(self) -> None:
        details = {"moderation_stage": "input", "categories": ["violence"]}
        error = {"error": {"message": "m", "type": "t", "code": "c", "status": 400, "param": None, "moderation_details": details}}
        for path in paths(error):
            for value in (None, 5, True, "\ud800", [], {}, [5], {"a": 1}):
                with self.subTest(path=path, value=value):
                    body = json.dumps(replaced(error, path, value))
                    ran = self.run_main(*ROUTES["three"], "--output", "p.png", transport=FakeTransport(reply(body, 400)))
                    self.assertEqual((ran.code, ran.error["status"]), (4, 400), ran.err)


def paths(value: Any, start: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Yields the path to every value within a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*start, key)
        yield from paths(inner, (*start, key))


def replaced(value: Any, path: Tuple[Any, ...], new: Any) -> Any:
    """Returns a document with one value replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


class WhenTheDiskIsAgainstUs(ProgramTest):
    """What was paid for is kept although the folder is not what it was."""

    BODY = json.dumps({"data": [{"b64_json": base64.b64encode(CutAndSpoilt.FINALS[0]).decode()}]}).encode()

    def transport(self, deed: Callable[[], None]) -> Callable[..., Any]:
        """Returns a transport that does something to the disk before it answers."""

        def play(*_: Any) -> Any:
            deed()
            return reply(self.BODY, size=100)

        return play

    def test_a_folder_that_vanishes_during_the_call(self) -> None:
        ran = self.run_main("generations", "A lake", *SMALL, "--output", "out/p.png", transport=self.transport(lambda: shutil.rmtree("out")))
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (7, True), ran.err)
        self.assertNotIn("Traceback", ran.err)
        self.assert_kept(ran)

    def test_a_folder_that_becomes_a_file_during_the_call(self) -> None:
        def deed() -> None:
            shutil.rmtree("out")
            Path("out").write_bytes(b"")

        ran = self.run_main("generations", "A lake", *SMALL, "--output", "out/p.png", transport=self.transport(deed))
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (7, True), ran.err)
        self.assert_kept(ran)

    def test_a_folder_of_save_response_that_vanishes(self) -> None:
        words = ("generations", "A lake", *SMALL, "--output", "p.png", "--save-response", "out/kept.json")
        ran = self.run_main(*words, transport=self.transport(lambda: shutil.rmtree("out")))
        self.assertIn(ran.code, (0, 7), ran.err)
        self.assertEqual(Path("p.png").read_bytes(), CutAndSpoilt.FINALS[0])
        self.assertNotEqual(ran.json["saved_response"], "out/kept.json")
        self.addCleanup(Path(ran.json["saved_response"]).unlink)

    def assert_kept(self, ran: Ran) -> None:
        """Asserts that the reply was kept somewhere, and takes the picture out of it."""
        kept = ran.json["saved_response"]
        self.assertIsNotNone(kept)
        self.addCleanup(Path(kept).unlink)
        again = self.run_main("extract", kept, "--output", "again.png")
        self.assertEqual(again.code, 0, again.err)
        self.assertEqual(Path("again.png").read_bytes(), CutAndSpoilt.FINALS[0])

    def test_a_name_that_leaves_no_room_for_the_ending_of_the_kept_reply(self) -> None:
        for length in (247, 249, 250, 251):  # with .png it fits into 255 bytes, with what is put behind it no longer
            for body in (self.BODY, self.BODY[:-20]):
                with self.subTest(length=length, whole=body is self.BODY):
                    output = "y" * length + ".png"
                    words = ("generations", "A lake", *SMALL, "--output", output)
                    ran = self.run_main(*words, transport=FakeTransport(reply(body)))
                    if body is self.BODY:
                        self.assertEqual((ran.code, Path(output).read_bytes()), (0, CutAndSpoilt.FINALS[0]), ran.err)
                    else:
                        self.assertEqual(ran.code, 5, ran.err)
                        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)
                        again = self.run_main(*shlex.split(ran.error["recovery"])[2:])
                        self.assertEqual((again.code, "File name too long" in again.err), (6, False), again.err)
                    for name in self.files():
                        Path(name).unlink()

    def test_names_that_are_too_long_are_refused_before_anything_is_sent(self) -> None:
        for length, options in ((252, ()), (250, ("--n", "3")), (245, ("--stream", "--partial-images", "1"))):
            with self.subTest(length=length, options=options):
                fake = FakeTransport(reply(self.BODY))
                words = ("generations", "A lake", *SMALL, "--output", "y" * length + ".png", *options)
                ran = self.run_main(*words, transport=fake)
                self.assertEqual((ran.code, fake.requests, self.files()), (7, [], []), ran.err)

    def test_a_folder_no_file_can_be_made_in(self) -> None:
        real = open
        armed: List[bool] = []

        def full(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if armed and "x" in mode and str(path).startswith("out"):
                raise OSError(28, "No space left on device", path)
            return real(path, mode, *rest, **more)

        with mock.patch("builtins.open", full):
            words = ("generations", "A lake", *SMALL, "--output", "out/p.png")
            ran = self.run_main(*words, transport=self.transport(lambda: armed.append(True)))
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (7, True), ran.err)
        self.assert_kept(ran)
