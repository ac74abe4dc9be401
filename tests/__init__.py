"""The tests, by kind: unit, eager, contract, integration, e2e."""
