"""Blind judging by people, side by side (section B.2): the page, what it has downloaded, and what that says."""
