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

     1 Outcomes           exit codes, the one exception      8 Transport  the only socket, the only use of the key
     2 Console, Progress  every word printed, redacted       9 Files      names before the call, files after it
     3 Kinds, Tables      all knowledge of the API: rows    10 Reply      bytes -> short JSON, pictures -> disk
     4 Pictures           what a file's bytes say           11 Events     documents of any dialect -> meaning
     5 Settings           where each value comes from       12 Call       send, receive, save, poll, conclude
     6 Validation         every broken rule, unsent         13 Batch      many calls, none of them paid twice
     7 Request            a body that streams from disk     14 Commands   one function each
                                                            15 Main       arguments -> exit code

Four promises, each kept by a test:
 1. the key is used in one place, goes to one origin, and is never printed, logged or stored;
 2. nothing is sent that is known to be refused, and nothing at all under --dry-run;
 3. a picture that was paid for is never lost or overwritten: it is on disk the moment its last byte arrives;
 4. memory does not grow with the pictures, neither up nor down.
"""

from __future__ import annotations

import argparse
import binascii
import collections
import errno
import functools
import io
import itertools
import json
import math
import os
import re
import signal
import stat
import string
import struct
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Callable, NamedTuple, Optional

# What only a real call needs (ssl, http.client, urllib.request, hashlib, threading ...) is imported where it is used:
# loading it takes longer than everything --help and --dry-run do.
if TYPE_CHECKING:
    import urllib.request

__version__ = "2.0.0"

Json = dict[str, Any]
Words = tuple[str, ...]
Environ = Mapping[str, str]
Headers = Mapping[str, str]  # names in lower case
Rows = list[Json]
BinaryFile = IO[bytes]
TextFile = IO[str]
Blocks = Iterator[bytes]  # of data, in their order


# ---------------------------------------------------------------------------------------------------------------------
# 1 Outcomes: what the program ends with
# ---------------------------------------------------------------------------------------------------------------------


EXITS = {
    0: "every picture asked for is on disk",
    1: "a bug of this program",
    2: "usage, or a rule broken: nothing was sent",
    3: "no key, or settings that must not be used together: nothing was sent",
    4: "the API refused (4xx), moderation included",
    5: "network, timeout or server fault",
    6: "a reply that cannot be understood, or holds no picture",
    7: "output cannot be written, or exists",
    8: "still running in the background",
    9: "a batch ended with jobs left: the result and the ledger say which",
    130: "interrupted",
}
OK, BUG, USAGE, SETTINGS, REFUSED, NETWORK, UNREADABLE, OUTPUT, RUNNING, LEFT, INTERRUPTED = EXITS


class Failure(Exception):
    """The one exception: an exit code, what is wrong, what to do, and details for the `error` object of the result."""

    def __init__(self, exit_code: int, message: str, hint: str | None = None, **details: Any) -> None:
        self.exit, self.message, self.hint, self.details = exit_code, message, hint, details

    @property
    def problems(self) -> Rows:
        """Returns all that is wrong, if only one thing."""
        own = {"rule": self.details.get("rule"), "message": self.message, "hint": self.hint}
        problems: Rows = self.details.get("problems", [own])
        return problems


Outcome = Optional[Failure]  # how something ended: None if it went well


# ---------------------------------------------------------------------------------------------------------------------
# 2 Console, Progress: every word to a person (stderr) or a machine (stdout) leaves here, redacted
# ---------------------------------------------------------------------------------------------------------------------


class Secret:
    """A value that shows as `***` wherever it is printed; only the transport asks for it with `reveal`."""

    SHORTEST = 6  # what is shorter stands in ordinary words, and no real key is
    LONG = 16  # what is shorter may be a dummy such as `ollama`, and stand in our own words and in file names by chance
    TELLING = 12  # characters at the beginning of a secret that show it, wherever it was cut

    def __init__(self, value: str, scheme: str = "") -> None:
        self._value, self.scheme = value, scheme

    def __repr__(self) -> str:
        return f"{self.scheme}***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        return self.scheme + self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def with_scheme(self, scheme: str) -> Secret:
        """Returns the secret with what stands before it in a header."""
        return Secret(self._value, scheme)

    def forms(self) -> set[str]:
        """Returns the ways to write the value and what is secret in it: plain, as JSON, and as PHP writes JSON."""
        words = re.findall(r"[^\s;,]+", self._value)  # a key, a scheme and a key, or cookies
        parts = [self._value, self._value.partition(":")[2], *words[-1:], *(word.partition("=")[2] for word in words)]
        long = [part for part in parts if len(part) >= self.SHORTEST]
        return {form for part in long for form in (part, json.dumps(part)[1:-1], part.replace("/", "\\/"))}

    def fits_header(self) -> bool:
        """Tells whether the value is one word of printable ASCII without quotes, as every key is."""
        return bool(re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", self._value))


def shell_quoted(text: str) -> str:
    """Returns a word quoted for a POSIX shell; a byte that is not UTF-8 as an escape, since no terminal takes it."""
    from shlex import quote

    escaped, found = re.subn(
        "[\udc80-\udcff]", lambda byte: f"\\0{ord(byte[0]) & 0xFF:03o}", text.replace("\\", "\\\\")
    )
    return f'"$(printf %b {quote(escaped)})"' if found else quote(text)


def pasted(word: str) -> str:
    """Returns a word as it can be pasted into the shell of the system: a POSIX one, or both cmd.exe and PowerShell."""
    if os.name != "nt":
        return shell_quoted(word)
    if re.fullmatch(r"(--)?\w[\w.:\\/-]*", word):
        return word
    # No file name holds a straight quote. PowerShell, not cmd.exe, expands $ and `, and takes “ for a quote as well.
    return '"' + re.sub("[$`“”„]", r"`\g<0>", word.replace('"', "")) + '"'


def called() -> str:
    """Returns what the program was called by: its file, a link to it, or the installed command."""
    path = sys.argv[0]
    own = __name__ == "__main__" or re.match("gpt[-_]image", os.path.basename(path))
    return path if own else "gpt_image.py"  # else another program has imported it


def program(*words: str) -> str:
    """Returns a command of this program, called as it was called here, that can be pasted."""
    import shutil

    path, name = called(), os.path.basename(called())
    python = ["python" if os.name == "nt" else "python3"] if name.endswith(".py") else []
    start = [name] if str(shutil.which(name)).startswith(path) else [*python, path]
    return " ".join(map(pasted, (*start, *words)))


# A server's words go to a terminal: escape sequences in them must not.
CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
UNPRINTABLE = "[\x7f-\x9f\ud800-\udfff]"  # what JSON leaves as it is, and a stream may not take
STYLES = {"error": "1;31", "warning": "33", "hint": "36"}  # the colours of the words that lines begin with


def is_terminal(stream: TextFile) -> bool:
    """Tells whether a stream is a terminal; a closed one is not."""
    return not stream.closed and stream.isatty()


def columns(stream: TextFile) -> int:
    """Returns the width of a terminal, or 0 where it is not known or the stream was closed."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def fitted(text: str, width: int) -> str:
    """Returns lines broken between words where they are wider than a window; commands stay whole, to be pasted."""
    import textwrap

    text = re.sub(re.escape(program()) + " .*", lambda command: command[0].replace(" ", "\0"), text)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if len(line) > width >= 12:
            words = line.lstrip()
            indent = line[: -len(words)]
            lines[number] = textwrap.fill(
                words,
                width,
                initial_indent=indent,
                subsequent_indent=indent + "  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines).replace("\0", " ")


def shortened(text: str, most: int) -> str:
    """Returns a text, or the beginning of a long one."""
    return text if len(text) <= most else text[:most] + "…"


KEY_FORM = r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}"  # of most keys, also where nobody expects one


class Console:
    """The two streams of the program, the secrets to hide on them, and the warnings given so far.

    Threads may share it: what one of them prints stays together.
    """

    quiet = False
    tells = True  # False where stderr holds a JSON object a line
    lost = ""  # why the result cannot be written
    line = ""  # the live line, as it stands on the screen

    def __init__(self, stdout: TextFile, stderr: TextFile, environ: Environ) -> None:
        from _thread import RLock  # `threading` costs a start-up more than it gives here

        self.stdout, self.stderr, self.lock = stdout, stderr, RLock()
        self.pipe = stdout  # what takes a picture under `--output -`, where all words go to stderr
        self.hidden: list[str] = []  # every form of every secret, the longest first, since one may hold another
        self.warnings: list[str] = []
        self.as_json = not is_terminal(stdout)  # what the result is written as
        # The old console of Windows shows escape sequences as they are; the terminals that take them say who they are.
        plain = os.name == "nt" and environ.keys().isdisjoint(("WT_SESSION", "TERM_PROGRAM"))
        self.live = is_terminal(stderr) and environ.get("TERM") != "dumb" and not plain
        self.colour = self.live and not environ.get("NO_COLOR")

    def muted(self) -> Console:
        """Returns a console for one of many calls: it says nothing, and notes the warnings of that call."""
        other = Console(io.StringIO(), io.StringIO(), {})
        other.hidden, other.quiet = self.hidden, True
        return other

    def hide(self, *secrets: Secret) -> None:
        """Keeps secrets out of all that is printed or kept from now on."""
        self.hidden = sorted({*self.hidden}.union(*map(Secret.forms, secrets)), key=len, reverse=True)

    def clean(self, text: str, least: int = Secret.SHORTEST) -> str:
        """Returns the text without any secret of at least so many characters, nor the beginning of one."""
        for form in self.hidden:
            if len(form) >= least:
                start, end = form[: Secret.TELLING], form[Secret.TELLING :]
                first, *rest = text.split(start)
                text = first + "".join("***" + piece[len(os.path.commonprefix([piece, end])) :] for piece in rest)
        return text

    def said(self, text: str, most: int) -> str:
        """Returns words from outside for a message of ours: without any secret, then on one line, and then cut."""
        text = re.sub(r"[A-Za-z0-9+/]{500,}={0,2}", "<base64>", self.clean(text))
        return shortened(" ".join(text.split()), most)

    def cleaned(self, blocks: Iterable[bytes]) -> Blocks:
        """Yields the bytes of a reply without any secret, as long as they were, wherever the blocks end."""
        needles = [form.encode("utf-8", "surrogateescape") for form in self.hidden if len(form) >= Secret.LONG]
        open_end = max(map(len, needles), default=1) - 1  # a secret that begins there may go on in the next block
        # Searched in what came and blotted out in a copy, since one secret may hold another.
        came, shown = bytearray(), bytearray()
        for block in blocks:
            came += block
            shown += block
            for needle in needles:
                at = -1
                while (at := came.find(needle, at + 1)) >= 0:
                    shown[at : at + len(needle)] = b"*" * len(needle)
            whole = max(len(came) - open_end, 0)
            yield bytes(shown[:whole])
            del came[:whole], shown[:whole]
        yield bytes(shown)

    def _put(self, stream: TextFile, text: str) -> None:
        try:
            print(self.clean(text, Secret.LONG), end="", file=stream, flush=True)
        except OSError as error:  # a full disk behind a stream is not worth a picture, but the result must not vanish
            if stream is self.stdout and not isinstance(error, BrokenPipeError):
                self.lost = str(error.strerror)
            self.abandon(stream)
        except ValueError:
            pass  # a closed stream

    def abandon(self, stream: TextFile) -> None:
        """Points a stream whose reader is gone at the null device, so that the interpreter's own flush is quiet too."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except OSError:
            pass

    def draw(self, texts: Iterable[str], stream: TextFile | None = None) -> None:
        """Writes raw texts in one go where the live line stood, to stderr unless to another stream."""
        with self.lock:
            self.redraw("")
            for text in texts:
                self._put(stream or self.stderr, text)

    def redraw(self, line: str) -> None:
        """Writes the live line anew if it has changed, so that it does not flicker; an empty one is taken away."""
        line = shortened(line, (columns(self.stderr) or 80) - 2)
        with self.lock:
            if line != self.line:
                self.line = line
                self._put(self.stderr, f"\r{line}\x1b[K")

    def say(self, text: str, style: str = "") -> None:
        """Prints one line to stderr, with its first word coloured if the terminal wants that."""
        word = f"{style}:"
        start = {"": "", "hint": f"  {word} "}.get(style, f"{os.path.basename(called())}: {word} ")
        text = start + text.translate(CONTROL)
        if self.live:
            text = fitted(text, columns(self.stderr))
        if self.colour and style:
            text = text.replace(word, f"\x1b[{STYLES[style]}m{word}\x1b[0m", 1)
        self.draw([text + "\n"])

    def tell(self, text: str) -> None:
        """Says something that --quiet silences."""
        if not self.quiet and self.tells:
            self.say(text)

    def warn(self, text: str) -> None:
        """Notes a warning once for the result and says it."""
        if text not in self.warnings:
            self.warnings.append(text)
            if not self.quiet:
                self.say(text, "warning")

    def without_secrets(self, environ: Environ) -> Environ:
        """Returns the environment for another program: no variable in it holds a secret."""
        return {name: value for name, value in environ.items() if self.clean(value) == value}

    def print(self, text: str) -> None:
        """Prints the result to stdout."""
        self.draw([text + "\n"], self.stdout)

    def print_json(self, value: Any) -> None:
        """Prints one JSON object to stdout; what is not valid Unicode in a file name is escaped."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.print(re.sub(UNPRINTABLE, lambda match: f"\\u{ord(match.group()):04x}", text))


def amount(size: float) -> str:
    """Returns a number of bytes as words, such as `1.8 MB`."""
    if size < 1000:
        return f"{size:.0f} bytes"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1000:.1f} kB"


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun, such as `3 pictures`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


class Phase(NamedTuple):
    """A row of PHASES: the words of a phase, and those for a line that stays where the phase itself moves on."""

    words: str
    first: str = ""
    lasting: bool = False  # it is told at once, and stays on the screen as a line of its own
    result: bool = False  # the result says it to a person as well


PHASES = {
    "connecting": Phase("connecting to {host}"),
    "uploading": Phase("uploading {percent} % of {size}", "uploading {size}"),
    "waiting": Phase("waiting for the reply"),
    "polling": Phase("{status} in the background"),
    "receiving": Phase("receiving, {size}", "receiving the reply"),
    "converting": Phase("converting {path}", lasting=True),
    "fetching": Phase("fetching picture {index}"),
    "preview": Phase("preview {partial} of {asked} for picture {index}: {path}", lasting=True),
    "saved": Phase("saved {path} ({kind}, {size})", lasting=True, result=True),
    "retrying": Phase("waiting for try {attempt} of {tries}", "{reason}; try {attempt} of {tries} in {wait} s",
                      lasting=True),
    "batch": Phase("{done} of {total} · {running} running · {failed} failed · {usd} USD · {left}", "{total} to run"),
}  # fmt: skip


class Progress:
    """The phases of a call on stderr: one live line on a terminal, else a line a phase, or a JSON object a line.

    A thread redraws the live line ten times a second and gives the heartbeat, since the call itself waits in `recv`.
    """

    HEARTBEAT, TICK = 30.0, 0.1  # seconds
    name, text, until = "", "working", 0.0  # of the phase; what it waits for ends then
    thread: Any = None

    def __init__(self, console: Console, mode: str, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self.mode = ("live" if console.live else "plain") if mode == "auto" else mode
        if console.quiet and mode != "json":
            self.mode = "none"
        console.tells = self.mode != "json"
        self.started = self.shown = clock()
        self.facts: Json = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread:
            self.ended.set()
            self.thread.join()
            self.console.redraw("")

    def phase(self, name: str, **facts: Any) -> None:
        """Tells that a phase has begun or moved on; the facts fill its row of PHASES."""
        row, now, as_json = PHASES[name], self.clock(), self.mode == "json"
        looks = self.name == "polling" != name and not row.lasting  # each look at a response has these phases
        if self.mode == "none" or looks or row.result and not as_json and not self.console.as_json:
            return
        words = {**facts, "size": amount(facts.get("bytes", 0))}
        text, first, begins = row.words.format(**words), row.first.format(**words), name != self.name
        if first or not row.lasting:
            self.name, self.text, self.facts, self.until = name, text, facts, now + facts.get("wait", 0)
        # A 200 MB reply has thousands of chunks: what only moves on is told once a second.
        if row.lasting or begins and self.mode != "live" or as_json and (not first or now - self.shown >= 1):
            self._say(first or text, name, facts)
        if not self.thread:
            self._start()

    def _say(self, text: str, name: str, facts: Json) -> None:
        self.shown = self.clock()
        if self.mode == "json":
            told = {"phase": name, "seconds": round(self.shown - self.started, 1), **facts}
            self.console.draw([json.dumps(told) + "\n"])
        else:
            self.console.say(text)

    def _start(self) -> None:
        """Starts the thread with the first phase: checks alone need none."""
        import threading

        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def _tick(self) -> None:
        while not self.ended.wait(self.TICK):
            self.beat()

    def beat(self) -> None:
        """Redraws the live line; else tells now and then that the call still goes on."""
        now = self.clock()
        left = f", {self.until - now:.0f} s left" if self.until > now else ""
        line = f"{self.text}{left} · {now - self.started:.0f} s"
        if self.mode == "live":
            self.console.redraw(line)
        elif now - self.shown >= self.HEARTBEAT:
            self._say(line, self.name, {**self.facts, "heartbeat": True})


def base64_blocks(path: str) -> Iterator[str]:
    """Yields a file in base64, in pieces of 4096 characters."""
    with open(path, "rb") as file:
        while block := file.read(3072):
            yield binascii.b2a_base64(block, newline=False).decode()


# https://sw.kovidgoyal.net/kitty/graphics-protocol/
def kitty_sequences(path: str) -> Iterator[str]:
    """Yields a picture for kitty: pieces of at most 4096 characters, with m=1 until the last."""
    control = "a=T,f=100,q=2,"
    for text in base64_blocks(path):
        yield f"\x1b_G{control}m=1;{text}\x1b\\"
        control = ""
    yield "\x1b_Gm=0;\x1b\\"


# https://iterm2.com/documentation-images.html
def iterm_sequences(path: str) -> Iterator[str]:
    """Yields a picture for iTerm2: one sequence."""
    text = "".join(base64_blocks(path))
    yield f"\x1b]1337;File=inline=1;preserveAspectRatio=1;size={os.path.getsize(path)}:{text}\x07"


class Protocol(NamedTuple):
    """A row of PROTOCOLS: a way to show pictures, the variables of its terminals, and the suffixes they take."""

    variables: str
    suffixes: Words
    sequences: Callable[[str], Iterator[str]]


PROTOCOLS = (
    Protocol(
        r"^((KITTY_WINDOW_ID|GHOSTTY_RESOURCES_DIR)=.+|TERM=xterm-(kitty|ghostty)|TERM_PROGRAM=ghostty)$",
        (".png",),
        kitty_sequences,
    ),
    Protocol(
        r"^(WEZTERM_PANE=.+|LC_TERMINAL=iTerm2|TERM_PROGRAM=(iTerm\.app|WezTerm|vscode))$",
        (".png", ".jpg", ".jpeg", ".gif", ".webp"),
        iterm_sequences,
    ),
)


def show_picture(path: str, console: Console, environ: Environ) -> None:
    """Shows a saved picture, whose suffix tells the truth, in the terminal itself, or warns that it cannot be shown."""
    shows = console.live and not environ.get("TMUX")  # which keeps the terminal's variables, not its pictures
    said = "\n".join(map("=".join, environ.items())) if shows else ""
    protocol = next((row for row in PROTOCOLS if re.search(row.variables, said, re.MULTILINE)), None)
    if protocol and path.lower().endswith(protocol.suffixes):
        console.draw(itertools.chain(protocol.sequences(path), ["\n"]))
    else:
        why = "cannot show this format" if protocol else "shows no pictures, or does not say that it does"
        console.warn(f"--preview: this terminal {why}")


# ---------------------------------------------------------------------------------------------------------------------
# 3 Kinds, Tables: text -> value, and all knowledge of the API, as rows
# ---------------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """How a setting is written: `parse` turns a text of this form into a value or raises ValueError.

    `choices` and the range `low`-`high` are checked later, with the rules, so that --no-validate can send other values.
    """

    parse: Callable[[str], Any]
    metavar: str = ""
    form: str = "(?s).*"  # a pattern
    expected: str = ""  # the form in words
    choices: Words = ()
    low: int = 0
    high: int = 0  # 0: not a number
    flag: bool = False
    repeat: bool = False
    private: bool = False  # an error does not show it
    strict: bool = False  # choices of our own, not the API's: no --no-validate and no unknown model opens them
    one_line: bool = False  # a header or an id: no control characters
    reads: bool = False  # names a file that is read; pictures are known by other means
    writes: bool = False  # names what will be written, which a batch fills with safe names only


def parse_word(text: str) -> str:
    """Reads a word whatever its case."""
    return text.strip().lower()


def parse_format(text: str) -> str:
    """Reads the name of a picture format."""
    return parse_word(text).replace("jpg", "jpeg")


def parse_key(text: str) -> Secret:
    """Reads a key; blanks around it are dropped."""
    return Secret(text.strip())


def parse_url(text: str) -> str:
    """Reads a URL; only blanks around it are dropped, since a line break in it is worth an error."""
    return text.strip(" ")


def parse_flag(text: str) -> bool:
    """Reads yes or no."""
    return parse_word(text) in ("1", "true", "yes", "on")


def read_text(path: str) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark; ValueError says what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as UTF-8 text: {getattr(error, 'strerror', None) or error}") from error


MOST_LEVELS = 100  # of nesting in JSON that a person gives


def parse_object(text: str) -> Json:
    """Reads a JSON object, or one from a file named as @FILE."""
    text = read_text(text[1:]) if text.startswith("@") else text
    try:
        value = json.loads(text)
        # Python reads NaN and Infinity, and 1e999 as such, but JSON has neither. Each level is indented by a blank.
        pieces = json.JSONEncoder(allow_nan=False, indent=1).iterencode(value)
        if any("\n" + " " * MOST_LEVELS in piece for piece in pieces):
            raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object or @FILE ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object or @FILE")
    return value


def parse_tool_choice(text: str) -> Any:
    """Reads a tool choice: a word of the API, `image_generation` for the hosted tool, or a JSON object."""
    if text.lstrip().startswith("{"):
        return parse_object(text)
    return {"type": text} if text == "image_generation" else text


# By a word in its name, or by how its value begins.
SECRET_HEADER = r"(?i)[^:]*(auth|key|token|secret|cookie|passw|credential|signature|session|:((bearer|basic)\s|sk-))"


class HeaderLine(NamedTuple):
    """A request header; its value is a secret if its name or its form says so."""

    name: str
    value: str | Secret

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


def parse_header(text: str) -> HeaderLine:
    """Reads `Name: value`, unless the program sets that header itself."""
    name, value = (part.strip(" \t") for part in text.split(":", 1))
    if name.lower() in ("content-length", "content-type", "transfer-encoding", "host", "connection"):
        raise ValueError(f"{name} is set by the program itself")
    return HeaderLine(name, Secret(value) if re.match(SECRET_HEADER, f"{name}:{value}") else value)


def parse_box(text: str) -> str:
    """Reads a rectangle; drops blanks."""
    return re.sub(r"\s+", "", text)


def one_of(values: Words) -> str:
    """Returns values as words: a, b or c."""
    return " or ".join(", ".join(values).rsplit(", ", 1))


def choice(*values: str, strict: bool = False) -> Kind:
    """Returns the kind of a word out of several."""
    return Kind(str, "|".join(values), choices=values, strict=strict)


def number(low: int, high: int) -> Kind:
    """Returns the kind of a whole number in a range, both ends included."""
    return Kind(int, "N", r"\s*[+-]?[0-9]{1,9}\s*", "a whole number", low=low, high=high)


TEXT = Kind(str, "TEXT")
NAME = Kind(str, "NAME", one_line=True)
END_USER = NAME._replace(metavar="ID")  # how long it may be is the route's to say
# Shells leave a ~ alone within quotes and behind an equals sign.
PATH = Kind(os.path.expanduser, "PATH", reads=True)
TARGET = Kind(os.path.expanduser, "PATH", writes=True)
URL = Kind(parse_url, "URL")
FLAG = Kind(parse_flag, "", r"(?i)\s*(1|true|yes|on|0|false|no|off)\s*", "true or false", flag=True)
SECONDS = Kind(
    float, "SECONDS", r"\s*(?=.*[1-9])[0-9]{1,6}(\.[0-9]+)?\s*", "a number greater than 0, such as 20 or 0.5"
)
SIZE = Kind(parse_word, "WIDTHxHEIGHT|RATIO|auto")
OBJECT = Kind(parse_object, "JSON|@FILE", reads=True)
PICTURE_FORMAT = choice("png", "jpeg", "webp", "gif", "svg")._replace(parse=parse_format)
EFFORT = choice("none", "minimal", "low", "medium", "high", "xhigh", "max")
COUNT = number(1, 999_999_999)
TOOL_CHOICE = Kind(
    parse_tool_choice,
    "auto|required|none|image_generation|JSON",
    r"(?s)auto|required|none|image_generation|\s*\{.*",
    "auto, required, none, image_generation or a JSON object",
)
PICTURE = Kind(os.path.expanduser, "PATH|URL|file_id:ID")
PICTURES = PICTURE._replace(repeat=True)
SIDE = r"\s*([0-9]{1,5}|[0-9]{1,3}(\.[0-9]+)?%)\s*"
BOXES = Kind(
    parse_box,
    "X,Y,WIDTH,HEIGHT",
    rf"{SIDE}(,{SIDE}){{3}}",
    "X,Y,WIDTH,HEIGHT in pixels or percent, such as 10,20,300,200 or 25%,0%,50%,100%",
    repeat=True,
)
HEADER = Kind(
    parse_header,
    "'Name: value'",
    # No CR, LF, NUL and other control characters, since they could forge headers.
    r" *[A-Za-z0-9!#$%&'*+.^_`|~-]+ *:[\x20-\x7e\t\xa0-\xff]*",
    "'Name: value', in one line of printable Latin-1 characters",
    repeat=True,
    private=True,
)
VARIABLE_NAME = Kind(
    str,
    "NAME",
    r"[A-Za-z_][A-Za-z0-9_]*",
    "the name of a variable that holds the key, such as RELAY_KEY, and not the key",
    private=True,
)


OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOSTS = r"(.+\.)?api\.openai\.com"
FACTS_OF = "2026-11-20"  # the day the tables below were last held against the API


class Route(NamedTuple):
    """A row of ROUTES: a subcommand, where it posts to, and how its body is written."""

    name: str
    path: str
    summary: str
    examples: Words
    longest_user: int = 64  # characters of the id of an end user


ROUTES = (
    Route("generations", "/images/generations", "make pictures from text",
          ('generations "A lighthouse at dusk" -o out/lighthouse.png',
           'generations "A sketch of a chair" --n 4 -o out/chair.webp',
           'generations --prompt-file poster.txt --n 2 --dry-run')),
    Route("edits", "/images/edits", "edit or combine pictures, with or without a mask",
          ('edits "Make it snow" --image photo.jpg -o out/snow.png',
           'edits "Blend the two" --image cup.png --image table.png',
           'edits "A door" --image photo.jpg --mask-box 0,0,50%,50%')),
    Route("responses", "/responses", "let a text model make pictures, with previews and follow-up requests",
          ('responses "A poster" --stream --partial-images 2 -o p.png',
           'responses "Make it blue" --previous-response-id resp_123',
           'responses "A map" --background-mode --output out/map.png'), 128),
)  # fmt: skip
ROUTE = {row.name: row for row in ROUTES}
CHAT_PATH = "/chat/completions"

IMAGES = ("generations", "edits")
ALL = (*IMAGES, "responses")
CALLS = (*ALL, "batch")
NET = (*CALLS, "resume", "config")
SAVES = (*ALL, "resume", "extract")
EVERY = (*SAVES, "batch", "config")


class Option(NamedTuple):
    """A row of OPTIONS: one setting, and all that the command line, environment, body and documents need of it.

    `sends` says where the value goes: "image" is the top level of an Images body and the tool of a response, "top" the
    top level of any body, "picture" each input picture of a response, "header" a request header, "" nowhere by itself.
    `field` is the name there, dotted if nested.
    """

    name: str
    kind: Kind
    help: str
    commands: Words = ALL
    also: Words = ()
    sends: str = ""
    field: str = ""
    env: Words = ()
    default: str | None = None
    input: str = ""  # for what leads to a picture: its role, and what the text is always read as (but `auto`: may be)
    negative: str = ""  # the spelling that says no, where a flag can be on by itself
    secret: bool = False
    chat: bool = False  # chat carries it too
    needs: str = ""  # the flag that it goes with: switched off on the command line, it takes this with it
    harmless: bool = False  # changes nothing that is sent, nor what it costs, so that any folder's .env may set it
    unbatched: str = ""  # pattern of the values that the vendor's batches do not take
    group: str = ""

    @property
    def path(self) -> Words:
        """Returns the keys that lead to the API field."""
        return tuple((self.field or self.name.replace("-", "_")).split("."))


RESPONSES = ("responses",)
# The longest wait between two looks at a background response, in seconds, by its completion window.
SOONEST = "soonest"  # the server's default
POLL_MOST = {SOONEST: 10.0, "2h": 30.0, "8h": 90.0}

# By the groups of the help and of the reference.
OPTION_GROUPS = {
    "Prompt": (
        Option("prompt", TEXT, "what to make; PROMPT as an argument means the same", also=("p",)),
        Option("prompt-file", PATH, "read the prompt from a UTF-8 file; - is standard input"),
        Option("input-text", TEXT._replace(repeat=True), "a piece of the prompt (repeatable)", RESPONSES),
    ),
    "Picture": (
        Option("model", NAME, "image model", IMAGES, also=("m",), sends="top", env=("OPENAI_IMAGE_MODEL",),
               default="gpt-image-2", chat=True, unbatched=r"gpt-image-2\.6-.*"),  # by word of third parties
        Option("model", NAME, "text model that calls the image tool", RESPONSES, also=("m",), sends="top",
               env=("OPENAI_RESPONSES_MODEL",), default="gpt-5.4"),
        Option("tool-model", NAME, "image model of the tool; left out, the server chooses", RESPONSES, sends="image",
               field="model", env=("OPENAI_IMAGE_TOOL_MODEL",)),
        Option("n", number(1, 10), "how many pictures", IMAGES, also=("n",), sends="image", env=("OPENAI_IMAGE_N",),
               chat=True),
        Option("size", SIZE, "1536x1024, or 16:9, square, landscape, portrait, wide, tall; @2k sets the long edge",
               also=("s",), sends="image", env=("OPENAI_IMAGE_SIZE",)),
        Option("aspect-ratio", SIZE._replace(metavar="RATIO"), "the same, for a proportion"),
        Option("quality", choice("auto", "low", "medium", "high", "xhigh", "max"), "rendering quality", also=("Q",),
               sends="image", env=("OPENAI_IMAGE_QUALITY",)),
        Option("background", choice("auto", "opaque", "transparent"), "transparency of the picture's background",
               sends="image", env=("OPENAI_IMAGE_BACKGROUND",)),
        Option("format", PICTURE_FORMAT, "file format; without it the suffix of --output decides",
               also=("output-format",), sends="image", field="output_format",
               env=("OPENAI_IMAGE_FORMAT", "OPENAI_IMAGE_OUTPUT_FORMAT")),
        Option("compression", number(0, 100), "compression of jpeg and webp, in percent",
               also=("output-compression",), sends="image", field="output_compression",
               env=("OPENAI_IMAGE_COMPRESSION", "OPENAI_IMAGE_OUTPUT_COMPRESSION")),
        Option("moderation", choice("auto", "low"), "how strictly content is filtered", sends="image",
               env=("OPENAI_IMAGE_MODERATION",)),
        Option("complexity", choice("low", "medium", "high"), "effort spent on planning the picture", sends="image"),
        Option("frame-count", number(2, 16), "frames of a gif", sends="image"),
        Option("frame-duration-ms", number(20, 655_350), "milliseconds each frame of a gif is shown; rounded to 10",
               sends="image"),
        Option("svg-model", NAME, "text model that writes an svg", sends="image", field="svg.model"),
        Option("svg-effort", EFFORT, "reasoning effort of the model that writes the svg", sends="image",
               field="svg.reasoning.effort"),
    ),
    "Input pictures": (
        Option("image", PICTURES, "picture to edit (repeatable, up to 16)", ("edits",), also=("input", "i"),
               input="image", chat=True),
        Option("input-image", PICTURES, "picture for the model to see (repeatable)", RESPONSES, also=("i",),
               input="image"),
        Option("input-image-url", URL._replace(repeat=True), "the same, always read as a URL", RESPONSES,
               input="image url"),
        Option("input-image-file-id", NAME._replace(repeat=True), "the same, always read as the id of an uploaded file",
               RESPONSES, input="image file_id"),
        Option("input-image-data-url", Kind(str, "DATA-URL", repeat=True), "the same, as a data: URL", RESPONSES,
               input="image data"),
        Option("input-detail", choice("low", "high", "auto", "original"), "how closely the model looks at the pictures",
               RESPONSES, sends="picture", field="detail"),
        Option("mask", PICTURE._replace(metavar="PATH|URL|file_id:ID|auto"),
               "PNG whose transparent parts say where to edit; auto lets a gateway make one", ("edits",),
               input="mask auto", unbatched="auto"),
        Option("mask", PICTURE, "PNG whose transparent parts say where to edit", RESPONSES, input="mask"),
        Option("mask-url", URL, "the same, always read as a URL", RESPONSES, input="mask url"),
        Option("mask-file-id", NAME, "the same, always read as the id of an uploaded file", RESPONSES,
               input="mask file_id"),
        Option("mask-box", BOXES, "make the mask: where to edit, in pixels or percent (repeatable)",
               ("edits", "responses")),
        Option("markup", PATH, "transparent PNG with marks that guide the edit", ("edits",), input="markup file",
               unbatched=".+"),
        Option("image-field-style", choice("brackets", "simple", "indexed", strict=True),
               "form field of the pictures: image[], image or image[0]", ("edits",), default="brackets"),
    ),
    "Response": (
        Option("action", choice("auto", "generate", "edit"), "whether the tool makes or edits", RESPONSES,
               sends="image"),
        Option("tool-choice", TOOL_CHOICE, "whether the model must call the tool", RESPONSES, sends="top",
               env=("OPENAI_IMAGE_TOOL_CHOICE",), default="image_generation"),
        Option("previous-response-id", NAME, "the response to go on from", RESPONSES, sends="top"),
        Option("conversation", NAME, "id of the conversation to go on with; the response is added to it", RESPONSES,
               sends="top"),
        Option("instructions", TEXT, "standing instructions for the text model", RESPONSES, sends="top"),
        Option("background-mode", FLAG, "queue the response and collect it when it is ready", RESPONSES, sends="top",
               field="background", unbatched="True"),
        Option("completion-window", choice(*POLL_MOST), "how long --background-mode may take; 2h and 8h cost less",
               RESPONSES, sends="top", field="background_options.completion_window", needs="background-mode"),
        Option("continuation-id", NAME, "an id of your own that lets related responses of --background-mode go first",
               RESPONSES, sends="top", field="background_options.continuation_id", needs="background-mode"),
        Option("wait", SECONDS, "seconds to wait for the background response at most; then exit code 8, to be resumed",
               ("responses", "resume"), needs="background-mode"),
        Option("no-wait", FLAG, "do not wait for the background response: send it, or look at it once, and end",
               ("responses", "resume"), needs="background-mode"),
        Option("store", FLAG, "let the server keep the response, for follow-up requests", RESPONSES, sends="top",
               negative="no-store"),
        Option("metadata-json", OBJECT, "up to 16 names with values to keep with the response", RESPONSES,
               sends="top", field="metadata"),
        Option("max-tool-calls", COUNT, "limit of tool calls in the response, and so of pictures", RESPONSES,
               sends="top"),
        Option("max-output-tokens", COUNT, "limit of the text model's tokens, reasoning included", RESPONSES,
               sends="top"),
        Option("service-tier", choice("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
               "how fast, and at which price, the response is processed", RESPONSES, sends="top"),
        Option("reasoning-effort", EFFORT, "reasoning effort of the text model", RESPONSES, sends="top",
               field="reasoning.effort"),
        Option("stream", FLAG, "receive events as they happen, and previews", sends="top",
               env=("OPENAI_IMAGE_STREAM",), negative="no-stream", chat=True, unbatched="True"),
        Option("partial-images", number(0, 3), "previews to ask for; needs --stream", sends="image",
               env=("OPENAI_IMAGE_PARTIAL_IMAGES",), needs="stream"),
        Option("safety-identifier", END_USER, "a stable, hashed id of your end user", sends="top", chat=True),
        Option("user", END_USER, "older name of --safety-identifier", sends="top", env=("OPENAI_IMAGE_USER",),
               chat=True),
        Option("extra-json", OBJECT, "fields to add to the body or replace in it, unchecked",
               env=("OPENAI_IMAGE_EXTRA_JSON",)),
        Option("cancel", FLAG, "cancel what runs at the server; of a batch, what is finished is still collected",
               ("resume", "batch")),
    ),
    "Output": (
        Option("output", TARGET._replace(metavar="PATTERN"),
               "file, folder, - for standard output, or pattern with {index} {partial} {prompt} {date} {time} {model}",
               SAVES, also=("o",)),
        Option("overwrite", FLAG, "replace files that exist", SAVES),
        Option("sidecar", FLAG, "write a .json file beside each picture: its prompt and all else that is known", SAVES),
        Option("save-response", TARGET, "keep the bytes of the reply in this file", (*ALL, "resume"), unbatched=".+"),
        Option("dry-run", FLAG, "check everything and show the request; needs no key and sends nothing", CALLS),
        Option("curl", FLAG, "print the request as a curl command and send nothing"),
    ),
    "Display": (
        Option("json", FLAG, "print the result as JSON on a terminal too", EVERY),
        Option("progress", choice("auto", "plain", "json", "none", strict=True), "how to show progress on stderr",
               (*SAVES, "batch"), default="auto"),
        Option("quiet", FLAG, "no progress and no warnings on stderr", EVERY, also=("q",)),
        Option("preview", FLAG, "show the pictures in the terminal, where it can", SAVES),
        Option("open", FLAG, "show the pictures in the system's viewer at the end", SAVES),
    ),
    "Connection": (
        Option("no-validate", FLAG, "turn failed checks into warnings and send the request"),
        Option("protocol", choice("openai_images", "openai_chat", strict=True),
               "openai_chat for gateways with chat only", IMAGES, env=("OPENAI_IMAGE_PROTOCOL",),
               default="openai_images", unbatched="openai_chat"),
        Option("base-url", URL, "base URL of the API, including /v1", NET,
               env=("OPENAI_BASE_URL", "GPT_IMAGE2_BASE_URL"), default=OPENAI_URL, harmless=True),  # see check_pair
        Option("api-key", Kind(parse_key, "KEY"), "the key; better set in the environment or a .env", NET,
               env=("OPENAI_API_KEY", "GPT_IMAGE2_API_KEY"), secret=True, harmless=True),
        Option("api-key-env", VARIABLE_NAME, "read the key from this variable", NET),
        Option("organization", NAME, "organization to bill", NET, sends="header", field="OpenAI-Organization",
               env=("OPENAI_ORG_ID",)),
        Option("project", NAME, "project to bill", NET, sends="header", field="OpenAI-Project",
               env=("OPENAI_PROJECT_ID",)),
        Option("header", HEADER, "a further request header (repeatable)", NET),
        Option("env-file", PATH, "read settings from this file instead of .env", EVERY),
        Option("no-env-file", FLAG, "read no .env", EVERY),
        Option("timeout", SECONDS, "seconds to wait for the next byte", NET, env=("OPENAI_IMAGE_TIMEOUT",),
               default="600", harmless=True),
        Option("max-retries", number(0, 10), "further tries after a failure that cannot have been billed", NET,
               default="2"),
        Option("retry-billable", FLAG, "try again too when the failed try may have been billed", CALLS),
        Option("allow-http", FLAG, "send the key over plain http to a public host", NET),
    ),
    "Batch": (
        Option("route", choice(*ALL, strict=True), "route of the jobs that name none", ("batch",),
               default="generations"),
        Option("parallel", number(1, 64), "calls at once", ("batch",), default="8"),
        Option("ledger", TARGET, "file that records the state of each job (default: beside JOBS)", ("batch",)),
        Option("contact-sheet", TARGET._replace(metavar="FILE.html"),
               "a page to look through while it runs and after: every picture, and why others are missing", ("batch",)),
        Option("engine", choice("calls", "batch-api", strict=True),
               "single calls, or the vendor's Batch API: half the price, and up to a day", ("batch",), default="calls"),
        Option("no-wait", FLAG, "end when the Batch API has all jobs; the same command collects them", ("batch",)),
        Option("wait", SECONDS, "seconds to wait for the Batch API at most; the same command goes on", ("batch",)),
        Option("keep-files", FLAG, "leave what was uploaded for the Batch API at the server", ("batch",)),
        Option("max-cost", SECONDS._replace(metavar="USD"), "send nothing that could bring the cost above this", CALLS),
    ),
    "Config": (
        Option("init", FLAG, "write a commented .env into the current folder, never over an existing one",
               ("config",)),
        Option("check", FLAG, "ask the endpoint, free of charge, whether it accepts the key", ("config",)),
        Option("completion", choice("bash", "zsh", "fish", strict=True), "print a completion script for this shell",
               ("config",)),
    ),
    "Retired models": (
        Option("input-fidelity", choice("high", "low"), "how closely models before gpt-image-2 keep to the pictures",
               ("edits", "responses"), sends="image", env=("OPENAI_IMAGE_INPUT_FIDELITY",)),
        Option("response-format", choice("b64_json", "url"), "how retired models and some gateways return pictures",
               IMAGES, sends="image", env=("OPENAI_IMAGE_RESPONSE_FORMAT",)),
        Option("style", choice("vivid", "natural"), "style, for retired models on gateways", IMAGES, sends="image",
               env=("OPENAI_IMAGE_STYLE",)),
    ),
}  # fmt: skip
FIRST = "Most used"  # the group that help and reference begin with
MOST_USED = ("prompt", "image", "input-image", "model", "n", "size", "quality", "format", "output")
OPTIONS = tuple(
    row._replace(group=FIRST if row.name in MOST_USED else group)
    for group, rows in OPTION_GROUPS.items()
    for row in rows
)
KEY_NAMES = [name for row in OPTIONS if row.secret for name in row.env]
SPENDING = {name for row in OPTIONS if not row.harmless for name in row.env}  # change what is sent, or its cost


def options_of(command: str) -> dict[str, Option]:
    """Returns the options of a subcommand by name."""
    return {row.name: row for row in OPTIONS if command in row.commands}


def rows_typed(command: str) -> list[Option]:
    """Returns the options that can be typed after a subcommand; after `batch`, those of the routes too, each once."""
    commands = CALLS if command == "batch" else (command,)
    found = {row.name: row for row in reversed(OPTIONS) if not set(commands).isdisjoint(row.commands)}
    return list(found.values())[::-1]


def spellings(row: Option) -> list[str]:
    """Returns every way to type an option, the usual one first, and the one that says no last."""
    others = (*row.also, row.negative)
    return [f"--{row.name}"] + [f"--{name}" if len(name) > 1 else f"-{name}" for name in others if name]


def words_of(command: str) -> dict[str, Option]:
    """Returns every option that can be typed after a subcommand, by each of its spellings."""
    return {word: row for row in rows_typed(command) for word in spellings(row)}


class Sizes(NamedTuple):
    """The sizes a model takes: a fixed list, or any that keeps the limits (in pixels)."""

    fixed: Words = ()
    multiple: int = 16
    edge: int = 3840
    ratio: int = 3
    least: int = 655_360
    most: int = 8_294_400
    experimental: int = 2560 * 1440  # above this many pixels the reference calls it experimental


# Proportions as people call them, and long edges as they call those: 16:9@2k.
RATIOS = {"square": "1:1", "landscape": "3:2", "portrait": "2:3", "wide": "16:9", "tall": "9:16"}
EDGES = {"1k": 1024, "2k": 2048, "4k": 3840}

FREE_SIZES = Sizes()
# What the reference names as popular: auto is taken to choose between the smallest and the largest of them.
AUTO_SIZES = ("1536x864", "1536x1024", "1024x1024", "2048x1152", "2048x2048", "3840x2160")
THREE_SIZES = Sizes(fixed=("1024x1024", "1536x1024", "1024x1536"))

Takes = dict[str, Words]


class Model(NamedTuple):
    """A row of MODELS: the ids it stands for, and what they take.

    `takes` lists, by option, the values the model takes; an empty list means that it does not know the option at all,
    and an option that is not listed has the values of its row in OPTIONS. None knows nothing and forbids nothing.
    `tokens` is the factor f of the estimate by quality, 0 where it is not known. `gone` is the day (UTC) from which
    OpenAI serves it no more.
    """

    pattern: str
    takes: Takes | None
    sizes: Sizes | None = None
    tokens: Mapping[str, int] = {}
    gone: str = ""
    instead: str = ""


BEFORE_26: Takes = {
    "format": ("png", "jpeg", "webp"), "complexity": (), "frame-count": (), "frame-duration-ms": (), "svg-model": (),
    "svg-effort": (), "response-format": (), "style": (),
}  # fmt: skip
TAKES_1: Takes = {**BEFORE_26, "quality": ("auto", "low", "medium", "high"), "markup": ()}
TAKES_2: Takes = {**TAKES_1, "background": ("auto", "opaque"), "input-fidelity": ()}
TAKES_25: Takes = {**BEFORE_26, "input-fidelity": ()}
TAKES_26: Takes = {"input-fidelity": (), "response-format": (), "style": ()}
TAKES_DALLE: Takes = {"quality": ("auto", "standard", "hd")}

MODELS = (
    Model(r"gpt-image-2\.6-(sunburst|flare)(-\d{4}-\d\d-\d\d)?", TAKES_26, FREE_SIZES,
          {"low": 0, "medium": 0, "high": 48, "xhigh": 64, "max": 96}),
    Model(r"gpt-image-2\.5-(sunburst|flare)(-\d{4}-\d\d-\d\d)?", TAKES_25, FREE_SIZES,
          {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}),
    Model(r"gpt-image-2(-\d{4}-\d\d-\d\d)?", TAKES_2, FREE_SIZES, {"low": 16, "medium": 48, "high": 96}),
    Model(r"gpt-image-1\.5(-\d{4}-\d\d-\d\d)?|chatgpt-image-latest", TAKES_1, THREE_SIZES, gone="2026-12-01",
          instead="gpt-image-2.5-sunburst"),
    Model(r"gpt-image-1-mini(-\d{4}-\d\d-\d\d)?", {**TAKES_1, "input-fidelity": ("low",)}, THREE_SIZES,
          gone="2026-12-01", instead="gpt-image-2.5-flare"),
    Model(r"gpt-image-1(-\d{4}-\d\d-\d\d)?", TAKES_1, THREE_SIZES, gone="2026-10-23",
          instead="gpt-image-2.5-sunburst"),
    Model(r"dall-e-[23]", TAKES_DALLE, gone="2026-05-12", instead="gpt-image-2.5-sunburst"),
    Model(r"(?s:.*)", None),
)  # fmt: skip
MODEL_IDS = (  # to recommend: none that is to go
    "gpt-image-2", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst", "gpt-image-2.6-flare",
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
    suffixes: Words
    transparent: bool = False
    compresses: bool = False
    one: bool = False  # takes n=1 only
    frames: int = 0  # without --frame-count; together they hold as many pixels as one still picture, and have no least
    counted: bool = True  # the formula of output tokens holds
    refuses: Words = ()
    owns: Words = ()  # options that go with this format only


FORMATS = (
    Format("png", (".png",), transparent=True),
    Format("jpeg", (".jpg", ".jpeg"), compresses=True),
    Format("webp", (".webp",), transparent=True, compresses=True),
    Format("gif", (".gif",), counted=False, frames=9, owns=("frame-count", "frame-duration-ms"),
           refuses=("stream", "partial-images", "mask", "mask-url", "mask-file-id", "mask-box")),
    Format("svg", (".svg",), counted=False, one=True, refuses=("stream", "partial-images"),
           owns=("svg-model", "svg-effort")),
)  # fmt: skip
FORMAT = {row.name: row for row in FORMATS}
PLACES = ("index", "partial", "prompt", "date", "time", "model")  # what --output may hold in braces
FORMAT_OF_SUFFIX = {suffix: row.name for row in FORMATS for suffix in row.suffixes}
DEFAULT_FORMAT = "png"

INPUT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
MIB = 1024 * 1024
MAX_IMAGES = 16
MAX_INPUT = 50 * MIB
MASK_WARNING = 4 * MIB
MAX_IMAGE_URL = 20_971_520  # characters, in the JSON form of edits
MAX_PROMPT = 32_000  # characters


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
    Dialect(r"response\.(output_text|refusal)\.delta|ar_delta", "delta", "delta"),
    Dialect(r"response\.output_text\.done", "said", "text"),
    Dialect(r"response\.refusal\.done", "said", "refusal"),
    Dialect(r"response\.(created|queued|in_progress|completed|failed|incomplete|cancelled)", "response", "response"),
    Dialect(r"response\.(?!image_generation_call)\w+_(call|tools)\..+", "tool"),  # its error is not the picture's
    Dialect(r"error", "error"),
    Dialect(r"data\[\]", "final"),
    Dialect(r"output\[\]", "item"),
    Dialect(r"choices\[\]", "chat"),
    Dialect(r"chat\.completion(\.chunk)?", "chunk"),
    Dialect(r"image", "response"),  # vLLM-Omni streams an edit so, behind the `ar_delta` of its text
    Dialect(r"reply|response", "response", "response"),
)
REPLY_ROW = EVENTS[-1]  # of a JSON reply that names itself in no way known here
PICTURE_ITEM = "image_generation_call"  # the output item of a response that holds a picture
LISTS = ("data", "output", "choices")
# The keys a picture stands under, best first: text in base64, a data: URL, or a URL to fetch.
PICTURE_KEYS = ("b64_json", "result", "partial_image_b64", "image_base64", "url")
SETTLED = ("size", "quality", "background", "output_format")  # what a reply says of them is what `auto` became
ENDED = ("completed", "failed", "incomplete", "cancelled")
WORKING = {"queued": "queued", "in_progress": "working"}  # in words


class Status(NamedTuple):
    """A row of STATUSES: an HTTP status, whether a try that ended so is made again, and a hint."""

    codes: tuple[int, ...]
    retry: str  # "never", "safe" (it was turned away), or "billable" (it may have run)
    hint: str = ""


STATUSES = (
    Status((401,), "never", "the key is not accepted here: check OPENAI_API_KEY, and that --base-url is its endpoint"),
    Status((403,), "never", "the organisation may have to be verified for this model, or the key lacks the permission"),
    Status((404,), "never",
           "the model may be retired or unknown here, or the base URL may lack /v1; a server with chat only needs "
           "--protocol openai_chat on generations and edits"),
    Status((413,), "never", "the pictures are too large for this endpoint"),
    Status((422,), "never",
           "if it names `image`: some gateways want --image-field-style simple; if it misses the prompt of an edit: "
           "this server takes a form only, so give local files and leave --moderation out"),
    Status((408, 409, 429, 500, 503), "safe"),
    Status((502, 504, *range(520, 525)), "billable",
           "a proxy gave up while the picture was being made: try --stream --partial-images 1, or a response with "
           "--background-mode"),
)  # fmt: skip
MODERATION = ("moderation_blocked", "image_content_policy_violation", "content_policy_violation", "content_filter")
MONEY = (
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
)  # fmt: skip
CODE_HINTS = {
    **{code: "change the prompt or the input pictures; --moderation low filters less" for code in MODERATION},
    "model_not_found": "the model may be retired or unknown here: try --model gpt-image-2",
    "previous_response_not_found": "responses are kept 30 days, and only if they were stored",
    "invalid_input_fidelity_model": "leave --input-fidelity out",
    "invalid_image_file": "save the picture again as PNG, JPEG or WebP",
    "no_db_connection": "the key is not the one this proxy knows",
    "multipart/form-data": "this server takes an edit as a form only: give local files, and leave --moderation out",
    **{code: "this is a billing limit, not a rate limit: see the billing page" for code in MONEY},
}
# A proxy in between may hide the code, and a picture that was made behind a status that says it was not.
MONEY_WORDS = "|".join((*MONEY, "exceeded your current quota"))
RAN_BEHIND = r"(HTTP \d+: )?litellm\.(APIError|APIConnectionError|InternalServerError|Timeout)"
REQUEST_IDS = ("x-request-id", "x-litellm-call-id")

# What LiteLLM spoils of an edit, by the name of a form field, or by the URL that JSON was sent to.
LITELLM = "x-litellm-version"  # a header of its replies
LITELLM_LOSES = {
    r"markup|image\[\d+\]":
        "LiteLLM passes --markup, and pictures named by --image-field-style indexed, on as text: they are lost",
    r"https?://[^?]*/images/edits(\?.*)?":
        "LiteLLM passes the JSON of an edit on as a form: give local files and no --moderation, or use responses",
}  # fmt: skip
LONGEST_WAIT = 120.0  # seconds; the official SDK waits no longer either
RETRY_FIRST, RETRY_MOST = 0.5, 8.0  # seconds

# US dollars per million tokens; alike for gpt-image-2, 2.5 and 2.6. What was cached costs a quarter.
PRICES = {"text_tokens": 5.0, "image_tokens": 8.0, "output": 30.0}
CACHED_OFF = 0.75
PARTIAL_TOKENS = 100  # output tokens of each preview


def tokens_of(model: Model, size: str, quality: str) -> int:
    """Returns the output tokens of one picture by the published formula, or 0 where none is known."""
    sides = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", size)
    if not sides:
        return 0
    factor, (short, long) = model.tokens.get(quality, 0), sorted(map(int, sides.groups()))
    # round() rounds halves to even; the published figures round them up
    return math.ceil(factor * int(factor * short / long + 0.5) * (2_000_000 + long * short) / 4_000_000)


def cost_of(facts: Json, route: str, model: str | None, share: float) -> Json | None:
    """Returns the dollars of a call by its usage, at a share of the price; None where it is not known, as of an svg."""
    if route not in IMAGES or not model_row(model or "").tokens or facts.get("svg_usage"):
        return None
    try:
        usage = facts["usage"]
        details, uncounted = usage["input_tokens_details"], usage["input_tokens"]
        cached = details.get("cached_tokens_details") or {}
        dollars = usage["output_tokens"] * PRICES["output"]
        for kind in ("text_tokens", "image_tokens"):
            count = details.get(kind, 0)
            uncounted -= count
            dollars += (count - cached.get(kind, 0) * CACHED_OFF) * PRICES[kind]
        return None if uncounted else {"usd": round(dollars * share / 1e6, 6), "prices_of": FACTS_OF}
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# 4 Pictures: what a file's bytes say of it
# ---------------------------------------------------------------------------------------------------------------------


BLOCK = 128 * 1024  # bytes read, sent or received at a time


class Picture(NamedTuple):
    """What the bytes of a picture say; a side is 0 where the format keeps it from us, or has none in pixels."""

    format: str
    width: int = 0
    height: int = 0
    alpha: bool = False  # of a PNG
    animated: bool = False  # of a GIF
    whole: bool | None = None  # None where the bytes cannot tell
    turned: bool = False  # of a JPEG: EXIF says to show it with width and height exchanged

    @property
    def shown(self) -> tuple[int, int]:
        """Returns width and height as seen, after orientation."""
        return (self.height, self.width) if self.turned else (self.width, self.height)


def little(data: bytes) -> int:
    """Returns the number of bytes that begin with the least."""
    return int.from_bytes(data, "little")


MOST_READS = 1 << 18  # of a file that is looked at: no real picture consists of so many chunks, segments or blocks


class PictureFile(io.BufferedReader):
    """An open picture that counts as damaged once it was read too often, so that none takes more than a moment."""

    left = MOST_READS

    def read(self, size: int | None = -1) -> bytes:
        """Reads as any file does."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("more parts than a picture has")
        return super().read(size)


def length_of(file: BinaryFile) -> int:
    """Returns the length of a file, which then stands at its end."""
    return file.seek(0, os.SEEK_END)


# https://www.w3.org/TR/png-3/
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunks(file: BinaryFile) -> Iterator[tuple[bytes, int]]:
    """Yields type and length of each chunk of a PNG, the file standing at its data; ends early on a file cut short."""
    at, end, kind = 8, length_of(file), b""
    while at + 12 <= end and kind != b"IEND":
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        at += 12 + length
        if at <= end:
            yield kind, length


# The chunk that comes first: two sides above zero, a depth that the colour type allows, and whether it is interlaced.
PNG_HEADER = (
    rb"(?s).{8}\0\0\0\rIHDR(?!\0{4}).{4}(?!\0{4}).{4}"
    rb"([\x01\x02\x04\x08\x10]\0|[\x08\x10][\x02\x04\x06]|[\x01\x02\x04\x08]\x03)\0\0[\0\x01]"
)


def identify_png(file: BinaryFile, head: bytes) -> Picture:
    """Reads size, alpha (an alpha channel or tRNS) and completeness of a PNG."""
    kinds = {kind for kind, _ in png_chunks(file)}
    width, height, colour = struct.unpack_from(">IIxB", head, 16)
    whole = b"IEND" in kinds and bool(re.match(PNG_HEADER, head))
    return Picture("png", width, height, colour in (4, 6) or b"tRNS" in kinds, whole=whole)


JPEG_FRAMES = b"\xc0\xc1\xc2\xc3\xc5\xc6\xc7\xc9\xca\xcb\xcd\xce\xcf"  # the markers of segments that hold the size
# EXIF in either byte order up to its first orientation (tag 0x0112, of one value); 5 to 8 exchange width and height.
ORIENTATION = (
    rb"(?s)Exif\0\0(?:II\*\0.{4,999}?\x12\x01[\x03\x04]\0\x01\0\0\0"
    rb"|MM\0\*.{4,999}?\x01\x12\0\x03\0\0\0\x01\0)(.)"
)


def identify_jpeg(file: BinaryFile, head: bytes) -> Picture:
    """Reads frame and orientation of a JPEG; whole if an end marker follows its scan, whatever is behind that."""
    # https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B
    width, height, orientation, marker = 0, 0, None, b""
    file.seek(2)
    while marker != b"\xda":  # there the scan begins
        marker = file.read(1)
        if marker == b"\xff":  # it stands before each marker, and may be repeated
            continue
        (length,) = struct.unpack(">H", file.read(2))
        segment = file.read(max(length - 2, 0))
        orientation = orientation or re.match(ORIENTATION, segment)
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">xHH", segment)
    turned = orientation is not None and orientation[1] in b"\5\6\7\x08"
    # No data of a scan looks like an end marker, but cameras put films and other pictures behind it.
    scan, end = b"", b"\xff\xd9"
    while end not in scan and (more := file.read(BLOCK)):
        scan = scan[-1:] + more
    return Picture("jpeg", width, height, whole=width > 0 and end in scan, turned=turned)


