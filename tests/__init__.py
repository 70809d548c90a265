"""Tests of memlens."""
