"""The command that --curl prints, run by a shell with the real curl: the bytes that arrive are those of our own call."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import unittest
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

import gpt_image
from tests import pictures
from tests.support import KEY, ProgramTest

REFUSAL = b'HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}'
# What each of the two says in its own way: how many bytes, and that the connection is used once.
BY_THE_WAY = {"host", "content-length", "connection"}
PNG = pictures.picture(b"a", "png", 64, 48)
OTHER_KEY = "sk-other-9876543210"
# Texts that mean something to a shell, to printf, to a form or to curl.
TEXTS = ("@a.png", "<a.png", "a;type=text/html", 'say "hi"', "it's $HOME `who` $(id) \\n \\0101 %s %% !", " blank \n\r\nlines\r\n", "図 é", "-")


class Arrived(NamedTuple):
    """A request as bytes: its first line, its headers, and its body, with the same word for every boundary."""

    line: str
    headers: Dict[str, str]
    body: bytes


class Recorder:
    """A server on loopback that keeps each request as it came, and refuses it."""

    def __init__(self) -> None:
        self.arrived: List[Arrived] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Takes one connection after the other until the socket is shut."""
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                line = file.readline().decode()
                headers = {}
                for row in iter(file.readline, b"\r\n"):
                    name, _, value = row.decode("latin-1").rstrip("\r\n").partition(":")
                    headers[name.lower()] = value[1:]
                body = file.read(int(headers.get("content-length", 0)))
                boundary = headers.get("content-type", "").partition("boundary=")[2]
                if boundary:
                    body = body.replace(boundary.encode(), b"BOUNDARY")
                    headers["content-type"] = headers["content-type"].replace(boundary, "BOUNDARY")
                shown = {name: value for name, value in headers.items() if name not in BY_THE_WAY}
                self.arrived.append(Arrived(line, shown, body))
                connection.sendall(REFUSAL)

    def close(self) -> None:
        """Ends the thread."""
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()


