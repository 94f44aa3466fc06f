"""Contract §5, line by line: what is known to be refused is refused before anything is sent, and all at once."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import gpt_image
from tests.support import FakeTransport, ProgramTest, Ran, at_noon
from tests.test_tables import write_inputs

GATEWAY = "--base-url https://gateway.example/v1"
EDIT = "edits x --image a.png"
M15, MINI = "--model gpt-image-1.5", "--model gpt-image-1-mini"
M25, M26 = "--model gpt-image-2.5-sunburst", "--model gpt-image-2.6-flare"
URL = "https://host.example/a.png"

# A command, and the names of the rules it breaks, in the order they are reported.
WRONG: Tuple[Tuple[str, str], ...] = (
    # prompt missing, blank, twice
    ("generations", "prompt-missing"),
    ("edits --image a.png", "prompt-missing"),
    ("responses", "prompt-missing"),
    ("generations ''", "prompt-blank"),
    ("generations ' \t'", "prompt-blank"),
    ("generations x --prompt y", "prompt-twice"),
    ("generations --prompt x --prompt-file prompt.txt", "prompt-twice"),
    ("responses x --input-text y", "prompt-twice"),
    # each enumerated value
    ("generations x --quality best", "quality-value"),
    ("generations x --quality High", "quality-value"),
    ("generations x --background clear", "background-value"),
    ("generations x --format tiff", "format-value"),
    ("generations x --moderation high", "moderation-value"),
    (f"generations x --complexity max {M26}", "complexity-value"),
    (f"{EDIT} --input-fidelity medium {M15}", "input-fidelity-value"),
    (f"{EDIT} --image-field-style dots", "image-field-style-value"),
    (f"generations x --model dall-e-3 {GATEWAY} --style dull", "style-value"),
    (f"generations x --model dall-e-3 {GATEWAY} --response-format file", "response-format-value"),
    (f"generations x --format svg --svg-model gpt-5.5 --svg-effort huge {M26}", "svg-effort-value"),
    ("generations x --protocol smtp", "protocol-value"),
    ("generations x --progress loud", "progress-value"),
    ("responses x --action draw", "action-value"),
    ("responses x --reasoning-effort huge", "reasoning-effort-value"),
    ("responses x --tool-choice maybe", "tool-choice-unreadable-value"),
    ("responses x --tool-choice '{\"type\":'", "tool-choice-unreadable-value"),
    # numbers
    ("generations x --n 0", "n-value"),
    ("generations x --n 11", "n-value"),
    ("generations x --n -1", "n-value"),
    ("generations x --n 1.5", "n-unreadable-value"),
    ("generations x --n two", "n-unreadable-value"),
    ("generations x --compression 101 --format jpeg", "compression-value"),
    ("generations x --compression -1 --format webp", "compression-value"),
    ("generations x --compression half --format webp", "compression-unreadable-value"),
    ("generations x --stream --partial-images 4", "partial-images-value"),
    ("responses x --stream --partial-images -1", "partial-images-value"),
    (f"generations x --format gif --frame-count 1 {M26}", "frame-count-value"),
    (f"generations x --format gif --frame-count 17 {M26}", "frame-count-value"),
    (f"generations x --format gif --frame-duration-ms 655360 {M26}", "frame-duration-ms-value"),
    ("generations x --timeout 0", "timeout-unreadable-value"),
    ("generations x --max-retries -1", "max-retries-value"),
    # size by model
    ("generations x --size 1024", "size-form"),
    ("generations x --size 1024*1024", "size-form"),
    ("generations x --size 0x1024", "size-form"),
    ("generations x --size 1920x1080", "size-multiple"),
    ("responses x --size 512x512", "size-pixels"),
    (f"{EDIT} --size 4096x1600 {M25}", "size-edge"),
    (f"generations x --size 3840x1264 {M26}", "size-ratio"),
    (f"generations x --size 2048x2048 {M15}", "size-fixed"),
    ("generations x --size 1024x768 --model chatgpt-image-latest", "size-fixed"),
    # quality, background, fidelity, complexity, formats by model
    ("generations x --quality xhigh", "quality-by-model"),
    ("edits x --image a.png --quality max", "quality-by-model"),
    (f"generations x --quality xhigh {M15}", "quality-by-model"),
    ("responses x --quality max --tool-model gpt-image-2", "quality-by-model"),
    ("generations x --background transparent", "background-by-model"),
    ("generations x --background transparent --model gpt-image-2-2026-04-21", "background-by-model"),
    ("generations x --background transparent --format jpeg", "background-by-model transparent-format"),
    (f"generations x --background transparent --format jpeg {M25}", "transparent-format"),
    (f"generations x --background transparent --output new.jpg {M15}", "transparent-format"),
    (f"{EDIT} --input-fidelity high", "input-fidelity-by-model"),
    (f"{EDIT} --input-fidelity low {M26}", "input-fidelity-by-model"),
    (f"{EDIT} --input-fidelity high {MINI}", "input-fidelity-by-model"),
    ("generations x --complexity low", "complexity-by-model"),
    (f"generations x --complexity low {M25}", "complexity-by-model"),
    ("generations x --response-format b64_json", "response-format-by-model"),
    (f"generations x --style vivid {M26}", "style-by-model"),
    ("generations x --format gif", "format-by-model"),
    (f"generations x --format svg --svg-model gpt-5.5 {M25}", "format-by-model svg-model-by-model"),
    (f"generations x --output new.gif {M25}", "format-by-model"),
    # compression, gif and svg with what they exclude
    ("generations x --compression 80", "compression-format"),
    ("generations x --compression 80 --output new.png", "compression-format"),
    (f"generations x --compression 80 --format gif {M26}", "compression-format"),
    (f"generations x --compression 80 --format svg --svg-model gpt-5.5 {M26}", "compression-format"),
    (f"generations x --format gif --stream {M26}", "format-refuses"),
    (f"generations x --format gif --stream --partial-images 1 {M26}", "format-refuses format-refuses"),
    (f"{EDIT} --format gif --mask mask.png {M26}", "format-refuses"),
    (f"{EDIT} --format gif --mask-box 0,0,8,8 {M26}", "format-refuses"),
    (f"responses x --input-image a.png --format gif --mask-url {URL}", "format-refuses"),
    ("responses x --input-image a.png --format gif --mask-file-id file-1", "format-refuses"),
    (f"generations x --format svg --n 2 --svg-model gpt-5.5 {M26}", "format-one"),
    (f"generations x --format svg --stream --svg-model gpt-5.5 {M26}", "format-refuses"),
    ("responses x --format svg --stream --partial-images 1 --svg-model gpt-5.5", "format-refuses"),
    (f"generations x --frame-count 4 {M26}", "format-owns"),
    (f"generations x --frame-duration-ms 100 --format webp {M26}", "format-owns"),
    (f"generations x --svg-model gpt-5.5 --format png {M26}", "format-owns"),
    ("generations x --format png --output new.webp", "format-suffix"),
    ("generations x --output new.bmp", "output-suffix"),
    # stream and previews
    ("generations x --partial-images 1", "partial-images-stream"),
    ("responses x --partial-images 3 --no-stream", "partial-images-stream"),
    ("responses x --completion-window soonest", "window-background"),
    ("responses x --completion-window 2h --continuation-id c", "window-background window-background"),
    ("responses x --continuation-id c --no-store", "window-background"),
    ("responses x --wait 20", "window-background"),
    ("responses x --no-wait", "window-background"),
    ("responses x --completion-window 2h --background-mode --stream", "window-standard"),
    ("responses x --completion-window 8h --background-mode --stream --service-tier fast",
     "window-standard window-standard"),
    ("responses x --completion-window 1h --background-mode", "completion-window-value"),
    ("responses x --service-tier cheap", "service-tier-value"),
    ("responses x --input-image a.png --input-detail full", "input-detail-value"),
    ("responses x --input-detail high", "fidelity-input"),
    ("responses x --max-tool-calls 0", "max-tool-calls-value"),
    ("responses x --max-output-tokens many", "max-output-tokens-unreadable-value"),
    ("responses x --conversation conv_1 --previous-response-id resp_1", "conversation-twice"),
    ("responses x --conversation 'a\nb'", "identifier"),
    ("generations x --stream --n 2", "stream-n"),
    (f"{EDIT} --stream --n 10", "stream-n"),
    # models
    ("generations x --model gpt-image-1", "model-retired"),
    ("generations x --model dall-e-2", "model-retired"),
    (f"{EDIT} --model dall-e-3 --base-url https://eu.api.openai.com/v1", "model-retired"),
    ("generations x --model gpt-image-2.6", "model-bare"),
    ("generations x --model ''", "model-missing"),
    ("responses x --model gpt-image-2.6-flare", "responses-model"),
    ("responses x --tool-model gpt-image-1", "model-retired"),
    # input pictures
    ("edits x", "image-missing"),
    ("edits x --image none.png", "image-unreadable"),
    ("edits x --image .", "image-unreadable"),
    ("edits x --image ''", "image-unreadable"),
    ("edits x --image empty.png", "image-empty"),
    ("edits x --image words.png", "image-unknown"),
    ("responses x --input-image cut.png", "image-truncated"),
    ("responses x --input-image huge.png", "image-size"),
    ("edits x" + " --image a.png" * 17, "image-count"),
    ("edits x --image ftp://host.example/a.png", "image-url"),
    ("responses x --input-image-url /etc/passwd", "image-url"),
    ("responses x --input-image-data-url data:text/html,hello", "image-unreadable"),
    (f"{EDIT} --image none.png --image empty.png", "image-unreadable image-empty"),
    # masks
    ("edits x --mask mask.png", "image-missing"),
    ("responses x --mask mask.png", "mask-without-image"),
    (f"{EDIT} --mask a.jpg", "mask-png"),
    (f"{EDIT} --mask b.png", "mask-alpha"),
    (f"{EDIT} --mask opaque.png", "mask-opaque"),
    ("responses x --input-image a.png --mask opaque.png", "mask-opaque"),
    (f"{EDIT} --mask small-mask.png", "mask-dimensions"),
    (f"{EDIT} --mask none.png", "image-unreadable"),
    (f"{EDIT} --mask mask.png --markup mask.png {M25}", "markup-mask"),
    (f"{EDIT} --markup mask.png", "markup-by-model"),
    (f"{EDIT} --mask-box 60,0,8,8", "mask-box"),
    (f"{EDIT} --mask-box 0,0,0,8", "mask-box"),
    (f"{EDIT} --mask-box 1,2,3", "mask-box-unreadable-value"),
    (f"edits x --image {URL} --mask auto", "mask-auto"),
    ("responses x --action edit", "action-edit"),
    # headers, ids, addresses
    ("generations x --header 'no colon'", "header-unreadable-value"),
    ("generations x --header 'X-A: b\r\nX-B: c'", "header-unreadable-value"),
    ("generations x --header 'X-A: b\0'", "header-unreadable-value"),
    ("generations x --header 'X A: b'", "header-unreadable-value"),
    ("generations x --header 'Content-Length: 5'", "header-unreadable-value"),
    ("generations x --user 'a\nb'", "identifier"),
    (f"generations x --safety-identifier {65 * 'i'}", "safety-identifier-value"),
    (f"{EDIT} --user {65 * 'i'}", "user-value"),
    (f"responses x --safety-identifier {129 * 'i'} --user {129 * 'u'}", "safety-identifier-value user-value"),
    ("generations x --organization 'org\r\nX-B: c'", "identifier"),
    ("generations x --project 'proj\x1b'", "identifier"),
    ("generations x --model 'flux\npro'", "identifier"),
    ("responses x --previous-response-id 'resp\0'", "identifier"),
    ("responses x --input-image-file-id 'file\n1'", "identifier image-url"),
    ("generations x --base-url ftp://host.example/v1", "base-url"),
    ("generations x --base-url https:///v1", "base-url"),
    ("generations x --base-url https://me:secret@host.example/v1", "base-url"),
    ("generations x --base-url http://gateway.example/v1", "base-url-http"),
    ("generations x --base-url http://8.8.8.8/v1", "base-url-http"),
    ("generations x --base-url http://0x08080808/v1", "base-url-http"),
    ("generations x --base-url 'http://[2001:4860:4860::8888]/v1'", "base-url-http"),
    # a response's own
    ("responses x --metadata-json '[1]'", "metadata-json-unreadable-value"),
    ("responses x --metadata-json '{\"a\": 1}'", "metadata"),
    # JSON that is none
    ("generations x --extra-json '{\"a\":'", "extra-json-unreadable-value"),
    ("generations x --extra-json 5", "extra-json-unreadable-value"),
    ("generations x --extra-json @none.json", "extra-json-unreadable-value"),
    # chat
    (f"generations x --protocol openai_chat {GATEWAY} --quality high", "quality-chat-carries"),
    (f"generations x --protocol openai_chat {GATEWAY} --format webp", "format-chat-carries"),
    (f"generations x --protocol openai_chat {GATEWAY} --stream --partial-images 1", "partial-images-chat-carries"),
    (f"generations x --protocol openai_chat {GATEWAY} --n 2", "chat-one"),
    (f"{EDIT} --protocol openai_chat {GATEWAY} --mask mask.png", "mask-chat-carries"),
    # what holds for every model
    ("generations x --model flux-pro --n 11", "n-value"),
    ("generations x --model flux-pro --format jpeg --compression 101", "compression-value"),
    ("generations x --model flux-pro --partial-images 2", "partial-images-stream"),
    ("generations --model flux-pro", "prompt-missing"),
)

# A command that passes, and what stands in the body, the tool or the form of its dry run.
RIGHT: Tuple[Tuple[str, Mapping[str, Any]], ...] = (
    ("generations x", {"model": "gpt-image-2", "prompt": "x"}),
    ("generations x --size 2048x1152 --quality xhigh --model gpt-image-2.6-sunburst",
     {"size": "2048x1152", "quality": "xhigh"}),
    ("generations x --size 2048x1152 --quality max --model gpt-image-2.5-flare", {"quality": "max"}),
    *((f"generations x --size {size}", {"size": size}) for size in (
        "auto", "1024x1024", "1536x1024", "1024x1536", "1024x768", "2048x2048", "2048x1152", "3840x2160", "2160x3840",
        "1536x864", "3840x1280", "1280x3840", "2880x2880", "816x816", "1408x480",
    )),
    ("generations x --size 1024X1024", {"size": "1024x1024"}),
    *((f"generations x {M15} --size {size}", {"size": size})
      for size in ("auto", "1024x1024", "1536x1024", "1024x1536")),
    *((f"generations x {model} --format {name}", {"output_format": name})
      for model in ("", M15, MINI, M25, M26) for name in ("png", "jpeg", "webp")),
    ("generations x --format jpg", {"output_format": "jpeg"}),
    # each documented value
    *((f"{command} --{name.replace('_', '-')} {value}", {name: value}) for command, name, values in (
        (f"generations x {M26}", "quality", "auto low medium high xhigh max"),
        (f"generations x {M25}", "quality", "auto low medium high xhigh max"),
        ("generations x", "quality", "auto low medium high"), (f"generations x {M15}", "quality", "auto low medium high"),
        (f"generations x {M26}", "background", "auto opaque transparent"),
        ("generations x", "background", "auto opaque"), ("generations x", "moderation", "auto low"),
        (f"generations x {M26}", "complexity", "low medium high"), (f"{EDIT} {M15}", "input_fidelity", "low high"),
        ("responses x --input-image a.png", "action", "auto generate edit"),
    ) for value in values.split()),
    *((f"generations x {M26} --format svg --svg-model gpt-5.5 --svg-effort {value}",
       {"svg": {"model": "gpt-5.5", "reasoning": {"effort": value}}})
      for value in ("none", "minimal", "low", "medium", "high", "max")),
    (f"generations x {M26} --format gif --frame-count 2 --frame-duration-ms 655350",
     {"output_format": "gif", "frame_count": 2, "frame_duration_ms": 655_350}),
    (f"generations x {M26} --format gif --frame-count 16 --n 3", {"frame_count": 16, "n": 3}),
    (f"generations x {M26} --format svg --svg-model gpt-5.5 --svg-effort xhigh",
     {"svg": {"model": "gpt-5.5", "reasoning": {"effort": "xhigh"}}}),
    (f"generations x {M26} --complexity high", {"complexity": "high"}),
    ("generations x --format webp --compression 0", {"output_compression": 0}),
    ("generations x --format jpeg --compression 100", {"output_compression": 100}),
    ("generations x --output new.jpg --compression 80", {"output_format": "jpeg", "output_compression": 80}),
    ("generations x --output new.png", {"model": "gpt-image-2"}),
    (f"generations x {M25} --background transparent", {"background": "transparent"}),
    (f"generations x {M25} --background transparent --format webp", {"background": "transparent"}),
    ("generations x --background opaque --moderation low", {"background": "opaque", "moderation": "low"}),
    ("generations x --stream --partial-images 3", {"stream": True, "partial_images": 3}),
    ("generations x --stream --partial-images 0", {"partial_images": 0}),
    ("generations x --stream --n 1", {"stream": True, "n": 1}),
    ("generations x --n 10", {"n": 10}),
    (f"generations x --safety-identifier {64 * 'i'}", {"safety_identifier": 64 * "i"}),
    (f"responses x --user {128 * 'i'}", {}),
    ("generations x --safety-identifier abc --user 'ümlaut is no control character'", {"safety_identifier": "abc"}),
    # a model the tables do not know
    ("generations x --model flux-pro --size 1000x500 --quality hd --background clear",
     {"size": "1000x500", "quality": "hd", "background": "clear"}),
    ("generations x --model flux-pro --format avif", {"output_format": "avif"}),
    ("generations x --model flux-pro --format avif --output new.avif", {"output_format": "avif"}),
    ("generations x --model flux-pro --style noir --response-format url --complexity max", {"style": "noir"}),
    (f"{EDIT} --model flux-pro --input-fidelity medium", {"input_fidelity": "medium"}),
    ("generations x --model gpt-image-3 --size 4096x4096 --quality ultra", {"size": "4096x4096", "quality": "ultra"}),
    # models OpenAI has shut down, on a gateway
    (f"generations x --model dall-e-3 {GATEWAY} --style vivid --quality hd --size 1792x1024 --response-format url",
     {"style": "vivid", "quality": "hd", "size": "1792x1024", "response_format": "url"}),
    (f"generations x --model gpt-image-1 {GATEWAY} --quality high", {"model": "gpt-image-1"}),
    (f"generations x --model gpt-image-2.5 {GATEWAY}", {"model": "gpt-image-2.5"}),
    # edits
    (EDIT, {"model": "gpt-image-2", "prompt": "x", "image[]": None}),
    ("edits x --image a.png --image a.jpg --image a.webp --mask mask.png", {"mask": None}),
    ("edits x" + " --image a.png" * 16, {"prompt": "x"}),
    (f"{EDIT} --mask auto", {"mask": "auto"}),
    (f"{EDIT} --mask-box 0,0,32,48", {"mask": None}),
    (f"{EDIT} --mask-box 50%,0%,50%,100% --mask-box 0,0,1,1", {"mask": None}),
    (f"{EDIT} --markup mask.png {M25}", {"markup": None}),
    (f"{EDIT} --input-fidelity high {M15}", {"input_fidelity": "high"}),
    (f"{EDIT} --input-fidelity low {MINI}", {"input_fidelity": "low"}),
    (f"{EDIT} --moderation low", {"moderation": "low"}),
    (f"{EDIT} --stream --partial-images 2", {"stream": "true", "partial_images": "2"}),
    (f"{EDIT} --image-field-style simple", {"image": None}),
    (f"{EDIT} --image-field-style indexed --image a.jpg", {"image[0]": None, "image[1]": None}),
    (f"edits x --image {URL}", {"images": [{"image_url": URL}]}),
    ("edits x --image file_id:file-1 --mask file_id:file-2",
     {"images": [{"file_id": "file-1"}], "mask": {"file_id": "file-2"}}),
    # responses: what is looked at is the tool
    ("responses x", {"type": "image_generation"}),
    ("responses x --quality xhigh --complexity low --size 1536x864", {"quality": "xhigh", "complexity": "low"}),
    ("responses x --input-image a.gif --action edit", {"action": "edit"}),
    ("responses x --previous-response-id resp_1 --action edit", {"action": "edit"}),
    ("responses x --input-image a.png --mask mask.png", {"type": "image_generation"}),
    ("responses x --format svg --svg-model gpt-5.5 --stream", {"output_format": "svg"}),
    ("responses x --tool-model some-relay-model --quality hd", {"model": "some-relay-model", "quality": "hd"}),
    ("responses x --model my-text-model", {"type": "image_generation"}),
    # addresses
    ("generations x --base-url http://127.0.0.1:8080/v1", {"prompt": "x"}),
    ("generations x --base-url 'http://[::1]:8080/v1'", {"prompt": "x"}),
    ("generations x --base-url http://localhost/v1", {"prompt": "x"}),
    ("generations x --base-url http://litellm:4000/v1", {"prompt": "x"}),
    ("generations x --base-url http://192.168.1.5/v1", {"prompt": "x"}),
    ("generations x --base-url http://10.0.0.2:3000/v1", {"prompt": "x"}),
    ("generations x --base-url http://gateway.example/v1 --allow-http", {"prompt": "x"}),
    ("generations x --header 'X-Note: a: b' --header 'X-Empty:'", {"prompt": "x"}),
    # chat
    (f"generations x --protocol openai_chat {GATEWAY} --model flux --stream", {"model": "flux", "stream": True}),
)  # fmt: skip

# A size that is not valid for gpt-image-2, and the nearest that is.
NEAREST = (
    ("1000x1000", "1008x1008"), ("1920x1080", "1920x1088"), ("4096x4096", "2880x2880"), ("512x512", "816x816"),
    ("1024x1000", "1024x1008"), ("1080x1920", "1088x1920"), ("1000x1500", "1008x1504"), ("7680x4320", "3840x2160"),
)  # fmt: skip
RANDOM_SIZES = 6  # the program looks through some 57 000 sizes for each


def valid_size(size: str) -> bool:
    """Tells whether a size keeps the rules of the API (facts §2.1), written anew here."""
    width, height = map(int, size.split("x"))
    return (
        width % 16 == height % 16 == 0 and max(width, height) <= min(3840, 3 * min(width, height))
        and 655_360 <= width * height <= 8_294_400
    )  # fmt: skip


class RulesTest(ProgramTest):
    """A folder with the input pictures of the tables above."""

    def setUp(self) -> None:
        super().setUp()
        write_inputs()
        Path("prompt.txt").write_text("x")

    def try_line(self, line: str, *more: str, env: Optional[Mapping[str, str]] = None) -> Ran:
        """Runs a command line with a transport that has nothing to reply, and asserts that nothing was sent."""
        transport = FakeTransport()
        ran = self.run_main(*shlex.split(line), *more, transport=transport, env=env)
        self.assertEqual(len(transport.requests), 0, line)
        return ran

    def names(self, ran: Ran) -> List[str]:
        """Returns the names of the rules a run broke."""
        self.assertEqual(ran.code, 2, ran.out + ran.err)
        return [found["rule"] for found in ran.error["problems"]]

    def assert_hints_stay(self, line: str, ran: Ran) -> None:
        """Asserts that no hint names a model that will be gone, unless the line does."""
        for found in ran.error["problems"] if M15 not in line and MINI not in line else ():
            self.assertIsNone(re.search(r"gpt-image-1|chatgpt-image|dall-e", found["hint"] or ""), found)

    def fields(self, ran: Ran) -> Dict[str, Any]:
        """Returns what a dry run shows of the picture: the body, the tool of a response, or the form by name."""
        self.assertEqual(ran.code, 0, ran.err)
        body: Dict[str, Any] = ran.json["body"] or {row["name"]: row.get("value") for row in ran.json["form"]}
        tools = body.get("tools")
        return tools[0] if tools else body


class WrongRequestsAreRefused(RulesTest):
    """Each wrong request ends with exit 2 and the names of its rules, with nothing sent."""

    def test_the_battery_is_large(self) -> None:
        self.assertGreaterEqual(len(WRONG), 60)
        self.assertEqual(len({line for line, _ in WRONG}), len(WRONG))

    def test_each_is_refused_before_anything_is_sent(self) -> None:
        for line, rules in WRONG:
            with self.subTest(line):
                ran = self.try_line(line)
                self.assertEqual(self.names(ran), rules.split())
                self.assert_hints_stay(line, ran)

    def test_each_is_refused_on_a_dry_run_in_the_same_words(self) -> None:
        for line, rules in WRONG:
            if "--size" in line:  # the nearest size takes a while, and is looked for above
                continue
            with self.subTest(line):
                ran = self.try_line(line, "--dry-run", env={"OPENAI_API_KEY": ""})
                self.assertEqual(self.names(ran), rules.split())
                self.assertEqual(ran.error["rule"], rules.split()[0])
                self.assertEqual(ran.error["message"], ran.error["problems"][0]["message"])
                for found in ran.error["problems"]:
                    self.assertIn(found["message"][:60].split("\n")[0].split("\r")[0].strip("\0\x1b"), ran.err)

    def test_prompts_are_counted_in_characters(self) -> None:
        for prompt, code in (("é" * 32_000, 0), ("é" * 32_001, 2), ("x" * 32_000, 0), ("x" * 32_001, 2)):
            with self.subTest(characters=len(prompt), bytes=len(prompt.encode())):
                self.assertEqual(self.run_main("generations", prompt, "--dry-run").code, code)

    def test_all_broken_rules_are_reported_at_once(self) -> None:
        line = (f"{EDIT} --n 11 --size 1000x1000 --quality best --background transparent --format jpeg "
                "--compression 101 --stream --partial-images 4 --mask opaque.png --input-fidelity high "
                "--style vivid --header bad --image none.png --base-url http://gateway.example/v1")  # fmt: skip
        ran = self.try_line(line)
        wanted = {
            "n-value", "size-multiple", "quality-value", "background-by-model", "transparent-format",
            "compression-value", "partial-images-value", "stream-n", "mask-opaque", "input-fidelity-by-model",
            "style-by-model", "header-unreadable-value", "image-unreadable", "base-url-http",
        }  # fmt: skip
        self.assertEqual(set(self.names(ran)), wanted)
        self.assertEqual(ran.err.count("gpt_image.py: error: "), len(wanted))

    def test_a_refusal_names_the_source_of_the_value(self) -> None:
        Path(".env").write_text("\nOPENAI_IMAGE_QUALITY=best\n")
        ran = self.try_line("generations x --n 0 --env-file .env", env={"OPENAI_IMAGE_SIZE": "5x5"})
        messages = [found["message"] for found in ran.error["problems"]]
        self.assertTrue(any(text.startswith(".env line 2: OPENAI_IMAGE_QUALITY: best") for text in messages), messages)
        self.assertTrue(any(text.startswith("environment: OPENAI_IMAGE_SIZE: 5x5") for text in messages), messages)
        self.assertTrue(any(text.startswith("--n 0: ") for text in messages), messages)

    def test_a_hint_says_what_to_do(self) -> None:
        for line, hint in (
            ("generations x --background transparent", "--no-validate"), ("generations x --quality hihg", "high"),
            ("generations x --model gpt-image-2.5", "gpt-image-2.5-sunburst"),
            ("generations x --partial-images 1", "--stream"),
            ("generations x --model dall-e-3", "gpt-image-2"), ("responses x --model gpt-image-2", "--tool-model"),
            ("edits x", "--image"), ("generations", "--prompt"), ("generations x --quality xhigh", "gpt-image-2."),
            ("generations x --base-url http://gateway.example/v1", "--allow-http"),
        ):  # fmt: skip
            with self.subTest(line):
                self.assertIn(hint, self.try_line(line).error["hint"])

    def test_what_is_only_doubtful_is_a_warning(self) -> None:
        for line, words in (
            ("generations x --size 3840x2160", "experimental"), (f"generations x {M15}", "2026-12-01"),
            (f"generations x --model dall-e-3 {GATEWAY}", "may still serve it"),
            (f"{EDIT} --mask large-mask.png", "4 MB"),
        ):  # fmt: skip
            with self.subTest(line):
                ran = self.try_line(line, "--dry-run")
                self.assertEqual(ran.code, 0, ran.err)
                self.assertEqual(len(ran.json["warnings"]), 1, ran.json["warnings"])
                self.assertIn(words, ran.json["warnings"][0])
                self.assertIn("gpt_image.py: warning: ", ran.err)
                self.assertNotIn("warning", self.try_line(line, "--dry-run", "--quiet").err)


class DaysDecide(RulesTest):
    """Whether a model is there is decided by the day of the call, and at OpenAI's own hosts only."""

    LEAVING = ("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest", "gpt-image-1.5-2025-12-16")

    def on(self, day: str, line: str) -> Ran:
        """Makes a dry run of a line on a day."""
        self.today = day
        return self.try_line(line, "--dry-run")

    def test_a_model_is_refused_from_its_day_on_and_warned_of_before(self) -> None:
        lines = [f"generations x --model {model}" for model in self.LEAVING]
        lines += [f"{EDIT} {M15}", f"{EDIT} {M15} --base-url https://eu.api.openai.com/v1"]
        lines += ["responses x --tool-model gpt-image-1-mini"]
        for line in lines:
            with self.subTest(line):
                for day in ("2026-11-20", "2026-11-30"):
                    (warning,) = self.on(day, line).json["warnings"]
                    self.assertRegex(warning, r"shuts .* down on 2026-12-01 .*move to gpt-image-2\.5")
                for day in ("2026-12-01", "2026-12-02", "2031-01-01"):
                    ran = self.on(day, line)
                    self.assertEqual(self.names(ran), ["model-retired"])
                    self.assertIn("2026-12-01", ran.error["message"])
                self.assertEqual(self.on("2026-12-02", f"{line} --no-validate").code, 0)

    def test_the_day_begins_at_midnight_utc(self) -> None:
        midnight = at_noon("2026-12-01") - 12 * 3600
        for seconds, code in ((midnight - 1, 0), (midnight, 2)):
            err = io.StringIO()
            argv = ["generations", "x", "--model", "gpt-image-1.5", "--dry-run"]
            got = gpt_image.main(argv, environ={}, stdout=io.StringIO(), stderr=err, now=itertools.repeat(seconds).__next__)
            self.assertEqual(got, code, err.getvalue())

    def test_elsewhere_no_date_is_claimed_and_nothing_is_refused(self) -> None:
        for base in ("https://gateway.example/v1", "https://me.openai.azure.com/openai/v1", "http://localhost:4000/v1"):
            for model, days in (
                ("gpt-image-1.5", {"2026-11-30": 0, "2026-12-01": 1}), ("dall-e-3", {"2026-05-11": 0, "2026-11-20": 1}),
            ):  # fmt: skip
                for day, count in days.items():
                    with self.subTest(base=base, model=model, day=day):
                        warnings = self.on(day, f"generations x --model {model} --base-url {base}").json["warnings"]
                        self.assertEqual(len(warnings), count, warnings)
                        self.assertNotRegex("".join(warnings), r"\d{4}-\d\d-\d\d")

    def test_no_hint_names_a_model_that_goes(self) -> None:
        lines = [f"{EDIT} --input-fidelity high", "responses x --input-image a.png --input-fidelity low"]
        for line in lines:
            self.assert_hints_stay(line, self.try_line(line))
        self.today = "2026-12-02"  # on the day of the other tests, all that is wrong is looked at above
        for line in (*lines, *(line for line, _ in WRONG if M15 not in line and MINI not in line)):
            self.assert_hints_stay(line, self.try_line(line))


