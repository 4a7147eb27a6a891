"""Subjects of a matte: the parts add up to it, whatever it is; components, order, seeds, COCO."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rmbgd.deliver import run_lengths
from rmbgd.deliver.subject_seeds import FILE_BYTES_MAXIMUM, SEEDS_MAXIMUM, SubjectSeeds, parse_seeds
from rmbgd.deliver.subjects import COPY_SIDE, ROW_OVERLAP, Parts, as_json, coco, find_subjects, part

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def mattes(draw: st.DrawFn) -> np.ndarray:
    """Mostly empty, mostly solid or noisy; of both depths."""
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    levels = st.sampled_from([0, 0, 0, 1, 127, 128, 255]).map(lambda level: level * np.iinfo(dtype).max // 255)
    return draw(arrays.arrays(dtype, draw(SHAPES), elements=levels))


def discs(height: int, width: int, *circles: tuple[int, int, int]) -> np.ndarray:
    """Soft discs: x, y, radius."""
    alpha = np.zeros((height, width), np.uint8)
    for x, y, radius in circles:
        cv2.circle(alpha, (x, y), radius, 255, -1)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), 1.5))


def add_up(alpha: np.ndarray, parts: Parts) -> bool:
    total = np.zeros(alpha.shape, np.uint64)
    for subject in parts.subjects:
        total += part(alpha, parts, subject.number)
    numbers = set(np.unique(parts.labels[alpha > 0]))
    return (
        np.array_equal(total, alpha)
        and np.array_equal(parts.labels > 0, alpha > 0)
        and numbers == {subject.number for subject in parts.subjects}
    )


@given(mattes(), st.sampled_from([0.0, 0.005, 0.5, 1.0]))
def test_the_parts_add_up_to_the_matte(alpha, minimum):
    assert add_up(alpha, find_subjects(alpha, minimum=minimum))


@given(mattes(), st.lists(st.tuples(*[st.floats(-5, 30)] * 2, *[st.floats(0.1, 20)] * 2), min_size=1, max_size=5))
def test_the_parts_of_seeds_add_up_too(alpha, boxes):
    seeds = SubjectSeeds(*alpha.shape, tuple((x, y, x + w, y + h) for x, y, w, h in boxes))
    assert add_up(alpha, find_subjects(alpha, minimum=0.005, seeds=seeds))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1500, 1100), (1025, 1024), (700, 3001)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_parts_of_large_mattes_add_up(size, dtype):
    height, width = size
    noise = np.random.default_rng(7).integers(0, 256, (9, 9), np.uint8)
    alpha = np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), dtype).reshape(size)
    alpha[alpha < 90] = 0
    parts = find_subjects(alpha * (257 if dtype == np.uint16 else 1), minimum=0.005)
    assert add_up(alpha, parts)
    assert len(parts.subjects) > 1


@given(mattes())
def test_each_pixel_goes_to_a_nearest_core(alpha):
    """Beside plain loops; chamfer distances are within 3 %."""
    parts = find_subjects(alpha, minimum=0.0)
    half = alpha >= (128 * 257 if alpha.dtype == np.uint16 else 128)
    cores = [(y, x, parts.labels[y, x]) for y, x in zip(*np.nonzero(half), strict=True)]
    for y, x in zip(*np.nonzero((alpha > 0) & ~half), strict=True):
        squares = [((y - row) ** 2 + (x - column) ** 2, label) for row, column, label in cores]
        if squares:
            mine = min(square for square, label in squares if label == parts.labels[y, x])
            assert mine**0.5 <= 1.03 * min(squares)[0] ** 0.5


@given(mattes())
def test_pixels_that_touch_are_of_one_subject(alpha):
    parts = find_subjects(alpha, minimum=0.0)
    half = alpha >= (128 * 257 if alpha.dtype == np.uint16 else 128)
    for y, x in zip(*np.nonzero(half), strict=True):
        around = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert set(parts.labels[around][half[around]]) == {parts.labels[y, x]}


@given(mattes())
def test_subjects_are_numbered_row_by_row(alpha):
    boxes = [subject.box for subject in find_subjects(alpha, minimum=0.0).subjects]
    left, expected = sorted(boxes, key=lambda box: (box[0], box[2])), []
    while left:
        top, bottom = left[0][:2]
        row = [
            box
            for box in left
            if min(bottom, box[1]) - max(top, box[0]) >= ROW_OVERLAP * min(bottom - top, box[1] - box[0])
        ]
        expected += sorted(row, key=lambda box: (box[2], box[0]))
        left = [box for box in left if box not in row]
    assert boxes == expected


def test_forty_subjects_in_rows():
    places = [(60 + 110 * column, 60 + 110 * row + 4 * (column % 2), 40) for row in range(5) for column in range(8)]
    parts = find_subjects(discs(600, 900, *places), minimum=0.005)
    found = [tuple(round(place - 0.5) for place in subject.centroid) for subject in parts.subjects]
    assert found == [place[:2] for place in places]


def test_a_crowd_is_parted_where_boxes_overlap_and_pixels_do_not():
    parts = find_subjects(discs(400, 400, (120, 120, 60), (230, 210, 60)), minimum=0.005)
    first, second = (subject.box for subject in parts.subjects)
    assert len(parts.subjects) == 2
    assert first[1] > second[0]
    assert first[3] > second[2]


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_subject_says_where_it_is(dtype, full):
    alpha = np.zeros((50, 80), dtype)
    alpha[0:10, 20:40] = full
    (subject,) = find_subjects(alpha, minimum=0.005).subjects
    assert (subject.number, subject.box, subject.area) == (1, (0, 10, 20, 40), 200)
    assert (subject.centroid, subject.borders, subject.confidence) == ((30.0, 5.0), ("top",), None)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20, 30)])
def test_nothing_and_everything(size):
    assert find_subjects(np.zeros(size, np.uint8), minimum=0.005).subjects == ()
    (subject,) = find_subjects(np.full(size, 255, np.uint8), minimum=0.005).subjects
    assert subject.borders == ("top", "bottom", "left", "right")
    assert subject.area == size[0] * size[1]


def test_haze_is_one_subject_without_an_area():
    alpha = np.zeros((30, 30), np.uint8)
    alpha[3:5, 3:5], alpha[20:25, 20:28] = 90, 100
    (subject,) = find_subjects(alpha, minimum=0.005).subjects
    assert (subject.area, subject.box) == (0, (3, 25, 3, 28))


def test_a_ring_in_a_ring_is_one():
    alpha = np.zeros((300, 600), np.uint8)
    for radius in (120, 60):
        cv2.circle(alpha, (150, 150), radius, 255, 10)
    cv2.circle(alpha, (450, 150), 100, 255, -1)
    parts = find_subjects(alpha, minimum=0.005)
    assert len(parts.subjects) == 2
    assert parts.labels[150, 150 + 60] == parts.labels[150, 150 + 120] == 1


@pytest.mark.parametrize(("gap", "count"), [(8, 1), (15, 2)])
def test_near_parts_are_one(gap, count):
    """Corner to corner, where closing alone joins nothing."""
    alpha = np.zeros((1000, 1000), np.uint8)
    alpha[100:300, 100:300] = alpha[300 + gap : 500, 300 + gap : 500] = 255
    assert len(find_subjects(alpha, minimum=0.005).subjects) == count


def test_the_border_between_subjects_of_a_large_image_has_no_stairs():
    """In haze between two discs: within two pixels of the line that is as far from both; a pixel of the copy is 4."""
    alpha, centres = np.full((3000, 4000), 40, np.uint8), ((450, 350), (806, 614))
    for centre in centres:
        cv2.circle(alpha, centre, 150, 255, -1)
    labels = find_subjects(alpha, minimum=0.005).labels[300:700, 400:850]
    y, x = np.mgrid[300:700, 400:850]
    first, second = (np.hypot(x - column, y - row) for column, row in centres)
    wrong = (labels == 1) != (first < second)
    assert np.abs(first - second)[wrong].max() <= 4  # moving by a pixel changes it by two


def test_small_components_go_to_the_nearest_subject():
    alpha = discs(400, 400, (100, 200, 60), (300, 200, 60))
    alpha[390:394, 390:394] = 255
    parts = find_subjects(alpha, minimum=0.005)
    assert [subject.number for subject in parts.subjects] == [1, 2]
    assert parts.labels[391, 391] == 2
    assert parts.subjects[1].box[1] < 300  # and do not widen its box
    assert len(find_subjects(alpha, minimum=0.0001).subjects) == 3


def test_no_more_than_the_largest_are_kept():
    alpha = np.zeros((1000, 1000), np.uint8)
    alpha[::40, ::40] = 255
    alpha[500:505, 500:505] = 255
    parts = find_subjects(alpha, minimum=0.0)
    assert len(parts.subjects) == SEEDS_MAXIMUM
    assert max(subject.area for subject in parts.subjects) >= 25


def test_the_same_subjects_at_every_size():
    circles = (150, 200, 90), (420, 180, 80), (160, 560, 100), (450, 540, 60)
    small = find_subjects(discs(800, 600, *circles), minimum=0.005)
    large = find_subjects(discs(3200, 2400, *(tuple(4 * each for each in circle) for circle in circles)), minimum=0.005)
    assert max(large.labels.shape) > COPY_SIDE
    for one, other in zip(small.subjects, large.subjects, strict=True):
        assert np.allclose(np.array(one.box) * 4, other.box, atol=8)
        assert np.allclose(np.array(one.centroid) * 4, other.centroid, atol=4)
        assert other.area == pytest.approx(16 * one.area, rel=0.03)


@pytest.mark.parametrize("scale", [1, 3])
def test_seeds_part_two_discs_that_touch_at_the_middle(scale):
    circles = (250, 200, 150), (549, 200, 150)
    alpha = discs(400 * scale, 800 * scale, *(tuple(scale * each for each in circle) for circle in circles))
    assert len(find_subjects(alpha, minimum=0.005).subjects) == 1
    boxes = tuple(tuple(scale * side for side in box) for box in ((100, 50, 400, 350), (400, 50, 700, 350)))
    parts = find_subjects(alpha, minimum=0.005, seeds=SubjectSeeds(*alpha.shape, boxes))
    assert len(parts.subjects) == 2
    columns = np.arange(alpha.shape[1])
    middle = 400 * scale
    assert set(parts.labels[:, columns < middle - scale].ravel()) == {0, 1}
    assert set(parts.labels[:, columns >= middle + scale].ravel()) == {0, 2}


def test_where_seeds_overlap_the_middle_parts_them():
    alpha = np.full((40, 100), 255, np.uint8)
    parts = find_subjects(alpha, minimum=0.005, seeds=SubjectSeeds(40, 100, ((0, 0, 60, 40), (40, 0, 100, 40))))
    assert set(parts.labels[:, :49].ravel()) == {1}
    assert set(parts.labels[:, 51:].ravel()) == {2}


def test_a_seed_inside_another_keeps_its_own():
    alpha = np.full((40, 100), 255, np.uint8)
    parts = find_subjects(alpha, minimum=0.005, seeds=SubjectSeeds(40, 100, ((0, 0, 100, 40), (50, 10, 70, 30))))
    assert sorted(subject.area for subject in parts.subjects) == [400, 3600]


def test_masks_part_as_boxes_do():
    alpha = discs(300, 500, (180, 150, 80), (330, 150, 80))
    boxes = ((90, 60, 255, 240), (255, 60, 420, 240))
    masks = np.zeros((2, *alpha.shape), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    runs = tuple(tuple(run_lengths.encode(mask)) for mask in masks)
    by_boxes, by_masks = (
        find_subjects(alpha, minimum=0.005, seeds=seeds)
        for seeds in (SubjectSeeds(*alpha.shape, boxes), SubjectSeeds(*alpha.shape, masks=runs))
    )
    assert np.array_equal(by_boxes.labels, by_masks.labels)
    assert len(by_masks.subjects) == 2


def test_seeds_beside_every_subject_leave_the_components():
    alpha = discs(300, 500, (100, 150, 60), (350, 150, 60))
    found = find_subjects(alpha, minimum=0.005, seeds=SubjectSeeds(*alpha.shape, ((200, 0, 220, 20),)))
    assert np.array_equal(found.labels, find_subjects(alpha, minimum=0.005).labels)


def test_seeds_are_read_from_json():
    seeds = parse_seeds(b'{"boxes": [[0, 0.5, 4, 5], [-1, 0, 99, 3]]}', 10, 8)
    assert seeds == SubjectSeeds(10, 8, ((0, 0.5, 4, 5), (-1, 0, 99, 3)))
    seeds = parse_seeds(b'{"masks": [{"size": [2, 3], "counts": [1, 2, 3]}]}', 2, 3)
    assert seeds == SubjectSeeds(2, 3, masks=((1, 2, 3),))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"{}", "exactly one"),
        (b'{"boxes": []}', "exactly one"),
        (b'{"boxes": [[0, 0, 1, 1]], "masks": [{"size": [10, 8], "counts": [80]}]}', "exactly one"),
        (b'{"boxes": [[0, 0, 1, 1]], "more": 1}', "more"),
        (b'{"boxes": [[0, 0, 1]]}', r"boxes\.0\.3"),
        (b'{"boxes": [[0, 0, 1, "1"]]}', r"boxes\.0\.3"),
        (b'{"boxes": [[0, 0, 1, NaN]]}', "boxes"),
        (b'{"boxes": [[0, 0, 1, 1e999]]}', "boxes"),
        (b'{"boxes": [[4, 0, 4, 1]]}', r"boxes\.0"),
        (b'{"boxes": [[0, 0, 1, 1], [8, 0, 9, 1]]}', r"boxes\.1"),
        (b'{"masks": [{"size": [8, 10], "counts": [80]}]}', r"masks\.0"),
        (b'{"masks": [{"size": [10, 8], "counts": [79]}]}', r"masks\.0"),
        (b'{"masks": [{"size": [10, 8], "counts": [81, -1]}]}', r"masks\.0"),
        (json.dumps({"boxes": [[0, 0, 1, 1]] * (SEEDS_MAXIMUM + 1)}).encode(), "256"),
        (b" " * (FILE_BYTES_MAXIMUM + 1), "bytes"),
    ],
)
def test_bad_seeds_are_a_sentence(data, words):
    with pytest.raises(ValueError, match=words):
        parse_seeds(data, 10, 8)


@given(arrays.arrays(np.bool_, SHAPES))
def test_run_lengths_tell_the_mask(mask):
    height, width = mask.shape
    runs = run_lengths.encode(mask)
    flat = [number % 2 for number, run in enumerate(runs) for _ in range(run)]
    assert np.array_equal(np.reshape(flat, (width, height)).T, mask)
    assert all(runs[1:])
    rows, columns = np.arange(height)[::2], np.arange(width)[1::3]
    assert np.array_equal(run_lengths.sample(runs, height, rows, columns), mask[np.ix_(rows, columns)])


@given(mattes())
def test_coco_holds_what_the_subjects_say(alpha):
    parts = find_subjects(alpha, minimum=0.0)
    found = json.loads(json.dumps(coco(alpha, parts, "a.png")))
    height, width = alpha.shape
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": width, "height": height}]
    assert len(found["annotations"]) == len(parts.subjects)
    for annotation in found["annotations"]:
        assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (1, 1, 0)
        assert annotation["segmentation"]["size"] == [height, width]
        mask = run_lengths.sample(annotation["segmentation"]["counts"], height, np.arange(height), np.arange(width))
        assert mask.sum() == annotation["area"]
        if annotation["area"]:
            assert annotation["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))


def test_masks_of_coco_are_seeds():
    alpha = discs(300, 500, (100, 150, 60), (350, 150, 60))
    parts = find_subjects(alpha, minimum=0.005)
    masks = [annotation["segmentation"] for annotation in coco(alpha, parts, "a.png")["annotations"]]
    again = find_subjects(alpha, minimum=0.005, seeds=parse_seeds(json.dumps({"masks": masks}).encode(), 300, 500))
    assert np.array_equal(again.labels, parts.labels)


def test_json_has_boxes_as_seeds_have_them():
    alpha = np.zeros((50, 80), np.uint8)
    alpha[10:20, 20:80] = 255
    found = as_json(find_subjects(alpha, minimum=0.005))
    (subject,) = found.pop("subjects")
    assert found == {"width": 80, "height": 50}
    assert subject == {
        "number": 1,
        "box": [20, 10, 80, 20],
        "area": 600,
        "centroid": [50.0, 15.0],
        "borders": ["right"],
        "confidence": None,
    }
    assert len(parse_seeds(json.dumps({"boxes": [subject["box"]]}).encode(), 50, 80).boxes) == 1
