"""Every picture that arrives is kept, whatever the reply looks like, and the result tells the truth about each."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, Ran, cut, reply
from tests.test_events import RESPONSE, RESPONSE_STREAM, b64, call, completed, done, events, message, preview, response
from tests.test_reply import picture
from tests.test_transport import Raw

Json = Dict[str, Any]
IMAGES, STREAM, CHAT = (
    "generations x",
    "generations x --stream --partial-images 2",
    "generations x --protocol openai_chat",
)
URL = "data:image/png;base64,"


def digest(data: bytes) -> str:
    """Returns the hash that a row of the result gives."""
    return hashlib.sha256(data).hexdigest()


def images_event(kind: str, name: str, **more: Any) -> Json:
    """Returns an event of the Images routes with a picture."""
    return {"type": f"image_generation.{kind}", "b64_json": b64(name), **more}


def chat(**said: Any) -> Json:
    """Returns a chat completion."""
    return {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", **said}}]}


def delta(**said: Any) -> Json:
    """Returns a chunk of a chat stream."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": said}]}


class EveryPictureTest(ProgramTest):
    """A test that plays a reply in a folder of its own, and looks at each file there."""

    runs = 0

    def play(
        self, argv: str, body: Union[bytes, Json, Iterable[bytes]], *more: str, headers: Optional[Dict[str, str]] = None
    ) -> Ran:
        """Runs a call whose reply is as given, in pieces if it is a row of them; `{}` in what is added is its folder."""
        self.runs += 1
        self.out = f"{self.runs}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        played = gpt_image.Reply(200, headers or {}, [data] if isinstance(data, bytes) else data)
        gone = reply({"error": {"message": "no such response"}}, 404)
        words = [*argv.split(), "--output", f"{self.out}/o.png", *(word.replace("{}", self.out) for word in more)]
        ran = self.run_main(*words, "--progress", "none", transport=FakeTransport(played, gone))
        self.assertEqual((ran.code == 0, ran.json["ok"]), (ran.error is None,) * 2, ran.err)
        self.check_rows(ran)
        return ran

    def check_rows(self, ran: Ran) -> None:
        """Asserts that each row is the truth about a file of its own, and that there is no other file."""
        rows = ran.json["images"] + ran.json["partial_images"] + ran.json["unclaimed"]
        for row in rows:
            data = Path(row["path"]).read_bytes()
            self.assertEqual((row["sha256"], row["bytes"]), (digest(data), len(data)))
        told = [row["path"] for row in rows] + [ran.json["saved_response"]] * bool(ran.json["saved_response"])
        folder = os.path.dirname(told[0]) if told else self.out
        found = self.files(folder) if os.path.exists(folder) else []
        self.assertEqual(sorted(told), [f"{folder}/{name}" for name in found])

    def hashes(self, ran: Ran, *keys: str) -> List[str]:
        """Returns the hashes of the rows of some lists of a result, or of finals and what nothing named."""
        return [row["sha256"] for key in keys or ("images", "unclaimed") for row in ran.json[key]]

    def assert_finals(self, ran: Ran, *names: str, code: int = 0) -> None:
        """Asserts how a call ended, and with which finished pictures."""
        self.assertEqual((ran.code, self.hashes(ran, "images")), (code, [digest(picture(n)) for n in names]), ran.err)

    def extracted(self, path: str) -> Ran:
        """Takes the pictures out of a file, in a folder of its own."""
        self.runs += 1
        self.out = f"{self.runs}"
        ran = self.run_main("extract", path, "--output", f"{self.out}/o.png")
        self.check_rows(ran)
        return ran


