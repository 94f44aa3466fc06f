"""Servers of other people, each as a scenario of the stand-in: what they refuse, lose, or answer in their own way."""

from __future__ import annotations

import base64
import unittest
from pathlib import Path
from typing import Tuple

from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, reply

LITELLM = {"x-litellm-version": "1.108.7"}
PICTURE = {"b64_json": base64.b64encode(pictures.picture(b"lake", "png", 48, 32)).decode()}
M25 = "--model gpt-image-2.5-sunburst"
EDIT = "edits x --image a.png"


class DialectTest(ProgramTest):
    """A test with an input picture and a mask."""

    def setUp(self) -> None:
        super().setUp()
        Path("a.png").write_bytes(pictures.picture(b"a", "png", 64, 64))
        Path("m.png").write_bytes(pictures.picture(b"m", "png", 64, 64, True))

    def play(self, scenario: str, argv: str) -> Ran:
        """Runs a command against a scenario."""
        words = [*argv.split(), "--output", "out/", "--progress", "none"]
        return self.run_main(*words, gateway=self.gateway(scenario))


class ScenariosTest(DialectTest):
    """Each of these servers takes a plain call, and says no in words that lead on."""

    def test_what_they_take_is_saved(self) -> None:
        for scenario, argv in (
            ("sd-cpp", "generations x --stream --partial-images 1"), ("sd-cpp", f"{EDIT} --mask m.png"),
            ("sd-cpp", f"{EDIT} --image-field-style simple"),
            ("sglang", "generations x --model team"), ("sglang", "generations x --model team --n 2"),
            ("sglang", EDIT), ("sglang", "generations x --model team --response-format b64_json"),
            ("vllm-omni", "generations x --model team --response-format file"), ("vllm-omni", EDIT),
            ("vllm-omni", f"{EDIT} --stream"), ("vllm-omni", "generations x --model team"),
            ("xinference", "generations x --model team --response-format b64_json"),
            ("litellm", "generations x"), ("litellm", EDIT), ("litellm", "responses x"),
        ):  # fmt: skip
            with self.subTest(scenario, argv=argv):
                ran = self.play(scenario, argv)
                self.assertEqual((ran.code, ran.json["warnings"], ran.json["unclaimed"]), (0, [], []), ran.err)
                self.assertTrue(all(row["whole"] for row in ran.json["images"]))

    def test_what_they_refuse_has_a_hint(self) -> None:
        for scenario, argv, code, hint in (
            ("sd-cpp", f"{EDIT} --moderation low", 4, "--moderation"),
            ("sd-cpp", f"{EDIT} --image-field-style indexed", 4, ""),
            ("vllm-omni", "generations x --model team --size auto", 4, ""),
            ("vllm-omni", f"{EDIT} --moderation low", 4, "--moderation"),
            ("xinference", "generations x --model team", 5, "--response-format b64_json"),
        ):
            with self.subTest(scenario, argv=argv):
                ran = self.play(scenario, argv)
                self.assertEqual((ran.code, hint in (ran.error["hint"] or "")), (code, True), ran.err)


class LostOnTheWayTest(DialectTest):
    """What LiteLLM does not pass on is warned of, whether the call ends well or not, and nothing is refused."""

    CASES: Tuple[Tuple[str, str], ...] = (
        ("generations x", ""), ("responses x", ""), (EDIT, ""), (f"{EDIT} --image-field-style simple", ""),
        (f"{EDIT} --mask m.png", ""), (f"{EDIT} --markup m.png {M25}", "text"), (f"{EDIT} --moderation low", "form"),
        (f"{EDIT} --image-field-style indexed", "text"), ("edits x --image https://host.example/a.png", "form"),
        ("edits x --image file_id:file-1 --base-url http://127.0.0.1:9/v1?api-version=1", "form"),
    )  # fmt: skip

    def test_a_warning_says_what_is_lost(self) -> None:
        for argv, word in self.CASES:
            for headers, status in ((LITELLM, 200), (LITELLM, 400), ({}, 200), ({}, 400)):
                with self.subTest(argv, status=status, headers=headers):
                    item = {"type": "image_generation_call", "id": "ig_1", "result": PICTURE["b64_json"]}
                    good = {"id": "resp_1", "output": [item]} if argv[0] == "r" else {"data": [PICTURE]}
                    body = good if status == 200 else {"error": {"message": "litellm.BadRequestError: no"}}
                    transport = FakeTransport(reply(body, status, headers))
                    ran = self.run_main(*argv.split(), "--output", "out/", "--overwrite", transport=transport)
                    self.assertEqual(ran.code, 0 if status == 200 else 4, ran.err)
                    told = [warning for warning in ran.json["warnings"] if "LiteLLM" in warning]
                    self.assertEqual(len(told), 1 if word and headers else 0, ran.json["warnings"])
                    self.assertTrue(not told or word in told[0], told)

    def test_the_scenario_is_warned_of_too(self) -> None:
        for argv, code in ((f"{EDIT} --markup m.png {M25}", 0), (f"{EDIT} --moderation low", 4)):
            ran = self.play("litellm", argv)
            self.assertEqual((ran.code, len(ran.json["warnings"])), (code, 1), ran.err)


if __name__ == "__main__":
    unittest.main()
