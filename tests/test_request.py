"""Request bodies, field by field, as the types of the official SDK (openai 3.52.0) have them; and golden dry runs.

python3 -m tests.test_request --write        writes the dry runs of tests/golden anew; read the difference before you keep it
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import gpt_image
from tests.support import KEY, FakeTransport, ProgramTest, Ran, reply

GOLDEN = Path(__file__).resolve().parent / "golden"


def png(width: int, height: int, clear: bool = False) -> bytes:
    """Returns a PNG whose length is the same with every zlib, since it is stored; clear: with a transparent corner."""
    pixel = b"\x20\x40\x60\xff" if clear else b"\x20\x40\x60"
    rows = bytearray()
    for _ in range(height):
        rows += b"\0" + pixel * width
    if clear:
        rows[4] = 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 6 if clear else 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(rows), 0))
        + chunk(b"IEND", b"")
    )


JPEG = (
    b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00\xff\xd9"
)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\x07\xc0\x01\0" + bytes(8) + b"\0"
GIF = b"GIF89a\x08\0\x08\0\0\0\0,\0\0\0\0\x08\0\x08\0\0\x02\x01\x44\0;"


class Sent(NamedTuple):
    """What left the program: the request, its body, and the body as JSON if it is that."""

    request: gpt_image.Request
    body: bytes
    json: Any

    def header(self, name: str) -> str:
        """Returns the one header of that name."""
        found = [value for key, value in self.request.headers if key.lower() == name.lower()]
        assert len(found) == 1, (name, self.request.headers)
        return found[0].reveal() if isinstance(found[0], gpt_image.Secret) else found[0]


class FormPart(NamedTuple):
    """A part of a form: name, file name and type (None where the part has none), and its bytes."""

    name: str
    filename: Optional[str]
    type: Optional[str]
    data: bytes


PART_HEAD = re.compile(
    rb'Content-Disposition: form-data; name="([^"\r\n]+)"(?:; filename="([^"\r\n]+)"\r\nContent-Type: ([a-z0-9./+-]+))?'
)


def read_form(content_type: str, body: bytes) -> List[FormPart]:
    """Reads a multipart body and takes nothing that RFC 7578 does not have."""
    match = re.fullmatch(r"multipart/form-data; boundary=([A-Za-z0-9'()+_,./:=?-]{1,70})", content_type)
    assert match, content_type
    boundary = b"--" + match.group(1).encode()
    assert body.startswith(boundary + b"\r\n"), body[:100]
    assert body.endswith(b"\r\n" + boundary + b"--\r\n"), body[-100:]
    inner = body[len(boundary) + 2 : -len(boundary) - 6]
    parts = []
    for piece in inner.split(b"\r\n" + boundary + b"\r\n"):
        head, blank, data = piece.partition(b"\r\n\r\n")
        found = PART_HEAD.fullmatch(head)
        assert blank and found, head
        name, filename, kind = (None if text is None else os.fsdecode(text) for text in found.groups())
        parts.append(FormPart(name or "", filename, kind, data))
    return parts


class RequestTest(ProgramTest):
    """A test that looks at what is sent; the reply is a refusal, since no test here needs a picture."""

    def send(self, *argv: str, tries: int = 1, **options: Any) -> Sent:
        """Runs a call that must send exactly once (or `tries` times the same), and returns what it sent."""
        server = reply({"error": {"message": "busy"}}, 500)
        transport = FakeTransport(*[server] * (tries - 1), reply({"error": {"message": "no"}}, 400))
        ran = self.run_main(*argv, transport=transport, **options)
        self.assertEqual((ran.code, len(transport.requests)), (4, tries), ran.err)
        request, body = transport.requests[0], transport.bodies[0]
        for other in transport.bodies:
            self.assertEqual(other, body, "a second try sends the same bytes")
        sent = Sent(request, body, json.loads(body) if body[:1] == b"{" else None)
        self.assertEqual(sent.header("Content-Length"), str(len(body)))
        return sent

    def form(self, *argv: str, **options: Any) -> List[FormPart]:
        """Runs an edit that must be sent as a form, and returns its parts."""
        sent = self.send("edits", *argv, **options)
        return read_form(sent.header("Content-Type"), sent.body)

    def dry(self, *argv: str, code: int = 0) -> Ran:
        """Makes a dry run."""
        ran = self.run_main(*argv, "--dry-run", env={"OPENAI_API_KEY": ""})
        self.assertEqual(ran.code, code, ran.err)
        return ran

    def write(self, name: str, data: bytes) -> str:
        """Writes a file in the test's folder and returns its name."""
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name


# The published types, written down by hand: a type, a tuple of the words it may be, or a dict of fields.
# A name with ! is required there.
SVG = {"model!": str, "reasoning": {"effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max")}}
COMMON: Dict[str, Any] = {
    "background": ("transparent", "opaque", "auto"), "complexity": ("low", "medium", "high"), "frame_count": int,
    "frame_duration_ms": int, "model": str, "moderation": ("low", "auto"), "output_compression": int,
    "output_format": ("png", "webp", "jpeg", "gif", "svg"), "partial_images": int,
    "quality": ("low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"), "size": str, "svg": SVG,
}  # fmt: skip
IMAGES: Dict[str, Any] = {
    **COMMON, "prompt!": str, "n": int, "response_format": ("url", "b64_json"), "safety_identifier": str,
    "style": ("vivid", "natural"), "user": str, "stream": bool,
}  # fmt: skip
EDITS = {key: kind for key, kind in IMAGES.items() if key not in ("style", "moderation")}
EDITS["input_fidelity"] = ("high", "low")
# The JSON form of edits is in the OpenAPI description only.
REFERENCE = {"image_url": str, "file_id": str}
EDITS_JSON = {**EDITS, "moderation": ("low", "auto"), "images!": [REFERENCE], "mask": REFERENCE}
TOOL = {
    **{key: kind for key, kind in COMMON.items()}, "type!": ("image_generation",),
    "action": ("generate", "edit", "auto"),
    "input_fidelity": ("high", "low"), "input_image_mask": REFERENCE,
    "quality": ("low", "medium", "high", "xhigh", "max", "auto"),
}  # fmt: skip
INPUT_TEXT = {"type!": ("input_text",), "text!": str}
INPUT_IMAGE = {
    "type!": ("input_image",), "detail!": ("low", "high", "auto", "original"), "image_url": str, "file_id": str,
}  # fmt: skip
MESSAGE = {"role!": ("user", "assistant", "system", "developer"), "content!": [(INPUT_TEXT, INPUT_IMAGE)]}
RESPONSE: Dict[str, Any] = {
    "background": bool, "input": (str, [MESSAGE]), "instructions": str, "metadata": dict, "model": str,
    "max_output_tokens": int, "max_tool_calls": int, "conversation": str, "previous_response_id": str,
    "service_tier": ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
    "background_options": {"completion_window": ("soonest", "2h", "8h"), "continuation_id": str},
    "reasoning": {"effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max")},
    "safety_identifier": str, "store": bool, "stream": bool, "tools": [TOOL], "user": str,
    "tool_choice": (("auto", "required", "none"), {"type!": ("image_generation",)},
                    {"type!": str, "mode": str, "tools": list}),
}  # fmt: skip


