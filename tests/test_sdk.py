"""What the official SDK sends for a call, and what the program sends for the same: the same body, field by field.

tests/golden/sdk-3.57.0.json is what openai 3.57.0 sent on 2026-11-26 for the calls below, to a server on loopback:

    python3 -m venv /tmp/sdk && /tmp/sdk/bin/pip install openai
    /tmp/sdk/bin/python -m tests.test_sdk --record      writes tests/golden/sdk-VERSION.json; name it in GOLDEN

The bytes of a picture are put down as the name of the file they are of.
"""

from __future__ import annotations

import base64
import http.server
import importlib
import json
import re
import shlex
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import gpt_image
from tests.support import FakeTransport, ProgramTest, reply
from tests.test_request import JPEG, WEBP, png, read_form

GOLDEN = Path(__file__).resolve().parent / "golden" / "sdk-3.57.0.json"
HEADERS = ("content-type", "openai-organization", "openai-project")
FILES = {
    "a.png": png(8, 8), "b.jpg": JPEG, "c.webp": WEBP, "図 1.png": png(9, 9), "mask.png": png(8, 8, clear=True),
}  # fmt: skip

TOOLS = 'tools=[{"type": "image_generation"}], tool_choice={"type": "image_generation"}'
TALK = f'model="gpt-5.4", {TOOLS}'
PART = '{"type": "input_text", "text": "An ad"}'

