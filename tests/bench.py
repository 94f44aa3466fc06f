"""Time and memory of the program against the plain script one would write instead, in the same run.

    python3 -m tests.bench            some minutes
    python3 -m tests.bench 7          with so many runs of each, instead of 5

Every row of the first table is a ratio of medians of alternating runs, so that it says the same on a slow machine as
on a fast one. The second has the peak of memory for forms of replies in which a picture is easily held in memory. The
third has the growth of time: twice the bytes should take about twice the time, whatever they are and however they come.
The fourth is about `batch`: many calls by one process against as many processes, and what 50,000 jobs take.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(ROOT / "gpt_image.py")
MEGABYTE = 1 << 20

COMMON = """
import base64, json, os, sys, urllib.request
def post(path, body, kind):
    headers = {"Content-Type": kind, "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    return urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + path, body, headers)).read()
def save(texts):
    for number, text in enumerate(texts):
        with open(f"{sys.argv[1]}-{number}.png", "wb") as file:
            file.write(base64.b64decode(text))
"""
DOWNLOAD = (
    COMMON
    + """
body = json.dumps({"model": "gpt-image-2", "prompt": "x", "n": 10}).encode()
save(row["b64_json"] for row in json.loads(post("/images/generations", body, "application/json"))["data"])
"""
)
STREAM = (
    COMMON
    + """
body = json.dumps({"model": "gpt-image-2", "prompt": "x", "stream": True, "partial_images": 3}).encode()
reply = post("/images/generations", body, "application/json")
save(json.loads(line[6:])["b64_json"] for line in reply.split(b"\\n") if line.startswith(b"data: {"))
"""
)
EDIT = (
    COMMON
    + """
body = b""
for name in sys.argv[2:]:
    head = f'--B\\r\\nContent-Disposition: form-data; name="image[]"; filename="{name}"\\r\\nContent-Type: image/png\\r\\n\\r\\n'
    body += head.encode() + open(name, "rb").read() + b"\\r\\n"
for name, value in (("model", "gpt-image-2"), ("prompt", "x")):
    body += f'--B\\r\\nContent-Disposition: form-data; name="{name}"\\r\\n\\r\\n{value}\\r\\n'.encode()
body += b"--B--\\r\\n"
save(row["b64_json"] for row in json.loads(post("/images/edits", body, "multipart/form-data; boundary=B"))["data"])
"""
)
RESPONSE = (
    COMMON
    + """
content = [{"type": "input_text", "text": "x"}]
for name in sys.argv[2:]:
    text = base64.b64encode(open(name, "rb").read()).decode()
    content.append({"type": "input_image", "image_url": "data:image/png;base64," + text, "detail": "auto"})
body = {"model": "gpt-5.4", "input": [{"role": "user", "content": content}], "tools": [{"type": "image_generation"}]}
reply = json.loads(post("/responses", json.dumps(body).encode(), "application/json"))
save(item["result"] for item in reply["output"] if item["type"] == "image_generation_call")
"""
)
INPUTS = """
import sys
from tests import pictures
for name in sys.argv[1:]:
    with open(name, "wb") as file:
        file.writelines(pictures.large(name.encode(), 20 << 20)[0])
"""
# Answers every call with a text in which each PICTURE is the base64 of another picture of 20 MB.
ANSWERS = """
import sys, time
from tests import pictures
from tests.gateway import Gateway
first, *texts = [text.encode() for text in sys.argv[1].split("PICTURE")]
pieces = [first]
for number, text in enumerate(texts):
    pieces += [*pictures.large(str(number).encode(), 20 << 20)[1], text]
with Gateway() as gateway:
    for _ in range(int(sys.argv[2])):
        gateway.play(pieces)
    print(f"export OPENAI_BASE_URL={gateway.url}\\nexport OPENAI_API_KEY={gateway.key}", flush=True)
    time.sleep(3600)
"""


class Row(NamedTuple):
    """A row of the table: what is done, the gateway's scenario (or none), our arguments, and the script in their place."""

    name: str
    scenario: str
    argv: List[str]
    script: str
    inputs: int = 0
    most: float = 0.0  # the ratio it must not go above, if there is one


class Form(NamedTuple):
    """A row of the table of memory: a form of reply, our arguments, and the exit code that it must come to."""

    name: str
    text: str
    argv: List[str]
    code: int = 0


class Growth(NamedTuple):
    """A row of the table of growth: what of a reply grows, how far, what makes it, and in pieces of how many bytes."""

    name: str
    size: int
    body: Callable[[int], bytes]
    piece: int
    argv: List[str]
    status: int = 200
    code: int = 0


class Measure(NamedTuple):
    """A run: seconds of wall time, peak memory in bytes, and seconds of processor time."""

    seconds: float
    peak: int
    cpu: float


EDIT_INPUTS = [f"in{number}.png" for number in range(4)]
ROWS = (
    Row("ten 20 MB pictures in one reply", "ten-20mb", ["generations", "x", "--n", "10"], DOWNLOAD, most=0.75),
    Row("stream: three 20 MB previews and a final", "stream-20mb",
        ["generations", "x", "--stream", "--partial-images", "3"], STREAM),
    Row("edit with four 20 MB inputs", "plain",
        ["edits", "x", *(word for name in EDIT_INPUTS for word in ("--image", name))], EDIT, 4),
    Row("response with four 20 MB inputs", "plain",
        ["responses", "x", *(word for name in EDIT_INPUTS for word in ("--input-image", name))], RESPONSE, 4),
    Row("start-up: --help", "", ["--help"], "pass", most=2.5),
    Row("start-up: generations --help", "", ["generations", "--help"], "pass", most=2.5),
    Row("start-up: --dry-run", "", ["generations", "x", "--output", "o.png", "--dry-run"], "pass", most=2.5),
)  # fmt: skip

IMAGE, RESPONSES = ["generations", "x"], ["responses", "x"]
CHAT = [*IMAGE, "--protocol", "openai_chat"]
MOST_MEMORY = 45 * MEGABYTE
DELTA = 'data: {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "%s"}}]}\n\n'
OUTPUT_TEXT = '{"output": [{"type": "message", "content": [{"type": "output_text", "text": "%s"}]}]}'
FORMS = (
    Form("chat delta with a picture", DELTA % "![x](data:image/png;base64,PICTURE)", CHAT),
    Form("data: URL of application/octet-stream",
         '{"data": [{"url": "data:application/octet-stream;base64,PICTURE"}]}', IMAGE),
    Form("the same in a chat message",
         '{"choices": [{"message": {"content": "![x](data:application/octet-stream;base64,PICTURE)"}}]}', CHAT),
    Form("ten pictures under an unknown key",
         '{"images": [' + ", ".join(['{"b64": "PICTURE"}'] * 10) + "]}", [*IMAGE, "--n", "10"], 6),
    Form("data: URL in the text of a response", OUTPUT_TEXT % "see data:image/png;base64,PICTURE here", RESPONSES, 6),
)  # fmt: skip


def painted(size: int) -> str:
    """Returns the base64 of a picture of about so many bytes."""
    from tests import pictures

    return b"".join(pictures.large(b"x", size)[1]).decode()


def answer(size: int, **changes: str) -> bytes:
    """Returns the reply of an Images call with a picture of about so many bytes, its text changed as said."""
    text = painted(size)
    for old, new in changes.items():
        text = text.replace(old, new)
    return f'{{"data": [{{"b64_json": "{text}"}}]}}'.encode()


def completed(size: int) -> bytes:
    """Returns the last event of an Images stream, with a picture of about so many bytes."""
    return f'data: {{"type": "image_generation.completed", "b64_json": "{painted(size)}"}}\n\n'.encode()


def chat_picture(size: int) -> bytes:
    """Returns a chat stream of many deltas that have a hundred characters of one picture each."""
    text = f"![x](data:image/png;base64,{painted(size)})"
    return b"".join((DELTA % text[at : at + 100]).encode() for at in range(0, len(text), 100))


def several_lines(size: int) -> bytes:
    """Returns an event whose picture is broken over many lines of data."""
    text = painted(size)
    lines = "".join(f"data: {text[at : at + 100]}\n" for at in range(0, len(text), 100))
    return f'data: {{"type": "image_generation.completed", "b64_json": "\n{lines}data: "}}\n\n'.encode()


def small(count: int) -> List[str]:
    """Returns the base64 of so many small pictures, no two of them the same."""
    from tests import pictures

    picture = pictures.picture(b"x", "png", 16, 16)
    comments = (pictures.chunk(b"tEXt", b"Comment\0%d" % number) for number in range(count))
    return [base64.b64encode(picture[:33] + comment + picture[33:]).decode() for comment in comments]


def small_pictures(count: int) -> bytes:
    """Returns the reply of an Images call with so many pictures."""
    return json.dumps({"data": [{"b64_json": text} for text in small(count)]}).encode()


def small_previews(count: int) -> bytes:
    """Returns an Images stream of so many previews that all have the same index."""
    rows = (
        {"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": text} for text in small(count)
    )
    return b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows)


