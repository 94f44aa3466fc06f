"""What the bytes of a picture say, the rules for inputs and masks, masks made of boxes, and conversion."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import re
import stat
import struct
import sys
import unittest
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import gpt_image
from tests import pictures
from tests.support import FakeTransport, ProgramTest, Ran, reply

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
Pixels = List[List[Tuple[int, ...]]]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a PNG chunk."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def filtered(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """Returns a row with a PNG filter applied."""
    if not kind:
        return b"\0" + row
    out = bytearray([kind])
    for i, value in enumerate(row):
        left = row[i - step] if i >= step else 0
        up, corner = above[i], above[i - step] if i >= step else 0
        guess = left + up - corner
        nearest = min((left, up, corner), key=lambda near: abs(guess - near))
        out.append(value - (0, left, up, (left + up) // 2, nearest)[kind] & 255)
    return bytes(out)


def packed(row: Sequence[Tuple[int, ...]], depth: int) -> bytes:
    """Returns the samples of a row as bytes."""
    samples = [sample for pixel in row for sample in pixel]
    if depth == 16:
        return b"".join(sample.to_bytes(2, "big") for sample in samples)
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def png(
    pixels: Pixels,
    colour: int = 6,
    depth: int = 8,
    interlaced: bool = False,
    filters: Sequence[int] = (0,),
    alphas: Optional[bytes] = None,
    cuts: int = 0,
) -> bytes:
    """Returns a PNG of pixels; the filters are used in turn, the IDAT is cut into pieces of `cuts` bytes."""
    height, width = len(pixels), len(pixels[0])
    step, data, turn = max(1, CHANNELS[colour] * depth // 8), bytearray(), 0
    for x, y, step_x, step_y in ADAM7 if interlaced else ((0, 0, 1, 1),):
        above = b""
        for line in pixels[y::step_y]:
            row = packed(line[x::step_x], depth)
            if row:
                data += filtered(filters[turn % len(filters)], row, above or bytes(len(row)), step)
                above, turn = row, turn + 1
    body = zlib.compress(bytes(data))
    size = cuts or len(body)
    out = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    )
    if colour == 3:
        out += chunk(b"PLTE", bytes(range(256))[: 3 * min(2**depth, 85)].ljust(3 * 2**depth, b"\x07"))
    if alphas is not None:
        out += chunk(b"tRNS", alphas)
    return (
        out + b"".join(chunk(b"IDAT", body[at : at + size]) for at in range(0, len(body), size)) + chunk(b"IEND", b"")
    )


def canvas(width: int, height: int, colour: int, depth: int, chance: random.Random) -> Pixels:
    """Returns random pixels, all of them opaque."""
    top = 2**depth - 1
    colours = CHANNELS[colour] - (colour in (4, 6))
    opaque = (top,) if colour in (4, 6) else ()
    return [[(*(chance.randint(0, top) for _ in range(colours)), *opaque) for _ in range(width)] for _ in range(height)]


def solid(width: int, height: int, *pixel: int) -> Pixels:
    """Returns pixels of one colour."""
    return [[tuple(pixel)] * width for _ in range(height)]


def transparent_png(width: int, height: int) -> bytes:
    """Returns a good mask."""
    return png([[(0, 0, 0, 255 * (x % 2)) for x in range(width)] for _ in range(height)])


def opaque_png(width: int, height: int) -> bytes:
    """Returns a PNG with an alpha channel that is opaque everywhere."""
    return png(solid(width, height, 9, 9, 9, 255))


def header_png(width: int, height: int, depth: int = 8, colour: int = 6, data: bytes = b"") -> bytes:
    """Returns a PNG that claims a size and a kind of pixels, with data that may not be what it claims."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def rgb_png(width: int, height: int) -> bytes:
    """Returns a PNG without an alpha channel, in many colours."""
    return png([[(x % 256, y % 256, (x * y) % 256) for x in range(width)] for y in range(height)], colour=2)


def exif(orientation: int, order: str, lead: int = 0) -> bytes:
    """Returns an APP1 segment that says an orientation, behind some other tags."""
    mark, number = (b"II*\0", "<") if order == "little" else (b"MM\0*", ">")
    tags = [(0x0100 + i, 3, 1, 6) for i in range(lead)] + [(0x0112, 3, 1, orientation), (0x0131, 3, 1, 8)]
    entries = b"".join(struct.pack(number + "HHIHH", tag, kind, count, value, 0) for tag, kind, count, value in tags)
    tiff = mark + struct.pack(number + "I", 8) + struct.pack(number + "H", len(tags)) + entries + bytes(4)
    data = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data


def segment(marker: int, data: bytes) -> bytes:
    """Returns a JPEG segment."""
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def jpeg(
    width: int, height: int, *segments: bytes, frame: int = 0xC0, end: bytes = b"\xff\xd9", scan: bytes = b"\x12\x34"
) -> bytes:
    """Returns something with the segments of a JPEG."""
    head = segment(frame, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")
    return b"\xff\xd8" + b"".join(segments) + head + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + scan + end


JFIF = segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")


def riff(*chunks: bytes) -> bytes:
    """Returns a WebP of chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a WebP."""
    return kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def vp8(width: int, height: int) -> bytes:
    """Returns the start of a lossy picture."""
    return webp_chunk(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20))


def vp8l(width: int, height: int, alpha: bool) -> bytes:
    """Returns the start of a lossless picture."""
    return webp_chunk(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14 | alpha << 28) + bytes(9))


def vp8x(width: int, height: int, flags: int) -> bytes:
    """Returns the head of an extended picture."""
    return webp_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def gif(width: int, height: int, frames: int, comment: bytes = b"", local: bool = False, end: bytes = b";") -> bytes:
    """Returns a GIF of one-colour frames."""
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    if comment:
        out += (
            b"!\xfe"
            + b"".join(bytes([len(comment[i : i + 255])]) + comment[i : i + 255] for i in range(0, len(comment), 255))
            + b"\0"
        )
    for _ in range(frames):
        out += b"!\xf9\x04\0\x0a\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x81 if local else 0)
        out += bytes(12) if local else b""
        out += b"\x02\x02\x44\x01\x00"
    return out + end


def tiff(photo: int, samples: int, bits: int, kind: int, pixel: bytes, orientation: int = 1) -> bytes:
    """Returns a TIFF of 8x6 equal pixels without compression."""
    rows = ((256, 8), (257, 6), (258, bits), (259, 1), (262, photo), (273, 200), (274, orientation), (277, samples),
            (278, 6), (279, 48 * len(pixel)), (339, kind))  # fmt: skip
    tags = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in rows)
    if samples > 1:  # one number of bits for each, which stand elsewhere
        tags = tags.replace(struct.pack("<HHIHH", 258, 3, 1, bits, 0), struct.pack("<HHII", 258, 3, samples, 180))
        tags = tags.replace(struct.pack("<HHIHH", 339, 3, 1, kind, 0), struct.pack("<HHII", 339, 3, samples, 188))
    head = (b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + tags + bytes(4)).ljust(180, b"\0")
    return head + struct.pack("<4H", *[bits] * 4) + struct.pack("<4H", *[kind] * 4) + bytes(4) + pixel * 48