def misfit(value: Any, kind: Any, at: str = "body") -> str:
    """Returns where a value is not of a kind of the tables above, or nothing."""
    if isinstance(kind, type):
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        return "" if fits else f"{at}: {value!r} is no {kind.__name__}"
    if isinstance(kind, tuple):
        if all(isinstance(word, str) for word in kind):
            return "" if isinstance(value, str) and value in kind else f"{at}: {value!r} is not one of {kind}"
        troubles = [misfit(value, each, at) for each in kind]
        return "" if "" in troubles else "; ".join(troubles)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{at}: {value!r} is no list"
        return next(filter(None, (misfit(row, kind[0], f"{at}[{i}]") for i, row in enumerate(value))), "")
    if not isinstance(value, dict):
        return f"{at}: {value!r} is no object"
    names = {name.rstrip("!"): inner for name, inner in kind.items()}
    for name in kind:
        if name.endswith("!") and name[:-1] not in value:
            return f"{at}.{name[:-1]} is missing"
    unknown = [name for name in value if name not in names]
    if unknown:
        return f"{at}.{unknown[0]} is no field"
    return next(filter(None, (misfit(inner, names[name], f"{at}.{name}") for name, inner in value.items())), "")


Options = Union[str, List[str]]
# Options of the Images routes and of the tool, and what they add where the API has them.
DRAWING: Tuple[Tuple[Options, Dict[str, Any]], ...] = (
    ("--size 1536x1024", {"size": "1536x1024"}),
    ("--size AUTO", {"size": "auto"}),
    ("--quality max", {"quality": "max"}),
    ("--background opaque", {"background": "opaque"}),
    ("--background transparent", {"background": "transparent"}),
    ("--format webp", {"output_format": "webp"}),
    ("--output-format jpeg", {"output_format": "jpeg"}),
    ("--format jpg", {"output_format": "jpeg"}),
    ("--format png", {"output_format": "png"}),
    ("--format webp --compression 0", {"output_format": "webp", "output_compression": 0}),
    ("--format jpeg --output-compression 100", {"output_format": "jpeg", "output_compression": 100}),
    ("--moderation low", {"moderation": "low"}),
    ("--complexity high", {"complexity": "high"}),
    ("--format gif --frame-count 16", {"output_format": "gif", "frame_count": 16}),
    ("--format gif --frame-duration-ms 100", {"output_format": "gif", "frame_duration_ms": 100}),
    ("--format svg --svg-model gpt-5.4", {"output_format": "svg", "svg": {"model": "gpt-5.4"}}),
    ("--format svg --svg-model gpt-5.4 --svg-effort low",
     {"output_format": "svg", "svg": {"model": "gpt-5.4", "reasoning": {"effort": "low"}}}),
)  # fmt: skip
# What only the Images routes have, and what both kinds have at the top level.
CALLING: Tuple[Tuple[Options, Dict[str, Any]], ...] = (
    ("--n 2", {"n": 2}),
    ("--response-format b64_json", {"response_format": "b64_json"}),
)  # fmt: skip
TOP: Tuple[Tuple[Options, Dict[str, Any]], ...] = (
    ("--stream", {"stream": True}),
    ("--no-stream", {"stream": False}),
    ("--safety-identifier u-1", {"safety_identifier": "u-1"}),
    ("--user someone", {"user": "someone"}),
)


def words(options: Options) -> List[str]:
    """Returns options as arguments."""
    return options.split() if isinstance(options, str) else options


