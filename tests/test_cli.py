"""What a person and a script see: help, mistakes, results, dry runs, curl commands, progress, configuration."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.gateway import Gateway, Recorded
from tests.support import KEY, FakeTransport, ProgramTest, Ran, Terminal, child, reply

ROUTES = ("generations", "edits", "responses")
POSIX = os.name == "posix"

# Contract §1, word for word.
EVERY_ROUTE = """
    --model --size --quality --background --format --output-format --compression --output-compression
    --moderation --stream --partial-images --complexity --frame-count --frame-duration-ms --svg-model --svg-effort
    --safety-identifier --user --extra-json --output -o --overwrite --save-response --dry-run --curl --json
    --progress --quiet -q --preview --no-validate --base-url --api-key --api-key-env --organization --project
    --header --env-file --no-env-file --timeout --max-retries --retry-billable --allow-http --prompt --prompt-file
""".split()
OWN = {
    "generations": "--n --response-format --style --protocol".split(),
    "edits": "--n --response-format --style --protocol --image --input --mask --mask-box --markup --input-fidelity "
             "--image-field-style".split(),
    "responses": "--input-text --input-image --input-image-url --input-image-file-id --input-image-data-url --mask "
                 "--mask-url --mask-file-id --mask-box --input-fidelity --action --tool-model --tool-choice "
                 "--previous-response-id --instructions --background-mode --store --no-store --metadata-json "
                 "--reasoning-effort --conversation --max-tool-calls --max-output-tokens --service-tier --input-detail "
                 "--completion-window --continuation-id".split(),
}  # fmt: skip

# Contract §4, word for word.
RESULT = ["ok", "route", "model", "images", "partial_images", "unclaimed", "text", "response_id", "request_id", "usage",
          "cost", "request", "settled", "svg_usage", "seconds", "attempts", "saved_response", "session_file", "warnings", "error"]  # fmt: skip
IMAGE = ["path", "index", "format", "width", "height", "bytes", "sha256", "whole", "revised_prompt", "settled",
         "svg_usage"]  # fmt: skip
ERROR = ["exit", "rule", "status", "type", "code", "message", "hint", "may_be_billed", "problems", "recovery"]
DRY_RUN = ["dry_run", "route", "method", "url", "headers", "body", "form", "outputs", "settings", "estimate",
           "warnings"]  # fmt: skip

# Names and words that a careless shell or form would spoil.
WORDS = "it's \"50 %\" & `who` $(id) $HOME <b> ; a=b\\n\n@file, 図 !"
NASTY = 'we"ird $HOME; it\'s.png'

# For each route, commands that between them use most of what a body can hold.
REQUESTS: Tuple[Tuple[str, ...], ...] = (
    ("generations", WORDS, "--size", "1024x1024", "--quality", "low", "--n", "2", "--user", "ann"),
    ("generations", "x", "--stream", "--partial-images", "1", "--format", "webp", "--compression", "80"),
    ("edits", WORDS, "--image", "a.png", "--image", NASTY, "--image", "図.webp", "--mask", "mask.png", "--n", "2"),
    ("edits", "x", "--image", "./-a.png", "--image-field-style", "simple", "--stream"),
    ("edits", "x", "--image", "a.png", "--moderation", "low", "--mask", "mask.png"),
    ("responses", WORDS, "--input-image", NASTY, "--mask", "mask.png", "--stream", "--metadata-json", '{"a": "b c"}'),
)  # fmt: skip


def write_inputs() -> None:
    """Writes the pictures the commands speak of into the current folder."""
    png = pictures.picture(b"a", "png", 64, 48)
    clear = pictures.picture(b"a", "png", 64, 48, clear=True)
    files = {"a.png": png, "-a.png": png, "mask.png": clear, "図.webp": pictures.picture(b"a", "webp", 64, 48)}
    for name, data in {**files, **({NASTY: png} if POSIX else {NASTY.replace('"', ""): png})}.items():
        Path(name).write_bytes(data)


def images_reply(*formats: str, **more: Any) -> gpt_image.Reply:
    """Returns a canned reply of the Images routes with small pictures."""
    data = [{"b64_json": base64.b64encode(pictures.picture(name.encode(), name, 64, 48)).decode()} for name in formats]
    return reply({"created": 1, "data": data, **more}, headers={"x-request-id": "req_1"})


class CommandTest(ProgramTest):
    """A folder with input pictures."""

    def setUp(self) -> None:
        super().setUp()
        write_inputs()

    def help(self, *argv: str, columns: int = 80) -> str:
        """Returns help text as a terminal of some width shows it."""
        with mock.patch.dict(os.environ, {"COLUMNS": str(columns), "NO_COLOR": "1"}):
            ran = self.run_main(*argv, "--help")
        self.assertEqual((ran.code, ran.err), (0, ""))
        return ran.out

    def refused(self, *argv: str, stdin: str = "") -> Any:
        """Runs a command that is refused before anything is sent, and returns the error of its result."""
        transport = FakeTransport()
        ran = self.run_main(*argv, transport=transport, stdin=stdin)
        self.assertEqual((ran.code, transport.requests), (2, []), ran.err)
        self.assertIn(f"gpt_image.py: error: {ran.error['message']}", ran.err)
        return ran.error


class HelpIsWhatAPersonNeeds(CommandTest):
    """--help and --version."""

    def test_version_is_one_line(self) -> None:
        for argv in (("--version",), ("-V",)):
            ran = self.run_main(*argv)
            self.assertEqual((ran.code, ran.out), (0, f"gpt_image.py {gpt_image.__version__}\n"))

    def test_the_overview_names_each_command_and_has_three_examples(self) -> None:
        text = self.help()
        self.assertEqual(text, self.run_main("-h").out)
        for name in gpt_image.COMMANDS:
            self.assertRegex(text, rf"(?m)^  {name} +\S")
        for row in gpt_image.ROUTES:
            self.assertIn(f"\n  python3 gpt_image.py {row.examples[0]}\n", text)

    def test_the_overview_says_what_this_is_without_docstrings_too(self) -> None:
        title = (gpt_image.__doc__ or "").partition("\n")[0]
        with mock.patch.object(gpt_image, "__doc__", None):  # as under -OO
            self.assertIn(f"\n\n{title}\n\n", self.run_main("--help").out)

    def test_each_option_of_the_contract_is_in_the_help_of_its_route(self) -> None:
        for route in ROUTES:
            text = self.help(route)
            for option in [*EVERY_ROUTE, *OWN[route]]:
                with self.subTest(route=route, option=option):
                    self.assertRegex(text, rf"(?m)(^|[\s,]){re.escape(option)}(?![\w-])")

    def test_a_route_has_no_option_of_another(self) -> None:
        for route in ROUTES:
            others = {option for name in ROUTES for option in OWN[name]} - {*OWN[route], *EVERY_ROUTE}
            text = self.help(route)
            for option in others:
                with self.subTest(route=route, option=option):
                    self.assertNotRegex(text, rf"(?m)^ +(-\w, )?{option}[ \n]")

    def test_help_fits_eighty_columns(self) -> None:
        for argv in ((), *((name,) for name in gpt_image.COMMANDS)):
            with self.subTest(argv):
                self.assertEqual([line for line in self.help(*argv).splitlines() if len(line) > 80], [])

    def test_help_is_readable_in_a_narrow_window(self) -> None:
        for columns in (40, 20, 1):
            for argv in ((), ("edits",), ("config",)):
                with self.subTest(argv=argv, columns=columns):
                    self.assertRegex(self.help(*argv, columns=columns), r"^usage:\s+python3 gpt_image\.py")

    def test_help_shows_groups_and_three_examples_and_where_the_exit_codes_are(self) -> None:
        for name, command in gpt_image.COMMANDS.items():
            text = self.help(name)
            with self.subTest(name):
                self.assertTrue(text.endswith("\nExit codes: python3 gpt_image.py help exit-codes\n"), text)
                self.assertEqual(len(command.examples), 3)
                for example in command.examples:
                    self.assertIn(f"\n  python3 gpt_image.py {example}\n", text)
                for group in {row.group.lower() for row in gpt_image.rows_typed(name)}:
                    self.assertRegex(text, rf"(?m)^{group}:$")
        codes = self.run_main("help", "exit-codes").out.splitlines()
        self.assertEqual(codes, [f"{code:>3}  {meaning}" for code, meaning in gpt_image.EXITS.items()])

    def test_help_shows_defaults(self) -> None:
        for option, default in (("--timeout", "600"), ("--max-retries", "2"), ("--model", "gpt-image-2")):
            self.assertRegex(self.help("generations"), rf"{option} \S+\s+[^-]*\(default:\s+{default}\)")

    def test_the_examples_run(self) -> None:
        Path("photo.jpg").write_bytes(pictures.picture(b"a", "jpeg", 64, 48))
        Path("poster.txt").write_text("A poster\n")
        for name in ("cup.png", "table.png"):
            Path(name).write_bytes(pictures.picture(b"b", "png", 64, 48))
        for row in gpt_image.ROUTES:
            for example in row.examples:
                ran = self.run_main(*shlex.split(example), "--dry-run")
                self.assertEqual(ran.code, 0, ran.err)

    def test_help_after_two_dashes_is_a_prompt(self) -> None:
        ran = self.run_main("generations", "--dry-run", "--", "--help")
        self.assertEqual(ran.json["body"]["prompt"], "--help")


class MistakesAreAnswered(CommandTest):
    """The first mistakes one makes at the keyboard."""

    def test_a_mistyped_command_or_option_gets_a_did_you_mean(self) -> None:
        for argv, hint in (
            (("generation", "x"), "generations"), (("edit", "x"), "edits"), (("respones", "x"), "responses"),
            (("generations", "x", "--qualty", "high"), "--quality"),
            (("generations", "x", "--outputt=x.png"), "--output"), (("generations", "x", "--dryrun"), "--dry-run"),
            (("edits", "x", "--images", "a.png"), "--image"),
            (("generations", "x", "--quality", "hihg"), "high"), (("generations", "x", "--format", "jpge"), "jpeg"),
            (("responses", "x", "--action", "edits"), "edit"), (("config", "--completion", "bsh"), "bash"),
        ):  # fmt: skip
            with self.subTest(argv):
                self.assertIn(f"did you mean {hint}", self.refused(*argv)["hint"])

    def test_an_option_of_another_route_is_named_as_such(self) -> None:
        error = self.refused("generations", "x", "--input-image", "a.png")
        self.assertIn("responses", error["hint"])
        self.assertIn("edits", self.refused("generations", "x", "--image", "a.png")["hint"])

    def test_an_option_is_not_abbreviated(self) -> None:
        self.assertIn("--qual", self.refused("generations", "x", "--qual", "high")["message"])

    def test_no_command_says_what_there_is(self) -> None:
        error = self.refused()
        for name in gpt_image.COMMANDS:
            self.assertIn(name, error["hint"])

    def test_an_unquoted_prompt_is_recognised(self) -> None:
        for argv in (("generations", "A", "lake"), ("generations", "A", "lake", "at", "dawn", "--n", "2"),
                     ("edits", "--image", "a.png", "Make", "it", "snow")):  # fmt: skip
            with self.subTest(argv):
                self.assertIn("quotes", self.refused(*argv)["hint"])

    def test_a_command_without_a_prompt_does_not_speak_of_one(self) -> None:
        for argv in (("config", "x"), ("extract", "a.reply", "b.reply"), ("resume", "resp_1", "resp_2")):
            with self.subTest(argv):
                self.assertNotIn("prompt", (self.refused(*argv)["hint"] or "").lower())

    def test_words_after_two_dashes_are_no_options(self) -> None:
        error = self.refused("generations", "--", "-x", "--dry-run")
        self.assertNotIn("--dry-run is not an option", error["message"])

    def test_a_missing_argument_is_named(self) -> None:
        self.assertIn("--size", self.refused("generations", "x", "--size")["message"])
        for command in ("extract", "resume"):
            error = self.refused(command)
            self.assertNotIn("None", error["message"])
            self.assertTrue(error["hint"])

    def test_a_mistake_dumps_no_usage_and_no_traceback(self) -> None:
        for argv in (("x",), ("generations", "x", "--nope"), ("generations", "x", "--n")):
            ran = self.run_main(*argv)
            self.assertLessEqual(len(ran.err.splitlines()), 2, ran.err)
            self.assertNotIn("Traceback", ran.err)


class ThePromptIsGivenInManyWays(CommandTest):
    """As an argument, --prompt, --prompt-file, standard input, --input-text; one of them."""

    def prompt(self, *argv: str, stdin: str = "") -> Any:
        """Returns the prompt of a dry run."""
        ran = self.run_main(*argv, "--dry-run", stdin=stdin)
        self.assertEqual(ran.code, 0, ran.err)
        return ran.json["body"].get("prompt") or ran.json["body"]["input"]

    def test_each_way_gives_the_same_prompt(self) -> None:
        Path("p.txt").write_text("A lake\n", encoding="utf-8")
        Path("bom.txt").write_bytes(b"\xef\xbb\xbfA lake\r\n")
        for route in ("generations", "responses"):
            for argv, stdin in (
                (("A lake",), ""), (("--prompt", "A lake"), ""), (("--prompt-file", "p.txt"), ""),
                (("--prompt-file", "bom.txt"), ""), (("--prompt-file", "-"), "A lake\n"),
                (("--prompt-file", "-"), "\ufeffA lake\r\n"), (("--prompt=A lake",), ""),
            ):  # fmt: skip
                with self.subTest(route=route, argv=argv, stdin=stdin):
                    self.assertEqual(self.prompt(route, *argv, stdin=stdin), "A lake")

    def test_pieces_of_input_text_stay_pieces(self) -> None:
        ran = self.run_main("responses", "--input-text", "A lake", "--input-text", "at dawn", "--dry-run")
        content = ran.json["body"]["input"][0]["content"]
        self.assertEqual([part["text"] for part in content], ["A lake", "at dawn"])

    def test_two_prompts_are_refused(self) -> None:
        Path("p.txt").write_text("x")
        for argv in (("x", "--prompt", "y"), ("x", "--prompt-file", "p.txt"), ("--prompt", "x", "--prompt-file", "-")):
            with self.subTest(argv):
                self.assertEqual(self.refused("generations", *argv, stdin="x")["rule"], "prompt-twice")
        self.assertEqual(self.refused("responses", "x", "--input-text", "y")["rule"], "prompt-twice")

    def test_a_prompt_file_that_cannot_be_read_is_refused(self) -> None:
        Path("latin.txt").write_bytes("é".encode("latin-1"))
        for name in ("none.txt", ".", "latin.txt"):
            with self.subTest(name):
                self.assertIn(f"--prompt-file {name}", self.refused("generations", "--prompt-file", name)["message"])

    def test_a_closed_standard_input_is_no_bug(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(sys, "stdin", None):
            argv = ["generations", "--prompt-file", "-", "--dry-run"]
            code = gpt_image.main(argv, environ={}, stdout=out, stderr=err)
        self.assertEqual(code, 2, err.getvalue())

    def test_a_prompt_may_begin_with_a_dash(self) -> None:
        self.assertEqual(self.prompt("generations", "-5 degrees and snow"), "-5 degrees and snow")
        self.assertEqual(self.prompt("generations", "--prompt=-x"), "-x")
        self.assertEqual(self.prompt("generations", "--prompt", "-5 degrees and snow"), "-5 degrees and snow")
        self.assertIn("--option=-value", self.refused("generations", "--prompt", "-nice")["hint"])
        self.assertEqual(self.run_main("generations", "--dry-run", "--", "-x").json["body"]["prompt"], "-x")

    def test_an_option_is_no_value_of_the_one_before_it(self) -> None:
        for argv, words in (
            (("--prompt", "--quiet"), "--prompt: expected one argument"), (("--stream", "-x"), "-x is not an option"),
            (("--prompt", "--size=1024x1024"), "--prompt: expected one argument"),
        ):  # fmt: skip
            with self.subTest(argv):
                self.assertIn(words, self.refused("generations", *argv)["message"])

    def test_the_spelling_that_says_no_beats_the_environment(self) -> None:
        for argv, stream in (((), True), (("--no-stream",), False), (("--no-stream", "--stream"), True)):
            ran = self.run_main("generations", "x", *argv, "--dry-run", env={"OPENAI_IMAGE_STREAM": "true"})
            self.assertEqual((ran.code, ran.json["body"].get("stream", False)), (0, stream), argv)


class ResultsAreOneObject(CommandTest):
    """JSON on a pipe, paths on a terminal."""

    def test_a_pipe_gets_one_json_object_with_the_contract_s_keys(self) -> None:
        usage = {"input_tokens": 10, "output_tokens": 100, "total_tokens": 110,
                 "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}  # fmt: skip
        transport = FakeTransport(images_reply("png", usage=usage))
        ran = self.run_main("generations", "x", "--output", "o.png", transport=transport)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(list(ran.json), RESULT)
        self.assertEqual([list(row) for row in ran.json["images"]], [IMAGE])
        row = ran.json["images"][0]
        self.assertEqual([row[name] for name in IMAGE[:5]], ["o.png", 1, "png", 64, 48])
        self.assertEqual(row["bytes"], Path("o.png").stat().st_size)
        self.assertEqual(ran.json["usage"], usage)
        self.assertEqual(ran.json["cost"]["usd"], 0.00305)  # 10 * 5 + 100 * 30 millionths
        self.assertEqual((ran.json["request_id"], ran.json["attempts"], ran.json["error"]), ("req_1", 1, None))
        self.assertNotRegex(ran.out + ran.err, r"[A-Za-z0-9+/]{200}")

    def test_a_preview_has_the_same_keys_and_its_number(self) -> None:
        argv = ("generations", "x", "--stream", "--partial-images", "1", "--output", "o.png")
        ran = self.run_main(*argv, gateway=self.gateway())
        self.assertEqual(ran.code, 0, ran.err)
        wanted = sorted([*(name for name in IMAGE if name not in IMAGE[8:]), "partial"])
        self.assertEqual([sorted(row) for row in ran.json["partial_images"]], [wanted])

    def test_a_failed_run_prints_the_same_object_with_an_error(self) -> None:
        gateway = self.gateway("moderation")
        ran = self.run_main("generations", "x", gateway=gateway)
        self.assertEqual(list(ran.json), RESULT)
        self.assertEqual(list(ran.error), ERROR)
        self.assertEqual((ran.json["ok"], ran.error["exit"], ran.error["status"]), (False, 4, 400))
        self.assertEqual(ran.error["code"], "moderation_blocked")

    def test_a_refusal_of_ours_has_the_same_keys(self) -> None:
        ran = self.run_main("generations", "x", "--n", "11", "--size", "5x5")
        self.assertEqual((list(ran.json), list(ran.error)), (RESULT, ERROR))
        self.assertEqual([sorted(row) for row in ran.error["problems"]], [["hint", "message", "rule"]] * 2)

    def test_every_command_that_saves_prints_the_same_object(self) -> None:
        body = json.dumps({"data": [{"b64_json": base64.b64encode(pictures.picture(b"a", "png", 64, 48)).decode()}]})
        Path("kept.reply").write_text(body)
        ran = self.run_main("extract", "kept.reply", "--output", "e.png")
        self.assertEqual((ran.code, list(ran.json), ran.json["route"]), (0, RESULT, "extract"))
        ran = self.run_main("resume", "resp_12345", transport=FakeTransport(reply({}, status=404)))
        self.assertEqual((ran.code, list(ran.json)), (4, RESULT))

    def test_a_terminal_gets_the_paths_one_a_line(self) -> None:
        transport = FakeTransport(images_reply("png", "webp"))
        ran = self.run_main("generations", "x", "--n", "2", "--output", "o.png", transport=transport, terminal=True)
        self.assertEqual(ran.out, "o-1.png\no-2.webp\n")

    def test_json_on_a_terminal_is_had_by_asking(self) -> None:
        transport = FakeTransport(images_reply("png"))
        ran = self.run_main("generations", "x", "--json", transport=transport, terminal=True)
        self.assertEqual(list(ran.json), RESULT)

    def test_a_terminal_gets_no_result_of_a_failure_but_words(self) -> None:
        ran = self.run_main("generations", "x", "--n", "11", terminal=True)
        self.assertEqual((ran.code, ran.out), (2, ""))
        self.assertIn("--n 11", ran.err)

    def test_quiet_silences_progress_and_warnings_but_no_error(self) -> None:
        argv = ("generations", "x", "--size", "3840x2160", "--quiet", "--output", "o.png")
        ran = self.run_main(*argv, transport=FakeTransport(images_reply("webp")))
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertTrue(ran.json["warnings"])
        self.assertIn("error: ", self.run_main("generations", "x", "-q", "--n", "11").err)

    def test_the_cost_is_only_told_where_it_is_known(self) -> None:
        usage = {"input_tokens": 9, "output_tokens": 9, "input_tokens_details": {"text_tokens": 9, "image_tokens": 0}}
        cases: Tuple[Tuple[str, Any], ...] = (
            ("flux", usage), ("gpt-image-2", None), ("gpt-image-2", {}), ("gpt-image-2", {"output_tokens": "many"}),
            ("gpt-image-2", 5), ("gpt-image-2", {**usage, "input_tokens": 8}),
        )  # fmt: skip
        for number, (model, given) in enumerate(cases):
            with self.subTest(model=model, usage=given):
                argv = ("generations", "x", "--model", model, "--output", f"{number}.png")
                ran = self.run_main(*argv, transport=FakeTransport(images_reply("png", usage=given)))
                self.assertEqual((ran.code, ran.json["cost"]), (0, None), ran.err)

    def test_names_that_are_no_unicode_are_printed_all_the_same(self) -> None:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        transport = FakeTransport(images_reply("png"))
        argv = ["generations", "x", "--output", "o\udcff.png"]
        environ = {"OPENAI_API_KEY": KEY}
        self.assertEqual(gpt_image.main(argv, transport=transport, environ=environ, stdout=out, stderr=err), 0)
        out.seek(0)
        self.assertEqual(json.loads(out.read())["images"][0]["path"], "o\udcff.png")

    def test_two_calls_without_an_output_in_one_second_both_save(self) -> None:
        paths = set()
        with mock.patch("time.strftime", return_value="20261120-120000"):
            for _ in range(2):
                ran = self.run_main("generations", "x", transport=FakeTransport(images_reply("png")))
                self.assertEqual(ran.code, 0, ran.err)
                paths.add(ran.json["images"][0]["path"])
        self.assertEqual(len(paths), 2)


class ExitCodesTellOneThing(CommandTest):
    """Contract §4: what each exit code means."""

    def ends(self, code: int, *argv: str, **facts: Any) -> Ran:
        """Runs a command and asserts its exit code, in the result as well."""
        ran = self.run_main(*argv, **facts)
        self.assertEqual(ran.code, code, ran.err)
        self.assertEqual(ran.error["exit"] if ran.error else 0, code)
        self.assert_no_key(ran)
        return ran

    def test_each_exit_code(self) -> None:
        Path("taken.png").write_bytes(b"")
        fault = gpt_image.Fault("connection refused", sent=False)
        running = {"id": "resp_12345", "object": "response", "status": "in_progress", "output": []}

        def broken(*_: Any) -> Any:
            raise RuntimeError(f"a bug that knows {KEY}")

        def interrupted(*_: Any) -> Any:
            raise KeyboardInterrupt

        ok, refused = FakeTransport(images_reply("png")), FakeTransport(reply({"error": {"message": "no"}}, status=400))
        self.ends(0, "generations", "x", "--output", "0.png", transport=ok)
        bug = self.ends(1, "generations", "x", "--output", "1.png", transport=broken)
        self.assertIn("RuntimeError", bug.err)
        self.ends(2, "generations")
        self.ends(3, "generations", "x", env={"OPENAI_API_KEY": ""})
        self.ends(4, "generations", "x", "--output", "4.png", transport=refused)
        self.ends(5, "generations", "x", "--output", "5.png", "--max-retries", "0", transport=FakeTransport(fault))
        self.ends(6, "generations", "x", "--output", "6.png", transport=FakeTransport(reply("<p>hello</p>")))
        self.ends(7, "generations", "x", "--output", "taken.png")
        argv = ("responses", "x", "--background-mode", "--max-retries", "0", "--output", "8.png")
        late = self.ends(8, *argv, transport=FakeTransport(reply(running), fault))
        self.assertIn("resume", late.error["hint"])
        self.ends(130, "generations", "x", "--output", "130.png", transport=interrupted)

    def test_a_picture_too_few_is_no_success(self) -> None:
        argv = ("generations", "x", "--n", "2", "--output", "o.png")
        ran = self.ends(6, *argv, transport=FakeTransport(images_reply("png")))
        self.assertEqual([row["path"] for row in ran.json["images"]], ["o-1.png"])


class DryRunsSendNothing(CommandTest):
    """--dry-run makes the same checks, needs no key, opens no socket, leaves no file, and shows what would be sent."""

    def dry(self, *argv: str, env: Optional[Mapping[str, str]] = None) -> Ran:
        """Makes a dry run and asserts that it left nothing behind."""
        before, transport = self.files(), FakeTransport()
        ran = self.run_main(*argv, "--dry-run", transport=transport, env={"OPENAI_API_KEY": "", **(env or {})})
        self.assertEqual((ran.code, transport.requests), (0, []), ran.err)
        self.assertEqual(self.files(), before)
        return ran

    def test_it_prints_the_object_of_the_contract(self) -> None:
        for argv in REQUESTS:
            with self.subTest(argv):
                ran = self.dry(*argv)
                self.assertEqual(list(ran.json), DRY_RUN)
                self.assertEqual((ran.json["dry_run"], ran.json["method"]), (True, "POST"))
                self.assertEqual(ran.json["headers"]["Authorization"], "Bearer ***")
                self.assertEqual([ran.json["body"], ran.json["form"]].count(None), 1)
                for row in ran.json["settings"].values():
                    self.assertEqual(list(row), ["value", "source"])

    def test_the_declared_length_is_the_one_of_the_real_request(self) -> None:
        for argv in (*REQUESTS, ("edits", "x", "--image", "a.png", "--mask-box", "0,0,8,8", "--output", "boxed.png")):
            with self.subTest(argv):
                declared = self.dry(*argv).json["headers"]["Content-Length"]
                transport = FakeTransport(reply({}, status=400))
                self.run_main(*argv, transport=transport)
                self.assertEqual(len(transport.requests), 1)
                sent = dict(transport.requests[0].headers)["Content-Length"]
                self.assertEqual((declared, sent), (str(len(transport.bodies[0])),) * 2)

    def test_the_body_is_what_is_sent_but_for_the_pictures(self) -> None:
        for argv in REQUESTS:
            body = self.dry(*argv).json["body"]
            if body is None:
                continue
            with self.subTest(argv):
                transport = FakeTransport(reply({}, status=400))
                self.run_main(*argv, transport=transport)
                sent = transport.bodies[0].decode()
                shown = re.sub(r"(data:image/png;base64,)[A-Za-z0-9+/=]{40,}", r"\1PICTURE", sent)
                wanted = re.sub(r"<base64 of [^>]*>", "PICTURE", json.dumps(body))
                self.assertEqual(json.loads(shown), json.loads(wanted))

    def test_a_picture_in_json_is_named_with_its_size(self) -> None:
        os.mkdir("refs")
        shutil.copy("a.png", "refs/product.png")
        body = self.dry("responses", "x", "--input-image", "./refs/product.png").json["body"]
        size = Path("a.png").stat().st_size
        url = f"data:image/png;base64,<base64 of refs/product.png, {size} bytes>"
        self.assertEqual(body["input"][0]["content"][1]["image_url"].replace("\\", "/"), url)

    def test_a_form_names_each_file_with_its_type_and_size(self) -> None:
        os.mkdir("refs")
        shutil.copy("a.png", "refs/subject.png")
        form = self.dry("edits", "x", "--image", "./refs/subject.png", "--n", "2").json["form"]
        row = {"name": "image[]", "filename": "subject.png", "content_type": "image/png",
               "bytes": Path("a.png").stat().st_size, "path": os.path.join("refs", "subject.png")}  # fmt: skip
        self.assertIn(row, form)
        self.assertIn({"name": "prompt", "value": "x"}, form)
        self.assertIn({"name": "n", "value": "2"}, form)

    def test_the_outputs_are_the_names_that_would_be_written(self) -> None:
        ran = self.dry("edits", "x", "--image", "a.png", "--n", "2", "--output", "out/edit-{index}.png")
        self.assertEqual(ran.json["outputs"], [os.path.join("out", "edit-1.png"), os.path.join("out", "edit-2.png")])

    def test_a_base_url_with_a_query_keeps_it(self) -> None:
        ran = self.dry("generations", "x", "--base-url", "https://x.example/openai/v1/?api-version=1")
        self.assertEqual(ran.json["url"], "https://x.example/openai/v1/images/generations?api-version=1")

    def test_it_fails_as_the_real_run_does(self) -> None:
        Path("taken.png").write_bytes(b"")
        for argv in (("generations", "x", "--output", "taken.png"), ("generations", "x", "--n", "11"), ("edits", "x"),
                     ("generations", "x", "--output", "a.png/b.png"), ("generations", "x", "--nope")):  # fmt: skip
            with self.subTest(argv):
                real, dry = self.run_main(*argv), self.run_main(*argv, "--dry-run")
                self.assertEqual((real.code, real.error), (dry.code, dry.error))


@unittest.skipUnless(shutil.which("bash") and shutil.which("curl"), "needs bash and curl")
class CurlCommandsRun(CommandTest):
    """--curl prints a command that makes the same request."""

    def setUp(self) -> None:
        super().setUp()
        self.refuser = self.gateway("bad-request")

    def seen(self, request: Recorded) -> Dict[str, Any]:
        """Returns what must be alike in two requests."""
        ours = {"accept", "authorization", "user-agent", "x-note", "x-auth-token", "openai-project"}
        headers = {name.lower(): value for name, value in request.headers if name.lower() in ours}
        form = [part._replace(look=None) for part in request.form] if request.form else None
        return {"line": (request.method, request.path), "headers": headers, "json": request.json, "form": form}

    def compare(self, *argv: str, env: Optional[Mapping[str, str]] = None) -> None:
        """Runs the printed command and our own, and compares what arrived."""
        ran = self.run_main(*argv, "--curl", gateway=self.refuser)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertNotIn(KEY, ran.out)
        self.assertIn("$OPENAI_API_KEY", ran.out)
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OPENAI_API_KEY": KEY, **(env or {})}
        # A gateway on this machine, whatever proxy there is; --curl itself need not know of that.
        done = subprocess.run(["bash", "-c", ran.out], env={**environ, "NO_PROXY": "*"}, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), ran.out)
        self.assertIn("Your request is wrong.", done.stdout)  # so says the gateway, which saves it the painting
        self.run_main(*argv, "--timeout", "5", "--max-retries", "0", gateway=self.refuser)
        theirs, ours = (self.seen(request) for request in self.refuser.requests[-2:])
        self.assertEqual(theirs, ours, ran.out)

    def test_the_command_makes_our_own_request_on_every_route(self) -> None:
        for number, argv in enumerate(REQUESTS):
            with self.subTest(argv):
                self.compare(*argv, "--output", f"o{number}.png" if "webp" not in argv else f"o{number}.webp")

    def test_headers_go_along_and_secret_ones_from_a_variable(self) -> None:
        headers = ("--header", "X-Note: it's \"here\"", "--header", "X-Auth-Token: tok-0123456789", "--project", "p-1")
        ran = self.run_main("generations", "x", *headers, "--curl", gateway=self.refuser)
        self.assertNotIn("tok-0123456789", ran.out)
        self.compare("generations", "x", *headers, "--output", "o.png", env={"_X_AUTH_TOKEN": "tok-0123456789"})

    def test_a_mask_made_of_boxes_is_sent_too(self) -> None:
        for output in ("o.png", "out/o.png"):
            with self.subTest(output):
                argv = ("edits", "x", "--image", "a.png", "--mask-box", "0,0,8,8", "--output", output, "--overwrite")
                self.compare(*argv)


class ProgressIsShown(CommandTest):
    """On stderr: a live line, plain lines, JSON lines, or nothing."""

    def call(self, *argv: str, **facts: Any) -> Ran:
        """Makes a streamed call with one preview against the gateway."""
        line = ("generations", "x", "--stream", "--partial-images", "1", "--output", "o.png")
        ran = self.run_main(*line, *argv, gateway=self.gateway(), **facts)
        self.assertEqual(ran.code, 0, ran.err)
        return ran

    def test_a_pipe_gets_a_line_for_each_phase(self) -> None:
        ran = self.call()
        starts = [line.split()[0] for line in ran.err.splitlines()]
        self.assertEqual(starts, ["connecting", "uploading", "waiting", "receiving", "preview", "saved"])
        self.assertNotRegex(ran.err, r"[\r\x1b]")

    def test_plain_is_plain_on_a_terminal_too(self) -> None:
        ran = self.call("--progress", "plain", terminal=True, env={"NO_COLOR": "1"})
        self.assertIn("connecting to 127.0.0.1", ran.err)
        self.assertNotRegex(ran.err, r"[\r\x1b]")

    def test_json_is_one_object_a_line_with_its_phase(self) -> None:
        for more in ((), ("--quiet",)):
            Path("o.png").unlink() if Path("o.png").exists() else None
            for left in Path(".").glob("o-*.png"):
                left.unlink()
            rows = [json.loads(line) for line in self.call("--progress", "json", *more).err.splitlines()]
            self.assertEqual(list(dict.fromkeys(row["phase"] for row in rows)),
                             ["connecting", "uploading", "waiting", "receiving", "preview", "saved"])  # fmt: skip
            self.assertTrue(all(isinstance(row["seconds"], float) for row in rows))
            self.assertEqual([row["path"] for row in rows if row["phase"] == "saved"], ["o.png"])

    def test_none_is_silence(self) -> None:
        self.assertEqual(self.call("--progress", "none").err, "")

    def test_checks_alone_show_no_progress(self) -> None:
        self.assertEqual(self.run_main("generations", "x", "--dry-run").err, "")

    def live(self, environ: Mapping[str, str], seconds: float) -> str:
        """Makes a call on a terminal whose reply waits until the live line was drawn, and returns what was shown."""
        drawn = threading.Event()

        class Screen(Terminal):
            """A terminal that tells when its line is drawn anew."""

            def write(self, text: str) -> int:
                if "\r" in text:
                    drawn.set()
                return super().write(text)

        def transport(request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> gpt_image.Reply:
            progress.phase("waiting")
            drawn.wait(seconds)
            return images_reply("png")

        screen = Screen()
        code = gpt_image.main(
            ["generations", "x", "--output", "o.png"], transport=transport, stdout=io.StringIO(), stderr=screen,
            environ={"OPENAI_API_KEY": KEY, **environ},
        )  # fmt: skip
        self.assertEqual(code, 0, screen.getvalue())
        return screen.getvalue()

    def test_a_terminal_gets_one_live_line_that_is_gone_in_the_end(self) -> None:
        shown = self.live({}, 5)
        self.assertRegex(shown, r"\rwaiting for the reply[^\r\n]*\x1b\[K")
        last = shown.rindex("\r")
        self.assertTrue(shown[last:].startswith("\r\x1b[K"), shown[last:])
        self.assertIn("saved o.png", shown[last:])

    def test_no_color_leaves_the_live_line_but_no_colour(self) -> None:
        shown = self.live({"NO_COLOR": "1"}, 5)
        self.assertIn("\r", shown)
        self.assertNotRegex(shown, r"\x1b\[[0-9;]*m")

    def test_a_dumb_terminal_gets_plain_lines(self) -> None:
        shown = self.live({"TERM": "dumb"}, 0)
        self.assertIn("waiting for the reply\n", shown)
        self.assertNotRegex(shown, r"[\r\x1b]")

    def test_colour_is_for_terminals_that_want_it(self) -> None:
        for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            with self.subTest(env):
                err = self.run_main("generations", "x", "--n", "11", terminal=True, env=env).err
                self.assertEqual("\x1b[" in err, coloured)
        self.assertNotIn("\x1b", self.run_main("generations", "x", "--n", "11").err)

    def test_a_server_cannot_write_escape_sequences_to_the_terminal(self) -> None:
        words = "\x1b[2J\x1b]0;owned\x07 no\x9b31m"
        transport = FakeTransport(reply({"error": {"message": words, "code": "bad\x1b[0m"}}, status=400))
        err = self.run_main("generations", "x", transport=transport, terminal=True, env={"NO_COLOR": "1"}).err
        self.assertNotRegex(err, r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

    @unittest.skipUnless(POSIX, "needs a pseudo-terminal")
    def test_the_live_line_fits_a_narrow_window(self) -> None:
        import fcntl
        import pty
        import struct
        import termios

        gateway = Gateway(key=KEY, delay=0.2)
        self.addCleanup(gateway.close)
        near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        argv = [*child(), "generations", "x", "--no-env-file", "--output", "o.png"]
        env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": gateway.url, "NO_PROXY": "*", "TERM": "xterm"}
        process = subprocess.Popen(argv, env=env, stdin=far, stdout=subprocess.DEVNULL, stderr=far)
        os.close(far)
        shown = b""
        while True:
            try:
                data = os.read(near, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            shown += data
            if not data:
                break
        os.close(near)
        self.assertEqual(process.wait(), 0, shown)
        drawn = re.findall("\r([^\r\n\x1b]+)\x1b\\[K", shown.decode())
        self.assertTrue(drawn, shown)
        self.assertEqual([line for line in drawn if len(line) > 20], [])


class ConfigShowsAndWrites(CommandTest):
    """config: settings in force, --init, --check, --completion."""

    def test_it_shows_each_setting_with_its_source_and_no_key(self) -> None:
        Path(".env").write_text("OPENAI_IMAGE_SIZE=auto\n")
        ran = self.run_main("config", "--env-file", ".env", env={"OPENAI_IMAGE_QUALITY": "low"})
        self.assertEqual((ran.code, ran.json["ok"], ran.json["env_file"]), (0, True, ".env"))
        text = json.dumps(ran.json)
        for value, source in (("auto", ".env line 1"), ("low", "environment OPENAI_IMAGE_QUALITY"),
                              ("***", "environment OPENAI_API_KEY"), ("gpt-image-2", "default")):  # fmt: skip
            self.assertIn(json.dumps({"value": value, "source": source}), text)
        self.assertNotIn(KEY, ran.out + ran.err)
        lines = self.run_main("config", terminal=True, env={"OPENAI_IMAGE_QUALITY": "low"}).out
        self.assertRegex(lines, r"(?m)quality\s+low\s+environment OPENAI_IMAGE_QUALITY")
        self.assertNotIn(KEY, lines)

    def test_init_writes_a_dotenv_for_its_owner_only_and_never_over_another(self) -> None:
        ran = self.run_main("config", "--init")
        self.assertEqual(ran.code, 0, ran.err)
        text = Path(".env").read_text(encoding="utf-8")
        self.assertRegex(text, r"(?m)^OPENAI_API_KEY=$")
        if POSIX:
            self.assertEqual(stat.S_IMODE(Path(".env").stat().st_mode), 0o600)
        again = self.run_main("config", "--init")
        self.assertEqual(again.code, 7, again.err)
        self.assertEqual(Path(".env").read_text(encoding="utf-8"), text)
        dry = self.run_main("generations", "x", "--dry-run")
        self.assertEqual(dry.json["warnings"], [])

    @unittest.skipUnless(POSIX, "symbolic links")
    def test_init_follows_no_link(self) -> None:
        os.symlink("elsewhere", ".env")
        self.assertEqual(self.run_main("config", "--init", "--no-env-file").code, 7)
        self.assertFalse(Path("elsewhere").exists())

    def test_check_asks_once_free_of_charge(self) -> None:
        gateway = self.gateway()
        ran = self.run_main("config", "--check", gateway=gateway)
        self.assertEqual((ran.code, ran.json["key_accepted"]), (0, True))
        self.assertEqual([(request.method, request.path) for request in gateway.requests], [("GET", "/v1/models")])
        self.assertIn("gpt-image-2", ran.json["image_models"])

    def test_check_says_when_the_key_is_not_accepted_or_the_address_is_wrong(self) -> None:
        ran = self.run_main("config", "--check", gateway=self.gateway(), env={"OPENAI_API_KEY": "sk-wrong-0123456789"})
        self.assertEqual((ran.code, ran.error["status"]), (4, 401))
        ran = self.run_main("config", "--check", transport=FakeTransport(reply("<html>Welcome</html>")))
        self.assertEqual(ran.code, 6)
        self.assertIn("/v1", ran.error["hint"])

    def completion(self, shell: str) -> str:
        """Returns a completion script."""
        ran = self.run_main("config", "--completion", shell)
        self.assertEqual(ran.code, 0, ran.err)
        return ran.out

    def test_completion_knows_every_command_in_its_order(self) -> None:
        self.assertEqual(gpt_image.EVERY, tuple(gpt_image.COMMANDS))

    def test_completion_is_valid_for_each_shell(self) -> None:
        for shell in ("bash", "zsh", "fish"):
            with self.subTest(shell):
                script = self.completion(shell)
                for name in gpt_image.COMMANDS:
                    self.assertIn(name, script)
                for row in gpt_image.OPTIONS:
                    self.assertIn(row.name, script)
                program = shutil.which(shell)
                if program:
                    Path("script").write_text(script, encoding="utf-8")
                    done = subprocess.run([program, "-n", "script"], capture_output=True, text=True)
                    self.assertEqual((done.returncode, done.stderr), (0, ""))

    # What is typed, and what completes its last word.
    TYPED: Tuple[Tuple[List[str], str], ...] = (
        (["gen"], "generations"), (["generations", "--qual"], "--quality"), (["config", "--ini"], "--init"),
        (["generations", "--quality", "x"], "xhigh"), (["edits", "--mask-"], "--mask-box"),
        (["generations", "x", "--output-format", "j"], "jpeg"), (["resume", "--max"], "--max-retries"),
    )  # fmt: skip

    def ask(self, shell: str, lines: List[str]) -> List[str]:
        """Returns what a shell prints that has read its completion script, line by line."""
        script = self.completion(shell)
        done = subprocess.run([shell, "-c", "\n".join([script, *lines])], capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.stdout.splitlines()

    @unittest.skipUnless(shutil.which("bash"), "needs bash")
    def test_completion_completes_in_bash(self) -> None:
        lines = []
        for words, _ in self.TYPED:
            lines.append(f"COMP_WORDS=({shlex.join(['gpt_image.py', *words])}); COMP_CWORD={len(words)}; COMPREPLY=()")
            lines.append('_gpt_image; echo "${COMPREPLY[*]}"')
        self.assertEqual(self.ask("bash", lines), [wanted for _, wanted in self.TYPED])

    @unittest.skipUnless(shutil.which("fish"), "needs fish")
    def test_completion_completes_in_fish(self) -> None:
        lines = [f"complete -C {shlex.quote(shlex.join(['gpt-image', *words]))}" for words, _ in self.TYPED]
        self.assertEqual(self.ask("fish", lines), [wanted for _, wanted in self.TYPED])


@unittest.skipUnless(POSIX, "file descriptors are POSIX here")
class ClosedStreamsEndQuietly(CommandTest):
    """A reader that went away is no error, and words for one stream never go to the other."""

    def start(self, words: str, *argv: str, **streams: Any) -> subprocess.Popen[str]:
        """Starts the program with shell words for its streams."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OPENAI_API_KEY": KEY}
        pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        command = ["sh", "-c", f'exec "$0" "$@" {words}', *child(), *argv]
        return subprocess.Popen(command, env=env, text=True, **pipes)

    def test_a_stream_that_is_closed_or_has_no_reader_ends_quietly(self) -> None:
        near, unread = os.pipe()
        os.close(near)
        wrong, dry = ("generations", "x", "--n", "11"), ("generations", "x", "--dry-run")
        running = {  # all at once, since each takes a while to start; the text in the other stream begins so
            "help, unread": (self.start("", "--help", stdout=unread), 0, ""),
            "dry run, unread": (self.start("", *dry, stdout=unread), 0, ""),
            "dry run, closed": (self.start(">&-", *dry), 0, ""),
            "error, unread": (self.start("", *wrong, stderr=unread), 2, "{"),
            "error, closed": (self.start("2>&-", *wrong), 2, "{"),
            "no input": (self.start("<&-", *dry), 0, "{"),
        }
        os.close(unread)
        for name, (process, code, start) in running.items():
            out, err = process.communicate()
            with self.subTest(name):
                self.assertEqual((process.returncode, err or ""), (code, ""))
                self.assertEqual((out or "")[:1], start, out)
                self.assertTrue(not start or json.loads(out))