class RightRequestsPass(RulesTest):
    """What today's models take is not refused."""

    def test_the_battery_is_large(self) -> None:
        self.assertGreaterEqual(len(RIGHT), 40)

    def test_each_passes_a_dry_run_and_goes_out_as_typed(self) -> None:
        for line, wanted in RIGHT:
            with self.subTest(line):
                found = self.fields(self.try_line(line, "--dry-run"))
                self.assertEqual({name: found.get(name, "missing") for name in wanted}, dict(wanted))

    def test_nothing_is_sent_that_was_not_set(self) -> None:
        body = self.try_line("generations x", "--dry-run").json["body"]
        self.assertEqual(set(body), {"model", "prompt"})
        form = self.try_line(EDIT, "--dry-run").json["form"]
        self.assertEqual({row["name"] for row in form}, {"image[]", "model", "prompt"})
        body = self.try_line("responses x", "--dry-run").json["body"]
        self.assertEqual(body, {"model": "gpt-5.4", "input": "x", "tools": [{"type": "image_generation"}],
                                "tool_choice": {"type": "image_generation"}})  # fmt: skip


class SizesAreHinted(RulesTest):
    """A size that is refused comes with the nearest that is not."""

    def hinted(self, size: str) -> str:
        """Returns the size in the hint to one that is refused, or nothing if it passes."""
        ran = self.try_line(f"generations x --size {size} --dry-run")
        if ran.code == 0:
            return ""
        self.assertEqual(len(self.names(ran)), 1)
        return str(re.findall(r"\b[0-9]+x[0-9]+\b", ran.error["hint"])[0])

    def test_the_nearest_size_is_named(self) -> None:
        for size, nearest in NEAREST:
            with self.subTest(size):
                self.assertEqual(self.hinted(size), nearest)

    def test_a_fixed_size_is_named_for_a_model_that_has_three(self) -> None:
        for size, nearest in (("1920x1080", "1536x1024"), ("1080x1920", "1024x1536"), ("512x512", "1024x1024")):
            ran = self.try_line(f"generations x --size {size} {M15} --dry-run")
            self.assertIn(nearest, ran.error["hint"])

    def test_what_is_refused_is_invalid_and_what_is_hinted_is_valid(self) -> None:
        chance = random.Random(2)
        for _ in range(RANDOM_SIZES):
            size = f"{chance.randint(1, 6000)}x{chance.randint(1, 6000)}"
            with self.subTest(size):
                hinted = self.hinted(size)
                self.assertEqual(hinted == "", valid_size(size))
                self.assertTrue(valid_size(hinted or size), hinted)

    def test_the_fewest_and_the_most_pixels_are_allowed(self) -> None:
        # 655,360 and 8,294,400 pixels, which no size at random hits.
        for size in ("1024x640", "640x1024", "3840x2160", "2160x3840"):
            self.assertEqual(self.hinted(size), "", size)

    def test_what_is_valid_passes(self) -> None:
        chance = random.Random(3)
        for _ in range(120):
            size = f"{16 * chance.randint(1, 250)}x{16 * chance.randint(1, 250)}"
            if valid_size(size):
                with self.subTest(size):
                    self.assertEqual(self.hinted(size), "")


