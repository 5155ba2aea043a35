"""Transfers over a server that cuts, corrupts, slows, redirects, lies and changes its mind."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from finback.errors import ChecksumMismatch, ConfigError, DownloadError, UnknownModel
from finback.hub.http import Http, Patience, RemoteFile, endpoint_from, token_from
from finback.hub.partial import Digest
from tests.hub.conftest import COMMIT, IMPATIENT, REPO, FakeHub, Fault, Recorder

SIZE = 300_000
CONTENT = random.Random(1).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "model.safetensors"

Fetch = Callable[..., str]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "files" / NAME


@pytest.fixture
def fetch(hub: FakeHub, target: Path, recorder: Recorder) -> Fetch:
    hub.files[NAME] = CONTENT

    def run(*faults: Fault, digest: str = SHA256, size: int = SIZE, patience: Patience = IMPATIENT) -> str:
        hub.fail(NAME, *faults)
        url = f"{hub.url}/{REPO}/resolve/{COMMIT}/{NAME}"
        with Http(hub.url, patience=patience, progress=recorder) as http:
            return http.download(RemoteFile(NAME, url, size, Digest("sha256", digest)), target)

    return run


def assert_whole(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert sorted(path.name for path in target.parent.iterdir()) == [NAME]


def ranges(hub: FakeHub) -> list[str | None]:
    return [headers.get("range") for headers in hub.asked_for(NAME)]


def test_a_file_arrives_whole_and_counted(fetch: Fetch, target: Path, recorder: Recorder) -> None:
    assert fetch() == SHA256
    assert_whole(target)
    assert recorder.counted_bytes == SIZE
    assert recorder.notes == []


def test_a_cut_connection_is_resumed_where_it_broke(
    fetch: Fetch, hub: FakeHub, target: Path, recorder: Recorder
) -> None:
    fetch(Fault(cut_after=100_000), Fault(cut_after=100_000))
    assert_whole(target)
    assert ranges(hub) == [None, "bytes=100000-", "bytes=200000-"]
    etags = {headers.get("if-range") for headers in hub.asked_for(NAME)[1:]}
    assert etags == {f'"{SHA256[:16]}"'}
    assert recorder.counted_bytes == SIZE
    assert len(recorder.notes) == 2


def test_progress_renews_patience(fetch: Fetch, target: Path) -> None:
    fetch(*[Fault(cut_after=10_000)] * (3 * IMPATIENT.attempts))
    assert_whole(target)


def test_no_progress_ends_in_a_typed_error_and_keeps_the_part(fetch: Fetch, target: Path) -> None:
    with pytest.raises(DownloadError, match="gave up after 4 attempts") as caught:
        fetch(Fault(cut_after=100_000), *[Fault(cut_after=0)] * 9)
    assert "again" in str(caught.value.hint)
    assert not target.exists()
    assert target.with_name(NAME + ".part").read_bytes() == CONTENT[:100_000]


def test_a_later_run_resumes_the_part(fetch: Fetch, hub: FakeHub, target: Path, recorder: Recorder) -> None:
    with pytest.raises(DownloadError):
        fetch(Fault(cut_after=100_000), *[Fault(cut_after=0)] * 3)
    hub.requests.clear()
    recorder.counted_bytes = 0
    fetch()
    assert_whole(target)
    assert ranges(hub) == ["bytes=100000-"]
    assert recorder.counted_bytes == SIZE


def test_a_corrupted_transfer_is_thrown_away_and_fetched_again(fetch: Fetch, target: Path, recorder: Recorder) -> None:
    fetch(Fault(corrupt_at=123_456))
    assert_whole(target)
    assert recorder.counted_bytes == SIZE


def test_a_corrupted_resumed_range_is_thrown_away_too(fetch: Fetch, hub: FakeHub, target: Path) -> None:
    fetch(Fault(cut_after=100_000), Fault(corrupt_at=SIZE - 1))
    assert_whole(target)
    assert ranges(hub) == [None, "bytes=100000-", None]


def test_a_corrupted_part_on_disk_is_found_out(fetch: Fetch, target: Path) -> None:
    with pytest.raises(DownloadError):
        fetch(Fault(cut_after=100_000), *[Fault(cut_after=0)] * 3)
    part = target.with_name(NAME + ".part")
    spoiled = bytearray(part.read_bytes())
    spoiled[5] ^= 1
    part.write_bytes(spoiled)
    fetch()
    assert_whole(target)


def test_bytes_that_are_never_right_do_not_get_the_name(fetch: Fetch, target: Path) -> None:
    with pytest.raises(ChecksumMismatch, match="published digest") as caught:
        fetch(digest="0" * 64)
    assert caught.value.hint
    assert not target.exists()
    assert target.with_name(NAME + ".part").stat().st_size == 0


def test_a_changed_etag_starts_over(fetch: Fetch, hub: FakeHub, target: Path, recorder: Recorder) -> None:
    hub.etags[NAME] = '"one"'
    with pytest.raises(DownloadError):
        fetch(Fault(cut_after=100_000), *[Fault(cut_after=0)] * 3)
    hub.etags[NAME] = '"two"'
    recorder.counted_bytes = 0
    fetch()
    assert_whole(target)
    assert recorder.counted_bytes == SIZE


def test_a_weak_etag_is_not_used_as_a_validator(fetch: Fetch, hub: FakeHub, target: Path) -> None:
    hub.etags[NAME] = 'W/"weak"'
    fetch(Fault(cut_after=100_000))
    assert_whole(target)
    assert "if-range" not in hub.asked_for(NAME)[1]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignore_range=True),
        Fault(range_from=5),
        Fault(status=416),
        Fault(status=206, headers={"Content-Range": "bytes */5"}),
        Fault(announce=7),
    ],
    ids=["whole file instead", "another place", "416", "nonsense range", "another size"],
)
def test_an_unexpected_answer_to_a_range_does_no_harm(fetch: Fetch, target: Path, fault: Fault) -> None:
    fetch(Fault(cut_after=100_000), fault)
    assert_whole(target)


@pytest.mark.parametrize("off", [-1000, 1000])
def test_a_lie_about_the_length_is_refused(fetch: Fetch, target: Path, off: int) -> None:
    with pytest.raises(DownloadError, match="announces"):
        fetch(*[Fault(announce=off)] * 4)
    assert not target.exists()


def test_a_file_longer_than_listed_is_refused(fetch: Fetch, target: Path) -> None:
    with pytest.raises(DownloadError, match="announces"):
        fetch(*[Fault(surplus=50_000)] * 4)
    assert not target.exists()


def test_surplus_bytes_are_not_kept(fetch: Fetch, target: Path, recorder: Recorder) -> None:
    fetch(Fault(surplus=50_000, no_length=True))
    assert_whole(target)
    assert "more bytes" in recorder.notes[0]
    assert recorder.counted_bytes == SIZE


def test_a_length_that_is_not_announced_is_checked_at_the_end(fetch: Fetch, target: Path, recorder: Recorder) -> None:
    fetch(Fault(no_length=True, cut_after=1000))
    assert_whole(target)
    assert "1,000 of 300,000" in recorder.notes[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_server_errors_are_waited_out(fetch: Fetch, target: Path, status: int) -> None:
    fetch(Fault(status=status), Fault(status=status))
    assert_whole(target)


def test_retry_after_is_obeyed_within_reason(hub: FakeHub) -> None:
    slept: list[float] = []
    hub.fail("revision", Fault(status=429, headers={"Retry-After": "7"}))
    hub.fail("tree", Fault(status=503, headers={"Retry-After": "99999"}))
    with Http(hub.url, sleep=slept.append) as http:
        http.get(f"{hub.url}/api/models/{REPO}/revision/main", "x")
        http.get(f"{hub.url}/api/models/{REPO}/tree/{COMMIT}", "x")
    assert slept == [7.0, 120.0]


def test_pauses_double_up_to_a_limit() -> None:
    patience = Patience()
    assert [patience.pause_s(n, None) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_are_not_retried(fetch: Fetch, hub: FakeHub, status: int) -> None:
    with pytest.raises(UnknownModel):
        fetch(Fault(status=status))
    assert len(hub.asked_for(NAME)) == 1


def test_an_odd_status_is_a_typed_error(fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match="418"):
        fetch(Fault(status=418))


def test_a_crawling_transfer_is_given_up_and_resumed(fetch: Fetch, target: Path) -> None:
    fetch(Fault(chunk_bytes=50, pause_s=0.005))
    assert_whole(target)


def test_a_silent_server_times_out(fetch: Fetch, target: Path, recorder: Recorder) -> None:
    patience = Patience(attempts=2, first_pause_s=0.001, read_s=0.2)
    fetch(Fault(chunk_bytes=100_000, pause_s=0.6), patience=patience)
    assert_whole(target)
    assert "in time" in recorder.notes[0]


def test_an_unreachable_server_is_a_typed_error(tmp_path: Path) -> None:
    with Http("http://127.0.0.1:1", patience=IMPATIENT) as http, pytest.raises(DownloadError, match="cannot reach"):
        http.get("http://127.0.0.1:1/api", "someone/model")


def test_redirects_are_followed_and_the_token_stays_behind(hub: FakeHub, target: Path) -> None:
    other = FakeHub()
    other.files[NAME] = CONTENT
    hub.token = "hf_secret"
    away = f"{other.url}/{REPO}/resolve/{COMMIT}/{NAME}"
    hub.files[NAME] = CONTENT
    hub.fail(NAME, Fault(status=302, headers={"Location": away}))
    with Http(hub.url, "hf_secret", patience=IMPATIENT) as http:
        url = f"{hub.url}/{REPO}/resolve/{COMMIT}/{NAME}"
        http.download(RemoteFile(NAME, url, SIZE, Digest("sha256", SHA256)), target)
    assert_whole(target)
    assert hub.asked_for(NAME)[0]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in other.asked_for(NAME)[0]
    other.close()


def test_a_redirect_loop_ends(fetch: Fetch, hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match="redirects"):
        fetch(*[Fault(status=302, headers={"Location": f"/{REPO}/resolve/{COMMIT}/{NAME}"})] * 20)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", ""])
def test_redirects_out_of_http_are_refused(fetch: Fetch, location: str) -> None:
    with pytest.raises(DownloadError, match="redirect"):
        fetch(Fault(status=302, headers={"Location": location}))


def test_an_answer_without_end_is_cut_off(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finback.hub.http._MAX_JSON_BYTES", 10)
    with Http(hub.url, patience=IMPATIENT) as http, pytest.raises(DownloadError, match="longer"):
        http.get(f"{hub.url}/api/models/{REPO}/revision/main", "x")


def test_endpoint_comes_from_the_environment() -> None:
    assert endpoint_from({}) == "https://huggingface.co"
    assert endpoint_from({"HF_ENDPOINT": "https://mirror.example/hub/"}) == "https://mirror.example/hub"


@pytest.mark.parametrize("text", ["ftp://x", "mirror.example", "http://", "http://[::1", "http://x:port"])
def test_a_bad_endpoint_is_a_typed_error(text: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        endpoint_from({"HF_ENDPOINT": text})


def test_a_token_is_not_sent_in_the_clear() -> None:
    assert token_from({"HF_TOKEN": "hf_x"}, "https://huggingface.co") == "hf_x"
    assert token_from({"HF_TOKEN": "hf_x"}, "http://127.0.0.1:80") == "hf_x"
    with pytest.raises(ConfigError, match="unencrypted"):
        token_from({"HF_TOKEN": "hf_x"}, "http://mirror.example")
    with pytest.raises(ConfigError, match="characters"):
        token_from({"HF_TOKEN": "hf\nx"}, "https://huggingface.co")
