"""Pictures of every format, damaged or put together from parts that do not fit, under names of images."""

import io
import struct
import tempfile
import warnings
import zlib
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssdlib.common.errors import DataError
from ssdlib.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    decode_image,
    fields_in,
    image_header,
    image_size,
    read_image,
    read_um_per_pixel,
)
from tests.fuzz.cases import attempt, damaged, fuzzed

SUFFIXES = st.sampled_from((*IMAGE_SUFFIXES, ".JPG", ".Tif", ""))
SIZES = st.sampled_from((0, 1, 2, 7, 8, 16, 17, 255, 65_535, 65_536, 2**31 - 1, 2**32 - 1))


def _value_or_error(read, *arguments):
    try:
        return read(*arguments)
    except DataError as error:
        assert "a" in str(error) and "is not defined" not in str(error)
        return None


def _look(path: Path) -> None:
    """Read a picture in every way, and see that these agree."""
    pixels, size = _value_or_error(read_image, path), _value_or_error(image_size, path)
    header, um = _value_or_error(image_header, path), read_um_per_pixel(path)
    again = _value_or_error(decode_image, path.read_bytes(), path)
    assert (pixels is None) == (again is None) and (size is None) == (header is None)
    assert um is None or 0.01 <= um <= 0.5
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.flags.c_contiguous
        assert pixels.shape == (size[1], size[0], 3) and 0 < pixels.size <= 3 * MAX_PIXELS
        assert np.array_equal(pixels, again) and header[1] in range(1, 9) and header[0] == size
    fields = fields_in(path)
    assert fields == fields_in(path, path.read_bytes()) and 1 <= len(fields) == len(set(fields))
    for field in fields[:3] if len(fields) > 1 else ():
        _value_or_error(read_image, field)


def look(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, f"a{suffix}")
        path.write_bytes(content)
        error = attempt(_look, path)
        assert error is None, error


# --- damage to sound files ---------------------------------------------------------------------------------


