"""What a run reads is never replaced, names go where they say, the disk's faults have words, and odd values too."""

from __future__ import annotations

import base64
import errno
import json
import os
import time
import unittest
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, reply

A = pictures.picture(b"a", "png", 64, 48)
CLEAR = pictures.picture(b"b", "png", 64, 48, clear=True)
JPEG = pictures.picture(b"x", "jpeg", 16, 16)
NOWHERE = OSError(errno.ENOSPC, "No space left on device")
DEEP = "[" * 100_000 + "]" * 100_000


def images(*data: bytes) -> Dict[str, Any]:
    """Returns an Images reply with pictures."""
    return {"created": 1, "data": [{"b64_json": base64.b64encode(each).decode()} for each in data]}


class InputsTest(ProgramTest):
    """A folder with inputs of every kind, and calls that must not send anything."""

    def setUp(self) -> None:
        super().setUp()
        Path("in.png").write_bytes(A)
        Path("mask.png").write_bytes(CLEAR)
        Path("prompt.txt").write_text("a lake")
        Path("extra.json").write_text('{"seed": "7"}')
        Path("my.env").write_text("OPENAI_IMAGE_QUALITY=low\n")
        Path(".env").write_text("OPENAI_IMAGE_QUALITY=low\n")

    def refused(self, *argv: str, rule: str, code: int = 7) -> Ran:
        """Asserts that a call is refused by a rule before anything is sent, and a dry run alike."""
        for dry in ([], ["--dry-run"] if argv[0] in gpt_image.ALL else []):
            transport = FakeTransport()
            ran = self.run_main(*argv, *dry, transport=transport)
            self.assertEqual((ran.code, transport.requests), (code, []), ran.out + ran.err)
            self.assertEqual(ran.error["rule"], rule, ran.err)
            self.assertTrue(ran.error["message"] and ran.error["hint"])
        return ran

    def contents(self) -> Dict[str, bytes]:
        """Returns the files of the folder with their bytes."""
        return {name: Path(name).read_bytes() for name in self.files()}


