"""One server of `bench.py serve`: minibert's, with its own encoder or that of ONNX Runtime.

    python serve_side.py {minibert,onnxruntime} {joined,single} FOLDER FILE THREADS

It prints its port, and serves until SIGTERM.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.peers import Run, load_onnxruntime
from benchmark.workload import Inputs, pad
from minibert.model import Model, load_model
from minibert.serve.app import create_app
from minibert.serve.server import listen, make_server
from minibert.serve.service import Service
from minibert.serve.settings import Settings
from minibert.spans import Logits
from minibert.windows import Window


@dataclass(frozen=True, eq=False, kw_only=True)
class PeerModel(Model):
    """A model whose windows a peer runs, in padded batches."""

    encode: Run

    def logits(self, windows: list[Window], trace: Any = None) -> list[Logits]:
        """See Model."""
        inputs = [Inputs("", "", window.input_ids, window.token_type_ids) for window in windows]
        start, end = self.encode(pad(inputs))
        return [
            (start[row, : len(window)].astype(np.float32), end[row, : len(window)])
            for row, window in enumerate(windows)
        ]


def main(engine: str, joining: str, folder: str, file: str, threads: str) -> None:
    """Serve."""
    if engine == "minibert":
        model = load_model(folder, device="cpu", num_threads=int(threads))
    else:
        parts = vars(load_model(folder, device="reference"))
        encode = load_onnxruntime(Path(file), "float32", int(threads))
        model = PeerModel(**parts, encode=encode)
    # A batch of one token holds one window: nothing is joined.
    service = Service(model, Settings(), batch_tokens=None if joining == "joined" else 1)
    with listen("127.0.0.1", 0) as opened:
        print(opened.getsockname()[1], flush=True)
        make_server(create_app(service), service).run(sockets=[opened])


if __name__ == "__main__":
    main(*sys.argv[1:])
