"""Real processes that are stopped or run out of disk: what was finished stays, the reply is kept, nothing temporary does."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import gpt_image
from tests import pictures
from tests.support import KEY, SCRIPT, ProgramTest, Ran, child
from tests.test_transport import Raw

THREE = ("generations", "A lake", "--model", "small", "--size", "48x32", "--n", "3")
TALK = ("responses", "A lake", "--tool-model", "small", "--size", "48x32")
FINALS = [pictures.picture(b"stop %d" % seed, "png", 48, 32) for seed in range(3)]
TEXTS = [base64.b64encode(data).decode() for data in FINALS]
WHOLE = json.dumps({"created": 1, "data": [{"b64_json": text} for text in TEXTS]}).encode()
HALF = WHOLE[: WHOLE.index(TEXTS[2].encode()) + 200]  # two pictures, and the start of the third


@unittest.skipUnless(os.name == "posix", "signals and limits are POSIX")
class ProcessTest(ProgramTest):
    """Runs the program as a process of its own, with a folder for temporary files that must be empty afterwards."""

    def setUp(self) -> None:
        super().setUp()
        Path("tmp").mkdir()
        Path("out").mkdir()

    def environ(self, url: str, **more: str) -> Dict[str, str]:
        """Returns the environment of the process."""
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "OPENAI" not in name}
        own = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "TMPDIR": str(self.folder / "tmp"), "HOME": str(self.folder), "TERM": "dumb"}
        return {**env, **own, **more}

    def start(self, url: str, *argv: str, before: str = "pass", **how: Any) -> subprocess.Popen[str]:
        """Starts the program; `before` is Python to run in the process first."""
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        process = subprocess.Popen([*child(before), *argv], env=self.environ(url), text=True, **how)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        """Ends a process that a failed test left behind."""
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def finish(self, process: subprocess.Popen[str]) -> Ran:
        """Waits for the end of a process."""
        out, err = process.communicate(timeout=10)
        self.assertNotIn("Traceback", err)
        try:
            value = json.loads(out)
        except ValueError:
            value = None
        ran = Ran(process.returncode, out, err, value)
        self.assert_no_key(ran)
        return ran

    def until(self, ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Waits until something is so."""
        end = time.monotonic() + 8
        while not ready():
            self.assertLess(time.monotonic(), end, "it never came to that")
            self.assertIsNone(process.poll(), "it ended too soon")
            time.sleep(0.005)

    def hanging(self, body: bytes, length: int = len(WHOLE), kind: bytes = b"application/json") -> str:
        """Starts a server that sends some bytes of a reply and then falls silent, and returns its URL."""

        def deed(sock: socket.socket, _: bytes) -> None:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, length) + body)
            with contextlib.suppress(OSError):
                sock.recv(1)

        server = Raw(deed)
        self.addCleanup(server.close)
        return f"http://127.0.0.1:{server.port}/v1"

    def extracted(self, ran: Ran) -> List[bytes]:
        """Runs the recovery command as it was printed, which a shell can do as it stands."""
        command = ran.error["recovery"]
        self.assertIn(command, ran.err)
        words = shlex.split(command)
        self.assertEqual(words[:2], ["python3", SCRIPT])
        ran = self.run_main(*words[2:], env={"OPENAI_API_KEY": ""})
        return [Path(row["path"]).read_bytes() for row in ran.json["images"]]


