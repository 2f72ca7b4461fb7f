"""TIFF as microscopes and their programs write it: the picture that was written comes back."""

import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from ssdlib.common.errors import DataError
from ssdlib.data.formats.records import LabeledImage
from ssdlib.data.images import fields_in, image_size, read_image, read_um_per_pixel, to_eight_bits

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 64, 3), np.uint8)
GRAY = RNG.integers(0, 256, (40, 64), np.uint8)
THREE = np.stack([GRAY] * 3, -1)
LOSSLESS = (None, "lzw", "zlib", "packbits", "lzma", "zstd")


def field_like(seed: int = 0, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A light field with darker cells, (H, W, 3) uint8."""
    rng, (height, width) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 205.0)
    for _ in range(12):
        cy, cx = rng.integers(10, height - 10), rng.integers(10, width - 10)
        image[(y - cy) ** 2 + (x - cx) ** 2 < 64] = (190, 120, 120)
    return (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_combination_comes_back_as_it_was_written(tmp_path, compression, bits):
    shapes = {"rgb": RGB, "minisblack": GRAY, "miniswhite": GRAY}
    options = itertools.product(shapes, ("contig", "separate"), "<>", (None, (16, 32)), (False, True))
    for photometric, planar, order, tile, big in options:
        pixels = shapes[photometric]
        if pixels.ndim == 2 and planar == "separate":
            continue
        stored = pixels if bits == 8 else pixels.astype(np.uint16) << (bits - 8)
        written = (2**bits - 1) - stored if photometric == "miniswhite" else stored
        written = np.moveaxis(written, -1, 0) if planar == "separate" else written
        config = {"planarconfig": planar} if pixels.ndim == 3 else {}
        tifffile.imwrite(
            tmp_path / "a.tif",
            written.astype(stored.dtype),
            photometric=photometric,
            compression=compression,
            byteorder=order,
            tile=tile,
            bigtiff=big,
            metadata=None,
            predictor=compression in ("lzw", "zlib", "zstd") and tile is None,
            **config,
        )
        expected = pixels if pixels.ndim == 3 else THREE
        assert np.array_equal(read_image(tmp_path / "a.tif"), expected), (photometric, planar, order, tile)
        assert image_size(tmp_path / "a.tif") == (64, 40)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp", "jpegxl"])
def test_other_codecs_come_near(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", field_like(), photometric="rgb", compression=compression)
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - field_like()).mean() < 3


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw"])
def test_colors_of_other_programs_are_those_that_they_see(tmp_path, mode, compression):
    image = Image.fromarray(field_like())
    image = image.quantize(16) if mode == "P" else Image.new("LAB", (160, 120), (150, 140, 130))
    image = Image.fromarray(field_like()).convert(mode) if mode not in ("P", "LAB") else image
    image.save(tmp_path / "a.tif", compression=compression)
    with Image.open(tmp_path / "a.tif") as again:
        expected = np.array(again.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.tif") - expected).max() <= 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk_of_16_bits(tmp_path, planar):
    image = Image.fromarray(field_like()).convert("CMYK")
    inks = np.array(image).astype(np.uint16) * 257
    inks = np.moveaxis(inks, -1, 0) if planar == "separate" else inks
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated", planarconfig=planar)
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_is_laid_on_white_unless_it_hides_everything(tmp_path, dtype, kind):
    scale = 257 if dtype == np.uint16 else 1
    rgb, alpha = field_like(), np.zeros((120, 160), np.uint8)
    alpha[:, 80:] = 255
    for hidden in (alpha, np.zeros_like(alpha)):
        pixels = np.dstack([rgb, hidden]).astype(dtype) * scale
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind])
        image = read_image(tmp_path / "a.tif")
        assert np.array_equal(image[:, 80:], rgb[:, 80:])
        left = np.full_like(rgb[:, :80], 255) if hidden.any() and kind == "unassalpha" else rgb[:, :80]
        assert np.array_equal(image[:, :80], left) or kind == "assocalpha"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_exif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(
        tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], metadata=None
    )
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_image(tmp_path / name), expected)
        assert image_size(tmp_path / name) == expected.shape[1::-1]


# --- 16 bits ---------------------------------------------------------------------------------------------


def twelve() -> np.ndarray:
    return field_like().astype(np.uint16) << 4


@pytest.mark.parametrize("fault", ["none", "hot pixel", "scale bar", "saturated bar", "dust"])
def test_a_field_looks_the_same_whatever_is_brightest_in_it(tmp_path, fault):
    pixels = twelve()
    if fault == "hot pixel":
        pixels[5, 5] = 4096
    elif fault != "none":
        pixels[100:104, 20:80] = {"scale bar": 65535, "saturated bar": 4095, "dust": 0}[fault]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib")
    image = read_image(tmp_path / "a.tif").astype(int)
    assert np.array_equal(image[:95], np.where(pixels[:95] < 4096, pixels[:95] >> 4, 255))


@pytest.mark.parametrize("brightest", [300, 900, 5000, 9000, 30_000, 65_535])
def test_a_camera_that_does_not_use_its_range_gives_a_light_field(tmp_path, brightest):
    pixels = (field_like() / 215 * brightest).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    light, was = np.percentile(read_image(tmp_path / "a.tif"), 95), np.percentile(field_like(), 95)
    assert 0.87 * was <= light <= 1.2 * was


def test_black_and_empty_do_not_divide_by_zero():
    assert not to_eight_bits(np.zeros((4, 4, 3), np.uint16)).any()


# --- several pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("program", ["ome", "imagej"])
def test_red_green_and_blue_as_pages_are_one_picture(tmp_path, program, dtype):
    planes = np.moveaxis(field_like(), -1, 0).astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = tmp_path / ("a.ome.tif" if program == "ome" else "a.tif")
    options = {"ome": True} if program == "ome" else {"imagej": True}
    tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CYX"}, **options)
    assert fields_in(path) == [path]
    assert np.array_equal(read_image(path), field_like())


def test_channels_named_blue_green_red_are_put_in_order(tmp_path):
    planes = np.moveaxis(field_like()[..., ::-1], -1, 0)
    about = {"axes": "CYX", "Channel": {"Name": ["Blue", "Green", "Red"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", metadata=about, ome=True)
    assert np.array_equal(read_image(tmp_path / "a.ome.tif"), field_like())


def test_a_stack_of_color_fields_gives_each(tmp_path):
    planes = np.stack([np.moveaxis(field_like(seed), -1, 0) for seed in range(4)])
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", metadata={"axes": "TCYX"})
    paths = fields_in(tmp_path / "a.ome.tif")
    assert [path.name for path in paths] == [f"a.ome.tif[{k}]" for k in range(1, 5)]
    for seed, path in enumerate(paths):
        assert np.array_equal(read_image(path), field_like(seed))


@pytest.mark.parametrize("place", ["before", "behind", "below"])
def test_a_thumbnail_is_passed_over(tmp_path, place):
    small = field_like()[::4, ::4]
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        if place == "before":
            out.write(small, photometric="rgb")
        out.write(field_like(), photometric="rgb", subifds=int(place == "below"))
        if place != "before":
            out.write(small, photometric="rgb", subfiletype=int(place == "below"))
    assert fields_in(tmp_path / "a.tif") == [tmp_path / "a.tif"]
    assert np.array_equal(read_image(tmp_path / "a.tif"), field_like())


def test_the_field_may_lie_below_its_thumbnail(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(field_like()[::8, ::8], photometric="rgb", subifds=1)
        out.write(field_like(), photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "a.tif"), field_like())
    assert image_size(tmp_path / "a.tif") == (160, 120)


def test_two_fields_are_two_pictures(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        for seed in (1, 2):
            out.write(field_like(seed), photometric="rgb")
    first, second = fields_in(tmp_path / "a.tif")
    assert np.array_equal(read_image(first), field_like(1))
    assert np.array_equal(read_image(tmp_path / "a.tif"), field_like(1))
    assert np.array_equal(read_image(second), field_like(2))
    with pytest.raises(DataError, match="has 2 pictures"):
        read_image(tmp_path / "a.tif[3]")


def test_labels_of_a_file_with_two_fields_say_that_one_is_used(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        for seed in (1, 2):
            out.write(field_like(seed), photometric="rgb")
    image = LabeledImage(tmp_path / "a.tif", tmp_path / "a.txt")
    assert image.measure()
    assert [str(finding) for finding in image.findings] == [
        f"{tmp_path / 'a.tif'} holds 2 pictures: the first is used. "
        "Save the others as files of their own to make use of them."
    ]


# --- what cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.float16])
def test_what_has_no_8_or_16_bits_is_refused_with_a_remedy(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(dtype))
    with pytest.raises(DataError, match=r"a\.tif.* save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_refused(tmp_path, compression, share):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression=compression, rowsperstrip=8)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


def test_signed_numbers_are_read_as_unsigned_ones_and_refused_if_cut_off(tmp_path):
    pixels = (field_like().astype(np.int16) << 4).astype(np.int16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib", rowsperstrip=8)
    assert np.array_equal(read_image(tmp_path / "a.tif"), field_like())
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match="its end is missing"):
        read_image(tmp_path / "a.tif")


def test_damage_in_any_place_is_a_data_error_or_a_picture(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(RGB, photometric="rgb", compression="zlib", metadata=None)
        out.write(GRAY, photometric="minisblack", compression="lzw", metadata=None)
    content, rng = (tmp_path / "a.tif").read_bytes(), np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) if rng.random() < 0.5 else 400, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.tif").write_bytes(damaged)
        for read in (read_image, image_size, read_um_per_pixel, fields_in):
            try:
                read(tmp_path / "a.tif")
            except DataError as error:
                assert "a.tif" in str(error)


@pytest.mark.parametrize(("pages", "back_to"), [(1, 0), (3, 0), (3, 1), (150, 0)])
def test_pages_that_lead_back_to_one_another_end(tmp_path, pages, back_to):
    path = tmp_path / "ring.tif"
    tifffile.imwrite(path, np.zeros((pages, 8, 8), np.uint8), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as written:
        first, last = written.pages[back_to].offset, written.pages[-1].offset
    content = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", content, last)
    struct.pack_into("<I", content, last + 2 + 12 * tags, first)  # where the next picture is
    path.write_bytes(content)
    assert fields_in(path) == [path]
    with pytest.raises(DataError, match=r"ring\.tif.*lead back to one another"):
        read_image(path)
