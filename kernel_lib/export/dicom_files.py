"""Masks as DICOM files that refer to their radiograph: segmentations, and pictures with contours.

highdicom writes them. The radiograph's own file is not changed: attributes that are not valid are
replaced or removed in memory, and noted.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import pydicom
from pydicom import config, valuerep
from pydicom.uid import UID

from kernel_lib.data import dicom, images
from kernel_lib.errors import InputError
from kernel_lib.export import packages
from kernel_lib.reporting import overlays

MANUFACTURER, NOT_CLINICAL = "pneumothorax-kernels", "not for clinical use"
MASK, MAP = f"Predicted pneumothorax, {NOT_CLINICAL}", f"Pneumothorax map, {NOT_CLINICAL}"
CONTOUR = f"Contour of a predicted pneumothorax, {NOT_CLINICAL}"
SERIES_NUMBERS = {MASK: 9001, MAP: 9002, CONTOUR: 9003}
MAX_LO = 64  # characters of a DICOM long string (LO)
MAX_ST = 1024  # of a short text (ST)
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Attributes that every DICOM file must contain, possibly empty.
REQUIRED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName", "Modality",
)  # fmt: skip
# Not passed to highdicom: without a frame of reference it accepts a spacing only with a slice
# thickness, which a radiograph does not have; with one it requires all of these.
SPATIAL = (
    "PixelSpacing", "FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient",
    "ImageOrientationPatient",
)  # fmt: skip
TEXT_VRS = valuerep.STR_VR - {"UC", "UR"}
SPACING_NOTE = "PixelSpacing without frame of reference, which highdicom refuses: not passed on"
# As OHIF and cornerstone assume of a radiograph; they show only segmentations that state a plane.
ASSUMED_ORIENTATION, ASSUMED_THICKNESS = [1, 0, 0, 0, 1, 0], 1


@dataclass(frozen=True)
class Reference:
    """A radiograph to refer to, with valid and complete attributes, and notes on what was changed.

    `is_derived`: whether one of its own UIDs is not valid and replaced by a derived one.
    """

    dataset: pydicom.Dataset
    is_derived: bool
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the reference to a DICOM file. Raises: InputError if it can't be read."""
        with _header_errors("is damaged"):
            dataset = images.dataset_of(path)
            dataset.decode()
            dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, for the files that refer to it
            own = str(dataset.get("SOPInstanceUID") or path.name)
            derived = _replace_invalid_uids(dataset, own)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            invalid = _remove_invalid_values(dataset)
            spacing = dataset.get("PixelSpacing", [1, 1])
            if np.size(spacing) != 2 or min(spacing) <= 0:
                del dataset.PixelSpacing
                invalid.append("PixelSpacing")
            for keyword in REQUIRED:
                if keyword not in dataset:
                    setattr(dataset, keyword, "")
        notes = []
        if derived:
            notes.append(
                f"{', '.join(derived)} not valid: the DICOM files use derived UIDs, 2.25.…"
            )
        if invalid:
            notes.append(f"{', '.join(invalid)} not valid: left out of the DICOM files")
        return cls(dataset, bool(derived), tuple(notes))

    @property
    def uid(self) -> str:
        """The SOPInstanceUID."""
        return str(self.dataset.SOPInstanceUID)

    def save(self, path: Path) -> None:
        """Write the radiograph with the attributes that the other files refer to."""
        with _header_errors("is damaged"):
            self.dataset.save_as(path)

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise InputError for a mask (H, W) of another size than the radiograph."""
        with _header_errors("is damaged"):
            own = int(self.dataset.Rows), int(self.dataset.Columns)
        if own != shape:
            raise InputError(
                "the radiograph is {}×{}, its mask {}×{}: give the radiographs that were "
                "predicted".format(*own, *shape)
            )


def derived_uid(*parts: str) -> UID:
    """Return a valid UID that depends only on these texts: 2.25 and a version 5 UUID.

    Source: DICOM PS3.5 B.2.
    """
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, ' '.join((MANUFACTURER, *parts))).int}")


def write_segmentation(
    path: Path,
    reference: Reference,
    pixels: np.ndarray,
    algorithm: str,
    rule: str,
    plane: tuple[float, float] | None = None,
) -> list[str]:
    """Write a DICOM segmentation of one segment, and return notes.

    pixels: a mask (H, W) 0/1 uint8, or a probability map (H, W) float, in steps of 1/255. An empty
    mask becomes one empty frame.
    plane: the spacing (between rows, between columns) in mm of the assumed plane; None states none.
    Raises: InputError if highdicom is missing, or refuses the radiograph's header.
    """
    hd = packages.highdicom()
    reference.check_shape(pixels.shape)
    notes = []
    if "PixelSpacing" in reference.dataset and "FrameOfReferenceUID" not in reference.dataset:
        notes.append(SPACING_NOTE)
    with _header_errors("is refused by highdicom"):
        _segmentation(hd, reference, pixels, algorithm, rule, plane).save_as(path)
    return notes


def _segmentation(
    hd: Any,
    reference: Reference,
    pixels: np.ndarray,
    algorithm: str,
    rule: str,
    plane: tuple[float, float] | None,
) -> pydicom.Dataset:
    from pydicom.sr.codedict import codes

    is_map = pixels.dtype != np.uint8
    kind, source = MAP if is_map else MASK, pydicom.Dataset()
    for element in reference.dataset:
        if element.keyword not in (*SPATIAL, "PixelData"):
            source.add(element)
    identified = hd.AlgorithmIdentificationSequence(
        name=algorithm[:MAX_LO],
        family=codes.DCM.ArtificialIntelligence,
        version=_version(),
        source=MANUFACTURER,
        parameters={"rule": "none, a probability map" if is_map else rule},
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pneumothorax",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Pneumothorax,
        algorithm_type="AUTOMATIC",
        algorithm_identification=identified,
    )
    segment.SegmentDescription = f"{kind}. {'' if is_map else rule}"[:MAX_ST]
    segmentation = hd.seg.Segmentation(
        [source],
        pixels,
        "FRACTIONAL" if is_map else "BINARY",
        [segment],
        software_versions=_version(),
        manufacturer_model_name="kernel_lib",
        device_serial_number="none",
        content_label="PNEUMOTHORAX",
        content_description=kind,
        omit_empty_frames=False,
        **_series_arguments(reference, pixels, kind, algorithm, rule, f"plane {plane}"),
    )
    segmentation.PatientOrientation = reference.dataset.get("PatientOrientation") or ""
    if plane is not None:
        _add_plane(segmentation, plane)
    return segmentation


def _add_plane(segmentation: pydicom.Dataset, spacing: tuple[float, float]) -> None:
    """Add an assumed plane with this spacing (between rows, between columns), mm."""
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [valuerep.DSfloat(side, auto_format=True) for side in spacing]
    measures.SliceThickness = ASSUMED_THICKNESS
    orientation.ImageOrientationPatient = ASSUMED_ORIENTATION
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]


def write_secondary_capture(
    path: Path,
    reference: Reference,
    image: np.ndarray,
    mask: np.ndarray,
    algorithm: str,
    rule: str,
) -> None:
    """Write an RGB secondary capture: the radiograph with the mask's contour burnt in.

    Shapes: image (H, W) uint8, mask (H, W) 0/1. Raises: InputError as in `write_segmentation`.
    """
    hd = packages.highdicom()
    reference.check_shape(mask.shape)
    with _header_errors("is refused by highdicom"):
        _capture(hd, reference, _with_contour(image, mask), algorithm, rule).save_as(path)


def _with_contour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the radiograph with contour and warning burnt in, (H, W, 3) uint8 RGB."""
    picture = overlays.outlined(image, mask)
    height, width = mask.shape
    scale = width / 1024
    cv2.putText(
        picture, CONTOUR if mask.any() else f"No pneumothorax predicted, {NOT_CLINICAL}",
        (round(12 * scale), height - round(14 * scale)), cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale,
        overlays.COLOUR, max(1, round(2 * scale)), cv2.LINE_AA,
    )  # fmt: skip
    return np.ascontiguousarray(picture[..., ::-1])


