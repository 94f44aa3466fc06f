"""`batch`: what a person writes, what is checked, what the ledger remembers, and how many calls run at once."""

from __future__ import annotations

import base64
import codecs
import collections
import errno
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple, Union

import gpt_image
from tests import pictures
from tests.gateway import Storm
from tests.support import KEY, ProgramTest, Ran, reply

PNG = pictures.picture(b"small", "png", 16, 16)
USAGE = {"input_tokens": 10, "output_tokens": 1000, "total_tokens": 1010}
Answer = Union[gpt_image.Reply, gpt_image.Fault, BaseException]


def painted(data: bytes = PNG, **more: Any) -> gpt_image.Reply:
    """Returns a good reply of the Images routes."""
    body = {"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}], "usage": USAGE, **more}
    return reply(body, headers={"content-type": "application/json"})


def refused(status: int, code: str = "", **headers: str) -> gpt_image.Reply:
    """Returns a reply that refuses or turns away."""
    return reply({"error": {"message": f"no, {status}", "code": code or None}}, status, headers)


def prompt_in(request: gpt_image.Request) -> str:
    """Returns the prompt of a request of any route."""
    if request.form:
        return str(next(row["value"] for row in request.form if row["name"] == "prompt"))
    tree = request.tree or {}
    given = tree.get("prompt") or tree["input"]
    return str(given if isinstance(given, str) else given[0]["content"][0]["text"])


class Studio:
    """A transport for many threads: it answers by the prompt, and counts; what is not set is painted."""

    def __init__(self, **answers: Union[Callable[[], Answer], List[Answer]]) -> None:
        self.answers: Dict[str, Any] = {name.replace("_", " "): answer for name, answer in answers.items()}
        self.posted: collections.Counter[str] = collections.Counter()
        self.requests: List[gpt_image.Request] = []
        self.lock = threading.Lock()

    def __call__(
        self, request: gpt_image.Request, timeout: float, progress: gpt_image.Progress
    ) -> Union[gpt_image.Reply, gpt_image.Fault]:
        for _ in request.body or ():
            pass
        prompt = prompt_in(request)
        with self.lock:
            self.posted[prompt] += 1
            self.requests.append(request)
            answer = self.answers.get(prompt, self.answers.get("all", painted))
            found = answer() if callable(answer) else answer.pop(0) if answer else painted()
        if isinstance(found, BaseException):
            raise found
        assert isinstance(found, (gpt_image.Reply, gpt_image.Fault))
        return found

    def bodies(self, name: str) -> List[Any]:
        """Returns one field of all requests, sorted by the prompt."""
        return [(request.tree or {}).get(name) for request in sorted(self.requests, key=prompt_in)]


class BatchTest(ProgramTest):
    """A test that runs batches."""

    def write(self, name: str, text: Union[str, bytes]) -> str:
        """Writes a file."""
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    def jobs(self, *rows: Mapping[str, Any], name: str = "jobs.jsonl") -> str:
        """Writes a file of jobs."""
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def batch(self, *argv: str, studio: Any = None, **how: Any) -> Ran:
        """Runs a batch whose calls are played."""
        return self.run_main("batch", *argv, transport=studio or Studio(), **how)

    def ledger(self, name: str = "jobs.jsonl.ledger.jsonl") -> List[Any]:
        """Returns the lines of a ledger."""
        return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]

    def dry(self, *argv: str, **how: Any) -> Any:
        """Returns what a dry run prints; nothing may be sent or written by it."""
        before = self.files()
        ran = self.run_main("batch", *argv, "--dry-run", env={"OPENAI_API_KEY": ""}, **how)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(self.files(), before)
        return ran.json

    def problems(self, *argv: str, code: int = 2, **how: Any) -> List[Tuple[str, str]]:
        """Returns rules and messages of a run that is refused before anything is sent."""
        studio = Studio()
        ran = self.batch(*argv, studio=studio, **how)
        self.assertEqual((ran.code, studio.requests), (code, []), ran.err)
        error = ran.error
        return [(row["rule"], row["message"]) for row in error["problems"] or [error]]


