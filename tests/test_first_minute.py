"""The first screen, the first minute, the first mistake: what a person at a terminal sees, and what a script reads."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import ROOT, FakeTransport, ProgramTest, Terminal, reply

PICTURE = pictures.picture(b"first minute", "png", 48, 32)
IMAGES = {"data": [{"b64_json": base64.b64encode(PICTURE).decode()}]}
ITEM = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": IMAGES["data"][0]["b64_json"]}
RESPONSE = {"id": "resp_12345", "object": "response", "status": "completed", "output": [ITEM]}
LIVE_LINE = re.compile(r"\r[^\r\n]*?\x1b\[K|\r")


class HelpTest(ProgramTest):
    """Help shows first what everyone needs first."""

    def help(self, *argv: str) -> str:
        """Returns the help in a window of 80 columns."""
        with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
            ran = self.run_main(*argv)
        self.assertEqual((ran.code, ran.err), (0, ""))
        return ran.out

    def test_what_everyone_uses_comes_first_and_what_retired_models_take_comes_last(self) -> None:
        for command, inputs in (("generations", ()), ("edits", ("--image",)), ("responses", ("--input-image",))):
            text = self.help(command, "--help")
            groups = re.findall(r"(?m)^([a-z ]+):$", text)
            with self.subTest(command):
                self.assertEqual((groups[0], groups[-2:]), ("most used", ["retired models", "examples"]))
                first = text.split("most used:\n")[1].split("\n\n")[0]
                own = ("--prompt", *inputs, "--model", "--size", "--quality", "--format", "--output")
                for option in (*own, *(("--n",) if command != "responses" else ())):
                    self.assertRegex(first, rf"(?m)^  (-\w, )?{option}( |,)")

    def test_help_with_a_command_is_that_command_s_help(self) -> None:
        for command in gpt_image.COMMANDS:
            self.assertEqual(self.help("help", command), self.help(command, "--help"))

    def test_the_overview_fits_a_terminal_of_24_lines_and_80_columns(self) -> None:
        for argv in (("--help",), ("help",)):
            lines = self.help(*argv).splitlines()
            self.assertLess(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)

    def test_help_on_what_is_not_there_says_so(self) -> None:
        ran = self.run_main("help", "edtis")
        self.assertEqual((ran.code, ran.error["message"]), (2, "'edtis' is not a command"))
        self.assertIn("edits", ran.error["hint"])

    def test_a_bare_call_shows_the_overview_and_is_a_usage_error(self) -> None:
        ran = self.run_main()
        self.assertEqual((ran.code, ran.error["rule"]), (2, "command"))
        self.assertTrue(ran.err.startswith("usage: "), ran.err)
        ran = self.run_main(terminal=True)
        self.assertEqual((ran.code, ran.out), (2, ""))
        self.assertLessEqual(len(ran.err.splitlines()), 24)


class NameTest(ProgramTest):
    """The program calls itself by the name that it was called by, and what it prints can be pasted."""

    def setUp(self) -> None:
        super().setUp()
        tool = self.folder / "bin" / "gpt-image"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        self.tool = str(tool)

    def test_name_and_command(self) -> None:
        python = "python" if os.name == "nt" else "python3"
        for path, module, name, command in (
            ("gpt_image.py", "__main__", "gpt_image.py", f"{python} gpt_image.py"),
            ("tools/gpt_image.py", "__main__", "gpt_image.py", f"{python} tools/gpt_image.py"),
            (self.tool, "gpt_image", "gpt-image", "gpt-image"), ("./draw", "__main__", "draw", "./draw"),
            ("venv/bin/gpt-image", "gpt_image", "gpt-image", "venv/bin/gpt-image"),
            ("agent.py", "gpt_image", "gpt_image.py", f"{python} gpt_image.py"),
        ):  # fmt: skip
            path_of_tools = mock.patch.dict(os.environ, {"PATH": os.path.dirname(self.tool)})
            called = mock.patch.object(sys, "argv", [path]), mock.patch.object(gpt_image, "__name__", module)
            with self.subTest(path), path_of_tools, called[0], called[1]:
                self.assertEqual(gpt_image.program("help"), f"{command} help")
                self.assertEqual(self.run_main("--version").out, f"{name} {gpt_image.__version__}\n")
                self.assertTrue(self.run_main("generations").err.startswith(f"{name}: error: "))
                for command_of_help in ("", "edits"):
                    text = self.run_main(*filter(None, (command_of_help, "--help"))).out
                    self.assertTrue(text.startswith(f"usage: {command} "), text)
                    self.assertEqual(len(re.findall(rf"(?m)^  {re.escape(command)} ", text)), 3)
                for wrong in ("'A lake'", "--n 2 generations", "edits x --nonesuch", "x"):
                    self.assertIn(f"{command} ", self.run_main(*shlex.split(wrong)).error["hint"])
                no_key = self.run_main("generations", "x", env={"OPENAI_API_KEY": ""})
                self.assertIn(f"{command} config --init", no_key.error["hint"])

    def test_the_words_of_a_mistake_are_quoted_for_the_shell(self) -> None:
        words = 'A "lake"; $HOME'
        self.assertEqual(shlex.split(self.run_main(words).error["hint"])[-2:], ["generations", words])


class WindowTest(ProgramTest):
    """Lines fit a window, and a command stays whole."""

    def said(self, width: int, text: str, style: str = "hint") -> List[str]:
        """Returns the lines that a terminal of a width shows, without their colours."""
        where = gpt_image.Console(Terminal(), Terminal(), {})
        with mock.patch.object(gpt_image, "columns", lambda _: width):
            where.say(text, style)
        assert isinstance(where.stderr, io.StringIO)
        return re.sub(r"\x1b\[[0-9;]*m", "", where.stderr.getvalue()).splitlines()

    def test_colours_take_no_place(self) -> None:
        for style, start in (("hint", "  hint: "), ("error", "gpt_image.py: error: ")):
            text = "x" * (19 - 8) + " y " + "z" * (39 - len(start) - 13)
            with self.subTest(style):
                self.assertEqual(self.said(40, text, style), [start + text])

    def test_a_command_is_never_broken_and_the_words_before_it_are(self) -> None:
        command = gpt_image.program("extract", "out/a  long name of a reply.reply", "--output", "out/there.png")
        lines = self.said(40, f"what was received is kept in this folder, and can be had with: {command}", "")
        self.assertEqual(lines[-1].strip(), command)
        self.assertLessEqual(max(map(len, lines[:-1])), 40)


class NextTurnTest(ProgramTest):
    """A response at a terminal ends with the command for the next turn."""

    def turn(self, *argv: str, body: Any = RESPONSE, terminal: bool = True) -> str:
        """Returns what standard error says of a response."""
        command = ("responses", "x", "--output", "o.png", "--overwrite", *argv)
        return self.run_main(*command, transport=FakeTransport(reply(body)), terminal=terminal).err

    def test_the_command_stands_at_the_end_and_takes_a_prompt(self) -> None:
        last = LIVE_LINE.sub("", self.turn()).splitlines()[-1]
        command = gpt_image.program("responses", "--previous-response-id", "resp_12345")
        self.assertTrue(last.endswith(command), last)
        argv = shlex.split(command)[2:]
        ran = self.run_main(*argv, "Make it blue", "--dry-run")
        self.assertEqual((ran.code, ran.json["body"]["previous_response_id"]), (0, "resp_12345"))
        self.assertEqual(self.run_main(*argv).error["rule"], "prompt-missing")

    def test_it_stands_there_only_where_it_can_be_used(self) -> None:
        self.assertNotIn("--previous-response-id", self.turn("--no-store"))
        self.assertNotIn("--previous-response-id", self.turn("--quiet"))
        self.assertNotIn("--previous-response-id", self.turn(terminal=False))
        self.assertNotIn("--previous-response-id", self.turn(body={**RESPONSE, "output": []}))


class WhatIsTold(ProgramTest):
    """Progress in words, live and as JSON."""

    def progress(self, where: gpt_image.Console, mode: str) -> gpt_image.Progress:
        """Returns a progress whose thread never gets to beat by itself, with a clock of the test's own."""
        slow = mock.patch.object(gpt_image.Progress, "TICK", 3600.0)
        self.addCleanup(slow.stop)
        slow.start()
        self.now = 100.0
        progress = gpt_image.Progress(where, mode, lambda: self.now)
        self.addCleanup(progress.__exit__)
        return progress

    def test_a_back_off_counts_down(self) -> None:
        screen = Terminal()
        progress = self.progress(gpt_image.Console(Terminal(), screen, {"NO_COLOR": "1"}), "auto")
        progress.phase("waiting")
        progress.phase("retrying", reason="HTTP 429: slow down", attempt=2, tries=3, wait=8.4)
        for _ in range(4):
            self.now += 3
            progress.beat()
        self.assertIn("HTTP 429: slow down; try 2 of 3 in 8.4 s\n", screen.getvalue())
        drawn = re.findall(r"\r([^\r\x1b]+)\x1b\[K", screen.getvalue())
        wait = "waiting for try 2 of 3"
        counted = [f"{wait}, {left} s left · {seconds} s" for left, seconds in ((5, 3), (2, 6))]
        self.assertEqual(drawn, [*counted, f"{wait} · 9 s", f"{wait} · 12 s"])

    def test_numbers_of_json_are_numbers(self) -> None:
        limited = reply({"error": {"message": "slow", "code": "slow_down"}}, 429, {"retry-after-ms": "40"})
        transport = FakeTransport(limited, reply(IMAGES))
        ran = self.run_main("generations", "x", "--output", "o.png", "--progress", "json", transport=transport)
        rows = [json.loads(line) for line in ran.err.splitlines()]
        told = {name: value for name, value in rows[0].items() if name != "seconds"}
        reason = {"reason": "HTTP 429: slow", "attempt": 2, "tries": 3, "wait": 0.0}
        self.assertEqual(told, {"phase": "retrying", **reason})

    def test_json_has_a_heartbeat(self) -> None:
        told = io.StringIO()
        progress = self.progress(gpt_image.Console(io.StringIO(), told, {}), "json")
        progress.phase("uploading", percent=40, bytes=1000)
        for _ in range(7):
            self.now += 10
            progress.beat()
        rows = [json.loads(line) for line in told.getvalue().splitlines()]
        row = {"phase": "uploading", "percent": 40, "bytes": 1000}
        beats = [{**row, "seconds": seconds, "heartbeat": True} for seconds in (30.0, 60.0)]
        self.assertEqual(rows, [{**row, "seconds": 0.0}, *beats])

    def test_looks_at_a_background_response_are_one_line_in_words(self) -> None:
        told = io.StringIO()
        progress = self.progress(gpt_image.Console(io.StringIO(), told, {}), "plain")
        for status in ("queued", *["in_progress"] * 5):
            progress.phase("polling", status=gpt_image.WORKING[status])
            self.now += 10
            for name, facts in (("connecting", {"host": "h"}), ("waiting", {}), ("receiving", {"bytes": 5})):
                progress.phase(name, **facts)
            progress.beat()
        lines = ["queued in the background", *(f"working in the background · {s} s" for s in (30, 60))]
        self.assertEqual(told.getvalue().splitlines(), lines)

    def test_a_saved_file_appears_once_on_a_terminal(self) -> None:
        for mode in ("auto", "plain", "none"):
            argv = ("generations", "x", "--output", f"{mode}.png", "--progress", mode)
            ran = self.run_main(*argv, transport=FakeTransport(reply(IMAGES)), terminal=True)
            self.assertEqual((ran.out, ran.err.count(".png")), (f"{mode}.png\n", 0), ran.err)
        ran = self.run_main("generations", "x", "--output", "o.png", transport=FakeTransport(reply(IMAGES)))
        self.assertIn("saved o.png (png 48x32, ", ran.err)

    def test_every_key_of_json_is_documented_with_its_phase(self) -> None:
        page = (ROOT / "references" / "output.md").read_text("utf-8")
        documented = {
            name: set(re.findall(r"`(\w+)`", keys)) for name, keys in re.findall(r"(?m)^\| `(\w+)` \| (.*)\|$", page)
        }
        Path("in.png").write_bytes(PICTURE)
        runs: Tuple[Tuple[str, str], ...] = (
            ("responses x --stream --partial-images 1", "plain"), ("edits x --image in.png", "rate-limited-once"),
            ("responses x --background-mode", "plain"), ("generations x", "url"),
        )  # fmt: skip
        seen = {"converting": {"path"}}
        for number, (argv, scenario) in enumerate(runs):
            with mock.patch.object(gpt_image, "POLL_FIRST", 0.0):
                command = (*argv.split(), "--output", f"{number}.png", "--progress", "json")
                ran = self.run_main(*command, gateway=self.gateway(scenario))
            self.assertEqual(ran.code, 0, ran.err)
            for line in filter(lambda line: line.startswith("{"), ran.err.splitlines()):
                row = json.loads(line)
                seen.setdefault(row.pop("phase"), set()).update(set(row) - {"seconds"})
        self.assertEqual(set(seen), set(gpt_image.PHASES) - {"batch"})
        for name, keys in seen.items():
            with self.subTest(name):
                self.assertEqual(documented[name], keys)