class GenerationsTest(RequestTest):
    """POST /images/generations."""

    def test_a_bare_prompt_sends_prompt_and_model_and_nothing_else(self) -> None:
        sent = self.send("generations", "A lake")
        self.assertEqual(sent.json, {"prompt": "A lake", "model": "gpt-image-2"})
        self.assertEqual(
            (sent.request.method, sent.request.url), ("POST", "https://api.openai.com/v1/images/generations")
        )
        self.assertEqual(sent.header("Content-Type"), "application/json")
        self.assertEqual(sent.header("Authorization"), f"Bearer {KEY}")

    def test_each_option_lands_in_its_field_with_its_type(self) -> None:
        for options, fields in (*DRAWING, *CALLING, *TOP, ("--style vivid", {"style": "vivid"})):
            with self.subTest(options=options):
                sent = self.send("generations", "A lake", "--model", "house-model", *words(options))
                self.assertEqual(sent.json, {"prompt": "A lake", "model": "house-model", **fields})
                self.assertEqual(misfit(sent.json, IMAGES), "")

    def test_previews_are_asked_for_with_a_stream(self) -> None:
        sent = self.send("generations", "A lake", "--stream", "--partial-images", "0")
        self.assertEqual(sent.json, {"prompt": "A lake", "model": "gpt-image-2", "stream": True, "partial_images": 0})
        self.assertIn("text/event-stream", sent.header("Accept"))

    def test_every_option_at_once_is_one_body(self) -> None:
        sent = self.send(
            "generations", "A lake",
            *"--model gpt-image-2.6-flare --n 3 --size 2048x1152 --quality xhigh --background opaque "
            "--format webp --compression 80 --moderation low --complexity medium --safety-identifier u1 "
            "--user u2".split(),
        )  # fmt: skip
        self.assertEqual(sent.json, {
            "prompt": "A lake", "model": "gpt-image-2.6-flare", "n": 3, "size": "2048x1152", "quality": "xhigh",
            "background": "opaque", "output_format": "webp", "output_compression": 80, "moderation": "low",
            "complexity": "medium", "safety_identifier": "u1", "user": "u2",
        })  # fmt: skip
        self.assertEqual(misfit(sent.json, IMAGES), "")

    def test_the_suffix_of_the_output_asks_for_its_format(self) -> None:
        for name, format in (("a.webp", "webp"), ("a.jpg", "jpeg"), ("a.JPEG", "jpeg")):
            with self.subTest(name):
                self.assertEqual(self.send("generations", "x", "--output", name).json["output_format"], format)
        # The server's default needs no word: gateways that do not know the field are better off without it.
        self.assertNotIn("output_format", self.send("generations", "x", "--output", "a.png").json)

    def test_prompts_arrive_as_they_are(self) -> None:
        text = 'Zeilen\nund "Anführung" \\ 图 \U0001f3a8 </script> %s {index} <0123:0>'
        self.write("prompt.txt", b"\xef\xbb\xbf" + text.encode() + b"\n")
        for argv, stdin in (([text], ""), (["--prompt", text], ""), (["--prompt-file", "prompt.txt"], ""),
                            (["--prompt-file", "-"], text + "\n")):  # fmt: skip
            with self.subTest(argv):
                self.assertEqual(self.send("generations", *argv, stdin=stdin).json["prompt"], text)

    def test_headers_carry_organisation_project_and_what_the_user_adds(self) -> None:
        sent = self.send("generations", "x", "--organization", "org-1", "--project", "proj-1", "--header",
                         "X-Team: red",
                         "--header", "User-Agent: mine/1")  # fmt: skip
        for name, value in (("OpenAI-Organization", "org-1"), ("OpenAI-Project", "proj-1"), ("X-Team", "red"),
                            ("User-Agent", "mine/1")):  # fmt: skip
            self.assertEqual(sent.header(name), value)

    def test_a_base_url_keeps_its_path_and_query(self) -> None:
        for base, url in (
            ("http://localhost:4000/v1/", "http://localhost:4000/v1/images/generations"),
            ("https://r.openai.azure.com/openai/v1/?api-version=preview",
             "https://r.openai.azure.com/openai/v1/images/generations?api-version=preview"),
        ):  # fmt: skip
            with self.subTest(base):
                self.assertEqual(self.send("generations", "x", "--base-url", base).request.url, url)


class EditsFormTest(RequestTest):
    """POST /images/edits as multipart/form-data."""

    def setUp(self) -> None:
        super().setUp()
        self.a = self.write("a.png", png(8, 8))
        self.b = self.write("b.png", png(9, 9))
        self.mask = self.write("mask.png", png(8, 8, clear=True))

    def pairs(self, parts: Sequence[FormPart]) -> List[Tuple[str, str]]:
        """Returns the text fields of a form."""
        return sorted((part.name, part.data.decode()) for part in parts if part.filename is None)

    def test_a_bare_edit_sends_picture_prompt_and_model_and_nothing_else(self) -> None:
        parts = self.form("snow", "--image", self.a)
        self.assertEqual(self.pairs(parts), [("model", "gpt-image-2"), ("prompt", "snow")])
        self.assertEqual(parts[-1], FormPart("image[]", "a.png", "image/png", Path(self.a).read_bytes()))
        self.assertEqual(len(parts), 3)

    def test_each_option_lands_in_its_field(self) -> None:
        for options, fields in (*DRAWING, *CALLING, *TOP, ("--input-fidelity high", {"input_fidelity": "high"})):
            if "moderation" in fields:
                continue  # the form has no such field: that edit takes the JSON form
            with self.subTest(options=options):
                parts = self.form("snow", "--image", self.a, "--model", "house-model", *words(options))
                expected = {"prompt": "snow", "model": "house-model"}
                for name, value in fields.items():
                    if name == "svg":
                        expected["svg[model]"] = value["model"]
                        if "reasoning" in value:
                            expected["svg[reasoning][effort]"] = value["reasoning"]["effort"]
                    else:
                        expected[name] = value if isinstance(value, str) else json.dumps(value)
                self.assertEqual(self.pairs(parts), sorted(expected.items()))
                self.assertEqual(misfit({"prompt": "snow", "model": "house-model", **fields}, EDITS), "")

    def test_field_styles_of_several_pictures(self) -> None:
        for style, names in (
            ([], ["image[]", "image[]"]),
            (["--image-field-style", "brackets"], ["image[]", "image[]"]),
            (["--image-field-style", "simple"], ["image", "image"]),
            (["--image-field-style", "indexed"], ["image[0]", "image[1]"]),
        ):
            with self.subTest(style):
                parts = self.form("mix", "--image", self.a, "--input", self.b, "--mask", self.mask, *style)
                files = [part for part in parts if part.filename]
                self.assertEqual([part.name for part in files], [*names, "mask"])
                self.assertEqual(
                    [part.data for part in files], [Path(name).read_bytes() for name in (self.a, self.b, self.mask)]
                )

    def test_a_file_part_tells_its_real_type_whatever_its_name(self) -> None:
        for name, data, kind in (
            ("a.jpg", JPEG, "image/jpeg"), ("a.jpeg", JPEG, "image/jpeg"), ("b.webp", WEBP, "image/webp"),
            ("c.PNG", png(4, 4), "image/png"), ("really-a.png", JPEG, "image/jpeg"), ("no-suffix", WEBP, "image/webp"),
        ):  # fmt: skip
            with self.subTest(name):
                part = self.form("x", "--image", self.write("in/" + name, data))[-1]
                self.assertEqual((part.filename, part.type, part.data), (name, kind, data))

    def test_odd_file_names_cannot_break_out_of_the_header(self) -> None:
        names = [
            ("图.webp", "图.webp"),
            ("a b'c.png", "a b'c.png"),
            ("x;y=z.png", "x;y=z.png"),
            ("ü%22.png", "ü%22.png"),
        ]
        if os.name == "posix":
            names += [('we"ird.png', "we%22ird.png"),
                      ("a\r\nX-Evil: 1\r\n\r\nb.png", "a%0D%0AX-Evil: 1%0D%0A%0D%0Ab.png"),
                      ("\n.png", "%0A.png"),
                      # What parsers take for the end of a quoted text, for a folder, or for no header at all.
                      ("a\\", "a_"), ("a\\b.png", "a_b.png"), ('a\\"b.png', "a_%22b.png"),
                      ("a\tb\x01\x1b\x7f\x85.png", "a_b____.png")]  # fmt: skip
        if sys.platform == "linux":
            names.append((os.fsdecode(b"caf\xe9.png"), "caf_.png"))
        for name, quoted in names:
            with self.subTest(ascii(name)):
                data = WEBP if name.endswith("webp") else png(5, 5)
                try:
                    self.write("odd/" + name, data)
                except (OSError, UnicodeError):
                    continue  # this file system has no such names
                part = self.form("x", "--image", "odd/" + name)[-1]
                self.assertEqual((part.name, part.filename, part.data), ("image[]", quoted, data))
                self.dry("edits", "x", "--image", "odd/" + name)

    def test_markup_goes_into_a_field_of_its_own(self) -> None:
        parts = self.form("x", "--model", "gpt-image-2.5-flare", "--image", self.a, "--markup", self.mask)
        self.assertEqual([part.name for part in parts if part.filename], ["image[]", "markup"])

    def test_mask_auto_is_a_word_in_the_form(self) -> None:
        parts = self.form("x", "--image", self.a, "--mask", "auto")
        self.assertIn(("mask", "auto"), self.pairs(parts))
        self.assertEqual([part.name for part in parts if part.filename], ["image[]"])

    def test_extra_fields_go_into_the_form_and_replace_ours(self) -> None:
        extra = {
            "quality": "ultra",
            "seed": 7,
            "hd": True,
            "loras": ["x", "y"],
            "image_url": "https://h/x.png",
            "deep": {"a": {"b": 1.5}},
        }
        parts = self.form("x", "--image", self.a, "--quality", "low", "--extra-json", json.dumps(extra))
        self.assertEqual(self.pairs(parts), sorted([
            ("prompt", "x"), ("model", "gpt-image-2"), ("quality", "ultra"), ("seed", "7"), ("hd", "true"),
            ("loras[]", "x"),
            ("loras[]", "y"), ("image_url", "https://h/x.png"), ("deep[a][b]", "1.5"),
        ]))  # fmt: skip

    def test_null_leaves_a_field_out(self) -> None:
        extra = {"model": None, "quality": None, "svg": {"model": None}, "loras": [None, "x"]}
        parts = self.form("x", "--image", self.a, "--quality", "low", "--extra-json", json.dumps(extra))
        self.assertEqual(self.pairs(parts), [("loras[]", "x"), ("prompt", "x")])

    def test_texts_come_before_files_whatever_brought_them(self) -> None:
        extra = json.dumps({"seed": 7})
        for mask in (self.mask, "auto"):
            parts = self.form("x", "--image", self.a, "--mask", mask, "--size", "auto", "--extra-json", extra)
            files = [part.filename is not None for part in parts]
            self.assertEqual(files, sorted(files), [part.name for part in parts])

    def test_the_effort_of_an_svg_needs_no_model(self) -> None:
        parts = self.form("x", "--image", self.a, *"--model gpt-image-2.6-flare --format svg --svg-effort low".split())
        self.assertIn(("svg[reasoning][effort]", "low"), self.pairs(parts))

    def test_sixteen_pictures_keep_their_order(self) -> None:
        names = [self.write(f"in/{i}.png", png(4, 4 + i)) for i in range(16)]
        parts = self.form("x", *(word for name in names for word in ("--image", name)))
        self.assertEqual([part.filename for part in parts if part.filename], [f"{i}.png" for i in range(16)])

    def test_text_that_looks_like_a_boundary_stays_text(self) -> None:
        text = '--gpt-image-00\r\nContent-Disposition: form-data; name="model"\r\n\r\nevil\r\n--'
        parts = self.form(text, "--image", self.a)
        self.assertEqual(self.pairs(parts), [("model", "gpt-image-2"), ("prompt", text)])


