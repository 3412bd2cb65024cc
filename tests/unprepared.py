"""Single steps of a backend on weights as they come from a file."""

from typing import Any


class Unprepared:
    """The functions of kernels/reference.py, with a backend's: each prepares what it is given.

    Whatever else is asked for is the backend's own.
    """

    def __init__(self, kernels: Any):
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)

    def embed(self, input_ids, token_type_ids, position_ids, tables, eps):
        prepared = self.kernels.prepare_tables(tables)
        return self.kernels.embed(input_ids, token_type_ids, position_ids, prepared, eps)

    def linear(self, x, dense):
        return self.kernels.linear(x, self.kernels.prepare_dense(dense))

    def linear_activation(self, x, dense, activation):
        return self.kernels.linear_activation(x, self.kernels.prepare_dense(dense), activation)

    def linear_add_norm(self, x, dense, residual, norm, eps):
        prepared = self.kernels.prepare_dense(dense), residual, self.kernels.prepare_norm(norm)
        return self.kernels.linear_add_norm(x, *prepared, eps)

    def span_logits(self, x, dense):
        return self.kernels.span_logits(x, self.kernels.prepare_head(dense))
