"""What the operator sees: metrics, status, logs, TLS; and what nobody may see there."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.server.load import mixed_load
from tests.server.test_http import until
from tests.server.test_ledger import all_closed, process, rows

from finback.errors import ConfigError
from finback.server.keys import KeyStore
from finback.server.metrics import Histogram
from finback.server.presence import announced, present


def samples(text: str) -> dict[str, float]:
    """The exposition's samples by name and labels; every one has a type and a help line before it."""
    found: dict[str, float] = {}
    described: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            _, what, name, _ = line.split(" ", 3)
            described.setdefault(name, set()).add(what)
            continue
        name, value = line.rsplit(" ", 1)
        family = name.split("{")[0]
        base = family
        for suffix in ("_bucket", "_sum", "_count"):
            base = base.removesuffix(suffix)
        assert described.get(base) == {"HELP", "TYPE"} or described.get(family) == {"HELP", "TYPE"}, line
        assert name not in found
        found[name] = float(value)
    return found


def test_metrics_agree_with_the_ledger(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=8)
    seen = asyncio.run(mixed_load(running.url, requests=40, at_once=8, seed=3, leaving=0.2))
    assert until(lambda: all_closed(running.home))
    httpx2.get(f'{running.url}/no/such/"route')
    response = httpx2.get(f"{running.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found, booked = samples(response.text), rows(running.home).values()
    for kind in ("prompt", "output", "cached", "reasoning"):
        assert found[f'finback_tokens_total{{kind="{kind}"}}'] == sum(row[f"{kind}_tokens"] for row in booked)
    count = found["finback_time_to_first_token_seconds_count"]
    assert count == sum(row["first_token_ms"] is not None for row in booked)
    assert found['finback_time_to_first_token_seconds_bucket{le="+Inf"}'] == count
    assert found["finback_queue_time_seconds_count"] == count
    assert 0 <= found["finback_queue_time_seconds_sum"] <= found["finback_time_to_first_token_seconds_sum"]
    assert found["finback_time_per_output_token_seconds_count"] > 0
    assert found['finback_http_requests_total{route="none",status="404"}'] == 1
    done = [one for one in seen if one.acknowledged]
    ok = sum(value for name, value in found.items() if "completions" in name and 'status="200"' in name)
    assert ok >= len(done)
    assert found["finback_requests_running"] == found["finback_requests_waiting"] == 0
    assert found["finback_engine_failures_total"] == 0


def test_a_histogram_counts_what_is_below_each_bound() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1.0, 1.5, 7):
        histogram.observe(value)
    assert list(histogram.samples("x")) == [
        'x_bucket{le="1"} 2',
        'x_bucket{le="2"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 10.000000",
        "x_count 4",
    ]


def test_status(serve: Callable[..., Any]) -> None:
    running = serve()
    status = httpx2.get(f"{running.url}/v1/status").json()
    assert (status["model"], status["state"], status["running"], status["waiting"]) == ("tiny", "serving", 0, 0)
    assert status["memory_bytes"] > 1 << 20


def test_servers_are_found_while_they_live(tmp_path: Path) -> None:
    assert present(tmp_path) == []
    with announced(tmp_path, {"url": "http://127.0.0.1:1"}):
        [record] = present(tmp_path)
        assert record["url"] == "http://127.0.0.1:1"
        assert [path.stat().st_mode & 0o777 for path in (tmp_path / "servers").iterdir()] == [0o600]
    assert present(tmp_path) == []
    (tmp_path / "servers" / "999999.json").write_text("{}")  # as a killed one leaves it
    assert present(tmp_path) == []
    assert list((tmp_path / "servers").iterdir()) == []


def finback(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from finback.cli import main; main()"
    environment = {"PYTHONPATH": ":".join(sys.path), "FINBACK_HOME": str(home), "FINBACK_CONFIG": ""}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)


def test_what_is_said_cannot_land_in_core_dumps_or_process_lists(tmp_path: Path) -> None:
    _, text = KeyStore(tmp_path).create("somebody")
    with process(tmp_path) as (server, url):
        proc = Path(f"/proc/{server.pid}")
        if not proc.exists():
            pytest.skip("looks into /proc")
        [limit] = [line for line in (proc / "limits").read_text().splitlines() if "core file" in line]
        assert limit.split()[4] == "0"
        headers = {"authorization": f"Bearer {text}"}
        body = {"model": "tiny", "prompt": "xyzzy", "max_tokens": 4}
        assert httpx2.post(f"{url}/v1/completions", json=body, headers=headers).status_code == 200
        for name in ("cmdline", "environ", "comm"):
            found = (proc / name).read_bytes()
            assert b"xyzzy" not in found
            assert text.encode() not in found


