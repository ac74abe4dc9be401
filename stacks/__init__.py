"""Ways to run the fleet: local real servers (`make up`), the embedded stack, the demo.

May import everything; only tests and benchmarks import it.
"""
