"""Names that meet in the output, and images that are equal (T30, T34)."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import audit
from tests.support.images import assert_cutout_of, sample_image
from tests.support.service import ServiceUnderTest

NAMES = {"a.jpg": "JPEG", "a.png": "PNG", "a.JPG": "JPEG", "s/a.jpg": "JPEG"}
WITHIN = 4  # levels by which two decoders of JPEG may differ


def outputs(service: ServiceUnderTest, since: int) -> dict[str, str]:
    return {event["path"]: event["output"] for event in service.named("image.done", since=since)}


def test_four_inputs_of_one_stem_have_four_outputs(tmp_path: Path) -> None:
    orders = list(itertools.permutations(NAMES))[::3]  # store/test_ledger.py tries all
    contents: dict[str, bytes] = {}
    fresh = itertools.count()
    seen: list[dict[str, str]] = []
    with ServiceUnderTest(tmp_path) as service:
        for upload in range(3):
            since = len(service.events)
            for step in range(len(NAMES)):
                for number, order in enumerate(orders):
                    name = f"{number}/{order[step if upload == 0 else 3 - step]}"
                    kind = NAMES[name.split("/", 1)[1]]
                    contents |= service.drop_all({name: sample_image(next(fresh), kind=kind)})
                done = (step + 1) * len(orders)
                service.wait(
                    lambda done=done, since=since: len(outputs(service, since)) == done, "this arrival's outputs"
                )
            seen.append(outputs(service, since))
            if upload == 1:
                service.restart()
        assert seen[0] == seen[1] == seen[2]
        assert len(set(seen[0].values())) == len(seen[0]) == 4 * len(orders)
        assert sorted(seen[0].values()) == audit.files(service.output)
        for name, data in contents.items():
            assert_cutout_of(data, service.output / seen[2][name], within=WITHIN)
            assert os.path.dirname(seen[0][name]) == os.path.dirname(name)
        for number, order in enumerate(orders):
            first = next(name for name in order if "/" not in name)
            assert seen[0][f"{number}/{first}"] == f"{number}/a.png"
            assert seen[0][f"{number}/s/a.jpg"] == f"{number}/s/a.png"


def test_equal_images_are_computed_once(tmp_path: Path) -> None:
    data = sample_image(1)
    with ServiceUnderTest(tmp_path) as service:
        service.hold_in_engine("1.png", data)
        service.drop_all({"2.png": data, "s/3.png": data})
        service.hold.unlink()
        service.wait_for_endings(3)
        assert service.serve("4.png", data)["reused"]
        service.restart()
        assert service.serve("5.png", data)["reused"]
        assert service.computed() == 1
    audit.assert_complete(service.roots, dict.fromkeys(("1.png", "2.png", "s/3.png", "4.png", "5.png"), data))


def test_jpeg_of_the_service_lies_on_its_colour_and_names_and_answers_are_as_of_any_format(tmp_path: Path) -> None:
    data = {"a.jpg": sample_image(1, kind="JPEG"), "a.png": sample_image(2), "b.png": sample_image(2)}
    with ServiceUnderTest(tmp_path, recipe={"format": "jpeg", "background": "white", "sidecar": "always"}) as service:
        done = {name: service.serve(name, content) for name, content in data.items()}
        assert {"a.jpg": "a.jpg", "a.png": "a_png.jpg", "b.png": "b.jpg"} == outputs(service, 0)
        assert [False, False, True] == [each["reused"] for each in done.values()]
        for event in done.values():
            output = (service.output / event["output"]).read_bytes()
            with Image.open(io.BytesIO(output)) as opened:
                assert ("JPEG", "RGB", (64, 48)) == (opened.format, opened.mode, opened.size)
                assert np.asarray(opened)[:, 0].mean() > 220  # alpha is 0 on the left; the image is noise around 128
            assert (service.output / f"{event['output']}.json").is_file()