class InputsAreNeverReplaced(InputsTest):
    """No file that a run reads is replaced, whatever its name, and with --overwrite too."""

    def test_no_output_of_a_call_takes_the_place_of_an_input(self) -> None:
        os.symlink("in.png", "link.png")
        os.link("in.png", "hard.png")
        os.symlink(".", "here")
        before = self.contents()
        edit = ["edits", "x", "--image", "in.png", "--model", "gpt-image-2.5-flare"]
        previews = [*edit, "--stream", "--partial-images", "1"]
        os.rename("mask.png", "m-partial-1.png")
        for argv in (
            [*edit, "-o", "in.png"], [*edit, "-o", "./in.png"], [*edit, "-o", "link.png"], [*edit, "-o", "hard.png"],
            [*edit, "-o", "here/here/in.png"], [*edit, "-o", str(self.folder / "in.png")],
            [*edit[:3], "link.png", "-o", "in.png"], ["responses", "x", "--input-image", "in.png", "-o", "in.png"],
            [*edit, "--mask", "m-partial-1.png", "-o", "m-partial-1.png"],
            [*edit, "--markup", "m-partial-1.png", "-o", "m-partial-1.png"],
            [*previews, "--mask", "m-partial-1.png", "-o", "m.png"], [*edit, "--save-response", "in.png"],
            ["generations", "--prompt-file", "prompt.txt", "--save-response", "prompt.txt"],
            ["generations", "x", "--extra-json", "@extra.json", "--save-response", "extra.json"],
            ["responses", "x", "--metadata-json", "@extra.json", "--save-response", "here/extra.json"],
            ["generations", "x", "--env-file", "my.env", "--save-response", "my.env"],
            ["generations", "x", "--save-response", ".env"],
            ["generations", "x", "--save-response", gpt_image.__file__],
        ):  # fmt: skip
            with self.subTest(argv):
                self.refused(*argv, "--overwrite", rule="output-input")
        os.rename("m-partial-1.png", "mask.png")
        self.assertEqual(self.contents(), before)

    def test_what_is_no_input_of_this_run_is_replaced(self) -> None:
        for argv in (["prompt.txt"], ["x", "--user", "prompt.txt"], ["x", "--no-env-file"]):
            name = ".env" if "--no-env-file" in argv else "prompt.txt"
            transport = FakeTransport(reply(images(A)))
            options = ("--save-response", name, "-o", "o.png", "--overwrite")
            ran = self.run_main("generations", *argv, *options, transport=transport)
            self.assertEqual((ran.code, ran.json["saved_response"]), (0, name), ran.err)

    def test_no_output_of_resume_takes_the_place_of_the_session(self) -> None:
        session = {"gpt_image_session": 1, "response_id": "resp_1", "origin": "https://api.openai.com:443"}
        Path("s.session.json").write_text(json.dumps(session))
        argv = ("resume", "s.session.json", "-o", "o.png", "--save-response", "./s.session.json", "--overwrite")
        self.refused(*argv, rule="output-input")

    def test_no_output_of_extract_takes_the_place_of_the_reply(self) -> None:
        text = json.dumps(images(JPEG, pictures.picture(b"y", "jpeg", 16, 16)))
        for name, output in (("r.jpg", "r.jpg"), ("s-2.jpg", "s.jpg")):
            Path(name).write_text(text)
            ran = self.run_main("extract", name, "-o", output, "--overwrite")
            self.assertEqual(Path(name).read_text(), text)
            self.assertEqual(ran.code, 7 if name == output else 0, ran.err)
        self.assertEqual([row["path"] for row in ran.json["images"]], ["s-1.jpg", "s-2-2.jpg"])

    def test_the_true_suffix_of_a_picture_leads_to_no_input(self) -> None:
        Path("x.jpg").write_bytes(JPEG)
        transport = FakeTransport(reply(images(JPEG)))
        argv = ("edits", "x", "--image", "x.jpg", "-o", "x.png", "--overwrite")
        ran = self.run_main(*argv, transport=transport)
        self.assertEqual((ran.code, ran.json["images"][0]["path"]), (0, "x-2.jpg"), ran.err)

    def test_a_mask_that_this_run_did_not_make_is_not_replaced(self) -> None:
        boxed = ("edits", "x", "--image", "in.png", "--mask-box", "0,0,8,8", "-o", "o.png", "--overwrite")
        Path("o-mask.png").write_bytes(b"the user's own")
        self.refused(*boxed, rule="output-exists")
        self.assertEqual(Path("o-mask.png").read_bytes(), b"the user's own")
        os.unlink("o-mask.png")
        for _ in range(2):  # the same mask again may stay
            ran = self.run_main(*boxed, transport=FakeTransport(reply(images(A))))
            self.assertEqual((ran.code, ran.json["mask"]), (0, "o-mask.png"), ran.err)
        self.refused(*boxed, "--save-response", "o-mask.png", rule="output-input")

    def test_the_dry_run_tells_all_that_would_be_written(self) -> None:
        boxed = ["edits", "x", "--image", "in.png", "--mask-box", "0,0,8,8"]
        queued = ["responses", "x", "--background-mode", "--stream", "--partial-images", "2"]
        for argv, wanted in (
            ([*boxed, "--n", "2", "--save-response", "r"], ["o-1.png", "o-2.png", "r", "o-mask.png"]),
            (queued, ["o.png", "o-partial-1.png", "o-partial-2.png", "o.session.json"]),
        ):
            ran = self.run_main(*argv, "-o", "o.png", "--dry-run")
            self.assertEqual(ran.json["outputs"], wanted)


