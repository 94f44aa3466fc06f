"""Where each setting comes from: command line, environment, .env, default; and which of them are not to be trusted."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, Ran

OTHER_KEY = "sk-other-fedcba9876543210"
GATEWAY = "https://gateway.example/v1"
POSIX = os.name == "posix"

# Contract §2, word for word.
VARIABLES = {
    "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_IMAGE_MODEL",
    "OPENAI_RESPONSES_MODEL", "OPENAI_IMAGE_TOOL_MODEL", "OPENAI_IMAGE_PROTOCOL", "OPENAI_IMAGE_TIMEOUT",
    "GPT_IMAGE2_API_KEY", "GPT_IMAGE2_BASE_URL",
    *("OPENAI_IMAGE_" + name for name in (
        "SIZE QUALITY N BACKGROUND FORMAT OUTPUT_FORMAT COMPRESSION OUTPUT_COMPRESSION MODERATION STREAM "
        "PARTIAL_IMAGES INPUT_FIDELITY TOOL_CHOICE RESPONSE_FORMAT STYLE USER EXTRA_JSON").split()),
}  # fmt: skip

# Three texts and their values for each option that has a variable: what is in .env, in the environment, and typed.
TEXTS: Dict[str, Tuple[Tuple[str, Any], Tuple[str, Any], Tuple[str, Any]]] = {
    "model": (("model-a", "model-a"), ("model-b", "model-b"), ("model-c", "model-c")),
    "tool-model": (("tool-a", "tool-a"), ("tool-b", "tool-b"), ("tool-c", "tool-c")),
    "n": (("2", 2), ("3", 3), ("4", 4)),
    "size": (("1024x1024", "1024x1024"), ("1536x1024", "1536x1024"), ("auto", "auto")),
    "quality": (("low", "low"), ("medium", "medium"), ("high", "high")),
    "background": (("auto", "auto"), ("opaque", "opaque"), ("auto", "auto")),
    "format": (("jpeg", "jpeg"), ("webp", "webp"), ("jpg", "jpeg")),
    "compression": (("10", 10), ("20", 20), ("30", 30)),
    "moderation": (("auto", "auto"), ("low", "low"), ("auto", "auto")),
    "response-format": (("url", "url"), ("b64_json", "b64_json"), ("url", "url")),
    "style": (("vivid", "vivid"), ("natural", "natural"), ("vivid", "vivid")),
    "input-fidelity": (("low", "low"), ("high", "high"), ("low", "low")),
    "tool-choice": (("auto", "auto"), ("required", "required"), ("image_generation", {"type": "image_generation"})),
    "stream": (("yes", True), ("0", False), ("", True)),
    "partial-images": (("1", 1), ("2", 2), ("3", 3)),
    "user": (("ann", "ann"), ("bob", "bob"), ("cyd", "cyd")),
    "extra-json": (('{"a": 1}', {"a": 1}), ('{"b": 2}', {"b": 2}), ('{"c": 3}', {"c": 3})),
    "protocol": (("openai_images",) * 2, ("openai_chat",) * 2, ("openai_images",) * 2),
    "base-url": (("https://a.example/v1",) * 2, ("https://b.example/v1",) * 2, ("https://c.example/v1",) * 2),
    "api-key": (("sk-aaaaaaaaaa", "***"), ("sk-bbbbbbbbbb", "***"), ("sk-cccccccccc", "***")),
    "organization": (("org-a", "org-a"), ("org-b", "org-b"), ("org-c", "org-c")),
    "project": (("proj-a", "proj-a"), ("proj-b", "proj-b"), ("proj-c", "proj-c")),
    "timeout": (("60", 60.0), ("90.5", 90.5), ("30", 30.0)),
}


class SettingsTest(ProgramTest):
    """A dry run and what it says of its settings."""

    def dry(self, *argv: str, env: Optional[Mapping[str, str]] = None) -> Ran:
        """Makes a dry run of a prompt, without a key unless one is given."""
        return self.run_main("generations", "x", *argv, "--dry-run", env={"OPENAI_API_KEY": "", **(env or {})})

    def setting(self, name: str, *argv: str, env: Optional[Mapping[str, str]] = None) -> Any:
        """Returns the value of a setting in a dry run, or None if it is not set."""
        ran = self.dry(*argv, env=env)
        self.assertEqual(ran.code, 0, ran.err)
        return ran.json["settings"].get(name, {}).get("value")

    def read(self, text: bytes) -> Any:
        """Returns the user name that a .env with this text sets, or None."""
        Path(".env").write_bytes(text)
        return self.setting("user")


class ADotenvThatCannotBeRead(SettingsTest):
    """As it stands in a folder that somebody else keeps."""

    def test_it_is_left_out_with_a_warning_and_refused_if_it_was_named(self) -> None:
        Path(".env").write_text("OPENAI_API_KEY=x\n")
        with mock.patch.object(gpt_image, "read_dotenv", side_effect=PermissionError(13, "Permission denied")):
            ran = self.dry()
            self.assertEqual((ran.code, ran.json["warnings"]), (0, [".env: cannot be read (Permission denied), and left out"]))
            self.assertEqual(self.dry("--env-file", ".env").code, 2)


class EachSettingKnowsItsSource(SettingsTest):
    """Command line > environment > .env > default, for every option that has a variable."""

    def test_the_variables_are_those_of_the_contract(self) -> None:
        self.assertEqual({name for row in gpt_image.OPTIONS for name in row.env}, VARIABLES)

    def cases(self) -> Iterator[Tuple[str, gpt_image.Option, str]]:
        for row in gpt_image.OPTIONS:
            for variable in row.env:
                yield next(name for name in gpt_image.COMMANDS if name in row.commands), row, variable

    def run_with(self, route: str, row: gpt_image.Option, texts: Mapping[str, str], variable: str) -> Any:
        """Returns an option's setting with one text in each place that is given."""
        dotenv = f"\n{variable}={texts['.env']}\n" if ".env" in texts else ""
        Path("my.env").write_text(dotenv)
        os.chmod("my.env", 0o600)
        argv = [route, "x", "--no-validate", "--dry-run", "--env-file", "my.env"]
        argv += ["--image", "a.png"] if route == "edits" else []
        if "typed" in texts:
            argv += [f"--{row.name}"] if row.kind.flag else [f"--{row.name}", texts["typed"]]
        env = {"OPENAI_API_KEY": "", **({variable: texts["environment"]} if "environment" in texts else {})}
        ran = self.run_main(*argv, env=env)
        self.assertEqual(ran.code, 0, ran.err)
        return ran.json["settings"].get(row.name, {"value": None, "source": None})

    def test_the_command_line_stands_above_the_environment_above_the_dotenv_above_the_default(self) -> None:
        Path("a.png").write_bytes(pictures.picture(b"a", "png", 64, 48))
        for route, row, variable in self.cases():
            (low, low_value), (middle, middle_value), (high, high_value) = TEXTS[row.name]
            texts = {".env": low, "environment": middle, "typed": high}
            with self.subTest(variable):
                found = self.run_with(route, row, texts, variable)
                self.assertEqual(found, {"value": high_value, "source": "command line"})
                texts.pop("typed")
                found = self.run_with(route, row, texts, variable)
                self.assertEqual(found, {"value": middle_value, "source": f"environment {variable}"})
                texts.pop("environment")
                found = self.run_with(route, row, texts, variable)
                self.assertEqual(found, {"value": low_value, "source": "my.env line 2"})
                found = self.run_with(route, row, {}, variable)
                self.assertEqual(found["source"], None if row.default is None else "default")

    def test_an_empty_variable_counts_as_unset(self) -> None:
        Path(".env").write_text("OPENAI_IMAGE_USER=\nOPENAI_IMAGE_SIZE=\nOPENAI_IMAGE_QUALITY=low\n")
        ran = self.dry(env={"OPENAI_IMAGE_USER": "", "OPENAI_IMAGE_QUALITY": "", "OPENAI_IMAGE_MODEL": ""})
        settings = ran.json["settings"]
        self.assertNotIn("user", settings)
        self.assertNotIn("size", settings)
        self.assertEqual(settings["quality"], {"value": "low", "source": ".env line 3"})
        self.assertEqual(settings["model"], {"value": "gpt-image-2", "source": "default"})

    def test_the_defaults_are_those_of_the_contract(self) -> None:
        settings = self.dry().json["settings"]
        self.assertEqual({name: row["value"] for name, row in settings.items() if row["source"] == "default"}, {
            "model": "gpt-image-2", "base-url": "https://api.openai.com/v1", "timeout": 600.0, "max-retries": 2,
            "progress": "auto", "protocol": "openai_images",
        })  # fmt: skip
        settings = self.run_main("responses", "x", "--dry-run").json["settings"]
        self.assertEqual(settings["model"]["value"], "gpt-5.4")
        self.assertEqual(settings["tool-choice"]["value"], {"type": "image_generation"})

    def test_older_names_are_read_where_the_usual_ones_are_unset(self) -> None:
        old = {"GPT_IMAGE2_BASE_URL": "https://old.example/v1", "GPT_IMAGE2_API_KEY": OTHER_KEY}
        settings = self.dry(env=old).json["settings"]
        self.assertEqual(settings["base-url"]["value"], "https://old.example/v1")
        self.assertEqual(settings["api-key"], {"value": "***", "source": "environment GPT_IMAGE2_API_KEY"})
        both = self.dry(env={**old, "OPENAI_BASE_URL": GATEWAY, "OPENAI_API_KEY": KEY}).json["settings"]
        self.assertEqual(both["base-url"]["value"], GATEWAY)
        self.assertEqual(both["api-key"]["source"], "environment OPENAI_API_KEY")

    def test_a_stronger_source_comes_before_a_better_name(self) -> None:
        Path(".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={GATEWAY}\n")
        os.chmod(".env", 0o600)
        old = {"GPT_IMAGE2_BASE_URL": "https://old.example/v1", "GPT_IMAGE2_API_KEY": OTHER_KEY}
        settings = self.dry(env=old).json["settings"]
        self.assertEqual(settings["base-url"]["value"], "https://old.example/v1")
        self.assertEqual(settings["api-key"]["source"], "environment GPT_IMAGE2_API_KEY")

    def test_a_source_is_told_apart_by_its_kind_and_shown_by_its_label(self) -> None:
        for source, label in (
            (gpt_image.Source(gpt_image.TYPED), "command line"), (gpt_image.Source(gpt_image.DEFAULT), "default"),
            (gpt_image.Source(gpt_image.VARIABLE, "A_B"), "environment A_B"),
            (gpt_image.Source(gpt_image.DOTENV, "A_B", "x/.env line 4"), "x/.env line 4"),
            (gpt_image.Source(gpt_image.SUFFIX), "suffix of --output"), (gpt_image.Source("resume"), "resume"),
        ):  # fmt: skip
            with self.subTest(label):
                self.assertEqual(source.label, label)
        ran = self.dry("--output", "new.webp")
        self.assertEqual(ran.json["settings"]["format"], {"value": "webp", "source": "suffix of --output"})

    def test_the_older_spelling_of_a_variable_is_a_second_choice(self) -> None:
        self.assertEqual(self.setting("format", env={"OPENAI_IMAGE_OUTPUT_FORMAT": "webp"}), "webp")
        both = {"OPENAI_IMAGE_OUTPUT_FORMAT": "webp", "OPENAI_IMAGE_FORMAT": "jpeg"}
        self.assertEqual(self.setting("format", env=both), "jpeg")

    def test_a_variable_of_another_route_is_not_looked_at(self) -> None:
        env = {"OPENAI_IMAGE_TOOL_CHOICE": "nonsense", "OPENAI_IMAGE_INPUT_FIDELITY": "nonsense"}
        self.assertEqual(self.dry(env=env).code, 0)
        self.assertEqual(self.run_main("responses", "x", "--dry-run", env={"OPENAI_IMAGE_N": "99"}).code, 0)

    def test_a_flag_is_read_from_a_variable_in_the_usual_words(self) -> None:
        for text, value in (("1", True), ("true", True), ("Yes", True), ("on", True), ("0", False), ("FALSE", False),
                            ("no", False), ("off", False)):  # fmt: skip
            with self.subTest(text):
                self.assertEqual(self.setting("stream", env={"OPENAI_IMAGE_STREAM": text}), value)
        ran = self.dry(env={"OPENAI_IMAGE_STREAM": "perhaps"})
        self.assertEqual((ran.code, ran.error["rule"]), (2, "stream-unreadable-value"))
        self.assertEqual(self.setting("stream", "--no-stream", env={"OPENAI_IMAGE_STREAM": "1"}), False)

    def test_an_error_begins_with_the_place_of_the_value(self) -> None:
        Path(".env").write_text("# mine\n\nexport A=b\nOPENAI_IMAGE_SIZE=1000x1000\n")
        places: Tuple[Tuple[Dict[str, str], Tuple[str, ...], str], ...] = (
            ({}, (), ".env line 4: OPENAI_IMAGE_SIZE: 1000x1000: "),
            ({"OPENAI_IMAGE_SIZE": "5x5"}, (), "environment: OPENAI_IMAGE_SIZE: 5x5: "),
            ({"OPENAI_IMAGE_SIZE": "5x5"}, ("--size", "7x7"), "--size 7x7: "),
        )
        for env, argv, start in places:
            with self.subTest(start):
                ran = self.dry(*argv, env=env)
                self.assertEqual(ran.code, 2)
                self.assertTrue(ran.error["message"].startswith(start), ran.error["message"])
                self.assertIn(f"gpt_image.py: error: {start}", ran.err)

    def test_a_value_that_cannot_be_read_names_its_place_too(self) -> None:
        Path(".env").write_text("OPENAI_IMAGE_N=three\n")
        ran = self.dry()
        self.assertTrue(ran.error["message"].startswith(".env line 1: OPENAI_IMAGE_N: three: "), ran.error)

    def test_a_long_value_is_cut_wherever_it_stood(self) -> None:
        for argv, env in ((("--n", "x" * 900), {}), ((), {"OPENAI_IMAGE_N": "x" * 900})):
            with self.subTest(argv=argv):
                message = self.dry(*argv, env=env).error["message"]
                self.assertIn(f" {'x' * 200}…: expected a whole number", message)