BLOCK = 16 << 10
STREAMED = [*IMAGE, "--stream"]
SMALL = 10_000
WORD_EVENT = b'data: {"type": "response.output_text.delta", "delta": "word "}\n\n'
GROWTHS = (
    Growth("chat deltas of a word", 25_000, lambda n: DELTA.replace("%s", "word ").encode() * n, BLOCK, CHAT, code=6),
    Growth("chat deltas of a picture", MEGABYTE, chat_picture, BLOCK, CHAT),
    Growth("response deltas of a word", 25_000, lambda n: WORD_EVENT * n, BLOCK, RESPONSES, code=6),
    Growth("documents, one per line", 25_000, lambda n: b'{"type": "ping"}\n' * n + completed(SMALL)[6:], BLOCK, IMAGE),
    Growth("comment line", 25 * MEGABYTE, lambda n: b": " + b"a" * n + b"\n\n" + completed(SMALL), BLOCK, STREAMED),
    Growth("event of text, by 100 bytes", MEGABYTE,
           lambda n: b'data: {"type": "ping", "text": "' + b"word " * (n // 5) + b'"}\n\n' + completed(SMALL), 100, STREAMED),
    Growth("event of brackets, by 100 bytes", MEGABYTE,
           lambda n: b'data: {"type": "ping", "list": [' + b"{}, " * (n // 4) + b"0]}\n\n" + completed(SMALL), 100, STREAMED),
    Growth("event with a picture, by 100 bytes", MEGABYTE, completed, 100, STREAMED),
    Growth("event of many lines, by 100 bytes", MEGABYTE, several_lines, 100, STREAMED),
    Growth("error of text, by 1 byte", MEGABYTE // 2, lambda n: b"word " * (n // 5), 1, IMAGE, 500, 5),
    Growth("error of JSON, by 1 byte", MEGABYTE // 2,
           lambda n: b'{"error": {"message": "' + b"word " * (n // 5) + b'"}}', 1, IMAGE, 500, 5),
    Growth("JSON with a picture", 10 * MEGABYTE, answer, BLOCK, IMAGE),
    Growth("the same with escapes", 10 * MEGABYTE, lambda n: answer(n, **{"/": "\\/"}), BLOCK, IMAGE),
    Growth("chat message with a picture", 10 * MEGABYTE,
           lambda n: b'{"choices": [{"message": {"content": "![x](data:image/png;base64,%s)"}}]}' % painted(n).encode(),
           BLOCK, CHAT),
    Growth("JSON with a picture, by gzip", 10 * MEGABYTE, lambda n: gzip.compress(answer(n), 1), BLOCK, IMAGE),
    Growth("JSON cut behind a long word", MEGABYTE, lambda n: b'{"a": "' + b"a" * n + b'", "b":', BLOCK, IMAGE, code=5),
    Growth("small pictures in one reply", 800, small_pictures, BLOCK, IMAGE),
    Growth("small previews of one index", 400, small_previews, BLOCK, [*STREAMED, "--partial-images", "1"], code=6),
)  # fmt: skip
MOST_GROWTH = 3.0  # times the time for twice the bytes; a busy machine is not exact, and the square would be 4


def measured(command: List[str], environ: Dict[str, str], code: int = 0) -> Measure:
    """Runs a command and returns what it took; its own peak alone, by wait4."""
    null = os.open(os.devnull, os.O_RDWR)
    # This process stays small: a child's peak counts its parent's up to exec.
    started = time.perf_counter()
    # What a run that must fail says is of no interest.
    moves = [(os.POSIX_SPAWN_DUP2, null, number) for number in ((0, 1, 2) if code else (0, 1))]
    child = os.posix_spawn(command[0], command, environ, file_actions=moves)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    os.close(null)
    if status != code << 8:
        raise SystemExit(f"this failed: {' '.join(command)[:300]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measure(seconds, peak, usage.ru_utime + usage.ru_stime)


@contextlib.contextmanager
def served(*words: str) -> Iterator[Dict[str, str]]:
    """Runs a gateway in a process of its own; yields the environment that points at it."""
    command = [sys.executable, *words]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    try:
        lines = [server.stdout.readline().removeprefix("export ").strip() for _ in range(2)]
        yield {**os.environ, **dict(line.split("=", 1) for line in lines), "NO_PROXY": "127.0.0.1"}
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def alternating(row: Row, runs: int, environ: Dict[str, str]) -> Tuple[List[Measure], List[Measure]]:
    """Runs ours and theirs in turn, once to warm up and then `runs` times each."""
    ours: List[Measure] = []
    theirs: List[Measure] = []
    for turn in range(runs + 1):
        for found, command in (
            (ours, [sys.executable, PROGRAM, *row.argv]),
            (theirs, [sys.executable, "-c", row.script, f"theirs{turn}", *EDIT_INPUTS[: row.inputs]]),
        ):
            if found is ours and row.scenario:
                command += ["--output", f"ours{turn}.png", "--no-env-file", "--quiet"]
            measure = measured(command, environ)
            found += [measure] if turn else []
        for path in Path().glob("*s[0-9]*.png"):
            path.unlink()
    return ours, theirs


def show(row: Row, ours: List[Measure], theirs: List[Measure]) -> str:
    """Returns a line of the table."""
    seconds = [statistics.median(run.seconds for run in runs) for runs in (ours, theirs)]
    peaks = [max(run.peak for run in runs) / MEGABYTE for runs in (ours, theirs)]
    ratio = seconds[0] / seconds[1]
    verdict = "" if not row.most else f"  at most {row.most}" + (" MISSED" if ratio > row.most else "")
    times = f"{seconds[0]:8.3f} s {seconds[1]:8.3f} s {ratio:6.2f}"
    return f"{row.name:42} {times} {peaks[0]:8.1f} MB {peaks[1]:8.1f} MB{verdict}"


def show_memory(form: Form, runs: int) -> str:
    """Returns a line of the table of memory: the largest peak of some runs."""
    with served("-c", ANSWERS, form.text, str(runs)) as environ:
        peaks = []
        for run in range(runs):
            command = [sys.executable, PROGRAM, *form.argv, "--output", f"ours{run}.png", "--no-env-file", "--quiet"]
            peaks.append(measured(command, environ, form.code).peak)
            for path in Path().glob("ours[0-9]*"):
                path.unlink()
    verdict = " MISSED" if max(peaks) > MOST_MEMORY else ""
    return f"{form.name:42} {max(peaks) / MEGABYTE:8.1f} MB  at most {MOST_MEMORY // MEGABYTE}{verdict}"


def cpu_time(row: Growth, size: int) -> float:
    """Returns the seconds of processor time that the program takes for a reply of a size, in this process."""
    import gpt_image
    from tests.support import KEY, FakeTransport, reply

    transport = FakeTransport(reply(row.body(size), row.status, size=row.piece))
    argv = [*row.argv, "--output", "grown.png", "--no-env-file", "--quiet", "--max-retries", "0"]
    out, environ = io.StringIO(), {"OPENAI_API_KEY": KEY, "HOME": os.getcwd()}
    started = time.process_time()
    code = gpt_image.main(argv, transport=transport, environ=environ, stdin=io.StringIO(), stdout=out, stderr=out)
    seconds = time.process_time() - started
    for path in Path().glob("grown*"):
        path.unlink()
    if code != row.code:
        raise SystemExit(f"this failed: {row.name}: {out.getvalue()[:2000]}")
    return seconds


def show_growth(row: Growth) -> str:
    """Returns a line of the table of growth: the best of three for a size and for twice that, in turn."""
    pairs = [(cpu_time(row, row.size), cpu_time(row, 2 * row.size)) for _ in range(3)]
    once, twice = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    ratio = twice / once
    verdict = " MISSED" if ratio > MOST_GROWTH else ""
    return f"{row.name:42} {row.size:10} {once:8.3f} s {twice:8.3f} s {ratio:6.2f}  at most {MOST_GROWTH}{verdict}"


CROWD, PARALLEL, EACH, SEPARATE = 640, 16, 0.5, 8  # jobs, calls at once, seconds a picture; processes to compare with
MANY = 50_000
MOST_BATCH = 100 * MEGABYTE
# What the server can do at the same time on the same machine: replies that are thrown away.
BARE_CROWD = (
    COMMON
    + """
from concurrent.futures import ThreadPoolExecutor
def call(number):
    body = json.dumps({"model": "gpt-image-2", "prompt": f"Lake {number % 20}"}).encode()
    post("/images/generations", body, "application/json")
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(call, range(int(sys.argv[1]))))
"""
)
# A run of many jobs whose server is a function: what is left is the program's own.
MANY_JOBS = """
import base64, json, sys
sys.path.insert(0, sys.argv.pop(1))
import gpt_image
from tests import pictures
picture = base64.b64encode(pictures.picture(b"small", "png", 16, 16)).decode()
body = json.dumps({"created": 1, "data": [{"b64_json": picture}]}).encode()
def transport(request, timeout, progress):
    return gpt_image.Reply(200, {"content-type": "application/json"}, [body])
sys.exit(gpt_image.main(sys.argv[1:], transport=transport))
"""


def show_crowd() -> Iterator[str]:
    """Yields lines on a crowd of calls: the share of what the server can do, and the processor time a picture."""
    Path("crowd.txt").write_text("".join(f"Lake {number % 20}\n" for number in range(CROWD)), "utf-8")
    with served("-m", "tests.gateway", "--delay", str(EACH), "--weight", "1500000") as environ:
        command = [sys.executable, PROGRAM, "batch", "crowd.txt", "--parallel", str(PARALLEL), "--no-env-file", "--quiet"]
        bare = measured([sys.executable, "-c", BARE_CROWD, str(CROWD), str(PARALLEL)], environ)
        crowd = measured(command, environ)
        single = [sys.executable, PROGRAM, "generations", "Lake", "--no-env-file", "--quiet", "--output"]
        alone = statistics.median(measured([*single, f"{run}.png"], environ).cpu for run in range(SEPARATE))
    share, part = bare.seconds / crowd.seconds, crowd.cpu / CROWD / alone
    missed = [" MISSED" if wrong else "" for wrong in (share < 0.8, part > 0.2, crowd.peak > MOST_BATCH)]
    times = f"{crowd.seconds:8.2f} s {bare.seconds:8.2f} s {share:6.2f}"
    yield f"{'share of what the server can do':42} {times}  at least 0.8{missed[0]}"
    times = f"{1000 * crowd.cpu / CROWD:8.1f} ms {1000 * alone:7.1f} ms {part:6.2f}"
    yield f"{'processor time a picture, and alone':42} {times}  at most 0.2{missed[1]}"
    yield f"{'peak':42} {crowd.peak / MEGABYTE:8.1f} MB  at most {MOST_BATCH // MEGABYTE}{missed[2]}"


def show_many() -> Iterator[str]:
    """Yields lines on many jobs: time and peak of the checks alone, of the run, and of a run that finds all done."""
    rows = "".join(f"animal {number},a lake by the sea {number}\n" for number in range(MANY))
    Path("many.csv").write_text(f"animal,place\n{rows}", "utf-8")
    environ = {**os.environ, "OPENAI_API_KEY": "sk-bench-0123456789"}
    argv = ["batch", "many.csv", "--prompt", "A {animal} at {place}", "--no-env-file", "--quiet"]
    for name, more in (("dry run", ["--dry-run"]), ("run", []), ("run again", [])):
        found = measured([sys.executable, "-c", MANY_JOBS, str(ROOT), *argv, *more], environ)
        missed = " MISSED" if found.peak > MOST_BATCH else ""
        peak = f"{found.peak / MEGABYTE:8.1f} MB  at most {MOST_BATCH // MEGABYTE}{missed}"
        yield f"{f'{MANY} jobs: {name}':42} {1000 * found.seconds / MANY:8.2f} ms a job {peak}"


def main() -> int:
    """Prints the tables."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"Python {sys.version.split()[0]}, medians of {runs} alternating runs, peaks the largest of them")
    print(f"{'':42} {'ours':>10} {'baseline':>10} {'ratio':>6} {'peak':>11} {'baseline':>11}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names = [str(Path(folder, name)) for name in EDIT_INPUTS]
        subprocess.run([sys.executable, "-c", INPUTS, *names], cwd=ROOT, check=True)
        for row in ROWS:
            if row.scenario:
                with served("-m", "tests.gateway", "--scenario", row.scenario) as environ:
                    line = show(row, *alternating(row, runs, environ))
            else:
                line = show(row, *alternating(row, 4 * runs, dict(os.environ)))
            print(line, flush=True)
        print(f"\n{'replies with pictures of 20 MB':42} {'peak':>11}")
        for form in FORMS:
            print(show_memory(form, 2), flush=True)
        print("\nbatch")
        for lines in (show_crowd(), show_many()):
            for line in lines:
                print(line, flush=True)
        # Last, since it makes this process larger.
        print(f"\n{'processor time of replies that grow':42} {'n':>10} {'of n':>10} {'of 2n':>10} {'ratio':>6}")
        for growth in GROWTHS:
            print(show_growth(growth), flush=True)
        os.chdir(ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