class NamesGoWhereTheySay(InputsTest):
    """Place holders, links and folders in a name."""

    def test_a_format_behind_a_place_holder_is_warned_about(self) -> None:
        for name in ("{index:02d}", "{index!r}", "{partial:}", "{my index}", "{}"):
            with self.subTest(name):
                ran = self.run_main("generations", "x", "-o", f"o-{name}.png", "--dry-run", "--no-env-file")
                self.assertEqual(len(ran.json["warnings"]), 1, ran.json["warnings"])
                self.assertIn(f"{name} is not a placeholder", ran.json["warnings"][0])

    def test_a_way_through_a_link_and_back_leads_to_the_link_s_parent(self) -> None:
        Path("far/deep").mkdir(parents=True)
        os.symlink("far/deep", "link")
        Path("far/in.png").write_bytes(CLEAR)
        argv = ("edits", "x", "--image", "link/../in.png", "-o", "link/../o.png", "--save-response", "link/../r")
        transport = FakeTransport(reply(images(A)))
        ran = self.run_main(*argv, transport=transport)
        self.assertEqual((ran.code, ran.json["images"][0]["path"]), (0, "link/../o.png"), ran.err)
        self.assertTrue(Path("far/o.png").is_file() and Path("far/r").is_file() and not Path("o.png").exists())
        self.assertIn(CLEAR, transport.bodies[0])
        ran = self.run_main("generations", "x", "-o", "link/../p.png", transport=FakeTransport(reply(b"{")))
        self.assertEqual(ran.json["saved_response"], "link/../p.reply")

    def test_what_is_kept_beside_pictures_in_numbered_folders_lies_in_the_first(self) -> None:
        ran = self.run_main("generations", "x", "-o", "{index}/o.png", transport=FakeTransport(reply(b"{")))
        self.assertEqual(ran.json["saved_response"], os.path.join("1", "o.reply"))

    def test_a_reply_is_not_saved_in_the_place_of_a_folder(self) -> None:
        Path("there").mkdir()
        for name in ("r/", "there", "there/", "r/s/"):
            with self.subTest(name):
                before = self.files()
                self.refused("generations", "x", "--save-response", name, "--overwrite", rule="output-folder")
                self.assertEqual((self.files(), Path("r").exists()), (before, False))


class FaultsOfTheDiskHaveWords(InputsTest):
    """Any fault of the disk before something is sent is exit 7, with a rule."""

    def test_a_full_disk_is_no_bug(self) -> None:
        boxed = ("edits", "x", "--image", "in.png", "--mask-box", "0,0,8,8", "-o", "o.png")
        for argv in (boxed, ("config", "--init", "--no-env-file")):
            with self.subTest(argv[0]):
                Path(".env").unlink(missing_ok=True)
                transport, before = FakeTransport(), self.files()
                with mock.patch.object(gpt_image, "write_all", side_effect=NOWHERE):
                    ran = self.run_main(*argv, transport=transport)
                self.assertEqual((ran.code, ran.error["rule"], transport.requests), (7, "disk", []), ran.err)
                self.assertIn("No space left", ran.error["message"])
                self.assertEqual(self.files(), before)

    def test_a_converter_without_a_folder_for_its_file_is_no_bug(self) -> None:
        Path("in.bmp").write_bytes(b"BM" + (70).to_bytes(4, "little") + bytes(64))
        with mock.patch.object(gpt_image, "spare_folder", return_value="nowhere"):
            ran = self.refused("edits", "x", "--image", "in.bmp", rule="disk")
        self.assertIn("nowhere", ran.error["message"])

    def test_a_new_dotenv_is_whole_for_its_owner_and_never_over_another(self) -> None:
        ran = self.run_main("config", "--init")
        self.assertEqual((ran.code, ran.error["rule"]), (7, "env-exists"))
        os.unlink(".env")
        self.assertEqual(self.run_main("config", "--init").code, 0)
        self.assertEqual(Path(".env").read_text(), gpt_image.example_dotenv())
        if os.name == "posix":
            self.assertEqual(Path(".env").stat().st_mode & 0o777, 0o600)

    def test_a_current_folder_that_is_gone_is_no_bug(self) -> None:
        Path("gone").mkdir()
        for argv in (["config", "--init"], ["generations", "x", "-o", "o.png"]):
            with self.subTest(argv):
                Path("gone").mkdir(exist_ok=True)
                os.chdir("gone")
                self.addCleanup(os.chdir, self.folder)
                os.rmdir(self.folder / "gone")
                transport = FakeTransport()
                ran = self.run_main(*argv, transport=transport)
                os.chdir(self.folder)
                self.assertEqual((ran.code, transport.requests), (7, []), ran.err)
                self.assertTrue(ran.error["rule"])


