"""Output files, line by line of the contract's third section: names, refusals, formats, whole files, kept replies."""

from __future__ import annotations

import base64
import json
import os
import random
import shlex
import shutil
import stat
import sys
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, cut, reply
from tests.test_reply import picture

STREAM = ("--stream", "--partial-images", "2")
OLD = b"something of the user's"


def images(*data: bytes) -> bytes:
    """Returns an Images reply with pictures."""
    rows = [{"b64_json": base64.b64encode(each).decode()} for each in data]
    return json.dumps({"created": 1, "data": rows}).encode()


def stream(*previews: bytes, final: Optional[bytes]) -> bytes:
    """Returns an Images stream with previews and a final."""
    rows: List[Dict[str, Any]] = [
        {
            "type": "image_generation.partial_image",
            "b64_json": base64.b64encode(each).decode(),
            "partial_image_index": i,
        }
        for i, each in enumerate(previews)
    ]
    if final:
        rows.append({"type": "image_generation.completed", "b64_json": base64.b64encode(final).decode()})
    return b"".join(f"event: {row['type']}\ndata: {json.dumps(row)}\n\n".encode() for row in rows)


A, B, C, P, Q = (picture(name) for name in ("big-a", "small-b", "big-c", "big-p", "small-q"))
JPEG = pictures.picture(b"x", "jpeg", 16, 16)
WEBP = pictures.picture(b"x", "webp", 16, 16)
GIF = pictures.picture(b"x", "gif", 16, 16, frames=1)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"><rect width="9" height="9"/></svg>'


class WriterTest(ProgramTest):
    """A test that makes calls and looks at the folder."""

    def run_with(self, body: Union[bytes, Iterable[bytes]], *argv: str, status: int = 200, **options: Any) -> Ran:
        """Runs a generation whose reply comes in the given chunks."""
        chunks = [body] if isinstance(body, bytes) else body
        self.transport = FakeTransport(gpt_image.Reply(status, {}, chunks))
        return self.run_main("generations", "x", "--progress", "none", *argv, transport=self.transport, **options)

    def paths(self, ran: Ran) -> List[str]:
        """Returns the paths of the pictures of a result, with forward slashes."""
        return [Path(row["path"]).as_posix() for row in ran.json["images"]]

    def write(self, name: str, data: bytes = OLD) -> str:
        """Writes a file in the test's folder and returns its name."""
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)
        return name

    def assert_refused(self, *argv: str, code: int = 7, route: str = "generations") -> Ran:
        """Asserts that a call is refused before anything is sent, and a dry run alike."""
        for dry in ([], ["--dry-run"]):
            transport = FakeTransport()
            ran = self.run_main(route, "x", *argv, *dry, transport=transport)
            self.assertEqual((ran.code, transport.requests), (code, []), ran.err)
        return ran


