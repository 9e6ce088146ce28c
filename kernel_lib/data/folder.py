"""What lies in a data folder: radiographs, mask images and CSV tables."""

from __future__ import annotations

import filecmp
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kernel_lib.competition import (
    COMPETITION,
    DICOM_SUFFIXES,
    LABEL_FILES,
    PACKINGS,
    PICTURE_SUFFIXES,
    SUFFIXES,
    label_rank,
    no_folder,
)
from kernel_lib.data.images import image_id, is_image
from kernel_lib.errors import InputError

# dicom-images-train/<study>/<series>/<image>.dcm, and a folder or two around it.
MAX_DEPTH = 6
MAX_TABLE_DEPTH = 2
# A folder this barren is somebody's home or a whole disk, not a data set.
MAX_FOLDERS_WITHOUT_IMAGE = 3000
# The share of files whose names may hold no split where those of the others do.
MAX_WITHOUT_SPLIT = 0.05
# What a folder's name says of its pictures: train_masks, x_mask, labelsTr; of images-and-masks
# nothing. Of several such folders in a path the innermost counts.
_KIND = r"(?:[-_ ]?(?:train(?:ing)?|test|val|valid|validation|tr|ts|png|jpe?g|images?))*"
_TRUTH = "labels?|annot(ation)?s?|segs?|segmentation(s|class|object)?|gts?|ground[-_ ]?truths?"
MASK_FOLDER = re.compile(
    rf"(?!.*[-_ ]and[-_ ]).*masks?{_KIND}|{_KIND}[-_ ]?({_TRUTH}){_KIND}", re.IGNORECASE
)
IMAGE_FOLDER = re.compile(rf"{_KIND}[-_ ]?(images?|imgs?|png|jpe?g){_KIND}", re.IGNORECASE)
MASK_ENDING = re.compile(r"[-_ ](masks?|segmentation|seg|labels?|gt)$", re.IGNORECASE)
# What stands around a word for a split in a name: test_set, xtest, imagesVal, val-png.
_AROUND = r"(?:x|images?|imgs?|png|jpe?g|dicoms?|dcm|data|(?:data)?sets?|splits?|inputs?|folders?)"
_SPLITS = {
    split: re.compile(rf"(?<![a-z])(?:{_AROUND}[-_ ]?)*(?:{words})(?:[-_ ]?{_AROUND})*(?![a-z])")
    for split, words in {
        "train": "train(?:ing)?|images?[-_ ]?tr",
        "test": "tests?|testing|images?[-_ ]?ts|stage_2_images|unseen|h[eo]ld[-_ ]?out",
        "validation": "val|valid|validation|eval|evaluation|dev|development",
    }.items()
}
# What texts with the images of a split are called: val.txt, dataset.json, instances_test2017.json.
_LISTS = re.compile(r"test|val|data(set|list)|splits?|partition|hold.?out", re.IGNORECASE)
# CVAT's and VOC's second folder of masks: the same areas, each instance in a colour of its own.
INSTANCE_FOLDER = re.compile(r"segmentation_?object(png)?", re.IGNORECASE)
# A later stage's labels name images of these too, which are then for training.
STAGE_FOLDER = re.compile("|".join(map(re.escape, COMPETITION.test_folders)), re.IGNORECASE)
# The same image in several formats: DICOM knows the patient, PNG loses nothing, JPEG does.
PREFERENCE = (*DICOM_SUFFIXES, ".png", ".jpg", ".jpeg")
# In a clone of this project, folders with pictures that are no data.
_CLONE = Path(__file__).resolve().parents[2]
_OURS = ["docs", "models", "tests", "demo", "work", "build", "ablation-results", "gpu-results"]
NOT_DATA = {_CLONE / name for name in _OURS}


