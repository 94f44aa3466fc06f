"""What the tests share: a folder of their own, a run of the program in this process, and a transport that is played."""

from __future__ import annotations

import ast
import calendar
import functools
import io
import json
import os
import re
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpt_image  # noqa: E402
from tests import pictures  # noqa: E402
from tests.gateway import Gateway  # noqa: E402

# The gateway paints the same pictures again and again: the same words give the same picture.
vars(pictures)["picture"] = functools.lru_cache(500)(pictures.picture)

KEY = "sk-test-0123456789abcdef"
TODAY = "2026-11-20"  # in the tests, whatever day it is
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "gpt_image.py")


@functools.lru_cache(1)
def source_nodes() -> List[ast.AST]:
    """Returns every node of the program's syntax tree, the tree itself first; it takes a while, so that few ask for it."""
    return list(ast.walk(ast.parse(Path(SCRIPT).read_text(encoding="utf-8"))))


def child(before: str = "pass") -> List[str]:
    """Returns the command of the program as a process of its own that runs some Python first.

    It takes the program from the cache of compiled modules, since compiling it takes longer than most runs, and nothing
    from what is installed (-S), which is looked through at each start.
    """
    start = f"import sys; sys.dont_write_bytecode = False; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {SCRIPT!r}; {before}"
    return [sys.executable, "-S", "-c", f"{start}; import gpt_image; raise SystemExit(gpt_image.main())"]


class Ran(NamedTuple):
    """How a run ended: exit code, both streams, and stdout as JSON if it is."""

    code: int
    out: str
    err: str
    json: Any

    @property
    def error(self) -> Any:
        """Returns the `error` object of the result."""
        return self.json["error"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def reply(
    body: Union[bytes, str, Dict[str, Any]],
    status: int = 200,
    headers: Optional[Mapping[str, str]] = None,
    size: int = 0,
) -> gpt_image.Reply:
    """Returns a canned reply, its body in chunks of `size` bytes (0: in one)."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    step = size or max(len(data), 1)
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    return gpt_image.Reply(status, {name.lower(): value for name, value in (headers or {}).items()}, chunks)


@functools.lru_cache(None)
def at_noon(day: str) -> float:
    """Returns the seconds since 1970 of noon, UTC, on a day."""
    return calendar.timegm(time.strptime(f"{day} 12", "%Y-%m-%d %H"))


class FakeTransport:
    """Keeps every request with its body, and plays canned replies or faults in turn."""

    def __init__(self, *replies: Union[gpt_image.Reply, gpt_image.Fault]) -> None:
        self.replies = list(replies)
        self.requests: List[gpt_image.Request] = []
        self.bodies: List[bytes] = []

    def __call__(
        self, request: gpt_image.Request, timeout: float, progress: gpt_image.Progress
    ) -> Union[gpt_image.Reply, gpt_image.Fault]:
        self.requests.append(request)
        self.bodies.append(b"".join(request.body) if request.body else b"")
        return self.replies.pop(0)


def cut(data: bytes, size: int) -> List[bytes]:
    """Returns data in pieces of a size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


class Sink:
    """Stands in for a picture that is decoded to disk: it keeps the base64 that it got, without white space."""

    def __init__(self) -> None:
        self.text, self.ended = b"", False

    def write(self, data: bytes) -> bool:
        """Takes plain base64 only, as the real one does."""
        plain = not data.translate(None, gpt_image.BASE64)
        self.text += data if plain else b""
        return plain

    def write_odd(self, data: bytes) -> None:
        self.text += data.translate(None, gpt_image.WHITE)

    def looks_whole(self) -> bool:
        return False


def read(pieces: Iterable[bytes], new_picture: Callable[[], Any] = Sink) -> List[gpt_image.Document]:
    """Returns the documents of a reply that comes in pieces, with each picture in the place of its token.

    A string that is no more than a picture becomes what `new_picture` made, or (base64, ended) of a Sink.
    """
    lifter = gpt_image.Lifter(new_picture)

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            found = {token: lifter.take(token) for token in re.findall(gpt_image.TOKEN, value)}
            shown = {token: (row.text, row.ended) if isinstance(row, Sink) else row for token, row in found.items()}
            if len(shown) == 1 and re.fullmatch(r"\s*(data:[^,]*,)?<[^<>]*>\s*", value, re.IGNORECASE):
                return next(iter(shown.values()))
            return re.sub(gpt_image.TOKEN, lambda match: str(shown[match.group()]), value)
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    documents = gpt_image.documents_of(iter(pieces), lifter)
    return [document._replace(value=filled(document.value)) for document in documents]


def decoding(temp_files: gpt_image.TempFiles) -> Callable[[], Any]:
    """Returns what makes real pictures, which are decoded into temporary files."""
    return lambda: gpt_image.Lifted(temp_files, ".")


class ProgramTest(unittest.TestCase):
    """A test in a temporary folder, which is the current one while it runs."""

    def setUp(self) -> None:
        before = os.getcwd()
        folder = tempfile.TemporaryDirectory()
        self.folder = Path(folder.name).resolve()
        os.chdir(self.folder)
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, before)
        self.sleeps: List[float] = []
        self.slept = 0.0  # by the clock of the program, which goes on while it waits
        self.today = TODAY

    def gateway(self, scenario: str = "plain", **options: Any) -> Gateway:
        """Starts a stand-in gateway that ends with the test."""
        gateway = Gateway(scenario=scenario, key=KEY, **options)
        self.addCleanup(gateway.close)
        return gateway

    def sleep(self, seconds: float) -> None:
        """Waits no time at all, and notes for how long it would have been."""
        self.slept += seconds
        self.sleeps.append(seconds)

    def run_main(
        self,
        *argv: str,
        gateway: Optional[Gateway] = None,
        transport: Any = None,
        env: Optional[Mapping[str, str]] = None,
        stdin: str = "",
        terminal: bool = False,
    ) -> Ran:
        """Runs the program in this process, with no environment but the key, the gateway's URL and what is given."""
        environ = {"HOME": str(self.folder / "home"), "OPENAI_API_KEY": KEY, "PATH": os.environ.get("PATH", "")}
        if gateway:
            environ["OPENAI_BASE_URL"] = gateway.url
        environ.update(env or {})
        out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
        code = gpt_image.main(
            list(argv),
            transport=transport or (gpt_image.send if gateway else FakeTransport()),
            environ=environ,
            stdin=io.StringIO(stdin),
            stdout=out,
            stderr=err,
            clock=lambda: time.monotonic() + self.slept,
            sleep=self.sleep,
            now=lambda: at_noon(self.today),
        )
        try:
            value = json.loads(out.getvalue() or "".join(err.getvalue().partition("{\n")[1:]))  # with `--output -`
        except ValueError:
            value = None
        return Ran(code, out.getvalue(), err.getvalue(), value)

    def files(self, folder: str = ".") -> List[str]:
        """Returns the files below a folder, sorted, with forward slashes."""
        return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())

    def assert_no_key(self, ran: Ran, secrets: Iterable[str] = (KEY,)) -> None:
        """Asserts that no secret stands in the output or in any file of the test's folder."""
        for secret in secrets:
            self.assertNotIn(secret, ran.out)
            self.assertNotIn(secret, ran.err)
            for name in self.files():
                self.assertNotIn(secret.encode(), Path(name).read_bytes(), name)