class EditsJsonTest(RequestTest):
    """POST /images/edits as JSON, which inputs that are no local files need."""

    def setUp(self) -> None:
        super().setUp()
        self.a = self.write("a.png", png(8, 8))
        self.mask = self.write("mask.png", png(8, 8, clear=True))

    def url(self, name: str, kind: str = "image/png") -> str:
        """Returns a file as a data: URL."""
        return f"data:{kind};base64," + base64.b64encode(Path(name).read_bytes()).decode()

    def test_urls_and_ids_and_local_files_become_references(self) -> None:
        jpeg = self.write("b.jpg", JPEG)
        sent = self.send("edits", "mix", "--image", "https://h.example/x.png?a=1&b=2", "--image", "file_id:file-1",
                         "--image", self.a,
                         "--image", jpeg)  # fmt: skip
        self.assertEqual(sent.header("Content-Type"), "application/json")
        self.assertEqual(sent.json, {
            "prompt": "mix", "model": "gpt-image-2",
            "images": [{"image_url": "https://h.example/x.png?a=1&b=2"}, {"file_id": "file-1"},
                       {"image_url": self.url(self.a)},
                       {"image_url": self.url(jpeg, "image/jpeg")}],
        })  # fmt: skip
        self.assertEqual(misfit(sent.json, EDITS_JSON), "")

    def test_masks_of_every_kind(self) -> None:
        for mask, reference in (
            ("https://h.example/m.png", {"image_url": "https://h.example/m.png"}),
            ("file_id:file-2", {"file_id": "file-2"}),
            (self.mask, {"image_url": self.url(self.mask)}),
        ):  # fmt: skip
            with self.subTest(mask):
                sent = self.send("edits", "x", "--image", "file_id:file-1", "--mask", mask)
                self.assertEqual((sent.json["images"], sent.json["mask"]), ([{"file_id": "file-1"}], reference))

    def test_each_option_lands_in_its_field_with_its_type(self) -> None:
        for options, fields in (*DRAWING, *CALLING, *TOP, ("--input-fidelity low", {"input_fidelity": "low"})):
            with self.subTest(options=options):
                sent = self.send("edits", "x", "--image", "file_id:f", "--model", "house-model", *words(options))
                self.assertEqual(
                    sent.json, {"prompt": "x", "model": "house-model", "images": [{"file_id": "f"}], **fields}
                )
                self.assertEqual(misfit(sent.json, EDITS_JSON), "")

    def test_moderation_takes_the_json_form(self) -> None:
        sent = self.send("edits", "x", "--image", self.a, "--moderation", "low")
        self.assertEqual(
            sent.json,
            {"prompt": "x", "model": "gpt-image-2", "moderation": "low", "images": [{"image_url": self.url(self.a)}]},
        )

    def test_a_drive_letter_is_no_scheme(self) -> None:
        ran = self.run_main("edits", "x", "--image", "C:\\pictures\\a.png", "--dry-run")
        self.assertEqual((ran.code, ran.error["rule"]), (2, "image-unreadable"))


