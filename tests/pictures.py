"""Real pictures without a model: small landscapes whose look comes from a seed.

A landscape is painted once as rows of palette indexes, and each row says how often it repeats. That is all the encoders
below need, and it keeps them fast: a 3840x2160 PNG takes well under a tenth of a second in plain Python.

    seed -> scene -> paint -> Painting -> png | jpeg | webp | gif        (svg is drawn from the scene itself)

`measure` goes the other way: what the first bytes of a file say about its format and size.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import struct
import zlib
from typing import NamedTuple

Colour = tuple[int, int, int]

# ---------------------------------------------------------------------------------------------------- what is painted

# Sky at the top, sky at the horizon, sun, farthest hills, nearest hills.
MOODS: tuple[tuple[Colour, Colour, Colour, Colour, Colour], ...] = (
    ((38, 70, 120), (250, 196, 148), (255, 238, 190), (142, 134, 168), (34, 44, 74)),
    ((96, 168, 214), (236, 244, 236), (255, 248, 214), (134, 184, 176), (28, 84, 72)),
    ((24, 22, 58), (150, 84, 138), (250, 226, 206), (96, 66, 128), (20, 16, 40)),
    ((232, 134, 96), (252, 222, 166), (255, 250, 224), (206, 132, 106), (92, 40, 48)),
    ((16, 36, 66), (84, 148, 166), (236, 244, 228), (62, 108, 130), (10, 26, 44)),
    ((122, 182, 168), (250, 236, 190), (250, 148, 104), (148, 176, 136), (44, 70, 58)),
    ((178, 146, 206), (252, 224, 226), (255, 250, 240), (168, 138, 184), (62, 48, 98)),
)
SKY_STEPS, SUN_STEPS, LAYERS, HILL_STEPS = 40, 3, 4, 20
CLEAR = SKY_STEPS + SUN_STEPS + LAYERS * HILL_STEPS  # the index of "nothing here", under 128 as GIF wants it


class Hill(NamedTuple):
    """A parabola: its peak and its half width at the foot, all in fractions of the picture."""

    x: float
    top: float
    spread: float


class Scene(NamedTuple):
    """A landscape in fractions of its width and height, so that it fits every size."""

    mood: tuple[Colour, Colour, Colour, Colour, Colour]
    sun: tuple[float, float, float]
    layers: tuple[tuple[Hill, ...], ...]


class Painting(NamedTuple):
    """Rows of palette indexes, each with the number of times it repeats; `clear` when the sky is left out."""

    width: int
    height: int
    palette: tuple[Colour, ...]
    rows: list[tuple[bytes, int]]
    clear: bool


class Measure(NamedTuple):
    """What a picture file says about itself; width and height are 0 where its first bytes do not tell."""

    format: str
    width: int
    height: int
    alpha: bool


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two others."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other))
    return red, green, blue


def scene(seed: bytes) -> Scene:
    """Choose mood, sun and hills by the hash of the seed."""
    digits = iter(hashlib.sha512(seed).digest())

    def pick(low: float, high: float) -> float:
        return low + (high - low) * next(digits) / 255

    mood = MOODS[next(digits) % len(MOODS)]
    sun = (pick(0.15, 0.85), pick(0.16, 0.46), pick(0.05, 0.11))
    layers = []
    for layer in range(LAYERS):
        level = 0.42 + 0.13 * layer
        hills = [Hill((i + pick(0.1, 0.9)) / 3, level + pick(-0.1, 0.1), pick(0.3, 0.7)) for i in range(3)]
        layers.append(tuple(hills))
    return Scene(mood, sun, tuple(layers))


def palette(view: Scene) -> tuple[Colour, ...]:
    """All colours of a scene: sky from top to horizon, halo and sun, then each layer of hills from peak to foot."""
    zenith, horizon, sun, far, near = view.mood
    colours = [mix(zenith, horizon, step / (SKY_STEPS - 1)) for step in range(SKY_STEPS)]
    colours += [mix(horizon, sun, 0.35), mix(horizon, sun, 0.6), sun]
    for layer in range(LAYERS):
        hill = mix(far, near, layer / (LAYERS - 1))
        mist = mix(hill, horizon, 0.45 - 0.08 * layer)
        colours += [mix(hill, mist, step / (HILL_STEPS - 1)) for step in range(HILL_STEPS)]
    return (*colours, (0, 0, 0))


def fill(row: bytearray, index: int, middle: float, half: float) -> None:
    """Paint the part of a row that lies within `half` of `middle`."""
    first, last = max(0, round(middle - half)), min(len(row), round(middle + half))
    if last > first:
        row[first:last] = bytes((index,)) * (last - first)


def paint_row(view: Scene, width: int, height: int, y: float, clear: bool) -> bytes:
    """One row of the landscape: sky, then the sun, then the hills from far to near."""
    sky = CLEAR if clear else min(SKY_STEPS - 1, int(SKY_STEPS * y / (0.75 * height)))
    row = bytearray((sky,)) * width
    x, level, radius = view.sun
    size = radius * min(width, height)
    for step, scale in enumerate((1.7, 1.3, 1.0)):
        chord = (size * scale) ** 2 - (y - level * height) ** 2
        if chord > 0 and not (clear and step < SUN_STEPS - 1):
            fill(row, SKY_STEPS + step, x * width, math.sqrt(chord))
    for layer, hills in enumerate(view.layers):
        peak = min(hill.top for hill in hills) * height
        shade = min(HILL_STEPS - 1, max(0, int(HILL_STEPS * (y - peak) / (0.4 * height))))
        index = SKY_STEPS + SUN_STEPS + layer * HILL_STEPS + shade
        for hill in hills:
            below = y / height - hill.top
            if below > 0:
                fill(row, index, hill.x * width, hill.spread * width * math.sqrt(below / (1 - hill.top)))
    return bytes(row)


def widen(row: bytes, block: int, width: int) -> bytes:
    """Repeat each pixel of a row `block` times."""
    wide = bytearray(len(row) * block)
    for offset in range(block):
        wide[offset::block] = row
    return bytes(wide[:width])


def paint(view: Scene, width: int, height: int, block: int = 1, clear: bool = False) -> Painting:
    """Paint a scene; a `block` above 1 gives the squares of an unfinished picture."""
    rows = []
    # Tall pictures repeat their rows: nobody sees it, and it is what keeps the largest size fast.
    step = block if block > 1 else max(1, height // 480)
    for top in range(0, height, step):
        row = paint_row(view, -(-width // block), -(-height // block), (top + step / 2) / block, clear)
        rows.append((widen(row, block, width) if block > 1 else row, min(step, height - top)))
    return Painting(width, height, palette(view), rows, clear)


# ------------------------------------------------------------------------------------------------------------ encoders


def chunk(name: bytes, data: bytes) -> bytes:
    """One PNG chunk (https://www.w3.org/TR/png-3/#5Chunk-layout)."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def png_head(width: int, height: int, clear: bool = False) -> bytes:
    """Signature and header of an RGB or RGBA picture."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6 if clear else 2, 0, 0, 0))


def png(painting: Painting) -> bytes:
    """Encode as PNG."""
    channels = 4 if painting.clear else 3
    tables = [bytes(colour[i] for colour in painting.palette).ljust(256, b"\0") for i in range(3)]
    tables.append(bytes(0 if index == CLEAR else 255 for index in range(256)))
    same = b"\2" + bytes(channels * painting.width)  # filter "up" and no difference: the row above once more
    # A full flush leaves nothing that later data could refer to, so that the block of a row may be repeated as it is.
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    again = deflate.compress(same) + deflate.flush(zlib.Z_FULL_FLUSH)
    out, checksum = [b"\x78\x01"], 1
    line = bytearray(1 + channels * painting.width)
    for row, times in painting.rows:
        for channel in range(channels):
            line[1 + channel :: channels] = row.translate(tables[channel])
        out += [deflate.compress(line), deflate.flush(zlib.Z_FULL_FLUSH), again * (times - 1)]
        checksum = zlib.adler32(line, checksum)
        for _ in range(times - 1):
            checksum = zlib.adler32(same, checksum)
    out += [b"\x03\x00", struct.pack(">I", checksum)]
    head = png_head(painting.width, painting.height, painting.clear)
    return head + chunk(b"IDAT", b"".join(out)) + chunk(b"IEND", b"")


def jpeg_marker(code: int, data: bytes) -> bytes:
    """One JPEG segment."""
    return struct.pack(">BBH", 0xFF, code, len(data) + 2) + data


def jpeg_luma(colour: Colour) -> tuple[int, int, int]:
    """A colour as the three levels of a flat JPEG block, each less its middle."""
    red, green, blue = colour
    return (
        round(0.299 * red + 0.587 * green + 0.114 * blue) - 128,
        round(-0.1687 * red - 0.3313 * green + 0.5 * blue),
        round(0.5 * red - 0.4187 * green - 0.0813 * blue),
    )


@functools.cache
def jpeg_step(change: int) -> str:
    """The bits of a flat block whose level differs by `change` from the block before (T.81, F.1.2.1)."""
    codes = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110", "1111110")
    size = abs(change).bit_length()
    value = change if change > 0 else change + (1 << size) - 1
    return codes[size] + (f"{value:0{size}b}" if size else "") + "0"  # the last bit: nothing but this level


def jpeg(painting: Painting) -> bytes:
    """Encode as a baseline JPEG of flat blocks of 8x8 pixels."""
    levels = [jpeg_luma(colour) for colour in painting.palette]
    bits, before, row, left = [], (0, 0, 0), b"", 0
    source = iter(painting.rows)
    for top in range(0, painting.height, 8):
        while left <= top:
            row, times = next(source)
            left += times
        for index in row[::8]:
            level = levels[index]
            bits += [jpeg_step(now - last) for now, last in zip(level, before)]
            before = level
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = struct.pack(">BHHB", 8, painting.height, painting.width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    return b"".join(
        (
            b"\xff\xd8" + jpeg_marker(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            jpeg_marker(0xDB, b"\0" + b"\x08" * 64) + jpeg_marker(0xC0, frame),
            jpeg_marker(0xC4, b"\0" + bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, *[0] * 7)) + bytes(range(12))),
            jpeg_marker(0xC4, b"\x10" + bytes((1, *[0] * 15)) + b"\0"),
            jpeg_marker(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0") + scan + b"\xff\xd9",
        )
    )


RUNS = re.compile(rb"(.)\1*", re.DOTALL)


def flipped(value: int, bits: int) -> str:
    """A number as bits, the lowest first."""
    return f"{value:0{bits}b}"[::-1]


@functools.cache
def webp_copy(length: int, above: bool) -> str:
    """The bits that repeat the pixels to the left, or those above (WebP lossless, section 5.2.2)."""
    prefix, extra = length - 1, ""
    if prefix >= 4:
        width = prefix.bit_length() - 2
        extra = flipped(prefix & ((1 << width) - 1), width)
        prefix = 2 * width + 2 + (prefix >> width & 1)
    # Prefixes 0 to 7 have five bits and the others six; with nine for each of 256 levels the code is complete.
    code = f"{prefix:05b}" if prefix < 8 else f"{prefix - 8 + 16:06b}"
    return code + extra + ("0" if above else "1")


def webp_levels(colour: Colour, alpha: int) -> str:
    """The bits of one pixel: green, red, blue, and one bit of transparency."""
    red, green, blue = colour
    return f"{green + 256:09b}{red:08b}{blue:08b}" + ("1" if alpha else "0")


def webp_codes() -> str:
    """The five prefix codes that `webp_copy` and `webp_levels` write (WebP lossless, section 6.2.1)."""
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9)
    green = "0" + flipped(len(order) - 4, 4) + "".join(flipped({5: 2, 6: 2, 9: 1}.get(i, 0), 3) for i in order)
    green += "0" + "0" * 256 + "10" * 8 + "11" * 16  # 256 levels of nine bits, 8 lengths of five, 16 of six
    eight = "0" + flipped(len(order) - 4, 4) + "".join(flipped(1 if i == 8 else 0, 3) for i in order) + "0"
    alpha = "1" + "1" + "1" + flipped(0, 8) + flipped(255, 8)
    distance = "1" + "1" + "1" + flipped(0, 8) + flipped(1, 8)
    return green + eight + eight + alpha + distance


def webp(painting: Painting) -> bytes:
    """Encode as lossless WebP: a pixel, then repeats of the pixel to the left or of the row above."""
    pixels = [webp_levels(colour, index != CLEAR) for index, colour in enumerate(painting.palette)]
    bits = [flipped(0x2F, 8), flipped(painting.width - 1, 14), flipped(painting.height - 1, 14)]
    bits += ["1" if painting.clear else "0", "000", "000", webp_codes()]
    for row, times in painting.rows:
        for run in RUNS.finditer(row):
            bits.append(pixels[row[run.start()]])
            more = run.end() - run.start() - 1
            bits += [webp_copy(min(4096, more - done), above=False) for done in range(0, more, 4096)]
        more = painting.width * (times - 1)
        bits += [webp_copy(min(4096, more - done), above=True) for done in range(0, more, 4096)]
    text = "".join(bits)
    data = int(text[::-1], 2).to_bytes(-(-len(text) // 8), "little")
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@functools.cache
def gif_run(index: int, length: int) -> bytes:
    """LZW codes for a run of one colour: a fresh table, the colour, then each code twice grown by one pixel."""
    out = bytearray()
    while length > 0:
        out += bytes((128, index))
        length -= 1
        step = 2
        while length >= step and step < 100:
            out.append(128 + step)
            length -= step
            step += 1
        if 1 < length < step:
            out.append(128 + length)
            length = 0
    return bytes(out)


def gif_frame(painting: Painting) -> bytes:
    """One frame; seven-bit colours make every LZW code one byte as long as the table is kept short."""
    rows = []
    for row, times in painting.rows:
        line = b"".join(gif_run(row[run.start()], run.end() - run.start()) for run in RUNS.finditer(row))
        rows.append(line * times)
    codes = b"".join(rows) + b"\x81"
    blocks = b"".join(bytes((len(part),)) + part for part in (codes[i : i + 255] for i in range(0, len(codes), 255)))
    control = struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 4, 20, 0, 0)
    place = struct.pack("<BHHHHB", 0x2C, 0, 0, painting.width, painting.height, 0)
    return control + place + b"\x07" + blocks + b"\0"


def gif(frames: list[Painting]) -> bytes:
    """Encode as an animated GIF that repeats for ever."""
    first = frames[0]
    colours = b"".join(bytes(colour) for colour in first.palette).ljust(3 * 128, b"\0")
    head = b"GIF89a" + struct.pack("<HHBBB", first.width, first.height, 0xF6, 0, 0) + colours
    forever = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    return head + forever + b"".join(gif_frame(frame) for frame in frames) + b"\x3b"


def svg(view: Scene, width: int, height: int, clear: bool = False) -> bytes:
    """Draw the scene as SVG; a parabola is exactly one quadratic curve."""
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(view)]
    x, y, radius = view.sun
    shapes = [] if clear else ['<rect width="100%" height="100%" fill="url(#sky)"/>']
    circle = f'cx="{x * width:.1f}" cy="{y * height:.1f}" r="{radius * min(width, height):.1f}"'
    shapes.append(f'<circle {circle} fill="{colours[SKY_STEPS + SUN_STEPS - 1]}"/>')
    for layer, hills in enumerate(view.layers):
        paths = []
        for hill in hills:
            left, right, peak = hill.x - hill.spread, hill.x + hill.spread, 2 * hill.top - 1
            ends = [f"{a * width:.1f} {b * height:.1f}" for a, b in ((left, 1), (hill.x, peak), (right, 1))]
            paths.append(f"M{ends[0]}Q{ends[1]} {ends[2]}Z")
        shapes.append(f'<path d="{"".join(paths)}" fill="{colours[SKY_STEPS + SUN_STEPS + layer * HILL_STEPS]}"/>')
    sky = f'<stop stop-color="{colours[0]}"/><stop offset="0.75" stop-color="{colours[SKY_STEPS - 1]}"/>'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    text += f'<linearGradient id="sky" x2="0" y2="1">{sky}</linearGradient>{"".join(shapes)}</svg>\n'
    return text.encode()


def rising(view: Scene, frames: int) -> list[Scene]:
    """The same scene with the sun a little higher in every frame."""
    x, y, radius = view.sun
    return [view._replace(sun=(x, y + 0.25 - 0.25 * i / max(1, frames - 1), radius)) for i in range(frames)]


@functools.lru_cache(maxsize=256)  # tests ask for the same few pictures again and again
def picture(
    seed: bytes,
    form: str = "png",
    width: int = 1024,
    height: int = 1024,
    clear: bool = False,
    block: int = 1,
    frames: int = 9,
) -> bytes:
    """A whole picture file; a format that cannot be painted here comes out as PNG."""
    view = scene(seed)
    if form == "svg":
        return svg(view, width, height, clear)
    if form == "gif":
        return gif([paint(each, width, height, 8) for each in rising(view, frames)])
    if form == "jpeg":
        return jpeg(paint(view, width, height, max(8, block)))
    encode = webp if form == "webp" else png
    return encode(paint(view, width, height, block, clear))


# ------------------------------------------------------------------------------------------------------ large pictures


@functools.lru_cache(maxsize=1)
def padding(size: int) -> tuple[bytes, bytes]:
    """The end of a real PNG, `size` bytes of noise and a small landscape, plain and as base64."""
    noise = (hashlib.shake_256(b"noise").digest(1 << 18) * (1 + (size >> 18)))[:size]
    landscape = png(paint(scene(b"large"), 1024, 1024))
    tail = chunk(b"noIZ", noise) + landscape[33:]  # without its signature and header, which are 33 bytes
    return tail, base64.b64encode(tail)


def large(seed: bytes, size: int) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """A real 1024x1024 PNG of about `size` bytes in two pieces, and the base64 of both; they share the second piece."""
    name = b"Comment\0" + hashlib.sha256(seed).hexdigest().encode()
    head = png_head(1024, 1024)
    # The first piece is a multiple of three bytes long, so that its base64 can stand before that of the second.
    head += chunk(b"tEXt", name + b"." * (-(len(head) + 12 + len(name)) % 3))
    tail, text = padding(size)
    return (head, tail), (base64.b64encode(head), text)


# ------------------------------------------------------------------------------------------------------------- measure


def measure_jpeg(data: bytes) -> Measure:
    """Look for the frame header of a JPEG."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        code, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return Measure("jpeg", width, height, False)
        at += 2 + length
    return Measure("jpeg", 0, 0, False)


def measure(data: bytes) -> Measure | None:
    """Format, size and alpha channel by the first bytes of a file, or None when it is no picture."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 33:
        width, height = struct.unpack(">II", data[16:24])
        return Measure("png", width, height, data[25] in (4, 6) or b"tRNS" in data)
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Measure("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Measure("webp", 0, 0, False)
    if data[:3] == b"\xff\xd8\xff":
        return measure_jpeg(data)
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return Measure("gif", width, height, False)
    return None
