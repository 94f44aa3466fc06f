#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Make and edit pictures with the GPT Image models of OpenAI or of any gateway.

    gpt_image.py generations "A lighthouse at dusk" --output out/lighthouse.png
    gpt_image.py edits "Make it snow" --image photo.jpg --output out/snow.png
    gpt_image.py responses "A poster for a jazz night" --stream --partial-images 2 --output out/poster.png

One file, standard library only, to be read from top to bottom: each section uses only what stands above it.

    argv + environ + .env -> Settings -> Request -> Reply -> Event -> SavedImage -> report

     1 Outcomes    exit codes and the one exception        8 Request     a body that streams from disk
     2 Console     every word printed, redacted            9 Transport   the only socket, the only use of the key
     3 Kinds       text -> value                          10 Writers     names before the call, files after it
     4 Tables      all knowledge of the API, as rows      11 Reply       bytes -> small JSON, pictures -> disk
     5 Pictures    what a file's bytes say                12 Events      JSON of any dialect -> events
     6 Settings    where each value comes from            13 Commands    one function each
     7 Validation  every broken rule, before sending      14 Main        arguments -> exit code

Four promises, each kept by a test:
 1. the key is used in one place, goes to one origin, and is never printed, logged or stored;
 2. nothing is sent that is known to be refused, and nothing at all under --dry-run;
 3. a picture that was paid for is never lost or overwritten: it is on disk the moment its last byte arrives;
 4. memory does not grow with the pictures, neither up nor down.
