"""Blind judging by people, side by side (section B.2): the pages, their downloaded judgments, and the statistics."""