class LookTest(ProgramTest):
    """`look` tells format, size, alpha, animation, orientation and completeness by the bytes."""

    def look(self, data: bytes) -> Any:
        """Looks at bytes."""
        Path("x").write_bytes(data)
        return gpt_image.identify("x")

    def assert_looks(self, data: bytes, format: str, width: int, height: int, **more: Any) -> None:
        """Asserts what bytes look like; what is not said is False, and `whole` is True."""
        found = self.look(data)
        self.assertIsNotNone(found)
        expected = {"alpha": False, "animated": False, "whole": True, "turned": False, **more}
        self.assertEqual((found.format, found.width, found.height), (format, width, height))
        self.assertEqual({name: getattr(found, name) for name in expected}, expected)

    def test_png_of_every_colour_type_and_depth(self) -> None:
        chance = random.Random(1)
        for colour, depths in DEPTHS.items():
            for depth in depths:
                for interlaced in (False, True):
                    with self.subTest(colour=colour, depth=depth, interlaced=interlaced):
                        data = png(canvas(5, 3, colour, depth, chance), colour, depth, interlaced)
                        self.assert_looks(data, "png", 5, 3, alpha=colour in (4, 6))
        self.assert_looks(png(solid(5, 3, 1), 3, 1, alphas=b"\0\xff"), "png", 5, 3, alpha=True)
        self.assert_looks(png(solid(5, 3, 1, 1, 1), 2, 8, alphas=bytes(6)), "png", 5, 3, alpha=True)

    def test_png_with_other_chunks(self) -> None:
        plain = rgb_png(7, 9)
        text = chunk(b"tEXt", b"Comment\0IEND tRNS acTL" + bytes(3000))
        self.assert_looks(plain[:33] + text + plain[33:], "png", 7, 9)
        self.assert_looks(plain + b"trailing bytes", "png", 7, 9)
        self.assert_looks(plain[:33] + chunk(b"acTL", bytes(8)) + plain[33:], "png", 7, 9)

    def test_jpeg_of_every_orientation_and_byte_order(self) -> None:
        for order in ("little", "big"):
            for orientation in range(0, 10):
                for lead in (0, 3):
                    with self.subTest(order, orientation=orientation, lead=lead):
                        data = jpeg(40, 30, JFIF, exif(orientation, order, lead))
                        self.assert_looks(data, "jpeg", 40, 30, turned=orientation in (5, 6, 7, 8))
                        shown = (30, 40) if orientation in (5, 6, 7, 8) else (40, 30)
                        self.assertEqual(self.look(data).shown, shown)

    def test_the_first_orientation_counts_and_not_that_of_the_thumbnail(self) -> None:
        first, second = exif(1, "big"), exif(6, "big")
        self.assertFalse(self.look(jpeg(40, 30, segment(0xE1, first[4:] + second[14:]))).turned)
        self.assertFalse(self.look(jpeg(40, 30, first, second)).turned)
        self.assertTrue(self.look(jpeg(40, 30, second, first)).turned)

    def test_jpeg_of_every_frame_kind(self) -> None:
        for frame in (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCF):
            self.assert_looks(jpeg(40, 30, JFIF, frame=frame), "jpeg", 40, 30)

    def test_jpeg_with_large_and_odd_segments(self) -> None:
        thumbnail = segment(0xE1, b"Exif\0\0MM\0*" + jpeg(4, 3) * 20)
        for name, segments in (
            ("huge", [segment(0xE2, b"ICC_PROFILE\0" + bytes(65000))] * 9),
            ("comment", [segment(0xFE, b"\xff\xc0\xff\xd9" * 9)]),
            ("tables",
             [segment(0xDB, bytes(65)), segment(0xC4, bytes(28)), segment(0xC8, bytes(9)), segment(0xCC, bytes(2))]),
            ("fill bytes", [JFIF, b"\xff\xff\xff" + segment(0xFE, b"x")[1:]]), ("thumbnail", [thumbnail]),
            ("xmp before exif", [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")]),
            ("restart", [segment(0xDD, b"\0\x04")]),
        ):  # fmt: skip
            with self.subTest(name):
                self.assert_looks(jpeg(640, 480, *segments), "jpeg", 640, 480)
        self.assert_looks(
            jpeg(9, 9, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"), exif(6, "big")), "jpeg", 9, 9, turned=True
        )

    def test_jpeg_with_broken_exif_is_no_trouble(self) -> None:
        for data in (b"", b"MM", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08", b"MM\0*\0\0\0\x08\xff\xff"):
            with self.subTest(data):
                self.assertEqual(self.look(jpeg(40, 30, segment(0xE1, b"Exif\0\0" + data))).shown, (40, 30))

    def test_webp_of_every_kind(self) -> None:
        for width, height in ((1, 1), (16, 9), (16383, 16383), (300, 4000)):
            self.assert_looks(riff(vp8(width, height)), "webp", width, height)
            self.assert_looks(riff(vp8l(width, height, False)), "webp", width, height)
            self.assert_looks(riff(vp8l(width, height, True)), "webp", width, height)
            for flags in (0, 0x10, 0x02, 0x12, 0x2C):
                self.assert_looks(riff(vp8x(width, height, flags), vp8(width, height)), "webp", width, height)

    def test_webp_scale_bits_are_no_part_of_the_size(self) -> None:
        self.assert_looks(riff(vp8(40 | 1 << 14, 30 | 3 << 14)), "webp", 40, 30)

    def test_gif_still_and_animated(self) -> None:
        for frames, animated in ((1, False), (2, True), (3, True)):
            for local in (False, True):
                for comment in (b"", b", ; ! not a frame, just words " * 40):
                    with self.subTest(frames=frames, local=local, comment=bool(comment)):
                        self.assert_looks(gif(20, 10, frames, comment, local), "gif", 20, 10, animated=animated)
        self.assert_looks(gif(20, 10, 1).replace(b"GIF89a", b"GIF87a"), "gif", 20, 10)

    def test_svg_by_its_root_element(self) -> None:
        for head in (
            '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20">', "<svg>", "\ufeff\n <svg\n>",
            '<?xml version="1.0"?>\n<!-- by me -->\n<svg viewBox="0 0 30 20">', f"<!--{'x' * 9000}--><svg>",
            '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x.dtd"><svg width="30.4" height="19.6">',
        ):  # fmt: skip
            with self.subTest(head):
                self.assert_looks((head + "<g/></svg>\n").encode(), "svg", 0, 0)
        self.assertFalse(self.look(b'<svg width="3" height="2"><g>').whole)

    def test_what_is_cut_short_is_told(self) -> None:
        for name, data in (
            ("png", rgb_png(20, 20)), ("jpeg", jpeg(40, 30, JFIF, scan=bytes(9000))), ("webp", riff(vp8(40, 30))),
            ("webp", riff(vp8x(40, 30, 0x10), vp8(40, 30))), ("gif", gif(40, 30, 2)),
            ("gif", gif(40, 30, 1, b"x" * 600)),
            ("svg", b'<svg width="3" height="2"><rect/></svg>'),
            ("jpeg", jpeg(40, 30, segment(0xE1, b"Exif\0\0MM\0*" + jpeg(4, 3)), scan=bytes(600))), ("bmp", BMP),
            ("avif", ISO % b"avif"), ("heic", ISO % b"heic"),
        ):  # fmt: skip
            self.assertTrue(self.look(data).whole, name)
            for end in (len(data) - 2, len(data) - 8, len(data) // 2, len(data) // 3):
                with self.subTest(name, end=end, of=len(data)):
                    found = self.look(data[:end])
                    self.assertTrue(found is None or not found.whole and found.format == name, found)

    def test_the_start_of_anything_is_looked_at_without_a_bug(self) -> None:
        for data in (
            rgb_png(9, 9),
            jpeg(40, 30, exif(6, "big")),
            riff(vp8x(40, 30, 16)),
            riff(vp8l(4, 3, True)),
            gif(9, 9, 2),
            b"<svg/></svg>",
        ):
            for end in range(min(len(data), 120)):
                found = self.look(data[:end])
                self.assertTrue(found is None or not found.whole or end >= 12, (end, found))

    def test_what_is_behind_the_end_of_a_jpeg_does_not_matter(self) -> None:
        chance, plain = random.Random(7), jpeg(40, 30, JFIF, scan=bytes(9000))
        film = b"\0\0\0\x18ftypmp42" + chance.randbytes(200_000).replace(b"\xff", b"")
        for name, tail in (("padding", bytes(9000)), ("film", film), ("another picture", plain), ("one byte", b"\n")):
            with self.subTest(name):
                self.assert_looks(plain + tail, "jpeg", 40, 30)
                self.assertFalse(self.look(plain[:-2] + tail.replace(b"\xff\xd9", b"")).whole)
        # The end marker stands on the edge of the blocks that are read.
        for more in range(-3, 4):
            scan = bytes(gpt_image.BLOCK - len(jpeg(40, 30, JFIF, scan=b"")) + more)
            self.assert_looks(jpeg(40, 30, JFIF, scan=scan) + bytes(5000), "jpeg", 40, 30)

    def test_a_file_of_very_many_parts_is_damaged_and_soon_told(self) -> None:
        head = gif(40, 30, 1)[:-5]
        for name, start, part, end in (
            ("png chunks", rgb_png(4, 3)[:33], chunk(b"teXt", b""), rgb_png(4, 3)[33:]),
            ("jpeg segments", b"\xff\xd8", segment(0xFE, b""), jpeg(4, 3)[2:]),
            ("jpeg fill bytes", b"\xff\xd8", b"\xff" * 4, jpeg(4, 3)[2:]),
            ("gif data", head, b"\1\0", b"\0;"), ("gif extensions", gif(4, 3, 0, end=b""), b"!\xfe\0", gif(4, 3, 1)[19:]),
            ("avif boxes", (ISO % b"avif")[:24], b"\0\0\0\x08free", (ISO % b"avif")[24:]),
        ):  # fmt: skip
            with self.subTest(name), mock.patch.object(gpt_image.PictureFile, "left", 1500):
                self.assertTrue(self.look(start + part * 200 + end).whole)
                self.assertFalse(self.look(start + part * 2000 + end).whole)

    def test_large_pictures_of_parts_as_large_as_encoders_make_them_are_whole(self) -> None:
        chunks = 200 * (1 << 20) // 8192
        self.assertLess(chunks * 4, gpt_image.MOST_READS)
        Path("x").write_bytes(rgb_png(4, 3)[:33])
        with open("x", "r+b") as file:
            for at in range(2000):
                file.seek(33 + 8204 * at)
                file.write((8192).to_bytes(4, "big") + b"IDAT")
            file.seek(33 + 8204 * 2000)
            file.write(chunk(b"IEND", b""))
        self.assertTrue(gpt_image.identify("x").whole)  # type: ignore[union-attr]

    def test_random_damage_is_looked_at_without_a_bug(self) -> None:
        chance = random.Random(3)
        originals = (transparent_png(9, 9), jpeg(40, 30, exif(6, "big")), riff(vp8x(40, 30, 16), vp8(40, 30)),
                     gif(9, 9, 2),
                     png(solid(9, 9, 1), 3, 4, alphas=b"\0\1"), b'<svg width="3" height="2"></svg>')  # fmt: skip
        for turn in range(400):
            data = bytearray(chance.choice(originals))
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with self.subTest(turn=turn, data=data.hex()):
                found = self.look(bytes(data))
                if found and found.format == "png":
                    self.assertIn(gpt_image.png_fault("x"), ("", "opaque", "damaged"))

    def test_what_is_no_picture_is_none(self) -> None:
        for data in (b"", b"\0", b"text", b"<html><svg></svg></html>", b"{}", b"%PDF-1.7", b"PK\3\4", b"\x89PNG",
                     b"\xff\xd8", b"GIF8", b"RIFF\0\0\0\0WAVE",
                     b"BM is a word", bytes(5000), b"\xff" * 5000, b"#!/bin/sh",
                     b"<?xml version='1.0'?><rss/>"):  # fmt: skip
            with self.subTest(data[:12]):
                self.assertIsNone(self.look(data))

    def test_other_formats_are_known_by_name(self) -> None:
        for name, data in OTHERS.items():
            with self.subTest(name):
                self.assertEqual(self.look(data).format, name)

    def test_whether_it_is_whole_is_not_known_of_every_format(self) -> None:
        for data in (OTHERS["tiff"], b"\0\0\1\0" + bytes(40), b"\xff\x0a" + bytes(40)):
            with self.subTest(data[:4]):
                self.assertIsNone(self.look(data).whole)

    def test_the_gateways_pictures_are_what_they_were_painted_as(self) -> None:
        for format in ("png", "jpeg", "webp"):
            self.assert_looks(pictures.picture(b"x", format, 32, 16), format, 32, 16)
        self.assert_looks(pictures.picture(b"x", "svg", 32, 16), "svg", 0, 0)
        self.assert_looks(pictures.picture(b"x", "gif", 32, 16, frames=3), "gif", 32, 16, animated=True)

    def test_a_file_that_cannot_be_read_is_an_os_error(self) -> None:
        for path in ("missing", "."):
            with self.assertRaises(OSError):
                gpt_image.identify(path)


BMP = (
    b"BM"
    + struct.pack("<IHHI", 70, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 24, 0, 16, 2835, 2835, 0, 0)
    + bytes(16)
)
ISO = b"\0\0\0\x18ftyp%s\0\0\0\0mif1miaf\0\0\0\x0cmeta1234\0\0\0\x40mdat" + bytes(56)
OTHERS = {
    "bmp": BMP, "tiff": b"II*\0\x08\0\0\0" + bytes(40), "heic": b"\0\0\0\x18ftypheic" + bytes(40),
    "avif": b"\0\0\0\x18ftypavif" + bytes(40),
}  # fmt: skip


class SignaturesInBase64(unittest.TestCase):
    """A picture is recognised by how its base64 begins, which says the same as its bytes."""

    HEADS = {
        "png": [b"\x89PNG\r\n\x1a\n"], "jpeg": [b"\xff\xd8\xff"], "webp": [b"RIFF####WEBP"], "gif": [b"GIF87a", b"GIF89a"],
        "svg": [start + space + b"<" + tag for start in (b"", b"\xef\xbb\xbf")
                for space in (b"", b"\n", b"\r\n", b" \t\n", b"\v \f\n", b" " * 50, b"\n" * 99)
                for tag in (b"svg", b"?xml", b"!--", b"!DOCTYPE svg")],
        "avif": [b"####ftypavif", b"####ftypavis"],
        "heic": [b"####ftyp" + brand for brand in
                 (b"heic", b"heif", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")],
        "bmp": [b"BM####\0\0\0\0"], "tiff": [b"II*\0", b"MM\0*"],
        "jxl": [b"\0\0\0\x0cJXL \r\n\x87\n"],
    }  # fmt: skip
    ESCAPES = (("/", "/"), ("/", "\\/"), ("/", "\\u002f"), ("/", "\\u002F"), ("+", "\\u002b"), ("+", "\\u002B"))

    @staticmethod
    def pattern_of(row: gpt_image.Signature) -> re.Pattern[bytes]:
        """Returns the pattern of one row, as it is searched for in JSON."""
        with mock.patch.object(gpt_image, "SIGNATURES", (row,)):
            return re.compile(gpt_image.base64_heads())

    def files(self, name: str, chance: random.Random) -> Iterator[bytes]:
        """Yields beginnings of files of a format, `#` and what follows at random."""
        for head in self.HEADS[name] * 12:
            start = bytes(chance.randrange(256) if byte == 0x23 else byte for byte in head)
            yield start + bytes(chance.randrange(256) for _ in range(30))

    def test_the_base64_of_each_file_is_known_in_any_spelling_of_json(self) -> None:
        chance = random.Random(11)
        rows = [row for row in gpt_image.SIGNATURES if row.base64]  # one is too short to be told from other base64
        self.assertEqual(sorted(self.HEADS), sorted(row.format for row in rows))
        for row in rows:
            pattern = self.pattern_of(row)
            for data in self.files(row.format, chance):
                self.assertRegex(data, re.compile(row.pattern, re.DOTALL))
                for plain, escaped in self.ESCAPES:
                    text = base64.b64encode(data).decode().replace(plain, escaped)
                    with self.subTest(row.format, text=text):
                        self.assertRegex(text.encode(), pattern)
                        self.assertTrue(gpt_image.beginning().match(b'"' + text.encode() + 50 * b"AAAA"))

    def test_what_begins_otherwise_is_not_known(self) -> None:
        chance = random.Random(12)
        for row in gpt_image.SIGNATURES:
            if row.format in ("svg", "ico", "jxl"):  # other bytes pass for the first; two are not known by every base64
                continue
            pattern = self.pattern_of(row)
            for data in self.files(row.format, chance):
                head = bytearray(data)
                place = chance.randrange(2)
                head[place] ^= 1 << chance.randrange(8)
                known = re.match(row.pattern, bytes(head), re.DOTALL)
                text = base64.b64encode(bytes(head))
                with self.subTest(row.format, text=text):
                    self.assertTrue(pattern.match(text) if known else not pattern.match(text))


class OpaqueTest(ProgramTest):
    """`png_fault` reads the alpha of every pixel, with every filter and depth."""

    def opaque(self, *args: Any, **more: Any) -> bool:
        """Tells whether a PNG is opaque."""
        Path("x.png").write_bytes(png(*args, **more))
        return gpt_image.png_fault("x.png") == "opaque"

    def spots(self, width: int, height: int, chance: random.Random) -> Iterator[Tuple[int, int]]:
        """Yields the corners and some other place."""
        yield from {
            (0, 0),
            (width - 1, 0),
            (0, height - 1),
            (width - 1, height - 1),
            (chance.randrange(width), chance.randrange(height)),
        }

    def test_one_pixel_of_a_picture_with_alpha_is_found_wherever_it_is(self) -> None:
        chance = random.Random(5)
        for colour in (4, 6):
            for depth in (8, 16):
                top = 2**depth - 1
                for filters in ((0,), (1,), (2,), (3,), (4,), (0, 1, 2, 3, 4), (4, 2, 3, 1)):
                    pixels = canvas(7, 6, colour, depth, chance)
                    with self.subTest(colour=colour, depth=depth, filters=filters):
                        self.assertTrue(self.opaque(pixels, colour, depth, False, filters))
                        for x, y in self.spots(7, 6, chance):
                            kept = pixels[y][x]
                            pixels[y][x] = (*kept[:-1], chance.choice((0, top - 1, chance.randrange(top))))
                            self.assertFalse(self.opaque(pixels, colour, depth, False, filters), (x, y, pixels[y][x]))
                            pixels[y][x] = kept

    def test_sixteen_bits_are_both_looked_at(self) -> None:
        for colour, pixel in ((4, (7,)), (6, (7, 8, 9))):
            for alpha in (0xFF00, 0x00FF, 0xFFFE, 0xFEFF, 0x7FFF):
                for filters in ((0,), (1,), (2,), (3,), (4,)):
                    pixels = solid(3, 3, *pixel, 0xFFFF)
                    pixels[2][2] = (*pixel, alpha)
                    self.assertFalse(self.opaque(pixels, colour, 16, False, filters), (colour, hex(alpha), filters))

    def test_tiny_pictures_of_every_size(self) -> None:
        chance = random.Random(6)
        for width in range(1, 10):
            for height in range(1, 10):
                pixels = canvas(width, height, 4, 8, chance)
                filters = [chance.randrange(5) for _ in range(7)]
                self.assertTrue(self.opaque(pixels, 4, 8, False, filters), (width, height))
                y, x = chance.randrange(height), chance.randrange(width)
                pixels[y][x] = (pixels[y][x][0], chance.randrange(255))
                self.assertFalse(self.opaque(pixels, 4, 8, False, filters), (width, height, x, y))

    def test_palettes_and_interlaced_rows_are_not_looked_into(self) -> None:
        self.assertFalse(self.opaque(solid(3, 3, 0), 3, 2, alphas=b"\xff\x00"))
        self.assertFalse(self.opaque(solid(3, 3, 7, 255), 4, 8, True))

    def test_what_claims_to_be_absurdly_large_is_not_inflated(self) -> None:
        for width, height in ((1 << 31, 1), (1, 1 << 31), (12_001, 1)):
            head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
            body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
            Path("x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
            with mock.patch.object(gpt_image, "png_rows", side_effect=AssertionError("inflated")):
                self.assertEqual(gpt_image.png_fault("x.png"), "")

    def test_pixels_are_looked_at_for_a_moment_only(self) -> None:
        with mock.patch.object(gpt_image, "LOOK_SECONDS", -1):
            self.assertFalse(self.opaque(solid(9, 9, 7, 255), 4))
        self.assertTrue(self.opaque(solid(9, 9, 7, 255), 4))

    def test_data_in_many_small_chunks_is_read_to_its_end(self) -> None:
        pixels = canvas(20, 20, 6, 8, random.Random(8))
        pixels[19][19] = (1, 2, 3, 254)
        for cuts in (1, 2, 7, 100):
            self.assertFalse(self.opaque(pixels, 6, 8, False, (4,), None, cuts))
            self.assertTrue(self.opaque(pixels[:19], 6, 8, False, (4,), None, cuts))

    def test_damage_is_told_wherever_it_is(self) -> None:
        clear, good = solid(9, 9, 1, 2, 3, 0), zlib.compress(b"\0" * 37 * 9)
        for name, body in (
            ("no data", b""), ("no zlib data", b"hello"), ("a changed byte", good[:3] + b"\x55" + good[4:]),
            ("a wrong sum", good[:-1] + b"\0"), ("a row too few", zlib.compress(b"\0" * 37 * 8)),
            ("an unknown filter", zlib.compress(b"\0" * 37 * 8 + b"\5" + bytes(36))),
        ):  # fmt: skip
            with self.subTest(name):
                Path("x.png").write_bytes(png(clear)[:33] + chunk(b"IDAT", body) + chunk(b"IEND", b""))
                self.assertEqual(gpt_image.png_fault("x.png"), "damaged")
        Path("x.png").write_bytes(png(clear)[:33] + chunk(b"IDAT", good) + chunk(b"IEND", b""))
        self.assertEqual(gpt_image.png_fault("x.png"), "")

    def test_the_last_pixel_of_a_large_picture(self) -> None:
        for width, height in ((2048, 1024), (3840, 273), (4, 12_000)):
            row = b"\0" + b"\x05\xff" * width
            for alpha, opaque in ((255, True), (254, False)):
                rows = row * (height - 1) + row[:-1] + bytes([alpha])
                for level in (1, 9):
                    head = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
                    Path("x.png").write_bytes(
                        b"\x89PNG\r\n\x1a\n"
                        + chunk(b"IHDR", head)
                        + chunk(b"IDAT", zlib.compress(rows, level))
                        + chunk(b"IEND", b"")
                    )
                    fault = gpt_image.png_fault("x.png")
                    self.assertEqual(fault, "opaque" if opaque else "", (width, height, alpha, level))


class MaskPngTest(unittest.TestCase):
    """`mask_png` is transparent exactly within the boxes."""

    def test_the_mask_is_transparent_exactly_within_its_boxes(self) -> None:
        chance = random.Random(9)
        for width, height, boxes in (
            (1, 1, [(0, 0, 1, 1)]), (5, 4, [(0, 0, 5, 4)]), (5, 4, [(4, 3, 1, 1)]),
            (9, 9, [(0, 0, 3, 3), (6, 6, 3, 3)]),
            (9, 9, [(2, 2, 5, 5), (0, 4, 9, 1), (4, 0, 1, 9)]), (40, 30, [(3, 3, 9, 9), (5, 5, 20, 20), (3, 3, 9, 9)]),
            *((50, 40, [(x, y, chance.randint(1, 50 - x), chance.randint(1, 40 - y)) for x, y in
                        ((chance.randrange(50), chance.randrange(40)) for _ in range(4))]) for _ in range(5)),
        ):  # fmt: skip
            with self.subTest(size=(width, height), boxes=boxes):
                self.assertEqual(clear_pixels(gpt_image.mask_png(width, height, [(x, y, x + w, y + h) for x, y, w, h in boxes])), inside(width, height, boxes))


def inside(width: int, height: int, boxes: Sequence[Tuple[int, int, int, int]]) -> List[Tuple[int, int]]:
    """Returns the pixels within boxes."""
    return [(x, y) for y in range(height) for x in range(width)
            if any(left <= x < left + w and top <= y < top + h for left, top, w, h in boxes)]  # fmt: skip


def clear_pixels(data: bytes) -> List[Tuple[int, int]]:
    """Returns the wholly transparent pixels of a mask, all others of which must be opaque; it has no filters."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0) and colour in (4, 6), (depth, colour, interlaced)
    at, body = 33, b""
    while data[at + 4 : at + 8] != b"IEND":
        size = int.from_bytes(data[at : at + 4], "big")
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        body += data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + size
    rows, step = zlib.decompress(body), CHANNELS[colour]
    assert len(rows) == height * (1 + width * step)
    found = []
    for y in range(height):
        row = rows[y * (1 + width * step) : (y + 1) * (1 + width * step)]
        assert row[0] == 0, "a filter"
        for x, alpha in enumerate(row[step::step]):
            assert alpha in (0, 255)
            found += [(x, y)] if alpha == 0 else []
    return found


class Case(NamedTuple):
    """Files of a call, and the rules it breaks (or the warnings it gets)."""

    name: str
    image: Tuple[str, bytes]
    mask: Optional[Tuple[str, bytes]]
    rules: Tuple[str, ...] = ()
    warns: str = ""


class InputTest(ProgramTest):
    """A test that makes dry runs with input files."""

    def write(self, name: str, data: bytes) -> str:
        """Writes a file and returns its name."""
        Path(name).write_bytes(data)
        return name

    def padded(self, name: str, data: bytes, size: int) -> None:
        """Writes a PNG of a size, with a chunk of nothing that takes no room on most disks."""
        with open(name, "wb") as file:
            file.write(data[:33] + (size - len(data) - 12).to_bytes(4, "big") + b"noIZ")
            file.seek(size - (len(data) - 33))
            file.write(data[33:])
        self.assertEqual(os.path.getsize(name), size)

    def edit(self, *argv: str, route: str = "edits") -> Ran:
        """Makes a dry run."""
        return self.run_main(route, "x", *argv, "--output", "out/o.png", "--dry-run")

    def rules(self, ran: Ran) -> List[str]:
        """Returns the names of the broken rules."""
        return [row["rule"] for row in ran.error["problems"]] if ran.code else []

    def assert_broken(self, ran: Ran, *rules: str, warns: str = "") -> None:
        """Asserts which rules a call breaks, and that nothing is said about others."""
        self.assertEqual((sorted(self.rules(ran)), ran.code), (sorted(rules), 2 if rules else 0), ran.err)
        if warns:
            self.assertIn(warns, " ".join(ran.json["warnings"]))


class ImageRulesTest(InputTest):
    """The rules for input pictures."""

    GOOD = {
        "png": rgb_png(8, 8), "jpeg": jpeg(8, 8, JFIF), "webp": riff(vp8(8, 8)),
        "webp lossless": riff(vp8l(8, 8, True)),
        "webp extended": riff(vp8x(8, 8, 0), vp8(8, 8)), "png with alpha": transparent_png(8, 8),
        "turned jpeg": jpeg(8, 8, exif(6, "little")),
    }  # fmt: skip

    def both(self, data: bytes, name: str = "in") -> Iterator[Tuple[str, Ran]]:
        """Yields a dry run of an edit and of a response with a file."""
        self.write(name, data)
        yield "edits", self.edit("--image", name)
        yield "responses", self.edit("--input-image", name, route="responses")

    def setUp(self) -> None:
        super().setUp()
        # No program of this machine shall convert anything, nor Pillow.
        none = mock.patch.object(gpt_image, "CONVERTERS", gpt_image.CONVERTERS[:-1])
        for patch in (mock.patch.dict(os.environ, {"PATH": ""}), none):
            patch.start()
            self.addCleanup(patch.stop)

    def test_good_pictures_pass(self) -> None:
        for name, data in self.GOOD.items():
            for route, ran in self.both(data):
                with self.subTest(name, route=route):
                    self.assert_broken(ran)
                    self.assertEqual(ran.json["warnings"], [])

    def test_bad_files_are_refused(self) -> None:
        for name, data, rule in (
            ("empty", b"", "image-empty"), ("text", b"hello", "image-unknown"),
            ("html", b"<html></html>", "image-unknown"),
            ("cut png", rgb_png(8, 8)[:-9], "image-truncated"), ("cut jpeg", jpeg(8, 8, end=b""), "image-truncated"),
            ("cut webp", riff(vp8(8, 8))[:-5], "image-truncated"), ("bmp", BMP, "image-type"),
            ("heic", OTHERS["heic"], "image-type"),
            ("tiff", OTHERS["tiff"], "image-type"), ("avif", OTHERS["avif"], "image-type"),
            ("animated gif", gif(8, 8, 2), "image-type"),
            ("svg", b'<svg width="3" height="2"></svg>', "image-type"),
        ):  # fmt: skip
            for route, ran in self.both(data):
                with self.subTest(name, route=route):
                    self.assert_broken(ran, rule)

    def test_a_still_gif_is_for_responses_only(self) -> None:
        runs = dict(self.both(gif(8, 8, 1)))
        self.assert_broken(runs["edits"], "image-type")
        self.assert_broken(runs["responses"])
        self.assertIn("data:image/gif;base64,", json.dumps(runs["responses"].json["body"]))

    def test_paths_that_cannot_be_read(self) -> None:
        Path("folder").mkdir()
        for path in ("missing.png", "folder", "", "no/such/folder.png", "bad\0name.png"):
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(path, route=route):
                    self.assert_broken(self.edit(option, path, route=route), "image-unreadable")

    def test_a_device_is_no_picture_and_does_not_hang(self) -> None:
        if not os.path.exists("/dev/zero"):
            self.skipTest("no devices here")
        self.assert_broken(self.edit("--image", "/dev/zero"), "image-unreadable")

    def test_the_true_type_is_sent_whatever_the_suffix(self) -> None:
        self.write("in.png", self.GOOD["jpeg"])
        ran = self.edit("--image", "in.png")
        self.assert_broken(ran)
        self.assertEqual(ran.json["form"][-1]["content_type"], "image/jpeg")

    def test_fifty_megabytes_are_too_much(self) -> None:
        for size, rules in ((50 << 20, ["image-size"]), ((50 << 20) - 1, [])):
            self.padded("in.png", rgb_png(8, 8), size)
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(size, route=route):
                    self.assert_broken(self.edit(option, "in.png", route=route), *rules)

    def test_what_is_too_large_is_not_read_to_its_end(self) -> None:
        for kind, start, *rules in (
            ("image/jpeg", b"\xff\xd8\xff", "image-size"), ("image/gif", gif(8, 6, 1)[:-5], "image-type"),
            ("image/png", rgb_png(8, 8)[:33], "image-size"),
            ("application/octet-stream", b"hello", "image-unknown"),
        ):  # fmt: skip
            with open("in", "wb") as file:
                file.write(start)
                file.truncate(51 << 20)
            with self.subTest(kind):
                self.assert_broken(self.edit("--image", "in"), *rules)
                ran = self.edit("--image", "in", "--no-validate")
                self.assertEqual(ran.json["form"][-1]["content_type"], kind)

    def test_the_images_routes_allow_sixteen_pictures_and_others_more(self) -> None:
        self.write("in.png", rgb_png(8, 8))
        for count, route, option, rules in (
            (16, "edits", "--image", []), (17, "edits", "--image", ["image-count"]),
            (17, "responses", "--input-image", []),
        ):  # fmt: skip
            self.assert_broken(self.edit(*[option, "in.png"] * count, route=route), *rules)
        self.assert_broken(self.edit(*["--image", "file_id:f"] * 17), "image-count")

    def test_every_broken_file_is_reported(self) -> None:
        self.write("a", b"")
        self.write("b", b"hello")
        self.assert_broken(
            self.edit("--image", "a", "--image", "b", "--image", "c"),
            "image-empty",
            "image-unknown",
            "image-unreadable",
        )

    def test_urls_and_ids(self) -> None:
        for text, rules in (
            ("https://h.example/x.png", []), ("HTTPS://H.example/x.png", []), ("file_id:file-1", []),
            ("ftp://h.example/x.png", ["image-url"]),
            ("file:///etc/passwd", ["image-url"]), ("https://", ["image-url"]),
            ("https://h.example/a b", ["image-url"]), ("file_id:", ["image-url"]),
            ("C:\\x.png", ["image-unreadable"]), ("c:/x.png", ["image-unreadable"]),
        ):  # fmt: skip
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(text, route=route):
                    self.assert_broken(self.edit(option, text, route=route), *rules)

    def test_data_urls_are_looked_at_too(self) -> None:
        def url(data: bytes, kind: str = "image/png") -> str:
            return f"data:{kind};base64," + base64.b64encode(data).decode()

        for text, rules in (
            (url(rgb_png(8, 8)), []), (url(b"hello"), ["image-unknown"]),
            (url(rgb_png(8, 8)[:-20]), ["image-truncated"]), (url(BMP, "image/bmp"), ["image-type"]),
            ("data:image/png,hello", ["image-unreadable"]), (url(b"", "image/png"), ["image-empty"]),
            ("hello", ["image-unreadable"]),
        ):  # fmt: skip
            with self.subTest(text[:40]):
                self.assert_broken(self.edit("--input-image-data-url", text, route="responses"), *rules)

    def test_a_data_url_with_what_is_not_base64_is_refused(self) -> None:
        text = base64.b64encode(rgb_png(8, 8)).decode()
        for bad in ("!!!", text[:40] + "!" + text[40:], text[:40] + "_-" + text[42:], text[:-6]):
            with self.subTest(bad):
                self.assertEqual(
                    self.edit("--input-image-data-url", "data:image/png;base64," + bad, route="responses").code, 2
                )

    def test_a_data_url_too_long_for_json_is_refused_on_edits(self) -> None:
        self.padded("in.png", rgb_png(8, 8), 15_728_640)
        self.assert_broken(self.edit("--image", "in.png", "--image", "https://h.example/x.png"), "image-url-length")
        self.assert_broken(self.edit("--image", "in.png"))


class MaskRulesTest(InputTest):
    """The rules for masks."""

    IMAGE = ("in.png", rgb_png(8, 6))
    CASES = (
        Case("good", IMAGE, ("m.png", transparent_png(8, 6))),
        Case("grey and alpha", IMAGE, ("m.png", png(solid(8, 6, 9, 0), 4))),
        Case("16 bits", IMAGE, ("m.png", png(solid(8, 6, 1, 2, 3, 65534), 6, 16))),
        Case("interlaced", IMAGE, ("m.png", png(solid(8, 6, 1, 2, 3, 0), 6, 8, True))),
        Case("palette with tRNS", IMAGE, ("m.png", png(solid(8, 6, 1), 3, 2, alphas=b"\xff\x00"))),
        Case("no alpha", IMAGE, ("m.png", rgb_png(8, 6)), ("mask-alpha",)),
        Case("grey without alpha", IMAGE, ("m.png", png(solid(8, 6, 255), 0)), ("mask-alpha",)),
        Case("palette without tRNS", IMAGE, ("m.png", png(solid(8, 6, 1), 3, 2)), ("mask-alpha",)),
        Case("opaque", IMAGE, ("m.png", opaque_png(8, 6)), ("mask-opaque",)),
        Case("opaque, 16 bits", IMAGE, ("m.png", png(solid(8, 6, 1, 65535), 4, 16)), ("mask-opaque",)),
        Case("opaque, interlaced", IMAGE, ("m.png", png(solid(8, 6, 1, 255), 4, 8, True))),
        Case("opaque palette", IMAGE, ("m.png", png(solid(8, 6, 0), 3, 2, alphas=b"\xff\x00"))),
        Case("other dimensions", IMAGE, ("m.png", transparent_png(6, 8)), ("mask-dimensions",)),
        Case("one pixel off", IMAGE, ("m.png", transparent_png(8, 7)), ("mask-dimensions",)),
        Case("opaque and other dimensions", IMAGE, ("m.png", opaque_png(9, 9)), ("mask-dimensions",)),
        Case("no side", IMAGE, ("m.png", header_png(0, 6)), ("image-truncated",)),
        Case("a depth without bytes", IMAGE, ("m.png", header_png(8, 6, 1)), ("image-truncated",)),
        Case("no such colour type", IMAGE, ("m.png", header_png(8, 6, 8, 5)), ("image-truncated",)),
        Case("data that ends early", IMAGE, ("m.png", header_png(8, 6)), ("image-truncated",)),
        Case("jpeg", IMAGE, ("m.png", jpeg(8, 6, JFIF)), ("mask-png",)),
        Case("webp", IMAGE, ("m.webp", riff(vp8l(8, 6, True))), ("mask-png",)),
        Case("text", IMAGE, ("m.png", b"hello"), ("image-unknown",)),
        Case("empty", IMAGE, ("m.png", b""), ("image-empty",)),
        Case("cut", IMAGE, ("m.png", transparent_png(8, 6)[:-9]), ("image-truncated",)),
        Case("of a turned jpeg, as seen", ("in.jpg", jpeg(6, 8, exif(6, "big"))), ("m.png", transparent_png(8, 6))),
        Case("of a jpeg", ("in.jpg", jpeg(8, 6, JFIF)), ("m.png", transparent_png(8, 6))),
        Case("of a jpeg, other way round", ("in.jpg", jpeg(8, 6, JFIF)), ("m.png", transparent_png(6, 8)),
             ("mask-dimensions",)),
        Case("of a webp", ("in.webp", riff(vp8(8, 6))), ("m.png", transparent_png(8, 6))),
    )  # fmt: skip

    def test_masks_of_every_kind_on_both_routes(self) -> None:
        for case in self.CASES:
            assert case.mask
            image, mask = self.write(*case.image), self.write(*case.mask)
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(case.name, route=route):
                    self.assert_broken(
                        self.edit(option, image, "--mask", mask, route=route), *case.rules, warns=case.warns
                    )

    def test_the_mask_applies_to_the_first_picture(self) -> None:
        a, b, mask = (
            self.write("a.png", rgb_png(8, 6)),
            self.write("b.png", rgb_png(9, 9)),
            self.write("m.png", transparent_png(8, 6)),
        )
        self.assert_broken(self.edit("--image", a, "--image", b, "--mask", mask))
        self.assert_broken(self.edit("--image", b, "--image", a, "--mask", mask), "mask-dimensions")

    def test_a_mask_without_alpha_gets_a_hint_that_says_what_a_mask_is(self) -> None:
        image, mask = self.write("in.png", rgb_png(8, 6)), self.write("m.png", png(solid(8, 6, 255), 0))
        ran = self.edit("--image", image, "--mask", mask)
        self.assert_broken(ran, "mask-alpha")
        self.assertRegex(ran.error["hint"], "make transparent what is to be edited.*alpha")

    def test_sizes_of_masks(self) -> None:
        image, mask = self.write("in.png", rgb_png(8, 6)), self.write("m.png", transparent_png(8, 6))
        for size, rules, warned in (((4 << 20) - 1, [], False), (4 << 20, [], True), (50 << 20, ["image-size"], False)):
            self.padded(mask, transparent_png(8, 6), size)
            with self.subTest(size):
                ran = self.edit("--image", image, "--mask", mask)
                self.assert_broken(ran, *rules)
                if not rules:
                    self.assertEqual("4 MB" in " ".join(ran.json["warnings"]), warned)

    def test_a_mask_without_a_picture(self) -> None:
        mask = self.write("m.png", transparent_png(8, 6))
        self.assertIn("mask-without-image", self.rules(self.edit("--mask", mask, route="responses")))
        self.assertTrue({"image-missing", "mask-without-image"} & set(self.rules(self.edit("--mask", mask))))
        self.assert_broken(self.edit("--mask", mask, "--previous-response-id", "resp_1", route="responses"))

    def test_one_mask_only(self) -> None:
        image, mask = self.write("in.png", rgb_png(8, 6)), self.write("m.png", transparent_png(8, 6))
        for more in (["--mask-url", "https://h.example/m"], ["--mask-file-id", "f"], ["--mask-box", "0,0,2,2"]):
            with self.subTest(more):
                self.assertIn(
                    "mask-twice",
                    self.rules(self.edit("--input-image", image, "--mask", mask, *more, route="responses")),
                )

    def test_markup_has_the_rules_of_a_mask_and_goes_with_none(self) -> None:
        model = ("--model", "gpt-image-2.5-flare")
        image, marks = self.write("in.png", rgb_png(8, 6)), self.write("k.png", transparent_png(8, 6))
        self.assert_broken(self.edit(*model, "--image", image, "--markup", marks))
        self.assertIn(
            "markup-mask", self.rules(self.edit(*model, "--image", image, "--markup", marks, "--mask", marks))
        )
        self.assertIn(
            "markup-mask", self.rules(self.edit(*model, "--image", image, "--markup", marks, "--mask-box", "0,0,2,2"))
        )
        self.assertIn(
            "markup-form", self.rules(self.edit(*model, "--image", "https://h.example/x.png", "--markup", marks))
        )
        self.write("k.png", transparent_png(9, 6))
        self.assert_broken(self.edit(*model, "--image", image, "--markup", marks), "mask-dimensions")

    def test_mask_auto_is_a_word_for_the_gateway(self) -> None:
        image = self.write("in.png", rgb_png(8, 6))
        ran = self.edit("--image", image, "--mask", "auto")
        self.assert_broken(ran)
        self.assertIn({"name": "mask", "value": "auto"}, ran.json["form"])
        self.assert_broken(self.edit("--image", "https://h.example/x.png", "--mask", "auto"), "mask-auto")
        ran = self.edit("--input-image", image, "--mask", "auto", route="responses")  # there is no form there
        self.assert_broken(ran, "image-unreadable")

    def test_no_validate_turns_refusals_into_warnings(self) -> None:
        for mask, words in ((opaque_png(9, 9), "9x9"), (opaque_png(8, 6), "opaque"), (header_png(8, 6), "damaged")):
            image, name = self.write("in.png", rgb_png(8, 6)), self.write("m.png", mask)
            with self.subTest(words):
                ran = self.edit("--image", image, "--mask", name, "--no-validate")
                self.assert_broken(ran, warns=words)
                self.assertEqual(len(ran.json["warnings"]), 1)

    def test_a_mask_of_the_wrong_size_is_not_looked_into(self) -> None:
        image, mask = self.write("in.png", rgb_png(8, 6)), self.write("m.png", opaque_png(9, 9))
        with mock.patch.object(gpt_image, "png_rows", side_effect=AssertionError("inflated")):
            self.assert_broken(self.edit("--image", image, "--mask", mask), "mask-dimensions")

    def test_a_mask_in_a_data_url_needs_alpha_too(self) -> None:
        image, text = self.write("in.png", rgb_png(8, 6)), base64.b64encode(rgb_png(8, 6)).decode()
        ran = self.edit("--input-image", image, "--mask", f"data:image/png;base64,{text}", route="responses")
        self.assert_broken(ran, "mask-alpha")


class MaskBoxTest(InputTest):
    """--mask-box makes the mask."""

    def made(self, route: str, image: str, *boxes: str) -> Tuple[bytes, Dict[str, Any], bytes]:
        """Runs a call with boxes; returns the mask beside the output, the result, and the body that was sent."""
        name = f"out{len(self.files())}"
        body = {"data": [{"b64_json": base64.b64encode(rgb_png(8, 8)).decode()}]}
        if route == "responses":
            body = {"output": [{"type": "image_generation_call", "id": "i", "result": body["data"][0]["b64_json"]}]}
        transport = FakeTransport(reply(body))
        option = "--image" if route == "edits" else "--input-image"
        words = [word for box in boxes for word in ("--mask-box", box)]
        ran = self.run_main(route, "x", option, image, *words, "--output", f"{name}/o.png", transport=transport)
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(Path(ran.json["mask"]).parent, Path(name))
        self.assertEqual(len(self.files(name)), 2)
        return Path(ran.json["mask"]).read_bytes(), ran.json, transport.bodies[0]

    def test_boxes_in_pixels_and_per_cent_on_both_routes(self) -> None:
        image = self.write("in.png", rgb_png(40, 20))
        for boxes, pixels in (
            (["0,0,1,1"], [(0, 0, 1, 1)]), (["3,4,10,5"], [(3, 4, 10, 5)]), (["0,0,40,20"], [(0, 0, 40, 20)]),
            (["39,19,1,1"], [(39, 19, 1, 1)]),
            (["25%,0%,50%,100%"], [(10, 0, 20, 20)]), (["50%,50%,50%,50%"], [(20, 10, 20, 10)]),
            (["2.5%,5%,10%,10%"], [(1, 1, 4, 2)]),
            (["10,50%,50%,5"], [(10, 10, 20, 5)]), (["1,1,3,3", "20,10,5,5"], [(1, 1, 3, 3), (20, 10, 5, 5)]),
            ([" 1 , 2 , 3 , 4 "], [(1, 2, 3, 4)]),
        ):  # fmt: skip
            for route in ("edits", "responses"):
                with self.subTest(boxes, route=route):
                    mask, _, body = self.made(route, image, *boxes)
                    self.assertEqual(clear_pixels(mask), inside(40, 20, pixels))
                    self.assertIn(mask if route == "edits" else base64.b64encode(mask), body)

    def test_both_edges_of_a_box_in_per_cent_are_rounded_so_that_halves_fit(self) -> None:
        for width in range(1, 40):
            left = gpt_image.box_pixels("0%,0%,50%,100%", width, 9)
            right = gpt_image.box_pixels("50%,0%,50%,100%", width, 9)
            with self.subTest(width=width):
                self.assertEqual((left[0], left[2], right[2]), (0, right[0], width))
                self.assertEqual(gpt_image.box_fits("50%,0%,50%,100%", width, 9), right[2] > right[0])

    def test_boxes_on_a_turned_jpeg_are_as_it_is_seen(self) -> None:
        image = self.write("in.jpg", jpeg(20, 40, exif(6, "big")))
        mask, _, _ = self.made("edits", image, "30,0,10,20")
        self.assertEqual(clear_pixels(mask), inside(40, 20, [(30, 0, 10, 20)]))

    def test_boxes_that_do_not_fit_are_refused(self) -> None:
        image = self.write("in.png", rgb_png(40, 20))
        for box in (
            "0,0,41,1",
            "0,0,1,21",
            "40,0,1,1",
            "0,0,0,1",
            "0,0,1,0",
            "50%,0,60%,1",
            "0%,0%,0%,10%",
            "0.1%,0,0.1%,5",
            "50%,0,52%,1",
            "0,50%,1,53%",
            "0,0,102%,1",
        ):
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(box, route=route):
                    self.assert_broken(self.edit(option, image, "--mask-box", box, route=route), "mask-box")

    def test_a_box_leaves_by_its_edges_in_whole_pixels(self) -> None:
        image = self.write("in.png", rgb_png(200, 100))
        for box, fits in (
            ("50.3%,0,50%,9", False), ("0,50.6%,9,50%", False), ("50.1%,50.1%,50%,50%", True),
            ("50%,0,50%,9", True), ("0,50%,9,50%", True), ("50%,50%,50%,50%", True),
            # Pixels and percentages are no sum: 100 and 50 % are the second half of 200.
            ("100,0,50%,9", True), ("0,45,9,55%", True), ("50%,0,100,9", True), ("0,60%,9,40", True),
        ):  # fmt: skip
            with self.subTest(box):
                self.assert_broken(self.edit("--image", image, "--mask-box", box), *([] if fits else ["mask-box"]))

    def test_boxes_that_are_none_are_refused(self) -> None:
        image = self.write("in.png", rgb_png(40, 20))
        for box in (
            "",
            "1,2,3",
            "1,2,3,4,5",
            "a,b,c,d",
            "-1,0,5,5",
            "1.5,0,5,5",
            "1,2,3,4%%",
            "nan,0,1,1",
            "1e1,0,1,1",
            "٣,0,1,1",
        ):
            with self.subTest(box):
                self.assertEqual(self.edit("--image", image, f"--mask-box={box}").code, 2)

    def test_no_mask_is_made_for_a_picture_that_claims_to_be_absurdly_large(self) -> None:
        for width, height in ((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (12_001, 9)):
            self.write("in.png", header_png(width, height))
            for box in ("0%,0%,100%,100%", "0,0,1,1"):
                with self.subTest(f"{width}x{height}", box=box):
                    ran = self.edit("--image", "in.png", "--mask-box", box)
                    self.assert_broken(ran, "mask-box")
                    self.assertIn("12000", ran.error["message"])

    def test_boxes_in_per_cent_that_share_an_edge_touch(self) -> None:
        for cuts in ((0, 50, 100), (0, 33.3, 66.6, 100), (0, 12.5, 37.5, 99.9, 100), tuple(range(0, 101, 10))):
            for width in (*range(1, 40), 640, 1023, 1024, 1536, 3840, 3999):
                at = 0
                for left, right in zip(cuts, cuts[1:]):
                    x, _, end, _ = gpt_image.box_pixels(f"{left}%,0%,{round(right - left, 3)}%,100%", width, 9)
                    self.assertEqual(x, at, (width, cuts))
                    at = end
                self.assertEqual(at, width, cuts)

    def test_a_box_of_less_than_a_pixel_is_said_to_be_that(self) -> None:
        image = self.write("in.png", rgb_png(40, 20))
        ran = self.edit("--image", image, "--mask-box", "10%,10%,0.1%,50%")
        self.assert_broken(ran, "mask-box")
        self.assertIn("less than a pixel", ran.error["message"])

    def test_boxes_need_a_local_first_picture(self) -> None:
        self.assert_broken(self.edit("--image", "https://h.example/x.png", "--mask-box", "0,0,1,1"), "mask-box")
        self.assertEqual(self.edit("--mask-box", "0,0,1,1", route="responses").code, 2)

    def test_the_dry_run_names_the_mask_and_writes_none(self) -> None:
        image = self.write("in.png", rgb_png(40, 20))
        ran = self.edit("--image", image, "--mask-box", "0,0,4,4")
        row = next(row for row in ran.json["form"] if row["name"] == "mask")
        self.assertEqual((row["content_type"], Path(row["path"]).parent.name), ("image/png", "out"))
        self.assertEqual(self.files(), ["in.png"])


class ConversionTest(InputTest):
    """What the API does not take is turned into PNG by a program that is there."""

    def setUp(self) -> None:
        super().setUp()
        Path("bin").mkdir()
        Path("PIL").mkdir()
        Path("PIL/__init__.py").write_text("raise ImportError('none here')")
        patch = mock.patch.dict(os.environ, {"PATH": str(self.folder / "bin"), "PYTHONPATH": str(self.folder)})
        patch.start()
        self.addCleanup(patch.stop)
        Path("good.png").write_bytes(transparent_png(8, 6))

    def edit(self, *argv: str, route: str = "edits") -> Ran:
        """Makes a dry run in which Pillow is the one of this test."""
        env = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        return self.run_main(route, "x", *argv, "--output", "out/o.png", "--dry-run", env=env)

    def converter(self, name: str, code: str) -> None:
        """Puts a program on the PATH: Python code that sees its arguments as `args`."""
        path = Path("bin", name)
        body = f"#!{sys.executable} -S\nimport sys, shutil\nargs = sys.argv[1:]\nopen('ran-{name}', 'w').write(repr(args))\n{code}\n"
        path.write_text(body, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    COPY = "shutil.copyfile('good.png', args[-1])"

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_unsupported_files_are_converted_and_the_result_says_so(self) -> None:
        self.converter("magick", self.COPY)
        for name, data in (
            *OTHERS.items(),
            ("animated gif", gif(8, 6, 2)),
            ("svg", b'<svg width="8" height="6"></svg>'),
        ):
            path = self.write(f"my picture.{name}", data)
            for route, option in (("edits", "--image"), ("responses", "--input-image")):
                with self.subTest(name, route=route):
                    ran = self.edit(option, path, route=route)
                    self.assert_broken(ran, warns="magick")
                    self.assertIn(path, " ".join(ran.json["warnings"]))
                    if route == "edits":
                        row = ran.json["form"][-1]
                        self.assertEqual(
                            (row["content_type"], row["bytes"]), ("image/png", os.path.getsize("good.png"))
                        )
                        self.assertTrue(row["filename"].endswith(".png"))

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_the_converted_picture_is_what_is_sent_and_leaves_no_trace(self) -> None:
        self.converter("magick", self.COPY)
        path = self.write("in.bmp", BMP)
        transport = FakeTransport(reply({"error": {"message": "no"}}, 400))
        with mock.patch.dict(os.environ, {"TMPDIR": str(self.folder / "bin")}), mock.patch("tempfile.tempdir", None):
            ran = self.run_main("edits", "x", "--image", path, transport=transport)
        self.assertEqual(ran.code, 4, ran.err)
        self.assertIn(Path("good.png").read_bytes(), transport.bodies[0])
        self.assertIn(b'filename="in.png"\r\nContent-Type: image/png', transport.bodies[0])
        self.assertEqual(os.listdir("bin"), ["magick"])

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_a_mask_is_held_against_the_converted_picture(self) -> None:
        self.converter("magick", self.COPY)
        path, mask = self.write("in.bmp", BMP), self.write("m.png", transparent_png(8, 6))
        self.assert_broken(self.edit("--image", path, "--mask", mask))
        self.write("m.png", transparent_png(9, 6))
        self.assert_broken(self.edit("--image", path, "--mask", mask), "mask-dimensions")

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_a_converter_that_fails_makes_way_for_the_next(self) -> None:
        self.converter("sips", "sys.exit(1)")
        self.converter("magick", "pass")
        self.converter("convert", "open(args[-1], 'w').write('no picture')")
        self.converter("ffmpeg", self.COPY)
        ran = self.edit("--image", self.write("in.bmp", BMP))
        self.assert_broken(ran, warns="ffmpeg")
        for name in ("sips", "magick", "convert"):
            self.assertTrue(Path(f"ran-{name}").exists())

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_a_file_name_is_no_option_and_no_command(self) -> None:
        self.converter("magick", self.COPY)
        for name in ("-version.bmp", "a b;touch evil.bmp", "$(touch evil).bmp", "@list.bmp"):
            self.write(name, BMP)
            with self.subTest(name):
                self.assert_broken(self.edit(f"--image={name}"), warns="magick")
                args = Path("ran-magick").read_text()
                self.assertIn(str(self.folder), args.split(",")[0])
                self.assertFalse(Path("evil").exists())

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_the_hint_names_no_converter_that_is_there_and_could_not(self) -> None:
        self.write("in", BMP)
        for names in (["magick"], ["sips", "magick", "convert", "ffmpeg"]):
            for name in names:
                self.converter(name, "sys.exit(1)")
            with self.subTest(names):
                ran = self.edit("--image", "in")
                self.assert_broken(ran, "image-type")
                failed, _, others = ran.error["hint"].partition(";")
                self.assertEqual(failed, f"{' and '.join(names)} could not convert it")
                self.assertIn("Pillow", others)  # the one of this test is none
                for name in names:
                    self.assertNotIn(name, others.replace("converts", ""))
        Path("PIL/__init__.py").write_text("Image = ImageOps = None")
        hint = self.edit("--image", "in").error["hint"]
        self.assertEqual(hint.partition(";")[2], " save it as png, jpeg or webp")

    def test_no_converter_is_named_for_a_data_url(self) -> None:
        text = "data:image/bmp;base64," + base64.b64encode(BMP).decode()
        ran = self.edit("--input-image-data-url", text, route="responses")
        self.assert_broken(ran, "image-type")
        self.assertEqual(ran.error["hint"], "save it as png, jpeg or webp")

    @unittest.skipUnless(importlib.util.find_spec("PIL"), "needs Pillow")
    def test_pillow_converts_what_a_png_cannot_hold(self) -> None:
        with mock.patch.dict(os.environ, {"PYTHONPATH": ""}):
            for name, data in (
                ("cmyk", tiff(5, 4, 8, 1, b"\0\xff\0\0")), ("float", tiff(1, 1, 32, 3, struct.pack("<f", 0.5))),
                ("long integers", tiff(1, 1, 32, 2, struct.pack("<i", 70_000))),
                ("16 bits", tiff(1, 1, 16, 1, b"\1\x80")), ("turned", tiff(2, 3, 8, 1, b"\x80\0\xff", 6)),
            ):  # fmt: skip
                with self.subTest(name):
                    ran = self.edit("--image", self.write("in.tif", data))
                    self.assert_broken(ran, warns="Pillow")
                    mask = self.write("m.png", transparent_png(*((6, 8) if name == "turned" else (8, 6))))
                    self.assert_broken(self.edit("--image", "in.tif", "--mask", mask))

    def test_with_none_of_them_the_error_names_them(self) -> None:
        for name, data in OTHERS.items():
            with self.subTest(name):
                ran = self.edit("--image", self.write("in", data))
                self.assert_broken(ran, "image-type")
                for word in ("sips", "magick", "convert", "ffmpeg", "Pillow"):
                    self.assertIn(word, ran.error["problems"][0]["hint"])

    @unittest.skipUnless(os.name == "posix", "a script is a program only there")
    def test_what_the_api_takes_is_never_converted(self) -> None:
        self.converter("magick", self.COPY)
        for data in ImageRulesTest.GOOD.values():
            self.assert_broken(self.edit("--image", self.write("in", data)))
        self.assert_broken(self.edit("--input-image", self.write("in", gif(8, 6, 1)), route="responses"))
        self.assertFalse(Path("ran-magick").exists())


if __name__ == "__main__":
    unittest.main()