class LinesOfJsonTest(EveryPictureTest):
    """JSON documents one per line in place of server-sent events."""

    def lines(self, *rows: Json, end: str = "\n", **how: Any) -> bytes:
        """Returns documents as lines."""
        return end.join([*(json.dumps(row, **how) for row in rows), ""]).encode()

    def test_a_preview_in_a_line_is_a_preview_and_the_final_is_the_picture(self) -> None:
        shown = images_event("partial_image", "big-p", partial_image_index=0)
        final = images_event("completed", "big-f")
        edit = [{**row, "type": row["type"].replace("generation", "edit")} for row in (shown, final)]
        whole = self.lines(shown, final)
        for name, argv, body in (
            ("as it is", STREAM, whole), ("nobody asked for events", IMAGES, whole), ("an edit", IMAGES, self.lines(*edit)),
            ("CRLF", STREAM, self.lines(shown, final, end="\r\n")), ("no last newline", STREAM, whole.rstrip()),
            ("no newline at all", STREAM, self.lines(shown, final, end="")),
            ("empty lines", STREAM, b"\n\n" + self.lines(shown, final, end="\n\n\n")),
            ("sorted keys", STREAM, self.lines(shown, final, sort_keys=True)),
            ("spread over lines", STREAM, self.lines(shown, final, indent=1)),
            ("a line that says nothing", STREAM, self.lines({"type": "ping"}, shown, {"type": "ping"}, final)),
            ("a response", RESPONSE_STREAM, self.lines(preview("big-p"), done(call("big-f")), completed())),
            ("a response, repeated", RESPONSE_STREAM,
             self.lines(preview("big-p"), done(call("big-f")), completed(call("big-f")))),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(argv, cut(body, 7), "--save-response", "{}/kept")
                for found in (ran, self.extracted(ran.json["saved_response"])):  # which comes in one piece
                    self.assert_finals(found, "big-f")
                    self.assertEqual(self.hashes(found, "partial_images", "unclaimed"), [digest(picture("big-p"))])

    def test_lines_that_end_behind_their_previews_hold_no_picture(self) -> None:
        rows = [images_event("partial_image", f"big-{i}", partial_image_index=i) for i in range(2)]
        final = self.lines(images_event("completed", "big-f"))
        for body in (self.lines(*rows), self.lines(*rows) + final[:300]):
            ran = self.play(STREAM, body)
            self.assertIn(ran.code, (5, 6))
            self.assertEqual((ran.json["images"], len(ran.json["partial_images"])), ([], 2))


class CutBehindThePictureTest(EveryPictureTest):
    """A reply that is cut behind the last byte of its picture, and before the end of what holds it."""

    def check(self, name: str, argv: str, body: bytes, after: Sequence[bytes], code: Tuple[int, ...] = (5,)) -> None:
        """Cuts a body behind each of some texts that follow its picture, and asks for the picture."""
        text = b64("big-a").encode()
        start = body.rindex(text) + len(text)
        for rest in after:
            with self.subTest(name, rest=rest):
                self.assertTrue(body[start:].startswith(rest))
                end = start + len(rest)
                ran = self.play(argv, body[:end])
                self.assertIn(ran.code, code, ran.err)
                self.assertEqual(self.hashes(ran), [digest(picture("big-a"))])
                if code == (5,) and not rest.startswith(b")"):  # what holds it has said already what it is
                    self.assertEqual((len(ran.json["images"]), len(ran.error["problems"])), (1, 1))
                self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body[:end])
                self.assertTrue(ran.error["may_be_billed"])
                if not rest:
                    again = self.extracted(ran.json["saved_response"])
                    self.assertEqual(self.hashes(again), [digest(picture("big-a"))])

    def test_a_chat_reply_cut_behind_its_picture_saves_it_and_fails_by_the_cut_alone(self) -> None:
        part = {"type": "image_url", "image_url": {"url": URL + b64("big-a")}}
        for name, said in (
            ("markdown", {"content": f"A lake: ![x]({URL}{b64('big-a')}) and more"}),
            ("images", {"content": "A lake", "images": [part]}), ("parts", {"content": [{"type": "text", "text": "Hi"}, part]}),
        ):  # fmt: skip
            after = (b"", b")", b") an") if name == "markdown" else (b"", b'"', b'"}}', b'"}}]')
            for kind, body in (
                ("whole", json.dumps(chat(**said)).encode()), ("stream", events_of(delta(**said))),
                ("later in a stream", events_of(delta(content="So: "), delta(**said))),
            ):  # fmt: skip
                self.check(f"{name}, {kind}", CHAT, body, after)

    def test_a_chat_picture_that_is_cut_before_its_end_is_none(self) -> None:
        body = json.dumps(chat(content=f"![x]({URL}{b64('big-a')})")).encode()
        ran = self.play(CHAT, body[: body.index(b64("big-a").encode()) + 1000])
        self.assertEqual((ran.code, self.hashes(ran)), (5, []))
        self.assertEqual(self.files(self.out), ["o.reply"])

    def test_documents_with_sorted_keys_cut_behind_their_picture_save_it(self) -> None:
        final = {**images_event("completed", "big-a"), "created_at": 1}
        for name, argv, row in (
            ("final", STREAM, final), ("item", RESPONSE_STREAM, done(call("big-a"))),
            ("completed", RESPONSE_STREAM, completed(call("big-a"))), ("response", RESPONSE, response(call("big-a"))),
            ("images", IMAGES, {"data": [{"b64_json": b64("big-a"), "revised_prompt": "x"}], "usage": {}}),
        ):  # fmt: skip
            text = json.dumps(row, sort_keys=True).encode()
            after = [b"", b'"', b'", "']
            # A picture that nothing names any more is reported as unclaimed, which is an exit of 6 by itself.
            self.check(name, argv, text, after, (5, 6))
            if argv in (STREAM, RESPONSE_STREAM):
                self.check(f"{name}, event", argv, b"data: " + text + b"\n\n", after, (5, 6))
                line = f"event: {row['type']}\n".encode()
                self.check(f"{name}, named event", argv, line + b"data: " + text + b"\n\n", after, (5, 6))

    def test_a_preview_with_sorted_keys_that_is_cut_is_no_final(self) -> None:
        text = json.dumps(images_event("partial_image", "big-p", partial_image_index=0), sort_keys=True)
        for rest in ('", "partial_image_index": 0', '", '):
            end = text.index(rest) + len(rest)
            for start in ("", "event: image_generation.partial_image\n"):
                with self.subTest(rest, start=start):
                    ran = self.play(STREAM, f"{start}data: {text[:end]}".encode())
                    self.assertIn(ran.code, (5, 6))
                    self.assertEqual(ran.json["images"], [])
                    self.assertEqual(self.hashes(ran, "partial_images", "unclaimed"), [digest(picture("big-p"))])


def events_of(*rows: Json) -> bytes:
    """Returns rows as events without a name."""
    return b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows)