# A command of the program, and the call of the SDK that asks for the same.
GENERATIONS: Tuple[Tuple[str, str], ...] = (
    ("generations 'A lake'", 'client.images.generate(prompt="A lake", model="gpt-image-2")'),
    ("generations 'Zeile\n\"zwei\" 図 \U0001f3a8'",
     'client.images.generate(prompt="Zeile\\n\\"zwei\\" 図 \U0001f3a8", model="gpt-image-2")'),
    ("generations x --model gpt-image-2.6-flare --n 3 --size 2048x1152 --quality xhigh --background opaque --format webp "
     "--compression 80 --moderation low --complexity medium --safety-identifier u1 --user u2",
     'client.images.generate(prompt="x", model="gpt-image-2.6-flare", n=3, size="2048x1152", quality="xhigh", '
     'background="opaque", output_format="webp", output_compression=80, moderation="low", complexity="medium", '
     'safety_identifier="u1", user="u2")'),
    ("generations x --model gpt-image-2.6-flare --format gif --frame-count 12 --frame-duration-ms 80",
     'client.images.generate(prompt="x", model="gpt-image-2.6-flare", output_format="gif", frame_count=12, '
     "frame_duration_ms=80)"),
    ("generations x --model gpt-image-2.6-flare --format svg --svg-model gpt-5.5 --svg-effort low",
     'client.images.generate(prompt="x", model="gpt-image-2.6-flare", output_format="svg", '
     'svg={"model": "gpt-5.5", "reasoning": {"effort": "low"}})'),
    ("generations x --stream --partial-images 2",
     'client.images.generate(prompt="x", model="gpt-image-2", stream=True, partial_images=2)'),
    ("generations x --no-stream", 'client.images.generate(prompt="x", model="gpt-image-2", stream=False)'),
    ("generations x --model house --response-format url --style vivid",
     'client.images.generate(prompt="x", model="house", response_format="url", style="vivid")'),
    ("""generations x --extra-json '{"seed": 7, "loras": ["x"], "deep": {"a": null}}'""",
     'client.images.generate(prompt="x", model="gpt-image-2", '
     'extra_body={"seed": 7, "loras": ["x"], "deep": {"a": None}})'),
    ("""generations x --extra-json '{"quality": null}'""",
     'client.images.generate(prompt="x", model="gpt-image-2", quality=None)'),
    ("generations x --organization org-1 --project proj-1",
     'client.copy(organization="org-1", project="proj-1").images.generate(prompt="x", model="gpt-image-2")'),
)  # fmt: skip
EDITS: Tuple[Tuple[str, str], ...] = (
    ("edits snow --image a.png", 'client.images.edit(prompt="snow", model="gpt-image-2", image=file("a.png"))'),
    ("edits snow --image a.png --image b.jpg --image c.webp",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=[file("a.png"), file("b.jpg"), file("c.webp")])'),
    ("edits snow --image '図 1.png' --image b.jpg",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=[file("図 1.png"), file("b.jpg")])'),
    ("edits snow --image a.png --mask mask.png",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=file("a.png"), mask=file("mask.png"))'),
    ("edits snow --image a.png --image b.jpg --mask mask.png --n 2 --size 1024x1024",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=[file("a.png"), file("b.jpg")], '
     'mask=file("mask.png"), n=2, size="1024x1024")'),
    ("edits snow --image a.png --markup mask.png --model gpt-image-2.5-flare",
     'client.images.edit(prompt="snow", model="gpt-image-2.5-flare", image=file("a.png"), markup=file("mask.png"))'),
    ("edits 'two\nlines' --image a.png --model house --n 2 --size auto --quality high --background auto --format jpeg "
     "--compression 70 --input-fidelity high --complexity low --response-format b64_json --safety-identifier u1 --user u2",
     'client.images.edit(prompt="two\\nlines", model="house", image=file("a.png"), n=2, size="auto", quality="high", '
     'background="auto", output_format="jpeg", output_compression=70, input_fidelity="high", complexity="low", '
     'response_format="b64_json", safety_identifier="u1", user="u2")'),
    ("edits snow --image a.png --stream --partial-images 0",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=file("a.png"), stream=True, partial_images=0)'),
    ("edits snow --image a.png --model gpt-image-2.6-flare --format svg --svg-effort low",
     'client.images.edit(prompt="snow", model="gpt-image-2.6-flare", image=file("a.png"), output_format="svg", '
     'svg={"reasoning": {"effort": "low"}})'),
    ("edits snow --image a.png --model gpt-image-2.6-flare --format svg --svg-model gpt-5.5 --svg-effort low",
     'client.images.edit(prompt="snow", model="gpt-image-2.6-flare", image=file("a.png"), output_format="svg", '
     'svg={"model": "gpt-5.5", "reasoning": {"effort": "low"}})'),
    ("edits snow --image a.png --model gpt-image-2.6-flare --format gif --frame-count 4 --frame-duration-ms 100",
     'client.images.edit(prompt="snow", model="gpt-image-2.6-flare", image=file("a.png"), output_format="gif", '
     "frame_count=4, frame_duration_ms=100)"),
    ("""edits snow --image a.png --extra-json '{"seed": 7, "hd": true, "loras": ["x", null, "y"], "deep": {"a": {"b": 1.5}}}'""",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=file("a.png"), '
     'extra_body={"seed": 7, "hd": True, "loras": ["x", None, "y"], "deep": {"a": {"b": 1.5}}})'),
    ("""edits snow --image a.png --extra-json '{"quality": null, "user": null, "svg": {"model": null}}'""",
     'client.images.edit(prompt="snow", model="gpt-image-2", image=file("a.png"), quality=None, user=None, '
     'svg={"model": None})'),
)  # fmt: skip
RESPONSES: Tuple[Tuple[str, str], ...] = (
    ("responses 'A lake'", f'client.responses.create(input="A lake", {TALK})'),
    ("responses x --tool-choice auto --model gpt-5.5",
     'client.responses.create(input="x", model="gpt-5.5", tools=[{"type": "image_generation"}], tool_choice="auto")'),
    ("responses x --tool-model gpt-image-2.6-sunburst --size 1024x1024 --quality max --background transparent --format webp "
     "--compression 80 --moderation low --complexity high --action generate",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "model": "gpt-image-2.6-sunburst", "size": "1024x1024", "quality": "max", '
     '"background": "transparent", "output_format": "webp", "output_compression": 80, "moderation": "low", '
     '"complexity": "high", "action": "generate"}])'),
    ("responses x --format svg --svg-model gpt-5.5 --svg-effort high",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "output_format": "svg", '
     '"svg": {"model": "gpt-5.5", "reasoning": {"effort": "high"}}}])'),
    ("responses x --stream --partial-images 2",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "partial_images": 2}], stream=True)'),
    ("responses x --background-mode --background opaque",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "background": "opaque"}], background=True)'),
    ("responses x --background-mode --stream", f'client.responses.create(input="x", background=True, stream=True, {TALK})'),
    ("responses x --background-mode --completion-window 8h --continuation-id job-7 --service-tier default",
     'client.responses.create(input="x", background=True, service_tier="default", '
     f'background_options={{"completion_window": "8h", "continuation_id": "job-7"}}, {TALK})'),
    ("responses x --background-mode --no-stream --completion-window soonest --service-tier priority",
     'client.responses.create(input="x", background=True, stream=False, service_tier="priority", '
     f'background_options={{"completion_window": "soonest"}}, {TALK})'),
    ("responses x --previous-response-id resp_1 --action edit",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "action": "edit"}], previous_response_id="resp_1")'),
    ("responses x --conversation conv_1 --max-tool-calls 2 --max-output-tokens 4000",
     f'client.responses.create(input="x", conversation="conv_1", max_tool_calls=2, max_output_tokens=4000, {TALK})'),
    ("responses x --instructions 'Be brief' --reasoning-effort low --no-store --safety-identifier u1 --user u2 "
     """--metadata-json '{"team": "red"}'""",
     'client.responses.create(input="x", instructions="Be brief", reasoning={"effort": "low"}, store=False, '
     f'safety_identifier="u1", user="u2", metadata={{"team": "red"}}, {TALK})'),
    ("responses 'An ad' --input-image a.png --input-image https://h.example/x --input-image file_id:file-1",
     f'client.responses.create({TALK}, input=[{{"role": "user", "content": [{PART}, '
     '{"type": "input_image", "image_url": data_url("a.png", "image/png"), "detail": "auto"}, '
     '{"type": "input_image", "image_url": "https://h.example/x", "detail": "auto"}, '
     '{"type": "input_image", "file_id": "file-1", "detail": "auto"}]}])'),
    ("responses 'An ad' --input-image b.jpg --input-image c.webp --input-detail original",
     f'client.responses.create({TALK}, input=[{{"role": "user", "content": [{PART}, '
     '{"type": "input_image", "image_url": data_url("b.jpg", "image/jpeg"), "detail": "original"}, '
     '{"type": "input_image", "image_url": data_url("c.webp", "image/webp"), "detail": "original"}]}])'),
    ("responses 'An ad' --input-image a.png --mask mask.png --tool-model house --input-fidelity high",
     'client.responses.create(model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation", "model": "house", "input_fidelity": "high", '
     '"input_image_mask": {"image_url": data_url("mask.png", "image/png")}}], '
     f'input=[{{"role": "user", "content": [{PART}, '
     '{"type": "input_image", "image_url": data_url("a.png", "image/png"), "detail": "auto"}]}])'),
    ("responses --input-text one --input-text two",
     f'client.responses.create({TALK}, input=[{{"role": "user", "content": ['
     '{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]}])'),
    ("""responses --extra-json '{"prompt": {"id": "pmpt_1", "variables": {"a": "b"}}}'""",
     f'client.responses.create({TALK}, prompt={{"id": "pmpt_1", "variables": {{"a": "b"}}}})'),
    ("""responses x --extra-json '{"tools": [{"type": "web_search"}], "truncation": "auto", "top_p": null}'""",
     'client.responses.create(input="x", model="gpt-5.4", tool_choice={"type": "image_generation"}, '
     'tools=[{"type": "image_generation"}, {"type": "web_search"}], truncation="auto", top_p=None)'),
    ("resume resp_1", 'client.responses.retrieve("resp_1")'),
    ("resume resp_1 --cancel", 'client.responses.cancel("resp_1")'),
    ("config --check", "client.models.list()"),
)  # fmt: skip
CALLS = (*GENERATIONS, *EDITS, *RESPONSES)
# A background stream that was cut behind event 5, and is taken up again.
TAKEN_UP = 'client.responses.retrieve("resp_1", stream=True, starting_after=5)'


