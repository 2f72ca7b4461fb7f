"""Files of strangers: each is refused in words or read, whatever is in it and whatever it is called."""

import struct
import zlib

import numpy as np
import pytest

from ssdlib.common.errors import DataError
from ssdlib.data.images import encode_image
from ssdlib.tools.app.uploads import Limits, decode_upload, read_upload, safe_name


def png(width, height, rows=b""):
    """A PNG that claims a size and holds the compressed rows given."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has not arrived"),
        (b"", "is empty"),
        (b"not an image", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not an image"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encode_image(np.zeros((900, 900, 3), np.uint8))[:1500], "truncated or damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "not an image"),
        (png(7000, 9000, zlib.compress(bytes(10**6))), "7000 x 9000"),
        (png(60_000, 60_000), "megapixels"),
        (png(2**31 - 1, 2**31 - 1), "megapixels"),
        (png(300, 300, zlib.compress(bytes(1000))), "truncated or damaged"),
        (png(0, 0), "hostile"),
        (b"II*\x00" + struct.pack("<I", 2**32 - 1), "hostile"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(60), "hostile"),
        (bytes(2001), "larger than"),
    ],
)
def test_hostile_files_are_refused_in_words(tmp_path, content, said):
    path = tmp_path / "arrived"
    if content is not None:
        path.write_bytes(content)
    limits = Limits(file_bytes=2000)
    with pytest.raises(DataError, match=said) as refused:
        decode_upload(read_upload(path, "hostile.png", limits), limits)
    assert str(refused.value).startswith("hostile.png") and str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["._field.jpg", ".hidden.png", "Thumbs.db"])
def test_what_systems_leave_beside_images_is_passed_over_with_a_word(tmp_path, name):
    path = tmp_path / "arrived"
    path.write_bytes(encode_image(np.zeros((90, 90, 3), np.uint8)))
    with pytest.raises(DataError, match="hidden file"):
        read_upload(path, name, Limits())


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("", "image"),
        ("..", "image"),
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\smear.jpg", "smear.jpg"),
        ("a\x00b\x1b[31m\u202egnp.exe", "ab[31mgnp.exe"),
        ("Blutbild µ 1.tif", "Blutbild µ 1.tif"),
        ("x" * 300 + ".png", "x" * 60 + "…" + "x" * 15 + ".png"),
    ],
)
def test_names_are_harmless(name, safe):
    assert safe_name(name) == safe
