"""What RLDS sources hold, whatever their builders made of it: identities, fields, types, instructions, images."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.cli import run
from pipelines.doctor.diagnose import diagnose
from pipelines.ingest import IngestReport, ingest
from pipelines.sources import rlds
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.errors import DamagedError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Any]
WRIST = "steps__observation__wrist_image_left"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def robot(tmp_path: Path, write_rlds: Make, make_features: Make) -> Make:
    """A function that writes the episodes of a robot, one for each seed; `path` is a template of the recorded one."""

    def write(folder: str, *seeds: int, path: str | None = None, name: str = "my_robot", **changes: Any) -> Path:
        records = []
        for number, seed in enumerate(seeds):
            recorded = [path.format(number, seed).encode()] if path else None
            records.append(make_features(4, seed=50 * seed, episode_metadata__file_path=recorded, **changes))
        return Path(write_rlds(tmp_path / folder, records, name=name))

    return write


def reasons(report: IngestReport) -> set[str]:
    return {rejection.reason for rejection in report.quarantined}


def png(seed: int, mode: str = "RGB") -> bytes:
    y, x = np.mgrid[0:24, 0:32]
    pixels = np.stack([x * 4 + seed, y * 6, x + y], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    out = io.BytesIO()
    (picture.convert(mode) if mode == "L" else picture).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "path",
    [None, "data/train/episode_{}.npy", "/data/lab/success/episode_{}.h5", "lab/success/day/run_{}.h5",
     "lab/success/day/time/part_{}/trajectory.h5", "lab/failure/{}"],
)  # fmt: skip
def test_robots_whose_builders_use_the_same_names_keep_their_episodes(robot: Make, store: str, path: str) -> None:
    first, second = robot("a", 1, 2, 3, path=path), robot("b", 4, 5, 6, path=path)
    assert ingest(str(first), store).added == 3
    report = ingest(str(second), store)
    assert (report.added, report.replaced, report.quarantined) == (3, 0, ())
    assert ingest(str(first), store).present == ingest(str(second), store).present == 3
    assert len(open_dataset(store)) == 6


def test_a_set_built_again_with_more_in_another_order_gains_only_these(robot: Make, store: str) -> None:
    ingest(str(robot("a", 1, 2, 3, 4)), store)
    report = ingest(str(robot("a", 9, 3, 1, 8, 4, 2)), store)
    assert (report.added, report.replaced, report.present, report.quarantined) == (2, 0, 4, ())
    assert len(open_dataset(store)) == 6


def test_a_record_that_changed_takes_the_place_of_what_it_was(robot: Make, store: str) -> None:
    ingest(str(robot("a", 1, 2, 3)), store)
    report = ingest(str(robot("a", 1, 7, 3)), store)
    assert (report.added, report.replaced, report.present) == (0, 1, 2)
    assert len(open_dataset(store)) == 3


def test_a_set_that_is_damaged_or_cut_later_loses_nothing(robot: Make, store: str) -> None:
    source = robot("a", 1, 2, 3)
    ingest(str(source), store)
    (shard,) = source.glob("*.tfrecord-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in reasons(ingest(str(source), store))
    assert len(open_dataset(store)) == 3


def test_a_store_of_the_old_identities_gains_nothing_twice(
    robot: Make, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions knew a record by its place in the set, and stored integers as float32."""
    sources = [robot("a", 1, 2, 3), robot("b", 4, 5, path="/data/LAB/success/day/{}/trajectory.h5")]
    numbers = rlds.numbers_of
    with monkeypatch.context() as old:
        places = iter(range(99))
        old.setattr(rlds, "_recorded", lambda _: ("LAB", True, f"droid\0my_robot#record={next(places)}"))
        old.setattr(rlds, "numbers_of", lambda *given: {k: v.astype(np.float32) for k, v in numbers(*given).items()})
        for source in sources:
            ingest(str(source), store)
    before = open_dataset(store)
    assert before.array(0, "state/reward").dtype == np.float32
    for source in sources:
        report = ingest(str(source), store)
        assert (report.added, report.replaced, report.version) == (0, 0, before.version)
    ingest(str(robot("a", 1, 2, 3, 6)), store)
    after = open_dataset(store)
    assert after.episodes.episode_ids[:5] == before.episodes.episode_ids
    assert len(after) == 6
    assert verify(store).ok