class NamesTest(WriterTest):
    """How a pattern becomes names."""

    def test_names_of_one_picture(self) -> None:
        Path("folder").mkdir()
        for pattern, name in (
            ("o.png", "o.png"), ("out/deep/er/o.png", "out/deep/er/o.png"), ("./o2.png", "o2.png"),
            ("o-{index}.png", "o-1.png"),
            ("{index}.png", "1.png"), ("o3", "o3.png"), ("v1.5", "v1.5.png"), ("UP.PNG", "UP.PNG"),
            ("a/../b.png", "b.png"), ("{index}-{index}.png", "1-1.png"), ("{INDEX}.png", "{INDEX}.png"),
            ("100%.png", "100%.png"),
            ("{}.png", "{}.png"), ("{0}{index!r}.png", "{0}{index!r}.png"),
        ):  # fmt: skip
            with self.subTest(pattern):
                ran = self.run_with(images(A), "--output", pattern)
                self.assertEqual((ran.code, self.paths(ran)), (0, [name]), ran.err)
                self.assertEqual(Path(name).read_bytes(), A)

    def test_names_of_several_pictures(self) -> None:
        for pattern, names in (
            ("a/o.png", ["a/o-1.png", "a/o-2.png", "a/o-3.png"]), ("b/{index}.png", ["b/1.png", "b/2.png", "b/3.png"]),
            ("c/o{index}x.png", ["c/o1x.png", "c/o2x.png", "c/o3x.png"]),
            ("d/o", ["d/o-1.png", "d/o-2.png", "d/o-3.png"]),
        ):  # fmt: skip
            with self.subTest(pattern):
                ran = self.run_with(images(A, B, C), "--n", "3", "--output", pattern)
                self.assertEqual((ran.code, self.paths(ran)), (0, names), ran.err)
                self.assertEqual([Path(name).read_bytes() for name in names], [A, B, C])

    def test_an_index_may_stand_in_the_folder(self) -> None:
        ran = self.run_with(images(A, B), "--n", "2", "--output", "out/{index}/o.png")
        self.assertEqual((ran.code, self.paths(ran)), (0, ["out/1/o.png", "out/2/o.png"]), ran.err)
        self.assertEqual(self.files("out"), ["1/o.png", "2/o.png"])
        self.assertEqual(sorted(os.listdir("out")), ["1", "2"])

    def test_names_of_previews(self) -> None:
        for pattern, previews, final in (
            ("a/o.png", ["a/o-partial-1.png", "a/o-partial-2.png"], "a/o.png"),
            ("b/o-{index}.png", ["b/o-1-partial-1.png", "b/o-1-partial-2.png"], "b/o-1.png"),
            ("c/o.{partial}.png", ["c/o.1.png", "c/o.2.png"], None),
            ("d/{index}-{partial}.png", ["d/1-1.png", "d/1-2.png"], None),
        ):
            with self.subTest(pattern):
                ran = self.run_with(stream(P, Q, final=A), *STREAM, "--output", pattern)
                self.assertEqual(ran.code, 0, ran.err)
                found = [Path(row["path"]).as_posix() for row in ran.json["partial_images"]]
                self.assertEqual(found, previews)
                self.assertEqual([Path(name).read_bytes() for name in previews], [P, Q])
                self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), A)
                self.assertIn(self.paths(ran)[0], [final] if final else self.paths(ran))
                self.assertEqual(len(self.files(pattern[0])), 3)

    def test_a_folder_gets_names_with_date_and_time(self) -> None:
        Path("there").mkdir()
        for output in ("there", "there/", "new/", os.path.join("new", "deeper", "")):
            with self.subTest(output):
                ran = self.run_with(images(A, B), "--n", "2", "--output", output)
                self.assertEqual(ran.code, 0, ran.err)
                for path in self.paths(ran):
                    self.assertEqual(Path(path).parent, Path(output))
                    self.assertRegex(Path(path).name, r"20\d\d-?\d\d-?\d\d.?\d\d.?\d\d.?\d\d.*\.png$")
                self.assertEqual(len(set(self.paths(ran))), 2)

    def test_without_an_output_the_current_folder_gets_names_with_date_and_time(self) -> None:
        for _ in range(3):  # within one second
            ran = self.run_with(images(A))
            self.assertEqual(ran.code, 0, ran.err)
            self.assertRegex(self.paths(ran)[0], r"^[^/]*20\d\d-?\d\d-?\d\d.?\d\d.?\d\d.?\d\d[^/]*\.png$")
        self.assertEqual(len(self.files()), 3)
        self.assertTrue(self.run_with(images(WEBP), "--format", "webp").json["images"][0]["path"].endswith(".webp"))

    def test_odd_names(self) -> None:
        names = ["with space.png", "图片 ü \U0001f3a8.png", "-dash.png", "--overwrite.png", "a'b.png", "$HOME.png",
                 "x" * 240 + ".png",
                 " leading.png", "a;b&c.png", "#.png", "~.png"]  # fmt: skip
        if os.name == "posix":
            names += ['quote".png', "back\\slash.png", "line\nbreak.png", "tab\t.png", "*?.png", "CON.png", ":.png"]
        if sys.platform == "linux":
            names.append(os.fsdecode(b"latin-\xe9.png"))
        for name in names:
            with self.subTest(ascii(name)):
                ran = self.run_with(images(A), "--output=out/" + name)
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(Path("out", name).read_bytes(), A)
                self.assertEqual(Path(ran.json["images"][0]["path"]), Path("out", name))
                self.assertEqual(os.listdir("out"), [name])
                os.unlink(os.path.join("out", name))
        ran = self.run_with(images(A), "--output=-dash.png")
        self.assertEqual((ran.code, self.paths(ran), self.files()), (0, ["-dash.png"], ["-dash.png"]))

    def test_a_pattern_with_backslashes_is_one_of_windows_or_a_plain_name(self) -> None:
        ran = self.run_with(images(A), "--output", "out\\hero-{index}.png")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(self.files(), ["out/hero-1.png" if os.name == "nt" else "out\\hero-1.png"])

    def test_a_name_too_long_for_the_disk_is_refused_before_the_call(self) -> None:
        for argv in (["--output", "x" * 300 + ".png"], ["--output", "x" * 245 + ".png", *STREAM],
                     ["--output", "ü" * 130 + ".png"],
                     ["--output", "y" * 300 + "/o.png"]):  # fmt: skip
            with self.subTest(argv[1][:1], length=len(argv[1])):
                transport = FakeTransport(reply(images(A)))
                ran = self.run_main("generations", "x", *argv, transport=transport)
                self.assertEqual((ran.code, transport.requests), (7, []), ran.err)

    def test_the_dry_run_tells_the_same_names(self) -> None:
        for argv in (
            ["--output", "a/o.png"],
            ["--output", "b/{index}.png", "--n", "2"],
            ["--output", "c/o.webp", "--n", "2"],
        ):
            shown = self.run_main("generations", "x", *argv, "--dry-run").json["outputs"]
            ran = self.run_with(images(*[WEBP if "webp" in argv[1] else A] * (2 if "--n" in argv else 1)), *argv)
            self.assertEqual([row["path"] for row in ran.json["images"]], shown)


