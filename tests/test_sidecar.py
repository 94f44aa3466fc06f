"""The prompt can be found again: `request` in the result, and with --sidecar in a file beside each picture."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, reply
from tests.test_waiting import CALL, COMPLETED, CREATED, DONE, QUEUED, WaitingTest, response

PICTURE = pictures.picture(b"later", "png", 48, 32)
DATA = base64.b64encode(PICTURE).decode()
USAGE = {"input_tokens": 6, "output_tokens": 158, "total_tokens": 164,
         "input_tokens_details": {"image_tokens": 0, "text_tokens": 6}}  # fmt: skip
URL = "https://pictures.example/a,b.png"
LONG = base64.b64encode(os.urandom(900)).decode()


def pictures_of(*names: str) -> Dict[str, Any]:
    """Returns the body of a reply of an Images route, with a picture for each name."""
    data = [{"b64_json": base64.b64encode(pictures.picture(name.encode(), "png", 48, 32)).decode()} for name in names]
    return {"created": 1, "data": data, "usage": USAGE, "size": "1024x1024"}


def hash_of(name: str) -> str:
    """Returns the hash of a file."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


class TheRequest(WaitingTest):
    """`request`: the prompt, the options as they were sent, and the inputs with their hashes."""

    def setUp(self) -> None:
        super().setUp()
        for name in ("a.png", "b.png"):
            Path(name).write_bytes(pictures.picture(name.encode(), "png", 64, 48))
        Path("mask.png").write_bytes(pictures.picture(b"mask", "png", 64, 48, True))

    def request(self, *argv: str, body: Any = None) -> Any:
        """Returns what the result says of the request, with the hashes of inputs checked and left out."""
        fake = FakeTransport(reply(body or pictures_of("x")))
        ran = self.run_main(*argv, "--output", f"{len(self.files())}.png", transport=fake)
        self.assertEqual((ran.code, len(fake.requests)), (0, 1), ran.err)
        found = ran.json["request"]
        for row in found["inputs"]:
            self.assertEqual(row.pop("sha256"), hash_of(row["path"]) if row["kind"] == "file" else None)
        return found

    def test_it_says_what_was_sent_by_whatever_route(self) -> None:
        def given(role: str, kind: str, path: str) -> Dict[str, str]:
            return {"role": role, "kind": kind, "path": path}

        a, b, mask = given("image", "file", "a.png"), given("image", "file", "b.png"), given("mask", "file", "mask.png")
        options = {"model": "gpt-image-2", "size": "1024x1024", "quality": "low"}
        chosen = ("--size", "1024x1024", "--quality", "low")
        rows: Tuple[Tuple[Tuple[str, ...], Dict[str, Any], List[Dict[str, str]]], ...] = (
            (("generations", "x", *chosen, "--n", "1"), {**options, "n": 1}, []),
            (("edits", "x", "--image", "a.png", "--image", "b.png", "--mask", "mask.png", *chosen), options, [a, b, mask]),
            (("edits", "x", "--image", "a.png", "--mask", "auto"), {"model": "gpt-image-2"}, [a, given("mask", "auto", "auto")]),
            (("edits", "x", "--image", URL, *chosen), options, [given("image", "url", URL)]),
            (("edits", "x", "--image", "file_id:file-1", *chosen), options, [given("image", "file_id", "file-1")]),
            (("generations", "x", *chosen, "--extra-json", '{"size": "64x64", "seed": 7}'), {**options, "size": "64x64", "seed": 7}, []),
            (("edits", "x", "--image", "a.png", "--extra-json", '{"seed": 7}'), {"model": "gpt-image-2", "seed": 7}, [a]),
            (("generations", "x", "--protocol", "openai_chat"), {"model": "gpt-image-2"}, []),
            (("edits", "x", "--image", "a.png", "--protocol", "openai_chat", "--user", "u"), {"model": "gpt-image-2", "user": "u"}, [a]),
        )  # fmt: skip
        for argv, sent, inputs in rows:
            with self.subTest(argv=argv):
                self.assertEqual(self.request(*argv), {"prompt": "x", **sent, "inputs": inputs})

    def test_a_response_says_its_model_and_that_of_its_tool(self) -> None:
        found = self.request(
            "responses", "--input-text", "one", "--input-text", "two", "--input-image", "a.png", "--mask", "mask.png",
            "--tool-model", "gpt-image-2", "--quality", "low", "--previous-response-id", "resp_0", "--instructions", "Be brief",
            body=response("completed", CALL),
        )  # fmt: skip
        tool, = found.pop("tools")
        self.assertNotIn("base64,i", tool.pop("input_image_mask")["image_url"])
        self.assertEqual(tool, {"type": "image_generation", "model": "gpt-image-2", "quality": "low"})
        self.assertEqual([row["path"] for row in found.pop("inputs")], ["a.png", "mask.png"])
        self.assertEqual(found, {
            "prompt": "one\ntwo", "model": "gpt-5.4", "previous_response_id": "resp_0", "instructions": "Be brief",
            "tool_choice": {"type": "image_generation"},
        })  # fmt: skip

    def test_a_body_of_the_user_s_own_is_what_was_sent(self) -> None:
        self.assertEqual(self.request("generations", "x", "--extra-json", '{"prompt": "y"}')["prompt"], "y")
        given = self.request("responses", "--extra-json", '{"input": "y"}', body=response("completed", CALL))
        self.assertEqual(given["input"], "y")

    def test_neither_a_key_nor_base64_stands_in_it(self) -> None:
        lines = "\\n".join(LONG[at : at + 76] for at in range(0, len(LONG), 76))
        Path("extra.json").write_text(
            '{"api_key": "sk-from-a-file-0123456789", "raw": "%s", "url": "data:image/png;base64,%s"}' % (LONG, lines)
        )
        ran = self.run_main(
            "responses", "x", "--input-image", f"data:image/png;BASE64,{DATA}", "--extra-json", "@extra.json", "--sidecar",
            "--header", f"X-Relay-Key: {KEY}-2", "--background-mode", "--output", "p.png", "--no-wait",
            transport=FakeTransport(reply(response("queued"))),
        )  # fmt: skip
        self.assertEqual(ran.code, 8, ran.err)
        seen = ran.out + Path("p.session.json").read_text()
        for secret in (KEY, "sk-from-a-file", LONG[:70], LONG[-70:], DATA[:40], DATA[-40:]):
            self.assertNotIn(secret, seen)
        self.assertEqual((ran.json["request"]["raw"], ran.json["request"]["url"]), ("***", "data:image/png;base64,***"))

    def test_words_that_hold_the_beginning_of_a_key_stay(self) -> None:
        prompt = "A desk-lamp-and-notebook, task-oriented-workshop"
        self.assertEqual(self.request("generations", prompt)["prompt"], prompt)

    def test_a_converted_input_is_told_by_the_file_that_was_named(self) -> None:
        Path("a.bmp").write_bytes(b"BM" + bytes(60))

        def convert(path: str, target: str, environ: Any) -> Tuple[str, List[str]]:
            Path(target).write_bytes(Path("a.png").read_bytes())
            return "a program", []

        with mock.patch.object(gpt_image, "convert_to_png", convert):
            found = self.request("edits", "x", "--image", "a.bmp")
        self.assertEqual(found["inputs"], [{"role": "image", "kind": "file", "path": "a.bmp"}])

    def test_resume_knows_it_from_the_session_file_only(self) -> None:
        self.run_main(*QUEUED, "--no-wait", transport=FakeTransport(reply(response("queued"))))
        for target, prompt in (("p.session.json", "A lake"), ("resp_1", None)):
            with self.subTest(target):
                fake = FakeTransport(reply(response("completed", CALL)))
                ran = self.run_main("resume", target, "--output", f"{len(target)}.png", transport=fake)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(ran.json["request"] and ran.json["request"]["prompt"], prompt)
        self.session()
        for odd in ("a text", 5, [1]):  # of another hand
            session = {**json.loads(Path("p.session.json").read_text()), "request": odd}
            Path("p.session.json").write_text(json.dumps(session))
            fake = FakeTransport(reply(response("queued")))
            ran = self.run_main("resume", "p.session.json", "--no-wait", transport=fake)
            self.assertEqual((ran.code, ran.json["request"]), (8, None))