def test_droids_own_episodes_are_the_same_under_any_prefix(robot: Make, store: str) -> None:
    tail = "AUTOLab/success/2023-07-07/Fri_Jul__7_09:42:23_2023/trajectory{}.h5"
    ingest(str(robot("a", 1, path=f"/nfs/kun2/datasets/r2d2/{tail}")), store)
    report = ingest(str(robot("b", 2, path=f"gs://xembodiment_data/r2d2/{tail}")), store)
    assert (report.added, report.replaced) == (0, 1)


def test_fields_without_a_declaration_come_from_all_records(
    tmp_path: Path, write_rlds: Make, make_features: Make, store: str
) -> None:
    """One camera is absent from the first record, another is empty in the first frame, a field only in the last."""
    images = make_features(4)["steps/observation/wrist_image_left"]
    records = [
        make_features(4, path="l/success/d/1/trajectory.h5", **{WRIST: None}),
        make_features(4, path="l/success/d/2/trajectory.h5", seed=60),
        make_features(4, path="l/success/d/3/trajectory.h5", seed=120, steps__observation__extra=[1.5] * 8),
        make_features(4, path="l/success/d/4/trajectory.h5", seed=180, **{WRIST: [b"", *images[1:]]}),
        make_features(4, path="l/success/d/5/trajectory.h5", seed=240, steps__observation__extra=[1.5] * 12),
    ]
    report = ingest(str(write_rlds(tmp_path / "set", records)), store)
    dataset = open_dataset(store)
    assert [len(row.cameras) for row in dataset.episodes.rows()] == [2, 3, 3]
    assert dataset.array(2, "state/observation/extra").shape == (4, 2)
    assert sorted(r.reason for r in report.quarantined) == ["length_mismatch", "not_a_jpeg"]
    assert verify(store).ok


@pytest.mark.parametrize("value", [2**62 + 1, -(2**53) - 1, 1_700_000_000_123_456_789])
def test_integers_stay_what_they_are(
    tmp_path: Path, write_rlds: Make, make_features: Make, store: str, value: int
) -> None:
    times = [value + step for step in range(4)]
    source = write_rlds(tmp_path / "set", [make_features(4, steps__observation__timestamp_ns=times)])
    ingest(str(source), store)
    dataset = open_dataset(store)
    stored = dataset.array(0, "state/observation/timestamp_ns")
    assert (stored.dtype, stored[:, 0].tolist()) == (np.int64, times)
    assert dataset.array(0, "state/observation/gripper_position").dtype == np.float32
    assert dataset.episodes.statistics("state/observation/timestamp_ns").count == 4
    assert verify(store).ok
    import zarr

    array = zarr.open_group(f"{store}/parts/{dataset.episodes.parts[0]}", mode="r")["state/observation/timestamp_ns"]
    assert (array.dtype, array[:, 0].tolist()) == (np.int64, times)


def test_only_instructions_are_instructions(tmp_path: Path, write_rlds: Make, make_features: Make, store: str) -> None:
    texts = {
        "episode_metadata__language_instruction": [b"of the episode"],
        "episode_metadata__language_of_annotator": [b"en"],
        "steps__language_instruction": [b"lift"] * 4,
        "steps__language_instruction_3": [b"raise"] * 4,
        "steps__observation__natural_language_instruction": [b"hoist"] * 4,
        "steps__language_instruction_source": [b"crowd"] * 4,
        "steps__body_language": [b"calm"] * 4,
    }
    ingest(str(write_rlds(tmp_path / "set", [make_features(4, **texts)])), store)
    assert set(open_dataset(store).episodes.row(0).language) == {"of the episode", "lift", "raise", "hoist"}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_png_is_decoded(tmp_path: Path, write_rlds: Make, make_features: Make, store: str, mode: str) -> None:
    images = [png(step, mode) for step in range(4)]
    report = ingest(str(write_rlds(tmp_path / "set", [make_features(4, **{WRIST: images})])), store)
    assert report.added == 1
    frames = open_dataset(store).frames(0, "wrist_image_left", range(4))
    truth = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])
    assert np.abs(frames.astype(int) - truth).mean() < 5, "once through JPEG"


