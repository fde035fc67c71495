"""Where the checkout and its folders are."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
SUPPORT = REPOSITORY / "tests" / "support"
TRANSCRIPTS = REPOSITORY / "tests" / "transcripts"