class EndsOfStreamsTest(EveryPictureTest):
    """Where a stream of events ends."""

    def test_an_event_of_several_lines_is_whole_without_a_last_newline(self) -> None:
        text = json.dumps(images_event("completed", "big-a"), indent=1).replace("\n", "", 1)
        for newline in ("\n", "\r\n", "\r"):
            for space, end in ((" ", ""), ("", newline), (" ", newline * 2), ("", "")):
                body = newline.join(f"data:{space}{line}" for line in text.split("\n")) + end
                with self.subTest(newline=newline, space=space, end=end):
                    size = 10**6 if space else 1
                    self.assert_finals(self.play(STREAM, cut(body.encode(), size)), "big-a")

    def test_an_event_whose_last_line_is_its_bracket_is_whole(self) -> None:
        text = json.dumps(images_event("completed", "big-a"))[:-1]
        item = json.dumps(done(call("big-a")))[:-2]
        for argv, body in (
            (STREAM, f"data: {text}\ndata:}}"), (STREAM, f"data: {text}\ndata: }}"), (STREAM, f"data: {text}\r\ndata:}}"),
            (STREAM, f"event: image_generation.completed\ndata: {text}\ndata:}}"), (STREAM, f"data:{text}\ndata:\ndata:}}"),
            (RESPONSE_STREAM, f"data: {item}\ndata:}}\ndata:}}"), (RESPONSE_STREAM, f"data: {item}\ndata:}}}}"),
        ):  # fmt: skip
            for pieces in (
                [body.encode()],
                [body[:-6].encode(), *cut(body[-6:].encode(), 1)],
            ):
                with self.subTest(body[-20:], pieces=len(pieces)):
                    self.assert_finals(self.play(argv, pieces), "big-a")

    def test_nothing_is_read_behind_done(self) -> None:
        final = events_of(images_event("completed", "big-a"))
        item = events_of(done(call("big-a")), completed())
        said = events_of(delta(content=f"![x]({URL}{b64('big-a')})"))

        def pieces(body: bytes, end: Sequence[bytes]) -> Iterator[bytes]:
            yield body
            yield from end
            raise AssertionError("something is read behind [DONE]")

        ends: List[List[bytes]] = [
            [b"data: [DONE]\n\n"], [b"data: [DONE]"], [b"data: [DO", b"NE]\n\n"], [b"data:[DONE]\n\n"], [b"data: [DONE]\n"],
            [b"data: [DONE]\r\n\r\n"], [b": bye\n", b"data: [DONE]\n\n"],
        ]  # fmt: skip
        for argv, body in ((STREAM, final), (IMAGES, final), (RESPONSE_STREAM, item), (CHAT + " --stream", said)):
            for end in ends if argv == STREAM else ends[:2]:
                with self.subTest(argv, end=end):
                    self.assert_finals(self.play(argv, pieces(body, end)), "big-a")

    def test_done_ends_a_stream_whose_connection_stays_open(self) -> None:
        body = events_of(images_event("completed", "big-a")) + b"data: [DONE]\n\n"

        def deed(sock: socket.socket, _: bytes) -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            sock.sendall(head + b"%x\r\n" % len(body) + body + b"\r\n")
            with contextlib.suppress(OSError):
                sock.recv(1)

        server = Raw(deed)
        self.addCleanup(server.close)
        started = time.monotonic()
        ran = self.run_main(*STREAM.split(), "--output", "o.png", "--timeout", "3", "--base-url",
                            f"http://127.0.0.1:{server.port}/v1", transport=gpt_image.send)  # fmt: skip
        self.assert_finals(ran, "big-a")
        self.assertLess(time.monotonic() - started, 2)


@unittest.skipUnless(hasattr(signal, "pthread_kill"), "signals are POSIX")
class BilledWhenInterruptedTest(EveryPictureTest):
    """Whether a call that is interrupted may be billed: only if its request was sent in full."""

    def interrupted(self, *argv: str, transport: Any = None, sleep: Any = None, env: Any = None) -> Ran:
        """Runs the program with its own transport and signal handlers; it must end by the signal."""
        environ = {"HOME": str(self.folder), "OPENAI_API_KEY": KEY, **(env or {})}
        out, err = io.StringIO(), io.StringIO()
        clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        with mock.patch.dict(os.environ, clean, clear=True):
            code = gpt_image.main([*argv, "--output", "o.png", "--timeout", "5"], environ=environ, transport=transport,
                                  stdin=io.StringIO(), stdout=out, stderr=err, sleep=sleep)  # fmt: skip
        ran = Ran(code, out.getvalue(), err.getvalue(), json.loads(out.getvalue()))
        self.assertEqual((ran.code, ran.json["images"], ran.error["exit"]), (130, [], 130), ran.err)
        self.assertEqual(self.files(), ["in.png"] if Path("in.png").exists() else [])
        return ran

    def told(self, ran: Ran) -> bool:
        """Returns what a result says of the bill, which is also what is said to a person."""
        self.assertEqual(ran.error["may_be_billed"], "may have been billed" in ran.err)
        return bool(ran.error["may_be_billed"])

    def server(self, read_all: bool) -> str:
        """Starts a server that reads a request, or its first bytes only, and then interrupts this very process."""

        def interrupt() -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        def deed(sock: socket.socket, _: bytes) -> None:
            interrupt()
            with contextlib.suppress(OSError):
                sock.recv(1)

        server = Raw(deed)
        if not read_all:
            vars(server)["head"] = lambda sock: sock.recv(1000)
        self.addCleanup(server.close)
        return f"127.0.0.1:{server.port}/v1"

    def test_in_mid_upload_it_cannot_be_billed(self) -> None:
        (head, tail), _ = pictures.large(b"upload", 20 << 20)
        Path("in.png").write_bytes(head + tail)
        for argv in (("edits", "x", "--image", "in.png"), ("responses", "x", "--input-image", "in.png")):
            with self.subTest(argv[0]):
                ran = self.interrupted(*argv, env={"OPENAI_BASE_URL": "http://" + self.server(read_all=False)})
                self.assertEqual((self.told(ran), ran.json["attempts"]), (False, 1))

    def test_in_the_tls_handshake_it_cannot_be_billed(self) -> None:
        for argv in (IMAGES, RESPONSE):
            with self.subTest(argv):
                server = self.server(read_all=False)
                self.assertFalse(
                    self.told(self.interrupted(*argv.split(), env={"OPENAI_BASE_URL": "https://" + server}))
                )

    def test_while_it_connects_it_cannot_be_billed(self) -> None:
        def connect(*_: Any, **__: Any) -> socket.socket:
            signal.raise_signal(signal.SIGINT)
            raise ConnectionRefusedError("refused")

        for scheme in ("http", "https"):
            with self.subTest(scheme), mock.patch("socket.create_connection", connect):
                ran = self.interrupted(*IMAGES.split(), env={"OPENAI_BASE_URL": f"{scheme}://127.0.0.1:9/v1"})
                self.assertFalse(self.told(ran))

    def test_in_the_wait_after_a_refusal_it_is_billed_as_the_refusal_is(self) -> None:
        error = {"error": {"message": "No.", "type": "requests", "code": "rate_limit_exceeded"}}
        for name, outcome, more, billed in (
            ("429", reply(error, 429, {"Retry-After": "1"}), (), False), ("503", reply(error, 503), (), False),
            ("no connection", gpt_image.Fault("refused", sent=False), (), False),
            ("504", reply(error, 504), ("--retry-billable",), True),
            ("cut", gpt_image.Fault("cut", sent=True), ("--retry-billable",), True),
        ):  # fmt: skip
            with self.subTest(name):
                waits: List[float] = []

                def sleep(seconds: float, waits: List[float] = waits) -> None:
                    waits.append(seconds)
                    signal.raise_signal(signal.SIGINT)

                fake = FakeTransport(outcome)
                ran = self.interrupted(*IMAGES.split(), *more, transport=fake, sleep=sleep)
                self.assertEqual((self.told(ran), len(waits), len(fake.requests)), (billed, 1, 1), ran.err)

    def test_it_is_the_last_byte_of_the_request_that_may_cost(self) -> None:
        Path("in.png").write_bytes(picture("big-in") * 400)
        for name, count, billed in (("none", 0, False), ("one block", 1, False), ("all", 10**6, True)):
            with self.subTest(name):

                def transport(request: gpt_image.Request, *_: Any, count: int = count) -> gpt_image.Reply:
                    self.assertLessEqual(len(list(itertools.islice(request.body or (), count))), count)
                    raise KeyboardInterrupt

                ran = self.interrupted("edits", "x", "--image", "in.png", transport=transport)
                self.assertEqual(self.told(ran), billed)

    def test_once_the_request_is_sent_in_full_it_may_be_billed(self) -> None:
        Path("in.png").write_bytes(picture("big-in"))
        for argv in (IMAGES, STREAM, RESPONSE, "edits x --image in.png", "responses x --input-image in.png"):
            with self.subTest(argv):
                ran = self.interrupted(*argv.split(), env={"OPENAI_BASE_URL": "http://" + self.server(read_all=True)})
                self.assertTrue(self.told(ran))


