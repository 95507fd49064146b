import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uwm.events import MetricsFile, TrainProgress
from uwm.report.curves import Series, loss_series
from uwm.report.plots import MAX_THUMBNAIL, ActionLine, action_multiples, loss_curves, thumbnail


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own output
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def progress(step: int, loss: float, **logs: float) -> TrainProgress:
    return TrainProgress(
        step=step, steps=9, loss=loss, logs=logs, lr=1e-3, grad_norm=1.0, samples_per_second=1.0, data_wait=0.0
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(0, 50))
@settings(max_examples=50)
def test_smoothing_stays_within_what_was_logged(values: list[float], window: int) -> None:
    one = Series(steps=np.arange(len(values)), values=np.array(values))
    smooth = one.smooth(window).values
    assert len(smooth) == len(values)
    assert smooth.min() >= min(values) - 1e-6
    assert smooth.max() <= max(values) + 1e-6
    assert smooth[0] == pytest.approx(values[0])


def test_a_straight_line_stays_where_it_is() -> None:
    one = Series(steps=np.arange(30), values=np.linspace(3, 1, 30))
    np.testing.assert_allclose(one.smooth(7).values, one.values)


def test_losses_of_a_run(tmp_path: Path) -> None:
    write = MetricsFile(tmp_path, step=0)
    write(progress(1, 2.0, action_loss=1.5, next_obs_loss=0.5, weight=9.0))
    write(progress(2, 1.0, action_loss=0.7, next_obs_loss=0.3, weight=9.0))
    found = loss_series(str(tmp_path))
    assert list(found) == ["loss", "action_loss", "next_obs_loss"]
    assert found["loss"].steps.tolist() == [1, 2]
    assert found["action_loss"].values.tolist() == [1.5, 0.7]
    assert loss_series(str(tmp_path / "elsewhere")) == {}


@pytest.mark.parametrize(("last", "label"), [(0.01, "loss (log)"), (0.9, "loss"), (-1.0, "loss")])
def test_the_axis_is_logarithmic_only_where_that_is_right(last: float, label: str) -> None:
    picture = loss_curves("x", {"loss": Series(steps=np.arange(3), values=np.array([1.0, 0.95, last]))})
    assert label in texts(picture.light)


def test_plots_are_the_same_bytes_again_and_differ_by_theme() -> None:
    series = {"loss": Series(steps=np.arange(20), values=np.exp(-np.arange(20) / 5))}
    first, again = loss_curves("x", series), loss_curves("x", series)
    assert first == again
    assert first.dark not in (None, first.light)
    assert loss_curves("x", {}).light  # nothing logged yet


@pytest.mark.parametrize("dims", [1, 3, 10])
def test_a_small_plot_for_every_dimension(dims: int) -> None:
    names = [f"dimension ${index}_a$" for index in range(dims)]
    truth = np.ones((16, dims))
    truth[8:] = np.nan
    lines = [
        ActionLine(label="true", values=truth, style="truth"),
        ActionLine(label="policy", values=np.zeros((16, dims))),
        ActionLine(label="mean action", values=np.zeros(dims), style="baseline"),
    ]
    found = texts(action_multiples("x", names, lines, 15.0).light)
    assert [text for text in found if text.startswith("dimension")] == names
    assert {"true", "policy", "mean action"} <= set(found)


@pytest.mark.parametrize("size", [(6, 8), (400, 700)])
def test_thumbnails_are_small(size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail(np.zeros((*size, 3), np.uint8)))) as image:
        assert image.width == min(size[1], MAX_THUMBNAIL)
        assert image.width / image.height == pytest.approx(size[1] / size[0], rel=0.02)
