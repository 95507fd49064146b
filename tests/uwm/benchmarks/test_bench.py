"""The benchmarks run at toy size and print what they promise. Nothing is timed here."""

import json
import os
import sys

import pytest

from flows.cli import run
from storage_schemas.episode import EncodedFrames
from storage_schemas.synthetic import generate
from uwm.benchmarks.catalogs import COMMITS, WRITERS
from uwm.benchmarks.loader import bench_loader
from uwm.benchmarks.measure import Script, interleave, interleave_workers
from uwm.benchmarks.store import BATCH

KEYS = {"jpeg", "lossless", "latents", "published", "decode_only", "mp4", "lance"}
PUBLISHED_PYTHON = os.environ.get("UWM_PUBLISHED_PYTHON")
"""An interpreter with zarr 2.18.2 and numcodecs 0.13.1."""


def test_every_layout_is_measured_on_the_same_frames() -> None:
    result = bench_loader(episodes=1, steps=40, rounds=1, batch=2, published_python=sys.executable)
    assert result.samples_per_cpu_second.keys() | result.left_out.keys() >= KEYS
    assert result.bytes_per_frame.keys() == result.samples_per_cpu_second.keys()
    assert result.frames_per_sample == 12
    assert result.left_out["published"].startswith("it has version 3."), "today's zarr-python is no stand-in"
    assert "jpeg_over_published" not in result.ratios


@pytest.mark.skipif(PUBLISHED_PYTHON is None, reason="UWM_PUBLISHED_PYTHON names no interpreter with zarr 2.18.2")
def test_the_published_layout_is_read_by_its_own_zarr() -> None:
    result = bench_loader(episodes=1, steps=40, rounds=1, batch=2, published_python=PUBLISHED_PYTHON)
    assert result.bytes_per_frame["jpeg"] < result.bytes_per_frame["published"] / 6
    assert {name for name in result.ratios if name.endswith("_over_published")} == {
        "jpeg_over_published",
        "lossless_over_published",
    }


def test_the_published_layout_needs_its_interpreter() -> None:
    commands = ([sys.executable, "-c", "raise SystemExit('no zarr')"], [sys.executable, "-c", "print('null')"])
    scripts = {
        str(n): Script(command=command, version="2.", ask=lambda piece: []) for n, command in enumerate(commands)
    }
    costs, failed = interleave_workers(scripts, rounds=1)
    assert not costs
    assert failed == {"0": "it has version none", "1": "it has version none"}


def test_contenders_take_turns_and_do_equal_work() -> None:
    seen: list[tuple[str, int]] = []
    interleave({name: lambda piece, name=name: seen.append((name, piece)) for name in "ab"}, rounds=2, pieces=2)
    assert seen == [(name, turn * 2 + piece) for turn in range(3) for name in "ab" for piece in range(2)]


def test_content_is_the_same_every_time_and_like_a_photo() -> None:
    one, two = (generate(1, 3)[0].frames for _ in range(2))
    assert one == two
    for frames in one.values():
        assert isinstance(frames, EncodedFrames)
        assert 20_000 < len(frames.jpegs[0]) < 35_000


@pytest.mark.parametrize("command", ["bench ingest --rounds 1 --episodes 1", "bench store --largest 100"])
def test_figures_come_as_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_catalogs_are_measured_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("icechunk", reason="Icechunk is not installed: it is only measured against")
    assert run(["bench", "catalog", "--largest", "100", "--no-s3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in told["catalogs"]} == {"delta", "icechunk"}
    episodes = {row["kind"]: row["episodes"] for row in told["writers"]}
    assert episodes["delta"] == WRITERS * COMMITS * BATCH
    assert episodes["icechunk"] <= episodes["delta"], "on a local disk it promises no more"


def test_catalogs_say_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["bench", "catalog"]) == 2
    assert "pip install icechunk" in capsys.readouterr().err


def test_latents_need_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["latents", "debug", "data.datasets.0.uri=x"]) == 2
    assert "data.latents=NAME" in capsys.readouterr().err