class FilesOfJobsTest(BatchTest):
    """JOBS in its forms."""

    def prompts(self, name: str, *argv: str, stdin: str = "") -> List[str]:
        """Runs a batch that is to go well; returns what was sent."""
        studio = Studio()
        ran = self.batch(name, *argv, studio=studio, stdin=stdin)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(set(studio.posted.values()) - {1}, set())
        return sorted(studio.posted)

    def test_each_form_of_a_file_gives_the_same_jobs(self) -> None:
        lines = '{"prompt": "A cat"}\n\n{"prompt": "A dog", "n": 1, "stream": false, "style": null}'
        forms: Dict[str, Union[str, bytes]] = {
            "a.jsonl": lines,
            "b.jsonl": codecs.BOM_UTF8 + lines.replace("\n", "\r\n").encode(),
            "c.txt": "A cat\n\n  A dog  \n",
            "d.txt": codecs.BOM_UTF8 + b"A cat\r\nA dog",
            "e.csv": "prompt\nA cat\nA dog\n",
            "f.csv": "\ufeffPrompt;Size\r\nA cat;\r\n;\r\nA dog;1536x1024\r\n",
            "g.csv": "prompt,size\r\rA cat,\rA dog,\r",
            "h.csv": "size;prompt\n;A cat\n;A dog\n".encode("utf-16"),
            "i.tsv": "size\tprompt\n\tA cat\n\tA dog\n",
            "j.csv": '"prompt","size"\n"A cat",""\n"A dog","1024x1024"\n',
            "k": lines,
            "l": "prompt,size\nA cat,\nA dog,",
            "m": "A cat\nA dog",
            "n.dat": lines.encode("utf-16"),
        }
        for name, text in forms.items():
            with self.subTest(name):
                self.write(name, text)
                self.assertEqual(self.prompts(name, "--output", f"out-{name}/"), ["A cat", "A dog"])

    def test_standard_input_takes_each_form_too(self) -> None:
        for number, text in enumerate(('\ufeff{"prompt": "A"}', "prompt;n\nA;1\n", "A\n")):
            with self.subTest(text):
                argv = ("--output", f"out-{number}/", "--ledger", f"{number}.jsonl")
                self.assertEqual(self.prompts("-", *argv, stdin=text), ["A"])
        self.assertEqual(self.prompts("-", stdin="A sea"), ["A sea"])
        self.assertIn("batch.ledger.jsonl", self.files())
        self.assertEqual(self.files("batch"), ["1.png"])

    def test_standard_input_that_is_not_utf_8_is_said(self) -> None:
        stdin, stdout = io.TextIOWrapper(io.BytesIO(b"A caf\xe9"), "utf-8"), io.StringIO()
        code = gpt_image.main(["batch", "-", "--dry-run"], stdin=stdin, stdout=stdout, stderr=io.StringIO(), environ={})
        self.assertEqual((code, json.loads(stdout.getvalue())["error"]["rule"]), (2, "jobs-file"))

    def test_a_cell_may_hold_lines_and_quotes_and_the_line_of_a_job_is_where_it_begins(self) -> None:
        self.write("a.csv", 'id,prompt\none,"A ""big""\nsea, blue"\ntwo,"A\n\nlake"\nthree,A pond\n')
        self.assertEqual(self.prompts("a.csv"), ["A\n\nlake", 'A "big"\nsea, blue', "A pond"])
        lines = {row["job"]: row["line"] for row in self.ledger("a.csv.ledger.jsonl")}
        self.assertEqual(lines, {"one": 2, "two": 4, "three": 7})

    def test_names_are_options_with_dashes_or_underscores_in_any_case(self) -> None:
        self.write("in.png", pictures.picture(b"in", "png", 32, 32))
        self.write("two.png", pictures.picture(b"two", "png", 32, 32))
        rows: List[Dict[str, Any]] = [
            {"prompt": "1", "Output_Format": "jpeg", "output-compression": 50, "n": 1},
            {"prompt": "2", "route": "responses", "input_image": ["in.png", "two.png"], "metadata_json": {"a": "b"}},
            {"prompt": "3", "route": "edits", "image": "in.png | two.png", "mask_box": "0,0,16,16"},
            {"prompt": "4", "route": "responses", "store": False, "reasoning-effort": "low"},
            {"prompt": "5", "user": "me", "extra-json": {"seed": 7, "deep": {"a": [1]}}},
        ]
        studio = Studio(**{"2": answered, "4": answered})
        ran = self.batch(self.jobs(*rows), studio=studio)
        self.assertEqual(ran.code, 0, ran.err)
        sent = sorted(studio.requests, key=prompt_in)
        first, second, third, fourth, fifth = (request.tree or {} for request in sent)
        self.assertEqual((first["output_format"], first["output_compression"]), ("jpeg", 50))
        self.assertEqual((fifth["seed"], fifth["deep"], fifth["user"]), (7, {"a": [1]}, "me"))
        self.assertEqual((second["metadata"], fourth["store"]), ({"a": "b"}, False))
        self.assertEqual([part["type"] for part in second["input"][0]["content"]].count("input_image"), 2)
        self.assertEqual([row["name"] for row in sent[2].form or ()].count("image[]"), 2)
        self.assertIn("mask", [row["name"] for row in sent[2].form or ()])
        self.assertIn("jobs/3-mask.png", self.files())

    def test_what_is_typed_holds_for_every_job_and_a_job_s_own_wins(self) -> None:
        self.jobs({"id": "a"}, {"id": "b", "prompt": "Own", "quality": "high"}, {"id": "c", "prompt_file": "p.txt"})
        self.write("p.txt", "From a file\n")
        studio = Studio()
        ran = self.batch("jobs.jsonl", "--prompt", "For all", "--quality", "low", "--n", "2", studio=studio)
        self.assertEqual(ran.code, 9, ran.err)  # one picture came for each, and two were asked for
        self.assertEqual(sorted(studio.posted), ["For all", "From a file", "Own"])
        self.assertEqual(studio.bodies("quality"), ["low", "low", "high"])
        self.assertEqual(studio.bodies("n"), [2, 2, 2])

    def test_what_cannot_be_read_is_said_with_its_line(self) -> None:
        self.write("folder.jsonl.txt", "")
        os.mkdir("folder")
        table: Tuple[Tuple[str, Union[str, bytes], str, str], ...] = (
            ("a.jsonl", '{"prompt": "A"}\n[1]\n{"prompt": "B"\n', "a.jsonl line 2", "a.jsonl line 3"),
            ("b.jsonl", '{"prompt": "A", "Prompt": "B"}', "b.jsonl line 1", "same name"),
            ("c.csv", "prompt,n\nA,1,2\nB,1\nC,1,\n", "c.csv line 2 (2): 3 cells", "c.csv line 4 (4): 3 cells"),
            ("d.csv", 'prompt,n\nA,1\n"B,1\n', "d.csv", "line 3"),
            ("e.csv", "prompt\nA caf\xe9".encode("latin-1"), "e.csv", "utf-8"),
            ("f.csv", "prompt,size,Size\nA,auto,auto", "f.csv line 2", "same name"),
            ("g.txt", "", "g.txt holds no job", ""),
            ("h.csv", "prompt\n", "h.csv holds no job", ""),
            ("folder", "", "folder", "directory"),
            ("i.jsonl", '{"prompt": "A", "id": "x"}\n{"prompt": "B", "id": "x"}', "line 2 (x)", "line 1 has this id too"),
            ("j.jsonl", '{"prompt": "A", "id": "2"}\n{"prompt": "B"}', "line 2 (2)", "line 1 has this id too"),
        )
        for name, text, *words in table:
            with self.subTest(name):
                if not os.path.isdir(name):
                    self.write(name, text)
                found = self.problems(name)
                self.assertLessEqual({rule for rule, _ in found}, {"jobs-file", "jobs-id"})
                for piece in words:
                    self.assertIn(piece, " ".join(message for _, message in found))
        self.assertEqual(self.problems("a.jsonl", "--engine", "batch-api"), self.problems("a.jsonl"))
        self.assertEqual(self.problems("missing.csv")[0][0], "jobs-file")
        self.assertEqual(self.problems()[0][0], "jobs-file")

    def test_a_file_without_a_suffix_is_no_folder(self) -> None:
        self.write("sea", "A\n")
        self.assertEqual(self.prompts("sea"), ["A"])
        self.assertEqual(self.files("sea-pictures"), ["1.png"])

    def test_a_fifo_is_read_once_and_gives_no_name(self) -> None:
        os.mkfifo("pipe")
        writer = threading.Thread(target=lambda: Path("pipe").write_text("A\nB\n", "utf-8"))
        writer.start()
        self.assertEqual(self.prompts("pipe"), ["A", "B"])
        writer.join()
        self.assertEqual(self.files("batch"), ["1.png", "2.png"])
        self.assertIn("batch.ledger.jsonl", self.files())

    def test_a_prompt_that_is_to_come_from_standard_input_is_never_another_job_s(self) -> None:
        self.jobs({"id": "a"}, {"id": "b"})
        found = self.problems("jobs.jsonl", "--prompt-file", "-", stdin="For one")
        self.assertEqual([rule for rule, _ in found], ["prompt-blank", "prompt-blank"])

    def test_many_columns_and_long_ids_are_no_trouble(self) -> None:
        names = [f"c{number}" for number in range(4000)]
        self.write("a.csv", f"id,prompt,{','.join(names)}\nx,A {{c3999}},{','.join(names)}\n")
        self.assertEqual(self.prompts("a.csv"), ["A c3999"])
        self.jobs({"id": "long" * 1000 + "\nline", "prompt": "B"}, {"id": "\x00\u202e/..", "prompt": "C"})
        self.assertEqual(self.prompts("jobs.jsonl"), ["B", "C"])
        self.assertLess(max(map(len, self.files("jobs"))), 120)

    def test_an_odd_id_does_not_spoil_a_message(self) -> None:
        self.jobs({"id": "long\n" * 1000, "prompt": "B", "n": 99})
        [(rule, message)] = self.problems("jobs.jsonl")
        self.assertEqual(rule, "n-value")
        self.assertLess(len(message), 250)
        self.assertNotIn("\n", message)


