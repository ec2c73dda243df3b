"""The bank's fixture of a folder in an in-memory file system."""

from tests.engine.bank.conftest import memory_url

__all__ = ["memory_url"]