class ExistingTest(WriterTest):
    """A file that exists is not replaced, unless that was asked for."""

    def test_names_that_exist_are_refused_before_anything_is_sent(self) -> None:
        for taken, argv in (
            ("o.png", ["--output", "o.png"]), ("o-2.png", ["--output", "o.png", "--n", "3"]),
            ("x/3.png", ["--output", "x/{index}.png", "--n", "3"]), ("p-partial-2.png", ["--output", "p.png", *STREAM]),
            ("q.2.png", ["--output", "q.{partial}.png", *STREAM]),
            ("r.json", ["--output", "r.png", "--save-response", "r.json"]),
            ("s/s.png/x", ["--output", "s/s.png/x"]), ("t.webp", ["--output", "t", "--format", "webp"]),
        ):  # fmt: skip
            with self.subTest(taken):
                if taken.endswith("/x"):
                    self.write(taken + ".png")
                else:
                    self.write(taken)
                before = self.files()
                ran = self.assert_refused(*argv)
                self.assertEqual(self.files(), before)
                self.assertTrue(ran.error["rule"] and ran.error["hint"])

    def test_a_folder_in_the_place_of_a_file_is_refused_even_with_overwrite(self) -> None:
        Path("o-1.png").mkdir()
        self.assert_refused("--output", "o.png", "--n", "2")
        self.assert_refused("--output", "o.png", "--n", "2", "--overwrite")

    def test_a_dangling_link_counts_as_a_file(self) -> None:
        try:
            os.symlink("nowhere", "o.png")
        except (OSError, NotImplementedError):
            self.skipTest("no symbolic links here")
        self.assert_refused("--output", "o.png")

    def test_the_mask_of_a_box_is_not_replaced_either(self) -> None:
        self.write("in.png", picture("big-in"))
        self.write("o-mask.png")
        argv = ("--image", "in.png", "--mask-box", "0,0,4,4", "--output", "o.png")
        self.assert_refused(*argv, route="edits")
        self.assertEqual(Path("o-mask.png").read_bytes(), OLD)

    def test_two_outputs_with_one_name_are_refused(self) -> None:
        self.assert_refused("--output", "o.png", "--save-response", "o.png")
        self.assert_refused("--output", "o.png", "--save-response", "./o-partial-1.png", *STREAM)
        self.assert_refused("--output", "o.png", "--save-response", "sub/../o.png", "--overwrite")

    def test_a_kept_reply_never_takes_the_place_of_its_picture(self) -> None:
        ran = self.run_with(images(A), "--output", "o.png", "--save-response", "./o.png", "--overwrite")
        if ran.code == 0:
            self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), A)
            self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), images(A))

    def test_an_input_is_never_the_output_by_accident(self) -> None:
        self.write("in.png", picture("big-in"))
        self.assert_refused("--image", "in.png", "--output", "in.png", route="edits")

    def test_overwrite_replaces_what_was_foreseen(self) -> None:
        for name in ("o.png", "o-partial-1.png", "r.sse"):
            self.write(name)
        body = stream(P, final=A)
        ran = self.run_with(body, *STREAM, "--output", "o.png", "--save-response", "r.sse", "--overwrite")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual([Path(name).read_bytes() for name in ("o.png", "o-partial-1.png", "r.sse")], [A, P, body])
        self.assertEqual(self.files(), ["o-partial-1.png", "o.png", "r.sse"])

    def test_overwrite_keeps_the_old_file_until_the_new_one_is_whole(self) -> None:
        self.write("o.png")
        ran = self.run_with(images(A)[:900], "--output", "o.png", "--overwrite")
        self.assertEqual((ran.code, Path("o.png").read_bytes()), (5, OLD))

    def test_more_pictures_than_foreseen_never_replace_a_file(self) -> None:
        for overwrite in ([], ["--overwrite"]):
            with self.subTest(overwrite):
                shutil.rmtree("out", ignore_errors=True)
                for name in ("out/o-2.png", "out/o-2-2.png", "out/o-4.png"):
                    self.write(name)
                ran = self.run_with(images(A, B, C, P), "--output", "out/o.png", *overwrite)
                self.assertEqual(ran.code, 0, ran.err)
                paths = self.paths(ran)
                self.assertEqual([Path(path).read_bytes() for path in paths], [A, B, C, P])
                self.assertEqual(paths[0], "out/o.png")
                for name in ("out/o-2.png", "out/o-2-2.png", "out/o-4.png"):
                    self.assertEqual(Path(name).read_bytes(), OLD)
                self.assertEqual(len(self.files("out")), 7)

    def test_more_pictures_than_foreseen_of_several(self) -> None:
        ran = self.run_with(images(A, B, C), "--n", "2", "--output", "o-{index}.png")
        self.assertEqual((ran.code, self.paths(ran)), (0, ["o-1.png", "o-2.png", "o-3.png"]))

    def test_a_file_that_appears_during_the_call_is_not_replaced(self) -> None:
        def chunks() -> Iterator[bytes]:
            self.write("o.png")
            self.write("o-partial-1.png")
            self.write("r.sse")
            yield body

        body = stream(P, final=A)
        ran = self.run_with(chunks(), *STREAM, "--output", "o.png", "--save-response", "r.sse")
        self.assertEqual(ran.code, 0, ran.err)
        for name in ("o.png", "o-partial-1.png", "r.sse"):
            self.assertEqual(Path(name).read_bytes(), OLD, name)
        self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), A)
        self.assertEqual(Path(ran.json["partial_images"][0]["path"]).read_bytes(), P)
        self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), body)
        self.assertEqual(len(self.files()), 6)
        self.assertTrue(ran.json["warnings"])


