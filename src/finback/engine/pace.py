"""How much of a step prompts may take while answers are being written, found by timing the steps.

An answer's reader notices a step's length. Prompt tokens make it longer, by how much depends on the model, the
machine, the length of the contexts and on who else computes, so it is measured: how long steps without prompt tokens
take for about so many answers, and what a prompt token adds. Prompts get ``SHARE`` of what the answers need: the time
per token of a running answer stays well below twice what it would be alone, and about within twice what it was before
a long prompt came, although the answer itself grows meanwhile. When more requests read than write, each that reads
claims the time of one that writes, within bounds: else prompts would trickle in beside a few answers, and machines
are at their best with many. Where even the least useful chunk takes more than its share, prompts sit out steps until
it is paid back. What is computed depends on none of this.
"""

from __future__ import annotations

from bisect import bisect_left

SHARE = 0.4  # time for prompts, as a part of the time for answers
MANY_PROMPTS_S = 0.25  # longest time for prompts where they claim more than that share
LEAST_CHUNK = 32  # tokens; smaller ones waste most of what every step costs
LEAST_CHUNK_LATENT = 128  # expanded latent attention expands the whole context once for every chunk
SMOOTHING = 0.3  # weight of the newest measurement
STALE_STEPS = 50  # after so many steps with prompts, one without them is timed again
EXACT = 16  # steps of up to so many tokens of answers are timed each by itself
MOST_DEBT = 32.0  # steps of answers that prompts can owe
SURPRISE = 2.0  # times what prompts are known to add that they are taken to have added, at most
UNKNOWN_ROW = 0.3  # what a row more is taken to cost, as a part of a row's time, before it was ever timed


class Pace:
    """Learns from timed steps. Invariant: ``_classes`` are ascending, and so are the ``_tokens`` of their steps."""

    def __init__(self, least_chunk: int = LEAST_CHUNK) -> None:
        self._least_chunk = least_chunk
        self._classes: list[int] = []  # sizes of steps without prompts that were timed
        self._tokens: list[float] = []  # of answers in such steps, by class; the newest counts most
        self._seconds: list[float] = []  # that they took, counted likewise
        self._prompts_s = 0.0  # time that prompts have added to steps; the newest counts most
        self._prompts = 0.0  # tokens of those prompts, counted likewise
        self._share = SHARE
        self._debt_s = 0.0  # time beyond their share that prompts have taken; negative where they left some of it
        self._since_alone = 0
        self._disturbed = False  # by the step before: prompts leave the processor's caches full of other things

    def allowance(self, answers: int, prompts: int) -> int:
        """Tokens of ``prompts`` prompts that the next step may compute beside one of each of ``answers`` answers."""
        if self._since_alone >= STALE_STEPS or _size_class(answers) not in self._classes:
            return 0  # so that the step is timed without prompts
        alone = self.seconds(answers)
        claimed = min(prompts / answers, MANY_PROMPTS_S / alone) if prompts > answers else 0.0
        self._share = max(SHARE, claimed)
        if self._debt_s > alone * self._share / 2:
            return 0
        if not self._prompts:
            return self._least_chunk
        return max(self._least_chunk, int(alone * self._share * self._prompts / self._prompts_s))

    def seconds(self, answers: int) -> float:
        """What a step of ``answers`` tokens of answers takes, without prompts: measured, between and beyond guessed."""
        above = bisect_left(self._tokens, answers)
        if not self._tokens:
            return UNKNOWN_ROW * answers
        if above == len(self._tokens):
            tokens, seconds = self._tokens[-1], self._seconds[-1]
            return seconds * (1 + UNKNOWN_ROW * (answers - tokens) / tokens)
        tokens, seconds = (self._tokens[above - 1], self._seconds[above - 1]) if above else (0.0, 0.0)
        slope = (self._seconds[above] - seconds) / (self._tokens[above] - tokens)
        return seconds + slope * (answers - tokens)

    def note(self, answers: int, prompt: int, seconds: float) -> None:
        """Learn from a step: it computed ``answers`` tokens of answers and ``prompt`` of prompts."""
        if not answers:
            self._disturbed = True
            return
        known = _size_class(answers) in self._classes
        if not known and prompt:
            return
        if not known or not (prompt or self._disturbed):
            self._time(answers, seconds)
        alone = self.seconds(answers)
        added = self._learned(prompt, seconds - alone, alone / answers) if prompt else 0.0
        owed = self._debt_s + added - self._share * alone
        self._debt_s = min(max(-self._share * alone / 2, owed), MOST_DEBT * alone)
        self._disturbed = prompt > 0

    def _time(self, answers: int, seconds: float) -> None:
        """Learn from a step without prompts, fast where it took less than known: what else ran only ever adds."""
        self._since_alone = 0
        size = _size_class(answers)
        at = bisect_left(self._classes, size)
        if size not in self._classes:
            self._classes.insert(at, size)
            self._tokens.insert(at, answers)
            self._seconds.insert(at, seconds)
            return
        expected = self.seconds(answers)
        weight = SMOOTHING if seconds > expected else 2 * SMOOTHING
        self._tokens[at] += weight * (answers - self._tokens[at])
        self._seconds[at] += weight * (min(seconds, 3 * expected) - self._seconds[at])

    def _learned(self, prompt: int, added: float, answer_s: float) -> float:
        """What of the time that a step took longer than without prompts is theirs; large chunks teach most.

        Far more than what is known of prompts is something else that took the processor.
        """
        if not self._prompts:
            self._prompts, self._prompts_s = self._least_chunk, UNKNOWN_ROW * answer_s * self._least_chunk
        expected = self._prompts_s / self._prompts * max(prompt, self._least_chunk)
        added = min(max(added, answer_s / 1000), SURPRISE * expected)
        self._prompts_s = (1 - SMOOTHING) * self._prompts_s + added
        self._prompts = (1 - SMOOTHING) * self._prompts + prompt
        self._since_alone += 1
        return added


def _size_class(answers: int) -> int:
    """Steps of about so many tokens are timed together: small ones each by itself, large ones by powers of two."""
    return answers if answers <= EXACT else EXACT + (answers - 1).bit_length()
