"""What SentencePiece calls byte fallback: one piece for each byte, for characters that have none of their own."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a blank in pieces
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
