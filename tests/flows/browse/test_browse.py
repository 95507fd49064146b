"""The pages of a dataset version: what they say of an episode, and that nobody's text or address becomes more."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from starlette.testclient import TestClient

from flows.browse.episodes import Browsed
from flows.browse.server import application
from flows.browse.site import write_site
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageRecord, graph, write_record
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

HOSTILE = "</script><script>alert(1)</script>"
UI = "http://127.0.0.1:4200"
LENGTH, UNKNOWN = 24, slice(5, 9)


@pytest.fixture
def browsed(tmp_path: Path, make_episode: Callable[..., Episode]) -> Browsed:
    """Two robot episodes, one with a gap in its actions and one held out, and one of video."""
    uri = str(tmp_path / "droid")
    spec = DatasetSpec(cameras=DROID_CAMERAS, action_dim=10, action=DROID_ACTION, val_percent=0)
    create_dataset(uri, spec)
    robot = make_episode("a", cameras=DROID_CAMERAS[:2], size=(35, 64), action_dim=10, length=LENGTH)
    known = np.ones(LENGTH, np.bool_)
    known[UNKNOWN] = False
    robot = replace(robot, action_mask=known, meta=replace(robot.meta, language=(HOSTILE,)))
    robot = replace(
        robot, state={"joints": np.full((LENGTH, 2), np.nan, np.float32), "wide": np.zeros((LENGTH, 200), np.float32)}
    )
    video = make_episode("b", cameras=DROID_CAMERAS[:1], size=(36, 64), action_dim=10, known=False)
    commit(uri, write_part(uri, [robot, video], run_id="test"))
    dataset, root = open_dataset(uri), str(tmp_path / "lineage")
    seen = LineageRecord(
        kind="dataset", name="droid", version="1", identity=f"{dataset.table_id}@{dataset.version}", uri=uri
    )
    learned = LineageRecord(
        kind="checkpoint", name="run", version="10", identity="x", uri=str(tmp_path / "run"), upstream=(seen.node,)
    )
    for record in (seen, learned):
        write_record(root, record)
    return Browsed(dataset, graph(root), UI)


@pytest.fixture
def client(browsed: Browsed, tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "cache").mkdir()
    with TestClient(application(browsed, tmp_path / "cache"), base_url="http://127.0.0.1") as opened:
        yield opened


def value_of(text: str) -> Any:
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


def test_the_overview_has_a_line_for_every_episode(client: TestClient, browsed: Browsed) -> None:
    shown = value_of(client.get(f"/{browsed.identity}/overview.js").text)
    assert shown["episodes"]["id"] == ["episode-a", "episode-b"]
    assert shown["episodes"]["actions"] == [LENGTH - (UNKNOWN.stop - UNKNOWN.start), 0]
    assert shown["node"]["url"] == f"{UI}/artifacts/key/dataset-droid-1"


def test_an_episode_has_its_curves_masks_and_provenance(browsed: Browsed) -> None:
    shown = browsed.episode(0)
    assert [view["camera"] for view in shown["views"]] == list(DROID_CAMERAS[:2])
    titles = [curve["title"] for curve in shown["curves"]]
    assert titles == [
        *(f"action: {part.name}" for part in DROID_ACTION.parts),
        "state/joints",
    ]  # not the wide one
    assert shown["curves"][0]["known"] == [(0, UNKNOWN.start - 1), (UNKNOWN.stop, LENGTH - 1)]
    assert shown["curves"][0]["labels"] == ["x", "y", "z"]
    assert shown["curves"][-1]["values"] == [[None] * LENGTH] * 2
    assert shown["facts"]["raw file"] == "memory://a"
    assert [item["node"] for item in shown["seen"]] == ["dataset/droid@1", "checkpoint/run@10"]
    assert not [curve for curve in browsed.episode(1)["curves"] if curve["title"].startswith("action")]


def test_the_video_shows_the_frames(client: TestClient, browsed: Browsed) -> None:
    answer = client.get(f"/{browsed.identity}/episodes/0-1.mp4")
    with av.open(io.BytesIO(answer.content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    stored = browsed.dataset.frames(0, DROID_CAMERAS[1], range(LENGTH))
    assert len(frames) == LENGTH
    height, width = stored.shape[1:3]
    shown = np.stack(frames)[:, :height, :width]
    assert np.abs(shown.astype(float) - stored).mean() < 8
    part = client.get(f"/{browsed.identity}/episodes/0-1.mp4", headers={"range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)  # without it no browser seeks


@pytest.mark.parametrize("path", ["episodes/2.js", "episodes/0-2.mp4", "episodes/0-9.mp4", "episodes/7-0.mp4"])
def test_what_there_is_not(client: TestClient, browsed: Browsed, path: str) -> None:
    assert client.get(f"/{browsed.identity}/{path}").status_code == 404


def test_another_versions_address_is_told(client: TestClient, browsed: Browsed) -> None:
    answer = client.get("/other@1/")
    assert answer.status_code == 404
    assert browsed.dataset.uri in answer.text


def test_another_sites_name_is_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_files_say_what_the_server_says(browsed: Browsed, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    assert write_site(browsed, out, most=1) == 1
    assert value_of((out / "overview.js").read_text())["whole"] == [0]
    written = (out / "episodes" / "0.js").read_text()
    assert value_of(written) == json.loads(json.dumps(browsed.episode(0)))
    assert sorted(path.name for path in (out / "episodes").glob("*.mp4")) == ["0-0.mp4", "0-1.mp4"]
    with pytest.raises(UserError, match="is there already"):
        write_site(browsed, out, most=1)