class ResponsesTest(RequestTest):
    """POST /responses with the hosted tool."""

    BARE = {"model": "gpt-5.4", "input": "A lake", "tools": [{"type": "image_generation"}],
            "tool_choice": {"type": "image_generation"}}  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        self.a = self.write("a.png", png(8, 8))
        self.mask = self.write("mask.png", png(8, 8, clear=True))
        self.image_url = "data:image/png;base64," + base64.b64encode(Path(self.a).read_bytes()).decode()
        self.mask_url = "data:image/png;base64," + base64.b64encode(Path(self.mask).read_bytes()).decode()

    def part(self, **reference: str) -> Dict[str, str]:
        """Returns an input_image part."""
        return {"type": "input_image", "detail": "auto", **reference}

    def content(self, *argv: str) -> List[Dict[str, str]]:
        """Returns the content parts of the one message of a response's input."""
        sent = self.send("responses", *argv)
        self.assertEqual(misfit(sent.json, RESPONSE), "")
        self.assertEqual([message["role"] for message in sent.json["input"]], ["user"])
        content: List[Dict[str, str]] = sent.json["input"][0]["content"]
        return content

    def test_a_bare_prompt_is_a_plain_string(self) -> None:
        for argv in (["A lake"], ["--prompt", "A lake"], ["--input-text", "A lake"]):
            with self.subTest(argv):
                sent = self.send("responses", *argv)
                self.assertEqual(sent.json, self.BARE)
                self.assertEqual(sent.request.url, "https://api.openai.com/v1/responses")

    def test_each_option_of_the_tool_lands_in_the_tool(self) -> None:
        rows = (*DRAWING, ("--action generate", {"action": "generate"}), ("--action auto", {"action": "auto"}))
        for options, fields in rows:
            with self.subTest(options=options):
                sent = self.send("responses", "A lake", "--tool-model", "house-model", *words(options))
                tool = {"type": "image_generation", "model": "house-model", **fields}
                self.assertEqual(sent.json, {**self.BARE, "tools": [tool]})
                self.assertEqual(misfit(sent.json, RESPONSE), "")

    def test_each_option_of_the_response_lands_at_the_top(self) -> None:
        metadata = {"a": "b", "图": '"'}
        rows: Tuple[Tuple[Options, Dict[str, Any]], ...] = (
            *TOP,
            ("--model gpt-5.5", {"model": "gpt-5.5"}),
            ("--previous-response-id resp_1", {"previous_response_id": "resp_1"}),
            (["--instructions", "Be brief"], {"instructions": "Be brief"}),
            ("--background-mode", {"background": True}),
            ("--store", {"store": True}),
            ("--no-store", {"store": False}),
            (["--metadata-json", json.dumps(metadata)], {"metadata": metadata}),
            ("--reasoning-effort high", {"reasoning": {"effort": "high"}}),
            ("--conversation conv_1", {"conversation": "conv_1"}),
            ("--max-tool-calls 2 --max-output-tokens 4000", {"max_tool_calls": 2, "max_output_tokens": 4000}),
            ("--service-tier flex", {"service_tier": "flex"}),
            ("--background-mode --completion-window 8h --continuation-id job-7 --service-tier default",
             {"background": True, "background_options": {"completion_window": "8h", "continuation_id": "job-7"},
              "service_tier": "default"}),
            ("--background-mode --stream --completion-window soonest",
             {"background": True, "stream": True, "background_options": {"completion_window": "soonest"}}),
            ("--conversation conv_1 --action edit",
             {"conversation": "conv_1", "tools": [{"type": "image_generation", "action": "edit"}]}),
            ("--background-mode --background opaque",
             {"background": True, "tools": [{"type": "image_generation", "background": "opaque"}]}),
            ("--stream --partial-images 2",
             {"stream": True, "tools": [{"type": "image_generation", "partial_images": 2}]}),
        )  # fmt: skip
        for options, fields in rows:
            with self.subTest(options=options):
                sent = self.send("responses", "A lake", *words(options))
                self.assertEqual(sent.json, {**self.BARE, **fields})
                self.assertEqual(misfit(sent.json, RESPONSE), "")

    def test_forms_of_the_tool_choice(self) -> None:
        allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "image_generation"}]}
        self.write("choice.json", json.dumps(allowed).encode())
        for text, choice in (
            ("auto", "auto"), ("required", "required"), ("none", "none"),
            ("image_generation", {"type": "image_generation"}),
            (json.dumps(allowed), allowed),
        ):  # fmt: skip
            with self.subTest(text):
                sent = self.send("responses", "A lake", "--tool-choice", text)
                self.assertEqual(sent.json["tool_choice"], choice)
                self.assertEqual(misfit(sent.json, RESPONSE), "")

    def test_inputs_become_content_parts(self) -> None:
        gif = self.write("still.gif", GIF)
        gif_url = "data:image/gif;base64," + base64.b64encode(GIF).decode()
        for options, reference in (
            (["--input-image", self.a], {"image_url": self.image_url}),
            (["--input-image", gif], {"image_url": gif_url}),
            (["--input-image", "https://h.example/x.png"], {"image_url": "https://h.example/x.png"}),
            (["--input-image", "file_id:file-1"], {"file_id": "file-1"}),
            (["--input-image-url", "http://h.example/x"], {"image_url": "http://h.example/x"}),
            (["--input-image-file-id", "file-1"], {"file_id": "file-1"}),
            (["--input-image-data-url", self.image_url], {"image_url": self.image_url}),
        ):
            with self.subTest(options):
                parts = self.content("An ad", *options)
                self.assertEqual(parts, [{"type": "input_text", "text": "An ad"}, self.part(**reference)])

    def test_the_detail_of_each_input_picture(self) -> None:
        for detail in ("low", "high", "auto", "original"):
            parts = self.content("x", "--input-image", self.a, "--input-image", "file_id:f", "--input-detail", detail)
            self.assertEqual([part.get("detail") for part in parts], [None, detail, detail])

    def test_each_kind_of_picture_may_come_more_than_once(self) -> None:
        for name, values, key in (
            ("url", ("https://h.example/1", "https://h.example/2"), "image_url"), ("file-id", ("f1", "f2"), "file_id"),
            ("data-url", (self.image_url, self.image_url), "image_url"),
        ):  # fmt: skip
            parts = self.content("An ad", *(word for value in values for word in (f"--input-image-{name}", value)))
            self.assertEqual([part[key] for part in parts[1:]], list(values))

    def test_several_texts_and_pictures_are_all_there(self) -> None:
        parts = self.content(
            "--input-text", "one", "--input-text", "two", "--input-image", self.a, "--input-image", "file_id:f"
        )
        self.assertEqual(parts, [
            {"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"},
            self.part(image_url=self.image_url), self.part(file_id="f"),
        ])  # fmt: skip

    def test_masks_stand_in_the_tool(self) -> None:
        for options, reference in (
            (["--mask", self.mask], {"image_url": self.mask_url}),
            (["--mask", "https://h.example/m.png"], {"image_url": "https://h.example/m.png"}),
            (["--mask", "file_id:file-1"], {"file_id": "file-1"}),
            (["--mask-url", "https://h.example/m"], {"image_url": "https://h.example/m"}),
            (["--mask-file-id", "file-1"], {"file_id": "file-1"}),
        ):
            with self.subTest(options):
                sent = self.send("responses", "x", "--input-image", self.a, "--action", "edit", *options)
                self.assertEqual(
                    sent.json["tools"], [{"type": "image_generation", "action": "edit", "input_image_mask": reference}]
                )
                self.assertEqual(misfit(sent.json, RESPONSE), "")

    def test_input_fidelity_of_a_model_that_takes_it(self) -> None:
        sent = self.send(
            "responses", "x", "--input-image", self.a, "--tool-model", "gpt-image-1.5", "--input-fidelity", "high"
        )
        self.assertEqual(
            sent.json["tools"], [{"type": "image_generation", "model": "gpt-image-1.5", "input_fidelity": "high"}]
        )