class OddJson(InputsTest):
    """JSON that Python reads and nobody can send is refused where it is read."""

    TEXTS = (
        '{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}', '{"a": 1e999}', f'{{"a": {DEEP}}}', DEEP,
        '{"a":' * 500 + "1" + "}" * 500, '{"a":' * 101 + "1" + "}" * 101,
    )  # fmt: skip

    def test_it_is_refused_wherever_it_stands(self) -> None:
        for text in self.TEXTS:
            Path("odd.json").write_text(text)
            ways: List[List[str]] = [["generations", "x", "--extra-json", "@odd.json"],
                    ["edits", "x", "--image", "in.png", "--extra-json", text],
                    ["responses", "x", "--metadata-json", text]]  # fmt: skip
            ways += [["responses", "x", "--tool-choice", text]] if text.startswith("{") else []
            for argv in ways:
                with self.subTest(text[:20], option=argv[-2]):
                    rule = f"{argv[-2].strip('-')}-unreadable-value"
                    self.assert_unreadable(argv, rule)
            with self.subTest(text[:20], option="session"):
                ran = self.run_main("resume", "odd.json")
                self.assertEqual((ran.code, ran.error["rule"]), (2, "session"), ran.err)
            with self.subTest(text[:20], option=".env"):
                Path(".env").write_text(f"OPENAI_IMAGE_EXTRA_JSON='{text}'\n")
                ran = self.run_main("generations", "x", "--dry-run", "--env-file", ".env")
                self.assertEqual((ran.code, ran.error["rule"]), (2, "extra-json-unreadable-value"), ran.err[:500])
                Path(".env").unlink()

    def assert_unreadable(self, argv: List[str], rule: str) -> None:
        """Asserts that a value is refused as one that cannot be read."""
        ran = self.run_main(*argv, "--dry-run")
        self.assertEqual((ran.code, ran.error["rule"]), (2, rule), ran.err[:500])

    def test_a_hundred_levels_are_read(self) -> None:
        for route in (["generations", "x"], ["edits", "x", "--image", "in.png"], ["responses", "x"]):
            text = '{"a":' * 98 + "[1.5]" + "}" * 98
            self.assertEqual(self.run_main(*route, "--extra-json", text, "--dry-run").code, 0)


