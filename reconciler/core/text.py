"""Make untrusted text safe to print: a sandbox's output must not control a terminal."""

from __future__ import annotations

from typing import Final

# C0 and C1 controls and DEL; characters that hide text or change its direction (Unicode TR 36,
# section 2.9: marks, embeddings, overrides, isolates, tags, annotations); other line separators.
_UNSAFE: Final = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0xAD,
    0x061C,
    0x180E,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
)
_ESCAPES: Final[dict[int, str]] = {
    **{code: chr(code).encode("unicode_escape").decode() for code in _UNSAFE},
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
    # Bytes that are not UTF-8, as ``surrogateescape`` decodes them.
    **{0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)},
}
_ESCAPES_IN_LINES: Final = {code: _ESCAPES[code] for code in _ESCAPES if chr(code) not in "\n\t"}


def inert(text: str) -> str:
    r"""Return one line of printable text: controls, bidi overrides and the like as ``\x1b``."""
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)


def inert_lines(text: str) -> str:
    """Like ``inert``, but keep line feeds and tabs."""
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES_IN_LINES)
