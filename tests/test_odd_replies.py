"""Replies that nobody planned for: each picture that came whole in one is on disk, and the result says so."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import struct
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, cut, reply

A, B, C = (pictures.picture(b"odd %d" % number, "png", 16, 8) for number in range(3))
JPEG = pictures.picture(b"odd", "jpeg", 16, 8)
MAKE = ("generations", "x", "--output", "o.png")
TALK = ("responses", "x", "--output", "o.png")
CHAT = (*MAKE, "--protocol", "openai_chat")
URL = "data:image/png;base64,"


def b64(data: bytes) -> str:
    """Returns bytes in base64."""
    return base64.b64encode(data).decode()


def images(*finals: bytes) -> bytes:
    """Returns a reply of the images routes."""
    return json.dumps({"data": [{"b64_json": b64(data)} for data in finals]}).encode()


def events(*rows: Dict[str, Any]) -> bytes:
    """Returns server-sent events."""
    return b"".join(b"data: %s\n\n" % json.dumps(row).encode() for row in rows)


def delta(text: str) -> Dict[str, Any]:
    """Returns a piece of a chat message."""
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}


def completed(data: bytes, **more: Any) -> Dict[str, Any]:
    """Returns the event of a finished picture."""
    return {"type": "image_generation.completed", "b64_json": b64(data), **more}


class OddReplies(ProgramTest):
    """One call for each reply."""

    def play(self, argv: Tuple[str, ...], body: bytes, size: int = 0, headers: Any = None, status: int = 200) -> Ran:
        """Makes a call, in an empty folder, that gets a reply in pieces of a size."""
        for name in self.files():
            Path(name).unlink()
        return self.run_main(*argv, transport=FakeTransport(reply(body, status, headers, size)))

    def assert_rows(self, rows: List[Dict[str, Any]], *data: bytes) -> None:
        """Asserts that the rows of a result name these pictures, and that each is on disk."""
        self.assertEqual([row["sha256"] for row in rows], [hashlib.sha256(one).hexdigest() for one in data])
        self.assertEqual([Path(row["path"]).read_bytes() for row in rows], list(data))

    def assert_good(self, ran: Ran, *data: bytes) -> None:
        """Asserts success with these pictures and nothing beside them."""
        self.assertEqual((ran.code, ran.json["unclaimed"]), (0, []), ran.err)
        self.assert_rows(ran.json["images"], *data)

    def assert_extracted(self, ran: Ran, *data: bytes) -> None:
        """Asserts that the kept reply of a call gives these pictures, named or not."""
        kept = Path(ran.json["saved_response"]).read_bytes()
        os.makedirs("again", exist_ok=True)
        Path("again/kept").write_bytes(kept)
        again = self.run_main("extract", "again/kept", "--output", "again/e.png")
        self.assert_rows(again.json["images"] + again.json["unclaimed"], *data)

    def test_a_packed_reply_in_pieces_that_unpack_to_nothing(self) -> None:
        for name, body, size in (
            ("gzip", gzip.compress(images(A)), 10), ("gzip", gzip.compress(images(A)), 1),
            ("gzip", gzip.compress(b"") + gzip.compress(images(A)), 0), ("deflate", zlib.compress(images(A)), 2),
            ("deflate", zlib.compress(images(A))[2:-4], 1),
        ):  # fmt: skip
            with self.subTest(name, size=size):
                self.assert_good(self.play(MAKE, body, size, {"content-encoding": name}), A)

    def test_what_stands_behind_a_packed_reply_is_no_matter(self) -> None:
        stream = gzip.compress(events(completed(A)) + b"data: [DONE]\n\n")
        for body, size in ((gzip.compress(images(A)) + bytes(9), 0), (gzip.compress(images(A)) + b"\n", 7), (stream, len(stream) - 8)):
            with self.subTest(size=size):
                self.assert_good(self.play(MAKE, body, size, {"content-encoding": "gzip"}), A)

    def test_a_wrong_checksum_costs_no_picture(self) -> None:
        packed = gzip.compress(images(A))
        for body in (packed[:-8] + b"abcd" + packed[-4:], packed[:-1] + b"\xff"):
            for size in (0, 50):
                ran = self.play(MAKE, body, size, {"content-encoding": "gzip"})
                self.assertEqual((ran.code, Path(ran.json["saved_response"]).read_bytes()), (5, body))
                self.assert_rows(ran.json["images"], A)
                self.assert_extracted(ran, A)

    def test_a_kept_reply_is_extracted_however_it_is_packed(self) -> None:
        for body in (zlib.compress(images(A)), zlib.compress(images(A))[2:-4], gzip.compress(images(A))):
            ran = self.play((*MAKE, "--save-response", "kept"), body, 0, {"content-encoding": "deflate"})
            self.assert_good(ran, A)
            self.assertEqual(Path("kept").read_bytes(), body)
            self.assert_extracted(ran, A)

    def test_plain_events_under_a_wrong_header_in_pieces_of_any_size(self) -> None:
        for size in (1, 2, 3, 9):
            for body in (events(completed(A)), b": hello\n\n" + events(completed(A)), b"\xef\xbb\xbf" + images(A)):
                self.assert_good(self.play(MAKE, body, size, {"content-encoding": "deflate"}), A)

    def test_an_event_over_lines_of_which_the_first_is_a_bracket(self) -> None:
        text = json.dumps(completed(A))
        for size in (0, 1, 11):
            self.assert_good(self.play(MAKE, f"data: {{\ndata: {text[1:-1]}\ndata: }}\n\n".encode(), size), A)

    def test_words_behind_a_picture_in_chat_are_no_part_of_it(self) -> None:
        for data in (A, pictures.picture(b"oddly", "png", 17, 9), JPEG):
            half = len(b64(data)) // 2
            for words in ("\nDone.", "\n\n# It is done", " (done)"):
                for rows in ([delta(URL + b64(data)), delta(words)], [delta(URL + b64(data)[:half]), delta(b64(data)[half:]), delta(words)]):
                    with self.subTest(words, pieces=len(rows), bytes=len(data)):
                        ran = self.play(CHAT, events(*rows))
                        self.assert_good(ran, data)
                        self.assertNotRegex(ran.json["text"] or "", "[A-Za-z0-9+/]{80}")

    def test_a_whole_picture_with_something_behind_it_in_its_string_is_kept(self) -> None:
        for rest in (")", "#", "\\u0000", "AAAA\\n--"):
            with self.subTest(rest):
                ran = self.play(MAKE, b'{"data":[{"b64_json":"%s%s"}]}' % (b64(A).encode(), rest.encode()))
                self.assertEqual((ran.code, ran.json["images"]), (6, []))
                self.assert_rows(ran.json["unclaimed"], A)
                self.assert_extracted(ran, A)

    def test_a_picture_that_is_spoilt_before_its_end_is_not_kept(self) -> None:
        text = b64(A)
        ran = self.play(MAKE, images(A).replace(text.encode(), (text[:100] + "!" + text[100:]).encode()))
        self.assertEqual((ran.code, ran.json["images"], ran.json["unclaimed"]), (6, [], []))

    def test_base64url_of_every_format_is_known(self) -> None:
        for name in ("png", "jpeg", "webp", "gif"):
            data = pictures.picture(b"url-safe", name, 40, 30)
            text = base64.urlsafe_b64encode(data).decode()
            with self.subTest(name):
                self.assert_rows(self.play(MAKE, json.dumps({"images": [{"b64": text}]}).encode()).json["unclaimed"], data)
                self.assert_rows(self.play(CHAT, events(delta(f"![x]({URL}{text})"))).json["images"], data)

    def test_a_picture_between_escapes_is_known(self) -> None:
        for before, behind in (
            ("data:image/png;base64\\u002c", ""), ("\\u000a", ""),
            ("<img src=\\u0022data:image/png;base64,", "\\u0022\\u003e"), ("<img src=\\u0027data:image/png;base64,", "\\u0027>"),
        ):  # fmt: skip
            for size in (0, 1):
                with self.subTest(before, size=size):
                    ran = self.play(MAKE, f'{{"images": ["{before}{b64(A)}{behind}"]}}'.encode(), size)
                    self.assert_rows(ran.json["unclaimed"], A)

    def test_a_picture_in_text_that_is_no_json_is_kept(self) -> None:
        text = b64(A)
        for name, body in (("a string", json.dumps(text)), ("base64", text), ("a prefix", ")]}',\n" + images(A).decode()),
                           ("a page", f'<html><img src="{URL}{text}"></html>')):  # fmt: skip
            with self.subTest(name):
                ran = self.play(MAKE, body.encode(), 50)
                self.assertEqual(ran.code, 6)
                self.assert_rows(ran.json["unclaimed"], A)

    def test_too_much_json_behind_all_pictures_is_no_failure(self) -> None:
        body = images(A)[:-1] + b',"x":"' + b"x " * 30_000 + b'"}'
        with mock.patch.object(gpt_image, "MOST_JSON", 40_000):
            for size in (0, 4096):
                self.assertEqual(self.play(MAKE, body, size).code, 0)
        self.assertEqual(self.play(MAKE, images(A) + b"<html>").code, 0)
        self.assertEqual(self.play((*MAKE, "--n", "2"), images(A) + b"?").code, 6)

    def test_a_full_disk_for_an_unclaimed_picture_is_said_and_the_reply_kept(self) -> None:
        body = json.dumps({"data": [{"b64_json": b64(A)}], "other": b64(B)}).encode()
        whole = gpt_image.Lifted.save

        def save(picture: Any, decoded: bytes) -> None:
            with mock.patch.object(gpt_image, "write_all", side_effect=OSError(28, "No space left")):
                whole(picture, decoded)

        made: List[Any] = []

        def second_only(picture: Any, decoded: bytes) -> None:
            if picture not in made:
                made.append(picture)
            (save if made.index(picture) else whole)(picture, decoded)

        with mock.patch.object(gpt_image.Lifted, "save", second_only):
            ran = self.play(MAKE, body)
        self.assertEqual((ran.code, len(ran.json["images"])), (7, 1), ran.err)
        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)

    def test_extract_with_overwrite_replaces_only_what_it_was_told_to(self) -> None:
        Path("r").write_bytes(images(A))
        Path("x.png").write_bytes(b"old")
        for name in ("x-1.png", "x-extracted-1.png"):
            Path(name).write_bytes(b"precious")
        ran = self.run_main("extract", "r", "--output", "x.png", "--overwrite")
        self.assert_good(ran, A)
        self.assertEqual((Path("x-1.png").read_bytes(), Path("x-extracted-1.png").read_bytes()), (b"precious", b"precious"))

    def test_an_extracted_pattern_is_filled_as_a_call_fills_it(self) -> None:
        Path("r").write_bytes(images(A))
        Path("two").write_bytes(images(A, B))
        for argv, names in ((("r", "1/x-{index}.png"), ["1/x-1.png"]), (("two", "2/x.png"), ["2/x-1.png", "2/x-2.png"])):
            ran = self.run_main("extract", argv[0], "--output", argv[1])
            self.assertEqual([row["path"] for row in ran.json["images"]], names)
            self.assertEqual(self.files(argv[1][0]), [name[2:] for name in names])

    def test_a_final_takes_the_number_of_its_preview_though_it_has_another_key(self) -> None:
        preview = {"type": "response.image_generation_call.partial_image", "partial_image_b64": b64(B), "partial_image_index": 0}
        done = {"type": "response.output_item.done", "item": {"id": "ig_1", "type": "image_generation_call", "result": b64(A)}}
        for more in ({"output_index": 0}, {"item_id": "other"}, {}):
            with self.subTest(more):
                ran = self.play((*TALK, "--stream", "--partial-images", "1"), events({**preview, **more}, done))
                self.assert_good(ran, A)
                self.assertEqual(self.files(), ["o-partial-1.png", "o.png"])

    def test_a_cut_avif_is_never_whole(self) -> None:
        boxes = [(b"ftyp", b"avif\0\0\0\0mif1avif"), (b"meta", bytes(40)), (b"mdat", os.urandom(64))]
        data = b"".join(struct.pack(">I", 8 + len(body)) + kind + body for kind, body in boxes)
        self.assertTrue(self.play(MAKE, images(data)).json["images"][0]["whole"])
        for end in (*range(49, len(data) - 1, 7), len(data) - 1):
            ran = self.play(MAKE, images(data[:end]))
            self.assertEqual((ran.code, ran.json["images"][0]["whole"]), (6, False), end)
            self.assertIn("cut short", ran.error["message"])
            self.assertTrue(ran.error["hint"])

    def test_a_preview_among_documents_that_is_cut_is_no_picture(self) -> None:
        for key in ("b64_json", "partial_image_b64"):
            body = f'{{"type":"x"}}\n{{"{key}":"{b64(A)}","partial_image_index":0,'.encode()
            ran = self.play(MAKE, body)
            self.assertEqual((ran.json["images"], ran.code), ([], 5))
            self.assert_rows(ran.json["unclaimed"], A)

    def test_a_picture_of_an_event_and_of_the_list_behind_it_is_one(self) -> None:
        self.assert_good(self.play(MAKE, events(completed(A, item_id="1"), {"created": 1, "data": [{"b64_json": b64(A)}]})), A)
        self.assert_good(self.play((*MAKE, "--n", "2"), images(A, A)), A, A)

    def test_a_refusal_is_kept_byte_for_byte(self) -> None:
        packed = gzip.compress(b'{"error":{"message":"no"}}')
        for body, headers in ((packed, {"content-encoding": "gzip"}), (b"x" * 3_000_000, {})):
            ran = self.play((*MAKE, "--save-response", "kept"), body, 65536, headers, 400)
            self.assertEqual((ran.code, Path("kept").read_bytes() == body), (4, True))
        transport = FakeTransport(reply(b"first", 500), reply(b"second", 500), gpt_image.Fault("refused", False))
        self.run_main("generations", "x", "--output", "f.png", "--save-response", "last", transport=transport)
        self.assertEqual(Path("last").read_bytes(), b"second")

    def test_what_delivered_a_picture_may_be_billed_whatever_came_behind_it(self) -> None:
        error = {"type": "error", "error": {"message": "Sorry.", "code": "server_error"}}
        preview = {"type": "image_generation.partial_image", "b64_json": b64(B), "partial_image_index": 0}
        for argv, body in (
            ((*MAKE, "--n", "2"), json.dumps({"data": [{"b64_json": b64(A)}, {"error": {"message": "no"}}]}).encode()),
            (MAKE, events(preview, error)), ((*MAKE, "--n", "2"), images(A) + b"<html>"),
        ):  # fmt: skip
            ran = self.play(argv, body)
            self.assertNotEqual(ran.code, 0)
            self.assertIs(ran.error["may_be_billed"], True)
        self.assertIs(self.play(MAKE, b'{"error": {"message": "no", "code": "moderation_blocked"}}').error["may_be_billed"], False)

    def test_nothing_of_how_pictures_are_lifted_is_printed(self) -> None:
        for body in (
            {"error": {"message": f"cannot read {URL}{b64(A)}", "code": "x"}},
            {"data": [{"b64_json": b64(B), "revised_prompt": URL + b64(A)}]}, {"id": b64(A), "output": []},
        ):  # fmt: skip
            ran = self.play(TALK if "output" in body else MAKE, json.dumps(body).encode())
            self.assertNotRegex(ran.out, gpt_image.TOKEN)
            self.assertNotRegex(ran.out, "[A-Za-z0-9+/]{80}")

    def test_base64_in_pieces_of_an_answer_is_not_printed(self) -> None:
        text = b64(pictures.picture(b"large", "png", 40, 30))
        words = [f"A lake: ![x]({URL}", *(piece.decode() for piece in cut(text.encode(), 150)), ") there"]
        for kind in ("output_text", "refusal"):
            rows = [{"type": f"response.{kind}.delta", "delta": word} for word in words]
            ran = self.play(TALK, events(*rows))
            self.assertNotRegex(ran.out, "[A-Za-z0-9+/]{80}")
            self.assertTrue(ran.json["text"].startswith("A lake:") and ran.json["text"].endswith(") there"), ran.json["text"])
            self.assertEqual(len(ran.json["unclaimed"]), 1)

    def test_the_failure_of_another_tool_is_not_that_of_the_picture(self) -> None:
        item = {"id": "ig_1", "type": "image_generation_call", "result": b64(A)}
        for name in ("mcp_call.failed", "mcp_list_tools.failed", "code_interpreter_call.failed"):
            failed = {"type": f"response.{name}", "item_id": "t_1", "output_index": 0, "error": {"message": "no"}}
            done = {"type": "response.output_item.done", "output_index": 1, "item": item}
            self.assert_good(self.play(TALK, events(failed, done)), A)
        own = {"type": "response.image_generation_call.failed", "error": {"message": "Sorry."}}
        self.assertIn("Sorry.", self.play(TALK, events(own)).error["message"])

    def test_what_another_tool_returns_says_nothing_of_the_response(self) -> None:
        found = {"type": "response.web_search_call.completed", "id": "ws_1", "url": "https://example.org/", "usage": {}}
        item = {"id": "ig_1", "type": "image_generation_call", "result": b64(A)}
        done = {"type": "response.output_item.done", "item": item}
        ran = self.play(TALK, events({"type": "response.created", "response": {"id": "resp_1"}}, found, done))
        self.assert_good(ran, A)
        self.assertEqual((ran.json["response_id"], ran.json["usage"]), ("resp_1", None))

    def test_extract_says_that_a_picture_is_cut_short(self) -> None:
        ran = self.play((*MAKE, "--n", "2"), images(A, B[:-12]))
        self.assertEqual([row["whole"] for row in ran.json["images"]], [True, False])
        again = self.run_main("extract", ran.json["saved_response"], "--output", "e.png")
        self.assertEqual((again.code, [row["whole"] for row in again.json["images"]]), (6, [True, False]))

    def test_a_reply_cut_behind_a_long_word_is_read_at_once(self) -> None:
        body = b'{"data": [], "a": "' + b"a" * 2_000_000 + b'", "b": '
        self.assertEqual(self.play(MAKE, body, 65536).code, 5)

    def test_a_lone_surrogate_between_pictures_is_no_traceback(self) -> None:
        ran = self.play(CHAT, events(delta("\ud800 " + URL + b64(A)), delta(" \udc00")))
        self.assert_good(ran, A)
        self.assertIsNone(re.search("Traceback", ran.err))

    def test_words_behind_a_bare_picture_are_no_part_of_it_wherever_they_come(self) -> None:
        padded = [pictures.picture(b"words", "png", 16, height) for height in range(8, 40)]
        each = {len(data) % 3: data for data in padded}
        self.assertEqual(len(each), 3)
        turn = 0
        for data in each.values():
            text = URL + b64(data)
            for rest in ("\nDone", "\n\nDone.", " Done", ".", "!", ",", ";", "`", "\n**Done**"):
                for shown in {text, text.rstrip("=")}:
                    bodies = [events(*map(delta, rows)) for rows in ([shown + rest], [shown, rest], [shown[:-5], shown[-5:] + rest])]
                    bodies.append(json.dumps({"choices": [{"message": {"content": shown + rest}}]}).encode())
                    turn += 1  # two of the four each time
                    for body in (bodies + bodies)[turn % 4 : turn % 4 + 2]:
                        with self.subTest(rest, body=body[:60], padded=shown[-2:]):
                            self.assert_good(self.play(CHAT, body, 100 if body == bodies[-1] else 0), data)

    def test_a_packed_reply_that_begins_with_the_byte_of_a_bracket_is_unpacked(self) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FIXED)
        packed = packer.compress(b"\xef\xbb\xbf" + events(completed(A))) + packer.flush()
        self.assertEqual(packed[:1], b"{")
        self.assert_good(self.play(MAKE, packed, 0, {"content-encoding": "deflate"}), A)

    def test_a_cut_document_of_one_preview_is_no_picture(self) -> None:
        body = f'{{"b64_json":"{b64(A)}","partial_image_index":0,"ty'.encode()
        ran = self.play((*MAKE, "--stream", "--partial-images", "1"), body)
        self.assertEqual((ran.code, ran.json["images"]), (5, []))
        self.assert_rows(ran.json["unclaimed"], A)

    def test_pictures_that_go_through_links_to_one_file_are_refused(self) -> None:
        for names, options in ((("o-1.png", "o-2.png"), ("--n", "2")), (("o.png", "kept"), ("--save-response", "kept"))):
            for name in names:
                os.symlink("t.png", name)
            ran = self.run_main(*MAKE, *options, "--overwrite", transport=FakeTransport())
            self.assertEqual((ran.code, ran.error["rule"]), (7, "output-twice"), ran.err)
            for name in names:
                os.unlink(name)

    def test_an_event_of_another_dialect_within_a_picture_in_pieces_spoils_it_not(self) -> None:
        other = {"type": "response.output_text.delta", "delta": "A lake \ud800."}
        data = pictures.picture(b"long", "gif", 40, 30)
        text = f"![x]({URL}{b64(data)}) done"
        for at in range(40, len(text), 193):
            self.assert_good(self.play(CHAT, events(delta(text[:at]), other, delta(text[at:]))), data)

    def test_a_picture_in_pieces_right_behind_another_one_is_whole(self) -> None:
        body = events(delta(f"{b64(A)} {b64(B)[:100]}"), delta(b64(B)[100:]))
        self.assert_good(self.play(CHAT, body), A, B)

    def test_an_unknown_name_of_an_event_costs_no_chat_picture(self) -> None:
        row = {"choices": [{"message": {"content": f"![x]({URL}{b64(A)})"}}]}
        for before in (b"event: foo\n", b"event: foo\n\n"):
            self.assert_good(self.play(CHAT, before + events(row)), A)


if __name__ == "__main__":
    unittest.main()
