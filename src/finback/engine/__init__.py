"""Many requests, one model, one step at a time.

request      what is asked, what a request is, what a step tells        scheduler  which tokens run next (integers)
kv_cache     which block belongs to whom (integers)                     memory     how much context fits
runner       from a schedule to arrays; owns the cache's memory         sampler    from logits to a token
answer       from tokens to text, up to a stop string                   engine     add, abort, step
defaults     the settings that a model's makers publish                 turns      one engine for several threads
stats        what was done, in numbers                                  pace       what steps of each size take
speculation  guessing ahead what an answer repeats                      kv_store   blocks on disk
prefixes     the way of blocks between cache and disk
"""