class Signals(ProcessTest):
    """Ctrl-C, and what ends a process from outside."""

    def test_a_signal_after_two_pictures_keeps_them_and_the_reply(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with self.subTest(name=name):
                process = self.start(self.hanging(HALF), *THREE, "--output", f"out/{name}.png")
                self.until(Path(f"out/{name}-2.png").exists, process)
                time.sleep(0.05)  # the reply is kept a moment later
                process.send_signal(getattr(signal, name))
                ran = self.finish(process)
                self.assertEqual((ran.code, ran.error["exit"], ran.error["may_be_billed"]), (130, 130, True), ran.err)
                self.assertEqual([row["path"] for row in ran.json["images"]], [f"out/{name}-1.png", f"out/{name}-2.png"])
                self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["images"]], FINALS[:2])
                self.assertEqual(Path(f"out/{name}.reply").read_bytes(), HALF)
                if name == "SIGINT":
                    self.assertEqual(self.extracted(ran), FINALS[:2])
                self.assertEqual(self.files("tmp"), [])
                self.assertEqual([path for path in self.files("out") if path.startswith(".") or path.endswith(".part")], [])
                shutil.rmtree("out")

    def test_an_impatient_ctrl_c_loses_nothing_either(self) -> None:
        for number in range(3):
            with self.subTest(number=number):
                process = self.start(self.hanging(HALF), *THREE, "--output", "out/p.png")
                self.until(Path("out/p-2.png").exists, process)
                for _ in range(6):
                    with contextlib.suppress(OSError):
                        process.send_signal(signal.SIGINT)
                    time.sleep(0.002 * number)
                process.communicate(timeout=10)
                self.assertIn(process.returncode, (130, -signal.SIGINT))
                self.assertEqual([Path(f"out/p-{index}.png").read_bytes() for index in (1, 2)], FINALS[:2])
                self.assertEqual([path for path in self.files("out") if path not in ("p-1.png", "p-2.png", "p.reply")], [])
                self.assertEqual(self.files("tmp"), [])
                shutil.rmtree("out")

    def test_a_signal_in_the_middle_of_the_first_picture_keeps_the_reply(self) -> None:
        for argv, name in ((THREE, "SIGINT"), ((*TALK, "--stream"), "SIGTERM")):
            with self.subTest(route=argv[0], name=name):
                gateway = self.gateway("hang-in-mid-picture")
                process = self.start(gateway.url, *argv, "--output", "out/p.png")
                self.until(lambda: any(os.path.getsize(f"out/{path}") for path in self.files("out")), process)
                time.sleep(0.05)
                process.send_signal(getattr(signal, name))
                ran = self.finish(process)
                self.assertEqual((ran.code, ran.json["images"], gateway.posts), (130, [], 1), ran.err)
                self.assertEqual((self.files("out"), self.files("tmp")), (["p.reply"], []))
                shutil.rmtree("out")

    def test_a_signal_while_previews_come_passes_none_off_as_the_picture(self) -> None:
        event = {"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": TEXTS[0]}
        body = f"data: {json.dumps(event)}\n\n".encode() + b'data: {"type": "image_generation.completed", "b64_json": "iVBOR'
        url = self.hanging(body, len(body) + 5000, b"text/event-stream")
        process = self.start(url, *THREE[:-2], "--stream", "--partial-images", "1", "--output", "out/p.png")
        self.until(Path("out/p-partial-1.png").exists, process)
        process.send_signal(signal.SIGINT)
        ran = self.finish(process)
        self.assertEqual((ran.code, ran.json["images"]), (130, []))
        self.assertEqual(self.files("out"), ["p-partial-1.png", "p.reply"])

    def test_a_signal_before_any_reply_leaves_nothing(self) -> None:
        for scenario, name in (("hang", "SIGINT"), ("hang", "SIGTERM")):
            with self.subTest(name=name):
                gateway = self.gateway(scenario)
                process = self.start(gateway.url, *THREE, "--output", "out/p.png")
                self.until(lambda gateway=gateway: bool(gateway.posts), process)  # type: ignore[misc]
                time.sleep(0.05)
                process.send_signal(getattr(signal, name))
                ran = self.finish(process)
                self.assertEqual((ran.code, ran.error["may_be_billed"], ran.json["images"]), (130, True, []), ran.err)
                self.assertEqual((self.files("out"), self.files("tmp")), ([], []))

    def test_a_signal_while_it_waits_to_try_again(self) -> None:
        gateway = self.gateway()
        for _ in range(3):
            gateway.play(b"{}", 503, headers=(("Retry-After", "60"),))
        process = self.start(gateway.url, *THREE, "--output", "out/p.png")
        self.until(lambda: bool(gateway.posts), process)
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
        ran = self.finish(process)
        self.assertEqual((ran.code, gateway.posts, self.files("out")), (130, 1, []))

    def test_a_signal_while_it_polls_leaves_the_session(self) -> None:
        for name in ("SIGINT", "SIGTERM"):
            with self.subTest(name=name):
                gateway = self.gateway(polls=2)
                process = self.start(gateway.url, *TALK, "--background-mode", "--output", "out/p.png")
                self.until(Path("out/p.session.json").exists, process)
                time.sleep(0.1)
                process.send_signal(getattr(signal, name))
                ran = self.finish(process)
                self.assertEqual((ran.code, ran.json["session_file"]), (130, "out/p.session.json"), ran.err)
                self.assertIn("gpt_image.py resume out/p.session.json", ran.err)
                self.assertEqual(self.files("tmp"), [])
                self.assertEqual(self.run_main("resume", "out/p.session.json", gateway=gateway).code, 0)
                self.assertEqual(Path("out/p.png").read_bytes(), gateway.pictures[0])
                self.assertEqual(gateway.posts, 1)
                shutil.rmtree("out")

    def test_a_process_that_is_killed_leaves_only_whole_pictures_under_their_names(self) -> None:
        process = self.start(self.hanging(HALF), *THREE, "--output", "out/p.png")
        self.until(Path("out/p-2.png").exists, process)
        process.kill()
        process.communicate(timeout=10)
        named = [path for path in self.files("out") if path.endswith(".png")]
        self.assertEqual([Path("out", path).read_bytes() for path in named], FINALS[:2])

    def test_a_reader_that_went_away_costs_no_picture(self) -> None:
        gateway = self.gateway()
        read, write = os.pipe()
        os.close(read)
        try:
            process = self.start(gateway.url, *THREE, "--output", "out/p.png", stdout=write)
        finally:
            os.close(write)
        _, err = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(len(self.files("out")), 3)
        self.assertNotIn("BrokenPipe", err)

    def test_closed_streams_cost_no_picture(self) -> None:
        for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
            with self.subTest(closed=closed):
                gateway = self.gateway()
                command = ["sh", "-c", f'exec "$0" "$@" {closed}', *child(), *THREE, "--output", "out/p.png"]
                done = subprocess.run(command, env=self.environ(gateway.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=10)
                self.assertEqual((done.returncode, self.files("out")), (0, ["p-1.png", "p-2.png", "p-3.png"]), done.stderr)
                self.assertNotIn("Traceback", done.stderr)
                shutil.rmtree("out")


class AnyMoment(ProgramTest):
    """A signal between any two lines of the program, from the moment that bytes of the reply are there."""

    def interrupted_at(self, number: int) -> Tuple[Ran, int]:
        """Makes a call that gets SIGINT at a line, counted from the arrival of bytes; returns how many lines there were."""
        lines, before = [0], sys.gettrace()
        self.addCleanup(sys.settrace, before)

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename != gpt_image.__file__:
                return None
            if event == "line":
                lines[0] += 1
                if lines[0] == number:
                    sys.settrace(before)
                    signal.raise_signal(signal.SIGINT)
            return trace

        def pieces() -> Iterator[bytes]:
            sys.settrace(trace)  # for the functions that are called from now on, and those that are being run
            frame: Optional[FrameType] = sys._getframe(1)
            while frame:
                frame.f_trace = trace if frame.f_code.co_filename == gpt_image.__file__ else frame.f_trace
                frame = frame.f_back
            yield HALF
            sys.settrace(before)
            raise ConnectionError("reset by peer")

        ran = self.run_main(*THREE, "--output", f"{number}/p.png", transport=lambda *_: gpt_image.Reply(200, {}, pieces()))
        sys.settrace(before)
        return ran, lines[0]

    def test_what_arrived_is_kept_whenever_the_signal_comes(self) -> None:
        ran, count = self.interrupted_at(0)
        self.assertEqual(ran.code, 5)
        for number in range(1, count, 13):
            with self.subTest(line=number):
                ran, _ = self.interrupted_at(number)
                self.assertEqual((ran.code, Path(ran.json["saved_response"]).read_bytes()), (130, HALF), ran.err)


class FullDisks(ProcessTest):
    """No room for all that was paid for."""

    LARGE = FINALS[0][:33] + (40_000).to_bytes(4, "big") + b"noIZ" + bytes(40_000) + b"\0\0\0\0" + FINALS[0][33:]

    def body(self, *finals: bytes) -> bytes:
        """Returns the reply of an Images call."""
        return json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()} for data in finals]}).encode()

    def served(self, body: bytes) -> str:
        """Serves one body, and returns the URL."""
        gateway = self.gateway()
        gateway.play(body)
        return gateway.url

    def assert_reported(self, ran: Ran, finals: Sequence[bytes]) -> None:
        """Asserts the exit code of a full disk, with the pictures that found room."""
        self.assertEqual((ran.code, ran.error["exit"], ran.error["may_be_billed"]), (7, 7, True), ran.err)
        self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["images"]], list(finals), ran.err)

    def test_a_limit_on_the_size_of_files(self) -> None:
        before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
        url = self.served(self.body(FINALS[0], self.LARGE, FINALS[2]))
        ran = self.finish(self.start(url, *THREE, "--output", "out/p.png", before=before))
        self.assert_reported(ran, [FINALS[0], FINALS[2]])
        self.assertEqual((self.files("out"), self.files("tmp")), (["p-1.png", "p-3.png"], []))
        self.assertIsNone(ran.json["saved_response"])

    def test_a_limit_that_only_the_reply_exceeds(self) -> None:
        before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))"
        ran = self.finish(self.start(self.served(self.body(*FINALS)), *THREE, "--output", "out/p.png", before=before))
        self.assertEqual((ran.code, len(ran.json["images"])), (0, 3), ran.err)
        self.assertEqual((self.files("out"), self.files("tmp")), (["p-1.png", "p-2.png", "p-3.png"], []))

    def test_a_limit_of_open_files(self) -> None:
        before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
        ran = self.finish(self.start(self.served(self.body(*FINALS * 10)), *THREE, "--output", "out/p.png", before=before))
        self.assertEqual((ran.code, len(ran.json["images"])), (0, 30), ran.err)

    def tiny_disk(self, options: str) -> None:
        """Mounts a small disk on `out`, or skips the test."""
        mount, umount = shutil.which("mount"), shutil.which("umount")
        if not (mount and umount and sys.platform == "linux" and os.geteuid() == 0):
            self.skipTest("only root on Linux can make a small disk")
        if subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", "out"], stderr=subprocess.DEVNULL).returncode:
            self.skipTest("no disk can be mounted here")
        target = str(self.folder / "out")
        self.addCleanup(subprocess.run, [str(umount), "-l", target], stderr=subprocess.DEVNULL)

    def test_a_disk_too_small_for_one_picture_keeps_the_others_and_the_reply_elsewhere(self) -> None:
        self.tiny_disk("size=24k")
        body = self.body(FINALS[0], self.LARGE, FINALS[2])
        ran = self.finish(self.start(self.served(body), *THREE, "--output", "out/p.png"))
        self.assert_reported(ran, [FINALS[0], FINALS[2]][: len(ran.json["images"])])
        self.assertIn("p-1.png", self.files("out"))
        self.assertEqual(len(self.files("out")), len(ran.json["images"]))
        kept = ran.json["saved_response"]
        self.assertEqual(Path(kept).read_bytes(), body)
        self.assertEqual(len(self.files("tmp")), 1)
        argv = shlex.split(ran.error["recovery"])[2:-1]
        again = self.run_main(*argv, str(self.folder / "room" / "p.png"))
        self.assertEqual([Path(row["path"]).read_bytes() for row in again.json["images"]], [FINALS[0], self.LARGE, FINALS[2]])

    def test_a_disk_that_is_full_already_is_found_out_before_anything_is_sent_or_the_reply_is_kept(self) -> None:
        self.tiny_disk("size=24k")
        Path("out/fill").write_bytes(bytes(24 << 10))
        body = self.body(*FINALS)
        ran = self.finish(self.start(self.served(body), *THREE, "--output", "out/p.png"))
        self.assertEqual((ran.code, ran.json["images"]), (7, []), ran.err)
        if ran.json["attempts"]:
            self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)
        self.assertEqual(self.files("out"), ["fill"])

    def test_a_disk_without_room_for_another_file(self) -> None:
        self.tiny_disk("size=1m,nr_inodes=4")  # the folder, two pictures or their temporary files, and one more
        body = self.body(*FINALS)
        ran = self.finish(self.start(self.served(body), *THREE, "--output", "out/p.png"))
        self.assertEqual(ran.code, 7, ran.err)
        saved = [Path(row["path"]).read_bytes() for row in ran.json["images"]]
        self.assertEqual(saved, FINALS[: len(saved)])
        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)
        self.assertFalse([name for name in self.files("out") if not Path("out", name).stat().st_size])

    def test_save_response_on_another_disk_than_the_pictures(self) -> None:
        self.tiny_disk("size=1m")
        body = self.body(*FINALS)
        for output, kept in (("out/p.png", "kept.json"), ("p.png", "out/kept.json"), ("out/q.png", "deep/kept.json")):
            with self.subTest(output=output):
                ran = self.finish(self.start(self.served(body), *THREE, "--output", output, "--save-response", kept))
                self.assertEqual((ran.code, Path(kept).read_bytes(), self.files("tmp")), (0, body, []), ran.err)

    def test_no_room_for_the_session_file_does_not_stop_the_response(self) -> None:
        gateway = self.gateway()
        before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
        process = self.start(gateway.url, *TALK, "--background-mode", "--output", "out/p.png", before=before)
        self.until(lambda: len(gateway.requests) > 0, process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        ran = self.finish(process)
        self.assertIn(ran.code, (7, 130), ran.err)
        self.assertIn(next(iter(gateway.studio.responses)), ran.out + ran.err)
        self.assertEqual(self.files("tmp"), [])