class FoldersTest(WriterTest):
    """Folders are made, and one that cannot be written is found out before the call."""

    def unwritable(self) -> List[str]:
        """Returns paths below which nobody can write, as far as this machine has some."""
        self.write("plain-file")
        found = ["plain-file/o.png", "plain-file/deep/o.png", os.path.join(os.devnull, "o.png")]
        if sys.platform == "linux" and os.path.isdir("/proc/self"):
            found += ["/proc/o.png", "/proc/no-such-folder/o.png", "/sys/o.png"]
        if hasattr(os, "geteuid") and os.geteuid() != 0:
            Path("locked").mkdir()
            os.chmod("locked", stat.S_IRUSR | stat.S_IXUSR)
            self.addCleanup(os.chmod, "locked", stat.S_IRWXU)
            found += ["locked/o.png", "locked/deep/o.png"]
        return found

    def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_sent(self) -> None:
        for path in self.unwritable():
            for argv in (["--output", path], ["--output", "fine.png", "--save-response", path]):
                with self.subTest(argv):
                    transport = FakeTransport()
                    ran = self.run_main("generations", "x", *argv, transport=transport)
                    self.assertEqual((ran.code, transport.requests), (7, []), ran.err)
                    self.assertTrue(ran.error["hint"])

    def test_folders_are_made_for_every_file(self) -> None:
        ran = self.run_with(stream(P, final=A), *STREAM, "--output", "a/b/o.png", "--save-response", "c/d/r.sse")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(self.files(), ["a/b/o-partial-1.png", "a/b/o.png", "c/d/r.sse"])

    def test_a_refused_call_leaves_no_file(self) -> None:
        ran = self.run_with(b'{"error": {"message": "no"}}', "--output", "a/b/o.png", status=400)
        self.assertEqual((ran.code, self.files()), (4, []))

    def test_a_folder_that_vanishes_during_the_call_does_not_cost_the_picture(self) -> None:
        def chunks() -> Iterator[bytes]:
            shutil.rmtree("out")
            yield images(A)

        ran = self.run_with(chunks(), "--output", "out/o.png")
        if ran.code:
            self.assertEqual(ran.code, 7, ran.err)
            self.assertTrue(ran.json["saved_response"], "the reply is lost")
            kept = Path(ran.json["saved_response"])
            if self.folder not in kept.resolve().parents:
                self.addCleanup(kept.unlink)
            self.assertEqual(kept.read_bytes(), images(A))
        else:
            self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), A)


