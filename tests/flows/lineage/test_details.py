"""What the pages say of each kind of node, from real stores and real result files."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.lineage.details import FOLDER, details_of
from flows.lineage.pages import page
from flows.lineage.records import DatasetPin, record_dataset, record_source
from flows.lineage.sections import MAX_PICTURE_BYTES, MAX_ROWS, Picture, Section, pictures, strip, table
from flows.lineage.text import described
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import QuarantineRow, add_quarantine, withdraw
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.lineage.records import LineageGraph, LineageRecord, graph, write_record
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part
from uwm.eval.files import ExampleArrays, save_evaluation
from uwm.eval.result import Estimate, Evaluation, Example, Metric, Score, Settings
from uwm.recipes import get_recipe

MAX_PAGE_BYTES = 100_000


class Lab:
    """A dataset and its lineage."""

    def __init__(self, folder: Path, make_episode: Callable[..., Episode]) -> None:
        self.make, self.folder = make_episode, folder
        self.store, self.root = str(folder / "droid"), str(folder / "lineage")
        create_dataset(self.store, DatasetSpec(cameras=("left", "wrist"), action_dim=3))
        record_source(self.root, uri="memory://", fingerprint="aa", facts={}, run_url="")

    def add(self, *episodes: Episode, run: str = "run") -> str:
        """Commit episodes as a version and record it; returns its node."""
        commit(self.store, write_part(self.store, list(episodes), run_id=run))
        return self.record()

    def record(self) -> str:
        dataset = open_dataset(self.store)
        pin = DatasetPin(uri=self.store, version=dataset.version, table_id=dataset.table_id)
        return record_dataset(self.root, pin).node

    @property
    def graph(self) -> LineageGraph:
        return graph(self.root)

    def sections(self, node: str, *, keep: bool = False) -> dict[str, Section]:
        return {section.title: section for section in details_of(self.graph, [node], keep=keep)[node]}


@pytest.fixture
def lab(tmp_path: Path, make_episode: Callable[..., Episode]) -> Lab:
    return Lab(tmp_path, make_episode)


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_dataset_version_shows_its_statistics(lab: Lab) -> None:
    known = [lab.make("a", length=10), lab.make("b", length=30, collection="x|y")]
    node = lab.add(*known, lab.make("c", length=20, cameras=("wrist",), known=False))
    found = lab.sections(node)
    numbers = dict(found["Statistics"].rows)
    assert (numbers["episodes"], numbers["steps"]) == ("3", "60")
    assert numbers["shortest / median / longest episode"] == "10 / 20 / 30"
    assert numbers["steps with a known action"] == "40 (67 %)"
    assert numbers["bytes"] != "0"
    assert found["Cameras"].rows == (("left", "2 (67 %)", "24 x 32"), ("wrist", "3 (100 %)", "24 x 32"))
    assert set(found["Collections"].rows) == {
        ("lab", "2", "30", "10 (33 %)"),
        ("x|y", "1", "30", "30 (100 %)"),
    }
    actions = np.concatenate([episode.action for episode in known]).astype(np.float64)
    expected = np.stack([actions.min(0), actions.mean(0), actions.max(0), actions.std(0)], axis=1)
    shown = np.array([[float(cell) for cell in row[1:]] for row in found["Actions"].rows])
    np.testing.assert_allclose(shown, expected, rtol=1e-3)


def test_its_samples_are_the_first_middle_and_last_frame(lab: Lab) -> None:
    episodes = [lab.make(name, length=9) for name in "abcdefgh"]
    found = lab.sections(lab.add(*episodes))["Samples"]
    assert len(found.pictures) == 4
    assert "episode-a" in found.pictures[0].caption
    assert "episode-h" in found.pictures[-1].caption
    picture = np.asarray(decoded(found.pictures[0].url).convert("RGB"), dtype=np.float64)
    frames = episodes[0].frames["left"]
    assert isinstance(frames, np.ndarray)
    thirds = np.split(picture, 3, axis=1)
    for third, step in zip(thirds, (0, 4, 8), strict=True):
        np.testing.assert_allclose(third.mean((0, 1)), frames[step].mean((0, 1)), atol=3)


def test_it_says_what_changed_since_the_version_before(lab: Lab) -> None:
    lab.add(lab.make("a"), lab.make("b"), run="first")
    now = datetime.now(UTC)
    turned = [("bad.mp4", "truncated", "second"), ("old.mp4", "black", "first")]
    rows = [
        QuarantineRow(source_uri=uri, fingerprint=uri, reason=reason, detail="why", run_id=run, time=now)
        for uri, reason, run in turned
    ]
    add_quarantine(lab.store, rows)
    second = lab.sections(lab.add(lab.make("b", length=30, version=1), lab.make("c"), run="second"))
    change = second["What changed since version 1"]
    assert change.text.startswith("1 added, 1 replaced, 0 removed, 1 as before; +30 steps")
    assert {row[:3] for row in change.rows} == {
        ("changed", "episode-b", "24 -> 30"),
        ("added", "episode-c", "24"),
    }
    assert second["Turned away"].rows == (("truncated", "bad.mp4", "why"),)
    withdraw(lab.store, ["episode-a"], detail="the camera was covered")
    third = lab.sections(lab.record())
    assert third["What changed since version 2"].rows == (("removed", "episode-a", "24", "memory://a"),)
    assert third["Turned away"].rows == (("withdrawn", "memory://a", "the camera was covered"),)


def test_a_source_lists_its_raw_files(lab: Lab) -> None:
    source = next(node for node in lab.graph.nodes if node.startswith("source/"))
    write_record(
        lab.root,
        LineageRecord(
            kind="dataset",
            name="droid",
            version="1",
            identity=f"{open_dataset(lab.store).table_id}@1",
            uri=lab.store,
            upstream=(source,),
        ),
    )
    lab.add(*(lab.make(f"n{number:03d}", length=2) for number in range(MAX_ROWS + 5)))
    found = lab.sections(source)["Raw files"]
    assert found.text.startswith(f"{MAX_ROWS + 5} raw files became {MAX_ROWS + 5} episodes of dataset/droid@1.")
    assert "5 more are not shown" in found.text
    assert found.rows[0] == ("memory://n000", "1", "2")


def test_details_are_gathered_once_and_outlive_the_data(lab: Lab) -> None:
    node = lab.add(lab.make("a"))
    before = lab.sections(node)
    assert not (Path(lab.root) / FOLDER).exists(), "only what publishes writes"
    assert lab.sections(node, keep=True) == before
    shutil.rmtree(lab.store)
    assert lab.sections(node) == before
    other = write_record(
        lab.root, LineageRecord(kind="dataset", name="lost", version="1", identity="x@1", uri=lab.store)
    )
    assert "does not exist" in lab.sections(other.node, keep=True)["Details"].text
    assert not (Path(lab.root) / FOLDER / "dataset" / "lost@1.json").exists(), "what can't be read is tried again"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 99, "identity": "x", "sections": []}'])
def test_kept_details_that_are_no_use_are_gathered_again(lab: Lab, content: bytes) -> None:
    node = lab.add(lab.make("a"))
    before = lab.sections(node, keep=True)
    (Path(lab.root) / FOLDER / f"{node}.json").write_bytes(content)
    assert lab.sections(node) == before


def checkpoint(lab: Lab, name: str, *upstream: str, recipe: str = "debug", **settings: object) -> str:
    folder = lab.folder / name
    folder.mkdir()
    config = get_recipe(recipe).model_dump(mode="json") | settings
    use = {
        "uri": lab.store,
        "version": 1,
        "weight": 1.0,
        "collections": ["lab"],
        "episodes": 2,
        "segments": 1000,
        "table_id": "t",
    }
    state = {"digest": name, "metrics": {"loss": 0.123456789, "step_time": 2}, "datasets": [use | {"action_steps": 7}]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "state.json").write_text(json.dumps(state))
    record = LineageRecord(kind="checkpoint", name=name, version="1", identity=name, uri=str(folder), upstream=upstream)
    return write_record(lab.root, record).node


def test_a_checkpoint_shows_metrics_data_and_what_it_changed(lab: Lab) -> None:
    parent = checkpoint(lab, "pre")
    train = get_recipe("debug").train.model_dump(mode="json")
    node = checkpoint(lab, "tuned", parent, train={**train, "steps": train["steps"] + 1}, init_from="somewhere")
    found = lab.sections(node)
    assert found["Metrics"].rows == (("loss", "0.12346"), ("step time", "2"))
    assert found["Trained on"].rows == ((f"{lab.store}@1", "1", "lab", "2", "1,000", "7"),)
    changed = (("train.steps", str(train["steps"] + 1), str(train["steps"])),)
    assert found["Settings that differ from the recipe debug"].rows == changed
    assert found["Settings that differ from checkpoint/pre@1"].rows == changed
    assert found["Settings that differ from checkpoint/pre@1"].header == ("setting", "here", "there")


def test_settings_of_earlier_checkpoints_are_compared_by_their_names_of_today(lab: Lab) -> None:
    parent, settings = checkpoint(lab, "pre"), get_recipe("debug").model_dump(mode="json")
    earlier = settings | {"policy": "uwm", "model": settings["policy"] | {"depth": 7}, "diffusion": {"hoist": False}}
    earlier["tokenizer"] = settings["policy"]["tokenizer"]
    (lab.folder / "pre" / "config.json").write_text(json.dumps(earlier))
    rows = lab.sections(checkpoint(lab, "tuned", parent))["Settings that differ from checkpoint/pre@1"].rows
    assert ("policy.depth", "2", "7") in rows
    assert ("policy.diffusion.precompute_modulation", "true", "false") in {
        (n, a.lower(), b.lower()) for n, a, b in rows
    }
    assert not [row for row in rows if row[0].startswith(("model", "diffusion", "tokenizer"))]


def test_another_checkpoint_at_the_same_place_is_not_described(lab: Lab) -> None:
    node = checkpoint(lab, "run")
    (lab.folder / "run" / "state.json").write_text('{"digest": "other"}')
    assert "another checkpoint by now" in lab.sections(node)["Details"].text


@pytest.mark.parametrize("state", ["", "[]", "{", '{"digest": 1}', '{"digest": "run", "metrics": 3}'])
def test_a_damaged_checkpoint_is_said(lab: Lab, state: str) -> None:
    node = checkpoint(lab, "run")
    (lab.folder / "run" / "state.json").write_text(state)
    assert "state.json is damaged" in lab.sections(node)["Details"].text
    (lab.folder / "run" / "state.json").unlink()
    assert "state.json does not exist" in lab.sections(node)["Details"].text


def evaluation(lab: Lab) -> str:
    one = Estimate(mean=0.5, error=0.1, count=4)
    gain = Estimate(mean=0.25, error=0.01, count=4)
    frames = np.full((1, 2, 24, 32, 3), 90, np.uint8)
    result = Evaluation(
        settings=Settings(
            checkpoint="runs/x",
            checkpoint_identity="x",
            run="x",
            stage="pretrain",
            step=1,
            weights="ema",
            parameters=3,
            dataset_uri=lab.store,
            dataset_version=1,
            dataset_id="id",
            split="val",
            cameras=("left", "wrist"),
            action_names=("x",),
            image_size=(24, 32),
            next_start=1,
            next_frames=1,
            fps=5,
            seed=3,
            batch_size=1,
            sample_steps=2,
            requested=4,
        ),
        segments=4,
        episodes=2,
        short_episodes=0,
        scores=(
            Score(mode="policy", metric=Metric.ACTION_MSE, model=one, baseline="mean|action", reference=one, gain=gain),
        ),
        examples=(Example(episode_id="e1", source_uri="raw", collection="lab", step=7),),
        seconds=1,
    )
    arrays = ExampleArrays(
        current=frames,
        current_mask=np.array([[False, True]]),
        true=frames + 50,
        true_mask=np.array([[True, True]]),
        reconstruction=frames,
        action=np.zeros((1, 3, 1), np.float32),
        action_mask=np.ones((1, 3, 1), np.bool_),
        mean_action=np.zeros(1, np.float32),
        frames={"forward": frames + 100},
    )
    folder = str(lab.folder / "result")
    save_evaluation(folder, result, arrays)
    record = LineageRecord(kind="evaluation", name="result", version="1", identity="r", uri=folder)
    return write_record(lab.root, record).node


def test_an_evaluation_shows_its_scores_and_examples(lab: Lab) -> None:
    found = lab.sections(evaluation(lab))
    (row,) = found["Results"].rows
    assert row == ("policy", "action MSE ↓", "0.50 ± 0.10", "mean|action", "0.50 ± 0.10", "+25 ± 1 %", "▲")
    assert "4 segments of 2 val episodes" in found["Results"].text
    (picture,) = found["Examples"].pictures
    assert picture.caption == "now | true next | forward: step 7 of e1 (lab)"
    shown = np.asarray(decoded(picture.url).convert("L"), dtype=np.float64)
    means = [part.mean() for part in np.split(shown, 3, axis=1)]
    np.testing.assert_allclose(means, [90, 140, 190], atol=3)


def test_pages_stay_small_whatever_the_data(lab: Lab) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 240, 960, 3), np.uint8)
    wide = [lab.make(f"n{number}", collection="c" * 90 + str(number)) for number in range(60)]
    loud = [Episode(**{**vars(episode), "frames": {"left": noise}}) for episode in wide[:6]]
    node = lab.add(*loud[:3], *wide[6:], *loud[3:])
    details = details_of(lab.graph, [node])[node]
    text = page(lab.graph, node, details)
    assert "54 more" not in text
    assert len(text.encode()) < MAX_PAGE_BYTES
    assert any(section.pictures for section in details)


def test_strips_keep_their_budget_and_their_height() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 4000, 3), np.uint8)
    jpeg = strip([noise, noise])
    assert Image.open(io.BytesIO(jpeg)).size == (2 * 336, 84)
    found = pictures(("x", jpeg) for _ in range(50))
    assert 0 < sum(len(base64.b64decode(item.url.partition(",")[2])) for item in found) <= MAX_PICTURE_BYTES


HOSTILE = "](http://evil) | <img src=x onerror=y> `code` **b** \n# head\n| a | b |"


def test_hostile_texts_stay_in_their_cell() -> None:
    record = LineageRecord(kind="dataset", name="d", version="1", identity="d", uri="/d", facts={HOSTILE: HOSTILE})
    found = LineageGraph(root="/lineage", records={record.node: record})
    text = page(found, record.node, [table(HOSTILE, (HOSTILE, "x"), [(f"a {HOSTILE}", 1)], text=HOSTILE)])
    plain = re.sub(r"\\.", "", text)
    assert "<" not in plain
    assert not re.findall(r"\]\(http", plain)
    rows = [line for line in plain.splitlines() if "code" in line and line.startswith("|")]
    assert [line.count("|") for line in rows] == [3, 3, 3]
    assert [line for line in plain.splitlines() if line.startswith("#")][:1] == ["# dataset/d@1"]


def test_the_terminal_shows_the_same() -> None:
    record = LineageRecord(kind="dataset", name="d", version="1", identity="d", uri="/d", facts={"bytes": 1234})
    found = LineageGraph(root="/lineage", records={record.node: record})
    long = "x" * 200 + "the end"
    lines = described(found, record.node, [table("Cameras", ("camera", "size"), [("left", 3), (long, 4)], text="Two.")])
    assert lines[:5] == ["  bytes: 1,234", "", "Cameras", "  Two.", "  camera" + " " * 56 + "size"]
    assert lines[-1].endswith("the end  4")
    assert max(map(len, lines)) < 80


def test_a_picture_is_nothing_but_a_jpeg() -> None:
    for url in ("https://evil.org/x.jpg", "data:image/svg+xml;base64,AAAA", 'data:image/jpeg;base64,AA" onload="x'):
        with pytest.raises(ValueError, match="url"):
            Picture(caption="", url=url)
