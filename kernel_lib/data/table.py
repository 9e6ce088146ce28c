"""A data folder as one table: a row per image, with its file and its label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kernel_lib.competition import LABEL_FILES, LAYOUTS, PICTURE_SUFFIXES, label_rank
from kernel_lib.data import cells, rle
from kernel_lib.data.folder import (
    INSTANCE_FOLDER,
    Images,
    Listing,
    mask_name,
    preference,
    same_picture,
    splits_in,
    survey,
)
from kernel_lib.data.images import read_mask
from kernel_lib.data.labels import (
    Sample,
    held_out_notes,
    names_of,
    read_labels,
    read_sample,
    stated_splits,
)
from kernel_lib.errors import InputError

MAX_UNLABELLED_SHARE = 0.05
MAX_COMPARED = 20  # masks opened per class, with and without a pneumothorax
TRAIN_COLUMNS = ("image_id", "path", "rle", "mask_path", "label_at")


@dataclass(frozen=True)
class Source:
    """A data folder's images and labels.

    train: DataFrame[image_id, path, rle, mask_path, label_at], by image_id; rle is the union of an
    image's rows ("-1" if empty), or "" if mask_path has the mask, from which `prepare` makes the
    RLE; label_at says where the label comes from, as file and row. test: DataFrame[image_id, path],
    in the sample's order. test_labels: test images that have a label, columns as train. unlabelled:
    training images without a label, which are excluded. problems: messages for the user.
    """

    root: Path
    layout: str
    train: pd.DataFrame
    test: pd.DataFrame
    sample: Path | None = None
    labels: Path | None = None
    unlabelled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    test_labels: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=list(TRAIN_COLUMNS), dtype=object)
    )


def discover(
    data_dir: Path | str, *, for_inference: bool = False, sample: Path | None = None
) -> Source:
    """Recognise the layout under a folder and pair images with labels; opens no image.

    Test images are those in the sample submission. Without one they are those marked as test by a
    column of the label table, by their file name or by a folder (test, dicom-images-test,
    stage_2_images, …); failing that, those marked as validation (val, valid, …). All other labelled
    images are for training; if there are none, the test images are trained on too, with a note.
    Each image has one file: DICOM is preferred to PNG, PNG to JPEG. If masks are the labels and a
    table looks like labels too, a few masks are opened to compare.

    With `for_inference` files are also recognised by their content, images may lack labels, and a
    folder of images only is all test images. A given `sample` replaces the folder's own, and does
    not remove its images from training.
    Raises: InputError for faults that would otherwise surface hours later.
    """
    listing = survey(Path(data_dir), by_content=for_inference)
    problems = []
    if listing.dangling:
        problems.append(f"{len(listing.dangling)} broken links (first: {listing.dangling[0]})")
    if listing.deep:
        problems.append(
            f"{listing.deep[0]} is too many folders down to be read: move it to {listing.root}"
        )
    if not listing.images:
        hints = _sentences(problems) + _missing_hint(listing)
        raise InputError(f"no images under DATA_DIR {data_dir}. {hints}{LAYOUTS}")
    images = Images.of(listing)
    if images.in_two_formats:
        problems.append(
            f"{images.in_two_formats} images exist in two formats: DICOM is used before PNG, PNG "
            "before JPEG"
        )
    return _Discovery(listing, images, problems, for_inference, sample).source(data_dir)


@dataclass
class _Discovery:
    """Pairs a folder's images with labels and sample; adds messages to `problems`."""

    listing: Listing
    images: Images
    problems: list[str]
    for_inference: bool
    given_sample: Path | None  # passed by the caller, not found in the folder
    labels: Path | None = None  # the label table; None where masks are the labels

    def source(self, data_dir: Path | str) -> Source:
        labelled = self._labelled()
        sample, test = self._test(labelled)
        if self.for_inference and sample is None and labelled.empty and test.empty:
            test = self._test_frame(self.images.files)  # nothing says which: all of them
        if labelled.empty and test.empty:
            raise InputError(
                f"{len(self.images.files)} images under DATA_DIR {data_dir}, and neither labels "
                f"nor a sample submission for them. {_sentences(self.problems)}"
                f"{self._unlabelled_hint()}{_missing_hint(self.listing)}{LAYOUTS}"
            )
        in_test = labelled["image_id"].isin(test["image_id"])
        train = self._kept_for_training(labelled, in_test & (self.given_sample is None))
        if not self.for_inference:
            self.problems += held_out_notes(self.listing, self.images, set(train["image_id"]))
            if self.labels is None:
                self._compare_with_tables(train)
        return Source(
            root=Path(data_dir).resolve(),
            layout=self._layout(labelled),
            train=train,
            test=test,
            sample=sample,
            labels=self.labels,
            unlabelled=self._unlabelled(labelled, test),
            problems=self.problems,
            test_labels=labelled[in_test].reset_index(drop=True),
        )

    def _layout(self, labelled: pd.DataFrame) -> str:
        if len(labelled) and self.labels is None:
            return "images+masks"
        paths = map(self.images.path, self.images.files)
        dicoms = [path for path in paths if path.suffix.lower() not in PICTURE_SUFFIXES]
        if 2 * len(dicoms) <= len(self.images.files):
            return "images+rle"
        folders = {path.parent for path in dicoms}
        return "nested-dicom" if 2 * len(folders) > len(dicoms) else "flat-dicom"

    # --- labels ---

    def _labelled(self) -> pd.DataFrame:
        """Return all labelled images, by a table or by masks."""
        tables = _label_tables(self.listing)
        if not tables:
            return self._from_masks()
        n_masks = len(self.listing.masks)
        if n_masks:
            self.problems.append(
                f"{n_masks} mask images are not used, since {tables[0].name} has the labels"
            )
        # Of several tables: the one with most of the images here, then that of the later
        # competition stage.
        read = {path: read_labels(path, self.problems) for path in tables}
        ids = {path: table["image_id"].map(self.images.find) for path, table in read.items()}
        present = {path: int(ids[path].notna().sum()) for path in tables}
        self.labels = labels = max(
            tables, key=lambda path: (present[path], -label_rank(path.name), -len(path.name))
        )
        table = read[labels]
        if len(tables) > 1:
            self.problems.append(
                f"found {len(tables)} label tables; {labels} is used, since it labels most images"
            )
        if not present[labels]:
            self.problems.append(
                f"{labels} has labels of {len(table)} images, none of which is here: it names "
                f"{table['image_id'].iloc[0]}, the files are {next(iter(self.images.files))} …"
                + self._zeros_hint(table["image_id"])
            )
            return self._train_frame([])
        missing = table[ids[labels].isna()]
        if len(missing):
            first, zeros = missing.iloc[0], self._zeros_hint(missing["image_id"])
            raise InputError(
                f"{first.label_at}: image {first.image_id} has a label and no file under "
                f"{self.listing.root} ({len(missing)} of {len(table)} labelled images have none"
                f"{self._dangling()}){zeros or ': fetch the images, or delete their rows'}"
            )
        # A split column of the label table overrides names of folders.
        stated = stated_splits(labels)
        for (_, split), name in zip(stated.items(), names_of(list(stated)), strict=True):
            if split:
                files = self.images.files[self.images.find(name)]
                self.listing.stated |= dict.fromkeys(files, split)
        if stated:
            self.problems.append(f"{labels}: one of its columns states the images' splits")
        rows = zip(ids[labels], table["rle"], table["label_at"], strict=True)
        return self._train_frame([(image_id, text, "", at) for image_id, text, at in rows])

    def _from_masks(self) -> pd.DataFrame:
        """Return images that have a mask file of the same name, or with _mask at its end."""
        paths, masks = self.listing.masks, {}
        instances = [path for path in paths if INSTANCE_FOLDER.fullmatch(path.parent.name)]
        if 0 < len(instances) < len(paths):
            paths = sorted(set(paths) - set(instances))
            self.problems.append(
                f"{len(instances)} instance masks are not used (first: {instances[0]}), the class "
                "masks are"
            )
        for path in sorted(paths, key=preference):
            image_id = self.images.of_mask(path)
            if image_id is None:
                raise InputError(
                    f"mask {path} has no image {mask_name(path)} under {self.listing.root}, where "
                    f"images are called {next(iter(self.images.files))} …{self._dangling()}: fetch "
                    "the image, or give both the same name"
                )
            first = masks.setdefault(image_id, path)
            if not same_picture(first, path):
                fix = "keep the folder with masks of pneumothorax, and move the other away"
                if first.parent == path.parent:
                    fix = "merge them into one image file"
                raise InputError(f"image {image_id} has two masks, {first} and {path}: {fix}")
        return self._train_frame([(name, "", str(path), str(path)) for name, path in masks.items()])

    def _compare_with_tables(self, train: pd.DataFrame) -> None:
        """Note tables that look like labels, where masks are used as labels.

        Raises: InputError if a mask and the table disagree whether an image is empty: the masks may
        be of lungs.
        """
        masks = dict(zip(train["image_id"], train["mask_path"], strict=True))
        fix = f"name the table {LABEL_FILES[-1]} if it holds the labels, else move it away"
        for path in _possible_label_tables(self.listing):
            try:
                table = read_labels(path)
            except InputError as error:
                self.problems.append(f"not used: {error}")
                continue
            table["mask"] = table["image_id"].map(self.images.meant).map(masks)
            table = table.dropna()
            positive = table["rle"] != rle.EMPTY
            for row in table.groupby(positive).head(MAX_COMPARED).itertuples():
                if _has_area(row.mask) not in (None, positive[row.Index]):
                    raise InputError(f"{row.label_at} and the mask {row.mask} disagree: {fix}")
            if len(table):
                self.problems.append(f"{path} is not used, since {len(table)} masks are: {fix}")

    # --- training images ---

    def _train_frame(self, rows: Iterable[tuple[str, str, str, str]]) -> pd.DataFrame:
        full = [(name, str(self.images.path(name)), *label) for name, *label in sorted(rows)]
        return pd.DataFrame(full, columns=list(TRAIN_COLUMNS), dtype=object)

    def _kept_for_training(self, labelled: pd.DataFrame, in_test: pd.Series) -> pd.DataFrame:
        """Return labelled images that are neither test nor validation images, if there are any."""
        files = labelled["image_id"].map(self.images.files)
        marked = files.map(lambda paths: any(map(self.listing.reserved_split, paths))).astype(bool)
        self._note_unmarked(labelled[~(in_test | marked)])
        # Leave out both; if nothing remained, test images alone; if nothing still, none.
        for reserved in (in_test | marked, in_test):
            if reserved.any() and not reserved.all():
                first = labelled.loc[reserved, "path"].iloc[0]
                self.problems.append(
                    f"{int(reserved.sum())} labelled images are test or validation images and not "
                    f"trained on (first: {first}); `score --split test` uses the labels of test "
                    "images"
                )
                return labelled[~reserved].reset_index(drop=True)
        if in_test.any():
            self.problems.append(
                f"all {len(labelled)} labelled images are test images too: scores on these are not "
                "honest"
            )
        return labelled

    def _note_unmarked(self, train: pd.DataFrame) -> None:
        """Note training images without a mark where others are marked: perhaps a test set."""
        files = train["image_id"].map(self.images.files)
        split = files.map(lambda paths: "".join(map(self.listing.split, paths)))
        by_name = train["path"].map(lambda path: " ".join(splits_in(Path(path).stem)))
        is_train = split.str.contains("train") | by_name.str.contains("train")
        others = train[(split == "") & ~is_train]
        if len(others) and is_train.any():
            self.problems.append(
                f"{len(others)} labelled images are trained on though, unlike the rest, no folder "
                f"or file name marks them as training images (first: {others['path'].iloc[0]}); if "
                "they are test images, name their folder test"
            )

    def _unlabelled(self, labelled: pd.DataFrame, test: pd.DataFrame) -> list[str]:
        """Return images that are neither labelled nor test images. Raises InputError above 5 %."""
        known = set(labelled["image_id"]) | set(test["image_id"])
        rest = [
            image_id
            for image_id, paths in self.images.files.items()
            if image_id not in known and {"", "train"}.issuperset(map(self.listing.split, paths))
        ]
        if not rest:
            return []
        if labelled.empty or self.for_inference:  # for inference the sample lists what counts
            self.problems.append(f"{len(rest)} images are in no table and are not used")
            return []
        n = len(rest) + len(labelled)
        share = len(rest) / n
        if share > MAX_UNLABELLED_SHARE:
            empty = f"a row {rest[0]},{rle.EMPTY} for each in {self.labels}"
            if not self.labels:
                folder = Path(labelled["mask_path"].iloc[0]).parent
                empty = f"a black mask for each, as {folder / rest[0]}.png"
            raise InputError(
                f"{_unread_hint(self.listing)}{len(rest)} of {n} training images under "
                f"{self.listing.root} have no label ({share:.0%}, at most "
                f"{MAX_UNLABELLED_SHARE:.0%} is normal; first: {self.images.path(rest[0])}). "
                f"{_sentences(self.problems)}Where they have no pneumothorax, give {empty}; else "
                "give their labels, or move them out of DATA_DIR"
            )
        self.problems.append(f"{len(rest)} training images have no label and are left out")
        return rest

    # --- test images ---

    def _test_frame(self, ids: Iterable[str]) -> pd.DataFrame:
        rows = [(image_id, str(self.images.path(image_id))) for image_id in ids]
        return pd.DataFrame(rows, columns=["image_id", "path"], dtype=object)

    def _test(self, labelled: pd.DataFrame) -> tuple[Path | None, pd.DataFrame]:
        """Return the sample (a given one has priority; None without any) and the test images."""
        in_folder, given = self._in_test_folders(labelled), self.given_sample
        read = {given: read_sample(given)} if given else self._samples()
        if not read:
            return None, self._test_frame(in_folder)
        ids_of = {path: list(map(self.images.find, table.names)) for path, table in read.items()}
        present = {path: len(ids) - ids.count(None) for path, ids in ids_of.items()}
        # Of equal count the last by name wins: stage_2_… after stage_1_….
        sample = max(read, key=lambda path: (present[path], path.name))
        ids, names = ids_of[sample], read[sample].names
        if None not in ids:
            return sample, self._test_frame(ids)
        unclaimed = set(in_folder) - set(labelled["image_id"])
        if not given and not present[sample] and len(labelled) and not unclaimed:
            self.problems.append(f"{sample} names {len(ids)} test images, none of which is here")
            return sample, self._test_frame([])
        at = ids.index(None)
        fix = ": fetch the images, or is it another competition's sample (-p SAMPLE FILE)?"
        raise InputError(
            f"{sample} row {read[sample].cells.index[at]}: test image {names[at]} has no file "
            f"under {self.listing.root} ({ids.count(None)} of {len(ids)} have none"
            f"{self._dangling()}; the files are {next(iter(self.images.files))} …)"
            f"{self._zeros_hint(names) or fix}"
        )

    def _samples(self) -> dict[Path, Sample]:
        """Return the tables named sample that have a submission's columns and no masks.

        Raises: InputError for a table named sample submission that has other columns.
        """
        kept = {}
        for path in self.listing.tables:
            if "sample" not in path.name.lower():
                continue
            try:
                table = read_sample(path)
                if table.has_masks:
                    self.problems.append(
                        f"not used: {path} has different masks per row, unlike a sample submission"
                    )
                else:
                    kept[path] = table
            except InputError as error:
                if "submission" in path.name.lower():
                    raise
                self.problems.append(f"not used: {error}")
        # An excerpt of a label table may also be named sample and have no mask.
        return {p: t for p, t in kept.items() if "submission" in p.name.lower()} or kept

    def _in_test_folders(self, labelled: pd.DataFrame) -> list[str]:
        """Return images in folders for test images, else in those for validation images.

        Labelled images in the competition's own test folders are left out: a later stage of the
        competition released their labels, for training.
        """
        of_split: dict[str, list[str]] = defaultdict(list)
        for image_id, paths in self.images.files.items():
            for split in set(map(self.listing.split, paths)):
                of_split[split].append(image_id)
        in_folders = of_split["test"] or of_split["validation"]
        known = set(labelled["image_id"])
        if self.labels is None or known.issuperset(in_folders):
            return in_folders
        in_competition_folder = self.listing.in_competition_folder
        return [
            image_id
            for image_id in in_folders
            if image_id not in known
            or not any(map(in_competition_folder, self.images.files[image_id]))
        ]

    # --- hints ---

    def _zeros_hint(self, missing: Iterable[str]) -> str:
        """Return a hint if ids lack leading zeros, which spreadsheets drop."""
        files = self.images.files
        full = {image_id.lstrip("0"): image_id for image_id in files if image_id.startswith("0")}
        for short in missing:
            if short not in files and short.lstrip("0") in full:
                return (
                    f"; {short} may be {full[short.lstrip('0')]}, whose leading zeros a "
                    "spreadsheet dropped: give the original table"
                )
        return ""

    def _unlabelled_hint(self) -> str:
        """Return a hint on a table or folder that may hold the labels under another name."""
        hint = ""
        if tables := _possible_label_tables(self.listing):
            hint = f"{tables[0].name} looks like labels: name it {LABEL_FILES[-1]}. "
        folders = self.images.folders_of_shared_names()
        if len(folders) == 2:
            hint += (
                f"{folders[0]} and {folders[1]} hold files of the same names: if one of them holds "
                "masks, name that folder masks. "
            )
        return hint

    def _dangling(self) -> str:
        links = self.listing.dangling
        return f"; {links[0]} is a broken link" if links else ""