"""

from __future__ import annotations

import argparse
import binascii
import functools
import io
import itertools
import json
import math
import os
import re
import signal
import stat
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Callable, NamedTuple

# What only a real call needs (ssl, http.client, urllib.request, hashlib, threading ...) is imported where it is used:
# loading it takes longer than everything --help and --dry-run do.
if TYPE_CHECKING:
    import urllib.request

__version__ = "1.0.0"

Json = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# 1 Outcomes: what the program ends with
# ---------------------------------------------------------------------------------------------------------------------


class Exit(NamedTuple):
    """A row of EXITS: an exit code, what it means, and what it asks of the caller."""

    code: int
    meaning: str
    advice: str


EXITS = (
    Exit(0, "every picture asked for is on disk", "read the paths from the result"),
    Exit(1, "a bug of this program", "report it, with the redacted traceback"),
    Exit(2, "usage, or a rule broken: nothing was sent", "change the command as `problems` and the hint say"),
    Exit(3, "no key, or settings that must not be used together: nothing was sent", "set the key as the hint says"),
    Exit(4, "the API refused (4xx), moderation included", "change the request; the same one is refused again"),
    Exit(5, "network, timeout or server fault", "look at `may_be_billed` before you try again"),
    Exit(6, "a reply that cannot be understood, or holds no picture", "look at `recovery`: the reply was kept"),
    Exit(7, "output cannot be written, or exists", "choose another name or --overwrite; after a call see `recovery`"),
    Exit(8, "still running in the background", "run the `resume` command of the hint"),
    Exit(130, "interrupted", "look at `images` and `recovery`: what had arrived was kept"),
)
OK, BUG, USAGE, SETTINGS, REFUSED, NETWORK, UNREADABLE, OUTPUT, RUNNING, INTERRUPTED = (row.code for row in EXITS)


class Failure(Exception):
    """The one exception: an exit code, what is wrong, what to do, and details for the `error` object of the result."""

    def __init__(self, exit: int, message: str, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.exit, self.message, self.hint, self.details = exit, message, hint, details


# ---------------------------------------------------------------------------------------------------------------------
# 2 Console: every word to a person (stderr) or a machine (stdout) leaves here, redacted
# ---------------------------------------------------------------------------------------------------------------------


class Secret:
    """A value that shows as `***` wherever it is printed; only the transport asks for it with `reveal`."""

    __slots__ = ("_value",)
    SHORTEST = 6  # what is shorter stands in ordinary words, and no real key is

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        return self._value

    def forms(self) -> set[str]:
        """Returns the ways the value may be written: plain, as JSON, and as JSON the way PHP writes it."""
        if len(self._value) < self.SHORTEST:
            return set()
        return {self._value, json.dumps(self._value)[1:-1], self._value.replace("/", "\\/")}

    def fits_header(self) -> bool:
        """Tells whether the value is one word of printable ASCII without quotes, as every key is."""
        return bool(re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", self._value))


# A server's words go to a terminal: escape sequences in them must not.
CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
UNPRINTABLE = re.compile("[\x7f-\x9f\ud800-\udfff]")  # what JSON leaves as it is, and a stream may not take
# What a styled line begins with, and the colour of its first word.
STYLES = {
    "error": ("gpt_image.py: ", "\x1b[1;31m"),
    "warning": ("gpt_image.py: ", "\x1b[33m"),
    "hint": ("  ", "\x1b[36m"),
}


def is_terminal(stream: IO[str]) -> bool:
    """Tells whether a stream is a terminal; a closed one is not."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def columns(stream: IO[str]) -> int:
    """Returns the width of a terminal, or 0 where it is not known or the stream was closed."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 0


def fitted(text: str, width: int) -> str:
    """Returns lines broken between words where they are wider than a window; commands stay whole, to be pasted."""
    import textwrap

    lines = []
    for line in text.split("\n"):
        if len(line) > width >= 12 and not re.search(r": (python3?|gpt-image|gpt_image\.py) ", line):
            indent = " " * (len(line) - len(line.lstrip()) + 2)
            line = textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


class Console:
    """The two streams of the program, the secrets to hide on them, and the warnings given so far.

    Threads may share it: what one of them prints stays together.
    """

    def __init__(self, stdout: IO[str], stderr: IO[str], environ: Mapping[str, str]) -> None:
        from _thread import allocate_lock  # `threading` costs a start-up more than it gives here

        self.stdout, self.stderr, self.lock = stdout, stderr, allocate_lock()
        self.hidden: set[str] = set()  # every form of every secret
        self.warnings: list[str] = []
        self.quiet, self.lost = False, ""
        self.tells = True  # False where stderr holds a JSON object a line
        self.line = ""  # the live line, as it stands on the screen
        self.live = is_terminal(stderr) and environ.get("TERM") != "dumb"
        self.colour = self.live and not environ.get("NO_COLOR")

    def hide(self, *secrets: Secret) -> None:
        """Keeps secrets out of all that is printed or kept from now on."""
        self.hidden.update(form for secret in secrets for form in secret.forms())

    def forms(self) -> list[str]:
        """Returns all that must not be shown, the longest first, since one may hold another."""
        return sorted(self.hidden, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """Returns the text without any secret."""
        for form in self.forms():
            text = text.replace(form, "***")
        return text

    def cleaned(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the bytes of a reply without any secret, as long as they were, wherever the blocks end."""
        needles = [form.encode("utf-8", "surrogateescape") for form in self.forms()]
        most = max(map(len, needles), default=1)
        # Searched in what came and blotted out in a copy, since secrets may overlap.
        came, shown = bytearray(), bytearray()
        for block in blocks:
            came += block
            shown += block
            for needle in needles:
                at = came.find(needle)
                while at >= 0:
                    shown[at : at + len(needle)] = b"*" * len(needle)
                    at = came.find(needle, at + 1)
            whole = max(len(came) - most + 1, 0)  # a secret that begins behind it may go on in the next block
            yield bytes(shown[:whole])
            del came[:whole], shown[:whole]
        yield bytes(shown)

    def _put(self, stream: IO[str], text: str) -> None:
        try:
            print(self.clean(text), end="", file=stream, flush=True)
        except BrokenPipeError:
            self.abandon(stream)
        except OSError as error:  # a full disk behind a stream is not worth a picture, but the result must not vanish
            self.lost = str(error.strerror) if stream is self.stdout else self.lost
            self.abandon(stream)
        except ValueError:
            pass  # a closed stream

    def abandon(self, stream: IO[str]) -> None:
        """Points a stream whose reader is gone at the null device, so that the interpreter's own flush is quiet too."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            pass

    def _write(self, stream: IO[str], texts: Iterable[str], line: str = "") -> None:
        """Writes texts in one go, where the live line stood; `line` is what stands there afterwards."""
        with self.lock:
            if self.line and not line:
                self._put(self.stderr, "\r\x1b[K")
            self.line = line
            for text in texts:
                self._put(stream, text)

    def redraw(self, line: str) -> None:
        """Writes the live line anew if it has changed, so that it does not flicker; an empty one is taken away."""
        width = columns(self.stderr) or 80
        line = line if len(line) < width else line[: max(width - 2, 0)] + "…"
        if line != self.line:
            self._write(self.stderr, [f"\r{line}\x1b[K"] if line else [], line)

    def draw(self, texts: Iterable[str]) -> None:
        """Writes raw texts to stderr, such as escape sequences of our own."""
        self._write(self.stderr, texts)

    def say(self, text: str, style: str = "") -> None:
        """Prints one line to stderr, with its first word coloured if the terminal wants that."""
        text = text.translate(CONTROL)
        if style:
            start, colour = STYLES[style]
            text = f"{start}{colour}{style}:\x1b[0m {text}" if self.colour else f"{start}{style}: {text}"
        if self.live and columns(self.stderr):
            text = fitted(text, columns(self.stderr))
        self.draw([text + "\n"])

    def tell(self, text: str) -> None:
        """Says something that --quiet silences."""
        if not self.quiet and self.tells:
            self.say(text)

    def warn(self, text: str) -> None:
        """Notes a warning once for the result and says it."""
        text = self.clean(text)
        if text not in self.warnings:
            self.warnings.append(text)
            if not self.quiet:
                self.say(text, "warning")

    def print(self, text: str) -> None:
        """Prints the result to stdout."""
        self._write(self.stdout, [text + "\n"])

    def print_json(self, value: Any) -> None:
        """Prints one JSON object to stdout; what is not valid Unicode in a file name is escaped."""
        text = self.clean(json.dumps(value, indent=2, ensure_ascii=False))
        self.print(UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def amount(size: float) -> str:
    """Returns a number of bytes as words, such as `1.8 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun, such as `3 pictures`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


class Phase(NamedTuple):
    """A row of PHASES: the words of a phase, and those for a line that stays where the phase itself moves on."""

    words: str
    first: str = ""
    lasting: bool = False  # it is over when it is told, and stays on the screen as a line of its own


PHASES = {
    "connecting": Phase("connecting to {host}"),
    "uploading": Phase("uploading {percent} % of {size}", "uploading {size}"),
    "waiting": Phase("waiting for the reply"),
    "polling": Phase("{status} in the background"),
    "receiving": Phase("receiving, {size}", "receiving the reply"),
    "converting": Phase("converting {path}", lasting=True),
    "fetching": Phase("fetching picture {index}"),
    "preview": Phase("preview {partial} of {asked} for picture {index}: {path}", lasting=True),
    "saved": Phase("saved {path} ({kind}, {size})", lasting=True),
    "retrying": Phase("{reason}; try {attempt} in {wait} s", lasting=True),
}


class Progress:
    """The phases of a call on stderr: one live line on a terminal, else a line a phase, or a JSON object a line.

    A thread redraws the live line ten times a second and gives the heartbeat, since the call itself waits in `recv`.
    """

    HEARTBEAT = 30.0  # seconds
    TICKS = {"live": 0.1, "plain": 1.0}  # seconds

    def __init__(self, console: Console, mode: str, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.mode = ("live" if console.live else "plain") if mode == "auto" else mode
        if console.quiet and mode != "json":
            self.mode = "none"
        console.tells = self.mode != "json"
        self.started = self.shown = clock()
        self.name = self.text = ""
        self.thread: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread:
            self.ended.set()
            self.thread.join()
            self.console.redraw("")

    def phase(self, name: str, **facts: Any) -> None:
        """Tells that a phase has begun or moved on; the facts fill its row of PHASES."""
        if self.mode == "json":
            self._tell_json(name, facts)
        elif self.mode != "none":
            self._tell(name, facts)
            if not self.thread:
                self._start()

    def _tell_json(self, name: str, facts: Json) -> None:
        # A 200 MB reply has thousands of chunks: what only moves on is told once a second.
        now = self.clock()
        if name != self.name or not PHASES[name].first or now - self.shown >= 1:
            self.name, self.shown = name, now
            self.console.draw([json.dumps({"phase": name, "seconds": round(now - self.started, 1), **facts}) + "\n"])

    def _tell(self, name: str, facts: Json) -> None:
        row = PHASES[name]
        text = row.words.format(**facts)
        if row.lasting:
            self.console.say(text)
            return
        if self.mode == "plain" and name != self.name:
            self.console.say(row.first.format(**facts) or text)
            self.shown = self.clock()
        self.name, self.text = name, text

    def _start(self) -> None:
        """Starts the thread with the first phase: checks alone need none."""
        import threading

        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def _tick(self) -> None:
        while not self.ended.wait(self.TICKS[self.mode]):
            self.beat()

    def beat(self) -> None:
        """Redraws the live line; in plain progress, says now and then that the call still goes on."""
        now = self.clock()
        if self.mode == "live" and self.text:
            self.console.redraw(f"{self.text} · {now - self.started:.0f} s")
        elif self.mode == "plain" and now - self.shown >= self.HEARTBEAT:
            self.shown = now
            self.console.say(f"{self.text or 'working'}, {now - self.started:.0f} s so far")


def base64_blocks(path: str, size: int) -> Iterator[str]:
    """Yields a file in base64, `size` bytes (a multiple of three) at a time."""
    with open(path, "rb") as file:
        while block := file.read(size):
            yield binascii.b2a_base64(block, newline=False).decode()


# https://sw.kovidgoyal.net/kitty/graphics-protocol/
def kitty_sequences(path: str) -> Iterator[str]:
    """Yields a picture for kitty: chunks of 4096 characters, with m=1 until the last."""
    control = "a=T,f=100,q=2,"
    for text in base64_blocks(path, 3072):
        yield f"\x1b_G{control}m=1;{text}\x1b\\"
        control = ""
    yield "\x1b_Gm=0;\x1b\\"


# https://iterm2.com/documentation-images.html
def iterm_sequences(path: str) -> Iterator[str]:
    """Yields a picture for iTerm2: one sequence, since tmux would not put pieces together."""
    text = "".join(base64_blocks(path, 3 * 64 * 1024))
    yield f"\x1b]1337;File=inline=1;preserveAspectRatio=1;size={os.path.getsize(path)}:{text}\x07"


class Protocol(NamedTuple):
    """How terminals show a picture: the suffixes of what they can, and the escape sequences of a file."""

    suffixes: tuple[str, ...]
    sequences: Callable[[str], Iterator[str]]


KITTY = Protocol((".png",), kitty_sequences)
ITERM = Protocol((".png", ".jpg", ".jpeg", ".gif", ".webp"), iterm_sequences)


class Terminal(NamedTuple):
    """A row of TERMINALS: a variable a terminal sets, what it looks like there, and the way it shows pictures."""

    variable: str
    pattern: str
    protocol: Protocol


# Variables that a terminal passes on through tmux come first: TERM_PROGRAM says `tmux` there.
TERMINALS = (
    Terminal("KITTY_WINDOW_ID", r".+", KITTY),
    Terminal("GHOSTTY_RESOURCES_DIR", r".+", KITTY),
    Terminal("TERM", r"xterm-(kitty|ghostty)", KITTY),
    Terminal("WEZTERM_PANE", r".+", ITERM),
    Terminal("LC_TERMINAL", r"iTerm2", ITERM),
    Terminal("TERM_PROGRAM", r"iTerm\.app|WezTerm|vscode", ITERM),
    Terminal("TERM_PROGRAM", r"ghostty", KITTY),
)


def passed_through_tmux(sequence: str) -> str:
    """Returns an escape sequence as tmux hands it on, with allow-passthrough on."""
    # https://github.com/tmux/tmux/wiki/FAQ
    return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"


class Preview:
    """Shows pictures in the terminal itself, where its variables say that it can."""

    def __init__(self, console: Console, environ: Mapping[str, str]) -> None:
        self.console, self.tmux, self.told = console, bool(environ.get("TMUX")), False
        known = (row.protocol for row in TERMINALS if re.fullmatch(row.pattern, environ.get(row.variable, "")))
        self.protocol = next(known, None) if console.live else None

    def show(self, path: str) -> None:
        """Shows a saved picture, whose suffix tells the truth, or says once why not."""
        if self.protocol and path.lower().endswith(self.protocol.suffixes):
            sequences = self.protocol.sequences(path)
            self.console.draw(map(passed_through_tmux, sequences) if self.tmux else sequences)
            self.console.draw(["\n"])
        elif not self.told:
            self.told = True
            why = "cannot show this format" if self.protocol else "shows no pictures, or does not say that it does"
            self.console.tell(f"--preview: this terminal {why}")


# ---------------------------------------------------------------------------------------------------------------------
# 3 Kinds: text -> value, with the wording that help, errors and documents share
# ---------------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How a setting is written: `parse` turns its text into a value or raises ValueError; the rest are words.

    `choices` and the range `low`-`high` are checked later, with the rules, so that --no-validate can send other values.
    """

    parse: Callable[[str], Any]
    metavar: str = ""
    expected: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    flag: bool = False
    repeat: bool = False
    private: bool = False  # an error shows only what stands before the colon
    strict: bool = False  # choices of our own, not the API's: no --no-validate and no unknown model opens them


def parse_flag(text: str) -> bool:
    """Reads yes or no."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


def parse_number(text: str) -> int:
    """Reads a whole number."""
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text.strip()):
        raise ValueError("expected a whole number")
    return int(text)


def parse_seconds(text: str) -> float:
    """Reads a positive number of seconds."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text.strip()) or float(text) <= 0:
        raise ValueError("expected a number of seconds greater than 0")
    return float(text)


def read_text(path: str) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark; ValueError says what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error


def parse_object(text: str) -> Json:
    """Reads a JSON object, or one from a file named as @FILE."""
    text = read_text(text[1:]) if text.startswith("@") else text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected a JSON object or @FILE ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object or @FILE")
    return value


def parse_tool_choice(text: str) -> Any:
    """Reads a tool choice: a word of the API, `image_generation` for the hosted tool, or a JSON object."""
    if text == "image_generation":
        return {"type": "image_generation"}
    if text in ("auto", "required", "none"):
        return text
    if text.lstrip().startswith("{"):
        return parse_object(text)
    raise ValueError("expected auto, required, none, image_generation or a JSON object")


def parse_header(text: str) -> tuple[str, str]:
    """Reads `Name: value`; CR, LF, NUL and other control characters are refused, since they could forge headers."""
    name, colon, value = text.partition(":")
    name, value = name.strip(" "), value.strip(" \t")
    if not colon or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("expected 'Name: value'")
    if name.lower() in ("content-length", "content-type", "transfer-encoding", "host", "connection"):
        raise ValueError(f"{name} is set by the program itself")
    if not re.fullmatch(r"[\x20-\x7e\t\xa0-\xff]*", value):
        raise ValueError("a header value is one line of printable Latin-1 characters")
    return name, value


class Box(NamedTuple):
    """A rectangle on a picture: x, y, width, height, each as (number, whether it is a percentage)."""

    sides: tuple[tuple[float, bool], ...]

    def leaves(self) -> bool:
        """Tells whether it leaves the picture by its percentages, which rounding to pixels could hide."""
        (x, x_of), (y, y_of), (w, w_of), (h, h_of) = self.sides
        return (x_of and w_of and x + w > 100) or (y_of and h_of and y + h > 100)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Returns x, y, width and height in pixels of a picture of the given size."""
        of = (width, height, width, height)
        x, y, w, h = (round(n * of[i] / 100) if percent else int(n) for i, (n, percent) in enumerate(self.sides))
        return x, y, w, h


def parse_box(text: str) -> Box:
    """Reads `X,Y,WIDTH,HEIGHT` in pixels, or in per cent with a `%` behind the number."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(re.fullmatch(r"[0-9]{1,5}|[0-9]{1,3}(\.[0-9]+)?%", part) for part in parts):
        raise ValueError("expected X,Y,WIDTH,HEIGHT in pixels or per cent, such as 10,20,300,200 or 25%,0%,50%,100%")
    return Box(tuple((float(part.rstrip("%")), part.endswith("%")) for part in parts))


def one_of(values: tuple[str, ...]) -> str:
    """Returns values as words: a, b or c."""
    return " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))


def choice(*values: str, strict: bool = False) -> Kind:
    """Returns the kind of a word out of several."""
    return Kind(str, "|".join(values), f"expected {one_of(values)}", choices=values, strict=strict)


def number(low: int, high: int | None = None) -> Kind:
    """Returns the kind of a whole number in a range, both ends included."""
    words = f"from {low} to {high}" if high is not None else f"of {low} or more"
    return Kind(parse_number, "N", f"expected a whole number {words}", low=low, high=high)


TEXT = Kind(str, "TEXT")
NAME = Kind(str, "NAME")
PATH = Kind(str, "PATH")
URL = Kind(lambda text: text.strip(" "), "URL")
FLAG = Kind(parse_flag, flag=True)
SECONDS = Kind(parse_seconds, "SECONDS")
SIZE = Kind(lambda text: text.strip().lower(), "WIDTHxHEIGHT|auto")
OBJECT = Kind(parse_object, "JSON|@FILE")
PICTURE_FORMAT = Kind(
    lambda text: {"jpg": "jpeg"}.get(text.strip().lower(), text.strip().lower()),
    "png|jpeg|webp|gif|svg", "expected png, jpeg, webp, gif or svg", choices=("png", "jpeg", "webp", "gif", "svg"),
)  # fmt: skip
TOOL_CHOICE = Kind(parse_tool_choice, "auto|required|none|image_generation|JSON")
HEADER = Kind(parse_header, "'Name: value'", repeat=True, private=True)
SOURCE = Kind(str, "PATH|URL|file_id:ID")
SOURCES = SOURCE._replace(repeat=True)
BOXES = Kind(parse_box, "X,Y,WIDTH,HEIGHT", repeat=True)


# ---------------------------------------------------------------------------------------------------------------------
# 4 Tables: all knowledge of the API, as data
# ---------------------------------------------------------------------------------------------------------------------

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOSTS = re.compile(r"(.+\.)?api\.openai\.com")
FACTS_OF = "2026-11-20"  # the day the tables below were last held against the API


class Route(NamedTuple):
    """A row of ROUTES: a subcommand, where it posts to, and how its body is written."""

    name: str
    path: str
    summary: str
    example: str


ROUTES = (
    Route("generations", "/images/generations", "make pictures from words",
          'generations "A lighthouse at dusk" --output out/lighthouse.png'),
    Route("edits", "/images/edits", "edit or combine pictures, with a mask if you like",
          'edits "Make it snow" --image photo.jpg --output out/snow.png'),
    Route("responses", "/responses", "let a text model make pictures, with previews and further turns",
          'responses "A poster" --stream --partial-images 2 -o poster.png'),
)  # fmt: skip
ROUTE = {row.name: row for row in ROUTES}
CHAT_PATH = "/chat/completions"

IMAGES = ("generations", "edits")
ALL = (*IMAGES, "responses")
NET = (*ALL, "resume", "config")
SAVES = (*ALL, "resume", "extract")
EVERY = (*ALL, "resume", "extract", "config")


class Option(NamedTuple):
    """A row of OPTIONS: one setting, and all that the command line, environment, body and documents need of it.

    `sends` says where the value goes: "image" is the top level of an Images body and the tool of a response, "top" the
    top level of any body, "header" a request header, "" nowhere by itself. `field` is the name there, dotted if nested.
    """

    name: str
    kind: Kind
    help: str
    commands: tuple[str, ...] = ALL
    also: tuple[str, ...] = ()
    sends: str = ""
    field: str = ""
    env: tuple[str, ...] = ()
    default: str | None = None
    input: str = ""  # for what leads to a picture: its role, and what the text surely is
    negative: str = ""  # the spelling that says no, where a flag can be on by itself
    secret: bool = False
    group: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """Returns the keys that lead to the API field."""
        return tuple((self.field or self.name.replace("-", "_")).split("."))


RESPONSES = ("responses",)


def grouped(group: str, *rows: Option) -> list[Option]:
    """Returns rows as a group of the help and of the reference."""
    return [row._replace(group=group) for row in rows]


OPTIONS = (
    *grouped(
        "Prompt",
        Option("prompt", TEXT, "what to make; PROMPT as an argument means the same"),
        Option("prompt-file", PATH, "read the prompt from a UTF-8 file; - is standard input"),
        Option("input-text", TEXT._replace(repeat=True), "a piece of the prompt (repeatable)", RESPONSES),
    ),
    *grouped(
        "Picture",
        Option("model", NAME, "image model", IMAGES, sends="top", env=("OPENAI_IMAGE_MODEL",), default="gpt-image-2"),
        Option("model", NAME, "text model that calls the image tool", RESPONSES, sends="top",
               env=("OPENAI_RESPONSES_MODEL",), default="gpt-5.4"),
        Option("tool-model", NAME, "image model of the tool; left out, the server chooses", RESPONSES, sends="image",
               field="model", env=("OPENAI_IMAGE_TOOL_MODEL",)),
        Option("n", number(1, 10), "how many pictures", IMAGES, sends="image", env=("OPENAI_IMAGE_N",)),
        Option("size", SIZE, "size in pixels, such as 1536x1024", sends="image", env=("OPENAI_IMAGE_SIZE",)),
        Option("quality", choice("auto", "low", "medium", "high", "xhigh", "max"), "rendering quality", sends="image",
               env=("OPENAI_IMAGE_QUALITY",)),
        Option("background", choice("auto", "opaque", "transparent"), "transparency of the picture's background",
               sends="image", env=("OPENAI_IMAGE_BACKGROUND",)),
        Option("format", PICTURE_FORMAT, "file format; without it the suffix of --output decides",
               also=("output-format",), sends="image", field="output_format",
               env=("OPENAI_IMAGE_FORMAT", "OPENAI_IMAGE_OUTPUT_FORMAT")),
        Option("compression", number(0, 100), "compression of jpeg and webp, in per cent",
               also=("output-compression",), sends="image", field="output_compression",
               env=("OPENAI_IMAGE_COMPRESSION", "OPENAI_IMAGE_OUTPUT_COMPRESSION")),
        Option("moderation", choice("auto", "low"), "how strictly content is filtered", sends="image",
               env=("OPENAI_IMAGE_MODERATION",)),
        Option("complexity", choice("low", "medium", "high"), "effort spent on planning the picture", sends="image"),
        Option("frame-count", number(2, 16), "frames of a gif", sends="image"),
        Option("frame-duration-ms", number(1, 655_350), "milliseconds each frame of a gif is shown", sends="image"),
        Option("svg-model", NAME, "text model that writes an svg", sends="image", field="svg.model"),
        Option("svg-effort", choice("none", "minimal", "low", "medium", "high", "xhigh", "max"),
               "reasoning effort of the svg's author", sends="image", field="svg.reasoning.effort"),
        Option("response-format", choice("b64_json", "url"), "how retired models and some gateways return pictures",
               IMAGES, sends="image", env=("OPENAI_IMAGE_RESPONSE_FORMAT",)),
        Option("style", choice("vivid", "natural"), "style, for retired models on gateways", IMAGES, sends="image",
               env=("OPENAI_IMAGE_STYLE",)),
    ),
    *grouped(
        "Input pictures",
        Option("image", SOURCES, "picture to edit (repeatable, up to 16)", ("edits",), also=("input",), input="image"),
        Option("input-image", SOURCES, "picture for the model to see (repeatable)", RESPONSES, input="image"),
        Option("input-image-url", URL._replace(repeat=True), "the same, surely a URL", RESPONSES, input="image url"),
        Option("input-image-file-id", NAME._replace(repeat=True), "the same, surely the id of an uploaded file",
               RESPONSES, input="image file_id"),
        Option("input-image-data-url", Kind(str, "DATA-URL", repeat=True), "the same, as a data: URL", RESPONSES,
               input="image data"),
        Option("mask", SOURCE._replace(metavar="PATH|URL|file_id:ID|auto"),
               "PNG whose transparent parts say where to edit; auto lets a gateway make one", ("edits",),
               input="mask"),
        Option("mask", SOURCE, "PNG whose transparent parts say where to edit", RESPONSES, input="mask"),
        Option("mask-url", URL, "the same, surely a URL", RESPONSES, input="mask url"),
        Option("mask-file-id", NAME, "the same, surely the id of an uploaded file", RESPONSES, input="mask file_id"),
        Option("mask-box", BOXES, "make the mask: where to edit, in pixels or per cent (repeatable)",
               ("edits", "responses")),
        Option("markup", PATH, "transparent PNG with marks that guide the edit", ("edits",), input="markup file"),
        Option("input-fidelity", choice("high", "low"), "how closely to keep to the input pictures",
               ("edits", "responses"), sends="image", env=("OPENAI_IMAGE_INPUT_FIDELITY",)),
        Option("image-field-style", choice("brackets", "simple", "indexed", strict=True),
               "form field of the pictures: image[], image or image[0]", ("edits",), default="brackets"),
    ),
    *grouped(
        "Response",
        Option("action", choice("auto", "generate", "edit"), "whether the tool makes or edits", RESPONSES,
               sends="image"),
        Option("tool-choice", TOOL_CHOICE, "whether the model must call the tool", RESPONSES, sends="top",
               env=("OPENAI_IMAGE_TOOL_CHOICE",), default="image_generation"),
        Option("previous-response-id", NAME, "the response to go on from", RESPONSES, sends="top"),
        Option("instructions", TEXT, "standing instructions for the text model", RESPONSES, sends="top"),
        Option("background-mode", FLAG, "queue the response and collect it when it is ready", RESPONSES, sends="top",
               field="background"),
        Option("store", FLAG, "let the server keep the response, for further turns", RESPONSES, sends="top",
               negative="no-store"),
        Option("metadata-json", OBJECT, "up to 16 names with values to keep with the response", RESPONSES,
               sends="top", field="metadata"),
        Option("reasoning-effort", choice("none", "minimal", "low", "medium", "high", "xhigh", "max"),
               "reasoning effort of the text model", RESPONSES, sends="top", field="reasoning.effort"),
        Option("stream", FLAG, "receive events as they happen, and previews", sends="top",
               env=("OPENAI_IMAGE_STREAM",), negative="no-stream"),
        Option("partial-images", number(0, 3), "previews to ask for; needs --stream", sends="image",
               env=("OPENAI_IMAGE_PARTIAL_IMAGES",)),
        Option("safety-identifier", NAME, "a stable, hashed id of your end user", sends="top"),
        Option("user", NAME, "older name of --safety-identifier", sends="top", env=("OPENAI_IMAGE_USER",)),
        Option("extra-json", OBJECT, "fields to add to the body or put in place of ours, unchecked",
               env=("OPENAI_IMAGE_EXTRA_JSON",)),
        Option("cancel", FLAG, "cancel the background response", ("resume",)),
    ),
    *grouped(
        "Output",
        Option("output", Kind(str, "PATTERN"), "file, folder, or pattern with {index} and {partial}", SAVES,
               also=("o",)),
        Option("overwrite", FLAG, "replace files that exist", SAVES),
        Option("save-response", PATH, "keep the bytes of the reply in this file", (*ALL, "resume")),
        Option("dry-run", FLAG, "check everything and show the request; needs no key and sends nothing"),
        Option("curl", FLAG, "print the request as a curl command and send nothing"),
    ),
    *grouped(
        "Display",
        Option("json", FLAG, "print the result as JSON on a terminal too", EVERY),
        Option("progress", choice("auto", "plain", "json", "none", strict=True), "how to show progress on stderr",
               SAVES, default="auto"),
        Option("quiet", FLAG, "no progress and no warnings on stderr", EVERY, also=("q",)),
        Option("preview", FLAG, "show the pictures in the terminal, where it can", SAVES),
    ),
    *grouped(
        "Connection",
        Option("no-validate", FLAG, "turn refusals of our own checks into warnings"),
        Option("protocol", choice("openai_images", "openai_chat", strict=True),
               "openai_chat for gateways with chat only", IMAGES, env=("OPENAI_IMAGE_PROTOCOL",),
               default="openai_images"),
        Option("base-url", URL, "where the API is, up to and with /v1", NET,
               env=("OPENAI_BASE_URL", "GPT_IMAGE2_BASE_URL"), default=OPENAI_URL),
        Option("api-key", Kind(str.strip, "KEY"), "the key; the environment or a .env is the better place", NET,
               env=("OPENAI_API_KEY", "GPT_IMAGE2_API_KEY"), secret=True),
        Option("api-key-env", NAME, "read the key from this variable", NET),
        Option("organization", NAME, "organization to bill", NET, sends="header", field="OpenAI-Organization",
               env=("OPENAI_ORG_ID",)),
        Option("project", NAME, "project to bill", NET, sends="header", field="OpenAI-Project",
               env=("OPENAI_PROJECT_ID",)),
        Option("header", HEADER, "a further request header (repeatable)", NET),
        Option("env-file", PATH, "read settings from this file instead of .env", EVERY),
        Option("no-env-file", FLAG, "read no .env", EVERY),
        Option("timeout", SECONDS, "seconds to wait for the next byte", NET, env=("OPENAI_IMAGE_TIMEOUT",),
               default="600"),
        Option("max-retries", number(0, 10), "further tries after a failure that cannot have been billed", NET,
               default="2"),
        Option("retry-billable", FLAG, "try again too when the failed try may have been billed"),
        Option("allow-http", FLAG, "send the key over plain http to a public host", NET),
    ),
    *grouped(
        "Config",
        Option("init", FLAG, "write a commented .env into the current folder, never over an existing one",
               ("config",)),
        Option("check", FLAG, "ask the endpoint, free of charge, whether it accepts the key", ("config",)),
        Option("completion", choice("bash", "zsh", "fish", strict=True), "print a completion script for this shell",
               ("config",)),
    ),
)  # fmt: skip


def options_of(command: str) -> dict[str, Option]:
    """Returns the options of a subcommand by name."""
    return {row.name: row for row in OPTIONS if command in row.commands}


class Sizes(NamedTuple):
    """The sizes a model takes: a fixed list, or any that keeps the limits (in pixels)."""

    fixed: tuple[str, ...] = ()
    multiple: int = 16
    edge: int = 3840
    ratio: int = 3
    least: int = 655_360
    most: int = 8_294_400
    experimental: int = 2560 * 1440  # above this many pixels the reference calls it experimental


FREE_SIZES = Sizes()
THREE_SIZES = Sizes(fixed=("1024x1024", "1536x1024", "1024x1536"))

Takes = dict[str, tuple[str, ...]]


class Model(NamedTuple):
    """A row of MODELS: the ids it stands for, and what they take.

    `takes` lists, by option, the values the model takes; an empty list means that it does not know the option at all,
    and an option that is not listed has the values of its row in OPTIONS. None knows nothing and forbids nothing.
    `tokens` is the factor f of the estimate by quality. `gone` is the day the model was or will be shut down.
    """

    pattern: str
    takes: Takes | None
    sizes: Sizes | None = None
    tokens: Mapping[str, int] = {}
    gone: str = ""
    retired: bool = False
    instead: str = ""


TAKES_1: Takes = {
    "quality": ("auto", "low", "medium", "high"), "format": ("png", "jpeg", "webp"), "complexity": (), "markup": (),
    "frame-count": (), "frame-duration-ms": (), "svg-model": (), "svg-effort": (), "response-format": (), "style": (),
}  # fmt: skip
TAKES_2: Takes = {**TAKES_1, "background": ("auto", "opaque"), "input-fidelity": ()}
TAKES_25: Takes = {
    **{name: values for name, values in TAKES_1.items() if name not in ("quality", "markup")}, "input-fidelity": (),
}  # fmt: skip
TAKES_26: Takes = {"input-fidelity": (), "response-format": (), "style": ()}
TAKES_DALLE: Takes = {
    "quality": ("auto", "standard", "hd"), "response-format": ("b64_json", "url"), "style": ("vivid", "natural"),
}  # fmt: skip

MODELS = (
    Model(r"gpt-image-2\.6-(sunburst|flare)(-\d{4}-\d\d-\d\d)?", TAKES_26, FREE_SIZES,
          {"high": 48, "xhigh": 64, "max": 96}),
    Model(r"gpt-image-2\.5-(sunburst|flare)(-\d{4}-\d\d-\d\d)?", TAKES_25, FREE_SIZES,
          {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}),
    Model(r"gpt-image-2(-\d{4}-\d\d-\d\d)?", TAKES_2, FREE_SIZES, {"low": 16, "medium": 48, "high": 96}),
    Model(r"gpt-image-1\.5(-\d{4}-\d\d-\d\d)?|chatgpt-image-latest", TAKES_1, THREE_SIZES, gone="2026-12-01",
          instead="gpt-image-2.5-sunburst"),
    Model(r"gpt-image-1-mini(-\d{4}-\d\d-\d\d)?", {**TAKES_1, "input-fidelity": ("low",)}, THREE_SIZES,
          gone="2026-12-01", instead="gpt-image-2.5-flare"),
    Model(r"gpt-image-1(-\d{4}-\d\d-\d\d)?", TAKES_1, THREE_SIZES, gone="2026-10-23", retired=True,
          instead="gpt-image-2.5-sunburst"),
    Model(r"dall-e-[23]", TAKES_DALLE, gone="2026-05-12", retired=True, instead="gpt-image-2.5-sunburst"),
    Model(r"(?s:.*)", None),
)  # fmt: skip
MODEL_IDS = (
    "gpt-image-2", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst", "gpt-image-2.6-flare",
    "gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest",
)  # fmt: skip
TOOL_MODEL = "gpt-image-2.6-sunburst"  # what the server takes when a response's tool names no model
# The API has no model by these names, though people type them.
BARE_MODELS = {"gpt-image-2.5": "gpt-image-2.5-sunburst", "gpt-image-2.6": "gpt-image-2.6-sunburst"}


def model_row(name: str) -> Model:
    """Returns the first row of MODELS that stands for a model id."""
    return next(row for row in MODELS if re.fullmatch(row.pattern, name))


class Format(NamedTuple):
    """A row of FORMATS: a picture format the API returns, and the options that cannot go with it."""

    name: str
    suffixes: tuple[str, ...]
    transparent: bool = False
    compresses: bool = False
    one: bool = False  # takes n=1 only
    refuses: tuple[str, ...] = ()
    owns: tuple[str, ...] = ()  # options that go with this format only


FORMATS = (
    Format("png", (".png",), transparent=True),
    Format("jpeg", (".jpg", ".jpeg"), compresses=True),
    Format("webp", (".webp",), transparent=True, compresses=True),
    Format("gif", (".gif",), refuses=("stream", "partial-images", "mask"), owns=("frame-count", "frame-duration-ms")),
    Format("svg", (".svg",), one=True, refuses=("stream", "partial-images"), owns=("svg-model", "svg-effort")),
)
FORMAT = {row.name: row for row in FORMATS}
FORMAT_OF_SUFFIX = {suffix: row.name for row in FORMATS for suffix in row.suffixes}
DEFAULT_FORMAT = "png"

INPUT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
MIB = 1024 * 1024
MAX_IMAGES = 16
MAX_INPUT = 50 * MIB
MASK_WARNING = 4 * MIB
MAX_IMAGE_URL = 20_971_520  # characters, in the JSON form of edits
MAX_PROMPT = 32_000  # characters
CHAT_CARRIES = ("model", "image", "stream", "n", "user", "safety-identifier")  # of what reaches the API


class Rule(NamedTuple):
    """A row of RULES: a stable name, what is wrong in words with {places}, and what to do."""

    name: str
    text: str
    hint: str = ""
    warning: bool = False  # said, but not refused
    fatal: bool = False  # the request could not be built: --no-validate does not help


RULES = (
    Rule("value", "{text}: {why}", "{hint}"),
    Rule("unreadable-value", "{text}: {why}", fatal=True),
    Rule("prompt-missing", "there is no prompt", "give it as an argument, with --prompt or with --prompt-file",
         fatal=True),
    Rule("prompt-blank", "the prompt is blank", "say what to make"),
    Rule("prompt-length", "the prompt has {length} characters", f"at most {MAX_PROMPT} are allowed"),
    Rule("prompt-twice", "the prompt is given more than once: {given_by}", "keep one of them", fatal=True),
    Rule("prompt-encoding", "{text}: not valid Unicode text", "save it as UTF-8", fatal=True),
    Rule("size-form", "{text}: expected WIDTHxHEIGHT or auto", "such as 1536x1024"),
    Rule("size-multiple", "{text}: both edges must be multiples of {multiple}", "{nearest} is the nearest"),
    Rule("size-edge", "{text}: the longest edge is {edge} pixels at most", "{nearest} is the nearest"),
    Rule("size-ratio", "{text}: the long edge is at most {ratio} times the short one", "{nearest} is the nearest"),
    Rule("size-pixels", "{text}: {pixels} pixels; from {least} to {most} are allowed", "{nearest} is the nearest"),
    Rule("size-fixed", "{text}: {model} makes {sizes} or auto only", "{nearest} is the nearest"),
    Rule("size-experimental", "{text}: above 2560x1440 pixels is experimental", warning=True),
    Rule("model-retired", "{model} was shut down on {gone}", "use {instead}"),
    Rule("model-retired-elsewhere", "OpenAI shut {model} down on {gone}; this gateway may still serve it",
         warning=True),
    Rule("model-leaving", "{model} will be shut down on {gone}", "move to {instead}", warning=True),
    Rule("model-bare", "there is no model named {model}", "did you mean {instead}?"),
    Rule("model-unlike", "{model} is not known here, so nothing of it is checked", "did you mean {instead}?",
         warning=True),
    Rule("model-missing", "{text}: the model's name is blank", "name one, such as gpt-image-2"),
    Rule("responses-model", "{text}: an image model cannot host the tool", "name it with --tool-model instead"),
    Rule("by-model", "{text}: {model} {takes}", "{others}--no-validate sends it all the same"),
    Rule("transparent-format", "{text}: {format} has no transparency", "use png or webp"),
    Rule("compression-format", "{text}: {format} is not compressed this way", "use jpeg or webp"),
    Rule("format-suffix", "{text}: the suffix of {output} says {suffix}", "make them agree, or leave --format out"),
    Rule("format-refuses", "{text}: not possible with {format}", "leave it out or choose another format"),
    Rule("format-one", "{text}: {format} comes one at a time", "leave --n out"),
    Rule("format-owns", "{text}: goes with {format} only", "add --format {format}"),
    Rule("output-suffix", "{text}: {suffix} is no format of this API", "use .png, .jpg, .webp, .gif or .svg"),
    Rule("output-place", "{text}: {places} is not a place holder and stays as it is", "there are {index} and {partial}",
         warning=True),
    Rule("svg-model-missing", "{text}: needs --svg-model", "name the text model that writes the svg"),
    Rule("partial-images-stream", "{text}: previews need --stream", "add --stream"),
    Rule("stream-n", "{text}: a stream carries one picture (n=1)", "leave out --stream or --n"),
    Rule("fidelity-input", "{text}: there is no input picture", "add --input-image"),
    Rule("image-missing", "there is no picture to edit", "add --image PATH", fatal=True),
    Rule("image-unreadable", "{text}: {why}", "check the path", fatal=True),
    Rule("image-empty", "{text}: the file is empty", fatal=True),
    Rule("image-unknown", "{text}: not a picture this program knows ({why})", "use png, jpeg or webp"),
    Rule("image-type", "{text}: {format} is not taken here", "{hint}"),
    Rule("image-truncated", "{text}: the {format} is cut short", "export or download it again"),
    Rule("image-mislabelled", "{text}: the file is a {format}, whatever its name says", warning=True),
    Rule("image-size", "{text}: {size}; less than 50 MB is allowed", "make it smaller"),
    Rule("image-count", "{count} pictures are given", f"at most {MAX_IMAGES} are allowed"),
    Rule("image-url", "{text}: {why}", "use an http or https URL, a path, or file_id:ID", fatal=True),
    Rule("image-url-length", "{text}: {length} characters as a data URL",
         f"at most {MAX_IMAGE_URL} are allowed in JSON"),
    Rule("mask-without-image", "{text}: there is no picture to mask", "add the picture first"),
    Rule("mask-twice", "the mask is given more than once: {given_by}", "keep one of them", fatal=True),
    Rule("mask-png", "{text}: a mask must be a PNG, this is {format}", "save it as PNG with an alpha channel"),
    Rule("mask-alpha", "{text}: the mask has no alpha channel", "{hint}"),
    Rule("mask-opaque", "{text}: the mask is opaque everywhere", "make transparent what is to be edited"),
    Rule("mask-dimensions", "{text}: {size}, but the first picture is {first}", "make the mask {first}"),
    Rule("mask-large", "{text}: {size}; the reference says less than 4 MB", "make it smaller if it is refused",
         warning=True),
    Rule("mask-auto", "{text}: a mask made by the gateway needs the form", "leave out {others}", fatal=True),
    Rule("mask-box", "{text}: {why}", "X,Y,WIDTH,HEIGHT within the first picture", fatal=True),
    Rule("markup-mask", "{text}: not together with a mask", "keep one of them"),
    Rule("markup-form", "{text}: markup needs the form", "leave out {others}", fatal=True),
    Rule("action-edit", "{text}: there is nothing to edit", "add --input-image, or --previous-response-id"),
    Rule("identifier", "{text}: control characters are not allowed in a header or an id", "type it again", fatal=True),
    Rule("metadata", "{text}: {why}", "up to 16 names of 64 characters with texts of 512"),
    Rule("store-background", "{text}: a background response must be stored", "leave out --no-store"),
    Rule("store-previous", "{text}: the next turn cannot go on from a response that is not stored", warning=True),
    Rule("base-url", "{text}: {why}", "such as " + OPENAI_URL, fatal=True),
    Rule("base-url-http", "{text}: plain http would show the key to everyone on the way", "use https, or --allow-http",
         fatal=True),
    Rule("chat-carries", "{text}: cannot be carried by chat", "leave it out, or use --protocol openai_images"),
    Rule("chat-one", "{text}: chat makes one picture a call", "leave --n out"),
)  # fmt: skip
RULE = {row.name: row for row in RULES}


class Dialect(NamedTuple):
    """A row of EVENTS: the name of a JSON document in a reply, what it means, and the key its subject stands under.

    Documents of a stream are named by `type`; of a plain JSON reply, each element of a list in LISTS is a document
    named `data[]`, `output[]` or `choices[]`, and what is left is named `reply`.
    """

    pattern: str
    meaning: str
    key: str = ""


EVENTS = (
    Dialect(r".*\.partial_image", "partial"),
    Dialect(r"(image_generation|image_edit)\.completed", "final"),
    Dialect(r"response\.output_item\.done", "item", "item"),
    Dialect(r"response\.(output_text|refusal)\.(delta|done)", "text"),
    Dialect(r"response\.(created|queued|in_progress|completed|failed|incomplete|cancelled)", "response", "response"),
    Dialect(r"error", "error"),
    Dialect(r"data\[\]", "final"),
    Dialect(r"output\[\]", "item"),
    Dialect(r"choices\[\]", "chat"),
    Dialect(r"chat\.completion(\.chunk)?", "chunk"),
    Dialect(r"reply|response", "response"),
)
REPLY_ROW = EVENTS[-1]  # of a JSON reply that names itself in no way known here
PICTURE_ITEM = "image_generation_call"  # the output item of a response that holds a picture
LISTS = ("data", "output", "choices")
# The keys a picture stands under, best first: text in base64, a data: URL, or a URL to fetch.
PICTURE_KEYS = ("b64_json", "result", "partial_image_b64", "image_base64", "url")
ENDED = ("completed", "failed", "incomplete", "cancelled")
WORKING = ("queued", "in_progress")


class Status(NamedTuple):
    """A row of STATUSES: an HTTP status, whether a try that ended so is made again, and a hint."""

    codes: tuple[int, ...]
    retry: str  # "never", "safe" (it was turned away), or "billable" (it may have run)
    hint: str = ""


STATUSES = (
    Status((401,), "never", "the key is not accepted here: check OPENAI_API_KEY, and that --base-url is its endpoint"),
    Status((403,), "never", "the organisation may have to be verified for this model, or the key lacks the permission"),
    Status((404,), "never", "the model may be retired or unknown here, or the base URL may lack /v1"),
    Status((413,), "never", "the pictures are too large for this endpoint"),
    Status((422,), "never", "if it names `image`: some gateways want --image-field-style simple"),
    Status((408, 409, 429, 500, 503), "safe"),
    Status((502, 504, *range(520, 525)), "billable",
           "a proxy gave up while the picture was being made: try --stream --partial-images 1, or a response with "
           "--background-mode"),
)  # fmt: skip
MONEY = (
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
)  # fmt: skip
CODE_HINTS = {
    "moderation_blocked": "change the prompt or the input pictures; --moderation low filters less",
    "model_not_found": "the model may be retired or unknown here: try --model gpt-image-2",
    "previous_response_not_found": "responses are kept 30 days, and only if they were stored",
    "invalid_input_fidelity_model": "leave --input-fidelity out",
    "invalid_image_file": "save the picture again as PNG, JPEG or WebP",
    "no_db_connection": "the key is not the one this proxy knows",
    **{code: "this is about money, not about speed: look at the billing page" for code in MONEY},
}
# A proxy in between may hide the code, and a picture that was made behind a status that says it was not.
MONEY_WORDS = re.compile("|".join((*MONEY, "exceeded your current quota")))
RAN_BEHIND = re.compile(r"(HTTP \d+: )?litellm\.(APIError|APIConnectionError|InternalServerError|Timeout)")
REQUEST_IDS = ("x-request-id", "x-litellm-call-id")
LONGEST_WAIT = 120.0  # seconds; the official SDK waits no longer either
RETRY_FIRST, RETRY_MOST = 0.5, 8.0  # seconds

# US dollars per million tokens; alike for gpt-image-2, 2.5 and 2.6.
PRICES = {"text": 5.0, "cached_text": 1.25, "image": 8.0, "cached_image": 2.0, "output": 30.0}
PARTIAL_TOKENS = 100  # output tokens of each preview


# ---------------------------------------------------------------------------------------------------------------------
# 5 Pictures: what a file's bytes say of it
# ---------------------------------------------------------------------------------------------------------------------


BLOCK = 128 * 1024  # bytes read, sent or received at a time


class Picture(NamedTuple):
    """What the bytes of a picture say; a side is 0 where the format keeps it from us."""

    format: str
    width: int = 0
    height: int = 0
    alpha: bool = False
    animated: bool = False
    whole: bool = True
    turned: bool = False  # EXIF says to show it with width and height exchanged

    @property
    def shown(self) -> tuple[int, int]:
        """Returns width and height as seen, after orientation."""
        return (self.height, self.width) if self.turned else (self.width, self.height)


# https://www.w3.org/TR/png-3/
PICTURE_HEADS = rb"iVBORw0KGgo|(?:\\?/|\\u002[fF])9j(?:\\?/|\\u002[fF])|R0lGOD[dl]|UklGR(?:\\?.){6}XRUJQ|(?:77u/)?(?:PHN2Z|PD94bWwg|PCEtL|PCFET0NUWVBFIHN2Z)"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples a pixel, by colour type


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields type and length of each chunk of a PNG, the file standing at its data; ends early on a file cut short."""
    at, end = 8, file.seek(0, os.SEEK_END)
    while at + 12 <= end:
        file.seek(at)
        header = file.read(8)
        length = int.from_bytes(header[:4], "big")
        if at + 12 + length > end:
            return
        yield header[4:], length
        at = at + 12 + length if header[4:] != b"IEND" else end


def identify_png(file: IO[bytes], head: bytes) -> Picture:
    """Reads size, alpha (an alpha channel or tRNS), animation and completeness of a PNG."""
    kinds = {kind for kind, _ in png_chunks(file)}
    alpha = len(head) > 25 and head[25] in (4, 6) or b"tRNS" in kinds
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return Picture("png", width, height, alpha, b"acTL" in kinds, b"IEND" in kinds)


# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B
SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def jpeg_turned(segment: bytes) -> bool:
    """Tells whether an APP1 segment's EXIF orientation (tag 0x0112) exchanges width and height."""
    if segment[:6] != b"Exif\0\0":
        return False
    tiff = segment[6:]
    order: Any = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    for at in range(start + 2, start + 2 + 12 * int.from_bytes(tiff[start : start + 2], order), 12):
        if tiff[at : at + 2] in (b"\x12\x01", b"\x01\x12") and int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            return int.from_bytes(tiff[at + 8 : at + 10], order) in (5, 6, 7, 8)
    return False


def identify_jpeg(file: IO[bytes], head: bytes) -> Picture:
    """Walks the segments of a JPEG up to its scan; whole if an end marker stands in the last kilobytes behind it."""
    size, turned, at = (0, 0), False, 2
    while True:
        file.seek(at)
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF or marker[1] == 0xDA:
            break
        length = int.from_bytes(marker[2:], "big")
        if marker[1] in SOF:
            frame = file.read(5)
            size = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
        if marker[1] == 0xE1:
            turned = turned or jpeg_turned(file.read(max(length - 2, 0)))
        at += 2 + length if marker[1] != 0xFF else 1
    file.seek(max(file.seek(0, os.SEEK_END) - 4096, at))
    return Picture("jpeg", *size, whole=size != (0, 0) and b"\xff\xd9" in file.read(), turned=turned)


def identify_webp(file: IO[bytes], head: bytes) -> Picture:
    """Reads the first chunk of a WebP: lossy (VP8), lossless (VP8L) or extended (VP8X)."""
    # https://developers.google.com/speed/webp/docs/riff_container
    whole = file.seek(0, os.SEEK_END) >= 8 + int.from_bytes(head[4:8], "little")
    kind, body = head[12:16], head[20:]
    if kind == b"VP8X":
        width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        return Picture("webp", width, height, bool(body[0] & 0x10), bool(body[0] & 0x02), whole)
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return Picture("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1), whole=whole)
    width, height = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return Picture("webp", width, height, whole=whole)


def skip_blocks(file: IO[bytes]) -> bool:
    """Skips the data sub-blocks of a GIF; False if the file ends within them."""
    while True:
        size = file.read(1)
        if not size or size == b"\0":
            return bool(size)
        file.seek(size[0], os.SEEK_CUR)


def identify_gif(file: IO[bytes], head: bytes) -> Picture:
    """Walks the blocks of a GIF: more than one image descriptor is an animation, and a trailer ends a whole file."""
    # https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    frames, whole = 0, False
    file.seek(13 + (3 << (head[10] & 7) + 1 if len(head) > 10 and head[10] & 0x80 else 0))
    while True:
        kind = file.read(1)
        if kind == b"!":
            file.read(1)
        elif kind == b",":
            frames += 1
            flags = file.read(9)[8:]
            file.seek((3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0) + 1, os.SEEK_CUR)
        else:
            whole = kind == b";"
            break
        if not skip_blocks(file):
            break
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    return Picture("gif", width, height, animated=frames > 1, whole=whole)


def identify_svg(file: IO[bytes], head: bytes) -> Picture | None:
    """Reads width and height, or the view box, of an SVG's root element; other XML is no picture."""
    file.seek(0)
    tag = re.search(rb"<svg\b[^>]{0,9999}>?", file.read(65536))
    if not tag:
        return None
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 64, 0))
    whole = b"</svg>" in file.read()
    root = tag.group()
    number = rb"([0-9]{1,9}(?:\.[0-9]+)?)"
    sides = [re.search(rb'\s%s\s*=\s*["\']%s(px)?["\']' % (side, number), root) for side in (b"width", b"height")]
    box = re.search(rb'viewBox\s*=\s*["\'][-0-9.]+[\s,]+[-0-9.]+[\s,]+%s[\s,]+%s' % (number, number), root)
    found = [side.group(1) for side in sides if side]
    if len(found) < 2 and box:
        found = list(box.groups())
    width, height = (round(float(side)) for side in found) if len(found) == 2 else (0, 0)
    return Picture("svg", width, height, alpha=True, whole=whole)


Identify = Callable[[IO[bytes], bytes], "Picture | None"]


def named_only(name: str) -> Identify:
    """Returns a look at a format of which only the name matters here."""
    return lambda file, head: Picture(name)


SIGNATURES: tuple[tuple[bytes, Identify], ...] = (
    (rb"\x89PNG\r\n\x1a\n", identify_png),
    (rb"\xff\xd8\xff", identify_jpeg),
    (rb"RIFF....WEBP", identify_webp),
    (rb"GIF8[79]a", identify_gif),
    (rb"(\xef\xbb\xbf)?\s{0,99}<(svg|\?xml|!--|!DOCTYPE svg)", identify_svg),
    (rb"....ftyp(avif|avis)", named_only("avif")),
    (rb"....ftyp(hei[cfmsx]|hev[cx]|mif1|msf1)", named_only("heic")),
    (rb"BM....\0\0\0\0", named_only("bmp")),
    (rb"II\*\0|MM\0\*", named_only("tiff")),
    (rb"\x00\x00\x01\x00", named_only("ico")),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", named_only("jxl")),
)


def identify_file(file: IO[bytes]) -> Picture | None:
    """Returns what the bytes of an open file say, or None if it is no picture."""
    head = file.read(4096)
    for signature, reader in SIGNATURES:
        if re.match(signature, head, re.DOTALL):
            try:
                return reader(file, head)
            except (IndexError, ValueError, OverflowError):
                return Picture(reader.__name__.replace("identify_", ""), whole=False)
    return None


def identify(path: str) -> Picture | None:
    """Returns what the bytes of a file say, or None if it is no picture; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return identify_file(file)


# Whether a PNG is opaque can be told without undoing its filters. They work on each channel by itself, so as long as
# every row so far was opaque, the alpha bytes of an opaque row are one known pattern for each filter type, at any
# depth: the first byte, then the same byte over and over. The first row that deviates proves a pixel not opaque.
OPAQUE_FIRST_ROW = ((255, 255), (255, 0), (255, 255), (255, 128), (255, 0))
OPAQUE_NEXT_ROWS = ((255, 255), (255, 0), (0, 0), (128, 0), (0, 0))
# https://www.w3.org/TR/png-3/#8InterlaceMethods: x and y of the first pixel, and the steps, of each Adam7 pass
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_rows(file: IO[bytes], head: bytes) -> Iterator[tuple[bool, int, bytes]]:
    """Yields (first of its pass, pixels, filter byte and data) of each row of a PNG; ends early if its data does."""
    width, height, depth = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"), head[24]
    bits = depth * PNG_CHANNELS[head[25]]
    inflate, left, data = zlib.decompressobj(), b"", bytearray()
    chunks = (
        file.read(min(BLOCK, length - at))
        for kind, length in png_chunks(file) if kind == b"IDAT" for at in range(0, length, BLOCK)
    )  # fmt: skip
    for x, y, step_x, step_y in ADAM7 if head[28] else ((0, 0, 1, 1),):
        pixels, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        size = 1 + (pixels * bits + 7) // 8
        for row in range(rows if pixels > 0 else 0):
            while len(data) < size:
                left = left or next(chunks, b"")
                data += inflate.decompress(left, MIB)
                if not left and not inflate.unconsumed_tail:
                    return
                left = inflate.unconsumed_tail
            yield row == 0, pixels, bytes(data[:size])
            del data[:size]


def unfilter(row: bytes, above: bytes, step: int = 1) -> bytes:
    """Undoes the filter of a row of 8-bit samples, `step` bytes a pixel (the first byte is the filter type)."""
    kind, out = row[0], bytearray()
    for i, (value, up) in enumerate(zip(row[1:], above)):
        left, corner = (out[i - step], above[i - step]) if i >= step else (0, 0)
        if kind == 1:
            value += left
        elif kind == 2:
            value += up
        elif kind == 3:
            value += (left + up) // 2
        elif kind == 4:
            guess = left + up - corner
            value += min((left, up, corner), key=lambda near: abs(guess - near))
        out.append(value & 255)
    return bytes(out)


def palette_opaque(file: IO[bytes], head: bytes, alphas: bytes) -> bool:
    """Tells whether a palette PNG uses only colours that are opaque by its tRNS chunk."""
    opaque, depth = frozenset(range(256)) - {i for i, alpha in enumerate(alphas) if alpha < 255}, head[24]
    above = b""
    for first, pixels, row in png_rows(file, head):
        above = unfilter(row, bytes(len(row)) if first else above) if row[0] else row[1:]
        indices = set(above)
        if depth < 8:
            mask = (1 << depth) - 1
            packed = "".join(f"{byte:08b}" for byte in above)
            indices = {int(packed[i : i + depth], 2) & mask for i in range(0, pixels * depth, depth)}
        if not indices <= opaque:
            return False
    return True


def alpha_opaque(file: IO[bytes], head: bytes) -> bool:
    """Tells whether every pixel of a PNG with an alpha channel is opaque."""
    deep = head[24] // 8  # bytes a sample
    step = deep * PNG_CHANNELS[head[25]]
    for first, pixels, row in png_rows(file, head):
        start, rest = (OPAQUE_FIRST_ROW if first else OPAQUE_NEXT_ROWS)[row[0]]
        expected = bytes([start]) + bytes([rest]) * (pixels - 1)
        if any(row[1 + step - plane :: step] != expected for plane in range(1, deep + 1)):
            return False
    return True


def png_opaque(path: str) -> bool:
    """Tells whether every pixel of a PNG that has alpha is opaque, in constant memory; a damaged one is not."""
    with open(path, "rb") as file:
        head = file.read(33)
        try:
            if head[25] in (4, 6):
                return alpha_opaque(file, head)
            alphas = next((file.read(length) for kind, length in png_chunks(file) if kind == b"tRNS"), b"")
            return head[25] == 3 and palette_opaque(file, head, alphas)
        except (zlib.error, IndexError, KeyError):
            return False


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a PNG chunk with its length and checksum."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def mask_png(width: int, height: int, boxes: list[tuple[int, int, int, int]]) -> bytes:
    """Returns a grey PNG of the given size, opaque except within the boxes (x, y, width, height)."""
    deflate, data = zlib.compressobj(6), bytearray()
    edges = sorted({0, height, *(y for _, y, _, _ in boxes), *(y + h for _, y, _, h in boxes)})
    for top, bottom in zip(edges, edges[1:]):
        row = bytearray(b"\xff\xff" * width)
        for x, y, w, h in boxes:
            if y <= top < y + h:
                row[2 * x : 2 * (x + w)] = b"\xff\x00" * w
        for _ in range(bottom - top):
            data += deflate.compress(b"\0" + bytes(row))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 4, 0, 0, 0])
    body = bytes(data) + deflate.flush()
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------------------
# 6 Settings: argv > environment > .env > default; each value knows its source
# ---------------------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A value with the text it was read from, where that stood, and the words an error begins with."""

    value: Any
    text: str
    source: str
    label: str


class Problem(NamedTuple):
    """A broken rule: its stable name, what is wrong, and what to do."""

    rule: str
    message: str
    hint: str
    warning: bool
    fatal: bool


def problem(rule: str, name: str = "", **places: Any) -> Problem:
    """Returns a problem worded by its row of RULES; `name` stands before the rule's name where one rule serves many."""
    row = RULE[rule]
    text, hint = (words.format_map({"hint": "", **places}) for words in (row.text, row.hint))
    return Problem(f"{name}-{rule}" if name else rule, text, hint, row.warning, row.fatal)


class Settings:
    """The settings in force for one command, by option name."""

    def __init__(self, command: str, rows: Mapping[str, Setting]) -> None:
        self.command, self.rows = command, dict(rows)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a setting, or the default if it is not set."""
        return self.rows[name].value if name in self.rows else default

    def label(self, name: str) -> str:
        """Returns the words with which an error about a setting begins: where it came from and what it says."""
        return self.rows[name].label if name in self.rows else f"--{name}"

    def changed(self, name: str, value: Any, source: str) -> Settings:
        """Returns the settings with one of them set."""
        row = Setting(value, str(value), source, f"--{name} {value} ({source})")
        return Settings(self.command, {**self.rows, name: row})


class Dotenv(NamedTuple):
    """A .env file that was read: its values with their line numbers, and whether it lay in the current folder."""

    path: str = ""
    values: Mapping[str, tuple[str, int]] = {}
    found_here: bool = False


# https://www.dotenv.org/docs/security/env: names, an optional `export`, bare or quoted values, comments
DOTENV_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.]*)\s*=\s*
        (?:'(?P<single>[^']*)' | "(?P<double>(?:\\.|[^"\\])*)" | (?P<bare>[^'"\#\s]\S*(?:[ \t]+[^\#\s]\S*)*))?
        \s*(?:(?<=\s)\#.*|(?<==)\#.*)?""",
    re.VERBOSE,
)
DOTENV_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def env_names() -> list[str]:
    """Returns every environment variable the options are read from."""
    return [name for row in OPTIONS for name in row.env]


def nearest_word(word: str, words: Iterable[str]) -> str:
    """Returns the word most like a mistyped one, or nothing."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(words), 1, 0.7)), "")


def decode_dotenv(data: bytes) -> str:
    """Decodes a .env file: UTF-8 with or without a byte order mark, or the UTF-16 that PowerShell writes."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def read_dotenv(path: str, console: Console) -> dict[str, tuple[str, int]]:
    """Reads a .env file; a line that is not understood is a warning with its number, and never shown."""
    values: dict[str, tuple[str, int]] = {}
    with open(path, "rb") as file:
        text = decode_dotenv(file.read(MIB))
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = DOTENV_LINE.fullmatch(line)
        if not match:
            console.warn(f"{path} line {number}: not understood, and left out; expected NAME=value")
            continue
        name, single, double, bare = match.group("name", "single", "double", "bare")
        if double is not None:
            double = re.sub(r"\\(.)", lambda m: DOTENV_ESCAPES.get(m.group(1), m.group(1)), double)
        values[name] = (single or double or bare or ""), number
        if name.startswith("OPENAI_IMAGE_") and name not in env_names():
            near = nearest_word(name, env_names())
            console.warn(f"{path} line {number}: {name} is not known" + (f"; did you mean {near}?" if near else ""))
    return values


def dotenv_places(environ: Mapping[str, str]) -> list[str]:
    """Returns where a .env is looked for, best first; the parents of the current folder are not searched."""
    home = environ.get("HOME") or environ.get("USERPROFILE") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    script = os.path.dirname(os.path.abspath(__file__))
    return [".env", os.path.join(script, ".env"), os.path.join(config, "gpt-image", ".env")]


def key_names(typed: Mapping[str, Any]) -> list[str]:
    """Returns the variables the key is looked for in, best first."""
    given = typed.get("api-key-env")
    return [given] if given else [name for row in OPTIONS if row.secret for name in row.env]


def find_dotenv(typed: Mapping[str, Any], environ: Mapping[str, str], console: Console) -> Dotenv:
    """Finds and reads the .env in force."""
    if typed.get("no-env-file"):
        return Dotenv()
    given = typed.get("env-file")
    path = given or next((place for place in dotenv_places(environ) if os.path.isfile(place)), None)
    if path is None:
        return Dotenv()
    try:
        values = read_dotenv(path, console)
        mode = os.stat(path).st_mode
    except OSError as error:
        if not given:
            console.warn(f"{path}: cannot be read ({error.strerror}), and left out")
            return Dotenv()
        raise Failure(USAGE, f"--env-file {path}: {error.strerror}", "check the path", rule="env-file") from error
    if os.name == "posix" and mode & 0o077 and any(values.get(name, ("", 0))[0] for name in key_names(typed)):
        console.warn(f"{path} holds a key that others can read: run chmod 600 {path}")
    return Dotenv(path, values, found_here=not given and path == ".env")


def from_environment(names: Iterable[str], environ: Mapping[str, str], dotenv: Dotenv) -> Setting | None:
    """Returns the first variable that is set, from the environment before the .env; an empty one counts as unset."""
    for name in names:
        if environ.get(name):
            return Setting(None, environ[name], f"environment {name}", f"environment: {name}: {environ[name]}")
        text, line = dotenv.values.get(name, ("", 0))
        if text:
            return Setting(None, text, f"{dotenv.path} line {line}", f"{dotenv.path} line {line}: {name}: {text}")
    return None


def typed_label(row: Option, text: str) -> str:
    """Returns the words for a value of the command line: long ones are shortened, private ones not shown."""
    if row.kind.flag:
        return f"--{row.name}"
    if row.kind.private:
        name = re.match(r"[A-Za-z0-9-]+(?=:)", text)
        return f"--{row.name} '{name.group()}: …'" if name else f"--{row.name} …"
    return f"--{row.name} {text if len(text) <= 200 else text[:200] + '…'}"


def look_up(row: Option, typed: Mapping[str, Any], environ: Mapping[str, str], dotenv: Dotenv) -> list[Setting]:
    """Returns where the texts of an option stand: one, or several for a repeatable option, or none."""
    if typed.get(row.name) is not None:
        given = typed[row.name]
        texts = given if isinstance(given, list) else [given]
        return [Setting(None, text, "command line", typed_label(row, text)) for text in texts]
    found = from_environment(key_names(typed) if row.secret else row.env, environ, dotenv)
    if not found and row.default is not None:
        found = Setting(None, row.default, "default", f"--{row.name} {row.default} (default)")
    return [found] if found else []


def resolve(
    command: str, typed: Mapping[str, Any], environ: Mapping[str, str], dotenv: Dotenv
) -> tuple[Settings, list[Problem]]:
    """Returns the settings in force, and a problem for each text that is not of its option's kind."""
    rows: dict[str, Setting] = {}
    problems: list[Problem] = []
    for row in options_of(command).values():
        for found in look_up(row, typed, environ, dotenv):
            try:
                if row.kind is OBJECT and found.text.startswith("@") and found.source != "command line":
                    raise ValueError("@FILE is read from the command line only: a cloned folder could name any file")
                value: Any = Secret(found.text.strip()) if row.secret else row.kind.parse(found.text)
            except ValueError as error:
                problems.append(problem("unreadable-value", row.name, text=found.label, why=error))
                continue
            before = rows.get(row.name)
            if row.kind.repeat:
                value = [*(before.value if before else []), value]
            text = f"{before.text} {found.text}" if before else found.text
            label = f"--{row.name} ***" if row.secret else f"--{row.name}" if before else found.label
            rows[row.name] = found._replace(value=value, text=text, label=label)
    return Settings(command, rows), problems


SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|passw|credential|signature|session", re.IGNORECASE)


def header_value(name: str, value: str) -> str | Secret:
    """Returns a header's value, as a secret if its name or its form says that it is one."""
    secret = SECRET_HEADER.search(name) or re.match(r"(Bearer|Basic)\s|sk-", value)
    return Secret(value) if secret else value


def hide_secrets(
    settings: Settings, typed: Mapping[str, Any], environ: Mapping[str, str], dotenv: Dotenv, console: Console
) -> None:
    """Registers with the console all that must not be shown: keys, secret headers, and passwords within proxy URLs."""
    found = [environ.get(name) or "" for name in key_names({}) + key_names(typed)]
    found += [dotenv.values.get(name, ("", 0))[0] for name in key_names({}) + key_names(typed)]
    found += re.findall(r"//[^/@]*:([^/@]+)@", settings.get("base-url") or "")
    for name, value in environ.items():
        if name.lower().endswith("_proxy") and "@" in value:
            login = value.rpartition("@")[0].rpartition("//")[2]
            found += [login, login.partition(":")[2]]
    secrets = [Secret(text.strip()) for text in found if text.strip()]
    for name, value in settings.get("header", []):
        hidden = header_value(name, value)
        secrets += [hidden, Secret(value.split()[-1])] if isinstance(hidden, Secret) and value.split() else []
    console.hide(*secrets, *filter(None, [settings.get("api-key")]))


def brings_key(settings: Settings) -> bool:
    """Tells whether a header of the user's own authorises the call: then our key has no business there."""
    return any(name.lower() in ("authorization", "api-key") for name, _ in settings.get("header", []))


def refuse_stolen_key(settings: Settings, dotenv: Dotenv) -> None:
    """Stops when a .env of the current folder would choose where a key from elsewhere goes.

    A cloned folder can hold a .env with OPENAI_BASE_URL: with the user's own key, that would give it to a stranger.
    """
    base = settings.rows.get("base-url")
    if not base or not dotenv.found_here or not base.source.startswith(f"{dotenv.path} line"):
        return
    key = settings.rows.get("api-key")
    elsewhere = key is not None and key.source.rpartition(" line ")[0] != dotenv.path
    secret_header = any(isinstance(header_value(name, value), Secret) for name, value in settings.get("header", []))
    if elsewhere or secret_header:
        raise Failure(
            SETTINGS,
            f"{base.label}: a base URL from the current folder's .env is used only with a key from the same file",
            f"if you trust it, add --base-url {base.value} to the command, or --env-file .env with the key in it; "
            "else --no-env-file",
            rule="base-url-of-folder",
        )


def check_key(settings: Settings) -> None:
    """Stops before a call without a key, or with one that cannot stand in a header."""
    if not settings.get("api-key") and not brings_key(settings):
        name = settings.get("api-key-env") or "OPENAI_API_KEY"
        raise Failure(
            SETTINGS, "there is no API key",
            f"set {name} in the environment, or run `gpt_image.py config --init` and put it into .env; "
            "--dry-run needs none", rule="key-missing",
        )  # fmt: skip
    key = settings.get("api-key")
    if key and not key.fits_header():
        raise Failure(
            SETTINGS, f"the API key from {settings.rows['api-key'].source} holds characters that no key has",
            "copy it again, on one line", rule="key-form",
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 7 Validation: all broken rules at once, before any byte is sent
# ---------------------------------------------------------------------------------------------------------------------


class InputPicture(NamedTuple):
    """A picture that goes in: its role, the words for errors, and its kind: file, url, file_id, data or auto."""

    role: str
    label: str
    kind: str
    text: str
    shown: str
    size: int = 0
    picture: Picture | None = None
    trouble: str = ""  # why a file cannot be read


def split_url(url: str) -> Any:
    """Splits a URL; one that cannot be split has no scheme and no host."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname  # both are read only now, and may raise
    except ValueError:
        return urlsplit("")
    return parts


def host_of(url: str) -> str:
    """Returns the host name of a URL."""
    return (split_url(url).hostname or "").rstrip(".")


FROM_SUFFIX = "suffix of --output"


class Checked(NamedTuple):
    """All that the checks look at."""

    settings: Settings
    route: Route
    texts: list[str]  # the pieces of the prompt
    given_by: list[str]  # the options that gave a prompt
    sources: list[InputPicture]
    overridden: frozenset[str]  # options whose field --extra-json replaces: they are not checked

    def has(self, name: str) -> bool:
        """Tells whether an option is set and to be checked."""
        return name in self.settings.rows and name not in self.overridden

    def get(self, name: str) -> Any:
        """Returns the value of an option, or None if it is unset or not to be checked."""
        return self.settings.get(name) if self.has(name) else None

    def role(self, role: str) -> list[InputPicture]:
        """Returns the input pictures of one role."""
        return [source for source in self.sources if source.role == role]

    def label(self, name: str) -> str:
        """Returns the words with which an error about an option begins."""
        return self.settings.label(name)

    @property
    def model(self) -> str:
        """Returns the id of the image model; a tool that names none gets the server's."""
        named = self.settings.get("model" if self.route.name in IMAGES else "tool-model")
        return str(named or TOOL_MODEL)

    @property
    def row(self) -> Model:
        """Returns the image model's row; it forbids nothing where --extra-json chooses the model."""
        overridden = ("model" if self.route.name in IMAGES else "tool-model") in self.overridden
        return MODELS[-1] if overridden else model_row(self.model)

    @property
    def at_openai(self) -> bool:
        """Tells whether the call goes to OpenAI itself."""
        return bool(OPENAI_HOSTS.fullmatch(host_of(self.settings.get("base-url", OPENAI_URL))))

    @property
    def chat(self) -> bool:
        """Tells whether the call is spoken as chat."""
        return bool(self.settings.get("protocol") == "openai_chat")


def origin_of(url: str) -> str:
    """Returns scheme, host and port of a URL: what a key may be sent to."""
    parts = split_url(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}"


PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test")


def is_private(host: str) -> bool:
    """Tells whether a host is loopback, of a private network, or named by a single label."""
    import ipaddress

    try:
        address: Any = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # To some resolvers 134744072 and 0x08080808 are addresses too.
        numeric = re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*", host, re.IGNORECASE)
        plain = re.fullmatch(r"[\w.-]+", host, re.ASCII)  # some resolvers take %2e and full-width dots for dots
        return bool(plain and not numeric and ("." not in host or host.lower().endswith(PRIVATE_ENDINGS)))
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if getattr(address, "teredo", None):  # it leads to another host
        return False
    return bool(address.is_private or address.is_loopback or address.is_link_local)


def check_connection(checked: Checked) -> Iterator[Problem]:
    """Checks base URL, and that no header or id can carry a line break."""
    url, text = checked.settings.get("base-url", OPENAI_URL), checked.label("base-url")
    parts = split_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        yield problem("base-url", text=text, why="expected an http or https URL")
    elif parts.path.rstrip("/").endswith((*(row.path for row in ROUTES), CHAT_PATH)):
        yield problem("base-url", text=text, why="give it up to and with /v1, without the route")
    elif parts.username is not None or parts.fragment:
        shown = text.replace(parts.netloc, (parts.netloc.rpartition("@")[2]))
        yield problem("base-url", text=shown, why="no login and no fragment may stand in it")
    elif parts.scheme == "http" and not is_private(host_of(url)) and not checked.get("allow-http"):
        yield problem("base-url-http", text=text)
    for name, row in options_of(checked.route.name).items():
        if row.kind.parse is str and row.kind.metavar == "NAME" and checked.has(name):
            values = checked.get(name) if row.kind.repeat else [checked.get(name)]
            allowed = r"[\x20-\x7e]*" if row.sends == "header" else r"[^\x00-\x1f\x7f]*"
            if not all(re.fullmatch(allowed, value) for value in values):
                yield problem("identifier", text=f"--{name}")


def check_prompt(checked: Checked) -> Iterator[Problem]:
    """Checks that there is one prompt, of a length the API takes."""
    text = "\n".join(checked.texts)
    if len(checked.given_by) > 1:
        yield problem("prompt-twice", given_by=", ".join(checked.given_by))
    elif "prompt" in checked.overridden:
        return
    elif not checked.given_by:
        yield problem("prompt-missing")
    elif not text.strip():
        yield problem("prompt-blank")
    elif len(text) > MAX_PROMPT:
        yield problem("prompt-length", length=len(text))
    if re.search(r"[\ud800-\udfff]", text):
        yield problem("prompt-encoding", text=checked.given_by[0])


def check_model(checked: Checked) -> Iterator[Problem]:
    """Checks that the model exists today."""
    for name in ("model", "tool-model"):
        if checked.has(name) and not checked.get(name).strip():
            yield problem("model-missing", text=checked.label(name))
    hosts_tool = checked.get("model") if checked.route.name == "responses" else None
    if hosts_tool and re.match(r"gpt-image-|chatgpt-image-|dall-e-", hosts_tool):
        yield problem("responses-model", text=checked.label("model"))
    row, facts = checked.row, {"model": checked.model, "gone": checked.row.gone, "instead": checked.row.instead}
    if row.retired:
        yield problem("model-retired" if checked.at_openai else "model-retired-elsewhere", **facts)
    elif row.gone:
        yield problem("model-leaving", **facts)
    elif checked.model in BARE_MODELS and checked.at_openai:
        yield problem("model-bare", model=checked.model, instead=BARE_MODELS[checked.model])
    elif row.takes is None and checked.at_openai and nearest_word(checked.model.lower(), MODEL_IDS):
        yield problem("model-unlike", model=checked.model, instead=nearest_word(checked.model.lower(), MODEL_IDS))


def who_takes(name: str, value: Any) -> str:
    """Returns words for the models that take a value of an option."""
    takers = []
    for model in MODEL_IDS:
        values = (model_row(model).takes or {}).get(name)
        if values is None or value in values:
            takers.append(model)
    return f"{' and '.join(takers[:2])} take{'s' if len(takers) == 1 else ''} it; " if takers else ""


def check_values(checked: Checked) -> Iterator[Problem]:
    """Checks each value against its option's range or list, and against what the model takes."""
    known, takes = checked.row.takes is not None, checked.row.takes or {}
    for name, row in options_of(checked.route.name).items():
        if not checked.has(name):
            continue
        value, label, kind = checked.get(name), checked.label(name), row.kind
        if kind.low is not None and not kind.low <= value <= (kind.high or value):
            yield problem("value", name, text=label, why=kind.expected)
        elif name in takes and value not in takes[name] and (value in kind.choices or not takes[name]):
            words = "takes " + one_of(takes[name]) if takes[name] else "does not take it"
            yield problem("by-model", name, text=label, model=checked.model, takes=words, others=who_takes(name, value))
        elif kind.choices and value not in (*kind.choices, *takes.get(name, ())):
            if known or kind.strict or row.sends != "image":
                taken = takes.get(name) or kind.choices
                near = nearest_word(str(value), taken)
                hint = f"did you mean {near}?" if near else ""
                found = problem("value", name, text=label, why=f"expected {one_of(taken)}", hint=hint)
                yield found._replace(fatal=kind.strict)


def size_fits(sizes: Sizes, width: int, height: int) -> str:
    """Returns the name of the first size rule that is broken, or nothing."""
    if sizes.fixed:
        return "" if f"{width}x{height}" in sizes.fixed else "size-fixed"
    if width % sizes.multiple or height % sizes.multiple:
        return "size-multiple"
    if max(width, height) > sizes.edge:
        return "size-edge"
    if max(width, height) > sizes.ratio * min(width, height):
        return "size-ratio"
    return "" if sizes.least <= width * height <= sizes.most else "size-pixels"


def nearest_size(sizes: Sizes, width: int, height: int) -> str:
    """Returns the valid size most like the one asked for, in proportion."""
    steps = range(sizes.multiple, sizes.edge + 1, sizes.multiple)
    sides = [tuple(map(int, size.split("x"))) for size in sizes.fixed] or [(w, h) for w in steps for h in steps]
    valid = [side for side in sides if not size_fits(sizes, *side)]
    far = lambda side: math.log(side[0] / max(width, 1)) ** 2 + math.log(side[1] / max(height, 1)) ** 2  # noqa: E731
    return "x".join(map(str, min(valid, key=far)))


def check_size(checked: Checked) -> Iterator[Problem]:
    """Checks the form of a size, and its edges, ratio and pixels by the model's limits."""
    size, sizes, text = checked.get("size"), checked.row.sizes, checked.label("size")
    if size in (None, "auto") or sizes is None:
        return
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not width or not height:
        yield problem("size-form", text=text)
        return
    broken = size_fits(sizes, width, height)
    if broken:
        facts = {**sizes._asdict(), "pixels": width * height, "sizes": ", ".join(sizes.fixed), "model": checked.model}
        yield problem(broken, text=text, nearest=nearest_size(sizes, width, height), **facts)
    elif not sizes.fixed and width * height > sizes.experimental:
        yield problem("size-experimental", text=text)


def check_format(checked: Checked) -> Iterator[Problem]:
    """Checks what the format in force excludes."""
    name = checked.get("format") or (
        "" if checked.row.takes is None or "format" in checked.overridden else DEFAULT_FORMAT
    )
    row, images = FORMAT.get(name), checked.route.name in IMAGES
    if not row:
        return
    if checked.get("background") == "transparent" and not row.transparent:
        yield problem("transparent-format", text=checked.label("background"), format=name)
    if checked.has("compression") and not row.compresses:
        yield problem("compression-format", text=checked.label("compression"), format=name)
    for refused in row.refuses:
        streams = refused == "stream" and not images  # a response streams its own events whatever it makes
        given = [source.label for source in checked.role(refused)]
        given += [checked.label(option) for option in (refused, f"{refused}-box") if checked.get(option)]
        if given and not streams:
            yield problem("format-refuses", text=given[0], format=name)
    if row.one and (checked.get("n") or 1) > 1:
        yield problem("format-one", text=checked.label("n"), format=name)
    for other in FORMATS:
        for owned in other.owns:
            if checked.has(owned) and other.name != name:
                yield problem("format-owns", text=checked.label(owned), format=other.name)
    if checked.has("svg-effort") and not checked.has("svg-model") and images:
        yield problem("svg-model-missing", text=checked.label("svg-effort"))


def output_suffix(output: str) -> str:
    """Returns the suffix of an output pattern in lower case, or nothing if it names a folder or has none."""
    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        return ""
    suffix = os.path.splitext(output)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9]{1,4}", suffix) else ""


def check_output(checked: Checked) -> Iterator[Problem]:
    """Checks that format and suffix agree, and that the place holders of the pattern are known."""
    output, text = checked.settings.get("output", ""), checked.label("output")
    suffix, format = output_suffix(output), checked.settings.get("format")
    if suffix and suffix not in FORMAT_OF_SUFFIX:
        if suffix != f".{format}":
            yield problem("output-suffix", text=text, suffix=suffix)
    elif suffix and format and format in FORMAT and FORMAT_OF_SUFFIX[suffix] != format:
        yield problem("format-suffix", text=checked.label("format"), output=output, suffix=FORMAT_OF_SUFFIX[suffix])
    odd = [place for place in re.findall(r"\{\w*\}", output) if place not in ("{index}", "{partial}")]
    if odd:
        yield problem("output-place", text=text, places=", ".join(odd), index="{index}", partial="{partial}")


def check_stream(checked: Checked) -> Iterator[Problem]:
    """Checks that previews come with a stream, and a stream of the Images routes with one picture."""
    if checked.has("partial-images") and not checked.get("stream") and "stream" not in checked.overridden:
        yield problem("partial-images-stream", text=checked.label("partial-images"))
    if checked.get("stream") and checked.route.name in IMAGES and (checked.get("n") or 1) > 1:
        yield problem("stream-n", text=checked.label("n"))


def is_taken(picture: Picture, route: str) -> bool:
    """Tells whether a route takes a picture as it is: the Images routes take no gif, and none an animated one."""
    if picture.format == "gif":
        return route == "responses" and not picture.animated
    return picture.format in INPUT_TYPES


# Programs that turn other formats into PNG, best first: {source} and {target} are paths.
CONVERTERS = (
    ("sips", "-s", "format", "png", "{source}", "--out", "{target}"),
    ("magick", "{source}[0]", "{target}"),
    ("convert", "{source}[0]", "{target}"),
    ("ffmpeg", "-v", "error", "-y", "-i", "{source}", "-frames:v", "1", "{target}"),
)


# Not from the current folder: a cloned one could hold a PIL of its own, and read the key from the environment.
PILLOW = (
    "import sys; sys.path[:] = filter(None, sys.path); from PIL import Image; "
    "Image.open(sys.argv[1]).save(sys.argv[2], 'PNG')"
)


NO_CONVERTER = "save it as png, jpeg or webp, or install one of {} or Pillow, which this program then uses".format(
    ", ".join(row[0] for row in CONVERTERS)
)


def check_source(checked: Checked, source: InputPicture) -> Iterator[Problem]:
    """Checks one input picture: readable, a picture, of a type this route takes, whole, and not too large."""
    text, picture, suffix = source.label, source.picture, os.path.splitext(source.shown)[1].lower()
    if source.trouble:
        rule = "image-unreadable" if source.kind in ("file", "data") else "image-url"
        yield problem(rule, text=text, why=source.trouble)
    elif source.kind not in ("file", "data"):
        return
    elif not source.size:
        yield problem("image-empty", text=text)
    elif picture is None:
        yield problem("image-unknown", text=text, why="by its first bytes")
    elif not is_taken(picture, checked.route.name):
        yield problem("image-type", text=text, format=("animated " if picture.animated else "") + picture.format,
                      hint=NO_CONVERTER)  # fmt: skip
    elif not picture.whole:
        yield problem("image-truncated", text=text, format=picture.format)
    elif source.kind == "file" and FORMAT_OF_SUFFIX.get(suffix, picture.format) != picture.format:
        yield problem("image-mislabelled", text=text, format=picture.format)
    if source.size >= MAX_INPUT:
        yield problem("image-size", text=text, size=amount(source.size))


def check_images(checked: Checked) -> Iterator[Problem]:
    """Checks number and state of the input pictures."""
    images = checked.role("image")
    for source in checked.sources:
        yield from check_source(checked, source)
    if checked.route.name == "edits" and not images and "image" not in checked.overridden:
        yield problem("image-missing")
    if len(images) > MAX_IMAGES:
        yield problem("image-count", count=len(images))
    nothing = not images and not checked.has("previous-response-id") and not checked.overridden & {"input", "image"}
    if checked.has("input-fidelity") and nothing:
        yield problem("fidelity-input", text=checked.label("input-fidelity"))
    if checked.get("action") == "edit" and nothing:
        yield problem("action-edit", text=checked.label("action"))


def looks_black_and_white(path: str) -> bool:
    """Tells whether a PNG without alpha is grey, has few colours or begins in black and white, as foreign masks do."""
    with open(path, "rb") as file:
        head, above = file.read(33), b""
        if head[24:29] != b"\x08\x02\0\0\0":  # 8-bit RGB is looked into
            return len(head) > 25 and head[25] in (0, 3)
        for first, pixels, row in itertools.islice(png_rows(file, head), 64):
            above = unfilter(row, bytes(3 * pixels) if first else above, 3)
            if not set(above) <= {0, 255}:
                return False
    return True


def check_mask_file(source: InputPicture, first: InputPicture | None) -> Iterator[Problem]:
    """Checks a mask's format, alpha, dimensions and size."""
    picture = source.picture
    if picture is None or not picture.whole:
        return
    if picture.format != "png":
        yield problem("mask-png", text=source.label, format=picture.format)
        return
    if source.kind == "file" and not picture.alpha:
        hint = "make transparent what is to be edited"
        if looks_black_and_white(source.text):
            hint = "it looks black and white: one of the two must become transparent, since only alpha counts"
        yield problem("mask-alpha", text=source.label, hint=hint)
    elif source.kind == "file" and png_opaque(source.text):
        yield problem("mask-opaque", text=source.label)
    of = first.picture if first else None
    if of and of.width and (picture.width, picture.height) not in ((of.width, of.height), of.shown):
        size, wanted = f"{picture.width}x{picture.height}", f"{of.shown[0]}x{of.shown[1]}"
        yield problem("mask-dimensions", text=source.label, size=size, first=wanted)
    if MASK_WARNING <= source.size < MAX_INPUT:
        yield problem("mask-large", text=source.label, size=amount(source.size))


def check_boxes(checked: Checked, first: InputPicture) -> Iterator[Problem]:
    """Checks that each mask box lies within the first picture, whose size must be known."""
    if not first.picture or not first.picture.width:
        if first.kind != "file" or not first.trouble:
            yield problem("mask-box", text=checked.label("mask-box"), why="needs a first picture that is a local file")
        return
    width, height = first.picture.shown
    for box in checked.get("mask-box"):
        x, y, w, h = box.pixels(width, height)
        if w < 1 or h < 1 or x + w > width or y + h > height or box.leaves():
            why = f"{x},{y},{w},{h} is not within {width}x{height}"
            yield problem("mask-box", text=checked.label("mask-box"), why=why)


def check_mask(checked: Checked) -> Iterator[Problem]:
    """Checks the mask by itself and against the first picture."""
    masks, marks, images = checked.role("mask"), checked.role("markup"), checked.role("image")
    boxed = checked.has("mask-box")
    given_by = [source.label for source in masks] + [checked.label("mask-box")] * boxed
    if not given_by and not marks:
        return
    if len(given_by) > 1:
        yield problem("mask-twice", given_by=", ".join(given_by))
    if not images and not checked.has("previous-response-id") and checked.route.name == "responses":
        yield problem("mask-without-image", text=given_by[0] if given_by else marks[0].label)
    if marks and given_by:
        yield problem("markup-mask", text=marks[0].label)
    for source in (*masks, *marks):
        if source.picture and source.kind in ("file", "data") and source.size:
            yield from check_mask_file(source, images[0] if images else None)
    if boxed and images:
        yield from check_boxes(checked, images[0])


def json_form_causes(checked: Checked) -> list[str]:
    """Returns what makes an edit take the JSON form: inputs that are no local files, and fields the form lacks."""
    remote = [source.label for source in checked.sources if source.kind in ("url", "file_id", "data")]
    return remote + [checked.label("moderation")] * (checked.settings.get("moderation") is not None)


def check_form(checked: Checked) -> Iterator[Problem]:
    """Checks that what needs the multipart form of an edit does not stand beside what needs the JSON form."""
    causes = json_form_causes(checked) if checked.route.name == "edits" and not checked.chat else []
    for source in checked.sources if causes else ():
        if source.kind == "auto":
            yield problem("mask-auto", text=source.label, others=", ".join(causes))
        elif source.role == "markup":
            yield problem("markup-form", text=source.label, others=", ".join(causes))
        elif source.kind == "file" and 4 * -(-source.size // 3) + 30 > MAX_IMAGE_URL:
            yield problem("image-url-length", text=source.label, length=4 * -(-source.size // 3) + 30)


def check_response(checked: Checked) -> Iterator[Problem]:
    """Checks the options of a response beside its picture."""
    metadata = checked.get("metadata-json")
    if metadata is not None and (len(metadata) > 16 or not all(
        isinstance(text, str) and len(text) <= 512 and len(name) <= 64 for name, text in metadata.items()
    )):  # fmt: skip
        yield problem("metadata", text="--metadata-json", why="not names with texts")
    if checked.get("store") is False and checked.get("background-mode"):
        yield problem("store-background", text=checked.label("background-mode"))
    elif checked.get("store") is False and checked.has("previous-response-id"):
        yield problem("store-previous", text=checked.label("store"))


def check_chat(checked: Checked) -> Iterator[Problem]:
    """Checks that chat can carry all that was asked for."""
    if not checked.chat:
        return
    for name, row in options_of(checked.route.name).items():
        reaches = row.sends in ("image", "top") or row.input or name == "mask-box"
        if not checked.has(name) or checked.settings.rows[name].source in ("default", FROM_SUFFIX):  # nobody chose it
            continue
        if reaches and name not in CHAT_CARRIES:
            yield problem("chat-carries", name, text=checked.label(name))
    for source in checked.sources:
        if source.kind == "file_id":
            yield problem("chat-carries", "image", text=source.label)
    if (checked.get("n") or 1) > 1:
        yield problem("chat-one", text=checked.label("n"))


CHECKS = (
    check_connection, check_prompt, check_model, check_values, check_size, check_format, check_output, check_stream,
    check_images, check_mask, check_form, check_response, check_chat,
)  # fmt: skip


def settings_problems(settings: Settings) -> list[Problem]:
    """Returns the broken rules of a command that makes no pictures by itself: connection and values only."""
    checked = Checked(settings, ROUTE["responses"]._replace(name=settings.command), [], [], [], frozenset())
    return [*check_connection(checked), *check_values(checked)]


def enforce(problems: list[Problem], lenient: bool, console: Console) -> None:
    """Says the warnings and raises one Failure for all that is refused; lenient lets through what can be sent."""
    refused = [found for found in problems if found.fatal or not (found.warning or lenient)]
    for found in problems:
        if found not in refused:
            console.warn(f"{found.message} ({found.hint})" if found.hint else found.message)
    if not refused:
        return
    rows = [{"rule": found.rule, "message": found.message, "hint": found.hint or None} for found in refused]
    raise Failure(USAGE, refused[0].message, refused[0].hint or None, rule=refused[0].rule, problems=rows)


# What has no option of its own name: the keys of a body that hold the prompt or the pictures.
OVERRIDES = {
    "prompt": ("prompt",), "messages": ("prompt",), "input": ("prompt", "input"),
    "image": ("image",), "images": ("image",), "image_url": ("image",),
}  # fmt: skip


def overridden_options(command: str, extra: Json) -> frozenset[str]:
    """Returns the options whose API field an --extra-json sets, and the prompt or the pictures if it sets those."""
    names = set()
    tools = extra.get("tools")
    tools = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    tool: Json = next((tool for tool in tools if tool.get("type") == "image_generation"), {})
    for name, row in options_of(command).items():
        at = tool if row.sends == "image" and command == "responses" else extra
        if row.sends in ("image", "top") and row.path[0] in at:
            names.add(name)
    return frozenset(names.union(*(OVERRIDES[key] for key in OVERRIDES if key in extra)))


# ---------------------------------------------------------------------------------------------------------------------
# 8 Request: a body that can be iterated twice, of known length, streamed from disk
# ---------------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A stretch of a body: bytes, or a file (its path and size) sent as it is or in base64."""

    data: bytes = b""
    path: str = ""
    size: int = 0
    base64: bool = False
    label: str = ""  # what a dry run shows in place of base64

    def length(self) -> int:
        """Returns the number of bytes sent."""
        if not self.path:
            return len(self.data)
        return 4 * -(-self.size // 3) if self.base64 else self.size

    def blocks(self) -> Iterator[bytes]:
        """Yields the bytes in blocks; Failure if the file is no longer what it was when it was checked."""
        if not self.path:
            yield self.data
            return
        changed = Failure(USAGE, f"{self.path} changed during the upload", "run it again", rule="image-changed")
        left = self.size
        try:
            with open(self.path, "rb") as file:
                while left:
                    block = file.read(min(3 * BLOCK, left))
                    if not block:
                        raise changed
                    left -= len(block)
                    yield binascii.b2a_base64(block, newline=False) if self.base64 else block
                if file.read(1):
                    raise changed
        except OSError as error:
            raise changed from error


class Body:
    """The parts of a body; iterating yields its bytes, as often as needed."""

    def __init__(self, parts: list[Part], content_type: str) -> None:
        self.parts, self.content_type = parts, content_type
        self.length = sum(part.length() for part in parts)
        self.sent = False  # whether the last byte was asked for

    def __iter__(self) -> Iterator[bytes]:
        self.sent = False
        for part in self.parts:
            yield from part.blocks()
        self.sent = True


Header = tuple[str, "str | Secret"]


class Request(NamedTuple):
    """A request, with what a dry run shows of its body: a JSON tree or the rows of a form."""

    method: str
    url: str
    headers: list[Header]
    body: Body | None = None
    tree: Json | None = None
    form: list[Json] | None = None


def as_unicode(text: str) -> str:
    """Returns a text that can be sent as UTF-8; Failure for one that cannot, such as half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Failure(USAGE, "a value is not valid Unicode text", "type it again", rule="encoding") from None
    return text


class JsonHoles:
    """JSON text with holes: `hole` returns a token to put into the tree where the base64 of a picture stands."""

    def __init__(self) -> None:
        self.mark, self.parts = os.urandom(12).hex(), []  # type: tuple[str, list[Part]]

    def hole(self, part: Part) -> str:
        """Notes a part and returns the token that stands for it."""
        self.parts.append(part)
        return f"<{self.mark}:{len(self.parts) - 1}>"

    def _split(self, tree: Json) -> list[str]:
        return re.split(f"<{self.mark}:([0-9]+)>", as_unicode(json.dumps(tree, ensure_ascii=False)))

    def body(self, tree: Json) -> Body:
        """Returns the body of a tree: text, file, text, file ..."""
        pieces = self._split(tree)
        parts = [self.parts[int(piece)] if i % 2 else Part(piece.encode()) for i, piece in enumerate(pieces)]
        return Body(parts, "application/json")

    def shown(self, tree: Json) -> Json:
        """Returns the tree with a label in place of each picture."""
        pieces = self._split(tree)
        labels = (json.dumps(self.parts[int(piece)].label)[1:-1] if i % 2 else piece for i, piece in enumerate(pieces))
        shown: Json = json.loads("".join(labels))
        return shown


def content_type(source: InputPicture) -> str:
    """Returns the media type of an input picture, by its bytes."""
    return INPUT_TYPES.get(source.picture.format if source.picture else "", "application/octet-stream")


def image_reference(source: InputPicture, holes: JsonHoles) -> Json:
    """Returns how JSON names an input picture: by file id, URL, or data URL."""
    if source.kind == "file_id":
        return {"file_id": source.text}
    if source.kind == "url":
        return {"image_url": source.text}
    if source.kind == "data":
        start, _, data = source.text.partition(",")
        return {"image_url": f"{start}," + holes.hole(Part(data.encode(), label=f"<base64, {source.size} bytes>"))}
    label = f"<base64 of {source.shown}, {source.size} bytes>"
    part = Part(path=source.text, size=source.size, base64=True, label=label)
    return {"image_url": f"data:{content_type(source)};base64," + holes.hole(part)}


def put(tree: Json, path: tuple[str, ...], value: Any) -> None:
    """Sets a value in nested objects, making those that are missing."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def fields(settings: Settings, places: tuple[str, ...]) -> Json:
    """Returns the API fields of all settings that go to one of the places, nested as the API has them."""
    tree: Json = {}
    for name, row in options_of(settings.command).items():
        setting = settings.rows.get(name)
        # The suffix of --output may only say what the server does anyhow.
        implied = setting and setting.source == FROM_SUFFIX and setting.value == DEFAULT_FORMAT
        if setting and row.sends in places and not implied:
            put(tree, row.path, setting.value)
    return tree


def merge(tree: Json, extra: Json) -> Json:
    """Returns a tree with extra fields: objects are merged, tools are matched by type, all else is replaced."""
    merged = dict(tree)
    for key, value in extra.items():
        ours = merged.get(key)
        if isinstance(value, dict) and isinstance(ours, dict):
            merged[key] = merge(ours, value)
        elif key == "tools" and isinstance(value, list) and isinstance(ours, list):
            kinds = [str(tool.get("type")) if isinstance(tool, dict) else None for tool in value]
            mine = {tool["type"]: tool for tool in ours}
            merged[key] = [tool for kind, tool in mine.items() if kind not in kinds]
            merged[key] += [merge(mine[kind], tool) if kind in mine else tool for kind, tool in zip(kinds, value)]
        else:
            merged[key] = value
    return merged


def images_tree(checked: Checked, holes: JsonHoles) -> Json:
    """Returns the JSON of an Images call."""
    tree: Json = {"prompt": "\n".join(checked.texts), **fields(checked.settings, ("top", "image"))}
    if checked.route.name == "edits":
        tree["images"] = [image_reference(source, holes) for source in checked.role("image")]
        for source in checked.role("mask"):
            tree["mask"] = image_reference(source, holes)
    return tree


def responses_tree(checked: Checked, holes: JsonHoles) -> Json:
    """Returns the JSON of a response: the input, and the hosted tool with its own fields."""
    tree = fields(checked.settings, ("top",))
    content: list[Json] = [{"type": "input_text", "text": text} for text in checked.texts]
    for source in checked.role("image"):
        content.append({"type": "input_image", **image_reference(source, holes), "detail": "auto"})
    plain = len(content) == 1 and len(checked.texts) == 1
    tool = {"type": "image_generation", **fields(checked.settings, ("image",))}
    for source in checked.role("mask"):
        tool["input_image_mask"] = image_reference(source, holes)
    message = checked.texts[0] if plain else [{"role": "user", "content": content}]
    return {"model": tree.pop("model"), "input": message, "tools": [tool], **tree}


def chat_tree(checked: Checked, holes: JsonHoles) -> Json:
    """Returns the JSON of a chat call for a gateway that has no Images routes."""
    prompt = "\n".join(checked.texts)
    content: list[Json] = [{"type": "text", "text": prompt}]
    for source in checked.role("image"):
        reference = image_reference(source, holes)
        content.append({"type": "image_url", "image_url": {"url": reference.get("image_url", source.text)}})
    kept = {name: checked.settings.rows[name] for name in CHAT_CARRIES if name != "n" and name in checked.settings.rows}
    tree = fields(Settings(checked.route.name, kept), ("top",))
    return {**tree, "messages": [{"role": "user", "content": content if len(content) > 1 else prompt}]}


def form_fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the form fields of a value: nested objects as a[b], lists as a[], true and false in lower case."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from form_fields(f"{name}[{key}]", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from form_fields(f"{name}[]", inner)
    else:
        yield name, as_unicode(value if isinstance(value, str) else json.dumps(value))


FIELD_STYLES = {"brackets": "image[]", "simple": "image", "indexed": "image[{}]"}


def form_files(checked: Checked) -> Iterator[tuple[str, InputPicture]]:
    """Yields the file parts of an edit's form with their field names."""
    style = FIELD_STYLES[checked.settings.get("image-field-style")]
    for i, source in enumerate(checked.role("image")):
        yield style.format(i), source
    for source in (*checked.role("mask"), *checked.role("markup")):
        yield source.role, source


def quoted(name: str) -> str:
    """Returns a name as it stands between quotes in a part's header."""
    # https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def form_request(checked: Checked, tree: Json) -> tuple[Body, list[Json]]:
    """Returns the multipart body of an edit and the rows a dry run shows of it."""
    boundary, parts, rows = "gpt-image-" + os.urandom(12).hex(), [], []  # type: tuple[str, list[Part], list[Json]]
    texts = [pair for name, value in tree.items() for pair in form_fields(name, value)]
    texts += [("mask", "auto")] * any(source.kind == "auto" for source in checked.sources)

    def head(disposition: str) -> Part:
        start = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
        return Part(start.encode("utf-8", "surrogateescape"))

    for name, source in form_files(checked):
        if source.kind == "file":
            base = os.path.basename(source.shown)
            base = base if os.path.normpath(source.text) == source.shown else os.path.splitext(base)[0] + ".png"
            kind = content_type(source)
            parts += [head(f'name="{quoted(name)}"; filename="{quoted(base)}"\r\nContent-Type: {kind}'),
                      Part(path=source.text, size=source.size), Part(b"\r\n")]  # fmt: skip
            row = {"filename": base, "content_type": kind, "bytes": source.size, "path": source.shown}
            rows.append({"name": name, **row})
    for name, text in texts:
        parts += [head(f'name="{quoted(as_unicode(name))}"'), Part(text.encode("utf-8", "surrogateescape") + b"\r\n")]
        rows.append({"name": name, "value": text})
    parts.append(Part(f"--{boundary}--\r\n".encode()))
    return Body(parts, f"multipart/form-data; boundary={boundary}"), rows


def api_url(settings: Settings, path: str, query: str = "") -> str:
    """Returns the URL of a path below the base URL; a query of the base URL stays at the end."""
    base, _, own = settings.get("base-url").partition("?")
    queries = "&".join(filter(None, (query, own)))
    return str(base.rstrip("/") + path + (f"?{queries}" if queries else ""))


def api_headers(settings: Settings, body: Body | None, accept: str = "application/json") -> list[Header]:
    """Returns the headers of a call, with those the user gave in place of ours."""
    headers: dict[str, Header] = {}

    def put_header(name: str, value: str | Secret) -> None:
        headers[name.lower()] = (name, value)

    put_header("Accept", accept)
    put_header("Accept-Encoding", "identity")
    put_header("User-Agent", f"gpt-image/{__version__}")
    if not brings_key(settings):  # only a dry run comes here without any key
        put_header("Authorization", settings.get("api-key") or Secret(""))
    for name, value in fields(settings, ("header",)).items():
        put_header(name, value)
    for name, value in settings.get("header", []):
        put_header(name, header_value(name, value))
    if body:
        put_header("Content-Type", body.content_type)
        put_header("Content-Length", str(body.length))
    return list(headers.values())


def build_request(checked: Checked) -> Request:
    """Returns the request of a call, with --extra-json merged in."""
    settings, holes, extra = checked.settings, JsonHoles(), checked.settings.get("extra-json") or {}
    accept = "text/event-stream, application/json" if settings.get("stream") else "application/json"
    if checked.route.name == "edits" and not checked.chat and not json_form_causes(checked):
        tree = merge({"prompt": "\n".join(checked.texts), **fields(settings, ("top", "image"))}, extra)
        body, rows = form_request(checked, tree)
        return Request(
            "POST", api_url(settings, checked.route.path), api_headers(settings, body, accept), body, form=rows
        )
    build = chat_tree if checked.chat else responses_tree if checked.route.name == "responses" else images_tree
    tree = merge(build(checked, holes), extra)
    body = holes.body(tree)
    url = api_url(settings, CHAT_PATH if checked.chat else checked.route.path)
    return Request("POST", url, api_headers(settings, body, accept), body, tree=holes.shown(tree))


def shown_headers(headers: list[Header]) -> dict[str, str]:
    """Returns headers as a dry run shows them, secrets as `***`."""
    return {
        name: ("Bearer ***" if name.lower() == "authorization" else "***") if isinstance(value, Secret) else value
        for name, value in headers
    }


def shell_quoted(text: str) -> str:
    """Returns a word quoted for a POSIX shell."""
    from shlex import quote

    return quote(text)


def curl_header(name: str, value: str | Secret) -> str:
    """Returns a header for a shell; a secret comes from a variable."""
    if not isinstance(value, Secret):
        return shell_quoted(f"{name}: {value}")
    bearer, variable = "", "_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
    if name.lower() == "authorization":
        bearer, variable = "Bearer ", "OPENAI_API_KEY"
    return shell_quoted(f"{name}: {bearer}") + f'"${variable}"'


def curl_command(request: Request) -> str:
    """Returns a command for a POSIX shell that makes the same request."""
    body = request.body
    skipped = ("content-length",) + (("content-type",) if request.form is not None else ())
    words = [f"curl -sS -X {request.method} {shell_quoted(request.url)}"]
    words += [f"-H {curl_header(name, value)}" for name, value in request.headers if name.lower() not in skipped]
    words += ["-H 'Expect:'"]
    before = ""
    for row in request.form or []:
        if "path" in row:
            path, name = (re.sub(r'(["\\])', r"\\\1", text) for text in (row["path"], row["filename"]))
            field = f'{row["name"]}=@"{path}";type={row["content_type"]};filename="{name}"'
            words.append(f"-F {shell_quoted(field)}")
        else:
            words.append(f"--form-string {shell_quoted(row['name'] + '=' + row['value'])}")
    if body and request.form is None:
        pieces = [
            f"base64 < {shell_quoted(part.path)} | tr -d '\\n'" if part.path
            else f"printf '%s' {shell_quoted(part.data.decode())}" for part in body.parts
        ]  # fmt: skip
        before = "{ " + "; ".join(pieces) + "; } | "
        words.append("--data-binary @-")
    return before + " \\\n  ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# 8 Transport: the only socket, the only use of the key; send, retry, refusals
# ---------------------------------------------------------------------------------------------------------------------


class Stop:
    """Whether the user wants the program to end: a flag that a signal sets, looked at between chunks, polls and waits.

    Nothing that was paid for can be lost to it: an exception is raised only while `armed`, that is while nothing has
    been sent yet, or everything is on disk. A wait for bytes ends since its connection is shut down.
    """

    def __init__(self) -> None:
        self.requested, self.armed = False, True
        self.sockets: list[Any] = []

    def arm(self, armed: bool) -> None:
        """Says whether a signal may raise an exception now; only where it would arrive, that is in the main thread."""
        import threading

        if threading.current_thread() is threading.main_thread():
            self.armed = armed

    def __enter__(self) -> Stop:
        self.handlers: list[tuple[Any, Any]] = []
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup, and & in a script, have it ignored
                    self.handlers.append((number, signal.signal(number, self.request)))
        except ValueError:
            pass  # not the main thread: whoever imported us sees to signals
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers:
            signal.signal(number, handler or signal.SIG_DFL)

    def request(self, *_: object) -> None:
        """Asks for the end; a signal handler."""
        import socket

        self.requested = True
        for sock in self.sockets:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Waits, but not beyond a signal."""
        end = time.monotonic() + seconds
        while not self.requested and time.monotonic() < end:
            time.sleep(min(0.1, max(end - time.monotonic(), 0)))


class Fault(NamedTuple):
    """How a connection failed, and whether the request had been sent in full, so that it may have run."""

    message: str
    sent: bool
    headers: Mapping[str, str] = {}


class Reply:
    """An HTTP reply: status, headers (names in lower case), and `read`, which ends with b"" and may leave a fault."""

    def __init__(self, status: int, headers: Mapping[str, str], chunks: Iterable[bytes], reason: str = "") -> None:
        self.status, self.headers, self.reason = status, headers, reason
        self.chunks: Iterator[bytes] = iter(chunks)
        self.fault: Fault | None = None
        self.close: Callable[[], None] = lambda: None

    def read(self) -> bytes:
        """Returns the next bytes as they came over the wire, or b"" at the end, be it the true end or a fault."""
        try:
            return next(filter(None, self.chunks), b"")
        except ConnectionError as error:
            self.fault = Fault(str(error), sent=True)
            return b""


class Inflater:
    """Undoes the compression of a reply, if its bytes say that there is one: relays announce what they do not do."""

    def __init__(self, encoding: str = "") -> None:
        self.encoding, self.start = encoding.lower(), b""
        self.kind = ""  # plain, zipped, or over where the last member has ended; empty where it is not known yet
        self.unzip: Any = None
        self.trouble = ""  # how the compressed data is damaged

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what the next bytes hold, in blocks, however much that is."""
        data, self.start = self.start + data, b""
        while data and self.kind != "over":
            if not self.kind and len(data) < 2:
                self.start = data
                return
            self.kind = self.kind or self._kind_of(data)
            if self.kind == "plain":
                yield data
                return
            try:
                yield self.unzip.decompress(data, BLOCK)
            except zlib.error as error:
                self.kind, self.trouble = "over", f"the compressed reply is damaged ({error})"
            data = self.unzip.unconsumed_tail
            if self.unzip.eof:  # another member may follow
                self.kind, data = "", self.unzip.unused_data

    def _kind_of(self, data: bytes) -> str:
        # https://www.rfc-editor.org/rfc/rfc1952 and rfc1950: the first two bytes of gzip and of zlib
        if data[:2] == b"\x1f\x8b":
            self.unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        elif self.unzip:
            return "over"
        elif self.encoding in ("gzip", "deflate") and data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0:
            self.unzip = zlib.decompressobj()
        elif self.encoding == "deflate" and not re.match(rb"\s*([{\[:<]|data|event|id|retry)", data):
            self.unzip = zlib.decompressobj(-zlib.MAX_WBITS)
        else:
            return "plain"
        return "zipped"

    def finish(self) -> bytes:
        """Returns what is left at the end of the reply."""
        if self.kind == "zipped":
            self.trouble = "the compressed reply was cut"
        return self.start


Transport = Callable[[Request, float, Progress], "Reply | Fault"]
CONNECT_TIMEOUT = 30.0  # seconds; waiting longer for a connection never helped anyone


def reason_of(error: BaseException) -> str:
    """Returns why a connection failed, in words."""
    import socket

    error = getattr(error, "reason", error)
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timed out: no byte came for as long as --timeout allows"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


class Attempt:
    """What one attempt knows of its connection: whether the request was sent in full, and whether bytes wait."""

    def __init__(self, timeout: float, total: int, progress: Progress, stop: Stop) -> None:
        self.timeout, self.total, self.progress, self.stop = timeout, total, progress, stop
        self.sent, self.broken = False, False
        self.readable: Callable[[], bool] = lambda: False

    def body(self, body: Body) -> Iterator[bytes]:
        """Yields the body's bytes and notes when the last one is gone; stops early once the server hung up."""
        done = 0
        for block in body:
            if self.broken:
                return
            yield block
            done += len(block)
            self.progress.phase("uploading", percent=100 * done // max(self.total, 1), size=amount(self.total))
        self.finished()

    def finished(self) -> None:
        """Notes that the request is out: from here on it may run, and be billed."""
        self.sent = not self.broken
        self.progress.phase("waiting")

    def connected(self, sock: Any) -> None:
        """Prepares a connection for a picture: it may be silent for minutes, and a signal must end its wait."""
        import select
        import socket

        sock.settimeout(self.timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.stop.sockets.append(sock)
        if hasattr(sock, "pending") and hasattr(select, "poll"):  # TLS, which hands out 16 kB at a time
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            self.readable = lambda: bool(sock.pending() or poll.poll(0))


def connection_classes(attempt: Attempt) -> tuple[Any, Any]:
    """Returns the connection classes for http and https, which report to the attempt.

    They keep what a picture needs and the standard ones lose: the reply to an upload that was refused half way, replies
    behind `102 Processing`, and connections that stay open for minutes in silence.
    """
    import http.client
    import socket

    class LongReply(http.client.HTTPResponse):
        def _read_status(self) -> tuple[str, int, str]:
            # http.client skips 100 only; relays send 102 and 103 while they wait.
            while True:
                version, status, reason = super()._read_status()  # type: ignore[misc]
                if not 102 <= status < 200:
                    return version, status, reason
                http.client.parse_headers(self.fp)

    class Connection(http.client.HTTPConnection):
        response_class = LongReply

        def connect(self) -> None:
            self.timeout = min(attempt.timeout, CONNECT_TIMEOUT)
            attempt.stop.arm(True)  # nothing is sent yet
            super().connect()
            attempt.stop.arm(False)
            attempt.connected(self.sock)

        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()  # its failures, such as a bad certificate, are told as they are
            # A server that answers 401 and closes while we upload: keep quiet here, and read its answer.
            try:
                super().send(data)
            except (socket.timeout, TimeoutError):
                raise
            except OSError:
                attempt.broken = True

    class SecureConnection(Connection, http.client.HTTPSConnection):
        pass

    return Connection, SecureConnection


def reply_chunks(response: Any, attempt: Attempt) -> Iterator[bytes]:
    """Yields the bytes of a reply as they arrive, those that are here in one block; ConnectionError if it is cut."""
    import http.client

    received, cut = 0, ""
    while not cut:
        pieces: list[bytes] = []
        try:
            while not pieces or pieces[-1] and sum(map(len, pieces)) < BLOCK and attempt.readable():
                pieces.append(response.read1(BLOCK))
        except (OSError, http.client.HTTPException, ValueError) as error:
            cut = reason_of(error) if isinstance(error, OSError) else "the reply was cut"
        block = b"".join(pieces)
        received += len(block)
        if block:
            attempt.progress.phase("receiving", size=amount(received))
            yield block
        if cut:
            raise ConnectionError(f"{cut} after {amount(received)}")
        if not pieces[-1]:
            break
    if response.length:
        raise ConnectionError(f"the reply ended {amount(response.length)} before its announced length")


def opener_for(attempt: Attempt, redirects: bool) -> urllib.request.OpenerDirector:
    """Returns an opener with proxies as Python finds them, and with redirects only where no key is sent."""
    import urllib.request

    plain, secure = connection_classes(attempt)

    class Web(urllib.request.AbstractHTTPHandler):
        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

        def http_open(self, request: Any) -> Any:
            return self.do_open(plain, request)

        def https_open(self, request: Any) -> Any:
            return self.do_open(secure, request)

    class WebRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            web = newurl.lower().startswith(("http:", "https:"))  # the standard class would follow ftp: too
            return super().redirect_request(req, fp, code, msg, headers, newurl) if web else None

    opener = urllib.request.OpenerDirector()
    # Without HTTPErrorProcessor every status is a reply like any other, a redirect too.
    follow = (WebRedirect(), urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler())
    for handler in (urllib.request.ProxyHandler(), Web(), *(follow if redirects else ())):
        opener.add_handler(handler)
    return opener


def send(request: Request, timeout: float, progress: Progress, stop: Stop | None = None) -> Reply | Fault:
    """Makes one HTTP exchange and returns its reply, whatever the status, or how it failed."""
    import http.client
    import urllib.error
    import urllib.request

    body = request.body
    attempt = Attempt(timeout, body.length if body else 0, progress, stop or Stop())
    authorised = any(isinstance(value, Secret) for _, value in request.headers)
    out = urllib.request.Request(request.url, attempt.body(body) if body else None, method=request.method)
    for name, value in request.headers:
        text = value.reveal() if isinstance(value, Secret) else value
        bearer = "Bearer " if name.lower() == "authorization" and " " not in text else ""
        out.add_unredirected_header(name, bearer + text)
    progress.phase("connecting", host=split_url(request.url).netloc)
    try:
        response = opener_for(attempt, redirects=not authorised).open(out)
    except urllib.error.HTTPError as error:  # a picture's URL only
        return Reply(error.code, {}, [], str(error.reason))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Fault(reason_of(error), sent=attempt.sent)
    headers = {name.lower(): value for name, value in response.headers.items()}
    reply = Reply(response.status, headers, reply_chunks(response, attempt), response.reason)
    reply.close = response.close
    return reply


def number_of(value: Any, default: int = 0) -> int:
    """Returns a whole number of a reply, or the default for anything else."""
    return value if isinstance(value, int) and 0 <= value < 10**9 else default


def finite(text: str) -> float | None:
    """Returns a number of a reply, or None for one that JSON cannot hold when we pass it on."""
    value = float(text.replace("Infinity", "inf"))
    return value if value - value == 0 else None


def parse_json(text: bytes | bytearray) -> Any:
    """Parses a small JSON text; None if it is none."""
    try:
        return json.loads(text.decode("utf-8", "replace"), strict=False, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        return None


def as_object(value: Any) -> Json:
    """Returns a value of a reply if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_body(reply: Reply, most: int = MIB) -> bytes:
    """Reads a short reply, up to a limit."""
    body, inflater = bytearray(), Inflater(reply.headers.get("content-encoding", ""))
    for block in itertools.chain.from_iterable(inflater.feed(chunk) for chunk in iter(reply.read, b"")):
        body += block
        if len(body) > most:
            break
    reply.close()
    return bytes(body[:most] or inflater.finish())


def page_title(text: str) -> str:
    """Returns the title of an HTML page, or nothing."""
    match = re.search(r"<title[^>]{0,99}>([^<]{0,200})", text[:4096], re.IGNORECASE)
    return match.group(1).strip() if match else ""


def status_row(status: int) -> Status:
    """Returns the row of STATUSES for an HTTP status; one that is not listed is like 502 from 500 on, and final below."""
    unlisted = Status((), "billable" if status >= 500 else "never")
    return next((row for row in STATUSES if status in row.codes), unlisted)


def refusal_of(error: Json, status: int = 200, reason: str = "") -> Failure:
    """Returns the failure that an error object of the API says, with the hint for its code or status."""
    code, kind, details = error.get("code"), error.get("type"), as_object(error.get("moderation_details"))
    row, names = status_row(status), f"{kind} {code}"
    numeric = number_of(code) or number_of(error.get("status"))
    inner = numeric if status == 200 and 400 <= numeric < 600 else status  # a 200 that carries another status
    server = inner >= 500 or inner == 200 and ("server" in names or "rate_limit" in names)
    said = str(error.get("message") or (json.dumps(error)[:300] if error else reason or "no reason given"))
    if details:
        found = details.get("categories")
        categories = ", ".join(map(str, found)) if isinstance(found, list) else "not told"
        said += f" (stage: {details.get('moderation_stage')}; categories: {categories})"
    said = re.sub(r"[A-Za-z0-9+/]{500,}={0,2}", "<base64>", said)[:2000]
    hints = (hint for name, hint in CODE_HINTS.items() if name in (code, kind) or name in said)
    return Failure(
        NETWORK if server else REFUSED,
        said if status == 200 else f"HTTP {status}: {said}",
        next(hints, row.hint or None),
        status=None if status == 200 else status,
        type=kind,
        code=code,
        may_be_billed=server and row.retry != "safe",
    )


def redirect_failure(reply: Reply) -> Failure:
    """Returns the failure of a redirect, which is not followed, since the key would go along."""
    location = reply.headers.get("location", "nowhere")
    target = split_url(location)
    where = target.netloc.rpartition("@")[2]
    shown = f"{target.scheme}://{where}{target.path}" if where else location
    words = f"HTTP {reply.status}: the API redirects to {shown}, which is not followed: the key would go along"
    hint = "if you trust that address, make it the --base-url"
    return Failure(NETWORK, words, hint, status=reply.status, may_be_billed=False)


def error_failure(reply: Reply, body: bytes) -> Failure:
    """Returns the failure of a reply that is no 2xx."""
    if 300 <= reply.status < 400:
        return redirect_failure(reply)
    value = parse_json(body)
    error = value.get("error", value) if isinstance(value, dict) else None
    if isinstance(error, dict):
        return refusal_of(error, reply.status)
    text = error if isinstance(error, str) else body.decode("utf-8", "replace")
    page = "<html" in text[:1000].lower()
    return refusal_of({}, reply.status, page_title(text) or ("" if page else text.strip()[:300]) or reply.reason)


def retry_wait(headers: Mapping[str, str], attempt: int) -> float | None:
    """Returns the seconds to wait before the next try, or None if the server asks for longer than we wait."""
    import random
    from email.utils import parsedate_to_datetime

    after, asked = headers.get("retry-after", ""), None
    try:
        if headers.get("retry-after-ms"):
            asked = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"\s*[0-9.]+\s*", after):
            asked = float(after)
        elif after:
            asked = parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        pass  # not a time: as if it were not there
    if asked is not None and asked == asked:
        return max(asked, 0.0) if asked <= LONGEST_WAIT else None
    wait: float = min(RETRY_FIRST * 2**attempt, RETRY_MOST) * (1 - 0.25 * random.random())
    return wait


def may_retry(status: int, headers: Mapping[str, str], failure: Failure) -> str:
    """Returns whether a refused request is made again: "safe", "billable" or "never"."""
    verdict = status_row(status).retry
    said = f"{failure.details.get('code')} {failure.details.get('type')} {failure.message}"
    if MONEY_WORDS.search(said) or headers.get("x-should-retry") == "false" or status < 400:
        return "never"
    if verdict == "safe" and status != 429 and RAN_BEHIND.match(failure.message):
        verdict = "billable"
    return "safe" if verdict == "never" and headers.get("x-should-retry") == "true" else verdict


class Tries:
    """What is known of the tries of a call: how many, the server's id of the last, and what it said in refusing."""

    def __init__(self) -> None:
        self.count, self.refusal = 0, b""
        self.request_id: str | None = None
        self.billed = False  # whether a try may have been billed: it was sent in full, or accepted, and not refused
        self.under_way: Request | None = None

    @property
    def may_be_billed(self) -> bool:
        """Tells whether the call may have been billed, also while a try is under way."""
        body = self.under_way.body if self.under_way else None
        return self.billed or bool(body and body.sent)

    def end(self, billed: bool) -> bool:
        """Notes how a try ended; returns whether any of them may have been billed."""
        self.billed, self.under_way = self.billed or billed, None
        return self.billed


def judged(outcome: Reply | Fault, request: Request, free: bool) -> tuple[Failure, str, bytes]:
    """Returns the failure of one try, whether it may be made again, and what the server said."""
    if isinstance(outcome, Fault):
        hint = "look at your usage before you try again, or allow it with --retry-billable"
        hint = hint if outcome.sent and not free else "check the network, the proxy, and --base-url"
        failure = Failure(NETWORK, f"{outcome.message} ({host_of(request.url)})", hint, may_be_billed=outcome.sent)
        return failure, "billable" if outcome.sent else "safe", b""
    body = read_body(outcome)
    failure = error_failure(outcome, body)
    verdict = may_retry(outcome.status, outcome.headers, failure)
    # x-should-retry does not undo a bill
    failure.details["may_be_billed"] = "billable" in (verdict, may_retry(outcome.status, {}, failure))
    return failure, verdict, body


class Context(NamedTuple):
    """What a command may touch beside files: streams, environment, transport, time; tests hand in their own."""

    console: Console
    stdin: IO[str]
    environ: Mapping[str, str]
    dotenv: Dotenv
    transport: Transport
    sleep: Callable[[float], None]
    stop: Stop
    temp_files: TempFiles
    progress: Progress


def try_once(context: Context, timeout: float, request: Request, tries: Tries) -> Reply | Fault:
    """Sends a request once and notes the facts of it; after a signal, no new connection is opened."""
    if context.stop.requested:
        raise KeyboardInterrupt
    tries.count, tries.under_way = tries.count + 1, request
    context.stop.arm(False)
    outcome = context.transport(request, timeout, context.progress)
    found = (outcome.headers[name] for name in REQUEST_IDS if outcome.headers.get(name))
    tries.request_id = next(found, tries.request_id)
    return outcome


def exchange(context: Context, settings: Settings, request: Request, tries: Tries | None = None) -> Reply:
    """Sends a request until a 2xx begins, and returns that reply; a free one (no tries) may always be sent again."""
    free, most, tries = tries is None, 1 + settings.get("max-retries"), tries or Tries()
    while True:
        outcome = try_once(context, settings.get("timeout"), request, tries)
        if isinstance(outcome, Reply) and 200 <= outcome.status < 300:
            tries.end(billed=True)
            return outcome
        failure, verdict, tries.refusal = judged(outcome, request, free)
        failure.details["may_be_billed"] = tries.end(billed=failure.details["may_be_billed"] and not free)
        if context.stop.requested:
            raise KeyboardInterrupt
        wait = retry_wait(outcome.headers, tries.count - 1)
        allowed = verdict == "safe" or verdict == "billable" and (free or settings.get("retry-billable"))
        if allowed and wait is None:
            failure.hint = f"the server asks to wait longer than {LONGEST_WAIT:.0f} s: try again later"
        if not allowed or wait is None or tries.count == most:
            raise failure
        reason = failure.message.split("\n")[0]
        context.progress.phase("retrying", reason=reason, attempt=f"{tries.count + 1} of {most}", wait=f"{wait:.1f}")
        context.sleep(wait)


# ---------------------------------------------------------------------------------------------------------------------
# 9 Files: names before money is spent, whole files after it
# ---------------------------------------------------------------------------------------------------------------------


def spare_folder() -> str:
    """Returns the system's folder for temporary files: for dry runs, and for when the disk of the outputs is full."""
    import tempfile

    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written: then what would go there fails by itself
        return os.curdir


def write_all(file: IO[bytes], data: bytes) -> None:
    """Writes all of the bytes to an unbuffered file."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def rename_free(source: str, target: str) -> bool:
    """Renames a file to a name that must be free; False if it is taken, even if it was taken this instant."""
    try:
        if os.name == "nt":
            os.rename(source, target)  # refuses an existing name there
            return True
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        try:
            os.replace(source, target)
        except OSError:
            os.unlink(target)  # the empty file that held the name
            raise
        return True
    os.unlink(source)
    return True


def absolute(name: str) -> str:
    """Returns a name by which two ways to write the same path are equal."""
    try:
        return os.path.normcase(os.path.abspath(name))
    except OSError:  # the current folder is gone
        return os.path.normcase(os.path.normpath(name))


class TempFiles:
    """The temporary files of a call; what was not given a name by the end is removed, whatever the end is."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.written: set[str] = set()  # the names this call has given: none of them is given twice

    def __enter__(self) -> TempFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self.files):
            self.remove(path)

    def remove(self, path: str) -> None:
        """Removes a temporary file."""
        self.files.discard(path)
        try:
            os.unlink(path)
        except OSError:
            pass

    def create(self, folder: str, suffix: str = ".part") -> IO[bytes]:
        """Opens a new file in a folder, unbuffered."""
        path = os.path.join(folder, f".gpt-image-{os.urandom(6).hex()}{suffix}")
        file = open(path, "x+b", buffering=0)
        self.files.add(path)
        return file

    def place(self, source: str, target: str, overwrite: bool = False) -> str:
        """Gives a finished temporary file its name, or that name with the next free number, and returns the path."""
        stem, suffix = os.path.splitext(target)
        number, path = 1, target
        if overwrite and absolute(target) not in self.written:
            os.replace(source, target)
        else:
            while not rename_free(source, path):
                number += 1
                path = f"{stem}-{number}{suffix}"
        self.files.discard(source)
        self.written.add(absolute(path))
        return path


class OutputNames(NamedTuple):
    """Where the pictures of a call go: a stem that may hold {index} and {partial}, and a suffix."""

    stem: str
    suffix: str
    several: bool
    overwrite: bool
    expected: int = 1

    @property
    def folder(self) -> str:
        """Returns the folder of the first picture, where temporary files are made too."""
        return os.path.dirname(self.final(1)) or "."

    def _filled(self, index: int, partial: str) -> str:
        stem = self.stem.replace("{partial}", partial)
        if "{index}" not in stem and (self.several or index > 1):
            stem += "-{index}"
        return stem.replace("{index}", str(index))

    def final(self, index: int) -> str:
        """Returns the name of a picture by its index, from 1."""
        return self._filled(index, "final") + self.suffix

    def partial(self, index: int, partial: int) -> str:
        """Returns the name of a preview of a picture, both counted from 1."""
        ending = "" if "{partial}" in self.stem else f"-partial-{partial}"
        return self._filled(index, str(partial)) + ending + self.suffix

    def beside(self, ending: str) -> str:
        """Returns a name beside the outputs, such as that of a kept reply."""
        folder, name = os.path.split(re.sub(r"[-_. ]*\{(index|partial)\}", "", self.stem))
        name = name if len(os.fsencode(name)) < 220 else name[:50]  # no disk takes names of more than 255 bytes
        return os.path.normpath(os.path.join(folder, name + ending))

    def planned(self, partials: int) -> list[str]:
        """Returns every name that a call will write to, previews included."""
        indices = range(1, self.expected + 1)
        previews = [self.partial(index, partial) for index in indices for partial in range(1, partials + 1)]
        return [self.final(index) for index in indices] + previews


def suffix_of(name: str) -> str:
    """Returns the suffix of a format, also of one the tables do not know."""
    return FORMAT[name].suffixes[0] if name in FORMAT else "." + re.sub(r"\W", "", name)


def output_names(settings: Settings, expected: int) -> OutputNames:
    """Returns where the pictures of a call go."""
    output = settings.get("output") or ""
    suffix = suffix_of(settings.get("format") or DEFAULT_FORMAT)
    if not output or output.endswith(("/", os.sep)) or os.path.isdir(output):
        stem = first = os.path.join(output, time.strftime("gpt-image-%Y%m%d-%H%M%S"))
        number = 1
        while os.path.lexists(stem + suffix) or os.path.lexists(f"{stem}-1{suffix}"):  # two calls in one second
            number += 1
            stem = f"{first}_{number}"
    else:
        own = output_suffix(output)
        stem, suffix = (output[: -len(own)], output[-len(own) :]) if own else (output, suffix)
    return OutputNames(os.path.normpath(stem), suffix, expected > 1, bool(settings.get("overwrite")), expected)


def unwritable(folder: str) -> str:
    """Returns why a folder cannot be written, looking at the nearest one that exists, or nothing."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder) or "."
    if not os.path.isdir(folder):
        return f"{folder} is not a folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write to {folder}"


def exists(name: str) -> bool:
    """Tells whether a name is taken, be it by a dangling link; Failure if the disk cannot have such a name."""
    try:
        os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        words = f"{name[:80]}: {getattr(error, 'strerror', None) or error}"
        raise Failure(OUTPUT, words, "choose another --output", rule="output-name") from error
    return True


def check_names(names: list[str], overwrite: bool) -> None:
    """Refuses names that exist or repeat, and folders that cannot be written, before anything is sent."""
    taken = [name for name in names if exists(name) and (os.path.isdir(name) or not overwrite)]
    places = [absolute(name) for name in names]
    twice = [name for name, place in zip(names, places) if places.count(place) > 1]
    why = next(filter(None, (unwritable(os.path.dirname(name) or ".") for name in names)), "")
    if taken:
        words = f"{', '.join(taken[:3])} exists already" + (" …" if len(taken) > 3 else "")
        raise Failure(OUTPUT, words, "choose another --output, or add --overwrite", rule="output-exists")
    if twice:
        raise Failure(OUTPUT, f"{twice[0]} would be written twice", "put {index} into --output", rule="output-twice")
    if why:
        raise Failure(OUTPUT, why, "choose another --output", rule="output-folder")


def make_folders(names: list[str], temp_files: TempFiles) -> None:
    """Makes the folders of all outputs and tries each by writing to it."""
    for folder in {os.path.dirname(name) or "." for name in names}:
        try:
            os.makedirs(folder, exist_ok=True)
            with temp_files.create(folder) as file:
                temp_files.remove(file.name)
        except OSError as error:
            words = f"{folder}: {error.strerror}"
            raise Failure(OUTPUT, words, "choose another --output", rule="output-folder") from error


BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
WHITE = b" \t\r\n"
URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decoded_or_none(text: bytes | memoryview) -> bytes | None:
    """Decodes whole groups of four base64 characters; None if any of them is none: they make the result shorter."""
    try:
        decoded = binascii.a2b_base64(text)
    except binascii.Error:
        return None
    return decoded if len(decoded) == len(text) // 4 * 3 else None


def unwritten(error: OSError) -> Failure:
    """Returns the failure of a picture that the disk does not take."""
    return Failure(OUTPUT, f"a picture cannot be written: {error.strerror}", "make room, then extract it")


class Lifted:
    """A picture on its way to disk: base64 that comes in pieces, decoded into a temporary file."""

    def __init__(self, temp_files: TempFiles, folder: str) -> None:
        import hashlib

        self.temp_files = temp_files
        self.file = temp_files.create(folder)
        self.path = self.file.name
        self.hash, self.size = hashlib.sha256(), 0
        self.carry, self.padded = b"", False  # what is not decoded yet, and whether its padding has come
        self.ended = False  # whether the text around it says that this is all of it
        self.trouble: Failure | None = None

    def write(self, data: bytes) -> bool:
        """Decodes the next piece; False, with nothing done, if not all of it is plain base64."""
        if self.trouble:
            return True
        text = self.carry + data
        whole = len(text) & ~3
        carry = text[whole:]
        decoded = None if self.padded or carry.translate(None, BASE64) else decoded_or_none(memoryview(text)[:whole])
        if decoded is None:
            return False
        self.carry = carry
        self.save(decoded)
        return True

    def write_odd(self, data: bytes) -> None:
        """Decodes a piece with white space or padding in it; any other character is an error."""
        text = data.translate(URL_SAFE, WHITE)
        bare = text.rstrip(b"=")
        odd = bare.translate(None, BASE64) or self.padded and bare
        self.padded = self.padded or len(bare) < len(text)
        if odd and not self.trouble:
            near = f"near byte {self.size} ({chr(odd[0])!r})"
            self.trouble = Failure(UNREADABLE, f"a picture is not base64 {near}")
        elif not self.trouble:
            text = self.carry + bare
            whole = len(text) & ~3
            self.carry = text[whole:]
            self.save(binascii.a2b_base64(text[:whole]))

    def save(self, decoded: bytes) -> None:
        """Appends bytes of the picture itself."""
        try:
            write_all(self.file, decoded)
        except OSError as error:  # the room it took may do for a later, smaller picture
            self.trouble = unwritten(error)
            self.file.close()
            self.temp_files.remove(self.path)
        self.hash.update(decoded)
        self.size += len(decoded)

    def close(self, ended: bool = True) -> None:
        """Ends the picture for now; `ended` if what stands behind it says that it is whole."""
        self.file.close()
        self.ended = ended

    def looks_whole(self) -> bool:
        """Tells whether what has come so far is a whole picture."""
        found = identify(self.path)
        return bool(found and found.whole)

    def reopen(self) -> None:
        """Goes on with a picture whose text was cut into pieces."""
        self.file = open(self.path, "r+b", buffering=0)
        self.file.seek(0, os.SEEK_END)

    def finish(self) -> Picture | None:
        """Decodes what is left and returns what the picture is; None, with the trouble noted, if it is none."""
        rest, self.carry = self.carry, b""
        if len(rest) > 1 and not self.trouble:
            if self.file.closed:
                self.reopen()
            self.save(binascii.a2b_base64(rest + b"A" * (4 - len(rest)))[: len(rest) - 1])
        self.file.close()
        picture = None if self.trouble else identify(self.path)
        if not self.trouble and not picture:
            self.trouble = Failure(UNREADABLE, "a picture is no picture, by its first bytes")
        elif picture and not picture.whole and (not self.ended or len(rest) == 1):  # its text was cut, not the picture
            self.trouble, picture = Failure(UNREADABLE, "a picture is cut short", rule="picture-cut"), None
        return picture


def first_bytes(file: IO[bytes] | None, count: int) -> Iterator[bytes]:
    """Yields the first bytes of a file, in blocks."""
    if file:
        file.seek(0)
    while file and count > 0:
        block = file.read(min(BLOCK, count))
        count -= len(block) or count
        yield block


class KeptReply:
    """The bytes of a reply as they came over the wire, so that nothing that was paid for can be lost.

    They lie in a nameless file of the system's folder for temporary files, since the disk of the outputs may be full;
    where that folder has no room, beside the outputs.
    """

    def __init__(self, folder: str) -> None:
        self.folders = [spare_folder(), folder]
        self.size = 0
        self.file: IO[bytes] | None = None

    def write(self, chunk: bytes) -> None:
        """Appends bytes of the reply; without room for them, the pictures that fit are still saved."""
        import tempfile

        before, self.size = self.size, self.size + len(chunk)
        pending: Iterable[bytes] = [chunk]
        while self.folders:
            try:
                self.file = self.file or tempfile.TemporaryFile(buffering=0, dir=self.folders[0])
                for block in pending:
                    write_all(self.file, block)
                return
            except OSError:
                pending = itertools.chain(first_bytes(self.file, before), [chunk])
                self.file = None
                del self.folders[0]

    def keep(self, target: str, overwrite: bool, temp_files: TempFiles, console: Console) -> str | None:
        """Copies the reply, without the key, to a name that it returns; None if nothing came, or no disk takes it."""
        if not self.file or not self.size:
            return None
        for path in (target, os.path.join(spare_folder(), os.path.basename(target))):
            try:
                with temp_files.create(os.path.dirname(path) or ".") as out:
                    for block in console.cleaned(first_bytes(self.file, self.size)):
                        write_all(out, block)
                return temp_files.place(out.name, path, overwrite and path == target)
            except OSError:
                continue
        return None

    def close(self) -> None:
        """Forgets the bytes."""
        if self.file:
            self.file.close()


# ---------------------------------------------------------------------------------------------------------------------
# 10 Reply: a lifter, then a JSON or event reader on short text -> documents
# ---------------------------------------------------------------------------------------------------------------------

# Bytes go through four small steps: the inflater undoes compression, the lifter takes pictures out and leaves a token
# in place of each, and what is left is short: a reader for JSON or for events cuts it into documents.


class Document(NamedTuple):
    """A JSON document of a reply by its name (see EVENTS); `cut` if the reply ended within it."""

    name: str
    value: Json
    cut: bool = False
    stream: bool = False


# A picture is known by what it is: base64 that begins as that of a picture does, wherever it stands, under any key.
# Before it stands no character of base64, nor what ends a JSON document: no byte of that may be held back.
BEFORE = rb"(?:[^A-Za-z0-9+/=_\\}\]>\r\n\x80-\xff-]|\\[nrt])"
TEXT_OF_IT = rb"(?:[A-Za-z0-9+/=_\s-]|\\[/nrt]|\\u00[0-9A-Fa-f]{2})"
PICTURE = re.compile(
    rb"%s(?=(?:%s)(?:%s{64}|(%s{0,63}(?:\\u?[0-9A-Fa-f]{0,3})?\Z)))" % (BEFORE, PICTURE_HEADS, TEXT_OF_IT, TEXT_OF_IT),
    re.DOTALL,
)
MAYBE_PICTURE = re.compile(BEFORE + rb"[A-Za-z0-9+/\\]{0,40}\Z")
# Behind it stands the end of its string, or of a Markdown link.
END_OF_PICTURE = re.compile(rb"[\"'<>()\[\]{}]|\\(?![/nrtu]|\Z)")
ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|[nrt])")
CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
TOKEN = re.compile(r"<[0-9a-f]{24}:[0-9]+>")


def unescape(data: bytes) -> bytes:
    """Undoes JSON escapes within base64; a character beyond ASCII becomes one that is not base64."""
    data = data.replace(b"\\/", b"/").replace(b"\\n", b"\n")  # those that come by the thousand
    return ESCAPE.sub(lambda match: chr(int(match[1] or b"20", 16)).encode("ascii", "replace"), data)


class Lifter:
    """Takes pictures out of bytes that pass: each goes to disk, and a token stands in its place."""

    def __init__(self, new_picture: Callable[[], Lifted]) -> None:
        self.new_picture = new_picture
        self.mark, self.numbers = os.urandom(12).hex(), itertools.count()
        self.lifted: dict[str, Lifted] = {}  # by token: those that nobody has taken
        self.current: Lifted | None = None
        self.held = b""

    def feed(self, data: bytes, last: bool = False) -> bytes:
        """Takes the next bytes, and returns those that are ready, without their pictures."""
        data, self.held = self.held + data, b""
        text: list[bytes] = []
        while data or self.current and last:
            if self.current:
                data = self._lift(self.current, data, last, text)
                continue
            match = PICTURE.search(data)
            begins = match and match[1] is None  # else there is too little of it to tell
            if not begins and not last:
                match = match or MAYBE_PICTURE.search(data, max(len(data) - 42, 0))
            end = match.end() if match and begins else match.start() if match and not last else len(data)
            text.append(data[:end])
            data = data[end:]
            if not begins:
                self.held = data
                break
            self.current = self.new_picture()
        return b"".join(text)

    def _lift(self, picture: Lifted, data: bytes, last: bool, text: list[bytes]) -> bytes:
        """Gives a picture its next bytes, and returns those behind it."""
        end = data.find(b'"')
        if not picture.write(data if end < 0 else data[:end]):
            found = END_OF_PICTURE.search(data)
            end = found.start() if found else -1
            piece = data if end < 0 else data[:end]
            cut = CUT_ESCAPE.search(piece) if end < 0 and not last else None
            if cut:
                piece, self.held = piece[: cut.start()], cut.group()
            picture.write_odd(unescape(piece))
        rest = data[end:] if end >= 0 else b""
        if rest or last:
            token = f"<{self.mark}:{next(self.numbers)}>"
            picture.close(ended=bool(rest))
            self.lifted[token], self.current = picture, None
            text.append(token.encode() + (b"" if rest else b'"'))
        return rest

    def take(self, text: str) -> Lifted | None:
        """Returns, once, the picture a string's token stands for."""
        match = TOKEN.search(text)
        return self.lifted.pop(match.group(), None) if match else None


MOST_JSON = 4 * MIB  # bytes of a document without its pictures: no reply of this API comes near
DEEPEST = 200  # brackets within brackets: the same
SIGN = re.compile(rb'\\.|["{}\[\]]', re.DOTALL)
LIST_NAME = re.compile(rb'"(%s)"\s*:\s*\[\Z' % "|".join(LISTS).encode())
UNFINISHED = re.compile(rb"[^\s\[\]{}:,\"]+\Z")  # a word or a number that may go on


def parse_cut(text: bytes, closers: bytes) -> Any:
    """Parses the start of a JSON text up to its last whole value; None if there is none."""
    text = UNFINISHED.sub(b"", text).rstrip(b" \t\r\n,")
    found = (parse_json(text + rest + closers) for rest in (b"", b"null", b":null"))  # a key may lack its value
    return next((value for value in found if value is not None), None)


class JsonReader:
    """Finds where the objects of JSON text end, and yields each as a document as soon as it is whole.

    Outside of a stream, so is each element of a top-level list (see LISTS), so that a picture is saved the moment its
    last byte arrives; null stands in its place from then on.
    """

    def __init__(self, lifter: Lifter, stream: bool) -> None:
        self.lifter, self.stream = lifter, stream
        self.event = ""  # the name that an event's line gives the document
        self.too_much = False
        self.reset()

    def reset(self) -> None:
        """Forgets the document that was begun."""
        self.text, self.held, self.quoted = bytearray(), b"", False
        self.string_at = 0  # where the last string began
        self.open: list[int] = []  # where the open brackets stand
        self.list = ""  # the name of the list of LISTS that is open

    def feed(self, data: bytes, last: bool = False) -> Iterator[Document]:
        """Takes the next bytes and yields the documents that they complete."""
        data, self.held, at = self.held + self.lifter.feed(data, last), b"", 0
        for match in SIGN.finditer(data):
            sign = match.group()
            if sign == b'"':
                self.quoted = not self.quoted
                self.string_at = len(self.text) + match.start() - at if self.quoted else 0
            elif not self.quoted and sign in b"{}[]":
                self.text += data[at : match.end()]
                at = match.end()
                yield from self._opened() if sign in b"{[" else self._closed()
        rest = data[at:]
        if (len(rest) - len(rest.rstrip(b"\\"))) % 2:
            rest, self.held = rest[:-1], b"\\"
        self.text += rest
        if len(self.text) > MOST_JSON:
            yield from self._give_up(f"more than {amount(MOST_JSON)} of JSON without a picture")

    def _opened(self) -> Iterator[Document]:
        self.open.append(len(self.text) - 1)
        if len(self.open) > DEEPEST:
            yield from self._give_up(f"more than {DEEPEST} brackets within brackets")
        elif len(self.open) == 2 and not self.stream:
            found = LIST_NAME.search(self.text, max(len(self.text) - 64, 0))
            self.list = found[1].decode() if found else ""

    def _closed(self) -> Iterator[Document]:
        start = self.open.pop() if self.open else 0
        if len(self.open) == 2 and self.list:
            value = parse_json(self.text[start:])
            if isinstance(value, dict):
                self.text[start:] = b"null"
                yield Document(f"{self.list}[]", value)
        elif len(self.open) == 1:
            self.list = ""
        elif not self.open:
            yield from self._document()

    def _give_up(self, why: str) -> Iterator[Document]:
        self.reset()
        if not self.too_much:
            yield Document("too much", {"text": why})
        self.too_much = True

    def _document(self) -> Iterator[Document]:
        """Yields the document that has just ended, or was cut: by its type, the kind of its object, or its event."""
        text, cut, too_much = bytes(self.text), bool(self.open), self.too_much
        closers = bytes(text[at] + 2 for at in reversed(self.open))  # } and ] stand two behind { and [ in ASCII
        text = (text[: self.string_at] if self.quoted else text).strip(b" \t\r\n,")
        self.reset()
        self.too_much = False
        if too_much or not text:
            return
        value = parse_cut(text, closers) if cut else parse_json(text)
        if isinstance(value, dict):
            names = ("reply", self.event, value.get("object"), value.get("type"))
            name = next(name for name in reversed(names) if name and isinstance(name, str))
            yield Document(name, value, cut, self.stream or isinstance(names[-1], str))
        elif text == b"[DONE]":
            yield Document("done", {})
        else:
            yield Document("garbage", {"text": text[:200].decode("utf-8", "replace")}, cut)
        self.event = ""

    def finish(self) -> Iterator[Document]:
        """Ends what was begun, and yields what of it was whole."""
        yield from self.feed(b"", last=True)
        yield from self._document()


LONGEST_NAME = 1000  # characters of a line that is no data: what is longer names no event


class SseReader:
    """Reads server-sent events that come in pieces.

    An event ends when its data is a complete JSON text, so a missing blank line, event name or last newline is no
    matter; another event, or a line that is no data, ends one that is not complete.
    """

    # https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    def __init__(self, lifter: Lifter) -> None:
        self.json = JsonReader(lifter, stream=True)
        self.line, self.in_data, self.after_cr = b"", False, False

    def feed(self, data: bytes) -> Iterator[Document]:
        """Takes the next bytes and yields the events that they complete."""
        if self.after_cr and data[:1] == b"\n":  # CRLF cut in two: its empty line would end an event of several lines
            data = data[1:]
        self.after_cr = data[-1:] == b"\r" if data else self.after_cr
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            yield from self._piece(line, ended=True)
            yield from self._end_line()
        yield from self._piece(rest, ended=False)

    def _piece(self, piece: bytes, ended: bool) -> Iterator[Document]:
        if not self.in_data:
            if len(self.line) < LONGEST_NAME:
                self.line += piece
            # What goes on within a string decides whether this line belongs to it: two characters must be here.
            if not self.line.startswith(b"data:") or len(self.line) < 7 and not ended:
                return
            self.in_data, piece = True, self.line[6 if self.line[5:6] == b" " else 5 :]
            if self.json.quoted and piece.lstrip()[:1] == b"{":
                yield from self.json.finish()
        yield from self.json.feed(piece)

    def _end_line(self) -> Iterator[Document]:
        line, self.line = self.line, b""
        in_data, self.in_data = self.in_data, False
        # An event that was not complete when the next one began, or data that is no JSON.
        if not (self.json.open if in_data else line.startswith(b":")):
            yield from self.json.finish()
        if line.startswith(b"event:"):
            self.json.event = line[6:].strip().decode("utf-8", "replace")

    def finish(self) -> Iterator[Document]:
        """Yields the event the stream ended with, or within."""
        yield from self._piece(b"", ended=True)
        yield from self.json.finish()


class ReplyReader:
    """Tells JSON from server-sent events by the first bytes, whatever the header says, and yields the documents."""

    def __init__(self, new_picture: Callable[[], Lifted], encoding: str = "") -> None:
        self.inflater, self.lifter = Inflater(encoding), Lifter(new_picture)
        self.reader: JsonReader | SseReader | None = None
        self.start = b""

    def feed(self, data: bytes) -> Iterator[Document]:
        """Takes the next bytes of the reply."""
        for block in self.inflater.feed(data):
            yield from self._read(block)

    def _read(self, data: bytes, last: bool = False) -> Iterator[Document]:
        if not self.reader:
            self.start = data = (self.start + data).lstrip(b"\xef\xbb\xbf \t\r\n")
            if len(data) < 8 and not last:
                return
            if data[:1] in (b"{", b"["):
                self.reader = JsonReader(self.lifter, stream=False)
            elif re.match(rb"(data|event|id|retry)?:|(data|event|id|retry)\s*$", data):
                self.reader = SseReader(self.lifter)
            else:
                self.start = data[:4096]
                return
        yield from self.reader.feed(data)

    def finish(self) -> Iterator[Document]:
        """Ends the reply; a garbage document holds the start of one that is neither JSON nor events."""
        yield from self._read(self.inflater.finish(), last=True)
        if self.reader:
            yield from self.reader.finish()
        elif self.start:
            yield Document("garbage", {"text": self.start.decode("utf-8", "replace")})


# ---------------------------------------------------------------------------------------------------------------------
# 11 Events: documents of any dialect -> their meaning
# ---------------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a document says: a picture (final or partial), a text or a piece of it, an error, or facts.

    `key` tells one picture of a response from another: the id of its item, or `#` and its place where it has none.
    """

    kind: str
    body: Json = {}
    key: str = ""
    text: str = ""


def objects_in(value: Any) -> list[Json]:
    """Returns the objects of a list in a reply, or none if it is no list."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def message_parts(content: Any) -> list[Json]:
    """Returns the parts of a message, which may be a plain text."""
    return objects_in(content) if isinstance(content, list) else [{"text": content}]


