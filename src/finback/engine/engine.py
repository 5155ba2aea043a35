"""The engine: many requests, one model, one step at a time.

A step schedules, runs, chooses, and tells. Nothing is changed until the model's forward pass has returned, so
a step that fails or is interrupted leaves the books as they were. One thread owns an engine; whoever shares
it between threads brings the lock.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finback.config import Settings
from finback.engine.answer import Answer
from finback.engine.kv_cache import KVCache
from finback.engine.kv_store import PrefixStore
from finback.engine.memory import BLOCK_SIZE, CachePlan, memory_for_cache, plan_cache
from finback.engine.pace import LEAST_CHUNK, LEAST_CHUNK_LATENT, Pace
from finback.engine.prefixes import Prefixes
from finback.engine.request import (
    MAX_PRIORITY,
    FinishReason,
    Request,
    SamplingParams,
    StepOutput,
    TokenLogprob,
    Usage,
    check_whole,
)
from finback.engine.runner import Runner
from finback.engine.sampler import Sampler
from finback.engine.scheduler import Scheduler, Work
from finback.engine.speculation import Drafter
from finback.engine.stats import EngineStats, Rate
from finback.errors import EngineError, InvalidRequest, PromptTooLong, QueueFull

if TYPE_CHECKING:
    from finback.models import Model
    from finback.text.tokenizer import Tokenizer

LONGEST_RETRY_S = 60  # what a refused caller is told to wait, at most


@dataclass(slots=True)
class _Running:
    """A request, with what chooses its tokens and what turns them into text."""

    request: Request
    params: SamplingParams
    sampler: Sampler
    answer: Answer
    stop_ids: frozenset[int]
    started: float | None = None  # when its computing began, of the monotonic clock


class Engine:
    """Runs requests on a model. Invariant: ``settings`` is resolved, ``context`` and ``kv_dtype`` are known."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        settings: Settings,
        *,
        plan: CachePlan | None = None,
        store: PrefixStore | None = None,
    ) -> None:
        """``plan``: what the key-value cache holds; None: what fits in the memory that is available.

        ``store``: where computed beginnings outlive the engine; None: nowhere.
        """
        plan = plan or plan_cache(model.config, settings, memory_for_cache(0))
        self.config = model.config
        self.tokenizer = tokenizer
        self.settings = settings.override(context=plan.context, kv_dtype=plan.kv_dtype)
        self.plan = plan
        self._kv_cache = KVCache(plan.num_blocks, BLOCK_SIZE, most_kept=plan.most_kept)
        runner = Runner(model, plan)
        self._runner: Runner | None = runner
        # Latent attention takes another form for tokens that the model wrote, and its results differ in the last bits.
        # Elsewhere both roles share their kernels.
        self._prefixes = Prefixes(runner, store, roles_differ=model.config.is_mla)
        self._pace = Pace(LEAST_CHUNK_LATENT if model.config.is_mla else LEAST_CHUNK)
        self._scheduler = Scheduler(
            self._kv_cache,
            batch_tokens=settings.batch_tokens,
            max_requests=settings.max_requests,
            clock=self._pace,
            most_drafts=settings.draft_tokens,
            restore=self._prefixes.restore,
        )
        self._running: dict[str, _Running] = {}
        self._aborted: list[StepOutput] = []
        self._steps = 0
        self._prompt_tokens = 0
        self._output_tokens = Rate()
        self._drafts = self._drafts_kept = 0
        self._ended = Rate()
        self._eos_ids = frozenset(tokenizer.eos_ids) | frozenset(model.config.eos_token_ids)

    @property
    def model(self) -> Model:
        """The model that runs; EngineError when the engine is closed."""
        return self._open_runner().model

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.plan.context

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._running or self._aborted)

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return self._scheduler.num_waiting

    def validate(self, prompt_tokens: Sequence[int], params: SamplingParams) -> list[int]:
        """The prompt as plain integers; InvalidRequest unless :meth:`add` would accept it."""
        self._open_runner()
        vocab = self.config.vocab_size
        tokens = _checked_tokens(prompt_tokens, vocab)
        _check_vocabulary("stop_token_ids", params.stop_token_ids, vocab)
        _check_vocabulary("logit_bias", params.logit_bias, vocab)
        if len(tokens) >= self.context:
            raise self._too_long(len(tokens), spare=1)
        return tokens

    def add(
        self,
        request_id: str,
        prompt_tokens: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
    ) -> None:
        """Queue a request. InvalidRequest, before any work, when it cannot be run; QueueFull when too many wait.

        Tenants share the machine fairly, whoever asks for more, and only requests of one tenant share what is computed
        for equal beginnings. A larger ``priority`` goes first, whatever the tenant.
        """
        tokens = self.validate(prompt_tokens, params)
        if request_id in self._running:
            raise InvalidRequest(f"request id {request_id!r} is taken", parameter="request_id")
        check_whole("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
        self.check_queue(tenant)
        longest = self.context if params.max_tokens is None else min(self.context, len(tokens) + params.max_tokens)
        request = Request(
            request_id,
            tokens,
            len(tokens),
            longest,
            tenant=tenant,
            priority=priority,
            names=self._prefixes.names(tenant, len(tokens)) if self.plan.most_kept else None,
            drafter=Drafter() if self.settings.draft_tokens else None,
        )
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self._running[request_id] = _Running(
            request,
            params,
            Sampler(params, tokens, seed),
            Answer(self.tokenizer, params.stop),
            frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids),
        )
        self._scheduler.add(request)

    def check_queue(self, tenant: str, places: int = 1) -> None:
        """QueueFull unless so many more requests of ``tenant`` may wait. Any thread may ask, also during a step."""
        if self._scheduler.share_of_queue(tenant, self.settings.max_queue) >= places:
            return
        waiting, per_s = self.num_waiting, self._ended.per_s
        raise QueueFull(
            f"{waiting} requests wait already",
            retry_after_s=min(max(math.ceil(waiting / per_s), 1), LONGEST_RETRY_S) if per_s else LONGEST_RETRY_S,
            hint="ask again later, or let more of them wait (max_queue)",
        )

    def abort(self, request_id: str) -> None:
        """End a request now; the next step tells its last output. One that has ended already is left alone."""
        running = self._running.get(request_id)
        if running is not None:
            self._aborted.append(self._end(running, "abort", StepOutput(request_id)))

    def step(self) -> list[StepOutput]:
        """Compute one batch of tokens, and tell what each request gained."""
        runner = self._open_runner()
        told, self._aborted = self._aborted, []
        plan = self._scheduler.schedule()
        if not plan:
            return told
        began = time.monotonic()
        try:
            logits = runner.run(plan)
        except Exception as error:  # whatever a model raises ends these requests, and the engine goes on
            return told + [self._fail(StepOutput(work.request.id), error) for work in plan]
        answers = sum(work.stop - work.start for work in plan if work.request.num_pending == 1)
        prompt = sum(work.stop - work.start for work in plan) - answers
        self._count(plan)
        for work in plan:
            running = self._running[work.request.id]
            running.started = running.started or began
            mine, logits = np.split(logits, [work.num_choices])
            if len(mine):
                told.append(self._advance(running, work, mine))
            else:
                self._scheduler.commit(work)
        self._pace.note(answers, prompt, time.monotonic() - began)
        return told

    def logits(
        self, tokens: Sequence[int], *, chunk: int | None = None, prompt: int | None = None
    ) -> NDArray[np.float32]:
        """Logits [len(tokens), vocabulary] of every position, beside whatever else runs.

        ``chunk`` tokens are computed at a time (None: the step's budget). Tokens from index ``prompt`` on are
        computed one at a time as if the model had written them (None: all are prompt).
        """
        runner = self._open_runner()
        chunk = self.settings.batch_tokens if chunk is None else chunk
        check_whole("chunk", chunk, 1, 1 << 20)
        request = self._scoring_request(tokens, prompt)
        count = len(request.tokens)
        if not self._kv_cache.grow(request.id, count):
            raise EngineError(
                f"running requests leave no room for {count} tokens", hint="try again when they have ended"
            )
        try:
            rows = np.empty((count, self.config.vocab_size), np.float32)
            for start, stop in _cuts(count, request.num_prompt, chunk):
                work = Work(request, start, stop, self._kv_cache.table(request.id))
                rows[start:stop] = runner.run([work], every_row=True)
            return rows
        finally:
            self._kv_cache.release(request.id)

    def stats(self) -> EngineStats:
        """What the engine does and has done. Any thread may ask."""
        cache, scheduler = self._kv_cache, self._scheduler
        kept = cache.num_kept
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            blocks_total=cache.num_blocks,
            blocks_free=cache.num_free - kept,
            blocks_cached=kept,
            prefix_query_tokens=scheduler.query_tokens,
            prefix_hit_tokens=scheduler.hit_tokens,
            prefix_restored_tokens=self._prefixes.restored_tokens,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens.total,
            output_tokens_per_s=self._output_tokens.per_s,
            draft_tokens=self._drafts,
            draft_tokens_kept=self._drafts_kept,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless queues, tables and counts agree."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        """End every request, store computed beginnings, give the cache's memory back. A second call does nothing."""
        for request_id in list(self._running):
            self.abort(request_id)
        if self._runner is not None:
            self._prefixes.save(self._kv_cache)
        self._runner = None

    def renewed(self) -> Engine:
        """Another engine on the same weights, for when this one's books are wrong: it saves nothing, and is closed."""
        model, self._runner = self.model, None
        return Engine(model, self.tokenizer, self.settings, plan=self.plan, store=self._prefixes.store)

    def _count(self, plan: list[Work]) -> None:
        self._steps += 1
        self._prompt_tokens += sum(max(0, min(w.stop, w.request.num_prompt) - w.start) for w in plan)
        self._drafts += sum(len(w.drafts) for w in plan)

    def _advance(self, running: _Running, work: Work, logits: NDArray[np.float32]) -> StepOutput:
        """Choose a request's next tokens, as long as the drafts were right, and tell them."""
        output, reason = StepOutput(work.request.id, started=running.started), None
        for row, draft in zip(logits, (*work.drafts, None), strict=True):
            try:
                token, logprob = running.sampler.choose(row, work.request.tokens)
            except EngineError as error:
                return self._fail(output, error)
            output, reason = self._take(running, output, token, logprob)
            if reason is not None or token != draft:
                break
            self._drafts_kept += 1
        self._output_tokens.add(len(output.tokens))
        self._scheduler.commit(work)
        return output if reason is None else self._end(running, reason, output)

    def _take(
        self, running: _Running, output: StepOutput, token: int, logprob: TokenLogprob | None
    ) -> tuple[StepOutput, FinishReason | None]:
        """Add a chosen token to a request and to its output; says whether the answer ends with it."""
        tokens = running.request.tokens
        tokens.append(token)
        stopped = token in running.stop_ids
        text = "" if stopped else running.answer.push(token)
        logprobs = None if logprob is None else (*(output.logprobs or ()), logprob)
        output = output._replace(tokens=(*output.tokens, token), text=output.text + text, logprobs=logprobs)
        if stopped or running.answer.stopped:
            return output, "stop"
        return output, "length" if len(tokens) == running.request.max_length else None

    def _end(self, running: _Running, reason: FinishReason, output: StepOutput) -> StepOutput:
        """Forget a request, and complete its last output."""
        request = running.request
        del self._running[request.id]
        self._scheduler.remove(request)
        self._ended.add(1)
        text = output.text + running.answer.flush()
        if reason == "length" and running.answer.stopped:
            reason = "stop"
        usage = Usage(request.num_prompt, request.num_generated, request.num_cached or 0)
        return output._replace(text=text, finish_reason=reason, usage=usage)

    def _fail(self, output: StepOutput, cause: Exception) -> StepOutput:
        error = cause if isinstance(cause, EngineError) else EngineError(f"the step failed: {cause}")
        if error is not cause:
            error.__cause__ = cause
        return self._end(self._running[output.request_id], "error", output._replace(error=error))

    def _open_runner(self) -> Runner:
        if self._runner is None:
            raise EngineError("the engine is closed")
        return self._runner

    def _scoring_request(self, tokens: Sequence[int], prompt: int | None) -> Request:
        checked = _checked_tokens(tokens, self.config.vocab_size)
        if len(checked) > self.context:
            raise self._too_long(len(checked), spare=0)
        num_prompt = len(checked) if prompt is None else prompt
        check_whole("prompt", num_prompt, 0, len(checked))
        return Request("(logits)", checked, num_prompt, len(checked))

    def _too_long(self, count: int, *, spare: int) -> PromptTooLong:
        limit = self.context - spare
        return PromptTooLong(
            f"the prompt has {count} tokens; at most {limit} fit in the context of {self.context}",
            parameter="prompt",
            hint="shorten it, or load the model with a longer context",
        )


