"""Reading images: every format a microscope saves, and every way a file can be broken."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ssdlib.common.errors import DataError, SsdError
from ssdlib.data import images
from ssdlib.data.images import image_size, list_images, read_image, write_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), np.uint8)
GREY = RNG.integers(0, 256, (24, 32), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", RGB)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), RGB)


def test_jpeg_equals_opencv_and_header_gives_the_size(tmp_path):
    write_image(tmp_path / "a.JPG", RGB)
    assert np.array_equal(read_image(tmp_path / "a.JPG"), cv2.imread(str(tmp_path / "a.JPG"))[..., ::-1])
    assert image_size(tmp_path / "a.JPG") == (32, 24)


def test_gray_gets_three_equal_channels(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["gray", "rgb"])
def test_sixteen_bits_are_scaled_from_the_depth_in_use(tmp_path, bits, suffix, pixels):
    deep = pixels.astype(np.uint16) << (bits - 8)
    deep.flat[0] = (1 << bits) - 1
    bgr = deep if deep.ndim == 2 else np.ascontiguousarray(deep[..., ::-1])
    cv2.imwrite(str(tmp_path / f"a{suffix}"), bgr)
    expected = (deep >> (bits - 8)).astype(np.uint8)
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, -1)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), expected)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((24, 32, 1), np.uint8)
    alpha[:, 16:] = 255
    Image.fromarray(np.concatenate([RGB, alpha], -1)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image[:, :16] == 255).all()
    assert np.array_equal(image[:, 16:], RGB[:, 16:])


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("hides", ["half", "all"])
def test_sixteen_bit_alpha_is_laid_on_white_unless_it_hides_everything(tmp_path, channels, hides):
    colors = RGB if channels == 4 else GREY[..., None]
    alpha = np.zeros((24, 32, 1), np.uint8)
    if hides == "half":
        alpha[:, 16:] = 255
    deep = np.concatenate([colors, alpha], -1).astype(np.uint16) * 257
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image[:, 16:], np.broadcast_to(colors, RGB.shape)[:, 16:])
    expected = np.full_like(RGB, 255) if hides == "half" else np.broadcast_to(colors, RGB.shape)
    assert np.array_equal(image[:, :16], expected[:, :16])


def test_alpha_that_hides_everything_is_no_alpha(tmp_path):
    Image.fromarray(np.concatenate([RGB, np.zeros((24, 32, 1), np.uint8)], -1)).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)


def test_sixteen_bit_pgm(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.pgm")
    assert np.array_equal(read_image(tmp_path / "a.pgm"), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("suffix", images.IMAGE_SUFFIXES)
def test_what_is_found_in_folders_can_be_read(tmp_path, suffix):
    formats = {".jpe": "JPEG", ".jfif": "JPEG", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".svs": "TIFF"}
    picture = Image.fromarray(GREY if suffix == ".pgm" else RGB)
    picture.save(tmp_path / f"a{suffix.upper()}", format=formats.get(suffix))
    assert list_images(tmp_path) == [tmp_path / f"a{suffix.upper()}"]
    assert read_image(tmp_path / f"a{suffix.upper()}").shape == RGB.shape


@pytest.mark.parametrize("kind", ["EPS", "ICNS", "DDS", "TGA", "PCX", "PDF", "SGI", "ICO"])
def test_formats_that_nobody_asked_for_are_not_opened_by_any_name(tmp_path, kind, monkeypatch):
    picture = Image.new("RGB", (64, 64))
    picture.save(tmp_path / "a.jpg", format=kind)

    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    with pytest.raises(DataError, match=r"a\.jpg is not an image"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path, "/dev/zero"):
        with pytest.raises(DataError, match=str(path)):
            read_image(path)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (3, 1, b"\0\0"),
        (3, 1, b"\x09\0"),
        (3, 1, b"\xff\xff"),
        (2, 2, b"6\0"),
        (5, 1, b"\x99\x99"),
        (99, 1, b"6"),
    ],
)
def test_an_orientation_that_makes_no_sense_is_none(tmp_path, kind, count, value):
    entry = struct.pack("<HHI4s", 0x0112, kind, count, value)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)


def test_palette_and_cmyk(tmp_path):
    Image.fromarray(RGB).quantize(16).save(tmp_path / "a.png")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.png").shape == read_image(tmp_path / "a.jpg").shape == (24, 32, 3)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert image_size(tmp_path / "a.png") == (24, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    write_image(path, RNG.integers(0, 256, (200, 200, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=f"cut{suffix}"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}],
    ids=str,
)
def test_a_jpeg_whose_data_end_before_its_end_mark_is_refused(mode, options):
    stream = io.BytesIO()
    picture = Image.fromarray(RNG.integers(0, 256, (150, 200, 3), np.uint8)).convert(mode)
    picture.save(stream, "JPEG", **options)
    content = stream.getvalue()
    Image.open(stream)
    begin, end = stream.tell(), b"\xff\xd9"
    whole = images.decode_image(content, Path("a.jpg"))
    for behind in (b"x", content, end, content[:2000] + end):
        assert np.array_equal(images.decode_image(content + behind, Path("a.jpg")), whole)
    for share in (0.0, 0.2, 0.9):
        cut = content[: begin + int(share * (len(content) - begin))]
        for tail in (end, b"\xff\xfe\0\3x" + end, end + content):
            with pytest.raises(DataError, match=r"a\.jpg is truncated"):
                images.decode_image(cut + tail, Path("a.jpg"))


def test_a_gray_corner_is_not_taken_for_missing_data():
    picture = np.full((64, 64, 3), 128, np.uint8)
    assert (images.decode_image(images.encode_image(picture), Path("a.jpg")) == 128).all()


def test_what_pillow_warns_of_is_not_printed(tmp_path):
    exif = (
        b"Exif\0\0II*\0"
        + struct.pack("<IH", 8, 1)
        + struct.pack("<HHI4s", 0x0112, 5, 1, b"\x99\x99")
        + bytes(4)
    )
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    code = f"from ssdlib.data.images import read_image; read_image({str(tmp_path / 'a.png')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"format": "PNG"}, 100), ({"format": "JPEG"}, 100), ({"format": "JPEG", "progressive": True}, 50),
     ({"format": "WEBP"}, 50), ({"format": "TIFF"}, 100)],
)  # fmt: skip
def test_what_needs_more_memory_a_pixel_may_have_fewer(monkeypatch, options, limit):
    stream = io.BytesIO()
    Image.new("RGB", (10, limit // 10)).save(stream, **options)
    for most, fits in ((100, True), (98, False)):
        monkeypatch.setattr(images, "MAX_PIXELS", most)
        if fits:
            assert images.decode_image(stream.getvalue(), Path("a")).shape == (limit // 10, 10, 3)
        else:
            with pytest.raises(DataError, match="more than"):
                images.decode_image(stream.getvalue(), Path("a"))


@pytest.mark.parametrize("read", [read_image, image_size])
def test_missing_and_foreign_files_are_refused(tmp_path, read):
    with pytest.raises(DataError, match="no image"):
        read(tmp_path / "none.jpg")
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(DataError, match=r"page\.jpg is not an image"):
        read(tmp_path / "page.jpg")


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_decompression_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch, read):
    write_image(tmp_path / "a.png", RGB)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32 - 1)
    with pytest.raises(DataError, match="32 x 24"):
        read(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large"):
        read(tmp_path / "a.png")


def test_a_line_without_end_is_refused_by_its_header():
    line = Path(__file__).parent / "line.png"
    chunk = struct.pack(">IIBBBBB", 1, 90_000_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + chunk
    head += struct.pack(">I", zlib.crc32(b"IHDR" + chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    with pytest.raises(DataError, match="65,535 pixels on a side"):
        images.decode_image(head, line)


def test_float_images_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


def test_writing_refuses_unknown_formats_and_shapes(tmp_path):
    with pytest.raises(SsdError, match="end the name"):
        write_image(tmp_path / "a.xyz", RGB)
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "a.png", GREY)
    assert not list(tmp_path.iterdir())


def test_list_images_is_sorted_and_only_images(tmp_path):
    assert list_images(tmp_path) == []
    for name in ("b.jpg", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in list_images(tmp_path)] == ["a.PNG", "b.jpg"]
