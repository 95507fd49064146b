"""Writing and reading episodes."""

import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import simplejpeg
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage_schemas.catalog.commits import CommitResult
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import locate
from storage_schemas.schema import Codec, DatasetSpec
from storage_schemas.store.dataset import Dataset, open_dataset, summary
from storage_schemas.store.parts import write_part
from storage_schemas.store.remote import RemoteParts

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]
CODECS = get_args(Codec)


def jpegs(episode: Episode) -> Episode:
    """The episode with its frames as JPEG bytes of another encoder setting than the store's own."""
    frames = {
        camera: EncodedFrames(
            height=pixels.shape[1],
            width=pixels.shape[2],
            jpegs=tuple(simplejpeg.encode_jpeg(frame, 71, "RGB", "444") for frame in pixels),
        )
        for camera, pixels in episode.frames.items()
        if not isinstance(pixels, EncodedFrames)
    }
    return replace(episode, frames=frames)


def raw(episode: Episode, camera: str) -> NDArray[np.uint8]:
    pixels = episode.frames[camera]
    assert not isinstance(pixels, EncodedFrames)
    return pixels


def test_episodes_come_back(make_episode: Make, add: Add, tmp_path: Path) -> None:
    episodes = [make_episode("a"), make_episode("b", length=7)]
    assert add(episodes).version == 1
    dataset = open_dataset(tmp_path / "data")
    for i, episode in enumerate(episodes):
        assert (dataset.array(i, "action") == episode.action).all()
        assert (dataset.array(i, "mask/action") == episode.action_mask).all()
        assert dataset.array(i, "mask/view").tolist() == [[True, False, True]] * len(episode)
        for name, values in episode.state.items():
            assert (dataset.array(i, f"state/{name}") == values).all()
        for camera in episode.frames:
            found = dataset.frames(i, camera, range(len(episode)))
            assert np.abs(found.astype(int) - raw(episode, camera)).mean() < 3
    counted = summary(dataset)
    assert (counted.episodes, counted.steps, counted.lengths, counted.actions_available) == (2, 31, (24, 7), 31)
    assert counted.cameras == dataset.spec.cameras
    files = [path.stat().st_size for path in (tmp_path / "data/parts").rglob("*") if path.is_file()]
    assert counted.bytes == sum(files)


def test_lossless_frames_are_exact(make_episode: Make, add: Add, tmp_path: Path) -> None:
    episode = make_episode("a", length=9)
    add([episode], codec="lossless")
    dataset = open_dataset(tmp_path / "data")
    for steps in ([8, 0, 3, 3], [8, 0, 3], [2, 5]):
        assert (dataset.frames(0, "wrist", steps) == raw(episode, "wrist")[steps]).all()


def test_jpeg_bytes_pass_through(make_episode: Make, add: Add, tmp_path: Path) -> None:
    episode = jpegs(make_episode("a"))
    add([episode])
    dataset = open_dataset(tmp_path / "data")
    for camera, frames in episode.frames.items():
        assert isinstance(frames, EncodedFrames)
        assert dataset.encoded(0, camera, range(len(episode))) == list(frames.jpegs)
        assert dataset.encoded(0, camera, [5, 2, 5]) == [frames.jpegs[i] for i in (5, 2, 5)]


def test_jpeg_frames_in_a_lossless_part_keep_their_pixels(make_episode: Make, add: Add, tmp_path: Path) -> None:
    episode = jpegs(make_episode("a", length=3))
    add([episode], codec="lossless")
    frames = episode.frames["left"]
    assert isinstance(frames, EncodedFrames)
    expected = np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in frames.jpegs])
    assert (open_dataset(tmp_path / "data").frames(0, "left", range(3)) == expected).all()