class ExtraJsonTest(RequestTest):
    """--extra-json adds to the body, and replaces what is ours."""

    def test_fields_are_added_replaced_and_merged(self) -> None:
        for route, options, extra, fields in (
            ("generations", "--n 2", {"n": 7, "seed": 1}, {"prompt": "x", "model": "gpt-image-2", "n": 7, "seed": 1}),
            ("generations", "", {"prompt": "other"}, {"prompt": "other", "model": "gpt-image-2"}),
            ("generations", "--model gpt-image-2.6-flare --format svg --svg-model m",
             {"svg": {"reasoning": {"effort": "low"}}},
             {"prompt": "x", "model": "gpt-image-2.6-flare", "output_format": "svg",
              "svg": {"model": "m", "reasoning": {"effort": "low"}}}),
            ("responses", "--size 1024x1024", {"tools": [{"type": "image_generation", "size": "64x64"}]},
             {**ResponsesTest.BARE, "input": "x", "tools": [{"type": "image_generation", "size": "64x64"}]}),
            ("responses", "", {"tools": [{"type": "web_search"}], "max_output_tokens": 5},
             {**ResponsesTest.BARE, "input": "x", "tools": [{"type": "image_generation"}, {"type": "web_search"}],
              "max_output_tokens": 5}),
            ("responses", "", {"input": [{"role": "user", "content": "y"}], "tool_choice": "auto"},
             {**ResponsesTest.BARE, "input": [{"role": "user", "content": "y"}], "tool_choice": "auto"}),
        ):  # fmt: skip
            with self.subTest(route=route, extra=extra):
                sent = self.send(route, "x", *options.split(), "--extra-json", json.dumps(extra))
                self.assertEqual(sent.json, fields)

    def test_null_in_a_json_body_is_sent_as_typed(self) -> None:
        sent = self.send("generations", "x", "--quality", "low", "--extra-json", '{"quality": null, "seed": null}')
        self.assertEqual(sent.json, {"prompt": "x", "model": "gpt-image-2", "quality": None, "seed": None})

    def test_a_prompt_template_of_a_response_takes_the_place_of_the_input(self) -> None:
        template, bare = {"prompt": {"id": "pmpt_1", "variables": {"a": "b"}}}, dict(ResponsesTest.BARE)
        del bare["input"]
        self.assertEqual(self.send("responses", "--extra-json", json.dumps(template)).json, {**bare, **template})
        sent = self.send("responses", "A lake", "--extra-json", json.dumps(template))
        self.assertEqual(sent.json, {**ResponsesTest.BARE, **template}, "what was typed is sent all the same")

    def test_it_may_stand_in_a_file_and_the_dry_run_shows_it(self) -> None:
        self.write("extra.json", b'\xef\xbb\xbf{"seed": 1}')
        self.assertEqual(self.send("generations", "x", "--extra-json", "@extra.json").json["seed"], 1)
        ran = self.dry("generations", "x", "--extra-json", '{"quality": "ultra", "seed": 2}', "--quality", "low")
        self.assertEqual((ran.json["body"]["quality"], ran.json["body"]["seed"]), ("ultra", 2))

    def test_what_it_touches_is_not_checked(self) -> None:
        for extra in ({"quality": "ultra"}, {"size": "7x7"}, {"n": 99}, {"background": "plaid"},
                      {"output_format": "bmp"},
                      {"model": "dall-e-3"}):  # fmt: skip
            with self.subTest(extra):
                self.dry("generations", "x", "--extra-json", json.dumps(extra))

    def test_odd_shapes_are_sent_or_refused_and_never_a_bug(self) -> None:
        odd: List[Any] = [None, 5, "x", [], {}, ["x"], [None], [5], [[]], {"type": "image_generation"}, [{}],
                          [{"type": 5}],
                          [{"type": "image_generation"}, {"type": "image_generation"}]]  # fmt: skip
        for key in (
            "tools",
            "n",
            "model",
            "stream",
            "input",
            "prompt",
            "partial_images",
            "images",
            "image",
            "svg",
            "reasoning",
        ):
            for turn, value in enumerate(odd):
                both = ("generations", "responses")
                for route in both if key in ("tools", "input", "images", "image") else both[turn % 2 :][:1]:
                    with self.subTest(route=route, extra={key: value}):
                        ran = self.run_main(route, "x", "--extra-json", json.dumps({key: value}), "--dry-run")
                        self.assertIn(ran.code, (0, 2), ran.err[-300:])

    def test_what_is_no_object_is_refused(self) -> None:
        for text in ("[]", "5", "{", "@missing.json", "null", '"x"'):
            with self.subTest(text):
                self.assertEqual(self.run_main("generations", "x", "--extra-json", text, "--dry-run").code, 2)