class FormatsTest(WriterTest):
    """The suffix and the format."""

    def test_the_suffix_chooses_the_format(self) -> None:
        rows = (
            ("o.webp", "webp", WEBP), ("o.jpg", "jpeg", JPEG), ("o.jpeg", "jpeg", JPEG), ("O.JPG", "jpeg", JPEG),
            ("o.gif", "gif", GIF),
            ("o.svg", "svg", SVG),
        )  # fmt: skip
        for name, format, data in rows:
            with self.subTest(name):
                more = ["--svg-model", "gpt-5.4"] if format == "svg" else []
                ran = self.run_with(images(data), "--model", "gpt-image-2.6-flare", "--output", "out/" + name, *more)
                self.assertEqual((ran.code, self.paths(ran)), (0, ["out/" + name]), ran.err)
                self.assertEqual(json.loads(self.transport.bodies[0])["output_format"], format)
                self.assertEqual((ran.json["images"][0]["format"], ran.json["warnings"]), (format, []))

    def test_a_format_that_the_suffix_contradicts_is_refused(self) -> None:
        for output, format in (
            ("o.png", "jpeg"),
            ("o.jpg", "png"),
            ("o.webp", "png"),
            ("o-{index}.gif", "webp"),
            ("a/o.svg", "png"),
        ):
            with self.subTest(output, format=format):
                ran = self.assert_refused(
                    "--model", "gpt-image-2.6-flare", "--output", output, "--format", format, code=2
                )
                self.assertIn("format-suffix", [row["rule"] for row in ran.error["problems"]])

    def test_a_suffix_of_no_format_is_refused(self) -> None:
        for output in ("o.bmp", "o.tiff", "o.txt", "o.pdf"):
            self.assert_refused("--output", output, code=2)

    def test_agreement_is_fine_in_every_spelling(self) -> None:
        for output, format in (("o.jpg", "jpg"), ("o.jpeg", "jpeg"), ("o.JPG", "JPEG"), ("o.png", "PNG")):
            ran = self.run_main("generations", "x", "--output", output, "--format", format, "--dry-run")
            self.assertEqual(ran.code, 0, ran.err)

    def test_bytes_of_another_format_get_their_true_suffix_and_a_warning(self) -> None:
        for output, data, name, format in (
            ("a.png", JPEG, "a.jpg", "jpeg"), ("b.jpg", A, "b.png", "png"), ("c.webp", GIF, "c.gif", "gif"),
            ("d.png", WEBP, "d.webp", "webp"), ("e.png", SVG, "e.svg", "svg"),
        ):  # fmt: skip
            with self.subTest(output):
                ran = self.run_with(images(data), "--output", output)
                self.assertEqual(
                    (ran.code, self.paths(ran), ran.json["images"][0]["format"]), (0, [name], format), ran.err
                )
                self.assertEqual(Path(name).read_bytes(), data)
                self.assertFalse(Path(output).exists())
                self.assertTrue(any(name.split(".")[1] in text or format in text for text in ran.json["warnings"]))

    def test_the_true_suffix_never_replaces_a_file(self) -> None:
        for overwrite in ([], ["--overwrite"]):
            with self.subTest(overwrite):
                self.write("o.jpg")
                ran = self.run_with(images(JPEG), "--output", "o.png", *overwrite)
                self.assertEqual((ran.code, Path("o.jpg").read_bytes()), (0, OLD))
                self.assertEqual(Path(ran.json["images"][0]["path"]).read_bytes(), JPEG)

    def test_previews_too_get_their_true_suffix(self) -> None:
        ran = self.run_with(stream(JPEG, final=A), *STREAM, "--output", "o.png")
        self.assertEqual(self.files(), ["o-partial-1.jpg", "o.png"], ran.err)

    def test_what_is_no_picture_is_not_saved(self) -> None:
        for data in (b"<html>no</html>", b"x" * 2000, b"\0" * 3000, b"%PDF-1.4 " + bytes(2000)):
            with self.subTest(data[:9]):
                ran = self.run_with(images(data), "--output", "o.png")
                self.assertEqual(
                    (ran.code, [name for name in self.files() if not name.endswith(".reply")]), (6, []), ran.err
                )
                shutil.rmtree(".", ignore_errors=True)


