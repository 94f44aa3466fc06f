"""Responses that run in the background: found again after anything, by this machine or another, and paid for once."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.gateway import Gateway, Recorded
from tests.support import KEY, FakeTransport, ProgramTest, Ran, reply

TALK = ("responses", "A lake", "--tool-model", "small", "--size", "48x32")
QUEUED = (*TALK, "--background-mode")
STREAMED = (*QUEUED, "--stream", "--partial-images", "2")
PICTURE = pictures.picture(b"later", "png", 48, 32)
CALL = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": base64.b64encode(PICTURE).decode()}


def response(status: str, *output: Dict[str, Any], **more: Any) -> Dict[str, Any]:
    """Returns a response object."""
    return {"id": "resp_1", "object": "response", "status": status, "output": list(output), **more}


def events(*documents: Dict[str, Any]) -> bytes:
    """Returns a stream of events."""
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in documents).encode()


def cut(data: bytes) -> gpt_image.Reply:
    """Returns a reply that ends as a broken connection does."""

    def chunks() -> Iterator[bytes]:
        yield data
        raise ConnectionError("the reply was cut")

    return gpt_image.Reply(200, {}, chunks())


class Waits(List[float]):
    """The injected sleep: it notes each wait, and may do something in one of them."""

    def __init__(self, deed: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.deed = deed

    def append(self, seconds: float) -> None:
        """Waits no time at all."""
        super().append(seconds)
        self.deed(len(self))


def interrupt_at(number: int) -> Callable[[int], None]:
    """Returns what raises Ctrl-C in the given wait."""

    def deed(count: int) -> None:
        if count == number:
            raise KeyboardInterrupt

    return deed


class BackgroundTest(ProgramTest):
    """A background response to a gateway of its own."""

    def gets(self, gateway: Gateway) -> List[Recorded]:
        """Returns the GET requests that came."""
        return [request for request in gateway.requests if request.method == "GET"]

    def interrupted(self, gateway: Gateway, output: str = "p.png", argv: Tuple[str, ...] = QUEUED) -> Ran:
        """Starts a response and presses Ctrl-C in the first wait."""
        self.sleeps = Waits(interrupt_at(1))
        ran = self.run_main(*argv, "--output", output, gateway=gateway)
        self.sleeps = Waits()
        return ran

    def session(self, path: str, gateway: Optional[Gateway] = None, **more: Any) -> None:
        """Writes a session file by hand."""
        origin = gateway.origin if gateway else "https://api.openai.com:443"
        Path(path).write_text(json.dumps({"gpt_image_session": 1, "response_id": "resp_1", "origin": origin, **more}))


class Polling(BackgroundTest):
    """From the queue to the picture."""

    def test_the_picture_arrives_after_some_polls_and_nothing_else_stays(self) -> None:
        gateway = self.gateway(polls=4)
        ran = self.run_main(*QUEUED, "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, gateway.posts, self.files()), (0, 1, ["p.png"]), ran.err)
        self.assertEqual(Path("p.png").read_bytes(), gateway.pictures[0])
        self.assertEqual(len(self.gets(gateway)), 5)
        self.assertIsNone(ran.json["session_file"])
        self.assertTrue(ran.json["response_id"].startswith("resp_"))
        self.assertTrue(gateway.requests[0].json["background"])

    def test_the_session_file_is_there_before_the_first_poll_and_before_the_first_wait(self) -> None:
        gateway = self.gateway()
        seen: List[Tuple[int, List[str]]] = []
        self.sleeps = Waits(lambda number: seen.append((len(self.gets(gateway)), self.files())))
        self.run_main(*QUEUED, "--output", "out/p.png", gateway=gateway)
        self.assertEqual(seen[0][0], 0)
        self.assertIn("out/p.session.json", seen[0][1])

    def test_the_session_file_says_what_another_machine_needs_and_no_key(self) -> None:
        gateway = self.gateway()
        ran = self.interrupted(gateway, "out/p.png")
        session = json.loads(Path("out/p.session.json").read_text())
        self.assertEqual((session["response_id"], session["origin"]), (ran.json["response_id"], gateway.origin))
        self.assertEqual(session["output"], "p.png")
        self.assert_no_key(ran)

    def test_the_waits_between_polls_grow_to_a_limit(self) -> None:
        self.sleeps = Waits()
        gateway = self.gateway(polls=20)
        self.assertEqual(self.run_main(*QUEUED, "--output", "p.png", gateway=gateway).code, 0)
        waits = list(self.sleeps)
        self.assertEqual(waits, sorted(waits))
        self.assertTrue(1 <= waits[0] <= 3, waits)
        self.assertTrue(waits[0] < waits[-1] <= 30, waits)

    def test_progress_tells_that_it_waits(self) -> None:
        ran = self.run_main(*QUEUED, "--output", "p.png", "--progress", "plain", gateway=self.gateway())
        self.assertIn("background", ran.err)

    def test_several_pictures_arrive(self) -> None:
        gateway = self.gateway()
        words = ("responses", "three pictures", *QUEUED[2:])
        ran = self.run_main(*words, "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, self.files()), (0, ["p-2.png", "p-3.png", "p.png"]))
        self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["images"]], gateway.pictures)

    def test_a_failed_response_is_a_failure_and_its_reply_is_kept(self) -> None:
        gateway = self.gateway("background-failed")
        ran = self.run_main(*QUEUED, "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, gateway.posts, ran.error["code"]), (5, 1, "server_error"))
        self.assertIn("p.reply", self.files())
        self.assertNotIn("p.png", self.files())

    def test_every_end_that_is_no_picture_ends_the_polling(self) -> None:
        error = {"code": "server_error", "message": "Sorry!"}
        ends: Tuple[Tuple[str, Dict[str, Any], Tuple[int, ...]], ...] = (
            ("failed", {"error": error}, (5,)), ("cancelled", {}, (6,)), ("expired", {}, (5, 6)), ("completed", {}, (6,)),
            ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, (4, 6)),
        )  # fmt: skip
        for status, more, codes in ends:
            with self.subTest(status=status):
                self.sleeps = Waits(interrupt_at(100))
                fake = FakeTransport(reply(response("queued")), *[reply(response(status, **more)) for _ in range(5)])
                ran = self.run_main(*QUEUED, "--output", f"{status}.png", transport=fake)
                self.assertIn(ran.code, codes, ran.err)
                self.assertEqual(len(fake.requests), 2)

    def test_one_that_never_ends_is_left_to_resume(self) -> None:
        gateway = self.gateway("background-never")
        self.sleeps = Waits(interrupt_at(30))
        self.assertEqual(self.run_main(*QUEUED, "--output", "other/p.png", gateway=gateway).code, 130)
        self.assertEqual(gateway.posts, 1)
        self.sleeps = Waits(interrupt_at(20_000))
        methods: List[str] = []

        def play(request: gpt_image.Request, *_: Any) -> Any:
            methods.append(request.method)
            return reply(response("in_progress"))

        ran = self.run_main(*QUEUED, "--output", "p.png", transport=play)
        self.assertEqual((ran.code, methods.count("POST")), (8, 1), ran.err[-500:])
        self.assertIn("gpt_image.py resume p.session.json", ran.err)
        self.assertEqual(ran.json["session_file"], "p.session.json")
        self.assertGreater(sum(self.sleeps), 600)

    @unittest.skipUnless(os.path.isdir("/dev/fd"), "open files are counted there")
    def test_long_polling_holds_neither_files_nor_disk(self) -> None:
        open_files: List[int] = []
        files: List[int] = []

        def deed(number: int) -> None:
            open_files.append(len(os.listdir("/dev/fd")))
            files.append(len(self.files()))
            if number == 60:
                raise KeyboardInterrupt

        self.sleeps = Waits(deed)
        fake = FakeTransport(reply(response("queued")), *[reply(response("in_progress")) for _ in range(80)])
        ran = self.run_main(*QUEUED, "--output", "p.png", transport=fake)
        self.assertEqual(ran.code, 130, ran.err[-800:])
        self.assertLess(open_files[-1] - open_files[0], 10)
        self.assertLess(files[-1] - files[0], 10)

    def test_polls_are_free_and_a_fault_of_one_is_no_end(self) -> None:
        down = gpt_image.Fault("reset", True)
        fake = FakeTransport(reply(response("queued")), down, reply({}, 502), reply(response("in_progress")),
                             reply({}, 503), cut(b'{"id": "resp_1", "sta'), reply(response("completed", CALL)))  # fmt: skip
        ran = self.run_main(*QUEUED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, [r.method for r in fake.requests].count("POST")), (0, 1), ran.err)
        self.assertEqual(Path("p.png").read_bytes(), PICTURE)

    def test_a_reply_is_judged_by_itself_and_not_by_the_one_before(self) -> None:
        start = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        end = {"type": "response.completed", "sequence_number": 1, "response": response("completed", CALL)}
        half = gpt_image.Reply(200, {}, [events(start) + b'data: {"type": "response.comp'])  # cut, and then one that is not
        fake = FakeTransport(half, reply(events(end)))
        ran = self.run_main(*STREAMED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, Path("p.png").read_bytes(), len(fake.requests)), (0, PICTURE, 2), ran.err)
        # A reply that was cut before it says anything is asked for again.
        fake = FakeTransport(reply(response("queued")), gpt_image.Reply(200, {}, [b'{"']), reply(response("completed", CALL)))
        ran = self.run_main(*QUEUED, "--output", "q.png", transport=fake)
        self.assertEqual((ran.code, len(fake.requests)), (0, 3), ran.err)

    def test_a_server_that_is_gone_for_good_is_left_to_resume(self) -> None:
        fake = FakeTransport(reply(response("queued")), *[gpt_image.Fault("refused", False) for _ in range(500)])
        self.sleeps = Waits(interrupt_at(3000))
        ran = self.run_main(*QUEUED, "--output", "p.png", transport=fake)
        self.assertEqual(ran.code, 8)
        self.assertIn("resume", ran.error["hint"])
        self.assertIn("p.session.json", self.files())

    def test_a_queue_that_needs_no_wait(self) -> None:
        fake = FakeTransport(reply(response("completed", CALL)))
        ran = self.run_main(*QUEUED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, self.files(), len(fake.requests)), (0, ["p.png"], 1))

    def test_a_taken_session_file_is_not_replaced(self) -> None:
        Path("p.session.json").write_bytes(b"mine")
        ran = self.interrupted(self.gateway())
        self.assertEqual(Path("p.session.json").read_bytes(), b"mine")
        self.assertNotEqual(ran.json["session_file"], "p.session.json")
        self.assertTrue(Path(ran.json["session_file"]).exists())

    def test_background_with_no_store_is_sent_with_a_warning(self) -> None:
        ran = self.run_main(*QUEUED, "--no-store", "--output", "p.png", "--dry-run")
        self.assertEqual((ran.code, ran.json["body"]["background"], ran.json["body"]["store"]), (0, True, False))
        self.assertRegex(ran.json["warnings"][0], "ten minutes")


class Interrupting(BackgroundTest):
    """Ctrl-C prints the line that resumes, and that line works."""

    def resume_line(self, ran: Ran) -> List[str]:
        """Returns the words of the command that stderr names."""
        match = re.search(r"gpt_image\.py (resume .*)", ran.err)
        self.assertTrue(match, ran.err)
        return shlex.split(match.group(1)) if match else []

    def test_ctrl_c_while_polling_prints_the_line_that_resumes(self) -> None:
        for number in (1, 2, 3):
            for output in ("p.png", "my pictures/it's.png"):
                with self.subTest(number=number, output=output):
                    gateway = self.gateway(polls=5)
                    self.sleeps = Waits(interrupt_at(number))
                    ran = self.run_main(*QUEUED, "--output", output, gateway=gateway)
                    self.assertEqual((ran.code, ran.error["exit"], gateway.posts), (130, 130, 1))
                    self.assertIn("resume", ran.error["hint"])
                    self.assertTrue(Path(ran.json["session_file"]).exists())
                    self.sleeps = Waits()
                    again = self.run_main(*self.resume_line(ran), gateway=gateway)
                    self.assertEqual((again.code, gateway.posts), (0, 1), again.err)
                    self.assertEqual(Path(output).read_bytes(), gateway.pictures[0])
                    self.assertFalse(Path(ran.json["session_file"]).exists())
                    Path(output).unlink()

    def test_nothing_but_the_session_file_stays_that_could_be_mistaken(self) -> None:
        ran = self.interrupted(self.gateway())
        self.assertEqual(set(self.files()) - {"p.reply"}, {"p.session.json"})
        self.assertEqual(ran.json["images"], [])

    def test_ctrl_c_while_resuming_leaves_the_session_as_it_was(self) -> None:
        gateway = self.gateway(polls=9)
        self.interrupted(gateway)
        before = Path("p.session.json").read_bytes()
        self.sleeps = Waits(interrupt_at(2))
        ran = self.run_main("resume", "p.session.json", gateway=gateway)
        self.assertEqual((ran.code, Path("p.session.json").read_bytes()), (130, before))
        self.assertIn("resume p.session.json", ran.err)


class Resuming(BackgroundTest):
    """By session file and by id, from here and from elsewhere."""

    def test_a_session_file_from_its_own_folder_and_from_another(self) -> None:
        for start, target in ((".", "out/p.session.json"), ("out", "p.session.json"), ("else/where", "../../out/p.session.json")):
            with self.subTest(start=start):
                gateway = self.gateway()
                self.interrupted(gateway, "out/p.png")
                Path(start).mkdir(parents=True, exist_ok=True)
                os.chdir(start)
                ran = self.run_main("resume", target, gateway=gateway)
                os.chdir(self.folder)
                self.assertEqual((ran.code, gateway.posts), (0, 1), ran.err)
                self.assertEqual(Path("out/p.png").read_bytes(), gateway.pictures[0])
                self.assertFalse(Path("out/p.session.json").exists())
                Path("out/p.png").unlink()

    def test_an_id_with_an_output_and_without(self) -> None:
        for options in (("--output", "other/q.png"), ()):
            with self.subTest(options=options):
                gateway = self.gateway()
                name = self.interrupted(gateway).json["response_id"]
                ran = self.run_main("resume", name, *options, gateway=gateway)
                self.assertEqual((ran.code, len(ran.json["images"]), gateway.posts), (0, 1, 1), ran.err)
                self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), gateway.pictures[0])
                self.assertEqual(ran.json["response_id"], name)

    def test_an_id_with_characters_that_mean_something_in_a_url(self) -> None:
        gateway = self.gateway("long-ids")
        first = self.interrupted(gateway)
        self.assertEqual(len(first.json["response_id"]), 400)
        ran = self.run_main("resume", first.json["session_file"], gateway=gateway)
        self.assertEqual(ran.code, 0, ran.err)
        gateway.scenario = "long-ids"
        name = self.interrupted(gateway, "q.png").json["response_id"]
        ran = self.run_main("resume", name, "--output", "r.png", gateway=gateway)
        self.assertEqual(ran.code, 0, ran.err)

    def test_an_output_that_exists_is_refused_and_the_session_stays(self) -> None:
        gateway = self.gateway()
        self.interrupted(gateway)
        Path("p.png").write_bytes(b"mine")
        sent = len(gateway.requests)
        ran = self.run_main("resume", "p.session.json", gateway=gateway)
        self.assertEqual((ran.code, len(gateway.requests), Path("p.png").read_bytes()), (7, sent, b"mine"))
        self.assertTrue(Path("p.session.json").exists())
        self.assertEqual(self.run_main("resume", "p.session.json", "--overwrite", gateway=gateway).code, 0)
        self.assertEqual(Path("p.png").read_bytes(), gateway.pictures[0])

    def test_an_id_nobody_knows_is_a_404_and_the_session_stays(self) -> None:
        gateway = self.gateway()
        self.session("s.session.json", gateway)
        for target in ("resp_1", "s.session.json"):
            with self.subTest(target=target):
                ran = self.run_main("resume", target, "--output", "x.png", gateway=gateway)
                self.assertEqual((ran.code, ran.error["status"]), (4, 404))
                self.assertNotIn("x.png", self.files())
        self.assertIn("s.session.json", self.files())

    def test_a_target_that_is_neither_is_refused_before_sending(self) -> None:
        gateway = self.gateway()
        for target in ("missing.session.json", "a/b", "", "-", "https://evil.example/resp_1"):
            with self.subTest(target=target):
                self.assertEqual(self.run_main("resume", target, gateway=gateway).code, 2)
        self.assertEqual(self.run_main("resume", gateway=gateway).code, 2)
        self.assertEqual(gateway.connections, 0)

    def test_without_a_key_nothing_is_sent(self) -> None:
        gateway = self.gateway()
        self.session("s.session.json", gateway)
        ran = self.run_main("resume", "s.session.json", gateway=gateway, env={"OPENAI_API_KEY": ""})
        self.assertEqual((ran.code, gateway.connections), (3, 0))

    def test_a_cut_while_resuming_keeps_the_session_or_gets_the_picture(self) -> None:
        self.session("s.session.json", output="s.png")
        whole = json.dumps(response("completed", CALL)).encode()
        fake = FakeTransport(cut(whole[:300]), cut(whole[:-3]), reply(response("completed", CALL)))
        ran = self.run_main("resume", "s.session.json", transport=fake)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(Path("s.png").read_bytes(), PICTURE)
        self.assertEqual(self.files(), ["s.png"])

    def test_the_waits_between_looks_follow_the_completion_window(self) -> None:
        def running(*_: Any) -> gpt_image.Reply:
            return reply(response("in_progress"))

        for window, most in (("soonest", 10), ("2h", 30), ("8h", 90)):
            with self.subTest(window), mock.patch.object(gpt_image, "LONGEST_POLL", 20):
                self.sleeps = Waits()
                argv = (*QUEUED, "--completion-window", window, "--output", f"{window}.png")
                ran = self.run_main(*argv, transport=running)
                self.assertEqual((ran.code, max(self.sleeps)), (8, most), ran.err)
                self.assertTrue(20 * most - 1 < sum(self.sleeps) <= 20 * most + 1, sum(self.sleeps))
                self.sleeps = Waits(interrupt_at(25))
                ran = self.run_main("resume", f"{window}.session.json", transport=running)
                self.assertEqual((ran.code, max(self.sleeps)), (130, most), ran.err)
                for odd in (None, "3h", 5, ["8h"]):  # a session of another version, or of another hand
                    self.session("odd.session.json", window=odd)
                    self.sleeps = Waits(interrupt_at(12))
                    ran = self.run_main("resume", "odd.session.json", transport=running)
                    self.assertEqual((ran.code, max(self.sleeps)), (130, 10), (odd, ran.err))

    def test_cancelling(self) -> None:
        gateway = self.gateway(polls=9)
        name = self.interrupted(gateway).json["response_id"]
        for _ in range(2):
            ran = self.run_main("resume", name, "--cancel", gateway=gateway)
            sent = gateway.requests[-1]
            self.assertEqual((ran.code, sent.path), (0, f"/v1/responses/{name}/cancel"), ran.err)
            self.assertEqual((sent.body_bytes, sent.header("Content-Type"), sent.header("Content-Length")), (0, "", "0"))
        self.assertTrue(gateway.studio.responses[name].cancelled)
        ran = self.run_main("resume", "p.session.json", "--cancel", gateway=gateway)
        self.assertEqual((ran.code, Path("p.session.json").exists()), (0, False))
        ran = self.run_main("resume", name, "--output", "x.png", gateway=gateway)
        self.assertEqual((ran.code, ran.json["images"]), (6, []))

    def test_cancelling_where_the_output_exists_already(self) -> None:
        gateway = self.gateway(polls=9)
        self.interrupted(gateway)
        Path("p.png").write_bytes(b"mine")
        ran = self.run_main("resume", "p.session.json", "--cancel", gateway=gateway)
        self.assertEqual((ran.code, gateway.requests[-1].path.endswith("/cancel")), (0, True), ran.err)
        self.assertEqual(Path("p.png").read_bytes(), b"mine")

    def test_cancelling_what_is_not_there_is_a_404_and_the_session_stays(self) -> None:
        gateway = self.gateway()
        self.session("s.session.json", gateway)
        ran = self.run_main("resume", "s.session.json", "--cancel", gateway=gateway)
        self.assertEqual((ran.code, ran.error["status"]), (4, 404))
        self.assertTrue(Path("s.session.json").exists())


class DroppedStreams(BackgroundTest):
    """A stream that is dropped is taken up, or its response looked up, before anything is given up."""

    def test_a_background_stream_is_taken_up_where_it_was_dropped(self) -> None:
        gateway = self.gateway("background-stream-dropped")
        ran = self.run_main(*STREAMED, "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, gateway.posts, Path("p.png").read_bytes()), (0, 1, gateway.pictures[0]), ran.err)
        paths = [request.path for request in self.gets(gateway)]
        self.assertEqual(len(paths), 1)
        self.assertRegex(paths[0], r"\?stream=true&starting_after=3$")  # events 0 to 3 had come
        self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["partial_images"]], gateway.previews)
        self.assertEqual(self.files(), ["p-partial-1.png", "p-partial-2.png", "p.png"])

    def test_the_number_is_that_of_the_last_event_that_was_whole(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("queued")}
        done = {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": CALL}
        ended = {"type": "response.completed", "sequence_number": 2, "response": response("completed")}
        first, second = events(created), events(done)
        for at in (10, 80, 120, 200, len(second) - 10):
            with self.subTest(at=at):
                asked: List[str] = []

                def play(request: gpt_image.Request, *_: Any, at: int = at, asked: List[str] = asked) -> Any:
                    asked.append(request.url)
                    after = re.search(r"starting_after=([0-9]+)", request.url)
                    if request.method == "POST":
                        return cut(first + second[:at])
                    start = int(after.group(1)) if after else -1
                    return reply(events(*[event for event in (created, done, ended) if int(str(event["sequence_number"])) > start]))

                ran = self.run_main(*STREAMED, "--output", f"{at}.png", transport=play)
                self.assertEqual(ran.code, 0, f"{asked}\n{ran.err}")
                self.assertEqual(Path(f"{at}.png").read_bytes(), PICTURE)
                self.assertTrue(asked[1].endswith("starting_after=0"), asked)

    def test_a_stream_that_is_dropped_again_and_again_is_taken_up_again_and_again(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("queued")}
        going = [{"type": "response.in_progress", "sequence_number": n, "response": response("in_progress")} for n in (1, 2)]
        done = {"type": "response.output_item.done", "sequence_number": 3, "output_index": 0, "item": CALL}
        ended = {"type": "response.completed", "sequence_number": 4, "response": response("completed", CALL)}
        fake = FakeTransport(cut(events(created)), cut(events(going[0])), cut(b""), cut(events(going[1])), reply(events(done, ended)))
        ran = self.run_main(*STREAMED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)
        after = [request.url.rpartition("=")[2] for request in fake.requests[1:]]
        self.assertEqual(after, ["0", "1", "1", "2"])

    def test_a_picture_that_had_come_is_not_saved_twice(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("queued")}
        done = {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": CALL}
        ended = {"type": "response.completed", "sequence_number": 2, "response": response("completed", CALL)}
        fake = FakeTransport(cut(events(created, done)), reply(events(ended)))
        ran = self.run_main(*STREAMED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, self.files(), len(ran.json["images"])), (0, ["p.png"], 1), ran.err)

    def test_a_clean_end_without_the_last_event_is_taken_up_too(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        ended = {"type": "response.completed", "sequence_number": 1, "response": response("completed", CALL)}
        fake = FakeTransport(reply(events(created)), reply(events(ended)))
        ran = self.run_main(*STREAMED, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, Path("p.png").read_bytes()), (0, PICTURE), ran.err)

    def test_a_dropped_response_that_was_stored_is_looked_up_by_its_id(self) -> None:
        gateway = self.gateway("stream-dropped")
        ran = self.run_main(*TALK, "--stream", "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, gateway.posts, self.files()), (0, 1, ["p.png"]), ran.err)
        self.assertEqual(Path("p.png").read_bytes(), gateway.pictures[0])
        self.assertEqual([request.path for request in self.gets(gateway)], [f"/v1/responses/{ran.json['response_id']}"])

    def test_it_is_looked_up_until_it_is_finished(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        fake = FakeTransport(cut(events(created)), reply(response("in_progress")), reply(response("in_progress")), reply(response("completed", CALL)))
        ran = self.run_main(*TALK, "--stream", "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_a_cut_json_reply_is_looked_up_as_well(self) -> None:
        whole = json.dumps(response("completed", CALL)).encode()
        fake = FakeTransport(cut(whole[:200]), reply(response("completed", CALL)))
        ran = self.run_main(*TALK, "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["p.png"]), ran.err)

    def test_one_that_was_not_stored_is_not_looked_up(self) -> None:
        gateway = self.gateway("stream-dropped")
        ran = self.run_main(*TALK, "--stream", "--no-store", "--output", "p.png", gateway=gateway)
        self.assertEqual((ran.code, len(gateway.requests), ran.error["may_be_billed"]), (5, 1, True))
        self.assertEqual(self.files(), ["p.reply"])

    def test_a_lookup_that_fails_reports_the_first_fault(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        for answers in ([reply({}, 404)], [reply({}, 401)], [gpt_image.Fault("refused", False)] * 3, [cut(b"{")] * 40, [reply(response("failed"))]):
            with self.subTest(first=type(answers[0]).__name__):
                fake = FakeTransport(cut(events(created)), *answers)
                name = f"{len(self.files())}.png"
                ran = self.run_main(*TALK, "--stream", "--output", name, transport=fake)
                self.assertIn(ran.code, (5, 6), ran.err)
                self.assertTrue(ran.error["may_be_billed"])
                self.assertIsNotNone(ran.json["saved_response"])

    def test_it_is_not_looked_up_for_ever(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        fake = FakeTransport(cut(events(created)), *[reply(response("in_progress")) for _ in range(5000)])
        self.sleeps = Waits(interrupt_at(4000))
        ran = self.run_main(*TALK, "--stream", "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (5, True))
        self.assertLess(sum(self.sleeps), 700)
        self.assertIn("resp_1", ran.out)

    def test_an_error_event_is_no_dropped_stream(self) -> None:
        created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
        broken = {"type": "error", "code": "server_error", "message": "Sorry!", "sequence_number": 1}
        fake = FakeTransport(reply(events(created, broken)))
        ran = self.run_main(*TALK, "--stream", "--output", "p.png", transport=fake)
        self.assertEqual((ran.code, len(fake.requests)), (5, 1))

    def test_the_key_is_in_no_file_and_no_line_of_all_this(self) -> None:
        gateway = self.gateway("key-in-reply")
        for argv in (QUEUED, STREAMED):
            with self.subTest(argv=argv):
                ran = self.run_main(*argv, "--output", f"{len(argv)}.png", gateway=gateway)
                self.assertEqual(ran.code, 0, ran.err)
                self.assert_no_key(ran, (KEY,))
