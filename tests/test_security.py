"""Attacks, each by its name: the key stays secret, goes to one origin, and nobody else's words become paths or commands."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import KEY, ROOT, SCRIPT, FakeTransport, ProgramTest, Ran, Terminal, reply

SMALL = ("--model", "small", "--size", "48x32")
TALK = ("responses", "A lake", "--tool-model", "small", "--size", "48x32")
PICTURE = pictures.picture(b"safe", "png", 48, 32)
TEXT = base64.b64encode(PICTURE).decode()
ROUTES: Tuple[Tuple[str, ...], ...] = (
    ("generations", "A lake", *SMALL),
    ("generations", "A lake", *SMALL, "--stream"),
    ("edits", "Snow", *SMALL, "--image", "in/in.png"),
    TALK,
    (*TALK, "--stream"),
    ("generations", "A lake", "--model", "small", "--protocol", "openai_chat"),
)
posix_only = unittest.skipUnless(os.name == "posix", "symbolic links and modes are POSIX")


def images(*rows: Dict[str, Any], **more: Any) -> Dict[str, Any]:
    """Returns a reply of the Images routes."""
    return {"created": 1, "data": list(rows), **more}


class AttackTest(ProgramTest):
    """A test in a folder that holds an input picture and a secret that nothing may touch."""

    def setUp(self) -> None:
        super().setUp()
        Path("in").mkdir()
        Path("in/in.png").write_bytes(pictures.picture(b"in", "png", 48, 32))
        Path("in/victim.txt").write_bytes(b"precious")

    def tearDown(self) -> None:
        self.assertEqual(Path("in/victim.txt").read_bytes(), b"precious")

    def make(self, *options: str, transport: Any = None, **how: Any) -> Ran:
        """Makes one picture."""
        return self.run_main("generations", "A lake", *SMALL, *options, transport=transport, **how)

    def assert_refused(self, code: int, *argv: str, **how: Any) -> Ran:
        """Asserts that a command ends with a code before anything is sent."""
        fake = FakeTransport()
        ran = self.run_main(*argv, transport=fake, **how)
        self.assertEqual((ran.code, fake.requests), (code, []), f"{argv}\n{ran.err}")
        self.assertNotIn("Traceback", ran.err)
        return ran


class TheKeyIsNeverShown(AttackTest):
    """Not in what is printed, and not in what is written, whoever repeats it."""

    def test_a_server_that_repeats_the_key_in_an_error(self) -> None:
        for number, argv in enumerate(ROUTES):
            for scenario in ("key-in-error", "key-in-400"):
                with self.subTest(route=argv[0], scenario=scenario):
                    gateway = self.gateway(scenario)
                    out = ("--output", f"{scenario}-{number}.png", "--save-response", f"{scenario}-{number}.json")
                    ran = self.run_main(*argv, *out, gateway=gateway)
                    self.assertEqual(ran.code, 4)
                    self.assertIn("***", ran.error["message"])
                    self.assert_no_key(ran)

    def test_a_server_that_repeats_the_key_beside_its_pictures(self) -> None:
        for number, argv in enumerate(ROUTES):
            with self.subTest(argv=argv):
                gateway = self.gateway("key-in-reply")
                ran = self.run_main(*argv, "--output", f"p{number}.png", "--save-response", f"{number}.json", gateway=gateway)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertTrue(Path(f"{number}.json").read_bytes())
                self.assert_no_key(ran)

    def test_the_key_on_a_terminal(self) -> None:
        gateway = self.gateway("key-in-reply")
        ran = self.run_main(*TALK, "--output", "t.png", gateway=gateway, terminal=True)
        self.assertEqual(ran.code, 0)
        self.assert_no_key(ran)

    def test_the_key_in_headers_that_are_reported(self) -> None:
        ran = self.make("--output", "p.png", transport=FakeTransport(reply(images({"b64_json": TEXT}), 200, {"x-request-id": KEY})))
        self.assertEqual(ran.code, 0)
        self.assert_no_key(ran)
        where = {"Location": f"https://evil.example/{KEY}?k={KEY}"}
        ran = self.make("--output", "q.png", transport=FakeTransport(reply(b"", 302, where)))
        self.assert_no_key(ran)
        self.assertIn("evil.example", ran.error["message"])

    def test_the_key_in_the_reason_of_a_broken_connection(self) -> None:
        ran = self.make("--output", "p.png", transport=FakeTransport(gpt_image.Fault(f"bad header {KEY}", True)))
        self.assertEqual(ran.code, 5)
        self.assert_no_key(ran)

    def test_the_key_in_the_traceback_of_a_bug(self) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError(f"cannot send Authorization: Bearer {KEY}")

        for options in ((), ("--json",)):
            with self.subTest(options=options):
                ran = self.make("--output", "p.png", *options, transport=broken, terminal=bool(options))
                self.assertEqual(ran.code, 1)
                self.assertIn("RuntimeError", ran.err)
                self.assert_no_key(ran)

    def test_the_key_split_across_the_pieces_of_a_kept_reply(self) -> None:
        body = json.dumps({"note": f"{KEY} and {KEY}{KEY}, {KEY[:-1]}", "data": [], "more": KEY}).encode()
        for size in (*range(1, 30), len(body) - 1):
            with self.subTest(size=size):
                ran = self.make("--output", f"p{size}.png", transport=FakeTransport(reply(body, size=size)))
                self.assertEqual(ran.code, 6)
                kept = Path(f"p{size}.reply").read_bytes()
                self.assertEqual(kept.replace(b"*" * len(KEY), KEY.encode()), body)
                self.assert_no_key(ran)

    def test_the_key_at_the_very_end_of_a_reply_that_is_cut(self) -> None:
        for end in range(len(KEY) - 3, len(KEY) + 1):
            with self.subTest(end=end):
                body = b'{"data": [], "note": "' + KEY[:end].encode()
                ran = self.make("--output", f"p{end}.png", transport=FakeTransport(reply(body, size=7)))
                self.assertIn(ran.code, (5, 6))
                self.assert_no_key(ran)
                self.assertEqual(len(Path(f"p{end}.reply").read_bytes()), len(body))

    def test_a_key_that_json_writes_in_another_way(self) -> None:
        for key in ("sk/with/slashes/0123456789", "sk+plus=and/0123456789=="):
            for text in (key, key.replace("/", "\\/")):
                with self.subTest(text=text):
                    body = f'{{"error": {{"message": "bad {text}", "code": "x"}}, "data": []}}'.encode()
                    env = {"OPENAI_API_KEY": key}
                    name = str(len(self.files()))
                    ran = self.make("--output", f"{name}.png", transport=FakeTransport(reply(body)), env=env)
                    self.assertNotEqual(ran.code, 0)
                    self.assert_no_key(ran, (key, key.replace("/", "\\/")))

    def test_a_key_in_a_stream_whose_deltas_cut_it(self) -> None:
        events = [{"type": "response.output_text.delta", "delta": part} for part in (KEY[:7], KEY[7:12], KEY[12:])]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        ran = self.run_main(*TALK, "--output", "p.png", transport=FakeTransport(reply(body)))
        self.assertEqual(ran.code, 6)
        self.assertNotIn(KEY, ran.out + ran.err)

    def test_the_key_in_shown_requests_and_settings(self) -> None:
        for argv in ROUTES:
            for how in ("--dry-run", "--curl"):
                for source in ((), ("--api-key", KEY), ("--header", f"Authorization: Bearer {KEY}"), ("--header", f"api-key: {KEY}")):
                    with self.subTest(route=argv[0], how=how, source=source[:1]):
                        ran = self.run_main(*argv, how, *source, "--output", "d.png")
                        self.assertEqual(ran.code, 0, ran.err)
                        self.assert_no_key(ran)
        for terminal in (False, True):
            for options in ((), ("--json",), ("--api-key", KEY), ("--header", f"X-Token: {KEY}")):
                with self.subTest(options=options[:1], terminal=terminal):
                    ran = self.run_main("config", *options, terminal=terminal)
                    self.assertEqual(ran.code, 0)
                    self.assert_no_key(ran)

    def test_a_dry_run_shows_no_secret_of_a_file_either(self) -> None:
        Path(".env").write_text(f"OPENAI_API_KEY={KEY}-of-file\n")
        os.chmod(".env", 0o600)
        for argv in (("config",), (*ROUTES[0], "--dry-run"), (*ROUTES[0], "--curl")):
            with self.subTest(argv=argv):
                ran = self.run_main(*argv, env={"OPENAI_API_KEY": ""})
                self.assertEqual(ran.code, 0)
                self.assertNotIn(KEY, ran.out + ran.err)

    def test_the_passwords_of_proxies(self) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("tunnel to http://jane:hunter2hunter2@proxy.example:8080 failed")

        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "http_proxy"):
            with self.subTest(name=name):
                env = {name: "http://jane:hunter2hunter2@proxy.example:8080"}
                ran = self.make("--output", "p.png", transport=broken, env=env)
                self.assertEqual(ran.code, 1)
                self.assert_no_key(ran, ("hunter2hunter2",))

    def test_secrets_in_headers_of_the_users_own(self) -> None:
        secret = "s3cret-of-a-header"
        for header in (f"X-Api-Key: {secret}", f"Cookie: a={secret}", f"Authorization: Basic {secret}", f"X-Auth: {secret}"):
            for how in ("--dry-run", "--curl"):
                with self.subTest(header=header[:9], how=how):
                    self.assert_no_key(self.make("--output", "p.png", "--header", header, how), (secret,))
            with self.subTest(header=header[:9]):
                body = {"error": {"message": f"I got {secret}", "code": None}}
                ran = self.make("--output", "p.png", "--header", header, transport=FakeTransport(reply(body, 400)))
                self.assertEqual(ran.code, 4)
                value = header.partition(": ")[2]
                self.assert_no_key(ran, (value,) if "=" in value else (secret,))

    def test_a_header_with_a_slip_of_the_pen_is_not_quoted_back(self) -> None:
        secret = "s3cret-of-a-header"
        slips = (f"Authorization Bearer {secret}", f"Authorization=Bearer {secret}", f"X-Key: {secret}\nA: b", f": {secret}")
        for header in slips:
            with self.subTest(header=header):
                ran = self.assert_refused(2, *ROUTES[0], "--header", header)
                self.assertNotIn(secret, ran.out + ran.err)

    def test_a_key_with_a_slip_of_the_pen_is_not_quoted_back(self) -> None:
        for key in (f"{KEY} x", f"{KEY}\nX-Evil: 1", f"Bearer {KEY}", f"“{KEY}”", f"{KEY}\x00", f"{KEY}\x7f"):
            for way in ("option", "variable"):
                with self.subTest(key=key, way=way):
                    options = ("--api-key", key) if way == "option" else ()
                    ran = self.assert_refused(3, *ROUTES[0], *options, env={"OPENAI_API_KEY": key if way == "variable" else KEY})
                    self.assertNotIn(KEY, ran.out + ran.err)

    def test_a_mistyped_option_that_holds_the_key(self) -> None:
        for words in ((f"--api-kye={KEY}",), ("--api-kye", KEY), (f"--apikey={KEY}",)):
            with self.subTest(words=words):
                self.assertNotIn(KEY, (ran := self.assert_refused(2, *ROUTES[0], *words)).out + ran.err)

    def test_the_url_of_a_login_is_refused_and_its_password_not_shown(self) -> None:
        for url in ("https://jane:hunter2hunter2@api.example/v1", "http://jane:hunter2hunter2@127.0.0.1/v1"):
            with self.subTest(url=url):
                ran = self.assert_refused(2, *ROUTES[0], "--base-url", url)
                self.assertNotIn("hunter2hunter2", ran.out + ran.err)

    def test_the_session_file_of_a_background_response(self) -> None:
        body = {"id": f"resp_{KEY}", "status": "queued", "output": []}
        self.sleeps = mock.Mock(append=mock.Mock(side_effect=KeyboardInterrupt))
        ran = self.run_main(*TALK, "--background-mode", "--output", "p.png", transport=FakeTransport(reply(body)))
        self.assertEqual(ran.code, 130)
        self.assertIn("p.session.json", self.files())
        self.assert_no_key(ran)

    def test_the_command_line_of_a_real_process(self) -> None:
        gateway = self.gateway("key-in-400")
        command = [sys.executable, "-S", SCRIPT, *ROUTES[0], "--save-response", "kept.json"]
        env = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": gateway.url, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=20)
        self.assertEqual(done.returncode, 4)
        self.assert_no_key(Ran(4, done.stdout, done.stderr, None))


class TheKeyGoesToOneOrigin(AttackTest):
    """Whoever names another place gets no key."""

    def test_a_redirect_to_a_second_origin(self) -> None:
        for argv in ROUTES:
            for scenario in ("redirect", "redirect-302"):
                with self.subTest(argv=argv, scenario=scenario):
                    gateway = self.gateway(scenario)
                    ran = self.run_main(*argv, "--output", "r.png", "--retry-billable", gateway=gateway)
                    self.assertEqual((ran.code, len(gateway.requests), gateway.elsewhere.requests), (5, 1, []))

    def test_pictures_on_a_second_origin_are_fetched_without_any_of_our_headers(self) -> None:
        own = ("--header", "X-Own: yes", "--header", "X-Token: s3cret-of-a-header", "--organization", "org-1", "--project", "proj-1")
        for scenario in ("url-elsewhere", "url-redirect"):
            with self.subTest(scenario=scenario):
                gateway = self.gateway(scenario)
                ran = self.make("--output", f"{scenario}.png", *own, gateway=gateway)
                self.assertEqual((ran.code, len(gateway.elsewhere.requests)), (0, 1), ran.err)
                self.assertEqual(Path(f"{scenario}.png").read_bytes(), gateway.pictures[0])
                fetched = [request for request in (*gateway.requests, *gateway.elsewhere.requests) if request.method == "GET"]
                for request in fetched:
                    names = {name.lower() for name, _ in request.headers}
                    self.assertEqual(names & {"authorization", "api-key", "x-own", "openai-organization", "openai-project"}, set())
                    self.assertNotIn(KEY, str(request.headers))

    def test_pictures_on_our_own_origin_are_fetched_without_the_key_too(self) -> None:
        gateway = self.gateway("url")
        self.assertEqual(self.make("--output", "u.png", gateway=gateway).code, 0)
        self.assertEqual(gateway.requests[-1].header("Authorization"), "")

    def test_urls_that_are_no_web_addresses(self) -> None:
        secret = Path("in/in.png").resolve()
        urls = (secret.as_uri(), f"FILE://{secret}", f"file:{secret}", f"local_file://{secret}", "ftp://127.0.0.1/x.png",
                "javascript:alert(1)", "data:text/html;base64,PGI+", "data:,hello", "data:image/png;base64,", "//127.0.0.1/x",
                "http:", "http://", "https:///x", "http://[", "http://127.0.0.1:99999/x", "\x00", str(secret),
                "http://127.0.0.1:1/\r\nX-Evil: 1", "http://user:pw@127.0.0.1:1/", "jar:file:///x", "\\\\host\\share", "C:\\x.png",
                "http://127.0.0.1:1/\ud800", "http://\u212a.test:1/", "gopher://127.0.0.1:1/x", "ws://127.0.0.1:1")  # fmt: skip
        server = self.gateway()
        for number, url in enumerate(urls):
            for name in ("url", "b64_json"):
                with self.subTest(url=url, name=name):
                    body = json.dumps(images({name: url})).encode()
                    server.play(body)
                    self.sleeps.clear()
                    ran = self.make("--output", f"{name}{number}.png", "--max-retries", "0", "--timeout", "0.3", gateway=server)
                    self.assertIn(ran.code, (5, 6), ran.err)
                    self.assertEqual(ran.json["images"], [])
                    self.assertFalse([name for name in self.files() if name.endswith(".png") and not name.startswith("in/")])

    def test_a_picture_url_that_redirects_to_a_file(self) -> None:
        target = Path("in/in.png").resolve().as_uri()
        for where in (target, "ftp://127.0.0.1:1/x", "data:image/png;base64," + TEXT, "/round"):
            with self.subTest(where=where):
                fake = FakeTransport(reply(images({"url": "http://pictures.test/a.png"})), reply(b"", 302, {"Location": where}))
                ran = self.make("--output", "f.png", transport=fake)
                self.assertEqual((ran.code, ran.json["images"]), (5, []))

    def test_an_id_of_the_server_stays_one_part_of_the_path(self) -> None:
        for name in ("../../x", "..", ".", "a/b", "a?b#c", "a b", "a%2fb", "//evil.example/x", "http://evil.example/", "\u2028é", "a\r\nX: y"):
            with self.subTest(name=name):
                fake = FakeTransport(reply({"id": name, "status": "queued", "output": []}), *[reply({}, 404) for _ in range(4)])
                ran = self.run_main(*TALK, "--background-mode", "--output", f"{len(self.files())}.png", transport=fake)
                self.assertNotEqual(ran.code, 1, ran.err)
                for request in fake.requests[1:]:
                    match = re.fullmatch(r"https://api\.openai\.com/v1/responses/([A-Za-z0-9._~%-]+)", request.url)
                    self.assertTrue(match, request.url)
                    self.assertNotIn(match and match.group(1), (".", ".."))

    def test_an_id_that_is_no_text_at_all(self) -> None:
        names: Tuple[Any, ...] = (5, None, [], {}, True, "", "\ud800x", "x" * 100_000)
        for name in names:
            with self.subTest(name=str(name)[:20]):
                fake = FakeTransport(reply({"id": name, "status": "queued", "output": []}), *[reply({}, 404) for _ in range(4)])
                ran = self.run_main(*TALK, "--background-mode", "--output", f"{len(self.files())}.png", transport=fake)
                self.assertIn(ran.code, (4, 5, 6, 8), ran.err)

    def test_a_session_file_never_chooses_where_the_key_goes(self) -> None:
        for origin in ("https://evil.example:443", "http://api.openai.com:80", "", None, 5, "https://api.openai.com:443.evil.example"):
            with self.subTest(origin=origin):
                Path("s.session.json").write_text(json.dumps({"gpt_image_session": 1, "response_id": "resp_1", "origin": origin}))
                ran = self.assert_refused(3, "resume", "s.session.json")
                self.assertIn("s.session.json", ran.err)
                self.assertTrue(Path("s.session.json").exists())

    def test_a_session_file_of_another_origin_gets_no_request_at_all(self) -> None:
        gateway = self.gateway()
        Path("s.session.json").write_text(json.dumps({"response_id": "resp_1", "origin": gateway.elsewhere.origin}))
        for options in ((), ("--cancel",)):
            with self.subTest(options=options):
                self.assertEqual(self.run_main("resume", "s.session.json", *options, gateway=gateway).code, 3)
                self.assertEqual((gateway.connections, gateway.elsewhere.requests), (0, []))


class PlainHttp(AttackTest):
    """The key is not sent over plain http to a public host, however that host is spelled."""

    PUBLIC = (
        "http://example.com/v1", "http://EXAMPLE.com/v1", "HTTP://example.com/v1", "http://example.com./v1",
        "http://8.8.8.8/v1", "http://8.8.8.8./v1", "http://134744072/v1", "http://0x08080808/v1", "http://0X8.8.8.8/v1",
        "http://8.8.2056/v1", "http://010.8.8.8/v1", "http://01002004010/v1", "http://[2001:4860:4860::8888]/v1",
        "http://[::ffff:8.8.8.8]/v1", "http://[::ffff:808:808]/v1", "http://[::8.8.8.8]/v1", "http://[64:ff9b::8.8.8.8]/v1",
        "http://[2002:808:808::]/v1", "http://127.0.0.1.example.com/v1", "http://localhost.example.com/v1",
        "http://10.0.0.1.nip.io/v1", "http://100.64.0.1.example.com/v1", "http://example%2ecom/v1", "http://8%2e8%2e8%2e8/v1",
        "http://example\u3002com/v1", "http://example\uff0ecom/v1", "http://example\uff61com/v1", "http://\uff18.8.8.8/v1",
        "http://\uff11\uff13\uff14\uff17\uff14\uff14\uff10\uff17\uff12/v1", "http://\u2468.\u2468.9.9/v1",
    )  # fmt: skip
    PRIVATE = (
        "http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://LOCALHOST/v1", "http://[::1]:1/v1", "http://10.1.2.3/v1",
        "http://192.168.1.1/v1", "http://172.16.0.1/v1", "http://litellm:4000/v1", "http://nas.local/v1",
        "http://169.254.1.1/v1", "http://[fe80::1]/v1", "http://[fd00::1]/v1", "http://[::ffff:127.0.0.1]/v1",
    )  # fmt: skip

    def test_a_public_host_in_any_spelling(self) -> None:
        for url in self.PUBLIC:
            with self.subTest(url=url):
                ran = self.assert_refused(2, *ROUTES[0], "--base-url", url, "--output", "x.png")
                self.assertIn("base-url", ran.error["rule"])

    def test_a_public_host_from_any_source(self) -> None:
        url = "http://example.com/v1"
        Path(".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={url}\n")
        os.chmod(".env", 0o600)
        for env in ({"OPENAI_BASE_URL": url}, {"GPT_IMAGE2_BASE_URL": url}, {"OPENAI_API_KEY": ""}):
            with self.subTest(env=env):
                self.assert_refused(2, *ROUTES[0], env=env)

    def test_every_command_that_sends(self) -> None:
        for argv in (*ROUTES, ("resume", "resp_1234"), ("resume", "resp_1234", "--cancel"), ("config", "--check")):
            with self.subTest(argv=argv):
                self.assert_refused(2, *argv, "--base-url", "http://example.com/v1")

    def test_private_hosts_pass(self) -> None:
        for url in self.PRIVATE:
            with self.subTest(url=url):
                fake = FakeTransport(reply(images({"b64_json": TEXT})))
                self.assertEqual(self.make("--base-url", url, "--output", "x.png", "--overwrite", transport=fake).code, 0)

    def test_allow_http_opens_it_and_nothing_else(self) -> None:
        fake = FakeTransport(reply(images({"b64_json": TEXT})))
        ran = self.make("--base-url", "http://example.com/v1", "--allow-http", "--output", "x.png", transport=fake)
        self.assertEqual(ran.code, 0)
        for url in ("ftp://example.com/v1", "file:///etc", "example.com/v1", "http://", "http://a:b@example.com/", "https://x\u0000y/"):
            with self.subTest(url=url):
                self.assert_refused(2, *ROUTES[0], "--allow-http", "--base-url", url)

    def test_hosts_that_only_look_like_ours(self) -> None:
        for url in ("https://api.openai.com@evil.example/v1", "https://api.openai.com:443@evil.example/v1",
                    "https://evil.example\\@api.openai.com/v1", "https://api.openai.com#@evil.example/v1"):  # fmt: skip
            with self.subTest(url=url):
                self.assert_refused(2, *ROUTES[0], "--base-url", url)


class HeaderInjection(AttackTest):
    """No value brings a line break into a header or a path."""

    EVIL = ("x\r\nX-Evil: 1", "x\nX-Evil: 1", "x\rX-Evil: 1", "x\x00", "x\x0bx", "x\x1b[31m", "\x7fx")

    def test_options_that_become_headers_or_ids(self) -> None:
        cases: List[Tuple[Tuple[str, ...], str]] = [
            (ROUTES[0], "--organization"), (ROUTES[0], "--project"), (ROUTES[0], "--safety-identifier"), (ROUTES[0], "--user"),
            (ROUTES[0], "--base-url"), (TALK, "--previous-response-id"), (TALK, "--input-image-file-id"), (TALK, "--mask-file-id"),
            (TALK, "--input-image-url"), (TALK, "--mask-url"),
        ]  # fmt: skip
        for argv, option in cases:
            for evil in self.EVIL:
                with self.subTest(option=option, evil=evil):
                    text = f"https://pictures.test/{evil}" if option.endswith("url") else evil
                    self.assert_refused(2, *argv, option, text, "--output", "x.png")
                    self.assert_refused(2, *argv, option, text, "--output", "x.png", "--no-validate")

    def test_headers_of_the_users_own(self) -> None:
        for evil in self.EVIL[:-1]:
            for header in (f"X-A: {evil}", f"X-{evil}: a", f"{evil}"):
                with self.subTest(header=header):
                    self.assert_refused(2, *ROUTES[0], "--header", header, "--no-validate")
        for header in ("Content-Length: 5", "Transfer-Encoding: chunked", "Host: evil.example", "content-type: text/plain", "A B: c", "X: \u2028"):
            with self.subTest(header=header):
                self.assert_refused(2, *ROUTES[0], "--header", header)

    def test_variables_and_files(self) -> None:
        for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_IMAGE_USER"):
            with self.subTest(name=name):
                self.assert_refused(2, *ROUTES[0], env={name: "x\r\nX-Evil: 1"})
                Path("own.env").write_text(f'{name}="x\\r\\nX-Evil: 1"\n')
                self.assert_refused(2, *ROUTES[0], "--env-file", "own.env")

    def test_a_key_with_a_line_break(self) -> None:
        for key in (f"{KEY}\r\nX-Evil: 1", f"{KEY}\nX-Evil: 1", f"{KEY}\x00", f"{KEY} X"):
            with self.subTest(key=key):
                self.assert_refused(3, *ROUTES[0], env={"OPENAI_API_KEY": key})
                self.assert_refused(3, "config", "--check", env={"OPENAI_API_KEY": key})

    def test_what_is_resumed(self) -> None:
        for evil in (*self.EVIL, "../../x", "a/b", "a?b", "http://evil.example/", ""):
            with self.subTest(evil=evil):
                self.assert_refused(2, "resume", evil)

    @posix_only
    def test_the_names_of_files_in_a_form(self) -> None:
        for name in ('a"; name="model"\r\n\r\nevil\r\n', "a\nb.png", 'a".png', "a\\b.png", "é.png"):
            with self.subTest(name=name):
                path = "in/" + name.replace("/", "")
                Path(path).write_bytes(Path("in/in.png").read_bytes())
                gateway = self.gateway()
                ran = self.run_main("edits", "Snow", *SMALL, "--image", path, "--output", "x.png", "--overwrite", gateway=gateway)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(sorted(part.name for part in gateway.requests[0].form or []), ["image[]", "model", "prompt", "size"])

    @posix_only
    def test_a_curl_command_runs_nothing_but_curl(self) -> None:
        Path("bin").mkdir()
        for name, line in (("curl", "cat > /dev/null"), ("evil", "touch pwned; echo x")):
            Path("bin", name).write_text(f"#!/bin/sh\n{line}\n")
            os.chmod(f"bin/{name}", 0o755)
        evil = "'; touch pwned; echo '$(touch pwned)`touch pwned`\"; touch pwned\n\\"
        Path("in/`touch pwned`$(touch pwned)'.png").write_bytes(Path("in/in.png").read_bytes())
        for argv in (("generations", evil, *SMALL), ("edits", evil, *SMALL, "--image", "in/`touch pwned`$(touch pwned)'.png"),
                     ("responses", evil, "--instructions", evil, "--input-image", "in/`touch pwned`$(touch pwned)'.png"),
                     ("generations", "x", *SMALL, "--header", "X-A: $(touch pwned)`touch pwned`"),
                     ("generations", "x", *SMALL, "--header", "`evil`-token: abcdefgh"),
                     ("generations", "x", *SMALL, "--header", "`evil`: abcdefgh")):  # fmt: skip
            with self.subTest(argv=argv):
                ran = self.run_main(*argv, "--curl")
                if ran.code == 2 and "--header" in argv:
                    continue  # a name that no server takes may be refused as well
                self.assertEqual(ran.code, 0, ran.err)
                env = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "OPENAI_API_KEY": KEY, "__EVIL__TOKEN": "abcdefgh"}
                done = subprocess.run(["sh", "-c", ran.out], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=10)
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                self.assertFalse(Path("pwned").exists())


class Paths(AttackTest):
    """What the server, a session file or a planted link names does not choose where we write."""

    def test_names_of_the_server_are_not_paths(self) -> None:
        Path("deep/er").mkdir(parents=True)
        for number, argv in enumerate(ROUTES):
            with self.subTest(argv=argv):
                before = set(self.files())
                gateway = self.gateway("path-trick")
                ran = self.run_main(*argv, "--output", f"deep/er/p{number}.png", gateway=gateway)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(set(self.files()) - before, {f"deep/er/p{number}.png"})

    def test_a_session_file_does_not_choose_the_folder(self) -> None:
        outside = self.folder / "outside"
        outside.mkdir()
        Path("work/sub").mkdir(parents=True)
        outputs = (f"{outside}/evil.png", "../evil.png", "../../outside/evil.png", "..", "../", ".", "sub/..", "sub", "", "/", "~/evil.png",
                   None, 5, ["x"], "a\u0000b.png", "\ud800.png", "{index}/../../evil.png", "-rf", "x" * 300 + ".png", "a.exe")  # fmt: skip
        gateway = self.gateway()
        self.run_main(*TALK, "--background-mode", "--output", "work/made.png", gateway=gateway)
        Path("work/made.png").unlink()
        name = next(iter(gateway.studio.responses))
        for output in outputs:
            with self.subTest(output=output):
                session = {"gpt_image_session": 1, "response_id": name, "origin": gateway.origin, "model": [], "output": output}
                Path("work/s.session.json").write_text(json.dumps(session))
                before = set(self.files())
                ran = self.run_main("resume", "work/s.session.json", gateway=gateway)
                self.assertIn(ran.code, (0, 2, 7), ran.err)
                made = set(self.files()) - before
                for path in made:
                    Path(path).unlink()
                self.assertEqual([path for path in made if not path.startswith("work/")], [])

    def test_a_session_file_of_any_shape_is_no_traceback(self) -> None:
        for text in ("", "[]", "{}", "null", "{", '{"response_id": 5}', '{"response_id": "a b"}', '{"response_id": "\\u0000"}', "\x00" * 99):
            with self.subTest(text=text):
                Path("s.session.json").write_text(text)
                self.assert_refused(2, "resume", "s.session.json")

    @posix_only
    def test_a_link_where_the_output_goes_is_refused_and_written_through_with_overwrite(self) -> None:
        for target in ("in/victim.txt", "in/nothing.png", "/dev/null"):
            for overwrite in (False, True):
                with self.subTest(target=target, overwrite=overwrite):
                    os.symlink(Path(target).absolute(), "p.png")
                    fake = FakeTransport(*[reply(images({"b64_json": TEXT}))] * overwrite)
                    ran = self.make("--output", "p.png", *["--overwrite"] * overwrite, transport=fake)
                    self.assertEqual(ran.code, 0 if overwrite else 7)
                    self.assertTrue(os.path.islink("p.png"))
                    found = Path(target).read_bytes() if Path(target).is_file() else b""
                    self.assertEqual(found == PICTURE, overwrite and target != "/dev/null")
                    self.assertFalse([name for name in self.files() if ".gpt-image-" in name])
                    os.unlink("p.png")
        Path("in/victim.txt").write_bytes(b"precious")

    @posix_only
    def test_a_link_planted_where_a_preview_a_kept_reply_or_a_saved_one_goes(self) -> None:
        events = f'data: {{"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": "{TEXT}"}}\n\n'
        for name in ("p-partial-1.png", "p.reply", "kept.json", "p-mask.png"):
            for overwrite in (False, True):
                for status in (200, 400):
                    Path("in/victim.txt").write_bytes(b"precious")
                    for path in Path(".").iterdir():
                        if path.name != "in":
                            path.unlink()
                    with self.subTest(name=name, overwrite=overwrite, status=status):
                        os.symlink(self.folder / "in" / "victim.txt", name)
                        fake = FakeTransport(reply(events if status == 200 else b'{"error": {"message": "No."}}', status))
                        argv = (*ROUTES[2], "--mask-box", "0,0,8,8") if "mask" in name else ROUTES[1]
                        more = ("--stream", "--partial-images", "1", "--save-response", "kept.json", *["--overwrite"] * overwrite)
                        self.run_main(*argv, "--output", "p.png", *more, transport=fake)
                        self.assertTrue(os.path.islink(name))
                        if not overwrite or name == "p.reply":
                            self.assertEqual(Path("in/victim.txt").read_bytes(), b"precious")
        Path("in/victim.txt").write_bytes(b"precious")

    def test_a_file_that_appears_while_the_call_runs_is_not_replaced(self) -> None:
        answers = {200: images({"b64_json": TEXT}), 400: {"error": {"message": "No."}}}

        def late(*_: Any) -> Any:
            for name in ("p.png", "kept.json"):
                Path(name).write_bytes(b"somebody else's")
            return reply(answers[status], status)

        for status in answers:
            with self.subTest(status=status):
                self.make("--output", "p.png", "--save-response", "kept.json", transport=late)
                for name in ("p.png", "kept.json"):
                    self.assertEqual(Path(name).read_bytes(), b"somebody else's")
                    Path(name).unlink()

    @posix_only
    def test_a_current_folder_that_is_gone_is_no_traceback(self) -> None:
        for options in ((), ("--dry-run",)):
            with self.subTest(options=options):
                fake = FakeTransport()
                os.chdir(self.folder)
                Path("gone").mkdir()
                os.chdir("gone")
                (self.folder / "gone").rmdir()
                ran = self.run_main(*ROUTES[0], "--output", "p.png", *options, transport=fake)
                os.chdir(self.folder)
                self.assertIn(ran.code, (0, 2, 7), ran.err)
                self.assertEqual(fake.requests, [])

    @posix_only
    def test_a_folder_that_is_a_link_is_followed_and_one_that_is_a_file_refused(self) -> None:
        self.assert_refused(7, *ROUTES[0], "--output", "in/victim.txt/p.png")

    @posix_only
    def test_the_env_that_init_writes_is_for_its_owner_only(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        self.assertEqual(self.run_main("config", "--init").code, 0)
        self.assertEqual(os.stat(".env").st_mode & 0o777, 0o600)
        Path(".env").unlink()
        os.symlink("in/victim.txt", ".env")
        self.assertEqual(self.run_main("config", "--init", "--no-env-file").code, 7)


class HostileEnv(AttackTest):
    """A .env in the current folder may come with a cloned repository."""

    def hostile(self, text: str, *argv: str, env: Any = None, code: int = 3) -> Ran:
        """Runs beside a .env of somebody else's."""
        Path(".env").write_text(text)
        os.chmod(".env", 0o600)
        return self.assert_refused(code, *(argv or ROUTES[0]), env=env)

    def test_its_base_url_is_not_used_with_a_key_from_elsewhere(self) -> None:
        for name in ("OPENAI_BASE_URL", "GPT_IMAGE2_BASE_URL"):
            with self.subTest(name=name):
                ran = self.hostile(f"{name}=https://evil.example/v1\n")
                self.assertIn(".env", ran.err)
                self.assertIn("evil.example", ran.err)

    def test_nor_by_any_other_command_or_source_of_the_key(self) -> None:
        text = "OPENAI_BASE_URL=https://evil.example/v1\n"
        for argv in (*ROUTES, ("resume", "resp_1234"), ("config", "--check")):
            with self.subTest(argv=argv):
                self.hostile(text, *argv)
        self.hostile(text, *ROUTES[0], "--api-key", KEY, env={"OPENAI_API_KEY": ""})
        self.hostile(text, *ROUTES[0], "--api-key-env", "MINE", env={"OPENAI_API_KEY": "", "MINE": KEY})
        self.hostile(text, *ROUTES[0], "--header", f"Authorization: Bearer {KEY}", env={"OPENAI_API_KEY": ""})
        self.hostile(text, *ROUTES[0], env={"OPENAI_API_KEY": "", "GPT_IMAGE2_API_KEY": KEY})
        self.hostile("OPENAI_API_KEY=\n" + text)
        self.hostile("GPT_IMAGE2_API_KEY=other-key-0123\n" + text)

    def test_without_any_key_it_stops_too(self) -> None:
        self.hostile("OPENAI_BASE_URL=https://evil.example/v1\n", env={"OPENAI_API_KEY": ""})

    def test_one_with_both_is_used(self) -> None:
        Path(".env").write_text(f"OPENAI_BASE_URL=https://own.example/v1\nOPENAI_API_KEY={KEY}\n")
        os.chmod(".env", 0o600)
        fake = FakeTransport(reply(images({"b64_json": TEXT})))
        self.assertEqual(self.make("--output", "x.png", transport=fake, env={"OPENAI_API_KEY": ""}).code, 0)
        self.assertTrue(fake.requests[0].url.startswith("https://own.example/v1/"))

    def test_its_proxies_and_certificates_are_not_used(self) -> None:
        Path(".env").write_text("https_proxy=http://evil.example\nSSL_CERT_FILE=evil.pem\nPATH=/evil\n")
        with mock.patch.dict(os.environ):
            self.make("--output", "x.png", transport=FakeTransport(reply(images({"b64_json": TEXT}))))
            self.assertNotEqual(os.environ.get("https_proxy"), "http://evil.example")
            self.assertNotEqual(os.environ.get("SSL_CERT_FILE"), "evil.pem")

    def test_it_cannot_have_a_file_of_the_users_sent_to_its_own_endpoint(self) -> None:
        Path("in/credentials.json").write_text('{"token": "very-private-0123"}')
        own = f"OPENAI_BASE_URL=https://evil.example/v1\nOPENAI_API_KEY={KEY}\nOPENAI_IMAGE_EXTRA_JSON=@in/credentials.json\n"
        Path(".env").write_text(own)
        os.chmod(".env", 0o600)
        fake = FakeTransport(*[reply(images({"b64_json": TEXT}))] * 2)
        self.make("--output", "x.png", transport=fake, env={"OPENAI_API_KEY": ""})
        self.assertNotIn(b"very-private-0123", b"".join(fake.bodies))

    def test_one_of_any_shape_is_no_traceback(self) -> None:
        for data in (b"\x00" * 1000, b"\xff\xfe\x00\xd8", b"=x\n==\n'\n", b"A=" + b"a " * 50_000 + b"\x0b\x00'", b"\xff" * 99, b"A='" * 9999,
                     b"OPENAI_IMAGE_N=many\n", b"OPENAI_IMAGE_SIZE=\x1b[31m\n"):  # fmt: skip
            with self.subTest(data=data[:20]):
                Path(".env").write_bytes(data)
                ran = self.make("--output", "x.png", "--dry-run")
                self.assertIn(ran.code, (0, 2), ran.err)
                self.assertNotIn("\x1b", ran.err)