def item_key(holder: Json, item: Json) -> str:
    """Returns the key of a response's item."""
    found = item.get("id") or holder.get("item_id")
    return str(found) if found else f"#{holder.get('output_index', '')}"


def picture_text(body: Json) -> str:
    """Returns the text that holds the picture of an object, or nothing."""
    return next((body[key] for key in PICTURE_KEYS if isinstance(body.get(key), str) and body[key]), "")


def item_events(item: Json, key: str) -> Iterator[Event]:
    """Reads an output item of a response: a picture by its non-empty result, whatever its status says, or a message."""
    if item.get("type") == "message":
        said = [part.get("refusal") or part.get("text") for part in message_parts(item.get("content"))]
        texts = [text for text in said if isinstance(text, str)]
        if texts:
            yield Event("text", key=key, text="\n".join(texts))
    elif item.get("type", PICTURE_ITEM) != PICTURE_ITEM:
        return  # another tool, whose error says nothing about the picture
    elif picture_text(item):
        yield Event("final", item, key)
    elif isinstance(item.get("error"), dict):
        yield Event("error", item["error"])


def response_events(response: Json) -> Iterator[Event]:
    """Reads a response object, or what is left of any JSON reply: its facts, its error, and items not seen before."""
    yield Event("facts", response)
    error = response.get("error")
    if error:
        yield Event("error", error if isinstance(error, dict) else {"message": str(error)})
    for name in LISTS:
        for index, element in enumerate(objects_in(response.get(name))):
            for event in read_document(Document(f"{name}[]", element)):
                yield event._replace(key=f"#{index}" if event.key == "#" else event.key)