class DotenvIsRead(SettingsTest):
    """The grammar of .env: quotes, export, comments, CRLF, a byte order mark."""

    LINES = (
        ("OPENAI_IMAGE_USER=ann", "ann"), ("OPENAI_IMAGE_USER = ann ", "ann"),
        ("  export OPENAI_IMAGE_USER=ann", "ann"), ("export\tOPENAI_IMAGE_USER=ann", "ann"),
        ("OPENAI_IMAGE_USER='ann b'", "ann b"), ('OPENAI_IMAGE_USER="ann b"', "ann b"),
        ("OPENAI_IMAGE_USER=ann b", "ann b"), ("OPENAI_IMAGE_USER=ann # a comment", "ann"),
        ("OPENAI_IMAGE_USER=ann#1", "ann#1"), ("OPENAI_IMAGE_USER='ann # b'", "ann # b"),
        ('OPENAI_IMAGE_USER="ann # b" # c', "ann # b"), ('OPENAI_IMAGE_USER="say \\"hi\\""', 'say "hi"'),
        ("OPENAI_IMAGE_USER='C:\\new'", "C:\\new"), ("OPENAI_IMAGE_USER=C:\\new", "C:\\new"),
        ("OPENAI_IMAGE_USER=a=b=c", "a=b=c"), ("OPENAI_IMAGE_USER=it's", "it's"), ("OPENAI_IMAGE_USER=$HOME", "$HOME"),
        ("OPENAI_IMAGE_USER='ünïcode 图'", "ünïcode 图"), ("OPENAI_IMAGE_USER=", None), ("OPENAI_IMAGE_USER=''", None),
        ("OPENAI_IMAGE_USER= # only a comment", None), ("#OPENAI_IMAGE_USER=ann", None),
        ("  # OPENAI_IMAGE_USER=ann", None), ("OPENAI_IMAGE_USER=ann\nOPENAI_IMAGE_USER=bob", "bob"),
        ("\n\nOPENAI_IMAGE_USER=ann", "ann"), ("OPENAI_IMAGE_USER=\tann\t", "ann"),
    )  # fmt: skip

    def test_each_line_is_understood(self) -> None:
        for text, value in self.LINES:
            with self.subTest(text):
                self.assertEqual(self.read(text.encode()), value)
                self.assertEqual(self.dry().json["warnings"], [])

    def test_each_line_is_understood_with_crlf_and_a_byte_order_mark(self) -> None:
        for text, value in self.LINES:
            with self.subTest(text):
                self.assertEqual(self.read(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n"), value)

    def test_the_utf_16_of_powershell_is_understood(self) -> None:
        for encoding in ("utf-16-le", "utf-16-be"):
            with self.subTest(encoding):
                text = "\ufeff# mine\r\nOPENAI_IMAGE_USER=ann\r\n".encode(encoding)
                self.assertEqual(self.read(text), "ann")

    def test_a_number_sign_may_stand_within_a_value(self) -> None:
        Path(".env").write_text("OPENAI_API_KEY=sk-abc#def-0123456789\n")
        os.chmod(".env", 0o600)
        transport = FakeTransport()
        with mock.patch.object(FakeTransport, "__call__", autospec=True, side_effect=KeyboardInterrupt) as sent:
            self.run_main("generations", "x", transport=transport, env={"OPENAI_API_KEY": ""})
        headers = dict(sent.call_args[0][1].headers)
        self.assertEqual(headers["Authorization"].reveal(), "Bearer sk-abc#def-0123456789")

    def test_a_line_that_is_not_understood_is_a_warning_with_its_number_and_is_not_shown(self) -> None:
        for line in ("no equals sign", "OPENAI_IMAGE_USER='ann", 'OPENAI_IMAGE_USER="ann', "1A=b", "A-B=c", "=xyz",
                     "'A'=b", f"export {OTHER_KEY}", "A='b' c", 'A="b"c'):  # fmt: skip
            with self.subTest(line):
                Path(".env").write_text(f"OPENAI_IMAGE_QUALITY=low\n{line}\nOPENAI_IMAGE_SIZE=auto\n")
                ran = self.dry()
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(len(ran.json["warnings"]), 1, ran.json["warnings"])
                self.assertIn(".env line 2", ran.json["warnings"][0])
                self.assertNotIn(line, ran.out + ran.err)
                self.assertEqual(ran.json["settings"]["quality"]["value"], "low")
                self.assertEqual(ran.json["settings"]["size"]["value"], "auto")

    def test_an_unknown_name_of_ours_gets_a_did_you_mean(self) -> None:
        Path(".env").write_text("OPENAI_IMAGE_QUALTY=low\nOTHER_TOOL=x\nOPENAI_IMAGE_NONSENSE=1\n")
        warnings = self.dry().json["warnings"]
        self.assertEqual(len(warnings), 2, warnings)
        self.assertRegex(warnings[0], r"\.env line 1: OPENAI_IMAGE_QUALTY .*did you mean OPENAI_IMAGE_QUALITY\?")
        self.assertRegex(warnings[1], r"\.env line 3: OPENAI_IMAGE_NONSENSE")

    def test_bytes_that_are_no_text_do_no_harm(self) -> None:
        for data in (b"\xff\xfe\xff", b"\0\0\0\0", bytes(range(256)), b"\xef\xbb\xbf", b"OPENAI_IMAGE_USER=\xff\n"):
            with self.subTest(data):
                Path(".env").write_bytes(data)
                self.assertIn(self.dry().code, (0, 2))

    def test_variables_are_not_put_together_from_others(self) -> None:
        self.assertEqual(self.read(b"A=1\nOPENAI_IMAGE_USER=${A}-$A\n"), "${A}-$A")


class DotenvIsFound(SettingsTest):
    """One .env is read: --env-file, the current folder's, the script's, or the user's; never a parent's."""

    def setUp(self) -> None:
        super().setUp()
        self.script = self.folder / "script"
        self.work = self.folder / "work"
        for name in ("script", "work", "xdg/gpt-image", "home/.config/gpt-image"):
            (self.folder / name).mkdir(parents=True)
        os.chdir(self.work)
        patch = mock.patch.object(gpt_image, "__file__", str(self.script / "gpt_image.py"))
        patch.start()
        self.addCleanup(patch.stop)

    def put(self, *folders: str) -> None:
        """Writes a .env into each folder, which names it."""
        for name in folders:
            (self.folder / name / ".env").write_text(f"OPENAI_IMAGE_USER={name}\n")

    def test_the_first_place_that_has_one_wins(self) -> None:
        env = {"XDG_CONFIG_HOME": str(self.folder / "xdg")}
        self.assertIsNone(self.setting("user", env=env))
        for place in ("xdg/gpt-image", "script", "work"):
            self.put(place)
            self.assertEqual(self.setting("user", env=env), place)
        (self.work / "own.env").write_text("OPENAI_IMAGE_USER=own\n")
        self.assertEqual(self.setting("user", "--env-file", "own.env", env=env), "own")
        self.assertIsNone(self.setting("user", "--no-env-file", env=env))

    def test_the_home_of_the_environment_is_the_one_looked_in(self) -> None:
        self.put("home/.config/gpt-image")
        self.assertEqual(self.setting("user", env={"HOME": str(self.folder / "home")}), "home/.config/gpt-image")

    def test_without_a_home_nothing_is_found_and_nothing_breaks(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop("HOME", None)
            self.assertIsNone(self.setting("user", env={"HOME": ""}))

    def test_parents_are_not_searched(self) -> None:
        (self.folder / ".env").write_text("OPENAI_IMAGE_USER=parent\n")
        self.assertIsNone(self.setting("user"))

    def test_a_folder_named_dotenv_is_passed_over(self) -> None:
        (self.work / ".env").mkdir()
        self.put("script")
        self.assertEqual(self.setting("user"), "script")

    def test_an_env_file_that_cannot_be_read_is_refused(self) -> None:
        for name in ("none.env", "."):
            ran = self.dry("--env-file", name)
            self.assertEqual(ran.code, 2, ran.err)
            self.assertIn(f"--env-file {name}", ran.error["message"])

    @unittest.skipUnless(POSIX, "file modes are POSIX")
    def test_a_dotenv_with_a_key_that_others_can_read_gets_a_warning(self) -> None:
        for name, value, mode, count in (
            ("OPENAI_API_KEY", OTHER_KEY, 0o644, 1), ("OPENAI_API_KEY", OTHER_KEY, 0o640, 1),
            ("OPENAI_API_KEY", OTHER_KEY, 0o600, 0), ("GPT_IMAGE2_API_KEY", OTHER_KEY, 0o604, 1),
            ("OPENAI_API_KEY", "", 0o644, 0), ("OPENAI_IMAGE_N", "1", 0o644, 0),
        ):  # fmt: skip
            with self.subTest(name=name, value=value, mode=oct(mode)):
                Path(".env").write_text(f"{name}={value}\n")
                os.chmod(".env", mode)
                ran = self.dry()
                warnings = [words for words in ran.json["warnings"] if "chmod 600" in words]
                self.assertEqual(len(warnings), count, ran.json["warnings"])
                self.assertNotIn(OTHER_KEY, ran.out + ran.err)

    @unittest.skipUnless(POSIX, "modes of files")
    def test_what_to_run_then_can_be_pasted(self) -> None:
        Path("my keys.env").write_text(f"OPENAI_API_KEY={OTHER_KEY}\n")
        os.chmod("my keys.env", 0o644)
        (warning,) = self.dry("--env-file", "my keys.env").json["warnings"]
        self.assertTrue(warning.endswith("run chmod 600 'my keys.env'"), warning)


class AHostileDotenvGetsNoKey(SettingsTest):
    """A .env in a cloned folder must not choose where the user's own key goes."""

    HOSTILE = "OPENAI_BASE_URL=https://thief.example/v1\n"

    def attempt(
        self, dotenv: str, *argv: str, env: Optional[Mapping[str, str]] = None, name: str = ".env"
    ) -> Tuple[Ran, List[gpt_image.Request]]:
        """Runs a call with a .env, and returns how it ended and the requests that were sent."""
        Path(name).write_text(dotenv)
        os.chmod(name, 0o600)
        requests: List[gpt_image.Request] = []

        def transport(request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> gpt_image.Fault:
            requests.append(request)
            return gpt_image.Fault("not today", sent=True)

        ran = self.run_main("generations", "x", *argv, transport=transport, env=env)
        return ran, requests

    def test_a_base_url_from_the_folder_is_not_used_with_a_key_from_elsewhere(self) -> None:
        for argv, env in (
            ((), {"OPENAI_API_KEY": KEY}), ((), {"OPENAI_API_KEY": "", "GPT_IMAGE2_API_KEY": KEY}),
            (("--api-key", KEY), {"OPENAI_API_KEY": ""}), (("--api-key-env", "MINE"), {"MINE": KEY}),
            (("--header", f"Authorization: Bearer {KEY}"), {"OPENAI_API_KEY": ""}),
            (("--header", f"api-key: {KEY}"), {"OPENAI_API_KEY": ""}), (("--no-validate",), {"OPENAI_API_KEY": KEY}),
        ):  # fmt: skip
            with self.subTest(argv=argv, env=env):
                ran, requests = self.attempt(self.HOSTILE, *argv, env=env)
                self.assertEqual((ran.code, requests), (3, []), ran.err)
                self.assertIn(".env line 1", ran.error["message"])
                self.assertIn("--base-url https://thief.example/v1", ran.error["hint"])
                self.assertIn("--no-env-file", ran.error["hint"])
                self.assert_no_key(ran)

    def test_the_older_name_is_no_way_around(self) -> None:
        ran, requests = self.attempt("GPT_IMAGE2_BASE_URL=https://thief.example/v1\n")
        self.assertEqual((ran.code, requests), (3, []))

    def test_a_secret_header_goes_nowhere_even_beside_a_key_of_the_folder(self) -> None:
        text = self.HOSTILE + f"OPENAI_API_KEY={OTHER_KEY}\n"
        for header in (f"Authorization: Bearer {KEY}", f"X-Api-Key: {KEY}", f"Cookie: session={KEY}"):
            ran, requests = self.attempt(text, "--header", header, env={"OPENAI_API_KEY": ""})
            self.assertEqual((ran.code, requests), (3, []), header)

    def test_config_check_and_resume_are_stopped_too(self) -> None:
        Path(".env").write_text(self.HOSTILE)
        for argv in (("config", "--check"), ("resume", "resp_12345"), ("generations", "x", "--dry-run")):
            with self.subTest(argv):
                transport = FakeTransport()
                ran = self.run_main(*argv, transport=transport)
                self.assertEqual((ran.code, transport.requests), (3, []), ran.err)

    def test_a_base_url_and_a_key_of_the_same_file_belong_together(self) -> None:
        text = self.HOSTILE + f"OPENAI_API_KEY={OTHER_KEY}\n"
        ran, requests = self.attempt(text, env={"OPENAI_API_KEY": ""})
        self.assertEqual((ran.code, len(requests)), (5, 1), ran.err)
        self.assertTrue(requests[0].url.startswith("https://thief.example/v1/"))

    def test_a_key_of_the_environment_beside_a_key_of_the_file_is_from_elsewhere(self) -> None:
        text = self.HOSTILE + f"OPENAI_API_KEY={OTHER_KEY}\n"
        ran, requests = self.attempt(text, env={"OPENAI_API_KEY": KEY})
        self.assertEqual((ran.code, requests), (3, []))

    def test_what_a_person_names_is_used(self) -> None:
        for argv, name in (
            (("--env-file", ".env"), ".env"), (("--env-file", "other.env"), "other.env"),
            (("--base-url", "https://thief.example/v1"), ".env"),
        ):
            with self.subTest(argv):
                ran, requests = self.attempt(self.HOSTILE, *argv, name=name)
                self.assertEqual((ran.code, len(requests)), (5, 1), ran.err)

    def test_a_base_url_of_the_environment_is_the_user_s_own(self) -> None:
        ran, requests = self.attempt(self.HOSTILE, env={"OPENAI_BASE_URL": GATEWAY})
        self.assertEqual((ran.code, len(requests)), (5, 1), ran.err)
        self.assertTrue(requests[0].url.startswith(GATEWAY))


class KeysAreChecked(SettingsTest):
    """There is a key, it has the form of one, and it is found where the user says."""

    def test_a_call_without_a_key_ends_with_exit_3_and_says_what_to_do(self) -> None:
        for argv in (("generations", "x"), ("responses", "x"), ("resume", "resp_12345"), ("config", "--check")):
            with self.subTest(argv):
                transport = FakeTransport()
                ran = self.run_main(*argv, transport=transport, env={"OPENAI_API_KEY": ""})
                self.assertEqual((ran.code, transport.requests), (3, []), ran.err)
                self.assertEqual(ran.error["exit"], 3)
                self.assertIn("OPENAI_API_KEY", ran.error["hint"])

    def test_what_sends_nothing_needs_no_key(self) -> None:
        for argv in (
            ("generations", "x", "--dry-run"), ("responses", "x", "--dry-run"), ("generations", "x", "--curl"),
            ("config",), ("config", "--completion", "bash"), ("--help",), ("--version",),
        ):  # fmt: skip
            with self.subTest(argv):
                self.assertEqual(self.run_main(*argv, env={"OPENAI_API_KEY": ""}).code, 0)

    def test_a_key_with_a_line_break_or_blanks_within_is_refused_and_not_shown(self) -> None:
        for key in ("sk-secret\nvalue", "sk-secret value", "sk-secret\rvalue", "sk-sécret-value", "sk-secret\0value"):
            with self.subTest(key):
                transport = FakeTransport()
                ran = self.run_main("generations", "x", transport=transport, env={"OPENAI_API_KEY": key})
                self.assertEqual((ran.code, transport.requests), (3, []), ran.err)
                self.assertIn("OPENAI_API_KEY", ran.error["message"])
                self.assert_no_key(ran, (key, key[:8]))

    def test_blanks_around_a_key_are_taken_off(self) -> None:
        for key in (f" {KEY}", f"{KEY}\n", f"\t{KEY}\r\n"):
            with self.subTest(key), mock.patch.object(
                FakeTransport, "__call__", autospec=True, side_effect=KeyboardInterrupt
            ) as sent:
                ran = self.run_main("generations", "x", env={"OPENAI_API_KEY": key})
                self.assertEqual(ran.code, 130, ran.err)
                self.assertEqual(dict(sent.call_args[0][1].headers)["Authorization"].reveal(), f"Bearer {KEY}")

    def test_a_key_of_blanks_is_none(self) -> None:
        ran = self.run_main("generations", "x", env={"OPENAI_API_KEY": "   "})
        self.assertEqual(ran.code, 3, ran.err)

    def test_the_variable_of_the_key_may_be_named(self) -> None:
        ran = self.dry("--api-key-env", "MINE", env={"MINE": OTHER_KEY, "OPENAI_API_KEY": KEY})
        self.assertEqual(ran.json["settings"]["api-key"], {"value": "***", "source": "environment MINE"})
        self.assertNotIn(OTHER_KEY, ran.out + ran.err)
        Path(".env").write_text(f"MINE={OTHER_KEY}\n")
        os.chmod(".env", 0o600)
        ran = self.dry("--api-key-env", "MINE", env={"OPENAI_API_KEY": KEY})
        self.assertEqual(ran.json["settings"]["api-key"]["source"], ".env line 1")

    def test_a_named_variable_that_is_unset_is_no_reason_to_take_another(self) -> None:
        transport = FakeTransport()
        ran = self.run_main("generations", "x", "--api-key-env", "MINE", transport=transport)
        self.assertEqual((ran.code, transport.requests), (3, []))
        self.assertIn("MINE", ran.error["hint"])

    def test_a_header_of_the_user_can_take_the_place_of_the_key(self) -> None:
        for header in ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "api-key: 0123456789abcdef"):
            with self.subTest(header), mock.patch.object(
                FakeTransport, "__call__", autospec=True, side_effect=KeyboardInterrupt
            ):
                ran = self.run_main("generations", "x", "--header", header, env={"OPENAI_API_KEY": ""})
                self.assertEqual(ran.code, 130, ran.err)
                self.assert_no_key(ran, (header.split()[-1],))

    def test_secrets_are_masked_wherever_settings_are_shown(self) -> None:
        argv = ("--header", "X-Auth-Token: tok-0123456789", "--header", "X-Note: plain", "--api-key", OTHER_KEY)
        for more in (("--dry-run",), ("--curl",)):
            ran = self.run_main("generations", "x", *argv, *more)
            self.assertEqual(ran.code, 0, ran.err)
            self.assert_no_key(ran, (OTHER_KEY, KEY, "tok-0123456789"))
            self.assertIn("plain", ran.out)
        ran = self.run_main("config", *argv)
        self.assert_no_key(ran, (OTHER_KEY, KEY, "tok-0123456789"))
        ran = self.run_main("config", *argv, terminal=True)
        self.assert_no_key(ran, (OTHER_KEY, KEY, "tok-0123456789"))