def _capture(
    hd: Any, reference: Reference, picture: np.ndarray, algorithm: str, rule: str
) -> pydicom.Dataset:
    from pydicom.sr.codedict import codes

    source = reference.dataset
    capture = hd.sc.SCImage.from_ref_dataset(
        source,
        picture,
        "RGB",
        8,
        "PATIENT",
        patient_orientation=dicom.FRONTAL,  # replaced below: highdicom accepts no unknown one
        transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
        **_series_arguments(reference, picture, CONTOUR, algorithm, rule),
    )
    capture.PatientOrientation = source.get("PatientOrientation") or ""
    capture.ConversionType = "WSD"
    capture.BodyPartExamined = "CHEST"
    capture.DerivationDescription = f"{CONTOUR}. {algorithm}. {rule}"[:MAX_ST]
    origin = pydicom.Dataset()
    origin.ReferencedSOPClassUID = source.SOPClassUID
    origin.ReferencedSOPInstanceUID = reference.uid
    purpose = hd.sr.CodedConcept(*codes.DCM.SourceImageForImageProcessingOperation[:3])
    origin.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [origin]
    # By PS3.3 C.7.6.1.1 BurnedInAnnotation is about text that identifies the patient, which a
    # contour does not: the radiograph's own value is kept.
    for keyword in (
        "BodyPartExamined", "BurnedInAnnotation", "ImageLaterality", "Laterality",
        "LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio",
        "PixelSpacing", "SpecificCharacterSet",
    ):  # fmt: skip
        if source.get(keyword):
            capture[keyword] = source[keyword]
    return capture