def named(text: str) -> str:
    """Returns a data: URL with the name of the file whose bytes it holds in the place of its base64."""
    start, _, data = text.partition(";base64,")
    if not re.fullmatch(r"data:image/\w+", start):
        return text
    return f"{start};base64,<{file_of(base64.b64decode(data))}>"


def file_of(data: bytes) -> str:
    """Returns the name of the file that holds these bytes."""
    return next(name for name, held in FILES.items() if held == data)


def shown(value: Any) -> Any:
    """Returns a JSON tree with the names of files in the place of their base64."""
    if isinstance(value, dict):
        return {key: shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    return named(value) if isinstance(value, str) else value


def put_down(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Dict[str, Any]:
    """Returns a request as the golden file has it; `target` is the path below the base URL, with its query."""
    kept = {name: re.sub("boundary=.*", "boundary=…", headers[name]) for name in HEADERS if name in headers}
    path, _, query = target.partition("?")
    row: Dict[str, Any] = {"method": method, "path": path, "query": sorted(query.split("&")), "headers": kept}
    if kept.get("content-type", "").startswith("multipart/"):
        row["form"] = [
            {"name": part.name, "filename": part.filename, "content_type": part.type, "bytes_of": file_of(part.data)}
            if part.filename is not None
            else {"name": part.name, "value": part.data.decode()}
            for part in read_form(headers["content-type"], body)
        ]
    elif body:
        row["json"] = shown(json.loads(body))
    return row


# Where the program differs, on purpose.


def as_ours(row: Dict[str, Any]) -> Dict[str, Any]:
    """Returns what the program sends where the SDK sends this.

    A single picture is `image[]` too, which every server tried takes; and what has no body has no type.
    """
    row = {**row, "headers": dict(row["headers"])}
    if "form" in row:
        row["form"] = [{**part, "name": "image[]"} if part["name"] == "image" else part for part in row["form"]]
    elif "json" not in row:
        row["headers"].pop("content-type", None)
    return row


class SameAsTheSdk(ProgramTest):
    """Each command sends what the SDK sends for the same call."""

    golden: Dict[str, Dict[str, Any]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.golden = json.loads(GOLDEN.read_text(encoding="utf-8"))

    def setUp(self) -> None:
        super().setUp()
        for name, data in FILES.items():
            Path(name).write_bytes(data)

    def sent(self, transport: FakeTransport) -> Dict[str, Any]:
        """Returns the last request that left the program."""
        request, body = transport.requests[-1], transport.bodies[-1]
        headers = {name.lower(): str(value) for name, value in request.headers}
        return put_down(request.method, request.url.replace(gpt_image.OPENAI_URL, ""), headers, body)

    def test_each_call_is_the_sdk_s(self) -> None:
        for line, call in CALLS:
            with self.subTest(line):
                transport = FakeTransport(reply({"error": {"message": "no"}}, 400))
                ran = self.run_main(*shlex.split(line), transport=transport)
                self.assertEqual((ran.code, len(transport.requests)), (4, 1), ran.err)
                self.assertEqual(self.sent(transport), as_ours(self.golden[call]))

    def test_a_cut_stream_is_taken_up_as_the_sdk_does(self) -> None:
        begun = {"type": "response.created", "sequence_number": 5, "response": {"id": "resp_1", "status": "in_progress"}}
        transport = FakeTransport(reply(f"data: {json.dumps(begun)}\n\n"), reply({"error": {"message": "no"}}, 400))
        self.run_main("responses", "x", "--background-mode", "--stream", transport=transport)
        self.assertEqual(self.sent(transport), as_ours(self.golden[TAKEN_UP]))

    def test_the_golden_file_holds_these_calls_and_no_others(self) -> None:
        self.assertEqual(sorted(self.golden), sorted([TAKEN_UP, *(call for _, call in CALLS)]))


class Recorder(http.server.BaseHTTPRequestHandler):
    """Puts down every request, and answers with an empty object."""

    rows: List[Dict[str, Any]] = []

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.rows.append(put_down(self.command, self.path, headers, body))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET


def record() -> None:
    """Writes what the SDK that is installed sends for each call."""
    openai: Any = importlib.import_module("openai")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in FILES.items():
            Path(folder, name).write_bytes(data)
        names = {
            "client": openai.OpenAI(api_key="sk-test", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0),
            "file": lambda name: open(Path(folder, name), "rb"),
            "data_url": lambda name, kind: f"data:{kind};base64,{base64.b64encode(FILES[name]).decode()}",
        }
        for call in (*(call for _, call in CALLS), TAKEN_UP):
            eval(call, names)
            found[call] = Recorder.rows[-1]
    target = GOLDEN.with_name(f"sdk-{openai.__version__}.json")
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    server.shutdown()


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        unittest.main()
