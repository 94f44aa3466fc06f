"""Batches as real processes that are interrupted or killed, and what all their threads share."""

from __future__ import annotations

import collections
import json
import os
import signal
import ssl
import threading
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Dict, List

import gpt_image
from tests.gateway import Gateway
from tests.support import Ran
from tests.test_interrupt import ProcessTest


class Processes(ProcessTest):
    """A batch of six jobs, two at once."""

    def run_batch(self, url: str, *argv: str) -> Any:
        """Starts the batch."""
        Path("jobs.txt").write_text("".join(f"Lake {number}\n" for number in range(6)), "utf-8")
        return self.start(url, "batch", "jobs.txt", "--parallel", "2", *argv)

    def ledger(self) -> Dict[str, List[Any]]:
        """Returns the lines of each job."""
        rows: Dict[str, List[Any]] = collections.defaultdict(list)
        path = Path("jobs.txt.ledger.jsonl")
        for line in path.read_bytes().splitlines() if path.exists() else []:
            row = json.loads(line)
            rows[row["job"]].append(row)
        return rows

    def assert_goes_on(self, gateway: Gateway, unclear: int) -> Ran:
        """Asserts that the same command makes all that is left, and pays for nothing twice."""
        gateway.studio.delay = 0
        ran = self.finish(self.run_batch(gateway.url))
        self.assertEqual((ran.code, ran.json["jobs"]["unclear"]), (9 if unclear else 0, unclear), ran.err)
        self.assertEqual(set(gateway.posted.values()), {1})
        self.assertEqual(len([name for name in self.files("jobs") if name.endswith("png")]), 6 - unclear)
        self.assertGreaterEqual(len(gateway.posted), 6 - unclear)  # one that began may not have got so far
        return ran

    def test_the_first_ctrl_c_lets_those_under_way_end_and_begins_no_other(self) -> None:
        gateway = self.gateway(delay=0.1, weight=1)
        process = self.run_batch(gateway.url)
        self.until(lambda: gateway.posts >= 2, process)
        process.send_signal(signal.SIGINT)
        ran = self.finish(process)
        self.assertEqual((ran.code, ran.json["jobs"]["made"], ran.json["jobs"]["not_started"]), (130, 2, 4), ran.err)
        self.assertIn("run the same command again", ran.err)
        self.assertEqual(os.listdir("tmp"), [])
        self.assert_goes_on(gateway, 0)

    def test_the_second_ctrl_c_ends_each_as_a_single_call_would(self) -> None:
        process = self.run_batch(self.hanging(b""))
        self.until(lambda: len(self.ledger()) == 2, process)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        ran = self.finish(process)
        self.assertEqual((ran.code, ran.json["jobs"]["failed"], ran.json["jobs"]["not_started"]), (130, 2, 4), ran.err)
        for rows in self.ledger().values():
            self.assertEqual([row.get("result", {"error": {}})["error"].get("exit") for row in rows], [None, 130])
            self.assertTrue(rows[1]["result"]["error"]["may_be_billed"])
        self.assertEqual(os.listdir("tmp"), [])

    def test_after_kill_9_the_same_command_goes_on(self) -> None:
        gateway = self.gateway(delay=0.05, weight=1)
        process = self.run_batch(gateway.url)
        self.until(lambda: sum(len(rows) == 2 for rows in self.ledger().values()) >= 2, process)
        process.kill()
        process.wait()
        begun = [name for name, rows in self.ledger().items() if len(rows) == 1]
        there = [name for name in begun if os.path.exists(f"jobs/{name}.png")]
        ran = self.assert_goes_on(gateway, len(begun) - len(there))
        self.assertEqual({row["id"] for row in ran.json["failures"]}, set(begun) - set(there))


class TlsTest(unittest.TestCase):
    """One TLS context for all."""

    def test_threads_that_connect_at_once_share_one_context(self) -> None:
        made: List[Any] = []

        def create() -> Any:
            made.append(1)
            time.sleep(0.02)
            return unittest.mock.MagicMock()

        stop, start, progress = gpt_image.Stop(), threading.Barrier(4), unittest.mock.Mock()

        def connect() -> None:
            request = gpt_image.Request("GET", "https://127.0.0.1:1/v1", [])
            start.wait(5)
            gpt_image.send(request, 1.0, progress, stop)

        with unittest.mock.patch.object(ssl, "create_default_context", create):
            threads = [threading.Thread(target=connect) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(made), 1)


if __name__ == "__main__":
    unittest.main()
