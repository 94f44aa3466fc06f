"""The pages of `batch --contact-sheet`: what they show, what they link to, and what they never replace."""

from __future__ import annotations

import json
import os
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple
from unittest import mock
from urllib.parse import unquote_to_bytes

import gpt_image
from tests.pictures import picture
from tests.support import FakeTransport, ProgramTest, Ran, reply

TINY = picture("png", 16, 16)
ODD = "a #1? 100% 'x' \"y\" <b>&amp; é"


class Page(HTMLParser):
    """What a browser would find on a page: its tags with their attributes, and its text."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(Path(name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> List[Optional[str]]:
        """Returns an attribute of all tags of a name."""
        return [attrs.get(name) for found, attrs in self.tags if found == tag]
