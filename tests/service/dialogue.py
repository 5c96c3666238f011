"""What is said in these tests, how it is cut, and in which units its audio is counted."""

from __future__ import annotations

from typing import Any

HOP = 512
RATE = 44_100
A = "The harbor is quiet, and the boats wait for wind."
B = "I have not seen the lighthouse keeper for a week."
C = "He went to the mainland to buy a new lamp, I hear."
D = "Then who is it that I see up there every evening?"
DIALOGUE = f"[S1] {A} [S2] {B} [S1] {C} [S2] {D}"
SPLIT: dict[str, Any] = {"allow_multiple_speakers": False, "chunk_size": 60}
VOICE: dict[str, Any] = {"voice_id": "narrator_warm", "chunk_size": 60}  # no chunk waits for one