def _cuts(count: int, num_prompt: int, chunk: int) -> list[tuple[int, int]]:
    """Ranges that cover ``count`` tokens: the prompt in chunks, then one token at a time."""
    prompt = [(start, min(start + chunk, num_prompt)) for start in range(0, num_prompt, chunk)]
    return prompt + [(at, at + 1) for at in range(num_prompt, count)]


def _checked_tokens(tokens: Sequence[int], vocab: int) -> list[int]:
    """The tokens as plain integers, all in the vocabulary."""
    try:
        array = np.asarray(tokens)
    except ValueError:
        array = np.empty((), object)  # lists of different lengths
    if array.ndim == 1 and array.size == 0:
        raise InvalidRequest("the prompt is empty", parameter="prompt", hint="give at least one token")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidRequest("a prompt of tokens must be a list of whole numbers", parameter="prompt")
    outside = np.flatnonzero((array < 0) | (array >= vocab))
    if outside.size:
        at = int(outside[0])
        raise InvalidRequest(
            f"token {array[at]} at index {at} is not in the vocabulary (0 to {vocab - 1})", parameter="prompt"
        )
    listed: list[int] = array.tolist()
    return listed


def _check_vocabulary(name: str, ids: Iterable[int], vocab: int) -> None:
    outside = next((token for token in ids if token >= vocab), None)
    if outside is not None:
        raise InvalidRequest(f"{name}: token {outside} is not in the vocabulary (0 to {vocab - 1})", parameter=name)