def identify_webp(file: BinaryFile, head: bytes) -> Picture:
    """Reads the first chunk of a WebP: lossy (VP8), lossless (VP8L) or extended (VP8X)."""
    # https://developers.google.com/speed/webp/docs/riff_container
    # where the two sides stand, the bits from one to the other, the largest, and what is to be added
    layouts = {b"VP8X": (24, 24, 0xFFFFFF, 1), b"VP8L": (21, 14, 0x3FFF, 1)}
    start, bits, most, more = layouts.get(head[12:16], (26, 16, 0x3FFF, 0))
    sides = little(head[start : start + 6])
    whole = length_of(file) >= 8 + little(head[4:8])
    return Picture("webp", more + (sides & most), more + (sides >> bits & most), whole=whole)


def colour_table(flags: int) -> int:
    """Returns the bytes of a GIF's colour table, by the flags that announce it."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def identify_gif(file: BinaryFile, head: bytes) -> Picture:
    """Walks the blocks of a GIF: more than one image descriptor is an animation, and a trailer ends a whole file."""
    # https://www.w3.org/Graphics/GIF/spec-gif89a.txt
    width, height, flags = struct.unpack_from("<HHB", head, 6)
    frames = 0
    file.seek(13 + colour_table(flags))
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b",":
            frames += 1
            file.seek(colour_table(file.read(9)[8]), os.SEEK_CUR)
        file.seek(1, os.SEEK_CUR)  # the label of an extension, or the code size of an image
        while size := file.read(1)[0]:
            file.seek(size, os.SEEK_CUR)
    return Picture("gif", width, height, animated=frames > 1, whole=kind == b";")


def identify_svg(file: BinaryFile, head: bytes) -> Picture | None:
    """Looks for the root element of an SVG and for its end; other XML is not a picture."""
    if b"<svg" not in head:
        return None
    file.seek(max(length_of(file) - 64, 0))
    return Picture("svg", whole=b"</svg>" in file.read())


def identify_iso(file: BinaryFile, head: bytes) -> Picture:
    """Walks the boxes of an AVIF or a HEIC, the last of which ends where the file does."""
    at, end, kinds = 0, length_of(file), set()
    while at + 8 <= end:
        file.seek(at)
        size = int.from_bytes(file.read(4), "big")
        kinds.add(file.read(4))
        at = at + size if size >= 8 else end  # 0 is a box up to the end, 1 one of more than 4 GB
    return Picture("avif" if head[8:11] == b"avi" else "heic", whole=at == end and b"mdat" in kinds)


def identify_bmp(file: BinaryFile, head: bytes) -> Picture:
    """Reads how long a BMP says that it is."""
    return Picture("bmp", whole=length_of(file) >= little(head[2:6]))


class Signature(NamedTuple):
    """A row of SIGNATURES: how files of a format begin, how the base64 of such a file does, and what reads the rest."""

    format: str
    pattern: bytes
    base64: bytes  # `/`, `+` and `.` stand for themselves, and for any character of base64
    identify: Callable[[BinaryFile, bytes], Picture | None] | None = None  # None: only the name matters here


# How characters of base64 may stand in JSON text: PHP escapes the slash, some the plus, and base64url has `_` and `-`.
JSON_FORMS = {
    b"/": rb"(?:\\?/|_|\\u002[fF])",
    b"+": rb"(?:[+-]|\\u002[bB])",
    b".": rb"(?:[A-Za-z0-9/+_-]|\\/|\\u002[fFbB])",
}


SIGNATURES = (
    Signature("png", rb"\x89PNG\r\n\x1a\n", rb"iVBORw0KGg[o-r]", identify_png),
    Signature("jpeg", rb"\xff\xd8\xff", rb"/9j/", identify_jpeg),
    Signature("webp", rb"RIFF....WEBP", rb"UklGR[g-v].{4}[BFJNRVZdhlptx159]XRUJQ", identify_webp),
    Signature("gif", rb"GIF8[79]a", rb"R0lGOD[dl]h", identify_gif),
    Signature("svg", rb"(\xef\xbb\xbf)?\s{0,99}<(svg|\?xml|!--|!DOCTYPE svg)",
              # a byte order mark, white space by threes, and what follows at each of the three places in a group
              rb"(77u/)?([CDI][ACQSgiwy][kosw0A][JKLMNg]){0,33}"
              rb"(PHN2Z|PD94bW[w-z]|PCEtL[Q-Za-f]|PCFET0NUWVBFIHN2Z"
              rb"|[CDI][DTjz](xzdm[c-f]|w/eG1s|whLS[0-3]|whRE9DVFlQRSBzdm[c-f])"
              rb"|[CDI][ACQSgiwy][kosw0A]8(c3Zn|P3htb[A-P]|IS0t|IURPQ1RZUEUgc3Zn))", identify_svg),
    Signature("avif", rb"....ftyp(avif|avis)", rb".{5}[GWm2]Z0eXBhdml[mz]", identify_iso),
    Signature("heic", rb"....ftyp(hei[cfmsx]|hev[cx]|mif1|msf1)",
              rb".{5}[GWm2]Z0eXB(oZWl[jmtz4]|oZXZ[j4]|taWYx|tc2Yx)", identify_iso),
    Signature("bmp", rb"BM....\0\0\0\0", rb"Qk[0-3].{5}AAAAA[A-P]", identify_bmp),
    Signature("tiff", rb"II\*\0|MM\0\*", rb"SUkqA[A-P]|TU0AK[g-v]"),
    Signature("ico", rb"\x00\x00\x01\x00", b""),  # too short: base64 of much else begins so
    Signature("jxl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", rb"AAAADEpYTCANCocK"),
)  # fmt: skip


def base64_heads() -> bytes:
    """Returns a pattern of how the base64 of any picture begins in JSON text, where slash and plus may be escaped."""
    heads = b"|".join(row.base64 for row in SIGNATURES if row.base64)
    return re.sub(rb"[/+.]", lambda match: JSON_FORMS[match.group()], heads)


def signature_of(head: bytes) -> Signature | None:
    """Returns the row of SIGNATURES for the first bytes of a file; None if they are not those of a picture."""
    return next((row for row in SIGNATURES if re.match(row.pattern, head, re.DOTALL)), None)


def identify_file(raw: Any) -> Picture | None:
    """Returns what the bytes of a file say that is open unbuffered, and closes it; None if it is not a picture."""
    with PictureFile(raw) as file:
        head = file.read(BLOCK)
        row = signature_of(head)
        try:
            return row and (row.identify(file, head) if row.identify else Picture(row.format))
        except (IndexError, ValueError, struct.error):
            return row and Picture(row.format, whole=False)


def identify(path: str) -> Picture | None:
    """Returns what the bytes of a file say, or None if it is not a picture; OSError if it cannot be read."""
    return identify_file(open(path, "rb", buffering=0))


LOOK_SECONDS = 0.5  # that pixels are looked at


def is_whole(path: str) -> bool:
    """Tells whether a file is there and is a whole picture."""
    picture = identify(path) if os.path.isfile(path) else None
    return picture is not None and picture.whole is not False


# Whether a PNG is opaque can be told without undoing its filters. They work on each channel by itself, so as long as
# every row so far was opaque, the alpha bytes of an opaque row are one known pattern for each filter type, at any
# depth: the first byte, then the same byte over and over. The first row that deviates proves a pixel not opaque.
OPAQUE_FIRST_ROW = (b"\xff\xff", b"\xff\0", b"\xff\xff", b"\xff\x80", b"\xff\0")
OPAQUE_NEXT_ROWS = (b"\xff\xff", b"\xff\0", b"\0\0", b"\x80\0", b"\0\0")
MASK_SIDE = 12_000  # pixels; what claims to be larger is not looked into, and gets no mask made


def png_rows(file: BinaryFile, size: int) -> Blocks:
    """Yields rows of a PNG, `size` bytes each, still filtered; zlib.error if damaged, ValueError if slow."""
    inflate, rows, end = zlib.decompressobj(), bytearray(), time.monotonic() + LOOK_SECONDS
    for kind, length in png_chunks(file):
        for at in range(0, length if kind == b"IDAT" else 0, BLOCK):
            data = file.read(min(BLOCK, length - at))
            while data:
                if time.monotonic() > end:
                    raise ValueError("it takes too long")
                rows += inflate.decompress(data, MIB)
                data = inflate.unconsumed_tail
                while len(rows) >= size:
                    yield bytes(rows[:size])
                    del rows[:size]


def png_fault(path: str) -> str:
    """Returns `damaged` or `opaque` if the pixels of a PNG with an alpha channel are that, as far as can be told."""
    with open(path, "rb") as file:
        width, height, depth, colour, interlaced = struct.unpack(">16xIIBBxxB", file.read(29))
        if colour not in (4, 6) or interlaced or max(width, height) > MASK_SIDE:
            return ""
        step = depth // 8 * (colour - 2)  # bytes a pixel: grey and alpha, or three colours and alpha
        rows, patterns, fault = png_rows(file, 1 + width * step), OPAQUE_FIRST_ROW, "opaque"
        try:
            for _ in range(height):
                row = next(rows)
                pattern, patterns = patterns[row[0]], OPAQUE_NEXT_ROWS  # the filter type comes first
                alpha = pattern[:1] + pattern[1:] * (width - 1)
                if fault and any(row[place::step] != alpha for place in range(step - depth // 8 + 1, step + 1)):
                    fault = ""
        except ValueError:
            return ""
        except (IndexError, StopIteration, zlib.error):
            return "damaged"
    return fault


def png_chunk(kind: bytes, data: bytes | bytearray) -> bytes:
    """Returns a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box_pixels(box: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the left, upper, right and lower edge of a box in pixels of a picture of the given size."""
    parts = zip(box.split(","), (width, height, width, height))
    x, y, w, h = (float(part[:-1]) * side / 100 if "%" in part else int(part) for part, side in parts)
    return round(x), round(y), round(x + w), round(y + h)


def box_fits(box: str, width: int, height: int) -> bool:
    """Tells whether a box lies within a picture and is not empty."""
    left, upper, right, lower = box_pixels(box, width, height)
    return left < right <= width and upper < lower <= height


def mask_png(width: int, height: int, boxes: list[tuple[int, int, int, int]]) -> bytes:
    """Returns a grey PNG of the given size, opaque except within the boxes, which are given by their edges."""
    deflate, data = zlib.compressobj(1), bytearray()  # the fastest, since the whole picture must not take a second
    for line in range(height):
        row = bytearray(b"\xff\xff" * width)
        for left, upper, right, lower in boxes:
            if upper <= line < lower:
                row[2 * left : 2 * right] = b"\xff\x00" * (right - left)
        data += deflate.compress(b"\0" + row)
    header = struct.pack(">II", width, height) + b"\x08\x04\0\0\0"  # 8 bits, grey and alpha
    data += deflate.flush()
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def is_taken(picture: Picture, route: str) -> bool:
    """Tells whether a route takes a picture as it is: the Images routes take no gif, and none an animated one."""
    if picture.format == "gif":
        return route == "responses" and not picture.animated
    return picture.format in INPUT_TYPES


NO_PILLOW = 77  # how the program below ends where Pillow is not installed
# Pillow is not taken from the current folder: a cloned one could hold a PIL of its own. A PNG has no CMYK, no floats
# and no long integers, and a colour profile of the mode before must not stay.
PILLOW = """
import sys
sys.path[:] = filter(None, sys.path)
try:
    from PIL import Image, ImageOps
except ImportError:
    sys.exit(77)
try:
    import pillow_heif
    pillow_heif.register_heif_opener()
except Exception:
    pass
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.mode.startswith(("F", "I")) and image.mode != "I;16":
    image = image.convert("F")
    highest = image.getextrema()[1]
    scale = 255 if highest <= 1 else min(1, 255 / highest)
    image = image.point(lambda value: value * scale + 0).convert("L")
elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
    image.info.pop("icc_profile", None)
    image = image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")
image.save(sys.argv[2], "PNG")
"""
# What turns other formats into PNG, best first: a name, the program, and its arguments.
CONVERTERS = (
    ("sips", "sips", "-s", "format", "png", "{source}", "--out", "{target}"),
    ("magick", "magick", "{source}[0]", "{target}"),
    ("convert", "convert", "{source}[0]", "{target}"),
    ("ffmpeg", "ffmpeg", "-v", "error", "-y", "-i", "{source}", "-frames:v", "1", "{target}"),
    ("Pillow", sys.executable, "-c", PILLOW, "{source}", "{target}"),
)


def convert_to_png(path: str, target: str, environ: Environ) -> tuple[str, list[str]]:
    """Turns a picture into a PNG; returns the name of the first program that could, and of those that could not.

    The programs get the environment given, which must hold no key.
    """
    import shutil
    import subprocess

    failed: list[str] = []
    for name, program, *arguments in CONVERTERS:
        found = shutil.which(program, path=environ.get("PATH")) or ""
        if not os.path.isabs(found):  # Windows looks into the current folder first
            continue
        command = [found, *(word.format(source=path, target=target) for word in arguments)]
        try:
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, env=environ)
            if ran.returncode == NO_PILLOW:
                continue
            if not ran.returncode and identify(target):
                return name, failed
        except (OSError, subprocess.SubprocessError):
            pass
        failed.append(name)
    return "", failed


# ---------------------------------------------------------------------------------------------------------------------
# 5 Settings: argv > environment > .env > default; each value knows its source
# ---------------------------------------------------------------------------------------------------------------------


TYPED, VARIABLE, DOTENV, DEFAULT, SUFFIX = "command line", "environment", ".env", "default", "suffix of --output"


class Source(NamedTuple):
    """Where a value stood: the kind of place, the name of a variable, and of a .env its path and the line."""

    kind: str  # one of the five above, or any other words for what set it
    name: str = ""
    line: str = ""

    @property
    def label(self) -> str:
        """Returns the source as the result shows it."""
        return f"{self.kind} {self.name}" if self.kind == VARIABLE else self.line or self.kind


Found = tuple[str, Source]  # a text, and where it stood


class Setting(NamedTuple):
    """A value with where it stood, and the words an error about it begins with."""

    value: Any
    source: Source
    label: str


class Problem(NamedTuple):
    """A broken rule: its stable name, what is wrong, and what to do."""

    rule: str
    message: str
    hint: str = ""
    warning: bool = False  # said, but not refused
    fatal: bool = False  # the request could not be built: --no-validate does not help


Problems = Iterator[Problem]


class Settings(NamedTuple):
    """The settings in force for one command, by option name."""

    command: str
    rows: Mapping[str, Setting]
    problems: Iterable[Problem] = ()  # texts that are not of their option's kind
    typed: Json = {}  # what stood on the command line, by option name
    fill: Callable[[str], str] = str  # fills what a batch varies in the text of a file

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a setting, or the default if it is not set."""
        return self.rows[name].value if name in self.rows else default

    def comes_from(self, name: str, *kinds: str) -> bool:
        """Tells whether a setting is set, and by a source of one of these kinds."""
        return name in self.rows and self.rows[name].source.kind in kinds

    def label(self, name: str) -> str:
        """Returns the words with which an error about a setting begins: where it came from and what it says."""
        return self.rows[name].label if name in self.rows else f"--{name}"

    def changed(self, name: str, value: Any, kind: str) -> Settings:
        """Returns the settings with one of them set, and the kind of source that set it."""
        row = Setting(value, Source(kind), f"--{name} {value} ({kind})")
        return self._replace(rows={**self.rows, name: row})


class Dotenv(NamedTuple):
    """A .env file that was read: its values with where they stand, and whether it lay in the current folder."""

    path: str = ""
    values: Mapping[str, Found] = {}
    found_here: bool = False


# https://www.dotenv.org/docs/security/env: names, an optional `export`, bare or quoted values, comments. No two runs of
# blanks meet, so that it takes linear time. A quoted value may go on over lines, but not over one that sets another
# name: there a quote is missing, and the rest of the file must not vanish in it.
DOTENV_NEXT = r"""\n(?![^\S\n]*(?:export[^\S\n]+)?[A-Za-z_][A-Za-z0-9_.]*[^\S\n]*=[^='"\n])"""
DOTENV_ENTRY = rf"""(?x)(?:
        [^\S\n]*(?:\#.*)?|[^\S\n]*(?:export[^\S\n]+)?(?P<name>[A-Za-z_][A-Za-z0-9_.]*)[^\S\n]*=[^\S\n]*
        (?:'(?P<single>[^'\n]*(?:{DOTENV_NEXT}[^'\n]*)*)'
        | "(?P<double>[^"\\\n]*(?:(?:\\(?:.|(?=\n))|{DOTENV_NEXT})[^"\\\n]*)*)"
        | (?P<bare>[^'"\#\s]\S*(?:[^\S\n]+[^\#\s]\S*)*) | (?=[\#\n]|\Z))
        [^\S\n]*(?:(?<=[\s=])\#.*)?
        | (?P<odd>.*))(?:\n|\Z)"""
DOTENV_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Returns a hint with the word most like a mistyped one, or nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(words), 1, 0.7)
    return f"did you mean {near[0]}?" if near else ""


def read_dotenv(path: str, console: Console) -> dict[str, Found]:
    """Reads a .env file; the lines that are not understood are a warning with their numbers, and never shown."""
    values, strange, number = {}, [], 1
    known = [name for row in OPTIONS for name in row.env]
    with open(path, "rb") as file:
        data = file.read(MIB)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # the former by PowerShell
    for match in re.finditer(DOTENV_ENTRY, "\n".join(data.decode(encoding, "replace").splitlines())):
        place = f"{path} line {number}"
        name, single, double, bare, odd = match.group("name", "single", "double", "bare", "odd")
        strange += [str(number)] if odd else []
        number += match.group().count("\n")
        escaped = re.sub(r"\\(.)", lambda found: DOTENV_ESCAPES.get(found[1], found[1]), double or "")
        values[name] = single or escaped or bare, Source(DOTENV, name, place)
        if name and name.startswith("OPENAI_IMAGE_") and name not in known:
            console.warn(f"{place}: {name} is not known; {did_you_mean(name, known)}".rstrip("; "))
    if strange:
        words = "not understood, and left out; expected NAME=value, and an end for each quote"
        console.warn(f"{path} line {shortened(', '.join(strange), 40)}: {words}")
    return {name: found for name, found in values.items() if found[0]}  # an empty one counts as unset