@dataclass
class Listing:
    """Files under a root, each kind in order of name."""

    root: Path
    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    deep: list[Path] = field(default_factory=list)  # label tables too far down to be read
    dangling: list[Path] = field(default_factory=list)  # links that lead nowhere
    lists: list[Path] = field(default_factory=list)  # texts that may list the images of a split
    unread: Counter[str] = field(default_factory=Counter)  # files of other kinds, by their ending
    stated: dict[Path, str] = field(default_factory=dict)  # splits by a table or files' names

    def split(self, path: Path) -> str:
        """Return what a file is for: "train", "test", "validation" or "".

        As its own name or a table states, else by its innermost folder that says so.
        """
        folders = path.relative_to(self.root).parts[-2::-1]
        return self.stated.get(path) or next(filter(None, map(_split_of_folder, folders)), "")

    def in_competition_folder(self, path: Path) -> bool:
        """Return whether it lies in one of the competition's own folders of test images."""
        return any(map(STAGE_FOLDER.fullmatch, path.relative_to(self.root).parts[:-1]))

    def reserved_split(self, path: Path) -> str:
        """Return its split, but "" for training, also for what a later stage may train on."""
        split = self.split(path)
        of_a_stage = (
            split == "test" and path not in self.stated and self.in_competition_folder(path)
        )
        return "" if split == "train" or of_a_stage else split


def survey(data_dir: Path, by_content: bool = False) -> Listing:
    """List a data folder, to the depth of an archive unpacked into a folder of its own.

    With `by_content` files of other endings are opened, and listed where they are images.
    Raises: InputError where there is no such folder, or it is far too large for a data set.
    """
    if not data_dir.exists():
        raise InputError(f"DATA_DIR {data_dir} does not exist: check the path")
    if not data_dir.is_dir():
        raise InputError(no_folder(data_dir, "DATA_DIR"))
    listing = Listing(data_dir.resolve())
    pictures = _walk(listing, by_content)
    masks = masks_among(pictures)
    listing.masks = [path for path in pictures if path in masks]
    listing.images = [path for path in pictures if path not in masks]
    listing.stated = _splits_of_files(listing.images)
    for paths in (listing.tables, listing.dangling, listing.lists):
        paths.sort()
    return listing


def split_word(text: str) -> str | None:
    """Return the split that a cell or a key is a word for, "" of a blank one; None for others."""
    if not text:
        return ""
    return next((split for split, words in _SPLITS.items() if words.fullmatch(text.lower())), None)


