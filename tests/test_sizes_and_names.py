"""Tests of what people type first: sizes in words, short flags, names of outputs, the cost, pipes."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Mapping, Optional
from unittest import mock

import gpt_image
from tests.pictures import picture
from tests.support import KEY, TODAY, FakeTransport, ProgramTest, Ran, at_noon
from tests.test_cli import images_reply
from tests.test_rules import valid_size

SECOND = "sk-other-0123456789abcdef"


class WordsTest(ProgramTest):
    """Dry runs of generations, unless another command is named."""

    def dry(self, *argv: str, env: Optional[Mapping[str, str]] = None, command: str = "generations") -> Ran:
        """Makes a dry run that passes."""
        ran = self.run_main(command, "x", *argv, "--dry-run", env=env)
        self.assertEqual(ran.code, 0, ran.err)
        return ran

    def refused(self, *argv: str) -> Any:
        """Makes a dry run that breaks one rule, and returns the error."""
        ran = self.run_main("generations", "x", *argv, "--dry-run")
        self.assertEqual(ran.code, 2, ran.err)
        self.assertLessEqual(len(ran.error["problems"]), 1)
        return ran.error


class SizesAreSaidInWords(WordsTest):
    """A proportion, a word for one, and a long edge stand for pixels that the model takes."""

    def test_a_proportion_becomes_pixels_of_just_that_proportion_where_there_are_some(self) -> None:
        for words, size in (
            ("16:9", "1536x864"), ("16:9@2k", "2048x1152"), ("16:9@4k", "3840x2160"), ("16:9@1K", "1280x720"),
            ("9:16", "864x1536"), ("square", "1024x1024"), ("square@2k", "2048x2048"), ("square@4k", "2880x2880"),
            ("landscape", "1536x1024"), ("portrait", "1024x1536"), ("Wide", "1536x864"), ("tall", "864x1536"),
            ("wide@2k", "2048x1152"), ("4:3", "1344x1008"), ("4:3@1k", "1024x768"), ("1:3", "512x1536"),
            ("21:9", "1568x672"),
        ):  # fmt: skip
            with self.subTest(words):
                ran = self.dry("--size", words)
                self.assertEqual(ran.json["body"]["size"], size)
                self.assertEqual(ran.json["settings"]["size"], {"value": size, "source": "command line"})
                self.assertIn(f"--size {words} is {size}\n", ran.err)
                self.assertTrue(valid_size(size))

    def test_a_proportion_that_no_pixels_have_gets_those_nearest_to_it(self) -> None:
        for words in ("2.39:1", "1.91:1@2k", "37:20", "13:11"):
            with self.subTest(words):
                size = self.dry("--size", words).json["body"]["size"]
                width, height = map(int, size.split("x"))
                wide, high = map(float, words.partition("@")[0].split(":"))
                self.assertTrue(valid_size(size))
                self.assertLess(abs(width / height / (wide / high) - 1), 0.01)

    def test_a_model_with_three_sizes_gets_the_nearest_of_them(self) -> None:
        for words, size in (("16:9", "1536x1024"), ("tall@4k", "1024x1536"), ("6:5", "1024x1024")):
            self.assertEqual(self.dry("--size", words, "--model", "gpt-image-1.5").json["body"]["size"], size)

    def test_a_model_that_is_not_known_gets_pixels_by_the_rules_of_the_others(self) -> None:
        self.assertEqual(self.dry("--size", "16:9", "--model", "flux").json["body"]["size"], "1536x864")
        self.assertEqual(self.dry("--size", "hd", "--model", "flux").json["body"]["size"], "hd")

    def test_every_route_and_source_takes_them(self) -> None:
        tool = self.dry("-s", "wide", command="responses").json["body"]["tools"][0]
        self.assertEqual(tool["size"], "1536x864")
        ran = self.dry(env={"OPENAI_IMAGE_SIZE": "16:9"})
        self.assertEqual(ran.json["settings"]["size"], {"value": "1536x864", "source": "environment OPENAI_IMAGE_SIZE"})
        self.assertIn("OPENAI_IMAGE_SIZE: 16:9 is 1536x864", ran.err)

    def test_the_result_says_which_size_was_asked_for(self) -> None:
        ran = self.run_main("generations", "x", "--size", "16:9", transport=FakeTransport(images_reply("png")))
        self.assertEqual(ran.json["request"]["size"], "1536x864")

    def test_the_size_of_a_proportion_is_looked_for_once_in_a_batch(self) -> None:
        Path("jobs.txt").write_text("\n".join("abc"))
        with mock.patch.object(gpt_image, "nearest_size", wraps=gpt_image.nearest_size) as search:
            ran = self.run_main("batch", "jobs.txt", "--size", "1.234:1", "--dry-run")
        self.assertEqual((ran.code, search.call_count), (0, 1), ran.err)

    def test_aspect_ratio_is_another_spelling(self) -> None:
        for argv, env, size in (
            (["--aspect-ratio", "16:9"], {}, "1536x864"), (["--aspect-ratio", "wide@2k"], {}, "2048x1152"),
            (["--aspect-ratio", "16:9", "--size", "2048x1152"], {}, "2048x1152"),
            (["--aspect-ratio", "16:9"], {"OPENAI_IMAGE_SIZE": "1024x1024"}, "1536x864"),
            (["--aspect-ratio", "2.39:1"], {}, "1568x656"),
        ):  # fmt: skip
            with self.subTest(argv=argv, env=env):
                self.assertEqual(self.dry(*argv, env=env).json["body"]["size"], size)
        for size in ("1024x1024", "auto", "square", "1920x1088"):
            with self.subTest(size):
                self.assertEqual(self.refused("--size", size, "--aspect-ratio", "16:9")["rule"], "aspect-ratio")

    def test_what_is_no_proportion_of_the_model_is_refused(self) -> None:
        for option in ("--size", "--aspect-ratio"):
            for words in ("4:1", "1:4", "0:1", "16:0", "16:9@8k", "big", "9" * 400 + ":1"):
                with self.subTest(option=option, words=words[:9]):
                    error = self.refused(option, words)
                    self.assertEqual(error["rule"], "size-form")
                    self.assertIn(f"{option} {words[:9]}", error["message"])
                    self.assertIn("16:9@2k", error["hint"])

    def test_the_hint_to_a_size_offers_others_of_its_proportion(self) -> None:
        for size, offered in (
            ("1920x1080", ["1920x1088", "1536x864", "2048x1152"]), ("1080x1920", ["1088x1920", "864x1536", "1152x2048"]),
            ("1000x1000", ["1008x1008"]),
        ):  # fmt: skip
            self.assertEqual(re.findall(r"\d+x\d+", self.refused("--size", size)["hint"]), offered)
        hint = self.refused("--size", "1920x1080", "--model", "gpt-image-1.5")["hint"]
        self.assertEqual(hint, "1536x1024 is the nearest")

    def test_in_a_batch_each_job_has_its_own(self) -> None:
        Path("jobs.csv").write_text(
            "prompt,size,aspect-ratio,output\na,16:9,,a.png\nb,,9:16,b.png\nc,square@2k,,c.png\nd,,,d.png\n"
        )
        ran = self.run_main("batch", "jobs.csv", "--size", "landscape", "--dry-run")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual([row["size"] for row in ran.json["by"]], ["1536x864", "864x1536", "2048x2048", "1536x1024"])


class FlagsAreShort(WordsTest):
    """The letters that tools of this kind have."""

    def test_each_letter_stands_for_its_option(self) -> None:
        Path("a.png").write_bytes(picture(b"a", "png", 32, 32))
        ran = self.run_main(
            "edits", "-p", "a cat", "-n3", "-m", "gpt-image-2.5-flare", "-s=16:9", "-Q", "max", "-i", "a.png", "-oout.webp",
            "-q", "--dry-run",
        )  # fmt: skip
        self.assertEqual(ran.code, 0, ran.err)
        fields = {row["name"]: row.get("value") for row in ran.json["form"]}
        self.assertEqual(fields.pop("image[]"), None)
        self.assertEqual(
            fields,
            {"prompt": "a cat", "n": "3", "model": "gpt-image-2.5-flare", "size": "1536x864", "quality": "max",
             "output_format": "webp"},
        )  # fmt: skip
        self.assertEqual((ran.json["outputs"][0], ran.err), ("out-1.webp", ""))
        ran = self.run_main("responses", "-p", "x", "-m", "gpt-5.5", "-i", "a.png", "--dry-run")
        self.assertEqual((ran.code, ran.json["body"]["model"]), (0, "gpt-5.5"))
        self.assertIn("input_image", json.dumps(ran.json["body"]["input"]))

    def test_a_batch_takes_them_too(self) -> None:
        Path("jobs.txt").write_text("a\nb\n")
        ran = self.run_main("batch", "jobs.txt", "-n", "2", "-s", "wide", "-Q", "low", "-o", "{id}.png", "--dry-run")
        self.assertEqual((ran.code, ran.json["pictures"]), (0, 4), ran.err)
        self.assertEqual(ran.json["by"][0]["size"], "1536x864")

    def test_a_letter_without_its_value_is_refused_and_a_wrong_one_does_not_show_what_follows(self) -> None:
        self.assertIn("-o/--output: expected one argument", self.run_main("generations", "x", "-o").error["message"])
        ran = self.run_main("generations", "x", f"-k{KEY}")
        self.assertEqual((ran.code, ran.error["message"]), (2, "-k is not an option of generations"))
        self.assert_no_key(ran)


class NamesHoldWhatWasAsked(WordsTest):
    """{prompt}, {date}, {time} and {model} in --output, and the name of what has none."""

    def named(self, prompt: str, *argv: str, **facts: Any) -> str:
        """Returns the name that a dry run plans for one picture."""
        ran = self.run_main("generations", f"--prompt={prompt}", *argv, "--dry-run", **facts)
        self.assertEqual(ran.code, 0, ran.err)
        return str(ran.json["outputs"][0])

    def at(self, pattern: str) -> str:
        """Returns the day and hour of the tests in the zone of this machine."""
        return time.strftime(pattern, time.localtime(at_noon(TODAY)))

    def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(self) -> None:
        with mock.patch.dict(os.environ, HOME=str(self.folder / "home"), USERPROFILE=str(self.folder / "home")):
            ran = self.run_main("generations", "x", "--output=~/x.png", "--dry-run")
        self.assertEqual(ran.json["outputs"], [str(self.folder / "home" / "x.png")])

    def test_each_place_is_filled(self) -> None:
        day, hour = self.at("%Y%m%d"), self.at("%H%M%S")
        for pattern, name in (
            ("{prompt}.png", "a-lighthouse-at-dusk.png"), ("{model}/{date}.webp", f"gpt-image-2/{day}.webp"),
            ("o/{time}-{prompt}", f"o/{hour}-a-lighthouse-at-dusk.png"), ("{date}/", f"{day}/"),
            ("{prompt}-{index}.png", "a-lighthouse-at-dusk-1.png"),
        ):  # fmt: skip
            with self.subTest(pattern):
                found = self.named("A lighthouse, at dusk!", "-o", pattern)
                self.assertEqual(found[: len(name)] if name.endswith("/") else found, name)

    def test_without_an_output_the_name_says_when_and_what(self) -> None:
        Path("folder").mkdir()
        name = f"gpt-image-{self.at('%Y%m%d-%H%M%S')}-two-cats.png"
        self.assertEqual(self.named("Two cats"), name)
        self.assertEqual(self.named("Two cats", "-o", "folder"), f"folder/{name}")

    def test_a_prompt_of_any_script_makes_a_name_that_any_system_takes(self) -> None:
        for prompt, name in (
            ("Ein Bär, größer!", "ein-bär-größer"), ("灯台と夕暮れ", "灯台と夕暮れ"), ("हिन्दी में", "हिन्दी-में"),
            ("Маяк / закат", "маяк-закат"), ("🦊🎨", "picture"), ("../../etc/passwd", "etc-passwd"), ("CON", "_con"),
            ("a\u202eb\x07c", "a-b-c"), ("{index} {prompt}", "index-prompt"), ("!?", "picture"),
            ("word " * 30, "word-" * 7 + "word"), ("x" * 99, "x" * 40), ("灯" * 99, "灯" * 33),
        ):  # fmt: skip
            with self.subTest(prompt[:20]):
                found = self.named(prompt, "-o", "{prompt}.png")
                self.assertEqual(found, f"{name}.png")
                self.assertLess(len(os.fsencode(found)), 170)

    def test_no_key_stands_in_a_name(self) -> None:
        for prompt in (f"a sign with {KEY} on it", f"a sign {SECOND}", f"{SECOND.upper().replace('SK', 'sk')}!", "a relay-secret-1"):
            with self.subTest(prompt):
                name = self.named(prompt, "-o", "{prompt}-{model}.png", env={"GPT_IMAGE2_API_KEY": "relay-secret-1"})
                for secret in (KEY, SECOND, "0123456789", "relay-secret"):
                    self.assertNotIn(secret, name.lower())

    def test_the_model_in_a_name_is_safe_and_what_is_not_known_stays(self) -> None:
        self.assertEqual(self.named("x", "-o", "{model}", "--model", "fal/flux.1:dev"), "fal-flux.1-dev.png")
        ran = self.dry("-o", "{n}-{prompt}.png")
        self.assertEqual(ran.json["outputs"], ["{n}-x.png"])
        self.assertIn("{n} is not a placeholder", ran.err)

    def test_extract_and_resume_have_names_too(self) -> None:
        Path("a.reply").write_bytes(images_reply_bytes())
        ran = self.run_main("extract", "a.reply", "-o", "{date}-{prompt}.png")
        self.assertEqual(ran.json["images"][0]["path"], f"{self.at('%Y%m%d')}-picture.png", ran.err)

    def test_in_a_batch_each_job_fills_its_own_and_a_column_goes_first(self) -> None:
        Path("jobs.csv").write_text("prompt,date\nA cat,monday\nA dog,tuesday\n")
        ran = self.run_main("batch", "jobs.csv", "-o", "{model}/{date}-{prompt}.png", "--dry-run")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(ran.json["first"]["outputs"], ["gpt-image-2/monday-a-cat.png"])
        Path("jobs.csv").write_text("prompt,x\nA {date},1\n")
        self.assertIn("no column has a value for 'date'", self.run_main("batch", "jobs.csv", "--dry-run").error["message"])


class MoneyIsKnownBefore(WordsTest):
    """The estimate is a range where the server chooses, and --max-cost goes by the most."""

    def estimate(self, *argv: str) -> Any:
        return self.dry(*argv).json["estimate"]

    def test_what_is_left_to_the_server_makes_a_range(self) -> None:
        for argv, most, least in (
            (["-s", "1024x1024"], 7024, 196), (["-s", "1024x1024", "-Q", "auto", "-n", "2"], 14048, 392),
            (["-Q", "high"], 14272, 4312), (["-Q", "low", "-s", "auto"], 397, 120), ([], 14272, 120),
            (["-m", "gpt-image-2.5-flare", "-s", "1024x1024"], 7024, 196),
        ):  # fmt: skip
            with self.subTest(argv):
                found = self.estimate(*argv)
                self.assertEqual((found["output_tokens"], found["least"]["output_tokens"]), (most, least))
                self.assertEqual(found["usd"], round(most * 30 / 1e6, 4))
                self.assertEqual(found["least"]["usd"], round(least * 30 / 1e6, 4))
        self.assertNotIn("least", self.estimate("-s", "wide", "-Q", "low"))

    def test_max_cost_refuses_before_sending_by_the_most(self) -> None:
        for argv in (["--max-cost", "0.1"], ["--max-cost", "0.1", "-s", "1024x1024"], ["--max-cost", "9", "-m", "flux"]):
            for more in ([], ["--no-validate"], ["--dry-run"]):
                with self.subTest(argv=argv, more=more):
                    ran = self.run_main("generations", "x", *argv, *more)
                    self.assertEqual((ran.code, ran.error["rule"]), (2, "max-cost"))
        self.assertEqual(self.run_main("generations", "x", "--max-cost", "0.1").error["may_be_billed"], False)
        self.dry("--max-cost", "0.01", "-s", "1024x1024", "-Q", "low")


class PipesGoBothWays(WordsTest):
    """A prompt that is piped in, and a picture that is piped out."""

    def piped(self, data: bytes, *argv: str, command: str = "generations", wait: float = 5, closed: bool = True) -> Ran:
        """Makes a dry run with a pipe as standard input."""
        source, sink = os.pipe()
        os.write(sink, data)
        if closed:
            os.close(sink)
        else:
            self.addCleanup(os.close, sink)
        out, err = io.StringIO(), io.StringIO()
        with open(source, encoding="utf-8") as stdin, mock.patch.object(gpt_image, "STDIN_WAIT", wait):
            code = gpt_image.main(
                [command, *argv, "--dry-run"], environ={"OPENAI_API_KEY": KEY}, stdin=stdin, stdout=out, stderr=err
            )
        return Ran(code, out.getvalue(), err.getvalue(), json.loads(out.getvalue()))

    def test_a_prompt_that_is_piped_in_is_read(self) -> None:
        for data, argv in ((b"A cat\n", []), ("\ufeffA cat\r\n".encode(), ["-n", "2"])):
            ran = self.piped(data, *argv)
            self.assertEqual((ran.code, ran.json["body"]["prompt"]), (0, "A cat"), ran.err)
        self.assertEqual(self.piped(b"A cat", command="responses").json["body"]["input"], "A cat")
        Path("prompt.txt").write_text("From a file\n")
        with open("prompt.txt") as stdin:
            out = io.StringIO()
            gpt_image.main(["generations", "--dry-run"], environ={}, stdin=stdin, stdout=out, stderr=io.StringIO())
        self.assertEqual(json.loads(out.getvalue())["body"]["prompt"], "From a file")

    def test_a_pipe_that_holds_nothing_or_never_ends_is_no_prompt(self) -> None:
        for closed in (True, False):
            ran = self.piped(b"", wait=0.01, closed=closed)
            self.assertEqual((ran.code, ran.error["rule"]), (2, "prompt-missing"))
            self.assertIn("pipe it in", ran.error["hint"])
            self.assertIn("reading the prompt from standard input", ran.err)
        self.assertEqual(self.piped(b"\xff\xfe\x00", wait=0.01).error["rule"], "prompt-file")

    def test_a_prompt_that_is_given_leaves_the_pipe_alone(self) -> None:
        for argv in (["A dog"], ["-p", "A dog"], ["--extra-json", '{"prompt": "A dog"}']):
            ran = self.piped(b"A cat", *argv, wait=30, closed=False)
            self.assertEqual((ran.code, ran.json["body"]["prompt"]), (0, "A dog"), ran.err)

    def test_a_socket_and_a_batch_are_not_read_from(self) -> None:
        ours, theirs = socket.socketpair()  # as some programs give it to those they start, and leave it open
        with ours, theirs, ours.makefile() as stdin:
            self.assertFalse(gpt_image.is_piped(stdin, gpt_image.Console(io.StringIO(), io.StringIO(), {})))
        Path("jobs.jsonl").write_text('{"size": "wide"}\n')
        ran = self.piped(b"A cat", "jobs.jsonl", command="batch")
        self.assertEqual(ran.error["rule"], "prompt-missing")

    def poured(self, *argv: str, transport: Any = None, broken: bool = False) -> Any:
        """Runs generations with a real file or a pipe that nobody reads as standard output; returns all there is."""
        source, sink = os.pipe() if broken else (0, 0)
        raw: Any = open(sink, "wb", buffering=0) if broken else tempfile.TemporaryFile()
        if broken:
            os.close(source)
        err = io.StringIO()
        with raw, io.TextIOWrapper(raw, encoding="utf-8", write_through=True) as out:
            code = gpt_image.main(
                ["generations", "A cat", *argv], environ={"OPENAI_API_KEY": KEY}, stdout=out, stderr=err,
                transport=transport or FakeTransport(images_reply("png")),
            )  # fmt: skip
            data = b""
            if not broken:
                raw.seek(0)
                data = raw.read()
        return code, data, err.getvalue()

    def result_in(self, err: str) -> Any:
        """Returns the result object that stands among the words on standard error."""
        return json.loads(err[err.index("{\n") :])

    def test_one_picture_goes_to_standard_output_and_all_words_to_standard_error(self) -> None:
        for argv in (["-o", "-"], ["--output=-"], ["-o-", "--json"], ["--output", "-", "-q"]):
            with self.subTest(argv):
                code, data, err = self.poured(*argv)
                self.assertEqual((code, data[:8]), (0, b"\x89PNG\r\n\x1a\n"), err)
                row = self.result_in(err)["images"][0]
                self.assertEqual((row["path"], row["bytes"]), ("-", len(data)))
                self.assertEqual(self.files(), [])

    def test_nothing_else_goes_there(self) -> None:
        for argv in (["-o", "-", "--dry-run"], ["-o", "-", "--bogus"], ["-o", "-", "--size", "7x7"], ["-n2", "-o", "-"]):
            with self.subTest(argv):
                _, data, err = self.poured(*argv)
                self.assertEqual(data, b"")
                self.assertIn("{\n", err)

    def test_a_picture_that_nobody_takes_stays_a_file(self) -> None:
        code, _, err = self.poured("-o", "-", broken=True)
        (name,) = self.files()
        found = self.result_in(err)
        self.assertEqual((code, found["error"]["rule"], found["images"][0]["path"]), (7, "output-pipe", name))

    def test_more_than_one_picture_stay_files(self) -> None:
        code, data, err = self.poured("-o", "-", transport=FakeTransport(images_reply("png", "webp")))
        self.assertEqual((code, data, len(self.files())), (7, b"", 2), err)

    def test_a_terminal_and_a_batch_are_refused(self) -> None:
        ran = self.run_main("generations", "x", "-o", "-", terminal=True)
        self.assertEqual((ran.code, ran.out), (2, ""))
        self.assertIn("is a terminal", ran.err)
        Path("jobs.txt").write_text("a\n")
        self.assertEqual(self.run_main("batch", "jobs.txt", "-o", "-", "--dry-run").code, 2)

    def test_extract_pours_and_leaves_a_file_that_was_there(self) -> None:
        Path("a.reply").write_bytes(images_reply_bytes())
        self.assertEqual(self.run_main("extract", "a.reply", "-o", "mine.png").code, 0)
        err = io.StringIO()
        with tempfile.TemporaryFile() as raw, io.TextIOWrapper(raw, encoding="utf-8") as out:
            code = gpt_image.main(["extract", "a.reply", "-o", "-"], environ={}, stdout=out, stderr=err)
            raw.seek(0)
            self.assertEqual((code, raw.read()), (0, Path("mine.png").read_bytes()), err.getvalue())
        self.assertEqual(self.files(), ["a.reply", "mine.png"])


class PicturesAreOpened(WordsTest):
    """--open hands the saved pictures to the system's viewer."""

    def opened(self, *argv: str, platform: str = "linux", **env: str) -> Any:
        """Runs generations with a viewer that is none; returns the run, and what the viewer got."""
        transport = FakeTransport(images_reply("png", "png"))
        with mock.patch("subprocess.Popen") as viewer, mock.patch("sys.platform", platform):
            ran = self.run_main("generations", "x", "-n", "2", "-o", "a.png", *argv, env=env, transport=transport)
        return ran, viewer.call_args_list

    def test_each_picture_is_shown_and_no_secret_goes_along(self) -> None:
        for platform, env, program in (
            ("linux", {"DISPLAY": ":0"}, "xdg-open"), ("linux", {"WAYLAND_DISPLAY": "w"}, "xdg-open"), ("darwin", {}, "open"),
        ):  # fmt: skip
            with self.subTest(platform):
                ran, calls = self.opened("--open", "--overwrite", platform=platform, **env)
                self.assertEqual((ran.code, ran.json["warnings"]), (0, []))
                paths = [str(self.folder / name) for name in ("a-1.png", "a-2.png")]
                self.assertEqual([call.args[0] for call in calls], [[program, path] for path in paths])
                self.assertNotIn("OPENAI_API_KEY", calls[0].kwargs["env"])
                self.assertIn("PATH", calls[0].kwargs["env"])

    def test_without_a_screen_or_not_asked_nothing_is_started(self) -> None:
        for argv, env, warned in (([], {"DISPLAY": ":0"}, 0), (["--open"], {}, 1)):
            ran, calls = self.opened("--overwrite", *argv, **env)
            self.assertEqual((ran.code, len(ran.json["warnings"]), calls), (0, warned, []))

    def test_a_viewer_that_is_missing_is_a_warning(self) -> None:
        transport = FakeTransport(images_reply("png"))
        ran = self.run_main("generations", "x", "--open", transport=transport, env={"DISPLAY": ":0", "PATH": "nowhere"})
        self.assertEqual((ran.code, ran.json["warnings"]), (0, ["--open: No such file or directory"]))


def images_reply_bytes() -> bytes:
    """Returns the body of a reply with one picture."""
    return b"".join(images_reply("png").chunks)