class WholeFilesTest(WriterTest):
    """A picture has its name only when it is whole; until then it is invisible, and afterwards nothing else is left."""

    def visible(self) -> List[str]:
        """Returns the names in the output folder that a person sees."""
        return sorted(name for name in os.listdir("out") if not name.startswith("."))

    def test_pictures_and_previews_appear_the_moment_their_last_byte_arrives(self) -> None:
        seen: List[List[str]] = []

        def chunks(body: bytes, ends: Sequence[bytes]) -> Iterator[bytes]:
            at = 0
            for text in ends:
                end = body.index(text) + len(text)
                for size in (end - 40, end):
                    yield body[at:size]
                    at = size
                    seen.append(self.visible())
            yield body[at:]

        ends = [base64.b64encode(data) + b'"}' for data in (A, C)]
        self.run_with(chunks(images(A, C), ends), "--n", "2", "--output", "out/o.png")
        self.assertEqual(seen, [[], ["o-1.png"], ["o-1.png"], ["o-1.png", "o-2.png"]])
        shutil.rmtree("out")
        seen.clear()
        body = stream(P, final=A)
        ends = [base64.b64encode(P) + b'", "partial_image_index": 0}\n', base64.b64encode(A) + b'"}\n']
        self.run_with(chunks(body, ends), *STREAM, "--output", "out/o.png")
        self.assertEqual(seen, [[], ["o-partial-1.png"], ["o-partial-1.png"], ["o-partial-1.png", "o.png"]])

    def test_what_is_being_written_stands_in_the_same_folder_and_is_hidden(self) -> None:
        found: List[str] = []

        def chunks() -> Iterator[bytes]:
            body = images(A)
            yield body[:1000]
            found.extend(os.listdir("out"))
            yield body[1000:]

        self.run_with(chunks(), "--output", "out/o.png")
        self.assertTrue(found)
        self.assertTrue(all(name.startswith(".") for name in found), found)
        self.assertEqual(os.listdir("out"), ["o.png"])

    def test_nothing_temporary_stays_however_it_ends(self) -> None:
        def then(error: Optional[BaseException], body: bytes) -> Callable[[], Iterator[bytes]]:
            def chunks() -> Iterator[bytes]:
                yield body
                if error:
                    raise error

            return chunks

        whole, half = images(A, C), images(A, C)[: len(images(A, C)) - 500]
        for name, chunks, code, kept in (
            ("success", then(None, whole), 0, []),
            ("cut", then(None, half), 5, ["o.reply"]),
            ("network", then(ConnectionResetError("reset"), half), 5, ["o.reply"]),
            ("interrupt", then(KeyboardInterrupt(), half), 130, ["o.reply"]),
            ("empty", then(None, b""), 6, []),
            ("garbage", then(None, b"<html>"), 6, ["o.reply"]),
        ):
            with self.subTest(name):
                ran = self.run_with(chunks(), "--n", "2", "--output", "out/o.png")
                self.assertEqual(ran.code, code, ran.err)
                pictures = {"success": ["o-1.png", "o-2.png"], "empty": [], "garbage": []}.get(name, ["o-1.png"])
                self.assertEqual(sorted(os.listdir("out")), sorted(pictures + kept))
                for picture_name, data in zip(pictures, (A, C)):
                    self.assertEqual(Path("out", picture_name).read_bytes(), data)
                shutil.rmtree("out")

    def test_files_have_the_usual_permissions(self) -> None:
        if os.name != "posix":
            self.skipTest("permissions are of another kind here")
        old = os.umask(0o027)
        self.addCleanup(os.umask, old)
        self.run_with(stream(P, final=A), *STREAM, "--output", "o.png", "--save-response", "r.sse")
        for name in self.files():
            self.assertEqual(stat.S_IMODE(os.stat(name).st_mode), 0o640, name)


