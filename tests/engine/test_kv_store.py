"""Beginnings on disk: they come back to the bit or not at all, whatever happens to the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finback.config import Settings
from finback.engine.engine import Engine
from finback.engine.kv_store import HEADER_BYTES, PrefixStore, open_store
from finback.engine.memory import plan_cache
from finback.engine.request import SamplingParams
from tests.conftest import ByteTokenizer, TinyModel
from tests.engine.collect import Finished, finish

FACTS = ("weights", "f32")
NAMES = [bytes([i]) * 32 for i in range(10)]
MIB = 1 << 20


def store_in(folder: Path, *, limit: int = MIB, facts: tuple[str, ...] = FACTS) -> PrefixStore:
    return PrefixStore(folder / "prefixes", limit_bytes=limit, facts=facts)


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "prefixes").glob("*.kv"))


def test_what_was_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.write(NAMES[0], [b"ab", memoryview(b"cd")])
    assert store.write(NAMES[0], [b"abcd"])
    for reader in (store, store_in(tmp_path)):
        assert NAMES[0] in reader
        assert (len(reader), reader.used_bytes) == (1, HEADER_BYTES + 4)
        assert reader.read(NAMES[0], 4) == b"abcd"
        assert reader.read(NAMES[1], 4) is None


def test_names_are_of_one_folder_tenant_model_and_layout(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    roots = {store.root("alice"), store.root("bob"), store_in(tmp_path, facts=("other", "f32")).root("alice")}
    roots.add(store_in(tmp_path / "elsewhere").root("alice"))
    assert len(roots) == 4
    assert store_in(tmp_path).root("alice") == store.root("alice")


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    store_in(tmp_path).write(NAMES[0], [b"secret"])
    folder = tmp_path / "prefixes"
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    size = HEADER_BYTES + 100
    store = store_in(tmp_path, limit=3 * size)
    for name in NAMES[:3]:
        store.write(name, [bytes(100)])
    assert store.read(NAMES[0], 100) is not None
    assert store.write(NAMES[3], [bytes(100)])
    assert [name in store for name in NAMES[:4]] == [True, False, True, True]
    assert len(files_in(tmp_path)) == 3
    assert not store.write(NAMES[5], [bytes(4 * size)])
    for i, path in enumerate(sorted(files_in(tmp_path), key=lambda path: path.name)):
        os.utime(path, (i, i))
    smaller = store_in(tmp_path, limit=size)
    assert [name in smaller for name in NAMES[:4]] == [False, False, False, True]


def test_what_a_crash_left_unfinished_is_removed(tmp_path: Path) -> None:
    store_in(tmp_path)
    dead, mine = ((tmp_path / "prefixes" / f"00.{pid}.part") for pid in (1 << 30, os.getpid()))
    dead.write_bytes(b"x")
    mine.write_bytes(b"x")
    assert len(store_in(tmp_path)) == 0
    assert (dead.exists(), mine.exists()) == (False, True)


@given(at=st.integers(0, HEADER_BYTES + 40), change=st.sampled_from(["flip", "cut", "extend"]))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_noticed_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int, change: str) -> None:
    store = store_in(tmp_path)
    content = bytes(range(41))
    store.write(NAMES[0], [content])
    (path,) = files_in(tmp_path)
    stored = bytearray(path.read_bytes())
    if change == "flip":
        stored[at] ^= 1 << (at % 8)
    elif change == "cut":
        del stored[at:]
    else:
        stored += bytes(at + 1)
    path.write_bytes(stored)
    with caplog.at_level(logging.WARNING):
        assert store.read(NAMES[0], len(content)) is None
    assert "damaged" in caplog.text
    assert NAMES[0] not in store
    assert not path.exists()


def test_a_block_under_another_name_is_damage(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.write(NAMES[0], [b"abcd"])
    (path,) = files_in(tmp_path)
    path.rename(path.with_name(NAMES[1].hex() + ".kv"))
    assert store_in(tmp_path).read(NAMES[1], 4) is None


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    store_in(tmp_path)
    for name in ("notes.txt", "zz.kv", "00.kv"):
        (tmp_path / "prefixes" / name).write_text("mine")
    (tmp_path / "prefixes" / (NAMES[0].hex() + ".kv")).symlink_to("/etc/hostname")
    assert len(store_in(tmp_path, limit=0)) == 0
    assert len(list((tmp_path / "prefixes").iterdir())) == 5


def test_files_that_vanish_are_missed_quietly(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.write(NAMES[0], [b"abcd"])
    files_in(tmp_path)[0].unlink()
    assert store.read(NAMES[0], 4) is None
    assert store.used_bytes == 0


def test_a_damaged_key_makes_a_new_one(tmp_path: Path) -> None:
    root = store_in(tmp_path).root("a")
    (tmp_path / "prefixes" / "key").write_bytes(b"short")
    assert store_in(tmp_path).root("a") != root


def test_a_disk_that_refuses_costs_speed_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert open_store(tmp_path / "file" / "prefixes", limit_bytes=MIB, facts=()) is None
    assert "not stored" in caplog.text
    store = store_in(tmp_path)
    for path in (tmp_path / "prefixes").iterdir():
        path.unlink()
    (tmp_path / "prefixes").rmdir()
    assert not store.write(NAMES[0], [b"abcd"])
    assert "cannot be stored" in caplog.text


# ---- engines ----

PROMPT = [(37 * i) % 251 for i in range(200)]


def engine_in(folder: Path, model: TinyModel | None = None, *, limit: int = MIB, **options: Any) -> Engine:
    model, chosen = model or TinyModel(), Settings(**options)
    plan = plan_cache(model.config, chosen, 64 * 64 * model.config.kv_bytes_per_token("f32"))
    return Engine(model, ByteTokenizer(), chosen, plan=plan, store=store_in(folder, limit=limit))


def ask(engine: Engine, tenant: str = "", tail: int = 1) -> Finished:
    engine.add("it", [*PROMPT, tail], SamplingParams(seed=3, max_tokens=5), tenant=tenant)
    return finish(engine)["it"]


def cached(result: Finished) -> int:
    assert result.usage is not None
    return result.usage.cached_tokens


def test_beginnings_survive_a_restart(tmp_path: Path, make_engine: Callable[..., Any]) -> None:
    first = engine_in(tmp_path)
    assert cached(ask(first)) == 0
    first.close()
    model = TinyModel()
    second = engine_in(tmp_path, model)
    again = ask(second, tail=2)
    assert cached(again) == 192
    assert [batch.rows for batch in model.batches] == [9, 1, 1, 1, 1]
    assert again.tokens == ask(make_engine(), tail=2).tokens
    stats = second.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_restored_tokens) == (192, 192)
    assert cached(ask(second)) == 192
    assert second.stats().prefix_restored_tokens == 192  # from memory now
    second.close()
    assert len(files_in(tmp_path)) == 3


def test_tenants_find_only_their_own(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    ask(engine, "alice")
    engine.close()
    engine = engine_in(tmp_path)
    assert [cached(ask(engine, tenant)) for tenant in ("bob", "", "alice")] == [0, 0, 192]


def test_damaged_blocks_are_computed_again(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    expected = ask(engine).tokens
    engine.close()
    for path in files_in(tmp_path):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    for found in (0, 64, 128, 192):  # one is noticed each time, and stored anew at the end
        engine = engine_in(tmp_path)
        result = ask(engine)
        assert (result.tokens, cached(result)) == (expected, found)
        engine.close()


def test_a_small_store_keeps_beginnings(tmp_path: Path) -> None:
    engine = engine_in(tmp_path, limit=2 * (HEADER_BYTES + 64 * 36))
    ask(engine)
    engine.close()
    assert len(files_in(tmp_path)) == 2
    assert cached(ask(engine_in(tmp_path, limit=MIB))) == 128


def test_closing_twice_stores_once(tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    ask(engine)
    engine.close()
    engine.close()
    assert len(files_in(tmp_path)) == 3


def test_without_a_prefix_cache_nothing_is_stored(tmp_path: Path) -> None:
    engine = engine_in(tmp_path, prefix_cache_mib=0)
    ask(engine)
    engine.close()
    assert files_in(tmp_path) == []