def chat_events(choice: Json) -> Iterator[Event]:
    """Reads a chat message, whole or a delta: its text, in which pictures may stand as Markdown, and its pictures."""
    message = as_object(choice.get("message") or choice.get("delta"))
    for part in message_parts(message.get("content")) + objects_in(message.get("images")):
        if isinstance(part.get("text"), str):
            yield Event("chat", text=part["text"])
        else:
            holder = part.get("image_url", part)
            holder = {"url": holder} if isinstance(holder, str) else as_object(holder)
            if picture_text(holder):
                yield Event("final", holder)
    if isinstance(message.get("refusal"), str):
        yield Event("text", text=message["refusal"])


def read_document(document: Document) -> Iterator[Event]:
    """Yields what a document means by its row of EVENTS."""
    row = next((row for row in EVENTS if re.fullmatch(row.pattern, document.name)), None)
    if not row and not document.stream:
        row = REPLY_ROW
    value = document.value
    body = as_object(value.get(row.key)) if row and row.key else value
    error = value.get("error")
    if error and (not row or row.meaning not in ("item", "response")):
        yield Event("error", error if isinstance(error, dict) else {"message": str(error)})
    elif not row:
        yield Event("unknown", value, text=document.name)
    elif row.meaning == "response":
        if picture_text(body or value):  # a picture that nothing names: it may be a preview if it came in a stream
            yield Event("unknown" if document.stream else "final", body or value, text=document.name)
        yield from response_events(body or value)
    elif row.meaning == "item":
        yield from item_events(body or value, item_key(value, body or value))
    elif row.meaning == "chat":
        yield from chat_events(value)
    elif row.meaning == "chunk":
        yield Event("facts", value)
        for choice in objects_in(value.get("choices")):
            yield from chat_events(choice)
    elif row.meaning == "text":
        if isinstance(value.get("delta"), str):
            yield Event("delta", text=value["delta"])
    elif row.meaning == "error":
        yield Event("error", value)
    elif picture_text(value):
        yield Event("facts", value)
        # Some gateways give every element of `data` the id of the call.
        yield Event(row.meaning, value, "" if document.name == "data[]" else item_key(value, value))