class OverwriteTest(EveryPictureTest):
    """With --overwrite a run replaces what was there before it, and never what it has written itself."""

    def play_over(self, argv: str, body: bytes) -> Ran:
        """Runs a call with --overwrite where files stand under the names that it will use."""
        folder = Path(f"{self.runs + 1}")
        folder.mkdir()
        for name in ("o.png", "o-partial-1.png", "o-partial-2.png", "o-1.png", "o-2.png"):
            if (name in ("o-1.png", "o-2.png")) == ("--n 2" in argv):
                (folder / name).write_bytes(b"old")
        self.runs += 1
        self.out = str(folder)
        return self.run_main(
            *argv.split(), "--output", f"{self.out}/o.png", "--overwrite", transport=FakeTransport(reply(body))
        )

    def test_no_file_of_a_run_is_replaced_by_that_run(self) -> None:
        unnamed = {"type": "image_generation.completed", "b64_json": b64("big-a")}
        for name, argv, rows, finals, previews in (
            ("previews of one index", STREAM,
             [images_event("partial_image", f"big-{i}", partial_image_index=0) for i in "pqr"] + [unnamed], "a", "pqr"),
            ("previews without an index", STREAM,
             [images_event("partial_image", f"big-{i}") for i in "pqr"] + [unnamed], "a", "pqr"),
            ("an index beside none", STREAM, [images_event("partial_image", "big-p"),
             images_event("partial_image", "big-q", partial_image_index=0), unnamed], "a", "pq"),
            ("more previews than asked for", STREAM,
             [images_event("partial_image", f"big-{i}", partial_image_index=n) for n, i in enumerate("pqrs")] + [unnamed],
             "a", "pqrs"),
            ("previews only", STREAM, [images_event("partial_image", f"big-{i}") for i in "pq"], "", "pq"),
            ("a keyed final behind one without a key", RESPONSE,
             [done(call("big-a", None)), done(call("big-b", "ig_2"), 1), completed()], "ab", ""),
            ("a keyed final behind a loose one", RESPONSE, [{**unnamed}, done(call("big-b", "ig_2")), completed()], "ab", ""),
            ("a loose final behind a keyed one", RESPONSE, [done(call("big-b", "ig_2")), {**unnamed}, completed()], "ba", ""),
            ("a preview's key for another final", RESPONSE_STREAM,
             [preview("big-p"), done(call("big-a", "ig_2"), 1), done(call("big-b")), completed()], "ab", "p"),
            ("finals of one key", RESPONSE, [done(call("big-a")), done(call("big-b")), completed()], "ab", ""),
            ("two of two", "generations x --n 2", [unnamed, images_event("completed", "big-b", id="c")], "ab", ""),
            ("three of two", "generations x --n 2",
             [images_event("completed", f"big-{i}", id="c") for i in "abc"], "abc", ""),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play_over(argv, events(*rows))
                self.assertEqual(ran.code, 0 if finals else 6, ran.err)
                self.assertEqual(
                    sorted(self.hashes(ran, "images")), sorted(digest(picture(f"big-{i}")) for i in finals)
                )
                self.assertEqual(self.hashes(ran, "partial_images"), [digest(picture(f"big-{i}")) for i in previews])
                rows_told = ran.json["images"] + ran.json["partial_images"]
                self.assertEqual(len({row["path"] for row in rows_told}), len(rows_told))
                for row in rows_told:
                    self.assertEqual(digest(Path(row["path"]).read_bytes()), row["sha256"], row["path"])
                if finals and "--n 2" not in argv:
                    self.assertNotEqual(Path(self.out, "o.png").read_bytes(), b"old")

    def test_what_nothing_named_replaces_neither_a_picture_nor_what_was_there(self) -> None:
        Path("1").mkdir()
        Path("1/o-unclaimed-1.png").write_bytes(b"mine")
        body = events({"type": "x", "b64_json": b64("big-d")}, {"type": "x", "b64_json": b64("big-e")},
                      images_event("completed", "big-a"))  # fmt: skip
        ran = self.run_main(*STREAM.split(), "--output", "1/o.png", "--overwrite", transport=FakeTransport(reply(body)))
        self.assert_finals(ran, "big-a")
        self.assertEqual(self.hashes(ran, "unclaimed"), [digest(picture(f"big-{i}")) for i in "de"])
        self.assertEqual(Path("1/o-unclaimed-1.png").read_bytes(), b"mine")
        for row in ran.json["unclaimed"]:
            self.assertEqual(digest(Path(row["path"]).read_bytes()), row["sha256"])


class OneOrTwoTest(EveryPictureTest):
    """The bytes tell whether a picture is another one or the same again."""

    def check(self, name: str, argv: str, body: Any, *names: str) -> None:
        """Plays a reply and extracts it; both must find these pictures."""
        with self.subTest(name):
            ran = self.play(argv, body, "--save-response", "{}/kept")
            self.assert_finals(ran, *names)
            self.assertEqual(ran.json["unclaimed"], [])
            ran = self.extracted(ran.json["saved_response"])
            self.assert_finals(ran, *names)
            self.assertEqual(ran.json["unclaimed"], [])

    def test_two_pictures_under_one_id_are_two(self) -> None:
        two, stream = [call("big-a"), call("big-b")], "generations x --n 2"
        for name, argv, body in (
            ("in output[]", RESPONSE, response(*two)), ("of one kind of item", RESPONSE, response(*two, message("Hi."))),
            ("done one by one", RESPONSE, events(done(two[0]), done(two[1], 1), completed())),
            ("done at one place", RESPONSE, events(done(two[0]), done(two[1]), completed())),
            ("done and completed", RESPONSE, events(done(two[0]), done(two[1], 1), completed(*two))),
            ("the second completed only", RESPONSE, events(done(two[0]), completed(*two))),
            ("completed only", RESPONSE, events(completed(*two))),
            ("each with another in the end", RESPONSE, events(done(two[0]), completed(two[1]))),
            ("stream with an id", stream, events(*(images_event("completed", f"big-{i}", id="c") for i in "ab"))),
            ("stream with an item", stream, events(*(images_event("completed", f"big-{i}", item_id="c") for i in "ab"))),
            ("stream with a place", stream, events(*(images_event("completed", f"big-{i}", output_index=0) for i in "ab"))),
            ("stream with nothing", stream, events(*(images_event("completed", f"big-{i}") for i in "ab"))),
            ("data[]", "generations x --n 2", {"data": [{"id": "c", "b64_json": b64(f"big-{i}")} for i in "ab"]}),
        ):  # fmt: skip
            self.check(name, argv, body, "big-a", "big-b")

    def test_a_picture_that_comes_once_with_an_id_and_once_without_is_one(self) -> None:
        bare = {key: value for key, value in call("big-a", None).items() if key != "status"}
        for name, body in (
            ("no id in the item", events(done(call("big-a", None)), completed(call("big-a")))),
            ("no id in the end", events(done(call("big-a")), completed(call("big-a", None)))),
            ("no place either", events({"type": "response.output_item.done", "item": bare}, completed(call("big-a")))),
            ("no id anywhere", events(done(bare), completed(bare))),
            ("another place", events(done(call("big-a", None), 3), completed(message("Hi."), call("big-a")))),
        ):
            self.check(name, RESPONSE, body, "big-a")

    def test_the_same_bytes_under_two_ids_are_two(self) -> None:
        two = [call("big-a", "ig_1"), call("big-a", "ig_2")]
        self.check("plain", RESPONSE, response(*two), "big-a", "big-a")
        self.check("events", RESPONSE, events(done(two[0]), done(two[1], 1), completed(*two)), "big-a", "big-a")


class PackedRepliesTest(EveryPictureTest):
    """What a header says of compression, and what the bytes say."""

    PLAIN = json.dumps({"created": 1, "data": [{"b64_json": b64("big-a")}]}).encode()

    @staticmethod
    def raw(data: bytes) -> bytes:
        """Returns data in raw deflate."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(data) + packer.flush()

    def check(self, name: str, encoding: str, body: bytes) -> None:
        """Plays a reply, in pieces every second time: the picture is there, the kept reply is what came, and can be read."""
        size = (10**6, 300)[self.runs % 2]
        with self.subTest(name, encoding=encoding, size=size):
            ran = self.play(
                IMAGES, cut(body, size), "--save-response", "{}/kept", headers={"content-encoding": encoding}
            )
            self.assert_finals(ran, "big-a")
            self.assertEqual(Path(f"{self.out}/kept").read_bytes(), body)
            if not encoding.startswith(("deflate", "br")):  # raw deflate has no beginning to know it by
                self.assertEqual(self.hashes(self.extracted(f"{self.out}/kept")), [digest(picture("big-a"))])

    def test_the_bytes_tell_whether_a_reply_is_packed(self) -> None:
        plain = self.PLAIN
        for encoding in ("gzip", "GZIP", "deflate", "br"):
            self.check("plain", encoding, plain)
            self.check("gzip", encoding, gzip.compress(plain))
            self.runs += 1
        self.check("white space first", "gzip", b"\n\n" + plain)
        self.check("byte order mark", "gzip", b"\xef\xbb\xbf" + plain)
        self.check("events", "gzip", events(images_event("completed", "big-a")))
        self.check("comment", "deflate", b": hello\n\n" + events(images_event("completed", "big-a")))
        self.check("zlib", "deflate", zlib.compress(plain))
        self.check("raw deflate", "deflate", self.raw(plain))
        self.check("raw deflate, events", "deflate", self.raw(events(images_event("completed", "big-a"))))

    def test_all_members_of_a_gzip_are_read(self) -> None:
        plain = self.PLAIN
        middle = len(plain) // 2
        pack = gzip.compress
        for name, body in (
            ("two", pack(plain[:middle]) + pack(plain[middle:])),
            ("many", b"".join(map(pack, cut(plain, 200)))),
            ("an empty one last", pack(plain) + pack(b"")),
            ("of another level", pack(plain[:middle], 0) + pack(plain[middle:], 9)),
        ):
            self.check(name, "gzip", body)

    def test_what_does_not_unpack_is_kept_as_it_came(self) -> None:
        packed = gzip.compress(self.PLAIN)
        middle = len(packed) // 2
        for name, body in (
            ("cut", packed[:middle]), ("noise within", packed[:middle] + bytes(40) + packed[middle + 40 :]),
            ("noise from the start", packed[:10] + b"\xff" * 500), ("head only", packed[:10]),
            ("a bad checksum", packed[:-8] + b"\0\1\2\3" + packed[-4:]), ("a bad length", packed[:-1] + b"\xff"),
        ):  # fmt: skip
            for size in (10**6, 100):
                with self.subTest(name, size=size):
                    ran = self.play(IMAGES, cut(body, size), headers={"content-encoding": "gzip"})
                    self.assertIn(ran.code, (0, 5, 6) if name.startswith("a bad") else (5, 6), ran.err)
                    self.assertTrue(ran.code == 0 or ran.error["may_be_billed"])
                    if ran.code:
                        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)


class UnknownDialectsTest(EveryPictureTest):
    """Pictures that stand where no row of the tables looks for them."""

    def check(self, name: str, argv: str, body: Any, *datas: bytes) -> None:
        """Plays a reply: each picture is on disk, claimed or not, and the exit is 0 only if it is claimed; extract agrees."""
        wanted = sorted(map(digest, datas))
        size = (10**6, 11)[self.runs // 2 % 2]
        with self.subTest(name, argv=argv, size=size):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            ran = self.play(argv, cut(data, size))
            self.check_found(ran, wanted)
            if ran.code:
                self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), data)
                again = self.extracted(ran.json["saved_response"])
                self.check_found(again, wanted)
                self.assertEqual(self.hashes(again, "images"), self.hashes(ran, "images"))

    def check_found(self, ran: Ran, wanted: List[str]) -> None:
        """Asserts that all pictures are there, and under which names."""
        claimed = len(ran.json["images"])
        self.assertEqual(sorted(self.hashes(ran)), wanted, ran.err)
        self.assertEqual((ran.code, ran.json["partial_images"]), (6 if claimed < len(wanted) else 0, []), ran.err)
        self.assertEqual([row["whole"] for row in ran.json["images"] + ran.json["unclaimed"]], [True] * len(wanted))
        names = [Path(row["path"]) for row in ran.json["unclaimed"]]
        self.assertEqual([name.stem for name in names], [f"o-unclaimed-{i + 1}" for i in range(len(names))])

    def test_a_picture_under_any_key_is_kept(self) -> None:
        a, url = b64("big-a"), URL + b64("big-a")
        rows: List[Json] = [
            {"images": [], "data": {"b64_json": a}}, {"images": [a]}, {"images": [{"b64": a}]}, {"images": {"0": a}},
            {"data": [a]}, {"data": [url]}, {"data": a}, {"data": {}, "result": {"data": {"b64_json": a}}},
            {"data": [[{"b64_json": a}]]}, {"data": [{"image": {"data": a}}]}, {"artifacts": [{"base64": a}]},
            {"predictions": [{"bytesBase64Encoded": a, "mimeType": "image/png"}]}, {"image": url}, {"output": [a]},
            {"output": {"b64_json": a}}, {"output": [{"type": "output_image", "image_base64": a}]},
            {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": a}}]}}]},
            {"data": [{"b64_json": None, "base64": a}]}, {"data": [{"url": None, "b64": a}]}, {"image_urls": [url]},
            {"a": {"b": [{"c": [[{"d": a}]]}]}}, {"file": "data:application/octet-stream;base64," + a},
        ]  # fmt: skip
        for row in rows:
            self.check(json.dumps(row).replace(a, "..."), IMAGES, row, picture("big-a"))

    def test_a_picture_in_an_item_of_any_type_is_kept(self) -> None:
        a, url = b64("big-a"), URL + b64("big-a")
        last = {"id": "ig_1", "result": a, "status": "completed", "type": "image_generation_call"}
        items: List[Json] = [
            {"type": "output_image", "image_base64": a}, {"type": "output_image", "image_url": url},
            {"type": "output_image", "image_url": {"url": url}}, last, {"result": a}, {"type": "image", "b64_json": a},
            {"type": "image_generation_call", "id": "ig_1", "result": {"b64_json": a}},
            {"type": "image_generation_call", "id": "ig_1", "result": [a]},
            {"type": "message", "content": [{"type": "output_image", "image_base64": a}]},
            {"type": "message", "content": [{"type": "output_image", "image_url": url}]},
        ]  # fmt: skip
        for item in items:
            name = json.dumps(item).replace(a, "...")
            self.check(name, RESPONSE, response(item), picture("big-a"))
            sorted_keys = [json.dumps(row, sort_keys=True) for row in (done(item), completed())]
            body = "".join(f"data: {row}\n\n" for row in sorted_keys).encode()
            self.check(name + ", type last", RESPONSE, body, picture("big-a"))
        text = json.dumps(images_event("completed", "big-a"), sort_keys=True)
        self.assertTrue(text.endswith('"type": "image_generation.completed"}'))
        ran = self.play(STREAM, f"data: {text}\n\n".encode())
        self.assert_finals(ran, "big-a")

    def test_every_format_is_known_by_its_bytes_under_an_unknown_key(self) -> None:
        for form, data in FORMATS.items():
            for name, text in (
                ("plain", base64.b64encode(data).decode()), ("url-safe", base64.urlsafe_b64encode(data).decode()),
                ("no padding", base64.b64encode(data).decode().rstrip("=")),
            ):  # fmt: skip
                if not text.startswith("_"):
                    self.check(f"{form}, {name}", IMAGES, {"images": [{"b64": text}]}, data)

    def test_base64_of_urls_is_base64(self) -> None:
        data = picture("big-a") + b"\xfb\xff\xfe" * 4  # `+/v+` and `-_v-`
        text = base64.urlsafe_b64encode(data).decode()
        self.assertTrue("-" in text and "_" in text)
        odd = base64.urlsafe_b64encode(FORMATS["jpeg"]).decode()  # it begins with `_`
        self.assertEqual(odd[:4], "_9j_")
        for name, argv, body in (
            ("images", IMAGES, {"data": [{"b64_json": "{}"}]}), ("url", IMAGES, {"data": [{"url": URL + "{}"}]}),
            ("response", RESPONSE, response({**call("big-a"), "result": "{}"})),
            ("chat", CHAT, chat(content=f"![x]({URL}{{}})")),
            ("chat images", CHAT, chat(images=[{"type": "image_url", "image_url": {"url": URL + "{}"}}])),
        ):  # fmt: skip
            for picture_data, base in ((data, text), (data, text.rstrip("=")), (FORMATS["jpeg"], odd)):
                if name == "chat" and base == odd:
                    continue
                with self.subTest(name, base=base[:4]):
                    ran = self.play(argv, json.dumps(body).replace("{}", base).encode())
                    self.assertEqual((ran.code, self.hashes(ran, "images")), (0, [digest(picture_data)]), ran.err)

    def test_one_that_nothing_named_beside_one_that_was(self) -> None:
        body = {"data": [{"b64_json": b64("big-a")}], "extras": [b64("big-b"), b64("big-a"), b64("big-b")]}
        for argv, code in ((IMAGES, 0), ("generations x --n 2", 6)):
            with self.subTest(argv):
                ran = self.play(argv, body)
                self.assertEqual((ran.code, [Path(row["path"]).name for row in ran.json["unclaimed"]]),
                                 (code, ["o-unclaimed-1.png"]))  # fmt: skip
                self.assertEqual(self.hashes(ran, "unclaimed"), [digest(picture("big-b"))])


class PrintedTextTest(EveryPictureTest):
    """Whatever is printed holds no base64 of more than a line."""

    def test_no_base64_of_a_picture_is_printed(self) -> None:
        a = b64("big-a")
        final, pieces = call("big-f"), [a[at : at + 150] for at in range(0, len(a), 150)]
        deltas = [{"type": "response.output_text.delta", "delta": piece} for piece in [f"![x]({URL}", *pieces, ")"]]
        error = {"message": f"cannot read {URL}{a}", "type": "invalid_request_error", "code": "x"}
        for name, argv, body in (
            ("output_text", RESPONSE, response(final, message(f"Here: {URL}{a} is it."))),
            ("output_text, bare", RESPONSE, response(final, message(a))),
            ("output_text, url-safe", RESPONSE, response(final, message(a.replace("+", "-").replace("/", "_")))),
            ("octet-stream", RESPONSE, response(final, message(f"data:application/octet-stream;base64,{a}"))),
            ("refusal", RESPONSE, response(message(f"No: {URL}{a}", "refusal"))),
            ("output_text, done", RESPONSE, events(done(final), done(message(URL + a), 1), completed())),
            ("one delta", RESPONSE, events({"type": "response.output_text.delta", "delta": URL + a}, done(final), completed())),
            ("chat", CHAT, chat(content=f"It is {URL}{a} there.")), ("chat, bare", CHAT, chat(content=a)),
            ("chat deltas", CHAT, events_of(*(delta(content=row["delta"]) for row in deltas))),
            ("chat deltas, no link", CHAT, events_of(*(delta(content=piece) for piece in pieces))),
            ("chat refusal", CHAT, chat(refusal=URL + a)),
            ("revised prompt", IMAGES, {"data": [{"b64_json": b64("big-f"), "revised_prompt": URL + a}]}),
            ("error", IMAGES, {"error": error}), ("error event", STREAM, events({"type": "error", "error": error})),
            ("failed", RESPONSE, response(status="failed", error=error)), ("garbage", IMAGES, a.encode()),
            ("garbage events", STREAM, b"data: " + a.encode() + b"\n\n"), ("json string", IMAGES, json.dumps(a).encode()),
            ("broken", IMAGES, {"data": [{"b64_json": a[:600] + "!" + a[600:]}]}),
            ("a url", IMAGES, {"data": [{"url": a}]}), ("url of another scheme", IMAGES, {"data": [{"url": "blob:" + a}]}),
            ("status", RESPONSE, response(status=a)), ("id", RESPONSE, response(final, id=a)),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(argv, body)
                for printed in (ran.out, ran.err):
                    self.assertIsNone(re.search(r"[A-Za-z0-9+/_-]{200}", printed), printed[:1500])
                self.assertIsNone(re.search(gpt_image.TOKEN, ran.json["text"] or ""))


class OtherToolsTest(EveryPictureTest):
    """An error of another tool says nothing about the picture."""

    def test_an_error_in_the_item_of_another_tool_fails_no_run_whose_picture_is_there(self) -> None:
        errors: List[Any] = [{"message": "no", "code": 500}, {"type": "server_error"}, "timed out"]
        for kind in ("mcp_call", "mcp_list_tools", "web_search_call", "code_interpreter_call"):
            for error in errors if kind == "mcp_call" else errors[:1]:
                several = kind == "mcp_call" and error == errors[0]
                item = {"type": kind, "id": "t_1", "status": "failed", "error": error, "output": None}
                picture_item = call("big-a")
                for name, body in (
                    ("plain", response(item, picture_item)), ("plain, behind it", response(picture_item, item)),
                    ("done", events(done(item), done(picture_item, 1), completed(item, picture_item))),
                    ("completed", events(completed(picture_item, item))),
                    ("done, none at the end", events(done(picture_item), done(item, 1), completed())),
                ):  # fmt: skip
                    with self.subTest(name, kind=kind, error=error):
                        ran = self.play(RESPONSE, body, "--save-response", "{}/kept")
                        self.assert_finals(ran, "big-a")
                        if several:
                            self.assert_finals(self.extracted(ran.json["saved_response"]), "big-a")

    def test_without_a_picture_such_an_error_is_no_success_either(self) -> None:
        item = {"type": "mcp_call", "id": "t_1", "status": "failed", "error": {"message": "no"}}
        for body in (response(item), events(done(item), completed(item))):
            self.assert_finals(self.play(RESPONSE, body), code=6)


def box(kind: bytes, data: bytes) -> bytes:
    """Returns a box of an AVIF."""
    return (8 + len(data)).to_bytes(4, "big") + kind + data


BMP_PIXELS = bytes(range(256)) * 3
FORMATS = {
    "png": picture("big-t"),
    "jpeg": pictures.picture(b"t", "jpeg", 48, 32),
    "webp": pictures.picture(b"t", "webp", 48, 32),
    "gif": pictures.picture(b"t", "gif", 48, 32, frames=2),
    "svg": pictures.picture(b"t", "svg", 48, 32),
    "avif": box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", bytes(300)) + box(b"mdat", bytes(range(200))),
    "bmp": b"BM" + (54 + 768).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    + (40).to_bytes(4, "little") + (16).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24) + BMP_PIXELS,
}  # fmt: skip


class WholeTest(EveryPictureTest):
    """A picture is whole, or the call is no success."""

    def cuts(self) -> List[Tuple[str, str, bytes]]:
        """Returns pictures that are cut short, with their format and what is wrong with them."""
        rows = [("png", "without IEND", FORMATS["png"][:-12]), ("avif", "without its mdat's end", FORMATS["avif"][:-1])]
        for form, data in FORMATS.items():
            rows += [(form, "half", data[: len(data) // 2]), (form, "without its last bytes", data[:-9])]
        return rows

    def body(self, argv: str, data: bytes) -> Any:
        """Returns a reply that holds a picture, in a JSON string that ends properly."""
        text = base64.b64encode(data).decode()
        if argv == RESPONSE:
            return response({**call("big-a"), "result": text})
        if argv == CHAT:
            return chat(images=[{"type": "image_url", "image_url": {"url": URL + text}}])
        if argv == STREAM:
            return events({"type": "image_generation.completed", "b64_json": text})
        return {"data": [{"b64_json": text}]}

    def test_a_whole_picture_says_so(self) -> None:
        for number, (form, data) in enumerate(FORMATS.items()):
            for argv in (IMAGES, (STREAM, RESPONSE, CHAT)[number % 3]):
                with self.subTest(form, argv=argv):
                    ran = self.play(argv, self.body(argv, data))
                    rows = [(row["format"], row["sha256"], row["whole"]) for row in ran.json["images"]]
                    self.assertEqual((ran.code, rows), (0, [(form, digest(data), True)]), ran.err)

    def test_a_picture_cut_short_stays_says_so_and_is_no_success(self) -> None:
        for number, (form, wrong, data) in enumerate(self.cuts()):
            for argv in ((IMAGES, STREAM, RESPONSE, CHAT)[number % 4],):
                with self.subTest(form, wrong=wrong, argv=argv):
                    ran = self.play(argv, self.body(argv, data))
                    rows = [(row["format"], row["sha256"], row["whole"]) for row in ran.json["images"]]
                    self.assertEqual((ran.code, rows), (6, [(form, digest(data), False)]), ran.err)
                    self.assertTrue(ran.error["may_be_billed"])
                    again = self.extracted(ran.json["saved_response"])
                    again_rows = [(row["format"], row["sha256"], row["whole"]) for row in again.json["images"]]
                    self.assertEqual(again_rows, rows, again.err)

    def test_one_cut_short_among_whole_ones(self) -> None:
        datas = [picture("big-a"), FORMATS["png"][:-12], picture("big-b")]
        body = {"data": [{"b64_json": base64.b64encode(data).decode()} for data in datas]}
        for count, code in ((3, 6), (2, 0)):
            ran = self.play(f"generations x --n {count}", body)
            self.assertEqual(
                (ran.code, [row["whole"] for row in ran.json["images"]]), (code, [True, False, True]), ran.err
            )

    def test_previews_and_what_nothing_named_say_so_too(self) -> None:
        for data, whole in ((FORMATS["png"], True), (FORMATS["png"][:-12], False)):
            text = base64.b64encode(data).decode()
            rows = [{"type": kind, "b64_json": text} for kind in ("image_generation.partial_image", "future")]
            for row, key in zip(rows, ("partial_images", "unclaimed")):
                with self.subTest(key, whole=whole):
                    ran = self.play(STREAM, events(row, images_event("completed", "big-a")))
                    self.assertEqual((ran.code, [row["whole"] for row in ran.json[key]]), (0, [whole]), ran.err)


if __name__ == "__main__":
    unittest.main()
