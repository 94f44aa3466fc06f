"""--wait and --no-wait: a background response is left when the time is over, and each later look goes on from there."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, reply

QUEUED = ("responses", "A lake", "--tool-model", "small", "--size", "48x32", "--background-mode", "--output", "p.png")
STREAMED = (*QUEUED, "--stream", "--partial-images", "2")
PICTURE = pictures.picture(b"later", "png", 48, 32)
CALL = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": base64.b64encode(PICTURE).decode()}


def response(status: str, *output: Dict[str, Any]) -> Dict[str, Any]:
    """Returns a response object."""
    return {"id": "resp_1", "object": "response", "status": status, "output": list(output)}


def event(number: int, kind: str, **more: Any) -> bytes:
    """Returns an event of a stream."""
    return f"data: {json.dumps({'type': kind, 'sequence_number': number, **more})}\n\n".encode()


CREATED = event(0, "response.created", response=response("queued"))
DONE = event(8, "response.output_item.done", output_index=0, item=CALL)
COMPLETED = event(9, "response.completed", response=response("completed"))


def going(number: int) -> bytes:
    """Returns an event that says only that it goes on."""
    return event(number, "response.in_progress", response=response("in_progress"))


class WaitingTest(ProgramTest):
    """A response that takes its time."""

    def session(self) -> None:
        """Writes a session file by hand."""
        facts = {"gpt_image_session": 1, "response_id": "resp_1", "origin": "https://api.openai.com:443", "output": "p.png"}
        Path("p.session.json").write_text(json.dumps(facts))

    def slow_stream(self, *events: bytes, seconds: float = 10) -> gpt_image.Reply:
        """Returns a stream whose events come so many seconds apart."""

        def chunks() -> Iterator[bytes]:
            for data in events:
                yield data
                self.slept += seconds

        return gpt_image.Reply(200, {"content-type": "text/event-stream"}, chunks())

    def resume_words(self, ran: Ran) -> List[str]:
        """Returns the words of the command that goes on, without the program's own."""
        words = shlex.split(ran.error["recovery"])
        return words[words.index("resume") :]

    def assert_left(self, ran: Ran) -> None:
        """Asserts that a run ended with all that is needed to go on, and with no more than that."""
        self.assertEqual((ran.code, ran.error["exit"], ran.json["ok"]), (8, 8, False), ran.err)
        self.assertEqual((ran.json["session_file"], ran.json["saved_response"]), ("p.session.json", None))
        self.assertTrue(ran.json["response_id"].startswith("resp_"))
        self.assertIn("resume p.session.json", ran.error["recovery"])
        self.assertIn(ran.error["recovery"], ran.error["hint"])
        self.assertIn(ran.json["response_id"], ran.error["message"])
        self.assertTrue(Path("p.session.json").exists())


class NotWaiting(WaitingTest):
    """--no-wait: one request, and the end."""

    def test_a_response_is_sent_and_left(self) -> None:
        for argv in (QUEUED, STREAMED):
            with self.subTest(stream=argv is STREAMED):
                gateway = self.gateway(polls=3)
                ran = self.run_main(*argv, "--no-wait", gateway=gateway)
                self.assert_left(ran)
                self.assertEqual(([request.method for request in gateway.requests], self.sleeps), (["POST"], []))
                self.assertEqual(self.files(), ["p.session.json"])
                Path("p.session.json").unlink()

    def test_resume_looks_once_and_costs_nothing(self) -> None:
        gateway = self.gateway(polls=3)
        self.run_main(*QUEUED, "--no-wait", gateway=gateway)
        codes: List[int] = []
        while not codes or codes[-1] == 8:
            before = len(gateway.requests)
            ran = self.run_main("resume", "p.session.json", "--no-wait", gateway=gateway)
            codes.append(ran.code)
            self.assertEqual(len(gateway.requests), before + 1)
        self.assertEqual((codes, gateway.posts, self.sleeps), ([8, 8, 8, 0], 1, []))
        self.assertEqual((Path("p.png").read_bytes(), self.files()), (gateway.pictures[0], ["p.png"]))

    def test_a_response_that_is_there_at_once_is_taken(self) -> None:
        ran = self.run_main(*QUEUED, "--no-wait", transport=FakeTransport(reply(response("completed", CALL))))
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_sending_is_tried_again_as_ever(self) -> None:
        fake = FakeTransport(reply({}, 503), reply(response("queued")))
        self.assert_left(self.run_main(*QUEUED, "--no-wait", transport=fake))
        self.assertEqual(len(fake.requests), 2)

    def test_a_terminal_says_how_to_go_on(self) -> None:
        ran = self.run_main(*QUEUED, "--no-wait", terminal=True, transport=FakeTransport(reply(response("queued"))))
        self.assertEqual((ran.code, ran.out), (8, ""))
        self.assertRegex(ran.err, "resp_1 is still running")
        self.assertRegex(ran.err, r"resume p\.session\.json")


