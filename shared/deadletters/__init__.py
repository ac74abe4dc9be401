"""Dead letters: what landed in ``<queue>.dlq``, and how it gets back to work."""
