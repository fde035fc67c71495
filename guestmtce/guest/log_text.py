"""Text made fit for a line of a log, whoever it came from. Pure."""

TEXT_MAX = 400  # characters of a line


def escape(text: str) -> str:
    """`text` in ASCII without control characters."""
    return text.encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """`text` made harmless for a log: ASCII, no control characters, at most TEXT_MAX characters."""
    cut = escape(text[:TEXT_MAX])[:TEXT_MAX]
    return cut + ("..." if len(text) > len(cut) else "")