class WaitingSoLong(WaitingTest):
    """--wait: so many seconds from the start of the command, and a last look at their end."""

    def test_the_waits_add_up_to_the_time_given(self) -> None:
        gateway = self.gateway("background-never")
        for argv in (QUEUED, ("resume", "p.session.json")):
            with self.subTest(argv[0]):
                self.sleeps.clear()
                self.assert_left(self.run_main(*argv, "--wait", "25", gateway=gateway))
                self.assertAlmostEqual(sum(self.sleeps), 25, delta=1)
        self.assertEqual(gateway.posts, 1)

    def test_there_is_a_look_when_the_time_is_over(self) -> None:
        asked: List[float] = []

        def play(request: gpt_image.Request, *_: Any) -> Any:
            asked.append(self.slept)
            return reply(response("in_progress"))

        self.assert_left(self.run_main(*QUEUED, "--wait", "25", transport=play))
        self.assertAlmostEqual(asked[-1], 25, delta=1)

    def test_sending_counts(self) -> None:
        def play(request: gpt_image.Request, *_: Any) -> Any:
            self.slept += 20 if request.method == "POST" else 0
            return reply(response("in_progress"))

        self.assert_left(self.run_main(*QUEUED, "--wait", "25", transport=play))
        self.assertAlmostEqual(sum(self.sleeps), 5, delta=1)

    def test_a_response_that_ends_in_time_is_a_picture(self) -> None:
        gateway = self.gateway(polls=3)
        ran = self.run_main(*QUEUED, "--wait", "60", gateway=gateway)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_the_command_that_goes_on_waits_as_long_and_gets_there(self) -> None:
        for options in ((), ("--stream", "--partial-images", "2")):
            with self.subTest(options=options):
                gateway = self.gateway(polls=12)
                ran = self.run_main(*QUEUED, *options, "--wait=10.5", gateway=gateway)
                runs = 1
                while ran.code == 8:
                    self.assertEqual(self.resume_words(ran), ["resume", "p.session.json", "--wait=10.5"])
                    ran, runs = self.run_main(*self.resume_words(ran), gateway=gateway), runs + 1
                self.assertEqual((ran.code, gateway.posts, Path("p.png").read_bytes()), (0, 1, gateway.pictures[0]), ran.err)
                self.assertEqual(runs > 1, not options)
                Path("p.png").unlink()

    def test_a_look_has_what_is_left_and_at_least_ten_seconds_for_each_byte(self) -> None:
        rows: Tuple[Tuple[Tuple[str, ...], float], ...] = (
            ((), 600), (("--wait", "25"), 25), (("--wait", "3"), 10), (("--no-wait",), 10), (("--wait", "25", "--timeout", "5"), 5),
            (("--no-wait", "--timeout", "5"), 5), (("--wait", "3000"), 600),
        )  # fmt: skip
        self.session()
        for options, most in rows:
            with self.subTest(options=options):
                timeouts: List[float] = []

                def play(_: gpt_image.Request, timeout: float, *more: Any, seen: List[float] = timeouts) -> Any:
                    seen.append(timeout)
                    return reply({}, 404)

                self.run_main("resume", "p.session.json", *options, transport=play)
                self.assertAlmostEqual(timeouts[0], most, delta=1)

    def test_the_time_to_send_is_that_of_timeout_alone(self) -> None:
        timeouts: List[float] = []

        def play(_: gpt_image.Request, timeout: float, *more: Any) -> Any:
            timeouts.append(timeout)
            return reply(response("queued"))

        self.assert_left(self.run_main(*QUEUED, "--no-wait", transport=play))
        self.assertEqual(timeouts, [600])

    def test_a_try_that_would_come_too_late_is_not_made(self) -> None:
        later = {"Retry-After": "60"}
        fake = FakeTransport(reply(response("queued")), reply({}, 503, later))
        ran = self.run_main(*QUEUED, "--wait", "25", transport=fake)
        self.assert_left(ran)
        self.assertLess(sum(self.sleeps), 25)
        ran = self.run_main("resume", "p.session.json", "--wait", "25", transport=FakeTransport(reply({}, 503, later)))
        self.assertEqual((ran.code, Path("p.session.json").exists()), (5, True))
        soon = FakeTransport(reply({}, 503, {"Retry-After": "5"}), reply(response("completed", CALL)))
        ran = self.run_main("resume", "p.session.json", "--wait", "25", transport=soon)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_a_picture_that_is_on_its_way_when_the_time_is_over_is_taken(self) -> None:
        self.session()
        data = json.dumps(response("completed", CALL)).encode()
        fake = FakeTransport(self.slow_stream(data[:20], data[20:-9], data[-9:], seconds=30))
        ran = self.run_main("resume", "p.session.json", "--wait", "25", transport=fake)
        self.assertEqual((ran.code, self.files(), Path("p.png").read_bytes()), (0, ["p.png"], PICTURE), ran.err)