class Terminals(AttackTest):
    """Words of a server do not move the cursor, and are never taken for words of ours."""

    EVIL = "\x1b]0;pwned\x07\x1b[2J\x1b[31mred\x1b[0m\x9b31m\x08\x0c\x7f\r"
    BAD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

    def assert_harmless(self, ran: Ran, terminal: bool = False) -> None:
        """Asserts that no control character reached what is shown on a terminal."""
        self.assertNotRegex(ran.err, self.BAD)
        if terminal:
            self.assertNotRegex(ran.out, self.BAD)

    def test_escape_sequences_in_errors(self) -> None:
        error = {"error": {"message": self.EVIL, "type": self.EVIL, "code": self.EVIL, "moderation_details": {"moderation_stage": self.EVIL, "categories": [self.EVIL]}}}  # noqa: E501  # fmt: skip
        page = f"<html><title>{self.EVIL}</title></html>"
        for body, status in ((error, 400), (error, 500), (error, 200), (page, 502), (page, 200), (self.EVIL * 9, 200), (self.EVIL, 404)):
            for terminal in (False, True):
                with self.subTest(status=status, terminal=terminal):
                    name = f"{len(self.files())}.png"
                    fake = FakeTransport(*[reply(body, status) for _ in range(3)])
                    ran = self.make("--output", name, "--progress", "plain", transport=fake, terminal=terminal, env={"NO_COLOR": "1"})
                    self.assertIn(ran.code, (4, 5, 6))
                    self.assert_harmless(ran, terminal)

    def test_escape_sequences_in_headers(self) -> None:
        headers = {"Location": "http://evil.example/" + self.EVIL, "x-request-id": self.EVIL, "Retry-After": self.EVIL}
        for status in (302, 503):
            with self.subTest(status=status):
                ran = self.make("--output", "p.png", transport=FakeTransport(*[reply(b"", status, headers) for _ in range(3)]))
                self.assert_harmless(ran)

    def test_escape_sequences_beside_pictures(self) -> None:
        item = {"type": "image_generation_call", "id": self.EVIL, "result": TEXT, "revised_prompt": self.EVIL, "status": self.EVIL}
        words = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": self.EVIL}]}
        body = {"id": self.EVIL, "status": "completed", "output": [item, words], "usage": {self.EVIL: self.EVIL}}
        for options in ((), ("--json",)):
            with self.subTest(options=options):
                env = {"NO_COLOR": "1"}
                name = f"{len(options)}.png"
                ran = self.run_main(*TALK, "--output", name, "--progress", "plain", *options, transport=FakeTransport(reply(body)), terminal=True, env=env)  # noqa: E501
                self.assertEqual(ran.code, 0)
                self.assert_harmless(ran, True)

    def test_escape_sequences_in_the_id_of_a_queued_response(self) -> None:
        self.sleeps = mock.Mock(append=mock.Mock(side_effect=KeyboardInterrupt))
        body = {"id": "resp_" + self.EVIL, "status": "queued", "output": []}
        ran = self.run_main(*TALK, "--background-mode", "--output", "p.png", transport=FakeTransport(reply(body)))
        self.assertEqual(ran.code, 130)
        self.assert_harmless(ran)

    def test_the_result_is_strict_json_whatever_the_server_sends(self) -> None:
        def refuse(word: str) -> None:
            raise ValueError(word)

        for usage in ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', '{"output_tokens": NaN}', "[[[]]]"):
            with self.subTest(usage=usage):
                body = f'{{"data": [{{"b64_json": "{TEXT}", "revised_prompt": "\\ud800"}}], "usage": {usage}}}'
                ran = self.make("--output", "p.png", "--overwrite", transport=FakeTransport(reply(body)))
                self.assertEqual(ran.code, 0, ran.err)
                self.assertTrue(json.loads(ran.out, parse_constant=refuse)["ok"])

    def test_streams_that_cannot_be_written_do_not_cost_the_picture(self) -> None:
        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

        class Narrow(Terminal):
            encoding = "ascii"

        for stdout, stderr in ((Full(), io.StringIO()), (io.StringIO(), Full()), (Full(), Full()), (Narrow(), Narrow())):
            with self.subTest(stdout=type(stdout).__name__, stderr=type(stderr).__name__):
                code = gpt_image.main(
                    ["generations", "A lake", *SMALL, "--output", "p.png", "--overwrite"], stdout=stdout, stderr=stderr,
                    transport=FakeTransport(reply(images({"b64_json": TEXT}))), environ={"OPENAI_API_KEY": KEY}, sleep=self.sleeps.append,
                )  # fmt: skip
                self.assertIn(code, (0, 7))
                self.assertEqual(Path("p.png").read_bytes(), PICTURE)