def splits_in(name: str) -> list[str]:
    """Return the splits that a name's words state: ["test"] of 3_test_1, TestSet and test2017."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return [split for split, pattern in _SPLITS.items() if pattern.search(words)]


@cache
def _split_of_folder(name: str) -> str:
    return "train" if "train" in name.lower() else next(iter(splits_in(name)), "")


@dataclass(frozen=True)
class Images:
    """The images of a folder by their id: a file's name, or its path where names are not unique.

    files: of each id its file and, after it, copies and other formats of it.
    """

    root: Path
    files: dict[str, list[Path]]
    in_two_formats: int
    _by_name: dict[str, list[str]]  # ids by their last part

    @classmethod
    def of(cls, listing: Listing) -> Images:
        """Return the images of a listing; files that share a name and differ get paths as ids.

        Files of one name and several formats are one image, unless some are test images.
        Raises: InputError where paths differ only in case or blanks.
        """
        files: dict[str, list[Path]] = {}
        in_two_formats = 0
        for name, paths in _by_name(listing.images).items():
            distinct: list[list[Path]] = []
            for path in paths:
                for same in distinct:
                    if _is_another_format(same[0], path, listing) or same_content(same[0], path):
                        same.append(path)
                        break
                else:
                    distinct.append([path])
            in_two_formats += any(len({p.suffix.lower() for p in same}) > 1 for same in distinct)
            ids = [name] if len(distinct) == 1 else _path_ids(distinct, listing.root)
            files |= dict(zip(ids, distinct, strict=True))
        by_name = defaultdict(list)
        for name in sorted(files):
            by_name[name.rpartition("/")[2]].append(name)
        return cls(listing.root, dict(sorted(files.items())), in_two_formats, dict(by_name))

    def path(self, name: str) -> Path:
        """Return the preferred file of an image."""
        return self.files[name][0]

    def folders_of_shared_names(self) -> list[Path]:
        """Return the folders of images that share their file's name with another image."""
        shared = (name for ids in self._by_name.values() if len(ids) > 1 for name in ids)
        return sorted({self.path(name).parent for name in shared})

    def find(self, name: str) -> str | None:
        """Return the id of the image that a table or a mask calls so, perhaps with folders before.

        Raises: InputError where several images may be meant.
        """
        if name in self.files:
            return name
        folders = name.split("/")[-2::-1]
        ids = []
        for candidate in self._by_name.get(name.rpartition("/")[2], []):
            own = path_id(self.path(candidate), self.root, ()).split("/")[-2::-1]
            if all(a == b for a, b in zip(folders, own, strict=False)):
                ids.append(candidate)
        if len(ids) > 1:
            raise InputError(
                f"image {name} may be {self.path(ids[0])} or {self.path(ids[1])}: name it by "
                "its path in the table, or give the files names of their own"
            )
        return ids[0] if ids else None

    def meant(self, name: str) -> str | None:
        """Return what `find` does, and None where several images may be meant."""
        with suppress(InputError):
            return self.find(name)

    def of_mask(self, mask: Path) -> str | None:
        """Return the id of a mask's image, by its name or, where names do not do, its path.

        A mask may end in _mask or -mask, and an image in nnU-Net's channel, _0000.
        """
        name = image_id(mask)
        for wanted in (name, mask_name(mask), f"{name}_0000"):
            if len(self._by_name.get(wanted, [])) == 1:
                return self._by_name[wanted][0]
            if wanted in self._by_name:
                beside = path_id(mask, self.root).rpartition("/")[0]
                return self.find(f"{beside}/{wanted}" if beside else wanted)
        return None


def mask_name(mask: Path) -> str:
    """Return the name of a mask's image: its own, without _mask or -mask."""
    return MASK_ENDING.sub("", image_id(mask))


def same_picture(first: Path, second: Path) -> bool:
    """Return whether two masks are the same: of one content, or side by side in two formats."""
    return first.with_suffix("") == second.with_suffix("") or same_content(first, second)


def path_id(
    path: Path, root: Path, without: Iterable[re.Pattern] = (MASK_FOLDER, IMAGE_FOLDER)
) -> str:
    """Return a file's path below the root as an id, without its ending and folders called so."""
    folders = path.relative_to(root).parts[:-1]
    kept = [name for name in folders if not any(p.fullmatch(name) for p in without)]
    return unicodedata.normalize("NFC", "/".join([*kept, image_id(path)]))


def _path_ids(distinct: list[list[Path]], root: Path) -> list[str]:
    short = [path_id(paths[0], root) for paths in distinct]
    if len(set(short)) == len(short):
        return short
    full: dict[str, Path] = {}
    for first, *_ in distinct:
        name = path_id(first, root, ())
        if full.setdefault(name, first) != first:
            raise InputError(
                f"image {name} may be {full[name]} or {first}, which differ: rename one"
            )
    return list(full)


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files of each name, the preferred format first."""
    files_of: dict[str, list[Path]] = {}
    for path in sorted(paths, key=preference):
        files_of.setdefault(image_id(path), []).append(path)
    return files_of


def _is_another_format(first: Path, other: Path, listing: Listing) -> bool:
    """Return whether a less preferred file of that name is the same image in another format.

    Beside a picture in another folder it may be a mask, unless both folders say what they hold.
    """
    return (
        first.suffix.lower() != other.suffix.lower()
        and listing.reserved_split(first) == listing.reserved_split(other)
        and (
            first.parent == other.parent
            or first.suffix.lower() not in PICTURE_SUFFIXES
            or all(IMAGE_FOLDER.fullmatch(path.parent.name) for path in (first, other))
        )
    )


def same_content(first: Path, second: Path) -> bool:
    """Return whether two files hold the same bytes. Raises: InputError."""
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError as error:
        raise InputError(
            f"{error.filename} can't be read: {error.strerror}; fetch the file again"
        ) from error


def preference(path: Path) -> int:
    """Return the rank of a file's format; one that its name does not tell is mostly DICOM."""
    suffix = path.suffix.lower()
    return PREFERENCE.index(suffix) if suffix in PREFERENCE else 0


