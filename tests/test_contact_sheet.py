"""The pages of `batch --contact-sheet`: what they show, what they link to, and what they never replace."""

from __future__ import annotations

import base64
import errno
import json
import os
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple
from unittest import mock
from urllib.parse import unquote_to_bytes

import gpt_image
from tests.pictures import picture
from tests.support import FakeTransport, ProgramTest, Ran, reply

TINY = base64.b64encode(picture(b"A", "png", 16, 16)).decode()
USAGE = {"input_tokens": 10, "output_tokens": 100, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}
MADE = {"created": 1, "data": [{"b64_json": TINY}], "usage": USAGE}
REFUSED = {"error": {"message": "No <b>, please", "code": "moderation_blocked", "type": "image_generation_user_error"}}
ODD = "a #1? 100% 'x' \"y\" <b>&amp; \u00e9\u732b"


class Page(HTMLParser):
    """What a browser would find on a page: tags with their attributes, and text."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(Path(name).read_text(encoding="utf-8"))
        self.states = [str(attrs["class"]) for tag, attrs in self.tags if tag == "article"]

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> List[str]:
        """Returns an attribute of all tags of a name."""
        return [str(attrs[name]) for found, attrs in self.tags if found == tag and attrs.get(name)]


class Looking(FakeTransport):
    """Makes each job, and looks around when its request comes."""

    def __init__(self, look: Callable[[int], None]) -> None:
        super().__init__()
        self.look = look

    def __call__(self, *call: Any) -> Any:
        self.replies.append(reply(MADE))
        found = super().__call__(*call)
        self.look(len(self.requests))
        return found


class SheetTest(ProgramTest):
    """A batch with a contact sheet, one call after the other."""

    def run_batch(self, jobs: List[Dict[str, Any]], *argv: str, transport: Any = None) -> Ran:
        """Runs a batch of jobs with the sheet `sheet.html`, unless another is named."""
        Path("jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in jobs), encoding="utf-8")
        sheet = () if "--contact-sheet" in argv else ("--contact-sheet", "sheet.html")
        transport = transport or FakeTransport(*(reply(MADE) for _ in jobs))
        return self.run_main("batch", "jobs.jsonl", "--parallel", "1", *sheet, *argv, transport=transport)


class WhatAPageShows(SheetTest):
    """Each job with its pictures, or with the reason why there are none."""

    def test_a_picture_with_its_prompt_model_size_and_cost(self) -> None:
        ran = self.run_batch([{"id": "fox", "prompt": "A fox"}])
        self.assertEqual((ran.code, ran.json["contact_sheet"]), (0, "sheet.html"), ran.err)
        page = Page("sheet.html")
        self.assertEqual(page.values("img", "src"), ["jobs/fox.png"])
        self.assertEqual(page.values("img", "loading"), ["lazy"])
        self.assertEqual(page.states, ["made"])
        for words in ("A fox", "1616", "id fox", "line 1", "gpt-image-2", "0.00305", "made: 1", "failed: 0"):
            self.assertIn(words, page.text)

    def test_links_lead_from_the_folder_of_the_page_to_files_of_any_name(self) -> None:
        names = ["out/plain.png", "out/a #1? 100% 'x'.png", "javascript:alert(1).png", "out/deep/\u732b.png"]
        names += [] if os.name == "nt" else ['out/"q" <b>&amp;\\.png', "out/caf\udce9.png"]
        ran = self.run_batch([{"prompt": "A", "output": name} for name in names], "--contact-sheet", "pages/a/sheet.html")
        self.assertEqual(ran.code, 0, ran.err)
        sources = Page("pages/a/sheet.html").values("img", "src")
        self.assertEqual(sources, Page("pages/a/sheet.html").values("a", "href")[-len(names) :])
        for source, name in zip(sources, names):
            self.assertTrue(source.startswith("../../"), source)
            found = os.path.join(b"pages/a", unquote_to_bytes(source))
            self.assertTrue(os.path.samefile(found, os.fsencode(name)), name)

    def test_a_picture_on_another_drive_is_linked_by_its_whole_path(self) -> None:
        with mock.patch("os.path.relpath", side_effect=ValueError("path is on mount 'D:'")):
            self.run_batch([{"prompt": "A"}])
        self.assertEqual(Page("sheet.html").values("img", "src"), [(self.folder / "jobs/1.png").as_uri()])

    def test_every_text_is_escaped_and_nothing_comes_from_outside(self) -> None:
        row = {"id": ODD, "prompt": f"<script>alert(1)</script> </details> {ODD}", "output": "a.png"}
        ran = self.run_batch([row, {"prompt": ODD}], transport=FakeTransport(reply(MADE), reply(REFUSED, 400)))
        self.assertEqual(ran.code, 9, ran.err)
        page = Page("sheet.html")
        tags = {tag for tag, _ in page.tags}
        self.assertTrue(tags.isdisjoint({"script", "b>", "link", "iframe"}), tags)
        self.assertEqual(sum(tag == "b" for tag, _ in page.tags), 2)  # the state of each job
        for words in (str(row["prompt"]), f"id {ODD}", "No <b>, please"):
            self.assertIn(words, page.text)
        text = Path("sheet.html").read_text(encoding="utf-8")
        for word in ("http:", "https:", "url(", "@import", "None"):
            self.assertNotIn(word, text.replace("HTTP", ""))
        self.assertIn("prefers-color-scheme: dark", text)

    def test_a_failure_with_its_reason_and_one_that_may_have_been_billed(self) -> None:
        cut = gpt_image.Fault("the connection was cut", sent=True)
        jobs = [{"id": "no", "prompt": "A"}, {"id": "cut", "prompt": "B"}]
        ran = self.run_batch(jobs, transport=FakeTransport(reply(REFUSED, 400), cut))
        self.assertEqual((ran.code, ran.err.count("No <b>, please")), (9, 1), ran.err)
        page = Page("sheet.html")
        self.assertEqual(page.states, ["failed", "failed"])
        self.assertIn("the connection was cut", page.text)
        self.assertEqual(page.values("p", "class"), ["False", "True"])
        self.run_batch(jobs, transport=FakeTransport(reply(MADE)))
        page = Page("sheet.html")
        self.assertEqual((page.states, page.values("p", "class")), (["made", "failed"], ["True"]))
        self.assertIn("the connection was cut", page.text)

    def test_a_job_that_was_begun_and_not_ended(self) -> None:
        self.run_batch([{"prompt": "A"}])
        ledger = Path("jobs.jsonl.ledger.jsonl")
        ledger.write_text(ledger.read_text().splitlines(True)[0])
        Path("jobs/1.png").unlink()
        self.run_batch([{"prompt": "A"}])
        self.assertRegex(Page("sheet.html").text, "not known: it may have been billed")

    def test_a_job_that_runs_again_shows_nothing_of_before(self) -> None:
        self.run_batch([{"prompt": "A"}, {"prompt": "B"}])
        Path("jobs/2.png").unlink()
        self.run_batch([{"prompt": "C"}, {"prompt": "B"}], "--overwrite", "--max-cost", "0.0001", "--size", "1024x1024",
                       "--quality", "low")  # fmt: skip
        page = Page("sheet.html")
        self.assertEqual((page.states, page.values("img", "src")), (["not made yet"] * 2, []))


class WhenPagesAreWritten(SheetTest):
    """While the batch runs, and only what has changed."""

    def looked(self, count: int, pause: float) -> Dict[int, List[str]]:
        """Runs some jobs, and returns the states that the page shows when each request comes."""
        seen: Dict[int, List[str]] = {}

        def look(number: int) -> None:
            seen[number] = Page("sheet.html").states if os.path.exists("sheet.html") else []

        with mock.patch.object(gpt_image, "SHEET_PAUSE", pause):
            ran = self.run_batch([{"prompt": "A"}] * count, transport=Looking(look))
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(Page("sheet.html").states, ["made"] * count)
        return seen

    def test_it_grows_with_the_jobs(self) -> None:
        self.assertEqual(self.looked(3, 0.0)[3], ["made", "made", "not made yet"])

    def test_it_is_left_alone_for_some_seconds(self) -> None:
        self.assertEqual(self.looked(4, 3600.0)[4], ["made"] + ["not made yet"] * 3)

    def test_only_pages_that_changed_are_written_until_the_end(self) -> None:
        written: List[str] = []
        real = os.replace

        def replace(source: str, target: str) -> None:
            written.append(target)
            real(source, target)

        with mock.patch.multiple(gpt_image, JOBS_ON_PAGE=1, SHEET_PAUSE=0.0), mock.patch("os.replace", replace):
            self.run_batch([{"prompt": "A"}] * 3, transport=Looking(lambda number: written.append(str(number))))
        pages = ["sheet.html", "sheet-2.html", "sheet-3.html"]
        self.assertEqual(written[written.index("2") : written.index("3")], ["2", "sheet.html", "sheet-2.html"])
        self.assertEqual(written[-3:], pages)
        self.assertEqual(self.files(), sorted([*pages, "jobs.jsonl", "jobs.jsonl.ledger.jsonl",
                                               *(f"jobs/{number}.png" for number in (1, 2, 3))]))  # fmt: skip

    def test_a_disk_that_does_not_take_it_costs_no_picture(self) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch.object(gpt_image.ContactSheet, "texts", side_effect=full):
            ran = self.run_batch([{"prompt": "A"}])
        self.assertEqual((ran.code, ran.json["jobs"]["made"]), (0, 1))
        self.assertEqual(ran.json["warnings"], ["--contact-sheet sheet.html: No space left on device"])
        self.assertEqual([name for name in self.files() if "sheet" in name or "part" in name], [])

    def test_a_dry_run_names_it_and_writes_nothing(self) -> None:
        ran = self.run_batch([{"prompt": "A"}], "--dry-run")
        self.assertEqual((ran.code, ran.json["contact_sheet"], self.files()), (0, "sheet.html", ["jobs.jsonl"]))


class ManyJobs(SheetTest):
    """Several pages, each of which leads to the others."""

    def test_pages_link_to_each_other_and_mark_those_with_failures(self) -> None:
        replies = [reply(REFUSED, 400) if number == 4 else reply(MADE) for number in range(5)]
        with mock.patch.object(gpt_image, "JOBS_ON_PAGE", 2):
            ran = self.run_batch([{"prompt": "A"}] * 5, "--contact-sheet", "p/a #1.htm", transport=FakeTransport(*replies))
        self.assertEqual(ran.json["jobs"]["failed"], 1)
        for name in ("p/a #1.htm", "p/a #1-2.htm", "p/a #1-3.htm"):
            page = Page(name)
            links = [link for link in page.values("a", "href") if link.endswith(".htm")]
            self.assertEqual(links, ["a%20%231.htm", "a%20%231-2.htm", "a%20%231-3.htm"])
            self.assertEqual(page.values("a", "class")[:3], ["False", "False", "True"])
            self.assertIn("failed: 1", page.text)
        self.assertEqual([len(Page(f"p/a #1{end}.htm").states) for end in ("", "-2", "-3")], [2, 2, 1])

    def test_a_full_page_is_the_last(self) -> None:
        with mock.patch.object(gpt_image, "JOBS_ON_PAGE", 2):
            self.run_batch([{"prompt": "A"}] * 2)
        self.assertEqual([name for name in self.files() if name.endswith("html")], ["sheet.html"])


class WhatIsNeverReplaced(SheetTest):
    """Any file that is no page of ours."""

    def test_other_files_are_refused_before_anything_is_sent(self) -> None:
        Path("folder").mkdir()
        Path("mine.html").write_bytes(b"<!doctype html>\n\xff")
        Path("second-2.html").write_text("mine")
        rows = [("mine.html", "output-exists"), ("second.html", "output-exists"), ("folder", "output-folder"),
                ("jobs.jsonl", "output-exists"), ("mine.html/a.html", "output-folder")]  # fmt: skip
        if os.name != "nt":
            os.mkfifo("fifo")
            os.symlink("nowhere", "dangling")
            rows += [("fifo", "output-exists"), ("dangling", "output-exists")]
        for name, rule in rows:
            for dry in ((), ("--dry-run",)):
                with self.subTest(name, dry=dry), mock.patch.object(gpt_image, "JOBS_ON_PAGE", 1):
                    ran = self.run_batch([{"prompt": "A"}] * 2, "--contact-sheet", name, *dry, transport=FakeTransport())
                    self.assertEqual((ran.code, ran.error["rule"]), (7, rule), ran.err)
        self.assertEqual(Path("mine.html").read_bytes(), b"<!doctype html>\n\xff")
        self.assertEqual(Path("second-2.html").read_text(), "mine")

    def test_the_pages_of_an_earlier_run_are_replaced(self) -> None:
        self.run_batch([{"prompt": "A"}])
        ran = self.run_batch([{"prompt": "A"}, {"prompt": "B"}], transport=FakeTransport(reply(MADE)))
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(Page("sheet.html").states, ["made", "made"])


if __name__ == "__main__":
    unittest.main()