# ---------------------------------------------------------------------------------------------------------------------
# 12 Call: one object for one call: receive, save, keep, poll, resume, conclude
# ---------------------------------------------------------------------------------------------------------------------


class Result:
    """What one call has come to: all that is reported of it."""

    def __init__(self, route: str, model: str | None = None) -> None:
        self.route, self.model = route, model
        self.images: list[Json] = []
        self.partials: list[Json] = []
        self.unclaimed: list[Json] = []
        self.texts: dict[str, str] = {}
        self.deltas: list[str] = []
        self.facts: Json = {}
        self.troubles: list[Failure] = []
        self.tries = Tries()
        self.saved_response: str | None = None
        self.session_file: str | None = None
        self.mask: str | None = None
        self.reported = False  # the command has printed its own result

    @property
    def text(self) -> str | None:
        """Returns the text of the answer: its messages, or else the pieces that arrived of them."""
        text = "\n".join(self.texts.values()) or "".join(self.deltas)
        return TOKEN.sub("<base64 of a picture>", text) or None


def program() -> str:
    """Returns how this program was called, for commands that can be pasted."""
    name = os.path.basename(sys.argv[0])
    if name == "gpt_image.py":
        return f"{'python' if os.name == 'nt' else 'python3'} {shell_quoted(sys.argv[0])}"
    return "gpt-image" if name.startswith("gpt-image") else "gpt_image.py"