def dotenv_places(environ: Environ) -> list[str]:
    """Returns where a .env is looked for, best first; the parents of the current folder are not searched."""
    home = environ.get("HOME") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    script = os.path.dirname(os.path.abspath(__file__))
    return [".env", os.path.join(script, ".env"), os.path.join(config, "gpt-image", ".env")]


def key_names(typed: Json) -> list[str]:
    """Returns the variables the key is looked for in, best first."""
    return [typed["api-key-env"]] if typed.get("api-key-env") else KEY_NAMES


def find_dotenv(typed: Json, environ: Environ, console: Console) -> Dotenv:
    """Finds and reads the .env in force."""
    given = typed.get("env-file")
    path = given or next(filter(os.path.isfile, dotenv_places(environ)), None)
    if path is None or typed.get("no-env-file"):
        return Dotenv()
    try:
        values, mode = read_dotenv(path, console), os.stat(path).st_mode
    except OSError as error:
        if given:
            raise Failure(USAGE, f"--env-file {path}: {error.strerror}", "check the path", rule="env-file") from error
        console.warn(f"{path}: cannot be read ({error.strerror}), and left out")
        return Dotenv()
    if os.name == "posix" and mode & 0o077 and not values.keys().isdisjoint(key_names(typed)):
        console.warn(f"{path} holds a key that others can read: run chmod 600 {pasted(path)}")
    return Dotenv(path, values, found_here=path == ".env" and not given)


def without_login(url: str) -> str:
    """Returns a URL without the name and password that may stand in it."""
    return re.sub("//[^/]*@", "//", url)


def label_of(row: Option, text: str, source: Source) -> str:
    """Returns the words with which an error about a value begins; what is private is not shown."""
    if row.secret:
        return f"--{row.name} ***"
    text = shortened(without_login(text) if row.kind is URL else text, 200)
    if source.name:
        return f"{source.line or source.kind}: {source.name}: {text}"
    words = f"--{row.name}" if row.kind.flag or row.kind.private else f"--{row.name} {text}"
    return words if source.kind == TYPED else f"{words} ({source.kind})"


def variables(names: Iterable[str], environ: Environ, dotenv: Dotenv) -> list[Found]:
    """Returns the texts of variables and where they stand: those of the environment come before those of a .env."""
    found = [(environ[name], Source(VARIABLE, name)) for name in names if environ.get(name)]
    return found + [dotenv.values[name] for name in names if name in dotenv.values]


def look_up(row: Option, typed: Json, environ: Environ, dotenv: Dotenv) -> list[Found]:
    """Returns the texts of an option and where they stand: one, or several if it may be repeated, or none."""
    given = typed.get(row.name)
    if given == "" and row.env and not row.default:  # it is unset; what has a default can be set to that
        return []
    if given is not None:
        texts = given if isinstance(given, list) else [given]
        return [(text, Source(TYPED)) if isinstance(text, str) else text for text in texts]  # a job knows its own line
    found = variables(key_names(typed) if row.secret else row.env, environ, dotenv)
    found += [(row.default, Source(DEFAULT))] if row.default else []
    return found[:1]


def resolve(command: str, typed: Json, environ: Environ, dotenv: Dotenv) -> Settings:
    """Returns the settings in force, with a problem for each text that is not of its option's kind."""
    rows: dict[str, Setting] = {}
    problems: list[Problem] = []
    for name, row in options_of(command).items():
        values = []
        for text, source in look_up(row, typed, environ, dotenv):
            label = label_of(row, text, source)
            try:
                if not re.fullmatch(row.kind.form, text):
                    raise ValueError(f"expected {row.kind.expected}")
                if row.kind is OBJECT and text.startswith("@") and source.kind != TYPED:
                    raise ValueError("@FILE is read from the command line only: a cloned folder could name any file")
                values.append(row.kind.parse(text))
            except ValueError as error:
                problems.append(Problem(f"{name}-unreadable-value", f"{label}: {error}", fatal=True))
        needed = rows.get(row.needs)
        if values and (source.kind == TYPED or not needed or needed.value or needed.source.kind != TYPED):
            rows[name] = Setting(values if row.kind.repeat else values[0], source, label)
    return Settings(command, rows, problems, typed)


def secret_headers(settings: Settings) -> list[Secret]:
    """Returns the secrets within headers of the user's own."""
    return [header.value for header in settings.get("header", []) if isinstance(header.value, Secret)]


def hide_secrets(settings: Settings, environ: Environ, dotenv: Dotenv, console: Console) -> None:
    """Registers with the console all that must not be shown: keys, secret headers, and passwords within URLs."""
    names = {*KEY_NAMES, *key_names(settings.typed)}
    urls = [url for name, url in environ.items() if name.lower().endswith("_proxy")]
    found = re.findall(r"(?m)(?:^|//)([^/\n]+)@", "\n".join([settings.get("base-url", ""), *urls]))
    found += [text.strip() for text, _ in variables(names, environ, dotenv)]
    console.hide(settings.get("api-key", Secret("")), *secret_headers(settings), *map(Secret, found))


def is_strange(settings: Settings, dotenv: Dotenv) -> bool:
    """Tells whether the .env lies in the current folder, which may be a cloned one, and the key is from elsewhere."""
    elsewhere = settings.comes_from("api-key", TYPED, VARIABLE) or bool(secret_headers(settings))
    return dotenv.found_here and elsewhere


def settings_in_force(command: str, typed: Json, context: Context) -> tuple[Settings, Dotenv]:
    """Returns the settings of a command, and the .env with what counts of it; says what comes from a folder's own."""
    environ, console = context.environ, context.console
    dotenv = find_dotenv(typed, environ, console)
    settings = resolve(command, typed, environ, dotenv)
    hide_secrets(settings, environ, dotenv, console)
    left_out = sorted(SPENDING & dotenv.values.keys()) if is_strange(settings, dotenv) else []
    if left_out:  # they could ask for ten pictures of the best quality, at the user's cost
        words = "from the current folder's .env they count only with a key from the same file, or by --env-file .env"
        console.warn(f"{dotenv.path}: {', '.join(left_out)} left out: {words}")
        dotenv = dotenv._replace(values={name: row for name, row in dotenv.values.items() if name not in left_out})
        settings = resolve(command, typed, environ, dotenv)
    names = [row.source.name for row in settings.rows.values() if row.source.kind == DOTENV]
    if dotenv.found_here and names:
        console.tell(f"from this folder's {dotenv.path}: {', '.join(names)}")
    return settings, dotenv


def brings_key(settings: Settings) -> bool:
    """Tells whether a header of the user's own authorises the call: then our key has no business there."""
    return any(header.name.lower() in ("authorization", "api-key") for header in settings.get("header", []))


def check_pair(settings: Settings, context: Context) -> None:
    """Stops where a key would go to a base URL that it does not belong with: both are one pair.

    A cloned folder can hold a .env with OPENAI_BASE_URL: with the user's own key, that would give it to a stranger.
    """
    key, url = settings.rows.get("api-key"), settings.rows["base-url"]
    by_header = secret_headers(settings)
    beside = variables([url.source.name.replace("BASE_URL", "API_KEY")], context.environ, context.dotenv)
    others = [Secret(text.strip()) for text, source in beside if source.kind == url.source.kind]
    place = "--header" if by_header else key.source.label if key else "nowhere"
    words = f"the base URL comes from {url.source.label}, the key from {place}"
    if url.source.kind == DOTENV and is_strange(settings, context.dotenv):
        words += "; a base URL from the current folder's .env is used only with a key from the same file"
        hint = f"if you trust it, add --base-url {url.value} to the command; else --no-env-file"
        raise Failure(SETTINGS, words, hint, rule="base-url-of-folder")
    if key and key.source.name in KEY_NAMES and others not in ([], [key.value]) and not by_header:
        hint = f"unset {key.source.name} for this call, or say with --base-url or --api-key-env which you mean"
        raise Failure(SETTINGS, f"{words}; but it has a key of its own there", hint, rule="base-url-of-key")
    if context.dotenv.found_here and url.source.kind == VARIABLE and settings.comes_from("api-key", DOTENV):
        context.console.warn(words)


def key_advice(settings: Settings) -> str:
    """Returns where to get a key, and where to put it."""
    name = settings.get("api-key-env") or KEY_NAMES[0]
    place = f"get one from your provider (OpenAI: https://platform.openai.com/api-keys) and set {name}"
    return f"{place}, or put it into the .env that this writes: {program('config', '--init')}"


def check_key(settings: Settings) -> None:
    """Stops before a call without a key, or with one that cannot stand in a header."""
    key = settings.get("api-key")
    if not key and not brings_key(settings):
        raise Failure(SETTINGS, "there is no API key", key_advice(settings), rule="key-missing")
    if key and not key.fits_header():
        words = f"the API key from {settings.rows['api-key'].source.label} holds characters that cannot be in a key"
        raise Failure(SETTINGS, words, "copy it again, on one line", rule="key-form")


# ---------------------------------------------------------------------------------------------------------------------
# 6 Validation: all broken rules at once, before any byte is sent
# ---------------------------------------------------------------------------------------------------------------------


def split_url(url: str) -> Any:
    """Splits a URL; one that cannot be split has no scheme and no host."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        _ = parts.port  # read only now, and may raise
    except ValueError:
        return urlsplit("")
    return parts


def host_of(url: str) -> str:
    """Returns the host name of a URL."""
    return (split_url(url).hostname or "").rstrip(".")


def origin_of(url: str) -> str:
    """Returns scheme, host and port of a URL: what a key may be sent to."""
    parts = split_url(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{host_of(url)}:{port}"


def is_web(url: str) -> bool:
    """Tells whether a text is an http or https URL with a host, and without blanks and control characters."""
    return bool(re.fullmatch(r"(?i)https?://[^\x00-\x20\x7f]+", url) and host_of(url))


class InputPicture(NamedTuple):
    """A picture that goes in: its role, the words for errors, and its kind: file, url, file_id, data or auto."""

    role: str
    label: str
    kind: str
    text: str
    shown: str
    size: int = 0
    picture: Picture | None = None
    trouble: str = ""  # why it cannot be used
    failed: Words = ()  # the converters that could not turn it into a PNG

    def problem(self, rule: str, words: str, hint: str = "", **grade: bool) -> Problem:
        """Returns a problem of this picture."""
        return Problem(rule, f"{self.label}: {words}", hint, **grade)

    def damaged(self) -> Problem:
        """Returns the problem of a picture that is not whole."""
        return self.problem("image-truncated", "the picture is cut short or damaged", "export or download it again")


def examine_file(given: InputPicture) -> InputPicture:
    """Looks at an input file by its bytes."""
    state = os.stat(given.text)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a regular file")
    with open(given.text, "rb", buffering=0) as file:
        # Of one that is too large anyway, the beginning will do.
        raw = file if state.st_size < MAX_INPUT else io.BytesIO(file.read(BLOCK))
        return given._replace(size=state.st_size, picture=identify_file(raw))


def examine_data(given: InputPicture) -> InputPicture:
    """Looks at an input given as a data: URL."""
    found = re.fullmatch(r"(?a)(?i:data:image/[\w.+-]+;base64,)([A-Za-z0-9+/\s]*(?:=[=\s]*)?)", given.text)
    if not found:
        raise ValueError("expected data:image/…;base64,… with nothing but base64 behind the comma")
    raw = binascii.a2b_base64(found[1])
    return given._replace(size=len(raw), picture=identify_file(io.BytesIO(raw)))


def examine_name(given: InputPicture) -> InputPicture:
    """Looks at the form of a URL or an id, which is taken as it is."""
    if given.kind == "url" and not is_web(given.text):
        raise ValueError("not an http or https URL")
    if not re.fullmatch(r"[^\x00-\x20\x7f]+", given.text):
        raise ValueError("blank, or with control characters")
    return given


# How the text of an input begins that does not name a file.
INPUT_KINDS = r"(?i)(?P<file_id>file_id:)|(?P<data>data:)|(?P<url>[a-z][a-z0-9+.-]+://)"


def absolute(name: str) -> str:
    """Returns a name by which two ways to write the same path are equal, through links too."""
    try:
        return os.path.normcase(os.path.realpath(name))
    except (OSError, ValueError):  # the current folder is gone, or no disk can have such a name
        return os.path.normcase(os.path.normpath(name))


def tidied(path: str) -> str:
    """Returns the shortest way to write a path; where it goes through a link and back, that is the path itself."""
    short = os.path.normpath(path)
    short = os.path.join(os.curdir, short) if short.startswith("-") else short  # else it would look like an option
    return short if absolute(short) == absolute(path) else path


def examine(role: str, label: str, text: str, kind: str) -> InputPicture:
    """Returns what is known of an input picture; without a kind, its text says what it is."""
    if not kind or (kind == "auto" and text != "auto"):
        found = re.match(INPUT_KINDS, text)
        kind = (found and found.lastgroup) or "file"
    text = re.sub("(?i)^file_id:", "", text) if kind == "file_id" else text
    shown = tidied(text) if kind == "file" else text
    given = InputPicture(role, shortened(label, 100), kind, text, shown)
    try:
        return {"file": examine_file, "data": examine_data}.get(kind, examine_name)(given)
    except (OSError, ValueError) as error:
        return given._replace(trouble=str(getattr(error, "strerror", None) or error))


def gather_inputs(settings: Settings) -> list[InputPicture]:
    """Returns the input pictures of a call, in the order of their options."""
    inputs = []
    for name, row in options_of(settings.command).items():
        role, _, kind = row.input.partition(" ")
        texts = settings.get(name, []) if role else []
        for text in [texts] if isinstance(texts, str) else texts:
            inputs.append(examine(role, f"--{name} {text}", text, kind))
    return inputs


def tool_of(tree: Json) -> Json:
    """Returns the image tool among the tools of a body, or of the fields that --extra-json adds to it."""
    tools = tree.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") == "image_generation":
            return tool
    return {}


# What has no option of its own name: the keys of a body that hold the prompt or the pictures.
OVERRIDES = {
    "prompt": ("prompt",), "messages": ("prompt",), "input": ("prompt", "image"),
    "image": ("image",), "images": ("image",), "image_url": ("image",),
}  # fmt: skip


def overridden_options(settings: Settings) -> set[str]:
    """Returns the options whose API field --extra-json sets, and the prompt or the pictures if it sets those."""
    command, extra = settings.command, settings.get("extra-json", {})
    names = {name for key in extra for name in OVERRIDES.get(key, ())}
    fields_of = {"top": extra, "image": tool_of(extra) if command == "responses" else extra}
    return names | {name for name, row in options_of(command).items() if row.path[0] in fields_of.get(row.sends, ())}


class Checked:
    """All that the checks look at: the settings, the prompt by the way it was given, the input pictures, the day."""

    def __init__(
        self, settings: Settings, prompts: Mapping[str, Any], inputs: list[InputPicture], today: str = ""
    ) -> None:
        self.settings, self.command, self.inputs, self.today = settings, settings.command, inputs, today
        # What --extra-json replaces is not checked.
        self.overridden = overridden_options(settings)
        self.prompts = prompts
        given: Any = next(iter(prompts.values()), [])
        self.texts: list[str] = [given] if isinstance(given, str) else given
        self.prompt = "\n".join(self.texts)
        self.chat = settings.get("protocol") == "openai_chat"
        self.by_images_api = self.command in IMAGES and not self.chat
        # The models that are really sent: at the top of the body, and of the pictures.
        extra = settings.get("extra-json", {})
        self.top_model = str(extra.get("model") or settings.get("model"))
        tool_model = tool_of(extra).get("model") or settings.get("tool-model") or TOOL_MODEL
        self.model = self.top_model if self.command in IMAGES else str(tool_model)
        self.row = model_row(self.model)
        self.several = (self.get("n") or 1) > 1
        # An earlier response or a conversation may hold some.
        elsewhere = {"image", "previous-response-id", "conversation"} & {*settings.rows, *self.overridden}
        self.sees_pictures = bool(elsewhere or self.role("image"))

    def get(self, name: str) -> Any:
        """Returns the value of an option, or None if it is unset or not to be checked."""
        return None if name in self.overridden else self.settings.get(name)

    def has(self, name: str) -> bool:
        """Tells whether an option is set and to be checked."""
        return self.get(name) is not None

    def lacks(self, name: str) -> bool:
        """Tells whether an option is off or unset, and nothing else sets its field."""
        return not (self.get(name) or name in self.overridden)

    def role(self, role: str) -> list[InputPicture]:
        """Returns the input pictures of one role."""
        return [given for given in self.inputs if given.role == role]

    def problem(self, rule: str, name: str, words: str, hint: str = "", **grade: bool) -> Problem:
        """Returns a problem of an option."""
        return Problem(rule, f"{self.settings.label(name)}: {words}", hint, **grade)


def read_prompt(path: str, stdin: TextFile, fill: Callable[[str], str]) -> str:
    """Reads a prompt from a file or from standard input."""
    try:
        return fill(stdin.read().lstrip("\ufeff") if path == "-" else read_text(path)).rstrip("\r\n")
    except (ValueError, OSError) as error:
        raise Failure(USAGE, f"--prompt-file {path}: {error}", "check the file", rule="prompt-file") from error


def output_suffix(output: str) -> str:
    """Returns the suffix of an output pattern in lower case, or nothing if it names a folder or has none."""
    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        return ""
    suffix = os.path.splitext(output)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9]{1,4}", suffix) else ""


def follow_suffix(settings: Settings) -> Settings:
    """Lets the suffix of --output choose the format, unless --format was typed."""
    chosen = FORMAT_OF_SUFFIX.get(output_suffix(settings.get("output", "")))
    typed = settings.comes_from("format", TYPED)
    return settings.changed("format", chosen, SUFFIX) if chosen and not typed else settings


def gather_checked(settings: Settings, positional: str | None, stdin: TextFile, now: float) -> Checked:
    """Gathers all that the checks look at."""
    names = ("prompt", "prompt-file", "input-text")
    ways = {"PROMPT": positional, **{f"--{name}": settings.get(name) for name in names}}
    prompts = {way: given for way, given in ways.items() if given is not None}
    if list(prompts) == ["--prompt-file"]:
        prompts["--prompt-file"] = read_prompt(settings.get("prompt-file"), stdin, settings.fill)
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    return Checked(follow_suffix(settings), prompts, gather_inputs(settings), today)


# A single label, or below a name that is never public. To some resolvers 134744072 and 0x08080808 are addresses too.
PRIVATE_NAME = r"(?ai)(?!(0x[0-9a-f]*|[0-9]+)$)[\w-]+|[\w.-]+\.(localhost|local|internal|lan|home\.arpa|test)"


def is_private(host: str) -> bool:
    """Tells whether a host is loopback, of a private network, or named by a single label."""
    import ipaddress

    try:
        address: Any = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return bool(re.fullmatch(PRIVATE_NAME, host))
    # A Teredo address leads to another host, and one of 6to4 to the IPv4 address in it.
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return bool(mapped.is_private and not getattr(address, "teredo", None))


def check_base_url(checked: Checked) -> Problems:
    """Checks the base URL, and that the key does not go in the open."""
    url = checked.settings.get("base-url")
    parts, wrong = split_url(url), ""
    if not (is_web(url) and url.isascii()):
        wrong = "expected an http or https URL, in ASCII only"
    elif parts.path.rstrip("/").endswith((*(row.path for row in ROUTES), CHAT_PATH)):
        wrong = "include /v1, and leave out the route"
    elif parts.username is not None or parts.fragment:
        wrong = "no login and no fragment may stand in it"
    elif parts.scheme == "http" and not is_private(host_of(url)) and not checked.get("allow-http"):
        yield checked.problem(
            "base-url-http",
            "base-url",
            "plain http would show the key to everyone on the way",
            "use https, or --allow-http",
            fatal=True,
        )
    if wrong:
        yield checked.problem("base-url", "base-url", wrong, f"such as {OPENAI_URL}", fatal=True)


def check_prompt(checked: Checked) -> Problems:
    """Checks that there is one prompt, of a length the API takes."""
    ways, prompt, length = checked.prompts, checked.prompt.strip(), len(checked.prompt)
    if len(ways) > 1:
        yield Problem(
            "prompt-twice", f"the prompt is given more than once: {', '.join(ways)}", "keep one of them", fatal=True
        )
    elif "prompt" in checked.overridden:
        return
    elif not ways:
        yield Problem(
            "prompt-missing",
            "there is no prompt",
            "give it as an argument, with --prompt or --prompt-file, or pipe it in",
            fatal=True,
        )
    elif not prompt:
        yield Problem("prompt-blank", "the prompt is blank", "say what to make")
    elif Secret(prompt) == checked.settings.get("api-key") or re.fullmatch(KEY_FORM, prompt):
        yield Problem("prompt-key", "the prompt is an API key", "say what to make", fatal=True)
    elif length > MAX_PROMPT and checked.by_images_api:
        yield Problem("prompt-length", f"the prompt has {length} characters", f"at most {MAX_PROMPT} are allowed")


def check_model(checked: Checked) -> Problems:
    """Checks that the model exists today; the days on which models go are those of OpenAI's own hosts."""
    model, day, instead = checked.model, checked.row.gone, checked.row.instead
    at_openai = re.fullmatch(OPENAI_HOSTS, host_of(checked.settings.get("base-url")))
    # A model that --extra-json names is sent whatever it is.
    forced = ("model" if checked.command in IMAGES else "tool-model") in checked.overridden
    if checked.command == "responses" and re.match("(gpt-image|chatgpt-image|dall-e)-", checked.top_model):
        words = f"{checked.top_model}: an image model cannot host the tool"
        yield Problem(
            "responses-model", words, "name it with --tool-model instead", warning="model" in checked.overridden
        )
    gone = "" < day <= checked.today
    if gone and at_openai:
        yield Problem("model-retired", f"{model} was shut down on {day}", f"use {instead}", warning=forced)
    elif gone:
        yield Problem(
            "model-elsewhere",
            f"{model} is gone at OpenAI, though this gateway may still serve it",
            f"if not, use {instead}",
            warning=True,
        )
    elif day and at_openai:
        yield Problem("model-leaving", f"OpenAI shuts {model} down on {day}", f"move to {instead}", warning=True)
    elif at_openai and model in BARE_MODELS:
        hint = f"did you mean {BARE_MODELS[model]}?"
        yield Problem("model-bare", f"there is no model named {model}", hint, warning=forced)


def who_takes(name: str, value: Any) -> str:
    """Returns words for the first models that take a value of an option."""
    takers = [model for model in MODEL_IDS if value in (model_row(model).takes or {}).get(name, (value,))]
    return f"try {one_of(tuple(takers[:2]))}; " if takers else ""


def check_value(checked: Checked, row: Option) -> Problems:
    """Checks a value against its option's range or list, and against what the model takes."""
    name, kind, value = row.name, row.kind, checked.get(row.name)
    takes, wanted = checked.row.takes, ""
    taken = (takes or {}).get(name, kind.choices)
    listed = value in (*kind.choices, *taken)
    if kind.high and not kind.low <= value <= kind.high:
        wanted = f"a whole number from {kind.low} to {kind.high}"
    elif kind is END_USER and len(value) > (longest := ROUTE[checked.command].longest_user):
        wanted = f"at most {longest} characters"
    elif takes and name in takes and value not in taken and (listed or not taken):
        yield checked.problem(
            f"{name}-by-model",
            name,
            f"{checked.model} {'takes ' + one_of(taken) if taken else 'does not take it'}",
            f"{who_takes(name, value)}--no-validate sends it all the same",
        )
    # A model that the tables do not know may take other words for its pictures.
    elif kind.choices and not listed and not (takes is None and row.sends == "image"):
        wanted = one_of(taken)
    if wanted:
        hint = did_you_mean(str(value), taken)
        yield checked.problem(f"{name}-value", name, f"expected {wanted}", hint, fatal=kind.strict)


USE_IMAGES = "leave it out, or use --protocol openai_images"


def check_values(checked: Checked) -> Problems:
    """Checks each value by itself, whether chat carries it, and that no header and no id holds a line break."""
    for name, row in options_of(checked.command).items():
        if not checked.has(name):
            continue
        yield from check_value(checked, row)
        reaches = row.sends in ("image", "top") or row.input or row.kind is BOXES
        if checked.chat and reaches and not row.chat and not checked.settings.comes_from(name, DEFAULT, SUFFIX):
            yield checked.problem(f"{name}-chat-carries", name, "is not possible with chat", USE_IMAGES)
        allowed = r"[\x20-\x7e]*" if row.sends == "header" else r"[^\x00-\x1f\x7f]*"
        if row.kind.one_line and not re.fullmatch(allowed, "".join(checked.get(name))):  # one text, or several
            yield Problem(
                "identifier",
                f"--{name}: control characters are not allowed in a header or an id",
                "type it again",
                fatal=True,
            )


def size_problem(sizes: Sizes, width: int, height: int) -> Problem | None:
    """Returns the first limit of a model's sizes that is broken."""
    fixed, multiple, edge, ratio, least, most, _ = sizes
    short, long = sorted((width, height))
    if fixed:
        known = f"{width}x{height}" in fixed
        return None if known else Problem("size-fixed", f"this model makes {', '.join(fixed)} or auto only")
    if width % multiple or height % multiple:
        return Problem("size-multiple", f"both edges must be multiples of {multiple}")
    if long > edge:
        return Problem("size-edge", f"the longest edge is {edge} pixels at most")
    if long > ratio * short:
        return Problem("size-ratio", f"the long edge is at most {ratio} times the short one")
    if not least <= width * height <= most:
        return Problem("size-pixels", f"{width * height} pixels; from {least} to {most} are allowed")
    return None