def masks_among(pictures: list[Path]) -> set[Path]:
    """Return the pictures of a folder that are masks by their folders' names, or by their own."""
    if not pictures:
        return set()
    # Folders around all pictures, as an archive's own, say nothing of any.
    shared = len(Path(os.path.commonpath([path.parent for path in pictures])).parts)
    names = {(path.parent, image_id(path)) for path in pictures}

    def is_mask(path: Path) -> bool:
        of = mask_name(path)
        if of != image_id(path) and (path.parent, of) in names:  # beside its image
            return True
        for folder in reversed(path.parts[shared:-1]):
            if MASK_FOLDER.fullmatch(folder):
                return True
            if IMAGE_FOLDER.fullmatch(folder):
                return False
        return False

    return set(filter(is_mask, pictures))


def _walk(listing: Listing, by_content: bool) -> list[Path]:
    """Add the files under a root to its listing, except pictures, which are returned sorted."""
    # Depth first, so that images turn up soon in a folder of many thousand folders.
    waiting = [(listing.root, 0)]
    pictures: list[Path] = []
    barren = 0
    while waiting:
        folder, depth = waiting.pop()
        barren += 1
        for entry in sorted(entries(folder), key=lambda entry: entry.name):
            suffix, path = _suffix(entry.name), Path(entry.path)
            if entry.is_dir():
                if depth < MAX_DEPTH and path not in NOT_DATA:
                    waiting.append((path, depth + 1))
            elif entry.is_symlink() and not os.path.exists(path):
                listing.dangling.append(path)
            elif any(entry.name.lower().endswith(f".csv{packing}") for packing in PACKINGS):
                if depth <= MAX_TABLE_DEPTH:
                    listing.tables.append(path)
                elif label_rank(entry.name) < len(LABEL_FILES):
                    listing.deep.append(path)
            elif suffix in SUFFIXES or (by_content and is_image(entry.path)):
                pictures.append(path)
                barren = 0
            else:
                packed = _suffix(entry.name[: -len(suffix)]) if suffix == ".gz" else ""
                listing.unread[packed + suffix] += 1  # .nii.gz
                if suffix in (".txt", ".json") and _LISTS.search(entry.name):
                    listing.lists.append(path)
        if barren > MAX_FOLDERS_WITHOUT_IMAGE:
            raise InputError(
                f"DATA_DIR {listing.root}: {barren:,} folders in a row without an image; give the "
                "data's own folder"
            )
    return sorted(pictures)


def entries(folder: Path | str, name: str = "") -> list[os.DirEntry]:
    """Return a folder's entries but hidden ones, and what a Mac adds to archives (__MACOSX).

    Raises: InputError, with `name` before the folder.
    """
    try:
        with os.scandir(folder) as scanned:
            return [entry for entry in scanned if not entry.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{name}{folder} can't be listed: {error.strerror or error}") from error


def _splits_of_files(images: Sequence[Path]) -> dict[Path, str]:
    """Return the splits in files' own names, where nearly all hold one and not all the same."""
    splits_of = {path: splits_in(path.stem) for path in images}
    clear = {path: splits[0] for path, splits in splits_of.items() if len(splits) == 1}
    is_rule = len(clear) >= (1 - MAX_WITHOUT_SPLIT) * len(images) and len({*clear.values()}) > 1
    return clear if is_rule else {}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
