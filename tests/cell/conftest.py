"""Fixtures for the cell's own tests."""

from tests.cell.fixture import cell, market

__all__ = ["cell", "market"]
