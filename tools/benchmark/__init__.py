"""The rooms of tools/bench.py: what is measured, how, and what is printed."""
