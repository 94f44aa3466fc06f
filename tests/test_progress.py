"""What progress says while a call waits, and what of it scripts may rely on."""

from __future__ import annotations

import base64
import io
import json
import threading
import unittest
from typing import Any, List
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, reply

BODY = {"data": [{"b64_json": base64.b64encode(pictures.picture(b"progress", "png", 48, 32)).decode()}]}


START = 5000.0  # of the clock, which may begin anywhere


class HeartbeatTest(ProgramTest):
    """A call that takes long says that it still waits: every half minute, and no oftener."""

    def heartbeats(self, *times: float, began: float = 0) -> List[List[str]]:
        """Returns the lines that were new when the clock of a call had stood at each time for some ticks."""
        now, ticks, told = [START], threading.Semaphore(0), io.StringIO()
        found: List[List[str]] = []
        wait = threading.Event.wait

        def tick(event: threading.Event, seconds: Any = None) -> bool:
            """Waits a moment in place of a second, and counts."""
            ticks.release()
            return wait(event, 0.001)

        def transport(request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> gpt_image.Reply:
            now[0] = START + began
            progress.phase("waiting")
            for time in times:
                shown, now[0] = len(told.getvalue()), START + time
                while ticks.acquire(blocking=False):
                    pass
                for _ in range(3):
                    self.assertTrue(ticks.acquire(timeout=5), "it never ticked")
                found.append(told.getvalue()[shown:].splitlines())
            return reply(BODY)

        with mock.patch("threading.Event.wait", tick):
            code = gpt_image.main(
                ["generations", "x", "--output", "o.png", "--progress", "plain"], transport=transport, clock=lambda: now[0],
                stdout=io.StringIO(), stderr=told, environ={"OPENAI_API_KEY": KEY},
            )  # fmt: skip
        self.assertEqual(code, 0, told.getvalue())
        return found

    def test_plain_progress_has_a_heartbeat(self) -> None:
        said = self.heartbeats(29.9, 30, 59.9, 60, 300)
        line = "waiting for the reply · {} s"
        self.assertEqual(said, [[], [line.format(30)], [], [line.format(60)], [line.format(300)]])

    def test_a_new_phase_puts_it_off(self) -> None:
        self.assertEqual(self.heartbeats(49.9, 50, began=20), [[], ["waiting for the reply · 50 s"]])


class JsonProgressTest(ProgramTest):
    """JSON progress is for programs of every kind."""

    def test_it_is_ascii_whatever_the_names_are(self) -> None:
        argv = ("generations", "x", "--output", "Bücher/海.png", "--progress", "json")
        ran = self.run_main(*argv, transport=FakeTransport(reply(BODY)))
        self.assertEqual(ran.code, 0, ran.err)
        self.assertTrue(ran.err.isascii(), ran.err)
        rows = [json.loads(line) for line in ran.err.splitlines()]
        self.assertEqual((rows[-1]["phase"], rows[-1]["path"]), ("saved", "Bücher/海.png"))

    def test_what_only_moves_on_is_told_once_a_second(self) -> None:
        now, told = [START], io.StringIO()

        def transport(request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> gpt_image.Reply:
            for _ in range(10):
                now[0] += 0.25
                progress.phase("receiving", bytes=5000)
            return reply(BODY)

        code = gpt_image.main(
            ["generations", "x", "--output", "o.png", "--progress", "json"], clock=lambda: now[0], stdout=io.StringIO(),
            stderr=told, environ={"OPENAI_API_KEY": KEY}, transport=transport,
        )  # fmt: skip
        self.assertEqual(code, 0, told.getvalue())
        rows = [json.loads(line) for line in told.getvalue().splitlines()]
        self.assertEqual([row["seconds"] for row in rows if row["phase"] == "receiving"], [0.2, 1.2, 2.2])
        self.assertEqual(rows[-1]["phase"], "saved")

    def test_pictures_that_are_fetched_are_counted(self) -> None:
        data = pictures.picture(b"progress", "png", 48, 32)
        urls = {"data": [{"url": f"https://pictures.example/{number}"} for number in (1, 2)]}
        transport = FakeTransport(reply(urls), reply(data), reply(data))
        argv = ("generations", "x", "--n", "2", "--output", "o.png", "--progress", "json")
        ran = self.run_main(*argv, transport=transport)
        self.assertEqual(ran.code, 0, ran.err)
        rows = [json.loads(line) for line in ran.err.splitlines()]
        self.assertEqual([row["index"] for row in rows if row["phase"] == "fetching"], [1, 2])


if __name__ == "__main__":
    unittest.main()
