"""Replies of every dialect, cut into pieces, cut short and damaged: a finished picture is never lost, changed or made up."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import random
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union
from unittest import mock

import gpt_image
from tests.support import FakeTransport, ProgramTest, Ran, cut, decoding, read, reply

REPLIES = Path(__file__).resolve().parent / "replies"


@functools.lru_cache(None)
def picture(name: str) -> bytes:
    """Returns the picture of a name: a PNG of stored noise, whose base64 has 132 characters, 1136 (big…) or 6 900 (huge…)."""
    side = next((side for start, side in (("big", 16), ("huge", 41)) if name.startswith(start)), 3)
    noise = b"".join(hashlib.sha256(f"{name}{i}".encode()).digest() for i in range(side * side))
    rows = b"".join(b"\0" + noise[y * 3 * side : (y + 1) * 3 * side] for y in range(side))
    size = len(rows).to_bytes(2, "little")
    stored = b"\x78\x01\x01" + size + bytes(255 - byte for byte in size) + rows + zlib.adler32(rows).to_bytes(4, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


@functools.lru_cache(None)
def recorded(file: str) -> bytes:
    """Returns the bytes of a recorded reply."""
    return (REPLIES / file).read_bytes()


class Shape(NamedTuple):
    """A recorded reply, the call it answers, and what comes of it."""

    file: str
    argv: str = "generations x"
    images: Tuple[str, ...] = ()
    partials: Tuple[str, ...] = ()
    text: Optional[str] = None
    tokens: Optional[int] = None  # total_tokens of the usage
    exit: int = 0
    code: Union[str, int, None] = None  # of the error
    fetches: int = 0

    @property
    def data(self) -> bytes:
        """Returns the bytes of the reply."""
        return recorded(self.file)


STREAM = "generations x --stream --partial-images 2"
EDIT_STREAM = "edits x --image in.png --model team --stream"
RESPONSE = "responses x"
RESPONSE_STREAM = "responses x --stream --partial-images 2"
CHAT = "generations x --protocol openai_chat"
PREVIEWS = ("big-p0", "small-p1")

SHAPES = (
    # Images, JSON
    Shape("images.json", "generations x --n 2", ("big-1", "small-2"), tokens=60),
    Shape("images-url-data.json", images=("big-1",)),
    Shape("images-url-and-b64.json", images=("big-1",)),
    Shape("images-data-prefix.json", "generations x --n 2", ("big-1", "small-2")),
    Shape("images-line-breaks.json", "generations x --n 2", ("big-1", "small-2")),
    Shape("images-raw-newlines.json", "generations x --n 2", ("big-1", "small-2")),
    Shape("images-escaped-slashes.json", "generations x --n 2", ("big-1", "small-2")),
    Shape("images-unicode-escapes.json", images=("big-1",)),
    Shape("images-no-padding.json", "generations x --n 2", ("big-1", "small-2")),
    Shape("images-image-base64.json", images=("big-1",)),
    Shape("images-blank-lines.json", images=("big-1",)),
    Shape("images-bom.json", images=("big-1",)),
    Shape("images-url.json", images=("fetched",), fetches=1),
    Shape("images-one.json", STREAM, ("big-1",), tokens=60),  # JSON where events were asked for
    Shape("images-empty.json", exit=6),
    Shape("error-in-200.json", exit=4, code="moderation_blocked"),
    Shape("error-in-200-late.json", exit=5, code="server_error"),
    Shape("page.html", exit=6),
    # Images, events
    Shape("stream.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream.sse", images=("big-1",), partials=PREVIEWS, tokens=60),  # events where JSON was asked for
    Shape("stream-edit.sse", "edits x --image in.png --stream --partial-images 2", ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-data-only.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-event-only.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),  # no type in the data
    Shape("stream-crlf.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-comments.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-done.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-single-newlines.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-no-last-blank.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-no-last-newline.sse", STREAM, ("big-1",), PREVIEWS, tokens=60),
    Shape("stream-no-final.sse", STREAM, (), PREVIEWS, exit=6),
    Shape("stream-error.sse", STREAM, (), PREVIEWS, exit=4, code="moderation_blocked"),
    # Responses, JSON
    Shape("response.json", RESPONSE, ("big-1",), text="Here you are.", tokens=60),
    Shape("response-b64-json.json", RESPONSE, ("big-1",), tokens=60),
    Shape("response-image-base64.json", RESPONSE, ("small-2",), tokens=60),
    Shape("response-generating.json", RESPONSE, ("big-1",), tokens=60),
    Shape("response-two-calls.json", RESPONSE, ("big-1", "small-2"), tokens=60),
    Shape("response-text-only.json", RESPONSE, text="I would rather not draw.", tokens=60, exit=6),
    Shape("response-text-only.json", RESPONSE + " --tool-choice auto", text="I would rather not draw.", tokens=60),
    Shape("response-refusal.json", RESPONSE, text="I can't help with that.", tokens=60, exit=6),
    Shape("response-failed.json", RESPONSE, exit=5, code="server_error"),
    # Responses, events
    Shape("response-stream.sse", RESPONSE_STREAM, ("big-1",), PREVIEWS, "Here you are.", 60),
    Shape("response-stream-data-only.sse", RESPONSE_STREAM, ("big-1",), PREVIEWS, "Here you are.", 60),
    Shape("response-empty-output.sse", RESPONSE_STREAM, ("big-1",), PREVIEWS, "Here you are.", 60),
    Shape("response-only-completed.sse", RESPONSE_STREAM, ("big-1",), PREVIEWS, "Here you are.", 60),
    Shape("response-generating.sse", RESPONSE_STREAM, ("big-1",), PREVIEWS, "Here you are.", 60),
    Shape("response-error.sse", RESPONSE_STREAM, (), PREVIEWS, exit=5, code="server_error"),
    Shape("response-failed.sse", RESPONSE_STREAM, (), PREVIEWS, exit=4, code="moderation_blocked"),
    Shape("response-incomplete.sse", RESPONSE_STREAM, (), PREVIEWS, exit=6),
    Shape("response-refusal.sse", RESPONSE_STREAM, text="I can't help with that.", tokens=60, exit=6),
    # Chat
    Shape("chat-images.json", CHAT, ("big-1", "small-2"), text="Two lakes.", tokens=60),
    Shape("chat-markdown.json", CHAT, ("big-1", "small-2"), text="Two lakes:\n\n\n\nand", tokens=60),
    Shape("chat-markdown-link.json", CHAT, ("fetched",), text="A lake:", tokens=60, fetches=1),
    Shape("chat-parts.json", CHAT, ("big-1",), text="A lake.", tokens=60),
    Shape("chat-stream.sse", CHAT + " --stream", ("big-1", "small-2"), text="Two lakes:\n\n\n\nand"),
    Shape("chat-stream-images.sse", CHAT + " --stream", ("big-1",), text="A lake."),
    # Servers of other people
    Shape("sd-cpp.json", STREAM, ("big-1", "small-2")),
    Shape("sglang.json", images=("fetched",), fetches=1),
    Shape("vllm-omni-edit.sse", EDIT_STREAM, ("big-1", "small-2"), text="A snowy lake."),
    Shape("error-in-vllm-omni-edit.sse", EDIT_STREAM, text="A snowy ", exit=5, code=500),
    Shape("xinference.json", "generations x --model team", exit=5, fetches=1),
    Shape("litellm.json", images=("big-1",), tokens=60),
)  # fmt: skip
EACH = tuple({shape.file: shape for shape in SHAPES}.values())


class Server(FakeTransport):
    """Plays one reply to the POST; gives the picture `fetched` to any other URL, and knows no response any more."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self.pieces, self.fetches = pieces, 0

    def __call__(
        self, request: gpt_image.Request, timeout: float, progress: gpt_image.Progress
    ) -> Union[gpt_image.Reply, gpt_image.Fault]:
        if request.method == "POST":
            assert not self.requests, "a call that came to a 2xx is not made again"
            self.requests.append(request)
            return gpt_image.Reply(200, {}, self.pieces)
        if "/responses/" in request.url:
            return reply({"error": {"message": "no such response"}}, 404)
        self.fetches += 1
        assert self.fetches < 20, "too many fetches"
        if "/root/" in request.url:  # a path of the server's disk
            return reply({"detail": "Not Found"}, 404)
        return gpt_image.Reply(200, {}, [picture("fetched")])


