"""Folders of a file system in memory, as for the bank's tests."""

from tests.engine.bank.conftest import memory_url

__all__ = ["memory_url"]
