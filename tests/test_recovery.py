"""What a failed call leaves to recover from: a command that finds something, or none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Dict, Iterator, List

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, reply

A, B, C, D = (pictures.picture(b"recover %d" % number, "png", 48, 32) for number in range(4))


def text_of(data: bytes) -> str:
    """Returns bytes in base64."""
    return base64.b64encode(data).decode()


def images(*finals: bytes) -> bytes:
    """Returns a reply of the images routes."""
    return json.dumps({"created": 1, "data": [{"b64_json": text_of(data)} for data in finals]}).encode()


def message(kind: str, words: str) -> Dict[str, Any]:
    """Returns a response that answers in words: `output_text` or `refusal`."""
    part = {"type": kind, "refusal" if kind == "refusal" else "text": words}
    item = {"type": "message", "id": "msg_1", "content": [part]}
    return {"id": "resp_1", "object": "response", "status": "completed", "output": [item]}


class RecoveryTest(ProgramTest):
    """Calls that fail behind a 2xx, and what `extract` finds in what they kept."""

    def failed(self, body: bytes, *options: str, route: str = "generations") -> Ran:
        """Makes a call that the given reply makes fail."""
        ran = self.run_main(route, "x", "--output", "p.png", *options, transport=FakeTransport(reply(body)))
        self.assertNotEqual(ran.code, 0, ran.err)
        return ran

    def recovered(self, ran: Ran) -> Ran:
        """Runs the recovery command of a failed call."""
        return self.run_main(*shlex.split(ran.error["recovery"])[2:])

    def assert_on_disk(self, rows: List[Dict[str, Any]], *finals: bytes) -> None:
        """Asserts that rows of a result name these pictures, as they are on disk."""
        self.assertEqual([Path(row["path"]).read_bytes() for row in rows], list(finals))
        self.assertEqual([row["sha256"] for row in rows], [hashlib.sha256(data).hexdigest() for data in finals])

    def test_the_command_holds_no_name_that_begins_with_a_dash(self) -> None:
        cut = reply(b'{"data": [{"b64_json": "' + base64.b64encode(pictures.picture(b"x", "png", 64, 64))[:-99])
        ran = self.run_main("generations", "x", "-o", "./-dash.png", transport=FakeTransport(cut))
        words = shlex.split(ran.error["recovery"])[2:]
        self.assertEqual(words, ["extract", "./-dash.reply", "--output", "./-dash.png"])

    def test_what_is_there_already_is_named_and_not_written_again(self) -> None:
        ran = self.failed(images(A, B, C, D)[: -len(text_of(C)) - len(text_of(D))], "--n", "4")
        before = self.files()
        for _ in range(2):
            again = self.recovered(ran)
            self.assertEqual((again.code, self.files()), (0, before), again.err)
            self.assertEqual([row["path"] for row in again.json["images"]], ["p-1.png", "p-2.png"])
            self.assertEqual([row["new"] for row in again.json["images"]], [False, False])
            self.assertIn("p-2.png is already there", again.err)
        Path("p-2.png").unlink()
        again = self.recovered(ran)
        self.assertEqual([row["new"] for row in again.json["images"]], [False, True])
        self.assert_on_disk(again.json["images"], A, B)

    def test_a_second_extract_adds_nothing(self) -> None:
        for finals in ((A,), (A, B), (A, A)):
            with self.subTest(pictures=len(finals), different=len(set(finals))):
                Path("kept.json").write_bytes(images(*finals))
                first = self.run_main("extract", "kept.json", "--output", f"{len(set(finals))}{len(finals)}/o.png")
                before = self.files()
                again = self.run_main("extract", "kept.json", "--output", f"{len(set(finals))}{len(finals)}/o.png")
                self.assertEqual((first.code, again.code, self.files()), (0, 0, before), again.err)
                self.assert_on_disk(first.json["images"], *finals)
                self.assert_on_disk(again.json["images"], *finals)

    def test_another_picture_or_file_by_that_name_is_refused_and_stays(self) -> None:
        Path("kept.json").write_bytes(images(A))
        for mine in (B, b"mine", b""):
            with self.subTest(mine=mine[:4]):
                Path("o.png").write_bytes(mine)
                ran = self.run_main("extract", "kept.json", "--output", "o.png")
                self.assertEqual((ran.code, Path("o.png").read_bytes()), (7, mine))

    def test_a_page_a_refusal_and_an_answer_in_words_get_no_command(self) -> None:
        error = b'{"error": {"message": "Blocked.", "code": "moderation_blocked"}}'
        stream = b'data: {"type": "error", "error": {"message": "Blocked.", "code": "moderation_blocked"}}\n\n'
        words = json.dumps(message("output_text", "I can only talk.")).encode()
        for name, body, route in (
            ("a page", b"<!DOCTYPE html><html><title>Hello</title></html>", "generations"),
            ("an error", error, "generations"), ("an error event", stream, "generations"),
            ("words", words, "responses"), ("words, refusing", json.dumps(message("refusal", "No.")).encode(), "responses"),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.failed(body, route=route)
                self.assertIsNone(ran.error["recovery"])
                self.assertNotIn("extract", ran.err)
                self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)

    def test_a_command_pastes_into_cmd_exe_and_into_powershell(self) -> None:
        cut = images(A, B)[:-100]
        for output, kept, recovered in (
            ("out/it's 50 % & more.png", "\"out/it's 50 % & more.reply\"", "\"out/it's 50 % & more-recovered.png\""),
            # Only PowerShell expands these, so only it needs their escape.
            ("out/a$HOME`x“.png", '"out/a`$HOME``x`“.reply"', '"out/a`$HOME``x`“-recovered.png"'),
            ("out/plain-1.png", "out/plain-1.reply", "out/plain-1-recovered.png"),
        ):
            with self.subTest(output), unittest.mock.patch.object(sys, "argv", ["/my tools/gpt_image.py"]):
                with unittest.mock.patch.object(os, "name", "nt"):
                    ran = self.run_main("generations", "x", "--output", output, transport=FakeTransport(reply(cut)))
                words = f'python "/my tools/gpt_image.py" extract {kept} --output {recovered}'
                self.assertEqual(ran.error["recovery"], words)
                self.assertIn(words, ran.err)

    def test_an_id_of_the_server_runs_nothing_where_the_command_is_pasted(self) -> None:
        for name, evil, word in (
            ("nt", 'resp_"&calc&"$(calc)', '"resp_&calc&`$(calc)"'), ("nt", "resp_”;calc", '"resp_`”;calc"'),
            ("nt", "resp_1'&calc", "\"resp_1'&calc\""), ("posix", "resp_$(calc)'x", "'resp_$(calc)'\"'\"'x'"),
        ):  # fmt: skip
            with self.subTest(evil), unittest.mock.patch.object(os, "name", name):
                self.assertEqual(gpt_image.program("resume", evil).partition(" resume ")[2], word)

    @unittest.skipUnless(os.name == "posix", "a name of any bytes")
    def test_a_command_finds_a_file_whose_name_is_no_text(self) -> None:
        for output in (b"caf\xe9 \\0101'.png", b"\xff%s$(id).png"):
            with self.subTest(output), unittest.mock.patch.object(sys, "argv", ["gpt-image"]):
                # Not every file system takes such a name, so only the words that reach a program are looked at.
                command = gpt_image.program("extract", os.fsdecode(output))
                self.assertTrue(command.isprintable(), command)
                done = subprocess.run(["sh", "-c", command.replace("gpt-image", "printf '%s|'", 1)], capture_output=True)
                self.assertEqual((done.stdout, done.stderr), (b"extract|" + output + b"|", b""))

    def test_a_refusal_that_holds_the_picture_is_kept_for_it(self) -> None:
        event = json.dumps({"type": "image_edit.completed", "b64_json": text_of(A)})
        words = {"error": {"message": f"litellm.APIConnectionError: data: {event}"}}
        for body, size in ((json.dumps(words).encode(), 0), (json.dumps(words).encode(), 7)):
            transport = FakeTransport(reply(body, 500, size=size))
            ran = self.run_main("generations", "x", "--output", "p.png", "--overwrite", transport=transport)
            self.assertEqual((ran.code, ran.error["may_be_billed"], len(transport.requests)), (5, True, 1))
            self.assert_on_disk(self.recovered(ran).json["unclaimed"], A)
        for message in ("no", "iVBORw0KGgo is how a PNG begins"):
            ran = self.run_main("generations", "x", "--output", "q.png", transport=FakeTransport(
                reply({"error": {"message": message}}, 400)))  # fmt: skip
            self.assertEqual((ran.code, ran.error["recovery"], ran.json["saved_response"]), (4, None, None))

    def test_a_refusal_gets_no_hint_to_ask_for_a_picture(self) -> None:
        chat = json.dumps({"choices": [{"message": {"content": None, "refusal": "No."}}]}).encode()
        for body in (json.dumps(message("refusal", "No.")).encode(), chat):
            ran = self.failed(body, route="responses")
            self.assertEqual((ran.code, ran.error["hint"], ran.json["text"]), (6, None, "No."))
            self.assertIn("refused", ran.error["message"])
        ran = self.failed(json.dumps(message("output_text", "Hello.")).encode(), route="responses")
        self.assertIn("say in the prompt", ran.error["hint"])

    def test_pictures_beside_an_error_keep_the_command(self) -> None:
        body = images(A)[:-1] + b', "error": {"message": "Sorry.", "code": "server_error"}}'
        ran = self.failed(body)
        self.assertEqual(self.recovered(ran).json["images"][0]["path"], "p.png")

    def test_replies_that_stand_in_another_object_are_read(self) -> None:
        response = {"id": "resp_1", "object": "response", "output": [
            {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": text_of(B)}]}  # fmt: skip
        line = {"id": "batch_req_1", "custom_id": "1", "response": {"status_code": 200, "body": json.loads(images(A))}, "error": None}
        other = {"custom_id": "2", "response": {"status_code": 200, "body": response}, "error": None}
        for name, body, finals in (
            ("a batch's output", [line, other], (A, B)), ("one line of it", [other], (B,)),
            ("a response that is wrapped", [{"response": response}], (B,)), ("a body", [{"body": json.loads(images(A, B))}], (A, B)),
        ):  # fmt: skip
            with self.subTest(name):
                Path("kept.jsonl").write_text("\n".join(map(json.dumps, body)))
                ran = self.run_main("extract", "kept.jsonl", "--output", f"{name}/o.png")
                self.assertEqual((ran.code, ran.json["unclaimed"]), (0, []), ran.err)
                self.assert_on_disk(ran.json["images"], *finals)

    def test_what_a_batch_says_of_a_failed_line_is_said(self) -> None:
        line = {"custom_id": "1", "response": {"status_code": 400, "body": {"error": {"message": "Blocked.", "code": "moderation_blocked"}}}}
        Path("kept.jsonl").write_text(json.dumps(line))
        ran = self.run_main("extract", "kept.jsonl", "--output", "o.png")
        self.assertEqual((ran.code, ran.error["code"]), (4, "moderation_blocked"))

    def test_the_finished_picture_of_a_background_response_can_be_collected_after_its_download_was_cut(self) -> None:
        done = {"id": "resp_1", "object": "response", "status": "completed", "output": [
            {"type": "image_generation_call", "id": "ig_1", "result": text_of(A)}]}  # fmt: skip
        body = json.dumps(done).encode()

        def chunks(error: BaseException) -> Iterator[bytes]:
            yield body.replace(b'"output"', b'"later": 1, "output"')[:200]
            raise error

        for number, error in enumerate((KeyboardInterrupt(), ConnectionError("cut"))):
            with self.subTest(type(error).__name__):
                queued = reply({"id": "resp_1", "object": "response", "status": "queued"})
                cut = [gpt_image.Reply(200, {}, chunks(error)) for _ in range(1000)]
                options = ("--background-mode", "--output", f"{number}.png", "--save-response", f"{number}.json")
                ran = self.run_main("responses", "x", *options, transport=FakeTransport(queued, *cut))
                self.assertEqual(ran.code, 8 if number else 130)
                self.assertTrue(ran.error["may_be_billed"])
                self.assertIn("resume", ran.error["recovery"])
                again = self.run_main(*shlex.split(ran.error["recovery"])[2:], transport=FakeTransport(reply(body)))
                self.assertEqual(again.code, 0, again.err)
                self.assert_on_disk(again.json["images"], A)

    def test_an_extracted_reply_is_not_kept_again(self) -> None:
        Path("kept.json").write_bytes(images(A))
        with unittest.mock.patch.object(gpt_image.KeptReply, "keep", side_effect=AssertionError):
            ran = self.run_main("extract", "kept.json", "--output", "o.png")
        self.assertEqual((ran.code, ran.json["saved_response"]), (0, None))

    def test_extract_with_overwrite_never_replaces_a_picture_of_the_same_reply(self) -> None:
        Path("r").write_bytes(images(A, B, C))
        for there in ({"x-1.png": B}, {"x-2.png": A}, {"x-1.png": C, "x-3.png": A}, {"y.png": B}):
            with self.subTest(there.keys()):
                for path in self.folder.glob("*.png"):
                    path.unlink()
                for name, data in there.items():
                    Path(name).write_bytes(data)
                ran = self.run_main("extract", "r", "--output", "x.png", "--overwrite")
                self.assertEqual(ran.code, 0, ran.err)
                self.assert_on_disk(ran.json["images"], A, B, C)
                before = self.files()
                again = self.run_main("extract", "r", "--output", "x.png", "--overwrite")
                self.assertEqual((again.code, self.files()), (0, before))
                self.assert_on_disk(again.json["images"], A, B, C)

    def test_equal_pictures_are_told_apart_by_their_files(self) -> None:
        Path("r").write_bytes(images(A, A))
        for _ in range(2):
            ran = self.run_main("extract", "r", "--output", "x.png")
            self.assertEqual([row["path"] for row in ran.json["images"]], ["x-1.png", "x-2.png"])

    def test_a_neighbour_that_cannot_be_read_is_no_matter(self) -> None:
        Path("r").write_bytes(images(A))
        Path("other.png").write_bytes(bytes(len(A)))
        with unittest.mock.patch.object(gpt_image, "blocks_of", side_effect=self.refuse(gpt_image.blocks_of)):
            ran = self.run_main("extract", "r", "--output", "x.png")
        self.assertEqual((ran.code, [row["path"] for row in ran.json["images"]]), (0, ["x.png"]), ran.err)

    def refuse(self, whole: Any) -> Any:
        """Returns a reader that may not read the one neighbour."""

        def read(file: Any) -> Any:
            if os.path.basename(file.name) == "other.png":
                raise PermissionError(13, "Permission denied")
            return whole(file)

        return read

    def test_a_name_that_is_taken_leaves_no_other_file_behind(self) -> None:
        Path("r").write_bytes(images(A))
        Path("x.png").write_bytes(B)
        ran = self.run_main("extract", "r", "--output", "x.png")
        self.assertEqual((ran.code, self.files(), ran.json["images"]), (7, ["r", "x.png"], []))


if __name__ == "__main__":
    unittest.main()