def bug_failure() -> Failure:
    """Returns the failure of a bug, with the traceback, which the console redacts."""
    import traceback

    return Failure(BUG, "a bug of this program:\n" + traceback.format_exc(), "please report it", rule="bug")


def garbage_failure(text: str) -> Failure:
    """Returns the failure of a reply that is neither JSON nor events, with its title if it is a page."""
    title = page_title(text)
    if title or text.lstrip().lower().startswith(("<!doctype", "<html")):
        words = f"the reply is an HTML page titled {title!r}" if title else "the reply is an HTML page"
        hint = "is the base URL right? It usually ends in /v1"
        return Failure(UNREADABLE, words, hint, rule="reply-page", may_be_billed=False)
    return Failure(UNREADABLE, f"the reply is neither JSON nor events; it begins {text[:60]!r}", rule="reply-garbage")


def quoted_id(response_id: str) -> str:
    """Returns an id as one part of a path: it comes from the server, and `..` would lead elsewhere."""
    from urllib.parse import quote

    name = quote(response_id, safe="", errors="replace")
    return name.replace(".", "%2E") if not name.strip(".") else name


MARKDOWN_LINK = re.compile(r"!\[[^\[\]]{0,500}\]\((https?://[^()\s]{1,4000})[^()]{0,500}\)")
MARKDOWN_REST = re.compile(r"!\[[^\[\]]{0,500}\]\((?:data:[^,()]{0,80},)?<[0-9a-f]{24}:[0-9]+>[^()]{0,500}\)?")
MOST_TROUBLES = 20  # more of them are not noted

# The background mode of /responses: polls, and streams that are taken up again.
POLL_FIRST, POLL_MOST, POLL_GROWTH = 2.0, 10.0, 1.2  # seconds, seconds, factor
LONGEST_POLL = 3600.0  # seconds until a background response is left to `resume`
LONGEST_LOOK = 30.0  # seconds to wait for a response whose reply was cut


