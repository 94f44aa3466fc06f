"""What a reply's documents mean: previews and finals, texts, refusals and errors, in whichever dialect."""

from __future__ import annotations

import base64
import hashlib
import json
import unittest
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import gpt_image
from tests.support import FakeTransport, ProgramTest, Ran, reply
from tests.test_reply import picture

Json = Dict[str, Any]
PICTURE_ITEM = gpt_image.PICTURE_ITEM
USAGE = {"input_tokens": 10, "output_tokens": 50, "total_tokens": 60,
         "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}  # fmt: skip


def b64(name: str) -> str:
    """Returns a picture in base64."""
    return base64.b64encode(picture(name)).decode()


def events(*rows: Json, names: bool = False) -> bytes:
    """Returns rows as server-sent events, with or without `event:` lines."""
    text = ""
    for row in rows:
        text += (f"event: {row['type']}\n" if names else "") + f"data: {json.dumps(row)}\n\n"
    return text.encode()


def call(name: str, id: Optional[str] = "ig_1", **more: Any) -> Json:
    """Returns an image_generation_call with its picture."""
    item = {"type": "image_generation_call", "status": "completed", "result": b64(name), **more}
    return {**item, "id": id} if id else item


def done(item: Json, index: int = 0) -> Json:
    """Returns the event of a finished item."""
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def preview(name: str, number: int = 0, id: Optional[str] = "ig_1", index: int = 0) -> Json:
    """Returns the event of a preview."""
    row = {"type": "response.image_generation_call.partial_image", "output_index": index, "partial_image_index": number,
           "partial_image_b64": b64(name)}  # fmt: skip
    return {**row, "item_id": id} if id else row


def message(text: str, kind: str = "output_text") -> Json:
    """Returns a message item that says a text or refuses."""
    key = "text" if kind == "output_text" else "refusal"
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": kind, key: text}]}


def response(*output: Json, status: str = "completed", **more: Any) -> Json:
    """Returns a response object."""
    return {"id": "resp_1", "object": "response", "status": status, "output": list(output), "usage": USAGE, **more}


def completed(*output: Json, **more: Any) -> Json:
    """Returns the event a stream of a response ends with."""
    return {"type": "response.completed", "response": response(*output, **more)}


class EventsTest(ProgramTest):
    """A test that plays one reply."""

    def play(self, argv: str, body: Any, *more: str) -> Ran:
        """Runs a call in a folder that is empty."""
        for name in self.files("out") if Path("out").exists() else []:
            Path("out", name).unlink()
        return self.run_main(
            *argv.split(), "--output", "out/o.png", "--progress", "none", *more, transport=Gone(reply(body))
        )

    def assert_saved(
        self, ran: Ran, finals: Sequence[str], previews: Sequence[Tuple[str, int, int]] = (), code: int = 0
    ) -> None:
        """Asserts what was saved: finals in their order, previews with their picture's index and their number."""
        self.assertEqual(ran.code, code, ran.err)
        self.assertEqual([row["sha256"] for row in ran.json["images"]],
                         [hashlib.sha256(picture(name)).hexdigest() for name in finals])  # fmt: skip
        for row in ran.json["images"] + ran.json["partial_images"]:
            self.assertEqual(hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest(), row["sha256"])
        self.assertEqual([(row["sha256"], row["index"], row["partial"]) for row in ran.json["partial_images"]],
                         [(hashlib.sha256(picture(name)).hexdigest(), i, n) for name, i, n in previews])  # fmt: skip
        files = [row["path"] for row in ran.json["images"] + ran.json["partial_images"]]
        self.assertEqual(len(set(files)), len(files), "two pictures went to one file")


class Gone(FakeTransport):
    """A transport that knows no response when it is asked for one."""

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) if self.replies else reply({"error": {"message": "not found"}}, 404)


STREAM = "generations x --stream --partial-images 3"
RESPONSE = "responses x"
RESPONSE_STREAM = "responses x --stream --partial-images 3"


