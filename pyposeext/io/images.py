"""Still images: any file Pillow reads, as RGB uint8 [H, W, 3], turned upright by its EXIF orientation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pyposeext.errors import InputError
from pyposeext.io.atomic import PendingFile

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(source: str | Path | bytes) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of an image file, or of an encoded image given as bytes.

    The EXIF orientation is applied, transparency is dropped, and 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: no such file, not an image, or an image that is damaged.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        source = Path(source)
        if not source.exists():
            raise InputError(f"no such file: {source}")
        if source.is_dir():
            raise InputError(f"{source} is a folder, expected an image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                grey = np.clip(np.asarray(upright, dtype=np.int64) // 257, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as an image: {error}") from error


def write_image(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write RGB uint8 [H, W, 3] as the format that the suffix of `path` names, whole or not at all."""
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise InputError(f"path must end in an image suffix such as .png or .jpg, got {path.name!r}")
    pending = PendingFile(path)
    try:
        Image.fromarray(image).save(pending.temporary, format=kind, **({"quality": 92} if kind == "JPEG" else {}))
        pending.commit()
    finally:
        pending.discard()


def list_images(folder: str | Path) -> list[Path]:
    """The image files in a folder by their suffix, sorted by name, or an InputError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no images (looked for {', '.join(IMAGE_SUFFIXES)})")
    return paths
