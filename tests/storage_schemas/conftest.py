"""A small dataset to read from."""

import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from s3_server import FaultProxy, moto_server

from storage_schemas.episode import Episode
from storage_schemas.schema import Codec
from storage_schemas.store import CommitResult, DatasetSpec, commit, create_dataset, write_part

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "UWM_STORAGE_TIMEOUT": "1",
    "UWM_STORAGE_RETRIES": "3",
}
CAMERAS = ("left", "right", "wrist")


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(cameras=CAMERAS, action_dim=3)


@pytest.fixture
def add(tmp_path: Path, spec: DatasetSpec) -> Callable[..., CommitResult]:
    """Write and commit episodes to the dataset `tmp_path / "data"`, creating it when needed."""

    def add(episodes: Sequence[Episode], *, codec: Codec = "jpeg", name: str = "data") -> CommitResult:
        uri = tmp_path / name
        create_dataset(uri, spec)
        return commit(uri, write_part(uri, episodes, run_id="run", codec=codec))

    return add


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[FaultProxy]:
    """A proxy before moto's S3."""
    with moto_server() as address, FaultProxy.serve(address) as proxy:
        yield proxy


@pytest.fixture
def s3(s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy that all libraries take for S3, with the empty bucket `bucket`; impatient, so that tests are short."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.address)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for method, path in (("POST", "/moto-api/reset"), ("PUT", "/bucket")):
        request = urllib.request.Request(s3_proxy.backend + path, method=method)
        urllib.request.urlopen(request).close()  # noqa: S310
    s3_proxy.reset()
    return s3_proxy