class Sidecars(WaitingTest):
    """--sidecar: lake.json beside lake.png."""

    def sidecar(self, name: str) -> Any:
        """Returns what a file beside a picture says, and asserts that its picture is the one it speaks of."""
        found = json.loads(Path(name).read_text("utf-8"))
        image, = found["images"]
        self.assertEqual((Path(image["path"]).with_suffix(".json"), hash_of(image["path"])), (Path(name), image["sha256"]))
        return found

    def test_each_picture_gets_one_that_says_all_that_the_result_says(self) -> None:
        fake = FakeTransport(reply(pictures_of("x", "y")))
        ran = self.run_main("generations", "Ein See – 湖", "--n", "2", "--sidecar", "--output", "out/lake.png", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["out/lake-1.json", "out/lake-1.png", "out/lake-2.json", "out/lake-2.png"]), ran.err)
        for index, row in enumerate(ran.json["images"]):
            found = self.sidecar(f"out/lake-{index + 1}.json")
            self.assertEqual(found["images"], [row])
            self.assertEqual((found["date"], found["version"]), ("2026-11-20T12:00:00Z", gpt_image.__version__))
            for name in ("route", "model", "request", "response_id", "request_id", "usage", "cost", "settled"):
                self.assertEqual(found[name], ran.json[name], name)
        self.assertIn("湖", Path("out/lake-1.json").read_text("utf-8"))  # so that it can be searched for
        self.assert_no_key(ran)

    def test_the_picture_s_bytes_are_the_same_and_without_the_option_there_is_none(self) -> None:
        for options, files in (((), ["0.png"]), (("--sidecar",), ["0.json", "0.png"])):
            with self.subTest(options=options):
                ran = self.run_main("generations", "x", *options, "--output", "0.png", transport=FakeTransport(reply(pictures_of("x"))))
                self.assertEqual((ran.code, self.files()), (0, files))
                self.assertEqual(Path("0.png").read_bytes(), pictures.picture(b"x", "png", 48, 32))
                Path("0.png").unlink()

    def test_its_name_is_planned_and_refused_before_anything_is_sent(self) -> None:
        argv = ("generations", "x", "--sidecar", "--output", "lake.png")
        ran = self.run_main(*argv, "--n", "2", "--dry-run")
        self.assertEqual(ran.json["outputs"], ["lake-1.png", "lake-2.png", "lake-1.json", "lake-2.json"])
        rows: Tuple[Tuple[Tuple[str, ...], str], ...] = (
            (argv, "output-exists"), ((*argv, "--dry-run"), "output-exists"),
            (("responses", *argv[1:]), "output-exists"), (("resume", "resp_1", *argv[2:]), "output-exists"),
            (("extract", "a.reply", *argv[2:]), "output-exists"),
            ((*argv, "--overwrite", "--save-response", "lake.json"), "output-twice"),
            ((*argv, "--overwrite", "--extra-json", "@lake.json"), "output-input"),
        )  # fmt: skip
        Path("lake.json").write_text("{}")
        Path("a.reply").write_text(json.dumps(pictures_of("x")))
        for words, rule in rows:
            with self.subTest(words=words):
                ran = self.run_main(*words)
                self.assertEqual((ran.code, ran.error["rule"]), (7, rule), ran.err)
                self.assertEqual(Path("lake.json").read_text(), "{}")
        ran = self.run_main(*argv, "--overwrite", transport=FakeTransport(reply(pictures_of("x"))))
        self.assertEqual((ran.code, self.sidecar("lake.json")["request"]["prompt"]), (0, "x"), ran.err)

    def test_a_picture_that_nobody_foresaw_replaces_no_file(self) -> None:
        Path("lake-2.json").write_text("mine")
        fake = FakeTransport(reply(pictures_of("x", "y")))
        ran = self.run_main("generations", "x", "--sidecar", "--overwrite", "--output", "lake.png", transport=fake)
        self.assertEqual((ran.code, Path("lake-2.json").read_text()), (0, "mine"), ran.err)
        self.assertEqual(len(self.files()), 5)

    def test_the_suffix_of_the_picture_does_not_matter(self) -> None:
        data = {"data": [{"b64_json": base64.b64encode(pictures.picture(b"x", "jpeg", 48, 32)).decode()}]}
        ran = self.run_main("generations", "x", "--sidecar", "--output", "lake.png", transport=FakeTransport(reply(data)))
        self.assertEqual((ran.code, self.files()), (0, ["lake.jpg", "lake.json"]), ran.err)

    def test_after_a_failure_what_was_saved_has_one(self) -> None:
        whole = json.dumps(pictures_of("x", "y")).encode()
        fake = FakeTransport(gpt_image.Reply(200, {}, [whole[: len(whole) * 2 // 3]]))
        ran = self.run_main("generations", "x", "--n", "2", "--sidecar", "--output", "lake.png", transport=fake)
        self.assertEqual(([row["path"] for row in ran.json["images"]], self.files()), (["lake-1.png"], ["lake-1.json", "lake-1.png", "lake.reply"]))
        self.assertEqual((ran.code, self.sidecar("lake-1.json")["usage"]), (5, None))

    def test_one_that_cannot_be_written_is_a_warning(self) -> None:
        real = gpt_image.write_all

        def full(file: Any, data: bytes) -> None:
            if b'"version"' in data:
                raise OSError(28, "No space left on device")
            real(file, data)

        fake = FakeTransport(reply(pictures_of("x")))
        with mock.patch.object(gpt_image, "write_all", full):
            ran = self.run_main("generations", "x", "--sidecar", "--output", "lake.png", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["lake.png"]), ran.err)
        self.assertEqual(ran.json["warnings"], ["lake.json: No space left on device"])

    def test_a_stream_a_response_and_resume_write_it_too(self) -> None:
        argv = (*QUEUED, "--sidecar")
        ran = self.run_main(*argv, "--stream", transport=FakeTransport(reply(CREATED + DONE + COMPLETED)))
        self.assertEqual((ran.code, self.files()), (0, ["p.json", "p.png"]), ran.err)
        self.assertEqual(self.sidecar("p.json")["response_id"], "resp_1")
        Path("p.json").unlink()
        Path("p.png").unlink()
        self.run_main(*argv, "--no-wait", transport=FakeTransport(reply(response("queued"))))
        self.assertEqual(self.files(), ["p.session.json"])
        fake = FakeTransport(reply(response("completed", CALL)))
        ran = self.run_main("resume", "p.session.json", "--sidecar", transport=fake)
        self.assertEqual((ran.code, self.files()), (0, ["p.json", "p.png"]), ran.err)
        self.assertEqual(self.sidecar("p.json")["request"]["prompt"], "A lake")

    def test_extract_writes_it_under_the_picture_s_last_name_and_once(self) -> None:
        Path("a.reply").write_text(json.dumps(pictures_of("x", "y")))
        for _ in range(2):
            ran = self.run_main("extract", "a.reply", "--sidecar", "--output", "lake.png")
            self.assertEqual((ran.code, self.files()), (0, ["a.reply", "lake-1.json", "lake-1.png", "lake-2.json", "lake-2.png"]), ran.err)
        found = self.sidecar("lake-2.json")
        self.assertEqual((found["route"], found["request"], found["usage"]), ("extract", None, USAGE))

    def test_a_batch_writes_one_for_each_picture(self) -> None:
        Path("j.txt").write_text("one\ntwo\n")
        fake = FakeTransport(reply(pictures_of("x")), reply(pictures_of("y")))
        ran = self.run_main("batch", "j.txt", "--sidecar", "--parallel", "1", transport=fake)
        self.assertEqual((ran.code, ran.json["jobs"]["made"]), (0, 2), ran.err)
        prompts = [self.sidecar(f"j/{number}.json")["request"]["prompt"] for number in (1, 2)]
        self.assertEqual(prompts, ["one", "two"])
