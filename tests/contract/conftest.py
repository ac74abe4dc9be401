"""The contract tests look at what a whole saga publishes."""

from tests.eager.conftest import saga

__all__ = ["saga"]