def _label_tables(listing: Listing) -> list[Path]:
    """Return tables named like the competition's; an unpacked one replaces its packed copy."""
    unpacked: dict[Path, Path] = {}
    for path in listing.tables:  # in order of name, hence unpacked first
        if label_rank(path.name) < len(LABEL_FILES):
            unpacked.setdefault(path.parent / path.name[: path.name.lower().index(".csv")], path)
    return list(unpacked.values())


def _possible_label_tables(listing: Listing) -> list[Path]:
    """Return tables with label columns whose name is neither a label file's nor a sample's."""
    tables = []
    for path in listing.tables:
        if label_rank(path.name) == len(LABEL_FILES) and "sample" not in path.name.lower():
            with suppress(InputError):
                if {cells.ID_COLUMN, cells.RLE_COLUMN}.issubset(cells.read_parts(path)[0]):
                    tables.append(path)
    return tables


def _has_area(mask: str) -> bool | None:
    """Return whether a mask is not empty; None if it cannot be read, which `prepare` reports."""
    try:
        return bool(read_mask(mask).any())
    except InputError:
        return None


def _sentences(problems: Sequence[str]) -> str:
    return "".join(f"{problem}. " for problem in problems)


def _missing_hint(listing: Listing) -> str:
    archives = [p for p in listing.root.iterdir() if p.suffix in (".zip", ".gz", ".tar", ".7z")]
    return _unread_hint(listing) + (f"Unpack {archives[0].name} first. " if archives else "")


def _unread_hint(listing: Listing) -> str:
    """Return a hint on files of other kinds, which may be what is missing."""
    if not listing.unread:
        return ""
    kinds = ", ".join(f"{n} {end or 'without suffix'}" for end, n in listing.unread.most_common(3))
    return f"Not read: {kinds} (images and masks are PNG, JPEG or DICOM; labels CSV). "