class KeptReplyTest(WriterTest):
    """--save-response keeps the exact bytes always; a failure keeps them too and says how to go on."""

    def big(self, seed: str, size: int) -> bytes:
        """Returns a PNG with a chunk of noise, of about a size."""
        noise = random.Random(seed).getrandbits(8 * size).to_bytes(size, "big")
        return A[:33] + pictures.chunk(b"noIZ", noise) + A[33:]

    def test_save_response_has_the_exact_bytes_whatever_the_reply(self) -> None:
        crlf = stream(P, Q, final=A).replace(b"\n", b"\r\n")
        for name, body, status, code in (
            ("json", images(A, B), 200, 0), ("json with spaces", b"\n \r\n" + images(A) + b"\n\n \n", 200, 0),
            ("sse", stream(P, Q, final=A), 200, 0), ("crlf", crlf, 200, 0),
            ("comments", b": x\n\n" + crlf + b"\n\n: \xff\n", 200, 0),
            ("cut", images(A)[:700], 200, 5), ("no final", stream(P, final=None), 200, 6),
            ("html", b"<html>\r\n\0</html>", 200, 6),
            ("error in 200", b'{"error": {"message": "no", "code": "x"}}', 200, 4),
            ("400", b'{"error": {"message": "no", "code": "x"}}\n', 400, 4),
            ("401 page", b"<html>\r\nno</html>", 401, 4),
            ("404", b"\xff\xfe", 404, 4),
        ):  # fmt: skip
            for size in (10**6, 700):
                with self.subTest(name, size=size):
                    ran = self.run_with(
                        cut(body, size), *STREAM, "--output", "out/o.png", "--save-response", "kept/r", status=status
                    )
                    self.assertEqual((ran.code, Path("kept/r").read_bytes()), (code, body), ran.err)
                    self.assertEqual(
                        (ran.json["saved_response"], os.listdir("kept")), (os.path.join("kept", "r"), ["r"])
                    )
                    shutil.rmtree("out", ignore_errors=True)
                    shutil.rmtree("kept")

    def test_save_response_has_the_exact_bytes_of_large_pictures_too(self) -> None:
        one, two = self.big("1", 60_000), self.big("2", 50_001)
        broken = images(one).replace(b"/", b"\\/")
        lines = json.dumps({"data": [{"b64_json": base64.encodebytes(two).decode()}]}).encode()
        spoilt = bytearray(images(one, two))
        spoilt[len(spoilt) - 30_000] = ord("!")
        for name, body, code in (
            ("two", images(one, two), 0), ("stream", stream(one, two, final=one), 0), ("escaped", broken, 0),
            ("lines", lines, 0),
            ("no padding", images(two).replace(b"=", b""), 0), ("more than foreseen", images(one, two, one), 0),
            ("cut", images(one, two)[:-20_000], 5), ("cut in the first", images(one)[:50_000], 5),
            ("spoilt", bytes(spoilt), 6),
            ("jpeg", images(JPEG[:2] + b"\xff\xfe\xff\xff" + bytes(65533) + JPEG[2:]), 0),
        ):  # fmt: skip
            for size in (4096, 4097, 5003, 16384, 10**6):
                with self.subTest(name, size=size):
                    ran = self.run_with(cut(body, size), *STREAM, "--output", "out/o.png", "--save-response", "out/r")
                    self.assertEqual(ran.code, code, ran.err)
                    self.assertTrue(Path("out/r").read_bytes() == body, "the bytes differ")
                    shutil.rmtree("out")

    def test_save_response_is_exact_though_its_pictures_were_moved_meanwhile(self) -> None:
        one, two = self.big("1", 60_000), self.big("2", 50_001)
        body = images(one, two)
        middle = body.index(base64.b64encode(one)) + len(base64.b64encode(one)) + 2000

        def chunks(act: Callable[[Path], object], path: Path) -> Iterator[bytes]:
            yield from cut(body[:middle], 8192)
            act(path)
            yield from cut(body[middle:], 8192)

        acts: Dict[str, Callable[[Path], object]] = {
            "removed": lambda path: path.unlink(),
            "renamed": lambda path: path.rename(path.with_name("x.png")),
            "changed": lambda path: path.write_bytes(A),
        }
        for name, act in acts.items():
            with self.subTest(name):
                first = Path(name, "o-1.png")
                argv = ("--n", "2", "--output", f"{name}/o.png", "--save-response", f"{name}/r")
                ran = self.run_with(chunks(act, first), *argv)
                self.assertEqual((ran.code, ran.json["saved_response"]), (0, os.path.join(name, "r")), ran.err)
                self.assertTrue(Path(name, "r").read_bytes() == body, "the bytes differ")

    def test_a_failure_keeps_the_reply_and_its_line_recovers_what_came(self) -> None:
        both = images(A, C)
        for name, body, recovered in (
            ("cut in the second", both[:-300], [A]), ("cut behind the second", both[:-3], [A, C]),
            ("spoilt second", both[:-300] + b"!" + both[-300:], [A]),
        ):  # fmt: skip
            with self.subTest(name):
                ran = self.run_with(body, "--n", "2", "--output", "out/it's {index}.png")
                self.assertNotEqual(ran.code, 0)
                self.assertEqual([Path(row["path"]).read_bytes() for row in ran.json["images"]], recovered)
                self.assertEqual(Path(ran.json["saved_response"]).parent, Path("out"))
                line = ran.error["recovery"]
                self.assertIn(line, ran.err)
                words = shlex.split(line) if os.name == "posix" else []
                if words:
                    self.assertEqual(words[:3], ["python3", "gpt_image.py", "extract"])
                    again = self.run_main(*words[2:])
                    self.assertEqual(again.code, 0, again.err)
                    self.assertEqual([Path(row["path"]).read_bytes() for row in again.json["images"]], recovered)
                shutil.rmtree("out")

    def test_a_kept_reply_never_replaces_a_file(self) -> None:
        self.write("out/o.reply")
        for _ in range(2):
            ran = self.run_with(images(A)[:600], "--output", "out/o.png")
            self.assertEqual(Path(ran.json["saved_response"]).read_bytes(), images(A)[:600])
        self.assertEqual(Path("out/o.reply").read_bytes(), OLD)
        self.assertEqual(len(self.files("out")), 3)

    def test_success_keeps_no_reply_that_was_not_asked_for(self) -> None:
        ran = self.run_with(images(A), "--output", "o.png")
        self.assertEqual((self.files(), ran.json["saved_response"]), (["o.png"], None))

    def test_a_key_in_a_reply_is_not_kept(self) -> None:
        key = "sk-test-0123456789abcdef"
        for status in (200, 400):
            for size in (10**6, 5):
                body = b'{"error": {"message": "Incorrect API key provided: ' + key.encode() + b'."}}'
                ran = self.run_with(
                    cut(body, size), "--output", "o.png", "--save-response", f"{status}-{size}", status=status
                )
                self.assert_no_key(ran)
                self.assertEqual(len(Path(f"{status}-{size}").read_bytes()), len(body))


