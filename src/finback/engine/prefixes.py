"""Where the names of blocks start, and the way of blocks between the cache's memory and the disk."""

from __future__ import annotations

import secrets

from finback.engine.kv_cache import BlockNames, KVCache, root_name
from finback.engine.kv_store import HEADER_BYTES, PrefixStore
from finback.engine.memory import BLOCK_SIZE
from finback.engine.runner import Runner

MOST_TOUCHED_BYTES = 128 << 20  # of the cache, before the first request, where there are prefixes to restore


class Prefixes:
    """Computed beginnings of one engine. Invariant: names of a store's blocks are under the store's key."""

    def __init__(self, runner: Runner, store: PrefixStore | None, *, roles_differ: bool) -> None:
        """``roles_differ``: keys and values of a token depend on whether the caller or the model wrote it."""
        self.store = store
        self.restored_tokens = 0
        self._runner = runner
        self._roles_differ = roles_differ
        self._key = secrets.token_bytes(32)  # without a store: names cannot be guessed
        if store is not None:
            runner.touch(min(store.used_bytes, MOST_TOUCHED_BYTES))

    def names(self, tenant: str, num_prompt: int) -> BlockNames:
        """The names of the blocks of a tenant's request."""
        root = root_name(self._key, tenant) if self.store is None else self.store.root(tenant)
        return BlockNames(root, BLOCK_SIZE, num_prompt if self._roles_differ else None)

    def restore(self, name: bytes, block: int) -> bool:
        """Fill a block from the disk; False if it is not there."""
        if self.store is None or name not in self.store:
            return False
        data = self.store.read(name, self._runner.block_bytes)
        if data is None:
            return False
        self._runner.restore_block(block, data)
        self.restored_tokens += BLOCK_SIZE
        return True

    def save(self, cache: KVCache) -> None:
        """Store as many blocks as there is room for, and drop none of them for another."""
        if self.store is None:
            return
        room = self.store.limit_bytes // (self._runner.block_bytes + HEADER_BYTES)
        # What was used last is stored last, so that it is the last to be dropped.
        for name, block in reversed(cache.named()[:room]):
            if not self.store.write(name, self._runner.save_block(block)):
                break