class Call:
    """One call from its first byte to its result; two of them share the console and nothing else."""

    def __init__(self, context: Context, settings: Settings, names: OutputNames, result: Result) -> None:
        self.context, self.settings, self.names, self.result = context, settings, names, result
        self.shown: Callable[[str], None] = lambda path: None
        if settings.get("preview"):
            self.shown = Preview(context.console, context.environ).show
        self.finals = 0  # the largest number of a final picture so far
        self.numbers: dict[str, int] = {}  # number of each picture that has a key
        self.done: list[tuple[str, str]] = []  # key and hash of each final picture
        self.sequence = -1  # the last event's sequence_number, from 0
        self.kept = KeptReply(names.folder)
        self.begin()

    def begin(self, encoding: str = "") -> None:
        """Makes ready for the first reply, or for another one that goes on with the same pictures."""
        self.cut, self.understood, self.over = False, False, False
        self.reader = ReplyReader(self.new_picture, encoding)
        self.chat = Lifter(self.new_picture)
        self.words: list[str] = []  # of a chat message

    def new_picture(self) -> Lifted:
        """Opens a temporary file for a picture, in the folder where it will stay."""
        return Lifted(self.context.temp_files, self.names.folder)

    # Receive: bytes -> documents -> what they mean

    def send(self, request: Request) -> Failure | None:
        """Sends the request and receives the reply; returns how that failed, or raises a Failure if it was refused."""
        try:
            reply = exchange(self.context, self.settings, request, self.result.tries)
        except Failure:
            self.kept.write(self.result.tries.refusal)
            self.keep(always=False)
            raise
        return self.receive(reply)

    def receive(self, reply: Reply) -> Failure | None:
        """Reads a reply to its end and saves each picture as it is complete; returns how it failed."""
        kept, failure = KeptReply(self.names.folder), None
        self.begin(reply.headers.get("content-encoding", ""))
        try:
            for chunk in iter(reply.read, b""):
                kept.write(chunk)
                failure = failure or self._safely(self.reader.feed(chunk))
                if self.over or self.context.stop.requested:
                    break
        except KeyboardInterrupt:
            self.context.stop.requested = True
        reply.close()
        late = self._safely(self._last_documents())
        failure = failure or late
        if kept.size > self.kept.size:  # of many polls, the reply that says most is kept
            kept, self.kept = self.kept, kept
        kept.close()
        return self._how_it_ended(reply, failure)

    def _how_it_ended(self, reply: Reply, failure: Failure | None) -> Failure | None:
        """Returns the failure of a reply that was not read to its end."""
        if self.context.stop.requested:
            return Failure(INTERRUPTED, "interrupted", may_be_billed=True)
        if failure or not (reply.fault or self.cut or self.reader.inflater.trouble):
            return failure
        if not reply.fault and not self.understood:
            words = self.reader.inflater.trouble or "the reply ended before anything in it could be understood"
            return Failure(UNREADABLE, words, may_be_billed=True)
        words = reply.fault.message if reply.fault else self.reader.inflater.trouble or "the reply ended in the middle"
        return Failure(NETWORK, words, may_be_billed=True)

    def _safely(self, documents: Iterator[Document]) -> Failure | None:
        """Acts on documents; a full disk or a bug must not lose what was paid for, so that failure is returned."""
        try:
            for document in documents:
                self.add(document)
        except OSError as error:  # no new file: keep on reading, so that at least the reply is kept
            return unwritten(error)
        except Exception:
            return bug_failure()
        return None

    def _last_documents(self) -> Iterator[Document]:
        """Yields what a reply ended with, then the rest of a chat message."""
        yield from self.reader.finish()
        self.say("", last=True)
        words = "".join(self.words)
        for url in MARKDOWN_LINK.findall(words):
            self.final(Event("final", {"url": url}))
        words = MARKDOWN_REST.sub("", MARKDOWN_LINK.sub("", words)).strip()
        if words:
            self.result.texts["chat"] = words

    def add(self, document: Document) -> None:
        """Acts on a document."""
        self.cut = self.cut or document.cut
        if not document.cut:
            self.sequence = max(self.sequence, number_of(document.value.get("sequence_number"), -1))
        if document.name == "garbage":
            self.trouble(garbage_failure(document.value["text"]))
        elif document.name == "too much":
            self.trouble(Failure(UNREADABLE, f"the reply holds {document.value['text']}", rule="reply-too-long"))
        elif document.name == "done":
            self.over = True
        else:
            for event in read_document(document):
                self.understood = self.understood or event.kind != "facts" or bool(set(event.body) - set(LISTS))
                self.act(event)

    def act(self, event: Event) -> None:
        """Acts on what a document means."""
        result = self.result
        if event.kind == "final":
            self.final(event)
        elif event.kind == "partial":
            self.partial(event)
        elif event.kind == "text":
            result.texts[event.key] = event.text
        elif event.kind == "chat":
            self.say(event.text)
        elif event.kind == "delta":
            result.deltas.append(event.text)
        elif event.kind == "facts":
            result.facts.update({k: v for k, v in event.body.items() if v is not None and k not in LISTS})
            self.write_session()
        elif event.kind == "error":
            self.trouble(refusal_of(event.body))
        elif picture_text(event.body):
            self.context.console.warn(f"an event named {event.text!r} holds a picture; it is saved as a preview")
            self.partial(event)

    def trouble(self, failure: Failure) -> None:
        """Notes what is wrong with a reply."""
        if len(self.result.troubles) < MOST_TROUBLES:
            self.result.troubles.append(failure)

    def say(self, text: str, last: bool = False) -> None:
        """Takes a piece of chat text, in which pictures may stand as Markdown, and saves those that end in it."""
        begun = self._begun_picture(text)
        if begun:
            text = text[: -len(begun)]
        said = self.chat.feed(text.encode("utf-8", "surrogatepass"), last or bool(begun)).decode(
            "utf-8", "surrogatepass"
        )
        self.words.append(said)
        for token in TOKEN.findall(said):
            lifted = self.chat.take(token) or self.reader.lifter.take(token)
            if lifted:
                self.save_final(lifted, Event("final"))
        if begun:  # the pieces that follow are the rest of it
            self.chat.current = self.reader.lifter.take(begun)

    def _begun_picture(self, text: str) -> str:
        """Returns the token at the end of a piece of chat text, if its picture is not whole yet."""
        token = TOKEN.search(text, max(len(text) - 60, 0))
        lifted = self.reader.lifter.lifted.get(token.group()) if token and token.end() == len(text) else None
        if not token or not lifted or lifted.looks_whole():
            return ""
        lifted.reopen()
        return token.group()

    # Save: pictures -> files

    def number(self, key: str) -> int:
        """Returns the number of a picture, from 1: by its key if it has one, else the next."""
        if key in ("", "#"):
            return self.finals + 1
        if key not in self.numbers:
            self.numbers[key] = max([self.finals, *self.numbers.values()]) + 1
        return self.numbers[key]

    def claimed(self, body: Json) -> Lifted:
        """Returns the picture of an object, from wherever it stands: lifted already, inline, or behind a URL."""
        text = picture_text(body)
        found = self.reader.lifter.take(text)
        if found:
            if not text.rstrip().endswith(">"):
                found.trouble = found.trouble or Failure(UNREADABLE, "a picture is not base64 to its end")
            return found
        lifted = self.new_picture()
        if re.match(r"(?!data:)[a-z][a-z0-9+.-]*:", text, re.IGNORECASE):
            self.context.progress.phase("fetching", index=self.finals + 1)
            lifted.trouble = self.fetch(text, lifted.save) or lifted.trouble
        else:
            lifted.write_odd(re.sub(r"^data:[^,]{0,200},", "", text, flags=re.IGNORECASE).encode("utf-8", "replace"))
        lifted.close()
        return lifted

    def fetch(self, url: str, save: Callable[[bytes], None]) -> Failure | None:
        """Hands on what a URL holds, fetched without the key, over http or https only; returns why it cannot."""
        if split_url(url).scheme not in ("http", "https"):
            return Failure(UNREADABLE, f"the reply names its picture by {url[:60]!r}, which is no http or https URL")
        if self.result.route == "extract":
            return Failure(UNREADABLE, f"the reply holds a URL and no picture: {url[:500]}", "fetch it yourself")
        request = Request("GET", url, [("Accept", "image/*"), ("User-Agent", f"gpt-image/{__version__}")])
        try:
            reply = exchange(self.context, self.settings, request)
        except Failure as failure:
            return Failure(NETWORK, f"the picture at {url[:200]} cannot be fetched: {failure.message}", failure.hint)
        for chunk in iter(reply.read, b""):
            save(chunk)
        reply.close()
        return Failure(NETWORK, f"{url[:200]}: {reply.fault.message}") if reply.fault else None

    def final(self, event: Event) -> None:
        """Saves a finished picture; the same bytes under the same key, or once with an id and once without, are one."""
        lifted = self.claimed(event.body)
        picture, digest = lifted.finish(), lifted.hash.hexdigest()
        for key, other in self.done if event.key and picture else ():
            if digest == other and (key == event.key or key[:1] == "#" or event.key[:1] == "#"):
                return
        self.save_final(lifted, event)

    def save_final(self, lifted: Lifted, event: Event) -> None:
        """Gives a finished picture its name, or notes why it has none."""
        key, result = event.key, self.result
        used = key in [other for other, _ in self.done]
        number = self.number("" if used else key)
        self.finals = max(self.finals + (key in ("", "#")), number)
        row = self._saved(lifted, self.names.final(number), number, number <= self.names.expected)
        if row is None:
            return
        self.done.append((key, row["sha256"]))
        prompt = event.body.get("revised_prompt")
        result.images.append({**row, "revised_prompt": prompt if isinstance(prompt, str) else None})
        size, got = self.settings.get("size"), f"{row['width']}x{row['height']}"
        if size and size != "auto" and row["width"] and got != size:  # some gateways ignore the size
            self.context.console.warn(f"{row['path']}: {size} was asked for, {got} came")
        kind = f"{row['format']} {got}" if row["width"] else row["format"]
        self.context.progress.phase("saved", **{**row, "kind": kind, "size": amount(row["bytes"])})
        self.shown(row["path"])

    def partial(self, event: Event) -> None:
        """Saves a preview as it arrives; one that is broken is no failure, since it was only a preview."""
        index, number = self.number(event.key), number_of(event.body.get("partial_image_index")) + 1
        asked = self.settings.get("partial-images") or 0
        foreseen = index <= self.names.expected and number <= asked
        troubles = len(self.result.troubles)
        row = self._saved(self.claimed(event.body), self.names.partial(index, number), index, foreseen)
        for trouble in self.result.troubles[troubles:]:
            self.context.console.warn(f"preview {number}: {trouble.message}")
        del self.result.troubles[troubles:]
        if row:
            self.result.partials.append({"path": row["path"], "index": index, "partial": number, **row})
            self.context.progress.phase("preview", **{**row, "partial": number, "asked": asked or number})
            self.shown(row["path"])

    def _saved(self, lifted: Lifted, name: str, index: int, foreseen: bool) -> Json | None:
        """Gives a picture's file its name, with the suffix of what it is, and returns its row of the result."""
        picture, console = lifted.finish(), self.context.console
        if picture is None:
            self.trouble(lifted.trouble or Failure(UNREADABLE, f"picture {index} is no picture, by its first bytes"))
            return None
        stem, suffix = os.path.splitext(name)
        true_name = name
        if FORMAT_OF_SUFFIX.get(suffix.lower()) != picture.format:
            true_name = stem + suffix_of(picture.format)
            console.warn(f"{name}: the picture is a {picture.format}, so it is saved with that suffix")
        overwrite = self.names.overwrite and foreseen and true_name == name
        try:
            os.makedirs(os.path.dirname(true_name) or ".", exist_ok=True)
            path = self.context.temp_files.place(lifted.path, true_name, overwrite)
        except OSError as error:
            self.trouble(unwritten(error))
            return None
        if path != true_name:
            console.warn(f"{true_name} exists, so the picture is saved as {path}")
        if not picture.whole:
            console.warn(f"{path}: the {picture.format} is cut short")
        return {"path": path, "index": index, "format": picture.format, "width": picture.width or None,
                "height": picture.height or None, "bytes": lifted.size, "sha256": lifted.hash.hexdigest(),
                "whole": picture.whole}  # fmt: skip

    # Poll and resume: responses that run in the background, or whose reply was cut

    def resume_command(self) -> str:
        """Returns the command that collects the response later."""
        return f"{program()} resume {shell_quoted(self.result.session_file or str(self.result.facts.get('id')))}"

    def write_session(self) -> None:
        """Writes the session file of a background response as soon as its id is known, before the first poll."""
        result, settings, console = self.result, self.settings, self.context.console
        response_id = result.facts.get("id")
        if result.session_file or not settings.get("background-mode") or not isinstance(response_id, str):
            return
        session = {
            "gpt_image_session": 1, "response_id": response_id, "origin": origin_of(settings.get("base-url")),
            "model": result.model, "output": os.path.basename(self.names.stem) + self.names.suffix,
            "stream": bool(settings.get("stream")), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        target = self.names.beside(".session.json")
        try:
            with self.context.temp_files.create(os.path.dirname(target) or ".") as file:
                write_all(file, console.clean(json.dumps(session, indent=2) + "\n").encode())
            result.session_file = self.context.temp_files.place(file.name, target)
        except OSError as error:
            console.warn(f"{target}: {error.strerror}; the response is {response_id}")
            return
        console.tell(f"queued; if this is interrupted: {self.resume_command()}")

    def forget_session(self) -> None:
        """Removes the session file of a response that has ended with every picture saved."""
        result = self.result
        if result.session_file and (not result.troubles or result.facts.get("status") in ENDED[1:]):
            try:
                os.unlink(result.session_file)
                result.session_file = None
            except OSError:
                pass  # it stays, and the result names it

    def ask(self, query: str = "", cancel: bool = False) -> Reply:
        """Asks for a stored response, or cancels it."""
        path = f"/responses/{quoted_id(str(self.result.facts['id']))}" + "/cancel" * cancel
        body = JsonHoles().body({}) if cancel else None
        method, url = "POST" if cancel else "GET", api_url(self.settings, path, query)
        request = Request(method, url, api_headers(self.settings, body), body)
        return exchange(self.context, self.settings, request)

    def read_again(self) -> Failure | None:
        """Reads the response anew: a background stream from where it was cut, any other whole."""
        live = self.settings.get("stream") and self.settings.get("background-mode") and self.sequence >= 0
        reply = self.ask(f"stream=true&starting_after={self.sequence}" if live else "")
        self.result.troubles.clear()
        return self.receive(reply)

    def settle(self, failure: Failure | None) -> Failure | None:
        """Waits for a response that runs in the background, or looks up one whose reply was cut before giving up."""
        facts, background = self.result.facts, bool(self.settings.get("background-mode"))
        # A proxy whose own connection was cut says that the response failed, though it goes on: one look is free.
        doubted = background and self.settings.get("stream") and facts.get("status") == "failed" and not failure
        self.sequence = -1 if doubted else self.sequence
        cut = doubted or failure is not None and failure.exit == NETWORK
        stored = background or cut and self.settings.get("store") is not False
        if not isinstance(facts.get("id"), str) or not stored:
            return failure
        try:
            ended = self._wait(failure, cut)
        except Failure as error:
            words = f"the response is still running, or cannot be reached ({error.message})"
            ended = Failure(RUNNING, words, may_be_billed=True)
        except KeyboardInterrupt:
            ended = Failure(INTERRUPTED, "interrupted while waiting", may_be_billed=True)
        if ended and ended.exit in (RUNNING, INTERRUPTED) and facts.get("status") not in ENDED:
            ended.hint = f"collect it later: {self.resume_command()}"
        if background and not ended:
            self.forget_session()
        return ended if background or not ended or ended.exit == INTERRUPTED else failure

    def _wait(self, failure: Failure | None, cut: bool) -> Failure | None:
        """Asks for a response until it has ended, or for as long as is sensible."""
        facts, background = self.result.facts, self.settings.get("background-mode")
        limit, waited, wait = LONGEST_POLL if background else LONGEST_LOOK, 0.0, 0.0 if cut else POLL_FIRST
        while cut or not failure and facts.get("status") in (None, *WORKING):
            if waited > limit:
                return Failure(RUNNING, "the response is still running", may_be_billed=True)
            if facts.get("status") in WORKING:
                self.context.progress.phase("polling", status=facts["status"])
            self.context.sleep(wait)
            waited, wait = waited + wait, min(max(wait * POLL_GROWTH, POLL_FIRST), POLL_MOST)
            failure = self.read_again()
            cut = failure is not None and failure.exit == NETWORK
            if cut and not background:
                break
        return failure

    # Conclude: was everything there that was asked for, and what is kept if not

    def keep(self, always: bool) -> None:
        """Keeps the reply where --save-response says, or beside the outputs if it must be kept always."""
        path = self.settings.get("save-response")
        if path or always:
            target, overwrite = path or self.names.beside(".reply"), bool(path and self.names.overwrite)
            temp_files, console = self.context.temp_files, self.context.console
            self.result.saved_response = self.kept.keep(target, overwrite, temp_files, console)
        self.kept.close()

    def conclude(self, failure: Failure | None, wanted: int) -> int:
        """Ends the call: success, or the failure with what was received kept."""
        result, console = self.result, self.context.console
        failure = self._judged(failure, wanted)
        queued = result.session_file and result.facts.get("status") not in ENDED  # its reply is of no use
        self.keep(always=bool(failure and not queued))
        if failure and queued:
            failure.details["recovery"] = self.resume_command()
        elif failure and result.saved_response:
            output = shell_quoted(self.names.beside("-recovered" + self.names.suffix))
            command = f"{program()} extract {shell_quoted(result.saved_response)} --output {output}"
            failure.details["recovery"] = command
            console.say(f"what was received is kept; to take the pictures out of it: {command}")
        if failure:
            raise failure
        if result.text and not result.images:
            console.warn("the model answered in words only")
        return OK

    def _judged(self, failure: Failure | None, wanted: int) -> Failure | None:
        """Returns why a reply is not what was asked for, or None if every picture is on disk."""
        result = self.result
        whole = sum(row["whole"] for row in result.images)
        came, enough = f"{whole} of {plural(wanted, 'picture')}", whole >= wanted
        if failure and failure.exit == NETWORK and enough and wanted:
            failure.hint = "every picture asked for is on disk: do not call again"
        troubles = [found for found in (failure, *result.troubles) if found]
        troubles = [found for found in troubles if not (enough and found.details.get("rule") == "reply-garbage")]
        if troubles:
            return self._with_problems(troubles, "" if enough else f" ({came} saved)")
        if enough:
            return None
        status, reason = result.facts.get("status"), as_object(result.facts.get("incomplete_details")).get("reason")
        words = f"the response is {status}" if status in ENDED[1:] else f"the reply holds {came}"
        words += f" ({reason})" if reason else ""
        hint = "the model answered in words; say in the prompt that you want a picture" if result.text else None
        return Failure(UNREADABLE, words if self.kept.size else "the reply is empty", hint, may_be_billed=True)

    def _with_problems(self, troubles: list[Failure], came: str) -> Failure:
        """Returns the first of several troubles, with all of them as its problems."""
        first = troubles[0]
        if first.exit in (UNREADABLE, OUTPUT, NETWORK):
            first.message += came
        if first.exit in (UNREADABLE, OUTPUT, NETWORK, BUG):
            first.details.setdefault("may_be_billed", True)
        if len(troubles) > 1:
            rows = [
                {"rule": found.details.get("rule"), "message": found.message, "hint": found.hint} for found in troubles
            ]
            first.details["problems"] = rows
        return first


# ---------------------------------------------------------------------------------------------------------------------
# 13 Commands: one function for each subcommand
# ---------------------------------------------------------------------------------------------------------------------


def gather_texts(settings: Settings, positional: str | None, stdin: IO[str]) -> tuple[list[str], list[str]]:
    """Returns the pieces of the prompt and the ways it was given."""
    given = {"PROMPT": positional, "--prompt": settings.get("prompt"), "--prompt-file": settings.get("prompt-file"),
             "--input-text": settings.get("input-text")}  # fmt: skip
    given_by = [way for way, value in given.items() if value is not None]
    if given_by != ["--prompt-file"]:
        texts = [value for value in given.values() if value is not None][:1]
        return (texts[0] if texts and isinstance(texts[0], list) else texts), given_by
    path = given["--prompt-file"]
    try:
        text = stdin.read().lstrip("\ufeff") if path == "-" else read_text(path)
    except (ValueError, OSError) as error:
        raise Failure(USAGE, f"--prompt-file {path}: {error}", "check the path", rule="prompt-file") from error
    return [text.rstrip("\r\n")], given_by


def examine_file(source: InputPicture) -> InputPicture:
    """Looks at an input file by its bytes."""
    try:
        state = os.stat(source.text)
        if not stat.S_ISREG(state.st_mode):
            return source._replace(trouble="not a regular file")
        return source._replace(size=state.st_size, picture=identify(source.text))
    except (OSError, ValueError) as error:
        if re.match(r"[a-z][a-z0-9+.-]+://", source.text, re.IGNORECASE):
            return source._replace(kind="url", trouble="only http and https URLs can be fetched")
        return source._replace(trouble=str(getattr(error, "strerror", None) or error))


def examine_data(source: InputPicture) -> InputPicture:
    """Looks at an input given as a data: URL."""
    start, _, data = source.text.partition(",")
    source = source._replace(shown=start + ",…")
    if not re.fullmatch(r"data:image/[\w.+-]+;base64", start, re.IGNORECASE):
        return source._replace(trouble="expected data:image/…;base64,…")
    try:
        raw = binascii.a2b_base64(data.encode())
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    if data and not (raw and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", data)):
        return source._replace(trouble="what stands behind the comma is not base64")
    return source._replace(size=len(raw), picture=identify_file(io.BytesIO(raw)))


def examine(role: str, label: str, text: str, kind: str) -> InputPicture:
    """Returns what is known of an input picture: a file is looked at, a URL or an id is taken as it is."""
    guess = re.match(r"(file_id:)|(https?://)|(data:)", text, re.IGNORECASE)
    if not kind:
        kind = {1: "file_id", 2: "url", 3: "data"}.get(guess.lastindex or 0, "file") if guess else "file"
        kind = "auto" if role == "mask" and text == "auto" else kind
    text = re.sub("^file_id:", "", text) if kind == "file_id" else text
    label = label if len(label) < 120 else label[:100] + "…"
    source = InputPicture(role, label, kind, text, os.path.normpath(text) if kind == "file" else text)
    if kind == "file":
        return examine_file(source)
    if kind == "data":
        return examine_data(source)
    web = split_url(text)
    if kind == "url" and (web.scheme not in ("http", "https") or not web.hostname):
        return source._replace(trouble="not an http or https URL")
    bad = re.search(r"[\x00-\x20\x7f]", text) or not text
    return source._replace(trouble="blank, or with control characters") if bad and kind != "auto" else source


def gather_sources(settings: Settings) -> list[InputPicture]:
    """Returns the input pictures of a call, in the order of their options."""
    sources = []
    for name, row in options_of(settings.command).items():
        role, _, kind = row.input.partition(" ")
        values = settings.get(name) if role else None
        for text in values if isinstance(values, list) else [values] if values is not None else []:
            sources.append(examine(role, f"--{name} {text}", text, kind))
    return sources


def run_converter(command: list[str], target: str, environ: Mapping[str, str]) -> bool:
    """Runs a converter quietly, without the key in its environment; True if it left a picture."""
    import subprocess

    safe = {name: value for name, value in environ.items() if name not in key_names({})}
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True, env=safe)
        return identify(target) is not None
    except (OSError, subprocess.SubprocessError):
        return False


def convert_source(context: Context, source: InputPicture, route: str) -> InputPicture:
    """Turns an input picture of a format the API does not take into a PNG, with whichever program is here."""
    import shutil

    picture = source.picture
    if source.kind != "file" or not picture or is_taken(picture, route):
        return source
    with context.temp_files.create(spare_folder(), ".png") as file:
        target, path = file.name, os.path.abspath(source.text)
    commands = {"Pillow": [sys.executable, "-c", PILLOW, path, target]}
    for row in reversed(CONVERTERS):
        found = shutil.which(row[0], path=context.environ.get("PATH"))
        if found and os.path.isabs(found) and os.path.dirname(found) != os.getcwd():  # Windows looks here first
            commands = {row[0]: [found, *(word.format(source=path, target=target) for word in row[1:])], **commands}
    for name, command in commands.items():
        context.progress.phase("converting", path=source.shown)
        if run_converter(command, target, context.environ):
            context.console.warn(f"{source.shown}: converted from {picture.format} to png with {name}")
            return source._replace(text=target, size=os.path.getsize(target), picture=identify(target))
    return source


def follow_suffix(settings: Settings) -> Settings:
    """Lets the suffix of --output choose the format, unless --format was typed."""
    suffix = FORMAT_OF_SUFFIX.get(output_suffix(settings.get("output") or ""))
    typed = "format" in settings.rows and settings.rows["format"].source == "command line"
    return settings.changed("format", suffix, FROM_SUFFIX) if suffix and not typed else settings


def gather(context: Context, settings: Settings, positional: str | None) -> Checked:
    """Gathers all that the checks look at."""
    texts, given_by = gather_texts(settings, positional, context.stdin)
    overridden = overridden_options(settings.command, settings.get("extra-json") or {})
    settings = follow_suffix(settings)
    sources = [convert_source(context, source, settings.command) for source in gather_sources(settings)]
    return Checked(settings, ROUTE[settings.command], texts, given_by, sources, overridden)


def expected_pictures(checked: Checked) -> int:
    """Returns how many pictures a call asks for, as far as it is known before."""
    extra = checked.settings.get("extra-json") or {}
    count = extra.get("n", checked.settings.get("n")) if checked.route.name in IMAGES else 1
    return count if isinstance(count, int) and 0 < count <= 100 else 1


def boxed_mask(checked: Checked) -> bytes:
    """Returns the mask of --mask-box, as large as the first picture; nothing where it is not asked for."""
    first = checked.role("image")[0].picture if checked.has("mask-box") else None
    if first is None:
        return b""
    return mask_png(*first.shown, [box.pixels(*first.shown) for box in checked.settings.get("mask-box")])


def same_file(path: str, data: bytes) -> bool:
    """Tells whether a file holds just these bytes."""
    try:
        with open(path, "rb") as file:
            return os.path.getsize(path) == len(data) and file.read() == data
    except OSError:
        return False


def with_mask(context: Context, checked: Checked, data: bytes, target: str, result: Result) -> Checked:
    """Writes a mask beside the output, for a dry run into the folder for temporary files, and adds it to the inputs."""
    dry = checked.settings.get("dry-run")
    path = target
    if dry or not same_file(target, data):
        with context.temp_files.create(spare_folder() if dry else os.path.dirname(target) or ".") as file:
            write_all(file, data)
        path = (
            file.name if dry else context.temp_files.place(file.name, target, bool(checked.settings.get("overwrite")))
        )
    result.mask = target if dry else path
    if not dry:
        context.console.tell(f"the mask is {path}")
    mask = InputPicture("mask", "--mask-box", "file", path, result.mask, len(data), identify(path))
    return checked._replace(sources=[*checked.sources, mask])


def estimate(checked: Checked) -> Json | None:
    """Returns the output tokens and dollars a call will probably take, or None where no formula is known."""
    factor = checked.row.tokens.get(checked.settings.get("quality") or "")
    size = re.fullmatch(r"([0-9]+)x([0-9]+)", checked.settings.get("size") or "")
    if not factor or not size or checked.settings.get("format") in ("gif", "svg") or checked.chat:
        return None
    long, short = sorted((int(side) for side in size.groups()), reverse=True)
    # round() rounds halves to even; the published figures round them up
    one = math.ceil(factor * int(factor * short / long + 0.5) * (2_000_000 + long * short) / 4_000_000)
    tokens = expected_pictures(checked) * (one + PARTIAL_TOKENS * (checked.settings.get("partial-images") or 0))
    return {"output_tokens": tokens, "usd": round(tokens * PRICES["output"] / 1e6, 4), "prices_of": FACTS_OF}


def cost_of(usage: Any, route: str, model: str | None) -> Json | None:
    """Returns the dollars of a call by its usage, or None where the prices or the usage are not known."""
    if route not in IMAGES or not isinstance(usage, dict) or not model_row(model or "").tokens:
        return None
    details = as_object(usage.get("input_tokens_details"))
    cached = as_object(details.get("cached_tokens_details"))
    text, image = number_of(details.get("text_tokens")), number_of(details.get("image_tokens"))
    cached_text, cached_image = number_of(cached.get("text_tokens")), number_of(cached.get("image_tokens"))
    if not isinstance(usage.get("output_tokens"), int) or text + image != number_of(usage.get("input_tokens")):
        return None
    usd = (text - cached_text) * PRICES["text"] + cached_text * PRICES["cached_text"]
    usd += (image - cached_image) * PRICES["image"] + cached_image * PRICES["cached_image"]
    usd += number_of(usage["output_tokens"]) * PRICES["output"]
    return {"usd": round(usd / 1e6, 6), "prices_of": FACTS_OF}


def shown_settings(settings: Settings) -> Json:
    """Returns the settings in force with their sources, secrets masked."""
    rows = {}
    for name, row in settings.rows.items():
        value = row.value
        if isinstance(value, Secret) or name == "header":
            value = "***" if isinstance(value, Secret) else [f"{n}: {header_value(n, v)}" for n, v in value]
        rows[name] = {"value": row.text if name == "mask-box" else value, "source": row.source}
    return rows


def make_call(context: Context, checked: Checked, names: OutputNames, request: Request, result: Result) -> int:
    """Sends a call that has passed all checks and saves what comes of it."""
    settings = checked.settings
    made = Call(context, settings, names, result)
    failure = made.send(request)
    if result.route == "responses":
        failure = made.settle(failure)
    free = settings.get("tool-choice") in ("auto", "none") and result.route == "responses"  # to answer in words
    return made.conclude(failure, 0 if free and result.text else names.expected)


def show_request(context: Context, checked: Checked, request: Request, outputs: list[str]) -> int:
    """Prints what would be sent: the dry run, or a curl command."""
    if checked.settings.get("curl"):
        context.console.print(curl_command(request))
        return OK
    context.console.print_json({
        "dry_run": True, "route": checked.route.name, "method": request.method, "url": request.url,
        "headers": shown_headers(request.headers), "body": request.tree, "form": request.form, "outputs": outputs,
        "settings": shown_settings(checked.settings), "estimate": estimate(checked),
        "warnings": context.console.warnings,
    })  # fmt: skip
    return OK


def call(context: Context, settings: Settings, problems: list[Problem], positional: str | None, result: Result) -> int:
    """Makes a call of one of the three routes: check everything, plan the names, send once, save as it comes."""
    result.model = settings.get("model")
    checked = gather(context, settings, positional)
    settings = checked.settings
    broken = problems + [found for check in CHECKS for found in check(checked)]
    enforce(broken, bool(settings.get("no-validate")), context.console)
    refuse_stolen_key(settings, context.dotenv)
    names = output_names(settings, expected_pictures(checked))
    dry = bool(settings.get("dry-run") or settings.get("curl"))
    outputs = names.planned(settings.get("partial-images") or 0 if settings.get("stream") else 0)
    mask, mask_path = boxed_mask(checked), names.beside("-mask.png")
    new_mask = mask_path if mask and not same_file(mask_path, mask) else None  # the same mask again may stay
    written = [*outputs, *filter(None, [settings.get("save-response"), new_mask])]
    check_names(written, names.overwrite)
    if not dry:
        check_key(settings)
    if not settings.get("dry-run"):
        make_folders(written, context.temp_files)
    if mask:
        checked = with_mask(context, checked, mask, mask_path, result)
    request = build_request(checked)
    if dry:
        result.reported = True
        return show_request(context, checked, request, outputs[: names.expected])
    return make_call(context, checked, names, request, result)


def read_session(target: str, settings: Settings) -> Json:
    """Reads what to resume: a session file, checked for its origin, or the id of a response."""
    if not os.path.isfile(target):
        path = target.endswith(".json") or os.path.isdir(os.path.dirname(target))
        if path or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+/-]{3,1000}", target):
            raise Failure(USAGE, f"{target}: no session file and no response id", "check the path", rule="session")
        return {"response_id": target}
    try:
        session = parse_object("@" + target)
    except ValueError as error:
        raise Failure(USAGE, f"{target}: {error}", "name a file that ends in .session.json", rule="session") from error
    response_id, origin, here = session.get("response_id"), session.get("origin"), origin_of(settings.get("base-url"))
    if not isinstance(response_id, str) or not response_id or re.search(r"[\x00-\x20\x7f]", response_id):
        raise Failure(USAGE, f"{target}: no session file", "name one that ends in .session.json", rule="session")
    if origin != here:
        words = f"{target} belongs to {origin}, but the key here is for {here}"
        raise Failure(SETTINGS, words, "set --base-url and the key that belong to it", rule="session-origin")
    return session


