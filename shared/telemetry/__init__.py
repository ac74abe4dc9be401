"""Logs and error reports: identifiers only, never a body, a token or an address."""
