"""The parts of tools/fuzz.py.

- seeds: small models and files that are right
- interrupted: what runs leave that were interrupted
- values: odd texts, odd arguments
- mutations: what is done to bytes and to JSON
- formats: what is done to files whose parts have a meaning
- tokenizers: what is done to tokenizer.json
- commands: odd command lines
- calls: odd arguments of functions
- kinds: how a case is made: what of a seed is changed
- running: what is done with a case
- checks: what must hold of answers
- verdicts: what came of a case
- workers: processes that a case may bring down
- shrinking: the smallest case that fails in the same way
- saving: cases in folders
"""