def test_plain_zarr_opens_a_part(make_episode: Make, add: Add, tmp_path: Path) -> None:
    add([make_episode("a", length=500), make_episode("b", length=40)])
    dataset = open_dataset(tmp_path / "data")
    group = zarr.open_group(tmp_path / "data/parts" / dataset.episodes.parts[0], mode="r")
    assert {name for name, _ in group.members(max_depth=None)} == {
        "rgb", "action", "mask", "mask/action", "mask/view", "state", "state/observation", "state/observation/position",
    }  # fmt: skip
    rgb: Any = group["rgb"]
    assert rgb.shape == (540, 3, 24, 32, 3)
    assert (rgb[510:516, 2] == dataset.frames(1, "wrist", range(10, 16))).all()
    assert not rgb[0, 1].any()
    action: Any = group["action"]
    assert (action[500:] == dataset.array(1, "action")).all()
    mask: Any = group["mask/view"]
    assert mask[:].all(axis=0).tolist() == [True, False, True]


def test_holes_cost_nothing(make_episode: Make, add: Add, tmp_path: Path) -> None:
    one = make_episode("a", length=50, cameras=("left",))
    add([one], name="one")
    add([replace(one, frames={"left": one.frames["left"], "right": one.frames["left"]})], name="two")
    frames = open_dataset(tmp_path / "one").encoded(0, "left", range(50))
    sizes = [summary(open_dataset(tmp_path / name)).bytes for name in ("one", "two")]
    assert sizes[1] - sizes[0] == pytest.approx(sum(map(len, frames)), abs=64)


def test_cameras_of_different_sizes(make_episode: Make, add: Add, tmp_path: Path) -> None:
    small, large = make_episode("a", length=6), make_episode("b", length=600, size=(40, 30))
    mixed = replace(small, meta=replace(small.meta, episode_id="m"))
    mixed = replace(mixed, frames={"left": small.frames["left"], "wrist": large.frames["wrist"][:6]})  # type: ignore[index]
    add([small, large, mixed])
    dataset = open_dataset(tmp_path / "data")
    assert len(set(dataset.episodes.parts)) == 1
    assert dataset.frames(2, "left", [3]).shape == (1, 24, 32, 3)
    assert dataset.frames(2, "wrist", [3]).shape == (1, 40, 30, 3)
    found = dataset.frames(1, "left", [0, 599])
    assert np.abs(found.astype(int) - raw(large, "left")[[0, 599]]).mean() < 3


def test_episodes_with_other_state_fields_get_their_own_part(make_episode: Make, add: Add, tmp_path: Path) -> None:
    first, third = make_episode("a"), make_episode("c")
    second = replace(make_episode("b"), state={})
    add([first, second, third])
    dataset = open_dataset(tmp_path / "data")
    assert dataset.episodes.episode_ids == [f"episode-{name}" for name in "abc"]
    parts = dataset.episodes.parts
    assert parts[0] == parts[2] != parts[1]
    with pytest.raises(KeyError, match="has no 'state/observation/position'"):
        dataset.array(1, "state/observation/position")
    assert (dataset.array(2, "state/observation/position") == third.state["observation/position"]).all()


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[Episode]]:
    """Episodes across a shard's edge, some actions unknown, with frames that tell their step."""
    from storage_schemas.catalog.commits import commit
    from storage_schemas.episode import EpisodeMeta

    episodes = []
    for k, length in enumerate((505, 30, 1)):
        numbers = np.arange(length) % 251
        frames = np.broadcast_to(numbers[:, None, None, None], (length, 4, 6, 3)).astype(np.uint8)
        meta = EpisodeMeta(
            episode_id=f"e{k}",
            source_uri=f"s{k}",
            source_format="t",
            source_fingerprint="f",
            collection=f"c{k % 2}",
            fps=15,
        )
        action = np.stack([np.full(length, k), np.arange(length)], 1).astype(np.float32)
        episodes.append(
            Episode(
                meta=meta, action=action, action_mask=np.arange(length) % 5 != k, state={"s": action},
                frames={"x": frames, "y": 255 - frames},
            )
        )  # fmt: skip
    uri = tmp_path_factory.mktemp("store") / "data"
    create_dataset(uri, DatasetSpec(cameras=("x", "gone", "y"), action_dim=2))
    commit(uri, write_part(uri, episodes, run_id="r", codec="lossless"))
    return open_dataset(uri), episodes


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_frames_and_actions_of_any_steps(lossless: tuple[Dataset, list[Episode]], data: st.DataObject) -> None:
    dataset, episodes = lossless
    row = data.draw(st.integers(0, len(episodes) - 1))
    episode = episodes[row]
    steps = data.draw(st.lists(st.integers(0, len(episode) - 1), max_size=6))
    for camera in ("x", "y"):
        assert (dataset.frames(row, camera, steps) == raw(episode, camera)[steps]).all()
    step, count = data.draw(st.integers(0, len(episode) - 1)), data.draw(st.integers(1, 20))
    action, known = dataset.actions(row, step, count)
    chunk = slice(step, step + count)
    mask = episode.action_mask[chunk]
    assert (known[: len(mask)] == mask).all()
    assert (action[: len(mask)] == np.where(mask[:, None], episode.action[chunk], 0)).all()
    assert not known[len(mask) :].any()
    assert not action[len(mask) :].any()