class ResultsForPeople(ProgramTest):
    """config, config --check and --dry-run: a dozen lines at a terminal, JSON with --json and in a pipe."""

    def test_config_shows_a_missing_key_and_what_to_do(self) -> None:
        ran = self.run_main("config", terminal=True, env={"OPENAI_API_KEY": ""})
        [row] = [line for line in ran.out.splitlines() if line.startswith("--api-key")]
        for words in ("missing", "https://platform.openai.com/api-keys", "OPENAI_API_KEY", "config --init"):
            self.assertIn(words, row)
        row = self.run_main("config", env={"OPENAI_API_KEY": ""}).json["settings"]["config"]["api-key"]
        self.assertEqual((row["value"], row["source"].startswith("missing: ")), (None, True))
        ran = self.run_main("config", "--header", "Authorization: Bearer abc", env={"OPENAI_API_KEY": ""})
        self.assertNotIn("missing", ran.out)

    def test_check_says_in_a_few_lines_what_it_found(self) -> None:
        models = reply({"data": [{"id": "gpt-image-2"}, {"id": "gpt-5.4"}, {"id": "\x1b[31mimage"}]})
        ran = self.run_main("config", "--check", transport=FakeTransport(models), terminal=True)
        self.assertEqual((ran.code, len(ran.out.splitlines())), (0, 4))
        self.assertIn("gpt-image-2, [31mimage", ran.out)
        self.assertNotIn("\x1b", ran.out)

    def test_a_dry_run_is_a_dozen_lines(self) -> None:
        Path("a.png").write_bytes(PICTURE)
        more = ("--output", "o.png", "--size", "1024x1024", "--quality", "low", "--dry-run")
        words = "A lake\nat dusk " + "and more of it " * 40
        for command, sent in (
            (("edits", words, "--image", "a.png"), "image[]              a.png"), (("responses", words), "tools  "),
            (("generations", words), "size                 1024x1024"),
        ):  # fmt: skip
            with self.subTest(command[0]):
                ran = self.run_main(*command, *more, terminal=True)
                lines = ran.out.splitlines()
                self.assertEqual(ran.code, 0, ran.err)
                self.assertLessEqual(len(lines), 14)
                self.assertIn("\n" + sent, ran.out)
                self.assertIn("\noutputs              o.png\n", ran.out)
                self.assertRegex(ran.out, r"\nprompt               A lake at dusk|\ninput .*A lake at dusk")
                self.assertTrue(self.run_main(*command, *more, "--json", terminal=True).json["dry_run"])


