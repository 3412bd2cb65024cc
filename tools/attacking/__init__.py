"""The parts of tools/attack_serve.py.

- wire: one request, in whatever bytes, and what comes back
- bodies: requests that are HTTP, with odd bodies, fields, addresses and methods
- heads: bytes that are no HTTP, or nearly
- crowds: what comes slowly, what never ends, what comes in thousands
- ends: kill -9, SIGTERM, keys
"""