@contextmanager
def _header_errors(what: str) -> Iterator[None]:
    """Turn any exception of highdicom or pydicom about a header into an InputError.

    Their warnings are silenced: `Reference.notes` lists what is not valid.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, OSError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the radiograph's header {what} ({text}): correct it, or export to png"
        ) from error


def _series_arguments(
    reference: Reference, pixels: np.ndarray, kind: str, *made_by: str
) -> dict[str, Any]:
    """Return highdicom's arguments on series and instance; equal inputs give equal UIDs."""
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    series = str(reference.dataset.SeriesInstanceUID)
    return {
        "series_instance_uid": derived_uid(series, kind, *made_by),
        "sop_instance_uid": derived_uid(reference.uid, kind, *made_by, content),
        "series_number": SERIES_NUMBERS[kind],
        "series_description": kind,
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
    }


def _version() -> str:
    try:
        return importlib.metadata.version(MANUFACTURER)
    except importlib.metadata.PackageNotFoundError:
        return "a clone"


def _replace_invalid_uids(dataset: pydicom.Dataset, own: str) -> list[str]:
    """Replace UIDs that are missing or not valid; return their names.

    An image without a study or series UID becomes a study or series of its own.
    """
    derived = []
    for keyword in UIDS:
        stated = str(dataset.get(keyword) or "")
        if not stated or not UID(stated, validation_mode=config.IGNORE).is_valid:
            setattr(dataset, keyword, derived_uid(keyword, stated or own))
            derived.append(keyword)
    return derived


def _remove_invalid_values(dataset: pydicom.Dataset) -> list[str]:
    """Remove elements whose values DICOM does not allow; return their names.

    A decimal string (DS) of too many digits is rounded instead.
    """
    removed = []
    for element in list(dataset):
        if element.VR not in TEXT_VRS or element.tag.is_private:
            continue
        values = element.value if element.VM > 1 else [element.value]
        try:
            if element.VR == "DS" and element.VM:
                rounded = [valuerep.DSfloat(float(value), auto_format=True) for value in values]
                element.value = rounded if element.VM > 1 else rounded[0]
                continue
            for value in values:
                valuerep.validate_value(element.VR, str(value), config.RAISE)
        except (TypeError, ValueError):
            del dataset[element.tag]
            removed.append(element.keyword or str(element.tag))
    return removed
