"""``finback ps``: the servers on this machine, and what they are doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from finback.cli import options

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 5.0


@click.command()
@options.json
def ps(json: bool) -> None:
    """List the servers that run here: requests, speed and memory."""
    from finback.cli import output

    records = _records(options.settings_of().home)
    if json:
        output.print_json(records)
    elif records:
        _print(records)
    else:
        output.note("no server is running; `finback serve MODEL` starts one")


def _records(home: Path) -> list[dict[str, Any]]:
    from finback.server.presence import present

    return [_ask(server) for server in present(home)]


def _ask(server: dict[str, Any]) -> dict[str, Any]:
    """What a server says of itself. The file that named it is the owner's own, so its certificate is not asked for."""
    import httpx2

    shown = {"pid": server["pid"], "url": server["url"], "model": server["model"]}
    headers = {"authorization": f"Bearer {server['key']}"}
    try:
        with httpx2.Client(verify=False, trust_env=False, timeout=TIMEOUT_S) as client:
            answer = client.get(f"{server['url']}/v1/status", headers=headers).raise_for_status()
            return {**shown, **answer.json()}
    except httpx2.HTTPError as error:
        return {**shown, "state": f"does not answer: {error or type(error).__name__}"}


def _print(records: list[dict[str, Any]]) -> None:
    from finback.cli.output import print_table, rate_text, size_text

    rows = [
        (
            str(record["pid"]),
            record["model"],
            record["url"],
            record["state"],
            str(record.get("running", "")),
            str(record.get("waiting", "")),
            rate_text(record["output_tokens_per_s"]) if "output_tokens_per_s" in record else "",
            size_text(record["memory_bytes"]) if "memory_bytes" in record else "",
        )
        for record in records
    ]
    columns = ("PID", "MODEL", "URL", "STATE", "RUNNING", "QUEUED", "TOKENS/S", "MEMORY")
    print_table(columns, rows, right=("RUNNING", "QUEUED", "TOKENS/S", "MEMORY"))