def test_bad_reads(lossless: tuple[Dataset, list[Episode]]) -> None:
    dataset, _ = lossless
    for episode, step in ((-1, 0), (3, 0), (1, 30), (1, -1)):
        with pytest.raises(IndexError):
            dataset.frames(episode, "x", [step])
    with pytest.raises(UserError, match="no camera 'typo'"):
        dataset.frames(0, "typo", [0])
    with pytest.raises(KeyError, match="gone"):
        dataset.frames(1, "gone", [0])
    with pytest.raises(KeyError, match="gone"):
        dataset.encoded(1, "gone", [0])
    with pytest.raises(KeyError, match="nope"):
        dataset.array(0, "nope")
    assert dataset.frames(1, "x", []).shape == (0, 4, 6, 3)
    assert dataset.encoded(1, "x", []) == []


def test_selection_and_statistics_never_read_a_part(
    lossless: tuple[Dataset, list[Episode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, episodes = lossless
    monkeypatch.setattr(Dataset, "reader", None)
    table = open_dataset(dataset.uri).episodes
    assert table.collections == ["c0", "c1", "c0"]
    assert table.select(collections=["c0"]).tolist() == [0, 2]
    assert len(table.select(split="train")) + len(table.select(split="val")) == 3
    known = np.concatenate([episodes[i].action[episodes[i].action_mask] for i in (0, 1)])
    found = table.statistics("action", [0, 1])
    assert found.count == len(known)
    assert (found.min == known.min(axis=0)).all()
    assert (found.max == known.max(axis=0)).all()
    np.testing.assert_allclose(found.mean, known.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, known.std(axis=0), rtol=1e-6)
    assert table.statistics("action", []).count == 0
    assert table.statistics("nope").count == 0
    assert table.statistics("state/s").count == 536


def _digest(dataset: Dataset, episode: int, step: int) -> tuple[int, float]:
    frames = [dataset.frames(episode, camera, [step, max(0, step - 1)]) for camera in ("x", "y")]
    return sum(int(pixels.sum()) for pixels in frames), float(dataset.actions(episode, step, 16)[0].sum())


def _digests(dataset: Dataset, steps: list[int]) -> list[tuple[int, float]]:
    return [_digest(dataset, 0, step) for step in steps]


def _digests_in_a_fork(dataset: Dataset, steps: list[int]) -> Any:
    _digests(dataset, steps)  # the parent has read before it forks
    return _in_a_fork(lambda: _digests(dataset, steps))


@pytest.mark.parametrize("read", [_digests, _digests_in_a_fork], ids=["spawn", "fork"])
def test_worker_processes_read_the_same(
    lossless: tuple[Dataset, list[Episode]], read: Callable[[Dataset, list[int]], Any]
) -> None:
    dataset, steps = lossless[0], list(range(490, 505, 2))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(read, dataset, steps).result(timeout=120) == _digests(dataset, steps)


def test_pickling_is_small_and_opens_nothing(lossless: tuple[Dataset, list[Episode]]) -> None:
    dataset, _ = lossless
    _digest(dataset, 0, 0)
    dataset.episodes.statistics("action")
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    assert _digest(pickle.loads(data), 1, 1) == _digest(dataset, 1, 1)  # noqa: S301


def test_tensorstore_reads_the_same(lossless: tuple[Dataset, list[Episode]]) -> None:
    dataset, _ = lossless
    remote = open_dataset(dataset.uri)
    remote._reader = RemoteParts(locate(dataset.uri) / "parts")
    for step in (0, 3, 490, 500, 504):
        assert _digest(remote, 0, step) == _digest(dataset, 0, step)
    assert (remote.array(1, "action") == dataset.array(1, "action")).all()


def _read_remote(dataset: Dataset) -> str:
    try:
        dataset.frames(0, "x", [0])
    except RuntimeError as error:
        return str(error)
    return "no error"


def _read_in_a_fork(uri: str) -> str:
    """What a child says that is forked after its parent has read through TensorStore."""
    remote = open_dataset(uri)
    remote._reader = RemoteParts(locate(uri) / "parts")
    _read_remote(remote)
    return str(_in_a_fork(lambda: _read_remote(remote)))


def _in_a_fork(ask: Callable[[], Any]) -> Any:
    """The answer of a forked child; to be called in a fresh process, for this one has threads of other tests."""
    context = multiprocessing.get_context("fork")
    answers, child = context.Pipe(duplex=False)
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
    process = context.Process(target=lambda: child.send(ask()))
    process.start()
    said = answers.recv() if answers.poll(60) else "nothing"
    process.kill()
    return said


def test_tensorstore_after_a_fork_is_an_error_that_helps(lossless: tuple[Dataset, list[Episode]]) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert "spawn" in pool.submit(_read_in_a_fork, lossless[0].uri).result(timeout=120)


def test_what_does_not_fit_is_refused(make_episode: Make, tmp_path: Path, spec: DatasetSpec) -> None:
    with pytest.raises(UserError, match="does not exist"):
        write_part(tmp_path / "nope", [make_episode()], run_id="r")
    uri = tmp_path / "data"
    create_dataset(uri, spec)
    with pytest.raises(ValueError, match="cameras"):
        write_part(uri, [make_episode(cameras=("front",))], run_id="r")
    with pytest.raises(ValueError, match="5-dim actions"):
        write_part(uri, [make_episode(action_dim=5)], run_id="r")
    lying = EncodedFrames(height=9, width=9, jpegs=(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)),))
    with pytest.raises(ValueError, match="8x8"):
        write_part(uri, [replace(make_episode(length=1), frames={"left": lying})], run_id="r")
    hostile = replace(make_episode(), state={"../../../escape": np.zeros((24, 1), np.float32)})
    with pytest.raises(ValueError, match="can't be stored"):
        write_part(uri, [hostile], run_id="r")
    assert write_part(uri, [], run_id="r") == []
    assert open_dataset(uri).version == 0
    assert [path.name for path in uri.iterdir()] == ["episodes"]


def test_an_uncommitted_part_is_invisible(make_episode: Make, add: Add, tmp_path: Path) -> None:
    add([make_episode("a")])
    write_part(tmp_path / "data", [make_episode("b")], run_id="r")
    assert len(open_dataset(tmp_path / "data")) == 1
    assert len(list((tmp_path / "data/parts").iterdir())) == 2


def test_episodes_without_frames_or_with_odd_state(make_episode: Make, add: Add, tmp_path: Path) -> None:
    bare = replace(make_episode("a"), frames={}, state={"none": np.zeros((24, 0), np.float32)})
    add([bare])
    dataset = open_dataset(tmp_path / "data")
    with pytest.raises(KeyError, match="left"):
        dataset.frames(0, "left", [4])
    assert not dataset.array(0, "mask/view").any()
    assert dataset.array(0, "state/none").shape == (24, 0)


def test_missing_files_are_damage(make_episode: Make, add: Add, tmp_path: Path) -> None:
    add([make_episode("a")])
    for pattern, needle in (
        ("rgb/c/*/*/*/*/*", "from memory://a lacks a frame"),
        ("action/c/*/*", "is missing"),
        ("zarr.json", "zarr.json"),
    ):
        dataset = open_dataset(tmp_path / "data")
        (file,) = (tmp_path / "data/parts" / dataset.episodes.parts[0]).glob(pattern)
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(DamagedError, match=needle):
            _ = dataset.frames(0, "left", [0]), dataset.actions(0, 0, 1)
        file.write_bytes(kept)