def nearest_size(sizes: Sizes, ratio: float, long: float, exact: int = 0) -> str:
    """Returns the valid size nearest to a proportion and a long edge; `exact` is how much the former counts."""
    step, ratio = sizes.multiple, min(max(ratio, 1 / sizes.ratio), sizes.ratio)

    def distance(size: str) -> float:
        w, h = map(int, size.split("x"))
        return abs(math.log(max(w, h) / long)) + exact * abs(math.log(w / h / ratio))

    near = ((w, int(w / ratio) // step * step + more) for w in range(step, sizes.edge + 1, step) for more in (0, step))
    free = (f"{w}x{h}" for w, h in near if not size_problem(sizes, w, h))
    return min(sizes.fixed or free, key=distance)


def ratio_of(text: str) -> float:
    """Returns width by height of a proportion such as `16:9` or `wide@2k`, or 0 for any other text."""
    shape, _, edge = text.partition("@")
    sides = re.fullmatch(r"([1-9][0-9]*(?:\.[0-9]+)?):([1-9][0-9]*)", RATIOS.get(shape, shape))
    return float(sides[1]) / float(sides[2]) if sides and edge in ("", *EDGES) else 0


@functools.lru_cache  # jobs of a batch ask for the same
def size_of(sizes: Sizes, ratio: float, edge: str = "") -> str:
    """Returns the size of a proportion, by the name of its long edge; without one, about as large as 1536x1024."""
    return nearest_size(sizes, ratio, EDGES.get(edge) or min(1536, 1024 * max(ratio, 1 / ratio)), exact=300)


def sized(settings: Settings, sizes: Sizes) -> Settings:
    """Returns the settings with a size in pixels, chosen by the model's rules, where a proportion is asked for."""
    name = "size" if settings.comes_from("size", TYPED) else "aspect-ratio"
    row = settings.rows.get(name) or settings.rows.get("size")
    if not row:
        return settings
    ratio = ratio_of(row.value)
    if 1 / sizes.ratio <= ratio <= sizes.ratio:
        row = row._replace(value=size_of(sizes, ratio, row.value.partition("@")[2]))
    return settings._replace(rows={**settings.rows, "size": row})


def check_size(checked: Checked) -> Problems:
    """Checks the form of a size, and its edges, ratio and pixels by the model's limits."""
    size, sizes, label = checked.get("size"), checked.row.sizes, checked.settings.label
    aspect = checked.get("aspect-ratio")
    if aspect and label("size") != label("aspect-ratio") and ratio_of(str(size).replace("x", ":")) != ratio_of(aspect):
        yield checked.problem("aspect-ratio", "aspect-ratio", f"not that of --size {size}", "leave one of them out")
    if size in (None, "auto") or sizes is None:
        return
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
    if not match:
        words = f"expected WIDTHxHEIGHT, auto, or a proportion of at most {sizes.ratio}:1"
        yield checked.problem("size-form", "size", words, f"such as 1536x1024, 16:9@2k, {', '.join(RATIOS)}")
        return
    width, height = map(int, match.groups())
    pixels, ratio = width * height, width / height
    frames = checked.get("frame-count") or FORMAT.get(checked.get("format"), FORMAT[DEFAULT_FORMAT]).frames
    sizes = sizes._replace(least=0) if frames else sizes
    found = size_problem(sizes, width, height)
    if found:
        near = nearest_size(sizes, ratio, max(width, height), 1)
        hint = f"{near} is the nearest"
        if ratio_of(near.replace("x", ":")) != ratio and not sizes.fixed:
            hint += f"; closest with its proportions: {size_of(sizes, ratio)}, {size_of(sizes, ratio, '2k')}"
        yield checked.problem(found.rule, "size", found.message, hint)
    elif frames * pixels > sizes.most:
        words = f"{frames} frames hold {frames * pixels} pixels; more than {sizes.most} were refused"
        yield checked.problem("size-frames", "size", words, "take a smaller size or fewer frames", warning=True)
    elif pixels > sizes.experimental:
        yield checked.problem("size-experimental", "size", "above 2560x1440 pixels is experimental", warning=True)


def check_format(checked: Checked) -> Problems:
    """Checks what the format in force excludes; without one, a model that is known makes the server's."""
    known = checked.row.takes is not None and "format" not in checked.overridden
    row = FORMAT.get(checked.get("format") or (DEFAULT_FORMAT if known else ""))
    if not row:
        return
    if checked.get("background") == "transparent" and not row.transparent:
        yield checked.problem("transparent-format", "background", f"{row.name} has no transparency", "use png or webp")
    if checked.has("compression") and not row.compresses:
        yield checked.problem(
            "compression-format", "compression", f"{row.name} is not compressed this way", "use jpeg or webp"
        )
    if row.one and checked.several:
        yield checked.problem("format-one", "n", f"{row.name} comes one at a time", "leave --n out")
    for name in filter(checked.get, row.refuses):
        if name != "stream" or checked.command in IMAGES:  # a response has its own events, whatever it makes
            yield checked.problem(
                "format-refuses", name, f"not possible with {row.name}", "leave it out or choose another format"
            )
    for other in FORMATS:
        for name in filter(checked.has, () if other is row else other.owns):
            yield checked.problem("format-owns", name, f"goes with {other.name} only", f"add --format {other.name}")


def check_output(checked: Checked) -> Problems:
    """Checks that format and suffix agree, and that the placeholders of the pattern are known."""
    output, chosen = checked.settings.get("output", ""), checked.settings.get("format")
    suffix = output_suffix(output)
    implied = FORMAT_OF_SUFFIX.get(suffix)
    if suffix not in ("", f".{chosen}", *FORMAT_OF_SUFFIX):
        yield checked.problem(
            "output-suffix", "output", f"{suffix} is not a format of this API", "use .png, .jpg, .webp, .gif or .svg"
        )
    if implied and chosen in FORMAT and chosen != implied:
        yield checked.problem(
            "format-suffix",
            "format",
            f"the suffix of {output} says {implied}",
            "make them agree, or leave --format out",
        )
    odd = ", ".join(re.findall(rf"{{(?!(?:{'|'.join(PLACES)})}})[^{{}}]*}}", output))
    if odd:
        yield checked.problem(
            "output-place",
            "output",
            f"{odd} is not a placeholder and stays as it is",
            f"there are {', '.join(PLACES)}",
            warning=True,
        )


def fits_metadata(metadata: Json) -> bool:
    """Tells whether the metadata of a response are as many and as long as the API takes."""
    fits = (isinstance(text, str) and len(text) <= 512 and len(name) <= 64 for name, text in metadata.items())
    return len(metadata) <= 16 and all(fits)


def check_needs(checked: Checked) -> Problems:
    """Checks that what goes only with something else stands beside it, and what excludes something does not."""
    has, get, lacks, several = checked.has, checked.get, checked.lacks, checked.several
    rows = (
        (not checked.top_model.strip(), "model-missing", "model", "the name is blank", "such as gpt-image-2"),
        (has("partial-images") and lacks("stream"), "partial-images-stream", "partial-images",
         "previews need --stream", "add --stream"),
        (several and checked.chat, "chat-one", "n", "chat makes one picture a call", "leave --n out"),
        (several and get("stream"), "stream-n", "n", "a stream carries one picture (n=1)", "leave out --stream or --n"),
        (has("svg-effort") and lacks("svg-model") and checked.command == "generations", "svg-model-missing",
         "svg-effort", "needs --svg-model", "name the text model that writes the svg"),
        (get("output") == "-" and (several or get("partial-images")), "output-one", "output",
         "standard output takes one picture", "leave out --n and previews"),
        (has("conversation") and has("previous-response-id"), "conversation-twice", "conversation",
         "not together with --previous-response-id", "keep one of them"),
        (get("action") == "edit" and not checked.sees_pictures, "action-edit", "action", "there is nothing to edit",
         "add --input-image, or go on from an earlier response"),
        (has("input-fidelity") and not checked.sees_pictures, "fidelity-input", "input-fidelity",
         "there is no input picture", "add --input-image"),
        (has("input-detail") and not checked.sees_pictures, "fidelity-input", "input-detail",
         "there is no input picture", "add --input-image"),
        (not fits_metadata(get("metadata-json") or {}), "metadata", "metadata-json", "not names with texts",
         "up to 16 names of 64 characters with texts of 512"),
    )  # fmt: skip
    for broken, rule, name, words, hint in rows:
        if broken:
            yield checked.problem(rule, name, words, hint)


def check_response(checked: Checked) -> Problems:
    """Checks that the options of the background have what they need."""
    window = checked.get("completion-window") or SOONEST
    for name, row in options_of(checked.command).items():
        if row.needs == "background-mode" and checked.has(name) and checked.lacks(row.needs):
            yield checked.problem("window-background", name, "needs --background-mode", "add --background-mode")
    for name in ("stream", "service-tier") if window != SOONEST else ():
        if checked.get(name) not in (None, False, "auto", "default"):
            yield checked.problem(
                "window-standard", name, f"not possible with --completion-window {window}", "leave one of them out"
            )
    if checked.get("background-mode") and checked.get("store") is False:
        yield checked.problem(
            "store-background",
            "background-mode",
            "without --store the server keeps the response for about ten minutes only",
            "collect it by then",
            warning=True,
        )


def conversion_hint(given: InputPicture) -> str:
    """Returns what to do about a picture that is not taken here, and that no program on this machine converted."""
    words = f"{' and '.join(given.failed)} could not convert it; " if given.failed else ""
    others = tuple(row[0] for row in CONVERTERS if row[0] not in given.failed and given.kind == "file")
    more = f", or install one of {one_of(others)}, which this program then uses" if others else ""
    return f"{words}save it as png, jpeg or webp{more}"


def check_input(checked: Checked, given: InputPicture) -> Problems:
    """Checks one input picture: readable, not too large, a picture, of a type this route takes, and whole."""
    picture, local = given.picture, given.kind in ("file", "data")
    if given.trouble and local:
        yield given.problem("image-unreadable", given.trouble, "check the path", fatal=True)
    elif given.trouble:
        yield given.problem("image-url", given.trouble, "use an http or https URL, a path, or file_id:ID", fatal=True)
    elif checked.chat and given.kind == "file_id":
        yield given.problem(f"{given.role}-chat-carries", "is not possible with chat", USE_IMAGES)
    elif not local:
        return
    elif not given.size:
        yield given.problem("image-empty", "the file is empty", fatal=True)
    elif picture is None:
        yield given.problem(
            "image-unknown", "not a picture this program knows (by its first bytes)", "use png, jpeg or webp"
        )
    elif not is_taken(picture, checked.command):
        yield given.problem(
            "image-type",
            f"{'animated ' * picture.animated}{picture.format} is not taken here",
            conversion_hint(given),
        )
    elif given.size >= MAX_INPUT:
        yield given.problem("image-size", f"{amount(given.size)}; less than 50 MB is allowed", "make it smaller")
    elif picture.whole is False:
        yield given.damaged()


def check_images(checked: Checked) -> Problems:
    """Checks number and state of the input pictures."""
    count = len(checked.role("image"))
    for given in checked.inputs:
        yield from check_input(checked, given)
    if checked.command == "edits" and not checked.sees_pictures:
        yield Problem("image-missing", "there is no picture to edit", "add --image PATH", fatal=True)
    if count > MAX_IMAGES and checked.by_images_api:
        yield Problem("image-count", f"{count} pictures are given", f"at most {MAX_IMAGES} are allowed")


def check_mask_file(given: InputPicture, first: Picture | None) -> Problems:
    """Checks a mask's size in bytes, format, dimensions, and then its pixels, so that no claim is taken on trust."""
    mask, size = given.picture, given.size
    if mask is None or mask.whole is False:
        return
    if mask.format != "png":
        yield given.problem(
            "mask-png", f"a mask must be a PNG, this is {mask.format}", "save it as PNG with an alpha channel"
        )
        return
    if MASK_WARNING <= size < MAX_INPUT:
        yield given.problem(
            "mask-large",
            f"{amount(size)}; the reference says less than 4 MB",
            "make it smaller if it is refused",
            warning=True,
        )
    if first and first.width and mask.shown not in (first.shown, (first.width, first.height)):
        wanted = "{}x{}".format(*first.shown)
        yield given.problem(
            "mask-dimensions",
            f"{mask.width}x{mask.height}, but the first picture is {wanted}",
            f"make the mask {wanted}",
        )
        return  # what is of the wrong size is not looked into
    hint = "make transparent what is to be edited"
    fault = png_fault(given.text) if given.kind == "file" else ""
    if not mask.alpha:
        yield given.problem("mask-alpha", "the mask has no alpha channel", f"{hint}: only alpha counts, not colour")
    elif fault == "damaged":
        yield given.damaged()
    elif fault:
        yield given.problem("mask-opaque", "the mask is opaque everywhere", hint)


def check_boxes(checked: Checked, first: InputPicture) -> Problems:
    """Checks that each mask box lies within the first picture, whose size must be known."""
    width, height = first.picture.shown if first.picture else (0, 0)
    if not 0 < max(width, height) <= MASK_SIDE:
        if not first.trouble:
            words = f"--mask-box needs a first picture that is a local file, of at most {MASK_SIDE} pixels a side"
            yield Problem("mask-box", words, "add it, or make it smaller", fatal=True)
        return
    for box in checked.get("mask-box"):
        if not box_fits(box, width, height):
            words = f"--mask-box {box}: not within {width}x{height}, or less than a pixel"
            yield Problem("mask-box", words, "X,Y,WIDTH,HEIGHT within the first picture", fatal=True)


def check_mask(checked: Checked) -> Problems:
    """Checks the mask by itself and against the first picture."""
    masks, marks, images = checked.role("mask"), checked.role("markup"), checked.role("image")
    count = len(masks) + checked.has("mask-box")
    if count > 1:
        yield Problem("mask-twice", "the mask is given more than once", "keep one of them", fatal=True)
    if count and checked.command == "responses" and not checked.sees_pictures:
        yield Problem("mask-without-image", "there is no picture to mask", "add the picture first")
    if count and marks:
        yield marks[0].problem("markup-mask", "not together with a mask", "keep one of them")
    for given in (*masks, *marks):
        yield from check_mask_file(given, images[0].picture if images else None)
    if images and checked.has("mask-box"):
        yield from check_boxes(checked, images[0])


def json_form_causes(checked: Checked) -> list[str]:
    """Returns what makes an edit take the JSON form: inputs that are no local files, and fields the form lacks."""
    if checked.command != "edits" or checked.chat:
        return []
    remote = [given.label for given in checked.inputs if given.kind not in ("file", "auto")]
    return remote + [checked.settings.label("moderation")] * ("moderation" in checked.settings.rows)


def check_form(checked: Checked) -> Problems:
    """Checks that what needs the multipart form of an edit does not stand beside what needs the JSON form."""
    causes = json_form_causes(checked)
    hint = f"leave out {', '.join(causes)}"
    for given in checked.inputs if causes else ():
        if given.kind == "auto":
            yield given.problem("mask-auto", "a mask made by the gateway needs the form", hint, fatal=True)
        elif given.role == "markup":
            yield given.problem("markup-form", "markup needs the form", hint, fatal=True)
        elif given.kind == "file" and 4 * given.size // 3 > MAX_IMAGE_URL - 30:
            words = f"{amount(given.size)}; in JSON a data URL has at most {MAX_IMAGE_URL} characters"
            yield given.problem("image-url-length", words, hint)


def check_line(settings: Settings) -> Problems:
    """Checks that a line of the vendor's batches can ask for what a job asks for."""
    for name, row in options_of(settings.command).items():
        if row.unbatched and re.fullmatch(row.unbatched, str(settings.get(name, ""))):
            words, hint = "the Batch API does not take it", "change it, or use --engine calls"
            yield Problem("engine-batch", f"{settings.label(name)}: {words}", hint, fatal=not row.sends)


CHECKS = (
    check_base_url, check_prompt, check_model, check_values, check_size, check_format, check_output,
    check_needs, check_response, check_images, check_mask, check_form,
)  # fmt: skip


def settings_problems(settings: Settings) -> list[Problem]:
    """Returns the broken rules of a command that makes no pictures by itself: connection and values only."""
    checked = Checked(settings, {}, [])
    return [*settings.problems, *check_base_url(checked), *check_values(checked)]


def enforce(problems: Iterable[Problem], lenient: bool, console: Console) -> None:
    """Says the warnings and raises one Failure for all that is refused; lenient lets through what can be sent."""
    refused: Rows = []
    for rule, message, hint, warning, fatal in problems:
        if fatal or not (warning or lenient):
            refused.append({"rule": rule, "message": message, "hint": hint or None})
        else:
            console.warn(f"{message} ({hint})" if hint else message)
    if refused:
        raise Failure(USAGE, **refused[0], problems=refused)


def expected_pictures(checked: Checked) -> int:
    """Returns how many pictures a call asks for, as far as it is known before."""
    extra = checked.settings.get("extra-json", {})
    count = extra.get("n", checked.settings.get("n")) if checked.command in IMAGES else 1
    return count if isinstance(count, int) and 0 < count <= 100 else 1


def estimate(checked: Checked) -> Json | None:
    """Returns the most output tokens and dollars a call may take, and the least, or None where no formula is known."""
    settings, row, size, quality = checked.settings, checked.row, checked.get("size"), checked.get("quality")
    sizes = AUTO_SIZES if size in (None, "auto") else (size,)
    qualities = row.tokens if quality in (None, "auto") else (quality,)
    counts = [tokens_of(row, size, quality) for size in sizes for quality in qualities] or [0]
    made = FORMAT.get(settings.get("format"), FORMAT[DEFAULT_FORMAT])
    if checked.chat or not (all(counts) and made.counted):
        return None
    previews = PARTIAL_TOKENS * settings.get("partial-images", 0)
    ends = (expected_pictures(checked) * (one + previews) for one in (max(counts), min(counts)))
    most, least = ({"output_tokens": end, "usd": round(end * PRICES["output"] / 1e6, 4)} for end in ends)
    return {**most, **({} if least == most else {"least": least}), "prices_of": FACTS_OF}


def check_cost(checked: Checked) -> Problems:
    """Refuses a call that may cost more than is allowed."""
    most, found = checked.settings.get("max-cost"), estimate(checked)
    if most is not None and (not found or found["usd"] > most):
        words = f"the call may cost {found['usd']:.4f} USD" if found else "what the call may cost is not known"
        yield checked.problem("max-cost", "max-cost", words, "allow more, or name --size and --quality", fatal=True)


def boxed_mask(checked: Checked) -> bytes:
    """Returns the mask of --mask-box, as large as the first picture; nothing where it is not asked for."""
    first = checked.role("image")[0].picture if checked.has("mask-box") else None
    if first is None:
        return b""
    return mask_png(*first.shown, [box_pixels(box, *first.shown) for box in checked.settings.get("mask-box")])


# ---------------------------------------------------------------------------------------------------------------------
# 7 Request: a body that can be iterated twice, of known length, streamed from disk
# ---------------------------------------------------------------------------------------------------------------------


UPLOAD_BLOCK = 3 * BLOCK // 2  # 192 kB; a multiple of 3, so that the base64 of the blocks is that of the whole


class Part(NamedTuple):
    """A stretch of a body: bytes, or a file (its path and size) sent as it is or, where it has a label, in base64."""

    data: bytes = b""
    path: str = ""
    size: int = 0
    label: str = ""  # what a dry run shows in place of base64

    def length(self) -> int:
        """Returns the number of bytes sent."""
        if not self.path:
            return len(self.data)
        return 4 * -(-self.size // 3) if self.label else self.size

    def blocks(self) -> Blocks:
        """Yields the bytes in blocks; Failure if the file is no longer what it was when it was checked."""
        if not self.path:
            yield self.data
            return
        left = self.size
        try:
            with open(self.path, "rb") as file:
                while left >= 0 and (block := file.read(UPLOAD_BLOCK)):
                    left -= len(block)
                    yield binascii.b2a_base64(block, newline=False) if self.label else block
        except OSError:
            left = -1
        if left:
            raise Failure(USAGE, f"{self.path} changed during the upload", "run it again", rule="image-changed")


class Body:
    """The parts of a body; iterating yields its bytes, as often as needed."""

    def __init__(self, parts: list[Part], content_type: str) -> None:
        self.parts, self.content_type = parts, content_type
        self.length = sum(part.length() for part in parts)
        self.sent = False  # whether the last byte was asked for

    def __iter__(self) -> Blocks:
        self.sent = False
        for part in self.parts:
            yield from part.blocks()
        self.sent = True

    def shown(self) -> Json:
        """Returns the JSON of the body with a label in place of each picture."""
        texts = (json.dumps(part.label)[1:-1] if part.label else part.data.decode() for part in self.parts)
        tree: Json = json.loads("".join(texts))
        return tree


Header = tuple[str, "str | Secret"]


class Request(NamedTuple):
    """A request, with what a dry run shows of its body: a JSON tree or the rows of a form."""

    method: str
    url: str
    headers: list[Header]
    body: Body | None = None
    tree: Json | None = None
    form: Rows | None = None


def as_unicode(text: str) -> str:
    """Returns a text that can be sent as UTF-8; Failure for one that cannot, such as half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Failure(USAGE, "a value is not valid Unicode text", "type it again", rule="encoding") from None
    return text


class Hole:
    """What stands in a JSON tree in the place of a string that ends with the data of a part."""

    def __init__(self, start: str, part: Part) -> None:
        self.start, self.part = start, part


def json_body(tree: Json) -> Body:
    """Returns the body of a tree that may have holes: text, file, text, file ..."""
    mark, parts = os.urandom(12).hex(), [Part()]

    def token(hole: Hole) -> str:
        parts.append(hole.part)
        return hole.start + mark

    texts = as_unicode(json.dumps(tree, ensure_ascii=False, default=token)).split(mark)
    pairs = zip(parts, (Part(text.encode()) for text in texts))
    return Body([part for pair in pairs for part in pair], "application/json")


def content_type(given: InputPicture) -> str:
    """Returns the media type of an input picture, by its bytes."""
    return INPUT_TYPES.get(given.picture.format if given.picture else "", "application/octet-stream")


def image_reference(given: InputPicture) -> Json:
    """Returns how JSON names an input picture: by file id, URL, or data URL."""
    if given.kind == "file_id":
        return {"file_id": given.text}
    if given.kind == "url":
        return {"image_url": given.text}
    if given.kind == "data":
        start, _, data = given.text.partition(",")
        part = Part(data.encode(), label=f"<base64, {given.size} bytes>")
    else:
        start = f"data:{content_type(given)};base64"
        part = Part(path=given.text, size=given.size, label=f"<base64 of {given.shown}, {given.size} bytes>")
    return {"image_url": Hole(f"{start},", part)}


def fields(settings: Settings, *places: str, chat: bool = False) -> Json:
    """Returns the API fields of the settings that go to one of the places, nested and ordered as the SDK sends them."""
    tree: Json = {}
    for name, row in sorted(options_of(settings.command).items(), key=lambda item: item[1].path):
        # The suffix of --output may only say what the server does anyhow.
        implied = settings.comes_from(name, SUFFIX) and settings.get(name) == DEFAULT_FORMAT
        if name in settings.rows and row.sends in places and not implied and (row.chat or not chat):
            *outer, key = row.path
            inner = tree
            for step in outer:
                inner = inner.setdefault(step, {})
            inner[key] = settings.get(name)
    return tree


def merge(tree: Json, extra: Json) -> Json:
    """Returns a tree with extra fields: objects and the image tool are merged, all else is replaced."""
    merged = {**tree, **extra}
    for key, theirs in extra.items():
        ours = tree.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            merged[key] = merge(ours, theirs)
        elif key == "tools" and tool_of(tree) and isinstance(theirs, list):
            tool = tool_of(extra)
            merged[key] = [merge(tool_of(tree), tool), *(other for other in theirs if other is not tool)]
    return merged


def images_tree(checked: Checked) -> Json:
    """Returns the fields of an Images call without its pictures."""
    return {"prompt": checked.prompt, **fields(checked.settings, "top", "image")}


def edit_tree(checked: Checked) -> Json:
    """Returns the JSON of an edit."""
    tree = images_tree(checked)
    tree["images"] = [image_reference(given) for given in checked.role("image")]
    for given in checked.role("mask"):
        tree["mask"] = image_reference(given)
    return tree


def responses_tree(checked: Checked) -> Json:
    """Returns the JSON of a response: the input, and the hosted tool with its own fields."""
    tree = fields(checked.settings, "top")
    detail = {"detail": "auto", **fields(checked.settings, "picture")}
    content: Rows = [{"type": "input_text", "text": text} for text in checked.texts]
    content += [{"type": "input_image", **image_reference(given), **detail} for given in checked.role("image")]
    tool = {"type": "image_generation", **fields(checked.settings, "image")}
    for given in checked.role("mask"):
        tool["input_image_mask"] = image_reference(given)
    plain = len(content) == len(checked.texts) == 1
    message = checked.prompt if plain else [{"role": "user", "content": content}]
    # A prompt template of --extra-json may say it all.
    return {"model": tree["model"], **({"input": message} if content else {}), "tools": [tool], **tree}


def chat_tree(checked: Checked) -> Json:
    """Returns the JSON of a chat call for a gateway that has no Images routes."""
    content: Any = [{"type": "text", "text": checked.prompt}]
    for given in checked.role("image"):
        url = image_reference(given).get("image_url", given.text)
        content.append({"type": "image_url", "image_url": {"url": url}})
    if len(content) == 1:
        content = checked.prompt
    return {**fields(checked.settings, "top", chat=True), "messages": [{"role": "user", "content": content}]}


def form_fields(name: str, value: Any) -> Iterator[tuple[Json, Part]]:
    """Yields the form fields of a value: objects as a[b], lists as a[], true in lower case, and null not at all."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from form_fields(f"{name}[{key}]", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from form_fields(f"{name}[]", inner)
    elif value is not None:
        text = as_unicode(value if isinstance(value, str) else json.dumps(value))
        yield {"name": as_unicode(name), "value": text}, Part(text.encode())


FIELD_STYLES = {"brackets": "image[]", "simple": "image", "indexed": "image[{}]"}
# https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data
FORM_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


def file_row(name: str, given: InputPicture) -> Json:
    """Returns what a dry run shows of a file in a form."""
    # Of a backslash, a control character and a byte that is not UTF-8 each server makes something else, or nothing.
    base = re.sub(rf"[\x00-\x1f\\]|{UNPRINTABLE}", "_", os.path.basename(given.shown).translate(FORM_ESCAPES))
    if tidied(given.text) != given.shown:  # another file was made of it
        base = os.path.splitext(base)[0] + ".png"
    row = {"name": name, "filename": base, "content_type": content_type(given)}
    return {**row, "bytes": given.size, "path": given.shown}


def form_files(checked: Checked) -> Iterator[tuple[Json, Part]]:
    """Yields the files of an edit's form, each with the row a dry run shows of it."""
    style = FIELD_STYLES[checked.settings.get("image-field-style")]
    named = [(style.format(i), given) for i, given in enumerate(checked.role("image"))]
    named += [(given.role, given) for given in (*checked.role("mask"), *checked.role("markup"))]
    for name, given in named:
        if given.kind == "file":
            yield file_row(name, given), Part(path=given.text, size=given.size)


def form_body(tree: Json, files: Iterable[tuple[Json, Part]]) -> tuple[Body, Rows]:
    """Returns the multipart body of fields and files, and the rows a dry run shows of it."""
    boundary, parts = "gpt-image-" + os.urandom(12).hex(), []
    # The texts first, as the SDK sends them: who reads a form as a stream then knows what its files are for.
    rows = [row for name, value in tree.items() for row in form_fields(name, value)] + list(files)
    for row, content in rows:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{row["name"].translate(FORM_ESCAPES)}"'
        if content.path:
            head += f'; filename="{row["filename"]}"\r\nContent-Type: {row["content_type"]}'
        parts += [Part(f"{head}\r\n\r\n".encode()), content, Part(b"\r\n")]
    parts.append(Part(f"--{boundary}--\r\n".encode()))
    return Body(parts, f"multipart/form-data; boundary={boundary}"), [row for row, _ in rows]


def api_url(settings: Settings, path: str, query: str = "") -> str:
    """Returns the URL of a path below the base URL; a query of the base URL stays at the end."""
    base, _, own = settings.get("base-url").partition("?")
    queries = "&".join(filter(None, (query, own)))
    return f"{base.rstrip('/')}{path}?{queries}".rstrip("?")


def url_part(name: str) -> str:
    """Returns an id as a part of a URL: it comes from the server, and `..` in it would lead elsewhere."""
    from urllib.parse import quote

    return quote(name, safe="", errors="replace").replace(".", "%2E")


def api_headers(settings: Settings, body: Body | None) -> list[Header]:
    """Returns the headers of a call, with those the user gave in place of ours."""
    rows: list[Header] = [
        ("Accept", "text/event-stream, application/json" if body and settings.get("stream") else "application/json"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", f"gpt-image/{__version__}"),
    ]
    if not brings_key(settings):  # only a dry run comes here without any key
        rows.append(("Authorization", (settings.get("api-key") or Secret("")).with_scheme("Bearer ")))
    rows += fields(settings, "header").items()
    rows += [(header.name, header.value) for header in settings.get("header", [])]
    if body:
        rows += [("Content-Type", body.content_type), ("Content-Length", str(body.length))]
    return list({name.lower(): (name, value) for name, value in rows}.values())


def json_tree(checked: Checked) -> Json:
    """Returns the JSON of a call, with --extra-json merged in."""
    builders = {"generations": images_tree, "edits": edit_tree, "responses": responses_tree}
    build = chat_tree if checked.chat else builders[checked.command]
    return merge(build(checked), checked.settings.get("extra-json", {}))


def build_request(checked: Checked) -> Request:
    """Returns the request of a call: an edit of files is a form, and all else is JSON."""
    settings, path = checked.settings, CHAT_PATH if checked.chat else ROUTE[checked.command].path
    tree, rows = None, None
    if checked.command == "edits" and not checked.chat and not json_form_causes(checked):
        texts = merge(images_tree(checked), settings.get("extra-json", {}))
        if any(given.kind == "auto" for given in checked.inputs):
            texts["mask"] = "auto"
        body, rows = form_body(texts, form_files(checked))
    else:
        body = json_body(json_tree(checked))
        tree = body.shown()
    return Request("POST", api_url(settings, path), api_headers(settings, body), body, tree, rows)


def curl_header(settings: Settings, name: str, value: str | Secret) -> str:
    """Returns a header for a shell; a secret comes from the variable that holds it, or from one to be set first."""
    if not isinstance(value, Secret):
        text = value.encode("latin-1").decode("utf-8", "surrogateescape")  # the bytes that the transport sends
        return shell_quoted(f"{name}: {text}" if text else f"{name};")
    source = Source(TYPED)
    if value.scheme:
        row = settings.rows.get("api-key")
        source = row.source if row else Source(VARIABLE, settings.get("api-key-env") or "OPENAI_API_KEY")
    variable = source.name
    if source.kind != VARIABLE:
        # A name of its own, since a shell may hold another key under the usual one.
        variable = f"{{_{re.sub('[^A-Z0-9]', '_', name.upper())}:?set it to the secret from the {source.kind}}}"
    return shell_quoted(f"{name}: {value.scheme}") + f'"${variable}"'


def curl_field(row: Json, part: Part) -> str:
    """Returns a field of a form for a shell."""
    if not part.path:
        return f"--form-string {shell_quoted(row['name'] + '=' + row['value'])}"
    path = re.sub(r'["\\]', r"\\\g<0>", os.path.join(".", part.path))  # to curl, `-` alone is the standard input
    return "-F " + shell_quoted(f'{row["name"]}=@"{path}";type={row["content_type"]};filename="{row["filename"]}"')


def curl_piece(part: Part) -> str:
    """Returns a command for a shell that prints a piece of a JSON body."""
    if part.path:
        return f"base64 < {shell_quoted(part.path)} | tr -d '\\n'"
    return f"printf '%s' {shell_quoted(part.data.decode())}"


def curl_command(settings: Settings, request: Request) -> str:
    """Returns a command for a POSIX shell that makes the same request."""
    skipped = ("content-length", "content-type" if request.form else "")
    parts, before = request.body.parts if request.body else [], ""
    words = [f"curl -sS -g --path-as-is -X {request.method} {shell_quoted(request.url)}", "-H 'Expect:'"]
    words += [f"-H {curl_header(settings, *row)}" for row in request.headers if row[0].lower() not in skipped]
    if request.form:
        words += map(curl_field, request.form, parts[1::3])  # head, content, line end
    else:
        before = "{ " + "; ".join(map(curl_piece, filter(Part.length, parts))) + "; } | "
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
        from _thread import allocate_lock

        self.requested, self.armed = False, True
        self.jobs, self.draining = False, False  # whether the calls of a batch run in threads, and no new one starts
        self.sockets: set[Any] = set()
        self.lock = allocate_lock()  # for what the threads of a batch share
        self.tls: Any = None

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
        """Asks for the end, which a batch takes for that of its new jobs the first time; a signal handler."""
        import socket

        if self.jobs and not self.draining:
            self.draining = True
            return
        self.requested = True
        for sock in list(self.sockets):
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed
        if self.armed and not self.jobs:
            self.armed = False
            raise KeyboardInterrupt

    def tls_context(self) -> Any:
        """Returns what the TLS connections of a run share: to read whom to trust takes long."""
        import ssl

        with self.lock:
            if not self.tls:
                self.tls = ssl.create_default_context()
                self.tls.set_alpn_protocols(["http/1.1"])
            return self.tls

    def sleep(self, seconds: float) -> None:
        """Waits, but not beyond a signal."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.1, left))


class Fault(NamedTuple):
    """How a connection failed, and whether the request had been sent in full, so that it may have run."""

    message: str
    sent: bool
    headers: Headers = {}


class Reply:
    """An HTTP reply: status, headers (names in lower case), and `read`, which ends with b"" and may leave a fault."""

    def __init__(self, status: int, headers: Headers, chunks: Iterable[bytes], reason: str = "") -> None:
        self.status, self.headers, self.reason = status, headers, reason
        self.chunks: Blocks = iter(chunks)
        self.fault: Fault | None = None
        self.lifter: Any = None  # what has taken its pictures out, if they are out
        self.over, self.stop = False, Stop()  # whether nothing more is to be read, by the reply's word or the user's
        self.keep: Callable[[bytes], None] = lambda chunk: None
        self.close: Callable[[], None] = lambda: None
        self.sock: Any = None

    def read(self) -> bytes:
        """Returns the next bytes as they came over the wire, kept first; b"" at the end, be it by a fault."""
        try:
            chunk = b"" if self.over or self.stop.requested else next(filter(None, self.chunks), b"")
        except ConnectionError as error:
            self.fault, chunk = Fault(str(error), sent=True), b""
        except KeyboardInterrupt:
            self.stop.requested, chunk = True, b""
        if chunk:
            self.keep(chunk)
        return chunk


def unzipper(data: bytes, encoding: str) -> Any:
    """Returns what unpacks a reply, if its first bytes say that it is packed: relays announce what they do not do."""
    # https://www.rfc-editor.org/rfc/rfc1952 and rfc1950: the first two bytes of gzip, and those of zlib that are in use
    if re.match(rb"\x1f\x8b|x[\x01^\x9c\xda]", data):
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    not_text = re.search("(?s)[\x00-\x08\x0e-\x1f\ufffd].", data.decode("utf-8", "replace"))  # its end may be cut
    raw = encoding == "deflate" and not_text and not signature_of(data)
    return zlib.decompressobj(-zlib.MAX_WBITS) if raw else None


def salvaged(unzip: Any, chunk: bytes) -> Blocks:
    """Yields what a damaged piece holds up to the damage, which may be no more than a wrong checksum."""
    try:
        for at in range(len(chunk)):
            yield unzip.decompress(chunk[at : at + 1])
    except zlib.error:
        return


def unpacked(reply: Reply) -> Blocks:
    """Yields the bytes of a reply, unpacked block by block; damage becomes the reply's fault."""
    head, chunks = b"", iter(reply.read, b"")
    while len(head) < 16 and (chunk := next(chunks, b"")):
        head += chunk
    unzip = unzipper(head, reply.headers.get("content-encoding", "").lower())
    if not unzip:
        yield from filter(None, itertools.chain([head], chunks))
        return
    for chunk in itertools.chain([head], chunks):
        while chunk:
            if unzip.eof:
                if chunk[:1] != b"\x1f":  # what comes behind the last says nothing
                    break
                unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
            before = unzip.copy()
            try:
                block = unzip.decompress(chunk, BLOCK)
            except zlib.error as error:
                reply.fault = Fault(f"the compressed reply is damaged ({error})", sent=True)
                yield from filter(None, salvaged(before, chunk))
                return
            if block:
                yield block
            chunk = unzip.unused_data or unzip.unconsumed_tail
    if not unzip.eof and not reply.over:
        reply.fault = reply.fault or Fault("the compressed reply was cut", sent=True)


Transport = Callable[[Request, float, Progress], "Reply | Fault"]
CONNECT_TIMEOUT = 30.0  # seconds; waiting longer for a connection never helped anyone
PATIENCE = 0.5  # seconds that an upload may stand still before we look whether it was answered


def reason_of(error: BaseException) -> str:
    """Returns why a connection failed, in words."""
    import socket

    error = getattr(error, "reason", error)
    if isinstance(error, socket.timeout):
        return "timed out: no byte came for as long as --timeout, or what was left of --wait, allows"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


INTERIM = rb"(HTTP/1\.. 1\d\d[^\n]*\n([^\r\n]+\r?\n)*\r?\n)+"


def is_interim(sock: Any) -> bool:
    """Tells whether all that waits to be read are interim replies; over TLS that cannot be seen."""
    import socket

    return not hasattr(sock, "pending") and bool(re.fullmatch(INTERIM, sock.recv(BLOCK, socket.MSG_PEEK)))


def is_ready(sock: Any, seconds: float, sends: bool = False) -> bool:
    """Tells whether a connection has bytes to read, or takes some to send, within so many seconds."""
    import selectors

    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:  # the cheapest for one look
        selector.register(sock, selectors.EVENT_WRITE if sends else selectors.EVENT_READ)
        return bool(selector.select(seconds))


class Attempt:
    """What one attempt knows of its connection: whether the request was sent in full, and whether bytes wait."""

    def __init__(self, timeout: float, progress: Progress, stop: Stop) -> None:
        self.timeout, self.progress, self.stop = timeout, progress, stop
        self.sent, self.broken = False, False
        self.sock: Any = None

    def body(self, body: Body) -> Blocks:
        """Yields the body's bytes and notes when the last one is gone; stops early once the server hung up."""
        done = 0
        for block in body:
            if self.broken:
                return
            yield block
            done += len(block)
            self.progress.phase("uploading", percent=100 * done // body.length, bytes=body.length)
        self.sent = not self.broken  # from here on the request may run, and be billed
        self.progress.phase("waiting")

    def push(self, sock: Any, data: Any) -> None:
        """Sends bytes for as long as they are taken; a server that answers and takes no more has had enough."""
        import socket

        # Over TLS a word of the handshake may wait to be read too, so that says something at the very end only.
        patience = self.timeout if hasattr(sock, "pending") else min(PATIENCE, self.timeout)
        view, waited = memoryview(data), 0.0
        while view:
            if is_ready(sock, patience, sends=True):
                view, waited = view[sock.send(view) :], 0.0
                continue
            waited += patience
            if is_ready(sock, 0) and not is_interim(sock):
                raise ConnectionError
            if waited >= self.timeout:
                raise socket.timeout

    def connected(self, sock: Any) -> None:
        """Prepares a connection for a picture: it may be silent for minutes, and a signal must end its wait."""
        import socket

        self.sock = sock
        sock.settimeout(self.timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 30)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        for other in list(self.stop.sockets):
            if other.fileno() < 0:  # it was closed
                self.stop.sockets.discard(other)
        self.stop.sockets.add(sock)
        if self.stop.requested:  # nothing is sent yet
            raise KeyboardInterrupt

    def readable(self) -> bool:
        """Tells whether more of a reply is here already, over TLS, which hands out 16 kB at a time."""
        sock = self.sock
        return hasattr(sock, "pending") and sock.fileno() >= 0 and bool(sock.pending() or is_ready(sock, 0))


def connection_classes(attempt: Attempt) -> tuple[Any, Any]:
    """Returns the connection classes for http and https, which report to the attempt and lose no reply."""
    import http.client
    import socket

    class LongReply(http.client.HTTPResponse):
        def _read_status(self) -> tuple[str, int, str]:
            while True:
                version, status, reason = super()._read_status()  # type: ignore[misc]
                if not 102 <= status < 200:  # the standard class passes over 100 only
                    return version, status, reason
                http.client.parse_headers(self.fp)

    class Connection(http.client.HTTPConnection):
        response_class = LongReply

        def connect(self) -> None:
            self.timeout = min(attempt.timeout, CONNECT_TIMEOUT)
            attempt.stop.armed = True  # nothing is sent yet
            super().connect()
            attempt.connected(self.sock)
            attempt.stop.armed = False

        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()  # its failures, such as a bad certificate, are told as they are
            # A server that answers 401 and closes while we upload: keep quiet here, and read its answer.
            try:
                attempt.push(self.sock, data)
            except socket.timeout:
                raise
            except OSError:
                attempt.broken = True

    class SecureConnection(Connection, http.client.HTTPSConnection):
        pass

    return Connection, SecureConnection


def reply_chunks(response: Any, attempt: Attempt) -> Blocks:
    """Yields the bytes of a reply as they arrive, those that are here in one block; ConnectionError if it is cut."""
    import http.client

    received, piece, cut = 0, b"none yet", ""
    while piece and not cut:
        block = b""
        try:
            piece = block = response.read1(BLOCK)
            while piece and len(block) < BLOCK and attempt.readable():
                piece = response.read1(BLOCK)
                block += piece
        except (OSError, http.client.HTTPException, ValueError) as error:
            cut = reason_of(error) if isinstance(error, OSError) else "the reply was cut"
        if block:
            received += len(block)
            attempt.progress.phase("receiving", bytes=received)
            yield block
    if cut:
        raise ConnectionError(f"{cut} after {amount(received)}")
    if response.length:
        raise ConnectionError(f"the reply ended {amount(response.length)} before its announced length")


def refuse_proxy(url: str) -> None:
    """Refuses a proxy of another kind than http: it would be spoken to as if it were one, with the key."""
    import urllib.request

    proxy = urllib.request.getproxies().get(split_url(url).scheme, "")
    if re.match(r"(?!https?://)[^/]*://", proxy, re.IGNORECASE) and not urllib.request.proxy_bypass(host_of(url)):
        words = f"the proxy {without_login(proxy)} is neither http nor https"
        raise Failure(SETTINGS, words, "set http_proxy and https_proxy, or no_proxy for this host", rule="proxy")


def opener_for(attempt: Attempt, redirects: bool) -> urllib.request.OpenerDirector:
    """Returns an opener with proxies as Python finds them, and with redirects only where no key is sent."""
    import urllib.request

    plain, secure = connection_classes(attempt)

    class Web(urllib.request.AbstractHTTPHandler):
        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

        def http_open(self, request: Any) -> Any:
            return self.do_open(plain, request)

        def https_open(self, request: Any) -> Any:
            return self.do_open(secure, request, context=attempt.stop.tls_context())

    web = urllib.request
    opener = web.OpenerDirector()
    # Without HTTPErrorProcessor every status is a reply like any other, a redirect too; UnknownHandler refuses ftp.
    follow = (web.HTTPRedirectHandler, web.HTTPErrorProcessor, web.HTTPDefaultErrorHandler, web.UnknownHandler)
    for handler in (web.ProxyHandler, Web, *(follow if redirects else ())):
        opener.add_handler(handler())
    return opener


def send(request: Request, timeout: float, progress: Progress, stop: Stop | None = None) -> Reply | Fault:
    """Makes one HTTP exchange and returns its reply, whatever the status, or how it failed."""
    import http.client
    import urllib.error
    import urllib.request

    refuse_proxy(request.url)
    body = request.body
    attempt = Attempt(timeout, progress, stop or Stop())
    authorised = any(isinstance(value, Secret) for _, value in request.headers)
    out = urllib.request.Request(request.url, attempt.body(body) if body else None, method=request.method)
    for name, value in request.headers:
        out.add_unredirected_header(name, value.reveal() if isinstance(value, Secret) else value)
    progress.phase("connecting", host=split_url(request.url).netloc)
    try:
        response = opener_for(attempt, redirects=not authorised).open(out)
    except urllib.error.HTTPError as error:  # a picture's URL only
        response = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Fault(reason_of(error), sent=attempt.sent)
    headers = {name.lower(): value for name, value in response.headers.items()}
    reply = Reply(response.status, headers, reply_chunks(response, attempt), response.reason)
    reply.close, reply.sock = response.close, attempt.sock
    return reply


def number_of(value: Any, default: int = 0) -> int:
    """Returns a whole number of a reply, or the default for anything else."""
    return value if isinstance(value, int) and 0 <= value < 10**9 else default


def finite(text: str) -> float | None:
    """Returns a number of a reply, or None for one that JSON cannot hold when we pass it on."""
    value = float(text)
    return value if value - value == 0 else None


def parse_json(text: bytes | bytearray) -> Any:
    """Parses a small JSON text; None if it is not JSON."""
    try:
        return json.loads(text.decode("utf-8", "replace"), strict=False, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        return None


def as_object(value: Any) -> Json:
    """Returns a value of a reply if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def error_in(holder: Json) -> Json:
    """Returns the error object of a reply or of a part of it; a mere text becomes one, with the message beside it."""
    error = holder.get("error")
    if not error or isinstance(error, dict):
        return as_object(error)
    return {**holder, "message": ": ".join(str(said) for said in (error, holder.get("message")) if said)}


MOST_REFUSAL = 64 * MIB  # bytes of a reply that says no


def read_body(reply: Reply) -> bytes:
    """Returns a short reply, or the first megabyte of one; it is read to its end, since it may be kept."""
    body, total = bytearray(), 0
    for block in unpacked(reply):
        body += block[: MIB - len(body)]
        total += len(block)
        if total > MOST_REFUSAL:
            break
    reply.close()
    return bytes(body)


def page_title(text: str) -> str:
    """Returns the title of an HTML page, or nothing."""
    match = re.search(r"<title[^>]{0,99}>([^<]{0,999})", text[:4096], re.IGNORECASE)
    return match.group(1).strip() if match else ""


def status_row(status: int) -> Status:
    """Returns the row of STATUSES for an HTTP status; one not listed is like 502, or final below 500."""
    unlisted = Status((), "billable" if status >= 500 else "never")
    return next((row for row in STATUSES if status in row.codes), unlisted)


def refusal_of(error: Json, status: int = 0, reason: str = "") -> Failure:
    """Returns the failure that an error object of the API says, with the hint for its code or status, if it has one."""
    code, kind, details = error.get("code"), error.get("type"), as_object(error.get("moderation_details"))
    row, names = status_row(status), f"{kind} {code}"
    hundreds = (status or number_of(code) or number_of(error.get("status"))) // 100  # a 200 may carry another status
    server = hundreds == 5 or hundreds != 4 and ("server" in names or "rate_limit" in names)
    said = str(error.get("message") or (json.dumps(error) if error else reason or "no reason given"))
    if details:
        found = details.get("categories")
        categories = ", ".join(map(str, found)) if isinstance(found, list) else "not told"
        said += f" (stage: {details.get('moderation_stage')}; categories: {categories})"
    hints = (hint for name, hint in CODE_HINTS.items() if name in f"{names} {said}")
    return Failure(
        NETWORK if server else REFUSED,
        f"HTTP {status}: {said}" if status else said,
        next(hints, row.hint or None),
        status=status or None,
        type=kind,
        code=code,
        may_be_billed=server,
    )


def error_failure(reply: Reply) -> Failure:
    """Reads a reply that is not a 2xx, and returns its failure."""
    body = read_body(reply)
    if 300 <= reply.status < 400:
        shown = without_login(reply.headers.get("location", "nowhere").partition("?")[0])
        words = f"HTTP {reply.status}: the API redirects to {shown}, which is not followed: the key would go along"
        return Failure(NETWORK, words, "if you trust that address, make it the --base-url", status=reply.status)
    value = parse_json(body)
    if isinstance(value, dict):
        return refusal_of(error_in(value) or value, reply.status)
    text = body.decode("utf-8", "replace")
    said = page_title(text) if "<html" in text[:1000].lower() else text.strip()
    return refusal_of({}, reply.status, said or reply.reason)


def retry_wait(headers: Headers, attempt: int) -> float | None:
    """Returns the seconds to wait before the next try, or None if the server asks for longer than we wait."""
    import random
    from email.utils import parsedate_to_datetime

    after, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms")
    try:
        if re.fullmatch(r"\s*[0-9.]+\s*", milliseconds or after):
            asked = float(milliseconds or after) / (1000 if milliseconds else 1)
        else:
            asked = parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):  # not a time: as if it were not there
        asked = min(RETRY_FIRST * 2**attempt, RETRY_MOST) * (1 - 0.25 * random.random())
    return max(asked, 0.0) if asked <= LONGEST_WAIT else None


def verdict_on(reply: Reply, failure: Failure) -> str:
    """Returns whether a refused request is made again: "safe", "billable" or "never"; notes if it may be billed."""
    verdict, asked = status_row(reply.status).retry, reply.headers.get("x-should-retry")
    said = f"{failure.details.get('code')} {failure.details.get('type')} {failure.message}"
    if re.search(MONEY_WORDS, said):
        verdict, asked = "never", None
    elif verdict == "safe" and reply.status != 429 and re.match(RAN_BEHIND, failure.message):
        verdict = "billable"
    failure.details["may_be_billed"] = verdict == "billable"  # whatever the server says of trying again
    if verdict == "never" and asked == "true":
        verdict = "safe"
    return "never" if asked == "false" else verdict


class Tries:
    """What is known of the tries of a call: how many, the server's id of the last, and what keeps its refusal."""

    def __init__(self) -> None:
        self.count = 0
        self.keep_anew: Callable[[], Callable[[bytes], None]] = lambda: lambda chunk: None
        self.request_id: str | None = None
        self.headers: Headers = {}  # of the last reply
        self.billed = False  # whether a try may have been billed: it was sent in full, or accepted, and not refused
        self.under_way: Body | None = None  # of the try that goes on

    @property
    def may_be_billed(self) -> bool:
        """Tells whether the call may have been billed, also while a try is under way."""
        return self.billed or self.under_way is not None and self.under_way.sent

    def end(self, billed: bool) -> bool:
        """Notes how a try ended; returns whether any of them may have been billed."""
        self.billed, self.under_way = self.billed or billed, None
        return self.billed


MOST_SAID = 1000  # characters of a server's words that are shown


def judged(outcome: Reply | Fault, request: Request, free: bool) -> tuple[Failure, str]:
    """Returns the failure of one try, and whether it may be made again."""
    if isinstance(outcome, Fault):
        hint = "check the network, the proxy, and --base-url"
        if outcome.sent and not free:
            hint = "look at your usage before you try again, or allow it with --retry-billable"
        failure = Failure(NETWORK, f"{outcome.message} ({host_of(request.url)})", hint, may_be_billed=outcome.sent)
        return failure, "billable" if outcome.sent else "safe"
    failure = error_failure(outcome)
    return failure, verdict_on(outcome, failure)


class Context(NamedTuple):
    """What a command may touch beside files: streams, environment, transport, time; tests hand in their own."""

    console: Console
    stdin: TextFile
    environ: Environ
    dotenv: Dotenv
    transport: Transport
    sleep: Callable[[float], None]
    stop: Stop
    temp_files: TempFiles
    progress: Progress
    result: Result
    now: Callable[[], float]  # seconds since 1970, for what depends on the date
    hold: Callable[[float], None] = lambda seconds: None  # hears for how long a server asks to wait
    left: Callable[[], float] = lambda: float("inf")  # seconds for an answer, and for further tries


SHORTEST_LOOK = 10.0  # seconds that a server has for the next byte, however little is left of --wait


def exchange(context: Context, settings: Settings, request: Request, tries: Tries | None = None) -> Reply:
    """Sends a request until a 2xx begins, and returns that reply; a free one (no tries) may always be sent again."""
    free, most, tries = tries is None, 1 + settings.get("max-retries"), tries or Tries()
    while not context.stop.requested:  # after a signal, no new connection is opened
        tries.count, tries.under_way = tries.count + 1, request.body
        if request.body:
            request.body.sent = False  # by this try
        context.stop.armed = False
        patience = min(settings.get("timeout"), max(context.left(), SHORTEST_LOOK))
        outcome = context.transport(request, patience, context.progress)
        found = (outcome.headers[name] for name in REQUEST_IDS if outcome.headers.get(name))
        tries.request_id, tries.headers = next(found, tries.request_id), outcome.headers
        if isinstance(outcome, Reply):
            if 200 <= outcome.status < 300:
                tries.end(billed=True)
                return outcome
            outcome.keep = tries.keep_anew()
        failure, verdict = judged(outcome, request, free)
        failure.message = context.console.said(failure.message, MOST_SAID)
        failure.details["may_be_billed"] = tries.end(billed=failure.details["may_be_billed"] and not free)
        if context.stop.requested:
            break
        wait = retry_wait(outcome.headers, tries.count - 1)
        if failure.details.get("status") == 429 or "retry-after" in outcome.headers:
            context.hold(LONGEST_WAIT if wait is None else wait)
        allowed = verdict == "safe" or verdict == "billable" and (free or settings.get("retry-billable"))
        if allowed and wait is None:
            failure.hint = f"the server asks to wait longer than {LONGEST_WAIT:.0f} s: try again later"
        if not allowed or wait is None or tries.count == most or wait > context.left():
            raise failure
        facts = {"attempt": tries.count + 1, "tries": most, "wait": round(wait, 1)}
        context.progress.phase("retrying", reason=failure.message, **facts)
        context.sleep(wait)
    raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------------------------------
# 9 Files: names before money is spent, whole files after it
# ---------------------------------------------------------------------------------------------------------------------


SESSION_ENDING = ".session.json"


def spare_folder() -> str:
    """Returns the system's folder for temporary files: for dry runs, and for when the disk of the outputs is full."""
    import tempfile

    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written: then what would go there fails by itself
        return os.curdir


def folder_of(name: str) -> str:
    """Returns the folder of a file, or of a folder."""
    return os.path.dirname(name) or "."


def blocks_of(file: BinaryFile) -> Blocks:
    """Yields a file from its beginning, in blocks."""
    file.seek(0)
    return iter(lambda: file.read(BLOCK), b"")


def write_all(file: BinaryFile, data: bytes) -> None:
    """Writes all of the bytes to an unbuffered file."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def rename_free(source: str, target: str, replace: Callable[[str, str], None] = os.replace) -> bool:
    """Gives a temporary file a name that must be free; False if it is taken, even if it was taken this instant."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or another one
        try:
            open(target, "x").close()
        except FileExistsError:
            return False
        try:
            replace(source, target)
        except OSError:
            os.unlink(target)  # the empty file that held the name
            raise
    return True


def numbered(start: str, sign: str, end: str = "") -> Iterator[str]:
    """Yields a name, and then the same with numbers from 2."""
    yield start + end
    for number in itertools.count(2):
        yield f"{start}{sign}{number}{end}"


def is_special(name: str) -> bool:
    """Tells whether a name leads to a device, a FIFO or the like: it is written to, and never replaced."""
    return os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name)


NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def pour(source: str, target: int) -> None:
    """Writes a file to an open device, FIFO or pipe, and closes that; OSError if nobody reads it."""
    with open(source, "rb") as file, open(target, "wb", buffering=0) as out:
        if NO_WAIT:
            os.set_blocking(out.fileno(), True)
        for block in blocks_of(file):
            write_all(out, block)


def identity(name: str) -> tuple[int, int] | None:
    """Returns what every spelling of a file and every link to it have in common; None where there is no file."""
    state = os.stat(name) if os.path.isfile(name) else None
    return state and (state.st_dev, state.st_ino)


class TempFiles:
    """The temporary files of a call; what was not given a name by the end is removed, whatever the end is."""

    def __init__(self, whole: TempFiles | None = None) -> None:
        self.files: set[str] = set()
        # What holds for all calls of a run: the identities of files that are read, and never replaced, and the names
        # that were given, none of them twice.
        self.inputs: set[tuple[int, int] | None] = whole.inputs if whole else set()
        self.written: set[str] = whole.written if whole else set()
        self.numbered: dict[str, Iterator[str]] = {}  # the names that are left to be tried for each

    def __enter__(self) -> TempFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self.files):
            self.remove(path)

    def reads(self, names: Iterable[str]) -> None:
        """Notes the files that are read; a name may be that of no file."""
        self.inputs.update(map(identity, names))
        self.inputs.discard(None)

    def is_input(self, name: str) -> bool:
        """Tells whether a name leads to a file that is read."""
        return identity(name) in self.inputs

    def remove(self, path: str) -> None:
        """Removes a temporary file."""
        self.files.discard(path)
        try:
            os.unlink(path)
        except OSError:
            pass

    def create(self, folder: str, suffix: str = ".part") -> BinaryFile:
        """Opens a new file in a folder, unbuffered."""
        path = os.path.join(folder, f".gpt-image-{os.urandom(6).hex()}{suffix}")
        file = open(path, "x+b", buffering=0)
        self.files.add(path)
        return file

    def replace(self, source: str, target: str) -> None:
        """Puts a temporary file in the place of another one, which a link may have led to on another disk."""
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with open(source, "rb") as file, self.create(folder_of(target)) as out:
                for block in blocks_of(file):
                    write_all(out, block)
            os.replace(out.name, target)

    def place(self, source: str, target: str, overwrite: bool = False) -> str:
        """Gives a finished temporary file its name, or that name with the next free number, and returns the path."""
        path, (stem, suffix) = target, os.path.splitext(target)
        replace = overwrite and absolute(target) not in self.written and not self.is_input(target)
        if replace and is_special(target):
            pour(source, os.open(target, os.O_WRONLY | NO_WAIT))
        elif replace:
            self.replace(source, os.path.realpath(target))
        else:
            names = self.numbered.setdefault(target, numbered(stem, "-", suffix))
            path = next(name for name in names if rename_free(source, name, self.replace))
        self.remove(source)
        self.written.add(absolute(path))
        return path


def sidecar_of(picture: str) -> str:
    """Returns the name of the file beside a picture that says what is known of it."""
    return os.path.splitext(picture)[0] + ".json"


class OutputNames(NamedTuple):
    """Where the pictures of a call go: a stem that may hold {index} and {partial}, and a suffix."""

    stem: str
    suffix: str
    several: bool
    overwrite: bool
    expected: int
    sidecars: bool  # whether each picture gets a file beside it that says what is known of it

    @property
    def folder(self) -> str:
        """Returns the folder of the first picture, where temporary files are made too."""
        return folder_of(self.final(1))

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
        name = re.sub(r"[-_. ]*\{(index|partial)\}", "", os.path.basename(self.stem))
        name = name if len(os.fsencode(name)) < 220 else name[:50]  # no disk takes names of more than 255 bytes
        return tidied(os.path.join(self.folder, name + ending))

    def planned(self, partials: int) -> list[str]:
        """Returns every name that a call will write to, previews included."""
        indices = range(1, self.expected + 1)
        previews = [self.partial(index, partial) for index in indices for partial in range(1, partials + 1)]
        finals = [self.final(index) for index in indices]
        return finals + previews + [sidecar_of(name) for name in finals if self.sidecars]


def suffix_of(name: str) -> str:
    """Returns the suffix of a format, also of one the tables do not know."""
    return FORMAT[name].suffixes[0] if name in FORMAT else f".{name}"


def safe_name(text: str) -> str:
    """Returns a text as a part of a file name that any system takes."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*{}]+', "-", text).encode("utf-8", "ignore")[:100].decode("utf-8", "ignore")
    name = name.strip(" .") or "_"
    return f"_{name}" if re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name) else name


def name_places(context: Context, prompt: str) -> dict[str, str]:
    """Returns what the places of --output stand for in a call; of the prompt, its first words and never a key."""
    from unicodedata import category

    when, clean = time.localtime(context.now()), context.console.clean
    shown = clean(re.sub(KEY_FORM, " ", prompt)).lower()
    words = "".join(letter if category(letter)[0] in "LMN" else " " for letter in shown).split()
    return {
        "prompt": safe_name("-".join(words)[:40].rstrip("-") or "picture"),
        "model": safe_name(clean(context.result.model or "")),
        "date": time.strftime("%Y%m%d", when), "time": time.strftime("%H%M%S", when),
    }  # fmt: skip


def output_names(settings: Settings, expected: int, places: Mapping[str, str]) -> OutputNames:
    """Returns where the pictures of a call go."""

    def filled_in(pattern: str) -> str:
        return re.sub(r"\{([a-z]+)\}", lambda match: places.get(match[1], match[0]), pattern)

    pattern = settings.get("output") or ""
    output, own = filled_in(pattern), output_suffix(pattern)
    suffix = suffix_of(settings.get("format") or DEFAULT_FORMAT)
    if output in ("", "-") or output.endswith(("/", os.sep)) or os.path.isdir(output):
        folder = "" if output == "-" else output
        stems = numbered(os.path.join(folder, filled_in("gpt-image-{date}-{time}-{prompt}")), "_")
        ends = (suffix, f"-1{suffix}")  # either is there where two calls are made in one second
        stem = next(stem for stem in stems if not any(os.path.lexists(stem + end) for end in ends))
    else:
        stem, suffix = os.path.splitext(output) if own else (output, suffix)
    overwrite, sidecars = settings.get("overwrite", False), settings.get("sidecar", False)
    return OutputNames(tidied(stem), suffix, expected > 1, overwrite, expected, sidecars)


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


def check_folder(folder: str) -> None:
    """Refuses a folder that cannot be written or made, by the nearest one that exists."""
    while not os.path.lexists(folder) and folder_of(folder) != folder:
        folder = folder_of(folder)
    is_folder = os.path.isdir(folder)
    if not is_folder or not os.access(folder, os.W_OK | os.X_OK):
        words = f"no permission to write to {folder}" if is_folder else f"{folder} is not a folder"
        raise Failure(OUTPUT, words, "choose another --output", rule="output-folder")


def check_names(names: list[str], overwrite: bool, temp_files: TempFiles) -> None:
    """Refuses names that exist, repeat or are read, and folders that cannot be written, before anything is sent."""
    places: set[str] = set()
    for name in names:
        if os.path.isdir(name) or not os.path.basename(name):
            raise Failure(OUTPUT, f"{name} is a folder, not a file", "name a file", rule="output-folder")
        if exists(name) and not overwrite:
            hint = "choose another --output, or add --overwrite"
            raise Failure(OUTPUT, f"{name} exists already", hint, rule="output-exists")
        if temp_files.is_input(name):
            words = f"{name} is read by this command, so it is not replaced"
            raise Failure(OUTPUT, words, "choose another name for what is written", rule="output-input")
        if absolute(name) in places:
            raise Failure(OUTPUT, f"{name} would be written twice", "put {index} into --output", rule="output-twice")
        places.add(absolute(name))
    for name in names:
        check_folder(folder_of(name))


def saved_reply_name(settings: Settings) -> list[str]:
    """Returns where --save-response writes, if that is a file."""
    name = settings.get("save-response")
    return [name] if name and not is_special(name) else []


def make_folders(names: list[str], temp_files: TempFiles) -> None:
    """Makes the folders of all outputs and tries each by writing to it."""
    for folder in set(map(folder_of, names)):
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
MOST_LOOKS = 100  # at a picture that comes, whether it is whole: base64 may be broken over very many lines


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
        self.looks = 0  # how often it was asked whether it is whole
        self.cut = ""  # why what a URL holds ended early
        self.trouble: Outcome = None

    def write(self, data: bytes) -> bool:
        """Decodes the next piece; False, with nothing done, if not all of it is plain base64."""
        text = self.carry + data
        whole = len(text) & ~3
        try:
            decoded = binascii.a2b_base64(memoryview(text)[:whole])
        except binascii.Error:
            decoded = b""
        # What is not base64 is passed over, and makes the result shorter.
        plain = not self.padded and len(decoded) == whole // 4 * 3 and not text[whole:].translate(None, BASE64)
        if plain and not self.trouble:
            self.carry = text[whole:]
            self.save(decoded)
        return plain or self.trouble is not None

    def write_odd(self, data: bytes) -> None:
        """Decodes a piece with white space or padding in it; any other character is an error, and ends the picture."""
        text = data.translate(URL_SAFE, WHITE)
        behind = text.lstrip(BASE64)
        bare = text[: len(text) - len(behind)]
        odd = self.padded and bare or behind.lstrip(b"=")
        if not self.trouble and not self.padded:
            self.padded, bare = bool(behind), self.carry + bare
            whole = len(bare) & ~3
            self.carry = bare[whole:]
            self.save(binascii.a2b_base64(bare[:whole]))
        if odd and not self.trouble:
            self.trouble = Failure(UNREADABLE, f"a picture is not base64 near byte {self.size} ({chr(odd[0])!r})")

    def save(self, decoded: bytes) -> None:
        """Appends bytes of the picture itself."""
        try:
            write_all(self.file, decoded)
        except OSError as error:  # the room it took may do for a later, smaller picture
            self.trouble = unwritten(error)
            self.drop()
        self.hash.update(decoded)
        self.size += len(decoded)

    def drop(self) -> None:
        """Forgets the picture."""
        self.carry = b""
        self.file.close()
        self.temp_files.remove(self.path)

    def _rest(self) -> bytes:
        """Returns the bytes that the characters which are not decoded yet make, being less than four."""
        return binascii.a2b_base64(self.carry.ljust(4, b"A"))[: max(len(self.carry) - 1, 0)]

    def looks_whole(self) -> bool:
        """Tells whether what has come so far is a whole picture."""
        self.looks += 1
        if self.trouble or self.looks > MOST_LOOKS:
            return False
        try:
            write_all(self.file, self._rest())
            found = identify(self.path)
        except OSError:
            found = None
        self.file.truncate(self.file.seek(self.size))
        return bool(found and found.whole)

    def flush(self) -> None:
        """Decodes the last characters."""
        self.ended = self.ended and len(self.carry) != 1  # one character does not make a byte
        self.save(self._rest())
        self.carry = b""

    def finish(self) -> Picture | Failure:
        """Decodes what is left, and returns what the picture is, or why it cannot be saved."""
        self.flush()
        self.file.close()
        picture = None if self.trouble else identify(self.path)
        if not picture:
            return self.trouble or Failure(UNREADABLE, "what should be a picture is not one, by its first bytes")
        if not self.ended and not picture.whole:  # its text was cut, not the picture
            return Failure(UNREADABLE, "a picture is cut short", rule="picture-cut")
        # Where its format cannot tell, its text does.
        return picture._replace(whole=picture.whole is not False and not self.cut)


def sha256_of(path: str) -> str:
    """Returns the hash of a file, or nothing if it cannot be read."""
    import hashlib

    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in blocks_of(file):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()


class PicturesThere:
    """The picture files of folders as they were at first sight, each of which is found once."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[int, list[str]]] = {}  # by folder and size

    def find(self, folder: str, lifted: Lifted) -> str | None:
        """Returns a file in a folder with the bytes of a picture, if there is one."""
        if folder not in self.folders:
            sizes = self.folders[folder] = {}
            for path in (os.path.join(folder, name) for name in sorted(os.listdir(folder))):
                if os.path.splitext(path)[1].lower() in FORMAT_OF_SUFFIX and os.path.isfile(path):
                    sizes.setdefault(os.path.getsize(path), []).append(tidied(path))
        paths = self.folders[folder].get(lifted.size, [])
        found = next((path for path in paths if sha256_of(path) == lifted.hash.hexdigest()), None)
        if found:
            paths.remove(found)
        return found


class KeptReply:
    """The bytes of a reply as they came over the wire, so that nothing that was paid for can be lost.

    They lie in a nameless file of the first of the folders that has room.
    """

    def __init__(self, folders: list[str]) -> None:
        self.folders = list(folders)
        self.size = 0
        self.file: BinaryFile | None = None

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
                if self.file:
                    self.file.truncate(before)
                    pending = itertools.chain(blocks_of(self.file), [chunk])
                self.file = None
                del self.folders[0]

    def keep(self, target: str, overwrite: bool, temp_files: TempFiles, console: Console) -> str | None:
        """Copies the reply, without the key, to a name that it returns; None if nothing came, or no disk takes it."""
        if not self.file:
            return None
        for path in (target, os.path.join(spare_folder(), os.path.basename(target))):
            try:
                with temp_files.create(spare_folder() if is_special(path) else folder_of(path)) as out:
                    for block in console.cleaned(blocks_of(self.file)):
                        write_all(out, block)
                return temp_files.place(out.name, path, path == target and (overwrite or is_special(path)))
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

# The lifter takes pictures out of the bytes and leaves a token in place of each; what is left is short, and a reader
# for JSON, or for server-sent events with JSON in them, cuts it into documents.


class Document(NamedTuple):
    """A JSON document of a reply by its name (see EVENTS); `cut` if the reply ended within it."""

    name: str
    value: Json
    cut: bool = False
    stream: bool = False


Documents = Iterator[Document]
# A picture is known by what it is: base64 that begins as that of a picture does, wherever it stands, under any key.
# Before it stands no character of base64, nor what ends a JSON document: no byte of that may be held back.
BEFORE = rb"(?:[^A-Za-z0-9+/=_\\}\]>\r\n\x80-\xff-]|\\[nrt]|\\u00[0-9A-Fa-f]{2})"
TEXT_OF_IT = rb"(?:[A-Za-z0-9+/=_\s-]|\\[/nrt]|\\u00[0-9A-Fa-f]{2})"
MAYBE_PICTURE = BEFORE + rb"[A-Za-z0-9+/\\_-]{0,40}\Z"
# Behind it stands the end of its string, or of a Markdown link, or a word.
END_OF_PICTURE = rb"[\"'<>()\[\]{} ]|\\(?![/nrtu]|\Z)|\\u00(?:2[27]|3[CcEe])"
WORDS = rb"[^A-Za-z0-9+/=_\\-]|\\[nrt]"  # no base64, or a line of it has ended
ESCAPE = rb"\\(?:u([0-9a-fA-F]{4})|[nrt])"
CUT_ESCAPE = rb"\\(?:u[0-9a-fA-F]{0,3})?\Z"
TOKEN = r"<[0-9a-f]{24}:[0-9]+>"


def unescape(data: bytes) -> bytes:
    """Undoes JSON escapes within base64; a character beyond ASCII becomes one that is not base64."""
    data = data.replace(b"\\/", b"/").replace(b"\\n", b"\n")  # those that come by the thousand
    return re.sub(ESCAPE, lambda match: chr(int(match[1] or b"20", 16)).encode("ascii", "replace"), data)


@functools.lru_cache(maxsize=None)
def beginning() -> re.Pattern[bytes]:
    """Returns the pattern of what a picture begins with; its group `short` says that too little has come to tell."""
    short = rb"(?P<short>%s{0,63}(?:\\u?[0-9A-Fa-f]{0,3})?\Z)" % TEXT_OF_IT
    return re.compile(rb"%s(?=(?:%s)(?:%s{64}|%s))" % (BEFORE, base64_heads(), TEXT_OF_IT, short), re.DOTALL)


class Lifter:
    """Takes pictures out of bytes that pass: each goes to disk, and a token stands in its place."""

    def __init__(self, new_picture: Callable[[], Lifted]) -> None:
        self.new_picture = new_picture
        self.mark, self.count = os.urandom(12).hex(), 0
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
            match = beginning().search(data)
            if match and match["short"] is None:
                self.current, end = self.new_picture(), match.end()
            else:
                match = match or re.compile(MAYBE_PICTURE).search(data, max(len(data) - 42, 0))
                end = match.start() if match and not last else len(data)
                self.held = data[end:]
            text.append(data[:end])
            data = data[end:] if self.current else b""
        return b"".join(text)

    def _lift(self, picture: Lifted, data: bytes, last: bool, text: list[bytes]) -> bytes:
        """Gives a picture its next bytes, and returns those behind it."""
        piece, quote, rest = data.partition(b'"')
        rest = quote + rest
        if not picture.write(piece):
            found = re.search(END_OF_PICTURE, data)
            end = found.start() if found else len(data)
            words = re.compile(WORDS).search(data, 0, end)
            start = words.start() if words else 0
            if words:  # what comes behind a whole picture, such as a line of text, is not part of it
                picture.write_odd(unescape(data[:start]))
                end = start if picture.looks_whole() else end
            piece, rest = data[start:end], data[end:]
            cut = None if rest or last else re.search(CUT_ESCAPE, piece)
            if cut:
                piece, self.held = piece[: cut.start()], cut.group()
            picture.write_odd(unescape(piece))
        if rest or last:
            picture.ended, self.current = bool(rest), None
            text.append(self._token_of(picture).encode() + (b"" if rest else b'"'))
        return rest

    def lift_raw(self, blocks: Blocks) -> Document:
        """Writes a reply that is a picture and no text, and returns the document that it stands for."""
        picture = self.new_picture()
        for block in blocks:
            picture.save(block)
        picture.ended = True
        return Document("data[]", {"b64_json": self._token_of(picture)})

    def _token_of(self, picture: Lifted) -> str:
        """Returns what stands in the place of a picture."""
        token = f"<{self.mark}:{self.count}>"
        self.count += 1
        self.lifted[token] = picture
        return token

    def take(self, text: str) -> Lifted | None:
        """Returns, once, the picture a string's token stands for."""
        match = re.search(TOKEN, text)
        return self.lifted.pop(match.group(), None) if match else None


MOST_JSON = 4 * MIB  # bytes of a document without its pictures: no reply of this API comes near
DEEPEST = 200  # brackets within brackets: the same
SIGN = rb'(?s)\\.?|["{}\[\]]'  # a backslash by itself ends the bytes: what it escapes comes next
LIST_NAME = rb'"(%s)"\s*:\s*\[\Z' % "|".join(LISTS).encode()
UNFINISHED = bytes(set(range(256)) - set(b' \t\r\n[]{}:,"'))  # of a word or a number that may go on


def parse_cut(text: bytes, closers: bytes) -> Any:
    """Parses the start of a JSON text up to its last whole value; None if there is none."""
    text = text.rstrip(UNFINISHED).rstrip(b" \t\r\n,")
    found = (parse_json(text + rest + closers) for rest in (b"", b"null", b":null"))  # a key may lack its value
    return next((value for value in found if value is not None), None)


class JsonReader:
    """Finds where the objects of JSON text end, and yields each as a document as soon as it is whole.

    Outside of a stream, so is each element of a top-level list (see LISTS), so that a picture is saved the moment its
    last byte arrives; null stands in its place from then on.
    """

    def __init__(self, lifter: Lifter, stream: bool) -> None:
        self.lifter, self.stream = lifter, stream
        self.event, self.typed = "", False  # the name that an event's line gives, and whether a document had one itself
        self.reset()

    def reset(self) -> None:
        """Forgets the document that was begun."""
        self.text, self.quoted, self.escaped = bytearray(), False, False
        self.string_at = 0  # where the last string began or ended
        self.open: list[int] = []  # where the open brackets stand
        self.list: re.Match[bytes] | None = None  # the name of the list of LISTS that is open

    def feed(self, data: bytes, last: bool = False) -> Documents:
        """Takes the next bytes and yields the documents that they complete."""
        data, at, sign = self.lifter.feed(data, last), 0, b""
        for match in re.compile(SIGN).finditer(data, self.escaped):
            sign = match.group()
            if sign == b'"':
                self.quoted = not self.quoted
                self.string_at = len(self.text) + match.start() - at
            elif not self.quoted and sign in b"{}[]":
                self.text += data[at : match.end()]
                at = match.end()
                yield from self._bracket(sign)
        self.text += data[at:]
        self.escaped = sign == b"\\" if data else self.escaped
        if len(self.text) > MOST_JSON or len(self.open) > DEEPEST:
            self.reset()
            yield Document("garbage", {"text": ""})

    def _bracket(self, sign: bytes) -> Documents:
        if sign in b"{[":
            self.open.append(len(self.text) - 1)
            if len(self.open) == 2 and not self.stream:
                self.list = re.search(LIST_NAME, self.text[-64:])
            return
        start = self.open.pop() if self.open else 0
        if self.list and len(self.open) == 2:
            value = parse_json(self.text[start:])
            if isinstance(value, dict):
                self.text[start:] = b"null"
                yield Document(f"{self.list[1].decode()}[]", value)
        elif not self.open:
            yield from self._document()

    def _document(self) -> Documents:
        """Yields the document that has just ended, or was cut: by its type, the kind of its object, or its event."""
        text, cut = bytes(self.text), bool(self.open)
        closers = bytes(text[at] + 2 for at in reversed(self.open))  # } and ] stand two behind { and [ in ASCII
        text = (text[: self.string_at] if self.quoted else text).strip(b" \t\r\n,")
        self.reset()
        if not text:
            return
        value = parse_cut(text, closers) if cut else parse_json(text)
        if isinstance(value, dict):
            names = (value.get("type"), value.get("object"), self.event, "reply")
            name = next(name for name in names if name and isinstance(name, str))
            self.typed |= isinstance(names[0], str)  # then the others are events too
            yield Document(name, value, cut, self.stream or self.typed)
        elif text == b"[DONE]":
            yield Document("done", {})
        else:
            yield Document("garbage", {"text": text[:4096].decode("utf-8", "replace")}, cut)
        self.event = ""

    def finish(self) -> Documents:
        """Ends what was begun, and yields what of it was whole."""
        yield from self.feed(b"", last=True)
        yield from self._document()


LONGEST_NAME = 1000  # characters of a line other than data: what is longer names no event


class SseReader:
    """Reads server-sent events that come in pieces.

    An event ends when its data is a complete JSON text, so a missing blank line, event name or last newline is no
    matter; another event, or a line other than data, ends one that is not complete.
    """

    # https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    def __init__(self, lifter: Lifter) -> None:
        self.json = JsonReader(lifter, stream=True)
        self.line, self.in_data, self.held = b"", False, b""

    def feed(self, data: bytes) -> Documents:
        """Takes the next bytes and yields the events that they complete."""
        data, self.held = self.held + data, b""
        if data[-1:] == b"\r":  # CRLF cut in two: its empty line would end an event of several lines
            data, self.held = data[:-1], b"\r"
        for line in data.splitlines(keepends=True):
            piece = line.rstrip(b"\r\n")
            yield from self._piece(piece, ended=piece != line)
            if piece != line:
                yield from self._end_line()

    def _piece(self, piece: bytes, ended: bool) -> Documents:
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

    def _end_line(self) -> Documents:
        line, self.line = self.line, b""
        in_data, self.in_data = self.in_data, False
        # An event that was not complete when the next one began, or data that is not JSON.
        waits = self.json.open or self.json.lifter.held[:1] in (b"{", b"[")
        if not (waits if in_data else line.startswith(b":")):
            yield from self.json.finish()
        if line.startswith(b"event:"):
            self.json.event = line[6:].strip().decode("utf-8", "replace")

    def finish(self) -> Documents:
        """Yields the event the stream ended with, or within."""
        yield from self._piece(b"", ended=True)
        yield from self.json.finish()


BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before a reply: a byte order mark, white space
HTML = rb"(?is)(<!--.*?-->\s*|<\?xml.*?\?>\s*)*<(html|!doctype html)"


def other_document(start: bytes, blocks: Blocks, lifter: Lifter) -> Document:
    """Reads a reply that is neither JSON nor events: a picture itself, or a text in which pictures may stand."""
    while len(start) < 4096 and (block := next(blocks, b"")):
        start += block
    if identify_file(io.BytesIO(start)) and not re.match(HTML, start):  # a page may hold a drawing
        return lifter.lift_raw(itertools.chain([start], blocks))
    text = b""
    for block in itertools.chain([b" ", start], blocks):
        text = (text + lifter.feed(block))[:4096]
    text += lifter.feed(b"", last=True)
    return Document("garbage", {"text": text.decode("utf-8", "replace").lstrip()})


def documents_of(blocks: Blocks, lifter: Lifter) -> Documents:
    """Yields the documents of a reply, JSON or server-sent events by its first bytes, whatever its header says."""
    start = b""
    while len(start) < 8 and (block := next(blocks, b"")):
        start = (start + block).lstrip(BLANK)
    reader: JsonReader | SseReader = JsonReader(lifter, stream=False)
    if re.match(rb"(data|event|id|retry)?:|(data|event|id|retry)\s*$", start):
        reader = SseReader(lifter)
    elif start[:1] not in b"{[":
        yield other_document(start, blocks, lifter)
        return
    for block in itertools.chain([start], blocks):
        yield from reader.feed(block)
    yield from reader.finish()


# ---------------------------------------------------------------------------------------------------------------------
# 11 Events: documents of any dialect -> their meaning
# ---------------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """What a document says: a picture (final or partial), a text, a piece or a part of it, an error, or facts.

    `key` tells one picture of a response from another: the id of its item, or `#` and its place where it has none.
    """

    kind: str
    body: Json = {}
    key: str = ""
    text: str = ""


Events = Iterator[Event]


def objects_in(value: Any) -> Rows:
    """Returns the objects of a list in a reply, or none if it is not a list."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def message_parts(content: Any) -> Rows:
    """Returns the parts of a message, which may be a plain text."""
    return objects_in(content) if isinstance(content, list) else [{"text": content}]


def item_key(holder: Json, item: Json) -> str:
    """Returns the key of a response's item."""
    return str(item.get("id") or holder.get("item_id") or f"#{holder.get('output_index', '')}")


def told_in(body: Json) -> Json:
    """Returns what a reply, or an item of it, tells: what `auto` became, and the tokens of an svg's author."""
    settled = {name: body[name] for name in SETTLED if isinstance(body.get(name), str)}
    return {"settled": settled or None, "svg_usage": body.get("svg_usage")}


def picture_text(body: Json) -> str:
    """Returns the text that holds the picture of an object, or nothing."""
    return next((body[key] for key in PICTURE_KEYS if isinstance(body.get(key), str) and body[key]), "")


def item_events(item: Json, key: str) -> Events:
    """Reads an output item of a response: a picture by its non-empty result, whatever its status says, or a message."""
    if item.get("type") == "message":
        parts = message_parts(item.get("content"))
        said = [part.get("refusal") or part.get("text") for part in parts]
        texts = [text for text in said if isinstance(text, str)]
        if texts:
            refused = any(part.get("refusal") for part in parts)
            yield Event("refusal" if refused else "text", key=key, text="\n".join(texts))
    elif item.get("type", PICTURE_ITEM) != PICTURE_ITEM:
        return  # another tool, whose error says nothing about the picture
    elif picture_text(item):
        yield Event("facts", told_in(item))
        yield Event("final", item, key)
    elif error_in(item):
        yield Event("error", error_in(item))


def response_events(response: Json) -> Events:
    """Reads a response object, or what is left of any JSON reply: its facts, its error, and items not seen before."""
    yield Event("facts", response)
    if error_in(response):
        yield Event("error", error_in(response))
    for name in LISTS:
        for index, element in enumerate(objects_in(response.get(name))):
            for event in read_document(Document(f"{name}[]", element)):
                yield event._replace(key=f"#{index}" if event.key == "#" else event.key)


def chat_events(choice: Json) -> Events:
    """Reads a chat message, whole or a delta: its text, in which pictures may stand as Markdown, and its pictures."""
    message = as_object(choice.get("message") or choice.get("delta"))
    for part in message_parts(message.get("content")) + objects_in(message.get("images")):
        if isinstance(part.get("text"), str):
            yield Event("chat", text=part["text"])
        else:
            holder = as_object(part.get("image_url")) or {"url": part.get("image_url"), **part}
            if picture_text(holder):
                yield Event("final", holder)
    if isinstance(message.get("refusal"), str):
        yield Event("refusal", text=message["refusal"])
    yield Event("facts", choice)  # why it ended


def read_document(document: Document) -> Events:
    """Yields what a document means by its row of EVENTS; a picture that no row names is left unclaimed."""
    value, error, key = document.value, error_in(document.value), item_key(document.value, document.value)
    unknown = Dialect("", "unknown") if document.stream and "choices" not in value else REPLY_ROW
    row = next((row for row in EVENTS if re.fullmatch(row.pattern, document.name)), unknown)
    body = as_object(value.get(row.key)) or value
    body = as_object(body.get("body")) or body  # as a batch wraps it
    if row.meaning in ("response", "chunk"):
        if picture_text(body) and not document.stream and not document.cut:  # else it may be a preview
            yield Event("final", body)
        yield from response_events(body)
    elif row.meaning == "item":
        yield from item_events(body, item_key(value, body))
    elif row.meaning == "error" or error and row.meaning != "tool":
        yield Event("error", error or value)
    elif row.meaning == "chat":
        yield from chat_events(value)
    elif row.meaning in ("delta", "said"):
        if isinstance(value.get(row.key), str):
            yield Event(row.meaning, key=f"{key} {value.get('content_index')}", text=value[row.key])
    elif row.meaning in ("partial", "final") and picture_text(value):
        yield Event("facts", value)
        # Some gateways give every element of `data` the id of the call.
        yield Event(row.meaning, value, "" if document.name == "data[]" else key)


# ---------------------------------------------------------------------------------------------------------------------
# 12 Call: one object for one call: receive, save, keep, poll, resume, conclude
# ---------------------------------------------------------------------------------------------------------------------


class Result(Tries):
    """What one call has come to: all that is reported of it."""

    refused = False  # whether the model said that it will not make a picture
    saved_response: str | None = None
    session_file: str | None = None
    mask: str | None = None
    request: Json | None = None  # what was asked for
    summary: Json | None = None  # of a batch
    share = 1.0  # of the usual price
    reported = False  # the command has printed its own result

    def __init__(self, route: str, model: str | None = None) -> None:
        super().__init__()
        self.route, self.model = route, model
        self.images: Rows = []
        self.partials: Rows = []
        self.unclaimed: Rows = []
        self.texts: dict[str, str] = {}
        self.deltas: list[str] = []
        self.said: dict[str, str] = {}  # what a stream says of a text at its end
        self.facts: Json = {}
        self.troubles: list[Failure] = []

    @property
    def text(self) -> str | None:
        """Returns the text of the answer: its messages, or else the pieces or the parts that arrived of them."""
        return "\n".join(self.texts.values()) or "".join(self.deltas) or "\n".join(self.said.values()) or None

    def shown(self) -> Json:
        """Returns what is reported of the call itself."""
        facts = self.facts
        return {
            "route": self.route, "model": self.model, "images": self.images,
            "partial_images": self.partials, "unclaimed": self.unclaimed, "text": self.text,
            "response_id": facts.get("id") if self.route == "responses" else None,
            "request_id": self.request_id, "usage": facts.get("usage"),
            "cost": cost_of(facts, self.route, self.model, self.share),
            "request": self.request, **told_in({**facts, **as_object(facts.get("settled"))}),
        }  # fmt: skip


def utc(seconds: float) -> str:
    """Returns a time, given in seconds since 1970, as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def write_file(temp_files: TempFiles, target: str, data: bytes, overwrite: bool = False) -> str:
    """Writes a file that has its name when it is whole, and returns the name it got."""
    with temp_files.create(os.path.dirname(target) or ".") as file:
        write_all(file, data)
    return temp_files.place(file.name, target, overwrite)


def bug_failure(console: Console) -> Failure:
    """Returns the failure of a bug, with the redacted traceback."""
    import traceback

    words = "a bug of this program:\n" + console.clean(traceback.format_exc())
    return Failure(BUG, words, "please report it", rule="bug")


def garbage_failure(text: str) -> Failure:
    """Returns the failure of a reply that is neither JSON nor events, with its title if it is a page; or too much."""
    if not text:
        words = f"the reply holds more than {amount(MOST_JSON)} of JSON without a picture, or {DEEPEST} nested lists"
        return Failure(UNREADABLE, words, rule="reply-too-long")
    title = page_title(text)
    if title or text.lower().startswith(("<!doctype", "<html")):
        words = "the reply is an HTML page" + (f" titled {title!r}" if title else "")
        hint = "is the base URL right? It usually ends in /v1"
        return Failure(UNREADABLE, words, hint, rule="reply-page", may_be_billed=False)
    return Failure(UNREADABLE, f"the reply is neither JSON nor events; it begins {text[:60]!r}", rule="reply-garbage")


MARKDOWN_LINK = r"!\[[^\[\]]{0,500}\]\((https?://[^()\s]{1,4000})[^()]{0,500}\)"
MARKDOWN_REST = r"!\[[^\[\]]{0,500}\]\((?:data:[^,()]{0,80},)?<[0-9a-f]{24}:[0-9]+>[^()]{0,500}\)?"
NO_MATTER = ("reply-garbage", "reply-page", "reply-too-long")  # if every picture is there
MOST_TROUBLES = 20  # more of them are not noted

# The background mode of /responses: polls, and streams that are taken up again.
POLL_FIRST, POLL_GROWTH = 2.0, 1.2  # seconds, factor
LONGEST_POLL = 360  # of the longest waits, until a background response is left to `resume`: an hour for the soonest
LONGEST_LOOK = 30.0  # seconds to wait for a response whose reply was cut


class Call:
    """One call from its first byte to its result; two of them share the console and nothing else."""

    def __init__(self, context: Context, settings: Settings, names: OutputNames) -> None:
        self.context, self.settings, self.names = context, settings, names
        self.result, self.console, self.stop = context.result, context.console, context.stop
        self.numbers: dict[str, int] = {}  # number of each picture by its key
        self.finished: set[int] = set()  # the numbers of pictures that have come, be it damaged
        self.done: dict[str, set[str]] = {}  # the keys of the final pictures by their hash
        self.there = PicturesThere()
        self.sequence = -1  # the last event's sequence_number, from 0
        # The disk of the outputs may be full; what is read from a file need not be kept again.
        self.offline = context.result.route == "extract"
        self.folders = [] if self.offline else [spare_folder(), names.folder]
        self.kept = KeptReply(self.folders)
        self.new_picture = functools.partial(Lifted, context.temp_files, names.folder)
        wait = 0.0 if settings.get("no-wait") else settings.get("wait", float("inf"))
        self.until = context.progress.started + wait

    def begin(self, reply: Reply) -> None:
        """Makes ready for the first reply, or for another one that goes on with the same pictures."""
        self.reply, self.cut = reply, False
        self.lifter = reply.lifter or Lifter(self.new_picture)
        self.chat, self.answer = Lifter(self.new_picture), Lifter(self.new_picture)  # texts that come in pieces
        self.chat_pieces: list[str] = []

    # Receive: bytes -> documents -> what they mean

    def send(self, request: Request) -> Outcome:
        """Sends the request and receives the reply; returns how that failed, or raises a Failure if it was refused."""
        try:
            self.result.keep_anew = self.keep_anew
            reply = exchange(self.context, self.settings, request, self.result)
        except Failure as failure:
            found = beginning().search(next(blocks_of(self.kept.file), b"")) if self.kept.file else None
            made = found and found["short"] is None  # LiteLLM may quote the picture that was made
            if made:
                failure.details["may_be_billed"] = True
            self.keep(failure if made else None, extractable=True)
            raise
        finally:
            self.warn_of_losses(request)
        return self.receive(reply)

    def warn_of_losses(self, request: Request) -> None:
        """Warns of what a proxy, if it was one that answered, does not pass on."""
        sent = [row["name"] for row in request.form or [{"name": request.url}]]
        for pattern, words in LITELLM_LOSES.items():
            if LITELLM in self.result.headers and any(re.fullmatch(pattern, name) for name in sent):
                self.console.warn(words)

    def keep_anew(self) -> Callable[[bytes], None]:
        """Forgets what was kept, and returns what takes the bytes of another reply."""
        self.kept.close()
        self.kept = KeptReply(self.folders)
        return self.kept.write

    def receive(self, reply: Reply) -> Outcome:
        """Reads a reply to its end and saves each picture as it is complete; returns how it failed."""
        self.begin(reply)
        kept = KeptReply([] if reply.lifter else self.folders)  # without its pictures it is of no use
        reply.keep, reply.stop = kept.write, self.stop
        failure = self._safely(documents_of(self.in_time(unpacked(reply)), self.lifter))
        while (failure or reply.fault) and reply.read():  # so that at least the reply is kept
            pass
        reply.close()
        failure = failure or self._safely(self._end_of_chat())
        self.save_unclaimed()
        if kept.size > self.kept.size:  # of many polls, the reply that says most is kept
            kept, self.kept = self.kept, kept
        kept.close()
        if self.stop.requested:
            return Failure(INTERRUPTED, "interrupted")
        if failure:
            return failure
        if reply.fault:
            return Failure(NETWORK, reply.fault.message)
        return Failure(NETWORK, "the reply ended in the middle") if self.cut else None

    def in_time(self, blocks: Blocks) -> Blocks:
        """Yields the bytes of a reply: of a background stream without a picture only until the wait is over."""
        for block in blocks:
            yield block
            if self.stored and self.settings.get("stream") and not self.result.images:
                if self.left() <= 0:
                    return
                if self.reply.sock:
                    self.reply.sock.settimeout(min(self.left(), self.settings.get("timeout")))

    def _safely(self, documents: Documents) -> Outcome:
        """Acts on documents; a full disk or a bug must not lose what was paid for, so that failure is returned."""
        try:
            for document in documents:
                self.add(document)
        except OSError as error:
            return unwritten(error)
        except Exception:
            return bug_failure(self.console)
        return None

    def _end_of_chat(self) -> Documents:
        """Yields the pictures of a chat message that are behind links; what is left of it is its text."""
        self.result.deltas.append(self.say(self.answer, "", last=True))
        self.say_chat("", last=True)
        words = "".join(self.chat_pieces)
        for url in re.findall(MARKDOWN_LINK, words):
            yield Document("data[]", {"url": url})
        words = re.sub(MARKDOWN_REST, "", re.sub(MARKDOWN_LINK, "", words)).strip()
        if words:
            self.result.texts["chat"] = words

    def add(self, document: Document) -> None:
        """Acts on a document."""
        self.cut |= document.cut
        if not document.cut:
            self.sequence = max(self.sequence, number_of(document.value.get("sequence_number"), -1))
        if document.name == "garbage":
            self.trouble(garbage_failure(self.console.clean(document.value["text"])))
        elif document.name == "done":
            self.reply.over = True
        else:
            for event in read_document(document):
                self.act(event)

    def act(self, event: Event) -> None:
        """Acts on what a document means."""
        kind, result = event.kind, self.result
        if kind == "final":
            self.final(self.claimed(event.body), event)
        elif kind == "partial":
            self.partial(event)
        elif kind in ("text", "refusal"):
            result.texts[event.key] = event.text
            result.refused = result.refused or kind == "refusal"
        elif kind == "chat":
            self.say_chat(event.text)
        elif kind == "delta":
            result.deltas.append(self.say(self.answer, event.text))
        elif kind == "said":
            result.said[event.key] = event.text
        elif kind == "error":
            self.trouble(refusal_of(event.body))
        else:
            result.facts.update({k: v for k, v in event.body.items() if v is not None and k not in LISTS})
            self.write_session()

    def trouble(self, failure: Failure) -> None:
        """Notes what is wrong with a reply."""
        failure.message = self.console.said(failure.message, MOST_SAID)
        if len(self.result.troubles) < MOST_TROUBLES:
            self.result.troubles.append(failure)

    def say(self, lifter: Lifter, text: str, last: bool = False) -> str:
        """Takes a piece of text in which pictures may stand, and returns what of it is ready, with their tokens."""
        lifted = self.lifter.lifted
        ending = re.search(TOKEN + r"\Z", text[-60:])
        begun = lifted.get(ending.group()) if ending else None
        if ending and begun and not begun.looks_whole():  # the pieces that follow are the rest of it
            text, last = text[: -len(ending.group())], True
            del lifted[ending.group()]
        else:
            begun = None
            if lifter.current and lifter.current.padded and lifter.current.looks_whole():
                text = f" {text}"  # the words behind a picture are none of it
        said = lifter.feed(text.encode("utf-8", "surrogatepass"), last).decode("utf-8", "surrogatepass")
        lifter.current = begun or lifter.current
        return said

    def say_chat(self, text: str, last: bool = False) -> None:
        """Takes a piece of a chat message, and saves the pictures in Markdown that end in it."""
        self.chat_pieces.append(self.say(self.chat, text, last))
        for token in re.findall(TOKEN, self.chat_pieces[-1]):
            lifted = self.chat.take(token) or self.lifter.take(token)
            if lifted:
                self.final(lifted, Event("final"))

    # Save: pictures -> files

    def number(self, key: str, final: bool = False) -> int:
        """Returns the number of a picture: that of its key, or of previews that wait for their picture, or the next."""
        used, own = {*self.numbers.values(), *self.finished}, self.numbers.get(key)
        if final and own in {None, *(row["index"] for row in self.result.images)}:
            own = min(used - self.finished, default=None)
        number = own or max(used, default=0) + 1
        if key not in ("", "#"):
            self.numbers.setdefault(key, number)
        if final:
            self.finished.add(number)
        return number

    def claimed(self, body: Json) -> Lifted:
        """Returns the picture of an object, from wherever it stands: lifted already, inline, or behind a URL."""
        text = picture_text(body)
        found = self.lifter.take(text)
        if found:
            if not text.rstrip().endswith(">"):
                found.trouble = found.trouble or Failure(UNREADABLE, "the base64 of a picture is damaged")
            return found
        path = self.own_path(text) if text == body.get("url") or output_suffix(text) in FORMAT_OF_SUFFIX else ""
        if path or re.match(r"(?!data:)[a-z][a-z0-9+.-]*:", text, re.IGNORECASE):
            return self.fetched(path or text, bool(path))
        lifted = self.new_picture()
        lifted.write_odd(re.sub(r"^data:[^,]{0,200},", "", text, flags=re.IGNORECASE).encode("utf-8", "replace"))
        lifted.ended = True
        return lifted

    def own_path(self, text: str) -> str:
        """Returns the URL of a path of the endpoint's own server; nothing for any other text."""
        from urllib.parse import urljoin

        own = re.fullmatch(r"(?!//)[^:\s\\\[\]]{1,2000}", text)
        return urljoin(self.settings.get("base-url", "") + "/", text) if own else ""

    def fetched(self, url: str, own: bool) -> Lifted:
        """Returns the picture that a URL holds; one whose body is cut is fetched again, and at last kept as it is."""
        self.context.progress.phase("fetching", index=self.number(""))
        lifted = self.fetch(url, own)
        for attempt in range(self.settings.get("max-retries", 0)):
            if not lifted.cut:
                break
            self.context.sleep(retry_wait({}, attempt) or 0)
            again = self.fetch(url, own)
            if again.trouble:  # then what came before is the most there is
                again.drop()
                break
            lifted.drop()
            lifted = again
        if lifted.cut:
            words = f"the picture at {self.console.said(url, 500)} is cut short: {lifted.cut}"
            self.trouble(Failure(UNREADABLE, words, "fetch it yourself"))
        return lifted

    def fetch(self, url: str, own: bool) -> Lifted:
        """Returns what a URL holds, over http or https only, with why it is cut or cannot be had."""
        lifted, shown = self.new_picture(), self.console.said(url, 500)
        lifted.ended = True
        hint = "ask for the picture itself with --response-format b64_json"
        if self.offline or not is_web(url):
            words = f"the reply holds no picture, but names {shown!r}"
            lifted.trouble = Failure(UNREADABLE, words, "fetch it yourself" if is_web(url) else hint)
            return lifted
        try:
            reply = self.open_picture(url, own)
            reply.stop = self.stop
            for chunk in unpacked(reply):
                lifted.save(chunk)
            reply.close()
            if reply.fault and not lifted.trouble:
                lifted.cut = reply.fault.message
        except Failure as failure:
            words = f"the picture at {shown} cannot be fetched: {failure.message}"
            lifted.trouble = Failure(NETWORK, words, hint if own else failure.hint)
        except KeyboardInterrupt:
            self.stop.requested = True
        if self.stop.requested and not lifted.looks_whole():
            lifted.trouble = Failure(INTERRUPTED, f"the picture at {shown} was not downloaded completely")
        return lifted

    def open_picture(self, url: str, own: bool) -> Reply:
        """Opens a picture's URL without the key; with it only where a path of the endpoint itself asks for one."""
        request = Request("GET", url, [("Accept", "image/*"), ("User-Agent", f"gpt-image/{__version__}")])
        try:
            return exchange(self.context, self.settings, request)
        except Failure as failure:
            if not own or failure.details.get("status") not in (401, 403):
                raise
        return exchange(self.context, self.settings, request._replace(headers=api_headers(self.settings, None)))

    def final(self, lifted: Lifted, event: Event) -> None:
        """Saves a finished picture; the same bytes under the same key, or once with an id and once without, are one."""
        lifted.flush()
        for key in self.done.get(lifted.hash.hexdigest(), ()):
            same_key = key == event.key if key and event.key else key != event.key  # a list may hold equal pictures
            if same_key or "#" in (key[:1], event.key[:1]):
                lifted.drop()
                return
        result, number = self.result, self.number(event.key, final=True)
        row = self._saved(lifted, self.names.final(number), number, number <= self.names.expected)
        if isinstance(row, Failure):
            self.trouble(row)
            if row.exit == UNREADABLE:
                self.lifter.lifted[lifted.path] = lifted
            return
        self.done.setdefault(row["sha256"], set()).add(event.key)
        prompt = event.body.get("revised_prompt")
        prompt = prompt if isinstance(prompt, str) else None
        result.images.append({**row, "revised_prompt": prompt, **told_in(event.body)})
        size, got = self.settings.get("size"), f"{row['width']}x{row['height']}"
        if size and size != "auto" and row["width"] and got != size:  # some gateways ignore the size
            self.console.warn(f"{row['path']}: {size} was asked for, {got} came")
        kind = f"{row['format']} {got}" if row["width"] else row["format"]
        if not self.offline and self.settings.get("output") != "-":  # these get another name, or none, in the end
            self.context.progress.phase("saved", **row, kind=kind)
        self.show(row["path"])

    def partial(self, event: Event) -> None:
        """Saves a preview as it arrives; one that is broken is not a failure, since it was only a preview."""
        index, number = self.number(event.key), number_of(event.body.get("partial_image_index")) + 1
        asked = self.settings.get("partial-images") or 0
        foreseen = index <= self.names.expected and number <= asked
        row = self._saved(self.claimed(event.body), self.names.partial(index, number), index, foreseen)
        if isinstance(row, Failure):
            self.console.warn(f"preview {number}: {row.message}")
            return
        row["partial"] = number
        self.result.partials.append(row)
        self.context.progress.phase("preview", **row, asked=asked or number)
        self.show(row["path"])

    def show(self, path: str) -> None:
        """Shows a saved picture in the terminal, if that was asked for."""
        if self.settings.get("preview"):
            show_picture(path, self.console, self.context.environ)

    def write_sidecars(self) -> None:
        """Writes what is known of each picture beside it, unless it was there already."""
        made = {"date": utc(self.context.now()), "version": __version__}
        for image in self.result.images if self.names.sidecars else []:
            if image.get("new", True):
                known = {**self.result.shown(), "images": [image], **made}
                self.write_json(sidecar_of(image["path"]), known, image["index"] <= self.names.expected)

    def write_json(self, target: str, value: Json, foreseen: bool = False) -> str | None:
        """Writes a file of JSON without the key, and returns the name it got; a picture is safe without such a file."""
        text = self.console.clean(json.dumps(value, indent=2, ensure_ascii=False) + "\n", Secret.LONG)
        try:
            data = text.encode("utf-8", "backslashreplace")  # which is how JSON escapes half a character
            return write_file(self.context.temp_files, target, data, self.names.overwrite and foreseen)
        except OSError as error:
            self.console.warn(f"{target}: {error.strerror}")
            return None

    def save_unclaimed(self) -> None:
        """Saves the pictures that came and that nothing named, but for those whose bytes are on disk already."""
        unclaimed = self.result.unclaimed
        known = {row["sha256"] for row in [*self.result.images, *self.result.partials, *unclaimed]}
        lifters = (self.lifter, self.chat, self.answer)
        for lifted in [lifted for lifter in lifters for lifted in lifter.lifted.values()]:
            if lifted.trouble and lifted.trouble.exit == UNREADABLE:  # what came before the damage may be all of it
                lifted.trouble, lifted.ended = None, False
            lifted.flush()
            if lifted.hash.hexdigest() in known:
                continue
            number = len(unclaimed) + 1
            row = self._saved(lifted, self.names.beside(f"-unclaimed-{number}{self.names.suffix}"), number, False)
            if not isinstance(row, Failure):
                unclaimed.append(row)
                known.add(row["sha256"])
            elif row.exit == OUTPUT:
                self.trouble(row)

    def _saved(self, lifted: Lifted, name: str, index: int, foreseen: bool) -> Json | Failure:
        """Gives a picture's file its name, with the suffix of what it is, and returns its row of the result."""
        picture, console = lifted.finish(), self.console
        if isinstance(picture, Failure):
            return picture
        (stem, suffix), true_name, digest = os.path.splitext(name), name, lifted.hash.hexdigest()
        if FORMAT_OF_SUFFIX.get(suffix.lower()) != picture.format:
            true_name = stem + suffix_of(picture.format)
            console.warn(f"{name}: the picture is a {picture.format}, so it is saved with that suffix")
            foreseen = False
        folder, temp_files = os.path.dirname(true_name) or ".", self.context.temp_files
        try:
            os.makedirs(folder, exist_ok=True)
            known = self.there.find(folder, lifted) if self.offline else None
            if self.reply.lifter and sha256_of(true_name) == digest:  # an earlier run got so far
                known = true_name
            path = known or temp_files.place(lifted.path, true_name, self.names.overwrite and foreseen)
        except OSError as error:
            return unwritten(error)
        if known:
            temp_files.written.add(absolute(known))
            console.tell(f"{path} is already there")
        elif path != true_name:
            console.warn(f"{true_name} exists, so the picture is saved as {path}")
        if not picture.whole:
            console.warn(f"{path}: the {picture.format} is cut short")
        return {"path": path, "index": index, "format": picture.format, "width": picture.width or None,
                "height": picture.height or None, "bytes": lifted.size, "sha256": digest,
                "whole": picture.whole, **({"new": not known} if self.offline else {})}  # fmt: skip

    # Poll and resume: responses that run in the background, or whose reply was cut

    @property
    def stored(self) -> bool:
        """Tells whether the response runs in the background, and has an id by which it can be collected."""
        return bool(self.settings.get("background-mode")) and isinstance(self.result.facts.get("id"), str)

    def left(self) -> float:
        """Returns the seconds that are left to wait."""
        return self.until - self.context.progress.clock()

    def resume_command(self) -> str:
        """Returns the command that collects the response later, and waits as long as this one."""
        wait = self.settings.get("wait")
        words = [f"--wait={wait:g}"] if wait else ["--no-wait"] * bool(self.settings.get("no-wait"))
        return program("resume", self.result.session_file or str(self.result.facts.get("id")), *words)

    def write_session(self) -> None:
        """Writes the session file of a background response as soon as its id is known, before the first poll."""
        result, settings, console = self.result, self.settings, self.console
        if result.session_file or not self.stored:
            return
        session = {
            "gpt_image_session": 1, "response_id": result.facts["id"], "origin": origin_of(settings.get("base-url")),
            "model": result.model, "output": os.path.basename(self.names.stem) + self.names.suffix,
            "stream": bool(settings.get("stream")), "created": utc(self.context.now()),
            "window": settings.get("completion-window"), "request": result.request,
        }  # fmt: skip
        result.session_file = self.write_json(self.names.beside(SESSION_ENDING), session)
        say = console.tell if result.session_file else console.warn
        say(f"queued; if this is interrupted: {self.resume_command()}")

    def forget_session(self) -> None:
        """Removes the session file of a response that has ended with every picture saved."""
        result = self.result
        if result.session_file and (not result.troubles or result.facts.get("status") in ENDED[1:]):
            self.context.temp_files.remove(result.session_file)
            result.session_file = None

    def ask(self, query: str = "", cancel: bool = False) -> Reply:
        """Asks for a stored response, or cancels it."""
        path = f"/responses/{url_part(str(self.result.facts['id']))}" + "/cancel" * cancel
        url = api_url(self.settings, path, query)
        request = Request("POST" if cancel else "GET", url, api_headers(self.settings, None))
        return exchange(self.context._replace(left=self.left), self.settings, request)

    def read_again(self) -> Outcome:
        """Reads the response anew: a background stream from where it was cut, any other whole."""
        live = self.settings.get("background-mode") and self.sequence >= 0
        reply = self.ask(f"stream=true&starting_after={self.sequence}" if live else "")
        self.result.troubles.clear()
        return self.receive(reply)

    def settle(self, failure: Outcome) -> Outcome:
        """Waits for a response that runs in the background, or looks up one whose reply was cut before giving up."""
        facts, first, background = self.result.facts, failure, bool(self.settings.get("background-mode"))
        cut = failure is not None and failure.exit == NETWORK
        if background and self.settings.get("stream") and facts.get("status") == "failed" and not failure:
            # A proxy whose own connection was cut says that the response failed, though it goes on: one look is free.
            cut, self.sequence = True, -1
        stored = background or cut and self.settings.get("store") is not False
        if not isinstance(facts.get("id"), str) or not stored:
            return failure
        most = POLL_MOST.get(self.settings.get("completion-window"), POLL_MOST[SOONEST])
        limit = LONGEST_POLL * most if background else LONGEST_LOOK
        self.until = min(self.until, self.context.progress.clock() + limit)
        wait = 0.0 if cut else POLL_FIRST
        try:
            while cut or not failure and facts.get("status") in (None, *WORKING):
                if self.left() <= 0:
                    raise Failure(RUNNING, "not finished in time")
                if facts.get("status") in WORKING:
                    self.context.progress.phase("polling", status=WORKING[facts["status"]])
                self.context.sleep(min(wait, self.left()))
                wait = min(max(wait * POLL_GROWTH, POLL_FIRST), most)
                failure = self.read_again()
                cut = background and failure is not None and failure.exit == NETWORK
        except Failure as error:
            failure = Failure(RUNNING, f"the response {facts['id']} is still running: {error.message}")
        except KeyboardInterrupt:
            return Failure(INTERRUPTED, "interrupted while waiting")
        if not background:
            return first if failure and failure.exit != INTERRUPTED else failure
        if not failure:
            self.forget_session()
        return failure

    # Conclude: was everything there that was asked for, and what is kept if not

    def keep(self, failure: Outcome, extractable: bool) -> None:
        """Keeps the reply where --save-response says, that of a failure always, and names what takes pictures out."""
        path, saved = self.settings.get("save-response"), None
        if path or failure:
            target, overwrite = path or self.names.beside(".reply"), bool(path and self.names.overwrite)
            saved = self.kept.keep(target, overwrite, self.context.temp_files, self.console)
            self.result.saved_response = saved
        self.kept.close()
        if failure and saved and extractable:
            output = self.names.final(1)
            if self.names.expected > 1 or exists(output):
                output = self.names.beside("-recovered" + self.names.suffix)
            command = program("extract", saved, "--output", output)
            failure.details["recovery"] = command
            self.console.say(f"what was received is kept; to take the pictures out of it: {command}")

    def conclude(self, failure: Outcome, wanted: int) -> None:
        """Ends the call: success, or the failure with what was received kept."""
        result = self.result
        self.write_sidecars()
        failure = self.judged_reply(failure, wanted)
        if failure and self.resumable(failure):  # then the reply is of no use
            self.keep(None, extractable=False)
            failure.details["recovery"] = self.resume_command()
            failure.hint = f"collect it later: {self.resume_command()}"
        else:
            self.keep(failure, extractable=bool(failure and self.extractable(failure)))
        if failure:
            raise failure
        if result.text and not result.images:
            self.console.warn("the model answered in words only")

    def resumable(self, failure: Failure) -> bool:
        """Tells whether a background response can still be collected: it runs, or the download of its end was cut."""
        cut = failure.exit in (RUNNING, INTERRUPTED)
        return self.stored and (cut or self.result.facts.get("status") not in ENDED)

    def extractable(self, failure: Failure) -> bool:
        """Tells whether a kept reply may hold a picture: a page, an error or an answer in words does not."""
        said_no = "code" in failure.details or failure.details.get("rule") in ("reply-page", "reply-words")
        return self.lifter.count + self.chat.count + self.answer.count > 0 or not said_no

    def judged_reply(self, failure: Outcome, wanted: int) -> Outcome:
        """Returns why a reply is not what was asked for, with all that was wrong; None if every picture is on disk."""
        result = self.result
        whole = sum(row["whole"] for row in result.images)
        enough = whole >= wanted
        troubles = [found for found in (failure, *result.troubles) if found]
        if enough:
            troubles = [found for found in troubles if found.details.get("rule") not in NO_MATTER]
        if not troubles and enough:
            return None
        first = troubles[0] if troubles else self._lacking()
        came = result.images or result.partials or result.unclaimed
        first.details["may_be_billed"] = result.billed and bool(came or first.details.get("may_be_billed", True))
        if first.exit in (UNREADABLE, OUTPUT, NETWORK) and not enough:
            first.message += f" ({whole} of {plural(wanted, 'picture')} saved)"
        if first.exit == NETWORK and enough and wanted:
            first.hint = "every picture asked for is on disk: do not call again"
        if len(troubles) > 1:
            first.details["problems"] = [row for found in troubles for row in found.problems]
        return first

    def _lacking(self) -> Failure:
        """Returns the failure of a reply that was read well and lacks pictures."""
        result, facts, status = self.result, self.result.facts, self.result.facts.get("status")
        reason = as_object(facts.get("incomplete_details")).get("reason") or facts.get("finish_reason")
        words = f"the response is {status}" if status in ENDED[1:] else "the reply lacks pictures"
        if not self.kept.size:
            words = "the reply is empty"
        words += f": {reason}" if reason else ""
        if result.unclaimed:
            words += f"; saved {plural(len(result.unclaimed), 'picture')} the reply did not name"
        hint = "a preview is never taken for a finished picture" if result.partials else None
        if not all(row["whole"] for row in result.images):
            words, hint = "a picture arrived cut short", "the file stays; look at it before you pay for another"
        if result.refused:
            words, hint = "the model refused to make the picture", None
        elif result.text:
            hint = "the model answered in words; say in the prompt that you want a picture"
        if reason in MODERATION:
            return Failure(REFUSED, words, CODE_HINTS[reason], code=reason)
        return Failure(UNREADABLE, words, hint, rule="reply-words" if result.text else None)


def convert_input(context: Context, given: InputPicture, route: str) -> InputPicture:
    """Turns an input picture of a format the API does not take into a PNG, if a program here can."""
    if given.kind != "file" or not given.picture or is_taken(given.picture, route):
        return given
    with context.temp_files.create(spare_folder(), ".png") as file:
        target = file.name
    context.progress.phase("converting", path=given.shown)
    environ = context.console.without_secrets(context.environ)
    converter, failed = convert_to_png(os.path.join(os.getcwd(), given.text), target, environ)
    if not converter:
        return given._replace(failed=tuple(failed))
    context.console.warn(f"{given.shown}: converted from {given.picture.format} to png with {converter}")
    return given._replace(text=target, size=os.path.getsize(target), picture=identify(target))


def same_file(path: str, data: bytes) -> bool:
    """Tells whether a file holds just these bytes."""
    import hashlib

    return sha256_of(path) == hashlib.sha256(data).hexdigest()


def plan_mask(context: Context, checked: Checked, data: bytes, target: str) -> list[str]:
    """Adds a mask to the inputs, and returns its name if it is to be written; another file there is the user's own."""
    picture = identify_file(io.BytesIO(data))
    checked.inputs.append(InputPicture("mask", "--mask-box", "file", target, target, len(data), picture))
    if same_file(target, data):
        context.temp_files.reads([target])
        return []
    if exists(target):
        words = f"{target}, the name for the mask of --mask-box, is that of another file"
        raise Failure(OUTPUT, words, "choose another --output, or move that file", rule="output-exists")
    return [target]


MASK_ENDING = "-mask.png"


class Prepared(NamedTuple):
    """A call that has passed the checks of what it sends: the request, and all names that will be written."""

    checked: Checked
    names: OutputNames
    written: list[str]
    mask: bytes  # of --mask-box
    request: Request

    @property
    def outputs(self) -> list[str]:
        """Returns the names of the finished pictures."""
        return self.written[: self.names.expected]


def prepare(context: Context, settings: Settings, positional: str | None) -> Prepared:
    """Checks all that a call would send, all broken rules at once, and plans its names."""
    context.result.model = settings.get("model")
    checked = gather_checked(settings, positional, context.stdin, context.now())
    context.result.model = checked.top_model
    checked.inputs = [convert_input(context, given, checked.command) for given in checked.inputs]
    settings = checked.settings = sized(checked.settings, checked.row.sizes or FREE_SIZES)
    broken = (found for check in CHECKS for found in check(checked))
    problems = [*settings.problems, *broken, *check_cost(checked)]
    enforce(problems, bool(settings.get("no-validate")), context.console)
    check_pair(settings, context)
    size, asked = settings.get("size", ""), settings.label("size")
    if not asked.endswith(size):
        context.console.tell(f"{asked} is {size}")
    names = output_names(settings, expected_pictures(checked), name_places(context, checked.prompt))
    previews = settings.get("partial-images") if settings.get("stream") else None
    outputs = names.planned(previews or 0)
    context.temp_files.reads(given.shown for given in checked.inputs if given.kind == "file")
    written, mask = outputs + saved_reply_name(settings), boxed_mask(checked)
    if mask:
        written += plan_mask(context, checked, mask, names.beside(MASK_ENDING))
    return Prepared(checked, names, written, mask, build_request(checked))


def shown_settings(settings: Settings) -> Json:
    """Returns the settings in force with their sources, secrets masked."""
    rows = {}
    for name, (value, source, _) in settings.rows.items():
        if isinstance(value, list):
            value = [str(item) for item in value]
        elif isinstance(value, Secret):
            value = str(value)
        rows[name] = {"value": value, "source": source.label}
    return rows


def write_beside(context: Context, call: Prepared) -> None:
    """Makes the folders of a call, and its mask, if that is not there already."""
    make_folders(call.written, context.temp_files)
    if call.mask:
        target = call.names.beside(MASK_ENDING)
        if not same_file(target, call.mask):
            write_file(context.temp_files, target, call.mask)
        context.console.tell(f"the mask is {target}")
        context.result.mask = target


# In JSON: base64, be it over several lines (then \\ and n stand in it), and keys.
NOT_TOLD = rf"(?i)(?<=;base64,)[a-z0-9+/=_\\-]+|[a-z0-9+/_-]{{500,}}=*|{KEY_FORM}"


def asked_for(call: Prepared) -> Json:
    """Returns what a call asks for: the prompt, the options as they are sent, and the inputs with their hashes."""
    checked, extra = call.checked, call.checked.settings.get("extra-json", {})
    inputs = [
        {"role": row.role, "kind": row.kind, "path": row.shown, "sha256": sha256_of(row.shown) or None}
        for row in checked.inputs
    ]
    tree = call.request.tree or merge(images_tree(checked), extra)
    sent = {name: value for name, value in tree.items() if name not in OVERRIDES or name in extra}
    text = json.dumps({"prompt": checked.prompt, **sent, "inputs": inputs})
    found: Json = json.loads(re.sub(NOT_TOLD, "***", text))
    return found


def make_call(context: Context, call: Prepared, reply: Reply | None = None) -> None:
    """Sends a call that has passed all checks, unless its reply is here already, and saves what comes of it."""
    settings, result = call.checked.settings, context.result
    write_beside(context, call)
    result.request = asked_for(call)
    made = Call(context, settings, call.names)
    failure = made.receive(reply) if reply else made.send(call.request)
    if result.route == "responses":
        failure = made.settle(failure)
    free = result.route == "responses" and settings.get("tool-choice") in ("auto", "none")  # to answer in words
    made.conclude(failure, 0 if free and result.text else call.names.expected)


def shown_call(context: Context, call: Prepared) -> Json:
    """Returns what a dry run shows of a call."""
    settings, request = call.checked.settings, call.request
    session = [call.names.beside(SESSION_ENDING)] if settings.get("background-mode") else []
    return {
        "dry_run": True, "route": call.checked.command, "method": request.method, "url": request.url,
        "headers": {name: str(value) for name, value in request.headers},
        "body": request.tree, "form": request.form, "outputs": call.written + session,
        "settings": shown_settings(settings), "estimate": estimate(call.checked),
        "warnings": context.console.warnings,
    }  # fmt: skip


def result_of(result: Result, failure: Outcome, warnings: list[str], seconds: float) -> Json:
    """Returns the one JSON object of a call."""
    error = None
    if failure:
        error = {
            "exit": failure.exit, "rule": None, "status": None, "type": None, "code": None, "message": failure.message,
            "hint": failure.hint, "may_be_billed": False, "problems": failure.problems,
            "recovery": None, **failure.details,
        }  # fmt: skip
    found = {
        "ok": failure is None, **result.shown(),
        "seconds": round(seconds, 1), "attempts": result.count, "saved_response": result.saved_response,
        "session_file": result.session_file, "warnings": warnings, "error": error,
    }  # fmt: skip
    if result.mask:
        found["mask"] = result.mask
    if result.summary:
        found = {**result.summary, **{name: found[name] for name in ("ok", "route", "seconds", "warnings", "error")}}
    shown: Json = json.loads(re.sub(TOKEN, "<base64 of a picture>", json.dumps(found)))
    return shown


def ended(context: Context, action: Callable[[], object]) -> Outcome:
    """Does something, and returns how it failed; None if it went well."""
    try:
        action()
    except Failure as failure:
        return failure
    except KeyboardInterrupt:
        return Failure(INTERRUPTED, "interrupted", may_be_billed=context.result.may_be_billed)
    except OSError as error:  # of the disk: those of the network are told apart where they happen
        words = f"{error.filename or 'a file'}: {error.strerror or error}"
        hint = "make room, or choose a folder that can be written; TMPDIR names the one for temporary files"
        return Failure(OUTPUT, words, hint, rule="disk", may_be_billed=context.result.may_be_billed)
    except Exception:
        return bug_failure(context.console)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# 13 Batch: many calls, each checked before the first is sent, and none of them paid twice
# ---------------------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A job of a file: the line it begins on, its id, its route, and its options and variables by name."""

    line: int
    id: str
    route: str
    values: Json


JobRows = Iterator[tuple[int, Iterable[tuple[str, Any]]]]  # the line of each job, and the names and values there
BROKEN = "\0"  # the name of what is wrong with a line that cannot be read
# No job has its own of these.
OF_THE_BATCH = ("json", "progress", "quiet", "preview", "open", "dry-run", "max-cost", "no-wait", "wait")
# What is not for a file to choose that a stranger may have written.
NOT_IN_JOBS = (
    "base-url", "api-key", "api-key-env", "header", "organization", "project", "allow-http", "env-file",
    "no-env-file", "curl", *OF_THE_BATCH,
)  # fmt: skip
PROMPT_WAYS = ("prompt", "prompt-file", "input-text")
DELIMITERS = ",;\t"  # of cells: Excel writes the semicolon where the comma is the decimal point


def job_cells(text: Iterator[str]) -> JobRows:
    """Reads the rows of a CSV file, whose first line names the columns; an empty cell is as if it were not there."""
    import csv

    csv.field_size_limit(MAX_IMAGE_URL)
    header = next(text)
    reader = csv.reader(itertools.chain([header], text), delimiter=max(DELIMITERS, key=header.count), strict=True)
    try:
        names, line = next(reader, []), reader.line_num + 1
        for cells in reader:
            if len(cells) > len(names):
                yield line, [(BROKEN, f"{len(cells)} cells, but the first line names {len(names)}")]
            elif any(cells):
                yield line, ((name, cell) for name, cell in zip(names, cells) if cell.strip())
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def job_objects(text: Iterator[str]) -> JobRows:
    """Reads a file with a JSON object on each line."""
    for line, row in enumerate(text, 1):
        try:
            if row.strip():
                yield line, parse_object(row.strip()).items()
        except ValueError as error:
            yield line, [(BROKEN, str(error))]


def job_prompts(text: Iterator[str]) -> JobRows:
    """Reads a file with a prompt on each line."""
    return ((line, [("prompt", row.strip())]) for line, row in enumerate(text, 1) if row.strip())


JOBS_HINT = "expected .jsonl (an object a line), .csv (names, then rows) or .txt (a prompt a line), in UTF-8"
JOB_READERS = {".jsonl": job_objects, ".csv": job_cells, ".tsv": job_cells, ".txt": job_prompts}


def open_text(path: str) -> TextFile:
    """Opens a text in UTF-8, or in the UTF-16 of Excel; it may be a pipe."""
    file = open(path, "rb")
    encoding = "utf-16" if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return io.TextIOWrapper(file, encoding, newline="")


def line_at(path: str, start: int) -> Any:
    """Returns the JSON of the line that begins at a byte of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        return parse_json(file.readline())


def name_of(text: str) -> str:
    """Returns the name that a column, a key or a place stands for: dashes and underscores are alike, and cases too."""
    return text.strip().lower().replace("_", "-")


class JobFile:
    """A file of jobs. It is read once, since it may change and may be a pipe; then each job is there by its place."""

    def __init__(self, context: Context, path: str, route: str) -> None:
        self.path, self.route = path, route
        self.name = "standard input" if path == "-" else path
        self.stem = "batch" if path == "-" or is_special(path) else path  # of what is written beside it
        self.starts: list[int] = []  # of each job in the copy
        context.temp_files.reads([path])
        try:
            with context.temp_files.create(spare_folder()) as copy:
                self.copy = copy.name
                if path == "-":
                    self._read(context.stdin, copy)
                    return
                with open_text(path) as text:
                    self._read(text, copy)
        except (OSError, ValueError) as error:
            words = f"{self.name}: {getattr(error, 'strerror', None) or error}"
            raise Failure(USAGE, words, JOBS_HINT, rule="jobs-file") from error

    def __getitem__(self, index: int) -> Job:
        return Job(*line_at(self.copy, self.starts[index]))

    def __iter__(self) -> Iterator[Job]:
        return map(self.__getitem__, range(len(self.starts)))

    def _read(self, text: TextFile, copy: BinaryFile) -> None:
        start = text.readline().lstrip("\ufeff")
        for line, row in self._reader(start)(itertools.chain([start], text)):
            given = [(name_of(name), value) for name, value in row if value is not None]
            values = dict(given)
            if len(values) < len(given):
                values[BROKEN] = "two values have the same name"
            name, route = str(values.pop("id", "")).strip(), str(values.pop("route", self.route)).strip()
            self.starts.append(copy.tell())
            write_all(copy, json.dumps(Job(line, name or str(line), route, values)).encode() + b"\n")

    def _reader(self, start: str) -> Callable[[Iterator[str]], JobRows]:
        """Returns what reads the file: by its suffix, or for another one by its first line."""
        has_names = "prompt" in map(name_of, re.split(f"[{DELIMITERS}]", start))
        guess = job_objects if start.lstrip().startswith("{") else job_cells if has_names else job_prompts
        return JOB_READERS.get(os.path.splitext(self.path)[1].lower(), guess)


PLACE = r"\{(\{[\w-]+\})\}|\{([\w-]+)\}"  # {name}; {{name}} stands for the text {name}


def filled(text: str, variables: Mapping[str, str], in_name: bool = False) -> str:
    """Returns a text with its places filled from the columns of a job; ValueError for a name that is not a column."""

    def value(match: re.Match[str]) -> str:
        name = name_of(match[2] or "")
        own = name in variables and name not in ("index", "partial")  # these two number the pictures of a job
        if match[1] or in_name and name in PLACES and not own:
            return match[1] or match[0]
        if name not in variables:
            raise ValueError(f"no column has a value for {name!r}; {did_you_mean(name, variables)}".rstrip("; "))
        return safe_name(variables[name]) if in_name else variables[name]

    if in_name and text == "-":
        raise ValueError("the pictures of a batch go to files")
    return re.sub(PLACE, value, text)


def as_typed(value: Any) -> str:
    """Returns a value of a JSON object as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value)


def option_texts(row: Option, value: Any) -> list[str]:
    """Returns what a job says for an option as texts: in a cell, several pictures stand apart by `|` or a new line."""
    texts = list(map(as_typed, value if row.kind.repeat and isinstance(value, list) else [value]))
    if row.input and row.kind.repeat:
        texts = [name for text in texts for name in re.split(r"\s*[|\n]\s*", text.strip())]
    return texts


class JobMaker:
    """Makes the settings of each job, out of what its line says and what was typed for all of them."""

    def __init__(self, context: Context, typed: Json, jobs: JobFile) -> None:
        self.context, self.jobs = context, jobs
        self.seen: set[str] = set()  # the columns that were judged by their names
        self.words = {route: words_of(route) for route in ALL}
        self.checks: tuple[Callable[[Settings], Problems], ...] = ()
        stem = os.path.splitext(jobs.stem)[0]
        folder = os.path.join(f"{stem}-pictures" if os.path.isfile(stem) else stem, "")
        self.shared = {**typed, "output": typed.get("output") or folder, **dict.fromkeys(OF_THE_BATCH)}

    def place(self, job: Job | Plan) -> str:
        """Returns the words for where a job stands."""
        return f"{self.jobs.name} line {job.line} ({shortened(' '.join(job.id.split()), 60)})"

    def _divided(self, job: Job) -> tuple[Json, dict[str, str], list[Problem]]:
        """Returns the options of a job by name, its variables, and a problem for each name that may not stand there."""
        words, variables, problems = self.words[job.route], {"id": job.id}, []
        own: Json = {}
        for name, value in job.values.items():
            row = words.get(f"--{name}")
            if row and row.name not in NOT_IN_JOBS and name != row.negative:
                own[row.name] = option_texts(row, value)
            elif any(f"--{name}" in known for known in self.words.values()):
                why = f"{name} cannot be set by a job of {job.route}"
                problems.append(Problem("jobs-option", why, "leave it out", fatal=True))
            else:
                variables[name] = as_typed(value)
        return own, variables, problems

    def _mistaken(self, job: Job, names: Iterable[str], texts: str) -> list[Problem]:
        """Warns, once, of each column that no text uses, and that is called almost like an option."""
        unused = [name for name in names if name not in self.seen and f"{{{name}}}" not in texts]
        self.seen.update(unused)
        guesses = {name: did_you_mean(f"--{name}", self.words[job.route]) for name in unused}
        return [
            Problem("jobs-column", f"{name} is not an option", meant, warning=True)
            for name, meant in guesses.items() if meant
        ]  # fmt: skip

    def settings(self, job: Job) -> Settings:
        """Returns the settings of a job, with a problem for each name or value of it that is wrong."""
        if BROKEN in job.values:
            raise Failure(USAGE, job.values[BROKEN], JOBS_HINT, rule="jobs-file")
        if job.route not in ALL:
            raise Failure(USAGE, f"{job.route!r} is not a route", f"expected {one_of(ALL)}", rule="jobs-option")
        own, variables, problems = self._divided(job)
        typed = dict(self.shared)
        problems += self._mistaken(job, variables, name_of(f"{typed} {own}"))
        for ways in (PROMPT_WAYS, ("size", "aspect-ratio")):
            if not own.keys().isdisjoint(ways):  # its own prompt or size goes in place of the one for all
                typed.update(dict.fromkeys(ways))
        [output] = own.get("output", [self.shared["output"]])
        if output.endswith(("/", os.sep)) or os.path.isdir(output):
            own["output"] = [os.path.join(output, safe_name(job.id).replace(".", "-"))]
        for name, row in options_of(job.route).items():
            given = own.get(name, typed.get(name))
            if given is None or name in NOT_IN_JOBS:
                continue
            given = [given] if isinstance(given, str) else given
            try:
                given = [filled(text, variables, row.kind.writes) for text in given]
            except ValueError as error:
                problems.append(Problem("jobs-place", f"--{name}: {error}", fatal=True))
            source = Source(TYPED, line=self.place(job)) if name in own else Source(TYPED)
            typed[name] = [(text, source) for text in given]
            if row.kind.reads:
                self.context.temp_files.reads(text.lstrip("@") for text in given)
        settings = resolve(job.route, typed, self.context.environ, self.context.dotenv)
        more = [found for check in self.checks for found in check(settings)]
        fill = functools.partial(filled, variables=variables)
        return settings._replace(problems=[*problems, *settings.problems, *more], fill=fill)


def lock(file: BinaryFile) -> bool:
    """Locks a file for this process, for as long as it is open; False if another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0x7FFFFFFF)  # beyond what is read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # else a disk without locks
    return True


class Ledger:
    """What has become of the jobs of a batch, a line when one is about to be sent and one when it has ended.

    Each line is on disk before the next step is taken. The lock is the system's, and ends with the process.
    """

    START = b'{"job": '  # of each line

    def __init__(self, path: str, console: Console) -> None:
        from _thread import allocate_lock

        self.path, self.console, self.lock = path, console, allocate_lock()
        self.file: BinaryFile | None = None
        self.torn = b""  # what keeps a line apart from one before it that was not written to its end
        self.end = 0  # where the next line will stand
        self.last: dict[str, int] = {}  # where the last line on each job stands
        self.open_usd: dict[str, float] = {}  # what those may cost that have begun and not ended
        self.spent = 0.0  # dollars, with the above, and at most where a cost is not known
        self.cost = 0.0  # dollars that are known
        self.known: dict[str, Any] = {}  # ids of the server: of a file by its hash, and of a batch by its input file

    def read(self) -> None:
        """Reads what earlier runs have written; a line that is not whole is passed over."""
        if not os.path.isfile(self.path):
            return
        with open(self.path, "rb") as file:
            for line in file:
                if not self.end and line[: len(self.START)] != self.START[: len(line)]:
                    words = f"{self.path} is not a ledger, and stays as it is"
                    raise Failure(OUTPUT, words, "name another --ledger", rule="ledger")
                self._note(as_object(parse_json(line)), line)
                self.torn = b"" if line.endswith(b"\n") else b"\n"

    def _note(self, row: Json, line: bytes) -> None:
        name, usd = row.get("job"), row.get("usd") or 0.0
        if name:
            self.last[name] = self.end
            self.spent += usd
            self.cost += as_object(as_object(row.get("result")).get("cost")).get("usd") or 0.0
            if "result" in row:
                self.spent -= self.open_usd.pop(name, 0.0)
            else:
                self.open_usd[name] = usd
        elif "of" in row:
            self.known[row["of"]] = row["id"]
        self.end += len(line)

    def row(self, name: str) -> Json:
        """Returns the last line on a job, or nothing if there is none."""
        return as_object(line_at(self.path, self.last[name])) if name in self.last else {}

    def open(self) -> None:
        """Opens the ledger for this run alone."""
        self.file = open(self.path, "a+b", buffering=0)
        if not lock(self.file):
            words = f"{self.path}: another run is using this ledger"
            raise Failure(OUTPUT, words, "wait for its end, or name another --ledger", rule="ledger-locked")

    def append(self, rows: Rows) -> None:
        """Appends lines, which are on disk when this returns."""
        lines = [self.console.clean(json.dumps(row)).encode() + b"\n" for row in rows]
        with self.lock:
            if self.file:
                try:
                    write_all(self.file, self.torn + b"".join(lines))
                    os.fsync(self.file.fileno())
                except OSError as error:
                    self.torn = b"\n"
                    hint = "make room, and run the same command again"
                    raise Failure(OUTPUT, f"{self.path}: {error.strerror}", hint, rule="disk") from error
                self.torn, self.end = b"", self.file.tell() - sum(map(len, lines))
                for row, line in zip(rows, lines):
                    self._note(row, line)

    def remember(self, thing: str, name: str | None) -> None:
        """Notes the server's id of something; none if it is there no more."""
        self.known[thing] = name
        self.append([{"job": None, "of": thing, "id": name}])

    def close(self) -> None:
        """Ends the run's hold on the ledger."""
        if self.file:
            self.file.close()


class Pace:
    """How many calls may run at once: fewer when the server asks to wait, and more again as it goes well."""

    def __init__(self, most: int, running: Mapping[int, float], context: Context) -> None:
        self.most, self.running, self.stop = most, running, context.stop
        self.clock, self.sleep = context.progress.clock, context.sleep
        self.limit, self.until = float(most), 0.0
        self.waiting = 0  # of those that run: what waits to be sent again

    def hold(self, seconds: float) -> None:
        """Lets no call begin for so long; once for all that are told to wait in the same pause."""
        with self.stop.lock:
            now = self.clock()
            if now >= self.until:
                self.limit = max(self.limit / 2, 1.0)
            self.until = max(self.until, now + seconds)

    def ease(self) -> None:
        """Lets one more call run at once after as many as may run have gone well."""
        self.limit = min(self.limit + 1 / self.limit, self.most)

    def wait(self, seconds: float) -> None:
        """Waits before a call goes on: as long as it must, as long as any was told to, and until fewer are at work."""
        with self.stop.lock:
            self.waiting += 1
        self.sleep(max(seconds, self.until - self.clock()))
        while not self.goes_on():
            self.sleep(0.05)

    def goes_on(self) -> bool:
        """Takes a call that waits among those at work, if it may go on."""
        with self.stop.lock:
            free = self.stop.requested or len(self.running) - self.waiting < int(self.limit)
            self.waiting -= free
        return free


def fingerprint_of(request: Request, extra: bytes) -> str:
    """Returns what tells a request from another: its route, its fields, and the bytes of its files."""
    import hashlib
    from urllib.parse import urlsplit

    body = request.body.parts if request.body else []
    files = [sha256_of(part.path) for part in body if part.path]
    facts = json.dumps([urlsplit(request.url).path.split("/")[-2:], request.tree, request.form, files], sort_keys=True)
    return hashlib.sha256(facts.encode() + extra).hexdigest()[:32]


class Plan(NamedTuple):
    """What is to be done about a job: "run" it, or nothing, since it is "done", or "unclear" as it may be billed.

    With the vendor's Batch API it may be "under_way", and is waited for.
    """

    line: int
    id: str
    state: str
    pictures: int
    usd: float  # at most, as far as it is known
    fingerprint: str

    def told(self, **facts: Any) -> Json:
        """Returns a line of the ledger."""
        return {"job": self.id, "line": self.line, "fingerprint": self.fingerprint, **facts}


TURNED_AWAY = next(row.codes for row in STATUSES if row.retry == "safe")
HOPELESS = 3  # failures that will meet every job, one after the other: they end a batch
MOST_SHOWN = 20  # failures in the result; the ledger has them all
MOST_PROBLEMS = 1000


def will_meet_all(error: Json) -> bool:
    """Tells whether a failure will meet every job, such as a wrong key, or is one of a job's own."""
    about_all = error["status"] in (401, 402, 403, 404) or error["code"] in MONEY
    unreached = error["exit"] == NETWORK and error["status"] is None and not error["may_be_billed"]
    return about_all or unreached


JOBS_ON_PAGE = 500
SHEET_PAUSE = 5.0  # seconds, at least, from one writing to the next
SHEET_MARK = "<!doctype html><!-- a contact sheet of gpt_image.py, which may replace it -->\n"
SHEET_STYLE = """<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --paper: #fff; --card: #f3f3f1; --ink: #1d1d1b; --pale: #62625c; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161615; --card: #232321; --ink: #ececea; --pale: #a3a39c; --bad: #ff9d94 }
}
* { box-sizing: border-box; overflow-wrap: anywhere }
body { margin: 0; padding: 1rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif;
  display: grid; grid-template-columns: repeat(auto-fill, minmax(clamp(9.5rem, 40vw, 13rem), 1fr)); gap: 1rem }
header, nav { grid-column: 1 / -1 }
nav { position: sticky; top: 0; max-height: 6rem; overflow: auto; background: var(--paper) }
h1 { margin: 0; font-size: 1.3rem }
a { color: inherit }
header span, nav a, footer span { display: inline-block; margin: .1rem .9rem .1rem 0 }
article { padding: .7rem; border-radius: .5rem; background: var(--card) }
article div { display: grid; grid: auto-flow minmax(0, 1fr) / repeat(auto-fit, minmax(34%, 1fr)); gap: .3rem;
  aspect-ratio: 1 }
article div > * { display: grid; place-items: center; min-width: 0; background: var(--paper) }
img { width: 100%; height: 100%; min-height: 0; object-fit: contain; font-size: .8rem }
b, footer { color: var(--pale) }
.failed, .billed { outline: 2px solid var(--bad) }
.failed b, .billed b, article p, nav .True { color: var(--bad) }
.made b, p:empty, span:empty, nav :only-child { display: none }
p.True::after { content: " It may have been billed." }
summary { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; cursor: pointer }
[open] summary { -webkit-line-clamp: none }
summary, article p, footer { margin: .5rem 0 0 }
footer { font-size: .85rem }
i { font-style: normal }
i + :not(:empty)::before { content: "\\d7" }
.usd:not(:empty)::after { content: " USD" }
</style>
"""
SHEET_HEAD = """<title>{batch.jobs.name}</title><header><h1>{batch.jobs.name}</h1>
<span>jobs: {sums[jobs][total]}</span><span>made: {sums[jobs][made]}</span>
<span>made before: {sums[jobs][made_before]}</span><span>failed: {sums[jobs][failed]}</span>
<span>may have been billed: {sums[jobs][unclear]}</span><span>left: {sums[jobs][not_started]}</span>
<span>{sums[cost][usd]} USD</span><span>as of {time}</span></header><nav>"""
SHEET_LINK = '<a class="{bad}" href="{name:url}">{number}</a>'
SHEET_JOB = '<article class="{state}"><div><b>{state}</b>'
SHEET_WORDS = """</div><details><summary dir="auto">{row[result][request][prompt]}</summary></details>
<p class="{row[result][error][may_be_billed]}">{row[result][error][message]}</p><p>{row[result][error][hint]}</p>
<footer><span>line {plan.line}</span> <span>id {plan.id}</span> <span>{row[result][model]}</span>
<span><i>{row[result][images][0][width]}</i><i>{row[result][images][0][height]}</i></span>
<span class="usd">{row[result][cost][usd]}</span></footer></article>
"""
SHEET_PICTURE = '<a href="{image[path]:url}"><img src="{image[path]:url}" alt="{image[path]}" loading="lazy"></a>'
SHEET_STATES = {
    "True": "made", "False": "failed", "run": "not made yet",
    "unclear": "begun, and how it ended is not known: it may have been billed",
}  # fmt: skip


class ContactSheet(string.Formatter):
    """Pages that show what the ledger says of each job of a batch, written anew as it grows.

    Their templates are filled with every text escaped, nothing for what is not there, and paths as `{name:url}`.
    """

    def __init__(self, batch: Batch, path: str | None) -> None:
        self.batch, self.path, self.due = batch, path, 0.0
        self.folder = os.path.dirname(path or "") or "."
        self.names: list[str] = []
        self.shown: dict[str, Any] = {}  # by page, the entries in the ledger that it shows

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        """Returns what a place in a template names, or nothing."""
        try:
            return super().get_field(field_name, args, kwargs)
        except (LookupError, TypeError):
            return None, ""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Returns a value as HTML."""
        if format_spec != "url":
            from html import escape

            return escape("" if value is None else str(value))
        from pathlib import Path
        from urllib.parse import quote

        try:
            return quote(os.fsencode(os.path.relpath(value, self.folder).replace(os.sep, "/")))
        except ValueError:  # on another drive of Windows
            return Path(value).absolute().as_uri()

    def check(self) -> None:
        """Names the pages, and refuses names that are taken, but for those of an earlier run."""
        if not self.path:
            return
        stem, suffix = os.path.splitext(self.path)
        starts = range(JOBS_ON_PAGE, len(self.batch.plans), JOBS_ON_PAGE)
        self.names = [self.path, *(f"{stem}-{page}{suffix}" for page, _ in enumerate(starts, 2))]
        for name in self.names:
            with open(name if os.path.isfile(name) else os.devnull, "rb") as file:
                check_names([name], file.readline(BLOCK) == SHEET_MARK.encode(), self.batch.context.temp_files)

    def job(self, plan: Plan) -> Iterator[str]:
        """Yields the pieces of what a page shows of a job."""
        row = self.batch.ledger.row(plan.id)
        result = as_object(row.get("result"))
        yield self.format(SHEET_JOB, state=SHEET_STATES.get(str(result.get("ok", plan.state))))
        for image in objects_in(result.get("images")) + objects_in(result.get("unclaimed")):
            yield self.format(SHEET_PICTURE, image=image)
        yield self.format(SHEET_WORDS, plan=plan, row=row)

    def texts(self, plans: list[Plan]) -> Iterator[str]:
        """Yields the pieces of a page: what has become of all jobs, the way to all pages, and its jobs."""
        batch = self.batch
        bad = {i // JOBS_ON_PAGE for i, plan in enumerate(batch.plans) if i in batch.failed or plan.state == "unclear"}
        yield SHEET_MARK + SHEET_STYLE
        yield self.format(SHEET_HEAD, batch=batch, sums=batch.summary(), time=batch.time())
        for number, name in enumerate(self.names):
            yield self.format(SHEET_LINK, name=name, number=number + 1, bad=number in bad)
        yield "</nav>"
        yield from itertools.chain.from_iterable(map(self.job, plans))

    def show(self, last: bool = False) -> None:
        """Writes the pages that changed, now and then; the first, and at the end all, since they tell of the whole."""
        batch, context = self.batch, self.batch.context
        if not last and context.progress.clock() < self.due:
            return
        try:
            for page, name in enumerate(self.names):
                plans = batch.plans[page * JOBS_ON_PAGE :][:JOBS_ON_PAGE]
                entries = [batch.ledger.last.get(plan.id) for plan in plans]
                if last or not page or entries != self.shown.get(name):
                    os.makedirs(self.folder, exist_ok=True)
                    with context.temp_files.create(self.folder) as file:
                        for text in self.texts(plans):
                            write_all(file, text.encode("utf-8", "replace"))
                    os.replace(file.name, name)
                    self.shown[name] = entries
        except OSError as error:  # a page is not worth a picture
            context.console.warn(f"--contact-sheet {self.path}: {error.strerror}")
        self.due = context.progress.clock() + SHEET_PAUSE


class Batch:
    """One run of a file of jobs: all are checked, then as many at once as the pace allows are sent."""

    share = 1.0  # of the usual price

    def __init__(self, context: Context, settings: Settings, typed: Json, path: str) -> None:
        self.context, self.settings = context, settings
        self.jobs = JobFile(context, path, settings.get("route"))
        self.maker = JobMaker(context, typed, self.jobs)
        self.ledger = Ledger(settings.get("ledger") or f"{self.jobs.stem}.ledger.jsonl", context.console)
        self.plans: list[Plan] = []
        self.kinds: dict[tuple[Any, ...], Any] = {}  # jobs, pictures and usd by route, model, size and quality
        self.taken: dict[Any, int] = {}  # the line of a job by its id, and by a hash of each name that it will write
        self.failed: dict[int, bool] = {}  # the places of jobs that failed, and whether they may have been billed
        self.running: dict[int, float] = {}  # the dollars that each may cost, as long as the ledger does not know
        self.turned_away: list[int] = []  # what cost nothing and may be tried again
        self.total, self.made, self.pictures = 0, 0, 0
        self.hopeless = 0  # how many failures that will meet every job were the last
        self.ending: Outcome = None  # why no further job is started
        self.first: Json | None = None  # the first request, as a dry run shows it
        self.pace = Pace(settings.get("parallel"), self.running, context)
        self.sheet = ContactSheet(self, settings.get("contact-sheet"))

    # Check: every job by the rules of a single call

    def job_context(self, route: str) -> Context:
        """Returns what one job may touch: its words go into its result only, and its files are its own."""
        console = self.context.console.muted()
        return self.context._replace(
            console=console, result=Result(route), temp_files=TempFiles(self.context.temp_files), stdin=io.StringIO(),
            sleep=self.pace.wait, hold=self.pace.hold,
            progress=Progress(console, "none", self.context.progress.clock),
        )  # fmt: skip

    def check(self) -> None:
        """Checks all jobs, and raises one Failure for all that is wrong; warnings are said once."""
        problems: Rows = []
        code, warnings = OK, self.context.console.warnings
        for job in self.jobs:
            context = self.job_context(job.route)
            with context.temp_files:
                try:
                    self.plans.append(self.plan(context, job))
                except Failure as failure:
                    code, place = code or failure.exit, self.maker.place(job)
                    problems += ({**row, "message": f"{place}: {row['message']}"} for row in failure.problems)
            for words in context.console.warnings:
                if len(warnings) < MOST_SHOWN:
                    self.context.console.warn(words)
            if len(problems) >= MOST_PROBLEMS:
                break
        if problems:
            raise Failure(code, **problems[0], problems=problems)
        if not self.plans:
            raise Failure(USAGE, f"{self.jobs.name} holds no job", "write a line for each", rule="jobs-file")
        self.sheet.check()

    def plan(self, context: Context, job: Job) -> Plan:
        """Checks one job, and tells what is to be done about it."""
        line = self.taken.setdefault(job.id, job.line)
        if line != job.line:
            raise Failure(USAGE, f"line {line} has this id too", "give each job its own", rule="jobs-id")
        call = prepare(context, self.maker.settings(job), None)
        cost, settings = estimate(call.checked) or {"usd": 0.0}, call.checked.settings
        fingerprint = fingerprint_of(call.request, call.mask)
        plan = Plan(job.line, job.id, "run", call.names.expected, cost["usd"] * self.share, fingerprint)
        known = self.ledger.row(job.id)
        if known.get("fingerprint") != fingerprint:
            known = {}
        plan = plan._replace(state=self.state(plan, call, known))
        for name in call.written:  # to many disks, upper and lower case are one
            line = self.taken.setdefault(hash(absolute(name).lower()), job.line)
            if line != job.line:
                hint = "put {id} or a column into --output"
                raise Failure(OUTPUT, f"{name} is also that of line {line}", hint, rule="output-twice")
        if plan.state == "run":
            new = [name for name in call.written if name not in known.get("outputs", ())]
            check_names(new, call.names.overwrite, context.temp_files)
            self.ledger.last.pop(job.id, None)  # from here on, what comes of this run counts
            self.first = self.first or shown_call(context, call)
            kind = (job.route, call.checked.model, settings.get("size"), settings.get("quality"))
            self.kinds.setdefault(kind, collections.Counter()).update(jobs=1, pictures=plan.pictures, usd=plan.usd)
        return plan

    def state(self, plan: Plan, call: Prepared, known: Json) -> str:
        """Returns what is to be done about a job by what the ledger says of it: "run" it, or why not."""
        result = known.get("result", {})
        if not known:
            return "run"
        if "file" in known and not result:
            words, hint = "the job is under way at the vendor's Batch API", "add --engine batch-api to collect it"
            raise Failure(USAGE, words, hint, rule="engine-batch")
        if result.get("ok"):
            there = (sha256_of(row["path"]) == row["sha256"] for row in result["images"])
            if result["images"] and result["images"][0]["path"] not in call.written:
                self.context.console.warn("pictures that the ledger knows stay where they are, under their names")
            return "done" if all(there) else "run"
        billed = not result or result["error"]["may_be_billed"]
        # Where all its pictures are there, they were saved before a crash, or taken out of a reply that was kept.
        if billed and not call.names.overwrite and all(map(is_whole, call.outputs)):
            found = {"ok": True, "images": [{"path": name, "sha256": sha256_of(name)} for name in call.outputs]}
            self.ledger.append([plan.told(usd=known["usd"], outputs=call.written, result=found)])
            return "done"
        return "unclear" if billed and not self.settings.get("retry-billable") else "run"

    # Run: as many at once as the pace allows, while the money lasts

    def one(self, index: int, job: Job) -> Json:
        """Makes the call of one job, between two lines of the ledger, and returns its result."""
        context, clock = self.job_context(job.route), self.context.progress.clock
        plan, started = self.plans[index], clock()
        outputs: list[str] = []

        def make() -> None:
            call = prepare(context, self.maker.settings(job), None)
            outputs.extend(call.written)
            session = call.names.beside(SESSION_ENDING)
            self.ledger.append([plan.told(begun=self.time(), usd=plan.usd, outputs=outputs, session=session)])
            self.running[index] = 0.0
            make_call(context, call)

        with context.temp_files:
            failure = ended(context, make)
        return self.noted(plan, context, failure, outputs, clock() - started)

    def noted(self, plan: Plan, context: Context, failure: Outcome, outputs: list[str], seconds: float = 0.0) -> Json:
        """Notes what has become of a job, and returns its result."""
        found = result_of(context.result, failure, context.console.warnings, seconds)
        usd = as_object(found["cost"]).get("usd", plan.usd if context.result.may_be_billed else 0.0)
        self.ledger.append([plan.told(ended=self.time(), usd=usd, outputs=outputs, result=found)])
        return found

    def time(self) -> str:
        """Returns the time of a line."""
        return utc(self.context.now())

    def run(self) -> None:
        """Runs all that is to be run, and again what was turned away, for as long as some of it goes well."""
        from concurrent.futures import ThreadPoolExecutor

        left = [index for index, plan in enumerate(self.plans) if plan.state == "run"]
        self.total, made, self.context.stop.jobs = len(left), -1, True
        with ThreadPoolExecutor(self.settings.get("parallel")) as pool:
            while left and self.made > made:
                made, self.turned_away = self.made, []
                self.run_through(left, pool)
                left = self.turned_away

    def run_through(self, left: list[int], pool: Any) -> None:
        """Runs the jobs at these places."""
        from concurrent.futures import FIRST_COMPLETED, wait

        calls: dict[Any, int] = {}
        while calls or left and not self.over():
            if left and self.may_start(left[0]):
                index = left.pop(0)
                self.running[index] = self.plans[index].usd
                calls[pool.submit(self.one, index, self.jobs[index])] = index
                continue
            for call in wait(calls, 0.1, FIRST_COMPLETED).done:
                index, failure = calls.pop(call), ended(self.context, call.result)
                if failure:  # the ledger does not say what has become of the job
                    del self.running[index]
                    self.ending = self.ending or failure
                else:
                    self.settle(index, call.result())
            self.tell()

    def over(self) -> bool:
        """Tells whether no further job is to be started."""
        return bool(self.context.stop.draining or self.ending)

    def may_start(self, index: int) -> bool:
        """Tells whether a job may start now: the pace allows it, and the money lasts for all that is under way."""
        most, under_way = self.settings.get("max-cost", math.inf), sum(self.running.values())
        if self.ledger.spent + under_way + self.plans[index].usd > most:
            if not self.running:
                words = f"{self.ledger.spent:.2f} USD are spent, and the next job could pass the limit of {most:.2f}"
                self.ending = Failure(LEFT, words, "run it again with a higher --max-cost", rule="max-cost")
            return False
        pace = self.pace
        return not self.over() and len(self.running) < int(pace.limit) and pace.clock() >= pace.until

    def settle(self, index: int, found: Json) -> None:
        """Notes what has become of a job."""
        del self.running[index]
        error = found["error"]
        if not error:
            self.failed.pop(index, None)
            self.made, self.pictures, self.hopeless = self.made + 1, self.pictures + len(found["images"]), 0
            self.pace.ease()
            return
        self.failed[index] = error["may_be_billed"]
        again = error["status"] in TURNED_AWAY and error["code"] not in MONEY or error["exit"] == NETWORK
        if again and not error["may_be_billed"]:
            self.turned_away.append(index)
        self.hopeless = self.hopeless + 1 if will_meet_all(error) else 0
        if self.hopeless >= HOPELESS:
            words = f"{HOPELESS} jobs in a row failed for a reason that will meet all: {error['message']}"
            self.ending = self.ending or Failure(LEFT, words, error["hint"], rule="jobs-alike")

    def tell(self, left: str = "") -> None:
        """Shows how far it is."""
        done, progress = self.made + len(self.failed), self.context.progress
        if self.over():
            left = "no further job begins; Ctrl-C ends these at once"
        elif done and not left:
            minutes = (progress.clock() - progress.started) * (self.total - done) / done / 60
            left = f"about {max(minutes, 1):.0f} min"
        progress.phase(
            "batch", done=done, total=self.total, running=len(self.running), failed=len(self.failed),
            usd=round(self.ledger.cost, 2), left=left or "…",
        )  # fmt: skip
        self.sheet.show()

    # Conclude: what has become of all of them

    def shown(self) -> Json:
        """Returns what a dry run shows: how many jobs and pictures of which kind, what they may cost, and the first."""
        states = [plan.state for plan in self.plans]
        columns, sums = ("route", "model", "size", "quality"), sum(self.kinds.values(), collections.Counter[str]())
        return {
            "dry_run": True, "route": "batch",
            "jobs": {state: states.count(state) for state in ("run", "under_way", "done", "unclear")},
            "pictures": sums["pictures"],
            "by": [{**dict(zip(columns, kind)), **counts} for kind, counts in self.kinds.items()],
            "estimate": {"usd": round(sums["usd"], 4), "prices_of": FACTS_OF} if sums["usd"] else None,
            "ledger": self.ledger.path, "contact_sheet": self.sheet.path, "first": self.first,
            "warnings": self.context.console.warnings,
        }  # fmt: skip

    def failure_row(self, plan: Plan) -> Json:
        """Says why a job failed or was left alone, and returns what is reported of it."""
        row = self.ledger.row(plan.id)
        session = row.get("session", "")
        recovery = program("resume", session) if os.path.isfile(session) else None
        error = error_in(as_object(row.get("result"))) or {
            "message": "it was started, and its outcome is not known",
            "hint": recovery or "look at your usage, or use --retry-billable",
            "may_be_billed": True, "recovery": recovery,
        }  # fmt: skip
        self.context.console.tell(f"{self.maker.place(plan)}: {error['message']}")
        kept = ("exit", "rule", "status", "code", "message", "hint", "may_be_billed", "recovery")
        return {"line": plan.line, "id": plan.id, **{name: error.get(name) for name in kept}}

    def summary(self) -> Json:
        """Returns what is reported of the batch as a whole."""
        states = [plan.state for plan in self.plans]
        jobs = {
            "total": len(states), "made": self.made, "made_before": states.count("done"), "failed": len(self.failed),
            "unclear": states.count("unclear"), "under_way": len(self.running),
        }  # fmt: skip
        jobs["not_started"] = 2 * jobs["total"] - sum(jobs.values())
        return {
            "jobs": jobs, "pictures": self.pictures,
            "cost": {"usd": round(self.ledger.cost, 4), "at_most": round(self.ledger.spent, 4), "prices_of": FACTS_OF},
            "ledger": self.ledger.path, "contact_sheet": self.sheet.path,
        }  # fmt: skip

    def conclude(self) -> None:
        """Reports the batch; raises a Failure if jobs are left."""
        self.sheet.show(last=True)
        found = self.context.result.summary = self.summary()
        left = [plan for index, plan in enumerate(self.plans) if index in self.failed or plan.state == "unclear"]
        found["failures"] = [*map(self.failure_row, left[:MOST_SHOWN])]
        jobs = found["jobs"]
        words = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in jobs.items() if count)
        if jobs["made"] + jobs["made_before"] == jobs["total"]:
            self.context.console.tell(f"jobs: {words}")
            return
        failure = self.ending or Failure(LEFT, "jobs are left", rule="jobs-left")
        if self.context.stop.draining:
            failure = Failure(INTERRUPTED, "interrupted")
        unclear = jobs["unclear"] + sum(self.failed.values())
        left_over = jobs["total"] - jobs["made"] - jobs["made_before"] - unclear
        again = "run the same command again, where the ledger is: it continues where it stopped"
        costly = f"{unclear} may have been billed: look at your usage; --retry-billable makes them again"
        failure.hint = failure.hint or "; ".join([again] * (left_over > 0) + [costly] * (unclear > 0))
        failure.message += f"; {words}"
        failure.details["may_be_billed"] = any(self.failed.values()) or jobs["unclear"] > 0
        raise failure


# The vendor's Batch API: jobs go there as lines of files, and their results come back in files, hours later.
V1 = "/v1"  # of the routes within a batch, whatever the base URL is
# Bytes of results: larger downloads are known to be cut. It keeps below 50,000 requests and 200 MB there by far.
MOST_IN_BATCH = 100_000_000
PIXEL_SIZE, USUAL_SIZE = 1.6, "1536x1024"  # of results: bytes in base64, and the size where the server chooses it
FILE_LIFE = 30 * 86_400  # seconds until the server removes what we could not
LOOK_EVERY = 60.0  # seconds from one look at the batches to the next
MOST_SILENT = 30  # looks, one after the other, in which the network may fail each time


def line_of(name: str, checked: Checked) -> Body:
    """Returns the line of a job in an input file."""
    url = V1 + ROUTE[checked.command].path
    return json_body({"custom_id": name, "method": "POST", "url": url, "body": json_tree(checked)})


class ApiBatch(Batch):
    """One run of a file of jobs by the vendor's Batch API.

    The ledger knows each job and its input file before the batch of that file is made, and the batch as soon as its id
    is known: so another run, also on another machine, goes on from there, and no batch is made twice.
    """

    share = 0.5

    def __init__(self, context: Context, settings: Settings, typed: Json, path: str) -> None:
        super().__init__(context, settings, typed, path)
        self.maker.checks = (check_line,)
        self.pace = Pace(sys.maxsize, self.running, context)
        self.net = self.job_context("batch")._replace(sleep=context.sleep, hold=context.hold)
        self.weight = 0.0  # bytes of all lines and, probably, of their results
        self.left: dict[Any, list[int]] = {}  # by route, model and batch: the places of the jobs that are to be sent
        self.sent: dict[str, dict[str, int]] = {}  # by input file: the place of each job by its name
        self.fresh: set[str] = set()  # the input files whose batch has certainly not been made

    # Check: as for single calls; but a job that is under way is waited for

    def state(self, plan: Plan, call: Prepared, known: Json) -> str:
        """Returns what is to be done about a job: one that is under way will come to its end in this run."""
        index = len(self.plans)
        if "file" in known and "result" not in known:
            self.sent.setdefault(str(known["file"]), {})[plan.id] = index
            self.running[index] = plan.usd
            return "under_way"
        state = super().state(plan, call, known)
        if state == "run" and not self.settings.get("cancel"):
            line, size = line_of(plan.id, call.checked), call.checked.settings.get("size", "auto")
            pixels = math.prod(map(int, re.findall(r"\d+", size.replace("auto", USUAL_SIZE))))
            self.weight += sum(len(part.data) for part in line.parts) + plan.pictures * PIXEL_SIZE * pixels
            kind = (call.checked.command, call.checked.top_model, self.weight // MOST_IN_BATCH)
            self.left.setdefault(kind, []).append(index)
            self.first = self.first or line.shown()
        return state

    def shown(self) -> Json:
        """Returns what a dry run shows, and how many batches there would be."""
        return {**super().shown(), "batches": len(self.left)}

    # Send: jobs -> lines -> an input file -> a batch

    def ask(self, method: str, path: str, body: Body | None = None, query: str = "") -> Json:
        """Asks the server, and returns its short answer; a batch is asked for once."""
        settings = self.settings.changed("max-retries", 0, DEFAULT) if path == "/batches" else self.settings
        request = Request(method, api_url(settings, path, query), api_headers(settings, body), body)
        return as_object(parse_json(read_body(exchange(self.net, settings, request))))

    def upload(self, purpose: str, row: Json, path: str) -> str:
        """Uploads a file, with the row of it in a form, and returns its id."""
        texts = {"purpose": purpose, "expires_after": {"anchor": "created_at", "seconds": FILE_LIFE}}
        body, _ = form_body(texts, [(row, Part(path=path, size=os.path.getsize(path)))])
        return str(self.ask("POST", "/files", body).get("id"))

    def uploaded(self, given: InputPicture) -> InputPicture:
        """Returns an input picture as a line names it; a file is uploaded once, whatever its names are."""
        if given.kind != "file":
            return given
        key = f"sha256:{sha256_of(given.text)}"
        if not self.ledger.known.get(key):
            self.ledger.remember(key, self.upload("vision", file_row("file", given), given.text))
        return given._replace(kind="file_id", text=self.ledger.known[key])

    def send(self) -> None:
        """Hands over all that waits for it, for as long as the money lasts."""
        for kind in list(self.left):
            waiting, group = self.left.pop(kind), list[int]()
            while waiting and self.may_start(waiting[0]):
                group.append(waiting.pop(0))
                self.running[group[-1]] = self.plans[group[-1]].usd
            if group:
                self.post(group)
            if waiting:
                self.left[kind] = waiting

    def post(self, group: list[int]) -> None:
        """Writes and uploads an input file, and notes its jobs as under way."""
        rows: Rows = []
        with self.context.temp_files.create(spare_folder()) as out:
            for index in group:
                job = self.jobs[index]
                context = self.job_context(job.route)
                with context.temp_files:
                    call = prepare(context, self.maker.settings(job), None)
                    write_beside(context, call)
                    call.checked.inputs = list(map(self.uploaded, call.checked.inputs))
                for block in (*line_of(job.id, call.checked), b"\n"):
                    write_all(out, block)
                rows.append(self.plans[index].told(begun=self.time(), outputs=call.written))
        row = {"name": "file", "filename": "jobs.jsonl", "content_type": "application/jsonl", "path": out.name}
        file = self.upload("batch", row, out.name)
        self.context.temp_files.remove(out.name)
        self.ledger.append([{**row, "file": file} for row in rows])
        self.sent[file] = {row["job"]: index for row, index in zip(rows, group)}
        self.fresh.add(file)

    def create(self, file: str) -> None:
        """Makes the batch of an input file, once: if an earlier try may have made it, it is looked for first."""
        batch = None if file in self.fresh else self.found(file)
        self.fresh.discard(file)
        if batch:
            self.ledger.remember(file, batch)
        elif self.over() or self.settings.get("cancel"):
            del self.sent[file]
        else:
            endpoint = V1 + ROUTE[self.jobs[min(self.sent[file].values())].route].path
            body = json_body({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"})
            try:
                self.ledger.remember(file, self.ask("POST", "/batches", body).get("id"))
            except Failure as failure:
                self.refused(file, {None: failure})

    def found(self, file: str) -> Any:
        """Returns the id of the batch of an input file, from the list of all; None if there is none."""
        query = "limit=100"
        while True:
            page = self.ask("GET", "/batches", query=query)
            if not isinstance(page.get("data"), list):
                raise Failure(UNREADABLE, "the server does not list its batches", "one may be under way, or not")
            for row in objects_in(page["data"]):
                if row.get("input_file_id") == file and row.get("status") != "failed":
                    return row.get("id")
            if not page.get("has_more"):
                return None
            query = f"limit=100&after={url_part(str(page.get('last_id')))}"

    def refused(self, file: str, why: Mapping[Any, Failure]) -> None:
        """Acts on why a batch does not run, by line: it waits for its turn or for the network, or its jobs fail.

        Where only some lines are at fault, the other jobs are sent again without them.
        """
        failure = next(iter(why.values()))
        if failure.exit == NETWORK:
            raise failure
        if failure.details["code"] != "token_limit_exceeded" and failure.details["status"] not in TURNED_AWAY:
            for number, index in enumerate(self.sent.pop(file).values(), 1):
                if number in why or None in why:
                    self.fail(index, why.get(number, failure))
                else:
                    del self.running[index]
                    self.left.setdefault(file, []).append(index)
            self.remove(file)

    # Wait: until all batches have ended

    def run(self) -> None:
        """Runs all that is to be run; what keeps it from that is told at the end, with all that was made."""
        self.total = sum(map(len, self.left.values())) + len(self.running)
        self.ending = ended(self.context, self.wait) or self.ending
        places = (index for jobs in self.sent.values() for index in jobs.values())
        self.running = {index: 0.0 for index in places if index in self.running}

    def wait(self) -> None:
        """Sends what the money lasts for, and looks at all batches until each has ended; with --no-wait, once."""
        silent = 0
        while self.sent or self.left and not self.over():
            self.send()
            silent += 1
            for file in list(self.sent):
                try:
                    self.look(file)
                    silent = 0
                except Failure as failure:
                    if failure.exit != NETWORK or silent > MOST_SILENT:
                        raise
            if self.sent:
                left = self.settings.get("wait", float("inf")) - (self.pace.clock() - self.context.progress.started)
                if left <= 0 or self.settings.get("no-wait"):
                    raise Failure(RUNNING, f"{plural(len(self.running), 'job')} under way at the server")
                self.context.sleep(min(LOOK_EVERY, left))
        for key, name in list(self.ledger.known.items()):
            if name and key.startswith("sha256:"):
                self.remove(name)
                self.ledger.remember(key, None)

    def look(self, file: str) -> None:
        """Makes a batch that is not made, or collects one that has ended."""
        batch = self.ledger.known.get(file)
        if not batch:
            self.create(file)
            return
        path = f"/batches/{url_part(str(batch))}"
        found = self.ask("GET", path)
        status, counts = found.get("status"), as_object(found.get("request_counts"))
        answered = number_of(counts.get("completed")) + number_of(counts.get("failed"))
        self.tell(f"{batch} is {status}, {answered} of {number_of(counts.get('total'))} answered")
        if status == "failed":
            self.ledger.remember(file, None)
            errors = objects_in(as_object(found.get("errors")).get("data")) or [{"message": "the batch failed"}]
            self.refused(file, {row.get("line"): refusal_of(row) for row in errors})
        elif status in ("completed", "expired", "cancelled"):
            self.collect(file, found, answered)
        elif self.settings.get("cancel") and status != "cancelling":
            self.ask("POST", f"{path}/cancel")

    # Collect: files of lines -> pictures and results

    def collect(self, file: str, found: Json, answered: int) -> None:
        """Takes the results of a batch that has ended, and notes of each job that they lack why."""
        jobs, before, seen = self.sent[file], -1, set[str]()
        names = [str(found[key]) for key in ("output_file_id", "error_file_id") if found.get(key)]
        while before < len(seen) < max(answered, 1):  # a download without a length may be cut unseen
            before = len(seen)
            for document in itertools.chain.from_iterable(map(self.lines, names)):
                name = str(document.value.get("custom_id"))
                seen.add(name)
                self.take(jobs.get(name, -1), document.value)
        billed = found["status"] == "completed" or len(seen) < answered
        words = f"the batch is {found['status']}, and its results lack this job"
        for index in jobs.values() & self.running.keys():
            self.fail(index, Failure(UNREADABLE, words, rule="job-lacking", may_be_billed=billed))
        del self.sent[file]
        billed = any(self.failed.get(index) for index in jobs.values())
        if billed or seen - jobs.keys():
            self.context.console.warn(f"not all results found their jobs: {', '.join(names)} stay at the server")
            names = []
        self.remove(file, *names)

    def lines(self, name: str) -> Documents:
        """Yields each line of a file of results as soon as it is whole; what is damaged ends with its line."""
        with TempFiles() as temp_files:
            new_picture = functools.partial(Lifted, temp_files, os.path.dirname(self.ledger.path) or ".")
            self.lifter = Lifter(new_picture)
            reader = JsonReader(self.lifter, stream=False)
            for block in itertools.chain(self.content(name), [b"\n"]):
                for piece in block.splitlines(keepends=True):
                    yield from reader.feed(piece)
                    if piece.endswith(b"\n"):
                        yield from (document for document in reader.finish() if not document.cut)
                        while self.lifter.lifted:  # what nobody took
                            self.lifter.lifted.popitem()[1].drop()

    def content(self, name: str) -> Blocks:
        """Yields a file of the server; one that is cut goes on where it was if the server can do that, or fails."""
        url, had, rest = api_url(self.settings, f"/files/{url_part(name)}/content"), 0, list[Header]()
        while True:
            try:
                reply = exchange(self.net, self.settings, Request("GET", url, api_headers(self.settings, None) + rest))
            except Failure as failure:
                if failure.details.get("status") != 404:
                    raise
                self.context.console.warn(f"{name}: {failure.message}")
                return
            before, reply.stop, head = had, self.net.stop, reply.headers
            goes_on = not rest or reply.status == 206
            for block in unpacked(reply) if goes_on else ():
                had += len(block)
                yield block
            reply.close()
            if reply.stop.requested:
                raise KeyboardInterrupt
            if goes_on and not reply.fault:
                return
            etag = head.get("etag", "") if head.get("accept-ranges") == "bytes" else ""
            if had == before or etag[:1] != '"' or "content-encoding" in head:
                raise Failure(NETWORK, f"the download of {name} is cut after {amount(had)}")
            rest = [("Range", f"bytes={had}-"), ("If-Range", etag)]

    def take(self, index: int, line: Json) -> None:
        """Takes a line of results: its pictures go to their places, and what has become of its job into the ledger."""
        response, error = as_object(line.get("response")), error_in(line)
        reply = Reply(number_of(response.get("status_code")), {}, [json.dumps(response.get("body")).encode()])
        if index not in self.running:
            return
        if reply.status >= 400:
            self.fail(index, judged(reply, Request("POST", "", []), free=False)[0])
        elif error:
            self.fail(index, refusal_of(error))
        else:
            self.land(index, reply)

    def land(self, index: int, reply: Reply) -> None:
        """Saves the pictures of a job; what is not a fault of the reply, such as a full disk, leaves it under way."""
        job, reply.lifter = self.jobs[index], self.lifter
        context = self.job_context(job.route)._replace(stop=Stop())  # what is here is saved, whatever the user wants
        context.result.share, context.result.billed = self.share, True
        settings = self.maker.settings(job)
        with context.temp_files:
            failure = ended(context, lambda: make_call(context, prepare(context, settings, None), reply))
        if failure and failure.exit not in (REFUSED, NETWORK, UNREADABLE):
            raise failure
        outputs = self.ledger.row(job.id).get("outputs", [])
        self.settle(index, self.noted(self.plans[index], context, failure, outputs))

    def fail(self, index: int, failure: Failure) -> None:
        """Notes that a job has failed."""
        failure.message = self.context.console.said(failure.message, MOST_SAID)
        context = self.job_context(self.jobs[index].route)
        self.settle(index, self.noted(self.plans[index], context, failure, []))

    def remove(self, *files: str) -> None:
        """Removes files from the server, unless they are to be kept."""
        for name in files if not self.settings.get("keep-files") else ():
            try:
                self.ask("DELETE", f"/files/{url_part(name)}")
            except Failure as failure:
                self.context.console.warn(f"{name} is not removed from the server: {failure.message}")


# ---------------------------------------------------------------------------------------------------------------------
# 14 Commands: one function for each subcommand
# ---------------------------------------------------------------------------------------------------------------------


def in_words(value: Any) -> str:
    """Returns a value of JSON as words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return "none" if value is None else as_typed(value).replace("\n", " ")


def present(context: Context, found: Json, rows: Iterable[tuple[str, Any]] = ()) -> None:
    """Prints what a command has found: one JSON object, or named rows for a person at a terminal."""
    console, context.result.reported = context.console, True
    if console.as_json:
        console.print_json(found)
        return
    lines = [f"{name:<20} {shortened(in_words(value), 300)}" for name, value in rows or found.items()]
    console.print(fitted("\n".join(lines).translate(CONTROL), columns(console.stdout)))


def call_rows(shown: Json) -> Iterator[tuple[str, Any]]:
    """Yields what a dry run of a call shows to a person."""
    yield shown["method"], shown["url"]
    yield from (shown["body"] or {}).items()
    yield from ((row["name"], row.get("value") or row["path"]) for row in shown["form"] or ())
    yield from ((name, shown[name]) for name in ("outputs", "estimate"))
    yield "sent", "nothing; --json shows all of the request"


def show_curl(context: Context, call: Prepared) -> None:
    """Prints a call as a curl command."""
    for given in call.checked.inputs:
        if given.text in context.temp_files.files:
            words = f"--curl: {given.shown} is converted for a call, and the converted file is deleted afterwards"
            raise Failure(USAGE, words, "convert it to png, and name that file", rule="curl-converted")
    write_beside(context, call)
    context.result.reported = True
    context.console.print(curl_command(call.checked.settings, call.request))


STDIN_WAIT = 10  # seconds; whoever starts this program may leave a pipe open that nothing ever comes from


def is_piped(stdin: TextFile, console: Console) -> bool:
    """Tells whether something is piped in: standard input is a file, or a pipe that something comes from in time."""
    import select

    try:
        mode = os.fstat(stdin.fileno()).st_mode
        if stat.S_ISFIFO(mode):
            console.tell("reading the prompt from standard input")
            return bool(select.select([stdin], [], [], STDIN_WAIT)[0])
        return stat.S_ISREG(mode)
    except (OSError, ValueError):  # it is closed, or a pipe of Windows, which cannot be asked
        return False


def pour_out(context: Context) -> None:
    """Writes the picture of a call to standard output; it stays a file where that fails, or where several came."""
    images = context.result.images
    try:
        if len(images) > 1:
            raise ValueError("it takes one picture")
        for row in images:
            pour(row["path"], os.dup(context.console.pipe.fileno()))
            if row.get("new", True):
                os.unlink(row["path"])
            row["path"] = "-"
    except (OSError, ValueError) as error:
        words, billed = f"standard output: {reason_of(error)}", context.result.billed
        raise Failure(OUTPUT, words, "the pictures are on disk", rule="output-pipe", may_be_billed=billed) from error


def open_pictures(context: Context) -> None:
    """Shows the saved pictures in the system's viewer, or warns that there is none."""
    import subprocess

    environ, quiet = context.console.without_secrets(context.environ), subprocess.DEVNULL
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    try:
        for path in (os.path.abspath(row["path"]) for row in context.result.images):
            if sys.platform == "win32":
                os.startfile(path)
            elif viewer == "open" or environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"):
                command = [viewer, path]
                subprocess.Popen(command, env=environ, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
            else:
                context.console.warn("--open: there is no screen")
    except OSError as error:
        context.console.warn(f"--open: {error.strerror}")


def call(context: Context, settings: Settings, positional: str | None) -> None:
    """Makes a call of one of the three routes: check everything, plan the names, send once, save as it comes."""
    unset = positional is None and {*settings.rows, *overridden_options(settings)}.isdisjoint(PROMPT_WAYS)
    if unset and is_piped(context.stdin, context.console):
        positional = read_prompt("-", context.stdin, settings.fill) or None
    prepared = prepare(context, settings, positional)
    check_names(prepared.written, prepared.names.overwrite, context.temp_files)
    if settings.get("dry-run"):
        shown = shown_call(context, prepared)
        present(context, shown, call_rows(shown))
    elif settings.get("curl"):
        show_curl(context, prepared)
    else:
        check_key(settings)
        make_call(context, prepared)


def read_session(target: str, settings: Settings) -> Json:
    """Reads what to resume: a session file, checked for its origin, or the id of a response."""
    here = origin_of(settings.get("base-url"))
    session: Json = {"response_id": target, "origin": here}
    if os.path.isfile(target):
        try:
            session = parse_object("@" + target)
        except ValueError as error:
            raise Failure(USAGE, f"{target}: {error}", "name a .session.json file", rule="session") from error
        named = os.path.basename(str(session.get("output")).replace("\\", "/"))
        plain = output_suffix(named) in FORMAT_OF_SUFFIX and named.isprintable()
        session["output"] = os.path.join(os.path.dirname(target), named if plain else "")
    elif target.endswith(".json") or "://" in target or os.path.isdir(os.path.dirname(target)):
        session.clear()  # it is meant as the path of a file
    if not re.fullmatch(r"[^\x00-\x20\x7f]{4,2000}", str(session.get("response_id") or "")):
        raise Failure(USAGE, f"{target}: no session file and no response id", "check the path", rule="session")
    if session.get("origin") != here:
        words = f"{target} belongs to {session.get('origin')}, but the key here is for {here}"
        raise Failure(SETTINGS, words, "set --base-url and the key that belong to it", rule="session-origin")
    return session


def resume(context: Context, settings: Settings, target: str | None) -> None:
    """Collects a background response, from this machine or another, or cancels it."""
    enforce(settings_problems(settings), False, context.console)
    check_pair(settings, context)
    target, result = target or "", context.result
    session = read_session(target, settings)
    context.temp_files.reads([target])
    if session.get("output") and not settings.get("output"):
        settings = settings.changed("output", session["output"], "session file")
    settings = follow_suffix(settings).changed("background-mode", True, "resume")
    settings = settings.changed("completion-window", str(session.get("window")), "session file")
    check_key(settings)
    result.route, result.model = "responses", str(session.get("model") or "") or None
    names = output_names(settings, 1, name_places(context, ""))
    result.billed = True  # a response that exists was accepted
    result.request = as_object(session.get("request")) or None
    result.facts["id"], result.session_file = session["response_id"], target if os.path.isfile(target) else None
    made = Call(context, settings, names)
    if settings.get("cancel"):  # may be repeated
        status = as_object(parse_json(read_body(made.ask(cancel=True)))).get("status")
        context.console.tell(f"{result.facts['id']}: {status}")
        made.forget_session()
        return
    written = [*names.planned(0), *saved_reply_name(settings)]
    check_names(written, names.overwrite, context.temp_files)
    make_folders(written, context.temp_files)
    failure = made.settle(made.read_again())
    made.conclude(failure, 0 if result.text else 1)


def name_extracted(context: Context, names: OutputNames) -> None:
    """Gives the pictures of a reply, and their previews, their names, now that it is known how many there are."""
    result, count = context.result, len(context.result.images)
    names = names._replace(several=count > 1)
    pairs = [(row, names.final(row["index"])) for row in result.images]
    pairs += [(row, names.partial(row["index"], row["partial"])) for row in result.partials]
    pairs += [(row, names.beside(f"-unclaimed-{row['index']}{names.suffix}")) for row in result.unclaimed]
    for row, name in pairs:
        if not row["new"]:
            continue
        true_name = os.path.splitext(name)[0] + os.path.splitext(row["path"])[1]
        if count == 1 and true_name == names.final(1) and exists(true_name) and not names.overwrite:
            os.unlink(row["path"])
            result.images.clear()
            check_names([true_name], False, context.temp_files)
        row["path"] = context.temp_files.place(row["path"], true_name, names.overwrite and true_name == name)


def extract(context: Context, settings: Settings, target: str | None) -> None:
    """Takes the pictures out of a kept or saved reply, offline; one that is cut short gives what it holds whole."""
    enforce(settings.problems, False, context.console)
    settings = follow_suffix(settings)
    try:
        file = open(target or "", "rb")
    except OSError as error:
        words = f"{target}: {error.strerror}" if target else "there is nothing to extract from"
        raise Failure(USAGE, words, "name a saved reply", rule="extract-file") from error
    with file:
        names = output_names(settings, 1, name_places(context, ""))
        # A picture by this name may be one of the reply, which is then there already.
        there = os.path.isfile(names.final(1)) and identify(names.final(1))
        context.temp_files.reads([file.name])
        check_names(names.planned(0), names.overwrite or bool(there), context.temp_files)
        make_folders([names.final(1)], context.temp_files)
        # How many pictures there are is known at the end only.
        made = Call(context, settings, names._replace(stem=f"{names.stem}-extracted", several=True, overwrite=False))
        # Raw deflate shows by no first byte: the header that announced it is not kept.
        failure = made.receive(Reply(200, {"content-encoding": "deflate"}, blocks_of(file)))
    result = context.result
    severe = (OUTPUT, BUG, INTERRUPTED)
    failure = made.judged_reply(failure if failure and failure.exit in severe else None, max(len(result.images), 1))
    name_extracted(context, names)
    made.names = names
    made.write_sidecars()
    if made.cut:
        context.console.warn(f"{target} is cut short; the pictures that are whole were taken out")
    lacking = not result.images or not all(row["whole"] for row in result.images)
    if failure and (lacking or failure.exit in severe):
        raise failure
    for trouble in result.troubles:
        context.console.warn(trouble.message)


class Shell(NamedTuple):
    """A row of SHELLS: a completion script with places for its cases, and the form of a case."""

    script: str
    case: str
    either: str = "|"  # stands between the words of a case


BASH = Shell(
    """_gpt_image() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} fitting=
  COMPREPLY=()
  [ "$before" = = ] && before=${COMP_WORDS[COMP_CWORD-2]}
  [ "$word" = = ] && word=
  if [ "$COMP_CWORD" -eq 1 ]; then
    fitting='%(commands)s help'
  else
    case $before in
%(values)s
    %(files)s) return ;; # to the file names of "complete -o default"
    %(texts)s) ;;
    *)
      case ${COMP_WORDS[1]} in
    %(readers)s) [[ $word == -* ]] || return ;;
      esac
      case ${COMP_WORDS[1]} in
%(options)s
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$fitting" -- "$word"))
  [ ${#COMPREPLY[@]} -gt 0 ] || compopt +o default 2>/dev/null
}
complete -o default -F _gpt_image gpt-image gpt_image.py %(name)s""",
    "    %s) fitting='%s' ;;",
)
ZSH = Shell(
    """_gpt_image() {
  local before=${words[CURRENT-1]} fitting=
  [[ $PREFIX == --*=* ]] && before=${PREFIX%%%%=*} && compset -P '*='
  if (( CURRENT == 2 )); then
    fitting='%(commands)s help'
  else
    case $before in
%(values)s
    %(files)s) _files; return ;;
    %(texts)s) return ;;
    *)
      case ${words[2]} in
    %(readers)s) [[ $PREFIX == -* ]] || { _files; return } ;;
      esac
      case ${words[2]} in
%(options)s
      esac ;;
    esac
  fi
  compadd -- ${=fitting}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _gpt_image gpt-image gpt_image.py %(name)s""",
    BASH.case,
)
FISH = Shell(
    """function _gpt_image
  set -l typed (commandline -opc)
  set -l word (commandline -ct)
  set -l fitting %(commands)s help
  if test (count $typed) -gt 1
    set fitting
    switch "$typed[-1]"
%(values)s
    case %(files)s
      __fish_complete_path "$word"
    case %(texts)s
    case '*'
      if contains -- "$typed[2]" %(readers)s; and not string match -q -- '-*' "$word"
        __fish_complete_path "$word"
        return
      end
      switch "$typed[2]"
%(options)s
      end
    end
  end
  string match -- "$word*" $fitting
end
for name in gpt-image gpt_image.py %(name)s
  complete -c $name -f -a '(_gpt_image)'
end""",
    "    case %s; set fitting %s",
    " ",
)
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def batch(context: Context, settings: Settings, target: str | None) -> None:
    """Makes the calls of a file of jobs: check all, then send what the ledger does not know as done."""
    if not target:
        raise Failure(USAGE, "there is no file of jobs", "name a .jsonl, .csv or .txt file, or -", rule="jobs-file")
    if settings.typed.get("curl"):
        raise Failure(USAGE, "--curl is for a single call", "--dry-run shows the first request", rule="usage")
    if settings.get("engine") == "calls" and not settings.rows.keys().isdisjoint(("wait", "no-wait")):
        raise Failure(USAGE, "--wait and --no-wait need --engine batch-api", "leave them out", rule="usage")
    enforce(settings_problems(settings), False, context.console)
    engine = ApiBatch if settings.get("engine") == "batch-api" or settings.get("cancel") else Batch
    made = engine(context, settings, settings.typed, target)
    dry = bool(settings.get("dry-run"))
    try:
        if not dry:
            check_pair(settings, context)
            check_key(settings)
            made.ledger.open()
        context.temp_files.reads([made.ledger.path])
        made.ledger.read()
        made.check()
        if dry:
            present(context, made.shown())
            return
        made.run()
    finally:
        made.ledger.close()
    made.conclude()


def completion_script(shell: str) -> str:
    """Returns a completion script: subcommands, the options of each, and what can stand behind an option."""
    script, case, either = SHELLS[shell]
    takes = [row for row in OPTIONS if row.kind.metavar]
    values = [case % (either.join(spellings(row)), " ".join(row.kind.choices)) for row in takes if row.kind.choices]
    files = [row for row in takes if row.kind.writes or re.search("PATH|FILE", row.kind.metavar)]
    return script % {
        "name": os.path.basename(called()), "commands": " ".join(EVERY), "values": "\n".join(values),
        "options": "\n".join(case % (name, " ".join(words_of(name))) for name in EVERY),
        "files": either.join(itertools.chain(*map(spellings, files))),
        "texts": either.join(itertools.chain(*map(spellings, takes))),
        "readers": either.join(name for name, row in COMMANDS.items() if row.argument not in ("", "PROMPT")),
    }  # fmt: skip


def example_dotenv() -> str:
    """Returns a .env with every variable and its meaning, commented out but for the key."""
    lines = [
        "# Settings of gpt_image.py. The command line and the environment stand above this file.",
        "# Keep the key to yourself: chmod 600 .env, and never commit it.",
    ]
    for row in sorted((row for row in OPTIONS if row.env), key=lambda row: not row.secret):
        choices = f"; one of {', '.join(row.kind.choices)}" if row.kind.choices else ""
        default = f"; default {row.default}" if row.default else ""
        lines += ["", f"# {row.help}{choices}{default}", *(f"# {name}=" for name in row.env)]
    return "\n".join(lines).replace("# OPENAI_API_KEY=", "OPENAI_API_KEY=") + "\n"


def init_env(console: Console, temp_files: TempFiles) -> None:
    """Writes a commented .env into the current folder, for its owner only, whole and never over an existing one."""
    with temp_files.create(os.curdir) as file:
        os.chmod(file.name, 0o600)  # there is no key in it yet
        write_all(file, example_dotenv().encode())
    if not rename_free(file.name, ".env"):
        raise Failure(OUTPUT, ".env exists already", "edit it, or remove it first", rule="env-exists")
    console.tell("wrote .env; put the key after OPENAI_API_KEY= and keep it out of version control")
    console.print(".env")


def check_endpoint(context: Context, settings: Settings) -> None:
    """Asks the endpoint for its models, which is free of charge, and says whether the key is accepted."""
    check_key(settings)
    url = api_url(settings, "/models")
    reply = exchange(context, settings, Request("GET", url, api_headers(settings, None)))
    listed = as_object(parse_json(read_body(reply))).get("data")
    if not isinstance(listed, list):
        hint = "is the base URL right? It usually ends in /v1"
        raise Failure(UNREADABLE, f"{url} answers, but not as this API does", hint)
    names = [name for name in (str(row.get("id")) for row in objects_in(listed)) if "image" in name]
    present(context, {"ok": True, "url": url, "key_accepted": True, "image_models": names})


def settings_rows(commands: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """Yields the settings in force for a person, each once, with the commands it is for if not for all."""
    rows = sorted(
        (f"--{name}", f"{in_words(row['value']):<28} {row['source']}", command)
        for command, settings in commands.items() for name, row in settings.items()
    )  # fmt: skip
    for (name, line), group in itertools.groupby(rows, lambda row: row[:2]):
        where = [command for *_, command in group]
        yield name, line if len(where) >= len(ALL) else f"{line}  ({', '.join(where)})"


def show_settings(context: Context, settings: Settings) -> None:
    """Shows the settings in force of each command, with their sources, and what to do about a missing key."""
    dotenv = context.dotenv
    commands = {name: shown_settings(resolve(name, {}, context.environ, dotenv)) for name in ALL}
    commands["config"] = shown_settings(settings)
    if not settings.get("api-key") and not brings_key(settings):
        commands["config"]["api-key"] = {"value": None, "source": f"missing: {key_advice(settings)}"}
    found = {"ok": True, "env_file": dotenv.path or None, "settings": commands}
    rows = [(".env in force", dotenv.path or "none"), *settings_rows(commands)]
    present(context, found, rows)


def config(context: Context, settings: Settings, _: str | None) -> None:
    """Shows the settings in force; or writes a .env, prints a completion script, or asks the endpoint."""
    console, shell = context.console, settings.get("completion")
    context.result.reported = True
    enforce(settings_problems(settings), False, console)
    if settings.get("init"):
        init_env(console, context.temp_files)
    elif shell:
        console.print(completion_script(shell))
    else:
        check_pair(settings, context)
        show = check_endpoint if settings.get("check") else show_settings
        show(context, settings)


class Command(NamedTuple):
    """A row of COMMANDS: what runs a subcommand, its line in the help, its argument, what that is, and examples."""

    run: Callable[[Context, Settings, str | None], object]
    summary: str
    argument: str
    meaning: str
    examples: Words


COMMANDS = {
    **{row.name: Command(call, row.summary, "PROMPT", "PROMPT says what to make", row.examples) for row in ROUTES},
    "resume": Command(resume, "collect a background response", "TARGET",
                      "TARGET is a session file, or the id of a response",
                      ("resume out/map.session.json", "resume resp_0123456789 --output out/map.png",
                       "resume out/map.session.json --cancel")),
    "extract": Command(extract, "take the pictures out of a saved reply, offline", "FILE",
                       "FILE is a reply that was kept or saved: JSON or events, whole or cut short",
                       ("extract out/poster.reply", "extract out/poster.reply --output out/poster.png",
                        "extract out/poster.reply --output found/ --preview")),
    "batch": Command(batch, "make the pictures of a file of jobs; run again to continue", "JOBS",
                     "JOBS is a .jsonl, .csv or .txt file of jobs, or - for standard input",
                     ("batch prompts.txt --quality low --output out/",
                      'batch animals.csv --prompt "A {animal}" -o "{animal}.png"',
                      "batch jobs.jsonl --dry-run")),
    "config": Command(config, "show the settings in force; write a .env; check the key", "",
                      "without an option, it shows each setting and where it comes from",
                      ("config --init", "config --check", "config --completion bash")),
}  # fmt: skip
# What the help shows of the program as a whole.
OVERVIEW = Command(call, "Make and edit pictures with the GPT Image models of OpenAI or of any gateway.", "",
                   "COMMAND --help lists options; --dry-run shows what would be sent, without a key.",
                   tuple(row.examples[0] for row in ROUTES))  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# 15 Main: arguments -> exit code; Failure, Ctrl-C and bugs become words
# ---------------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse for the spelling only: its errors become a Failure, without the dump of the usage."""

    def error(self, message: str) -> Any:
        hint = f"a value that begins with a dash is given as --option=-value; see {program('--help')}"
        raise Failure(USAGE, message, hint, rule="usage")


class OptionHelp(argparse.HelpFormatter):
    """Writes the value of an option once behind its spellings, as every Python does from 3.13 on."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return " ".join(filter(None, (", ".join(action.option_strings), str(action.metavar or ""))))


def add_option(group: Any, row: Option) -> None:
    """Adds an option to its group of the parser; a flag stores the text that says yes or no."""
    words, meaning = spellings(row), f"{row.help} (default: {row.default})" if row.default else row.help
    no = words.pop() if row.negative else ""
    facts: Json = {"action": "append" if row.kind.repeat else "store", "metavar": row.kind.metavar}
    if row.kind.flag:
        facts = {"action": "store_const", "const": "true"}
    group.add_argument(*sorted(words, key=len), dest=row.name, help=meaning.replace("%", "%%"), **facts)
    if no:
        group.add_argument(no, dest=row.name, help="the opposite", action="store_const", const="false")


@functools.lru_cache(maxsize=None)
def build_parser(command: str, table: tuple[Option, ...]) -> Parser:
    """Returns the parser of a subcommand's options, from their rows of the table; every value stays text."""
    parser = Parser(
        usage=argparse.SUPPRESS,
        formatter_class=OptionHelp,
        add_help=False,
        allow_abbrev=False,
        conflict_handler="resolve",  # in a batch, -i is for pictures of the last route
    )
    groups = [FIRST, *OPTION_GROUPS]
    rows = sorted(rows_typed(command), key=lambda row: groups.index(row.group))
    for title, options in itertools.groupby(rows, lambda row: row.group):
        group = parser.add_argument_group(title.lower())
        for option in options:
            add_option(group, option)
    return parser


def help_page(command: str) -> str:
    """Returns the help of a subcommand, or of the program as a whole."""
    row = COMMANDS.get(command, OVERVIEW)
    commands = "".join(f"  {name:<12} {row.summary}\n" for name, row in COMMANDS.items())
    examples = "\n".join(f"  {program()} {example}" for example in row.examples)
    return f"""usage: {program()} {command or "COMMAND"} {row.argument and f"[{row.argument}] "}[options]

{row.summary}

{row.meaning}

{build_parser(command, OPTIONS).format_help() if command else commands}
examples:
{examples}

Exit codes: {program("help", "exit-codes")}"""


# What other programs call things.
MEANT = {
    "--image": "--input-image", "--input": "--input-image", "--input-image": "--image", "--width": "--size",
    "--height": "--size", "--resolution": "--size", "--count": "--n", "--num": "--n",
    "--number": "--n", "--transparent": "--background transparent", "--out": "--output", "--token": "--api-key",
    "--key": "--api-key", "--url": "--base-url", "--api-base": "--base-url",
}  # fmt: skip


def refuse_option(command: str, name: str) -> None:
    """Refuses what is not an option of a subcommand, with the option that was probably meant."""
    known, others = words_of(command), [other for other in COMMANDS if name in words_of(other)]
    meant = MEANT.get(name, "")
    if meant.partition(" ")[0] in known:
        hint = f"did you mean {meant}?"
    elif others:
        hint = f"it belongs to {', '.join(others)}"
    else:
        hint = did_you_mean(name, known) or f"see {program(command, '--help')}"
    shown = name if name.startswith("--") else name[:2]  # behind the letter of an option a key may stand
    raise Failure(USAGE, f"{shown} is not an option of {command}", hint, rule="unknown-option")


def refuse_command(word: str, argv: list[str]) -> None:
    """Refuses a command line that does not begin with a command."""
    later = [word for word in argv if word in COMMANDS]
    if later:
        hint = f"the command comes first: {program(later[0])} …"
    elif " " in word:
        hint = f"make a picture with: {program('generations', word)}"
    else:
        hint = did_you_mean(word, COMMANDS) or f"one of {', '.join(COMMANDS)}; see {program('--help')}"
    shown = word.partition("=")[0] if word.startswith("-") else word
    raise Failure(USAGE, f"{shown!r} is not a command" if word else "no command is given", hint, rule="command")


def parse(argv: list[str]) -> tuple[str, dict[str, Any], str | None]:
    """Returns the subcommand, the typed options and the argument; every mistake of spelling is a Failure."""
    command, end = argv[0] if argv else "", [*argv, "--"].index("--")
    if command not in COMMANDS:
        words = argv[1:] if command == "help" else argv
        refuse_command("".join(words[:1]), words)
    known, others = build_parser(command, OPTIONS).parse_known_args(argv[1:end])
    for word in others:
        if re.match(r"--?[A-Za-z][\w-]*(=|$)", word):
            refuse_option(command, word.partition("=")[0])
    arguments, most = [*others, *argv[end + 1 :]], 1 if COMMANDS[command].argument else 0
    if len(arguments) > most:
        hint = f"put a text with blanks into quotes, and the option before each file; see {program(command, '--help')}"
        raise Failure(USAGE, f"{arguments[most]!r} is an unexpected argument", hint, rule="usage")
    return command, vars(known), arguments[0] if arguments else None


def say_failure(error: Json, console: Console) -> None:
    """Says what went wrong, and what to do."""
    for row in error["problems"]:
        console.say(row["message"], "error")
        if row["hint"]:
            console.say(row["hint"], "hint")
    if error["may_be_billed"]:
        console.say("this call may have been billed", "hint")


def say_result(found: Json, console: Console) -> None:
    """Prints the saved paths, and says what else is worth a line to a person."""
    if found.get("text"):
        console.say("| " + found["text"].replace("\n", "\n| "))  # no line of it can pass for one of ours
    if found["cost"]:
        console.tell("cost: {usd:.4f} USD at the prices of {prices_of}".format(**found["cost"]))
    if found.get("images"):
        console.print("\n".join(row["path"] for row in found["images"]))
    if found["ok"] and found.get("response_id") and as_object(found["request"]).get("store") is not False:
        next_turn = program("responses", "--previous-response-id", found["response_id"])
        console.tell(f"for the next turn, put a prompt behind this: {next_turn}")


def run_command(context: Context, argv: list[str]) -> None:
    """Parses, resolves and runs; what goes wrong leaves as Failure."""
    console, environ = context.console, context.environ
    typed_keys = re.findall(KEY_FORM, "\n".join(argv))
    console.hide(*map(Secret, typed_keys), *(Secret(environ.get(name, "")) for name in KEY_NAMES))  # before any error
    if not argv:
        console.say(help_page(""))
    command, typed, argument = parse(argv)
    console.quiet = bool(typed.get("quiet"))
    settings, dotenv = settings_in_force(command, typed, context)
    texts = [typed.get(name) or "" for name, row in options_of(command).items() if row.kind.reads]
    context.temp_files.reads([__file__, dotenv.path, *(text.lstrip("@") for text in texts)])
    with Progress(console, settings.get("progress", "none"), context.progress.clock) as progress:
        context = context._replace(dotenv=dotenv, progress=progress)
        piped = settings.get("output") == "-"
        if piped and is_terminal(console.pipe):
            words, hint = "--output -: standard output is a terminal", "redirect it, or name a file"
            raise Failure(USAGE, words, hint, rule="output-terminal")
        COMMANDS[command].run(context, settings, argument)
        if piped:
            pour_out(context)
        elif settings.get("open"):
            open_pictures(context)


def run(context: Context, argv: list[str]) -> int:
    """Runs a command and says how it ended: the result to stdout, the words to stderr."""
    console, clock, result = context.console, context.progress.clock, context.result
    started = clock()
    console.as_json = console.as_json or "--json" in argv
    if re.search(r"^(-\w*o|--output)[\n=]?-$", "\n".join(argv), re.MULTILINE):  # before any error
        console.stdout = console.stderr
    failure = ended(context, lambda: run_command(context, argv))
    context.stop.armed, context.stop.jobs = True, False  # everything is on disk
    try:
        if failure or not result.reported:
            found = result_of(result, failure, console.warnings, clock() - started)
            if failure:
                say_failure(found["error"], console)
            if console.as_json:
                console.print_json(found)
            else:
                say_result(found, console)
    except KeyboardInterrupt:  # nobody reads
        console.abandon(console.stdout)
        return INTERRUPTED
    if console.lost and not failure:
        console.say(f"the result cannot be written to standard output: {console.lost}", "error")
        return OUTPUT
    return failure.exit if failure else OK


def help_text(argv: list[str]) -> str:
    """Returns what --version and --help print, or nothing for a command that is to run."""
    first, options = argv[:1], argv[: [*argv, "--"].index("--")]
    if first in (["--version"], ["-V"]):
        return f"{os.path.basename(called())} {__version__}"
    if first != ["help"] and "--help" not in options and "-h" not in options:
        return ""
    import shutil

    asked = "".join(argv[1:2] if first == ["help"] else first)
    if first == ["help"] and asked not in ("", "exit-codes", *COMMANDS):
        return ""
    text = "\n".join(f"{code:>3}  {meaning}" for code, meaning in EXITS.items())
    if asked != "exit-codes":
        text = help_page(asked if asked in COMMANDS else "")
    return fitted(text, shutil.get_terminal_size().columns)


def standard(stream: TextFile | None, errors: str = "backslashreplace") -> TextFile:
    """Returns a stream of this process, in UTF-8 whatever the code page, or an empty one if it was closed."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors=errors)
    return stream or io.StringIO()


def main(
    argv: list[str] | None = None, *, transport: Transport | None = None, environ: Environ = os.environ,
    stdin: TextFile | None = None, stdout: TextFile | None = None, stderr: TextFile | None = None,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] | None = None,
    now: Callable[[], float] = time.time,
) -> int:  # fmt: skip
    """Runs the program with the given arguments and returns its exit code; all it touches can be handed in."""
    argv = sys.argv[1:] if argv is None else argv
    stdin = stdin or standard(sys.stdin, "strict")
    console = Console(stdout or standard(sys.stdout), stderr or standard(sys.stderr), environ)
    text = help_text(argv)
    if text:
        console.print(text)
        return OK
    with Stop() as stop, TempFiles() as temp_files:
        transport = transport or functools.partial(send, stop=stop)
        quiet = Progress(console, "none", clock)
        result, sleep = Result(next(filter(COMMANDS.get, argv[:1]), "")), sleep or stop.sleep
        context = Context(console, stdin, environ, Dotenv(), transport, sleep, stop, temp_files, quiet, result, now)
        return run(context, argv)


if __name__ == "__main__":
    raise SystemExit(main())