class RoutesTest(WriterTest):
    """The other routes follow the same rules."""

    def test_edits_and_responses_name_and_refuse_alike(self) -> None:
        self.write("in.png", picture("big-in"))
        item = {"type": "image_generation_call", "id": "ig_1", "result": base64.b64encode(A).decode()}
        other = {**item, "id": "ig_2", "result": base64.b64encode(B).decode()}
        rows: Tuple[Tuple[List[str], bytes, List[str]], ...] = (
            (["edits", "x", "--image", "in.png", "--n", "2"], images(A, B), ["o-1.png", "o-2.png"]),
            (["responses", "x"], json.dumps({"id": "r", "output": [item]}).encode(), ["o.png"]),
            (["responses", "x"], json.dumps({"id": "r", "output": [item, other]}).encode(), ["o.png", "o-2.png"]),
        )
        for argv, body, names in rows:
            with self.subTest(argv[0], names=names):
                transport = FakeTransport(reply(body))
                ran = self.run_main(*argv, "--output", "out/o.png", transport=transport)
                self.assertEqual((ran.code, self.paths(ran)), (0, [f"out/{name}" for name in names]), ran.err)
                again = self.run_main(*argv, "--output", "out/o.png", transport=FakeTransport())
                self.assertEqual(again.code, 7)
                shutil.rmtree("out")

    def test_extract_follows_the_same_rules(self) -> None:
        self.write("kept.json", images(A, B))
        ran = self.run_main("extract", "kept.json", "--output", "out/o-{index}.png")
        self.assertEqual((ran.code, self.paths(ran)), (0, ["out/o-1.png", "out/o-2.png"]))
        Path("out/o-1.png").write_bytes(b"mine")
        self.assertEqual(self.run_main("extract", "kept.json", "--output", "out/o-{index}.png").code, 7)
        ran = self.run_main("extract", "kept.json", "--output", "out/o-{index}.png", "--overwrite")
        self.assertEqual(ran.code, 0)
        self.assertEqual([Path(path).read_bytes() for path in self.paths(ran)], [A, B])

    def test_the_previews_of_an_extracted_picture_lose_its_number_too(self) -> None:
        kinds = (("partial_image", B), ("completed", A))
        rows = [{"type": f"image_generation.{kind}", "b64_json": base64.b64encode(data).decode()} for kind, data in kinds]
        self.write("kept.sse", "".join(f"data: {json.dumps(row)}\n\n" for row in rows).encode())
        ran = self.run_main("extract", "kept.sse", "--output", "out/o.png")
        self.assertEqual((ran.code, self.files("out")), (0, ["o-partial-1.png", "o.png"]), ran.err)
        self.assertEqual([row["path"] for row in ran.json["partial_images"]], ["out/o-partial-1.png"])

    def test_an_extracted_picture_that_loses_its_number_replaces_only_what_it_may(self) -> None:
        self.write("kept.json", images(A))
        self.assertEqual(self.paths(self.run_main("extract", "kept.json", "--output", "o.png")), ["o.png"])
        Path("o.png").write_bytes(b"mine")
        self.assertEqual(self.run_main("extract", "kept.json", "--output", "o.png").code, 7)
        ran = self.run_main("extract", "kept.json", "--output", "o.png", "--overwrite")
        self.assertEqual((ran.code, self.paths(ran), Path("o.png").read_bytes()), (0, ["o.png"], A), ran.err)
        # Of another format than its name says it gets another name, and what has that name was never meant.
        Path("o.jpg").write_bytes(b"old")
        Path("o.png").write_bytes(b"mine")
        ran = self.run_main("extract", "kept.json", "--output", "o.jpg", "--overwrite")
        self.assertEqual((ran.code, Path("o.png").read_bytes(), self.paths(ran)), (0, b"mine", ["o-2.png"]), ran.err)


if __name__ == "__main__":
    unittest.main()