class DotenvOverLines(ProgramTest):
    """A quoted value may go on over lines, and whatever a .env holds is read in linear time."""

    def read(self, text: str) -> Ran:
        """Returns the settings of a run beside a .env."""
        Path(".env").write_text(text)
        os.chmod(".env", 0o600)
        return self.run_main("config", "--env-file", ".env")

    def values(self, text: str) -> Dict[str, Any]:
        """Returns the values of the few settings that these tests look at, by option."""
        found = self.read(text).json["settings"]["generations"]
        return {name: (found[name]["value"], found[name]["source"]) for name in ("user", "size") if name in found}

    def test_a_quoted_value_goes_on_over_lines(self) -> None:
        pem = "-----BEGIN KEY-----\nMIIE/+a=\nabc==\n-----END KEY-----"
        for text, user, line in (
            (f'OPENAI_IMAGE_USER="{pem}"', pem, 5), (f"OPENAI_IMAGE_USER='{pem}' # mine", pem, 5),
            (f'export OPENAI_IMAGE_USER="{pem}\n"', pem + "\n", 6), ('OPENAI_IMAGE_USER="a\n\n# b\n\\"c"', 'a\n\n# b\n"c', 5),
            ("OPENAI_IMAGE_USER='a\r\nb'", "a\nb", 3),
        ):  # fmt: skip
            with self.subTest(text):
                wanted = {"user": (user, ".env line 1"), "size": ("auto", f".env line {line}")}
                ran = self.read(f"{text}\nOPENAI_IMAGE_SIZE=auto\n?\n")
                self.assertEqual(self.values(f"{text}\nOPENAI_IMAGE_SIZE=auto\n?\n"), wanted)
                self.assertRegex(ran.err, rf"\.env line {line + 1}: ")

    def test_a_quote_without_an_end_takes_no_other_line_with_it(self) -> None:
        for text, numbers in (
            ("'ann\nOPENAI_IMAGE_SIZE=auto\n", "1"), ('"ann\n\nOPENAI_IMAGE_SIZE="auto"\n', "1"),
            ('"ann\\"\nexport OPENAI_IMAGE_SIZE=\'auto\'\n', "1"), ("'ann\nOPENAI_IMAGE_SIZE=auto\nA='b'\n", "1"),
            ('"ann\nwords\nOPENAI_IMAGE_SIZE=auto\nA="b', "1, 2, 4"),
        ):
            with self.subTest(text):
                ran = self.read(f"OPENAI_IMAGE_USER={text}")
                self.assertEqual(self.values(f"OPENAI_IMAGE_USER={text}").get("size", [""])[0], "auto")
                self.assertRegex(ran.err, rf"\.env line {numbers}: .*quote")
                self.assertNotIn("ann", ran.out + ran.err)

    def test_it_is_read_in_linear_time(self) -> None:
        blanks = " " * 100_000
        for text in (f"A={blanks}'x", f"A={blanks}\"x", f"A{blanks}={blanks}'x", f"{blanks}x", f"export{blanks}x",
                     f"A='x'{blanks}y", "A='" + "x\n" * 20_000, "A=\"" + "\\\n" * 20_000):  # fmt: skip
            with self.subTest(text[:9], size=len(text)):
                began = time.perf_counter()
                self.assertEqual(self.read(text).code, 0)
                self.assertLess(time.perf_counter() - began, 2)


