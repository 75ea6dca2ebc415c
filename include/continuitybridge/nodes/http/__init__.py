"""Requests over HTTP as nodes make them: what to send, how the answer is read, when to try again."""
