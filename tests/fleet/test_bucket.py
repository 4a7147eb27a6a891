"""A root in a bucket: few requests, no half sets, no older version over a newer one, whatever a worker dies at."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rmbgd.config.load import parse
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.fleet import bucket as module
from rmbgd.fleet import objects
from rmbgd.fleet.bucket import BucketRoot
from rmbgd.fleet.inventory import Inventory
from rmbgd.fleet.objects import ObjectStore, Place
from rmbgd.fleet.root import RootAnswer
from rmbgd.fleet.worker import make_spools
from rmbgd.publish.publisher import SourceChanged
from rmbgd.store.records import Job, Leased
from rmbgd.testing.fs import WorldStopped
from tests.support.run import set_content, set_names, set_writer
from tests.support.storage import Storage
from tests.support.workspace import done, torn

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PLAIN = ("{dir}/{stem}.png",)
THREE = ("{dir}/{stem}.png", "web/{dir}/{stem}.jpg", "masks/{dir}/{stem}.png")
STEPS_MOST = 40  # of one publication
NUMBERS = itertools.count(1)


class DyingStore(ObjectStore):
    """Stops before the write that comes after so many. `store`: whose connections it uses."""

    def __init__(self, store: ObjectStore, after: int) -> None:
        self.__dict__.update(store.__dict__)
        self._left, self.ended = after, False

    def put(self, *arguments: Any, **more: Any) -> bool:
        self._step()
        return super().put(*arguments, **more)

    def delete(self, *arguments: Any, **more: Any) -> None:
        self._step()
        super().delete(*arguments, **more)

    def _step(self) -> None:
        if self._left == 0:
            self.ended = True
            raise WorldStopped
        self._left -= 1


class QuickerStore(ObjectStore):
    """Another worker publishes just before the first write."""

    def __init__(self, store: ObjectStore, publish: Callable[[], object]) -> None:
        self.__dict__.update(store.__dict__)
        self._publish, self.overtaken = publish, False

    def put(self, place: Place, below: str, *arguments: Any, **more: Any) -> bool:
        if not self.overtaken and below != objects.PROBE:
            self.overtaken = True
            self._publish()
        return super().put(place, below, *arguments, **more)


class BucketUnderTest:
    """A bucket of its own, and workers that publish into it."""

    def __init__(
        self, storage: Storage, base: Path, templates: Sequence[str] = PLAIN, *, review: bool = True, **more: Any
    ) -> None:
        self.storage, self.templates, self.name = storage, templates, f"shop-{next(NUMBERS)}"
        storage.make(self.name)
        roles = ("input", "output", "failed", *(["review"] if review else []))
        places = {role: f"s3://{self.name}/{role}" for role in roles}
        tables = {
            "source": {"kind": "jetstream"},
            "s3": storage.settings,
            "service": {"state_directory": str(base / self.name)},
            "recipe": {"default": {"deliver": [{"path": each} for each in templates], "review_below": 0.5 * review}},
            "bucket": [{"name": "shop"} | places],
        }
        self.config = parse(tables | more)
        make_spools(self.config)
        self.store, self._jobs = ObjectStore(self.config.s3), itertools.count(1)

    def root(self, store: ObjectStore | None = None) -> BucketRoot:
        """Of another worker each time."""
        bucket, limits = self.config.bucket[0], self.config.limits
        spool, recipe = self.config.spool_of(bucket), self.config.recipe_of(bucket)
        return BucketRoot(bucket, spool, recipe, store or self.store, limits.file_bytes)

    def drop(self, data: bytes, key: str = "s/a.jpg") -> None:
        self.storage.put(self.name, f"input/{key}", data)

    def lease(self, root: BucketRoot, key: str = "s/a.jpg", fingerprint: str = "") -> Job:
        """As a worker does it, of what stands there now."""
        fingerprint = fingerprint or {each.key: each.fingerprint for each in root.inputs()}[key]
        assert root.answer(key, fingerprint, refusals=False) is None
        found = root.source(key, fingerprint)
        assert found.state == "ready"
        assert found.version is not None
        number = next(self._jobs)
        place = (number, "shop", key, found.path, found.version, 1, 0.0, 0.0)
        leased = Leased(f"RMBGD_HOT:{number}/1", fingerprint)
        return Job(*place, claimed_by_rename=False, final=True, leased=leased)

    def publish(self, root: BucketRoot, job: Job, data: bytes, *, review: bool = False) -> bool:
        """Whether another made it from the same version."""
        with root.open_set(job) as files:
            set_writer(set_names(job.relative_path, self.templates), data, review=review)(files)
            again = root.publish(job, files, done(job).keys)[1]
        root.discard(job)
        return again

    def make(self, data: bytes, key: str = "s/a.jpg", *, review: bool = False) -> None:
        self.drop(data, key)
        root = self.root()
        self.publish(root, self.lease(root, key), data, review=review)

    def refuse(self, data: bytes) -> None:
        self.drop(data)
        root = self.root()
        job = self.lease(root)
        told = torn(job).keys
        root.refuse(job, {key: told[key] for key in ("folder", "path", "reason", "detail", "stage")})
        root.discard(job)

    def answer(self) -> RootAnswer | None:
        root = self.root()
        [entry] = root.inputs()
        return root.answer(entry.key, entry.fingerprint)

    def results(self, role: str = "output") -> dict[str, bytes]:
        """Objects without records."""
        found = self.storage.objects(self.name, f"{role}/")
        return {key: data for key, data in found.items() if not key.endswith(".json")}

    def content(self, data: bytes) -> dict[str, bytes]:
        return {name.plain: set_content(name, data) for name in set_names("s/a.jpg", self.templates)}

    def assert_only(self, data: bytes, role: str = "output") -> None:
        """Nothing stands but the set of this version, and its record where it has several files."""
        answer = self.answer()
        assert answer is not None
        assert answer.kind == "done"
        assert self.results(role) == self.content(data)
        others = {"output", "review"} - {role}
        assert all(self.storage.objects(self.name, f"{other}/") == {} for other in others)
        records = [key for key in self.storage.objects(self.name, f"{role}/") if key.endswith(".json")]
        assert len(records) == (len(self.templates) > 1)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with Storage(tmp_path_factory.mktemp("storage")) as storage:
        yield storage


# --- requests


def test_an_image_costs_one_head_one_get_and_one_put(storage: Storage, tmp_path: Path) -> None:
    places = {role: f"s3://few/{role}" for role in ("input", "output", "failed")}
    bucket = BucketUnderTest(storage, tmp_path, recipe={}, bucket=[{"name": "shop"} | places])
    bucket.name = "few"
    storage.make("few")
    root = bucket.root()
    for number in range(3):
        bucket.drop(b"image", f"{number}.jpg")
    entries = list(root.inputs())
    before = storage.asked("few")
    for entry in entries:
        bucket.publish(root, bucket.lease(root, entry.key, entry.fingerprint), b"cutout")
    asked = storage.asked("few") - before
    probes = {key: count for key, count in asked.items() if key[1] == "output/.rmbgd-probe"}
    assert probes == {("PUT", "output/.rmbgd-probe"): 2}
    methods = Counter({("HEAD", "output/{}.png"): 1, ("GET", "input/{}.jpg"): 1, ("PUT", "output/{}.png"): 1})
    for number in range(3):
        for (method, key), count in methods.items():
            assert asked.pop((method, key.format(number))) == count
    assert set(asked) == set(probes)


def test_what_is_done_costs_one_head(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.make(b"new")
    root = bucket.root()
    [entry] = root.inputs()
    before = storage.asked(bucket.name)
    answer = root.answer(entry.key, entry.fingerprint, refusals=False)
    assert answer is not None
    assert answer.story["output"] == "s/a.png"
    asked = storage.asked(bucket.name) - before
    assert asked == {("HEAD", "output/s/a.png"): 1, ("HEAD", "review/s/a.png"): 1}  # it has a place for people


# --- whatever a worker dies at


def first(bucket: BucketUnderTest) -> None:
    bucket.drop(b"new")


def over_older(bucket: BucketUnderTest) -> None:
    bucket.make(b"old one")
    bucket.drop(b"new")


def over_older_in_review(bucket: BucketUnderTest) -> None:
    bucket.make(b"old one", review=True)
    bucket.drop(b"new")


def over_part(bucket: BucketUnderTest) -> None:
    """Of this version, of which somebody removed an object."""
    bucket.make(b"new")
    bucket.storage.delete(bucket.name, f"output/{list(bucket.content(b''))[-1]}")


@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
@pytest.mark.parametrize("prepare", [first, over_older, over_older_in_review, over_part])
def test_whatever_a_worker_dies_at_the_next_one_makes_it_whole(
    storage: Storage, tmp_path: Path, prepare: Callable[[BucketUnderTest], None], templates: Sequence[str]
) -> None:
    for after in range(STEPS_MOST):
        bucket = BucketUnderTest(storage, tmp_path, templates)
        prepare(bucket)
        store = DyingStore(bucket.store, after)
        dying = bucket.root(store)
        with contextlib.suppress(WorldStopped):
            bucket.publish(dying, bucket.lease(dying), b"new")
        answer = bucket.answer()
        if answer is not None:  # what counts as done is done
            assert bucket.content(b"new").items() <= bucket.results().items()
        root = bucket.root()
        if answer is None:
            bucket.publish(root, bucket.lease(root), b"new")
        if store.ended and answer is not None:
            continue  # something older may be left in the other place, until the sweep
        bucket.assert_only(b"new")
        if not store.ended:
            return
    pytest.fail("no publication ended")


@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
def test_a_version_for_people_replaces_what_was_published(
    storage: Storage, tmp_path: Path, templates: Sequence[str]
) -> None:
    bucket = BucketUnderTest(storage, tmp_path, templates)
    bucket.make(b"old one")
    bucket.make(b"new", review=True)
    bucket.assert_only(b"new", "review")


# --- several workers


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
def test_a_slow_worker_does_not_overwrite_a_newer_version(
    storage: Storage, tmp_path: Path, templates: Sequence[str], *, conditional: bool
) -> None:
    bucket = BucketUnderTest(storage, tmp_path, templates)
    slow, quick = bucket.root(), bucket.root()
    bucket.store._conditional[bucket.name] = conditional  # what it found out of the storage
    bucket.drop(b"old one")
    old = bucket.lease(slow)
    bucket.drop(b"new")
    bucket.publish(quick, bucket.lease(quick), b"new")
    with pytest.raises(SourceChanged):
        bucket.publish(slow, old, b"old one")
    bucket.assert_only(b"new")


@pytest.mark.parametrize("review", [False, True], ids=["output", "review"])
def test_a_slow_worker_does_not_remove_a_newer_version_from_the_other_place(
    storage: Storage, tmp_path: Path, *, review: bool
) -> None:
    """What a PUT is conditional on is one object, in one place."""
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.make(b"oldest", review=review)
    slow, quick = bucket.root(), bucket.root()
    bucket.drop(b"old one")
    old = bucket.lease(slow)
    bucket.drop(b"new")
    bucket.publish(quick, bucket.lease(quick), b"new", review=review)
    with pytest.raises(SourceChanged):
        bucket.publish(slow, old, b"old one", review=not review)
    bucket.assert_only(b"new", "review" if review else "output")


def test_a_set_that_two_workers_put_at_once_has_its_plain_names(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path, THREE)
    bucket.drop(b"new")
    other = bucket.root()
    second = bucket.lease(other)
    store = QuickerStore(bucket.store, lambda: bucket.publish(other, second, b"new"))
    root = bucket.root(store)
    assert bucket.publish(root, bucket.lease(root), b"new")
    assert store.overtaken
    bucket.assert_only(b"new")


def test_a_refusal_of_a_version_that_was_replaced_is_not_written(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.drop(b"old one")
    slow = bucket.root()
    old = bucket.lease(slow)
    bucket.make(b"new")
    with pytest.raises(SourceChanged):
        slow.refuse(old, {"folder": "shop", "path": "s/a.jpg"})
    bucket.assert_only(b"new")


def test_a_newer_version_replaces_what_a_slow_worker_published_meanwhile(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path, review=False)
    slow, quick = bucket.root(), bucket.root()
    bucket.drop(b"old one")
    old = bucket.lease(slow)
    bucket.drop(b"new")
    new = bucket.lease(quick)
    bucket.publish(slow, old, b"old one")  # nothing stood there when it looked
    bucket.publish(quick, new, b"new")
    bucket.assert_only(b"new")


def test_the_second_of_two_workers_with_one_version_says_so_and_writes_nothing(
    storage: Storage, tmp_path: Path
) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.drop(b"new")
    one, other = bucket.root(), bucket.root()
    first_job, second_job = bucket.lease(one), bucket.lease(other)
    assert not bucket.publish(one, first_job, b"new")
    stood = storage.metadata(bucket.name, "output/s/a.png")
    assert bucket.publish(other, second_job, b"new")
    assert storage.metadata(bucket.name, "output/s/a.png") == stood
    bucket.assert_only(b"new")


# --- names


def test_the_second_of_two_inputs_with_one_output_takes_its_other_name(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.make(b"jpeg")
    bucket.make(b"tiff", "s/a.tif")
    name = set_names("s/a.tif", PLAIN)[0]
    assert bucket.results() == bucket.content(b"jpeg") | {name.later: set_content(name, b"tiff")}
    root = bucket.root()
    assert all(root.answer(each.key, each.fingerprint) for each in root.inputs())


@pytest.mark.parametrize("taken", ["s/a.png", "masks/s/a.png", "s/a.png.json"])
def test_objects_of_others_are_not_replaced(storage: Storage, tmp_path: Path, taken: str) -> None:
    bucket = BucketUnderTest(storage, tmp_path, THREE)
    storage.put(bucket.name, f"output/{taken}", b"of others")
    bucket.make(b"new")
    names = set_names("s/a.jpg", THREE)
    kept = storage.objects(bucket.name, "output/")
    assert kept[taken] == b"of others"
    assert {name.later: set_content(name, b"new") for name in names}.items() <= kept.items()
    assert bucket.answer() is not None


def test_where_both_names_are_of_others_it_is_refused(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    name = set_names("s/a.jpg", PLAIN)[0]
    for path in (name.plain, name.later):
        storage.put(bucket.name, f"output/{path}", b"of others")
    with pytest.raises(ImageError) as refused:
        bucket.make(b"new")
    assert refused.value.reason is Reason.OUTPUT_TAKEN


def test_only_images_are_listed(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    images = ["a.jpg", "s/ü ~b.png", "s/t/c?.tif"]
    for key in (*images, "s/", "a.jpg.part", ".hidden.jpg", "s//d.jpg", "../e.jpg", "s/a.json", "@eaDir/f.jpg"):
        bucket.drop(b"image", key)
    root = bucket.root()
    entries = list(root.inputs())
    assert [each.key for each in entries] == sorted(images)
    assert all(root.source(each.key, each.fingerprint).state == "ready" for each in entries)


def test_a_listing_of_several_pages_is_whole(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAGE", 10)
    bucket = BucketUnderTest(storage, tmp_path)
    for number in range(25):
        bucket.drop(b"", f"{number:02}.jpg")
    assert [each.key for each in bucket.root().inputs()] == [f"{number:02}.jpg" for number in range(25)]


def test_a_key_longer_than_file_names_are_is_processed(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    key = f"{'ä' * 200}/{'b' * 300}.jpg"
    bucket.make(b"new", key)
    assert bucket.answer() is not None


def test_a_key_whose_result_would_have_too_long_a_key_is_refused(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    key = "/".join(["d" * 200] * 5) + f"/{'a' * 9}.jpg"  # with input/ it has 1,024 bytes, with output/ one more
    with pytest.raises(ImageError) as refused:
        bucket.make(b"new", key)
    assert refused.value.reason is Reason.NAME_TOO_LONG
    root = bucket.root()
    [entry] = root.inputs()
    job = bucket.lease(root, key)
    root.refuse(job, {"folder": "shop", "path": key, "reason": "name_too_long", "detail": "", "stage": "finish"})
    answer = root.answer(key, entry.fingerprint)
    assert answer is not None
    assert answer.kind == "failed"
    assert root.forget_refusal(key)


def test_what_was_looked_at_and_not_begun_is_forgotten(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEEN_MAXIMUM", 2)
    bucket = BucketUnderTest(storage, tmp_path)
    root = bucket.root()
    for number in range(4):
        assert root.answer(f"{number}.jpg", "etag:0") is None
    bucket.drop(b"new")
    job = bucket.lease(root)
    for number in range(4):
        assert root.answer(f"{number}.jpg", "etag:0") is None
    bucket.publish(root, job, b"new")
    bucket.assert_only(b"new")


def test_a_list_of_keys_alone_is_completed_by_looking_at_the_bucket(storage: Storage, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (pip install 'rmbgd[parquet]')")
    arrow = pytest.importorskip("pyarrow")
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.drop(b"new")
    parquet.write_table(arrow.table({"key": ["s/a.jpg", "gone.jpg"]}), tmp_path / "list.parquet")
    inventory = Inventory(tmp_path / "list.parquet")
    found = [(each.key, each.fingerprint) for each in inventory.entries(bucket.root(), lambda _: True)]
    assert found == [(each.key, each.fingerprint) for each in bucket.root().inputs()]
    assert inventory.left_out == 1


# --- refusals


def test_a_refusal_is_recorded_and_an_answer_until_it_is_forgotten(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.refuse(b"torn")
    answer = bucket.answer()
    assert answer is not None
    assert (answer.kind, answer.story["reason"]) == ("failed", "corrupt")
    story = json.loads(storage.read(bucket.name, "failed/s/a.jpg.error.json"))
    assert (story["path"], story["folder"]) == ("s/a.jpg", "shop")
    assert bucket.root().forget_refusal("s/a.jpg")
    assert not bucket.root().forget_refusal("s/a.jpg")
    assert bucket.answer() is None


def test_the_refusal_of_an_older_version_is_removed(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.refuse(b"torn")
    assert bucket.root().remove_leftovers() == 0
    bucket.make(b"new")
    assert bucket.root().remove_leftovers() == 1
    assert storage.objects(bucket.name, "failed/") == {}


def test_what_is_too_large_is_not_fetched(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path, limits={"file_bytes": 10})
    bucket.drop(b"more than ten bytes")
    root = bucket.root()
    [entry] = root.inputs()
    found = root.source(entry.key, entry.fingerprint)
    assert (found.state, found.reason) == ("refused", Reason.TOO_MANY_BYTES)
    assert found.version is not None
    assert found.version.size == 19


# --- trouble


def test_inputs_that_changed_or_are_gone_are_told_apart(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path)
    bucket.drop(b"old one")
    root = bucket.root()
    [old] = root.inputs()
    bucket.drop(b"new")
    assert root.source(old.key, old.fingerprint).state == "superseded"
    assert root.fingerprint(old.key) == next(root.inputs()).fingerprint != old.fingerprint
    storage.delete(bucket.name, "input/s/a.jpg")
    assert root.source(old.key, old.fingerprint).state == "gone"
    assert root.fingerprint(old.key) is None
    assert root.answer("\udcff.jpg", old.fingerprint) is None
    assert root.source("\udcff.jpg", old.fingerprint).state == "gone"
    assert list(root.folder.input.iterdir()) == []


def test_a_bucket_that_is_not_there_is_the_storages_fault(storage: Storage, tmp_path: Path) -> None:
    places = {role: f"s3://nowhere/{role}" for role in ("input", "output", "failed")}
    bucket = BucketUnderTest(storage, tmp_path, bucket=[{"name": "shop"} | places], recipe={})
    root = bucket.root()
    assert "s3://nowhere/input" in root.trouble()
    with pytest.raises(OSError, match="bucket") as missing:
        root.source("a.jpg", "etag:0")
    assert missing.value.errno == errno.ENOENT


def test_a_storage_that_hangs_is_the_storages_fault(storage: Storage, tmp_path: Path) -> None:
    bucket = BucketUnderTest(storage, tmp_path, s3=storage.settings | {"timeout": 1.0})
    bucket.drop(b"new")
    root = bucket.root()
    job = bucket.lease(root)
    with storage.hanging(), pytest.raises(StorageFault) as fault:
        bucket.publish(root, job, b"new")
    assert fault.value.kind == "missing"
    bucket.publish(root, job, b"new")
    bucket.assert_only(b"new")


def test_places_are_read_as_written() -> None:
    assert Place.of("s3://shop/a/b/") == Place("shop", "a/b/")
    assert (str(Place.of("s3://shop")), Place.of("s3://shop/").key("x")) == ("s3://shop", "x")
