"""`batch --engine batch-api` against the stand-in: every picture there once, every job billed once, or it says why not."""

from __future__ import annotations

import hashlib
import json
import os
import unittest
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.gateway import BY_NAME, Gateway
from tests.support import KEY, FakeTransport, ProgramTest, Ran, reply

SMALL = ("--model", "small", "--size", "48x32", "--output", "out/{id}.png")
PNG = pictures.picture(b"in", "png", 32, 32)


class Killed(BaseException):
    """What ends a run as `kill -9` would: nothing is done about it."""


class Dying:
    """Dies before the n-th request is sent, or when its reply begins."""

    def __init__(self, number: int, answered: bool) -> None:
        self.number, self.answered, self.count = number, answered, 0

    def __call__(self, request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> Any:
        self.count += 1
        if self.count == self.number and not self.answered:
            raise Killed
        found = gpt_image.send(request, timeout, progress)
        if self.count == self.number:
            raise Killed
        return found


class EngineTest(ProgramTest):
    """A test that hands jobs over to the Batch API."""

    def setUp(self) -> None:
        super().setUp()
        patched = mock.patch.object(os, "fsync")  # which takes most of the time
        patched.start()
        self.addCleanup(patched.stop)

    def jobs(self, count: int = 6, *more: Dict[str, Any]) -> None:
        rows = [{"id": f"lake-{number}", "prompt": f"Lake {number}"} for number in range(1, count + 1)]
        Path("jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))

    def hand_over(self, gateway: Gateway, *argv: str, transport: Any = None) -> Ran:
        argv = ("batch", "jobs.jsonl", "--engine", "batch-api", *SMALL, *argv)
        return self.run_main(*argv, gateway=gateway, transport=transport)

    def ledger(self) -> List[Dict[str, Any]]:
        return [json.loads(line) for line in Path("jobs.jsonl.ledger.jsonl").read_text().splitlines()]

    def results(self) -> Dict[str, Dict[str, Any]]:
        return {row["job"]: row["result"] for row in self.ledger() if "result" in row}

    def asked(self, gateway: Gateway) -> List[str]:
        """Returns the requests in short: method and path, with a star in the place of an id."""
        parts = [(row.method, row.path.partition("?")[0].split("/")[2:]) for row in gateway.requests]
        return [f"{method} /{'/'.join([path[0], *('*' * bool(path[1:])), *path[2:]])}" for method, path in parts]

    def lines(self, request: Any) -> List[Dict[str, Any]]:
        """Returns the lines of an upload."""
        part = request.form[-1]
        part.content.seek(0)
        return [json.loads(line) for line in part.content.read().splitlines()]

    def assert_all_once(self, gateway: Gateway, names: Sequence[str]) -> None:
        self.assertEqual(self.files("out"), sorted(names))
        self.assertLessEqual(set(gateway.billed.values()), {1})
        for name in names:
            self.assertIn((Path("out") / name).read_bytes(), gateway.pictures)


SIX = [f"lake-{number}.png" for number in range(1, 7)]
ALL_MADE = (0, 4, 4)
# By scenario: how the first run ends, how many pictures it has made, and how many jobs are billed by then.
ENDS: Dict[str, Tuple[int, int, int]] = {
    "batch-expired": (9, 2, 2),
    "batch-expired-empty": (9, 0, 0),
    "batch-cancelled": (9, 2, 2),
    "batch-refused": (9, 0, 0),
    "batch-some-refused": (9, 3, 3),
    "batch-refused-in-output": (9, 3, 3),
    "batch-failed": (9, 0, 0),
    "batch-billing-limit": (9, 0, 0),
    "batch-create-billing-limit": (9, 0, 0),
    "batch-line-cut": (9, 3, 4),
    "batch-line-noise": (9, 3, 4),
    "batch-line-missing": (9, 3, 4),
    "batch-line-null": (9, 3, 3),
    "batch-line-html": (9, 3, 3),
    "batch-cut-always": (5, 0, 4),
    "batch-output-gone": (9, 0, 4),
}
MISHAPS = [name for name in BY_NAME if name.startswith(("batch-", "file-"))]


class MishapTest(EngineTest):
    """What goes wrong at the server."""

    def test_each_picture_is_there_once_and_billed_once_or_its_job_says_why_not(self) -> None:
        for scenario in MISHAPS:
            with self.subTest(scenario):
                folder = Path(scenario)
                folder.mkdir()
                os.chdir(folder)
                self.addCleanup(os.chdir, self.folder)
                gateway = self.gateway(scenario, polls=0)
                self.jobs(4)
                ran = self.hand_over(gateway)
                code, made, billed = ENDS.get(scenario, ALL_MADE)
                shown = (ran.code, ran.json["jobs"]["made"], sum(gateway.billed.values()))
                if scenario == "batch-cut-always":  # how many lines the half holds depends on their sizes
                    made = shown[1]
                    self.assertLess(made, 4)
                self.assertEqual(shown, (code, made, billed), ran.err)
                self.assertEqual(max(gateway.billed.values(), default=1), 1)
                self.assertEqual(len(self.files("out") if made else []), made)
                told = {name: row["error"]["message"] for name, row in self.results().items() if row["error"]}
                left = ran.json["jobs"]["total"] - made
                open_jobs = ran.json["jobs"]["under_way"] + ran.json["jobs"]["not_started"]
                self.assertEqual(left, len(told) + open_jobs)
                if ran.code:
                    again = self.hand_over(gateway)
                    self.assertEqual(max(gateway.billed.values(), default=1), 1, again.err)
                os.chdir(self.folder)

    def test_uploads_and_results_are_removed_unless_something_in_them_is_still_of_use(self) -> None:
        table = {"plain": 0, "batch-refused": 0, "batch-cancelled": 0, "batch-line-missing": 1, "file-delete-fails": 2}
        for scenario, left in table.items():
            with self.subTest(scenario):
                gateway = self.gateway(scenario, polls=0)
                self.jobs()
                ran = self.hand_over(gateway, "--overwrite", "--ledger", f"{scenario}.ledger")
                self.assertEqual(len(gateway.files), left, ran.err)
                if left:
                    self.assertRegex(" ".join(ran.json["warnings"]), "at the server|from the server")

    def test_files_are_kept_when_that_is_asked_for(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(2)
        self.assertEqual(self.hand_over(gateway, "--keep-files").code, 0)
        self.assertEqual([file.purpose for file in gateway.files.values()], ["batch", "batch_output"])

    def test_a_create_whose_answer_was_lost_is_looked_for_and_not_repeated(self) -> None:
        for scenario, made in (("batch-create-lost", 1), ("batch-create-502", 1), ("batch-create-unmade", 2)):
            with self.subTest(scenario):
                gateway = self.gateway(scenario, polls=0)
                self.jobs(2)
                ran = self.hand_over(gateway, "--overwrite", "--ledger", f"{scenario}.ledger")
                self.assertEqual((ran.code, len(gateway.batches)), (0, 1))
                asked = self.asked(gateway)
                self.assertEqual(asked.count("POST /batches"), made)
                self.assertEqual(asked[asked.index("POST /batches") + 1], "GET /batches")

    def test_a_batch_is_looked_for_on_every_page_of_the_list(self) -> None:
        page = {"object": "list", "data": [{"id": "batch_0", "input_file_id": "other"}], "has_more": True, "last_id": "b/1"}
        mine = {"id": "batch_1", "input_file_id": "file-1"}
        transport = FakeTransport(
            reply({"id": "file-1"}), gpt_image.Fault("closed", sent=True), reply(page),
            reply({"object": "list", "data": [mine], "has_more": False}), reply({"id": "batch_1", "status": "expired"}),
            *[reply({})] * 3,
        )  # fmt: skip
        self.jobs(1)
        argv = ("batch", "jobs.jsonl", "--engine", "batch-api", *SMALL)
        ran = self.run_main(*argv, transport=transport)
        urls = [request.url.partition("/v1")[2] for request in transport.requests]
        self.assertEqual(urls[2:5], ["/batches?limit=100", "/batches?limit=100&after=b%2F1", "/batches/batch_1"])
        self.assertEqual(ran.code, 9)

    def test_a_list_that_cannot_be_read_does_not_make_a_second_batch(self) -> None:
        transport = FakeTransport(reply({"id": "file-1"}), gpt_image.Fault("closed", sent=True), reply({"odd": 1}))
        self.jobs(1)
        ran = self.run_main("batch", "jobs.jsonl", "--engine", "batch-api", *SMALL, transport=transport)
        self.assertEqual((ran.code, len(transport.requests)), (6, 3))
        self.assertIn("does not list its batches", ran.error["message"])

    def test_the_lines_that_a_batch_was_refused_for_fail_and_the_others_go_again(self) -> None:
        gateway = self.gateway("batch-failed", polls=0)
        self.jobs(4)
        first = self.hand_over(gateway)
        results = self.results()
        self.assertIn("not parseable", results["lake-1"]["error"]["message"])
        self.assertIn("no prompt", results["lake-2"]["error"]["message"])
        self.assertFalse(results["lake-1"]["error"]["may_be_billed"])
        self.assertEqual([len(self.lines(row)) for row in gateway.requests if row.path == "/v1/files"], [4, 2])
        self.assertEqual(first.code, 9)

    def test_jobs_that_expired_are_sent_again_by_the_same_command(self) -> None:
        gateway = self.gateway("batch-expired", polls=0)
        self.jobs(4)
        self.hand_over(gateway)
        self.assertEqual({row["error"]["code"] for row in self.results().values() if row["error"]}, {"batch_expired"})
        self.hand_over(gateway)
        self.assertEqual([len(self.lines(row)) for row in gateway.requests if row.path == "/v1/files"], [4, 2])

    def test_an_enqueued_token_limit_is_waited_for(self) -> None:
        gateway = self.gateway(polls=1)
        gateway.limits.waiting = 3
        self.jobs(6)
        with mock.patch.object(gpt_image, "MOST_IN_BATCH", 3 * 48 * 32 * 1.6 + 1000):
            ran = self.hand_over(gateway)
        self.assertEqual(ran.code, 0, ran.err)
        self.assert_all_once(gateway, SIX)
        self.assertGreater(len(gateway.batches), 2)

    def test_a_cut_download_goes_on_by_range_only_where_that_is_safe(self) -> None:
        ranges = {"batch-cut-ranges": True, "batch-cut-new-etag": False, "batch-cut-weak-etag": False}
        for scenario, goes_on in ranges.items():
            with self.subTest(scenario):
                gateway = self.gateway(scenario, polls=0)
                self.jobs(2)
                self.assertEqual(self.hand_over(gateway, "--overwrite", "--ledger", f"{scenario}.ledger").code, 0)
                downloads = [row for row in gateway.requests if row.path.endswith("/content")]
                asked = [row.header("Range") for row in downloads]
                self.assertEqual(bool(asked[-1]), goes_on)
                self.assertEqual(any(asked), scenario != "batch-cut-weak-etag")
                self.assertEqual([bool(row.header("If-Range")) for row in downloads], [bool(text) for text in asked])

    def test_a_network_that_is_away_for_long_ends_the_run_and_no_job(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(2)
        with mock.patch.object(gpt_image, "MOST_IN_BATCH", 1):  # a batch for each
            self.assertEqual(self.hand_over(gateway, "--no-wait").code, 8)
        gone = FakeTransport(*[gpt_image.Fault("no route to host", sent=False)] * 200)
        ran = self.hand_over(gateway, transport=gone)
        self.assertEqual((ran.code, ran.json["jobs"]["under_way"]), (5, 2))
        self.assertGreater(sum(self.sleeps), 1800)
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assert_all_once(gateway, SIX[:2])


class GoingOnTest(EngineTest):
    """The same command again."""

    def test_a_run_that_was_killed_at_any_request_is_gone_on_with_and_nothing_is_paid_twice(self) -> None:
        Path("in.png").write_bytes(PNG)
        edit = {"route": "edits", "image": "../in.png"}
        for answered in (False, True):
            for number in range(1, 11):
                with self.subTest(number=number, answered=answered):
                    folder = Path(f"{number}-{answered}")
                    folder.mkdir()
                    os.chdir(folder)
                    self.addCleanup(os.chdir, self.folder)
                    gateway = self.gateway(polls=0)
                    self.jobs(0, {**edit, "id": "a", "prompt": "A"}, {**edit, "id": "b", "prompt": "B"})
                    try:
                        dead = bool(self.hand_over(gateway, transport=Dying(number, answered)).code)
                    except Killed:
                        dead = True
                    ran = self.hand_over(gateway)
                    self.assertEqual(ran.code, 0, ran.err)
                    self.assert_all_once(gateway, ["a.png", "b.png"])
                    self.assertEqual(sum(gateway.billed.values()), 2)
                    os.chdir(self.folder)
            self.assertFalse(dead, "there are more requests than this test looks at")

    def test_no_wait_hands_over_and_the_same_command_collects_also_elsewhere(self) -> None:
        gateway = self.gateway(polls=1)
        self.jobs(3)
        first = self.hand_over(gateway, "--no-wait")
        self.assertEqual((first.code, first.json["jobs"]["under_way"], self.sleeps), (8, 3, []))
        self.assertIn("same command again", first.error["hint"])
        Path("elsewhere").mkdir()
        for name in ("jobs.jsonl", "jobs.jsonl.ledger.jsonl"):
            os.rename(name, Path("elsewhere") / name)
        os.chdir("elsewhere")
        self.addCleanup(os.chdir, self.folder)
        second = self.hand_over(gateway, "--no-wait")
        self.assertEqual(second.code, 8, "it is still in progress")
        last = self.hand_over(gateway)
        self.assertEqual((last.code, last.json["jobs"]["made"]), (0, 3))
        self.assert_all_once(gateway, SIX[:3])
        self.assertEqual(self.asked(gateway).count("POST /batches"), 1)
        self.assertEqual(self.hand_over(gateway).json["jobs"]["made_before"], 3)

    def test_cancel_ends_what_is_under_way_and_collects_what_is_finished(self) -> None:
        gateway = self.gateway(polls=3)
        self.jobs(6)
        self.assertEqual(self.hand_over(gateway, "--no-wait").code, 8)
        for _ in range(2):
            self.assertEqual(self.hand_over(gateway, "--no-wait").code, 8)
        ran = self.run_main("batch", "jobs.jsonl", *SMALL, "--cancel", gateway=gateway)
        done = sum(gateway.billed.values())
        self.assertTrue(0 < done < 6)
        self.assertEqual((ran.code, ran.json["jobs"]["made"]), (9, done))
        self.assertIn("POST /batches/*/cancel", self.asked(gateway))
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assert_all_once(gateway, SIX)

    def test_single_calls_leave_alone_what_is_under_way_at_the_vendor(self) -> None:
        gateway = self.gateway(polls=1)
        self.jobs(2)
        self.assertEqual(self.hand_over(gateway, "--no-wait").code, 8)
        ran = self.run_main("batch", "jobs.jsonl", *SMALL, gateway=gateway)
        self.assertEqual((ran.code, ran.error["rule"]), (2, "engine-batch"))
        self.assertIn("--engine batch-api", ran.error["hint"])
        again = self.run_main("batch", "jobs.jsonl", *SMALL, "--retry-billable", gateway=gateway)
        self.assertEqual((again.code, again.error["rule"]), (2, "engine-batch"))
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assert_all_once(gateway, SIX[:2])

    def test_the_wait_ends_when_it_is_told_to(self) -> None:
        gateway = self.gateway(polls=9)
        self.jobs(1)
        ran = self.hand_over(gateway, "--wait", "90")
        self.assertEqual((ran.code, ran.json["jobs"]["under_way"]), (8, 1))
        self.assertAlmostEqual(sum(self.sleeps), 90, delta=5)
        for option in (["--no-wait"], ["--wait", "5"]):
            refused = self.run_main("batch", "jobs.jsonl", *SMALL, *option, gateway=gateway)
            self.assertEqual((refused.code, refused.error["rule"]), (2, "usage"))

    def test_cancel_makes_no_batch_of_what_was_not_sent(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(2)
        ran = self.run_main("batch", "jobs.jsonl", *SMALL, "--cancel", gateway=gateway)
        self.assertEqual((ran.code, ran.json["jobs"]["not_started"], gateway.requests), (9, 2, []))

    def test_a_job_that_is_changed_while_it_is_under_way_is_sent_anew_and_its_results_stay(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(2)
        self.hand_over(gateway, "--no-wait")
        Path("jobs.jsonl").write_text(Path("jobs.jsonl").read_text().replace("Lake 2", "Sea 2"))
        ran = self.hand_over(gateway)
        self.assertEqual((ran.code, ran.json["jobs"]["made"]), (0, 2))
        self.assertEqual(dict(gateway.billed), {"Lake 1": 1, "Lake 2": 1, "Sea 2": 1})
        self.assertIn("stay at the server", " ".join(ran.json["warnings"]))
        self.assertEqual(len(gateway.files), 1)

    def test_a_signal_ends_the_wait_with_130_and_loses_nothing(self) -> None:
        gateway = self.gateway(polls=50)
        self.jobs(2)
        with mock.patch.object(gpt_image.ApiBatch, "wait", self.interrupting(gpt_image.ApiBatch.wait)):
            ran = self.hand_over(gateway)
        self.assertEqual((ran.code, ran.json["jobs"]["under_way"]), (130, 2))
        self.assertIn("same command again", ran.error["hint"])
        gateway.batches[next(iter(gateway.batches))].ahead = ["completed"]
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assert_all_once(gateway, SIX[:2])

    def interrupting(self, wait: Any) -> Any:
        """Returns a wait during which Ctrl-C is pressed."""

        def wrapped(batch: Any) -> None:
            sleep = batch.context.sleep

            def pressed(seconds: float) -> None:
                sleep(seconds)
                batch.context.stop.requested = True

            batch.context = batch.context._replace(sleep=pressed)
            wait(batch)

        return wrapped

    def test_a_full_disk_leaves_the_job_under_way_to_be_collected_later(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(2)
        real = gpt_image.TempFiles.place

        def full(files: Any, source: str, target: str, overwrite: bool = False) -> str:
            if target.endswith("lake-2.png"):
                raise OSError(28, "No space left on device")
            return real(files, source, target, overwrite)

        with mock.patch.object(gpt_image.TempFiles, "place", full):
            ran = self.hand_over(gateway)
        self.assertEqual(ran.code, 7, ran.err)
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assert_all_once(gateway, SIX[:2])
        self.assertEqual(sum(gateway.billed.values()), 2)


class LinesTest(EngineTest):
    """What is sent."""

    def test_jobs_are_grouped_by_route_and_model_and_each_picture_is_uploaded_once(self) -> None:
        for name in ("a.png", "b.png"):
            Path(name).write_bytes(PNG)
        tool = {"route": "responses", "model": "gpt-5.4", "tool-model": "small"}
        edit = {"route": "edits", "prompt": "Edit"}
        self.jobs(
            2, {"id": "other", "prompt": "Other", "model": "other"}, {**edit, "id": "e1", "image": "a.png"},
            {**edit, "id": "e2", "image": ["b.png", "https://example.com/c.png"], "mask-box": "0,0,16,16"},
            {**tool, "id": "r1", "prompt": "Talk", "input-image": "a.png"},
        )  # fmt: skip
        gateway = self.gateway(polls=0)
        ran = self.hand_over(gateway)
        self.assertEqual(ran.code, 0, ran.err)
        uploads = [row for row in gateway.requests if row.path == "/v1/files"]
        purposes = [next(part.value for part in row.form or [] if part.name == "purpose") for row in uploads]
        self.assertEqual(sorted(purposes), ["batch"] * 4 + ["vision"] * 2, "one picture, and one mask")
        lines = [self.lines(row) for row, purpose in zip(uploads, purposes) if purpose == "batch"]
        kinds = sorted((rows[0]["url"], rows[0]["body"]["model"], len(rows)) for rows in lines)
        images = "/v1/images/generations"
        expected = [("/v1/images/edits", "small", 2), (images, "other", 1), (images, "small", 2), ("/v1/responses", "gpt-5.4", 1)]
        self.assertEqual(kinds, expected)
        edits = next(rows for rows in lines if rows[0]["url"] == "/v1/images/edits")
        self.assertEqual(edits[0]["body"]["images"][0]["file_id"], edits[1]["body"]["images"][0]["file_id"])
        self.assertEqual(edits[1]["body"]["images"][1], {"image_url": "https://example.com/c.png"})
        self.assertEqual(set(edits[1]["body"]["mask"]), {"file_id"})
        self.assertEqual([row["custom_id"] for row in edits], ["e1", "e2"])
        self.assertEqual(gateway.files, {})

    def test_batches_keep_below_what_a_download_holds(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(6)
        with mock.patch.object(gpt_image, "MOST_IN_BATCH", 4 * 48 * 32 * 1.6 + 1000):
            self.assertEqual(self.hand_over(gateway).code, 0)
        sizes = [len(self.lines(row)) for row in gateway.requests if row.path == "/v1/files"]
        self.assertEqual(sizes, [4, 2])
        self.assert_all_once(gateway, SIX)

    def test_several_pictures_of_a_job_and_a_long_id(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(0, {"id": "x" * 90, "prompt": "Three", "n": 3, "output": "out/three.png"})
        self.assertEqual(self.hand_over(gateway).code, 0)
        self.assertEqual(self.files("out"), ["three-1.png", "three-2.png", "three-3.png"])

    def test_the_results_are_those_of_single_calls_at_half_the_price(self) -> None:
        gateway = self.gateway(polls=0)
        Path("jobs.txt").write_text("A lake\n")
        options = ("--size", "1024x1024", "--quality", "low")
        handed = self.run_main(
            "batch", "jobs.txt", "--engine", "batch-api", *options, "--output", "a/", "--ledger", "a.ledger", gateway=gateway
        )
        single = self.run_main("generations", "A lake", *options, "--output", "b.png", gateway=gateway)
        self.assertEqual(handed.json["cost"]["usd"], round(single.json["cost"]["usd"] / 2, 4))
        row = next(json.loads(line) for line in Path("a.ledger").read_text().splitlines() if '"result"' in line)
        result = row["result"]
        self.assertEqual(set(result), set(single.json))
        for name in ("ok", "route", "model", "usage", "settled", "error"):
            self.assertEqual(result[name], single.json[name], name)
        self.assertEqual(result["images"][0]["sha256"], hashlib.sha256(Path("a/1.png").read_bytes()).hexdigest())

    def test_a_dry_run_shows_the_first_line_and_sends_and_writes_nothing(self) -> None:
        Path("in.png").write_bytes(PNG)
        self.jobs(2, {"id": "e", "route": "edits", "prompt": "Edit", "image": "in.png", "mask-box": "0,0,16,16"})
        before = self.files()
        argv = ("batch", "jobs.jsonl", "--engine", "batch-api", *SMALL, "--dry-run")
        ran = self.run_main(*argv, env={"OPENAI_API_KEY": ""})
        self.assertEqual((ran.code, ran.json["jobs"]["run"], ran.json["batches"]), (0, 3, 2), ran.err)
        self.assertEqual(ran.json["first"]["custom_id"], "lake-1")
        self.assertEqual(ran.json["first"]["url"], "/v1/images/generations")
        self.assertEqual(self.files(), before)

    def test_a_dry_run_counts_half_the_price_and_what_is_under_way(self) -> None:
        gateway = self.gateway(polls=1)
        self.jobs(2)
        options = ("--model", "gpt-image-2", "--size", "1024x1024", "--quality", "low")
        self.assertEqual(self.hand_over(gateway, *options, "--no-wait").code, 8)
        self.jobs(3)
        dry = self.hand_over(gateway, *options, "--dry-run").json
        self.assertEqual((dry["jobs"]["under_way"], dry["jobs"]["run"], dry["batches"]), (2, 1, 1))
        calls = self.run_main("batch", "jobs.jsonl", *SMALL, *options, "--ledger", "none", "--dry-run").json
        self.assertEqual(dry["estimate"]["usd"], round(calls["estimate"]["usd"] / 6, 4))

    def test_max_cost_holds_for_what_is_under_way_too(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(5)
        options = ("--model", "gpt-image-2", "--size", "1024x1024", "--quality", "low", "--max-cost", "0.008")
        ran = self.hand_over(gateway, *options)
        self.assertEqual((ran.code, ran.error["rule"], ran.json["jobs"]["made"]), (9, "max-cost", 2), ran.err)
        self.assertLessEqual(ran.json["cost"]["usd"], 0.008)

    def test_what_no_line_can_ask_for_is_refused_with_its_job_before_anything_is_sent(self) -> None:
        Path("in.png").write_bytes(PNG)
        Path("marks.png").write_bytes(pictures.picture(b"in", "png", 32, 32))
        table: Dict[str, Dict[str, Any]] = {
            "stream": {"stream": True},
            "background-mode": {"route": "responses", "model": "gpt-5.4", "background-mode": True},
            "markup": {"route": "edits", "image": "in.png", "markup": "marks.png"},
            "mask": {"route": "edits", "image": "in.png", "mask": "auto"},
            "save-response": {"save-response": "reply.json"},
            "protocol": {"protocol": "openai_chat", "size": "auto"},
            "model": {"model": "gpt-image-2.6-flare", "size": "1024x1024"},
        }
        self.jobs(0, *({"id": name, "prompt": "P", **more} for name, more in table.items()))
        ran = self.run_main(
            "batch", "jobs.jsonl", "--engine", "batch-api", "--model", "small", "--output", "out/{id}.png", "--dry-run"
        )
        self.assertEqual(ran.code, 2)
        rows = [row["message"] for row in ran.error["problems"] if row["rule"] == "engine-batch"]
        self.assertEqual(len(rows), len(table), ran.err)
        for name, words in zip(table, rows):
            self.assertIn(name, words)

    def test_no_validate_sends_a_model_that_third_parties_say_is_not_taken(self) -> None:
        gateway = self.gateway(polls=0)
        self.jobs(1)
        ran = self.hand_over(gateway, "--model", "gpt-image-2.6-flare", "--size", "1024x1024", "--no-validate")
        self.assertEqual(ran.code, 9)
        self.assertIn("not supported by the Batch API", self.results()["lake-1"]["error"]["message"])

    def test_the_key_stands_in_no_file_and_progress_tells_the_state_of_the_batch(self) -> None:
        gateway = self.gateway(polls=1)
        self.jobs(2)
        ran = self.hand_over(gateway, "--progress", "json")
        told = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
        self.assertTrue(all(row["phase"] == "batch" for row in told), ran.err)
        self.assertRegex(told[0]["left"], r"batch_\S+ is \w+, \d of 2 answered")
        self.assert_no_key(ran, [KEY])


if __name__ == "__main__":
    unittest.main()
