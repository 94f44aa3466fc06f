"""Memory does not grow with the pictures: peaks of the program in a process of its own, against a gateway in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import List, NamedTuple

from tests.support import KEY, ROOT, ProgramTest

SIZE = 4 << 20  # bytes of each picture
# What a call with such pictures may take above one with small ones: less than any of them in any form.
ALLOWED = 3 << 20

# Serves on loopback, and answers with what each line of standard input names: large pictures, a large stream, or a small one.
SERVER = """
import base64, json, sys
from tests import pictures
from tests.gateway import Gateway
size, key = int(sys.argv[1]), sys.argv[2]
small = [base64.b64encode(pictures.picture(b"x", "png", 64, 64)).decode()] * 3
large = [b"".join(pictures.large(bytes([n]), size)[1]).decode() for n in range(3)]
def answer(texts):
    return json.dumps({"created": 1, "data": [{"b64_json": text} for text in texts]}).encode(), "application/json"
def escaped(texts):
    return answer(texts)[0].replace(b"/", b"\\\\/"), "application/json"
def stream(texts, kind):
    names = [kind + "partial_image"] * 2 + [kind + "completed"]
    rows = [{"type": name, "b64_json": text, "partial_image_index": i} for i, (name, text) in enumerate(zip(names, texts))]
    return b"".join(b"data: " + json.dumps(row).encode() + b"\\n\\n" for row in rows), "text/event-stream"
def items(texts):
    rows = [{"type": "image_generation_call", "id": f"ig_{i}", "result": text} for i, text in enumerate(texts)]
    return json.dumps({"id": "resp_1", "status": "completed", "output": rows}).encode(), "application/json"
def chat(texts):
    content = " and ".join(f"![x](data:image/png;base64,{text})" for text in texts)
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode(), "application/json"
with Gateway(key=key) as gateway:
    print(gateway.url, flush=True)
    for line in sys.stdin:
        kind, _, form = line.strip().partition(" ")
        texts = small if kind == "small" else large
        if form:
            body = {"answer": answer, "escaped": escaped, "items": items, "chat": chat, "stream": lambda t: stream(t, "image_generation.")}[form](texts)
            gateway.play(body[0], content_type=body[1])
        print("ready", flush=True)
"""

# Runs the program and says its own peak. ru_maxrss of a child counts its parent up to exec, so on Linux /proc is asked.
CLIENT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gpt_image
code = gpt_image.main(sys.argv[2:])
try:
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"code": code, "peak": peak}))
"""


class Peak(NamedTuple):
    """How a run in another process ended, and its peak of memory in bytes."""

    code: int
    bytes: int
    err: str


@unittest.skipUnless(os.name == "posix", "peaks are read the POSIX way")
class MemoryTest(ProgramTest):
    """Each way a picture can go in or out."""

    server: subprocess.Popen[str]
    url = ""
    idle = 0  # the peak of a call with small pictures

    @classmethod
    def setUpClass(cls) -> None:
        command = [sys.executable, "-c", SERVER, str(SIZE), KEY]
        cls.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        cls.url = cls.line()

    @classmethod
    def tearDownClass(cls) -> None:
        assert cls.server.stdin and cls.server.stdout
        cls.server.stdin.close()
        cls.server.wait(10)
        cls.server.stdout.close()

    @classmethod
    def line(cls) -> str:
        """Reads a line of the server."""
        assert cls.server.stdout
        return cls.server.stdout.readline().strip()

    def run_child(self, answer: str, argv: List[str]) -> Peak:
        """Runs the program against the server, which answers as said."""
        assert self.server.stdin
        self.server.stdin.write(answer + "\n")
        self.server.stdin.flush()
        self.assertEqual(self.line(), "ready")
        environ = {
            **os.environ,
            "OPENAI_BASE_URL": self.url,
            "OPENAI_API_KEY": KEY,
            "NO_PROXY": "127.0.0.1",
            "HOME": str(self.folder),
        }
        command = [sys.executable, "-c", CLIENT, str(ROOT), *argv, "--no-env-file", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
        self.assertTrue(done.stdout, done.stderr)
        told = json.loads(done.stdout.splitlines()[-1])
        return Peak(told["code"], told["peak"], done.stderr)

    def peak(self, kind: str, form: str, *argv: str) -> int:
        """Returns the peak of a call that must succeed."""
        peak = self.run_child(f"{kind} {form}", [*argv, "--output", f"out{len(self.files())}/o.png"])
        self.assertEqual(peak.code, 0, peak.err)
        return peak.bytes

    def assert_flat(self, form: str, *argv: str) -> None:
        """Asserts that a call with large pictures takes about as much memory as one with small ones."""
        if not MemoryTest.idle:
            MemoryTest.idle = self.peak("small", "answer", "generations", "x", "--n", "3")
        peak = self.peak("large", form, *argv)
        self.assertLess(peak - self.idle, ALLOWED, f"peaks of {self.idle // 1024} and {peak // 1024} kB")

    def write_input(self) -> None:
        """Writes a large picture."""
        code = ("import sys; from tests import pictures; name, size = sys.argv[1:]\n"
                "open(name, 'wb').write(b''.join(pictures.large(b'x', int(size))[0]))")  # fmt: skip
        subprocess.run([sys.executable, "-c", code, str(self.folder / "in.png"), str(SIZE)], check=True, cwd=ROOT)
        self.assertGreater(Path("in.png").stat().st_size, SIZE)

    def test_pictures_that_come(self) -> None:
        self.assert_flat("answer", "generations", "x", "--n", "3", "--save-response", "kept")
        self.assert_flat("escaped", "generations", "x", "--n", "3")
        self.assert_flat("stream", "generations", "x", "--stream", "--partial-images", "2")
        self.assert_flat("items", "responses", "x")
        self.assert_flat("chat", "generations", "x", "--protocol", "openai_chat")

    def test_pictures_that_go(self) -> None:
        self.write_input()
        images = ["in.png"] * 3
        self.assert_flat("answer", "edits", "x", *(word for name in images for word in ("--image", name)))
        self.assert_flat("items", "responses", "x", *(word for name in images for word in ("--input-image", name)))

    def test_a_reply_that_is_kept_and_extracted(self) -> None:
        self.assert_flat("answer", "generations", "x", "--n", "3", "--save-response", "large.reply")
        self.assertGreater(Path("large.reply").stat().st_size, 3 * SIZE)
        self.assert_flat("", "extract", "large.reply")


if __name__ == "__main__":
    unittest.main()