def resume(context: Context, settings: Settings, problems: list[Problem], target: str | None, result: Result) -> int:
    """Collects a background response, from this machine or another, or cancels it."""
    enforce(problems + settings_problems(settings), False, context.console)
    if not target:
        raise Failure(USAGE, "there is nothing to resume", "name a session file or a response id", rule="session")
    refuse_stolen_key(settings, context.dotenv)
    session = read_session(target, settings)
    named = re.sub(r".*[/\\]", "", str(session.get("output") or ""), flags=re.DOTALL)
    plain = output_suffix(named) in FORMAT_OF_SUFFIX and named.isprintable() and not os.path.isdir(named)
    if "output" in session and not settings.get("output"):
        where = os.path.join(os.path.dirname(target), named if plain else "")
        settings = settings.changed("output", where, "session file") if where else settings
    settings = follow_suffix(settings).changed("background-mode", True, "resume")
    names = output_names(settings, 1)
    check_key(settings)
    model = session.get("model")
    result.route, result.model = "responses", model if isinstance(model, str) else None
    result.facts["id"], result.session_file = session["response_id"], target if os.path.isfile(target) else None
    made = Call(context, settings, names, result)
    if settings.get("cancel"):  # may be repeated
        status = as_object(parse_json(read_body(made.ask(cancel=True)))).get("status")
        context.console.tell(f"{result.facts['id']}: {status}")
        made.forget_session()
        return OK
    written = [names.final(1), *filter(None, [settings.get("save-response")])]
    check_names(written, names.overwrite)
    make_folders(written, context.temp_files)
    failure = made.settle(made.read_again())
    return made.conclude(failure, 0 if result.text else 1)


def without_number(result: Result, names: OutputNames, temp_files: TempFiles) -> None:
    """Gives the only picture of a reply, and its previews, their names without a number."""
    for row in result.images + result.partials:
        name = names.partial(1, row["partial"]) if "partial" in row else names.final(1)
        true_name = os.path.splitext(name)[0] + os.path.splitext(row["path"])[1]
        row["path"] = temp_files.place(row["path"], true_name, names.overwrite and true_name == name)


def extract(context: Context, settings: Settings, problems: list[Problem], target: str | None, result: Result) -> int:
    """Takes the pictures out of a kept or saved reply, offline; one that is cut short gives what it holds whole."""
    enforce(problems, False, context.console)
    settings = follow_suffix(settings)
    try:
        file = open(target or "", "rb")
    except OSError as error:
        words = f"{target}: {error.strerror}" if target else "there is nothing to extract from"
        raise Failure(USAGE, words, "name a saved reply", rule="extract-file") from error
    with file:
        names = output_names(settings, 1)
        check_names([names.final(1)], names.overwrite)
        make_folders([names.final(1)], context.temp_files)
        # How many pictures there are is known at the end only: they are numbered until then.
        made = Call(context, settings, names._replace(several=True), result)
        failure = made.receive(Reply(200, {}, iter(lambda: file.read(BLOCK), b"")))
    made.kept.close()
    if failure and failure.exit in (OUTPUT, BUG, INTERRUPTED):
        raise failure
    if len(result.images) == 1:
        without_number(result, names, context.temp_files)
    if made.cut:
        context.console.warn(f"{target} is cut short; what it holds whole was taken out")
    cut = [found for found in result.troubles if found.details.get("rule") == "picture-cut"]
    troubles = [found for found in result.troubles if found not in cut or not result.images]
    if troubles and not result.images or any(found.exit == OUTPUT for found in troubles):
        raise troubles[0]
    for trouble in troubles:
        context.console.warn(trouble.message)
    if not result.images:
        hint = "a preview is never taken for one" if result.partials else None
        raise Failure(UNREADABLE, f"{target} holds no finished picture", hint)
    return OK


def spellings(row: Option) -> list[str]:
    """Returns every way to type an option, the usual one first."""
    names = [f"--{row.name}"] + [f"-{name}" if len(name) == 1 else f"--{name}" for name in row.also]
    return names + ([f"--{row.negative}"] if row.negative else [])


def words_of(command: str) -> list[str]:
    """Returns every option that can be typed after a subcommand."""
    return [word for row in options_of(command).values() for word in spellings(row)]


class Shell(NamedTuple):
    """A row of SHELLS: a completion script with places for its cases, and the form of a case."""

    script: str
    case: str
    either: str  # stands between the words of a case


BASH = Shell(
    """_gpt_image() {
  local fitting=
  case ${COMP_WORDS[1]} in
%(options)s
  esac
  [ "$COMP_CWORD" -eq 1 ] && fitting='%(commands)s'
  case ${COMP_WORDS[COMP_CWORD-1]} in
%(values)s
  esac
  COMPREPLY=($(compgen -W "$fitting" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _gpt_image gpt-image gpt_image.py""",
    "    %s) fitting='%s' ;;",
    "|",
)
FISH = Shell(
    """function _gpt_image
  set -l typed (commandline -opc)
  set -l fitting %(commands)s
  switch "$typed[2]"
%(options)s
  end
  switch "$typed[-1]"
%(values)s
  end
  string join \\n -- $fitting
end
complete -c gpt-image -a '(_gpt_image)'
complete -c gpt_image.py -a '(_gpt_image)'""",
    "    case %s; set fitting %s",
    " ",
)
SHELLS = {
    "bash": BASH,
    "zsh": BASH._replace(script="autoload -U +X bashcompinit && bashcompinit\n" + BASH.script),
    "fish": FISH,
}


def completion_script(shell: str) -> str:
    """Returns a completion script: subcommands, the options of each, and the values of those that have a choice."""
    script, case, either = SHELLS[shell]
    options = [case % (name, " ".join(words_of(name))) for name in EVERY]
    chosen = [row for row in OPTIONS if row.kind.choices]
    values = [case % (either.join(spellings(row)), " ".join(row.kind.choices)) for row in chosen]
    return script % {"commands": " ".join(EVERY), "options": "\n".join(options), "values": "\n".join(values)}


def example_dotenv() -> str:
    """Returns a .env with every variable and its meaning, commented out but for the key."""
    lines = [
        "# Settings of gpt_image.py. The command line and the environment stand above this file.",
        "# Keep the key to yourself: chmod 600 .env, and never commit it.",
    ]
    for row in sorted((row for row in OPTIONS if row.env), key=lambda row: not row.secret):
        choices = f"; one of {', '.join(row.kind.choices)}" if row.kind.choices else ""
        default = f"; default {row.default}" if row.default else ""
        names = [f"{name}=" if row.secret and name == row.env[0] else f"# {name}=" for name in row.env]
        lines += ["", f"# {row.help}{choices}{default}", *names]
    return "\n".join(lines) + "\n"


def init_env(context: Context) -> int:
    """Writes a commented .env into the current folder, for its owner only, never over an existing one."""
    try:
        file = os.fdopen(os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except OSError as error:
        raise Failure(OUTPUT, f".env: {error.strerror}", "edit it, or remove it first", rule="env-exists") from error
    with file:
        file.write(example_dotenv())
    context.console.tell("wrote .env; put the key behind OPENAI_API_KEY= and keep it out of version control")
    context.console.print(".env")
    return OK


def check_endpoint(context: Context, settings: Settings) -> int:
    """Asks the endpoint for its models, which is free of charge, and says whether the key is accepted."""
    check_key(settings)
    url = api_url(settings, "/models")
    reply = exchange(context, settings, Request("GET", url, api_headers(settings, None)))
    listed = as_object(parse_json(read_body(reply))).get("data")
    if not isinstance(listed, list):
        hint = "is the base URL right? It usually ends in /v1"
        raise Failure(UNREADABLE, f"{url} answers, but not as this API does", hint)
    names = [row["id"] for row in objects_in(listed) if isinstance(row.get("id"), str)]
    context.console.tell(f"the key is accepted by {origin_of(url)}; {plural(len(names), 'model')} listed")
    images = [name for name in names if "image" in name]
    context.console.print_json({"ok": True, "url": url, "key_accepted": True, "image_models": images})
    return OK


def settings_lines(commands: Mapping[str, Json]) -> Iterator[str]:
    """Yields the settings in force as lines for a terminal, each once, with the commands it is for if not for all."""
    found: dict[str, list[str]] = {}
    for command, settings in commands.items():
        for name, row in settings.items():
            value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"], default=str)
            found.setdefault(f"--{name:<18} {value:<28} {row['source']}", []).append(command)
    for line, where in sorted(found.items()):
        everywhere = "config" in where or set(ALL) <= set(where)
        yield line if everywhere else f"{line}  ({', '.join(where)})"


def show_settings(context: Context, settings: Settings) -> int:
    """Shows the settings in force of each command, with their sources."""
    console, dotenv = context.console, context.dotenv
    commands = {name: shown_settings(resolve(name, {}, context.environ, dotenv)[0]) for name in ALL}
    commands["config"] = shown_settings(settings)
    if is_terminal(console.stdout) and not settings.get("json"):
        console.print("\n".join([f".env in force: {dotenv.path or 'none'}", *settings_lines(commands)]))
    else:
        console.print_json({"ok": True, "env_file": dotenv.path or None, "settings": commands})
    return OK


def config(context: Context, settings: Settings, problems: list[Problem], _: str | None, result: Result) -> int:
    """Shows the settings in force; or writes a .env, prints a completion script, or asks the endpoint."""
    result.reported = True
    enforce(problems + settings_problems(settings), False, context.console)
    if settings.get("init"):
        return init_env(context)
    if settings.get("completion"):
        context.console.print(completion_script(settings.get("completion")))
        return OK
    refuse_stolen_key(settings, context.dotenv)
    return check_endpoint(context, settings) if settings.get("check") else show_settings(context, settings)


class Command(NamedTuple):
    """A row of COMMANDS: what runs a subcommand, its line in the help, its argument, and an example."""

    run: Callable[[Context, Settings, list[Problem], str | None, Result], int]
    summary: str
    argument: str
    example: str


COMMANDS = {
    **{row.name: Command(call, row.summary, "PROMPT", row.example) for row in ROUTES},
    "resume": Command(resume, "collect a background response", "TARGET", "resume out/poster.session.json"),
    "extract": Command(extract, "take the pictures out of a saved reply, offline", "FILE",
                       "extract out/poster.reply --output out/poster.png"),
    "config": Command(config, "show the settings in force; write a .env; check the key", "", "config --check"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 14 Main: arguments -> exit code; Failure, Ctrl-C and bugs become words
# ---------------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse for the spelling only: its errors become a Failure, without the dump of the usage."""

    def error(self, message: str) -> Any:
        raise Failure(USAGE, message, "see --help", rule="usage")


def help_width() -> int:
    """Returns the width for help: that of the window, within reason."""
    width = os.environ.get("COLUMNS", "")
    return max(min(int(width) if width.isdecimal() else columns(sys.__stdout__ or sys.stdout) or 80, 100), 32)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The help as wide as the terminal, without the module that argparse loads to ask for it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=help_width() - 2)


def add_option(group: Any, row: Option) -> None:
    """Adds an option to its group of the parser; a flag stores the text that says yes or no."""
    note, no = f" (default: {row.default})" if row.default else "", f"--{row.negative}"
    words = [word for word in spellings(row) if word != no]
    facts: Json = {"action": "append" if row.kind.repeat else "store", "metavar": row.kind.metavar}
    if row.kind.flag:
        facts = {"action": "store_const", "const": "true"}
    group.add_argument(*words, dest=row.name, help=(row.help + note).replace("%", "%%"), **facts)
    if row.negative:
        group.add_argument(no, dest=row.name, help="the opposite", action="store_const", const="false")


def exit_lines() -> str:
    """Returns the exit codes as the help shows them."""
    return "exit codes:\n" + "\n".join(f"  {row.code:>3}  {row.meaning}" for row in EXITS)


ARGUMENTS = {
    "PROMPT": "what to make", "TARGET": "a session file, or the id of a response",
    "FILE": "a reply that was kept or saved: JSON or events, whole or cut short",
}  # fmt: skip


@functools.lru_cache(maxsize=None)
def build_parser(command: str, options: tuple[Option, ...]) -> Parser:
    """Returns the parser of a subcommand, from its rows of the table; every value stays text."""
    row = COMMANDS[command]
    argument = f" [{row.argument}]" if row.argument else ""
    parser = Parser(
        usage=f"gpt_image.py {command}{argument} [options]",
        description=row.summary + ".",
        epilog=f"example:\n  gpt_image.py {row.example}\n\n{exit_lines()}",
        add_help=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    if row.argument:
        parser.add_argument("positional", nargs="?", metavar=row.argument, help=ARGUMENTS[row.argument])
    for name in dict.fromkeys(option.group for option in options):
        group = parser.add_argument_group(name.lower())
        for option in options:
            if option.group == name:
                add_option(group, option)
    return parser


def parser_of(command: str) -> Parser:
    """Returns the parser of a subcommand, which is built once."""
    return build_parser(command, tuple(options_of(command).values()))


def overview() -> str:
    """Returns the help of the program as a whole."""
    title = (__doc__ or "").partition("\n")[0]
    commands = "\n".join(f"  {name:<12} {row.summary}" for name, row in COMMANDS.items())
    examples = "\n".join(f"  gpt_image.py {row.example}" for row in COMMANDS.values())
    return f"""usage: gpt_image.py COMMAND [options]

{title}

{commands}

examples:
{examples}

Add --dry-run to see what would be sent: it needs no key.
COMMAND --help lists the options.

{exit_lines()}"""


# What other programs call things.
MEANT = {
    "--image": "--input-image", "--input": "--input-image", "--input-image": "--image", "--width": "--size",
    "--height": "--size", "--aspect-ratio": "--size", "--resolution": "--size", "--count": "--n", "--num": "--n",
    "--number": "--n", "--transparent": "--background transparent", "--out": "--output", "--token": "--api-key",
    "--key": "--api-key", "--url": "--base-url", "--api-base": "--base-url",
}  # fmt: skip


def refuse_argument(command: str, word: str) -> None:
    """Refuses an argument too many: it is mostly a prompt without quotes."""
    hint = "put the prompt into quotes" if COMMANDS[command].argument == "PROMPT" else f"see {command} --help"
    if output_suffix(word) or os.path.exists(word):
        hint = "write the option before each file, and quote names with blanks"
    if word in ("true", "false"):
        hint = "a switch such as --stream takes no value"
    shown = "sk-…" if word.startswith("sk-") else word  # a key in the wrong place
    raise Failure(USAGE, f"{shown!r} is one word too many", hint, rule="usage")


def refuse_option(command: str, name: str) -> None:
    """Refuses what is no option of a subcommand, with the option that was probably meant."""
    known, others = words_of(command), [other for other in COMMANDS if name in words_of(other)]
    meant = MEANT.get(name, "")
    if meant.split(" ")[0] not in known:
        meant = "" if others else nearest_word(name, known)
    hint = f"it belongs to {', '.join(others)}" if others else f"see {command} --help"
    hint = f"did you mean {meant}?" if meant else hint
    raise Failure(USAGE, f"{name} is no option of {command}", hint, rule="unknown-option")


def refuse_command(argv: list[str]) -> None:
    """Refuses a command line that does not begin with a command."""
    word, later = argv[0] if argv else "", [word for word in argv if word in COMMANDS]
    near = nearest_word(word, COMMANDS)
    hint = f"did you mean {near}?" if near else f"one of {', '.join(COMMANDS)}; see --help"
    if later:
        hint = f"the command comes first: gpt_image.py {later[0]} …"
    elif " " in word:
        hint = f'make a picture with: gpt_image.py generations "{word}"'
    raise Failure(USAGE, f"{word!r} is no command" if word else "no command is given", hint, rule="command")


def joined(command: str, argv: list[str]) -> list[str]:
    """Returns the words with `--option -value` as `--option=-value`, unless the second is an option of its own."""
    options = {word: row for row in options_of(command).values() for word in spellings(row)}
    words: list[str] = []
    for word in argv:
        row = options.get(words[-1]) if words else None
        if row and not row.kind.flag and word.startswith("-") and word.partition("=")[0] not in options:
            words[-1] = f"--{row.name}={word}"
        else:
            words.append(word)
    return words


def parse(argv: list[str]) -> tuple[str, dict[str, Any], str | None]:
    """Returns the subcommand, the typed options and the argument; every mistake of spelling is a Failure."""
    if not argv or argv[0] not in COMMANDS:
        refuse_command(argv)
    command = argv[0]
    end = argv.index("--") if "--" in argv else len(argv)
    known, extra = parser_of(command).parse_known_args(joined(command, argv[1:end]))
    typed = vars(known)
    arguments = [word for word in [typed.pop("positional", None), *argv[end + 1 :]] if word is not None]
    for word in extra:
        if word.startswith("-"):
            refuse_option(command, word.partition("=")[0])
        refuse_argument(command, word)
    if len(arguments) > 1:
        refuse_argument(command, arguments[1])
    return command, typed, arguments[0] if arguments else None


def error_of(failure: Failure) -> Json:
    """Returns the `error` object of a result."""
    details = failure.details
    return {
        "exit": failure.exit, **{key: details.get(key) for key in ("rule", "status", "type", "code")},
        "message": failure.message, "hint": failure.hint, "may_be_billed": bool(details.get("may_be_billed")),
        "problems": details.get("problems") or [], "recovery": details.get("recovery"),
    }  # fmt: skip


def result_of(result: Result, failure: Failure | None, warnings: list[str], seconds: float) -> Json:
    """Returns the one JSON object of a call."""
    usage = result.facts.get("usage")
    response_id = result.facts.get("id") if result.route == "responses" else None
    found = {
        "ok": failure is None, "route": result.route, "model": result.model, "images": result.images,
        "partial_images": result.partials, "text": result.text, "response_id": response_id,
        "request_id": result.tries.request_id, "usage": usage, "cost": cost_of(usage, result.route, result.model),
        "seconds": round(seconds, 1), "attempts": result.tries.count, "saved_response": result.saved_response,
        "session_file": result.session_file, "warnings": warnings, "error": error_of(failure) if failure else None,
    }  # fmt: skip
    return {**found, "mask": result.mask} if result.mask else found


def say_failure(failure: Failure, console: Console) -> None:
    """Says what went wrong, and what to do."""
    for row in failure.details.get("problems") or [{"message": failure.message, "hint": failure.hint}]:
        console.say(row["message"], "error")
        if row["hint"]:
            console.say(row["hint"], "hint")
    if failure.details.get("may_be_billed"):
        console.say("this call may have been billed", "hint")


def say_result(result: Result, console: Console) -> None:
    """Prints the saved paths, and says what else is worth a line to a person."""
    if result.text:
        console.say(result.text)
    cost = cost_of(result.facts.get("usage"), result.route, result.model)
    if cost:
        console.tell(f"cost: {cost['usd']:.4f} USD at the prices of {cost['prices_of']}")
    if result.images:
        console.print("\n".join(row["path"] for row in result.images))


PROGRESS = ("auto", "plain", "json", "none")


def run_command(context: Context, argv: list[str], result: Result) -> int:
    """Parses, resolves and runs; what goes wrong leaves as Failure."""
    console, environ = context.console, context.environ
    console.hide(*(Secret(environ[name]) for name in key_names({}) if environ.get(name)))  # before any error
    command, typed, positional = parse(argv)
    result.route = command
    console.quiet = bool(typed.get("quiet"))
    dotenv = find_dotenv(typed, environ, console)
    settings, problems = resolve(command, typed, environ, dotenv)
    hide_secrets(settings, typed, environ, dotenv, console)
    mode = settings.get("progress", "none")
    offline = settings.get("dry-run") or settings.get("curl")
    shown = "none" if offline or mode not in PROGRESS else mode
    with Progress(console, shown, context.progress.clock) as progress:
        context = context._replace(dotenv=dotenv, progress=progress)
        return COMMANDS[command].run(context, settings, problems, positional, result)


def outcome_of(context: Context, argv: list[str], result: Result) -> tuple[int, Failure | None]:
    """Runs a command and returns its exit code, and the failure that it ended with."""
    try:
        return run_command(context, argv, result), None
    except Failure as error:
        return error.exit, error
    except KeyboardInterrupt:
        return INTERRUPTED, Failure(INTERRUPTED, "interrupted", may_be_billed=result.tries.may_be_billed)
    except Exception:
        return BUG, bug_failure()


def run(context: Context, argv: list[str]) -> int:
    """Runs a command and says how it ended: the result to stdout, the words to stderr."""
    console, clock, result = context.console, context.progress.clock, Result(argv[0] if argv else "")
    started = clock()
    code, failure = outcome_of(context, argv, result)
    context.stop.arm(True)  # everything is on disk
    try:
        if failure:
            say_failure(failure, console)
        if "--json" in argv or not is_terminal(console.stdout):
            if failure or not result.reported:
                console.print_json(result_of(result, failure, console.warnings, clock() - started))
        elif not result.reported:
            say_result(result, console)
    except KeyboardInterrupt:  # nobody reads
        console.abandon(console.stdout)
        return INTERRUPTED
    if console.lost and code == OK:
        console.say(f"the result cannot be written to standard output: {console.lost}", "error")
        return OUTPUT
    return code


def help_text(argv: list[str]) -> str:
    """Returns what --version and --help print, or nothing for a command that is to run."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    if argv[:1] in (["--version"], ["-V"]):
        return f"gpt_image.py {__version__}"
    if "--help" in options or "-h" in options or argv[:1] == ["help"]:
        text = parser_of(argv[0]).format_help().rstrip() if argv[0] in COMMANDS else overview()
        return fitted(text, help_width())
    return ""


def standard(name: str, errors: str = "backslashreplace") -> IO[str]:
    """Returns a stream of this process, in UTF-8 whatever the code page, or an empty one if it was closed."""
    stream = getattr(sys, name) or io.StringIO()
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors=errors)
    return stream


def main(
    argv: list[str] | None = None, *, transport: Transport | None = None, environ: Mapping[str, str] | None = None,
    stdin: IO[str] | None = None, stdout: IO[str] | None = None, stderr: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] | None = None,
) -> int:  # fmt: skip
    """Runs the program with the given arguments and returns its exit code; all it touches can be handed in."""
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ
    stdin = stdin or standard("stdin", "strict")
    console = Console(stdout or standard("stdout"), stderr or standard("stderr"), environ)
    text = help_text(argv)
    if text:
        console.print(text)
        return OK
    with Stop() as stop, TempFiles() as temp_files:
        transport = transport or (lambda request, timeout, progress: send(request, timeout, progress, stop))
        quiet = Progress(console, "none", clock)
        context = Context(console, stdin, environ, Dotenv(), transport, sleep or stop.sleep, stop, temp_files, quiet)
        return run(context, argv)


if __name__ == "__main__":
    raise SystemExit(main())
