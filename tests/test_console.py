"""Words to a person: secrets blotted out, lines that stay together, progress, and pictures in the terminal."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import re
import threading
import time
import unittest
from pathlib import Path
from typing import Dict, Iterator, List, Tuple
from unittest import mock

import gpt_image
from tests.support import ProgramTest, Terminal

KEY = "sk-one/two-0123456789"


def console(terminal: bool = False, **environ: str) -> gpt_image.Console:
    """Returns a console on two streams in memory."""
    streams = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    return gpt_image.Console(*streams, environ)


def said(where: gpt_image.Console) -> str:
    """Returns what was printed to standard error."""
    assert isinstance(where.stderr, io.StringIO)
    return where.stderr.getvalue()


def hiding(*secrets: str) -> gpt_image.Console:
    """Returns a console that hides secrets."""
    where = console()
    where.hide(*map(gpt_image.Secret, secrets))
    return where


def blotted(data: bytes, secrets: Tuple[str, ...]) -> bytes:
    """Returns data with each byte of each occurrence of a secret as a star: the plain way, all in memory."""
    shown = bytearray(data)
    for secret in secrets:
        for at in range(len(data)):
            if data.startswith(secret.encode(), at):
                shown[at : at + len(secret)] = b"*" * len(secret)
    return bytes(shown)


class TerminalsThatTakeNoEscapes(unittest.TestCase):
    """The old console of Windows shows escape sequences as they are, so it gets none."""

    def shown(self, system: str, **environ: str) -> str:
        """Returns a warning and the first line of progress as a terminal of a system gets them."""
        with mock.patch("os.name", system):
            where = console(terminal=True, **environ)
            where.warn("odd")
            with gpt_image.Progress(where, "auto", lambda: 0.0) as progress:
                progress.phase("waiting")
        return said(where)

    def test_plain_lines_go_to_a_terminal_that_may_show_them_raw(self) -> None:
        for system, environ in (("nt", {}), ("posix", {"TERM": "dumb"})):
            with self.subTest(system, **environ):
                shown = self.shown(system, **environ)
                self.assertEqual(shown, "gpt_image.py: warning: odd\nwaiting for the reply\n")

    def test_colours_and_a_live_line_go_to_one_that_is_known_to_take_them(self) -> None:
        for system, environ in (("nt", {"WT_SESSION": "0"}), ("nt", {"TERM_PROGRAM": "vscode"}), ("posix", {})):
            with self.subTest(system, **environ):
                self.assertIn("\x1b[33mwarning:", self.shown(system, **environ))


class SecretsAreHidden(unittest.TestCase):
    """In text, and in the bytes of a reply, wherever its blocks end."""

    def test_a_secret_is_kept_once_in_each_of_its_forms(self) -> None:
        where = hiding(KEY, KEY, 'a"quote/slash')
        where.hide(gpt_image.Secret(KEY))
        forms = [KEY, KEY.replace("/", "\\/"), 'a"quote/slash', 'a"quote\\/slash', 'a\\"quote/slash']
        self.assertEqual(sorted(where.hidden), sorted(forms))
        for form in forms:
            self.assertEqual(where.clean(f"<{form}>"), "<***>")

    def test_what_is_shorter_than_six_characters_stands_in_ordinary_words(self) -> None:
        self.assertEqual(hiding("", "image", "secret").clean("an image of a secret"), "an image of a ***")

    def test_of_two_secrets_the_longer_one_goes_first(self) -> None:
        self.assertEqual(hiding("secret", "secret-and-more").clean("secret-and-more"), "***")
        self.assertEqual(hiding("secret-and-more", "secret").clean("secret-and-more"), "***")

    def test_bytes_keep_their_length_wherever_blocks_end(self) -> None:
        data = f'{{"a": "{KEY}", "b": "{KEY[:-1]}", "c": "{KEY}{KEY}"}}{KEY[:7]}'.encode()
        wanted = blotted(data, (KEY,))
        self.assertEqual(len(wanted), len(data))
        for size in range(1, len(data) + 1):
            blocks = [data[at : at + size] for at in range(0, len(data), size)]
            self.assertEqual(b"".join(hiding(KEY).cleaned(blocks)), wanted, size)

    def test_secrets_that_overlap_are_blotted_out_whole(self) -> None:
        draw = random.Random(8)
        for _ in range(300):
            secrets = tuple("".join(draw.choices("ab", k=draw.randint(16, 20))) for _ in range(3))
            data = "".join(draw.choices("ab", k=120)).encode() + secrets[0].encode()
            cuts = [0, *sorted(draw.choices(range(len(data)), k=draw.randint(0, 12))), len(data)]
            blocks = [data[start:end] for start, end in zip(cuts, cuts[1:])]
            self.assertEqual(b"".join(hiding(*secrets).cleaned(blocks)), blotted(data, secrets), (secrets, blocks))

    def test_only_what_may_begin_a_secret_waits_for_the_next_block(self) -> None:
        came = 0
        parts = hiding(KEY).cleaned(itertools.repeat(b"x" * 1000, 50))
        for number, part in enumerate(itertools.islice(parts, 50), 1):
            came += len(part)
            self.assertEqual(number * 1000 - came, len(KEY.replace("/", "\\/")) - 1)

    def test_without_a_secret_the_bytes_pass_at_once(self) -> None:
        self.assertEqual(list(console().cleaned([b"one", b"", b"two"])), [b"one", b"", b"two", b""])

    def test_a_result_holds_no_control_codes_and_no_half_characters(self) -> None:
        where = hiding(KEY)
        where.print_json({"path": "o\udcff.png", "text": f"\x9b31m \x7f \x1b {KEY} 図"})
        assert isinstance(where.stdout, io.StringIO)
        text = where.stdout.getvalue()
        self.assertNotRegex(text.encode().decode(), r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
        self.assertIn("図", text)
        self.assertEqual(json.loads(text), {"path": "o\udcff.png", "text": "\x9b31m \x7f \x1b *** 図"})


class Dawdling(Terminal):
    """A terminal that lets other threads run after each character."""

    def write(self, text: str) -> int:
        for letter in text:
            super().write(letter)
            time.sleep(0)
        return len(text)


class ThreadsShareIt(unittest.TestCase):
    """What a thread prints stays together."""

    def test_lines_and_sequences_of_several_threads_do_not_mix(self) -> None:
        where = gpt_image.Console(Dawdling(), Dawdling(), {})
        start = threading.Barrier(5)

        def speak(name: str) -> None:
            start.wait()
            for number in range(5):
                where.say(f"{name} {number}")
                where.draw([f"[{name}", f" {number}", "]\n"])

        def redraw() -> None:
            start.wait()
            for number in range(20):
                where.redraw(f"live {number}")

        threads = [threading.Thread(target=speak, args=(name * 9,)) for name in "abcd"]
        threads.append(threading.Thread(target=redraw))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        where.redraw("")
        lines = re.sub(r"\rlive \d+\x1b\[K|\r\x1b\[K", "", said(where)).splitlines()
        wanted = [line for name in "abcd" for i in range(5) for line in (f"{name * 9} {i}", f"[{name * 9} {i}]")]
        self.assertEqual(sorted(lines), sorted(wanted))

    def test_a_line_takes_the_place_of_the_live_one(self) -> None:
        where = console(terminal=True)
        where.redraw("waiting")
        where.redraw("waiting")
        where.say("saved o.png")
        where.redraw("")
        self.assertEqual(said(where), "\rwaiting\x1b[K\r\x1b[Ksaved o.png\n")


class PhasesAreTold(unittest.TestCase):
    """Live, plain or as JSON, with a clock of our own."""

    def setUp(self) -> None:
        self.now = 100.0

    def progress(self, where: gpt_image.Console, mode: str) -> gpt_image.Progress:
        """Returns the progress of a call, whose thread never gets to beat by itself."""
        slow = mock.patch.object(gpt_image.Progress, "TICK", 3600.0)
        self.addCleanup(slow.stop)
        slow.start()
        progress = gpt_image.Progress(where, mode, lambda: self.now)
        self.addCleanup(progress.__exit__)
        return progress

    def test_plain_progress_says_every_half_minute_that_the_call_goes_on(self) -> None:
        where = console()
        progress = self.progress(where, "plain")
        progress.phase("waiting")
        told = []
        for _ in range(9):
            self.now += 10
            progress.beat()
            told.append(said(where).splitlines()[1:])
        lines = [f"waiting for the reply · {seconds} s" for seconds in (30, 60, 90)]
        self.assertEqual(told, [lines[: count // 3] for count in range(1, 10)])

    def test_a_new_phase_puts_the_heartbeat_off(self) -> None:
        where = console()
        progress = self.progress(where, "plain")
        for name, facts in (("waiting", {}), ("receiving", {"bytes": 1})):
            progress.phase(name, **facts)
            self.now += 29
            progress.beat()
        self.assertEqual(said(where).splitlines(), ["waiting for the reply", "receiving the reply"])
        progress.phase("receiving", bytes=1_000_000)
        self.now += 1
        progress.beat()
        self.assertEqual(said(where).splitlines()[2:], ["receiving, 1.0 MB · 59 s"])

    def test_a_thread_gives_the_heartbeat_while_the_call_waits(self) -> None:
        where = console()
        with mock.patch.object(gpt_image.Progress, "HEARTBEAT", 0.0):
            progress = self.progress(where, "plain")
            with mock.patch.object(gpt_image.Progress, "TICK", 0.001), progress:
                progress.phase("waiting")
                for _ in range(2000):
                    if "reply · 0 s" in said(where):
                        break
                    time.sleep(0.005)
        self.assertIn("waiting for the reply · 0 s", said(where))

    def test_the_live_line_counts_the_seconds(self) -> None:
        where = console(terminal=True)
        where.as_json = True
        progress = self.progress(where, "auto")
        progress.phase("uploading", percent=50, bytes=2_000_000)
        for _ in range(2):
            self.now += 1.5
            progress.beat()
        progress.phase("saved", path="o.png", kind="png", bytes=1)
        progress.beat()
        start = "uploading 50 % of 2.0 MB"
        shown = f"\r{start} · 2 s\x1b[K\r{start} · 3 s\x1b[K\r\x1b[Ksaved o.png (png, 1 bytes)\n\r{start} · 3 s\x1b[K"
        self.assertEqual(said(where), shown)

    def test_json_is_ascii_and_tells_what_moves_on_once_a_second(self) -> None:
        where = console()
        progress = self.progress(where, "json")
        for _ in range(10):
            progress.phase("receiving", bytes=1_000_000)
            self.now += 0.25
        for path in ("図\x9b.png", "b.png"):
            progress.phase("saved", path=path, kind="png", bytes=1)
        self.assertTrue(said(where).isascii(), said(where))
        rows = [json.loads(line) for line in said(where).splitlines()]
        self.assertEqual([row["seconds"] for row in rows], [0.0, 1.0, 2.0, 2.5, 2.5])
        told = {"phase": "saved", "seconds": 2.5, "path": "図\x9b.png", "kind": "png", "bytes": 1}
        self.assertEqual(rows[-2], told)

    def test_quiet_silences_words_and_not_json(self) -> None:
        for mode, lines in (("plain", 0), ("auto", 0), ("none", 0), ("json", 1)):
            where = console()
            where.quiet = True
            self.progress(where, mode).phase("waiting")
            self.assertEqual(len(said(where).splitlines()), lines, mode)


class PicturesAreShown(ProgramTest):
    """--preview in terminals that can, and a word in those that cannot."""

    PICTURE = bytes(range(256)) * 40

    def shown(self, name: str, **environ: str) -> str:
        """Returns what a terminal with some variables is sent for a picture."""
        Path(name).write_bytes(self.PICTURE)
        where = console(terminal=True, **environ)
        gpt_image.show_picture(name, where, environ)
        return said(where)

    def test_kitty_gets_a_png_in_pieces_of_four_kilobytes(self) -> None:
        text = self.shown("a.png", TERM="xterm-kitty")
        pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
        self.assertEqual("".join(f"\x1b_G{control};{data}\x1b\\" for control, data in pieces) + "\n", text)
        self.assertEqual([control for control, _ in pieces], ["a=T,f=100,q=2,m=1", "m=1", "m=1", "m=1", "m=0"])
        self.assertLessEqual(max(len(data) for _, data in pieces), 4096)
        self.assertEqual(base64.b64decode("".join(data for _, data in pieces)), self.PICTURE)

    def test_iterm_gets_any_format_in_one_piece_with_its_size(self) -> None:
        for name in ("a.png", "a.JPG", "a.webp", "a.gif"):
            text = self.shown(name, TERM_PROGRAM="iTerm.app")
            size, data = re.fullmatch(
                r"\x1b\]1337;File=inline=1;preserveAspectRatio=1;size=(\d+):(.*)\x07\n", text
            ).groups()  # type: ignore[union-attr]
            self.assertEqual((int(size), base64.b64decode(data)), (len(self.PICTURE), self.PICTURE))

    def test_what_cannot_be_shown_is_said_once(self) -> None:
        cases: Iterator[Tuple[str, Dict[str, str], str]] = iter((
            ("a.webp", {"KITTY_WINDOW_ID": "1"}, "cannot show this format"),
            ("a.svg", {"TERM_PROGRAM": "WezTerm"}, "cannot show this format"),
            ("a.png", {"TERM_PROGRAM": "Apple_Terminal"}, "shows no pictures"),
            ("a.png", {"KITTY_WINDOW_ID": "1", "TERM": "dumb"}, "shows no pictures"),
            ("a.png", {"KITTY_WINDOW_ID": "1", "TMUX": "/run/tmux"}, "shows no pictures"),
        ))  # fmt: skip
        for name, environ, why in cases:
            where = console(terminal=True, **environ)
            for _ in range(2):
                gpt_image.show_picture(name, where, environ)
            with self.subTest(name, environ=environ):
                lines: List[str] = said(where).splitlines()
                self.assertEqual(len(lines), 1)
                self.assertIn(f"--preview: this terminal {why}", lines[0])


if __name__ == "__main__":
    unittest.main()
