"""Reading, writing and listing images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pyposeext.errors import InputError
from pyposeext.io.images import list_images, read_image, write_image

PICTURE = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)


def test_written_images_are_read_again(tmp_path):
    write_image(tmp_path / "a.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)
    np.testing.assert_array_equal(read_image((tmp_path / "a.png").read_bytes()), PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (6, 9, 3)
    assert image.dtype == np.uint8


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 100, 255]


def test_what_is_no_image_is_one_sentence(tmp_path):
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(encoded, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(encoded.getvalue()[:-300])
    (tmp_path / "text.jpg").write_text("text")
    for place, sentence in (
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.jpg", "is not an image"),
        (tmp_path / "cut.jpg", "cannot be read as an image"),
        (b"text", "the image is not an image"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_image(place)


def test_images_are_listed_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.txt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        list_images(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "nowhere")


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match="must end in an image suffix"):
        write_image(tmp_path / "a.xyz", PICTURE)
