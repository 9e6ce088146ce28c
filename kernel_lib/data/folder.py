"""What lies in a data folder: radiographs, mask images and CSV tables."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kernel_lib.data.images import DICOM_SUFFIXES, SUFFIXES, image_id, is_image
from kernel_lib.errors import InputError

# dicom-images-train/<study>/<series>/<image>.dcm, and a folder or two around it.
MAX_DEPTH = 6
MAX_TABLE_DEPTH = 2
# A folder this barren is somebody's home or a whole disk, not a data set.
MAX_FOLDERS_WITHOUT_IMAGE = 3000
MASK_FOLDERS = ("masks", "mask")
TEST_FOLDER = re.compile(r"(^|[-_ ])test([-_ ]images)?$|^stage_2_images$", re.IGNORECASE)
# The same image in several formats: DICOM knows the patient, PNG loses nothing, JPEG does.
PREFERENCE = (*DICOM_SUFFIXES, ".png", ".jpg", ".jpeg")


@dataclass
class Listing:
    """Files under a root, each kind in order of name."""

    root: Path
    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)

    def is_test(self, path: Path) -> bool:
        """Whether the file lies in a folder for test images, by the folder's name."""
        folders = path.relative_to(self.root).parts[:-1]
        return any(TEST_FOLDER.search(name) and "train" not in name.lower() for name in folders)


def survey(data_dir: Path, by_content: bool = False) -> Listing:
    """List a data folder, to the depth of an archive unpacked into a folder of its own.

    With `by_content` files of any other ending are opened, and listed where they are images.
    Errors: InputError where there is no such folder, or it is far too large for a data set.
    """
    if not data_dir.exists():
        raise InputError(f"DATA_DIR {data_dir} does not exist: check the path")
    if not data_dir.is_dir():
        raise InputError(f"DATA_DIR {data_dir} is a file: unpack it and give the folder")
    listing = Listing(data_dir.resolve())
    _walk(listing, by_content)
    return listing


def one_path_an_id(
    paths: Iterable[Path], id_of: Callable[[Path], str] = image_id
) -> tuple[dict[str, Path], int]:
    """The preferred file of each id, and how many ids have files of more than one format.

    Errors: InputError where two files of one format and id differ.
    """
    chosen: dict[str, Path] = {}
    in_two_formats = set()
    for path in sorted(paths, key=_preference):
        name = id_of(path)
        first = chosen.setdefault(name, path)
        if first == path:
            continue
        if first.suffix.lower() != path.suffix.lower():
            in_two_formats.add(name)
        elif not filecmp.cmp(first, path, shallow=False):
            raise InputError(
                f"image {name} is there twice, with differing content: {first} and {path}; "
                "remove one"
            )
    return dict(sorted(chosen.items())), len(in_two_formats)


def _preference(path: Path) -> int:
    """Return the rank of a file's format; one that its name does not tell is mostly DICOM."""
    suffix = path.suffix.lower()
    return PREFERENCE.index(suffix) if suffix in PREFERENCE else 0


def _walk(listing: Listing, by_content: bool) -> None:
    # Depth first, so that images turn up soon in a folder of many thousand folders.
    waiting = [(listing.root, 0, False)]
    barren = 0
    while waiting:
        folder, depth, of_masks = waiting.pop()
        barren += 1
        for entry in _entries(folder):
            suffix = _suffix(entry.name)
            if entry.is_dir():
                if depth < MAX_DEPTH:
                    masks = of_masks or entry.name.lower() in MASK_FOLDERS
                    waiting.append((Path(entry.path), depth + 1, masks))
            elif suffix in SUFFIXES or (by_content and suffix != ".csv" and is_image(entry.path)):
                (listing.masks if of_masks else listing.images).append(Path(entry.path))
                barren = 0
            elif suffix == ".csv" and depth <= MAX_TABLE_DEPTH:
                listing.tables.append(Path(entry.path))
        if barren > MAX_FOLDERS_WITHOUT_IMAGE:
            raise InputError(
                f"DATA_DIR {listing.root}: {barren:,} folders in a row without an image; give the "
                "data's own folder"
            )
    for paths in (listing.images, listing.masks, listing.tables):
        paths.sort()


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{folder} can't be listed: {error.strerror or error}") from error
    return sorted(found, key=lambda entry: entry.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
