"""Readers and writers of other projects' dataset formats."""
