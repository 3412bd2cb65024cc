"""The parts of tools/fuzz.py.

    seeds       small models and files that are right
    mutations   what is done to bytes and to JSON
    formats     what is done to files whose parts have a meaning
    values      odd texts, odd arguments
    kinds       how a case is made: what of a seed is changed
    running     what a case does, and what must hold
    workers     processes that a case may bring down
    shrinking   the smallest case that fails in the same way
"""
