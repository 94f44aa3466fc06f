"""Pictures that do not stand in the text of a reply: behind a URL or a path, or the reply is the picture itself."""

from __future__ import annotations

import gzip
import hashlib
import json
import unittest
from pathlib import Path
from typing import Any, Iterator, Tuple

import gpt_image
from tests import pictures
from tests.support import KEY, FakeTransport, ProgramTest, Ran, cut, reply

PICTURE = pictures.picture(b"elsewhere", "png", 48, 32)
BASE = "https://gateway.example/v1"


def ending(data: bytes, fault: str = "the connection was cut") -> gpt_image.Reply:
    """Returns a reply whose body is cut behind the data."""

    def chunks() -> Iterator[bytes]:
        yield data
        raise ConnectionError(fault)

    return gpt_image.Reply(200, {}, chunks())


class ElsewhereTest(ProgramTest):
    """Calls of one picture."""

    def call(self, body: Any, *fetches: gpt_image.Reply, options: Tuple[str, ...] = ()) -> Tuple[Ran, FakeTransport]:
        """Makes a call with a reply to the POST, and those to what is fetched behind it."""
        for name in self.files():
            Path(name).unlink()
        transport = FakeTransport(reply(body) if not isinstance(body, gpt_image.Reply) else body, *fetches)
        argv = ("generations", "x", "--output", "p.png", "--base-url", BASE, "--allow-http", *options)
        return self.run_main(*argv, transport=transport), transport

    def assert_saved(self, ran: Ran, data: bytes, whole: bool = True, path: str = "p.png") -> None:
        """Asserts that the one picture of a result is this one."""
        (row,) = ran.json["images"]
        self.assertEqual((row["path"], row["whole"], row["bytes"]), (path, whole, len(data)), ran.err)
        self.assertEqual((Path(path).read_bytes(), row["sha256"]), (data, hashlib.sha256(data).hexdigest()))

    def test_a_picture_url_whose_body_is_cut_is_fetched_again(self) -> None:
        url = {"data": [{"url": "https://files.example/a.png"}]}
        ran, transport = self.call(url, ending(PICTURE[:99]), ending(b""), reply(PICTURE))
        self.assertEqual((ran.code, len(transport.requests), len(self.sleeps)), (0, 4, 2), ran.err)
        self.assert_saved(ran, PICTURE)
        self.assertEqual(self.files(), ["p.png"])

    def test_a_picture_url_that_is_cut_each_time_keeps_what_came_and_names_the_url(self) -> None:
        jpeg = pictures.picture(b"elsewhere", "jpeg", 48, 32)
        for data, path in ((PICTURE[:99], "p.png"), (PICTURE, "p.png"), (jpeg, "p.jpg")):
            with self.subTest(path=path, bytes=len(data)):
                url = {"data": [{"url": "https://files.example/a.png"}]}
                ran, _ = self.call(url, *[ending(data) for _ in range(3)])
                self.assertEqual(ran.code, 6, ran.err)
                self.assert_saved(ran, data, whole=False, path=path)
                self.assertIn("https://files.example/a.png", ran.error["message"])
                self.assertEqual((ran.error["may_be_billed"], ran.error["hint"]), (True, "fetch it yourself"))

    def test_a_picture_url_that_gives_nothing_names_the_url(self) -> None:
        url = {"data": [{"url": "https://files.example/a.png"}]}
        ran, _ = self.call(url, *[ending(b"") for _ in range(3)])
        self.assertEqual((ran.code, ran.json["images"]), (6, []))
        self.assertIn("https://files.example/a.png", ran.error["message"])

    def test_a_path_is_fetched_from_the_endpoint_s_own_server_without_the_key(self) -> None:
        for text, url in (
            ("/images/a.png", "https://gateway.example/images/a.png"), ("a.png", f"{BASE}/a.png"), ("./a", f"{BASE}/a"),
            ("/view?filename=a.png&type=output", "https://gateway.example/view?filename=a.png&type=output"),
        ):  # fmt: skip
            with self.subTest(text):
                ran, transport = self.call({"data": [{"url": text}]}, reply(PICTURE))
                self.assertEqual((ran.code, transport.requests[1].url), (0, url), ran.err)
                self.assertNotIn("Authorization", dict(transport.requests[1].headers))
                self.assert_saved(ran, PICTURE)

    def test_a_path_that_asks_for_the_key_gets_it_and_no_other_place_does(self) -> None:
        for status in (401, 403):
            ran, transport = self.call({"data": [{"url": "/a.png"}]}, reply({}, status), reply(PICTURE))
            self.assertEqual((ran.code, str(dict(transport.requests[2].headers)["Authorization"])), (0, "Bearer ***"), ran.err)
            self.assertEqual(transport.requests[2].url, "https://gateway.example/a.png")
        for url in ("https://gateway.example/a.png", "https://gateway.example:444/a.png", "//other.example/a.png", "http:a.png"):
            with self.subTest(url):
                ran, transport = self.call({"data": [{"url": url}]}, *[reply({}, 401) for _ in range(3)])
                self.assertIn(ran.code, (5, 6))
                self.assertFalse([row for row in transport.requests[1:] if "Authorization" in dict(row.headers)])
                self.assert_no_key(ran, (KEY,))

    def test_a_path_that_the_server_does_not_have_is_named_with_what_helps(self) -> None:
        for key, text in (("url", "/home/me/out/a.png"), ("b64_json", "/srv/out/a.png"), ("url", "C:\\out\\a.png"),
                          ("url", "file:///srv/a.png"), ("image_base64", "out/a.webp")):  # fmt: skip
            with self.subTest(text):
                ran, _ = self.call({"data": [{key: text}]}, reply({}, 404))
                self.assertIn(ran.code, (5, 6))
                self.assertIn(text.rpartition("/")[2].encode("unicode_escape").decode()[-5:], ran.error["message"])
                self.assertIn("--response-format b64_json", ran.error["hint"])

    def test_a_reply_that_is_the_picture_itself_is_saved(self) -> None:
        for name in ("png", "jpeg", "webp", "gif"):
            data = pictures.picture(b"raw", name, 48, 32)
            path = "p" + gpt_image.FORMAT[name].suffixes[0]
            for size in (1, 7, 1000, len(data)):
                with self.subTest(name, size=size):
                    ran, _ = self.call(gpt_image.Reply(200, {}, cut(data, size)))
                    self.assertEqual((ran.code, ran.json["saved_response"]), (0, None), ran.err)
                    self.assert_saved(ran, data, path=path)
        drawing = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>\n'
        ran, _ = self.call(gpt_image.Reply(200, {}, cut(drawing, 10)))
        self.assert_saved(ran, drawing, path="p.svg")

    def test_a_page_with_a_drawing_in_it_is_no_picture(self) -> None:
        page = b"<!-- ours -->\n<HTML><title>Down</title><svg></svg></html>" + b" " * 5000
        ran, _ = self.call(page)
        self.assertEqual((ran.code, ran.json["images"], ran.json["unclaimed"]), (6, [], []))

    def test_a_raw_picture_that_is_cut_stays_and_is_not_called_whole(self) -> None:
        for body, code in ((ending(PICTURE[:-20]), 5), (reply(PICTURE[:-20]), 6)):
            ran, _ = self.call(body)
            self.assertEqual(ran.code, code, ran.err)
            self.assert_saved(ran, PICTURE[:-20], whole=False)
            kept = ran.json["saved_response"]
            again = self.run_main("extract", kept, "--output", "again.png")
            self.assertEqual([row["path"] for row in again.json["images"]], ["p.png"])

    def test_a_saved_raw_picture_can_be_extracted(self) -> None:
        Path("kept").write_bytes(PICTURE)
        ran = self.run_main("extract", "kept", "--output", "p.png")
        self.assert_saved(ran, PICTURE)

    def test_an_interrupted_fetch_saves_no_half_picture(self) -> None:
        def chunks() -> Iterator[bytes]:
            yield PICTURE[:99]
            raise KeyboardInterrupt

        ran, _ = self.call({"data": [{"url": "https://files.example/a.png"}]}, gpt_image.Reply(200, {}, chunks()))
        self.assertEqual((ran.code, ran.json["images"], self.files()), (130, [], ["p.reply"]))
        self.assertEqual(json.loads(Path("p.reply").read_bytes())["data"][0]["url"], "https://files.example/a.png")

    def test_what_came_first_stays_if_the_next_fetch_gives_less(self) -> None:
        for data in (PICTURE, PICTURE[:99]):
            for later in (reply({}, 404), ending(b""), ending(b"no picture")):
                url = {"data": [{"url": "https://files.example/a.png"}]}
                ran, _ = self.call(url, ending(data), later, options=("--max-retries", "1"))
                self.assertEqual(ran.code, 6, ran.err)
                if later.status == 404:
                    self.assert_saved(ran, data, whole=False)

    def test_a_whole_picture_is_kept_though_its_fetch_is_interrupted(self) -> None:
        def chunks() -> Iterator[bytes]:
            yield PICTURE
            raise KeyboardInterrupt

        ran, _ = self.call({"data": [{"url": "https://files.example/a.png"}]}, gpt_image.Reply(200, {}, chunks()))
        self.assertEqual(ran.code, 130)
        self.assert_saved(ran, PICTURE)

    def test_a_fetched_picture_that_is_packed_is_unpacked(self) -> None:
        packed = reply(gzip.compress(PICTURE), 200, {"Content-Encoding": "gzip"})
        ran, _ = self.call({"data": [{"url": "https://files.example/a.png"}]}, packed)
        self.assert_saved(ran, PICTURE)

    def test_white_space_before_a_raw_picture_is_no_matter(self) -> None:
        for before in (b"\n", b"\r\n", b"\xef\xbb\xbf"):
            ran, _ = self.call(gpt_image.Reply(200, {}, [before, PICTURE]))
            self.assert_saved(ran, PICTURE)

    def test_a_drawing_that_holds_a_page_is_a_picture(self) -> None:
        drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><foreignObject><html></html></foreignObject></svg>'
        ran, _ = self.call(drawing)
        self.assert_saved(ran, drawing, path="p.svg")


if __name__ == "__main__":
    unittest.main()
