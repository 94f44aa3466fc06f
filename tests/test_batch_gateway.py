"""Files, batches and crowds of calls at the stand-in gateway, which must be right itself, as its single routes are."""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import socket
import time
import unittest
from typing import Any

from tests import gateway as stand_in
from tests import pictures
from tests.gateway import Gateway, Storm
from tests.test_gateway_itself import (
    EDITS,
    FORM_TYPE,
    GENERATIONS,
    HEAD,
    RESPONSES,
    SMALL,
    TALK,
    GatewayCase,
    Outcome,
    ask,
    file_part,
    post,
)
from tests.wire import Fields

FILES, BATCHES = "/v1/files", "/v1/batches"
PNG = pictures.picture(b"in", "png", 32, 32)
Texts = tuple[tuple[str, str], ...]
FOR_BATCH: Texts = (("purpose", "batch"),)
DAY: Texts = (("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "86400"))


def upload_form(texts: Texts, *files: tuple[str, bytes]) -> bytes:
    """The form of an upload."""
    parts = [(f'name="{name}"', value.encode()) for name, value in texts]
    text = b"--xXx\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
    return b"".join(text % (head.encode(), data) for head, data in (*parts, *files)) + b"--xXx--\r\n"


def jsonl(data: bytes, name: str = "jobs.jsonl", kind: str = "application/jsonl") -> tuple[str, bytes]:
    """A batch file as `upload_form` wants it."""
    return file_part("file", data, kind, name)


def line(number: int, body: Fields | None = None, url: str = GENERATIONS, **more: Any) -> Fields:
    """One request of a batch."""
    fields = {"custom_id": f"job-{number}", "method": "POST", "url": url}
    return {**fields, "body": {**SMALL, "prompt": f"Lake {number}", **(body or {})}, **more}


def text_of(lines: list[Fields]) -> bytes:
    """A batch file."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in lines)


class BatchCase(GatewayCase):
    """A test that uploads files and makes batches."""

    def upload(self, gateway: Gateway, data: bytes, texts: Texts = FOR_BATCH) -> Outcome:
        part = jsonl(data) if texts[0][1] == "batch" else file_part("file", data)
        return ask(gateway, "POST", FILES, upload_form(texts, part), FORM_TYPE)

    def create(self, gateway: Gateway, lines: list[Fields] | bytes, url: str = GENERATIONS, **more: Any) -> Outcome:
        name = self.upload(gateway, lines if isinstance(lines, bytes) else text_of(lines)).json["id"]
        return self.make(gateway, name, url, **more)

    def make(self, gateway: Gateway, name: str, endpoint: str = GENERATIONS, **more: Any) -> Outcome:
        body = {"input_file_id": name, "endpoint": endpoint, "completion_window": "24h", **more}
        return post(gateway, BATCHES, body)

    def poll(self, gateway: Gateway, name: str) -> list[Fields]:
        """Polls up to the end; returns the documents."""
        seen: list[Fields] = []
        while not seen or seen[-1]["status"] not in ("completed", "failed", "expired", "cancelled"):
            seen.append(ask(gateway, "GET", f"{BATCHES}/{name}").json)
            self.assertLess(len(seen), 20)
        return seen

    def read(self, gateway: Gateway, name: str | None, headers: Fields | None = None) -> Outcome:
        return ask(gateway, "GET", f"{FILES}/{name}/content", headers=headers)

    def results(self, gateway: Gateway, name: str | None) -> list[Fields]:
        """Returns the lines of a file."""
        return [json.loads(row) for row in self.read(gateway, name).body.splitlines()] if name else []

    def run_batch(self, scenario: str) -> tuple[Gateway, Fields, list[Fields], list[Fields]]:
        """Returns a gateway, the last document of a batch of six lines, its results and its errors."""
        gateway = self.start(scenario)
        last = self.poll(gateway, self.create(gateway, [line(number) for number in range(6)]).json["id"])[-1]
        output, errors = (self.results(gateway, last[name]) for name in ("output_file_id", "error_file_id"))
        return gateway, last, output, errors


def ids(rows: list[Fields]) -> list[str]:
    """The ids of result lines."""
    return [row["custom_id"] for row in rows]


ALL = [f"job-{number}" for number in range(6)]


class FilesTest(BatchCase):
    """Uploads and downloads."""

    def test_a_file_is_kept_until_it_is_deleted(self) -> None:
        gateway = self.start()
        data = text_of([line(number) for number in range(3000)])
        document = self.upload(gateway, data, (*FOR_BATCH, *DAY)).json
        shown = (document["bytes"], document["filename"], document["purpose"], document["object"])
        self.assertEqual(shown, (len(data), "jobs.jsonl", "batch", "file"))
        self.assertEqual(document["expires_at"] - document["created_at"], 86_400)
        path = f"{FILES}/{document['id']}"
        self.assertEqual(ask(gateway, "GET", path).json, document)
        self.assertEqual(self.read(gateway, document["id"]).body, data)
        deleted = ask(gateway, "DELETE", path).json
        self.assertEqual(deleted, {"id": document["id"], "object": "file", "deleted": True})
        for method, end in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            self.assertEqual(ask(gateway, method, path + end).status, 404)
        self.assertEqual(gateway.files, {})

    def test_an_upload_is_read_strictly(self) -> None:
        gateway = self.start()
        gateway.limits.batch_bytes = 100
        good, picture = jsonl(b"{}\n"), file_part("file", PNG)
        one, other = DAY
        table: tuple[tuple[Texts, tuple[tuple[str, bytes], ...], int, str], ...] = (
            (FOR_BATCH, (good,), 200, ""),
            (FOR_BATCH, (jsonl(b"{}\n", kind="application/octet-stream"),), 200, ""),
            ((("purpose", "vision"),), (picture,), 200, ""),
            ((("purpose", "user_data"), *DAY), (picture,), 200, ""),
            ((), (good,), 400, "purpose"),
            ((("purpose", "assistants"),), (good,), 400, "purpose"),
            ((("purpose", "vision"),), (good,), 400, "file"),
            ((("purpose", "vision"),), (file_part("file", PNG, "image/jpeg"),), 400, "file"),
            (FOR_BATCH, (jsonl(b"{}\n", "jobs.txt"),), 400, "file"),
            (FOR_BATCH, (jsonl(b"{}\n", kind="text/csv"),), 400, "file"),
            (FOR_BATCH, (jsonl(b""),), 400, "file"),
            (FOR_BATCH, (jsonl(bytes(101)),), 413, "file"),
            (FOR_BATCH, (), 400, "file"),
            (FOR_BATCH, (good, good), 400, "file"),
            (FOR_BATCH, (good, ('name="model"', b"x")), 400, "file"),
            (FOR_BATCH * 2, (good,), 400, "file"),
            ((*FOR_BATCH, ("user", "me")), (good,), 400, ""),
            ((*FOR_BATCH, one), (good,), 400, "expires_after"),
            ((*FOR_BATCH, other), (good,), 400, "expires_after"),
            ((*FOR_BATCH, one, ("expires_after[seconds]", "3599")), (good,), 400, "expires_after[seconds]"),
            ((*FOR_BATCH, one, ("expires_after[seconds]", "1e5")), (good,), 400, "expires_after[seconds]"),
        )  # fmt: skip
        for texts, files, status, param in table:
            with self.subTest(str(texts), files=[head[:50] for head, _ in files]):
                out = ask(gateway, "POST", FILES, upload_form(texts, *files), FORM_TYPE)
                self.assertEqual(out.status, status, out.body)
                if status != 200 and param:
                    self.assertEqual(out.json["error"]["param"], param)
        self.assertEqual(ask(gateway, "POST", FILES, SMALL).status, 400)

    def test_pictures_cannot_be_downloaded(self) -> None:
        gateway = self.start()
        name = self.upload(gateway, PNG, (("purpose", "vision"),)).json["id"]
        self.assertEqual(self.read(gateway, name).status, 400)

    def test_ranges_are_served_where_they_are_offered(self) -> None:
        for scenario, same in (("batch-cut-ranges", 206), ("batch-cut-weak-etag", 200), ("batch-cut-new-etag", 200)):
            gateway = self.start(scenario)
            name = self.upload(gateway, b"0123456789").json["id"]
            first = self.read(gateway, name)
            self.assertEqual((first.body, first.broken), (b"01234", "cut"))
            self.assertEqual((first.headers["accept-ranges"], first.headers["content-length"]), ("bytes", "10"))
            etag = first.headers["etag"]
            self.assertEqual(etag.startswith("W/"), scenario == "batch-cut-weak-etag")
            out = self.read(gateway, name, {"Range": "bytes=5-", "If-Range": etag})
            self.assertEqual(out.status, same)
        gateway = self.start("batch-cut-ranges")
        name, got = self.upload(gateway, b"0123456789").json["id"], b""
        ranges = []
        while len(got) < 10:
            out = self.read(gateway, name, {"Range": f"bytes={len(got)}-"})
            got += out.body
            ranges.append(out.headers["content-range"])
        self.assertEqual((got, ranges[:2]), (b"0123456789", ["bytes 0-9/10", "bytes 5-9/10"]))
        self.assertEqual(self.read(gateway, name, {"Range": "bytes=10-"}).status, 416)
        self.assertEqual(self.read(gateway, name, {"Range": "bytes=2-3", "If-Range": '"other"'}).status, 200)
        plain = self.start()
        out = self.read(plain, self.upload(plain, b"0123456789").json["id"], {"Range": "bytes=5-"})
        self.assertEqual((out.status, out.body), (200, b"0123456789"))
        self.assertNotIn("accept-ranges", out.headers)


class BatchesTest(BatchCase):
    """What a batch is held to, and what comes of it."""

    def test_a_batch_goes_through_its_states_and_answers_as_the_single_route_does(self) -> None:
        gateway = self.start()
        lines = [line(number, {"n": 2} if number == 1 else {}) for number in range(6)]
        name = self.create(gateway, lines, metadata={"ledger": "a"}).json["id"]
        seen = self.poll(gateway, name)
        self.assertEqual([row["status"] for row in seen], ["in_progress", "in_progress", "finalizing", "completed"])
        self.assertEqual([row["request_counts"]["completed"] for row in seen], [2, 4, 6, 6])
        last = seen[-1]
        self.assertEqual((last["request_counts"]["total"], last["error_file_id"]), (6, None))
        self.assertEqual((last["metadata"], last["id"], last["endpoint"]), ({"ledger": "a"}, name, GENERATIONS))
        rows = self.results(gateway, last["output_file_id"])
        self.assertEqual(sorted(ids(rows)), ALL)
        self.assertNotEqual(ids(rows), ALL)
        for row in rows:
            asked = next(item["body"] for item in lines if item["custom_id"] == row["custom_id"])
            answer, body = row["response"], post(gateway, GENERATIONS, asked).json
            self.assertEqual((answer["status_code"], row["error"], answer["request_id"][:4]), (200, None, "req_"))
            self.assertEqual({**answer["body"], "created": 0}, {**body, "created": 0})
        about = ask(gateway, "GET", f"{FILES}/{last['output_file_id']}").json
        content = self.read(gateway, last["output_file_id"])
        self.assertEqual((about["purpose"], about["bytes"]), ("batch_output", len(content.body)))
        self.assertEqual(gateway.billed["Lake 3"], 2)
        self.assertEqual(gateway.posted["Lake 3"], 1)

    def test_responses_and_edits_run_too_and_files_must_be_there(self) -> None:
        gateway = self.start(polls=0)
        name = self.upload(gateway, PNG, (("purpose", "vision"),)).json["id"]
        url = "data:image/png;base64," + base64.b64encode(PNG).decode()
        talk = {**TALK, "input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-gone"}]}]}
        table = (
            (EDITS, {**SMALL, "images": [{"file_id": name}, {"image_url": url}]}, 200),
            (EDITS, {**SMALL, "images": [{"file_id": "file-gone"}]}, 400),
            (EDITS, {**SMALL, "images": [{"image_url": url}], "mask": {"file_id": "file-gone"}}, 400),
            (RESPONSES, TALK, 200),
            (RESPONSES, talk, 400),
            (GENERATIONS, {**SMALL, "seed": 1}, 400),
            (GENERATIONS, {**SMALL, "model": "gpt-image-2.6-sunburst", "size": "1024x1024"}, 400),
        )
        for endpoint, body, status in table:
            with self.subTest(str(body)[:80]):
                lines = [{**line(1), "url": endpoint, "body": body}]
                last = self.poll(gateway, self.create(gateway, lines, endpoint).json["id"])[-1]
                self.assertEqual((last["status"], last["output_file_id"] is None), ("completed", status != 200))
                [row] = self.results(gateway, last["output_file_id"] or last["error_file_id"])
                self.assertEqual((row["response"]["status_code"], row["error"]), (status, None))
                self.assertEqual("error" in row["response"]["body"] and status != 200, status != 200)

    def test_a_file_that_does_not_validate_fails_the_batch(self) -> None:
        gateway = self.start(polls=0)
        gateway.limits.lines = 3
        good = text_of([line(1)])
        table = (
            (good + b"{\n", "invalid_json_line", 2),
            (b'{"a": NaN, "a": 1}', "invalid_json_line", 1),
            (b"\n" + good, "invalid_json_line", 1),
            (good + good, "duplicate_custom_id", 2),
            (good + text_of([line(2, {"model": "other"})]), "mismatched_model", 2),
            (text_of([line(1, url=EDITS)]), "invalid_url", 1),
            (text_of([line(1, url="/images/generations")]), "invalid_url", 1),
            (text_of([line(1, method="GET")]), "invalid_method", 1),
            (text_of([line(1, custom_id=7)]), "invalid_value", 1),
            (text_of([line(1, note="x")]), "missing_required_parameter", 1),
            (text_of([line(1, {"model": None})]), "missing_required_parameter", 1),
            (text_of([line(1, {"stream": True})]), "invalid_value", 1),
            (text_of([line(1, {"partial_images": 1})]), "invalid_value", 1),
            (text_of([line(1, {"tools": [{"partial_images": 1}]})]), "invalid_value", 1),
            (text_of([line(number) for number in range(4)]), "too_many_tasks", None),
        )
        for data, code, number in table:
            with self.subTest(code, number=number):
                last = self.poll(gateway, self.create(gateway, data).json["id"])[-1]
                self.assertEqual((last["status"], last["output_file_id"]), ("failed", None))
                error = last["errors"]["data"][0]
                self.assertEqual((error["code"], error["line"]), (code, number))
        self.assertEqual(gateway.billed, {})

    def test_a_creation_is_checked(self) -> None:
        gateway = self.start()
        name = self.upload(gateway, text_of([line(1)])).json["id"]
        picture = self.upload(gateway, PNG, (("purpose", "vision"),)).json["id"]
        table: tuple[tuple[Fields, str], ...] = (
            ({"input_file_id": "file-1"}, "input_file_id"),
            ({"input_file_id": picture}, "input_file_id"),
            ({"input_file_id": None}, "input_file_id"),
            ({"endpoint": "/images/generations"}, "endpoint"),
            ({"completion_window": "1h"}, "completion_window"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {"a": "x" * 513}}, "metadata"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after[seconds]"),
            ({"output_expires_after": {"seconds": 86400}}, "output_expires_after"),
            ({"priority": 1}, "priority"),
        )
        for fields, param in table:
            with self.subTest(param, **fields):
                body = {"input_file_id": name, "endpoint": GENERATIONS, "completion_window": "24h", **fields}
                out = post(gateway, BATCHES, body)
                self.assertEqual((out.status, out.json["error"]["param"]), (400, param), out.body)
        self.assertEqual(gateway.batches, {})
        life = {"anchor": "created_at", "seconds": 86400}
        self.assertEqual(self.make(gateway, name, metadata=None, output_expires_after=life).status, 200)

    def test_a_list_shows_the_newest_first(self) -> None:
        gateway = self.start()
        name = self.upload(gateway, text_of([line(1)])).json["id"]
        made = [self.make(gateway, name).json["id"] for _ in range(5)][::-1]
        seen: list[str] = []
        while True:
            out = ask(gateway, "GET", f"{BATCHES}?limit=2" + (f"&after={seen[-1]}" if seen else "")).json
            seen += [row["id"] for row in out["data"]]
            if not out["has_more"]:
                break
        self.assertEqual((seen, out["last_id"]), (made, made[-1]))
        for query in ("limit=0", "limit=101", "after=batch_none", "order=asc"):
            self.assertEqual(ask(gateway, "GET", f"{BATCHES}?{query}").status, 400)

    def test_a_cancel_keeps_what_was_done(self) -> None:
        gateway = self.start()
        for polls, done in ((0, 0), (1, 2), (2, 4), (3, 6)):
            with self.subTest(polls=polls):
                name = self.create(gateway, [line(number) for number in range(6)]).json["id"]
                path = f"{BATCHES}/{name}"
                for _ in range(polls):
                    ask(gateway, "GET", path)
                for _ in range(2):
                    self.assertEqual(ask(gateway, "POST", path + "/cancel").json["status"], "cancelling")
                last = self.poll(gateway, name)[-1]
                self.assertEqual((last["status"], last["error_file_id"]), ("cancelled", None))
                self.assertEqual(len(self.results(gateway, last["output_file_id"])), done)
                self.assertEqual(ask(gateway, "POST", path + "/cancel").status, 409)
        self.assertEqual(ask(gateway, "POST", path + "/cancel", {}).status, 400)
        self.assertEqual(ask(gateway, "GET", f"{BATCHES}/batch_none").status, 404)

    def test_waiting_lines_have_a_limit_that_frees_itself(self) -> None:
        gateway = self.start(polls=1)
        gateway.limits.waiting = 3
        first = self.create(gateway, [line(1), line(2)]).json["id"]
        ask(gateway, "GET", f"{BATCHES}/{first}")
        last = self.poll(gateway, self.create(gateway, [line(3), line(4)]).json["id"])[-1]
        self.assertEqual((last["status"], last["errors"]["data"][0]["code"]), ("failed", "token_limit_exceeded"))
        self.poll(gateway, first)
        again = self.create(gateway, [line(3), line(4)]).json["id"]
        self.assertEqual(self.poll(gateway, again)[-1]["status"], "completed")

    def test_many_lines_are_no_trouble(self) -> None:
        gateway = self.start(polls=0, weight=30_000)
        text = b"".join(json.dumps(line(1)).encode().replace(b"job-1", b"job-%d" % n) + b"\n" for n in range(300))
        last = self.poll(gateway, self.create(gateway, text).json["id"])[-1]
        size = ask(gateway, "GET", f"{FILES}/{last['output_file_id']}").json["bytes"]
        self.assertEqual((last["request_counts"]["completed"], size > 29_000_000), (300, True))
        out = ask(gateway, "GET", f"{FILES}/{last['output_file_id']}/content", limit=1 << 20)
        self.assertEqual(json.loads(out.body.partition(b"\n")[0])["response"]["status_code"], 200)


class MishapsTest(BatchCase):
    """The rows of the table that are for batches."""

    def test_how_a_batch_may_end(self) -> None:
        table: tuple[tuple[str, str, int, dict[str, int]], ...] = (
            ("batch-expired", "expired", 3, {"batch_expired": 3}),
            ("batch-expired-empty", "expired", 0, {"batch_expired": 6}),
            ("batch-cancelled", "cancelled", 3, {}),
            ("batch-refused", "completed", 0, {"moderation_blocked": 6}),
            ("batch-some-refused", "completed", 4, {"moderation_blocked": 2}),
            ("batch-refused-in-output", "completed", 6, {}),
            ("batch-failed", "failed", 0, {}),
            ("batch-billing-limit", "failed", 0, {}),
        )
        for scenario, status, done, failed in table:
            with self.subTest(scenario):
                gateway, last, output, errors = self.run_batch(scenario)
                codes = [(row["error"] or row["response"]["body"]["error"])["code"] for row in errors]
                self.assertEqual((last["status"], len(output), collections.Counter(codes)), (status, done, failed))
                self.assertEqual(bool(last["errors"]), status == "failed")
                self.assertEqual((bool(last["output_file_id"]), bool(last["error_file_id"])), (done > 0, bool(failed)))
                self.assertEqual(len(set(ids(output + errors))), len(output + errors))
                self.assertTrue(all(row["response"] is None for row in errors if status == "expired"))
        refused = self.run_batch("batch-refused-in-output")[2]
        self.assertEqual(sorted(row["response"]["status_code"] for row in refused), [200] * 4 + [400] * 2)

    def test_what_may_stand_in_the_results(self) -> None:
        statuses = ("batch-line-html", 502), ("batch-line-null", 200)
        for scenario, status in statuses:
            _, _, output, errors = self.run_batch(scenario)
            rows = [row["response"] for row in output + errors if row["custom_id"] in ("job-2", "job-5")]
            self.assertEqual([row["status_code"] for row in rows], [status] * 2)
            self.assertTrue(all(row["body"] is None or row["body"].startswith("<!DOCTYPE") for row in rows))
        self.assertEqual(len(self.run_batch("batch-line-missing")[2]), 5)
        self.assertEqual(sorted(ids(self.run_batch("batch-line-twice")[2])), sorted(ALL * 2))
        self.assertEqual(ids(self.run_batch("batch-line-unknown")[2])[-1], "stranger")
        for scenario, fault in (("batch-line-cut", json.JSONDecodeError), ("batch-line-noise", UnicodeDecodeError)):
            with self.subTest(scenario):
                gateway = self.start(scenario, polls=0)
                last = self.poll(gateway, self.create(gateway, [line(1), line(2)]).json["id"])[-1]
                first, second, end = self.read(gateway, last["output_file_id"]).body.split(b"\n")
                with self.assertRaises(fault):
                    json.loads(first)
                self.assertEqual((json.loads(second)["error"], end), (None, b""))

    def test_lines_may_be_spaced_and_fields_be_new(self) -> None:
        gateway, last, output, _ = self.run_batch("batch-new-fields")
        about = ask(gateway, "GET", f"{FILES}/{last['output_file_id']}").json
        for document in (last, about, output[0], output[0]["response"]):
            self.assertIn("x_new", document)
        gateway = self.start("batch-lines-spaced", polls=0)
        last = self.poll(gateway, self.create(gateway, [line(1), line(2)]).json["id"])[-1]
        body = self.read(gateway, last["output_file_id"]).body
        self.assertRegex(body, rb"(?s)^{.*}\r\n\r\n{.*}$")
        gateway = self.start("batch-new-status")
        name = self.create(gateway, [line(1)]).json["id"]
        seen = [row["status"] for row in self.poll(gateway, name)]
        self.assertEqual((seen[0], seen[-1]), ("queued_by_region", "completed"))

    def test_what_may_befall_uploads_creations_and_polls(self) -> None:
        # What is there after each was asked for once, how the creation looked, and how it looks when it is repeated.
        table = (
            ("file-upload-lost", 0, (200, ""), 200),
            ("batch-create-lost", 1, (0, "closed"), 200),
            ("batch-create-unmade", 0, (0, "closed"), 200),
            ("batch-create-502", 1, (502, ""), 200),
            ("batch-create-token-limit", 0, (429, ""), 200),
            ("batch-create-billing-limit", 0, (400, ""), 400),
            ("batch-token-limit", 1, (200, ""), 200),
        )
        for scenario, made, first, second in table:
            with self.subTest(scenario):
                gateway = self.start(scenario, polls=0)
                lost = scenario == "file-upload-lost"
                self.assertEqual(self.upload(gateway, text_of([line(1)])).broken, "closed" if lost else "")
                [name] = gateway.files
                if not lost:
                    out = self.make(gateway, name)
                    self.assertEqual((out.status, out.broken), first)
                self.assertEqual(len(gateway.batches), made)
                again = self.make(gateway, name)
                self.assertEqual(again.status, second)
                if second == 200:
                    self.assertEqual(self.poll(gateway, again.json["id"])[-1]["status"], "completed")
        for scenario, status in (("batch-poll-429", 429), ("batch-poll-502", 502), ("batch-poll-closed", 0)):
            gateway = self.start(scenario)
            path = f"{BATCHES}/{self.create(gateway, [line(1)]).json['id']}"
            self.assertEqual([ask(gateway, "GET", path).status for _ in range(3)], [status, status, 200])

    def test_what_may_befall_downloads(self) -> None:
        for scenario, statuses, broken in (("batch-cut-once", [200, 200], ["cut", ""]),
                                           ("batch-cut-always", [200, 200], ["cut", "cut"]),
                                           ("batch-cut-between-lines", [200, 200], ["", ""]),
                                           ("batch-output-gone", [404, 404], ["", ""])):  # fmt: skip
            with self.subTest(scenario):
                gateway = self.start(scenario, polls=0)
                last = self.poll(gateway, self.create(gateway, [line(n) for n in range(4)]).json["id"])[-1]
                seen = [self.read(gateway, last["output_file_id"]) for _ in range(2)]
                self.assertEqual([(out.status, out.broken) for out in seen], list(zip(statuses, broken)))
                if scenario == "batch-cut-between-lines":
                    self.assertEqual([out.body.count(b"\n") for out in seen], [2, 4])
        gateway = self.start("file-delete-fails")
        name = self.upload(gateway, b"{}").json["id"]
        self.assertEqual((ask(gateway, "DELETE", f"{FILES}/{name}").status, list(gateway.files)), (500, [name]))

    def test_every_row_for_batches_is_tried_here(self) -> None:
        with open(__file__, encoding="utf-8") as source:
            text = source.read()
        for row in stand_in.SCENARIOS:
            if row.at:
                self.assertRegex(text, rf'"{row.name}"')


class CrowdTest(GatewayCase):
    """Many calls at once."""

    def until(self, at_work: int, gateway: Gateway) -> None:
        """Waits until so many calls are under way."""
        late = time.monotonic() + 5
        while gateway.studio.at_work != at_work:
            self.assertLess(time.monotonic(), late)
            time.sleep(0.001)

    def crowd(self, gateway: Gateway, count: int) -> list[tuple[int, bytes]]:
        """Begins many calls, and when all are under way, ends one after the other; returns their replies."""
        address, seen, socks = gateway.own.listener.getsockname(), [], []
        for number in range(count):
            body = json.dumps({**SMALL, "prompt": f"Lake {number}"}).encode()
            sock = socket.create_connection(address, 5)
            self.addCleanup(sock.close)
            sock.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            socks.append((sock, body))
        for left, (sock, body) in enumerate(socks):
            self.until(count - left, gateway)
            sock.sendall(body)
            with sock.makefile("rb") as reply:
                seen.append((int(reply.readline().split()[1]), reply.read()))
        return seen

    def test_many_connections_are_held_at_once(self) -> None:
        gateway = self.start(weight=1)
        seen = self.crowd(gateway, 80)
        self.assertEqual(({status for status, _ in seen}, gateway.studio.most), ({200}, 80))
        self.assertEqual(len({hashlib.sha256(data).digest() for data in gateway.pictures}), 80)
        self.assertEqual((set(gateway.posted.values()), len(gateway.billed)), ({1}, 80))

    def test_a_storm_is_the_same_whatever_the_order_and_counts_what_it_bills(self) -> None:
        fates: list[dict[str, list[str]]] = []
        shapes = {"limited": (429, ""), "faults": (500, ""), "deaf": (0, "closed"), "mute": (0, "closed")}
        shapes["cut"] = (200, "cut")
        for order in (1, -1):
            gateway = self.start("storm", weight=1)
            gateway.studio.storm = Storm(7, 0.2, 0.1, 0.1, 0.1, 0.1)
            for number in range(40)[::order]:
                out = post(gateway, GENERATIONS, {**SMALL, "prompt": f"Lake {number}"})
                fate = gateway.studio.fates[f"Lake {number}"][0]
                self.assertEqual((out.status, out.broken), shapes.get(fate, (200, "")), fate)
                self.assertEqual(gateway.billed[f"Lake {number}"], fate in ("mute", "cut", "well"))
                if fate == "limited":
                    self.assertEqual((out.headers["retry-after"], out.headers["retry-after-ms"]), ("1", "20"))
            fates.append(gateway.studio.fates)
        self.assertEqual(fates[0], fates[1])
        self.assertEqual({fate for row in fates[0].values() for fate in row}, {*shapes, "well"})

    def test_prompts_are_counted_on_every_route(self) -> None:
        gateway = self.start()
        form = upload_form((("model", "small"), ("prompt", "A sea"), ("size", "48x32")), file_part("image[]", PNG))
        ask(gateway, "POST", EDITS, form, FORM_TYPE)
        post(gateway, RESPONSES, {**TALK, "input": "A river"})
        post(gateway, RESPONSES, {**TALK, "input": [{"role": "user", "content": "A pond"}]})
        post(gateway, GENERATIONS, {**SMALL, "size": 7})
        self.assertEqual(gateway.posted, {"A sea": 1, "A river": 1, "A pond": 1, "A lake": 1})
        self.assertEqual(gateway.billed, {"A sea": 1, "A river": 1, "A pond": 1})

    def test_a_busy_gateway_shuts_for_a_while(self) -> None:
        for wait, statuses, hasty in ((0, [429] * 4 + [200] * 2, 0), (60_000, [429] * 6, 5)):
            with self.subTest(wait=wait):
                gateway = self.start("busy", weight=1)
                gateway.studio.room, gateway.studio.storm = 2, Storm(wait=wait)
                seen = self.crowd(gateway, 6)
                self.assertEqual(([status for status, _ in seen], gateway.studio.hasty), (statuses, hasty))
                self.assertIn(b"\r\nRetry-After: 60\r\n" if wait else b"\r\nRetry-After: 0\r\n", seen[0][1])


if __name__ == "__main__":
    unittest.main()