@unittest.skipUnless(os.name == "posix" and shutil.which("curl"), "needs a POSIX shell and curl")
class TheCommandSendsWhatTheCallSends(ProgramTest):
    """Request line, headers and body, byte by byte."""

    def setUp(self) -> None:
        super().setUp()
        self.recorder = Recorder()
        self.addCleanup(self.recorder.close)
        Path("a.png").write_bytes(PNG)
        Path("mask.png").write_bytes(pictures.picture(b"a", "png", 64, 48, clear=True))

    def command(self, *argv: str, env: Mapping[str, str] = {}) -> str:
        """Returns what --curl prints."""
        ran = self.run_main(*argv, "--curl", env={"OPENAI_BASE_URL": self.recorder.url, **env})
        self.assertEqual(ran.code, 0, ran.err)
        self.assertNotIn(KEY, ran.out + ran.err)
        return ran.out

    def shell(self, command: str, env: Mapping[str, str] = {}) -> "subprocess.CompletedProcess[bytes]":
        """Runs a command by the shell of the system, in an environment of its own."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "NO_PROXY": "*", **env}
        # From a file, as one would run a long command: a word of a command line may be 128 kB long.
        Path("command.sh").write_bytes(os.fsencode(command))
        return subprocess.run(["sh", "command.sh"], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)

    def compare(self, *argv: str, env: Mapping[str, str] = {}, shell: Mapping[str, str] = {"OPENAI_API_KEY": KEY}) -> None:
        """Runs the printed command and our own call, and compares what arrived."""
        command, before = self.command(*argv, env=env), len(self.recorder.arrived)
        done = self.shell(command, shell)
        self.assertEqual((done.returncode, done.stderr, done.stdout), (0, b"", b"{}"), command)
        environ = {"OPENAI_BASE_URL": self.recorder.url, "NO_PROXY": "*", **env}
        ran = self.run_main(*argv, "--timeout", "9", env=environ, transport=gpt_image.send)
        self.assertEqual((ran.code, len(self.recorder.arrived)), (4, before + 2), ran.err)
        theirs, ours = self.recorder.arrived[-2:]
        self.assertEqual(theirs, ours, command)

    def test_texts_of_a_form(self) -> None:
        self.compare("edits", TEXTS[0], "--image", "a.png", "--mask", "mask.png", "--stream", "--extra-json", '{"a\\"b": {"c": [1, true]}}')
        fields = "".join(f', "{chr(97 + i)}": {json.dumps(text)}' for i, text in enumerate(TEXTS))
        self.compare("edits", "x", "--image", "a.png", "--extra-json", "{" + fields[1:] + "}")

    def test_texts_of_a_body(self) -> None:
        self.compare("generations", "".join(TEXTS), "--stream", "--n", "1")
        self.compare("generations", "%s\\0101 " * 4000)
        instructions = ("--instructions", "\n".join(TEXTS))
        self.compare("responses", "@a.png", *instructions, "--input-image", "a.png", "--mask", "mask.png")

    def test_names_of_files(self) -> None:
        names = ("-", "-a.png", "@a.png", "a;b,c\"d'.png", "a=b;type=c", "a\\", "a\\\"b", "a\rb\nc\td.png", "caf\udce9\\0101.png", "図.png", "<x>")
        for name in names:
            Path(name).write_bytes(PNG)
        self.compare("edits", "x", *[f"--image={name}" for name in names])
        self.compare("responses", "x", *[f"--input-image={name}" for name in names])
        os.makedirs("in/er")
        os.symlink("in/er", "link")
        Path("in/b.png").write_bytes(PNG)
        self.compare("edits", "x", "--image", "link/../b.png", "--image", str(self.folder / "a.png"))

    def test_headers(self) -> None:
        for headers in (
            ("X-Empty:", "User-Agent:", "Accept: */*"),
            ("X-Note: caf\xe9 \\0101 %s", "X-Utf: \xc3\xa9", "X-Words: it's \"$HOME\" `who` @a.png", "x-semicolon: a;"),
        ):
            with self.subTest(headers=headers):
                argv = [word for header in headers for word in ("--header", header)]
                self.compare("generations", "x", *argv, "--organization", "org-1", "--project", "p-1")

    def test_urls(self) -> None:
        for path in ("/a{b,c}[1-3]/../v1", "/v1?api-version=a&b='[x]"):
            with self.subTest(path=path):
                self.compare("generations", "x", "--base-url", self.recorder.url[:-3] + path)

    def test_the_key_comes_from_the_variable_that_holds_it(self) -> None:
        other = {"OPENAI_API_KEY": OTHER_KEY}
        cases: Sequence[Tuple[Dict[str, str], Tuple[str, ...], Dict[str, str]]] = (
            ({"OPENAI_API_KEY": KEY}, (), {"OPENAI_API_KEY": KEY}),
            ({"OPENAI_API_KEY": "", "GPT_IMAGE2_API_KEY": KEY}, (), {"GPT_IMAGE2_API_KEY": KEY, **other}),
            ({"MINE": KEY, **other}, ("--api-key-env", "MINE"), {"MINE": KEY, **other}),
        )
        for env, argv, shell in cases:
            with self.subTest(argv=argv, env=env):
                self.compare("generations", "x", *argv, env=env, shell=shell)

    def test_a_key_that_no_variable_holds_must_be_set_first_and_no_other_goes_in_its_place(self) -> None:
        other = {"OPENAI_API_KEY": OTHER_KEY}
        Path("of.env").write_text(f"OPENAI_API_KEY={KEY}\n")
        os.chmod("of.env", 0o600)
        authorization = f"Basic {KEY}"
        for argv, env, name, value, said in (
            (("--env-file", "of.env"), {"OPENAI_API_KEY": ""}, "_AUTHORIZATION", KEY, "secret from the .env"),
            (("--api-key", KEY), other, "_AUTHORIZATION", KEY, "secret from the command line"),
            (("--header", f"Authorization: {authorization}"), other, "_AUTHORIZATION", authorization, "secret from the command line"),
            (("--header", f"api-key: {KEY}"), other, "_API_KEY", KEY, "secret from the command line"),
        ):
            with self.subTest(argv=argv):
                done = self.shell(self.command("generations", "x", *argv, env=env), other)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(f"{name}: set it to the {said}".encode(), done.stderr)
                self.assertEqual(self.recorder.arrived, [])
                self.compare("generations", "x", *argv, env=env, shell={name: value, **other})
                self.recorder.arrived.clear()

    def test_without_any_key_the_command_names_the_variable_it_would_come_from(self) -> None:
        for argv, name in (((), "OPENAI_API_KEY"), (("--api-key-env", "MINE"), "MINE")):
            with self.subTest(name):
                self.assertIn(f'"${name}"', self.command("generations", "x", *argv, env={"OPENAI_API_KEY": ""}))
        evil = self.run_main("generations", "x", "--api-key-env", "X$(touch pwned)", "--curl")
        self.assertEqual((evil.code, evil.error["rule"]), (2, "api-key-env-unreadable-value"))


class WhatIsShown(ProgramTest):
    """What --curl and --dry-run say of a call."""

    def test_a_picture_that_is_converted_for_the_call_has_no_command(self) -> None:
        Path("bin").mkdir()
        Path("bin", "magick").write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{self.folder}/a.png" "${{last#PNG:}}"\n')
        os.chmod("bin/magick", 0o755)
        Path("a.png").write_bytes(PNG)
        Path("b.bmp").write_bytes(b"BM" + (70).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
                                  + (2).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(40))  # fmt: skip
        for argv in (("edits", "x", "--image", "b.bmp"), ("responses", "x", "--input-image", "b.bmp")):
            with self.subTest(route=argv[0]):
                env = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
                self.assertEqual(self.run_main(*argv, "--dry-run", env=env).code, 0)
                ran = self.run_main(*argv, "--curl", env=env)
                self.assertEqual((ran.code, ran.error and ran.error["rule"]), (2, "curl-converted"), ran.out)
                self.assertIn("b.bmp", ran.error["message"])

    def test_an_authorisation_of_the_users_own_is_shown_without_a_scheme_of_ours(self) -> None:
        ran = self.run_main("generations", "x", "--header", "authorization: Basic abcdefgh", "--dry-run")
        self.assertEqual(ran.json["headers"]["authorization"], "***")
