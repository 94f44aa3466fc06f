"""Memory does not grow with the pictures: peaks of the program in a process of its own, against a gateway in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Dict

from tests.support import KEY, ROOT, ProgramTest

SIZE = 2 << 20  # bytes of each picture
# What a call with such pictures may take above one with small ones: less than any of them in any form.
ALLOWED = 7 << 18

# Serves on loopback, and answers with what each line of standard input names: large pictures or small ones, in which form.
# It also writes a large picture to a file.
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
        kind, form = json.loads(line)
        texts = small if kind == "small" else large
        if kind == "write":
            open(form, "wb").write(b"".join(pictures.large(b"x", size)[0]))
        elif form:
            body = {"answer": answer, "escaped": escaped, "items": items, "chat": chat, "stream": lambda t: stream(t, "image_generation.")}[form](texts)
            gateway.play(body[0], content_type=body[1])
        print("ready", flush=True)
"""

# Runs the program for each line of standard input, each time in a process that it forks, since Python takes a while to
# start, and answers with the exit code and the peak. ru_maxrss of a child may count its parent, so on Linux /proc is asked.
CLIENT = """
import json, os, sys, traceback
import gpt_image
def run(argv, told):
    with open("words", "w") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    sys.stdin = open(os.devnull)
    code = gpt_image.main(argv)
    try:
        peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    os.write(told, json.dumps([code, peak]).encode())
for line in sys.stdin:
    folder, *argv = json.loads(line)
    os.chdir(folder)
    os.environ["HOME"] = folder
    near, far = os.pipe()
    child = os.fork()
    if not child:
        try:
            run(argv, far)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(far)
    os.waitpid(child, 0)
    print(os.read(near, 100).decode(), flush=True)
    os.close(near)
"""


@unittest.skipUnless(os.name == "posix", "peaks are read the POSIX way")
class MemoryTest(ProgramTest):
    """Each way a picture can go in or out."""

    processes: Dict[str, subprocess.Popen[str]]
    url = ""
    idle = 0  # the peak of a call with small pictures

    @classmethod
    def setUpClass(cls) -> None:
        cls.processes = {}
        cls.url = cls.start("server", SERVER, str(SIZE), KEY, PYTHONPATH=str(ROOT))
        environ = {"OPENAI_BASE_URL": cls.url, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        cls.start("client", 'print("ready", flush=True)\n' + CLIENT, **environ)

    @classmethod
    def tearDownClass(cls) -> None:
        for process in cls.processes.values():
            assert process.stdin and process.stdout
            process.stdin.close()
            process.wait(10)
            process.stdout.close()

    @classmethod
    def start(cls, name: str, code: str, *argv: str, **environ: str) -> str:
        """Starts a process that is asked and answers in lines, and returns its first line."""
        command = [sys.executable, "-S", "-c", code, *argv]
        pipe, env = subprocess.PIPE, {**os.environ, **environ, "PYTHONDONTWRITEBYTECODE": ""}
        cls.processes[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        return cls.line(name)

    @classmethod
    def line(cls, name: str) -> str:
        """Reads a line of a process."""
        stdout = cls.processes[name].stdout
        assert stdout
        return stdout.readline().strip()

    def ask(self, name: str, *words: str) -> str:
        """Writes a line to a process, and returns its answer."""
        stdin = self.processes[name].stdin
        assert stdin
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()
        return self.line(name)

    def peak(self, kind: str, form: str, *argv: str) -> int:
        """Returns the peak of a call that must succeed."""
        self.assertEqual(self.ask("server", kind, form), "ready")
        told = self.ask("client", str(self.folder), *argv, "--output", f"{kind}-{form}/o.png", "--no-env-file", "--quiet")
        words = Path("words").read_text("utf-8")
        self.assertTrue(told, words)
        code, peak = json.loads(told)
        self.assertEqual(code, 0, words)
        return int(peak)

    def assert_flat(self, form: str, *argv: str) -> None:
        """Asserts that a call with large pictures takes about as much memory as one with small ones."""
        if not MemoryTest.idle:
            MemoryTest.idle = self.peak("small", "answer", "generations", "x", "--n", "3")
        peak = self.peak("large", form, *argv)
        self.assertLess(peak - self.idle, ALLOWED, f"peaks of {self.idle // 1024} and {peak // 1024} kB")

    def test_pictures_that_come(self) -> None:
        self.assert_flat("answer", "generations", "x", "--n", "3", "--save-response", "kept")
        self.assert_flat("escaped", "generations", "x", "--n", "3")
        self.assert_flat("stream", "generations", "x", "--stream", "--partial-images", "2")
        self.assert_flat("items", "responses", "x")
        self.assert_flat("chat", "generations", "x", "--protocol", "openai_chat")

    def test_pictures_that_go(self) -> None:
        self.assertEqual(self.ask("server", "write", str(self.folder / "in.png")), "ready")
        self.assertGreater(Path("in.png").stat().st_size, SIZE)
        images = ["in.png"] * 3
        self.assert_flat("answer", "edits", "x", *(word for name in images for word in ("--image", name)))
        self.assert_flat("items", "responses", "x", *(word for name in images for word in ("--input-image", name)))

    def test_a_reply_that_is_kept_and_extracted(self) -> None:
        self.assert_flat("answer", "generations", "x", "--n", "3", "--save-response", "large.reply")
        self.assertGreater(Path("large.reply").stat().st_size, 3 * SIZE)
        self.assert_flat("", "extract", "large.reply")


if __name__ == "__main__":
    unittest.main()