class ChatTest(RequestTest):
    """--protocol openai_chat, for gateways that have no Images routes."""

    def test_a_prompt_is_a_plain_message(self) -> None:
        sent = self.send("generations", "A lake", "--protocol", "openai_chat", "--model", "flux")
        self.assertEqual(sent.json, {"model": "flux", "messages": [{"role": "user", "content": "A lake"}]})
        self.assertEqual(sent.request.url, "https://api.openai.com/v1/chat/completions")

    def test_the_environment_may_choose_it(self) -> None:
        sent = self.send("generations", "A lake", env={"OPENAI_IMAGE_PROTOCOL": "openai_chat"})
        self.assertTrue(sent.request.url.endswith("/chat/completions"))

    def test_pictures_are_image_url_parts(self) -> None:
        name = self.write("a.png", png(8, 8))
        url = "data:image/png;base64," + base64.b64encode(png(8, 8)).decode()
        sent = self.send("edits", "snow", "--image", name, "--image", "https://h.example/x.jpg", "--protocol",
                         "openai_chat", "--stream",
                         "--user", "u")  # fmt: skip
        self.assertEqual(sent.json, {
            "model": "gpt-image-2", "stream": True, "user": "u",
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "snow"}, {"type": "image_url", "image_url": {"url": url}},
                {"type": "image_url", "image_url": {"url": "https://h.example/x.jpg"}},
            ]}],
        })  # fmt: skip

    def test_extra_fields_are_merged(self) -> None:
        sent = self.send(
            "generations", "x", "--protocol", "openai_chat", "--extra-json", '{"modalities": ["image", "text"]}'
        )
        self.assertEqual(sent.json["modalities"], ["image", "text"])

    def test_what_chat_cannot_carry_is_refused_and_not_dropped(self) -> None:
        name, mask = self.write("a.png", png(8, 8)), self.write("m.png", png(8, 8, clear=True))
        rows = [("generations", options) for options, _ in DRAWING] + [
            ("generations", "--n 2"), ("generations", "--stream --partial-images 1"),
            ("generations", "--response-format url"),
            ("edits", f"--image {name} --mask {mask}"), ("edits", f"--image {name} --mask auto"),
            ("edits", f"--image {name} --mask-box 0,0,4,4"), ("edits", f"--image {name} --markup {mask}"),
            ("edits", f"--image {name} --input-fidelity high"), ("edits", "--image file_id:file-1"),
        ]  # fmt: skip
        for route, options in rows:
            with self.subTest(route=route, options=options):
                ran = self.run_main(route, "x", "--model", "house-model", *words(options), "--protocol", "openai_chat")
                self.assertEqual(ran.code, 2, ran.out)
                rules = [row["rule"] for row in ran.error["problems"]]
                self.assertTrue(any("chat" in rule for rule in rules), rules)