def answered() -> gpt_image.Reply:
    """Returns a good reply of the Responses route."""
    item = {"type": "image_generation_call", "id": "ig_1", "status": "completed",
            "result": base64.b64encode(PNG).decode()}  # fmt: skip
    body = {"id": "resp_1", "object": "response", "status": "completed", "output": [item]}
    return reply(body, headers={"content-type": "application/json"})


class VariablesTest(BatchTest):
    """`{name}` is filled from the columns that are no options."""

    def test_a_variable_stands_in_any_text_and_name(self) -> None:
        self.write("a.csv", "animal,time,user-name\nA cat,noon,me\nA/dog,\"night: 1\",you\n")
        studio = Studio()
        argv = ("--prompt", "{animal} at {TIME}, {{animal}}", "--output", "out/{animal}-{time}-{index}.png",
                "--user", "{user_name}", "--save-response", "raw/{animal}.json")  # fmt: skip
        ran = self.batch("a.csv", *argv, studio=studio)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(sorted(studio.posted), ["A cat at noon, {animal}", "A/dog at night: 1, {animal}"])
        self.assertEqual(studio.bodies("user"), ["me", "you"])
        self.assertEqual(self.files("out"), ["A cat-noon-1.png", "A-dog-night- 1-1.png"])
        self.assertEqual(self.files("raw"), ["A cat.json", "A-dog.json"])

    def test_a_variable_stands_in_a_prompt_file_too(self) -> None:
        self.write("p.txt", "A {animal}\nin {{braces}}\n")
        self.write("a.csv", "animal\ncat\ndog\n")
        studio = Studio()
        ran = self.batch("a.csv", "--prompt-file", "p.txt", studio=studio)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(sorted(studio.posted), ["A cat\nin {braces}", "A dog\nin {braces}"])

    def test_inputs_are_named_by_variables(self) -> None:
        for name in ("a", "b"):
            self.write(f"{name}.png", pictures.picture(name.encode(), "png", 32, 32))
        self.write("a.csv", "file\na\nb\n")
        studio = Studio()
        ran = self.batch("a.csv", "--route", "edits", "--prompt", "x {file}", "--image", "{file}.png", studio=studio)
        self.assertEqual(ran.code, 0, ran.err)
        shown = [row["path"] for request in sorted(studio.requests, key=prompt_in)
                 for row in request.form or () if "path" in row]  # fmt: skip
        self.assertEqual(shown, ["a.png", "b.png"])

    def test_index_and_partial_keep_their_meaning_in_names_only(self) -> None:
        self.write("a.csv", "index\n7\n")
        studio = Studio()
        ran = self.batch("a.csv", "--prompt", "Number {index}", "--output", "out/x-{index}.png", studio=studio)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual((list(studio.posted), self.files("out")), (["Number 7"], ["x-1.png"]))

    def test_an_unknown_name_is_an_error_with_its_line_and_a_guess(self) -> None:
        self.write("a.csv", "animal,hour\ncat,noon\ndog,\n")
        found = self.problems("a.csv", "--prompt", "{animal} {hours} {index}", "--output", "{hour}.png")
        self.assertEqual({rule for rule, _ in found}, {"jobs-place"})
        text = "\n".join(message for _, message in found)
        self.assertIn("a.csv line 2 (2): --prompt: no column has a value for 'hours'; did you mean hour", text)
        self.assertIn("a.csv line 3 (3): --output: no column has a value for 'hour'", text)
        self.assertIn("'index'", self.problems("a.csv", "--prompt", "{index}")[0][1])

    def test_a_value_in_a_name_is_safe_for_every_system(self) -> None:
        table = {
            "../../etc/passwd": "-..-etc-passwd", "a\\b:c*d?e\"f<g>h|i": "a-b-c-d-e-f-g-h-i", "CON": "_CON",
            "nul.txt": "_nul.txt", "..": "_", " .x. ": "x", "tab\tnew\nline": "tab-new-line", "{index}": "-index-",
            "é" * 80: "é" * 50, "com1": "_com1", "console": "console", "名前": "名前", "x\x7f": "x-",
        }  # fmt: skip
        for value, safe in table.items():
            with self.subTest(value):
                self.assertEqual(gpt_image.safe_name(value), safe)
        self.jobs(*({"id": str(number), "v": value} for number, value in enumerate(table)))
        ran = self.batch("jobs.jsonl", "--prompt", "x", "--output", "out/{id}/{v}.png")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(len(self.files("out")), len(table))

    def test_only_options_are_options(self) -> None:
        table: Dict[str, str] = {
            "base-url": "https://evil.example/v1", "api_key": "x", "api-key-env": "HOME", "header": "X: y", "curl": "1",
            "allow-http": "1", "dry-run": "1", "max-cost": "1", "image": "a.png", "tool_model": "x", "project": "p",
        }  # fmt: skip
        for name, value in table.items():
            with self.subTest(name):
                self.jobs({"prompt": "A", "id": "x", name: value})
                [(rule, message)] = self.problems("jobs.jsonl")
                self.assertEqual(rule, "jobs-option")
                self.assertIn("jobs.jsonl line 1 (x): ", message)
        self.jobs({"prompt": "A", "route": "paint"})
        self.assertEqual(self.problems("jobs.jsonl")[0][0], "jobs-option")