class ValuesAsTheApiHasThem(InputsTest):
    """Limits stand where the API has them, and a model is judged by what is really sent."""

    def setUp(self) -> None:
        super().setUp()
        os.unlink(".env")

    def dry(self, *argv: str) -> Ran:
        """Returns a dry run."""
        return self.run_main(*argv, "--dry-run")

    def test_limits_of_the_images_routes_hold_there_only(self) -> None:
        chat = ["--protocol", "openai_chat", "--base-url", "https://relay.example/v1"]
        many = [word for _ in range(17) for word in ("--image", "in.png")]
        for argv, rule in (
            (["generations", "x" * 32_001], "prompt-length"), (["generations", "x" * 32_001, *chat], None),
            (["responses", "x" * 32_001], None), (["edits", "x", *many], "image-count"),
            (["edits", "x", *many, *chat], None),
            (["responses", "x", *(word.replace("--image", "--input-image") for word in many)], None),
        ):  # fmt: skip
            ran = self.dry(*argv)
            self.assertEqual((ran.json.get("error") or {}).get("rule"), rule, ran.err)

    def test_the_limits_of_a_gif(self) -> None:
        for options, code, words in (
            ("--size 256x256", 0, ""), ("--size 960x960", 0, ""), ("--size 976x976", 0, "9 frames hold 8573184 pixels"),
            ("--size 816x816 --frame-count 12", 0, ""), ("--size 816x816 --frame-count 13", 0, "13 frames"),
            ("--size 1024x1024 --frame-count 2", 0, ""), ("--size 1000x256", 2, "multiples of 16"),
            ("--frame-duration-ms 20", 0, ""), ("--frame-duration-ms 19", 2, "from 20 to"),
        ):  # fmt: skip
            with self.subTest(options):
                argv = ("generations", "x", "--model", "gpt-image-2.6-flare", "-o", "o.gif", *options.split())
                ran = self.dry(*argv)
                self.assertEqual(ran.code, code, ran.err)
                said = ran.json["warnings"] if code == 0 else [ran.error["message"]]
                self.assertEqual(len(said), bool(words), said)
                self.assertIn(words, "".join(said))
        ran = self.dry("generations", "x", "--model", "gpt-image-2.6-flare", "-o", "o.png", "--size", "256x256")
        self.assertEqual(ran.error["rule"], "size-pixels")

    def test_a_base_url_beyond_ascii_is_refused_before_anything_is_sent(self) -> None:
        for url in ("https://exämple.com/v1", "https://example.com/ü/v1", "https://example。com/v1"):
            for argv in (["generations", "x"], ["config", "--check"], ["resume", "resp_1234"]):
                with self.subTest(url, command=argv[0]):
                    transport = FakeTransport()
                    ran = self.run_main(*argv, "--base-url", url, transport=transport)
                    self.assertEqual((ran.code, ran.error["rule"], transport.requests), (2, "base-url", []), ran.err)

    def test_a_size_with_a_leading_zero_is_refused(self) -> None:
        for route in ("generations", "responses"):
            self.refused(route, "x", "--size", "01024x1024", rule="size-form", code=2)

    def test_a_model_of_extra_json_is_the_one_that_is_judged(self) -> None:
        tool = '{"tools": [{"type": "image_generation", "model": "%s"}]}'
        for argv, extra, model, words in (
            (["generations", "--model", "dall-e-3"], '{"model": "gpt-image-2"}', "gpt-image-2", ""),
            (["generations"], '{"model": "dall-e-3"}', "dall-e-3", "dall-e-3 was shut down"),
            (["generations"], '{"model": "gpt-image-1.5"}', "gpt-image-1.5", "shuts gpt-image-1.5 down"),
            (["generations"], '{"model": "gpt-image-2.5"}', "gpt-image-2.5", "no model named gpt-image-2.5"),
            (["generations", "--model", "gpt-image-2.5"], '{"model": "flux"}', "flux", ""),
            (["responses"], tool % "gpt-image-1", "gpt-5.4", "gpt-image-1 was shut down"),
            (["responses", "--tool-model", "gpt-image-1"], tool % "gpt-image-2", "gpt-5.4", ""),
            (["responses"], '{"model": "gpt-image-2"}', "gpt-image-2", "cannot host the tool"),
        ):  # fmt: skip
            with self.subTest(argv, extra=extra):
                ran = self.dry(*argv, "x", "--extra-json", extra)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(len(ran.json["warnings"]), bool(words), ran.json["warnings"])
                self.assertIn(words, "".join(ran.json["warnings"]))
                ran = self.run_main(*argv, "x", "--extra-json", extra, transport=FakeTransport(reply({}, 400)))
                self.assertEqual(ran.json["model"], model)

    def test_a_tool_model_that_was_typed_is_refused_whatever_the_text_model_is(self) -> None:
        argv = ("responses", "x", "--tool-model", "dall-e-3", "--extra-json", '{"model": "gpt-6"}')
        self.refused(*argv, rule="model-retired", code=2)

    def test_the_estimate_is_that_of_the_model_that_is_sent(self) -> None:
        options = ("--size", "1024x1024", "--quality", "medium")
        sent = self.dry("generations", "x", *options, "--extra-json", '{"model": "gpt-image-2.5-flare"}')
        typed = self.dry("generations", "x", *options, "--model", "gpt-image-2.5-flare")
        self.assertEqual(sent.json["estimate"], typed.json["estimate"])
        self.assertTrue(typed.json["estimate"])


if __name__ == "__main__":
    unittest.main()
