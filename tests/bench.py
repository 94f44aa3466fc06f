"""Time and memory of the program against the plain script one would write instead, in the same run.

    python3 -m tests.bench            about a minute
    python3 -m tests.bench 7          with so many runs of each, instead of 5

Every row is a ratio of medians of alternating runs, so that it says the same on a slow machine as on a fast one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

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


class Row(NamedTuple):
    """A row of the table: what is done, the gateway's scenario (or none), our arguments, and the script in their place."""

    name: str
    scenario: str
    argv: List[str]
    script: str
    inputs: int = 0
    most: float = 0.0  # the ratio it must not go above, if there is one


class Measure(NamedTuple):
    """A run: seconds of wall time, and peak memory in bytes."""

    seconds: float
    peak: int


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


def measured(command: List[str], environ: Dict[str, str]) -> Measure:
    """Runs a command and returns what it took; its own peak alone, by wait4."""
    null = os.open(os.devnull, os.O_RDWR)
    # This process stays small: a child's peak counts its parent's up to exec.
    started = time.perf_counter()
    moves = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
    child = os.posix_spawn(command[0], command, environ, file_actions=moves)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    os.close(null)
    if status:
        raise SystemExit(f"this failed: {' '.join(command)[:300]}")
    return Measure(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def serve(scenario: str) -> Tuple["subprocess.Popen[str]", Dict[str, str]]:
    """Starts the gateway in a process of its own; returns it, and the environment that points at it."""
    command = [sys.executable, "-m", "tests.gateway", "--scenario", scenario]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    lines = [server.stdout.readline().removeprefix("export ").strip() for _ in range(2)]
    return server, {**os.environ, **dict(line.split("=", 1) for line in lines), "NO_PROXY": "127.0.0.1"}


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


def main() -> int:
    """Prints the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"Python {sys.version.split()[0]}, medians of {runs} alternating runs, peaks the largest of them")
    print(f"{'':42} {'ours':>10} {'baseline':>10} {'ratio':>6} {'peak':>11} {'baseline':>11}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names = [str(Path(folder, name)) for name in EDIT_INPUTS]
        subprocess.run([sys.executable, "-c", INPUTS, *names], cwd=ROOT, check=True)
        for row in ROWS:
            if row.scenario:
                server, environ = serve(row.scenario)
                try:
                    line = show(row, *alternating(row, runs, environ))
                finally:
                    server.terminate()
                    server.wait()
                    assert server.stdout
                    server.stdout.close()
            else:
                line = show(row, *alternating(row, 4 * runs, dict(os.environ)))
            print(line, flush=True)
        os.chdir(ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