class ChecksCanBeTurnedOff(RulesTest):
    """--no-validate and --extra-json send what the tables refuse; what cannot be built is refused all the same."""

    def test_no_validate_turns_refusals_into_warnings(self) -> None:
        for line, wanted in (
            ("generations x --background transparent", {"background": "transparent"}),
            ("generations x --size 1000x1000 --quality best --n 11", {"size": "1000x1000", "quality": "best", "n": 11}),
            ("generations x --stream --n 2", {"stream": True, "n": 2}),
            ("generations x --model dall-e-2", {"model": "dall-e-2"}),
            ("generations x --format tiff", {"output_format": "tiff"}), ("generations ''", {"prompt": ""}),
            (f"{EDIT} --input-fidelity high", {"input_fidelity": "high"}),
            (f"{EDIT} --mask opaque.png", {"mask": None}),
            ("edits x" + " --image a.png" * 17, {"prompt": "x"}), ("edits x --image words.png", {"prompt": "x"}),
            ("responses x --action edit", {"action": "edit"}),
        ):  # fmt: skip
            with self.subTest(line):
                ran = self.try_line(line, "--no-validate", "--dry-run")
                found = self.fields(ran)
                self.assertEqual({name: found.get(name, "missing") for name in wanted}, wanted)
                self.assertTrue(ran.json["warnings"])

    def test_no_validate_does_not_send_what_cannot_be_built(self) -> None:
        for line, rule in (
            ("generations", "prompt-missing"), ("generations x --prompt y", "prompt-twice"),
            ("edits x", "image-missing"), ("edits x --image none.png", "image-unreadable"),
            ("edits x --image empty.png", "image-empty"), ("generations x --n two", "n-unreadable-value"),
            ("generations x --header 'A: b\nC: d'", "header-unreadable-value"),
            ("generations x --user 'a\nb'", "identifier"), (f"{EDIT} --mask-box 1,2,3", "mask-box-unreadable-value"),
            ("generations x --base-url nowhere", "base-url"), (f"edits x --image {URL} --mask auto", "mask-auto"),
        ):  # fmt: skip
            with self.subTest(line):
                self.assertEqual(self.names(self.try_line(line, "--no-validate")), [rule])

    def test_no_validate_does_not_open_the_choices_that_are_our_own(self) -> None:
        for line, rule in (
            (f"{EDIT} --image-field-style dots", "image-field-style-value"),
            ("generations x --protocol openai-chat", "protocol-value"),
            ("generations x --progress loud", "progress-value"),
        ):  # fmt: skip
            with self.subTest(line):
                self.assertEqual(self.names(self.try_line(line, "--no-validate", "--dry-run")), [rule])

    def test_what_extra_json_touches_is_not_checked_and_goes_out_as_it_says(self) -> None:
        for line, extra, wanted in (
            ("generations x --size 5x5", {"size": "7x7"}, {"size": "7x7"}),
            ("generations x --n 11", {"n": 12}, {"n": 12}),
            ("generations x --quality best", {"quality": "better"}, {"quality": "better"}),
            ("generations x --quality max", {"model": "flux"}, {"model": "flux", "quality": "max"}),
            ("generations", {"prompt": "from JSON"}, {"prompt": "from JSON"}),
            ("generations x", {"seed": 7, "size": "5x5"}, {"seed": 7, "size": "5x5", "prompt": "x"}),
            ("generations x --partial-images 2", {"stream": True}, {"stream": True, "partial_images": 2}),
            (f"{EDIT} --size 5x5", {"size": "7x7", "seed": 7}, {"size": "7x7", "seed": "7"}),
            (f"{EDIT}", {"nested": {"a": [1, True]}}, {"nested[a][]": "true"}),
            ("responses x --size 5x5", {"tools": [{"type": "image_generation", "size": "7x7"}]}, {"size": "7x7"}),
        ):  # fmt: skip
            with self.subTest(line=line, extra=extra):
                found = self.fields(self.try_line(line, "--extra-json", json.dumps(extra), "--dry-run"))
                self.assertEqual({name: found.get(name, "missing") for name in wanted}, wanted)

    def test_what_extra_json_brings_counts_as_there(self) -> None:
        for line, extra in (
            ("responses x --action edit", {"conversation": "conv_1"}),
            ("responses x --action edit", {"conversation": {"id": "conv_1"}}),
            ("responses x --action edit", {"previous_response_id": "resp_1"}),
            ("responses x --action edit --mask-url https://host.example/m.png", {"conversation": "conv_1"}),
            ("responses x --completion-window 2h", {"background": True}),
            ("responses x --completion-window 2h --background-mode --service-tier flex", {"service_tier": "default"}),
            ("responses", {"prompt": {"id": "pmpt_1"}}),
        ):  # fmt: skip
            with self.subTest(line=line, extra=extra):
                self.assertEqual(self.try_line(line, "--extra-json", json.dumps(extra), "--dry-run").code, 0)

    def test_what_extra_json_does_not_touch_is_checked(self) -> None:
        ran = self.try_line("generations x --size 5x5 --n 11", "--extra-json", '{"size": "7x7"}')
        self.assertEqual(self.names(ran), ["n-value"])

    def test_no_extra_json_is_a_bug(self) -> None:
        for route in ("generations x", EDIT, "responses x"):
            for extra in (
                '{"tools": 5}', '{"tools": null}', '{"tools": ["x"]}', '{"tools": []}', '{"tools": {"a": 1}}',
                '{"n": "many"}', '{"input": 5}', '{"model": null}', '{"prompt": null}', '{"a": "\\ud800"}',
                '{"\\ud800": 1}', '{"image": 1}', '{"metadata": 1}', '{"svg": 1}', '{"reasoning": []}', '{"": ""}',
            ):  # fmt: skip
                with self.subTest(route=route, extra=extra):
                    ran = self.try_line(route, "--extra-json", extra, "--dry-run")
                    self.assertIn(ran.code, (0, 2), ran.err)

    def test_extra_json_may_come_from_a_file_with_a_byte_order_mark(self) -> None:
        Path("extra.json").write_text('\ufeff{"seed": 7}', encoding="utf-8")
        found = self.fields(self.try_line("generations x --extra-json @extra.json --dry-run"))
        self.assertEqual(found["seed"], 7)