class WaitingForAStream(WaitingTest):
    """--wait with --stream: events are read until the time is over."""

    def test_the_stream_is_left_when_the_time_is_over(self) -> None:
        for options, most in ((("--wait", "25"), 30), (("--no-wait",), 0)):
            with self.subTest(options=options):
                before = self.slept
                fake = FakeTransport(self.slow_stream(CREATED, *map(going, range(1, 8)), DONE, COMPLETED))
                self.assert_left(self.run_main(*STREAMED, *options, transport=fake))
                self.assertEqual(self.slept - before, most)
                Path("p.session.json").unlink()

    def test_previews_that_came_stay(self) -> None:
        data = base64.b64encode(PICTURE).decode()
        preview = event(1, "response.image_generation_call.partial_image", partial_image_index=0, partial_image_b64=data, item_id="ig_1")
        fake = FakeTransport(self.slow_stream(CREATED, preview, going(2), going(3), going(4)))
        ran = self.run_main(*STREAMED, "--wait", "25", transport=fake)
        self.assert_left(ran)
        self.assertEqual([row["path"] for row in ran.json["partial_images"]], ["p-partial-1.png"])

    def test_a_stream_is_not_left_before_the_response_has_an_id(self) -> None:
        fake = FakeTransport(self.slow_stream(b": ping\n\n", b": ping\n\n", b": ping\n\n", b": ping\n\n", CREATED, going(1), DONE))
        ran = self.run_main(*STREAMED, "--wait", "25", transport=fake)
        self.assert_left(ran)
        self.assertEqual((self.slept, ran.json["images"]), (40, []))

    def test_a_stream_whose_picture_has_come_is_read_to_its_end(self) -> None:
        fake = FakeTransport(self.slow_stream(CREATED, going(1), DONE, going(9), COMPLETED))
        ran = self.run_main(*STREAMED, "--wait", "25", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_a_dropped_stream_is_taken_up_for_what_is_left_of_the_time(self) -> None:
        def cut() -> Iterator[bytes]:
            yield CREATED + going(1)
            self.slept += 15
            raise ConnectionError("the reply was cut")

        fake = FakeTransport(gpt_image.Reply(200, {}, cut()), self.slow_stream(*map(going, range(2, 8)), DONE, COMPLETED))
        self.assert_left(self.run_main(*STREAMED, "--wait", "25", transport=fake))
        self.assertEqual((len(fake.requests), self.slept), (2, 25))

    def test_a_silent_stream_does_not_hold_the_command(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        over = threading.Event()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head + f"{len(CREATED):x}\r\n".encode() + CREATED + b"\r\n")
                over.wait(10)

        thread = threading.Thread(target=answer)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(over.set)
        env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/v1"}
        argv = (*STREAMED, "--wait", "0.05", "--timeout", "5")
        before = time.monotonic()
        ran = self.run_main(*argv, env=env, transport=gpt_image.send)
        self.assert_left(ran)
        self.assertLess(time.monotonic() - before, 3)


class WhereItBelongs(WaitingTest):
    """The options go with --background-mode, and are not for a job of a batch to set."""

    def test_without_background_mode_they_are_refused(self) -> None:
        for options in (("--wait", "5"), ("--no-wait",)):
            for route in ("responses", "generations", "extract"):
                with self.subTest(options=options, route=route):
                    ran = self.run_main(route, "x", *options)
                    rule = "window-background" if route == "responses" else "unknown-option"
                    self.assertEqual((ran.code, ran.error["rule"]), (2, rule), ran.err)

    def test_no_job_says_no_wait(self) -> None:
        Path("j.jsonl").write_text(json.dumps({"prompt": "x", "route": "responses", "background-mode": True, "no-wait": True}))
        ran = self.run_main("batch", "j.jsonl", "--dry-run")
        self.assertEqual((ran.code, ran.error["rule"]), (2, "jobs-option"), ran.err)

    def test_a_time_is_a_number_of_seconds(self) -> None:
        for text in ("0", "-1", "soon"):
            with self.subTest(text):
                ran = self.run_main(*QUEUED, f"--wait={text}")
                self.assertEqual((ran.code, ran.error["rule"]), (2, "wait-unreadable-value"))