class ChecksTest(BatchTest):
    """All jobs are checked before the first is sent."""

    def test_all_broken_rules_of_all_jobs_are_said_at_once_with_line_and_id(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "", "n": 11, "size": "9x9"}, {"id": "z", "prompt": "C", "quality": "best"},
                  {"route": "edits", "prompt": "D", "image": "no.png"})  # fmt: skip
        found = self.problems("jobs.jsonl")
        rules = [(rule, re.sub(r"( \((\d)\))?:.*", "", message)) for rule, message in found]
        self.assertEqual(sorted(rules), sorted([
            ("prompt-blank", "jobs.jsonl line 2"), ("n-value", "jobs.jsonl line 2"),
            ("size-multiple", "jobs.jsonl line 2"), ("quality-value", "jobs.jsonl line 3 (z)"),
            ("image-unreadable", "jobs.jsonl line 4"),
        ]))  # fmt: skip
        for _, message in found:
            self.assertEqual(message.count("jobs.jsonl"), 1, message)

    def test_names_are_distinct_across_the_batch_on_disks_without_case_too(self) -> None:
        for first, second in (("a.png", "a.png"), ("A.png", "a.png"), ("x/../a.png", "./a.png")):
            with self.subTest(first):
                self.jobs({"prompt": "A", "output": first}, {"prompt": "B", "output": second})
                [(rule, message)] = self.problems("jobs.jsonl", code=7)
                self.assertEqual(rule, "output-twice")
                self.assertIn("line 2", message)
                self.assertIn("line 1", message)

    def test_a_name_that_exists_is_refused_or_replaced_as_by_a_single_call(self) -> None:
        self.write("a.png", "mine")
        self.jobs({"prompt": "A", "output": "a.png"})
        self.assertEqual(self.problems("jobs.jsonl", code=7)[0][0], "output-exists")
        self.assertEqual(self.batch("jobs.jsonl", "--overwrite").code, 0)
        self.assertEqual(Path("a.png").read_bytes(), PNG)

    def test_what_the_run_reads_is_never_replaced(self) -> None:
        os.mkdir("in")
        self.write("in/a.png", pictures.picture(b"in", "png", 32, 32))
        os.symlink("in/a.png", "link.png")
        rows = [{"prompt": "A", "route": "edits", "image": "in/a.png", "output": "1.png"},
                {"prompt": "B", "output": "link.png"}]  # fmt: skip
        self.jobs(*rows)
        self.assertEqual(self.problems("jobs.jsonl", "--overwrite", code=7)[0][0], "output-input")
        self.jobs(*rows[::-1])
        before = Path("in/a.png").read_bytes()
        self.batch("jobs.jsonl", "--overwrite")
        self.assertEqual(Path("in/a.png").read_bytes(), before)
        for name in ("jobs.jsonl", "jobs.jsonl.ledger.jsonl", "./jobs.jsonl"):
            with self.subTest(name):
                self.jobs({"prompt": "A", "save-response": name})
                self.assertEqual(self.problems("jobs.jsonl", "--overwrite", code=7)[0][0], "output-input")

    def test_a_job_that_is_done_keeps_its_name_too(self) -> None:
        self.jobs({"id": "a", "prompt": "A", "output": "a.png"})
        self.assertEqual(self.batch("jobs.jsonl").code, 0)
        self.jobs({"id": "a", "prompt": "A", "output": "a.png"}, {"id": "b", "prompt": "B", "output": "A.png"})
        self.assertEqual(self.problems("jobs.jsonl", "--overwrite", code=7)[0][0], "output-twice")

    def test_a_file_of_jobs_that_changes_while_it_runs_changes_nothing(self) -> None:
        self.jobs(*({"prompt": f"A {number}"} for number in range(6)))

        def change() -> gpt_image.Reply:
            self.write("jobs.jsonl", "{broken")
            return painted()

        studio = Studio(all=change)
        ran = self.batch("jobs.jsonl", "--parallel", "2", studio=studio)
        self.assertEqual((ran.code, sorted(studio.posted)), (0, [f"A {number}" for number in range(6)]))

    def test_an_input_that_changes_while_it_runs_is_no_longer_the_job_of_the_ledger(self) -> None:
        self.write("in.png", pictures.picture(b"one", "png", 32, 32))
        self.jobs({"prompt": "A"}, {"id": "b", "prompt": "B", "route": "edits", "image": "in.png"})

        def change() -> gpt_image.Reply:
            self.write("in.png", pictures.picture(b"two", "png", 32, 32))
            return painted()

        ran = self.batch("jobs.jsonl", "--parallel", "1", studio=Studio(A=change))
        self.assertEqual(ran.code, 0, ran.err)
        found = {row["job"]: row["result"]["request"]["inputs"] for row in self.ledger() if "result" in row}
        self.assertEqual(found["b"][0]["sha256"], hashlib.sha256(Path("in.png").read_bytes()).hexdigest())

    def test_no_picture_of_a_run_replaces_another_of_it(self) -> None:
        jpeg = pictures.picture(b"j", "jpeg", 16, 16)
        self.jobs({"prompt": "A", "output": "a.png"}, {"prompt": "B", "output": "a.jpg"})
        studio = Studio(A=lambda: painted(jpeg), B=lambda: painted(jpeg))
        ran = self.batch("jobs.jsonl", "--overwrite", "--parallel", "1", studio=studio)
        self.assertEqual((ran.code, self.files()[:2]), (0, ["a-2.jpg", "a.jpg"]), ran.err)

    def test_a_dry_run_says_what_would_be_done(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B", "n": 3}, {"prompt": "C", "quality": "high"},
                  {"route": "responses", "prompt": "D"})  # fmt: skip
        shown = self.dry("jobs.jsonl", "--size", "1024x1024", "--quality", "low")
        self.assertEqual(shown["jobs"], {"run": 4, "under_way": 0, "done": 0, "unclear": 0})
        self.assertEqual(shown["pictures"], 6)
        by = [(row["route"], row["size"], row["quality"], row["jobs"], row["pictures"]) for row in shown["by"]]
        self.assertEqual(by[:2], [("generations", "1024x1024", "low", 2, 4), ("generations", "1024x1024", "high", 1, 1)])
        self.assertEqual((shown["first"]["body"]["prompt"], shown["first"]["outputs"]), ("A", ["jobs/1.png"]))
        self.assertGreater(shown["estimate"]["usd"], 0.2)
        self.assertEqual(self.batch("jobs.jsonl", studio=Studio(D=answered)).code, 9)
        self.assertEqual(self.dry("jobs.jsonl")["jobs"]["done"], 3)

    def test_warnings_are_said_once_and_stand_in_the_ledger(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        ran = self.batch("jobs.jsonl", "--size", "3840x2160", "--model", "gpt-image-2")
        self.assertEqual(ran.code, 0)
        self.assertEqual(len(ran.json["warnings"]), 1)
        ended = [row for row in self.ledger() if "result" in row]
        for row in ended:
            self.assertIn("experimental", row["result"]["warnings"][0])

    def test_what_is_wrong_with_the_command_itself_is_said_first(self) -> None:
        self.jobs({"prompt": "A"})
        table = (
            (("--parallel", "65"), 2), (("--parallel", "0"), 2), (("--route", "paint"), 2), (("--curl",), 2),
            (("--max-cost", "-1"), 2), (("--base-url", "http://example.com/v1"), 2),
        )  # fmt: skip
        for argv, code in table:
            with self.subTest(argv):
                self.problems("jobs.jsonl", *argv, code=code)
        self.problems("jobs.jsonl", code=3, env={"OPENAI_API_KEY": ""})

    def test_the_connection_of_the_command_line_holds_for_all_jobs(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        studio = Studio()
        argv = ("--api-key-env", "MINE", "--header", "X-Mine: 1", "--base-url", "https://relay.example/v1")
        ran = self.batch("jobs.jsonl", *argv, studio=studio, env={"MINE": "sk-mine-0123456789", "OPENAI_API_KEY": ""})
        self.assertEqual(ran.code, 0, ran.err)
        for request in studio.requests:
            headers = {name: value for name, value in request.headers}
            key = headers["Authorization"]
            self.assertEqual(isinstance(key, gpt_image.Secret) and key.reveal(), "Bearer sk-mine-0123456789")
            self.assertEqual((headers["X-Mine"], request.url[:21]), ("1", "https://relay.example"))
        self.assert_no_key(ran, ["sk-mine-0123456789"])


class LedgerTest(BatchTest):
    """What has become of each job is on disk before the next step, and the same command goes on from there."""

    def test_each_job_has_a_line_when_it_begins_and_one_when_it_has_ended(self) -> None:
        self.jobs({"id": "a", "prompt": "A", "quality": "low", "size": "1024x1024"}, {"id": "b", "prompt": "B"})
        ran = self.batch("jobs.jsonl", "--parallel", "1")
        begun, ended = self.ledger()[:2]
        self.assertEqual((begun["job"], begun["line"], begun["outputs"]), ("a", 1, ["jobs/a.png"]))
        self.assertEqual(begun["begun"], "2026-11-20T12:00:00Z")
        self.assertAlmostEqual(begun["usd"], 0.0059, 3)
        self.assertEqual(ended["fingerprint"], begun["fingerprint"])
        result = ended["result"]
        self.assertEqual((result["ok"], result["route"], result["request"]["prompt"]), (True, "generations", "A"))
        self.assertEqual(result["images"][0]["sha256"], hashlib.sha256(PNG).hexdigest())
        self.assertEqual(ran.json["jobs"], {"total": 2, "made": 2, "made_before": 0, "failed": 0, "unclear": 0, "under_way": 0,
                                            "not_started": 0})  # fmt: skip
        self.assertEqual((ran.json["pictures"], ran.json["ledger"]), (2, "jobs.jsonl.ledger.jsonl"))
        total = sum(row["usd"] for row in self.ledger() if "result" in row)
        self.assertAlmostEqual(ran.json["cost"]["at_most"], total, 4)
        self.assertEqual(ran.json["cost"]["usd"], 0)  # no usage was told

    def test_the_key_is_not_in_the_ledger_though_a_server_says_it(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        told = reply({"error": {"message": f"bad key {KEY}", "code": "x"}}, 400)
        studio = Studio(A=[told], B=lambda: painted(data=PNG, model=KEY, quality=KEY))
        self.assert_no_key(self.batch("jobs.jsonl", studio=studio))

    def test_done_jobs_are_skipped_and_the_same_command_ends_well(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"}, {"prompt": "C"})
        first = self.batch("jobs.jsonl", studio=Studio(B=[refused(400, "moderation_blocked")]))
        self.assertEqual((first.code, first.json["jobs"]["failed"]), (9, 1))
        [row] = first.json["failures"]
        self.assertEqual((row["line"], row["id"], row["status"], row["code"]), (2, "2", 400, "moderation_blocked"))
        again = Studio()
        second = self.batch("jobs.jsonl", studio=again)
        self.assertEqual((second.code, list(again.posted), second.json["jobs"]["made_before"]), (0, ["B"], 2))
        third = Studio()
        self.assertEqual((self.batch("jobs.jsonl", studio=third).code, third.posted), (0, {}))

    def test_a_job_that_changed_or_whose_picture_is_gone_runs_again(self) -> None:
        self.jobs({"id": "a", "prompt": "A"}, {"id": "b", "prompt": "B"}, {"id": "c", "prompt": "C"})
        self.batch("jobs.jsonl")
        os.unlink("jobs/b.png")
        self.jobs({"id": "c", "prompt": "C"}, {"id": "a", "prompt": "A", "output": "new.png"}, {"id": "b", "prompt": "B"})
        studio = Studio()
        self.assertEqual((self.batch("jobs.jsonl", studio=studio).code, list(studio.posted)), (0, ["B"]))
        self.jobs({"id": "a", "prompt": "Another A"})
        self.assertEqual(self.problems("jobs.jsonl", code=7)[0][0], "output-exists")
        self.assertEqual(self.batch("jobs.jsonl", "--output", "other/").code, 0)
        self.write("other/a.png", pictures.picture(b"edited", "png", 16, 16))
        self.batch("jobs.jsonl", "--output", "other/", studio=studio)
        self.assertEqual(Path("other/a.png").read_bytes(), pictures.picture(b"edited", "png", 16, 16))

    def test_another_file_behind_the_same_name_is_another_request(self) -> None:
        self.jobs({"id": "a", "prompt": "A", "route": "edits", "image": "in.png"})
        self.write("in.png", pictures.picture(b"one", "png", 32, 32))
        self.batch("jobs.jsonl")
        studio = Studio()
        self.batch("jobs.jsonl", studio=studio)
        self.write("in.png", pictures.picture(b"two", "png", 32, 32))
        self.batch("jobs.jsonl", "--output", "b/", studio=studio)
        self.assertEqual(studio.posted["A"], 1)

    def begin(self, *names: str) -> None:
        """Leaves the ledger as a crash does while these jobs run."""
        self.batch("jobs.jsonl", "--parallel", "1")
        rows = [row for row in self.ledger() if row["job"] not in names or "begun" in row]
        self.jobs(*rows, name="jobs.jsonl.ledger.jsonl")

    def test_a_job_that_began_and_did_not_end_is_left_alone_and_listed(self) -> None:
        self.jobs({"id": "a", "prompt": "A"}, {"id": "b", "prompt": "B"})
        self.begin("b")
        os.unlink("jobs/b.png")
        studio = Studio()
        ran = self.batch("jobs.jsonl", studio=studio)
        self.assertEqual((ran.code, studio.posted, ran.json["jobs"]["unclear"]), (9, {}, 1))
        [row] = ran.json["failures"]
        self.assertEqual((row["line"], row["id"], row["may_be_billed"]), (2, "b", True))
        self.assertIn("--retry-billable", row["hint"])
        self.assertTrue(ran.error["may_be_billed"])
        self.assertEqual(self.dry("jobs.jsonl")["jobs"], {"run": 0, "under_way": 0, "done": 1, "unclear": 1})
        ran = self.batch("jobs.jsonl", "--retry-billable", studio=studio)
        self.assertEqual((ran.code, dict(studio.posted)), (0, {"B": 1}))

    def test_a_job_whose_pictures_are_whole_had_ended_and_what_it_may_have_cost_still_counts(self) -> None:
        self.jobs({"id": "b", "prompt": "B", "size": "1024x1024", "quality": "low"})
        self.begin("b")
        studio = Studio()
        ran = self.batch("jobs.jsonl", studio=studio)
        self.assertEqual((ran.code, studio.posted, ran.json["jobs"]["made_before"]), (0, {}, 1))
        self.assertGreater(ran.json["cost"]["at_most"], 0)
        self.assertEqual(self.batch("jobs.jsonl").json["cost"], ran.json["cost"])

    def test_what_may_have_been_billed_is_not_sent_twice(self) -> None:
        self.jobs({"id": "a", "prompt": "A", "size": "1024x1024", "quality": "low"})
        cut = gpt_image.Fault("connection reset", sent=True)
        first = self.batch("jobs.jsonl", studio=Studio(A=[cut]))
        self.assertEqual((first.code, first.error["may_be_billed"]), (9, True))
        studio = Studio()
        ran = self.batch("jobs.jsonl", studio=studio)
        self.assertEqual((ran.code, studio.posted), (9, {}))
        self.assertIn("connection reset", ran.json["failures"][0]["message"])
        spent = ran.json["cost"]["at_most"]
        self.assertEqual(self.batch("jobs.jsonl", "--retry-billable", studio=studio).code, 0)
        self.assertGreater(self.batch("jobs.jsonl").json["cost"]["at_most"], spent)

    def test_a_picture_that_was_taken_out_of_a_kept_reply_counts_as_made(self) -> None:
        self.jobs({"id": "a", "prompt": "A"})
        self.batch("jobs.jsonl", studio=Studio(A=[gpt_image.Fault("connection reset", sent=True)]))
        os.makedirs("jobs", exist_ok=True)
        self.write("jobs/a.png", PNG)
        studio = Studio()
        ran = self.batch("jobs.jsonl", studio=studio)
        self.assertEqual((ran.code, studio.posted, ran.json["jobs"]["made_before"]), (0, {}, 1), ran.err)

    def test_the_hint_says_what_will_change_something(self) -> None:
        self.jobs({"id": "a", "prompt": "A"}, {"id": "b", "prompt": "B"})
        cut = gpt_image.Fault("connection reset", sent=True)
        ran = self.batch("jobs.jsonl", studio=Studio(A=[cut], B=[refused(400)]))
        self.assertIn("run the same command again", ran.error["hint"])
        self.assertIn("1 may have been billed", ran.error["hint"])
        ran = self.batch("jobs.jsonl", studio=Studio())
        self.assertNotIn("the same command", ran.error["hint"])
        self.assertIn("--retry-billable", ran.error["hint"])

    def test_another_folder_for_what_is_made_is_worth_a_warning(self) -> None:
        self.jobs({"id": "a", "prompt": "A"}, {"id": "b", "prompt": "B"})
        self.assertEqual(self.batch("jobs.jsonl").code, 0)
        ran = self.batch("jobs.jsonl", "--output", "elsewhere/{id}.png")
        self.assertEqual((ran.code, ran.json["jobs"]["made_before"], len(ran.json["warnings"])), (0, 2, 1))
        self.assertIn("stay where they are", ran.json["warnings"][0])

    def test_a_column_with_a_mistake_in_its_name_gets_a_guess(self) -> None:
        self.write("a.csv", "id,promt\n1,A lake\n")
        ran = self.batch("a.csv")
        self.assertEqual(ran.code, 2)
        self.assertIn("did you mean --prompt?", ran.err)
        self.write("b.csv", "time,qualty,Sizes\nnoon,low,big\n")
        ran = self.batch("b.csv", "--prompt", "A lake at {TIME}, {sizes}", "--dry-run")
        self.assertEqual(ran.json["warnings"], ["qualty is not an option (did you mean --quality?)"])

    def test_the_kept_reply_and_the_pictures_of_a_failed_try_are_no_obstacle(self) -> None:
        self.jobs({"id": "a", "prompt": "A"})
        argv = ("jobs.jsonl", "--save-response", "raw/{id}.json")
        self.assertEqual(self.batch(*argv, studio=Studio(A=[refused(400)])).code, 9)
        self.write("raw/a.json", "of the failed try")
        ran = self.batch(*argv)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(Path("raw/a.json").read_text("utf-8"), "of the failed try")

    def test_a_background_response_that_a_crash_left_is_found_once_it_is_resumed(self) -> None:
        gateway = self.gateway("plain", polls=0)
        self.jobs({"id": "a", "prompt": "Lake", "route": "responses", "background_mode": True, "tool_model": "small",
                   "size": "48x32"})  # fmt: skip
        real, kept = gpt_image.Call.settle, []

        def die(call: Any, failure: Any) -> Any:
            kept.append(Path("jobs/a.session.json").read_bytes())
            return real(call, failure)

        with unittest.mock.patch.object(gpt_image.Call, "settle", die):
            self.assertEqual(self.run_main("batch", "jobs.jsonl", gateway=gateway).code, 0)
        self.jobs(*[row for row in self.ledger() if "begun" in row], name="jobs.jsonl.ledger.jsonl")
        os.unlink("jobs/a.png")
        self.write("jobs/a.session.json", kept[0])
        ran = self.run_main("batch", "jobs.jsonl", gateway=gateway)
        self.assertEqual(ran.json["jobs"]["unclear"], 1)
        words = ran.json["failures"][0]["recovery"].split()
        self.assertEqual(words[-2:], ["resume", "jobs/a.session.json"])
        ran = self.run_main(*words[-2:], gateway=gateway)
        self.assertEqual(ran.code, 0, ran.err)
        ran = self.run_main("batch", "jobs.jsonl", gateway=gateway)
        self.assertEqual((ran.code, ran.json["jobs"]["made_before"]), (0, 1), ran.err)
        self.assertEqual(sum(gateway.billed.values()), 1)

    def test_links_to_the_file_of_jobs_and_the_ledger_are_followed(self) -> None:
        os.mkdir("real")
        self.jobs({"prompt": "A"}, name="real/jobs.jsonl")
        os.symlink("real/jobs.jsonl", "jobs.jsonl")
        os.symlink("real/ledger", "jobs.jsonl.ledger.jsonl")
        self.dry("jobs.jsonl")
        self.assertEqual(self.batch("jobs.jsonl").code, 0)
        self.assertEqual(len(self.ledger("real/ledger")), 2)
        self.assertEqual(self.batch("jobs.jsonl").json["jobs"]["made_before"], 1)

    def test_a_torn_line_is_read_past_and_stays_apart(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"}, {"prompt": "C"})
        self.batch("jobs.jsonl", "--parallel", "1")
        whole = Path("jobs.jsonl.ledger.jsonl").read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        for size in (1, 5, last // 2, last - 1):
            with self.subTest(size):
                self.write("jobs.jsonl.ledger.jsonl", whole[: len(whole) - last + size])
                self.assertEqual(self.batch("jobs.jsonl").json["jobs"]["made_before"], 3)
                self.assertEqual(self.batch("jobs.jsonl").json["jobs"]["made_before"], 3)
        first = whole.splitlines()[0]
        for text in (first[:3], first[:-1], b""):
            with self.subTest(text):
                self.write("other.jsonl", text)
                self.assertEqual(self.batch("jobs.jsonl", "--ledger", "other.jsonl", "--output", f"o{len(text)}/").code, 0)

    def test_a_file_that_is_no_ledger_is_left_as_it_is(self) -> None:
        self.jobs({"prompt": "A"})
        self.write("notes.txt", "my notes")
        os.mkdir("folder")
        table = {"notes.txt": "ledger", "jobs.jsonl": "ledger", "folder": "disk", "no/such/folder.jsonl": "disk",
                 "/dev/full": "disk"}  # fmt: skip
        for name, rule in table.items():
            with self.subTest(name):
                before = Path(name).read_bytes() if os.path.isfile(name) else b""
                self.assertEqual(self.problems("jobs.jsonl", "--ledger", name, code=7)[0][0], rule)
                self.assertEqual(Path(name).read_bytes() if os.path.isfile(name) else b"", before)

    def test_a_second_run_on_the_same_ledger_is_stopped_and_a_stale_lock_seen_through(self) -> None:
        self.jobs({"prompt": "A"})
        with open("jobs.jsonl.ledger.jsonl", "a+b") as held:
            self.assertTrue(gpt_image.lock(held))
            self.assertEqual(self.problems("jobs.jsonl", code=7)[0][0], "ledger-locked")
            self.dry("jobs.jsonl")
        self.assertEqual(self.batch("jobs.jsonl").code, 0)

    def test_a_lock_is_that_of_the_system_where_it_has_one(self) -> None:
        class Msvcrt:
            LK_NBLCK = 2

            def locking(self, number: int, mode: int, count: int) -> None:
                if mode == self.LK_NBLCK and self.error:
                    raise OSError(self.error, "no")

            def __init__(self, error: int) -> None:
                self.error = error

        with open("ledger", "a+b", buffering=0) as file:
            for error, free in ((0, True), (errno.EACCES, False), (errno.EDEADLK, False), (errno.ENOLCK, True)):
                with self.subTest(error), unittest.mock.patch.object(sys, "platform", "win32"):
                    with unittest.mock.patch.dict(sys.modules, {"msvcrt": Msvcrt(error)}):
                        self.assertEqual(gpt_image.lock(file), free)
            gpt_image.write_all(file, b"line")
        self.assertEqual(Path("ledger").read_bytes(), b"line")  # at its end, wherever the lock is

    def test_a_ledger_that_cannot_be_written_stops_the_batch(self) -> None:
        self.jobs(*({"prompt": f"A {number}"} for number in range(9)))
        before, room = gpt_image.write_all, [4]

        def write_all(file: Any, data: bytes) -> None:
            if str(file.name).endswith(".ledger.jsonl"):
                room[0] -= 1
                if room[0] < 0:
                    before(file, data[:20])
                    raise OSError(28, "No space left on device")
            before(file, data)

        studio = Studio()
        with unittest.mock.patch.object(gpt_image, "write_all", write_all):
            ran = self.batch("jobs.jsonl", "--parallel", "1", studio=studio)
        self.assertEqual((ran.code, ran.error["rule"], sum(studio.posted.values())), (7, "disk", 2), ran.err)
        self.assertIn("No space left", ran.error["message"])
        again = Studio()
        ran = self.batch("jobs.jsonl", studio=again)
        self.assertEqual((ran.code, sum(again.posted.values())), (0, 7), ran.err)


class PaceTest(BatchTest):
    """Many at once, as many as the server and the money allow."""

    def sleep(self, seconds: float) -> None:
        """Lets other threads go on, since one that waits for them would ask again and again in no time."""
        super().sleep(seconds)
        time.sleep(0.001)

    def test_as_many_run_at_once_as_asked(self) -> None:
        self.jobs(*({"prompt": f"A {number}"} for number in range(8)))
        together = threading.Barrier(4)

        def answer() -> gpt_image.Reply:
            return painted()

        class Meeting(Studio):
            def __call__(self, *call: Any) -> Any:
                together.wait(10)  # breaks if fewer than four come
                return super().__call__(*call)

        studio = Meeting(all=answer)
        self.assertEqual(self.batch("jobs.jsonl", "--parallel", "4", studio=studio).code, 0)
        self.assertEqual(sum(studio.posted.values()), 8)

    def test_failures_that_will_meet_every_job_end_the_batch(self) -> None:
        table: Dict[str, Tuple[Callable[[], Answer], str]] = {
            "key": (lambda: refused(401), "401"),
            "money": (lambda: refused(429, "insufficient_quota"), "429"),
            "base URL": (lambda: refused(404), "404"),
            "network": (lambda: gpt_image.Fault("no such host", sent=False), "no such host"),
        }
        for name, (answer, words) in table.items():
            with self.subTest(name):
                self.jobs(*({"prompt": f"A {number}"} for number in range(12)))
                studio = Studio(all=answer)
                argv = ("--parallel", "2", "--ledger", f"{name}.jsonl", "--max-retries", "0")
                ran = self.batch("jobs.jsonl", *argv, studio=studio)
                self.assertEqual((ran.code, ran.error["rule"]), (9, "jobs-alike"))
                self.assertIn(words, ran.error["message"])
                self.assertLessEqual(len(studio.requests), 5)
                self.assertGreaterEqual(ran.json["jobs"]["not_started"], 7)

    def test_failures_of_jobs_own_do_not(self) -> None:
        self.jobs(*({"prompt": f"A {number}"} for number in range(30)))
        ran = self.batch("jobs.jsonl", studio=Studio(all=lambda: refused(400, "moderation_blocked")))
        self.assertEqual((ran.code, ran.error["rule"], ran.json["jobs"]["failed"]), (9, "jobs-left", 30))
        self.assertEqual(len(ran.json["failures"]), 20)
        self.assertTrue(all(row["message"] and row["id"] for row in ran.json["failures"]))

    def test_what_was_turned_away_is_tried_again_while_some_goes_well(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        studio = Studio(A=[refused(500), refused(500), refused(500)])
        ran = self.batch("jobs.jsonl", "--max-retries", "1", studio=studio)
        self.assertEqual((ran.code, dict(studio.posted)), (0, {"A": 4, "B": 1}), ran.err)

    def test_a_pause_that_one_is_told_holds_all(self) -> None:
        stop, now, slept = gpt_image.Stop(), [100.0], []
        console = gpt_image.Console(Terminal := __import__("io").StringIO(), Terminal, {})
        progress = gpt_image.Progress(console, "none", lambda: now[0])

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now[0] += seconds
            running.pop(len(running) - 1)

        running = {number: 0.0 for number in range(8)}
        context: Any = unittest.mock.Mock(progress=progress, sleep=sleep, stop=stop)
        pace = gpt_image.Pace(8, running, context)
        pace.hold(30)
        pace.hold(10)
        self.assertEqual((pace.limit, pace.until), (4.0, 130.0))
        pace.wait(0.5)  # told by a server fault to wait half a second
        self.assertEqual(slept[0], 30)
        pace.hold(1)
        self.assertEqual(pace.limit, 2.0)
        pace.wait(1)
        self.assertLessEqual(len(running), 2)
        for _ in range(40):
            pace.ease()
        self.assertEqual(pace.limit, 8)

    def test_a_busy_gateway_is_not_hurried(self) -> None:
        gateway = self.gateway("busy", weight=1)
        gateway.studio.room, gateway.studio.storm = 2, Storm(wait=20)
        self.jobs(*({"prompt": f"Lake {number}"} for number in range(14)))
        ran = self.run_main("batch", "jobs.jsonl", "--parallel", "6", "--max-retries", "10", gateway=gateway)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(set(gateway.billed.values()), {1})

    def test_in_a_storm_no_job_is_paid_twice_and_each_line_says_why_not(self) -> None:
        gateway = self.gateway("storm", weight=1)
        gateway.studio.storm = Storm(3, 0.2, 0.1, 0.1, 0.1, 0.1, 1)
        self.jobs(*({"id": f"j{number}", "prompt": f"Lake {number}"} for number in range(16)))
        for _ in range(2):
            ran = self.run_main("batch", "jobs.jsonl", "--parallel", "8", gateway=gateway)
        last = {row["job"]: row for row in self.ledger()}
        self.assertEqual(set(gateway.billed.values()), {1})
        self.assertEqual(ran.code, 9)
        for number in range(16):
            result, prompt = last[f"j{number}"]["result"], f"Lake {number}"
            if result["ok"]:
                self.assertEqual((gateway.billed[prompt], os.path.exists(f"jobs/j{number}.png")), (1, True))
            else:
                self.assertTrue(result["error"]["may_be_billed"])
        self.assertEqual(len(self.files("jobs")), sum(row["result"]["ok"] for row in last.values()) + sum(
            name.endswith(".reply") for name in self.files("jobs")))  # fmt: skip


class MoneyTest(BatchTest):
    """`--max-cost`."""

    EACH = ("--size", "1024x1024", "--quality", "low")

    def test_no_job_begins_that_could_pass_the_limit_and_a_higher_one_goes_on(self) -> None:
        self.jobs(*({"prompt": f"A {number}"} for number in range(9)))
        studio = Studio(all=lambda: painted(usage={"input_tokens": 0, "output_tokens": 196, "total_tokens": 196}))
        ran = self.batch("jobs.jsonl", *self.EACH, "--max-cost", "0.02", studio=studio)
        self.assertEqual((ran.code, ran.error["rule"], len(studio.requests)), (9, "max-cost", 3))
        self.assertIn("0.02", ran.error["message"])
        self.assertEqual(ran.json["jobs"]["not_started"], 6)
        self.assertLessEqual(ran.json["cost"]["usd"], 0.02)
        self.assertEqual(self.batch("jobs.jsonl", *self.EACH, "--max-cost", "0.02", studio=studio).code, 9)
        self.assertEqual(len(studio.requests), 3)
        self.assertEqual(self.batch("jobs.jsonl", *self.EACH, "--max-cost", "1", studio=studio).code, 0)
        self.assertEqual(set(studio.posted.values()), {1})

    def test_what_a_crashed_job_may_have_cost_counts(self) -> None:
        self.jobs({"id": "a", "prompt": "A"}, {"id": "b", "prompt": "B"})
        self.jobs({"job": "a", "line": 1, "fingerprint": "x", "begun": "", "usd": 5.0}, name="jobs.jsonl.ledger.jsonl")
        self.assertEqual(self.problems("jobs.jsonl", *self.EACH, "--max-cost", "5", code=9)[0][0], "max-cost")

    def test_a_single_call_is_refused_where_its_estimate_is_above(self) -> None:
        for route in ("generations", "responses"):
            with self.subTest(route):
                ran = self.run_main(route, "A", *self.EACH, "--n" if route == "generations" else "--max-retries", "1",
                                    "--tool-model" if route == "responses" else "--model", "gpt-image-2",
                                    "--max-cost", "0.001", "--dry-run")  # fmt: skip
                self.assertEqual((ran.code, ran.error["rule"]), (2, "max-cost"), ran.err)
        ran = self.run_main("generations", "A", *self.EACH, "--max-cost", "0.01", "--dry-run")
        self.assertEqual(ran.code, 0, ran.err)


class WordsTest(BatchTest):
    """What is printed while it runs."""

    def test_progress_is_told_as_everywhere(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        ran = self.batch("jobs.jsonl", "--progress", "json", "--output", "a/", "--ledger", "a.jsonl")
        told = [json.loads(line) for line in ran.err.splitlines()]
        self.assertEqual({row["phase"] for row in told}, {"batch"})
        self.assertEqual((told[0]["total"], told[0]["failed"]), (2, 0))
        plain = self.batch("jobs.jsonl", "--progress", "plain", "--output", "b/", "--ledger", "b.jsonl")
        self.assertIn("2 to run", plain.err)
        quiet = self.batch("jobs.jsonl", "--quiet", "--output", "c/", "--ledger", "c.jsonl")
        self.assertEqual((quiet.err, quiet.json["ok"]), ("", True))

    def test_a_terminal_shows_how_far_it_is(self) -> None:
        self.jobs({"prompt": "A"}, {"prompt": "B"})
        ran = self.batch("jobs.jsonl", terminal=True)
        self.assertEqual((ran.code, ran.out), (0, ""), ran.err)
        self.assertIn("jobs: total 2, made 2", ran.err)
        studio = Studio(A=[refused(400)])
        ran = self.batch("jobs.jsonl", "--output", "b/", "--ledger", "b.jsonl", studio=studio, terminal=True)
        self.assertEqual(ran.code, 9)
        self.assertIn("jobs.jsonl line 1 (1): HTTP 400: no, 400", ran.err)
        self.assertIn("jobs are left; total 2, made 1, failed 1", ran.err)


if __name__ == "__main__":
    unittest.main()