class BodyTest(RequestTest):
    """A body can be sent again, its length is known, and what a dry run tells of it is true."""

    def setUp(self) -> None:
        super().setUp()
        self.names = [self.write(f"in/{i}.png", png(8, 8) + bytes(i)) for i in range(7)]  # every remainder modulo 3
        self.big = self.write("in/big.png", png(300, 500))  # more than one block

    def calls(self) -> List[List[str]]:
        """Returns a call of each form a body can have, with pictures."""
        images = [word for name in (*self.names, self.big) for word in ("--image", name)]
        inputs = [word.replace("--image", "--input-image") for word in images]
        return [
            ["generations", "a\u0301 图"], ["edits", "x", *images], ["edits", "x", *images, "--moderation", "low"],
            ["responses", "x", *inputs], ["edits", "x", *images, "--protocol", "openai_chat"],
        ]  # fmt: skip

    def test_every_try_sends_the_same_bytes_of_the_announced_length(self) -> None:
        for argv in self.calls():
            with self.subTest(argv[:2]):
                self.send(*argv, tries=3)

    def test_base64_of_every_length_decodes_to_the_file(self) -> None:
        sent = self.send(*self.calls()[3])
        urls = [part["image_url"] for part in sent.json["input"][0]["content"][1:]]
        for name, url in zip((*self.names, self.big), urls):
            self.assertEqual(base64.b64decode(url.partition(",")[2], validate=True), Path(name).read_bytes())

    def test_base64_goes_out_in_blocks_that_join_without_padding(self) -> None:
        self.assertEqual(gpt_image.UPLOAD_BLOCK, 192 * 1024)
        self.assertEqual(gpt_image.UPLOAD_BLOCK % 3, 0)
        for size in (gpt_image.UPLOAD_BLOCK + extra for extra in (-1, 0, 1, gpt_image.UPLOAD_BLOCK)):
            data = os.urandom(size)
            Path("block").write_bytes(data)
            part = gpt_image.Part(path="block", size=size, label="block")
            blocks = list(part.blocks())
            self.assertEqual(b"".join(blocks), base64.b64encode(data))
            self.assertEqual(sum(map(len, blocks)), part.length())
            self.assertLessEqual(max(map(len, blocks)), gpt_image.UPLOAD_BLOCK * 4 // 3)

    def test_the_dry_run_declares_the_length_of_the_real_request(self) -> None:
        for argv in self.calls():
            with self.subTest(argv[:2]):
                shown, sent = self.dry(*argv).json, self.send(*argv)
                self.assertEqual(shown["headers"]["Content-Length"], sent.header("Content-Length"))
                self.assertEqual((shown["method"], shown["url"]), ("POST", sent.request.url))
                self.assertEqual(shown["headers"]["Authorization"], "Bearer ***")
                if sent.json is None:
                    parts = read_form(sent.header("Content-Type"), sent.body)
                    self.assertIsNone(shown["body"])
                    self.assertEqual([row["name"] for row in shown["form"]], [part.name for part in parts])
                    self.assertEqual([row["bytes"] for row in shown["form"] if "path" in row],
                                     [len(part.data) for part in parts if part.filename])  # fmt: skip
                else:
                    self.assertIsNone(shown["form"])
                    self.assertEqual(self.without_pictures(shown["body"]), self.without_pictures(sent.json))

    def without_pictures(self, tree: Any) -> Any:
        """Returns a body with the same words in place of every picture, in base64 or as a dry run shows it."""
        return json.loads(
            re.sub(r";base64,(<base64 of [^>]+>|[A-Za-z0-9+/]+=*)", ";base64,…", json.dumps(tree, ensure_ascii=False))
        )

    def test_a_picture_is_shown_by_path_and_size(self) -> None:
        body = self.dry("responses", "x", "--input-image", self.big).json["body"]
        shown = body["input"][0]["content"][1]["image_url"]
        path = os.path.normpath(self.big)
        self.assertEqual(shown, f"data:image/png;base64,<base64 of {path}, {os.path.getsize(self.big)} bytes>")

    def test_a_file_that_changes_while_it_is_sent_is_noticed(self) -> None:
        test = self

        class Meddling(FakeTransport):
            def __call__(self, request: gpt_image.Request, *rest: Any) -> Union[gpt_image.Reply, gpt_image.Fault]:
                Path(test.big).write_bytes(b"short")
                return super().__call__(request, *rest)

        for argv in self.calls()[1:]:
            with self.subTest(argv[:2]):
                Path(self.big).write_bytes(png(300, 500))
                ran = self.run_main(*argv, transport=Meddling(reply({}, 400)))
                self.assertEqual(ran.code, 2, ran.err)


# The six commands of the contract, and a few of the other forms a body can have.
GOLDEN_RUNS: Dict[str, List[str]] = {
    "generations-hero": [
        "generations", "--prompt", "A bold product hero image for a developer tool homepage", "--output",
        "./out/hero.png",
        "--size", "1536x1024", "--quality", "high", "--format", "png",
    ],
    "generations-three-webp": [
        "generations", "--prompt", "A cinematic city skyline at night", "--output", "./out/skyline-{index}.webp",
        "--n", "3",
        "--format", "webp", "--compression", "90",
    ],
    "generations-cover": ["generations", "--prompt", "A minimal cover image", "--output", "./out/cover.png"],
    "generations-svg": [
        "generations", "A logo", "--model", "gpt-image-2.6-sunburst", "--svg-model", "gpt-5.4", "--svg-effort", "low",
        "--output", "logo.svg",
    ],
    "generations-chat": ["generations", "A lake", "--protocol", "openai_chat", "--model", "flux", "--output",
                         "lake.png"],
    "edits-form": [
        "edits", "--prompt", "Blend the two references into one clean marketing illustration", "--image",
        "./refs/subject.png",
        "--image", "./refs/background.png", "--mask", "./refs/mask.png", "--output", "./out/edit-{index}.png",
        "--image-field-style", "brackets", "--n", "2",
    ],
    "edits-json": [
        "edits", "Make it snow", "--image", "./refs/subject.png", "--image", "https://pictures.example/street.jpg",
        "--image",
        "file_id:file-abc", "--moderation", "low", "--output", "./out/snow.png",
    ],
    "responses-stream": [
        "responses", "--input-text", "Generate a poster for an AI developer summit", "--model", "gpt-5.4", "--output",
        "./out/poster-{index}.png", "--stream", "--partial-images", "2", "--save-response", "./out/poster-events.json",
    ],
    "responses-edit": [
        "responses", "--input-text", "Turn this product shot into a clean studio ad", "--model", "gpt-5.4",
        "--input-image",
        "./refs/product.png", "--mask", "./refs/mask.png", "--output", "./out/studio.png", "--action", "edit",
    ],
    "responses-turn": [
        "responses", "Warmer", "--previous-response-id", "resp_123", "--tool-model", "gpt-image-2.5-flare",
        "--metadata-json",
        '{"team": "red"}', "--reasoning-effort", "low", "--no-stream", "--extra-json", '{"max_tool_calls": 1}',
        "--output", "warm.webp",
    ],
}  # fmt: skip


def golden_text(ran: Ran) -> str:
    """Returns a dry run with what differs between two runs taken out: boundary, version, and the separator of paths."""
    text = json.dumps(ran.json, indent=1, ensure_ascii=False) + "\n"
    text = re.sub(r"boundary=[\w-]+", "boundary=…", text)
    text = re.sub(r'"gpt-image/[^"]+"', '"gpt-image/…"', text)
    return text.replace("\\\\", "/") if os.sep == "\\" else text


class GoldenTest(RequestTest):
    """The dry run of each route, as a whole."""

    def setUp(self) -> None:
        super().setUp()
        for name, data in (("subject", png(16, 12)), ("background", png(12, 12)), ("product", png(16, 12)),
                           ("mask", png(16, 12, clear=True))):  # fmt: skip
            self.write(f"refs/{name}.png", data)

    def test_the_dry_run_is_the_golden_one(self) -> None:
        for name, argv in GOLDEN_RUNS.items():
            with self.subTest(name):
                expected = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
                self.assertEqual(golden_text(self.dry(*argv)), expected)

    def test_there_is_no_golden_file_without_a_run(self) -> None:
        self.assertEqual(sorted(path.stem for path in self.dry_runs()), sorted(GOLDEN_RUNS))

    def test_a_dry_run_leaves_nothing_behind(self) -> None:
        before = self.files()
        for argv in GOLDEN_RUNS.values():
            self.dry(*argv)
        self.assertEqual(self.files(), before)
        self.assertFalse(Path("out").exists())

    def dry_runs(self) -> List[Path]:
        """Returns the golden files of this test; those of the SDK's requests are not dry runs."""
        return [path for path in GOLDEN.glob("*.json") if not path.name.startswith("sdk-")]

    def write_all(self) -> None:
        """Writes the golden files."""
        GOLDEN.mkdir(exist_ok=True)
        for path in self.dry_runs():
            path.unlink()
        for name, argv in GOLDEN_RUNS.items():
            (GOLDEN / f"{name}.json").write_text(golden_text(self.dry(*argv)), encoding="utf-8")

    def runTest(self) -> None:
        """Makes this class a test by itself, so that --write can borrow its folder."""
        self.write_all()


def write() -> int:
    """Writes the golden files anew."""
    result = unittest.TestResult()
    GoldenTest("runTest").run(result)
    print(result.errors[0][1] if result.errors else f"wrote {len(GOLDEN_RUNS)} files to {GOLDEN}")
    return len(result.errors) + len(result.failures)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        raise SystemExit(write())
    unittest.main()