@cache
def sound() -> dict[str, bytes]:
    """A small file of each kind, and some of formats that are not read."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 48, 3), np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a smear", 300.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    files = {}
    modes = {
        "rgb": picture,
        **{mode: picture.convert(mode) for mode in ("L", "1", "P", "CMYK", "RGBA", "LA")},
    }
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    for name, kind, mode, options in (
        (
            "exif",
            "JPEG",
            "rgb",
            {"exif": exif, "comment": b"x", "icc_profile": b"profile" * 20, "dpi": (72, 72)},
        ),
        ("progressive", "JPEG", "rgb", {"progressive": True}),
        ("restarts", "JPEG", "L", {"restart_marker_blocks": 2}),
        ("inks", "JPEG", "CMYK", {}),
        ("frames", "MPO", "rgb", frames),
        ("exif", "PNG", "rgb", {"exif": exif, "icc_profile": b"profile" * 20}),
        ("palette", "PNG", "P", {"transparency": b"\0\1\2"}),
        ("alpha", "PNG", "RGBA", {}),
        ("bits", "PNG", "1", {}),
        ("frames", "PNG", "rgb", frames),
        ("plain", "BMP", "rgb", {}),
        ("palette", "BMP", "P", {}),
        ("plain", "GIF", "P", {"transparency": 3}),
        ("frames", "GIF", "rgb", frames),
        ("plain", "WEBP", "RGBA", {"exif": exif}),
        ("lossless", "WEBP", "rgb", {"lossless": True}),
        ("frames", "WEBP", "rgb", frames),
        ("plain", "JPEG2000", "rgb", {}),
        ("stream", "JPEG2000", "LA", {"no_jp2": True}),
        ("plain", "PPM", "rgb", {}),
        ("bits", "PPM", "1", {}),
        ("inks", "TIFF", "CMYK", {"compression": "tiff_lzw"}),
        ("palette", "TIFF", "P", {}),
        ("jpeg", "TIFF", "rgb", {"compression": "jpeg"}),
        ("fax", "TIFF", "1", {"compression": "group4"}),
        *(
            (f"foreign {kind}", kind, "rgb", {})
            for kind in ("EPS", "ICNS", "DDS", "TGA", "PCX", "PDF", "AVIF", "ICO", "QOI", "SGI")
        ),
    ):
        stream = io.BytesIO()
        modes[mode].save(stream, kind, **options)
        files[f"{kind} {name}"] = stream.getvalue()
    deep = noise.astype(np.uint16) << 4
    planes = np.ascontiguousarray(np.moveaxis(deep, -1, 0))
    rgb = {"photometric": "rgb"}
    for name, samples, options in (
        ("pages", np.stack([noise, noise[::-1]]), {**rgb, "compression": "zlib"}),
        ("ome", planes, {"ome": True, "metadata": {"axes": "CYX", "PhysicalSizeX": 0.1}}),
        ("imagej", planes, {"imagej": True, "resolution": (9, 9), "metadata": {"axes": "ZYX"}}),
        ("tiles", deep, {**rgb, "tile": (16, 16), "bigtiff": True, "compression": "lzw"}),
        ("small copies", noise, {**rgb, "subifds": 1}),
        ("planes", planes, {**rgb, "planarconfig": "separate", "byteorder": ">", "compression": "zlib"}),
    ):
        stream = io.BytesIO()
        with tifffile.TiffWriter(
            stream, **{k: options.pop(k) for k in ("ome", "imagej", "bigtiff", "byteorder") if k in options}
        ) as out:
            out.write(samples, **options)
            if name == "small copies":
                out.write(noise[::2, ::2], photometric="rgb", subfiletype=1)
        files[f"TIFF {name}"] = stream.getvalue()
    files["PNG deep"] = imagecodecs.png_encode(deep)
    files["PGM deep"] = b"P5 48 40 4095\n" + deep[..., 0].astype(">u2").tobytes()
    files["plain PPM"] = b"P3 # a comment\n2 2 255\n" + b"1 2 3 " * 4
    files["PFM"] = b"Pf\n4 4\n-1.0\n" + bytes(64)
    files["page"], files["archive"] = b"<html>", b"PK\3\4" + bytes(60)
    return files


@fuzzed(70)
@given(st.data())
def test_damaged_files_of_every_kind(data):
    kind = data.draw(st.sampled_from(sorted(sound())))
    content = sound()[kind]
    look(
        data.draw(st.just(content) | damaged(content) | damaged(content) | damaged(content, 1)),
        data.draw(SUFFIXES),
    )


def test_the_sound_files_are_sound():
    read = [
        name
        for name, content in sound().items()
        if _value_or_error(decode_image, content, Path("a")) is not None
    ]
    unread = {name for name in sound() if "foreign" in name} | {"page", "archive", "PFM"}
    assert set(read) == set(sound()) - unread


# --- TIFF, also as EXIF ------------------------------------------------------------------------------------

ENTITIES = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))
TEXTS = (
    "",
    "ImageJ=1.11a\nimages=2\nslices=2\nunit=\\u00B5m\n",
    "ImageJ=1\nimages=999999999\n",
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "x">' + ENTITIES + "]><OME>&a11;</OME>",
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="4" SizeY="4" '
    'SizeC="2" SizeZ="99999" SizeT="99999" Type="uint8" DimensionOrder="XYZCT"><TiffData IFD="7"/></Pixels>'
    "</Image></OME>",
    '<OME PhysicalSizeX="1e999" PhysicalSizeXUnit="zz"><Channel Name="r"/></OME>',
    '<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///dev/zero"><OME></OME>',
    '{"shape": [4, 4]}',
    '{"shape": [99999999, 99999999, 3]}',
    '{"shape": ' + "[" * 9000,
    "shape=(4,4)",
    "Aperio Image Library\n4x4 |MPP = 0.25",
    "SCIFIO=1",
    "<OME" + ">" * 3000,
    "\0\0",
    "x" * 70_000,
)
TAGS = (
    254, 255, 256, 257, 258, 259, 262, 266, 269, 270, 271, 273, 274, 277, 278, 279, 282, 283, 284, 296,
    305, 306, 317, 320, 322, 323, 324, 325, 330, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532,
    700, 32997, 32998, 33550, 33628, 33629, 34118, 34361, 34362, 34412, 34665, 34675, 34853, 37500,
    40965, 42112, 42113, 50838, 50839, 51123, 65000, 65420, 65426, 65449,
)  # fmt: skip
LETTERS = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii"}
LETTERS |= {11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
NUMBERS = st.integers(0, 20) | st.sampled_from(
    (0, 1, 2, 3, 4, 5, 6, 8, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1)
)
Entry = tuple[int, int, object, int | None]  # tag, type, numbers or text, a count that may be wrong


def tiff(directories: list[list[Entry]], order: str, big: bool, chain: int | None = None) -> bytes:
    """A TIFF of 4 x 4 samples with these tags; the last directory leads to number `chain` or to none."""
    word, size = ("Q", 8) if big else ("I", 4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHH" if big else "H"), *((43, 8, 0) if big else (42,))
    )
    body, starts = bytearray(head + bytes(size)), []
    body += bytes(range(96))
    links = [len(head)]
    for entries in directories:
        packed = []
        for tag, kind, value, count in sorted(entries, key=lambda one: one[0]):
            letters = LETTERS.get(kind, "I")
            if isinstance(value, str | bytes):
                raw = value if isinstance(value, bytes) else value.encode()
            else:
                whole = letters in ("f", "d")
                numbers = [n if whole else n % 256 ** struct.calcsize(order + letters[0]) for n in value]
                raw = b"".join(_packed(order, letters, n) for n in numbers)
            own = count if count is not None else len(raw) // max(1, struct.calcsize(order + letters))
            if len(raw) > size:
                place = len(body)
                body += raw + bytes(len(raw) % 2)
                raw = struct.pack(order + word, place)
            packed.append(
                struct.pack(order + "HH" + word, tag, kind, own % 256**size) + raw.ljust(size, b"\0")
            )
        struct.pack_into(order + word, body, links[-1], len(body))
        starts.append(len(body))
        body += struct.pack(order + ("Q" if big else "H"), len(packed)) + b"".join(packed)
        links.append(len(body))
        body += bytes(size)
    if chain is not None:
        struct.pack_into(order + word, body, links[-1], starts[chain % len(starts)])
    return bytes(body)


def _packed(order: str, letters: str, number: float) -> bytes:
    if letters in ("b", "h", "i", "q", "ii"):
        half = 256 ** struct.calcsize(order + letters[0]) // 2
        number = (number + half) % (2 * half) - half
    return struct.pack(order + letters, *([number] * len(letters)))


@st.composite
def entries(draw: st.DrawFn, sound: dict[int, Entry]) -> list[Entry]:
    """The tags of a sound picture with some replaced, lost, added or doubled."""
    tags = dict(sound)
    for _ in range(draw(st.integers(0, 4))):
        tag = draw(st.sampled_from(sorted(tags) or [256]) | st.sampled_from(TAGS))
        if draw(st.integers(0, 5)) == 0:
            tags.pop(tag, None)
            continue
        kind = draw(st.sampled_from((tags[tag][1] if tag in tags else 3, 3, 4, 2, *LETTERS, 99)))
        value = draw(st.lists(NUMBERS, max_size=6) | st.binary(max_size=20))
        if tag == 270 or kind == 2:
            value = draw(st.sampled_from(TEXTS))
        count = draw(st.none() | st.none() | SIZES)
        tags[tag] = (tag, kind, value, count)
    doubled = [
        tags[tag] for tag in draw(st.lists(st.sampled_from(sorted(tags) or [0]), max_size=1)) if tag in tags
    ]
    return [*tags.values(), *doubled]


GRAY = {
    tag: (tag, kind, value, None)
    for tag, kind, value in (
        (256, 4, [4]),
        (257, 4, [4]),
        (258, 3, [8]),
        (259, 3, [1]),
        (262, 3, [1]),
        (273, 4, [16]),
        (277, 3, [1]),
        (278, 4, [4]),
        (279, 4, [16]),
        (282, 5, [3]),
        (296, 3, [2]),
        (270, 2, "x"),
    )
}
RGB = {
    **GRAY,
    **{
        tag: (tag, kind, value, None)
        for tag, kind, value in (
            (258, 3, [8, 8, 8]),
            (262, 3, [2]),
            (277, 3, [3]),
            (279, 4, [48]),
            (284, 3, [1]),
        )
    },
}
TILES = {
    **{tag: one for tag, one in GRAY.items() if tag not in (273, 278, 279)},
    **{tag: (tag, 4, value, None) for tag, value in ((322, [16]), (323, [16]), (324, [16]), (325, [64]))},
}


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    pages = draw(st.lists(st.sampled_from((GRAY, RGB, TILES)).flatmap(entries), min_size=1, max_size=3))
    order, big = draw(st.sampled_from("<>")), draw(st.booleans())
    content = bytearray(tiff(pages, order, big, draw(st.none() | st.integers(0, 2))))
    if draw(st.integers(0, 3)) == 0:  # directories inside a directory, which may lead back to it
        first = int.from_bytes(content[8:16] if big else content[4:8], "little" if order == "<" else "big")
        loop = (
            330,
            draw(st.sampled_from((4, 13, 16))),
            [draw(st.sampled_from((first, 8, 10**6)))] * draw(st.integers(1, 3)),
            None,
        )
        content = bytearray(tiff([[*page, loop] for page in pages], order, big))
    return bytes(content)


def test_the_tiff_that_is_changed_is_sound():
    for page, order, big in ((GRAY, "<", False), (RGB, ">", False), (GRAY, ">", True)):
        assert decode_image(tiff([list(page.values())], order, big), Path("a.tif")).shape == (4, 4, 3)


@fuzzed(120)
@given(tiffs(), st.sampled_from((".tif", ".tiff", ".svs", ".jpg")))
def test_tiff_with_any_tags(content, suffix):
    look(content, suffix)


# --- PNG ---------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


EXIF = tiffs() | st.sampled_from(
    (b"", b"II*\0", b"MM\0*" + b"\xff" * 8, b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 90)
)


BOMB = zlib.compress(bytes(20_000_000))


@st.composite
def pngs(draw: st.DrawFn) -> bytes:
    depth, color = (
        draw(st.sampled_from((1, 2, 4, 8, 8, 8, 16, 3, 255))),
        draw(st.sampled_from((0, 2, 3, 4, 6, 5))),
    )
    width, height = draw(st.sampled_from((1, 8, 9)) | SIZES), draw(st.sampled_from((1, 8, 9)) | SIZES)
    interlaced = draw(st.sampled_from((0, 0, 0, 1, 7)))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    row = 1 + (min(width, 300) * channels * depth + 7) // 8
    rows = draw(st.sampled_from((b"\0", b"\1", b"\4", b"\x09"))) + draw(st.binary(max_size=30)).ljust(
        row - 1, b"\x7f"
    )
    raw = rows * min(height, 300) * draw(st.sampled_from((1, 1, 1, 0, 2)))
    packed = zlib.compress(raw, draw(st.sampled_from((0, 6))))
    header = struct.pack(
        ">IIBBBBB", width, height, depth, color, 0, draw(st.sampled_from((0, 0, 1))), interlaced
    )
    whole = {
        "IHDR": chunk(b"IHDR", header),
        "PLTE": chunk(b"PLTE", draw(st.binary(max_size=9)) * draw(st.sampled_from((0, 1, 100)))),
        "tRNS": chunk(b"tRNS", draw(st.binary(max_size=300))),
        "iCCP": chunk(b"iCCP", b"a\0\0" + draw(st.sampled_from((b"", b"x", zlib.compress(b"x"), BOMB)))),
        "zTXt": chunk(b"zTXt", b"a\0\0" + draw(st.sampled_from((b"x", zlib.compress(b"x"), BOMB)))),
        "iTXt": chunk(b"iTXt", b"a\0\1\0\0\0" + draw(st.binary(max_size=20))),
        "eXIf": chunk(b"eXIf", draw(EXIF)),
        "pHYs": chunk(b"pHYs", draw(st.binary(max_size=9))),
        "acTL": chunk(b"acTL", struct.pack(">II", draw(SIZES), 0)),
        "fcTL": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 0, 0)),
        "sBIT": chunk(b"sBIT", draw(st.binary(max_size=5))),
        "gAMA": chunk(b"gAMA", draw(st.binary(max_size=4))),
        "IDAT": chunk(b"IDAT", packed),
        "cut": chunk(b"IDAT", packed[: len(packed) // 2]),
        "IEND": chunk(b"IEND", b""),
    }
    order = ["IHDR", *(["PLTE"] if color == 3 and draw(st.integers(0, 3)) else []), "IDAT", "IEND"]
    for name in draw(st.lists(st.sampled_from(sorted(whole)), max_size=3)):
        order.insert(draw(st.integers(1, len(order))), name)
    if draw(st.integers(0, 4)) == 0:
        order.pop(draw(st.integers(0, len(order) - 1)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole[name] for name in order)


@fuzzed(120)
@given(pngs(), st.sampled_from((".png", ".jpg", ".tif")))
def test_png_of_any_chunks(content, suffix):
    look(content, suffix)


# --- JPEG and others ---------------------------------------------------------------------------------------


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """A JPEG with more segments in front of its own, another size, or less data than it says."""
    kind = draw(st.sampled_from(("exif", "progressive", "restarts", "inks")))
    content = sound()[f"JPEG {kind}"]
    segments = []
    for _ in range(draw(st.integers(0, 3))):
        marker, inside = draw(
            st.sampled_from(
                (
                    (0xE1, b"Exif\0\0" + draw(EXIF)),
                    (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"),
                    (0xE0, b"JFIF\0\1\1" + draw(st.binary(max_size=9))),
                    (0xEE, b"Adobe" + draw(st.binary(max_size=8))),
                    (0xE2, b"ICC_PROFILE\0" + draw(st.binary(max_size=9))),
                    (0xE2, b"MPF\0" + draw(EXIF)),
                    (0xED, b"Photoshop 3.0\0" + b"8BIM" + draw(st.binary(max_size=30))),
                    (0xFE, draw(st.binary(max_size=30))),
                    (0xDD, draw(st.binary(max_size=3))),
                    (0xC4, draw(st.binary(max_size=30))),
                    (0xDB, draw(st.binary(max_size=66))),
                    (0xDC, draw(st.binary(max_size=3))),
                    (0xCC, b"\0\x10"),
                )
            )
        )
        length = len(inside[:65_000]) + 2 if draw(st.integers(0, 5)) else draw(st.integers(0, 65_535))
        segments.append(struct.pack(">BBH", 0xFF, marker, length) + inside[:65_000])
    content = bytearray(content[:2] + b"".join(segments) + content[2:])
    frame = max(content.rfind(b"\xff\xc0\0"), content.rfind(b"\xff\xc2\0"))
    if frame > 0 and draw(st.booleans()):
        struct.pack_into(
            ">BHH",
            content,
            frame + 4,
            draw(st.sampled_from((8, 8, 8, 12, 16))),
            draw(SIZES) % 65_536,
            draw(SIZES) % 65_536,
        )
    if draw(st.integers(0, 3)) == 0:
        content[frame + 1] = draw(st.sampled_from((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xF7)))
    scan = content.rfind(b"\xff\xda")
    if draw(st.integers(0, 2)) == 0:
        content[scan:] = content[scan:-2] * draw(st.sampled_from((1, 30, 3000))) + b"\xff\xd9"
    if draw(st.integers(0, 2)) == 0:
        content[draw(st.integers(scan, len(content))) :] = draw(
            st.sampled_from((b"\xff\xd9", b"", b"\xff\xfe\0\2\xff\xd9", b"\xff\xd9" + bytes(999)))
        )
    return bytes(content)


@fuzzed(60)
@given(jpegs(), st.sampled_from((".jpg", ".png", ".tif")))
def test_jpeg_of_any_segments(content, suffix):
    look(content, suffix)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Files of the other formats whose headers claim any size, with little behind."""
    width, height, rest = draw(SIZES), draw(SIZES), draw(st.binary(max_size=60))
    bits = draw(st.sampled_from((0, 1, 4, 8, 16, 24, 32, 64)))
    canvas = (width - 1) % 2**24 | (height - 1) % 2**24 << 24
    box = struct.pack(
        ">IIHBBBB",
        height,
        width,
        draw(st.sampled_from((1, 3, 4, 65_535))),
        draw(st.integers(0, 255)),
        7,
        0,
        0,
    )
    jp2 = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0-jp2h\0\0\0\x16ihdr" + box
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, width, height, 0, 0, *([draw(SIZES)] * 2), 0, 0, 1) + b"\7\1\1"
    low, tall = width % 2**16, height % 2**16
    heads = (
        b"BM" + bytes(8) + struct.pack("<IIiiHH", 54, 40, width % 2**31, -(height % 2**31), 1, bits)
        + struct.pack("<IIiiII", draw(st.integers(0, 4)), 0, 0, 0, draw(SIZES), 0),
        b"GIF89a" + struct.pack("<HH", low, tall) + b"\x80\0\0" + bytes(6) + b",\0\0\0\0"
        + struct.pack("<HH", low, tall) + b"\0\2",
        b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + canvas.to_bytes(6, "little"),
        b"RIFF\xff\0\0\0WEBPVP8L\x10\0\0\0\x2f" + struct.pack("<I", low % 2**14 | tall % 2**14 << 14),
        jp2 + b"\0\0\0\x0fcolr\1\0\0\0\0\0\x10\0\0\0\0jp2c\xff\x4f\xff\x51" + siz,
        b"\xff\x4f\xff\x51" + siz,
        *(b"%s %d %d %d\n" % (kind, width, height, draw(SIZES))
          for kind in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"P0", b"Py")),
    )  # fmt: skip
    return draw(st.sampled_from(heads)) + rest


@fuzzed(80)
@given(headers(), SUFFIXES)
def test_headers_of_any_size(content, suffix):
    look(content, suffix)
