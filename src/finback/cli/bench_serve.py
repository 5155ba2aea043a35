"""``finback bench serve``: a load on a running server, and how long its clients waited."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finback.cli import options
from finback.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finback.server.load import Ask, Felt


_COUNT = click.IntRange(min=1)
_RATE = click.FloatRange(min=0.001)
_TIME = click.FloatRange(min=0)
_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000/v1", help="With /v1.")
@click.option("--model", help="The server's first by default.")
@click.option(
    "--trace", type=_FILE, metavar="CSV", help="at_s, prompt_tokens, output_tokens; or as Azure publishes them."
)
@click.option("--requests", "-n", type=_COUNT, default=100, help="How many.")
@click.option("--rate", type=_RATE, default=1.0, help="Without a trace: a Poisson process, per second.")
@click.option("--prompt", type=_COUNT, default=256, help="Without a trace: prompt tokens.")
@click.option("--gen", type=_COUNT, default=64, help="Without a trace: answer tokens.")
@click.option("--speed", type=_RATE, default=1.0, help="Of a trace, times its own.")
@click.option("--streams", type=_COUNT, help="Closed loop: all at once, at most so many running.")
@click.option("--sample", is_flag=True, help="Draw the requests from the whole trace.")
@click.option("--context", type=click.IntRange(min=4), help="Cap lengths; the model's by default.")
@click.option("--slo-ttft", type=_TIME, default=5.0, help="Goodput: seconds to the first token.")
@click.option("--slo-tpot", type=_TIME, default=0.2, help="Goodput: seconds for each token after.")
@click.option("--seed", type=int, default=1, help="Of arrivals and prompts.")
@click.option("--plot", type=_FILE, metavar="PNG", help="Needs the extra `plot`.")
@options.json
def serve(
    url: str,
    model: str | None,
    trace: Path | None,
    requests: int,
    rate: float,
    prompt: int,
    gen: int,
    speed: float,
    streams: int | None,
    sample: bool,
    context: int | None,
    slo_ttft: float,
    slo_tpot: float,
    seed: int,
    plot: Path | None,
    json: bool,
) -> None:
    """Put a running server under load and measure what its clients feel.

    Requests come as in a trace file, or as a Poisson process, whether or not earlier ones are done. A key is read from
    the variable FINBACK_API_KEY. Any server with OpenAI's completions will do.
    """
    import asyncio

    from finback.cli import output
    from finback.server import load

    if plot is not None:
        _require_matplotlib()
    target, longest = asyncio.run(load.find(url, os.environ.get("FINBACK_API_KEY"), model))
    if trace is None:
        asks = load.poisson(requests, rate, prompt, gen, seed)
    else:
        asks = load.read_trace(trace, requests, seed if sample else None)
    asks = _fitting(asks, context or longest, at_once=streams is not None)
    felt = asyncio.run(load.run(target, asks, speed=speed, streams=streams, seed=seed))
    record = {"url": url, "model": target.model, **load.summary(felt, slo_ttft_s=slo_ttft, slo_tpot_s=slo_tpot)}
    if plot is not None:
        _plot(felt, plot)
    if json:
        output.print_json(record)
    else:
        _print(record)


def _fitting(asks: Sequence[Ask], context: int | None, *, at_once: bool) -> list[Ask]:
    from finback.server.load import Ask

    if context is not None:
        asks = [ask.capped(context) for ask in asks]
    return [Ask(0.0, ask.prompt_tokens, ask.output_tokens) for ask in asks] if at_once else list(asks)


def _print(record: dict[str, Any]) -> None:
    from finback.cli.output import note, print_facts, rate_text

    def spread(times: dict[str, float] | None) -> str:
        return (
            ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in times.items()) if times else "nothing measured"
        )

    slo = record["slo"]
    print_facts(
        [
            ("server", f"{record['model']} at {record['url']}"),
            (
                "requests",
                f"{record['completed']} completed, {record['failed']} failed, in {record['duration_s']:.1f} s",
            ),
            (
                "throughput",
                f"{rate_text(record['output_tokens_per_s'])} tokens/s written, "
                f"{rate_text(record['prompt_tokens_per_s'])} tokens/s read",
            ),
            ("first token", spread(record["ttft_s"])),
            ("each token", spread(record["tpot_s"])),
            (
                "goodput",
                f"{record['goodput_requests_per_s']:.2f} requests/s, {record['good_share']:.0%} of all "
                f"(first token within {slo['ttft_s']:g} s, each after within {slo['tpot_s']:g} s)",
            ),
        ]
    )
    for error in record["errors"]:
        note(error)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("a plot needs matplotlib", hint="pip install 'finback[plot]'") from None


def _plot(felt: Sequence[Felt], path: Path) -> None:
    """Waiting times over time, and the share of requests that waited less than that."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [one for one in felt if one.ok]
    figure, (over_time, shares) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    over_time.scatter([one.sent_s for one in done], [one.ttft_s for one in done], s=10, label="first token")
    failed = [one.sent_s for one in felt if not one.ok]
    over_time.scatter(failed, [0.0] * len(failed), s=20, marker="x", color="red", label="failed")
    over_time.set(xlabel="sent after (s)", ylabel="waited for the first token (s)")
    over_time.legend()
    for label, values in (
        ("first token", [one.ttft_s for one in done]),
        ("each token after", [one.tpot_s for one in done if one.tpot_s is not None]),
    ):
        ordered = sorted(values)
        shares.step(ordered, [(index + 1) / len(ordered) for index in range(len(ordered))], where="post", label=label)
    shares.set(xlabel="seconds", ylabel="share of requests", xscale="log")
    shares.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