def cut_at_random(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yields data in pieces of random sizes, many of them tiny."""
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 3, chance.randint(1, 40), chance.randint(1, 1500)))
        yield data[at : at + size]
        at += size


class ReplyTest(ProgramTest):
    """A test that plays a reply and looks at the result and at every file."""

    runs = 0

    def play(self, argv: str, pieces: Union[bytes, Iterable[bytes]], *more: str) -> Ran:
        """Runs a call in a folder of its own whose reply comes in the given pieces."""
        self.runs += 1
        self.out = f"{self.runs}"
        if not Path("in.png").exists():
            Path("in.png").write_bytes(picture("big-input"))
        self.server = Server([pieces] if isinstance(pieces, bytes) else pieces)
        return self.run_main(
            *argv.split(), "--output", f"{self.out}/o.png", "--progress", "none", *more, transport=self.server
        )

    def names(self, rows: Sequence[Dict[str, Any]], known: Iterable[str]) -> Tuple[str, ...]:
        """Returns the names of saved pictures, `?` for one that is none of the known; each must be on disk as reported."""
        by_data = {picture(name): name for name in known}
        found = []
        for row in rows:
            data = Path(row["path"]).read_bytes()
            self.assertEqual((row["bytes"], row["sha256"]), (len(data), hashlib.sha256(data).hexdigest()))
            found.append(by_data.get(data, "?"))
        return tuple(found)

    def assert_all_reported(self, ran: Ran) -> None:
        """Asserts that every file there is, is reported, and that nothing temporary is left."""
        rows = ran.json["images"] + ran.json["partial_images"] + ran.json["unclaimed"]
        told = [Path(row["path"]).as_posix() for row in rows]
        kept = ran.json["saved_response"]
        told += [Path(kept).as_posix()] if kept else []
        self.assertEqual(sorted(told), [f"{self.out}/{name}" for name in self.files(self.out)])

    def assert_shape(self, shape: Shape, ran: Ran) -> None:
        """Asserts that a result is the one of the table."""
        self.assertEqual(ran.code, shape.exit, ran.err)
        self.assertEqual(self.names(ran.json["images"], shape.images), shape.images)
        self.assertEqual(self.names(ran.json["partial_images"], shape.partials), shape.partials)
        self.assertEqual(ran.json["text"], shape.text)
        self.assertEqual((ran.json["usage"] or {}).get("total_tokens"), shape.tokens)
        self.assertEqual([row["index"] for row in ran.json["images"]], list(range(1, 1 + len(shape.images))))
        self.assertEqual(
            [row["partial"] for row in ran.json["partial_images"]], list(range(1, 1 + len(shape.partials)))
        )
        self.assertEqual(ran.error and ran.error["code"], shape.code)
        self.assertEqual(self.server.fetches, shape.fetches)
        self.assert_all_reported(ran)


class ShapesTest(ReplyTest):
    """Every recorded reply."""

    def test_each_recorded_reply_comes_to_what_the_table_says(self) -> None:
        for shape in SHAPES:
            with self.subTest(shape.file, argv=shape.argv):
                ran = self.play(shape.argv, shape.data)
                self.assert_shape(shape, ran)
                if shape.exit:
                    kept = Path(ran.json["saved_response"])
                    self.assertEqual(kept.read_bytes(), shape.data)
                    without = shape.file.startswith(("error-in", "page", "response-text", "response-refusal", "response-failed"))
                    without = without and not shape.partials
                    command = "" if without else f"extract {kept.as_posix()} "
                    self.assertIn(command, (ran.error["recovery"] or "").replace("\\", "/"))
                    self.assertEqual(ran.error["recovery"] is None, without)

    def test_there_is_no_recorded_reply_without_a_row(self) -> None:
        files = [path.name for path in REPLIES.iterdir() if path.suffix in (".json", ".sse", ".html")]
        self.assertEqual(sorted(files), sorted(shape.file for shape in EACH))

    def test_a_kept_reply_can_be_extracted_offline(self) -> None:
        for shape in EACH:
            with self.subTest(shape.file):
                out = f"x/{shape.file}"
                ran = self.run_main("extract", str(REPLIES / shape.file), "--output", f"{out}/o.png")
                local = tuple(name for name in shape.images if name != "fetched")
                self.assertEqual(self.names(ran.json["images"], local), local)
                self.assertEqual(self.names(ran.json["partial_images"], shape.partials), shape.partials)
                self.assertEqual(ran.code == 0, bool(local), ran.err)


class PiecesTest(ReplyTest):
    """A reply means the same, wherever the network cuts it."""

    def test_pieces_of_every_size_give_the_same_documents(self) -> None:
        for turn, shape in enumerate(EACH):
            data, whole = shape.data, read([shape.data])
            # Of the sizes that are like one another, each of the replies, which are so too, takes its share.
            for size in ((1, 2, 1, 3, 1, 5)[turn % 6], *range(7 + turn % 16, 71, 16), (257, 1021, 1031)[turn % 3]):
                if read(cut(data, size)) != whole:
                    self.fail(f"{shape.file} in pieces of {size}: {read(cut(data, size))} != {whole}")

    def test_pieces_of_a_size_give_the_same_result(self) -> None:
        for shape in EACH[1::5]:
            with self.subTest(shape.file):
                self.assert_shape(shape, self.play(shape.argv, cut(shape.data, 5)))

    def test_pieces_of_random_sizes_give_the_same_result(self) -> None:
        chance = random.Random(20261120)
        for shape in EACH[::2]:
            with self.subTest(shape.file):
                self.assert_shape(shape, self.play(shape.argv, cut_at_random(shape.data, chance)))

    def test_empty_lines_between_events_do_not_count(self) -> None:
        for shape in EACH:
            if shape.file.endswith(".sse") and "single" not in shape.file and "crlf" not in shape.file:
                with self.subTest(shape.file):
                    self.assert_shape(shape, self.play(shape.argv, shape.data.replace(b"\n\n", b"\n\n\n\n")))


class CutShortTest(ReplyTest):
    """A reply that ends too early: what had arrived whole stays, and nothing else is made of the rest."""

    def check(self, shape: Shape, end: int) -> None:
        """Plays the start of a recorded reply."""
        data = shape.data[:end]
        ran = self.play(shape.argv, data)
        self.assertIn(ran.code, (0, 4, 5, 6), ran.err)
        images = self.names(ran.json["images"], (*shape.images, "fetched"))
        if b'"url": "https:' in data and images == ("fetched",):
            images = shape.images  # the base64 was cut, and the same picture is had by its URL
        partials = self.names(ran.json["partial_images"], shape.partials)
        self.assertEqual(images, shape.images[: len(images)])
        self.assertEqual(partials, shape.partials[: len(partials)])
        if "fetched" not in shape.images:
            for name in self.arrived(shape, data):
                self.assertIn(name, images + partials)
        if ran.code == 0:
            self.assertTrue(images or ran.json["text"])
        elif data.strip():
            self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), data)
        self.assert_all_reported(ran)

    def arrived(self, shape: Shape, data: bytes) -> List[str]:
        """Returns the pictures whose last byte arrived in plain base64, in a document that is there to its end."""
        whole = data[: max(data.rfind(b"}"), data.rfind(b"\n\n"), 0)]
        names = shape.images + shape.partials
        return [name for name in names if base64.b64encode(picture(name)) + b'"}' in whole + b"}"]

    def test_the_start_of_a_reply_means_what_it_means_in_the_whole(self) -> None:
        for turn, shape in enumerate(EACH):
            size, whole = len(shape.data), read([shape.data])
            chance = random.Random(shape.file)
            places = range(turn % 5, size, 5) if size < 800 else [chance.randrange(size) for _ in range(8)]
            for end in sorted({*places, *range(size - 10, size)}):
                part = read([shape.data[:end]])
                sound = [document for document in part if not document.cut and document.name != "garbage"]
                with self.subTest(shape.file, end=end):
                    self.assertEqual(sound, whole[: len(sound)])
                    self.assertLessEqual(len(part), len(sound) + 1)

    def test_at_random_places(self) -> None:
        chance = random.Random(4)
        for turn, shape in enumerate(EACH):
            size = len(shape.data)
            end = size - 1 - turn % 3 if turn % 2 else chance.randrange(size)
            with self.subTest(shape.file, end=end):
                self.check(shape, end)

    def test_at_the_end_of_what_is_short(self) -> None:
        for file in ("response-image-base64.json", "stream-done.sse"):
            shape = next(shape for shape in EACH if shape.file == file)
            for end in range(len(shape.data) - 9, len(shape.data)):
                with self.subTest(shape.file, end=end):
                    self.check(shape, end)

    def test_a_picture_that_arrived_whole_is_kept_though_its_document_did_not(self) -> None:
        for shape in EACH:
            if shape.images[:1] != ("big-1",) or shape.argv.startswith(CHAT):
                continue
            for end in self.ends_of(shape.data, "big-1"):
                with self.subTest(shape.file, end=end):
                    ran = self.play(shape.argv, shape.data[:end])
                    self.assertEqual(self.names(ran.json["images"], ["big-1"]), ("big-1",), ran.err)

    def test_a_chat_reply_cut_within_its_picture_saves_no_part_of_it(self) -> None:
        for file in ("chat-stream.sse", "chat-markdown.json", "chat-images.json"):
            shape = next(shape for shape in EACH if shape.file == file)
            start = shape.data.index(b"data:image/png;base64") + 200
            boundaries = [at + 2 for at in range(start, 1800) if shape.data[at : at + 2] == b"\n\n"]
            self.assertEqual(bool(boundaries), "sse" in file)
            for at in (*range(start, 1200, 100), *boundaries[:3]):
                with self.subTest(file, end=at, boundary=at in boundaries):
                    ran = self.play(shape.argv, shape.data[:at])
                    self.assertIn(ran.code, (5, 6))
                    self.assertEqual(ran.json["images"], [])

    def ends_of(self, data: bytes, name: str) -> List[int]:
        """Returns where the plain base64 of a final picture ends, if it stands in the data so, behind the quote."""
        text = base64.b64encode(picture(name)) + b'"'
        at = data.find(text)
        return [at + len(text)] if at >= 0 else []

    def test_what_ends_in_the_middle_is_a_fault_of_the_network_however_little_it_says(self) -> None:
        event = b'data: {"type": "image_generation.partial_image", "b64_json": "'
        heartbeat = b'data: {"type": "image_generation.heartbeat"}\n\n'
        one = b'{"created": 1, "data": [{"b64_json": "iVBORw0KG'
        for data in (one, b'{"da', b'{"data": [', b"data: {", event, heartbeat + event):
            with self.subTest(data):
                ran = self.play(STREAM, data)
                self.assertEqual((ran.code, ran.error["may_be_billed"]), (5, True), ran.err)
                self.assertIn("in the middle", ran.error["message"])

    def test_fault_of_the_network_is_one_of_ours_to_name(self) -> None:
        def pieces(data: bytes) -> Iterator[bytes]:
            yield data
            raise ConnectionError("reset by peer")

        shape = next(shape for shape in EACH if shape.file == "images.json")
        ran = self.play(shape.argv, pieces(shape.data[: len(shape.data) // 2 + 500]))
        self.assertEqual((ran.code, ran.error["may_be_billed"]), (5, True))
        self.assertEqual(self.names(ran.json["images"], shape.images), ("big-1",))


HURT = {
    "chat-images.json": "choices choices.0 choices.0.message choices.0.message.images choices.0.message.content "
    "choices.0.message.images.0.image_url",
    "response.json": "output output.1 output.1.result output.1.id output.2.content status usage id error incomplete_details",
    "images-one.json": "data data.0 data.0.b64_json data.0.revised_prompt usage usage.input_tokens_details",
    "error-in-200.json": "error error.code error.message error.type error.moderation_details "
    "error.moderation_details.categories",
}
HURTING: Tuple[Any, ...] = (None, 5, "\ud800", "data:image/png;base64,\ud800", ["x"], [[]], {"x": [1]})
ODD_CHOICES: Tuple[Any, ...] = (
    5, "x", [5], ["x"], [{"delta": "x"}], [{"delta": 5}], [{"delta": {"content": 5}}], {"delta": {}},
    [{"delta": {"images": 5}}], [{"message": ["x"]}],
)  # fmt: skip


class DamagedTest(ReplyTest):
    """A reply with random damage: no bug, no hang, and no file that is not a picture and reported."""

    SIGNS = b'{}[]",:\\/\n\r <>=+A9\x00\xff'

    def damage(self, data: bytes, chance: random.Random) -> bytes:
        """Returns data with one to three random changes."""
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            to = min(len(data), at + chance.choice((1, 1, 2, 10, 200)))
            sign = bytes([chance.choice(self.SIGNS)])
            data = chance.choice((
                data[:at] + sign + data[at + 1 :], data[:at] + sign + data[at:], data[:at] + data[to:],
                data[:at] + data[at:to] * 2 + data[to:], data[:at] + data[to:] + data[at:to],
                data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :],
            ))  # fmt: skip
        return data

    def check(self, shape: Shape, data: bytes) -> None:
        """Plays a damaged reply."""
        ran = self.play(shape.argv, data)
        self.assertIn(ran.code, (0, 4, 5, 6), ran.err)
        self.assert_all_reported(ran)
        previews = {hashlib.sha256(picture(name)).hexdigest() for name in PREVIEWS}
        for row in ran.json["images"]:
            self.assertNotIn(row["sha256"], previews, "a preview became a final picture")
        for row in ran.json["images"] + ran.json["partial_images"]:
            found = gpt_image.identify(row["path"])
            self.assertEqual(found and found.format, row["format"])
        self.assertEqual(ran.code == 0, ran.json["error"] is None)

    def test_random_damage(self) -> None:
        for seed, shape in enumerate(EACH):
            data = self.damage(shape.data, random.Random(seed))
            with self.subTest(shape.file, seed=seed):
                self.check(shape, data)

    def test_damage_means_the_same_in_pieces(self) -> None:
        def told(pieces: Iterable[bytes]) -> List[Any]:
            documents = read(pieces)
            return [(row.name, row.cut) if row.name == "garbage" else row for row in documents]

        for seed in range(200):
            chance = random.Random(seed)
            shape = EACH[seed % len(EACH)]
            data = self.damage(shape.data, chance)
            size = chance.randint(1, 300)
            with self.subTest(shape.file, seed=seed, size=size):
                self.assertEqual(told(cut(data, size)), told([data]))

    def test_values_of_the_wrong_type_where_they_hurt(self) -> None:
        chance = random.Random(6)
        for file, paths in HURT.items():
            shape = next(shape for shape in EACH if shape.file == file)
            tree = json.loads(shape.data)
            for dotted in paths.split():
                path = [int(key) if key.isdigit() else key for key in dotted.split(".")]
                for value in chance.sample(HURTING, 3):
                    with self.subTest(file, path=dotted, value=ascii(value)):
                        self.check(shape, self.put(tree, path, value))

    def test_the_same_in_chunks_of_a_chat_stream(self) -> None:
        shape = next(shape for shape in EACH if shape.file == "chat-stream.sse")
        for choices in ODD_CHOICES:
            chunk = json.dumps({"object": "chat.completion.chunk", "choices": choices})
            with self.subTest(choices):
                self.check(shape, b"data: " + chunk.encode() + b"\n\n" + shape.data)

    def put(self, tree: Any, path: Sequence[Any], value: Any) -> bytes:
        """Returns a JSON text with another value at a path."""
        copy = at = json.loads(json.dumps(tree))
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        return json.dumps(copy).encode()

    def test_noise_is_told_from_a_reply(self) -> None:
        chance = random.Random(9)
        for data in (b"", b" ", b"\n\n", b"\0", b"\xff\xfe", b"null", b"[]", b"{}", b"{", b'"', b"[[[[", b"{" * 5000,
                     b"data:", b"data",
                     b"data: {", b"data: x", b":", b"event: x", b"<html>", b'{"data": [', b'{"data": {}}',
                     b'{"data": [[]]}',
                     b'{"output": [1, "x", null]}', b"[" * 8000, b"data: " + b"[" * 8000,
                     bytes(chance.randrange(256) for _ in range(5000))):  # fmt: skip
            for argv in ("generations x", RESPONSE_STREAM):
                with self.subTest(argv, data=data[:20]):
                    self.assertIn(self.play(argv, data).code, (5, 6))  # 5: one that began well and was cut


class LongStringsTest(ReplyTest):
    """Long strings that are no pictures stay what they are."""

    WORDS = 'Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. "\\ \u2028 \U0001f3a8 '

    def answer(self, text: str, ascii_only: bool = True, **more: Any) -> bytes:
        """Returns a response whose message is a text, with a picture before it."""
        reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], **more}
        call = {"type": "image_generation_call", "id": "ig_1", "status": "completed",
                "result": base64.b64encode(picture("big-1")).decode()}  # fmt: skip
        message = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": text}],
        }
        body = {"id": "resp_1", "object": "response", "status": "completed", "output": [reasoning, call, message]}
        return json.dumps(body, ensure_ascii=ascii_only).encode()

    def events(self, text: str, ascii_only: bool = True) -> bytes:
        """Returns the same as events, each item done."""
        items = json.loads(self.answer(text))["output"]
        rows: List[Dict[str, Any]] = [
            {"type": "response.output_item.done", "output_index": i, "item": item} for i, item in enumerate(items)
        ]
        rows.append({"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": []}})
        return b"".join(b"data: " + json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n\n" for row in rows)

    def check(self, data: bytes, text: str, *more: str) -> None:
        """Plays a response and asserts its picture and its text."""
        ran = self.play(RESPONSE, cut(data, 1013), *more)
        self.assertEqual(ran.code, 0, ran.err[:500])
        self.assertEqual(self.names(ran.json["images"], ["big-1"]), ("big-1",))
        self.assertTrue(ran.json["text"] == text, f"{ran.json['text'][:200]!r} … is not {text[:200]!r} …")
        self.assert_all_reported(ran)

    def test_a_text_answer_of_a_hundred_kilobytes(self) -> None:
        text = self.WORDS * 1600
        self.assertGreater(len(text), 100_000)
        for ascii_only in (True, False):
            with self.subTest(ascii_only=ascii_only):
                self.check(self.answer(text, ascii_only), text)
                self.check(self.events(text, ascii_only), text)

    def test_a_text_answer_that_looks_like_base64(self) -> None:
        for text in ("A" * 5000, "lorem/ipsum+" * 500, "word" * 300 + " and so on", "QUJD" * 1000 + "=="):
            with self.subTest(text[:20]):
                self.check(self.answer(text), text)
                self.check(self.events(text), text)

    def test_a_picture_that_a_text_quotes_is_saved_by_itself_and_its_base64_is_not_printed(self) -> None:
        base = base64.b64encode(picture("big-quoted")).decode()
        url, shown = "data:image/png;base64," + base, "data:image/png;base64,<base64 of a picture>"
        for text, said in (
            (f"Put {url} into your page.", f"Put {shown} into your page."),
            (f"{url} goes into your page.", f"{shown} goes into your page."), (url, shown),
            (f"{self.WORDS * 20}![x]({url}) and more", f"{self.WORDS * 20}![x]({shown}) and more"),
            (base, "<base64 of a picture>"), (f"It is '{base}'.", "It is '<base64 of a picture>'."),
        ):  # fmt: skip
            for data in (self.answer(text), self.events(text)):
                with self.subTest(text=text[:40]):
                    ran = self.play(RESPONSE, cut(data, 1013))
                    self.assertEqual((ran.code, ran.json["text"]), (0, said), ran.err[:500])
                    self.assertEqual(self.names(ran.json["images"], ["big-1"]), ("big-1",))
                    self.assertEqual(self.names(ran.json["unclaimed"], ["big-quoted"]), ("big-quoted",))
                    self.assert_all_reported(ran)

    def test_encrypted_reasoning(self) -> None:
        for secret in (
            b"gAAAAAB" + bytes(range(256)) * 400,
            hashlib.shake_256(b"x").digest(90_000),
            picture("big-x") * 90,
        ):
            with self.subTest(secret[:8]):
                data, kept = (
                    self.answer("done", encrypted_content=base64.b64encode(secret).decode()),
                    f"{self.runs + 1}/kept",
                )
                self.check(data, "done", "--save-response", kept)
                self.assertEqual(Path(kept).read_bytes(), data)

    def test_a_long_revised_prompt(self) -> None:
        for prompt in (self.WORDS * 100, "x" * 3000, "data:image/png;base64," + "x" * 3000):
            with self.subTest(prompt[:30]):
                data = {"data": [{"b64_json": base64.b64encode(picture("big-1")).decode(), "revised_prompt": prompt}]}
                ran = self.play("generations x", json.dumps(data).encode())
                self.assertEqual((ran.code, ran.json["images"][0]["revised_prompt"]), (0, prompt), ran.err[:300])

    def test_a_long_chat_text_around_a_picture(self) -> None:
        before, after = self.WORDS * 800, self.WORDS * 800
        url = "data:image/png;base64," + base64.b64encode(picture("big-1")).decode()
        body = {"choices": [{"message": {"role": "assistant", "content": f"{before}![a]({url}){after}"}}]}
        for size in (977, 10**6):
            ran = self.play(CHAT, cut(json.dumps(body).encode(), size))
            self.assertEqual((ran.code, self.names(ran.json["images"], ["big-1"])), (0, ("big-1",)))
            self.assertTrue(ran.json["text"] == (before + after).strip())


class Base64Test(ReplyTest):
    """Base64 as gateways write it."""

    def setUp(self) -> None:
        super().setUp()
        self.temp_files = gpt_image.TempFiles()
        self.addCleanup(self.temp_files.__exit__)

    def body(self, text: str) -> bytes:
        """Returns a reply with one picture, whose JSON string is `text` as it stands."""
        return b'{"created": 1, "data": [{"b64_json": "' + text.encode() + b'"}]}'

    def check(self, text: str) -> Ran:
        """Plays a reply with one picture."""
        return self.play("generations x", self.body(text))

    def lifted(self, text: str, size: int) -> Tuple[bytes, bool]:
        """Returns what was decoded of the one picture, and whether there was no trouble with it."""
        documents = read(cut(self.body(text), size), decoding(self.temp_files))
        found = next(row.value["b64_json"] for row in documents if "b64_json" in row.value)
        if isinstance(found, str):  # written so oddly that it stays in the JSON
            with contextlib.suppress(ValueError):
                return base64.b64decode(found, validate=True), True
            return b"", False
        fine = isinstance(found.finish(), gpt_image.Picture)
        return Path(found.path).read_bytes(), fine

    def test_a_look_that_fails_leaves_no_byte_in_the_picture(self) -> None:
        data = picture("small-a")
        text = base64.b64encode(data)
        lifted = gpt_image.Lifted(self.temp_files, ".")
        lifted.write_odd(text[:30])  # two characters more than fours
        with mock.patch.object(gpt_image, "identify", side_effect=OSError(24, "Too many open files")):
            self.assertFalse(lifted.looks_whole())
        lifted.write_odd(text[30:])
        self.assertIsInstance(lifted.finish(), gpt_image.Picture)
        self.assertEqual(Path(lifted.path).read_bytes(), data)

    def test_line_breaks_padding_prefixes_and_escapes(self) -> None:
        for name in ("small-a", "big-a", "huge-a"):
            plain = base64.b64encode(picture(name)).decode()
            lines = [plain[at : at + 76] for at in range(0, len(plain), 76)]
            for number, text in enumerate((
                plain, plain.rstrip("="), "\\n".join(lines), "\\r\\n".join(lines), "\n".join(lines) + "\n",
                "\t" + "\\t".join(lines), plain.replace("/", "\\/"),
                plain.replace("+", "\\u002B").replace("=", "\\u003d"),
                "data:image/png;base64," + plain, "data:image\\/png;base64," + plain.replace("/", "\\/"),
                "DATA:image/PNG;BASE64," + plain, "".join(f"\\u{ord(c):04X}" for c in plain), "\\n" + plain + "\\n\\n",
                # What is odd in it comes late, when it is being decoded already.
                plain[:1500] + plain[1500:].replace("/", "\\/"), plain[:1500] + plain[1500:].replace("+", "\\u002b"),
                plain[:2222] + "\\n" + plain[2222:].rstrip("="), plain[:1501] + "\\r\\n\\t" + plain[1501:],
            )):  # fmt: skip
                with self.subTest(name, text=text[:60]):
                    if len(plain) > 1024:  # shorter ones stay in the JSON
                        for size in (10**6, 97, 5) if name == "big-a" else (10**6, 1021):
                            self.assertEqual(self.lifted(text, size), (picture(name), True))
                    if len(plain) < 1024 or number % 4 == 3:
                        ran = self.check(text)
                        self.assertEqual(ran.code, 0, ran.err)
                        self.assertEqual(self.names(ran.json["images"], [name]), (name,))

    def test_what_is_not_base64_is_an_error_and_never_dropped(self) -> None:
        for name in ("small-a", "big-a", "huge-a"):
            plain = base64.b64encode(picture(name)).decode()
            middle = len(plain) // 2
            for bad in ("!", "\\u0041\\u00e9", "é", "\\\\", "=", "\\u0000", ".", "%2B"):
                for at in (middle, 5, len(plain) - 5):
                    with self.subTest(name, bad=bad, at=at):
                        text = plain[:at] + bad + plain[at:]
                        if at > 1024:  # what is odd in its first characters is no picture to the reader
                            for size in (10**6, 17):
                                self.assertFalse(self.lifted(text, size)[1])
                        if len(plain) < 1024 or at == 5 or bad == "!":
                            ran = self.check(text)
                            self.assertEqual((ran.code, ran.json["images"]), (6, []), ran.err)

    def test_a_picture_cut_at_any_length_is_never_taken_for_whole_without_a_word(self) -> None:
        plain = base64.b64encode(picture("big-a")).decode()
        for length in (
            len(plain) - 1,
            len(plain) - 2,
            len(plain) - 3,
            len(plain) - 4,
            len(plain) - 5,
            len(plain) // 2,
            1500 % len(plain),
        ):
            with self.subTest(length):
                ran = self.check(plain[:length].rstrip("="))
                if self.names(ran.json["images"], ["big-a"]) != ("big-a",):
                    self.assertTrue(ran.code or "cut short" in " ".join(ran.json["warnings"]), ran.out)


if __name__ == "__main__":
    unittest.main()