@pytest.mark.parametrize("declared", [False, True])
def test_depth_is_named_and_left_out(
    tmp_path: Path, write_rlds: Make, make_features: Make, store: str, declared: bool
) -> None:
    depth = [png(step, "I;16") for step in range(4)]
    features = make_features(4, steps__observation__depth=depth)
    folder = write_rlds(tmp_path / "set", [features])
    if declared:
        (folder / "features.json").write_text(json.dumps(declaration(features)))
    report = ingest(str(folder), store)
    (named,) = report.quarantined
    assert (named.reason, named.source_uri) == ("not_a_picture", f"{folder}/#observation/depth")
    assert open_dataset(store).episodes.row(0).cameras == sorted(open_dataset(store).spec.cameras)
    features["steps/observation/wrist_image_left"] = depth
    (folder / "features.json").write_text(json.dumps(declaration(features, wrong=True)))
    write_rlds(folder, [features])
    assert "depth_image" in reasons(ingest(str(folder), f"{store}-2"))


def declaration(features: dict[str, Any], *, wrong: bool = False) -> dict[str, Any]:
    """A features.json of the records of `make_features`; a wrong one calls 16-bit images pictures."""
    declared: dict[str, Any] = {}
    for key, values in features.items():
        if not key.startswith("steps/"):
            continue
        node: dict[str, Any] = {"tensor": {"dtype": "float32", "shape": {"dimensions": [str(len(values) // 4)]}}}
        if isinstance(values[0], bytes):
            dtype = "uint16" if key.endswith("depth") and not wrong else "uint8"
            node = {"text": {}} if "language" in key else {"image": {"dtype": dtype}}
        declared[key.removeprefix("steps/")] = node
    steps = {"sequence": {"feature": {"featuresDict": {"features": declared}}}}
    return {"featuresDict": {"features": {"steps": steps}}}


def scan_of(jpeg: bytes) -> int:
    """Where the middle of a JPEG's compressed data lies."""
    return (jpeg.rfind(b"\xff\xda") + len(jpeg)) // 2


def broken(jpeg: bytes) -> bytes:
    """A JPEG whose second half is gone, but for the end marker."""
    return jpeg[: scan_of(jpeg)] + b"\xff\xd9"


def zeroed(jpeg: bytes) -> bytes:
    """A JPEG with a hole of zeros in its compressed data, as a lost packet leaves it."""
    middle = scan_of(jpeg)
    return jpeg[:middle] + bytes(len(jpeg) - middle - 2) + jpeg[-2:]


def padded(jpeg: bytes) -> bytes:
    """A JPEG with more compressed data than it has blocks."""
    return jpeg[:-2] + b"\x12\x34" * 40 + jpeg[-2:]


@pytest.mark.parametrize("damage", [broken, zeroed, padded])
def test_a_broken_image_with_an_end_is_found_everywhere(
    tmp_path: Path, write_rlds: Make, make_features: Make, store: str, damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    images = make_features(4)["steps/observation/wrist_image_left"]
    bad = make_features(4, path="l/success/d/2/trajectory.h5", **{WRIST: [*images[:3], damage(images[3])]})
    source = write_rlds(tmp_path / "set", [make_features(4, seed=60), bad])
    (rejection,) = ingest(str(source), store).quarantined
    assert rejection.reason == "corrupt"
    assert "wrist_image_left: frame 3" in rejection.detail
    assert diagnose(str(source)).counts["corrupt"] == 1
    old = str(tmp_path / "old")
    with monkeypatch.context() as before:
        before.setattr("storage_schemas.store.frames.check_compressed", lambda _: None)
        assert ingest(str(source), old).added == 2
    (problem,) = verify(old).problems
    dataset = open_dataset(old)
    assert problem.episode_id == dataset.episodes.episode_ids[1]
    with pytest.raises(DamagedError, match=r"episode \w+ from .*set-train\.tfrecord-00000-of-00001#record=1"):
        dataset.frames(1, "wrist_image_left", [3])


def test_one_odd_record_ends_nothing_else(
    tmp_path: Path, write_rlds: Make, make_features: Make, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"steps__action_dict__cartesian_velocity": [0.1] * 48, "steps__action_dict__gripper_position": [0.1] * 8}
    records = [make_features(4, path=f"l/success/d/{n}/trajectory.h5", seed=n * 60, **(odd if n == 1 else {}))
               for n in range(4)]  # fmt: skip
    source = write_rlds(tmp_path / "set", records)

    def stumbling(example: Any) -> Any:
        if b"/d/2/" in example.byte_strings("episode_metadata/file_path")[0]:
            raise ValueError("the moon is full")
        return real(example)

    real = rlds.instructions_of
    monkeypatch.setattr(rlds, "instructions_of", stumbling)
    report = ingest(str(source), store)
    assert report.added == 2
    assert [(r.reason, r.source_uri[-9:]) for r in report.quarantined] == [
        ("length_mismatch", "#record=1"),
        ("odd", "#record=2"),
    ]
    assert "the moon is full" in report.quarantined[1].detail
    assert set(diagnose(str(source)).counts) >= {"length_mismatch", "odd"}
    whole = write_rlds(tmp_path / "other", [make_features(4, path="l/success/d/9/trajectory.h5", **odd)])
    assert reasons(ingest(str(whole), store)) == {"action_dim"}


def test_quarantine_tells_the_present(robot: Make, store: str, tmp_path: Path) -> None:
    source = robot("a", 1, 2, 3)
    shards = 5
    for index in range(1, shards):
        robot("more", 10 + index)
    whole = (tmp_path / "a/my_robot-train.tfrecord-00000-of-00001").read_bytes()
    (tmp_path / "a/my_robot-train.tfrecord-00000-of-00001").unlink()
    names = [tmp_path / f"a/my_robot-train.tfrecord-{index:05d}-of-02048" for index in range(2)]
    (source / "dataset_info.json").unlink()
    names[0].write_bytes(whole)
    names[1].write_bytes(whole[:-50])
    first = ingest(str(source), store)
    missing = [r for r in first.quarantined if r.reason == "missing_shard"]
    assert len(missing) == 1
    assert "2046 of 2048" in missing[0].detail
    assert {row.reason for row in quarantined(store)} == {"missing_shard", "truncated"}
    (source / "features.json").write_text("{")
    assert {row.reason for row in (ingest(str(source), store), quarantined(store))[1]} >= {"bad_metadata"}
    (source / "features.json").unlink()
    names[1].write_bytes(whole)
    for name in names:
        name.rename(name.with_name(name.name.replace("02048", "00002")))
    assert not ingest(str(source), store).quarantined
    assert quarantined(store) == []


def test_a_shard_that_was_away_leaves_quarantine_and_others_stay(robot: Make, store: str, tmp_path: Path) -> None:
    bad = robot("bad", 8, steps__is_first=[1] * 4)
    ingest(str(bad), store)
    source = robot("a", 1)
    shard = source / "my_robot-train.tfrecord-00000-of-00001"
    first, second = (shard.with_name(shard.name.replace("00000-of-00001", f"0000{i}-of-00002")) for i in range(2))
    shard.rename(first)
    shutil.copy(robot("b", 2) / shard.name, tmp_path / "later")
    (source / "dataset_info.json").unlink()
    ingest(str(source), store)
    assert {row.reason for row in quarantined(store)} == {"missing_shard", "bad_boundaries"}
    shutil.copy(tmp_path / "later", second)
    ingest(str(second), store)
    assert {row.reason for row in quarantined(store)} == {"bad_boundaries"}
    ingest(str(bad), store)
    assert {row.reason for row in quarantined(store)} == {"bad_boundaries"}


def test_all_rejected_is_exit_code_2_and_decides_nothing(
    robot: Make, store: str, tmp_path: Path, write_rlds: Make, make_features: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = make_features(4, steps__is_first=[1] * 4)
    strange["steps/observation/top"] = strange.pop("steps/observation/wrist_image_left")
    bad = write_rlds(tmp_path / "bad", [strange])
    assert run(["ingest", str(bad), store]) == 2
    assert "bad_boundaries" in capsys.readouterr().err
    assert run(["inspect", store]) == 0
    assert run(["ingest", str(bad), store, "--json"]) == 2
    assert '"version": 0' in capsys.readouterr().out
    assert run(["ingest", str(robot("good", 1, 2)), store]) == 0
    assert len(open_dataset(store)) == 2
    assert run(["ingest", str(robot("good", 1, 2)), store]) == 0, "what is there already is good"


def test_unfinished_and_compressed_shards_are_named(robot: Make, store: str, tmp_path: Path) -> None:
    import gzip

    source = robot("a", 1)
    (shard,) = source.glob("*.tfrecord-*")
    for name in (f".{shard.name}.aB3xYz", f"{shard.name}_.gstmp", f"{shard.name}.part", f"{shard.name}.tmp"):
        (source / name).write_bytes(shard.read_bytes()[:200])
    packed = robot("packed", 2)
    (other,) = packed.glob("*.tfrecord-*")
    other.write_bytes(gzip.compress(other.read_bytes()))
    report = ingest(str(tmp_path), store)
    assert report.added == 1
    assert sorted(r.reason for r in report.quarantined) == ["gzip", *["unfinished"] * 4]