class PreviewsAndFinalsTest(EventsTest):
    """A preview is never taken for a final, nor a final for a preview."""

    def test_the_type_in_the_data_is_enough(self) -> None:
        for kind, argv in (("image_generation", STREAM), ("image_edit", STREAM), ("image_generation", "generations x")):
            with self.subTest(kind, argv=argv):
                body = events(
                    {"type": f"{kind}.partial_image", "b64_json": b64("big-p"), "partial_image_index": 0},
                    {"type": f"{kind}.completed", "b64_json": b64("big-f"), "usage": USAGE},
                )
                self.assert_saved(self.play(argv, body), ["big-f"], [("big-p", 1, 1)])

    def test_the_event_line_is_enough(self) -> None:
        body = (
            f"event: image_generation.partial_image\ndata: {json.dumps({'b64_json': b64('big-p'), 'partial_image_index': 0})}\n\n"
            f"event: image_generation.completed\ndata: {json.dumps({'b64_json': b64('big-f')})}\n\n"
        )
        self.assert_saved(self.play(STREAM, body), ["big-f"], [("big-p", 1, 1)])

    def test_the_type_in_the_data_wins_over_the_event_line(self) -> None:
        partial = {"type": "image_generation.partial_image", "b64_json": b64("big-p"), "partial_image_index": 0}
        body = f"event: image_generation.completed\ndata: {json.dumps(partial)}\n\n"
        self.assert_saved(self.play(STREAM, body), [], [("big-p", 1, 1)], code=6)

    def test_an_event_line_holds_for_one_event_only(self) -> None:
        # A gateway that names the first event and leaves the rest unnamed: the second is not a final by the first's name.
        body = (f"event: image_generation.completed\ndata: {json.dumps({'b64_json': b64('big-f')})}\n\n"
                f"data: {json.dumps({'b64_json': b64('big-q'), 'partial_image_index': 1})}\n\n")  # fmt: skip
        ran = self.play(STREAM, body)
        self.assertEqual(len(ran.json["images"]), 1)

    def test_an_event_line_before_a_comment_and_other_fields_still_names_the_event(self) -> None:
        data = json.dumps({"b64_json": b64("big-f")})
        body = f"event:image_generation.completed\n: ping\nid: 3\nretry: 5\ndata:{data}\n\n"
        self.assert_saved(self.play(STREAM, body), ["big-f"])

    def test_numbers_of_previews_are_the_servers(self) -> None:
        rows = [
            {"type": "image_generation.partial_image", "b64_json": b64(f"big-{n}"), "partial_image_index": n}
            for n in (0, 2)
        ]
        body = events(*rows, {"type": "image_generation.completed", "b64_json": b64("big-f")})
        ran = self.play(STREAM, body)
        self.assert_saved(ran, ["big-f"], [("big-0", 1, 1), ("big-2", 1, 3)])
        self.assertEqual(self.files("out"), ["o-partial-1.png", "o-partial-3.png", "o.png"])

    def test_previews_with_the_same_number_are_all_kept(self) -> None:
        rows = [
            {"type": "image_generation.partial_image", "b64_json": b64(f"big-{n}"), "partial_image_index": 0}
            for n in "ab"
        ]
        ran = self.play(STREAM, events(*rows, {"type": "image_generation.completed", "b64_json": b64("big-f")}))
        self.assertEqual([row["sha256"] for row in ran.json["partial_images"]],
                         [hashlib.sha256(picture(f"big-{n}")).hexdigest() for n in "ab"])  # fmt: skip
        self.assertEqual(len(self.files("out")), 3)

    def test_more_previews_than_asked_for_are_kept(self) -> None:
        rows = [
            {"type": "image_generation.partial_image", "b64_json": b64(f"big-{n}"), "partial_image_index": n}
            for n in range(5)
        ]
        body = events(*rows, {"type": "image_generation.completed", "b64_json": b64("big-f")})
        self.assert_saved(
            self.play("generations x --stream", body), ["big-f"], [(f"big-{n}", 1, n + 1) for n in range(5)]
        )

    def test_a_stream_that_ends_after_its_previews_is_a_failure_that_keeps_them(self) -> None:
        for done in (b"", b"data: [DONE]\n\n"):
            body = (
                events({"type": "image_generation.partial_image", "b64_json": b64("big-p"), "partial_image_index": 0})
                + done
            )
            ran = self.play(STREAM, body)
            self.assert_saved(ran, [], [("big-p", 1, 1)], code=6)
            self.assertEqual((ran.error["may_be_billed"], bool(ran.error["recovery"])), (True, True))

    def test_a_final_that_is_the_last_preview_over_again_is_saved(self) -> None:
        body = events({"type": "image_generation.partial_image", "b64_json": b64("big-f"), "partial_image_index": 0},
                      {"type": "image_generation.completed", "b64_json": b64("big-f")})  # fmt: skip
        self.assert_saved(self.play(STREAM, body), ["big-f"], [("big-f", 1, 1)])

    def test_a_broken_preview_does_not_spoil_the_final(self) -> None:
        for text in (
            b64("big-p")[:-40] + "!" + b64("big-p")[-40:],
            "AAAA",
            "not base64",
            b64("big-p")[: len(b64("big-p")) // 2],
        ):
            with self.subTest(text[-20:]):
                body = events({"type": "image_generation.partial_image", "b64_json": text, "partial_image_index": 0},
                              {"type": "image_generation.completed", "b64_json": b64("big-f")})  # fmt: skip
                ran = self.play(STREAM, body)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(
                    [row["sha256"] for row in ran.json["images"]], [hashlib.sha256(picture("big-f")).hexdigest()]
                )
                self.assertTrue(ran.json["warnings"])

    def test_unknown_events_are_let_pass(self) -> None:
        body = events({"type": "image_generation.heartbeat", "b64_json": None},
                      {"type": "future.event", "x": {"y": [1]}},
                      {"type": "image_generation.completed", "b64_json": b64("big-f"),
                       "new_field": {"a": 1}})  # fmt: skip
        self.assert_saved(self.play(STREAM, body), ["big-f"])

    def test_a_picture_that_nothing_in_a_stream_names_is_left_unclaimed_and_kept(self) -> None:
        draft = {"type": "image_generation.draft", "b64_json": b64("big-d")}
        for row in (draft, {"b64_json": b64("big-d")}, {"data": {"b64_json": b64("big-d")}}, {"images": [b64("big-d")]}):
            with self.subTest(row.keys()):
                ran = self.play(STREAM, events(row, {"type": "image_generation.completed", "b64_json": b64("big-f")}))
                self.assert_saved(ran, ["big-f"])
                self.assertEqual([kept["path"] for kept in ran.json["unclaimed"]], ["out/o-unclaimed-1.png"])
                self.assertEqual(Path("out/o-unclaimed-1.png").read_bytes(), picture("big-d"))
                ran = self.play(STREAM, events(row))
                self.assertEqual((ran.code, len(ran.json["unclaimed"])), (6, 1))
                self.assertIn("saved 1 picture the reply did not name", ran.error["message"])

    def test_pictures_of_a_list_that_share_the_id_of_their_call_are_all_saved(self) -> None:
        rows = [{"id": "call_1", "b64_json": b64(name)} for name in ("big-d", "big-f")]
        self.assert_saved(self.play("generations x --n 2", json.dumps({"data": rows}).encode()), ["big-d", "big-f"])

    def test_crlf_cut_in_two_ends_no_event_of_several_lines(self) -> None:
        lines = [b'data: {"type": "image_generation.completed",', b'data: "b64_json": "' + b64("big-d").encode() + b'"}']
        body = b"\r\n".join([*lines, b"", b""])
        at = body.index(b"\r\n") + 1
        ran = self.run_main(*STREAM.split(), "--output", "crlf.png",
                            transport=FakeTransport(gpt_image.Reply(200, {}, [body[:at], body[at:]])))  # fmt: skip
        self.assertEqual((ran.code, len(ran.json["images"])), (0, 1), ran.err)

    def test_a_picture_that_nothing_names_is_a_final_in_json(self) -> None:
        ran = self.play("generations x", json.dumps({"b64_json": b64("big-d")}).encode())
        self.assertEqual((ran.code, len(ran.json["images"])), (0, 1))


class ResponsesTest(EventsTest):
    """The finals of a response: wherever they stand, once for each id."""

    def test_a_picture_is_saved_once_for_its_id_wherever_it_stands(self) -> None:
        for name, rows in (
            ("in the item", [done(call("big-a")), completed()]),
            ("in the completed response", [completed(call("big-a"))]),
            ("in both", [done(call("big-a")), completed(call("big-a"))]),
            ("in the item, twice", [done(call("big-a")), done(call("big-a")), completed(call("big-a"))]),
            ("generating in the item", [done(call("big-a", status="generating")), completed()]),
            ("generating in both",
             [done(call("big-a", status="generating")), completed(call("big-a", status="generating"))]),
            ("without an id in the item", [done(call("big-a", id=None)), completed(call("big-a"))]),
            ("without an id in the response", [done(call("big-a")), completed(call("big-a", id=None))]),
            ("without any id", [done(call("big-a", id=None)), completed(call("big-a", id=None))]),
            ("empty in the item", [done(call("big-a", result="")), completed(call("big-a"))]),
            ("null in the item", [done(call("big-a", result=None)), completed(call("big-a"))]),
            ("null in the response", [done(call("big-a")), completed(call("big-a", result=None))]),
            ("under another key",
             [done({"type": "image_generation_call", "id": "ig_1", "image_base64": b64("big-a")}), completed()]),
            ("no completed event", [done(call("big-a"))]),
            ("in an incomplete response",
             [done(call("big-a")), {**completed(status="incomplete"), "type": "response.incomplete"}]),
        ):  # fmt: skip
            for named in (False, True):
                with self.subTest(name, named=named):
                    ran = self.play(RESPONSE_STREAM, events(*rows, names=named))
                    self.assert_saved(ran, ["big-a"])
                    self.assertEqual(self.files("out"), ["o.png"])

    def test_a_plain_response_is_read_alike(self) -> None:
        for name, body in (
            ("as it is", response(call("big-a"))),
            ("generating", response(call("big-a", status="generating"))),
            ("under b64_json", response({"type": "image_generation_call", "id": "ig_1", "b64_json": b64("big-a")})),
            ("inline", response(call("big-a"), status="in_progress")),
            ("with a data: URL", response(call("big-a", result="data:image/png;base64," + b64("big-a")))),
        ):
            with self.subTest(name):
                self.assert_saved(self.play(RESPONSE, body), ["big-a"])

    def test_a_picture_that_stands_there_twice_costs_no_later_one(self) -> None:
        url = "data:image/png;base64,"
        twice = {**call("big-a"), "url": url + b64("big-a")}
        later = (call("big-b", "ig_2"), call("big-c", "ig_3"))
        for name, rows in (
            ("in the item", [done(twice), completed(*later)]),
            ("in both", [done(twice), completed(twice, *later)]),
            ("in a preview", [{**preview("big-p"), "url": url + b64("big-p")}, completed(call("big-a"), *later)]),
            ("in two items", [done(twice), done({**later[0], "url": url + b64("big-b")}, 1), completed(*later)]),
        ):
            with self.subTest(name):
                previews = [("big-p", 1, 1)] if "preview" in name else []
                self.assert_saved(self.play(RESPONSE_STREAM, events(*rows)), ["big-a", "big-b", "big-c"], previews)

    def test_several_calls_are_several_pictures(self) -> None:
        rows = [preview("big-p1", 0, "ig_1", 0), preview("big-q1", 0, "ig_2", 1), preview("big-p2", 1, "ig_1", 0),
                preview("big-q2", 1, "ig_2", 1), done(call("big-b", "ig_2"), 1),
                done(call("big-a", "ig_1"), 0)]  # fmt: skip
        ran = self.play(RESPONSE_STREAM, events(*rows, completed(call("big-a", "ig_1"), call("big-b", "ig_2"))))
        self.assertEqual(ran.code, 0, ran.err)
        finals = {row["index"]: row["sha256"] for row in ran.json["images"]}
        self.assertEqual(
            finals, {1: hashlib.sha256(picture("big-a")).hexdigest(), 2: hashlib.sha256(picture("big-b")).hexdigest()}
        )
        self.assertEqual(
            [(row["index"], row["partial"]) for row in ran.json["partial_images"]], [(1, 1), (2, 1), (1, 2), (2, 2)]
        )
        self.assertEqual(len(self.files("out")), 6)

    def test_previews_know_their_picture_by_place_where_there_is_no_id(self) -> None:
        rows = [
            preview("big-p", 0, None, 0),
            preview("big-q", 0, None, 1),
            done(call("big-a", None), 0),
            done(call("big-b", None), 1),
        ]
        ran = self.play(RESPONSE_STREAM, events(*rows, completed()))
        self.assert_saved(ran, ["big-a", "big-b"], [("big-p", 1, 1), ("big-q", 2, 1)])

    def test_pictures_of_the_same_bytes_with_different_ids_are_all_kept(self) -> None:
        calls = [call("big-a", f"ig_{i}") for i in range(3)]
        for name, body in (("plain", response(*calls)),
                           ("stream", events(*(done(each, i) for i, each in enumerate(calls)), completed(*calls))),
                           ("completed", events(completed(*calls)))):  # fmt: skip
            with self.subTest(name):
                self.assert_saved(self.play(RESPONSE, body), ["big-a"] * 3)
                self.assertEqual(len(self.files("out")), 3)

    def test_pictures_of_the_same_bytes_in_an_images_reply_are_all_kept(self) -> None:
        body = {"created": 1, "data": [{"b64_json": b64(name)} for name in ("big-a", "big-a", "small-b", "small-b")]}
        self.assert_saved(self.play("generations x --n 4", body), ["big-a", "big-a", "small-b", "small-b"])
        self.assertEqual(self.files("out"), ["o-1.png", "o-2.png", "o-3.png", "o-4.png"])

    def test_an_item_of_another_kind_is_no_picture(self) -> None:
        items = [{"type": "code_interpreter_call", "id": "ci_1", "result": b64("big-x")},
                 {"type": "function_call_output", "id": "f_1", "result": b64("small-x")}]  # fmt: skip
        ran = self.play(RESPONSE, response(*items, call("big-a")))
        self.assert_saved(ran, ["big-a"])
        self.assert_saved(
            self.play(RESPONSE_STREAM, events(*(done(item, i) for i, item in enumerate(items)), completed())),
            [],
            code=6,
        )

    def test_a_picture_for_the_model_in_the_reply_is_no_result(self) -> None:
        body = response(call("big-a"), input=[{"role": "user", "content": [{"type": "input_image", "image_url":
                        "data:image/png;base64," + b64("big-in")}]}])  # fmt: skip
        self.assert_saved(self.play(RESPONSE, body), ["big-a"])

    def test_the_revised_prompt_belongs_to_its_picture(self) -> None:
        ran = self.play(
            RESPONSE,
            response(
                call("big-a", "ig_1", revised_prompt="a"),
                call("small-b", "ig_2"),
                call("big-c", "ig_3", revised_prompt=7),
            ),
        )
        self.assertEqual([row["revised_prompt"] for row in ran.json["images"]], ["a", None, None])


class TextsTest(EventsTest):
    """What the model says, and what the server says of itself."""

    def test_text_id_and_usage_are_in_the_result(self) -> None:
        for name, body in (
            ("plain", response(call("big-a"), message("Here."))),
            ("items", events(done(call("big-a")), done(message("Here."), 1), completed())),
            ("completed only", events(completed(call("big-a"), message("Here.")))),
            ("both", events(done(call("big-a")), {"type": "response.output_text.delta", "delta": "He"},
                            {"type": "response.output_text.delta", "delta": "re."},
                            {"type": "response.output_text.done", "text": "Here."},
                            done(message("Here."), 1), completed(call("big-a"), message("Here.")))),
            ("deltas only", events({"type": "response.output_text.delta", "delta": "He"},
                                   {"type": "response.output_text.delta", "delta": "re."}, done(call("big-a")),
                                   completed())),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(RESPONSE, body)
                self.assertEqual(
                    (ran.code, ran.json["text"], ran.json["response_id"], ran.json["usage"]),
                    (0, "Here.", "resp_1", USAGE),
                )

    def test_several_messages_are_all_there(self) -> None:
        first, second = {**message("One."), "id": "msg_1"}, {**message("Two."), "id": "msg_2"}
        for body in (
            response(first, call("big-a"), second),
            events(done(first), done(call("big-a"), 1), done(second, 2), completed(first, second)),
        ):
            text = self.play(RESPONSE, body).json["text"]
            self.assertEqual(text.split(), ["One.", "Two."])

    def test_several_parts_of_a_message_are_all_there(self) -> None:
        item = {
            **message("One."),
            "content": [{"type": "output_text", "text": "One."}, {"type": "output_text", "text": "Two."}],
        }
        text = self.play(RESPONSE, response(item, call("big-a"))).json["text"]
        self.assertEqual(text.replace("Two.", " Two.").split(), ["One.", "Two."])

    def test_words_instead_of_a_picture_are_a_failure_where_the_tool_was_forced(self) -> None:
        for body in (
            response(message("I would rather not.")),
            events(done(message("I would rather not.")), completed()),
        ):
            ran = self.play(RESPONSE, body)
            self.assertEqual((ran.code, ran.json["text"]), (6, "I would rather not."))
            free = self.play(RESPONSE, body, "--tool-choice", "auto")
            self.assertEqual((free.code, free.json["text"], free.json["images"]), (0, "I would rather not.", []))

    def test_refusals_are_in_the_text_and_no_success(self) -> None:
        refusal = message("I can't help with that.", "refusal")
        for name, body in (
            ("plain", response(refusal)),
            ("item", events(done(refusal), completed(refusal))),
            ("deltas", events({"type": "response.refusal.delta", "delta": "I can't "},
                              {"type": "response.refusal.delta", "delta": "help with that."}, completed())),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(RESPONSE, body)
                self.assertEqual((ran.code, ran.json["text"], ran.json["ok"]), (6, "I can't help with that.", False))

    def test_usage_of_the_images_routes_gives_a_cost(self) -> None:
        for body in ({"created": 1, "data": [{"b64_json": b64("big-a")}], "usage": USAGE},
                     events({"type": "image_generation.completed", "b64_json": b64("big-a"),
                             "usage": USAGE})):  # fmt: skip
            ran = self.play("generations x", body)
            self.assertEqual((ran.json["usage"], ran.json["cost"]["usd"]), (USAGE, round((10 * 5 + 50 * 30) / 1e6, 6)))
            self.assertIsNone(ran.json["response_id"])

    def test_usage_may_be_missing(self) -> None:
        ran = self.play("generations x", {"data": [{"b64_json": b64("big-a")}]})
        self.assertEqual((ran.code, ran.json["usage"], ran.json["cost"]), (0, None, None))

    def test_the_request_id_is_in_the_result(self) -> None:
        transport = FakeTransport(reply({"data": [{"b64_json": b64("big-a")}]}, headers={"X-Request-Id": "req_7"}))
        self.assertEqual(self.run_main("generations", "x", transport=transport).json["request_id"], "req_7")


class ErrorsTest(EventsTest):
    """Errors that come after a 200."""

    BLOCKED = {
        "message": "Rejected by the safety system.",
        "type": "image_generation_user_error",
        "code": "moderation_blocked",
    }
    SERVER = {"message": "The server had an error.", "type": "server_error", "code": "server_error"}

    def rows(self, error: Json) -> List[Tuple[str, str, Any]]:
        """Returns an error in every place where it can stand."""
        return [
            ("image event", STREAM, events({"type": "image_generation.failed", "error": error})),
            ("named like a preview", STREAM, events({"type": "image_generation.partial_image", "error": error})),
            ("named like the final", STREAM, events({"type": "image_generation.completed", "error": error})),
            ("without a type", STREAM, events({"type": "error", "error": error})),
            ("no name at all", STREAM, b"data: " + json.dumps({"error": error}).encode() + b"\n\n"),
            ("event line", STREAM, b"event: error\ndata: " + json.dumps({"error": error}).encode() + b"\n\n"),
            ("top level", RESPONSE_STREAM, events({**error, "type": "error", "param": None})),
            ("top level, nested", RESPONSE_STREAM, events({"type": "error", "error": error})),
            ("response.failed", RESPONSE_STREAM,
             events({"type": "response.failed", "response": response(status="failed", error=error)})),
            ("plain response", RESPONSE, response(status="failed", error=error)),
            ("plain images", "generations x", {"error": error}),
            ("plain images beside data", "generations x", {"created": 1, "data": [], "error": error}),
            ("item", RESPONSE_STREAM,
             events(done({"type": "image_generation_call", "id": "ig_1", "status": "failed", "error": error}),
                    completed())),
            ("plain item", RESPONSE,
             response({"type": "image_generation_call", "id": "ig_1", "status": "failed", "result": None,
                       "error": error})),
        ]  # fmt: skip

    def test_an_error_is_a_failure_wherever_it_stands(self) -> None:
        for error, code in ((self.BLOCKED, 4), (self.SERVER, 5)):
            for name, argv, body in self.rows(error):
                with self.subTest(name, code=error["code"]):
                    ran = self.play(argv, body)
                    self.assertEqual((ran.code, ran.error["code"]), (code, error["code"]), ran.err)
                    self.assertIn(error["message"], ran.error["message"])

    def test_a_numeric_code_in_a_body_counts_like_a_status_where_the_status_says_nothing(self) -> None:
        for error, status, code in (
            ({"code": 500}, 200, 5), ({"code": 599}, 200, 5), ({"code": 499}, 200, 4), ({"code": 400}, 200, 4),
            ({"status": 503}, 200, 5), ({"status": 403}, 200, 4), ({"code": "x", "status": 503}, 200, 5),
            # A number that is a status wins over words, one that is none does not.
            ({"code": 400, "type": "server_error"}, 200, 4), ({"code": 399, "type": "server_error"}, 200, 5),
            ({"code": 599, "type": "x"}, 200, 5), ({"code": 600, "type": "x"}, 200, 4),
            ({"code": 500}, 400, 4),
        ):  # fmt: skip
            with self.subTest(error, status=status):
                body = json.dumps({"error": {"message": "No.", **error}})
                ran = self.run_main("generations", "x", transport=FakeTransport(reply(body, status)))
                self.assertEqual((ran.code, ran.error["may_be_billed"]), (code, code == 5), ran.err)

    def test_previews_before_an_error_are_kept(self) -> None:
        start = events({"type": "image_generation.partial_image", "b64_json": b64("big-p"), "partial_image_index": 0})
        ran = self.play(STREAM, start + events({"type": "error", "error": self.BLOCKED}))
        self.assert_saved(ran, [], [("big-p", 1, 1)], code=4)

    def test_a_form_that_is_not_understood_gets_the_hint_of_its_status(self) -> None:
        ran = self.run_main("generations", "x", transport=FakeTransport(reply({"error": {"message": "image?"}}, 422)))
        self.assertEqual((ran.code, "--image-field-style simple" in ran.error["hint"]), (4, True), ran.err)

    def test_moderation_says_its_stage_and_categories(self) -> None:
        details = {"moderation_stage": "output", "categories": ["violence", "self-harm"]}
        ran = self.play("generations x", {"error": {**self.BLOCKED, "moderation_details": details}})
        for word in ("output", "violence", "self-harm"):
            self.assertIn(word, ran.error["message"])

    def test_an_incomplete_response_says_why(self) -> None:
        body = events(
            {
                "type": "response.incomplete",
                "response": response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            }
        )
        ran = self.play(RESPONSE_STREAM, body)
        self.assertEqual(ran.code, 6)
        self.assertIn("max_output_tokens", ran.error["message"])

    def test_an_error_of_one_of_two_calls_keeps_the_picture_of_the_other(self) -> None:
        failed = {"type": "image_generation_call", "id": "ig_2", "status": "failed", "error": self.BLOCKED}
        for body in (
            response(call("big-a"), failed),
            events(done(call("big-a")), done(failed, 1), completed(call("big-a"), failed)),
        ):
            ran = self.play(RESPONSE, body)
            self.assertEqual(
                [row["sha256"] for row in ran.json["images"]], [hashlib.sha256(picture("big-a")).hexdigest()]
            )
            self.assertEqual(ran.code, 4)

    def test_an_error_of_null_is_none(self) -> None:
        ran = self.play(
            "generations x", {"created": 1, "error": None, "data": [{"b64_json": b64("big-a"), "error": None}]}
        )
        self.assert_saved(ran, ["big-a"])


class ToldTest(EventsTest):
    """What a reply says of its pictures: what `auto` became, and what an svg's author took."""

    LOOKS = {"size": "1536x1024", "quality": "medium", "background": "opaque", "output_format": "png"}
    SVG = {"model": "gpt-5.5", "input_tokens": 90, "output_tokens": 700, "reasoning_tokens": 200, "total_tokens": 790}

    def test_what_auto_became_is_in_the_result(self) -> None:
        other = {**self.LOOKS, "quality": "high"}
        final = {"type": "image_generation.completed", "b64_json": b64("big-a"), **self.LOOKS}
        for name, argv, body, rows, settled in (
            ("json", "generations x --size auto", {"created": 1, "data": [{"b64_json": b64("big-a")}], **self.LOOKS},
             [None], self.LOOKS),
            ("stream", STREAM, events(final), [self.LOOKS], self.LOOKS),
            ("response", RESPONSE, response(call("big-a", **self.LOOKS), background=False), [self.LOOKS], self.LOOKS),
            ("stream of a response", RESPONSE_STREAM,
             events({**preview("big-p"), "output_format": "png"}, done(call("big-a", **self.LOOKS)),
                    completed(call("big-a", **self.LOOKS), background=False)), [self.LOOKS], self.LOOKS),
            ("two calls", RESPONSE, response(call("big-a", **self.LOOKS), call("big-b", "ig_2", **other)),
             [self.LOOKS, other], other),
            ("a part of it", RESPONSE, response(call("big-a", size="1024x1024", quality=None, background=7)),
             [{"size": "1024x1024"}], {"size": "1024x1024"}),
            ("nothing", "generations x", {"created": 1, "data": [{"b64_json": b64("big-a")}]}, [None], None),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(argv, body)
                self.assertEqual(([row["settled"] for row in ran.json["images"]], ran.json["settled"]),
                                 (rows, settled), ran.err)  # fmt: skip

    def test_the_tokens_of_an_svgs_author_are_in_the_result_and_leave_no_cost(self) -> None:
        other = {**self.SVG, "total_tokens": 791}
        images = {"created": 1, "data": [{"b64_json": b64("big-a")}], "usage": USAGE}
        for name, argv, body, rows, whole in (
            ("none", "generations x", images, [None], None),
            ("images", "generations x", {**images, "svg_usage": self.SVG}, [None], self.SVG),
            ("response", RESPONSE, response(call("big-a", svg_usage=self.SVG)), [self.SVG], self.SVG),
            ("two calls", RESPONSE, response(call("big-a", svg_usage=self.SVG), call("big-b", "ig_2", svg_usage=other)),
             [self.SVG, other], other),
            ("events", RESPONSE_STREAM, events(done(call("big-a", svg_usage=self.SVG)), completed()), [self.SVG],
             self.SVG),
            ("null", RESPONSE, response(call("big-a", svg_usage=None)), [None], None),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(argv, body)
                self.assertEqual(([row["svg_usage"] for row in ran.json["images"]], ran.json["svg_usage"]),
                                 (rows, whole), ran.err)  # fmt: skip
                self.assertEqual(ran.json["cost"] is None, name != "none")


class ReasonsTest(EventsTest):
    """Why there is no picture, in the words of the reply, and what to do."""

    def test_a_content_filter_that_ended_a_response_is_a_refusal_with_the_hint_of_moderation(self) -> None:
        for reason, code, hint in (("content_filter", 4, "moderation"), ("max_output_tokens", 6, None)):
            cut = response(status="incomplete", incomplete_details={"reason": reason})
            for name, body in (("json", cut), ("stream", events({"type": "response.incomplete", "response": cut})),
                               ("with words", {**cut, "output": [message("I will")]})):  # fmt: skip
                with self.subTest(name, reason=reason):
                    ran = self.play(RESPONSE, body)
                    self.assertEqual((ran.code, ran.error["code"]), (code, reason if code == 4 else None), ran.err)
                    self.assertIn(reason, ran.error["message"])
                    self.assertTrue(not hint or hint in ran.error["hint"], ran.error)

    def test_a_content_filter_matters_only_while_a_picture_lacks(self) -> None:
        body = response(call("big-a"), status="incomplete", incomplete_details={"reason": "content_filter"})
        self.assert_saved(self.play(RESPONSE, body), ["big-a"])

    def test_a_content_filter_that_ended_a_chat_message_is_a_refusal(self) -> None:
        for reason, code in (("content_filter", 4), ("length", 6), ("stop", 6), (None, 6), (["x"], 6)):
            choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": reason}
            ran = self.play(ChatTest.CHAT, {"object": "chat.completion", "choices": [choice]})
            self.assertEqual((ran.code, ran.error["code"]), (code, reason if code == 4 else None), ran.err)

    def test_every_code_of_moderation_has_its_hint(self) -> None:
        for code in ("moderation_blocked", "image_content_policy_violation", "content_policy_violation"):
            for status in (200, 400):
                with self.subTest(code, status=status):
                    error = {"error": {"message": "No.", "type": "invalid_request_error", "code": code}}
                    ran = self.run_main("generations", "x", transport=FakeTransport(reply(error, status)))
                    self.assertEqual((ran.code, "prompt" in (ran.error["hint"] or "")), (4, True), ran.err)

    def test_an_error_in_words_stands_beside_the_message_of_the_reply(self) -> None:
        for body, status, words, code in (
            ({"error": "server_error", "message": "out of memory"}, 500, "server_error: out of memory", 5),
            ({"error": "Not Acceptable", "message": "size", "code": "bad_size"}, 400, "Not Acceptable: size", 4),
            ({"error": "no such size"}, 400, "no such size", 4), ({"message": "no such size"}, 400, "no such size", 4),
            ({"error": "server_error", "message": "out of memory"}, 200, "server_error: out of memory", 4),
            ({"error": "Bad Gateway", "status": 502, "message": "upstream"}, 200, "Bad Gateway: upstream", 5),
            ({"error": {"message": "inner"}, "message": "outer"}, 400, "inner", 4),
            ({"error": "busy", "message": {"a": 1}}, 400, "busy: {", 4),
        ):  # fmt: skip
            with self.subTest(body, status=status):
                argv = ("generations", "x", "--max-retries", "0")
                ran = self.run_main(*argv, transport=FakeTransport(reply(json.dumps(body), status)))
                self.assertEqual((ran.code, ran.error["code"]), (code, body.get("code")), ran.err)
                self.assertIn(words, ran.error["message"])

    def test_an_item_whose_error_is_in_words_says_it(self) -> None:
        ran = self.play(RESPONSE, response({"type": PICTURE_ITEM, "id": "ig_1", "result": None, "error": "no luck"}))
        self.assertEqual((ran.code, "no luck" in ran.error["message"]), (4, True), ran.err)

    def test_a_text_that_comes_whole_without_deltas_is_kept(self) -> None:
        delta, whole = "response.output_text.delta", "response.output_text.done"
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        picture_done = done(call("big-a"), 1)
        for name, rows, text in (
            ("alone", [{"type": whole, **place, "text": "Here."}, picture_done], "Here."),
            ("without a place", [{"type": whole, "text": "Here."}, picture_done], "Here."),
            ("twice", [{"type": whole, **place, "text": "Here."}] * 2 + [picture_done], "Here."),
            ("two parts", [{"type": whole, **place, "text": "One."},
                           {"type": whole, **place, "content_index": 1, "text": "Two."}, picture_done], "One.\nTwo."),
            ("after deltas", [{"type": delta, **place, "delta": "He"}, {"type": delta, **place, "delta": "re."},
                              {"type": whole, **place, "text": "Here."}, picture_done], "Here."),
            ("before its item", [{"type": whole, **place, "text": "Here."}, done(message("Here.")), picture_done],
             "Here."),
            ("before the response", [{"type": whole, **place, "text": "Here."}, picture_done,
                                     completed(message("Here."), call("big-a"))], "Here."),
            ("before a message of no id", [{"type": whole, **place, "text": "Here."}, picture_done,
                                           completed({**message("Here."), "id": None})], "Here."),
            ("no text", [{"type": whole, **place, "text": None}, picture_done], None),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(RESPONSE_STREAM, events(*rows))
                self.assertEqual((ran.code, ran.json["text"]), (0, text), ran.err)

    def test_a_refusal_that_comes_whole_without_deltas_is_kept(self) -> None:
        row = {"type": "response.refusal.done", "item_id": "msg_1", "refusal": "I can't."}
        ran = self.play(RESPONSE_STREAM, events(row, completed()))
        self.assertEqual((ran.code, ran.json["text"]), (6, "I can't."), ran.err)

    def test_a_404_names_the_protocol_of_relays_with_chat_only(self) -> None:
        for body in ({"error": {"message": "Unknown request URL: POST /v1/images/generations.", "code": "unknown_url"}},
                     {"error": {"message": "Invalid URL (POST /v1/images/generations)", "code": None}},
                     {"detail": "Not Found"}, b"404 page not found", b""):  # fmt: skip
            ran = self.run_main("generations", "x", transport=FakeTransport(reply(body, 404)))
            self.assertEqual((ran.code, "--protocol openai_chat" in ran.error["hint"]), (4, True), ran.error)


class ChatTest(EventsTest):
    """Pictures in chat messages."""

    CHAT = "generations x --protocol openai_chat"
    URL = "data:image/png;base64,"

    def whole(self, **message: Any) -> Json:
        """Returns a chat completion."""
        return {
            "id": "c",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", **message}}],
        }

    def deltas(self, *rows: Any) -> bytes:
        """Returns a chat stream of deltas."""
        chunks = [{"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": row}]} for row in rows]
        return b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in chunks) + b"data: [DONE]\n\n"

    def image(self, name: str) -> Json:
        """Returns an image_url part."""
        return {"type": "image_url", "image_url": {"url": self.URL + b64(name)}}

    def test_every_place_a_picture_can_stand(self) -> None:
        for name, body in (
            ("images", self.whole(content="Hi", images=[self.image("big-a")])),
            ("images, url only",
             self.whole(content="Hi", images=[{"type": "image_url", "image_url": self.URL + b64("big-a")}])),
            ("markdown", self.whole(content=f"Hi![x]({self.URL}{b64('big-a')})")),
            ("parts", self.whole(content=[{"type": "text", "text": "Hi"}, self.image("big-a")])),
            ("parts, output_image",
             self.whole(content=[{"type": "text", "text": "Hi"},
                                 {"type": "output_image", "image_base64": b64("big-a")}])),
            ("delta", self.deltas({"content": "Hi"}, {"content": f"![x]({self.URL}{b64('big-a')})"})),
            ("delta, byte by byte", self.deltas(*({"content": c} for c in f"Hi![x]({self.URL}{b64('big-a')})"))),
            ("delta images", self.deltas({"content": "H"}, {"content": "i"}, {"images": [self.image("big-a")]})),
            ("delta ends in the picture",
             self.deltas({"content": "Hi"}, {"content": f"![x]({self.URL}"}, {"content": b64("big-a")},
                         {"content": ")"})),
            ("a stream whole",
             b"data: " + json.dumps(self.whole(content="Hi", images=[self.image("big-a")])).encode() + b"\n\n"),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.play(self.CHAT, body)
                self.assert_saved(ran, ["big-a"])
                self.assertEqual(ran.json["text"], "Hi")

    def test_small_pictures_are_found_like_large_ones(self) -> None:
        for body in (self.whole(content="", images=[self.image("small-a"), self.image("small-b")]),
                     self.whole(content=f"![x]({self.URL}{b64('small-a')}) ![y]({self.URL}{b64('small-b')})"),
                     self.deltas({"content": f"![x]({self.URL}{b64('small-a')[:30]}"},
                                 {"content": b64("small-a")[30:] + ")"},
                                 {"images": [self.image("small-b")]})):  # fmt: skip
            self.assert_saved(self.play(self.CHAT, body), ["small-a", "small-b"])

    def test_words_only_are_a_failure(self) -> None:
        for body in (self.whole(content="I cannot draw."), self.deltas({"content": "I cannot "}, {"content": "draw."})):
            ran = self.play(self.CHAT, body)
            self.assertEqual((ran.code, ran.json["text"]), (6, "I cannot draw."))

    def test_a_refusal_is_told(self) -> None:
        ran = self.play(self.CHAT, self.whole(content=None, refusal="No."))
        self.assertEqual((ran.code, ran.json["text"]), (6, "No."))

    def test_the_same_picture_in_content_and_images_of_one_message_is_told_of_twice_at_most(self) -> None:
        ran = self.play(self.CHAT, self.whole(content=f"![x]({self.URL}{b64('big-a')})", images=[self.image("big-a")]))
        self.assertEqual(
            (ran.code, {row["sha256"] for row in ran.json["images"]}),
            (0, {hashlib.sha256(picture("big-a")).hexdigest()}),
        )


if __name__ == "__main__":
    unittest.main()