class ProblemsTest(ProgramTest):
    """`problems` holds all that is wrong, also where it is one thing."""

    def test_every_refusal_before_sending_has_its_problems(self) -> None:
        Path("o.png").write_bytes(PICTURE)
        no_key = {"OPENAI_API_KEY": ""}
        cases: Tuple[Tuple[Tuple[str, ...], int, Dict[str, str]], ...] = (
            ((), 2, {}), (("picture",), 2, {}), (("generations", "x", "y"), 2, {}), (("edits", "x", "--nope"), 2, {}),
            (("generations", "x", "--n"), 2, {}), (("generations",), 2, {}), (("generations", "x", "--n", "11"), 2, {}),
            (("generations", "--prompt-file", "none.txt"), 2, {}), (("resume", "none.session.json"), 2, {}),
            (("extract", "none.reply"), 2, {}), (("batch",), 2, {}), (("generations", "x", "--env-file", "no"), 2, {}),
            (("generations", "x"), 3, no_key), (("generations", "x"), 3, {"OPENAI_API_KEY": "sk-ab cd"}),
            (("generations", "x", "--output", "o.png"), 7, {}), (("config", "--init", "--output"), 2, {}),
        )  # fmt: skip
        for argv, code, env in cases:
            with self.subTest(argv):
                ran = self.run_main(*argv, env=env)
                self.assertEqual(ran.code, code, ran.err)
                first = {name: ran.error[name] for name in ("rule", "message", "hint")}
                self.assertEqual(ran.error["problems"][0], first)
                self.assertTrue(first["rule"])


