"""Judges: calls of OpenAI-compatible servers, the journal of their replies, and their cost."""