class Exhaustion(AttackTest):
    """Small hostile inputs do not keep the program busy for ever."""

    PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gpt_image
argv, replies = json.load(open("jobs", encoding="utf-8"))
for body, status in replies:
    play = lambda *_: gpt_image.Reply(status, {}, [body.encode()])
    print(gpt_image.main(argv, transport=play, environ={"OPENAI_API_KEY": "sk-0123456789"}, sleep=lambda _: None, stdout=open("out", "w")), flush=True)
"""

    def assert_quick(self, *replies: Tuple[str, int], argv: Tuple[str, ...] = ("generations", "A lake", *SMALL)) -> None:
        """Asserts that each reply is dealt with in a few seconds, by a process that can be killed otherwise."""
        words = (*argv, "--output", "p.png", "--overwrite")
        Path("jobs").write_text(json.dumps([words, replies]), encoding="utf-8")
        command = [sys.executable, "-S", "-c", self.PROGRAM, str(ROOT)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=3 * len(replies))
        except subprocess.TimeoutExpired as error:
            self.fail(f"it was still busy after {len((error.stdout or b'').split())} of them")
        self.assertEqual(len(done.stdout.split()), len(replies), done.stderr.decode()[-2000:])
        self.assertLessEqual(set(done.stdout.split()), {b"0", b"4", b"5", b"6"}, done.stderr.decode()[-2000:])

    def test_pages_with_endless_titles(self) -> None:
        page, titles = "<html><title>" + " " * 3500, "<html>" + "<title" * 100_000
        self.assert_quick((page, 200), (titles, 200), (page, 502), (titles, 502))

    def test_chat_words_of_many_brackets(self) -> None:
        texts = ("![" * 60_000, "![](http://a" * 10_000, "![](http://" + "a" * 60_000, "data:image/" * 50_000)
        bodies = ((json.dumps({"choices": [{"message": {"content": text}}]}), 200) for text in texts)
        self.assert_quick(*bodies, argv=("generations", "A lake", "--model", "small", "--protocol", "openai_chat"))

    def test_json_without_end(self) -> None:
        nested = ("[" * 100_000, '{"a":' * 50_000, '{"data": [' + "[" * 60_000, "data: " + "[" * 60_000 + "\n\n")
        comments = json.dumps(images({"b64_json": base64.b64encode(b"<!---->" * 400).decode()}))
        digits = ('{"data": [], "created": ' + "9" * 200_000 + "}", '{"error": {"code": ' + "9" * 200_000 + "}}")
        self.assert_quick(*((body, 200) for body in (*nested, *digits, comments)), *((body, 400) for body in digits))