class CompletionTest(ProgramTest):
    """Completion in the real shells: what can stand there, and file names where a file can."""

    FILES = ("jobs.csv", "lake.png")
    # What is typed, and what completes its last word.
    TYPED: Tuple[Tuple[Tuple[str, ...], Tuple[str, ...]], ...] = (
        (("gen",), ("generations",)), (("",), (*gpt_image.EVERY, "help")), (("edits", "--image", ""), FILES),
        (("edits", "x", "-o", "la"), ("lake.png",)), (("extract", "la"), ("lake.png",)), (("resume", ""), FILES),
        (("batch", "jo"), ("jobs.csv",)), (("batch", "--ledg"), ("--ledger",)), (("edits", "--size", ""), ()),
        (("edits", "--quality", "x"), ("xhigh",)), (("generations", "la"), ()), (("extract", "x", "--outp"), ("--output",)),
        (("generations", "--model", ""), ()),
    )  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        Path("here").mkdir()
        for name in self.FILES:
            Path("here", name).touch()

    def check(self, shell: str, start: str, ask: str) -> None:
        """Compares what a shell says, asked in its own words, with what is wanted, all in one process."""
        lines = [self.run_main("config", "--completion", shell).out if shell != "zsh" else "", start]
        lines += [ask % {"words": shlex.join(["gpt-image", *words]), "count": len(words), "line": " ".join(words)}
                  for words, _ in self.TYPED]  # fmt: skip
        if shell == "zsh":
            lines[0] = "compdef() { : }; compadd() { print -l -- ${(M)@[2,-1]:#$PREFIX*} }\n"
            lines[0] += "_files() { print -l -- $PREFIX*(N) }\n" + self.run_main("config", "--completion", shell).out
        environ = {**os.environ, "HOME": str(self.folder / "home")}
        command = [shell, *{"zsh": ["-f"], "fish": ["--no-config"]}.get(shell, ["--norc"]), "-c", "\n".join(lines)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd="here")
        self.assertEqual(done.stderr, "")
        found = [tuple(sorted(filter(None, part.split("\n")))) for part in done.stdout.split("==\n")[:-1]]
        for (words, wanted), answer in zip(self.TYPED, found):
            with self.subTest(shell, words=words):
                self.assertEqual(answer, tuple(sorted(wanted)))
        self.assertEqual(len(found), len(self.TYPED))

    @unittest.skipUnless(shutil.which("bash"), "needs bash")
    def test_bash(self) -> None:
        start = 'compopt() { files=; }\ncomplete_it() { files=1; _gpt_image; if [ ${#COMPREPLY[@]} -gt 0 ]; then printf "%s\\n" '
        start += '"${COMPREPLY[@]}"; elif [ "$files" ]; then compgen -f -- "${COMP_WORDS[COMP_CWORD]}"; fi; echo ==; }'
        self.check("bash", start, "COMP_WORDS=(%(words)s); COMP_CWORD=%(count)s; complete_it")

    @unittest.skipUnless(shutil.which("zsh"), "needs zsh")
    def test_zsh(self) -> None:
        start = "compset() { PREFIX=${PREFIX#*=} }"
        ask = "words=(%(words)s); CURRENT=$((%(count)s + 1)); PREFIX=$words[CURRENT]; _gpt_image; print -- '=='"
        self.check("zsh", start, ask)

    @unittest.skipUnless(shutil.which("zsh"), "needs zsh")
    def test_zsh_without_compinit(self) -> None:
        script = self.run_main("config", "--completion", "zsh").out
        program = f"{script}\nprint -- $_comps[gpt-image]"
        environ = {**os.environ, "HOME": str(self.folder)}
        done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, env=environ)
        self.assertEqual((done.stdout, done.stderr), ("_gpt_image\n", ""))

    @unittest.skipUnless(shutil.which("fish"), "needs fish")
    def test_fish(self) -> None:
        self.check("fish", "function ask; complete -C $argv[1] | cut -f1; echo ==; end", "ask 'gpt-image %(line)s'")


if __name__ == "__main__":
    unittest.main()