def test_metrics_name_nobody(serve: Callable[..., Any]) -> None:
    running = serve()
    store = KeyStore(running.home)
    (key, text), (_, admin) = store.create("somebody"), store.create("boss", admin=True)
    body = {"model": "tiny", "prompt": "xyzzy", "max_tokens": 4, "user": "xyzzy"}
    with httpx2.Client(base_url=running.url, headers={"authorization": f"Bearer {text}"}) as client:
        client.post("/v1/completions", json=body)
        client.get("/xyzzy")
        exposition = client.get("/metrics", headers={"authorization": f"Bearer {admin}"}).text
    assert 'route="/v1/completions",status="200"} 1' in exposition
    assert not any(word in exposition for word in ("xyzzy", key.id, "somebody", text))


def test_ps_asks_the_servers_here_also_when_they_want_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.create("somebody")
    assert json.loads(finback(tmp_path, "ps", "--json").stdout) == []
    with process(tmp_path) as (server, url):
        [found] = json.loads(finback(tmp_path, "ps", "--json").stdout)
        assert (found["url"], found["pid"], found["state"], found["model"]) == (url, server.pid, "serving", "tiny")
        assert "serving" in finback(tmp_path, "ps").stdout
        assert len(store.all()) == 1
    assert json.loads(finback(tmp_path, "ps", "--json").stdout) == []


def test_logs_tell_requests_and_no_secrets(tmp_path: Path) -> None:
    """Marked words in prompts, answers, keys, headers and paths, sound and broken: none comes up in the log."""
    key, text = KeyStore(tmp_path).create("somebody")
    with process(tmp_path, "--log-format", "json") as (server, url), httpx2.Client(base_url=url) as client:
        client.headers["authorization"] = f"Bearer {text}"
        good = {"model": "tiny", "prompt": "xyzzy-prompt", "max_tokens": 4, "user": "xyzzy-user"}
        answered = client.post("/v1/completions", json=good)
        assert answered.status_code == 200
        client.post("/v1/completions", json=good | {"xyzzy-field": 1})
        client.post("/v1/completions", json=good | {"temperature": "xyzzy"})
        client.post("/v1/completions", content=b'{"xyzzy": ')
        client.post("/v1/completions", json=good | {"prompt": "xyzzy" * 2000})
        client.get("/xyzzy-path?xyzzy=1")
        client.get("/v1/models/xyzzy", headers={"x-xyzzy": "xyzzy"})
        client.get("/v1/models", headers={"authorization": "Bearer xyzzy-wrong"})
        server.terminate()
        assert server.stderr
        log = server.stderr.read().decode()
        assert server.wait(10) == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert "xyzzy" not in log
    assert text not in log
    assert text.rpartition("-")[2] not in log
    assert [line["status"] for line in lines if line["message"] == "request"] == [
        200,
        400,
        400,
        400,
        400,
        404,
        404,
        401,
    ]
    [answer] = [line for line in lines if line["message"] == "answer"]
    assert (answer["request_id"], answer["key"]) == (answered.headers["x-request-id"], key.id)
    assert answer["output_tokens"] == 4


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(["openssl", "req", *options.split(), *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("makes its certificate with openssl")
    return cert, key


def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with process(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx2.get(f"{url}/livez", verify=trusted).status_code == 200
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/livez")
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{url.replace('https', 'http')}/livez")
        [found] = json.loads(finback(tmp_path, "ps", "--json").stdout)
        assert found["state"] == "serving"


def test_a_bad_certificate_is_reported_before_the_start(
    tmp_path: Path, certificate: tuple[Path, Path], make_engine: Callable[..., Any]
) -> None:
    from finback.server.listener import listen

    cert, key = certificate
    settings = make_engine().settings
    for pair in ((key, cert), (tmp_path / "none.pem", key), (cert, cert)):
        with pytest.raises(ConfigError, match="certificate"):
            listen(lambda *_: None, settings.override(tls_cert=pair[0], tls_key=pair[1]))  # type: ignore[arg-type,return-value]
